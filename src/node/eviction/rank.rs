//! Whom to evict first, and what he is told (A13.8, A13.9). Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use stoker_model::handle::DiskUsage;
use stoker_model::quantity::Milli;
use stoker_model::resources::pod_requests;

use super::threshold::{Layout, Observations, Resource, Signal, Threshold, canonical};

/// Past a hard threshold, or its own limit, a pod has so long.
pub(super) const AT_ONCE: Duration = Duration::from_secs(1);

/// What one container takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ContainerShare {
    /// Its working set, bytes.
    pub(super) memory: i64,
    /// Its own layer.
    pub(super) layer: DiskUsage,
    pub(super) logs: DiskUsage,
}

/// What a pod takes.
#[derive(Clone, Debug, Default)]
pub(super) struct Share {
    /// Its working set, bytes.
    pub(super) memory: i64,
    pub(super) processes: u64,
    /// By name.
    pub(super) containers: BTreeMap<String, ContainerShare>,
    /// Those on this node's disk, by name.
    pub(super) volumes: BTreeMap<String, DiskUsage>,
}

/// A pod that may have to go. Without a share nothing is known of what it takes.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) pod: Arc<Pod>,
    pub(super) share: Option<Share>,
}

impl Candidate {
    fn priority(&self) -> i32 {
        self.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default()
    }

    fn request(&self, resource: Resource) -> i64 {
        // Nobody can ask for inodes or processes: what is used counts from zero.
        let spec = self.pod.spec.as_ref();
        let asked = spec.and_then(|spec| pod_requests(spec).get(resource.as_str()).copied());
        asked.map_or(0, Milli::units)
    }
}

/// What of a pod fills the disk that a signal is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counted {
    layers: bool,
    logs_and_volumes: bool,
}

const fn counted(signal: Signal, layout: Layout) -> Counted {
    let of_images = matches!(signal, Signal::ImageFs | Signal::ImageFsInodes);
    let of_node = matches!(signal, Signal::NodeFs | Signal::NodeFsInodes);
    match layout {
        Layout::One => Counted { layers: true, logs_and_volumes: true },
        Layout::ImagesApart => Counted { layers: !of_node, logs_and_volumes: of_node },
        // Images are nobody's.
        Layout::Split => Counted { layers: !of_images, logs_and_volumes: !of_images },
    }
}

fn disk(share: &Share, counted: Counted) -> DiskUsage {
    let layers = share.containers.values().map(|c| c.layer).filter(|_| counted.layers);
    let logs = share.containers.values().map(|c| c.logs).filter(|_| counted.logs_and_volumes);
    let volumes = share.volumes.values().copied().filter(|_| counted.logs_and_volumes);
    layers.chain(logs).chain(volumes).sum()
}

/// What the pod takes of what is short; `None`: not known.
fn used(candidate: &Candidate, signal: Signal, layout: Layout) -> Option<i64> {
    let share = candidate.share.as_ref()?;
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    Some(match signal.resource() {
        Resource::Memory => share.memory,
        Resource::Pids => number(share.processes),
        Resource::EphemeralStorage => number(disk(share, counted(signal, layout)).bytes),
        Resource::Inodes => number(disk(share, counted(signal, layout)).inodes),
    })
}

/// Puts those first that are to go first: who takes more than he asked for, then who matters less, then who takes the most beyond what
/// he asked for (A13.8). Of processes nobody asks for any, so there the priority comes first.
pub(super) fn rank(candidates: &mut [Candidate], signal: Signal, layout: Layout) {
    candidates.sort_by_cached_key(|candidate| {
        let resource = signal.resource();
        let used = used(candidate, signal, layout);
        let beyond = used.map(|used| used.saturating_sub(candidate.request(resource)));
        // Of whom nothing is known comes first.
        let exceeds = resource != Resource::Pids && beyond.is_none_or(|beyond| beyond > 0);
        (!exceeds, candidate.priority(), Reverse(beyond.unwrap_or(i64::MAX)))
    });
}

/// How long a pod has that goes because of a threshold: past a hard one, a second (A13.9).
pub(super) fn grace(pod: &Pod, threshold: &Threshold, most: Duration) -> Duration {
    let seconds = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    let own = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    if threshold.is_hard() { AT_ONCE } else { most.min(own).max(AT_ONCE) }
}

/// Message and annotations of an eviction (A13.9). `due`: the thresholds that are met.
pub(super) fn message(
    candidate: &Candidate,
    resource: Resource,
    due: &[Threshold],
    seen: &Observations,
) -> (String, BTreeMap<String, String>) {
    let name = resource.as_str();
    let mut text = format!("The node was low on resource: {name}. ");
    let met = due.iter().find(|t| t.signal.resource() == resource).and_then(|t| Some((t, seen.get(&t.signal)?)));
    if let Some((threshold, seen)) = met {
        let (quantity, available) = (threshold.value.text(seen.capacity), resource.text(seen.available));
        text += &format!("Threshold quantity: {quantity}, available: {available}. ");
    }
    let mut annotations = BTreeMap::new();
    let (Some(share), Some(spec)) = (&candidate.share, &candidate.pod.spec) else { return (text, annotations) };
    let asked = |requests: Option<&BTreeMap<String, _>>| -> Option<String> {
        let quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity = requests?.get(name)?;
        Some(canonical(&quantity.0))
    };
    let of_pod = spec.resources.as_ref().and_then(|r| asked(r.requests.as_ref()));
    if let (Resource::Memory, Some(request)) = (resource, of_pod) {
        let pod = candidate.pod.metadata.name.as_deref().unwrap_or_default();
        let used = resource.text(share.memory);
        text += &format!("Pod {pod} was using {used}, request is {request}, has larger consumption of {name}. ");
        annotations.insert("offending_pod".to_owned(), pod.to_owned());
        annotations.insert("offending_pod_usage".to_owned(), used);
    }
    let (mut offending, mut usage) = (Vec::new(), Vec::new());
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    for (container, share) in containers.filter_map(|c| Some((c, share.containers.get(&c.name)?))) {
        let Some(used) = used_by(share, resource) else { continue };
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let request = requests.and_then(|r| r.get(name)).map_or(0, |q| Milli::of(q).units());
        if used <= request {
            continue;
        }
        let (used, request) = (resource.text(used), asked(requests).unwrap_or_else(|| "0".to_owned()));
        let Container { name: container, .. } = container;
        text += &format!(
            "Container {container} was using {used}, request is {request}, has larger consumption of {name}. "
        );
        offending.push(container.as_str());
        usage.push(used);
    }
    annotations.insert("offending_containers".to_owned(), offending.join(","));
    annotations.insert("offending_containers_usage".to_owned(), usage.join(","));
    annotations.insert("starved_resource".to_owned(), name.to_owned());
    (text, annotations)
}

fn used_by(share: &ContainerShare, resource: Resource) -> Option<i64> {
    match resource {
        Resource::Memory => Some(share.memory),
        Resource::EphemeralStorage => i64::try_from((share.layer + share.logs).bytes).ok(),
        Resource::Inodes | Resource::Pids => None,
    }
}

#[cfg(test)]
#[path = "rank/tests.rs"]
mod tests;
