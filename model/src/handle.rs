//! Handles: what one room may ask of another that it does not know. `cli` wires them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, PodStatus, Secret, Taint};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use tokio::sync::{Notify, watch};

use crate::pod::{LocalPod, PodRef, PodUid};
use crate::service::NamespacedName;

/// The pods that the API server wants on this node, newest wins. `None` until the first list was complete: until then
/// nothing may be cleaned up (A1.2).
pub type PodFeed = watch::Receiver<Option<Arc<DesiredPods>>>;

/// Pods by UID. One without a spec could not be read: it exists, and nothing else is known of it.
pub type DesiredPods = BTreeMap<PodUid, Arc<Pod>>;

/// What went wrong with a request to the API server, by what the caller may do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// The object, or one of that UID, does not exist (any more).
    #[error("{0}")]
    NotFound(String),
    /// Somebody else changed or created it first: read again.
    #[error("{0}")]
    Conflict(String),
    /// The server refuses for good; repeating the same request is useless.
    #[error("{0}")]
    Rejected(String),
    /// The server cannot be reached, is overloaded or failed: try again, not before `retry_after_seconds`.
    #[error("{message}")]
    Unavailable {
        /// What happened.
        message: String,
        /// The server's wish.
        retry_after_seconds: Option<u32>,
    },
}

/// Writes what became of a pod. `upstream` implements it; the pod's worker is the only caller for its pod.
#[async_trait]
pub trait PodApi: Send + Sync + 'static {
    /// Strategic-merge PATCH of `pods/status` with the UID in the patch (A2.10). Conditions of others are not touched.
    async fn patch_status(&self, pod: &PodRef, status: &PodStatus) -> Result<(), ApiError>;

    /// Deletes with grace 0 and a UID precondition; done already is success (A1.11).
    async fn delete_finished(&self, pod: &PodRef) -> Result<(), ApiError>;
}

/// Makes the pods by which the API server shows static pods (A7.3). Deleted as [`PodApi::delete_finished`] does.
#[async_trait]
pub trait MirrorApi: Send + Sync + 'static {
    /// Creates the pod; one of that name that shows the same version already is success.
    async fn create_mirror(&self, pod: &Pod) -> Result<(), ApiError>;
}

/// Reads the objects that a pod's environment and volumes refer to. `Ok(None)`: there is no such object.
#[async_trait]
pub trait ObjectApi: Send + Sync + 'static {
    /// One ConfigMap.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, ApiError>;

    /// One Secret.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, ApiError>;

    /// A token of the pod's service account, bound to the pod (A9.11).
    async fn service_account_token(
        &self,
        pod: &PodRef,
        service_account: &str,
        audiences: &[String],
        expiration_seconds: i64,
    ) -> Result<BoundToken, ApiError>;

    /// The pod's service account (A14.4). `Ok(None)`: there is no such account.
    async fn service_account(&self, _namespace: &str, _name: &str) -> Result<Option<ServiceAccountInfo>, ApiError> {
        Err(ApiError::NotFound("serviceaccounts are not to be had here".to_owned()))
    }

    /// From now on the pod uses exactly these objects (none: the pod is gone); `changed` is notified when one of them changes (A9.8).
    /// Reads of followed objects are answered from the watch.
    fn follow(&self, _pod: &PodUid, _objects: BTreeSet<ObjectName>, _changed: &Arc<Notify>) {}

    /// The runtime handler of a RuntimeClass (A15.11). `Ok(None)`: there is no such class.
    async fn runtime_handler(&self, _class: &str) -> Result<Option<String>, ApiError> {
        Err(ApiError::NotFound("runtimeclasses are not to be had here".to_owned()))
    }

    /// The labels of a Node as they are at this moment, which its watch may not have told yet (A6.2).
    async fn node_labels(&self, _node: &str) -> Result<BTreeMap<String, String>, ApiError> {
        Err(ApiError::NotFound("nodes are not to be had here".to_owned()))
    }

    /// The PEM texts of the ClusterTrustBundles that a projection chooses.
    async fn trust_bundles(&self, _choice: &TrustBundles) -> Result<Vec<String>, ApiError> {
        Err(ApiError::NotFound("clustertrustbundles are not to be had here".to_owned()))
    }
}

