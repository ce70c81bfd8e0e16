//! Exclusive CPUs for containers of Guaranteed pods that ask for whole ones (A15.2). Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use stoker_model::pod::PodUid;
use stoker_model::quantity::Milli;
use stoker_model::resources::{QosClass, is_sidecar, qos_class, requests_of};

use super::take::{CpuOptions, take, threads_per_core};
use crate::resources::cpu_set::CpuSet;
use crate::resources::machine::Machine;
use crate::resources::numa::{Hint, NumaSet};

/// What is kept back from containers that ask for CPUs of their own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReservedCpus {
    /// These.
    Cpus(CpuSet),
    /// So many, whichever.
    Count(usize),
}

/// Why a container cannot have its CPUs: reason and text; no reason for those that upstream has none for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::resources) enum CpuRefusal {
    /// `SMTAlignmentError`.
    Alignment(String),
    Other(String),
}

/// Who has which CPUs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct State {
    /// For those that have none for themselves, the reserved ones among them.
    pub(super) shared: CpuSet,
    /// By pod and container.
    pub(super) given: BTreeMap<PodUid, BTreeMap<String, CpuSet>>,
}

impl State {
    pub(super) fn get(&self, pod: &PodUid, container: &str) -> Option<&CpuSet> {
        self.given.get(pod)?.get(container)
    }

    /// What a pod had is everybody's again.
    pub(super) fn release(&mut self, pod: &PodUid) -> bool {
        let Some(containers) = self.given.remove(pod) else { return false };
        for cpus in containers.values() {
            self.shared = self.shared.union(cpus);
        }
        true
    }
}

/// The policy `static`.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    machine: Machine,
    pub(super) reserved: CpuSet,
    options: CpuOptions,
}

impl Policy {
    pub(super) fn new(machine: Machine, reserved: &ReservedCpus, options: CpuOptions) -> Result<Self, String> {
        let all = machine.all();
        let (reserved, wanted) = match reserved {
            ReservedCpus::Cpus(cpus) => (cpus.and(&all), cpus.len()),
            ReservedCpus::Count(count) => (take(&machine, &all, *count, options).unwrap_or_default(), *count),
        };
        if reserved.len() != wanted {
            return Err(format!(
                "unable to reserve the required amount of CPUs (size of {reserved} did not equal {wanted})"
            ));
        }
        if wanted == 0 {
            return Err(
                "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero".into()
            );
        }
        Ok(Self { machine, reserved, options })
    }

    /// Everything that containers may have for themselves.
    pub(super) fn allocatable(&self) -> CpuSet {
        self.machine.all().minus(&self.reserved)
    }

    /// A state that was kept, if it fits the machine; a new one where there was none.
    pub(super) fn checked(&self, state: State) -> Result<State, String> {
        let all = self.machine.all();
        if state.shared.is_empty() {
            if !state.given.is_empty() {
                return Err("default cpuset cannot be empty".into());
            }
            let shared = if self.options.strict_reservation { self.allocatable() } else { all };
            return Ok(State { shared, ..state });
        }
        let kept = self.reserved.and(&state.shared);
        if self.options.strict_reservation && !kept.is_empty() {
            return Err(format!(
                "some of strictly reserved cpus: \"{kept}\" are present in defaultCpuSet: \"{}\"",
                state.shared
            ));
        }
        if !self.options.strict_reservation && kept != self.reserved {
            return Err(format!(
                "not all reserved cpus: \"{}\" are present in defaultCpuSet: \"{}\"",
                self.reserved, state.shared
            ));
        }
        let mut known = state.shared.clone();
        for (pod, containers) in &state.given {
            for (container, cpus) in containers {
                if !cpus.and(&state.shared).is_empty() {
                    return Err(format!(
                        "pod: {pod}, container: {container} cpuset: \"{cpus}\" overlaps with default cpuset \"{}\"",
                        state.shared
                    ));
                }
                known = known.union(cpus);
            }
        }
        // Nobody has those, and yet they are known.
        if self.options.strict_reservation {
            known = known.union(&self.reserved);
        }
        if known != all {
            return Err(format!(
                "current set of available CPUs \"{all}\" doesn't match with CPUs in state \"{known}\""
            ));
        }
        Ok(state)
    }

    fn free(&self, state: &State) -> CpuSet {
        state.shared.minus(&self.reserved)
    }

    /// How many CPUs a whole pod has for itself at a time.
    pub(super) fn count_of_pod(spec: &PodSpec) -> usize {
        let (mut sidecars, mut peak) = (0, 0);
        for init in spec.init_containers.iter().flatten() {
            let own = count(spec, init);
            if is_sidecar(init) {
                sidecars += own;
            } else {
                peak = peak.max(sidecars + own);
            }
        }
        peak.max(sidecars + spec.containers.iter().map(|c| count(spec, c)).sum::<usize>())
    }

