//! autoscaling/v2 (C1.4); v1 is not served yet.

use k8s_openapi::api::autoscaling::v2 as api;

use super::{ResourceInfo, STATUS};

pub(super) const TABLE: &[ResourceInfo] = &[ResourceInfo::of::<api::HorizontalPodAutoscaler>(
    "autoscaling",
    "v2",
    "HorizontalPodAutoscaler",
    "horizontalpodautoscalers",
    "horizontalpodautoscaler",
)
.namespaced()
.short(&["hpa"])
.in_all()
.with_status_only()
.subresources(&[STATUS])];
