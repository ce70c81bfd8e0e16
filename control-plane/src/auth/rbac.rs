//! What stored Roles and ClusterRoles grant through their bindings (C5.2).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::identity::{Attributes, Decision, UserInfo};
use super::rule::Rule;
use super::{Lookup, LookupError};

/// The API group of roles and bindings.
const GROUP: &str = "rbac.authorization.k8s.io";

/// A role as bound to a user.
struct Granted {
    rules: Vec<Rule>,
    /// For reviews: `ClusterRoleBinding "b" of ClusterRole "r" to Group "g"`.
    by: String,
}

/// Decides by everything that is bound to the user.
pub(super) async fn decide(asked: &Attributes, lookup: &dyn Lookup) -> Result<Decision, LookupError> {
    let granted = granted(&asked.user, &asked.namespace, lookup).await?;
    let allowing = granted.iter().find(|granted| granted.rules.iter().any(|rule| rule.grants(asked)));
    Ok(match allowing {
        Some(granted) => Decision::Allow(format!("RBAC: allowed by {}", granted.by)),
        None => Decision::NoOpinion(String::new()),
    })
}

/// The `status` of a SelfSubjectRulesReview.
pub(super) async fn rules_status(user: &UserInfo, namespace: &str, lookup: &dyn Lookup) -> Result<Value, LookupError> {
    let (mut resource, mut path) = (Vec::new(), Vec::new());
    let stored = granted(user, namespace, lookup).await?.into_iter().flat_map(|g| g.rules);
    for rule in stored {
        if !rule.resources.is_empty() {
            let mut entry = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
            if !rule.resource_names.is_empty() {
                entry["resourceNames"] = json!(rule.resource_names);
            }
            resource.push(entry);
        }
        if !rule.non_resource_urls.is_empty() {
            path.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    Ok(json!({"resourceRules": resource, "nonResourceRules": path, "incomplete": false}))
}

async fn granted(user: &UserInfo, namespace: &str, lookup: &dyn Lookup) -> Result<Vec<Granted>, LookupError> {
    let mut bindings = lookup.list(GROUP, "clusterrolebindings", None).await?;
    let cluster_wide = bindings.len();
    if !namespace.is_empty() {
        bindings.extend(lookup.list(GROUP, "rolebindings", Some(namespace)).await?);
    }
    let mut all = Vec::new();
    let mut roles: BTreeMap<(bool, String), Vec<Rule>> = BTreeMap::new();
    for (index, binding) in bindings.iter().enumerate() {
        let own_namespace = binding["metadata"]["namespace"].as_str().unwrap_or_default();
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        let Some(subject) = subjects.into_iter().find(|s| is_subject(s, user, own_namespace)) else { continue };
        let kind = binding["roleRef"]["kind"].as_str().unwrap_or_default();
        let name = binding["roleRef"]["name"].as_str().unwrap_or_default().to_owned();
        let of_cluster = kind == "ClusterRole";
        let key = (of_cluster, name.clone());
        if !roles.contains_key(&key) {
            let (plural, namespace) = if of_cluster { ("clusterroles", None) } else { ("roles", Some(own_namespace)) };
            let role = lookup.get(GROUP, plural, namespace, &name).await?.unwrap_or_default();
            roles.insert(key.clone(), Rule::list(&role["rules"]));
        }
        let binding_kind = if index < cluster_wide { "ClusterRoleBinding" } else { "RoleBinding" };
        let binding_name = binding["metadata"]["name"].as_str().unwrap_or_default();
        let binding_name =
            if own_namespace.is_empty() { binding_name.to_owned() } else { format!("{binding_name}/{own_namespace}") };
        let subject_kind = subject["kind"].as_str().unwrap_or_default();
        let mut subject_name = subject["name"].as_str().unwrap_or_default().to_owned();
        if subject_kind == "ServiceAccount" {
            let of = subject["namespace"].as_str().unwrap_or(own_namespace);
            subject_name = format!("{subject_name}/{of}");
        }
        all.push(Granted {
            rules: roles[&key].clone(),
            by: format!("{binding_kind} \"{binding_name}\" of {kind} \"{name}\" to {subject_kind} \"{subject_name}\""),
        });
    }
    Ok(all)
}

fn is_subject(subject: &Value, user: &UserInfo, namespace: &str) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => name == user.name,
        Some("Group") => user.groups.iter().any(|g| g == name),
        Some("ServiceAccount") => {
            let of = subject["namespace"].as_str().unwrap_or(namespace);
            user.name == format!("system:serviceaccount:{of}:{name}")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::super::tests::Stored;
    use super::*;

    fn stored() -> Stored {
        let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
        let listing = role("listing", json!([{"verbs": ["list"], "apiGroups": ["apps"], "resources": ["*"]}]));
        let bind = |name: &str, namespace: Option<&str>, role_kind: &str, role: &str, subject: Value| {
            json!({"metadata": {"name": name, "namespace": namespace}, "subjects": [subject],
                   "roleRef": {"kind": role_kind, "name": role}})
        };
        let mut reader = role(
            "reader",
            json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"], "resourceNames": ["a"]},
                   {"verbs": ["get"], "nonResourceURLs": ["/metrics", "/debug/*"]}]),
        );
        reader["metadata"]["namespace"] = json!("shop");
        let cluster_reader = json!({"metadata": {"name": "reader"}, "rules": reader["rules"]});
        Stored(vec![
            ("roles", reader),
            ("clusterroles", cluster_reader),
            ("clusterroles", listing),
            ("rolebindings", bind("b", Some("shop"), "Role", "reader", json!({"kind": "User", "name": "ann"}))),
            ("clusterrolebindings", bind("c", None, "ClusterRole", "reader", json!({"kind": "Group", "name": "ops"}))),
            (
                "clusterrolebindings",
                bind(
                    "d",
                    None,
                    "ClusterRole",
                    "listing",
                    json!({"kind": "ServiceAccount", "name": "ci", "namespace": "shop"}),
                ),
            ),
        ])
    }

    fn user(name: &str, group: &str) -> UserInfo {
        UserInfo { name: name.into(), groups: vec![group.into()], ..UserInfo::default() }
    }

    #[track_caller]
    fn check(user: &UserInfo, verb: &str, what: &str, namespace: &str, name: &str, expected: Option<&str>) {
        let path = if what.starts_with('/') { what } else { "" };
        let resource = if path.is_empty() { what } else { "" };
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        let asked = Attributes {
            user: user.clone(),
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            path: path.into(),
            ..Attributes::default()
        };
        let reason = match decide(&asked, &stored()).now_or_never().unwrap().unwrap() {
            Decision::Allow(reason) => Some(reason),
            _ => None,
        };
        assert_eq!(reason.as_deref(), expected, "{asked:?}");
    }

    #[test]
    fn bindings_grant_what_their_roles_say_and_nothing_else() {
        let ann = user("ann", "staff");
        let by_role = Some(r#"RBAC: allowed by RoleBinding "b/shop" of Role "reader" to User "ann""#);
        check(&ann, "get", "pods", "shop", "a", by_role);
        check(&ann, "get", "pods/log", "shop", "a", by_role);
        check(&ann, "get", "pods/exec", "shop", "a", None);
        check(&ann, "get", "pods", "shop", "b", None);
        check(&ann, "list", "pods", "shop", "", None);
        check(&ann, "get", "pods", "bank", "a", None);
        check(&ann, "get", "pods.metrics.k8s.io", "shop", "a", None);
    }

    #[test]
    fn groups_accounts_and_paths() {
        let by_group = Some(r#"RBAC: allowed by ClusterRoleBinding "c" of ClusterRole "reader" to Group "ops""#);
        let bob = user("bob", "ops");
        check(&bob, "get", "pods", "anywhere", "a", by_group);
        check(&bob, "get", "/debug/pprof", "", "", by_group);
        check(&bob, "get", "/other", "", "", None);
        let ci = user("system:serviceaccount:shop:ci", "system:serviceaccounts");
        let by_account =
            Some(r#"RBAC: allowed by ClusterRoleBinding "d" of ClusterRole "listing" to ServiceAccount "ci/shop""#);
        check(&ci, "list", "deployments.apps", "x", "", by_account);
        check(&ci, "create", "deployments.apps", "x", "", None);
        let stranger = user("system:anonymous", "system:unauthenticated");
        check(&stranger, "get", "/version", "", "", None);
    }
}
