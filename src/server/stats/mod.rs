//! What pods and the node use, in kubelet's and cAdvisor's words: asked for on demand, kept for a second (A18.4, A18.5).

mod cadvisor;
mod own;
mod resource;
mod summary;
mod text;
mod volumes;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use stoker_model::handle::{DiskMeter, PodDirectory, PodUsage, Usage, UsageReader};
use stoker_model::pod::LocalPod;

use crate::clock::{Clock, Now};
use crate::runtime::Runtime;

/// What was read is good for so long.
const FRESH: Duration = Duration::from_secs(1);
/// The runtime measures containers' layers so often; to ask it wakes the shim of each container.
const LAYERS_FRESH: Duration = Duration::from_secs(10);
/// Processor use is told over at least so long a time.
const RATE_OVER: Duration = Duration::from_secs(5);

/// Where numbers come from.
pub(super) struct Stats {
    node: String,
    pods: Arc<dyn PodDirectory>,
    usage: Arc<dyn UsageReader>,
    runtime: Runtime,
    places: Places,
    seen: Mutex<Seen>,
    /// Layers as the runtime told them last, and when.
    layers: Mutex<Option<(Now, Arc<Layers>)>>,
    volumes: volumes::VolumeMeter,
    /// What groups may use.
    limits: Arc<Mutex<cadvisor::KnownLimits>>,
    devices: Arc<Devices>,
    /// When the agent started.
    started: Now,
}

/// Directories whose file systems are told of.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// Pods' directories.
    pub(super) root: PathBuf,
    /// Pods' logs.
    pub(super) logs: PathBuf,
}

#[derive(Default)]
struct Seen {
    last: Option<Arc<Snapshot>>,
    /// At least [`RATE_OVER`] older than the last one, where there is one.
    before: Option<Arc<Snapshot>>,
}

/// What containers wrote into their own layer, by ID: bytes and inodes.
type Layers = BTreeMap<String, (u64, u64)>;

/// Everything at one moment.
struct Snapshot {
    now: Now,
    node: PodUsage,
    pods: Vec<PodUsage>,
    layers: Arc<Layers>,
    /// What the images take, bytes and inodes, and where they are.
    images: Option<(u64, u64, PathBuf)>,
    nodefs: Option<Filesystem>,
    /// Groups that are no pods: what they are, the group, and what it used.
    system: Vec<(&'static str, String, Usage)>,
}

/// A file system as a whole.
#[derive(Debug, Clone, Copy)]
struct Filesystem {
    capacity: u64,
    available: u64,
    /// Without what is kept for root alone.
    used: u64,
    inodes: u64,
    inodes_free: u64,
}

impl Filesystem {
    fn read(path: &std::path::Path) -> Option<Self> {
        let found = rustix::fs::statvfs(path).ok()?;
        Some(Self {
            capacity: found.f_blocks.saturating_mul(found.f_frsize),
            available: found.f_bavail.saturating_mul(found.f_frsize),
            used: found.f_blocks.saturating_sub(found.f_bfree).saturating_mul(found.f_frsize),
            inodes: found.f_files,
            inodes_free: found.f_ffree,
        })
    }
}

/// A container as pods name it, with its numbers.
struct Named<'a> {
    pod: &'a Pod,
    status: &'a ContainerStatus,
    id: &'a str,
    group: &'a str,
    usage: &'a Usage,
}

impl Stats {
    pub(super) fn new(
        node: String,
        pods: Arc<dyn PodDirectory>,
        usage: Arc<dyn UsageReader>,
        runtime: Runtime,
        (places, disks, volumes_every): (Places, Arc<dyn DiskMeter>, Duration),
    ) -> Self {
        Self {
            node,
            pods,
            usage,
            runtime,
            places,
            seen: Mutex::default(),
            layers: Mutex::default(),
            volumes: volumes::VolumeMeter::new(disks, volumes_every),
            limits: Arc::default(),
            devices: Arc::default(),
            started: Clock.now(),
        }
    }

    /// Everything as it is now, or was a second ago, and as it was some time before.
    async fn look(&self) -> (Arc<Snapshot>, Option<Arc<Snapshot>>) {
        let now = Clock.now();
        {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(last) = seen.last.as_ref().filter(|last| now.monotonic - last.now.monotonic < FRESH) {
                return (last.clone(), seen.before.clone());
            }
        }
        let snapshot = Arc::new(self.read(now).await);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = seen.last.take() {
            let is_old_enough = now.monotonic.saturating_sub(last.now.monotonic) >= RATE_OVER;
            if is_old_enough || seen.before.is_none() {
                seen.before = Some(last);
            }
        }
        seen.last = Some(snapshot.clone());
        (snapshot, seen.before.clone())
    }

