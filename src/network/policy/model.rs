//! What the table of network policies holds, from policies, pods and namespaces; purely.
//!
//! A change compiles anew the policies that it concerns, and no others ([`Compiled`]).
//!
//! Each pod of this node that a policy isolates is one element of a map, whose verdict leads to a chain for the combination
//! of policies that select it; that chain asks the chain of each policy in turn and drops what none accepts. Peers and
//! ports are elements of sets. Chains are named by what they say, so equal ones are one, and a changed one is another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest as _, Sha256};
use stoker_model::network::{PeerPod, Policy};
use stoker_model::selector::{Labels, Selector};
use stoker_model::service::NamespacedName;

use super::ranges::{Span, merge, subtract};
use crate::network::cidr::{Cidr, from_number};

/// Everything that decides.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) policies: BTreeMap<NamespacedName, Policy>,
    pub(super) pods: BTreeMap<NamespacedName, Peer>,
    pub(super) namespaces: BTreeMap<Arc<str>, Labels>,
}

/// A pod, as policies see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Peer {
    node: Arc<str>,
    labels: Labels,
    addresses: Vec<IpAddr>,
    /// Name, protocol and number.
    ports: Vec<(String, Protocol, u16)>,
}

impl World {
    /// Takes in a pod; what changed, if it is anything that matters.
    pub(super) fn put_pod(&mut self, pod: PeerPod) -> Option<Change> {
        let key = NamespacedName { namespace: pod.metadata.namespace, name: pod.metadata.name };
        // Pods that ended have given their addresses back; those with the node's address are no peers.
        let over = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
        if over || pod.spec.host_network {
            return self.remove_pod(&key);
        }
        let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
        let ports = containers.flat_map(|container| &container.ports).filter(|port| !port.name.is_empty());
        let peer = Peer {
            node: pod.spec.node_name,
            labels: pod.metadata.labels,
            addresses: pod.status.pod_ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect(),
            ports: ports
                .filter_map(|port| {
                    Some((port.name.clone(), Protocol::parse(Some(&port.protocol)).ok()?, port.container_port))
                })
                .collect(),
        };
        if self.pods.get(&key) == Some(&peer) {
            return None;
        }
        let before = self.pods.insert(key.clone(), peer.clone());
        Some(Change::Pod(key, before.into_iter().chain([peer]).collect()))
    }

    /// Forgets a pod.
    pub(super) fn remove_pod(&mut self, key: &NamespacedName) -> Option<Change> {
        self.pods.remove(key).map(|before| Change::Pod(key.clone(), vec![before]))
    }
}

/// What changed in the world.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Policy(NamespacedName),
    /// A pod, as it was and as it is.
    Pod(NamespacedName, Vec<Peer>),
    /// The labels of a namespace.
    Namespace,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Result<Self, String> {
        match text.unwrap_or_default() {
            "" | "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "SCTP" => Ok(Self::Sctp),
            other => Err(format!("protocol {other:?} is not TCP, UDP or SCTP")),
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// What a set's elements are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Pods,
    Blocks,
    Ports,
    /// Address, protocol and port of pods with a named port.
    Named,
}

/// A set's name follows from kind, content or meaning, and family.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SetName {
    pub(super) kind: Kind,
    pub(super) hash: String,
    /// Without meaning for ports.
    pub(super) ipv6: bool,
}

/// What the table holds beside its fixed part.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Desired {
    /// Shared with the state before, where nothing of a set changed.
    pub(super) sets: BTreeMap<SetName, Arc<BTreeSet<String>>>,
    pub(super) chains: BTreeMap<String, Arc<Vec<String>>>,
    /// Isolated pods' addresses, and the chains for what comes in.
    pub(super) ingress: BTreeMap<IpAddr, String>,
    /// The same for what goes out.
    pub(super) egress: BTreeMap<IpAddr, String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    In,
    Out,
}

/// The policies, each with what it makes, so that a change costs what it concerns.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    pieces: BTreeMap<NamespacedName, Piece>,
}

/// What one policy makes.
#[derive(Debug, Default)]
struct Piece {
    scope: Scope,
    /// Pods of this node that it isolates, whether on their way out, and by which chain.
    isolated: Vec<(NamespacedName, bool, String)>,
    sets: BTreeMap<SetName, Arc<BTreeSet<String>>>,
    chains: BTreeMap<String, Arc<Vec<String>>>,
    problems: BTreeSet<String>,
}

/// Which pods a policy is about.
#[derive(Debug, Default)]
struct Scope {
    selector: Option<Selector>,
    /// Namespaces (`None`: the policy's own) and pods of its peers.
    peers: Vec<(Option<Selector>, Selector)>,
    /// Ports with names of whatever pod.
    everybody: bool,
}

