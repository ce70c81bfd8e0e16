//! Whether a pod may run on this node: decided once, at first sight, from a snapshot of the node (A6).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration};
use stoker_model::handle::NodeSnapshot;
use stoker_model::pod::{PodUid, is_critical, is_static};
use stoker_model::quantity::Milli;
use stoker_model::resources::{Amounts, QosClass, is_sidecar, pod_requests, qos_class};

mod features;
mod preempt;
mod sysctl;

pub use features::Features;
pub use sysctl::{SysctlError, SysctlRules};

/// What the host and its operator allow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) sysctls: &'a SysctlRules,
    pub(super) features: &'a Features,
    /// The kernel enforces AppArmor profiles.
    pub(super) app_armor: bool,
}

/// What becomes of a pod that wants to run here.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Verdict {
    Admitted,
    Rejected(Rejection),
    /// It is critical, and has a place when these pods have ended (A6.6); the first resource that it lacks.
    Preempts(Vec<PodUid>, String),
}

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

/// The reason for which a pod is refused whose node selector or affinity the node does not match.
pub(super) const NODE_AFFINITY: &str = "NodeAffinity";

/// What the node is short of.
#[derive(Clone, PartialEq, Debug)]
struct Shortage {
    name: String,
    requested: Milli,
    used: Milli,
    capacity: Milli,
}

impl Shortage {
    /// How much has to become free.
    fn missing(&self) -> Milli {
        self.requested + self.used - self.capacity
    }

    fn rejection(&self) -> Rejection {
        let show = |amount: Milli| match self.name.as_str() {
            "cpu" => amount.milli().to_string(),
            _ => amount.units().to_string(),
        };
        let text = format!(
            "Node didn't have enough resource: {}, requested: {}, used: {}, capacity: {}",
            self.name,
            show(self.requested),
            show(self.used),
            show(self.capacity)
        );
        Rejection::new(format!("OutOf{}", self.name), text)
    }
}

/// Decides. `others`: the pods that have been admitted and have not ended; `leaving`: those of them that end already. The first
/// failing check is reported (A6.1); a critical pod is never refused for want of resources.
pub(super) fn admit(
    pod: &Pod,
    others: &[Arc<Pod>],
    leaving: &[PodUid],
    node: &NodeSnapshot,
    rules: Rules<'_>,
) -> Verdict {
    match check(pod, others, node, rules) {
        Err(rejection) => Verdict::Rejected(rejection),
        Ok(short) if short.is_empty() => Verdict::Admitted,
        Ok(short) if is_critical(pod) => match preempt::victims(pod, others, leaving, &short) {
            Ok(victims) => Verdict::Preempts(victims, short[0].name.clone()),
            Err(text) => Verdict::Rejected(Rejection::new(
                "UnexpectedAdmissionError",
                format!("Unexpected error while attempting to recover from admission failure: {text}"),
            )),
        },
        Ok(short) => Verdict::Rejected(short[0].rejection()),
    }
}

/// The first check that fails for good; else what the node is short of. Resources come first where both are the case, unless the pod
/// is critical: then they do not count (A6.6).
fn check(pod: &Pod, others: &[Arc<Pod>], node: &NodeSnapshot, rules: Rules<'_>) -> Result<Vec<Shortage>, Rejection> {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    pressure(pod, spec, node)?;
    rules.sysctls.check(spec)?;
    operating_system(pod, spec)?;
    let strict = spec.security_context.as_ref().and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict");
    if strict && !node.supplemental_groups_policy {
        let text = "SupplementalGroupsPolicy=Strict is not supported in this node";
        return Err(Rejection::new("SupplementalGroupsPolicyNotSupported", text));
    }
    let short = shortages(spec, others, node);
    if let Some(first) = short.first().filter(|_| !is_critical(pod)) {
        return Err(first.rejection());
    }
    node_affinity(spec, node)?;
    if spec.node_name.as_deref().is_some_and(|name| !name.is_empty() && name != node.name) {
        return Err(Rejection::predicate("NodeName", "node(s) didn't match the requested node name"));
    }
    ports(spec, others)?;
    if !is_static(pod) {
        taints(spec, node)?;
    }
    app_armor(pod, spec, rules)?;
    rules.features.check(spec)?;
    if node.shutting_down {
        return Err(Rejection::new("NodeShutdown", "Pod was rejected as the node is shutting down."));
    }
    Ok(short)
}

/// A6.4. What runs or has ended was let in before.
fn app_armor(pod: &Pod, spec: &PodSpec, rules: Rules<'_>) -> Result<(), Rejection> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if !matches!(phase, None | Some("" | "Pending")) {
        return Ok(());
    }
    let refused = |text: &str| Err(Rejection::new("AppArmor", format!("Cannot enforce AppArmor: {text}")));
    let of_pod = spec.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let own = containers.filter_map(|c| c.security_context.as_ref()?.app_armor_profile.as_ref());
    let profiles: Vec<_> = of_pod.into_iter().chain(own).collect();
    let by_annotation = pod.metadata.annotations.iter().flatten().any(|(key, value)| {
        key.starts_with("container.apparmor.security.beta.kubernetes.io/") && value != "unconfined"
    });
    if !by_annotation && profiles.iter().all(|profile| profile.type_ == "Unconfined") {
        return Ok(());
    }
    if !rules.app_armor {
        return refused("AppArmor is not enabled on the host");
    }
    let empty = |name: &Option<String>| name.as_deref().unwrap_or_default().trim().is_empty();
    if profiles.iter().any(|profile| profile.type_ == "Localhost" && empty(&profile.localhost_profile)) {
        return refused("invalid empty AppArmor profile name: \"\"");
    }
    Ok(())
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
fn pressure(pod: &Pod, spec: &PodSpec, node: &NodeSnapshot) -> Result<(), Rejection> {
    if node.pressures.is_empty() || is_critical(pod) {
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

/// What the node is short of for this pod, in the order in which it is told.
fn shortages(spec: &PodSpec, others: &[Arc<Pod>], node: &NodeSnapshot) -> Vec<Shortage> {
    let mut short = Vec::new();
    let mut note = |name: &str, requested: Milli, used: Milli| {
        // What the node does not know of is somebody else's to count (A6.7).
        let Some(capacity) = node.allocatable.get(name).map(Milli::of) else { return };
        if requested + used > capacity {
            short.push(Shortage { name: name.to_owned(), requested, used, capacity });
        }
    };
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    note("pods", Milli::from_units(1), Milli::from_units(count));
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
        note(&name, requested, used.get(&name).copied().unwrap_or_default());
    }
    short
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
    Err(Rejection::predicate(NODE_AFFINITY, "node(s) didn't match Pod's node affinity/selector"))
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
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let containers = spec.containers.iter().chain(sidecars);
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
