//! Volumes of pods: one file per plugin, and the atomic writer.
//!
//! [`Volumes`] mounts what a pod wants below the agent's root directory (A9.1), brings it up to date when it is asked again, and takes
//! it away. ConfigMaps, Secrets and tokens come through [`stoker_model::handle::ObjectApi`]. [`fields`] reads the values that the downward API
//! offers, for volumes and for environments.
//!
//! Not here: which container sees which volume (`pod`), and when to try again (`pod::plan`).

mod aside;
mod atomic;
mod attach;
mod claim;
pub mod csi;
mod csi_block;
mod csi_volume;
mod empty_dir;
mod error;
mod expand;
pub mod fields;
mod host_path;
mod kernel;
mod ownership;
mod payload;
mod persistent;
mod places;
mod plugin;
mod remove;
mod selinux;
mod sub_path;
mod teardown;
mod token;
mod usage;
mod volumes;

pub use error::VolumeError;
pub use volumes::{MountFailure, PodDirs, Volumes};
