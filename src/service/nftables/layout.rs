//! The fixed part of our tables as nft text, and the names in it.
//!
//! The number of chains and rules is constant; what varies are elements. See [`text`] for the way of a packet.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::LazyLock;

use sha2::{Digest as _, Sha256};

use crate::service::config::{Cidr, LocalTraffic, ServiceConfig};
use crate::service::diff::{Balance, LOCAL_SLOTS, Verdict};
use crate::service::frontend::{Family, Place};

/// Our table's name in both families.
pub(super) const TABLE: &str = "stoker";
/// The set of protocols that balancing chains handle.
pub(super) const PROTOCOLS: &str = "protocols";
/// The chain that marks packets for masquerade.
pub(super) const MARK: &str = "mark-for-masquerade";
/// The chain that refuses packets.
pub(super) const REFUSE: &str = "refuse";

/// Frontends with up to so many backends have a set for each number instead of a verdict in a map. Nearly all Services have
/// fewer; each more costs a new connection one look-up, some 20 ns.
const OWN_SETS: u32 = 8;

/// What a family is called in nft text: its table family, its header, its address type.
pub(super) struct Words {
    pub(super) table: &'static str,
    pub(super) header: &'static str,
    pub(super) address: &'static str,
    pub(super) loopback: &'static str,
}

/// The words of one family.
pub(super) fn words(family: Family) -> Words {
    match family {
        Family::Ipv4 => Words { table: "ip", header: "ip", address: "ipv4_addr", loopback: "127.0.0.0/8" },
        Family::Ipv6 => Words { table: "ip6", header: "ip6", address: "ipv6_addr", loopback: "::1" },
    }
}

/// The chain whose name tells which fixed part is loaded; another text, another name.
pub(super) fn stamp(family: Family, text: &str) -> String {
    // The chains of affinity are no part of the fixed text, but another way to write them needs another table too.
    let balance = Balance { count: 2, local: false, masquerade: true, affinity_seconds: Some(1) };
    let mut all = text.to_owned();
    all.push_str(&super::sticky::text(family, balance, false, &mut BTreeSet::new(), &mut BTreeSet::new()));
    let digest = Sha256::digest(all.as_bytes());
    format!("layout-{}", hex::encode(&digest[..8]))
}

