//! Who may run on a node, and the words in which others are told why not.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerRestartRule, PodOS, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::*;

/// From here on a pod is critical.
const CRITICAL: i32 = 2_000_000_000;

fn amounts(pairs: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect()
}

fn node() -> NodeSnapshot {
    NodeSnapshot {
        name: "n1".into(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        allocatable: amounts(&[("cpu", "2"), ("memory", "1Gi"), ("pods", "3")]),
        ..NodeSnapshot::default()
    }
}

fn pod(requests: &[(&str, &str)], change: impl FnOnce(&mut PodSpec)) -> Pod {
    let resources = ResourceRequirements { requests: Some(amounts(requests)), ..ResourceRequirements::default() };
    let container = Container { resources: Some(resources), ..Container::default() };
    let mut spec = PodSpec { containers: vec![container], ..PodSpec::default() };
    change(&mut spec);
    Pod { spec: Some(spec), ..Pod::default() }
}

/// On a host without AppArmor.
fn with_rules<T>(sysctls: &SysctlRules, features: &Features, act: impl FnOnce(Rules<'_>) -> T) -> T {
    act(Rules { sysctls, features, app_armor: false })
}

#[track_caller]
fn check(row: &str, pod: &Pod, others: &[Pod], node: &NodeSnapshot, expected: &str) {
    let others: Vec<Arc<Pod>> = others.iter().cloned().map(Arc::new).collect();
    let told = match with_rules(&SysctlRules::default(), &Features::default(), |rules| {
        admit(pod, &others, &[], node, rules)
    }) {
        Verdict::Admitted => String::new(),
        Verdict::Rejected(r) => format!("{}: {}", r.reason, r.text),
        Verdict::Preempts(uids, _) => uids.iter().map(|uid| format!("preempts {uid}")).collect::<Vec<_>>().join(", "),
    };
    assert_eq!(told, expected, "{row}");
}

#[test]
fn what_does_not_fit_is_rejected() {
    // A6.1
    let one = || pod(&[("cpu", "1500m")], |_| {});
    check("A6.1", &one(), &[], &node(), "");
    let text = "OutOfcpu: Node didn't have enough resource: cpu, requested: 1500, used: 1500, capacity: 2000";
    check("A6.1", &one(), &[one()], &node(), text);
    let text =
        "OutOfmemory: Node didn't have enough resource: memory, requested: 2147483648, used: 0, capacity: 1073741824";
    check("A6.1", &pod(&[("memory", "2Gi")], |_| {}), &[], &node(), text);
    let small = || pod(&[], |_| {});
    let text = "OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3";
    check("A6.1", &small(), &[small(), small(), small()], &node(), text);
    let more = [("cpu", "2"), ("pods", "3"), ("ephemeral-storage", "1Gi"), ("example.com/gpu", "1")];
    let more = NodeSnapshot { allocatable: amounts(&more), ..node() };
    let text = "OutOfephemeral-storage: Node didn't have enough resource: ephemeral-storage, requested: 2147483648, used: 0, \
                capacity: 1073741824";
    check("A6.1", &pod(&[("ephemeral-storage", "2Gi")], |_| {}), &[], &more, text);
    let gpus = |count: &str| pod(&[("example.com/gpu", count)], |_| {});
    let text =
        "OutOfexample.com/gpu: Node didn't have enough resource: example.com/gpu, requested: 1, used: 1, capacity: 1";
    check("A6.1", &gpus("1"), &[gpus("1")], &more, text);
}

#[test]
fn the_first_check_that_fails_is_told() {
    // A6.1, A6.2
    let taint = Taint { key: "k".into(), effect: "NoExecute".into(), ..Taint::default() };
    let node = NodeSnapshot { taints: vec![taint], ..node() };
    let port = ContainerPort { container_port: 1, host_port: Some(80), ..ContainerPort::default() };
    let busy = |s: &mut PodSpec| s.containers[0].ports = Some(vec![port.clone()]);
    let others = [pod(&[("cpu", "1")], busy)];
    let wrong = |right: usize| {
        pod(&[("cpu", if right > 0 { "1" } else { "2" })], |s| {
            s.node_selector = (right < 2).then(|| [("zone".to_owned(), "b".to_owned())].into());
            s.node_name = (right < 3).then(|| "n2".to_owned());
            if right < 4 {
                busy(s);
            }
            let toleration = Toleration { operator: Some("Exists".into()), ..Toleration::default() };
            s.tolerations = (right > 4).then(|| vec![toleration]);
        })
    };
    let reason = |right: usize| {
        let others = others.iter().cloned().map(Arc::new).collect::<Vec<_>>();
        match with_rules(&SysctlRules::default(), &Features::default(), |rules| {
            admit(&wrong(right), &others, &[], &node, rules)
        }) {
            Verdict::Rejected(rejection) => rejection.reason,
            _ => "none".into(),
        }
    };
    let told: Vec<String> = (0..6).map(reason).collect();
    assert_eq!(told, ["OutOfcpu", "NodeAffinity", "NodeName", "NodePorts", "TaintToleration", "none"]);
    // Nobody scheduled a static pod, so that taints are not for it.
    let mut of_file = wrong(4);
    of_file.metadata.annotations = Some([("kubernetes.io/config.source".to_owned(), "file".to_owned())].into());
    check("A6.2", &of_file, &others, &node, "");
}

#[test]
fn resources_that_the_node_does_not_know_are_left_to_others() {
    // A6.7
    check("A6.7", &pod(&[("example.com/gpu", "1")], |_| {}), &[], &node(), "");
}

#[test]
fn predicates_have_their_texts() {
    // A6.2
    let selects = |value: &str| {
        let selector = [("zone".to_owned(), value.to_owned())].into();
        pod(&[], |s| s.node_selector = Some(selector))
    };
    check("A6.2", &selects("a"), &[], &node(), "");
    let text = "NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    check("A6.2", &selects("b"), &[], &node(), text);
    let named = pod(&[], |s| s.node_name = Some("n2".into()));
    let text = "NodeName: Predicate NodeName failed: node(s) didn't match the requested node name";
    check("A6.2", &named, &[], &node(), text);
    let on_port = |ip: &str| {
        let port = ContainerPort {
            container_port: 1,
            host_port: Some(80),
            host_ip: Some(ip.to_owned()),
            ..ContainerPort::default()
        };
        pod(&[], |s| s.containers[0].ports = Some(vec![port]))
    };
    check("A6.2", &on_port("10.0.0.1"), &[on_port("10.0.0.2")], &node(), "");
    let text = "NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    check("A6.2", &on_port(""), &[on_port("10.0.0.2")], &node(), text);
}

#[test]
fn a_host_port_has_one_owner() {
    // A11.9, A6.2
    let on = |ip: &str, protocol: &str, port: i32| {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let port = ContainerPort {
            container_port: 1,
            host_port: Some(port),
            host_ip: text(ip),
            protocol: text(protocol),
            ..ContainerPort::default()
        };
        pod(&[], |s| s.containers[0].ports = Some(vec![port]))
    };
    let taken = "NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    for (ip, protocol, port, expected) in [
        ("10.0.0.1", "TCP", 80, taken),
        ("10.0.0.1", "", 80, taken),
        ("0.0.0.0", "TCP", 80, taken),
        ("", "TCP", 80, taken),
        ("10.0.0.2", "TCP", 80, ""),
        ("10.0.0.1", "UDP", 80, ""),
        ("10.0.0.1", "SCTP", 80, ""),
        ("10.0.0.1", "TCP", 81, ""),
    ] {
        check("A11.9", &on(ip, protocol, port), &[on("10.0.0.1", "TCP", 80)], &node(), expected);
        check("A11.9", &on("10.0.0.1", "TCP", 80), &[on(ip, protocol, port)], &node(), expected);
    }
    check("A11.9", &on("10.0.0.1", "UDP", 53), &[on("", "UDP", 53)], &node(), taken);
    let with_init = |policy: Option<&str>| {
        let mut with_init = on("", "TCP", 80);
        let spec = with_init.spec.as_mut().unwrap();
        let mut init = spec.containers[0].clone();
        spec.containers[0].ports = None;
        init.restart_policy = policy.map(str::to_owned);
        spec.init_containers = Some(vec![init]);
        with_init
    };
    check("A11.9", &with_init(Some("Always")), &[on("", "TCP", 80)], &node(), taken);
    check("A11.9", &with_init(None), &[on("", "TCP", 80)], &node(), "");
}

#[test]
fn only_taints_that_execute_count() {
    // A6.2
    let taint =
        |effect: &str| Taint { key: "k".into(), value: Some("v".into()), effect: effect.into(), ..Taint::default() };
    let tainted = |effect: &str| NodeSnapshot { taints: vec![taint(effect)], ..node() };
    check("A6.2", &pod(&[], |_| {}), &[], &tainted("NoSchedule"), "");
    let text = "TaintToleration: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
    check("A6.2", &pod(&[], |_| {}), &[], &tainted("NoExecute"), text);
    let tolerates = |operator: &str, value: &str| {
        let toleration = Toleration {
            key: Some("k".into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            ..Toleration::default()
        };
        pod(&[], |s| s.tolerations = Some(vec![toleration]))
    };
    check("A6.2", &tolerates("Exists", ""), &[], &tainted("NoExecute"), "");
    check("A6.2", &tolerates("Equal", "v"), &[], &tainted("NoExecute"), "");
    check("A6.2", &tolerates("Equal", "w"), &[], &tainted("NoExecute"), text);
}

#[test]
fn the_operating_system_is_linux() {
    // A6.3
    let windows = pod(&[], |s| s.os = Some(PodOS { name: "windows".into() }));
    let text = "PodOSNotSupported: Failed to admit pod as the OS field doesn't match node OS";
    check("A6.3", &windows, &[], &node(), text);
    let mut labelled = pod(&[], |_| {});
    labelled.metadata.labels = Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());
    let text = "PodOSSelectorNodeLabelDoesNotMatch: Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
    check("A6.3", &labelled, &[], &node(), text);
}

#[test]
fn pressure_keeps_some_away() {
    // A6.4, A6.5
    let under = |pressure: &str| NodeSnapshot { pressures: vec![pressure.to_owned()], ..node() };
    let text = "Evicted: The node had condition: [MemoryPressure]. ";
    check("A6.5", &pod(&[], |_| {}), &[], &under("MemoryPressure"), text);
    check("A6.5", &pod(&[("cpu", "1m")], |_| {}), &[], &under("MemoryPressure"), "");
    let text = "Evicted: The node had condition: [DiskPressure]. ";
    check("A6.5", &pod(&[("cpu", "1m")], |_| {}), &[], &under("DiskPressure"), text);
    check("A6.5", &pod(&[], |s| s.priority = Some(CRITICAL)), &[], &under("DiskPressure"), "");
    let text = "Evicted: The node had condition: [PIDPressure]. ";
    check("A6.5", &pod(&[("cpu", "1m")], |_| {}), &[], &under("PIDPressure"), text);
    let tolerates = |key: &str| {
        let toleration = Toleration { key: Some(key.into()), operator: Some("Exists".into()), ..Toleration::default() };
        pod(&[], |s| s.tolerations = Some(vec![toleration]))
    };
    check("A6.5", &tolerates("node.kubernetes.io/memory-pressure"), &[], &under("MemoryPressure"), "");
    let text = "Evicted: The node had condition: [DiskPressure]. ";
    check("A6.5", &tolerates("node.kubernetes.io/disk-pressure"), &[], &under("DiskPressure"), text);
    for pressure in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
        let mut of_file = pod(&[], |_| {});
        of_file.metadata.annotations = Some([("kubernetes.io/config.source".to_owned(), "file".to_owned())].into());
        check("A6.5", &of_file, &[], &under(pressure), "");
    }
}

