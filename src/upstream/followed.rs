//! The ConfigMaps and Secrets that pods here use: each is watched by its name as long as a pod uses it, and its pods are told of
//! changes (A9.8). What is immutable is read once and watched no longer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use stoker_model::handle::ObjectName;
use stoker_model::pod::PodUid;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::client::{ApiServer, query_value};
use super::watch::{Change, Sink, Watchable, Watched, run};

/// One kind of object that can be followed.
pub(super) trait Followable: Watchable + Sync + 'static {
    /// Plural, as in paths.
    const PLURAL: &'static str;
    /// Its name in the table.
    fn key(namespace: &str, name: &str) -> ObjectName;
    fn name(&self) -> Option<&str>;
    fn is_immutable(&self) -> bool;
    /// Leaves out what nobody here reads.
    fn slim(&mut self);
    fn wrap(object: Arc<Self>) -> Stored;
    fn unwrap(stored: &Stored) -> Option<Arc<Self>>;
}

/// An object of any kind.
#[derive(Clone, Debug)]
pub(super) enum Stored {
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
}

macro_rules! followable {
    ($kind:ident, $plural:literal) => {
        impl Watchable for $kind {
            fn resource_version(&self) -> &str {
                self.metadata.resource_version.as_deref().unwrap_or_default()
            }
        }

        impl Followable for $kind {
            const PLURAL: &'static str = $plural;

            fn key(namespace: &str, name: &str) -> ObjectName {
                ObjectName::$kind(namespace.to_owned(), name.to_owned())
            }

            fn name(&self) -> Option<&str> {
                self.metadata.name.as_deref()
            }

            fn is_immutable(&self) -> bool {
                self.immutable.unwrap_or_default()
            }

            fn slim(&mut self) {
                self.metadata.managed_fields = None;
                self.metadata.annotations = None;
            }

            fn wrap(object: Arc<Self>) -> Stored {
                Stored::$kind(object)
            }

            fn unwrap(stored: &Stored) -> Option<Arc<Self>> {
                match stored {
                    Stored::$kind(object) => Some(object.clone()),
                    _ => None,
                }
            }
        }
    };
}

followable!(ConfigMap, "configmaps");
followable!(Secret, "secrets");

#[derive(Debug, Default)]
struct Entry {
    pods: BTreeMap<PodUid, Arc<Notify>>,
    /// `None`: not known yet. `Some(None)`: there is no such object.
    state: Option<Option<Stored>>,
    /// What its pods know of: another version is news to them.
    version: String,
    stop: CancellationToken,
}

/// The objects in use. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct Followed(Arc<Mutex<HashMap<ObjectName, Entry>>>);

