//! NetworkPolicy with real traffic between pods of one node and from outside.

use serde_json::{Value, json};
use stoker_model::network::{Listed, PolicyChange};
use stoker_model::service::NamespacedName;
use tokio::sync::mpsc;

use super::lab::{Lab, Node, eventually};

/// The task that owns the table, on one node.
struct Enforcer {
    changes: Option<mpsc::Sender<PolicyChange>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Enforcer {
    fn start(node: &Node<'_>) -> Self {
        let (changes, queue) = mpsc::channel(100);
        let name = node.name.clone();
        let thread = node.lab.within(&node.name, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(stoker::network::policy::run(name, queue));
        });
        Self { changes: Some(changes), thread: Some(thread) }
    }

    fn tell(&self, change: PolicyChange) {
        self.changes.as_ref().unwrap().blocking_send(change).unwrap();
    }

    fn complete(&self) {
        self.tell(PolicyChange::Pod(Listed::Complete));
        self.tell(PolicyChange::Namespace(Listed::Complete));
        self.tell(PolicyChange::Policy(Listed::Complete));
    }

    fn pod(&self, node: &str, namespace: &str, name: &str, addresses: &[String]) {
        let ips: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {"nodeName": node, "containers": [{"ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": ips},
        }));
        self.tell(PolicyChange::Pod(Listed::Present(pod.unwrap())));
    }

    fn namespace(&self, name: &str) {
        let namespace = serde_json::from_value(json!({"metadata": {"name": name, "labels": {"name": name}}}));
        self.tell(PolicyChange::Namespace(Listed::Present(namespace.unwrap())));
    }

    fn policy(&self, name: &str, spec: &Value) {
        let policy = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        self.tell(PolicyChange::Policy(Listed::Present(serde_json::from_value(policy).unwrap())));
    }

    fn no_policy(&self, name: &str) {
        let key = NamespacedName { namespace: "shop".into(), name: name.into() };
        self.tell(PolicyChange::Policy(Listed::Gone(key)));
    }
}

impl Drop for Enforcer {
    fn drop(&mut self) {
        self.changes = None;
        let _ = self.thread.take().unwrap().join();
    }
}

