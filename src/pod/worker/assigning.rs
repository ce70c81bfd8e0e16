//! Has the pod given what its containers shall have for themselves, before anything else is done about it (A15.5).

use stoker_model::handle::EventType;

use super::Worker;
use crate::pod::observed::{Cause, Stage};

impl Worker {
    /// A pod that is not given it is rejected. What runs already has it.
    pub(super) async fn assign(&mut self) {
        let pod = {
            let desired = self.desired.borrow();
            if self.memory.stage != Stage::Running || desired.gone || desired.deleted() {
                return;
            }
            desired.pod.clone()
        };
        let runs = match &self.view {
            Some((sandboxes, _)) => sandboxes.iter().any(|sandbox| sandbox.ready),
            // The runtime does not answer: what the API server was told last has to do.
            None => self.previous.phase.as_deref() == Some("Running"),
        };
        if runs || matches!(self.previous.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return;
        }
        let assigned = tokio::select! {
            // Boxed as looks are: this is done once.
            assigned = Box::pin(self.shared.assignments.admit(&pod)) => assigned,
            () = self.stop.cancelled() => return,
        };
        if let Err(refusal) = assigned {
            self.shared.tell(&self.reference, EventType::Warning, &refusal.reason, refusal.text.clone());
            let message = format!("Pod was rejected: {}", refusal.text);
            self.memory.stage = Stage::CleaningUp { cause: Cause::Rejected { reason: refusal.reason, message } };
        }
    }
}
