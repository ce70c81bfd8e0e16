//! [`Cgroups`]: makes, limits and removes the groups of `kubepods` and of the pods in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_model::resources::QosClass;

use super::hierarchy::Hierarchy;
use super::limits::{PodLimits, cpu_quota_us, cpu_weight, hugepage_sizes, kernel_size};
use super::systemd::{self, Limits, UNLIMITED};

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
    /// A group that somebody else should have made is not there.
    #[error("there is no control group {0}: make it, or change kubeReservedCgroup or systemReservedCgroup")]
    NoGroup(String),
    /// systemd refused.
    #[error(
        "systemd does not do as asked with {slice}: {source}; is this host's init systemd? Else set cgroupDriver: cgroupfs"
    )]
    Slice {
        /// The slice.
        slice: String,
        /// Its words.
        source: io::Error,
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

/// A limit as cgroup v2 writes it.
fn or_max(limit: i64) -> String {
    if limit == UNLIMITED { "max".to_owned() } else { limit.to_string() }
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

    /// The machine's swap in bytes; `None` where the kernel does not limit it by group (A12.12).
    pub fn swap_bytes(&self) -> Option<i64> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limit = match &self.hierarchy {
            // The root has none, and the agent is in no root.
            Hierarchy::V2(root) => {
                let group = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
                root.join(group).join("memory.swap.max")
            }
            Hierarchy::V1 { controllers, .. } => controllers.get("memory")?.join("memory.memsw.limit_in_bytes"),
        };
        if !limit.exists() {
            return None;
        }
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("SwapTotal:")?.split_whitespace().next()?.parse::<i64>().ok());
        Some(kib.unwrap_or_default().saturating_mul(1024))
    }

    /// Whether CPU limits are enforced, and in which period.
    pub fn cpu_quota_period(&self) -> Option<Duration> {
        self.config.cpu_cfs_quota.then_some(self.config.cpu_cfs_period)
    }

    /// The parent of a pod's containers, as CRI's `cgroup_parent` wants it (A12.2).
    pub fn pod_parent(&self, qos: QosClass, uid: &str) -> String {
        let names = self.names(qos, Some(uid));
        match self.config.driver {
            CgroupDriver::Cgroupfs => format!("/{}", names.join("/")),
            CgroupDriver::Systemd => systemd::slice(&names),
        }
    }

    /// Makes `kubepods` and the groups of the QoS classes (A12.2, A12.6). Again is harmless.
    pub fn make_tree(&self) -> Result<(), CgroupError> {
        for qos in [QosClass::Guaranteed, QosClass::Burstable] {
            self.make(&self.names(qos, None))?;
        }
        let best_effort = self.names(QosClass::BestEffort, None);
        if !self.make(&best_effort)? && self.config.driver == CgroupDriver::Systemd {
            // systemd keeps what it was told.
            return Ok(());
        }
        self.limit(&best_effort, &Limits { shares: Some(2), ..Limits::default() })
    }

    /// Sets what all burstable pods together weigh (A12.6).
    pub fn set_burstable_shares(&self, shares: u64) -> Result<(), CgroupError> {
        self.limit(&self.names(QosClass::Burstable, None), &Limits { shares: Some(shares), ..Limits::default() })
    }

    /// Limits what all pods together may use (A13.2). `pids`: processes; `None` leaves a limit as it is.
    pub fn limit_pods(&self, shares: u64, memory_bytes: Option<i64>, pids: Option<u64>) -> Result<(), CgroupError> {
        let limits = Limits { shares: Some(shares), memory_bytes, pids, quota: None };
        self.limit(&self.names(QosClass::Guaranteed, None), &limits)
    }

    /// Limits a group that the operator has made, such as that of the system's daemons (A13.2).
    pub fn limit_existing(
        &self,
        group: &str,
        shares: Option<u64>,
        memory_bytes: Option<i64>,
        pids: Option<u64>,
    ) -> Result<(), CgroupError> {
        let names = self.parts(group);
        let path = self.path(&names);
        if !self.hierarchy.trees().iter().any(|tree| tree.join(&path).is_dir()) {
            return Err(CgroupError::NoGroup(group.to_owned()));
        }
        self.limit(&names, &Limits { shares, memory_bytes, pids, quota: None })
    }

    /// Makes and limits the group of one pod. One that has containers is left as it is (A12.5); one that has none yet may be
    /// half made: by an agent that was killed, or because a limit could not be set.
    pub fn make_pod(&self, uid: &str, limits: &PodLimits) -> Result<(), CgroupError> {
        let names = self.names(limits.qos, Some(uid));
        if !self.make(&names)? && self.has_containers(&self.path(&names)) {
            return Ok(());
        }
        self.limit(&names, &self.limits_of(limits))?;
        self.limit_hugepages(&self.path(&names), &limits.hugepages)
    }

    /// Limits the group of a pod whose containers run (A15.1). What has no limit any more gets none.
    pub fn limit_pod(&self, uid: &str, limits: &PodLimits) -> Result<(), CgroupError> {
        let mut all = self.limits_of(limits);
        if self.config.cpu_cfs_quota {
            all.quota = all.quota.or(Some((UNLIMITED, self.config.cpu_cfs_period.as_micros())));
        }
        all.memory_bytes = all.memory_bytes.or(Some(UNLIMITED));
        self.limit(&self.names(limits.qos, Some(uid)), &all)
    }

    fn limits_of(&self, limits: &PodLimits) -> Limits {
        let period = self.config.cpu_cfs_period;
        let quota = limits.milli_cpu.filter(|_| self.config.cpu_cfs_quota);
        Limits {
            shares: Some(limits.shares),
            quota: quota.map(|milli| (cpu_quota_us(milli, period), period.as_micros())),
            memory_bytes: limits.memory_bytes,
            pids: self.config.pod_pids_limit,
        }
    }

    /// The limits of CPU and memory that a pod's group has now; `None` where they cannot be read.
    pub fn pod_limits(&self, qos: QosClass, uid: &str) -> Option<PodLimits> {
        let group = self.path(&self.names(qos, Some(uid)));
        let number =
            |controller: &str, file: &str| -> Option<i64> { self.read(controller, &group, file)?.parse().ok() };
        let (quota, period, memory) = if self.is_v2() {
            let max = self.read("cpu", &group, "cpu.max")?;
            let (quota, period) = max.split_once(' ')?;
            (quota.parse().ok(), period.parse().ok()?, number("memory", "memory.max"))
        } else {
            let quota = number("cpu", "cpu.cfs_quota_us").filter(|quota| *quota > 0);
            (quota, number("cpu", "cpu.cfs_period_us")?, number("memory", "memory.limit_in_bytes"))
        };
        // The kernel of cgroup v1 shows no limit as the largest number of whole pages.
        let memory_bytes = memory.filter(|bytes| *bytes < i64::MAX - (1 << 20));
        let milli_cpu = quota.map(|quota: i64| i128::from(quota) * 1000 / i128::from(period.max(1)));
        // Shares only weigh, and huge pages cannot be resized.
        Some(PodLimits { qos, shares: 0, milli_cpu, memory_bytes, hugepages: BTreeMap::new() })
    }

    /// Memory in use by a pod, or by one container of it; `None` where it cannot be read.
    pub fn memory_in_use(&self, qos: QosClass, uid: &str, container: Option<&str>) -> Option<u64> {
        let pod = self.path(&self.names(qos, Some(uid)));
        let group = match (container, self.config.driver) {
            (None, _) => pod,
            (Some(id), CgroupDriver::Cgroupfs) => format!("{pod}/{id}"),
            (Some(id), CgroupDriver::Systemd) => format!("{pod}/cri-containerd-{id}.scope"),
        };
        let file = if self.is_v2() { "memory.current" } else { "memory.usage_in_bytes" };
        self.read("memory", &group, file)?.parse().ok()
    }

    fn read(&self, controller: &str, group: &str, file: &str) -> Option<String> {
        let tree = match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => controllers.get(controller)?,
            Hierarchy::V2(root) => root,
        };
        Some(fs::read_to_string(tree.join(group).join(file)).ok()?.trim().to_owned())
    }

    /// Removes the group of a pod, and what its containers left in it, from every tree. Gone already is success.
    ///
    /// # Errors
    ///
    /// The first failure, after all trees were tried: something still runs in the group, or just ended.
    pub fn remove_pod(&self, qos: QosClass, uid: &str) -> Result<(), CgroupError> {
        let mut first = Ok(());
        let names = self.names(qos, Some(uid));
        let group = self.path(&names);
        let there = |tree: &&Path| tree.join(&group).exists();
        if self.config.driver == CgroupDriver::Systemd && self.hierarchy.trees().iter().any(there) {
            let slice = systemd::slice(&names);
            first = systemd::stop(&slice).map_err(|source| CgroupError::Slice { slice, source });
        }
        for tree in self.hierarchy.trees() {
            let path = tree.join(&group);
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
        for tree in self.hierarchy.trees() {
            for qos in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
                let names = self.names(qos, None);
                let entries = fs::read_dir(tree.join(self.path(&names))).into_iter().flatten().flatten();
                let groups = entries.filter_map(|entry| entry.file_name().into_string().ok());
                found.extend(groups.filter_map(|group| Some((qos, self.uid_of(&names, &group)?))));
            }
        }
        found
    }

    pub(super) fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// The groups that pods' groups lie in.
    pub(super) fn class_groups(&self) -> Vec<String> {
        let classes = [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort];
        classes.map(|qos| self.path(&self.names(qos, None))).into()
    }

    /// The UID of the pod whose group this is, in the group of its class.
    fn uid_of(&self, class: &[String], group: &str) -> Option<String> {
        match self.config.driver {
            CgroupDriver::Cgroupfs => group.strip_prefix("pod").map(str::to_owned),
            CgroupDriver::Systemd => {
                let class = systemd::slice(class);
                let own = group.strip_prefix(class.strip_suffix(".slice")?)?.strip_suffix(".slice")?;
                own.strip_prefix("-pod").map(|uid| uid.replace('_', "-"))
            }
        }
    }

    /// The names of a path, or of a slice.
    fn parts(&self, path: &str) -> Vec<String> {
        let names = || path.split('/').filter(|name| !name.is_empty());
        let slice = names().next_back().and_then(|name| name.strip_suffix(".slice"));
        match (self.config.driver, slice) {
            (CgroupDriver::Systemd, Some(slice)) => slice.split('-').map(|name| name.replace('_', "-")).collect(),
            _ => names().map(str::to_owned).collect(),
        }
    }

    /// The names of the group of a class, or of one of its pods, from the root on.
    fn names(&self, qos: QosClass, uid: Option<&str>) -> Vec<String> {
        let mut names = self.parts(&self.config.root);
        names.push("kubepods".to_owned());
        match qos {
            QosClass::Guaranteed => {}
            QosClass::Burstable => names.push("burstable".to_owned()),
            QosClass::BestEffort => names.push("besteffort".to_owned()),
        }
        names.extend(uid.map(|uid| format!("pod{uid}")));
        names
    }

    /// Where the group of these names lies in a tree.
    fn path(&self, names: &[String]) -> String {
        match self.config.driver {
            CgroupDriver::Cgroupfs => names.join("/"),
            CgroupDriver::Systemd => systemd::path(names),
        }
    }

    /// Makes a group, by systemd where that is the one who makes them; whether it was missing.
    fn make(&self, names: &[String]) -> Result<bool, CgroupError> {
        let path = self.path(names);
        if self.config.driver == CgroupDriver::Cgroupfs {
            return self.make_directories(&path);
        }
        let missing = !self.hierarchy.trees().iter().any(|tree| tree.join(&path).exists());
        if missing {
            let slice = systemd::slice(names);
            systemd::start(&slice).map_err(|source| CgroupError::Slice { slice, source })?;
        }
        // systemd makes a group only in the trees that it sees a need for.
        self.make_directories(&path).map(|_| missing)
    }

    fn limit(&self, names: &[String], limits: &Limits) -> Result<(), CgroupError> {
        let group = self.path(names);
        if self.config.driver == CgroupDriver::Systemd {
            let slice = systemd::slice(names);
            let limited = systemd::limit(&slice, limits, self.is_v2());
            limited.map_err(|source| CgroupError::Slice { slice, source })?;
        }
        if let Some(shares) = limits.shares {
            self.write_shares(&group, shares)?;
        }
        if let Some((quota, period_us)) = limits.quota {
            if self.is_v2() {
                self.write("cpu", &group, "cpu.max", format!("{} {period_us}", or_max(quota)))?;
            } else {
                self.write("cpu", &group, "cpu.cfs_period_us", period_us.to_string())?;
                self.write("cpu", &group, "cpu.cfs_quota_us", quota.to_string())?;
            }
        }
        if let Some(bytes) = limits.memory_bytes {
            let (file, bytes) = match self.is_v2() {
                true => ("memory.max", or_max(bytes)),
                false => ("memory.limit_in_bytes", bytes.to_string()),
            };
            self.write("memory", &group, file, bytes)?;
        }
        match limits.pids {
            Some(limit) => self.write("pids", &group, "pids.max", limit.to_string()),
            None => Ok(()),
        }
    }

    /// Huge pages of each size that the kernel has: as many as asked for, else none (A12.5). Without the controller nobody is limited,
    /// and who asks for some is told.
    fn limit_hugepages(&self, group: &str, asked: &BTreeMap<String, i64>) -> Result<(), CgroupError> {
        let tree = match &self.hierarchy {
            Hierarchy::V2(root) => Some(root),
            Hierarchy::V1 { controllers, .. } => controllers.get("hugetlb"),
        };
        let file = if self.is_v2() { "max" } else { "limit_in_bytes" };
        let Some(path) = tree.map(|tree| tree.join(group)) else {
            return match asked.is_empty() {
                true => Ok(()),
                false => Err(CgroupError::NoController { controller: "hugetlb", path: self.config.mount.clone() }),
            };
        };
        if !self.is_v2() {
            fs::create_dir_all(&path).map_err(|source| CgroupError::Directory {
                what: "make the control group",
                path: path.clone(),
                source,
            })?;
        }
        for size in hugepage_sizes() {
            let bytes = asked.get(&size).copied().unwrap_or_default();
            let path = path.join(format!("hugetlb.{}.{file}", kernel_size(&size)));
            if path.exists() {
                write(path, bytes.to_string())?;
            } else if bytes > 0 {
                return Err(CgroupError::NoController { controller: "hugetlb", path });
            }
        }
        Ok(())
    }

    /// Makes a group in the trees that limits need; whether it was missing.
    fn make_directories(&self, group: &str) -> Result<bool, CgroupError> {
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
            let cgroups = cgroups(driver, "/");
            assert_eq!(cgroups.pod_parent(qos, "ab-c"), expected);
            let group = cgroups.path(&cgroups.names(qos, Some("ab-c")));
            let last = group.rsplit('/').next().unwrap();
            assert_eq!(cgroups.uid_of(&cgroups.names(qos, None), last).as_deref(), Some("ab-c"));
        }
    }

    #[test]
    fn groups_lie_below_the_root_that_is_configured() {
        // A12.2
        let path = |driver, root| {
            let cgroups = cgroups(driver, root);
            cgroups.path(&cgroups.names(QosClass::BestEffort, None))
        };
        assert_eq!(path(CgroupDriver::Cgroupfs, "/a/b.slice"), "a/b.slice/kubepods/besteffort");
        let slices = "a.slice/a-b.slice/a-b-kubepods.slice/a-b-kubepods-besteffort.slice";
        assert_eq!(path(CgroupDriver::Systemd, "/a-b.slice"), slices);
        assert_eq!(path(CgroupDriver::Systemd, "/a/b"), slices);
    }

    /// Needs root, and cpu, memory and pids.
    #[test]
    fn a_group_is_made_limited_and_removed() {
        // A12.5, A12.6
        let root = format!("stoker-cgroup-test-{}", std::process::id());
        let cgroups = cgroups(CgroupDriver::Cgroupfs, &root);
        let limits = PodLimits {
            qos: QosClass::Burstable,
            shares: 204,
            milli_cpu: Some(500),
            memory_bytes: Some(64 << 20),
            hugepages: BTreeMap::new(),
        };
        let path = cgroups.path(&cgroups.names(QosClass::Burstable, Some("u1")));
        cgroups.make_tree().expect("the tree");
        cgroups.make_pod("u1", &limits).expect("the pod");
        let read = |controller: &str, file: &str| {
            let tree = match &cgroups.hierarchy {
                Hierarchy::V2(root) => root,
                Hierarchy::V1 { controllers, .. } => &controllers[controller],
            };
            fs::read_to_string(tree.join(&path).join(file)).expect("a limit")
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

        // A13.2
        cgroups.limit_pods(2048, Some(1 << 30), Some(1000)).expect("limits of all pods");
        let tree = match &cgroups.hierarchy {
            Hierarchy::V2(root) => root,
            Hierarchy::V1 { controllers, .. } => &controllers["pids"],
        };
        let all = tree.join(&root).join("kubepods/pids.max");
        assert_eq!(fs::read_to_string(all).expect("a limit").trim(), "1000");
        let missing = cgroups.limit_existing(&format!("/{root}/none"), Some(100), None, None);
        assert!(matches!(missing, Err(CgroupError::NoGroup(_))));
        cgroups.limit_existing(&format!("/{root}/kubepods"), Some(100), None, None).expect("one that is there");

        let pids = |limit: &str| {
            let tree = match &cgroups.hierarchy {
                Hierarchy::V2(root) => root,
                Hierarchy::V1 { controllers, .. } => &controllers["pids"],
            };
            let group = tree.join(&path);
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

    #[test]
    #[ignore = "needs systemd as the machine's init"]
    fn slices_are_made_limited_and_ended() {
        // A12.2, A12.5, A12.6
        let cgroups = cgroups(CgroupDriver::Systemd, "/stokertest");
        let limits = PodLimits {
            qos: QosClass::Burstable,
            shares: 1024,
            milli_cpu: Some(500),
            memory_bytes: Some(64 << 20),
            hugepages: BTreeMap::new(),
        };
        cgroups.make_tree().expect("the tree");
        cgroups.make_tree().expect("the tree again");
        cgroups.set_burstable_shares(2048).expect("shares");
        cgroups.make_pod("u-1", &limits).expect("the pod");
        let asked = |unit: &str, property: &str| {
            let output = std::process::Command::new("systemctl").args(["show", "-P", property, unit]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        let pod = "stokertest-kubepods-burstable-podu_1.slice";
        assert_eq!(cgroups.pod_parent(QosClass::Burstable, "u-1"), pod);
        assert_eq!(asked(pod, "ActiveState"), "active");
        assert_eq!(asked(pod, "TasksMax"), "100");
        let tree = cgroups.hierarchy.trees()[0].to_owned();
        let group = tree.join(cgroups.path(&cgroups.names(QosClass::Burstable, Some("u-1"))));
        let check = || {
            if cgroups.is_v2() {
                let read = |file: &str| fs::read_to_string(group.join(file)).expect("a limit").trim().to_owned();
                assert_eq!(read("cpu.max"), "50000 100000");
                assert_eq!(read("cpu.weight"), "39");
                assert_eq!(read("memory.max"), (64 << 20).to_string());
                assert_eq!(read("pids.max"), "100");
            }
        };
        check();
        let reloaded = std::process::Command::new("systemctl").arg("daemon-reload").status().expect("systemctl");
        assert!(reloaded.success());
        check();
        assert_eq!(cgroups.pods(), BTreeSet::from([(QosClass::Burstable, "u-1".to_owned())]));
        cgroups.remove_pod(QosClass::Burstable, "u-1").expect("the slice ends");
        cgroups.remove_pod(QosClass::Burstable, "u-1").expect("again is harmless");
        assert!(!group.exists() && cgroups.pods().is_empty());
        assert_ne!(asked(pod, "ActiveState"), "active");
        for slice in
            ["stokertest-kubepods-besteffort", "stokertest-kubepods-burstable", "stokertest-kubepods", "stokertest"]
        {
            systemd::stop(&format!("{slice}.slice")).expect("it ends");
        }
    }
}
