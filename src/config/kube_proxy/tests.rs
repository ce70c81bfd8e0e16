//! KubeProxyConfiguration as kubeadm and operators write it.

use serde_json::json;

use super::*;

fn file(fields: &str) -> Result<LoadedProxy, String> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.conf");
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    std::fs::write(&path, format!("{head}{fields}")).expect("written");
    load_proxy_config(&path).map_err(|error| error.to_string())
}

/// What kubeadm 1.36 puts into the ConfigMap kube-system/kube-proxy.
const KUBEADM: &str = r#"bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

#[test]
fn the_file_of_kubeadm_is_taken_as_it_is() {
    // B2.5
    let loaded = file(KUBEADM).expect("accepted");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].contains("clientConnection.kubeconfig has no effect"), "{:?}", loaded.warnings);
    assert_eq!(loaded.proxy.proxy_mode(), ProxyMode::InsteadOfIptables);
    let shown = serde_json::to_value(&loaded.proxy).expect("JSON");
    for (pointer, value) in [
        ("/bindAddress", json!("0.0.0.0")),
        ("/healthzBindAddress", json!("0.0.0.0:10256")),
        ("/metricsBindAddress", json!("127.0.0.1:10249")),
        ("/mode", json!("")),
        ("/iptables/syncPeriod", json!("30s")),
        ("/iptables/minSyncPeriod", json!("1s")),
        ("/iptables/masqueradeBit", json!(14)),
        ("/iptables/localhostNodePorts", json!(true)),
        ("/ipvs/syncPeriod", json!("30s")),
        ("/ipvs/minSyncPeriod", json!("0s")),
        ("/ipvs/strictARP", json!(false)),
        ("/nftables/syncPeriod", json!("30s")),
        ("/nftables/minSyncPeriod", json!("1s")),
        ("/nftables/masqueradeBit", json!(14)),
        ("/conntrack/maxPerCore", json!(32768)),
        ("/conntrack/min", json!(131_072)),
        ("/conntrack/tcpEstablishedTimeout", json!("24h0m0s")),
        ("/conntrack/tcpCloseWaitTimeout", json!("1h0m0s")),
        ("/conntrack/udpTimeout", json!("0s")),
        ("/configSyncPeriod", json!("15m0s")),
        ("/oomScoreAdj", json!(-999)),
        ("/conntrack/udpStreamTimeout", json!("0s")),
        ("/conntrack/tcpBeLiberal", json!(false)),
        ("/ipvs/tcpTimeout", json!("0s")),
        ("/ipvs/tcpFinTimeout", json!("0s")),
        ("/ipvs/udpTimeout", json!("0s")),
        ("/detectLocalMode", json!("ClusterCIDR")),
        ("/hostnameOverride", json!("")),
        ("/showHiddenMetricsForVersion", json!("")),
        ("/enableProfiling", json!(false)),
        ("/bindAddressHardFail", json!(false)),
        ("/portRange", json!("")),
        ("/clientConnection/qps", json!(5.0)),
        ("/clientConnection/kubeconfig", json!("/var/lib/kube-proxy/kubeconfig.conf")),
        ("/clientConnection/burst", json!(10)),
        ("/clusterCIDR", json!("10.244.0.0/16")),
    ] {
        assert_eq!(shown.pointer(pointer), Some(&value), "{pointer}");
    }
}

#[test]
fn what_has_no_effect_is_named() {
    // B2.5
    let loaded = file(
        "oomScoreAdj: -5\nnftables:\n  minSyncPeriod: 5s\nfeatureGates:\n  A: true\nmode: nftables\nportRange: 1-2\n\
         winkernel:\n  networkName: a\nconfigSyncPeriod: 1m\nshowHiddenMetricsForVersion: '1.35'\n\
         clientConnection:\n  qps: 7\n  burst: 8\n",
    );
    let warnings = loaded.expect("accepted").warnings.join("\n");
    for field in [
        "oomScoreAdj",
        "nftables.minSyncPeriod",
        "featureGates",
        "portRange",
        "winkernel",
        "configSyncPeriod",
        "showHiddenMetricsForVersion",
        "clientConnection.qps",
        "clientConnection.burst",
    ] {
        assert!(warnings.contains(&format!("{field} has no effect")), "{warnings}");
    }
}

