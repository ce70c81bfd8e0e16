//! `/metrics/cadvisor`: what dashboards and alerts read, with the names and labels of cAdvisor (A23.2).

use std::collections::BTreeMap;
use std::sync::PoisonError;

use k8s_openapi::api::core::v1::Pod;
use stoker_model::handle::{DeviceUsage, GroupDetails, GroupLimits, PodUsage, Stall, Stalls, Usage, UsageReader};
use stoker_model::pod::LocalPod;

use super::text::{Labels, Page, seconds, value};
use super::{Devices, Filesystem, Named, Snapshot, Stats, containers, has_own_network, name, namespace, started_at};

/// What is told of one group.
type Read = fn(&Usage) -> f64;
type ReadDetail = fn(&Group<'_>) -> Option<f64>;
type ReadLimited = fn(&GroupDetails) -> f64;
type ReadDevice = fn(&DeviceUsage) -> u64;
type ReadStall = fn(&Stalls) -> Option<Stall>;

/// Metrics of every group: name, kind, help, value.
const OF_GROUPS: &[(&str, &str, &str, Read)] = &[
    ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |it| {
        seconds(it.cpu_nanoseconds)
    }),
    ("container_cpu_user_seconds_total", "counter", "Cumulative user cpu time consumed in seconds.", |it| {
        seconds(it.cpu_user_nanoseconds)
    }),
    ("container_cpu_system_seconds_total", "counter", "Cumulative system cpu time consumed in seconds.", |it| {
        seconds(it.cpu_system_nanoseconds)
    }),
    (
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |it| value(it.memory_bytes),
    ),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |it| value(it.working_set_bytes)),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", |it| value(it.rss_bytes)),
    ("container_memory_cache", "gauge", "Number of bytes of page cache memory.", |it| value(it.cache_bytes)),
    ("container_memory_swap", "gauge", "Container swap usage in bytes.", |it| value(it.swap_bytes)),
    ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", |it| {
        value(it.memory_limit_bytes.unwrap_or_default())
    }),
    ("container_threads", "gauge", "Number of threads running inside the container", |it| value(it.processes)),
];

/// Metrics of groups whose CPU is limited.
const OF_LIMITED: &[(&str, &str, ReadLimited)] = &[
    ("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", |it| value(it.cpu_periods)),
    ("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", |it| {
        value(it.cpu_throttled_periods)
    }),
    ("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", |it| {
        seconds(it.cpu_throttled_nanoseconds)
    }),
];

/// Metrics of every group but the machine.
const OF_DETAILS: &[(&str, &str, &str, ReadDetail)] = &[
    ("container_memory_failcnt", "counter", "Number of memory usage hits limits", |it| {
        Some(value(it.details.memory_failures))
    }),
    ("container_memory_mapped_file", "gauge", "Size of memory mapped files in bytes.", |it| {
        Some(value(it.usage.mapped_bytes))
    }),
    ("container_memory_max_usage_bytes", "gauge", "Maximum memory usage recorded in bytes", |it| {
        Some(value(it.details.most_memory_bytes))
    }),
    ("container_oom_events_total", "counter", "Count of out of memory events observed for the container", |it| {
        Some(value(it.details.oom_kills))
    }),
    ("container_processes", "gauge", "Number of processes running inside the container.", |it| {
        Some(value(it.details.processes))
    }),
    ("container_file_descriptors", "gauge", "Number of open file descriptors for the container.", |it| {
        Some(value(it.details.open_files))
    }),
    ("container_sockets", "gauge", "Number of open sockets for the container.", |it| Some(value(it.details.sockets))),
    (
        "container_threads_max",
        "gauge",
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        |it| Some(value(it.limits.threads_max)),
    ),
    ("container_spec_cpu_period", "gauge", "CPU period of the container.", |it| Some(value(it.limits.cpu_period))),
    ("container_spec_cpu_quota", "gauge", "CPU quota of the container.", |it| {
        (it.limits.cpu_quota > 0).then(|| value(it.limits.cpu_quota))
    }),
    ("container_spec_cpu_shares", "gauge", "CPU share of the container.", |it| Some(value(it.limits.cpu_shares))),
    ("container_spec_memory_reservation_limit_bytes", "gauge", "Memory reservation limit for the container.", |it| {
        Some(value(it.limits.memory_reservation_bytes))
    }),
    ("container_spec_memory_swap_limit_bytes", "gauge", "Memory swap limit for the container.", |it| {
        Some(value(it.limits.swap_limit_bytes.unwrap_or_default()))
    }),
];

/// Metrics of every block device that a group used.
const OF_DEVICES: &[(&str, &str, ReadDevice)] = &[
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read", |it| it.bytes[0]),
    ("container_fs_reads_total", "Cumulative count of reads completed", |it| it.operations[0]),
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written", |it| it.bytes[1]),
    ("container_fs_writes_total", "Cumulative count of writes completed", |it| it.operations[1]),
];

