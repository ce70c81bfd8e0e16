//! ReplicaSets: as many pods as asked for, and their status (C7.2). Which pods go first is in `ranking`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Context;
use super::deployment_status::{condition, remove_condition, set_condition};
use super::informer::Informer;
use super::owner::{controller_of, is_being_deleted, selector_of};
use super::pod_control::{PodControl, pod_of};
use super::queue::{Key, Queue};
use super::ranking;
use crate::api::WriteOptions;
use crate::clock;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// At most so many pods are made or deleted in one go.
const BURST: usize = 500;

#[derive(Clone)]
struct ReplicaSets {
    sets: Arc<Informer>,
    control: PodControl,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = ReplicaSets {
        sets: context.informers.of("apps", "replicasets"),
        control: PodControl {
            pods: context.informers.of("", "pods"),
            recorder: context.recorder.of("replicaset-controller"),
        },
    };
    let queue = Queue::default();
    let of_set = queue.clone();
    controller.sets.on_change(move |old, new| {
        if let Some(object) = new.or(old) {
            of_set.add(Key::of(object));
        }
    });
    controller.control.follow("ReplicaSet", &controller.sets, &queue);
    Box::new(move |context| {
        queue.work("replicaset", 4, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    })
}

impl ReplicaSets {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else { return Ok(None) };
        let Some(selector) = selector_of(&set) else { return Ok(None) };
        let mut pods = self.control.claimed(&set, &selector).await?;
        let failure = if is_being_deleted(&set) { None } else { self.resize(&set, &pods).await.err() };
        if !is_being_deleted(&set) {
            // As they are after our own writes.
            pods = self.control.of(&set);
        }
        let again = self.write_status(&set, &pods, failure.as_ref()).await?;
        match failure {
            Some((_, error)) => Err(error),
            None => Ok(again),
        }
    }

    /// Makes or deletes pods. The error comes with the reason of the condition ReplicaFailure.
    async fn resize(&self, set: &Value, pods: &[Arc<Value>]) -> Result<(), (&'static str, StatusError)> {
        let active: Vec<&Arc<Value>> = pods.iter().filter(|pod| is_active(pod)).collect();
        let wanted = usize::try_from(set["spec"]["replicas"].as_i64().unwrap_or(1)).unwrap_or_default();
        if active.len() < wanted {
            let missing = (wanted - active.len()).min(BURST);
            return self.create(set, missing).await.map_err(|error| ("FailedCreate", error));
        }
        let excess = (active.len() - wanted).min(BURST);
        if excess == 0 {
            return Ok(());
        }
        let related = self.related_per_node(set);
        let chosen = ranking::first_to_go(&active, &related, clock::now(), excess);
        for pod in chosen {
            self.delete(set, pod).await.map_err(|error| ("FailedDelete", error))?;
        }
        Ok(())
    }

