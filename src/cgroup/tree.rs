//! [`Cgroups`]: makes, limits and removes the groups of `kubepods` and of the pods in it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_model::resources::QosClass;

use super::hierarchy::Hierarchy;
use super::limits::{PodLimits, cpu_quota_us, cpu_weight};

/// Who names and makes the groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CgroupDriver {
    /// This program, as directories.
    Cgroupfs,
    /// systemd, as slices.
    Systemd,
}

/// Where and how groups are made.
#[derive(Clone, Debug)]
pub struct CgroupConfig {
    /// Where control groups are mounted: `/sys/fs/cgroup`.
    pub mount: PathBuf,
    /// kubelet's `cgroupRoot`: the group that `kubepods` lies in, `/` for the root.
    pub root: String,
    /// Must be the runtime's.
    pub driver: CgroupDriver,
    /// kubelet's `cpuCFSQuota`: whether CPU limits are enforced.
    pub cpu_cfs_quota: bool,
    /// kubelet's `cpuCFSQuotaPeriod`.
    pub cpu_cfs_period: Duration,
    /// kubelet's `podPidsLimit`; `None`: no limit.
    pub pod_pids_limit: Option<u64>,
}

impl Default for CgroupConfig {
    fn default() -> Self {
        Self {
            mount: "/sys/fs/cgroup".into(),
            root: "/".into(),
            driver: CgroupDriver::Cgroupfs,
            cpu_cfs_quota: true,
            cpu_cfs_period: Duration::from_millis(100),
            pod_pids_limit: None,
        }
    }
}

/// What may go wrong with control groups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Nothing usable is mounted.
    #[error("cannot find control groups at {path}: mount cgroup2 there, or the controllers of cgroup v1 below it")]
    NotMounted {
        /// Where they should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Option<io::Error>,
    },
    /// A controller that limits need is not there.
    #[error(
        "controller {controller} is not available in {path}: enable it in the kernel, and where systemd runs start stoker from its unit (Delegate=yes)"
    )]
    NoController {
        /// Its name.
        controller: &'static str,
        /// The group that lacks it.
        path: PathBuf,
    },
    /// A directory could not be made or removed.
    #[error("cannot {what} {path}: {source}")]
    Directory {
        /// What was tried.
        what: &'static str,
        /// The group.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A limit could not be set.
    #[error("cannot write {value:?} to {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// Why.
        source: io::Error,
    },
}

/// The groups of this node's pods.
#[derive(Clone, Debug)]
pub struct Cgroups {
    config: CgroupConfig,
    hierarchy: Hierarchy,
}

/// The controllers that pods are limited with.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

impl Cgroups {
    /// Finds out which version is mounted.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotMounted`], and [`CgroupError::NoController`] where cpu or memory is missing.
    pub fn open(config: CgroupConfig) -> Result<Self, CgroupError> {
        let path = config.mount.clone();
        let hierarchy = Hierarchy::detect(&path)
            .map_err(|source| CgroupError::NotMounted { path: path.clone(), source: Some(source) })?;
        if let Hierarchy::V1 { controllers, .. } = &hierarchy {
            if controllers.is_empty() {
                return Err(CgroupError::NotMounted { path, source: None });
            }
            for controller in ["cpu", "memory"] {
                if !controllers.contains_key(controller) {
                    return Err(CgroupError::NoController { controller, path });
                }
            }
        }
        Ok(Self { config, hierarchy })
    }

    /// Whether the node has cgroup v2.
    pub fn is_v2(&self) -> bool {
        matches!(self.hierarchy, Hierarchy::V2(_))
    }

    /// Whether CPU limits are enforced, and in which period.
    pub fn cpu_quota_period(&self) -> Option<Duration> {
        self.config.cpu_cfs_quota.then_some(self.config.cpu_cfs_period)
    }

