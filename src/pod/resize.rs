//! In-place resize: what a pod was given, what its containers run with, and what is still to be done about it (A15.1).
//!
//! Kept in one file per pod, beside its volumes: it goes with the pod, and no pod waits for another's. kubelet keeps two files for
//! the whole node, with a checksum over Go's memory layout; they could not be shared with it anyway.

mod phases;
mod rules;
mod turns;

use std::io;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use litemap::LiteMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stoker_model::resources::{Amounts, amounts, requests_of};

pub(super) use phases::{Part, Phase, phases};
pub use rules::ResizeRules;
pub(super) use rules::infeasible;
pub(super) use turns::{Wish, frees, in_turn};

/// Where it is kept what a pod was given, in its directory.
pub(super) const RESOURCES_FILE: &str = "resources";
/// The resources that can change while a pod runs.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Resources of containers by name: a list, for a tree has room for eleven, and a pod mostly has one.
pub(super) type Resources = LiteMap<String, ResourceRequirements>;

/// What is kept of a pod.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Allocation {
    /// What the node has promised: the spec of the last resize that was admitted.
    #[serde(default)]
    pub(super) allocated: Resources,
    /// What the running containers were made with, or changed to since.
    #[serde(default)]
    pub(super) actuated: Resources,
    /// The same of the pod as a whole (A15.16).
    #[serde(default)]
    pub(super) allocated_pod: Option<ResourceRequirements>,
    #[serde(default)]
    pub(super) actuated_pod: Option<ResourceRequirements>,
}

/// Where a pod's resize stands.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Resize {
    pub(super) allocation: Allocation,
    /// The newest spec does not fit, or cannot be had: reason, message and the generation that was looked at.
    pub(super) pending: Option<Pending>,
    /// The generation of the resize under way, or done last.
    pub(super) generation: Option<i64>,
    /// It was begun, and its end not told yet.
    pub(super) under_way: bool,
    /// The last attempt failed.
    pub(super) error: Option<Failed>,
}

/// See [`Resize::pending`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pending {
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) generation: Option<i64>,
}

/// See [`Resize::error`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failed {
    pub(super) message: String,
    /// Monotonic.
    pub(super) retry_at: Duration,
}

/// What a running container needs for its resources to be those allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    None,
    /// Its limits are written anew while it runs.
    InPlace,
    /// Its `resizePolicy` wants a new instance.
    Restart,
}

impl Allocation {
    /// What the spec asks for.
    pub(super) fn of(spec: &PodSpec) -> Self {
        Self { allocated: resources_of(spec), allocated_pod: spec.resources.clone(), ..Self::default() }
    }

    /// Reads what was kept; `None` where nothing was, or nothing readable.
    pub(super) fn load(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Keeps it: the file is whole at any moment.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let next = path.with_extension("new");
        std::fs::write(&next, serde_json::to_vec(self)?)?;
        std::fs::rename(next, path)
    }

    /// The pod with the resources that it was given in place of those that it asks for; `None` where they are the same.
    pub(super) fn applied(&self, pod: &Pod) -> Option<Pod> {
        let spec = pod.spec.as_ref()?;
        if !asks_for_more(spec, self) {
            return None;
        }
        let mut pod = pod.clone();
        let spec = pod.spec.as_mut()?;
        spec.resources.clone_from(&self.allocated_pod);
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            if let Some(given) = self.allocated.get(&container.name) {
                container.resources = Some(given.clone());
            }
        }
        Some(pod)
    }

    /// What a container that runs needs. `container`: with the resources that it was given.
    pub(super) fn change(&self, container: &Container) -> Change {
        let given = bounded(container.resources.as_ref(), self.allocated_pod.as_ref());
        let Some(actual) = self.actuated.get(&container.name) else { return Change::None };
        let actual = bounded(Some(actual), self.actuated_pod.as_ref());
        let changed: Vec<&str> = RESIZABLE.into_iter().filter(|name| differs(&given, &actual, name)).collect();
        let restart = |name: &&str| {
            let policies = container.resize_policy.iter().flatten();
            policies.into_iter().any(|p| p.resource_name == **name && p.restart_policy == "RestartContainer")
        };
        match (changed.is_empty(), changed.iter().any(restart)) {
            (true, _) => Change::None,
            (false, true) => Change::Restart,
            (false, false) => Change::InPlace,
        }
    }

    /// Whether the group of the pod as a whole still has other limits than it was given (A15.16).
    pub(super) fn pod_changes(&self) -> bool {
        differ(self.allocated_pod.as_ref(), self.actuated_pod.as_ref())
    }
}

