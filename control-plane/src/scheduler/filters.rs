//! Which nodes a pod may run on (C8.2), as pure functions with upstream's words for why not.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};
use stoker_model::quantity::Milli;

use super::nodes::{HostPort, Load, NodeState};

/// Why a node is not possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Upstream's texts; several resources may be short.
    pub(super) reasons: Vec<String>,
    /// Removing other pods might help.
    pub(super) resolvable: bool,
}

pub(super) fn refuse(reason: &str) -> Refusal {
    Refusal { reasons: vec![reason.to_owned()], resolvable: false }
}

/// The first filter that refuses the node, in upstream's order; `None`: the pod may run there.
pub(super) fn refusal(spec: &PodSpec, load: &Load, node: &NodeState) -> Option<Refusal> {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if node.unschedulable && !tolerates_all(tolerations, &unschedulable_taint()) {
        return Some(refuse("node(s) were unschedulable"));
    }
    let hard = |taint: &&Taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute";
    if node.taints.iter().filter(hard).any(|taint| !tolerates_all(tolerations, taint)) {
        return Some(refuse("node(s) had untolerated taint(s)"));
    }
    if !matches_affinity(spec, node) {
        return Some(refuse("node(s) didn't match Pod's node affinity/selector"));
    }
    if load.ports.iter().any(|port| node.pods.values().flat_map(|pod| &pod.ports).any(|other| collide(port, other))) {
        let reason = "node(s) didn't have free ports for the requested pod ports";
        return Some(Refusal { reasons: vec![reason.to_owned()], resolvable: true });
    }
    let short = insufficient(load, node);
    if short.is_empty() { None } else { Some(Refusal { reasons: short, resolvable: true }) }
}

fn unschedulable_taint() -> Taint {
    let (key, effect) = ("node.kubernetes.io/unschedulable".to_owned(), "NoSchedule".to_owned());
    Taint { key, effect, ..Taint::default() }
}

/// Whether one of the tolerations covers a taint.
pub(super) fn tolerates_all(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

/// Whether a toleration covers a taint.
pub(super) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (of(&toleration.effect), of(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match of(&toleration.operator).as_str() {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && of(&toleration.value) == of(&taint.value),
        operator @ ("Gt" | "Lt") => match (of(&taint.value).parse::<i64>(), of(&toleration.value).parse::<i64>()) {
            (Ok(taint), Ok(bound)) => (operator == "Gt" && taint > bound) || (operator == "Lt" && taint < bound),
            _ => false,
        },
        _ => false,
    }
}

/// Whether a node is one of those that the pod names by selector or affinity.
pub(super) fn matches_affinity(spec: &PodSpec, node: &NodeState) -> bool {
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| node.labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|selector| selector.node_selector_terms.iter().any(|term| matches_term(term, node)))
}

/// Whether a node is in a term; a term without any requirement has no node.
pub(super) fn matches_term(term: &NodeSelectorTerm, node: &NodeState) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let by_label = |r: &NodeSelectorRequirement| matches_requirement(r, node.labels.get(&r.key).map(String::as_str));
    let by_field =
        |r: &NodeSelectorRequirement| matches_requirement(r, (r.key == "metadata.name").then_some(node.name.as_str()));
    expressions.iter().all(by_label) && fields.iter().all(by_field)
}

fn matches_requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = || value.and_then(|value| value.parse::<i64>().ok());
    let bound = || values.first().and_then(|bound| bound.parse::<i64>().ok());
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.iter().any(|v| v == value)),
        "NotIn" => value.is_none_or(|value| values.iter().all(|v| v != value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number().zip(bound()).is_some_and(|(number, bound)| number > bound),
        "Lt" => number().zip(bound()).is_some_and(|(number, bound)| number < bound),
        _ => false,
    }
}

/// The same number and protocol, on the same address or with one of them on all.
fn collide(a: &HostPort, b: &HostPort) -> bool {
    let any = |address: &str| address == "0.0.0.0" || address == "::";
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || any(&a.0) || any(&b.0))
}

fn insufficient(load: &Load, node: &NodeState) -> Vec<String> {
    let mut short = Vec::new();
    let limit = node.allocatable.get("pods").copied().unwrap_or_default();
    if Milli::from_units(i64::try_from(node.pods.len()).unwrap_or(i64::MAX)) + Milli::from_units(1) > limit {
        short.push("Too many pods".to_owned());
    }
    for (resource, asked) in &load.requests {
        if !asked.is_zero() && *asked > node.free(resource) {
            short.push(format!("Insufficient {resource}"));
        }
    }
    short
}

/// The message of a pod that fits nowhere (C8.5): how many nodes for which reason, sorted as text.
pub(super) fn message(refusals: &[Refusal]) -> String {
    let total = refusals.len();
    if total == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let preemption = count(refusals.iter().map(|refusal| {
        if refusal.resolvable {
            "No preemption victims found for incoming pod"
        } else {
            "Preemption is not helpful for scheduling"
        }
    }));
    format!("{} preemption: 0/{total} nodes are available: {preemption}.", why_not(refusals))
}

/// The part of the message that says nothing of preemption.
pub(super) fn why_not(refusals: &[Refusal]) -> String {
    let reasons = count(refusals.iter().flat_map(|refusal| &refusal.reasons).map(String::as_str));
    format!("0/{} nodes are available: {reasons}.", refusals.len())
}

/// The message of a pod that has no node for a reason of its own.
pub(super) fn message_for_all(why: &str, nodes: usize) -> String {
    let available = format!("0/{nodes} nodes are available");
    format!("{available}: {why}. preemption: {available}: {nodes} Preemption is not helpful for scheduling.")
}

