//! Takes volumes away: unmounts them, and removes directories, never what is mounted in them (A9.21, A9.22).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use stoker_model::pod::PodUid;
use tokio::sync::Notify;

use super::error::VolumeError;
use super::volumes::Volumes;
use super::{kernel, plugin};

impl Volumes {
    /// Unmounts everything of a pod. What cannot be undone now is reported, and the rest is undone all the same.
    pub async fn unmount(&self, uid: &PodUid) -> Vec<VolumeError> {
        self.tokens.forget(uid);
        self.objects.follow(uid, BTreeSet::new(), &Arc::new(Notify::new()));
        let root = self.dirs(uid).root().to_owned();
        let mut errors = Vec::new();
        let (begun, own) = (plugin::begun(), plugin::in_directory(&root));
        // Sub-paths lie on volumes, and go first; what a driver has mounted only the driver takes away.
        let of_drivers = root.join("volumes/kubernetes.io~csi");
        match kernel::mount_points_below(&root) {
            Err(source) => errors.push(VolumeError::file("look at", &root)(source)),
            Ok(places) => {
                let (sub_paths, others): (Vec<_>, Vec<_>) =
                    places.into_iter().partition(|place| place.contains("/volume-subpaths/"));
                let ours = others.into_iter().filter(|place| !is_below(place, &of_drivers));
                errors.extend(sub_paths.into_iter().chain(ours).filter_map(|place| {
                    kernel::unmount_now(Path::new(&place)).map_err(VolumeError::file("unmount", place)).err()
                }));
            }
        }
        // They go together.
        for (plugin, _) in own {
            plugin::ended(&plugin, "volume_unmount", errors.is_empty(), begun);
        }
        errors.extend(self.unmount_csi(&root).await);
        errors.extend(self.unmap_csi(uid).await);
        if errors.is_empty() {
            self.places.forget(uid);
            errors.extend(remove_empty_dirs(&root).err());
        }
        errors
    }

    /// Removes a pod's directories, after [`Self::unmount`]. Nothing is removed while something is still mounted below (A9.22).
    pub fn remove_dirs(&self, uid: &PodUid) -> Result<(), VolumeError> {
        let root = self.dirs(uid).root().to_owned();
        let mounted = kernel::mount_points_below(&root).map_err(VolumeError::file("look at", &root))?;
        if let Some(place) = mounted.first() {
            let busy = io::Error::from(io::ErrorKind::ResourceBusy);
            return Err(VolumeError::file("remove a directory with a mount below it:", place)(busy));
        }
        // What was mounted there was no data of ours: an empty directory is all that may be left of it.
        for plugin in ["csi", "local-volume", "nfs"] {
            let volumes = fs::read_dir(root.join(format!("volumes/kubernetes.io~{plugin}")));
            for volume in volumes.into_iter().flatten().flatten() {
                let _ = fs::remove_dir(volume.path().join("mount"));
                match fs::remove_dir(volume.path()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(VolumeError::file("remove", volume.path())(error));
                    }
                    _ => {}
                }
            }
        }
        match remove_all(&root) {
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

/// What emptyDirs hold goes with the pod's containers, not with its object: the node may be short of disk because of it (A9.4).
fn remove_empty_dirs(root: &Path) -> Result<(), VolumeError> {
    let dir = root.join("volumes/kubernetes.io~empty-dir");
    match remove_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::file("remove", dir)(error)),
        _ => Ok(()),
    }
}

fn is_below(place: &str, dir: &Path) -> bool {
    // The kernel names the place without links.
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    Path::new(place).starts_with(dir)
}

/// Removes a directory and what lies in it on the same filesystem: a mount that appears meanwhile is not entered.
fn remove_all(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let device = fs::symlink_metadata(dir)?.dev();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let found = fs::symlink_metadata(&path)?;
        if !found.is_dir() {
            fs::remove_file(&path)?;
        } else if found.dev() == device {
            remove_all(&path)?;
        } else {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
    }
    fs::remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root.
    #[test]
    fn what_is_mounted_is_not_removed() {
        // A9.22
        let dir = tempfile::tempdir().unwrap();
        let (pod, data) = (dir.path().join("pod"), dir.path().join("data"));
        fs::create_dir_all(pod.join("volumes/v")).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(data.join("precious"), "").unwrap();
        kernel::mount_tmpfs(&data, None).unwrap();
        fs::write(data.join("precious"), "").unwrap();
        kernel::bind(&data, &pod.join("volumes/v")).unwrap();
        let removed = remove_all(&pod);
        let kept = data.join("precious").exists();
        kernel::unmount_now(&pod.join("volumes/v")).unwrap();
        kernel::unmount_now(&data).unwrap();
        assert!(removed.is_err() && kept);
        remove_all(&pod).unwrap();
        assert!(!pod.exists());
    }
}