/// Of a ServiceAccount, what programs that know registries' passwords are told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceAccountInfo {
    /// UID.
    pub uid: String,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// An object that pods refer to.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ObjectName {
    /// Namespace and name of a ConfigMap.
    ConfigMap(String, String),
    /// Namespace and name of a Secret.
    Secret(String, String),
}

/// Which ClusterTrustBundles.
#[derive(Clone, PartialEq, Debug)]
pub enum TrustBundles {
    /// The one of that name.
    Named(String),
    /// Those of a signer, chosen by labels.
    Signer(String, LabelSelector),
}

/// Reads what persistent volumes are made of, and writes what this node says of its CSI drivers. `Ok(None)`: there is no such object.
#[async_trait]
pub trait StorageApi: Send + Sync + 'static {
    /// One claim.
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, ApiError>;

    /// One persistent volume.
    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, ApiError>;

    /// What the cluster says of a CSI driver.
    async fn csi_driver(&self, name: &str) -> Result<Option<CSIDriver>, ApiError>;

    /// One attachment.
    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, ApiError>;

    /// Tells the cluster that a CSI driver is there: CSINode, annotation and topology labels of the Node (A9.18).
    async fn put_driver(&self, driver: &CsiDriverInfo) -> Result<(), ApiError>;

    /// The volumes that the Node's status lists: those that it uses, and those that the cluster has attached to it.
    async fn volumes_of_node(&self) -> Result<NodeVolumes, ApiError>;

    /// A claim's volume has grown, also on this node.
    async fn put_claim_capacity(
        &self,
        namespace: &str,
        name: &str,
        capacity: &BTreeMap<String, Quantity>,
    ) -> Result<(), ApiError>;

    /// The driver is gone.
    async fn remove_driver(&self, name: &str) -> Result<(), ApiError>;
}

/// Attachable volumes in the Node's status, by the cluster's names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeVolumes {
    /// `volumesInUse`.
    pub in_use: BTreeSet<String>,
    /// `volumesAttached`.
    pub attached: BTreeSet<String>,
}

/// What a CSI driver said of itself and of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CsiDriverInfo {
    /// The driver.
    pub name: String,
    /// What it calls this node.
    pub node_id: String,
    /// How many volumes it can attach here; 0: it does not say.
    pub attach_limit: i64,
    /// Where the node is, as the driver sees it.
    pub topology: BTreeMap<String, String>,
}

/// A service-account token.
#[derive(Clone)]
pub struct BoundToken {
    /// The JWT.
    pub token: String,
    /// When it ends.
    pub expires: jiff::Timestamp,
}

impl std::fmt::Debug for BoundToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BoundToken").field("token", &"…").field("expires", &self.expires).finish()
    }
}

/// The services of a namespace that become environment variables of its pods (A8.6).
pub trait ServiceLinks: Send + Sync + 'static {
    /// Names to values; `None` until the first list of services was complete.
    fn environment(&self, namespace: &str, enable_service_links: bool) -> Option<BTreeMap<String, String>>;
}

/// `Normal` or `Warning`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventType {
    /// Something that should happen, happened.
    Normal,
    /// Something that somebody may have to look at.
    Warning,
}

/// What an event is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum EventSubject {
    /// A pod, or with a field path like `spec.containers{web}` one of its containers (A21.3).
    Pod {
        /// The pod.
        pod: PodRef,
        /// The container's place in the spec.
        field_path: Option<String>,
    },
    /// This node.
    Node,
    /// A Service.
    Service {
        /// Namespace and name.
        service: NamespacedName,
        /// UID.
        uid: Arc<str>,
    },
    /// A PersistentVolumeClaim.
    Claim {
        /// Namespace and name.
        claim: NamespacedName,
        /// UID.
        uid: Arc<str>,
    },
}

