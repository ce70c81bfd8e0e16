//! Reaching a Service: cluster IPs and NodePorts over both families and TCP and UDP.

use std::collections::HashMap;
use std::io::ErrorKind;

use serde_json::json;
use stoker_model::service::ServiceChange::Complete;

use crate::lab::{CLIENT, Lab, NODE, NODE6, endpoints, eventually, exchange, service};

const VIP: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:96::10]:80";

fn web_with(lab: &Lab, pods: &[u8], spec: serde_json::Value) -> crate::lab::Daemon {
    let daemon = lab.start();
    daemon.apply([service(spec)].into_iter().chain(endpoints(pods)).chain([Complete]));
    daemon
}

/// B1.3: from pods, from the host network and from off-node traffic that is routed in; B1.18: in both families.
#[test]
fn a_cluster_ip_is_reached_from_everywhere() {
    let lab = Lab::with_pods(2);
    let _daemon = web_with(&lab, &[1], json!({}));
    for from in ["pod2", "node", "client"] {
        for to in [VIP, VIP6] {
            assert_eq!(lab.served_by(from, to), "pod1", "{from} to {to}");
        }
    }
}

/// B1.3: each connection draws its endpoint.
#[test]
fn connections_spread_over_the_endpoints() {
    let lab = Lab::with_pods(4);
    let _daemon = web_with(&lab, &[1, 2, 3], json!({}));
    let mut served: HashMap<String, usize> = HashMap::new();
    for _ in 0..90 {
        *served.entry(lab.served_by("pod4", VIP)).or_default() += 1;
    }
    // 30 each are expected; fewer than 10 for one of three happens once in ten million runs.
    assert_eq!(served.len(), 3, "{served:?}");
    assert!(served.values().all(|&count| count >= 10), "{served:?}");
}

/// B1.15
#[test]
fn a_pod_reaches_itself_through_its_service() {
    let lab = Lab::with_pods(1);
    let _daemon = web_with(&lab, &[1], json!({}));
    assert_eq!(lab.served_by("pod1", VIP), "pod1");
    assert_eq!(lab.served_by("pod1", VIP6), "pod1");
}

/// B1.4, B1.11: on the node's addresses, from outside, from pods and from the node itself; the source is hidden.
#[test]
fn a_node_port_is_reached_from_outside_and_masqueraded() {
    let lab = Lab::with_pods(2);
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
    let _daemon = web_with(&lab, &[1], spec);
    let connection = lab.connect("client", &format!("{NODE}:30080")).unwrap();
    assert_eq!(connection.served_by, "pod1");
    assert_eq!(connection.source.to_string(), "10.244.1.1", "the node's address on the pod's link");
    for from in ["client", "node", "pod2"] {
        assert_eq!(lab.served_by(from, &format!("{NODE}:30080")), "pod1", "{from}");
        assert_eq!(lab.served_by(from, &format!("[{NODE6}]:30080")), "pod1", "{from}");
    }
    let loopback = lab.connect("node", "127.0.0.1:30080").map(|c| c.served_by);
    assert_eq!(loopback.unwrap_err().kind(), ErrorKind::ConnectionRefused, "not on loopback");
}

/// B1.4: with localhostNodePorts, and then strangers do not reach what listens on loopback.
#[test]
fn node_ports_answer_on_loopback_where_that_is_wanted() {
    let lab = Lab::with_pods(1);
    // A client that sends packets to another machine's loopback has to want it.
    lab.run_in("client", "ip addr del 127.0.0.1/8 dev lo");
    lab.run_in("client", &format!("ip route add 127.0.0.0/8 via {NODE}"));
    for name in ["node", "client"] {
        lab.run_in(name, "sysctl -qw net.ipv4.conf.all.route_localnet=1");
    }
    let _listener = lab.within("node", || std::net::TcpListener::bind("127.0.0.1:4000").unwrap()).join().unwrap();
    let reach = |from: &str| {
        let connect = || {
            let to = "127.0.0.1:4000".parse().unwrap();
            std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(300)).is_ok()
        };
        lab.within(from, connect).join().unwrap()
    };
    assert!(reach("client"), "what the setting alone does");
    lab.run("sysctl -qw net.ipv4.conf.all.route_localnet=0");

    let daemon = lab.start_with(stoker::service::ServiceConfig { localhost_node_ports: true, ..Default::default() });
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
    daemon.apply([service(spec)].into_iter().chain(endpoints(&[1])).chain([Complete]));
    assert_eq!(lab.run("cat /proc/sys/net/ipv4/conf/all/route_localnet").trim(), "1");
    let connection = lab.connect("node", "127.0.0.1:30080").unwrap();
    assert_eq!((connection.served_by.as_str(), connection.source.to_string().as_str()), ("pod1", "10.244.1.1"));
    assert_eq!(lab.served_by("client", &format!("{NODE}:30080")), "pod1", "and elsewhere as ever");
    let v6 = lab.connect("node", "[::1]:30080").map(|c| c.served_by);
    assert_eq!(v6.unwrap_err().kind(), ErrorKind::ConnectionRefused, "never in IPv6");
    assert!(reach("node") && !reach("client"), "strangers do not reach loopback");
}

