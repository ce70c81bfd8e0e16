//! What pods' volumes take of this node's disk, counted as `du` does.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, Volume};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, statat};
use stoker_model::handle::{DiskMeter, DiskUsage, MountedVolume, VolumeFill};
use stoker_model::pod::PodRef;

use super::csi::{Csi, PodData};
use super::volumes::Volumes;

/// What `st_blocks` counts in, whatever the file system's own blocks are.
const BLOCK: u64 = 512;

#[async_trait]
impl DiskMeter for Volumes {
    fn volumes(&self, pod: &Pod) -> BTreeMap<String, DiskUsage> {
        let uid = PodRef::of(pod).uid;
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let ours = volumes.filter(|v| v.empty_dir.is_some() || v.config_map.is_some());
        ours.filter_map(|v| Some((v.name.clone(), self.tree(&self.place(&uid, v)?)))).collect()
    }

    fn tree(&self, path: &Path) -> DiskUsage {
        measure(path)
    }

    fn plugins(&self, pod: &Pod) -> Vec<(String, bool)> {
        self.plugins_of(pod)
    }

    fn mounted(&self, pod: &Pod) -> Vec<MountedVolume> {
        let reference = PodRef::of(pod);
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let dirs = self.dirs(&reference.uid);
        let mounted = |volume: &Volume| {
            let of_claim = volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
            let generic = volume.ephemeral.as_ref().map(|_| format!("{}-{}", reference.name, volume.name));
            let in_memory =
                volume.empty_dir.as_ref().is_some_and(|dir| dir.medium.as_deref().is_some_and(|m| !m.is_empty()));
            let path =
                self.place(&reference.uid, volume).filter(|path| path.starts_with(dirs.root()) && path.is_dir())?;
            Some(MountedVolume { name: volume.name.clone(), claim: of_claim.or(generic), in_memory, path })
        };
        volumes.filter_map(mounted).collect()
    }

    async fn told_by_drivers(&self, pod: &Pod) -> BTreeMap<String, VolumeFill> {
        let uid = PodRef::of(pod).uid;
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let told = volumes.map(|volume| {
            let place = self.place(&uid, volume);
            async move {
                let place = place?;
                // Beside what a driver has mounted lies what is remembered of it.
                let data = PodData::load(place.parent()?).ok().flatten()?;
                let mut csi = Csi::connect(&self.drivers, &data.driver_name).await.ok()?;
                Some((volume.name.clone(), csi.fill(&data.volume_handle, &place).await?))
            }
        });
        futures::future::join_all(told).await.into_iter().flatten().collect()
    }
}

fn measure(path: &Path) -> DiskUsage {
    let mut sum = DiskUsage::default();
    // What cannot be read counts nothing: a pod may delete its files meanwhile.
    let Ok(top) = rustix::fs::lstat(path) else { return sum };
    sum = sum + of(&top);
    if !FileType::from_raw_mode(top.st_mode).is_dir() {
        return sum;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(path, flags, Mode::empty()) else { return sum };
    let mut linked = HashSet::new();
    let mut open = vec![PathBuf::from(".")];
    while let Some(inside) = open.pop() {
        // A pod may put a link in place of a directory at any time: it leads nowhere.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let Ok(dir) = openat2(root.as_fd(), &inside, flags, Mode::empty(), resolve) else { continue };
        for (name, found) in entries(&dir) {
            if found.st_dev != top.st_dev || (found.st_nlink > 1 && !linked.insert(found.st_ino)) {
                continue;
            }
            sum = sum + of(&found);
            if FileType::from_raw_mode(found.st_mode).is_dir() {
                open.push(inside.join(name));
            }
        }
    }
    sum
}

fn entries(dir: &OwnedFd) -> Vec<(PathBuf, Stat)> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let Ok(read) = Dir::read_from(dir) else { return Vec::new() };
    let names = read.flatten().filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."));
    let with_stat = names.filter_map(|entry| {
        let stat = statat(dir.as_fd(), entry.file_name(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((PathBuf::from(OsStr::from_bytes(entry.file_name().to_bytes())), stat))
    });
    with_stat.collect()
}

fn of(stat: &Stat) -> DiskUsage {
    DiskUsage { bytes: u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(BLOCK), inodes: 1 }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_counted_once_and_links_lead_nowhere() {
        // A13.10
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volume");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("a/b/file"), root.join("again")).unwrap();
        fs::write(dir.path().join("outside"), vec![1; 1_000_000]).unwrap();
        symlink(dir.path(), root.join("out")).unwrap();
        symlink(dir.path().join("outside"), root.join("a/out")).unwrap();
        // A file may be large and take nothing.
        fs::File::create(root.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let found = measure(&root);
        assert!((100_000..200_000).contains(&found.bytes), "{found:?}");
        assert_eq!(found.inodes, 7, "the root, two directories, the file once, two links, the sparse one");
        assert_eq!(measure(&dir.path().join("gone")), DiskUsage::default());
    }
}
