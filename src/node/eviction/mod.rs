//! Keeps the node from running out of memory, disk and process numbers: tells of pressure, lets go of what nobody uses, and then
//! ends one pod at a time (A13). Pods that took more of the disk than they may go in any case.
//!
//! It looks each ten seconds, and when the kernel says that memory is short, or, where the operator wants that, has crossed a threshold. What pods take is only measured when
//! it matters: of those with a limit for local storage, and of all while a threshold is met.

mod measure;
mod memcg;
mod psi;
mod rank;
mod storage;
mod threshold;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use stoker_model::handle::{
    DiskMeter, EventSink, EventSubject, EventType, Eviction, PodDirectory, PodEvictor, UsageReader,
};
use stoker_model::metrics;
use stoker_model::pod::{LocalPod, PodRef, PodUid, is_critical};
use tracing::{debug, info, warn};

pub use self::threshold::{Pressure, ThresholdError, ThresholdFields};
pub use self::watch::Pressures;

use self::measure::{Meter, Places};
use self::memcg::Mark;
use self::rank::{AT_ONCE, Candidate};
use self::threshold::{Layout, Observations, Resource, Signal, Threshold};
use self::watch::Watch;
use crate::clock::Clock;
use crate::runtime::Runtime;
use crate::runtime::gc::ImageReclaimer;

/// How often the node is looked at (A13.5).
const EVERY: Duration = Duration::from_secs(10);
/// An evicted pod has so long to go before the next one is thought of.
const PATIENCE: Duration = Duration::from_secs(30);
/// While something goes, it is looked for so often.
const POLL: Duration = Duration::from_millis(250);
/// Dead containers have so long to be removed.
const REMOVAL: Duration = Duration::from_secs(10);
/// Memory may go to and fro around a mark: it is not looked at more often than this.
const MARKS_APART: Duration = Duration::from_secs(1);
/// The reason of event and status.
const EVICTED: &str = "Evicted";

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct EvictionSettings {
    thresholds: Vec<Threshold>,
    /// How long a condition stays after its cause (A13.5).
    pub pressure_transition: Duration,
    /// How long pods have at most where a soft threshold is met (A13.5).
    pub max_pod_grace: Duration,
    /// kubelet's `localStorageCapacityIsolation`: whether limits for local storage count (A13.10).
    pub local_storage: bool,
    /// kubelet's `kernelMemcgNotification`: the kernel tells of memory that crosses a threshold, where it has cgroup v1.
    pub memcg_notification: bool,
    /// Pods' directories.
    pub root_dir: PathBuf,
    /// Pods' logs.
    pub log_dir: PathBuf,
}

impl EvictionSettings {
    /// Reads the thresholds; the rest is upstream's defaults.
    ///
    /// # Errors
    /// Names the field and the signal that cannot be used.
    pub fn new(fields: &ThresholdFields, root_dir: PathBuf, log_dir: PathBuf) -> Result<Self, ThresholdError> {
        Ok(Self {
            thresholds: threshold::read(fields)?,
            pressure_transition: Duration::from_secs(300),
            max_pod_grace: Duration::ZERO,
            local_storage: true,
            memcg_notification: false,
            root_dir,
            log_dir,
        })
    }
}

/// What eviction needs of other rooms.
pub struct EvictionHandles {
    /// Dead containers, and what containers wrote.
    pub runtime: Runtime,
    /// What groups have used.
    pub usage: Arc<dyn UsageReader>,
    /// What lies on the disk.
    pub disks: Arc<dyn DiskMeter>,
    /// Pods of this node.
    pub pods: Arc<dyn PodDirectory>,
    /// Ends them.
    pub evictor: Arc<dyn PodEvictor>,
    /// Unused images.
    pub images: ImageReclaimer,
    /// Publishes events.
    pub events: Arc<dyn EventSink>,
}

impl std::fmt::Debug for EvictionHandles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EvictionHandles").finish_non_exhaustive()
    }
}

/// Looks for ever. `pressures` shows the conditions that hold.
pub async fn evict(
    settings: EvictionSettings,
    handles: EvictionHandles,
    pressures: tokio::sync::watch::Sender<Pressures>,
    clock: Clock,
) {
    if settings.thresholds.is_empty() && !settings.local_storage {
        // Whoever reads the pressures goes on.
        return std::future::pending().await;
    }
    let places = Places { root_dir: settings.root_dir.clone(), log_dir: settings.log_dir.clone() };
    let EvictionHandles { runtime, usage, disks, pods, evictor, images, events } = handles;
    let meter = Meter::new(runtime, usage, disks, places);
    let mut keeper = Keeper {
        settings,
        meter,
        pods,
        evictor,
        images,
        events,
        pressures,
        clock,
        watch: Watch::default(),
        evicted: BTreeSet::new(),
    };
    let trigger = psi::Trigger::new();
    if let Err(error) = &trigger {
        debug!(%error, "the kernel gives no early word of short memory: it is looked at each ten seconds");
    }
    loop {
        let gone = keeper.round().await;
        if gone.is_empty() {
            let early = async {
                match &trigger {
                    Ok(trigger) => trigger.wait().await,
                    Err(_) => std::future::pending().await,
                }
            };
            let marks = keeper.marks();
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = early => {}
                () = any_crossed(&marks) => {}
            }
        } else {
            keeper.wait_for(&gone).await;
        }
    }
}

