//! What an object counts for in ResourceQuotas, and which quotas it counts in (C5.18). Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use stoker_model::quantity::Milli;

use super::pod::qos;
use super::quantities::{Amounts, amounts, parse};
use super::tree::{is_set, items, text};
use super::{ResourceInfo, pod_limits, pod_requests};

const ONE: Milli = Milli::from_units(1);
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// `count/deployments.apps`
fn count_of(info: &ResourceInfo) -> String {
    if info.group.is_empty() {
        format!("count/{}", info.plural)
    } else {
        format!("count/{}.{}", info.plural, info.group)
    }
}

fn is(info: &ResourceInfo, plural: &str) -> bool {
    info.group.is_empty() && info.plural == plural
}

/// Whether objects of a kind count at all.
pub fn counts(info: &ResourceInfo) -> bool {
    info.namespaced && info.is_stored() && info.plural != "events"
}

/// What an object uses.
pub fn usage(info: &ResourceInfo, object: &Value, now: Timestamp) -> Amounts {
    let mut used = Amounts::from([(count_of(info), ONE)]);
    let spec = &object["spec"];
    match (info.group, info.plural) {
        ("", "pods") if is_running(object, now) => used.extend(of_pod(spec)),
        ("", "services") => {
            used.extend([
                ("services".to_owned(), ONE),
                ("services.loadbalancers".to_owned(), Milli::ZERO),
                ("services.nodeports".to_owned(), Milli::ZERO),
            ]);
            let ports = |counts: fn(&Value) -> bool| {
                let count = items(spec, "ports").filter(|port| counts(port)).count();
                Milli::from_units(i64::try_from(count).unwrap_or(i64::MAX))
            };
            let nodeports = match text(spec, "type") {
                "LoadBalancer" if spec["allocateLoadBalancerNodePorts"] == false => {
                    ports(|port| port["nodePort"].as_i64().unwrap_or(0) != 0)
                }
                "NodePort" | "LoadBalancer" => ports(|_| true),
                _ => Milli::ZERO,
            };
            used.insert("services.nodeports".to_owned(), nodeports);
            if spec["type"] == "LoadBalancer" {
                used.insert("services.loadbalancers".to_owned(), ONE);
            }
        }
        ("", "persistentvolumeclaims") => {
            used.insert("persistentvolumeclaims".to_owned(), ONE);
            let class = text(spec, "storageClassName");
            let storage = parse(&spec["resources"]["requests"]["storage"]);
            if let Some(storage) = storage {
                used.insert("requests.storage".to_owned(), storage);
            }
            if !class.is_empty() {
                used.insert(format!("{class}{OF_CLASS}persistentvolumeclaims"), ONE);
                if let Some(storage) = storage {
                    used.insert(format!("{class}{OF_CLASS}requests.storage"), storage);
                }
            }
        }
        ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
            used.insert(info.plural.to_owned(), ONE);
        }
        _ => {}
    }
    used
}

/// A pod counts until it has ended, or its grace is over.
fn is_running(pod: &Value, now: Timestamp) -> bool {
    if matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed") {
        return false;
    }
    let metadata = &pod["metadata"];
    let deleted = text(metadata, "deletionTimestamp").parse::<Timestamp>().ok();
    let grace = metadata["deletionGracePeriodSeconds"].as_i64();
    match (deleted, grace) {
        (Some(at), Some(grace)) => at.checked_add(SignedDuration::from_secs(grace)).map_or(true, |end| now <= end),
        _ => true,
    }
}

fn of_pod(spec: &Value) -> Amounts {
    computed(&pod_requests(spec), &pod_limits(spec))
}

