//! Slim Services and EndpointSlices: only what the service data path, service environment variables and DNS read.
//!
//! Decoded straight from the API's JSON; a field that is not here is never kept in memory. There are tens of thousands: a Service
//! stays as it is decoded, and of an EndpointSlice a [`KeptSlice`], one for all who read it.

mod catalogue;
mod kept;
mod slice;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::watch;

pub use catalogue::{ServiceByName, Slices};
pub use kept::{EndpointState, Endpoints, KeptEndpoint, KeptSlice, Shared, parse_ip};
pub use slice::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, Hint};

use crate::names;

/// Namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within it.
    pub name: Arc<str>,
}

/// A text that is nearly always one of a few, which then takes no memory of its own.
pub type Word = Cow<'static, str>;

/// What the API writes into the fields that are [`Word`]s.
const WORDS: [&str; 7] = ["", "TCP", "UDP", "SCTP", "IPv4", "IPv6", "FQDN"];

fn word<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Word, D::Error> {
    struct Read;
    impl serde::de::Visitor<'_> for Read {
        type Value = Word;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Word, E> {
            let known = WORDS.into_iter().find(|word| *word == text);
            Ok(known.map_or_else(|| Cow::Owned(text.to_owned()), Cow::Borrowed))
        }
    }
    from.deserialize_str(Read)
}

/// A map of which only some keys are read: there are thousands of objects, and users write much into these maps.
fn only<'de, D: serde::Deserializer<'de>>(
    keys: &'static [&'static str],
    from: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    /// Which of the keys it is.
    struct Key(&'static [&'static str]);
    impl<'de> serde::de::DeserializeSeed<'de> for Key {
        type Value = Option<&'static str>;

        fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
            from.deserialize_str(self)
        }
    }
    impl serde::de::Visitor<'_> for Key {
        type Value = Option<&'static str>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a key")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(self.0.iter().copied().find(|key| *key == text))
        }
    }
    struct Read(&'static [&'static str]);
    impl<'de> serde::de::Visitor<'de> for Read {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a map of strings")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut kept = BTreeMap::new();
            while let Some(key) = map.next_key_seed(Key(self.0))? {
                match key {
                    Some(key) => _ = kept.insert(key.to_owned(), map.next_value()?),
                    None => _ = map.next_value::<serde::de::IgnoredAny>()?,
                }
            }
            Ok(kept)
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }
    }
    from.deserialize_any(Read(keys))
}

fn read_labels<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    only(&[names::SERVICE_NAME, names::SERVICE_HEADLESS], from)
}

fn read_annotations<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    only(&[names::LAST_CHANGE_TRIGGER_TIME], from)
}

/// Whether another proxy serves the Service.
fn read_other_proxy<'de, D: serde::Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    only(&[names::SERVICE_PROXY_NAME], from).map(|labels| !labels.is_empty())
}

/// What a slim type that is not kept has of `metadata`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlimMeta {
    /// Object name.
    pub name: Arc<str>,
    /// Object namespace.
    pub namespace: Arc<str>,
    /// UID, to tell a re-created object from its predecessor.
    pub uid: Arc<str>,
    /// Version for the watch; decimal.
    pub resource_version: String,
    /// Labels: the one that names the Service of a slice, and that of headless ones.
    #[serde(deserialize_with = "read_labels")]
    pub labels: BTreeMap<String, String>,
    /// Annotations; of a slice, what last made it change.
    #[serde(deserialize_with = "read_annotations")]
    pub annotations: BTreeMap<String, String>,
}

/// `metadata` of a [`Service`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(from = "WrittenMeta")]
pub struct ServiceMeta {
    /// Which Service it is.
    pub key: NamespacedName,
    /// UID, for events.
    pub uid: Box<str>,
    /// Version for the watch; decimal.
    pub resource_version: Box<str>,
    /// By its label, another proxy serves it.
    pub is_for_another_proxy: bool,
}

/// [`ServiceMeta`] as the API writes it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WrittenMeta {
    name: Arc<str>,
    namespace: Arc<str>,
    uid: Box<str>,
    resource_version: Box<str>,
    #[serde(deserialize_with = "read_other_proxy")]
    labels: bool,
}

