//! The IDs that pods with users of their own have on the node (A11.2): a range for each, never two pods the same one. What a pod has is
//! written to `userns` in its directory, as kubelet does, and read again by the next agent.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use stoker_model::pod::PodUid;

use crate::runtime::cri;

const FILE: &str = "userns";
/// Ranges are so long, or a multiple of it.
const UNIT: u32 = 65536;

/// The IDs of the node that pods may have: the first, and how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub length: u32,
}

/// Why pods cannot have users of their own.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The length of a pod's range is no multiple of 65536.
    #[error("userNamespaces.idsPerPod is {0}: it must be a multiple of 65536")]
    Length(u32),
    /// The node's range does not begin or end where a pod's does.
    #[error("the IDs of user kubelet, {}:{}, must begin and end at multiples of {per_pod}, and not begin at 0", range.first, range.length)]
    Range {
        /// What there is.
        range: IdRange,
        /// What a pod has.
        per_pod: u32,
    },
    /// There may be more pods than ranges.
    #[error(
        "the IDs of user kubelet are enough for {places} pods, but maxPods is {pods}: give it more in /etc/subuid and /etc/subgid"
    )]
    TooFew {
        /// How many ranges there are.
        places: u32,
        /// How many pods there may be.
        pods: u32,
    },
    /// A pod's file is not as it was written.
    #[error("invalid user namespace mappings of pod {pod}: {why}")]
    File {
        /// Whose.
        pod: PodUid,
        /// What is wrong.
        why: String,
    },
    /// All ranges are taken.
    #[error("could not find an empty slot to allocate a user namespace")]
    Full,
    /// A file cannot be read or written.
    #[error("cannot keep the pod's user namespace in {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What lies in a pod's file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// Who has which range. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Users {
    range: IdRange,
    per_pod: u32,
    /// The first ID of each pod's range.
    taken: Arc<Mutex<BTreeMap<PodUid, u32>>>,
}

impl Users {
    /// Takes over what the pods on disk have. `per_pod`: kubelet's `userNamespaces.idsPerPod`.
    ///
    /// # Errors
    ///
    /// [`UsersError`]: the ranges do not fit, or a pod's file is not to be understood.
    pub fn open(pods_dir: &Path, range: IdRange, per_pod: u32, max_pods: u32) -> Result<Self, UsersError> {
        if per_pod == 0 || !per_pod.is_multiple_of(UNIT) {
            return Err(UsersError::Length(per_pod));
        }
        if !range.first.is_multiple_of(per_pod) || range.first < per_pod || !range.length.is_multiple_of(per_pod) {
            return Err(UsersError::Range { range, per_pod });
        }
        let places = range.length / per_pod;
        if places < max_pods {
            return Err(UsersError::TooFew { places, pods: max_pods });
        }
        let users = Self { range, per_pod, taken: Arc::default() };
        for entry in fs::read_dir(pods_dir).into_iter().flatten().flatten() {
            if let Some(uid) = entry.file_name().to_str().map(PodUid::new)
                && let Some(first) = users.read(&entry.path(), &uid)?
            {
                users.with(|taken| users.record(taken, &uid, first))?;
            }
        }
        Ok(users)
    }

    fn with<R>(&self, act: impl FnOnce(&mut BTreeMap<PodUid, u32>) -> R) -> R {
        act(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The pod's range, which it keeps until it is gone.
    pub(super) fn of(&self, root: &Path, uid: &PodUid) -> Result<cri::UserNamespace, UsersError> {
        let first = match self.read(root, uid)? {
            Some(first) => {
                self.with(|taken| self.record(taken, uid, first))?;
                first
            }
            None => {
                let first = self.with(|taken| self.free(taken, uid)).ok_or(UsersError::Full)?;
                if let Err(error) = self.write(root, first) {
                    self.with(|taken| taken.remove(uid));
                    return Err(error);
                }
                first
            }
        };
        let mapping = cri::IdMapping { host_id: first, container_id: 0, length: self.per_pod };
        Ok(cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: vec![mapping], gids: vec![mapping] })
    }

    /// The pod is gone.
    pub(super) fn release(&self, uid: &PodUid) {
        self.with(|taken| taken.remove(uid));
    }

    fn free(&self, taken: &mut BTreeMap<PodUid, u32>, uid: &PodUid) -> Option<u32> {
        if let Some(first) = taken.get(uid) {
            return Some(*first);
        }
        let places = self.range.length / self.per_pod;
        let all = (0..places).map(|place| self.range.first + place * self.per_pod);
        let used: std::collections::BTreeSet<u32> = taken.values().copied().collect();
        let first = all.into_iter().find(|first| !used.contains(first))?;
        taken.insert(uid.clone(), first);
        Some(first)
    }

    /// A range that a pod's file tells of.
    fn record(&self, taken: &mut BTreeMap<PodUid, u32>, uid: &PodUid, first: u32) -> Result<(), UsersError> {
        let wrong = |why: String| Err(UsersError::File { pod: uid.clone(), why });
        let places = self.range.length / self.per_pod;
        let place = first.checked_sub(self.range.first).map(|offset| offset / self.per_pod);
        if place.is_none_or(|place| place >= places) {
            return wrong(format!("id {first} is out of range"));
        }
        if let Some((other, _)) = taken.iter().find(|(other, taken)| **taken == first && *other != uid) {
            return wrong(format!("its range is that of pod {other}"));
        }
        taken.insert(uid.clone(), first);
        Ok(())
    }

    fn read(&self, root: &Path, uid: &PodUid) -> Result<Option<u32>, UsersError> {
        let path = root.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(UsersError::Io { path, source }),
        };
        let wrong = |why: &str| UsersError::File { pod: uid.clone(), why: why.to_owned() };
        let written: Written = serde_json::from_slice(&text).map_err(|error| wrong(&error.to_string()))?;
        let ([uids], [gids]) = (&written.uid_mappings[..], &written.gid_mappings[..]) else {
            return Err(wrong("no more than one mapping allowed"));
        };
        if uids != gids {
            return Err(wrong("GID and UID mapping should be identical"));
        }
        if uids.container_id != 0 {
            return Err(wrong("UID 0 must be mapped"));
        }
        if uids.length != self.per_pod {
            return Err(wrong(&format!("wrong user namespace length {}", uids.length)));
        }
        if !uids.host_id.is_multiple_of(self.per_pod) {
            return Err(wrong(&format!("wrong user namespace offset specified {}", uids.host_id)));
        }
        Ok(Some(uids.host_id))
    }

