//! Writes groups and their limits into the trees, for both drivers and both versions.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use stoker_model::metrics;

use super::hierarchy::Hierarchy;
use super::limits::{cpu_weight, hugepage_sizes, kernel_size};
use super::systemd::{self, Limits, UNLIMITED};
use super::tree::{CgroupDriver, CgroupError, Cgroups};
use crate::clock::Clock;

/// The controllers that pods are limited with.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// A limit as cgroup v2 writes it.
fn or_max(limit: i64) -> String {
    if limit == UNLIMITED { "max".to_owned() } else { limit.to_string() }
}

/// Does it, and counts how long it took (A23.3).
pub(super) fn timed<T>(operation: &str, work: impl FnOnce() -> T) -> T {
    let begun = Clock.now().monotonic;
    let done = work();
    metrics::CGROUP_MANAGER_DURATION.observe(&[operation], Clock.now().monotonic.saturating_sub(begun));
    done
}

impl Cgroups {
    /// Makes a group, by systemd where that is the one who makes them; whether it was missing.
    pub(super) fn make(&self, names: &[String]) -> Result<bool, CgroupError> {
        timed("create", || self.make_now(names))
    }

    fn make_now(&self, names: &[String]) -> Result<bool, CgroupError> {
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

    pub(super) fn limit(&self, names: &[String], limits: &Limits) -> Result<(), CgroupError> {
        timed("update", || self.limit_now(names, limits))
    }

    fn limit_now(&self, names: &[String], limits: &Limits) -> Result<(), CgroupError> {
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
    pub(super) fn limit_hugepages(&self, group: &str, asked: &BTreeMap<String, i64>) -> Result<(), CgroupError> {
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

    /// The trees that limits need.
    pub(super) fn needed_trees(&self) -> impl Iterator<Item = &Path> {
        let (one, several) = match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => (None, Some(controllers)),
            Hierarchy::V2(root) => (Some(root), None),
        };
        let several = several.into_iter().flat_map(|trees| CONTROLLERS.into_iter().filter_map(|name| trees.get(name)));
        one.into_iter().chain(several).map(PathBuf::as_path)
    }

    /// Makes a group in the trees that limits need; whether it was missing.
    fn make_directories(&self, group: &str) -> Result<bool, CgroupError> {
        let make = |path: &Path| {
            let made = match fs::create_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(path),
                other => other,
            };
            made.map(|()| true).map_err(|source| CgroupError::Directory {
                what: "make the control group",
                path: path.into(),
                source,
            })
        };
        match &self.hierarchy {
            Hierarchy::V1 { .. } => {
                let mut missing = false;
                for tree in self.needed_trees() {
                    missing |= make(&tree.join(group))?;
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

    pub(super) fn has_containers(&self, group: &str) -> bool {
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
pub(super) fn remove_below(path: &Path) -> io::Result<()> {
    // Most have none below them.
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => return Ok(()),
    }
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
