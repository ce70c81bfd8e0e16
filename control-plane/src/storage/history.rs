//! The last events, and who waits for the next ones.
//!
//! A watcher is a cursor into one shared ring and a wake-up; it has no queue of its own, so a thousand watchers of a
//! quiet resource cost a few hundred bytes each. Wake-ups are per bucket (the first two segments of a key), so a
//! lease that is renewed wakes nobody who watches pods.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{Event, Revision, StoreError, Watch};

/// At most so many events are kept…
const EVENTS: usize = 16_384;
/// … and so many bytes of values: a burst must not grow a process that promises to stay small.
const BYTES: usize = 12 << 20;
/// At most so many events at once for one watcher, so that the lock is short.
const BATCH: usize = 256;

/// What keys were: `None` where there was no such key.
pub(super) type Before = HashMap<Arc<str>, Option<(Bytes, Revision)>>;

/// The ring.
#[derive(Debug)]
pub(super) struct History {
    ring: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Everything up to here is forgotten.
    compacted: Revision,
    published: Revision,
    wakes: HashMap<Box<str>, watch::Sender<Revision>>,
    all: watch::Sender<Revision>,
}

impl History {
    pub(super) fn new(start: Revision) -> Self {
        Self {
            ring: Mutex::new(Ring {
                events: VecDeque::new(),
                bytes: 0,
                compacted: start,
                published: start,
                wakes: HashMap::new(),
                all: watch::Sender::new(start),
            }),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing below can panic half way through a change of the ring, so a poisoned one is still whole.
        self.ring.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn published(&self) -> Revision {
        self.ring().published
    }

    /// Adds the events of committed transactions, oldest first.
    pub(super) fn publish(&self, events: Vec<Arc<Event>>, revision: Revision) {
        let mut ring = self.ring();
        ring.published = revision;
        for event in &events {
            ring.bytes += weight(event);
            ring.events.push_back(event.clone());
        }
        ring.shrink();
        for event in &events {
            if let Some(wake) = ring.wakes.get(bucket(&event.key)) {
                wake.send_replace(revision);
            }
        }
        ring.all.send_replace(revision);
    }

    pub(super) fn compact(&self, upto: Revision) {
        let mut ring = self.ring();
        let upto = upto.min(ring.published);
        while ring.events.front().is_some_and(|event| event.revision <= upto) {
            ring.drop_oldest();
        }
        ring.compacted = ring.compacted.max(upto);
        ring.wakes.retain(|_, wake| wake.receiver_count() > 0);
    }

    /// What keys with that prefix were at `at`, as far as they changed since: `None` where there was no such key.
    pub(super) fn changed_since(&self, prefix: &str, at: Revision, upto: Revision) -> Result<Before, StoreError> {
        let ring = self.ring();
        ring.check(at)?;
        let mut changed = HashMap::new();
        let start = ring.events.partition_point(|event| event.revision <= at);
        for event in ring.events.range(start..).take_while(|event| event.revision <= upto) {
            if event.key.starts_with(prefix) {
                changed.entry(event.key.clone()).or_insert_with(|| event.before.clone());
            }
        }
        Ok(changed)
    }

    pub(super) fn watch(self: &Arc<Self>, prefix: &str, from: Revision) -> Result<Cursor, StoreError> {
        let mut ring = self.ring();
        ring.check(from)?;
        let whole_bucket = prefix.matches('/').count() >= 2;
        let wake = if whole_bucket {
            let published = ring.published;
            ring.wakes.entry(bucket(prefix).into()).or_insert_with(|| watch::Sender::new(published)).subscribe()
        } else {
            ring.all.subscribe()
        };
        drop(ring);
        Ok(Cursor { history: self.clone(), prefix: prefix.into(), seen: from, wake })
    }
}

impl Ring {
    fn check(&self, revision: Revision) -> Result<(), StoreError> {
        if revision < self.compacted {
            return Err(StoreError::TooOld { wanted: revision, oldest: self.compacted });
        }
        Ok(())
    }

    fn shrink(&mut self) {
        while self.events.len() > EVENTS || self.bytes > BYTES {
            self.drop_oldest();
        }
    }

    /// A transaction's events go together: its revision is either wholly there or forgotten.
    fn drop_oldest(&mut self) {
        let Some(revision) = self.events.front().map(|event| event.revision) else { return };
        while let Some(event) = self.events.pop_front_if(|event| event.revision == revision) {
            self.bytes = self.bytes.saturating_sub(weight(&event));
        }
        self.compacted = self.compacted.max(revision);
    }
}

fn weight(event: &Event) -> usize {
    event.value.len() + event.before.as_ref().map_or(0, |(value, _)| value.len()) + 128
}

/// The first two segments of a key.
fn bucket(key: &str) -> &str {
    match key.match_indices('/').nth(1) {
        Some((end, _)) => &key[..end],
        None => key,
    }
}

/// A place in the history.
#[derive(Debug)]
pub(super) struct Cursor {
    history: Arc<History>,
    prefix: Box<str>,
    seen: Revision,
    wake: watch::Receiver<Revision>,
}

#[async_trait]
impl Watch for Cursor {
    async fn next(&mut self) -> Result<Vec<Arc<Event>>, StoreError> {
        loop {
            self.wake.borrow_and_update();
            let found = self.take()?;
            if !found.is_empty() {
                return Ok(found);
            }
            self.wake.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }

    fn progress(&mut self) -> Revision {
        // What is published and not ours needs no look; what is ours and unseen must not be skipped.
        let ring = self.history.ring();
        let start = ring.events.partition_point(|event| event.revision <= self.seen);
        if self.seen >= ring.compacted && !ring.events.range(start..).any(|event| event.key.starts_with(&*self.prefix))
        {
            self.seen = self.seen.max(ring.published);
        }
        self.seen
    }
}

impl Cursor {
    fn take(&mut self) -> Result<Vec<Arc<Event>>, StoreError> {
        let ring = self.history.ring();
        ring.check(self.seen)?;
        let start = ring.events.partition_point(|event| event.revision <= self.seen);
        let mut found: Vec<Arc<Event>> = Vec::new();
        for event in ring.events.range(start..) {
            if found.len() >= BATCH && found.last().is_some_and(|last| last.revision != event.revision) {
                return Ok(found);
            }
            self.seen = event.revision;
            if event.key.starts_with(&*self.prefix) {
                found.push(event.clone());
            }
        }
        self.seen = self.seen.max(ring.published);
        Ok(found)
    }
}