/// B1.16: pods keep their source address towards a cluster IP, others do not.
#[test]
fn only_traffic_from_outside_is_masqueraded() {
    let lab = Lab::with_pods(2);
    let _daemon = web_with(&lab, &[1], json!({}));
    assert_eq!(lab.connect("pod2", VIP).unwrap().source.to_string(), "10.244.2.2");
    assert_eq!(lab.connect("client", VIP).unwrap().source.to_string(), "10.244.1.1");
}

/// B1.12: refused at once on every address, by TCP and UDP, and served as soon as there is an endpoint.
#[test]
fn a_service_without_endpoints_refuses() {
    let lab = Lab::with_pods(1);
    let ports =
        json!([{"port": 80, "nodePort": 30080}, {"name": "u", "port": 80, "nodePort": 30080, "protocol": "UDP"}]);
    let daemon = web_with(&lab, &[], json!({"type": "NodePort", "ports": ports}));
    let node_port = format!("{NODE}:30080");
    for (from, to) in [("pod1", VIP), ("node", VIP), ("client", VIP), ("client", &node_port), ("pod1", VIP6)] {
        let refused = lab.connect(from, to).map(|c| c.served_by);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{from} to {to}");
    }
    for to in [VIP, &node_port] {
        let refused = lab.datagram("client", to);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "UDP to {to}");
    }
    daemon.apply(endpoints(&[1]));
    assert_eq!(lab.served_by("client", VIP), "pod1");
    assert_eq!(lab.served_by("client", &node_port), "pod1");
}

