//! What is wrong with a pod or a pod template: the usual mistakes, in upstream's words (C3.23).

use std::collections::HashSet;

use serde_json::Value;

use super::field::FieldError;
use super::tree::{items, text};

pub(super) fn validate(pod: &Value) -> Vec<FieldError> {
    let mut errors = validate_spec(&pod["spec"], "spec");
    let name = text(&pod["spec"], "nodeName");
    let ours = items(&pod["spec"], "schedulingGates").next().is_some() && !name.is_empty();
    let is_new = pod["metadata"]["resourceVersion"].is_null();
    if ours && is_new {
        errors
            .push(FieldError::forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared"));
    }
    errors
}

/// A pod's or a template's spec, which stands at `path`.
pub(super) fn validate_spec(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let volumes = validate_volumes(spec, path, &mut errors);
    if items(spec, "containers").next().is_none() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names = HashSet::new();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (at, container) in items(spec, list).enumerate() {
            let place = format!("{path}.{list}[{at}]");
            validate_container(container, &place, &volumes, &mut errors);
            let name = text(container, "name");
            if !name.is_empty() && !names.insert(name.to_owned()) {
                errors.push(FieldError::duplicate(format!("{place}.name"), name));
            }
        }
    }
    one_of(spec, "restartPolicy", &["Always", "Never", "OnFailure"], path, &mut errors);
    one_of(spec, "dnsPolicy", &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], path, &mut errors);
    for (key, least) in [("activeDeadlineSeconds", 1), ("terminationGracePeriodSeconds", 0)] {
        if let Some(value) = spec[key].as_i64().filter(|value| *value < least) {
            let detail = if least == 1 {
                "must be between 1 and 2147483647, inclusive"
            } else {
                "must be greater than or equal to 0"
            };
            errors.push(FieldError::invalid(format!("{path}.{key}"), value, detail));
        }
    }
    for (at, toleration) in items(spec, "tolerations").enumerate() {
        validate_toleration(toleration, &format!("{path}.tolerations[{at}]"), &mut errors);
    }
    errors
}

fn one_of(object: &Value, key: &str, supported: &[&str], path: &str, errors: &mut Vec<FieldError>) {
    let value = text(object, key);
    if value.is_empty() {
        errors.push(FieldError::required(format!("{path}.{key}"), ""));
    } else if !supported.contains(&value) {
        errors.push(FieldError::not_supported(format!("{path}.{key}"), value, supported));
    }
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

fn validate_label(value: &str, path: String, errors: &mut Vec<FieldError>) {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if value.len() > 63 {
        errors.push(FieldError::invalid(path, value, "must be no more than 63 characters"));
    } else if !value.starts_with(legal) || !value.ends_with(legal) || !value.chars().all(|c| legal(c) || c == '-') {
        errors.push(FieldError::invalid(path, value, LABEL));
    }
}

/// Answers with the names.
fn validate_volumes(spec: &Value, path: &str, errors: &mut Vec<FieldError>) -> HashSet<String> {
    let mut names = HashSet::new();
    for (at, volume) in items(spec, "volumes").enumerate() {
        let place = format!("{path}.volumes[{at}]");
        let name = text(volume, "name");
        validate_label(name, format!("{place}.name"), errors);
        if !names.insert(name.to_owned()) {
            errors.push(FieldError::duplicate(format!("{place}.name"), name));
        }
        let sources = volume.as_object().map_or(0, |fields| fields.keys().filter(|key| *key != "name").count());
        if sources > 1 {
            errors.push(FieldError::forbidden(place, "may not specify more than 1 volume type"));
        }
    }
    names
}

fn validate_container(container: &Value, place: &str, volumes: &HashSet<String>, errors: &mut Vec<FieldError>) {
    validate_label(text(container, "name"), format!("{place}.name"), errors);
    let image = text(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{place}.image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{place}.image"), image, detail));
    }
    one_of(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], place, errors);
    one_of(container, "terminationMessagePolicy", &["FallbackToLogsOnError", "File"], place, errors);
    validate_ports(container, place, errors);
    for (at, variable) in items(container, "env").enumerate() {
        let path = format!("{place}.env[{at}]");
        if text(variable, "name").is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        if !text(variable, "value").is_empty() && variable["valueFrom"].is_object() {
            let detail = "may not be specified when `value` is not empty";
            errors.push(FieldError::invalid(format!("{path}.valueFrom"), "", detail));
        }
    }
    let mut paths = HashSet::new();
    for (at, mount) in items(container, "volumeMounts").enumerate() {
        let path = format!("{place}.volumeMounts[{at}]");
        let name = text(mount, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains(name) {
            errors.push(FieldError::not_found(format!("{path}.name"), name));
        }
        let mounted = text(mount, "mountPath");
        if mounted.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if !paths.insert(mounted.to_owned()) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), mounted, "must be unique"));
        }
    }
    validate_resources(&container["resources"], &format!("{place}.resources"), errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe].is_object() {
            validate_probe(&container[probe], &format!("{place}.{probe}"), probe != "readinessProbe", errors);
        }
    }
}