/// Publishes events; never blocks, and may drop when the API server is away.
pub trait EventSink: Send + Sync + 'static {
    /// Publishes one event with one of kubelet's reasons (A21.1).
    fn publish(&self, subject: EventSubject, kind: EventType, reason: &str, message: String);

    /// The same with annotations, for programs that read events.
    fn publish_annotated(
        &self,
        subject: EventSubject,
        kind: EventType,
        reason: &str,
        message: String,
        _annotations: BTreeMap<String, String>,
    ) {
        self.publish(subject, kind, reason, message);
    }
}

/// The node as admission and pod environments see it. `node` publishes it, the newest wins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSnapshot {
    /// The node's name.
    pub name: String,
    /// UID of the Node object; `None` while there is none, or while it is being deleted.
    pub uid: Option<String>,
    /// Addresses, primary family first.
    pub ips: Vec<IpAddr>,
    /// Labels of the Node object.
    pub labels: BTreeMap<String, String>,
    /// Taints of the Node object.
    pub taints: Vec<Taint>,
    /// What pods may use.
    pub allocatable: BTreeMap<String, Quantity>,
    /// What the machine has.
    pub capacity: BTreeMap<String, Quantity>,
    /// The runtime reports that its network is ready.
    pub network_ready: bool,
    /// The runtime honours `supplementalGroupsPolicy` (A10.2).
    pub supplemental_groups_policy: bool,
    /// Active pressure conditions: `MemoryPressure`, `DiskPressure`, `PIDPressure`.
    pub pressures: Vec<String>,
    /// What the runtime's handlers can do, by name; that of pods without a RuntimeClass has none. Empty: the runtime does not say.
    pub handlers: BTreeMap<String, RuntimeHandler>,
    /// Like `containerd://1.6.20`; empty while it is not known.
    pub runtime_version: String,
    /// The machine goes down: nothing new is admitted (A15.10).
    pub shutting_down: bool,
}

/// What a handler of the runtime can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RuntimeHandler {
    /// It makes mounts read-only together with what is mounted below them (A9.24).
    pub recursive_read_only: bool,
    /// It can give a pod users of its own (A11.2).
    pub user_namespaces: bool,
}

/// The newest [`NodeSnapshot`].
pub type NodeFeed = watch::Receiver<Arc<NodeSnapshot>>;

/// The pods that this node runs now, with the status last computed, for `/pods` and for the log endpoint.
pub trait PodDirectory: Send + Sync + 'static {
    /// Every pod that has a worker.
    fn pods(&self) -> Vec<LocalPod>;

    /// The running pod of that name; with a UID, only that very pod.
    fn pod(&self, namespace: &str, name: &str, uid: Option<&PodUid>) -> Option<LocalPod>;
}

/// Who asks the node's HTTPS API.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct UserInfo {
    /// User name, from a client certificate's CN or a token.
    pub name: String,
    /// Groups, from a client certificate's O or a token.
    pub groups: Vec<String>,
}

/// Asks the API server what a user may do (A18).
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// Whether `user` may do `verb` on `nodes/<subresource>` of this node.
    async fn may(&self, user: &UserInfo, verb: &str, subresource: &str) -> Result<bool, ApiError>;
}

/// Asks the API server whose a bearer token is (A18.16).
#[async_trait]
pub trait TokenReviewer: Send + Sync + 'static {
    /// The token's user; `None` where it is nobody's.
    async fn who(&self, token: &str) -> Result<Option<UserInfo>, ApiError>;
}

