//! What the cluster wants: the catalogue of Services and EndpointSlices, and the routes that follow from it.
//!
//! Pure: [`Model::apply`] notes which Services a change touches, [`Model::take_dirty`] hands them out, and [`routes`] compiles
//! one Service from its slices and this node's place. Nothing else is looked at, so one change costs one Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use stoker_model::service::{
    Endpoints, Hint, IpMode, KeptSlice, NamespacedName, NodeTopology, Service, ServiceByName, ServiceChange,
    ServicePort, ServiceType, SessionAffinity, Slices, TrafficPolicy, parse_ip,
};

use super::config::Cidr;
use super::frontend::{
    Backend, Backends, Claim, Family, Frontend, HashSet, MAX_BACKENDS, Path, Place, Problem, Protocol, Route,
    ServiceRoutes,
};

/// Seconds that `sessionAffinity: ClientIP` lasts when nobody said how long (B1.8).
const DEFAULT_AFFINITY_SECONDS: u32 = 10800;

/// The catalogue, what has changed in it, and where this node stands.
#[derive(Debug)]
pub struct Model {
    services: HashSet<ServiceByName>,
    slices: Slices,
    node: Arc<NodeTopology>,
    dirty: BTreeSet<NamespacedName>,
    /// While a list is under way: what it has brought so far.
    listing: Option<Listed>,
}

#[derive(Debug, Default)]
struct Listed {
    services: BTreeSet<NamespacedName>,
    slices: BTreeSet<(NamespacedName, Arc<str>)>,
}

impl Model {
    /// An empty catalogue that waits for its first complete list.
    pub fn new(node: Arc<NodeTopology>) -> Self {
        Self {
            services: HashSet::default(),
            slices: Slices::default(),
            node,
            dirty: BTreeSet::new(),
            listing: Some(Listed::default()),
        }
    }

    /// Whether the lists are complete: otherwise nothing may be programmed or removed (B1.2).
    pub fn is_complete(&self) -> bool {
        self.listing.is_none()
    }

    /// One Service as last seen.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        self.services.get(name).map(|ServiceByName(service)| service)
    }

    /// This node.
    pub fn node(&self) -> &NodeTopology {
        &self.node
    }

    /// Takes in one change.
    pub fn apply(&mut self, change: ServiceChange) {
        match change {
            ServiceChange::Service(service) => self.put_service(service),
            ServiceChange::ServiceGone(name) => self.drop_service(&name),
            ServiceChange::Slice(slice, _) => self.put_slice(slice),
            ServiceChange::SliceGone(service, name) => self.drop_slice(&service, &name),
            ServiceChange::Restarting => self.listing = Some(Listed::default()),
            ServiceChange::Complete => self.complete(),
        }
    }

    /// Moves this node; a new name or zone concerns every Service (topology hints, policy `Local`).
    pub fn set_node(&mut self, node: Arc<NodeTopology>) {
        if *node != *self.node {
            self.node = node;
            self.dirty.extend(self.services.iter().map(|service| service.0.metadata.key.clone()));
        }
    }

    /// The Services to compile again, in order; they count as clean from now on.
    pub fn take_dirty(&mut self) -> BTreeSet<NamespacedName> {
        std::mem::take(&mut self.dirty)
    }

    /// Compiles one Service; empty when it is not there.
    pub fn routes(&self, name: &NamespacedName) -> ServiceRoutes {
        let Some(service) = self.service(name) else { return ServiceRoutes::default() };
        routes(service, self.slices.of(name), &self.node)
    }

    fn put_service(&mut self, service: Arc<Service>) {
        let name = service.metadata.key.clone();
        if let Some(listing) = &mut self.listing {
            listing.services.insert(name.clone());
        }
        let same = self.service(&name).is_some_and(|old| {
            old.spec == service.spec
                && old.status == service.status
                && old.metadata.is_for_another_proxy == service.metadata.is_for_another_proxy
        });
        self.services.replace(ServiceByName(service));
        if !same {
            self.dirty.insert(name);
        }
    }

    fn drop_service(&mut self, name: &NamespacedName) {
        if self.services.remove(name) {
            self.dirty.insert(name.clone());
        }
    }

    fn put_slice(&mut self, slice: Arc<KeptSlice>) {
        let service = slice.service.clone();
        if service.name.is_empty() {
            return;
        }
        if let Some(listing) = &mut self.listing {
            listing.slices.insert((service.clone(), slice.name.clone()));
        }
        if self.slices.put(slice) {
            self.dirty.insert(service);
        }
    }

    fn drop_slice(&mut self, service: &NamespacedName, name: &str) {
        if self.slices.remove(service, name) {
            self.dirty.insert(service.clone());
        }
    }

    /// The list is over: what it did not bring is gone.
    fn complete(&mut self) {
        let Some(listed) = self.listing.take() else { return };
        let known = self.services.iter().map(|service| &service.0.metadata.key);
        let gone: Vec<_> = known.filter(|name| !listed.services.contains(*name)).cloned().collect();
        for name in gone {
            self.drop_service(&name);
        }
        let known = self.slices.iter().map(|slice| (slice.service.clone(), slice.name.clone()));
        let gone: Vec<_> = known.filter(|key| !listed.slices.contains(key)).collect();
        for (service, name) in gone {
            self.drop_slice(&service, &name);
        }
    }
}

