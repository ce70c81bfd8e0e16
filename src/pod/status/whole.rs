//! What the pod as a whole was given, and has (A15.16).

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
use stoker_model::resources::{Amounts, pod_limits, pod_requests};

use crate::pod::observed::DesiredPod;
use crate::pod::resize::Allocation;

/// What it was given, and what of that has been done; `None` where nothing is asked for.
pub(super) fn resources(
    desired: &DesiredPod,
    allocation: &Allocation,
    running: bool,
) -> (Option<ResourceRequirements>, Option<ResourceRequirements>) {
    let Some(given) = &desired.pod.spec else { return (None, None) };
    let mut done = given.clone();
    if running && !allocation.actuated.is_empty() {
        if allocation.allocated_pod.is_some() {
            done.resources.clone_from(&allocation.actuated_pod);
        }
        for container in done.containers.iter_mut().chain(done.init_containers.iter_mut().flatten()) {
            if let Some(actual) = allocation.actuated.get(&container.name) {
                container.resources = Some(actual.clone());
            }
        }
    }
    (of(given), of(&done))
}

fn of(spec: &PodSpec) -> Option<ResourceRequirements> {
    let list = |amounts: Amounts| {
        let list = amounts.into_iter().filter(|(_, amount)| !amount.is_zero());
        let list: std::collections::BTreeMap<_, _> =
            list.map(|(name, amount)| (name.clone(), amount.quantity(name != "cpu"))).collect();
        (!list.is_empty()).then_some(list)
    };
    let resources = ResourceRequirements {
        requests: list(pod_requests(spec)),
        limits: list(pod_limits(spec)),
        ..ResourceRequirements::default()
    };
    (resources.requests.is_some() || resources.limits.is_some()).then_some(resources)
}
