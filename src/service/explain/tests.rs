//! What is printed about Services.

use serde_json::json;

use super::*;

fn service(spec: serde_json::Value) -> Service {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn slice(name: &str, kind: &str, endpoints: serde_json::Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": kind, "endpoints": endpoints, "ports": [{"port": 8080}],
    }))
    .unwrap()
}

fn here() -> NodeTopology {
    NodeTopology { name: "here".into(), zone: Some("zone-a".into()), ips: Vec::new() }
}

/// B1.22, B1.23, B1.25: each reason for which an endpoint gets no traffic is told.
#[test]
fn every_unused_endpoint_has_its_reason() {
    let hints = |zone: &str| json!({"forZones": [{"name": zone}]});
    let slices = [
        slice(
            "a",
            "IPv4",
            json!([
                {"addresses": ["10.244.0.1"], "nodeName": "here", "hints": hints("zone-a")},
                {"addresses": ["10.244.0.2"], "hints": hints("zone-b")},
                {"addresses": ["10.244.0.3"], "conditions": {"ready": false}},
                {"addresses": ["10.244.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.244.0.5"], "conditions": {"ready": false, "serving": false, "terminating": true}},
                {"addresses": ["fd00::6"]},
            ]),
        ),
        slice("b", "IPv6", json!([{"addresses": ["fd00::7"]}])),
        slice("c", "FQDN", json!([{"addresses": ["web.example"]}])),
    ];
    let explained = explain(&service(json!({})), slices.iter(), &here());
    let reasons: Vec<&str> = explained.endpoints.iter().map(|endpoint| endpoint.reason.as_str()).collect();
    let expected = [
        "used by 10.96.0.10:80/tcp",
        "its topology hints name other zones than this node's (zone-a)",
        "not ready",
        "terminating, and others are ready",
        "terminating, and it no longer serves",
        "its address is none of type IPv4",
        "the Service has no IPv6 address",
        "slices of type FQDN are left out",
    ];
    assert_eq!(reasons, expected);
    assert!(explained.problems[0].contains("fd00::6"), "{:?}", explained.problems);
    let text = explained.to_string();
    assert!(text.contains("to the only endpoint") && text.contains("ip stoker services-lb-1:"), "{text}");
}

#[test]
fn the_way_of_a_packet_is_told() {
    let ready =
        [slice("a", "IPv4", json!([{"addresses": ["10.244.0.1"], "nodeName": "here"}, {"addresses": ["10.244.0.2"]}]))];
    let spec = json!({"type": "NodePort", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        "ports": [{"port": 80, "nodePort": 30080}]});
    let explained = explain(&service(spec), ready.iter(), &here());
    let [cluster_ip, node_port] = explained.frontends.as_slice() else { panic!("{explained}") };
    assert_eq!(cluster_ip.affinity_seconds, Some(10800));
    assert!(cluster_ip.path[1].contains("one of 2 endpoints"), "{:?}", cluster_ip.path);
    assert!(node_port.path.iter().any(|step| step == "from elsewhere: source kept, to the only endpoint on this node"));
    assert_eq!(node_port.slots.iter().filter(|slot| slot.local).count(), 1);
    let json = serde_json::to_value(&explained).unwrap();
    assert_eq!(json["frontends"][1]["frontend"], "NodePort 30080/tcp (IPv4)");
    for spec in [json!({"type": "ExternalName"}), json!({"clusterIP": "None", "clusterIPs": ["None"]})] {
        let explained = explain(&service(spec), ready.iter(), &here());
        assert!(explained.left_alone.is_some_and(|reason| reason.contains("DNS only")));
    }
}

/// What the kernel lacks and what it has too much is told; another order of slots is no difference.
#[test]
fn the_kernel_is_compared() {
    let ready = [slice("a", "IPv4", json!([{"addresses": ["10.244.0.1"]}, {"addresses": ["10.244.0.2"]}]))];
    let fresh = || explain(&service(json!({})), ready.iter(), &here());
    let mut kernel = Elements::default();
    fresh().table.elements(|key, value| _ = kernel.insert(key, value));
    let at = fresh().frontends[0].at;
    let (first, second) = (kernel[&Key::Slot(at, 0)], kernel[&Key::Slot(at, 1)]);
    kernel.insert(Key::Slot(at, 0), second);
    kernel.insert(Key::Slot(at, 1), first);
    let mut explained = fresh();
    explained.verify(kernel.clone());
    assert!(explained.is_as_expected(), "{explained}");
    assert_eq!(explained.frontends[0].slots[0].endpoint, "10.244.0.2:8080", "as the kernel has it");
    kernel.remove(&Key::Slot(at, 0));
    kernel.insert(Key::Slot(at, 7), first);
    let mut explained = fresh();
    explained.verify(kernel);
    let kinds: Vec<&str> = explained.differences.iter().flatten().map(|difference| difference.kind).collect();
    assert!(kinds.contains(&"missing") && kinds.contains(&"unexpected"), "{explained}");
}