/// Under the names that quotas have for requests and limits.
fn computed(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), ONE)]);
    for (name, amount) in requests {
        let is_plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if is_plain || name.starts_with("hugepages-") {
            used.insert(name.clone(), *amount);
        }
        if is_plain || name.starts_with("hugepages-") || name.contains('/') {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

/// Of the resources that a quota limits, those that objects of a kind use.
fn of_kind<'q>(info: &ResourceInfo, hard: &'q Value) -> Vec<&'q str> {
    let count = count_of(info);
    let names = hard.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    names
        .filter(|name| {
            let plain = match (info.group, info.plural) {
                ("", "pods") => {
                    let rest = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
                    matches!(rest, "cpu" | "memory" | "ephemeral-storage")
                        || *name == "pods"
                        || rest.starts_with("hugepages-")
                        || (name.starts_with("requests.") && rest.contains('/'))
                }
                ("", "services") => matches!(*name, "services" | "services.nodeports" | "services.loadbalancers"),
                ("", "persistentvolumeclaims") => {
                    matches!(*name, "persistentvolumeclaims" | "requests.storage") || name.contains(OF_CLASS)
                }
                ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => *name == info.plural,
                _ => false,
            };
            plain || *name == count
        })
        .collect()
}

/// The resources of a quota that an object counts in; none if the quota is not about it.
pub fn limited<'q>(quota: &'q Value, hard: &'q Value, info: &ResourceInfo, object: &Value) -> Vec<&'q str> {
    let names = of_kind(info, hard);
    let (spec, exists) = (&quota["spec"], Value::from("Exists"));
    let mut scopes: Vec<(&str, &Value, Vec<&str>)> =
        items(spec, "scopes").filter_map(Value::as_str).map(|scope| (scope, &exists, Vec::new())).collect();
    for requirement in items(&spec["scopeSelector"], "matchExpressions") {
        let values = items(requirement, "values").filter_map(Value::as_str).collect();
        scopes.push((text(requirement, "scopeName"), &requirement["operator"], values));
    }
    let inside = |(scope, operator, values): &(&str, &Value, Vec<&str>)| {
        if is(info, "pods") {
            in_scope(object, scope, operator.as_str().unwrap_or_default(), values)
        } else if is(info, "persistentvolumeclaims") && *scope == "VolumeAttributesClass" {
            selected(text(&object["spec"], "volumeAttributesClassName"), operator.as_str().unwrap_or_default(), values)
        } else {
            false
        }
    };
    if scopes.iter().all(inside) { names } else { Vec::new() }
}

fn in_scope(pod: &Value, scope: &str, operator: &str, values: &[&str]) -> bool {
    let spec = &pod["spec"];
    let ends = spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    let best_effort = qos(pod) == "BestEffort";
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => selected(text(spec, "priorityClassName"), operator, values),
        "CrossNamespacePodAffinity" => looks_elsewhere(spec),
        _ => false,
    }
}

fn selected(class: &str, operator: &str, values: &[&str]) -> bool {
    match operator {
        "Exists" => !class.is_empty(),
        "DoesNotExist" => class.is_empty(),
        "In" => !class.is_empty() && values.contains(&class),
        "NotIn" => !values.contains(&class),
        _ => false,
    }
}

fn looks_elsewhere(spec: &Value) -> bool {
    let affinity = &spec["affinity"];
    ["podAffinity", "podAntiAffinity"].into_iter().map(|kind| &affinity[kind]).any(|pods| {
        let required = items(pods, "requiredDuringSchedulingIgnoredDuringExecution");
        let preferred =
            items(pods, "preferredDuringSchedulingIgnoredDuringExecution").map(|term| &term["podAffinityTerm"]);
        required
            .chain(preferred)
            .any(|term| items(term, "namespaces").next().is_some() || is_set(term, "namespaceSelector"))
    })
}

