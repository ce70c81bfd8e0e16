//! coordination.k8s.io/v1 (C1.8).

use k8s_openapi::api::coordination::v1 as api;

use super::ResourceInfo;

pub(super) const TABLE: &[ResourceInfo] =
    &[ResourceInfo::of::<api::Lease>("coordination.k8s.io", "v1", "Lease", "leases", "lease").namespaced()];
