//! The addresses of this machine, and `kube-ipvs0`, the dummy interface that makes every service IP one of them: IPVS takes
//! packets only that are for this machine.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;

use crate::service::netlink::message::{ACK, Attributes, CREATE, DUMP, Messages, REQUEST, Received};
use crate::service::netlink::socket::Socket;

/// The name by which operators and other programs know it.
pub(super) const DUMMY: &str = "kube-ipvs0";

const NEW_LINK: u16 = 16;
pub(super) const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const EXCLUSIVE: u16 = 0x200;
const LINK_NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const LINK_KIND: u16 = 1;
const ADDRESS_ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
/// `IFA_F_NODAD`: nobody else is asked whether the address is free.
const NO_DETECTION: u8 = 0x02;

/// Where an address of this machine stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    link: u32,
    address: IpAddr,
}

/// Links and addresses of one network namespace.
#[derive(Debug)]
pub(super) struct Links {
    socket: Socket,
    /// The dummy interface's number, once it is there.
    dummy: u32,
}

impl Links {
    /// Connects to the kernel of the calling thread's network namespace; changes nothing.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open_route()?, dummy: 0 })
    }

    /// The port that notifications about our own changes carry.
    pub(super) fn port(&self) -> io::Result<u32> {
        self.socket.port()
    }

    /// Makes the dummy interface where it is not there.
    pub(super) fn ensure_dummy(&mut self) -> io::Result<()> {
        if let Some(index) = self.find_dummy()? {
            self.dummy = index;
            return Ok(());
        }
        self.send(|m| {
            m.framed(NEW_LINK, REQUEST | ACK | CREATE | EXCLUSIVE, &[0; 16], |m| {
                m.text(LINK_NAME, DUMMY);
                m.nested(LINK_INFO, |m| m.text(LINK_KIND, "dummy"));
            });
        })?;
        self.dummy = self.find_dummy()?.ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    /// Learns which interface the dummy one is, if it is there.
    pub(super) fn look_for_dummy(&mut self) -> io::Result<()> {
        self.dummy = self.find_dummy()?.unwrap_or_default();
        Ok(())
    }

    /// Removes the dummy interface, and with it all its addresses. Returns whether it was there.
    pub(super) fn remove_dummy(&mut self) -> io::Result<bool> {
        let Some(index) = self.find_dummy()? else { return Ok(false) };
        self.send(|m| _ = m.framed(DEL_LINK, REQUEST | ACK, &link_header(index), |_| {}))?;
        Ok(true)
    }

    fn find_dummy(&mut self) -> io::Result<Option<u32>> {
        let mut request = self.socket.messages();
        request.framed(GET_LINK, REQUEST | DUMP, &[0; 16], |_| {});
        let mut index = None;
        self.socket.dump(&request, |answer| {
            if let Some((number, name)) = read_link(answer.body())
                && name == DUMMY
            {
                index = Some(number);
            }
        })?;
        Ok(index)
    }

    /// The addresses that the dummy interface has, and those that any other has, but for loopback and link-local ones.
    pub(super) fn addresses(&mut self) -> io::Result<(HashSet<IpAddr>, BTreeSet<IpAddr>)> {
        let mut request = self.socket.messages();
        request.framed(GET_ADDRESS, REQUEST | DUMP, &[0; 8], |_| {});
        let (mut bound, mut others) = (HashSet::new(), BTreeSet::new());
        let dummy = self.dummy;
        self.socket.dump(&request, |answer| {
            let Some(Held { link, address }) = read_address(answer.body()) else { return };
            if link == dummy && dummy != 0 {
                bound.insert(address);
            } else if !address.is_loopback() && !is_link_local(address) {
                others.insert(address);
            }
        })?;
        // The kernel gives the dummy interface a link-local address if somebody sets it up.
        bound.retain(|address| !is_link_local(*address));
        Ok((bound, others))
    }

    /// Gives these addresses to the dummy interface; one that it has already is success.
    pub(super) fn bind(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        let dummy = self.dummy;
        self.change(addresses, is_there, |m, address| {
            write_address(m, NEW_ADDRESS, REQUEST | ACK | CREATE | EXCLUSIVE, dummy, address);
        })
    }

    /// Takes these addresses from the dummy interface; one that is not there is success.
    pub(super) fn unbind(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        let dummy = self.dummy;
        self.change(addresses, is_absent, |m, address| {
            write_address(m, DEL_ADDRESS, REQUEST | ACK, dummy, address);
        })
    }

    fn change(
        &mut self,
        addresses: &[IpAddr],
        harmless: fn(&io::Error) -> bool,
        write: impl Fn(&mut Messages, IpAddr),
    ) -> io::Result<()> {
        if addresses.is_empty() {
            return Ok(());
        }
        let mut messages = self.socket.messages();
        let first = messages.next_sequence();
        addresses.iter().for_each(|address| write(&mut messages, *address));
        let refusals = self.socket.commit(&messages)?;
        refusals.into_iter().find(|(_, error)| !harmless(error)).map_or(Ok(()), |(sequence, error)| {
            let address = addresses.get(sequence.wrapping_sub(first) as usize);
            Err(io::Error::new(error.kind(), address.map_or(error.to_string(), |ip| format!("{ip}: {error}"))))
        })
    }

    fn send(&mut self, write: impl FnOnce(&mut Messages)) -> io::Result<()> {
        let mut messages = self.socket.messages();
        write(&mut messages);
        let refusals = self.socket.commit(&messages)?;
        refusals.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }
}

