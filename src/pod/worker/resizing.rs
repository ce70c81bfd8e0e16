//! Gives the pod the resources that it asks for, when the node has them (A15.1).

use std::sync::Arc;

use stoker_model::handle::EventType;
use tracing::warn;

use super::Worker;
use crate::pod::admission::{self, Rules, Verdict};
use crate::pod::observed::{DesiredPod, Observed, Stage};
use crate::pod::pods::app_armor_enabled;
use crate::pod::resize::{self, Allocation, Change, Pending};

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
            let given =
                resize.allocation.applied(&desired.pod).and_then(|pod| pod.spec).unwrap_or_else(|| spec.clone());
            let mut all = given.containers.iter().chain(given.init_containers.iter().flatten());
            resize.under_way = all.any(|c| resize.allocation.change(c) != Change::None);
            resize.generation = desired.pod.metadata.generation;
        }
        let Some(applied) = self.memory.resize.allocation.applied(&desired.pod) else {
            self.memory.resize.pending = None;
            return desired;
        };
        if running && self.admit_resize(&desired) {
            return desired;
        }
        DesiredPod { pod: Arc::new(applied), ..desired }
    }

    /// Gives the pod what it asks for, if the node has it.
    pub(super) fn admit_resize(&mut self, desired: &DesiredPod) -> bool {
        let generation = desired.pod.metadata.generation;
        let spec = desired.pod.spec.clone().unwrap_or_default();
        let admitted = self.shared.directory.replace_if(&desired.pod, |others| {
            let rules = Rules { sysctls: &self.shared.config.sysctls, app_armor: app_armor_enabled() };
            match admission::admit(&desired.pod, others, &[], &self.shared.countable(&self.shared.node()), rules) {
                Verdict::Admitted => Ok(()),
                Verdict::Rejected(rejection) => Err(rejection.text),
                Verdict::Preempts(_) => Err("no other pod ends for a resize".to_owned()),
            }
        });
        match admitted {
            Ok(()) => {
                let resize = &mut self.memory.resize;
                resize.allocation.allocated = Allocation::of(&spec).allocated;
                (resize.pending, resize.error, resize.under_way) = (None, None, true);
                resize.generation = generation;
                self.keep_resources();
                let text = resize::text("started", &spec, generation, "");
                self.shared.tell(&self.reference, EventType::Normal, "ResizeStarted", text);
                true
            }
            Err(message) => {
                let pending = Pending { reason: "Deferred", message: message.clone(), generation };
                if self.memory.resize.pending.as_ref() != Some(&pending) {
                    let text = resize::text("Deferred", &spec, generation, &message);
                    self.shared.tell(&self.reference, EventType::Warning, "ResizeDeferred", text);
                    self.memory.resize.pending = Some(pending);
                }
                false
            }
        }
    }

    /// Tells that every running container has what the pod was given.
    pub(super) fn finish_resize(&mut self, desired: &DesiredPod, seen: &mut Observed) {
        let resize = &mut seen.memory.resize;
        let waits = |c: &k8s_openapi::api::core::v1::Container| resize.allocation.change(c) != Change::None;
        let all = desired.containers().iter().chain(desired.init_containers());
        if !resize.under_way || all.into_iter().any(waits) {
            return;
        }
        resize.under_way = false;
        resize.error = None;
        let spec = desired.pod.spec.clone().unwrap_or_default();
        let text = resize::text("completed", &spec, resize.generation, "");
        self.shared.tell(&self.reference, EventType::Normal, "ResizeCompleted", text);
    }

    pub(super) fn resources_file(&self) -> std::path::PathBuf {
        self.shared.volumes.dirs(&self.reference.uid).root().join("resources")
    }

    /// Keeps what the pod was given, and what its containers run with.
    pub(super) fn keep_resources(&self) {
        if let Err(error) = self.memory.resize.allocation.save(&self.resources_file()) {
            warn!(%error, "cannot keep the pod's resources: a resize during a restart of the agent may be missed");
        }
    }
}
