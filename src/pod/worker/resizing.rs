//! Gives the pod the resources that it asks for, when the node has them (A15.1).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use stoker_model::handle::EventType;
use stoker_model::pod::{is_critical, spec_of};
use tracing::warn;

use super::Worker;
use crate::pod::admission::{self, Rules, Verdict};
use crate::pod::observed::{DesiredPod, InstanceState, Observed, Stage};
use crate::pod::pods::app_armor_enabled;
use crate::pod::resize::{self, Allocation, Change, Pending, RESOURCES_FILE, infeasible};

impl Worker {
    /// The pod with the resources that it was given. Where it asks for others, it is given them if they are to be had (A15.1).
    pub(super) fn allocate(&mut self, desired: DesiredPod) -> DesiredPod {
        let Some(spec) = desired.pod.spec.as_ref().filter(|_| !desired.gone) else { return desired };
        let running = self.memory.stage == Stage::Running && !desired.deleted();
        if self.memory.resize.allocation.allocated.is_empty() {
            let kept = Allocation::load(&self.resources_file());
            let resize = &mut self.memory.resize;
            resize.allocation = kept.unwrap_or_else(|| Allocation::of(spec));
            // A former agent may have begun what it could not finish.
            let applied = resize.allocation.applied(&desired.pod);
            let given = applied.as_ref().map_or(spec, spec_of);
            let mut all = given.containers.iter().chain(given.init_containers.iter().flatten());
            resize.under_way =
                all.any(|c| resize.allocation.change(c) != Change::None) || resize.allocation.pod_changes();
            resize.generation = desired.pod.metadata.generation;
            resize.pending = reported(&desired);
        }
        let Some(applied) = self.memory.resize.allocation.applied(&desired.pod) else {
            if self.memory.resize.pending.take().is_some() {
                self.shared.directory.wishes_nothing(&self.reference.uid);
            }
            return desired;
        };
        if running && self.admit_resize(&desired, &applied) {
            return desired;
        }
        DesiredPod { pod: Arc::new(applied), ..desired }
    }

    /// Gives the pod what it asks for, if the node has it and it is its turn.
    fn admit_resize(&mut self, desired: &DesiredPod, given: &Pod) -> bool {
        let generation = desired.pod.metadata.generation;
        let spec = spec_of(&desired.pod);
        let config = &self.shared.config;
        let swaps = config.limited_swap && self.shared.cgroups.is_v2() && !is_critical(&desired.pod);
        let never = given.spec.as_ref().and_then(|given| infeasible(spec, given, config.resizes, swaps));
        let admitted = match never {
            Some(message) => {
                self.shared.directory.wishes_nothing(&self.reference.uid);
                Err(("Infeasible", message))
            }
            None => self.find_room(&desired.pod).map_err(|message| ("Deferred", message)),
        };
        let Err((reason, message)) = admitted else {
            let resize = &mut self.memory.resize;
            let Allocation { allocated, allocated_pod, .. } = Allocation::of(spec);
            (resize.allocation.allocated, resize.allocation.allocated_pod) = (allocated, allocated_pod);
            (resize.pending, resize.error, resize.under_way) = (None, None, true);
            resize.generation = generation;
            self.keep_resources();
            let text = resize::text("started", spec, generation, "");
            self.shared.tell(&self.reference, EventType::Normal, "ResizeStarted", text);
            return true;
        };
        let before = self.memory.resize.pending.as_ref();
        if before.is_none_or(|before| before.reason != reason || before.generation != generation) {
            let text = resize::text(reason, spec, generation, &message);
            let event = if reason == "Infeasible" { "ResizeInfeasible" } else { "ResizeDeferred" };
            self.shared.tell(&self.reference, EventType::Warning, event, text);
        }
        self.memory.resize.pending = Some(Pending { reason, message, generation });
        false
    }

    fn find_room(&self, pod: &Arc<Pod>) -> Result<(), String> {
        let now = self.shared.clock.now().monotonic;
        let (node, app_armor) = (self.shared.countable(&self.shared.node()), app_armor_enabled());
        self.shared.directory.replace_if(pod, now, |pod, others| {
            let config = &self.shared.config;
            let rules = Rules { sysctls: &config.sysctls, features: &config.features, app_armor };
            match admission::admit(pod, others, &[], &node, rules) {
                Verdict::Admitted => Ok(()),
                Verdict::Rejected(rejection) => Err(rejection.text),
                Verdict::Preempts(..) => Err("no other pod ends for a resize".to_owned()),
            }
        })
    }

    /// Tells that every running container has what the pod was given.
    pub(super) fn finish_resize(&mut self, desired: &DesiredPod, seen: &mut Observed) {
        let resize = &mut seen.memory.resize;
        if !resize.under_way {
            return;
        }
        // What does not run gets its resources when it starts; what was ended for them is still to come.
        let (containers, recreate) = (&seen.containers, &seen.memory.recreate);
        let counts = |name: &str| {
            let newest = containers.iter().find(|i| i.name == name);
            recreate.contains(name) || newest.is_some_and(|i| i.state == InstanceState::Running)
        };
        let waits = |c: &Container| counts(&c.name) && resize.allocation.change(c) != Change::None;
        let mut all = desired.containers().iter().chain(desired.init_containers());
        if resize.allocation.pod_changes() || all.any(waits) {
            return;
        }
        resize.under_way = false;
        resize.error = None;
        let spec = spec_of(&desired.pod);
        let text = resize::text("completed", spec, resize.generation, "");
        self.shared.tell(&self.reference, EventType::Normal, "ResizeCompleted", text);
    }

    pub(super) fn resources_file(&self) -> std::path::PathBuf {
        self.shared.volumes.dirs(&self.reference.uid).root().join(RESOURCES_FILE)
    }

    /// Keeps what the pod was given, and what its containers run with.
    pub(super) fn keep_resources(&self) {
        if let Err(error) = self.memory.resize.allocation.save(&self.resources_file()) {
            warn!(%error, "cannot keep the pod's resources: a resize during a restart of the agent may be missed");
        }
    }
}

/// What a former agent told of a resize that waits, so that it is not told again.
fn reported(desired: &DesiredPod) -> Option<Pending> {
    let conditions = desired.pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|c| c.type_ == "PodResizePending" && c.status == "True")?;
    let known = ["Deferred", "Infeasible"];
    let reason = known.into_iter().find(|reason| condition.reason.as_deref() == Some(*reason))?;
    let message = condition.message.clone().unwrap_or_default();
    Some(Pending { reason, message, generation: condition.observed_generation })
}
