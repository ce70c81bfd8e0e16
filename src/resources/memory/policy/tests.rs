//! Who is promised memory of which nodes.

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::*;
use crate::resources::machine::tests::tree;

const GIB: u64 = 1 << 30;

/// Two nodes of 8 GiB, 1 GiB of it in huge pages; 1 GiB of the first is kept back: 6 and 7 GiB.
fn policy() -> Policy {
    let reserved = BTreeMap::from([(0, Sizes::from([("memory".to_owned(), GIB)]))]);
    Policy::new(&tree(2, 1, 2, 1), &reserved).unwrap()
}

fn container(name: &str, memory: &str) -> Container {
    let limits: BTreeMap<_, _> =
        [("cpu", "1"), ("memory", memory)].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into();
    let resources = ResourceRequirements { limits: Some(limits), ..ResourceRequirements::default() };
    Container { name: name.into(), resources: Some(resources), ..Container::default() }
}

fn spec(memory: &str) -> PodSpec {
    PodSpec { containers: vec![container("c", memory)], ..PodSpec::default() }
}

fn give(
    policy: &Policy,
    given: &mut Given,
    pod: &str,
    memory: &str,
    nodes: Option<&[usize]>,
    preferred: bool,
) -> String {
    let spec = spec(memory);
    let uid = PodUid::new(pod);
    let hint = Hint { affinity: nodes.map(|n| NumaSet::of(n.iter().copied())), preferred };
    match policy.give(given, (&uid, &spec, &spec.containers[0]), Some(hint)) {
        Ok(_) => given.get(&uid).map(|c| format!("{:?}", c["c"][0].nodes)).unwrap_or_default(),
        Err(text) => text,
    }
}

fn free(policy: &Policy, given: &Given) -> Vec<u64> {
    policy.nodes(given).values().map(|node| node.tables["memory"].free / GIB).collect()
}

#[test]
fn memory_is_promised_on_as_few_nodes_as_it_takes() {
    // A15.4
    let (policy, mut given) = (policy(), Given::new());
    assert_eq!(free(&policy, &given), [6, 7]);
    assert_eq!(give(&policy, &mut given, "a", "4Gi", None, false), "[0]");
    assert_eq!(give(&policy, &mut given, "a", "4Gi", None, false), "[0]", "asked again it has what it had");
    assert_eq!(give(&policy, &mut given, "b", "4Gi", None, false), "[1]");
    assert_eq!(free(&policy, &given), [2, 3]);
    let none = "failed to get the default NUMA affinity, no NUMA nodes with enough memory is available";
    assert_eq!(give(&policy, &mut given, "c", "4Gi", None, false), none, "nodes that are used alone stay alone");
    assert_eq!(give(&policy, &mut given, "c", "3Gi", Some(&[1]), true), "[1]");
    given.remove(&PodUid::new("b"));
    given.remove(&PodUid::new("c"));
    given.remove(&PodUid::new("a"));
    assert_eq!(give(&policy, &mut given, "wide", "9Gi", Some(&[0]), false), "[0, 1]", "the hint is extended");
    assert_eq!(free(&policy, &given), [0, 4]);
    assert_eq!(give(&policy, &mut given, "d", "1Gi", None, false), "[0, 1]", "in the group that there is");
    assert_eq!(policy.nodes(&given)[&1].cells, [0, 1]);
}

#[test]
fn init_containers_hand_their_memory_on() {
    // A15.4
    let (policy, mut given) = (policy(), Given::new());
    let mut spec = spec("3Gi");
    spec.init_containers = Some(vec![container("i", "5Gi")]);
    let uid = PodUid::new("p");
    for container in [&spec.init_containers.as_ref().unwrap()[0], &spec.containers[0]] {
        assert_eq!(policy.give(&mut given, (&uid, &spec, container), None), Ok(true));
    }
    assert_eq!(free(&policy, &given), [1, 7], "5 GiB at a time");
    assert_eq!(given[&uid]["i"][0].size, 2 * GIB);
    let hints = policy.hints(&Given::new(), &uid, &spec, None).unwrap();
    assert_eq!(hints["memory"].len(), 3);
    assert_eq!(wanted_by_pod(&spec).unwrap()["memory"], 5 * GIB);
    let burstable = PodSpec { containers: vec![container("c", "1Gi"), Container::default()], ..PodSpec::default() };
    assert_eq!(policy.hints(&given, &uid, &burstable, None), None);
}

#[test]
fn what_was_kept_has_to_be_of_this_machine() {
    // A15.4
    let (policy, mut given) = (policy(), Given::new());
    give(&policy, &mut given, "a", "4Gi", None, false);
    let nodes = policy.nodes(&given);
    assert_eq!(policy.check(&given, &nodes), Ok(()));
    assert_eq!(policy.check(&Given::new(), &Nodes::new()), Ok(()));
    let other =
        Policy::new(&tree(1, 1, 2, 1), &BTreeMap::from([(0, Sizes::from([("memory".to_owned(), GIB)]))])).unwrap();
    assert!(other.check(&given, &nodes).is_err());
    assert!(Policy::new(&tree(1, 1, 2, 1), &BTreeMap::new()).is_err());
}
