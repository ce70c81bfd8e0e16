//! What is known of a pod: what the runtime shows, and what the worker remembers of its own steps.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, ImageVolumeSource, Pod};
use stoker_model::resources::is_sidecar;

use super::backoff::Backoff;
use super::resize::Resize;
pub(super) use crate::probe::Verdict as ProbeVerdict;

/// What its sources want of a pod.
#[derive(Clone, Debug)]
pub(super) struct DesiredPod {
    /// The newest version.
    pub(super) pod: Arc<Pod>,
    /// No source has it any more: it was deleted by force, or while the agent was down (A1.12, A1.14).
    pub(super) gone: bool,
    /// The node ends it.
    pub(super) ended: Option<Cause>,
    /// The node is short of disk: finished, it keeps nothing in the runtime (A13.7).
    pub(super) released: bool,
}

impl DesiredPod {
    /// `spec.restartPolicy`.
    pub(super) fn restart_policy(&self) -> &str {
        self.pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
    }

    /// Regular containers.
    pub(super) fn containers(&self) -> &[Container] {
        self.pod.spec.as_ref().map_or(&[], |s| &s.containers)
    }

    /// Init containers, sidecars among them.
    pub(super) fn init_containers(&self) -> &[Container] {
        self.pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
    }

    /// Ephemeral containers, in the form of the others (A3.7).
    pub(super) fn ephemeral_containers(&self) -> Vec<Container> {
        let list = self.pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
        list.iter().map(as_container).collect()
    }

    /// The container whose processes an ephemeral container sees (A3.7).
    pub(super) fn target_of(&self, name: &str) -> Option<&str> {
        let list = self.pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
        let target = list.iter().find(|e| e.name == name)?.target_container_name.as_deref();
        target.filter(|target| !target.is_empty())
    }

    /// The container of that name, of whatever kind.
    pub(super) fn container(&self, name: &str) -> Option<(Kind, Cow<'_, Container>)> {
        let regular = self.containers().iter().map(|c| (Kind::Regular, c));
        let init = self.init_containers().iter().map(|c| (Kind::Init, c));
        let found = regular.chain(init).find(|(_, c)| c.name == name).map(|(kind, c)| (kind, Cow::Borrowed(c)));
        let ephemeral = || self.ephemeral_containers().into_iter().find(|c| c.name == name);
        found.or_else(|| ephemeral().map(|c| (Kind::Ephemeral, Cow::Owned(c))))
    }

    /// The images that a container mounts as volumes (A9.20).
    pub(super) fn volume_images(&self, container: &Container) -> Vec<ImageKey> {
        let volumes = self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let mounted = |name: &String| container.volume_mounts.iter().flatten().any(|mount| mount.name == *name);
        volumes.filter(|v| mounted(&v.name)).filter_map(|v| v.image.as_ref().map(ImageKey::of_volume)).collect()
    }

    /// The grace period that the pod asks for.
    pub(super) fn spec_grace(&self) -> Duration {
        let seconds = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    }

    /// How long the node gives it at most, if the node ends it in haste.
    pub(super) fn ended_grace(&self) -> Option<Duration> {
        match &self.ended {
            Some(Cause::Killed { grace: Some(grace), .. }) => Some((*grace).min(self.spec_grace())),
            _ => None,
        }
    }

    /// Whether the pod lives in the node's network.
    pub(super) fn host_network(&self) -> bool {
        self.pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or_default()
    }

    /// Whether somebody asked for the pod's deletion.
    pub(super) fn deleted(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Whether the container has resources of its own: an ephemeral one has none.
    pub(super) fn target_kind(&self, name: &str) -> bool {
        self.containers().iter().chain(self.init_containers()).any(|c| c.name == name)
    }

    /// Whether the container is a sidecar of this pod (A3.3).
    pub(super) fn is_sidecar(&self, name: &str) -> bool {
        self.init_containers().iter().any(|c| c.name == name && is_sidecar(c))
    }
}

/// Where a container stands in the pod's spec.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Init,
    Regular,
    Ephemeral,
}

impl Kind {
    /// The path of a container in its pod, as events name it (A21.3).
    pub(super) fn field_path(self, name: &str) -> String {
        let list = match self {
            Self::Init => "initContainers",
            Self::Regular => "containers",
            Self::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{name}}}")
    }
}

fn as_container(e: &EphemeralContainer) -> Container {
    let e = e.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        name: e.name,
        resources: e.resources,
        security_context: e.security_context,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
        ..Container::default()
    }
}

/// Everything that the planner and the status know of what is. Read after the worker's last step took effect.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    /// Sandboxes, newest first.
    pub(super) sandboxes: Vec<Sandbox>,
    /// Containers of every attempt and sandbox, newest first.
    pub(super) containers: Vec<Instance>,
    /// The runtime's network is up.
    pub(super) network_ready: bool,
    /// What is in no runtime.
    pub(super) memory: Memory,
}

