//! What pods may need of a node that not every node has, and what this one declares of it in its status (A6.3, A16.7).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;

use super::Rejection;

const RESTART_ALL: &str = "RestartAllContainersOnContainerExits";
const HOST_NETWORK_USERS: &str = "UserNamespacesHostNetworkSupport";
/// Those that this agent has, in order; upstream's gate of the same name takes one out.
const OURS: [&str; 4] = [
    "ExtendWebSocketsToKubelet",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    RESTART_ALL,
];

/// What this node declares, and what it refuses because it lacks it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Features {
    /// What the Node declares; `None`: nothing is declared, nor asked for.
    declared: Option<Vec<&'static str>>,
    pod_level_resources: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self::of(&BTreeMap::new())
    }
}

impl Features {
    /// As kubelet's `featureGates` have it.
    pub fn of(gates: &BTreeMap<String, bool>) -> Self {
        let on = |gate: &str| gates.get(gate).copied().unwrap_or(true);
        let declared = on("NodeDeclaredFeatures").then(|| OURS.into_iter().filter(|gate| on(gate)).collect());
        Self { declared, pod_level_resources: on("PodLevelResources") }
    }

    /// For the Node's status.
    pub fn declared(&self) -> Vec<String> {
        self.declared.iter().flatten().map(|name| (*name).to_owned()).collect()
    }

    /// Refuses a pod that needs what this node has not.
    pub(super) fn check(&self, spec: &PodSpec) -> Result<(), Rejection> {
        let whole = spec.resources.as_ref();
        let has_own = whole
            .is_some_and(|own| [&own.requests, &own.limits].into_iter().flatten().any(|amounts| !amounts.is_empty()));
        if has_own && !self.pod_level_resources {
            let text = "PodLevelResources feature gate is disabled";
            return Err(Rejection::new("PodLevelResourcesNotSupported", text));
        }
        let Some(declared) = &self.declared else { return Ok(()) };
        let missing: Vec<&str> = needed(spec).into_iter().filter(|name| !declared.contains(name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let text = format!("Pod requires node features that are not available: {}", missing.join(", "));
        Err(Rejection::new("PodFeatureUnsupported", text))
    }
}

fn needed(spec: &PodSpec) -> Vec<&'static str> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut rules = containers.flat_map(|container| container.restart_policy_rules.iter().flatten());
    let restarts_all = rules.any(|rule| rule.action == "RestartAllContainers");
    let own_users = spec.host_network == Some(true) && spec.host_users == Some(false);
    [(restarts_all, RESTART_ALL), (own_users, HOST_NETWORK_USERS)]
        .into_iter()
        .filter(|(needs, _)| *needs)
        .map(|(_, name)| name)
        .collect()
}
