//! flowcontrol.apiserver.k8s.io/v1 (C1.19): kept and shown. This API server has no queues of its own to share out, so
//! no request is treated otherwise for them, as with upstream's `--enable-priority-and-fairness=false`.

use k8s_openapi::api::flowcontrol::v1 as api;
use serde_json::Value;

use super::field::{Errors, FieldError, Path};
use super::tree::{child, fill, text};
use super::{ResourceInfo, STATUS};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";

pub(super) const TABLE: &[ResourceInfo] = &[
    ResourceInfo::of::<api::FlowSchema>(GROUP, "v1", "FlowSchema", "flowschemas", "flowschema")
        .with_status()
        .subresources(&[STATUS])
        .defaults(default_schema)
        .validated(validate_schema),
    ResourceInfo::of::<api::PriorityLevelConfiguration>(
        GROUP,
        "v1",
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        "prioritylevelconfiguration",
    )
    .with_status()
    .subresources(&[STATUS])
    .defaults(default_level)
    .validated(validate_level),
];

fn default_schema(schema: &mut Value) {
    fill(child(schema, "spec"), "matchingPrecedence", 1000);
}

fn default_level(level: &mut Value) {
    let spec = child(level, "spec");
    if spec["limited"].is_object() {
        let limited = child(spec, "limited");
        fill(limited, "nominalConcurrencyShares", 30);
        fill(limited, "lendablePercent", 0);
        if limited["limitResponse"]["type"] == "Queue" {
            let queuing = child(child(limited, "limitResponse"), "queuing");
            fill(queuing, "queues", 64);
            fill(queuing, "handSize", 8);
            fill(queuing, "queueLengthLimit", 50);
        }
    } else if spec["exempt"].is_object() {
        let exempt = child(spec, "exempt");
        fill(exempt, "nominalConcurrencyShares", 0);
        fill(exempt, "lendablePercent", 0);
    }
}

fn validate_schema(schema: &Value) -> Vec<FieldError> {
    const HIGHEST: i64 = 10_000;
    let (spec, path) = (&schema["spec"], Path::new("spec"));
    let mut errors = Errors::default();
    let precedence = spec["matchingPrecedence"].as_i64().unwrap_or(0);
    if precedence <= 0 {
        errors.invalid(path.field("matchingPrecedence"), precedence, "must be a positive value");
    }
    if precedence > HIGHEST {
        let detail = format!("must not be greater than {HIGHEST}");
        errors.invalid(path.field("matchingPrecedence"), precedence, detail);
    }
    if let Some(kind) =
        spec["distinguisherMethod"]["type"].as_str().filter(|kind| !matches!(*kind, "ByNamespace" | "ByUser"))
    {
        errors.not_supported(path.field("distinguisherMethod"), kind, &["ByNamespace", "ByUser"]);
    }
    if text(&spec["priorityLevelConfiguration"], "name").is_empty() {
        let place = path.field("priorityLevelConfiguration").field("name");
        errors.required(place, "must reference a priority level");
    }
    errors.0
}

fn validate_level(level: &Value) -> Vec<FieldError> {
    let (spec, path) = (&level["spec"], Path::new("spec"));
    let mut errors = Errors::default();
    match text(spec, "type") {
        "Exempt" if !spec["limited"].is_null() => {
            errors.forbidden(path.field("limited"), "must be nil if the type is not Limited");
        }
        "Limited" if spec["limited"].is_null() => {
            errors.required(path.field("limited"), "must not be empty when type is Limited");
        }
        "Exempt" | "Limited" => {}
        kind => errors.not_supported(path.field("type"), kind, &["Exempt", "Limited"]),
    }
    errors.0
}
