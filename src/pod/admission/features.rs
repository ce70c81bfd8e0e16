//! What pods may need of a node that not every node has, and what this one declares of it in its status (A6.3, A16.7).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec, ResourceRequirements};
use stoker_model::resources::is_sidecar;

use super::Rejection;

const POD_LEVEL_RESIZE: &str = "InPlacePodLevelResourcesVerticalScaling";
const INIT_RESIZE: &str = "InPlacePodVerticalScalingInitContainers";
const RESTART_ALL: &str = "RestartAllContainersOnContainerExits";
const HOST_NETWORK_USERS: &str = "UserNamespacesHostNetworkSupport";
/// Those that this agent has, in order; upstream's gate of the same name takes one out.
const OURS: [&str; 4] = ["ExtendWebSocketsToKubelet", POD_LEVEL_RESIZE, INIT_RESIZE, RESTART_ALL];

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
        match self.lacks(&needed(spec)) {
            None => Ok(()),
            Some(text) => Err(Rejection::new("PodFeatureUnsupported", text)),
        }
    }

    /// What a pod on this node is changed to that takes something which this node has not. It is told of, and not refused: that is the
    /// API server's to do (A21.2).
    pub(in crate::pod) fn lacks_for_update(&self, old: &Pod, new: &Pod) -> Option<String> {
        let (old, new) = (old.spec.as_ref()?, new.spec.as_ref()?);
        let inits = |spec: &PodSpec| -> Vec<Option<ResourceRequirements>> {
            let all = spec.init_containers.iter().flatten();
            all.map(|init| init.resources.clone().filter(|_| !is_sidecar(init))).collect()
        };
        let changes = [(old.resources != new.resources, POD_LEVEL_RESIZE), (inits(old) != inits(new), INIT_RESIZE)];
        let needed: Vec<&str> = changes.into_iter().filter(|(changes, _)| *changes).map(|(_, name)| name).collect();
        self.lacks(&needed)
    }

    /// Upstream's words for what this node does not declare of these.
    fn lacks(&self, needed: &[&str]) -> Option<String> {
        let declared = self.declared.as_ref()?;
        let missing: Vec<&str> = needed.iter().copied().filter(|name| !declared.contains(name)).collect();
        let text = || format!("Pod requires node features that are not available: {}", missing.join(", "));
        (!missing.is_empty()).then(text)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// With so much CPU for the pod, an init container and a sidecar.
    fn pod([whole, init, sidecar]: [&str; 3]) -> Pod {
        let of = |cpu: &str| json!({ "requests": { "cpu": cpu } });
        let inits = json!([
            { "name": "init", "resources": of(init) },
            { "name": "sidecar", "resources": of(sidecar), "restartPolicy": "Always" },
        ]);
        let spec = json!({ "resources": of(whole), "initContainers": inits, "containers": [{ "name": "main" }] });
        serde_json::from_value(json!({ "spec": spec })).expect("a pod")
    }

    #[test]
    fn updates_that_take_what_the_node_has_not_are_told_of() {
        // A21.2: FailedNodeDeclaredFeaturesCheck
        let without = |gates: &[&str]| Features::of(&gates.iter().map(|gate| ((*gate).to_owned(), false)).collect());
        let neither = without(&[POD_LEVEL_RESIZE, INIT_RESIZE]);
        let before = pod(["1", "1", "1"]);
        let told = |features: &Features, now: [&str; 3]| features.lacks_for_update(&before, &pod(now));
        let text = "Pod requires node features that are not available: ";
        assert_eq!(told(&neither, ["1", "1", "1"]), None);
        assert_eq!(told(&neither, ["1", "1", "2"]), None, "a sidecar is no matter of this");
        assert_eq!(told(&neither, ["2", "1", "1"]), Some(format!("{text}{POD_LEVEL_RESIZE}")));
        assert_eq!(told(&neither, ["2", "2", "1"]), Some(format!("{text}{POD_LEVEL_RESIZE}, {INIT_RESIZE}")));
        assert_eq!(told(&without(&[POD_LEVEL_RESIZE]), ["1", "2", "1"]), None);
        assert_eq!(told(&Features::default(), ["2", "2", "2"]), None, "this node has both");
        assert_eq!(told(&without(&[POD_LEVEL_RESIZE, "NodeDeclaredFeatures"]), ["2", "1", "1"]), None);
    }
}
