//! The plan of a pod that ends: hooks at once, regular containers together, sidecars after them in reverse, then the
//! sandbox (A3.4, A4.6).

use std::time::Duration;

use super::{Planner, Step, StopContainer};
use crate::pod::observed::Instance;

impl Planner<'_> {
    pub(super) fn terminating(&mut self, deadline: Duration) {
        let seen = self.seen;
        let (sidecars, regular): (Vec<&Instance>, Vec<&Instance>) =
            seen.running().partition(|i| self.desired.is_sidecar(&i.name));
        if sidecars.is_empty() && regular.is_empty() {
            for sandbox in seen.sandboxes.iter().filter(|s| s.ready) {
                self.after_retry(Step::StopSandbox { id: sandbox.id.clone() });
            }
            return;
        }
        for instance in &regular {
            self.stop_by(instance, deadline);
        }
        let place = |i: &Instance| self.desired.init_containers().iter().position(|c| c.name == i.name);
        let last = sidecars.iter().map(|i| place(i)).max().flatten();
        for instance in &sidecars {
            let turn = regular.is_empty() && place(instance) == last || self.now.monotonic >= deadline;
            if turn {
                self.stop_by(instance, deadline);
                continue;
            }
            self.wake_at(deadline);
            let under_way = seen.memory.stops.get(&instance.id);
            if under_way.is_none() && deadline > self.now.monotonic {
                let (id, name) = (instance.id.clone(), instance.name.clone());
                self.step(Step::RunPreStop { id, name, deadline });
            } else if under_way.is_some_and(|stop| stop.deadline > deadline) {
                self.step(Step::ShortenGrace { id: instance.id.clone(), deadline });
            }
        }
    }

    fn stop_by(&mut self, instance: &Instance, deadline: Duration) {
        let under_way = self.seen.memory.stops.get(&instance.id);
        let (id, name) = (instance.id.clone(), instance.name.clone());
        match under_way {
            Some(stop) if !stop.hook_only => {
                if stop.deadline > deadline {
                    self.step(Step::ShortenGrace { id, deadline });
                }
            }
            hook_ran => {
                let message = format!("Stopping container {name}");
                let hook = hook_ran.is_none() && deadline > self.now.monotonic;
                self.step(Step::StopContainer(StopContainer { id, name, deadline, hook, message, recreate: false }));
            }
        }
    }
}