impl Observed {
    /// The newest sandbox.
    pub(super) fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// The newest instance of a container, in whatever sandbox.
    pub(super) fn newest(&self, name: &str) -> Option<&Instance> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest instance of a container in one sandbox.
    pub(super) fn newest_in(&self, sandbox: &str, name: &str) -> Option<&Instance> {
        self.containers.iter().find(|c| c.name == name && c.sandbox_id == sandbox)
    }

    /// Instances that run, or of which the runtime cannot say that they do not.
    pub(super) fn running(&self) -> impl Iterator<Item = &Instance> {
        self.containers.iter().filter(|c| matches!(c.state, InstanceState::Running | InstanceState::Unknown))
    }
}

/// A pod sandbox.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Sandbox {
    pub(super) id: String,
    pub(super) attempt: u32,
    pub(super) ready: bool,
    pub(super) host_network: bool,
    /// The runtime's handler; empty: the runtime's own choice.
    pub(super) handler: String,
    /// Addresses, primary first; empty in the node's network.
    pub(super) ips: Vec<String>,
    pub(super) created_at: Timestamp,
}

impl Sandbox {
    /// It changes no more without an event that tells of it: addresses may come late and in silence.
    pub(super) fn is_settled(&self) -> bool {
        !self.ready || self.host_network || !self.ips.is_empty()
    }
}

/// What the runtime says of one instance of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum InstanceState {
    /// Made, never started.
    #[default]
    Created,
    /// Runs.
    Running,
    /// Ran, or failed to start.
    Exited,
    /// The runtime lost track.
    Unknown,
}

/// One instance of a container: each restart makes a new one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) sandbox_id: String,
    pub(super) state: InstanceState,
    /// How many instances went before (A1.15).
    pub(super) restart_count: u32,
    /// Hash of the spec that it was made from; `None` when the annotation is missing.
    pub(super) hash: Option<String>,
    pub(super) created_at: Timestamp,
    pub(super) started_at: Option<Timestamp>,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) exit_code: i32,
    pub(super) reason: String,
    pub(super) message: String,
    /// The image as the spec names it.
    pub(super) image: String,
    /// The image's digest reference.
    pub(super) image_ref: String,
    /// User, group and further groups of its first process, where the runtime tells (A2.18).
    pub(super) user: Option<(i64, i64, Vec<i64>)>,
    /// The preStop hook and the ports that it was made with, as JSON: for an agent that has lost the spec (A1.15).
    pub(super) pre_stop: Option<String>,
    pub(super) ports: Option<String>,
    /// It was killed a moment ago, and the runtime may yet find that it had run out of memory (A2.22).
    pub(super) is_unexplained: bool,
}

impl Instance {
    /// Ended with exit code 0.
    pub(super) fn succeeded(&self) -> bool {
        self.state == InstanceState::Exited && self.exit_code == 0
    }

    /// It changes no more without an event that tells of it.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.state, InstanceState::Running | InstanceState::Exited) && !self.is_unexplained
    }
}

/// What the worker remembers. All of it can be lost: a new agent starts with the default and adopts what runs (A1.15).
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    pub(super) stage: Stage,
    /// `status.startTime`: when the node first acknowledged the pod (A2.11).
    pub(super) started_at: Option<Timestamp>,
    /// The pod's control group is there.
    pub(super) cgroup_ready: bool,
    pub(super) volumes: VolumesState,
    /// The runtime can make mounts read-only with all below them.
    pub(super) recursive_read_only: bool,
    /// The last attempt to make a sandbox failed.
    pub(super) sandbox_failure: Option<Failure>,
    /// Images by reference and pull policy.
    pub(super) images: BTreeMap<ImageKey, ImageState>,
    /// The last attempt to make or start a container failed.
    pub(super) failures: BTreeMap<String, Failure>,
    /// Restarts of each container.
    pub(super) restarts: BTreeMap<String, Backoff>,
    /// Stops under way, by container ID.
    pub(super) stops: BTreeMap<String, Stop>,
    /// Containers that were stopped to be made anew, whatever the restart policy says (A3.13).
    pub(super) recreate: BTreeSet<String>,
    /// Everything in the pod is taken away, to start over (A3.12).
    pub(super) restarting_all: bool,
    /// Containers whose postStart hook runs, with their IDs: they have not started yet (A4.1).
    pub(super) post_start: BTreeMap<String, String>,
    /// Containers whose postStart hook failed: they are stopped and wait (A4.1).
    pub(super) hook_failed: BTreeSet<String>,
    /// What probes say, by container name; a container without an entry has no probe.
    pub(super) probes: BTreeMap<String, ProbeVerdict>,
    /// What the pod was given, and whether it asks for something else.
    pub(super) resize: Resize,
    /// Volumes and control group are gone.
    pub(super) torn_down: bool,
    /// The end was reported: the API object is gone, or somebody else's to delete.
    pub(super) reported: bool,
    /// A failed step of teardown is tried again then (monotonic).
    pub(super) teardown_retry_at: Option<Duration>,
}

/// An image as one container asks for it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct ImageKey {
    pub(super) image: String,
    pub(super) policy: PullPolicy,
}

