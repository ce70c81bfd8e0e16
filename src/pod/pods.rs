//! [`Pods`]: starts and stops workers, hands them what is desired, and wakes them when the runtime tells of something.

mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use stoker_model::handle::{EventSubject, EventType, Eviction, NodeSnapshot, PodDirectory, PodEvictor, ProbeMetrics};
use stoker_model::metrics;
use stoker_model::names;
use stoker_model::pod::{LocalPod, PodRef, PodUid};
use stoker_model::resources::{QosClass, qos_class};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::admission::{self, Rules, Verdict};
use super::commands::Commands;
use super::garbage;
use super::observed::{Cause, DesiredPod};
use super::relist::Lister;
use super::resize::{Allocation, RESOURCES_FILE};
use super::shared::{Directory, PodHandles, PodsConfig, Shared};
use super::slow::SlowStep;
use super::sources::{self, Mirrors, Reported, Wanted, WantedFeed, full_name, is_static, keep_mirrors};
use super::turns::Turns;
use super::worker::{Wakes, Worker};
use crate::clock::Clock;
use crate::probe::Prober;
use crate::runtime::RuntimeError;
use crate::runtime::events::RuntimeEvent;

/// While the runtime is away, what is left of former pods is looked for again after this.
const ORPHANS_RETRY: Duration = Duration::from_secs(5);
/// Everything else waits while the runtime is asked for them.
const ORPHANS_LIMIT: Duration = Duration::from_secs(10);
/// So long the API server may take to tell this node's labels; other pods wait meanwhile.
const LABELS_LIMIT: Duration = Duration::from_secs(5);
/// So often the supervisor shows that it lives, when it has nothing else to do.
const BEAT: Duration = Duration::from_secs(5);
/// Orders of the node that may wait.
const ORDERS: usize = 64;
/// The runtime has at least so long for a pod that the node ends.
const LEAST_PATIENCE: Duration = Duration::from_secs(10);
/// What a pod is told that ends in favour of a critical one.
const PREEMPTED: &str = "Preempted in order to admit critical pod";
/// After so long without a beat it hangs: twice what it may wait for the runtime.
const PATIENCE: Duration = Duration::from_secs(20);

/// The pods of this node. Cloning is cheap; the pods run until the token given to [`Pods::spawn`] is cancelled, and their
/// containers beyond that.
#[derive(Clone)]
pub struct Pods {
    directory: Directory,
    prober: Prober,
    /// When the supervisor last came round (monotonic milliseconds).
    beat: Arc<AtomicU64>,
    orders: mpsc::Sender<Order>,
}

impl std::fmt::Debug for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pods").finish_non_exhaustive()
    }
}

impl Pods {
    /// Starts to run pods. Nothing is cleaned up before every source has told of all its pods once (A1.2).
    ///
    /// Must be called in a tokio runtime.
    pub fn spawn(config: PodsConfig, handles: PodHandles, stop: CancellationToken) -> Self {
        let directory = Directory::default();
        let PodHandles {
            runtime,
            images,
            events,
            pods,
            node,
            api,
            mirrors,
            objects,
            services,
            sink,
            cgroups,
            volumes,
            assignments,
        } = handles;
        let commands = Arc::new(Commands(runtime.clone()));
        let prober = Prober::spawn(commands, sink.clone(), stop.clone());
        let reported = Reported::default();
        let wanted = sources::gather(&config.static_sources, pods, &node, reported.clone(), &sink, &stop);
        let keeper =
            keep_mirrors(mirrors, api.clone(), wanted.clone(), node.clone(), reported.clone(), directory.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(keeper));
        let api = Arc::new(Mirrors { api, wanted: wanted.clone(), reported, directory: directory.clone() });
        let shared = Shared {
            prober: prober.clone(),
            lister: Lister::spawn(runtime.clone(), stop.clone()),
            config,
            runtime,
            images,
            node,
            api,
            objects,
            services,
            sink,
            cgroups,
            volumes,
            assignments,
            clock: Clock,
            turns: Turns::of_machine(),
            directory: directory.clone(),
        };
        let shared = Arc::new(shared);
        if shared.assignments.gives_cpus() {
            let keeper = super::cpu_sets::keep_cpu_sets(shared.clone(), shared.config.cpu_sets_every);
            tokio::spawn(stop.clone().run_until_cancelled_owned(keeper));
        }
        let beat = Arc::new(AtomicU64::new(0));
        let supervisor = Supervisor {
            beat: beat.clone(),
            shared,
            workers: BTreeMap::new(),
            tasks: JoinSet::new(),
            stop,
            orphans_due: true,
            orphans_untold: true,
            node_known: false,
            weights_due: true,
            burstable_shares: None,
        };
        let (orders, received) = mpsc::channel(ORDERS);
        tokio::spawn(supervisor.run(wanted, events, received));
        Self { directory, prober, beat, orders }
    }

