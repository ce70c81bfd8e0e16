//! What the table of network policies holds, from policies, pods and namespaces; purely.
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
    /// Takes in a pod; whether anything about it changed that matters.
    pub(super) fn put_pod(&mut self, pod: PeerPod) -> bool {
        let key = NamespacedName { namespace: pod.metadata.namespace, name: pod.metadata.name };
        // Pods that ended have given their addresses back; those with the node's address are no peers.
        let over = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
        if over || pod.spec.host_network {
            return self.pods.remove(&key).is_some();
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
            return false;
        }
        self.pods.insert(key, peer);
        true
    }
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
    pub(super) sets: BTreeMap<SetName, BTreeSet<String>>,
    pub(super) chains: BTreeMap<String, Vec<String>>,
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

/// What the table should hold on a node, and what of the policies is not understood.
pub(super) fn compile(world: &World, node: &str) -> (Desired, BTreeSet<String>) {
    let mut compiler = Compiler { world, desired: Desired::default(), problems: BTreeSet::new() };
    // For each pod, the chains of its policies, with their names.
    let mut isolated: BTreeMap<(&NamespacedName, bool), BTreeSet<(String, String)>> = BTreeMap::new();
    let is_local = |peer: &&Peer| &*peer.node == node && !peer.addresses.is_empty();
    for (name, policy) in &world.policies {
        let Some(selector) = compiler.selector(name, policy.spec.pod_selector.as_ref()) else { continue };
        let locals = pods_in(world, &name.namespace).filter(|(_, peer)| is_local(peer));
        let selected: Vec<_> = locals.filter(|(_, peer)| selector.matches(&peer.labels)).collect();
        if selected.is_empty() {
            continue;
        }
        let types = policy.spec.policy_types.clone().unwrap_or_default();
        let has = |kind: &str| types.iter().any(|its| its == kind);
        let egress =
            if types.is_empty() { policy.spec.egress.iter().flatten().next().is_some() } else { has("Egress") };
        if types.is_empty() || has("Ingress") {
            for (key, peer) in &selected {
                let chain = compiler.ingress_chain(name, policy, peer);
                isolated.entry((key, false)).or_default().insert((chain, text_of(name)));
            }
        }
        if egress {
            let chain = compiler.egress_chain(name, policy);
            for (key, _) in &selected {
                isolated.entry((key, true)).or_default().insert((chain.clone(), text_of(name)));
            }
        }
    }
    for ((key, out), chains) in isolated {
        let mut lines: Vec<String> =
            chains.into_iter().map(|(chain, name)| format!("jump {chain} comment \"{name}\"")).collect();
        lines.push("drop".to_owned());
        let chain = compiler.chain("pod", lines);
        let map = if out { &mut compiler.desired.egress } else { &mut compiler.desired.ingress };
        for address in &world.pods[key].addresses {
            map.insert(*address, chain.clone());
        }
    }
    (compiler.desired, compiler.problems)
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
    desired: Desired,
    problems: BTreeSet<String>,
}

impl Compiler<'_> {
    fn problem(&mut self, policy: &NamespacedName, what: impl std::fmt::Display) {
        self.problems.insert(format!("{}/{}: {what}", policy.namespace, policy.name));
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
        let name = format!("{prefix}-{}", hash(&lines.join("\n")));
        self.desired.chains.insert(name.clone(), lines);
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
            let namespaces: Vec<&Arc<str>> = match &peer.namespace_selector {
                None => vec![&name.namespace],
                Some(selector) => {
                    let Some(selector) = self.selector(name, Some(selector)) else { continue };
                    world.namespaces.iter().filter(|(_, its)| selector.matches(its)).map(|(name, _)| name).collect()
                }
            };
            for namespace in namespaces {
                found.extend(pods_in(world, namespace).filter(|(_, peer)| pods.matches(&peer.labels)));
            }
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
            self.desired.sets.insert(SetName { kind: Kind::Pods, hash: hash.clone(), ipv6 }, elements);
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
            self.desired.sets.insert(SetName { kind: Kind::Named, hash: hash.clone(), ipv6 }, elements);
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
                    self.desired.sets.insert(SetName { kind: Kind::Blocks, hash, ipv6 }, elements);
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
        self.desired.sets.insert(SetName { kind: Kind::Ports, hash, ipv6: false }, elements);
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
