//! What is reported in which situation.

use k8s_openapi::api::core::v1::{Container, ContainerState, Pod, PodCondition, PodReadinessGate, PodSpec};

use super::*;
use crate::pod::observed::{Instance, InstanceState, ProbeVerdict, Sandbox, VolumesState};

#[path = "tests/conditions.rs"]
mod conditions;

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
    // A2.1, A3.1, A3.5, A3.10
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
        (pod(&["a"]).policy("Never").init("i", Some("Always")).exited("i", 1).exited("a", 0), "Succeeded"),
        (pod(&["a"]).policy("Never").init("i", Some("Always")).exited("i", 0).exited("a", 1), "Failed"),
    ] {
        phase_is("A2.1", &case, expected);
    }

    // Rules of a container count too.
    let codes = serde_json::json!([{ "action": "Restart", "exitCodes": { "operator": "In", "values": [42] } }]);
    let ruled = |code| {
        pod(&["a", "b"]).policy("Never").exited("a", code).exited("b", 0).spec(|s| {
            s.containers[0].restart_policy = Some("Never".into());
            s.containers[0].restart_policy_rules = serde_json::from_value(codes.clone()).unwrap();
        })
    };
    phase_is("A3.10", &ruled(42), "Running");
    phase_is("A3.10", &ruled(43), "Failed");
    phase_is("A3.10", &ruled(42).waits("a", "CrashLoopBackOff"), "Running");
}

#[test]
fn a_terminal_phase_stays() {
    // A2.2
    let mut case = pod(&["a"]).runs("a");
    case.previous.phase = Some("Failed".into());
    case.previous.reason = Some("Evicted".into());
    phase_is("A2.2", &case, "Failed");
    assert_eq!(case.status().reason.as_deref(), Some("Evicted"));
    for (code, phase) in [(0, "Succeeded"), (3, "Failed")] {
        let mut case = pod(&["a"]).policy("Never").init("i", None).exited("i", 0).exited("a", code);
        case.previous = case.status();
        let before = (case.previous.container_statuses.clone(), case.previous.init_container_statuses.clone());
        // The runtime forgets all of it.
        case.seen.containers.clear();
        case.seen.sandboxes.clear();
        let after = case.status();
        assert_eq!(after.phase.as_deref(), Some(phase));
        let ends = |list: Option<Vec<ContainerStatus>>| -> Vec<String> {
            list.unwrap().iter().map(|c| state(c.state.as_ref())).collect()
        };
        let after = (ends(after.container_statuses), ends(after.init_container_statuses));
        assert_eq!(after, (ends(before.0), ends(before.1)), "nothing waits again");
    }
}

