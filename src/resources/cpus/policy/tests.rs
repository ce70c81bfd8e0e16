//! Who gets CPUs for itself.

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::*;
use crate::resources::machine::tests::tree;

fn container(name: &str, cpu: &str) -> Container {
    let amounts: BTreeMap<_, _> =
        [("cpu", cpu), ("memory", "64Mi")].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into();
    let resources = ResourceRequirements { limits: Some(amounts), ..ResourceRequirements::default() };
    Container { name: name.into(), resources: Some(resources), ..Container::default() }
}

fn spec(containers: &[(&str, &str)], init: &[(&str, &str)]) -> PodSpec {
    let list = |of: &[(&str, &str)]| of.iter().map(|(name, cpu)| container(name, cpu)).collect::<Vec<_>>();
    PodSpec { containers: list(containers), init_containers: Some(list(init)), ..PodSpec::default() }
}

/// Two sockets of four cores with two threads: 0-3,8-11 and 4-7,12-15. The first core is reserved.
fn policy(options: CpuOptions) -> (Policy, State) {
    let policy = Policy::new(tree(2, 1, 4, 2), &ReservedCpus::Cpus("0,8".parse().unwrap()), options).unwrap();
    let state = policy.checked(State::default()).unwrap();
    (policy, state)
}

fn give(policy: &Policy, state: &mut State, pod: &str, spec: &PodSpec, nodes: Option<&[usize]>) -> String {
    let affinity = nodes.map(|nodes| NumaSet::of(nodes.iter().copied()));
    let place = (&PodUid::new(pod), spec, &spec.containers[0]);
    match policy.give(state, place, affinity, &CpuSet::default()) {
        Ok(cpus) => cpus.unwrap_or_default().to_string(),
        Err(CpuRefusal::Alignment(text) | CpuRefusal::Other(text)) => text,
    }
}

#[test]
fn whole_cpus_of_guaranteed_pods_are_exclusive() {
    // A15.2
    let (policy, mut state) = policy(CpuOptions::default());
    assert_eq!(state.shared.to_string(), "0-15", "those that share may use the reserved ones");
    let two = spec(&[("c", "2")], &[]);
    assert_eq!(give(&policy, &mut state, "a", &two, None), "1,9");
    assert_eq!(give(&policy, &mut state, "a", &two, None), "1,9", "asked again it has what it had");
    assert_eq!(state.shared.to_string(), "0,2-8,10-15");
    assert_eq!(give(&policy, &mut state, "half", &spec(&[("c", "1500m")], &[]), None), "");
    let mut burstable = two.clone();
    burstable.containers.push(Container::default());
    assert_eq!(give(&policy, &mut state, "burstable", &burstable, None), "");
    let mut pod_level = two.clone();
    pod_level.resources = two.containers[0].resources.clone();
    assert_eq!(give(&policy, &mut state, "pod level", &pod_level, None), "");
    assert_eq!(give(&policy, &mut state, "b", &two, Some(&[1])), "4,12");
    assert_eq!(give(&policy, &mut state, "c", &spec(&[("c", "8")], &[]), Some(&[1])), "2,5-7,10,13-15");
    let text = "not enough cpus available to satisfy request: requested=3, available=2";
    assert_eq!(give(&policy, &mut state, "d", &spec(&[("c", "3")], &[]), None), text);
    assert!(state.release(&PodUid::new("c")));
    assert_eq!(state.shared.to_string(), "0,2-3,5-8,10-11,13-15");
}

#[test]
fn init_containers_hand_their_cpus_on() {
    // A15.2
    let (policy, mut state) = policy(CpuOptions::default());
    let both = spec(&[("main", "2")], &[("init", "4")]);
    assert_eq!(Policy::count_of_pod(&both), 4);
    let uid = PodUid::new("p");
    let init = &both.init_containers.as_ref().unwrap()[0];
    let first = policy.give(&mut state, (&uid, &both, init), None, &CpuSet::default()).unwrap().unwrap();
    assert_eq!(first.to_string(), "1-2,9-10");
    let main = policy.give(&mut state, (&uid, &both, &both.containers[0]), None, &first).unwrap().unwrap();
    assert!(main.is_subset(&first), "{main}");
    assert!(state.release(&uid));
    assert_eq!(state.shared.to_string(), "0-15");
}

