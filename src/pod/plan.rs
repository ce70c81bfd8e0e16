//! Decides what to do next for one pod, and does nothing.
//!
//! [`plan`] looks at the whole desired and observed state each time, so a lost wake costs time and never correctness. It
//! must be given an [`Observed`] that was read after the pod's last step took effect: a view older than one's own action
//! makes containers twice.

mod running;
mod terminating;
mod upkeep;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

pub(super) use running::{container_hash, pod_text, pod_text_of};

use super::observed::{Cause, DesiredPod, ImageKey, InstanceState, Observed, Stage};
use super::policy::restarts_after;
use super::sources::is_static;
use crate::clock::Now;

/// At least so long remains for the stop signal, whatever the hooks took (A4.5).
pub(super) const MINIMUM_GRACE: Duration = Duration::from_secs(2);
/// For pods that vanished from their source: nobody waits for them any more (A1.12, A1.14).
const GONE_GRACE: Duration = MINIMUM_GRACE;

/// What to do now, and when to look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Where the pod is on its road; the worker keeps it.
    pub(super) stage: Stage,
    /// In order: a step runs only after those before it that concern the same container, or the whole pod, succeeded.
    pub(super) steps: Vec<Step>,
    /// Containers that do not run now and are meant to, and why they wait.
    pub(super) waiting: BTreeMap<String, Waiting>,
    /// Everything in the pod is taken away, to start over (A3.12).
    pub(super) restarting_all: bool,
    /// Monotonic time at which to look again though nothing happens: the nearest back-off, grace period or deadline.
    pub(super) wake_at: Option<Duration>,
}

/// A container's waiting state (A2.14).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) reason: String,
    pub(super) message: String,
}

/// One thing to do. Stops, hooks before a stop, and image pulls run beside the others: nothing waits for them but what
/// the next plan finds unfinished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make the pod's control group.
    MakeCgroup,
    /// Mount the pod's volumes.
    MountVolumes,
    /// Tell that the runtime's network is down; try again soon.
    ReportNetworkNotReady,
    /// Make a sandbox; `changed`: one was there before (A1.17).
    RunSandbox { attempt: u32, changed: bool },
    /// Stop a sandbox and its network.
    StopSandbox { id: String },
    /// Look for the image, and pull it where the policy says so.
    FindImage(ImageKey),
    /// Look for the image while the sandbox is made: it is pulled, if need be, only when that has its network (A2.20).
    LookForImage(ImageKey),
    /// Make a container. `restarts`: the end of the instance that it follows, which counts for the back-off.
    CreateContainer {
        name: String,
        image: ImageKey,
        restart_count: u32,
        restarts: Option<Timestamp>,
        /// The container whose processes it sees (A3.7).
        target: Option<String>,
    },
    /// Start the container that the step before made, or the one with this ID; then run its postStart hook.
    StartContainer { name: String, id: Option<String> },
    /// Run the preStop hook, and leave the stop signal for later (A3.4).
    RunPreStop { id: String, name: String, deadline: Duration },
    /// Stop a container: preStop hook unless `hook` is false, stop signal, and KILL at the deadline.
    StopContainer(StopContainer),
    /// A stop under way has less time than it thought (A1.13).
    ShortenGrace { id: String, deadline: Duration },
    /// Write new limits of running containers, by name and ID (A15.1).
    Resize { running: Vec<(String, String)> },
    /// Remove a dead container, and its log unless it is kept.
    RemoveContainer { id: String, keep_log: bool },
    /// Remove a dead sandbox.
    RemoveSandbox { id: String },
    /// Unmount the volumes and remove the control group.
    TearDown,
    /// Write the last status, and delete the API object (A1.11).
    Report,
    /// Remove containers, sandboxes, directories and logs: the pod is history.
    RemoveEverything,
}

impl Step {
    /// Whether the runtime has something else of the pod when the step is done.
    pub(super) fn changes_runtime(&self) -> bool {
        match self {
            Self::MakeCgroup
            | Self::MountVolumes
            | Self::ReportNetworkNotReady
            | Self::FindImage(_)
            | Self::LookForImage(_)
            | Self::RunPreStop { .. }
            | Self::ShortenGrace { .. }
            | Self::TearDown
            | Self::Report => false,
            Self::RunSandbox { .. }
            | Self::StopSandbox { .. }
            | Self::CreateContainer { .. }
            | Self::StartContainer { .. }
            | Self::StopContainer(_)
            | Self::Resize { .. }
            | Self::RemoveContainer { .. }
            | Self::RemoveSandbox { .. }
            | Self::RemoveEverything => true,
        }
    }
}

/// See [`Step::StopContainer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StopContainer {
    pub(super) id: String,
    pub(super) name: String,
    /// Monotonic.
    pub(super) deadline: Duration,
    pub(super) hook: bool,
    /// Text of the event `Killing` (A4.9).
    pub(super) message: String,
    /// The container is made anew whatever the restart policy says (A3.13).
    pub(super) recreate: bool,
}

/// Decides. See the module.
pub(super) fn plan(desired: &DesiredPod, seen: &Observed, longest_backoff: Duration, now: Now) -> Plan {
    let stage = next_stage(desired, seen, now);
    let plan = Plan { stage, steps: Vec::new(), waiting: BTreeMap::new(), restarting_all: false, wake_at: None };
    let mut planner = Planner { desired, seen, now, longest_backoff, plan };
    match planner.plan.stage.clone() {
        Stage::Running => planner.running(),
        Stage::Terminating { deadline, .. } => planner.terminating(deadline),
        Stage::CleaningUp { .. } => planner.after_retry(Step::TearDown),
        Stage::Finished { .. } if desired.gone => planner.after_retry(Step::RemoveEverything),
        Stage::Finished { .. } if desired.deleted() && !seen.memory.reported => planner.after_retry(Step::Report),
        Stage::Finished { .. } if desired.released => planner.release(),
        Stage::Finished { .. } => {}
    }
    planner.plan
}

