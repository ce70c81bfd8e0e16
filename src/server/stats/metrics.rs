//! `/metrics/resource` as kubelet names things, and `/metrics/cadvisor` as cAdvisor does.

use k8s_openapi::api::core::v1::Pod;
use stoker_model::handle::{PodUsage, Usage};

use super::text::{Page, seconds, value};
use super::{Named, Stats, containers, has_own_network};

/// What is told of one group.
type Read = fn(&Usage) -> f64;

/// Metrics of every group in cAdvisor's page: name, kind, help, value.
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
    ("container_cpu_cfs_periods_total", "counter", "Number of elapsed enforcement period intervals.", |it| {
        value(it.cpu_periods)
    }),
    ("container_cpu_cfs_throttled_periods_total", "counter", "Number of throttled period intervals.", |it| {
        value(it.cpu_throttled_periods)
    }),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "counter",
        "Total time duration the container has been throttled.",
        |it| seconds(it.cpu_throttled_nanoseconds),
    ),
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
    ("container_processes", "gauge", "Number of processes running inside the container.", |it| value(it.processes)),
];

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

/// How a group is named in cAdvisor's labels; all empty for the machine.
struct Group<'a> {
    usage: &'a Usage,
    id: String,
    container: &'a str,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

fn started_at(named: &Named<'_>) -> Option<f64> {
    let running = named.status.state.as_ref()?.running.as_ref()?;
    Some(running.started_at.as_ref()?.0.as_duration().as_secs_f64())
}

