//! Tables for what policies mean.

use serde_json::{Value, json};

use super::super::script;
use super::*;

fn pod(namespace: &str, name: &str, node: &str, ip: &str, labels: &Value) -> PeerPod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"ports": [
            {"name": "web", "containerPort": if name == "db" { 5432 } else { 8080 }}, {"containerPort": 1}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.0.0.{ip}")}, {"ip": format!("fd00::{ip}")}]},
    }))
    .expect("a pod")
}

/// On node `n`: shop/web (10.0.0.1) and shop/db (10.0.0.2); elsewhere shop/far (.3) and bank/teller (.4).
fn world(policies: &[Value]) -> World {
    let mut world = World::default();
    for pod in [
        pod("shop", "web", "n", "1", &json!({"app": "web"})),
        pod("shop", "db", "n", "2", &json!({"app": "db"})),
        pod("shop", "far", "m", "3", &json!({"app": "web"})),
        pod("bank", "teller", "m", "4", &json!({"app": "teller"})),
    ] {
        assert!(world.put_pod(pod).is_some());
    }
    for (name, team) in [("shop", "red"), ("bank", "blue")] {
        world.namespaces.insert(name.into(), Labels::from([("team".to_owned(), team.to_owned())]));
    }
    for (index, spec) in policies.iter().enumerate() {
        let policy: Policy = serde_json::from_value(json!({
            "metadata": {"name": format!("p{index}"), "namespace": "shop"}, "spec": spec,
        }))
        .expect("a policy");
        world.policies.insert(policy.metadata.key(), policy);
    }
    world
}

/// The rules that what comes to or leaves an address meets, with the IPv4 elements of sets in their place. `None`: free.
fn rules(desired: &Desired, ip: &str, out: bool) -> Option<Vec<String>> {
    let map = if out { &desired.egress } else { &desired.ingress };
    let chain = map.get(&ip.parse::<IpAddr>().expect("an address"))?;
    let mut lines = Vec::new();
    for line in desired.chains[chain].iter() {
        match line.strip_prefix("jump ").and_then(|rest| rest.split(' ').next()) {
            Some(policy) => lines.extend(desired.chains[policy].iter().map(|line| inlined(desired, line))),
            None => lines.push(line.clone()),
        }
    }
    lines.retain(|line| !line.starts_with("ip6 ") && !line.contains("ipv6"));
    Some(lines)
}

fn inlined(desired: &Desired, line: &str) -> String {
    let mut line = line.to_owned();
    for (name, elements) in &desired.sets {
        let prefix = match name.kind {
            Kind::Pods => "pods",
            Kind::Blocks => "blocks",
            Kind::Ports => "ports",
            Kind::Named => "named",
        };
        let suffix = match (name.kind, name.ipv6) {
            (Kind::Ports, _) => "",
            (_, false) => "-4",
            (_, true) => "-6",
        };
        let elements: Vec<_> = elements.iter().map(String::as_str).collect();
        line = line.replace(&format!("@{prefix}-{}{suffix}", name.hash), &format!("{{{}}}", elements.join(", ")));
    }
    line
}

#[track_caller]
fn check(policies: &[Value], ip: &str, out: bool, expected: Option<&[&str]>) {
    let (desired, problems) = compile(&world(policies), "n");
    assert!(problems.is_empty(), "{problems:?}");
    let found = rules(&desired, ip, out);
    assert_eq!(found.as_ref().map(|lines| lines.iter().map(String::as_str).collect()), expected.map(<[_]>::to_vec));
}

const WEB: &str = "10.0.0.1";
const DB: &str = "10.0.0.2";

