//! Where a pod may run: affinity, tolerations, spreading, gates.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::super::field::{Errors, Path};
use super::super::format;
use super::super::selector_rules::{label_values, selector};
use super::super::tree::{is_set, items, text};
use super::if_set_one_of;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn validate_affinity(affinity: &Value, path: &Path, errors: &mut Errors) {
    let (node, place) = (&affinity["nodeAffinity"], path.field("nodeAffinity"));
    if is_set(node, REQUIRED) {
        node_selector(&node[REQUIRED], &place.field(REQUIRED), errors);
    }
    for (at, term) in items(node, PREFERRED).enumerate() {
        let path = place.field(PREFERRED).index(at);
        weight(term, &path, errors);
        node_term(&term["preference"], false, &path.field("preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (pods, path) = (&affinity[kind], path.field(kind));
        for (at, term) in items(pods, REQUIRED).enumerate() {
            pod_term(term, &path.field(REQUIRED).index(at), errors);
        }
        for (at, term) in items(pods, PREFERRED).enumerate() {
            let path = path.field(PREFERRED).index(at);
            weight(term, &path, errors);
            pod_term(&term["podAffinityTerm"], &path.field("podAffinityTerm"), errors);
        }
    }
}

fn weight(term: &Value, path: &Path, errors: &mut Errors) {
    let weight = term["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(path.field("weight"), weight, "must be in the range 1-100");
    }
}

/// A selector of nodes, by labels and by name.
pub(in super::super) fn node_selector(selector: &Value, path: &Path, errors: &mut Errors) {
    let path = path.field("nodeSelectorTerms");
    if items(selector, "nodeSelectorTerms").next().is_none() {
        errors.required(path, "must have at least one node selector term");
        return;
    }
    for (at, term) in items(selector, "nodeSelectorTerms").enumerate() {
        node_term(term, true, &path.index(at), errors);
    }
}

/// Values of preferences are not checked: upstream found that too late.
fn node_term(term: &Value, check_values: bool, path: &Path, errors: &mut Errors) {
    for (at, requirement) in items(term, "matchExpressions").enumerate() {
        let path = path.field("matchExpressions").index(at);
        let values = items(requirement, "values").count();
        let operator = text(requirement, "operator");
        match operator {
            "In" | "NotIn" if values == 0 => {
                errors.required(path.field("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(path.field("values"), detail);
            }
            "Gt" | "Lt" if values != 1 => {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.required(path.field("values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.invalid(path.field("operator"), operator, "not a valid selector operator"),
        }
        let key = text(requirement, "key");
        errors.faults(&path.field("key"), key, format::qualified_name(key));
        if check_values {
            label_values(requirement, &path, errors);
        }
    }
    for (at, requirement) in items(term, "matchFields").enumerate() {
        let path = path.field("matchFields").index(at);
        let operator = text(requirement, "operator");
        if !matches!(operator, "In" | "NotIn") {
            errors.invalid(path.field("operator"), operator, "not a valid selector operator");
        } else if items(requirement, "values").count() != 1 {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.required(path.field("values"), detail);
        }
        let key = text(requirement, "key");
        if key != "metadata.name" {
            errors.invalid(path.field("key"), key, "not a valid field selector key");
            continue;
        }
        for (nth, value) in items(requirement, "values").enumerate() {
            let value = value.as_str().unwrap_or_default();
            errors.faults(&path.field("values").index(nth), value, format::subdomain(value));
        }
    }
}

fn pod_term(term: &Value, path: &Path, errors: &mut Errors) {
    selector(&term["labelSelector"], &path.field("labelSelector"), errors);
    selector(&term["namespaceSelector"], &path.field("namespaceSelector"), errors);
    for namespace in items(term, "namespaces").filter_map(Value::as_str) {
        errors.faults(&path.field("namespace"), namespace, format::label(namespace));
    }
    label_keys(term, path, errors);
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.required(path.field("topologyKey"), "can not be empty");
    }
    errors.faults(&path.field("topologyKey"), key, format::qualified_name(key));
}

/// Keys of labels whose values the pod itself gives the selector.
fn label_keys(term: &Value, path: &Path, errors: &mut Errors) {
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        let place = path.field(list);
        if items(term, list).next().is_none() {
            continue;
        }
        if term["labelSelector"].is_null() {
            errors.forbidden(place, "must not be specified when labelSelector is not set");
            continue;
        }
        for (at, key) in items(term, list).enumerate() {
            let key = key.as_str().unwrap_or_default();
            errors.faults(&place.index(at), key, format::qualified_name(key));
        }
    }
    let keys: Vec<&str> = items(term, "matchLabelKeys").filter_map(Value::as_str).collect();
    // Creation adds an expression for each key: a second one is the client's own.
    let mut selected: BTreeSet<&str> =
        term["labelSelector"]["matchLabels"].as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    for requirement in items(&term["labelSelector"], "matchExpressions") {
        let key = text(requirement, "key");
        if let Some(at) = keys.iter().position(|it| *it == key).filter(|_| selected.contains(key)) {
            errors.invalid(path.index(at), key, "exists in both matchLabelKeys and labelSelector");
        }
        selected.insert(key);
    }
    for (at, key) in keys.iter().enumerate() {
        if items(term, "mismatchLabelKeys").any(|other| other == key) {
            let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
            errors.invalid(path.field("matchLabelKeys").index(at), *key, detail);
        }
    }
}

/// Tolerations, of a pod or of a runtime class.
pub(in super::super) fn validate_tolerations(spec: &Value, path: &Path, errors: &mut Errors) {
    for (at, toleration) in items(spec, "tolerations").enumerate() {
        let path = path.index(at);
        let of = |key: &str| text(toleration, key);
        let (key, operator, value, effect) = (of("key"), of("operator"), of("value"), of("effect"));
        if !key.is_empty() {
            errors.faults(&path.field("key"), key, format::qualified_name(key));
        }
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(path.field("operator"), operator, detail);
        }
        if is_set(toleration, "tolerationSeconds") && effect != "NoExecute" {
            errors.invalid(path.field("effect"), effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator {
            "" | "Equal" => {
                let faults = format::label_value(value);
                if !faults.is_empty() {
                    errors.invalid(path.field("operator"), value, faults.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                errors.invalid(path.field("operator"), value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            // Comparisons are an alpha feature of 1.36, and off.
            "Lt" | "Gt" => errors.not_supported(path.field("operator"), operator, &["Equal", "Exists", "Lt", "Gt"]),
            _ => errors.not_supported(path.field("operator"), operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.not_supported(path.field("effect"), effect, &EFFECTS);
        }
    }
}

pub(super) fn validate_gates(spec: &Value, path: &Path, errors: &mut Errors) {
    for (at, gate) in items(spec, "readinessGates").enumerate() {
        let kind = text(gate, "conditionType");
        let path = path.field("readinessGates").index(at).field("conditionType");
        errors.faults(&path, kind, format::qualified_name(kind));
    }
    let mut seen = HashSet::new();
    for (at, gate) in items(spec, "schedulingGates").enumerate() {
        let (name, path) = (text(gate, "name"), path.field("schedulingGates").index(at));
        errors.faults(&path, name, format::qualified_name(name));
        if !seen.insert(name) {
            errors.duplicate(path, name);
        }
    }
}

pub(super) fn validate_spread(spec: &Value, list: &Path, errors: &mut Errors) {
    let constraints: Vec<&Value> = items(spec, "topologySpreadConstraints").collect();
    for (at, constraint) in constraints.iter().enumerate() {
        let path = list.index(at);
        let skew = constraint["maxSkew"].as_i64().unwrap_or(0);
        if skew <= 0 {
            errors.invalid(path.field("maxSkew"), skew, "must be greater than zero");
        }
        let (key, action) = (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
        if key.is_empty() {
            errors.required(path.field("topologyKey"), "can not be empty");
        }
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            errors.not_supported(path.field("whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        let again = |other: &&&Value| text(other, "topologyKey") == key && text(other, "whenUnsatisfiable") == action;
        if constraints[at + 1..].iter().find(again).is_some() {
            errors.duplicate(path.field("{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {action}}}"));
        }
        if let Some(domains) = constraint["minDomains"].as_i64() {
            if domains <= 0 {
                errors.invalid(path.field("minDomains"), domains, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.invalid(path.field("minDomains"), domains, detail);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if_set_one_of(constraint, policy, &["Honor", "Ignore"], &path, errors);
        }
        label_keys(constraint, &path, errors);
        selector(&constraint["labelSelector"], &path.field("labelSelector"), errors);
    }
}
