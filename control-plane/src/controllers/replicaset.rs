//! ReplicaSets: as many pods as asked for, and their status (C7.2). Which pods go first is in `ranking`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Context;
use super::deployment_status::{condition, remove_condition, set_condition};
use super::informer::Informer;
use super::owner::{controller_of, controller_reference, is_being_deleted, is_controlled_by, labels_of, selector_of};
use super::queue::{Key, Queue};
use super::ranking;
use crate::api::{DeleteOptions, PatchType, WriteOptions};
use crate::clock;
use crate::recorder::Recorder;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// At most so many pods are made or deleted in one go.
const BURST: usize = 500;

#[derive(Clone)]
struct ReplicaSets {
    sets: Arc<Informer>,
    pods: Arc<Informer>,
    recorder: Recorder,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = ReplicaSets {
        sets: context.informers.of("apps", "replicasets"),
        pods: context.informers.of("", "pods"),
        recorder: context.recorder.of("replicaset-controller"),
    };
    let queue = Queue::default();
    let of_set = queue.clone();
    controller.sets.on_change(move |old, new| {
        if let Some(object) = new.or(old) {
            of_set.add(Key::of(object));
        }
    });
    let (of_pod, sets) = (queue.clone(), Arc::clone(&controller.sets));
    controller.pods.on_change(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            let namespace = text(&pod["metadata"], "namespace");
            match controller_of(pod) {
                Some(owner) if owner["kind"] == "ReplicaSet" => of_pod.add(Key::new(namespace, text(owner, "name"))),
                Some(_) => {}
                None => {
                    let labels = labels_of(pod);
                    for set in sets.list(namespace) {
                        if selector_of(&set).is_some_and(|s| s.matches(&labels)) {
                            of_pod.add(Key::of(&set));
                        }
                    }
                }
            }
        }
    });
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
        let mut pods = self.claimed(&set, &selector).await?;
        let failure = if is_being_deleted(&set) { None } else { self.resize(&set, &pods).await.err() };
        if !is_being_deleted(&set) {
            // As they are after our own writes.
            pods = self.pods.list(&key.namespace);
            pods.retain(|pod| is_controlled_by(pod, &set));
        }
        let again = self.write_status(&set, &pods, failure.as_ref()).await?;
        match failure {
            Some((_, error)) => Err(error),
            None => Ok(again),
        }
    }

    /// The pods that belong to the set: those it controls and selects, and orphans that it selects and adopts.
    async fn claimed(
        &self,
        set: &Value,
        selector: &stoker_model::selector::Selector,
    ) -> Result<Vec<Arc<Value>>, StatusError> {
        let mut mine = Vec::new();
        for pod in self.pods.list(text(&set["metadata"], "namespace")) {
            let finished = matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed");
            let selected = selector.matches(&labels_of(&pod));
            match controller_of(&pod) {
                Some(_) if is_controlled_by(&pod, set) => {
                    if selected {
                        mine.push(pod);
                    } else if !is_being_deleted(set) {
                        let uid = &set["metadata"]["uid"];
                        let release = json!([{"$patch": "delete", "uid": uid}]);
                        self.patch_owner(&pod, release).await?;
                    }
                }
                None if selected && !finished && !is_being_deleted(&pod) && !is_being_deleted(set) => {
                    if let Some(adopted) = self.patch_owner(&pod, json!([controller_reference(set)])).await? {
                        mine.push(adopted);
                    }
                }
                _ => {}
            }
        }
        Ok(mine)
    }

    /// `None`: the pod is gone.
    async fn patch_owner(&self, pod: &Value, owners: Value) -> Result<Option<Arc<Value>>, StatusError> {
        let Key { namespace, name } = Key::of(pod);
        let patch = json!({"metadata": {"uid": pod["metadata"]["uid"], "ownerReferences": owners}});
        let options = WriteOptions::default();
        let written = self.pods.objects.patch(&namespace, &name, "", PatchType::Strategic, &patch, &options).await;
        match written {
            Ok(written) => {
                self.pods.wait_for(&written).await;
                Ok(Some(Arc::new(written)))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
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
        let Key { namespace, name } = Key::of(set);
        let template = &set["spec"]["template"];
        let mut metadata = json!({
            "generateName": format!("{name}-"), "namespace": namespace, "ownerReferences": [controller_reference(set)],
        });
        for key in ["labels", "annotations", "finalizers"] {
            if let Some(value) = template["metadata"].get(key).filter(|value| !value.is_null()) {
                metadata[key] = value.clone();
            }
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]});
        match self.pods.objects.create(&namespace, pod, &WriteOptions::default()).await {
            Ok(created) => {
                let name = text(&created["metadata"], "name");
                self.recorder.normal(set, "SuccessfulCreate", format!("Created pod: {name}"));
                self.pods.wait_for(&created).await;
                Ok(())
            }
            Err(error) => {
                self.recorder.warning(set, "FailedCreate", format!("Error creating: {error}"));
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &Value, pod: &Value) -> Result<(), StatusError> {
        let Key { namespace, name } = Key::of(pod);
        let uid = Some(text(&pod["metadata"], "uid").to_owned());
        let options = DeleteOptions { uid, ..DeleteOptions::default() };
        match self.pods.objects.delete(&namespace, &name, &options).await {
            Ok(deleted) => {
                self.recorder.normal(set, "SuccessfulDelete", format!("Deleted pod: {name}"));
                self.pods.wait_for(&deleted).await;
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                self.recorder.warning(set, "FailedDelete", format!("Error deleting: {error}"));
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
        for pod in self.pods.list(namespace) {
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
