//! ControllerRevisions: the templates that a DaemonSet or StatefulSet has had, for rollout history and undo (C7.3, C7.4).

use std::sync::Arc;

use serde_json::{Value, json};

use super::deployment::hash_of;
use super::informer::Informer;
use super::owner::{controller_reference, is_controlled_by};
use crate::api::{DeleteOptions, PatchType, WriteOptions};
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// Label of pods and revisions.
pub(super) const HASH: &str = "controller-revision-hash";

/// The revisions of one kind of owner.
#[derive(Clone)]
pub(super) struct Revisions(pub(super) Arc<Informer>);

impl Revisions {
    /// Those of an owner, oldest first.
    pub(super) fn of(&self, owner: &Value) -> Vec<Arc<Value>> {
        let mut all = self.0.list(text(&owner["metadata"], "namespace"));
        all.retain(|revision| is_controlled_by(revision, owner));
        all.sort_by_key(|revision| revision["revision"].as_i64());
        all
    }

    /// The revision of the owner's template as it is now: one that is there gets the highest number again.
    pub(super) async fn current(&self, owner: &Value) -> Result<Arc<Value>, StatusError> {
        let known = self.of(owner);
        let data = data_of(owner);
        let highest = known.last().and_then(|last| last["revision"].as_i64()).unwrap_or_default();
        let namespace = text(&owner["metadata"], "namespace");
        let options = WriteOptions::default();
        if let Some(same) = known.iter().rev().find(|revision| revision["data"] == data) {
            if same["revision"].as_i64() == Some(highest) {
                return Ok(Arc::clone(same));
            }
            let patch = json!({"revision": highest + 1});
            let name = text(&same["metadata"], "name");
            let written = self.0.objects.patch(namespace, name, "", PatchType::Merge, &patch, &options).await?;
            self.0.wait_for(&written).await;
            return Ok(Arc::new(written));
        }
        let name = text(&owner["metadata"], "name");
        for collision in 0.. {
            let hash = hash_of(&json!([data, collision]));
            let mut labels = owner["spec"]["selector"]["matchLabels"].clone();
            if !labels.is_object() {
                labels = json!({});
            }
            labels[HASH] = json!(hash);
            let revision = json!({
                "apiVersion": "apps/v1", "kind": "ControllerRevision",
                "metadata": {"name": format!("{name}-{hash}"), "namespace": namespace, "labels": labels,
                    "annotations": owner["metadata"]["annotations"], "ownerReferences": [controller_reference(owner)]},
                "data": data, "revision": highest + 1,
            });
            match self.0.objects.create(namespace, revision, &options).await {
                Ok(created) => {
                    self.0.wait_for(&created).await;
                    return Ok(Arc::new(created));
                }
                Err(error) if error.is_already_exists() && collision < 10 => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("the loop returns at its tenth collision at the latest")
    }

    /// Deletes the oldest that nothing uses any more, beyond the owner's limit.
    pub(super) async fn clean_up(&self, owner: &Value, in_use: &[&str]) -> Result<(), StatusError> {
        let limit = usize::try_from(owner["spec"]["revisionHistoryLimit"].as_i64().unwrap_or(10)).unwrap_or_default();
        let mut old = self.of(owner);
        old.retain(|revision| !in_use.contains(&hash_label(revision)));
        for revision in old.iter().take(old.len().saturating_sub(limit)) {
            let (namespace, name) = (text(&owner["metadata"], "namespace"), text(&revision["metadata"], "name"));
            match self.0.objects.delete(namespace, name, &DeleteOptions::default()).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// What `rollout undo` patches back into the owner.
fn data_of(owner: &Value) -> Value {
    let mut template = owner["spec"]["template"].clone();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The hash that a revision or pod is labelled with.
pub(super) fn hash_label(object: &Value) -> &str {
    object["metadata"]["labels"][HASH].as_str().unwrap_or_default()
}
