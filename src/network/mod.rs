//! The pod network for nodes without a third-party CNI: the CNI plugin, routes or VXLAN through rtnetlink, NetworkPolicy.
//!
//! [`plugin`] attaches pods, as a process of its own that the runtime starts. [`prepare`] and [`Network::run`] are the
//! agent's side: they tell the runtime of the plugin and lead to the pods of other nodes.

mod cidr;
mod files;
mod kernel;
mod leases;
mod monitor;
mod owner;
pub mod plugin;
pub mod policy;
mod rtnl;
mod table;
mod ways;

pub use owner::{Network, NetworkConfig, NetworkError, cleanup, collect_garbage, prepare};
pub use ways::Mode;

/// How the node's ends of the pods' interfaces begin.
pub const LINK_PREFIX: &str = "stk";
