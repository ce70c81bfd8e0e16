//! What metrics tell of a group besides what it used: how long it waited, its limits, its block devices, its open files (A23.2, A23.4).

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::path::PathBuf;

use rustix::fs::{RawDir, readlinkat_raw};
use stoker_model::handle::{DeviceUsage, GroupDetails, GroupLimits, Stall, StallTime, Stalls};

use super::hierarchy::Hierarchy;
use super::kept::read;
use super::tree::Cgroups;
use super::usage::{field, is_pod, number};

/// v1 writes "no limit" as the largest multiple of a page.
const NO_LIMIT: u64 = 1 << 62;

impl Cgroups {
    /// The kernel tells it of groups of cgroup v2 only.
    pub(super) fn read_stalls(&self, group: &str) -> Stalls {
        let Hierarchy::V2(root) = self.hierarchy() else { return Stalls::default() };
        let file = |resource: &str| match group {
            "/" => PathBuf::from(format!("/proc/pressure/{resource}")),
            group => root.join(group.trim_start_matches('/')).join(format!("{resource}.pressure")),
        };
        let of = |resource| stall(&self.kept.read(file(resource)));
        Stalls { cpu: of("cpu"), memory: of("memory"), io: of("io") }
    }

    pub(super) fn read_swap_limit(&self, group: &str) -> Option<u64> {
        match self.hierarchy() {
            Hierarchy::V2(root) => swap_limit_of_v2(&read(root.join(group).join("memory.swap.max"))),
            Hierarchy::V1 { controllers, .. } => {
                let file = |tree: &PathBuf| read(tree.join(group).join("memory.memsw.limit_in_bytes"));
                swap_limit_of_v1(&controllers.get("memory").map(file).unwrap_or_default())
            }
        }
    }

    /// The text of a file of the group, read in that way; the controller it belongs to is asked about by v1 only.
    fn file<'a>(&'a self, group: &'a str, read: impl Fn(PathBuf) -> String + 'a) -> impl Fn(&str, &str) -> String + 'a {
        move |controller, name| {
            let tree = match self.hierarchy() {
                Hierarchy::V2(root) => Some(root),
                Hierarchy::V1 { controllers, .. } => controllers.get(controller),
            };
            tree.map(|tree| read(tree.join(group).join(name))).unwrap_or_default()
        }
    }

    pub(super) fn read_limits(&self, group: &str) -> GroupLimits {
        let file = self.file(group, read);
        match self.hierarchy() {
            Hierarchy::V2(_) => limits_of_v2(|name| file("", name)),
            Hierarchy::V1 { .. } => limits_of_v1(file),
        }
    }

    pub(super) fn read_details(&self, group: &str, limits: &GroupLimits) -> GroupDetails {
        let file = self.file(group, |path| self.kept.read(path));
        // Without a limit nothing is held up.
        let is_limited = limits.cpu_quota > 0;
        let details = match self.hierarchy() {
            Hierarchy::V2(_) => of_v2(|name| file("", name), is_limited),
            Hierarchy::V1 { .. } => of_v1(&file, is_limited),
        };
        // Not kept: v1 tells who has it open what it told before. A pod's own group has none.
        let processes = if is_pod(group) { String::new() } else { self.file(group, read)("memory", "cgroup.procs") };
        let (open_files, sockets) = processes.lines().map(open_files).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let first = processes.lines().next();
        let limits = first.map(|process| self.kept.read(format!("/proc/{process}/limits").into())).unwrap_or_default();
        GroupDetails {
            processes: u64::try_from(processes.lines().count()).unwrap_or_default(),
            open_files,
            sockets,
            open_files_limit: open_files_limit(&limits),
            devices: named(details.devices),
            ..details
        }
    }
}

/// A file like `cpu.pressure`.
fn stall(text: &str) -> Option<Stall> {
    let line = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let value = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let average = |name| value(name).and_then(|text| text.parse().ok()).unwrap_or_default();
        let averages = [average("avg10"), average("avg60"), average("avg300")];
        Some(StallTime { total: value("total")?.parse().ok()?, averages })
    };
    // The processors of the whole machine cannot all be waited for: old kernels leave that line out.
    Some(Stall { some: line("some")?, full: line("full").unwrap_or_default() })
}

fn limits_of_v2(file: impl Fn(&str) -> String) -> GroupLimits {
    let bytes = |name: &str| number(&file(name)).unwrap_or_default();
    let max = file("cpu.max");
    let mut max = max.split_whitespace();
    let weight = bytes("cpu.weight");
    GroupLimits {
        // The other way round than it was written (A12.4).
        cpu_shares: if weight == 0 { 0 } else { 2 + (weight - 1) * 262_142 / 9999 },
        cpu_quota: max.next().and_then(|text| text.parse().ok()).unwrap_or_default(),
        cpu_period: max.next().and_then(|text| text.parse().ok()).unwrap_or_default(),
        memory_reservation_bytes: bytes("memory.low"),
        swap_limit_bytes: swap_limit_of_v2(&file("memory.swap.max")),
        threads_max: bytes("pids.max"),
    }
}