#[test]
fn a_policy_isolates_what_it_selects_in_its_directions() {
    let all = json!({"podSelector": {}});
    let web = json!({"podSelector": {"matchLabels": {"app": "web"}}});
    check(std::slice::from_ref(&all), WEB, false, Some(&["drop"]));
    check(std::slice::from_ref(&all), WEB, true, None);
    check(std::slice::from_ref(&all), "fd00::1", false, Some(&["drop"]));
    check(std::slice::from_ref(&web), DB, false, None);
    check(&[json!({"podSelector": {}, "egress": []})], WEB, true, None);
    check(&[json!({"podSelector": {}, "egress": [{}]})], WEB, true, Some(&["accept", "drop"]));
    check(&[json!({"podSelector": {}, "egress": [{}]})], WEB, false, Some(&["drop"]));
    check(&[json!({"podSelector": {}, "policyTypes": ["Egress"]})], WEB, false, None);
    check(&[json!({"podSelector": {}, "policyTypes": ["Egress"]})], WEB, true, Some(&["drop"]));
    check(&[json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{}]})], WEB, true, None);
    check(&[json!({"podSelector": {}, "ingress": [{}]})], WEB, false, Some(&["accept", "drop"]));
    // A pod of another node is that node's matter.
    check(&[json!({"podSelector": {}})], "10.0.0.3", false, None);
}

#[test]
fn peers_are_pods_of_namespaces_and_blocks() {
    let from = |peers: Value| [json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": peers}]})];
    for (peers, rule) in [
        (json!([{"podSelector": {"matchLabels": {"app": "web"}}}]), "ip saddr {10.0.0.1, 10.0.0.3} accept"),
        (json!([{"podSelector": {}}]), "ip saddr {10.0.0.1, 10.0.0.2, 10.0.0.3} accept"),
        (json!([{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]), "ip saddr {10.0.0.4} accept"),
        (
            json!([{"namespaceSelector": {}, "podSelector": {"matchExpressions": [
            {"key": "app", "operator": "NotIn", "values": ["web", "db"]}]}}]),
            "ip saddr {10.0.0.4} accept",
        ),
        (
            json!([{"podSelector": {"matchLabels": {"app": "web"}}}, {"namespaceSelector": {"matchLabels": {"team": "blue"}}}]),
            "ip saddr {10.0.0.1, 10.0.0.3, 10.0.0.4} accept",
        ),
        (json!([{"podSelector": {"matchLabels": {"app": "nobody"}}}]), "ip saddr {} accept"),
        (json!([{"ipBlock": {"cidr": "10.1.0.0/16"}}]), "ip saddr {10.1.0.0-10.1.255.255} accept"),
        (
            json!([{"ipBlock": {"cidr": "10.1.0.0/24", "except": ["10.1.0.0/25", "10.1.0.255/32"]}}]),
            "ip saddr {10.1.0.128-10.1.0.254} accept",
        ),
        (json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}]), "meta nfproto ipv4 accept"),
        (
            json!([{"ipBlock": {"cidr": "10.1.0.0/24"}}, {"ipBlock": {"cidr": "10.1.1.0/24"}}]),
            "ip saddr {10.1.0.0-10.1.1.255} accept",
        ),
    ] {
        check(&from(peers), DB, false, Some(&[rule, "drop"]));
    }
    let to = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "db"}}}]}]});
    check(&[to], WEB, true, Some(&["ip daddr {10.0.0.2} accept", "drop"]));
}

