//! The agent's side: two nodes, their pods, and the ways between them.

use serde_json::{Value, json};
use stoker::network::{Mode, NetworkConfig, prepare};
use stoker_model::network::{ClusterNode, Listed};
use stoker_model::service::NamespacedName;
use tokio::sync::mpsc;

use super::lab::{Lab, Node, eventually};

/// The agent's part for one node.
pub(crate) struct Agent {
    changes: Option<mpsc::Sender<Listed<ClusterNode>>>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// The annotation that it would publish.
    pub(crate) mac: Option<String>,
}

impl Agent {
    pub(crate) fn start(node: &Node<'_>, mode: Mode) -> Self {
        let (changes, queue) = mpsc::channel(100);
        let dir = node.lab.dir.path().join(format!("{}-runtime", node.name));
        let config = NetworkConfig {
            mode,
            node: node.name.clone(),
            addresses: vec![format!("192.0.2.{}", node.number).parse().unwrap()],
            conf_dir: dir.join("conf"),
            bin_dir: dir.join("bin"),
            state_dir: node.state.clone(),
            binary: env!("CARGO_BIN_EXE_stoker").into(),
            mtu: 0,
        };
        let (answer, started) = std::sync::mpsc::sync_channel(1);
        let thread = node.lab.within(&node.name, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let network = prepare(config).await.unwrap();
                answer.send(network.vtep_mac()).unwrap();
                network.run(queue).await;
            });
        });
        Self { changes: Some(changes), mac: started.recv().unwrap(), thread: Some(thread) }
    }

    pub(crate) fn tell(&self, change: Listed<ClusterNode>) {
        self.changes.as_ref().unwrap().blocking_send(change).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.changes = None;
        let _ = self.thread.take().unwrap().join();
    }
}

/// The Node object of a node of the lab.
pub(crate) fn object(node: &Node<'_>, mac: Option<&str>) -> Listed<ClusterNode> {
    let number = node.number;
    let object = serde_json::from_value(json!({
        "metadata": {"name": node.name, "annotations": {"stoker.dev/vtep-mac": mac.unwrap_or_default()}},
        "spec": {"podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:244:{number}::/64")]},
        "status": {"addresses": [
            {"type": "Hostname", "address": node.name},
            {"type": "InternalIP", "address": format!("192.0.2.{number}")},
            {"type": "InternalIP", "address": format!("2001:db8::{number}")},
        ]},
    }));
    Listed::Present(object.unwrap())
}

fn gone(node: &Node<'_>) -> Listed<ClusterNode> {
    Listed::Gone(NamespacedName { namespace: "".into(), name: node.name.as_str().into() })
}

/// The configuration of the plugin, from the conf list that the agent wrote.
fn conf_list(node: &Node<'_>) -> Option<Value> {
    let file = node.lab.dir.path().join(format!("{}-runtime/conf/05-stoker.conflist", node.name));
    serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()
}

