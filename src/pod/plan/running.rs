//! The plan of a pod that is meant to run: control group, volumes, sandbox, then containers in their order.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use stoker_model::resources::is_sidecar;

use super::{Planner, Step, StopContainer, active_deadline, go_seconds};
use crate::pod::backoff::Backoff;
use crate::pod::observed::{DesiredPod, ImageKey, ImageState, Instance, InstanceState, Observed, VolumesState};
use crate::pod::policy::restarts_after;
use crate::pod::resize::Change;

/// Whether the containers after one may go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// They may: this one was started, or waits for a retry of its own.
    On,
    /// They may not yet: they start in their order, and this one is still being fetched.
    Halt,
}

impl Planner<'_> {
    pub(super) fn running(&mut self) {
        if let Some(deadline) = active_deadline(self.desired, self.seen) {
            self.wake_at_wall(deadline);
        }
        self.default_waiting();
        if self.waits_for_network() {
            return;
        }
        if !self.seen.memory.cgroup_ready {
            self.step(Step::MakeCgroup);
        }
        match &self.seen.memory.volumes {
            VolumesState::Mounted => {}
            VolumesState::Failed { retry_at, .. } if self.now.monotonic < *retry_at => return self.wake_at(*retry_at),
            VolumesState::Unknown | VolumesState::Failed { .. } => self.step(Step::MountVolumes),
        }
        let Some(sandbox) = self.sandbox() else { return };
        if !self.plan.steps.is_empty() {
            return;
        }
        if self.restart_all(&sandbox) {
            return;
        }
        self.ephemeral_containers(&sandbox);
        if self.init_containers(&sandbox) {
            self.regular_containers(&sandbox);
        }
        self.resize(&sandbox);
        if self.plan.steps.is_empty() {
            self.remove_dead();
        }
    }

    /// Nothing is set up for a pod that could get no sandbox (A1.8). What runs goes on.
    fn waits_for_network(&mut self) -> bool {
        let seen = self.seen;
        let idle = !seen.sandboxes.iter().any(|s| s.ready) && seen.running().next().is_none();
        if seen.network_ready || self.desired.host_network() || !idle {
            return false;
        }
        match &seen.memory.sandbox_failure {
            Some(failure) if self.now.monotonic < failure.retry_at => self.wake_at(failure.retry_at),
            _ => self.step(Step::ReportNetworkNotReady),
        }
        true
    }

    /// What a container that has never run shows (A2.14).
    fn default_waiting(&mut self) {
        let desired = self.desired;
        let has_init = !desired.init_containers().is_empty();
        for container in desired.init_containers() {
            self.waits(&container.name, "PodInitializing", "");
        }
        let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
        for container in desired.containers() {
            self.waits(&container.name, reason, "");
        }
    }

    /// The ID of the sandbox to start containers in, or the steps to get one (A1.17).
    fn sandbox(&mut self) -> Option<String> {
        let seen = self.seen;
        let host_network = self.desired.host_network();
        let usable = |s: &&super::super::observed::Sandbox| {
            s.ready && s.host_network == host_network && (host_network || !s.ips.is_empty())
        };
        let newest = seen.sandbox();
        if let Some(sandbox) = newest.filter(usable) {
            return self.stop_strays(&sandbox.id).then(|| sandbox.id.clone());
        }
        let alive: Vec<Instance> = seen.running().cloned().collect();
        for instance in &alive {
            self.stop(instance, format!("Stopping container {}", instance.name), false);
        }
        if !alive.is_empty() {
            return None;
        }
        if let Some(failure) = &seen.memory.sandbox_failure
            && self.now.monotonic < failure.retry_at
        {
            self.wake_at(failure.retry_at);
            return None;
        }
        for sandbox in seen.sandboxes.iter().filter(|s| s.ready) {
            self.step(Step::StopSandbox { id: sandbox.id.clone() });
        }
        if seen.network_ready || host_network {
            let attempt = newest.map_or(0, |s| s.attempt + 1);
            self.step(Step::RunSandbox { attempt, changed: newest.is_some() });
            self.look_for_images();
        } else {
            self.step(Step::ReportNetworkNotReady);
        }
        None
    }

    /// Stops what still runs beside the newest sandbox, in one that is ready or not, or beside the newest instance of its name. Whether
    /// no container does: until then nothing may be made, or there were two of it.
    fn stop_strays(&mut self, current: &str) -> bool {
        let seen = self.seen;
        let replaced = |i: &Instance| seen.newest_in(current, &i.name).is_some_and(|newest| newest.id != i.id);
        let strays: Vec<&Instance> = seen.running().filter(|i| i.sandbox_id != current || replaced(i)).collect();
        for instance in &strays {
            self.stop(instance, format!("Stopping container {}", instance.name), false);
        }
        for sandbox in seen.sandboxes.iter().filter(|s| s.ready && s.id != current) {
            if !strays.iter().any(|i| i.sandbox_id == sandbox.id) {
                self.step(Step::StopSandbox { id: sandbox.id.clone() });
            }
        }
        strays.is_empty()
    }

    /// Starts init containers in their order, and keeps sidecars running (A3.1, A3.3). Whether the regular containers
    /// may run.
    fn init_containers(&mut self, sandbox: &str) -> bool {
        let (desired, seen) = (self.desired, self.seen);
        let initialized = desired.containers().iter().any(|c| seen.newest_in(sandbox, &c.name).is_some());
        let inits = desired.init_containers();
        // What comes before one that was made is done, also where its instance has been removed since (A3.2).
        let reached = inits.iter().rposition(|c| seen.newest_in(sandbox, &c.name).is_some());
        for (place, container) in inits.iter().enumerate() {
            let past = initialized || reached.is_some_and(|reached| place < reached);
            let instance = seen.newest_in(sandbox, &container.name);
            let proceeds = if is_sidecar(container) {
                self.sidecar(container, instance) || past
            } else if past {
                true
            } else {
                self.plain_init(container, instance)
            };
            if !proceeds {
                return false;
            }
        }
        true
    }

    /// Keeps a sidecar running; whether it has started.
    fn sidecar(&mut self, container: &Container, instance: Option<&Instance>) -> bool {
        match instance {
            Some(running) if running.state == InstanceState::Running => {
                self.keep_running(container, running, "Init container");
                let memory = &self.seen.memory;
                memory.probes.get(&container.name).is_none_or(|probe| probe.started)
                    && !memory.hook_failed.contains(&container.name)
                    && !memory.post_start.contains_key(&container.name)
            }
            Some(lost) if lost.state == InstanceState::Unknown => {
                self.stop(lost, format!("Stopping container {}", container.name), true);
                false
            }
            other => {
                self.start(container, other);
                false
            }
        }
    }

    /// Runs an ordinary init container to its end; whether it has succeeded.
    fn plain_init(&mut self, container: &Container, instance: Option<&Instance>) -> bool {
        match instance {
            Some(done) if done.succeeded() => return true,
            Some(running) if running.state == InstanceState::Running => {
                if self.seen.memory.hook_failed.contains(&container.name) {
                    self.stop(running, format!("Stopping container {}", container.name), false);
                }
            }
            Some(lost) if lost.state == InstanceState::Unknown => {
                self.stop(lost, format!("Stopping container {}", container.name), true);
            }
            Some(failed)
                if failed.state == InstanceState::Exited
                    && !restarts_after(self.desired.restart_policy(), container, failed.exit_code) => {}
            other => {
                self.start(container, other);
            }
        }
        false
    }

    fn regular_containers(&mut self, sandbox: &str) {
        let (desired, seen) = (self.desired, self.seen);
        for container in desired.containers() {
            let instance = seen.newest_in(sandbox, &container.name);
            let flow = match instance {
                Some(running) if running.state == InstanceState::Running => {
                    self.keep_running(container, running, "Container");
                    // The next one starts when the hook has returned: users rely on that order.
                    if seen.memory.post_start.contains_key(&container.name) { Flow::Halt } else { Flow::On }
                }
                Some(lost) if lost.state == InstanceState::Unknown => {
                    self.stop(lost, format!("Stopping container {}", container.name), true);
                    Flow::On
                }
                Some(exited)
                    if exited.state == InstanceState::Exited && !restarts(desired, seen, container, exited) =>
                {
                    Flow::On
                }
                // In a new sandbox what was to run once does not run again.
                None if seen
                    .newest(&container.name)
                    .is_some_and(|i| i.state == InstanceState::Exited && !restarts(desired, seen, container, i)) =>
                {
                    Flow::On
                }
                other => self.start(container, other),
            };
            if flow == Flow::Halt {
                return self.fetch_the_rest(sandbox);
            }
        }
    }

    /// Fetches the images of containers whose turn has not come, so that they need not wait for them later.
    fn fetch_the_rest(&mut self, sandbox: &str) {
        let (desired, seen) = (self.desired, self.seen);
        for container in desired.containers() {
            let image = ImageKey::of(container);
            let find = Step::FindImage(image.clone());
            let never_made = seen.newest_in(sandbox, &container.name).is_none();
            if never_made && !seen.memory.images.contains_key(&image) && !self.plan.steps.contains(&find) {
                self.step(find);
            }
        }
    }

    /// Ephemeral containers start whenever the pod has a sandbox, once: what does not get on may be what they are to look at (A3.7).
    fn ephemeral_containers(&mut self, sandbox: &str) {
        let (desired, seen) = (self.desired, self.seen);
        for container in desired.ephemeral_containers() {
            match seen.newest(&container.name) {
                None => {
                    self.waits(&container.name, "ContainerCreating", "");
                    self.start(&container, None);
                }
                Some(created) if created.state == InstanceState::Created && created.sandbox_id == sandbox => {
                    self.start(&container, Some(created));
                }
                Some(_) => {}
            }
        }
    }

    /// Ends a running instance that may not stay as it is.
    fn keep_running(&mut self, container: &Container, running: &Instance, called: &str) {
        self.plan.waiting.remove(&container.name);
        let name = &container.name;
        let hash_changed = running.hash.as_ref().is_some_and(|hash| *hash != container_hash(container));
        if hash_changed {
            let again = if is_sidecar(container) { "" } else { ", will be restarted" };
            self.stop(running, format!("{called} {name} definition changed{again}"), true);
        } else if let Some(verdict) = self.seen.memory.probes.get(name).filter(|verdict| verdict.dead) {
            let (kind, probe) = match verdict.started {
                true => ("liveness", &container.liveness_probe),
                false => ("startup", &container.startup_probe),
            };
            let restarted = !is_sidecar(container) && restarts_after_probe(self.desired, container);
            let again = if restarted { ", will be restarted" } else { "" };
            let own = probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
            let grace = own.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or_default()));
            self.stop_within(running, format!("{called} {name} failed {kind} probe{again}"), false, grace);
        } else if self.seen.memory.hook_failed.contains(name) {
            self.stop(running, "FailedPostStartHook".to_owned(), false);
        } else if self.seen.memory.resize.allocation.change(container) == Change::Restart {
            self.stop(running, format!("Container {name} resize requires restart"), true);
        }
    }

    fn stop(&mut self, instance: &Instance, message: String, recreate: bool) {
        self.stop_within(instance, message, recreate, None);
    }

    /// Stops an instance. `grace`: another one than the pod's (A5.7).
    fn stop_within(&mut self, instance: &Instance, message: String, recreate: bool, grace: Option<Duration>) {
        if self.seen.memory.stops.contains_key(&instance.id) {
            return;
        }
        let grace = grace.unwrap_or_else(|| self.desired.spec_grace());
        let deadline = self.now.monotonic + grace;
        self.step(Step::StopContainer(StopContainer {
            id: instance.id.clone(),
            name: instance.name.clone(),
            deadline,
            hook: !grace.is_zero(),
            message,
            recreate,
        }));
    }

    /// Starts a container, or says why it has to wait. `instance` is its newest in the sandbox.
    fn start(&mut self, container: &Container, instance: Option<&Instance>) -> Flow {
        let (name, memory) = (&container.name, &self.seen.memory);
        if let Some(failure) = memory.failures.get(name)
            && self.now.monotonic < failure.retry_at
        {
            self.waits(name, &failure.reason, &failure.message);
            self.wake_at(failure.retry_at);
            return Flow::On;
        }
        // While a postStart hook runs, those after its container wait.
        let has_hook = container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
        let flow = if has_hook { Flow::Halt } else { Flow::On };
        if let Some(created) = instance.filter(|i| i.state == InstanceState::Created) {
            self.step(Step::StartContainer { name: name.clone(), id: Some(created.id.clone()) });
            return flow;
        }
        if self.waits_for_backoff(container) {
            return Flow::On;
        }
        let target = match self.desired.target_of(name) {
            None => None,
            Some(target) => match self.seen.newest(target) {
                Some(instance) => Some(instance.id.clone()),
                None => {
                    self.waits(name, "CreateContainerConfigError", format!("unable to find target container {target}"));
                    return Flow::On;
                }
            },
        };
        let image = ImageKey::of(container);
        let of_volumes = self.desired.volume_images(container);
        for needed in of_volumes.into_iter().chain([image.clone()]) {
            if let Some(flow) = self.waits_for_image(name, needed) {
                return flow;
            }
        }
        if memory.resize.allocation.change(container) != Change::None {
            // It was stopped for its new resources: the pod as a whole gets them first.
            self.step(Step::Resize { running: Vec::new() });
        }
        let last = self.seen.newest(name).filter(|i| i.state == InstanceState::Exited);
        let restarts = last.map(|i| i.finished_at.unwrap_or(i.created_at));
        let restart_count = next_restart_count(self.desired, self.seen, name);
        self.step(Step::CreateContainer { name: name.clone(), image, restart_count, restarts, target });
        self.step(Step::StartContainer { name: name.clone(), id: None });
        flow
    }

    /// Has an image looked for that a container needs; `None`: it is there.
    fn waits_for_image(&mut self, name: &str, image: ImageKey) -> Option<Flow> {
        let flow = match self.seen.memory.images.get(&image) {
            Some(ImageState::Ready { .. }) => return None,
            Some(ImageState::Pulling { last }) => match last {
                None => Flow::Halt,
                Some(last) => {
                    let (reason, message) = last.shown(&image.image, self.now.monotonic);
                    self.waits(name, reason, message);
                    Flow::On
                }
            },
            Some(ImageState::Failed(failure)) => {
                let (reason, message) = failure.shown(&image.image, self.now.monotonic);
                self.waits(name, reason, message);
                if self.now.monotonic >= failure.retry_at {
                    self.find(image);
                } else if failure.pulled && self.now.monotonic < failure.backoff_at {
                    self.wake_at(failure.backoff_at);
                } else {
                    self.wake_at(failure.retry_at);
                }
                Flow::On
            }
            None => {
                self.find(image);
                Flow::Halt
            }
        };
        Some(flow)
    }

    fn find(&mut self, image: ImageKey) {
        let step = Step::FindImage(image);
        if !self.plan.steps.contains(&step) {
            self.step(step);
        }
    }

    /// Whether a container that keeps ending has to wait (A3.9).
    fn waits_for_backoff(&mut self, container: &Container) -> bool {
        let name = &container.name;
        let Some(last) = self.seen.newest(name).filter(|i| i.state == InstanceState::Exited) else { return false };
        // Another image, or other resources, and it may go well.
        if last.hash.as_ref().is_some_and(|hash| *hash != container_hash(container))
            || self.seen.memory.resize.allocation.change(container) != Change::None
        {
            return false;
        }
        let backoff = self.seen.memory.restarts.get(name);
        let failed_at = last.finished_at.unwrap_or(last.created_at);
        match Backoff::until(backoff, failed_at).filter(|until| *until > self.now.wall) {
            None => false,
            Some(until) => {
                let delay = go_seconds(backoff.map_or(Duration::ZERO, |b| b.delay.min(self.longest_backoff)));
                let pod = pod_text(self.desired);
                let message = format!("back-off {delay} restarting failed container={name} pod={pod}");
                self.waits(name, "CrashLoopBackOff", message);
                self.wake_at_wall(until);
                true
            }
        }
    }
}

