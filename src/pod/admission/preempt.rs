//! Who has to end so that a critical pod has a place: as few as possible, best-effort pods before others (A6.6). Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use stoker_model::pod::{PodRef, PodUid, is_critical};
use stoker_model::quantity::Milli;
use stoker_model::resources::{QosClass, pod_requests, qos_class};

use super::Shortage;

/// What still has to become free, by resource.
type Needs = Vec<(String, Milli)>;

/// The pods to end. `leaving` end already, and what they had counts as free.
pub(super) fn victims(
    pod: &Pod,
    others: &[Arc<Pod>],
    leaving: &[PodUid],
    short: &[Shortage],
) -> Result<Vec<PodUid>, String> {
    let (gone, staying): (Vec<_>, Vec<_>) = others.iter().partition(|p| leaving.contains(&PodRef::of(p).uid));
    let needs = short.iter().map(|s| (s.name.clone(), s.missing())).collect();
    let needs = without(needs, &gone);
    let candidates: Vec<&Arc<Pod>> = staying.into_iter().filter(|other| preemptable(pod, other)).collect();
    let of = |class: QosClass| -> Vec<&Arc<Pod>> {
        let in_class = |p: &&&Arc<Pod>| p.spec.as_ref().is_some_and(|spec| qos_class(spec) == class);
        candidates.iter().filter(in_class).copied().collect()
    };
    let (best_effort, burstable, guaranteed) =
        (of(QosClass::BestEffort), of(QosClass::Burstable), of(QosClass::Guaranteed));
    let unmet = without(needs.clone(), &candidates);
    if !unmet.is_empty() {
        return Err(format!(
            "preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: {}",
            text(&unmet)
        ));
    }
    // Of each class only those that would still be needed if all of the lesser classes had gone.
    let lesser: Vec<_> = best_effort.iter().chain(&burstable).copied().collect();
    let third = nearest(guaranteed, without(needs.clone(), &lesser));
    let besides: Vec<_> = best_effort.iter().chain(&third).copied().collect();
    let second = nearest(burstable, without(needs.clone(), &besides));
    let besides: Vec<_> = second.iter().chain(&third).copied().collect();
    let first = nearest(best_effort, without(needs, &besides));
    Ok(first.into_iter().chain(second).chain(third).map(|p| PodRef::of(p).uid).collect())
}

/// A critical pod may take the place of one that is not, and every pod that of one of lower priority.
fn preemptable(pod: &Pod, other: &Pod) -> bool {
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.priority);
    (is_critical(pod) && !is_critical(other))
        || matches!((priority(pod), priority(other)), (Some(mine), Some(theirs)) if mine > theirs)
}

fn asks(pod: &Pod, resource: &str) -> Milli {
    if resource == "pods" {
        return Milli::from_units(1);
    }
    pod.spec.as_ref().and_then(|spec| pod_requests(spec).get(resource).copied()).unwrap_or_default()
}

/// What is still needed when these pods have gone.
fn without(needs: Needs, pods: &[&Arc<Pod>]) -> Needs {
    let rest = needs.into_iter().map(|(name, need)| {
        let freed = pods.iter().map(|pod| asks(pod, &name)).sum();
        (name, need - freed)
    });
    rest.filter(|(_, need)| *need > Milli::ZERO).collect()
}

/// Takes again and again the pod that leaves the least to be wanted; of two alike the smaller one. There are enough.
fn nearest(mut pods: Vec<&Arc<Pod>>, mut needs: Needs) -> Vec<&Arc<Pod>> {
    let mut taken = Vec::new();
    while !needs.is_empty() {
        let best = pods.iter().enumerate().min_by(|(_, a), (_, b)| {
            let order = distance(a, &needs).total_cmp(&distance(b, &needs));
            order.then_with(|| size(a).cmp(&size(b)))
        });
        let Some((index, _)) = best else { break };
        let pod = pods.swap_remove(index);
        needs = without(needs, &[pod]);
        taken.push(pod);
    }
    taken
}

fn distance(pod: &Pod, needs: &Needs) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a ranking, and upstream's is one of floats, too")]
    let number = |amount: Milli| amount.milli() as f64;
    let of = |(name, need): &(String, Milli)| {
        let rest = number(*need - asks(pod, name)).max(0.0);
        (rest / number(*need)).powi(2)
    };
    needs.iter().map(of).sum()
}

fn size(pod: &Pod) -> (Milli, Milli) {
    (asks(pod, "memory"), asks(pod, "cpu"))
}

fn text(needs: &Needs) -> String {
    let amount = |name: &str, need: Milli| if name == "cpu" { need.milli() } else { need.units().into() };
    let all: String = needs.iter().map(|(name, need)| format!("(res: {name}, q: {}), ", amount(name, *need))).collect();
    format!("[{all}]")
}