#[test]
fn ports_are_numbers_ranges_and_names() {
    let ports = |ports: Value| [json!({"podSelector": {}, "ingress": [{"ports": ports}]})];
    for (given, rule) in [
        (json!([{"port": 80}]), "meta l4proto . th dport {tcp . 80} accept"),
        (json!([{"protocol": "UDP"}]), "meta l4proto . th dport {udp . 0-65535} accept"),
        (
            json!([{"protocol": "SCTP", "port": 7}, {"port": 80, "endPort": 90}, {"port": 85, "endPort": 99}]),
            "meta l4proto . th dport {sctp . 7, tcp . 80-99} accept",
        ),
        (json!([{"port": "web"}]), "meta l4proto . th dport {tcp . 8080} accept"),
        (json!([{"port": "web"}, {"port": 8081}]), "meta l4proto . th dport {tcp . 8080-8081} accept"),
    ] {
        check(&ports(given), WEB, false, Some(&[rule, "drop"]));
    }
    // The same name is another number in another pod, and none for another protocol.
    check(&ports(json!([{"port": "web"}])), DB, false, Some(&["meta l4proto . th dport {tcp . 5432} accept", "drop"]));
    check(&ports(json!([{"port": "web", "protocol": "UDP"}])), WEB, false, Some(&["drop"]));
    check(&ports(json!([{"port": "none"}])), WEB, false, Some(&["drop"]));
    // On the way out the name is that of the pod that is called.
    let egress = |to: Value| {
        [
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "web"}, {"port": 53, "protocol": "UDP"}], "to": to}]}),
        ]
    };
    check(
        &egress(json!([{"podSelector": {"matchLabels": {"app": "db"}}}])),
        WEB,
        true,
        Some(&[
            "ip daddr {10.0.0.2} meta l4proto . th dport {udp . 53} accept",
            "ip daddr . meta l4proto . th dport {10.0.0.2 . tcp . 5432} accept",
            "drop",
        ]),
    );
    check(
        &egress(json!([{"ipBlock": {"cidr": "10.0.0.0/8"}}])),
        WEB,
        true,
        Some(&["ip daddr {10.0.0.0-10.255.255.255} meta l4proto . th dport {udp . 53} accept", "drop"]),
    );
}

#[test]
fn what_is_not_understood_lets_nothing_pass_and_is_told() {
    for rule in [
        json!({"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}]}),
        json!({"from": [{"ipBlock": {"cidr": "ten"}}]}),
        json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x"]}}]}),
        json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
        json!({"ports": [{"port": 80, "endPort": 70}]}),
        json!({"ports": [{"port": 80000}]}),
    ] {
        let (desired, problems) = compile(&world(&[json!({"podSelector": {}, "ingress": [rule.clone()]})]), "n");
        assert_eq!(problems.len(), 1, "{rule}");
        let lines = rules(&desired, WEB, false).expect("isolated");
        assert!(lines.iter().all(|line| line == "drop" || line == "ip saddr {} accept"), "{rule}: {lines:?}");
    }
}

#[test]
fn several_policies_add_up() {
    let policies = [
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}),
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": 81}]}]}),
    ];
    let (desired, _) = compile(&world(&policies), "n");
    let web = rules(&desired, WEB, false).expect("isolated");
    assert_eq!(web.len(), 3, "{web:?}");
    assert_eq!(rules(&desired, DB, false).expect("isolated").len(), 2);
}

#[test]
fn a_change_costs_what_changes() {
    let policy = json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]});
    let mut world = world(&[policy]);
    let (before, _) = compile(&world, "n");
    assert_eq!(script::difference(&before, &before), "");
    let mut compiled = Compiled::default();
    let policies: Vec<Change> = world.policies.keys().cloned().map(Change::Policy).collect();
    compiled.refresh(&world, "n", &policies);
    let set_of = |desired: &Desired| desired.sets.values().next().cloned().expect("a set");
    let same = |one: &Arc<BTreeSet<String>>, other: &Arc<BTreeSet<String>>| Arc::ptr_eq(one, other);
    let first = set_of(&compiled.desired(&world).0);
    let stranger = world.put_pod(pod("bank", "new", "m", "8", &json!({"app": "web"}))).expect("it is new");
    compiled.refresh(&world, "n", &[stranger]);
    assert!(same(&first, &set_of(&compiled.desired(&world).0)), "a pod that no policy is about costs nothing");
    let new = world.put_pod(pod("shop", "new", "m", "9", &json!({"app": "web"}))).expect("it is new");
    let again = world.put_pod(pod("shop", "new", "m", "9", &json!({"app": "web"})));
    assert!(again.is_none(), "nothing that matters changed");
    compiled.refresh(&world, "n", &[new]);
    let (after, _) = compiled.desired(&world);
    assert!(!same(&first, &set_of(&after)));
    assert_eq!(after, compile(&world, "n").0);
    let text = script::difference(&before, &after);
    assert_eq!(text.lines().count(), 2, "one element of each family: {text}");
    assert!(text.lines().all(|line| line.starts_with("add element inet stoker-policy pods-")), "{text}");
    world.policies.clear();
    let (none, _) = compile(&world, "n");
    assert_eq!(none, Desired::default());
    // A pod that ended is no peer any more: somebody else may have its address.
    let mut ended = pod("shop", "new", "m", "9", &json!({"app": "web"}));
    ended.status.phase = "Succeeded".to_owned();
    assert!(world.put_pod(ended).is_some());
}