#[test]
fn what_the_host_cannot_do_is_refused() {
    // A6.3, A6.4, A10.6
    use k8s_openapi::api::core::v1::{AppArmorProfile, PodSecurityContext};
    let with = |context: PodSecurityContext| pod(&[], |spec| spec.security_context = Some(context));
    let strict =
        with(PodSecurityContext { supplemental_groups_policy: Some("Strict".into()), ..PodSecurityContext::default() });
    let text = "SupplementalGroupsPolicyNotSupported: SupplementalGroupsPolicy=Strict is not supported in this node";
    check("A6.3", &strict, &[], &node(), text);
    check("A6.3", &strict, &[], &NodeSnapshot { supplemental_groups_policy: true, ..node() }, "");
    let confined = |kind: &str| {
        let profile = AppArmorProfile { type_: kind.into(), localhost_profile: None };
        with(PodSecurityContext { app_armor_profile: Some(profile), ..PodSecurityContext::default() })
    };
    let text = "AppArmor: Cannot enforce AppArmor: AppArmor is not enabled on the host";
    check("A6.4", &confined("RuntimeDefault"), &[], &node(), text);
    check("A6.4", &confined("Unconfined"), &[], &node(), "");
    let text = "AppArmor: Cannot enforce AppArmor: AppArmor is not enabled on the host";
    for (phase, text) in [("Pending", text), ("Running", ""), ("Succeeded", "")] {
        let mut pod = confined("RuntimeDefault");
        pod.status = Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() });
        check("A6.4", &pod, &[], &node(), text);
    }
    let down = NodeSnapshot { shutting_down: true, ..node() };
    let text = "NodeShutdown: Pod was rejected as the node is shutting down.";
    check("A6.4", &pod(&[], |_| {}), &[], &down, text);
}

