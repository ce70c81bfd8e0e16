//! Kubelet's metrics that rooms count while they work, with its names, and the page of all of them (A23.3).
//!
//! They are statics, as log lines are: whoever does the work counts it where it is done. Nothing reads them but the page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Seconds, as upstream's client library has them.
const DEFAULT: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Seconds that a runtime may need.
const OPERATIONS: [f64; 14] = [
    0.005,
    0.0125,
    0.031_25,
    0.078_125,
    0.195_312_5,
    0.488_281_25,
    1.220_703_125,
    3.051_757_812_5,
    7.629_394_531_25,
    19.073_486_328_125,
    47.683_715_820_312_5,
    119.209_289_550_781_25,
    298.023_223_876_953_1,
    745.058_059_692_382_8,
];
/// Seconds that a pull may need.
const PULLS: [f64; 13] = [1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 3600.0];
type Series<T> = Mutex<BTreeMap<Vec<String>, T>>;

/// It only grows.
#[derive(Debug)]
pub struct Counter {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    series: Series<u64>,
}

/// How long something took.
#[derive(Debug)]
pub struct Histogram {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    buckets: &'static [f64],
    series: Series<Observed>,
}

#[derive(Clone, Debug)]
struct Observed {
    /// By bucket, not yet added up.
    counts: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Counter {
    const fn new(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, help, labels, series: Mutex::new(BTreeMap::new()) }
    }

    /// One more, with the values of the labels in their order.
    pub fn inc(&self, values: &[&str]) {
        debug_assert_eq!(values.len(), self.labels.len(), "{}", self.name);
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        *series.entry(owned(values)).or_default() += 1;
    }

    fn write(&self, page: &mut String) {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        head(page, self.name, "counter", self.help);
        if self.labels.is_empty() && series.is_empty() {
            line(page, self.name, &[], "0");
        }
        for (values, count) in series.iter() {
            line(page, self.name, &pairs(self.labels, values), &count.to_string());
        }
    }
}

impl Histogram {
    const fn new(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        buckets: &'static [f64],
    ) -> Self {
        Self { name, help, labels, buckets, series: Mutex::new(BTreeMap::new()) }
    }

    /// It took so long, with the values of the labels in their order.
    pub fn observe(&self, values: &[&str], took: Duration) {
        debug_assert_eq!(values.len(), self.labels.len(), "{}", self.name);
        let seconds = took.as_secs_f64();
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || Observed { counts: vec![0; self.buckets.len()], count: 0, sum: 0.0 };
        let observed = series.entry(owned(values)).or_insert_with(none);
        if let Some(place) = self.buckets.iter().position(|most| seconds <= *most) {
            observed.counts[place] += 1;
        }
        observed.count += 1;
        observed.sum += seconds;
    }

    fn write(&self, page: &mut String) {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        head(page, self.name, "histogram", self.help);
        for (values, observed) in series.iter() {
            let labels = pairs(self.labels, values);
            let mut sum = 0;
            let buckets = self.buckets.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
            for (place, most) in buckets.enumerate() {
                sum += observed.counts.get(place).copied().unwrap_or_default();
                let count = if most == "+Inf" { observed.count } else { sum };
                let mut labels = labels.clone();
                labels.push(("le", &most));
                line(page, &format!("{}_bucket", self.name), &labels, &count.to_string());
            }
            line(page, &format!("{}_sum", self.name), &labels, &observed.sum.to_string());
            line(page, &format!("{}_count", self.name), &labels, &observed.count.to_string());
        }
    }
}

fn owned(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn pairs<'a>(labels: &[&'a str], values: &'a [String]) -> Vec<(&'a str, &'a str)> {
    labels.iter().copied().zip(values.iter().map(String::as_str)).collect()
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(page, "# HELP {name} [ALPHA] {help}\n# TYPE {name} {kind}");
}