    /// The parent of a pod's containers, as CRI's `cgroup_parent` wants it (A12.2).
    pub fn pod_parent(&self, qos: QosClass, uid: &str) -> String {
        match self.config.driver {
            CgroupDriver::Cgroupfs => format!("/{}", self.pod_path(qos, uid)),
            CgroupDriver::Systemd => {
                let class = match qos {
                    QosClass::Guaranteed => "",
                    QosClass::Burstable => "-burstable",
                    QosClass::BestEffort => "-besteffort",
                };
                format!("kubepods{class}-pod{}.slice", uid.replace('-', "_"))
            }
        }
    }

    /// Makes `kubepods` and the groups of the QoS classes (A12.2, A12.6). Again is harmless.
    pub fn make_tree(&self) -> Result<(), CgroupError> {
        if self.config.driver == CgroupDriver::Systemd {
            return Ok(());
        }
        for group in [self.qos_path(QosClass::Guaranteed), self.qos_path(QosClass::Burstable)] {
            self.make(&group)?;
        }
        let best_effort = self.qos_path(QosClass::BestEffort);
        self.make(&best_effort)?;
        self.write_shares(&best_effort, 2)
    }

    /// Sets what all burstable pods together weigh (A12.6).
    pub fn set_burstable_shares(&self, shares: u64) -> Result<(), CgroupError> {
        if self.config.driver == CgroupDriver::Systemd {
            return Ok(());
        }
        self.write_shares(&self.qos_path(QosClass::Burstable), shares)
    }

    /// Makes and limits the group of one pod. One that has containers is left as it is (A12.5); one that has none yet may be
    /// half made: by an agent that was killed, or because a limit could not be set.
    pub fn make_pod(&self, uid: &str, limits: &PodLimits) -> Result<(), CgroupError> {
        if self.config.driver == CgroupDriver::Systemd {
            return Ok(());
        }
        let group = self.pod_path(limits.qos, uid);
        if !self.make(&group)? && self.has_containers(&group) {
            return Ok(());
        }
        self.write_shares(&group, limits.shares)?;
        let period = self.config.cpu_cfs_period;
        if let Some(milli) = limits.milli_cpu.filter(|_| self.config.cpu_cfs_quota) {
            let (quota, period_us) = (cpu_quota_us(milli, period), period.as_micros());
            if self.is_v2() {
                self.write("cpu", &group, "cpu.max", format!("{quota} {period_us}"))?;
            } else {
                self.write("cpu", &group, "cpu.cfs_period_us", period_us.to_string())?;
                self.write("cpu", &group, "cpu.cfs_quota_us", quota.to_string())?;
            }
        }
        if let Some(bytes) = limits.memory_bytes {
            let file = if self.is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
            self.write("memory", &group, file, bytes.to_string())?;
        }
        match self.config.pod_pids_limit {
            Some(limit) => self.write("pids", &group, "pids.max", limit.to_string()),
            None => Ok(()),
        }
    }

    /// Removes the group of a pod, and what its containers left in it, from every tree. Gone already is success.
    ///
    /// # Errors
    ///
    /// The first failure, after all trees were tried: something still runs in the group, or just ended.
    pub fn remove_pod(&self, qos: QosClass, uid: &str) -> Result<(), CgroupError> {
        let mut first = Ok(());
        let paths = match self.config.driver {
            CgroupDriver::Cgroupfs => self.pod_path(qos, uid),
            CgroupDriver::Systemd => return Ok(()),
        };
        for tree in self.hierarchy.trees() {
            let path = tree.join(&paths);
            let removed = remove_below(&path).map_err(|source| CgroupError::Directory {
                what: "remove the control group",
                path,
                source,
            });
            if first.is_ok() {
                first = removed;
            }
        }
        first
    }