#[test]
fn a_killed_pod_fails_with_reason_and_message() {
    // A2.3, A2.4, A2.19
    let cause =
        Cause::Killed { reason: "DeadlineExceeded".into(), message: "late".into(), disruption: false, grace: None };
    let running = pod(&["a"]).runs("a").ending(cause.clone()).status();
    assert_eq!((running.phase.as_deref(), running.reason), (Some("Running"), None), "not before its containers ended");
    let status = pod(&["a"]).exited("a", 0).ended(cause).status();
    let parts = (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref());
    assert_eq!(parts, (Some("Failed"), Some("DeadlineExceeded"), Some("late")));
    assert!(status.conditions.unwrap().iter().all(|c| c.type_ != "DisruptionTarget"), "its own time was over");
    for (reason, message, told) in [
        ("Evicted", "The node was low", "The node was low"),
        (
            "Terminated",
            "Pod was terminated in response to imminent node shutdown.",
            "Pod was terminated in response to imminent node shutdown.",
        ),
        ("Preempting", "Preempted", "Pod was preempted by Kubelet to accommodate a critical pod."),
    ] {
        let cause = Cause::Killed { reason: reason.into(), message: message.into(), disruption: true, grace: None };
        let case = pod(&["a"]).exited("a", 0).ended(cause);
        let status = case.status();
        let parts = (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref());
        assert_eq!(parts, (Some("Failed"), Some(reason), Some(message)));
        condition_is("A2.19", &case, "DisruptionTarget", &format!("True TerminationByKubelet {told}"));
    }
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
    probed.seen.memory.probes.insert("a".into(), ProbeVerdict { started: false, ready: true, dead: false });
    assert_eq!(
        (of(&probed, "a").started, of(&probed, "a").ready),
        (Some(false), false),
        "not before its startup probe"
    );

    // What each state carries.
    let said = of(&pod(&["a"]).waits("a", "ErrImagePull"), "a").state.unwrap().waiting.unwrap();
    assert_eq!((said.reason.as_deref(), said.message.as_deref()), (Some("ErrImagePull"), Some("m")));
    let mut case = pod(&["a"]).exited("a", 3).runs("a");
    let begun = of(&case, "a").state.unwrap().running.unwrap().started_at;
    assert_eq!(begun, Some(Time(at(1))));
    case.seen.containers[1].message = "bye".into();
    case.seen.containers[1].reason = "OOMKilled".into();
    case.seen.containers[0].image_ref = "sha256:1".into();
    let shown = of(&case, "a");
    assert_eq!(shown.image_id, "sha256:1");
    let end = shown.last_state.unwrap().terminated.unwrap();
    let texts = (end.reason.as_deref(), end.message.as_deref(), end.container_id.as_deref());
    assert_eq!(texts, (Some("OOMKilled"), Some("bye"), Some("containerd://a0")));
    assert_eq!((end.exit_code, end.started_at, end.finished_at), (3, Some(Time(at(1))), Some(Time(at(2)))));

    // What was counted once is not forgotten with the containers.
    case.previous = case.status();
    case.previous.container_statuses.as_mut().unwrap()[0].restart_count = 7;
    assert_eq!(of(&case, "a").restart_count, 7);
    case.seen.containers.clear();
    assert_eq!(of(&case, "a").restart_count, 8, "the one that ran is lost");
}

#[test]
fn a_container_that_cannot_be_found_is_told() {
    // A2.15
    let mut case = pod(&["a"]);
    case.previous = pod(&["a"]).runs("a").status();
    let lost = case.status().container_statuses.unwrap().remove(0);
    assert_eq!(state(lost.last_state.as_ref()), "137 ContainerStatusUnknown");
    assert_eq!(lost.restart_count, 1);
    assert_eq!(state(lost.state.as_ref()), "ContainerCreating", "it is made anew");
    let told = "The container could not be located when the pod was deleted.  The container used to be Running";
    assert_eq!(lost.last_state.unwrap().terminated.unwrap().message.as_deref(), Some(told));
    // It counts once, and not where nothing is made anew.
    case.previous = case.status();
    assert_eq!(case.status().container_statuses.unwrap()[0].restart_count, 1);
    case.previous = pod(&["a"]).runs("a").status();
    let metadata = &mut std::sync::Arc::make_mut(&mut case.desired.pod).metadata;
    metadata.deletion_timestamp = Some(Time(at(5)));
    let lost = case.status().container_statuses.unwrap().remove(0);
    assert_eq!((state(lost.last_state.as_ref()), lost.restart_count), ("137 ContainerStatusUnknown".into(), 0));
}

#[test]
fn the_runtime_says_why_a_container_ended() {
    // A2.15, A2.22
    for (code, reason, told) in [
        (0, "", "0 Completed"),
        (3, "", "3 Error"),
        (0, "Completed", "0 Completed"),
        (137, "Error", "137 Error"),
        (137, "OOMKilled", "137 OOMKilled"),
        (128, "StartError", "128 StartError"),
        (128, "ContainerCannotRun", "128 ContainerCannotRun"),
        (143, "DeadlineExceeded", "143 DeadlineExceeded"),
    ] {
        let mut case = pod(&["a"]).policy("Never").init("i", None).exited("i", code).exited("a", code);
        case.seen.containers.iter_mut().for_each(|instance| instance.reason = reason.into());
        let status = case.status();
        for list in [status.container_statuses, status.init_container_statuses] {
            assert_eq!(state(list.unwrap()[0].state.as_ref()), told);
        }
    }
}

