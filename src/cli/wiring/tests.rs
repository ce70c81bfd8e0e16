//! What was configured reaches the rooms that need it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::config::proxy_config_of;

/// As one file with these fields resolves.
fn config(fields: &Value) -> KubeletConfig {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.yaml");
    let mut all = fields.clone();
    all["apiVersion"] = json!("kubelet.config.k8s.io/v1beta1");
    all["kind"] = json!("KubeletConfiguration");
    std::fs::write(&path, all.to_string()).expect("written");
    crate::config::load(Some(&path), None, &json!({}), false).expect("valid").kubelet
}

fn flags() -> Flags {
    let words = ["stoker", "--root-dir=/r", "--cert-dir=/r/pki", "--node-ip=192.0.2.7", "--hostname-override=n1"];
    let command = clap::Command::new("stoker").args(crate::config::arguments());
    crate::config::read_flags(&command.try_get_matches_from(words).expect("flags")).expect("flags")
}

const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

#[test]
fn who_may_ask_is_configured() {
    // A22.1b
    let flags = flags();
    let of = |fields: Value| {
        let config = config(&fields);
        let node = node_settings(&config, &flags).expect("settings");
        server_config(&config, &flags, &node, None).expect("settings")
    };
    let plain = of(json!({}));
    assert_eq!((plain.anonymous, plain.client_ca), (false, None));
    assert_eq!((plain.decision_ttl, plain.token_ttl), ((seconds(300), seconds(30)), seconds(120)));
    let set = of(json!({
        "authentication": {
            "anonymous": {"enabled": true}, "x509": {"clientCAFile": "/ca.crt"}, "webhook": {"cacheTTL": "7s"}
        },
        "authorization": {"webhook": {"cacheAuthorizedTTL": "8s", "cacheUnauthorizedTTL": "9s"}},
    }));
    assert_eq!((set.anonymous, set.client_ca.as_deref()), (true, Some(Path::new("/ca.crt"))));
    assert_eq!((set.decision_ttl, set.token_ttl), ((seconds(8), seconds(9)), seconds(7)));
}

#[test]
fn where_the_node_listens_is_configured() {
    // A22.1a
    let flags = flags();
    let of = |fields: Value| {
        let config = config(&fields);
        let node = node_settings(&config, &flags).expect("settings");
        server_config(&config, &flags, &node, None).expect("settings")
    };
    let socket = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let plain = of(json!({}));
    assert_eq!((plain.address, plain.port), (IpAddr::from([0, 0, 0, 0]), 10250));
    assert_eq!((plain.healthz, plain.read_only), (Some(socket("127.0.0.1:10248")), None));
    let made = matches!(&plain.certificate, ServingCertificate::SelfSigned { directory, node, .. }
        if directory == Path::new("/r/pki") && node == "n1");
    assert!(made, "{:?}", plain.certificate);
    assert_eq!((plain.tls.min_version.as_str(), plain.tls.cipher_suites.len(), plain.tls.curves.len()), ("", 0, 0));
    assert!(plain.debugging_handlers && plain.debug_flags && !plain.system_log_query);
    assert_eq!(plain.system_logs_dir.as_deref(), Some(Path::new("/var/log")));
    let set = of(json!({
        "address": "192.0.2.7", "port": 1, "readOnlyPort": 2, "healthzBindAddress": "::1", "healthzPort": 3,
        "tlsCertFile": "/c", "tlsPrivateKeyFile": "/k", "tlsMinVersion": "VersionTLS13", "tlsCurvePreferences": [29],
        "tlsCipherSuites": ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"], "enableDebuggingHandlers": false,
        "enableSystemLogHandler": false, "enableSystemLogQuery": true, "enableDebugFlagsHandler": false,
    }));
    assert_eq!((set.address, set.port), (IpAddr::from([192, 0, 2, 7]), 1));
    assert_eq!((set.healthz, set.read_only), (Some(socket("[::1]:3")), Some(socket("192.0.2.7:2"))));
    let given = matches!(&set.certificate, ServingCertificate::Files { certificate, key }
        if certificate == Path::new("/c") && key == Path::new("/k"));
    assert!(given, "{:?}", set.certificate);
    assert_eq!((set.tls.min_version.as_str(), set.tls.curves.as_slice()), ("VersionTLS13", [29].as_slice()));
    assert_eq!(set.tls.cipher_suites, ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]);
    assert!(!set.debugging_handlers && !set.debug_flags && set.system_log_query && set.system_logs_dir.is_none());
    assert_eq!(of(json!({"healthzPort": 0})).healthz, None);
    // A certificate of the cluster's is shown where none is given in files (A17.3).
    let config = config(&json!({"serverTLSBootstrap": true}));
    let signed = tokio::sync::watch::channel(None).1;
    let node = node_settings(&config, &flags).expect("settings");
    let signed = server_config(&config, &flags, &node, Some(signed)).expect("settings").certificate;
    assert!(matches!(signed, ServingCertificate::Signed(_)), "{signed:?}");
}

