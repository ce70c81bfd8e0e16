//! The words of the data path: where a Service is reached, who serves it, and which way packets take. No I/O.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
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
        backends: Arc<[Backend]>,
        /// From outside the cluster: the source is hidden, so that answers come back here (B1.11).
        masquerade: bool,
        /// A client stays with its backend this many seconds.
        affinity_seconds: Option<u32>,
    },
    /// `externalTrafficPolicy: Local`: who comes from outside sees local backends only and keeps its source address; pods and
    /// programs of this node see all (B1.10).
    LocalOnly {
        /// Backends on this node; none: traffic from outside is dropped.
        local: Arc<[Backend]>,
        /// At least one.
        everywhere: Arc<[Backend]>,
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
    pub allowed_sources: Vec<Cidr>,
}

/// Everything that the kernel has to know about one Service. Empty: the Service is left alone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceRoutes {
    /// Its frontends, each at most once.
    pub paths: Vec<Path>,
    /// Its cluster IPs: their unused ports are refused (B1.13).
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses of its endpoints on this node, each once: they may reach themselves (B1.15).
    pub hairpins: Vec<IpAddr>,
    /// UDP and SCTP backends that still serve, chosen or not: flows to any other are stale (B1.20). In order.
    pub serving: Vec<(Protocol, Backend)>,
    /// Health-check port and the number of local ready endpoints (B1.14).
    pub health_check: Option<(u16, usize)>,
    /// What in the objects could not be used; the rest is.
    pub problems: Vec<Problem>,
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
