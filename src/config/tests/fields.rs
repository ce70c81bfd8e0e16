//! Every field of KubeletConfiguration: its default, that another value is taken, and what comes of it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{file, resolved};

/// What comes of a field that was set.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    /// Somebody reads it.
    Heeded,
    /// It changes nothing, and whoever set it is told.
    InVain,
    /// It is refused, so that nobody believes in it.
    Refused,
}
use Fate::{Heeded, InVain, Refused};

/// Path, default, another value, what else has to be set, and what comes of it.
type Field = (&'static str, Value, Value, &'static str, Fate);

fn fields() -> Vec<(&'static str, Vec<Field>)> {
    let f = |path, default: Value, other: Value, fate| (path, default, other, "", fate);
    vec![
        (
            "A22.1a",
            vec![
                f("enableServer", json!(true), json!(false), Heeded),
                f("address", json!("0.0.0.0"), json!("127.0.0.1"), Heeded),
                f("port", json!(10250), json!(1), Heeded),
                f("readOnlyPort", json!(0), json!(10255), Heeded),
                f("healthzBindAddress", json!("127.0.0.1"), json!("::1"), Heeded),
                f("healthzPort", json!(10248), json!(0), Heeded),
                f("tlsCertFile", json!(""), json!("/c"), Heeded),
                f("tlsPrivateKeyFile", json!(""), json!("/k"), Heeded),
                f("tlsCipherSuites", json!([]), json!(["TLS_AES_128_GCM_SHA256"]), Heeded),
                f("tlsMinVersion", json!(""), json!("VersionTLS13"), Heeded),
                f("tlsCurvePreferences", json!([]), json!([29]), Heeded),
                f("rotateCertificates", json!(false), json!(true), Heeded),
                f("serverTLSBootstrap", json!(false), json!(true), Heeded),
                f("enableDebuggingHandlers", json!(true), json!(false), Heeded),
                f("enableSystemLogHandler", json!(true), json!(false), Heeded),
                f("enableSystemLogQuery", json!(false), json!(true), Heeded),
                f("enableProfilingHandler", json!(true), json!(false), InVain),
                f("enableDebugFlagsHandler", json!(true), json!(false), Heeded),
                f("enableContentionProfiling", json!(false), json!(true), InVain),
                f("streamingConnectionIdleTimeout", json!("4h0m0s"), json!("1h0m0s"), InVain),
            ],
        ),
        (
            "A22.1b",
            vec![
                f("authentication.anonymous.enabled", json!(false), json!(true), Heeded),
                f("authentication.webhook.enabled", json!(true), json!(false), Heeded),
                f("authentication.webhook.cacheTTL", json!("2m0s"), json!("7s"), Heeded),
                f("authentication.x509.clientCAFile", json!(""), json!("/ca"), Heeded),
                f("authorization.mode", json!("Webhook"), json!("AlwaysAllow"), Heeded),
                f("authorization.webhook.cacheAuthorizedTTL", json!("5m0s"), json!("7s"), Heeded),
                f("authorization.webhook.cacheUnauthorizedTTL", json!("30s"), json!("7s"), Heeded),
            ],
        ),
        (
            "A22.1c",
            vec![
                f("staticPodPath", json!(""), json!("/m"), Heeded),
                f("staticPodURL", json!(""), json!("http://m"), Heeded),
                f("staticPodURLHeader", json!({}), json!({"A": ["b"]}), Heeded),
                f("fileCheckFrequency", json!("20s"), json!("7s"), Heeded),
                f("httpCheckFrequency", json!("20s"), json!("7s"), Heeded),
                f("syncFrequency", json!("1m0s"), json!("7s"), Heeded),
            ],
        ),
        (
            "A22.1d",
            vec![
                f("registerNode", json!(true), json!(false), Heeded),
                f("registerWithTaints", json!([]), json!([{"effect": "NoSchedule", "key": "a"}]), Heeded),
                f("maxPods", json!(110), json!(7), Heeded),
                f("podsPerCore", json!(0), json!(7), Heeded),
                f("podCIDR", json!(""), json!("192.0.2.0/24"), Heeded),
                f("nodeStatusUpdateFrequency", json!("10s"), json!("7s"), Heeded),
                f("nodeStatusReportFrequency", json!("5m0s"), json!("7s"), Heeded),
                f("nodeLeaseDurationSeconds", json!(40), json!(7), Heeded),
                f("nodeStatusMaxImages", json!(50), json!(-1), Heeded),
                f("providerID", json!(""), json!("cloud://1"), Heeded),
                f("resolvConf", json!("/etc/resolv.conf"), json!(""), Heeded),
                f("clusterDNS", json!([]), json!(["192.0.2.1"]), Heeded),
                f("clusterDomain", json!(""), json!("example.org"), Heeded),
            ],
        ),
        (
            "A22.1e",
            vec![
                f("imageMinimumGCAge", json!("2m0s"), json!("7s"), Heeded),
                f("imageMaximumGCAge", json!("0s"), json!("7h0m0s"), Heeded),
                f("imageGCHighThresholdPercent", json!(85), json!(90), Heeded),
                f("imageGCLowThresholdPercent", json!(80), json!(7), Heeded),
                f("serializeImagePulls", json!(true), json!(false), Heeded),
                ("maxParallelImagePulls", Value::Null, json!(7), "serializeImagePulls: false\n", Heeded),
                f("registryPullQPS", json!(5), json!(7), Heeded),
                f("registryBurst", json!(10), json!(7), Heeded),
                f(
                    "imagePullCredentialsVerificationPolicy",
                    json!("NeverVerifyPreloadedImages"),
                    json!("AlwaysVerify"),
                    Heeded,
                ),
                f("preloadedImagesVerificationAllowlist", json!([]), json!(["a"]), Heeded),
            ],
        ),
        (
            "A22.1f",
            vec![
                f("cgroupDriver", json!("cgroupfs"), json!("systemd"), Heeded),
                f("cgroupRoot", json!(""), json!("/a"), Heeded),
                f("cgroupsPerQOS", json!(true), json!(false), Refused),
                f("kubeletCgroups", json!(""), json!("/a"), InVain),
                ("systemCgroups", json!(""), json!("/a"), "cgroupRoot: /\n", InVain),
                f("cpuCFSQuota", json!(true), json!(false), Heeded),
                f("cpuCFSQuotaPeriod", json!("100ms"), json!("7ms"), Heeded),
                f("podPidsLimit", json!(-1), json!(7), Heeded),
                f("failCgroupV1", json!(true), json!(false), Heeded),
                f("singleProcessOOMKill", json!(false), json!(true), Heeded),
                f("memorySwap.swapBehavior", json!(""), json!("LimitedSwap"), Heeded),
                f("memoryThrottlingFactor", json!(0.9), json!(0.5), InVain),
                f("memoryReservationPolicy", json!("None"), json!("TieredReservation"), Refused),
                f("failSwapOn", json!(true), json!(false), Heeded),
                f("oomScoreAdj", json!(-999), json!(7), Heeded),
            ],
        ),
        (
            "A22.1g",
            vec![
                f("cpuManagerPolicy", json!("none"), json!("static"), Heeded),
                (
                    "cpuManagerPolicyOptions",
                    json!({}),
                    json!({"full-pcpus-only": "true"}),
                    "cpuManagerPolicy: static\n",
                    Heeded,
                ),
                f("cpuManagerReconcilePeriod", json!("10s"), json!("7s"), Heeded),
                f("memoryManagerPolicy", json!("None"), json!("Static"), Heeded),
                f("reservedMemory", json!([]), json!([{"limits": {"memory": "1Gi"}, "numaNode": 0}]), Heeded),
                f("topologyManagerPolicy", json!("none"), json!("restricted"), Heeded),
                f("topologyManagerScope", json!("container"), json!("pod"), Heeded),
                f("topologyManagerPolicyOptions", json!({}), json!({"max-allowable-numa-nodes": "9"}), Heeded),
                f("reservedSystemCPUs", json!(""), json!("0"), Heeded),
                f("qosReserved", json!({}), json!({"memory": "50%"}), Refused),
            ],
        ),
        (
            "A22.1h",
            vec![
                f("systemReserved", json!({}), json!({"cpu": "1"}), Heeded),
                f("kubeReserved", json!({}), json!({"cpu": "1"}), Heeded),
                f("systemReservedCgroup", json!(""), json!("/a"), Heeded),
                f("kubeReservedCgroup", json!(""), json!("/a"), Heeded),
                f("enforceNodeAllocatable", json!(["pods"]), json!(["none"]), Heeded),
                f("evictionHard", Value::Null, json!({"memory.available": "7Mi"}), Heeded),
                (
                    "evictionSoft",
                    json!({}),
                    json!({"memory.available": "7Mi"}),
                    "evictionSoftGracePeriod: {memory.available: 1m}\n",
                    Heeded,
                ),
                f("evictionSoftGracePeriod", json!({}), json!({"memory.available": "1m"}), Heeded),
                f("evictionMinimumReclaim", json!({}), json!({"memory.available": "7Mi"}), Heeded),
                f("evictionPressureTransitionPeriod", json!("5m0s"), json!("7s"), Heeded),
                f("evictionMaxPodGracePeriod", json!(0), json!(7), Heeded),
                f("mergeDefaultEvictionSettings", json!(false), json!(true), Heeded),
                f("localStorageCapacityIsolation", json!(true), json!(false), Heeded),
                f("kernelMemcgNotification", json!(false), json!(true), Heeded),
            ],
        ),
        (
            "A22.1i",
            vec![
                f("containerLogMaxSize", json!("10Mi"), json!("7Mi"), Heeded),
                f("containerLogMaxFiles", json!(5), json!(7), Heeded),
                f("containerLogMaxWorkers", json!(1), json!(7), Heeded),
                f("containerLogMonitorInterval", json!("10s"), json!("7s"), Heeded),
                f("podLogsDir", json!("/var/log/pods"), json!("/a"), Heeded),
                f("logging.format", json!("text"), json!("json"), Heeded),
                f("logging.verbosity", json!(0), json!(7), Heeded),
                f("logging.flushFrequency", json!("5s"), json!("7s"), InVain),
            ],
        ),
        (
            "A22.1j",
            vec![
                f(
                    "containerRuntimeEndpoint",
                    json!("unix:///run/containerd/containerd.sock"),
                    json!("unix:///a"),
                    Heeded,
                ),
                f("imageServiceEndpoint", json!(""), json!("unix:///a"), Heeded),
                f("runtimeRequestTimeout", json!("2m0s"), json!("7s"), Heeded),
                f("seccompDefault", json!(false), json!(true), Heeded),
                f("allowedUnsafeSysctls", json!([]), json!(["net.core.somaxconn"]), Heeded),
                f("maxOpenFiles", json!(1_000_000), json!(7), Heeded),
                f(
                    "volumePluginDir",
                    json!("/usr/libexec/kubernetes/kubelet-plugins/volume/exec/"),
                    json!("/a"),
                    InVain,
                ),
                f("volumeStatsAggPeriod", json!("1m0s"), json!("7s"), Heeded),
                f("enableControllerAttachDetach", json!(true), json!(false), Heeded),
                f("configMapAndSecretChangeDetectionStrategy", json!("Watch"), json!("Get"), Heeded),
            ],
        ),
        (
            "A22.1k",
            vec![
                f("kubeAPIQPS", json!(50), json!(7), Heeded),
                f("kubeAPIBurst", json!(100), json!(7), Heeded),
                f("contentType", json!("application/vnd.kubernetes.protobuf"), json!("application/json"), InVain),
                f("eventRecordQPS", json!(50), json!(7), Heeded),
                f("eventBurst", json!(100), json!(7), Heeded),
            ],
        ),
        (
            "A22.1l",
            vec![
                f("makeIPTablesUtilChains", json!(true), json!(false), Heeded),
                f("iptablesMasqueradeBit", json!(14), json!(7), InVain),
                f("iptablesDropBit", json!(15), json!(7), InVain),
                f("hairpinMode", json!("promiscuous-bridge"), json!("none"), InVain),
                f("protectKernelDefaults", json!(false), json!(true), Heeded),
            ],
        ),
        (
            "A22.1m",
            vec![
                f("shutdownGracePeriod", json!("0s"), json!("7s"), Heeded),
                ("shutdownGracePeriodCriticalPods", json!("0s"), json!("7s"), "shutdownGracePeriod: 9s\n", Heeded),
                f(
                    "shutdownGracePeriodByPodPriority",
                    json!([]),
                    json!([{"priority": 1, "shutdownGracePeriodSeconds": 7}]),
                    Heeded,
                ),
                f("crashLoopBackOff.maxContainerRestartPeriod", json!("5m0s"), json!("7s"), Heeded),
                f("featureGates", json!({}), json!({"ExtendWebSocketsToKubelet": false}), Heeded),
                f("showHiddenMetricsForVersion", json!(""), json!("1.35"), InVain),
                f("tracing.samplingRatePerMillion", Value::Null, json!(7), Heeded),
                f("tracing.endpoint", Value::Null, json!("localhost:4317"), Heeded),
                f("runOnce", json!(false), json!(true), Refused),
            ],
        ),
    ]
}