#[test]
fn options_change_who_gets_what() {
    // A15.2, A6.4
    let (whole, mut state) = policy(CpuOptions { whole_cores: true, ..CpuOptions::default() });
    let text = "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2";
    assert_eq!(give(&whole, &mut state, "a", &spec(&[("c", "3")], &[]), None), text);
    let text = "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 14, requested CPUs = 16, CPUs per core = 2";
    assert_eq!(give(&whole, &mut state, "a", &spec(&[("c", "16")], &[]), None), text);
    let (strict, mut state) = policy(CpuOptions { strict_reservation: true, ..CpuOptions::default() });
    assert_eq!(state.shared.to_string(), "1-7,9-15", "what is reserved is nobody's");
    assert_eq!(give(&strict, &mut state, "a", &spec(&[("c", "2")], &[]), None), "1,9");
    assert!(strict.checked(state).is_ok(), "it can go on with it");
}

#[test]
fn a_kept_state_has_to_fit() {
    // A15.2
    let (policy, good) = policy(CpuOptions::default());
    let state = |shared: &str, given: &str| State {
        shared: shared.parse().unwrap(),
        given: [(PodUid::new("p"), [("c".to_owned(), given.parse().unwrap())].into())].into(),
    };
    assert!(policy.checked(good).is_ok() && policy.checked(state("0-3,5-15", "4")).is_ok());
    for (bad, text) in [
        (state("", "4"), "default cpuset cannot be empty"),
        (state("1-15", "0"), "not all reserved cpus: \"0,8\" are present in defaultCpuSet: \"1-15\""),
        (state("0-15", "4"), "pod: p, container: c cpuset: \"4\" overlaps with default cpuset \"0-15\""),
        (state("0-14", "15-16"), "current set of available CPUs \"0-15\" doesn't match with CPUs in state \"0-16\""),
    ] {
        assert_eq!(policy.checked(bad), Err(text.to_owned()));
    }
    let counted = Policy::new(tree(2, 1, 4, 2), &ReservedCpus::Count(2), CpuOptions::default()).unwrap();
    assert_eq!(counted.reserved.to_string(), "0,8");
    assert!(Policy::new(tree(1, 1, 2, 1), &ReservedCpus::Count(0), CpuOptions::default()).is_err());
    assert!(Policy::new(tree(1, 1, 2, 1), &ReservedCpus::Cpus("7".parse().unwrap()), CpuOptions::default()).is_err());
}

#[test]
fn hints_tell_where_cpus_are() {
    // A15.3
    let (policy, mut state) = policy(CpuOptions::default());
    let hints = |state: &State, cpu: &str| {
        let spec = spec(&[("c", cpu)], &[]);
        let hints = policy.hints_for(state, (&PodUid::new("x"), &spec, &spec.containers[0]), &CpuSet::default())?;
        Some(hints.into_iter().map(|h| (h.affinity.unwrap().nodes().collect(), h.preferred)).collect::<Vec<_>>())
    };
    assert_eq!(hints(&state, "500m"), None);
    let all: Vec<(Vec<usize>, bool)> = vec![(vec![0], true), (vec![1], true), (vec![0, 1], false)];
    assert_eq!(hints(&state, "6"), Some(all));
    assert_eq!(hints(&state, "8"), Some(vec![(vec![1], true), (vec![0, 1], false)]));
    assert_eq!(hints(&state, "9"), Some(vec![(vec![0, 1], true)]));
    give(&policy, &mut state, "a", &spec(&[("c", "8")], &[]), Some(&[1]));
    assert_eq!(hints(&state, "8"), Some(vec![]));
    let spec = spec(&[("c", "8")], &[]);
    let again = policy.hints_for_pod(&state, &PodUid::new("a"), &spec).unwrap();
    assert_eq!(again[0].affinity, Some(NumaSet::of([1])));
}