fn validate_ports(container: &Value, place: &str, errors: &mut Vec<FieldError>) {
    let mut names = HashSet::new();
    for (at, port) in items(container, "ports").enumerate() {
        let path = format!("{place}.ports[{at}]");
        match port["containerPort"].as_i64().unwrap_or(0) {
            0 => errors.push(FieldError::required(format!("{path}.containerPort"), "")),
            1..=65535 => {}
            other => errors.push(FieldError::invalid(format!("{path}.containerPort"), other, PORT_RANGE)),
        }
        if let Some(other) = port["hostPort"].as_i64().filter(|port| !(0..=65535).contains(port)) {
            errors.push(FieldError::invalid(format!("{path}.hostPort"), other, PORT_RANGE));
        }
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
        let name = text(port, "name");
        if name.is_empty() {
            continue;
        }
        if name.len() > 15 {
            errors.push(FieldError::invalid(format!("{path}.name"), name, "must be no more than 15 characters"));
        }
        if !names.insert(name.to_owned()) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
    }
}

/// Upstream's words about a port.
pub(super) const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

fn validate_resources(resources: &Value, place: &str, errors: &mut Vec<FieldError>) {
    use stoker_model::quantity::Milli;
    let parse = |value: &Value| -> Option<Milli> {
        Milli::parse(&value.as_str().map_or_else(|| value.to_string(), str::to_owned)).ok()
    };
    let limits = &resources["limits"];
    for list in ["limits", "requests"] {
        for (name, amount) in resources[list].as_object().into_iter().flatten() {
            let path = format!("{place}.{list}[{name}]");
            let Some(quantity) = parse(amount) else {
                let detail =
                    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
                errors.push(FieldError::invalid(path, amount.clone(), detail));
                continue;
            };
            if quantity < Milli::ZERO {
                errors.push(FieldError::invalid(path, amount.clone(), "must be greater than or equal to 0"));
                continue;
            }
            if list == "requests"
                && let Some(limit) = limits.get(name).and_then(parse)
                && quantity > limit
            {
                let shown = limits[name].as_str().map_or_else(|| limits[name].to_string(), str::to_owned);
                let detail = format!("must be less than or equal to {name} limit of {shown}");
                errors.push(FieldError::invalid(format!("{place}.requests"), amount.clone(), detail));
            }
        }
    }
}

fn validate_probe(probe: &Value, place: &str, once: bool, errors: &mut Vec<FieldError>) {
    let handlers = ["exec", "grpc", "httpGet", "tcpSocket"];
    match handlers.iter().filter(|handler| probe.get(**handler).is_some_and(Value::is_object)).count() {
        0 => errors.push(FieldError::required(place.to_owned(), "must specify a handler type")),
        1 => {}
        _ => errors.push(FieldError::forbidden(place.to_owned(), "may not specify more than 1 handler type")),
    }
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        if let Some(value) = probe[key].as_i64().filter(|value| *value < 0) {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(format!("{place}.{key}"), value, detail));
        }
    }
    if once && probe["successThreshold"].as_i64().is_some_and(|value| value != 1) {
        errors.push(FieldError::invalid(
            format!("{place}.successThreshold"),
            probe["successThreshold"].clone(),
            "must be 1",
        ));
    }
}

fn validate_toleration(toleration: &Value, place: &str, errors: &mut Vec<FieldError>) {
    let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
    if key.is_empty() && operator != "Exists" {
        let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.push(FieldError::invalid(format!("{place}.operator"), operator, detail));
    }
    if !matches!(operator, "" | "Equal" | "Exists" | "Gt" | "Lt") {
        errors.push(FieldError::not_supported(format!("{place}.operator"), operator, &["Equal", "Exists"]));
    }
    let effect = text(toleration, "effect");
    if !matches!(effect, "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        let supported = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
        errors.push(FieldError::not_supported(format!("{place}.effect"), effect, &supported));
    }
    if toleration["tolerationSeconds"].is_i64() && effect != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(format!("{place}.effect"), effect, detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::pod_defaults::default_pod;

    #[track_caller]
    fn check(spec: Value, expected: &[&str]) {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
        default_pod(&mut pod);
        let texts: Vec<String> = validate(&pod).iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn the_usual_mistakes_are_named() {
        // C3.20
        check(json!({"containers": [{"name": "a", "image": "x"}]}), &[]);
        check(json!({}), &["spec.containers: Required value"]);
        check(json!({"containers": [{"name": "a"}]}), &["spec.containers[0].image: Required value"]);
        check(
            json!({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]}),
            &["spec.containers[1].name: Duplicate value: \"a\""],
        );
        check(
            json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
            &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
        );
        check(
            json!({"restartPolicy": "Sometimes", "containers": [{"name": "a", "image": "x"}]}),
            &[
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
            ],
        );
        check(
            json!({"containers": [{"name": "a", "image": "x",
                "resources": {"limits": {"memory": "1Gi"}, "requests": {"memory": "2Gi"}}}]}),
            &[
                "spec.containers[0].resources.requests: Invalid value: \"2Gi\": must be less than or equal to memory limit of 1Gi",
            ],
        );
    }
}
