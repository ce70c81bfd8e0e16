//! The seam between what is wanted and how a kernel is told: the one task of the room drives a [`DataPath`].
//!
//! The owner keeps the [`Table`] (who claims which frontend, which backends in which slots) and hands out what differs. An
//! implementation writes that, reads its own state back after a restart, and may ask to be called again later. All methods
//! block for as long as the kernel takes: the owner calls them on a thread for that.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use super::diff::{Operations, Table};
use super::owner::ServiceError;

/// One way to make the kernel balance connections.
pub trait DataPath: Debug + Send + 'static {
    /// Writes what differs, as one transaction where the kernel has such. `table` is what is wanted now: the operations name
    /// the frontends that changed (`Key::frontend`), `Table::frontend` tells where each leads. After an error the owner calls
    /// [`DataPath::reconcile`] before it writes again.
    fn apply(&mut self, table: &Table, operations: &Operations) -> Result<(), ServiceError>;

    /// Reads what the kernel holds and writes only the difference to `table`, which may take over an order of backends that is
    /// there. Returns what was written.
    fn reconcile(&mut self, table: &mut Table, doubt: Doubt) -> Result<Operations, ServiceError>;

    /// Does what had to wait for its time, such as the removal of a backend that still had connections. Returns when to be
    /// called again; the owner also calls it after each write.
    fn tend(&mut self) -> Result<Option<Duration>, ServiceError> {
        Ok(None)
    }

    /// Opens what hears of foreign changes to our rules, if there is such a thing. Called once the first write is through.
    /// The [`Doubt`] covers what happened since that write and went unheard.
    fn listen(&mut self) -> Result<Option<Listening>, ServiceError> {
        Ok(None)
    }

    /// What came into doubt in the last write, since the listener could not hear; asked after each.
    fn missed(&mut self) -> Doubt {
        Doubt::None
    }

    /// Transactions sent since the start.
    fn transactions(&self) -> u64;

    /// Removes all that it ever wrote; none there is success.
    fn remove(&mut self) -> Result<(), ServiceError>;
}

/// A listener, and what is in doubt since nobody listened before.
pub type Listening = (Box<dyn Listener>, Doubt);

/// Hears what others do to our rules. Its descriptor becomes readable when there is something to hear.
pub trait Listener: AsFd + AsRawFd + Debug + Send + Sync + 'static {
    /// Reads all that is queued and says what it puts in doubt.
    fn foreign_changes(&self) -> io::Result<Doubt>;
}

/// How much of the kernel's state has to be looked at before the next write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Doubt {
    /// Our table is what the kernel holds.
    None,
    /// Elements have to be read.
    Elements,
    /// The fixed rules have to be loaded anew as well.
    Rules,
}