/// What a container may use: where it has no limit of its own, the pod's is the one that is written.
fn bounded(own: Option<&ResourceRequirements>, pod: Option<&ResourceRequirements>) -> ResourceRequirements {
    let mut own = own.cloned().unwrap_or_default();
    let requests = requests_of(&own);
    for (name, limit) in pod.iter().flat_map(|pod| pod.limits.iter().flatten()) {
        let limits = own.limits.get_or_insert_default();
        if !limits.contains_key(name) {
            limits.insert(name.clone(), limit.clone());
            // A limit of the pod is no request of the container.
            if !requests.contains_key(name) {
                own.requests.get_or_insert_default().insert(name.clone(), Quantity("0".into()));
            }
        }
    }
    own
}

/// Whether the spec asks for other resources than were given.
fn asks_for_more(spec: &PodSpec, given: &Allocation) -> bool {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let of_containers = all.into_iter().any(|container| {
        let wanted = container.resources.as_ref();
        given.allocated.get(&container.name).is_some_and(|given| differ(wanted, Some(given)))
    });
    of_containers || differ(spec.resources.as_ref(), given.allocated_pod.as_ref())
}

fn differ(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>) -> bool {
    let none = ResourceRequirements::default();
    RESIZABLE.iter().any(|name| differs(a.unwrap_or(&none), b.unwrap_or(&none), name))
}

fn differs(a: &ResourceRequirements, b: &ResourceRequirements, name: &str) -> bool {
    let of = |amounts: Amounts| amounts.get(name).copied().filter(|amount| !amount.is_zero());
    of(amounts(a.limits.as_ref())) != of(amounts(b.limits.as_ref())) || of(requests_of(a)) != of(requests_of(b))
}

