//! Memory of certain nodes that containers were promised (A15.4): the policy, and the file that tells the next agent.

mod policy;
mod state_file;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use stoker_model::pod::PodUid;

pub(super) use self::policy::{Block, Place};
use self::policy::{Given, Policy};
use super::checkpoint::CheckpointError;
use super::machine::Machine;
use super::numa::{Hint, Hints};

/// The policy `Static`: what is kept back, in bytes, by memory node and resource.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StaticMemory {
    /// kubelet's `reservedMemory`.
    pub reserved: BTreeMap<usize, BTreeMap<String, u64>>,
    /// What the Node's allocatable leaves out, which has to be as much.
    pub total: BTreeMap<String, u64>,
}

/// Who was promised memory of which nodes.
pub(super) struct Memory {
    /// `None`: nobody.
    policy: Option<Policy>,
    path: PathBuf,
    given: Mutex<Given>,
}

impl Memory {
    /// Takes over what the file tells. `config`: the policy `Static`, if it is set.
    pub(super) fn open(config: Option<&StaticMemory>, machine: &Machine, path: &Path) -> Result<Self, CheckpointError> {
        let policy = config.map(|config| {
            check_reserved(config, machine)?;
            Policy::new(machine, &config.reserved)
        });
        let policy = policy.transpose().map_err(CheckpointError::Memory)?;
        let name = name(policy.as_ref());
        let (given, nodes) = state_file::load(path, name)?;
        if let Some(policy) = &policy {
            let wrong = |problem: String| CheckpointError::Content { path: path.display().to_string(), problem };
            policy.check(&given, &nodes).map_err(wrong)?;
        }
        let this = Self { policy, path: path.to_owned(), given: Mutex::new(given) };
        this.save()?;
        Ok(this)
    }

    fn with<R>(&self, act: impl FnOnce(&mut Given) -> R) -> R {
        act(&mut self.given.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn save(&self) -> Result<(), CheckpointError> {
        let given = self.with(|given| given.clone());
        let nodes = self.policy.as_ref().map(|policy| policy.nodes(&given)).unwrap_or_default();
        state_file::save(&self.path, name(self.policy.as_ref()), &given, &nodes)
    }

    fn keep(&self) {
        if let Err(error) = self.save() {
            tracing::error!(%error, "who was promised which memory is lost when the agent ends now");
        }
    }

    pub(super) const fn is_static(&self) -> bool {
        self.policy.is_some()
    }

    pub(super) fn pods(&self) -> BTreeSet<PodUid> {
        self.with(|given| given.keys().cloned().collect())
    }

    /// What a container was promised.
    pub(super) fn of(&self, pod: &PodUid, container: &str) -> Vec<Block> {
        self.with(|given| given.get(pod).and_then(|c| c.get(container)).cloned().unwrap_or_default())
    }

    /// What containers may be promised.
    pub(super) fn allocatable(&self) -> Vec<Block> {
        self.policy.as_ref().map(Policy::allocatable).unwrap_or_default()
    }

    pub(super) fn release(&self, pod: &PodUid) {
        if self.with(|given| given.remove(pod).is_some()) {
            self.keep();
        }
    }

    /// Hints for a container, or for the pod as a whole.
    pub(super) fn hints(&self, pod: &PodUid, spec: &PodSpec, container: Option<&Container>) -> Hints {
        let hints = self.with(|given| self.policy.as_ref()?.hints(given, pod, spec, container));
        hints.into_iter().flatten().map(|(resource, hints)| (resource, Some(hints))).collect()
    }

    /// Promises a container its memory, unless it has it.
    pub(super) fn give(&self, place: Place<'_>, hint: Option<Hint>) -> Result<(), String> {
        let Some(policy) = &self.policy else { return Ok(()) };
        let given = self.with(|given| policy.give(given, place, hint));
        if given.map_err(|text| format!("[memorymanager] {text}"))? {
            self.keep();
        }
        Ok(())
    }
}

fn name(policy: Option<&Policy>) -> &'static str {
    if policy.is_some() { "Static" } else { "None" }
}

/// Both ways of keeping memory back have to keep back the same.
fn check_reserved(config: &StaticMemory, machine: &Machine) -> Result<(), String> {
    let mut sums: BTreeMap<&String, u64> = BTreeMap::new();
    for (node, sizes) in &config.reserved {
        if !machine.nodes.contains_key(node) {
            return Err(format!(
                "the reserved memory configuration references a NUMA node {node} that does not exist on this machine"
            ));
        }
        for (resource, size) in sizes {
            *sums.entry(resource).or_default() += size;
        }
    }
    let resources: BTreeSet<&String> = sums.keys().copied().chain(config.total.keys()).collect();
    for resource in resources {
        let (written, total) =
            (sums.get(resource).copied().unwrap_or(0), config.total.get(resource).copied().unwrap_or(0));
        if written != total {
            return Err(format!(
                "the total amount \"{written}\" of type \"{resource}\" is not equal to the value \"{total}\" determined by Node \
                 Allocatable feature"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::machine::tests::tree;

    #[test]
    fn reservations_and_policy_have_to_agree() {
        // A15.4
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory_manager_state");
        let machine = tree(2, 1, 2, 1);
        let sizes = |bytes| BTreeMap::from([("memory".to_owned(), bytes)]);
        let config = |node, bytes| StaticMemory { reserved: [(node, sizes(bytes))].into(), total: sizes(1 << 20) };
        let refused = |config: &StaticMemory| Memory::open(Some(config), &machine, &path).err().unwrap().to_string();
        assert!(refused(&config(7, 1 << 20)).contains("references a NUMA node 7 that does not exist on this machine"));
        assert!(
            refused(&config(0, 1))
                .contains("the total amount \"1\" of type \"memory\" is not equal to the value \"1048576\"")
        );
        assert!(Memory::open(Some(&config(0, 1 << 20)), &machine, &path).is_ok());
        assert!(Memory::open(Some(&config(1, 1 << 20)), &machine, &path).is_err(), "kept back elsewhere before");
        let other = Memory::open(None, &machine, &path).err().unwrap().to_string();
        assert!(
            other.contains("configured policy \"None\" differs from state checkpoint policy \"Static\""),
            "{other}"
        );
    }
}
