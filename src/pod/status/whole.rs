//! What the pod as a whole was given, and has (A15.16).

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
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
    let whole = of(given);
    if !running || allocation.actuated.is_empty() {
        return (whole.clone(), whole);
    }
    // Of the spec only what `pod_requests` and `pod_limits` read: this is done at each look, and a spec is large.
    let with_actual = |container: &Container| {
        let actual = allocation.actuated.get(&container.name).or(container.resources.as_ref());
        Container {
            name: container.name.clone(),
            resources: actual.cloned(),
            restart_policy: container.restart_policy.clone(),
            ..Container::default()
        }
    };
    let done = PodSpec {
        containers: given.containers.iter().map(with_actual).collect(),
        init_containers: given.init_containers.as_ref().map(|all| all.iter().map(with_actual).collect()),
        overhead: given.overhead.clone(),
        resources: if allocation.allocated_pod.is_some() { &allocation.actuated_pod } else { &given.resources }.clone(),
        ..PodSpec::default()
    };
    (whole, of(&done))
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
