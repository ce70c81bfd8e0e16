//! The only reader of wall and monotonic time.
//!
//! Decisions take [`Now`] as an argument; whoever acts on them asks a [`Clock`] for it.

use std::time::Duration;

use jiff::Timestamp;

/// One moment on both clocks: the wall clock for what others read, the monotonic one for deadlines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Wall time; may jump.
    pub wall: Timestamp,
    /// Monotonic time since an arbitrary start; never jumps. `std::time::Instant` cannot be made in tests, this can.
    pub monotonic: Duration,
}

impl Now {
    /// The same moment, later on both clocks.
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        Self { wall: self.wall.checked_add(time).unwrap_or(Timestamp::MAX), monotonic: self.monotonic + time }
    }
}

/// Tells the time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// The present moment. Monotonic time is that since the machine booted, so that it means the same in every process.
    pub fn now(self) -> Now {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(boot.tv_sec).unwrap_or_default();
        let nanoseconds = u32::try_from(boot.tv_nsec).unwrap_or_default();
        #[expect(clippy::disallowed_methods, reason = "this is the one reader")]
        let wall = Timestamp::now();
        Now { wall, monotonic: Duration::new(seconds, nanoseconds) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_goes_on() {
        let first = Clock.now();
        let second = Clock.now();
        assert!(second.monotonic >= first.monotonic);
        assert_eq!(first.plus(Duration::from_secs(2)).monotonic, first.monotonic + Duration::from_secs(2));
    }
}
