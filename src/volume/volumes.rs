//! [`Volumes`]: what a pod's volumes are on this node, made and brought up to date. `teardown` takes them away.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Volume};
use stoker_model::handle::{EventSink, EventSubject, EventType, NodeSnapshot, ObjectApi, StorageApi};
use stoker_model::pod::{PodRef, PodUid};
use tokio::sync::{Notify, Semaphore, watch};

use super::aside::{aside, told};
use super::atomic::{self, Payload};
use super::attach;
use super::claim::{self, Bound};
use super::csi::Drivers;
use super::error::VolumeError;
use super::payload::{Sources, objects_of};
use super::places::{Place, Places};
use super::token::Tokens;
use super::{empty_dir, host_path, kernel, persistent, plugin, sub_path};
use crate::clock::Now;

/// The directories of one pod (A1.9).
#[derive(Clone, Debug)]
pub struct PodDirs {
    root: PathBuf,
}

impl PodDirs {
    /// The pod's own directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its `/etc/hosts` (A11.4).
    pub fn hosts_file(&self) -> PathBuf {
        self.root.join("etc-hosts")
    }

    /// What belongs to one container, such as its termination log (A4.7).
    pub fn container(&self, name: &str) -> PathBuf {
        self.root.join("containers").join(name)
    }

    pub(super) fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        self.root.join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
    }
}

/// A volume that could not be mounted; its text is that of the event `FailedMount` (A9.2).
#[derive(Debug)]
pub struct MountFailure {
    /// The volume's name in the pod.
    pub volume: String,
    /// As the event names it: the persistent volume's name, where there is one.
    named: String,
    error: VolumeError,
}

impl MountFailure {
    /// Reason of its event; `None`: there is none, for the volume is only waited for.
    pub fn reason(&self) -> Option<&'static str> {
        match self.error {
            VolumeError::NotAttached(_) | VolumeError::AttachLimit => None,
            VolumeError::Step { step, .. } if step.starts_with("MapVolume.") && step != MAP_AFFINITY => {
                Some("FailedMapVolume")
            }
            _ => Some("FailedMount"),
        }
    }

    /// The pod has to go: the reason for that (A6.3).
    pub const fn rejects(&self) -> Option<&'static str> {
        match self.error {
            VolumeError::AttachLimit => Some("VolumeAttachmentLimitExceeded"),
            _ => None,
        }
    }
}

impl fmt::Display for MountFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volume, named, error } = self;
        match error {
            VolumeError::Claim(text) => write!(
                f,
                "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process volumes=[{volume}]: {text}"
            ),
            VolumeError::Step { step, text } => write!(f, "{step} for volume \"{named}\" : {text}"),
            VolumeError::NotAttached(_) => {
                write!(
                    f,
                    "unmounted volumes=[{volume}], unattached volumes=[{volume}], failed to process volumes=[]: {error}"
                )
            }
            VolumeError::AttachLimit => write!(
                f,
                "Node has reached its volume attachment limit, rejecting pod. unmounted volumes=[{volume}], unattached volumes=[{volume}], failed to process volumes=[]: {error}"
            ),
            other => write!(f, "MountVolume.SetUp failed for volume \"{named}\" : {other}"),
        }
    }
}

/// After so long without an end the pod is told of a volume, and then each time again. Volumes that wait to be attached, or for a program,
/// tell of it themselves before.
const LATE: Duration = Duration::from_secs(150);
/// Steps at which an event names the node's labels.
const MOUNT_AFFINITY: &str = "MountVolume.NodeAffinity check failed";
const MAP_AFFINITY: &str = "MapVolume.NodeAffinity check failed";
pub(super) const SET_UP_DEVICE: &str = "MapVolume.SetUpDevice failed";

/// The pod's group for volumes.
pub(super) fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    context.and_then(|s| s.fs_group).and_then(|group| u32::try_from(group).ok())
}

/// What serialises the operations on one persistent volume, by driver and handle.
type Gates = Arc<Mutex<HashMap<(String, String), Arc<Semaphore>>>>;

