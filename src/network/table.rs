//! The nftables table `inet stoker-pods`: host ports, and masquerade of what leaves the cluster.
//!
//! The rules are fixed; what varies is elements: a host port is one element of a map, whatever the number of pods.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::cidr::Cidr;

/// The table's name.
pub(super) const TABLE: &str = "inet stoker-pods";

/// What is fixed. Loading it again keeps elements and leaves no moment without rules.
const FIXED: &str = r#"
table inet stoker-pods {
	set pods4 { type ipv4_addr; flags interval; comment "pods of this node"; }
	set pods6 { type ipv6_addr; flags interval; comment "pods of this node"; }
	set cluster4 { type ipv4_addr; flags interval; comment "pods of the cluster"; }
	set cluster6 { type ipv6_addr; flags interval; comment "pods of the cluster"; }
	set hairpin4 { type ipv4_addr . ipv4_addr; comment "pods that may call themselves through a host port"; }
	set hairpin6 { type ipv6_addr . ipv6_addr; comment "pods that may call themselves through a host port"; }
	map ports4 { type inet_proto . inet_service : ipv4_addr . inet_service; comment "host ports on every address"; }
	map ports6 { type inet_proto . inet_service : ipv6_addr . inet_service; comment "host ports on every address"; }
	map addressports4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; comment "host ports on one address"; }
	map addressports6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; comment "host ports on one address"; }
	chain guard {
		type filter hook prerouting priority raw; policy accept;
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
	}
	chain output {
		type nat hook output priority -100; policy accept;
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
	}
	chain ports {
	}
}
flush chain inet stoker-pods guard
flush chain inet stoker-pods prerouting
flush chain inet stoker-pods output
flush chain inet stoker-pods postrouting
flush chain inet stoker-pods ports
table inet stoker-pods {
	chain guard {
		iifname "stk*" ip daddr 127.0.0.0/8 drop comment "no pod reaches what listens on the node's loopback only"
	}
	chain prerouting {
		fib daddr type local jump ports
	}
	chain output {
		fib daddr type local jump ports
	}
	chain ports {
		meta l4proto { tcp, udp, sctp } dnat ip to ip daddr . meta l4proto . th dport map @addressports4
		meta l4proto { tcp, udp, sctp } dnat ip to meta l4proto . th dport map @ports4
		meta l4proto { tcp, udp, sctp } dnat ip6 to ip6 daddr . meta l4proto . th dport map @addressports6
		meta l4proto { tcp, udp, sctp } dnat ip6 to meta l4proto . th dport map @ports6
	}
	chain postrouting {
		ct status dnat ip saddr 127.0.0.0/8 oifname "stk*" masquerade fully-random
		ct status dnat ip saddr . ip daddr @hairpin4 masquerade fully-random
		ct status dnat ip6 saddr . ip6 daddr @hairpin6 masquerade fully-random
		oifname != "stk*" ip saddr @pods4 ip daddr != @cluster4 ip daddr != 224.0.0.0/4 masquerade fully-random
		oifname != "stk*" ip6 saddr @pods6 ip6 daddr != @cluster6 ip6 daddr != { fe80::/10, ff00::/8 } masquerade fully-random
	}
}
"#;

/// Why nft did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum NftError {
    /// Not there.
    #[error("cannot run nft: install the nftables package, version 1.0.2 or newer")]
    NoNft(#[source] std::io::Error),
    /// It refused.
    #[error("nft refused the pod network's rules, which may mean that the kernel lacks nf_tables, NAT or fib: {0}")]
    Refused(String),
}

/// Runs a script as one transaction.
///
/// # Errors
/// When nft is missing or refuses; nothing of the script has taken effect then.
pub(super) fn run_nft(script: &str) -> Result<(), NftError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftError::NoNft)?;
    remember(child.id());
    if let Some(mut input) = child.stdin.take() {
        // When nft ends early its own message tells more than the broken pipe.
        let _ = input.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(NftError::NoNft)?;
    if output.status.success() {
        return Ok(());
    }
    Err(NftError::Refused(String::from_utf8_lossy(&output.stderr).trim().chars().take(600).collect()))
}

