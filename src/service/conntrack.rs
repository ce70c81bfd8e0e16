//! Stale UDP and SCTP flows (B1.20): a flow goes on to the backend that its first packet was sent to, and refreshes itself, so that of
//! a backend which is gone the kernel has to be told.

use std::io;
use std::net::IpAddr;

use super::frontend::{Backend, Family, Frontend, HashMap, Place, Protocol};
use super::netlink::message::{ACK, Attributes, DUMP, NESTED, REQUEST, family_number};
use super::netlink::socket::Socket;

/// `NFNL_SUBSYS_CTNETLINK`, with its messages to get and delete.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE_PORT: u16 = 2;
const PROTO_DESTINATION_PORT: u16 = 3;

/// The backends that may answer for each frontend, in order.
type Serving<'a> = HashMap<Frontend, &'a [(Protocol, Backend)]>;

/// The kernel's table of connections of one network namespace.
#[derive(Debug)]
pub(super) struct Conntrack {
    socket: Socket,
}

/// What deleting a flow takes: the kernel's own bytes.
#[derive(Debug)]
struct Flow {
    original: Vec<u8>,
    rest: Vec<(u16, Vec<u8>)>,
}

/// One direction of a flow.
struct Tuple {
    protocol: u8,
    source: Backend,
    destination: Backend,
}

impl Conntrack {
    /// Connects to the kernel of the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Deletes one family's flows to these frontends that are answered by nobody of theirs; `local` are the node's own
    /// addresses, which NodePorts are reached at. Returns how many these were.
    pub(super) fn forget_stale(
        &mut self,
        family: Family,
        serving: &Serving<'_>,
        local: &[IpAddr],
    ) -> io::Result<usize> {
        if serving.is_empty() {
            return Ok(0);
        }
        let number = family_number(family);
        let mut request = self.socket.messages();
        request.raw(GET, REQUEST | DUMP, number, 0, |_| {});
        let mut stale = Vec::new();
        // An interrupted dump shows some flow twice or misses a new one, and neither matters here.
        self.socket.dump(&request, |message| {
            stale.extend(stale_flow(family, message.attributes(), serving, local));
        })?;
        if stale.is_empty() {
            return Ok(0);
        }
        let mut deletions = self.socket.messages();
        for flow in &stale {
            deletions.raw(DELETE, REQUEST | ACK, number, 0, |m| {
                m.attribute(ORIGINAL | NESTED, &flow.original);
                flow.rest.iter().for_each(|(kind, value)| m.attribute(*kind, value));
            });
        }
        let refusals = self.socket.commit(&deletions)?;
        // A flow that has ended by itself meanwhile is as good as deleted.
        match refusals.into_iter().find(|(_, error)| error.kind() != io::ErrorKind::NotFound) {
            Some((_, error)) => Err(error),
            None => Ok(stale.len()),
        }
    }
}

/// The flow, if it leads to one of the frontends and none of its backends answers.
fn stale_flow(family: Family, flow: Attributes<'_>, serving: &Serving<'_>, local: &[IpAddr]) -> Option<Flow> {
    let original = tuple(family, flow.nested(ORIGINAL)?)?;
    let protocol = Protocol::from_number(original.protocol).filter(|protocol| *protocol != Protocol::Tcp)?;
    let reply = tuple(family, flow.nested(REPLY)?)?;
    let Backend { ip, port } = original.destination;
    let at = |place| serving.get(&Frontend { place, protocol, port });
    // Who talks to a port of that number somewhere else is not at our NodePort.
    let turned = reply.source != original.destination;
    let node_port = || at(Place::Node(family)).filter(|_| turned || local.contains(&ip));
    let backends = at(Place::Address(ip)).or_else(node_port)?;
    if backends.binary_search(&(protocol, reply.source)).is_ok() {
        return None;
    }
    let rest = [ID, ZONE].into_iter().filter_map(|kind| Some((kind, flow.get(kind)?.to_vec())));
    Some(Flow { original: flow.get(ORIGINAL)?.to_vec(), rest: rest.collect() })
}

fn tuple(family: Family, tuple: Attributes<'_>) -> Option<Tuple> {
    let (addresses, ports) = (tuple.nested(TUPLE_IP)?, tuple.nested(TUPLE_PROTO)?);
    let ip = |v4: u16, v6: u16| -> Option<IpAddr> {
        Some(match family {
            Family::Ipv4 => IpAddr::from(*addresses.get(v4)?.first_chunk::<4>()?),
            Family::Ipv6 => IpAddr::from(*addresses.get(v6)?.first_chunk::<16>()?),
        })
    };
    let port = |kind| Some(u16::from_be_bytes(*ports.get(kind)?.first_chunk()?));
    Some(Tuple {
        protocol: *ports.get(PROTO_NUMBER)?.first()?,
        source: Backend { ip: ip(1, 3)?, port: port(PROTO_SOURCE_PORT)? },
        destination: Backend { ip: ip(2, 4)?, port: port(PROTO_DESTINATION_PORT)? },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Flows of any shape: judged, or left alone.
        #[test]
        fn any_flow_can_be_read(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            for family in [Family::Ipv4, Family::Ipv6] {
                let _ = stale_flow(family, Attributes::of(&bytes), &Serving::default(), &[]);
            }
        }
    }
}
