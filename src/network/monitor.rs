//! Hears what others do to the routes, tunnels and tables of the pod network, so that it is put right at once and not at the next
//! look. Hearing too much costs one look; what we do ourselves ends after one, since that finds nothing to write. What the service
//! rules' own socket does is not heard at all: it would wake us at each change of a Service.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};
use stoker_model::netlink_port;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::rtnl::NODE_ROUTE;
use super::table;

/// `RTMGRP_LINK`, `RTMGRP_NEIGH`, `RTMGRP_IPV4_ROUTE` and `RTMGRP_IPV6_ROUTE`.
const ROUTE_GROUPS: u32 = 0x1 | 0x4 | 0x40 | 0x400;
/// `NFNLGRP_NFTABLES` is group 7; the mask counts from bit 0.
const TABLE_GROUPS: u32 = 1 << 6;
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const DEL_ROUTE: u16 = 25;
const DEL_NEIGHBOUR: u16 = 29;
const MAIN_TABLE: u8 = 254;
const LINK_UP: u32 = 1;
/// Neighbours that the kernel forgets on its own are not permanent.
const PERMANENT: u16 = 0x80;
const LINK_NAME: u16 = 3;
const NFTABLES: u16 = 10 << 8;
/// Deleted tables, chains and rules. Elements come and go with pods, by processes of their own.
const DELETED: [u16; 3] = [NFTABLES | 2, NFTABLES | 5, NFTABLES | 8];
/// Whoever heard something waits so long before looking, so that several changes are looked at together.
pub(super) const SETTLE: Duration = Duration::from_millis(100);

/// What was heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Heard {
    /// Routes, neighbours or links.
    Routes,
    /// One of the tables.
    Tables,
}

/// Two sockets that hear.
#[derive(Debug)]
pub(super) struct Monitor {
    routes: AsyncFd<OwnedFd>,
    tables: AsyncFd<OwnedFd>,
    /// As [`table::TABLE`].
    table: &'static str,
}

impl Monitor {
    /// Starts to hear in the network namespace of the calling thread, of routes and of one table; needs a Tokio runtime.
    pub(super) fn open(table: &'static str) -> io::Result<Self> {
        let routes = socket(None, ROUTE_GROUPS, &what_may_concern_routes())?;
        let tables = socket(Some(netlink::NETFILTER), TABLE_GROUPS, &netlink_port::foreign_only())?;
        Ok(Self { routes, tables, table })
    }

    /// Returns when somebody else has changed something. What was heard is lost if this is not awaited to its end, so nothing in
    /// it waits after hearing.
    pub(super) async fn heard(&self) -> Heard {
        let name = self.table.split_once(' ').map_or(self.table, |(_, name)| name);
        tokio::select! {
            () = wait(&self.routes, concerns_routes) => Heard::Routes,
            () = wait(&self.tables, |message| concerns_table(message, name) && !table::is_own(message.port)) => Heard::Tables,
        }
    }

    /// As [`Monitor::heard`], of the table alone.
    pub(super) async fn heard_table(&self) {
        let name = self.table.split_once(' ').map_or(self.table, |(_, name)| name);
        wait(&self.tables, |message| concerns_table(message, name) && !table::is_own(message.port)).await;
    }
}

/// Of a classic BPF program: opcode, jump if true, jump if false, and operand.
type Instruction = (u16, u8, u8, u32);

/// A socket that hears of these groups what the program lets through.
fn socket(protocol: Option<Protocol>, groups: u32, program: &[Instruction]) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    let filter: Vec<_> = program.iter().map(|(code, t, f, k)| socket2::SockFilter::new(*code, *t, *f, *k)).collect();
    socket2::SockRef::from(&fd).attach_filter(&filter)?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    #[expect(deprecated, reason = "its successor is unsafe, and the descriptor is owned by what watches it")]
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Returns when a message came that counts, or when some were lost; all that is queued has been read then.
async fn wait(socket: &AsyncFd<OwnedFd>, counts: impl Fn(&Message<'_>) -> bool) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let Ok(mut ready) = socket.readable().await else { return std::future::pending().await };
        let mut heard = false;
        loop {
            match rustix::net::recv(socket.get_ref(), &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((bytes, _)) => heard |= messages(&buffer[..bytes]).any(|message| counts(&message)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => heard = true,
                Err(error) => {
                    tracing::warn!(%error, "cannot hear of changes to the pod network");
                    return std::future::pending().await;
                }
            }
        }
        ready.clear_ready();
        if heard {
            return;
        }
    }
}

/// One notification.
struct Message<'a> {
    kind: u16,
    /// Of the socket that asked for the change.
    port: u32,
    body: &'a [u8],
}

