//! Pods that wait for a node (C8.1): by priority, then by age; those that fit nowhere wait for something to change, and
//! then for their back-off of 1 s to 10 s. Pure: time comes as an argument.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// Then a pod is tried again though nothing seems to have changed.
const FLUSH: Duration = Duration::from_secs(300);

/// Higher priority first, then older, then by name.
pub(super) type Order = (Reverse<i32>, String, String);

#[derive(Debug)]
struct Waiting {
    order: Order,
    attempts: u32,
    /// When the last attempt failed.
    tried: Option<Instant>,
}

/// The queue. Pods are known by UID.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeSet<(Order, String)>,
    /// In back-off: active again at that time.
    backoff: BTreeMap<(Instant, String), ()>,
}

impl Queue {
    /// A pod that is new, or changed in a way that may make it fit.
    pub(super) fn add(&mut self, uid: &str, order: Order) {
        self.leave_sets(uid);
        let waiting =
            self.pods.entry(uid.to_owned()).or_insert(Waiting { order: order.clone(), attempts: 0, tried: None });
        waiting.order = order.clone();
        self.active.insert((order, uid.to_owned()));
    }

    /// A pod that is bound, gone, or not ours.
    pub(super) fn remove(&mut self, uid: &str) {
        self.leave_sets(uid);
        self.pods.remove(uid);
    }

    pub(super) fn contains(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// The next pod to try.
    pub(super) fn pop(&mut self, now: Instant) -> Option<String> {
        while let Some(((at, _), ())) = self.backoff.first_key_value() {
            if *at > now {
                break;
            }
            if let Some(((_, uid), ())) = self.backoff.pop_first()
                && let Some(waiting) = self.pods.get(&uid)
            {
                self.active.insert((waiting.order.clone(), uid));
            }
        }
        self.active.pop_first().map(|(_, uid)| uid)
    }

    /// The pod fits nowhere: it waits for [`Queue::retry_all`], or for the flush.
    pub(super) fn failed(&mut self, uid: &str, now: Instant) {
        self.leave_sets(uid);
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.attempts += 1;
            waiting.tried = Some(now);
            self.backoff.insert((now + FLUSH, uid.to_owned()), ());
        }
    }

    /// The write failed: again after the back-off, whatever happens.
    pub(super) fn retry(&mut self, uid: &str, now: Instant) {
        self.failed(uid, now);
        self.move_to_backoff(uid, now);
    }

    /// Something changed that may let pods fit: those that wait are tried again after their back-off.
    pub(super) fn retry_all(&mut self, now: Instant) {
        let uids: Vec<String> =
            self.pods.iter().filter(|(_, w)| w.tried.is_some()).map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            self.move_to_backoff(&uid, now);
        }
    }

    /// When [`Queue::pop`] may have something again though nothing happens.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.backoff.first_key_value().map(|((at, _), ())| *at)
    }

    fn move_to_backoff(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get(uid) else { return };
        let is_active = self.active.contains(&(waiting.order.clone(), uid.to_owned()));
        let Some(tried) = waiting.tried.filter(|_| !is_active) else { return };
        let delay = FIRST_BACKOFF.saturating_mul(1 << waiting.attempts.saturating_sub(1).min(8)).min(LAST_BACKOFF);
        let order = waiting.order.clone();
        self.leave_sets(uid);
        if tried + delay <= now {
            self.active.insert((order, uid.to_owned()));
        } else {
            self.backoff.insert((tried + delay, uid.to_owned()), ());
        }
    }

    fn leave_sets(&mut self, uid: &str) {
        if let Some(waiting) = self.pods.get(uid) {
            self.active.remove(&(waiting.order.clone(), uid.to_owned()));
            self.backoff.retain(|(_, other), ()| other != uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(priority: i32, created: &str) -> Order {
        (Reverse(priority), created.to_owned(), String::new())
    }

    fn start() -> Instant {
        crate::clock::instant()
    }

    #[test]
    fn priority_goes_before_age() {
        let mut queue = Queue::default();
        queue.add("old", order(0, "1"));
        queue.add("new", order(0, "2"));
        queue.add("vip", order(9, "3"));
        let now = start();
        let all: Vec<_> = std::iter::from_fn(|| queue.pop(now)).collect();
        assert_eq!(all, ["vip", "old", "new"]);
    }

    #[test]
    fn what_fits_nowhere_waits_for_a_change_and_its_back_off() {
        let mut queue = Queue::default();
        let now = start();
        let after = |ms: u64| now + Duration::from_millis(ms);
        queue.add("p", order(0, "1"));
        assert_eq!(queue.pop(now).as_deref(), Some("p"));
        queue.failed("p", now);
        assert_eq!(queue.pop(after(60_000)), None, "nothing changed");
        queue.retry_all(after(100));
        assert_eq!(queue.pop(after(999)), None);
        assert_eq!(queue.wake_at(), Some(after(1000)));
        assert_eq!(queue.pop(after(1000)).as_deref(), Some("p"));
        queue.failed("p", after(1000));
        queue.retry_all(after(1500));
        assert_eq!(queue.wake_at(), Some(after(3000)), "twice as long the second time");
        for _ in 0..10 {
            queue.failed("p", after(3000));
        }
        queue.retry_all(after(3000));
        assert_eq!(queue.wake_at(), Some(after(13_000)), "10 s at most");
        queue.failed("p", after(3000));
        assert_eq!(queue.pop(after(303_000)).as_deref(), Some("p"), "flushed after 5 minutes");
    }
}
