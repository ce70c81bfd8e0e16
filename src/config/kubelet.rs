//! KubeletConfiguration v1beta1: every field of 1.36 with its default (A22.1).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Taint;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::duration::GoDuration;
use super::settings::settings;

type Strings = Vec<String>;
type Map = BTreeMap<String, String>;

const fn seconds(seconds: u64) -> GoDuration {
    GoDuration::seconds(seconds)
}

/// The eviction thresholds that hold where nothing is configured (A13.4).
pub(super) fn default_eviction_hard() -> Map {
    [
        ("memory.available", "100Mi"),
        ("nodefs.available", "10%"),
        ("nodefs.inodesFree", "5%"),
        ("imagefs.available", "15%"),
        ("imagefs.inodesFree", "5%"),
    ]
    .into_iter()
    .map(|(signal, threshold)| (signal.to_owned(), threshold.to_owned()))
    .collect()
}

/// `shutdownGracePeriodByPodPriority[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ShutdownGracePeriod {
    /// Pods of at least this priority…
    pub priority: i32,
    /// …have so long.
    pub shutdown_grace_period_seconds: i64,
}

/// `reservedMemory[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MemoryReservation {
    /// Which NUMA node.
    pub numa_node: i32,
    /// How much of what.
    pub limits: Map,
}

settings! {
    /// `authentication.x509`.
    X509AsWritten => X509 {
        "clientCAFile" client_ca_file: String = zero;
    }
}
settings! {
    /// `authentication.webhook`.
    WebhookAsWritten => Webhook {
        "enabled" enabled: bool = nil(true);
        "cacheTTL" cache_ttl: GoDuration = zero(seconds(120));
    }
}
settings! {
    /// `authentication.anonymous`.
    AnonymousAsWritten => Anonymous {
        "enabled" enabled: bool = nil(false);
    }
}
settings! {
    /// `authentication`: how the node's API knows who asks.
    AuthenticationAsWritten => Authentication {
        "x509" x509: X509 = nested;
        "webhook" webhook: Webhook = nested;
        "anonymous" anonymous: Anonymous = nested;
    }
}
settings! {
    /// `authorization.webhook`.
    AccessReviewAsWritten => AccessReview {
        "cacheAuthorizedTTL" cache_authorized_ttl: GoDuration = zero(seconds(300));
        "cacheUnauthorizedTTL" cache_unauthorized_ttl: GoDuration = zero(seconds(30));
    }
}
settings! {
    /// `authorization`: what those who ask may do.
    AuthorizationAsWritten => Authorization {
        "mode" mode: String = zero("Webhook");
        "webhook" webhook: AccessReview = nested;
    }
}
settings! {
    /// `memorySwap`.
    MemorySwapAsWritten => MemorySwap {
        "swapBehavior" swap_behavior: String = zero;
    }
}
settings! {
    /// `crashLoopBackOff`.
    CrashLoopAsWritten => CrashLoop {
        "maxContainerRestartPeriod" max_container_restart_period: GoDuration = nil(seconds(300));
    }
}
settings! {
    /// `userNamespaces`.
    UserNamespacesAsWritten => UserNamespaces {
        "idsPerPod" ids_per_pod: i64 = nil(65536);
    }
}
settings! {
    /// `tracing`.
    TracingAsWritten => Tracing {
        "endpoint" endpoint: String = nil;
        "samplingRatePerMillion" sampling_rate_per_million: i32 = nil;
    }
}
settings! {
    /// `logging`; `flushFrequency` may be a number of nanoseconds or a duration.
    LoggingAsWritten => Logging {
        "format" format: String = zero("text");
        "flushFrequency" flush_frequency: Value = zero("5s");
        "verbosity" verbosity: i32 = zero;
        "vmodule" vmodule: Vec<Value> = zero;
        "options" options: Value = nil;
    }
}