    /// Where so many CPUs could be.
    pub(super) fn hints(&self, free: &CpuSet, reusable: &CpuSet, count: usize) -> Vec<Hint> {
        let node = |cpu: usize| self.machine.cpus.get(&cpu).map_or(usize::MAX, |cpu| cpu.node);
        let mut nodes: Vec<usize> = self.machine.cpus.values().map(|cpu| cpu.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut least = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let mut fitting = Vec::new();
        for set in NumaSet::all_of(&nodes) {
            if self.machine.cpus.values().filter(|cpu| set.contains(cpu.node)).count() >= count {
                least = least.min(set.count());
            }
            let there = |cpus: &CpuSet| cpus.iter().filter(|cpu| set.contains(node(*cpu))).count();
            if there(reusable) == reusable.len() && there(reusable) + there(&free.minus(reusable)) >= count {
                fitting.push(set);
            }
        }
        fitting.into_iter().map(|set| Hint { affinity: Some(set), preferred: set.count() == least }).collect()
    }

    /// Hints for a container; `None`: it has no CPUs for itself.
    pub(super) fn hints_for(
        &self,
        state: &State,
        (pod, spec, container): (&PodUid, &PodSpec, &Container),
        reusable: &CpuSet,
    ) -> Option<Vec<Hint>> {
        let wanted = count(spec, container);
        if wanted == 0 {
            return None;
        }
        Some(match state.get(pod, &container.name) {
            Some(cpus) if cpus.len() != wanted => Vec::new(),
            Some(cpus) => self.hints(cpus, &CpuSet::default(), wanted),
            None => self.hints(&self.free(state), reusable, wanted),
        })
    }

    /// Hints for a pod as a whole.
    pub(super) fn hints_for_pod(&self, state: &State, pod: &PodUid, spec: &PodSpec) -> Option<Vec<Hint>> {
        let wanted = Self::count_of_pod(spec);
        let has = state.given.get(pod).into_iter().flat_map(BTreeMap::values);
        let has = has.fold(CpuSet::default(), |all, cpus| all.union(cpus));
        (wanted > 0).then(|| match has.len() == wanted {
            true => self.hints(&has, &CpuSet::default(), wanted),
            false => self.hints(&self.free(state), &has, wanted),
        })
    }

    /// Gives a container its CPUs, unless it has them; what it has then. Those of ended init containers are in `reusable`.
    pub(super) fn give(
        &self,
        state: &mut State,
        (pod, spec, container): (&PodUid, &PodSpec, &Container),
        affinity: Option<NumaSet>,
        reusable: &CpuSet,
    ) -> Result<Option<CpuSet>, CpuRefusal> {
        let wanted = count(spec, container);
        if wanted == 0 {
            return Ok(None);
        }
        self.check_alignment(state, wanted)?;
        if let Some(cpus) = state.get(pod, &container.name) {
            return Ok(Some(cpus.clone()));
        }
        let free = self.free(state).union(reusable);
        let near: CpuSet = match affinity {
            Some(nodes) => {
                let near = |cpu: &usize| self.machine.cpus.get(cpu).is_some_and(|cpu| nodes.contains(cpu.node));
                free.iter().filter(near).collect()
            }
            None => CpuSet::default(),
        };
        let take = |from: &CpuSet, count| take(&self.machine, from, count, self.options).map_err(CpuRefusal::Other);
        let first = take(&near, wanted.min(near.len()))?;
        let rest = take(&free.minus(&first), wanted - first.len())?;
        let cpus = first.union(&rest);
        state.shared = state.shared.minus(&cpus);
        state.given.entry(pod.clone()).or_default().insert(container.name.clone(), cpus.clone());
        Ok(Some(cpus))
    }

    fn check_alignment(&self, state: &State, wanted: usize) -> Result<(), CpuRefusal> {
        if !self.options.whole_cores {
            return Ok(());
        }
        let threads = threads_per_core(&self.machine);
        if !wanted.is_multiple_of(threads) {
            return Err(CpuRefusal::Alignment(format!(
                "SMT Alignment Error: requested {wanted} cpus not multiple cpus per core = {threads}"
            )));
        }
        let core = |cpu: usize| self.machine.cpus.get(&cpu).map(|cpu| cpu.core);
        let reserved: Vec<_> = self.reserved.iter().map(core).collect();
        let available = state.shared.iter().filter(|cpu| !reserved.contains(&core(*cpu))).count();
        if wanted > available {
            return Err(CpuRefusal::Alignment(format!(
                "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {available}, requested CPUs = {wanted}, \
                 CPUs per core = {threads}"
            )));
        }
        Ok(())
    }
}

/// How many CPUs a container has for itself.
pub(in crate::resources) fn count(spec: &PodSpec, container: &Container) -> usize {
    let resources = spec.resources.as_ref();
    let pod_level = resources.is_some_and(|r| r.requests.is_some() || r.limits.is_some());
    if pod_level || qos_class(spec) != QosClass::Guaranteed {
        return 0;
    }
    let requests = container.resources.as_ref().map(requests_of).unwrap_or_default();
    let cpu = requests.get("cpu").copied().unwrap_or(Milli::ZERO);
    if cpu.milli() % 1000 == 0 { usize::try_from(cpu.units()).unwrap_or_default() } else { 0 }
}

#[cfg(test)]
#[path = "policy/tests.rs"]
mod tests;
