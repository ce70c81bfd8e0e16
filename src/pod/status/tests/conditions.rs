//! Which conditions a pod has, and why.

use super::*;

#[test]
fn readiness_is_told_with_its_reasons() {
    // A2.6
    condition_is("A2.6", &pod(&["a"]).runs("a"), "ContainersReady", "True");
    let unready = "False ContainersNotReady containers with unready status: [a b]";
    condition_is("A2.6", &pod(&["a", "b"]), "ContainersReady", unready);
    condition_is("A2.6", &pod(&["a", "b"]), "Ready", unready);
    let done = pod(&["a"]).policy("Never").exited("a", 0);
    condition_is("A2.6", &done, "Ready", "False PodCompleted");
    let failed = pod(&["a"]).policy("Never").exited("a", 1);
    condition_is("A2.6", &failed, "ContainersReady", "False PodFailed");
}

#[test]
fn initialization_is_told_with_its_reasons() {
    // A2.5
    let two = || pod(&["a"]).init("i", None).init("s", Some("Always"));
    let message = "False ContainersNotInitialized containers with incomplete status: [i s]";
    condition_is("A2.5", &two(), "Initialized", message);
    let half = two().exited("i", 0);
    condition_is("A2.5", &half, "Initialized", "False ContainersNotInitialized containers with incomplete status: [s]");
    condition_is("A2.5", &half.runs("s"), "Initialized", "True");
    condition_is("A2.5", &two().runs("a"), "Initialized", "True");
    condition_is("A2.5", &pod(&["a"]).policy("Never").exited("a", 0), "Initialized", "True PodCompleted");
}

#[test]
fn readiness_gates_count() {
    // A2.7
    let gated = || {
        pod(&["a"]).runs("a").spec(|s| {
            s.readiness_gates = Some(vec![PodReadinessGate { condition_type: "x/y".into() }]);
        })
    };
    let missing = "False ReadinessGatesNotReady corresponding condition of pod readiness gate \"x/y\" does not exist.";
    condition_is("A2.7", &gated(), "Ready", missing);
    let set = |status: &str| {
        let mut case = gated();
        let gate = PodCondition { type_: "x/y".into(), status: status.into(), ..PodCondition::default() };
        let status = PodStatus { conditions: Some(vec![gate]), ..PodStatus::default() };
        std::sync::Arc::make_mut(&mut case.desired.pod).status = Some(status);
        case
    };
    let closed = "False ReadinessGatesNotReady the status of pod readiness gate \"x/y\" is not \"True\", but False";
    condition_is("A2.7", &set("False"), "Ready", closed);
    condition_is("A2.7", &set("True"), "Ready", "True");
    let two = set("False").spec(|s| {
        s.readiness_gates.as_mut().unwrap().push(PodReadinessGate { condition_type: "x/z".into() });
    });
    let z = "corresponding condition of pod readiness gate \"x/z\" does not exist.";
    condition_is("A2.7", &two, "Ready", &format!("{closed}, {z}"));
    let unready = "False ContainersNotReady containers with unready status: [a]";
    condition_is(
        "A2.7",
        &pod(&["a"]).spec(|s| s.readiness_gates = two.desired.pod.spec.as_ref().unwrap().readiness_gates.clone()),
        "Ready",
        unready,
    );
}

#[test]
fn conditions_of_others_are_not_reported() {
    // A2.8: what a patch does not name stays.
    let mut case = pod(&["a"]).runs("a");
    let of = |kind: &str| PodCondition { type_: kind.into(), status: "True".into(), ..PodCondition::default() };
    let status = PodStatus { conditions: Some(vec![of("x/y"), of("DisruptionTarget")]), ..PodStatus::default() };
    std::sync::Arc::make_mut(&mut case.desired.pod).status = Some(status.clone());
    case.previous = status;
    let reported: Vec<String> = case.status().conditions.into_iter().flatten().map(|c| c.type_).collect();
    assert_eq!(
        reported,
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"].map(String::from)
    );
}

