//! `stoker service explain`: the way of a packet to each frontend of one Service, and why which endpoint gets none.
//!
//! Pure: [`explain`] compiles the Service as the data path does, so what it prints is what a node with these objects writes.
//! [`Explanation::verify`] compares with the elements that were read from a kernel.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use stoker_model::service::{
    Endpoint, EndpointSlice, KeptSlice, NamespacedName, NodeTopology, Service, ServicePort, ServiceType, Shared,
    TrafficPolicy, parse_ip,
};

use super::diff::{Batch, Elements, Key, LOCAL_SLOTS, Table, Value};
use super::frontend::{Backends, Family, Frontend, Place, Protocol, Route, ServiceRoutes};
use super::model::{HintFit, routes};
use super::{ipvs, nftables};

/// What there is to know about the way to one Service on one node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `namespace/name`
    pub service: String,
    /// The node whose view this is.
    pub node: String,
    /// Why there are no rules at all, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_alone: Option<String>,
    /// Each address and port, in the order of the Service.
    pub frontends: Vec<FrontendPath>,
    /// Each endpoint of each slice.
    pub endpoints: Vec<EndpointUse>,
    /// What could not be done.
    pub problems: Vec<String>,
    /// Of `--verify`: elements that differ from the kernel's. `None` when it was not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differences: Option<Vec<Difference>>,
    #[serde(skip)]
    name: NamespacedName,
    #[serde(skip)]
    table: Table,
    #[serde(skip)]
    beside_ipvs: bool,
}

/// The way of a packet to one frontend.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendPath {
    /// For example `10.96.0.10:80/tcp`.
    pub frontend: String,
    /// The steps of the way, in order.
    pub path: Vec<String>,
    /// Slots and the endpoints in them.
    pub slots: Vec<Slot>,
    /// Seconds that a client stays with its endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// Only these sources are let in; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_sources: Vec<String>,
    /// The elements in our table.
    pub elements: Vec<Element>,
    #[serde(skip)]
    at: Frontend,
}

/// One slot.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// The number that a connection draws.
    pub slot: u32,
    /// One of those on this node that traffic from outside draws from under policy `Local`.
    pub local: bool,
    /// Address and port.
    pub endpoint: String,
}

/// One element of a set or map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Element {
    /// The table, `ip stoker` or `ip6 stoker`; or `ipvs`
    pub family: &'static str,
    /// The set or map; or the virtual server.
    pub set: String,
    /// What it says.
    pub text: String,
}

/// One endpoint.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointUse {
    /// Its first address.
    pub address: String,
    /// The slice that names it.
    pub slice: String,
    /// The node it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether some frontend leads to it.
    pub used: bool,
    /// Why not, or which traffic it gets.
    pub reason: String,
}

/// An element that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// `missing` or `unexpected`
    pub kind: &'static str,
    /// The element.
    #[serde(flatten)]
    pub element: Element,
}

/// Explains one Service from its slices, as seen from a node.
pub fn explain<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &NodeTopology,
) -> Explanation {
    let name = service.metadata.key.clone();
    let mut shared = Shared::default();
    let mut kept: Vec<_> = slices.clone().map(|slice| Arc::new(KeptSlice::of(slice, &mut shared))).collect();
    kept.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let routes = routes(service, &kept, node);
    let mut table = Table::default();
    table.set(&name, routes.clone(), &mut Batch::default());
    let mut explanation = Explanation {
        service: format!("{}/{}", name.namespace, name.name),
        node: node.name.to_string(),
        left_alone: left_alone(service, &routes),
        frontends: routes
            .paths
            .iter()
            .map(|path| FrontendPath {
                frontend: path.frontend.to_string(),
                path: Vec::new(),
                slots: Vec::new(),
                affinity_seconds: path.route.affinity_seconds(),
                allowed_sources: path.allowed_sources.iter().map(ToString::to_string).collect(),
                elements: Vec::new(),
                at: path.frontend,
            })
            .collect(),
        endpoints: endpoints(service, slices, node, &routes),
        problems: table.problems(&name).iter().map(ToString::to_string).collect(),
        differences: None,
        name,
        table,
        beside_ipvs: false,
    };
    explanation.fill();
    explanation
}

