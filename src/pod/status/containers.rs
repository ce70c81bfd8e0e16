//! Statuses of a pod's containers (A2.13).

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    VolumeMount, VolumeMountStatus,
};
use stoker_model::resources::is_sidecar;

use super::{Facts, reported, stamp};
use crate::pod::container::recursive_read_only;
use crate::pod::observed::{DesiredPod, Instance, InstanceState};

/// Exit code of what nobody saw end: as if killed.
const UNKNOWN_EXIT_CODE: i32 = 137;

pub(super) fn init_statuses(facts: Facts<'_>) -> Vec<ContainerStatus> {
    let list = facts.previous.init_container_statuses.as_ref();
    let any_regular = facts.desired.containers().iter().any(|c| facts.seen.newest(&c.name).is_some());
    let inits = facts.desired.init_containers().iter();
    inits
        .map(|container| {
            let previous = reported(list, &container.name);
            let mut status = container_status(facts, container, previous);
            let plain = !is_sidecar(container);
            if plain && any_regular && facts.seen.newest(&container.name).is_none() {
                // It was removed from the runtime after it had done its work (A2.15).
                if let Some(done) = previous.filter(|p| terminated(p).is_some()) {
                    return done.clone();
                }
                status.state = Some(ended(ContainerStateTerminated {
                    reason: Some("Completed".into()),
                    message: Some("Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally".into()),
                    ..ContainerStateTerminated::default()
                }));
            }
            if plain {
                status.ready = terminated(&status).is_some_and(|t| t.exit_code == 0);
            }
            status
        })
        .collect()
}

pub(super) fn regular_statuses(facts: Facts<'_>) -> Vec<ContainerStatus> {
    let list = facts.previous.container_statuses.as_ref();
    let containers = facts.desired.containers().iter();
    containers.map(|c| container_status(facts, c, reported(list, &c.name))).collect()
}

pub(super) fn ephemeral_statuses(facts: Facts<'_>) -> Vec<ContainerStatus> {
    let list = facts.previous.ephemeral_container_statuses.as_ref();
    let statuses = facts.desired.ephemeral_containers().into_iter().map(|c| {
        let mut status = container_status(facts, &c, reported(list, &c.name));
        (status.ready, status.started) = (false, None);
        status
    });
    statuses.collect()
}

/// At the end of a pod every container that had its turn has ended, whether or not anybody saw it (A1.20).
pub(super) fn settle(desired: &DesiredPod, init: &mut [ContainerStatus], regular: &mut [ContainerStatus]) {
    let ran = |c: &ContainerStatus| terminated(c).is_some() || last_terminated(c).is_some();
    let initialized =
        init.iter().all(|c| desired.is_sidecar(&c.name) || terminated(c).is_some_and(|t| t.exit_code == 0));
    let reached = init.iter().rposition(ran).map_or(0, |last| last + 1);
    let due = if initialized { init.len() } else { reached };
    let regular_due = if initialized { regular.len() } else { 0 };
    for status in init.iter_mut().take(due).chain(regular.iter_mut().take(regular_due)) {
        if terminated(status).is_none() {
            status.state = Some(ended(ContainerStateTerminated {
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container could not be located when the pod was terminated".into()),
                exit_code: UNKNOWN_EXIT_CODE,
                ..ContainerStateTerminated::default()
            }));
        }
    }
    for status in init.iter_mut().filter(|c| desired.is_sidecar(&c.name)).chain(regular.iter_mut()) {
        (status.ready, status.started) = (false, Some(false));
    }
}

fn container_status(facts: Facts<'_>, container: &Container, previous: Option<&ContainerStatus>) -> ContainerStatus {
    let name = &container.name;
    let mut instances = facts.seen.containers.iter().filter(|i| i.name == *name);
    let newest = instances.next();
    let before = instances.find(|i| i.state == InstanceState::Exited);
    let mut status = match newest {
        Some(instance) => of_instance(container, instance),
        None => of_nothing(facts, container, previous),
    };
    status.volume_mounts = volume_mounts(container, facts.seen.memory.recursive_read_only);
    if status.last_state.is_none() {
        let remembered = || previous.and_then(|p| p.last_state.clone()).filter(|s| *s != ContainerState::default());
        status.last_state = before.map(|i| ended(end_of(i))).or_else(remembered);
    }
    let reported_count = previous.map_or(0, |p| p.restart_count);
    status.restart_count = status.restart_count.max(reported_count);
    if let Some(waiting) = facts.waiting.get(name)
        && status.state.as_ref().is_none_or(|s| s.running.is_none())
    {
        // The default reasons say nothing of a container that has already run.
        let says_something = !matches!(waiting.reason.as_str(), "ContainerCreating" | "PodInitializing");
        let never_ran = terminated(&status).is_none();
        if says_something || never_ran {
            if terminated(&status).is_some() {
                status.last_state = status.state.take();
            }
            status.state = Some(waits(&waiting.reason, &waiting.message));
        }
    }
    let running = status.state.as_ref().is_some_and(|s| s.running.is_some());
    let probe = facts.seen.memory.probes.get(name);
    let hook_failed = facts.seen.memory.hook_failed.contains(name);
    let hook_runs = facts.seen.memory.post_start.contains_key(name);
    let started = running && !hook_failed && !hook_runs && probe.is_none_or(|p| p.started);
    status.started = Some(started);
    status.ready = started && probe.is_none_or(|p| p.ready);
    status
}