/// Mounts the volumes of this node's pods. Cloning is cheap.
#[derive(Clone)]
pub struct Volumes {
    pub(super) pods_dir: PathBuf,
    pub(super) objects: Arc<dyn ObjectApi>,
    storage: Option<Arc<dyn StorageApi>>,
    pub(super) sink: Option<Arc<dyn EventSink>>,
    pub(super) drivers: Drivers,
    pub(super) tokens: Arc<Tokens>,
    pub(super) places: Places,
    gates: Gates,
    /// So long a volume may take to be attached before the pod is looked at again.
    pub(super) patience: Duration,
}

impl fmt::Debug for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volumes").field("pods_dir", &self.pods_dir).finish_non_exhaustive()
    }
}

impl Volumes {
    /// Volumes below `root_dir`, kubelet's `--root-dir`.
    pub fn new(root_dir: &Path, objects: Arc<dyn ObjectApi>) -> Self {
        let pods_dir = root_dir.join("pods");
        Self {
            places: Places::read(&pods_dir),
            pods_dir,
            objects,
            storage: None,
            sink: None,
            drivers: Drivers::default(),
            tokens: Arc::default(),
            gates: Gates::default(),
            patience: attach::LIMIT,
        }
    }

    /// Waits so long for volumes to be attached, and not as long as upstream.
    #[must_use]
    pub const fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Mounts claims, too.
    #[must_use]
    pub fn with_storage(mut self, storage: Arc<dyn StorageApi>, drivers: Drivers) -> Self {
        self.storage = Some(storage);
        self.drivers = drivers;
        self
    }

    /// Tells of what it does with volumes.
    #[must_use]
    pub fn with_events(mut self, sink: Arc<dyn EventSink>) -> Self {
        self.sink = Some(sink);
        self
    }

    /// Publishes an event about a pod.
    pub(super) fn tell(&self, pod: &PodRef, kind: EventType, reason: &str, message: String) {
        if let Some(sink) = &self.sink {
            sink.publish(EventSubject::Pod { pod: pod.clone(), field_path: None }, kind, reason, message);
        }
    }

    pub(super) fn storage(&self) -> Result<&dyn StorageApi, VolumeError> {
        self.storage.as_deref().ok_or_else(|| {
            VolumeError::Other("this node has no API server that could tell of persistent volumes".to_owned())
        })
    }

    /// The attachable volumes in use, as in the Node's `volumesInUse`.
    pub fn in_use(&self) -> watch::Receiver<Vec<String>> {
        self.places.in_use()
    }

    /// When a pod's volumes have to be brought up to date though nothing changes: before its tokens are too old (A9.11).
    pub fn due(&self, uid: &PodUid) -> Option<jiff::Timestamp> {
        self.tokens.due(uid)
    }

