//! A work queue of object keys: each key waits at most once, is worked on by one worker at a time, and comes back
//! later when that failed. Its size is bounded by the number of objects.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock;

/// First retry, as upstream's rate limiter.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// Slower than this it never gets: what a failure waits for may not raise an event.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Namespace and name of an object; the namespace is empty for cluster-scoped ones.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(super) fn of(object: &serde_json::Value) -> Self {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
        Self::new(text("namespace"), text("name"))
    }
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Key>,
    queued: HashSet<Key>,
    running: HashSet<Key>,
    /// Added while running: ready again afterwards.
    again: HashSet<Key>,
    later: BTreeSet<(Instant, Key)>,
    failures: HashMap<Key, u32>,
}

impl State {
    fn add(&mut self, key: Key) {
        if self.running.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Moves what is due to the ready keys; the time of the next one.
    fn promote(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, _)) = self.later.first() {
            if *at > now {
                return Some(*at);
            }
            if let Some((_, key)) = self.later.pop_first() {
                self.add(key);
            }
        }
        None
    }
}

/// The queue; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
}

impl Queue {
    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        // No code that can panic runs under this lock, so a poisoned one is whole.
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a key to be worked on now.
    pub(super) fn add(&self, key: Key) {
        self.with(|state| state.add(key));
        self.wake.notify_one();
    }

    /// Adds a key to be worked on in a while.
    pub(super) fn add_after(&self, key: Key, delay: Duration) {
        let at = clock::instant() + delay;
        self.with(|state| state.later.insert((at, key)));
        self.wake.notify_one();
    }

    async fn next(&self) -> Key {
        loop {
            let now = clock::instant();
            let (key, due) = self.with(|state| {
                let due = state.promote(now);
                let key = state.ready.pop_front();
                if let Some(key) = &key {
                    state.queued.remove(key);
                    state.running.insert(key.clone());
                }
                (key, due)
            });
            if let Some(key) = key {
                // There may be more for another worker.
                self.wake.notify_one();
                return key;
            }
            match due {
                Some(at) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at.into()) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    fn done(&self, key: &Key, failed: bool) {
        let now = clock::instant();
        self.with(|state| {
            state.running.remove(key);
            if failed {
                let failures = state.failures.entry(key.clone()).or_default();
                let delay = FIRST_RETRY.saturating_mul(1 << (*failures).min(20)).min(LAST_RETRY);
                *failures += 1;
                state.later.insert((now + delay, key.clone()));
            } else {
                state.failures.remove(key);
            }
            if state.again.remove(key) {
                state.add(key.clone());
            }
        });
        self.wake.notify_one();
    }

    /// Works on keys with `workers` tasks until `stop`. `work` says after what time to look again though nothing
    /// happens; a failure is logged and tried again, ever more slowly.
    pub(super) fn work<F, W, E>(&self, name: &'static str, workers: usize, stop: &CancellationToken, work: F)
    where
        F: Fn(Key) -> W + Clone + Send + Sync + 'static,
        W: Future<Output = Result<Option<Duration>, E>> + Send,
        E: std::fmt::Display + Send,
    {
        for _ in 0..workers {
            let (queue, stop, work) = (self.clone(), stop.clone(), work.clone());
            tokio::spawn(async move {
                loop {
                    let key = tokio::select! {
                        () = stop.cancelled() => return,
                        key = queue.next() => key,
                    };
                    let result = work(key.clone()).await;
                    if let Err(error) = &result {
                        tracing::debug!(controller = name, namespace = key.namespace, name = key.name, %error, "will try again");
                    }
                    queue.done(&key, result.is_err());
                    if let Ok(Some(delay)) = result {
                        queue.add_after(key, delay);
                    }
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_key_added_many_times_is_worked_on_once_and_again_if_added_meanwhile() {
        let queue = Queue::default();
        let key = Key::new("a", "b");
        for _ in 0..5 {
            queue.add(key.clone());
        }
        assert_eq!(queue.next().await, key);
        queue.add(key.clone());
        let waiting = tokio::time::timeout(Duration::from_millis(20), queue.next()).await;
        assert!(waiting.is_err(), "one worker at a time for each key");
        queue.done(&key, false);
        assert_eq!(queue.next().await, key);
        queue.done(&key, false);
        assert!(tokio::time::timeout(Duration::from_millis(20), queue.next()).await.is_err());
    }

    #[tokio::test]
    async fn failures_are_tried_again() {
        let (queue, stop) = (Queue::default(), CancellationToken::new());
        let tries = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&tries);
        queue.work("test", 2, &stop, move |_| {
            let counter = Arc::clone(&counter);
            async move { if counter.fetch_add(1, Ordering::SeqCst) < 3 { Err("not yet") } else { Ok(None) } }
        });
        queue.add(Key::new("", "x"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(tries.load(Ordering::SeqCst), 4);
        stop.cancel();
    }
}
