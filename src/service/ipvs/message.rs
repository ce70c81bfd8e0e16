//! The bytes that IPVS is told and tells, over generic netlink. No sockets here.
//!
//! Numbers are in the machine's order, ports and addresses in the network's; an address takes 16 bytes in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::service::frontend::{Backend, Family, Protocol};
use crate::service::netlink::message::{ACK, Attributes, DUMP, Messages, REQUEST};

/// The kernel's number for the generic netlink family that knows all others.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DEL_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DESTINATION: u8 = 5;
const SET_DESTINATION: u8 = 6;
const DEL_DESTINATION: u8 = 7;
const GET_DESTINATION: u8 = 8;
const SET_CONFIG: u8 = 12;

const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;

const SERVICE_FAMILY: u16 = 1;
const SERVICE_PROTOCOL: u16 = 2;
const SERVICE_ADDRESS: u16 = 3;
const SERVICE_PORT: u16 = 4;
const SERVICE_SCHEDULER: u16 = 6;
const SERVICE_FLAGS: u16 = 7;
const SERVICE_TIMEOUT: u16 = 8;
const SERVICE_NETMASK: u16 = 9;

const DESTINATION_ADDRESS: u16 = 1;
const DESTINATION_PORT: u16 = 2;
const DESTINATION_FORWARD: u16 = 3;
const DESTINATION_WEIGHT: u16 = 4;
const DESTINATION_UPPER: u16 = 5;
const DESTINATION_LOWER: u16 = 6;
const DESTINATION_ACTIVE: u16 = 7;
const DESTINATION_INACTIVE: u16 = 8;
const DESTINATION_FAMILY: u16 = 11;

/// Masquerade: the answer comes back through this machine. The only way that can change a port.
const FORWARD_NAT: u32 = 0;
/// `IP_VS_SVC_F_PERSISTENT`: a client stays with its backend.
pub(super) const PERSISTENT: u32 = 0x1;
/// `IP_VS_SVC_F_SCHED_MH_PORT`: the scheduler mh looks at source ports too.
pub(super) const HASH_PORTS: u32 = 0x10;
/// `IP_VS_SVC_F_HASHED`, which the kernel sets for itself.
const HASHED: u32 = 0x2;

/// Which virtual server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct ServerKey {
    pub(super) address: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

/// How a virtual server chooses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Settings {
    pub(super) scheduler: String,
    pub(super) flags: u32,
    /// Seconds that a client stays with its backend.
    pub(super) timeout: u32,
}

/// One backend as the kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Destination {
    pub(super) backend: Backend,
    pub(super) weight: u32,
    /// Connections, those that have ended a short while ago included.
    pub(super) connections: u32,
}

/// Asks for the number of the family `IPVS`.
pub(super) fn ask_family(m: &mut Messages) {
    m.framed(CONTROL, REQUEST | ACK, &[GET_FAMILY, 1, 0, 0], |m| m.text(FAMILY_NAME, "IPVS"));
}

/// The number in the answer to [`ask_family`].
pub(super) fn read_family(answer: Attributes<'_>) -> Option<u16> {
    Some(u16::from_ne_bytes(*answer.get(FAMILY_ID)?.first_chunk()?))
}

/// Messages to IPVS; `family` is what [`read_family`] gave.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    pub(super) messages: &'a mut Messages,
    pub(super) family: u16,
}

impl Writer<'_> {
    pub(super) fn add_service(&mut self, key: &ServerKey, settings: &Settings) -> u32 {
        self.write(NEW_SERVICE, ACK, |m| m.attribute(SERVICE, &service(key, Some(settings))))
    }

    pub(super) fn set_service(&mut self, key: &ServerKey, settings: &Settings) -> u32 {
        self.write(SET_SERVICE, ACK, |m| m.attribute(SERVICE, &service(key, Some(settings))))
    }

    pub(super) fn delete_service(&mut self, key: &ServerKey) -> u32 {
        self.write(DEL_SERVICE, ACK, |m| m.attribute(SERVICE, &service(key, None)))
    }

    pub(super) fn add_destination(&mut self, key: &ServerKey, backend: &Backend, weight: u32) -> u32 {
        self.destination(NEW_DESTINATION, key, backend, weight)
    }

    pub(super) fn set_destination(&mut self, key: &ServerKey, backend: &Backend, weight: u32) -> u32 {
        self.destination(SET_DESTINATION, key, backend, weight)
    }

    pub(super) fn delete_destination(&mut self, key: &ServerKey, backend: &Backend) -> u32 {
        self.destination(DEL_DESTINATION, key, backend, 0)
    }

    pub(super) fn list_services(&mut self) -> u32 {
        self.write(GET_SERVICE, DUMP, |_| {})
    }

    pub(super) fn list_destinations(&mut self, key: &ServerKey) -> u32 {
        self.write(GET_DESTINATION, DUMP, |m| m.attribute(SERVICE, &service(key, None)))
    }

    /// Seconds until idle connections are forgotten: TCP, TCP after a FIN, UDP; 0 leaves the kernel's value.
    pub(super) fn set_timeouts(&mut self, tcp: u32, tcp_fin: u32, udp: u32) -> u32 {
        self.write(SET_CONFIG, ACK, |m| {
            for (kind, seconds) in [(4, tcp), (5, tcp_fin), (6, udp)] {
                m.attribute(kind, &seconds.to_ne_bytes());
            }
        })
    }

    fn destination(&mut self, command: u8, key: &ServerKey, backend: &Backend, weight: u32) -> u32 {
        self.write(command, ACK, |m| {
            m.attribute(SERVICE, &service(key, None));
            m.attribute(DESTINATION, &destination(backend, weight));
        })
    }

    fn write(&mut self, command: u8, flags: u16, body: impl FnOnce(&mut Messages)) -> u32 {
        self.messages.framed(self.family, REQUEST | flags, &[command, 1, 0, 0], body)
    }
}

