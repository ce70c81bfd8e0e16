//! Delays that double: between restarts of a container (A3.9) and between pulls of an image (A14.2).

use std::time::Duration;

use jiff::Timestamp;

/// The first delay (A3.9, A14.2).
pub(super) const FIRST: Duration = Duration::from_secs(10);
/// The longest delay (A3.9, A14.2).
pub(super) const LONGEST: Duration = Duration::from_secs(300);
/// After so long without a failure everything starts over, whatever the longest delay is (A3.9).
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// How long one thing that keeps failing has to wait. Wall time, since it is compared with the times that the runtime
/// reports for exits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Backoff {
    /// The delay that counts from the next failure on.
    pub(super) delay: Duration,
    /// When the delay last grew.
    grown_at: Timestamp,
}

impl Backoff {
    /// When a thing that failed at `failed_at` may be tried again; `None`: at once.
    pub(super) fn until(this: Option<&Self>, failed_at: Timestamp) -> Option<Timestamp> {
        let this = this.filter(|b| !b.forgotten(failed_at))?;
        failed_at.checked_add(this.delay).ok()
    }

    /// The back-off after one more try at `now` that follows a failure at `failed_at`.
    pub(super) fn grown(this: Option<&Self>, failed_at: Timestamp, now: Timestamp, longest: Duration) -> Self {
        let delay = match this.filter(|b| !b.forgotten(failed_at)) {
            None => FIRST.min(longest),
            Some(b) => (b.delay * 2).min(longest),
        };
        Self { delay, grown_at: now }
    }

    fn forgotten(&self, failed_at: Timestamp) -> bool {
        failed_at.duration_since(self.grown_at) > jiff::SignedDuration::from_secs(FORGOTTEN_AFTER.as_secs() as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        // A3.9
        let mut state: Option<Backoff> = None;
        let mut now = 0;
        assert_eq!(Backoff::until(state.as_ref(), at(now)), None, "the first restart is immediate");
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            state = Some(Backoff::grown(state.as_ref(), at(now), at(now), LONGEST));
            assert_eq!(Backoff::until(state.as_ref(), at(now)), Some(at(now + expected)));
            now += expected;
        }
    }

    #[test]
    fn ten_quiet_minutes_start_over() {
        // A3.9
        let first = Backoff::grown(None, at(0), at(0), LONGEST);
        let second = Backoff::grown(Some(&first), at(5), at(15), LONGEST);
        assert_eq!(second.delay, Duration::from_secs(20));
        assert_eq!(Backoff::until(Some(&second), at(615)), Some(at(635)));
        assert_eq!(Backoff::until(Some(&second), at(616)), None);
        assert_eq!(Backoff::grown(Some(&second), at(616), at(616), LONGEST).delay, FIRST);
    }

    #[test]
    fn a_short_longest_delay_is_the_first_too() {
        // A3.9
        let longest = Duration::from_secs(3);
        assert_eq!(Backoff::grown(None, at(0), at(0), longest).delay, longest);
    }
}