impl Compiled {
    /// Whether there is no policy.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Takes in changes of the world.
    pub(super) fn refresh(&mut self, world: &World, node: &str, changes: &[Change]) {
        let mut stale: BTreeSet<&NamespacedName> = BTreeSet::new();
        for change in changes {
            match change {
                Change::Policy(name) => _ = stale.insert(name),
                Change::Pod(key, versions) => {
                    let concerned = world.policies.keys().filter(|name| {
                        self.pieces.get(*name).is_none_or(|piece| piece.concerns(name, key, versions, world, node))
                    });
                    stale.extend(concerned);
                }
                Change::Namespace => {
                    let by_namespace = |name: &&NamespacedName| {
                        self.pieces.get(*name).is_none_or(|piece| piece.scope.peers.iter().any(|(by, _)| by.is_some()))
                    };
                    stale.extend(world.policies.keys().filter(by_namespace));
                }
            }
        }
        let mut made = Vec::new();
        for name in stale {
            match world.policies.get(name) {
                Some(policy) => made.push((name.clone(), Some(piece(world, node, name, policy)))),
                None => made.push((name.clone(), None)),
            }
        }
        for (name, piece) in made {
            match piece {
                Some(mut piece) => {
                    if let Some(old) = self.pieces.get(&name) {
                        piece.share(old);
                    }
                    self.pieces.insert(name, piece);
                }
                None => _ = self.pieces.remove(&name),
            }
        }
    }

    /// What the table should hold, and what of the policies is not understood.
    pub(super) fn desired(&self, world: &World) -> (Desired, BTreeSet<String>) {
        let (mut desired, mut problems) = (Desired::default(), BTreeSet::new());
        // For each pod, the chains of its policies, with their names.
        let mut isolated: BTreeMap<(&NamespacedName, bool), BTreeSet<(&str, String)>> = BTreeMap::new();
        for (name, piece) in &self.pieces {
            let share = |(name, set): (&SetName, &Arc<BTreeSet<String>>)| (name.clone(), Arc::clone(set));
            desired.sets.extend(piece.sets.iter().map(share));
            desired.chains.extend(piece.chains.iter().map(|(name, lines)| (name.clone(), Arc::clone(lines))));
            problems.extend(piece.problems.iter().cloned());
            for (key, out, chain) in &piece.isolated {
                isolated.entry((key, *out)).or_default().insert((chain.as_str(), text_of(name)));
            }
        }
        for ((key, out), chains) in isolated {
            let mut lines: Vec<String> =
                chains.into_iter().map(|(chain, name)| format!("jump {chain} comment \"{name}\"")).collect();
            lines.push("drop".to_owned());
            let chain = chain_name("pod", &lines);
            desired.chains.insert(chain.clone(), Arc::new(lines));
            let map = if out { &mut desired.egress } else { &mut desired.ingress };
            for address in world.pods.get(key).into_iter().flat_map(|peer| &peer.addresses) {
                map.insert(*address, chain.clone());
            }
        }
        (desired, problems)
    }
}

impl Piece {
    /// Whether a pod, as it was or is, has to do with the policy.
    fn concerns(
        &self,
        name: &NamespacedName,
        key: &NamespacedName,
        versions: &[Peer],
        world: &World,
        node: &str,
    ) -> bool {
        let scope = &self.scope;
        let selects = |peer: &Peer| {
            let selector = scope.selector.as_ref();
            &*peer.node == node
                && key.namespace == name.namespace
                && selector.is_some_and(|selector| selector.matches(&peer.labels))
        };
        // Peers of a policy that isolates nobody here are in no set.
        let is_peer = |peer: &Peer| {
            let nothing = Labels::new();
            let labels = world.namespaces.get(&key.namespace).unwrap_or(&nothing);
            let inside = |by: &Option<Selector>| match by {
                None => key.namespace == name.namespace,
                Some(selector) => selector.matches(labels),
            };
            !self.isolated.is_empty()
                && (scope.everybody || scope.peers.iter().any(|(by, pods)| inside(by) && pods.matches(&peer.labels)))
        };
        versions.iter().any(|peer| selects(peer) || is_peer(peer))
    }

    /// Keeps the sets of the state before that are the same, so that they need not be compared again.
    fn share(&mut self, old: &Self) {
        for (name, set) in &mut self.sets {
            if let Some(before) = old.sets.get(name).filter(|before| *before == set) {
                *set = Arc::clone(before);
            }
        }
    }
}

