//! What holds of the planner whatever it is shown.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;
use crate::pod::policy::restarts_after;

/// Does what a step would do, in the way it usually goes, or fails.
fn act(case: &mut Case, plan: &Plan, fails: bool) {
    let clock = now(case.at);
    let later = clock.monotonic + Duration::from_secs(10);
    case.seen.memory.stage = plan.stage.clone();
    for step in &plan.steps {
        let memory = &mut case.seen.memory;
        match step {
            Step::MakeCgroup => memory.cgroup_ready = true,
            Step::MountVolumes if fails => {
                memory.volumes = VolumesState::Failed { message: String::new(), retry_at: later };
                return;
            }
            Step::MountVolumes => memory.volumes = VolumesState::Mounted,
            Step::ReportNetworkNotReady => {
                memory.sandbox_failure =
                    Some(Failure { reason: String::new(), message: String::new(), retry_at: later });
            }
            Step::RunSandbox { attempt, .. } => {
                let host_network = case.desired.host_network();
                let sandbox = Sandbox {
                    id: format!("n{attempt}"),
                    attempt: *attempt,
                    ready: true,
                    host_network,
                    handler: String::new(),
                    ips: vec!["10.0.0.3".into()],
                    created_at: clock.wall,
                };
                case.seen.sandboxes.insert(0, sandbox);
            }
            Step::StopSandbox { id } => {
                case.seen.sandboxes.iter_mut().filter(|s| s.id == *id).for_each(|s| s.ready = false);
            }
            Step::FindImage(key) | Step::LookForImage(key) => {
                let state = ImageState::Ready { id: "sha".into(), uid: None, username: String::new() };
                memory.images.insert(key.clone(), state);
            }
            Step::Resize { running } => {
                for (name, _) in running {
                    let given = case.desired.container(name).and_then(|(_, c)| c.resources.clone()).unwrap_or_default();
                    memory.resize.allocation.actuated.insert(name.clone(), given);
                }
                let allocation = &mut memory.resize.allocation;
                allocation.actuated_pod.clone_from(&allocation.allocated_pod);
            }
            Step::CreateContainer { name, restart_count, restarts, image, .. } => {
                memory.images.remove(image);
                memory.recreate.remove(name);
                if let Some(ended) = restarts {
                    let grown = Backoff::grown(memory.restarts.get(name), *ended, clock.wall, LONGEST);
                    memory.restarts.insert(name.clone(), grown);
                }
                let spec = case.desired.container(name).unwrap().1;
                let instance = Instance {
                    id: format!("{name}-{restart_count}-{}", case.at),
                    name: name.clone(),
                    sandbox_id: case.seen.sandboxes[0].id.clone(),
                    restart_count: *restart_count,
                    hash: Some(container_hash(&spec)),
                    created_at: clock.wall,
                    ..Instance::default()
                };
                case.seen.containers.insert(0, instance);
            }
            Step::StartContainer { name, .. } if fails => {
                let failure = Failure { reason: String::new(), message: String::new(), retry_at: later };
                memory.failures.insert(name.clone(), failure);
            }
            Step::StartContainer { name, id } => {
                memory.failures.remove(name);
                let plain =
                    case.desired.init_containers().iter().any(|c| c.name == *name) && !case.desired.is_sidecar(name);
                let is = |i: &&mut Instance| i.name == *name && id.as_ref().is_none_or(|id| *id == i.id);
                let made = case.seen.containers.iter_mut().find(is).unwrap();
                made.state = if plain { InstanceState::Exited } else { InstanceState::Running };
                made.finished_at = plain.then_some(clock.wall);
            }
            Step::StopContainer(stop) => {
                if stop.recreate {
                    memory.recreate.insert(stop.name.clone());
                }
                for instance in case.seen.containers.iter_mut().filter(|i| i.id == stop.id) {
                    (instance.state, instance.exit_code) = (InstanceState::Exited, 137);
                    instance.finished_at = Some(clock.wall);
                }
            }
            Step::RunPreStop { id, deadline, .. } => {
                memory.stops.insert(id.clone(), Stop { deadline: *deadline, hook_only: true });
            }
            Step::ShortenGrace { id, deadline } => {
                if let Some(stop) = memory.stops.get_mut(id) {
                    stop.deadline = *deadline;
                }
            }
            Step::RemoveContainer { id, .. } => case.seen.containers.retain(|i| i.id != *id),
            Step::RemoveSandbox { id } => case.seen.sandboxes.retain(|s| s.id != *id),
            Step::TearDown => memory.torn_down = true,
            Step::Report => memory.reported = true,
            Step::RemoveEverything => {
                case.seen.containers.clear();
                case.seen.sandboxes.clear();
            }
        }
    }
}

