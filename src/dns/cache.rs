//! Answers by question: those of the cluster as long as no Service changes, those of others as long as they say.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::wire::{Encoded, Key};

/// An answer that may be given again.
#[derive(Debug)]
pub(super) struct Entry {
    /// The answer.
    pub(super) encoded: Encoded,
    /// When it was taken in.
    pub(super) since: Duration,
    /// When it ends, if it does by itself.
    pub(super) until: Option<Duration>,
    /// What it was made from: ends with the next change. `None` when it has nothing to do with the cluster.
    pub(super) generation: Option<u64>,
    /// Somebody asked for it since the last clearing out.
    used: AtomicBool,
}

impl Entry {
    /// An entry made at `now`.
    pub(super) fn new(encoded: Encoded, now: Duration, lifetime: Option<Duration>, generation: Option<u64>) -> Self {
        Self { encoded, since: now, until: lifetime.map(|time| now + time), generation, used: AtomicBool::new(true) }
    }

    fn holds(&self, generation: u64, now: impl Fn() -> Duration) -> bool {
        self.generation.is_none_or(|made| made == generation) && self.until.is_none_or(|until| now() < until)
    }
}

/// A bounded number of entries.
#[derive(Debug)]
pub(super) struct Cache {
    entries: RwLock<HashMap<Box<[u8]>, Arc<Entry>>>,
    most: usize,
}

impl Cache {
    /// Empty, for `most` answers.
    pub(super) fn new(most: usize) -> Self {
        Self { entries: RwLock::default(), most: most.max(1) }
    }

    /// The answer to a question, if it still holds.
    pub(super) fn get(&self, key: &Key, generation: u64, now: impl Fn() -> Duration) -> Option<Arc<Entry>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(key.as_bytes()).filter(|entry| entry.holds(generation, now))?;
        if !entry.used.load(Ordering::Relaxed) {
            entry.used.store(true, Ordering::Relaxed);
        }
        Some(entry.clone())
    }

    /// Keeps an answer. When the cache is full, what ended goes first, then what nobody asked for lately.
    pub(super) fn put(&self, key: Box<[u8]>, entry: Arc<Entry>, generation: u64, now: Duration) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.most && !entries.contains_key(&key) {
            // A part at a time, so that this is rare.
            let target = self.most - self.most.div_ceil(8);
            entries.retain(|_, entry| entry.holds(generation, || now));
            let mut surplus = entries.len().saturating_sub(target);
            entries.retain(|_, entry| {
                let goes = surplus > 0 && !entry.used.swap(false, Ordering::Relaxed);
                surplus -= usize::from(goes);
                !goes
            });
            entries.retain(|_, _| {
                let goes = surplus > 0;
                surplus -= usize::from(goes);
                !goes
            });
        }
        entries.insert(key, entry);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::wire::{self, Parsed};

    fn packet(number: u16) -> Vec<u8> {
        let mut packet = vec![0, 0, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2];
        packet.extend(number.to_be_bytes().map(|byte| byte % 26 + b'a'));
        packet.extend([0, 0, 1, 0, 1]);
        packet
    }

    fn key(number: u16) -> Key {
        let mut question = packet(number);
        question[2] = 0;
        let Parsed::Question(question) = wire::parse(&question) else { panic!("a question") };
        let mut key = Key::new();
        question.key_into(&mut key);
        key
    }

    fn entry(seconds: Option<u64>, generation: Option<u64>) -> Arc<Entry> {
        let (encoded, _) = Encoded::new(packet(0), false).unwrap();
        Arc::new(Entry::new(encoded, Duration::ZERO, seconds.map(Duration::from_secs), generation))
    }

    #[test]
    fn answers_end_with_their_time_or_with_the_next_change() {
        let cache = Cache::new(10);
        let at = |seconds| move || Duration::from_secs(seconds);
        cache.put(key(1).to_boxed(), entry(Some(5), None), 0, Duration::ZERO);
        cache.put(key(2).to_boxed(), entry(None, Some(7)), 7, Duration::ZERO);
        assert!(cache.get(&key(1), 9, at(4)).is_some() && cache.get(&key(1), 9, at(5)).is_none());
        assert!(cache.get(&key(2), 7, at(1000)).is_some() && cache.get(&key(2), 8, at(0)).is_none());
        assert!(cache.get(&key(3), 7, at(0)).is_none());
    }

    #[test]
    fn it_stays_bounded_and_keeps_what_is_asked_for() {
        let cache = Cache::new(80);
        let now = || Duration::ZERO;
        for number in 0..600 {
            cache.put(key(number).to_boxed(), entry(Some(60), None), 0, Duration::ZERO);
            cache.get(&key(0), 0, now);
            assert!(cache.len() <= 80);
        }
        assert!(cache.get(&key(599), 0, now).is_some());
    }
}
