//! Rtnetlink messages, and a blocking socket for the plugin, which has no time to start a runtime for one request.

use std::io;
use std::net::IpAddr;
use std::os::fd::{OwnedFd, RawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily as Domain, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::cidr::Cidr;

/// Marks the routes to pods of this node.
pub(super) const POD_ROUTE: RouteProtocol = RouteProtocol::Other(84);
/// Marks the routes to other nodes' pods.
pub(super) const NODE_ROUTE: RouteProtocol = RouteProtocol::Other(83);

/// Makes something that must not be there yet.
pub(super) const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Makes something, or gives what is there a new value.
pub(super) const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// A socket in the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Rtnl {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Rtnl {
    pub(super) fn open() -> io::Result<Self> {
        let fd = rustix::net::socket_with(Domain::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; 32 * 1024] })
    }

    /// Sends all in one datagram. The kernel works through every one of them; the first refusal is returned with its index.
    pub(super) fn send(&mut self, requests: Vec<(RouteNetlinkMessage, u16)>) -> Result<(), (usize, io::Error)> {
        let count = requests.len();
        if count == 0 {
            // The kernel refuses to be told nothing.
            return Ok(());
        }
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        for (request, flags) in requests {
            self.append(&mut bytes, request, flags | NLM_F_ACK);
        }
        self.write(&bytes).map_err(|error| (0, error))?;
        let mut refused: Option<(usize, io::Error)> = None;
        let mut answered = 0;
        while answered < count {
            self.receive(|message| {
                if let NetlinkPayload::Error(error) = message.payload {
                    answered += 1;
                    let index = usize::try_from(message.header.sequence_number.wrapping_sub(first)).unwrap_or_default();
                    if error.raw_code() != 0 && refused.as_ref().is_none_or(|(before, _)| index < *before) {
                        refused = Some((index, error.to_io()));
                    }
                }
                Ok(())
            })
            .map_err(|error| (0, error))?;
        }
        refused.map_or(Ok(()), Err)
    }

    /// The link of that name.
    pub(super) fn link(&mut self, name: &str) -> io::Result<Option<LinkMessage>> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.ask(RouteNetlinkMessage::GetLink(request), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })),
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Everything that a dump request returns.
    pub(super) fn dump(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(request, NLM_F_DUMP)
    }

    fn ask(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, request, flags);
        self.write(&bytes)?;
        let mut answers = Vec::new();
        let mut done = false;
        while !done {
            self.receive(|message| {
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(error) if error.raw_code() != 0 => return Err(error.to_io()),
                    _ => done = true,
                }
                done |= flags & NLM_F_DUMP == 0;
                Ok(())
            })?;
        }
        Ok(answers)
    }

    fn append(&mut self, bytes: &mut Vec<u8>, request: RouteNetlinkMessage, flags: u16) {
        self.sequence += 1;
        let message = numbered(request, flags, self.sequence);
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::io::retry_on_intr(|| rustix::net::sendto(&self.fd, bytes, SendFlags::empty(), &kernel))?;
        Ok(())
    }

    fn receive(
        &mut self,
        mut each: impl FnMut(NetlinkMessage<RouteNetlinkMessage>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (length, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()))?;
        let mut rest = &self.buffer[..length];
        while let Some(size) = rest.first_chunk::<4>().map(|size| u32::from_ne_bytes(*size) as usize) {
            let Some(one) = rest.get(..size).filter(|_| size >= 16) else { break };
            let message = NetlinkMessage::deserialize(one).map_err(|error| io::Error::other(error.to_string()))?;
            each(message)?;
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// A request, ready to be sent.
pub(super) fn numbered(request: RouteNetlinkMessage, flags: u16, sequence: u32) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    message
}

/// A veth pair, the near end up, the far one in another namespace; it can be set up only when it has its near one.
pub(super) fn veth(near: &str, near_mac: Mac, far: &str, far_mac: Mac, namespace: RawFd, mtu: u32) -> LinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(far.to_owned()),
        LinkAttribute::Address(far_mac.to_vec()),
        LinkAttribute::NetNsFd(namespace),
        LinkAttribute::Mtu(mtu),
    ];
    let mut link = up();
    link.attributes = vec![
        LinkAttribute::IfName(near.to_owned()),
        LinkAttribute::Address(near_mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    link
}

/// A message that sets a link up; name it by its index.
pub(super) fn up() -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// An address of its own prefix on a link, usable at once.
pub(super) fn address(on: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = Cidr::single(address).prefix();
    message.header.index = on;
    if address.is_ipv6() {
        // Nobody else can have it; duplicate address detection would cost a second.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message
}

/// A neighbour that needs not be asked for.
pub(super) fn neighbour(on: u32, address: IpAddr, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = on;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unspec;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message
}

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Hop {
    /// What it leads to is on the link.
    Link(u32),
    /// Through a gateway that is on the link, whatever its address.
    OnLink(u32, IpAddr),
    /// Through a gateway that the routing table knows how to reach.
    Gateway(IpAddr),
    /// Nowhere: senders are told.
    Unreachable,
}

/// A route in the main table.
pub(super) fn route(to: Cidr, hop: Hop, protocol: RouteProtocol) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.address());
    message.header.destination_prefix_length = to.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = protocol;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    if to.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(to.address().into()));
    }
    match hop {
        Hop::Link(link) => {
            if to.is_ipv4() {
                message.header.scope = RouteScope::Link;
            }
            message.attributes.push(RouteAttribute::Oif(link));
        }
        Hop::OnLink(link, gateway) => {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Oif(link));
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        Hop::Gateway(gateway) => message.attributes.push(RouteAttribute::Gateway(gateway.into())),
        Hop::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    message
}

/// The hardware address of a link.
pub(super) fn mac_of(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

/// As `02:00:5e:10:00:01`.
pub(super) fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads what [`mac_text`] writes.
pub(super) fn parse_mac(text: &str) -> Option<Mac> {
    let bytes: Vec<u8> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

/// A private hardware address that follows from a text, so that it is the same again after a restart.
pub(super) fn mac_from(digest: &[u8]) -> Mac {
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(digest) {
        *to = *from;
    }
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_may_be_asked_for() {
        let asked = Rtnl::open().unwrap().send(Vec::new());
        assert!(asked.is_ok(), "{asked:?}");
    }

    #[test]
    fn hardware_addresses_are_private_and_read_back() {
        let mac = mac_from(&[0xff, 1, 2, 3, 4, 5, 6]);
        assert_eq!(mac_text(mac), "fe:01:02:03:04:05");
        assert_eq!(parse_mac("fe:01:02:03:04:05"), Some(mac));
        for wrong in ["", "fe:01", "fe:01:02:03:04:05:06", "zz:01:02:03:04:05"] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
