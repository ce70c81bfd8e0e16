//! Writes one pod's status: the newest wins, and what cannot be written now is written later (A2.10).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use stoker_model::handle::{ApiError, PodApi};
use stoker_model::pod::PodRef;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::observed::{DesiredPod, Observed, Stage};
use crate::clock::Clock;

/// First and longest delay between tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// A pod that starts has soon more to tell: what it shows on the way is written only if the way is long.
const ON_THE_WAY: Duration = Duration::from_millis(250);
/// Of many pods that start together each waits so long: it would only take the processors' time from their start.
const IN_CROWD: Duration = Duration::from_secs(5);
/// A pod that ends, where somebody may wait for each step.
const SOON: Duration = Duration::from_millis(100);
/// One that has been deleted: it is over, and nobody is served by it any more.
const TO_THE_END: Duration = Duration::from_secs(1);
/// However often something newer comes, a status waits no longer, but for one of a crowd.
const LONGEST: Duration = Duration::from_secs(2);

/// How long a status may wait for a newer one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hold {
    usual: Duration,
    /// If as many pods start as can at once.
    in_crowd: Duration,
}

impl Hold {
    const fn by(time: Duration) -> Self {
        Self { usual: time, in_crowd: time }
    }
}

/// How long a status of a pod may wait for a newer one.
pub(super) fn hold(desired: &DesiredPod, seen: &Observed, status: &PodStatus) -> Hold {
    let ends = matches!(seen.memory.stage, Stage::Terminating { .. } | Stage::CleaningUp { .. });
    let runs = seen.running().next().is_some();
    let starts = status.phase.as_deref() == Some("Pending");
    match (ends, runs, desired.deleted()) {
        _ if starts => Hold { usual: ON_THE_WAY, in_crowd: IN_CROWD },
        // Whoever still sends to it wants to know.
        (true, true, true) if is_ready(Some(status)) != is_ready(desired.pod.status.as_ref()) => Hold::by(SOON),
        (true, _, true) => Hold::by(TO_THE_END),
        (true, false, false) => Hold::by(SOON),
        (true, true, false) | (false, ..) => Hold::by(Duration::ZERO),
    }
}

fn is_ready(status: Option<&PodStatus>) -> bool {
    let mut conditions = status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The newest status.
#[derive(Debug)]
struct Wanted {
    number: u64,
    status: Option<Arc<PodStatus>>,
    /// When it is written, by the monotonic clock: before the second only if there is no crowd.
    due: [Duration; 2],
}

/// The writing task of one pod ends with this.
#[derive(Debug)]
pub(super) struct StatusWriter {
    wanted: watch::Sender<Wanted>,
    /// Number of the status written last.
    written: watch::Receiver<u64>,
}

impl StatusWriter {
    /// `crowded`: as many pods start as can at once.
    pub(super) fn spawn(api: Arc<dyn PodApi>, pod: PodRef, crowded: impl Fn() -> bool + Send + 'static) -> Self {
        let (wanted, inbox) = watch::channel(Wanted { number: 0, status: None, due: [Duration::ZERO; 2] });
        let (done, written) = watch::channel(0);
        tokio::spawn(write(api, pod, inbox, done, crowded));
        Self { wanted, written }
    }

    /// Has a status written, in place of an earlier one that waits. `hold`: so long it may wait for a newer one itself.
    pub(super) fn put(&self, status: Arc<PodStatus>, hold: Hold) {
        let now = Clock.now().monotonic;
        let due = [hold.usual, hold.in_crowd].map(|hold| if hold.is_zero() { hold } else { now + hold });
        self.wanted.send_modify(|wanted| {
            *wanted = Wanted { number: wanted.number + 1, status: Some(status), due };
        });
    }

    /// Resolves when everything put so far has reached the API server, or the pod is no longer there. Nothing is held back from when it is
    /// first asked.
    pub(super) fn flushed(&self) -> impl Future<Output = ()> + Send + 'static {
        let newest = self.wanted.borrow().number;
        let (wanted, mut written) = (self.wanted.clone(), self.written.clone());
        async move {
            wanted.send_if_modified(|wanted| std::mem::take(&mut wanted.due) != [Duration::ZERO; 2]);
            // The writer must not wait for us.
            drop(wanted);
            // An error means that the writer ended: then nothing more can be written.
            let _ = written.wait_for(|number| *number >= newest).await;
        }
    }
}

