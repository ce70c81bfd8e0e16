//! Hears what others do to the addresses of this machine and to `kube-ipvs0`, beside what they do to our rules.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::epoll;

use super::links::{DEL_LINK, DUMMY, Links, changed_address, read_link};
use crate::service::data_path::{Doubt, Listener};
use crate::service::netlink::message::{Received, received};
use crate::service::netlink::socket;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// Two sockets that are readable as one.
#[derive(Debug)]
pub(super) struct AddressListener {
    both: OwnedFd,
    addresses: OwnedFd,
    rules: Box<dyn Listener>,
    /// Of the socket by which we change addresses ourselves.
    own_port: u32,
}

impl AddressListener {
    pub(super) fn open(links: &Links, rules: Box<dyn Listener>) -> io::Result<Self> {
        let addresses = socket::listen_route(GROUPS)?;
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&both, &addresses, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        epoll::add(&both, rules.as_fd(), epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
        Ok(Self { both, addresses, rules, own_port: links.port()? })
    }
}

impl AsRawFd for AddressListener {
    fn as_raw_fd(&self) -> RawFd {
        self.both.as_raw_fd()
    }
}

impl std::os::fd::AsFd for AddressListener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.both.as_fd()
    }
}

impl Listener for AddressListener {
    fn foreign_changes(&self) -> io::Result<Doubt> {
        let mut heard = self.rules.foreign_changes()?;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match rustix::net::recv(&self.addresses, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT) {
                Ok((bytes, _)) => {
                    let foreign = received(&buffer[..bytes]).filter(|message| message.port != self.own_port);
                    heard = foreign.map(|message| judge(&message)).fold(heard, Doubt::max);
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(heard),
                // So much happened that some of it was lost.
                Err(rustix::io::Errno::NOBUFS) => heard = heard.max(Doubt::Elements),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// An address that counts has come or gone, or the interface of service IPs is gone. Links of pods come and go with link-local
/// addresses only.
fn judge(message: &Received<'_>) -> Doubt {
    let dummy_gone = message.kind == DEL_LINK && read_link(message.body()).is_some_and(|(_, name)| name == DUMMY);
    if dummy_gone || changed_address(message) { Doubt::Elements } else { Doubt::None }
}

#[cfg(test)]
mod tests {
    use super::super::links::tests::{address_message, link_message};
    use super::*;

    #[test]
    fn only_addresses_that_count_are_heard() {
        let heard = |bytes: &[u8]| judge(&received(bytes).next().expect("one message"));
        assert_eq!(heard(&address_message("192.0.2.7")), Doubt::Elements);
        assert_eq!(heard(&address_message("fd00::7")), Doubt::Elements);
        assert_eq!(heard(&address_message("fe80::7")), Doubt::None, "every pod's interface has one");
        assert_eq!(heard(&link_message(DUMMY)), Doubt::Elements);
        assert_eq!(heard(&link_message("veth12345")), Doubt::None);
    }
}
