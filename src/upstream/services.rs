//! Services and EndpointSlices of the cluster as slim objects: changes for the data path, and environment variables.
//!
//! A list that has to start over does not stop the data path: what it no longer names is reported as gone when it is
//! complete. So [`ServiceChange::Restarting`] comes once, at the start.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Node;
use stoker_model::handle::{ApiError, ServiceLinks};
use stoker_model::names::{SERVICE_HEADLESS, SERVICE_NAME, SERVICE_PROXY_NAME};
use stoker_model::service::{
    EndpointSlice, KeptSlice, NamespacedName, NodeTopology, Service, ServiceByName, ServiceChange, Shared,
};
use tokio::sync::mpsc;

use super::client::{ApiServer, ConnectError};
use super::watch::{Change, Sink, Watchable, Watched, run};

/// Who reads the Services: the server sends no more than they need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceReaders {
    /// The data path alone: what kube-proxy asks for.
    DataPath,
    /// Environment variables of pods too, which also tell of Services that another proxy serves; the data path leaves those out.
    Pods,
    /// Cluster DNS too, which also answers for Services without a cluster IP.
    Dns,
}

/// Watches Services and EndpointSlices (B1.1), by a connection of its own that takes in bursts of events together, and sends what changes;
/// the watch ends when the receiver is gone.
///
/// # Errors
/// As [`ApiServer::new`].
pub fn watch_services(
    api: &ApiServer,
    store: ServiceStore,
    changes: mpsc::Sender<ServiceChange>,
    readers: ServiceReaders,
) -> Result<impl Future<Output = ()> + Send + use<>, ConnectError> {
    Ok(watch_by(api.gathering()?, store, changes, readers))
}

async fn watch_by(api: ApiServer, store: ServiceStore, changes: mpsc::Sender<ServiceChange>, readers: ServiceReaders) {
    let unless_headless = |text: &str| if readers == ServiceReaders::Dns { String::new() } else { text.to_owned() };
    let ours = if readers == ServiceReaders::DataPath { format!("!{SERVICE_PROXY_NAME}") } else { String::new() };
    let services = Watched { path: "/api/v1/services", fields: unless_headless("spec.clusterIP!=None"), labels: ours };
    let slices = Watched {
        path: "/apis/discovery.k8s.io/v1/endpointslices",
        fields: String::new(),
        labels: unless_headless(&format!("!{SERVICE_HEADLESS}")),
    };
    let lists = Lists::default();
    if changes.send(ServiceChange::Restarting).await.is_err() {
        return;
    }
    let shared = Arc::<Mutex<Shared>>::default();
    let mut service_sink =
        ServiceSink { shared: shared.clone(), store, changes: changes.clone(), seen: None, lists: lists.clone() };
    let mut slice_sink = SliceSink { shared, known: HashSet::default(), seen: None, changes, lists };
    tokio::join!(run(&api, &services, &mut service_sink), run(&api, &slices, &mut slice_sink));
}

/// One Service and its slices, for a command that looks once.
pub async fn fetch_service(api: &ApiServer, name: &NamespacedName) -> Result<(Service, Vec<EndpointSlice>), ApiError> {
    #[derive(serde::Deserialize)]
    struct List {
        items: Vec<EndpointSlice>,
    }
    let NamespacedName { namespace, name } = name;
    let service = api.get(&format!("/api/v1/namespaces/{namespace}/services/{name}")).await?;
    // `=` and `/` of a selector stand for themselves only when they are escaped.
    let selector = SERVICE_NAME.replace('/', "%2F");
    let path =
        format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector={selector}%3D{name}");
    let list: List = api.get(&path).await?;
    Ok((service, list.items))
}

/// Name, zone and addresses of a node, as the data path on it sees them.
pub async fn fetch_topology(api: &ApiServer, name: &str) -> Result<NodeTopology, ApiError> {
    let node: Node = api.get(&format!("/api/v1/nodes/{name}")).await?;
    let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get("topology.kubernetes.io/zone"));
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    Ok(NodeTopology {
        name: name.into(),
        zone: zone.filter(|zone| !zone.is_empty()).map(|zone| zone.as_str().into()),
        ips: addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect(),
    })
}

