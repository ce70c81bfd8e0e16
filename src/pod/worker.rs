//! One task per pod UID: wakes, looks, plans, acts, reports (A1.3).
//!
//! Steps that may not overlap run in one task, the hand; while it works the worker does not look, so every plan is made from a view
//! younger than the last step. Stops and pulls run beside it and are remembered as under way. No call to the runtime is ever
//! dropped half way: it has a task of its own, and reports back.

mod assigning;
mod effects;
mod looking;
mod probing;
mod refresh;
mod resizing;
mod timing;
mod unseen;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus, ResourceRequirements};
use stoker_model::handle::EventType;
use stoker_model::metrics;
use stoker_model::pod::{LocalPod, PodRef};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, warn};

pub(super) use looking::Wakes;
use refresh::{Refresh, print_of_fields};
use timing::Start;

use super::adopted::Adopted;
use super::backoff::{backoffs, lengthened};
use super::observe::{Observer, Touched, View};
use super::observed::{DesiredPod, ImageKey, ImageState, Kind, Memory, Observed, Sandbox, Stage, Stop};
use super::plan::{Plan, Step, StopContainer, Waiting, plan, pod_text};
use super::security::ImageUser;
use super::shared::Shared;
use super::status::{Facts, differs, status};
use super::steps::{Effect, Hand, StopRequest, find_image, look_for_image, run_pre_stop, step_span, stop_container};
use super::writer::{StatusWriter, hold};
use crate::runtime::{Awaited, RuntimeError};

/// First and longest delay while the runtime is away.
const RUNTIME_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// What the API server has of the status is compared with what was reported at most so often (A2.10).
const REPAIR_INTERVAL: Duration = Duration::from_secs(10);
/// The same plan again right after its steps succeeded means that they changed nothing: then it waits, doubling.
const REPEAT_DELAY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// What came of one task.
struct Report {
    /// It was the hand.
    hand: bool,
    /// It brought volumes up to date; whether all of them.
    refresh: Option<bool>,
    effects: Vec<Effect>,
}

impl Report {
    const fn of(effects: Vec<Effect>) -> Self {
        Self { hand: false, refresh: None, effects }
    }
}

/// Why a worker woke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wake {
    Look,
    /// The API server shows what was reported to it: there is nothing to decide.
    Echo,
    /// Only time has passed.
    Resync,
    VolumesChanged,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    reference: PodRef,
    desired: watch::Receiver<DesiredPod>,
    wakes: Wakes,
    stop: CancellationToken,
    memory: Memory,
    observer: Observer,
    /// What was reported last.
    previous: Arc<PodStatus>,
    /// Not earlier than this (monotonic) the same status is written again, where the API server has another one.
    repair_at: Duration,
    writer: StatusWriter,
    tasks: JoinSet<Report>,
    hand_busy: bool,
    /// Deadlines of the stops under way, by container ID.
    deadlines: HashMap<String, watch::Sender<Duration>>,
    /// Hooks that run before their container's turn to stop, by container ID.
    hooks: HashMap<String, oneshot::Receiver<()>>,
    /// The waiting containers of the last plan: an event is due when one starts to wait for a back-off.
    waiting: BTreeMap<String, Waiting>,
    mount_failures: u32,
    /// Notified when an object has changed that a volume shows (A9.8).
    volumes_changed: Arc<Notify>,
    refresh: Refresh,
    /// How often in a row not all could be brought up to date, and when (monotonic) it is tried again.
    refresh_failures: u32,
    refresh_at: Option<Duration>,
    /// Tells the pod's labels and annotations as its volumes were last given them.
    shown_fields: u64,
    /// Steps of the last hand, and how often they came again.
    repeated: (Vec<Step>, u32),
    sandbox: Option<Sandbox>,
    /// What the last plan was made for, as the sources told it.
    planned_for: Option<DesiredPod>,
    /// No agent has begun anything for it yet.
    is_new: bool,
    /// What the runtime had of the pod, while nothing has happened since that could have changed it but what the worker did itself.
    view: Option<View>,
    touched: Vec<Touched>,
    /// When (monotonic) everything was looked at last.
    looked_at: Duration,
    /// A call failed a short while ago: what came of it may show only later.
    wary: bool,
    /// Containers and sandboxes that the worker has ended, by ID: no event needs to tell of that.
    awaited: HashMap<String, Awaited>,
    adopted: Adopted,
    /// The image and the resources of each container that was made anew: its back-off counts for those (A3.9).
    tried: HashMap<String, (ImageKey, ResourceRequirements)>,
    start: Start,
    /// What the next round is for, in kubelet's words; and what the present one is for, and when (monotonic) it began (A23.3).
    operation: &'static str,
    under_way: (&'static str, Duration),
    gone: bool,
}

