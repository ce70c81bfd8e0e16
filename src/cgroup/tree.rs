//! [`Cgroups`]: makes, limits and removes the groups of `kubepods` and of the pods in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_model::resources::QosClass;

use super::hierarchy::Hierarchy;
use super::kept::KeptGroups;
use super::limits::{PodLimits, cpu_quota_us};
use super::systemd::{self, Limits, UNLIMITED};
use super::write::{remove_below, timed};

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
    pub(super) config: CgroupConfig,
    pub(super) hierarchy: Hierarchy,
    pub(super) kept: KeptGroups,
    pub(super) counts_swap: bool,
}

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
        let counts_swap = hierarchy.counts_swap();
        Ok(Self { config, hierarchy, kept: KeptGroups::default(), counts_swap })
    }

    /// Whether the node has cgroup v2.
    pub fn is_v2(&self) -> bool {
        matches!(self.hierarchy, Hierarchy::V2(_))
    }

    /// Whether the kernel limits swap by group (A12.12).
    pub const fn counts_swap(&self) -> bool {
        self.counts_swap
    }

    /// The machine's swap in bytes.
    pub fn swap_bytes() -> i64 {
        let told = rustix::system::sysinfo();
        i64::try_from(u64::from(told.mem_unit).saturating_mul(told.totalswap)).unwrap_or(i64::MAX)
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
        // Somebody may have removed it.
        let class = self.path(&self.names(limits.qos, None));
        if !self.needed_trees().all(|tree| tree.join(&class).exists()) {
            self.make_tree()?;
        }
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
        timed("destroy", || self.remove_pod_now(qos, uid))
    }

    fn remove_pod_now(&self, qos: QosClass, uid: &str) -> Result<(), CgroupError> {
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
    pub(super) fn path(&self, names: &[String]) -> String {
        match self.config.driver {
            CgroupDriver::Cgroupfs => names.join("/"),
            CgroupDriver::Systemd => systemd::path(names),
        }
    }
}

#[cfg(test)]
mod tests;