fn two_nodes(mode: Mode) {
    let lab = Lab::new();
    let (one, two) = (lab.node(1), lab.node(2));
    let agents = [Agent::start(&one, mode), Agent::start(&two, mode)];
    for agent in &agents {
        agent.tell(object(&one, agents[0].mac.as_deref()));
        agent.tell(object(&two, agents[1].mac.as_deref()));
        assert!(
            conf_list(&one).is_none() || conf_list(&two).is_none(),
            "nothing is written before the list is complete"
        );
        agent.tell(Listed::Complete);
    }
    for node in [&one, &two] {
        eventually("the conf list is written", || conf_list(node).is_some());
    }
    let list = conf_list(&one).unwrap();
    let mtu: usize = if mode == Mode::Vxlan { 1450 } else { 1500 };
    assert_eq!(list["plugins"][0]["mtu"], mtu);
    assert_eq!(list["plugins"][0]["ranges"], json!(["10.244.1.0/24", "fd00:244:1::/64"]));
    let change = json!({"mtu": mtu});
    let a = one.pod_with("a", &change);
    let b = two.pod_with("b", &change);
    let both = || lab.ask("a", &format!("{}:8080", b[0])).is_ok() && lab.ask("b", &format!("{}:8080", a[0])).is_ok();
    eventually("the pods reach each other", both);

    // Sources are kept between pods, in both families.
    assert_eq!(lab.reaches("a", &format!("{}:8080", b[0]), "b").to_string(), a[0]);
    eventually("in IPv6 too", || lab.ask("a", &format!("[{}]:8080", b[1])).is_ok());
    assert_eq!(lab.reaches("a", &format!("[{}]:8080", b[1]), "b").to_string(), a[1]);
    // A node reaches the pods of the other, and the other way round.
    lab.reaches("node1", &format!("{}:8080", b[0]), "b");
    lab.serve("node2", 9000);
    lab.reaches("a", "192.0.2.2:9000", "node2");
    // What leaves the cluster has the node's address.
    assert_eq!(lab.reaches("a", "192.0.2.100:80", "outside").to_string(), "192.0.2.1");
    assert_eq!(lab.reaches("a", "[2001:db8::100]:80", "outside").to_string(), "2001:db8::1");
    // Full-size packets fit.
    assert!(lab.ask_udp_with("a", &format!("{}:8080", b[0]), mtu - 28).is_ok());
    // An address that no pod has is refused, not sent round in circles.
    assert!(lab.output("node1", "ip route").contains("unreachable 10.244.1.0/24"));

    // Somebody else's routes are none of our business; ours that are wrong go, also after a restart.
    lab.output("node1", "ip route add 198.51.100.0/24 via 192.0.2.100");
    lab.output("node1", "ip route add 10.244.77.0/24 via 192.0.2.100 proto 83");
    let [first, second] = agents;
    drop(first);
    lab.reaches("a", &format!("{}:8080", b[0]), "b");
    let first = Agent::start(&one, mode);
    assert_eq!(first.mac.is_some(), mode == Mode::Vxlan);
    first.tell(object(&one, first.mac.as_deref()));
    first.tell(object(&two, second.mac.as_deref()));
    first.tell(Listed::Complete);
    eventually("a wrong route goes", || !lab.output("node1", "ip route").contains("10.244.77.0"));
    assert!(lab.output("node1", "ip route").contains("198.51.100.0/24"));
    lab.reaches("a", &format!("{}:8080", b[0]), "b");

    // What others take away comes back at once, not at the next look in a minute.
    lab.output("node1", "ip route del 10.244.2.0/24");
    eventually("the route is back", || lab.output("node1", "ip route").contains("10.244.2.0/24"));
    lab.output("node1", "nft flush table inet stoker-pods");
    eventually("the rules are back", || lab.output("node1", "nft list table inet stoker-pods").contains("masquerade"));
    lab.output("node1", "nft delete table inet stoker-pods");
    eventually("the table is back", || lab.output("node1", "nft list ruleset").contains("stoker-pods"));
    if mode == Mode::Vxlan {
        lab.output("node1", "ip link del stoker-vxlan");
        eventually("the tunnel is back", || lab.output("node1", "bridge fdb show").contains("192.0.2.2"));
    }
    eventually("the pods reach each other again", || lab.ask("a", &format!("{}:8080", b[0])).is_ok());

    // A node that is gone takes its routes along, and the pods of this one stay.
    first.tell(gone(&two));
    eventually("its routes go", || !lab.output("node1", "ip route").contains("10.244.2.0/24"));
    assert!(!lab.output("node1", "ip -6 route").contains("fd00:244:2::/64"));
    assert!(lab.output("node1", "bridge fdb show").lines().all(|line| !line.contains("192.0.2.2")));
    lab.reaches("node1", &format!("{}:8080", a[0]), "a");
    assert!(conf_list(&one).is_some());
    first.tell(gone(&one));
    eventually("the node's own range goes too", || !lab.output("node1", "ip route").contains("unreachable"));
    assert!(conf_list(&one).is_some(), "pods may still need it to be taken away");
}

#[test]
fn pods_of_two_nodes_reach_each_other_through_routes() {
    two_nodes(Mode::Routed);
}

#[test]
fn pods_of_two_nodes_reach_each_other_through_tunnels() {
    two_nodes(Mode::Vxlan);
}
