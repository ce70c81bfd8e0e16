//! What metrics tell of a group besides what it used: how long it waited, its limits, its block devices, its open files (A23.2, A23.4).

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;

use rustix::fs::{RawDir, readlinkat_raw};
use stoker_model::handle::{DeviceUsage, GroupDetails, GroupLimits, Stall, StallTime, Stalls, Usage};

use super::hierarchy::Hierarchy;
use super::kept::{Files, read};
use super::tree::Cgroups;
use super::usage::{field, fields, has_not_run, is_pod, number};

/// v1 writes "no limit" as the largest multiple of a page.
const NO_LIMIT: u64 = 1 << 62;

impl Cgroups {
    /// The kernel tells it of groups of cgroup v2 only.
    pub(super) fn read_stalls(&self, group: &str) -> Stalls {
        match (self.hierarchy(), group) {
            (Hierarchy::V1 { .. }, _) => Stalls::default(),
            (Hierarchy::V2(_), "/") => {
                let of = |resource: &str| stall(&read(format!("/proc/pressure/{resource}")));
                Stalls { cpu: of("cpu"), memory: of("memory"), io: of("io") }
            }
            (hierarchy, group) => self.kept.read(hierarchy, group.trim_start_matches('/'), |it| Stalls {
                cpu: stall(it.text("", "cpu.pressure")),
                memory: stall(it.text("", "memory.pressure")),
                io: stall(it.text("", "io.pressure")),
            }),
        }
    }

    pub(super) fn read_swap_limit(&self, group: &str) -> Option<u64> {
        match self.hierarchy() {
            Hierarchy::V2(_) => swap_limit_of_v2(&self.file(group, "", "memory.swap.max")),
            Hierarchy::V1 { .. } => swap_limit_of_v1(&self.file(group, "memory", "memory.memsw.limit_in_bytes")),
        }
    }

    /// The text of a file that is read rarely, or that must not be kept.
    fn file(&self, group: &str, controller: &str, name: &str) -> String {
        self.hierarchy().file(controller, group, name).map(read).unwrap_or_default()
    }

    pub(super) fn read_limits(&self, group: &str) -> GroupLimits {
        match self.hierarchy() {
            Hierarchy::V2(_) => limits_of_v2(|name| self.file(group, "", name)),
            Hierarchy::V1 { .. } => limits_of_v1(|controller, name| self.file(group, controller, name)),
        }
    }

    pub(super) fn read_details(&self, group: &str, usage: &Usage, limits: &GroupLimits) -> GroupDetails {
        let cpu = usage.cpu_nanoseconds;
        self.kept.read(self.hierarchy(), group, |it| {
            let before = it.seen().details.take();
            let devices = match self.hierarchy() {
                Hierarchy::V2(_) => devices_of_v2(it),
                Hierarchy::V1 { .. } => devices_of_v1(it),
            };
            let devices = named(devices, before.as_ref().map(|(_, before)| before.devices.as_slice()));
            let details = match before.filter(|(at, _)| has_not_run(*at, cpu)) {
                Some((_, before)) => {
                    let most_memory_bytes = before.most_memory_bytes.max(usage.memory_bytes);
                    GroupDetails { devices, most_memory_bytes, ..before }
                }
                None => {
                    // Without a limit nothing is held up.
                    let is_limited = limits.cpu_quota > 0;
                    let details = match self.hierarchy() {
                        Hierarchy::V2(_) => of_v2(it, is_limited),
                        Hierarchy::V1 { .. } => of_v1(it, is_limited),
                    };
                    // A pod's own group has no processes.
                    let details = if is_pod(group) { details } else { self.with_processes(group, details) };
                    GroupDetails { devices, ..details }
                }
            };
            it.seen().details = Some((cpu, details.clone()));
            details
        })
    }