#[test]
fn policies_hold_for_real_traffic() {
    let lab = Lab::new();
    let node = lab.node(1);
    let names = ["web", "db", "teller"];
    let pods: Vec<Vec<String>> = names.iter().map(|name| node.pod(name)).collect();
    lab.serve("db", 5432);
    let db = |port: u16| format!("{}:{port}", pods[1][0]);
    let db6 = |port: u16| format!("[{}]:{port}", pods[1][1]);
    let enforcer = Enforcer::start(&node);
    for (name, addresses) in names.iter().zip(&pods) {
        enforcer.pod("node1", if *name == "teller" { "bank" } else { "shop" }, name, addresses);
    }
    enforcer.namespace("shop");
    enforcer.namespace("bank");
    let default_deny = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    enforcer.policy("deny", &default_deny);
    lab.reaches("web", &db(8080), "db");
    assert!(!lab.output("node1", "nft list tables").contains("stoker-policy"), "not before the lists are complete");
    enforcer.complete();
    let blocked = |from: &str, to: &str| lab.ask(from, to).is_err();
    eventually("the default is to deny", || blocked("web", &db(8080)));
    assert!(blocked("web", &db6(8080)) && blocked("teller", &db(8080)) && lab.ask_udp("web", &db(8080)).is_err());
    // Probes of the node pass, and so does a pod to itself; other namespaces are free.
    lab.reaches("node1", &db(8080), "db");
    lab.reaches("db", &db(8080), "db");
    lab.reaches("web", &format!("{}:8080", pods[2][0]), "teller");

    // Who empties or deletes the table opens nothing for long.
    for command in ["nft flush table inet stoker-policy", "nft delete table inet stoker-policy"] {
        lab.output("node1", command);
        eventually("the table is loaded again", || blocked("web", &db(8080)) && blocked("teller", &db6(8080)));
    }

    // A pod peer with a port; replies pass though the caller is isolated as well.
    let from = |peer: Value, ports: Value| json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [peer], "ports": ports}]});
    enforcer.policy("allow", &from(json!({"podSelector": {"matchLabels": {"app": "web"}}}), json!([{"port": 8080}])));
    eventually("the web pod is let in", || lab.ask("web", &db(8080)).is_ok());
    lab.reaches("web", &db6(8080), "db");
    assert!(blocked("web", &db(5432)) && blocked("teller", &db(8080)));
    // Another namespace, by its labels, and a named port.
    let bank = json!({"namespaceSelector": {"matchLabels": {"name": "bank"}}});
    enforcer.policy("allow", &from(bank, json!([{"port": "web"}])));
    eventually("the other namespace is let in", || lab.ask("teller", &db(8080)).is_ok());
    assert!(blocked("web", &db(8080)) && blocked("teller", &db(5432)));
    // A range of ports over UDP.
    let web = json!({"podSelector": {"matchLabels": {"app": "web"}}});
    enforcer.policy("allow", &from(web, json!([{"protocol": "UDP", "port": 8000, "endPort": 8100}])));
    eventually("UDP is let in", || lab.ask_udp("web", &db(8080)).is_ok());
    assert!(blocked("web", &db(8080)));
    // Blocks with an exception: somebody outside.
    lab.output("outside", "ip route add 10.244.1.0/24 via 192.0.2.1");
    let block = |except: &str| json!({"ipBlock": {"cidr": "192.0.2.0/24", "except": [except]}});
    enforcer.policy("allow", &from(block("192.0.2.64/26"), json!([])));
    eventually("the exception stays out", || blocked("outside", &db(8080)) && blocked("web", &db(8080)));
    enforcer.policy("allow", &from(block("192.0.2.128/25"), json!([])));
    eventually("the block is let in", || lab.ask("outside", &db(8080)).is_ok());

    // The same change again costs no transaction, and a new peer is an element, not a rule.
    let rules = || lab.output("node1", "nft list table inet stoker-policy").matches(" accept").count();
    enforcer.policy("allow", &from(json!({"podSelector": {}}), json!([])));
    eventually("peers of the namespace are let in", || lab.ask("web", &db(8080)).is_ok());
    let before = rules();
    let late = node.pod("late");
    assert!(blocked("late", &db(8080)));
    enforcer.pod("node1", "shop", "late", &late);
    eventually("a new pod is a peer", || lab.ask("late", &db(8080)).is_ok());
    assert_eq!(rules(), before);

    // The way out.
    enforcer.no_policy("deny");
    enforcer.no_policy("allow");
    eventually("nothing is isolated", || lab.ask("teller", &db(8080)).is_ok());
    let egress = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": "web"}]}]});
    enforcer.policy("out", &egress);
    eventually("the way out is closed", || blocked("web", &format!("{}:8080", pods[2][0])));
    lab.reaches("web", &db(8080), "db");
    lab.reaches("web", &db6(8080), "db");
    assert!(blocked("web", &db(5432)) && blocked("web", "192.0.2.100:80"));
    lab.reaches("teller", &format!("{}:8080", pods[0][0]), "web");
    lab.serve("node1", 9000);
    lab.reaches("web", "192.0.2.1:9000", "node1");
    // Both directions at once.
    enforcer.policy("deny", &default_deny);
    eventually("the way in is closed too", || blocked("web", &db(8080)));

    // A restart opens nothing, and what is stale goes.
    drop(enforcer);
    assert!(blocked("web", &db(8080)));
    let enforcer = Enforcer::start(&node);
    enforcer.tell(PolicyChange::Policy(Listed::Complete));
    eventually("what no policy isolates any more is free", || lab.ask("web", &db(8080)).is_ok());
}
