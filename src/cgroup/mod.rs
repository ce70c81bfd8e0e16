//! The QoS tree of control groups, on cgroup v1 and v2.
