//! An ordered key-value store with one revision counter and watches: what the API keeps its objects in.
//!
//! [`Store`] is the one trait; [`embedded`] implements it on redb. Its shape is etcd's (one revision for each
//! transaction, guards on the revision of a key, a bounded history), so that etcd fits behind it.
//! Not here: what the bytes mean, clocks, when to compact.

pub mod embedded;
mod history;

use std::fmt;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;

/// A point in the store's life; every transaction that changes something has its own, larger one.
pub type Revision = u64;

/// One key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value.
    pub value: Bytes,
    /// When it was last written.
    pub revision: Revision,
}

/// A part of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// The revision that the list shows.
    pub revision: Revision,
    /// How many entries follow the last one; 0 on the last page.
    pub remaining: usize,
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// Keys that begin with this.
    pub prefix: String,
    /// Only keys greater than this one.
    pub after: Option<String>,
    /// At most so many; 0 is no limit.
    pub limit: usize,
    /// As it was then; `None`: as it is now.
    pub at: Option<Revision>,
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// There is no such key.
    Absent,
    /// The key was last written then.
    Unchanged(Revision),
}

/// One write of a transaction.
#[derive(Clone, Debug)]
pub struct Write {
    /// The key.
    pub key: String,
    /// What must hold for it.
    pub guard: Guard,
    /// The new value; `None` deletes. A deletion's last state is [`Event::value`], so it is given, too.
    pub change: Change,
}

/// What a write does.
#[derive(Clone, Debug)]
pub enum Change {
    /// Writes this value.
    Put(Bytes),
    /// Removes the key; watchers see this as its final state.
    Delete(Bytes),
}

/// What became of one key in one transaction.
#[derive(Debug)]
pub struct Event {
    /// The key.
    pub key: Arc<str>,
    /// When.
    pub revision: Revision,
    /// What happened.
    pub kind: EventKind,
    /// The value now, or the final state of a deleted one.
    pub value: Bytes,
    /// The value and revision before, if there was one.
    pub before: Option<(Bytes, Revision)>,
    /// The value as watchers send it, made by the first who needs it and shared by all others.
    pub rendered: OnceLock<Bytes>,
}

/// Kinds of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// There was no such key before.
    Created,
    /// There was.
    Modified,
    /// The key is gone.
    Deleted,
}

/// Why the store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A guard did not hold: read the key again.
    #[error("{key} is at {actual:?}, not as the write expects ({expected:?}): read it again")]
    Conflict {
        /// The key.
        key: String,
        /// What was expected.
        expected: Guard,
        /// Where it is; `None`: there is no such key.
        actual: Option<Revision>,
    },
    /// The history does not reach so far back: list again.
    #[error("too old resource version: {wanted} ({oldest})")]
    TooOld {
        /// What was asked for.
        wanted: Revision,
        /// The oldest that is there.
        oldest: Revision,
    },
    /// That has not happened yet.
    #[error("Too large resource version: {wanted}, current: {current}")]
    Future {
        /// What was asked for.
        wanted: Revision,
        /// The newest that is there.
        current: Revision,
    },
    /// The disk or the file failed.
    #[error("the store at {path} failed: {message}; check the disk's space and health")]
    Failed {
        /// The file.
        path: String,
        /// What the database says.
        message: String,
    },
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
}

/// An ordered key-value store with one revision counter.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest revision.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// One entry, and the revision at which it was read.
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), StoreError>;

    /// A part of the keys, all seen at one moment.
    async fn list(&self, range: Range) -> Result<Page, StoreError>;

    /// All writes or none; durable when it returns. Returns the revision of the transaction.
    async fn commit(&self, writes: Vec<Write>) -> Result<Revision, StoreError>;

    /// Whether writes can succeed at all; a store whose writer has ended never will.
    fn is_writable(&self) -> bool;

    /// Every event after `from` on keys with that prefix, in order.
    fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Forgets history up to and including that revision.
    fn compact(&self, upto: Revision);

    /// The newest revision whose events watchers can see.
    fn published(&self) -> Revision;
}

/// One watcher's place in the history. It holds no queue: a slow one costs nothing, and in the end gets `TooOld`.
#[async_trait]
pub trait Watch: Send + fmt::Debug {
    /// Waits until there is at least one event and returns those that are there, at most a few hundred. Safe to drop.
    async fn next(&mut self) -> Result<Vec<Arc<Event>>, StoreError>;

    /// The revision up to which everything was seen, for bookmarks.
    fn progress(&mut self) -> Revision;
}
