//! Ranges of addresses, and their parts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses such as `10.96.0.0/12`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cidr {
    base: u128,
    prefix: u32,
    is_v4: bool,
}

/// Why a text is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of addresses: write one like 10.96.0.0/12")]
pub struct CidrError(String);

impl std::str::FromStr for Cidr {
    type Err = CidrError;

    fn from_str(range: &str) -> Result<Self, CidrError> {
        let error = || CidrError(range.to_owned());
        let (address, prefix) = range.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix: u32 = prefix.parse().map_err(|_| error())?;
        let (number, bits) = number_of(address);
        if prefix > bits {
            return Err(error());
        }
        let host_bits = bits - prefix;
        let base = if host_bits == 128 { 0 } else { number >> host_bits << host_bits };
        Ok(Self { base, prefix, is_v4: bits == 32 })
    }
}

impl Cidr {
    /// Ranges written with commas between them, at most one of each family; empty: none.
    pub fn list(text: &str) -> Result<Vec<Self>, CidrError> {
        let texts = text.split(',').map(str::trim).filter(|range| !range.is_empty());
        let all: Vec<Self> = texts.map(str::parse).collect::<Result<_, _>>()?;
        let twice = all.len() > 2 || all.len() == 2 && all[0].is_v4 == all[1].is_v4;
        if twice { Err(CidrError(text.to_owned())) } else { Ok(all) }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address(0), self.prefix)
    }
}

fn number_of(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

impl Cidr {
    const fn host_bits(self) -> u32 {
        if self.is_v4 { 32 - self.prefix } else { 128 - self.prefix }
    }

    /// How many addresses it has, at most 2^64.
    pub fn size(self) -> u128 {
        1 << self.host_bits().min(64)
    }

    /// The address at a place; 1 is the first that can be used.
    pub fn address(self, offset: u128) -> IpAddr {
        let number = self.base + offset;
        if self.is_v4 {
            IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(number))
        }
    }

    /// Whether it is an address of the range that somebody may have: not the network's own or the broadcast address.
    pub(super) fn contains(self, address: IpAddr) -> bool {
        self.offset(address).is_some_and(|offset| offset > 0 && offset <= self.last())
    }

    /// Whether the address is of the range at all.
    pub(super) fn covers(self, address: IpAddr) -> bool {
        self.offset(address).is_some()
    }

    fn offset(self, address: IpAddr) -> Option<u128> {
        if address.is_ipv4() != self.is_v4 {
            return None;
        }
        let offset = number_of(address).0.checked_sub(self.base)?;
        (offset < self.size()).then_some(offset)
    }

    /// The last place that somebody may have.
    pub(super) fn last(self) -> u128 {
        (self.size() - 1).saturating_sub(u128::from(self.is_v4))
    }

    /// Where addresses for those who ask for none begin: above min(max(16, size/16), 256).
    pub(super) fn first_dynamic(self) -> u128 {
        if self.size() <= 16 { 1 } else { (self.size() / 16).clamp(16, 256) }
    }

    /// The parts of that prefix length.
    pub(super) fn part(self, prefix: u32, index: u128) -> Option<Self> {
        let bits = if self.is_v4 { 32 } else { 128 };
        if prefix < self.prefix || prefix > bits || index >> (prefix - self.prefix).min(127) != 0 {
            return None;
        }
        Some(Self { base: self.base + (index << (bits - prefix)), prefix, is_v4: self.is_v4 })
    }

    pub(super) const fn is_v4(self) -> bool {
        self.is_v4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_one_range_of_each_family() {
        let texts = |text: &str| Cidr::list(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(texts(""), Ok(vec![]));
        assert_eq!(texts("10.96.0.0/16, fd00:96::/112"), Ok(vec!["10.96.0.0/16".into(), "fd00:96::/112".into()]));
        for wrong in ["10.96.0.0/16,10.97.0.0/16", "10.96.0.0/16,fd00::/112,fd01::/112", "10.96.0.0", "10.0.0.0/33"] {
            assert!(texts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_ends_of_a_range_are_nobody_s() {
        let (v4, v6): (Cidr, Cidr) = ("10.0.0.0/29".parse().unwrap(), "fd00::/125".parse().unwrap());
        let usable = |range: Cidr| (0..8).filter(|at| range.contains(range.address(*at))).collect::<Vec<_>>();
        assert_eq!(usable(v4), (1..7).collect::<Vec<_>>());
        assert_eq!(usable(v6), (1..8).collect::<Vec<_>>(), "IPv6 has no broadcast address");
        assert!(!v4.covers("10.0.0.8".parse().unwrap()) && v4.covers("10.0.0.7".parse().unwrap()));
        assert_eq!(("fd00::/64".parse::<Cidr>().unwrap().first_dynamic(), v4.first_dynamic()), (256, 1));
    }
}
