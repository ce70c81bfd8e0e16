//! What the proxy tells of itself over HTTP, on real rules.

use serde_json::{Value, json};
use stoker::service::sysctls::ConntrackSettings;

use super::lab::{Lab, NODE, endpoints, endpoints_on, service};

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
    let text = metrics("/metrics").2;
    for sample in [
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_service_changes_total 1",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 2",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
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