/// Netlink ports of the nft processes that ran last: the kernel gives a process's first socket the process ID as its port.
static OWN: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());

fn remember(port: u32) {
    // What they did is heard long before so many others have run.
    const REMEMBERED: usize = 64;
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    own.push_back(port);
    if own.len() > REMEMBERED {
        own.pop_front();
    }
}

/// Whether a change with that port was made by [`run_nft`] in this process.
pub(super) fn is_own(port: u32) -> bool {
    OWN.lock().unwrap_or_else(PoisonError::into_inner).contains(&port)
}

/// The fixed part alone.
pub(super) fn fixed() -> &'static str {
    FIXED
}

/// The fixed part and the ranges of pods: those of this node, and those of the cluster.
pub(super) fn with_ranges(own: &[Cidr], cluster: &[Cidr]) -> String {
    let mut script = FIXED.to_owned();
    for (set, ranges) in [("pods", own), ("cluster", cluster)] {
        for (family, ipv4) in [('4', true), ('6', false)] {
            let of_family: Vec<String> =
                merged(ranges).iter().filter(|range| range.is_ipv4() == ipv4).map(ToString::to_string).collect();
            let _ = writeln!(script, "flush set {TABLE} {set}{family}");
            if !of_family.is_empty() {
                let _ = writeln!(script, "add element {TABLE} {set}{family} {{ {} }}", of_family.join(", "));
            }
        }
    }
    script
}

/// Without those that lie in another one: the kernel refuses intervals that overlap.
fn merged(ranges: &[Cidr]) -> Vec<Cidr> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|range| (range.prefix(), range.address()));
    let mut kept: Vec<Cidr> = Vec::new();
    for range in sorted {
        if !kept.iter().any(|larger| larger.contains(range.address())) {
            kept.push(range);
        }
    }
    kept
}

/// A port of the node that leads to a pod, as the runtime hands it over. containerd writes the names with capitals, which
/// plugins in Go take for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PortMapping {
    /// The node's port.
    #[serde(alias = "HostPort")]
    pub(super) host_port: u16,
    /// The pod's port.
    #[serde(alias = "ContainerPort")]
    pub(super) container_port: u16,
    /// `tcp`, `udp` or `sctp`, in any case.
    #[serde(alias = "Protocol")]
    pub(super) protocol: String,
    /// The only address of the node on which it answers; empty: all.
    #[serde(rename = "hostIP", alias = "HostIP")]
    pub(super) host_ip: String,
}

impl Default for PortMapping {
    fn default() -> Self {
        Self { host_port: 0, container_port: 0, protocol: "tcp".to_owned(), host_ip: String::new() }
    }
}

/// One element: map or set, and its text.
pub(super) type Element = (&'static str, String);

/// The elements of a pod's host ports.
///
/// # Errors
/// Names what is wrong with a mapping.
pub(super) fn elements(addresses: &[IpAddr], mappings: &[PortMapping]) -> Result<Vec<Element>, String> {
    let mut elements = Vec::new();
    // Kubernetes hands over ports without a host port too.
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let protocol = mapping.protocol.to_ascii_lowercase();
        if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
            return Err(format!("portMappings: protocol {:?} is not tcp, udp or sctp", mapping.protocol));
        }
        if mapping.container_port == 0 {
            return Err(format!("portMappings: hostPort {} has no containerPort", mapping.host_port));
        }
        let on: Option<IpAddr> = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| format!("portMappings: hostIP {text:?} is not an IP address"))?),
        };
        let (from, to) = (mapping.host_port, mapping.container_port);
        for address in addresses {
            let six = address.is_ipv6();
            match on.filter(|on| !on.is_unspecified()) {
                Some(on) if on.is_ipv6() == six => elements.push((
                    if six { "addressports6" } else { "addressports4" },
                    format!("{on} . {protocol} . {from} : {address} . {to}"),
                )),
                None if on.is_none_or(|on| on.is_ipv6() == six) => elements
                    .push((if six { "ports6" } else { "ports4" }, format!("{protocol} . {from} : {address} . {to}"))),
                _ => {}
            }
        }
    }
    if !elements.is_empty() {
        for address in addresses {
            let set = if address.is_ipv6() { "hairpin6" } else { "hairpin4" };
            elements.push((set, format!("{address} . {address}")));
        }
    }
    Ok(elements)
}

