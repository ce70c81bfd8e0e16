//! Pods that nobody else removes (C7.15): too many that ended, those that were deleted before they had a node, and those
//! that end on a node which is told to be out of service. Pods of nodes that vanished are `node_lifecycle`'s.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::deployment_status::condition;
use super::informer::Informer;
use super::owner::is_being_deleted;
use super::queue::{Key, Queue};
use crate::api::{DeleteOptions, PatchType, WriteOptions};
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

/// How often, as upstream.
const PERIOD: Duration = Duration::from_secs(20);
/// So many pods that ended are kept.
const ENDED: usize = 12_500;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let (pods, nodes) = (context.informers.of("", "pods"), context.informers.of("", "nodes"));
    let queue = Queue::default();
    queue.add(Key::new("", "all"));
    Box::new(move |context| {
        queue.work("podgc", 1, &context.stop, move |_| {
            let (pods, nodes) = (Arc::clone(&pods), Arc::clone(&nodes));
            async move {
                for pod in chosen(&pods.list(""), &nodes.list(""), ENDED) {
                    remove(&pods, &pod).await?;
                }
                Ok::<_, StatusError>(Some(PERIOD))
            }
        });
    })
}

/// The pods to remove.
fn chosen(pods: &[Arc<Value>], nodes: &[Arc<Value>], keep: usize) -> Vec<Arc<Value>> {
    let is_ended = |pod: &Arc<Value>| matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed");
    let mut ended: Vec<&Arc<Value>> = pods.iter().filter(|pod| is_ended(pod)).collect();
    ended.sort_by_key(|pod| {
        let metadata = &pod["metadata"];
        (text(metadata, "creationTimestamp").to_owned(), text(metadata, "name").to_owned())
    });
    let excess = ended.len().saturating_sub(keep);
    let is_out = |name: &str| {
        nodes.iter().any(|node| {
            let ready = condition(&node["status"], "Ready").is_some_and(|ready| ready["status"] == "True");
            text(&node["metadata"], "name") == name
                && !ready
                && items(&node["spec"], "taints").any(|taint| taint["key"] == OUT_OF_SERVICE)
        })
    };
    let is_stuck = |pod: &&Arc<Value>| {
        let node = text(&pod["spec"], "nodeName");
        is_being_deleted(pod) && (node.is_empty() || is_out(node))
    };
    ended.into_iter().take(excess).chain(pods.iter().filter(is_stuck)).cloned().collect()
}

async fn remove(pods: &Informer, pod: &Value) -> Result<(), StatusError> {
    let Key { namespace, name } = Key::of(pod);
    let uid = &pod["metadata"]["uid"];
    let is_ended = matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed");
    let mut result = Ok(Value::Null);
    if !is_ended {
        // So that whoever counts it sees how it ended.
        let patch = json!({"metadata": {"uid": uid}, "status": {"phase": "Failed"}});
        let options = WriteOptions::default();
        result = pods.objects.patch(&namespace, &name, "status", PatchType::Strategic, &patch, &options).await;
    }
    if result.is_ok() {
        let uid = uid.as_str().map(str::to_owned);
        let options = DeleteOptions { uid, grace_period_seconds: Some(0), ..DeleteOptions::default() };
        result = pods.objects.delete(&namespace, &name, &options).await;
    }
    match result {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_else_removes_is_chosen() {
        // C7.15
        let pod = |name: &str, phase: &str, node: &str, deleted: bool| {
            let deleted = if deleted { json!("2026-01-01T00:00:00Z") } else { json!(null) };
            Arc::new(json!({"metadata": {"name": name, "creationTimestamp": name, "deletionTimestamp": deleted},
                "spec": {"nodeName": node}, "status": {"phase": phase}}))
        };
        let node = |name: &str, ready: &str, taint: &str| {
            Arc::new(json!({"metadata": {"name": name}, "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
        };
        let nodes = [
            node("good", "True", OUT_OF_SERVICE),
            node("late", "Unknown", "x"),
            node("out", "Unknown", OUT_OF_SERVICE),
        ];
        let pods = [
            pod("1", "Failed", "good", false),
            pod("2", "Succeeded", "good", false),
            pod("3", "Succeeded", "good", false),
            pod("4", "Pending", "", true),
            pod("5", "Pending", "", false),
            pod("6", "Running", "good", true),
            pod("7", "Running", "late", true),
            pod("8", "Running", "out", true),
            pod("9", "Running", "out", false),
        ];
        let names: Vec<String> =
            chosen(&pods, &nodes, 2).iter().map(|pod| text(&pod["metadata"], "name").to_owned()).collect();
        assert_eq!(names, ["1", "4", "8"]);
    }
}
