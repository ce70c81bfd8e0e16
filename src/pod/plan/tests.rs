//! Every row about the life of a pod, as a table of situations and the steps that they call for.

use k8s_openapi::api::core::v1::{Container, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::pod::backoff::{Backoff, LONGEST};
use crate::pod::observed::{
    Failure, ImageState, Instance, Memory, ProbeVerdict, PullFailure, PullPolicy, Sandbox, Stop, VolumesState,
};

#[path = "tests/endings.rs"]
mod endings;
#[path = "tests/properties.rs"]
mod properties;

const START: i64 = 1_700_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(START + second).unwrap()
}

fn now(second: u64) -> Now {
    Now { wall: at(i64::try_from(second).unwrap()), monotonic: Duration::from_secs(second) }
}

fn container(name: &str) -> Container {
    Container { name: name.into(), image: Some("img:1".into()), ..Container::default() }
}

/// A pod and what is known of it: by default set up, with a sandbox, and nothing in it.
#[derive(Clone, Debug)]
struct Case {
    desired: DesiredPod,
    seen: Observed,
    at: u64,
}

fn pod(containers: &[&str]) -> Case {
    let mut pod = k8s_openapi::api::core::v1::Pod::default();
    pod.metadata.name = Some("p".into());
    pod.metadata.namespace = Some("n".into());
    pod.metadata.uid = Some("u".into());
    pod.spec =
        Some(PodSpec { containers: containers.iter().map(|name| container(name)).collect(), ..PodSpec::default() });
    let image = ImageKey::of(&container("x"));
    let ready = ImageState::Ready { id: "sha".into(), uid: None, username: String::new() };
    let memory = Memory {
        cgroup_ready: true,
        volumes: VolumesState::Mounted,
        started_at: Some(at(0)),
        images: [(image, ready)].into(),
        ..Memory::default()
    };
    let sandbox = Sandbox { id: "s0".into(), ready: true, ips: vec!["10.0.0.2".into()], ..Sandbox::default() };
    let seen = Observed { sandboxes: vec![sandbox], network_ready: true, memory, ..Observed::default() };
    Case { desired: DesiredPod { pod: pod.into(), gone: false, ended: None, released: false }, seen, at: 100 }
}

impl Case {
    fn edit(mut self, change: impl FnOnce(&mut k8s_openapi::api::core::v1::Pod)) -> Self {
        change(std::sync::Arc::make_mut(&mut self.desired.pod));
        self
    }

    fn spec(self, change: impl FnOnce(&mut PodSpec)) -> Self {
        self.edit(|pod| change(pod.spec.as_mut().unwrap()))
    }

    fn policy(self, policy: &str) -> Self {
        self.spec(|spec| spec.restart_policy = Some(policy.into()))
    }

    fn init(self, name: &str) -> Self {
        self.spec(|spec| spec.init_containers.get_or_insert_default().push(container(name)))
    }

    fn sidecar(self, name: &str) -> Self {
        let sidecar = Container { restart_policy: Some("Always".into()), ..container(name) };
        self.spec(|spec| spec.init_containers.get_or_insert_default().push(sidecar))
    }

    fn deleted(self, grace: i64) -> Self {
        self.edit(|pod| {
            pod.metadata.deletion_timestamp = Some(Time(at(0)));
            pod.metadata.deletion_grace_period_seconds = Some(grace);
        })
    }

    fn seen(mut self, change: impl FnOnce(&mut Observed)) -> Self {
        change(&mut self.seen);
        self
    }

    fn memory(self, change: impl FnOnce(&mut Memory)) -> Self {
        self.seen(|seen| change(&mut seen.memory))
    }

    fn instance(self, name: &str, change: impl FnOnce(&mut Instance)) -> Self {
        let count = u32::try_from(self.seen.containers.iter().filter(|i| i.name == name).count()).unwrap();
        let mut instance = Instance {
            id: format!("{name}{count}"),
            name: name.into(),
            sandbox_id: "s0".into(),
            restart_count: count,
            hash: Some(container_hash(&container(name))),
            created_at: at(i64::from(count)),
            ..Instance::default()
        };
        change(&mut instance);
        self.seen(|seen| seen.containers.insert(0, instance))
    }

    fn runs(self, name: &str) -> Self {
        self.instance(name, |i| i.state = InstanceState::Running)
    }

    /// Ended with a code at second 100, which is now unless [`Case::at`] says otherwise.
    fn exited(self, name: &str, code: i32) -> Self {
        self.instance(name, |i| {
            (i.state, i.exit_code, i.finished_at) = (InstanceState::Exited, code, Some(at(100)));
        })
    }

