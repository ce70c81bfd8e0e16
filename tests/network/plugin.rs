//! The CNI plugin, called as a runtime calls it.

use serde_json::json;

use super::lab::{Lab, addresses};

fn port(host: u16, protocol: &str, ip: &str) -> serde_json::Value {
    json!({"hostPort": host, "containerPort": 8080, "protocol": protocol, "hostIP": ip})
}

#[test]
fn a_pod_is_attached_checked_and_taken_away() {
    let lab = Lab::new();
    let node = lab.node(1);
    lab.add_namespace("a");
    let added = node.plain("ADD", "a");
    assert!(added.success, "{}", added.value);
    assert_eq!(added.value["cniVersion"], "1.1.0");
    assert_eq!(addresses(&added), ["10.244.1.2", "fd00:244:1::2"]);
    assert_eq!(added.value["interfaces"][1]["sandbox"], lab.ns_path("a"));
    assert!(lab.output("a", "ip link show eth0").contains("mtu 1400"));
    lab.serve("a", 8080);

    // Another pod of the node, the node itself, both families, both ways.
    assert_eq!(node.pod("b"), ["10.244.1.3", "fd00:244:1::3"]);
    assert_eq!(lab.reaches("b", "10.244.1.2:8080", "a").to_string(), "10.244.1.3");
    assert_eq!(lab.reaches("b", "[fd00:244:1::2]:8080", "a").to_string(), "fd00:244:1::3");
    lab.reaches("a", "10.244.1.3:8080", "b");
    lab.reaches("a", "10.244.1.2:8080", "a");
    lab.reaches("node1", "10.244.1.2:8080", "a");
    lab.reaches("node1", "[fd00:244:1::2]:8080", "a");
    lab.serve("node1", 9000);
    lab.reaches("a", "192.0.2.1:9000", "node1");
    assert!(lab.ask_udp("b", "10.244.1.2:8080").is_ok());

    let with_result = node.config(&json!({"prevResult": added.value})).to_string();
    let checked = node.call("CHECK", "a", &with_result);
    assert!(checked.success, "{}", checked.value);
    lab.output("a", "ip addr del 10.244.1.2/32 dev eth0");
    let checked = node.call("CHECK", "a", &with_result);
    assert!(!checked.success && checked.value["msg"].to_string().contains("10.244.1.2"), "{}", checked.value);

    let again = node.plain("ADD", "a");
    assert!(!again.success && again.value["code"] == 5, "{}", again.value);
    assert!(node.plain("DEL", "a").success);
    assert!(node.plain("DEL", "a").success, "twice is fine");
    assert!(!lab.output("a", "ip link").contains("eth0"));
    assert!(!lab.output("node1", "ip route").contains("10.244.1.2 "));

    // The namespace of b is gone before DEL.
    lab.delete_namespace("b");
    let deleted = node.plain("DEL", "b");
    assert!(deleted.success, "{}", deleted.value);
    assert_eq!(node.leases(), [""; 0]);
    assert!(!lab.output("node1", "ip link").contains("stk"));
    // Its address is not used again at once.
    assert_eq!(node.pod("c")[0], "10.244.1.4");
}

