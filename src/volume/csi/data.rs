//! `vol_data.json`: what is remembered of a mounted CSI volume beside it, in upstream's form, so that whoever comes after a restart
//! can take it away (A9.1, A9.3).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::node::attachment_name;
use crate::volume::error::VolumeError;

const FILE: &str = "vol_data.json";

/// What is remembered of a volume of a pod.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::volume) struct PodData {
    #[serde(rename = "specVolID")]
    pub(in crate::volume) spec_volume: String,
    pub(in crate::volume) volume_handle: String,
    pub(in crate::volume) driver_name: String,
    pub(in crate::volume) node_name: String,
    /// `Persistent` or `Ephemeral`.
    pub(in crate::volume) volume_lifecycle_mode: String,
    #[serde(rename = "attachmentID")]
    pub(in crate::volume) attachment: String,
    #[serde(flatten)]
    pub(in crate::volume) others: BTreeMap<String, serde_json::Value>,
}

impl PodData {
    /// Of a persistent volume.
    pub(in crate::volume) fn of(spec_volume: &str, driver: &str, handle: &str, node: &str) -> Self {
        Self {
            spec_volume: spec_volume.to_owned(),
            volume_handle: handle.to_owned(),
            driver_name: driver.to_owned(),
            node_name: node.to_owned(),
            volume_lifecycle_mode: "Persistent".to_owned(),
            attachment: attachment_name(handle, driver, node),
            others: BTreeMap::new(),
        }
    }

    /// Writes it into a volume's directory, whole or not at all.
    pub(in crate::volume) fn save(&self, dir: &Path) -> Result<(), VolumeError> {
        let text = serde_json::to_vec(self).map_err(|e| VolumeError::Other(format!("{FILE}: {e}")))?;
        let (place, fresh) = (dir.join(FILE), dir.join(format!("{FILE}.new")));
        fs::write(&fresh, text).map_err(VolumeError::file("write", &fresh))?;
        fs::rename(&fresh, &place).map_err(VolumeError::file("rename", &fresh))
    }

    /// Reads it; `None`: there is none.
    pub(in crate::volume) fn load(dir: &Path) -> Result<Option<Self>, VolumeError> {
        let place = dir.join(FILE);
        match fs::read(&place) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| VolumeError::Other(format!("{} cannot be read: {e}", place.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(VolumeError::file("read", place)(error)),
        }
    }

    pub(in crate::volume) fn remove(dir: &Path) -> Result<(), VolumeError> {
        match fs::remove_file(dir.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(VolumeError::file("remove", dir.join(FILE))(error))
            }
            _ => Ok(()),
        }
    }
}

/// The CSI volumes of a pod that are on disk: their directories, and what is remembered of them.
pub(in crate::volume) fn published(pod_root: &Path) -> Vec<(PathBuf, PodData)> {
    let all = fs::read_dir(pod_root.join("volumes/kubernetes.io~csi")).into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let dir = entry.path();
        match PodData::load(&dir) {
            Ok(data) => data.map(|data| (dir, data)),
            Err(error) => {
                tracing::warn!(%error, "a CSI volume is unknown");
                None
            }
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_file_is_read_and_kept() {
        // A9.1, A9.3
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volumes/kubernetes.io~csi/pv-1");
        fs::create_dir_all(&volume).unwrap();
        let text = r#"{"attachmentID":"csi-1","driverName":"d","nodeName":"n","specVolID":"pv-1","volumeHandle":"h","volumeLifecycleMode":"Persistent","seLinuxMountContext":"x"}"#;
        fs::write(volume.join(FILE), text).unwrap();
        let (found, data) = published(dir.path()).pop().unwrap();
        assert_eq!((found, data.volume_handle.as_str(), data.spec_volume.as_str()), (volume.clone(), "h", "pv-1"));
        data.save(&volume).unwrap();
        assert_eq!(PodData::load(&volume).unwrap(), Some(data));
        assert!(fs::read_to_string(volume.join(FILE)).unwrap().contains("seLinuxMountContext"));
    }
}
