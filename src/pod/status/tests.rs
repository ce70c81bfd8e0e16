//! What is reported in which situation.

use k8s_openapi::api::core::v1::{Container, ContainerState, Pod, PodCondition, PodReadinessGate, PodSpec};

use super::*;
use crate::pod::observed::{Instance, InstanceState, ProbeVerdict, Sandbox, VolumesState};

fn at(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn now(second: u32) -> Now {
    Now { wall: at(second.into()), monotonic: std::time::Duration::from_secs(second.into()) }
}

#[derive(Clone)]
struct Case {
    desired: DesiredPod,
    seen: Observed,
    waiting: BTreeMap<String, Waiting>,
    previous: PodStatus,
}

fn container(name: &str) -> Container {
    Container { name: name.into(), image: Some("img".into()), ..Container::default() }
}

/// A pod with a sandbox of its own.
fn pod(containers: &[&str]) -> Case {
    let mut pod = Pod::default();
    pod.metadata.generation = Some(3);
    let containers = containers.iter().map(|name| container(name)).collect();
    pod.spec = Some(PodSpec { containers, ..PodSpec::default() });
    let sandbox = Sandbox { id: "s".into(), ready: true, ips: vec!["10.0.0.2".into()], ..Sandbox::default() };
    let mut seen = Observed { sandboxes: vec![sandbox], ..Observed::default() };
    seen.memory.volumes = VolumesState::Mounted;
    seen.memory.started_at = Some(at(0));
    Case {
        desired: DesiredPod { pod: pod.into(), gone: false, ended: None, released: false },
        seen,
        waiting: BTreeMap::new(),
        previous: PodStatus::default(),
    }
}

impl Case {
    fn spec(mut self, change: impl FnOnce(&mut PodSpec)) -> Self {
        change(std::sync::Arc::make_mut(&mut self.desired.pod).spec.as_mut().unwrap());
        self
    }

    fn policy(self, policy: &str) -> Self {
        self.spec(|s| s.restart_policy = Some(policy.into()))
    }

    fn init(self, name: &str, policy: Option<&str>) -> Self {
        let init = Container { restart_policy: policy.map(str::to_owned), ..container(name) };
        self.spec(|s| s.init_containers.get_or_insert_default().push(init))
    }

    fn instance(mut self, name: &str, state: InstanceState, code: i32) -> Self {
        let count = u32::try_from(self.seen.containers.iter().filter(|i| i.name == name).count()).unwrap();
        let instance = Instance {
            id: format!("{name}{count}"),
            name: name.into(),
            sandbox_id: "s".into(),
            state,
            restart_count: count,
            started_at: Some(at(1)),
            finished_at: (state == InstanceState::Exited).then(|| at(2)),
            exit_code: code,
            ..Instance::default()
        };
        self.seen.containers.insert(0, instance);
        self
    }

    fn runs(self, name: &str) -> Self {
        self.instance(name, InstanceState::Running, 0)
    }

    fn exited(self, name: &str, code: i32) -> Self {
        self.instance(name, InstanceState::Exited, code)
    }

    fn waits(mut self, name: &str, reason: &str) -> Self {
        self.waiting.insert(name.into(), Waiting { reason: reason.into(), message: "m".into() });
        self
    }

    fn ending(mut self, cause: Cause) -> Self {
        self.seen.memory.stage = Stage::Terminating { deadline: std::time::Duration::from_secs(100), cause };
        self
    }

    fn ended(mut self, cause: Cause) -> Self {
        self.seen.memory.stage = Stage::Finished { cause };
        self
    }

    fn status_at(&self, second: u32) -> PodStatus {
        let ips = ["192.0.2.7".parse().unwrap()];
        let Self { desired, seen, waiting, previous } = self;
        status(Facts { desired, seen, waiting, node_ips: &ips, previous }, now(second))
    }

    fn status(&self) -> PodStatus {
        self.status_at(10)
    }
}

#[track_caller]
fn phase_is(row: &str, case: &Case, expected: &str) {
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some(expected), "{row}: {status:#?}");
}

fn condition(status: &PodStatus, kind: &str) -> PodCondition {
    status.conditions.iter().flatten().find(|c| c.type_ == kind).cloned().expect("the condition is there")
}

/// `True`, or status, reason and message.
#[track_caller]
fn condition_is(row: &str, case: &Case, kind: &str, expected: &str) {
    let c = condition(&case.status(), kind);
    let parts = [Some(c.status), c.reason, c.message];
    assert_eq!(parts.into_iter().flatten().collect::<Vec<_>>().join(" "), expected, "{row} {kind}");
}

