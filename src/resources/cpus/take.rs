//! Which CPUs a container gets of those that are free: whole memory nodes, sockets, caches and cores first (A15.2). Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::resources::cpu_set::CpuSet;
use crate::resources::machine::{Cpu, Machine};

/// `cpuManagerPolicyOptions`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuOptions {
    /// `full-pcpus-only`: no two containers share a core.
    pub whole_cores: bool,
    /// `distribute-cpus-across-numa`: evenly over memory nodes, where one does not do.
    pub across_nodes: bool,
    /// `strict-cpu-reservation`: what is reserved is nobody's, also not of those that share.
    pub strict_reservation: bool,
    /// `prefer-align-cpus-by-uncorecache`.
    pub by_cache: bool,
}

type Level = fn(&Cpu) -> usize;

const NODE: Level = |cpu| cpu.node;
const SOCKET: Level = |cpu| cpu.socket;
const CORE: Level = |cpu| cpu.core;
const CACHE: Level = |cpu| cpu.cache;

/// CPUs by the number of what they belong to.
fn groups(cpus: &BTreeMap<usize, Cpu>, level: Level) -> BTreeMap<usize, CpuSet> {
    let mut lists: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, cpu) in cpus {
        lists.entry(level(cpu)).or_default().push(*number);
    }
    lists.into_iter().map(|(group, cpus)| (group, cpus.into_iter().collect())).collect()
}

/// How many threads a core has, as upstream counts.
pub(super) fn threads_per_core(machine: &Machine) -> usize {
    (machine.cpus.len() / groups(&machine.cpus, CORE).len().max(1)).max(1)
}

struct Taker<'a> {
    machine: &'a Machine,
    free: BTreeMap<usize, Cpu>,
    taken: CpuSet,
    missing: usize,
}

/// Takes so many of the free ones.
pub(super) fn take(machine: &Machine, free: &CpuSet, count: usize, options: CpuOptions) -> Result<CpuSet, String> {
    if options.across_nodes {
        let group = if options.whole_cores { threads_per_core(machine) } else { 1 };
        if count.is_multiple_of(group)
            && let Some(taken) = distributed(machine, free, count, group)?
        {
            return Ok(taken);
        }
        return packed(machine, free, count, false);
    }
    packed(machine, free, count, options.by_cache)
}

fn enough(free: &CpuSet, count: usize) -> Result<(), String> {
    if count > free.len() {
        let available = free.len();
        return Err(format!("not enough cpus available to satisfy request: requested={count}, available={available}"));
    }
    Ok(())
}

fn packed(machine: &Machine, free: &CpuSet, count: usize, by_cache: bool) -> Result<CpuSet, String> {
    let mut taker = Taker::new(machine, free, count);
    if taker.missing == 0 {
        return Ok(taker.taken);
    }
    enough(free, count)?;
    if taker.nodes_first() {
        taker.take_whole(&taker.nodes(), NODE);
        taker.take_whole(&taker.sockets(), SOCKET);
    } else {
        taker.take_whole(&taker.sockets(), SOCKET);
        taker.take_whole(&taker.nodes(), NODE);
    }
    if by_cache {
        taker.take_by_cache();
    }
    taker.take_whole(&taker.cores(), CORE);
    for core in taker.cores() {
        let cpus = groups(&taker.free, CORE).remove(&core).unwrap_or_default();
        taker.take(&cpus.iter().take(taker.missing).collect());
    }
    Ok(taker.taken)
}

impl<'a> Taker<'a> {
    fn new(machine: &'a Machine, free: &CpuSet, count: usize) -> Self {
        let free = machine.cpus.iter().filter(|(cpu, _)| free.contains(**cpu)).map(|(n, cpu)| (*n, *cpu)).collect();
        Self { machine, free, taken: CpuSet::default(), missing: count }
    }

    fn take(&mut self, cpus: &CpuSet) {
        self.free.retain(|cpu, _| !cpus.contains(*cpu));
        self.taken = self.taken.union(cpus);
        self.missing -= cpus.len().min(self.missing);
    }