#[test]
fn transition_times_change_with_the_status_only() {
    // A2.9
    let mut case = pod(&["a"]);
    case.previous = case.status_at(10);
    let same = condition(&case.status_at(20), "Ready");
    assert_eq!(same.last_transition_time, Some(Time(at(10))));
    let flipped = condition(&case.runs("a").status_at(30), "Ready");
    assert_eq!(flipped.last_transition_time, Some(Time(at(30))));
}

#[test]
fn a_missing_volume_keeps_containers_from_starting() {
    // A2.4, A2.20
    let mut case = pod(&["a"]);
    condition_is("A2.20", &case, "PodReadyToStartContainers", "True");
    let retry_at = std::time::Duration::ZERO;
    case.seen.memory.volumes = VolumesState::Failed { message: String::new(), retry_at };
    condition_is("A2.20", &case, "PodReadyToStartContainers", "False");
    condition_is("A2.20", &case, "Initialized", "True");
    let with_init = Case { seen: case.seen.clone(), ..pod(&["a"]).init("i", None) };
    let message = "False ContainersNotInitialized containers with incomplete status: [i]";
    condition_is("A2.20", &with_init, "Initialized", message);
    // Right after the network, before an image is there; not without an address, and not after the sandbox has gone.
    case.seen.memory.volumes = VolumesState::Mounted;
    condition_is("A2.4", &case, "PodReadyToStartContainers", "True");
    case.seen.sandboxes[0].ips.clear();
    condition_is("A2.4", &case, "PodReadyToStartContainers", "False");
    case.seen.sandboxes.clear();
    condition_is("A2.4", &case, "PodReadyToStartContainers", "False");
}

#[test]
fn conditions_turn_true_one_after_the_other() {
    // A2.20
    let steps = |init: bool| {
        let with_init = |case: Case| if init { case.init("i", None) } else { case };
        let fresh = || with_init(pod(&["a"]));
        let mut nothing = fresh();
        nothing.seen.sandboxes.clear();
        nothing.seen.memory.volumes = VolumesState::Unknown;
        // Before any image is there.
        let network = fresh().waits("a", "ErrImagePull");
        let initialized = if init { fresh().exited("i", 0) } else { fresh() };
        let mut unready = initialized.clone().runs("a");
        unready.seen.memory.probes.insert("a".into(), ProbeVerdict { started: true, ready: false, dead: false });
        let ready = initialized.clone().runs("a");
        let mut previous = PodStatus::default();
        let mut turned: Vec<(String, u32)> = Vec::new();
        for (place, case) in [nothing, network, initialized, unready, ready].into_iter().enumerate() {
            let second = u32::try_from(place + 1).unwrap();
            let status = Case { previous, ..case }.status_at(second);
            for condition in status.conditions.iter().flatten().filter(|c| c.status == "True") {
                if !turned.iter().any(|(kind, _)| *kind == condition.type_) {
                    assert_eq!(condition.last_transition_time, Some(Time(at(second.into()))));
                    turned.push((condition.type_.clone(), second));
                }
            }
            previous = status;
        }
        turned.sort_by_key(|(kind, second)| (*second, kind.clone()));
        let named = |(kind, second): &(String, u32)| format!("{second} {kind}");
        turned.iter().map(named).collect::<Vec<_>>().join(", ")
    };
    let without = "1 Initialized, 1 PodScheduled, 2 PodReadyToStartContainers, 5 ContainersReady, 5 Ready";
    assert_eq!(steps(false), without);
    let with = "1 PodScheduled, 2 PodReadyToStartContainers, 3 Initialized, 5 ContainersReady, 5 Ready";
    assert_eq!(steps(true), with);
}

#[test]
fn a_sidecar_counts_for_readiness() {
    // A2.6, A3.3
    let mut case = pod(&["a"]).init("s", Some("Always")).runs("s").runs("a");
    condition_is("A3.3", &case, "Ready", "True");
    case.seen.memory.probes.insert("s".into(), ProbeVerdict { started: true, ready: false, dead: false });
    let unready = "False ContainersNotReady containers with unready status: [s]";
    condition_is("A3.3", &case, "Ready", unready);
    phase_is("A3.3", &case, "Running");
}

