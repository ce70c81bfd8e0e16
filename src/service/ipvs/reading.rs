//! What IPVS holds, compared with what a route asks for: for `stoker service explain --verify`. Changes nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use super::IpvsError;
use super::links::{DUMMY, Links};
use super::message::{PERSISTENT, ServerKey};
use super::plan::{self, Server};
use super::socket::Ipvs;
use crate::service::frontend::{Frontend, Place, Route};

/// The virtual servers and addresses of this machine at one moment.
#[derive(Debug, Default)]
pub struct Reading {
    servers: HashMap<ServerKey, Server>,
    /// Of `kube-ipvs0`.
    bound: HashSet<IpAddr>,
    /// Of all other interfaces.
    others: BTreeSet<IpAddr>,
}

/// One thing that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Differing {
    /// `missing` or `unexpected`
    pub kind: &'static str,
    /// The virtual server, or the interface.
    pub holder: String,
    /// What of it.
    pub what: String,
}

/// Reads them.
///
/// # Errors
/// When the kernel has no IPVS or does not answer.
pub fn read() -> Result<Reading, IpvsError> {
    let failed = |source| IpvsError::Netlink { what: "read addresses", source };
    let mut ipvs = Ipvs::open_if_loaded()?.ok_or(IpvsError::NoKernelSupport)?;
    let mut links = Links::open().map_err(IpvsError::Open)?;
    links.look_for_dummy().map_err(failed)?;
    let (bound, others) = links.addresses().map_err(failed)?;
    Ok(Reading { servers: ipvs.read()?, bound, others })
}

impl Reading {
    /// The virtual servers of one frontend. Of a NodePort those that are there, which are fewer than the addresses of this machine where
    /// `nodePortAddresses` chooses; if none is, any.
    fn keys(&self, at: &Frontend) -> Vec<ServerKey> {
        let all = plan::keys(at, &self.others);
        if let Place::Address(_) = at.place {
            return all;
        }
        let there: Vec<ServerKey> = all.iter().filter(|key| self.servers.contains_key(key)).copied().collect();
        if there.is_empty() { all.into_iter().take(1).collect() } else { there }
    }

    /// The virtual servers of one frontend with their backends, in words.
    pub fn lines(&self, at: &Frontend) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        for key in self.keys(at) {
            for (backend, weight) in self.servers.get(&key).into_iter().flat_map(|server| &server.backends) {
                let state = if *weight == 0 { ", which waits for the end of its connections" } else { "" };
                lines.push((name(&key), format!("{backend}{state}")));
            }
        }
        lines
    }

    /// Where the kernel differs from a route; the scheduler is the operator's affair.
    pub fn differences(&self, at: &Frontend, route: &Route) -> Vec<Differing> {
        let mut found = Vec::new();
        let mut add = |kind, holder: String, what: String| found.push(Differing { kind, holder, what });
        if let Place::Address(address) = at.place
            && !self.bound.contains(&address)
            && !self.others.contains(&address)
        {
            add("missing", DUMMY.to_owned(), format!("address {address}"));
        }
        let wanted = plan::server("", route);
        for key in self.keys(at) {
            let (held, holder) = (self.servers.get(&key), name(&key));
            match (held, &wanted) {
                (None, None) => {}
                (None, Some(_)) => add("missing", holder, "the virtual server".to_owned()),
                (Some(_), None) => add("unexpected", holder, "a virtual server where traffic is refused".to_owned()),
                (Some(held), Some(wanted)) => {
                    let sticky = |server: &Server| {
                        let persistent = server.settings.flags & PERSISTENT != 0;
                        persistent.then_some(server.settings.timeout)
                    };
                    if sticky(held) != sticky(wanted) {
                        let words = |seconds: Option<u32>| match seconds {
                            Some(seconds) => format!("clients stay for {seconds} s"),
                            None => "clients do not stay".to_owned(),
                        };
                        add("missing", holder.clone(), words(sticky(wanted)));
                        add("unexpected", holder.clone(), words(sticky(held)));
                    }
                    for backend in wanted.backends.keys() {
                        if held.backends.get(backend).is_none_or(|weight| *weight == 0) {
                            add("missing", holder.clone(), backend.to_string());
                        }
                    }
                    for (backend, _) in held.backends.iter().filter(|(_, weight)| **weight > 0) {
                        if !wanted.backends.contains_key(backend) {
                            add("unexpected", holder.clone(), backend.to_string());
                        }
                    }
                }
            }
        }
        found
    }
}