/// The nft text that replaces our table of one family by an empty one.
///
/// A new connection enters `services` from the NAT hooks. Its address, protocol and port (or protocol and port of a
/// NodePort) lead by one look-up to a chain `lb-N`, which draws one of N slots and looks up the backend there. What
/// no map sends on reaches the filter hooks with its old address and is refused there if it should be.
///
/// Why sets for few backends, where one verdict map would do: whenever an element that goes to a chain is added, the kernel
/// walks all elements of all verdict maps to look for loops (1.7 ms for each Service added to 10 000). A set has no verdicts.
pub(super) fn text(family: Family, config: &ServiceConfig, stamp: &str) -> String {
    let Words { table, header, address, loopback } = words(family);
    let vip = format!("{header} daddr . meta l4proto . th dport");
    let port = "meta l4proto . th dport";
    let slot = "numgen random mod 65536";
    let backend = format!("{header} daddr . th dport");
    let bit = 1_u32 << config.masquerade_bit.min(31);
    let local = local_match(family, config);
    let node_ports = node_port_match(family, config, loopback);
    let mut t = String::new();
    // Adding before deleting makes the deletion good where there was none.
    let _ = writeln!(t, "table {table} {TABLE} {{}}\ndelete table {table} {TABLE}\ntable {table} {TABLE} {{");
    let _ = writeln!(t, "set {PROTOCOLS} {{ type inet_proto; elements = {{ tcp, udp, sctp }}; }}");
    for (name, key, data) in [
        ("services", vip.as_str(), "verdict"),
        ("services-everywhere", &vip, "verdict"),
        ("services-local", &vip, "verdict"),
        ("nodeports", port, "verdict"),
        ("nodeports-everywhere", port, "verdict"),
        ("nodeports-local", port, "verdict"),
        ("endpoints", &format!("{slot} . {vip}"), &backend),
        ("nodeport-endpoints", &format!("{slot} . {port}"), &backend),
    ] {
        let _ = writeln!(t, "map {name} {{ typeof {key} : {data}; }}");
    }
    for (kind, key) in [("services", vip.as_str()), ("nodeports", port)] {
        for refusal in ["refused", "dropped"] {
            let _ = writeln!(t, "set {kind}-{refusal} {{ typeof {key}; }}");
        }
    }
    for (balance, node_port) in own_sets() {
        let key = if node_port { port } else { &vip };
        let _ = writeln!(t, "set {} {{ typeof {key}; }}", route_set(balance, node_port));
    }
    let _ = writeln!(t, "set cluster-ips {{ type {address}; }}");
    let _ = writeln!(t, "set hairpins {{ type {address} . {address}; }}");
    let _ = writeln!(t, "set service-ranges {{ typeof {header} daddr . meta l4proto; flags interval; }}");
    let _ = writeln!(t, "set guarded {{ typeof {vip}; }}");
    let _ = writeln!(t, "set allowed-sources {{ typeof {vip} . {header} saddr; flags interval; }}");

    let mut chain = |name: &str, rules: &[String]| {
        let _ = writeln!(t, "chain {name} {{");
        rules.iter().for_each(|rule| _ = writeln!(t, "{rule}"));
        let _ = writeln!(t, "}}");
    };
    if !stamp.is_empty() {
        chain(stamp, &[]);
    }
    chain(MARK, &[format!("meta mark set meta mark or {bit:#x}")]);
    chain(REFUSE, &["meta l4proto tcp reject with tcp reset".into(), "reject".into()]);
    for (kind, key) in [("services", vip.as_str()), ("nodeports", port)] {
        let marked = format!("{kind}-everywhere-marked");
        chain(&marked, &[format!("jump {MARK}"), format!("{key} vmap @{kind}-everywhere")]);
        let mut rules = Vec::new();
        rules.extend(local.iter().map(|local| format!("{local} {key} vmap @{kind}-everywhere")));
        rules.push(format!("fib saddr type local goto {marked}"));
        rules.push(format!("{key} vmap @{kind}-local"));
        chain(external_local(kind == "nodeports"), &rules);
    }
    for (balance, node_port) in own_sets() {
        let plain = balance_chain(Balance { masquerade: false, ..balance }, node_port);
        let (map, key) = if node_port { ("nodeport-endpoints", port) } else { ("endpoints", vip.as_str()) };
        let count = balance.count;
        let to = format!("numgen random mod {count} . {key} map @{map}");
        if !balance.masquerade || node_port {
            chain(&plain, &[format!("meta l4proto @{PROTOCOLS} dnat {header} to {to}")]);
        }
        if balance.masquerade {
            chain(&balance_chain(balance, node_port), &[format!("jump {MARK}"), format!("goto {plain}")]);
        }
    }
    let by_count = |key: &str, masquerade: bool, node_port: bool| -> Vec<String> {
        let ours = own_sets().filter(|(balance, of)| balance.masquerade == masquerade && *of == node_port);
        ours.map(|(balance, of)| format!("{key} @{} goto {}", route_set(balance, of), balance_chain(balance, of)))
            .collect()
    };
    let mut cluster_ips = Vec::new();
    if config.masquerade_all {
        cluster_ips.push(format!("jump {MARK}"));
    } else if local.is_some() {
        cluster_ips.push("jump mark-unless-local".to_owned());
    }
    cluster_ips.extend(by_count(&vip, false, false));
    cluster_ips.push(format!("{vip} vmap @services"));
    let mut node_port_rules = by_count(port, true, true);
    node_port_rules.push(format!("{port} vmap @nodeports"));
    let mut dispatch = vec![format!("{header} daddr @cluster-ips goto to-cluster-ip")];
    dispatch.extend(by_count(&vip, true, false));
    dispatch.push(format!("{vip} vmap @services"));
    dispatch.push(format!("{node_ports} goto to-node-port"));
    let mut unless_local: Vec<String> = local.iter().map(|local| format!("{local} return")).collect();
    unless_local.push(format!("jump {MARK}"));
    chain("mark-unless-local", &unless_local);
    chain("to-cluster-ip", &cluster_ips);
    chain("to-node-port", &node_port_rules);
    chain("dispatch", &dispatch);
    chain("prerouting", &["type nat hook prerouting priority dstnat; policy accept;".into(), "jump dispatch".into()]);
    chain("output", &["type nat hook output priority -100; policy accept;".into(), "jump dispatch".into()]);
    chain(
        "postrouting",
        &[
            "type nat hook postrouting priority srcnat; policy accept;".into(),
            format!("meta mark and {bit:#x} == {bit:#x} meta mark set meta mark xor {bit:#x} masquerade fully-random"),
            format!("ct status dnat {header} saddr . {header} daddr @hairpins masquerade fully-random"),
        ],
    );
    chain(
        "guard",
        &[
            format!("{vip} != @guarded return"),
            format!("{vip} . {header} saddr @allowed-sources return"),
            "drop".into(),
        ],
    );
    // Before destination NAT, while the packet still has the address that the guard knows.
    chain(
        "guard-prerouting",
        &["type filter hook prerouting priority dstnat - 10; policy accept;".into(), "ct state new jump guard".into()],
    );
    chain(
        "guard-output",
        &["type filter hook output priority -110; policy accept;".into(), "ct state new jump guard".into()],
    );
    let refused = [format!("{vip} @services-refused goto {REFUSE}"), format!("{vip} @services-dropped drop")];
    let mut unused = refused.to_vec();
    unused.push(format!("{header} daddr @cluster-ips goto {REFUSE}"));
    // But cluster DNS, which this machine answers itself.
    unused.push(format!("{header} daddr . meta l4proto @service-ranges fib daddr type != local drop"));
    chain("unused", &unused);
    let mut refused_here = vec![format!("{node_ports} {port} @nodeports-refused goto {REFUSE}")];
    refused_here.push(format!("{node_ports} {port} @nodeports-dropped drop"));
    refused_here.extend(refused);
    chain("refused-here", &refused_here);
    for (hook, target) in [("input", "refused-here"), ("forward", "unused"), ("output", "unused")] {
        let mut rules = vec![format!("type filter hook {hook} priority filter; policy accept;")];
        if hook == "input" && family == Family::Ipv4 && config.localhost_node_ports {
            // What route_localnet would let neighbours reach: programs that listen on loopback.
            rules.push(format!(
                "ip saddr != {loopback} ip daddr {loopback} ct state != {{ established, related }} ct status and dnat == 0x0 drop"
            ));
        }
        rules.push(format!("ct state new jump {target}"));
        chain(&format!("filter-{hook}"), &rules);
    }
    t.push_str("}\n");
    t
}

