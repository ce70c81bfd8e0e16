//! What the proxy tells of itself over HTTP, on real rules.

use std::time::Duration;

use serde_json::{Value, json};
use stoker::service::ServiceConfig;
use stoker::service::sysctls::ConntrackSettings;

use super::lab::{Lab, NODE, NODE6, endpoints, endpoints_on, eventually, service};

#[test]
fn load_balancers_hear_of_local_endpoints() {
    // B1.14
    let lab = Lab::with_pods(2);
    let daemon = lab.start();
    let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32123 });
    let at = format!("{NODE}:32123");
    daemon.apply([&[service(spec)], &endpoints(&[1, 2])[..]].concat().into_iter().chain([complete()]));
    // One number for both families.
    let (status, head, body) = lab.get("client", &at, "/");
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("x-load-balancing-endpoint-weight: 2") && head.contains("nosniff"), "{head}");
    let expected = json!({
        "service": { "namespace": "default", "name": "web" }, "localEndpoints": 2, "serviceProxyHealthy": true,
    });
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);

    daemon.apply(endpoints_on(&[1, 2], "other"));
    let (status, head, body) = lab.get("client", &at, "/anything");
    assert_eq!(status, 503, "{body}");
    assert!(head.contains("x-load-balancing-endpoint-weight: 0"), "{head}");

    daemon.apply([service(
        json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32124 }),
    )]);
    assert_eq!(lab.get("client", &format!("{NODE}:32124"), "/").0, 503);
    assert!(lab.connect("client", &at).is_err(), "the old port is closed");
}

/// B1.14: on the addresses that accept NodePorts, which a range names; where none is named, on all of the family.
#[test]
fn health_check_ports_are_where_node_ports_are() {
    let lab = Lab::with_pods(1);
    let daemon = lab.start_with(ServiceConfig {
        node_port_addresses: vec!["192.0.2.0/24".parse().unwrap()],
        ..ServiceConfig::default()
    });
    let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32123 });
    daemon.apply([&[service(spec)], &endpoints(&[1])[..]].concat().into_iter().chain([complete()]));
    assert_eq!(lab.get("client", &format!("{NODE}:32123"), "/").0, 200);
    assert_eq!(lab.get("client", &format!("[{NODE6}]:32123"), "/").0, 200, "no range of this family");
    let inside = lab.connect("pod1", "10.244.1.1:32123").map(|c| c.served_by);
    assert_eq!(inside.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

/// B2.1, B1.14: rules that cannot be written make the proxy unhealthy after twice the sync period, until they can.
#[test]
fn what_waits_too_long_is_unhealthy() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = Lab::with_pods(1);
    let dir = tempfile::tempdir().unwrap();
    let (nft, away) = (dir.path().join("nft"), dir.path().join("away"));
    std::fs::write(&nft, "#!/bin/sh\nexec nft \"$@\"\n").unwrap();
    std::fs::set_permissions(&nft, std::fs::Permissions::from_mode(0o755)).unwrap();
    let sync_period = Duration::from_secs(1);
    let daemon = lab.start_with(ServiceConfig { nft: nft.clone(), sync_period, ..ServiceConfig::default() });
    let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32123 });
    daemon.apply([&[service(spec)], &endpoints(&[1])[..]].concat().into_iter().chain([complete()]));
    let health = format!("{NODE}:10256");
    let ask = |path: &str| -> (u16, Value) {
        let (status, head, body) = lab.get("client", &health, path);
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        (status, serde_json::from_str(&body).unwrap())
    };
    let (status, told) = ask("/healthz");
    assert_eq!((status, &told["lastUpdated"]), (200, &told["currentTime"]), "{told}");

    std::fs::rename(&nft, &away).unwrap();
    lab.nft_command("delete table ip stoker");
    let mut late = Value::Null;
    eventually("the change is late", || {
        let (status, told) = ask("/livez");
        late = told;
        status == 503
    });
    let well = |of: &Value| of["healthy"].as_bool().unwrap();
    assert!(!well(&late) && !well(&late["status"]["IPv4"]) && !well(&late["status"]["IPv6"]), "{late}");
    assert!(late.get("nodeEligible").is_none() && late["lastUpdated"] != late["currentTime"], "{late}");
    let (status, told) = ask("/healthz");
    assert_eq!((status, &told["nodeEligible"]), (503, &json!(true)), "{told}");
    let (status, _, body) = lab.get("client", &format!("{NODE}:32123"), "/");
    assert!(status == 503 && body.contains("\"serviceProxyHealthy\": false"), "{body}");

    std::fs::rename(&away, &nft).unwrap();
    eventually("it is written", || ask("/healthz").0 == 200);
    assert_eq!(lab.get("client", &format!("{NODE}:32123"), "/").0, 200);
}