impl ImageKey {
    /// What a container asks for.
    pub(super) fn of(container: &Container) -> Self {
        Self::new(container.image.as_deref(), container.image_pull_policy.as_deref())
    }

    /// What an image volume asks for.
    pub(super) fn of_volume(source: &ImageVolumeSource) -> Self {
        Self::new(source.reference.as_deref(), source.pull_policy.as_deref())
    }

    fn new(image: Option<&str>, policy: Option<&str>) -> Self {
        let image = image.unwrap_or_default();
        Self { image: image.to_owned(), policy: PullPolicy::of(image, policy) }
    }
}

/// `imagePullPolicy` (A14.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    fn of(image: &str, policy: Option<&str>) -> Self {
        match policy {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            Some("IfNotPresent") => Self::IfNotPresent,
            _ if tagged_latest(image) => Self::Always,
            _ => Self::IfNotPresent,
        }
    }
}

fn tagged_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split_once(':').map_or(digest.is_none(), |(_, tag)| tag == "latest")
}

/// Where an image stands. Used up when the container is made: the next instance asks anew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ImageState {
    /// Being looked for or pulled; `last`: the failure that it follows.
    Pulling { last: Option<PullFailure> },
    /// On the node under this ID, with the user that it names: a number or a name.
    Ready { id: String, uid: Option<i64>, username: String },
    /// Not to be had.
    Failed(PullFailure),
}

/// Why an image is not to be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PullFailure {
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// A pull was tried and failed, so the wait is shown as a back-off (A14.2).
    pub(super) pulled: bool,
    /// Monotonic; from here on the waiting state is that of the back-off.
    pub(super) backoff_at: Duration,
    /// Monotonic.
    pub(super) retry_at: Duration,
    pub(super) backoff: Backoff,
}

impl PullFailure {
    /// Reason and message of the waiting state at a moment (A14.2).
    pub(super) fn shown(&self, image: &str, now: Duration) -> (&'static str, String) {
        if self.pulled && now >= self.backoff_at {
            let message = format!("Back-off pulling image \"{image}\": {}: {}", self.reason, self.message);
            ("ImagePullBackOff", message)
        } else {
            (self.reason, self.message.clone())
        }
    }
}

/// Why a container or sandbox could not be made, as its waiting state shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) message: String,
    /// Monotonic.
    pub(super) retry_at: Duration,
}

/// The state of the pod's volumes, as far as this process knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) enum VolumesState {
    /// Nobody looked yet.
    #[default]
    Unknown,
    /// All there.
    Mounted,
    /// Some are missing; the rest waits until `retry_at` (monotonic).
    Failed { message: String, retry_at: Duration },
}

/// A stop under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stop {
    /// When the container is killed at the latest (monotonic).
    pub(super) deadline: Duration,
    /// Only the preStop hook: the signal waits for its turn (A3.4).
    pub(super) hook_only: bool,
}

/// A pod's one-way road (A1.3). Only the planner moves it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) enum Stage {
    #[default]
    Running,
    /// Containers are being stopped. `deadline` (monotonic) only ever comes nearer (A1.13).
    Terminating { deadline: Duration, cause: Cause },
    /// No container runs or ever will; volumes and the cgroup go (A1.11).
    CleaningUp { cause: Cause },
    /// Nothing left to do but to remove what is left when the API object is gone.
    Finished { cause: Cause },
}

impl Stage {
    /// Why the pod ends, if it does.
    pub(super) fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Running => None,
            Self::Terminating { cause, .. } | Self::CleaningUp { cause } | Self::Finished { cause } => Some(cause),
        }
    }
}

/// Why a pod ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// Its containers did what they had to, or may not be tried again.
    Completed,
    /// The API object is being deleted, or no source has it any more.
    Deleted,
    /// The node ends it: the pod fails with this reason and message (A2.3). `grace`: so long at most, whatever the pod asks for.
    Killed { reason: String, message: String, disruption: bool, grace: Option<Duration> },
    /// It was never admitted (A6).
    Rejected { reason: String, message: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_name_the_place_of_a_container() {
        // A21.3
        for (kind, path) in [
            (Kind::Regular, "spec.containers{c}"),
            (Kind::Init, "spec.initContainers{c}"),
            (Kind::Ephemeral, "spec.ephemeralContainers{c}"),
        ] {
            assert_eq!(kind.field_path("c"), path);
        }
    }

    #[test]
    fn without_a_policy_the_tag_decides() {
        // A14.1
        for (image, policy) in [
            ("a", PullPolicy::Always),
            ("r:5000/a", PullPolicy::Always),
            ("r:5000/a:latest", PullPolicy::Always),
            ("a:latest@sha256:00", PullPolicy::Always),
            ("a@sha256:00", PullPolicy::IfNotPresent),
            ("r:5000/a:1", PullPolicy::IfNotPresent),
        ] {
            assert_eq!(PullPolicy::of(image, None), policy, "{image}");
            assert_eq!(PullPolicy::of(image, Some("Never")), PullPolicy::Never);
        }
    }
}
