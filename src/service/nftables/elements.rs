//! Elements as the kernel writes them: which set, and the bytes of key and value.
//!
//! A concatenation pads each of its parts to 4 bytes. Addresses and ports are in network order, slots (a random number
//! of the kernel) in the machine's.

use std::borrow::Cow;
use std::net::IpAddr;

use super::layout;
use crate::service::config::Cidr;
use crate::service::diff::{Key, Value, Verdict};
use crate::service::frontend::{Backend, Family, Frontend, Place, Protocol};
use crate::service::netlink::message::{Attributes, Messages};

const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_KEY_END: u16 = 10;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFT_GOTO`, which is -4.
const GOTO: u32 = 0xffff_fffc;
/// `NF_DROP`.
const DROP: u32 = 0;
/// More than the longest element takes: 40 bytes of key twice, 20 of value, a chain's name and headers.
const ELEMENT_BYTES: usize = 256;
/// `nla_len` has 16 bits.
const LIST_BYTES: usize = 65535;
/// As many elements as surely fit one list.
pub(super) const LIST_ELEMENTS: usize = LIST_BYTES / ELEMENT_BYTES;

/// The family whose table holds the element.
pub(super) fn family_of(key: &Key) -> Family {
    match key {
        Key::ClusterIp(ip) | Key::Hairpin(ip) => Family::of(*ip),
        Key::Route(at) | Key::Everywhere(at) | Key::Local(at) | Key::Refusal(at) => at.family(),
        Key::Slot(at, _) | Key::StickySlot(_, at) | Key::Guarded(at) | Key::Allowed(at, _) => at.family(),
        Key::ServiceRange(range) => range.family(),
    }
}

/// The set or map that holds the element. Of the two that hold routes and refusals, sets are what the rest of the element says
/// already: see [`layout::text`] for why.
pub(super) fn set_of(key: &Key, value: &Value) -> Cow<'static, str> {
    let pick = |at: &Frontend, address: &'static str, node: &'static str| match at.place {
        Place::Address(_) => Cow::Borrowed(address),
        Place::Node(_) => Cow::Borrowed(node),
    };
    match (key, value) {
        (Key::Route(at), Value::Verdict(Verdict::Balance(balance))) if layout::has_own_set(*balance) => {
            layout::own_set(*balance, matches!(at.place, Place::Node(_)))
        }
        (Key::Route(at), _) => pick(at, "services", "nodeports"),
        (Key::Everywhere(at), _) => pick(at, "services-everywhere", "nodeports-everywhere"),
        (Key::Local(at), _) => pick(at, "services-local", "nodeports-local"),
        (Key::Refusal(at), Value::Verdict(Verdict::Drop)) => pick(at, "services-dropped", "nodeports-dropped"),
        (Key::Refusal(at), _) => pick(at, "services-refused", "nodeports-refused"),
        (Key::Slot(at, _), _) => pick(at, "endpoints", "nodeport-endpoints"),
        (Key::StickySlot(slot, at), _) => layout::slot_map(*slot, matches!(at.place, Place::Node(_))).into(),
        (Key::ClusterIp(_), _) => "cluster-ips".into(),
        (Key::Hairpin(_), _) => "hairpins".into(),
        (Key::Guarded(_), _) => "guarded".into(),
        (Key::Allowed(..), _) => "allowed-sources".into(),
        (Key::ServiceRange(_), _) => "service-ranges".into(),
    }
}

/// Where many elements are added to nothing: which come first. What a packet meets later comes sooner, so that no route leads
/// to nothing, and no address is refused for which a route is still to come.
pub(super) const fn turn(key: &Key) -> u8 {
    match key {
        Key::Slot(..) | Key::StickySlot(..) | Key::Hairpin(_) => 0,
        Key::Allowed(..) => 1,
        Key::Guarded(_) => 2,
        Key::Everywhere(_) | Key::Local(_) => 3,
        Key::Route(_) => 4,
        Key::Refusal(_) | Key::ClusterIp(_) | Key::ServiceRange(_) => 5,
    }
}

/// Whether the set that holds the element already says all of its value.
fn value_is_the_set(key: &Key, value: &Value) -> bool {
    match (key, value) {
        (_, Value::Present) | (Key::Refusal(_), _) => true,
        (Key::Route(_), Value::Verdict(Verdict::Balance(balance))) => layout::has_own_set(*balance),
        _ => false,
    }
}

/// Bytes of one key.
#[derive(Debug)]
struct Bytes {
    bytes: [u8; 48],
    length: usize,
}

impl Bytes {
    fn empty() -> Self {
        Self { bytes: [0; 48], length: 0 }
    }

    fn push(&mut self, part: &[u8]) {
        self.bytes[self.length..self.length + part.len()].copy_from_slice(part);
        self.length += part.len().next_multiple_of(4);
    }

    fn ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.push(&ip.octets()),
            IpAddr::V6(ip) => self.push(&ip.octets()),
        }
    }

    fn frontend(&mut self, at: &Frontend) {
        if let Place::Address(ip) = at.place {
            self.ip(ip);
        }
        self.push(&[at.protocol.number()]);
        self.push(&at.port.to_be_bytes());
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn key_bytes(key: &Key, end: bool) -> Bytes {
    let mut bytes = Bytes::empty();
    match key {
        Key::Route(at) | Key::Everywhere(at) | Key::Local(at) | Key::Refusal(at) => bytes.frontend(at),
        Key::Guarded(at) | Key::StickySlot(_, at) => bytes.frontend(at),
        Key::Slot(at, slot) => {
            bytes.push(&slot.to_ne_bytes());
            bytes.frontend(at);
        }
        Key::ClusterIp(ip) => bytes.ip(*ip),
        Key::Hairpin(ip) => {
            bytes.ip(*ip);
            bytes.ip(*ip);
        }
        Key::Allowed(at, range) => {
            bytes.frontend(at);
            bytes.ip(if end { range.last() } else { range.first() });
        }
        // Every protocol: only a set of several parts takes a range as one element.
        Key::ServiceRange(range) => {
            bytes.ip(if end { range.last() } else { range.first() });
            bytes.push(&[if end { u8::MAX } else { 0 }]);
        }
    }
    bytes
}

/// The key of a frontend as it stands at the end of a client's key.
pub(super) fn frontend_bytes(at: &Frontend) -> Vec<u8> {
    let mut bytes = Bytes::empty();
    bytes.frontend(at);
    bytes.as_slice().to_vec()
}

/// Appends one element to a list; for a deletion its key alone.
pub(super) fn write_element(m: &mut Messages, key: &Key, value: Option<&Value>) {
    m.nested(LIST_ELEM, |m| {
        m.nested(ELEM_KEY, |m| m.attribute(DATA_VALUE, key_bytes(key, false).as_slice()));
        if matches!(key, Key::Allowed(..) | Key::ServiceRange(_)) {
            m.nested(ELEM_KEY_END, |m| m.attribute(DATA_VALUE, key_bytes(key, true).as_slice()));
        }
        match value.filter(|value| !value_is_the_set(key, value)) {
            None | Some(Value::Present) => {}
            Some(Value::Backend(backend)) => m.nested(ELEM_DATA, |m| {
                let mut bytes = Bytes::empty();
                bytes.ip(backend.ip);
                bytes.push(&backend.port.to_be_bytes());
                m.attribute(DATA_VALUE, bytes.as_slice());
            }),
            Some(Value::Verdict(verdict)) => {
                let place = key.frontend().map_or(Place::Node(Family::Ipv4), |at| at.place);
                m.nested(ELEM_DATA, |m| write_verdict(m, layout::chain_of(*verdict, place).as_deref()));
            }
        }
    });
}

/// Going to a chain, or dropping.
fn write_verdict(m: &mut Messages, chain: Option<&str>) {
    m.nested(DATA_VERDICT, |m| match chain {
        Some(chain) => {
            m.number(VERDICT_CODE, GOTO);
            m.text(VERDICT_CHAIN, chain);
        }
        None => m.number(VERDICT_CODE, DROP),
    });
}

/// An element that was read and is not one that we write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Foreign;

/// Reads one element of a dump of `set`.
pub(super) fn read_element(set: &str, family: Family, element: Attributes<'_>) -> Result<(Key, Value), Foreign> {
    read(set, family, element).ok_or(Foreign)
}

fn read(set: &str, family: Family, element: Attributes<'_>) -> Option<(Key, Value)> {
    let mut key = Parts { bytes: element.nested(ELEM_KEY)?.get(DATA_VALUE)?, family };
    let key = match set {
        "services" => Key::Route(key.address()?),
        "nodeports" => Key::Route(key.node_port()?),
        "services-everywhere" => Key::Everywhere(key.address()?),
        "nodeports-everywhere" => Key::Everywhere(key.node_port()?),
        "services-local" => Key::Local(key.address()?),
        "nodeports-local" => Key::Local(key.node_port()?),
        "services-refused" => return Some((Key::Refusal(key.address()?), Value::Verdict(Verdict::Reject))),
        "services-dropped" => return Some((Key::Refusal(key.address()?), Value::Verdict(Verdict::Drop))),
        "nodeports-refused" => return Some((Key::Refusal(key.node_port()?), Value::Verdict(Verdict::Reject))),
        "nodeports-dropped" => return Some((Key::Refusal(key.node_port()?), Value::Verdict(Verdict::Drop))),
        "endpoints" => {
            let slot = key.slot()?;
            Key::Slot(key.address()?, slot)
        }
        "nodeport-endpoints" => {
            let slot = key.slot()?;
            Key::Slot(key.node_port()?, slot)
        }
        "cluster-ips" => Key::ClusterIp(key.ip()?),
        "hairpins" => {
            let (ip, same) = (key.ip()?, key.ip()?);
            (ip == same).then_some(Key::Hairpin(ip))?
        }
        "guarded" => Key::Guarded(key.address()?),
        "allowed-sources" => {
            let at = key.address()?;
            let first = key.ip()?;
            let end = element.nested(ELEM_KEY_END).and_then(|end| end.get(DATA_VALUE));
            let last = match end {
                Some(end) => {
                    let mut end = Parts { bytes: end, family };
                    end.address()?;
                    end.ip()?
                }
                None => first,
            };
            Key::Allowed(at, Cidr::between(first, last)?)
        }
        "service-ranges" => {
            let first = key.ip()?;
            let end = element.nested(ELEM_KEY_END)?.get(DATA_VALUE)?;
            Key::ServiceRange(Cidr::between(first, Parts { bytes: end, family }.ip()?)?)
        }
        other if let Some((balance, node_port)) = layout::route_of(other) => {
            let at = if node_port { key.node_port()? } else { key.address()? };
            return Some((Key::Route(at), Value::Verdict(Verdict::Balance(balance))));
        }
        other => {
            let (slot, node_port) = layout::slot_of(other)?;
            Key::StickySlot(slot, if node_port { key.node_port()? } else { key.address()? })
        }
    };
    let value = match element.nested(ELEM_DATA) {
        None => Value::Present,
        Some(data) => match data.get(DATA_VALUE) {
            Some(bytes) => {
                let mut value = Parts { bytes, family };
                Value::Backend(Backend { ip: value.ip()?, port: value.port()? })
            }
            None => Value::Verdict(read_verdict(data.nested(DATA_VERDICT)?)?),
        },
    };
    Some((key, value))
}

fn read_verdict(verdict: Attributes<'_>) -> Option<Verdict> {
    let code = u32::from_be_bytes(*verdict.get(VERDICT_CODE)?.first_chunk()?);
    match code {
        DROP => Some(Verdict::Drop),
        GOTO => layout::verdict_of(verdict.text(VERDICT_CHAIN)?),
        _ => None,
    }
}

/// Takes a concatenation apart.
struct Parts<'a> {
    bytes: &'a [u8],
    family: Family,
}

impl<'a> Parts<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let part = self.bytes.get(..length)?;
        self.bytes = self.bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    }

    fn ip(&mut self) -> Option<IpAddr> {
        Some(match self.family {
            Family::Ipv4 => IpAddr::from(*self.take(4)?.first_chunk::<4>()?),
            Family::Ipv6 => IpAddr::from(*self.take(16)?.first_chunk::<16>()?),
        })
    }

    fn slot(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.take(4)?.first_chunk()?))
    }

    fn port(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(*self.take(2)?.first_chunk()?))
    }

    fn protocol(&mut self) -> Option<Protocol> {
        Protocol::from_number(*self.take(1)?.first()?)
    }

    fn address(&mut self) -> Option<Frontend> {
        let place = Place::Address(self.ip()?);
        Some(Frontend { place, protocol: self.protocol()?, port: self.port()? })
    }

    fn node_port(&mut self) -> Option<Frontend> {
        let place = Place::Node(self.family);
        Some(Frontend { place, protocol: self.protocol()?, port: self.port()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::diff::{Balance, LOCAL_SLOTS};
    use crate::service::netlink::message::{Kind, received};

    /// Every kind of element reads back as it was written.
    #[test]
    fn elements_read_back() {
        let backend = |ip: &str| Value::Backend(Backend { ip: ip.parse().unwrap(), port: 8080 });
        for (place, ip, range) in [
            (Place::Address("10.0.0.1".parse().unwrap()), "10.1.0.9", "192.168.0.0/17"),
            (Place::Address("fd00::1".parse().unwrap()), "fd01::9", "fd05::/33"),
            (Place::Node(Family::Ipv4), "10.1.0.9", ""),
            (Place::Node(Family::Ipv6), "fd01::9", ""),
        ] {
            let at = Frontend { place, protocol: Protocol::Sctp, port: 30080 };
            let balance = |affinity_seconds| {
                Value::Verdict(Verdict::Balance(Balance { count: 12, local: true, masquerade: true, affinity_seconds }))
            };
            let small = |masquerade| {
                Value::Verdict(Verdict::Balance(Balance { count: 3, local: false, masquerade, affinity_seconds: None }))
            };
            let mut all = vec![
                (Key::Route(at), balance(None)),
                (Key::Route(at), balance(Some(10800))),
                (Key::Route(at), Value::Verdict(Verdict::ExternalLocal)),
                (Key::Route(at), small(true)),
                (Key::Everywhere(at), small(false)),
                (Key::Everywhere(at), balance(None)),
                (Key::Local(at), balance(None)),
                (Key::Refusal(at), Value::Verdict(Verdict::Drop)),
                (Key::Refusal(at), Value::Verdict(Verdict::Reject)),
                (Key::Slot(at, LOCAL_SLOTS + 3), backend(ip)),
                (Key::StickySlot(LOCAL_SLOTS + 3, at), backend(ip)),
                (Key::StickySlot(3, at), backend(ip)),
                (Key::Hairpin(ip.parse().unwrap()), Value::Present),
                (Key::ClusterIp(ip.parse().unwrap()), Value::Present),
            ];
            if !range.is_empty() {
                all.push((Key::Guarded(at), Value::Present));
                all.push((Key::Allowed(at, range.parse().unwrap()), Value::Present));
                all.push((Key::ServiceRange(range.parse().unwrap()), Value::Present));
            }
            for (key, value) in all {
                let mut messages = Messages::new(0);
                messages.message(Kind::NewElements, 0, 2, |m| write_element(m, &key, Some(&value)));
                let length = messages.bytes().len() - 20;
                assert!(length <= ELEMENT_BYTES, "{key:?} takes {length}");
                let message = received(messages.bytes()).next().unwrap();
                let element = message.attributes().nested(LIST_ELEM).unwrap();
                assert_eq!(read_element(&set_of(&key, &value), family_of(&key), element), Ok((key, value)));
            }
        }
    }

    proptest::proptest! {
        /// Elements that others wrote into our sets, of any shape: read, or left out.
        #[test]
        fn any_element_can_be_read(
            key in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64),
            value in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64),
            noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64),
        ) {
            let mut messages = Messages::new(0);
            messages.message(Kind::NewElements, 0, 2, |m| {
                m.nested(LIST_ELEM, |m| {
                    m.nested(ELEM_KEY, |m| m.attribute(DATA_VALUE, &key));
                    m.nested(ELEM_KEY_END, |m| m.attribute(DATA_VALUE, &noise));
                    m.nested(ELEM_DATA, |m| {
                        m.attribute(if noise.len() % 2 == 0 { DATA_VALUE } else { DATA_VERDICT }, &value);
                    });
                });
            });
            let message = received(messages.bytes()).next().unwrap();
            let element = message.attributes().nested(LIST_ELEM).unwrap();
            for set in ["services", "nodeports-local", "endpoints", "nodeport-endpoints", "hairpins", "allowed-sources",
                "cluster-ips", "service-ranges", "services-lb-2", "nodeport-slot-1", "local-slot-4294967295", "clients-5s-1", ""]
            {
                for family in [Family::Ipv4, Family::Ipv6] {
                    let _ = read_element(set, family, element);
                    let _ = read_element(set, family, Attributes::of(&noise));
                }
            }
            let _ = (super::super::sticky::read_client(element), super::super::sticky::read_client(Attributes::of(&noise)));
        }
    }
}
