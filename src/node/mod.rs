//! This node as an API object, and as the rest of the agent sees it.
//!
//! Five tasks: [`observe`] looks at the machine and the runtime and publishes what it sees ([`NodeFeed`], [`NodeFacts`]);
//! [`report`] registers the Node and keeps its status; [`renew_lease`] says that we live; [`eviction::evict`] keeps the node from running out of
//! memory, disk and process numbers; [`end_pods_at_shutdown`] ends pods before the machine goes down. All but [`report`] and [`renew_lease`] work
//! without an API server. Ending them touches no container.
//!
//! [`NodeFeed`]: stoker_model::handle::NodeFeed
//! [`NodeFacts`]: stoker_model::service::NodeFacts

mod addresses;
mod capacity;
mod conditions;
mod enforce;
pub mod eviction;
mod images;
mod lease;
mod machine;
mod observer;
mod oom;
mod pod_cidr;
mod reporter;
mod settings;
mod shutdown;
mod warnings;

pub use addresses::{AddressError, choose_addresses};
pub use enforce::{Enforcement, Reservation, enforce_allocatable};
pub use lease::renew_lease;
pub use machine::memory_threshold;
pub use observer::{Observation, Observer, Signs, observe};
pub use oom::watch_oom;
pub use pod_cidr::{pass_configured_cidr, pass_pod_cidr};
pub use reporter::{Seen, report};
pub use settings::{MachineError, NodeSettings, node_name};
pub use shutdown::{Period, ShutdownHandles, ShutdownSettings, end_pods_at_shutdown, periods};
pub use warnings::warn_of_machine;

/// The version that the Node shows: a v1.36 node to whoever compares versions, with ours as build metadata (A16.6).
pub const KUBELET_VERSION: &str = concat!("v1.36.2+stoker.", env!("CARGO_PKG_VERSION"));
