//! The one task that makes all attempts of this node, each when it is due.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use stoker_model::handle::{EventSink, EventSubject};
use stoker_model::pod::PodUid;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::action::{Action, Outcome};
use super::board::{ATTEMPTS, Board, Due, Message};
use super::{Exec, Verdict, View};
use crate::clock::Clock;

/// Commands that run at the same time. A command costs a process start of about 50 ms of CPU in the runtime, so more of them would
/// only slow each other down; those that wait for something else leave room for the rest.
const MOST_COMMANDS: usize = 32;
/// What is due within so long is begun at once: each waking costs a good part of what a probe does.
const TOGETHER: Duration = Duration::from_millis(5);
/// So many attempts that begin together share a task: for a second task the runtime wakes another thread, which costs as much as half a
/// probe.
const MOST_IN_A_TASK: usize = 16;

/// Probes the containers of this node. Cloning is cheap; it goes on until the token given to [`Prober::spawn`] is cancelled.
#[derive(Clone)]
pub struct Prober {
    shared: Arc<Shared>,
}

struct Shared {
    board: Mutex<Board>,
    /// Something may be due earlier than before.
    changed: Notify,
    clock: Clock,
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        // Everything in it is as good after a panic as before: a probe more or less.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Prober {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prober").field("probes", &self.shared.board().len()).finish_non_exhaustive()
    }
}

impl Prober {
    /// Starts to probe. Must be called in a tokio runtime.
    pub fn spawn(runner: Arc<dyn Exec>, sink: Arc<dyn EventSink>, stop: CancellationToken) -> Self {
        let shared = Arc::new(Shared { board: Mutex::default(), changed: Notify::new(), clock: Clock });
        let commands = Arc::new(Semaphore::new(MOST_COMMANDS));
        let attempts = Attempts { shared: shared.clone(), runner, sink, commands, stop: stop.clone() };
        tokio::spawn(stop.run_until_cancelled_owned(attempts.run()));
        Self { shared }
    }

    /// Probes the containers of a pod from now on, and no others of it. What their probes say, by container name; one without
    /// probes has no entry. `wake` is notified when that changes.
    pub fn keep(&self, view: View<'_>, wake: &Arc<Notify>) -> BTreeMap<String, Verdict> {
        let now = self.shared.clock.now();
        let mut board = self.shared.board();
        let before = board.next_due();
        let verdicts = board.keep(view, wake, now);
        let sooner = board.next_due().is_some_and(|due| before.is_none_or(|before| due < before));
        drop(board);
        if sooner {
            self.shared.changed.notify_one();
        }
        verdicts
    }

    /// What probes have done so far, in the text form of Prometheus (A5.13).
    pub fn metrics(&self) -> String {
        self.shared.board().counts.text()
    }

    /// Forgets a pod.
    pub fn forget(&self, uid: &PodUid) {
        self.shared.board().forget(uid);
    }
}

