//! What a container may use, in the runtime's terms (A12.3, A12.7, A12.8).

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use stoker_model::pod::is_critical;
use stoker_model::quantity::Milli;
use stoker_model::resources::{Amounts, QosClass, amounts, is_sidecar, qos_class, requests_of};

use crate::cgroup::{cpu_quota_us, cpu_shares, kernel_size};
use crate::runtime::cri;

/// The class of pods that the kernel shall kill last (A12.8).
const NODE_CRITICAL: &str = "system-node-critical";

/// What the node decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeResources {
    /// Memory of the machine.
    pub(super) memory_bytes: i64,
    pub(super) cgroup_v2: bool,
    pub(super) swap: Swap,
    /// `None`: CPU limits are not enforced.
    pub(super) cpu_period: Option<Duration>,
    /// kubelet's `singleProcessOOMKill`.
    pub(super) single_process_oom_kill: bool,
}

/// What containers may have of the node's swap (A12.12).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Swap {
    /// The kernel does not limit it by group.
    Uncounted,
    /// Nothing.
    None,
    /// A share of so many bytes.
    Limited(i64),
}

impl Swap {
    /// From kubelet's `memorySwap.swapBehavior`, whether the kernel counts swap by group, and the machine's swap in bytes. Critical
    /// pods stay in memory.
    pub(super) fn of(pod: &Pod, limited: bool, counted: bool, swap_bytes: impl FnOnce() -> i64) -> Self {
        match counted {
            false => Self::Uncounted,
            true if limited && !is_critical(pod) => Self::Limited(swap_bytes()),
            true => Self::None,
        }
    }
}

/// Bytes of swap for a container: only burstable pods have a share, for what a container asks for below its limit (A12.12).
fn swap_share(spec: &PodSpec, container: &Container, all: i64, memory_bytes: i64) -> i64 {
    let own = container.resources.clone().unwrap_or_default();
    let of = |list: Option<&BTreeMap<_, _>>| amounts(list).get("memory").map_or(0, |memory| memory.units());
    let (request, limit) = (of(own.requests.as_ref()), of(own.limits.as_ref()));
    let is_fit = qos_class(spec) == QosClass::Burstable && request != limit;
    if !is_fit || request > memory_bytes || memory_bytes <= 0 {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "a share of an i64, and upstream's is a float, too")]
    let share = (request as f64 / memory_bytes as f64 * all as f64) as i64;
    share
}

/// Resources of one container.
pub(super) fn of_container(spec: &PodSpec, container: &Container, node: NodeResources) -> cri::LinuxContainerResources {
    let own = container.resources.clone().unwrap_or_default();
    let limits = amounts(own.limits.as_ref());
    let pod_limits = amounts(spec.resources.as_ref().and_then(|r| r.limits.as_ref()));
    let requests = requests_of(&own);
    let limit = |name: &str| {
        let set = |all: &Amounts| all.get(name).copied().filter(|amount| !amount.is_zero());
        set(&limits).or_else(|| set(&pod_limits))
    };
    let mut resources = cri::LinuxContainerResources {
        cpu_shares: i64::try_from(cpu_shares(requests.get("cpu").map_or(0, |cpu| cpu.milli()))).unwrap_or(i64::MAX),
        memory_limit_in_bytes: limit("memory").map_or(0, |memory| memory.units()),
        oom_score_adj: oom_score_adj(spec, container, node.memory_bytes),
        hugepage_limits: hugepages(&limits),
        unified: BTreeMap::default(),
        ..Default::default()
    };
    if let (Some(period), Some(cpu)) = (node.cpu_period, limit("cpu")) {
        resources.cpu_period = i64::try_from(period.as_micros()).unwrap_or(100_000);
        resources.cpu_quota = cpu_quota_us(cpu.milli(), period);
    }
    if node.cgroup_v2 && !node.single_process_oom_kill {
        resources.unified.insert("memory.oom.group".into(), "1".into());
    }
    match (node.swap, node.cgroup_v2) {
        (Swap::Uncounted, _) => {}
        // Memory and swap together are bounded by the same number.
        (_, false) => resources.memory_swap_limit_in_bytes = resources.memory_limit_in_bytes,
        (swap, true) => {
            let bytes = match swap {
                Swap::Limited(all) => swap_share(spec, container, all, node.memory_bytes),
                _ => 0,
            };
            resources.unified.insert("memory.swap.max".into(), bytes.to_string());
        }
    }
    resources
}

/// Huge pages that a container may use.
fn hugepages(limits: &Amounts) -> Vec<cri::HugepageLimit> {
    let sizes = limits.iter().filter_map(|(name, amount)| Some((name.strip_prefix("hugepages-")?, amount)));
    let limit = |(size, amount): (&str, &Milli)| cri::HugepageLimit {
        page_size: kernel_size(size),
        limit: u64::try_from(amount.units()).unwrap_or_default(),
    };
    sizes.map(limit).collect()
}