    fn at(mut self, second: u64) -> Self {
        self.at = second;
        self
    }

    fn plan(&self) -> Plan {
        plan(&self.desired, &self.seen, LONGEST, now(self.at))
    }
}

/// The steps in short.
fn short(plan: &Plan) -> String {
    let one = |step: &Step| match step {
        Step::MakeCgroup => "cgroup".to_owned(),
        Step::MountVolumes => "volumes".into(),
        Step::ReportNetworkNotReady => "no-network".into(),
        Step::RunSandbox { attempt, changed } => format!("sandbox-{attempt}{}", if *changed { "-changed" } else { "" }),
        Step::StopSandbox { id } => format!("stop-sandbox-{id}"),
        Step::FindImage(key) => format!("find-{}", key.image),
        Step::LookForImage(key) => format!("look-{}", key.image),
        Step::CreateContainer { name, restart_count, .. } => format!("create-{name}-{restart_count}"),
        Step::StartContainer { name, id } => {
            format!("start-{name}{}", id.as_ref().map(|id| format!("-{id}")).unwrap_or_default())
        }
        Step::RunPreStop { name, .. } => format!("hook-{name}"),
        Step::StopContainer(stop) => format!("stop-{}", stop.name),
        Step::ShortenGrace { id, .. } => format!("shorten-{id}"),
        Step::Resize { running } => {
            format!("resize{}", running.iter().map(|(name, _)| format!("-{name}")).collect::<String>())
        }
        Step::RemoveContainer { id, .. } => format!("remove-{id}"),
        Step::RemoveSandbox { id } => format!("remove-sandbox-{id}"),
        Step::TearDown => "tear-down".into(),
        Step::Report => "report".into(),
        Step::RemoveEverything => "remove-everything".into(),
    };
    plan.steps.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check(row: &str, case: Case, expected: &str) -> Plan {
    let plan = case.plan();
    assert_eq!(short(&plan), expected, "{row}: {plan:#?}");
    plan
}

#[test]
fn a_new_pod_is_set_up_in_order() {
    // A1.8, A2.20
    let fresh = pod(&["a"]).seen(|s| s.sandboxes.clear()).memory(|m| {
        (m.cgroup_ready, m.volumes) = (false, VolumesState::Unknown);
    });
    check("A1.8", fresh.clone(), "cgroup volumes sandbox-0");
    check("A1.8", fresh.clone().memory(|m| m.images.clear()), "cgroup volumes sandbox-0 look-img:1");
    let always = |s: &mut PodSpec| s.containers[0].image_pull_policy = Some("Always".into());
    check("A2.20", fresh.spec(always).memory(|m| m.images.clear()), "cgroup volumes sandbox-0");
    check("A1.8", pod(&["a", "b"]), "create-a-0 start-a create-b-0 start-b");
    let no_image = pod(&["a"]).memory(|m| m.images.clear());
    check("A1.8", no_image, "find-img:1");
}

#[test]
fn a_pod_that_is_over_is_not_set_up_again() {
    // A1.8
    for phase in ["Succeeded", "Failed"] {
        let over = pod(&["a"]).seen(|s| s.sandboxes.clear()).edit(|pod| {
            pod.status = Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() });
        });
        let fresh = over.memory(|m| (m.cgroup_ready, m.volumes) = (false, VolumesState::Unknown));
        check("A1.8", fresh, "tear-down");
    }
}

#[test]
fn missing_volumes_hold_everything_up() {
    // A1.8
    let failed = |retry_at| {
        let retry_at = Duration::from_secs(retry_at);
        pod(&["a"]).memory(|m| m.volumes = VolumesState::Failed { message: String::new(), retry_at })
    };
    assert_eq!(check("A1.8", failed(101), "").wake_at, Some(Duration::from_secs(101)));
    check("A1.8", failed(100), "volumes");
}

