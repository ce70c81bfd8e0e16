//! `/metrics`: the agent itself and what it looks after.

use stoker_model::pod::LocalPod;

use super::Stats;
use super::text::{Page, seconds, value};
use super::volumes::count_metrics;
use crate::clock::Clock;

impl Stats {
    pub(in crate::server) async fn own_metrics(&self) -> String {
        let mut page = Page::default();
        page.metric("kubelet_node_name", "gauge", "[ALPHA] The node's name. The count is always 1.");
        page.sample("kubelet_node_name", &[("node", &self.node)], 1.0, None);
        let pods = self.pods.pods();
        let running = pods.iter().filter(|pod| pod.phase() == "Running").count();
        page.metric("kubelet_running_pods", "gauge", "[ALPHA] Number of pods that have a running pod sandbox");
        page.sample("kubelet_running_pods", &[], count(running), None);
        page.metric("kubelet_running_containers", "gauge", "[ALPHA] Number of containers currently running");
        for (state, number) in states(&pods) {
            page.sample("kubelet_running_containers", &[("container_state", state)], count(number), None);
        }
        page.metric(
            "kubelet_desired_pods",
            "gauge",
            "[ALPHA] The number of pods the kubelet is being instructed to run.",
        );
        page.sample("kubelet_desired_pods", &[("static", "")], count(pods.len()), None);
        let version = env!("CARGO_PKG_VERSION");
        page.metric("kubernetes_build_info", "gauge", "[BETA] What was built. The count is always 1.");
        page.sample("kubernetes_build_info", &[("git_version", version), ("platform", "linux")], 1.0, None);
        page.append(&stoker_model::metrics::text(Clock.now().wall.as_second()));
        count_metrics(&mut page, &active(&pods), self.volumes.disks());
        self.claim_metrics(&mut page).await;
        self.shutdowns(&mut page);
        self.process(&mut page);
        page.into_text()
    }

    /// When the machine went down last, from the file that is kept of it (A15.10).
    fn shutdowns(&self, page: &mut Page) {
        let Ok(text) = std::fs::read_to_string(self.places.root.join("graceful_node_shutdown_state")) else { return };
        let kept: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        for (field, metric, what) in [
            ("startTime", "kubelet_graceful_shutdown_start_time_seconds", "start"),
            ("endTime", "kubelet_graceful_shutdown_end_time_seconds", "end"),
        ] {
            let time = kept[field].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            // A time that is none is long past.
            let seconds = time.and_then(|time| u64::try_from(time.as_second()).ok()).unwrap_or_default();
            page.metric(
                metric,
                "gauge",
                &format!("[ALPHA] Last graceful shutdown {what} time since unix epoch in seconds"),
            );
            page.sample(metric, &[], value(seconds), None);
        }
    }

    /// The names that every client library of Prometheus gives.
    fn process(&self, page: &mut Page) {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let words: Vec<&str> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
        let number = |nth: usize| words.get(nth).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        page.metric("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.");
        page.sample("process_cpu_seconds_total", &[], value(number(11) + number(12)) / 100.0, None);
        page.metric("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.");
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident: Option<u64> =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        page.sample("process_resident_memory_bytes", &[], value(resident.unwrap_or_default() * 1024), None);
        page.metric("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.");
        page.sample("process_virtual_memory_bytes", &[], value(number(20)), None);
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        page.metric("process_open_fds", "gauge", "Number of open file descriptors.");
        page.sample("process_open_fds", &[], count(open), None);
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let soft = |what: &str| limits.lines().find_map(|line| line.strip_prefix(what)?.split_whitespace().next());
        for (metric, what, help) in [
            ("process_max_fds", "Max open files", "Maximum number of open file descriptors."),
            (
                "process_virtual_memory_max_bytes",
                "Max address space",
                "Maximum amount of virtual memory available in bytes.",
            ),
        ] {
            // Without a limit it is the largest number that there is, as in other clients.
            let most = soft(what).map_or(0, |limit| limit.parse().unwrap_or(u64::MAX));
            page.metric(metric, "gauge", help);
            page.sample(metric, &[], value(most), None);
        }
        page.metric("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.");
        let started = u64::try_from(self.started.wall.as_nanosecond()).unwrap_or_default();
        page.sample("process_start_time_seconds", &[], seconds(started), None);
    }
}

fn count(number: usize) -> f64 {
    value(u64::try_from(number).unwrap_or(u64::MAX))
}

/// Those that have not ended: the volumes of others are taken away.
fn active(pods: &[LocalPod]) -> Vec<LocalPod> {
    pods.iter().filter(|pod| !pod.has_ended()).cloned().collect()
}

/// Containers by what they do.
fn states(pods: &[LocalPod]) -> [(&'static str, usize); 3] {
    let mut counts = [("created", 0), ("running", 0), ("exited", 0)];
    let statuses = pods.iter().filter_map(LocalPod::status);
    for status in statuses.flat_map(|status| status.container_statuses.iter().flatten()) {
        let Some(state) = &status.state else { continue };
        let nth = match (&state.running, &state.terminated) {
            (Some(_), _) => 1,
            (_, Some(_)) => 2,
            _ => continue,
        };
        counts[nth].1 += 1;
    }
    counts
}
