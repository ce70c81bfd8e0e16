//! What the node agent and the control plane share: quantities, selectors, QoS and resource arithmetic, slim API
//! types, well-known names, and the narrow handles through which rooms of the agent talk to each other.
//!
//! Nothing in here does I/O.

#![warn(missing_docs)]

pub mod expand;
pub mod handle;
pub mod metrics;
pub mod names;
pub mod netlink_port;
pub mod network;
pub mod pod;
pub mod quantity;
pub mod resources;
pub mod selector;
pub mod service;
pub mod streams;

/// What `/debug/pprof/` answers (A18.14, B2.2): profiles of Go's runtime, which is not here.
pub const NO_PROFILES: &str = "This program has no profiles of its own: it is no Go program. Use a profiler of the system on its process, for \
    example perf record -g -p PID, which needs nothing of it.\n";
