//! Deployments: makes, sizes and removes their ReplicaSets, and writes their status (C7.1). The arithmetic is in
//! `rollout` and `deployment_status`.

use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::deployment_status::{Seen, condition, counts, of_rollout, set_condition};
use super::informer::Informer;
use super::owner::{controller_of, controller_reference, is_being_deleted, is_controlled_by, labels_of, selector_of};
use super::queue::{Key, Queue};
use super::rollout::{self, Goal, Resize, Set};
use crate::api::{DeleteOptions, PatchType, WriteOptions};
use crate::clock;
use crate::recorder::Recorder;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";
/// Annotations that belong to one object and are not copied from the deployment to its sets.
const NOT_COPIED: [&str; 5] =
    ["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAX];

#[derive(Clone)]
struct Deployments {
    deployments: Arc<Informer>,
    sets: Arc<Informer>,
    pods: Arc<Informer>,
    recorder: Recorder,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = Deployments {
        deployments: context.informers.of("apps", "deployments"),
        sets: context.informers.of("apps", "replicasets"),
        pods: context.informers.of("", "pods"),
        recorder: context.recorder.of("deployment-controller"),
    };
    let queue = Queue::default();
    let of_deployment = queue.clone();
    controller.deployments.on_change(move |old, new| {
        if let Some(object) = new.or(old) {
            of_deployment.add(Key::of(object));
        }
    });
    let (of_set, deployments) = (queue.clone(), Arc::clone(&controller.deployments));
    controller.sets.on_change(move |old, new| {
        for set in [old, new].into_iter().flatten() {
            match controller_of(set) {
                Some(owner) if owner["kind"] == "Deployment" => {
                    of_set.add(Key::new(text(&set["metadata"], "namespace"), text(owner, "name")));
                }
                Some(_) => {}
                // An orphan: whoever selects it may adopt it.
                None => {
                    let labels = labels_of(set);
                    for deployment in deployments.list(text(&set["metadata"], "namespace")) {
                        if selector_of(&deployment).is_some_and(|s| s.matches(&labels)) {
                            of_set.add(Key::of(&deployment));
                        }
                    }
                }
            }
        }
    });
    // Recreate waits for the last old pod to be gone.
    let (of_pod, sets) = (queue.clone(), Arc::clone(&controller.sets));
    controller.pods.on_change(move |old, new| {
        if let (Some(pod), None) = (old, new)
            && let Some(owner) = controller_of(pod).filter(|owner| owner["kind"] == "ReplicaSet")
        {
            let namespace = text(&pod["metadata"], "namespace");
            let deployment = sets.get(namespace, text(owner, "name")).and_then(|set| {
                controller_of(&set).filter(|o| o["kind"] == "Deployment").map(|o| text(o, "name").to_owned())
            });
            if let Some(name) = deployment {
                of_pod.add(Key::new(namespace, &name));
            }
        }
    });
    Box::new(move |context| {
        queue.work("deployment", 2, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    })
}

/// The sets of a deployment: the one of its template, and all others.
struct Family {
    new: Option<Arc<Value>>,
    olds: Vec<Arc<Value>>,
}

impl Family {
    fn new_set(&self) -> Option<Set> {
        self.new.as_deref().map(size_of)
    }

    fn old_sets(&self) -> Vec<Set> {
        self.olds.iter().map(|set| size_of(set)).collect()
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Value>> {
        self.olds.iter().chain(&self.new)
    }
}

impl Deployments {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let Some(stored) = self.deployments.get(&key.namespace, &key.name) else { return Ok(None) };
        let Some(selector) = selector_of(&stored).filter(|s| !s.is_everything()) else { return Ok(None) };
        let mut deployment = (*stored).clone();
        let goal = Goal::of(&deployment);
        let mut family = self.family(&deployment, &selector).await?;
        if is_being_deleted(&deployment) {
            return self.write_counts(&deployment, goal, &family).await;
        }
        if self.note_pause(&mut deployment).await? {
            return Ok(None);
        }
        let paused = deployment["spec"]["paused"] == true;
        if paused || is_resized(goal, &family) {
            self.ensure_new_set(&mut deployment, goal, &mut family, false).await?;
            let (new, olds) = (family.new_set(), family.old_sets());
            let latest = new.clone().or_else(|| olds.iter().max_by(|a, b| a.created.cmp(&b.created)).cloned());
            let steps = rollout::scale(goal, latest.as_ref(), new.as_ref(), &olds);
            self.apply(&deployment, goal, &family, &steps).await?;
            self.note_size(&deployment, goal, &family, &steps).await?;
            let family = self.family(&deployment, &selector).await?;
            return self.write_counts(&deployment, goal, &family).await;
        }
        if goal.recreate {
            let shrink: Vec<Resize> = family
                .old_sets()
                .into_iter()
                .filter(|set| set.size > 0)
                .map(|set| Resize { name: set.name, to: 0 })
                .collect();
            self.ensure_new_set(&mut deployment, goal, &mut family, false).await?;
            if !shrink.is_empty() || self.old_pods_run(&family) {
                self.apply(&deployment, goal, &family, &shrink).await?;
                return self.finish(&deployment, goal, &selector).await;
            }
        }
        if !self.ensure_new_set(&mut deployment, goal, &mut family, true).await? {
            return Ok(None);
        }
        if let Some(new) = family.new_set() {
            let olds = family.old_sets();
            let steps = match rollout::grow_new(goal, &new, &olds) {
                Some(step) => vec![step],
                None if goal.recreate => Vec::new(),
                None => rollout::shrink_old(goal, &new, &olds),
            };
            self.apply(&deployment, goal, &family, &steps).await?;
        }
        self.finish(&deployment, goal, &selector).await
    }

    /// The sets that the deployment controls, after adopting those that it selects and releasing those that it does
    /// not select any more.
    async fn family(
        &self,
        deployment: &Value,
        selector: &stoker_model::selector::Selector,
    ) -> Result<Family, StatusError> {
        let namespace = text(&deployment["metadata"], "namespace");
        let mut mine = Vec::new();
        for set in self.sets.list(namespace) {
            let selected = selector.matches(&labels_of(&set));
            match controller_of(&set) {
                Some(_) if is_controlled_by(&set, deployment) => {
                    if selected {
                        mine.push(set);
                    } else {
                        self.release(&set, deployment).await?;
                    }
                }
                None if selected && !is_being_deleted(&set) && !is_being_deleted(deployment) => {
                    mine.push(self.adopt(&set, deployment).await?);
                }
                _ => {}
            }
        }
        let template = without_hash(&deployment["spec"]["template"]);
        let of_template = |set: &&Arc<Value>| without_hash(&set["spec"]["template"]) == template;
        let new = mine.iter().filter(of_template).min_by(|a, b| age_order(a).cmp(&age_order(b))).cloned();
        let is_old = |set: &Arc<Value>| new.as_ref().is_none_or(|new| new["metadata"]["uid"] != set["metadata"]["uid"]);
        let olds = mine.into_iter().filter(is_old).collect();
        Ok(Family { new, olds })
    }

    async fn adopt(&self, set: &Value, deployment: &Value) -> Result<Arc<Value>, StatusError> {
        let reference = controller_reference(deployment);
        let patch = json!({"metadata": {"uid": set["metadata"]["uid"], "ownerReferences": [reference]}});
        self.patch_set(set, &patch, PatchType::Strategic).await
    }

    async fn release(&self, set: &Value, deployment: &Value) -> Result<(), StatusError> {
        let uid = &deployment["metadata"]["uid"];
        let patch = json!({"metadata": {"uid": set["metadata"]["uid"],
            "ownerReferences": [{"$patch": "delete", "uid": uid}]}});
        self.patch_set(set, &patch, PatchType::Strategic).await.map(drop)
    }

    async fn patch_set(&self, set: &Value, patch: &Value, kind: PatchType) -> Result<Arc<Value>, StatusError> {
        let Key { namespace, name } = Key::of(set);
        let options = WriteOptions::default();
        let written = self.sets.objects.patch(&namespace, &name, "", kind, patch, &options).await?;
        self.sets.wait_for(&written).await;
        Ok(Arc::new(written))
    }

    /// Makes sure that the set of the present template exists (unless `create` is false) and carries the right
    /// annotations, and that the deployment's revision is the set's. False: something else must be tried first, and
    /// an event will wake us.
    async fn ensure_new_set(
        &self,
        deployment: &mut Value,
        goal: Goal,
        family: &mut Family,
        create: bool,
    ) -> Result<bool, StatusError> {
        let newest_old = family.olds.iter().map(|set| revision_of(set)).max().unwrap_or_default();
        let revision = newest_old + 1;
        let reason = match &family.new {
            Some(set) => {
                let mut annotations = annotations_for(deployment, goal);
                let before = revision_of(set);
                if before < revision {
                    annotations[REVISION] = json!(revision.to_string());
                    if before > 0 {
                        let history = text(&set["metadata"]["annotations"], REVISION_HISTORY);
                        let separator = if history.is_empty() { "" } else { "," };
                        annotations[REVISION_HISTORY] = json!(format!("{history}{separator}{before}"));
                    }
                }
                let ready_seconds = deployment["spec"]["minReadySeconds"].clone();
                let same = annotations.as_object().is_some_and(|a| {
                    a.iter().all(|(key, value)| set["metadata"]["annotations"].get(key) == Some(value))
                }) && set["spec"]["minReadySeconds"].as_i64().unwrap_or(0)
                    == ready_seconds.as_i64().unwrap_or(0);
                if !same {
                    let patch = json!({"metadata": {"annotations": annotations},
                        "spec": {"minReadySeconds": ready_seconds}});
                    let written = self.patch_set(set, &patch, PatchType::Merge).await?;
                    family.new = Some(written);
                }
                ("FoundNewReplicaSet", "Found new replica set")
            }
            None if create => {
                let Some(created) = self.create_set(deployment, goal, family, revision).await? else {
                    return Ok(false);
                };
                family.new = Some(created);
                ("NewReplicaSetCreated", "Created new replica set")
            }
            None => return Ok(true),
        };
        let Some(set) = &family.new else { return Ok(true) };
        let set_name = text(&set["metadata"], "name").to_owned();
        let set_revision = revision_of(set).max(revision).to_string();
        if text(&deployment["metadata"]["annotations"], REVISION) != set_revision {
            let patch = json!({"metadata": {"annotations": {REVISION: set_revision}}});
            self.patch_deployment(deployment, "", &patch).await?;
        }
        let wants_progress = deployment["spec"]["progressDeadlineSeconds"].as_i64().is_some();
        let created = reason.0 == "NewReplicaSetCreated";
        if wants_progress && (created || condition(&deployment["status"], "Progressing").is_none()) {
            let mut status = deployment["status"].clone();
            let message = format!("{} {set_name:?}", reason.1);
            set_condition(&mut status, "Progressing", "True", reason.0, &message, clock::now());
            let patch = json!({"status": {"conditions": status["conditions"]}});
            self.patch_deployment(deployment, "status", &patch).await?;
        }
        Ok(true)
    }

    async fn create_set(
        &self,
        deployment: &mut Value,
        goal: Goal,
        family: &Family,
        revision: i64,
    ) -> Result<Option<Arc<Value>>, StatusError> {
        let Key { namespace, name } = Key::of(deployment);
        let size = rollout::new_set_size(goal, 0, &family.old_sets());
        let hash = template_hash(deployment);
        let mut template = deployment["spec"]["template"].clone();
        template["metadata"]["labels"][HASH] = json!(hash);
        let mut selector = deployment["spec"]["selector"].clone();
        selector["matchLabels"][HASH] = json!(hash);
        let mut annotations = annotations_for(deployment, goal);
        annotations[REVISION] = json!(revision.to_string());
        let set_name = format!("{name}-{hash}");
        let set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": set_name, "namespace": namespace, "annotations": annotations,
                "labels": template["metadata"]["labels"], "ownerReferences": [controller_reference(deployment)],
            },
            "spec": {
                "replicas": size, "minReadySeconds": deployment["spec"]["minReadySeconds"].as_i64().unwrap_or(0),
                "selector": selector, "template": template,
            },
        });
        match self.sets.objects.create(&namespace, set, &WriteOptions::default()).await {
            Ok(created) => {
                self.sets.wait_for(&created).await;
                if size > 0 {
                    let message = format!("Scaled up replica set {set_name} from 0 to {size}");
                    self.recorder.normal(deployment, "ScalingReplicaSet", message);
                }
                Ok(Some(Arc::new(created)))
            }
            Err(error) if error.is_already_exists() => {
                let existing = self.sets.objects.get(&namespace, &set_name).await?;
                let same = without_hash(&existing["spec"]["template"]) == without_hash(&deployment["spec"]["template"]);
                if same && is_controlled_by(&existing, deployment) {
                    self.sets.wait_for(&existing).await;
                    return Ok(Some(Arc::new(existing)));
                }
                // Somebody else's, or another template of the same hash: the next try hashes with a new count.
                let count = deployment["status"]["collisionCount"].as_i64().unwrap_or_default() + 1;
                let patch = json!({"status": {"collisionCount": count}});
                self.patch_deployment(deployment, "status", &patch).await?;
                Ok(None)
            }
            Err(error) => {
                let mut status = deployment["status"].clone();
                let (kind, reason) = ("Progressing", "ReplicaSetCreateError");
                let message = format!("Failed to create new replica set {set_name:?}: {error}");
                set_condition(&mut status, kind, "False", reason, &message, clock::now());
                let patch = json!({"status": {"conditions": status["conditions"]}});
                self.patch_deployment(deployment, "status", &patch).await?;
                self.recorder.warning(deployment, reason, message);
                Err(error)
            }
        }
    }

    /// Writes new sizes, together with the annotations that later scaling in proportion relies on.
    async fn apply(
        &self,
        deployment: &Value,
        goal: Goal,
        family: &Family,
        steps: &[Resize],
    ) -> Result<(), StatusError> {
        for step in steps {
            let Some(set) = family.all().find(|set| text(&set["metadata"], "name") == step.name) else { continue };
            let before = set["spec"]["replicas"].as_i64().unwrap_or_default();
            let patch = json!({
                "metadata": {"annotations": size_annotations(goal)}, "spec": {"replicas": step.to},
            });
            self.patch_set(set, &patch, PatchType::Merge).await?;
            let direction = if step.to > before { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {} from {before} to {}", step.name, step.to);
            self.recorder.normal(deployment, "ScalingReplicaSet", message);
        }
        Ok(())
    }

    /// After a change of size, active sets that stay as they are must know the new size too, or it would look as if
    /// it had just changed.
    async fn note_size(
        &self,
        deployment: &Value,
        goal: Goal,
        family: &Family,
        steps: &[Resize],
    ) -> Result<(), StatusError> {
        for set in family.all() {
            let size = size_of(set);
            let written = steps.iter().any(|step| step.name == size.name);
            if size.size > 0 && !written && size.desired_annotation != Some(goal.replicas) {
                tracing::trace!(deployment = text(&deployment["metadata"], "name"), set = size.name, "notes the size");
                let patch = json!({"metadata": {"annotations": size_annotations(goal)}});
                self.patch_set(set, &patch, PatchType::Merge).await?;
            }
        }
        Ok(())
    }

    fn old_pods_run(&self, family: &Family) -> bool {
        if family.olds.iter().any(|set| size_of(set).actual > 0) {
            return true;
        }
        family.olds.iter().any(|set| {
            let pods = self.pods.list(text(&set["metadata"], "namespace"));
            pods.iter().any(|pod| {
                is_controlled_by(pod, set) && !matches!(text(&pod["status"], "phase"), "Failed" | "Succeeded")
            })
        })
    }

    /// Writes Progressing Unknown when a deployment is paused or resumed. True: it did, and the change will wake us.
    async fn note_pause(&self, deployment: &mut Value) -> Result<bool, StatusError> {
        if deployment["spec"]["progressDeadlineSeconds"].as_i64().is_none() {
            return Ok(false);
        }
        let reason = condition(&deployment["status"], "Progressing").map(|c| text(c, "reason").to_owned());
        let paused = deployment["spec"]["paused"] == true;
        let (new_reason, message) = match (paused, reason.as_deref()) {
            (_, Some("ProgressDeadlineExceeded")) => return Ok(false),
            (true, other) if other != Some("DeploymentPaused") => ("DeploymentPaused", "Deployment is paused"),
            (false, Some("DeploymentPaused")) => ("DeploymentResumed", "Deployment is resumed"),
            _ => return Ok(false),
        };
        let mut status = deployment["status"].clone();
        set_condition(&mut status, "Progressing", "Unknown", new_reason, message, clock::now());
        let patch = json!({"status": {"conditions": status["conditions"]}});
        self.patch_deployment(deployment, "status", &patch).await?;
        Ok(false)
    }

    async fn finish(
        &self,
        deployment: &Value,
        goal: Goal,
        selector: &stoker_model::selector::Selector,
    ) -> Result<Option<Duration>, StatusError> {
        let family = self.family(deployment, selector).await?;
        let (new, olds) = (family.new_set(), family.old_sets());
        let failing = |set: &Arc<Value>| condition(&set["status"], "ReplicaFailure").cloned();
        let failure = family.new.as_ref().and_then(failing).or_else(|| family.olds.iter().find_map(failing));
        let seen = Seen { new: new.as_ref(), olds: &olds, failure };
        let outcome = of_rollout(deployment, goal, &seen, clock::now());
        let complete = super::deployment_status::is_complete(deployment, goal, &outcome.status);
        self.write_status(deployment, outcome.status).await?;
        if complete {
            self.clean_up(deployment, &family).await?;
        }
        Ok(outcome.again)
    }

    async fn write_counts(
        &self,
        deployment: &Value,
        goal: Goal,
        family: &Family,
    ) -> Result<Option<Duration>, StatusError> {
        let (new, olds) = (family.new_set(), family.old_sets());
        let seen = Seen { new: new.as_ref(), olds: &olds, failure: None };
        self.write_status(deployment, counts(deployment, goal, &seen, clock::now())).await?;
        Ok(None)
    }

    async fn write_status(&self, deployment: &Value, status: Value) -> Result<(), StatusError> {
        if deployment["status"] == status {
            return Ok(());
        }
        let Key { namespace, name } = Key::of(deployment);
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": deployment["metadata"],
            "spec": deployment["spec"], "status": status,
        });
        let options = WriteOptions::default();
        let written = self.deployments.objects.update(&namespace, &name, "status", object, &options).await?;
        self.deployments.wait_for(&written).await;
        Ok(())
    }

    /// Patches the deployment and goes on with what was stored.
    async fn patch_deployment(
        &self,
        deployment: &mut Value,
        subresource: &str,
        patch: &Value,
    ) -> Result<(), StatusError> {
        let Key { namespace, name } = Key::of(deployment);
        let (objects, options) = (&self.deployments.objects, WriteOptions::default());
        let written = objects.patch(&namespace, &name, subresource, PatchType::Merge, patch, &options).await?;
        self.deployments.wait_for(&written).await;
        *deployment = written;
        Ok(())
    }

    /// Removes old sets beyond the history that shall be kept.
    async fn clean_up(&self, deployment: &Value, family: &Family) -> Result<(), StatusError> {
        let Some(limit) = deployment["spec"]["revisionHistoryLimit"].as_u64() else { return Ok(()) };
        let mut olds: Vec<&Arc<Value>> = family.olds.iter().filter(|set| !is_being_deleted(set)).collect();
        olds.sort_by_key(|set| (revision_of(set), age_order(set)));
        let excess = olds.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        for set in olds.into_iter().take(excess) {
            let size = size_of(set);
            let seen = set["status"]["observedGeneration"].as_i64() >= set["metadata"]["generation"].as_i64();
            if size.actual != 0 || size.size != 0 || !seen {
                continue;
            }
            let Key { namespace, name } = Key::of(set);
            let uid = Some(text(&set["metadata"], "uid").to_owned());
            let options = DeleteOptions { uid, ..DeleteOptions::default() };
            match self.sets.objects.delete(&namespace, &name, &options).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether the user changed the size since the sets were last sized.
fn is_resized(goal: Goal, family: &Family) -> bool {
    family
        .all()
        .map(|set| size_of(set))
        .any(|set| set.size > 0 && set.desired_annotation.is_some_and(|desired| desired != goal.replicas))
}

fn size_of(set: &Value) -> Set {
    let count = |part: &str, key: &str| set[part][key].as_i64().unwrap_or_default();
    let annotation = |key: &str| text(&set["metadata"]["annotations"], key).parse().ok();
    Set {
        name: text(&set["metadata"], "name").to_owned(),
        created: text(&set["metadata"], "creationTimestamp").to_owned(),
        size: count("spec", "replicas"),
        actual: count("status", "replicas"),
        ready: count("status", "readyReplicas"),
        available: count("status", "availableReplicas"),
        max_annotation: annotation(MAX),
        desired_annotation: annotation(DESIRED),
    }
}

fn age_order(set: &Value) -> (String, String) {
    (text(&set["metadata"], "creationTimestamp").to_owned(), text(&set["metadata"], "name").to_owned())
}

fn revision_of(object: &Value) -> i64 {
    text(&object["metadata"]["annotations"], REVISION).parse().unwrap_or_default()
}

fn size_annotations(goal: Goal) -> Value {
    json!({DESIRED: goal.replicas.to_string(), MAX: (goal.replicas + goal.max_surge).to_string()})
}

/// What the deployment's set carries: its own annotations, but for those that describe one object, and the sizes.
fn annotations_for(deployment: &Value, goal: Goal) -> Value {
    let mut all = size_annotations(goal);
    for (key, value) in deployment["metadata"]["annotations"].as_object().into_iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            all[key] = value.clone();
        }
    }
    all
}

