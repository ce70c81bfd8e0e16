//! The QoS tree of control groups, on cgroup v1 and v2: `kubepods`, its QoS classes, and one group for each pod.
//!
//! [`Cgroups`] is the only type that others see. It writes files itself: what is needed is a handful of `mkdir` and `write` calls,
//! and their errors must name controller and path, which is advice that an operator can follow.
//!
//! With the systemd driver the slices are made by the runtime when it makes the first container of a pod, from the name that
//! [`Cgroups::pod_parent`] gives; limits of pods and QoS classes are not enforced there yet (A12.2, A12.5).

mod hierarchy;
mod limits;
mod tree;
mod usage;

pub use limits::{PodLimits, cpu_quota_us, cpu_shares, cpu_weight};
pub use tree::{CgroupConfig, CgroupDriver, CgroupError, Cgroups};
