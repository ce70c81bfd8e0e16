//! Reads what the node has left, and what each pod takes of it.

use std::collections::BTreeMap;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stoker_model::handle::{DiskMeter, DiskUsage, PodUsage, UsageReader};
use stoker_model::pod::{LocalPod, PodRef, PodUid};

use super::rank::{ContainerShare, Share};
use super::threshold::{Layout, Observation, Observations, Signal};
use crate::node::machine::{Filesystem, processes};
use crate::runtime::{Runtime, cri};

/// Where things lie on this node.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// Pods' directories.
    pub(super) root_dir: PathBuf,
    /// Pods' logs.
    pub(super) log_dir: PathBuf,
}

/// Where the runtime keeps images and what containers write.
#[derive(Clone, Debug, PartialEq)]
struct Stores {
    images: PathBuf,
    containers: PathBuf,
}

pub(super) struct Meter {
    pub(super) runtime: Runtime,
    pub(super) usage: Arc<dyn UsageReader>,
    pub(super) disks: Arc<dyn DiskMeter>,
    pub(super) places: Places,
    stores: Option<Stores>,
}

/// A pod's share, and its own files that belong to no container and no volume.
pub(super) type Measured = (Share, DiskUsage);

impl Meter {
    pub(super) fn new(
        runtime: Runtime,
        usage: Arc<dyn UsageReader>,
        disks: Arc<dyn DiskMeter>,
        places: Places,
    ) -> Self {
        Self { runtime, usage, disks, places, stores: None }
    }

    /// What shares a file system with what. The runtime is asked until it has answered once.
    pub(super) async fn layout(&mut self) -> Layout {
        if self.stores.is_none()
            && let Ok(answer) = self.runtime.image_fs_info().await
        {
            self.stores = stores(&answer);
        }
        let Some(stores) = &self.stores else { return Layout::One };
        let device = |path: &Path| std::fs::metadata(path).map(|found| found.st_dev()).ok();
        let (node, images) = (device(&self.places.root_dir), device(&stores.images));
        match (images == node, device(&stores.containers) == images) {
            (true, _) => Layout::One,
            (false, true) => Layout::ImagesApart,
            (false, false) => Layout::Split,
        }
    }

    /// Everything that signals are of; what cannot be measured is not there, and is never short.
    pub(super) fn observe(&self) -> Observations {
        let mut seen = Observations::new();
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let mut note = |signal, available: i64, capacity: i64| {
            if capacity > 0 {
                seen.insert(signal, Observation { available, capacity });
            }
        };
        for (signal, usage) in
            [(Signal::Memory, self.usage.machine()), (Signal::AllocatableMemory, self.usage.all_pods())]
        {
            // The pods' common group may have no limit.
            if let Some(most) = usage.memory_limit_bytes {
                note(signal, number(most.saturating_sub(usage.working_set_bytes)), number(most));
            }
        }
        let mut note_disk = |bytes, inodes, path: &Path| {
            let fs = Filesystem::read(path);
            note(bytes, fs.available_bytes, fs.bytes);
            note(inodes, fs.free_inodes, fs.inodes);
        };
        note_disk(Signal::NodeFs, Signal::NodeFsInodes, &self.places.root_dir);
        if let Some(stores) = &self.stores {
            note_disk(Signal::ImageFs, Signal::ImageFsInodes, &stores.images);
            note_disk(Signal::ContainerFs, Signal::ContainerFsInodes, &stores.containers);
        }
        let (pids, free) = processes();
        note(Signal::Pids, free, pids);
        seen
    }

    /// What these pods take. `with_disk`: also of the disk, which is walked for it.
    pub(super) async fn shares(&self, pods: &[LocalPod], with_disk: bool) -> BTreeMap<PodUid, Measured> {
        let layers = if with_disk { self.layers().await } else { BTreeMap::new() };
        let (usage, disks, places, pods) = (self.usage.clone(), self.disks.clone(), self.places.clone(), pods.to_vec());
        let measure = move || {
            let groups: BTreeMap<String, PodUsage> =
                usage.pods().into_iter().map(|group| (group.uid.clone(), group)).collect();
            let shares = pods.iter().filter_map(|pod| {
                let uid = PodRef::of(pod.pod()).uid;
                let group = groups.get(uid.as_str())?;
                Some((uid, share(pod, group, &layers, with_disk.then_some((&*disks, &places)))))
            });
            shares.collect()
        };
        tokio::task::spawn_blocking(measure).await.unwrap_or_default()
    }

    /// Containers' own layers, by the runtime's IDs.
    async fn layers(&self) -> BTreeMap<String, DiskUsage> {
        let number = |value: Option<cri::UInt64Value>| value.map_or(0, |value| value.value);
        let layer = |stats: cri::ContainerStats| {
            let layer = stats.writable_layer?;
            let used = DiskUsage { bytes: number(layer.used_bytes), inodes: number(layer.inodes_used) };
            Some((stats.attributes?.id, used))
        };
        self.runtime.list_container_stats().await.unwrap_or_default().into_iter().filter_map(layer).collect()
    }
}

fn stores(answer: &cri::ImageFsInfoResponse) -> Option<Stores> {
    let place = |list: &[cri::FilesystemUsage]| {
        let path = &list.first()?.fs_id.as_ref()?.mountpoint;
        (!path.is_empty()).then(|| PathBuf::from(path))
    };
    let images = place(&answer.image_filesystems)?;
    let containers = place(&answer.container_filesystems).unwrap_or_else(|| images.clone());
    Some(Stores { images, containers })
}

fn share(
    pod: &LocalPod,
    group: &PodUsage,
    layers: &BTreeMap<String, DiskUsage>,
    disk: Option<(&dyn DiskMeter, &Places)>,
) -> Measured {
    let reference = PodRef::of(pod.pod());
    let statuses = pod.status().into_iter().flat_map(|status| {
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
            .into_iter()
            .flatten()
            .flatten()
    });
    let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut containers = BTreeMap::new();
    for status in statuses {
        let id = status.container_id.as_deref().and_then(|id| id.rsplit('/').next()).unwrap_or_default();
        let logs = disk.map(|(disks, places)| {
            let PodRef { namespace, name, uid } = &reference;
            disks.tree(&places.log_dir.join(format!("{namespace}_{name}_{uid}")).join(&status.name))
        });
        let used = group.containers.get(id);
        let share = ContainerShare {
            memory: used.map_or(0, |used| bytes(used.working_set_bytes)),
            layer: layers.get(id).copied().unwrap_or_default(),
            logs: logs.unwrap_or_default(),
        };
        containers.insert(status.name.clone(), share);
    }
    let share = Share {
        memory: bytes(group.usage.working_set_bytes),
        processes: group.usage.processes,
        containers,
        volumes: disk.map(|(disks, _)| disks.volumes(pod.pod())).unwrap_or_default(),
    };
    let beside = disk.map(|(disks, places)| {
        disks.tree(&places.root_dir.join("pods").join(reference.uid.as_str()).join("etc-hosts"))
    });
    (share, beside.unwrap_or_default())
}
