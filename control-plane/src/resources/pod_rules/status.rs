//! What of a pod's status an update may say (C3.17).

use std::net::IpAddr;

use serde_json::Value;

use super::super::field::{Errors, FieldError, Path};
use super::super::format;
use super::super::tree::{is_set, items, text};
use super::{annotations, not_negative_integer};

pub(in super::super) fn validate_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    annotations::validate_update(&new["metadata"], &old["metadata"], &Path::new("metadata.annotations"), &mut errors);
    let (status, was, path) = (&new["status"], &old["status"], Path::new("status"));
    for (at, condition) in items(status, "conditions").enumerate() {
        let (path, kind) = (path.field("conditions").index(at), text(condition, "type"));
        not_negative_integer(condition, &path, &mut errors);
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            errors.faults(&path.field("Type"), kind, format::qualified_name(kind));
        }
    }
    let (node, before) = (text(status, "nominatedNodeName"), text(was, "nominatedNodeName"));
    if node != before && !node.is_empty() {
        errors.faults(&path.field("nominatedNodeName"), node, format::subdomain(node));
        if !text(&old["spec"], "nodeName").is_empty() {
            let detail = "may not be set on pods that are already bound to a node";
            errors.forbidden(path.field("nominatedNodeName"), detail);
        }
    }
    not_negative_integer(status, &path, &mut errors);
    let (class, class_before) = (text(status, "qosClass"), text(was, "qosClass"));
    if class != class_before {
        errors.invalid(path.field("qosClass"), class, "field is immutable");
    }
    transitions(new, old, &path, &mut errors);
    addresses(status, "podIPs", &path, &mut errors);
    if let Some(first) = items(status, "hostIPs").next().filter(|first| first["ip"] != status["hostIP"]) {
        let place = path.field("hostIPs").index(0).field("ip");
        errors.invalid(place, text(first, "ip"), "must be equal to `hostIP`");
    }
    addresses(status, "hostIPs", &path, &mut errors);
    errors.0
}

/// A container that has ended for good does not run again.
fn transitions(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let spec = &old["spec"];
    let rules =
        |container: &Value| items(container, "restartPolicyRules").any(|rule| rule["action"] == "RestartAllContainers");
    let all_restart = ["containers", "initContainers"].iter().any(|list| items(spec, list).any(rules));
    for (list, statuses) in [
        ("containers", "containerStatuses"),
        ("initContainers", "initContainerStatuses"),
        ("ephemeralContainers", "ephemeralContainerStatuses"),
    ] {
        if all_restart && list != "ephemeralContainers" {
            continue;
        }
        for (at, was) in items(&old["status"], statuses).enumerate() {
            let ended = &was["state"]["terminated"];
            if ended.is_null() {
                continue;
            }
            let runs_again = items(&new["status"], statuses)
                .any(|is| is["name"] == was["name"] && is["state"]["terminated"].is_null());
            let container = items(spec, list).find(|container| container["name"] == was["name"]);
            let code = ended["exitCode"].as_i64().unwrap_or(0);
            if runs_again && (list == "ephemeralContainers" || !may_restart(spec, container, code)) {
                let path = path.field(statuses).index(at).field("state");
                errors.forbidden(path, "may not be transitioned to non-terminated state");
            }
        }
    }
}

/// By its own rules, else by its own policy, else by the pod's (A3.4).
fn may_restart(spec: &Value, container: Option<&Value>, code: i64) -> bool {
    let policy = |policy: &str| policy == "Always" || (policy == "OnFailure" && code != 0);
    let Some(container) = container else { return policy(text(spec, "restartPolicy")) };
    for rule in items(container, "restartPolicyRules") {
        let codes = &rule["exitCodes"];
        let among = items(codes, "values").any(|value| value == code);
        if among == (codes["operator"] == "In") && is_set(rule, "exitCodes") {
            return true;
        }
    }
    match text(container, "restartPolicy") {
        "" => policy(text(spec, "restartPolicy")),
        own => policy(own),
    }
}

fn addresses(status: &Value, list: &str, path: &Path, errors: &mut Errors) {
    let path = path.field(list);
    let all: Vec<&str> = items(status, list).map(|entry| text(entry, "ip")).collect();
    for (at, address) in all.iter().enumerate() {
        errors.faults(&path.index(at), address, format::address(address));
    }
    let parsed = all.iter().filter_map(|address| address.parse::<IpAddr>().ok());
    let (four, six): (Vec<IpAddr>, Vec<IpAddr>) = parsed.partition(IpAddr::is_ipv4);
    if four.len() > 1 || six.len() > 1 {
        errors.invalid(path, status[list].clone(), "may specify no more than one IP for each IP family");
    }
}
