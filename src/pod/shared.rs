//! What every worker of this node shares: settings and handles.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use stoker_model::handle::{
    EventSink, EventSubject, EventType, MirrorApi, NodeFeed, NodeSnapshot, ObjectApi, PodApi, PodFeed, ServiceLinks,
};
use stoker_model::pod::{LocalPod, PodRef, PodUid};
use tokio::sync::{Notify, mpsc};

use super::admission::{Features, SysctlRules};
use super::observed::Kind;
use super::relist::Lister;
use super::resize::{ResizeRules, Wish, frees, in_turn};
use super::slow::SlowSteps;
use super::sources::StaticSources;
use super::turns::Turns;
use super::users::Users;
use crate::cgroup::Cgroups;
use crate::clock::Clock;
use crate::probe::Prober;
use crate::resources::Assignments;
use crate::runtime::events::RuntimeEvent;
use crate::runtime::{Images, Runtime};
use crate::volume::Volumes;

/// What the operator decides about pods.
#[derive(Clone, Debug)]
pub struct PodsConfig {
    /// kubelet's `--root-dir`.
    pub root_dir: PathBuf,
    /// Where the runtime writes logs: `/var/log/pods` (A20.1).
    pub log_dir: PathBuf,
    /// Where links to the logs lie: `/var/log/containers` (A20.1).
    pub link_dir: PathBuf,
    /// kubelet's `syncFrequency`: each pod is looked at so often though nothing happened (A1.5).
    pub sync_frequency: Duration,
    /// kubelet's `crashLoopBackOff.maxContainerRestartPeriod` (A3.9).
    pub longest_backoff: Duration,
    /// kubelet's `clusterDNS`.
    pub cluster_dns: Vec<IpAddr>,
    /// kubelet's `clusterDomain`.
    pub cluster_domain: String,
    /// kubelet's `resolvConf`; `None`: pods get nothing of the node's (A11.5).
    pub resolv_conf: Option<PathBuf>,
    /// Where static pods come from.
    pub static_sources: StaticSources,
    /// Which kernel settings pods may change: kubelet's `allowedUnsafeSysctls` besides the safe ones.
    pub sysctls: SysctlRules,
    /// What the node declares of itself, which pods may need.
    pub features: Features,
    /// kubelet's `seccompDefault`.
    pub seccomp_default: bool,
    /// kubelet's `singleProcessOOMKill`.
    pub single_process_oom_kill: bool,
    /// kubelet's `cpuManagerReconcilePeriod`.
    pub cpu_sets_every: Duration,
    /// So often what pods left behind is looked for (A14.9), and the burstable ones are weighed anew (A12.6).
    pub garbage_every: Duration,
    /// Which resizes can never be had while a pod runs.
    pub resizes: ResizeRules,
    /// kubelet's `memorySwap.swapBehavior` is `LimitedSwap` (A12.12).
    pub limited_swap: bool,
    /// The runtime handler of pods without a RuntimeClass; empty: the runtime's own choice.
    pub runtime_handler: String,
    /// The IDs of pods that have users of their own.
    pub users: Option<Users>,
}

impl Default for PodsConfig {
    fn default() -> Self {
        Self {
            root_dir: "/var/lib/kubelet".into(),
            log_dir: "/var/log/pods".into(),
            link_dir: "/var/log/containers".into(),
            sync_frequency: Duration::from_secs(60),
            longest_backoff: super::backoff::LONGEST,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: Some("/etc/resolv.conf".into()),
            static_sources: StaticSources::default(),
            sysctls: SysctlRules::default(),
            features: Features::default(),
            seccomp_default: false,
            single_process_oom_kill: false,
            cpu_sets_every: Duration::from_secs(10),
            garbage_every: Duration::from_secs(60),
            resizes: ResizeRules::default(),
            limited_swap: false,
            runtime_handler: String::new(),
            users: None,
        }
    }
}

/// What the pods of this node need of other rooms.
pub struct PodHandles {
    /// The runtime.
    pub runtime: Runtime,
    /// Images of the same runtime.
    pub images: Images,
    /// What happens in the runtime: [`crate::runtime::events::spawn`].
    pub events: mpsc::Receiver<RuntimeEvent>,
    /// Pods that the API server wants here.
    pub pods: PodFeed,
    /// The node; pods wait until it has allocatable resources.
    pub node: NodeFeed,
    /// Writes status.
    pub api: Arc<dyn PodApi>,
    /// Shows static pods.
    pub mirrors: Arc<dyn MirrorApi>,
    /// ConfigMaps, Secrets, tokens.
    pub objects: Arc<dyn ObjectApi>,
    /// Service environment.
    pub services: Arc<dyn ServiceLinks>,
    /// Publishes events.
    pub sink: Arc<dyn EventSink>,
    /// Control groups.
    pub cgroups: Cgroups,
    /// Volumes below the same root directory.
    pub volumes: Volumes,
    /// Devices, CPUs and memory that containers have for themselves.
    pub assignments: Assignments,
}

impl std::fmt::Debug for PodHandles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodHandles").finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    pub(super) config: PodsConfig,
    pub(super) runtime: Runtime,
    pub(super) lister: Lister,
    pub(super) images: Images,
    pub(super) node: NodeFeed,
    pub(super) api: Arc<dyn PodApi>,
    pub(super) objects: Arc<dyn ObjectApi>,
    pub(super) services: Arc<dyn ServiceLinks>,
    pub(super) sink: Arc<dyn EventSink>,
    pub(super) cgroups: Cgroups,
    pub(super) volumes: Volumes,
    pub(super) assignments: Assignments,
    pub(super) prober: Prober,
    pub(super) clock: Clock,
    pub(super) turns: Turns,
    /// Pods with the status last computed.
    pub(super) directory: Directory,
}