/// What a control group has used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Processor time, nanoseconds.
    pub cpu_nanoseconds: u64,
    /// Of it in user mode, nanoseconds.
    pub cpu_user_nanoseconds: u64,
    /// Of it in the kernel, nanoseconds.
    pub cpu_system_nanoseconds: u64,
    /// Memory with all caches, bytes.
    pub memory_bytes: u64,
    /// Memory without file pages that were not used lately, bytes.
    pub working_set_bytes: u64,
    /// Anonymous memory, bytes.
    pub rss_bytes: u64,
    /// File pages, bytes.
    pub cache_bytes: u64,
    /// Of them those that are mapped, bytes.
    pub mapped_bytes: u64,
    /// Swapped out, bytes.
    pub swap_bytes: u64,
    /// The limit of memory, bytes; `None` without one.
    pub memory_limit_bytes: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that had to read.
    pub major_page_faults: u64,
    /// Processes and threads.
    pub processes: u64,
}

/// Bytes, errors and drops of one network interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InterfaceUsage {
    /// Its name.
    pub name: String,
    /// Received: bytes, packets, errors, dropped.
    pub received: [u64; 4],
    /// Sent: bytes, packets, errors, dropped.
    pub sent: [u64; 4],
}

/// What a pod's groups have used.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PodUsage {
    /// The pod's UID.
    pub uid: String,
    /// Its group, as metrics name it.
    pub group: String,
    /// All of the pod.
    pub usage: Usage,
    /// Each container and the sandbox by the runtime's ID.
    pub containers: BTreeMap<String, Usage>,
    /// Their groups, as metrics name them.
    pub container_groups: BTreeMap<String, String>,
    /// The pod's network; that of the node for pods in it.
    pub interfaces: Vec<InterfaceUsage>,
}

/// Reads what was used, now. `cgroup` implements it.
pub trait UsageReader: Send + Sync + 'static {
    /// The whole machine, with its network.
    fn node(&self) -> PodUsage;

    /// The whole machine.
    fn machine(&self) -> Usage;

    /// Every pod that has a group.
    fn pods(&self) -> Vec<PodUsage>;

    /// The same, of containers only those with these IDs: most others are sandboxes, which nobody asks about.
    fn pods_with(&self, _containers: &std::collections::BTreeSet<String>) -> Vec<PodUsage> {
        self.pods()
    }

    /// How much memory and swap together a group may use; `None`: no limit.
    fn swap_limit_bytes(&self, group: &str) -> Option<u64> {
        self.limits(group).swap_limit_bytes
    }

    /// All pods together, with their common limit.
    fn all_pods(&self) -> Usage;

    /// How long a group waited, `/` for the machine; nothing where the kernel does not tell it of groups (A23.4).
    fn stalls(&self, _group: &str) -> Stalls {
        Stalls::default()
    }

    /// What a group may use (A23.2).
    fn limits(&self, _group: &str) -> GroupLimits {
        GroupLimits::default()
    }

    /// What else there is to tell of a group that has used that much and has these limits (A23.2). Where nothing has run since it was asked
    /// about before, most of it is what it was.
    fn details(&self, _group: &str, _usage: &Usage, _limits: &GroupLimits) -> GroupDetails {
        GroupDetails::default()
    }

    /// The directories of cgroup v1's memory controller, of the machine and of all pods; `None` with cgroup v2, which tells of no marks
    /// (A13.5).
    fn memory_groups(&self) -> Option<[std::path::PathBuf; 2]> {
        None
    }

    /// The agent's own group, and that of all pods.
    fn system_groups(&self) -> Vec<(&'static str, String, Usage)> {
        Vec::new()
    }
}

/// For how long a resource was waited for: pressure stall information.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct StallTime {
    /// Since the group is there, in microseconds.
    pub total: u64,
    /// Of the last 10, 60 and 300 seconds, in percent.
    pub averages: [f64; 3],
}

/// How long some of the tasks waited, and how long all of them did at once.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Stall {
    /// Some.
    pub some: StallTime,
    /// All.
    pub full: StallTime,
}

/// By resource; `None`: the kernel does not tell.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Stalls {
    /// Processor time.
    pub cpu: Option<Stall>,
    /// Memory.
    pub memory: Option<Stall>,
    /// Block devices.
    pub io: Option<Stall>,
}

