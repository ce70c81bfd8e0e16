//! Which pods make room for one of higher priority (C8.4). Pure: nodes and budgets in, a node and its victims out.

use std::cmp::Reverse;

use stoker_model::selector::Selector;

use super::nodes::{About, Load, NodeState};

/// A PodDisruptionBudget, as much of it as deciding takes.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) namespace: String,
    pub(super) selector: Selector,
    /// How many of its pods may go.
    pub(super) allowed: i64,
}

/// What a node would lose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Victims {
    pub(super) node: String,
    /// UIDs, highest priority first.
    pub(super) pods: Vec<String>,
    /// How many of them a budget would keep.
    broken: usize,
    /// Highest priority of a victim, their sum, and the latest start of those with the highest.
    highest: i32,
    sum: i64,
    started: String,
}

/// The node that loses least, of those where the pod fits without some pods of lower priority. `fits` says whether the
/// pod may run on a node as it is given.
pub(super) fn choose(
    about: &About,
    nodes: &[&NodeState],
    budgets: &[Budget],
    fits: impl Fn(&NodeState) -> bool,
) -> Option<Victims> {
    let all = nodes.iter().filter_map(|node| victims(about, node, budgets, &fits));
    all.min_by_key(|v| (v.broken, v.highest, v.sum, v.pods.len(), Reverse(v.started.clone()), v.node.clone()))
}

fn victims(about: &About, node: &NodeState, budgets: &[Budget], fits: impl Fn(&NodeState) -> bool) -> Option<Victims> {
    let mut lower: Vec<(String, Load)> = node
        .pods
        .iter()
        .filter(|(_, load)| load.about.priority < about.priority)
        .map(|(uid, load)| (uid.clone(), load.clone()))
        .collect();
    if lower.is_empty() {
        return None;
    }
    let mut rest = node.clone();
    for (uid, _) in &lower {
        rest.remove(uid);
    }
    if !fits(&rest) {
        return None;
    }
    // Those that matter most are spared first: first all that a budget would keep, then the others.
    lower.sort_by_key(|(uid, load)| (Reverse(load.about.priority), load.about.started.clone(), uid.clone()));
    let mut left: Vec<i64> = budgets.iter().map(|budget| budget.allowed).collect();
    let mut kept_by_budget = Vec::new();
    let mut others = Vec::new();
    for (uid, load) in lower {
        let mut is_kept = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            if budget.namespace == load.about.namespace && budget.selector.matches(&load.about.labels) {
                *left -= 1;
                is_kept |= *left < 0;
            }
        }
        if is_kept { kept_by_budget.push((uid, load)) } else { others.push((uid, load)) }
    }
    let mut chosen: Vec<(String, Load)> = Vec::new();
    let mut broken = 0;
    for (group, is_kept) in [(kept_by_budget, true), (others, false)] {
        for (uid, load) in group {
            rest.add(&uid, load.clone());
            if !fits(&rest) {
                rest.remove(&uid);
                chosen.push((uid, load));
                broken += usize::from(is_kept);
            }
        }
    }
    chosen.sort_by_key(|(uid, load)| (Reverse(load.about.priority), load.about.started.clone(), uid.clone()));
    let highest = chosen.first().map_or(i32::MIN, |(_, load)| load.about.priority);
    let of_highest = chosen.iter().filter(|(_, load)| load.about.priority == highest);
    let started = of_highest.map(|(_, load)| load.about.started.clone()).min().unwrap_or_default();
    Some(Victims {
        node: node.name.clone(),
        broken,
        highest,
        // As upstream, so that fewer victims of a negative priority are not the larger sum.
        sum: chosen.iter().map(|(_, load)| i64::from(load.about.priority) + i64::from(i32::MAX) + 1).sum(),
        started,
        pods: chosen.into_iter().map(|(uid, _)| uid).collect(),
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
    use serde_json::{Value, json};

    use super::super::filters::refusal;
    use super::super::filters::tests::node;
    use super::*;

    fn pod(name: &str, priority: i32, cpu: &str) -> k8s_openapi::api::core::v1::Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d", "labels": {"app": name}},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
            "status": {"startTime": "2026-01-01T00:00:00Z"}}))
        .unwrap()
    }

    fn filled(name: &str, pods: &[(&str, i32, &str)]) -> NodeState {
        let mut node = node(name, json!({"status": {"allocatable": {"pods": "10"}}}));
        for (name, priority, cpu) in pods {
            node.add(name, Load::of(&pod(name, *priority, cpu)));
        }
        node
    }

    #[track_caller]
    fn check(priority: i32, cpu: &str, nodes: &[NodeState], budgets: &[Budget], expected: Option<(&str, &[&str])>) {
        let wanted = pod("new", priority, cpu);
        let load = Load::of(&wanted);
        let fits = |node: &NodeState| refusal(wanted.spec.as_ref().unwrap(), &load, node).is_none();
        let all: Vec<&NodeState> = nodes.iter().collect();
        let found = choose(&load.about, &all, budgets, fits);
        let found = found.as_ref().map(|v| (v.node.as_str(), v.pods.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(found, expected.map(|(node, pods)| (node, pods.to_vec())));
    }

    #[test]
    fn as_little_as_possible_is_lost() {
        // C8.4
        let n = |pods: &[(&str, i32, &str)]| filled("n", pods);
        check(10, "1", &[n(&[("a", 1, "1"), ("b", 2, "1")])], &[], Some(("n", &["a"])));
        check(10, "2", &[n(&[("a", 1, "1"), ("b", 2, "1")])], &[], Some(("n", &["b", "a"])));
        check(2, "2", &[n(&[("a", 1, "1"), ("b", 2, "1")])], &[], None);
        check(10, "3", &[n(&[("a", 1, "1")])], &[], None);
        // The smaller one is enough.
        check(10, "500m", &[n(&[("a", 1, "1500m"), ("b", 1, "500m")])], &[], Some(("n", &["b"])));
        let two = [filled("x", &[("a", 5, "2")]), filled("y", &[("b", 3, "1"), ("c", 3, "1")])];
        check(10, "2", &two, &[], Some(("y", &["b", "c"])));
        let selector: Value = json!({"matchLabels": {"app": "b"}});
        let selector: LabelSelector = serde_json::from_value(selector).unwrap();
        let budget = || Budget { namespace: "d".into(), selector: Selector::of(&selector).unwrap(), allowed: 0 };
        check(10, "2", &two, &[budget()], Some(("x", &["a"])));
        check(10, "1", &[n(&[("a", 2, "1"), ("b", 1, "1")])], &[budget()], Some(("n", &["a"])));
    }
}