impl Shared {
    pub(super) fn node(&self) -> Arc<NodeSnapshot> {
        self.node.borrow().clone()
    }

    /// The node as admission counts it: where it is decided one by one who gets something, it does not count (A15.5).
    pub(super) fn countable(&self, node: &NodeSnapshot) -> NodeSnapshot {
        let mut node = node.clone();
        node.allocatable.retain(|name, _| !self.assignments.decides(name));
        node
    }

    /// The log directory of a pod (A20.1).
    pub(super) fn log_dir(&self, pod: &PodRef) -> PathBuf {
        self.config.log_dir.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
    }

    /// Publishes an event about a pod.
    pub(super) fn tell(&self, pod: &PodRef, kind: EventType, reason: &str, message: impl Into<String>) {
        let subject = EventSubject::Pod { pod: pod.clone(), field_path: None };
        self.sink.publish(subject, kind, reason, message.into());
    }

    /// Publishes an event about a container (A21.3).
    pub(super) fn tell_of(
        &self,
        pod: &PodRef,
        container: (Kind, &str),
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let field_path = Some(container.0.field_path(container.1));
        self.sink.publish(EventSubject::Pod { pod: pod.clone(), field_path }, kind, reason, message.into());
    }
}

/// The pods that have a worker, and the runtime's IDs of what belongs to them. Written by each worker for its own pod.
#[derive(Clone, Default)]
pub(super) struct Directory {
    pods: Arc<Mutex<BTreeMap<PodUid, LocalPod>>>,
    /// Resizes that wait for room. Locked after `pods`.
    wishes: Arc<Mutex<BTreeMap<PodUid, Wish>>>,
    /// Told when others may have more room.
    freed: Arc<Notify>,
    ids: Arc<Mutex<BTreeMap<String, PodUid>>>,
    /// When (monotonic) somebody last looked at what the runtime has.
    looked: Arc<Mutex<Option<Duration>>>,
    pub(super) slow: SlowSteps,
}

impl Directory {
    pub(super) fn all(&self) -> Vec<LocalPod> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A pod as its worker showed it last: with the resources that it was given.
    pub(super) fn get(&self, uid: &PodUid) -> Option<LocalPod> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// The runtime is looked at now (monotonic). How long ago that was done before, whichever pod it was for.
    pub(super) fn looks(&self, now: Duration) -> Option<Duration> {
        let before = self.looked.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        before.map(|before| now.saturating_sub(before))
    }

    /// Whether the pod's phase is a terminal one.
    pub(super) fn has_ended(&self, uid: &PodUid) -> bool {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(uid).is_some_and(LocalPod::has_ended)
    }

    pub(super) fn put(&self, uid: &PodUid, pod: LocalPod) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let before = pods.insert(uid.clone(), pod.clone());
        drop(pods);
        if before.is_some_and(|before| frees(&before, &pod)) {
            self.freed.notify_one();
        }
    }

    /// Another version of a pod that differs in nothing that its worker shows, in place of that one.
    pub(super) fn renew(&self, uid: &PodUid, before: &Arc<Pod>, now: Arc<Pod>) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = pods.get_mut(uid).filter(|shown| Arc::ptr_eq(shown.pod(), before)) {
            shown.renew(now);
        }
    }

    /// Puts a pod in place of its former version if `admits` finds room for it among the others, when its turn has come: at most
    /// one pod at a time is given something. Otherwise its wish is kept, and counts when others have theirs (A15.1).
    pub(super) fn replace_if<E>(
        &self,
        pod: &Arc<Pod>,
        now: Duration,
        admits: impl Fn(&Pod, &[Arc<Pod>]) -> Result<(), E>,
    ) -> Result<(), E> {
        let uid = PodRef::of(pod).uid;
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wishes = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<Arc<Pod>> = pods.values().filter(|pod| !pod.has_ended()).map(|pod| pod.pod().clone()).collect();
        let since = wishes.get(&uid).map_or(now, |wish| wish.since);
        let wish = Wish { asked: pod.clone(), since };
        let waiting: Vec<Wish> = wishes.values().cloned().collect();
        let others = in_turn(&wish, &waiting, &all, |pod, others| admits(pod, others).is_ok());
        if let Err(error) = admits(pod, &others) {
            wishes.insert(uid, wish);
            return Err(error);
        }
        wishes.remove(&uid);
        let after = LocalPod::from(pod.clone());
        let before = pods.insert(uid, after.clone());
        if before.is_some_and(|before| frees(&before, &after)) {
            self.freed.notify_one();
        }
        Ok(())
    }

    /// The pod asks for nothing that it has not got.
    pub(super) fn wishes_nothing(&self, uid: &PodUid) {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Pods whose resize waits for room.
    pub(super) fn waiting(&self) -> Vec<PodUid> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Returns when a pod needs less than before, or has ended.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    pub(super) fn owner(&self, id: &str) -> Option<PodUid> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// What the runtime has of a pod now.
    pub(super) fn put_ids<'a>(&self, uid: &PodUid, ids: impl IntoIterator<Item = &'a str>) {
        let mut all = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            if !all.contains_key(id) {
                all.insert(id.to_owned(), uid.clone());
            }
        }
    }

    /// What the worker has removed: nobody needs to be told that it is gone.
    pub(super) fn drop_ids<'a>(&self, ids: impl IntoIterator<Item = &'a str>) {
        let mut all = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            all.remove(id);
        }
    }

    pub(super) fn forget(&self, uid: &PodUid) {
        self.wishes_nothing(uid);
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, owner| owner != uid);
    }
}