/// What a policy makes on a node.
fn piece(world: &World, node: &str, name: &NamespacedName, policy: &Policy) -> Piece {
    let mut compiler = Compiler { world, piece: Piece::default() };
    let Some(selector) = compiler.selector(name, policy.spec.pod_selector.as_ref()) else { return compiler.piece };
    let is_local = |peer: &&Peer| &*peer.node == node && !peer.addresses.is_empty();
    let locals = pods_in(world, &name.namespace).filter(|(_, peer)| is_local(peer));
    let selected: Vec<_> = locals.filter(|(_, peer)| selector.matches(&peer.labels)).collect();
    compiler.piece.scope.selector = Some(selector);
    if selected.is_empty() {
        return compiler.piece;
    }
    let types = policy.spec.policy_types.clone().unwrap_or_default();
    let has = |kind: &str| types.iter().any(|its| its == kind);
    let egress = if types.is_empty() { policy.spec.egress.iter().flatten().next().is_some() } else { has("Egress") };
    if types.is_empty() || has("Ingress") {
        for (key, peer) in &selected {
            let chain = compiler.ingress_chain(name, policy, peer);
            compiler.piece.isolated.push(((*key).clone(), false, chain));
        }
    }
    if egress {
        let chain = compiler.egress_chain(name, policy);
        let isolated = selected.iter().map(|(key, _)| ((*key).clone(), true, chain.clone()));
        compiler.piece.isolated.extend(isolated);
    }
    compiler.piece
}

/// Everything at once.
#[cfg(test)]
fn compile(world: &World, node: &str) -> (Desired, BTreeSet<String>) {
    let mut compiled = Compiled::default();
    let all: Vec<Change> = world.policies.keys().cloned().map(Change::Policy).collect();
    compiled.refresh(world, node, &all);
    compiled.desired(world)
}

fn chain_name(prefix: &str, lines: &[String]) -> String {
    format!("{prefix}-{}", hash(&lines.join("\n")))
}

fn text_of(name: &NamespacedName) -> String {
    // The kernel keeps comments of at most 128 bytes.
    format!("{}/{}", name.namespace, name.name).chars().take(120).collect()
}

fn pods_in<'a>(world: &'a World, namespace: &Arc<str>) -> impl Iterator<Item = (&'a NamespacedName, &'a Peer)> {
    let first = NamespacedName { namespace: namespace.clone(), name: "".into() };
    let namespace = namespace.clone();
    world.pods.range(first..).take_while(move |(key, _)| key.namespace == namespace)
}

fn hash(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..8])
}

/// Ports that a rule allows.
enum Ports {
    All,
    Some { numbers: Vec<(Protocol, Span)>, named: Vec<(Protocol, String)> },
}

struct Compiler<'a> {
    world: &'a World,
    piece: Piece,
}