fn name(key: &ServerKey) -> String {
    let place = Place::Address(key.address);
    format!("virtual server {}", Frontend { place, protocol: key.protocol, port: key.port })
}

#[cfg(test)]
mod tests {
    use super::super::message::Settings;
    use super::*;
    use crate::service::frontend::{Backend, Family, Protocol};

    fn backend(last: u8) -> Backend {
        Backend { ip: [10, 244, 0, last].into(), port: 8080 }
    }

    fn server(backends: &[(u8, u32)], affinity: Option<u32>) -> Server {
        let flags = if affinity.is_some() { PERSISTENT } else { 0 };
        Server {
            settings: Settings { scheduler: "rr".to_owned(), flags, timeout: affinity.unwrap_or(0) },
            backends: backends.iter().map(|(last, weight)| (backend(*last), *weight)).collect(),
        }
    }

    fn balance(backends: &[u8], affinity_seconds: Option<u32>) -> Route {
        let backends = backends.iter().map(|last| backend(*last)).collect();
        Route::Balance { backends, masquerade: false, affinity_seconds }
    }

    fn texts(reading: &Reading, at: &Frontend, route: &Route) -> Vec<String> {
        let all = reading.differences(at, route);
        all.into_iter().map(|Differing { kind, holder, what }| format!("{kind} {holder}: {what}")).collect()
    }

    #[test]
    fn what_differs_is_named() {
        let ip = IpAddr::from([10, 96, 0, 10]);
        let at = Frontend { place: Place::Address(ip), protocol: Protocol::Tcp, port: 80 };
        let key = ServerKey { address: ip, protocol: Protocol::Tcp, port: 80 };
        let mut reading = Reading { bound: HashSet::from([ip]), ..Reading::default() };
        reading.servers.insert(key, server(&[(1, 1), (2, 1), (3, 0)], None));
        // One that waits for the end of its connections is as it should be.
        assert_eq!(reading.differences(&at, &balance(&[1, 2], None)), []);
        assert_eq!(
            texts(&reading, &at, &balance(&[2, 3], Some(60))),
            [
                "missing virtual server 10.96.0.10:80/tcp: clients stay for 60 s",
                "unexpected virtual server 10.96.0.10:80/tcp: clients do not stay",
                "missing virtual server 10.96.0.10:80/tcp: 10.244.0.3:8080",
                "unexpected virtual server 10.96.0.10:80/tcp: 10.244.0.1:8080",
            ]
        );
        assert_eq!(texts(&reading, &at, &Route::Reject).len(), 1);
        reading.servers.clear();
        reading.bound.clear();
        assert_eq!(
            texts(&reading, &at, &balance(&[1], None)),
            ["missing kube-ipvs0: address 10.96.0.10", "missing virtual server 10.96.0.10:80/tcp: the virtual server"]
        );
        assert!(reading.lines(&at).is_empty());
    }

    #[test]
    fn a_node_port_is_looked_for_where_it_is_served() {
        let others: BTreeSet<IpAddr> = ["192.0.2.1", "198.51.100.1"].iter().map(|ip| ip.parse().unwrap()).collect();
        let at = Frontend { place: Place::Node(Family::Ipv4), protocol: Protocol::Udp, port: 30053 };
        let key = ServerKey { address: [192, 0, 2, 1].into(), protocol: Protocol::Udp, port: 30053 };
        let mut reading = Reading { others, ..Reading::default() };
        assert_eq!(texts(&reading, &at, &balance(&[1], None)).len(), 1);
        reading.servers.insert(key, server(&[(1, 1)], None));
        assert_eq!(reading.differences(&at, &balance(&[1], None)), []);
        assert_eq!(reading.lines(&at), [("virtual server 192.0.2.1:30053/udp".into(), "10.244.0.1:8080".into())]);
    }
}
