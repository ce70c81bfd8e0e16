//! Mode ipvs. Where the kernel has no ip_vs only the refusal is tested; `tests/vm/smoke` runs this on one that has it.

use std::time::Duration;

use serde_json::json;
use stoker::clock::Clock;
use stoker::service::ipvs::{IpvsError, IpvsPath, is_supported};
use stoker::service::nftables::Kernel;
use stoker::service::{Cidr, LocalTraffic, Mode, ServiceConfig, ServiceError, leftovers};
use stoker_model::service::ServiceChange;

use super::lab::{Daemon, Lab, NODE, NODE6, endpoints, endpoints_on, service};

fn config() -> ServiceConfig {
    let sources = ["10.244.0.0/16", "fd00:244::/32"];
    let sources: Vec<Cidr> = sources.iter().map(|range| range.parse().unwrap()).collect();
    ServiceConfig { mode: Mode::Ipvs, local_traffic: LocalTraffic::Sources(sources), ..ServiceConfig::default() }
}

/// A node whose services IPVS serves; none where the kernel has no IPVS.
fn lab(pods: u8) -> Option<(Lab, Daemon)> {
    if !is_supported() {
        eprintln!("skipped: this kernel has no ip_vs");
        return None;
    }
    let lab = Lab::with_pods(pods);
    let daemon = lab.start_with(config());
    daemon.apply([ServiceChange::Complete]);
    Some((lab, daemon))
}

fn servers(lab: &Lab) -> String {
    lab.run("cat /proc/thread-self/net/ip_vs")
}

#[test]
fn a_kernel_without_ipvs_is_an_error_that_says_what_to_do() {
    let lab = Lab::with_pods(0);
    let opened = lab.within("node", || IpvsPath::open(config(), Clock).map(drop)).join().unwrap();
    match opened {
        Ok(()) => assert!(is_supported()),
        Err(error) => {
            assert!(matches!(error, ServiceError::Ipvs(IpvsError::NoKernelSupport)), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("modprobe ip_vs") && text.contains("nftables"), "{text}");
        }
    }
}

#[test]
fn the_rules_beside_it_load_and_replace_those_of_the_other_mode() {
    let lab = Lab::with_pods(0);
    let daemon = lab.start();
    daemon.apply([service(json!({})), ServiceChange::Complete]);
    daemon.stop();
    assert!(lab.nft().contains("chain dispatch"));
    let prepare = || Kernel::open_beside_ipvs(config()).unwrap().prepare(false).unwrap();
    lab.within("node", prepare).join().unwrap();
    let rules = lab.nft();
    assert!(!rules.contains("chain dispatch") && rules.contains("chain mark-arriving"), "{rules}");
    lab.cleanup();
    assert!(!lab.nft().contains("stoker"));
}

#[test]
fn addresses_and_node_ports_are_served() {
    // B1.3, B1.4, B1.11, B1.19, B2.10
    let Some((lab, daemon)) = lab(2) else { return };
    let ports = json!([{ "name": "t", "port": 80, "nodePort": 30080, "protocol": "TCP" },
        { "name": "u", "port": 80, "nodePort": 30080, "protocol": "UDP" }]);
    daemon.apply([service(json!({ "type": "NodePort", "ports": ports }))]);
    daemon.apply(named_endpoints(&[1, 2]));
    for from in ["pod1", "pod2", "node", "client"] {
        for to in ["10.96.0.10:80", "[fd00:96::10]:80"] {
            assert!(lab.served_by(from, to).starts_with("pod"), "{from} to {to}\n{}", servers(&lab));
        }
        assert!(lab.datagram(from, "10.96.0.10:80").is_ok(), "{from} over UDP\n{}", servers(&lab));
    }
    let mut served: Vec<String> = (0..4).map(|_| lab.served_by("client", "10.96.0.10:80")).collect();
    served.sort();
    assert_eq!(served, ["pod1", "pod1", "pod2", "pod2"], "the scheduler rr takes turns");
    for (to, node) in [(format!("{NODE}:30080"), NODE), (format!("[{NODE6}]:30080"), NODE6)] {
        let connection = lab.connect("client", &to).unwrap();
        // The node masquerades with its address on the way to the pod.
        assert_ne!(connection.source.to_string(), "192.0.2.2", "{to} {node}");
    }
    assert!(lab.datagram("client", &format!("{NODE}:30080")).is_ok());
    let from_node = lab.connect("node", "10.96.0.10:80").unwrap();
    assert_ne!(from_node.source.to_string(), "10.96.0.10", "no other node could answer a service IP");
    let from_pod = lab.connect("pod1", "10.96.0.10:80").unwrap();
    assert!(from_pod.source.to_string().starts_with("10.244."), "{}", from_pod.source);
    let addresses = lab.run("ip -o addr show dev kube-ipvs0");
    assert!(addresses.contains("10.96.0.10/32") && addresses.contains("fd00:96::10/128"), "{addresses}");
}