#[test]
fn without_network_only_host_network_pods_start() {
    // A1.8
    let down = pod(&["a"]).seen(|s| (s.sandboxes, s.network_ready) = (Vec::new(), false));
    check("A1.8", down.clone(), "no-network");
    check("A1.8", down.clone().spec(|s| s.host_network = Some(true)), "sandbox-0");
    // Nothing is made for a pod that could get no sandbox.
    let fresh = |m: &mut Memory| (m.cgroup_ready, m.volumes) = (false, VolumesState::Unknown);
    check("A1.8", down.clone().memory(fresh), "no-network");
    check("A1.8", down.clone().memory(fresh).spec(|s| s.host_network = Some(true)), "cgroup volumes sandbox-0");
    let told = |m: &mut Memory| {
        let retry_at = Duration::from_secs(101);
        let (reason, message) = ("NetworkNotReady".into(), String::new());
        m.sandbox_failure = Some(Failure { reason, message, retry_at });
    };
    assert_eq!(check("A1.8", down.clone().memory(told), "").wake_at, Some(Duration::from_secs(101)));
    check("A1.8", down.memory(told).at(101), "no-network");
    // What runs goes on.
    let runs = pod(&["a", "b"]).seen(|s| s.network_ready = false).runs("a");
    check("A1.8", runs, "create-b-0 start-b");
}

#[test]
fn a_lost_sandbox_takes_its_containers_with_it() {
    // A1.17
    let lost = || pod(&["a"]).seen(|s| s.sandboxes[0].ready = false);
    check("A1.17", lost().runs("a"), "stop-a");
    check("A1.17", lost().exited("a", 137), "sandbox-1-changed");
    let mode = pod(&["a"]).spec(|s| s.host_network = Some(true));
    check("A1.17", mode.clone().runs("a"), "stop-a");
    check("A1.17", mode, "stop-sandbox-s0 sandbox-1-changed");
    let no_address = pod(&["a"]).seen(|s| s.sandboxes[0].ips.clear());
    check("A1.17", no_address, "stop-sandbox-s0 sandbox-1-changed");
    check("A1.17", lost().policy("Never").exited("a", 1), "tear-down");
    check("A1.17", lost().policy("OnFailure").exited("a", 0), "tear-down");
    check("A1.17", lost().policy("OnFailure").exited("a", 1), "sandbox-1-changed");
}

#[test]
fn init_containers_run_again_in_a_new_sandbox() {
    // A3.2
    let renewed = pod(&["a"]).init("i").exited("i", 0).exited("a", 137).seen(|s| {
        s.sandboxes.insert(0, Sandbox { id: "s1".into(), attempt: 1, ..s.sandboxes[0].clone() });
        s.sandboxes[1].ready = false;
    });
    check("A3.2", renewed.at(200), "create-i-1 start-i");
}

#[test]
fn created_but_not_started_is_a_state_of_its_own() {
    // A2.1: the container is started, not made a second time.
    check("A2.1", pod(&["a"]).instance("a", |_| {}), "start-a-a0");
}

#[test]
fn init_containers_run_one_at_a_time() {
    // A3.1
    let two = || pod(&["a"]).init("i").init("j");
    check("A3.1", two(), "create-i-0 start-i");
    check("A3.1", two().runs("i"), "");
    check("A3.1", two().exited("i", 0), "create-j-0 start-j");
    check("A3.1", two().exited("i", 0).exited("j", 0), "create-a-0 start-a");
    for policy in ["Always", "OnFailure"] {
        let failed = || two().policy(policy).exited("i", 1);
        check("A3.1", failed(), "create-i-1 start-i");
        let again = failed().memory(|m| {
            m.restarts.insert("i".into(), Backoff::grown(None, at(100), at(100), LONGEST));
        });
        let plan = check("A3.1", again.clone(), "");
        assert_eq!(
            (plan.waiting["i"].reason.as_str(), plan.wake_at),
            ("CrashLoopBackOff", Some(Duration::from_secs(110)))
        );
        check("A3.1", again.at(110), "create-i-1 start-i");
    }
    check("A3.1", two().policy("Never").exited("i", 1).seen(|s| s.sandboxes[0].ready = false), "tear-down");
}

#[test]
fn a_removed_init_container_is_not_run_again() {
    // A3.2
    check("A3.2", pod(&["a"]).init("i").init("j").runs("j"), "");
    check("A3.2", pod(&["a"]).init("i").runs("a"), "");
    check("A3.2", pod(&["a"]).init("i").exited("i", 0).runs("a"), "");
    // Nor when what came after it has ended, and starts again.
    check("A3.2", pod(&["a"]).init("i").exited("a", 1), "create-a-1 start-a");
    check("A3.2", pod(&["a"]).init("i").sidecar("s").exited("s", 1).runs("a"), "create-s-1 start-s");
}

/// The only stop of a plan: message, seconds of grace, whether the container is made anew whatever its policy says.
#[track_caller]
fn stopped(row: &str, case: Case) -> (String, u64, bool) {
    let at = Duration::from_secs(case.at);
    let plan = case.plan();
    let stops = plan.steps.iter().filter_map(|step| match step {
        Step::StopContainer(stop) => Some((stop.message.clone(), (stop.deadline - at).as_secs(), stop.recreate)),
        _ => None,
    });
    let stops: Vec<_> = stops.collect();
    assert_eq!(stops.len(), 1, "{row}: {plan:#?}");
    stops[0].clone()
}

