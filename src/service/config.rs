//! What the operator decided about the service data path.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::frontend::Family;

/// An address range such as `10.0.0.0/8`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

/// Why a text is no [`Cidr`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not an address range: write it like 10.0.0.0/8 or fd00::/64")]
pub struct NotACidr(String);

impl Cidr {
    /// The range of `bits` leading bits around `address`; `None` when the address has fewer bits.
    pub fn new(address: IpAddr, bits: u8) -> Option<Self> {
        let (width, number) = match address {
            IpAddr::V4(v4) => (32_u32, u128::from(u32::from(v4))),
            IpAddr::V6(v6) => (128, u128::from(v6)),
        };
        let host_bits = width.checked_sub(u32::from(bits))?;
        let masked = number.checked_shr(host_bits).unwrap_or(0).checked_shl(host_bits).unwrap_or(0);
        Some(Self { address: address_of(masked, address), bits })
    }

    /// The range from `first` to `last`, if these are the ends of one.
    pub fn between(first: IpAddr, last: IpAddr) -> Option<Self> {
        let width = if first.is_ipv4() { 32 } else { 128 };
        (0..=width)
            .filter_map(|bits| Self::new(first, bits))
            .find(|range| range.address == first && range.last() == last)
    }

    /// First address of the range.
    pub fn first(self) -> IpAddr {
        self.address
    }

    /// Last address of the range.
    pub fn last(self) -> IpAddr {
        let (width, number) = match self.address {
            IpAddr::V4(v4) => (32, u128::from(u32::from(v4))),
            IpAddr::V6(v6) => (128, u128::from(v6)),
        };
        let host_bits = width - u32::from(self.bits);
        let tail = if host_bits == 128 { u128::MAX } else { (1 << host_bits) - 1 };
        address_of(number | tail, self.address)
    }

    /// Whether `address` lies in the range.
    pub fn contains(self, address: IpAddr) -> bool {
        self.family() == Family::of(address) && self.first() <= address && address <= self.last()
    }

    /// Whether all of `other` lies in this range.
    pub fn covers(self, other: Cidr) -> bool {
        self.bits <= other.bits && self.contains(other.address)
    }

    /// Whether it holds every address of its family.
    pub fn is_everything(self) -> bool {
        self.bits == 0
    }

    /// Whether it holds one address only.
    pub fn is_single(self) -> bool {
        self.first() == self.last()
    }

    /// The family of its addresses.
    pub fn family(self) -> Family {
        Family::of(self.address)
    }
}

fn address_of(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}

impl From<IpAddr> for Cidr {
    fn from(address: IpAddr) -> Self {
        Self { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let parse = || {
            let (address, bits) = text.trim().split_once('/')?;
            Self::new(address.parse().ok()?, bits.parse().ok()?)
        };
        parse().ok_or_else(|| NotACidr(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// How traffic from pods of this node is told from other traffic (`detectLocalMode`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum LocalTraffic {
    /// It is not told apart: no masquerade of traffic to cluster IPs, no short cut for policy `Local`.
    #[default]
    Unknown,
    /// By its source address: the cluster's or the node's pod ranges.
    Sources(Vec<Cidr>),
    /// It enters by this bridge.
    Bridge(String),
    /// It enters by an interface whose name starts so.
    InterfacePrefix(String),
}

/// What balances connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Maps of nftables.
    #[default]
    Nftables,
    /// Virtual servers of IPVS.
    Ipvs,
}

/// Settings of mode `ipvs`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IpvsConfig {
    /// The kernel's name of the scheduler: `rr`, `wrr`, `lc`, …
    pub scheduler: String,
    /// Virtual servers at these addresses are somebody else's and stay.
    pub exclude_cidrs: Vec<Cidr>,
    /// This machine answers no ARP requests for service IPs.
    pub strict_arp: bool,
    /// Idle TCP connections are forgotten after this; zero leaves the kernel's value.
    pub tcp_timeout: Duration,
    /// The same after a FIN.
    pub tcp_fin_timeout: Duration,
    /// The same for UDP.
    pub udp_timeout: Duration,
}

impl Default for IpvsConfig {
    fn default() -> Self {
        Self {
            scheduler: "rr".to_owned(),
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            tcp_timeout: Duration::ZERO,
            tcp_fin_timeout: Duration::ZERO,
            udp_timeout: Duration::ZERO,
        }
    }
}

/// Settings of the service data path. `Default` is what kube-proxy's nftables mode does without a cluster CIDR.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceConfig {
    /// What balances connections.
    pub mode: Mode,
    /// Settings of mode `ipvs`.
    pub ipvs: IpvsConfig,
    /// Address families to program.
    pub families: Vec<Family>,
    /// How traffic of this node's pods is recognised.
    pub local_traffic: LocalTraffic,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// The packet-mark bit for traffic to masquerade, 0..=31.
    pub masquerade_bit: u8,
    /// Local addresses that accept NodePorts; empty: all but loopback.
    pub node_port_addresses: Vec<Cidr>,
    /// IPv4's loopback addresses among them accept NodePorts too, for programs of this machine. Needs `route_localnet`, which is set.
    pub localhost_node_ports: bool,
    /// Ranges that service IPs come from, beside those of ServiceCIDR objects: traffic to an unallocated one is dropped.
    pub service_cidrs: Vec<Cidr>,
    /// Queued updates older than twice this make the proxy unhealthy (B2.1).
    pub sync_period: Duration,
    /// The `nft` program, which loads the fixed part of our tables.
    pub nft: std::path::PathBuf,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Nftables,
            ipvs: IpvsConfig::default(),
            families: vec![Family::Ipv4, Family::Ipv6],
            local_traffic: LocalTraffic::Unknown,
            masquerade_all: false,
            masquerade_bit: 14,
            node_port_addresses: Vec::new(),
            localhost_node_ports: false,
            service_cidrs: Vec::new(),
            sync_period: Duration::from_secs(30),
            nft: "nft".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_know_their_ends() {
        let range: Cidr = "10.1.2.3/8".parse().unwrap();
        assert_eq!((range.to_string().as_str(), range.last().to_string().as_str()), ("10.0.0.0/8", "10.255.255.255"));
        let all: Cidr = "::/0".parse().unwrap();
        assert!(
            all.is_everything() && all.contains("ff::1".parse().unwrap()) && !all.contains("10.0.0.1".parse().unwrap())
        );
        assert!(range.covers("10.3.0.0/16".parse().unwrap()) && !range.covers("0.0.0.0/0".parse().unwrap()));
        assert!("10.0.0.0/33".parse::<Cidr>().is_err() && "10.0.0.1".parse::<Cidr>().is_err());
    }
}
