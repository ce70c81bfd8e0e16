//! What a running pod needs besides the start of its containers: images looked for early, new resources, a start from the beginning,
//! and the removal of what is dead.

use k8s_openapi::api::core::v1::Container;

use super::{Planner, Step, StopContainer};
use crate::pod::observed::{ImageKey, Instance, InstanceState, PullPolicy};
use crate::pod::policy::restarts_all_after;
use crate::pod::resize::Change;

impl Planner<'_> {
    /// What is there already need not be looked for later.
    pub(super) fn look_for_images(&mut self) {
        let desired = self.desired;
        for container in desired.init_containers().iter().chain(desired.containers()) {
            let image = ImageKey::of(container);
            let look = Step::LookForImage(image.clone());
            let known = self.seen.memory.images.contains_key(&image);
            if image.policy != PullPolicy::Always && !known && !self.plan.steps.contains(&look) {
                self.step(look);
            }
        }
    }

    /// Takes every container away when one has ended whose rule wants that, so that all of them start over. The one that ended goes
    /// last: as long as it is there, the next look, also that of another agent, finds out what is under way (A3.12).
    pub(super) fn restart_all(&mut self, sandbox: &str) -> bool {
        let (desired, seen) = (self.desired, self.seen);
        let all: Vec<&Container> = desired.containers().iter().chain(desired.init_containers()).collect();
        let spec_of = |i: &Instance| all.iter().find(|c| c.name == i.name);
        let wants = |i: &Instance| {
            i.state == InstanceState::Exited && spec_of(i).is_some_and(|c| restarts_all_after(c, i.exit_code))
        };
        if !all.iter().any(|c| seen.newest_in(sandbox, &c.name).is_some_and(wants)) {
            return false;
        }
        self.plan.restarting_all = true;
        let alive: Vec<&Instance> = seen.running().filter(|i| spec_of(i).is_some()).collect();
        for instance in &alive {
            if !seen.memory.stops.contains_key(&instance.id) {
                self.step(Step::StopContainer(StopContainer {
                    id: instance.id.clone(),
                    name: instance.name.clone(),
                    deadline: self.now.monotonic,
                    hook: false,
                    message: format!("Stopping container {}", instance.name),
                    recreate: false,
                }));
            }
        }
        if alive.is_empty() {
            let mut dead: Vec<&Instance> = seen.containers.iter().filter(|i| spec_of(i).is_some()).collect();
            let is_init = |i: &Instance| desired.init_containers().iter().any(|c| c.name == i.name);
            dead.sort_by_key(|i| (wants(i), is_init(i)));
            for instance in dead {
                self.step(Step::RemoveContainer { id: instance.id.clone(), keep_log: true });
            }
        }
        true
    }

    /// Gives running containers the resources that the pod was given (A15.1).
    pub(super) fn resize(&mut self, sandbox: &str) {
        let (desired, seen) = (self.desired, self.seen);
        let resize = &seen.memory.resize;
        if let Some(failed) = &resize.error
            && self.now.monotonic < failed.retry_at
        {
            return self.wake_at(failed.retry_at);
        }
        let all = desired.containers().iter().chain(desired.init_containers());
        let changed = all.filter(|c| resize.allocation.change(c) == Change::InPlace);
        let running = changed.filter_map(|c| {
            let instance = seen.newest_in(sandbox, &c.name).filter(|i| i.state == InstanceState::Running)?;
            (!seen.memory.stops.contains_key(&instance.id)).then(|| (c.name.clone(), instance.id.clone()))
        });
        let running: Vec<(String, String)> = running.collect();
        if !running.is_empty() || resize.allocation.pod_changes() {
            self.step(Step::Resize { running });
        }
    }

    /// A finished pod lets go of what it kept for its log (A13.7).
    pub(super) fn release(&mut self) {
        let seen = self.seen;
        for instance in seen.containers.iter().filter(|i| i.state != InstanceState::Running) {
            self.step(Step::RemoveContainer { id: instance.id.clone(), keep_log: false });
        }
        for sandbox in seen.sandboxes.iter().filter(|s| !s.ready) {
            self.step(Step::RemoveSandbox { id: sandbox.id.clone() });
        }
    }

    /// One dead instance of each container is kept, for its log and its last state (A14.9).
    pub(super) fn remove_dead(&mut self) {
        let seen = self.seen;
        let mut kept: Vec<&str> = Vec::new();
        for instance in &seen.containers {
            let dead = instance.state == InstanceState::Exited;
            if dead && kept.contains(&instance.name.as_str()) {
                self.step(Step::RemoveContainer { id: instance.id.clone(), keep_log: false });
            } else if dead {
                kept.push(&instance.name);
            }
        }
        for sandbox in seen.sandboxes.iter().skip(1).filter(|s| !s.ready) {
            if !seen.containers.iter().any(|c| c.sandbox_id == sandbox.id) {
                self.step(Step::RemoveSandbox { id: sandbox.id.clone() });
            }
        }
    }
}