/// Splits a datagram; a broken tail ends it.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    const HEADER: usize = 16;
    std::iter::from_fn(move || {
        let length = usize::try_from(number(bytes, 0)?).ok()?;
        let body = bytes.get(HEADER..length)?;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let port = number(bytes, 12)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, port, body })
    })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The text of an attribute behind a header.
fn text(body: &[u8], header: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = body.get(header..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..length)?;
        if kind & 0x3fff == wanted {
            return value.split(|byte| *byte == 0).next();
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// A route of ours that is gone, a neighbour, or a link that goes or comes: with one that goes down, routes end without a word.
/// Links of pods do not count.
fn concerns_routes(message: &Message<'_>) -> bool {
    const LINK_HEADER: usize = 16;
    let of_pod = || {
        text(message.body, LINK_HEADER, LINK_NAME).is_none_or(|name| name.starts_with(super::LINK_PREFIX.as_bytes()))
    };
    match message.kind {
        DEL_ROUTE => message.body.get(4..6) == Some(&[MAIN_TABLE, u8::from(NODE_ROUTE)]),
        DEL_LINK => !of_pod(),
        NEW_LINK => number(message.body, 12).is_some_and(|changed| changed & LINK_UP != 0) && !of_pod(),
        DEL_NEIGHBOUR => {
            message.body.get(8..10).is_some_and(|state| u16::from_ne_bytes([state[0], state[1]]) & PERMANENT != 0)
        }
        _ => false,
    }
}

/// A program for the kernel that refuses what [`concerns_routes`] would, as far as it lies where the kernel has always put it: a pod that
/// comes and goes is told of in 24 messages, and each would wake us. A message's length is not looked at: loads beyond it refuse it.
fn what_may_concern_routes() -> [Instruction; 20] {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const AND: u16 = 0x54;
    const IF_EQUAL: u16 = 0x15;
    const IF_ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    // Where things lie: behind 16 bytes of a header each kind has its own, with attributes behind those.
    const KIND: u32 = 4;
    const ROUTE_TABLE_AND_PROTOCOL: u32 = 16 + 4;
    const NEIGHBOUR_STATE: u32 = 16 + 8;
    const LINK_CHANGED: u32 = 16 + 12;
    const FIRST_ATTRIBUTE: u32 = 16 + 16 + 2;
    const FIRST_VALUE: u32 = FIRST_ATTRIBUTE + 2;
    // Where the program goes on.
    const ROUTE: u8 = 5;
    const NEIGHBOUR: u8 = 7;
    const LINK: u8 = 9;
    const NOT_OF_POD: u8 = 14;
    const HEAR: u8 = 18;
    const REFUSE: u8 = 19;
    // It loads in network order.
    let half = |number: u16| u32::from(u16::from_be_bytes(number.to_ne_bytes()));
    let word = |number: u32| u32::from_be_bytes(number.to_ne_bytes());
    let own_route = u32::from_be_bytes([0, 0, MAIN_TABLE, NODE_ROUTE.into()]);
    let [s, t, k] = *super::LINK_PREFIX.as_bytes().first_chunk().expect("a prefix of three letters");
    let of_pod = u32::from_be_bytes([s, t, k, 0]);
    // Jumps count from the next instruction.
    let at = |place: u8, (code, yes, no, operand): Instruction| (code, yes - place - 1, no - place - 1, operand);
    [
        (LOAD_HALF, 0, 0, KIND),
        at(1, (IF_EQUAL, ROUTE, 2, half(DEL_ROUTE))),
        at(2, (IF_EQUAL, NEIGHBOUR, 3, half(DEL_NEIGHBOUR))),
        at(3, (IF_EQUAL, LINK, 4, half(NEW_LINK))),
        at(4, (IF_EQUAL, LINK, REFUSE, half(DEL_LINK))),
        (LOAD_HALF, 0, 0, ROUTE_TABLE_AND_PROTOCOL),
        at(6, (IF_EQUAL, HEAR, REFUSE, own_route)),
        (LOAD_HALF, 0, 0, NEIGHBOUR_STATE),
        at(8, (IF_ANY_BIT, HEAR, REFUSE, half(PERMANENT))),
        (LOAD_HALF, 0, 0, FIRST_ATTRIBUTE),
        at(10, (IF_EQUAL, 11, NOT_OF_POD, half(LINK_NAME))),
        (LOAD_WORD, 0, 0, FIRST_VALUE),
        (AND, 0, 0, 0xffff_ff00),
        at(13, (IF_EQUAL, REFUSE, NOT_OF_POD, of_pod)),
        (LOAD_HALF, 0, 0, KIND),
        at(15, (IF_EQUAL, 16, HEAR, half(NEW_LINK))),
        (LOAD_WORD, 0, 0, LINK_CHANGED),
        at(17, (IF_ANY_BIT, HEAR, REFUSE, word(LINK_UP))),
        (RETURN, 0, 0, u32::MAX),
        (RETURN, 0, 0, 0),
    ]
}

fn concerns_table(message: &Message<'_>, name: &str) -> bool {
    const TABLE_HEADER: usize = 4;
    const TABLE_NAME: u16 = 1;
    DELETED.contains(&message.kind) && text(message.body, TABLE_HEADER, TABLE_NAME) == Some(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::process::Command;

    use rustix::net::SendFlags;
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    use super::*;

    fn message(kind: u16, header: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = header.to_vec();
        for (kind, value) in attributes {
            body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut bytes = u32::try_from(body.len() + 16).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(42_u32.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    fn link(kind: u16, changed: u32, name: &str) -> Vec<u8> {
        let header = [vec![0; 12], changed.to_ne_bytes().to_vec()].concat();
        message(kind, &header, &[(LINK_NAME, format!("{name}\0").as_bytes())])
    }

    #[test]
    fn only_what_concerns_the_pod_network_counts() {
        let counts = |bytes: &[u8]| concerns_routes(&messages(bytes).next().unwrap());
        let route = |table, protocol| message(DEL_ROUTE, &[2, 24, 0, 0, table, protocol, 0, 1, 0, 0, 0, 0], &[]);
        assert!(counts(&route(254, 83)));
        assert!(!counts(&route(254, 84)), "a pod's own route");
        assert!(!counts(&route(255, 83)), "an address of cluster DNS");
        assert!(counts(&link(NEW_LINK, 1, "eth0")) && counts(&link(DEL_LINK, 0, "stoker-vxlan")));
        assert!(!counts(&link(NEW_LINK, 0, "eth0")), "it neither went up nor down");
        assert!(!counts(&link(NEW_LINK, 1, "stk0123456789")) && !counts(&link(DEL_LINK, 0, "stk0123456789")));
        let neighbour = |state: u8| message(DEL_NEIGHBOUR, &[2, 0, 0, 0, 7, 0, 0, 0, state, 0, 0, 0], &[]);
        assert!(counts(&neighbour(0x80)) && !counts(&neighbour(0x02)));
    }

    /// Makes a table and deletes it by a socket of this port; 0: one that the kernel finds.
    fn change_tables(port: u32) {
        const REQUEST: u8 = 1;
        const ACKNOWLEDGE: u8 = 4;
        let request = |kind: u16, flags: u8, header: [u8; 4], attributes: &[(u16, &[u8])]| {
            let mut bytes = message(kind, &header, attributes);
            bytes[6] = flags;
            bytes
        };
        let table = |kind: u16| request(NFTABLES | kind, REQUEST | ACKNOWLEDGE, [2, 0, 0, 0], &[(1, b"elsewhere\0")]);
        // Subsystem 10 is nftables.
        let batch = [
            request(0x10, REQUEST, [0, 0, 0, 10], &[]),
            table(0),
            table(2),
            request(0x11, REQUEST, [0, 0, 0, 10], &[]),
        ];
        let kind = (AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC);
        let socket = rustix::net::socket_with(kind.0, kind.1, kind.2, Some(netlink::NETFILTER)).unwrap();
        rustix::net::bind(&socket, &SocketAddrNetlink::new(port, 0)).unwrap();
        rustix::net::sendto(&socket, &batch.concat(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).unwrap();
        let mut answer = [0; 1024];
        let (bytes, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::DONTWAIT).unwrap();
        assert_eq!(number(&answer[..bytes], 16), Some(0), "the kernel refuses it");
    }

    /// What a monitor in a namespace of its own, of this name, lets the body see; `None`: only root makes namespaces.
    fn within<T: Send + 'static>(name: &str, body: impl FnOnce(Monitor) -> T + Send + 'static) -> Option<T> {
        let name = format!("stoker-{name}-{}", std::process::id());
        let netns = |word: &str| Command::new("ip").args(["netns", word, &name]).status().is_ok_and(|it| it.success());
        if !netns("add") {
            return None;
        }
        let path = format!("/var/run/netns/{name}");
        let done = std::thread::spawn(move || {
            move_into_link_name_space(File::open(path).unwrap().as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            let _within = runtime.enter();
            body(Monitor::open(table::TABLE).unwrap())
        });
        let done = done.join();
        assert!(netns("delete"));
        Some(done.unwrap())
    }

    #[test]
    fn what_our_sockets_do_is_not_told_to_us() {
        let told = within("monitor", |monitor| {
            // The kernel tells of a change before it answers.
            [netlink_port::own_ports().next().unwrap(), 0].map(|port| {
                change_tables(port);
                rustix::net::recv(monitor.tables.get_ref(), &mut [0; 1], RecvFlags::DONTWAIT).is_ok()
            })
        });
        assert!(told.is_none_or(|told| told == [false, true]), "{told:?}");
    }

    #[test]
    fn the_kernel_tells_of_routes_only_what_counts() {
        let steps = [
            ("link add stk0123456789 type veth peer name eth9", "the other end, which has no pod's name"),
            ("link set stk0123456789 up", ""),
            ("address add 192.0.2.1/24 dev stk0123456789", ""),
            ("neigh add 192.0.2.9 lladdr 02:00:00:00:00:01 dev stk0123456789", ""),
            ("route add 198.51.100.1 dev stk0123456789 protocol 84", ""),
            ("route add 198.51.100.2 dev stk0123456789 protocol 83", ""),
            ("route del 198.51.100.1", ""),
            ("route del 198.51.100.2", "a route to a node"),
            // The kernel lets go of it first, and tells of the end of one that was not permanent.
            ("neigh del 192.0.2.9 dev stk0123456789", ""),
            ("neigh add 192.0.2.9 lladdr 02:00:00:00:00:01 dev stk0123456789", ""),
            ("neigh flush dev stk0123456789 nud permanent", ""),
            ("link set eth9 alias other", ""),
            ("link set eth9 up", "a link of others"),
            ("link set stk0123456789 down", ""),
            ("link delete stk0123456789", "the other end"),
        ];
        let told = within("routes", move |monitor| {
            steps.map(|(step, _)| {
                assert!(Command::new("ip").args(step.split(' ')).status().unwrap().success(), "{step}");
                let (mut datagrams, mut concern, mut buffer) = (0, 0, [0; 8 << 10]);
                while let Ok((bytes, _)) =
                    rustix::net::recv(monitor.routes.get_ref(), &mut buffer[..], RecvFlags::DONTWAIT)
                {
                    datagrams += 1;
                    concern += usize::from(messages(&buffer[..bytes]).any(|message| concerns_routes(&message)));
                }
                (datagrams, concern)
            })
        });
        for ((step, why), (datagrams, concern)) in steps.into_iter().zip(told.into_iter().flatten()) {
            assert_eq!(concern > 0, !why.is_empty(), "{step}: {why}");
            assert_eq!(datagrams, concern, "{step}: what does not count was told");
        }
    }

    #[test]
    fn only_our_table_counts() {
        let counts = |kind: u16, table: &str| {
            let bytes = message(kind, &[1, 0, 0, 0], &[(1, format!("{table}\0").as_bytes())]);
            let message = messages(&bytes).next().unwrap();
            assert_eq!(message.port, 42);
            concerns_table(&message, "stoker-pods")
        };
        assert!(DELETED.into_iter().all(|kind| counts(kind, "stoker-pods")));
        assert!(!counts(DELETED[0], "stoker-policy") && !counts(NFTABLES | 14, "stoker-pods"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = (concerns_routes(&message), concerns_table(&message, "stoker-pods"));
            }
            for kind in [NEW_LINK, DEL_LINK, DEL_ROUTE, DEL_NEIGHBOUR, DELETED[0]] {
                let message = Message { kind, port: 0, body: &bytes };
                let _ = (concerns_routes(&message), concerns_table(&message, "stoker-pods"));
            }
        }
    }
}
