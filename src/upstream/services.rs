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

use super::client::ApiServer;
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

/// Watches Services and EndpointSlices (B1.1) and sends what changes; ends when the receiver is gone.
pub async fn watch_services(
    api: ApiServer,
    store: ServiceStore,
    changes: mpsc::Sender<ServiceChange>,
    readers: ServiceReaders,
) {
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

/// A slice that equals any other of its name and Service.
#[derive(Clone)]
struct SliceByName(Arc<KeptSlice>);

impl SliceByName {
    fn key(&self) -> (&NamespacedName, &str) {
        (&self.0.service, &self.0.name)
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
                let Some(change) = self.present(&slice) else { return Vec::new() };
                if let ServiceChange::Slice(slice, _) = &change {
                    self.seen.iter_mut().for_each(|seen| _ = seen.replace(SliceByName(slice.clone())));
                    self.known.replace(SliceByName(slice.clone()));
                }
                vec![change]
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
                let Some(ServiceChange::Slice(slice, _)) = self.present(&slice) else { return Vec::new() };
                let gone = SliceByName(slice);
                self.known.remove(&gone);
                vec![gone.gone()]
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

    /// As it is kept. A slice without the label belongs to no Service.
    fn present(&self, slice: &EndpointSlice) -> Option<ServiceChange> {
        slice.metadata.labels.get(SERVICE_NAME)?;
        Some(ServiceChange::slice(slice, &mut self.shared.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str, ip: &str, ports: &str) -> Service {
        serde_json::from_str(&format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}"}},"spec":{{"clusterIP":"{ip}","ports":{ports}}}}}"#
        ))
        .expect("a service")
    }

    fn sink() -> ServiceSink {
        let (changes, _) = mpsc::channel(1);
        let shared = Common::default();
        ServiceSink { shared, store: ServiceStore::default(), changes, seen: None, lists: Lists::default() }
    }

    fn listed(services: Vec<Service>) -> ServiceStore {
        let mut sink = sink();
        sink.apply(Change::Listing);
        for service in services {
            sink.apply(Change::Present(service));
        }
        sink.apply(Change::Listed);
        sink.store
    }

    #[test]
    fn services_become_variables() {
        // A8.6, A8.8
        let web = r#"[{"name":"http","port":80,"protocol":"TCP"},{"name":"dns-udp","port":53,"protocol":"UDP"}]"#;
        let store = listed(vec![
            service("default", "kubernetes", "10.0.0.1", r#"[{"name":"https","port":443}]"#),
            service("shop", "web-front", "10.0.0.9", web),
            service("other", "db", "10.0.0.8", r#"[{"port":1}]"#),
            service("shop", "headless", "None", r#"[{"port":1}]"#),
            service("shop", "six", "fd00::9", r#"[{"port":9,"protocol":"SCTP"}]"#),
        ]);
        let variables = store.environment("shop", true).expect("listed");
        for (name, value) in [
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("KUBERNETES_PORT", "tcp://10.0.0.1:443"),
            ("KUBERNETES_PORT_443_TCP", "tcp://10.0.0.1:443"),
            ("WEB_FRONT_SERVICE_HOST", "10.0.0.9"),
            ("WEB_FRONT_SERVICE_PORT", "80"),
            ("WEB_FRONT_SERVICE_PORT_HTTP", "80"),
            ("WEB_FRONT_SERVICE_PORT_DNS_UDP", "53"),
            ("WEB_FRONT_PORT", "tcp://10.0.0.9:80"),
            ("WEB_FRONT_PORT_80_TCP", "tcp://10.0.0.9:80"),
            ("SIX_SERVICE_HOST", "fd00::9"),
            ("SIX_PORT", "sctp://[fd00::9]:9"),
            ("SIX_PORT_9_SCTP_ADDR", "fd00::9"),
            ("WEB_FRONT_PORT_53_UDP", "udp://10.0.0.9:53"),
            ("WEB_FRONT_PORT_53_UDP_PROTO", "udp"),
            ("WEB_FRONT_PORT_53_UDP_PORT", "53"),
            ("WEB_FRONT_PORT_53_UDP_ADDR", "10.0.0.9"),
        ] {
            assert_eq!(variables.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!variables.contains_key("DB_SERVICE_HOST"), "it is in another namespace");
        assert!(!variables.contains_key("HEADLESS_SERVICE_HOST"), "it has no address");
        let without = store.environment("shop", false).expect("listed");
        assert!(without.contains_key("KUBERNETES_SERVICE_HOST") && !without.contains_key("WEB_FRONT_SERVICE_HOST"));
        assert_eq!(without["KUBERNETES_SERVICE_PORT"], "443");
        let own = listed(vec![
            service("default", "kubernetes", "10.0.0.1", r#"[{"name":"https","port":443}]"#),
            service("shop", "kubernetes", "10.0.0.2", r#"[{"port":80}]"#),
        ]);
        let variables = own.environment("shop", true).expect("listed");
        assert_eq!(variables["KUBERNETES_SERVICE_HOST"], "10.0.0.2");
        assert!(!variables.contains_key("KUBERNETES_PORT_443_TCP"), "nothing of the other one is left");
        assert_eq!(own.environment("shop", false).expect("listed")["KUBERNETES_SERVICE_HOST"], "10.0.0.1");
        let default = store.environment("default", true).expect("listed");
        assert!(default.contains_key("KUBERNETES_SERVICE_HOST") && !default.contains_key("WEB_FRONT_SERVICE_HOST"));
    }

    #[test]
    fn there_are_no_variables_before_the_first_list() {
        // A8.6
        assert_eq!(ServiceStore::default().environment("default", true), None);
    }

    #[test]
    fn a_list_that_starts_over_reports_what_is_gone() {
        let mut sink = sink();
        sink.apply(Change::Listing);
        sink.apply(Change::Present(service("a", "x", "10.0.0.1", "[]")));
        sink.apply(Change::Present(service("a", "y", "10.0.0.2", "[]")));
        assert!(sink.apply(Change::Listed).is_empty(), "slices are not complete yet");
        sink.apply(Change::Listing);
        sink.apply(Change::Present(service("a", "y", "10.0.0.2", "[]")));
        let changes = sink.apply(Change::Listed);
        let [ServiceChange::ServiceGone(gone)] = changes.as_slice() else { panic!("{changes:?}") };
        assert_eq!(&*gone.name, "x");
    }

    #[test]
    fn complete_comes_once_when_both_lists_are() {
        // B1.2
        let lists = Lists::default();
        assert!(!lists.complete(1));
        assert!(!lists.complete(1));
        assert!(lists.complete(2));
        assert!(!lists.complete(1));
    }
}
