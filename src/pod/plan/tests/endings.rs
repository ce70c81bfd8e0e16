//! How pods end: deadlines, eviction, deletion, teardown.

use super::*;

#[test]
fn the_deadline_ends_a_pod() {
    // A3.11
    let limited = |limit| pod(&["a"]).runs("a").spec(|s| s.active_deadline_seconds = Some(limit));
    assert_eq!(check("A3.11", limited(101), "").wake_at, Some(Duration::from_secs(101)));
    let plan = check("A3.11", limited(100), "stop-a");
    let Some(Cause::Killed { reason, message, .. }) = plan.stage.cause() else { panic!("{plan:?}") };
    let told = "Pod was active on the node longer than the specified deadline";
    assert_eq!((reason.as_str(), message.as_str()), ("DeadlineExceeded", told));
    // It counts from the pod's own start, and one that is set or lowered while it runs counts at once.
    check("A3.11", limited(100).memory(|m| m.started_at = Some(at(1))), "");
    check("A3.11", limited(1000), "");
    check("A3.11", limited(1000).spec(|s| s.active_deadline_seconds = Some(50)), "stop-a");
    check("A3.11", pod(&["a"]).runs("a"), "");
}

#[test]
fn an_evicted_pod_has_as_long_as_the_node_says() {
    // A13.9, A13.10
    let evicted = |grace: u64, stage: Stage| {
        let grace = Some(Duration::from_secs(grace));
        let cause = Cause::Killed { reason: "Evicted".into(), message: "m".into(), disruption: true, grace };
        let mut case = pod(&["a"]).runs("a").memory(|m| m.stage = stage);
        case.desired.ended = Some(cause);
        match case.plan().stage {
            Stage::Terminating { deadline, .. } => deadline.as_secs(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(evicted(1, Stage::Running), 101);
    assert_eq!(evicted(300, Stage::Running), 130, "never longer than the pod itself wants");
    let deleted = Stage::Terminating { deadline: Duration::from_secs(160), cause: Cause::Deleted };
    assert_eq!(evicted(1, deleted), 101, "also when it was about to go more slowly");
}

#[test]
fn a_finished_pod_lets_go_of_its_containers_when_the_disk_is_full() {
    // A13.7
    let stage = Stage::Finished { cause: Cause::Completed };
    let finished = || pod(&["a"]).exited("a", 0).memory(|m| m.stage = stage.clone());
    assert_eq!(finished().plan().steps, []);
    let mut case = finished();
    case.desired.released = true;
    let steps = case.plan().steps;
    let [Step::RemoveContainer { keep_log: false, .. }, rest @ ..] = steps.as_slice() else { panic!("{steps:?}") };
    assert!(rest.iter().all(|step| matches!(step, Step::RemoveSandbox { .. })), "{rest:?}");
    let mut running = pod(&["a"]).runs("a");
    running.desired.released = true;
    assert_eq!(running.plan().steps, [], "what runs keeps everything");
}

#[test]
fn the_grace_only_shrinks() {
    // A1.13
    let deadline = |plan: &Plan| match plan.stage {
        Stage::Terminating { deadline, .. } => deadline.as_secs(),
        _ => panic!("{plan:?}"),
    };
    let first = check("A1.13", pod(&["a"]).runs("a").deleted(30), "stop-a");
    assert_eq!(deadline(&first), 130);
    let under_way = |grace, at| {
        let stop = Stop { deadline: Duration::from_secs(130), hook_only: false };
        let stage = first.stage.clone();
        pod(&["a"]).runs("a").deleted(grace).at(at).memory(|m| {
            m.stage = stage;
            m.stops.insert("a0".into(), stop);
        })
    };
    assert_eq!(deadline(&check("A1.13", under_way(30, 110), "")), 130);
    assert_eq!(deadline(&check("A1.13", under_way(300, 110), "")), 130);
    assert_eq!(deadline(&check("A1.13", under_way(5, 110), "shorten-a0")), 115);
}

#[test]
fn sidecars_stop_after_the_others_and_in_reverse() {
    // A3.4, A4.6
    let two = || pod(&["a"]).sidecar("s").sidecar("t").runs("s").runs("t").deleted(30);
    check("A3.4", two().runs("a"), "stop-a hook-t hook-s");
    check("A3.4", two().exited("a", 0), "stop-t hook-s");
    let last = pod(&["a"]).sidecar("s").sidecar("t").runs("s").exited("t", 0).exited("a", 0).deleted(30);
    check("A3.4", last, "stop-s");
    let late = two().runs("a").memory(|m| {
        m.stage = Stage::Terminating { deadline: Duration::from_secs(100), cause: Cause::Deleted };
        let deadline = Duration::from_secs(100);
        m.stops.insert("a0".into(), Stop { deadline, hook_only: false });
        m.stops.insert("s0".into(), Stop { deadline, hook_only: true });
        m.stops.insert("t0".into(), Stop { deadline, hook_only: true });
    });
    check("A4.6", late, "stop-t stop-s");
}

#[test]
fn a_pod_ends_step_by_step() {
    // A1.10, A1.11
    let deleted = || pod(&["a"]).exited("a", 0).deleted(30);
    check("A1.10", deleted(), "stop-sandbox-s0");
    let stopped = || deleted().seen(|s| s.sandboxes[0].ready = false);
    check("A1.11", stopped(), "tear-down");
    check("A1.11", stopped().memory(|m| m.torn_down = true), "report");
    let reported = stopped().memory(|m| (m.torn_down, m.reported) = (true, true));
    check("A1.11", reported.clone(), "");
    let mut gone = reported;
    gone.desired.gone = true;
    check("A1.11", gone, "remove-everything");
}

#[test]
fn a_failed_teardown_is_tried_again_later() {
    // A1.11
    let stuck = pod(&["a"]).deleted(30).seen(|s| s.sandboxes.clear()).memory(|m| {
        m.teardown_retry_at = Some(Duration::from_secs(101));
    });
    assert_eq!(check("A1.11", stuck.clone(), "").wake_at, Some(Duration::from_secs(101)));
    check("A1.11", stuck.at(101), "tear-down");
}

#[test]
fn what_no_source_wants_is_ended_quickly() {
    // A1.12, A1.14
    let mut case = pod(&["a"]).runs("a");
    case.desired.gone = true;
    let plan = check("A1.12", case, "stop-a");
    assert_eq!(plan.stage, Stage::Terminating { deadline: Duration::from_secs(102), cause: Cause::Deleted });
}

#[test]
fn a_pod_that_has_ended_is_not_run_again() {
    // A2.2
    let ended = pod(&["a"]).seen(|s| s.sandboxes.clear()).edit(|pod| {
        pod.status = Some(PodStatus { phase: Some("Succeeded".into()), ..PodStatus::default() });
    });
    check("A2.2", ended, "tear-down");
}
