//! What goes wrong around us: rules flushed by others, objects that make no sense, very large Services, flows left behind.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde_json::json;
use stoker::service::ServiceConfig;
use stoker::service::data_path::{DataPath as _, Doubt};
use stoker::service::diff::{Batch, Table};
use stoker::service::model::Model;
use stoker::service::nftables::Kernel;
use stoker_model::service::ServiceChange::{self, Complete};
use stoker_model::service::{EndpointSlice, NodeTopology};

use crate::lab::{Lab, NODE, endpoints, eventually, exchange, service, service_object};

const VIP: &str = "10.96.0.10:80";

/// A Service of another name.
fn other(name: &str, spec: serde_json::Value) -> ServiceChange {
    ServiceChange::Service(Arc::new(service_object(name, spec)))
}

/// An IPv4 slice of any Service.
fn slice(service: &str, name: &str, endpoints: &serde_json::Value, ports: &serde_json::Value) -> ServiceChange {
    let object = json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
    });
    serde_json::from_value::<EndpointSlice>(object).unwrap().into()
}

/// A flush leaves chains without rules: that is seen by the running daemon, in the moment of its start, and by the next one.
#[test]
fn rules_flushed_by_others_come_back() {
    let lab = Lab::with_pods(1);
    let cluster = || [service(json!({}))].into_iter().chain(endpoints(&[1])).chain([Complete]);
    for _ in 0..3 {
        let daemon = lab.start();
        cluster().for_each(|change| daemon.tell(change));
        // As soon as there is a table, most likely before anybody listens.
        eventually("the table", || lab.nft_command("list tables").contains("ip stoker"));
        lab.nft_command("flush table ip stoker");
        #[expect(clippy::disallowed_methods, reason = "a test measures how long something took")]
        let flushed = Instant::now();
        eventually("the rules are back", || lab.connect("client", VIP).is_ok());
        assert!(flushed.elapsed() < Duration::from_secs(3), "within a second, and the time that a lost packet takes");
        daemon.stop();
        lab.nft_command("flush table ip stoker");
        assert!(lab.connect("client", VIP).is_err());
        let daemon = lab.start();
        daemon.apply(cluster());
        assert_eq!(lab.served_by("client", VIP), "pod1", "found without rules after a restart");
        daemon.stop();
        lab.cleanup();
    }
}

/// The kernel tells of a transaction before it says that it was done, so what a socket was told lies there then. Of ours it is told nothing,
/// not even what it would leave out after reading: each Service that changes would cost a look at that.
#[test]
fn our_own_transactions_are_not_told_to_us() {
    let lab = Lab::with_pods(0);
    let alone = lab.within("node", || {
        let node = NodeTopology { name: "node".into(), zone: None, ips: Vec::new() };
        let (mut model, mut table) = (Model::new(Arc::new(node)), Table::default());
        let mut kernel = Kernel::open(ServiceConfig::default()).unwrap();
        kernel.reconcile(&mut table, Doubt::Rules).unwrap();
        let (listener, _) = kernel.listen().unwrap().unwrap();
        let is_told = || match rustix::net::recv(listener.as_fd(), &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok(_) => true,
            Err(Errno::AGAIN) => false,
            Err(error) => panic!("{error}"),
        };
        for round in 0..10 {
            let before = kernel.batches_sent();
            [service(json!({}))].into_iter().chain(endpoints(&[1 + round % 2])).for_each(|change| model.apply(change));
            let mut batch = Batch::default();
            model.take_dirty().iter().for_each(|name| table.set(name, model.routes(name), &mut batch));
            kernel.apply(&batch.into_operations()).unwrap();
            assert!(kernel.batches_sent() > before && !is_told(), "transaction {round}");
        }
        assert!(Command::new("nft").args(["flush", "table", "ip", "stoker"]).status().unwrap().success());
        assert!(is_told(), "somebody else did that");
        assert_eq!(listener.foreign_changes().unwrap(), Doubt::Rules);
        assert!(!is_told(), "all was read");
    });
    alone.join().unwrap();
}

