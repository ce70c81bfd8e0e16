//! scheduling.k8s.io/v1 (C1.15).

use k8s_openapi::api::scheduling::v1 as api;
use serde_json::Value;

use super::ResourceInfo;
use super::limits;
use super::tree::fill;

pub(super) const TABLE: &[ResourceInfo] = &[ResourceInfo::of::<api::PriorityClass>(
    "scheduling.k8s.io",
    "v1",
    "PriorityClass",
    "priorityclasses",
    "priorityclass",
)
.short(&["pc"])
.with_generation()
.defaults(|class: &mut Value| fill(class, "preemptionPolicy", "PreemptLowerPriority"))
.validated(limits::validate_priority)
.validated_update(limits::validate_priority_update)];