/// Whether a regular container or sidecar runs again after it ended (A3.8).
pub(super) fn restarts(desired: &DesiredPod, seen: &Observed, container: &Container, ended: &Instance) -> bool {
    if seen.memory.recreate.contains(&container.name) || is_sidecar(container) {
        return true;
    }
    // What still runs, or got lost, is judged as if it had been killed.
    let code = if ended.state == InstanceState::Exited { ended.exit_code } else { KILLED };
    restarts_after(desired.restart_policy(), container, code)
}

/// Exit code of what SIGKILL ended.
const KILLED: i32 = 137;

/// The same, of a container that its probes gave up on: it will be killed, whatever code it exits with.
fn restarts_after_probe(desired: &DesiredPod, container: &Container) -> bool {
    container.restart_policy.as_deref().unwrap_or(desired.restart_policy()) != "Never"
}

/// How many instances of the container went before the next one (A1.15, A3.15).
fn next_restart_count(desired: &DesiredPod, seen: &Observed, name: &str) -> u32 {
    let seen_count = seen.containers.iter().filter(|i| i.name == name).map(|i| i.restart_count + 1).max();
    let status = desired.pod.status.as_ref();
    let reported = status.into_iter().flat_map(|s| {
        let lists = [&s.container_statuses, &s.init_container_statuses];
        lists.into_iter().flatten().flatten()
    });
    let reported = reported
        .filter(|c| c.name == name)
        .map(|c| {
            // One without an ID is not there any more: it has been counted already.
            let counts = seen_count.is_none() && c.container_id.as_ref().is_some_and(|id| !id.is_empty());
            u32::try_from(c.restart_count).unwrap_or_default() + u32::from(counts)
        })
        .max();
    seen_count.max(reported).unwrap_or_default()
}

/// `name_namespace(uid)`, as kubelet's messages name a pod.
pub(in crate::pod) fn pod_text(desired: &DesiredPod) -> String {
    pod_text_of(&desired.pod)
}

/// The same, of a pod of the API.
pub(in crate::pod) fn pod_text_of(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

/// What of a container's spec makes a new container when it changes: its name and its image (A1.16). FNV-1a, 32 bits.
pub(in crate::pod) fn container_hash(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let bytes = container.name.bytes().chain([0]).chain(image.bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:x}")
}