/// All addresses of this machine but link-local ones, in the network namespace of the calling thread.
pub(in crate::service) fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let mut socket = Socket::open_route()?;
    let mut request = socket.messages();
    request.framed(GET_ADDRESS, REQUEST | DUMP, &[0; 8], |_| {});
    let mut addresses = BTreeSet::new();
    socket.dump(&request, |answer| addresses.extend(read_address(answer.body()).map(|held| held.address)))?;
    addresses.retain(|address| !is_link_local(*address));
    Ok(addresses)
}

fn is_there(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AlreadyExists
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.kind() == io::ErrorKind::NotFound
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn link_header(index: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

fn write_address(m: &mut Messages, kind: u16, flags: u16, link: u32, address: IpAddr) {
    let (family, bits, detection) = if address.is_ipv4() { (2, 32, 0) } else { (10, 128, NO_DETECTION) };
    let mut header = [family, bits, detection, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&link.to_ne_bytes());
    m.framed(kind, flags, &header, |m| {
        for attribute in [ADDRESS_LOCAL, ADDRESS_ADDRESS] {
            match address {
                IpAddr::V4(v4) => m.attribute(attribute, &v4.octets()),
                IpAddr::V6(v6) => m.attribute(attribute, &v6.octets()),
            }
        }
    });
}

/// The number and the name of a link.
pub(super) fn read_link(body: &[u8]) -> Option<(u32, &str)> {
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    Some((index, Attributes::of(body.get(16..)?).text(LINK_NAME)?))
}

/// Whether a notification is about an address that came or went and may be a service's or take NodePorts.
pub(super) fn changed_address(message: &Received<'_>) -> bool {
    let about_addresses = message.kind == NEW_ADDRESS || message.kind == DEL_ADDRESS;
    let counts = |held: Held| !held.address.is_loopback() && !is_link_local(held.address);
    about_addresses && read_address(message.body()).is_some_and(counts)
}

fn read_address(body: &[u8]) -> Option<Held> {
    let link = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    let attributes = Attributes::of(body.get(8..)?);
    let bytes = attributes.get(ADDRESS_LOCAL).or_else(|| attributes.get(ADDRESS_ADDRESS))?;
    let address = match body.first()? {
        2 => IpAddr::from(*bytes.first_chunk::<4>()?),
        10 => IpAddr::from(*bytes.first_chunk::<16>()?),
        _ => return None,
    };
    Some(Held { link, address })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::service::netlink::message::received;

    /// A notification that an address has gone.
    pub(in crate::service::ipvs) fn address_message(address: &str) -> Vec<u8> {
        let mut m = Messages::new(1);
        write_address(&mut m, DEL_ADDRESS, 0, 7, address.parse().unwrap());
        m.bytes().to_vec()
    }

    /// A notification that a link has gone.
    pub(in crate::service::ipvs) fn link_message(name: &str) -> Vec<u8> {
        let mut m = Messages::new(1);
        m.framed(DEL_LINK, 0, &link_header(7), |m| m.text(LINK_NAME, name));
        m.bytes().to_vec()
    }

    #[test]
    fn addresses_read_back() {
        for address in ["10.96.0.10", "fd00:96::10"] {
            let address: IpAddr = address.parse().unwrap();
            let mut m = Messages::new(1);
            write_address(&mut m, NEW_ADDRESS, REQUEST, 7, address);
            let message = received(m.bytes()).next().expect("one message");
            assert_eq!(read_address(message.body()), Some(Held { link: 7, address }));
        }
        assert_eq!(read_address(&[2, 32, 0, 0, 1]), None);
    }
}
