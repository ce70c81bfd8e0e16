//! When attempts are due, and what their results amount to.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ExecAction;

use super::*;

fn now(second: u64) -> Now {
    let wall = Timestamp::from_second(1_700_000_000 + i64::try_from(second).unwrap()).unwrap();
    Now { wall, monotonic: Duration::from_secs(second) }
}

fn probe(change: impl FnOnce(&mut Probe)) -> Option<Probe> {
    let exec = ExecAction { command: Some(vec!["true".into()]) };
    let mut probe = Probe { exec: Some(exec), ..Probe::default() };
    change(&mut probe);
    Some(probe)
}

fn usual() -> Option<Probe> {
    probe(|_| {})
}

/// A pod of one container, which runs since second 100.
struct Case {
    board: Board,
    pod: PodRef,
    container: Container,
    id: &'static str,
    reported: Option<Verdict>,
    ending: bool,
    wake: Arc<Notify>,
}

fn case(change: impl FnOnce(&mut Container)) -> Case {
    let mut container = Container { name: "c".into(), ..Container::default() };
    change(&mut container);
    let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("u") };
    let wake = Arc::new(Notify::new());
    Case { board: Board::default(), pod, container, id: "1", reported: None, ending: false, wake }
}

impl Case {
    fn keep(&mut self, at: u64) -> Option<Verdict> {
        let target = Target {
            id: self.id,
            spec: &self.container,
            field_path: "spec.containers{c}",
            running_since: now(100).wall,
            reported: self.reported,
        };
        let view = View { pod: &self.pod, address: "10.0.0.2", ending: self.ending, containers: &[target] };
        self.board.keep(view, &self.wake, now(at)).remove("c")
    }

    /// Lets every attempt up to `until` fail or succeed; when they were made.
    fn run(&mut self, until: u64, outcome: &Outcome) -> Vec<u64> {
        let mut made = Vec::new();
        while let Some(at) = self.board.next_due().filter(|at| at.as_secs() <= until) {
            for due in self.board.take_due(at) {
                made.push(at.as_secs());
                self.board.record(due.number, Some((outcome.clone(), Duration::ZERO)), at);
            }
        }
        made
    }
}

fn verdict(started: bool, ready: bool, dead: bool) -> Option<Verdict> {
    Some(Verdict { started, ready, dead })
}

fn failure() -> Outcome {
    Outcome::Failure("no".into())
}

#[test]
fn the_defaults_are_those_of_kubernetes() {
    // A5.1
    let mut liveness = case(|c| c.liveness_probe = usual());
    assert_eq!(liveness.keep(100), verdict(true, true, false));
    assert_eq!(liveness.run(1000, &failure()), [110, 120, 130], "every 10 s, and after three it is over");
    assert_eq!(liveness.keep(130), verdict(true, true, true));
    let mut ready = case(|c| c.readiness_probe = usual());
    ready.keep(100);
    assert_eq!(ready.run(115, &Outcome::Success), [100, 110]);
    assert_eq!(ready.keep(115), verdict(true, true, false), "one success is enough");
    let due = ready.board.take_due(Duration::from_secs(120));
    assert_eq!(due[0].timeout, Duration::from_secs(1));
}

#[test]
fn every_number_of_a_probe_counts() {
    // A5.1, A5.5
    let mut liveness = case(|c| {
        c.liveness_probe = probe(|p| {
            (p.initial_delay_seconds, p.period_seconds, p.failure_threshold) = (Some(15), Some(3), Some(2));
            p.timeout_seconds = Some(7);
        });
    });
    liveness.keep(101);
    assert_eq!(liveness.run(300, &failure()), [115, 118]);
    let mut ready = case(|c| {
        c.readiness_probe = probe(|p| (p.success_threshold, p.period_seconds) = (Some(3), Some(2)));
    });
    assert_eq!(ready.keep(100), verdict(true, false, false), "unready until it passed");
    assert_eq!(ready.run(103, &Outcome::Success), [100, 102]);
    assert_eq!(ready.keep(103), verdict(true, false, false));
    ready.run(104, &Outcome::Success);
    assert_eq!(ready.keep(104), verdict(true, true, false));
    ready.run(109, &failure());
    assert_eq!(ready.keep(109), verdict(true, true, false), "two failures are not enough");
    ready.run(110, &failure());
    assert_eq!(ready.keep(110), verdict(true, false, false));
    assert_eq!(ready.run(114, &Outcome::Success), [112, 114], "it goes on whatever it said");
}

