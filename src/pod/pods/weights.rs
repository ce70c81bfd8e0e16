//! What the burstable pods of the node weigh together.

use k8s_openapi::api::core::v1::Pod;
use stoker_model::resources::{QosClass, pod_requests, qos_class};
use tracing::warn;

use super::Supervisor;
use crate::cgroup::cpu_shares;

impl Supervisor {
    /// Gives the burstable pods together what they asked for (A12.6).
    pub(super) fn weigh_burstable(&mut self) {
        if !std::mem::replace(&mut self.weights_due, false) && self.burstable_shares.is_some() {
            return;
        }
        let any = self.workers.values().any(|handle| handle.burstable);
        let pods = if any { self.admitted() } else { Vec::new() };
        let burstable = pods.iter().filter_map(|p| p.spec.as_ref()).filter(|s| qos_class(s) == QosClass::Burstable);
        let asked = burstable.map(|s| pod_requests(s).get("cpu").map_or(0, |cpu| cpu.milli())).sum();
        let shares = Some(cpu_shares(asked));
        if self.burstable_shares == shares {
            return;
        }
        let cgroups = &self.shared.cgroups;
        match cgroups.make_tree().and_then(|()| cgroups.set_burstable_shares(cpu_shares(asked))) {
            Ok(()) => self.burstable_shares = shares,
            Err(error) => warn!(%error, "burstable pods together have another share of the CPU than they asked for"),
        }
    }
}

/// Whether a pod counts as much as its former version: in what it asks for, was given, and whether it has ended.
pub(super) fn are_the_same(old: &Pod, new: &Pod) -> bool {
    let of = |pod: &Pod| {
        let status = pod.status.as_ref()?;
        let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        let given: Vec<_> = containers.map(|container| container.allocated_resources.clone()).collect();
        Some((status.phase.clone(), status.allocated_resources.clone(), given))
    };
    old.spec == new.spec && of(old) == of(new)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_status_that_comes_back_weighs_nothing() {
        // A12.6
        let pod = |cpu: &str, status: Value| -> Pod {
            let container = json!({ "name": "c", "resources": { "requests": { "cpu": cpu } } });
            serde_json::from_value(json!({ "spec": { "containers": [container] }, "status": status })).expect("a pod")
        };
        let given = |cpu: &str, restarts: i32| {
            let container = json!({ "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": restarts,
                "allocatedResources": { "cpu": cpu } });
            json!({ "phase": "Running", "containerStatuses": [container] })
        };
        let before = pod("1", given("1", 0));
        assert!(are_the_same(&before, &pod("1", given("1", 7))));
        for other in [pod("2", given("1", 0)), pod("1", given("2", 0)), pod("1", json!({ "phase": "Failed" }))] {
            assert!(!are_the_same(&before, &other), "{other:?}");
        }
    }
}