    /// The pods that have a group, by class and UID.
    pub fn pods(&self) -> BTreeSet<(QosClass, String)> {
        let mut found = BTreeSet::new();
        if self.config.driver == CgroupDriver::Systemd {
            return found;
        }
        for tree in self.hierarchy.trees() {
            for qos in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
                let entries = fs::read_dir(tree.join(self.qos_path(qos))).into_iter().flatten().flatten();
                let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
                found.extend(names.filter_map(|n| n.strip_prefix("pod").map(|uid| (qos, uid.to_owned()))));
            }
        }
        found
    }

    pub(super) fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// The groups that pods' groups lie in.
    pub(super) fn class_groups(&self) -> Vec<String> {
        let root = self.config.root.trim_matches('/');
        let root = if root.is_empty() { String::new() } else { format!("{root}/") };
        match self.config.driver {
            CgroupDriver::Cgroupfs => {
                [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort].map(|qos| self.qos_path(qos)).into()
            }
            CgroupDriver::Systemd => ["", "/kubepods-burstable.slice", "/kubepods-besteffort.slice"]
                .map(|class| format!("{root}kubepods.slice{class}"))
                .into(),
        }
    }

    fn qos_path(&self, qos: QosClass) -> String {
        let root = self.config.root.trim_matches('/');
        let root = if root.is_empty() { String::new() } else { format!("{root}/") };
        match qos {
            QosClass::Guaranteed => format!("{root}kubepods"),
            QosClass::Burstable => format!("{root}kubepods/burstable"),
            QosClass::BestEffort => format!("{root}kubepods/besteffort"),
        }
    }

    fn pod_path(&self, qos: QosClass, uid: &str) -> String {
        format!("{}/pod{uid}", self.qos_path(qos))
    }

    /// Makes a group in the trees that limits need; whether it was missing.
    fn make(&self, group: &str) -> Result<bool, CgroupError> {
        let make = |path: &Path| {
            let missing = !path.exists();
            let made = fs::create_dir_all(path);
            made.map_err(|source| CgroupError::Directory {
                what: "make the control group",
                path: path.into(),
                source,
            })?;
            Ok(missing)
        };
        match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => {
                let mut missing = false;
                for controller in CONTROLLERS {
                    if let Some(tree) = controllers.get(controller) {
                        missing |= make(&tree.join(group))?;
                    }
                }
                Ok(missing)
            }
            Hierarchy::V2(root) => {
                // A group has only the controllers that its parent hands down.
                let mut parent = root.clone();
                for part in group.split('/') {
                    hand_down(&parent)?;
                    parent.push(part);
                    if !parent.exists() {
                        let last = parent == root.join(group);
                        make(&parent)?;
                        if last {
                            return Ok(true);
                        }
                    }
                }
                Ok(false)
            }
        }
    }

    fn has_containers(&self, group: &str) -> bool {
        self.hierarchy.trees().into_iter().any(|tree| {
            let entries = fs::read_dir(tree.join(group)).into_iter().flatten().flatten();
            entries.into_iter().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        })
    }

    fn write_shares(&self, group: &str, shares: u64) -> Result<(), CgroupError> {
        if self.is_v2() {
            self.write("cpu", group, "cpu.weight", cpu_weight(shares).to_string())
        } else {
            self.write("cpu", group, "cpu.shares", shares.to_string())
        }
    }

    fn write(&self, controller: &'static str, group: &str, file: &str, value: String) -> Result<(), CgroupError> {
        let tree = match &self.hierarchy {
            Hierarchy::V2(root) => root,
            Hierarchy::V1 { controllers, .. } => controllers
                .get(controller)
                .ok_or_else(|| CgroupError::NoController { controller, path: self.config.mount.clone() })?,
        };
        let path = tree.join(group).join(file);
        write(path, value)
    }
}