/// `AF_INET` and `AF_INET6`.
fn family_of(address: IpAddr) -> u16 {
    match Family::of(address) {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    }
}

fn address_bytes(address: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(v4) => bytes[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => bytes = v6.octets(),
    }
    bytes
}

fn service(key: &ServerKey, settings: Option<&Settings>) -> Vec<u8> {
    let mut m = Messages::default();
    m.attribute(SERVICE_FAMILY, &family_of(key.address).to_ne_bytes());
    m.attribute(SERVICE_PROTOCOL, &u16::from(key.protocol.number()).to_ne_bytes());
    m.attribute(SERVICE_ADDRESS, &address_bytes(key.address));
    m.attribute(SERVICE_PORT, &key.port.to_be_bytes());
    if let Some(Settings { scheduler, flags, timeout }) = settings {
        m.text(SERVICE_SCHEDULER, scheduler);
        let mut both = [0xff; 8];
        both[..4].copy_from_slice(&flags.to_ne_bytes());
        m.attribute(SERVICE_FLAGS, &both);
        m.attribute(SERVICE_TIMEOUT, &timeout.to_ne_bytes());
        // Clients are told apart by their whole address: a mask in IPv4, a number of bits in IPv6.
        let mask = if key.address.is_ipv4() { u32::MAX } else { 128 };
        m.attribute(SERVICE_NETMASK, &mask.to_ne_bytes());
    }
    m.bytes().to_vec()
}

fn destination(backend: &Backend, weight: u32) -> Vec<u8> {
    let mut m = Messages::default();
    m.attribute(DESTINATION_FAMILY, &family_of(backend.ip).to_ne_bytes());
    m.attribute(DESTINATION_ADDRESS, &address_bytes(backend.ip));
    m.attribute(DESTINATION_PORT, &backend.port.to_be_bytes());
    m.attribute(DESTINATION_FORWARD, &FORWARD_NAT.to_ne_bytes());
    m.attribute(DESTINATION_WEIGHT, &weight.to_ne_bytes());
    m.attribute(DESTINATION_UPPER, &0_u32.to_ne_bytes());
    m.attribute(DESTINATION_LOWER, &0_u32.to_ne_bytes());
    m.bytes().to_vec()
}

/// One virtual server of a dump; `None` for those that are told by a packet mark, which are never ours.
pub(super) fn read_service(answer: Attributes<'_>) -> Option<(ServerKey, Settings)> {
    let service = answer.nested(SERVICE)?;
    let family = half(service, SERVICE_FAMILY)?;
    let key = ServerKey {
        address: read_address(family, service.get(SERVICE_ADDRESS)?)?,
        protocol: Protocol::from_number(u8::try_from(half(service, SERVICE_PROTOCOL)?).ok()?)?,
        port: u16::from_be_bytes(*service.get(SERVICE_PORT)?.first_chunk()?),
    };
    let settings = Settings {
        scheduler: service.text(SERVICE_SCHEDULER)?.to_owned(),
        flags: word(service, SERVICE_FLAGS)? & !HASHED,
        timeout: word(service, SERVICE_TIMEOUT)?,
    };
    // Without affinity the kernel keeps a time-out that means nothing.
    let timeout = if settings.flags & PERSISTENT == 0 { 0 } else { settings.timeout };
    Some((key, Settings { timeout, ..settings }))
}

/// One backend of a dump.
pub(super) fn read_destination(answer: Attributes<'_>) -> Option<Destination> {
    let destination = answer.nested(DESTINATION)?;
    let ip = read_address(half(destination, DESTINATION_FAMILY)?, destination.get(DESTINATION_ADDRESS)?)?;
    let port = u16::from_be_bytes(*destination.get(DESTINATION_PORT)?.first_chunk()?);
    Some(Destination {
        backend: Backend { ip, port },
        weight: word(destination, DESTINATION_WEIGHT)?,
        connections: word(destination, DESTINATION_ACTIVE)?.saturating_add(word(destination, DESTINATION_INACTIVE)?),
    })
}

fn half(attributes: Attributes<'_>, kind: u16) -> Option<u16> {
    Some(u16::from_ne_bytes(*attributes.get(kind)?.first_chunk()?))
}

fn word(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(*attributes.get(kind)?.first_chunk()?))
}

fn read_address(family: u16, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        2 => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        10 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