settings! {
    /// The resolved KubeletConfiguration. A field's meaning is upstream's; rows A22.1a to A22.1m list them.
    KubeletAsWritten => KubeletConfig {
        "kind" kind: String = zero("KubeletConfiguration");
        "apiVersion" api_version: String = zero("kubelet.config.k8s.io/v1beta1");
        // A22.1a
        "enableServer" enable_server: bool = nil(true);
        "address" address: String = zero("0.0.0.0");
        "port" port: i32 = zero(10250);
        "readOnlyPort" read_only_port: i32 = zero;
        "healthzBindAddress" healthz_bind_address: String = zero("127.0.0.1");
        "healthzPort" healthz_port: i32 = nil(10248);
        "tlsCertFile" tls_cert_file: String = zero;
        "tlsPrivateKeyFile" tls_private_key_file: String = zero;
        "tlsCipherSuites" tls_cipher_suites: Strings = zero;
        "tlsMinVersion" tls_min_version: String = zero;
        "tlsCurvePreferences" tls_curve_preferences: Vec<i32> = zero;
        "rotateCertificates" rotate_certificates: bool = zero;
        "serverTLSBootstrap" server_tls_bootstrap: bool = zero;
        "enableDebuggingHandlers" enable_debugging_handlers: bool = nil(true);
        "enableSystemLogHandler" enable_system_log_handler: bool = nil(true);
        "enableSystemLogQuery" enable_system_log_query: bool = nil(false);
        "enableProfilingHandler" enable_profiling_handler: bool = nil(true);
        "enableDebugFlagsHandler" enable_debug_flags_handler: bool = nil(true);
        "enableContentionProfiling" enable_contention_profiling: bool = zero;
        "streamingConnectionIdleTimeout" streaming_connection_idle_timeout: GoDuration = zero(seconds(4 * 3600));
        // A22.1b
        "authentication" authentication: Authentication = nested;
        "authorization" authorization: Authorization = nested;
        // A22.1c
        "staticPodPath" static_pod_path: String = zero;
        "staticPodURL" static_pod_url: String = zero;
        "staticPodURLHeader" static_pod_url_header: BTreeMap<String, Vec<String>> = zero;
        "fileCheckFrequency" file_check_frequency: GoDuration = zero(seconds(20));
        "httpCheckFrequency" http_check_frequency: GoDuration = zero(seconds(20));
        "syncFrequency" sync_frequency: GoDuration = zero(seconds(60));
        // A22.1d
        "registerNode" register_node: bool = nil(true);
        "registerWithTaints" register_with_taints: Vec<Taint> = zero;
        "maxPods" max_pods: i32 = zero(110);
        "podsPerCore" pods_per_core: i32 = zero;
        "podCIDR" pod_cidr: String = zero;
        "nodeStatusUpdateFrequency" node_status_update_frequency: GoDuration = zero(seconds(10));
        "nodeStatusReportFrequency" node_status_report_frequency: GoDuration = zero(seconds(300));
        "nodeLeaseDurationSeconds" node_lease_duration_seconds: i32 = zero(40);
        "nodeStatusMaxImages" node_status_max_images: i32 = nil(50);
        "providerID" provider_id: String = zero;
        "resolvConf" resolv_conf: String = nil("/etc/resolv.conf");
        "clusterDNS" cluster_dns: Strings = zero;
        "clusterDomain" cluster_domain: String = zero;
        // A22.1e
        "imageMinimumGCAge" image_minimum_gc_age: GoDuration = zero(seconds(120));
        "imageMaximumGCAge" image_maximum_gc_age: GoDuration = zero;
        "imageGCHighThresholdPercent" image_gc_high_threshold_percent: i32 = nil(85);
        "imageGCLowThresholdPercent" image_gc_low_threshold_percent: i32 = nil(80);
        "serializeImagePulls" serialize_image_pulls: bool = nil(true);
        "maxParallelImagePulls" max_parallel_image_pulls: i32 = nil;
        "registryPullQPS" registry_pull_qps: i32 = nil(5);
        "registryBurst" registry_burst: i32 = zero(10);
        "imagePullCredentialsVerificationPolicy" image_pull_credentials_verification_policy: String
            = zero("NeverVerifyPreloadedImages");
        "preloadedImagesVerificationAllowlist" preloaded_images_verification_allowlist: Strings = zero;
        // A22.1f
        "cgroupDriver" cgroup_driver: String = zero("cgroupfs");
        "cgroupRoot" cgroup_root: String = zero;
        "cgroupsPerQOS" cgroups_per_qos: bool = nil(true);
        "kubeletCgroups" kubelet_cgroups: String = zero;
        "systemCgroups" system_cgroups: String = zero;
        "cpuCFSQuota" cpu_cfs_quota: bool = nil(true);
        "cpuCFSQuotaPeriod" cpu_cfs_quota_period: GoDuration = nil(GoDuration::milliseconds(100));
        "podPidsLimit" pod_pids_limit: i64 = nil(-1);
        "failCgroupV1" fail_cgroup_v1: bool = nil(true);
        "singleProcessOOMKill" single_process_oom_kill: bool = nil(false);
        "memorySwap" memory_swap: MemorySwap = nested;
        "memoryThrottlingFactor" memory_throttling_factor: f64 = nil(0.9);
        "memoryReservationPolicy" memory_reservation_policy: String = zero("None");
        "failSwapOn" fail_swap_on: bool = nil(true);
        "oomScoreAdj" oom_score_adj: i32 = nil(-999);
        // A22.1g
        "cpuManagerPolicy" cpu_manager_policy: String = zero("none");
        "cpuManagerPolicyOptions" cpu_manager_policy_options: Map = zero;
        "cpuManagerReconcilePeriod" cpu_manager_reconcile_period: GoDuration = zero(seconds(10));
        "memoryManagerPolicy" memory_manager_policy: String = zero("None");
        "reservedMemory" reserved_memory: Vec<MemoryReservation> = zero;
        "topologyManagerPolicy" topology_manager_policy: String = zero("none");
        "topologyManagerScope" topology_manager_scope: String = zero("container");
        "topologyManagerPolicyOptions" topology_manager_policy_options: Map = zero;
        "reservedSystemCPUs" reserved_system_cpus: String = zero;
        "qosReserved" qos_reserved: Map = zero;
        // A22.1h
        "systemReserved" system_reserved: Map = zero;
        "kubeReserved" kube_reserved: Map = zero;
        "systemReservedCgroup" system_reserved_cgroup: String = zero;
        "kubeReservedCgroup" kube_reserved_cgroup: String = zero;
        "enforceNodeAllocatable" enforce_node_allocatable: Strings = nil(vec!["pods".to_owned()]);
        "evictionHard" eviction_hard: Map = nil(default_eviction_hard());
        "evictionSoft" eviction_soft: Map = zero;
        "evictionSoftGracePeriod" eviction_soft_grace_period: Map = zero;
        "evictionMinimumReclaim" eviction_minimum_reclaim: Map = zero;
        "evictionPressureTransitionPeriod" eviction_pressure_transition_period: GoDuration = zero(seconds(300));
        "evictionMaxPodGracePeriod" eviction_max_pod_grace_period: i32 = zero;
        "mergeDefaultEvictionSettings" merge_default_eviction_settings: bool = nil(false);
        "localStorageCapacityIsolation" local_storage_capacity_isolation: bool = nil(true);
        "kernelMemcgNotification" kernel_memcg_notification: bool = zero;
        // A22.1i
        "containerLogMaxSize" container_log_max_size: String = zero("10Mi");
        "containerLogMaxFiles" container_log_max_files: i32 = nil(5);
        "containerLogMaxWorkers" container_log_max_workers: i32 = nil(1);
        "containerLogMonitorInterval" container_log_monitor_interval: GoDuration = nil(seconds(10));
        "podLogsDir" pod_logs_dir: String = zero("/var/log/pods");
        "logging" logging: Logging = nested;
        // A22.1j
        "containerRuntimeEndpoint" container_runtime_endpoint: String = zero("unix:///run/containerd/containerd.sock");
        "imageServiceEndpoint" image_service_endpoint: String = zero;
        "runtimeRequestTimeout" runtime_request_timeout: GoDuration = zero(seconds(120));
        "seccompDefault" seccomp_default: bool = nil(false);
        "allowedUnsafeSysctls" allowed_unsafe_sysctls: Strings = zero;
        "maxOpenFiles" max_open_files: i64 = zero(1_000_000);
        "volumePluginDir" volume_plugin_dir: String = zero("/usr/libexec/kubernetes/kubelet-plugins/volume/exec/");
        "volumeStatsAggPeriod" volume_stats_agg_period: GoDuration = zero(seconds(60));
        "enableControllerAttachDetach" enable_controller_attach_detach: bool = nil(true);
        "configMapAndSecretChangeDetectionStrategy" change_detection_strategy: String = zero("Watch");
        "userNamespaces" user_namespaces: UserNamespaces = nested;
        // A22.1k
        "kubeAPIQPS" kube_api_qps: i32 = nil(50);
        "kubeAPIBurst" kube_api_burst: i32 = zero(100);
        "contentType" content_type: String = zero("application/vnd.kubernetes.protobuf");
        "eventRecordQPS" event_record_qps: i32 = nil(50);
        "eventBurst" event_burst: i32 = zero(100);
        // A22.1l
        "makeIPTablesUtilChains" make_iptables_util_chains: bool = nil(true);
        "iptablesMasqueradeBit" iptables_masquerade_bit: i32 = nil(14);
        "iptablesDropBit" iptables_drop_bit: i32 = nil(15);
        "hairpinMode" hairpin_mode: String = zero("promiscuous-bridge");
        "protectKernelDefaults" protect_kernel_defaults: bool = zero;
        // A22.1m
        "shutdownGracePeriod" shutdown_grace_period: GoDuration = zero;
        "shutdownGracePeriodCriticalPods" shutdown_grace_period_critical_pods: GoDuration = zero;
        "shutdownGracePeriodByPodPriority" shutdown_grace_period_by_pod_priority: Vec<ShutdownGracePeriod> = zero;
        "crashLoopBackOff" crash_loop_back_off: CrashLoop = nested;
        "featureGates" feature_gates: BTreeMap<String, bool> = zero;
        "showHiddenMetricsForVersion" show_hidden_metrics_for_version: String = zero;
        "tracing" tracing: Tracing = nested;
        "runOnce" run_once: bool = zero;
    }
}
