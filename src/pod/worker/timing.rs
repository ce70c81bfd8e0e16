//! How long a pod took to start, from two sides: since the agent knew of it, and since it was made, without what only its images and its
//! init containers took (A23.3).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use stoker_model::{metrics, names};

use super::Worker;
use crate::clock::Now;
use crate::pod::observed::Stage;
use crate::pod::sources::is_static;

/// A start that is measured.
#[derive(Debug)]
pub(super) struct Start {
    /// When the agent first knew of the pod.
    seen: Timestamp,
    /// It had begun under an earlier agent: nobody knows what it waited for.
    is_old: bool,
    /// Pulls that run now, and since when (monotonic) at least one does.
    pulls: (u32, Duration),
    /// How long pulls took that are over, counted once where they ran together.
    pulling: Duration,
    runs: bool,
    told: bool,
}

/// What a pod's start took since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Took {
    /// In all.
    pub(super) total: Duration,
    /// Without pulls and init containers; `None` for a pod with volumes that others make.
    pub(super) own: Option<Duration>,
}

impl Start {
    /// Of a pod that has come, or that an earlier agent knew.
    pub(super) fn of(pod: &Pod, now: Now) -> Self {
        let annotations = pod.metadata.annotations.as_ref();
        let seen = annotations.and_then(|all| all.get(names::CONFIG_SEEN)?.parse().ok());
        let is_old = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        let none = Duration::ZERO;
        Self { seen: seen.unwrap_or(now.wall), is_old, pulls: (0, none), pulling: none, runs: false, told: false }
    }

    /// An image is asked for.
    pub(super) fn pull_begins(&mut self, now: Now) {
        if self.pulls.0 == 0 {
            self.pulls.1 = now.monotonic;
        }
        self.pulls.0 += 1;
    }

    /// It is there, or not to be had.
    pub(super) fn pull_ends(&mut self, now: Now) {
        self.pulls.0 = self.pulls.0.saturating_sub(1);
        if self.pulls.0 == 0 {
            self.pulling += now.monotonic.saturating_sub(self.pulls.1);
        }
    }

    /// The status is another one. How long it took since the agent knew of the pod, when it begins to run.
    pub(super) fn reports(&mut self, before: &PodStatus, status: &PodStatus, now: Now) -> Option<Duration> {
        self.runs |= all_run(status);
        let is_first = before.phase.as_deref() != Some("Running") && status.phase.as_deref() == Some("Running");
        (is_first && !self.is_old).then(|| since(self.seen, now))
    }

    /// The API server shows the pod so. What its start took, told once when all its containers are shown to run.
    pub(super) fn shown(&mut self, pod: &Pod, now: Now) -> Option<Took> {
        let status = pod.status.as_ref().filter(|status| all_run(status))?;
        let made = pod.metadata.creation_timestamp.as_ref().filter(|_| !is_static(pod))?.0;
        if !self.runs || self.is_old || std::mem::replace(&mut self.told, true) {
            return None;
        }
        let total = since(made, now);
        let without = total.saturating_sub(self.pulling).saturating_sub(initializing(pod, status));
        Some(Took { total, own: has_own_volumes_only(pod).then_some(without) })
    }
}

impl Worker {
    /// What a round was for is done, well or not.
    pub(super) fn operation_ended(&self) {
        let (kind, begun) = self.under_way;
        let kind = match self.memory.stage {
            Stage::Running => kind,
            Stage::Terminating { .. } => "kill",
            Stage::CleaningUp { .. } | Stage::Finished { .. } => "terminated",
        };
        let took = self.shared.clock.now().monotonic.saturating_sub(begun);
        metrics::POD_WORKER_DURATION.observe(&[kind], took);
    }

    /// A source has told of the pod.
    pub(super) fn shown(&mut self) {
        let now = self.shared.clock.now();
        let took = self.start.shown(&self.desired.borrow().pod, now);
        let Some(Took { total, own }) = took else { return };
        metrics::POD_START_TOTAL_DURATION.observe(&[], total);
        if let Some(own) = own {
            metrics::POD_START_SLI_DURATION.observe(&[], own);
        }
    }
}

fn since(then: Timestamp, now: Now) -> Duration {
    Duration::try_from(now.wall.duration_since(then)).unwrap_or_default()
}

fn all_run(status: &PodStatus) -> bool {
    let mut all = status.container_statuses.iter().flatten().peekable();
    let running = |state: &k8s_openapi::api::core::v1::ContainerState| {
        state.running.as_ref().is_some_and(|running| running.started_at.is_some())
    };
    all.peek().is_some() && all.all(|container| container.state.as_ref().is_some_and(running))
}