struct Planner<'a> {
    desired: &'a DesiredPod,
    seen: &'a Observed,
    now: Now,
    longest_backoff: Duration,
    plan: Plan,
}

impl Planner<'_> {
    fn step(&mut self, step: Step) {
        self.plan.steps.push(step);
    }

    /// Looks again at `at` (monotonic), or earlier.
    fn wake_at(&mut self, at: Duration) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Looks again at a wall time, or earlier.
    fn wake_at_wall(&mut self, at: Timestamp) {
        let wait = Duration::try_from(at.duration_since(self.now.wall)).unwrap_or_default();
        self.wake_at(self.now.monotonic + wait);
    }

    fn waits(&mut self, name: &str, reason: impl Into<String>, message: impl Into<String>) {
        self.plan.waiting.insert(name.to_owned(), Waiting { reason: reason.into(), message: message.into() });
    }

    /// A step of the pod's end, unless it has just failed.
    fn after_retry(&mut self, step: Step) {
        match self.seen.memory.teardown_retry_at {
            Some(at) if self.now.monotonic < at => self.wake_at(at),
            _ => self.step(step),
        }
    }
}

/// Moves the pod along its one-way road as far as the facts allow (A1.3).
fn next_stage(desired: &DesiredPod, seen: &Observed, now: Now) -> Stage {
    let mut stage = seen.memory.stage.clone();
    loop {
        let next = match stage.clone() {
            Stage::Running => match end_of(desired, seen, now) {
                None => return stage,
                Some((grace, cause)) => Stage::Terminating { deadline: now.monotonic + grace, cause },
            },
            Stage::Terminating { deadline, cause } => {
                let still = seen.running().next().is_some() || seen.sandboxes.iter().any(|s| s.ready);
                if still {
                    let asked = [deletion_grace(desired), desired.ended_grace()].into_iter().flatten();
                    let deadline = asked.map(|grace| now.monotonic + grace).fold(deadline, Duration::min);
                    return Stage::Terminating { deadline, cause };
                }
                Stage::CleaningUp { cause }
            }
            Stage::CleaningUp { cause } if seen.memory.torn_down => Stage::Finished { cause },
            Stage::CleaningUp { .. } | Stage::Finished { .. } => return stage,
        };
        stage = next;
    }
}

/// The grace period of the pod's deletion, if it is being deleted.
fn deletion_grace(desired: &DesiredPod) -> Option<Duration> {
    if desired.gone {
        // A static pod has its own grace: nobody can delete it otherwise (A7.5).
        return Some(if is_static(&desired.pod) { desired.spec_grace() } else { GONE_GRACE });
    }
    desired.pod.metadata.deletion_timestamp.as_ref()?;
    let seconds = desired.pod.metadata.deletion_grace_period_seconds;
    Some(seconds.map_or(desired.spec_grace(), |s| Duration::from_secs(u64::try_from(s).unwrap_or_default())))
}

/// Whether a running pod has to end now, and how.
fn end_of(desired: &DesiredPod, seen: &Observed, now: Now) -> Option<(Duration, Cause)> {
    if let Some(grace) = deletion_grace(desired) {
        return Some((grace, Cause::Deleted));
    }
    if let Some(cause) = &desired.ended {
        let grace = desired.ended_grace().unwrap_or_else(|| desired.spec_grace());
        return Some((grace, cause.clone()));
    }
    let phase = desired.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) || completed(desired, seen) {
        return Some((desired.spec_grace(), Cause::Completed));
    }
    if active_deadline(desired, seen).is_some_and(|deadline| deadline <= now.wall) {
        let cause = Cause::Killed {
            reason: "DeadlineExceeded".into(),
            message: "Pod was active on the node longer than the specified deadline".into(),
            disruption: false,
            grace: None,
        };
        return Some((desired.spec_grace(), cause));
    }
    None
}

/// When `activeDeadlineSeconds` is over (A3.11).
fn active_deadline(desired: &DesiredPod, seen: &Observed) -> Option<Timestamp> {
    let seconds = desired.pod.spec.as_ref()?.active_deadline_seconds?;
    let started = seen.memory.started_at?;
    started.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?)).ok()
}

/// Whether the containers have done what they had to, or may not be tried again.
fn completed(desired: &DesiredPod, seen: &Observed) -> bool {
    if desired.restart_policy() == "Never" {
        let lost_sandbox = !seen.sandboxes.is_empty() && !seen.sandboxes.iter().any(|s| s.ready);
        if lost_sandbox && !seen.containers.is_empty() && seen.running().next().is_none() {
            return true;
        }
    }
    let initialized = desired.containers().iter().any(|c| seen.newest(&c.name).is_some());
    let failed = |c: &Container| {
        let last = seen.newest(&c.name).filter(|i| i.state == InstanceState::Exited && i.exit_code != 0);
        last.is_some_and(|i| !restarts_after(desired.restart_policy(), c, i.exit_code))
    };
    let mut plain = desired.init_containers().iter().filter(|c| !desired.is_sidecar(&c.name));
    if !initialized && plain.any(failed) {
        return true;
    }
    !desired.containers().is_empty()
        && desired.containers().iter().all(|c| {
            let last = seen.newest(&c.name);
            last.is_some_and(|i| i.state == InstanceState::Exited && !running::restarts(desired, seen, c, i))
        })
}

/// A duration as Go prints it, in whole seconds: `10s`, `1m20s`, `5m0s`.
pub(super) fn go_seconds(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
