//! What groups have used: read from their files when somebody asks, never before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, RawDir};
use stoker_model::handle::{GroupDetails, GroupLimits, InterfaceUsage, PodUsage, Stalls, Usage, UsageReader};

use super::hierarchy::Hierarchy;
use super::kept::{Files, Inside, read};
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
            if let Some(root) = self.usage("").filter(|root| root.memory_bytes > 0) {
                (usage.memory_bytes, usage.working_set_bytes) = (root.memory_bytes, root.working_set_bytes);
            }
        }
        usage
    }

    fn pods(&self) -> Vec<PodUsage> {
        self.read_pods(None)
    }

    fn pods_with(&self, containers: &BTreeSet<String>) -> Vec<PodUsage> {
        self.read_pods(Some(containers))
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

    fn details(&self, group: &str, usage: &Usage, limits: &GroupLimits) -> GroupDetails {
        self.read_details(group.trim_start_matches('/'), usage, limits)
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
            .filter_map(|(name, group)| Some((name, format!("/{group}"), self.usage(&group)?)))
            .collect()
    }

    fn memory_groups(&self) -> Option<[PathBuf; 2]> {
        let Hierarchy::V1 { controllers, .. } = self.hierarchy() else { return None };
        let tree = controllers.get("memory")?;
        Some([tree.clone(), tree.join(self.class_groups().first()?)])
    }

    fn all_pods(&self) -> Usage {
        // That of the guaranteed class is the one that all others lie in.
        self.class_groups().first().and_then(|group| self.usage(group)).unwrap_or_default()
    }
}

impl Cgroups {
    fn read_pods(&self, wanted: Option<&BTreeSet<String>>) -> Vec<PodUsage> {
        self.pod_groups().into_iter().filter_map(|(uid, group)| self.pod(uid, group, wanted)).collect()
    }

    /// A pod with its containers, or with those that are wanted; `None` where its group has gone.
    fn pod(&self, uid: String, group: String, wanted: Option<&BTreeSet<String>>) -> Option<PodUsage> {
        let usage = self.usage(&group)?;
        let inside = self.inside(&group, &usage);
        let (mut containers, mut container_groups) = (BTreeMap::new(), BTreeMap::new());
        for name in &inside.groups {
            let id = container_id(name);
            if wanted.is_none_or(|wanted| wanted.contains(id)) {
                let inside = format!("{group}/{name}");
                let Some(usage) = self.usage(&inside) else { continue };
                containers.insert(id.to_owned(), usage);
                container_groups.insert(id.to_owned(), format!("/{inside}"));
            }
        }
        let network = inside.process.as_ref().map(|process| read(format!("/proc/{process}/net/dev")));
        let interfaces = interfaces(&network.unwrap_or_default());
        Some(PodUsage { uid, usage, group: format!("/{group}"), containers, container_groups, interfaces })
    }

