//! Entries for `fuzz/`: what may be asked of this room with any bytes.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::backoff::LONGEST;
use super::observed::{DesiredPod, ImageKey, ImageState, Instance, InstanceState, Observed, Sandbox, VolumesState};
use super::plan::{container_hash, plan as planned};
use super::sources::manifest_of;
use super::status::{Facts, status};
use crate::clock::Now;

/// A manifest of static pods.
pub fn manifest(bytes: &[u8]) {
    manifest_of(bytes);
}

/// The plan for a pod, which the bytes after the first line are (in JSON), and what is reported of it. The first line says what there
/// is of it.
pub fn plan(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (world, pod) = bytes.split_at(end);
    let Ok(pod) = serde_json::from_slice::<Pod>(pod) else { return };
    let mut world = world.iter().copied();
    let mut next = move || world.next().unwrap_or_default();
    let at = |second: u8| Timestamp::from_second(1_700_000_000 + i64::from(second)).unwrap_or_default();
    let desired = DesiredPod { pod: pod.into(), gone: next() % 4 == 1, ended: None, released: false };
    let mut seen = Observed { network_ready: next() % 4 != 1, ..Observed::default() };
    for number in 0..next() % 3 {
        seen.sandboxes.push(Sandbox {
            id: format!("s{number}"),
            attempt: u32::from(number),
            ready: next() % 2 == 0,
            host_network: next() % 2 == 0,
            handler: String::new(),
            ips: vec!["10.0.0.2".to_owned()],
            created_at: at(number),
        });
    }
    let all = desired.containers().iter().chain(desired.init_containers()).cloned();
    for container in all.chain(desired.ephemeral_containers()) {
        for count in 0..next() % 3 {
            seen.containers.push(Instance {
                id: format!("{}-{count}", container.name),
                name: container.name.clone(),
                sandbox_id: format!("s{}", next() % 3),
                state: match next() % 4 {
                    0 => InstanceState::Created,
                    1 => InstanceState::Running,
                    2 => InstanceState::Exited,
                    _ => InstanceState::Unknown,
                },
                restart_count: u32::from(count),
                hash: (next() % 2 == 0).then(|| container_hash(&container)),
                created_at: at(count),
                exit_code: i32::from(next()),
                ..Instance::default()
            });
        }
        if next() % 2 == 0 {
            let ready = ImageState::Ready { id: "sha".to_owned(), uid: None, username: String::new() };
            seen.memory.images.insert(ImageKey::of(&container), ready);
        }
    }
    seen.memory.cgroup_ready = next() % 2 == 0;
    if next() % 2 == 0 {
        seen.memory.volumes = VolumesState::Mounted;
    }
    seen.memory.started_at = Some(at(next()));
    let now = Now { wall: at(100), monotonic: Duration::from_secs(100) };
    let plan = planned(&desired, &seen, LONGEST, now);
    seen.memory.stage = plan.stage;
    let previous = PodStatus::default();
    let facts = Facts { desired: &desired, seen: &seen, waiting: &plan.waiting, node_ips: &[], previous: &previous };
    status(facts, now);
}
