//! What is kept of an EndpointSlice, by all who read it: addresses as numbers, and what many endpoints have in common only once.
//!
//! An endpoint takes 16 bytes (24 with an IPv6 address); a cluster has hundreds of thousands.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::{Endpoint, EndpointHints, EndpointPort, EndpointSlice, NamespacedName};
use crate::names::{SERVICE_HEADLESS, SERVICE_NAME};

/// A slice as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptSlice {
    /// Its Service; without a name where the slice has no label for it.
    pub service: NamespacedName,
    /// Its name.
    pub name: Arc<str>,
    /// Ports, common to all endpoints.
    pub ports: Arc<[EndpointPort]>,
    /// Endpoints with an address of the slice's family.
    pub endpoints: Endpoints,
    /// Addresses that are none of the family.
    pub wrong: Box<[Box<str>]>,
    /// Its Service has no cluster IP.
    pub is_headless: bool,
}

/// The endpoints of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoints {
    /// `addressType: IPv4`
    V4(Box<[KeptEndpoint<Ipv4Addr>]>),
    /// `addressType: IPv6`
    V6(Box<[KeptEndpoint<Ipv6Addr>]>),
    /// Host names, of which nothing is kept (B1.23).
    Names,
}

/// One endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptEndpoint<Address> {
    /// Its first address; others do not count.
    pub ip: Address,
    /// Everything else.
    pub state: Arc<EndpointState>,
}

/// What endpoints of one node mostly have in common.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndpointState {
    /// Accepts new connections.
    pub ready: bool,
    /// Accepts connections, perhaps while it terminates.
    pub serving: bool,
    /// Its pod is being deleted.
    pub terminating: bool,
    /// Where it runs.
    pub node: Option<Arc<str>>,
    /// DNS host name, never empty.
    pub hostname: Option<Arc<str>>,
    /// Who should use it.
    pub hints: EndpointHints,
}

impl Endpoints {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::V4(all) => all.len(),
            Self::V6(all) => all.len(),
            Self::Names => 0,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &EndpointState)> {
        let (v4, v6): (&[_], &[_]) = match self {
            Self::V4(all) => (all, &[]),
            Self::V6(all) => (&[], all),
            Self::Names => (&[], &[]),
        };
        let v4 = v4.iter().map(|endpoint: &KeptEndpoint<Ipv4Addr>| (endpoint.ip.into(), &*endpoint.state));
        v4.chain(v6.iter().map(|endpoint: &KeptEndpoint<Ipv6Addr>| (endpoint.ip.into(), &*endpoint.state)))
    }
}

/// What is kept once, however many slices have it.
#[derive(Debug, Default)]
pub struct Shared {
    names: HashSet<Arc<str>, RandomState>,
    states: HashSet<Arc<EndpointState>, RandomState>,
    ports: HashSet<Arc<[EndpointPort]>, RandomState>,
    /// Above so many the unused ones are dropped.
    limit: usize,
}

impl Shared {
    /// The one copy of a name.
    pub fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        self.make_room();
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    fn state(&mut self, endpoint: &Endpoint) -> Arc<EndpointState> {
        let state = EndpointState {
            ready: endpoint.conditions.ready.unwrap_or(true),
            serving: endpoint.conditions.serving.unwrap_or(true),
            terminating: endpoint.conditions.terminating.unwrap_or(false),
            node: endpoint.node_name.as_ref().map(|name| self.name(name)),
            hostname: endpoint.hostname.clone().filter(|name| !name.is_empty()),
            hints: endpoint.hints.clone(),
        };
        if let Some(known) = self.states.get(&state) {
            return Arc::clone(known);
        }
        self.make_room();
        let state = Arc::new(state);
        self.states.insert(Arc::clone(&state));
        state
    }

    fn ports(&mut self, ports: &[EndpointPort]) -> Arc<[EndpointPort]> {
        if let Some(known) = self.ports.get(ports) {
            return Arc::clone(known);
        }
        self.make_room();
        let ports: Arc<[EndpointPort]> = ports.into();
        self.ports.insert(Arc::clone(&ports));
        ports
    }

