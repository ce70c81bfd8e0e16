//! Netlink sockets: one for requests, one that listens to what others do to the tables.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force, set_socket_timeout,
};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use stoker_model::netlink_port;

use super::message::{Messages, Received, received};

/// Answers come in datagrams of at most 32 KB, but an error carries a copy of the refused message, up to 64 KB.
const RECEIVE_BYTES: usize = 128 * 1024;
/// Answers are there when the request returns; longer than this means that the kernel lost one.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Refusals of one batch: the sequence number of the message, and why.
pub(in crate::service) type Refusals = Vec<(u32, io::Error)>;

/// A socket for requests.
#[derive(Debug)]
pub(in crate::service) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
    sent: u64,
    /// What the socket's buffers hold by now: the largest batch, and the largest answers to one.
    room: [usize; 2],
}

impl Socket {
    /// Opens a socket to netfilter in the network namespace of the calling thread.
    pub(in crate::service) fn open() -> io::Result<Self> {
        Self::open_to(Some(netlink::NETFILTER))
    }

    /// Opens a socket to generic netlink, by which IPVS is told.
    pub(in crate::service) fn open_generic() -> io::Result<Self> {
        Self::open_to(Some(netlink::GENERIC))
    }

    /// Opens a socket to the part of the kernel that keeps links and addresses.
    pub(in crate::service) fn open_route() -> io::Result<Self> {
        // Its protocol number is 0.
        Self::open_to(None)
    }

    fn open_to(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = unbound(protocol, SocketFlags::CLOEXEC)?;
        let bind = |port| rustix::net::bind(&fd, &SocketAddrNetlink::new(port, 0));
        // Where all are taken the kernel finds one; what we do is heard then, and known by its port.
        if !netlink_port::own_ports().any(|port| bind(port).is_ok()) {
            bind(0)?;
        }
        set_socket_timeout(&fd, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { fd, buffer: vec![0; RECEIVE_BYTES], sequence: 1, sent: 0, room: [0; 2] })
    }

    /// Messages to be sent through this socket.
    pub(in crate::service) fn messages(&self) -> Messages {
        Messages::new(self.sequence)
    }

    /// How many batches were sent.
    pub(in crate::service) fn batches_sent(&self) -> u64 {
        self.sent
    }

    /// The port that notifications about our own changes carry.
    pub(in crate::service) fn port(&self) -> io::Result<u32> {
        let address = rustix::net::getsockname(&self.fd)?;
        Ok(SocketAddrNetlink::try_from(address)?.pid())
    }

    /// Sends a closed batch and returns what the kernel refused. If that is empty, all of it took effect, else nothing did.
    pub(in crate::service) fn commit(&mut self, batch: &Messages) -> io::Result<Refusals> {
        self.sent += 1;
        self.send(batch)?;
        let mut refusals = Refusals::new();
        let mut answered = false;
        // The kernel has worked through the batch when the send returns: all answers are there.
        loop {
            let bytes = match rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((bytes, _)) => bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            };
            for message in received(&self.buffer[..bytes]) {
                match message.error() {
                    Some(0) => answered = true,
                    Some(code) => refusals.push((message.sequence, io::Error::from_raw_os_error(code))),
                    None => {}
                }
            }
        }
        if answered || !refusals.is_empty() {
            Ok(refusals)
        } else {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not acknowledge the batch"))
        }
    }

    /// Sends one dump request and hands each answer to `each`; done again from the start (after `restart`) when the kernel says that
    /// the tables changed meanwhile.
    pub(in crate::service) fn dump(
        &mut self,
        request: &Messages,
        mut each: impl FnMut(Received<'_>),
    ) -> io::Result<Dumped> {
        const INTERRUPTED: u16 = 0x10;
        let sequence = self.sequence;
        self.send(request)?;
        let mut dumped = Dumped::Whole;
        loop {
            let (bytes, _) =
                rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()))?;
            // Answers to an earlier request that was given up may still be queued.
            for message in received(&self.buffer[..bytes]).filter(|message| message.sequence == sequence) {
                if message.flags & INTERRUPTED != 0 {
                    dumped = Dumped::Interrupted;
                }
                match message.error() {
                    // The end of a dump, or the acknowledgement of a single answer.
                    Some(0) => return Ok(dumped),
                    Some(code) => return Err(io::Error::from_raw_os_error(code)),
                    None if message.is_done() => return Ok(dumped),
                    None => each(message),
                }
            }
        }
    }

    fn send(&mut self, messages: &Messages) -> io::Result<()> {
        let bytes = messages.bytes();
        self.sequence = messages.next_sequence();
        // The whole batch is one datagram and has to fit the send buffer; answers are at most one for each message.
        let needed = [bytes.len().max(64 * 1024) + 1024, bytes.len().max(1024 * 1024)];
        if needed.iter().zip(&self.room).any(|(needed, room)| needed > room) {
            set_socket_send_buffer_size_force(&self.fd, needed[0])?;
            set_socket_recv_buffer_size_force(&self.fd, needed[1])?;
            self.room = needed;
        }
        rustix::io::retry_on_intr(|| {
            rustix::net::sendto(&self.fd, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))
        })?;
        Ok(())
    }
}

/// How a dump ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::service) enum Dumped {
    /// What it showed was there at one moment.
    Whole,
    /// Somebody changed the tables meanwhile: dump again.
    Interrupted,
}

/// `NFNLGRP_NFTABLES` is group 7; the mask counts from bit 0.
const NFTABLES_GROUP: u32 = 1 << 6;

/// Opens the socket that hears of every change to any nftables table of the namespace, but for what sockets of this process do.
pub(in crate::service) fn listen() -> io::Result<OwnedFd> {
    let fd = unbound(Some(netlink::NETFILTER), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let filter = netlink_port::foreign_only().map(|(code, t, f, k)| socket2::SockFilter::new(code, t, f, k));
    socket2::SockRef::from(&fd).attach_filter(&filter)?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, NFTABLES_GROUP))?;
    set_socket_recv_buffer_size_force(&fd, 256 * 1024)?;
    Ok(fd)
}

/// Whether such a socket hears from now on; what it has heard stays. While nobody does, the kernel writes no notifications.
pub(in crate::service) fn subscribe(fd: &OwnedFd, yes: bool) -> io::Result<()> {
    // Binding anew to its own port exchanges the groups.
    let port = SocketAddrNetlink::try_from(rustix::net::getsockname(fd)?)?.pid();
    rustix::net::bind(fd, &SocketAddrNetlink::new(port, if yes { NFTABLES_GROUP } else { 0 }))?;
    Ok(())
}

/// Opens the socket that hears of changes to links, addresses or routes of the namespace.
pub(in crate::service) fn listen_route(groups: u32) -> io::Result<OwnedFd> {
    let fd = unbound(None, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    set_socket_recv_buffer_size_force(&fd, 256 * 1024)?;
    Ok(fd)
}

fn unbound(protocol: Option<Protocol>, flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?)
}