#[test]
fn health_and_metrics_follow_the_data_path() {
    // B2.1, B2.2, B2.3
    let lab = Lab::with_pods(1);
    let daemon = lab.start();
    let health = format!("{NODE}:10256");
    let (status, head, body) = lab.get("client", &health, "/healthz");
    assert_eq!(status, 200, "healthy while it starts: {body}");
    assert!(head.contains("x-content-type-options: nosniff") && head.contains("application/json"), "{head}");
    daemon.apply([&[service(json!({}))], &endpoints(&[1])[..]].concat().into_iter().chain([complete()]));
    let told: Value = serde_json::from_str(&lab.get("client", &health, "/healthz").2).unwrap();
    assert_eq!((&told["healthy"], &told["nodeEligible"]), (&json!(true), &json!(true)));
    assert!(
        told["status"]["IPv4"]["healthy"] == json!(true) && told["status"]["IPv6"]["lastUpdated"].is_string(),
        "{told}"
    );

    daemon.eligible.send_replace(false);
    assert_eq!(lab.get("client", &health, "/healthz").0, 503, "the node goes");
    let (status, _, body) = lab.get("client", &health, "/livez");
    assert!(status == 200 && !body.contains("nodeEligible"), "{body}");

    let metrics = |path: &str| lab.get("node", "127.0.0.1:10249", path);
    assert_eq!((metrics("/proxyMode").2.as_str(), metrics("/healthz").2.as_str()), ("nftables", "ok"));
    assert_eq!((metrics("/configz").0, metrics("/nothing").0), (200, 404));
    let (status, _, statusz) = metrics("/statusz");
    assert!(
        status == 200 && statusz.starts_with("kube-proxy statusz\n") && statusz.contains("Up: 0 hr 00 min"),
        "{statusz}"
    );
    let (status, _, flagz) = metrics("/flagz");
    assert!(status == 200 && flagz.starts_with("kube-proxy flagz\n") && flagz.contains("mode=\"nftables\""), "{flagz}");
    let slis = metrics("/metrics/slis").2;
    assert!(
        slis.contains("kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 1\n"),
        "{slis}"
    );
    let (status, _, why) = metrics("/debug/pprof/profile");
    assert!(status == 501 && why.contains("perf record"), "profiles are refused clearly: {why}");
    let put = |method: &str, body: &str| lab.ask("node", "127.0.0.1:10249", method, "/debug/flags/v", body);
    let (status, _, said) = put("PUT", "5");
    assert_eq!((status, said.as_str()), (200, "successfully set klog.logging.verbosity to 5\n"));
    assert_eq!(
        (put("PUT", "much").0, put("PUT", "11").0, put("PUT", &"1".repeat(30)).0, put("GET", "").0),
        (400, 400, 400, 406)
    );
    let text = metrics("/metrics").2;
    for sample in [
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_service_changes_total 1",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 2",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv6\"} 1",
    ] {
        assert!(text.contains(sample), "{sample} is not in\n{text}");
    }
    daemon.apply(endpoints(&[]));
    let text = metrics("/metrics").2;
    assert!(text.contains("kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1"), "{text}");
}

/// B2.4: those that a network namespace has for itself; the size of the table is the first namespace's.
#[test]
fn connection_tracking_is_set_as_configured() {
    let lab = Lab::with_pods(0);
    // Tracking begins with the first rule that needs it.
    lab.nft_command("add table ip tracked");
    lab.nft_command("add chain ip tracked c { type filter hook input priority 0 ; }");
    lab.nft_command("add rule ip tracked c ct state new accept");
    let read =
        |name: &'static str| -> u64 { lab.run(&format!("cat /proc/sys/net/netfilter/{name}")).trim().parse().unwrap() };
    let liberal = read("nf_conntrack_tcp_be_liberal");
    let seconds = std::time::Duration::from_secs;
    let settings = ConntrackSettings {
        max_per_core: 0,
        min: 0,
        tcp_established: seconds(24 * 3600),
        tcp_close_wait: seconds(3600),
        tcp_be_liberal: false,
        udp: seconds(0),
        udp_stream: seconds(177),
    };
    let udp = read("nf_conntrack_udp_timeout");
    lab.within("node", move || settings.apply()).join().unwrap();
    assert_eq!(read("nf_conntrack_tcp_timeout_established"), 86400);
    assert_eq!(read("nf_conntrack_tcp_timeout_close_wait"), 3600);
    assert_eq!(read("nf_conntrack_udp_timeout_stream"), 177);
    assert_eq!((read("nf_conntrack_udp_timeout"), read("nf_conntrack_tcp_be_liberal")), (udp, liberal), "0 leaves it");
    let settings = ConntrackSettings { tcp_be_liberal: true, udp: seconds(31), ..settings };
    lab.within("node", move || settings.apply()).join().unwrap();
    assert_eq!((read("nf_conntrack_udp_timeout"), read("nf_conntrack_tcp_be_liberal")), (31, 1));
    assert_eq!(lab.run("cat /proc/sys/net/ipv4/conf/all/route_localnet").trim(), "0", "only mode iptables needs it");
}

fn complete() -> stoker_model::service::ServiceChange {
    stoker_model::service::ServiceChange::Complete
}
