//! discovery.k8s.io/v1 (C1.7).

use k8s_openapi::api::discovery::v1 as api;

use super::{ResourceInfo, service};

pub(super) const TABLE: &[ResourceInfo] = &[ResourceInfo::of::<api::EndpointSlice>(
    "discovery.k8s.io",
    "v1",
    "EndpointSlice",
    "endpointslices",
    "endpointslice",
)
.namespaced()
.with_generation()
.defaults(service::default_endpoint_slice)];
