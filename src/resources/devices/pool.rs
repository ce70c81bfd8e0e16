//! Which devices there are, who has which, and which a container gets (A15.5). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stoker_model::handle::{DeviceCount, DeviceCounts};
use stoker_model::pod::PodUid;

use super::proto::ContainerAllocateResponse;
use crate::resources::numa::{Hint, NumaSet};

/// Devices that name no memory node are listed under this one.
const NOWHERE: i64 = -1;
/// A resource goes so long after its plugin.
const GRACE: Duration = Duration::from_secs(300);

type Ids = BTreeSet<String>;

/// One device as its plugin told of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Device {
    pub(super) healthy: bool,
    /// Memory nodes that it is near.
    pub(super) nodes: Vec<i64>,
}

impl Device {
    fn numa(&self) -> Vec<usize> {
        self.nodes.iter().filter_map(|node| usize::try_from(*node).ok()).collect()
    }
}

/// A resource that plugins have told of.
#[derive(Clone, Debug, Default)]
pub(super) struct Resource {
    pub(super) devices: BTreeMap<String, Device>,
    /// When its plugin ended (monotonic).
    pub(super) stopped_at: Option<Duration>,
}

impl Resource {
    fn healthy(&self) -> Ids {
        self.devices.iter().filter(|(_, device)| device.healthy).map(|(id, _)| id.clone()).collect()
    }

    fn is_aligned(&self) -> bool {
        self.devices.values().any(|device| !device.nodes.is_empty())
    }
}

/// What a container has of one resource.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Share {
    /// IDs by memory node; -1 for none.
    pub(crate) by_node: BTreeMap<i64, Vec<String>>,
    /// What the plugin wants done to the container.
    pub(crate) answer: ContainerAllocateResponse,
}

impl Share {
    pub(crate) fn ids(&self) -> Ids {
        self.by_node.values().flatten().cloned().collect()
    }
}

/// Shares by resource, of one container.
pub(crate) type Shares = BTreeMap<String, Share>;

/// Everything about devices that is not a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    pub(super) resources: BTreeMap<String, Resource>,
    /// By pod and container.
    pub(super) given: BTreeMap<PodUid, BTreeMap<String, Shares>>,
    /// Resources that were there once and count as nothing now.
    gone: Ids,
}

/// What a container asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) pod: &'a PodUid,
    pub(super) container: &'a str,
    pub(super) resource: &'a str,
    pub(super) count: usize,
    /// Devices of init containers that have ended by then.
    pub(super) reusable: &'a Ids,
    /// Where the container shall be.
    pub(super) affinity: Option<NumaSet>,
}

/// A choice that may still wait for the plugin's opinion.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Choice {
    /// Decided so far.
    pub(super) taken: Ids,
    /// How many more.
    missing: usize,
    /// What the plugin may choose from; nothing to ask when none is missing.
    pub(super) offered: Ids,
    /// What is left, in order of preference.
    rest: Vec<Ids>,
}

impl Choice {
    pub(super) const fn is_open(&self) -> bool {
        self.missing > 0
    }

    fn take(&mut self, from: &Ids) {
        for id in from {
            if self.missing > 0 && self.taken.insert(id.clone()) {
                self.missing -= 1;
            }
        }
    }

    /// The devices, with what the plugin prefers.
    pub(super) fn finish(mut self, preferred: &Ids) -> Ids {
        let welcome = preferred.intersection(&self.offered).cloned().collect();
        self.take(&welcome);
        for ids in std::mem::take(&mut self.rest) {
            self.take(&ids);
        }
        self.taken
    }
}

impl Pool {
    /// Whether device plugins decide about a resource.
    pub(super) fn knows(&self, resource: &str) -> bool {
        self.resources.contains_key(resource) || self.shares().any(|(name, _)| name == resource)
    }

    fn shares(&self) -> impl Iterator<Item = (&String, &Share)> {
        self.given.values().flat_map(BTreeMap::values).flatten()
    }