    async fn read(&self, now: Now) -> Snapshot {
        let (usage, places) = (self.usage.clone(), self.places.clone());
        let wanted = self.pods.pods().iter().flat_map(statuses).filter_map(id_of).map(str::to_owned).collect();
        let groups = tokio::task::spawn_blocking(move || {
            (usage.node(), usage.pods_with(&wanted), Filesystem::read(&places.root), usage.system_groups())
        });
        let (layers, images, groups) = tokio::join!(self.layers(now), self.runtime.image_fs_info(), groups);
        let (node, pods, nodefs, system) = groups.unwrap_or_default();
        let images = images.ok().and_then(|all| all.image_filesystems.into_iter().next()).map(|images| {
            let place = images.fs_id.as_ref().map(|id| PathBuf::from(&id.mountpoint)).unwrap_or_default();
            (number(&images.used_bytes), number(&images.inodes_used), place)
        });
        Snapshot { now, node, pods, layers, images, nodefs, system }
    }

    async fn layers(&self, now: Now) -> Arc<Layers> {
        {
            let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, layers)) = layers.as_ref().filter(|(at, _)| now.monotonic - at.monotonic < LAYERS_FRESH) {
                return layers.clone();
            }
        }
        let of = |stats: crate::runtime::cri::ContainerStats| {
            let layer = stats.writable_layer?;
            Some((stats.attributes?.id, (number(&layer.used_bytes), number(&layer.inodes_used))))
        };
        let Ok(stats) = self.runtime.list_container_stats().await else { return Arc::default() };
        let layers = Arc::new(stats.into_iter().filter_map(of).collect());
        *self.layers.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Arc::clone(&layers)));
        layers
    }

    /// Pods that have a group, with it.
    fn known<'a>(pods: &'a [LocalPod], snapshot: &'a Snapshot) -> Vec<(&'a LocalPod, &'a PodUsage)> {
        let of = |usage: &'a PodUsage| {
            let pod = pods.iter().find(|pod| pod.pod().metadata.uid.as_deref() == Some(usage.uid.as_str()))?;
            Some((pod, usage))
        };
        snapshot.pods.iter().filter_map(of).collect()
    }
}

fn number(value: &Option<crate::runtime::cri::UInt64Value>) -> u64 {
    value.as_ref().map_or(0, |value| value.value)
}

/// The running containers of a pod, by the names that its spec gives them.
fn containers<'a>(pod: &'a LocalPod, usage: &'a PodUsage) -> Vec<Named<'a>> {
    statuses(pod)
        .filter_map(|status| {
            let id = id_of(status)?;
            let group = usage.container_groups.get(id)?;
            Some(Named { pod: pod.pod(), status, id, group, usage: usage.containers.get(id)? })
        })
        .collect()
}

fn statuses(pod: &LocalPod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status()
        .into_iter()
        .flat_map(|status| {
            [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses]
        })
        .flatten()
        .flatten()
}

/// `containerd://<id>` without its beginning.
fn id_of(status: &ContainerStatus) -> Option<&str> {
    status.container_id.as_deref()?.rsplit('/').next()
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

fn started_at(named: &Named<'_>) -> Option<f64> {
    let running = named.status.state.as_ref()?.running.as_ref()?;
    Some(running.started_at.as_ref()?.0.as_duration().as_secs_f64())
}

/// What file systems are mounted from, such as `/dev/sda1`, by the numbers of their devices. The table of mounts of a full node is long.
#[derive(Debug, Default)]
struct Devices(Mutex<BTreeMap<u64, String>>);

impl Devices {
    /// That of the file system which a path lies in.
    fn of(&self, path: &std::path::Path) -> String {
        let Ok(number) = std::fs::metadata(path).map(|found| found.dev()) else { return String::new() };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(number).or_insert_with(|| device_of(path)).clone()
    }
}

fn device_of(path: &std::path::Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let place = left.split(' ').nth(4)?.to_owned();
        path.starts_with(&place).then(|| (place.len(), right.split(' ').nth(1).unwrap_or_default().to_owned()))
    };
    // Of two in one place the later one is on top.
    mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length).map(|(_, device)| device).unwrap_or_default()
}

/// Whether the pod has a network of its own.
fn has_own_network(pod: &Pod) -> bool {
    !pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default()
}

/// Bytes and files below a directory; what cannot be read counts nothing.
fn below(path: &std::path::Path) -> (u64, u64) {
    let mut sum = (0, 0);
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let (bytes, files) = if kind.is_dir() {
            below(&entry.path())
        } else {
            (entry.metadata().map_or(0, |metadata| metadata.len()), 1)
        };
        sum = (sum.0 + bytes, sum.1 + files);
    }
    sum
}
