//! Which pods end together before the machine goes down, and how long they have (A15.10). Pure.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

/// `system-cluster-critical`: from here on a pod is critical.
const CRITICAL: i32 = 2_000_000_000;

/// Pods of at least this priority, up to the next period's, have so long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Period {
    /// The lowest priority.
    pub priority: i32,
    /// How long they have together.
    pub grace: Duration,
}

/// The periods in their order, from kubelet's fields: `shutdownGracePeriodByPodPriority` where it is given, else
/// `shutdownGracePeriod`, of which `shutdownGracePeriodCriticalPods` is for critical pods. None: nobody waits for pods.
pub fn periods(total: Duration, critical: Duration, by_priority: &[Period]) -> Vec<Period> {
    let whole_seconds = |time: Duration| Duration::from_secs(time.as_secs());
    let mut all = by_priority.to_vec();
    if all.is_empty() && !total.is_zero() && critical <= total {
        let others = whole_seconds(total - critical);
        all = vec![
            Period { priority: 0, grace: others },
            Period { priority: CRITICAL, grace: whole_seconds(total - others) },
        ];
    }
    all.sort_by_key(|period| period.priority);
    all
}

/// Pods by period, the first to end first. Those below the lowest priority belong to it.
pub(super) fn grouped(periods: &[Period], pods: &[Arc<Pod>]) -> Vec<(Period, Vec<Arc<Pod>>)> {
    let mut groups: Vec<(Period, Vec<Arc<Pod>>)> = periods.iter().map(|period| (*period, Vec::new())).collect();
    for pod in pods {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default();
        let mut place = periods.partition_point(|period| period.priority < priority);
        if periods.get(place).is_none_or(|period| period.priority > priority) {
            place = place.saturating_sub(1);
        }
        if let Some((_, group)) = groups.get_mut(place) {
            group.push(pod.clone());
        }
    }
    groups
}

/// How long one pod of a period has: never longer than it asks for itself.
pub(super) fn grace(period: Period, pod: &Pod) -> Duration {
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let own = own.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    own.map_or(period.grace, |own| own.min(period.grace))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;

    const fn period(priority: i32, seconds: u64) -> Period {
        Period { priority, grace: Duration::from_secs(seconds) }
    }

    fn pod(name: &str, priority: Option<i32>, grace: Option<i64>) -> Arc<Pod> {
        let spec = PodSpec { priority, termination_grace_period_seconds: grace, ..PodSpec::default() };
        let mut pod = Pod { spec: Some(spec), ..Pod::default() };
        pod.metadata.name = Some(name.to_owned());
        Arc::new(pod)
    }

    #[test]
    fn the_fields_become_periods() {
        // A15.10, A22.1m
        let of = |total, critical| periods(Duration::from_secs(total), Duration::from_secs(critical), &[]);
        assert_eq!(of(0, 0), []);
        assert_eq!(of(30, 10), [period(0, 20), period(2_000_000_000, 10)]);
        assert_eq!(of(30, 0), [period(0, 30), period(2_000_000_000, 0)]);
        assert_eq!(periods(Duration::from_millis(1500), Duration::ZERO, &[])[0], period(0, 1));
        let listed = periods(Duration::ZERO, Duration::ZERO, &[period(1000, 60), period(-5, 10), period(10, 20)]);
        assert_eq!(listed, [period(-5, 10), period(10, 20), period(1000, 60)]);
    }

    #[test]
    fn pods_end_by_their_priority() {
        // A15.10
        let periods = [period(10, 1), period(100, 2), period(1000, 3)];
        let names = |pods: &[(&str, Option<i32>)]| {
            let pods: Vec<_> = pods.iter().map(|(name, priority)| pod(name, *priority, None)).collect();
            let groups = grouped(&periods, &pods);
            let name = |pod: &Arc<Pod>| pod.metadata.name.clone().expect("it has one");
            groups.iter().map(|(_, pods)| pods.iter().map(name).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        let pods = [
            ("none", None),
            ("below", Some(-7)),
            ("lowest", Some(10)),
            ("between", Some(99)),
            ("middle", Some(100)),
            ("high", Some(1000)),
            ("above", Some(2_000_001_000)),
        ];
        assert_eq!(names(&pods), ["none below lowest between", "middle", "high above"]);
        assert_eq!(grouped(&[], &[pod("a", None, None)]), []);
    }

    #[test]
    fn a_pod_has_no_longer_than_it_wants() {
        // A15.10
        let of = |own| grace(period(0, 20), &pod("a", None, own)).as_secs();
        assert_eq!((of(None), of(Some(5)), of(Some(300)), of(Some(0))), (20, 5, 20, 0));
    }
}