fn dead(name: &str, started: bool) -> impl FnOnce(&mut Memory) {
    move |m| {
        m.probes.insert(name.into(), ProbeVerdict { started, ready: false, dead: true });
    }
}

#[test]
fn a_container_that_its_probes_gave_up_on_is_stopped() {
    // A4.9, A5.4, A5.5, A5.7
    let probe = |grace| {
        Some(k8s_openapi::api::core::v1::Probe { termination_grace_period_seconds: grace, ..Default::default() })
    };
    let with = |liveness, startup| {
        pod(&["a"]).runs("a").spec(move |s| {
            (s.containers[0].liveness_probe, s.containers[0].startup_probe) = (probe(liveness), probe(startup));
        })
    };
    let again = |kind: &str| format!("Container a failed {kind} probe, will be restarted");
    assert_eq!(stopped("A5.5", with(None, None).memory(dead("a", true))), (again("liveness"), 30, false));
    assert_eq!(stopped("A5.4", with(None, None).memory(dead("a", false))), (again("startup"), 30, false));
    assert_eq!(stopped("A5.7", with(Some(5), Some(9)).memory(dead("a", true))).1, 5);
    assert_eq!(stopped("A5.7", with(Some(5), Some(9)).memory(dead("a", false))).1, 9);
    let never = with(None, None).policy("Never").memory(dead("a", true));
    assert_eq!(stopped("A4.9", never).0, "Container a failed liveness probe");
    let sidecar = pod(&["a"]).sidecar("s").runs("s").runs("a").memory(dead("s", true));
    assert_eq!(stopped("A4.9", sidecar).0, "Init container s failed liveness probe");
}

#[test]
fn a_hook_after_the_start_holds_the_next_containers_back() {
    // A4.1
    let hooked = |c: &mut Container| {
        let post_start = Some(k8s_openapi::api::core::v1::LifecycleHandler::default());
        c.lifecycle = Some(k8s_openapi::api::core::v1::Lifecycle { post_start, ..Default::default() });
    };
    let two = || pod(&["a", "b"]).spec(|s| hooked(&mut s.containers[0]));
    let under_way = |m: &mut Memory| drop(m.post_start.insert("a".into(), "a0".into()));
    check("A4.1", two(), "create-a-0 start-a");
    check("A4.1", two().runs("a").memory(under_way), "");
    check("A4.1", two().runs("a"), "create-b-0 start-b");
    let sidecar = || pod(&["b"]).sidecar("a").runs("a");
    check("A4.1", sidecar().memory(under_way), "");
    check("A4.1", sidecar(), "create-b-0 start-b");
}

#[test]
fn containers_have_policies_of_their_own() {
    // A3.10
    let own = |policy: &str| {
        let policy = policy.to_owned();
        move |s: &mut PodSpec| s.containers[0].restart_policy = Some(policy)
    };
    check("A3.10", pod(&["a"]).policy("Never").spec(own("Always")).exited("a", 0), "create-a-1 start-a");
    check("A3.10", pod(&["a", "b"]).spec(own("Never")).exited("a", 1).runs("b"), "");
    check(
        "A3.10",
        pod(&["a"]).spec(own("OnFailure")).exited("a", 0).seen(|s| s.sandboxes[0].ready = false),
        "tear-down",
    );
    check("A3.10", pod(&["a"]).spec(own("OnFailure")).exited("a", 1), "create-a-1 start-a");
    let rules = |s: &mut PodSpec| {
        use k8s_openapi::api::core::v1::{ContainerRestartRule, ContainerRestartRuleOnExitCodes};
        let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: Some(vec![42]) };
        let rule = ContainerRestartRule { action: "Restart".into(), exit_codes: Some(codes) };
        s.containers[0].restart_policy = Some("Never".into());
        s.containers[0].restart_policy_rules = Some(vec![rule]);
    };
    check("A3.10", pod(&["a", "b"]).spec(rules).exited("a", 42).runs("b"), "create-a-1 start-a");
    check("A3.10", pod(&["a", "b"]).spec(rules).exited("a", 43).runs("b"), "");
    // It waits as any other does, and the pod is not over meanwhile.
    let backoff = |m: &mut Memory| {
        m.restarts.insert("a".into(), Backoff::grown(None, at(100), at(100), LONGEST));
    };
    let waits = pod(&["a"]).policy("Never").spec(rules).exited("a", 42).memory(backoff);
    let plan = check("A3.10", waits.clone(), "");
    assert_eq!((plan.waiting["a"].reason.as_str(), &plan.stage), ("CrashLoopBackOff", &Stage::Running));
    check("A3.10", waits.at(110), "create-a-1 start-a");
    // Whom its probes gave up on has not exited yet: no rule counts before that.
    let kills = |s: &mut PodSpec| {
        rules(s);
        s.containers[0].restart_policy_rules.as_mut().unwrap()[0].exit_codes.as_mut().unwrap().values =
            Some(vec![137, 143]);
    };
    let given_up = pod(&["a", "b"]).policy("Always").spec(kills).runs("a").runs("b").memory(dead("a", true));
    assert_eq!(stopped("A3.10", given_up).0, "Container a failed liveness probe");
    let given_up = pod(&["a", "b"]).policy("Never").spec(own("OnFailure")).runs("a").runs("b").memory(dead("a", true));
    assert_eq!(stopped("A3.10", given_up).0, "Container a failed liveness probe, will be restarted");
    let init = pod(&["a"]).init("i").spec(|s| {
        s.init_containers.as_mut().unwrap()[0].restart_policy = Some("Never".into());
    });
    check("A3.10", init.exited("i", 1).seen(|s| s.sandboxes[0].ready = false), "tear-down");
}

