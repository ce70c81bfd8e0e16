//! What a worker keeps of what its steps did: retries, back-offs, resources given, the ends of stops.

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_model::handle::EventType;
use stoker_model::metrics;

use super::Worker;
use crate::pod::backoff::{Backoff, lengthened};
use crate::pod::observe::Touched;
use crate::pod::observed::{Cause, Failure, ImageKey, ImageState, Stage, VolumesState};
use crate::pod::resize::{self, Failed};
use crate::pod::steps::{Effect, pull_failure};

/// kubelet's back-off after a sync that failed (A1.5).
const CONTAINER_RETRY: Duration = Duration::from_secs(10);
/// First and longest delay between mounts that fail (A9.2).
const MOUNT_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));
/// A teardown that failed is tried again after this.
const TEARDOWN_RETRY: Duration = Duration::from_secs(1);

impl Worker {
    /// Takes over what a step did.
    pub(super) fn remember(&mut self, effect: Effect) {
        let now = self.shared.clock.now();
        let container_retry = lengthened(CONTAINER_RETRY, &self.reference.uid);
        let memory = &mut self.memory;
        match effect {
            Effect::CgroupReady => {
                memory.cgroup_ready = true;
                let allocation = &mut memory.resize.allocation;
                if allocation.actuated_pod != allocation.allocated_pod {
                    allocation.actuated_pod.clone_from(&allocation.allocated_pod);
                    self.keep_resources();
                }
            }
            Effect::VolumesMounted => {
                memory.volumes = VolumesState::Mounted;
                self.mount_failures = 0;
            }
            Effect::VolumesFailed(message) => {
                let delay = mount_delay(self.mount_failures);
                self.mount_failures += 1;
                memory.volumes = VolumesState::Failed { message, retry_at: now.monotonic + delay };
                self.repeated = (Vec::new(), 0);
            }
            Effect::Rejected { reason, text } => {
                metrics::ADMISSION_REJECTIONS.inc(&[reason]);
                self.shared.tell(&self.reference, EventType::Warning, reason, text.clone());
                let cause = Cause::Rejected { reason: reason.to_owned(), message: format!("Pod was rejected: {text}") };
                memory.stage = Stage::Terminating { deadline: now.monotonic, cause };
            }
            Effect::SandboxMade { id } => {
                memory.sandbox_failure = None;
                self.touched.push(Touched::Sandbox(id));
            }
            Effect::SandboxStopped { id, awaited } => self.ended(id.clone(), Touched::SandboxStopped(id), awaited),
            Effect::SandboxRemoved { id } => self.touched.push(Touched::SandboxGone(id)),
            Effect::ContainerRemoved { id } => self.touched.push(Touched::Gone(id)),
            Effect::Unsure => self.unsure(),
            Effect::SandboxFailed { reason, message, retry } => {
                let retry_at = now.monotonic + lengthened(retry, &self.reference.uid);
                memory.sandbox_failure = Some(Failure { reason: reason.to_owned(), message, retry_at });
            }
            Effect::ImageFound { key, id, uid, username } => {
                self.start.pull_ends(now);
                memory.images.insert(key, ImageState::Ready { id, uid, username });
            }
            Effect::ImageAbsent { key } => {
                self.start.pull_ends(now);
                memory.images.remove(&key);
            }
            Effect::ImageMissing { key, reason, message, pulled } => {
                self.start.pull_ends(now);
                let last = match memory.images.get(&key) {
                    Some(ImageState::Pulling { last }) => last.as_ref(),
                    _ => None,
                };
                let failure = pull_failure(last, reason, message, pulled, now);
                memory.images.insert(key, ImageState::Failed(failure));
            }
            Effect::Created { name, id, sandbox, image, ended } => {
                self.touched.push(Touched::Made { id, sandbox });
                memory.recreate.remove(&name);
                memory.hook_failed.remove(&name);
                let allocation = &mut memory.resize.allocation;
                let given = allocation.allocated.get(&name).cloned().unwrap_or_default();
                if let Some(ended) = ended {
                    let longest = self.shared.config.longest_backoff;
                    // With another image or other resources than before it starts afresh (A3.9).
                    let tried = (image.clone(), given.clone());
                    let same = self.tried.insert(name.clone(), tried.clone()).is_none_or(|before| before == tried);
                    let before = memory.restarts.get(&name).filter(|_| same);
                    let grown = Backoff::grown(before, ended, now.wall, longest);
                    memory.restarts.insert(name.clone(), grown);
                }
                // The next instance asks for its image anew: its policy may be Always.
                memory.images.remove(&image);
                if memory.images.is_empty() {
                    // A map that once held something keeps the room for eleven.
                    memory.images = BTreeMap::new();
                }
                // What the container has not itself, the pod as a whole may have.
                let counts = given.requests.is_some() || given.limits.is_some() || allocation.allocated_pod.is_some();
                if counts && allocation.actuated.get(&name) != Some(&given) {
                    allocation.actuated.insert(name, given);
                    self.keep_resources();
                }
            }
            Effect::Resized { name } => {
                let allocation = &mut memory.resize.allocation;
                let given = allocation.allocated.get(&name).cloned().unwrap_or_default();
                allocation.actuated.insert(name, given);
                memory.resize.error = None;
                self.keep_resources();
            }
            Effect::PodResized => {
                let allocation = &mut memory.resize.allocation;
                allocation.actuated_pod.clone_from(&allocation.allocated_pod);
                memory.resize.error = None;
                self.keep_resources();
            }
            Effect::ResizeFailed { message } => {
                let told = memory.resize.error.as_ref().is_some_and(|failed| failed.message == message);
                let retry_at = now.monotonic + container_retry;
                memory.resize.error = Some(Failed { message: message.clone(), retry_at });
                let generation = memory.resize.generation;
                if !told {
                    let spec = self.desired.borrow().pod.spec.clone().unwrap_or_default();
                    let text = resize::text("error", &spec, generation, &message);
                    self.shared.tell(&self.reference, EventType::Warning, "ResizeError", text);
                }
            }
            Effect::Started { name, id } => {
                memory.failures.remove(&name);
                self.touched.push(Touched::Container(id.clone()));
                self.run_post_start(name, id);
            }
            Effect::ContainerFailed { name, reason, message } => {
                // The next attempt looks for the image anew: that it is gone may be what is the matter.
                if let Some((_, container)) = self.desired.borrow().container(&name) {
                    memory.images.remove(&ImageKey::of(&container));
                }
                let retry_at = now.monotonic + container_retry;
                memory.failures.insert(name, Failure { reason: reason.to_owned(), message, retry_at });
            }
            Effect::HookEnded { name, id, failed } => {
                if memory.post_start.get(&name).is_some_and(|of| *of == id) {
                    memory.post_start.remove(&name);
                    if let Some(message) = failed {
                        let retry_at = now.monotonic + container_retry;
                        let failure = Failure { reason: "PostStartHookError".into(), message, retry_at };
                        memory.failures.insert(name.clone(), failure);
                        memory.hook_failed.insert(name);
                    }
                }
            }
            Effect::StopEnded { id, awaited } => {
                memory.stops.remove(&id);
                self.deadlines.remove(&id);
                match awaited {
                    Some(awaited) => self.ended(id.clone(), Touched::Container(id), awaited),
                    None => self.unsure(),
                }
            }
            Effect::TornDown => {
                self.shared.assignments.release(&self.reference.uid);
                memory.torn_down = true;
                memory.teardown_retry_at = None;
            }
            Effect::Reported => {
                memory.reported = true;
                memory.teardown_retry_at = None;
            }
            Effect::Gone => self.gone = true,
            Effect::Stuck => memory.teardown_retry_at = Some(now.monotonic + TEARDOWN_RETRY),
        }
    }
}

/// How long a mount waits after so many failures before it.
pub(super) fn mount_delay(failures: u32) -> Duration {
    MOUNT_RETRY.0.saturating_mul(1 << failures.min(10)).min(MOUNT_RETRY.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_tried_ever_more_slowly() {
        // A9.2
        let delays: Vec<u64> =
            (0..11).map(|failures| u64::try_from(mount_delay(failures).as_millis()).unwrap()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 122_000, 122_000, 122_000]);
        assert_eq!(mount_delay(u32::MAX), MOUNT_RETRY.1);
    }
}