/// What a group did with a block device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceUsage {
    /// Like `/dev/sda`; empty where it has no name.
    pub device: String,
    /// Major and minor number.
    pub numbers: (u64, u64),
    /// Bytes that were read and written.
    pub bytes: [u64; 2],
    /// How often.
    pub operations: [u64; 2],
}

/// What a group may use. It changes when its pod is resized, and hardly ever else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupLimits {
    /// In the values of cgroup v1.
    pub cpu_shares: u64,
    /// Microseconds.
    pub cpu_period: u64,
    /// Microseconds in each period; 0: no limit.
    pub cpu_quota: u64,
    /// Protected or soft limit, bytes; 0: none.
    pub memory_reservation_bytes: u64,
    /// Bytes; `None`: no limit.
    pub swap_limit_bytes: Option<u64>,
    /// Processes and threads that there may be; 0: no limit.
    pub threads_max: u64,
}

/// What metrics tell of a group besides its [`Usage`]. 0 is also what is not known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupDetails {
    /// By device.
    pub devices: Vec<DeviceUsage>,
    /// How often memory hit its limit.
    pub memory_failures: u64,
    /// The most memory that was used, bytes.
    pub most_memory_bytes: u64,
    /// Processes that were killed for want of memory.
    pub oom_kills: u64,
    /// Periods in which the limit was looked at, and those in which it held something up.
    pub cpu_periods: u64,
    /// See `cpu_periods`.
    pub cpu_throttled_periods: u64,
    /// For how long it held it up, nanoseconds.
    pub cpu_throttled_nanoseconds: u64,
    /// Processes.
    pub processes: u64,
    /// Open files of all processes.
    pub open_files: u64,
    /// Sockets among them.
    pub sockets: u64,
    /// How many files the first process may open; `None`: no limit.
    pub open_files_limit: Option<u64>,
}

/// What files take of their file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskUsage {
    /// Bytes of the blocks that they fill.
    pub bytes: u64,
    /// How many there are, directories among them.
    pub inodes: u64,
}

impl std::ops::Add for DiskUsage {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), inodes: self.inodes.saturating_add(other.inodes) }
    }
}

impl std::iter::Sum for DiskUsage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| a + b)
    }
}

/// Measures what pods have written to this node's disk. It walks directories, so the calls that do not wait block. `volume` implements it.
#[async_trait]
pub trait DiskMeter: Send + Sync + 'static {
    /// The pod's volumes that lie on this node without being asked to stay, by name: of emptyDirs, and of what the agent wrote itself.
    fn volumes(&self, pod: &Pod) -> BTreeMap<String, DiskUsage>;

    /// What lies below a directory, on the same file system.
    fn tree(&self, path: &Path) -> DiskUsage;

    /// The pod's volumes that are mounted and can be measured: all but those of the host itself (A23.3).
    fn mounted(&self, _pod: &Pod) -> Vec<MountedVolume> {
        Vec::new()
    }

    /// What drivers tell of the pod's volumes, by name: of a file system of their own the node may see less than they do (A9.18).
    async fn told_by_drivers(&self, _pod: &Pod) -> BTreeMap<String, VolumeFill> {
        BTreeMap::new()
    }

    /// The plugin of each volume that the pod wants, and whether it is there (A23.3).
    fn plugins(&self, _pod: &Pod) -> Vec<(String, bool)> {
        Vec::new()
    }
}

/// What a volume takes and has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VolumeFill {
    /// All of it.
    pub capacity_bytes: u64,
    /// What may still be written.
    pub available_bytes: u64,
    /// What was.
    pub used_bytes: u64,
    /// How many files there may be.
    pub inodes: u64,
    /// How many more.
    pub inodes_free: u64,
    /// How many there are.
    pub inodes_used: u64,
}

