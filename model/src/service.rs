//! Slim Services and EndpointSlices: only what the service data path, service environment variables and DNS read.
//!
//! Decoded straight from the API's JSON; a field that is not here is never kept in memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::watch;

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
const WORDS: [&str; 16] = [
    "",
    "TCP",
    "UDP",
    "SCTP",
    "ClusterIP",
    "NodePort",
    "LoadBalancer",
    "ExternalName",
    "None",
    "ClientIP",
    "Cluster",
    "Local",
    "IPv4",
    "IPv6",
    "FQDN",
    "VIP",
];

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

/// Without room for more, which a list that grew has: most Services have one port and one address.
fn exact<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Vec::deserialize(from).map(|mut list| {
        list.shrink_to_fit();
        list
    })
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
    only(&[names::SERVICE_NAME, names::SERVICE_HEADLESS, names::SERVICE_PROXY_NAME], from)
}

fn read_annotations<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    only(&[names::LAST_CHANGE_TRIGGER_TIME], from)
}

/// What a slim type keeps of `metadata`.
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
    /// Labels; of a slice, the one that names its Service, of a Service those of the proxy.
    #[serde(deserialize_with = "read_labels")]
    pub labels: BTreeMap<String, String>,
    /// Annotations; of a slice, what last made it change.
    #[serde(deserialize_with = "read_annotations")]
    pub annotations: BTreeMap<String, String>,
}

/// A Service as the node needs it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Name, namespace, labels.
    pub metadata: SlimMeta,
    /// What the user asked for, with the API server's allocations.
    pub spec: ServiceSpec,
    /// Load-balancer addresses.
    pub status: ServiceStatus,
}

/// `spec` of a [`Service`]; strings are as the API writes them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type")]
    #[serde(deserialize_with = "word")]
    pub kind: Word,
    /// First cluster IP, `None` when headless, empty when ExternalName.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// All cluster IPs, at most one of each family.
    #[serde(rename = "clusterIPs", deserialize_with = "exact")]
    pub cluster_ips: Vec<String>,
    /// Ports.
    #[serde(deserialize_with = "exact")]
    pub ports: Vec<ServicePort>,
    /// Addresses outside the cluster's control that nodes accept.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// Target of an ExternalName service.
    pub external_name: String,
    /// `None` or `ClientIP`.
    #[serde(deserialize_with = "word")]
    pub session_affinity: Word,
    /// Time-out of the affinity.
    pub session_affinity_config: SessionAffinityConfig,
    /// `Cluster` or `Local`.
    #[serde(deserialize_with = "word")]
    pub external_traffic_policy: Word,
    /// `Cluster` or `Local`.
    #[serde(deserialize_with = "word")]
    pub internal_traffic_policy: Word,
    /// Port for the load balancer's health checks; 0 when there is none.
    pub health_check_node_port: u16,
    /// CIDRs that may reach the load-balancer addresses; empty: everybody.
    pub load_balancer_source_ranges: Vec<String>,
    /// Endpoints count as ready whether or not they are.
    pub publish_not_ready_addresses: bool,
    /// `PreferSameZone`, `PreferSameNode`, `PreferClose` or empty.
    #[serde(deserialize_with = "word")]
    pub traffic_distribution: Word,
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
    pub ingress: Vec<LoadBalancerIngress>,
}

/// One address of a load balancer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    /// The address; empty when only a host name is known.
    pub ip: String,
    /// `VIP` (also when empty) or `Proxy`.
    #[serde(deserialize_with = "word")]
    pub ip_mode: Word,
}

/// An EndpointSlice as the node needs it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Name, namespace, labels; the label `kubernetes.io/service-name` names the Service.
    pub metadata: SlimMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[serde(deserialize_with = "word")]
    pub address_type: Word,
    /// Endpoints.
    #[serde(deserialize_with = "null_is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Ports, common to all endpoints of the slice.
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<EndpointPort>,
}

/// The API server writes `null` for an empty list of a slice.
fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Option::<Vec<T>>::deserialize(from).map(Option::unwrap_or_default)
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Addresses; only the first counts.
    pub addresses: Vec<String>,
    /// Whether it may receive connections.
    pub conditions: EndpointConditions,
    /// DNS host name.
    pub hostname: Option<Arc<str>>,
    /// The node it runs on.
    pub node_name: Option<Arc<str>>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Who should use it.
    pub hints: EndpointHints,
}

/// `conditions` of an [`Endpoint`]; absent `ready` and `serving` mean true.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointConditions {
    /// Accepts new connections.
    pub ready: Option<bool>,
    /// Accepts connections though it may be terminating.
    pub serving: Option<bool>,
    /// Its pod is being deleted.
    pub terminating: Option<bool>,
}

/// `hints` of an [`Endpoint`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    /// Zones that should use the endpoint.
    pub for_zones: Vec<Hint>,
    /// Nodes that should use the endpoint.
    pub for_nodes: Vec<Hint>,
}

/// The name of a zone or node.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hint {
    /// The name.
    pub name: Arc<str>,
}

/// One port of a slice.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    /// Matches the name of the Service's port; empty when the Service has one port.
    pub name: Arc<str>,
    /// `TCP` (also when empty), `UDP` or `SCTP`.
    #[serde(deserialize_with = "word")]
    pub protocol: Word,
    /// Absent: all ports, which the data path leaves alone.
    pub port: Option<u16>,
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
    /// The slice is there or has changed.
    Slice(Arc<EndpointSlice>),
    /// The slice is gone: its Service, then its own name.
    SliceGone(NamespacedName, Arc<str>),
    /// Both lists are complete (again, after a watch had to start over): everything before this since the last
    /// [`ServiceChange::Restarting`] is the whole truth, and what did not come is gone.
    Complete,
    /// A list starts over; until [`ServiceChange::Complete`] nothing may be programmed or removed.
    Restarting,
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
        let label = (names::SERVICE_PROXY_NAME.to_owned(), "other".to_owned());
        assert_eq!(service.metadata.labels.into_iter().collect::<Vec<_>>(), [label]);
        assert_eq!(service.metadata.annotations, BTreeMap::new());

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
    fn lists_have_no_room_to_spare() {
        let text = r#"{"clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]}"#;
        let spec: ServiceSpec = serde_json::from_str(text).expect("a spec");
        assert_eq!((spec.cluster_ips.capacity(), spec.ports.capacity()), (1, 1));
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