    /// Steps of starts that took long, the newest last.
    pub fn slow_steps(&self) -> Vec<SlowStep> {
        self.directory.slow.all()
    }

    /// Whether the task that everything else here hangs on still comes round. For the watchdog.
    pub fn is_alive(&self) -> bool {
        let beat = Duration::from_millis(self.beat.load(Ordering::Relaxed));
        Clock.now().monotonic.saturating_sub(beat) < PATIENCE
    }
}

impl ProbeMetrics for Pods {
    fn probe_metrics(&self) -> String {
        self.prober.metrics()
    }
}

impl PodDirectory for Pods {
    fn pods(&self) -> Vec<LocalPod> {
        self.directory.all()
    }

    fn pod(&self, namespace: &str, name: &str, uid: Option<&PodUid>) -> Option<LocalPod> {
        let named = self.directory.all().into_iter().filter(|pod| {
            let reference = PodRef::of(pod.pod());
            reference.namespace == namespace && reference.name == name && uid.is_none_or(|uid| *uid == reference.uid)
        });
        // A predecessor may not be gone yet.
        named.max_by_key(|pod| pod.pod().metadata.creation_timestamp.as_ref().map(|time| time.0))
    }
}

impl PodEvictor for Pods {
    fn evict(&self, pod: &PodUid, eviction: Eviction) -> bool {
        self.orders.try_send(Order::Evict(pod.clone(), eviction)).is_ok()
    }

    fn drop_finished(&self) {
        // When the queue is full, the next round asks again.
        let _ = self.orders.try_send(Order::DropFinished);
    }
}

/// A running worker, seen from outside.
struct Handle {
    desired: watch::Sender<DesiredPod>,
    wakes: Wakes,
    /// What its sources wanted last.
    wanted: Arc<Pod>,
    /// It was admitted, so it counts for others.
    admitted: bool,
    /// Of this class, which no update changes.
    burstable: bool,
}

impl Handle {
    /// Ends the pod, unless the node does so already.
    fn end(&self, reason: &str, message: String, disruption: bool, grace: Option<Duration>) {
        let cause = Cause::Killed { reason: reason.to_owned(), message, disruption, grace };
        self.desired.send_if_modified(|desired| {
            let first = desired.ended.is_none();
            desired.ended.get_or_insert(cause);
            first
        });
    }
}

/// What is known of a pod when its worker starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    /// It has no directory on this node, which is made before and goes after everything else of it.
    New,
    /// An agent has begun to run it.
    Begun,
    /// No source wants it, and something of it is here.
    Orphan,
}

/// What the node orders.
enum Order {
    Evict(PodUid, Eviction),
    DropFinished,
}

struct Supervisor {
    beat: Arc<AtomicU64>,
    shared: Arc<Shared>,
    workers: BTreeMap<PodUid, Handle>,
    tasks: JoinSet<PodRef>,
    stop: CancellationToken,
    /// What former agents left behind has not been looked for yet.
    orphans_due: bool,
    /// And when that fails, nobody has been told of it since it was due.
    orphans_untold: bool,
    /// The API server has told of the Node.
    node_known: bool,
    /// The burstable pods may have asked for something else since they were weighed.
    weights_due: bool,
    /// CPU shares that all burstable pods together were given last.
    burstable_shares: Option<u64>,
}

