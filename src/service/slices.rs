//! What the data path keeps of an EndpointSlice: addresses as numbers, and names that many endpoints share only once.
//!
//! A slice of ten endpoints takes some 2 KB as its object and less than 700 bytes so; a cluster has tens of thousands.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use stoker_model::service::{EndpointHints, EndpointPort, EndpointSlice};

use super::frontend::{Family, parse_ip};

/// A slice as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptSlice {
    /// Its name.
    pub name: Arc<str>,
    /// The family of its addresses; `None` for host names, of which nothing is kept (B1.23).
    pub family: Option<Family>,
    /// Ports, common to all endpoints.
    pub ports: Box<[EndpointPort]>,
    /// Endpoints with an address of the family.
    pub endpoints: Box<[KeptEndpoint]>,
    /// Addresses that are none of the family.
    pub wrong: Box<[String]>,
}

/// One endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptEndpoint {
    /// Its first address; others do not count.
    pub ip: IpAddr,
    /// Accepts new connections.
    pub ready: bool,
    /// Accepts connections, perhaps while it terminates.
    pub serving: bool,
    /// Its pod is being deleted.
    pub terminating: bool,
    /// Where it runs; half as large as an `Arc<str>`, and there are very many.
    pub node: Option<Arc<String>>,
    /// Who should use it.
    pub hints: Option<Arc<EndpointHints>>,
}

/// Names and hints that are kept once, however many endpoints have them.
#[derive(Debug, Default)]
pub struct Shared {
    names: HashSet<Arc<str>>,
    nodes: HashMap<Arc<str>, Arc<String>>,
    hints: HashSet<Arc<EndpointHints>>,
    /// Above so many the unused ones are dropped.
    limit: usize,
}

impl Shared {
    /// The one copy of a name.
    pub fn name(&mut self, name: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        self.make_room();
        self.names.insert(name.clone());
        name.clone()
    }

    fn node(&mut self, name: &Arc<str>) -> Arc<String> {
        if let Some(known) = self.nodes.get(name) {
            return known.clone();
        }
        self.make_room();
        self.nodes.entry(name.clone()).or_insert_with(|| Arc::new(name.as_ref().to_owned())).clone()
    }

    fn hints(&mut self, hints: &EndpointHints) -> Option<Arc<EndpointHints>> {
        if hints.for_nodes.is_empty() && hints.for_zones.is_empty() {
            return None;
        }
        if let Some(known) = self.hints.get(hints) {
            return Some(known.clone());
        }
        self.make_room();
        let kept = Arc::new(hints.clone());
        self.hints.insert(kept.clone());
        Some(kept)
    }

    /// Forgets what nobody uses, whenever twice as much is there as was in use the last time.
    fn make_room(&mut self) {
        const FEW: usize = 256;
        if self.names.len() + self.nodes.len() + self.hints.len() < self.limit.max(FEW) {
            return;
        }
        self.names.retain(|name| Arc::strong_count(name) > 1);
        self.nodes.retain(|_, name| Arc::strong_count(name) > 1);
        self.hints.retain(|hints| Arc::strong_count(hints) > 1);
        self.limit = (self.names.len() + self.nodes.len() + self.hints.len()) * 2;
    }
}

impl KeptSlice {
    /// Takes what counts out of a slice.
    pub fn of(slice: &EndpointSlice, shared: &mut Shared) -> Self {
        let family = match slice.address_type.as_ref() {
            "IPv4" => Some(Family::Ipv4),
            "IPv6" => Some(Family::Ipv6),
            _ => None,
        };
        let mut kept = Self {
            name: slice.metadata.name.clone(),
            family,
            ports: Box::default(),
            endpoints: Box::default(),
            wrong: Box::default(),
        };
        let Some(family) = family else { return kept };
        let (mut endpoints, mut wrong) = (Vec::with_capacity(slice.endpoints.len()), Vec::new());
        for endpoint in &slice.endpoints {
            let Some(address) = endpoint.addresses.first() else { continue };
            match parse_ip(address).filter(|ip| Family::of(*ip) == family) {
                Some(ip) => endpoints.push(KeptEndpoint {
                    ip,
                    ready: endpoint.conditions.ready.unwrap_or(true),
                    serving: endpoint.conditions.serving.unwrap_or(true),
                    terminating: endpoint.conditions.terminating.unwrap_or(false),
                    node: endpoint.node_name.as_ref().map(|name| shared.node(name)),
                    hints: shared.hints(&endpoint.hints),
                }),
                None => wrong.push(address.clone()),
            }
        }
        let ports = slice.ports.iter().map(|port| EndpointPort { name: shared.name(&port.name), ..port.clone() });
        kept.ports = ports.collect();
        (kept.endpoints, kept.wrong) = (endpoints.into(), wrong.into());
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
    fn names_are_kept_once_and_forgotten_when_unused() {
        let mut shared = Shared::default();
        let kept = KeptSlice::of(&slice(&["node-a", "node-a"]), &mut shared);
        let [a, b] = &*kept.endpoints else { panic!("two endpoints") };
        assert!(Arc::ptr_eq(a.node.as_ref().unwrap(), b.node.as_ref().unwrap()));
        assert!(Arc::ptr_eq(a.hints.as_ref().unwrap(), b.hints.as_ref().unwrap()));
        for n in 0..1000 {
            KeptSlice::of(&slice(&[&format!("node-{n}")]), &mut shared);
        }
        assert!(shared.nodes.len() < 600, "{} names are kept", shared.nodes.len());
        assert!(shared.nodes.contains_key("node-a"), "what is in use stays");
    }

    #[test]
    fn an_endpoint_is_small() {
        assert!(size_of::<KeptEndpoint>() <= 40, "{} bytes", size_of::<KeptEndpoint>());
    }
}