impl Worker {
    /// A worker that has not looked yet. `is_new`: no agent has begun anything for the pod; `rejected`: it may not run here.
    pub(super) fn new(
        shared: Arc<Shared>,
        desired: watch::Receiver<DesiredPod>,
        wakes: Wakes,
        stop: CancellationToken,
        is_new: bool,
        rejected: Option<super::observed::Cause>,
    ) -> Self {
        let pod = desired.borrow().pod.clone();
        let reference = PodRef::of(&pod);
        let previous = pod.status.clone().unwrap_or_default();
        let started = previous.start_time.as_ref().map(|time| time.0);
        let now = shared.clock.now();
        let mut memory = Memory {
            started_at: started.or(Some(now.wall)),
            restarts: backoffs(&previous, now.wall),
            ..Memory::default()
        };
        if let Some(cause) = rejected {
            // A former agent may have admitted it, so that its containers run.
            memory.stage = Stage::Terminating { deadline: now.monotonic + desired.borrow().spec_grace(), cause };
        }
        let turns = shared.turns.clone();
        let writer = StatusWriter::spawn(shared.api.clone(), reference.clone(), move || turns.are_taken());
        Self {
            shared,
            reference,
            desired,
            wakes,
            stop,
            memory,
            observer: Observer::default(),
            previous: Arc::new(previous),
            repair_at: Duration::ZERO,
            writer,
            tasks: JoinSet::new(),
            hand_busy: false,
            deadlines: HashMap::new(),
            hooks: HashMap::new(),
            waiting: BTreeMap::new(),
            mount_failures: 0,
            volumes_changed: Arc::default(),
            refresh: Refresh::Idle,
            refresh_failures: 0,
            refresh_at: None,
            shown_fields: print_of_fields(&pod),
            repeated: (Vec::new(), 0),
            sandbox: None,
            planned_for: None,
            is_new,
            view: None,
            touched: Vec::new(),
            looked_at: Duration::ZERO,
            wary: false,
            awaited: HashMap::new(),
            adopted: Adopted::default(),
            tried: HashMap::new(),
            start: Start::of(&pod, now),
            operation: "create",
            under_way: ("create", now.monotonic),
            gone: false,
        }
    }

