//! IPVS as the data path: virtual servers over generic netlink, their addresses on `kube-ipvs0`, and beside it our nftables
//! tables for marks, refusals and source ranges, where kube-proxy uses iptables and ipsets.
//!
//! What is wanted follows from the owner's table, what is there is read once; then only differences are written, in
//! proportion to the change. Of addresses the kernel tells when others change them; of virtual servers it does not, so that all of it is
//! looked at again each sync period, as upstream does.

mod links;
mod listener;
mod message;
mod plan;
mod reading;
mod settings;
mod socket;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tracing::{debug, info, warn};

use self::links::Links;
pub(super) use self::links::own_addresses;
use self::listener::AddressListener;
use self::message::ServerKey;
use self::plan::{Server, Step};
use self::socket::Ipvs;
use super::config::ServiceConfig;
use super::data_path::{DataPath, Doubt, Listening};
use super::diff::{Key, Operations, Table};
use super::frontend::{Backend, Frontend, Place, Route};
use super::nftables::Kernel;
use super::owner::ServiceError;
use crate::clock::Clock;

/// How often a backend is looked at that waits for the end of its connections (B1.28); upstream's value.
const DRAIN_CHECK: Duration = Duration::from_secs(60);

/// What went wrong between us and IPVS.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The kernel cannot.
    #[error(
        "mode ipvs is configured, but this kernel has no IPVS: load the module ip_vs (modprobe ip_vs) or use mode nftables"
    )]
    NoKernelSupport,
    /// No socket.
    #[error("cannot open a netlink socket: the agent needs CAP_NET_ADMIN in its network namespace")]
    Open(#[source] io::Error),
    /// A virtual server or backend was refused.
    #[error("IPVS refused to {what}")]
    Refused {
        /// The step, in words.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Reading or sending failed.
    #[error("lost touch with IPVS while trying to {what}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The interface of service IPs.
    #[error("cannot {what} the interface kube-ipvs0, which needs the kernel module dummy")]
    Interface {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Whether IPVS is there; loads its module where that is possible.
pub fn is_supported() -> bool {
    Ipvs::open().is_ok()
}

/// Removes every virtual server and `kube-ipvs0`; none there, and no IPVS in the kernel, is success.
pub fn remove_everything() -> Result<Removed, IpvsError> {
    let interface = |source| IpvsError::Interface { what: "remove", source };
    let dummy = Links::open().map_err(IpvsError::Open)?.remove_dummy().map_err(interface)?;
    let mut removed = Removed { interface: dummy, servers: 0 };
    // Only where its module is loaded already: without it there is nothing to remove.
    let mut ipvs = match Ipvs::open_if_loaded() {
        Ok(Some(ipvs)) => ipvs,
        Ok(None) => return Ok(removed),
        Err(error) => return Err(error),
    };
    let servers: Vec<Step> = ipvs.read()?.into_keys().map(Step::Delete).collect();
    removed.servers = servers.len();
    ipvs.write(&servers)?;
    Ok(removed)
}

pub use reading::{Reading, read};

/// What [`remove_everything`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// The dummy interface was there.
    pub interface: bool,
    /// So many virtual servers were.
    pub servers: usize,
}

/// Reads a message as each of the readers here does.
#[cfg(any(test, fuzzing))]
pub(super) fn read_anything(message: super::netlink::message::Received<'_>) {
    let _ = (links::read_link(message.body()), links::changed_address(&message));
    let _ = (message::read_family(message.attributes()), message::read_service(message.attributes()));
    let _ = message::read_destination(message.attributes());
}

/// The data path.
#[derive(Debug)]
pub struct IpvsPath {
    ipvs: Ipvs,
    links: Links,
    rules: Kernel,
    config: ServiceConfig,
    clock: Clock,
    /// Routes that IPVS serves.
    routes: HashMap<Frontend, Route>,
    /// How many routes and cluster IPs want an address to be one of this machine's.
    users: HashMap<IpAddr, u32>,
    /// Addresses that accept NodePorts.
    node_addresses: BTreeSet<IpAddr>,
    /// Every address of the machine but those of `kube-ipvs0`.
    other_addresses: BTreeSet<IpAddr>,
    /// What IPVS holds.
    held: HashMap<ServerKey, Server>,
    /// What `kube-ipvs0` has.
    bound: HashSet<IpAddr>,
    /// Backends that wait for the end of their connections.
    draining: BTreeSet<(ServerKey, Backend)>,
    /// When to look next at the draining backends, and at everything; monotonic.
    next_drain_check: Duration,
    next_look: Duration,
    sent: u64,
}

impl IpvsPath {
    /// Connects to IPVS and sets what it needs of the kernel.
    ///
    /// # Errors
    /// [`IpvsError::NoKernelSupport`] on a kernel without it.
    pub fn open(config: ServiceConfig, clock: Clock) -> Result<Self, ServiceError> {
        let mut ipvs = Ipvs::open()?;
        let rules = Kernel::open_beside_ipvs(config.clone())?;
        let links = Links::open().map_err(IpvsError::Open)?;
        settings::set_sysctls(config.ipvs.strict_arp);
        let timeouts = [config.ipvs.tcp_timeout, config.ipvs.tcp_fin_timeout, config.ipvs.udp_timeout];
        if timeouts.iter().any(|timeout| !timeout.is_zero())
            && let Err(error) = ipvs.set_timeouts(timeouts)
        {
            warn!(error = &error as &dyn std::error::Error, "time-outs of IPVS are left as they were");
        }
        Ok(Self {
            ipvs,
            links,
            rules,
            config,
            clock,
            routes: HashMap::new(),
            users: HashMap::new(),
            node_addresses: BTreeSet::new(),
            other_addresses: BTreeSet::new(),
            held: HashMap::new(),
            bound: HashSet::new(),
            draining: BTreeSet::new(),
            next_drain_check: Duration::ZERO,
            next_look: Duration::ZERO,
            sent: 0,
        })
    }

    fn wanted(&self, frontend: &Frontend) -> Option<Server> {
        plan::server(&self.config.ipvs.scheduler, self.routes.get(frontend)?)
    }

    /// Reads the machine's addresses.
    fn read_addresses(&mut self) -> Result<(), IpvsError> {
        let (bound, others) =
            self.links.addresses().map_err(|source| IpvsError::Netlink { what: "read addresses", source })?;
        self.bound = bound;
        self.node_addresses = plan::accepting(others.clone(), &self.config.node_port_addresses);
        self.other_addresses = others;
        self.next_look = self.clock.now().monotonic + self.config.sync_period;
        Ok(())
    }

    /// Whether `kube-ipvs0` should have an address. One that another interface has is not given to it as well.
    fn wants(&self, address: IpAddr) -> bool {
        self.users.contains_key(&address) && !self.other_addresses.contains(&address)
    }

    /// Counts one user of an address more, or one less.
    fn count(&mut self, address: IpAddr, more: bool) {
        let users = self.users.entry(address).or_default();
        *users = if more { *users + 1 } else { users.saturating_sub(1) };
        if *users == 0 {
            self.users.remove(&address);
        }
    }

    /// Backends of one virtual server that wait for the end of their connections.
    fn waiting(&self, key: ServerKey) -> Vec<Backend> {
        let first = Backend { ip: IpAddr::from([0; 4]), port: 0 };
        self.draining.range((key, first)..).take_while(|(of, _)| *of == key).map(|(_, backend)| *backend).collect()
    }

    /// Brings these virtual servers to what is wanted.
    fn write_servers(&mut self, servers: &BTreeMap<ServerKey, Option<Server>>) -> Result<(), IpvsError> {
        let mut steps = Vec::new();
        for (key, wanted) in servers {
            plan::steps(*key, self.held.get(key), wanted.as_ref(), &mut steps);
        }
        // A backend that waits already is not to be told again.
        steps.retain(|step| !matches!(step, Step::Drain(key, backend) if self.draining.contains(&(*key, *backend))));
        if !steps.is_empty() {
            self.ipvs.write(&steps)?;
            self.sent += 1;
            debug!(steps = steps.len(), "IPVS is told");
        }
        for step in steps {
            match step {
                Step::Drain(key, backend) => {
                    self.draining.insert((key, backend));
                    // At once: most have no connection.
                    self.next_drain_check = Duration::ZERO;
                }
                Step::UseBackend(key, backend) | Step::DeleteBackend(key, backend) => {
                    self.draining.remove(&(key, backend));
                }
                Step::Delete(key) => {
                    for backend in self.waiting(key) {
                        self.draining.remove(&(key, backend));
                    }
                }
                Step::Add(..) | Step::Set(..) | Step::AddBackend(..) => {}
            }
        }
        for (key, wanted) in servers {
            match wanted {
                Some(wanted) => {
                    let mut server = wanted.clone();
                    server.backends.extend(self.waiting(*key).into_iter().map(|backend| (backend, 0)));
                    self.held.insert(*key, server);
                }
                None => _ = self.held.remove(key),
            }
        }
        Ok(())
    }

    /// Gives `kube-ipvs0` those of these addresses that it lacks.
    fn bind_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), IpvsError> {
        let lacks = |address: &&IpAddr| self.wants(**address) && !self.bound.contains(*address);
        let missing: Vec<IpAddr> = addresses.iter().filter(lacks).copied().collect();
        let failed = |source| IpvsError::Interface { what: "give a service IP to", source };
        for part in missing.chunks(socket::MESSAGES_AT_ONCE) {
            self.links.bind(part).map_err(failed)?;
            self.bound.extend(part);
        }
        Ok(())
    }

    /// Takes from it those of these addresses that nobody wants.
    fn unbind_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), IpvsError> {
        let surplus = |address: &&IpAddr| !self.wants(**address) && self.bound.contains(*address);
        let surplus: Vec<IpAddr> = addresses.iter().filter(surplus).copied().collect();
        let failed = |source| IpvsError::Interface { what: "take a service IP from", source };
        for part in surplus.chunks(socket::MESSAGES_AT_ONCE) {
            self.links.unbind(part).map_err(failed)?;
            part.iter().for_each(|address| _ = self.bound.remove(address));
        }
        Ok(())
    }

    /// Brings everything to what is wanted, whatever is there.
    fn write_everything(&mut self) -> Result<(), IpvsError> {
        let mut servers: BTreeMap<ServerKey, Option<Server>> = BTreeMap::new();
        // Frontends at an address win over a NodePort at the same one.
        let mut frontends: Vec<&Frontend> = self.routes.keys().collect();
        frontends.sort_unstable_by_key(|frontend| matches!(frontend.place, Place::Address(_)));
        for frontend in frontends {
            let wanted = self.wanted(frontend);
            for key in plan::keys(frontend, &self.node_addresses) {
                servers.insert(key, wanted.clone());
            }
        }
        let excluded = |address| self.config.ipvs.exclude_cidrs.iter().any(|range| range.contains(address));
        for key in self.held.keys().filter(|key| !excluded(key.address)) {
            servers.entry(*key).or_insert(None);
        }
        let wanted: Vec<IpAddr> = self.users.keys().copied().collect();
        self.bind_addresses(&wanted)?;
        self.write_servers(&servers)?;
        let bound: Vec<IpAddr> = self.bound.iter().copied().collect();
        self.unbind_addresses(&bound)
    }

    /// Reads everything that the kernel holds: addresses, virtual servers, and who waits there.
    fn read_everything(&mut self) -> Result<(), IpvsError> {
        let failed = |source| IpvsError::Interface { what: "make", source };
        self.links.ensure_dummy().map_err(failed)?;
        self.read_addresses()?;
        self.held = self.ipvs.read()?;
        // What was told to wait before a restart waits on.
        self.draining.clear();
        for (key, server) in &self.held {
            let waiting = server.backends.iter().filter(|(_, weight)| **weight == 0);
            self.draining.extend(waiting.map(|(backend, _)| (*key, *backend)));
        }
        Ok(())
    }

    /// Deletes draining backends whose last connection has ended.
    fn check_draining(&mut self) -> Result<(), IpvsError> {
        let servers: BTreeSet<ServerKey> = self.draining.iter().map(|(key, _)| *key).collect();
        let mut steps = Vec::new();
        for key in servers {
            let there = self.ipvs.destinations(&key)?;
            let counts: BTreeMap<Backend, u32> = there.iter().map(|one| (one.backend, one.connections)).collect();
            for backend in plan::drained(key, &self.waiting(key), &counts, &mut steps) {
                self.draining.remove(&(key, backend));
                if let Some(server) = self.held.get_mut(&key) {
                    server.backends.remove(&backend);
                }
            }
        }
        if !steps.is_empty() {
            self.ipvs.write(&steps)?;
            self.sent += 1;
        }
        self.next_drain_check = self.clock.now().monotonic + DRAIN_CHECK;
        Ok(())
    }

    /// Takes over what the table says of these frontends, and adds the addresses that this may concern.
    fn take_routes(&mut self, table: &Table, frontends: impl Iterator<Item = Frontend>, touched: &mut Vec<IpAddr>) {
        for frontend in frontends {
            // Also those without a backend: their address has to be here to be refused here.
            let before = match table.frontend(&frontend) {
                Some((_, route)) => self.routes.insert(frontend, route.clone()).is_some(),
                None => self.routes.remove(&frontend).is_some(),
            };
            let after = self.routes.contains_key(&frontend);
            if let Place::Address(address) = frontend.place
                && before != after
            {
                self.count(address, after);
                touched.push(address);
            }
        }
    }
}

