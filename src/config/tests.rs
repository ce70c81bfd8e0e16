//! Defaults and precedence of the configuration, as the contract lists them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::kubelet::KubeletConfig;
use super::load::{Loaded, load};

mod fields;

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn write(&self, name: &str, fields: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        fs::write(&path, format!("{head}{fields}")).expect("written");
        path
    }
}

fn file(fields: &str) -> Result<Loaded, String> {
    let files = Files::new();
    let path = files.write("config.yaml", fields);
    load(Some(&path), None, &json!({}), false).map_err(|e| e.to_string())
}

/// The resolved configuration as `/configz` shows it.
fn resolved(fields: &str) -> Value {
    serde_json::to_value(file(fields).expect("valid").kubelet).expect("JSON")
}

#[track_caller]
fn check(config: &Value, expected: &[(&str, Value)]) {
    for (path, value) in expected {
        // Dots separate fields; where a name has dots itself, slashes do.
        let pointer = if path.contains('/') { format!("/{path}") } else { format!("/{}", path.replace('.', "/")) };
        assert_eq!(config.pointer(&pointer), Some(value), "{path}");
    }
}

fn defaults() -> Vec<(&'static str, Value)> {
    vec![
        ("enableServer", json!(true)),
        ("address", json!("0.0.0.0")),
        ("port", json!(10250)),
        ("readOnlyPort", json!(0)),
        ("healthzBindAddress", json!("127.0.0.1")),
        ("healthzPort", json!(10248)),
        ("rotateCertificates", json!(false)),
        ("enableDebuggingHandlers", json!(true)),
        ("streamingConnectionIdleTimeout", json!("4h0m0s")),
        ("authentication.anonymous.enabled", json!(false)),
        ("authentication.webhook.enabled", json!(true)),
        ("authentication.webhook.cacheTTL", json!("2m0s")),
        ("authorization.mode", json!("Webhook")),
        ("authorization.webhook.cacheAuthorizedTTL", json!("5m0s")),
        ("authorization.webhook.cacheUnauthorizedTTL", json!("30s")),
        ("fileCheckFrequency", json!("20s")),
        ("httpCheckFrequency", json!("20s")),
        ("syncFrequency", json!("1m0s")),
        ("registerNode", json!(true)),
        ("maxPods", json!(110)),
        ("nodeStatusUpdateFrequency", json!("10s")),
        ("nodeStatusReportFrequency", json!("5m0s")),
        ("nodeLeaseDurationSeconds", json!(40)),
        ("nodeStatusMaxImages", json!(50)),
        ("resolvConf", json!("/etc/resolv.conf")),
        ("imageMinimumGCAge", json!("2m0s")),
        ("imageMaximumGCAge", json!("0s")),
        ("imageGCHighThresholdPercent", json!(85)),
        ("imageGCLowThresholdPercent", json!(80)),
        ("serializeImagePulls", json!(true)),
        ("registryPullQPS", json!(5)),
        ("registryBurst", json!(10)),
        ("imagePullCredentialsVerificationPolicy", json!("NeverVerifyPreloadedImages")),
        ("cgroupDriver", json!("cgroupfs")),
        ("cgroupsPerQOS", json!(true)),
        ("cpuCFSQuota", json!(true)),
        ("cpuCFSQuotaPeriod", json!("100ms")),
        ("podPidsLimit", json!(-1)),
        ("failCgroupV1", json!(true)),
        ("memoryThrottlingFactor", json!(0.9)),
        ("failSwapOn", json!(true)),
        ("oomScoreAdj", json!(-999)),
        ("cpuManagerPolicy", json!("none")),
        ("memoryManagerPolicy", json!("None")),
        ("topologyManagerPolicy", json!("none")),
        ("topologyManagerScope", json!("container")),
        ("enforceNodeAllocatable", json!(["pods"])),
        (
            "evictionHard",
            json!({
                "memory.available": "100Mi", "nodefs.available": "10%", "nodefs.inodesFree": "5%",
                "imagefs.available": "15%", "imagefs.inodesFree": "5%",
            }),
        ),
        ("evictionPressureTransitionPeriod", json!("5m0s")),
        ("localStorageCapacityIsolation", json!(true)),
        ("containerLogMaxSize", json!("10Mi")),
        ("containerLogMaxFiles", json!(5)),
        ("podLogsDir", json!("/var/log/pods")),
        ("containerRuntimeEndpoint", json!("unix:///run/containerd/containerd.sock")),
        ("runtimeRequestTimeout", json!("2m0s")),
        ("maxOpenFiles", json!(1_000_000)),
        ("volumeStatsAggPeriod", json!("1m0s")),
        ("configMapAndSecretChangeDetectionStrategy", json!("Watch")),
        ("userNamespaces.idsPerPod", json!(65536)),
        ("kubeAPIQPS", json!(50)),
        ("kubeAPIBurst", json!(100)),
        ("eventRecordQPS", json!(50)),
        ("eventBurst", json!(100)),
        ("makeIPTablesUtilChains", json!(true)),
        ("iptablesMasqueradeBit", json!(14)),
        ("hairpinMode", json!("promiscuous-bridge")),
        ("shutdownGracePeriod", json!("0s")),
        ("crashLoopBackOff.maxContainerRestartPeriod", json!("5m0s")),
    ]
}