fn resources_of(spec: &PodSpec) -> Resources {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

/// Text of an event about a resize: `Pod resize started: {"containers":[...],"generation":2}`.
pub(super) fn text(prefix: &str, spec: &PodSpec, generation: Option<i64>, error: &str) -> String {
    let list = |containers: &[Container]| -> Vec<Value> {
        containers
            .iter()
            .map(|c| json!({ "name": c.name, "resources": c.resources.clone().unwrap_or_default() }))
            .collect()
    };
    let part = |name: &str, list: Vec<Value>| {
        if list.is_empty() { String::new() } else { format!("\"{name}\":{},", Value::Array(list)) }
    };
    let error = if error.is_empty() { String::new() } else { format!(",\"error\":{}", Value::from(error)) };
    format!(
        "Pod resize {prefix}: {{{}{}\"generation\":{}{error}}}",
        part("initContainers", list(spec.init_containers.as_deref().unwrap_or_default())),
        part("containers", list(&spec.containers)),
        generation.unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ContainerResizePolicy;

    use super::*;

    fn resources(cpu: &str, memory: &str) -> ResourceRequirements {
        let list = [("cpu", cpu), ("memory", memory)].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned())));
        ResourceRequirements { requests: Some(list.clone().into()), limits: Some(list.into()), ..Default::default() }
    }

    fn spec(cpu: &str, memory: &str) -> PodSpec {
        let policy = |name: &str, restart: &str| ContainerResizePolicy {
            resource_name: name.into(),
            restart_policy: restart.into(),
        };
        let container = Container {
            name: "c".into(),
            resources: Some(resources(cpu, memory)),
            resize_policy: Some(vec![policy("cpu", "NotRequired"), policy("memory", "RestartContainer")]),
            ..Container::default()
        };
        PodSpec { containers: vec![container], ..PodSpec::default() }
    }

    #[test]
    fn what_was_given_counts_until_more_is() {
        // A15.1
        let mut allocation = Allocation::of(&spec("1", "1Gi"));
        let wants = |cpu: &str, memory: &str| Pod { spec: Some(spec(cpu, memory)), ..Pod::default() };
        assert_eq!(allocation.applied(&wants("1000m", "1024Mi")), None, "the same in other words");
        let applied = allocation.applied(&wants("2", "1Gi")).unwrap().spec.unwrap();
        assert_eq!(applied.containers[0].resources, Some(resources("1", "1Gi")));
        let container = |cpu: &str, memory: &str| spec(cpu, memory).containers.remove(0);
        assert_eq!(allocation.change(&container("2", "1Gi")), Change::None, "it does not run yet");
        allocation.actuated.insert("c".into(), resources("1", "1Gi"));
        for (cpu, memory, expected) in [
            ("1", "1Gi", Change::None),
            ("2", "1Gi", Change::InPlace),
            ("1", "2Gi", Change::Restart),
            ("2", "2Gi", Change::Restart),
        ] {
            assert_eq!(allocation.change(&container(cpu, memory)), expected, "{cpu} {memory}");
        }
    }

    #[test]
    fn the_pod_as_a_whole_is_resized() {
        // A15.16
        let of_pod = |cpu: &str, memory: &str| {
            let mut spec = spec("1", "1Gi");
            spec.resources = Some(resources(cpu, memory));
            spec
        };
        let mut allocation = Allocation::of(&of_pod("2", "2Gi"));
        (allocation.actuated, allocation.actuated_pod) = (allocation.allocated.clone(), Some(resources("2", "2Gi")));
        let wants = Pod { spec: Some(of_pod("2", "3Gi")), ..Pod::default() };
        let applied = allocation.applied(&wants).unwrap().spec.unwrap();
        assert_eq!(applied.resources, Some(resources("2", "2Gi")));
        assert!(!allocation.pod_changes());
        allocation.allocated_pod = Some(resources("2", "3Gi"));
        assert!(allocation.pod_changes());
        let mut container = spec("1", "1Gi").containers.remove(0);
        assert_eq!(allocation.change(&container), Change::None, "it has limits of its own");
        container.resources = None;
        allocation.allocated.insert("c".into(), ResourceRequirements::default());
        allocation.actuated.insert("c".into(), ResourceRequirements::default());
        assert_eq!(allocation.change(&container), Change::Restart, "the pod's limit is the one that binds it");
    }

    #[test]
    fn what_was_given_is_kept() {
        // A15.1
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resources");
        assert_eq!(Allocation::load(&path), None);
        let mut allocation = Allocation::of(&spec("1", "1Gi"));
        allocation.actuated.insert("c".into(), resources("500m", "1Gi"));
        allocation.save(&path).unwrap();
        assert_eq!(Allocation::load(&path), Some(allocation));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Allocation::load(&path), None);
    }

    #[test]
    fn events_tell_the_resources() {
        // A15.1
        assert_eq!(
            text("started", &spec("100m", "100"), Some(2), ""),
            r#"Pod resize started: {"containers":[{"name":"c","resources":{"limits":{"cpu":"100m","memory":"100"},"requests":{"cpu":"100m","memory":"100"}}}],"generation":2}"#
        );
        assert!(
            text("error", &spec("1", "1"), Some(3), "no \"x\"").ends_with(r#","generation":3,"error":"no \"x\""}"#)
        );
    }
}