impl DataPath for IpvsPath {
    fn apply(&mut self, table: &Table, operations: &Operations) -> Result<(), ServiceError> {
        self.rules.apply_beside_ipvs(operations)?;
        let all = || operations.delete.iter().chain(&operations.add);
        let frontends: BTreeSet<Frontend> = all().filter_map(|(key, _)| key.frontend()).collect();
        let mut touched = Vec::new();
        for (list, more) in [(&operations.delete, false), (&operations.add, true)] {
            for (key, _) in list {
                if let Key::ClusterIp(ip) = key {
                    self.count(*ip, more);
                    touched.push(*ip);
                }
            }
        }
        self.take_routes(table, frontends.iter().copied(), &mut touched);
        let mut servers = BTreeMap::new();
        for frontend in &frontends {
            let wanted = self.wanted(frontend);
            for key in plan::keys(frontend, &self.node_addresses) {
                servers.insert(key, wanted.clone());
            }
        }
        self.bind_addresses(&touched)?;
        self.write_servers(&servers)?;
        self.unbind_addresses(&touched)?;
        Ok(())
    }

    fn reconcile(&mut self, table: &mut Table, doubt: Doubt) -> Result<Operations, ServiceError> {
        let operations = self.rules.reconcile_beside_ipvs(table, doubt)?;
        self.read_everything()?;
        self.routes.clear();
        self.users.clear();
        let (mut frontends, mut cluster_ips) = (BTreeSet::new(), Vec::new());
        table.elements(|key, _| {
            frontends.extend(key.frontend());
            if let Key::ClusterIp(ip) = key {
                cluster_ips.push(ip);
            }
        });
        cluster_ips.into_iter().for_each(|ip| self.count(ip, true));
        self.take_routes(table, frontends.into_iter(), &mut Vec::new());
        self.write_everything()?;
        Ok(operations)
    }

