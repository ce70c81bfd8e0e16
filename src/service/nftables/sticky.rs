//! Session affinity in the kernel (B1.8): one map per slot, one set of clients per slot and time-out, and the chains that ask
//! them. All of it is made on first use, as nft text, so that `nft list` knows every type; only elements go over netlink.
//!
//! A client is remembered by the number of its backend's slot. So when a backend leaves its slot, its clients have to follow
//! it, or are freed when it is gone: [`moves`] works that out on what the sets hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::layout;
use crate::service::diff::{Balance, LOCAL_SLOTS, StickyChange};
use crate::service::frontend::{Family, Frontend, Place};
use crate::service::netlink::message::{Attributes, Messages};

/// Clients that one set remembers at most; more are balanced without memory. The sets grow as they fill.
const CLIENTS: u32 = 1 << 20;

const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_EXPIRATION: u16 = 5;
const DATA_VALUE: u16 = 1;

/// The set of the clients of one slot.
pub(super) fn clients_set(seconds: u32, slot: u32, node_port: bool) -> String {
    named("clients", seconds, slot, node_port)
}

/// The chain that renews a client's memory and sends it to its slot.
fn stick_chain(seconds: u32, slot: u32, node_port: bool) -> String {
    named("stick", seconds, slot, node_port)
}

fn named(kind: &str, seconds: u32, slot: u32, node_port: bool) -> String {
    let place = if node_port { "nodeport-" } else { "" };
    match slot.checked_sub(LOCAL_SLOTS) {
        None => format!("{place}{kind}-{seconds}s-{slot}"),
        Some(slot) => format!("{place}local-{kind}-{seconds}s-{slot}"),
    }
}

/// Whether a set holds clients, which belong to the kernel and are not compared with anything.
pub(super) fn is_clients_set(set: &str) -> bool {
    let rest = set.strip_prefix("nodeport-").unwrap_or(set);
    rest.strip_prefix("local-").unwrap_or(rest).starts_with("clients-")
}

/// How many rules a chain of affinity has; `None` for other chains.
pub(super) fn rules_of(chain: &str) -> Option<usize> {
    let rest = chain.strip_prefix("nodeport-").unwrap_or(chain);
    rest.strip_prefix("local-").unwrap_or(rest).starts_with("stick-").then_some(2)
}

/// The nft text for the balancing chain of one balance with affinity and all that it needs, but for what is there. Empty where
/// nothing is missing. The names of the new chains and sets are added to what is there.
pub(super) fn text(
    family: Family,
    balance: Balance,
    node_port: bool,
    chains: &mut BTreeSet<String>,
    sets: &mut BTreeSet<String>,
) -> String {
    let Some(seconds) = balance.affinity_seconds else { return String::new() };
    let layout::Words { header, address, .. } = layout::words(family);
    let (key, types) = if node_port {
        ("meta l4proto . th dport".to_owned(), "inet_proto . inet_service".to_owned())
    } else {
        (format!("{header} daddr . meta l4proto . th dport"), format!("{address} . inet_proto . inet_service"))
    };
    let client = format!("{header} saddr . {key}");
    let first = if balance.local { LOCAL_SLOTS } else { 0 };
    let mut t = String::new();
    let chain = layout::balance_chain(balance, node_port);
    let plain = layout::balance_chain(Balance { masquerade: false, ..balance }, node_port);
    if chains.insert(plain.clone()) {
        let mut asking = String::new();
        let mut drawn = Vec::new();
        for slot in first..first + balance.count {
            let (map, set) = (layout::slot_map(slot, node_port), clients_set(seconds, slot, node_port));
            let stick = stick_chain(seconds, slot, node_port);
            if sets.insert(map.clone()) {
                // Not `typeof`: nft 1.0.6 refuses `dnat` by a map that it read from the kernel with that.
                let _ = writeln!(t, "map {map} {{ type {types} : {address} . inet_service; }}");
            }
            if sets.insert(set.clone()) {
                let flags = format!("size {CLIENTS}; flags dynamic,timeout; timeout {seconds}s;");
                let _ = writeln!(t, "set {set} {{ typeof {client}; {flags} }}");
            }
            if chains.insert(stick.clone()) {
                let _ = writeln!(
                    t,
                    "chain {stick} {{\nupdate @{set} {{ {client} }}\nmeta l4proto @{} dnat {header} to {key} map @{map}\n}}",
                    layout::PROTOCOLS
                );
            }
            let _ = writeln!(asking, "{client} @{set} goto {stick}");
            drawn.push(format!("{} : goto {stick}", slot - first));
        }
        let draw = format!("numgen random mod {} vmap {{ {} }}", balance.count, drawn.join(", "));
        let _ = writeln!(t, "chain {plain} {{\n{asking}{draw}\n}}");
    }
    if balance.masquerade && chains.insert(chain.clone()) {
        let _ = writeln!(t, "chain {chain} {{\njump {}\ngoto {plain}\n}}", layout::MARK);
    }
    if t.is_empty() { t } else { format!("table {} {} {{\n{t}}}\n", layout::words(family).table, layout::TABLE) }
}

/// A client as its set holds it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Client {
    /// Source address, then the key of the frontend.
    key: Vec<u8>,
    /// Milliseconds until it is forgotten.
    expires_ms: u64,
}

/// Clients by the set that holds them.
pub(super) type Clients = BTreeMap<(Family, String), BTreeMap<Vec<u8>, u64>>;

/// Clients, each with its set.
pub(super) type ClientList = Vec<((Family, String), Client)>;

