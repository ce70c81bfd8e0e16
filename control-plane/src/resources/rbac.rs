//! rbac.authorization.k8s.io/v1 (C1.10).

use k8s_openapi::api::rbac::v1 as api;
use serde_json::{Value, json};

use super::{NameRule, ResourceInfo};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) const TABLE: &[ResourceInfo] = &[
    ResourceInfo::of::<api::ClusterRoleBinding>(
        GROUP,
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding",
    )
    .named(NameRule::PathSegment)
    .defaults(default_binding),
    ResourceInfo::of::<api::ClusterRole>(GROUP, "v1", "ClusterRole", "clusterroles", "clusterrole")
        .named(NameRule::PathSegment),
    ResourceInfo::of::<api::RoleBinding>(GROUP, "v1", "RoleBinding", "rolebindings", "rolebinding")
        .namespaced()
        .named(NameRule::PathSegment)
        .defaults(default_binding),
    ResourceInfo::of::<api::Role>(GROUP, "v1", "Role", "roles", "role").namespaced().named(NameRule::PathSegment),
];

fn default_binding(binding: &mut Value) {
    if let Some(role) = binding.get_mut("roleRef")
        && role["apiGroup"].as_str().unwrap_or_default().is_empty()
    {
        role["apiGroup"] = json!(GROUP);
    }
    for subject in binding.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        let is_account = subject["kind"] == "ServiceAccount";
        if !is_account && subject["apiGroup"].as_str().unwrap_or_default().is_empty() {
            subject["apiGroup"] = json!(GROUP);
        }
    }
}
