//! Nobody gives rights that they do not have themselves (C5.2): roles, and bindings to roles, unless the verb `escalate`
//! or `bind` allows it.

use serde_json::Value;

use super::cluster::Core;
use crate::auth::identity::{Attributes, UserInfo};
use crate::auth::rule::{Rule, uncovered};
use crate::resources::status::StatusError;
use crate::resources::tree::text;
use crate::resources::{self, ResourceInfo};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Looks at a new role or binding, or at a changed one.
pub(super) async fn check(
    core: &Core,
    info: &ResourceInfo,
    new: &Value,
    old: Option<&Value>,
    user: &UserInfo,
) -> Result<(), StatusError> {
    if info.group != GROUP || user.groups.iter().any(|group| group == "system:masters") {
        return Ok(());
    }
    let same = |key: &str| old.is_some_and(|old| old[key] == new[key]);
    let (namespace, name) = (text(&new["metadata"], "namespace"), text(&new["metadata"], "name"));
    let ask = |verb: &str, resource: &str, name: &str| Attributes {
        user: user.clone(),
        verb: verb.to_owned(),
        group: GROUP.to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    };
    let rules = match info.plural {
        "roles" | "clusterroles" => {
            if same("rules") && same("aggregationRule") {
                return Ok(());
            }
            if core.allows(&ask("escalate", info.plural, name)).await {
                return Ok(());
            }
            let aggregates = |role: &Value| !role["aggregationRule"].is_null();
            if aggregates(new) || old.is_some_and(aggregates) {
                let held = held(core, user, namespace).await;
                if !uncovered(&held, &[Rule::everything(), Rule::every_path()]).is_empty() {
                    let why = "must have cluster-admin privileges to use an aggregationRule";
                    return Err(StatusError::forbidden(info, name, why));
                }
            }
            Rule::list(&new["rules"])
        }
        "rolebindings" | "clusterrolebindings" => {
            if same("roleRef") && same("subjects") {
                return Ok(());
            }
            let role = &new["roleRef"];
            let (plural, space) =
                if role["kind"] == "ClusterRole" { ("clusterroles", "") } else { ("roles", namespace) };
            if core.allows(&ask("bind", plural, text(role, "name"))).await {
                return Ok(());
            }
            let kind = resources::find(GROUP, plural).expect("`resources::rbac` has roles");
            let role_name = text(role, "name");
            let stored = core.find(kind, space, role_name).await?;
            Rule::list(&stored.ok_or_else(|| StatusError::not_found(kind, role_name))?["rules"])
        }
        _ => return Ok(()),
    };
    let mut missing: Vec<String> =
        uncovered(&held(core, user, namespace).await, &rules).iter().map(Rule::text).collect();
    if missing.is_empty() {
        return Ok(());
    }
    missing.sort();
    let groups: Vec<String> = user.groups.iter().map(|group| format!("{group:?}")).collect();
    let why = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        missing.join("\n")
    );
    Err(StatusError::forbidden(info, name, &why))
}

/// What the user may do there, as a SelfSubjectRulesReview tells.
async fn held(core: &Core, user: &UserInfo, namespace: &str) -> Vec<Rule> {
    let Some(authorizer) = core.authorizer.get() else { return Vec::new() };
    let told = authorizer.rules(user, namespace).await;
    let mut rules = Rule::list(&told["resourceRules"]);
    rules.extend(Rule::list(&told["nonResourceRules"]));
    rules
}
