//! Waiting times after failures: growing, bounded, and different on every node so that they do not come back together.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Doubles from `first` to `longest`; each wait is lengthened by up to half.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// How long to wait now; the next wait is longer.
    pub fn wait(&mut self) -> Duration {
        let now = self.next;
        self.next = (self.next * 2).min(self.longest);
        jittered(now)
    }

    /// After a success: the next failure waits `first` again.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }
}

/// `time`, lengthened by up to half of itself.
pub(crate) fn jittered(time: Duration) -> Duration {
    time + time.mul_f64(random_fraction() / 2.0)
}

/// Half of `time` to one and a half: what many begin at once shall not come again at once.
pub(crate) fn spread(time: Duration) -> Duration {
    time.mul_f64(0.5 + random_fraction())
}

/// Evenly spread over 0..1. The standard library seeds each of its hashers from the system's randomness.
pub(super) fn random_fraction() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 32;
    f64::from(u32::try_from(bits).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
        for base in [100, 200, 400, 400] {
            let wait = backoff.wait().as_millis();
            assert!((base..=base + base / 2).contains(&wait), "{wait} for {base}");
        }
        backoff.reset();
        assert!(backoff.wait().as_millis() <= 150);
    }

    #[test]
    fn waits_differ() {
        let waits: std::collections::BTreeSet<_> = (0..8).map(|_| jittered(Duration::from_secs(100))).collect();
        assert!(waits.len() > 1);
    }
}