    /// Whole or not at all, and for good before the pod runs: nobody else may get its range.
    fn write(&self, root: &Path, first: u32) -> Result<(), UsersError> {
        let all = vec![Mapping { host_id: first, container_id: 0, length: self.per_pod }];
        let text = serde_json::to_vec(&Written { uid_mappings: all.clone(), gid_mappings: all }).unwrap_or_default();
        let (path, fresh) = (root.join(FILE), root.join(format!(".{FILE}.new")));
        let written = || {
            fs::create_dir_all(root)?;
            let mut file = fs::File::create(&fresh)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            fs::File::open(root)?.sync_all()
        };
        written().map_err(|source| UsersError::Io { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: IdRange = IdRange { first: 131_072, length: 3 * UNIT };

    fn first(users: &Users, dir: &Path, uid: &str) -> Result<u32, String> {
        let found = users.of(&dir.join(uid), &PodUid::new(uid)).map_err(|error| error.to_string())?;
        assert_eq!((found.mode(), &found.uids), (cri::NamespaceMode::Pod, &found.gids));
        assert_eq!((found.uids[0].container_id, found.uids[0].length), (0, UNIT));
        Ok(found.uids[0].host_id)
    }

    #[test]
    fn every_pod_has_a_range_of_its_own_and_keeps_it() {
        // A11.2
        let dir = tempfile::tempdir().unwrap();
        let users = Users::open(dir.path(), RANGE, UNIT, 3).unwrap();
        assert_eq!(first(&users, dir.path(), "a"), Ok(131_072));
        assert_eq!(first(&users, dir.path(), "b"), Ok(196_608));
        assert_eq!(first(&users, dir.path(), "a"), Ok(131_072));
        let text = fs::read_to_string(dir.path().join("a/userns")).unwrap();
        assert_eq!(
            text,
            r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#
        );
        // The next agent knows it, and what a pod leaves is another's.
        let users = Users::open(dir.path(), RANGE, UNIT, 3).unwrap();
        assert_eq!(first(&users, dir.path(), "c"), Ok(262_144));
        assert!(first(&users, dir.path(), "d").unwrap_err().contains("could not find an empty slot"));
        users.release(&PodUid::new("a"));
        assert_eq!(first(&users, dir.path(), "d"), Ok(131_072));
    }

    #[test]
    fn ranges_and_files_have_to_fit() {
        // A11.2
        let dir = tempfile::tempdir().unwrap();
        let open = |first: u32, length: u32, per_pod: u32, pods: u32| {
            Users::open(dir.path(), IdRange { first, length }, per_pod, pods).map(drop).map_err(|e| e.to_string())
        };
        for (result, expected) in [
            (open(UNIT, UNIT, 1000, 1), "must be a multiple of 65536"),
            (open(0, UNIT, UNIT, 1), "not begin at 0"),
            (open(UNIT + 1, UNIT, UNIT, 1), "must begin and end"),
            (open(UNIT, UNIT + 1, UNIT, 1), "must begin and end"),
            (open(UNIT, UNIT, 2 * UNIT, 1), "must begin and end"),
            (open(UNIT, 5 * UNIT, UNIT, 110), "enough for 5 pods, but maxPods is 110"),
        ] {
            let text = result.unwrap_err();
            assert!(text.contains(expected), "{text}");
        }
        assert_eq!(open(2 * UNIT, 2 * UNIT, 2 * UNIT, 1), Ok(()));
        let one = |host: u32, inside: u32, length: u32| {
            format!(r#"{{"hostId":{host},"containerId":{inside},"length":{length}}}"#)
        };
        let file = |uids: &str, gids: &str| format!(r#"{{"uidMappings":[{uids}],"gidMappings":[{gids}]}}"#);
        let same = |text: String| file(&text, &text);
        fs::create_dir_all(dir.path().join("p")).unwrap();
        for (text, expected) in [
            ("nonsense".to_owned(), "expected"),
            (file("", ""), "no more than one mapping"),
            (file(&one(131_072, 0, UNIT), &one(196_608, 0, UNIT)), "should be identical"),
            (same(one(131_072, 1, UNIT)), "UID 0 must be mapped"),
            (same(one(131_072, 0, 2 * UNIT)), "wrong user namespace length 131072"),
            (same(one(131_073, 0, UNIT)), "wrong user namespace offset specified 131073"),
            (same(one(UNIT, 0, UNIT)), "id 65536 is out of range"),
            (same(one(131_072 + 3 * UNIT, 0, UNIT)), "is out of range"),
        ] {
            fs::write(dir.path().join("p/userns"), &text).unwrap();
            let found = Users::open(dir.path(), RANGE, UNIT, 3).unwrap_err().to_string();
            assert!(found.contains(expected), "{text}: {found}");
        }
    }
}
