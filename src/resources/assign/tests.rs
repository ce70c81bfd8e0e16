//! What pods are given on a machine of two sockets, by all policies together.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::*;
use crate::resources::machine::tests::tree;
use crate::resources::{CpuOptions, ReservedCpus};

const MIB: u64 = 1 << 20;

/// Two sockets of four cores with two threads and 7 GiB each: 0-3,8-11 and 4-7,12-15. The first core is kept back, and 100 MiB.
fn config(dir: &tempfile::TempDir, topology: TopologyPolicy, pod_scope: bool) -> ResourcesConfig {
    let sizes = BTreeMap::from([("memory".to_owned(), 100 * MIB)]);
    ResourcesConfig {
        topology,
        pod_scope,
        cpus: Some(StaticCpus { reserved: ReservedCpus::Cpus("0,8".parse().unwrap()), options: CpuOptions::default() }),
        memory: Some(StaticMemory { reserved: [(0, sizes.clone())].into(), total: sizes }),
        ..ResourcesConfig::new(dir.path().to_owned())
    }
}

fn start(config: ResourcesConfig) -> Assignments {
    Assignments::start(config, tree(2, 1, 4, 2), CancellationToken::new()).unwrap()
}

fn pod(name: &str, containers: &[(&str, &str)]) -> Pod {
    let container = |(index, (cpu, memory)): (usize, &(&str, &str))| {
        let limits: BTreeMap<_, _> =
            [("cpu", *cpu), ("memory", *memory)].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into();
        let resources = ResourceRequirements { limits: Some(limits), ..ResourceRequirements::default() };
        Container { name: format!("c{index}"), resources: Some(resources), ..Container::default() }
    };
    let containers = containers.iter().enumerate().map(container).collect();
    let mut pod = Pod { spec: Some(PodSpec { containers, ..PodSpec::default() }), ..Pod::default() };
    pod.metadata.uid = Some(name.to_owned());
    pod
}

/// CPUs and memory nodes of each container, or the reason.
async fn give(assignments: &Assignments, pod: &Pod) -> Vec<String> {
    if let Err(refusal) = assignments.admit(pod).await {
        return vec![refusal.reason];
    }
    let mut given = Vec::new();
    for container in &pod.spec.as_ref().unwrap().containers {
        let extras = assignments.for_container(pod, container).await.unwrap();
        given.push(format!("{} {}", extras.cpus, extras.memory_nodes));
    }
    given
}

#[tokio::test]
async fn containers_are_aligned_or_refused() {
    // A15.3, A6.4
    let both = [("6", "1Gi"), ("6", "1Gi")];
    for (policy, pod_scope, containers, given) in [
        (TopologyPolicy::None, false, &both[..], vec!["1-3,9-11 0", "4-6,12-14 0"]),
        (TopologyPolicy::SingleNumaNode, false, &both, vec!["1-3,9-11 0", "4-6,12-14 1"]),
        (TopologyPolicy::SingleNumaNode, true, &both, vec!["TopologyAffinityError"]),
        (TopologyPolicy::SingleNumaNode, false, &[("9", "1Gi")], vec!["TopologyAffinityError"]),
        (TopologyPolicy::Restricted, false, &[("7", "1Gi"), ("7", "1Gi")], vec!["TopologyAffinityError"]),
        (TopologyPolicy::BestEffort, false, &[("9", "1Gi")], vec!["1-7,9,12-15 0-1"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let assignments = start(config(&dir, policy, pod_scope));
        let pod = pod("p", containers);
        let found = give(&assignments, &pod).await;
        if policy == TopologyPolicy::BestEffort {
            // Which of them is a matter of taste; all of one socket are among them.
            assert!(found[0].ends_with(" 0-1"), "{found:?}");
            assert!(assignments.own_cpus(&PodUid::new("p"), "c0").len() == 9);
        } else {
            assert_eq!(found, given, "{policy:?} {pod_scope}");
        }
        if found[0] == "TopologyAffinityError" {
            let text = assignments.admit(&pod).await.unwrap_err().text;
            assert_eq!(text, "Resources cannot be allocated with Topology locality");
            assert!(assignments.pods().is_empty(), "nothing is kept of what was refused");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let few = ResourcesConfig { most_nodes: 1, ..config(&dir, TopologyPolicy::BestEffort, false) };
    let refused = Assignments::start(few, tree(2, 1, 4, 2), CancellationToken::new()).unwrap_err().to_string();
    assert!(refused.contains("unsupported on machines with more than 1 NUMA Nodes"), "{refused}");
}

#[tokio::test]
async fn whole_cores_and_what_is_not_there_are_refused_with_their_reasons() {
    // A6.4, A15.2
    let dir = tempfile::tempdir().unwrap();
    let reserved = ReservedCpus::Cpus("0,8".parse().unwrap());
    let whole = StaticCpus { reserved, options: CpuOptions { whole_cores: true, ..CpuOptions::default() } };
    let assignments = start(ResourcesConfig { cpus: Some(whole), ..ResourcesConfig::new(dir.path().to_owned()) });
    for (cpus, reason, text) in [
        ("3", "SMTAlignmentError", "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2"),
        (
            "16",
            "SMTAlignmentError",
            "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 14, requested CPUs = 16, CPUs per core = 2",
        ),
    ] {
        let refusal = assignments.admit(&pod("p", &[(cpus, "1Gi")])).await.unwrap_err();
        assert_eq!((refusal.reason.as_str(), refusal.text.as_str()), (reason, text));
    }
    let dir = tempfile::tempdir().unwrap();
    let assignments = start(config(&dir, TopologyPolicy::None, false));
    let refusal = assignments.admit(&pod("p", &[("1", "100Gi")])).await.unwrap_err();
    assert_eq!(refusal.reason, "UnexpectedAdmissionError");
    assert!(
        refusal.text.starts_with("Allocate failed due to [memorymanager] failed to get the default NUMA affinity"),
        "{}",
        refusal.text
    );
}

#[tokio::test]
async fn memory_comes_from_where_the_cpus_are() {
    // A15.4, A15.3
    let dir = tempfile::tempdir().unwrap();
    let assignments = start(config(&dir, TopologyPolicy::SingleNumaNode, false));
    let large = pod("large", &[("1", "6Gi")]);
    assert_eq!(give(&assignments, &large).await, ["1 0"]);
    let next = pod("next", &[("2", "2Gi")]);
    assert_eq!(give(&assignments, &next).await, ["4,12 1"], "the first node has no such memory");
    assert_eq!(give(&assignments, &pod("full", &[("1", "6Gi")])).await, ["TopologyAffinityError"]);
    // Another agent knows it all.
    drop(assignments);
    let again = start(config(&dir, TopologyPolicy::SingleNumaNode, false));
    assert_eq!(give(&again, &large).await, ["1 0"]);
    assert_eq!(again.memory_of(&PodUid::new("next"), "c0")[0].size, 2 << 30);
    again.release(&PodUid::new("next"));
    assert_eq!(give(&again, &pod("full", &[("1", "6Gi")])).await, ["4 1"]);
}