/// What the init containers took that have ended.
fn initializing(pod: &Pod, status: &PodStatus) -> Duration {
    let is_sidecar = |name: &str| {
        let mut all = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        all.any(|container| container.name == name && container.restart_policy.as_deref() == Some("Always"))
    };
    let inits = status.init_container_statuses.iter().flatten().filter(|init| !is_sidecar(&init.name));
    let took = inits.filter_map(|init| {
        let ended = init.state.as_ref()?.terminated.as_ref()?;
        let (from, to) = (ended.started_at.as_ref()?.0, ended.finished_at.as_ref()?.0);
        Duration::try_from(to.duration_since(from)).ok()
    });
    took.sum()
}

/// No volume has to come from elsewhere.
fn has_own_volumes_only(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).all(|volume| {
        volume.secret.is_some()
            || volume.config_map.is_some()
            || volume.downward_api.is_some()
            || volume.empty_dir.is_some()
            || volume.projected.is_some()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(seconds: i64) -> Now {
        let wall = Timestamp::from_second(1000 + seconds).expect("a moment");
        Now { wall, monotonic: Duration::from_secs(u64::try_from(seconds).expect("later")) }
    }

    fn time(seconds: i64) -> String {
        at(seconds).wall.to_string()
    }

    /// Made at 0, seen by the agent at 2.
    fn pod(spec: Value, status: Value) -> Pod {
        let metadata = json!({
            "name": "p", "creationTimestamp": time(0), "annotations": { "kubernetes.io/config.seen": time(2) }
        });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec, "status": status })).expect("a pod")
    }

    fn status(phase: &str, runs: bool) -> Value {
        let state = if runs { json!({ "running": { "startedAt": time(28) } }) } else { json!({ "waiting": {} }) };
        let init = json!({ "terminated": { "startedAt": time(10), "finishedAt": time(15), "exitCode": 0 } });
        let of = |name: &str, state: &Value| json!({ "name": name, "state": state, "image": "", "imageID": "", "ready": runs, "restartCount": 0 });
        json!({ "phase": phase, "containerStatuses": [of("c", &state)],
            "initContainerStatuses": [of("i", &init), of("s", &init)] })
    }

    fn spec(volume: Value) -> Value {
        let sidecar = json!({ "name": "s", "restartPolicy": "Always" });
        json!({ "containers": [{ "name": "c" }], "initContainers": [{ "name": "i" }, sidecar], "volumes": [volume] })
    }

    #[test]
    fn a_start_is_measured_without_what_pulls_and_init_containers_take() {
        // A23.3
        let begun = pod(spec(json!({ "name": "v", "emptyDir": {} })), json!({}));
        let mut start = Start::of(&begun, at(3));
        // Two pulls, from 3 to 7 and from 5 to 9, are six seconds of pulling.
        start.pull_begins(at(3));
        start.pull_begins(at(5));
        start.pull_ends(at(7));
        start.pull_ends(at(9));
        let parsed = |value: Value| -> PodStatus { serde_json::from_value(value).expect("a status") };
        let (pending, running) = (parsed(status("Pending", false)), parsed(status("Running", true)));
        let shown = Pod { status: Some(running.clone()), ..begun.clone() };
        assert_eq!(start.shown(&shown, at(29)), None, "it was not told to run");
        assert_eq!(start.reports(&PodStatus::default(), &pending, at(9)), None);
        assert_eq!(start.reports(&pending, &running, at(30)), Some(Duration::from_secs(28)));
        assert_eq!(start.reports(&running, &running, at(31)), None, "it ran already");
        // The init container took five seconds; the sidecar is none.
        let took = Took { total: Duration::from_secs(32), own: Some(Duration::from_secs(32 - 6 - 5)) };
        assert_eq!(start.shown(&begun, at(31)), None, "nobody shows that it runs");
        assert_eq!((start.shown(&shown, at(32)), start.shown(&shown, at(33))), (Some(took), None));
    }

    #[test]
    fn only_starts_that_were_seen_whole_are_measured() {
        // A23.3
        let runs = |volume: Value, started: bool| {
            let mut before = pod(spec(volume), json!({}));
            if started {
                before.status = serde_json::from_value(json!({ "startTime": time(1) })).expect("a status");
            }
            let running: PodStatus = serde_json::from_value(status("Running", true)).expect("a status");
            let mut start = Start::of(&before, at(3));
            let since_seen = start.reports(&PodStatus::default(), &running, at(30));
            before.status = Some(running);
            (since_seen.is_some(), start.shown(&before, at(31)))
        };
        let secret = json!({ "name": "v", "secret": { "secretName": "s" } });
        assert!(matches!(runs(secret.clone(), false), (true, Some(Took { own: Some(_), .. }))));
        let claim = json!({ "name": "v", "persistentVolumeClaim": { "claimName": "c" } });
        assert!(matches!(runs(claim, false), (true, Some(Took { own: None, .. }))));
        assert_eq!(runs(secret, true), (false, None), "an earlier agent began it");
    }
}
