//! Memory of certain nodes for containers of Guaranteed pods (A15.4). Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use stoker_model::pod::PodUid;
use stoker_model::resources::{QosClass, is_sidecar, qos_class, requests_of};

use crate::resources::machine::Machine;
use crate::resources::numa::{Hint, NumaSet};

/// Bytes by resource: `memory`, or `hugepages-2Mi`.
pub(in crate::resources) type Sizes = BTreeMap<String, u64>;

/// Memory that a container was promised.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::resources) struct Block {
    /// On these nodes together.
    pub(in crate::resources) nodes: Vec<usize>,
    pub(in crate::resources) resource: String,
    /// Bytes; of an init container only what none after it has taken over.
    pub(in crate::resources) size: u64,
}

/// Blocks by pod and container.
pub(super) type Given = BTreeMap<PodUid, BTreeMap<String, Vec<Block>>>;

/// One resource of one node, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Table {
    pub(super) total: u64,
    pub(super) system_reserved: u64,
    pub(super) allocatable: u64,
    pub(super) reserved: u64,
    pub(super) free: u64,
}

/// One node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct NodeState {
    /// How many blocks are on it.
    pub(super) assignments: u64,
    pub(super) tables: BTreeMap<String, Table>,
    /// The nodes that blocks on it are spread over.
    pub(super) cells: Vec<usize>,
}

pub(super) type Nodes = BTreeMap<usize, NodeState>;

/// The policy `Static`.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    empty: Nodes,
}

/// A container of a pod.
pub(in crate::resources) type Place<'a> = (&'a PodUid, &'a PodSpec, &'a Container);

impl Policy {
    /// `reserved`: what is kept back, by node.
    pub(super) fn new(machine: &Machine, reserved: &BTreeMap<usize, Sizes>) -> Result<Self, String> {
        let total: u64 = reserved.values().filter_map(|sizes| sizes.get("memory")).sum();
        if total == 0 {
            return Err("you should specify the system reserved memory".to_owned());
        }
        let mut empty = Nodes::new();
        for (number, node) in &machine.nodes {
            let kept =
                |resource: &str| reserved.get(number).and_then(|sizes| sizes.get(resource)).copied().unwrap_or(0);
            let table = |resource: &str, total: u64, taken: u64| {
                let allocatable = total.saturating_sub(kept(resource)).saturating_sub(taken);
                Table { total, system_reserved: kept(resource), allocatable, reserved: 0, free: allocatable }
            };
            let hugepages: u64 = node.hugepages.values().sum();
            let mut tables: BTreeMap<String, Table> =
                node.hugepages.iter().map(|(name, bytes)| (name.clone(), table(name, *bytes, 0))).collect();
            tables.insert("memory".to_owned(), table("memory", node.bytes, hugepages));
            empty.insert(*number, NodeState { assignments: 0, tables, cells: vec![*number] });
        }
        Ok(Self { empty })
    }

    /// What is left on each node.
    pub(super) fn nodes(&self, given: &Given) -> Nodes {
        let mut nodes = self.empty.clone();
        for block in given.values().flat_map(BTreeMap::values).flatten() {
            let mut rest = block.size;
            for number in &block.nodes {
                let Some(node) = nodes.get_mut(number) else { continue };
                node.assignments += 1;
                node.cells.clone_from(&block.nodes);
                if let Some(table) = node.tables.get_mut(&block.resource) {
                    let part = rest.min(table.free);
                    table.free -= part;
                    table.reserved += part;
                    rest -= part;
                }
            }
        }
        nodes
    }

    /// Whether what was kept is of this machine, with these reservations.
    pub(super) fn check(&self, given: &Given, nodes: &Nodes) -> Result<(), String> {
        if nodes.is_empty() && given.is_empty() {
            return Ok(());
        }
        let fixed = |nodes: &Nodes| -> Vec<(usize, String, [u64; 3])> {
            let tables =
                nodes.iter().flat_map(|(number, node)| node.tables.iter().map(move |(name, t)| (*number, name, t)));
            tables
                .map(|(number, name, t)| (number, name.clone(), [t.total, t.system_reserved, t.allocatable]))
                .collect()
        };
        if fixed(nodes) != fixed(&self.empty) {
            return Err("the expected machine state is different from the real one".to_owned());
        }
        let unknown = |block: &&Block| block.nodes.iter().any(|node| !self.empty.contains_key(node));
        match given.values().flat_map(BTreeMap::values).flatten().find(unknown) {
            Some(_) => Err("the memory assignment uses the NUMA that does not exist".to_owned()),
            None => Ok(()),
        }
    }