fn state(state: Option<&ContainerState>) -> String {
    match state {
        Some(ContainerState { waiting: Some(w), .. }) => w.reason.clone().unwrap_or_default(),
        Some(ContainerState { running: Some(_), .. }) => "running".into(),
        Some(ContainerState { terminated: Some(t), .. }) => {
            format!("{} {}", t.exit_code, t.reason.as_deref().unwrap_or_default())
        }
        _ => String::new(),
    }
}

#[test]
fn the_phase_follows_the_containers() {
    // A2.1
    for (case, expected) in [
        (pod(&["a"]), "Pending"),
        (pod(&["a", "b"]).runs("a"), "Pending"),
        (pod(&["a", "b"]).runs("a").runs("b"), "Running"),
        (pod(&["a"]).exited("a", 0).waits("a", "CrashLoopBackOff"), "Running"),
        (pod(&["a"]).exited("a", 1), "Running"),
        (pod(&["a"]).policy("OnFailure").exited("a", 1), "Running"),
        (pod(&["a"]).policy("OnFailure").exited("a", 0), "Succeeded"),
        (pod(&["a", "b"]).policy("Never").exited("a", 0).exited("b", 1), "Failed"),
        (pod(&["a", "b"]).policy("Never").exited("a", 1).runs("b"), "Running"),
        (pod(&["a"]).init("i", None).runs("i"), "Pending"),
        (pod(&["a"]).init("i", None).exited("i", 1), "Pending"),
        (pod(&["a"]).policy("Never").init("i", None).exited("i", 1), "Failed"),
        (pod(&["a"]).init("i", Some("Always")).runs("i"), "Pending"),
        (pod(&["a"]).policy("Never").init("i", Some("Always")).runs("i").exited("a", 0), "Succeeded"),
    ] {
        phase_is("A2.1", &case, expected);
    }
}

#[test]
fn a_terminal_phase_stays() {
    // A2.2
    let mut case = pod(&["a"]).runs("a");
    case.previous.phase = Some("Failed".into());
    case.previous.reason = Some("Evicted".into());
    phase_is("A2.2", &case, "Failed");
    assert_eq!(case.status().reason.as_deref(), Some("Evicted"));
}

#[test]
fn a_killed_pod_fails_with_reason_and_message() {
    // A2.3
    let cause =
        Cause::Killed { reason: "DeadlineExceeded".into(), message: "late".into(), disruption: false, grace: None };
    let running = pod(&["a"]).runs("a").ending(cause.clone()).status();
    assert_eq!((running.phase.as_deref(), running.reason), (Some("Running"), None), "not before its containers ended");
    let status = pod(&["a"]).exited("a", 0).ended(cause).status();
    let parts = (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref());
    assert_eq!(parts, (Some("Failed"), Some("DeadlineExceeded"), Some("late")));
}

#[test]
fn a_pod_deleted_before_it_ran_has_failed() {
    // A1.20
    let case = pod(&["a"]).ended(Cause::Deleted);
    phase_is("A1.20", &case, "Failed");
    let status = case.status().container_statuses.unwrap().remove(0);
    assert_eq!(state(status.state.as_ref()), "137 ContainerStatusUnknown");
    phase_is("A1.20", &pod(&["a"]).exited("a", 0).ended(Cause::Deleted), "Succeeded");
    phase_is("A1.20", &pod(&["a"]).exited("a", 2).ended(Cause::Deleted), "Failed");
}

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
fn the_pod_as_a_whole_tells_its_resources() {
    // A15.16
    let resources = |cpu: &str| {
        let list =
            Some([("cpu".to_owned(), k8s_openapi::apimachinery::pkg::api::resource::Quantity(cpu.to_owned()))].into());
        k8s_openapi::api::core::v1::ResourceRequirements { requests: list.clone(), limits: list, ..Default::default() }
    };
    let mut case = pod(&["a", "b"]).runs("a").runs("b").spec(|s| s.resources = Some(resources("2")));
    let shown = |case: &Case| (case.status().allocated_resources, case.status().resources);
    assert_eq!(shown(&case), (resources("2").requests, Some(resources("2"))));
    let allocation = &mut case.seen.memory.resize.allocation;
    (allocation.allocated_pod, allocation.actuated_pod) = (Some(resources("2")), Some(resources("1500m")));
    allocation.actuated.insert("a".into(), Default::default());
    assert_eq!(shown(&case), (resources("2").requests, Some(resources("1500m"))));
    assert_eq!(shown(&pod(&["a"])), (None, None));
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
    // A2.20
    let mut case = pod(&["a"]);
    condition_is("A2.20", &case, "PodReadyToStartContainers", "True");
    let retry_at = std::time::Duration::ZERO;
    case.seen.memory.volumes = VolumesState::Failed { message: String::new(), retry_at };
    condition_is("A2.20", &case, "PodReadyToStartContainers", "False");
    condition_is("A2.20", &case, "Initialized", "True");
}