/// One step of the property below: which pod, namespace or policy becomes what.
#[derive(Clone, Debug)]
enum Step {
    Put { namespace: usize, name: u8, node: usize, app: usize },
    Remove { namespace: usize, name: u8 },
    Relabel { namespace: usize, team: usize },
    Policy { name: u8, spec: Option<usize> },
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let step = prop_oneof![
        (0..2_usize, 0..6_u8, 0..2_usize, 0..3_usize).prop_map(|(namespace, name, node, app)| Step::Put {
            namespace,
            name,
            node,
            app
        }),
        (0..2_usize, 0..6_u8).prop_map(|(namespace, name)| Step::Remove { namespace, name }),
        (0..2_usize, 0..2_usize).prop_map(|(namespace, team)| Step::Relabel { namespace, team }),
        (0..4_u8, proptest::option::of(0..6_usize)).prop_map(|(name, spec)| Step::Policy { name, spec }),
    ];
    proptest::collection::vec(step, 1..30)
}

proptest::proptest! {
    /// Whatever happens in whatever order: what is kept up to date is what would be made anew.
    #[test]
    fn what_is_kept_is_what_would_be_made(steps in steps()) {
        let web = json!({"podSelector": {"matchLabels": {"app": "web"}}});
        let red = json!({"namespaceSelector": {"matchLabels": {"team": "red"}}, "podSelector": {"matchLabels": {"app": "db"}}});
        let specs = [
            json!({"podSelector": {}}),
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [web.clone()]}]}),
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [red.clone()], "ports": [{"port": "web"}]}]}),
            json!({"podSelector": {}, "egress": [{"to": [red, web], "ports": [{"port": "web"}, {"port": 53, "protocol": "UDP"}]}]}),
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "web"}]}]}),
            json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}),
        ];
        let (namespaces, nodes, apps, teams) = (["shop", "bank"], ["n", "m"], ["web", "db", "teller"], ["red", "blue"]);
        let (mut world, mut compiled) = (World::default(), Compiled::default());
        for step in steps {
            let change = match step {
                Step::Put { namespace, name, node, app } => {
                    let (namespace, ip) = (namespaces[namespace], (namespace * 10 + usize::from(name) + 1).to_string());
                    let labels = json!({"app": apps[app]});
                    world.put_pod(pod(namespace, &format!("p{name}"), nodes[node], &ip, &labels))
                }
                Step::Remove { namespace, name } => {
                    let key = NamespacedName { namespace: namespaces[namespace].into(), name: format!("p{name}").into() };
                    world.remove_pod(&key)
                }
                Step::Relabel { namespace, team } => {
                    let labels = Labels::from([("team".to_owned(), teams[team].to_owned())]);
                    world.namespaces.insert(namespaces[namespace].into(), labels);
                    Some(Change::Namespace)
                }
                Step::Policy { name, spec } => {
                    let key = NamespacedName { namespace: "shop".into(), name: format!("policy-{name}").into() };
                    match spec {
                        Some(spec) => {
                            let policy = json!({"metadata": {"name": &*key.name, "namespace": "shop"}, "spec": specs[spec]});
                            world.policies.insert(key.clone(), serde_json::from_value(policy).expect("a policy"));
                        }
                        None => _ = world.policies.remove(&key),
                    }
                    Some(Change::Policy(key))
                }
            };
            compiled.refresh(&world, "n", change.as_slice());
            proptest::prop_assert_eq!(compiled.desired(&world), compile(&world, "n"));
        }
    }
}