struct Attempts {
    shared: Arc<Shared>,
    runner: Arc<dyn Exec>,
    sink: Arc<dyn EventSink>,
    commands: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Attempts {
    async fn run(self) {
        loop {
            let now = self.shared.clock.now().monotonic;
            let (due, next) = {
                let mut board = self.shared.board();
                (board.take_due(now), board.next_due())
            };
            for due in due.chunks(MOST_IN_A_TASK) {
                let attempts = join_all(due.iter().map(|due| self.attempt(due)));
                tokio::spawn(self.stop.clone().run_until_cancelled_owned(attempts));
            }
            let wait = next.map_or(Duration::MAX, |at| together(at).saturating_sub(now));
            tokio::select! {
                biased;
                () = self.shared.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Makes an attempt, and takes down what came of it.
    fn attempt(&self, due: &Due) -> impl Future<Output = ()> + Send + use<> {
        let (runner, commands, clock) = (self.runner.clone(), self.commands.clone(), self.shared.clock);
        let record = Record { shared: self.shared.clone(), sink: self.sink.clone(), number: due.number, outcome: None };
        let (action, timeout) = (due.action.clone(), due.timeout);
        async move {
            let mut record = record;
            // The wait for a place is not part of the time that the command has.
            let _place = match &*action {
                Action::Exec { .. } => commands.acquire_owned().await.ok(),
                _ => None,
            };
            let began = clock.now().monotonic;
            let mut outcome = action.attempt(timeout, &*runner).await;
            for _ in 1..ATTEMPTS {
                if !matches!(outcome, Outcome::Unknown(_)) {
                    break;
                }
                outcome = action.attempt(timeout, &*runner).await;
            }
            record.outcome = Some((outcome, clock.now().monotonic.saturating_sub(began)));
        }
    }
}

/// When (monotonic) what is due then is begun: with others that are due a little later.
fn together(due: Duration) -> Duration {
    let nanos = due.as_nanos().next_multiple_of(TOGETHER.as_nanos());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// What comes of an attempt. It is taken down when this is dropped, so that a probe goes on after an attempt that panicked, its own or one
/// that shares its task, which is a defect and says nothing of the container.
struct Record {
    shared: Arc<Shared>,
    sink: Arc<dyn EventSink>,
    number: u64,
    /// With how long it took.
    outcome: Option<(Outcome, Duration)>,
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = self.shared.clock.now().monotonic;
        let (message, sooner) = {
            let mut board = self.shared.board();
            let before = board.next_due();
            let message = board.record(self.number, self.outcome.take(), now);
            (message, board.next_due().is_some_and(|due| before.is_none_or(|before| due < before)))
        };
        if sooner {
            self.shared.changed.notify_one();
        }
        if let Some(Message { pod, field_path, reason, text }) = message {
            let subject = EventSubject::Pod { pod, field_path: Some(field_path) };
            self.sink.publish(subject, Message::KIND, reason, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use k8s_openapi::api::core::v1::{Container, ExecAction, Probe};
    use stoker_model::handle::EventType;
    use stoker_model::pod::PodRef;

    use super::*;
    use crate::probe::{Ended, ExecError, Target};

    /// Fails so often, and then does well.
    struct Flaky {
        failures: u32,
        made: AtomicU32,
    }

    #[async_trait::async_trait]
    impl Exec for Flaky {
        async fn exec(&self, _: &str, _: Vec<String>, _: Duration) -> Result<Ended, ExecError> {
            match self.made.fetch_add(1, Ordering::SeqCst) < self.failures {
                true => Err(ExecError::Failed("the runtime is away".into())),
                false => Ok(Ended::default()),
            }
        }
    }

    #[test]
    fn what_is_due_soon_begins_together() {
        let milliseconds = Duration::from_millis;
        for (due, begun) in [(0, 0), (1, 5), (5, 5), (6, 10)] {
            assert_eq!(together(milliseconds(due)), milliseconds(begun));
        }
    }

    /// Is a defect at its first attempt.
    struct Broken(AtomicU32);

    #[async_trait::async_trait]
    impl Exec for Broken {
        async fn exec(&self, _: &str, _: Vec<String>, _: Duration) -> Result<Ended, ExecError> {
            assert!(self.0.fetch_add(1, Ordering::SeqCst) > 0, "this is what the test is about");
            Ok(Ended::default())
        }
    }

    #[tokio::test]
    async fn a_probe_goes_on_after_an_attempt_that_panicked() {
        let runner = Arc::new(Broken(AtomicU32::new(0)));
        let prober = Prober::spawn(runner.clone(), Arc::new(Heard::default()), CancellationToken::new());
        let exec = ExecAction { command: Some(vec!["true".into()]) };
        let probe = Probe { exec: Some(exec), period_seconds: Some(1), ..Probe::default() };
        let container = Container { name: "c".into(), readiness_probe: Some(probe), ..Container::default() };
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("u") };
        let wake = Arc::new(Notify::new());
        let target = Target {
            id: "1",
            spec: &container,
            field_path: "spec.containers{c}",
            running_since: Clock.now().wall,
            reported: None,
        };
        let view = || View { pod: &pod, address: "", ending: false, containers: std::slice::from_ref(&target) };
        assert!(!prober.keep(view(), &wake)["c"].ready);
        let ready = async {
            while !prober.keep(view(), &wake)["c"].ready {
                wake.notified().await
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ready).await.expect("it is asked again");
        assert!(runner.0.load(Ordering::SeqCst) > 1);
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl EventSink for Heard {
        fn publish(&self, _: EventSubject, _: EventType, reason: &str, message: String) {
            self.0.lock().unwrap().push(format!("{reason}: {message}"));
        }
    }

    #[tokio::test]
    async fn what_says_nothing_is_asked_three_times_in_a_row() {
        // A5.3
        let unknown = "Unhealthy: Readiness probe errored and resulted in unknown state: the runtime is away";
        for (failures, attempts, ready, events) in [(2, 3, true, &[][..]), (9, 3, false, &[unknown][..])] {
            let runner = Arc::new(Flaky { failures, made: AtomicU32::new(0) });
            let heard = Arc::new(Heard::default());
            let prober = Prober::spawn(runner.clone(), heard.clone(), CancellationToken::new());
            let exec = ExecAction { command: Some(vec!["true".into()]) };
            let probe = Probe { exec: Some(exec), period_seconds: Some(3600), ..Probe::default() };
            let container = Container { name: "c".into(), readiness_probe: Some(probe), ..Container::default() };
            let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("u") };
            let wake = Arc::new(Notify::new());
            let keep = || {
                let target = Target {
                    id: "1",
                    spec: &container,
                    field_path: "spec.containers{c}",
                    running_since: Clock.now().wall,
                    reported: None,
                };
                prober.keep(View { pod: &pod, address: "", ending: false, containers: &[target] }, &wake)["c"].ready
            };
            assert!(!keep());
            let deadline = Clock.now().monotonic + Duration::from_secs(10);
            while (runner.made.load(Ordering::SeqCst) < attempts
                || keep() != ready
                || heard.0.lock().unwrap().len() < events.len())
                && Clock.now().monotonic < deadline
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!((runner.made.load(Ordering::SeqCst), keep()), (attempts, ready));
            assert_eq!(*heard.0.lock().unwrap(), events);
        }
    }
}