#[test]
fn unknown_and_repeated_fields_are_warned_of() {
    let loaded = file("mode: nftables\nudpIdleTimeout: 250ms\n").expect("read leniently");
    assert!(loaded.warnings[0].contains("udpIdleTimeout"), "{:?}", loaded.warnings);
    let loaded = file("mode: ipvs\nmode: nftables\n").expect("read leniently");
    assert!(loaded.warnings[0].contains("mode"), "{:?}", loaded.warnings);
    assert_eq!(loaded.proxy.proxy_mode(), ProxyMode::Nftables);
}

#[test]
fn mistakes_name_the_field_and_the_file() {
    for (fields, field) in [
        ("mode: userspace\n", "mode"),
        ("mode: [1]\n", "mode"),
        ("detectLocalMode: Magic\n", "detectLocalMode"),
        ("detectLocalMode: BridgeInterface\n", "detectLocal.bridgeInterface"),
        ("detectLocalMode: InterfaceNamePrefix\n", "detectLocal.interfaceNamePrefix"),
        ("detectLocal:\n  bridgeInterface: 'a\"b'\n", "detectLocal.bridgeInterface"),
        ("nftables:\n  masqueradeBit: 32\n", "nftables.masqueradeBit"),
        ("iptables:\n  syncPeriod: soon\n", "iptables"),
        ("ipvs:\n  scheduler: best\n", "ipvs.scheduler"),
        ("ipvs:\n  excludeCIDRs: [10.0.0.0]\n", "ipvs.excludeCIDRs"),
        ("ipvs:\n  tcpTimeout: -1s\n", "ipvs"),
        ("conntrack:\n  min: -1\n", "conntrack.min"),
        ("bindAddress: here\n", "bindAddress"),
        ("healthzBindAddress: 1.2.3.4:0\n", "healthzBindAddress"),
        ("metricsBindAddress: localhost:10249\n", "metricsBindAddress"),
        ("nodePortAddresses: [primary, 10.0.0.0/8]\n", "nodePortAddresses"),
        ("nodePortAddresses: [10.0.0.0/33]\n", "nodePortAddresses"),
        ("clusterCIDR: 10.0.0.0/8;fd00::/64\n", "clusterCIDR"),
        ("oomScoreAdj: 2000\n", "oomScoreAdj"),
    ] {
        let error = file(fields).expect_err(fields);
        assert!(error.contains("config.conf") && error.contains(field), "{fields}: {error}");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.conf");
    std::fs::write(&path, "apiVersion: v1\nkind: ConfigMap\n").expect("written");
    let error = load_proxy_config(&path).expect_err("another kind").to_string();
    assert!(error.contains("v1 ConfigMap") && error.contains("KubeProxyConfiguration"), "{error}");
}

#[test]
fn each_mode_has_its_own_settings() {
    // B2.5
    let modes =
        [("", ProxyMode::InsteadOfIptables), ("iptables", ProxyMode::InsteadOfIptables), ("ipvs", ProxyMode::Ipvs)];
    for (mode, expected) in modes.into_iter().chain([("nftables", ProxyMode::Nftables)]) {
        assert_eq!(file(&format!("mode: '{mode}'\n")).expect("accepted").proxy.proxy_mode(), expected, "{mode}");
    }
    let proxy = file(
        "mode: ipvs\niptables:\n  masqueradeBit: 3\n  masqueradeAll: true\nnftables:\n  masqueradeBit: 5\nipvs:\n  syncPeriod: 7s\n",
    )
    .expect("accepted")
    .proxy;
    assert_eq!(proxy.of_mode(), (3, true, GoDuration::seconds(7)));
    let proxy = KubeProxyConfig { mode: "nftables".into(), ..proxy };
    assert_eq!(proxy.of_mode(), (5, false, GoDuration::seconds(30)));
}

#[test]
fn addresses_follow_the_family_and_get_a_port() {
    // B2.5
    let proxy = file("bindAddress: '::'\nmetricsBindAddress: 0.0.0.0\n").expect("accepted").proxy;
    assert_eq!(proxy.healthz_address(), "[::]:10256".parse().ok());
    assert_eq!(proxy.metrics_address(), "0.0.0.0:10249".parse().ok());
}
