//! Deletion of namespaces: everything in them goes, pods first, then the namespace (C7.8). All five conditions are
//! written in every round.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::Context;
use super::deployment_status::{remove_condition, set_condition};
use super::informer::Informer;
use super::owner::is_being_deleted;
use super::queue::{Key, Queue};
use crate::api::{Cluster, DeleteOptions, ListOptions, WriteOptions};
use crate::clock;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

/// Look again though no event came: events (the kind) are not watched.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Namespaces {
    namespaces: Arc<Informer>,
    cluster: Cluster,
}

/// What is left of a kind.
struct Rest {
    /// `pods.`, `deployments.apps`: upstream writes the dot also without a group.
    resource: String,
    count: usize,
    /// Finalizers that keep them, with how many objects each keeps.
    finalizers: Vec<String>,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller =
        Namespaces { namespaces: context.informers.of("", "namespaces"), cluster: context.cluster.clone() };
    let queue = Queue::default();
    let of_namespace = queue.clone();
    controller.namespaces.on_change(move |_, new| {
        if let Some(namespace) = new.filter(|namespace| is_being_deleted(namespace)) {
            of_namespace.add(Key::of(namespace));
        }
    });
    for informer in context.informers.all().filter(|informer| informer.info().namespaced) {
        let (queue, namespaces) = (queue.clone(), Arc::clone(&controller.namespaces));
        informer.on_change(move |old, new| {
            if let (Some(object), None) = (old, new) {
                let name = text(&object["metadata"], "namespace");
                if namespaces.get("", name).is_some_and(|namespace| is_being_deleted(&namespace)) {
                    queue.add(Key::new("", name));
                }
            }
        });
    }
    Box::new(move |context| {
        queue.work("namespace", 2, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key.name).await }
        });
    })
}

impl Namespaces {
    async fn reconcile(&self, name: &str) -> Result<Option<Duration>, StatusError> {
        let Some(namespace) = self.namespaces.get("", name) else { return Ok(None) };
        let is_ours = items(&namespace["spec"], "finalizers").any(|finalizer| finalizer == "kubernetes");
        if !is_being_deleted(&namespace) || !is_ours {
            return Ok(None);
        }
        let (mut rest, mut failures) = (Vec::new(), Vec::new());
        // Pods first: what they use must not vanish under them.
        self.clear("", "pods", name, &mut rest, &mut failures).await;
        if rest.is_empty() && failures.is_empty() {
            let kinds = crate::resources::all()
                .filter(|info| info.namespaced && info.is_stored() && info.view.is_none() && info.plural != "pods");
            for info in kinds {
                self.clear(info.group, info.plural, name, &mut rest, &mut failures).await;
            }
        }
        self.write_conditions(&namespace, &rest, &failures).await?;
        if !rest.is_empty() || !failures.is_empty() {
            return Ok(Some(AGAIN));
        }
        let finalized = self
            .namespaces
            .objects
            .modify("", name, "finalize", |namespace| {
                let Some(finalizers) = namespace["spec"].get_mut("finalizers").and_then(Value::as_array_mut) else {
                    return false;
                };
                finalizers.retain(|finalizer| finalizer != "kubernetes");
                true
            })
            .await;
        match finalized {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(None),
        }
    }

    /// Deletes the objects of a kind and notes what is still there.
    async fn clear(&self, group: &str, plural: &str, name: &str, rest: &mut Vec<Rest>, failures: &mut Vec<String>) {
        let objects = self.cluster.objects(group, plural);
        let listed = match objects.list(name, &ListOptions::default()).await {
            Ok(listed) => listed.items,
            Err(error) => {
                failures.push(format!("{plural}: {error}"));
                return;
            }
        };
        let (mut count, mut finalizers) = (0, Vec::new());
        for object in listed {
            let metadata = &object["metadata"];
            let uid = Some(text(metadata, "uid").to_owned());
            let options = DeleteOptions { uid, ..DeleteOptions::default() };
            let left = if is_being_deleted(&object) {
                true
            } else {
                match objects.delete(name, text(metadata, "name"), &options).await {
                    Ok(deleted) => is_being_deleted(&deleted),
                    Err(error) if error.is_not_found() || error.is_conflict() => false,
                    Err(error) => {
                        failures.push(format!("{plural}: {error}"));
                        true
                    }
                }
            };
            // An object whose deletion was asked for just now may be gone already: only what can be read is left.
            if left && objects.get(name, text(metadata, "name")).await.is_ok() {
                count += 1;
                finalizers.extend(items(metadata, "finalizers").filter_map(Value::as_str).map(str::to_owned));
            }
        }
        if count > 0 {
            rest.push(Rest { resource: format!("{plural}.{group}"), count, finalizers });
        }
    }

    async fn write_conditions(&self, namespace: &Value, rest: &[Rest], failures: &[String]) -> Result<(), StatusError> {
        let mut status = namespace["status"].clone();
        for (kind, value, reason, message) in conditions(rest, failures) {
            // A condition whose message alone changed must change, too.
            let stale = items(&status, "conditions").any(|c| c["type"] == kind && c["message"] != message);
            if stale {
                remove_condition(&mut status, kind);
            }
            set_condition(&mut status, kind, value, reason, &message, clock::now());
        }
        for condition in status["conditions"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            condition.remove("lastUpdateTime");
        }
        if status == namespace["status"] {
            return Ok(());
        }
        let mut object = namespace.clone();
        object["status"] = status;
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
        }
        let name = text(&namespace["metadata"], "name");
        let written = self.namespaces.objects.update("", name, "status", object, &WriteOptions::default()).await?;
        self.namespaces.wait_for(&written).await;
        Ok(())
    }
}

/// The five conditions with upstream's words.
fn conditions(rest: &[Rest], failures: &[String]) -> [(&'static str, &'static str, &'static str, String); 5] {
    let remaining: Vec<String> =
        rest.iter().map(|r| format!("{} has {} resource instances", r.resource, r.count)).collect();
    let mut kept: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for finalizer in rest.iter().flat_map(|rest| &rest.finalizers) {
        *kept.entry(finalizer).or_default() += 1;
    }
    let kept: Vec<String> =
        kept.into_iter().map(|(finalizer, count)| format!("{finalizer} in {count} resource instances")).collect();
    let discovered = "All resources successfully discovered".to_owned();
    let parsed = "All legacy kube types successfully parsed".to_owned();
    [
        ("NamespaceDeletionDiscoveryFailure", "False", "ResourcesDiscovered", discovered),
        ("NamespaceDeletionGroupVersionParsingFailure", "False", "ParsedGroupVersions", parsed),
        if failures.is_empty() {
            let message = "All content successfully deleted, may be waiting on finalization".to_owned();
            ("NamespaceDeletionContentFailure", "False", "ContentDeleted", message)
        } else {
            ("NamespaceDeletionContentFailure", "True", "ContentDeletionFailed", failures.join(", "))
        },
        if remaining.is_empty() {
            ("NamespaceContentRemaining", "False", "ContentRemoved", "All content successfully removed".to_owned())
        } else {
            let message = format!("Some resources are remaining: {}", remaining.join(", "));
            ("NamespaceContentRemaining", "True", "SomeResourcesRemain", message)
        },
        if kept.is_empty() {
            let message = "All content-preserving finalizers finished".to_owned();
            ("NamespaceFinalizersRemaining", "False", "ContentHasNoFinalizers", message)
        } else {
            let message = format!("Some content in the namespace has finalizers remaining: {}", kept.join(", "));
            ("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", message)
        },
    ]
}
