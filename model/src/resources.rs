//! Resource arithmetic of a pod: QoS class, and what it asks for in all (A3.6, A12.1, A12.10).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::Milli;

/// Amounts by resource name, such as `cpu` (thousandths are millicores) and `memory` (bytes).
pub type Amounts = BTreeMap<String, Milli>;

/// How the kernel treats a pod when the node runs short (A12.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum QosClass {
    /// CPU and memory limits everywhere, equal to the requests.
    Guaranteed,
    /// Something is asked for.
    Burstable,
    /// Nothing is asked for.
    BestEffort,
}

impl QosClass {
    /// The name in `status.qosClass`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Whether an init container is a sidecar: `restartPolicy: Always` (A3.3).
pub fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

/// The QoS class of a pod (A12.1). Pod-level resources decide alone where they are given.
pub fn qos_class(spec: &PodSpec) -> QosClass {
    let requirements: Vec<Option<&ResourceRequirements>> = match &spec.resources {
        Some(pod_level) => vec![Some(pod_level)],
        None => containers(spec).map(|c| c.resources.as_ref()).collect(),
    };
    let mut guaranteed = true;
    let mut asks = false;
    for requirement in requirements {
        for name in ["cpu", "memory"] {
            let limit = positive(requirement.and_then(|r| r.limits.as_ref()), name);
            let request = positive(requirement.and_then(|r| r.requests.as_ref()), name).or(limit);
            asks |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (asks, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// What the pod asks for in all, overhead included (A3.6): the larger of what runs in the long term and of what any
/// init container needs beside the sidecars declared before it. A request that is not set is the limit, if there is one.
pub fn pod_requests(spec: &PodSpec) -> Amounts {
    let mut all = total(spec, requests_of);
    if let Some(pod_level) = &spec.resources {
        for (name, amount) in requests_of(pod_level) {
            all.insert(name, amount);
        }
    }
    add(&mut all, &amounts(spec.overhead.as_ref()));
    all
}

/// The limits of the pod in all, by the same formula, overhead included where there is a limit.
pub fn pod_limits(spec: &PodSpec) -> Amounts {
    let mut all = total(spec, |r| amounts(r.limits.as_ref()));
    if let Some(pod_level) = &spec.resources {
        for (name, amount) in amounts(pod_level.limits.as_ref()) {
            all.insert(name, amount);
        }
    }
    for (name, amount) in amounts(spec.overhead.as_ref()) {
        if let Some(limit) = all.get_mut(&name) {
            *limit += amount;
        }
    }
    all
}

/// The requests of one container; a limit without a request counts as one.
pub fn requests_of(resources: &ResourceRequirements) -> Amounts {
    let mut all = amounts(resources.limits.as_ref());
    all.extend(amounts(resources.requests.as_ref()));
    all
}

/// Reads a resource list.
pub fn amounts(list: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    list.into_iter().flatten().map(|(name, quantity)| (name.clone(), Milli::of(quantity))).collect()
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

fn positive(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<Milli> {
    list?.get(name).map(Milli::of).filter(|amount| !amount.is_zero())
}

fn total(spec: &PodSpec, of: impl Fn(&ResourceRequirements) -> Amounts) -> Amounts {
    let of = |c: &Container| c.resources.as_ref().map(&of).unwrap_or_default();
    let mut long_term = Amounts::new();
    for container in &spec.containers {
        add(&mut long_term, &of(container));
    }
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for init in spec.init_containers.iter().flatten() {
        let own = of(init);
        let mut with_sidecars = sidecars.clone();
        add(&mut with_sidecars, &own);
        raise(&mut peak, &with_sidecars);
        if is_sidecar(init) {
            sidecars = with_sidecars;
        }
    }
    add(&mut long_term, &sidecars);
    raise(&mut long_term, &peak);
    long_term
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *to.entry(name.clone()).or_default() += *amount;
    }
}

fn raise(to: &mut Amounts, at_least: &Amounts) {
    for (name, amount) in at_least {
        let entry = to.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &str)]) -> Option<BTreeMap<String, Quantity>> {
        Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect())
    }

    fn container(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        let resources =
            ResourceRequirements { requests: list(requests), limits: list(limits), ..ResourceRequirements::default() };
        Container { resources: Some(resources), ..Container::default() }
    }

    fn spec(containers: Vec<Container>, init: Vec<Container>) -> PodSpec {
        PodSpec { containers, init_containers: Some(init), ..PodSpec::default() }
    }

    #[test]
    fn qos_follows_limits_and_requests() {
        // A12.1
        let both: &[_] = &[("cpu", "1"), ("memory", "1Gi")];
        for (containers, class) in [
            (vec![container(&[], &[])], QosClass::BestEffort),
            (vec![container(&[("cpu", "0")], &[])], QosClass::BestEffort),
            (vec![container(both, both)], QosClass::Guaranteed),
            (vec![container(&[], both)], QosClass::Guaranteed),
            (vec![container(both, &[])], QosClass::Burstable),
            (vec![container(both, both), container(&[], &[])], QosClass::Burstable),
            (vec![container(&[("cpu", "500m")], both)], QosClass::Burstable),
            (vec![container(&[("hugepages-2Mi", "2Mi")], &[])], QosClass::BestEffort),
        ] {
            assert_eq!(qos_class(&spec(containers.clone(), vec![])), class, "{containers:?}");
        }
    }

    #[test]
    fn the_pod_as_a_whole_decides_alone() {
        // A12.1, A12.10
        let both: &[_] = &[("cpu", "1"), ("memory", "1Gi")];
        let of_pod = |requests: &[(&str, &str)], limits: &[(&str, &str)], of_container: &[(&str, &str)]| {
            let resources = container(requests, limits).resources;
            PodSpec { resources, ..spec(vec![container(of_container, &[])], vec![]) }
        };
        for (pod, class) in [
            (of_pod(both, both, &[("cpu", "100m")]), QosClass::Guaranteed),
            (of_pod(&[], both, &[]), QosClass::Guaranteed),
            (of_pod(both, &[], &[]), QosClass::Burstable),
            (of_pod(&[("cpu", "1")], &[("cpu", "1")], both), QosClass::Burstable),
        ] {
            assert_eq!(qos_class(&pod), class, "{pod:?}");
        }
        // It asks for what it says itself, and for the rest what its containers do.
        let mut pod = of_pod(&[("cpu", "2")], &[("cpu", "3")], &[("cpu", "100m"), ("memory", "1Gi")]);
        pod.overhead = list(&[("cpu", "10m")]);
        let asked = pod_requests(&pod);
        assert_eq!((asked["cpu"], asked["memory"].units()), (Milli::from_milli(2010), 1 << 30));
        assert_eq!(pod_limits(&pod)["cpu"], Milli::from_milli(3010));
        // Ephemeral containers ask for nothing.
        let mut with_ephemeral = spec(vec![container(both, both)], vec![]);
        with_ephemeral.ephemeral_containers = Some(vec![Default::default()]);
        assert_eq!(qos_class(&with_ephemeral), QosClass::Guaranteed);
    }

    #[test]
    fn init_containers_count_for_qos() {
        // A12.1
        let both: &[_] = &[("cpu", "1"), ("memory", "1Gi")];
        let pod = spec(vec![container(both, both)], vec![container(&[], &[])]);
        assert_eq!(qos_class(&pod), QosClass::Burstable);
    }

    #[test]
    fn the_peak_of_init_containers_beside_sidecars_counts() {
        // A3.6
        let mut sidecar = container(&[("cpu", "100m")], &[]);
        sidecar.restart_policy = Some("Always".into());
        let pod = spec(
            vec![container(&[("cpu", "200m")], &[]), container(&[("cpu", "100m")], &[])],
            vec![container(&[("cpu", "300m")], &[]), sidecar, container(&[("cpu", "350m")], &[])],
        );
        assert_eq!(pod_requests(&pod)["cpu"], Milli::from_milli(450));
        let pod = PodSpec { overhead: list(&[("cpu", "50m")]), ..pod };
        assert_eq!(pod_requests(&pod)["cpu"], Milli::from_milli(500));
        // What runs in the end may be more than what any init container needs, with the sidecars or without.
        let mut busy = PodSpec { overhead: None, ..pod };
        busy.containers.push(container(&[("cpu", "100m"), ("memory", "1Mi")], &[]));
        assert_eq!(pod_requests(&busy)["cpu"], Milli::from_milli(500));
        busy.init_containers.as_mut().expect("made above").remove(1);
        assert_eq!(pod_requests(&busy)["cpu"], Milli::from_milli(400));
        assert_eq!(pod_requests(&busy)["memory"], Milli::from_milli(1_048_576_000));
    }
}
