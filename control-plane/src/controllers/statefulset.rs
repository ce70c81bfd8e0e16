//! StatefulSets: pods with names and claims that stay, made and replaced in order (C7.3).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::owner::{controller_reference, is_being_deleted, selector_of};
use super::pod_control::{PodControl, pod_of};
use super::queue::{Key, Queue};
use super::replicaset::ready_since;
use super::revisions::{HASH, Revisions, hash_label};
use crate::api::{DeleteOptions, WriteOptions};
use crate::clock;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

#[derive(Clone)]
struct StatefulSets {
    sets: Arc<Informer>,
    claims: Arc<Informer>,
    control: PodControl,
    revisions: Revisions,
}

/// The templates of a set: as it is, and as its pods were before the rollout that goes on.
struct Rollout {
    current: Arc<Value>,
    update: Arc<Value>,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let control =
        PodControl { pods: context.informers.of("", "pods"), recorder: context.recorder.of("statefulset-controller") };
    let controller = StatefulSets {
        sets: context.informers.of("apps", "statefulsets"),
        claims: context.informers.of("", "persistentvolumeclaims"),
        revisions: Revisions(context.informers.of("apps", "controllerrevisions")),
        control,
    };
    let queue = Queue::default();
    let of_set = queue.clone();
    controller.sets.on_change(move |old, new| {
        if let Some(set) = new.or(old) {
            of_set.add(Key::of(set));
        }
    });
    controller.control.follow("StatefulSet", &controller.sets, &queue);
    Box::new(move |context| {
        queue.work("statefulset", 2, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    })
}

impl StatefulSets {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else { return Ok(None) };
        let Some(selector) = selector_of(&set).filter(|_| !is_being_deleted(&set)) else { return Ok(None) };
        let pods = self.control.claimed(&set, &selector).await?;
        let update = self.revisions.current(&set).await?;
        let known = self.revisions.of(&set);
        let before = text(&set["status"], "currentRevision").to_owned();
        let current = known.iter().find(|it| text(&it["metadata"], "name") == before).unwrap_or(&update);
        let rollout = Rollout { current: Arc::clone(current), update };
        let result = self.step(&set, &pods, &rollout).await;
        let again = self.write_status(&set, &rollout).await?;
        result?;
        let pods = self.control.of(&set);
        let used: Vec<&str> = pods
            .iter()
            .map(|pod| hash_label(pod))
            .chain([hash_label(&rollout.current), hash_label(&rollout.update)])
            .collect();
        self.revisions.clean_up(&set, &used).await?;
        Ok(again)
    }

    /// One round: in order, and not beyond the first pod that is not well, unless all may go at once.
    async fn step(&self, set: &Value, pods: &[Arc<Value>], rollout: &Rollout) -> Result<(), StatusError> {
        let parallel = set["spec"]["podManagementPolicy"] == "Parallel";
        let wanted = ordinals(set);
        let by_ordinal: BTreeMap<i64, &Arc<Value>> =
            pods.iter().filter_map(|pod| Some((ordinal_of(set, pod)?, pod))).collect();
        for ordinal in wanted.clone() {
            let Some(pod) = by_ordinal.get(&ordinal) else {
                self.create(set, ordinal, rollout).await?;
                if parallel { continue } else { return Ok(()) }
            };
            if matches!(text(&pod["status"], "phase"), "Failed" | "Succeeded") && !is_being_deleted(pod) {
                let name = text(&pod["metadata"], "name");
                let of = format!("{}/{name}", text(&pod["metadata"], "namespace"));
                self.control.recorder.warning(
                    set,
                    "RecreatingTerminatedPod",
                    format!("StatefulSet {of} is recreating terminated Pod {name}"),
                );
                self.control.delete(pod).await?;
                if parallel { continue } else { return Ok(()) }
            }
            if !parallel && (is_being_deleted(pod) || !is_available(set, pod)) {
                return Ok(());
            }
        }
        // Too many: from the highest, each gone before the next.
        for (ordinal, pod) in by_ordinal.iter().rev().filter(|(ordinal, _)| !wanted.contains(ordinal)) {
            if !is_being_deleted(pod) {
                self.delete(set, pod).await?;
                self.forget_claims(set, *ordinal).await?;
            }
            if !parallel {
                return Ok(());
            }
        }
        self.roll(set, &by_ordinal, rollout).await
    }

