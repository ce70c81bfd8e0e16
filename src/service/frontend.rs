//! The words of the data path: where a Service is reached, who serves it, and which way packets take. No I/O.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::config::Cidr;

/// A map whose hashes are quick, and keyed by chance, since who makes Services chooses what is hashed.
pub(super) type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

/// The same for a set.
pub(super) type HashSet<T> = std::collections::HashSet<T, RandomState>;

/// IPv4 or IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    /// Table `ip stoker`.
    Ipv4,
    /// Table `ip6 stoker`.
    Ipv6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// A transport protocol that Services know.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// Also what an empty `protocol` means.
    Tcp,
    /// Connectionless: stale conntrack entries have to be deleted.
    Udp,
    /// Stream control.
    Sctp,
}

impl Protocol {
    /// As the API writes it; empty means TCP.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of an IP protocol number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// The address part of a [`Frontend`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Place {
    /// A cluster, external or load-balancer IP.
    Address(IpAddr),
    /// Every address of the node that accepts NodePorts.
    Node(Family),
}

/// Where a Service is reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Frontend {
    /// At which address.
    pub place: Place,
    /// By which protocol.
    pub protocol: Protocol,
    /// At which port.
    pub port: u16,
}

impl Frontend {
    /// The family whose table it belongs to.
    pub fn family(&self) -> Family {
        match self.place {
            Place::Address(address) => Family::of(address),
            Place::Node(family) => family,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        match self.place {
            Place::Address(address) => write!(f, "{}/{protocol}", SocketAddr::new(address, self.port)),
            Place::Node(Family::Ipv4) => write!(f, "NodePort {}/{protocol} (IPv4)", self.port),
            Place::Node(Family::Ipv6) => write!(f, "NodePort {}/{protocol} (IPv6)", self.port),
        }
    }
}

/// Who serves: the address and port of one endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Backend {
    /// The endpoint's address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its `Display` pads; that of a frontend does not.
        write!(f, "{}", SocketAddr::new(self.ip, self.port))
    }
}

/// The backends of one frontend in the order of their slots, 6 bytes each with IPv4; there are hundreds of thousands. Clones share
/// them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backends(Addresses);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Addresses {
    /// Also where there is none, which takes no memory.
    V4(Arc<[(Ipv4Addr, u16)]>),
    V6(Arc<[(Ipv6Addr, u16)]>),
}

impl Backends {
    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Addresses::V4(all) => all.len(),
            Addresses::V6(all) => all.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Backend> {
        let (v4, v6): (&[_], &[_]) = match &self.0 {
            Addresses::V4(all) => (all, &[]),
            Addresses::V6(all) => (&[], all),
        };
        let v4 = v4.iter().map(|&(ip, port): &(Ipv4Addr, u16)| Backend { ip: ip.into(), port });
        v4.chain(v6.iter().map(|&(ip, port): &(Ipv6Addr, u16)| Backend { ip: ip.to_canonical(), port }))
    }
}

impl Default for Backends {
    fn default() -> Self {
        Self(Addresses::V4(Arc::default()))
    }
}

/// All of one family, as those of one frontend are.
impl FromIterator<Backend> for Backends {
    fn from_iter<I: IntoIterator<Item = Backend>>(all: I) -> Self {
        let all: Vec<Backend> = all.into_iter().collect();
        if all.is_empty() {
            return Self::default();
        }
        let v4 = |backend: &Backend| match backend.ip {
            IpAddr::V4(ip) => Some((ip, backend.port)),
            IpAddr::V6(_) => None,
        };
        let v6 = |backend: &Backend| match backend.ip {
            IpAddr::V4(ip) => (ip.to_ipv6_mapped(), backend.port),
            IpAddr::V6(ip) => (ip, backend.port),
        };
        Self(match all.iter().map(v4).collect() {
            Some(all) => Addresses::V4(all),
            None => Addresses::V6(all.iter().map(v6).collect()),
        })
    }
}