#[test]
fn an_empty_file_gives_upstreams_defaults() {
    // Who may ask, how long answers about them hold, and where: A18.16, A18.17, A18.19.
    check(&resolved(""), &defaults());
}

#[test]
fn zeros_mean_defaults_as_kubeadm_writes_them() {
    // A22.2a
    let kubeadm = "\
authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization:
  mode: Webhook
  webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}
cgroupDriver: systemd
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: \"\"
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
logging:
  flushFrequency: 0
  options: {json: {infoBufferSize: \"0\"}, text: {infoBufferSize: \"0\"}}
  verbosity: 0
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
resolvConf: /run/systemd/resolve/resolv.conf
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
";
    let loaded = file(kubeadm).expect("valid");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let config = serde_json::to_value(loaded.kubelet).expect("JSON");
    let written = ["cgroupDriver", "resolvConf", "rotateCertificates"];
    let expected: Vec<_> = defaults().into_iter().filter(|(path, _)| !written.contains(path)).collect();
    check(&config, &expected);
    check(
        &config,
        &[
            ("staticPodPath", json!("/etc/kubernetes/manifests")),
            ("cgroupDriver", json!("systemd")),
            ("resolvConf", json!("/run/systemd/resolve/resolv.conf")),
            ("rotateCertificates", json!(true)),
            ("clusterDNS", json!(["10.96.0.10"])),
        ],
    );
}

#[test]
fn flags_override_drop_ins_override_the_file() {
    // A22.2c, A22.2d
    let files = Files::new();
    let path =
        files.write("config.yaml", "maxPods: 1\nport: 1111\nhealthzPort: 1\nevictionHard: {memory.available: 1Mi}\n");
    files.write("drop/10.conf", "maxPods: 2\nport: 2222\nevictionHard: {nodefs.available: 2%}\n");
    files.write("drop/20.conf", "maxPods: 3\n");
    files.write("drop/30.ignored", "maxPods: 4\n");
    let flags = json!({ "port": 9999, "featureGates": { "MemoryQoS": true } });
    let loaded = load(Some(&path), Some(&files.dir.path().join("drop")), &flags, false).expect("valid");
    let config = serde_json::to_value(loaded.kubelet).expect("JSON");
    check(
        &config,
        &[
            ("maxPods", json!(3)),
            ("port", json!(9999)),
            ("healthzPort", json!(1)),
            ("evictionHard", json!({ "memory.available": "1Mi", "nodefs.available": "2%" })),
            ("featureGates", json!({ "MemoryQoS": true })),
        ],
    );
}

#[test]
fn a_map_given_as_flag_replaces_that_of_the_file() {
    let files = Files::new();
    let path = files.write("config.yaml", "kubeReserved: {cpu: 100m}\nauthentication: {webhook: {cacheTTL: 7s}}\n");
    let flags = json!({ "kubeReserved": { "memory": "1Gi" }, "authentication": { "webhook": { "enabled": false } } });
    let loaded = load(Some(&path), None, &flags, false).expect("valid");
    let config = serde_json::to_value(loaded.kubelet).expect("JSON");
    check(
        &config,
        &[
            ("kubeReserved", json!({ "memory": "1Gi" })),
            ("authentication.webhook", json!({ "enabled": false, "cacheTTL": "7s" })),
        ],
    );
}

#[test]
fn unknown_and_repeated_fields_are_warned_of() {
    // A22.1: strict first, then leniently
    for (fields, word) in [
        ("maxPods: 7\nmaxPodz: 1\n", "maxPodz"),
        ("maxPods: 7\nauthentication: {x509: {file: a}}\n", "authentication.x509.file"),
        ("maxPods: 3\nmaxPods: 7\n", "maxPods"),
    ] {
        let loaded = file(fields).expect("lenient");
        assert_eq!(loaded.kubelet.max_pods, 7, "{fields}");
        let [warning] = loaded.warnings.as_slice() else { panic!("{:?}", loaded.warnings) };
        assert!(warning.contains(word) && warning.contains("config.yaml") && warning.contains("line"), "{warning}");
    }
}

#[test]
fn mistakes_name_file_field_and_line() {
    for (fields, words) in [
        ("port: 1\nmaxPods: many\n", ["config.yaml", "maxPods", "line 4"]),
        ("syncFrequency: 10\n", ["config.yaml", "syncFrequency", "line 3"]),
        ("cgroupDriver: both\n", ["config.yaml", "cgroupDriver", "systemd"]),
        ("evictionHard: {memory.available: lots}\n", ["config.yaml", "evictionHard", "lots"]),
        ("kubeReserved: {cpu: x}\n", ["config.yaml", "kubeReserved", "cpu"]),
        ("clusterDNS: [dns]\n", ["config.yaml", "clusterDNS", "dns"]),
        ("evictionSoft: {memory.available: 1Gi}\n", ["config.yaml", "evictionSoft", "evictionSoftGracePeriod"]),
    ] {
        let error = file(fields).expect_err(fields);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let files = Files::new();
    let path = files.dir.path().join("other.yaml");
    fs::write(&path, "apiVersion: v1\nkind: Pod\n").expect("written");
    let error = load(Some(&path), None, &json!({}), false).expect_err("a pod").to_string();
    assert!(error.contains("v1 Pod") && error.contains("KubeletConfiguration"), "{error}");
    let error = load(Some(&files.dir.path().join("none")), None, &json!({}), false).expect_err("no file").to_string();
    assert!(error.contains("none"), "{error}");
}

#[test]
fn fields_of_eviction_logs_and_pulls_are_checked() {
    // A22.1h, A22.1i, A14.3
    for (fields, words) in [
        ("evictionHard: {memory.available: 101%}\n", ["evictionHard", "101%"]),
        (
            "maxParallelImagePulls: 3\nserializeImagePulls: true\n",
            ["maxParallelImagePulls", "serializeImagePulls: false"],
        ),
        ("maxParallelImagePulls: -1\n", ["maxParallelImagePulls", "-1"]),
        ("containerLogMaxSize: big\n", ["containerLogMaxSize", "big"]),
        ("containerLogMaxFiles: 1\n", ["containerLogMaxFiles", "2"]),
        ("containerLogMaxWorkers: 0\n", ["containerLogMaxWorkers", "1"]),
        ("containerLogMonitorInterval: 2s\n", ["containerLogMonitorInterval", "3s"]),
        ("podLogsDir: var/log\n", ["podLogsDir", "absolute"]),
        ("podLogsDir: /var/../log\n", ["podLogsDir", "/var/../log"]),
        ("podLogsDir: /var//log/\n", ["podLogsDir", "/var//log/"]),
        ("enforceNodeAllocatable: [pods, everything]\n", ["enforceNodeAllocatable", "everything"]),
        ("memorySwap: {swapBehavior: UnlimitedSwap}\n", ["memorySwap.swapBehavior", "LimitedSwap"]),
    ] {
        let error = file(fields).expect_err(fields);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let fields = "hairpinMode: none\nlogging: {vmodule: [{filePattern: a, verbosity: 3}]}\n";
    let warnings = file(fields).expect("valid").warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("hairpinMode has no effect") && warnings[1].contains("vmodule"));
}

#[test]
fn some_defaults_follow_other_fields() {
    // A22.1d, A22.1e, A13.4
    check(&resolved("nodeStatusUpdateFrequency: 3s\n"), &[("nodeStatusReportFrequency", json!("3s"))]);
    check(&resolved("maxParallelImagePulls: 4\n"), &[("serializeImagePulls", json!(false))]);
    check(
        &resolved("evictionHard: {memory.available: 1Gi}\n"),
        &[("evictionHard", json!({ "memory.available": "1Gi" }))],
    );
    let defaults = json!({
        "memory.available": "100Mi", "nodefs.available": "10%", "nodefs.inodesFree": "5%", "imagefs.available": "15%",
        "imagefs.inodesFree": "5%",
    });
    check(&resolved(""), &[("evictionHard", defaults.clone())]);
    check(&resolved("mergeDefaultEvictionSettings: true\n"), &[("evictionHard", defaults)]);
    let merged = resolved("mergeDefaultEvictionSettings: true\nevictionHard: {memory.available: 1Gi}\n");
    check(&merged, &[("evictionHard/memory.available", json!("1Gi")), ("evictionHard/nodefs.available", json!("10%"))]);
}

#[test]
fn kubelet_without_a_file_is_as_open_as_it_ever_was() {
    // A22.1a
    let open = load(None, None, &json!({}), true).expect("valid").kubelet;
    assert_eq!((open.read_only_port, open.authorization.mode.as_str()), (10255, "AlwaysAllow"));
    assert!(open.authentication.anonymous.enabled && !open.authentication.webhook.enabled);
    let ours = load(None, None, &json!({}), false).expect("valid").kubelet;
    assert_eq!((ours.read_only_port, ours.authorization.mode.as_str()), (0, "Webhook"));
}

#[test]
fn managers_are_configured_as_upstream_does() {
    // A22.1g, A15.2, A15.3, A15.4
    check(
        &resolved(""),
        &[
            ("cpuManagerPolicy", json!("none")),
            ("cpuManagerPolicyOptions", json!({})),
            ("cpuManagerReconcilePeriod", json!("10s")),
            ("memoryManagerPolicy", json!("None")),
            ("reservedMemory", json!([])),
            ("topologyManagerPolicy", json!("none")),
            ("topologyManagerScope", json!("container")),
            ("topologyManagerPolicyOptions", json!({})),
            ("reservedSystemCPUs", json!("")),
            ("qosReserved", json!({})),
        ],
    );
    let all = "cpuManagerPolicy: static
cpuManagerPolicyOptions: {full-pcpus-only: 'true', strict-cpu-reservation: 'false', distribute-cpus-across-numa: 'true'}
reservedSystemCPUs: 0-1
memoryManagerPolicy: Static
reservedMemory: [{numaNode: 0, limits: {memory: 1Gi, hugepages-2Mi: 4Mi}}]
topologyManagerPolicy: single-numa-node
topologyManagerScope: pod
topologyManagerPolicyOptions: {prefer-closest-numa-nodes: 'true', max-allowable-numa-nodes: '16'}
";
    check(&resolved(all), &[("reservedMemory/0/limits/memory", json!("1Gi")), ("topologyManagerScope", json!("pod"))]);
    for (fields, words) in [
        ("cpuManagerPolicy: both\n", ["cpuManagerPolicy", "both"]),
        ("cpuManagerPolicyOptions: {full-pcpus-only: 'true'}\n", ["cpuManagerPolicyOptions", "static"]),
        (
            "cpuManagerPolicy: static\ncpuManagerPolicyOptions: {full-pcpus-only: maybe}\n",
            ["bad value", "full-pcpus-only"],
        ),
        (
            "cpuManagerPolicy: static\ncpuManagerPolicyOptions: {x: 'true'}\n",
            ["unknown CPU Manager Policy option", "x"],
        ),
        (
            "cpuManagerPolicy: static\ncpuManagerPolicyOptions: {align-by-socket: 'true'}\n",
            ["Alpha-level Options not enabled", "align-by-socket"],
        ),
        (
            "cpuManagerPolicy: static\ncpuManagerPolicyOptions: {prefer-align-cpus-by-uncorecache: 'true', \
             distribute-cpus-across-numa: 'true'}\n",
            ["can not be used at the same time", "distribute-cpus-across-numa"],
        ),
        ("reservedSystemCPUs: '0'\nkubeReservedCgroup: /k\n", ["reservedSystemCPUs", "kubeReservedCgroup"]),
        ("memoryManagerPolicy: BestEffort\n", ["memoryManagerPolicy", "Static"]),
        ("reservedMemory: [{numaNode: 0, limits: {cpu: 1Gi}}]\n", ["reservedMemory", "not supported"]),
        ("reservedMemory: [{numaNode: 0, limits: {memory: '0'}}]\n", ["reservedMemory", "may not be zero"]),
        (
            "reservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}, {numaNode: 0, limits: {memory: 1Gi}}]\n",
            ["reservedMemory", "duplicate value"],
        ),
        ("topologyManagerPolicyOptions: {x: 'true'}\n", ["unknown Topology Manager Policy option", "x"]),
        (
            "topologyManagerPolicyOptions: {max-allowable-numa-nodes: '4'}\n",
            ["max-allowable-numa-nodes", "less than 8"],
        ),
        ("qosReserved: {memory: 50%}\n", ["qosReserved", "QOSReserved"]),
    ] {
        let error = file(fields).expect_err(fields);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

/// An item of section 4.2 of the CIS Kubernetes benchmark, and whether a configuration passes it.
type CisItem = (&'static str, &'static str, fn(&KubeletConfig) -> bool);

#[test]
fn the_packaged_configuration_passes_the_cis_benchmark() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/etc/kubelet.yaml");
    let loaded = load(Some(&file), None, &json!({}), true).expect("the packaged file");
    assert_eq!(loaded.warnings, [""; 0]);
    let config = loaded.kubelet;
    let items: [CisItem; 13] = [
        ("4.2.1", "anonymous requests are refused", |config| !config.authentication.anonymous.enabled),
        ("4.2.2", "not everything is allowed", |config| config.authorization.mode == "Webhook"),
        ("4.2.3", "clients show certificates", |config| !config.authentication.x509.client_ca_file.is_empty()),
        ("4.2.4", "there is no read-only port", |config| config.read_only_port == 0),
        ("4.2.5", "idle streams end", |config| !config.streaming_connection_idle_timeout.0.is_zero()),
        ("4.2.6", "chains of iptables are kept", |config| config.make_iptables_util_chains),
        ("4.2.8", "events are limited", |config| config.event_record_qps > 0),
        ("4.2.9", "half a pair of TLS files is none", |config| {
            config.tls_cert_file.is_empty() == config.tls_private_key_file.is_empty()
        }),
        ("4.2.10", "client certificates are rotated", |config| config.rotate_certificates),
        ("4.2.11", "serving certificates may be rotated", |config| {
            config.feature_gates.get("RotateKubeletServerCertificate") != Some(&false)
        }),
        ("4.2.12", "suites are left to us, who have no weak one", |config| config.tls_cipher_suites.is_empty()),
        ("4.2.13", "pods have a limit of processes", |config| config.pod_pids_limit > 0),
        ("4.2.14", "seccomp is on by default", |config| config.seccomp_default),
    ];
    for (number, what, passes) in items {
        assert!(passes(&config), "{number}: {what}");
    }
    // 4.2.7: the unit gives the node no other name. 4.1: nobody but root writes the files, and secrets are read by nobody else.
    let unit = include_str!("../../systemd/stoker.service");
    assert!(!unit.contains("hostname-override"), "4.2.7");
    let assets = include_str!("../../Cargo.toml");
    for asset in ["systemd/stoker.service", "packaging/etc/kubelet.yaml", "packaging/kubelet/kubelet.service"] {
        let line = assets.lines().find(|line| line.contains(&format!("[\"{asset}\""))).expect(asset);
        assert!(line.contains("\"644\""), "4.1: {line}");
    }
}