/// `a.b: value` as a file has it.
fn written(path: &str, value: &Value) -> String {
    let nested = path.rsplit('.').fold(value.clone(), |inside, name| json!({ name: inside }));
    let (name, inside) = nested.as_object().and_then(|fields| fields.iter().next()).expect("one field");
    format!("{name}: {inside}\n")
}

fn at<'a>(config: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(config, |object, name| &object[name])
}

#[test]
fn every_field_is_taken_and_heeded_or_its_owner_is_told() {
    // A22.1a, A22.1b, A22.1c, A22.1d, A22.1e, A22.1f, A22.1h, A22.1i, A22.1j, A22.1k, A22.1l, A22.1m
    let defaults = resolved("");
    let readers = sources();
    for (row, fields) in fields() {
        for (path, default, other, with, fate) in fields {
            if !default.is_null() {
                assert_eq!(at(&defaults, path), &default, "{row} {path}");
            }
            let loaded = file(&format!("{with}{}", written(path, &other)));
            if fate == Refused {
                let error = loaded.err().unwrap_or_else(|| panic!("{row} {path} is taken"));
                assert!(error.contains(path), "{row}: {error}");
                continue;
            }
            let loaded = loaded.unwrap_or_else(|error| panic!("{row} {path}: {error}"));
            let config = serde_json::to_value(&loaded.kubelet).expect("JSON");
            assert_eq!(at(&config, path), &other, "{row} {path}");
            let told = loaded.warnings.iter().any(|line| line.contains(&format!("{path} has no effect")));
            assert_eq!(told, fate == InVain, "{row} {path}: {:?}", loaded.warnings);
            if fate == Heeded {
                let name = rust_name(path);
                let is_read = readers.iter().any(|text| text.contains(&format!(".{name}")));
                // What other fields' defaults follow from is read where they are resolved.
                assert!(is_read || path == "mergeDefaultEvictionSettings", "{row}: nobody reads {path}");
            }
        }
    }
}