    /// What containers may be promised: a block for each node and resource.
    pub(super) fn allocatable(&self) -> Vec<Block> {
        let all =
            self.empty.iter().flat_map(|(number, node)| node.tables.iter().map(move |(name, t)| (*number, name, t)));
        let some = all.filter(|(_, _, table)| table.allocatable > 0);
        some.map(|(number, name, t)| Block { nodes: vec![number], resource: name.clone(), size: t.allocatable })
            .collect()
    }

    /// Where so much could be, by resource.
    fn places(
        &self,
        nodes: &Nodes,
        reusable: &dyn Fn(NumaSet, &str) -> u64,
        wanted: &Sizes,
    ) -> BTreeMap<String, Vec<Hint>> {
        let numbers: Vec<usize> = nodes.keys().copied().collect();
        let mut least = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        let mut fitting = Vec::new();
        for set in NumaSet::all_of(&numbers) {
            let sum = |resource: &str, of: fn(&Table) -> u64| -> u64 {
                set.nodes().filter_map(|node| nodes[&node].tables.get(resource)).map(of).sum()
            };
            if wanted.iter().any(|(resource, size)| sum(resource, |t| t.allocatable) < *size) {
                continue;
            }
            least = least.min(set.count());
            if mixes(nodes, set) {
                continue;
            }
            if wanted.iter().all(|(resource, size)| sum(resource, |t| t.free) + reusable(set, resource) >= *size) {
                fitting.push(set);
            }
        }
        let hint = |set: &NumaSet| Hint { affinity: Some(*set), preferred: set.count() == least };
        wanted.keys().map(|resource| (resource.clone(), fitting.iter().map(hint).collect())).collect()
    }

    /// Hints for a container or for a whole pod that is to have so much. `None`: it is promised none.
    pub(super) fn hints(
        &self,
        given: &Given,
        pod: &PodUid,
        spec: &PodSpec,
        container: Option<&Container>,
    ) -> Option<BTreeMap<String, Vec<Hint>>> {
        let wanted = match container {
            Some(container) => wanted(spec, container)?,
            None => wanted_by_pod(spec)?,
        };
        let name = container.map(|c| c.name.as_str());
        let has =
            given.get(pod).into_iter().flatten().find(|(n, _)| name.is_none_or(|name| name == *n)).map(|(_, b)| b);
        let Some(blocks) = has else {
            return Some(self.places(
                &self.nodes(given),
                &|set, resource| reusable(given, pod, spec, set, resource),
                &wanted,
            ));
        };
        let hint = |resource: &String| {
            let nodes = blocks.iter().filter(|b| b.resource == *resource).map(|b| NumaSet::of(b.nodes.iter().copied()));
            (resource.clone(), nodes.map(|set| Hint { affinity: Some(set), preferred: true }).collect())
        };
        Some(wanted.keys().map(hint).collect())
    }

    /// Promises a container its memory, unless it has it.
    pub(super) fn give(
        &self,
        given: &mut Given,
        (pod, spec, container): Place<'_>,
        hint: Option<Hint>,
    ) -> Result<bool, String> {
        let Some(wanted) = wanted(spec, container) else { return Ok(false) };
        if given.get(pod).is_some_and(|containers| containers.contains_key(&container.name)) {
            return Ok(false);
        }
        let nodes = self.nodes(given);
        let wished = hint.unwrap_or(Hint { affinity: None, preferred: false });
        let reusable_here = |set, resource: &str| reusable(given, pod, spec, set, resource);
        let places = || self.places(&nodes, &reusable_here, &wanted).remove("memory").unwrap_or_default();
        let best = |what: &str, places: Vec<Hint>, none: &str| match narrowest(&places) {
            None => Err(none.to_owned()),
            Some(best) if wished.preferred && !best.preferred => {
                Err(format!("failed to find the {what} preferred hint"))
            }
            Some(best) => Ok(best),
        };
        let mut set = match wished.affinity {
            Some(set) => set,
            None => {
                let none = "failed to get the default NUMA affinity, no NUMA nodes with enough memory is available";
                best("default", places(), none)?
            }
            .affinity
            .unwrap_or_default(),
        };
        let free = |resource: &str| -> u64 {
            set.nodes().filter_map(|node| nodes.get(&node)?.tables.get(resource)).map(|t| t.free).sum()
        };
        if wanted.iter().any(|(resource, size)| free(resource) < *size) {
            let wider =
                places().into_iter().filter(|h| h.affinity.is_some_and(|other| other.and(set) == set)).collect();
            let none = "failed to find NUMA nodes to extend the current topology hint";
            set = best("extended", wider, none)?.affinity.unwrap_or_default();
        }
        if set.count() > 1 && mixes(&nodes, set) {
            return Err("preferred hint violates NUMA node allocation".to_owned());
        }
        let numbers: Vec<usize> = set.nodes().collect();
        let block = |(resource, size): (&String, &u64)| Block {
            nodes: numbers.clone(),
            resource: resource.clone(),
            size: *size,
        };
        let blocks: Vec<Block> = wanted.iter().map(block).collect();
        let containers = given.entry(pod.clone()).or_default();
        take_over(containers, spec, container, &blocks);
        containers.insert(container.name.clone(), blocks);
        Ok(true)
    }
}

