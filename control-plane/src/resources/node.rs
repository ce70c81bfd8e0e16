//! node.k8s.io/v1 (C1.15).

use k8s_openapi::api::node::v1 as api;

use super::{ResourceInfo, limits};

pub(super) const TABLE: &[ResourceInfo] =
    &[ResourceInfo::of::<api::RuntimeClass>("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", "runtimeclass")
        .validated(limits::validate_runtime)
        .validated_update(limits::validate_runtime_update)];
