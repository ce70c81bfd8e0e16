//! Which pods of a set go first when it shrinks (C7.2), as a pure function.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::replicaset::ready_since;
use crate::resources::tree::{items, text};

/// Active pods of the set, or of its owner's sets, on each node.
pub(super) type PerNode = HashMap<String, usize>;

/// What a pod is ranked by; smaller goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Rank {
    assigned: bool,
    phase: u8,
    ready: bool,
    deletion_cost: i32,
    /// More of the set on the node goes first.
    related: std::cmp::Reverse<usize>,
    /// Ready for less time goes first, on a scale of doublings.
    ready_for: u32,
    restarts: std::cmp::Reverse<i64>,
    /// Younger goes first.
    created: std::cmp::Reverse<String>,
}

fn rank(pod: &Value, per_node: &PerNode, now: Timestamp) -> Rank {
    let node = text(&pod["spec"], "nodeName");
    let since = ready_since(pod);
    let seconds = since.map_or(0, |since| (now.as_second() - since.as_second()).max(0));
    let annotation = text(&pod["metadata"]["annotations"], "controller.kubernetes.io/pod-deletion-cost");
    let restarts = items(&pod["status"], "containerStatuses").filter_map(|c| c["restartCount"].as_i64()).max();
    Rank {
        assigned: !node.is_empty(),
        phase: match text(&pod["status"], "phase") {
            "Pending" | "" => 0,
            "Unknown" => 1,
            _ => 2,
        },
        ready: since.is_some(),
        deletion_cost: annotation.parse().unwrap_or_default(),
        related: std::cmp::Reverse(per_node.get(node).copied().unwrap_or_default()),
        ready_for: u64::BITS - u64::try_from(seconds).unwrap_or_default().leading_zeros(),
        restarts: std::cmp::Reverse(restarts.unwrap_or_default()),
        created: std::cmp::Reverse(text(&pod["metadata"], "creationTimestamp").to_owned()),
    }
}

/// The `count` pods to delete.
pub(super) fn first_to_go<'a>(
    pods: &[&'a Arc<Value>],
    per_node: &PerNode,
    now: Timestamp,
    count: usize,
) -> Vec<&'a Arc<Value>> {
    let mut ranked: Vec<(Rank, &Arc<Value>)> = pods.iter().map(|pod| (rank(pod, per_node, now), *pod)).collect();
    ranked.sort_by(|(a, first), (b, second)| match a.cmp(b) {
        Ordering::Equal => text(&first["metadata"], "name").cmp(text(&second["metadata"], "name")),
        order => order,
    });
    ranked.into_iter().take(count).map(|(_, pod)| pod).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A running pod on `n1`, ready since long, with `changes` merged in.
    fn pod(name: &str, changes: Value) -> Arc<Value> {
        let mut pod = json!({
            "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        json_patch::merge(&mut pod, &changes);
        Arc::new(pod)
    }

    /// Each pod goes before the one after it, whatever order they come in.
    #[test]
    fn pods_go_in_upstreams_order() {
        let ready = |at: &str| json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]);
        let annotation = |cost: &str| json!({"controller.kubernetes.io/pod-deletion-cost": cost});
        let in_order = [
            pod("unassigned", json!({"spec": {"nodeName": null}, "status": {"phase": "Pending", "conditions": null}})),
            pod("pending", json!({"status": {"phase": "Pending", "conditions": null}})),
            pod("unready", json!({"status": {"conditions": null}})),
            pod("cheap", json!({"metadata": {"annotations": annotation("-5")}})),
            pod("crowded", json!({"spec": {"nodeName": "n2"}})),
            pod("ready-lately", json!({"status": {"conditions": ready("2026-01-01T01:00:00Z")}})),
            pod("restarted", json!({"status": {"containerStatuses": [{"restartCount": 3}]}})),
            pod("younger", json!({"metadata": {"creationTimestamp": "2026-01-01T00:30:00Z"}})),
            pod("plain", json!({})),
            pod("dear", json!({"metadata": {"annotations": annotation("5")}})),
        ];
        let per_node = PerNode::from([("n1".to_owned(), 1), ("n2".to_owned(), 2)]);
        let now = "2026-01-01T02:00:00Z".parse().unwrap();
        let mut shuffled: Vec<&Arc<Value>> = in_order.iter().rev().collect();
        shuffled.swap(1, 6);
        let names = |pods: Vec<&Arc<Value>>| -> Vec<String> {
            pods.iter().map(|pod| text(&pod["metadata"], "name").to_owned()).collect()
        };
        assert_eq!(names(first_to_go(&shuffled, &per_node, now, 10)), names(in_order.iter().collect()));
        assert_eq!(names(first_to_go(&shuffled, &per_node, now, 2)), ["unassigned", "pending"]);
    }
}