impl Watchable for Service {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Watchable for EndpointSlice {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// Which of the two first lists are complete.
#[derive(Clone, Default)]
struct Lists(Arc<std::sync::atomic::AtomicU8>);

impl Lists {
    /// Notes one list; true for the one that makes both complete, once.
    fn complete(&self, list: u8) -> bool {
        let before = self.0.fetch_or(list, std::sync::atomic::Ordering::AcqRel);
        before | list == 3 && before != 3
    }
}

/// The Services last seen, by namespace and name. Objects are shared with the data path.
#[derive(Clone, Debug, Default)]
pub struct ServiceStore(Arc<RwLock<Stored>>);

#[derive(Debug, Default)]
struct Stored {
    services: BTreeSet<ServiceByName>,
    listed: bool,
}

impl ServiceStore {
    /// How many Services there are, and whether all have been listed.
    pub fn count(&self) -> (usize, bool) {
        let stored = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (stored.services.len(), stored.listed)
    }

    fn write(&self, change: impl FnOnce(&mut Stored)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl ServiceLinks for ServiceStore {
    fn environment(&self, namespace: &str, enable_service_links: bool) -> Option<BTreeMap<String, String>> {
        let stored = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if !stored.listed {
            return None;
        }
        let key = |namespace: &str, name: &str| NamespacedName { namespace: namespace.into(), name: name.into() };
        let mut variables = BTreeMap::new();
        // Of the pod's own namespace one of that name takes its place, as a whole.
        let own = stored.services.get(&key(namespace, "kubernetes"));
        let own = own.filter(|own| enable_service_links && has_ip(&own.0));
        if let Some(ServiceByName(master)) = own.or_else(|| stored.services.get(&key("default", "kubernetes"))) {
            service_variables(master, &mut variables);
        }
        if enable_service_links {
            for ServiceByName(service) in stored.services.range(key(namespace, "")..) {
                if &*service.metadata.key.namespace != namespace {
                    break;
                }
                service_variables(service, &mut variables);
            }
        }
        Some(variables)
    }
}

/// The variables of one Service (A8.6).
fn service_variables(service: &Service, to: &mut BTreeMap<String, String>) {
    let ip = service.spec.cluster_ip();
    let Some(first) = service.spec.ports.first().filter(|_| has_ip(service)) else { return };
    let prefix = variable_name(&service.metadata.key.name);
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_string() };
    to.insert(format!("{prefix}_SERVICE_HOST"), ip.to_string());
    to.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for (index, port) in service.spec.ports.iter().enumerate() {
        if !port.name.is_empty() {
            to.insert(format!("{prefix}_SERVICE_PORT_{}", variable_name(&port.name)), port.port.to_string());
        }
        let protocol = if port.protocol.is_empty() { "TCP" } else { port.protocol.as_ref() };
        let lower = protocol.to_ascii_lowercase();
        let url = format!("{lower}://{host}:{}", port.port);
        if index == 0 {
            to.insert(format!("{prefix}_PORT"), url.clone());
        }
        let own = format!("{prefix}_PORT_{}_{protocol}", port.port);
        to.insert(format!("{own}_PROTO"), lower);
        to.insert(format!("{own}_PORT"), port.port.to_string());
        to.insert(format!("{own}_ADDR"), ip.to_string());
        to.insert(own, url);
    }
}

fn has_ip(service: &Service) -> bool {
    !matches!(service.spec.cluster_ip(), "" | "None")
}

fn variable_name(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

/// What both lists have in common, such as namespaces.
type Common = Arc<Mutex<Shared>>;

struct ServiceSink {
    shared: Common,
    store: ServiceStore,
    changes: mpsc::Sender<ServiceChange>,
    /// What the running list named.
    seen: Option<BTreeSet<NamespacedName>>,
    lists: Lists,
}

impl Sink<Service> for ServiceSink {
    async fn take(&mut self, change: Change<Service>) -> bool {
        for change in self.apply(change) {
            if self.changes.send(change).await.is_err() {
                return false;
            }
        }
        true
    }
}

impl ServiceSink {
    fn key(&self, namespace: &str, name: &str) -> NamespacedName {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        NamespacedName { namespace: shared.name(namespace), name: shared.name(name) }
    }

    fn gone(&self, key: NamespacedName) -> ServiceChange {
        self.store.write(|stored| _ = stored.services.remove(&key));
        ServiceChange::ServiceGone(key)
    }

    fn apply(&mut self, change: Change<Service>) -> Vec<ServiceChange> {
        match change {
            Change::Listing => {
                self.seen = Some(BTreeSet::new());
                Vec::new()
            }
            Change::Present(mut service) => {
                let meta = &mut service.metadata;
                meta.key = self.key(&meta.key.namespace, &meta.key.name);
                // Only the watch wants to know it.
                meta.resource_version = Box::default();
                service.spec.keep_once();
                let service = Arc::new(service);
                if let Some(seen) = &mut self.seen {
                    seen.insert(service.metadata.key.clone());
                }
                self.store.write(|stored| {
                    stored.services.replace(ServiceByName(service.clone()));
                });
                vec![ServiceChange::Service(service)]
            }
            Change::Unreadable { meta, gone: false } => {
                let key = self.key(&meta.namespace, &meta.name);
                self.seen.iter_mut().for_each(|seen| seen.extend([key.clone()]));
                Vec::new()
            }
            Change::Unreadable { meta, gone: true } => vec![self.gone(self.key(&meta.namespace, &meta.name))],
            Change::Gone(service) => vec![self.gone(service.metadata.key)],
            Change::Listed => {
                let seen = self.seen.take().unwrap_or_default();
                let mut changes = Vec::new();
                self.store.write(|stored| {
                    stored.services.retain(|ServiceByName(service)| {
                        let key = &service.metadata.key;
                        let stays = seen.contains(key);
                        if !stays {
                            changes.push(ServiceChange::ServiceGone(key.clone()));
                        }
                        stays
                    });
                    stored.listed = true;
                });
                changes.extend(self.lists.complete(1).then_some(ServiceChange::Complete));
                changes
            }
        }
    }
}

/// A slice that equals any other of its name, whatever Service it belongs to.
#[derive(Clone)]
struct SliceByName(Arc<KeptSlice>);

impl SliceByName {
    fn key(&self) -> (&str, &str) {
        (&self.0.service.namespace, &self.0.name)
    }

    fn gone(&self) -> ServiceChange {
        ServiceChange::SliceGone(self.0.service.clone(), self.0.name.clone())
    }
}

impl PartialEq for SliceByName {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for SliceByName {}

impl Hash for SliceByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

struct SliceSink {
    shared: Common,
    /// Slices that were reported and not taken back, shared with who got them.
    known: HashSet<SliceByName>,
    seen: Option<HashSet<SliceByName>>,
    changes: mpsc::Sender<ServiceChange>,
    lists: Lists,
}

impl Sink<EndpointSlice> for SliceSink {
    async fn take(&mut self, change: Change<EndpointSlice>) -> bool {
        for change in self.apply(change) {
            if self.changes.send(change).await.is_err() {
                return false;
            }
        }
        true
    }
}

impl SliceSink {
    fn apply(&mut self, change: Change<EndpointSlice>) -> Vec<ServiceChange> {
        match change {
            Change::Listing => {
                self.seen = Some(HashSet::new());
                Vec::new()
            }
            Change::Present(slice) => {
                let (change, slice) = self.present(&slice);
                // Without the label it belongs to no Service.
                let belongs = !slice.0.service.name.is_empty();
                let before = if belongs {
                    self.seen.iter_mut().for_each(|seen| _ = seen.replace(slice.clone()));
                    self.known.replace(slice.clone())
                } else {
                    self.known.take(&slice)
                };
                // The label may have changed: then the Service that it belonged to loses it.
                let left = before.filter(|before| before.0.service != slice.0.service);
                left.map(|before| before.gone()).into_iter().chain(belongs.then_some(change)).collect()
            }
            Change::Unreadable { meta, gone } => {
                let same =
                    |known: &&SliceByName| *known.0.service.namespace == *meta.namespace && *known.0.name == *meta.name;
                let Some(known) = self.known.iter().find(same).cloned() else { return Vec::new() };
                if gone {
                    self.known.remove(&known);
                    return vec![known.gone()];
                }
                self.seen.iter_mut().for_each(|seen| seen.extend([known.clone()]));
                Vec::new()
            }
            Change::Gone(slice) => {
                let (_, slice) = self.present(&slice);
                self.known.take(&slice).map(|known| known.gone()).into_iter().collect()
            }
            Change::Listed => {
                let seen = self.seen.take().unwrap_or_default();
                let mut changes: Vec<_> = self.known.difference(&seen).map(SliceByName::gone).collect();
                self.known = seen;
                changes.extend(self.lists.complete(2).then_some(ServiceChange::Complete));
                changes
            }
        }
    }

    /// That it is there, and how it is kept.
    fn present(&self, slice: &EndpointSlice) -> (ServiceChange, SliceByName) {
        let shared = &mut *self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = Arc::new(KeptSlice::of(slice, shared));
        (ServiceChange::Slice(kept.clone(), slice.last_change()), SliceByName(kept))
    }
}

#[cfg(test)]
mod tests;