/// The routes of one Service, seen from one node. Headless and ExternalName Services, and those of another proxy, have none
/// (B1.6).
pub fn routes(service: &Service, slices: &[Arc<KeptSlice>], node: &NodeTopology) -> ServiceRoutes {
    if service.spec.kind == ServiceType::ExternalName || service.metadata.is_for_another_proxy {
        return ServiceRoutes::default();
    }
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    let cluster_ips = cluster_ips(service, &mut problems);
    let mut hairpins = BTreeSet::new();
    let mut local_ready = BTreeSet::new();
    let mut serving = BTreeSet::new();
    let external = External::of(service, node, &mut problems);
    for port in &service.spec.ports {
        let Some(protocol) = Protocol::parse(&port.protocol) else {
            problems.push(Problem::Protocol(port.protocol.to_string()));
            continue;
        };
        for &cluster_ip in &cluster_ips {
            let family = Family::of(cluster_ip);
            let candidates = candidates(slices, port, protocol, family, node, &mut problems);
            hairpins.extend(candidates.iter().filter(|(_, c)| c.local).map(|(backend, _)| backend.ip));
            local_ready.extend(candidates.iter().filter(|(_, c)| c.local && c.ready).map(|(backend, _)| backend.ip));
            if protocol != Protocol::Tcp {
                let serve = candidates.iter().filter(|(_, c)| c.ready || c.serving);
                serving.extend(serve.map(|(&backend, _)| (protocol, backend)));
            }
            let choice = Choice::among(&candidates);
            let paths = PortPaths { service, external: &external, port, protocol, choice };
            paths.append_to(&mut all, cluster_ip, &mut problems);
        }
    }
    problems.sort_unstable();
    problems.dedup();
    let health_port = Some(service.spec.health_check_node_port)
        .filter(|port| *port != 0 && service.spec.external_traffic_policy == TrafficPolicy::Local);
    // One endpoint has an address of each family of the Service.
    let of = |family| local_ready.iter().filter(|ip| Family::of(**ip) == family).count();
    ServiceRoutes {
        paths: all.into(),
        cluster_ips: cluster_ips.into(),
        hairpins: hairpins.into_iter().collect(),
        serving: serving.into_iter().collect(),
        health_check: health_port.map(|port| (port, of(Family::Ipv4).max(of(Family::Ipv6)))),
        problems: problems.into(),
    }
}

/// The cluster IPs that are addresses; `None` and the empty text of headless and nameless Services are not.
fn cluster_ips(service: &Service, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let texts = service.spec.cluster_ips().iter().map(AsRef::as_ref).filter(|text| !matches!(*text, "" | "None"));
    let mut ips = addresses("spec.clusterIPs", texts, problems);
    ips.dedup();
    ips
}

/// The addresses among some texts; what is none becomes a problem.
fn addresses<'a>(
    field: &'static str,
    texts: impl Iterator<Item = &'a str>,
    problems: &mut Vec<Problem>,
) -> Vec<IpAddr> {
    let mut parse = |text: &str| {
        parse_ip(text).or_else(|| {
            problems.push(Problem::Address { field, value: text.to_owned() });
            None
        })
    };
    texts.filter_map(&mut parse).collect()
}

/// What lies outside the cluster: the addresses of a Service there, and who may use those of its load balancer.
#[derive(Debug)]
struct External {
    ips: Vec<IpAddr>,
    load_balancer: Vec<IpAddr>,
    /// None within another; of a family without any, everybody may come.
    allowed: BTreeSet<Cidr>,
}

