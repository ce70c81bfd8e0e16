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

    // The regular ones together; sidecars wait for the last of them, and have what it has left of the grace; then the sandbox.
    let many = || pod(&["a", "b"]).sidecar("s").runs("s").deleted(30);
    check("A4.6", many().runs("a").runs("b"), "stop-b stop-a hook-s");
    check("A4.6", many().runs("a").exited("b", 0), "stop-a hook-s");
    let stage = Stage::Terminating { deadline: Duration::from_secs(120), cause: Cause::Deleted };
    let ended = many().exited("a", 0).exited("b", 0).memory(|m| {
        m.stage = stage;
        m.stops.insert("s0".into(), Stop { deadline: Duration::from_secs(120), hook_only: true });
    });
    let plan = check("A3.4", ended, "stop-s");
    let Step::StopContainer(stop) = &plan.steps[0] else { panic!("{plan:#?}") };
    assert_eq!((stop.deadline.as_secs(), stop.hook), (120, false), "its hook ran at once, beside the others");
    let all_ended = pod(&["a", "b"]).sidecar("s").exited("s", 0).exited("a", 0).exited("b", 0).deleted(30);
    check("A4.6", all_ended, "stop-sandbox-s0");
}

#[test]
fn each_cause_has_its_grace() {
    // A4.2, A4.5, A7.5
    let stop = |case: Case| {
        let plan = case.plan();
        let [Step::StopContainer(stop)] = plan.steps.as_slice() else { panic!("{plan:#?}") };
        (stop.deadline.as_secs() - 100, stop.hook)
    };
    let runs = || pod(&["a"]).runs("a");
    let asks = |seconds: i64| runs().spec(|s| s.termination_grace_period_seconds = Some(seconds));
    let late = |case: Case| case.spec(|s| s.active_deadline_seconds = Some(1));
    assert_eq!(stop(late(runs())), (30, true), "the default");
    assert_eq!(stop(late(asks(60))), (60, true));
    assert_eq!(stop(asks(60).deleted(5)), (5, true), "what the deletion says counts, not the spec");
    assert_eq!(stop(asks(5).deleted(60)), (60, true));
    assert_eq!(stop(asks(60).deleted(0)), (0, false), "there is no time for a hook");

    // A probe has its own, unless the pod is to go.
    let failed = |case: Case, grace: i64| {
        case.memory(dead("a", true)).spec(|s| {
            let grace = Some(grace);
            let probe =
                k8s_openapi::api::core::v1::Probe { termination_grace_period_seconds: grace, ..Default::default() };
            s.containers[0].liveness_probe = Some(probe);
        })
    };
    assert_eq!(stop(failed(asks(60), 7)), (7, true));
    assert_eq!(stop(failed(asks(60), 0)), (0, false));
    assert_eq!(stop(failed(asks(60), 7).deleted(20)), (20, true));

    // The node may be in more of a hurry than anybody else.
    let ordered = |mut case: Case, seconds: u64| {
        let grace = Some(Duration::from_secs(seconds));
        case.desired.ended = Some(Cause::Killed { reason: "R".into(), message: "m".into(), disruption: true, grace });
        case
    };
    assert_eq!(stop(ordered(asks(60), 3)), (3, true));
    assert_eq!(stop(ordered(asks(60).deleted(40), 3)), (3, true));

    // A static pod whose file has gone has what it asks for; for others that nobody wants any more nobody waits.
    let gone = |source: &str, mut case: Case| {
        case.desired.gone = true;
        case.edit(|pod| {
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert(stoker_model::names::CONFIG_SOURCE.into(), source.into());
        })
    };
    assert_eq!(stop(gone("file", asks(60))), (60, true));
    assert_eq!(stop(gone("http", asks(60))), (60, true));
    assert_eq!(stop(gone("api", asks(60))), (2, true));
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