/// What containers must say where a quota limits it: the complaint, if one does not.
pub fn unspecified(info: &ResourceInfo, limited: &[&str], object: &Value) -> Option<String> {
    let spec = &object["spec"];
    let own = &spec["resources"];
    let has = |list: &str| own[list].as_object().is_some_and(|amounts| !amounts.is_empty());
    if !is(info, "pods") || has("requests") || has("limits") {
        return None;
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in ["containers", "initContainers"].into_iter().flat_map(|list| items(spec, list)) {
        let resources = &container["resources"];
        let given = computed(&amounts(&resources["requests"]), &amounts(&resources["limits"]));
        for name in limited {
            let rest = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
            if matches!(rest, "cpu" | "memory") && !given.contains_key(*name) {
                missing.entry(name).or_default().insert(text(container, "name"));
            }
        }
    }
    if missing.is_empty() {
        return None;
    }
    let texts: Vec<String> = missing
        .into_iter()
        .map(|(name, containers)| format!("{name} for: {}", containers.into_iter().collect::<Vec<_>>().join(",")))
        .collect();
    Some(format!("must specify {}", texts.join("; ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::find;

    fn used(plural: &str, object: &Value) -> Vec<String> {
        let info = find("", plural).unwrap();
        usage(info, object, "2030-01-01T00:00:00Z".parse().unwrap())
            .into_iter()
            .map(|(name, amount)| format!("{name}={amount}"))
            .collect()
    }

    #[test]
    fn objects_count_for_what_they_use() {
        // C5.18
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {
            "requests": {"cpu": "500m", "memory": "1Ki", "example.com/gpu": "2"}, "limits": {"cpu": "1"}}}]}});
        assert_eq!(
            used("pods", &pod),
            [
                "count/pods=1",
                "cpu=500m",
                "limits.cpu=1",
                "memory=1024",
                "pods=1",
                "requests.cpu=500m",
                "requests.example.com/gpu=2",
                "requests.memory=1024",
            ]
        );
        let mut ended = pod.clone();
        ended["status"]["phase"] = json!("Failed");
        assert_eq!(used("pods", &ended), ["count/pods=1"]);
        let mut gone = pod;
        gone["metadata"] = json!({"deletionTimestamp": "2029-12-31T23:00:00Z", "deletionGracePeriodSeconds": 30});
        assert_eq!(used("pods", &gone), ["count/pods=1"]);
        let service = json!({"spec": {"type": "NodePort", "ports": [{}, {}]}});
        assert_eq!(
            used("services", &service),
            ["count/services=1", "services=1", "services.loadbalancers=0", "services.nodeports=2"]
        );
        let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1k"}}}});
        assert_eq!(
            used("persistentvolumeclaims", &claim),
            [
                "count/persistentvolumeclaims=1",
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims=1",
                "gold.storageclass.storage.k8s.io/requests.storage=1000",
                "persistentvolumeclaims=1",
                "requests.storage=1000",
            ]
        );
        assert_eq!(used("configmaps", &json!({})), ["configmaps=1", "count/configmaps=1"]);
    }

    #[test]
    fn scopes_choose_the_pods() {
        // C5.18
        let hard = json!({"pods": "1", "requests.cpu": "1", "secrets": "1"});
        let pods = find("", "pods").unwrap();
        let best_effort = json!({"spec": {"containers": [{"name": "c"}]}});
        let deadline = json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high",
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
        let selects = |spec: Value, pod: &Value| !limited(&json!({ "spec": spec }), &hard, pods, pod).is_empty();
        assert_eq!(limited(&json!({}), &hard, pods, &best_effort), ["pods", "requests.cpu"]);
        for (scope, of_first, of_second) in [
            ("Terminating", false, true),
            ("NotTerminating", true, false),
            ("BestEffort", true, false),
            ("NotBestEffort", false, true),
            ("PriorityClass", false, true),
            ("CrossNamespacePodAffinity", false, false),
        ] {
            let spec = json!({"scopes": [scope]});
            assert_eq!(selects(spec.clone(), &best_effort), of_first, "{scope}");
            assert_eq!(selects(spec, &deadline), of_second, "{scope}");
        }
        let in_classes = |operator: &str, class: &str| json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": [class]}]}});
        assert!(selects(in_classes("In", "high"), &deadline) && !selects(in_classes("In", "low"), &deadline));
        assert!(selects(in_classes("NotIn", "low"), &best_effort));
        let secrets = find("", "secrets").unwrap();
        assert!(limited(&json!({"spec": {"scopes": ["BestEffort"]}}), &hard, secrets, &json!({})).is_empty());
    }

    #[test]
    fn containers_must_say_what_is_limited() {
        // C5.11
        let pods = find("", "pods").unwrap();
        let pod =
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}});
        assert_eq!(
            unspecified(pods, &["cpu", "memory", "pods"], &pod).as_deref(),
            Some("must specify cpu for: a; memory for: a,b")
        );
        assert_eq!(unspecified(pods, &["pods"], &pod), None);
    }
}