#[test]
fn eviction_and_logs_are_configured() {
    // A22.1h, A22.1i
    let flags = flags();
    let of = |fields: Value| eviction_settings(&config(&fields), &flags).expect("settings");
    let plain = of(json!({}));
    assert_eq!((plain.pressure_transition, plain.max_pod_grace, plain.local_storage), (seconds(300), seconds(0), true));
    assert_eq!((plain.root_dir.as_path(), plain.log_dir.as_path()), (Path::new("/r"), Path::new("/var/log/pods")));
    let set = json!({
        "evictionPressureTransitionPeriod": "7s", "evictionMaxPodGracePeriod": 8, "localStorageCapacityIsolation": false,
        "podLogsDir": "/logs/pods", "evictionHard": {"memory.available": "7Mi"}, "evictionSoft": {"nodefs.available": "9%"},
        "evictionSoftGracePeriod": {"nodefs.available": "11s"}, "evictionMinimumReclaim": {"memory.available": "13Mi"},
    });
    let all = of(set.clone());
    assert_eq!((all.pressure_transition, all.max_pod_grace, all.local_storage), (seconds(7), seconds(8), false));
    assert_eq!(all.log_dir, Path::new("/logs/pods"));
    // Every threshold with its period and its reserve.
    let told = format!("{all:?}");
    let at = |text: &str| told.find(text).unwrap_or_else(|| panic!("{text} is not in {told}"));
    for text in ["11s", &(7 << 20).to_string(), &(13 << 20).to_string()] {
        at(text);
    }
    assert_ne!(told, format!("{:?}", of(json!({"podLogsDir": "/logs/pods"}))));
    // What pods may have is what these leave of the node, and whether a disk is shared among them.
    let node = node_settings(&config(&set), &flags).expect("settings");
    assert_eq!((node.eviction_hard["memory.available"].as_str(), node.local_storage), ("7Mi", false));
    let amounts = json!({"kubeReserved": {"memory": "1Mi"}, "systemReserved": {"memory": "2Mi", "cpu": "100m"}});
    let reserved = node_settings(&config(&amounts), &flags).expect("settings").reserved.clone();
    assert_eq!((reserved["memory"].units(), reserved["cpu"].milli()), (3 << 20, 100));
    // Logs lie where the runtime is told, and their links beside them.
    let pods = pods_config(&config(&set), Path::new("/r")).expect("settings");
    assert_eq!(
        (pods.log_dir.as_path(), pods.link_dir.as_path()),
        (Path::new("/logs/pods"), Path::new("/logs/containers"))
    );
    let server = |fields: Value| {
        let config = config(&fields);
        server_config(&config, &flags, &node_settings(&config, &flags).expect("settings"), None).expect("settings")
    };
    assert_eq!(server(set).pod_logs_dir, Path::new("/logs/pods"));
}

#[test]
fn sources_of_pods_are_configured() {
    // A22.1c
    let of = |fields: Value| pods_config(&config(&fields), Path::new("/r")).expect("settings");
    let plain = of(json!({})).static_sources;
    assert_eq!((plain.path, plain.url, plain.url_headers.len()), (None, None, 0));
    assert_eq!((plain.path_every, plain.url_every), (seconds(20), seconds(20)));
    assert_eq!(of(json!({})).sync_frequency, seconds(60));
    let set = of(json!({
        "staticPodPath": "/m", "staticPodURL": "http://m/", "staticPodURLHeader": {"A": ["b", "c"]},
        "fileCheckFrequency": "7s", "httpCheckFrequency": "8s", "syncFrequency": "9s",
    }));
    let sources = set.static_sources;
    assert_eq!((sources.path.as_deref(), sources.url.as_deref()), (Some(Path::new("/m")), Some("http://m/")));
    assert_eq!(sources.url_headers["A"], ["b", "c"]);
    assert_eq!((sources.path_every, sources.url_every, set.sync_frequency), (seconds(7), seconds(8), seconds(9)));
}