impl Supervisor {
    async fn run(
        mut self,
        mut feed: WantedFeed,
        mut events: mpsc::Receiver<RuntimeEvent>,
        mut orders: mpsc::Receiver<Order>,
    ) {
        let mut node = self.shared.node.clone();
        let mut network_ready = node.borrow().network_ready;
        let directory = self.shared.directory.clone();
        let mut beats = tokio::time::interval(BEAT);
        let mut garbage = tokio::time::interval(self.shared.config.garbage_every);
        let mut health = self.shared.assignments.health();
        self.beat();
        self.reconcile(&mut feed).await;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                _ = beats.tick() => self.beat(),
                _ = garbage.tick() => {
                    (self.orphans_due, self.orphans_untold) = (true, true);
                    // Somebody else may have changed it.
                    self.burstable_shares = None;
                    self.reconcile(&mut feed).await;
                }
                Some(ended) = self.tasks.join_next() => self.ended(ended, &mut feed).await,
                Some(order) = orders.recv() => self.obey(order),
                Some(event) = events.recv() => self.pass_on(&event),
                Ok(()) = health.changed() => self.wake_assigned(),
                Ok(()) = feed.changed() => self.reconcile(&mut feed).await,
                () = directory.freed() => self.wake_deferred(),
                Ok(()) = node.changed() => {
                    let ready = node.borrow_and_update().network_ready;
                    if ready && !network_ready {
                        self.wake_all();
                    }
                    network_ready = ready;
                    self.reconcile(&mut feed).await;
                }
                () = tokio::time::sleep(ORPHANS_RETRY), if self.orphans_due && feed.borrow().complete => {
                    self.reconcile(&mut feed).await;
                }
            }
        }
        // Workers see the same token; what they have begun with the runtime ends with the process.
        while self.tasks.join_next().await.is_some() {}
    }

    fn beat(&self) {
        let now = u64::try_from(self.shared.clock.now().monotonic.as_millis()).unwrap_or(u64::MAX);
        self.beat.store(now, Ordering::Relaxed);
    }

    async fn ended(&mut self, ended: Result<PodRef, tokio::task::JoinError>, feed: &mut WantedFeed) {
        match ended {
            Ok(reference) => {
                self.workers.remove(&reference.uid);
                self.weights_due = true;
                self.shared.directory.forget(&reference.uid);
                self.shared.assignments.release(&reference.uid);
                // Whoever wants it again under the same UID gets it anew (A23.3).
                if let Some(pod) = feed.borrow().pods.get(&reference.uid) {
                    metrics::RESTARTED_PODS.inc(&[if is_static(pod) { "true" } else { "" }]);
                }
                // What it had may be what another one waits for.
                self.wake_deferred();
            }
            Err(error) => {
                warn!(%error, "a pod's worker ended badly; it is started anew");
                self.workers.retain(|_, handle| handle.desired.receiver_count() > 0);
            }
        }
        self.reconcile(feed).await;
    }

    fn pass_on(&self, event: &RuntimeEvent) {
        match event {
            RuntimeEvent::Resync => self.workers.values().for_each(|handle| handle.wakes.look.notify_one()),
            RuntimeEvent::Changed { id, .. } => {
                // What nobody knows yet was made by a step that is still under way: its worker looks after it anyway.
                let owner = self.shared.directory.owner(id);
                if let Some(handle) = owner.and_then(|uid| self.workers.get(&uid)) {
                    handle.wakes.look.notify_one();
                }
            }
        }
    }

    /// Wakes the pods whose resize waits for room.
    fn wake_deferred(&self) {
        for handle in self.shared.directory.waiting().iter().filter_map(|uid| self.workers.get(uid)) {
            handle.wakes.plan.notify_one();
        }
    }

    /// Wakes the pods that have something for themselves: their status tells how it is.
    fn wake_assigned(&self) {
        for handle in self.shared.assignments.pods().iter().filter_map(|uid| self.workers.get(uid)) {
            handle.wakes.plan.notify_one();
        }
    }

    fn wake_all(&self) {
        for handle in self.workers.values() {
            handle.wakes.plan.notify_one();
        }
    }

    /// Makes the workers those of the pods that are wanted.
    async fn reconcile(&mut self, feed: &mut WantedFeed) {
        let wanted = feed.borrow_and_update().clone();
        let mut weights_due = false;
        // Both are in the order of their UIDs.
        let (mut wanted_pods, mut fresh) = (wanted.pods.iter().peekable(), Vec::new());
        for (uid, handle) in &mut self.workers {
            while let Some((_, pod)) = wanted_pods.next_if(|(other, _)| *other < uid) {
                fresh.push(pod);
            }
            let pod = wanted_pods.next_if(|(other, _)| *other == uid).map(|(_, pod)| pod);
            // Most pods are as they were. What workers have at hand is not touched then, for it has gone cold.
            match pod {
                Some(pod) if Arc::ptr_eq(pod, &handle.wanted) => continue,
                Some(pod) => handle.wanted = pod.clone(),
                None => {}
            }
            handle.desired.send_if_modified(|desired| match pod {
                // Once unwanted it ends, also when a source wants it again meanwhile: then it begins anew after that (A7.7).
                _ if desired.gone => false,
                Some(pod) if Arc::ptr_eq(&desired.pod, pod) || pod.spec.is_none() => false,
                Some(pod) => {
                    if let Some(text) = self.shared.config.features.lacks_for_update(&desired.pod, pod) {
                        let reason = "FailedNodeDeclaredFeaturesCheck";
                        self.shared.tell(&PodRef::of(pod), EventType::Warning, reason, text);
                    }
                    weights_due |= !weights::are_the_same(&desired.pod, pod);
                    desired.pod = pod.clone();
                    true
                }
                // A static pod's source has told of it before, so it knows.
                None if wanted.complete || is_static(&desired.pod) => {
                    desired.gone = true;
                    true
                }
                None => false,
            });
        }
        self.weights_due |= weights_due;
        fresh.extend(wanted_pods.map(|(_, pod)| pod));
        self.start_fresh(fresh).await;
        self.weigh_burstable();
        if self.orphans_due && wanted.complete {
            let searched = tokio::time::timeout(ORPHANS_LIMIT, self.orphans(&wanted)).await;
            let late = |_| Err(RuntimeError::TimedOut { call: "ListPodSandbox", after: ORPHANS_LIMIT });
            match searched.unwrap_or_else(late) {
                Ok(orphans) => {
                    self.orphans_due = false;
                    for pod in orphans {
                        info!(pod = %PodRef::of(&pod), "no source wants this pod any more; it is cleaned up");
                        let pod = Arc::new(pod);
                        self.start(pod.clone(), Known::Orphan, None, pod);
                    }
                }
                Err(error) => {
                    warn!(%error, "cannot look for what former pods left behind; it is tried again");
                    if std::mem::replace(&mut self.orphans_untold, false) {
                        let reason = "ContainerGCFailed";
                        self.shared.sink.publish(EventSubject::Node, EventType::Warning, reason, error.to_string());
                    }
                }
            }
        }
    }

    /// Starts workers for pods that have none, the oldest first (A1.18).
    async fn start_fresh(&mut self, mut fresh: Vec<&Arc<Pod>>) {
        let node = self.shared.node();
        if node.allocatable.is_empty() {
            // Nothing can be decided about pods before the node knows itself.
            return;
        }
        self.node_known |= node.uid.is_some();
        // A static pod of the same name waits for the end of the one before (A1.4).
        let has_worker = |name| self.workers.values().any(|handle| full_name(&handle.desired.borrow().pod) == name);
        fresh.retain(|pod| pod.spec.is_some() && !(is_static(pod) && has_worker(full_name(pod))));
        in_turn(&mut fresh);
        for pod in fresh {
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
            // What has ended needs no place. A pod whose containers run, or ran, has a directory, also where its status says Pending: it
            // initializes, or its status was never written (A1.15). It is asked for its place again, with what it was given before, once
            // the Node is known: until then its labels and taints may be missing (A1.18).
            let root = self.shared.volumes.dirs(&PodRef::of(pod).uid).root().to_owned();
            let over = matches!(phase, "Succeeded" | "Failed") || pod.metadata.deletion_timestamp.is_some();
            let ran = phase == "Running" || root.exists();
            // The API server has it, so it will tell of the Node, too (A1.2).
            if !over && !ran && !self.node_known && !is_static(pod) {
                continue;
            }
            let given = Allocation::load(&root.join(RESOURCES_FILE)).and_then(|kept| kept.applied(pod)).filter(|_| ran);
            let decided = over || ran && node.uid.is_none();
            let verdict = match decided {
                true => Verdict::Admitted,
                false => self.judge_with_fresh_labels(given.as_ref().unwrap_or(pod), &node).await,
            };
            let rejected = match verdict {
                Verdict::Admitted => None,
                Verdict::Rejected(rejection) => {
                    metrics::ADMISSION_REJECTIONS.inc(&[&rejection.reason]);
                    let reference = PodRef::of(pod);
                    self.shared.tell(&reference, EventType::Warning, &rejection.reason, rejection.text.clone());
                    let message = format!("Pod was rejected: {}", rejection.text);
                    Some(Cause::Rejected { reason: rejection.reason, message })
                }
                Verdict::Preempts(victims, lacking) => {
                    self.preempt(pod, &victims, &lacking);
                    // Its turn comes when they have ended.
                    continue;
                }
            };
            let shown = given.map_or_else(|| pod.clone(), Arc::new);
            let known = if ran { Known::Begun } else { Known::New };
            self.start(pod.clone(), known, rejected, shown);
        }
    }

    fn judge(&self, pod: &Pod, node: &NodeSnapshot) -> Verdict {
        let leaving: Vec<PodUid> =
            self.workers.iter().filter(|(_, h)| h.desired.borrow().ended.is_some()).map(|(u, _)| u.clone()).collect();
        let config = &self.shared.config;
        let rules = Rules { sysctls: &config.sysctls, features: &config.features, app_armor: app_armor_enabled() };
        admission::admit(pod, &self.admitted(), &leaving, &self.shared.countable(node), rules)
    }

    /// A label may have come right before the pod that asks for it: a pod is refused for want of one only after a look at the Node as it
    /// is now (A6.2).
    async fn judge_with_fresh_labels(&self, pod: &Pod, node: &NodeSnapshot) -> Verdict {
        let verdict = self.judge(pod, node);
        if !matches!(&verdict, Verdict::Rejected(rejection) if rejection.reason == admission::NODE_AFFINITY) {
            return verdict;
        }
        match tokio::time::timeout(LABELS_LIMIT, self.shared.objects.node_labels(&node.name)).await {
            Ok(Ok(labels)) if labels != node.labels => self.judge(pod, &NodeSnapshot { labels, ..node.clone() }),
            _ => verdict,
        }
    }

    /// Ends pods in favour of a critical one (A6.6).
    fn preempt(&self, pod: &Pod, victims: &[PodUid], lacking: &str) {
        for (uid, handle) in victims.iter().filter_map(|uid| Some((uid, self.workers.get(uid)?))) {
            let victim = PodRef::of(&handle.desired.borrow().pod);
            info!(pod = %victim, %uid, "it ends in favour of the critical pod {}", PodRef::of(pod));
            self.shared.tell(&victim, EventType::Warning, "Preempting", PREEMPTED);
            handle.end("Preempting", PREEMPTED.into(), true, None);
            metrics::PREEMPTIONS.inc(&[lacking]);
            self.expect_end((*uid).clone(), Duration::MAX);
        }
    }

    /// Tells of a pod that the node ends, and that is still there long after its time (A4.10).
    fn expect_end(&self, uid: PodUid, grace: Duration) {
        let Some(pod) = self.shared.directory.get(&uid).map(|known| known.pod().clone()) else { return };
        let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        let grace = grace.min(Duration::from_secs(u64::try_from(own).unwrap_or_default()));
        let (shared, stop) = (self.shared.clone(), self.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            tokio::time::sleep((grace + grace / 2).max(LEAST_PATIENCE)).await;
            let goes_on = shared.directory.get(&uid).is_some() && !shared.directory.has_ended(&uid);
            if goes_on {
                let text = "Container runtime did not kill the pod within specified grace period.";
                shared.tell(&PodRef::of(&pod), EventType::Warning, "ExceededGracePeriod", text);
            }
        }));
    }

    fn obey(&self, order: Order) {
        match order {
            Order::Evict(uid, Eviction { reason, message, grace, disrupts }) => {
                let Some(handle) = self.workers.get(&uid) else { return };
                info!(pod = %PodRef::of(&handle.desired.borrow().pod), reason, message, "the node ends it");
                handle.end(reason, message, disrupts, Some(grace));
                self.expect_end(uid, grace);
            }
            Order::DropFinished => {
                let finished = self.workers.iter().filter(|(uid, _)| self.shared.directory.has_ended(uid));
                for (_, handle) in finished {
                    handle.desired.send_if_modified(|desired| !std::mem::replace(&mut desired.released, true));
                }
            }
        }
    }

    /// Pods that use the node's resources.
    fn admitted(&self) -> Vec<Arc<Pod>> {
        let admitted = self.workers.iter().filter(|(_, handle)| handle.admitted);
        // What a pod was given counts, not what it asks for (A1.18).
        let given = |uid: &PodUid| self.shared.directory.get(uid);
        let pods =
            admitted.map(|(uid, handle)| given(uid).unwrap_or_else(|| handle.desired.borrow().pod.clone().into()));
        pods.filter(|pod| !pod.has_ended()).map(|pod| pod.pod().clone()).collect()
    }

    /// `shown`: the pod with the resources that it was given, which counts for others.
    fn start(&mut self, pod: Arc<Pod>, known: Known, rejected: Option<Cause>, shown: Arc<Pod>) {
        let gone = known == Known::Orphan;
        let uid = PodRef::of(&pod).uid;
        let (desired, receiver) = watch::channel(DesiredPod { pod: pod.clone(), gone, ended: None, released: false });
        let wakes = Wakes::default();
        let admitted = rejected.is_none() && !gone;
        if !gone {
            self.shared.directory.put(&uid, shown.into());
        }
        let (stop, is_new) = (self.stop.child_token(), known == Known::New);
        let worker = Worker::new(self.shared.clone(), receiver, wakes.clone(), stop, is_new, rejected);
        self.weights_due = true;
        let burstable = pod.spec.as_ref().is_some_and(|spec| qos_class(spec) == QosClass::Burstable);
        self.workers.insert(uid, Handle { desired, wakes, wanted: pod, admitted, burstable });
        self.tasks.spawn(worker.run());
    }

    /// Pods that left something on this node and are not wanted (A1.14, A1.6).
    async fn orphans(&self, wanted: &Wanted) -> Result<Vec<Pod>, RuntimeError> {
        let known = |uid: &PodUid| wanted.pods.contains_key(uid) || self.workers.contains_key(uid);
        let mut orphans: BTreeMap<PodUid, Pod> = BTreeMap::new();
        for sandbox in self.shared.runtime.list_pod_sandbox(None).await? {
            let label = |key: &str| sandbox.labels.get(key).cloned();
            let Some(uid) = label(names::POD_UID) else { continue };
            if !known(&PodUid::new(&uid)) {
                let pod = remains(&uid, label(names::POD_NAMESPACE), label(names::POD_NAME));
                orphans.insert(PodUid::new(&uid), pod);
            }
        }
        for uid in self.shared.assignments.pods().iter().filter(|uid| !known(uid)) {
            self.shared.assignments.release(uid);
        }
        let on_disk = self.shared.volumes.pods_on_disk();
        let in_groups = self.shared.cgroups.pods().into_iter().map(|(_, uid)| PodUid::new(&uid));
        let with_logs = garbage::pods_with_logs(&self.shared.config.log_dir);
        let with_claims = self.shared.assignments.pods_with_claims();
        let others: BTreeSet<PodUid> =
            on_disk.into_iter().chain(in_groups).chain(with_logs).chain(with_claims).collect();
        for uid in others.into_iter().filter(|uid| !known(uid)) {
            orphans.entry(uid.clone()).or_insert_with(|| remains(uid.as_str(), None, None));
        }
        garbage::remove_dead_links(&self.shared.config.link_dir, &self.shared.runtime).await?;
        Ok(orphans.into_values().collect())
    }
}