async fn write(
    api: Arc<dyn PodApi>,
    pod: PodRef,
    mut inbox: watch::Receiver<Wanted>,
    done: watch::Sender<u64>,
    crowded: impl Fn() -> bool,
) {
    let mut delay = RETRY.0;
    while inbox.changed().await.is_ok() {
        let latest = [LONGEST, IN_CROWD].map(|longest| Clock.now().monotonic + longest);
        loop {
            let (number, status, due) = {
                let wanted = inbox.borrow_and_update();
                (wanted.number, wanted.status.clone(), [0, 1].map(|crowd| wanted.due[crowd].min(latest[crowd])))
            };
            let Some(status) = status else { break };
            // The first of a crowd come before it.
            if comes_before(due[usize::from(crowded())], &mut inbox).await
                || crowded() && comes_before(due[1], &mut inbox).await
            {
                continue;
            }
            let wait = match api.patch_status(&pod, &status).await {
                Ok(()) => None,
                Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => {
                    debug!(%pod, "the pod is no longer in the API");
                    None
                }
                // Nothing waits for it any longer. The worker sees that it did not arrive, and puts it again.
                Err(ApiError::Rejected(message)) => {
                    warn!(%pod, %message, "the API server refuses the status of the pod");
                    None
                }
                Err(ApiError::Unavailable { message, retry_after_seconds }) => {
                    debug!(%pod, %message, "the status is written later");
                    let asked = retry_after_seconds.map(|s| Duration::from_secs(s.into()));
                    Some(asked.unwrap_or(delay).max(delay))
                }
            };
            let Some(wait) = wait else {
                delay = RETRY.0;
                done.send_replace(number);
                break;
            };
            delay = (delay * 2).min(RETRY.1);
            tokio::time::sleep(wait).await;
        }
    }
}