#[test]
fn container_states_are_told() {
    // A2.13, A2.14
    let of = |case: &Case, name: &str| {
        let status = case.status();
        let all = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
        all.into_iter().find(|c| c.name == name).unwrap()
    };
    let fresh = of(&pod(&["a"]), "a");
    assert_eq!(
        (state(fresh.state.as_ref()), fresh.started, fresh.ready),
        ("ContainerCreating".into(), Some(false), false)
    );
    assert_eq!(state(of(&pod(&["a"]).init("i", None), "a").state.as_ref()), "PodInitializing");
    let running = of(&pod(&["a"]).exited("a", 3).runs("a"), "a");
    assert_eq!((running.restart_count, running.started, running.ready), (1, Some(true), true));
    assert_eq!(state(running.last_state.as_ref()), "3 Error");
    assert_eq!(running.container_id.as_deref(), Some("containerd://a1"));
    let waiting = of(&pod(&["a"]).exited("a", 3).waits("a", "CrashLoopBackOff"), "a");
    assert_eq!(state(waiting.state.as_ref()), "CrashLoopBackOff");
    assert_eq!(state(waiting.last_state.as_ref()), "3 Error");
    let mut probed = pod(&["a"]).runs("a");
    probed.seen.memory.probes.insert("a".into(), ProbeVerdict { started: true, ready: false, dead: false });
    assert_eq!((of(&probed, "a").started, of(&probed, "a").ready), (Some(true), false));
}

#[test]
fn a_container_that_cannot_be_found_is_told() {
    // A2.15
    let mut case = pod(&["a"]);
    case.previous = pod(&["a"]).runs("a").status();
    let lost = case.status().container_statuses.unwrap().remove(0);
    assert_eq!(state(lost.last_state.as_ref()), "137 ContainerStatusUnknown");
    assert_eq!(lost.restart_count, 1);
}

#[test]
fn an_init_container_that_was_removed_counts_as_completed() {
    // A2.15
    let removed = pod(&["a"]).init("i", None).runs("a").status().init_container_statuses.unwrap().remove(0);
    assert_eq!((state(removed.state.as_ref()), removed.ready), ("0 Completed".into(), true));
}

#[test]
fn addresses_are_told_and_stay() {
    // A2.11, A2.21
    let mut case = pod(&["a"]).runs("a");
    let status = case.status();
    assert_eq!((status.pod_ip.as_deref(), status.host_ip.as_deref()), (Some("10.0.0.2"), Some("192.0.2.7")));
    assert_eq!((status.start_time, status.observed_generation), (Some(Time(at(0))), Some(3)));
    case.previous = case.status();
    case.seen.sandboxes.clear();
    assert_eq!(case.status().pod_ip.as_deref(), Some("10.0.0.2"));
    let host = pod(&["a"]).spec(|s| s.host_network = Some(true)).status();
    assert_eq!(host.pod_ip.as_deref(), Some("192.0.2.7"));
}

#[test]
fn the_class_is_told() {
    // A2.12
    assert_eq!(pod(&["a"]).status().qos_class.as_deref(), Some("BestEffort"));
}

#[test]
fn a_rejected_pod_has_failed() {
    // A6.1
    let cause = Cause::Rejected { reason: "OutOfcpu".into(), message: "Pod was rejected: no".into() };
    let status = pod(&["a"]).ended(cause).status();
    let parts = (status.phase.as_deref(), status.reason.as_deref(), status.container_statuses);
    assert_eq!(parts, (Some("Failed"), Some("OutOfcpu"), None));
}

