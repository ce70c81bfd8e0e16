//! Takes volumes away: unmounts them, and removes directories, never what is mounted in them (A9.21, A9.22).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stoker_model::pod::PodUid;
use tokio::sync::Notify;

use super::aside::aside;
use super::error::VolumeError;
use super::remove::remove_all;
use super::volumes::Volumes;
use super::{kernel, plugin};

/// Plugins whose volumes Stoker itself fills, by the names of their directories (A9.1).
const PLAIN: [&str; 5] = ["configmap", "downward-api", "empty-dir", "projected", "secret"];

/// How many mounts that lie upon each other are taken from one place.
const MOUNTED_UPON: usize = 4;

impl Volumes {
    /// Unmounts everything of a pod. What cannot be undone now is reported, and the rest is undone all the same.
    pub async fn unmount(&self, uid: &PodUid) -> Vec<VolumeError> {
        self.tokens.forget(uid);
        self.objects.follow(uid, BTreeSet::new(), &Arc::new(Notify::new()));
        let root = self.dirs(uid).root().to_owned();
        let (begun, plain) = (plugin::begun(), plain_volumes(&root));
        let own: Vec<String> = match &plain {
            Some(volumes) => volumes.iter().map(|volume| plugin::of_place(volume)).collect(),
            None => plugin::in_directory(&root).into_iter().map(|(plugin, _)| plugin).collect(),
        };
        let is_plain = plain.is_some();
        let below = root.clone();
        // The kernel takes ten milliseconds and more for each, and what others filled may not answer any more.
        let unmounting = aside(move || {
            Ok(match plain {
                Some(volumes) => volumes.iter().filter_map(|volume| unmount_volume(volume).err()).collect(),
                None => unmount_below(&below),
            })
        });
        let mut errors = unmounting.await.unwrap_or_else(|error| vec![error]);
        // They go together.
        for plugin in own {
            plugin::ended(&plugin, "volume_unmount", errors.is_empty(), begun);
        }
        if !is_plain {
            errors.extend(self.unmount_csi(&root).await);
            errors.extend(self.unmap_csi(uid).await);
        }
        if errors.is_empty() {
            self.places.forget(uid);
            errors.extend(remove_empty_dirs(&root).await.err());
        }
        errors
    }

    /// Removes a pod's directories, after [`Self::unmount`]. Nothing is removed while something is still mounted below (A9.22).
    pub fn remove_dirs(&self, uid: &PodUid) -> Result<(), VolumeError> {
        let root = self.dirs(uid).root().to_owned();
        let plain = plain_volumes(&root);
        let mounted = match &plain {
            Some(volumes) => volumes
                .iter()
                .find(|volume| kernel::is_mounted_on(volume).is_ok_and(|told| told != Some(false)))
                .cloned(),
            None => kernel::mount_points_below(&root)
                .map_err(VolumeError::file("look at", &root))?
                .first()
                .map(PathBuf::from),
        };
        if let Some(place) = mounted {
            let busy = io::Error::from(io::ErrorKind::ResourceBusy);
            return Err(VolumeError::file("remove a directory with a mount below it:", place)(busy));
        }
        if plain.is_none() {
            remove_places(&root)?;
        }
        gone(remove_all(&root)).map_err(VolumeError::file("remove", root))
    }

    /// The pods that have a directory.
    pub fn pods_on_disk(&self) -> Vec<PodUid> {
        let entries = fs::read_dir(&self.pods_dir).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str().map(PodUid::new)).collect()
    }
}

/// The volumes of a pod that has none but those that Stoker itself fills, which lie right below the directories of their plugins:
/// whatever is mounted is mounted there, so the table of a full node, which is long, need not be read. `None`: it must be.
fn plain_volumes(root: &Path) -> Option<Vec<PathBuf>> {
    let entries = |dir: &Path| match fs::read_dir(dir) {
        Err(error) => (error.kind() == io::ErrorKind::NotFound).then(Vec::new),
        Ok(entries) => entries.map(|entry| Some(entry.ok()?.path())).collect::<Option<Vec<_>>>(),
    };
    if kernel::is_mounted_on(root).ok()??
        || ["volume-subpaths", "volumeDevices"].iter().any(|part| root.join(part).exists())
    {
        return None;
    }
    let mut volumes = Vec::new();
    for kind in entries(&root.join("volumes"))? {
        let name = kind.file_name()?.to_str()?.strip_prefix("kubernetes.io~")?;
        if !PLAIN.contains(&name) {
            return None;
        }
        volumes.extend(entries(&kind)?);
    }
    Some(volumes)
}

fn unmount_volume(volume: &Path) -> Result<(), VolumeError> {
    // Twice where an agent was killed between mounting and noting it down.
    for _ in 0..MOUNTED_UPON {
        if kernel::is_mounted_on(volume).map_err(VolumeError::file("look at", volume))? != Some(true) {
            break;
        }
        kernel::unmount_now(volume).map_err(VolumeError::file("unmount", volume))?;
    }
    Ok(())
}

