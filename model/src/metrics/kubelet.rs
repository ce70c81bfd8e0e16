//! The metrics themselves: their names are kubelet's, so that its dashboards and alerts read them.

use super::{Counter, Expiry, Histogram};

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
const PULLS: [f64; 18] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0,
    3600.0,
];
/// Seconds that a pod may need to start.
const STARTS: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// Seconds that a storage driver may need.
const STORAGE: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];
/// Seconds that a certificate may last: a minute to four years.
const LIVES: [f64; 10] =
    [60.0, 3600.0, 14_400.0, 86_400.0, 604_800.0, 2_592_000.0, 7_776_000.0, 15_552_000.0, 31_104_000.0, 124_416_000.0];

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident: $kind:ident($($part:expr),*);)*) => {
        $($(#[$doc])* pub static $name: $kind = $kind::new($($part),*);)*

        /// All of them, in the text form of Prometheus, at this time in seconds since 1970.
        pub fn text(now: i64) -> String {
            let mut page = String::new();
            $($name.write(&mut page, now);)*
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
    /// A pod came back under the UID of one that had ended here.
    RESTARTED_PODS: Counter(
        "kubelet_restarted_pods_total",
        "Number of pods that have been restarted because they were deleted and recreated with the same UID while the kubelet was watching them (common for static pods, extremely uncommon for API pods)",
        &["static"]
    );
    /// A pod was ended in favour of a critical one.
    PREEMPTIONS: Counter(
        "kubelet_preemptions", "Cumulative number of pod preemptions by preemption resource", &["preemption_signal"]
    );
    /// A worker looked at its pod and did what followed from that.
    POD_WORKER_DURATION: Histogram(
        "kubelet_pod_worker_duration_seconds",
        "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
        &["operation_type"],
        &DEFAULT
    );
    /// A pod runs for the first time.
    POD_START_DURATION: Histogram(
        "kubelet_pod_start_duration_seconds",
        "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
        &[],
        &STARTS
    );
    /// The API server shows that it runs.
    POD_START_SLI_DURATION: Histogram(
        "kubelet_pod_start_sli_duration_seconds",
        "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
        &[],
        &STARTS
    );
    /// And how long that took in all.
    POD_START_TOTAL_DURATION: Histogram(
        "kubelet_pod_start_total_duration_seconds",
        "Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
        &[],
        &STARTS
    );
    /// The runtime was asked what there is of a pod, or of all.
    PLEG_RELIST_DURATION: Histogram(
        "kubelet_pleg_relist_duration_seconds", "Duration in seconds for relisting pods in PLEG.", &[], &DEFAULT
    );
    /// So long after the time before.
    PLEG_RELIST_INTERVAL: Histogram(
        "kubelet_pleg_relist_interval_seconds", "Interval in seconds between relisting in PLEG.", &[], &DEFAULT
    );
    /// A control group was made, limited or removed.
    CGROUP_MANAGER_DURATION: Histogram(
        "kubelet_cgroup_manager_duration_seconds",
        "Duration in seconds for cgroup manager operations. Broken down by method.",
        &["operation_type"],
        &DEFAULT
    );
    /// A volume was mounted, brought up to date or taken away.
    STORAGE_OPERATION_DURATION: Histogram(
        "storage_operation_duration_seconds",
        "Storage operation duration",
        &["migrated", "operation_name", "status", "volume_plugin"],
        &STORAGE
    );
    /// The client certificate ends.
    CLIENT_CERTIFICATE_TTL: Expiry(
        "kubelet_certificate_manager_client_ttl_seconds",
        "Gauge of the TTL (time-to-live) of the Kubelet's client certificate. The value is in seconds until certificate expiry (negative if already expired). If client certificate is invalid or unused, the value will be +INF."
    );
    /// No next client certificate was to be had.
    CLIENT_CERTIFICATE_ERRORS: Counter(
        "kubelet_certificate_manager_client_expiration_renew_errors", "Counter of certificate renewal errors.", &[]
    );
    /// The serving certificate ends.
    SERVER_CERTIFICATE_TTL: Expiry(
        "kubelet_certificate_manager_server_ttl_seconds",
        "Gauge of the shortest TTL (time-to-live) of the Kubelet's serving certificate. The value is in seconds until certificate expiry (negative if already expired). If serving certificate is invalid or unused, the value will be +INF."
    );
    /// No next serving certificate was to be had.
    SERVER_CERTIFICATE_ERRORS: Counter(
        "kubelet_server_expiration_renew_errors", "Counter of certificate renewal errors.", &[]
    );
    /// So long the one before was in use.
    SERVER_CERTIFICATE_ROTATION: Histogram(
        "kubelet_certificate_manager_server_rotation_seconds",
        "Histogram of the number of seconds the previous certificate lived before being rotated.",
        &[],
        &LIVES
    );
}
