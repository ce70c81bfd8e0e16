//! An EndpointSlice as the API writes it, with the fields that are read: what is kept of it is a [`KeptSlice`].
//!
//! [`KeptSlice`]: super::KeptSlice

use std::sync::Arc;

use serde::Deserialize;

use super::{SlimMeta, Word, word};
use crate::names;

/// An EndpointSlice.
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

impl EndpointSlice {
    /// When that happened which it was last changed for.
    pub fn last_change(&self) -> Option<jiff::Timestamp> {
        self.metadata.annotations.get(names::LAST_CHANGE_TRIGGER_TIME)?.parse().ok()
    }
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
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Deserialize)]
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