#[test]
fn a_pod_that_starts_over_says_so() {
    // A3.12
    use k8s_openapi::api::core::v1::{ContainerRestartRule, ContainerRestartRuleOnExitCodes};
    let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: Some(vec![42]) };
    let rule = ContainerRestartRule { action: "RestartAllContainers".into(), exit_codes: Some(codes) };
    let mut case = pod(&["a"]).init("i", None).spec(|s| {
        s.containers[0].restart_policy = Some("Never".into());
        s.containers[0].restart_policy_rules = Some(vec![rule]);
    });
    let instance = |name: &str, state, exit_code| Instance {
        id: name.into(),
        name: name.into(),
        sandbox_id: "s".into(),
        state,
        exit_code,
        ..Instance::default()
    };
    let conditions = |status: &PodStatus, kind: &str| {
        let found = status.conditions.iter().flatten().find(|c| c.type_ == kind).cloned();
        found.map(|c| (c.status, c.reason.unwrap_or_default(), c.message.unwrap_or_default()))
    };
    let report = |case: &Case| {
        let facts = Facts {
            desired: &case.desired,
            seen: &case.seen,
            waiting: &case.waiting,
            node_ips: &[],
            previous: &case.previous,
        };
        status(facts, now(10))
    };
    case.seen.containers = vec![instance("a", InstanceState::Exited, 42), instance("i", InstanceState::Exited, 0)];
    case.seen.memory.restarting_all = true;
    let first = report(&case);
    let started =
        ("True".into(), "RestartAllContainersStarted".into(), "container exited with restart policy rule".into());
    assert_eq!(conditions(&first, "AllContainersRestarting"), Some(started));
    assert_eq!(first.phase.as_deref(), Some("Running"));
    // Everything is gone, and starts over.
    case.previous = first;
    case.seen.containers.clear();
    case.seen.memory.restarting_all = false;
    for _ in 0..2 {
        let second = report(&case);
        let a = &second.container_statuses.as_ref().unwrap()[0];
        let last = a.last_state.as_ref().and_then(|s| s.terminated.clone()).unwrap();
        assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("RestartingAllContainers")));
        assert_eq!(last.message.as_deref(), Some("The container is removed because RestartAllContainers in place"));
        assert_eq!((a.restart_count, second.phase.as_deref()), (1, Some("Running")));
        assert_eq!(conditions(&second, "AllContainersRestarting").unwrap().0, "False");
        assert_eq!(conditions(&second, "Initialized").unwrap().0, "True");
        case.previous = second;
    }
    let none = pod(&["a"]);
    assert_eq!(conditions(&report(&none), "AllContainersRestarting"), None);
}

#[test]
fn a_resize_is_told_in_conditions() {
    // A2.4, A15.1
    use crate::pod::resize::{Failed, Pending};
    let mut case = pod(&["a"]);
    let find = |case: &Case, kind: &str| {
        let facts = Facts {
            desired: &case.desired,
            seen: &case.seen,
            waiting: &case.waiting,
            node_ips: &[],
            previous: &case.previous,
        };
        let conditions = status(facts, now(10)).conditions.unwrap();
        let found = conditions.into_iter().find(|c| c.type_ == kind);
        found.map(|c| (c.status, c.reason, c.message, c.observed_generation))
    };
    assert_eq!((find(&case, "PodResizePending"), find(&case, "PodResizeInProgress")), (None, None));
    let resize = &mut case.seen.memory.resize;
    resize.pending = Some(Pending { reason: "Deferred", message: "full".into(), generation: Some(4) });
    (resize.under_way, resize.generation) = (true, Some(3));
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(find(&case, "PodResizePending"), Some(("True".into(), text("Deferred"), text("full"), Some(4))));
    assert_eq!(find(&case, "PodResizeInProgress"), Some(("True".into(), None, None, Some(3))));
    case.seen.memory.resize.error = Some(Failed { message: "no".into(), retry_at: Default::default() });
    assert_eq!(find(&case, "PodResizeInProgress"), Some(("True".into(), text("Error"), text("no"), Some(3))));
}
