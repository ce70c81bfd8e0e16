//! Containers of all three lists: names, images, ports, restarts.

use std::collections::HashSet;

use serde_json::Value;

use super::super::field::{Errors, FieldError, Path};
use super::super::format;
use super::super::tree::{is_set, items, text};
use super::{Whole, environment, handlers, mounts, one_of, resources, security};

const POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
const MOST_RULES: usize = 20;
const MOST_CODES: usize = 255;
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// What a debugging container cannot have.
const NOT_EPHEMERAL: [&str; 9] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];

pub(super) fn validate_all(whole: &Whole<'_>, path: &Path, errors: &mut Errors) {
    regular(whole, &path.field("containers"), errors);
    init(whole, &path.field("initContainers"), errors);
    ephemeral(whole, &path.field("ephemeralContainers"), errors);
}

fn regular(whole: &Whole<'_>, path: &Path, errors: &mut Errors) {
    if items(whole.spec, "containers").next().is_none() {
        errors.required(path.clone(), "");
        return;
    }
    let (mut names, mut ports) = (HashSet::new(), HashSet::new());
    for (at, container) in items(whole.spec, "containers").enumerate() {
        let path = path.index(at);
        common(container, whole, &path, errors);
        let name = text(container, "name");
        if !names.insert(name) {
            errors.duplicate(path.field("name"), name);
        }
        handlers::validate_lifecycle(container, whole.spec, &path.field("lifecycle"), errors);
        handlers::validate_probes(container, &path, errors);
        restarts(container, &path, errors);
        host_ports(container, &path, &mut ports, errors);
    }
}

fn init(whole: &Whole<'_>, path: &Path, errors: &mut Errors) {
    let mut names: HashSet<&str> = items(whole.spec, "containers").map(|container| text(container, "name")).collect();
    for (at, container) in items(whole.spec, "initContainers").enumerate() {
        let path = path.index(at);
        common(container, whole, &path, errors);
        restarts(container, &path, errors);
        let name = text(container, "name");
        if !names.insert(name) {
            errors.duplicate(path.field("name"), name);
        }
        host_ports(container, &path, &mut HashSet::new(), errors);
        if container["restartPolicy"] == "Always" {
            handlers::validate_lifecycle(container, whole.spec, &path.field("lifecycle"), errors);
            handlers::validate_probes(container, &path, errors);
            continue;
        }
        for key in ["lifecycle"].into_iter().chain(PROBES).filter(|key| is_set(container, key)) {
            errors.forbidden(path.field(key), "may not be set for init containers without restartPolicy=Always");
        }
        for (nth, policy) in items(container, "resizePolicy").enumerate() {
            if policy["restartPolicy"] == "RestartContainer" {
                let path = path.field("resizePolicy").index(nth).field("restartPolicy");
                let detail = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                errors.invalid(path, "RestartContainer", detail);
            }
        }
    }
}

fn ephemeral(whole: &Whole<'_>, path: &Path, errors: &mut Errors) {
    let others: HashSet<&str> = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|list| items(whole.spec, list))
        .map(|container| text(container, "name"))
        .collect();
    let mut names = others.clone();
    for (at, container) in items(whole.spec, "ephemeralContainers").enumerate() {
        let path = path.index(at);
        common(container, whole, &path, errors);
        let name = text(container, "name");
        if !names.insert(name) {
            errors.duplicate(path.field("name"), name);
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(path.field("targetContainerName"), target);
        }
        for key in NOT_EPHEMERAL {
            let empty = |value: &Value| {
                value.as_object().is_some_and(|map| map.is_empty()) || value.as_array().is_some_and(Vec::is_empty)
            };
            if is_set(container, key) && !empty(&container[key]) {
                errors.forbidden(path.field(key), "cannot be set for an Ephemeral Container");
            }
        }
        for (nth, mount) in items(container, "volumeMounts").enumerate() {
            for key in ["subPath", "subPathExpr"].into_iter().filter(|key| !text(mount, key).is_empty()) {
                let path = path.field("volumeMounts").index(nth).field(key);
                errors.forbidden(path, "cannot be set for an Ephemeral Container");
            }
        }
    }
}