/// Why a Service has no rules.
fn left_alone(service: &Service, routes: &ServiceRoutes) -> Option<String> {
    if !routes.paths.is_empty() {
        return None;
    }
    Some(match service.spec.kind {
        ServiceType::ExternalName => "an ExternalName Service is a name in DNS only".to_owned(),
        _ if service.metadata.is_for_another_proxy => {
            format!("its label {} gives it to another proxy", stoker_model::names::SERVICE_PROXY_NAME)
        }
        _ if service.spec.cluster_ip() == "None" => "a headless Service is a name in DNS only".to_owned(),
        _ => "it has no cluster IP or no port".to_owned(),
    })
}

impl Explanation {
    /// Compares with what was read from the kernel, and takes over the order of slots there.
    pub fn verify(&mut self, kernel: Elements) {
        let Some(routes) = self.table.service(&self.name) else {
            self.differences = Some(Vec::new());
            return;
        };
        let there = kernel.into_iter().filter(|(key, _)| is_of(key, routes)).collect();
        let mut operations = self.table.reconcile(there);
        operations.add.sort_unstable();
        operations.delete.sort_unstable();
        let named = |kind, elements: &[(Key, Value)]| -> Vec<Difference> {
            elements.iter().map(|(key, value)| Difference { kind, element: element(key, value) }).collect()
        };
        let mut differences = named("missing", &operations.add);
        differences.extend(named("unexpected", &operations.delete));
        self.differences = Some(differences);
        self.fill();
    }

    /// The same where IPVS balances: compares with its virtual servers, and with the rules beside them.
    pub fn verify_ipvs(&mut self, mut rules: Elements, reading: &ipvs::Reading) {
        self.beside_ipvs = true;
        self.fill();
        let Some(routes) = self.table.service(&self.name) else {
            self.differences = Some(Vec::new());
            return;
        };
        let mut differences = Vec::new();
        let named = |kind, key: &Key, value: &Value| Difference { kind, element: element(key, value) };
        rules.retain(|key, _| is_of(key, routes));
        self.table.elements(|key, value| {
            let Some((key, value)) = nftables::beside_ipvs(key, value) else { return };
            match rules.remove(&key) {
                Some(there) if there == value => {}
                there => {
                    differences.extend(there.map(|there| named("unexpected", &key, &there)));
                    differences.push(named("missing", &key, &value));
                }
            }
        });
        differences.extend(rules.iter().map(|(key, value)| named("unexpected", key, value)));
        for frontend in &mut self.frontends {
            let virtual_server = |(set, text)| Element { family: "ipvs", set, text };
            frontend.elements.extend(reading.lines(&frontend.at).into_iter().map(virtual_server));
            let Some((_, route)) = self.table.frontend(&frontend.at) else { continue };
            differences.extend(reading.differences(&frontend.at, route).into_iter().map(|differing| Difference {
                kind: differing.kind,
                element: Element { family: "ipvs", set: differing.holder, text: differing.what },
            }));
        }
        self.differences = Some(differences);
    }

    /// Whether the kernel holds what it should, as far as anybody looked.
    pub fn is_as_expected(&self) -> bool {
        self.differences.as_ref().is_none_or(Vec::is_empty)
    }

    /// Writes slots and elements as the table has them now.
    fn fill(&mut self) {
        let mut elements: BTreeMap<Frontend, Vec<(Key, Value)>> = BTreeMap::new();
        self.table.elements(|key, value| {
            if let Some(at) = key.frontend() {
                elements.entry(at).or_default().push((key, value));
            }
        });
        for frontend in &mut self.frontends {
            let Some((_, route)) = self.table.frontend(&frontend.at) else { continue };
            frontend.path = path(frontend.at, route, &frontend.allowed_sources);
            let (all, local) = route.backends();
            let slots = |first: u32, backends: &Backends| -> Vec<Slot> {
                (0..)
                    .zip(backends.iter())
                    .map(|(slot, backend)| Slot { slot, local: first == LOCAL_SLOTS, endpoint: backend.to_string() })
                    .collect()
            };
            frontend.slots = slots(0, &all);
            frontend.slots.extend(slots(LOCAL_SLOTS, &local));
            let mut ours = elements.remove(&frontend.at).unwrap_or_default();
            if self.beside_ipvs {
                // Its scheduler chooses, and slots are none of its words.
                ours = ours.into_iter().filter_map(|(key, value)| nftables::beside_ipvs(key, value)).collect();
                frontend.slots.clear();
            }
            ours.sort_unstable();
            frontend.elements = ours.iter().map(|(key, value)| element(key, value)).collect();
        }
    }
}