impl Compiler<'_> {
    fn problem(&mut self, policy: &NamespacedName, what: impl std::fmt::Display) {
        self.piece.problems.insert(format!("{}/{}: {what}", policy.namespace, policy.name));
    }

    fn selector(&mut self, policy: &NamespacedName, selector: Option<&LabelSelector>) -> Option<Selector> {
        match selector.map_or(Ok(Selector::everything()), Selector::of) {
            Ok(selector) => Some(selector),
            Err(error) => {
                self.problem(policy, error);
                None
            }
        }
    }

    fn chain(&mut self, prefix: &str, lines: Vec<String>) -> String {
        let name = chain_name(prefix, &lines);
        self.piece.chains.insert(name.clone(), Arc::new(lines));
        name
    }

    fn ingress_chain(&mut self, name: &NamespacedName, policy: &Policy, pod: &Peer) -> String {
        let mut lines = Vec::new();
        for rule in policy.spec.ingress.iter().flatten() {
            let mut ports = self.ports(name, rule.ports.as_deref());
            // The names are those of the pod that is called.
            if let Ports::Some { numbers, named } = &mut ports {
                for (protocol, wanted) in named.drain(..) {
                    let its = pod.ports.iter().filter(|(port, of, _)| *port == wanted && *of == protocol);
                    numbers.extend(its.map(|(_, _, number)| (protocol, (u128::from(*number), u128::from(*number)))));
                }
            }
            self.rule(name, Direction::In, rule.from.as_deref(), &ports, &mut lines);
        }
        self.chain("policy", lines)
    }

    fn egress_chain(&mut self, name: &NamespacedName, policy: &Policy) -> String {
        let mut lines = Vec::new();
        for rule in policy.spec.egress.iter().flatten() {
            let ports = self.ports(name, rule.ports.as_deref());
            self.rule(name, Direction::Out, rule.to.as_deref(), &ports, &mut lines);
        }
        self.chain("policy", lines)
    }

    fn ports(&mut self, name: &NamespacedName, ports: Option<&[NetworkPolicyPort]>) -> Ports {
        let Some(ports) = ports.filter(|ports| !ports.is_empty()) else { return Ports::All };
        let (mut numbers, mut named) = (Vec::new(), Vec::new());
        for port in ports {
            let protocol = match Protocol::parse(port.protocol.as_deref()) {
                Ok(protocol) => protocol,
                Err(problem) => {
                    self.problem(name, problem);
                    continue;
                }
            };
            match (&port.port, port.end_port) {
                (None, _) => numbers.push((protocol, (0, 65535))),
                (Some(IntOrString::String(text)), _) => named.push((protocol, text.clone())),
                (Some(IntOrString::Int(first)), last) => {
                    let last = last.unwrap_or(*first);
                    match (u16::try_from(*first), u16::try_from(last)) {
                        (Ok(first), Ok(last)) if first <= last => {
                            numbers.push((protocol, (first.into(), last.into())));
                        }
                        _ => self.problem(name, format!("ports {first} to {last} are no range of ports")),
                    }
                }
            }
        }
        Ports::Some { numbers, named }
    }

    /// The lines of one rule. Without peers it is for everybody.
    fn rule(
        &mut self,
        name: &NamespacedName,
        direction: Direction,
        peers: Option<&[NetworkPolicyPeer]>,
        ports: &Ports,
        lines: &mut Vec<String>,
    ) {
        let field = if direction == Direction::In { "saddr" } else { "daddr" };
        let peers = peers.unwrap_or_default();
        let mut matches: Vec<String> = Vec::new();
        if peers.is_empty() {
            matches.push(String::new());
        }
        let (blocks, selecting): (Vec<_>, Vec<_>) = peers.iter().partition(|peer| peer.ip_block.is_some());
        if !selecting.is_empty() {
            let set = self.pod_sets(name, &selecting);
            matches.extend([format!("ip {field} @{set}-4 "), format!("ip6 {field} @{set}-6 ")]);
        }
        if !blocks.is_empty() {
            let blocks: Vec<&IPBlock> = blocks.iter().filter_map(|peer| peer.ip_block.as_ref()).collect();
            matches.extend(self.block_matches(name, field, &blocks));
        }
        let ports_match = match ports {
            Ports::All => Some(String::new()),
            Ports::Some { numbers, .. } if numbers.is_empty() => None,
            Ports::Some { numbers, .. } => Some(format!("meta l4proto . th dport @{} ", self.port_set(numbers))),
        };
        if let Some(ports_match) = ports_match {
            lines.extend(matches.iter().map(|peer| format!("{peer}{ports_match}accept")));
        }
        if let (Ports::Some { named, .. }, Direction::Out) = (ports, direction)
            && !named.is_empty()
            && (peers.is_empty() || !selecting.is_empty())
        {
            let set = self.named_sets(name, &selecting, named);
            for (family, number) in [("ip", 4), ("ip6", 6)] {
                lines.push(format!("{family} daddr . meta l4proto . th dport @{set}-{number} accept"));
            }
        }
    }

    /// The pods that peers select, whichever node they are on.
    fn peers<'a>(&'a mut self, name: &NamespacedName, peers: &[&NetworkPolicyPeer]) -> Vec<&'a Peer> {
        let mut found: BTreeMap<&NamespacedName, &Peer> = BTreeMap::new();
        let world = self.world;
        for peer in peers {
            let Some(pods) = self.selector(name, peer.pod_selector.as_ref()) else { continue };
            let mut by = None;
            let namespaces: Vec<&Arc<str>> = match &peer.namespace_selector {
                None => vec![&name.namespace],
                Some(selector) => {
                    let Some(selector) = self.selector(name, Some(selector)) else { continue };
                    let selector = by.insert(selector);
                    world.namespaces.iter().filter(|(_, its)| selector.matches(its)).map(|(name, _)| name).collect()
                }
            };
            for namespace in namespaces {
                found.extend(pods_in(world, namespace).filter(|(_, peer)| pods.matches(&peer.labels)));
            }
            self.piece.scope.peers.push((by, pods));
        }
        found.into_values().collect()
    }

    /// Named by what they select, since what is selected changes.
    fn pod_sets(&mut self, name: &NamespacedName, peers: &[&NetworkPolicyPeer]) -> String {
        let hash = hash(&meaning(name, peers));
        let addresses: Vec<IpAddr> =
            self.peers(name, peers).iter().flat_map(|peer| peer.addresses.iter().copied()).collect();
        for ipv6 in [false, true] {
            let elements = addresses.iter().filter(|ip| ip.is_ipv6() == ipv6).map(ToString::to_string).collect();
            self.piece.sets.insert(SetName { kind: Kind::Pods, hash: hash.clone(), ipv6 }, Arc::new(elements));
        }
        format!("pods-{hash}")
    }

    fn named_sets(
        &mut self,
        name: &NamespacedName,
        peers: &[&NetworkPolicyPeer],
        named: &[(Protocol, String)],
    ) -> String {
        let hash = hash(&format!("{}{named:?}", meaning(name, peers)));
        let world = self.world;
        self.piece.scope.everybody |= peers.is_empty();
        let pods: Vec<&Peer> = if peers.is_empty() { world.pods.values().collect() } else { self.peers(name, peers) };
        let mut elements = [BTreeSet::new(), BTreeSet::new()];
        for pod in pods {
            let wanted = pod
                .ports
                .iter()
                .filter(|(port, of, _)| named.iter().any(|(protocol, name)| name == port && protocol == of));
            for (_, protocol, number) in wanted {
                for ip in &pod.addresses {
                    elements[usize::from(ip.is_ipv6())].insert(format!("{ip} . {} . {number}", protocol.text()));
                }
            }
        }
        for (ipv6, elements) in [false, true].into_iter().zip(elements) {
            self.piece.sets.insert(SetName { kind: Kind::Named, hash: hash.clone(), ipv6 }, Arc::new(elements));
        }
        format!("named-{hash}")
    }

    fn block_matches(&mut self, name: &NamespacedName, field: &str, blocks: &[&IPBlock]) -> Vec<String> {
        let mut spans = [Vec::new(), Vec::new()];
        for block in blocks {
            let range: Cidr = match block.cidr.parse() {
                Ok(range) => range,
                Err(error) => {
                    self.problem(name, error);
                    continue;
                }
            };
            let parsed: Result<Vec<Cidr>, _> = block.except.iter().flatten().map(|text| text.parse()).collect();
            match parsed {
                Ok(exceptions) => {
                    let same = exceptions.iter().filter(|other| other.is_ipv4() == range.is_ipv4());
                    let left = subtract(range.bounds(), same.map(|range| range.bounds()).collect());
                    spans[usize::from(!range.is_ipv4())].extend(left);
                }
                // Without the exception too much would pass.
                Err(error) => self.problem(name, error),
            }
        }
        let mut matches = Vec::new();
        for (ipv6, spans) in [false, true].into_iter().zip(spans) {
            let spans = merge(spans);
            let (family, protocol, number) = if ipv6 { ("ip6", "ipv6", 6) } else { ("ip", "ipv4", 4) };
            let all = if ipv6 { u128::MAX } else { u32::MAX.into() };
            match spans.as_slice() {
                [] => {}
                [(0, last)] if *last == all => matches.push(format!("meta nfproto {protocol} ")),
                spans => {
                    let text = |number: u128| from_number(number, !ipv6).to_string();
                    let elements: BTreeSet<String> = spans.iter().map(|span| span_text(*span, text)).collect();
                    let hash = hash(&format!("{elements:?}"));
                    matches.push(format!("{family} {field} @blocks-{hash}-{number} "));
                    self.piece.sets.insert(SetName { kind: Kind::Blocks, hash, ipv6 }, Arc::new(elements));
                }
            }
        }
        matches
    }

    fn port_set(&mut self, numbers: &[(Protocol, Span)]) -> String {
        let mut elements = BTreeSet::new();
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let spans = numbers.iter().filter(|(of, _)| *of == protocol).map(|(_, span)| *span).collect();
            let text = |span| format!("{} . {}", protocol.text(), span_text(span, |number| number.to_string()));
            elements.extend(merge(spans).into_iter().map(text));
        }
        let hash = hash(&format!("{elements:?}"));
        let name = format!("ports-{hash}");
        self.piece.sets.insert(SetName { kind: Kind::Ports, hash, ipv6: false }, Arc::new(elements));
        name
    }
}

fn span_text((first, last): Span, text: impl Fn(u128) -> String) -> String {
    if first == last { text(first) } else { format!("{}-{}", text(first), text(last)) }
}

/// What peers mean: the same in two policies of a namespace is the same set.
fn meaning(name: &NamespacedName, peers: &[&NetworkPolicyPeer]) -> String {
    let mut text = name.namespace.to_string();
    for peer in peers {
        let _ = write!(text, "\n{:?} {:?}", peer.pod_selector, peer.namespace_selector);
    }
    text
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
