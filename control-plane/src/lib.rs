//! Stoker's companion: a small Kubernetes API server, scheduler and controllers in one process.

pub mod api;
pub mod resources;
