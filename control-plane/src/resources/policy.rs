//! policy/v1 (C1.5).

use k8s_openapi::api::policy::v1 as api;

use super::{ResourceInfo, STATUS};

pub(super) const TABLE: &[ResourceInfo] = &[ResourceInfo::of::<api::PodDisruptionBudget>(
    "policy",
    "v1",
    "PodDisruptionBudget",
    "poddisruptionbudgets",
    "poddisruptionbudget",
)
.namespaced()
.short(&["pdb"])
.with_status()
.subresources(&[STATUS])];
