//! Garbage collection by ownerReferences (C7.9): dependents go when none of their owners is left (background), before
//! their owner (foreground), or are set free (orphan).
//!
//! The graph holds identities only: who exists, and who names whom as owner.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::owner::is_being_deleted;
use super::queue::{Key, Queue};
use crate::api::{DeleteOptions, PatchType, Propagation, WriteOptions};
use crate::resources::by_kind;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

struct Owner {
    uid: String,
    api_version: String,
    kind: String,
    name: String,
    blocks: bool,
}

struct Node {
    informer: Arc<Informer>,
    key: Key,
    owners: Vec<Owner>,
    deleting: bool,
    orphan: bool,
    foreground: bool,
}

#[derive(Default)]
struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    fn dependents_of(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    fn unlink(&mut self, uid: &str) -> Option<Node> {
        let node = self.nodes.remove(uid)?;
        for owner in &node.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        Some(node)
    }

    /// Takes over an object; answers with whom to look at.
    fn upsert(&mut self, informer: &Arc<Informer>, object: &Value) -> Vec<String> {
        let metadata = &object["metadata"];
        let uid = text(metadata, "uid").to_owned();
        let before = self.unlink(&uid);
        let owners: Vec<Owner> = items(metadata, "ownerReferences")
            .map(|owner| Owner {
                uid: text(owner, "uid").to_owned(),
                api_version: text(owner, "apiVersion").to_owned(),
                kind: text(owner, "kind").to_owned(),
                name: text(owner, "name").to_owned(),
                blocks: owner["blockOwnerDeletion"] == true,
            })
            .collect();
        let finalizer = |name: &str| items(metadata, "finalizers").any(|finalizer| finalizer == name);
        let node = Node {
            informer: Arc::clone(informer),
            key: Key::of(object),
            deleting: is_being_deleted(object),
            orphan: finalizer(ORPHAN),
            foreground: finalizer(FOREGROUND),
            owners,
        };
        let mut look = Vec::new();
        // Owners that this object does not block any more.
        look.extend(before.into_iter().flat_map(|before| before.owners).map(|owner| owner.uid));
        if node.owners.iter().any(|owner| self.nodes.get(&owner.uid).is_none_or(|owner| owner.deleting))
            || (node.deleting && (node.orphan || node.foreground))
        {
            look.push(uid.clone());
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        self.nodes.insert(uid, node);
        look.retain(|uid| self.nodes.get(uid).is_some_and(|node| node.deleting || !node.owners.is_empty()));
        look
    }

    fn remove(&mut self, uid: &str) -> Vec<String> {
        let mut look = self.dependents_of(uid);
        if let Some(node) = self.unlink(uid) {
            let waiting = |owner: &Owner| self.nodes.get(&owner.uid).is_some_and(|o| o.deleting && o.foreground);
            look.extend(node.owners.iter().filter(|owner| waiting(owner)).map(|owner| owner.uid.clone()));
        }
        look
    }

    fn decide(&self, uid: &str) -> Decision {
        let Some(node) = self.nodes.get(uid) else { return Decision::Nothing };
        if node.deleting && node.orphan {
            return Decision::SetFree(self.dependents_of(uid));
        }
        if node.deleting && node.foreground {
            let blocks = |dependent: &String| {
                self.nodes.get(dependent).is_some_and(|d| d.owners.iter().any(|o| o.uid == uid && o.blocks))
            };
            let dependents = self.dependents_of(uid);
            return if dependents.iter().any(blocks) { Decision::Await(dependents) } else { Decision::Release };
        }
        if node.deleting || node.owners.is_empty() {
            return Decision::Nothing;
        }
        let (mut solid, mut waiting, mut absent) = (0, Vec::new(), Vec::new());
        for owner in &node.owners {
            match self.nodes.get(&owner.uid) {
                Some(found) if found.deleting && found.foreground => waiting.push(owner.uid.clone()),
                Some(_) => solid += 1,
                None => {
                    absent.push((owner.uid.clone(), owner.api_version.clone(), owner.kind.clone(), owner.name.clone()))
                }
            }
        }
        Decision::Judge { solid, waiting, absent }
    }
}

enum Decision {
    Nothing,
    /// Take the reference to this object from its dependents, then let it go.
    SetFree(Vec<String>),
    /// Dependents that must go first.
    Await(Vec<String>),
    /// No dependent blocks it any more.
    Release,
    /// Owners that exist, that wait for this object to go, and that are not in the graph: UID, apiVersion, kind, name.
    Judge {
        solid: usize,
        waiting: Vec<String>,
        absent: Vec<(String, String, String, String)>,
    },
}

#[derive(Clone)]
struct Collector {
    graph: Arc<Mutex<Graph>>,
    queue: Queue,
    cluster: crate::api::Cluster,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let collector = Collector { graph: Arc::default(), queue: Queue::default(), cluster: context.cluster.clone() };
    for informer in context.informers.all() {
        let (collector, kind) = (collector.clone(), Arc::downgrade(informer));
        informer.on_change(move |old, new| {
            let Some(informer) = kind.upgrade() else { return };
            let uid = |object: &Value| text(&object["metadata"], "uid").to_owned();
            let look = collector.with(|graph| {
                let mut look = Vec::new();
                // Deleted and made again between two looks: the old UID is gone.
                if let Some(old) = old.filter(|old| new.is_none_or(|new| uid(new) != uid(old))) {
                    look.extend(graph.remove(&uid(old)));
                }
                if let Some(new) = new {
                    look.extend(graph.upsert(&informer, new));
                }
                look
            });
            for uid in look {
                collector.queue.add(Key::new("", &uid));
            }
        });
    }
    Box::new(move |context| {
        let queue = collector.queue.clone();
        queue.work("garbage", 4, &context.stop, move |key| {
            let collector = collector.clone();
            async move { collector.reconcile(&key.name).await }
        });
    })
}

impl Collector {
    fn with<R>(&self, act: impl FnOnce(&mut Graph) -> R) -> R {
        // Nothing under this lock panics half way through a change.
        act(&mut self.graph.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn place(&self, uid: &str) -> Option<(Arc<Informer>, Key)> {
        self.with(|graph| graph.nodes.get(uid).map(|node| (Arc::clone(&node.informer), node.key.clone())))
    }

    async fn reconcile(&self, uid: &str) -> Result<Option<Duration>, StatusError> {
        match self.with(|graph| graph.decide(uid)) {
            Decision::Nothing => {}
            Decision::SetFree(dependents) => {
                for dependent in dependents {
                    self.drop_references(&dependent, &[uid.to_owned()]).await?;
                }
                self.drop_finalizer(uid, ORPHAN).await?;
            }
            Decision::Await(dependents) => {
                for dependent in dependents {
                    self.queue.add(Key::new("", &dependent));
                }
            }
            Decision::Release => self.drop_finalizer(uid, FOREGROUND).await?,
            Decision::Judge { mut solid, waiting, absent } => {
                let mut gone = Vec::new();
                for (owner, api_version, kind, name) in absent {
                    if self.is_gone(uid, &owner, &api_version, &kind, &name).await? {
                        gone.push(owner);
                    } else {
                        solid += 1;
                    }
                }
                if solid > 0 {
                    let useless: Vec<String> = gone.into_iter().chain(waiting).collect();
                    if !useless.is_empty() {
                        self.drop_references(uid, &useless).await?;
                    }
                } else {
                    self.delete(uid, !waiting.is_empty()).await?;
                }
            }
        }
        Ok(None)
    }

    /// Whether an owner that is not in the graph really does not exist. What cannot be known is taken to exist.
    async fn is_gone(
        &self,
        dependent: &str,
        owner: &str,
        api_version: &str,
        kind: &str,
        name: &str,
    ) -> Result<bool, StatusError> {
        let (Some(info), Some((_, key))) = (by_kind(api_version, kind), self.place(dependent)) else {
            return Ok(false);
        };
        if info.namespaced && key.namespace.is_empty() {
            return Ok(false);
        }
        let namespace = if info.namespaced { key.namespace.as_str() } else { "" };
        match self.cluster.objects(info.group, info.plural).get(namespace, name).await {
            Ok(found) => Ok(found["metadata"]["uid"] != owner),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, uid: &str, foreground: bool) -> Result<(), StatusError> {
        let Some((informer, key)) = self.place(uid) else { return Ok(()) };
        let has_dependents = self.with(|graph| graph.dependents.contains_key(uid));
        let propagation = if foreground && has_dependents { Propagation::Foreground } else { Propagation::Background };
        let propagation = Some(propagation);
        let options = DeleteOptions { uid: Some(uid.to_owned()), propagation, ..DeleteOptions::default() };
        ignore_gone(informer.objects.delete(&key.namespace, &key.name, &options).await)
    }

    async fn drop_references(&self, uid: &str, owners: &[String]) -> Result<(), StatusError> {
        let Some((informer, key)) = self.place(uid) else { return Ok(()) };
        let removals: Vec<Value> = owners.iter().map(|owner| json!({"$patch": "delete", "uid": owner})).collect();
        let patch = json!({"metadata": {"uid": uid, "ownerReferences": removals}});
        let (kind, options) = (PatchType::Strategic, WriteOptions::default());
        ignore_gone(informer.objects.patch(&key.namespace, &key.name, "", kind, &patch, &options).await)
    }

    async fn drop_finalizer(&self, uid: &str, finalizer: &'static str) -> Result<(), StatusError> {
        let Some((informer, key)) = self.place(uid) else { return Ok(()) };
        let uid = uid.to_owned();
        let changed = informer
            .objects
            .modify(&key.namespace, &key.name, "", move |object| {
                let metadata = &mut object["metadata"];
                if text(metadata, "uid") != uid {
                    return false;
                }
                let Some(finalizers) = metadata.get_mut("finalizers").and_then(Value::as_array_mut) else {
                    return false;
                };
                let before = finalizers.len();
                finalizers.retain(|other| other != finalizer);
                finalizers.len() != before
            })
            .await;
        ignore_gone(changed)
    }
}

/// What is gone, or is another object by now, needs nothing.
fn ignore_gone(result: Result<Value, StatusError>) -> Result<(), StatusError> {
    match result {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}
