//! What every controller of pods does: find those that are its, adopt and release, make and delete (C7.2).

use std::sync::Arc;

use serde_json::{Value, json};
use stoker_model::selector::Selector;

use super::informer::Informer;
use super::owner::{controller_of, controller_reference, is_being_deleted, is_controlled_by, labels_of, selector_of};
use super::queue::{Key, Queue};
use crate::api::{DeleteOptions, PatchType, WriteOptions};
use crate::recorder::Recorder;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// Pods, and who tells of what happens to them.
#[derive(Clone)]
pub(super) struct PodControl {
    pub(super) pods: Arc<Informer>,
    pub(super) recorder: Recorder,
}

impl PodControl {
    /// Puts the owner of every pod that changes into the queue; of a pod without one, all that select it.
    pub(super) fn follow(&self, kind: &'static str, owners: &Arc<Informer>, queue: &Queue) {
        let (queue, owners) = (queue.clone(), Arc::clone(owners));
        self.pods.on_change(move |old, new| {
            for pod in [old, new].into_iter().flatten() {
                let namespace = text(&pod["metadata"], "namespace");
                match controller_of(pod) {
                    Some(owner) if owner["kind"] == kind => queue.add(Key::new(namespace, text(owner, "name"))),
                    Some(_) => {}
                    None => {
                        let labels = labels_of(pod);
                        for owner in owners.list(namespace) {
                            if selector_of(&owner).is_some_and(|selector| selector.matches(&labels)) {
                                queue.add(Key::of(&owner));
                            }
                        }
                    }
                }
            }
        });
    }

    /// The pods that belong to an owner: those it controls and selects, and orphans that it selects and adopts.
    pub(super) async fn claimed(&self, owner: &Value, selector: &Selector) -> Result<Vec<Arc<Value>>, StatusError> {
        let mut mine = Vec::new();
        for pod in self.pods.list(text(&owner["metadata"], "namespace")) {
            let finished = matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed");
            let selected = selector.matches(&labels_of(&pod));
            match controller_of(&pod) {
                Some(_) if is_controlled_by(&pod, owner) => {
                    if selected {
                        mine.push(pod);
                    } else if !is_being_deleted(owner) {
                        let release = json!([{"$patch": "delete", "uid": owner["metadata"]["uid"]}]);
                        self.patch_owner(&pod, release).await?;
                    }
                }
                None if selected && !finished && !is_being_deleted(&pod) && !is_being_deleted(owner) => {
                    if let Some(adopted) = self.patch_owner(&pod, json!([controller_reference(owner)])).await? {
                        mine.push(adopted);
                    }
                }
                _ => {}
            }
        }
        Ok(mine)
    }

    /// Those of an owner as the cache has them now.
    pub(super) fn of(&self, owner: &Value) -> Vec<Arc<Value>> {
        let mut pods = self.pods.list(text(&owner["metadata"], "namespace"));
        pods.retain(|pod| is_controlled_by(pod, owner));
        pods
    }

    async fn patch_owner(&self, pod: &Value, owners: Value) -> Result<Option<Arc<Value>>, StatusError> {
        self.patch(pod, json!({"metadata": {"uid": pod["metadata"]["uid"], "ownerReferences": owners}})).await
    }

    /// A strategic-merge patch; `None`: the pod is gone.
    pub(super) async fn patch(&self, pod: &Value, patch: Value) -> Result<Option<Arc<Value>>, StatusError> {
        let Key { namespace, name } = Key::of(pod);
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

    /// Makes a pod, and waits until the cache has it. Nobody is told.
    pub(super) async fn create(&self, owner: &Value, pod: Value) -> Result<Value, StatusError> {
        let namespace = text(&owner["metadata"], "namespace");
        let created = self.pods.objects.create(namespace, pod, &WriteOptions::default()).await?;
        self.pods.wait_for(&created).await;
        Ok(created)
    }

    /// Deletes a pod; gone already is success.
    pub(super) async fn delete(&self, pod: &Value) -> Result<(), StatusError> {
        let Key { namespace, name } = Key::of(pod);
        let uid = Some(text(&pod["metadata"], "uid").to_owned());
        let options = DeleteOptions { uid, ..DeleteOptions::default() };
        match self.pods.objects.delete(&namespace, &name, &options).await {
            Ok(deleted) => {
                self.pods.wait_for(&deleted).await;
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A pod from an owner's template; `name` may end in `-` for one that the server completes.
pub(super) fn pod_of(owner: &Value, template: &Value, name: &str) -> Value {
    let namespace = text(&owner["metadata"], "namespace");
    let key = if name.ends_with('-') { "generateName" } else { "name" };
    let mut metadata = json!({ key: name, "namespace": namespace, "ownerReferences": [controller_reference(owner)] });
    for key in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(key).filter(|value| !value.is_null()) {
            metadata[key] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}