/// Overlapping addresses and ports, slices of wrong families, ranges that are none: told, and everything else works.
#[test]
fn what_makes_no_sense_is_told_and_the_rest_works() {
    let lab = Lab::with_pods(2);
    let daemon = lab.start();
    let node_port = json!([{"port": 80, "nodePort": 30080}]);
    let taken = json!({"type": "NodePort", "clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11"], "ports": node_port,
        "externalIPs": ["10.96.0.10", "not-an-ip"]});
    let guarded = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.12", "clusterIPs": ["10.96.0.12"],
        "ports": [{"port": 80}, {"name": "odd", "port": 81, "protocol": "DCCP"}],
        "loadBalancerSourceRanges": ["everybody"], "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}});
    let ports = json!([{"port": 8080}]);
    let web = service(json!({"type": "NodePort", "ports": node_port}));
    daemon.apply([web, other("web-too", taken), other("guarded", guarded)].into_iter().chain(endpoints(&[1])).chain([
        slice("web-too", "too-1", &json!([{"addresses": ["10.244.2.2"]}, {"addresses": ["fd00::1"]}]), &ports),
        slice("guarded", "guarded-1", &json!([{"addresses": ["10.244.2.2"]}]), &ports),
        Complete,
    ]));
    assert_eq!(lab.served_by("client", VIP), "pod1");
    assert_eq!(lab.served_by("client", &format!("{NODE}:30080")), "pod1", "the first by name has it");
    assert_eq!(lab.served_by("client", "10.96.0.11:80"), "pod2");
    assert_eq!(lab.served_by("client", "10.96.0.12:80"), "pod2");
    let problems = daemon.problems();
    for expected in [
        "default/web-too: NodePort 30080/tcp (IPv4) belongs to Service default/web",
        "default/web-too: 10.96.0.10:80/tcp belongs to Service default/web",
        "default/web-too: spec.externalIPs: \"not-an-ip\" is not an IP address",
        "default/web-too: EndpointSlice too-1: \"fd00::1\" is not an IPv4 address",
        "default/guarded: spec.loadBalancerSourceRanges: \"everybody\" is not an address range",
        "default/guarded: spec.ports: protocol \"DCCP\" is none of",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected:?} is not in {problems:#?}");
    }
    // The first gives its NodePort up: the other gets it, and is content.
    daemon.apply([service(json!({}))]);
    assert_eq!(lab.served_by("client", &format!("{NODE}:30080")), "pod2");
    assert!(!daemon.problems().iter().any(|problem| problem.contains("30080")));
}

/// B1.30 and 10 000 endpoints: a large Service is written whole, shrinks to what is left, and a new one answers soon.
#[test]
fn large_services_and_new_ones() {
    let lab = Lab::with_pods(1);
    let daemon = lab.start();
    let ports = json!([{"port": 8080}]);
    let slices: Vec<ServiceChange> = (0..10_u32)
        .map(|n| {
            let address = |i: u32| json!({"addresses": [std::net::Ipv4Addr::from(0x0a80_0000 + n * 1000 + i)]});
            slice("web", &format!("web-{n}"), &(0..1000).map(address).collect(), &ports)
        })
        .collect();
    daemon.apply([service(json!({}))].into_iter().chain(slices).chain([Complete]));
    let slots = lab.nft_command("list map ip stoker endpoints").matches(" . 10.96.0.10 . tcp . 80 : ").count();
    assert_eq!(slots, 10_000);
    let gone = (0..10).map(|n| slice("web", &format!("web-{n}"), &json!([]), &ports));
    daemon.apply(gone.chain(endpoints(&[1])));
    assert_eq!(lab.served_by("client", VIP), "pod1");

    let mut waits: Vec<Duration> = (0..15)
        .map(|n| {
            let (name, ip) = (format!("new-{n}"), format!("10.96.1.{n}"));
            #[expect(clippy::disallowed_methods, reason = "a test measures how long something took")]
            let begun = Instant::now();
            daemon.tell(other(&name, json!({"clusterIP": ip, "clusterIPs": [ip]})));
            daemon.tell(slice(&name, &name, &json!([{"addresses": ["10.244.1.2"]}]), &ports));
            eventually("the new Service answers", || lab.answers_at_once("client", &format!("{ip}:80")));
            begun.elapsed()
        })
        .collect();
    waits.sort_unstable();
    assert!(waits[7] < Duration::from_secs(1), "p50 of {waits:?}");
}