fn of_v2(file: impl Fn(&str) -> String, is_limited: bool) -> GroupDetails {
    let events = file("memory.events");
    let event = |name| field(&events, name).unwrap_or_default();
    let stat = if is_limited { file("cpu.stat") } else { String::new() };
    let throttled = |name| field(&stat, name).unwrap_or_default();
    GroupDetails {
        devices: file("io.stat").lines().filter_map(device_of_v2).collect(),
        memory_failures: event("max"),
        most_memory_bytes: number(&file("memory.peak")).unwrap_or_default(),
        oom_kills: event("oom_kill"),
        cpu_periods: throttled("nr_periods"),
        cpu_throttled_periods: throttled("nr_throttled"),
        cpu_throttled_nanoseconds: throttled("throttled_usec") * 1000,
        ..GroupDetails::default()
    }
}

fn swap_limit_of_v2(text: &str) -> Option<u64> {
    (text.trim() != "max").then(|| number(text).unwrap_or_default())
}

fn swap_limit_of_v1(text: &str) -> Option<u64> {
    Some(number(text).unwrap_or_default()).filter(|bytes| *bytes < NO_LIMIT)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn device_of_v2(line: &str) -> Option<DeviceUsage> {
    let (numbers, rest) = line.split_once(' ')?;
    let value = |name: &str| {
        let of = |word: &str| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
        rest.split(' ').find_map(of).unwrap_or_default()
    };
    Some(DeviceUsage {
        device: String::new(),
        numbers: device_numbers(numbers)?,
        bytes: [value("rbytes"), value("wbytes")],
        operations: [value("rios"), value("wios")],
    })
}

fn limits_of_v1(file: impl Fn(&str, &str) -> String) -> GroupLimits {
    let count = |controller: &str, name: &str| number(&file(controller, name)).unwrap_or_default();
    let limit = |name: &str| Some(count("memory", name)).filter(|bytes| *bytes < NO_LIMIT).unwrap_or_default();
    GroupLimits {
        cpu_shares: count("cpu", "cpu.shares"),
        cpu_period: count("cpu", "cpu.cfs_period_us"),
        // -1, no limit, is none that can be read.
        cpu_quota: count("cpu", "cpu.cfs_quota_us"),
        memory_reservation_bytes: limit("memory.soft_limit_in_bytes"),
        swap_limit_bytes: swap_limit_of_v1(&file("memory", "memory.memsw.limit_in_bytes")),
        threads_max: count("pids", "pids.max"),
    }
}

fn of_v1(file: impl Fn(&str, &str) -> String, is_limited: bool) -> GroupDetails {
    let count = |controller: &str, name: &str| number(&file(controller, name)).unwrap_or_default();
    let stat = if is_limited { file("cpu", "cpu.stat") } else { String::new() };
    let throttled = |name| field(&stat, name).unwrap_or_default();
    let bytes = file("blkio", "blkio.throttle.io_service_bytes_recursive");
    // Who moved no byte did no operation.
    let operations = || file("blkio", "blkio.throttle.io_serviced_recursive");
    GroupDetails {
        devices: if bytes.contains(':') { devices_of_v1(&bytes, &operations()) } else { Vec::new() },
        memory_failures: count("memory", "memory.failcnt"),
        most_memory_bytes: count("memory", "memory.max_usage_in_bytes"),
        oom_kills: field(&file("memory", "memory.oom_control"), "oom_kill").unwrap_or_default(),
        cpu_periods: throttled("nr_periods"),
        cpu_throttled_periods: throttled("nr_throttled"),
        cpu_throttled_nanoseconds: throttled("throttled_time"),
        ..GroupDetails::default()
    }
}

/// Lines `8:0 Read 4096`.
fn devices_of_v1(bytes: &str, operations: &str) -> Vec<DeviceUsage> {
    let mut found: BTreeMap<(u64, u64), DeviceUsage> = BTreeMap::new();
    for (is_bytes, text) in [(true, bytes), (false, operations)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(numbers), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else { continue };
            let (Some(numbers), Ok(value)) = (device_numbers(numbers), value.parse()) else { continue };
            let place = match kind {
                "Read" => 0,
                "Write" => 1,
                _ => continue,
            };
            let device = found.entry(numbers).or_insert_with(|| DeviceUsage { numbers, ..DeviceUsage::default() });
            let part = if is_bytes { &mut device.bytes } else { &mut device.operations };
            part[place] = value;
        }
    }
    found.into_values().collect()
}