/// How long groups waited for a resource.
const STALLS: [(&str, ReadStall); 3] = [("cpu", |it| it.cpu), ("memory", |it| it.memory), ("io", |it| it.io)];

/// Metrics of every network interface: name, help, whether of what was received, and which of the four numbers.
const OF_INTERFACES: &[(&str, &str, bool, usize)] = &[
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", true, 0),
    ("container_network_receive_packets_total", "Cumulative count of packets received", true, 1),
    ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", true, 2),
    ("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving", true, 3),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", false, 0),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted", false, 1),
    ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", false, 2),
    (
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting",
        false,
        3,
    ),
];

/// A group with all that is told of it.
struct Group<'a> {
    usage: &'a Usage,
    limits: GroupLimits,
    details: GroupDetails,
    stalls: Stalls,
    started: Option<f64>,
    id: &'a str,
    /// The container's name; empty for what is none.
    container: &'a str,
    /// The container's ID.
    name: &'a str,
    /// How it is named in cAdvisor's labels; all empty for the machine.
    labels: Labels,
}

impl Stats {
    /// The page. Its numbers have the time they were taken at.
    pub(in crate::server) async fn cadvisor_metrics(&self) -> String {
        let (now, _) = self.look().await;
        let (pods, usage, root) = (self.pods.pods(), self.usage.clone(), self.places.root.clone());
        let (known_limits, devices) = (self.limits.clone(), self.devices.clone());
        let build = move || {
            let known = Self::known(&pods, &now);
            let mut limits = known_limits.lock().unwrap_or_else(PoisonError::into_inner);
            let groups = groups(&now, &known, usage.as_ref(), &mut limits);
            drop(limits);
            let mut writer = Writer { page: Page::default(), at: Some(now.now.wall.as_millisecond()) };
            writer.groups(&groups, &now);
            writer.devices(&groups);
            writer.stalls(&groups);
            let own = known.iter().filter(|(pod, _)| has_own_network(pod.pod()));
            let of_pods = own.map(|(pod, usage)| (*usage, namespace(pod.pod()), name(pod.pod())));
            writer.interfaces(&of_pods.chain([(&now.node, "", "")]).collect::<Vec<_>>());
            writer.filesystems(&groups, &now, &root, &devices);
            writer.machine(&now);
            writer.page.into_text()
        };
        // It reads a dozen files of each container.
        tokio::task::spawn_blocking(build).await.unwrap_or_default()
    }
}

struct Writer {
    page: Page,
    at: Option<i64>,
}