#[test]
fn features_that_the_node_does_not_declare_are_refused() {
    // A6.3
    let restarts = pod(&[], |spec| {
        let rule = ContainerRestartRule { action: "RestartAllContainers".into(), exit_codes: None };
        spec.containers[0].restart_policy_rules = Some(vec![rule]);
    });
    let both = pod(&[], |spec| (spec.host_network, spec.host_users) = (Some(true), Some(false)));
    let whole = pod(&[], |spec| {
        let requests = Some(amounts(&[("cpu", "1")]));
        spec.resources = Some(ResourceRequirements { requests, ..ResourceRequirements::default() });
    });
    let told = |pod: &Pod, gates: &[(&str, bool)]| {
        let gates = gates.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
        let node = node();
        match with_rules(&SysctlRules::default(), &Features::of(&gates), |rules| admit(pod, &[], &[], &node, rules)) {
            Verdict::Rejected(r) => format!("{}: {}", r.reason, r.text),
            _ => String::new(),
        }
    };
    let missing =
        |name: &str| format!("PodFeatureUnsupported: Pod requires node features that are not available: {name}");
    let (all, users) = ("RestartAllContainersOnContainerExits", "UserNamespacesHostNetworkSupport");
    for (pod, gates, expected) in [
        (&restarts, &[][..], String::new()),
        (&restarts, &[(all, false)], missing(all)),
        (&restarts, &[(all, false), ("NodeDeclaredFeatures", false)], String::new()),
        (&both, &[], missing(users)),
        (&both, &[("NodeDeclaredFeatures", false)], String::new()),
        (&whole, &[], String::new()),
        (
            &whole,
            &[("PodLevelResources", false)],
            "PodLevelResourcesNotSupported: PodLevelResources feature gate is disabled".to_owned(),
        ),
    ] {
        assert_eq!(told(pod, gates), expected, "{gates:?}");
    }
}

