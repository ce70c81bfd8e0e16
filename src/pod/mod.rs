//! Runs the pods of this node: one worker task per pod UID, started and stopped by [`Pods`], the only type that other
//! rooms drive.
//!
//! In: desired pods (`watch`, newest wins) and runtime events (they wake, they carry no truth).
//! Out: status through [`stoker_model::handle::PodApi`], of which the pod's worker is the only caller for its pod.
//! Not here: how containers are made (`runtime`), who is evicted (`node`), how volumes are mounted (`volume`).

mod admission;
mod adopted;
mod backoff;
mod commands;
mod container;
mod cpu_sets;
mod dns;
mod env;
mod env_file;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod garbage;
mod hosts;
mod observe;
mod observed;
mod plan;
mod pods;
mod policy;
mod relist;
mod resize;
mod resources;
mod sandbox;
mod security;
mod shared;
mod slow;
mod sources;
mod status;
mod steps;
mod turns;
mod users;
mod worker;
mod writer;

pub use admission::{Features, SysctlError, SysctlRules};
pub use pods::Pods;
pub use resize::ResizeRules;
pub use shared::{PodHandles, PodsConfig};
pub use slow::SlowStep;
pub use sources::StaticSources;
pub use users::{IdRange, Users, UsersError};