/// Whether an element belongs to a Service.
fn is_of(key: &Key, routes: &ServiceRoutes) -> bool {
    match (key.frontend(), key) {
        (Some(at), _) => routes.paths.iter().any(|path| path.frontend == at),
        (None, Key::ClusterIp(ip)) => routes.cluster_ips.contains(ip),
        (None, Key::Hairpin(ip)) => routes.hairpins.contains(ip),
        (None, _) => false,
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.family, self.set, self.text)
    }
}

fn element(key: &Key, value: &Value) -> Element {
    let (family, set) = nftables::set_of(key, value);
    Element { family, set, text: format!("{key} = {value}") }
}

/// The steps of a packet, in words.
fn path(at: Frontend, route: &Route, allowed_sources: &[String]) -> Vec<String> {
    let mut steps = Vec::new();
    if !allowed_sources.is_empty() {
        steps.push(format!("dropped unless it comes from {}", allowed_sources.join(", ")));
    }
    let draw = |count: usize, on_this_node: &str| match count {
        1 => format!("to the only endpoint{on_this_node}"),
        _ => format!("to one of {count} endpoints{on_this_node} at random"),
    };
    let sticky = |seconds: &Option<u32>| {
        seconds.map(|seconds| format!("a client that came within {seconds} s: to the endpoint it had"))
    };
    match route {
        Route::Reject => steps.push("refused: no endpoint anywhere".to_owned()),
        Route::Drop => steps.push("dropped: policy Local, and no endpoint on this node".to_owned()),
        Route::Balance { backends, masquerade, affinity_seconds } => {
            if *masquerade || matches!(at.place, Place::Node(_)) {
                steps.push("marked for masquerade: the source will be this node".to_owned());
            }
            steps.extend(sticky(affinity_seconds));
            steps.push(draw(backends.len(), ""));
        }
        Route::LocalOnly { local, everywhere, affinity_seconds } => {
            steps.extend(sticky(affinity_seconds));
            steps.push(format!("from a pod of this node: {}", draw(everywhere.len(), "")));
            steps.push(format!("from this node itself: masqueraded, {}", draw(everywhere.len(), "")));
            steps.push(match local.len() {
                0 => "from elsewhere: dropped, no endpoint on this node".to_owned(),
                count => format!("from elsewhere: source kept, {}", draw(count, " on this node")),
            });
        }
    }
    steps
}

/// What each endpoint is used for.
fn endpoints<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    node: &NodeTopology,
    routes: &ServiceRoutes,
) -> Vec<EndpointUse> {
    let mut all = Vec::new();
    for slice in slices {
        for endpoint in &slice.endpoints {
            let address = endpoint.addresses.first().cloned().unwrap_or_default();
            let found = judge(service, slice, endpoint, node, routes);
            all.push(EndpointUse {
                address,
                slice: slice.metadata.name.to_string(),
                node: endpoint.node_name.as_ref().map(ToString::to_string),
                used: found.is_ok(),
                reason: found.unwrap_or_else(|reason| reason),
            });
        }
    }
    all
}

