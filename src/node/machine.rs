//! Reads the machine: /proc, /sys, /etc and file systems. What cannot be read is left empty or zero.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::{NodeSwapStatus, NodeSystemInfo};

use stoker_model::quantity::Milli;

use super::KUBELET_VERSION;
use super::capacity::threshold_amount;

/// The machine at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Machine {
    /// Processors that are on.
    pub(super) cpus: i64,
    /// All memory.
    pub(super) memory_bytes: i64,
    /// Hugepage size (`2Mi`) to bytes in all.
    pub(super) hugepages: BTreeMap<String, i64>,
    /// The file system of the pods' directories.
    pub(super) nodefs: Filesystem,
}

/// A file system at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Filesystem {
    pub(super) bytes: i64,
    pub(super) available_bytes: i64,
    pub(super) inodes: i64,
    pub(super) free_inodes: i64,
}

impl Machine {
    /// Looks at everything once: a few small reads.
    pub(super) fn read(root_dir: &Path) -> Self {
        let memory = meminfo();
        Self {
            cpus: cpus(),
            memory_bytes: memory.get("MemTotal").copied().unwrap_or_default() * 1024,
            hugepages: hugepages(),
            nodefs: Filesystem::read(root_dir),
        }
    }
}

/// How much memory `memory.available` asks for on this machine: `100Mi`, or a share of all.
pub fn memory_threshold(threshold: &str) -> Milli {
    let total = meminfo().get("MemTotal").copied().unwrap_or_default() * 1024;
    threshold_amount(threshold, Milli::from_units(total))
}

impl Filesystem {
    /// Of the file system that holds `path`.
    pub(super) fn read(path: &Path) -> Self {
        let Ok(found) = rustix::fs::statvfs(path) else { return Self::default() };
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let bytes = |blocks: u64| number(blocks.saturating_mul(found.f_frsize));
        Self {
            bytes: bytes(found.f_blocks),
            available_bytes: bytes(found.f_bavail),
            inodes: number(found.f_files),
            free_inodes: number(found.f_ffree),
        }
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Field to KiB.
fn meminfo() -> BTreeMap<String, i64> {
    let read = text("/proc/meminfo");
    let field = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        Some((name.to_owned(), rest.split_whitespace().next()?.parse().ok()?))
    };
    read.lines().filter_map(field).collect()
}

fn cpus() -> i64 {
    let online = count(&text("/sys/devices/system/cpu/online"));
    if online > 0 {
        return online;
    }
    std::thread::available_parallelism().ok().and_then(|n| i64::try_from(n.get()).ok()).unwrap_or(1)
}

/// How many numbers a list like `0-3,6` holds.
fn count(list: &str) -> i64 {
    let range = |part: &str| -> Option<i64> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(last.trim().parse::<i64>().ok()? - first.trim().parse::<i64>().ok()? + 1)
    };
    list.split(',').filter_map(range).sum()
}

fn hugepages() -> BTreeMap<String, i64> {
    let mut sizes = BTreeMap::new();
    for entry in fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kib =
            name.strip_prefix("hugepages-").and_then(|n| n.strip_suffix("kB")).and_then(|n| n.parse::<i64>().ok());
        let Some(kib) = kib else { continue };
        let pages: i64 = text(&entry.path().join("nr_hugepages").to_string_lossy()).parse().unwrap_or_default();
        let size = if kib % (1 << 20) == 0 {
            format!("{}Gi", kib >> 20)
        } else if kib % 1024 == 0 {
            format!("{}Mi", kib >> 10)
        } else {
            format!("{kib}Ki")
        };
        sizes.insert(size, pages.saturating_mul(kib).saturating_mul(1024));
    }
    sizes
}

/// How many processes and threads there may be, and how many more.
pub(super) fn processes() -> (i64, i64) {
    let limit = |path: &str| text(path).parse::<i64>().unwrap_or(i64::MAX);
    let most = limit("/proc/sys/kernel/pid_max").min(limit("/proc/sys/kernel/threads-max"));
    // The fourth word of loadavg is running/all.
    let load = text("/proc/loadavg");
    let now = load.split_whitespace().nth(3).and_then(|word| word.split('/').nth(1)?.parse::<i64>().ok());
    (most, most - now.unwrap_or_default())
}

/// What does not change while the machine runs (A16.6).
pub(super) fn system_info(container_runtime: String) -> NodeSystemInfo {
    let kernel = rustix::system::uname();
    let release = text("/etc/os-release");
    let pretty =
        release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"');
    let first = |paths: &[&str]| paths.iter().map(|path| text(path)).find(|t| !t.is_empty()).unwrap_or_default();
    let machine_id = first(&["/etc/machine-id", "/var/lib/dbus/machine-id"]);
    let uuid = first(&["/sys/class/dmi/id/product_uuid", "/proc/device-tree/system-id", "/proc/device-tree/vm,uuid"]);
    let swap_bytes = meminfo().get("SwapTotal").copied().unwrap_or_default() * 1024;
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: container_runtime,
        kernel_version: kernel.release().to_string_lossy().into_owned(),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        operating_system: "linux".to_owned(),
        os_image: pretty.to_owned(),
        swap: (swap_bytes > 0).then_some(NodeSwapStatus { capacity: Some(swap_bytes) }),
    }
}

/// The processor as Go names it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, expected) in [("0", 1), ("0-3", 4), ("0-1,4,6-7", 5), ("", 0)] {
            assert_eq!(count(list), expected, "{list}");
        }
    }

    #[test]
    fn this_machine_can_be_read() {
        let machine = Machine::read(Path::new("/"));
        assert!(machine.cpus >= 1 && machine.memory_bytes > 0 && machine.nodefs.bytes > 0);
        let (pids, free) = processes();
        assert!(free > 0 && free < pids);
        // A16.6
        let info = system_info("containerd://1".into());
        assert!(info.kubelet_version.starts_with("v1.36.2+stoker."));
        assert!(!info.boot_id.is_empty() && !info.kernel_version.is_empty() && !info.os_image.is_empty());
    }
}