/// B1.13: the first half of the row (unused port of a cluster IP) and the second (unallocated service IP).
#[test]
fn unused_ports_are_refused_and_unused_addresses_dropped() {
    let lab = Lab::with_pods(1);
    let daemon = lab.start_with(stoker::service::ServiceConfig {
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        ..Default::default()
    });
    daemon.apply([service(json!({}))].into_iter().chain(endpoints(&[1])).chain([Complete]));
    for from in ["pod1", "node", "client"] {
        let unused = lab.connect(from, "10.96.0.10:81").map(|c| c.served_by);
        assert_eq!(unused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{from}");
    }
    let nobody = lab.connect("pod1", "10.96.0.11:80").map(|c| c.served_by);
    assert_eq!(nobody.unwrap_err().kind(), ErrorKind::TimedOut);
    // More ranges, one within another and one that is none: as ServiceCIDRs come and go.
    let ranges = || lab.nft_command("list set ip stoker service-ranges");
    daemon.service_ranges(&["10.112.0.0/16", "10.112.1.0/24", "fd00:96::/112", "nonsense"]);
    eventually("the ranges are written", || ranges().contains("10.112.0.0/16"));
    assert!(ranges().contains("10.96.0.0/16") && !ranges().contains("10.112.1.0/24"), "{}", ranges());
    assert!(lab.nft().contains("@service-ranges fib daddr type != local drop"));
    daemon.service_ranges(&[]);
    eventually("they are gone", || !ranges().contains("10.112."));
    assert_eq!(lab.served_by("pod1", VIP), "pod1");
}

/// B1.3, B1.19: one port number over TCP and UDP.
#[test]
fn tcp_and_udp_share_a_port_number() {
    let lab = Lab::with_pods(2);
    let ports = json!([{"port": 80}, {"name": "", "port": 80, "protocol": "UDP"}]);
    let _daemon = web_with(&lab, &[1], json!({"ports": ports}));
    assert_eq!(lab.served_by("pod2", VIP), "pod1");
    for from in ["pod2", "client", "node"] {
        for to in [VIP, VIP6] {
            assert_eq!(lab.datagram(from, to).ok().as_deref(), Some("pod1"), "{from} to {to}\n{}", lab.nft());
        }
    }
}

/// B1.28: what is established stays, what is new goes elsewhere.
#[test]
fn removing_an_endpoint_leaves_its_open_connections_alone() {
    let lab = Lab::with_pods(3);
    let daemon = web_with(&lab, &[1, 2], json!({}));
    let mut open = loop {
        let connection = lab.connect("pod3", VIP).unwrap();
        if connection.served_by == "pod1" {
            break connection;
        }
    };
    daemon.apply(endpoints(&[2]));
    for _ in 0..20 {
        assert_eq!(lab.served_by("pod3", VIP), "pod2");
    }
    assert!(open.still_answers());
}

/// Whatever we write, the user's nft can list it, and would take it back. B1.17: bit 14, and random source ports.
#[test]
fn nft_lists_all_of_it() {
    let lab = Lab::with_pods(1);
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}],
        "externalIPs": [CLIENT], "externalTrafficPolicy": "Local"});
    let daemon = web_with(&lab, &[1], spec);
    let listed = lab.nft();
    for expected in [
        "ip daddr . meta l4proto . th dport @services-lb-1 goto lb-1",
        "0 . 10.96.0.10 . tcp . 80 : 10.244.1.2 . 8080",
        "65536 . tcp . 30080 : 10.244.1.2 . 8080",
        "meta l4proto @protocols dnat ip to numgen random mod 1 . ip daddr . meta l4proto . th dport map @endpoints",
        "meta mark set meta mark | 0x00004000",
        "meta mark & 0x00004000 == 0x00004000 meta mark set meta mark ^ 0x00004000 masquerade fully-random",
        "dnat ip6 to numgen random mod 1 offset 65536 . meta l4proto . th dport map @nodeport-endpoints",
    ] {
        assert!(listed.contains(expected), "{expected:?} is not in:\n{listed}");
    }
    // It would repair what follows.
    daemon.stop();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("flush ruleset\n{listed}")).unwrap();
    lab.nft_command(&format!("-f {}", file.path().display()));
    assert!(lab.nft() == listed, "nft takes its own listing back");
}

/// B1.20: a socket that goes on sending is moved off a backend that went, and onto the first one that came.
#[test]
fn udp_flows_leave_a_backend_that_is_gone() {
    let lab = Lab::with_pods(3);
    let ports = json!([{"port": 80, "protocol": "UDP", "nodePort": 30080}]);
    let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    let spec = json!({"type": "LoadBalancer", "ports": ports, "externalIPs": ["203.0.113.9"], "status": status});
    let daemon = web_with(&lab, &[1], spec);
    let node_port = format!("{NODE}:30080");
    let sockets = [
        lab.udp("pod3", VIP),
        lab.udp("client", VIP),
        lab.udp("client", &node_port),
        lab.udp("client", "203.0.113.7:80"),
        lab.udp("client", "203.0.113.9:80"),
    ];
    for socket in &sockets {
        assert_eq!(exchange(socket).unwrap(), "pod1");
    }
    daemon.apply(endpoints(&[2]));
    for socket in &sockets {
        assert_eq!(exchange(socket).unwrap(), "pod2", "{:?}", socket.peer_addr());
    }
    daemon.apply(endpoints(&[1, 2]));
    for socket in &sockets {
        assert_eq!(exchange(socket).unwrap(), "pod2", "nothing went, so nothing moves");
    }
}

/// B1.4: only on the addresses that were chosen.
#[test]
fn node_ports_answer_on_chosen_addresses() {
    let lab = Lab::with_pods(2);
    let daemon = lab.start_with(stoker::service::ServiceConfig {
        node_port_addresses: vec!["192.0.2.0/24".parse().unwrap()],
        ..Default::default()
    });
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
    daemon.apply([service(spec)].into_iter().chain(endpoints(&[1])).chain([Complete]));
    assert_eq!(lab.served_by("pod2", &format!("{NODE}:30080")), "pod1");
    let elsewhere = lab.connect("pod2", "10.244.2.1:30080").map(|c| c.served_by);
    assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
