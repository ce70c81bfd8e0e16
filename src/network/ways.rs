//! Which routes, neighbours and tunnels lead to the pods of other nodes: from Node objects, purely.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use stoker_model::network::ClusterNode;

use super::cidr::Cidr;
use super::rtnl::{Hop, Mac, parse_mac};

/// How pods of one node reach those of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Routes through the other nodes' addresses; all nodes are on one link.
    Routed,
    /// Tunnels, over any network.
    Vxlan,
}

/// The nodes of the cluster by name.
pub(super) type Nodes = BTreeMap<Arc<str>, ClusterNode>;

/// The tunnel device of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tunnel {
    pub(super) link: u32,
    /// The node's address that outer packets have.
    pub(super) underlay: IpAddr,
}

/// What the kernel should have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Ways {
    /// The ranges of this node's pods.
    pub(super) own: Vec<Cidr>,
    /// Those of all nodes' pods.
    pub(super) cluster: Vec<Cidr>,
    pub(super) routes: BTreeMap<Cidr, Hop>,
    /// Gateways on the tunnel device.
    pub(super) neighbours: BTreeMap<IpAddr, Mac>,
    /// Nodes at the other ends of the tunnels.
    pub(super) forwarding: BTreeMap<Mac, IpAddr>,
    /// What is wrong with which node.
    pub(super) problems: BTreeSet<String>,
}

/// The ways from `own` to everybody else.
pub(super) fn ways(own: &str, nodes: &Nodes, tunnel: Option<Tunnel>) -> Ways {
    let mut ways = Ways::default();
    if let Some(node) = nodes.get(own) {
        ways.own = ranges(node, &mut ways.problems);
    }
    for range in ways.own.clone() {
        ways.cluster.push(range);
        // Nobody has the address: without this it would go out by the default route, and come back.
        ways.routes.insert(range, Hop::Unreachable);
    }
    for (name, node) in nodes.iter().filter(|(name, _)| &***name != own) {
        for range in ranges(node, &mut ways.problems) {
            if ways.routes.contains_key(&range) {
                ways.problems.insert(format!("node {name}: its range {range} is another node's too"));
                continue;
            }
            let hop = match tunnel {
                None => direct(name, node, range),
                Some(tunnel) => through(tunnel, name, node, range, &mut ways),
            };
            match hop {
                Ok(hop) => {
                    ways.routes.insert(range, hop);
                    ways.cluster.push(range);
                }
                Err(problem) => {
                    ways.problems.insert(problem);
                }
            }
        }
    }
    ways
}

fn direct(name: &str, node: &ClusterNode, range: Cidr) -> Result<Hop, String> {
    let kind = if range.is_ipv4() { "IPv4" } else { "IPv6" };
    internal(node, range.is_ipv4())
        .map(Hop::Gateway)
        .ok_or_else(|| format!("node {name}: no {kind} InternalIP, so its pods in {range} cannot be reached"))
}

fn through(tunnel: Tunnel, name: &str, node: &ClusterNode, range: Cidr, ways: &mut Ways) -> Result<Hop, String> {
    let text = &node.metadata.annotations.vtep_mac;
    let mac = parse_mac(text).ok_or_else(|| {
        let annotation = stoker_model::network::VTEP_MAC;
        format!("node {name}: its annotation {annotation} is {text:?}, no hardware address (yet): is podNetwork vxlan there?")
    })?;
    let kind = if tunnel.underlay.is_ipv4() { "IPv4" } else { "IPv6" };
    let outer = internal(node, tunnel.underlay.is_ipv4())
        .ok_or_else(|| format!("node {name}: no {kind} InternalIP for the other end of a tunnel"))?;
    if ways.forwarding.get(&mac).is_some_and(|other| *other != outer) {
        return Err(format!("node {name}: its hardware address {text} is another node's too"));
    }
    let gateway = node_address(range);
    ways.forwarding.insert(mac, outer);
    ways.neighbours.insert(gateway, mac);
    Ok(Hop::OnLink(tunnel.link, gateway))
}

/// The address that the node itself has in a range of its pods.
pub(super) fn node_address(range: Cidr) -> IpAddr {
    range.nth(1).unwrap_or_else(|| range.address())
}

fn internal(node: &ClusterNode, ipv4: bool) -> Option<IpAddr> {
    let internal = node.status.addresses.iter().filter(|address| address.kind == "InternalIP");
    internal.filter_map(|address| address.address.parse().ok()).find(|ip: &IpAddr| ip.is_ipv4() == ipv4)
}

