//! Where control groups are mounted: one tree (v2), or one for each controller (v1 and hybrid).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The magic number of a cgroup v2 mount.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// The mounted trees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Hierarchy {
    /// One tree with all controllers.
    V2(PathBuf),
    /// A tree for each controller by name; `others` are trees that only have to be kept clean.
    V1 { controllers: BTreeMap<String, PathBuf>, others: Vec<PathBuf> },
}

impl Hierarchy {
    /// Looks what is mounted at `mount`, such as `/sys/fs/cgroup`.
    pub(super) fn detect(mount: &Path) -> io::Result<Self> {
        let magic = rustix::fs::statfs(mount)?.f_type;
        if u64::try_from(magic).is_ok_and(|magic| magic == CGROUP2_SUPER_MAGIC) {
            return Ok(Self::V2(mount.to_owned()));
        }
        Ok(Self::of_mounts(&fs::read_to_string("/proc/self/mountinfo")?, mount))
    }

    /// Reads the v1 trees below `mount` from the text of `/proc/self/mountinfo`.
    fn of_mounts(mountinfo: &str, mount: &Path) -> Self {
        let (mut controllers, mut others) = (BTreeMap::new(), Vec::new());
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(place) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            if !place.starts_with(mount) {
                continue;
            }
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default();
                    let named = options.split(',').find(|o| o.starts_with("name="));
                    if named.is_some() {
                        others.push(place);
                        continue;
                    }
                    for controller in options.split(',').filter(|o| *o != "rw" && *o != "ro") {
                        controllers.entry(controller.to_owned()).or_insert_with(|| place.clone());
                    }
                }
                Some("cgroup2") => others.push(place),
                _ => {}
            }
        }
        Self::V1 { controllers, others }
    }

    /// A file of a group, which has its name below the mount; `None` where there is no such controller.
    pub(super) fn file(&self, controller: &str, group: &str, name: &str) -> Option<PathBuf> {
        let tree = match self {
            Self::V2(root) => root,
            Self::V1 { controllers, .. } => controllers.get(controller)?,
        };
        let mut path = tree.join(group);
        path.push(name);
        Some(path)
    }

    /// Whether swap is limited by group.
    pub(super) fn counts_swap(&self) -> bool {
        let limit = match self {
            // The root has none, and the agent is in no root.
            Self::V2(root) => {
                let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
                let group = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
                Some(root.join(group).join("memory.swap.max"))
            }
            Self::V1 { controllers, .. } => {
                controllers.get("memory").map(|tree| tree.join("memory.memsw.limit_in_bytes"))
            }
        };
        limit.is_some_and(|limit| limit.exists())
    }

    /// Every tree, each once.
    pub(super) fn trees(&self) -> Vec<&Path> {
        match self {
            Self::V2(root) => vec![root],
            Self::V1 { controllers, others } => {
                let mut all: Vec<&Path> = controllers.values().chain(others).map(PathBuf::as_path).collect();
                all.sort_unstable();
                all.dedup();
                all
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trees_of_version_1_are_found() {
        let text = "\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd
29 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
30 25 0:27 / /mnt/else rw - cgroup cgroup rw,pids
";
        let hierarchy = Hierarchy::of_mounts(text, Path::new("/sys/fs/cgroup"));
        let Hierarchy::V1 { controllers, .. } = &hierarchy else { panic!("version 1") };
        assert_eq!(controllers["cpu"], controllers["cpuacct"]);
        assert_eq!(controllers["memory"], Path::new("/sys/fs/cgroup/memory"));
        assert!(!controllers.contains_key("pids"));
        assert_eq!(hierarchy.trees().len(), 4);
    }
}
