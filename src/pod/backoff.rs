//! Delays that double: between restarts of a container (A3.9) and between pulls of an image (A14.2).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateWaiting, PodStatus};
use stoker_model::pod::PodUid;

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

    /// The back-off in which a former agent left a container, as it told it: `back-off 1m20s restarting ...`.
    fn told(waiting: &ContainerStateWaiting, now: Timestamp) -> Option<Self> {
        let told = waiting.message.as_deref().filter(|_| waiting.reason.as_deref() == Some("CrashLoopBackOff"))?;
        let text = told.strip_prefix("back-off ")?.split(' ').next()?;
        let delay = Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok()?;
        Some(Self { delay, grown_at: now })
    }

    fn forgotten(&self, failed_at: Timestamp) -> bool {
        failed_at.duration_since(self.grown_at) > jiff::SignedDuration::from_secs(FORGOTTEN_AFTER.as_secs() as i64)
    }
}

/// Where the containers of a pod stood when it was reported last, so that a new agent does not start them all at once.
pub(super) fn backoffs(status: &PodStatus, now: Timestamp) -> BTreeMap<String, Backoff> {
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let waiting = all.filter_map(|c| Some((&c.name, c.state.as_ref()?.waiting.as_ref()?)));
    waiting.filter_map(|(name, waiting)| Some((name.clone(), Backoff::told(waiting, now)?))).collect()
}

/// A wait lengthened by up to half of itself, so that pods made together do not come together again and again (A1.5).
pub(super) fn lengthened(wait: Duration, pod: &PodUid) -> Duration {
    let spread = pod.as_str().bytes().fold(0_u32, |sum, byte| (sum * 31 + u32::from(byte)) % 100);
    wait.mul_f64(1.0 + f64::from(spread) / 200.0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus};

    use super::*;

    #[test]
    fn a_new_agent_goes_on_where_the_old_one_was() {
        // A3.9
        let waiting = |reason: &str, message: &str| PodStatus {
            container_statuses: Some(vec![ContainerStatus {
                name: "c".into(),
                state: Some(ContainerState {
                    waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message: Some(message.into()) }),
                    ..ContainerState::default()
                }),
                ..ContainerStatus::default()
            }]),
            ..PodStatus::default()
        };
        for (text, seconds) in [("10s", 10), ("1m20s", 80), ("5m0s", 300)] {
            let status =
                waiting("CrashLoopBackOff", &format!("back-off {text} restarting failed container=c pod=p_n(u)"));
            let backoff = backoffs(&status, at(1000)).remove("c");
            assert_eq!(Backoff::until(backoff.as_ref(), at(990)), Some(at(990 + seconds)), "{text}");
        }
        assert!(backoffs(&waiting("ContainerCreating", "back-off 10s"), at(0)).is_empty());
    }

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

    #[test]
    fn pods_made_together_do_not_stay_together() {
        // A1.5
        let minute = Duration::from_secs(60);
        let waits = (0..100).map(|n| lengthened(minute, &PodUid::new(&format!("8f1d2c3b-0000-4000-8000-{n:012}"))));
        let waits: std::collections::BTreeSet<Duration> = waits.collect();
        assert!(waits.iter().all(|wait| (minute..=minute * 3 / 2).contains(wait)), "{waits:?}");
        assert!(waits.len() > 30, "{waits:?}");
    }
}