/// What an endpoint is used for, or why it is not.
fn judge(
    service: &Service,
    slice: &EndpointSlice,
    endpoint: &Endpoint,
    node: &NodeTopology,
    routes: &ServiceRoutes,
) -> Result<String, String> {
    let family = match slice.address_type.as_ref() {
        "IPv4" => Family::Ipv4,
        "IPv6" => Family::Ipv6,
        other => return Err(format!("slices of type {other} are left out")),
    };
    let Some(ip) = endpoint.addresses.first().and_then(|text| parse_ip(text)) else {
        return Err("its address cannot be read".to_owned());
    };
    if Family::of(ip) != family {
        return Err(format!("its address is none of type {}", slice.address_type));
    }
    if !routes.cluster_ips.iter().any(|ip| Family::of(*ip) == family) {
        return Err(format!("the Service has no {} address", slice.address_type));
    }
    let fits = |port: &&ServicePort| {
        slice.ports.iter().any(|p| {
            p.name == port.name && Protocol::parse(&p.protocol) == Protocol::parse(&port.protocol) && p.port.is_some()
        })
    };
    if !service.spec.ports.iter().any(|port| fits(&port)) {
        return Err("its slice has none of the Service's ports, by name and protocol".to_owned());
    }
    let mut uses = Vec::new();
    for path in &routes.paths {
        let (all, local) = path.route.backends();
        let has = |backends: &Backends| backends.iter().any(|backend| backend.ip == ip);
        if has(&all) {
            uses.push(path.frontend.to_string());
        } else if has(&local) {
            uses.push(format!("{} from outside", path.frontend));
        }
    }
    if uses.is_empty() { Err(why_unused(endpoint, node, service)) } else { Ok(format!("used by {}", uses.join(", "))) }
}

/// Why no frontend leads to an endpoint that could be reached.
fn why_unused(endpoint: &Endpoint, node: &NodeTopology, service: &Service) -> String {
    let conditions = &endpoint.conditions;
    if !conditions.ready.unwrap_or(true) {
        return match (conditions.terminating.unwrap_or(false), conditions.serving.unwrap_or(true)) {
            (true, true) => "terminating, and others are ready".to_owned(),
            (true, false) => "terminating, and it no longer serves".to_owned(),
            (false, _) => "not ready".to_owned(),
        };
    }
    let is_local = endpoint.node_name.as_ref() == Some(&node.name);
    if service.spec.internal_traffic_policy == TrafficPolicy::Local && !is_local {
        return "on another node, and internalTrafficPolicy is Local".to_owned();
    }
    if HintFit::of(&endpoint.hints.for_nodes, Some(&node.name)) == HintFit::Elsewhere {
        return "its topology hints name other nodes".to_owned();
    }
    if HintFit::of(&endpoint.hints.for_zones, node.zone.as_ref()) == HintFit::Elsewhere {
        let zone = node.zone.as_deref().unwrap_or("no zone");
        return format!("its topology hints name other zones than this node's ({zone})");
    }
    "another slice names the same address".to_owned()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Service {} on node {}", self.service, self.node)?;
        if let Some(reason) = &self.left_alone {
            writeln!(f, "  no rules: {reason}")?;
        }
        for frontend in &self.frontends {
            writeln!(f, "\n{}", frontend.frontend)?;
            frontend.path.iter().try_for_each(|step| writeln!(f, "  {step}"))?;
            for slot in &frontend.slots {
                writeln!(f, "  {}slot {:<4} {}", if slot.local { "local " } else { "" }, slot.slot, slot.endpoint)?;
            }
            for element in &frontend.elements {
                writeln!(f, "  {element}")?;
            }
        }
        if !self.endpoints.is_empty() {
            writeln!(f, "\nEndpoints")?;
        }
        for endpoint in &self.endpoints {
            let node = endpoint.node.as_deref().unwrap_or("-");
            let mark = if endpoint.used { '+' } else { '-' };
            writeln!(f, "  {mark} {} (node {node}, slice {}): {}", endpoint.address, endpoint.slice, endpoint.reason)?;
        }
        self.problems.iter().try_for_each(|problem| writeln!(f, "\nproblem: {problem}"))?;
        match self.differences.as_deref() {
            None => Ok(()),
            Some([]) => writeln!(f, "\nThe kernel holds all of it."),
            Some(differences) => {
                writeln!(f, "\nThe kernel differs:")?;
                differences.iter().try_for_each(|Difference { kind, element }| writeln!(f, "  {kind}: {element}"))
            }
        }
    }
}

#[cfg(test)]
mod tests;