prop_compose! {
    fn any_instance()(
        name in prop::sample::select(vec!["a", "b", "i", "s", "e", "stranger"]),
        state in prop::sample::select(vec![
            InstanceState::Created, InstanceState::Running, InstanceState::Exited, InstanceState::Unknown,
        ]),
        code in 0..3_i32,
        count in 0..3_u32,
        sandbox in prop::sample::select(vec!["s0", "s1"]),
        same_hash in any::<bool>(),
    ) -> Instance {
        Instance {
            id: format!("{name}-{count}-{sandbox}-{code}"),
            name: name.into(),
            sandbox_id: sandbox.into(),
            state,
            restart_count: count,
            hash: Some(if same_hash { container_hash(&container(name)) } else { "old".into() }),
            created_at: at(i64::from(count)),
            finished_at: (state == InstanceState::Exited).then(|| at(50)),
            exit_code: code,
            ..Instance::default()
        }
    }
}

prop_compose! {
    fn any_case()(
        policy in prop::sample::select(vec!["Always", "OnFailure", "Never"]),
        deleted in any::<bool>(),
        host_network in any::<bool>(),
        ephemeral in any::<bool>(),
        ready in any::<(bool, bool)>(),
        sandboxes in 0..3_usize,
        mut instances in prop::collection::vec(any_instance(), 0..6),
    ) -> Case {
        let mut case = pod(&["a", "b"]).init("i").sidecar("s").policy(policy);
        case = case.spec(|s| s.host_network = Some(host_network));
        if deleted {
            case = case.deleted(30);
        }
        if ephemeral {
            let container = k8s_openapi::api::core::v1::EphemeralContainer {
                name: "e".into(),
                image: Some("img:1".into()),
                ..Default::default()
            };
            case = case.spec(|s| s.ephemeral_containers = Some(vec![container]));
        }
        let sandbox = |id: &str, attempt, ready| Sandbox {
            id: id.into(), attempt, ready, ips: vec!["10.0.0.2".into()], ..Sandbox::default()
        };
        let mut all = vec![sandbox("s1", 1, ready.0), sandbox("s0", 0, ready.1)];
        all.truncate(sandboxes);
        instances.retain(|i| all.iter().any(|s| s.id == i.sandbox_id));
        instances.sort_by(|a, b| b.restart_count.cmp(&a.restart_count).then_with(|| a.id.cmp(&b.id)));
        instances.dedup_by(|a, b| a.id == b.id);
        case.seen(|s| (s.sandboxes, s.containers) = (all, instances))
    }
}