/// What became of the wishes for read-only mounts (A9.24).
fn volume_mounts(container: &Container, supported: bool) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_deref().filter(|mounts| !mounts.is_empty())?;
    let of_mount = |mount: &VolumeMount| {
        let read_only = mount.read_only.unwrap_or_default();
        let recursive = recursive_read_only(mount, supported).unwrap_or_default();
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| if recursive { "Enabled" } else { "Disabled" }.to_owned()),
            ..VolumeMountStatus::default()
        }
    };
    Some(mounts.iter().map(of_mount).collect())
}

fn of_instance(container: &Container, instance: &Instance) -> ContainerStatus {
    let state = match instance.state {
        InstanceState::Created => waits("ContainerCreating", ""),
        InstanceState::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at: instance.started_at.map(stamp) }),
            ..ContainerState::default()
        },
        InstanceState::Exited => ended(end_of(instance)),
        InstanceState::Unknown => ended(ContainerStateTerminated {
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The runtime does not know whether the container runs".into()),
            exit_code: UNKNOWN_EXIT_CODE,
            container_id: Some(container_id(instance)),
            started_at: instance.started_at.map(stamp),
            ..ContainerStateTerminated::default()
        }),
    };
    ContainerStatus {
        name: container.name.clone(),
        image: if instance.image.is_empty() {
            container.image.clone().unwrap_or_default()
        } else {
            instance.image.clone()
        },
        image_id: instance.image_ref.clone(),
        container_id: Some(container_id(instance)),
        restart_count: i32::try_from(instance.restart_count).unwrap_or(i32::MAX),
        state: Some(state),
        ..ContainerStatus::default()
    }
}

/// The runtime has nothing of this container: it never was, or it got lost (A2.15).
fn of_nothing(facts: Facts<'_>, container: &Container, previous: Option<&ContainerStatus>) -> ContainerStatus {
    let has_init = !facts.desired.init_containers().is_empty();
    let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(waits(reason, "")),
        ..ContainerStatus::default()
    };
    let Some(previous) = previous else { return status };
    if let Some(end) = terminated(previous) {
        status.state = Some(ended(end.clone()));
        (status.container_id, status.image_id) = (previous.container_id.clone(), previous.image_id.clone());
    } else if previous.state.as_ref().is_some_and(|s| s.running.is_some()) {
        status.last_state = Some(ended(ContainerStateTerminated {
            reason: Some("ContainerStatusUnknown".into()),
            message: Some(
                "The container could not be located when the pod was deleted.  The container used to be Running".into(),
            ),
            exit_code: UNKNOWN_EXIT_CODE,
            ..ContainerStateTerminated::default()
        }));
        if !facts.desired.deleted() {
            status.restart_count = previous.restart_count + 1;
        }
    }
    status
}

fn end_of(instance: &Instance) -> ContainerStateTerminated {
    let text = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    let reason = text(&instance.reason).or_else(|| text(if instance.exit_code == 0 { "Completed" } else { "Error" }));
    ContainerStateTerminated {
        exit_code: instance.exit_code,
        reason,
        message: text(&instance.message),
        started_at: instance.started_at.map(stamp),
        finished_at: instance.finished_at.map(stamp),
        container_id: Some(container_id(instance)),
        ..ContainerStateTerminated::default()
    }
}

fn container_id(instance: &Instance) -> String {
    format!("containerd://{}", instance.id)
}

fn waits(reason: &str, message: &str) -> ContainerState {
    let message = Some(message.to_owned()).filter(|m| !m.is_empty());
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn ended(terminated: ContainerStateTerminated) -> ContainerState {
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn last_terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref()?.terminated.as_ref()
}