    pub(super) fn share(&self, pod: &PodUid, container: &str, resource: &str) -> Option<&Share> {
        self.given.get(pod)?.get(container)?.get(resource)
    }

    fn in_use(&self, resource: &str) -> Ids {
        self.shares().filter(|(name, _)| *name == resource).flat_map(|(_, share)| share.ids()).collect()
    }

    fn free(&self, resource: &str) -> Ids {
        let healthy = self.resources.get(resource).map(Resource::healthy).unwrap_or_default();
        healthy.difference(&self.in_use(resource)).cloned().collect()
    }

    /// A plugin tells of its devices. The pods that have one whose health is another now.
    pub(super) fn update(&mut self, resource: &str, devices: BTreeMap<String, Device>) -> BTreeSet<PodUid> {
        let entry = self.resources.entry(resource.to_owned()).or_default();
        let before = std::mem::replace(&mut entry.devices, devices);
        entry.stopped_at = None;
        self.gone.remove(resource);
        let now = &self.resources[resource].devices;
        let changed = |id: &String| now.get(id).map(|d| d.healthy) != before.get(id).map(|d| d.healthy);
        let has_changed = |shares: &Shares| shares.get(resource).is_some_and(|share| share.ids().iter().any(changed));
        let touched = self.given.iter().filter(|(_, containers)| containers.values().any(has_changed));
        touched.map(|(pod, _)| pod.clone()).collect()
    }

    /// A plugin has registered, and has not told of its devices yet.
    pub(super) fn registered(&mut self, resource: &str) {
        self.resources.entry(resource.to_owned()).or_default().stopped_at = None;
        self.gone.remove(resource);
    }

    /// A plugin has ended: nothing of it can be given any more.
    pub(super) fn stopped(&mut self, resource: &str, now: Duration) {
        let entry = self.resources.entry(resource.to_owned()).or_default();
        entry.devices.values_mut().for_each(|device| device.healthy = false);
        entry.stopped_at.get_or_insert(now);
    }

    /// Forgets what has been without a plugin for too long; when to look again.
    pub(super) fn expire(&mut self, now: Duration) -> Option<Duration> {
        let late = |r: &Resource| r.stopped_at.is_some_and(|at| now >= at + GRACE);
        let gone: Vec<String> = self.resources.iter().filter(|(_, r)| late(r)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.resources.remove(&name);
            self.gone.insert(name);
        }
        self.resources.values().filter_map(|r| r.stopped_at).min().map(|at| at + GRACE)
    }

    /// What the Node shows.
    pub(super) fn counts(&self) -> DeviceCounts {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let of = |r: &Resource| DeviceCount { capacity: count(r.devices.len()), allocatable: count(r.healthy().len()) };
        let gone = self.gone.iter().map(|name| (name.clone(), DeviceCount::default()));
        gone.chain(self.resources.iter().map(|(name, resource)| (name.clone(), of(resource)))).collect()
    }

