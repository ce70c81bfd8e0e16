//! The end of a pod: volumes and control group, the last status, and everything that is left (A1.11). A step that fails does not
//! keep the others from running.

use stoker_model::handle::{ApiError, EventType};
use stoker_model::names;
use stoker_model::resources::{QosClass, qos_class};

use super::{Effect, Hand, Outcome};
use crate::runtime::{RuntimeError, cri};

const CLASSES: [QosClass; 3] = [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort];

impl Hand {
    pub(super) async fn tear_down(&mut self) -> Outcome {
        let problems = self.undo().await;
        if problems.is_empty() {
            self.effects.push(Effect::TornDown);
            return Outcome::Done;
        }
        tracing::warn!(pod = %self.reference, ?problems, "the pod is not quite gone yet; it is tried again");
        let message = format!("error cleaning up the pod: {}", problems.join("; "));
        self.shared.tell(&self.reference, EventType::Warning, "FailedKillPod", message);
        self.effects.push(Effect::Stuck);
        Outcome::Stop
    }

    /// Unmounts, and removes the control group; of a pod whose spec is lost, whatever class it was made in.
    async fn undo(&mut self) -> Vec<String> {
        let uid = &self.reference.uid;
        // Whoever the cluster gives the devices to next must find them free, so nothing is told before this.
        let claims = self.shared.assignments.unprepare_claims(uid).await.err();
        let claims = claims.map(|error| format!("unprepare dynamic resources: {error}"));
        let volumes = self.shared.volumes.unmount(uid).await.into_iter().map(|e| e.to_string());
        let spec = self.pod.spec.as_ref().filter(|spec| !spec.containers.is_empty());
        let classes = spec.map_or_else(|| CLASSES.to_vec(), |spec| vec![qos_class(spec)]);
        let groups = classes.into_iter().filter_map(|qos| {
            let removed = self.shared.cgroups.remove_pod(qos, uid.as_str());
            removed.err().map(|e| e.to_string())
        });
        claims.into_iter().chain(volumes).chain(groups).collect()
    }

    pub(super) async fn report(&mut self) -> Outcome {
        let flushed = std::mem::replace(&mut self.flushed, Box::pin(std::future::ready(())));
        flushed.await;
        match self.shared.api.delete_finished(&self.reference).await {
            Ok(()) | Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => {
                self.effects.push(Effect::Reported);
                Outcome::Done
            }
            Err(error) => {
                tracing::debug!(pod = %self.reference, %error, "the pod is deleted later");
                self.effects.push(Effect::Stuck);
                Outcome::Stop
            }
        }
    }

    /// The pod is no longer in any source: nothing of it needs to be kept.
    pub(super) async fn remove_everything(&mut self) -> Outcome {
        let mut problems = if self.torn_down { Vec::new() } else { self.undo().await };
        match self.all_sandboxes().await {
            Err(error) => problems.push(error.to_string()),
            Ok(sandboxes) => {
                for (id, stopped) in sandboxes {
                    // A sandbox takes its containers with it, and needs to be stopped for its network to be given back.
                    let _awaited = self.shared.runtime.without_events_of(&id);
                    let stopped = if stopped { Ok(()) } else { self.shared.runtime.stop_pod_sandbox(&id).await };
                    let removed = self.shared.runtime.remove_pod_sandbox(&id).await;
                    let failed = [stopped, removed].into_iter().filter_map(Result::err).filter(|e| !e.is_not_found());
                    problems.extend(failed.map(|e| e.to_string()));
                }
            }
        }
        self.remove_logs();
        // Last: the directory tells the next agent that something of the pod may be left.
        if problems.is_empty()
            && let Err(error) = self.shared.volumes.remove_dirs(&self.reference.uid)
        {
            problems.push(error.to_string());
        }
        if problems.is_empty() {
            if let Some(users) = &self.shared.config.users {
                users.release(&self.reference.uid);
            }
            self.effects.push(Effect::Gone);
            return Outcome::Done;
        }
        tracing::warn!(pod = %self.reference, ?problems, "what is left of the pod cannot be removed; it is tried again");
        self.effects.push(Effect::Stuck);
        Outcome::Stop
    }

    /// With whether each was stopped.
    async fn all_sandboxes(&mut self) -> Result<Vec<(String, bool)>, RuntimeError> {
        if let Some(known) = self.sandboxes.take() {
            return Ok(known);
        }
        let labels = [(names::POD_UID.to_owned(), self.reference.uid.to_string())];
        let filter = cri::PodSandboxFilter { label_selector: labels.into(), ..Default::default() };
        let all = self.shared.runtime.list_pod_sandbox(Some(filter)).await?;
        Ok(all.into_iter().map(|sandbox| (sandbox.id, false)).collect())
    }

    fn remove_logs(&self) {
        // What cannot be removed harms nobody.
        let config = &self.shared.config;
        let own = self.shared.log_dir(&self.reference);
        let (dirs, prefix) = if own.is_dir() {
            (vec![own], format!("{}_{}_", self.reference.name, self.reference.namespace))
        } else {
            // Of a pod whose sandboxes are gone already nobody may know the name: it is found by the UID.
            let suffix = format!("_{}", self.reference.uid);
            let dirs = std::fs::read_dir(&config.log_dir).into_iter().flatten().flatten();
            let dirs = dirs.filter(|dir| dir.file_name().to_string_lossy().ends_with(&suffix));
            (dirs.map(|dir| dir.path()).collect(), String::new())
        };
        for dir in dirs {
            let links = std::fs::read_dir(&config.link_dir).into_iter().flatten().flatten();
            for link in links.filter(|link| link.file_name().to_string_lossy().starts_with(&prefix)) {
                if std::fs::read_link(link.path()).is_ok_and(|log| log.starts_with(&dir)) {
                    let _ = std::fs::remove_file(link.path());
                }
            }
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}
