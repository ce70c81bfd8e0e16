//! What a container has for itself: devices of plugins and of claims, CPUs, memory of certain nodes, and how they are brought together
//! (A15).
//!
//! [`Assignments`] decides once for each pod, keeps what it decided in kubelet's own files, and tells what a container needs to be
//! made with. [`serve_pod_resources`] tells monitors.
//! Not here: how many of what the pods may use together (`pod`'s admission), and what the Node shows (`node`).

mod assign;
mod checkpoint;
mod claims;
mod cpu_set;
mod cpus;
mod devices;
mod machine;
mod memory;
mod numa;
mod pod_resources;

pub use assign::{Assignments, Extras, Mount, Refusal, ResourcesConfig, ResourcesError, SpecialFile};
pub use checkpoint::CheckpointError;
pub use cpu_set::{CpuSet, NotCpus};
pub use cpus::{CpuOptions, ReservedCpus, StaticCpus};
pub use machine::Machine;
pub use memory::StaticMemory;
pub use numa::TopologyPolicy;
pub use pod_resources::serve_pod_resources;