/// Very many at once are several transactions, whose echo nobody listens to: they are no foreign change, and what somebody else
/// does afterwards is still noticed.
#[test]
fn a_flood_of_services_is_written_and_watched() {
    let lab = Lab::with_pods(1);
    let daemon = lab.start();
    daemon.apply([service(json!({}))].into_iter().chain(endpoints(&[1])).chain([Complete]));
    let (address, ports) = (json!([{"addresses": ["10.244.1.2"]}]), json!([{"port": 8080}]));
    let ip = |n: u32| std::net::Ipv4Addr::from(0x0a61_0000 + n).to_string();
    let flood = (0..3000).flat_map(|n| {
        let name = format!("s-{n}");
        let spec = json!({"clusterIP": ip(n), "clusterIPs": [ip(n)]});
        [other(&name, spec), slice(&name, &name, &address, &ports)]
    });
    daemon.apply(flood);
    for n in [0, 1234, 2999] {
        assert_eq!(lab.served_by("client", &format!("{}:80", ip(n))), "pod1", "{n}");
    }
    assert_eq!(lab.nft_command("list set ip stoker cluster-ips").matches("10.97.").count(), 3000);
    std::thread::sleep(Duration::from_millis(200));
    let written = daemon.transactions();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(daemon.transactions(), written, "our own writes are not repaired");
    // What is gone comes back: so somebody listens again.
    lab.nft_command("flush set ip stoker services-lb-1");
    eventually("the repair", || lab.answers_at_once("client", &format!("{}:80", ip(7))));
}

/// What comes shortly after a transaction shares the next one: a change at a time costs what it costs, many do not cost that many times.
#[test]
fn changes_that_follow_one_another_share_a_transaction() {
    let lab = Lab::with_pods(1);
    let daemon = lab.start();
    daemon.apply([service(json!({}))].into_iter().chain(endpoints(&[1])).chain([Complete]));
    let before = daemon.transactions();
    let (address, ports) = (json!([{"addresses": ["10.244.1.2"]}]), json!([{"port": 8080}]));
    let ip = |n: u32| std::net::Ipv4Addr::from(0x0a61_0000 + n).to_string();
    for n in 0..200 {
        let name = format!("s-{n}");
        daemon.tell(other(&name, json!({"clusterIP": ip(n), "clusterIPs": [ip(n)]})));
        daemon.tell(slice(&name, &name, &address, &ports));
        std::thread::sleep(Duration::from_millis(1));
    }
    eventually("the last is written", || lab.answers_at_once("client", &format!("{}:80", ip(199))));
    let written = daemon.transactions() - before;
    assert!((2..=100).contains(&written), "{written} transactions for 200 Services");
}

/// B1.20: to zero endpoints and back to another; flows of others stay, also those to the same port number elsewhere.
#[test]
fn udp_flows_follow_a_service_through_zero() {
    let lab = Lab::with_pods(3);
    let daemon = lab.start();
    let ports = json!([{"port": 80, "protocol": "UDP", "nodePort": 8080}]);
    let spec = json!({"type": "NodePort", "ports": ports});
    daemon.apply([service(spec)].into_iter().chain(endpoints(&[1])).chain([Complete]));
    let through = lab.udp("client", VIP);
    // Straight to a pod, at the port number that is the NodePort's too.
    let straight = lab.udp("client", "10.244.3.2:8080");
    assert_eq!((exchange(&through).unwrap(), exchange(&straight).unwrap()), ("pod1".into(), "pod3".into()));
    let flow = || lab.conntrack("-L -p udp --orig-dst 10.244.3.2");
    let id = |listed: String| listed.split_whitespace().find(|word| word.starts_with("id=")).map(str::to_owned);
    let before = id(flow());
    daemon.apply(endpoints(&[]));
    daemon.apply(endpoints(&[2]));
    assert_eq!(exchange(&through).unwrap(), "pod2");
    assert!(before.is_some() && id(flow()) == before, "the flow past the Service was not touched");
}

