//! Whether a pod may run on this node: decided once, at first sight, from a snapshot of the node (A6).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration};
use stoker_model::handle::NodeSnapshot;
use stoker_model::quantity::Milli;
use stoker_model::resources::{Amounts, QosClass, pod_requests, qos_class};

/// The priority from which on a pod is critical for its node.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Why a pod may not run here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rejection {
    /// `status.reason`, and that of the event.
    pub(super) reason: String,
    /// The event's text; the status has it behind `Pod was rejected: `.
    pub(super) text: String,
}

impl Rejection {
    fn new(reason: impl Into<String>, text: impl Into<String>) -> Self {
        Self { reason: reason.into(), text: text.into() }
    }

    fn predicate(name: &str, text: &str) -> Self {
        Self::new(name, format!("Predicate {name} failed: {text}"))
    }
}

/// Decides. `others`: the pods that have been admitted and have not ended. The first failing check is reported (A6.1).
pub(super) fn admit(pod: &Pod, others: &[Arc<Pod>], node: &NodeSnapshot) -> Result<(), Rejection> {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    operating_system(pod, spec)?;
    pressure(spec, node)?;
    resources(spec, others, node)?;
    node_affinity(spec, node)?;
    if spec.node_name.as_deref().is_some_and(|name| !name.is_empty() && name != node.name) {
        return Err(Rejection::predicate("NodeName", "node(s) didn't match the requested node name"));
    }
    ports(spec, others)?;
    taints(spec, node)
}

fn operating_system(pod: &Pod, spec: &PodSpec) -> Result<(), Rejection> {
    let label = pod.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        return Err(Rejection::new(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(Rejection::new("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"));
    }
    Ok(())
}

/// A6.5.
fn pressure(spec: &PodSpec, node: &NodeSnapshot) -> Result<(), Rejection> {
    if node.pressures.is_empty() || spec.priority.is_some_and(|p| p >= CRITICAL_PRIORITY) {
        return Ok(());
    }
    let only_memory = node.pressures.iter().all(|p| p == "MemoryPressure");
    if only_memory {
        let taint =
            Taint { key: "node.kubernetes.io/memory-pressure".into(), effect: "NoSchedule".into(), ..Taint::default() };
        if qos_class(spec) != QosClass::BestEffort || tolerated(spec, &taint) {
            return Ok(());
        }
    }
    Err(Rejection::new("Evicted", format!("The node had condition: [{}]. ", node.pressures.join(" "))))
}

fn resources(spec: &PodSpec, others: &[Arc<Pod>], node: &NodeSnapshot) -> Result<(), Rejection> {
    let short = |name: &str, requested: String, used: String, capacity: String| {
        let text = format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        Err(Rejection::new(format!("OutOf{name}"), text))
    };
    let allocatable = |name: &str| node.allocatable.get(name).map(Milli::of);
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if let Some(pods) = allocatable("pods").filter(|pods| count + 1 > pods.units()) {
        return short("pods", "1".into(), count.to_string(), pods.units().to_string());
    }
    let mut used = Amounts::new();
    for other in others.iter().filter_map(|p| p.spec.as_ref()) {
        for (name, amount) in pod_requests(other) {
            *used.entry(name).or_default() += amount;
        }
    }
    let in_order = |name: &String| match name.as_str() {
        "cpu" => 0,
        "memory" => 1,
        "ephemeral-storage" => 2,
        _ => 3,
    };
    let mut requests: Vec<(String, Milli)> = pod_requests(spec).into_iter().collect();
    requests.sort_by_key(|(name, _)| (in_order(name), name.clone()));
    for (name, requested) in requests.into_iter().filter(|(_, amount)| !amount.is_zero()) {
        // What the node does not know of is somebody else's to count (A6.7).
        let Some(capacity) = allocatable(&name) else { continue };
        let used = used.get(&name).copied().unwrap_or_default();
        if requested + used > capacity {
            let show =
                |amount: Milli| if name == "cpu" { amount.milli().to_string() } else { amount.units().to_string() };
            return short(&name, show(requested), show(used), show(capacity));
        }
    }
    Ok(())
}

fn node_affinity(spec: &PodSpec, node: &NodeSnapshot) -> Result<(), Rejection> {
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| node.labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let matches =
        required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)));
    if selected && matches {
        return Ok(());
    }
    Err(Rejection::predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"))
}

/// An empty term matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &NodeSnapshot) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = |key: &str| (key == "metadata.name").then_some(&node.name);
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|r| requirement_matches(r, node.labels.get(&r.key)))
        && fields.iter().all(|r| requirement_matches(r, name(&r.key)))
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Host ports: those of 0.0.0.0 conflict with all (A11.9).
fn ports(spec: &PodSpec, others: &[Arc<Pod>]) -> Result<(), Rejection> {
    let taken: Vec<_> = others.iter().filter_map(|p| p.spec.as_ref()).flat_map(host_ports).collect();
    let conflicts = |(ip, protocol, port): &(String, String, i32)| {
        taken.iter().any(|(other_ip, other_protocol, other_port)| {
            port == other_port
                && protocol == other_protocol
                && (ip == other_ip || ip == "0.0.0.0" || other_ip == "0.0.0.0")
        })
    };
    if host_ports(spec).iter().any(conflicts) {
        let text = "node(s) didn't have free ports for the requested pod ports";
        return Err(Rejection::predicate("NodePorts", text));
    }
    Ok(())
}

fn host_ports(spec: &PodSpec) -> Vec<(String, String, i32)> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|p| *p > 0)?;
            let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some((ip, port.protocol.clone().unwrap_or_else(|| "TCP".into()), number))
        })
        .collect()
}

fn taints(spec: &PodSpec, node: &NodeSnapshot) -> Result<(), Rejection> {
    let mut executing = node.taints.iter().filter(|t| t.effect == "NoExecute");
    if executing.all(|taint| tolerated(spec, taint)) {
        return Ok(());
    }
    Err(Rejection::predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate"))
}

fn tolerated(spec: &PodSpec, taint: &Taint) -> bool {
    let tolerates = |t: &Toleration| {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (effect, key) = (text(&t.effect), text(&t.key));
        let same_value = text(&t.value) == text(&taint.value);
        (effect.is_empty() || effect == taint.effect)
            && (key.is_empty() || key == taint.key)
            && match t.operator.as_deref() {
                Some("Exists") => true,
                _ => !key.is_empty() && same_value,
            }
    };
    spec.tolerations.iter().flatten().any(tolerates)
}

#[cfg(test)]
#[path = "admission/tests.rs"]
mod tests;
