//! What is wrong with a pod, a pod template, or a change of a pod: one file per subject, in upstream's order and words
//! (C3.20, C3.24).

mod annotations;
mod container;
mod environment;
mod handlers;
#[cfg(test)]
mod more_tests;
mod mounts;
mod network;
mod projected;
mod resources;
mod scheduling;
mod security;
mod status;
#[cfg(test)]
mod tests;
mod update;
mod volumes;

use std::collections::BTreeSet;

use serde_json::Value;

use super::field::{Errors, FieldError, Path};
use super::format;
use super::selector_rules::labels;
use super::tree::{is_set, items, text};

pub(super) use self::resources::{aggregate, container_name, quantity, quota_name, resource_name, validate_overhead};
pub(crate) use self::resources::{pod_limits, pod_requests};
pub(super) use self::scheduling::{node_selector, validate_tolerations};
pub(super) use self::status::validate_status;
pub(super) use self::update::{validate_ephemeral, validate_resize, validate_update};
pub(super) use self::volumes::{below, driver, required, validate_claim_spec};

/// What the rules of a part need to know of the whole.
struct Whole<'s> {
    spec: &'s Value,
    /// The volumes by name that have nothing wrong.
    volumes: Vec<&'s Value>,
    claims: BTreeSet<&'s str>,
    /// Whether the pod uses the host's user namespace.
    host_users: bool,
}

impl<'s> Whole<'s> {
    fn volume(&self, name: &str) -> Option<&'s Value> {
        self.volumes.iter().copied().find(|volume| text(volume, "name") == name)
    }
}

/// The containers of all lists, and where they stand.
fn containers<'s>(spec: &'s Value, path: &Path) -> impl Iterator<Item = (Path, &'s Value)> {
    let path = path.clone();
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |list| {
        let path = path.field(list);
        items(spec, list).enumerate().map(move |(at, container)| (path.index(at), container))
    })
}

/// A pod. What is only asked of new ones is asked where there is no resourceVersion yet.
pub(super) fn validate(pod: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (metadata, spec, path) = (&pod["metadata"], &pod["spec"], Path::new("spec"));
    annotations::validate(metadata, spec, &Path::new("metadata.annotations"), &mut errors);
    validate_spec(spec, Some(metadata), &path, &mut errors);
    if text(spec, "serviceAccountName").is_empty() {
        for (at, volume) in items(spec, "volumes").enumerate() {
            let sources = path.field("volumes").index(at).field("projected").field("sources");
            for (nth, source) in items(&volume["projected"], "sources").enumerate() {
                if is_set(source, "serviceAccountToken") {
                    let detail = "must not be specified when serviceAccountName is not set";
                    errors.forbidden(sources.index(nth).field("serviceAccountToken"), detail);
                }
            }
        }
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (at, container) in items(spec, list).enumerate() {
            container::validate_image_text(container, &path.field(list).index(at), &mut errors);
        }
    }
    if metadata["resourceVersion"].is_null() {
        if items(spec, "ephemeralContainers").next().is_some() {
            errors.forbidden(path.field("ephemeralContainers"), "cannot be set on create");
        }
        if !text(spec, "nodeName").is_empty() && items(spec, "schedulingGates").next().is_some() {
            errors.forbidden(path.field("nodeName"), "cannot be set until all schedulingGates have been cleared");
        }
        annotations::validate_profiles(metadata, spec, &path, &mut errors);
    }
    errors.0
}

/// A pod template, which stands at `path`.
pub(super) fn validate_template(template: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (metadata, spec) = (&template["metadata"], &template["spec"]);
    let at = path.field("annotations");
    labels(&metadata["labels"], &path.field("labels"), &mut errors);
    for (key, _) in metadata["annotations"].as_object().into_iter().flatten() {
        errors.faults(&at, key, format::qualified_name(&key.to_lowercase()));
    }
    annotations::validate(metadata, spec, &at, &mut errors);
    validate_spec(spec, None, &path.field("spec"), &mut errors);
    annotations::validate_profiles(metadata, spec, &path.field("spec"), &mut errors);
    if items(spec, "ephemeralContainers").next().is_some() {
        let path = path.field("spec").field("ephemeralContainers");
        errors.forbidden(path, "ephemeral containers not allowed in pod template");
    }
    errors.0
}