proptest! {
    /// From any observed state, planning comes to rest: after some steps there is nothing to do but to wait.
    #[test]
    fn planning_comes_to_rest(mut case in any_case(), failures in prop::collection::vec(any::<bool>(), 3)) {
        for round in 0..60 {
            let plan = case.plan();
            if plan.steps.is_empty() && plan.stage == case.seen.memory.stage {
                match plan.wake_at {
                    None => return Ok(()),
                    Some(wake) => {
                        prop_assert!(wake > now(case.at).monotonic, "it would spin: {plan:#?}");
                        case.at = wake.as_secs();
                    }
                }
            }
            act(&mut case, &plan, failures.get(round).copied().unwrap_or_default());
        }
        prop_assert!(false, "it goes on for ever: {:#?}", case.plan());
    }

    /// A deleted pod ends, whatever is the matter with it.
    #[test]
    fn a_deleted_pod_always_ends(case in any_case()) {
        let mut case = case.deleted(5);
        for _ in 0..60 {
            let plan = case.plan();
            if plan.steps.is_empty() && let Some(wake) = plan.wake_at {
                case.at = wake.as_secs().max(case.at + 1);
            }
            act(&mut case, &plan, false);
            if case.seen.memory.reported {
                return Ok(());
            }
        }
        prop_assert!(false, "it never ends: {:#?}", case.plan());
    }

    /// No container is made or started while another instance of it runs, or may run.
    #[test]
    fn there_are_never_two_running_copies(case in any_case(), failures in prop::collection::vec(any::<bool>(), 3)) {
        // A1.3, A3.8
        follow(case, &failures, |case, plan| {
            let mut names: Vec<&str> = plan.steps.iter().filter_map(made).collect();
            let number = names.len();
            names.sort_unstable();
            names.dedup();
            prop_assert_eq!(names.len(), number, "twice in one plan: {:#?}", plan);
            for name in names {
                prop_assert!(!case.seen.running().any(|i| i.name == name), "{name} runs: {plan:#?}");
            }
            Ok(())
        })?;
    }

    /// What has ended runs again only where the policy says so, and an ephemeral container never.
    #[test]
    fn nothing_restarts_against_the_policy(case in any_case(), failures in prop::collection::vec(any::<bool>(), 3)) {
        // A3.7, A3.8
        follow(case, &failures, |case, plan| {
            let joins_again = plan.steps.iter().filter_map(made).any(|name| name == "e" && case.seen.newest(name).is_some());
            prop_assert!(!joins_again, "{plan:#?}");
            for name in plan.steps.iter().filter_map(made).filter(|name| ["a", "b"].contains(name)) {
                let sandbox = case.seen.sandbox().map(|s| s.id.clone()).unwrap_or_default();
                let last = case.seen.newest_in(&sandbox, name).or_else(|| case.seen.newest(name));
                let Some(last) = last.filter(|i| i.state == InstanceState::Exited) else { continue };
                let spec = case.desired.container(name).unwrap().1;
                let allowed = restarts_after(case.desired.restart_policy(), &spec, last.exit_code)
                    || case.seen.memory.recreate.contains(name);
                prop_assert!(allowed, "{name} exited with {}: {plan:#?}", last.exit_code);
            }
            Ok(())
        })?;
    }

    /// A pod that has begun to end goes on to its end, and nothing new begins in it.
    #[test]
    fn the_way_to_the_end_is_one_way(case in any_case(), failures in prop::collection::vec(any::<bool>(), 3)) {
        // A1.3, A2.2
        let mut reached = 0;
        follow(case, &failures, |_, plan| {
            let stage = match &plan.stage {
                Stage::Running => 0,
                Stage::Terminating { .. } => 1,
                Stage::CleaningUp { .. } => 2,
                Stage::Finished { .. } => 3,
            };
            prop_assert!(stage >= reached, "back from {reached}: {plan:#?}");
            reached = stage;
            let begins = |step: &Step| {
                matches!(
                    step,
                    Step::MakeCgroup
                        | Step::MountVolumes
                        | Step::RunSandbox { .. }
                        | Step::FindImage(_)
                        | Step::LookForImage(_)
                        | Step::CreateContainer { .. }
                        | Step::StartContainer { .. }
                        | Step::Resize { .. }
                )
            };
            prop_assert!(stage == 0 || !plan.steps.iter().any(begins), "{plan:#?}");
            Ok(())
        })?;
    }

    /// Sidecars after the others, sandboxes after containers, volumes after sandboxes, the report after volumes.
    #[test]
    fn what_ends_ends_in_order(case in any_case(), failures in prop::collection::vec(any::<bool>(), 3)) {
        // A1.10, A1.11, A3.4, A4.6
        follow(case.deleted(30), &failures, |case, plan| {
            let runs = |name: &str| case.seen.running().any(|i| i.name == name);
            for step in &plan.steps {
                match step {
                    Step::StopContainer(stop) if stop.name == "s" && stop.deadline > now(case.at).monotonic => {
                        prop_assert!(!runs("a") && !runs("b"), "{plan:#?}");
                    }
                    Step::StopSandbox { .. } => prop_assert!(case.seen.running().next().is_none(), "{plan:#?}"),
                    Step::TearDown => {
                        let ready = case.seen.sandboxes.iter().any(|s| s.ready);
                        prop_assert!(!ready && case.seen.running().next().is_none(), "{plan:#?}");
                    }
                    Step::Report | Step::RemoveEverything => prop_assert!(case.seen.memory.torn_down, "{plan:#?}"),
                    _ => {}
                }
            }
            Ok(())
        })?;
    }
}

/// The container that a step makes anew.
fn made(step: &Step) -> Option<&str> {
    match step {
        Step::CreateContainer { name, .. } => Some(name),
        _ => None,
    }
}

/// Plans and acts for a while; each plan is checked before it is followed.
fn follow(
    mut case: Case,
    failures: &[bool],
    mut check: impl FnMut(&Case, &Plan) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    for round in 0..40 {
        let plan = case.plan();
        check(&case, &plan)?;
        if plan.steps.is_empty()
            && let Some(wake) = plan.wake_at
        {
            case.at = wake.as_secs().max(case.at + 1);
        }
        act(&mut case, &plan, failures.get(round).copied().unwrap_or_default());
    }
    Ok(())
}
