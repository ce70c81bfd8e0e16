//! Stoker's control plane: a small Kubernetes API server, scheduler and controllers in one process.
//!
//! ARCHITECTURE.md has the table of rooms; `cli` wires them.

#![warn(missing_docs)]

pub mod api;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod controllers;
pub mod recorder;
pub mod resources;
pub mod scheduler;
pub mod storage;