fn device_numbers(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Gives devices the names that they have in `/dev`.
fn named(mut devices: Vec<DeviceUsage>) -> Vec<DeviceUsage> {
    for device in &mut devices {
        let (major, minor) = device.numbers;
        let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default();
        let name = link.file_name().unwrap_or_default().to_string_lossy();
        device.device = if name.is_empty() { String::new() } else { format!("/dev/{name}") };
    }
    devices
}

/// Open files of a process, and the sockets among them.
fn open_files(process: &str) -> (u64, u64) {
    let mut counts = (0, 0);
    let Ok(folder) = fs::File::open(format!("/proc/{process}/fd")) else { return counts };
    let (mut entries, mut target) = ([MaybeUninit::uninit(); 4096], [0; "socket:".len()]);
    let mut entries = RawDir::new(&folder, &mut entries);
    while let Some(Ok(entry)) = entries.next() {
        if entry.file_name().to_bytes().starts_with(b".") {
            continue;
        }
        counts.0 += 1;
        let to = readlinkat_raw(&folder, entry.file_name(), &mut target);
        counts.1 += u64::from(to.is_ok() && target == *b"socket:");
    }
    counts
}

/// The soft limit in `/proc/<pid>/limits`.
fn open_files_limit(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_tell_the_same() {
        // A23.2
        let two = |name: &str| {
            match name {
                "io.stat" => "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n253:1 rbytes=5\n",
                "memory.events" => "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n",
                "memory.peak" => "500\n",
                "cpu.weight" => "1\n",
                "cpu.max" => "50000 100000\n",
                "cpu.stat" => "usage_usec 3000\nnr_periods 5\nnr_throttled 2\nthrottled_usec 7\n",
                "memory.low" => "9\n",
                "memory.swap.max" => "max\n",
                "pids.max" => "max\n",
                _ => "",
            }
            .to_owned()
        };
        let one = |_: &str, name: &str| {
            match name {
                "blkio.throttle.io_service_bytes_recursive" => {
                    "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n253:1 Read 5\nTotal 35\n"
                }
                "blkio.throttle.io_serviced_recursive" => "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
                "memory.failcnt" => "3\n",
                "memory.max_usage_in_bytes" => "500\n",
                "memory.oom_control" => "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
                "cpu.shares" => "2\n",
                "cpu.cfs_period_us" => "100000\n",
                "cpu.cfs_quota_us" => "50000\n",
                "cpu.stat" => "nr_periods 5\nnr_throttled 2\nthrottled_time 7000\n",
                "memory.soft_limit_in_bytes" => "9\n",
                "memory.memsw.limit_in_bytes" => "9223372036854771712\n",
                "pids.max" => "max\n",
                _ => "",
            }
            .to_owned()
        };
        let limits = limits_of_v2(two);
        assert_eq!(limits, limits_of_v1(one));
        assert_eq!((limits.cpu_shares, limits.cpu_quota, limits.threads_max), (2, 50_000, 0));
        let (two, one) = (of_v2(two, true), of_v1(one, true));
        assert_eq!(two, one);
        assert_eq!((two.cpu_periods, two.cpu_throttled_periods, two.cpu_throttled_nanoseconds), (5, 2, 7000));
        assert_eq!(two.devices.len(), 2);
        assert_eq!((two.devices[0].bytes, two.devices[0].operations), ([10, 20], [1, 2]));
        let shares =
            |weight: &str| limits_of_v2(|name| if name == "cpu.weight" { weight.to_owned() } else { String::new() });
        assert_eq!([shares("39").cpu_shares, shares("10000").cpu_shares], [998, 262_144]);
    }

    #[test]
    fn pressure_is_read_where_the_kernel_tells_it() {
        // A23.4
        let text =
            "some avg10=1.50 avg60=0.20 avg300=0.03 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let read = stall(text).expect("it can be read");
        assert_eq!(read.some, StallTime { total: 1234, averages: [1.5, 0.2, 0.03] });
        assert_eq!(read.full.total, 7);
        let only_some = stall("some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n").expect("it can be read");
        assert_eq!((only_some.some.total, only_some.full.total), (5, 0));
        assert_eq!(stall(""), None);
        // The kernel's own words, where it has it.
        if let Ok(text) = fs::read_to_string("/proc/pressure/io") {
            assert!(stall(&text).is_some(), "{text}");
        }
    }

    #[test]
    fn files_of_a_process_are_counted() {
        // A23.2
        let (_one, _other) = std::os::unix::net::UnixStream::pair().expect("sockets");
        let (files, sockets) = open_files("self");
        assert!(files > sockets && sockets >= 2, "{files} {sockets}");
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n";
        assert_eq!(open_files_limit(text), Some(1024));
        assert_eq!(
            open_files_limit("Max open files            unlimited            unlimited            files\n"),
            None
        );
    }
}