    /// One operation at a time on each persistent volume.
    pub(super) fn gate(&self, driver: &str, handle: &str) -> Arc<Semaphore> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        let key = (driver.to_owned(), handle.to_owned());
        gates.entry(key).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
    }

    /// Makes the root directory a shared mount, so that containers see what is mounted there later (A9.15).
    ///
    /// # Errors
    ///
    /// [`VolumeError::File`]: without CAP_SYS_ADMIN, or where the directory cannot be made.
    pub fn share_root(root_dir: &Path) -> Result<(), VolumeError> {
        fs::create_dir_all(root_dir).map_err(VolumeError::file("make", root_dir))?;
        kernel::make_shared(root_dir).map_err(VolumeError::file("make a shared mount of", root_dir))
    }

    /// The directories of a pod.
    pub fn dirs(&self, uid: &PodUid) -> PodDirs {
        PodDirs { root: self.pods_dir.join(uid.as_str()) }
    }

    /// Makes the pod's directories (A1.9).
    pub fn make_dirs(&self, uid: &PodUid) -> Result<PodDirs, VolumeError> {
        let dirs = self.dirs(uid);
        for name in ["", "volumes", "plugins", "containers"] {
            let dir = dirs.root.join(name);
            let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(&dir);
            made.map_err(VolumeError::file("make", dir))?;
        }
        Ok(dirs)
    }

    /// Mounts all volumes of a pod, and brings the content of those that are there up to date. `changed` is notified when they
    /// are to be refreshed (A9.8).
    ///
    /// # Errors
    ///
    /// Every volume that failed; the others are there.
    pub async fn mount(
        &self,
        pod: &Pod,
        node: &NodeSnapshot,
        now: Now,
        changed: &Arc<Notify>,
    ) -> Result<(), Vec<MountFailure>> {
        self.mount_such(pod, node, now, changed, &|_| true).await
    }

    /// Brings up to date what shows objects, and asks drivers again (A9.8, A9.11, A9.18). What was mounted and no more is not touched, as
    /// upstream does it: its server may be gone, and the tokens beside it have to be renewed.
    ///
    /// # Errors
    ///
    /// As [`Self::mount`].
    pub async fn refresh(
        &self,
        pod: &Pod,
        node: &NodeSnapshot,
        now: Now,
        changed: &Arc<Notify>,
    ) -> Result<(), Vec<MountFailure>> {
        let uid = PodRef::of(pod).uid;
        self.mount_such(pod, node, now, changed, &|volume| self.changes(&uid, volume)).await
    }

    /// Whether a volume that is there may have to become another one.
    fn changes(&self, uid: &PodUid, volume: &Volume) -> bool {
        let is_driver = |place: Place| place.path.iter().any(|part| part == "kubernetes.io~csi" || part == "csi");
        volume.host_path.is_none()
            && volume.nfs.is_none()
            && volume.empty_dir.is_none()
            && self.places.get(uid, &volume.name).is_none_or(is_driver)
    }

    async fn mount_such(
        &self,
        pod: &Pod,
        node: &NodeSnapshot,
        now: Now,
        changed: &Arc<Notify>,
        is_such: &(dyn Fn(&Volume) -> bool + Sync),
    ) -> Result<(), Vec<MountFailure>> {
        self.objects.follow(&PodRef::of(pod).uid, objects_of(pod), changed);
        let mut failures = Vec::new();
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        for volume in volumes.filter(|volume| is_such(volume)) {
            let late = || {
                let name = &volume.name;
                let text = format!(
                    "Unable to attach or mount volumes: unmounted volumes=[{name}], unattached volumes=[], failed to process volumes=[]: context deadline exceeded"
                );
                self.tell(&PodRef::of(pod), EventType::Warning, "FailedMount", text);
            };
            let mounted = told(self.mount_one(pod, volume, node, now), LATE, late).await;
            if let Err((named, error)) = mounted {
                let named = named.unwrap_or_else(|| volume.name.clone());
                failures.push(MountFailure { volume: volume.name.clone(), named, error });
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }

    /// A failure comes with the name of the persistent volume, once it is known.
    async fn mount_one(
        &self,
        pod: &Pod,
        volume: &Volume,
        node: &NodeSnapshot,
        now: Now,
    ) -> Result<(), (Option<String>, VolumeError)> {
        let begun = plugin::begun();
        let Some((name, read_only)) = claim::claim_name(&PodRef::of(pod), volume) else {
            let mounted = self.mount_own(pod, volume, node, now).await;
            plugin::ended(&plugin::of_volume(volume).unwrap_or_default(), "volume_mount", mounted.is_ok(), begun);
            return mounted.map_err(|error| (None, error));
        };
        let storage = self.storage().map_err(|error| (None, error))?;
        let bound = claim::resolve(storage, pod, volume, &name, read_only).await.map_err(|error| (None, error))?;
        // Drivers take much room in a future, and few volumes are theirs.
        let mounted = Box::pin(self.mount_bound(pod, volume, &bound, node, now)).await;
        let operation = if bound.is_block() { "map_volume" } else { "volume_mount" };
        let plugin = bound.spec().map(plugin::of_persistent).unwrap_or_default();
        plugin::ended(&plugin, operation, mounted.is_ok(), begun);
        mounted.map_err(|error| (Some(bound.name().to_owned()), error))
    }

    /// A volume that the pod's spec describes.
    async fn mount_own(&self, pod: &Pod, volume: &Volume, node: &NodeSnapshot, now: Now) -> Result<(), VolumeError> {
        let reference = PodRef::of(pod);
        if let Some(source) = &volume.csi {
            return Box::pin(self.mount_csi_inline(pod, source, &volume.name, node, now)).await.map(drop);
        }
        if volume.image.is_some() {
            // The runtime mounts it with the container.
            return Ok(());
        }
        if volume.git_repo.is_some() {
            let text = "git-repo volume plugin has been disabled; if necessary, it may be re-enabled by enabling the feature-gate `GitRepoVolumeDriver`";
            return Err(VolumeError::Other(text.to_owned()));
        }
        let Some(place) = self.place(&reference.uid, volume) else { return Err(VolumeError::Unsupported) };
        if let Some(source) = &volume.host_path {
            return host_path::set_up(source.path.clone(), source.type_.clone().unwrap_or_default()).await;
        }
        if let Some(source) = &volume.nfs {
            return persistent::mount_nfs(source, &[], &place, false).await;
        }
        let group = fs_group(pod);
        if let Some(source) = &volume.empty_dir {
            let fresh = empty_dir::set_up(&place, source, pod, node)?;
            return match group.filter(|_| fresh) {
                Some(group) => self.give(&reference, &place, group, false).await,
                None => Ok(()),
            };
        }
        let (objects, tokens) = (&*self.objects, &*self.tokens);
        let sources = Sources { pod, reference: &reference, node, objects, tokens, now: now.wall };
        let payload = sources.payload(volume).await?.ok_or(VolumeError::Unsupported)?;
        let memory = volume.config_map.is_none().then(|| empty_dir::memory_size(None, pod, node));
        write_payload(&place, &payload, memory, group, now)
    }

    /// The volume behind a claim.
    async fn mount_bound(
        &self,
        pod: &Pod,
        volume: &Volume,
        bound: &Bound,
        node: &NodeSnapshot,
        now: Now,
    ) -> Result<(), VolumeError> {
        let uid = PodRef::of(pod).uid;
        let Some(spec) = bound.spec() else { return Err(VolumeError::Unsupported) };
        let affinity = if bound.is_block() { MAP_AFFINITY } else { MOUNT_AFFINITY };
        persistent::check_node(spec, node).map_err(VolumeError::step(affinity))?;
        if let Some(source) = spec.csi.as_ref().filter(|_| bound.is_block()) {
            return self.map_csi(pod, bound, source, &volume.name, node, now).await;
        }
        let dirs = self.dirs(&uid);
        let of_plugin = |plugin: &str| dirs.volume(plugin, &bound.name().replace('/', "~"));
        let at = |path: PathBuf| Place { path, read_only: bound.read_only, attachable: None, group: bound.group() };
        let place = if bound.is_block() {
            let Some(source) = &spec.local else {
                return Err(VolumeError::Step {
                    step: SET_UP_DEVICE,
                    text: "only local volumes and those of CSI drivers can be used as devices on this node".to_owned(),
                });
            };
            persistent::check_device(source.path.clone()).await.map_err(VolumeError::step(SET_UP_DEVICE))?;
            at(PathBuf::from(&source.path))
        } else if let Some(source) = &spec.host_path {
            host_path::set_up(source.path.clone(), source.type_.clone().unwrap_or_default()).await?;
            at(PathBuf::from(&source.path))
        } else if let Some(source) = &spec.local {
            let place = at(of_plugin("local-volume"));
            self.mount_local(pod, bound, &source.path, &place.path).await?;
            place
        } else if let Some(source) = &spec.nfs {
            let place = at(of_plugin("nfs"));
            let options = spec.mount_options.as_deref().unwrap_or_default();
            persistent::mount_nfs(source, options, &place.path, bound.read_only).await?;
            place
        } else if let Some(source) = &spec.csi {
            return self.mount_csi(pod, bound, source, &volume.name, node, now).await.map(drop);
        } else {
            return Err(VolumeError::Unsupported);
        };
        self.places.put(&uid, dirs.root(), &volume.name, place)
    }

    /// Whoever mounts it first gives it to his group; others are told when it is not theirs.
    async fn mount_local(&self, pod: &Pod, bound: &Bound, source: &str, place: &Path) -> Result<(), VolumeError> {
        let (pods_dir, directory) = (self.pods_dir.clone(), PathBuf::from(source));
        let shared =
            move || kernel::shows_below(&pods_dir, &directory).map_err(VolumeError::file("look at", directory));
        let shared = aside(shared).await?;
        if !persistent::mount_local(source.to_owned(), place.to_owned(), bound.read_only).await? {
            return Ok(());
        }
        let Some(group) = fs_group(pod) else { return Ok(()) };
        let reference = PodRef::of(pod);
        if shared {
            let directory = PathBuf::from(source);
            let owner = move || fs::metadata(&directory).map_err(VolumeError::file("look at", directory));
            let owner = aside(owner).await?.gid();
            if owner != group {
                let text = format!(
                    "The requested fsGroup is {group}, but the volume {} has GID {owner}. The volume may not be shareable.",
                    bound.name()
                );
                self.tell(&reference, EventType::Warning, "AlreadyMountedVolume", text);
            }
            return Ok(());
        }
        if bound.read_only {
            return Ok(());
        }
        let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        let policy = context.and_then(|s| s.fs_group_change_policy.as_deref());
        self.give(&reference, place, group, policy == Some("OnRootMismatch")).await
    }

    /// Where a volume lies, or would; `None`: its kind is not known here, or it is not mounted yet.
    pub fn place(&self, uid: &PodUid, volume: &Volume) -> Option<PathBuf> {
        let plugin = if let Some(source) = &volume.host_path {
            return Some(PathBuf::from(&source.path));
        } else if volume.empty_dir.is_some() {
            "empty-dir"
        } else if volume.config_map.is_some() {
            "configmap"
        } else if volume.secret.is_some() {
            "secret"
        } else if volume.downward_api.is_some() {
            "downward-api"
        } else if volume.projected.is_some() {
            "projected"
        } else if volume.nfs.is_some() {
            "nfs"
        } else {
            return self.places.get(uid, &volume.name).map(|place| place.path);
        };
        Some(self.dirs(uid).volume(plugin, &volume.name))
    }

    /// Whether the volume may only be read, whatever the container says.
    pub fn is_read_only(&self, uid: &PodUid, volume: &Volume) -> bool {
        let of_content = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some();
        let of_nfs = volume.nfs.as_ref().and_then(|nfs| nfs.read_only).unwrap_or_default();
        of_content || of_nfs || self.places.get(uid, &volume.name).is_some_and(|place| place.read_only)
    }

    /// The groups that the pod's processes need for its volumes (A10.2).
    pub fn groups(&self, uid: &PodUid) -> Vec<i64> {
        self.places.groups(uid)
    }

    /// Whether the volume's files may get the label of the pod's processes: they are the pod's, and can have one (A10.7).
    pub fn relabels(&self, uid: &PodUid, volume: &Volume) -> bool {
        let of_pod = volume.empty_dir.is_some()
            || volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some();
        let place = self.places.get(uid, &volume.name).filter(|place| !place.read_only);
        of_pod || place.is_some_and(|place| kernel::has_labels(&place.path).unwrap_or_default())
    }

    /// A part of a volume, safe from links that lead out of it (A9.13). `index`: the place of the mount in its container.
    pub async fn sub_path(
        &self,
        uid: &PodUid,
        volume: &Volume,
        container: &str,
        index: usize,
        path: &str,
    ) -> Result<PathBuf, VolumeError> {
        let root = self.place(uid, volume).ok_or(VolumeError::Unsupported)?;
        let target =
            self.dirs(uid).root.join("volume-subpaths").join(&volume.name).join(container).join(index.to_string());
        sub_path::bind(root, path.to_owned(), target.clone()).await?;
        Ok(target)
    }
}

/// `memory`: it lies there, and may grow to so many bytes.
fn write_payload(
    place: &Path,
    payload: &Payload,
    memory: Option<Option<i64>>,
    group: Option<u32>,
    now: Now,
) -> Result<(), VolumeError> {
    if !place.is_dir() {
        fs::create_dir_all(place).map_err(VolumeError::file("make", place))?;
        fs::set_permissions(place, fs::Permissions::from_mode(0o777)).map_err(VolumeError::file("chmod", place))?;
    }
    if let Some(size) = memory
        && !kernel::is_mount_point(place).map_err(VolumeError::file("look at", place))?
    {
        kernel::mount_tmpfs(place, size).map_err(VolumeError::file("mount a tmpfs at", place))?;
    }
    atomic::write(place, payload, group, now.wall).map(drop)
}