/// Reads one element of a dump.
pub(super) fn read_client(element: Attributes<'_>) -> Option<(Vec<u8>, u64)> {
    let key = element.nested(ELEM_KEY)?.get(DATA_VALUE)?.to_vec();
    // Without an expiration, which the kernel leaves out of a client added in this very moment: the shortest that is one.
    let expires = element.get(ELEM_EXPIRATION).and_then(|ms| ms.first_chunk()).map_or(1, |ms| u64::from_be_bytes(*ms));
    Some((key, expires))
}

/// Appends one client to a list; for a deletion its key alone.
pub(super) fn write_client(m: &mut Messages, client: &Client, with_expiration: bool) {
    m.nested(LIST_ELEM, |m| {
        m.nested(ELEM_KEY, |m| m.attribute(DATA_VALUE, &client.key));
        if with_expiration {
            m.attribute(ELEM_EXPIRATION, &client.expires_ms.max(1).to_be_bytes());
        }
    });
}

/// The sets that some changes are about.
pub(super) fn sets_of(changes: &[StickyChange]) -> BTreeSet<(Family, String)> {
    let sets = changes.iter().flat_map(|change| {
        [Some(change.from), change.to].into_iter().flatten().map(|slot| (change.frontend.family(), set(change, slot)))
    });
    sets.collect()
}

fn set(change: &StickyChange, slot: u32) -> String {
    clients_set(change.affinity_seconds, slot, matches!(change.frontend.place, Place::Node(_)))
}

/// What becomes of the clients: which to delete from which set, and which to add.
pub(super) fn moves(mut clients: Clients, changes: &[StickyChange]) -> [ClientList; 2] {
    let before = clients.clone();
    for change in changes {
        let family = change.frontend.family();
        let Some(from) = clients.get_mut(&(family, set(change, change.from))) else { continue };
        let ours: Vec<_> = from.extract_if(.., |key, _| belongs(family, key, &change.frontend)).collect();
        if let Some(to) = change.to {
            clients.entry((family, set(change, to))).or_default().extend(ours);
        }
    }
    let missing_in = |these: &Clients, others: &Clients| {
        let mut missing = Vec::new();
        for (set, held) in these {
            for (key, &expires_ms) in held {
                if others.get(set).is_none_or(|other| !other.contains_key(key)) {
                    missing.push((set.clone(), Client { key: key.clone(), expires_ms }));
                }
            }
        }
        missing
    };
    [missing_in(&before, &clients), missing_in(&clients, &before)]
}

/// Whether a client's key is about that frontend.
fn belongs(family: Family, key: &[u8], at: &Frontend) -> bool {
    let source = if family == Family::Ipv4 { 4 } else { 16 };
    key.get(source..) == Some(super::elements::frontend_bytes(at).as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::frontend::Protocol;

    fn at(port: u16) -> Frontend {
        Frontend { place: Place::Address([10, 96, 0, 1].into()), protocol: Protocol::Tcp, port }
    }

    type Held = (Vec<u8>, u64);

    fn client(last: u8, port: u16) -> Held {
        let key = [vec![192, 0, 2, last], super::super::elements::frontend_bytes(&at(port))].concat();
        (key, u64::from(last) * 1000)
    }

    fn sets(all: &[(u32, &[Held])]) -> Clients {
        let named = |slot: u32| (Family::Ipv4, clients_set(60, slot, false));
        all.iter().map(|(slot, held)| (named(*slot), held.iter().cloned().collect())).collect()
    }

    /// B1.8: clients of a backend that is gone are freed, those of the backend that moves into its slot move too, and other
    /// frontends' clients stay.
    #[test]
    fn clients_go_where_their_backend_goes() {
        let change = |from, to| StickyChange { frontend: at(80), affinity_seconds: 60, from, to };
        let there = sets(&[(0, &[client(1, 80), client(2, 81)]), (2, &[client(3, 80), client(4, 81)])]);
        let [delete, add] = moves(there, &[change(0, None), change(2, Some(0))]);
        let named = |slot: u32, (key, expires_ms): Held| {
            ((Family::Ipv4, clients_set(60, slot, false)), Client { key, expires_ms })
        };
        assert_eq!(delete, [named(0, client(1, 80)), named(2, client(3, 80))]);
        assert_eq!(add, [named(0, client(3, 80))]);
    }

    /// Two changes in one transaction are the same as one after the other.
    #[test]
    fn a_client_that_moves_twice_is_written_once() {
        let change = |from, to| StickyChange { frontend: at(80), affinity_seconds: 60, from, to };
        let [delete, add] = moves(sets(&[(2, &[client(3, 80)])]), &[change(2, Some(1)), change(1, Some(0))]);
        assert_eq!((delete.len(), add.len()), (1, 1));
        assert_eq!(add[0].0.1, "clients-60s-0");
        let [_, add] = moves(sets(&[(2, &[client(3, 80)])]), &[change(2, Some(1)), change(1, None)]);
        assert!(add.is_empty());
    }

    #[test]
    fn nothing_is_made_twice() {
        let (mut chains, mut sets) = (BTreeSet::new(), BTreeSet::new());
        let balance = |count| Balance { count, local: false, masquerade: true, affinity_seconds: Some(60) };
        let first = text(Family::Ipv4, balance(2), false, &mut chains, &mut sets);
        assert!(first.contains("chain external-affinity-60s-2 {") && first.contains("set clients-60s-1 {"), "{first}");
        assert_eq!(text(Family::Ipv4, balance(2), false, &mut chains, &mut sets), "");
        let more = text(Family::Ipv4, balance(3), false, &mut chains, &mut sets);
        assert!(more.contains("set clients-60s-2 {") && !more.contains("set clients-60s-1 {"), "{more}");
    }
}