/// A pod's spec (with its metadata) or a template's (without).
fn validate_spec(spec: &Value, metadata: Option<&Value>, path: &Path, errors: &mut Errors) {
    if spec["terminationGracePeriodSeconds"].is_null() {
        errors.required(path.field("terminationGracePeriodSeconds"), "");
    }
    let volumes = volumes::validate(spec, metadata, &path.field("volumes"), errors);
    let claims = resources::validate_claims(spec, metadata, &path.field("resourceClaims"), errors);
    let whole = Whole { spec, volumes, claims, host_users: spec["hostUsers"] != false };
    container::validate_all(&whole, path, errors);
    resources::validate_pod_level(&whole, path, errors);
    network::validate_host_ports(spec, metadata.is_some(), path, errors);
    one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path, errors);
    one_of(spec, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], path, errors);
    labels(&spec["nodeSelector"], &path.field("nodeSelector"), errors);
    security::validate_pod(spec, &path.field("securityContext"), errors);
    scheduling::validate_affinity(&spec["affinity"], &path.field("affinity"), errors);
    network::validate_dns(spec, &path.field("dnsConfig"), errors);
    scheduling::validate_gates(spec, path, errors);
    scheduling::validate_spread(spec, &path.field("topologySpreadConstraints"), errors);
    security::validate_host_users(&whole, path, errors);
    network::validate_names(spec, path, errors);
    for (key, faults) in [
        ("serviceAccountName", format::subdomain as fn(&str) -> Vec<String>),
        ("nodeName", format::subdomain),
        ("hostname", format::label),
        ("subdomain", format::label),
        ("priorityClassName", format::subdomain),
        ("runtimeClassName", format::subdomain),
    ] {
        let value = text(spec, key);
        if !value.is_empty() {
            errors.faults(&path.field(key), value, faults(value));
        }
    }
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64() {
        let most = i64::from(i32::MAX);
        if !(1..=most).contains(&seconds) {
            errors.invalid(path.field("activeDeadlineSeconds"), seconds, format::range(1, most));
        }
    }
    scheduling::validate_tolerations(spec, &path.field("tolerations"), errors);
    network::validate_aliases(spec, &path.field("hostAliases"), errors);
    if let Some(policy) = spec["preemptionPolicy"].as_str() {
        match policy {
            "PreemptLowerPriority" | "Never" => {}
            "" => errors.required(path.field("preemptionPolicy"), ""),
            other => {
                errors.not_supported(path.field("preemptionPolicy"), other, &["PreemptLowerPriority", "Never"]);
            }
        }
    }
    resources::validate_overhead(&spec["overhead"], &path.field("overhead"), errors);
    security::validate_system(spec, path, errors);
    environment::validate_file_volumes(spec, path, errors);
}

/// A text that must be there and one of a few.
fn one_of(object: &Value, key: &str, supported: &[&str], path: &Path, errors: &mut Errors) {
    match text(object, key) {
        "" => errors.required(path.field(key), ""),
        value if supported.contains(&value) => {}
        value => errors.not_supported(path.field(key), value, supported),
    }
}

/// A text that, if it is there, is one of a few.
fn if_set_one_of(object: &Value, key: &str, supported: &[&str], path: &Path, errors: &mut Errors) {
    if let Some(value) = object[key].as_str().filter(|value| !supported.contains(value)) {
        errors.not_supported(path.field(key), value, supported);
    }
}

/// A number that is not less than nothing.
fn not_negative(object: &Value, key: &str, path: &Path, errors: &mut Errors) {
    if let Some(value) = object[key].as_i64().filter(|value| *value < 0) {
        errors.invalid(path.field(key), value, "must be greater than or equal to 0");
    }
}

/// `observedGeneration`, where there is one.
fn not_negative_integer(object: &Value, path: &Path, errors: &mut Errors) {
    if let Some(value) = object["observedGeneration"].as_i64().filter(|value| *value < 0) {
        errors.invalid(path.field("observedGeneration"), value, "must be a non-negative integer");
    }
}

/// No step up.
fn no_backsteps(value: &str, path: &Path, errors: &mut Errors) {
    if value.split('/').any(|step| step == "..") {
        errors.invalid(path.clone(), value, "must not contain '..'");
    }
}

/// A path below a directory.
fn descending(value: &str, path: &Path, errors: &mut Errors) {
    if value.starts_with('/') {
        errors.invalid(path.clone(), value, "must be a relative path");
    }
    no_backsteps(value, path, errors);
}

/// A path below a directory where names that begin with `..` are the atomic writer's.
fn not_reserved(value: &str, path: &Path, errors: &mut Errors) {
    descending(value, path, errors);
    if value.starts_with("..") && !value.starts_with("../") {
        errors.invalid(path.clone(), value, "must not start with '..'");
    }
}