    /// Memory nodes are not larger than sockets there, and so come last.
    fn nodes_first(&self) -> bool {
        groups(&self.machine.cpus, SOCKET).len() >= groups(&self.machine.cpus, NODE).len()
    }

    /// What is within `outer` of `inner`, the fullest last, within each of `outer` in its order.
    fn within(&self, outer: &[usize], outer_level: Level, inner: Level) -> Vec<usize> {
        let sizes = groups(&self.free, inner);
        let mut order = Vec::new();
        for group in outer {
            let there: BTreeSet<usize> = self.free.values().filter(|c| outer_level(c) == *group).map(inner).collect();
            let mut there: Vec<usize> = there.into_iter().filter(|inner| !order.contains(inner)).collect();
            there.sort_by_key(|inner| (sizes[inner].len(), *inner));
            order.extend(there);
        }
        order
    }

    fn outermost(&self, level: Level) -> Vec<usize> {
        let sizes = groups(&self.free, level);
        let mut order: Vec<usize> = sizes.keys().copied().collect();
        order.sort_by_key(|group| (sizes[group].len(), *group));
        order
    }

    fn nodes(&self) -> Vec<usize> {
        match self.nodes_first() {
            true => self.outermost(NODE),
            false => self.within(&self.outermost(SOCKET), SOCKET, NODE),
        }
    }

    fn sockets(&self) -> Vec<usize> {
        match self.nodes_first() {
            true => self.within(&self.outermost(NODE), NODE, SOCKET),
            false => self.outermost(SOCKET),
        }
    }

    fn cores(&self) -> Vec<usize> {
        match self.nodes_first() {
            true => self.within(&self.sockets(), SOCKET, CORE),
            false => self.within(&self.nodes(), NODE, CORE),
        }
    }

    /// Takes those that are free as a whole, as long as all of one is needed.
    fn take_whole(&mut self, order: &[usize], level: Level) {
        let whole = groups(&self.machine.cpus, level);
        let free = groups(&self.free, level);
        for cpus in order.iter().filter(|group| free.get(*group) == whole.get(*group)).map(|group| &whole[group]) {
            if self.missing >= cpus.len() {
                self.take(cpus);
            }
        }
    }

    fn take_by_cache(&mut self) {
        let caches = self.within(&self.nodes(), NODE, CACHE);
        self.take_whole(&caches, CACHE);
        for cache in caches {
            if self.missing == 0 {
                return;
            }
            self.take_of_cache(cache);
        }
    }

    /// Takes all that is missing of one cache, or nothing.
    fn take_of_cache(&mut self, cache: usize) {
        let threads = threads_per_core(self.machine);
        let cores = self.missing.div_ceil(threads);
        let there: BTreeSet<usize> = self.free.values().filter(|c| c.cache == cache).map(CORE).collect();
        let chosen: BTreeSet<usize> = there.into_iter().take(cores).collect();
        let mut cpus: Vec<usize> =
            self.free.iter().filter(|(_, cpu)| chosen.contains(&cpu.core)).map(|(number, _)| *number).collect();
        if !self.missing.is_multiple_of(2) && threads > 1 && cpus.len() > self.missing {
            cpus.pop();
        }
        if cpus.len() == self.missing {
            self.take(&cpus.into_iter().collect());
        }
    }
}

/// A split over memory nodes, and how uneven it leaves them.
struct Split {
    nodes: Vec<usize>,
    /// From each.
    share: usize,
    /// One group more from each of these, in turns.
    more: Vec<usize>,
    imbalance: f64,
}