impl External {
    fn of(service: &Service, node: &NodeTopology, problems: &mut Vec<Problem>) -> Self {
        let spec = &service.spec;
        let ips = addresses("spec.externalIPs", spec.external_ips.iter().map(AsRef::as_ref), problems);
        let mut all = Self { ips, load_balancer: Vec::new(), allowed: BTreeSet::new() };
        if spec.kind != ServiceType::LoadBalancer {
            return all;
        }
        let ingress = &service.status.load_balancer.ingress;
        let vips = ingress.iter().filter(|ingress| ingress.ip_mode != IpMode::Proxy && !ingress.ip.is_empty());
        all.load_balancer = addresses("status.loadBalancer.ingress", vips.map(|ingress| &*ingress.ip), problems);
        for text in &spec.load_balancer_source_ranges {
            match text.parse() {
                Ok(range) => _ = all.allowed.insert(range),
                Err(_) => problems.push(Problem::SourceRange(text.to_string())),
            }
        }
        for family in [Family::Ipv4, Family::Ipv6] {
            if all.allowed.iter().any(|range| range.family() == family && range.is_everything()) {
                all.allowed.retain(|range| range.family() != family);
            }
            // Where the address is also one of the node's own, the node's packets carry it as their source (B1.7).
            if all
                .allowed
                .iter()
                .any(|range| node.ips.iter().any(|ip| Family::of(*ip) == family && range.contains(*ip)))
            {
                all.allowed
                    .extend(all.load_balancer.iter().filter(|ip| Family::of(**ip) == family).map(|ip| Cidr::from(*ip)));
            }
        }
        let ranges = all.allowed.clone();
        all.allowed.retain(|range| !ranges.iter().any(|other| other != range && other.covers(*range)));
        all
    }

    /// Empty when everybody may come (B1.7).
    fn allowed_sources(&self, family: Family) -> Vec<Cidr> {
        self.allowed.iter().filter(|range| range.family() == family).copied().collect()
    }
}

/// What is known of one backend of one Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    node_hints: HintFit,
    zone_hints: HintFit,
}

/// Whether topology hints of one kind are there, and name this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HintFit {
    Absent,
    Elsewhere,
    Here,
}

impl HintFit {
    pub(super) fn of(hints: &[Hint], here: Option<&Arc<str>>) -> Self {
        match hints {
            [] => Self::Absent,
            hints if hints.iter().any(|hint| Some(&hint.name) == here) => Self::Here,
            _ => Self::Elsewhere,
        }
    }
}

fn family_of(slice: &KeptSlice) -> Option<Family> {
    match slice.endpoints {
        Endpoints::V4(_) => Some(Family::Ipv4),
        Endpoints::V6(_) => Some(Family::Ipv6),
        Endpoints::Names => None,
    }
}

/// All backends of one Service port in one family, from all slices, each once; of two with the same address and port one that
/// does not terminate wins (B1.23).
fn candidates(
    slices: &[Arc<KeptSlice>],
    port: &ServicePort,
    protocol: Protocol,
    family: Family,
    node: &NodeTopology,
    problems: &mut Vec<Problem>,
) -> BTreeMap<Backend, Candidate> {
    let mut found: BTreeMap<Backend, Candidate> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| family_of(slice) == Some(family)) {
        let ports =
            slice.ports.iter().filter(|p| p.name == port.name && Protocol::parse(&p.protocol) == Some(protocol));
        for number in ports.filter_map(|p| p.port).filter(|number| *number != 0) {
            problems.extend(slice.wrong.iter().map(|address| Problem::EndpointAddress {
                slice: slice.name.clone(),
                address: address.to_string(),
                family,
            }));
            for (ip, state) in slice.endpoints.iter() {
                let candidate = Candidate {
                    ready: state.ready,
                    serving: state.serving,
                    terminating: state.terminating,
                    local: state.node.as_ref() == Some(&node.name),
                    node_hints: HintFit::of(&state.hints.for_nodes, Some(&node.name)),
                    zone_hints: HintFit::of(&state.hints.for_zones, node.zone.as_ref()),
                };
                let backend = Backend { ip, port: number };
                let better = found.get(&backend).is_none_or(|old| old.terminating && !candidate.terminating);
                if better {
                    found.insert(backend, candidate);
                }
            }
        }
    }
    found
}

/// The backends that each traffic policy would use.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    cluster: Backends,
    local: Backends,
}

impl Choice {
    fn among(candidates: &BTreeMap<Backend, Candidate>) -> Self {
        let cluster = hinted(candidates).unwrap_or_else(|| usable(candidates, |_| true));
        Self { cluster: cluster.into_iter().collect(), local: usable(candidates, |c| c.local).into_iter().collect() }
    }
}

/// The ready ones, or if there is none those that still serve while they terminate (B1.22).
fn usable(candidates: &BTreeMap<Backend, Candidate>, fits: impl Fn(&Candidate) -> bool) -> Vec<Backend> {
    let select = |state: fn(&Candidate) -> bool| -> Vec<Backend> {
        candidates.iter().filter(|(_, c)| fits(c) && state(c)).map(|(&backend, _)| backend).collect()
    };
    let ready = select(|c| c.ready);
    if ready.is_empty() { select(|c| c.serving && c.terminating) } else { ready }
}