impl Followed {
    fn with<R>(&self, act: impl FnOnce(&mut HashMap<ObjectName, Entry>) -> R) -> R {
        // Nothing that can panic runs under this lock, so a poisoned one is whole.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The pod uses exactly these; whoever is new must be watched with [`watch`], and the token tells when to stop.
    pub(super) fn set(
        &self,
        pod: &PodUid,
        objects: BTreeSet<ObjectName>,
        changed: &Arc<Notify>,
    ) -> Vec<(ObjectName, CancellationToken)> {
        self.with(|all| {
            all.retain(|name, entry| {
                if !objects.contains(name) {
                    entry.pods.remove(pod);
                }
                let unused = entry.pods.is_empty();
                if unused {
                    entry.stop.cancel();
                }
                !unused
            });
            let mut fresh = Vec::new();
            for name in objects {
                let entry = all.entry(name.clone()).or_insert_with(|| {
                    let entry = Entry::default();
                    fresh.push((name, entry.stop.clone()));
                    entry
                });
                entry.pods.insert(pod.clone(), changed.clone());
            }
            fresh
        })
    }

    /// Whether the pod uses any.
    pub(super) fn uses(&self, pod: &PodUid) -> bool {
        self.with(|all| all.values().any(|entry| entry.pods.contains_key(pod)))
    }

    /// What is known of an object; `None`: ask the API server.
    pub(super) fn get<T: Followable>(&self, namespace: &str, name: &str) -> Option<Option<Arc<T>>> {
        let state = self.with(|all| all.get(&T::key(namespace, name)).and_then(|entry| entry.state.clone()))?;
        Some(state.as_ref().and_then(T::unwrap))
    }

    /// A pod was given this version by a direct read.
    pub(super) fn was_read<T: Followable>(&self, namespace: &str, name: &str, object: &Arc<T>) {
        self.with(|all| {
            if let Some(entry) = all.get_mut(&T::key(namespace, name))
                && entry.state.is_none()
            {
                entry.version = object.resource_version().to_owned();
                if object.is_immutable() {
                    entry.state = Some(Some(T::wrap(object.clone())));
                    entry.stop.cancel();
                }
            }
        });
    }

    fn put<T: Followable>(&self, key: &ObjectName, object: Option<T>) {
        let version = object.as_ref().map(|o| o.resource_version().to_owned()).unwrap_or_default();
        let immutable = object.as_ref().is_some_and(Followable::is_immutable);
        let stored = object.map(|mut object| {
            object.slim();
            T::wrap(Arc::new(object))
        });
        let told: Vec<Arc<Notify>> = self.with(|all| {
            let Some(entry) = all.get_mut(key) else { return Vec::new() };
            let known = entry.state.is_none() && entry.version.is_empty() && stored.is_none();
            let same = entry.version == version && !version.is_empty();
            entry.state = Some(stored);
            entry.version = version;
            if immutable {
                entry.stop.cancel();
            }
            if same || known { Vec::new() } else { entry.pods.values().cloned().collect() }
        });
        for changed in told {
            changed.notify_one();
        }
    }
}

/// Watches one object until nobody uses it or it cannot change any more.
pub(super) async fn watch<T: Followable>(
    api: ApiServer,
    all: Followed,
    namespace: String,
    name: String,
    stop: CancellationToken,
) {
    let watched = Watched {
        path: format!("/api/v1/namespaces/{}/{}", query_value(&namespace), T::PLURAL),
        fields: format!("metadata.name={name}"),
        labels: String::new(),
    };
    let mut sink = ObjectSink { key: T::key(&namespace, &name), name, all, seen: false };
    tokio::select! {
        () = stop.cancelled() => {}
        () = run::<T, _>(&api, &watched, &mut sink) => {}
    }
}

struct ObjectSink {
    key: ObjectName,
    name: String,
    all: Followed,
    /// The running list named it.
    seen: bool,
}

impl<T: Followable> Sink<T> for ObjectSink {
    async fn take(&mut self, change: Change<T>) -> bool {
        match change {
            Change::Listing => self.seen = false,
            Change::Present(object) if object.name() == Some(&self.name) => {
                self.seen = true;
                self.all.put(&self.key, Some(object));
            }
            Change::Gone(object) if object.name() == Some(&self.name) => self.all.put::<T>(&self.key, None),
            Change::Unreadable { meta, gone: true } if meta.name == self.name => self.all.put::<T>(&self.key, None),
            // It is there: what was read of it last stays.
            Change::Unreadable { meta, gone: false } if meta.name == self.name => self.seen = true,
            Change::Listed if !self.seen => self.all.put::<T>(&self.key, None),
            Change::Present(_) | Change::Gone(_) | Change::Unreadable { .. } | Change::Listed => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(version: &str, immutable: bool) -> ConfigMap {
        let mut map = ConfigMap { immutable: Some(immutable), ..ConfigMap::default() };
        map.metadata.name = Some("m".into());
        map.metadata.resource_version = Some(version.into());
        map
    }

    fn told(changed: &Arc<Notify>) -> bool {
        use futures::FutureExt;
        changed.notified().now_or_never().is_some()
    }

    #[test]
    fn pods_are_told_of_what_they_do_not_know() {
        // A9.8
        let (all, changed) = (Followed::default(), Arc::new(Notify::new()));
        let (pod, key) = (PodUid::new("p"), ConfigMap::key("n", "m"));
        assert_eq!(all.set(&pod, [key.clone()].into(), &changed).len(), 1);
        assert!(all.set(&pod, [key.clone()].into(), &changed).is_empty(), "it is watched already");
        assert!(all.get::<ConfigMap>("n", "m").is_none());
        all.was_read("n", "m", &Arc::new(map("1", false)));
        all.put(&key, Some(map("1", false)));
        assert!(!told(&changed), "it was given this version");
        assert!(all.get::<ConfigMap>("n", "m").flatten().is_some());
        all.put(&key, Some(map("2", false)));
        assert!(told(&changed));
        all.put::<ConfigMap>(&key, None);
        assert!(told(&changed));
        assert!(matches!(all.get::<ConfigMap>("n", "m"), Some(None)));
        all.set(&pod, BTreeSet::new(), &changed);
        assert!(all.get::<ConfigMap>("n", "m").is_none());
    }

    #[test]
    fn the_watch_ends_with_its_last_pod_or_when_nothing_can_change() {
        // A9.8
        let (all, changed) = (Followed::default(), Arc::new(Notify::new()));
        let key = ConfigMap::key("n", "m");
        let stop = all.set(&PodUid::new("a"), [key.clone()].into(), &changed).remove(0).1;
        all.set(&PodUid::new("b"), [key.clone()].into(), &changed);
        assert!(all.uses(&PodUid::new("a")) && !all.uses(&PodUid::new("c")));
        all.set(&PodUid::new("a"), BTreeSet::new(), &changed);
        assert!(!stop.is_cancelled());
        all.set(&PodUid::new("b"), BTreeSet::new(), &changed);
        assert!(stop.is_cancelled());

        let stop = all.set(&PodUid::new("a"), [key.clone()].into(), &changed).remove(0).1;
        all.put(&key, Some(map("3", true)));
        assert!(stop.is_cancelled() && all.get::<ConfigMap>("n", "m").flatten().is_some());
    }
}