#[test]
fn one_exit_may_make_all_start_over() {
    // A3.12
    let rule = |s: &mut PodSpec| {
        use k8s_openapi::api::core::v1::{ContainerRestartRule, ContainerRestartRuleOnExitCodes};
        let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: Some(vec![42]) };
        let rule = ContainerRestartRule { action: "RestartAllContainers".into(), exit_codes: Some(codes) };
        s.containers[0].restart_policy = Some("Never".into());
        s.containers[0].restart_policy_rules = Some(vec![rule]);
    };
    let case = || pod(&["a", "b"]).init("i").sidecar("s").spec(rule).exited("i", 0);
    let ended = case().runs("s").runs("b").exited("a", 42);
    let plan = check("A3.12", ended.clone(), "stop-b stop-s");
    assert!(plan.restarting_all);
    let without_grace =
        |step: &Step| matches!(step, Step::StopContainer(s) if !s.hook && s.deadline == Duration::from_secs(100));
    assert!(plan.steps.iter().all(without_grace), "{plan:#?}");
    let all_dead = case().exited("s", 137).exited("b", 137).exited("a", 42);
    check("A3.12", all_dead, "remove-b0 remove-s0 remove-i0 remove-a0");
    check("A3.12", pod(&["a", "b"]).init("i").sidecar("s").spec(rule), "create-i-0 start-i");
    check("A3.12", case().runs("s").runs("b").exited("a", 41), "");
}

#[test]
fn an_ephemeral_container_sees_the_processes_of_its_target() {
    // A3.7
    let with = |target: Option<&str>| {
        let ephemeral = k8s_openapi::api::core::v1::EphemeralContainer {
            name: "e".into(),
            image: Some("img:1".into()),
            target_container_name: target.map(str::to_owned),
            ..Default::default()
        };
        pod(&["a"]).spec(|s| s.ephemeral_containers = Some(vec![ephemeral]))
    };
    let target = |plan: &Plan| {
        plan.steps.iter().find_map(|step| match step {
            Step::CreateContainer { name, target, .. } if name == "e" => target.clone(),
            _ => None,
        })
    };
    assert_eq!(target(&check("A3.7", with(None).runs("a"), "create-e-0 start-e")), None);
    assert_eq!(target(&check("A3.7", with(Some("a")).runs("a"), "create-e-0 start-e")), Some("a0".into()));
    let missing = with(Some("a")).policy("Never").exited("a", 0).seen(|s| s.containers.clear()).plan();
    assert_eq!(missing.waiting["e"].message, "unable to find target container a");
    check("A3.7", with(None).runs("a").exited("e", 1), "");
    // Also while the pod initializes, and beside what keeps failing; never a second time, whatever its end and the policy.
    check("A3.7", with(None).init("i").runs("i"), "create-e-0 start-e");
    check("A3.7", with(None).policy("Always").runs("a").exited("e", 0), "");
    check("A3.7", with(None).policy("Never").runs("a").runs("e"), "");
    let crashes = with(None).exited("a", 1).memory(|m| {
        m.restarts.insert("a".into(), Backoff::grown(None, at(100), at(100), LONGEST));
    });
    check("A3.7", crashes, "create-e-0 start-e");
}

