//! `/metrics/resource`: what metrics-server reads, with the names of kubelet (A23.1).

use k8s_openapi::api::core::v1::Pod;
use stoker_model::handle::Usage;

use super::text::{Page, seconds, value};
use super::{Named, Stats, containers, name, namespace, started_at};

/// What is told of one group.
type Read = fn(&Usage) -> f64;

/// Of containers, pods and the node: end of the name, kind, stability, help, value.
const KINDS: [(&str, &str, &str, &str, &str, Read); 3] = [
    ("cpu_usage_seconds_total", "counter", "STABLE", "Cumulative cpu time consumed by the", "in core-seconds", |it| {
        seconds(it.cpu_nanoseconds)
    }),
    ("memory_working_set_bytes", "gauge", "STABLE", "Current working set of the", "in bytes", |it| {
        value(it.working_set_bytes)
    }),
    ("swap_usage_bytes", "gauge", "ALPHA", "Current swap usage of the", "in bytes", |it| value(it.swap_bytes)),
];

fn of_container<'a>(it: &'a Named<'_>) -> [(&'static str, &'a str); 3] {
    [("container", it.status.name.as_str()), ("namespace", namespace(it.pod)), ("pod", name(it.pod))]
}

fn of_pod(pod: &Pod) -> [(&'static str, &str); 2] {
    [("namespace", namespace(pod)), ("pod", name(pod))]
}

impl Stats {
    /// The page. Its numbers have the time they were taken at.
    pub(in crate::server) async fn resource_metrics(&self) -> String {
        let (now, _) = self.look().await;
        let pods = self.pods.pods();
        let known = Self::known(&pods, &now);
        let at = Some(now.now.wall.as_millisecond());
        let mut page = Page::default();
        let all: Vec<Named<'_>> = known.iter().flat_map(|(pod, usage)| containers(pod, usage)).collect();
        for (suffix, kind, stability, help, unit, read) in KINDS {
            let metric = format!("container_{suffix}");
            page.metric(&metric, kind, &format!("[{stability}] {help} container {unit}"));
            for it in &all {
                page.sample(&metric, &of_container(it), read(it.usage), at);
            }
            let metric = format!("pod_{suffix}");
            page.metric(&metric, kind, &format!("[{stability}] {help} pod {unit}"));
            for (pod, usage) in &known {
                page.sample(&metric, &of_pod(pod.pod()), read(&usage.usage), at);
            }
            let metric = format!("node_{suffix}");
            page.metric(&metric, kind, &format!("[{stability}] {help} node {unit}"));
            page.sample(&metric, &[], read(&now.node.usage), at);
        }
        let metric = "container_swap_limit_bytes";
        page.metric(metric, "gauge", "[ALPHA] Current amount of the container swap limit in bytes");
        for it in &all {
            if let Some(limit) = self.usage.swap_limit_bytes(it.group) {
                page.sample(metric, &of_container(it), value(limit), at);
            }
        }
        let metric = "container_start_time_seconds";
        page.metric(metric, "gauge", "[STABLE] Start time of the container since unix epoch in seconds");
        for it in &all {
            if let Some(started) = started_at(it) {
                page.sample(metric, &of_container(it), started, None);
            }
        }
        for (metric, stability) in [("resource_scrape_error", "STABLE"), ("scrape_error", "ALPHA")] {
            let help = "1 if there was an error while getting container metrics, 0 otherwise";
            page.metric(metric, "gauge", &format!("[{stability}] {help}"));
            page.sample(metric, &[], 0.0, None);
        }
        page.into_text()
    }
}