/// A pod with a UID and a priority.
fn ranked(uid: &str, requests: &[(&str, &str)], priority: i32) -> Pod {
    let mut pod = pod(requests, |spec| spec.priority = Some(priority));
    pod.metadata.uid = Some(uid.into());
    pod
}

#[test]
fn a_critical_pod_takes_the_place_of_as_few_others_as_possible() {
    // A6.6
    let critical = |cpu: &str| ranked("critical", &[("cpu", cpu)], CRITICAL);
    let node = NodeSnapshot { allocatable: amounts(&[("cpu", "2"), ("pods", "9")]), ..node() };
    let others = [
        ranked("half", &[("cpu", "500m")], 0),
        ranked("one", &[("cpu", "1")], 0),
        ranked("other-critical", &[("cpu", "500m")], CRITICAL),
        ranked("nothing", &[], 0),
    ];
    check("A6.6", &critical("500m"), &others, &node, "preempts half");
    check("A6.6", &critical("1"), &others, &node, "preempts one");
    check("A6.6", &critical("1500m"), &others, &node, "preempts one, preempts half");
    let text = "UnexpectedAdmissionError: Unexpected error while attempting to recover from admission failure: preemption: error \
                finding a set of pods to preempt: no set of running pods found to reclaim resources: [(res: cpu, q: 500), ]";
    check("A6.6", &critical("2"), &others, &node, text);
    check(
        "A6.6",
        &ranked("plain", &[("cpu", "1")], 5),
        &others,
        &node,
        "OutOfcpu: Node didn't have enough resource: cpu, requested: 1000, used: 2000, capacity: 2000",
    );
    let full = NodeSnapshot { allocatable: amounts(&[("cpu", "9"), ("pods", "4")]), ..node.clone() };
    check("A6.6", &critical("1"), &others, &full, "preempts nothing");
    let elsewhere = || {
        let mut pod = critical("2");
        pod.spec.as_mut().unwrap().node_name = Some("other".into());
        pod
    };
    let text = "NodeName: Predicate NodeName failed: node(s) didn't match the requested node name";
    check("A6.6", &elsewhere(), &others, &node, text);
}
