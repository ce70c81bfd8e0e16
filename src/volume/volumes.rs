//! [`Volumes`]: what a pod's volumes are on this node, made, brought up to date and taken away.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Volume};
use stoker_model::handle::{NodeSnapshot, ObjectApi};
use stoker_model::pod::{PodRef, PodUid};
use stoker_model::resources::pod_limits;

use super::atomic::{self, Payload};
use super::error::VolumeError;
use super::payload::Sources;
use super::token::Tokens;
use super::{empty_dir, host_path, kernel, ownership, sub_path};
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

    fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        self.root.join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
    }
}

/// Mounts the volumes of this node's pods. Cloning is cheap.
#[derive(Clone)]
pub struct Volumes {
    pods_dir: PathBuf,
    objects: Arc<dyn ObjectApi>,
    tokens: Arc<Tokens>,
}

impl std::fmt::Debug for Volumes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volumes").field("pods_dir", &self.pods_dir).finish_non_exhaustive()
    }
}

impl Volumes {
    /// Volumes below `root_dir`, kubelet's `--root-dir`.
    pub fn new(root_dir: &Path, objects: Arc<dyn ObjectApi>) -> Self {
        Self { pods_dir: root_dir.join("pods"), objects, tokens: Arc::default() }
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
        for dir in [dirs.root.clone(), dirs.root.join("volumes"), dirs.root.join("containers")] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(&dir);
            made.map_err(VolumeError::file("make", dir))?;
        }
        Ok(dirs)
    }

    /// Mounts all volumes of a pod, and brings the content of those that are there up to date (A9.8). Where they lie, by name.
    ///
    /// # Errors
    ///
    /// Every volume that failed, by name; the others are there.
    pub async fn mount(
        &self,
        pod: &Pod,
        node: &NodeSnapshot,
        now: Now,
    ) -> Result<BTreeMap<String, PathBuf>, Vec<(String, VolumeError)>> {
        let (mut places, mut errors) = (BTreeMap::new(), Vec::new());
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            match self.mount_one(pod, volume, node, now).await {
                Ok(place) => drop(places.insert(volume.name.clone(), place)),
                Err(error) => errors.push((volume.name.clone(), error)),
            }
        }
        if errors.is_empty() { Ok(places) } else { Err(errors) }
    }

    async fn mount_one(
        &self,
        pod: &Pod,
        volume: &Volume,
        node: &NodeSnapshot,
        now: Now,
    ) -> Result<PathBuf, VolumeError> {
        let reference = PodRef::of(pod);
        let Some(place) = self.place(&reference.uid, volume) else { return Err(VolumeError::Unsupported) };
        let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        let group = context.and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok());
        if let Some(source) = &volume.host_path {
            host_path::set_up(&source.path, source.type_.as_deref().unwrap_or_default())?;
            return Ok(place);
        }
        if let Some(source) = &volume.empty_dir {
            let limit = pod.spec.as_ref().and_then(|s| pod_limits(s).get("memory").map(|m| m.units()));
            empty_dir::set_up(&place, source, limit)?;
            if let Some(group) = group {
                let policy = context.and_then(|s| s.fs_group_change_policy.as_deref());
                ownership::give_to_group(&place, group, policy == Some("OnRootMismatch"))?;
            }
            return Ok(place);
        }
        let (objects, tokens) = (&*self.objects, &*self.tokens);
        let sources = Sources { pod, reference: &reference, node, objects, tokens, now: now.wall };
        let payload = sources.payload(volume).await?.ok_or(VolumeError::Unsupported)?;
        let in_memory = volume.secret.is_some() || volume.projected.is_some();
        write_payload(&place, &payload, in_memory, group, now)?;
        Ok(place)
    }

    /// Where a volume lies, or would; `None`: its kind is not known here.
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
        } else {
            return None;
        };
        Some(self.dirs(uid).volume(plugin, &volume.name))
    }

    /// A part of a volume, safe from links that lead out of it (A9.13). `index`: the place of the mount in its container.
    pub fn sub_path(
        &self,
        uid: &PodUid,
        volume: &Volume,
        container: &str,
        index: usize,
        path: &str,
        read_only: bool,
    ) -> Result<PathBuf, VolumeError> {
        let root = self.place(uid, volume).ok_or(VolumeError::Unsupported)?;
        let target =
            self.dirs(uid).root.join("volume-subpaths").join(&volume.name).join(container).join(index.to_string());
        sub_path::bind(&root, path, &target, read_only)?;
        Ok(target)
    }

    /// Unmounts everything of a pod. What cannot be undone now is reported, and the rest is undone all the same.
    pub fn unmount(&self, uid: &PodUid) -> Vec<VolumeError> {
        self.tokens.forget(uid);
        let root = self.dirs(uid).root;
        let mut errors = Vec::new();
        match kernel::mount_points_below(&root) {
            Err(source) => errors.push(VolumeError::file("look at", &root)(source)),
            Ok(places) => errors.extend(places.into_iter().filter_map(|place| {
                kernel::unmount_now(Path::new(&place)).map_err(VolumeError::file("unmount", place)).err()
            })),
        }
        errors
    }

    /// Removes a pod's directories, after [`Self::unmount`]. Nothing is removed while something is still mounted below (A9.22).
    pub fn remove_dirs(&self, uid: &PodUid) -> Result<(), VolumeError> {
        let root = self.dirs(uid).root;
        let mounted = kernel::mount_points_below(&root).map_err(VolumeError::file("look at", &root))?;
        if let Some(place) = mounted.first() {
            let busy = io::Error::from(io::ErrorKind::ResourceBusy);
            return Err(VolumeError::file("remove a directory with a mount below it:", place)(busy));
        }
        match fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::file("remove", root)(error)),
            _ => Ok(()),
        }
    }

    /// The pods that have a directory.
    pub fn pods_on_disk(&self) -> Vec<PodUid> {
        let entries = fs::read_dir(&self.pods_dir).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str().map(PodUid::new)).collect()
    }
}

fn write_payload(
    place: &Path,
    payload: &Payload,
    in_memory: bool,
    group: Option<u32>,
    now: Now,
) -> Result<(), VolumeError> {
    fs::create_dir_all(place).map_err(VolumeError::file("make", place))?;
    if in_memory && !kernel::is_mount_point(place).map_err(VolumeError::file("look at", place))? {
        kernel::mount_tmpfs(place, None).map_err(VolumeError::file("mount a tmpfs at", place))?;
    }
    fs::set_permissions(place, fs::Permissions::from_mode(0o755)).map_err(VolumeError::file("chmod", place))?;
    atomic::write(place, payload, group, now.wall).map(drop)
}