#[test]
fn what_others_wrote_over_the_status_is_noticed() {
    // A2.10
    let condition = |kind: &str, status: &str| k8s_openapi::api::core::v1::PodCondition {
        type_: kind.into(),
        status: status.into(),
        ..Default::default()
    };
    let with = |ready: &str| PodStatus {
        phase: Some("Running".into()),
        conditions: Some(vec![condition("Ready", ready), condition("example.com/gate", ready)]),
        ..PodStatus::default()
    };
    let reported = PodStatus { conditions: Some(vec![condition("Ready", "True")]), ..with("True") };
    assert!(!super::differs(Some(&with("True")), &reported));
    assert!(super::differs(Some(&with("False")), &reported), "marked while the node was away");
    assert!(super::differs(None, &reported));
    assert!(super::differs(Some(&PodStatus { phase: Some("Pending".into()), ..with("True") }), &reported));
    let foreign = PodStatus { conditions: Some(vec![condition("Ready", "True")]), ..with("True") };
    assert!(!super::differs(Some(&foreign), &reported), "conditions of others do not count");
    let main = ContainerStatus { name: "main".into(), ready: true, ..ContainerStatus::default() };
    let with_main = PodStatus { container_statuses: Some(vec![main]), ..with("True") };
    assert!(super::differs(Some(&with("True")), &with_main), "a report that did not arrive");
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
    // A15.1
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

#[test]
fn what_every_pod_shows() {
    // A1.19, A2.4, A2.17
    let case = pod(&["b", "a"]).init("z", None).init("y", None);
    let facts = Facts {
        desired: &case.desired,
        seen: &case.seen,
        waiting: &case.waiting,
        node_ips: &[],
        previous: &case.previous,
    };
    let status = status(facts, now(1));
    let conditions = status.conditions.unwrap();
    let mut kinds: Vec<&str> = conditions.iter().map(|c| c.type_.as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["ContainersReady", "Initialized", "PodReadyToStartContainers", "PodScheduled", "Ready"]);
    assert!(conditions.iter().all(|c| c.observed_generation == Some(3)) && status.observed_generation == Some(3));
    let names =
        |list: Option<Vec<ContainerStatus>>| -> Vec<String> { list.unwrap().into_iter().map(|c| c.name).collect() };
    assert_eq!(names(status.container_statuses), ["a", "b"]);
    assert_eq!(names(status.init_container_statuses), ["z", "y"]);
}

#[test]
fn last_words_of_a_pod_are_bounded() {
    // A4.8
    let mut case = pod(&["a", "b", "c", "d"]);
    case.seen.containers = ["a", "b", "c", "d"]
        .map(|name| Instance {
            id: name.into(),
            name: name.into(),
            sandbox_id: "s".into(),
            state: InstanceState::Exited,
            message: "é".repeat(2048),
            ..Instance::default()
        })
        .into();
    let facts = Facts {
        desired: &case.desired,
        seen: &case.seen,
        waiting: &case.waiting,
        node_ips: &[],
        previous: &case.previous,
    };
    let statuses = status(facts, now(1)).container_statuses.unwrap();
    let said =
        statuses.iter().map(|c| c.state.as_ref().unwrap().terminated.as_ref().unwrap().message.as_ref().unwrap());
    assert_eq!(said.map(String::len).collect::<Vec<_>>(), [3072; 4]);
}

#[test]
fn a_container_tells_its_user_and_mounts() {
    // A2.18, A9.24
    let mut case = pod(&["a"]).spec(|s| {
        let mount = |name: &str, read_only| k8s_openapi::api::core::v1::VolumeMount {
            name: name.into(),
            mount_path: format!("/{name}"),
            read_only,
            ..Default::default()
        };
        s.containers[0].volume_mounts = Some(vec![mount("v", None), mount("w", Some(true))]);
    });
    let instance = Instance {
        id: "a".into(),
        name: "a".into(),
        sandbox_id: "s".into(),
        state: InstanceState::Running,
        user: Some((1000, 2000, vec![2000, 3000])),
        ..Instance::default()
    };
    case.seen.containers = vec![instance];
    let facts = Facts {
        desired: &case.desired,
        seen: &case.seen,
        waiting: &case.waiting,
        node_ips: &[],
        previous: &case.previous,
    };
    let a = status(facts, now(1)).container_statuses.unwrap().remove(0);
    let linux = a.user.unwrap().linux.unwrap();
    assert_eq!((linux.uid, linux.gid, linux.supplemental_groups), (1000, 2000, Some(vec![2000, 3000])));
    let mounts: Vec<_> =
        a.volume_mounts.unwrap().into_iter().map(|m| (m.name, m.read_only, m.recursive_read_only)).collect();
    assert_eq!(mounts, [("v".into(), None, None), ("w".into(), Some(true), Some("Disabled".into()))]);

    // With a runtime that can.
    for (asked, shown) in [("Enabled", "Enabled"), ("IfPossible", "Enabled"), ("Disabled", "Disabled")] {
        case.seen.memory.recursive_read_only = true;
        case = case.spec(|s| {
            let mounts = s.containers[0].volume_mounts.as_mut().unwrap();
            mounts[1].recursive_read_only = Some(asked.into());
        });
        let facts = Facts {
            desired: &case.desired,
            seen: &case.seen,
            waiting: &case.waiting,
            node_ips: &[],
            previous: &case.previous,
        };
        let a = status(facts, now(1)).container_statuses.unwrap().remove(0);
        let mounts: Vec<_> = a.volume_mounts.unwrap().into_iter().map(|m| m.recursive_read_only).collect();
        assert_eq!(mounts, [None, Some(shown.to_owned())], "{asked}");
    }
}