impl From<WrittenMeta> for ServiceMeta {
    fn from(written: WrittenMeta) -> Self {
        let WrittenMeta { name, namespace, uid, resource_version, labels: is_for_another_proxy } = written;
        Self { key: NamespacedName { namespace, name }, uid, resource_version, is_for_another_proxy }
    }
}

/// `spec.type`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub enum ServiceType {
    /// A port on every node as well.
    NodePort,
    /// An address outside the cluster as well.
    LoadBalancer,
    /// Another name, and no address.
    ExternalName,
    /// A cluster IP, or none.
    #[default]
    #[serde(other)]
    ClusterIP,
}

/// `spec.internalTrafficPolicy` and `spec.externalTrafficPolicy`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub enum TrafficPolicy {
    /// Only endpoints on this node.
    Local,
    /// All endpoints.
    #[default]
    #[serde(other)]
    Cluster,
}

/// `spec.sessionAffinity`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub enum SessionAffinity {
    /// A client stays with its endpoint.
    ClientIP,
    /// Each connection by itself.
    #[default]
    #[serde(other)]
    None,
}

/// `ipMode` of a load balancer's address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub enum IpMode {
    /// The balancer sends to the nodes' own addresses.
    Proxy,
    /// Packets come with the address.
    #[default]
    #[serde(other)]
    #[serde(rename = "VIP")]
    Vip,
}

/// A Service as the node needs it. Lists have no room to spare.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Name, namespace, whose it is.
    pub metadata: ServiceMeta,
    /// What the user asked for, with the API server's allocations.
    pub spec: ServiceSpec,
    /// Load-balancer addresses.
    pub status: ServiceStatus,
}

/// `spec` of a [`Service`]; texts are as the API writes them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// Which kind.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    #[serde(rename = "clusterIP")]
    cluster_ip: Box<str>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Box<[Box<str>]>,
    /// Ports.
    pub ports: Box<[ServicePort]>,
    /// Addresses outside the cluster's control that nodes accept.
    #[serde(rename = "externalIPs")]
    pub external_ips: Box<[Box<str>]>,
    /// Target of an ExternalName service.
    pub external_name: Box<str>,
    /// Whether a client stays with its endpoint.
    pub session_affinity: SessionAffinity,
    /// Time-out of the affinity.
    pub session_affinity_config: SessionAffinityConfig,
    /// For traffic from outside.
    pub external_traffic_policy: TrafficPolicy,
    /// For traffic to the cluster IPs.
    pub internal_traffic_policy: TrafficPolicy,
    /// Port for the load balancer's health checks; 0 when there is none.
    pub health_check_node_port: u16,
    /// CIDRs that may reach the load-balancer addresses; empty: everybody.
    pub load_balancer_source_ranges: Box<[Box<str>]>,
    /// Endpoints count as ready whether or not they are.
    pub publish_not_ready_addresses: bool,
}

impl ServiceSpec {
    /// All cluster IPs, at most one of each family; a server of one family may have written the first only.
    pub fn cluster_ips(&self) -> &[Box<str>] {
        if self.cluster_ips.is_empty() { std::slice::from_ref(&self.cluster_ip) } else { &self.cluster_ips }
    }

    /// First cluster IP, `None` when headless, empty when ExternalName.
    pub fn cluster_ip(&self) -> &str {
        self.cluster_ips().first().map_or("", |ip| ip)
    }

    /// Drops what the API writes twice.
    pub fn keep_once(&mut self) {
        if !self.cluster_ips.is_empty() {
            self.cluster_ip = Box::default();
        }
    }
}

/// `spec.sessionAffinityConfig`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    /// Of affinity `ClientIP`.
    #[serde(rename = "clientIP")]
    pub client_ip: ClientIpConfig,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// Seconds; the API server fills in 10800.
    pub timeout_seconds: Option<u32>,
}

/// One port of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name; empty when the Service has one port only.
    pub name: Arc<str>,
    /// `TCP` (also when empty), `UDP` or `SCTP`.
    #[serde(deserialize_with = "word")]
    pub protocol: Word,
    /// Port on the cluster IPs.
    pub port: u16,
    /// Port on every node; 0 when there is none.
    pub node_port: u16,
}

