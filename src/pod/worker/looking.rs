//! What a worker has seen of its pod in the runtime, and when it looks again.
//!
//! It looks at everything when the runtime told of something, when one of its own calls failed, when time has passed, and a moment after
//! something was killed that nobody here wanted to end: why may be told late. After a call that went well it looks at what that call made
//! or ended, so that each plan is made from a whole view that is younger than its steps.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::Worker;
use crate::pod::adopted::Adopted;
use crate::pod::observe::{EXPLAINED_AFTER, Touched, View};
use crate::pod::observed::{Instance, Sandbox, VolumesState};
use crate::runtime::{Awaited, RuntimeError};

/// What wakes a worker from outside.
#[derive(Clone, Debug, Default)]
pub(in crate::pod) struct Wakes {
    /// Something else has changed than what the runtime has of the pod.
    pub(in crate::pod) plan: Arc<Notify>,
    /// What the runtime has of it may have changed.
    pub(in crate::pod) look: Arc<Notify>,
}

impl Worker {
    /// What an earlier agent left running is as it should be: nothing is mounted or limited anew before it is looked at (A1.15, A2.23).
    pub(super) async fn adopt(&mut self) {
        if self.is_new {
            self.view = Some(View::default());
            return;
        }
        let Ok((sandboxes, containers)) = self.look().await else { return };
        self.adopted = Adopted::of(&self.desired.borrow(), &containers);
        let found_ready = sandboxes.iter().any(|s| s.ready);
        self.view = Some((sandboxes, containers));
        if found_ready {
            self.memory.volumes = VolumesState::Mounted;
            self.memory.cgroup_ready = true;
            self.refresh_volumes();
        }
    }

    /// Everything that the runtime has of the pod, as it is now.
    pub(super) async fn look(&mut self) -> Result<View, RuntimeError> {
        let touched = std::mem::take(&mut self.touched);
        let (runtime, uid, directory) = (&self.shared.runtime, &self.reference.uid, &self.shared.directory);
        // Boxed, for a worker has room for its calls as long as it lives, and mostly nothing happens.
        let view = match self.view.take().filter(|_| touched.is_empty() || !self.wary) {
            Some(view) if touched.is_empty() => view,
            Some(view) => Box::pin(self.observer.look_at(runtime, uid, directory, view, &touched)).await?,
            None => {
                let view = Box::pin(self.observer.look(runtime, &self.shared.lister, uid, directory)).await?;
                self.looked_at = self.shared.clock.now().monotonic;
                view
            }
        };
        self.awaited.retain(|id, _| view.0.iter().any(|s| s.id == *id) || view.1.iter().any(|c| c.id == *id));
        Ok(view)
    }

    /// Time has passed: everything is looked at, unless that was done since for another reason.
    pub(super) fn look_again(&mut self) {
        self.wary = false;
        // The look that followed this one's predecessor began a moment after it.
        let interval = self.shared.config.sync_frequency * 9 / 10;
        if self.shared.clock.now().monotonic.saturating_sub(self.looked_at) >= interval {
            self.view = None;
        }
    }

    /// When (monotonic) to look again though nobody tells of anything: the runtime may yet say more of an end that was just seen.
    pub(super) fn explained_at(&self, containers: &[Instance]) -> Option<Duration> {
        let at = self.shared.clock.now().monotonic + EXPLAINED_AFTER;
        containers.iter().any(|c| c.is_unexplained).then_some(at)
    }

    /// Keeps what was seen, if it changes no more without an event that tells of it.
    pub(super) fn keep_view(&mut self, view: View) {
        if view.0.iter().all(Sandbox::is_settled) && view.1.iter().all(Instance::is_settled) {
            self.view = Some(view);
        }
    }

    /// A container or sandbox has ended, and the worker knows it from its own call.
    pub(super) fn ended(&mut self, id: String, touched: Touched, awaited: Awaited) {
        self.awaited.insert(id, awaited);
        self.touched.push(touched);
    }

    /// A call has failed, and the runtime may have done what it was asked for, or may still do it.
    pub(super) fn unsure(&mut self) {
        self.view = None;
        self.wary = true;
    }

    /// All sandboxes of the pod, and whether each was stopped, where the worker knows it.
    pub(super) fn known_sandboxes(&self) -> Option<Vec<(String, bool)>> {
        let (sandboxes, _) = self.view.as_ref().filter(|_| self.touched.is_empty() && !self.wary)?;
        Some(sandboxes.iter().map(|s| (s.id.clone(), self.awaited.contains_key(&s.id))).collect())
    }
}