/// What a field is called in `kubelet.rs`.
fn rust_name(path: &str) -> String {
    let name = path.rsplit('.').next().expect("a name");
    let table = include_str!("../kubelet.rs");
    let entry = table.split(&format!("\"{name}\" ")).nth(1).unwrap_or_else(|| panic!("{name} is in no table"));
    entry.split(':').next().expect("a name").trim().to_owned()
}

/// The agent's sources but those of this room.
fn sources() -> Vec<String> {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let is_ours = path.ends_with("src/config");
            let inside = fs::read_dir(&path).expect("a directory").flatten().map(|entry| entry.path());
            open.extend(inside.filter(|_| !is_ours).collect::<Vec<PathBuf>>());
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(fs::read_to_string(&path).expect("text"));
        }
    }
    found
}

#[test]
fn values_that_make_no_sense_are_refused() {
    // A3.9, A22.2e, A22.1f
    for (fields, words) in [
        ("eventRecordQPS: -1\n", ["eventRecordQPS", "-1"]),
        ("kubeAPIBurst: -1\n", ["kubeAPIBurst", "-1"]),
        ("iptablesDropBit: 32\n", ["iptablesDropBit", "31"]),
        ("cpuCFSQuotaPeriod: 2s\n", ["cpuCFSQuotaPeriod", "1ms to 1s"]),
        ("maxOpenFiles: -1\n", ["maxOpenFiles", "negative"]),
        ("memoryThrottlingFactor: 1.5\n", ["memoryThrottlingFactor", "at most 1"]),
        ("crashLoopBackOff: {maxContainerRestartPeriod: 301s}\n", ["maxContainerRestartPeriod", "300s"]),
        ("crashLoopBackOff: {maxContainerRestartPeriod: 999ms}\n", ["maxContainerRestartPeriod", "1s"]),
        ("imageMaximumGCAge: 1m\n", ["imageMaximumGCAge", "imageMinimumGCAge"]),
        ("systemCgroups: /a\n", ["systemCgroups", "cgroupRoot"]),
        ("featureGates: {NoSuchGate: true}\n", ["featureGates", "unrecognized feature gate: NoSuchGate"]),
        // A15.10
        ("shutdownGracePeriod: 500ms\n", ["shutdownGracePeriod", "at least 1s"]),
        ("shutdownGracePeriodCriticalPods: 5s\n", ["shutdownGracePeriodCriticalPods", "at most shutdownGracePeriod"]),
        (
            "shutdownGracePeriod: 5s\nshutdownGracePeriodByPodPriority: [{priority: 1, shutdownGracePeriodSeconds: 1}]\n",
            ["shutdownGracePeriodByPodPriority", "exclude each other"],
        ),
        (
            "shutdownGracePeriodByPodPriority: [{priority: 1, shutdownGracePeriodSeconds: -1}]\n",
            ["shutdownGracePeriodByPodPriority", "-1"],
        ),
    ] {
        let error = file(fields).expect_err(fields);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}
