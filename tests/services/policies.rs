//! Who may use which endpoints: traffic policies, external and load-balancer addresses, source ranges.

use std::io::ErrorKind;

use serde_json::json;
use stoker_model::service::ServiceChange::Complete;

use crate::lab::{CLIENT, Daemon, Lab, NODE, elsewhere, endpoints, endpoints_on, service};

const VIP: &str = "10.96.0.10:80";
const NODE_PORT: &str = "192.0.2.1:30080";

fn run(lab: &Lab, spec: serde_json::Value, endpoints: Vec<stoker_model::service::ServiceChange>) -> Daemon {
    let daemon = lab.start();
    daemon.apply([service(spec)].into_iter().chain(endpoints).chain([Complete]));
    daemon
}

/// Pod 1 here, pod 2 said to be on another node.
fn one_here_one_elsewhere() -> Vec<stoker_model::service::ServiceChange> {
    let mut all = endpoints_on(&[1], "node");
    all.extend(elsewhere(&[2]));
    all
}

fn always_pod1(lab: &Lab, from: &str, to: &str) {
    for _ in 0..20 {
        assert_eq!(lab.served_by(from, to), "pod1", "{from} to {to}");
    }
}

fn sees_both(lab: &Lab, from: &str, to: &str) {
    let all: std::collections::BTreeSet<String> = (0..40).map(|_| lab.served_by(from, to)).collect();
    assert_eq!(all.into_iter().collect::<Vec<_>>(), ["pod1", "pod2"], "{from} to {to}");
}

/// B1.10: on every external address, from outside local ones only, with the client's source; pods and the node itself reach
/// all, and what the node sends is masqueraded.
#[test]
fn external_policy_local_keeps_the_source_and_the_node() {
    let lab = Lab::with_pods(3);
    let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080}], "externalTrafficPolicy": "Local",
        "externalIPs": ["203.0.113.9"], "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}});
    let daemon = run(&lab, spec, one_here_one_elsewhere());
    let external = [NODE_PORT, "203.0.113.7:80", "203.0.113.9:80"];
    for to in external {
        always_pod1(&lab, "client", to);
        assert_eq!(lab.connect("client", to).unwrap().source.to_string(), CLIENT, "{to}");
        sees_both(&lab, "pod3", to);
        sees_both(&lab, "node", to);
        let seen = lab.connect("node", to).unwrap();
        let its_own = format!("10.244.{}.1", &seen.served_by[3..]);
        assert_eq!(seen.source.to_string(), its_own, "masqueraded: the address on the way to the pod, {to}");
    }
    sees_both(&lab, "client", VIP);

    daemon.apply(endpoints(&[]));
    for to in external {
        let dropped = lab.connect("client", to).map(|c| c.served_by);
        assert_eq!(dropped.unwrap_err().kind(), ErrorKind::TimedOut, "{to}");
        assert_eq!(lab.served_by("pod3", to), "pod2");
        assert_eq!(lab.served_by("node", to), "pod2");
    }
}

/// B1.9
#[test]
fn internal_policy_local_drops_where_there_is_none() {
    let lab = Lab::with_pods(3);
    let daemon = run(&lab, json!({"internalTrafficPolicy": "Local"}), one_here_one_elsewhere());
    always_pod1(&lab, "pod3", VIP);
    daemon.apply(endpoints(&[]));
    let dropped = lab.connect("pod3", VIP).map(|c| c.served_by);
    assert_eq!(dropped.unwrap_err().kind(), ErrorKind::TimedOut);
}

/// B1.5: the load balancer's address is served unless it says that it proxies; external IPs are.
#[test]
fn external_addresses_are_served() {
    let lab = Lab::with_pods(1);
    let ingress = json!({"loadBalancer": {"ingress": [
        {"ip": "203.0.113.7"}, {"ip": "203.0.113.8", "ipMode": "Proxy"}, {"hostname": "lb.example"}]}});
    let spec = json!({"type": "LoadBalancer", "status": ingress, "externalIPs": ["203.0.113.9"]});
    let _daemon = run(&lab, spec, endpoints(&[1]));
    for ip in ["203.0.113.7", "203.0.113.9"] {
        assert_eq!(lab.served_by("client", &format!("{ip}:80")), "pod1", "{ip}");
    }
    assert!(lab.connect("client", "203.0.113.8:80").is_err());
    assert!(!lab.nft().contains("203.0.113.8"));
}

