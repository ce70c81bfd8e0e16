//! Session affinity: a client stays with its endpoint, whatever happens to the others.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use stoker_model::service::ServiceChange::{self, Complete};

use crate::lab::{CLIENT, Daemon, Lab, NODE, endpoints, service};

const VIP: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:96::10]:80";

/// A Service with affinity, and with a NodePort.
fn sticky(seconds: u32) -> ServiceChange {
    service(json!({
        "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}], "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
    }))
}

fn start(lab: &Lab, seconds: u32, pods: &[u8]) -> Daemon {
    let daemon = lab.start();
    daemon.apply([sticky(seconds)].into_iter().chain(endpoints(pods)).chain([Complete]));
    daemon
}

fn all_served(lab: &Lab, from: &str, to: &str) -> BTreeSet<String> {
    (0..20).map(|_| lab.served_by(from, to)).collect()
}

#[track_caller]
fn only(lab: &Lab, from: &str, to: &str) -> String {
    let all: Vec<_> = all_served(lab, from, to).into_iter().collect();
    let [one] = all.as_slice() else { panic!("{from} to {to} reached {all:?}\n{}", lab.nft()) };
    one.clone()
}

fn number(pod: &str) -> u8 {
    pod.strip_prefix("pod").unwrap().parse().unwrap()
}

/// B1.8: each client has its endpoint, over every frontend and family, while endpoints come and go; when its own goes it gets
/// another and keeps that. A restart of the daemon changes nothing.
#[test]
fn a_client_keeps_its_endpoint() {
    let lab = Lab::with_pods(5);
    let daemon = start(&lab, 10800, &[1, 2, 3]);
    let node_port = format!("{NODE}:30080");
    let ways = [("client", VIP), ("pod5", VIP), ("node", VIP), ("client", VIP6), ("client", node_port.as_str())];
    let served: Vec<String> = ways.iter().map(|(from, to)| only(&lab, from, to)).collect();
    let holds = |what: &str| {
        for ((from, to), pod) in ways.iter().zip(&served) {
            assert_eq!(only(&lab, from, to), *pod, "{from} to {to} {what}");
        }
    };
    daemon.apply(endpoints(&[1, 2, 3, 4]));
    holds("after one came");
    daemon.stop();
    let daemon = lab.start();
    daemon.apply([sticky(10800)].into_iter().chain(endpoints(&[1, 2, 3, 4])).chain([Complete]));
    assert_eq!(daemon.transactions(), 0, "the restart found all of it");
    holds("after a restart");

    // Slot 0 becomes a hole, which the last one moves into: everybody else's clients stay or move with it.
    let first = number(&served[0]);
    let rest: Vec<u8> = [1, 2, 3, 4].into_iter().filter(|pod| *pod != first).collect();
    daemon.apply(endpoints(&rest));
    let mut moved = Vec::new();
    for ((from, to), pod) in ways.iter().zip(&served) {
        let now = only(&lab, from, to);
        assert!(now != format!("pod{first}"), "{from} to {to} still at the one that is gone");
        assert!(now == *pod || number(pod) == first, "{from} to {to} was at {pod}, is at {now}");
        moved.push(now);
    }
    daemon.apply(endpoints(&[&rest[..], &[first]].concat()));
    for ((from, to), pod) in ways.iter().zip(&moved) {
        assert_eq!(only(&lab, from, to), *pod, "{from} to {to} after it came back");
    }
    let listed = lab.nft();
    assert!(listed.contains("update @clients-10800s-0 { ip saddr . ip daddr . meta l4proto . th dport"), "{listed}");
    daemon.stop();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("flush ruleset\n{listed}")).unwrap();
    lab.nft_command(&format!("-f {}", file.path().display()));
    assert_eq!(only(&lab, "client", VIP), moved[0], "nft takes its own listing back, clients included");
}

/// B1.8: the memory ends with the time-out, which each new connection renews.
#[test]
fn a_client_is_forgotten_after_the_time_out() {
    let lab = Lab::with_pods(2);
    let _daemon = start(&lab, 2, &[1, 2]);
    let remembered = || {
        let sets = ["clients-2s-0", "clients-2s-1"].map(|set| lab.nft_command(&format!("list set ip stoker {set}")));
        sets.iter().filter(|set| set.contains(CLIENT)).count()
    };
    let served = lab.served_by("client", VIP);
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(lab.served_by("client", VIP), served, "renewed");
    }
    assert_eq!(remembered(), 1);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(remembered(), 0);
}

/// B1.8: turning it on and off works on the living Service.
#[test]
fn affinity_is_turned_on_and_off() {
    let lab = Lab::with_pods(3);
    let daemon = start(&lab, 10800, &[1, 2]);
    only(&lab, "client", VIP);
    daemon.apply([service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}))]);
    assert_eq!(all_served(&lab, "client", VIP).len(), 2);
    assert!(!lab.nft().contains(&format!("{CLIENT} . 10.96.0.10")), "nobody is remembered");
    daemon.apply([sticky(60)]);
    only(&lab, "client", VIP);
}

/// B1.29: with policy `Local` outside traffic sticks to a local endpoint, though the same client is bound to one elsewhere by
/// the cluster IP.
#[test]
fn affinity_obeys_the_traffic_policies() {
    let lab = Lab::with_pods(4);
    let daemon = lab.start();
    let spec = json!({
        "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}], "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}, "externalTrafficPolicy": "Local",
    });
    let here = crate::lab::endpoints_on(&[1, 2], "node");
    let elsewhere = crate::lab::elsewhere(&[3]);
    daemon.apply([service(spec.clone())].into_iter().chain(here).chain(elsewhere).chain([Complete]));
    let node_port = format!("{NODE}:30080");
    let served = only(&lab, "client", &node_port);
    assert!(["pod1", "pod2"].contains(&served.as_str()));
    assert_eq!(lab.connect("client", &node_port).unwrap().source.to_string(), CLIENT);
    only(&lab, "pod4", &node_port);
    // Its endpoint is no longer on this node: the memory of it is not used.
    let other = if served == "pod1" { 2 } else { 1 };
    daemon.apply(crate::lab::endpoints_on(&[other], "node"));
    assert_eq!(only(&lab, "client", &node_port), format!("pod{other}"));
    // Internal policy `Local`: whoever was bound to an endpoint elsewhere goes to the local one.
    let mut internal = spec;
    internal["internalTrafficPolicy"] = json!("Local");
    daemon.apply([service(internal)]);
    assert_eq!(only(&lab, "pod4", VIP), format!("pod{other}"));
}
