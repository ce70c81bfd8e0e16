//! Does what a plan says: the only place that acts on a pod. What it learns goes back as [`Effect`]s, which the worker remembers.

mod containers;
mod hooks;
mod images;
mod mounts;
mod resize;
mod sandboxes;
mod stops;
mod teardown;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, VolumeProjection};
use stoker_model::handle::EventType;
use stoker_model::pod::{PodRef, spec_of};
use tokio::sync::{Notify, watch};
use tracing::{Instrument, Span, info_span};

pub(super) use hooks::run_post_start;
pub(super) use images::{find_image, look_for_image};
pub(super) use stops::{StopRequest, run_pre_stop, stop_container};

use super::observed::{DesiredPod, ImageKey, PullFailure, Sandbox};
use super::plan::Step;
use super::shared::Shared;
use super::slow::described;
use super::turns::Launch;
use crate::cgroup::PodLimits;
use crate::clock::Clock;
use crate::runtime::Awaited;
use crate::volume::MountFailure;

/// The certificates of the API server, which the control plane puts into every namespace.
const ROOT_CA: &str = "kube-root-ca.crt";

/// What a step changed, or failed to.
#[derive(Debug)]
pub(super) enum Effect {
    CgroupReady,
    VolumesMounted,
    /// Try again after a back-off.
    VolumesFailed(String),
    /// The pod cannot stay on this node.
    Rejected {
        reason: &'static str,
        text: String,
    },
    SandboxMade {
        id: String,
    },
    /// Nothing in it runs any more, and its network is given back.
    SandboxStopped {
        id: String,
        awaited: Awaited,
    },
    SandboxRemoved {
        id: String,
    },
    SandboxFailed {
        reason: &'static str,
        message: String,
        retry: Duration,
    },
    ImageFound {
        key: ImageKey,
        id: String,
        uid: Option<i64>,
        username: String,
    },
    /// It is not there; nothing was pulled yet.
    ImageAbsent {
        key: ImageKey,
    },
    ImageMissing {
        key: ImageKey,
        reason: &'static str,
        message: String,
        pulled: bool,
    },
    /// A container was made from this image; `ended`: when the instance before it ended.
    Created {
        name: String,
        id: String,
        sandbox: String,
        image: ImageKey,
        ended: Option<Timestamp>,
    },
    Started {
        name: String,
        id: String,
    },
    ContainerRemoved {
        id: String,
    },
    ContainerFailed {
        name: String,
        reason: &'static str,
        message: String,
    },
    /// A postStart hook came to its end.
    HookEnded {
        name: String,
        id: String,
        failed: Option<String>,
    },
    /// A running container has the resources that the pod was given.
    Resized {
        name: String,
    },
    /// The pod as a whole has them.
    PodResized,
    ResizeFailed {
        message: String,
    },
    /// A stop came to its end; without `awaited` it failed.
    StopEnded {
        id: String,
        awaited: Option<Awaited>,
    },
    /// A call has failed: what the runtime has of the pod is to be looked at.
    Unsure,
    TornDown,
    Reported,
    /// Nothing of the pod is left.
    Gone,
    /// A step of the pod's end, or its control group, failed: try again after a back-off.
    Stuck,
}

/// What the steps of one plan work with.
pub(super) struct Hand {
    pub(super) shared: Arc<Shared>,
    pub(super) pod: Arc<Pod>,
    pub(super) reference: PodRef,
    /// Tells when the pod is to end, so that nothing new is begun.
    pub(super) desired: watch::Receiver<DesiredPod>,
    /// The sandbox to make containers in.
    pub(super) sandbox: Option<Sandbox>,
    /// IDs and users of images that were found.
    pub(super) images: Vec<(ImageKey, String, super::security::ImageUser)>,
    /// Notified when the content of a volume is to be brought up to date.
    pub(super) volumes_changed: Arc<Notify>,
    /// Resolves when the status has been written.
    pub(super) flushed: futures::future::BoxFuture<'static, ()>,
    /// All sandboxes of the pod, and whether each was stopped; `None`: the runtime is asked.
    pub(super) sandboxes: Option<Vec<(String, bool)>>,
    /// Volumes and control group are gone.
    pub(super) torn_down: bool,
    pub(super) effects: Vec<Effect>,
}

/// What a collector of spans is told of a step, with kubelet's names.
pub(super) fn step_span(pod: &PodRef, step: &Step) -> Span {
    let step = described(step).unwrap_or_else(|| "end pod".to_owned());
    info_span!(
        target: "otel", "step", otel.name = step, k8s.pod.uid = %pod.uid, k8s.pod.name = pod.name,
        k8s.namespace.name = pod.namespace,
    )
}

/// Whether the steps after one may run.
pub(super) enum Outcome {
    Done,
    /// Those of this container may not.
    Skip(String),
    /// None may.
    Stop,
}