fn count<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut counted: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for text in texts {
        *counted.entry(text).or_default() += 1;
    }
    let mut parts: Vec<String> = counted.into_iter().map(|(text, count)| format!("{count} {text}")).collect();
    parts.sort();
    parts.join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::{Value, json};

    use super::*;

    /// A node with 2 CPUs, 4 GiB and 3 pods, with `changes` merged in.
    pub(in crate::scheduler) fn node(name: &str, changes: Value) -> NodeState {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "disk": "ssd", "n": "5"}},
            "spec": {}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "3", "example.com/gpu": "1"}},
        });
        json_patch::merge(&mut node, &changes);
        let node: Node = serde_json::from_value(node).unwrap();
        let mut state = NodeState::default();
        state.update(&node);
        state
    }

    pub(in crate::scheduler) fn pod(spec: Value) -> Pod {
        let mut whole = json!({"containers": [{"name": "c"}]});
        json_patch::merge(&mut whole, &spec);
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": whole})).unwrap()
    }

    fn asks(resources: Value) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": resources}}]})
    }

    #[track_caller]
    fn check(spec: Value, node: &NodeState, reasons: &[&str]) {
        let pod = pod(spec);
        let refused = refusal(pod.spec.as_ref().unwrap(), &Load::of(&pod), node);
        assert_eq!(refused.map(|r| r.reasons).unwrap_or_default(), reasons, "{:?}", pod.spec);
    }

    #[test]
    fn resources_are_counted_with_what_runs_there() {
        let mut n = node("n", json!({}));
        check(asks(json!({"cpu": "2", "memory": "4Gi"})), &n, &[]);
        n.add("a", Load::of(&pod(asks(json!({"cpu": "1500m", "example.com/gpu": "1"})))));
        check(asks(json!({"cpu": "500m"})), &n, &[]);
        check(asks(json!({"cpu": "501m", "memory": "5Gi"})), &n, &["Insufficient cpu", "Insufficient memory"]);
        check(asks(json!({"example.com/gpu": "1"})), &n, &["Insufficient example.com/gpu"]);
        check(asks(json!({"other.com/x": "1"})), &n, &["Insufficient other.com/x"]);
        n.add("b", Load::default());
        n.add("c", Load::default());
        check(json!({}), &n, &["Too many pods"]);
        assert!(n.remove("a"));
        check(asks(json!({"cpu": "2"})), &n, &[]);
    }

    #[test]
    fn taints_need_tolerations() {
        let taint = |effect: &str| json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
        let tolerate = |t: Value| json!({"tolerations": [t]});
        for effect in ["NoSchedule", "NoExecute"] {
            check(json!({}), &node("n", taint(effect)), &["node(s) had untolerated taint(s)"]);
            check(tolerate(json!({"operator": "Exists"})), &node("n", taint(effect)), &[]);
            check(tolerate(json!({"key": "k", "value": "v", "effect": effect})), &node("n", taint(effect)), &[]);
            let other = tolerate(json!({"key": "k", "value": "w"}));
            check(other, &node("n", taint(effect)), &["node(s) had untolerated taint(s)"]);
        }
        check(json!({}), &node("n", taint("PreferNoSchedule")), &[]);
        let cordoned = node("n", json!({"spec": {"unschedulable": true}}));
        check(json!({}), &cordoned, &["node(s) were unschedulable"]);
        check(tolerate(json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"})), &cordoned, &[]);
    }

    #[test]
    fn selectors_and_affinity_choose_nodes() {
        let refused: &[&str] = &["node(s) didn't match Pod's node affinity/selector"];
        let n = node("n", json!({}));
        check(json!({"nodeSelector": {"disk": "ssd"}}), &n, &[]);
        check(json!({"nodeSelector": {"disk": "hdd"}}), &n, refused);
        let require = |term: Value| {
            json!({"affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}})
        };
        let label = |key: &str, operator: &str, values: &[&str]| {
            require(json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}))
        };
        check(label("disk", "In", &["ssd", "nvme"]), &n, &[]);
        check(label("disk", "NotIn", &["ssd"]), &n, refused);
        check(label("x", "NotIn", &["ssd"]), &n, &[]);
        check(label("x", "Exists", &[]), &n, refused);
        check(label("x", "DoesNotExist", &[]), &n, &[]);
        check(label("n", "Gt", &["4"]), &n, &[]);
        check(label("n", "Lt", &["5"]), &n, refused);
        check(require(json!({})), &n, refused);
        let field = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]});
        check(require(field.clone()), &n, &[]);
        check(require(field), &node("m", json!({})), refused);
    }

    #[test]
    fn host_ports_collide_also_with_all_addresses() {
        let port = |ip: &str, protocol: &str| {
            json!({"containers": [{"name": "c",
            "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": protocol}]}]})
        };
        let refused: &[&str] = &["node(s) didn't have free ports for the requested pod ports"];
        let mut n = node("n", json!({}));
        n.add("a", Load::of(&pod(port("10.0.0.1", "TCP"))));
        check(port("10.0.0.1", "TCP"), &n, refused);
        check(port("", "TCP"), &n, refused);
        check(port("10.0.0.2", "TCP"), &n, &[]);
        check(port("10.0.0.1", "UDP"), &n, &[]);
    }

    #[test]
    fn the_message_counts_reasons_in_the_order_of_text() {
        let short = Refusal { reasons: vec!["Insufficient cpu".into(), "Too many pods".into()], resolvable: true };
        let other = refuse("node(s) didn't match Pod's node affinity/selector");
        assert_eq!(
            message(&[other.clone(), short, other]),
            "0/3 nodes are available: 1 Insufficient cpu, 1 Too many pods, 2 node(s) didn't match Pod's node \
             affinity/selector. preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, \
             2 Preemption is not helpful for scheduling."
        );
        assert_eq!(message(&[]), "no nodes available to schedule pods");
    }
}
