//! Slim nodes, pods, namespaces and network policies: only what the pod network of a node reads of the whole cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use serde::Deserialize;

use crate::service::NamespacedName;

/// Node annotation: the hardware address of the node's end of the VXLAN tunnels.
pub const VTEP_MAC: &str = "stoker.dev/vtep-mac";

/// What a watch of one kind tells, in order. After an interruption nothing is told twice but what may have changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Listed<T> {
    /// The object exists like this.
    Present(T),
    /// The object is gone.
    Gone(NamespacedName),
    /// The first list is complete; comes once.
    Complete,
}

/// Name, namespace and version.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Named {
    /// Object name.
    pub name: Arc<str>,
    /// Object namespace; empty where the kind has none.
    pub namespace: Arc<str>,
    /// Version for the watch.
    pub resource_version: String,
}

impl Named {
    /// Namespace and name.
    pub fn key(&self) -> NamespacedName {
        NamespacedName { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

/// A Node, as the way to its pods.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterNode {
    /// Name, version and our annotation.
    pub metadata: NodeMeta,
    /// Its part of the pod network.
    pub spec: NodeNetwork,
    /// Its addresses.
    pub status: NodeAddresses,
}

/// `metadata` of a [`ClusterNode`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeMeta {
    /// The node's name.
    pub name: Arc<str>,
    /// Version for the watch.
    pub resource_version: String,
    /// The one annotation that is ours.
    pub annotations: NodeAnnotations,
}

/// The annotations of a [`ClusterNode`] that are kept.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAnnotations {
    /// [`VTEP_MAC`]
    #[serde(rename = "stoker.dev/vtep-mac")]
    pub vtep_mac: String,
}

/// `spec` of a [`ClusterNode`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeNetwork {
    /// `podCIDR`, for nodes that older controllers wrote.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    /// `podCIDRs`, at most one of each family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// `status` of a [`ClusterNode`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddresses {
    /// All of them.
    pub addresses: Vec<NodeAddress>,
}

/// An address of a node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `Hostname`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

/// A Pod of any node, as a peer of network policies.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerPod {
    /// Name, namespace, labels.
    pub metadata: Labelled,
    /// Where it runs, and its ports.
    pub spec: PeerPodSpec,
    /// Its addresses.
    pub status: PeerPodStatus,
}

/// A Namespace, as network policies select it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PeerNamespace {
    /// Name and labels.
    pub metadata: Labelled,
}

/// `metadata` with labels.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Labelled {
    /// Object name.
    pub name: Arc<str>,
    /// Object namespace; empty where the kind has none.
    pub namespace: Arc<str>,
    /// Version for the watch.
    pub resource_version: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// `spec` of a [`PeerPod`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerPodSpec {
    /// The node that runs it.
    pub node_name: Arc<str>,
    /// It has the node's addresses.
    pub host_network: bool,
    /// Its containers.
    pub containers: Vec<PeerContainer>,
    /// Init containers; those that go on serve ports too.
    pub init_containers: Vec<PeerContainer>,
}

/// A container's ports.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PeerContainer {
    /// The ports.
    pub ports: Vec<PeerPort>,
}

/// A port that a pod names.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerPort {
    /// Its name.
    pub name: String,
    /// Its number.
    pub container_port: u16,
    /// `TCP` where it is empty.
    pub protocol: String,
}

/// `status` of a [`PeerPod`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerPodStatus {
    /// `Running`, `Succeeded`, …
    pub phase: String,
    /// At most one address of each family.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
}

/// An address of a pod.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// A NetworkPolicy.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Name and namespace.
    pub metadata: Named,
    /// What it says.
    pub spec: NetworkPolicySpec,
}

/// What changes in the world of network policies.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyChange {
    /// Of a policy.
    Policy(Listed<Policy>),
    /// Of a pod; only while there are policies.
    Pod(Listed<PeerPod>),
    /// Of a namespace; only while there are policies.
    Namespace(Listed<PeerNamespace>),
}