fn ranges(node: &ClusterNode, problems: &mut BTreeSet<String>) -> Vec<Cidr> {
    let spec = &node.spec;
    let texts: Vec<&String> = if spec.pod_cidrs.is_empty() {
        Some(&spec.pod_cidr).filter(|text| !text.is_empty()).into_iter().collect()
    } else {
        spec.pod_cidrs.iter().collect()
    };
    let mut ranges: Vec<Cidr> = Vec::new();
    for text in texts {
        match text.parse::<Cidr>() {
            Ok(range) if ranges.iter().any(|other| other.is_ipv4() == range.is_ipv4()) => {
                problems.insert(format!("node {}: {range} is a second range of its family", node.metadata.name));
            }
            Ok(range) => ranges.push(range),
            Err(error) => {
                problems.insert(format!("node {}: {error}", node.metadata.name));
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ranges: &[&str], addresses: &[&str], mac: &str) -> (Arc<str>, ClusterNode) {
        let addresses: Vec<_> =
            addresses.iter().map(|ip| serde_json::json!({"type": "InternalIP", "address": ip})).collect();
        let node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "annotations": {"stoker.dev/vtep-mac": mac}},
            "spec": {"podCIDRs": ranges}, "status": {"addresses": addresses},
        }));
        (name.into(), node.expect("a node"))
    }

    fn lines(ways: &Ways) -> Vec<String> {
        ways.routes.iter().map(|(range, hop)| format!("{range} {hop:?}")).collect()
    }

    const MAC: &str = "02:00:00:00:00:02";

    #[test]
    fn routed_ways_lead_through_the_address_of_the_same_family() {
        let nodes = Nodes::from([
            node("a", &["10.244.0.0/24", "fd00::/64"], &["192.0.2.1", "2001:db8::1"], ""),
            node("b", &["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.2", "2001:db8::2"], ""),
            node("four", &["10.244.2.0/24", "fd00:2::/64"], &["192.0.2.3"], ""),
            node("new", &[], &["192.0.2.4"], ""),
        ]);
        let ways = ways("a", &nodes, None);
        assert_eq!(
            lines(&ways),
            [
                "10.244.0.0/24 Unreachable",
                "10.244.1.0/24 Gateway(192.0.2.2)",
                "10.244.2.0/24 Gateway(192.0.2.3)",
                "fd00::/64 Unreachable",
                "fd00:1::/64 Gateway(2001:db8::2)",
            ]
        );
        assert_eq!(ways.cluster.len(), 5);
        assert_eq!(ways.problems.len(), 1, "{:?}", ways.problems);
    }

    #[test]
    fn tunnels_need_a_hardware_address_at_the_other_end() {
        let nodes = Nodes::from([
            node("a", &["10.244.0.0/24"], &["192.0.2.1"], "02:00:00:00:00:01"),
            node("b", &["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.2"], MAC),
            node("c", &["10.244.2.0/24"], &["192.0.2.3"], "soon"),
            node("twin", &["10.244.3.0/24"], &["192.0.2.4"], MAC),
        ]);
        let tunnel = Tunnel { link: 7, underlay: "192.0.2.1".parse().expect("an address") };
        let ways = ways("a", &nodes, Some(tunnel));
        assert_eq!(
            lines(&ways),
            ["10.244.0.0/24 Unreachable", "10.244.1.0/24 OnLink(7, 10.244.1.1)", "fd00:1::/64 OnLink(7, fd00:1::1)"]
        );
        assert_eq!(ways.neighbours.len(), 2);
        assert_eq!(ways.forwarding.into_values().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["192.0.2.2"]);
        assert_eq!(ways.problems.len(), 2, "{:?}", ways.problems);
    }

    #[test]
    fn wrong_ranges_are_told_and_the_rest_is_reached() {
        let nodes = Nodes::from([
            node("a", &["10.244.0.0/24"], &["192.0.2.1"], ""),
            node("b", &["10.244.0.0/24"], &["192.0.2.2"], ""),
            node("c", &["nonsense", "10.244.2.0/24", "10.244.3.0/24"], &["192.0.2.3"], ""),
        ]);
        let ways = ways("a", &nodes, None);
        assert_eq!(lines(&ways), ["10.244.0.0/24 Unreachable", "10.244.2.0/24 Gateway(192.0.2.3)"]);
        assert_eq!(ways.problems.len(), 3, "{:?}", ways.problems);
        assert!(super::ways("gone", &Nodes::new(), None).routes.is_empty());
    }
}