/// B1.22, B1.25, B1.27: by traffic. Slices made by hand, with several named ports; hints; the fall-back to what terminates.
#[test]
fn endpoints_are_chosen_as_their_slices_say() {
    let lab = Lab::with_pods(4);
    let daemon = lab.start();
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    let endpoint = |pod: u8, more: serde_json::Value| {
        let mut object = json!({"addresses": [format!("10.244.{pod}.2")]});
        more.as_object().unwrap().iter().for_each(|(key, value)| object[key] = value.clone());
        object
    };
    let (a, b) = (json!([{"name": "a", "port": 8080}]), json!([{"name": "b", "port": 8080}]));
    let served = |port: u16| -> std::collections::BTreeSet<String> {
        (0..30).map(|_| lab.served_by("client", &format!("10.96.0.10:{port}"))).collect()
    };
    daemon.apply([
        service(json!({"ports": ports})),
        slice("web", "hand-1", &json!([endpoint(1, json!({})), endpoint(2, json!({}))]), &a),
        slice("web", "hand-2", &json!([endpoint(3, json!({}))]), &b),
        Complete,
    ]);
    assert_eq!(served(80), ["pod1".to_owned(), "pod2".to_owned()].into());
    assert_eq!(served(81), ["pod3".to_owned()].into());
    let zone = |name: &str| json!({"hints": {"forZones": [{"name": name}]}});
    let hinted = json!([endpoint(1, zone("zone-b")), endpoint(2, zone("zone-a"))]);
    daemon.apply([slice("web", "hand-1", &hinted, &a)]);
    assert_eq!(served(80), ["pod2".to_owned()].into(), "the node is in zone-a");
    let node = |zone: &str, node: &str| json!({"hints": {"forZones": [{"name": zone}], "forNodes": [{"name": node}]}});
    let closer = json!([endpoint(1, node("zone-b", "node")), endpoint(2, node("zone-a", "other"))]);
    daemon.apply([slice("web", "hand-1", &closer, &a)]);
    assert_eq!(served(80), ["pod1".to_owned()].into(), "the hint for the node comes first");
    let some = json!([endpoint(1, json!({})), endpoint(2, zone("zone-a"))]);
    daemon.apply([slice("web", "hand-1", &some, &a)]);
    assert_eq!(served(80), ["pod1".to_owned(), "pod2".to_owned()].into(), "not all have one");
    let far = json!([endpoint(1, zone("zone-b")), endpoint(2, zone("zone-c"))]);
    daemon.apply([slice("web", "hand-1", &far, &a)]);
    assert_eq!(served(80), ["pod1".to_owned(), "pod2".to_owned()].into(), "none fits");
    let going = json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
    let unready = json!({"conditions": {"ready": false}});
    daemon.apply([slice("web", "hand-1", &json!([endpoint(1, going), endpoint(2, unready)]), &a)]);
    assert_eq!(served(80), ["pod1".to_owned()].into(), "only what terminates still serves");
}

/// B1.12: refused on every kind of address; B1.9, B1.10 differ.
#[test]
fn without_endpoints_every_address_refuses() {
    let lab = Lab::with_pods(1);
    let daemon = lab.start();
    let spec = json!({"type": "LoadBalancer", "externalIPs": ["203.0.113.9"], "ports": [{"port": 80, "nodePort": 30080}],
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}});
    daemon.apply([service(spec), Complete]);
    for to in [VIP, "[fd00:96::10]:80", "203.0.113.9:80", "203.0.113.7:80", "192.0.2.1:30080", "[2001:db8::1]:30080"] {
        let refused = lab.connect("client", to).map(|c| c.served_by);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
    }
}

/// B1.3, B1.20: SCTP is turned like the others, and a flow leaves a backend that is gone. Sent as raw packets, since many
/// kernels come without SCTP sockets.
#[test]
fn sctp_packets_reach_an_endpoint() {
    if !std::path::Path::new("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established").exists() {
        eprintln!("skipped: this kernel does not track SCTP connections");
        return;
    }
    let lab = Lab::with_pods(2);
    let daemon = lab.start();
    let ports = json!([{"port": 80, "protocol": "SCTP"}]);
    let to = |pod: u8| {
        let sctp = json!([{"port": 9090, "protocol": "SCTP"}]);
        slice("web", "sctp", &json!([{"addresses": [format!("10.244.{pod}.2")]}]), &sctp)
    };
    daemon.apply([service(json!({"ports": ports})), to(1), Complete]);
    for pod in [1, 2] {
        daemon.apply([to(pod)]);
        let arrived = lab.sctp_arrives("client", "10.96.0.10", &format!("pod{pod}"));
        assert_eq!(arrived, Some(9090), "at pod{pod}\n{}", lab.conntrack("-L -p sctp"));
    }
}