#[test]
fn groups_are_made_as_configured() {
    // A22.1f, A12.9, A15.9
    let plain = cgroup_config(&config(&json!({})), None);
    assert_eq!((plain.root.as_str(), plain.driver, plain.cpu_cfs_quota), ("/", CgroupDriver::Cgroupfs, true));
    assert_eq!((plain.cpu_cfs_period, plain.pod_pids_limit), (Duration::from_millis(100), None));
    let fields = json!({
        "cgroupRoot": "/a", "cgroupDriver": "systemd", "cpuCFSQuota": false, "cpuCFSQuotaPeriod": "7ms", "podPidsLimit": 77,
        "memorySwap": {"swapBehavior": "LimitedSwap"}, "singleProcessOOMKill": true,
    });
    let set = cgroup_config(&config(&fields), None);
    assert_eq!((set.root.as_str(), set.driver, set.cpu_cfs_quota), ("/a", CgroupDriver::Systemd, false));
    assert_eq!((set.cpu_cfs_period, set.pod_pids_limit), (Duration::from_millis(7), Some(77)));
    // The runtime, where it says what it does, is right.
    assert_eq!(cgroup_config(&config(&fields), Some(CgroupDriver::Cgroupfs)).driver, CgroupDriver::Cgroupfs);
    assert_eq!(cgroup_config(&config(&json!({})), Some(CgroupDriver::Systemd)).driver, CgroupDriver::Systemd);
    let pods = pods_config(&config(&fields), Path::new("/r")).expect("settings");
    assert!(pods.limited_swap && pods.single_process_oom_kill);
    let pods = pods_config(&config(&json!({})), Path::new("/r")).expect("settings");
    assert!(!pods.limited_swap && !pods.single_process_oom_kill);
}

#[test]
fn what_the_runtime_is_asked_for_is_configured() {
    // A22.1j
    let of = |fields: Value| pods_config(&config(&fields), Path::new("/r")).expect("settings");
    let user_ids = |fields: Value| format!("{:?}", of(fields).users);
    assert!(user_ids(json!({})).contains("per_pod: 65536"));
    assert!(user_ids(json!({"userNamespaces": {"idsPerPod": 131_072}})).contains("per_pod: 131072"));
    assert!(!of(json!({})).seccomp_default && of(json!({"seccompDefault": true})).seccomp_default);
    assert!(pods_config(&config(&json!({"allowedUnsafeSysctls": ["not a name"]})), Path::new("/r")).is_err());
    let flags = flags();
    let node = |fields: Value| node_settings(&config(&fields), &flags).expect("settings");
    assert!(node(json!({})).controller_attach_detach);
    assert!(!node(json!({"enableControllerAttachDetach": false})).controller_attach_detach);
    let every = |fields: Value| {
        let config = config(&fields);
        server_config(&config, &flags, &node_settings(&config, &flags).expect("settings"), None)
            .expect("settings")
            .volume_stats_every
    };
    assert_eq!((every(json!({})), every(json!({"volumeStatsAggPeriod": "7s"}))), (seconds(60), seconds(7)));
}

#[test]
fn the_node_is_told_what_it_is() {
    // A22.1d, A11.7, A16.8
    let flags = flags();
    let of = |fields: Value| node_settings(&config(&fields), &flags).expect("settings");
    let plain = of(json!({}));
    assert_eq!((plain.register, plain.max_pods, plain.pods_per_core, plain.max_images), (true, 110, 0, 50));
    assert_eq!((plain.observe_every, plain.report_every, plain.lease_seconds), (seconds(10), seconds(300), 40));
    let set = of(json!({
        "registerNode": false, "maxPods": 7, "podsPerCore": 8, "nodeStatusMaxImages": -1, "providerID": "cloud://1",
        "nodeStatusUpdateFrequency": "9s", "nodeStatusReportFrequency": "11s", "nodeLeaseDurationSeconds": 12,
        "registerWithTaints": [{"key": "a", "effect": "NoSchedule"}],
    }));
    assert_eq!((set.register, set.max_pods, set.pods_per_core, set.max_images), (false, 7, 8, -1));
    assert_eq!((set.observe_every, set.report_every, set.lease_seconds), (seconds(9), seconds(11), 12));
    assert_eq!((set.provider_id.as_str(), set.taints[0].key.as_str()), ("cloud://1", "a"));
    let pods = |fields: Value| pods_config(&config(&fields), Path::new("/r")).expect("settings");
    let resolver = pods(json!({}));
    assert_eq!(resolver.resolv_conf.as_deref(), Some(Path::new("/etc/resolv.conf")));
    assert_eq!(resolver.cluster_dns.len(), 0);
    // What kubeadm writes where systemd-resolved runs.
    let upstream = "/run/systemd/resolve/resolv.conf";
    assert_eq!(pods(json!({"resolvConf": upstream})).resolv_conf.as_deref(), Some(Path::new(upstream)));
    let resolver = pods(json!({"resolvConf": "", "clusterDNS": ["192.0.2.53"], "clusterDomain": "example.org"}));
    assert_eq!((resolver.resolv_conf, resolver.cluster_domain.as_str()), (None, "example.org"));
    assert_eq!(resolver.cluster_dns, ["192.0.2.53".parse::<IpAddr>().expect("an address")]);
}