impl Stats {
    /// What metrics-server reads.
    pub(in crate::server) async fn resource_metrics(&self) -> String {
        let (now, _) = self.look().await;
        let pods = self.pods.pods();
        let known = Self::known(&pods, &now);
        let at = Some(now.now.wall.as_millisecond());
        let mut page = Page::default();
        let all: Vec<Named<'_>> = known.iter().flat_map(|(pod, usage)| containers(pod, usage)).collect();
        let kinds: [(&str, &str, &str, Read); 3] = [
            ("cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the", |it| {
                seconds(it.cpu_nanoseconds)
            }),
            ("memory_working_set_bytes", "gauge", "Current working set in bytes of the", |it| {
                value(it.working_set_bytes)
            }),
            ("swap_usage_bytes", "gauge", "Current amount of swap usage in bytes of the", |it| value(it.swap_bytes)),
        ];
        for (suffix, kind, help, read) in kinds {
            let metric = format!("container_{suffix}");
            page.metric(&metric, kind, &format!("[STABLE] {help} container"));
            for it in &all {
                let labels =
                    [("container", it.status.name.as_str()), ("namespace", namespace(it.pod)), ("pod", name(it.pod))];
                page.sample(&metric, &labels, read(it.usage), at);
            }
            let metric = format!("pod_{suffix}");
            page.metric(&metric, kind, &format!("[STABLE] {help} pod"));
            for (pod, usage) in &known {
                let labels = [("namespace", namespace(pod)), ("pod", name(pod))];
                page.sample(&metric, &labels, read(&usage.usage), at);
            }
            let metric = format!("node_{suffix}");
            page.metric(&metric, kind, &format!("[STABLE] {help} node"));
            page.sample(&metric, &[], read(&now.node.usage), at);
        }
        let metric = "container_start_time_seconds";
        page.metric(metric, "gauge", "[STABLE] Start time of the container since unix epoch in seconds");
        for it in &all {
            let labels =
                [("container", it.status.name.as_str()), ("namespace", namespace(it.pod)), ("pod", name(it.pod))];
            if let Some(started) = started_at(it) {
                page.sample(metric, &labels, started, None);
            }
        }
        let metric = "resource_scrape_error";
        page.metric(metric, "gauge", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise");
        page.sample(metric, &[], 0.0, None);
        page.into_text()
    }

    /// What dashboards and alerts read.
    pub(in crate::server) async fn cadvisor_metrics(&self) -> String {
        let (now, _) = self.look().await;
        let pods = self.pods.pods();
        let known = Self::known(&pods, &now);
        let at = Some(now.now.wall.as_millisecond());
        let groups = groups(&now.node, &known);
        let mut page = Page::default();
        for (metric, kind, help, read) in OF_GROUPS {
            page.metric(metric, kind, help);
            for group in &groups {
                page.sample(
                    metric,
                    &group.labels(*metric == "container_cpu_usage_seconds_total"),
                    read(group.usage),
                    at,
                );
            }
        }
        let metric = "container_memory_failures_total";
        page.metric(metric, "counter", "Cumulative count of memory allocation failures.");
        for group in &groups {
            for (kind, count) in [("pgfault", group.usage.page_faults), ("pgmajfault", group.usage.major_page_faults)] {
                let mut labels = group.labels(false);
                labels.insert(1, ("failure_type", kind));
                labels.push(("scope", "hierarchy"));
                page.sample(metric, &labels, value(count), at);
            }
        }
        for (metric, help, received, nth) in OF_INTERFACES {
            page.metric(metric, "counter", help);
            let own = known.iter().filter(|(pod, _)| has_own_network(pod));
            let of_pods = own.map(|(pod, usage)| (*usage, namespace(pod), name(pod)));
            for (usage, namespace, pod) in of_pods.chain([(&now.node, "", "")]) {
                for interface in &usage.interfaces {
                    let labels = [
                        ("id", usage.group.as_str()),
                        ("image", ""),
                        ("interface", interface.name.as_str()),
                        ("name", ""),
                        ("namespace", namespace),
                        ("pod", pod),
                    ];
                    let numbers = if *received { &interface.received } else { &interface.sent };
                    page.sample(metric, &labels, value(numbers[*nth]), at);
                }
            }
        }
        let metric = "container_fs_usage_bytes";
        page.metric(metric, "gauge", "Number of bytes that are consumed by the container on this filesystem.");
        let metric_start = "container_start_time_seconds";
        let mut starts = Vec::new();
        for (pod, usage) in &known {
            for it in containers(pod, usage) {
                let group = Group::of(&it, usage);
                if let Some((bytes, _)) = now.layers.get(it.id) {
                    page.sample(metric, &group.labels(false), value(*bytes), at);
                }
                if let Some(started) = started_at(&it) {
                    starts.push((group.id.clone(), it.status.name.clone(), namespace(pod), name(pod), started));
                }
            }
        }
        page.metric(metric_start, "gauge", "Start time of the container since unix epoch in seconds.");
        for (id, container, namespace, pod, started) in &starts {
            let labels = [("container", container.as_str()), ("id", id), ("namespace", namespace), ("pod", pod)];
            page.sample(metric_start, &labels, *started, at);
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        page.metric("machine_cpu_cores", "gauge", "Number of logical CPU cores.");
        page.sample("machine_cpu_cores", &[], value(u64::try_from(cores).unwrap_or(1)), None);
        page.metric("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.");
        page.sample("machine_memory_bytes", &[], value(now.node.usage.memory_limit_bytes.unwrap_or_default()), None);
        page.into_text()
    }
}

fn groups<'a>(node: &'a PodUsage, known: &'a [(&'a Pod, &'a PodUsage)]) -> Vec<Group<'a>> {
    let machine =
        Group { usage: &node.usage, id: "/".to_owned(), container: "", image: "", name: "", namespace: "", pod: "" };
    let mut groups = vec![machine];
    for (pod, usage) in known {
        let whole = Group {
            usage: &usage.usage,
            id: usage.group.clone(),
            container: "",
            image: "",
            name: "",
            namespace: namespace(pod),
            pod: name(pod),
        };
        groups.push(whole);
        groups.extend(containers(pod, usage).iter().map(|it| Group::of(it, usage)));
    }
    groups
}

impl<'a> Group<'a> {
    fn of(it: &Named<'a>, pod: &PodUsage) -> Self {
        Self {
            usage: it.usage,
            id: format!("{}/{}", pod.group, it.id),
            container: &it.status.name,
            image: &it.status.image,
            name: it.id,
            namespace: namespace(it.pod),
            pod: name(it.pod),
        }
    }

    fn labels(&self, of_cpu: bool) -> Vec<(&str, &str)> {
        let cpu = of_cpu.then_some(("cpu", "total"));
        let rest = [
            ("id", self.id.as_str()),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ];
        [("container", self.container)].into_iter().chain(cpu).chain(rest).collect()
    }
}
