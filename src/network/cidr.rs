//! Ranges of addresses, as numbers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::Deserialize;

/// A range such as `10.244.0.0/24`; host bits are cleared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// The text is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of addresses such as 10.244.0.0/24 or fd00:10:244::/64")]
pub(super) struct NotACidr(String);

impl Cidr {
    /// A range of one address.
    pub(super) fn single(address: IpAddr) -> Self {
        Self { address, prefix: width(address) }
    }

    /// The first address, host bits zero.
    pub(super) fn address(self) -> IpAddr {
        self.address
    }

    /// Length of the prefix.
    pub(super) fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether it is of IPv4.
    pub(super) fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether the address lies in it.
    pub(super) fn contains(self, address: IpAddr) -> bool {
        let (first, last) = self.bounds();
        self.is_ipv4() == address.is_ipv4() && (first..=last).contains(&number(address))
    }

    /// The first and the last address, as numbers.
    pub(super) fn bounds(self) -> (u128, u128) {
        let first = number(self.address);
        let size = self.size_less_one();
        (first, first + size)
    }

    /// The address that far behind the first one, if it is still in the range.
    pub(super) fn nth(self, index: u128) -> Option<IpAddr> {
        (index <= self.size_less_one()).then(|| from_number(number(self.address) + index, self.is_ipv4()))
    }

    /// How far behind the first one the address is.
    pub(super) fn index_of(self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| number(address) - number(self.address))
    }

    /// The index of the last address.
    pub(super) fn size_less_one(self) -> u128 {
        match u32::from(width(self.address) - self.prefix) {
            0 => 0,
            bits => u128::MAX >> (128 - bits),
        }
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address as a number, of 32 or 128 bits.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address of a number; what does not fit a family is cut.
pub(super) fn from_number(number: u128, ipv4: bool) -> IpAddr {
    if ipv4 {
        IpAddr::V4(Ipv4Addr::from(u32::try_from(number & u128::from(u32::MAX)).unwrap_or(u32::MAX)))
    } else {
        IpAddr::V6(Ipv6Addr::from(number))
    }
}

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let error = || NotACidr(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if prefix > width(address) {
            return Err(error());
        }
        let unmasked = Self { address, prefix };
        let first = number(address) & !unmasked.size_less_one();
        Ok(Self { address: from_number(first, address.is_ipv4()), prefix })
    }
}

impl TryFrom<String> for Cidr {
    type Error = NotACidr;

    fn try_from(text: String) -> Result<Self, NotACidr> {
        text.parse()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_counted() {
        let range: Cidr = "10.244.1.7/24".parse().expect("a range");
        assert_eq!(range.to_string(), "10.244.1.0/24");
        assert_eq!(range.nth(255), Some("10.244.1.255".parse().expect("an address")));
        assert_eq!(range.nth(256), None);
        assert!(range.contains("10.244.1.9".parse().expect("an address")));
        assert!(!range.contains("10.244.2.9".parse().expect("an address")));
        assert!(!range.contains("::1".parse().expect("an address")));
        let six: Cidr = "fd00:10:244:1::/64".parse().expect("a range");
        assert_eq!(six.nth(2), Some("fd00:10:244:1::2".parse().expect("an address")));
        assert_eq!(six.index_of("fd00:10:244:1::ff".parse().expect("an address")), Some(255));
        assert_eq!("::/0".parse::<Cidr>().expect("all").size_less_one(), u128::MAX);
        assert_eq!("1.2.3.4/32".parse::<Cidr>().expect("one").size_less_one(), 0);
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "::/129", "10.0.0.0/"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
