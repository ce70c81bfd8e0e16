//! Whose turn it is in which situation, and that the order holds whatever is used.

use proptest::prelude::*;
use serde_json::json;

use super::super::threshold::{Observation, Style, Value};
use super::*;

const MI: i64 = 1 << 20;

/// A pod with one container `c`.
fn pod(name: &str, priority: i32, requests: serde_json::Value) -> Arc<Pod> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "priority": priority, "containers": [{ "name": "c", "resources": { "requests": requests } }] },
        }))
        .unwrap(),
    )
}

fn of_memory(name: &str, priority: i32, request: i64, used: Option<i64>) -> Candidate {
    let requests = if request == 0 { json!({}) } else { json!({ "memory": request.to_string() }) };
    let share = used.map(|memory| Share { memory, ..Share::default() });
    Candidate { pod: pod(name, priority, requests), share }
}

fn order(mut candidates: Vec<Candidate>, signal: Signal, layout: Layout) -> Vec<String> {
    rank(&mut candidates, signal, layout);
    candidates.iter().map(|c| c.pod.metadata.name.clone().unwrap()).collect()
}

#[test]
fn memory_is_taken_from_who_takes_more_than_he_asked_for() {
    // A13.8
    let candidates = vec![
        of_memory("guaranteed", 0, 100, Some(100)),
        of_memory("important", 10, 0, Some(900)),
        of_memory("little", 0, 100, Some(150)),
        of_memory("much", 0, 100, Some(350)),
        of_memory("best-effort", 0, 0, Some(300)),
        of_memory("below", -5, 500, Some(400)),
        of_memory("unknown", 0, 1000, None),
    ];
    let expected = ["unknown", "best-effort", "much", "little", "important", "below", "guaranteed"];
    for signal in [Signal::Memory, Signal::AllocatableMemory] {
        let mut found = order(candidates.clone(), signal, Layout::One);
        // Both take 250 and 300 beyond what they asked for; the order of the rest is fixed.
        assert_eq!(found.remove(0), "unknown");
        assert_eq!(found, expected[1..]);
    }
}

#[test]
fn processes_are_taken_from_who_matters_least() {
    // A13.8
    let of = |name: &str, priority, processes| Candidate {
        pod: pod(name, priority, json!({ "memory": "1" })),
        share: Some(Share { processes, ..Share::default() }),
    };
    let candidates = vec![of("many", 5, 900), of("few", 0, 3), of("some", 0, 30)];
    assert_eq!(order(candidates, Signal::Pids, Layout::One), ["some", "few", "many"]);
}

#[test]
fn disk_is_taken_from_who_fills_the_one_that_is_full() {
    // A13.8
    let of = |name: &str, layer: u64, logs: u64, volume: u64| {
        let usage = |bytes| DiskUsage { bytes, inodes: 1000 - bytes };
        let container = ContainerShare { memory: 0, layer: usage(layer), logs: usage(logs) };
        let share = Share {
            containers: BTreeMap::from([("c".to_owned(), container)]),
            volumes: BTreeMap::from([("v".to_owned(), usage(volume))]),
            ..Share::default()
        };
        Candidate { pod: pod(name, 0, json!({ "ephemeral-storage": "10" })), share: Some(share) }
    };
    let all = || vec![of("logs", 1, 60, 1), of("layer", 50, 1, 1), of("volume", 1, 1, 40)];
    let (layers, rest) = (["layer", "logs", "volume"], ["logs", "volume", "layer"]);
    let everything = ["logs", "layer", "volume"];
    for (layout, signal, expected) in [
        (Layout::One, Signal::NodeFs, everything),
        (Layout::One, Signal::ImageFs, everything),
        (Layout::One, Signal::ContainerFs, everything),
        (Layout::ImagesApart, Signal::NodeFs, rest),
        (Layout::ImagesApart, Signal::ImageFs, layers),
        (Layout::ImagesApart, Signal::ContainerFs, layers),
        (Layout::Split, Signal::NodeFs, everything),
        (Layout::Split, Signal::ContainerFs, everything),
        // Nobody fills that: as they came.
        (Layout::Split, Signal::ImageFs, ["logs", "layer", "volume"]),
    ] {
        let found = order(all(), signal, layout);
        assert_eq!(found, expected, "{layout:?} {signal:?}");
    }
    let inodes = order(all(), Signal::NodeFsInodes, Layout::One);
    assert_eq!(inodes, ["volume", "layer", "logs"], "each has a request for bytes, which is none for inodes");
}