#[test]
fn what_runs_in_an_older_sandbox_ends_before_anything_is_made() {
    // A1.3, A1.17
    for ready in [false, true] {
        let case = pod(&["a"]).runs("a").seen(|s| {
            let newer = Sandbox { id: "s1".into(), attempt: 1, ..s.sandboxes[0].clone() };
            s.sandboxes.insert(0, newer);
            s.sandboxes[1].ready = ready;
        });
        let plan = check("A1.3", case.clone(), "stop-a");
        let Step::StopContainer(stop) = &plan.steps[0] else { panic!("{plan:#?}") };
        let under_way = Stop { deadline: stop.deadline, hook_only: false };
        let stopping = |m: &mut Memory| {
            m.stops.insert(stop.id.clone(), under_way);
        };
        check("A1.3", case.memory(stopping), "");
    }
    // Beside a newer instance of its own as well.
    check("A1.3", pod(&["a"]).runs("a").exited("a", 1), "stop-a");
    let made_anew = |i: &mut Instance| (i.state, i.hash) = (InstanceState::Created, Some("old".into()));
    check("A1.3", pod(&["a"]).runs("a").instance("a", made_anew), "stop-a");
}

#[test]
fn new_resources_reach_running_containers() {
    // A15.1, A15.16
    use k8s_openapi::api::core::v1::{ContainerResizePolicy, ResourceRequirements};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    let resources = |cpu: &str| ResourceRequirements {
        requests: Some([("cpu".to_owned(), Quantity(cpu.to_owned()))].into()),
        ..ResourceRequirements::default()
    };
    let case = |policy: &str| {
        let policy = ContainerResizePolicy { resource_name: "cpu".into(), restart_policy: policy.to_owned() };
        pod(&["a"])
            .spec(|s| {
                s.containers[0].resources = Some(resources("2"));
                s.containers[0].resize_policy = Some(vec![policy]);
            })
            .memory(|m| drop(m.resize.allocation.actuated.insert("a".into(), resources("1"))))
    };
    check("A15.1", case("NotRequired").runs("a"), "resize-a");
    check(
        "A15.1",
        case("NotRequired").runs("a").memory(|m| {
            let retry_at = Duration::from_secs(101);
            m.resize.error = Some(crate::pod::resize::Failed { message: String::new(), retry_at });
        }),
        "",
    );
    let restart = stopped("A15.1", case("RestartContainer").runs("a"));
    assert_eq!(restart, ("Container a resize requires restart".into(), 30, true));
    check("A15.1", case("RestartContainer"), "resize create-a-0 start-a");
    let whole = pod(&["a"]).runs("a").memory(|m| m.resize.allocation.allocated_pod = Some(resources("2")));
    check("A15.16", whole.clone(), "resize");
    let done = |m: &mut Memory| m.resize.allocation.actuated_pod = Some(resources("2"));
    check("A15.16", whole.memory(done), "");
}

#[test]
fn a_sidecar_lets_the_next_one_start_when_it_has_started() {
    // A3.3
    let with = || pod(&["a"]).sidecar("s");
    check("A3.3", with(), "create-s-0 start-s");
    check("A3.3", with().runs("s"), "create-a-0 start-a");
    let probed = |started| {
        with().runs("s").memory(|m| {
            m.probes.insert("s".into(), ProbeVerdict { started, ready: false, dead: false });
        })
    };
    check("A3.3", probed(false), "");
    check("A3.3", probed(true), "create-a-0 start-a");
    check("A3.3", with().policy("Never").exited("s", 1).runs("a"), "create-s-1 start-s");
}

#[test]
fn sidecars_do_not_keep_a_pod_from_completing() {
    // A3.5
    let done = pod(&["a"]).sidecar("s").policy("Never").exited("a", 0).runs("s");
    let plan = check("A3.5", done, "stop-s");
    assert_eq!(plan.stage.cause(), Some(&Cause::Completed));
    let failed = pod(&["a"]).sidecar("s").policy("OnFailure").exited("a", 1).runs("s");
    check("A3.5", failed, "create-a-1 start-a");
    let one_left = pod(&["a", "b"]).sidecar("s").policy("Never").exited("a", 1).runs("b").runs("s");
    check("A3.5", one_left, "");
}