/// Puts first whose place is decided about first: static pods, which nobody created (A7.6), then the oldest (A1.18).
fn in_turn(pods: &mut [&Arc<Pod>]) {
    pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
}

/// Whether the kernel enforces AppArmor profiles.
pub(super) fn app_armor_enabled() -> bool {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    enabled.is_ok_and(|text| text.starts_with('Y'))
}

/// A pod of which only the runtime's labels are known.
fn remains(uid: &str, namespace: Option<String>, name: Option<String>) -> Pod {
    let mut pod = Pod { spec: Some(PodSpec::default()), ..Pod::default() };
    pod.metadata.uid = Some(uid.to_owned());
    pod.metadata.namespace = namespace;
    pod.metadata.name = name;
    pod
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn static_pods_come_first_and_then_the_oldest() {
        // A1.18, A7.6
        let pod = |name: &str, created: Option<i64>| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            pod.metadata.creation_timestamp = created.map(|second| Time(jiff::Timestamp::from_second(second).unwrap()));
            Arc::new(pod)
        };
        let all = [pod("young", Some(9)), pod("old", Some(1)), pod("static", None)];
        let mut turns: Vec<&Arc<Pod>> = all.iter().collect();
        in_turn(&mut turns);
        let names = turns.iter().filter_map(|pod| pod.metadata.name.as_deref());
        assert_eq!(names.collect::<Vec<_>>(), ["static", "old", "young"]);
    }
}
