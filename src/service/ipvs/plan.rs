//! Which steps take IPVS from what it holds to what is wanted. Pure.
//!
//! Only what differs is written, so that a restart and a repair cost no connection. A backend that is not wanted any more gets
//! no new connections and goes when its old ones have ended (B1.28); one that comes back meanwhile is simply used again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::message::{HASH_PORTS, PERSISTENT, ServerKey, Settings};
use crate::service::config::Cidr;
use crate::service::frontend::{Backend, Family, Frontend, Place, Protocol, Route};

/// Weight of a backend that takes connections. All are alike.
pub(super) const WEIGHT: u32 = 1;

/// A virtual server: how it chooses, and its backends with their weights.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Server {
    pub(super) settings: Settings,
    pub(super) backends: BTreeMap<Backend, u32>,
}

/// One thing to tell IPVS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// A new virtual server.
    Add(ServerKey, Settings),
    /// Another scheduler or affinity.
    Set(ServerKey, Settings),
    /// The virtual server goes, with all its backends.
    Delete(ServerKey),
    /// A new backend.
    AddBackend(ServerKey, Backend),
    /// A backend takes connections again.
    UseBackend(ServerKey, Backend),
    /// The backend gets no new connections, and goes when the old ones have ended.
    Drain(ServerKey, Backend),
    /// The backend goes at once.
    DeleteBackend(ServerKey, Backend),
}

/// The virtual server that a route asks for; `None` where traffic is refused or dropped.
pub(super) fn server(scheduler: &str, route: &Route) -> Option<Server> {
    let (all, local) = route.backends();
    // As upstream: who comes from outside is kept off by a rule where there are none here, so that what comes here is ours.
    let backends = if local.is_empty() { all } else { local };
    if backends.is_empty() {
        return None;
    }
    let affinity = route.affinity_seconds();
    let mut flags = if affinity.is_some() { PERSISTENT } else { 0 };
    if scheduler == "mh" {
        flags |= HASH_PORTS;
    }
    Some(Server {
        settings: Settings { scheduler: scheduler.to_owned(), flags, timeout: affinity.unwrap_or(0) },
        backends: backends.iter().map(|backend| (backend, WEIGHT)).collect(),
    })
}

/// The virtual servers of a frontend: one, or one for each address that accepts NodePorts.
pub(super) fn keys(frontend: &Frontend, node_addresses: &BTreeSet<IpAddr>) -> Vec<ServerKey> {
    let Frontend { place, protocol, port } = *frontend;
    let key = |address: &IpAddr| ServerKey { address: *address, protocol, port };
    match place {
        Place::Address(address) => vec![key(&address)],
        Place::Node(family) => {
            node_addresses.iter().filter(|address| Family::of(**address) == family).map(key).collect()
        }
    }
}

/// The addresses of the machine that accept NodePorts (B1.4).
pub(super) fn accepting(addresses: BTreeSet<IpAddr>, ranges: &[Cidr]) -> BTreeSet<IpAddr> {
    if ranges.is_empty() {
        return addresses;
    }
    addresses.into_iter().filter(|address| ranges.iter().any(|range| range.contains(*address))).collect()
}

/// Appends what takes one virtual server from `held` to `wanted`.
pub(super) fn steps(key: ServerKey, held: Option<&Server>, wanted: Option<&Server>, steps: &mut Vec<Step>) {
    let Some(wanted) = wanted else {
        steps.extend(held.map(|_| Step::Delete(key)));
        return;
    };
    match held {
        None => steps.push(Step::Add(key, wanted.settings.clone())),
        Some(held) if held.settings != wanted.settings => steps.push(Step::Set(key, wanted.settings.clone())),
        Some(_) => {}
    }
    let empty = BTreeMap::new();
    let there = held.map_or(&empty, |held| &held.backends);
    for (backend, weight) in &wanted.backends {
        match there.get(backend) {
            None => steps.push(Step::AddBackend(key, *backend)),
            Some(old) if old != weight => steps.push(Step::UseBackend(key, *backend)),
            Some(_) => {}
        }
    }
    for backend in there.keys().filter(|backend| !wanted.backends.contains_key(*backend)) {
        // The kernel ends flows of the others with their next packet, which is what their users expect.
        steps.push(match key.protocol {
            Protocol::Tcp => Step::Drain(key, *backend),
            Protocol::Udp | Protocol::Sctp => Step::DeleteBackend(key, *backend),
        });
    }
}