/// How many rules each chain of the fixed part has.
pub(super) fn rules(text: &str) -> BTreeMap<String, usize> {
    let mut chains = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            current = Some(chains.entry(name.to_owned()).or_insert(0));
        } else if line == "}" {
            current = None;
        } else if let Some(count) = &mut current
            && !line.starts_with("type ")
        {
            **count += 1;
        }
    }
    chains
}

/// How many rules a chain has that was made on first use.
pub(super) fn rules_made(chain: &str) -> Option<usize> {
    match verdict_of(chain) {
        Some(Verdict::Balance(Balance { masquerade: true, .. })) => Some(2),
        Some(Verdict::Balance(Balance { affinity_seconds: None, .. })) => Some(1),
        Some(Verdict::Balance(Balance { count, .. })) => usize::try_from(count).ok().map(|count| count + 1),
        _ => super::sticky::rules_of(chain),
    }
}

/// The match that recognises traffic of this node's pods.
pub(super) fn local_match(family: Family, config: &ServiceConfig) -> Option<String> {
    let header = words(family).header;
    match &config.local_traffic {
        LocalTraffic::Unknown => None,
        LocalTraffic::Sources(ranges) => {
            let ranges: Vec<String> =
                ranges.iter().filter(|range| range.family() == family).map(Cidr::to_string).collect();
            (!ranges.is_empty()).then(|| format!("{header} saddr {{ {} }}", ranges.join(", ")))
        }
        LocalTraffic::Bridge(name) => Some(format!("iifname {name:?}")),
        LocalTraffic::InterfacePrefix(prefix) => Some(format!("iifname {:?}", format!("{prefix}*"))),
    }
}

/// The match of packets to addresses that accept NodePorts (B1.4).
pub(super) fn node_port_match(family: Family, config: &ServiceConfig, loopback: &str) -> String {
    let header = words(family).header;
    let ranges: Vec<String> =
        config.node_port_addresses.iter().filter(|range| range.family() == family).map(Cidr::to_string).collect();
    // Loopback only where it is asked for: its packets may not leave, so upstream's nftables mode has no NodePorts there either.
    let any = match family == Family::Ipv4 && config.localhost_node_ports {
        true => "fib daddr type local".to_owned(),
        false => format!("fib daddr type local {header} daddr != {loopback}"),
    };
    if ranges.is_empty() || config.node_port_addresses.iter().any(|r| r.family() == family && r.is_everything()) {
        any
    } else {
        format!("{any} {header} daddr {{ {} }}", ranges.join(", "))
    }
}

fn external_local(node_port: bool) -> &'static str {
    if node_port { "nodeports-external-local" } else { "services-external-local" }
}

/// Whether routes of this balance are elements of a set of their own.
pub(super) fn has_own_set(balance: Balance) -> bool {
    balance.count <= OWN_SETS && !balance.local && balance.affinity_seconds.is_none()
}