#[test]
fn an_init_container_that_was_removed_counts_as_completed() {
    // A2.15
    let removed = pod(&["a"]).init("i", None).runs("a").status().init_container_statuses.unwrap().remove(0);
    assert_eq!((state(removed.state.as_ref()), removed.ready), ("0 Completed".into(), true));
    // What was told of it before stays.
    let mut case = pod(&["a"]).init("i", None).exited("i", 0).runs("a");
    let before = case.status();
    case.previous = before.clone();
    case.seen.containers.retain(|instance| instance.name == "a");
    assert_eq!(case.status(), before);
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
    assert_eq!(host.pod_ips.unwrap(), [PodIP { ip: "192.0.2.7".into() }]);

    // Both families: the node's first one is first, and each at most once.
    let mut dual = pod(&["a"]).runs("a");
    dual.seen.sandboxes[0].ips = vec!["fd00::2".into(), "10.0.0.2".into()];
    for (node, pod_ips) in [
        (["192.0.2.7", "2001:db8::7"], ["10.0.0.2", "fd00::2"]),
        (["2001:db8::7", "192.0.2.7"], ["fd00::2", "10.0.0.2"]),
    ] {
        let node_ips = node.map(|ip| ip.parse().unwrap());
        let Case { desired, seen, waiting, previous } = &dual;
        let status = super::status(Facts { desired, seen, waiting, node_ips: &node_ips, previous }, now(10));
        let shown: Vec<String> = status.pod_ips.unwrap().into_iter().map(|ip| ip.ip).collect();
        assert_eq!((status.pod_ip.as_deref(), &shown[..]), (Some(pod_ips[0]), &pod_ips.map(String::from)[..]));
        let hosts: Vec<String> = status.host_ips.unwrap().into_iter().map(|ip| ip.ip).collect();
        assert_eq!((status.host_ip.as_deref(), &hosts[..]), (Some(node[0]), &node.map(String::from)[..]));
    }

    // A pod that ends, and one that has ended.
    for case in [pod(&["a"]).runs("a").ending(Cause::Deleted), pod(&["a"]).policy("Never").exited("a", 1)] {
        let before = case.status();
        let mut gone = Case { previous: before.clone(), ..case };
        gone.seen.sandboxes.clear();
        let after = gone.status();
        assert_eq!((after.pod_ips, after.host_ips), (before.pod_ips, before.host_ips));
        assert_eq!(after.start_time, before.start_time);
    }
}

#[test]
fn the_class_is_told() {
    // A2.12
    use k8s_openapi::api::core::v1::ResourceRequirements;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    assert_eq!(pod(&["a"]).status().qos_class.as_deref(), Some("BestEffort"));
    let of = |cpu: &str, memory: &str| {
        Some([("cpu".to_owned(), Quantity(cpu.into())), ("memory".to_owned(), Quantity(memory.into()))].into())
    };
    for (requests, limits, class) in [
        (of("100m", "1Mi"), None, "Burstable"),
        (of("100m", "1Mi"), of("100m", "2Mi"), "Burstable"),
        (None, of("100m", "2Mi"), "Guaranteed"),
        (of("100m", "2Mi"), of("100m", "2Mi"), "Guaranteed"),
    ] {
        let resources = ResourceRequirements { requests, limits, claims: None };
        let mut case = pod(&["a"]).runs("a").spec(|s| s.containers[0].resources = Some(resources));
        assert_eq!(case.status().qos_class.as_deref(), Some(class));
        case.previous = case.status();
        case = case.exited("a", 0).ended(Cause::Deleted);
        assert_eq!(case.status().qos_class.as_deref(), Some(class), "to the end");
    }
}

#[test]
fn a_rejected_pod_has_failed() {
    // A2.3, A6.1
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
    assert_eq!(a.stop_signal, None, "that is for a feature which is switched off");
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
