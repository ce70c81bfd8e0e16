//! Resizes that can never be had on this node, whatever becomes free (A15.1).

use k8s_openapi::api::core::v1::{Container, PodSpec};
use stoker_model::resources::{QosClass, qos_class, requests_of};

use super::differs;

/// What the operator decided that forbids some resizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ResizeRules {
    /// kubelet's `cpuManagerPolicy: static`: whole CPUs belong to containers.
    pub static_cpus: bool,
    /// kubelet's `memoryManagerPolicy: Static`.
    pub static_memory: bool,
}

/// Why a pod can never have what it asks for while it runs; `swaps`: the node lets pods of its kind swap (A12.12).
pub(in crate::pod) fn infeasible(asked: &PodSpec, given: &PodSpec, rules: ResizeRules, swaps: bool) -> Option<String> {
    let changes = |name: &'static str| {
        pairs(asked, given).any(move |(a, b)| {
            let (a, b) = (a.resources.clone().unwrap_or_default(), b.resources.clone().unwrap_or_default());
            differs(&a, &b, name)
        })
    };
    if swaps {
        let loses = |(a, b): (&Container, &Container)| {
            memory_request(a) != memory_request(b)
                && !restarts_for_memory(b)
                && (may_swap(asked, a) || may_swap(given, b))
        };
        if pairs(asked, given).any(loses) {
            return Some("In-place resize of containers with swap is not supported.".to_owned());
        }
    }
    if qos_class(asked) != QosClass::Guaranteed {
        return None;
    }
    if rules.static_cpus && changes("cpu") {
        return Some("Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\"".to_owned());
    }
    if rules.static_memory && changes("memory") {
        return Some("Resize is infeasible for Guaranteed Pods alongside Memory Manager policy \"Static\"".to_owned());
    }
    None
}

fn pairs<'a>(asked: &'a PodSpec, given: &'a PodSpec) -> impl Iterator<Item = (&'a Container, &'a Container)> {
    let all = |spec: &'a PodSpec| spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all(asked).filter_map(move |a| Some((a, all(given).find(|b| b.name == a.name)?)))
}

fn memory_request(container: &Container) -> i64 {
    let requests = container.resources.as_ref().map(requests_of).unwrap_or_default();
    requests.get("memory").map_or(0, |memory| memory.units())
}

fn restarts_for_memory(container: &Container) -> bool {
    let policies = container.resize_policy.iter().flatten();
    policies.into_iter().any(|p| p.resource_name == "memory" && p.restart_policy == "RestartContainer")
}

/// A12.12.
fn may_swap(spec: &PodSpec, container: &Container) -> bool {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let limit = limits.and_then(|l| l.get("memory")).map(|q| stoker_model::quantity::Milli::of(q).units());
    let request = memory_request(container);
    qos_class(spec) == QosClass::Burstable && request > 0 && limit != Some(request)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerResizePolicy, ResourceRequirements};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;

    fn spec(cpu: &str, request: &str, limit: &str, policy: &str) -> PodSpec {
        let list = |memory: &str| {
            let list = [("cpu", cpu), ("memory", memory)].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned())));
            Some(list.into_iter().collect())
        };
        let resources = ResourceRequirements { requests: list(request), limits: list(limit), claims: None };
        let policy = ContainerResizePolicy { resource_name: "memory".into(), restart_policy: policy.into() };
        let container = Container {
            name: "c".into(),
            resources: Some(resources),
            resize_policy: Some(vec![policy]),
            ..Container::default()
        };
        PodSpec { containers: vec![container], ..PodSpec::default() }
    }

    #[test]
    fn what_policies_of_the_node_forbid_is_never_to_be_had() {
        // A15.1
        let none = ResizeRules::default();
        let (cpus, memory) = (ResizeRules { static_cpus: true, ..none }, ResizeRules { static_memory: true, ..none });
        let [keeps, restarts] = ["NotRequired", "RestartContainer"];
        let of_cpus = "Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\"";
        let of_memory = "Resize is infeasible for Guaranteed Pods alongside Memory Manager policy \"Static\"";
        let of_swap = "In-place resize of containers with swap is not supported.";
        for (asked, given, rules, swaps, expected) in [
            (("2", "1Gi", "1Gi"), ("1", "1Gi", "1Gi"), none, false, None),
            (("2", "1Gi", "1Gi"), ("1", "1Gi", "1Gi"), cpus, false, Some(of_cpus)),
            (("1", "2Gi", "2Gi"), ("1", "1Gi", "1Gi"), cpus, false, None),
            (("1", "2Gi", "2Gi"), ("1", "1Gi", "1Gi"), memory, false, Some(of_memory)),
            (("2", "1Gi", "2Gi"), ("1", "1Gi", "2Gi"), cpus, false, None),
            (("1", "2Gi", "4Gi"), ("1", "1Gi", "4Gi"), none, true, Some(of_swap)),
            (("1", "2Gi", "4Gi"), ("1", "1Gi", "4Gi"), none, false, None),
            (("2", "1Gi", "4Gi"), ("1", "1Gi", "4Gi"), none, true, None),
            (("1", "2Gi", "2Gi"), ("1", "1Gi", "1Gi"), none, true, None),
        ] {
            let of = |(cpu, request, limit), policy| spec(cpu, request, limit, policy);
            let found = infeasible(&of(asked, keeps), &of(given, keeps), rules, swaps);
            assert_eq!(found.as_deref(), expected, "{asked:?} {given:?} {rules:?}");
        }
        let of = |request| spec("1", request, "4Gi", restarts);
        assert_eq!(infeasible(&of("2Gi"), &of("1Gi"), none, true), None, "a new container swaps as it may");
    }
}