/// B1.7: drop other sources to the load balancer's address only, not to the NodePort; /0 lifts the restriction.
#[test]
fn source_ranges_guard_the_load_balancer_address() {
    let lab = Lab::with_pods(1);
    let spec = |ranges: serde_json::Value| {
        service(json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080}],
            "loadBalancerSourceRanges": ranges,
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}}))
    };
    let daemon = lab.start();
    let others = json!(["198.51.100.0/24", "10.0.0.0/8", "10.244.0.0/16"]);
    daemon.apply([spec(others)].into_iter().chain(endpoints(&[1])).chain([Complete]));
    let dropped = lab.connect("client", "203.0.113.7:80").map(|c| c.served_by);
    assert_eq!(dropped.unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(lab.served_by("client", NODE_PORT), "pod1");
    assert_eq!(lab.served_by("client", VIP), "pod1");
    assert_eq!(lab.served_by("pod1", "203.0.113.7:80"), "pod1");
    daemon.apply([spec(json!(["192.0.2.0/25", "198.51.100.0/24"]))]);
    assert_eq!(lab.served_by("client", "203.0.113.7:80"), "pod1");
    daemon.apply([spec(json!(["198.51.100.0/24"]))]);
    assert!(lab.connect("client", "203.0.113.7:80").is_err());
    daemon.apply([spec(json!(["198.51.100.0/24", "0.0.0.0/0"]))]);
    assert_eq!(lab.served_by("client", "203.0.113.7:80"), "pod1");
}

/// B1.21: ClusterIP to NodePort to ExternalName and back.
#[test]
fn a_service_changes_its_type() {
    let lab = Lab::with_pods(1);
    let daemon = run(&lab, json!({}), endpoints(&[1]));
    assert!(lab.connect("client", NODE_PORT).is_err());
    daemon.apply([service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}))]);
    assert_eq!(lab.served_by("client", &format!("{NODE}:30080")), "pod1");
    daemon.apply([service(
        json!({"type": "ExternalName", "externalName": "elsewhere.example", "clusterIP": "", "clusterIPs": []}),
    )]);
    assert!(lab.connect("client", NODE_PORT).is_err());
    assert!(!lab.nft().contains("10.96.0.10"), "{}", lab.nft());
    daemon.apply([service(json!({}))]);
    assert_eq!(lab.served_by("client", VIP), "pod1");
}

/// B1.16: the ways to tell pods from others, and none of them.
#[test]
fn pods_are_told_by_their_interface() {
    use stoker::service::LocalTraffic::{Bridge, InterfacePrefix, Unknown};
    let lab = Lab::with_pods(3);
    let hidden = "10.244.1.1";
    for (local_traffic, pod2, pod3, client) in [
        (Bridge("pod2".into()), "10.244.2.2", hidden, hidden),
        (InterfacePrefix("po".into()), "10.244.2.2", "10.244.3.2", hidden),
        (Unknown, "10.244.2.2", "10.244.3.2", CLIENT),
    ] {
        let config = stoker::service::ServiceConfig { local_traffic, ..Default::default() };
        let daemon = lab.start_with(config.clone());
        daemon.apply([service(json!({}))].into_iter().chain(endpoints(&[1])).chain([Complete]));
        for (from, source) in [("pod2", pod2), ("pod3", pod3), ("client", client)] {
            assert_eq!(lab.connect(from, VIP).unwrap().source.to_string(), source, "{from} with {config:?}");
        }
        daemon.stop();
    }
}

/// B1.16: masqueradeAll hides every source.
#[test]
fn masquerade_all_hides_pods_too() {
    let lab = Lab::with_pods(2);
    let daemon = lab.start_with(stoker::service::ServiceConfig { masquerade_all: true, ..Default::default() });
    daemon.apply([service(json!({}))].into_iter().chain(endpoints(&[1])).chain([Complete]));
    assert_eq!(lab.connect("pod2", VIP).unwrap().source.to_string(), "10.244.1.1");
}

/// B1.7: where a node's address is allowed, so is the load balancer's own, which packets of the node carry when it is an
/// address of the node too; and a range guards an address that is an external IP as well.
#[test]
fn a_node_reaches_a_load_balancer_address_that_is_its_own() {
    let lab = Lab::with_pods(1);
    lab.add_address("node", "203.0.113.7/32");
    let spec = |range: &str| {
        service(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [range], "externalIPs": ["203.0.113.7"],
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}}))
    };
    let daemon = lab.start();
    daemon.apply([spec("192.0.2.1/32")].into_iter().chain(endpoints(&[1])).chain([Complete]));
    assert_eq!(lab.served_by("node", "203.0.113.7:80"), "pod1");
    assert!(lab.connect("client", "203.0.113.7:80").is_err());
    daemon.apply([spec("198.51.100.0/24")]);
    assert!(lab.connect("node", "203.0.113.7:80").is_err());
}