fn line(page: &mut String, name: &str, labels: &[(&str, &str)], value: &str) {
    page.push_str(name);
    for (nth, (label, value)) in labels.iter().enumerate() {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(page, "{}{label}=\"{value}\"", if nth == 0 { '{' } else { ',' });
    }
    let _ = writeln!(page, "{} {value}", if labels.is_empty() { "" } else { "}" });
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident: $kind:ident($($part:expr),*);)*) => {
        $($(#[$doc])* pub static $name: $kind = $kind::new($($part),*);)*

        /// All of them, in the text form of Prometheus.
        pub fn text() -> String {
            let mut page = String::new();
            $($name.write(&mut page);)*
            page
        }
    };
}

metrics! {
    /// A pod was not admitted.
    ADMISSION_REJECTIONS: Counter(
        "kubelet_admission_rejections_total", "Cumulative number pod admission rejections by the Kubelet.", &["reason"]
    );
    /// A pod is to start: its sandbox is made.
    STARTED_PODS: Counter("kubelet_started_pods_total", "Cumulative number of pods started", &[]);
    /// Its sandbox could not be made.
    STARTED_PODS_ERRORS: Counter(
        "kubelet_started_pods_errors_total", "Cumulative number of errors when starting pods", &[]
    );
    /// A container is to start.
    STARTED_CONTAINERS: Counter(
        "kubelet_started_containers_total", "Cumulative number of containers started", &["container_type"]
    );
    /// It could not.
    STARTED_CONTAINERS_ERRORS: Counter(
        "kubelet_started_containers_errors_total",
        "Cumulative number of errors when starting containers",
        &["container_type", "code"]
    );
    /// Somebody asked what pods have for themselves.
    POD_RESOURCES_REQUESTS: Counter(
        "kubelet_pod_resources_endpoint_requests_total",
        "Cumulative number of requests to the PodResource endpoint. Broken down by server api version.",
        &["server_api_version"]
    );
    /// For all pods.
    POD_RESOURCES_REQUESTS_LIST: Counter(
        "kubelet_pod_resources_endpoint_requests_list",
        "Number of requests to the PodResource List endpoint. Broken down by server api version.",
        &["server_api_version"]
    );
    /// For one pod.
    POD_RESOURCES_REQUESTS_GET: Counter(
        "kubelet_pod_resources_endpoint_requests_get",
        "Number of requests to the PodResource Get endpoint. Broken down by server api version.",
        &["server_api_version"]
    );
    /// For what there is.
    POD_RESOURCES_REQUESTS_ALLOCATABLE: Counter(
        "kubelet_pod_resources_endpoint_requests_get_allocatable",
        "Number of requests to the PodResource GetAllocatableResources endpoint. Broken down by server api version.",
        &["server_api_version"]
    );
    /// It could not be told of all pods.
    POD_RESOURCES_ERRORS_LIST: Counter(
        "kubelet_pod_resources_endpoint_errors_list",
        "Number of requests to the PodResource List endpoint which returned error. Broken down by server api version.",
        &["server_api_version"]
    );
    /// It could not be told of one pod.
    POD_RESOURCES_ERRORS_GET: Counter(
        "kubelet_pod_resources_endpoint_errors_get",
        "Number of requests to the PodResource Get endpoint which returned error. Broken down by server api version.",
        &["server_api_version"]
    );
    /// It could not be told what there is.
    POD_RESOURCES_ERRORS_ALLOCATABLE: Counter(
        "kubelet_pod_resources_endpoint_errors_get_allocatable",
        "Number of requests to the PodResource GetAllocatableResources endpoint which returned error. Broken down by server api version.",
        &["server_api_version"]
    );
    /// A pod was ended because the node is short of something.
    EVICTIONS: Counter(
        "kubelet_evictions", "Cumulative number of pod evictions by eviction signal", &["eviction_signal"]
    );
    /// An image was pulled.
    IMAGE_PULL_DURATION: Histogram(
        "kubelet_image_pull_duration_seconds",
        "Duration in seconds to pull an image.",
        &["image_size_in_bytes"],
        &PULLS
    );
    /// The runtime was asked for something.
    RUNTIME_OPERATIONS: Counter(
        "kubelet_runtime_operations_total", "Cumulative number of runtime operations by operation type.", &["operation_type"]
    );
    /// It refused, or did not answer.
    RUNTIME_OPERATIONS_ERRORS: Counter(
        "kubelet_runtime_operations_errors_total",
        "Cumulative number of runtime operation errors by operation type.",
        &["operation_type"]
    );
    /// How long it took.
    RUNTIME_OPERATIONS_DURATION: Histogram(
        "kubelet_runtime_operations_duration_seconds",
        "Duration in seconds of runtime operations. Broken down by operation type.",
        &["operation_type"],
        &OPERATIONS
    );
    /// The API server was asked for something.
    REST_CLIENT_REQUESTS: Counter(
        "rest_client_requests_total",
        "Number of HTTP requests, partitioned by status code, method, and host.",
        &["code", "host", "method"]
    );
    /// The node's API was asked for something.
    HTTP_REQUESTS: Counter(
        "kubelet_http_requests_total",
        "Number of the http requests received since the server started",
        &["long_running", "method", "path", "server_type"]
    );
    /// How long the answer took.
    HTTP_REQUESTS_DURATION: Histogram(
        "kubelet_http_requests_duration_seconds",
        "Duration in seconds to serve http requests",
        &["long_running", "method", "path", "server_type"],
        &DEFAULT
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_prometheus_reads() {
        // A23.3
        static COUNT: Counter = Counter::new("a_total", "Some.", &["x"]);
        static TOOK: Histogram = Histogram::new("b_seconds", "Long.", &[], &[0.5, 1.0]);
        COUNT.inc(&["a\"b"]);
        COUNT.inc(&["a\"b"]);
        for milliseconds in [250, 750, 5000] {
            TOOK.observe(&[], Duration::from_millis(milliseconds));
        }
        let mut page = String::new();
        COUNT.write(&mut page);
        TOOK.write(&mut page);
        let expected = "# HELP a_total [ALPHA] Some.\n# TYPE a_total counter\na_total{x=\"a\\\"b\"} 2\n\
            # HELP b_seconds [ALPHA] Long.\n# TYPE b_seconds histogram\nb_seconds_bucket{le=\"0.5\"} 1\n\
            b_seconds_bucket{le=\"1\"} 2\nb_seconds_bucket{le=\"+Inf\"} 3\nb_seconds_sum 6\nb_seconds_count 3\n";
        assert_eq!(page, expected);
    }

    #[test]
    fn names_are_told_once() {
        let page = text();
        let mut names: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
