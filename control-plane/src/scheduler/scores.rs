//! Which of the possible nodes is best (C8.3), as a pure function.

use k8s_openapi::api::core::v1::PodSpec;

use super::filters::{matches_term, tolerates};
use super::nodes::{Load, NodeState};

const TAINT_WEIGHT: f64 = 3.0;
const AFFINITY_WEIGHT: f64 = 2.0;
const SPREAD_WEIGHT: f64 = 2.0;
const COMPANY_WEIGHT: f64 = 2.0;

/// The best of `nodes`; of equals the one with fewest pods, then the first by name. `around` has each node's scores for
/// spreading and for the company of other pods.
pub(super) fn best<'a>(
    spec: &PodSpec,
    load: &Load,
    nodes: &[&'a NodeState],
    around: &[(f64, f64)],
) -> Option<&'a NodeState> {
    let taints: Vec<f64> = nodes.iter().map(|node| untolerated(spec, node)).collect();
    let affinity: Vec<f64> = nodes.iter().map(|node| preferred(spec, node)).collect();
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let (most_taints, most_affinity) = (most(&taints), most(&affinity));
    let share = |value: f64, most: f64| if most > 0.0 { value * 100.0 / most } else { 0.0 };
    let own = taints.iter().zip(&affinity).zip(around);
    let scored = nodes.iter().zip(own).map(|(node, ((taints, affinity), (spread, company)))| {
        let score = allocation(load, node)
            + TAINT_WEIGHT * (100.0 - share(*taints, most_taints))
            + AFFINITY_WEIGHT * share(*affinity, most_affinity)
            + SPREAD_WEIGHT * spread
            + COMPANY_WEIGHT * company;
        (score, *node)
    });
    let better = |a: &(f64, &NodeState), b: &(f64, &NodeState)| {
        let by_score = a.0.total_cmp(&b.0);
        by_score.then(b.1.pods.len().cmp(&a.1.pods.len())).then(b.1.name.cmp(&a.1.name))
    };
    scored.max_by(better).map(|(_, node)| node)
}

/// LeastAllocated and BalancedAllocation, each up to 100.
fn allocation(load: &Load, node: &NodeState) -> f64 {
    let (cpu, memory) = load.for_score();
    let used = |name: &str, taken: i128| {
        let capacity = node.allocatable.get(name).map_or(0, |amount| amount.milli());
        if capacity > 0 { (taken as f64 / capacity as f64).min(1.0) } else { 1.0 }
    };
    let cpu = used("cpu", node.scored.0 + cpu);
    let memory = used("memory", node.scored.1 + memory);
    let least = ((1.0 - cpu) + (1.0 - memory)) * 50.0;
    let balanced = (1.0 - (cpu - memory).abs() / 2.0) * 100.0;
    least + balanced
}

fn untolerated(spec: &PodSpec, node: &NodeState) -> f64 {
    let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    soft.filter(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint))).count() as f64
}

fn preferred(spec: &PodSpec, node: &NodeState) -> f64 {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let terms = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    terms.into_iter().flatten().filter(|term| matches_term(&term.preference, node)).map(|t| f64::from(t.weight)).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::filters::tests::{node, pod};
    use super::*;

    #[track_caller]
    fn check(spec: Value, nodes: &[&NodeState], expected: &str) {
        let pod = pod(spec);
        let around = vec![(0.0, 0.0); nodes.len()];
        let best = best(pod.spec.as_ref().unwrap(), &Load::of(&pod), nodes, &around);
        assert_eq!(best.map(|node| node.name.as_str()), Some(expected));
    }

    #[test]
    fn the_emptier_node_wins_and_equals_go_by_name() {
        let (mut a, b) = (node("a", json!({})), node("b", json!({})));
        check(json!({}), &[&b, &a], "a");
        a.add("x", Load::default());
        check(json!({}), &[&a, &b], "b");
    }

    #[test]
    fn preferences_outweigh_allocation() {
        let mut plain = node("plain", json!({}));
        let tainted = node("tainted", json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}}));
        plain.add("x", Load::default());
        check(json!({}), &[&plain, &tainted], "plain");
        check(json!({"tolerations": [{"key": "k", "operator": "Exists"}]}), &[&plain, &tainted], "tainted");
        let wish = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 10, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]}}]}}});
        let mut wished = node("wished", json!({"metadata": {"labels": {"zone": "z"}}}));
        wished.add("x", Load::default());
        check(wish, &[&node("a", json!({})), &wished], "wished");
    }
}