#[test]
fn status_gc_and_version_answer_as_the_specification_says() {
    let lab = Lab::new();
    let node = lab.node(1);
    let (kept, _lost) =
        (node.pod("kept"), node.pod_with("lost", &json!({"runtimeConfig": {"portMappings": [port(8081, "tcp", "")]}})));
    assert!(lab.output("node1", "nft list ruleset").contains("8081"));
    assert!(node.plain("STATUS", "").success);
    let none = node.call("STATUS", "", &node.config(&json!({"ranges": []})).to_string());
    assert!(!none.success && none.value["code"] == 50, "{}", none.value);
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]});
    let collected = node.call("GC", "", &node.config(&valid).to_string());
    assert!(collected.success, "{}", collected.value);
    assert_eq!(node.leases(), kept);
    assert!(!lab.output("node1", "nft list ruleset").contains("8081"));
    lab.reaches("node1", &format!("{}:8080", kept[0]), "kept");
    let versions = node.call("VERSION", "", r#"{"cniVersion":"1.0.0"}"#);
    assert_eq!(versions.value["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    assert_eq!(versions.value["cniVersion"], "1.0.0");
}

#[test]
fn bad_input_gets_an_error_with_a_code_and_leaves_nothing() {
    let lab = Lab::new();
    let node = lab.node(1);
    lab.add_namespace("a");
    let config = |change| node.config(&change).to_string();
    for (pod, text, code, names) in [
        ("a", "{".to_owned(), 6, "cannot be read"),
        ("a", config(json!({"cniVersion": "9.9.9"})), 1, "9.9.9"),
        ("a", config(json!({"ranges": []})), 7, "podCIDRs"),
        ("gone", config(json!({})), 3, "gone"),
        ("a", config(json!({"runtimeConfig": {"portMappings": [port(1, "icmp", "")]}})), 7, "icmp"),
        ("a", config(json!({"runtimeConfig": {"portMappings": [port(1, "tcp", "here")]}})), 7, "here"),
        ("a", config(json!({"mtu": 60})), 5, "veth"),
    ] {
        let answer = node.call("ADD", pod, &text);
        assert!(!answer.success && answer.value["code"] == code, "{}", answer.value);
        assert!(answer.value["msg"].as_str().unwrap().contains(names), "{}", answer.value);
        assert!(!lab.output("node1", "ip link").contains("stk"), "{}", answer.value);
    }
    let own = node.call("ADD", "node1", &config(json!({})));
    assert!(!own.success && own.value["code"] == 4, "{}", own.value);
    // A range that is used up: two of eight are reserved, one is the broadcast address.
    for number in 0..5 {
        node.pod_with(&format!("p{number}"), &json!({"ranges": ["10.244.9.0/29"]}));
    }
    let full = node.call("ADD", "a", &config(json!({"ranges": ["10.244.9.0/29"]})));
    assert!(!full.success && full.value["msg"].to_string().contains("10.244.9.0/29"), "{}", full.value);
    assert!(!lab.output("a", "ip link").contains("eth0"));
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    // A11.9
    let lab = Lab::new();
    let node = lab.node(1);
    let mappings = json!([
        port(8081, "tcp", ""), port(8082, "udp", ""), port(8083, "tcp", "192.0.2.1"), port(8084, "tcp", "127.0.0.1"),
        // As containerd spells it.
        {"HostPort": 8087, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": ""},
        {"hostPort": 0, "containerPort": 9999, "protocol": "tcp"},
    ]);
    let pod = node.pod_with("web", &json!({"runtimeConfig": {"portMappings": mappings}}));
    node.pod("other");
    assert_eq!(lab.reaches("outside", "192.0.2.1:8081", "web").to_string(), "192.0.2.100", "the source is kept");
    lab.reaches("outside", "[2001:db8::1]:8081", "web");
    lab.reaches("outside", "192.0.2.1:8087", "web");
    lab.reaches("node1", "192.0.2.1:8081", "web");
    lab.reaches("node1", "127.0.0.1:8081", "web");
    lab.reaches("other", "192.0.2.1:8081", "web");
    lab.reaches("web", "192.0.2.1:8081", "web");
    assert!(lab.ask_udp("outside", "192.0.2.1:8082").is_ok());
    lab.is_cut_off("outside", "192.0.2.1:8082");
    lab.reaches("outside", "192.0.2.1:8083", "web");
    lab.is_cut_off("node1", "127.0.0.1:8083");
    lab.reaches("node1", "127.0.0.1:8084", "web");
    lab.is_cut_off("outside", "192.0.2.1:8084");
    // No pod may use this to reach the node's loopback.
    let guard = lab.output("node1", "nft list chain inet stoker-pods guard");
    assert!(guard.contains("127.0.0.0/8 drop"), "{guard}");

    // The rules are as many as before, and a port has one owner.
    let rules = |text: &str| text.lines().filter(|line| line.contains("dnat ip")).count();
    let before = rules(&lab.output("node1", "nft list ruleset"));
    node.pod_with("more", &json!({"runtimeConfig": {"portMappings": [port(8085, "tcp", ""), port(8086, "sctp", "")]}}));
    let after = lab.output("node1", "nft list ruleset");
    assert_eq!(rules(&after), before);
    assert!(after.contains("sctp . 8086"), "{after}");
    lab.add_namespace("thief");
    let thief = node.config(&json!({"runtimeConfig": {"portMappings": [port(8081, "tcp", "")]}})).to_string();
    let refused = node.call("ADD", "thief", &thief);
    assert!(!refused.success && refused.value["code"] == 100, "{}", refused.value);
    lab.reaches("outside", "192.0.2.1:8081", "web");
    assert!(!node.leases().iter().any(|lease| lease == "10.244.1.5"), "{:?}", node.leases());

    // A flush by somebody else costs the open ports, not the next pod.
    lab.output("node1", "nft flush ruleset");
    assert!(node.plain("DEL", "web").success);
    assert!(node.plain("DEL", "more").success);
    node.pod_with("next", &json!({"runtimeConfig": {"portMappings": [port(8081, "tcp", "")]}}));
    lab.reaches("outside", "192.0.2.1:8081", "next");
    assert!(node.plain("DEL", "next").success);
    lab.is_cut_off("outside", "192.0.2.1:8081");
    assert!(!lab.output("node1", "nft list ruleset").contains(&pod[0]));
}

#[test]
fn the_loopback_interface_is_set_up_by_the_same_binary() {
    let lab = Lab::new();
    let node = lab.node(1);
    lab.add_namespace("a");
    lab.output("a", "ip link set lo down");
    let config = r#"{"cniVersion":"0.3.1","name":"cni-loopback","type":"loopback"}"#;
    let added = node.call("ADD", "a", config);
    assert!(added.success && added.value["interfaces"][0]["name"] == "lo", "{}", added.value);
    assert!(lab.output("a", "ip link show lo").contains("UP"));
    assert!(node.call("DEL", "a", config).success);
}
