//! Hears what others do to our tables, so that it can be repaired at once.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::{TABLE, layout};
use crate::service::data_path::{Doubt, Listener};
use crate::service::netlink::message::{self, Kind, Received};
use crate::service::netlink::socket;

/// The socket that notifications come to, also in the hands of who writes: what a large transaction does need not be told.
#[derive(Debug)]
pub(super) struct Ears {
    fd: OwnedFd,
}

impl Ears {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { fd: socket::listen()? })
    }

    /// Whether notifications come from now on.
    pub(super) fn subscribe(&self, yes: bool) -> io::Result<()> {
        socket::subscribe(&self.fd, yes)
    }
}

/// Hears what others do to our tables.
#[derive(Debug)]
pub(super) struct TableListener {
    pub(super) ears: Arc<Ears>,
    pub(super) own_port: u32,
    /// Netlink ports of the nft processes that load our text.
    pub(super) loaders: Arc<Mutex<VecDeque<u32>>>,
}

impl std::os::fd::AsRawFd for TableListener {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.ears.fd)
    }
}

impl std::os::fd::AsFd for TableListener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.ears.fd)
    }
}

impl Listener for TableListener {
    /// Reads all that is queued, but for what our own sockets and nft processes did.
    fn foreign_changes(&self) -> io::Result<Doubt> {
        let mut buffer = vec![0; 32 * 1024];
        let mut heard = Doubt::None;
        loop {
            match rustix::net::recv(&self.ears.fd, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT) {
                Ok((bytes, _)) => {
                    let loaders = self.loaders.lock().unwrap_or_else(PoisonError::into_inner);
                    let foreign = message::received(&buffer[..bytes])
                        .filter(|m| m.port != self.own_port && !loaders.contains(&m.port));
                    heard = foreign.map(|m| judge(&m)).fold(heard, Doubt::max);
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

fn judge(message: &Received<'_>) -> Doubt {
    if message.is(Kind::NewGeneration) || message.attributes().text(TABLE) != Some(layout::TABLE) {
        Doubt::None
    } else if message.is(Kind::NewElements) || message.is(Kind::DelElements) {
        Doubt::Elements
    } else {
        Doubt::Rules
    }
}
