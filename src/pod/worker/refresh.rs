//! Brings the content of a pod's volumes up to date: when an object that they show has changed, when the pod's own labels have,
//! and now and then, for tokens (A9.8, A9.9, A9.11).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use stoker_model::handle::EventType;
use tracing::Instrument;

use super::effects::mount_delay;
use super::{Report, Worker};
use crate::pod::observed::{Stage, VolumesState};

/// What tells whether a pod has other labels or annotations than before. They themselves would be kept for each pod, for a few that ever
/// change.
pub(super) fn print_of_fields(pod: &Pod) -> u64 {
    let mut print = DefaultHasher::new();
    (&pod.metadata.labels, &pod.metadata.annotations).hash(&mut print);
    print.finish()
}

/// Whether the content of volumes is brought up to date just now. Never twice at once: they would write the same files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refresh {
    Idle,
    Running,
    /// Something has changed meanwhile.
    Again,
}

impl Worker {
    /// Whether a volume shows labels or annotations, and they have changed since the volumes were written (A9.9).
    pub(super) fn shows_pod_fields(&mut self) -> bool {
        let desired = self.desired.borrow();
        let fields = print_of_fields(&desired.pod);
        if std::mem::replace(&mut self.shown_fields, fields) == fields {
            return false;
        }
        let volumes = desired.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        volumes.into_iter().any(|volume| {
            let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
            volume.downward_api.is_some() || sources.into_iter().any(|s| s.downward_api.is_some())
        })
    }

    /// An object that volumes show, or that they wait for, is another one now.
    pub(super) fn volumes_changed(&mut self) {
        if let VolumesState::Failed { retry_at, .. } = &mut self.memory.volumes {
            *retry_at = Duration::ZERO;
            self.mount_failures = 0;
        }
        self.refresh_volumes();
    }

    /// Brings the content of volumes up to date, beside everything else (A9.8).
    pub(super) fn refresh_volumes(&mut self) {
        let desired = self.desired.borrow().clone();
        if self.memory.volumes != VolumesState::Mounted || self.memory.stage != Stage::Running || desired.gone {
            return;
        }
        if self.refresh != Refresh::Idle {
            self.refresh = Refresh::Again;
            return;
        }
        self.refresh = Refresh::Running;
        let (shared, pod, changed) = (self.shared.clone(), self.reference.clone(), self.volumes_changed.clone());
        let work = async move {
            let now = shared.clock.now();
            let mounted = shared.volumes.refresh(&desired.pod, &shared.node(), now, &changed).await;
            let well = mounted.is_ok();
            for failure in mounted.err().into_iter().flatten() {
                if let Some(reason) = failure.reason() {
                    shared.tell(&pod, EventType::Warning, reason, failure.to_string());
                }
            }
            Report { hand: false, refresh: Some(well), effects: Vec::new() }
        };
        self.tasks.spawn(work.in_current_span());
    }

    /// What a former agent mounted may need a driver that has not come yet: what was not brought up to date is tried again as mounts are.
    pub(super) fn refreshed(&mut self, well: bool) {
        let delay = mount_delay(self.refresh_failures);
        self.refresh_at = (!well).then(|| self.shared.clock.now().monotonic + delay);
        self.refresh_failures = if well { 0 } else { self.refresh_failures + 1 };
        if std::mem::replace(&mut self.refresh, Refresh::Idle) == Refresh::Again {
            self.refresh_volumes();
        }
    }
}