#[test]
fn a_backend_that_goes_keeps_its_connections() {
    // B1.28
    let Some((lab, daemon)) = lab(2) else { return };
    daemon.apply([service(json!({}))].into_iter().chain(endpoints(&[1, 2])));
    let mut open = lab.connect("client", "10.96.0.10:80").unwrap();
    let stays: u8 = if open.served_by == "pod1" { 2 } else { 1 };
    daemon.apply(endpoints(&[stays]));
    assert!(open.still_answers());
    for _ in 0..4 {
        assert_eq!(lab.served_by("client", "10.96.0.10:80"), format!("pod{stays}"));
    }
    let table = servers(&lab);
    let weight_0 =
        |table: &str| table.lines().any(|line| line.contains("Masq") && line.split_whitespace().nth(3) == Some("0"));
    assert!(weight_0(&table), "it waits for the end of its connection\n{table}");
    daemon.apply(endpoints(&[1, 2]));
    assert!(!weight_0(&servers(&lab)), "and is used again when it comes back\n{}", servers(&lab));
    assert!(open.still_answers());
}

#[test]
fn a_restart_writes_the_difference_only() {
    let Some((lab, daemon)) = lab(2) else { return };
    let web = || {
        [service(json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] }))]
            .into_iter()
            .chain(endpoints(&[1, 2]))
    };
    daemon.apply(web());
    let mut open = lab.connect("client", "10.96.0.10:80").unwrap();
    daemon.stop();
    let before = servers(&lab);
    assert!(open.still_answers(), "rules stay when the daemon ends");
    let daemon = lab.start_with(config());
    daemon.apply(web().chain([ServiceChange::Complete]));
    assert!(open.still_answers());
    assert_eq!(addresses_of(&servers(&lab)), addresses_of(&before));
    daemon.apply([ServiceChange::Restarting, ServiceChange::Complete]);
    assert!(!servers(&lab).contains("TCP"), "{}", servers(&lab));
    let addresses = lab.run("ip -o addr show dev kube-ipvs0");
    assert!(!addresses.contains("10.96.0.10"), "{addresses}");
}

#[test]
fn what_nobody_serves_is_refused() {
    // B1.12, B1.13
    let Some((lab, daemon)) = lab(1) else { return };
    daemon.apply([service(json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] }))]);
    for (from, to) in
        [("client", "10.96.0.10:80".to_owned()), ("node", "10.96.0.10:80".into()), ("client", format!("{NODE}:30080"))]
    {
        let error = lab.connect(from, &to).map(drop).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{from} {to}");
    }
    daemon.apply(endpoints(&[1]));
    assert_eq!(lab.served_by("client", "10.96.0.10:80"), "pod1");
    let error = lab.connect("client", "10.96.0.10:81").map(drop).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(lab.served_by("pod1", "10.96.0.10:80"), "pod1", "a pod reaches itself");
}

#[test]
fn policies_and_affinity_hold() {
    // B1.8, B1.10
    let Some((lab, daemon)) = lab(2) else { return };
    let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        "ports": [{ "port": 80, "nodePort": 30080 }], "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }] } } });
    daemon.apply([service(spec)].into_iter().chain(endpoints(&[1, 2])));
    lab.run_in("client", "ip route add 203.0.113.7 via 192.0.2.1");
    let first = lab.connect("client", "203.0.113.7:80").unwrap();
    assert_eq!(first.source.to_string(), "192.0.2.2", "policy Local keeps the source");
    for _ in 0..4 {
        assert_eq!(lab.served_by("client", "203.0.113.7:80"), first.served_by, "a client stays with its backend");
    }
    daemon.apply(endpoints_on(&[1, 2], "other"));
    std::thread::sleep(Duration::from_millis(50));
    let error = lab.connect("client", "203.0.113.7:80").map(drop).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "no backend here: dropped");
    assert!(lab.served_by("node", "203.0.113.7:80").starts_with("pod"), "programs of this node see all");
}

#[test]
fn clean_up_leaves_no_virtual_server() {
    // B2.8
    let Some((lab, daemon)) = lab(1) else { return };
    daemon.apply([service(json!({}))].into_iter().chain(endpoints(&[1])));
    daemon.stop();
    lab.cleanup();
    let found = lab.within("node", || leftovers::remove(None)).join().unwrap();
    assert!(found.errors.is_empty() && found.removed.len() == 2, "{found:?}");
    assert!(!servers(&lab).contains("TCP") && !lab.run("ip -o link").contains("kube-ipvs0"));
    assert!(!lab.nft().contains("stoker"));
}

/// The virtual servers and backends of a table, without counts of connections.
fn addresses_of(table: &str) -> Vec<String> {
    let mut lines: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().take(4).collect::<Vec<_>>().join(" "))
        .filter(|line| line.contains(':'))
        .collect();
    lines.sort();
    lines
}

/// As [`endpoints`], of the ports `t` and `u`.
fn named_endpoints(pods: &[u8]) -> Vec<ServiceChange> {
    let mut all = endpoints(pods);
    for change in &mut all {
        if let ServiceChange::Slice(slice, _) = change {
            let slice = std::sync::Arc::make_mut(slice);
            for port in std::sync::Arc::make_mut(&mut slice.ports) {
                port.name = if port.protocol == "UDP" { "u".into() } else { "t".into() };
            }
        }
    }
    all
}