#[test]
fn the_message_names_who_took_more_than_he_asked_for() {
    // A13.9
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "web" },
        "spec": {
            "containers": [
                { "name": "greedy", "resources": { "requests": { "memory": "1024Ki", "ephemeral-storage": "1M" } } },
                { "name": "modest", "resources": { "requests": { "memory": "64Mi" } } },
            ],
            "initContainers": [{ "name": "side", "restartPolicy": "Always" }],
        },
    }))
    .unwrap();
    let container = |memory, layer| ContainerShare {
        memory,
        layer: DiskUsage { bytes: layer, inodes: 1 },
        logs: DiskUsage { bytes: 1024, inodes: 1 },
    };
    let containers =
        [("greedy", container(2 * MI, 3072)), ("modest", container(64 * MI, 0)), ("side", container(1500, 0))];
    let containers = containers.map(|(name, share)| (name.to_owned(), share)).into();
    let share = Share { memory: 70 * MI, containers, ..Share::default() };
    let candidate = Candidate { pod: Arc::new(pod.clone()), share: Some(share.clone()) };
    let threshold = |signal, value| Threshold { signal, value, grace: std::time::Duration::ZERO, min_reclaim: None };
    let due = [
        threshold(Signal::NodeFs, Value::Share(0.5)),
        threshold(Signal::Memory, Value::Amount(100 * MI, Style::Binary)),
    ];
    let seen = Observations::from([
        (Signal::Memory, Observation { available: 99 * MI, capacity: 1000 * MI }),
        (Signal::NodeFs, Observation { available: 5, capacity: 2048 }),
    ]);
    let (text, annotations) = message(&candidate, Resource::Memory, &due, &seen);
    assert_eq!(
        text,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 99Mi. \
         Container greedy was using 2Mi, request is 1Mi, has larger consumption of memory. \
         Container side was using 1500, request is 0, has larger consumption of memory. "
    );
    let expected = [
        ("offending_containers", "greedy,side"),
        ("offending_containers_usage", "2Mi,1500"),
        ("starved_resource", "memory"),
    ];
    assert_eq!(annotations, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());

    let (text, _) = message(&candidate, Resource::EphemeralStorage, &due, &seen);
    assert_eq!(
        text,
        "The node was low on resource: ephemeral-storage. Threshold quantity: 1Ki, available: 5. \
         Container modest was using 1Ki, request is 0, has larger consumption of ephemeral-storage. \
         Container side was using 1Ki, request is 0, has larger consumption of ephemeral-storage. ",
        "the greedy one asked for a megabyte of disk"
    );

    let mut with_own = pod;
    with_own.spec.as_mut().unwrap().resources =
        serde_json::from_value(json!({ "requests": { "memory": "32Mi" } })).unwrap();
    let candidate = Candidate { pod: Arc::new(with_own), share: Some(share) };
    let (text, annotations) = message(&candidate, Resource::Memory, &due, &seen);
    let expected =
        "available: 99Mi. Pod web was using 70Mi, request is 32Mi, has larger consumption of memory. Container";
    assert!(text.contains(expected), "{text}");
    assert_eq!((annotations["offending_pod"].as_str(), annotations["offending_pod_usage"].as_str()), ("web", "70Mi"));

    let unknown = Candidate { share: None, ..candidate };
    let (text, annotations) = message(&unknown, Resource::Pids, &[], &seen);
    assert_eq!((text.as_str(), annotations.len()), ("The node was low on resource: pids. ", 0));
}

#[test]
fn a_soft_threshold_leaves_what_pod_and_node_allow() {
    // A13.5, A13.9
    let threshold = |grace| Threshold {
        signal: Signal::Memory,
        value: Value::Share(0.1),
        grace: Duration::from_secs(grace),
        min_reclaim: None,
    };
    let pod = |seconds: Option<i64>| -> Pod {
        serde_json::from_value(json!({ "spec": { "containers": [], "terminationGracePeriodSeconds": seconds } }))
            .unwrap()
    };
    for (own, most, soft, expected) in [
        (Some(60), 90, false, 1),
        (Some(60), 90, true, 60),
        (Some(60), 40, true, 40),
        (None, 90, true, 30),
        (Some(60), 0, true, 1),
        (Some(0), 90, true, 1),
    ] {
        let found = grace(&pod(own), &threshold(u64::from(soft)), Duration::from_secs(most));
        assert_eq!(found.as_secs(), expected, "{own:?} {most} {soft}");
    }
}

proptest! {
    // A13.8
    #[test]
    fn nobody_who_keeps_to_his_request_goes_before_one_who_does_not(
        pods in prop::collection::vec((-3..3_i32, 0..500_i64, 0..500_i64), 1..12)
    ) {
        let mut candidates: Vec<Candidate> =
            pods.iter().map(|(priority, request, used)| of_memory("p", *priority, *request, Some(*used))).collect();
        rank(&mut candidates, Signal::Memory, Layout::One);
        let keys: Vec<(bool, i32, i64)> = candidates
            .iter()
            .map(|c| {
                let beyond = c.share.as_ref().unwrap().memory - c.request(Resource::Memory);
                (beyond <= 0, c.priority(), -beyond)
            })
            .collect();
        prop_assert!(keys.is_sorted(), "{keys:?}");
        prop_assert_eq!(candidates.len(), pods.len());
    }
}