impl Hand {
    /// Runs the steps in their order, after a pause, and tells what came of them.
    pub(super) async fn run(mut self, steps: Vec<Step>, pause: Duration) -> Vec<Effect> {
        let ends_at_start = self.ends();
        if !pause.is_zero() {
            let mut desired = self.desired.clone();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The pod is to end: these steps were meant for one that runs.
                _ = desired.wait_for(|d| d.gone || d.deleted()), if !ends_at_start => {}
            }
        }
        let mut skipped: Vec<String> = Vec::new();
        let mut made: Option<(String, String)> = None;
        let mut steps = steps.into_iter().peekable();
        while let Some(step) = steps.next() {
            if self.ends() && !ends_at_start {
                break;
            }
            if let Step::CreateContainer { name, .. } | Step::StartContainer { name, .. } = &step
                && skipped.contains(name)
            {
                continue;
            }
            tracing::debug!(pod = %self.reference, ?step, "step");
            let span = step_span(&self.reference, &step);
            let (mut said, begun) = (described(&step), Clock.now().monotonic);
            let mut changes_runtime = step.changes_runtime();
            let outcome = match steps.peek() {
                Some(&Step::RunSandbox { attempt, changed }) if step == Step::MountVolumes && self.mounts_surely() => {
                    steps.next();
                    let both = "run sandbox, mount volumes";
                    said = Some(both.to_owned());
                    changes_runtime = true;
                    span.record("otel.name", both);
                    self.mount_beside_sandbox(attempt, changed).instrument(span).await
                }
                _ => self.step(step, &mut made).instrument(span).await,
            };
            let took = Clock.now().monotonic.saturating_sub(begun);
            self.shared.directory.slow.note(&self.reference, said, took);
            if changes_runtime && !matches!(outcome, Outcome::Done) {
                self.effects.push(Effect::Unsure);
            }
            match outcome {
                Outcome::Done => {}
                Outcome::Skip(name) => skipped.push(name),
                Outcome::Stop => break,
            }
        }
        self.effects
    }

    fn ends(&self) -> bool {
        let desired = self.desired.borrow();
        desired.gone || desired.deleted()
    }

    /// What needs much room is boxed: it gets it when it is its turn.
    async fn step(&mut self, step: Step, made: &mut Option<(String, String)>) -> Outcome {
        match step {
            Step::MakeCgroup => self.make_cgroup(),
            Step::MountVolumes => Box::pin(self.mount_volumes()).await,
            Step::ReportNetworkNotReady => self.report_network_not_ready(),
            Step::RunSandbox { attempt, changed } => self.run_sandbox(attempt, changed).await,
            Step::StopSandbox { id } => self.stop_sandbox(&id).await,
            Step::CreateContainer { name, image, restart_count, restarts, target } => {
                match Box::pin(self.create_container(&name, &image, restart_count, target.as_deref())).await {
                    Ok(id) => {
                        let sandbox = self.sandbox.as_ref().map(|s| s.id.clone()).unwrap_or_default();
                        let (of, ended) = (name.clone(), restarts);
                        self.effects.push(Effect::Created { name: of, id: id.clone(), sandbox, image, ended });
                        *made = Some((name, id));
                        Outcome::Done
                    }
                    Err((reason, message)) => self.container_failed(name, reason, message),
                }
            }
            Step::StartContainer { name, id } => {
                let id = id.or_else(|| made.take().filter(|(n, _)| *n == name).map(|(_, id)| id));
                match id {
                    Some(id) => self.start_container(name, &id).await,
                    None => Outcome::Skip(name),
                }
            }
            Step::Resize { running } => Box::pin(self.resize(running)).await,
            Step::RemoveContainer { id, keep_log } => self.remove_container(&id, keep_log).await,
            Step::RemoveSandbox { id } => self.remove_sandbox(&id).await,
            Step::TearDown => Box::pin(self.tear_down()).await,
            Step::Report => self.report().await,
            Step::RemoveEverything => Box::pin(self.remove_everything()).await,
            // These run beside the others: the worker starts them itself.
            Step::FindImage(_)
            | Step::LookForImage(_)
            | Step::RunPreStop { .. }
            | Step::StopContainer(_)
            | Step::ShortenGrace { .. } => Outcome::Done,
        }
    }

    fn make_cgroup(&mut self) -> Outcome {
        let spec = spec_of(&self.pod);
        let cgroups = &self.shared.cgroups;
        let mut limits = PodLimits::of(spec);
        if self.shared.assignments.has_own_cpus(&self.reference.uid) {
            limits.milli_cpu = None;
        }
        match cgroups.make_pod(self.reference.uid.as_str(), &limits) {
            Ok(()) => {
                self.effects.push(Effect::CgroupReady);
                Outcome::Done
            }
            Err(error) => {
                let message = format!("unable to ensure pod container exists: {error}");
                self.shared.tell(&self.reference, EventType::Warning, "FailedCreatePodContainer", message.clone());
                let retry = Duration::from_secs(10);
                self.effects.push(Effect::SandboxFailed { reason: "CreatePodSandboxError", message, retry });
                Outcome::Stop
            }
        }
    }

    async fn mount_volumes(&mut self) -> Outcome {
        if let Err(outcome) = self.make_dirs() {
            return outcome;
        }
        let shared = self.shared.clone();
        let (node, now) = (shared.node(), shared.clock.now());
        let ends_already = self.ends();
        let mut desired = self.desired.clone();
        tokio::select! {
            mounted = shared.volumes.mount(&self.pod, &node, now, &self.volumes_changed) => self.volumes_mounted(mounted),
            // What has begun is taken away with the pod.
            _ = desired.wait_for(|d| d.gone || d.deleted()), if !ends_already => Outcome::Stop,
        }
    }

    /// Whether the pod's volumes are those that nearly every pod has, which nothing can be missing for but the API server: what it
    /// takes to fetch their content is hidden behind what the sandbox takes.
    fn mounts_surely(&self) -> bool {
        let of_source = |source: &VolumeProjection| {
            let map = source.config_map.as_ref();
            map.is_none_or(|map| map.name == ROOT_CA)
                && source.secret.is_none()
                && source.cluster_trust_bundle.is_none()
                && source.pod_certificate.is_none()
        };
        let mut volumes = self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        volumes.all(|volume| {
            let projected = volume.projected.as_ref();
            volume.empty_dir.is_some()
                || volume.downward_api.is_some()
                || projected.is_some_and(|p| p.sources.iter().flatten().all(of_source))
        })
    }

    /// Both at once, when it is the pod's turn: of many that wait for theirs none takes room for its volumes' content, or asks for it. Should
    /// a volume fail after all, the sandbox is there already when it is mounted later.
    async fn mount_beside_sandbox(&mut self, attempt: u32, changed: bool) -> Outcome {
        let turns = self.shared.turns.clone();
        turns.take(Launch::Sandbox, || self.mount_and_run(attempt, changed)).await
    }

    async fn mount_and_run(&mut self, attempt: u32, changed: bool) -> Outcome {
        if let Err(outcome) = self.make_dirs() {
            return outcome;
        }
        let (config, handler) = match Box::pin(self.prepare_sandbox(attempt, changed)).await {
            Ok(prepared) => prepared,
            Err(outcome) => return outcome,
        };
        let (shared, pod, notify) = (self.shared.clone(), self.pod.clone(), self.volumes_changed.clone());
        let (node, now) = (shared.node(), shared.clock.now());
        let (mounted, made) = tokio::join!(
            shared.volumes.mount(&pod, &node, now, &notify),
            shared.runtime.run_pod_sandbox(config, &handler)
        );
        match (self.volumes_mounted(mounted), self.sandbox_made(made)) {
            (Outcome::Done, outcome) | (outcome, _) => outcome,
        }
    }

    fn make_dirs(&mut self) -> Result<(), Outcome> {
        let made = self.shared.volumes.make_dirs(&self.reference.uid);
        made.map(drop).map_err(|error| {
            let message = format!("error making pod data directories: {error}");
            self.shared.tell(&self.reference, EventType::Warning, "Failed", message.clone());
            self.effects.push(Effect::VolumesFailed(message));
            Outcome::Stop
        })
    }

    fn volumes_mounted(&mut self, mounted: Result<(), Vec<MountFailure>>) -> Outcome {
        let Err(failures) = mounted else {
            self.effects.push(Effect::VolumesMounted);
            return Outcome::Done;
        };
        let mut message = String::new();
        for failure in failures {
            message = failure.to_string();
            if let Some(reason) = failure.rejects() {
                self.effects.push(Effect::Rejected { reason, text: message });
                return Outcome::Stop;
            }
            if let Some(reason) = failure.reason() {
                self.shared.tell(&self.reference, EventType::Warning, reason, message.clone());
            }
        }
        self.effects.push(Effect::VolumesFailed(message));
        Outcome::Stop
    }

    fn container_failed(&mut self, name: String, reason: &'static str, message: String) -> Outcome {
        let kind = self.kind(&name);
        let text = format!("Error: {message}");
        self.shared.tell_of(&self.reference, (kind, &name), EventType::Warning, "Failed", text);
        self.effects.push(Effect::ContainerFailed { name: name.clone(), reason, message });
        Outcome::Skip(name)
    }

    fn kind(&self, name: &str) -> super::observed::Kind {
        self.desired.borrow().container(name).map_or(super::observed::Kind::Regular, |(kind, _)| kind)
    }
}

/// How an image that is not to be had waits; the first plan after it shows the failure, later ones the back-off.
pub(super) fn pull_failure(
    last: Option<&PullFailure>,
    reason: &'static str,
    message: String,
    pulled: bool,
    now: crate::clock::Now,
) -> PullFailure {
    use super::backoff::{Backoff, LONGEST};
    let backoff = Backoff::grown(last.map(|l| &l.backoff), now.wall, now.wall, LONGEST);
    PullFailure {
        reason,
        message,
        pulled,
        backoff_at: now.monotonic + backoff.delay.min(Duration::from_secs(10)) / 2,
        retry_at: now.monotonic + backoff.delay,
        backoff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_moved_for_each_round_of_steps_is_small() {
        // It was 133 kB, which the allocator fetched from the kernel and gave back for each round. Many pods wait in it for their turn.
        fn size<A, B, C, F: Future>(_: fn(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        assert!(size(Hand::run) < 5 << 10, "{}", size(Hand::run));
    }
}
