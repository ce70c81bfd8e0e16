//! The QoS tree of control groups, on cgroup v1 and v2: `kubepods`, its QoS classes, and one group for each pod.
//!
//! [`Cgroups`] is the only type that others see. It writes files itself: what is needed is a handful of `mkdir` and `write` calls,
//! and their errors must name controller and path, which is advice that an operator can follow.
//!
//! With the systemd driver the groups are slices, which systemd makes, limits and ends; the exact values are then written as well.

mod details;
mod hierarchy;
mod kept;
mod limits;
mod systemd;
mod tree;
mod usage;
mod write;

pub use limits::{PodLimits, cpu_quota_us, cpu_shares, cpu_weight, kernel_size};
pub use tree::{CgroupConfig, CgroupDriver, CgroupError, Cgroups};
