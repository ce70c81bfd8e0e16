//! What a pod's control group is limited to, and how amounts become kernel values (A12.3 to A12.5).

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodSpec;
use stoker_model::resources::{QosClass, amounts, pod_limits, pod_requests, qos_class};

/// The kernel's least CPU shares, also for those who ask for nothing.
const LEAST_SHARES: u64 = 2;
/// The kernel's most CPU shares.
const MOST_SHARES: u64 = 262_144;
/// The kernel refuses a shorter quota.
const LEAST_QUOTA_US: i64 = 1000;

/// CPU shares of cgroup v1 for thousandths of a core (A12.3).
pub fn cpu_shares(milli_cpu: i128) -> u64 {
    let shares = u64::try_from(milli_cpu.max(0) * 1024 / 1000).unwrap_or(MOST_SHARES);
    shares.clamp(LEAST_SHARES, MOST_SHARES)
}

/// The weight of cgroup v2 for shares of v1: linear, as upstream's pod and QoS groups have it (A12.4).
pub fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(LEAST_SHARES, MOST_SHARES) - LEAST_SHARES) * 9999 / (MOST_SHARES - LEAST_SHARES)
}

/// Microseconds of CPU in each period for thousandths of a core (A12.3).
pub fn cpu_quota_us(milli_cpu: i128, period: Duration) -> i64 {
    let period_us = i128::try_from(period.as_micros()).unwrap_or(100_000);
    i64::try_from(milli_cpu * period_us / 1000).unwrap_or(i64::MAX).max(LEAST_QUOTA_US)
}

/// The sizes of huge pages that the kernel has, such as `2Mi`.
pub(super) fn hugepage_sizes() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let kib = names.filter_map(|n| n.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok());
    let sizes = kib.map(|kib| match kib {
        kib if kib % (1 << 20) == 0 => format!("{}Gi", kib >> 20),
        kib if kib % 1024 == 0 => format!("{}Mi", kib >> 10),
        kib => format!("{kib}Ki"),
    });
    sizes.collect()
}

/// A size of huge pages as the kernel's files have it: `2MB` for `2Mi`.
pub fn kernel_size(size: &str) -> String {
    format!("{}B", size.trim_end_matches('i'))
}

/// Limits of one pod's control group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodLimits {
    /// The pod's class, which decides where its group lies.
    pub qos: QosClass,
    /// CPU shares, in the values of cgroup v1.
    pub shares: u64,
    /// Thousandths of a core; `None`: no limit.
    pub milli_cpu: Option<i128>,
    /// `None`: no limit.
    pub memory_bytes: Option<i64>,
    /// Bytes of huge pages by their size, such as `2Mi`.
    pub hugepages: BTreeMap<String, i64>,
}