/// Evenly over as few memory nodes as it takes; `None` where there is no even way.
fn distributed(machine: &Machine, free: &CpuSet, count: usize, group: usize) -> Result<Option<CpuSet>, String> {
    let mut taker = Taker::new(machine, free, count);
    if count == 0 {
        return Ok(Some(CpuSet::default()));
    }
    enough(free, count)?;
    let numbers = taker.nodes();
    let sizes: BTreeMap<usize, usize> =
        groups(&taker.free, NODE).into_iter().map(|(n, cpus)| (n, cpus.len())).collect();
    let all_nodes = groups(&machine.cpus, NODE).len().max(1);
    let per_node = machine.cpus.len().div_ceil(group).div_ceil(all_nodes).max(1);
    let needed = count.div_ceil(group);
    for k in needed.div_ceil(per_node)..=needed.min(numbers.len()) {
        let mut best: Option<Split> = None;
        for nodes in combinations(&numbers, k) {
            if let Some(split) = split(&sizes, nodes, count, group)
                && best.as_ref().is_none_or(|best| split.imbalance < best.imbalance)
            {
                best = Some(split);
            }
        }
        let Some(Split { nodes, share, more, .. }) = best else { continue };
        let of_node = |taker: &Taker<'_>, node, count| {
            let there = groups(&taker.free, NODE).remove(&node).unwrap_or_default();
            packed(machine, &there, count, false)
        };
        for node in &nodes {
            let cpus = of_node(&taker, *node, share)?;
            taker.take(&cpus);
        }
        while taker.missing > 0 {
            let before = taker.missing;
            for node in &more {
                let there = groups(&taker.free, NODE).get(node).map_or(0, CpuSet::len);
                if taker.missing > 0 && there >= group {
                    let cpus = of_node(&taker, *node, group)?;
                    taker.take(&cpus);
                }
            }
            if taker.missing == before {
                return Err(format!("accounting error, not enough CPUs allocated, remaining: {before}"));
            }
        }
        return Ok(Some(taker.taken));
    }
    Ok(None)
}

fn split(sizes: &BTreeMap<usize, usize>, nodes: Vec<usize>, count: usize, group: usize) -> Option<Split> {
    let groups: usize = nodes.iter().map(|node| sizes[node] / group).sum();
    let share = count / nodes.len() / group * group;
    if groups * group < count || nodes.iter().any(|node| sizes[node] < share) {
        return None;
    }
    let mut left = sizes.clone();
    for node in &nodes {
        *left.get_mut(node)? -= share;
    }
    let remainder = count - share * nodes.len();
    if remainder == 0 {
        return Some(Split { nodes, share, more: Vec::new(), imbalance: deviation(&left) });
    }
    let able: Vec<usize> = nodes.iter().copied().filter(|node| left[node] >= group).collect();
    let mut best: Option<(f64, Vec<usize>)> = None;
    for k in (1..=able.len()).rev() {
        for subset in combinations(&able, k) {
            let groups: usize = subset.iter().map(|node| left[node] / group).sum();
            if groups * group < remainder {
                continue;
            }
            let (mut left, mut remainder) = (left.clone(), remainder);
            while remainder > 0 {
                for node in &subset {
                    let there = left.get_mut(node)?;
                    if remainder > 0 && *there >= group {
                        *there -= group;
                        remainder -= group.min(remainder);
                    }
                }
            }
            let imbalance = deviation(&left);
            if best.as_ref().is_none_or(|(least, _)| imbalance < *least) {
                best = Some((imbalance, subset));
            }
        }
    }
    best.map(|(imbalance, more)| Split { nodes, share, more, imbalance })
}

/// Standard deviation, to three digits.
#[expect(clippy::cast_precision_loss, reason = "numbers of CPUs are small")]
fn deviation(sizes: &BTreeMap<usize, usize>) -> f64 {
    let round = |x: f64| (x * 1000.0).round() / 1000.0;
    let number = sizes.len() as f64;
    let mean = round(sizes.values().map(|size| *size as f64).sum::<f64>() / number);
    round((sizes.values().map(|size| (*size as f64 - mean).powi(2)).sum::<f64>() / number).sqrt())
}

fn combinations(of: &[usize], k: usize) -> Vec<Vec<usize>> {
    if k == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (index, first) in of.iter().enumerate() {
        for mut rest in combinations(&of[index + 1..], k - 1) {
            rest.insert(0, *first);
            all.push(rest);
        }
    }
    all
}

#[cfg(test)]
#[path = "take/tests.rs"]
mod tests;