fn common(container: &Value, whole: &Whole<'_>, path: &Path, errors: &mut Errors) {
    let name = text(container, "name");
    if name.is_empty() {
        errors.required(path.field("name"), "");
    } else {
        errors.faults(&path.field("name"), name, format::label(name));
    }
    if text(container, "image").is_empty() {
        errors.required(path.field("image"), "");
    }
    one_of(container, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], path, errors);
    ports(container, &path.field("ports"), errors);
    environment::validate(container, path, errors);
    mounts::validate(container, whole, path, errors);
    one_of(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
    resources::validate_container(container, &whole.claims, &path.field("resources"), errors);
    resize_policy(container, whole.spec, &path.field("resizePolicy"), errors);
    security::validate_container(container, whole.host_users, &path.field("securityContext"), errors);
}

/// Only pods refuse blanks around an image, since templates could always have them.
pub(super) fn validate_image_text(container: &Value, path: &Path, errors: &mut Errors) {
    let image = text(container, "image");
    if image.trim() != image {
        errors.invalid(path.field("image"), image, "must not have leading or trailing whitespace");
    }
}

fn ports(container: &Value, path: &Path, errors: &mut Errors) {
    let mut names = HashSet::new();
    for (at, port) in items(container, "ports").enumerate() {
        let path = path.index(at);
        let name = text(port, "name");
        if !name.is_empty() {
            let faults = format::port_name(name);
            if !faults.is_empty() {
                errors.faults(&path.field("name"), name, faults);
            } else if !names.insert(name) {
                errors.duplicate(path.field("name"), name);
            }
        }
        for (key, needed) in [("containerPort", true), ("hostPort", false)] {
            match port[key].as_i64().unwrap_or(0) {
                0 if needed => errors.required(path.field(key), ""),
                0 => {}
                number => {
                    for fault in format::port_number(number) {
                        errors.invalid(path.field(key), number, fault);
                    }
                }
            }
        }
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
    }
}

/// Two containers cannot have the same port of the host.
fn host_ports(container: &Value, path: &Path, taken: &mut HashSet<String>, errors: &mut Errors) {
    for (at, port) in items(container, "ports").enumerate() {
        let Some(number) = port["hostPort"].as_i64().filter(|number| *number != 0) else { continue };
        let place = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
        if taken.contains(&place) {
            errors.duplicate(path.field("ports").index(at).field("hostPort"), place);
        } else {
            taken.insert(place);
        }
    }
}

/// The container's own restart policy and rules.
fn restarts(container: &Value, path: &Path, errors: &mut Errors) {
    let rules = items(container, "restartPolicyRules").count();
    match container["restartPolicy"].as_str() {
        None if rules > 0 => {
            errors.required(path.field("restartPolicy"), "must specify restartPolicy when restart rules are used");
        }
        Some(policy) if !POLICIES.contains(&policy) => {
            errors.not_supported(path.field("restartPolicy"), policy, &POLICIES);
        }
        _ => {}
    }
    let list = path.field("restartPolicyRules");
    if rules > MOST_RULES {
        errors.0.push(FieldError::too_many(list.clone(), rules, MOST_RULES));
    }
    for (at, rule) in items(container, "restartPolicyRules").enumerate() {
        let path = list.index(at);
        let action = text(rule, "action");
        if !matches!(action, "Restart" | "RestartAllContainers") {
            errors.not_supported(path.field("action"), action, &["Restart", "RestartAllContainers"]);
        }
        let codes = &rule["exitCodes"];
        let path = path.field("exitCodes");
        if codes.is_null() {
            errors.required(path, "must be specified");
            continue;
        }
        let operator = text(codes, "operator");
        if !matches!(operator, "In" | "NotIn") {
            errors.not_supported(path.field("operator"), operator, &["In", "NotIn"]);
        }
        let values = items(codes, "values").count();
        if values > MOST_CODES {
            errors.0.push(FieldError::too_many(path.field("values"), values, MOST_CODES));
        }
    }
}

fn resize_policy(container: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (at, policy) in items(container, "resizePolicy").enumerate() {
        let resource = text(policy, "resourceName");
        if !seen.insert(resource) {
            errors.duplicate(path.index(at), resource);
        }
        match resource {
            "cpu" | "memory" => {}
            "" => errors.required(path.clone(), ""),
            other => errors.not_supported(path.clone(), other, &["cpu", "memory"]),
        }
        let restart = text(policy, "restartPolicy");
        match restart {
            "NotRequired" | "RestartContainer" => {}
            "" => errors.required(path.clone(), ""),
            other => errors.not_supported(path.clone(), other, &["NotRequired", "RestartContainer"]),
        }
        if spec["restartPolicy"] == "Never" && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.invalid(path.clone(), restart, detail);
        }
    }
}
