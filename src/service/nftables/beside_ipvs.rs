//! The fixed part of our tables where IPVS balances: the same table and sets as `layout`, with other rules.
//!
//! A virtual server of IPVS takes a packet in the hooks input and output, after these rules, and sends it on with the
//! backend's address. So nothing here changes a destination: rules mark what has to be masqueraded on its way out, refuse
//! what no virtual server serves, and guard source ranges. Frontends that IPVS serves stand in the sets that hold routes with one
//! backend (`services-lb-1` and so on), whatever their number of backends.

use std::fmt::Write as _;

use super::layout::{MARK, PROTOCOLS, REFUSE, TABLE, Words, local_match, node_port_match, route_set, words};
use crate::service::config::ServiceConfig;
use crate::service::diff::{Balance, Key, Value, Verdict};
use crate::service::frontend::{Family, Place};

/// A chain that only these rules have.
pub(super) const MARK_LEAVING: &str = "mark-leaving";

/// A frontend that IPVS serves.
fn served(masquerade: bool) -> Balance {
    Balance { count: 1, local: false, masquerade, affinity_seconds: None }
}

/// The element that stands beside IPVS for one of the nftables data path; `None` where IPVS needs none.
pub(super) fn element(key: Key, value: Value) -> Option<(Key, Value)> {
    let value = match (key, value) {
        (
            Key::ClusterIp(_)
            | Key::Hairpin(_)
            | Key::ServiceRange(_)
            | Key::Guarded(_)
            | Key::Allowed(..)
            | Key::Refusal(_),
            value,
        ) => value,
        (Key::Route(at), Value::Verdict(verdict)) => {
            let masquerade = match verdict {
                Verdict::Balance(balance) => balance.masquerade,
                _ => false,
            };
            // Node ports that keep the source are no cluster IP and want no mark: no rule asks for them.
            if matches!(at.place, Place::Node(_)) && !masquerade {
                return None;
            }
            Value::Verdict(Verdict::Balance(served(masquerade)))
        }
        _ => return None,
    };
    Some((key, value))
}

/// The nft text that replaces our table of one family by an empty one.
pub(super) fn text(family: Family, config: &ServiceConfig, stamp: &str) -> String {
    let Words { table, header, address, loopback } = words(family);
    let vip = format!("{header} daddr . meta l4proto . th dport");
    let port = "meta l4proto . th dport";
    let bit = 1_u32 << config.masquerade_bit.min(31);
    let local = local_match(family, config);
    let node_ports = node_port_match(family, config, loopback);
    let (kept, masked) = (route_set(served(false), false), route_set(served(true), false));
    let masked_port = route_set(served(true), true);
    let mut t = String::new();
    let _ = writeln!(t, "table {table} {TABLE} {{}}\ndelete table {table} {TABLE}\ntable {table} {TABLE} {{");
    let _ = writeln!(t, "set {PROTOCOLS} {{ type inet_proto; elements = {{ tcp, udp, sctp }}; }}");
    for set in [kept.as_str(), &masked, "services-refused", "services-dropped", "guarded"] {
        let _ = writeln!(t, "set {set} {{ typeof {vip}; }}");
    }
    for set in [masked_port.as_str(), "nodeports-refused", "nodeports-dropped"] {
        let _ = writeln!(t, "set {set} {{ typeof {port}; }}");
    }
    let _ = writeln!(t, "set cluster-ips {{ type {address}; }}");
    let _ = writeln!(t, "set hairpins {{ type {address} . {address}; }}");
    let _ = writeln!(t, "set service-ranges {{ typeof {header} daddr . meta l4proto; flags interval; }}");
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
    let mut unless_local: Vec<String> = local.iter().map(|local| format!("{local} return")).collect();
    unless_local.push(format!("jump {MARK}"));
    chain("mark-unless-local", &unless_local);

    let external = [format!("{vip} @{masked} jump {MARK}"), format!("{node_ports} {port} @{masked_port} jump {MARK}")];
    let mut arriving = Vec::new();
    if config.masquerade_all {
        arriving.push(format!("{header} daddr @cluster-ips jump {MARK}"));
    } else if local.is_some() {
        arriving.push(format!("{header} daddr @cluster-ips jump mark-unless-local"));
    }
    arriving.extend(external.clone());
    // A service IP is an address of this machine, so that its own programs use it as their source, which no other node could
    // answer.
    let mut leaving = vec![format!("{vip} @{kept} jump {MARK}")];
    leaving.extend(external);
    chain("mark-arriving", &arriving);
    chain(MARK_LEAVING, &leaving);
    chain(
        "guard",
        &[
            format!("{vip} != @guarded return"),
            format!("{vip} . {header} saddr @allowed-sources return"),
            "drop".into(),
        ],
    );
    // Before IPVS, whose first hook for programs of this machine has priority -99.
    for (hook, target) in [("prerouting", "mark-arriving"), ("output", MARK_LEAVING)] {
        chain(
            &format!("guard-{hook}"),
            &[
                format!("type filter hook {hook} priority -110; policy accept;"),
                "ct state new jump guard".into(),
                format!("ct state new jump {target}"),
            ],
        );
    }
    chain(
        "postrouting",
        &[
            "type nat hook postrouting priority srcnat; policy accept;".into(),
            format!("meta mark and {bit:#x} == {bit:#x} meta mark set meta mark xor {bit:#x} masquerade fully-random"),
            format!("{header} saddr . {header} daddr @hairpins masquerade fully-random"),
        ],
    );
    // Frontends with policy Local and no backend here serve this node's own traffic only.
    let mut foreign: Vec<String> = local.iter().map(|local| format!("{local} return")).collect();
    foreign.extend(["fib saddr type local return".into(), "drop".into()]);
    chain("drop-foreign", &foreign);
    chain("dropped", &[format!("{vip} @{kept} goto drop-foreign"), "drop".into()]);
    let mut refused = vec![
        format!("{vip} @services-refused goto {REFUSE}"),
        format!("{vip} @services-dropped goto dropped"),
        format!("meta l4proto != @{PROTOCOLS} return"),
        format!("{vip} @{kept} return"),
        format!("{vip} @{masked} return"),
        format!("{header} daddr @cluster-ips goto {REFUSE}"),
    ];
    refused.push(format!("{header} daddr . meta l4proto @service-ranges fib daddr type != local drop"));
    chain("refused", &refused);
    chain(
        "refused-here",
        &[
            format!("{node_ports} {port} @nodeports-refused goto {REFUSE}"),
            format!("{node_ports} {port} @nodeports-dropped goto drop-foreign"),
            "goto refused".into(),
        ],
    );
    for (hook, target) in [("input", "refused-here"), ("forward", "refused"), ("output", "refused")] {
        chain(
            &format!("filter-{hook}"),
            &[
                format!("type filter hook {hook} priority filter; policy accept;"),
                format!("ct state new jump {target}"),
            ],
        );
    }
    t.push_str("}\n");
    t
}