fn without_hash(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH);
    }
    if let Some(metadata) = template["metadata"].as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
    template
}

/// FNV-1a of 32 bits, as upstream; over the template's JSON, whose keys are sorted.
#[derive(Default)]
struct Fnv(u32);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        u64::from(self.0)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(16_777_619);
        }
    }
}

fn template_hash(deployment: &Value) -> String {
    let mut hash = Fnv(2_166_136_261);
    hash.write(deployment["spec"]["template"].to_string().as_bytes());
    if let Some(count) = deployment["status"]["collisionCount"].as_i64() {
        hash.write(&count.to_le_bytes());
    }
    safe_encode(&hash.finish().to_string())
}

/// A short name for a value.
pub(super) fn hash_of(value: &Value) -> String {
    let mut hash = Fnv(2_166_136_261);
    hash.write(value.to_string().as_bytes());
    safe_encode(&hash.finish().to_string())
}

/// Letters and digits that make no bad words, as upstream writes hashes and generated names.
fn safe_encode(digits: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    digits.bytes().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_follows_the_template_and_the_collisions() {
        let deployment = |image: &str, collisions: Value| {
            json!({"spec": {"template": {"spec": {"containers": [{"image": image}]}}},
                   "status": {"collisionCount": collisions}})
        };
        let hash = template_hash(&deployment("a", Value::Null));
        assert_eq!(hash, template_hash(&deployment("a", Value::Null)));
        assert_ne!(hash, template_hash(&deployment("b", Value::Null)));
        assert_ne!(hash, template_hash(&deployment("a", json!(1))));
        assert!(hash.len() <= 10 && hash.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b)), "{hash}");
    }

    #[test]
    fn a_set_carries_the_deployments_annotations_but_not_its_own_history() {
        let deployment = json!({"metadata": {"annotations": {"team": "a", REVISION: "4",
            "kubectl.kubernetes.io/last-applied-configuration": "{}"}}, "spec": {"replicas": 4}});
        let annotations = annotations_for(&deployment, Goal::of(&deployment));
        assert_eq!(annotations, json!({"team": "a", DESIRED: "4", MAX: "5"}));
    }
}