    /// Runs until nothing is left of the pod, or the agent stops.
    ///
    /// Not an `async fn`: it would keep the worker twice, as it came and in the future within.
    pub(super) fn run(mut self) -> impl Future<Output = PodRef> + Send + 'static {
        let span = tracing::info_span!("pod", pod = %self.reference);
        let work = async move {
            self.adopt().await;
            self.assign().await;
            let mut runtime_delay = RUNTIME_RETRY.0;
            let mut wake_at = None;
            let mut resync_at = self.next_resync();
            let mut due = true;
            while !self.gone && !self.stop.is_cancelled() {
                if due && !self.hand_busy {
                    due = false;
                    self.under_way =
                        (std::mem::replace(&mut self.operation, "sync"), self.shared.clock.now().monotonic);
                    wake_at = match self.round().await {
                        Ok(wake_at) => {
                            runtime_delay = RUNTIME_RETRY.0;
                            wake_at
                        }
                        Err(error) => {
                            debug!(%error, "cannot look at the pod");
                            if let Some((reason, text)) = unseen::not_seen(&error) {
                                self.shared.tell(&self.reference, EventType::Warning, reason, text);
                            }
                            let at = self.shared.clock.now().monotonic + runtime_delay;
                            runtime_delay = (runtime_delay * 2).min(RUNTIME_RETRY.1);
                            Some(at)
                        }
                    };
                    if !self.hand_busy {
                        self.operation_ended();
                    }
                }
                let wake = self.next_wake(wake_at, resync_at).await;
                due |= wake != Wake::Echo;
                match wake {
                    Wake::Look | Wake::Echo => {}
                    Wake::VolumesChanged => self.volumes_changed(),
                    Wake::Resync => {
                        self.look_again();
                        self.refresh_volumes();
                        // Should the pod still be there, it is asked again to go.
                        self.memory.reported = false;
                        resync_at = self.next_resync();
                    }
                }
            }
            self.shared.prober.forget(&self.reference.uid);
            self.reference
        };
        work.instrument(span.or_current())
    }

    fn next_resync(&self) -> Duration {
        let usual = lengthened(self.shared.config.sync_frequency, &self.reference.uid);
        let now = self.shared.clock.now();
        // Tokens are fetched when they are due, not some time after that (A9.11).
        let due = self.shared.volumes.due(&self.reference.uid).and_then(|due| {
            let wait = Duration::try_from(due.duration_since(now.wall)).ok()?;
            (!wait.is_zero()).then_some(wait)
        });
        now.monotonic + due.map_or(usual, |due| due.min(usual))
    }

    /// Waits until there is a reason to look.
    async fn next_wake(&mut self, wake_at: Option<Duration>, resync_at: Duration) -> Wake {
        let now = self.shared.clock.now().monotonic;
        let wake_at = wake_at.filter(|_| !self.hand_busy);
        let refresh_at = self.refresh_at;
        let until = |at: Duration| tokio::time::sleep(at.saturating_sub(now));
        tokio::select! {
            biased;
            // Containers stay; the next agent adopts them (A1.15).
            () = self.stop.cancelled() => {}
            Some(report) = self.tasks.join_next() => self.take(report),
            changed = self.desired.changed() => {
                if changed.is_err() {
                    self.stop.cancel();
                }
                self.shown();
                if self.shows_pod_fields() {
                    return Wake::VolumesChanged;
                }
                if self.is_echo() {
                    self.keep_echo();
                    return Wake::Echo;
                }
                self.operation = "update";
            }
            () = self.wakes.look.notified() => self.view = None,
            () = self.wakes.plan.notified() => {}
            () = self.volumes_changed.notified() => return Wake::VolumesChanged,
            () = until(refresh_at.unwrap_or(resync_at)), if refresh_at.is_some() => {
                self.refresh_at = None;
                return Wake::VolumesChanged;
            }
            () = until(wake_at.unwrap_or(resync_at).min(resync_at)) => {
                let is_resync = now + Duration::from_millis(1) >= resync_at || wake_at.is_none_or(|at| at >= resync_at);
                return if is_resync { Wake::Resync } else { Wake::Look };
            }
        }
        Wake::Look
    }

    fn take(&mut self, report: Result<Report, tokio::task::JoinError>) {
        match report {
            Ok(report) => {
                if report.hand {
                    self.hand_busy = false;
                    self.operation_ended();
                }
                if let Some(well) = report.refresh {
                    self.refreshed(well);
                }
                for effect in report.effects {
                    self.remember(effect);
                }
            }
            Err(error) => {
                // A panic in a step is a defect; the pod is looked at again and the step tried again.
                warn!(%error, "a step ended badly");
                self.hand_busy = false;
                self.refresh = Refresh::Idle;
                self.unsure();
            }
        }
    }

    /// Looks where something may have changed, plans, reports and begins what is to be done. When to do so again (monotonic).
    async fn round(&mut self) -> Result<Option<Duration>, RuntimeError> {
        let (sandboxes, containers) = self.look().await?;
        let desired = self.desired.borrow_and_update().clone();
        self.planned_for = Some(desired.clone());
        let desired = self.allocate(desired);
        self.sandbox = sandboxes.first().cloned();
        let node = self.shared.node();
        let network_ready = node.network_ready;
        let mut memory = std::mem::take(&mut self.memory);
        let handler = self.sandbox.as_ref().and_then(|sandbox| node.handlers.get(&sandbox.handler));
        memory.recursive_read_only = handler.is_some_and(|handler| handler.recursive_read_only);
        let mut seen = Observed { sandboxes, containers, network_ready, memory };
        seen.memory.probes = self.probe(&desired, &seen);
        self.finish_resize(&desired, &mut seen);
        let now = self.shared.clock.now();
        let mut plan = plan(&desired, &seen, self.shared.config.longest_backoff, now);
        debug!(stage = ?plan.stage, steps = plan.steps.len(), wake_at = ?plan.wake_at, "planned");
        seen.memory.stage = plan.stage.clone();
        seen.memory.restarting_all = plan.restarting_all;
        self.tell_of_backoffs(&desired, &plan);
        let repair_at = self.report(&desired, &seen, &plan.waiting);
        let explained_at = self.explained_at(&seen.containers);
        plan.wake_at = [plan.wake_at, repair_at, explained_at].into_iter().flatten().min();
        self.memory = seen.memory;
        self.keep_view((seen.sandboxes, seen.containers));
        self.waiting = plan.waiting.clone();
        Ok(self.begin(&desired, plan))
    }

    /// Whether what is desired differs from what was planned for in nothing but the status that was reported. Each status that is
    /// written comes back this way.
    fn is_echo(&self) -> bool {
        let Some(before) = &self.planned_for else { return false };
        let now = self.desired.borrow();
        let asked = |desired: &DesiredPod| (desired.gone, desired.released, desired.ended.clone());
        if now.gone || asked(&now) != asked(before) || before.pod.spec != now.pod.spec {
            return false;
        }
        let (old, new) = (&before.pod.metadata, &now.pod.metadata);
        let foreign = |pod: &Pod| -> Vec<PodCondition> {
            let own = |kind: &str| self.previous.conditions.iter().flatten().any(|c| c.type_ == kind);
            let all = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            all.filter(|c| !own(&c.type_)).cloned().collect()
        };
        old.generation == new.generation
            && old.deletion_timestamp == new.deletion_timestamp
            && old.deletion_grace_period_seconds == new.deletion_grace_period_seconds
            && old.labels == new.labels
            && old.annotations == new.annotations
            && old.finalizers == new.finalizers
            && foreign(&before.pod) == foreign(&now.pod)
            && !differs(now.pod.status.as_ref(), &self.previous)
    }

    /// Lets go of the version that was planned for: the one that shows what was reported takes its place.
    fn keep_echo(&mut self) {
        let now = self.desired.borrow().clone();
        if let Some(before) = self.planned_for.replace(now.clone()) {
            self.shared.directory.renew(&self.reference.uid, &before.pod, now.pod);
        }
    }

    /// Computes the status and has it written if it changed, or if the API server lost it. When to compare again, if that is still
    /// to be done.
    fn report(
        &mut self,
        desired: &DesiredPod,
        seen: &Observed,
        waiting: &BTreeMap<String, Waiting>,
    ) -> Option<Duration> {
        if desired.gone {
            return None;
        }
        let node = self.shared.node();
        let facts = Facts { desired, seen, waiting, node_ips: &node.ips, previous: &self.previous };
        let now = self.shared.clock.now();
        let mut status = status(facts, now);
        self.shared.assignments.tell_health(&desired.pod, &mut status);
        let is_new = status != *self.previous;
        let status = if is_new { Arc::new(status) } else { self.previous.clone() };
        self.shared.directory.put(&self.reference.uid, LocalPod::new(desired.pod.clone(), status.clone()));
        // What was just written needs a moment to come back.
        let differs = differs(desired.pod.status.as_ref(), &status);
        if let Some(took) = self.start.reports(&self.previous, &status, now) {
            metrics::POD_START_DURATION.observe(&[], took);
        }
        if is_new || differs && now.monotonic >= self.repair_at {
            self.previous = status.clone();
            self.repair_at = now.monotonic + REPAIR_INTERVAL;
            let hold = hold(desired, seen, &status);
            self.writer.put(status, hold);
        }
        differs.then_some(self.repair_at)
    }

    /// Says it once when a container starts to wait for a back-off (A3.9, A14.2).
    fn tell_of_backoffs(&self, desired: &DesiredPod, plan: &Plan) {
        for (name, waiting) in &plan.waiting {
            if self.waiting.get(name).is_some_and(|before| before.reason == waiting.reason) {
                continue;
            }
            let kind = desired.container(name).map_or(Kind::Regular, |(kind, _)| kind);
            let tell = |kind_of: EventType, reason: &str, message: String| {
                self.shared.tell_of(&self.reference, (kind, name), kind_of, reason, message);
            };
            match waiting.reason.as_str() {
                "CrashLoopBackOff" => {
                    let pod = pod_text(desired);
                    let text = format!("Back-off restarting failed container {name} in pod {pod}");
                    tell(EventType::Warning, "BackOff", text);
                }
                "ImagePullBackOff" => {
                    let image = desired.container(name).and_then(|(_, c)| c.image.clone()).unwrap_or_default();
                    tell(EventType::Normal, "BackOff", format!("Back-off pulling image \"{image}\""));
                    tell(EventType::Warning, "Failed", "Error: ImagePullBackOff".to_owned());
                }
                _ => {}
            }
        }
    }

    /// Starts the steps of a plan. When to look again (monotonic).
    fn begin(&mut self, desired: &DesiredPod, plan: Plan) -> Option<Duration> {
        let mut for_hand = Vec::new();
        for step in plan.steps {
            match step {
                Step::FindImage(key) => self.find_image(desired, key, true),
                Step::LookForImage(key) => self.find_image(desired, key, false),
                Step::StopContainer(stop) => self.stop_container(desired, stop),
                Step::RunPreStop { id, name, deadline } => self.run_pre_stop(desired, id, name, deadline),
                Step::ShortenGrace { id, deadline } => self.shorten(&id, deadline),
                other => for_hand.push(other),
            }
        }
        if for_hand.is_empty() {
            self.repeated = (Vec::new(), 0);
            return plan.wake_at;
        }
        let pause = self.pause_before(&for_hand);
        let hand = self.hand(desired);
        self.hand_busy = true;
        let span = tracing::info_span!(
            target: "otel", "syncPod", k8s.pod.uid = %self.reference.uid, k8s.pod.name = self.reference.name,
            k8s.namespace.name = self.reference.namespace,
        );
        let work = async move { Report { hand: true, refresh: None, effects: hand.run(for_hand, pause).await } };
        self.tasks.spawn(work.instrument(span).in_current_span());
        None
    }

    /// Steps that were just done and are planned again did not help: they wait.
    fn pause_before(&mut self, steps: &[Step]) -> Duration {
        let (last, times) = &mut self.repeated;
        if last == steps {
            *times += 1;
            REPEAT_DELAY.0.saturating_mul(1 << (*times).min(10)).min(REPEAT_DELAY.1)
        } else {
            self.repeated = (steps.to_vec(), 0);
            Duration::ZERO
        }
    }

    fn hand(&self, desired: &DesiredPod) -> Hand {
        let images = self.memory.images.iter().filter_map(|(key, state)| match state {
            ImageState::Ready { id, uid, username } => {
                Some((key.clone(), id.clone(), ImageUser { uid: *uid, name: username.clone() }))
            }
            _ => None,
        });
        Hand {
            shared: self.shared.clone(),
            pod: desired.pod.clone(),
            reference: self.reference.clone(),
            desired: self.desired.clone(),
            sandbox: self.sandbox.clone(),
            images: images.collect(),
            volumes_changed: self.volumes_changed.clone(),
            flushed: Box::pin(self.writer.flushed()),
            sandboxes: self.known_sandboxes(),
            torn_down: self.memory.torn_down,
            effects: Vec::new(),
        }
    }

    fn find_image(&mut self, desired: &DesiredPod, key: super::observed::ImageKey, pulls: bool) {
        let last = match self.memory.images.remove(&key) {
            Some(ImageState::Failed(last)) => Some(last),
            _ => None,
        };
        self.memory.images.insert(key.clone(), ImageState::Pulling { last });
        let wants = |c: &&k8s_openapi::api::core::v1::Container| super::observed::ImageKey::of(c) == key;
        let regular = desired.containers().iter().find(wants).map(|c| (Kind::Regular, c.name.clone()));
        let init = || desired.init_containers().iter().find(wants).map(|c| (Kind::Init, c.name.clone()));
        let of_ephemeral = |c: &k8s_openapi::api::core::v1::Container| super::observed::ImageKey::of(c) == key;
        let ephemeral =
            || desired.ephemeral_containers().into_iter().find(of_ephemeral).map(|c| (Kind::Ephemeral, c.name));
        // That of a volume is the pod's own.
        let container = regular.or_else(init).or_else(ephemeral);
        let (shared, pod) = (self.shared.clone(), desired.pod.clone());
        self.start.pull_begins(shared.clock.now());
        let span = step_span(&self.reference, &Step::FindImage(key.clone()));
        let work = async move {
            let effect = match pulls {
                true => find_image(shared, pod, container, key).await,
                false => look_for_image(shared, pod, container, key).await,
            };
            Report::of(vec![effect])
        };
        self.tasks.spawn(work.instrument(span).in_current_span());
    }

    fn stop_request(&mut self, desired: &DesiredPod, id: &str, name: &str, deadline: Duration) -> StopRequest {
        let (sender, receiver) = match self.deadlines.remove(id) {
            Some(sender) => {
                let receiver = sender.subscribe();
                sender.send_if_modified(|current| std::mem::replace(current, deadline.min(*current)) > deadline);
                (sender, receiver)
            }
            None => watch::channel(deadline),
        };
        self.deadlines.insert(id.to_owned(), sender);
        let found = desired.container(name);
        let kind = found.as_ref().map_or(Kind::Regular, |(kind, _)| *kind);
        let hooked = match found {
            Some((_, container)) => {
                let has_hook = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some());
                has_hook.then(|| container.into_owned())
            }
            None => self.adopted.hooked.get(id).cloned(),
        };
        StopRequest {
            shared: self.shared.clone(),
            pod: self.reference.clone(),
            container: (kind, name.to_owned()),
            id: id.to_owned(),
            deadline: receiver,
            hooked,
            address: self.address(desired),
            message: format!("Stopping container {name}"),
            hook_under_way: None,
        }
    }

    fn stop_container(&mut self, desired: &DesiredPod, stop: StopContainer) {
        let mut request = self.stop_request(desired, &stop.id, &stop.name, stop.deadline);
        if !stop.hook {
            request.hooked = None;
        }
        request.message = stop.message;
        request.hook_under_way = self.hooks.remove(&stop.id);
        if stop.recreate {
            // Another image or other resources: what went wrong before counts no more (A3.9).
            self.memory.restarts.remove(&stop.name);
            self.memory.recreate.insert(stop.name);
        }
        self.memory.stops.insert(stop.id, Stop { deadline: stop.deadline, hook_only: false });
        let work = async move { Report::of(vec![stop_container(request).await]) };
        self.tasks.spawn(work.in_current_span());
    }

    fn run_pre_stop(&mut self, desired: &DesiredPod, id: String, name: String, deadline: Duration) {
        let request = self.stop_request(desired, &id, &name, deadline);
        let (done, under_way) = oneshot::channel();
        self.hooks.insert(id.clone(), under_way);
        self.memory.stops.insert(id, Stop { deadline, hook_only: true });
        let work = async move {
            run_pre_stop(request, done).await;
            Report::of(Vec::new())
        };
        self.tasks.spawn(work.in_current_span());
    }

    fn shorten(&mut self, id: &str, deadline: Duration) {
        if let Some(sender) = self.deadlines.get(id) {
            sender.send_replace(deadline);
        }
        if let Some(stop) = self.memory.stops.get_mut(id) {
            stop.deadline = deadline;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pod_takes_that_does_nothing_is_small() {
        // It was 12 kB: what waits most of its life had room for calls to the runtime.
        fn size<F: Future>(_: fn(Worker) -> F) -> usize {
            size_of::<F>()
        }
        assert!(size(Worker::run) < 4 << 10, "{}", size(Worker::run));
    }
}