#[test]
fn the_policy_decides_about_restarts() {
    // A3.8
    for (policy, code, expected) in [
        ("Always", 0, "create-a-1 start-a"),
        ("Always", 1, "create-a-1 start-a"),
        ("OnFailure", 1, "create-a-1 start-a"),
        ("OnFailure", 0, "stop-sandbox-s0"),
        ("Never", 1, "stop-sandbox-s0"),
    ] {
        check("A3.8", pod(&["a"]).policy(policy).exited("a", code), expected);
    }
    check("A3.8", pod(&["a", "b"]).policy("Never").exited("a", 1).runs("b"), "");
}

#[test]
fn restarts_wait_longer_each_time() {
    // A3.9
    let mut backoff: Option<Backoff> = None;
    for wait in [0, 10, 20, 40, 80, 160, 300, 300] {
        let mut case = pod(&["a"]).exited("a", 1);
        if let Some(backoff) = backoff {
            case.seen.memory.restarts.insert("a".into(), backoff);
        }
        if wait > 0 {
            let plan = check("A3.9", case.clone().at(99 + wait), "");
            assert_eq!(plan.wake_at, Some(Duration::from_secs(100 + wait)));
            let waiting = &plan.waiting["a"];
            let delay = go_seconds(Duration::from_secs(wait));
            assert_eq!(waiting.reason, "CrashLoopBackOff");
            assert_eq!(waiting.message, format!("back-off {delay} restarting failed container=a pod=p_n(u)"));
        }
        check("A3.9", case.at(100 + wait), "create-a-1 start-a");
        backoff = Some(Backoff::grown(backoff.as_ref(), at(100), at(100), LONGEST));
    }

    // Another image, or other resources, need not wait.
    let waits = || {
        pod(&["a"]).exited("a", 1).memory(|m| {
            m.restarts.insert("a".into(), Backoff::grown(None, at(100), at(100), LONGEST));
        })
    };
    check("A3.9", waits(), "");
    check("A3.9", waits().spec(|s| s.containers[0].image = Some("img:2".into())), "find-img:2");
    let resources = |cpu: &str| {
        let amounts = serde_json::json!({ "requests": { "cpu": cpu } });
        serde_json::from_value::<k8s_openapi::api::core::v1::ResourceRequirements>(amounts).unwrap()
    };
    let resized = |before: &str| {
        let before = resources(before);
        waits()
            .spec(|s| s.containers[0].resources = Some(resources("1")))
            .memory(|m| drop(m.resize.allocation.actuated.insert("a".into(), before)))
    };
    check("A3.9", resized("1"), "");
    check("A3.9", resized("2"), "resize create-a-1 start-a");
}

#[test]
fn a_new_image_makes_a_new_container() {
    // A1.16, A3.13, A4.9
    let changed = |case: Case| case.spec(|s| s.containers[0].image = Some("img:2".into()));
    let running = changed(pod(&["a"]).policy("Never").runs("a"));
    let plan = check("A1.16", running, "stop-a");
    let Step::StopContainer(stop) = &plan.steps[0] else { panic!("a stop") };
    assert_eq!(stop.message, "Container a definition changed, will be restarted");
    assert!(stop.recreate);
    let stopped = changed(pod(&["a"]).policy("Never").exited("a", 0)).memory(|m| m.recreate = ["a".into()].into());
    check("A3.13", stopped.clone(), "find-img:2");
    let there = ImageState::Ready { id: "sha2".into(), uid: None, username: String::new() };
    let image = ImageKey::of(&Container { image: Some("img:2".into()), ..container("a") });
    let stopped = stopped.memory(|m| _ = m.images.insert(image, there));
    check("A1.16", stopped, "create-a-1 start-a");
    let elsewhere = pod(&["a"]).runs("a").spec(|s| s.containers[0].working_dir = Some("/x".into()));
    check("A1.16", elsewhere, "");
    let init = pod(&["a"]).init("i").runs("i").spec(|s| {
        s.init_containers.as_mut().unwrap()[0].image = Some("img:2".into());
    });
    check("A3.13", init, "");
    for policy in ["Always", "OnFailure", "Never"] {
        check("A3.13", changed(pod(&["a"]).policy(policy).runs("a")), "stop-a");
        check("A3.13", changed(pod(&["a"]).policy(policy).runs("a").deleted(30)), "stop-a");
    }
    let ending = changed(pod(&["a"]).runs("a").deleted(30)).plan();
    let Step::StopContainer(stop) = &ending.steps[0] else { panic!("a stop") };
    assert!(!stop.recreate && !stop.message.contains("definition"), "it ends, whatever its image: {}", stop.message);
    check("A3.13", changed(pod(&["a"]).exited("a", 0).deleted(30)), "stop-sandbox-s0");
    let other = |case: Case| case.spec(|s| s.init_containers.as_mut().unwrap()[0].image = Some("img:2".into()));
    let plan = check("A3.13", other(pod(&["a"]).policy("Never").sidecar("s").runs("s").runs("a")), "stop-s");
    let Step::StopContainer(stop) = &plan.steps[0] else { panic!("a stop") };
    assert_eq!(stop.message, "Init container s definition changed");
    check("A3.13", other(pod(&["a"]).init("i").exited("i", 0).runs("a")), "");
    check("A3.13", other(pod(&["a"]).init("i").exited("i", 0)), "create-a-0 start-a");
}