/// The balances that have sets of their own: to cluster IPs, to other addresses, to NodePorts.
fn own_sets() -> impl Iterator<Item = (Balance, bool)> {
    [(false, false), (true, false), (true, true)].into_iter().flat_map(|(masquerade, node_port)| {
        (1..=OWN_SETS)
            .map(move |count| (Balance { count, local: false, masquerade, affinity_seconds: None }, node_port))
    })
}

/// The set of the routes of one balance, for example `services-lb-2` or `nodeports-external-lb-2`.
pub(super) fn route_set(balance: Balance, node_port: bool) -> String {
    let kind = if node_port { "nodeports" } else { "services" };
    format!("{kind}-{}", balance_chain(balance, false))
}

/// As [`route_set`] where there is one; made once, since thousands of elements are told by it.
pub(super) fn own_set(balance: Balance, node_port: bool) -> Cow<'static, str> {
    static NAMES: LazyLock<BTreeMap<(u32, bool, bool), String>> =
        LazyLock::new(|| own_sets().map(|(one, of)| ((one.count, one.masquerade, of), route_set(one, of))).collect());
    match NAMES.get(&(balance.count, balance.masquerade, node_port)) {
        Some(name) => Cow::Borrowed(name.as_str()),
        None => Cow::Owned(route_set(balance, node_port)),
    }
}

/// The reverse of [`route_set`].
pub(super) fn route_of(set: &str) -> Option<(Balance, bool)> {
    let (node_port, rest) = match set.strip_prefix("nodeports-") {
        Some(rest) => (true, rest),
        None => (false, set.strip_prefix("services-")?),
    };
    match verdict_of(rest)? {
        Verdict::Balance(balance) => Some((balance, node_port)),
        _ => None,
    }
}

/// The chain that a verdict goes to; `None` for dropping, which needs none.
pub(super) fn chain_of(verdict: Verdict, place: Place) -> Option<String> {
    let node_port = matches!(place, Place::Node(_));
    match verdict {
        Verdict::Drop => None,
        Verdict::Reject => Some(REFUSE.to_owned()),
        Verdict::ExternalLocal => Some(external_local(node_port).to_owned()),
        Verdict::Balance(balance) => Some(balance_chain(balance, node_port)),
    }
}

/// The name of a balancing chain, for example `lb-3` or `nodeport-external-lb-2`.
pub(super) fn balance_chain(balance: Balance, node_port: bool) -> String {
    let Balance { count, local, masquerade, affinity_seconds } = balance;
    let place = if node_port { "nodeport-" } else { "" };
    let external = if masquerade { "external-" } else { "" };
    let local = if local { "local-" } else { "" };
    match affinity_seconds {
        None => format!("{place}{external}{local}lb-{count}"),
        Some(seconds) => format!("{place}{external}{local}affinity-{seconds}s-{count}"),
    }
}

/// The verdict that goes to a chain, the reverse of [`chain_of`].
pub(super) fn verdict_of(chain: &str) -> Option<Verdict> {
    if chain == REFUSE {
        return Some(Verdict::Reject);
    }
    if chain == external_local(true) || chain == external_local(false) {
        return Some(Verdict::ExternalLocal);
    }
    let rest = chain.strip_prefix("nodeport-").unwrap_or(chain);
    let (masquerade, rest) = rest.strip_prefix("external-").map_or((false, rest), |rest| (true, rest));
    let (local, rest) = rest.strip_prefix("local-").map_or((false, rest), |rest| (true, rest));
    let (affinity_seconds, count) = match rest.strip_prefix("lb-") {
        Some(count) => (None, count),
        None => {
            let (seconds, count) = rest.strip_prefix("affinity-")?.split_once("s-")?;
            (Some(seconds.parse().ok()?), count)
        }
    };
    Some(Verdict::Balance(Balance { count: count.parse().ok()?, local, masquerade, affinity_seconds }))
}

/// The map that holds a slot of frontends with session affinity.
pub(super) fn slot_map(slot: u32, node_port: bool) -> String {
    let place = if node_port { "nodeport-" } else { "" };
    match slot.checked_sub(LOCAL_SLOTS) {
        None => format!("{place}slot-{slot}"),
        Some(slot) => format!("{place}local-slot-{slot}"),
    }
}

/// The slot whose map has that name, and whether it is one of NodePorts.
pub(super) fn slot_of(map: &str) -> Option<(u32, bool)> {
    let (node_port, rest) = map.strip_prefix("nodeport-").map_or((false, map), |rest| (true, rest));
    let (first, rest) = rest.strip_prefix("local-").map_or((0, rest), |rest| (LOCAL_SLOTS, rest));
    Some((rest.strip_prefix("slot-")?.parse::<u32>().ok()?.checked_add(first)?, node_port))
}