    /// 1, 2, 4, … at a time: what fails for one pod, fails for all, and should not be tried hundreds of times.
    async fn create(&self, set: &Value, count: usize) -> Result<(), StatusError> {
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let now = batch.min(left);
            let created = futures::future::join_all((0..now).map(|_| self.create_one(set))).await;
            for result in created {
                result?;
            }
            left -= now;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, set: &Value) -> Result<(), StatusError> {
        let name = text(&set["metadata"], "name");
        let pod = pod_of(set, &set["spec"]["template"], &format!("{name}-"));
        match self.control.create(set, pod).await {
            Ok(created) => {
                let name = text(&created["metadata"], "name");
                self.control.recorder.normal(set, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.control.recorder.warning(set, "FailedCreate", format!("Error creating: {error}"));
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &Value, pod: &Value) -> Result<(), StatusError> {
        match self.control.delete(pod).await {
            Ok(()) => {
                let name = text(&pod["metadata"], "name");
                self.control.recorder.normal(set, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.control.recorder.warning(set, "FailedDelete", format!("Error deleting: {error}"));
                Err(error)
            }
        }
    }

    /// How many active pods of this set's owner each node has: of a rollout's old and new set together.
    fn related_per_node(&self, set: &Value) -> ranking::PerNode {
        let namespace = text(&set["metadata"], "namespace");
        let owner = controller_of(set).map(|owner| owner["uid"].clone());
        let related: Vec<Value> = self
            .sets
            .list(namespace)
            .iter()
            .filter(|other| {
                other["metadata"]["uid"] == set["metadata"]["uid"]
                    || (owner.is_some() && controller_of(other).map(|o| o["uid"].clone()) == owner)
            })
            .map(|other| other["metadata"]["uid"].clone())
            .collect();
        let mut per_node = ranking::PerNode::new();
        for pod in self.control.pods.list(namespace) {
            let mine = controller_of(&pod).is_some_and(|o| related.contains(&o["uid"]));
            let node = text(&pod["spec"], "nodeName");
            if mine && is_active(&pod) && !node.is_empty() {
                *per_node.entry(node.to_owned()).or_default() += 1;
            }
        }
        per_node
    }

    async fn write_status(
        &self,
        set: &Value,
        pods: &[Arc<Value>],
        failure: Option<&(&'static str, StatusError)>,
    ) -> Result<Option<Duration>, StatusError> {
        let now = clock::now();
        let (mut status, again) = status_of(set, pods, now);
        match failure {
            Some((reason, error)) if condition(&status, "ReplicaFailure").is_none() => {
                set_condition(&mut status, "ReplicaFailure", "True", reason, &error.message, now);
                // ReplicaSet conditions have no update time.
                if let Some(conditions) = status["conditions"].as_array_mut() {
                    for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
                        condition.remove("lastUpdateTime");
                    }
                }
            }
            Some(_) => {}
            None => remove_condition(&mut status, "ReplicaFailure"),
        }
        if status["conditions"].as_array().is_some_and(Vec::is_empty)
            && let Some(status) = status.as_object_mut()
        {
            status.remove("conditions");
        }
        if status != set["status"] {
            let Key { namespace, name } = Key::of(set);
            let object = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": set["metadata"],
                "spec": set["spec"], "status": status});
            let options = WriteOptions::default();
            let written = self.sets.objects.update(&namespace, &name, "status", object, &options).await?;
            self.sets.wait_for(&written).await;
        }
        Ok(again)
    }
}

/// Not finished and not being deleted.
pub(super) fn is_active(pod: &Value) -> bool {
    !matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed") && !is_being_deleted(pod)
}

/// Since when a pod is ready.
pub(super) fn ready_since(pod: &Value) -> Option<Timestamp> {
    let ready = condition(&pod["status"], "Ready").filter(|condition| condition["status"] == "True")?;
    Some(text(ready, "lastTransitionTime").parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The counts, conditions as they were, and when a ready pod becomes available.
fn status_of(set: &Value, pods: &[Arc<Value>], now: Timestamp) -> (Value, Option<Duration>) {
    let min_ready = set["spec"]["minReadySeconds"].as_i64().unwrap_or_default();
    let template_labels = &set["spec"]["template"]["metadata"]["labels"];
    let (mut total, mut labelled, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut next: Option<i64> = None;
    for pod in pods {
        if !is_active(pod) {
            let finished = matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed");
            terminating += i64::from(!finished);
            continue;
        }
        total += 1;
        let wanted = template_labels.as_object();
        let labels = &pod["metadata"]["labels"];
        labelled += i64::from(wanted.is_none_or(|w| w.iter().all(|(key, value)| labels.get(key) == Some(value))));
        let Some(since) = ready_since(pod) else { continue };
        ready += 1;
        let left = since.as_second() + min_ready - now.as_second();
        if min_ready == 0 || left <= 0 {
            available += 1;
        } else {
            next = Some(next.map_or(left, |n| n.min(left)));
        }
    }
    let mut status = json!({"replicas": total, "observedGeneration": set["metadata"]["generation"]});
    for (key, count) in [
        ("fullyLabeledReplicas", labelled),
        ("readyReplicas", ready),
        ("availableReplicas", available),
        ("terminatingReplicas", terminating),
    ] {
        if count != 0 || key == "terminatingReplicas" {
            status[key] = json!(count);
        }
    }
    if let Some(conditions) = set["status"].get("conditions").filter(|conditions| conditions.is_array()) {
        status["conditions"] = conditions.clone();
    }
    (status, next.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or_default() + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str, ready_at: Option<&str>, deleted: bool) -> Arc<Value> {
        let mut pod = json!({"metadata": {"labels": {"app": "web"}}, "status": {"phase": phase}});
        if let Some(at) = ready_at {
            pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]);
        }
        if deleted {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(pod)
    }

    #[test]
    fn status_counts_what_runs_is_ready_and_stays_ready() {
        let set = json!({"metadata": {"generation": 3}, "spec": {"minReadySeconds": 10,
            "template": {"metadata": {"labels": {"app": "web"}}}}});
        let pods = [
            pod("Pending", None, false),
            pod("Running", Some("2026-01-01T00:00:00Z"), false),
            pod("Running", Some("2026-01-01T00:00:25Z"), false),
            pod("Running", Some("2026-01-01T00:00:00Z"), true),
            pod("Failed", None, false),
        ];
        let (status, again) = status_of(&set, &pods, "2026-01-01T00:00:30Z".parse().unwrap());
        assert_eq!(
            status,
            json!({"replicas": 3, "observedGeneration": 3, "fullyLabeledReplicas": 3, "readyReplicas": 2,
                   "availableReplicas": 1, "terminatingReplicas": 1})
        );
        assert_eq!(again, Some(Duration::from_secs(6)));
    }
}