/// Returns when memory has crossed one of the marks.
async fn any_crossed(marks: &[Mark]) {
    if marks.is_empty() {
        return std::future::pending().await;
    }
    tokio::time::sleep(MARKS_APART).await;
    let all = marks.iter().map(|mark| Box::pin(mark.crossed()));
    futures::future::select_all(all).await;
}

struct Keeper {
    settings: EvictionSettings,
    meter: Meter,
    pods: Arc<dyn PodDirectory>,
    evictor: Arc<dyn PodEvictor>,
    images: ImageReclaimer,
    events: Arc<dyn EventSink>,
    pressures: tokio::sync::watch::Sender<Pressures>,
    clock: Clock,
    watch: Watch,
    /// Pods that have their order, as long as they are there: nobody is evicted twice.
    evicted: BTreeSet<PodUid>,
}

impl Keeper {
    /// Looks once, and does what is to be done. The pods that were evicted.
    async fn round(&mut self) -> Vec<PodUid> {
        let layout = self.meter.layout().await;
        let thresholds = threshold::with_containers(&self.settings.thresholds, layout);
        let seen = self.meter.observe();
        let now = self.clock.now().monotonic;
        let due = self.watch.note(&thresholds, &seen, now);
        let holding = self.watch.pressures(self.settings.pressure_transition, now);
        self.pressures.send_if_modified(|last| std::mem::replace(last, holding.clone()) != holding);
        let all = self.active();
        if self.settings.local_storage {
            let gone = self.enforce_storage(&all, layout).await;
            if !gone.is_empty() {
                return gone;
            }
        }
        let Some(first) = due.first().copied() else { return Vec::new() };
        let resource = first.signal.resource();
        let text = format!("Attempting to reclaim {}", resource.as_str());
        info!(signal = first.signal.name(), observed = ?seen.get(&first.signal), "{text}");
        self.events.publish(EventSubject::Node, EventType::Warning, "EvictionThresholdMet", text);
        if self.reclaim(first.signal, layout).await {
            let seen = self.meter.observe();
            if !thresholds.iter().any(|threshold| threshold.is_met(&seen, true)) {
                info!("enough was reclaimed without ending a pod");
                return Vec::new();
            }
        }
        self.evict_one(all, (first, &due, &seen), layout).await.into_iter().collect()
    }

    /// Marks at the thresholds of memory, where they are to be had.
    fn marks(&self) -> Vec<Mark> {
        let groups = self.meter.usage.memory_groups().filter(|_| self.settings.memcg_notification);
        let Some([machine, all_pods]) = groups else { return Vec::new() };
        let of = |threshold: &Threshold| {
            let (group, usage) = match threshold.signal {
                Signal::Memory => (&machine, self.meter.usage.machine()),
                Signal::AllocatableMemory => (&all_pods, self.meter.usage.all_pods()),
                _ => return None,
            };
            let capacity = usage.memory_limit_bytes?;
            let wanted = threshold.value.of(i64::try_from(capacity).unwrap_or(i64::MAX));
            let bytes = memcg::mark_of(capacity, wanted, usage.memory_bytes, usage.working_set_bytes);
            match Mark::set(group, bytes) {
                Ok(mark) => Some(mark),
                Err(error) => {
                    debug!(%error, group = %group.display(), "the kernel does not tell of marks in this group");
                    None
                }
            }
        };
        self.settings.thresholds.iter().filter_map(of).collect()
    }

    /// Pods that may still take something.
    fn active(&mut self) -> Vec<LocalPod> {
        let mut pods = self.pods.pods();
        let present: BTreeSet<PodUid> = pods.iter().map(|pod| PodRef::of(pod.pod()).uid).collect();
        self.evicted.retain(|uid| present.contains(uid));
        pods.retain(|pod| !pod.has_ended() && !self.evicted.contains(&PodRef::of(pod.pod()).uid));
        pods
    }

    /// Ends the pods that took more of the disk than they may (A13.10).
    async fn enforce_storage(&mut self, pods: &[LocalPod], layout: Layout) -> Vec<PodUid> {
        let limited: Vec<LocalPod> = pods.iter().filter(|pod| storage::is_limited(pod.pod())).cloned().collect();
        if limited.is_empty() {
            return Vec::new();
        }
        let shares = self.meter.shares(&limited, true).await;
        let mut gone = Vec::new();
        for pod in limited.iter().map(LocalPod::pod) {
            let uid = PodRef::of(pod).uid;
            let Some((share, beside)) = shares.get(&uid) else { continue };
            if let Some((limit, message)) = storage::exceeded(pod, share, *beside, layout)
                && self.evict_pod(pod, message, BTreeMap::new(), AT_ONCE, false)
            {
                metrics::EVICTIONS.inc(&[limit]);
                gone.push(uid);
            }
        }
        gone
    }