    /// Chooses devices; nothing when the container has them already. The texts are upstream's.
    pub(super) fn choose(&self, ask: &Ask<'_>) -> Result<Option<Choice>, String> {
        let Ask { pod, container, resource, count, .. } = *ask;
        let before = self.share(pod, container, resource).map(Share::ids).unwrap_or_default();
        if !before.is_empty() && before.len() != count {
            return Err(format!(
                "pod \"{pod}\" container \"{container}\" changed request for resource \"{resource}\" from {} to {count}",
                before.len()
            ));
        }
        let Some(known) = self.resources.get(resource) else {
            return Err(format!("cannot allocate unregistered device {resource}"));
        };
        let healthy = known.healthy();
        if healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
        }
        if !before.is_subset(&healthy) {
            return Err(format!(
                "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
            ));
        }
        if before.len() == count {
            return Ok(None);
        }
        let mut choice = Choice { taken: Ids::new(), missing: count, offered: Ids::new(), rest: Vec::new() };
        choice.take(ask.reusable);
        if !choice.is_open() {
            return Ok(Some(choice));
        }
        let free: Ids = self.free(resource).difference(&choice.taken).cloned().collect();
        if free.len() < choice.missing {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {}, Available: {}",
                choice.missing,
                free.len()
            ));
        }
        let [aligned, unaligned, elsewhere] = by_affinity(known, &free, ask.affinity);
        if choice.missing < aligned.len() {
            (choice.offered, choice.rest) = (aligned.clone(), vec![aligned]);
        } else {
            choice.take(&aligned);
            (choice.offered, choice.rest) = (free, vec![unaligned, elsewhere]);
        }
        Ok(Some(choice))
    }

    /// Writes down what a container was given.
    pub(super) fn give(&mut self, ask: &Ask<'_>, ids: &Ids, answer: ContainerAllocateResponse) {
        let devices = self.resources.get(ask.resource).map(|r| &r.devices);
        let mut by_node: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for id in ids {
            let nodes = devices.and_then(|all| all.get(id)).map(|device| device.nodes.clone()).unwrap_or_default();
            for node in if nodes.is_empty() { vec![NOWHERE] } else { nodes } {
                by_node.entry(node).or_default().push(id.clone());
            }
        }
        let containers = self.given.entry(ask.pod.clone()).or_default();
        let shares = containers.entry(ask.container.to_owned()).or_default();
        shares.insert(ask.resource.to_owned(), Share { by_node, answer });
    }

    /// Where `count` devices of a resource could come from. `None`: it does not matter.
    pub(super) fn hints(&self, ask: &Ask<'_>, machine: &[usize]) -> Option<Vec<Hint>> {
        let known = self.resources.get(ask.resource).filter(|r| r.is_aligned())?;
        let before = self.share(ask.pod, ask.container, ask.resource).map(Share::ids).unwrap_or_default();
        let (free, reusable) = match before.len() {
            0 => (self.free(ask.resource), ask.reusable.clone()),
            n if n == ask.count => (before, Ids::new()),
            _ => return Some(Vec::new()),
        };
        if free.union(&reusable).count() < ask.count {
            return Some(Vec::new());
        }
        let near = |id: &String| known.devices.get(id).map(Device::numa).unwrap_or_default();
        let used: BTreeSet<usize> = known.devices.values().flat_map(Device::numa).collect();
        let mut nodes: Vec<usize> = machine.iter().copied().filter(|node| used.contains(node)).collect();
        if nodes.is_empty() {
            nodes = machine.to_vec();
        }
        let mut least = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let mut fitting = Vec::new();
        for set in NumaSet::all_of(&nodes) {
            let there = |ids: &Ids| ids.iter().filter(|id| set.meets(&near(id))).count();
            let total = known.devices.values().filter(|device| set.meets(&device.numa())).count();
            if total >= ask.count {
                least = least.min(set.count());
            }
            let homeless = reusable.iter().filter(|id| near(id).is_empty()).count();
            let all_reused = there(&reusable) + homeless == reusable.len();
            if all_reused && there(&reusable) + there(&free) >= ask.count {
                fitting.push(set);
            }
        }
        let hint = |set: NumaSet| Hint { affinity: Some(set), preferred: set.count() == least };
        Some(fitting.into_iter().map(hint).collect())
    }
}

/// Devices where the container shall be, other ones that are somewhere, and those that are nowhere.
fn by_affinity(known: &Resource, free: &Ids, affinity: Option<NumaSet>) -> [Ids; 3] {
    let Some(wanted) = affinity.filter(|_| known.is_aligned()) else { return [Ids::new(), Ids::new(), free.clone()] };
    let mut parts = [Ids::new(), Ids::new(), Ids::new()];
    for id in free {
        let near = known.devices.get(id).map(Device::numa).unwrap_or_default();
        let part = match () {
            () if wanted.meets(&near) => 0,
            () if near.is_empty() => 2,
            () => 1,
        };
        parts[part].insert(id.clone());
    }
    parts
}

#[cfg(test)]
#[path = "pool/tests.rs"]
mod tests;