#[test]
fn shutdown_restarts_and_events_are_configured() {
    // A3.9, A16.11, A22.1k, A22.1m
    assert_eq!(event_pace(&config(&json!({}))), (50, 100));
    assert_eq!(event_pace(&config(&json!({"eventRecordQPS": 7, "eventBurst": 8}))), (7, 8));
    assert_eq!(request_pace(&config(&json!({}))), (50, 100));
    assert_eq!(request_pace(&config(&json!({"kubeAPIQPS": 7, "kubeAPIBurst": 8}))), (7, 8));
    let of = |fields: Value| shutdown_settings(&config(&fields), Path::new("/r"));
    assert_eq!(of(json!({})).periods, []);
    let period = |priority, grace| Period { priority, grace: seconds(grace) };
    let set = of(json!({"shutdownGracePeriod": "30s", "shutdownGracePeriodCriticalPods": "10s"}));
    assert_eq!(set.periods, [period(0, 20), period(2_000_000_000, 10)]);
    assert_eq!(set.state_file, Path::new("/r/graceful_node_shutdown_state"));
    let listed = json!({"shutdownGracePeriodByPodPriority": [
        {"priority": 100, "shutdownGracePeriodSeconds": 9}, {"priority": 0, "shutdownGracePeriodSeconds": 7}
    ]});
    assert_eq!(of(listed).periods, [period(0, 7), period(100, 9)]);
    let longest = |fields: Value| pods_config(&config(&fields), Path::new("/r")).expect("settings").longest_backoff;
    assert_eq!(longest(json!({})), seconds(300));
    assert_eq!(longest(json!({"crashLoopBackOff": {"maxContainerRestartPeriod": "7s"}})), seconds(7));
    // A16.7
    let declared =
        |fields: Value| node_settings(&config(&fields), &flags()).expect("settings").declared_features.clone();
    let all = [
        "ExtendWebSocketsToKubelet",
        "InPlacePodLevelResourcesVerticalScaling",
        "InPlacePodVerticalScalingInitContainers",
        "RestartAllContainersOnContainerExits",
    ];
    assert_eq!(declared(json!({})), all);
    assert_eq!(declared(json!({"featureGates": {"ExtendWebSocketsToKubelet": false}})), all[1..]);
    assert_eq!(declared(json!({"featureGates": {"NodeDeclaredFeatures": false}})), [""; 0]);
}

/// B1.4: mode nftables serves NodePorts at the node's own addresses, the others at all; unless something is said.
#[test]
fn node_ports_are_served_where_the_mode_or_the_operator_says() {
    let host = Host { name: "n".into(), addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()] };
    let served = |fields| {
        let proxy = proxy_config_of("test".as_ref(), fields).expect("it makes sense").proxy;
        let settings = ProxySettings { proxy, from_file: true };
        let config = service_config(&StokerConfig::default(), &settings, &host, &[]).expect("it fits");
        config.node_port_addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let own = ["192.0.2.1/32", "2001:db8::1/128"];
    assert_eq!(served(json!({"mode": "nftables"})), own);
    assert_eq!(served(json!({"mode": "iptables", "nodePortAddresses": ["primary"]})), own);
    assert_eq!(served(json!({"mode": "ipvs"})), [""; 0]);
    assert_eq!(served(json!({})), [""; 0], "as with iptables, all of them");
    assert_eq!(served(json!({"mode": "nftables", "nodePortAddresses": ["10.0.0.0/8"]})), ["10.0.0.0/8"]);

    // B1.4: on loopback only in mode iptables, unless that is turned off or no range names it.
    let on_loopback = |fields| {
        let proxy = proxy_config_of("test".as_ref(), fields).expect("it makes sense").proxy;
        let settings = ProxySettings { proxy, from_file: true };
        service_config(&StokerConfig::default(), &settings, &host, &[]).expect("it fits").localhost_node_ports
    };
    for (fields, expected) in [
        (json!({}), true),
        (json!({"mode": "iptables"}), true),
        (json!({"mode": "iptables", "iptables": {"localhostNodePorts": false}}), false),
        (json!({"mode": "iptables", "nodePortAddresses": ["192.0.2.0/24"]}), false),
        (json!({"mode": "iptables", "nodePortAddresses": ["127.0.0.0/8", "192.0.2.0/24"]}), true),
        (json!({"mode": "iptables", "nodePortAddresses": ["2001:db8::/64"]}), true),
        (json!({"mode": "nftables"}), false),
        (json!({"mode": "ipvs"}), false),
    ] {
        assert_eq!(on_loopback(fields.clone()), expected, "{fields}");
    }
}