/// A volume that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountedVolume {
    /// Its name in the pod.
    pub name: String,
    /// The claim behind it: then it is a file system of its own.
    pub claim: Option<String>,
    /// It lies in memory.
    pub in_memory: bool,
    /// Where.
    pub path: std::path::PathBuf,
}

/// An order to end a pod because the node is short of something, or the pod took more than it may (A13.9).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Eviction {
    /// `status.reason`: `Evicted`, or `Terminated` when the machine goes down.
    pub reason: &'static str,
    /// Why, as status and event tell it.
    pub message: String,
    /// How long it has at most.
    pub grace: Duration,
    /// It could have gone on elsewhere: its status says so with the condition `DisruptionTarget` (A2.19).
    pub disrupts: bool,
}

/// Ends pods for the node. `pod` implements it.
pub trait PodEvictor: Send + Sync + 'static {
    /// Ends a pod with phase `Failed`. Whether the order was taken; what it does shows in the pod's status.
    fn evict(&self, pod: &PodUid, eviction: Eviction) -> bool;

    /// Lets go of the containers that finished pods keep for their logs (A13.7).
    fn drop_finished(&self);
}

/// How many devices of a resource there are, and how many of them are healthy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceCount {
    /// All that the plugin tells of.
    pub capacity: i64,
    /// The healthy ones.
    pub allocatable: i64,
}

/// Devices by resource. What was there once and is gone counts as nothing.
pub type DeviceCounts = BTreeMap<String, DeviceCount>;

/// The newest [`DeviceCounts`], for the Node.
pub type DeviceFeed = watch::Receiver<Arc<DeviceCounts>>;

/// A plugin whose socket was found in `plugins_registry` (A15.6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundPlugin {
    /// What it calls itself.
    pub name: String,
    /// Where it serves.
    pub endpoint: std::path::PathBuf,
    /// The versions that it speaks.
    pub versions: Vec<String>,
}

/// Takes plugins of one type, other than CSI drivers (A15.6).
#[async_trait]
pub trait PluginKind: Send + Sync + 'static {
    /// The type, such as `DevicePlugin`.
    fn kind(&self) -> &'static str;

    /// Takes one, or says in upstream's words why not.
    async fn found(&self, plugin: &FoundPlugin) -> Result<(), String>;

    /// The socket of the one that serves there is gone.
    async fn lost(&self, name: &str, endpoint: &Path);
}

/// Reads claims of dynamic resources, and removes what drivers of this node have published (A15.8).
#[async_trait]
pub trait ClaimApi: Send + Sync + 'static {
    /// One claim. `Ok(None)`: there is no such claim.
    async fn resource_claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<k8s_openapi::api::resource::v1::ResourceClaim>, ApiError>;

    /// Removes the ResourceSlices of this node: those of one driver, or all.
    async fn remove_slices(&self, driver: Option<&str>) -> Result<(), ApiError>;
}

/// A certificate with its chain, and its key, both as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PemPair {
    /// The certificate itself first.
    pub chain: String,
    /// Its private key.
    pub key: String,
}

impl std::fmt::Debug for PemPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PemPair").finish_non_exhaustive()
    }
}

/// The serving certificate that the cluster has signed for this node; `None` until it has (A17.3).
pub type ServingCertificates = watch::Receiver<Option<Arc<PemPair>>>;

/// What the node's API asks of the agent itself; `cli` implements it.
pub trait AgentState: Send + Sync + 'static {
    /// Whether the pods' supervisor comes round (A18.1).
    fn is_alive(&self) -> bool;

    /// From now on as much is logged as klog logs at that level (A18.14).
    ///
    /// # Errors
    /// In words, when it cannot be changed.
    fn set_verbosity(&self, level: i64) -> Result<(), String>;
}

/// What probes have done, for `/metrics/probes` (A5.13).
pub trait ProbeMetrics: Send + Sync + 'static {
    /// In the text form of Prometheus.
    fn probe_metrics(&self) -> String;
}