    /// What is in a pod's group, which has used that much. A container comes, and a process ends, only when something runs in it.
    fn inside(&self, group: &str, usage: &Usage) -> Arc<Inside> {
        let cpu = usage.cpu_nanoseconds;
        self.kept.read(self.hierarchy(), group, |it| {
            if let Some((at, inside)) = &it.seen().inside
                && has_not_run(*at, cpu)
            {
                return inside.clone();
            }
            let tree = self.memory_tree();
            let groups = directories(&tree.join(group));
            let process = groups.iter().find_map(|name| {
                let processes = read(tree.join(group).join(name).join("cgroup.procs"));
                processes.lines().next().map(str::to_owned)
            });
            let inside = Arc::new(Inside { groups, process });
            it.seen().inside = Some((cpu, inside.clone()));
            inside
        })
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

    /// `None` where the group has gone.
    fn usage(&self, group: &str) -> Option<Usage> {
        self.kept.read(self.hierarchy(), group, |it| {
            let before = it.seen().usage;
            let usage = match self.hierarchy() {
                Hierarchy::V2(_) => of_v2(it, before),
                Hierarchy::V1 { .. } => of_v1(it, before),
            };
            it.seen().usage = usage;
            usage
        })
    }
}

/// Whether nothing has run in a group between two looks that found so much processor time used.
pub(super) fn has_not_run(before: u64, now: u64) -> bool {
    before == now && now > 0
}

fn of_v2(group: &mut impl Files, before: Option<Usage>) -> Option<Usage> {
    let cpu = ["usage_usec", "user_usec", "system_usec"];
    let cpu = fields(group.text("", "cpu.stat"), cpu).map(|microseconds| microseconds.map(|it| it * 1000));
    let memory = number(group.text("", "memory.current"));
    if cpu[0].is_none() && memory.is_none() {
        return None;
    }
    let stat = ["anon", "file", "file_mapped", "inactive_file", "pgfault", "pgmajfault"];
    let [anonymous, file, mapped, inactive, faults, major] =
        fields(group.text("", "memory.stat"), stat).map(Option::unwrap_or_default);
    let [used, user, system] = cpu.map(Option::unwrap_or_default);
    let memory_bytes = memory.unwrap_or_default();
    let processes = match before.filter(|it| has_not_run(it.cpu_nanoseconds, used)) {
        Some(it) => it.processes,
        None => number(group.text("", "pids.current")).unwrap_or_default(),
    };
    Some(Usage {
        cpu_nanoseconds: used,
        cpu_user_nanoseconds: user,
        cpu_system_nanoseconds: system,
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(inactive),
        rss_bytes: anonymous,
        cache_bytes: file,
        mapped_bytes: mapped,
        swap_bytes: number(group.text("", "memory.swap.current")).unwrap_or_default(),
        memory_limit_bytes: number(group.text("", "memory.max")),
        page_faults: faults,
        major_page_faults: major,
        processes,
    })
}

fn of_v1(group: &mut impl Files, before: Option<Usage>) -> Option<Usage> {
    let cpu = number(group.text("cpuacct", "cpuacct.usage"));
    let memory = number(group.text("memory", "memory.usage_in_bytes"));
    if cpu.is_none() && memory.is_none() {
        return None;
    }
    let (cpu_nanoseconds, memory_bytes) = (cpu.unwrap_or_default(), memory.unwrap_or_default());
    let stat = [
        "total_rss",
        "total_cache",
        "total_mapped_file",
        "total_swap",
        "total_inactive_file",
        "total_pgfault",
        "total_pgmajfault",
    ];
    let [anonymous, cache, mapped, swap, inactive, faults, major] =
        fields(group.text("memory", "memory.stat"), stat).map(Option::unwrap_or_default);
    let limit = number(group.text("memory", "memory.limit_in_bytes"));
    let (user, system, processes) = match before.filter(|it| has_not_run(it.cpu_nanoseconds, cpu_nanoseconds)) {
        Some(it) => (it.cpu_user_nanoseconds, it.cpu_system_nanoseconds, it.processes),
        None => {
            let times = fields(group.text("cpuacct", "cpuacct.stat"), ["user", "system"]);
            let [user, system] = times.map(|ticks| ticks.unwrap_or_default() * TICK_NANOSECONDS);
            (user, system, number(group.text("pids", "pids.current")).unwrap_or_default())
        }
    };
    Some(Usage {
        cpu_nanoseconds,
        cpu_user_nanoseconds: user,
        cpu_system_nanoseconds: system,
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(inactive),
        rss_bytes: anonymous,
        cache_bytes: cache,
        mapped_bytes: mapped,
        swap_bytes: swap,
        memory_limit_bytes: limit.filter(|limit| *limit < NO_LIMIT),
        page_faults: faults,
        major_page_faults: major,
        processes,
    })
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
    let [number] = fields(text, [name]);
    number
}

/// Lines `name number …`, in one go.
pub(super) fn fields<const N: usize>(text: &str, names: [&str; N]) -> [Option<u64>; N] {
    let mut found = [None; N];
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(' ') else { continue };
        if let Some(nth) = names.iter().position(|of| *of == name) {
            found[nth] = rest.split_whitespace().next().and_then(|number| number.parse().ok());
        }
    }
    found
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Files of a group with their texts; those of v1 are named with their controller.
    #[derive(Clone)]
    pub(in crate::cgroup) struct Texts(pub(in crate::cgroup) &'static [(&'static str, &'static str)]);

    impl Files for Texts {
        fn text(&mut self, controller: &str, name: &'static str) -> &str {
            let of = |path: &str| match path.split_once('/') {
                Some((of, file)) => (of, file) == (controller, name),
                None => path == name,
            };
            self.0.iter().find(|(path, _)| of(path)).map(|(_, text)| *text).unwrap_or_default()
        }
    }

    const MEMORY_OF_ONE: &str = "total_rss 100\ntotal_cache 50\nmapped_file 1\ntotal_mapped_file 40\ntotal_inactive_file 30\ntotal_pgfault 9\ntotal_pgmajfault 1\nrss 1\n";

    #[test]
    fn both_versions_give_the_same_numbers() {
        // A13.6
        let two = Texts(&[
            ("cpu.stat", "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\n"),
            ("memory.stat", "anon 100\nfile 50\nfile_mapped 40\ninactive_file 30\npgfault 9\npgmajfault 1\n"),
            ("memory.current", "200\n"),
            ("memory.max", "max\n"),
            ("pids.current", "4\n"),
        ]);
        let one = Texts(&[
            ("cpuacct/cpuacct.usage", "3000000\n"),
            ("cpuacct/cpuacct.stat", "user 0\nsystem 0\n"),
            ("memory/memory.stat", MEMORY_OF_ONE),
            ("memory/memory.usage_in_bytes", "200\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("pids/pids.current", "4\n"),
        ]);
        let (two, one) = (of_v2(&mut two.clone(), None).unwrap(), of_v1(&mut one.clone(), None).unwrap());
        assert_eq!((two.working_set_bytes, two.cpu_nanoseconds, two.memory_limit_bytes), (170, 3_000_000, None));
        assert_eq!(Usage { cpu_user_nanoseconds: 2_000_000, cpu_system_nanoseconds: 1_000_000, ..one }, two);
        assert_eq!((of_v1(&mut Texts(&[]), None), of_v2(&mut Texts(&[]), None)), (None, None), "the group has gone");
    }

    #[test]
    fn what_only_running_changes_is_read_when_something_ran() {
        // A13.6
        let before = Some(Usage { cpu_nanoseconds: 3000, processes: 7, memory_bytes: 1, ..Usage::default() });
        let told = |usage: Option<Usage>| usage.map(|it| (it.processes, it.memory_bytes));
        let two = Texts(&[("cpu.stat", "usage_usec 3\n"), ("memory.current", "200\n"), ("pids.current", "4\n")]);
        let one = Texts(&[
            ("cpuacct/cpuacct.usage", "3000\n"),
            ("memory/memory.usage_in_bytes", "200\n"),
            ("pids/pids.current", "4\n"),
        ]);
        for (before, processes) in [(before, 7), (None, 4), (before.map(|it| Usage { cpu_nanoseconds: 2000, ..it }), 4)]
        {
            assert_eq!(told(of_v2(&mut two.clone(), before)), Some((processes, 200)));
            assert_eq!(told(of_v1(&mut one.clone(), before)), Some((processes, 200)));
        }
        assert!(!has_not_run(0, 0), "who does not tell the time may have run");
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