    fn with_processes(&self, group: &str, details: GroupDetails) -> GroupDetails {
        // Not kept: v1 tells who has it open what it told before.
        let processes = self.file(group, "memory", "cgroup.procs");
        let (open_files, sockets) = processes.lines().map(open_files).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let first = processes.lines().next();
        let limits = first.map(|process| read(format!("/proc/{process}/limits"))).unwrap_or_default();
        GroupDetails {
            processes: u64::try_from(processes.lines().count()).unwrap_or_default(),
            open_files,
            sockets,
            open_files_limit: open_files_limit(&limits),
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

fn limits_of_v2(file: impl Fn(&'static str) -> String) -> GroupLimits {
    let bytes = |name| number(&file(name)).unwrap_or_default();
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

fn of_v2(group: &mut impl Files, is_limited: bool) -> GroupDetails {
    let events = fields(group.text("", "memory.events"), ["max", "oom_kill"]);
    let most_memory_bytes = number(group.text("", "memory.peak")).unwrap_or_default();
    let names = ["nr_periods", "nr_throttled", "throttled_usec"];
    let throttled = if is_limited { fields(group.text("", "cpu.stat"), names) } else { [None; 3] };
    let [failures, oom_kills] = events.map(Option::unwrap_or_default);
    let [periods, throttled_periods, microseconds] = throttled.map(Option::unwrap_or_default);
    GroupDetails {
        memory_failures: failures,
        most_memory_bytes,
        oom_kills,
        cpu_periods: periods,
        cpu_throttled_periods: throttled_periods,
        cpu_throttled_nanoseconds: microseconds * 1000,
        ..GroupDetails::default()
    }
}

fn devices_of_v2(group: &mut impl Files) -> Vec<DeviceUsage> {
    group.text("", "io.stat").lines().filter_map(device_of_v2).collect()
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

fn limits_of_v1(file: impl Fn(&'static str, &'static str) -> String) -> GroupLimits {
    let count = |controller, name| number(&file(controller, name)).unwrap_or_default();
    let limit = |name| Some(count("memory", name)).filter(|bytes| *bytes < NO_LIMIT).unwrap_or_default();
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

fn of_v1(group: &mut impl Files, is_limited: bool) -> GroupDetails {
    let mut count = |name| number(group.text("memory", name)).unwrap_or_default();
    let (memory_failures, most_memory_bytes) = (count("memory.failcnt"), count("memory.max_usage_in_bytes"));
    let oom_kills = field(group.text("memory", "memory.oom_control"), "oom_kill").unwrap_or_default();
    let names = ["nr_periods", "nr_throttled", "throttled_time"];
    let throttled = if is_limited { fields(group.text("cpu", "cpu.stat"), names) } else { [None; 3] };
    let [periods, throttled_periods, nanoseconds] = throttled.map(Option::unwrap_or_default);
    GroupDetails {
        memory_failures,
        most_memory_bytes,
        oom_kills,
        cpu_periods: periods,
        cpu_throttled_periods: throttled_periods,
        cpu_throttled_nanoseconds: nanoseconds,
        ..GroupDetails::default()
    }
}

/// Lines `8:0 Read 4096`.
fn devices_of_v1(group: &mut impl Files) -> Vec<DeviceUsage> {
    let mut found: BTreeMap<(u64, u64), DeviceUsage> = BTreeMap::new();
    for (is_bytes, file) in
        [(true, "blkio.throttle.io_service_bytes_recursive"), (false, "blkio.throttle.io_serviced_recursive")]
    {
        for line in group.text("blkio", file).lines() {
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
        if found.is_empty() {
            // Who moved no byte did no operation.
            break;
        }
    }
    found.into_values().collect()
}

fn device_numbers(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Gives devices the names that they have in `/dev`, or had before.
fn named(mut devices: Vec<DeviceUsage>, before: Option<&[DeviceUsage]>) -> Vec<DeviceUsage> {
    for device in &mut devices {
        let known = before.unwrap_or_default().iter().find(|known| known.numbers == device.numbers);
        device.device = known.map_or_else(|| name_of(device.numbers), |known| known.device.clone());
    }
    devices
}

fn name_of((major, minor): (u64, u64)) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default();
    link.file_name().map(|name| format!("/dev/{}", name.to_string_lossy())).unwrap_or_default()
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
    use stoker_model::handle::UsageReader;

    use super::super::kept::KeptGroups;
    use super::super::tree::CgroupConfig;
    use super::super::usage::tests::Texts;
    use super::*;

    #[test]
    fn both_versions_tell_the_same() {
        // A23.2
        let two = Texts(&[
            ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n253:1 rbytes=5\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"),
            ("memory.peak", "500\n"),
            ("cpu.weight", "1\n"),
            ("cpu.max", "50000 100000\n"),
            ("cpu.stat", "usage_usec 3000\nnr_periods 5\nnr_throttled 2\nthrottled_usec 7\n"),
            ("memory.low", "9\n"),
            ("memory.swap.max", "max\n"),
            ("pids.max", "max\n"),
        ]);
        const BYTES: &str = "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n253:1 Read 5\nTotal 35\n";
        let one = Texts(&[
            ("blkio/blkio.throttle.io_service_bytes_recursive", BYTES),
            ("blkio/blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\nTotal 3\n"),
            ("memory/memory.failcnt", "3\n"),
            ("memory/memory.max_usage_in_bytes", "500\n"),
            ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ("cpu/cpu.shares", "2\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
            ("cpu/cpu.cfs_quota_us", "50000\n"),
            ("cpu/cpu.stat", "nr_periods 5\nnr_throttled 2\nthrottled_time 7000\n"),
            ("memory/memory.soft_limit_in_bytes", "9\n"),
            ("memory/memory.memsw.limit_in_bytes", "9223372036854771712\n"),
            ("pids/pids.max", "max\n"),
        ]);
        let limits = limits_of_v2(|name| two.clone().text("", name).to_owned());
        assert_eq!(limits, limits_of_v1(|controller, name| one.clone().text(controller, name).to_owned()));
        assert_eq!((limits.cpu_shares, limits.cpu_quota, limits.threads_max), (2, 50_000, 0));
        let devices = (devices_of_v2(&mut two.clone()), devices_of_v1(&mut one.clone()));
        assert_eq!(devices.0, devices.1);
        assert_eq!((devices.0.len(), devices.0[0].bytes, devices.0[0].operations), (2, [10, 20], [1, 2]));
        let (two, one) = (of_v2(&mut two.clone(), true), of_v1(&mut one.clone(), true));
        assert_eq!(two, one);
        assert_eq!((two.cpu_periods, two.cpu_throttled_periods, two.cpu_throttled_nanoseconds), (5, 2, 7000));
        let shares =
            |weight: &str| limits_of_v2(|name| if name == "cpu.weight" { weight.to_owned() } else { String::new() });
        assert_eq!([shares("39").cpu_shares, shares("10000").cpu_shares], [998, 262_144]);
    }

    #[test]
    fn details_are_read_again_when_something_ran() {
        // A23.2
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join("a").join(name), text).unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        let hierarchy = Hierarchy::V2(folder.path().to_owned());
        let cgroups =
            Cgroups { config: CgroupConfig::default(), hierarchy, kept: KeptGroups::default(), counts_swap: false };
        let told = |cpu_nanoseconds, memory_bytes| {
            let usage = Usage { cpu_nanoseconds, memory_bytes, ..Usage::default() };
            let details = cgroups.details("/a", &usage, &GroupLimits::default());
            (details.oom_kills, details.most_memory_bytes, details.devices.first().map(|device| device.bytes[1]))
        };
        let all = |kills: u64, most: u64, written: u64| {
            write("memory.events", &format!("oom_kill {kills}\n"));
            write("memory.peak", &format!("{most}\n"));
            write("io.stat", &format!("8:0 wbytes={written}\n"));
        };
        all(1, 10, 100);
        assert_eq!(told(5, 10), (1, 10, Some(100)));
        all(2, 30, 200);
        assert_eq!(told(5, 20), (1, 20, Some(200)), "others write its pages, and packets take memory");
        assert_eq!(told(6, 20), (2, 30, Some(200)));
        all(3, 30, 200);
        assert_eq!([told(0, 20), told(0, 20)].map(|it| it.0), [3, 3]);
        all(4, 30, 200);
        assert_eq!(told(0, 20).0, 4, "who does not tell the time may have run");
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