#[test]
fn the_proxys_file_reaches_the_data_path() {
    // B2.5
    let host = Host { name: "n".into(), addresses: vec!["192.0.2.1".parse().unwrap()] };
    let of = |fields| {
        let proxy = proxy_config_of("test".as_ref(), fields).expect("it makes sense").proxy;
        let settings = ProxySettings { proxy, from_file: true };
        let conntrack = conntrack_settings(&settings.proxy);
        service_config(&StokerConfig::default(), &settings, &host, &["10.5.0.0/24".to_owned()])
            .map(|config| (config, conntrack))
    };
    let (plain, conntrack) = of(json!({})).expect("it fits");
    assert_eq!((plain.mode, plain.ipvs), (Mode::Nftables, IpvsConfig::default()), "with scheduler rr");
    assert_eq!((plain.masquerade_bit, plain.masquerade_all, plain.sync_period), (14, false, seconds(30)));
    assert_eq!(plain.local_traffic, LocalTraffic::Unknown);
    assert_eq!((conntrack.max_per_core, conntrack.min, conntrack.tcp_be_liberal), (32 * 1024, 128 * 1024, false));
    assert_eq!((conntrack.tcp_established, conntrack.tcp_close_wait), (seconds(86400), seconds(3600)));
    assert_eq!((conntrack.udp, conntrack.udp_stream), (seconds(0), seconds(0)));

    let (set, conntrack) = of(json!({
        "mode": "ipvs", "hostnameOverride": "n", "clusterCIDR": "10.244.0.0/16,fd00::/56",
        "iptables": {"masqueradeBit": 3, "masqueradeAll": true},
        "ipvs": {"syncPeriod": "7s", "scheduler": "sh", "strictARP": true, "excludeCIDRs": ["10.9.0.0/16"],
            "tcpTimeout": "4s", "tcpFinTimeout": "5s", "udpTimeout": "6s"},
        "conntrack": {"maxPerCore": 1, "min": 2, "tcpEstablishedTimeout": "3s", "tcpCloseWaitTimeout": "4s",
            "tcpBeLiberal": true, "udpTimeout": "5s", "udpStreamTimeout": "6s"},
    }))
    .expect("it fits");
    let ipvs = IpvsConfig {
        scheduler: "sh".into(),
        exclude_cidrs: vec!["10.9.0.0/16".parse().unwrap()],
        strict_arp: true,
        tcp_timeout: seconds(4),
        tcp_fin_timeout: seconds(5),
        udp_timeout: seconds(6),
    };
    assert_eq!((set.mode, set.ipvs), (Mode::Ipvs, ipvs));
    assert_eq!((set.masquerade_bit, set.masquerade_all, set.sync_period), (3, true, seconds(7)));
    let sources = ["10.244.0.0/16", "fd00::/56"].map(|range| range.parse().unwrap()).to_vec();
    assert_eq!(set.local_traffic, LocalTraffic::Sources(sources));
    let expected = ConntrackSettings {
        max_per_core: 1,
        min: 2,
        tcp_established: seconds(3),
        tcp_close_wait: seconds(4),
        tcp_be_liberal: true,
        udp: seconds(5),
        udp_stream: seconds(6),
    };
    assert_eq!(conntrack, expected);
    for (mode, detect, expected) in [
        ("NodeCIDR", json!({}), LocalTraffic::Sources(vec!["10.5.0.0/24".parse().unwrap()])),
        ("BridgeInterface", json!({"bridgeInterface": "br0"}), LocalTraffic::Bridge("br0".into())),
        ("InterfaceNamePrefix", json!({"interfaceNamePrefix": "veth"}), LocalTraffic::InterfacePrefix("veth".into())),
    ] {
        let (config, _) = of(json!({"detectLocalMode": mode, "detectLocal": detect})).expect("it fits");
        assert_eq!(config.local_traffic, expected, "{mode}");
    }
    let other = of(json!({"hostnameOverride": "other"})).expect_err("of another node").to_string();
    assert!(other.contains("other") && other.contains('n'), "{other}");
}