/// Enables our controllers for the children of a group of cgroup v2.
fn hand_down(group: &Path) -> Result<(), CgroupError> {
    let read = |file: &str| fs::read_to_string(group.join(file)).unwrap_or_default();
    let (available, enabled) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    for controller in CONTROLLERS {
        if enabled.split_whitespace().any(|c| c == controller) {
            continue;
        }
        if !available.split_whitespace().any(|c| c == controller) {
            return Err(CgroupError::NoController { controller, path: group.to_owned() });
        }
        write(group.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    Ok(())
}

fn write(path: PathBuf, value: String) -> Result<(), CgroupError> {
    fs::write(&path, &value).map_err(|source| CgroupError::Write { path, value, source })
}

/// Removes a group and those below it, deepest first. The files in a group go with it.
fn remove_below(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroups(driver: CgroupDriver, root: &str) -> Cgroups {
        Cgroups::open(CgroupConfig { root: root.into(), driver, pod_pids_limit: Some(100), ..CgroupConfig::default() })
            .expect("this host has control groups")
    }

    #[test]
    fn parents_are_named_as_the_driver_wants() {
        // A12.2
        for (driver, qos, expected) in [
            (CgroupDriver::Cgroupfs, QosClass::Guaranteed, "/kubepods/podab-c"),
            (CgroupDriver::Cgroupfs, QosClass::Burstable, "/kubepods/burstable/podab-c"),
            (CgroupDriver::Cgroupfs, QosClass::BestEffort, "/kubepods/besteffort/podab-c"),
            (CgroupDriver::Systemd, QosClass::Guaranteed, "kubepods-podab_c.slice"),
            (CgroupDriver::Systemd, QosClass::Burstable, "kubepods-burstable-podab_c.slice"),
        ] {
            assert_eq!(cgroups(driver, "/").pod_parent(qos, "ab-c"), expected);
        }
    }

    /// Needs root, and cpu, memory and pids.
    #[test]
    fn a_group_is_made_limited_and_removed() {
        // A12.5, A12.6
        let root = format!("stoker-cgroup-test-{}", std::process::id());
        let cgroups = cgroups(CgroupDriver::Cgroupfs, &root);
        let limits =
            PodLimits { qos: QosClass::Burstable, shares: 204, milli_cpu: Some(500), memory_bytes: Some(64 << 20) };
        cgroups.make_tree().expect("the tree");
        cgroups.make_pod("u1", &limits).expect("the pod");
        let read = |controller: &str, file: &str| {
            let tree = match &cgroups.hierarchy {
                Hierarchy::V2(root) => root,
                Hierarchy::V1 { controllers, .. } => &controllers[controller],
            };
            fs::read_to_string(tree.join(cgroups.pod_path(QosClass::Burstable, "u1")).join(file)).expect("a limit")
        };
        if cgroups.is_v2() {
            assert_eq!(read("cpu", "cpu.max").trim(), "50000 100000");
            assert_eq!(read("memory", "memory.max").trim(), (64 << 20).to_string());
        } else {
            assert_eq!(read("cpu", "cpu.shares").trim(), "204");
            assert_eq!(read("cpu", "cpu.cfs_quota_us").trim(), "50000");
            assert_eq!(read("memory", "memory.limit_in_bytes").trim(), (64 << 20).to_string());
        }
        assert_eq!(read("pids", "pids.max").trim(), "100");

        let pids = |limit: &str| {
            let tree = match &cgroups.hierarchy {
                Hierarchy::V2(root) => root,
                Hierarchy::V1 { controllers, .. } => &controllers["pids"],
            };
            let group = tree.join(cgroups.pod_path(QosClass::Burstable, "u1"));
            fs::write(group.join("pids.max"), limit).expect("a limit");
            group
        };
        let group = pids("max");
        cgroups.make_pod("u1", &limits).expect("the pod again");
        assert_eq!(read("pids", "pids.max").trim(), "100", "a group that was half made is finished");
        fs::create_dir(group.join("container")).expect("a container");
        pids("50");
        cgroups.make_pod("u1", &limits).expect("the pod again");
        assert_eq!(read("pids", "pids.max").trim(), "50", "a group in use is left alone");
        assert_eq!(cgroups.pods(), BTreeSet::from([(QosClass::Burstable, "u1".to_owned())]));
        cgroups.remove_pod(QosClass::Burstable, "u1").expect("an empty group goes");
        cgroups.remove_pod(QosClass::Burstable, "u1").expect("again is harmless");
        assert!(cgroups.pods().is_empty());
        for tree in cgroups.hierarchy.trees() {
            remove_below(&tree.join(&root)).expect("empty groups go");
        }
    }
}