/// `status` of a [`Service`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// The load balancer's part.
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerStatus {
    /// Addresses that lead to this Service.
    pub ingress: Box<[LoadBalancerIngress]>,
}

/// One address of a load balancer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    /// The address; empty when only a host name is known.
    pub ip: Box<str>,
    /// How packets come.
    pub ip_mode: IpMode,
}

/// A range of cluster IPs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceCidr {
    /// Name and version.
    pub metadata: SlimMeta,
    /// Its ranges.
    pub spec: ServiceCidrSpec,
}

/// `spec` of a [`ServiceCidr`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceCidrSpec {
    /// At most one of each family.
    pub cidrs: Vec<String>,
}

/// One change of the catalogue, as `upstream` sees it on its watches.
#[derive(Clone, Debug)]
pub enum ServiceChange {
    /// The Service is there or has changed.
    Service(Arc<Service>),
    /// The Service is gone.
    ServiceGone(NamespacedName),
    /// The slice is there or has changed, and when that happened which it was last changed for.
    Slice(Arc<KeptSlice>, Option<jiff::Timestamp>),
    /// The slice is gone: its Service, then its own name.
    SliceGone(NamespacedName, Arc<str>),
    /// Both lists are complete (again, after a watch had to start over): everything before this since the last
    /// [`ServiceChange::Restarting`] is the whole truth, and what did not come is gone.
    Complete,
    /// A list starts over; until [`ServiceChange::Complete`] nothing may be programmed or removed.
    Restarting,
}

impl ServiceChange {
    /// That a slice is there like this.
    pub fn slice(slice: &EndpointSlice, shared: &mut Shared) -> Self {
        Self::Slice(Arc::new(KeptSlice::of(slice, shared)), slice.last_change())
    }
}

/// Shares nothing with others.
impl From<EndpointSlice> for ServiceChange {
    fn from(slice: EndpointSlice) -> Self {
        Self::slice(&slice, &mut Shared::default())
    }
}

/// Newest node facts that service routing needs (zone for topology, addresses for NodePorts).
pub type NodeFacts = watch::Receiver<Arc<NodeTopology>>;

/// This node's own name, zone and addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeTopology {
    /// The node's name.
    pub name: Arc<str>,
    /// Value of `topology.kubernetes.io/zone`, if labelled.
    pub zone: Option<Arc<str>>,
    /// The node's own addresses, primary family first.
    pub ips: Vec<std::net::IpAddr>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_read_is_kept() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {
                "name": "web", "namespace": "shop",
                "labels": {names::SERVICE_PROXY_NAME: "other", "team": "a", "app": "web"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "long"},
            },
            "spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": [{"port": 80, "protocol": "UDP"}]},
        }))
        .expect("a Service");
        assert!(service.metadata.is_for_another_proxy);

        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {
                "name": "web-1", "namespace": "shop", "labels": null,
                "annotations": {names::LAST_CHANGE_TRIGGER_TIME: "2026-01-01T00:00:00Z", "note": "x"},
            },
            "addressType": "IPv4", "endpoints": null, "ports": null,
        }))
        .expect("a slice");
        assert_eq!(slice.metadata.labels, BTreeMap::new());
        assert_eq!(slice.metadata.annotations.keys().collect::<Vec<_>>(), [names::LAST_CHANGE_TRIGGER_TIME]);
        assert_eq!((slice.endpoints.len(), slice.ports.len()), (0, 0));
    }

    #[test]
    fn known_words_take_no_memory() {
        let read = |text: &str| -> ServicePort { serde_json::from_value(json!({ "protocol": text })).expect("a port") };
        for text in ["TCP", "UDP", "SCTP", ""] {
            let port = read(text);
            assert!(matches!(port.protocol, Cow::Borrowed(word) if word == text), "{text}");
        }
        assert_eq!(read("QUIC").protocol, Cow::<str>::Owned("QUIC".to_owned()));
        let wrong: Result<ServicePort, _> = serde_json::from_value(json!({"protocol": 6}));
        assert!(wrong.expect_err("a number is no word").to_string().contains("a string"));
    }
}