    /// Replaces one pod of an older template, from the highest ordinal down to the partition.
    async fn roll(&self, set: &Value, pods: &BTreeMap<i64, &Arc<Value>>, rollout: &Rollout) -> Result<(), StatusError> {
        let strategy = &set["spec"]["updateStrategy"];
        if strategy["type"] != "RollingUpdate" {
            return Ok(());
        }
        let partition = strategy["rollingUpdate"]["partition"].as_i64().unwrap_or_default();
        for (_, pod) in pods.iter().rev().filter(|(ordinal, _)| **ordinal >= partition) {
            if hash_label(pod) != text(&rollout.update["metadata"], "name") && !is_being_deleted(pod) {
                return self.delete(set, pod).await;
            }
            if is_being_deleted(pod) || !is_available(set, pod) {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn create(&self, set: &Value, ordinal: i64, rollout: &Rollout) -> Result<(), StatusError> {
        let set_name = text(&set["metadata"], "name");
        let name = format!("{set_name}-{ordinal}");
        self.make_claims(set, ordinal).await?;
        let partition = set["spec"]["updateStrategy"]["rollingUpdate"]["partition"].as_i64().unwrap_or_default();
        let start = set["spec"]["ordinals"]["start"].as_i64().unwrap_or_default();
        let is_rolling = set["spec"]["updateStrategy"]["type"] == "RollingUpdate";
        let replicas = set["status"]["currentReplicas"].as_i64().unwrap_or_default();
        let old = is_rolling && ordinal < partition || (!is_rolling && ordinal < start + replicas);
        let revision = if old { &rollout.current } else { &rollout.update };
        let mut pod = pod_of(set, &revision["data"]["spec"]["template"], &name);
        for (label, value) in [
            (HASH, text(&revision["metadata"], "name")),
            ("statefulset.kubernetes.io/pod-name", name.as_str()),
            ("apps.kubernetes.io/pod-index", &ordinal.to_string()),
        ] {
            pod["metadata"]["labels"][label] = json!(value);
        }
        pod["spec"]["hostname"] = json!(name);
        pod["spec"]["subdomain"] = set["spec"]["serviceName"].clone();
        let templates: Vec<&str> =
            items(&set["spec"], "volumeClaimTemplates").map(|it| text(&it["metadata"], "name")).collect();
        let mut volumes: Vec<Value> =
            items(&pod["spec"], "volumes").filter(|it| !templates.contains(&text(it, "name"))).cloned().collect();
        for template in templates {
            let claim = format!("{template}-{name}");
            volumes.push(json!({"name": template, "persistentVolumeClaim": {"claimName": claim}}));
        }
        if !volumes.is_empty() {
            pod["spec"]["volumes"] = Value::Array(volumes);
        }
        match self.control.create(set, pod).await {
            Ok(_) => {
                let message = format!("create Pod {name} in StatefulSet {set_name} successful");
                self.control.recorder.normal(set, "SuccessfulCreate", message);
                Ok(())
            }
            // One of that name is still on its way out.
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error) => {
                let message = format!("create Pod {name} in StatefulSet {set_name} failed error: {error}");
                self.control.recorder.warning(set, "FailedCreate", message);
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &Value, pod: &Value) -> Result<(), StatusError> {
        self.control.delete(pod).await?;
        let (name, of) = (text(&pod["metadata"], "name"), text(&set["metadata"], "name"));
        self.control.recorder.normal(
            set,
            "SuccessfulDelete",
            format!("delete Pod {name} in StatefulSet {of} successful"),
        );
        Ok(())
    }

    /// Claims of a pod that are not there yet. They outlive it.
    async fn make_claims(&self, set: &Value, ordinal: i64) -> Result<(), StatusError> {
        let (namespace, set_name) = (text(&set["metadata"], "namespace"), text(&set["metadata"], "name"));
        for template in items(&set["spec"], "volumeClaimTemplates") {
            let template_name = text(&template["metadata"], "name");
            let name = format!("{template_name}-{set_name}-{ordinal}");
            if self.claims.get(namespace, &name).is_some() {
                continue;
            }
            let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": namespace}, "spec": template["spec"]});
            let mut labels = set["spec"]["selector"]["matchLabels"].clone();
            for (key, value) in template["metadata"]["labels"].as_object().into_iter().flatten() {
                labels[key] = value.clone();
            }
            claim["metadata"]["labels"] = labels;
            claim["metadata"]["annotations"] = template["metadata"]["annotations"].clone();
            if set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete" {
                claim["metadata"]["ownerReferences"] = json!([controller_reference(set)]);
            }
            match self.claims.objects.create(namespace, claim, &WriteOptions::default()).await {
                Ok(_) => {
                    let message =
                        format!("create Claim {name} Pod {set_name}-{ordinal} in StatefulSet {set_name} success");
                    self.control.recorder.normal(set, "SuccessfulCreate", message);
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// After scaling down, where the user wants that.
    async fn forget_claims(&self, set: &Value, ordinal: i64) -> Result<(), StatusError> {
        if set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] != "Delete" {
            return Ok(());
        }
        let (namespace, set_name) = (text(&set["metadata"], "namespace"), text(&set["metadata"], "name"));
        for template in items(&set["spec"], "volumeClaimTemplates") {
            let name = format!("{}-{set_name}-{ordinal}", text(&template["metadata"], "name"));
            match self.claims.objects.delete(namespace, &name, &DeleteOptions::default()).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn write_status(&self, set: &Value, rollout: &Rollout) -> Result<Option<Duration>, StatusError> {
        let pods = self.control.of(set);
        let live: Vec<&Arc<Value>> = pods.iter().filter(|pod| ordinal_of(set, pod).is_some()).collect();
        let name_of = |revision: &Value| text(&revision["metadata"], "name").to_owned();
        let (current, update) = (name_of(&rollout.current), name_of(&rollout.update));
        let of = |hash: &str| live.iter().filter(|pod| hash_label(pod) == hash && !is_being_deleted(pod)).count();
        let ready = live.iter().filter(|pod| ready_since(pod).is_some()).count();
        let available = live.iter().filter(|pod| is_available(set, pod)).count();
        let (updated, wanted) = (of(&update), ordinals(set).count());
        // A rollout has ended when every pod is of the new template and well.
        let done = updated == wanted && available == wanted && live.len() == wanted;
        let current = if done { update.clone() } else { current };
        let mut status = json!({
            "replicas": live.len(), "observedGeneration": set["metadata"]["generation"],
            "currentRevision": current, "updateRevision": update, "availableReplicas": available,
            "collisionCount": 0,
        });
        for (key, count) in [("readyReplicas", ready), ("currentReplicas", of(&current)), ("updatedReplicas", updated)]
        {
            if count > 0 {
                status[key] = json!(count);
            }
        }
        if status != set["status"] {
            let Key { namespace, name } = Key::of(set);
            let object = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": set["metadata"],
                "spec": set["spec"], "status": status});
            let options = WriteOptions::default();
            let written = self.sets.objects.update(&namespace, &name, "status", object, &options).await?;
            self.sets.wait_for(&written).await;
        }
        Ok((ready > available).then_some(Duration::from_secs(1)))
    }
}

/// The ordinals that the set wants.
fn ordinals(set: &Value) -> std::ops::Range<i64> {
    let start = set["spec"]["ordinals"]["start"].as_i64().unwrap_or_default();
    start..start + set["spec"]["replicas"].as_i64().unwrap_or(1)
}

/// The ordinal in a pod's name; `None` for one that only looks like the set's.
fn ordinal_of(set: &Value, pod: &Value) -> Option<i64> {
    let name = text(&pod["metadata"], "name");
    name.strip_prefix(text(&set["metadata"], "name"))?.strip_prefix('-')?.parse().ok()
}

/// Ready for as long as the set asks for.
fn is_available(set: &Value, pod: &Value) -> bool {
    let least = set["spec"]["minReadySeconds"].as_i64().unwrap_or_default();
    ready_since(pod).is_some_and(|since| clock::now().as_second() - since.as_second() >= least)
}
