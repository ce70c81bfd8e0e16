//! One watch per kind for all controllers: a cache of the objects, and callbacks that turn changes into queue keys.
//!
//! A controller that has written waits with [`Informer::wait_for`] until its own write is in the cache, so that it never
//! plans from a view older than its last step. Kinds that only the garbage collector looks at are kept as bare metadata.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::queue::Key;
use crate::api::{Change, Cluster, ListOptions, Objects};
use crate::resources::ResourceInfo;
use crate::resources::status::StatusError;

/// After a failed list or watch.
const RETRY: Duration = Duration::from_millis(500);

/// Told of a change: the object before and after.
type Handler = Box<dyn Fn(Option<&Arc<Value>>, Option<&Arc<Value>>) + Send + Sync>;

/// The objects of one kind.
pub(super) struct Informer {
    pub(super) objects: Objects,
    whole: bool,
    cache: RwLock<BTreeMap<Key, Arc<Value>>>,
    handlers: RwLock<Vec<Handler>>,
    seen: watch::Sender<u64>,
}

impl Informer {
    fn new(objects: Objects, whole: bool) -> Arc<Self> {
        let seen = watch::Sender::new(0);
        Arc::new(Self { objects, whole, cache: RwLock::default(), handlers: RwLock::default(), seen })
    }

    /// The kind.
    pub(super) fn info(&self) -> &'static ResourceInfo {
        self.objects.info
    }

    /// Registers a callback. Those registered before the start see every object as new.
    pub(super) fn on_change(&self, handler: impl Fn(Option<&Arc<Value>>, Option<&Arc<Value>>) + Send + Sync + 'static) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(handler));
    }

    /// One object.
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.cached(|cache| cache.get(&Key::new(namespace, name)).cloned())
    }

    /// The objects of a namespace; of all if it is empty.
    pub(super) fn list(&self, namespace: &str) -> Vec<Arc<Value>> {
        self.cached(|cache| {
            if namespace.is_empty() {
                return cache.values().cloned().collect();
            }
            let from_here = cache.range(Key::new(namespace, "")..);
            from_here.take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| Arc::clone(object)).collect()
        })
    }

    /// Waits until everything up to the version that `written` has is in the cache.
    pub(super) async fn wait_for(&self, written: &Value) {
        let version = version_of(written);
        // An error means that the informer has ended, as the process does.
        let _ = self.seen.subscribe().wait_for(|seen| *seen >= version).await;
    }

    async fn wait_until_listed(&self) {
        let _ = self.seen.subscribe().wait_for(|seen| *seen > 0).await;
    }

    fn cached<R>(&self, read: impl FnOnce(&BTreeMap<Key, Arc<Value>>) -> R) -> R {
        read(&self.cache.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = self.follow() => result,
            };
            if let Err(error) = result {
                tracing::debug!(%error, kind = self.info().kind, "a watch ended; listing again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn follow(&self) -> Result<(), StatusError> {
        let options = ListOptions::default();
        let list = self.objects.list("", &options).await?;
        self.replace(list.items);
        self.seen.send_replace(list.resource_version.max(1));
        let mut watch = self.objects.watch("", &options, list.resource_version).await?;
        loop {
            match watch.next().await? {
                Change::Added(object) | Change::Modified(object) => {
                    let version = version_of(&object);
                    self.apply(Key::of(&object), Some(object));
                    self.seen.send_replace(version);
                }
                Change::Deleted(object) => {
                    let version = version_of(&object);
                    self.apply(Key::of(&object), None);
                    self.seen.send_if_modified(|seen| {
                        let later = version > *seen;
                        *seen = (*seen).max(version);
                        later
                    });
                }
                Change::Bookmark(version) => {
                    self.seen.send_replace(version);
                }
            }
        }
    }

    fn replace(&self, items: Vec<Value>) {
        let mut gone: Vec<Key> = self.cached(|cache| cache.keys().cloned().collect());
        for object in items {
            let key = Key::of(&object);
            if let Ok(place) = gone.binary_search(&key) {
                gone.remove(place);
            }
            self.apply(key, Some(object));
        }
        for key in gone {
            self.apply(key, None);
        }
    }

    fn apply(&self, key: Key, object: Option<Value>) {
        let new = object.map(|object| Arc::new(self.slim(object)));
        let old = {
            let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
            match &new {
                Some(object) => cache.insert(key, Arc::clone(object)),
                None => cache.remove(&key),
            }
        };
        if new.is_none() && old.is_none() {
            return;
        }
        for handler in self.handlers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            handler(old.as_ref(), new.as_ref());
        }
    }

    /// What is worth keeping: nobody here reads managedFields, which are half of an object.
    fn slim(&self, mut object: Value) -> Value {
        if self.whole {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("managedFields");
            }
            // Objects of a list may come without.
            object["kind"] = json!(self.info().kind);
            object["apiVersion"] = json!(self.info().api_version());
            return object;
        }
        let metadata = &mut object["metadata"];
        let mut kept = json!({});
        for key in ["name", "namespace", "uid", "resourceVersion", "ownerReferences", "finalizers", "deletionTimestamp"]
        {
            if metadata.get(key).is_some() {
                kept[key] = metadata[key].take();
            }
        }
        json!({"metadata": kept})
    }
}

/// The resourceVersion of an object as a number.
pub(super) fn version_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// Kinds that controllers read whole, by group and plural.
const WHOLE: &[(&str, &str)] = &[
    ("", "endpoints"),
    ("", "namespaces"),
    ("", "nodes"),
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "pods"),
    ("", "resourcequotas"),
    ("", "services"),
    ("apps", "controllerrevisions"),
    ("apps", "daemonsets"),
    ("apps", "deployments"),
    ("apps", "replicasets"),
    ("apps", "statefulsets"),
    ("batch", "cronjobs"),
    ("batch", "jobs"),
    ("certificates.k8s.io", "certificatesigningrequests"),
    ("coordination.k8s.io", "leases"),
    ("discovery.k8s.io", "endpointslices"),
    ("networking.k8s.io", "ipaddresses"),
    ("networking.k8s.io", "servicecidrs"),
    ("policy", "poddisruptionbudgets"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
];

/// An informer for each kind that is stored, but events.
pub(super) struct Informers(BTreeMap<(&'static str, &'static str), Arc<Informer>>);

impl Informers {
    pub(super) fn new(cluster: &Cluster) -> Self {
        let kinds = crate::resources::all().filter(|info| {
            // Events are of no interest to any controller.
            info.is_stored() && info.view.is_none() && info.verbs.contains(&"watch") && info.plural != "events"
        });
        Self(
            kinds
                .map(|info| {
                    let key = (info.group, info.plural);
                    (key, Informer::new(cluster.objects(info.group, info.plural), WHOLE.contains(&key)))
                })
                .collect(),
        )
    }

    /// The informer of a kind that controllers use.
    pub(super) fn of(&self, group: &'static str, plural: &'static str) -> Arc<Informer> {
        Arc::clone(self.0.get(&(group, plural)).expect("controllers name kinds of the table of `resources`"))
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Informer>> {
        self.0.values()
    }

    /// Starts all watches and waits until every kind was listed once.
    pub(super) async fn start(&self, stop: &CancellationToken) {
        for informer in self.all() {
            tokio::spawn(Arc::clone(informer).run(stop.clone()));
        }
        for informer in self.all() {
            informer.wait_until_listed().await;
        }
    }
}