/// Those of the waiting backends that wait no more: no connection, active or not, leads to them, or somebody removed them. Appends
/// what removes them (B1.28).
pub(super) fn drained(
    key: ServerKey,
    waiting: &[Backend],
    connections: &BTreeMap<Backend, u32>,
    steps: &mut Vec<Step>,
) -> Vec<Backend> {
    let mut ended = waiting.to_vec();
    ended.retain(|backend| connections.get(backend).is_none_or(|count| *count == 0));
    steps.extend(
        ended.iter().filter(|one| connections.contains_key(one)).map(|backend| Step::DeleteBackend(key, *backend)),
    );
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(last: u8) -> Backend {
        Backend { ip: [10, 244, 0, last].into(), port: 8080 }
    }

    fn balance(backends: &[u8], affinity_seconds: Option<u32>) -> Route {
        let backends = backends.iter().map(|last| backend(*last)).collect();
        Route::Balance { backends, masquerade: false, affinity_seconds }
    }

    fn key(protocol: Protocol) -> ServerKey {
        ServerKey { address: [10, 96, 0, 10].into(), protocol, port: 80 }
    }

    fn changes(protocol: Protocol, held: Option<&Route>, wanted: Option<&Route>) -> Vec<Step> {
        let (held, wanted) = (held.and_then(|r| server("rr", r)), wanted.and_then(|r| server("rr", r)));
        let mut all = Vec::new();
        steps(key(protocol), held.as_ref(), wanted.as_ref(), &mut all);
        all
    }

    #[test]
    fn only_the_difference_is_written() {
        let (tcp, udp) = (key(Protocol::Tcp), key(Protocol::Udp));
        let two = balance(&[1, 2], None);
        assert_eq!(changes(Protocol::Tcp, Some(&two), Some(&two)), []);
        assert_eq!(changes(Protocol::Tcp, Some(&two), None), [Step::Delete(tcp)]);
        assert_eq!(changes(Protocol::Tcp, Some(&two), Some(&Route::Reject)), [Step::Delete(tcp)]);
        let moved = balance(&[2, 3], None);
        let gone = [Step::AddBackend(tcp, backend(3)), Step::Drain(tcp, backend(1))];
        assert_eq!(changes(Protocol::Tcp, Some(&two), Some(&moved)), gone);
        let gone = [Step::AddBackend(udp, backend(3)), Step::DeleteBackend(udp, backend(1))];
        assert_eq!(changes(Protocol::Udp, Some(&two), Some(&moved)), gone);
        let sticky = server("rr", &balance(&[1, 2], Some(300))).expect("a server").settings;
        assert_eq!((sticky.flags, sticky.timeout), (PERSISTENT, 300));
        let set = [Step::Set(tcp, sticky)];
        assert_eq!(changes(Protocol::Tcp, Some(&two), Some(&balance(&[1, 2], Some(300)))), set);
    }

    #[test]
    fn a_backend_goes_with_its_last_connection() {
        // B1.28: TCP by weight 0, looked at each minute; what UDP loses is gone at once.
        assert_eq!(super::super::DRAIN_CHECK, std::time::Duration::from_secs(60));
        let (two, one) = (balance(&[1, 2], None), balance(&[2], None));
        let (tcp, udp) = (key(Protocol::Tcp), key(Protocol::Udp));
        assert_eq!(changes(Protocol::Tcp, Some(&two), Some(&one)), [Step::Drain(tcp, backend(1))]);
        assert_eq!(changes(Protocol::Udp, Some(&two), Some(&one)), [Step::DeleteBackend(udp, backend(1))]);
        let ended = |counts: &[(u8, u32)]| {
            let counts = counts.iter().map(|(last, count)| (backend(*last), *count)).collect();
            let mut all = Vec::new();
            (drained(tcp, &[backend(1), backend(3)], &counts, &mut all), all)
        };
        assert_eq!(ended(&[(1, 1), (2, 0), (3, 7)]), (Vec::new(), Vec::new()), "both still have connections");
        let third = Step::DeleteBackend(tcp, backend(3));
        assert_eq!(ended(&[(1, 1), (2, 0), (3, 0)]), (vec![backend(3)], vec![third.clone()]));
        assert_eq!(ended(&[(3, 0)]), (vec![backend(1), backend(3)], vec![third]), "somebody else removed the first");
    }

    #[test]
    fn a_backend_that_comes_back_is_used_again() {
        let wanted = server("rr", &balance(&[1], None)).expect("a server");
        let mut held = wanted.clone();
        held.backends.insert(backend(1), 0);
        let mut all = Vec::new();
        steps(key(Protocol::Tcp), Some(&held), Some(&wanted), &mut all);
        assert_eq!(all, [Step::UseBackend(key(Protocol::Tcp), backend(1))]);
    }

    #[test]
    fn local_backends_come_first_and_all_serve_this_node_where_there_are_none() {
        let route = |local: &[u8]| Route::LocalOnly {
            local: local.iter().map(|last| backend(*last)).collect(),
            everywhere: [backend(1), backend(2)].into_iter().collect(),
            affinity_seconds: None,
        };
        let backends = |route: &Route| server("rr", route).expect("a server").backends.into_keys().collect::<Vec<_>>();
        assert_eq!(backends(&route(&[2])), [backend(2)]);
        assert_eq!(backends(&route(&[])), [backend(1), backend(2)]);
    }

    #[test]
    fn node_ports_are_served_on_each_accepting_address() {
        let addresses: BTreeSet<IpAddr> =
            ["192.0.2.1", "198.51.100.1", "2001:db8::1"].iter().map(|a| a.parse().unwrap()).collect();
        let at = Frontend { place: Place::Node(Family::Ipv4), protocol: Protocol::Tcp, port: 30080 };
        assert_eq!(keys(&at, &addresses).len(), 2);
        let chosen = accepting(addresses, &["192.0.2.0/24".parse().unwrap()]);
        let found: Vec<IpAddr> = keys(&at, &chosen).iter().map(|key| key.address).collect();
        assert_eq!(found, [IpAddr::from([192, 0, 2, 1])]);
    }

    #[test]
    fn the_scheduler_mh_looks_at_ports() {
        assert_eq!(server("mh", &balance(&[1], None)).expect("a server").settings.flags, HASH_PORTS);
    }
}
