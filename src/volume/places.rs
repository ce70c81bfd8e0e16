//! Where the volumes lie of which the pod's spec does not tell it, because they stand behind a claim. Kept in memory and in a file beside
//! the pod's volumes, so that the next agent knows it without the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use stoker_model::pod::PodUid;
use tokio::sync::watch;

use super::error::VolumeError;

const FILE: &str = "claims.json";

/// A volume that is there.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) read_only: bool,
    /// The cluster's name of a volume that is attached to nodes, as in the Node's `volumesInUse`.
    pub(super) attachable: Option<String>,
    /// Who uses it belongs to this group, too: what the volume's annotation says (A10.2).
    pub(super) group: Option<i64>,
}

type Known = BTreeMap<PodUid, BTreeMap<String, Place>>;

#[derive(Clone, Debug)]
pub(super) struct Places {
    known: Arc<Mutex<Known>>,
    in_use: Arc<watch::Sender<Vec<String>>>,
}

impl Places {
    /// What former agents left in the directories of pods.
    pub(super) fn read(pods_dir: &Path) -> Self {
        let mut known = Known::new();
        for entry in fs::read_dir(pods_dir).into_iter().flatten().flatten() {
            let text = fs::read(entry.path().join(FILE));
            if let (Some(uid), Ok(text)) = (entry.file_name().to_str(), text) {
                match serde_json::from_slice(&text) {
                    Ok(places) => drop(known.insert(PodUid::new(uid), places)),
                    Err(error) => tracing::warn!(uid, %error, "where the pod's claims lie is read anew"),
                }
            }
        }
        let in_use = watch::Sender::new(in_use(&known));
        Self { known: Arc::new(Mutex::new(known)), in_use: Arc::new(in_use) }
    }

    fn with<R>(&self, act: impl FnOnce(&mut Known) -> R) -> R {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut known);
        let now = in_use(&known);
        self.in_use.send_if_modified(|last| {
            let changed = *last != now;
            *last = now;
            changed
        });
        result
    }

    pub(super) fn get(&self, pod: &PodUid, volume: &str) -> Option<Place> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(pod).and_then(|places| places.get(volume)).cloned()
    }

    /// The groups of a pod's volumes.
    pub(super) fn groups(&self, pod: &PodUid) -> Vec<i64> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let places = known.get(pod).into_iter().flat_map(BTreeMap::values);
        let all: BTreeSet<i64> = places.filter_map(|place| place.group).collect();
        all.into_iter().collect()
    }

    /// Remembers a place; `root` is the pod's directory.
    pub(super) fn put(&self, pod: &PodUid, root: &Path, volume: &str, place: Place) -> Result<(), VolumeError> {
        let changed = self.with(|known| {
            let places = known.entry(pod.clone()).or_default();
            (places.insert(volume.to_owned(), place.clone()) != Some(place)).then(|| places.clone())
        });
        let Some(places) = changed else { return Ok(()) };
        let text = serde_json::to_vec(&places).map_err(|e| VolumeError::Other(format!("{FILE}: {e}")))?;
        let (file, fresh) = (root.join(FILE), root.join(format!("{FILE}.new")));
        fs::write(&fresh, text).map_err(VolumeError::file("write", &fresh))?;
        fs::rename(&fresh, file).map_err(VolumeError::file("rename", &fresh))
    }

    pub(super) fn forget(&self, pod: &PodUid) {
        self.with(|known| known.remove(pod));
    }

    /// The attachable volumes that pods here use, by the cluster's names, sorted.
    pub(super) fn in_use(&self) -> watch::Receiver<Vec<String>> {
        self.in_use.subscribe()
    }
}

fn in_use(known: &Known) -> Vec<String> {
    let all: BTreeSet<&String> =
        known.values().flat_map(BTreeMap::values).filter_map(|p| p.attachable.as_ref()).collect();
    all.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_agent_knows_where_claims_lie() {
        // A9.3
        let dir = tempfile::tempdir().unwrap();
        let (root, uid) = (dir.path().join("u"), PodUid::new("u"));
        fs::create_dir(&root).unwrap();
        let place = Place {
            path: "/x".into(),
            read_only: true,
            attachable: Some("kubernetes.io/csi/d^h".into()),
            group: Some(7),
        };
        Places::read(dir.path()).put(&uid, &root, "data", place.clone()).unwrap();
        let places = Places::read(dir.path());
        assert_eq!(places.get(&uid, "data"), Some(place));
        assert_eq!((places.groups(&uid), places.groups(&PodUid::new("other"))), (vec![7], vec![]));
        assert_eq!(*places.in_use().borrow(), ["kubernetes.io/csi/d^h"]);
        places.forget(&uid);
        assert!(places.in_use().borrow().is_empty());
    }
}