    /// Lets go of what nobody uses on the disk that is short; whether anything was tried (A13.7).
    async fn reclaim(&self, signal: Signal, layout: Layout) -> bool {
        let (containers, images) = match (signal.resource(), layout) {
            (Resource::Memory | Resource::Pids, _) => (false, false),
            (_, Layout::One) => (true, true),
            (_, Layout::ImagesApart) => {
                let of_node = matches!(signal, Signal::NodeFs | Signal::NodeFsInodes);
                (!of_node, !of_node)
            }
            (_, Layout::Split) => {
                let of_images = matches!(signal, Signal::ImageFs | Signal::ImageFsInodes);
                (!of_images, of_images)
            }
        };
        if containers {
            self.drop_containers().await;
        }
        if images {
            match self.images.remove_unused().await {
                Ok(bytes) => info!(bytes, "unused images were removed"),
                Err(error) => warn!(%error, "not all unused images could be removed"),
            }
        }
        containers || images
    }

    /// Has the containers of finished pods removed, and waits for that.
    async fn drop_containers(&self) {
        let finished: BTreeSet<String> = self
            .pods
            .pods()
            .iter()
            .filter(|pod| pod.has_ended())
            .map(|pod| PodRef::of(pod.pod()).uid.to_string())
            .collect();
        if finished.is_empty() {
            return;
        }
        self.evictor.drop_finished();
        let began = self.clock.now().monotonic;
        while self.clock.now().monotonic.saturating_sub(began) < REMOVAL {
            let Ok(containers) = self.meter.runtime.list_containers(None).await else { return };
            let uid = |c: &crate::runtime::cri::Container| c.labels.get(stoker_model::names::POD_UID).cloned();
            if !containers.iter().filter_map(uid).any(|uid| finished.contains(&uid)) {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends the pod that is to go first, if any may (A13.8).
    async fn evict_one(
        &mut self,
        pods: Vec<LocalPod>,
        (threshold, due, seen): (Threshold, &[Threshold], &Observations),
        layout: Layout,
    ) -> Option<PodUid> {
        let resource = threshold.signal.resource();
        let with_disk = matches!(resource, Resource::EphemeralStorage | Resource::Inodes);
        let mut shares = self.meter.shares(&pods, with_disk).await;
        let candidate = |pod: LocalPod| {
            let pod = pod.pod().clone();
            let share = shares.remove(&PodRef::of(&pod).uid).map(|(share, _)| share);
            Candidate { pod, share }
        };
        let mut candidates: Vec<Candidate> = pods.into_iter().map(candidate).collect();
        rank::rank(&mut candidates, threshold.signal, layout);
        for candidate in candidates {
            let pod = candidate.pod.clone();
            let grace = rank::grace(&pod, &threshold, self.settings.max_pod_grace);
            let (message, annotations) = rank::message(&candidate, resource, due, seen);
            if self.evict_pod(&pod, message, annotations, grace, true) {
                metrics::EVICTIONS.inc(&[threshold.signal.name()]);
                return Some(PodRef::of(&pod).uid);
            }
        }
        warn!(resource = resource.as_str(), "no pod could be ended to reclaim it");
        None
    }

    /// Whether the pod ends now: a critical one does not.
    fn evict_pod(
        &mut self,
        pod: &Pod,
        message: String,
        annotations: BTreeMap<String, String>,
        grace: Duration,
        disrupts: bool,
    ) -> bool {
        let reference = PodRef::of(pod);
        if is_critical(pod) {
            warn!(pod = %reference, message, "a critical pod is not evicted");
            return false;
        }
        let order = Eviction { reason: EVICTED, message: message.clone(), grace, disrupts };
        if !self.evictor.evict(&reference.uid, order) {
            return false;
        }
        self.evicted.insert(reference.uid.clone());
        let subject = EventSubject::Pod { pod: reference, field_path: None };
        self.events.publish_annotated(subject, EventType::Warning, EVICTED, message, annotations);
        true
    }

    /// Waits until what these pods had is free.
    async fn wait_for(&self, pods: &[PodUid]) {
        let began = self.clock.now().monotonic;
        while self.clock.now().monotonic.saturating_sub(began) < PATIENCE {
            tokio::time::sleep(POLL).await;
            let known = self.pods.pods();
            let goes_on = |uid: &PodUid| known.iter().any(|pod| PodRef::of(pod.pod()).uid == *uid && !pod.has_ended());
            if pods.iter().any(goes_on) {
                continue;
            }
            let usage = self.meter.usage.clone();
            let groups = tokio::task::spawn_blocking(move || usage.pods()).await.unwrap_or_default();
            if !pods.iter().any(|uid| groups.iter().any(|group| group.uid == uid.as_str())) {
                return;
            }
        }
        warn!(?pods, "evicted, and not gone in time");
    }
}
