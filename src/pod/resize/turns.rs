//! Whose turn it is when several resizes wait for room (A15.1).

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use stoker_model::pod::{LocalPod, PodRef, spec_of};
use stoker_model::resources::{QosClass, pod_requests, qos_class};

/// A resize that waits for room.
#[derive(Clone, Debug)]
pub(in crate::pod) struct Wish {
    /// The pod as it wants to be.
    pub(in crate::pod) asked: Arc<Pod>,
    /// Since when (monotonic).
    pub(in crate::pod) since: Duration,
}

/// The others as they count when it is this pod's turn: those whose wishes go before its own have got them, where they fit. `others`:
/// the active pods, this one among them, with what they were given.
pub(in crate::pod) fn in_turn(
    wish: &Wish,
    waiting: &[Wish],
    others: &[Arc<Pod>],
    fits: impl Fn(&Pod, &[Arc<Pod>]) -> bool,
) -> Vec<Arc<Pod>> {
    let uid = |pod: &Pod| PodRef::of(pod).uid;
    let mut counted = others.to_vec();
    let own = rank(wish, others);
    let mut earlier: Vec<&Wish> = waiting.iter().filter(|w| uid(&w.asked) != uid(&wish.asked)).collect();
    earlier.retain(|w| rank(w, others) < own);
    earlier.sort_by_key(|w| rank(w, others));
    for wish in earlier {
        let Some(place) = counted.iter().position(|pod| uid(pod) == uid(&wish.asked)) else { continue };
        let rest: Vec<Arc<Pod>> = counted.iter().filter(|pod| uid(pod) != uid(&wish.asked)).cloned().collect();
        if fits(&wish.asked, &rest) {
            counted[place] = wish.asked.clone();
        }
    }
    counted.retain(|pod| uid(pod) != uid(&wish.asked));
    counted
}

/// First what asks for no more than it has, then by priority, then what is guaranteed, then what waits longest.
fn rank(wish: &Wish, others: &[Arc<Pod>]) -> (bool, Reverse<i32>, bool, Duration, String) {
    let spec = spec_of(&wish.asked);
    let uid = PodRef::of(&wish.asked).uid;
    let given = others.iter().find(|pod| PodRef::of(pod).uid == uid);
    let more = given.is_none_or(|given| grows(given, &wish.asked));
    let guaranteed = qos_class(spec) == QosClass::Guaranteed;
    (more, Reverse(spec.priority.unwrap_or_default()), !guaranteed, wish.since, uid.to_string())
}

fn grows(from: &Pod, to: &Pod) -> bool {
    let asks = |pod: &Pod| pod.spec.as_ref().map(pod_requests).unwrap_or_default();
    let (from, to) = (asks(from), asks(to));
    ["cpu", "memory"].iter().any(|name| to.get(*name).copied() > from.get(*name).copied())
}

/// Whether others have more room with the second than with the first.
pub(in crate::pod) fn frees(before: &LocalPod, after: &LocalPod) -> bool {
    let shrinks = || !Arc::ptr_eq(before.pod(), after.pod()) && grows(after.pod(), before.pod());
    !before.has_ended() && (after.has_ended() || shrinks())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, PodSpec, PodStatus, ResourceRequirements};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use stoker_model::resources::pod_limits;

    use super::*;

    fn pod(name: &str, cpu: &str, priority: i32, guaranteed: bool) -> Arc<Pod> {
        let list = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), Quantity(cpu.to_owned()))).collect();
        let resources = ResourceRequirements {
            requests: Some(list(&["cpu", "memory"])),
            limits: guaranteed.then(|| list(&["cpu", "memory"])),
            ..ResourceRequirements::default()
        };
        let container = Container { name: "c".into(), resources: Some(resources), ..Container::default() };
        let mut pod = Pod::default();
        pod.metadata.uid = Some(name.into());
        pod.metadata.name = Some(name.into());
        pod.spec = Some(PodSpec { containers: vec![container], priority: Some(priority), ..PodSpec::default() });
        assert_eq!(guaranteed, !pod_limits(pod.spec.as_ref().unwrap()).is_empty());
        Arc::new(pod)
    }

    /// On a node of 10 cores.
    fn fits(pod: &Pod, others: &[Arc<Pod>]) -> bool {
        let cpu = |pod: &Pod| pod_requests(pod.spec.as_ref().unwrap())["cpu"].milli();
        cpu(pod) + others.iter().map(|pod| cpu(pod)).sum::<i128>() <= 10_000
    }

    #[test]
    fn whoever_comes_first_by_upstreams_order_is_served_first() {
        // A15.1
        let wish = |asked: Arc<Pod>, since| Wish { asked, since: Duration::from_secs(since) };
        let given = |priority, guaranteed| vec![pod("a", "3", 0, false), pod("b", "3", priority, guaranteed)];
        // Both want 6, and there is room for one of them: whether a has it, given b.
        for (b, b_since, expected) in [
            (("6", 0, false), 2, true),
            (("6", 0, false), 0, false),
            (("6", 1, false), 2, false),
            (("6", 0, true), 2, false),
            (("9", 1, false), 0, true),
            // It asks for less: that is granted first, and then there is room.
            (("1", 0, false), 2, true),
        ] {
            let asked = pod("b", b.0, b.1, b.2);
            let others = given(b.1, b.2);
            let (a, b) = (wish(pod("a", "6", 0, false), 1), wish(asked, b_since));
            let counted = in_turn(&a, &[a.clone(), b.clone()], &others, fits);
            assert_eq!(fits(&a.asked, &counted), expected, "{b:?}");
        }
        let (less, more) = (wish(pod("b", "1", 0, false), 9), wish(pod("a", "9", 0, false), 0));
        let others = given(0, false);
        let counted = in_turn(&more, &[less], &others, fits);
        assert!(fits(&more.asked, &counted));
    }

    #[test]
    fn room_is_noticed() {
        // A15.1
        let ended = |pod: &LocalPod| {
            let status = PodStatus { phase: Some("Failed".into()), ..PodStatus::default() };
            LocalPod::new(pod.pod().clone(), Arc::new(status))
        };
        let [small, large] = ["1", "2"].map(|cpu| LocalPod::from(pod("a", cpu, 0, false)));
        assert!(frees(&large, &small) && !frees(&small, &large) && !frees(&small, &small));
        assert!(frees(&small, &ended(&small)) && !frees(&ended(&small), &ended(&small)));
    }
}