impl Writer {
    fn groups(&mut self, groups: &[Group<'_>], now: &Snapshot) {
        for (metric, kind, help, read) in OF_GROUPS {
            self.page.metric(metric, kind, help);
            let of_cpu = *metric == "container_cpu_usage_seconds_total";
            let extra: &[(&str, &str)] = if of_cpu { &[("cpu", "total")] } else { &[] };
            for group in groups {
                self.page.sample_of(metric, &group.labels, extra, read(group.usage), self.at);
            }
        }
        for (metric, help, read) in OF_LIMITED {
            self.page.metric(metric, "counter", help);
            for group in groups.iter().filter(|group| group.limits.cpu_quota > 0) {
                self.page.sample_of(metric, &group.labels, &[], read(&group.details), self.at);
            }
        }
        for (metric, kind, help, read) in OF_DETAILS {
            self.page.metric(metric, kind, help);
            for group in groups.iter().filter(|group| group.id != "/") {
                if let Some(number) = read(group) {
                    self.page.sample_of(metric, &group.labels, &[], number, self.at);
                }
            }
        }
        let metric = "container_memory_failures_total";
        self.page.metric(metric, "counter", "Cumulative count of memory allocation failures.");
        for group in groups {
            for (kind, count) in [("pgfault", group.usage.page_faults), ("pgmajfault", group.usage.major_page_faults)] {
                for scope in ["container", "hierarchy"] {
                    let more = [("failure_type", kind), ("scope", scope)];
                    self.page.sample_of(metric, &group.labels, &more, value(count), self.at);
                }
            }
        }
        let metric = "container_ulimits_soft";
        self.page.metric(
            metric,
            "gauge",
            "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice",
        );
        for group in groups.iter().filter(|group| !group.container.is_empty()) {
            let limit = group.details.open_files_limit.map_or(-1.0, value);
            self.page.sample_of(metric, &group.labels, &[("ulimit", "max_open_files")], limit, self.at);
        }
        let metric = "container_last_seen";
        self.page.metric(metric, "gauge", "Last time a container was seen by the exporter");
        for group in groups {
            let seconds = u64::try_from(now.now.wall.as_second()).unwrap_or_default();
            self.page.sample_of(metric, &group.labels, &[], value(seconds), self.at);
        }
        let metric = "container_start_time_seconds";
        self.page.metric(metric, "gauge", "Start time of the container since unix epoch in seconds.");
        for group in groups {
            if let Some(started) = group.started {
                self.page.sample_of(metric, &group.labels, &[], started, None);
            }
        }
    }

    fn devices(&mut self, groups: &[Group<'_>]) {
        for (metric, help, read) in OF_DEVICES {
            self.page.metric(metric, "counter", help);
            for group in groups {
                for device in &group.details.devices {
                    let more = [("device", device.device.as_str())];
                    self.page.sample_of(metric, &group.labels, &more, value(read(device)), self.at);
                }
            }
        }
        let metric = "container_blkio_device_usage_total";
        self.page.metric(metric, "counter", "Blkio Device bytes usage");
        for group in groups {
            for device in &group.details.devices {
                let (major, minor) = (device.numbers.0.to_string(), device.numbers.1.to_string());
                for (operation, bytes) in [("Read", device.bytes[0]), ("Write", device.bytes[1])] {
                    let extra = [
                        ("device", device.device.as_str()),
                        ("major", &major),
                        ("minor", &minor),
                        ("operation", operation),
                    ];
                    self.page.sample_of(metric, &group.labels, &extra, value(bytes), self.at);
                }
            }
        }
    }

    /// Nothing where the kernel tells nothing (A23.4).
    fn stalls(&mut self, groups: &[Group<'_>]) {
        for (resource, read) in STALLS {
            if !groups.iter().any(|group| read(&group.stalls).is_some()) {
                continue;
            }
            for (kind, who) in [
                ("stalled", "no tasks in the container could make progress"),
                ("waiting", "tasks in the container have waited"),
            ] {
                let metric = format!("container_pressure_{resource}_{kind}_seconds_total");
                self.page.metric(
                    &metric,
                    "counter",
                    &format!("Total time duration {who} due to {resource} congestion."),
                );
                for group in groups {
                    let Some(stall) = read(&group.stalls) else { continue };
                    let time = if kind == "stalled" { stall.full } else { stall.some };
                    self.page.sample_of(&metric, &group.labels, &[], seconds(time.total.saturating_mul(1000)), self.at);
                }
            }
        }
    }

    fn interfaces(&mut self, all: &[(&PodUsage, &str, &str)]) {
        for (metric, help, received, nth) in OF_INTERFACES {
            self.page.metric(metric, "counter", help);
            for (usage, namespace, pod) in all {
                for interface in &usage.interfaces {
                    let labels = [
                        ("container", ""),
                        ("id", usage.group.as_str()),
                        ("image", ""),
                        ("interface", interface.name.as_str()),
                        ("name", ""),
                        ("namespace", namespace),
                        ("pod", pod),
                    ];
                    let numbers = if *received { &interface.received } else { &interface.sent };
                    self.page.sample(metric, &labels, value(numbers[*nth]), self.at);
                }
            }
        }
    }

    fn filesystems(&mut self, groups: &[Group<'_>], now: &Snapshot, root: &std::path::Path, devices: &Devices) {
        let images = now.images.as_ref().map(|(_, _, place)| (devices.of(place), Filesystem::read(place)));
        let images_device = images.as_ref().map(|(device, _)| device.as_str()).unwrap_or_default();
        let metric = "container_fs_usage_bytes";
        self.page.metric(metric, "gauge", "Number of bytes that are consumed by the container on this filesystem.");
        for group in groups {
            if let Some((bytes, _)) = now.layers.get(group.name) {
                self.page.sample_of(metric, &group.labels, &[("device", images_device)], value(*bytes), self.at);
            }
        }
        let device = devices.of(root);
        let Some((machine, fs)) = groups.first().zip(now.nodefs) else { return };
        let more = [("device", device.as_str())];
        self.page.sample_of(metric, &machine.labels, &more, value(fs.capacity.saturating_sub(fs.available)), self.at);
        for (metric, help, number) in [
            (
                "container_fs_limit_bytes",
                "Number of bytes that can be consumed by the container on this filesystem.",
                fs.capacity,
            ),
            ("container_fs_inodes_total", "Number of Inodes", fs.inodes),
            ("container_fs_inodes_free", "Number of available Inodes", fs.inodes_free),
        ] {
            self.page.metric(metric, "gauge", help);
            self.page.sample_of(metric, &machine.labels, &more, value(number), self.at);
        }
    }

    fn machine(&mut self, now: &Snapshot) {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let (boot, machine, system) =
            (read("/proc/sys/kernel/random/boot_id"), read("/etc/machine-id"), read("/sys/class/dmi/id/product_uuid"));
        let labels = [("boot_id", boot.as_str()), ("machine_id", &machine), ("system_uuid", &system)];
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let swap = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("SwapTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
        for (metric, help, number) in [
            ("machine_cpu_cores", "Number of logical CPU cores.", u64::try_from(cores).unwrap_or(1)),
            (
                "machine_memory_bytes",
                "Amount of memory installed on the machine.",
                now.node.usage.memory_limit_bytes.unwrap_or_default(),
            ),
            ("machine_swap_bytes", "Amount of swap memory available on the machine.", swap.unwrap_or_default() * 1024),
        ] {
            self.page.metric(metric, "gauge", help);
            self.page.sample(metric, &labels, value(number), None);
        }
    }
}

/// Limits of groups by their names, as they were with that version of their pod.
pub(super) type KnownLimits = BTreeMap<String, (String, GroupLimits)>;

/// The machine first, then what is no pod, then pods and their containers.
///
/// Limits are read again only when the pod is another than before: one that is resized gets another status.
fn groups<'a>(
    now: &'a Snapshot,
    known: &'a [(&'a LocalPod, &'a PodUsage)],
    reader: &dyn UsageReader,
    limits: &mut KnownLimits,
) -> Vec<Group<'a>> {
    let mut limits_before = std::mem::take(limits);
    let mut limits_of = |id: &str, version: Option<&str>| {
        let Some(version) = version else { return reader.limits(id) };
        let (key, (of, found)) = limits_before
            .remove_entry(id)
            .filter(|(_, (of, _))| of == version)
            .unwrap_or_else(|| (id.to_owned(), (version.to_owned(), reader.limits(id))));
        limits.insert(key, (of, found));
        found
    };
    let mut group = |usage: &'a Usage, id: &'a str, pod: Option<&'a Pod>, container: Option<&Named<'a>>| {
        let status = container.map(|it| it.status);
        let (container_name, image) = status.map_or(("", ""), |status| (&status.name, &status.image));
        let container_id = container.map_or("", |it| it.id);
        let labels = Labels::new(&[
            ("container", container_name),
            ("id", id),
            ("image", image),
            ("name", container_id),
            ("namespace", pod.map_or("", namespace)),
            ("pod", pod.map_or("", name)),
        ]);
        let of_machine = id == "/";
        let version = pod.and_then(|pod| pod.metadata.resource_version.as_deref());
        let limits = if of_machine { GroupLimits::default() } else { limits_of(id, version) };
        Group {
            usage,
            limits,
            details: if of_machine { GroupDetails::default() } else { reader.details(id, usage, &limits) },
            stalls: reader.stalls(id),
            started: container.and_then(started_at),
            id,
            container: container_name,
            name: container_id,
            labels,
        }
    };
    let mut groups = vec![group(&now.node.usage, "/", None, None)];
    groups.extend(now.system.iter().map(|(_, id, usage)| group(usage, id, None, None)));
    for (pod, usage) in known {
        groups.push(group(&usage.usage, &usage.group, Some(pod.pod()), None));
        groups.extend(containers(pod, usage).iter().map(|it| group(it.usage, it.group, Some(pod.pod()), Some(it))));
    }
    groups
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use serde_json::json;

    use super::*;
    use crate::clock::Clock;

    /// Counts how often limits are read.
    #[derive(Default)]
    struct Counting(AtomicU64);

    impl UsageReader for Counting {
        fn node(&self) -> PodUsage {
            PodUsage::default()
        }

        fn machine(&self) -> Usage {
            Usage::default()
        }

        fn pods(&self) -> Vec<PodUsage> {
            Vec::new()
        }

        fn all_pods(&self) -> Usage {
            Usage::default()
        }

        fn limits(&self, _: &str) -> GroupLimits {
            let cpu_shares = self.0.fetch_add(1, Ordering::Relaxed) + 1;
            GroupLimits { cpu_shares, ..GroupLimits::default() }
        }
    }

    #[test]
    fn limits_are_read_again_when_the_pod_is_another() {
        // A23.2
        let usage = PodUsage { group: "/pods/a".to_owned(), ..PodUsage::default() };
        let now = Snapshot {
            now: Clock.now(),
            node: PodUsage::default(),
            pods: Vec::new(),
            layers: Arc::default(),
            images: None,
            nodefs: None,
            system: Vec::new(),
        };
        let (reader, mut limits) = (Counting::default(), KnownLimits::new());
        let mut shares = |version: &str| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"resourceVersion": version}})).unwrap();
            let pod = LocalPod::from(Arc::new(pod));
            groups(&now, &[(&pod, &usage)], &reader, &mut limits)[1].limits.cpu_shares
        };
        assert_eq!([shares("1"), shares("1"), shares("2"), shares("2")], [1, 1, 2, 2]);
        groups(&now, &[], &reader, &mut limits);
        assert!(limits.is_empty(), "nothing is kept of a pod that has gone");
    }
}