/// Whatever is mounted below a pod's directory. Sub-paths lie on volumes, and go first; what a driver has mounted only the driver
/// takes away.
fn unmount_below(root: &Path) -> Vec<VolumeError> {
    let places = match kernel::mount_points_below(root) {
        Err(source) => return vec![VolumeError::file("look at", root)(source)],
        Ok(places) => places,
    };
    let of_drivers = root.join("volumes/kubernetes.io~csi");
    let (sub_paths, others): (Vec<_>, Vec<_>) =
        places.into_iter().partition(|place| place.contains("/volume-subpaths/"));
    let ours = others.into_iter().filter(|place| !is_below(place, &of_drivers));
    let unmounted =
        |place: String| kernel::unmount_now(Path::new(&place)).map_err(VolumeError::file("unmount", place)).err();
    sub_paths.into_iter().chain(ours).filter_map(unmounted).collect()
}

/// The places of volumes whose data is not the pod's: an empty directory is all that may be left of each.
fn remove_places(root: &Path) -> Result<(), VolumeError> {
    for plugin in ["csi", "local-volume", "nfs"] {
        let volumes = fs::read_dir(root.join(format!("volumes/kubernetes.io~{plugin}")));
        for volume in volumes.into_iter().flatten().flatten() {
            let _ = fs::remove_dir(volume.path().join("mount"));
            gone(fs::remove_dir(volume.path())).map_err(VolumeError::file("remove", volume.path()))?;
        }
    }
    Ok(())
}

/// What emptyDirs hold goes with the pod's containers, not with its object: the node may be short of disk because of it (A9.4).
/// There may be a million files.
async fn remove_empty_dirs(root: &Path) -> Result<(), VolumeError> {
    let dir = root.join("volumes/kubernetes.io~empty-dir");
    match fs::symlink_metadata(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => aside(move || remove_written(&dir)).await,
    }
}

fn remove_written(dir: &Path) -> Result<(), VolumeError> {
    let mut removed = remove_all(dir);
    if removed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
        // A container with the right to has mounted something deep inside.
        if let Some(error) = unmount_below(dir).into_iter().next() {
            return Err(error);
        }
        removed = remove_all(dir);
    }
    gone(removed).map_err(VolumeError::file("remove", dir))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn is_below(place: &str, dir: &Path) -> bool {
    // The kernel names the place without links.
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    Path::new(place).starts_with(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root. What is bound lies on the same file system, so its device tells nothing.
    #[test]
    fn what_is_bound_from_beside_is_not_removed() {
        // A9.22
        let dir = tempfile::tempdir().unwrap();
        let (pod, data) = (dir.path().join("pod"), dir.path().join("data"));
        fs::create_dir_all(pod.join("volumes/kubernetes.io~empty-dir/v/deep")).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(data.join("precious"), "").unwrap();
        let deep = pod.join("volumes/kubernetes.io~empty-dir/v/deep");
        kernel::bind(&data, &deep).unwrap();
        let removed = remove_all(&pod);
        assert!(data.join("precious").exists());
        assert!(removed.unwrap_err().to_string().contains("v/deep"));
        // Of an emptyDir's own mounts is taken away what a container left there.
        let removing = remove_empty_dirs(&pod);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut removing = Box::pin(removing);
            assert!(futures::poll!(&mut removing).is_pending(), "nobody waits for a million files");
            removing.await.unwrap();
        });
        assert!(data.join("precious").exists() && !deep.exists());
    }

    /// Needs root.
    #[test]
    fn plain_volumes_are_known_without_the_table() {
        // A9.1, A9.21
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path();
        let volumes =
            ["kubernetes.io~empty-dir/a", "kubernetes.io~projected/b"].map(|name| pod.join("volumes").join(name));
        for volume in &volumes {
            fs::create_dir_all(volume).unwrap();
        }
        kernel::mount_tmpfs(&volumes[1], None).unwrap();
        kernel::mount_tmpfs(&volumes[1], None).unwrap();
        let mut plain = plain_volumes(pod).unwrap();
        plain.sort();
        assert_eq!(plain, volumes);
        for volume in plain {
            unmount_volume(&volume).unwrap();
        }
        assert_eq!(kernel::mount_points_below(pod).unwrap(), Vec::<String>::new());
        for other in ["volume-subpaths", "volumes/kubernetes.io~nfs"] {
            fs::create_dir(pod.join(other)).unwrap();
            assert_eq!(plain_volumes(pod), None, "{other}");
            fs::remove_dir(pod.join(other)).unwrap();
        }
        assert_eq!(plain_volumes(&pod.join("absent")), None);
    }

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