/// Whether these nodes cannot be used together, since one of them is used alone or in another group; or one cannot be used alone.
fn mixes(nodes: &Nodes, set: NumaSet) -> bool {
    let numbers: Vec<usize> = set.nodes().collect();
    if let [one] = numbers[..] {
        return nodes[&one].cells.len() > 1;
    }
    numbers.iter().any(|number| nodes[number].assignments > 0 && nodes[number].cells != numbers)
}

/// The preferred one, else the narrowest.
fn narrowest(hints: &[Hint]) -> Option<Hint> {
    hints.iter().copied().min_by_key(|h| (!h.preferred, h.affinity.map_or((0, NumaSet::default()), |s| (s.count(), s))))
}

fn ends_early<'a>(spec: &'a PodSpec, before: Option<&'a str>) -> impl Iterator<Item = &'a str> {
    let init = spec.init_containers.iter().flatten().take_while(move |c| Some(c.name.as_str()) != before);
    init.filter(|c| !is_sidecar(c)).map(|c| c.name.as_str())
}

/// What init containers of the pod leave on exactly these nodes.
fn reusable(given: &Given, pod: &PodUid, spec: &PodSpec, set: NumaSet, resource: &str) -> u64 {
    let Some(containers) = given.get(pod) else { return 0 };
    let blocks = ends_early(spec, None).filter_map(|name| containers.get(name)).flatten();
    blocks.filter(|b| b.resource == resource && NumaSet::of(b.nodes.iter().copied()) == set).map(|b| b.size).sum()
}

/// What a container takes over counts no longer as that of the init containers before it.
fn take_over(containers: &mut BTreeMap<String, Vec<Block>>, spec: &PodSpec, container: &Container, blocks: &[Block]) {
    for block in blocks {
        let mut rest = block.size;
        for name in ends_early(spec, Some(&container.name)) {
            let of_init = containers.get_mut(name).into_iter().flatten();
            for former in of_init.filter(|f| f.resource == block.resource && f.nodes == block.nodes) {
                let part = rest.min(former.size);
                former.size -= part;
                rest -= part;
            }
        }
    }
}

/// What a container is promised; `None`: nothing.
fn wanted(spec: &PodSpec, container: &Container) -> Option<Sizes> {
    let pod_level = spec.resources.as_ref().is_some_and(|r| r.requests.is_some() || r.limits.is_some());
    if pod_level || qos_class(spec) != QosClass::Guaranteed {
        return None;
    }
    let requests = container.resources.as_ref().map(requests_of).unwrap_or_default();
    let memory = requests.into_iter().filter(|(name, _)| name == "memory" || name.starts_with("hugepages-"));
    Some(memory.map(|(name, amount)| (name, u64::try_from(amount.units()).unwrap_or_default())).collect())
}

fn wanted_by_pod(spec: &PodSpec) -> Option<Sizes> {
    let add =
        |to: &mut Sizes, more: Sizes| more.into_iter().for_each(|(name, size)| *to.entry(name).or_default() += size);
    let (mut sidecars, mut peak, mut lasting) = (Sizes::new(), Sizes::new(), Sizes::new());
    for init in spec.init_containers.iter().flatten() {
        let own = wanted(spec, init)?;
        if is_sidecar(init) {
            add(&mut sidecars, own);
        } else {
            for (name, size) in own {
                let with = size + sidecars.get(&name).copied().unwrap_or_default();
                let most = peak.entry(name).or_default();
                *most = with.max(*most);
            }
        }
    }
    for container in &spec.containers {
        add(&mut lasting, wanted(spec, container)?);
    }
    for (name, size) in &mut lasting {
        *size += sidecars.get(name).copied().unwrap_or_default();
        *size = (*size).max(peak.get(name).copied().unwrap_or_default());
    }
    Some(lasting)
}

#[cfg(test)]
#[path = "policy/tests.rs"]
mod tests;