#[test]
fn the_startup_probe_holds_the_others_back() {
    // A5.4
    let mut c = case(|c| {
        c.startup_probe = probe(|p| p.period_seconds = Some(4));
        c.liveness_probe = usual();
        c.readiness_probe = usual();
    });
    assert_eq!(c.keep(100), verdict(false, false, false));
    assert_eq!(c.run(109, &failure()), [104, 108], "nothing but the startup probe");
    assert_eq!(
        c.run(112, &Outcome::Success),
        [112, 112, 112],
        "then the others at once, liveness where its time has come"
    );
    assert_eq!(c.keep(112), verdict(true, true, false));
    assert_eq!(c.run(121, &Outcome::Success).len(), 0);
    assert_eq!(c.run(122, &Outcome::Success), [122, 122], "startup has said its word");

    let mut failed = case(|c| c.startup_probe = probe(|p| p.failure_threshold = Some(1)));
    failed.keep(100);
    assert_eq!(failed.run(200, &failure()), [110]);
    assert_eq!(failed.keep(200), verdict(false, true, true));
}

#[test]
fn another_container_starts_over() {
    // A5.3, A5.5
    let mut c = case(|c| c.liveness_probe = probe(|p| p.failure_threshold = Some(1)));
    c.keep(100);
    c.run(110, &failure());
    assert_eq!(c.keep(110), verdict(true, true, true));
    c.id = "2";
    assert_eq!(c.keep(111), verdict(true, true, false));
    assert_eq!(c.board.len(), 1, "the old one is gone");
}

#[test]
fn an_ending_pod_is_asked_for_readiness_only() {
    // A1.10, A5.6
    let mut c = case(|c| {
        c.startup_probe = usual();
        c.liveness_probe = usual();
        c.readiness_probe = probe(|p| p.failure_threshold = Some(1));
    });
    c.keep(100);
    c.ending = true;
    assert_eq!(c.keep(105), verdict(true, false, false));
    assert_eq!(c.board.len(), 1);
    c.run(106, &Outcome::Success);
    assert_eq!(c.keep(106), verdict(true, true, false));
    c.run(120, &failure());
    assert_eq!(c.keep(120), verdict(true, false, false));
}

#[test]
fn a_new_agent_changes_nothing_until_a_probe_has_spoken() {
    // A5.3
    let mut c = case(|c| {
        c.startup_probe = usual();
        c.readiness_probe = probe(|p| p.failure_threshold = Some(1));
    });
    c.reported = verdict(true, true, false);
    assert_eq!(c.keep(500), verdict(true, true, false));
    let first = c.board.next_due().unwrap();
    assert!(first > Duration::from_secs(500) && first < Duration::from_secs(510), "spread over a period: {first:?}");
    c.run(510, &failure());
    assert_eq!(c.keep(510), verdict(true, false, false));
}

#[test]
fn what_comes_of_attempts_is_told() {
    // A21.1, A5.3, A5.5, A5.8, A5.12
    let texts = [
        (Outcome::Success, None),
        (failure(), Some(("Unhealthy", "Readiness probe failed: no"))),
        (Outcome::Warning("w".into()), Some(("ProbeWarning", "Readiness probe warning: w"))),
        (Outcome::Unknown("x".into()), Some(("Unhealthy", "Readiness probe errored and resulted in unknown state: x"))),
    ];
    for (outcome, expected) in texts {
        let mut c = case(|c| c.readiness_probe = probe(|p| p.failure_threshold = Some(1)));
        c.reported = verdict(true, true, false);
        c.keep(100);
        let at = Duration::from_secs(110);
        let due = c.board.take_due(at).remove(0);
        let message = c.board.record(due.number, Some((outcome.clone(), Duration::ZERO)), at);
        assert_eq!(message.as_ref().map(|m| (m.reason, m.text.as_str())), expected);
        assert!(message.is_none_or(|m| m.field_path == "spec.containers{c}"));
        let woken = futures::FutureExt::now_or_never(c.wake.notified()).is_some();
        assert_eq!(
            woken,
            matches!(outcome, Outcome::Failure(_)),
            "who reports is woken when something is new: {outcome:?}"
        );
        let ready = !matches!(outcome, Outcome::Failure(_));
        assert_eq!(c.keep(110), verdict(true, ready, false), "what is unknown changes nothing: {outcome:?}");
    }
}

#[test]
fn a_late_attempt_is_not_made_up_for() {
    let mut c = case(|c| c.liveness_probe = probe(|p| (p.period_seconds, p.timeout_seconds) = (Some(1), Some(5))));
    c.keep(100);
    let due = c.board.take_due(Duration::from_secs(101)).remove(0);
    assert_eq!(c.board.next_due(), None, "one attempt at a time");
    c.board.record(due.number, Some((Outcome::Success, Duration::ZERO)), Duration::from_secs(106));
    let next = c.board.next_due().unwrap();
    assert!(next >= Duration::from_secs(106) && next < Duration::from_secs(107), "{next:?}");
}

#[test]
fn what_is_gone_is_not_probed() {
    let mut c = case(|c| c.liveness_probe = usual());
    c.keep(100);
    c.board.forget(&c.pod.uid.clone());
    assert_eq!((c.board.len(), c.board.next_due()), (0, None));
}