    /// Forgets what nobody uses, whenever twice as much is there as was in use the last time.
    fn make_room(&mut self) {
        const FEW: usize = 256;
        if self.names.len() + self.states.len() + self.ports.len() < self.limit.max(FEW) {
            return;
        }
        self.states.retain(|state| Arc::strong_count(state) > 1);
        self.ports.retain(|ports| Arc::strong_count(ports) > 1);
        self.names.retain(|name| Arc::strong_count(name) > 1);
        self.limit = (self.names.len() + self.states.len() + self.ports.len()) * 2;
    }
}

impl KeptSlice {
    /// Takes what counts out of a slice.
    pub fn of(slice: &EndpointSlice, shared: &mut Shared) -> Self {
        let meta = &slice.metadata;
        let service = meta.labels.get(SERVICE_NAME).map_or("", String::as_str);
        let mut wrong = Vec::new();
        let endpoints = match slice.address_type.as_ref() {
            "IPv4" => Endpoints::V4(kept(&slice.endpoints, &mut wrong, shared, |ip| match ip {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            })),
            "IPv6" => Endpoints::V6(kept(&slice.endpoints, &mut wrong, shared, |ip| match ip {
                IpAddr::V4(_) => None,
                IpAddr::V6(ip) => Some(ip),
            })),
            _ => Endpoints::Names,
        };
        Self {
            service: NamespacedName { namespace: shared.name(&meta.namespace), name: shared.name(service) },
            name: Arc::clone(&meta.name),
            ports: shared.ports(&slice.ports),
            endpoints,
            wrong: wrong.into(),
            is_headless: meta.labels.contains_key(SERVICE_HEADLESS),
        }
    }
}

/// The endpoints whose address is of the family; the others are noted.
fn kept<Address>(
    endpoints: &[Endpoint],
    wrong: &mut Vec<Box<str>>,
    shared: &mut Shared,
    of_family: fn(IpAddr) -> Option<Address>,
) -> Box<[KeptEndpoint<Address>]> {
    let mut all = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        let Some(address) = endpoint.addresses.first() else { continue };
        match parse_ip(address).and_then(of_family) {
            Some(ip) => all.push(KeptEndpoint { ip, state: shared.state(endpoint) }),
            None => wrong.push(address.as_str().into()),
        }
    }
    all.into()
}

/// An address as Kubernetes reads it: leading zeros of IPv4 are decimal, IPv4 in IPv6 is IPv4.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    let parsed = text.parse::<IpAddr>().ok().or_else(|| {
        let octets: Vec<u8> = text.split('.').filter_map(|octet| octet.parse().ok()).collect();
        let plain = !text.contains(|c: char| !c.is_ascii_digit() && c != '.');
        <[u8; 4]>::try_from(octets).ok().filter(|_| plain && text.split('.').count() == 4).map(IpAddr::from)
    });
    parsed.map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(nodes: &[&str]) -> EndpointSlice {
        let endpoints: Vec<_> = nodes
            .iter()
            .map(|node| {
                json!({"addresses": ["10.244.0.1"], "nodeName": node, "hints": {"forZones": [{"name": "zone-a"}]}})
            })
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 80}],
        }))
        .unwrap()
    }

    #[test]
    fn what_is_common_is_kept_once_and_forgotten_when_unused() {
        let mut shared = Shared::default();
        let first = KeptSlice::of(&slice(&["node-a", "node-a"]), &mut shared);
        let second = KeptSlice::of(&slice(&["node-a"]), &mut shared);
        let states = |slice: &KeptSlice| slice.endpoints.iter().map(|(_, state)| &raw const *state).collect::<Vec<_>>();
        assert_eq!(states(&first), [states(&second), states(&second)].concat());
        assert!(Arc::ptr_eq(&first.ports, &second.ports));
        for n in 0..1000 {
            KeptSlice::of(&slice(&[&format!("node-{n}")]), &mut shared);
        }
        assert!(shared.names.len() + shared.states.len() < 600, "{} states are kept", shared.states.len());
        assert!(shared.names.contains("node-a"), "what is in use stays");
    }

    #[test]
    fn an_endpoint_is_small() {
        assert_eq!((size_of::<KeptEndpoint<Ipv4Addr>>(), size_of::<KeptEndpoint<Ipv6Addr>>()), (16, 24));
    }
}
