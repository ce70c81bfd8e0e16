//! So many of something a second, and some at once: kubelet's `…QPS` and `…Burst` (A16.11).

use std::time::Duration;

/// A bucket of tokens.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    per_second: f64,
    burst: f64,
    left: f64,
    at: Duration,
}

impl Pace {
    /// 0 a second: no limit.
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Self { per_second: f64::from(per_second), burst, left: burst, at: Duration::ZERO }
    }

    /// Takes one, and says how long to wait before it is there. `now` is monotonic.
    pub(super) fn take(&mut self, now: Duration) -> Duration {
        if self.per_second <= 0.0 {
            return Duration::ZERO;
        }
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.burst) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.left / self.per_second).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_it_goes_at_its_pace() {
        // A16.11, A22.1k
        let mut pace = Pace::new(50, 100);
        let at = Duration::from_secs(1000);
        assert!((0..100).all(|_| pace.take(at).is_zero()));
        assert_eq!(pace.take(at), Duration::from_millis(20));
        assert_eq!(pace.take(at), Duration::from_millis(40));
        assert_eq!(pace.take(at + Duration::from_millis(40)), Duration::from_millis(20));
        assert!((0..100).all(|_| pace.take(at + Duration::from_secs(60)).is_zero()));
        let mut unlimited = Pace::new(0, 0);
        assert!((0..1000).all(|_| unlimited.take(at).is_zero()));
    }
}