/// A script that adds the elements; it fails where one leads elsewhere already.
pub(super) fn add(elements: &[Element]) -> String {
    elements.iter().map(|(name, text)| format!("add element {TABLE} {name} {{ {text} }}\n")).collect()
}

/// A script that deletes the elements, whether they are there or not; it fails where one leads elsewhere.
pub(super) fn delete(elements: &[Element]) -> String {
    // A deletion of what is not there would fail the whole: it is added first, in the same transaction.
    let delete = elements.iter().map(|(name, text)| format!("delete element {TABLE} {name} {{ {text} }}\n"));
    add(elements) + &delete.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host: u16, container: u16, protocol: &str, ip: &str) -> PortMapping {
        PortMapping { host_port: host, container_port: container, protocol: protocol.into(), host_ip: ip.into() }
    }

    #[track_caller]
    fn check(mapping: PortMapping, expected: &[(&str, &str)]) {
        let pod = ["10.244.0.5".parse().expect("an address"), "fd00::5".parse().expect("an address")];
        let found = elements(&pod, &[mapping]).expect("valid");
        let found: Vec<_> = found
            .iter()
            .filter(|(name, _)| !name.starts_with("hairpin"))
            .map(|(name, text)| (*name, text.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_host_port_becomes_one_element_of_each_family() {
        let both = [("ports4", "tcp . 8080 : 10.244.0.5 . 80"), ("ports6", "tcp . 8080 : fd00::5 . 80")];
        check(mapping(8080, 80, "TCP", ""), &both);
        check(mapping(8080, 80, "tcp", "0.0.0.0"), &both[..1]);
        check(mapping(8080, 80, "tcp", "::"), &both[1..]);
        check(mapping(53, 53, "UDP", "192.0.2.1"), &[("addressports4", "192.0.2.1 . udp . 53 : 10.244.0.5 . 53")]);
        check(mapping(53, 53, "SCTP", "2001:db8::1"), &[("addressports6", "2001:db8::1 . sctp . 53 : fd00::5 . 53")]);
        check(mapping(0, 80, "tcp", ""), &[]);
    }

    #[test]
    fn containerds_spelling_is_read() {
        let text = r#"{"HostPort":8090,"ContainerPort":8080,"Protocol":"tcp","HostIP":"192.0.2.1"}"#;
        let read: PortMapping = serde_json::from_str(text).expect("a mapping");
        assert_eq!(read, mapping(8090, 8080, "tcp", "192.0.2.1"));
    }

    #[test]
    fn a_wrong_mapping_is_named() {
        let pod = ["10.244.0.5".parse().expect("an address")];
        for (wrong, names) in [
            (mapping(1, 1, "icmp", ""), "icmp"),
            (mapping(1, 0, "tcp", ""), "containerPort"),
            (mapping(1, 1, "tcp", "localhost"), "localhost"),
        ] {
            let error = elements(&pod, &[wrong]).expect_err("wrong");
            assert!(error.contains(names), "{error}");
        }
    }

    #[test]
    fn ranges_within_others_are_left_out() {
        let ranges: Vec<Cidr> = ["10.244.1.0/24", "10.244.0.0/16", "fd00::/64", "10.245.0.0/24", "10.244.0.0/16"]
            .iter()
            .map(|text| text.parse().expect("a range"))
            .collect();
        let script = with_ranges(&ranges[..1], &ranges);
        assert!(script.contains("add element inet stoker-pods pods4 { 10.244.1.0/24 }\n"), "{script}");
        assert!(script.contains("cluster4 { 10.244.0.0/16, 10.245.0.0/24 }\n"), "{script}");
        assert!(script.contains("cluster6 { fd00::/64 }\n") && !script.contains("pods6 {  }"), "{script}");
    }
}