/// The ready ones whose hint names this node, else this zone; each kind counts only where all ready ones have it and one fits
/// (B1.25).
fn hinted(candidates: &BTreeMap<Backend, Candidate>) -> Option<Vec<Backend>> {
    let kinds: [fn(&Candidate) -> HintFit; 2] = [|c| c.node_hints, |c| c.zone_hints];
    kinds.into_iter().find_map(|kind| {
        let ready = candidates.iter().filter(|(_, c)| c.ready);
        if ready.clone().any(|(_, c)| kind(c) == HintFit::Absent) {
            return None;
        }
        let fitting: Vec<Backend> =
            ready.filter(|(_, c)| kind(c) == HintFit::Here).map(|(&backend, _)| backend).collect();
        (!fitting.is_empty()).then_some(fitting)
    })
}

/// One port of one Service in one family.
struct PortPaths<'a> {
    service: &'a Service,
    external: &'a External,
    port: &'a ServicePort,
    protocol: Protocol,
    choice: Choice,
}

impl PortPaths<'_> {
    fn append_to(mut self, paths: &mut Vec<Path>, cluster_ip: IpAddr, problems: &mut Vec<Problem>) {
        let family = Family::of(cluster_ip);
        self.limit(cluster_ip, problems);
        let mut add = |place, port, claim, route, allowed_sources: Vec<Cidr>| {
            let frontend = Frontend { place, protocol: self.protocol, port };
            match paths.iter_mut().find(|path| path.frontend == frontend) {
                // The same address twice, such as a load balancer's that is an external IP too: who is kept out, stays out.
                Some(path) => {
                    path.allowed_sources = path.allowed_sources.iter().copied().chain(allowed_sources).collect();
                }
                None => paths.push(Path { frontend, claim, route, allowed_sources: allowed_sources.into() }),
            }
        };
        add(Place::Address(cluster_ip), self.port.port, Claim::Allocated, self.internal(), Vec::new());
        if self.port.node_port != 0 {
            add(Place::Node(family), self.port.node_port, Claim::Allocated, self.external(), Vec::new());
        }
        let ours = |ip: &&IpAddr| Family::of(**ip) == family;
        for &ip in self.external.ips.iter().filter(ours) {
            add(Place::Address(ip), self.port.port, Claim::External, self.external(), Vec::new());
        }
        for (index, ip) in self.external.load_balancer.iter().enumerate().filter(|(_, ip)| ours(ip)) {
            if !self.external.load_balancer[..index].contains(ip) {
                let allowed = self.external.allowed_sources(family);
                add(Place::Address(*ip), self.port.port, Claim::External, self.external(), allowed);
            }
        }
    }

    /// No more backends than there are slots.
    fn limit(&mut self, cluster_ip: IpAddr, problems: &mut Vec<Problem>) {
        let count = self.choice.cluster.len().max(self.choice.local.len());
        if count > MAX_BACKENDS {
            let frontend =
                Frontend { place: Place::Address(cluster_ip), protocol: self.protocol, port: self.port.port };
            problems.push(Problem::TooManyBackends { frontend, count });
        }
        for side in [&mut self.choice.cluster, &mut self.choice.local] {
            if side.len() > MAX_BACKENDS {
                *side = side.iter().take(MAX_BACKENDS).collect();
            }
        }
    }

    fn affinity_seconds(&self) -> Option<u32> {
        let spec = &self.service.spec;
        (spec.session_affinity == SessionAffinity::ClientIP)
            .then(|| spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS))
    }

    fn balance(&self, backends: &Backends, masquerade: bool) -> Route {
        Route::Balance { backends: backends.clone(), masquerade, affinity_seconds: self.affinity_seconds() }
    }

    fn internal(&self) -> Route {
        let Choice { cluster, local } = &self.choice;
        match self.service.spec.internal_traffic_policy == TrafficPolicy::Local {
            false if cluster.is_empty() => Route::Reject,
            false => self.balance(cluster, false),
            true if !local.is_empty() => self.balance(local, false),
            true if cluster.is_empty() => Route::Reject,
            true => Route::Drop,
        }
    }

    fn external(&self) -> Route {
        let Choice { cluster, local } = &self.choice;
        if cluster.is_empty() {
            Route::Reject
        } else if self.service.spec.external_traffic_policy == TrafficPolicy::Local {
            Route::LocalOnly {
                local: local.clone(),
                everywhere: cluster.clone(),
                affinity_seconds: self.affinity_seconds(),
            }
        } else {
            self.balance(cluster, true)
        }
    }
}

#[cfg(test)]
mod tests;