    fn tend(&mut self) -> Result<Option<Duration>, ServiceError> {
        let now = self.clock.now().monotonic;
        if !self.draining.is_empty() && now >= self.next_drain_check {
            self.check_draining()?;
        }
        if now >= self.next_look {
            // IPVS tells nobody what others do to it: what differs is put right here.
            let before = self.node_addresses.clone();
            self.read_everything()?;
            if before != self.node_addresses {
                info!(addresses = ?self.node_addresses, "the addresses of this machine have changed");
            }
            self.write_everything()?;
        }
        let drain = (!self.draining.is_empty()).then_some(self.next_drain_check);
        let next = drain.into_iter().chain([self.next_look]).min();
        Ok(next.map(|at| at.saturating_sub(now).max(Duration::from_millis(100))))
    }

    fn missed(&mut self) -> Doubt {
        self.rules.missed()
    }

    /// Hears of addresses and of the rules beside IPVS; of virtual servers nobody tells.
    fn listen(&mut self) -> Result<Option<Listening>, ServiceError> {
        let Some((rules, doubt)) = self.rules.listen()? else { return Ok(None) };
        let listener = AddressListener::open(&self.links, rules).map_err(IpvsError::Open)?;
        Ok(Some((Box::new(listener), doubt)))
    }

    fn transactions(&self) -> u64 {
        self.sent + self.rules.batches_sent()
    }

    fn remove(&mut self) -> Result<(), ServiceError> {
        self.rules.remove()?;
        remove_everything()?;
        Ok(())
    }
}
