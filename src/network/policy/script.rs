//! The table of network policies as nft text: all of it, or the difference between two states. One script, one transaction.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use super::model::{Desired, Kind, SetName};

/// The table's name.
pub(in crate::network) const TABLE: &str = "inet stoker-policy";
/// Fails when the table is gone.
pub(super) const PROBE: &str = "list chain inet stoker-policy ingress\n";
/// Elements on one line.
const AT_ONCE: usize = 500;

/// Replies pass first: they belong to what was allowed. What the node itself sends or receives never gets here, so probes
/// reach every pod of the node.
const FIXED: &str = r#"
table inet stoker-policy {}
delete table inet stoker-policy
table inet stoker-policy {
	map egress4 { type ipv4_addr : verdict; comment "pods whose way out is restricted"; }
	map egress6 { type ipv6_addr : verdict; comment "pods whose way out is restricted"; }
	map ingress4 { type ipv4_addr : verdict; comment "pods whose way in is restricted"; }
	map ingress6 { type ipv6_addr : verdict; comment "pods whose way in is restricted"; }
	set self4 { type ipv4_addr . ipv4_addr; comment "a pod may always call itself"; }
	set self6 { type ipv6_addr . ipv6_addr; comment "a pod may always call itself"; }
	chain egress {
		type filter hook forward priority filter + 10; policy accept;
		ct state established,related accept
		ip saddr . ip daddr @self4 accept
		ip6 saddr . ip6 daddr @self6 accept
		ip saddr vmap @egress4
		ip6 saddr vmap @egress6
	}
	chain ingress {
		type filter hook forward priority filter + 11; policy accept;
		ct state established,related accept
		ip saddr . ip daddr @self4 accept
		ip6 saddr . ip6 daddr @self6 accept
		ip daddr vmap @ingress4
		ip6 daddr vmap @ingress6
	}
}
"#;

/// Everything, in place of whatever is there.
pub(super) fn whole(desired: &Desired) -> String {
    format!("{FIXED}{}", difference(&Desired::default(), desired))
}

/// What leads from one state to the other; empty when they are the same.
pub(super) fn difference(old: &Desired, new: &Desired) -> String {
    let mut script = String::new();
    // What is referred to comes before what refers to it, and goes after it.
    for (name, elements) in &new.sets {
        let known = old.sets.get(name);
        if known.is_some_and(|known| Arc::ptr_eq(known, elements)) {
            continue;
        }
        if known.is_none() {
            let _ = writeln!(script, "add set {TABLE} {} {{ {} }}", set_name(name), set_type(name));
        }
        let fresh = elements.iter().filter(|element| known.is_none_or(|known| !known.contains(*element)));
        list(&mut script, "add", &set_name(name), fresh.cloned().collect());
        let stale = known.into_iter().flat_map(|known| known.iter()).filter(|element| !elements.contains(*element));
        list(&mut script, "delete", &set_name(name), stale.cloned().collect());
    }
    // A chain of a pod jumps to chains of policies: all are made before any is filled.
    let fresh: Vec<_> = new.chains.iter().filter(|(name, _)| !old.chains.contains_key(*name)).collect();
    for (name, _) in &fresh {
        let _ = writeln!(script, "add chain {TABLE} {name}");
    }
    for (name, lines) in &fresh {
        for line in lines.iter() {
            let _ = writeln!(script, "add rule {TABLE} {name} {line}");
        }
    }
    for (map, old, new) in [("ingress", &old.ingress, &new.ingress), ("egress", &old.egress, &new.egress)] {
        for (family, ipv6) in [('4', false), ('6', true)] {
            let differs = |this: &BTreeMap<IpAddr, String>, other: &BTreeMap<IpAddr, String>| -> Vec<String> {
                let of_family = this.iter().filter(|(ip, _)| ip.is_ipv6() == ipv6);
                let differing = of_family.filter(|(ip, chain)| other.get(ip) != Some(chain));
                differing.map(|(ip, chain)| format!("{ip} : goto {chain}")).collect()
            };
            list(&mut script, "delete", &format!("{map}{family}"), differs(old, new));
            list(&mut script, "add", &format!("{map}{family}"), differs(new, old));
        }
    }
    for (family, ipv6) in [('4', false), ('6', true)] {
        let pairs = |this: &Desired, other: &Desired| -> Vec<String> {
            let isolated = |of: &Desired, ip: &IpAddr| of.ingress.contains_key(ip) || of.egress.contains_key(ip);
            let mut all: Vec<&IpAddr> = this.ingress.keys().chain(this.egress.keys()).collect();
            all.sort_unstable();
            all.dedup();
            let differing = all.into_iter().filter(|ip| ip.is_ipv6() == ipv6 && !isolated(other, ip));
            differing.map(|ip| format!("{ip} . {ip}")).collect()
        };
        list(&mut script, "add", &format!("self{family}"), pairs(new, old));
        list(&mut script, "delete", &format!("self{family}"), pairs(old, new));
    }
    let gone: Vec<_> = old.chains.keys().filter(|name| !new.chains.contains_key(*name)).collect();
    for name in &gone {
        let _ = writeln!(script, "flush chain {TABLE} {name}");
    }
    for name in &gone {
        let _ = writeln!(script, "delete chain {TABLE} {name}");
    }
    for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
        let _ = writeln!(script, "delete set {TABLE} {}", set_name(name));
    }
    script
}

fn list(script: &mut String, verb: &str, set: &str, elements: Vec<String>) {
    for part in elements.chunks(AT_ONCE) {
        let _ = writeln!(script, "{verb} element {TABLE} {set} {{ {} }}", part.join(", "));
    }
}

fn set_name(name: &SetName) -> String {
    let family = if name.ipv6 { 6 } else { 4 };
    match name.kind {
        Kind::Pods => format!("pods-{}-{family}", name.hash),
        Kind::Blocks => format!("blocks-{}-{family}", name.hash),
        Kind::Named => format!("named-{}-{family}", name.hash),
        Kind::Ports => format!("ports-{}", name.hash),
    }
}

fn set_type(name: &SetName) -> String {
    let address = if name.ipv6 { "ipv6_addr" } else { "ipv4_addr" };
    match name.kind {
        Kind::Pods => format!("type {address};"),
        Kind::Blocks => format!("type {address}; flags interval;"),
        Kind::Named => format!("type {address} . inet_proto . inet_service;"),
        Kind::Ports => "type inet_proto . inet_service; flags interval;".to_owned(),
    }
}