/// Waits for something newer until then; whether it came.
async fn comes_before(due: Duration, inbox: &mut watch::Receiver<Wanted>) -> bool {
    let hold = due.saturating_sub(Clock.now().monotonic);
    !hold.is_zero() && matches!(tokio::time::timeout(hold, inbox.changed()).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;

    use serde_json::json;
    use stoker_model::pod::PodUid;

    use super::super::observed::{Cause, Instance, InstanceState};
    use super::*;

    /// Takes no status at first.
    #[derive(Default)]
    struct Busy {
        tries: Mutex<Vec<String>>,
    }

    #[async_trait::async_trait]
    impl PodApi for Busy {
        async fn patch_status(&self, _: &PodRef, status: &PodStatus) -> Result<(), ApiError> {
            let mut tries = self.tries.lock().unwrap();
            tries.push(status.reason.clone().unwrap_or_default());
            match tries.len() {
                1 => Err(ApiError::Unavailable { message: "busy".into(), retry_after_seconds: None }),
                _ => Ok(()),
            }
        }

        async fn delete_finished(&self, _: &PodRef) -> Result<(), ApiError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_older_status_is_never_written_after_a_newer_one() {
        // A2.10
        let busy = Arc::new(Busy::default());
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("u") };
        let writer = StatusWriter::spawn(busy.clone(), pod, || false);
        let put = |reason: &str| {
            let (phase, reason) = (Some("Running".to_owned()), Some(reason.to_owned()));
            writer.put(Arc::new(PodStatus { phase, reason, ..PodStatus::default() }), Hold::by(Duration::ZERO));
        };
        put("1");
        while busy.tries.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        put("2");
        put("3");
        writer.flushed().await;
        assert_eq!(
            *busy.tries.lock().unwrap(),
            ["1", "3"],
            "what failed is not tried again once there is something newer"
        );
    }

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);

    #[async_trait::async_trait]
    impl PodApi for Seen {
        async fn patch_status(&self, _: &PodRef, status: &PodStatus) -> Result<(), ApiError> {
            let reason = status.reason.clone().unwrap_or_default();
            self.0.lock().unwrap().push(format!("{}{reason}", status.phase.as_deref().unwrap_or_default()));
            Ok(())
        }

        async fn delete_finished(&self, _: &PodRef) -> Result<(), ApiError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_is_soon_outdated_is_not_written() {
        // A2.10
        let seen = Arc::new(Seen::default());
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("u") };
        let writer = StatusWriter::spawn(seen.clone(), pod, || false);
        let put = |phase: &str, reason: &str| {
            let hold = if phase == "Pending" { ON_THE_WAY } else { Duration::ZERO };
            let (phase, reason) = (Some(phase.to_owned()), Some(reason.to_owned()));
            writer.put(Arc::new(PodStatus { phase, reason, ..PodStatus::default() }), Hold::by(hold));
        };
        for reason in ["1", "2"] {
            put("Pending", reason);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(seen.0.lock().unwrap().is_empty());
        put("Running", "");
        writer.flushed().await;
        put("Running", "x");
        writer.flushed().await;
        assert_eq!(*seen.0.lock().unwrap(), ["Running", "Runningx"], "what starts quickly is told once");
        put("Pending", "3");
        tokio::time::sleep(ON_THE_WAY * 2).await;
        assert_eq!(seen.0.lock().unwrap().last().unwrap(), "Pending3", "and what does not, all the same");
        put("Pending", "4");
        let early = tokio::time::timeout(ON_THE_WAY / 2, writer.flushed()).await;
        assert!(early.is_ok(), "whoever waits for it is not held up");
        assert_eq!(seen.0.lock().unwrap().last().unwrap(), "Pending4");
    }

    /// Of a pod that has this condition of readiness.
    fn shows(phase: &str, ready: &str) -> PodStatus {
        let status = json!({"phase": phase, "conditions": [{"type": "Ready", "status": ready}]});
        serde_json::from_value(status).expect("a status")
    }

    #[test]
    fn only_what_starts_waits_longer_in_a_crowd() {
        // A2.10
        let desired = DesiredPod { pod: Arc::default(), gone: false, ended: None, released: false };
        let held = |phase: &str| hold(&desired, &Observed::default(), &shows(phase, "False"));
        assert_eq!(held("Pending"), Hold { usual: ON_THE_WAY, in_crowd: IN_CROWD });
        assert_eq!(held("Running"), Hold::by(Duration::ZERO));
    }

    #[test]
    fn what_has_been_deleted_tells_that_it_is_not_ready_before_its_end() {
        // A2.10
        let pod =
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": shows("Running", "True")});
        let pod = Arc::new(serde_json::from_value(pod).expect("a pod"));
        let desired = DesiredPod { pod, gone: false, ended: None, released: false };
        let ends = |running: bool| {
            let mut seen = Observed::default();
            seen.memory.stage = Stage::CleaningUp { cause: Cause::Deleted };
            let state = if running { InstanceState::Running } else { InstanceState::Exited };
            seen.containers.push(Instance { state, ..Instance::default() });
            seen
        };
        let held = |running, ready| hold(&desired, &ends(running), &shows("Running", ready));
        assert_eq!(held(true, "True"), Hold::by(TO_THE_END), "only that the deletion was seen");
        assert_eq!(held(true, "False"), Hold::by(SOON));
        assert_eq!(held(false, "False"), Hold::by(TO_THE_END), "that it is over comes next");
    }

    #[tokio::test]
    async fn a_crowd_may_come_after_its_first_and_go_before_its_last() {
        // A2.10
        let seen = Arc::new(Seen::default());
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("u") };
        let crowd = Arc::new(AtomicBool::new(false));
        let crowded = crowd.clone();
        let writer = StatusWriter::spawn(seen.clone(), pod, move || crowded.load(Relaxed));
        let usual = Duration::from_millis(50);
        let put = |reason: &str| {
            let status = PodStatus { reason: Some(reason.to_owned()), ..PodStatus::default() };
            writer.put(Arc::new(status), Hold { usual, in_crowd: IN_CROWD });
        };
        let written = || seen.0.lock().unwrap().join(" ");
        put("alone");
        tokio::time::sleep(usual * 3).await;
        assert_eq!(written(), "alone");
        put("first");
        // The writer waits by now.
        tokio::time::sleep(usual / 5).await;
        crowd.store(true, Relaxed);
        tokio::time::sleep(usual * 3).await;
        put("last");
        tokio::time::sleep(usual / 5).await;
        crowd.store(false, Relaxed);
        tokio::time::sleep(usual * 3).await;
        assert_eq!(written(), "alone", "both wait for what comes next");
        let asked = tokio::time::timeout(usual, writer.flushed()).await;
        assert!(asked.is_ok(), "but not if somebody waits for them");
        assert_eq!(written(), "alone last");
    }

    #[tokio::test]
    async fn a_status_waits_for_newer_ones_but_not_for_ever() {
        // A2.10
        let seen = Arc::new(Seen::default());
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("u") };
        let writer = StatusWriter::spawn(seen.clone(), pod, || false);
        let begun = Clock.now().monotonic;
        let mut written_after = None;
        while written_after.is_none() {
            // Long enough for a machine that is busy with something else.
            writer.put(Arc::new(PodStatus::default()), Hold::by(LONGEST * 3 / 4));
            tokio::time::sleep(Duration::from_millis(50)).await;
            let written = !seen.0.lock().unwrap().is_empty();
            written_after = written.then(|| Clock.now().monotonic - begun);
            assert!(Clock.now().monotonic - begun < LONGEST * 5, "whoever looks at the pod hears of it");
        }
        assert!(written_after >= Some(LONGEST), "what comes often is told once: {written_after:?}");
    }
}