/// Whom the kernel kills first when memory runs out (A12.8).
pub(super) fn oom_score_adj(spec: &PodSpec, container: &Container, node_memory_bytes: i64) -> i64 {
    if spec.priority_class_name.as_deref() == Some(NODE_CRITICAL) {
        return -997;
    }
    match qos_class(spec) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = |c: &Container| {
                let requests = c.resources.as_ref().map(requests_of).unwrap_or_default();
                requests.get("memory").map_or(0, |memory| memory.units())
            };
            let mut memory = request(container);
            if is_sidecar(container) {
                let smallest = spec.containers.iter().map(request).min().unwrap_or_default();
                memory = memory.max(smallest);
            }
            memory += share_of_pod_level(spec, request);
            let share = i128::from(memory) * 1000 / i128::from(node_memory_bytes.max(1));
            i64::try_from(1000 - share).unwrap_or_default().clamp(3, 999)
        }
    }
}

/// What the pod asks for beyond its containers, in equal parts for each of them (A12.8).
fn share_of_pod_level(spec: &PodSpec, request: impl Fn(&Container) -> i64) -> i64 {
    let Some(pod_level) = spec.resources.as_ref().map(requests_of).filter(|requests| !requests.is_empty()) else {
        return 0;
    };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let lasting: Vec<i64> = spec.containers.iter().chain(sidecars).map(request).collect();
    let asked = pod_level.get("memory").map_or(0, |memory| memory.units());
    let rest = (asked - lasting.iter().sum::<i64>()).max(0);
    rest / i64::try_from(lasting.len().max(1)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::ResourceRequirements;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;

    const NODE: NodeResources = NodeResources {
        memory_bytes: 4 << 30,
        cgroup_v2: true,
        swap: Swap::None,
        cpu_period: Some(Duration::from_millis(100)),
        single_process_oom_kill: false,
    };

    fn list(pairs: &[(&str, &str)]) -> Option<BTreeMap<String, Quantity>> {
        Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect())
    }

    fn container(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        let resources =
            ResourceRequirements { requests: list(requests), limits: list(limits), ..ResourceRequirements::default() };
        Container { resources: Some(resources), ..Container::default() }
    }

    fn spec(containers: &[Container]) -> PodSpec {
        PodSpec { containers: containers.to_vec(), ..PodSpec::default() }
    }

    #[test]
    fn limits_reach_the_runtime() {
        // A2.22, A12.7
        let c = container(&[], &[("cpu", "500m"), ("memory", "64Mi")]);
        let r = of_container(&spec(std::slice::from_ref(&c)), &c, NODE);
        assert_eq!((r.cpu_shares, r.cpu_quota, r.cpu_period), (512, 50_000, 100_000));
        assert_eq!(r.memory_limit_in_bytes, 64 << 20);
        assert_eq!(r.unified.get("memory.oom.group").map(String::as_str), Some("1"));
        // What one process takes too much of is not for the others to pay, where the operator says so; on v1 it never is.
        for node in [
            NodeResources { single_process_oom_kill: true, ..NODE },
            NodeResources { cgroup_v2: false, single_process_oom_kill: true, ..NODE },
        ] {
            let r = of_container(&spec(std::slice::from_ref(&c)), &c, node);
            assert_eq!(r.unified.get("memory.oom.group"), None);
        }
        let huge = container(&[], &[("hugepages-2Mi", "4Mi")]);
        let r = of_container(&spec(std::slice::from_ref(&huge)), &huge, NODE);
        assert_eq!((r.hugepage_limits[0].page_size.as_str(), r.hugepage_limits[0].limit), ("2MB", 4 << 20));
        let none = container(&[], &[]);
        let r = of_container(&spec(std::slice::from_ref(&none)), &none, NODE);
        assert_eq!((r.cpu_shares, r.cpu_quota, r.memory_limit_in_bytes), (2, 0, 0));
        let both = container(&[("cpu", "250m"), ("memory", "32Mi")], &[("cpu", "500m"), ("memory", "64Mi")]);
        let r = of_container(&spec(std::slice::from_ref(&both)), &both, NODE);
        assert_eq!((r.cpu_shares, r.cpu_quota, r.memory_limit_in_bytes), (256, 50_000, 64 << 20));
        assert_eq!(r.unified.get("memory.swap.max").map(String::as_str), Some("0"));
        let unbound =
            of_container(&spec(std::slice::from_ref(&both)), &both, NodeResources { cpu_period: None, ..NODE });
        assert_eq!((unbound.cpu_shares, unbound.cpu_quota), (256, 0), "CPU limits are not enforced");
        let tiny = container(&[], &[("cpu", "1m")]);
        assert_eq!(of_container(&spec(std::slice::from_ref(&tiny)), &tiny, NODE).cpu_quota, 1000);
        // What the pod as a whole may have bounds those without a limit of their own.
        let whole = ResourceRequirements { limits: list(&[("cpu", "2"), ("memory", "1Gi")]), ..Default::default() };
        let pod = PodSpec { resources: Some(whole), ..spec(&[none.clone(), both.clone()]) };
        let r = of_container(&pod, &none, NODE);
        assert_eq!((r.cpu_quota, r.memory_limit_in_bytes), (200_000, 1 << 30));
        assert_eq!(of_container(&pod, &both, NODE).memory_limit_in_bytes, 64 << 20);
        for (cgroup_v2, single_process_oom_kill) in [(false, false), (true, true)] {
            let node = NodeResources { cgroup_v2, single_process_oom_kill, ..NODE };
            assert!(!of_container(&spec(std::slice::from_ref(&c)), &c, node).unified.contains_key("memory.oom.group"));
        }
    }

    #[test]
    fn swap_is_off_unless_it_was_asked_for_and_then_a_share() {
        // A12.7, A12.12, A15.9
        let (asks, asks_all) =
            (container(&[("memory", "1Gi")], &[("memory", "2Gi")]), container(&[("memory", "1Gi")], &[]));
        let same = container(&[("memory", "1Gi")], &[("memory", "1Gi")]);
        let (nothing, too_much) = (container(&[("cpu", "1")], &[]), container(&[("memory", "5Gi")], &[]));
        let both: &[_] = &[("cpu", "1"), ("memory", "1Gi")];
        let limited = Swap::Limited(8 << 30);
        for (swap, cgroup_v2, c, max, total) in [
            (Swap::None, true, &asks, Some(0), 0),
            (Swap::None, true, &nothing, Some(0), 0),
            (Swap::None, true, &same, Some(0), 0),
            (Swap::None, true, &container(both, both), Some(0), 0),
            (Swap::None, true, &container(&[], &[]), Some(0), 0),
            (Swap::Uncounted, true, &asks, None, 0),
            (Swap::Uncounted, false, &asks, None, 0),
            (Swap::None, false, &asks, None, 2_i64 << 30),
            (limited, false, &asks, None, 2 << 30),
            (limited, true, &asks, Some(2_i64 << 30), 0),
            (limited, true, &asks_all, Some(2 << 30), 0),
            (limited, true, &same, Some(0), 0),
            (limited, true, &nothing, Some(0), 0),
            (limited, true, &too_much, Some(0), 0),
            (limited, true, &container(both, both), Some(0), 0),
        ] {
            let r = of_container(&spec(std::slice::from_ref(c)), c, NodeResources { swap, cgroup_v2, ..NODE });
            let found = r.unified.get("memory.swap.max").map(|text| text.parse().unwrap());
            assert_eq!((found, r.memory_swap_limit_in_bytes), (max, total), "{swap:?} {cgroup_v2} {c:?}");
        }
        let pod =
            |priority| Pod { spec: Some(PodSpec { priority: Some(priority), ..PodSpec::default() }), ..Pod::default() };
        assert_eq!(Swap::of(&pod(0), true, true, || 5), Swap::Limited(5));
        assert_eq!(Swap::of(&pod(2_000_000_000), true, true, || 5), Swap::None, "critical pods stay in memory");
        assert_eq!(Swap::of(&pod(0), false, true, || 5), Swap::None);
        assert_eq!(Swap::of(&pod(0), true, false, || 5), Swap::Uncounted);
    }

    #[test]
    fn the_score_follows_the_request() {
        // A10.12, A12.8
        let both: &[_] = &[("cpu", "1"), ("memory", "1Gi")];
        for (c, score) in [
            (container(both, both), -997),
            (container(&[], &[]), 1000),
            (container(&[("memory", "1Gi")], &[]), 750),
            (container(&[("memory", "4Gi")], &[]), 3),
            (container(&[("cpu", "1")], &[]), 999),
        ] {
            assert_eq!(oom_score_adj(&spec(std::slice::from_ref(&c)), &c, 4 << 30), score, "{c:?}");
        }
        let with_more = PodSpec {
            resources: Some(ResourceRequirements { requests: list(&[("memory", "3Gi")]), ..Default::default() }),
            ..spec(&[container(&[("memory", "1Gi")], &[]), container(&[], &[])])
        };
        assert_eq!(oom_score_adj(&with_more, &with_more.containers[0], 4 << 30), 500);
        assert_eq!(oom_score_adj(&with_more, &with_more.containers[1], 4 << 30), 750);
        // A sidecar lives at least as long as the least of those that it serves.
        let sidecar =
            |request: &[(&str, &str)]| Container { restart_policy: Some("Always".into()), ..container(request, &[]) };
        for (own, score) in [(&[][..], 750), (&[("memory", "512Mi")], 750), (&[("memory", "3Gi")], 250)] {
            let regular = [container(&[("memory", "2Gi")], &[]), container(&[("memory", "1Gi")], &[])];
            let with_sidecar = PodSpec { init_containers: Some(vec![sidecar(own)]), ..spec(&regular) };
            let sidecar = &with_sidecar.init_containers.as_ref().unwrap()[0];
            assert_eq!(oom_score_adj(&with_sidecar, sidecar, 4 << 30), score, "{own:?}");
        }
        let class = Some(NODE_CRITICAL.to_owned());
        let critical = PodSpec { priority_class_name: class, ..spec(&[container(&[], &[])]) };
        assert_eq!(oom_score_adj(&critical, &critical.containers[0], 4 << 30), -997);
    }
}