impl PodLimits {
    /// The limits of a pod: CPU and memory are bounded where every container, or the pod itself, has a limit (A12.5).
    pub fn of(spec: &PodSpec) -> Self {
        let qos = qos_class(spec);
        let limits = pod_limits(spec);
        let bounded = |resource: &str| {
            let pod_level = spec.resources.as_ref().and_then(|r| r.limits.as_ref());
            if amounts(pod_level).get(resource).is_some_and(|limit| !limit.is_zero()) {
                return true;
            }
            let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            containers.all(|c| {
                let limits = c.resources.as_ref().and_then(|r| r.limits.as_ref());
                amounts(limits).get(resource).is_some_and(|limit| !limit.is_zero())
            })
        };
        let limit = |resource: &str| limits.get(resource).copied().filter(|_| bounded(resource));
        let shares = match qos {
            QosClass::BestEffort => LEAST_SHARES,
            _ => cpu_shares(pod_requests(spec).get("cpu").map_or(0, |cpu| cpu.milli())),
        };
        Self {
            qos,
            shares,
            milli_cpu: limit("cpu").map(|cpu| cpu.milli()),
            memory_bytes: limit("memory").map(|memory| memory.units()),
            hugepages: limits
                .iter()
                .filter_map(|(name, amount)| Some((name.strip_prefix("hugepages-")?.to_owned(), amount.units())))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;

    const PERIOD: Duration = Duration::from_millis(100);

    #[test]
    fn amounts_become_kernel_values() {
        // A12.3
        for (milli, shares) in [(0, 2), (1, 2), (2, 2), (100, 102), (1000, 1024), (1_000_000, 262_144)] {
            assert_eq!(cpu_shares(milli), shares, "{milli}m");
        }
        for (milli, quota) in [(1, 1000), (10, 1000), (100, 10_000), (1500, 150_000)] {
            assert_eq!(cpu_quota_us(milli, PERIOD), quota, "{milli}m");
        }
    }

    #[test]
    fn weights_are_linear() {
        // A12.4
        for (shares, weight) in [(2, 1), (1024, 39), (262_144, 10_000)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }

    fn list(pairs: &[(&str, &str)]) -> Option<BTreeMap<String, Quantity>> {
        Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect())
    }

    fn container(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        let resources =
            ResourceRequirements { requests: list(requests), limits: list(limits), ..ResourceRequirements::default() };
        Container { resources: Some(resources), ..Container::default() }
    }

    #[test]
    fn a_pod_is_bounded_where_all_its_containers_are() {
        // A12.5
        let limited = || container(&[("cpu", "100m")], &[("cpu", "1"), ("memory", "64Mi")]);
        let spec = |containers| PodSpec { containers, ..PodSpec::default() };
        let all = PodLimits::of(&spec(vec![limited(), limited()]));
        assert_eq!((all.shares, all.milli_cpu, all.memory_bytes), (204, Some(2000), Some(128 << 20)));
        let some = PodLimits::of(&spec(vec![limited(), container(&[("cpu", "100m")], &[])]));
        assert_eq!((some.shares, some.milli_cpu, some.memory_bytes), (204, None, None));
        let none = PodLimits::of(&spec(vec![container(&[], &[])]));
        assert_eq!((none.qos, none.shares), (QosClass::BestEffort, 2));
        assert_eq!((none.milli_cpu, none.memory_bytes), (None, None));
        // One of each is bounded by itself.
        let memory = || container(&[], &[("memory", "64Mi")]);
        let mixed = PodLimits::of(&spec(vec![limited(), memory()]));
        assert_eq!((mixed.milli_cpu, mixed.memory_bytes), (None, Some(128 << 20)));
        let with_init = PodSpec { init_containers: Some(vec![container(&[], &[])]), ..spec(vec![limited()]) };
        assert_eq!(PodLimits::of(&with_init).memory_bytes, None, "init containers count");
        let both: &[_] = &[("cpu", "500m"), ("memory", "64Mi"), ("hugepages-2Mi", "4Mi")];
        let guaranteed = spec(vec![container(both, both)]);
        let found = PodLimits::of(&guaranteed);
        assert_eq!((found.qos, found.shares), (QosClass::Guaranteed, 512));
        assert_eq!((found.milli_cpu, found.memory_bytes), (Some(500), Some(64 << 20)));
        assert_eq!(found.hugepages, [("2Mi".to_owned(), 4 << 20)].into());
        let overhead = list(&[("cpu", "250m"), ("memory", "16Mi")]);
        let found = PodLimits::of(&PodSpec { overhead, ..guaranteed });
        assert_eq!((found.shares, found.milli_cpu, found.memory_bytes), (768, Some(750), Some(80 << 20)));
    }

    #[test]
    fn a_pod_may_have_resources_of_its_own() {
        // A12.5, A12.10
        let own = container(&[("cpu", "1")], &[("cpu", "2"), ("memory", "64Mi")]).resources;
        let containers = vec![container(&[("cpu", "100m")], &[]), container(&[], &[])];
        let spec = PodSpec { containers, resources: own, ..PodSpec::default() };
        let limits = PodLimits::of(&spec);
        assert_eq!((limits.qos, limits.shares), (QosClass::Burstable, 1024));
        assert_eq!((limits.milli_cpu, limits.memory_bytes), (Some(2000), Some(64 << 20)));
        let overhead = PodSpec { overhead: list(&[("cpu", "500m"), ("memory", "1Mi")]), ..spec };
        let limits = PodLimits::of(&overhead);
        assert_eq!((limits.shares, limits.milli_cpu, limits.memory_bytes), (1536, Some(2500), Some(65 << 20)));
    }
}
