//! What the scheduler knows of a node: its object, and what the pods bound to it (or about to be) take.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm, Taint};
use stoker_model::quantity::Milli;
use stoker_model::resources::{Amounts, amounts, is_sidecar, pod_requests};
use stoker_model::selector::Labels;

/// A port of the host: address, protocol, number.
pub(super) type HostPort = (String, String, i32);

/// Who a pod is to others.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct About {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) priority: i32,
    /// `status.startTime`, or when it was made.
    pub(super) started: String,
    /// It is being deleted.
    pub(super) is_ending: bool,
    /// Required terms: pods that it does not want near.
    pub(super) anti_affinity: Vec<PodAffinityTerm>,
}

impl About {
    fn of(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        let spec = pod.spec.as_ref();
        let affinity = spec.and_then(|spec| spec.affinity.as_ref());
        let without = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let started = started.or(metadata.creation_timestamp.as_ref()).map(|time| time.0.to_string());
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            labels: metadata.labels.clone().unwrap_or_default(),
            priority: spec.and_then(|spec| spec.priority).unwrap_or_default(),
            started: started.unwrap_or_default(),
            is_ending: metadata.deletion_timestamp.is_some(),
            anti_affinity: without
                .and_then(|terms| terms.required_during_scheduling_ignored_during_execution.clone())
                .unwrap_or_default(),
        }
    }
}

/// What a pod takes from its node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Load {
    pub(super) requests: Amounts,
    pub(super) ports: Vec<HostPort>,
    pub(super) about: Arc<About>,
}

impl Load {
    pub(super) fn of(pod: &Pod) -> Self {
        let about = Arc::new(About::of(pod));
        let Some(spec) = &pod.spec else { return Self { about, ..Self::default() } };
        let sidecars = spec.init_containers.iter().flatten().filter(|init| is_sidecar(init));
        let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
        let ports = ports.filter(|port| port.host_port.is_some_and(|number| number > 0)).map(|port| {
            let address = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            (address, protocol, port.host_port.unwrap_or_default())
        });
        Self { requests: pod_requests(spec), ports: ports.collect(), about }
    }

    /// CPU in millicores and memory in bytes as scores see them: what asks for nothing still takes something.
    pub(super) fn for_score(&self) -> (i128, i128) {
        let of = |name: &str, absent: i128| self.requests.get(name).map_or(absent, |amount| amount.milli());
        (of("cpu", 100), of("memory", 200 * 1024 * 1024 * 1000))
    }
}

/// A node with its pods.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeState {
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) taints: Vec<Taint>,
    pub(super) unschedulable: bool,
    pub(super) allocatable: Amounts,
    /// By pod UID.
    pub(super) pods: HashMap<String, Load>,
    pub(super) requested: Amounts,
    /// Sum of [`Load::for_score`].
    pub(super) scored: (i128, i128),
    /// The Node object was seen; pods may be bound to a node that does not exist (any more).
    pub(super) exists: bool,
}

impl NodeState {
    /// Takes over what the object says. Returns whether a pod that did not fit before might fit now.
    pub(super) fn update(&mut self, node: &Node) -> bool {
        let spec = node.spec.clone().unwrap_or_default();
        let allocatable = amounts(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
        let labels: BTreeMap<_, _> = node.metadata.labels.clone().unwrap_or_default();
        let taints = spec.taints.unwrap_or_default();
        let unschedulable = spec.unschedulable.unwrap_or_default();
        let changed = !self.exists
            || self.allocatable != allocatable
            || self.labels != labels
            || self.taints != taints
            || self.unschedulable != unschedulable;
        self.name = node.metadata.name.clone().unwrap_or_default();
        (self.labels, self.taints, self.unschedulable) = (labels, taints, unschedulable);
        (self.allocatable, self.exists) = (allocatable, true);
        changed
    }

    /// Adds a pod, or replaces what is known of it.
    pub(super) fn add(&mut self, uid: &str, load: Load) {
        self.remove(uid);
        for (name, amount) in &load.requests {
            *self.requested.entry(name.clone()).or_default() += *amount;
        }
        let (cpu, memory) = load.for_score();
        self.scored = (self.scored.0 + cpu, self.scored.1 + memory);
        self.pods.insert(uid.to_owned(), load);
    }

    /// Removes a pod; whether it was there.
    pub(super) fn remove(&mut self, uid: &str) -> bool {
        let Some(load) = self.pods.remove(uid) else { return false };
        for (name, amount) in &load.requests {
            let entry = self.requested.entry(name.clone()).or_default();
            *entry = *entry - *amount;
        }
        let (cpu, memory) = load.for_score();
        self.scored = (self.scored.0 - cpu, self.scored.1 - memory);
        true
    }

    /// What is left of a resource.
    pub(super) fn free(&self, resource: &str) -> Milli {
        let of = |amounts: &Amounts| amounts.get(resource).copied().unwrap_or_default();
        of(&self.allocatable) - of(&self.requested)
    }
}
