//! What groups have used: read from their files when somebody asks, never before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, RawDir};
use stoker_model::handle::{GroupDetails, GroupLimits, InterfaceUsage, PodUsage, Stalls, Usage, UsageReader};

use super::hierarchy::Hierarchy;
use super::kept::read;
use super::tree::Cgroups;

/// A clock tick of `/proc/stat`: 1/100 s on every architecture that Linux has users on.
const TICK_NANOSECONDS: u64 = 10_000_000;
/// v1 writes "no limit" as the largest multiple of a page.
const NO_LIMIT: u64 = 1 << 62;

impl UsageReader for Cgroups {
    fn node(&self) -> PodUsage {
        PodUsage {
            group: "/".to_owned(),
            usage: self.machine(),
            interfaces: interfaces(&read("/proc/net/dev")),
            ..PodUsage::default()
        }
    }

    fn machine(&self) -> Usage {
        let mut usage = of_machine(&read("/proc/stat"), &read("/proc/meminfo"), &read("/proc/vmstat"));
        if let Hierarchy::V1 { .. } = self.hierarchy() {
            // There the root group counts for itself, without the kernel's own memory (A13.6).
            let root = self.usage("");
            if root.memory_bytes > 0 {
                (usage.memory_bytes, usage.working_set_bytes) = (root.memory_bytes, root.working_set_bytes);
            }
        }
        usage
    }

    fn pods(&self) -> Vec<PodUsage> {
        self.pod_groups().into_iter().map(|(uid, group)| self.pod(uid, group, None)).collect()
    }

    fn pods_with(&self, containers: &BTreeSet<String>) -> Vec<PodUsage> {
        self.pod_groups().into_iter().map(|(uid, group)| self.pod(uid, group, Some(containers))).collect()
    }

    fn swap_limit_bytes(&self, group: &str) -> Option<u64> {
        self.read_swap_limit(group.trim_start_matches('/'))
    }

    fn stalls(&self, group: &str) -> Stalls {
        self.read_stalls(group)
    }

    fn limits(&self, group: &str) -> GroupLimits {
        self.read_limits(group.trim_start_matches('/'))
    }

    fn details(&self, group: &str, limits: &GroupLimits) -> GroupDetails {
        self.read_details(group.trim_start_matches('/'), limits)
    }

    fn system_groups(&self) -> Vec<(&'static str, String, Usage)> {
        let own = read("/proc/self/cgroup");
        let own = match self.hierarchy() {
            Hierarchy::V2(_) => own.lines().find_map(|line| line.strip_prefix("0::/")),
            Hierarchy::V1 { .. } => own.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                controllers.split(',').any(|controller| controller == "memory").then(|| path.trim_start_matches('/'))
            }),
        };
        let pods = self.class_groups().into_iter().next();
        // Without a group of its own the agent has nothing to tell apart.
        let own = own.filter(|group| !group.is_empty()).map(str::to_owned);
        let named = [("kubelet", own), ("pods", pods)];
        named
            .into_iter()
            .filter_map(|(name, group)| Some((name, group?)))
            .map(|(name, group)| {
                let usage = self.usage(&group);
                (name, format!("/{group}"), usage)
            })
            .collect()
    }

    fn memory_groups(&self) -> Option<[PathBuf; 2]> {
        let Hierarchy::V1 { controllers, .. } = self.hierarchy() else { return None };
        let tree = controllers.get("memory")?;
        Some([tree.clone(), tree.join(self.class_groups().first()?)])
    }

    fn all_pods(&self) -> Usage {
        // That of the guaranteed class is the one that all others lie in.
        self.class_groups().first().map(|group| self.usage(group)).unwrap_or_default()
    }
}

impl Cgroups {
    /// A pod with its containers, or with those that are wanted.
    fn pod(&self, uid: String, group: String, wanted: Option<&BTreeSet<String>>) -> PodUsage {
        let (mut containers, mut container_groups) = (BTreeMap::new(), BTreeMap::new());
        let mut interfaces_seen = Vec::new();
        for name in directories(&self.memory_tree().join(&group)) {
            let inside = format!("{group}/{name}");
            if interfaces_seen.is_empty() {
                // Every container of the pod is in the same network.
                let processes = read(self.memory_tree().join(&inside).join("cgroup.procs"));
                if let Some(process) = processes.lines().next() {
                    interfaces_seen = interfaces(&read(format!("/proc/{process}/net/dev")));
                }
            }
            let id = container_id(&name);
            if wanted.is_none_or(|wanted| wanted.contains(id)) {
                containers.insert(id.to_owned(), self.usage(&inside));
                container_groups.insert(id.to_owned(), format!("/{inside}"));
            }
        }
        let usage = self.usage(&group);
        PodUsage { uid, usage, group: format!("/{group}"), containers, container_groups, interfaces: interfaces_seen }
    }

