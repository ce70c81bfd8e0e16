//! Services and EndpointSlices as rules of the kernel.
//!
//! In:  [`ServiceChange`]s (bounded `mpsc`) and the node's own name and zone (`watch`, newest wins).
//! Out: the nftables tables `ip stoker` and `ip6 stoker`, in mode ipvs also virtual servers; and [`Health`] (`watch`).
//! One task, started by [`spawn`], owns the tables: `model` (pure) compiles a changed Service to routes, `diff` (pure)
//! turns routes into element operations, and a [`data_path::DataPath`] (`nftables` or `ipvs`) writes them. The tables stay when the task ends,
//! so that traffic flows while the agent is restarted; [`cleanup`] is what removes them.
//! `http` tells of it as kube-proxy does. Not here: watching the API server (`upstream`).
//!
//! [`ServiceChange`]: stoker_model::service::ServiceChange

pub mod config;
mod conntrack;
pub mod data_path;
pub mod diff;
pub mod explain;
pub mod frontend;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod health;
pub mod http;
pub mod ipvs;
pub mod kubelet_chains;
pub mod leftovers;
pub mod metrics;
pub mod model;
mod netlink;
pub mod nftables;
mod owner;
pub mod sysctls;

#[cfg(test)]
mod properties;

pub use config::{Cidr, IpvsConfig, LocalTraffic, Mode, ServiceConfig};
pub use owner::{
    Health, HealthCheck, HealthChecks, Problems, ServiceError, ServiceProxy, Troubled, Turn, cleanup, spawn,
};
