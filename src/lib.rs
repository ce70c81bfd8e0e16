//! Stoker, the node agent. ARCHITECTURE.md tells which room does what and what it may know of.

pub mod cgroup;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dns;
mod http2;
pub mod network;
pub mod node;
pub mod pod;
pub mod probe;
pub mod resources;
pub mod runtime;
pub mod server;
pub mod service;
pub mod upstream;
pub mod volume;