    fn memory_tree(&self) -> PathBuf {
        match self.hierarchy() {
            Hierarchy::V2(root) => root.clone(),
            Hierarchy::V1 { controllers, .. } => controllers.get("memory").cloned().unwrap_or_default(),
        }
    }

    /// UIDs with their groups, below the mount.
    fn pod_groups(&self) -> Vec<(String, String)> {
        let tree = self.memory_tree();
        let mut found = Vec::new();
        for class in self.class_groups() {
            for name in directories(&tree.join(&class)) {
                if let Some(uid) = pod_uid(&name) {
                    found.push((uid, format!("{class}/{name}")));
                }
            }
        }
        found
    }

    fn usage(&self, group: &str) -> Usage {
        match self.hierarchy() {
            Hierarchy::V2(root) => {
                let path = root.join(group);
                let file = |name: &str| self.kept.read(path.join(name));
                of_v2(&file("cpu.stat"), &file("memory.stat"), |name| number(&file(name)))
            }
            Hierarchy::V1 { controllers, .. } => {
                let file = |controller: &str, name: &str| {
                    let path = controllers.get(controller).map(|tree| tree.join(group).join(name));
                    path.map(|path| self.kept.read(path)).unwrap_or_default()
                };
                of_v1(&file("memory", "memory.stat"), &file("cpuacct", "cpuacct.stat"), |controller, name| {
                    number(&file(controller, name))
                })
            }
        }
    }
}

fn of_v2(cpu: &str, memory: &str, number: impl Fn(&str) -> Option<u64>) -> Usage {
    let cpu = |name| field(cpu, name).unwrap_or_default();
    let stat = |name| field(memory, name).unwrap_or_default();
    let memory_bytes = number("memory.current").unwrap_or_default();
    Usage {
        cpu_nanoseconds: cpu("usage_usec") * 1000,
        cpu_user_nanoseconds: cpu("user_usec") * 1000,
        cpu_system_nanoseconds: cpu("system_usec") * 1000,
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(stat("inactive_file")),
        rss_bytes: stat("anon"),
        cache_bytes: stat("file"),
        mapped_bytes: stat("file_mapped"),
        swap_bytes: number("memory.swap.current").unwrap_or_default(),
        memory_limit_bytes: number("memory.max"),
        page_faults: stat("pgfault"),
        major_page_faults: stat("pgmajfault"),
        processes: number("pids.current").unwrap_or_default(),
    }
}

fn of_v1(memory: &str, times: &str, number: impl Fn(&str, &str) -> Option<u64>) -> Usage {
    let stat = |name| field(memory, name).unwrap_or_default();
    let time = |name| field(times, name).unwrap_or_default() * TICK_NANOSECONDS;
    let memory_bytes = number("memory", "memory.usage_in_bytes").unwrap_or_default();
    Usage {
        cpu_nanoseconds: number("cpuacct", "cpuacct.usage").unwrap_or_default(),
        cpu_user_nanoseconds: time("user"),
        cpu_system_nanoseconds: time("system"),
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(stat("total_inactive_file")),
        rss_bytes: stat("total_rss"),
        cache_bytes: stat("total_cache"),
        mapped_bytes: stat("total_mapped_file"),
        swap_bytes: stat("total_swap"),
        memory_limit_bytes: number("memory", "memory.limit_in_bytes").filter(|limit| *limit < NO_LIMIT),
        page_faults: stat("total_pgfault"),
        major_page_faults: stat("total_pgmajfault"),
        processes: number("pids", "pids.current").unwrap_or_default(),
    }
}

/// The root group of v2 has no such files: `/proc` tells the same of the machine.
fn of_machine(stat: &str, meminfo: &str, vmstat: &str) -> Usage {
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map(|word| word.parse().unwrap_or_default())
        .collect();
    let tick = |nth: usize| ticks.get(nth).copied().unwrap_or_default() * TICK_NANOSECONDS;
    // user, nice, system, idle, iowait, irq, softirq, steal.
    let (user, system) = (tick(0) + tick(1), tick(2) + tick(5) + tick(6));
    let memory = |name: &str| field(meminfo, &format!("{name}:")).unwrap_or_default() * 1024;
    let memory_bytes = memory("MemTotal").saturating_sub(memory("MemFree"));
    Usage {
        cpu_nanoseconds: user + system,
        cpu_user_nanoseconds: user,
        cpu_system_nanoseconds: system,
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(memory("Inactive(file)")),
        rss_bytes: memory("AnonPages"),
        cache_bytes: memory("Cached"),
        swap_bytes: memory("SwapTotal").saturating_sub(memory("SwapFree")),
        memory_limit_bytes: Some(memory("MemTotal")),
        page_faults: field(vmstat, "pgfault").unwrap_or_default(),
        major_page_faults: field(vmstat, "pgmajfault").unwrap_or_default(),
        ..Usage::default()
    }
}