/// Which way packets to a frontend take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// Nobody serves, anywhere: refuse at once (B1.12).
    Reject,
    /// Somebody serves, but the policy `Local` keeps traffic off them (B1.9).
    Drop,
    /// One backend at random for each connection.
    Balance {
        /// At least one.
        backends: Backends,
        /// From outside the cluster: the source is hidden, so that answers come back here (B1.11).
        masquerade: bool,
        /// A client stays with its backend this many seconds.
        affinity_seconds: Option<u32>,
    },
    /// `externalTrafficPolicy: Local`: who comes from outside sees local backends only and keeps its source address; pods and
    /// programs of this node see all (B1.10).
    LocalOnly {
        /// Backends on this node; none: traffic from outside is dropped.
        local: Backends,
        /// At least one.
        everywhere: Backends,
        /// A client stays with its backend this many seconds.
        affinity_seconds: Option<u32>,
    },
}

/// Who wins when two Services claim one frontend: the cluster's own allocations before addresses that users write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Claim {
    /// Cluster IPs and NodePorts, which the API server hands out once.
    Allocated,
    /// External and load-balancer IPs.
    External,
}

/// One frontend of a Service with its route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    /// Where.
    pub frontend: Frontend,
    /// How sure the claim is.
    pub claim: Claim,
    /// Which way.
    pub route: Route,
    /// Only these sources may use it (B1.7); empty: everybody.
    pub allowed_sources: Box<[Cidr]>,
}

/// Everything that the kernel has to know about one Service, kept for as long as the Service is. Empty: it is left alone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceRoutes {
    /// Its frontends, each at most once.
    pub paths: Box<[Path]>,
    /// Its cluster IPs: their unused ports are refused (B1.13).
    pub cluster_ips: Box<[IpAddr]>,
    /// Addresses of its endpoints on this node, each once: they may reach themselves (B1.15).
    pub hairpins: Box<[IpAddr]>,
    /// UDP and SCTP backends that still serve, chosen or not: flows to any other are stale (B1.20). In order.
    pub serving: Box<[(Protocol, Backend)]>,
    /// Health-check port and the number of local ready endpoints (B1.14).
    pub health_check: Option<(u16, usize)>,
    /// What in the objects could not be used; the rest is.
    pub problems: Box<[Problem]>,
}

/// Backends of one frontend at most: slots are numbers below this, on this node and everywhere.
pub const MAX_BACKENDS: usize = 65536;

/// Something in a Service or its slices that cannot be done. Everything else of the Service is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Problem {
    /// More backends than there are slots.
    #[error("{frontend} has {count} endpoints: only the first {MAX_BACKENDS} get connections; split the Service")]
    TooManyBackends {
        /// Where.
        frontend: Frontend,
        /// How many there are.
        count: usize,
    },
    /// Not an address of the slice's family.
    #[error("EndpointSlice {slice}: {address:?} is not an {family} address; this endpoint is left out")]
    EndpointAddress {
        /// The slice's name.
        slice: Arc<str>,
        /// What stands there.
        address: String,
        /// The slice's `addressType`.
        family: Family,
    },
    /// Not an address, in the Service.
    #[error("{field}: {value:?} is not an IP address; it is left out")]
    Address {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        value: String,
    },
    /// Not a range.
    #[error(
        "spec.loadBalancerSourceRanges: {0:?} is not an address range such as 10.0.0.0/8; nobody is admitted by it"
    )]
    SourceRange(String),
    /// Not a protocol that we know.
    #[error("spec.ports: protocol {0:?} is none of TCP, UDP and SCTP; the port is left out")]
    Protocol(String),
    /// Another Service has it.
    #[error("{frontend} belongs to Service {owner}: it leads there until that gives it up")]
    Claimed {
        /// Where.
        frontend: Frontend,
        /// Who has it, as namespace/name.
        owner: String,
    },
}
