//! One watch per kind for all controllers: a cache of the objects, and callbacks that turn changes into queue keys.
//!
//! A controller that has written waits with [`Informer::wait_for`] until its own write is in the cache, so that it never
//! plans from a view older than its last step. Kinds that only the garbage collector looks at are kept as bare metadata.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::queue::Key;
use crate::api::{Change, Cluster, ListOptions, Objects};
use crate::resources::ResourceInfo;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// After a failed list or watch.
const RETRY: Duration = Duration::from_millis(500);

/// Told of a change: the object before and after.
type Handler = Box<dyn Fn(Option<&Arc<Value>>, Option<&Arc<Value>>) + Send + Sync>;

/// The objects of one kind.
pub(super) struct Informer {
    pub(super) objects: Objects,
    whole: bool,
    /// By the value of this label, too.
    label: Option<&'static str>,
    cache: RwLock<Cache>,
    handlers: RwLock<Vec<Handler>>,
    seen: watch::Sender<u64>,
}

#[derive(Default)]
struct Cache {
    objects: BTreeMap<Key, Arc<Value>>,
    /// Names of objects by their namespace and the value of the label.
    labelled: BTreeMap<Key, BTreeSet<String>>,
}

impl Cache {
    /// Exchanges one object; returns the one before.
    fn put(&mut self, key: Key, new: Option<&Arc<Value>>, label: Option<&str>) -> Option<Arc<Value>> {
        let old = match new {
            Some(object) => self.objects.insert(key.clone(), Arc::clone(object)),
            None => self.objects.remove(&key),
        };
        let Some(label) = label else { return old };
        let place = |object: &Arc<Value>| Key::new(&key.namespace, text(&object["metadata"]["labels"], label));
        let (before, after) = (old.as_ref().map(place), new.map(place));
        if before != after {
            if let Some(before) = before
                && let Some(names) = self.labelled.get_mut(&before)
            {
                names.remove(&key.name);
                if names.is_empty() {
                    self.labelled.remove(&before);
                }
            }
            if let Some(after) = after {
                self.labelled.entry(after).or_default().insert(key.name);
            }
        }
        old
    }

    fn labelled(&self, namespace: &str, value: &str) -> Vec<Arc<Value>> {
        let names = self.labelled.get(&Key::new(namespace, value)).into_iter().flatten();
        names.filter_map(|name| self.objects.get(&Key::new(namespace, name)).cloned()).collect()
    }
}

impl Informer {
    fn new(objects: Objects, whole: bool, label: Option<&'static str>) -> Arc<Self> {
        let seen = watch::Sender::new(0);
        Arc::new(Self { objects, whole, label, cache: RwLock::default(), handlers: RwLock::default(), seen })
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
        self.cached(|cache| cache.objects.get(&Key::new(namespace, name)).cloned())
    }

    /// The objects of a namespace; of all if it is empty.
    pub(super) fn list(&self, namespace: &str) -> Vec<Arc<Value>> {
        self.cached(|cache| {
            if namespace.is_empty() {
                return cache.objects.values().cloned().collect();
            }
            let from_here = cache.objects.range(Key::new(namespace, "")..);
            from_here.take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| Arc::clone(object)).collect()
        })
    }

    /// The objects of a namespace with this value of the label that the kind is indexed by ([`INDEXED`]).
    pub(super) fn labelled(&self, namespace: &str, value: &str) -> Vec<Arc<Value>> {
        self.cached(|cache| cache.labelled(namespace, value))
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

    fn cached<R>(&self, read: impl FnOnce(&Cache) -> R) -> R {
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
        let mut gone: Vec<Key> = self.cached(|cache| cache.objects.keys().cloned().collect());
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
        let old = self.cache.write().unwrap_or_else(PoisonError::into_inner).put(key, new.as_ref(), self.label);
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

/// Kinds that are looked up by a label, whole as they are: to look through all slices for those of a Service would cost more with each.
const INDEXED: &[((&str, &str), &str)] = &[(("discovery.k8s.io", "endpointslices"), stoker_model::names::SERVICE_NAME)];

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
                    let label = INDEXED.iter().find(|(kind, _)| *kind == key).map(|(_, label)| *label);
                    (key, Informer::new(cluster.objects(info.group, info.plural), WHOLE.contains(&key), label))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_by_their_label_as_it_is_now() {
        let slice = |service: &str| Arc::new(json!({"metadata": {"labels": {"of": service}}}));
        let mut cache = Cache::default();
        let mut put = |name: &str, new: Option<Arc<Value>>| cache.put(Key::new("n", name), new.as_ref(), Some("of"));
        put("a", Some(slice("web")));
        put("b", Some(slice("web")));
        put("c", Some(slice("db")));
        assert_eq!(put("b", Some(slice("db"))), Some(slice("web")));
        assert_eq!(put("c", None), Some(slice("db")));
        put("d", Some(Arc::new(json!({"metadata": {}}))));
        let count = |value: &str| cache.labelled("n", value).len();
        assert_eq!((count("web"), count("db"), count(""), count("other")), (1, 1, 1, 0));
        assert!(cache.labelled("m", "web").is_empty());
        assert_eq!(cache.labelled.len(), 3, "nothing is left of what nobody has any more");
    }
}