/// `/proc/<pid>/net/dev`, without loopback.
fn interfaces(text: &str) -> Vec<InterfaceUsage> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let four = |from: usize| numbers.get(from..from + 4)?.try_into().ok();
        Some(InterfaceUsage { name: name.trim().to_owned(), received: four(0)?, sent: four(8)? })
    };
    text.lines().filter_map(interface).filter(|interface| interface.name != "lo").collect()
}

/// `kubepods/burstable/pod<uid>` or `kubepods-burstable-pod<uid with _>.slice`.
fn pod_uid(name: &str) -> Option<String> {
    match name.strip_suffix(".slice") {
        Some(slice) => slice.split_once("-pod").map(|(_, uid)| uid.replace('_', "-")),
        None => name.strip_prefix("pod").map(str::to_owned),
    }
}

/// Whether a group is a pod's own.
pub(super) fn is_pod(group: &str) -> bool {
    group.rsplit('/').next().is_some_and(|name| pod_uid(name).is_some())
}

/// `<id>` or `cri-containerd-<id>.scope`.
fn container_id(name: &str) -> &str {
    name.strip_suffix(".scope").and_then(|name| name.rsplit('-').next()).unwrap_or(name)
}

/// The directories in one. A group has a few, and dozens of files, whose names nobody needs.
fn directories(path: &Path) -> Vec<String> {
    let Ok(folder) = File::open(path) else { return Vec::new() };
    let (mut buffer, mut found) = ([MaybeUninit::uninit(); 4096], Vec::new());
    let mut entries = RawDir::new(&folder, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name().to_string_lossy();
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            found.push(name.into_owned());
        }
    }
    found
}

pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A line `name number …`.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    let of_line = |line: &str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(' ').then(|| rest.split_whitespace().next()?.parse().ok()).flatten()
    };
    text.lines().find_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_give_the_same_numbers() {
        // A13.6
        let two = of_v2(
            "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\n",
            "anon 100\nfile 50\nfile_mapped 40\ninactive_file 30\npgfault 9\npgmajfault 1\n",
            |name| match name {
                "memory.current" => Some(200),
                "pids.current" => Some(4),
                _ => None,
            },
        );
        let one = of_v1(
            "total_rss 100\ntotal_cache 50\nmapped_file 1\ntotal_mapped_file 40\ntotal_inactive_file 30\ntotal_pgfault 9\ntotal_pgmajfault 1\nrss 1\n",
            "user 0\nsystem 0\n",
            |_, name| match name {
                "cpuacct.usage" => Some(3_000_000),
                "memory.usage_in_bytes" => Some(200),
                "memory.limit_in_bytes" => Some(9_223_372_036_854_771_712),
                "pids.current" => Some(4),
                _ => None,
            },
        );
        assert_eq!((two.working_set_bytes, two.cpu_nanoseconds, two.memory_limit_bytes), (170, 3_000_000, None));
        assert_eq!(Usage { cpu_user_nanoseconds: 2_000_000, cpu_system_nanoseconds: 1_000_000, ..one }, two);
    }

    #[test]
    fn the_machine_is_read_from_proc() {
        // A13.6
        let usage = of_machine(
            "cpu  10 1 5 100 3 1 1 0\n",
            "MemTotal: 100 kB\nMemFree: 40 kB\nInactive(file): 10 kB\n",
            "pgfault 3\n",
        );
        assert_eq!((usage.cpu_nanoseconds, usage.working_set_bytes), (180_000_000, 50 * 1024));
    }

    #[test]
    fn names_of_both_drivers_are_read() {
        assert_eq!(pod_uid("poda-b").as_deref(), Some("a-b"));
        assert_eq!(pod_uid("kubepods-besteffort-poda_b.slice").as_deref(), Some("a-b"));
        assert_eq!(pod_uid("burstable"), None);
        assert_eq!(container_id("cri-containerd-0a1b.scope"), "0a1b");
        assert_eq!(container_id("0a1b"), "0a1b");
    }

    #[test]
    fn interfaces_are_read_without_loopback() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 20 5 6 7 0 0 0 0\n";
        let found = interfaces(text);
        assert_eq!(found, [InterfaceUsage { name: "eth0".into(), received: [10, 2, 3, 4], sent: [20, 5, 6, 7] }]);
    }
}
