//! CPUs that containers have for themselves (A15.2): the policy, and the file that tells the next agent.

mod policy;
mod state_file;
mod take;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use stoker_model::pod::PodUid;
use tokio::sync::watch;

pub use self::policy::ReservedCpus;
pub(super) use self::policy::{CpuRefusal, count};
use self::policy::{Policy, State};
pub(super) use self::state_file::{Containers, names_containers};
pub use self::take::CpuOptions;
use super::checkpoint::CheckpointError;
use super::cpu_set::CpuSet;
use super::machine::Machine;
use super::numa::{Hint, NumaSet};

/// The policy `static`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StaticCpus {
    /// What nobody has for himself.
    pub reserved: ReservedCpus,
    /// `cpuManagerPolicyOptions`.
    pub options: CpuOptions,
}

/// Who has which CPUs.
pub(super) struct Cpus {
    /// `None`: all share all.
    policy: Option<Policy>,
    path: PathBuf,
    state: Mutex<State>,
    /// Counts changes of what is shared.
    changes: watch::Sender<u64>,
}

impl Cpus {
    /// Takes over what the file tells. `config`: the policy `static`, if it is set.
    pub(super) fn open(
        config: Option<&StaticCpus>,
        machine: &Machine,
        path: &Path,
        containers: &Containers,
    ) -> Result<Self, CheckpointError> {
        let wrong = |problem: String| CheckpointError::Content { path: path.display().to_string(), problem };
        let policy = config.map(|c| Policy::new(machine.clone(), &c.reserved, c.options)).transpose();
        let policy = policy.map_err(CheckpointError::Cpus)?;
        let name = if policy.is_some() { "static" } else { "none" };
        let kept = state_file::load(path, name, containers)?;
        let state = match &policy {
            Some(policy) => policy.checked(kept).map_err(wrong)?,
            None => State::default(),
        };
        state_file::save(path, name, &state)?;
        Ok(Self { policy, path: path.to_owned(), state: Mutex::new(state), changes: watch::Sender::new(0) })
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep(&self) {
        let name = if self.policy.is_some() { "static" } else { "none" };
        if let Err(error) = self.with(|state| state_file::save(&self.path, name, state)) {
            tracing::error!(%error, "who has which CPUs is lost when the agent ends now");
        }
        self.changes.send_modify(|count| *count += 1);
    }

    pub(super) const fn is_static(&self) -> bool {
        self.policy.is_some()
    }

    /// Changes when other CPUs are shared than before.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn pods(&self) -> BTreeSet<PodUid> {
        self.with(|state| state.given.keys().cloned().collect())
    }

    /// What a container has for itself.
    pub(super) fn own(&self, pod: &PodUid, container: &str) -> Option<CpuSet> {
        self.with(|state| state.get(pod, container).cloned())
    }

    /// Where a container may run: on its own CPUs, or on those that are shared. `None`: everywhere.
    pub(super) fn of(&self, pod: &PodUid, container: &str) -> Option<CpuSet> {
        self.policy.as_ref()?;
        let cpus = self.with(|state| state.get(pod, container).unwrap_or(&state.shared).clone());
        Some(cpus).filter(|cpus| !cpus.is_empty())
    }

    /// What containers may have for themselves.
    pub(super) fn allocatable(&self) -> CpuSet {
        self.policy.as_ref().map(Policy::allocatable).unwrap_or_default()
    }

    pub(super) fn release(&self, pod: &PodUid) {
        if self.with(|state| state.release(pod)) {
            self.keep();
        }
    }

    pub(super) fn hints(&self, place: (&PodUid, &PodSpec, &Container), reusable: &CpuSet) -> Option<Vec<Hint>> {
        self.with(|state| self.policy.as_ref()?.hints_for(state, place, reusable))
    }

    pub(super) fn hints_for_pod(&self, pod: &PodUid, spec: &PodSpec) -> Option<Vec<Hint>> {
        self.with(|state| self.policy.as_ref()?.hints_for_pod(state, pod, spec))
    }

    /// Gives a container its CPUs, unless it has them.
    pub(super) fn give(
        &self,
        place: (&PodUid, &PodSpec, &Container),
        affinity: Option<NumaSet>,
        reusable: &CpuSet,
    ) -> Result<Option<CpuSet>, CpuRefusal> {
        let Some(policy) = &self.policy else { return Ok(None) };
        let before = self.own(place.0, &place.2.name);
        let given = self.with(|state| policy.give(state, place, affinity, reusable))?;
        if given != before {
            self.keep();
        }
        Ok(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::machine::tests::tree;

    #[test]
    fn another_policy_refuses_the_file() {
        // A15.2
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cpu_manager_state");
        let machine = tree(1, 1, 4, 1);
        let fixed = StaticCpus { reserved: ReservedCpus::Count(1), options: CpuOptions::default() };
        assert_eq!(Cpus::open(None, &machine, &path, &Containers::new()).unwrap().of(&PodUid::new("p"), "c"), None);
        let refused = Cpus::open(Some(&fixed), &machine, &path, &Containers::new()).err().unwrap().to_string();
        assert!(
            refused.contains("configured policy \"static\" differs from state checkpoint policy \"none\""),
            "{refused}"
        );
        std::fs::remove_file(&path).unwrap();
        let cpus = Cpus::open(Some(&fixed), &machine, &path, &Containers::new()).unwrap();
        assert_eq!(cpus.of(&PodUid::new("p"), "c").unwrap().to_string(), "0-3");
        assert_eq!(cpus.allocatable().to_string(), "1-3");
        assert!(
            Cpus::open(Some(&fixed), &machine, &path, &Containers::new()).is_ok()
                && Cpus::open(None, &machine, &path, &Containers::new()).is_err()
        );
        assert!(Cpus::open(Some(&fixed), &tree(1, 1, 8, 1), &path, &Containers::new()).is_err(), "another machine");
    }
}
