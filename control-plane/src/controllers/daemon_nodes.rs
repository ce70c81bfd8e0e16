//! Which nodes get a DaemonSet's pod, and how the pod is made for one of them. Pure (C7.4).

use serde_json::{Value, json};

use crate::resources::tree::{items, text};

/// Whether a node gets a pod, and whether one that is there may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) start: bool,
    pub(super) keep: bool,
}

/// Taints that every daemon pod tolerates: the node is unwell, but its daemons are what may help it.
const TOLERATED: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

fn tolerations(spec: &Value) -> Vec<Value> {
    let own = items(spec, "tolerations").cloned();
    let network = (spec["hostNetwork"] == true).then_some(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    let added = TOLERATED.iter().copied().chain(network);
    own.chain(added.map(|(key, effect)| json!({"key": key, "operator": "Exists", "effect": effect}))).collect()
}

pub(super) fn wants(set: &Value, node: &Value) -> Wanted {
    let spec = &set["spec"]["template"]["spec"];
    let name = text(&node["metadata"], "name");
    let named = text(spec, "nodeName");
    let fits = (named.is_empty() || named == name) && is_selected(spec, node);
    let tolerations = tolerations(spec);
    let bears = |taint: &Value| tolerations.iter().any(|toleration| tolerates(toleration, taint));
    let of = |effects: &[&str]| {
        let taints = items(&node["spec"], "taints");
        taints.filter(|taint| effects.contains(&text(taint, "effect"))).all(bears)
    };
    Wanted { start: fits && of(&["NoSchedule", "NoExecute"]), keep: fits && of(&["NoExecute"]) }
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let (effect, key) = (text(toleration, "effect"), text(toleration, "key"));
    let same_effect = effect.is_empty() || effect == text(taint, "effect");
    let same_key = key.is_empty() || key == text(taint, "key");
    let exists = toleration["operator"] == "Exists";
    same_effect && same_key && (exists || (!key.is_empty() && text(toleration, "value") == text(taint, "value")))
}

fn is_selected(spec: &Value, node: &Value) -> bool {
    let label = |key: &str| node["metadata"]["labels"][key].as_str();
    let selector = spec["nodeSelector"].as_object();
    if !selector.into_iter().flatten().all(|(key, value)| label(key) == value.as_str()) {
        return false;
    }
    let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    if !required.is_object() {
        return true;
    }
    let name = text(&node["metadata"], "name");
    items(required, "nodeSelectorTerms").any(|term| {
        let is_empty = items(term, "matchExpressions").chain(items(term, "matchFields")).next().is_none();
        !is_empty
            && items(term, "matchExpressions").all(|it| holds(it, label(text(it, "key"))))
            && items(term, "matchFields").all(|it| holds(it, (it["key"] == "metadata.name").then_some(name)))
    })
}

fn holds(requirement: &Value, value: Option<&str>) -> bool {
    let listed = || items(requirement, "values").any(|one| one.as_str() == value);
    let bound = || items(requirement, "values").next()?.as_str()?.parse::<i64>().ok();
    let number = || value?.parse::<i64>().ok();
    match text(requirement, "operator") {
        "In" => value.is_some() && listed(),
        "NotIn" => value.is_none() || !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number().zip(bound()).is_some_and(|(number, bound)| number > bound),
        "Lt" => number().zip(bound()).is_some_and(|(number, bound)| number < bound),
        _ => false,
    }
}

/// Makes a pod that only this node can have; the scheduler does the rest.
pub(super) fn bound_to(pod: &mut Value, node: &str) {
    let fields = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
    let spec = &mut pod["spec"];
    spec["tolerations"] = Value::Array(tolerations(spec));
    let required = &mut spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    match required["nodeSelectorTerms"].as_array_mut() {
        // Every term is a way to be chosen, so every one must name the node.
        Some(terms) => terms.iter_mut().for_each(|term| term["matchFields"] = fields.clone()),
        None => *required = json!({"nodeSelectorTerms": [{"matchFields": fields}]}),
    }
}

/// The node that a pod runs on or was made for.
pub(super) fn node_of(pod: &Value) -> &str {
    let bound = text(&pod["spec"], "nodeName");
    if !bound.is_empty() {
        return bound;
    }
    let required = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let fields = items(required, "nodeSelectorTerms").flat_map(|term| items(term, "matchFields"));
    fields
        .filter(|field| field["key"] == "metadata.name")
        .find_map(|field| field["values"][0].as_str())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(spec: Value) -> Value {
        json!({"spec": {"template": {"spec": spec}}})
    }

    #[test]
    fn nodes_are_chosen_by_labels_and_taints() {
        let node =
            |taints: Value| json!({"metadata": {"name": "n", "labels": {"disk": "ssd"}}, "spec": {"taints": taints}});
        let both = |start, keep| Wanted { start, keep };
        assert_eq!(wants(&set(json!({})), &node(json!([]))), both(true, true));
        assert_eq!(wants(&set(json!({"nodeSelector": {"disk": "hdd"}})), &node(json!([]))), both(false, false));
        // C7.4
        for (key, effect, expected) in [
            ("node.kubernetes.io/unschedulable", "NoSchedule", both(true, true)),
            ("node.kubernetes.io/not-ready", "NoExecute", both(true, true)),
            ("mine", "NoSchedule", both(false, true)),
            ("mine", "NoExecute", both(false, false)),
            ("mine", "PreferNoSchedule", both(true, true)),
            ("node.kubernetes.io/network-unavailable", "NoSchedule", both(false, true)),
        ] {
            let tainted = node(json!([{"key": key, "effect": effect}]));
            assert_eq!(wants(&set(json!({})), &tainted), expected, "{key}");
        }
        let tainted = node(json!([{"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}]));
        assert_eq!(wants(&set(json!({"hostNetwork": true})), &tainted), both(true, true));
    }

    #[test]
    fn a_pod_is_made_for_one_node() {
        let term = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]});
        let affinity =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
        for spec in [json!({}), json!({"affinity": affinity})] {
            let mut pod = json!({"spec": spec});
            bound_to(&mut pod, "n7");
            assert_eq!(node_of(&pod), "n7");
            assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 6);
        }
    }
}