#[test]
fn images_that_do_not_come_wait() {
    // A14.2
    let failed = |now_at: u64| {
        let failure = PullFailure {
            reason: "ErrImagePull",
            message: "no".into(),
            pulled: true,
            backoff_at: Duration::from_secs(105),
            retry_at: Duration::from_secs(110),
            backoff: Backoff::grown(None, at(100), at(100), LONGEST),
        };
        let key = ImageKey::of(&container("a"));
        pod(&["a", "b"]).memory(|m| drop(m.images.insert(key, ImageState::Failed(failure)))).at(now_at)
    };
    let plan = check("A14.2", failed(101), "");
    assert_eq!((plan.waiting["a"].reason.as_str(), plan.wake_at), ("ErrImagePull", Some(Duration::from_secs(105))));
    let plan = check("A14.2", failed(105), "");
    assert_eq!(plan.waiting["a"].reason, "ImagePullBackOff");
    assert_eq!(plan.waiting["a"].message, "Back-off pulling image \"img:1\": ErrImagePull: no");
    check("A14.2", failed(110), "find-img:1");
}

#[test]
fn a_container_that_cannot_be_made_is_tried_again() {
    // A8.5
    let retry_at = Duration::from_secs(110);
    let failure = Failure { reason: "CreateContainerConfigError".into(), message: "m".into(), retry_at };
    let case = pod(&["a", "b"]).memory(|m| drop(m.failures.insert("a".into(), failure)));
    let plan = check("A8.5", case.clone(), "create-b-0 start-b");
    assert_eq!(plan.waiting["a"].reason, "CreateContainerConfigError");
    check("A8.5", case.at(110), "create-a-0 start-a create-b-0 start-b");
}

#[test]
fn the_images_of_volumes_are_there_before_the_container() {
    // A14.1, A14.2
    let with_volume = || {
        pod(&["a"]).spec(|spec| {
            let volume = serde_json::json!({ "name": "v", "image": { "reference": "data:1", "pullPolicy": "Always" } });
            spec.volumes = Some(vec![serde_json::from_value(volume).unwrap()]);
            let mount = serde_json::json!([{ "name": "v", "mountPath": "/v" }]);
            spec.containers[0].volume_mounts = serde_json::from_value(mount).unwrap();
        })
    };
    check("A14.2", with_volume(), "find-data:1");
    let key = ImageKey { image: "data:1".into(), policy: PullPolicy::Always };
    let there = ImageState::Ready { id: "d".into(), uid: None, username: String::new() };
    check("A14.2", with_volume().memory(|m| drop(m.images.insert(key, there))), "create-a-0 start-a");
}

#[test]
fn one_dead_instance_is_kept() {
    // A14.9, A20.6
    let case = pod(&["a"]).exited("a", 1).exited("a", 1).exited("a", 1).runs("a");
    check("A14.9", case, "remove-a1 remove-a0");
}

#[test]
fn restarts_are_counted_on_after_the_runtime_has_forgotten() {
    // A3.15
    let status = k8s_openapi::api::core::v1::ContainerStatus {
        name: "a".into(),
        restart_count: 4,
        container_id: Some("containerd://x".into()),
        ..Default::default()
    };
    let case = pod(&["a"]).edit(|pod| {
        pod.status = Some(PodStatus { container_statuses: Some(vec![status]), ..PodStatus::default() });
    });
    check("A3.15", case.clone(), "create-a-5 start-a");
    let no_sandbox = |s: &mut Observed| s.sandboxes.clear();
    for policy in ["Always", "OnFailure"] {
        check("A3.15", case.clone().policy(policy).seen(no_sandbox), "sandbox-0");
        check("A3.15", case.clone().policy(policy).init("i").init("j"), "create-i-0 start-i");
        check("A3.15", case.clone().policy(policy).init("i").init("j").exited("i", 0), "create-j-0 start-j");
    }
}
