//! What somebody may do: `system:masters` everything, nodes what the Node rules say,
//! everybody what RBAC grants; nothing else (C5.2).

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::identity::{Attributes, Authorizer, Decision, UserInfo};
use super::{Lookup, LookupError};
use super::{node_rules, rbac};

/// The group that may do everything, whatever is stored.
const ADMINISTRATORS: &str = "system:masters";

/// Decides what users may do, on stored roles and pods.
#[derive(Clone)]
pub struct ClusterAuthorizer {
    lookup: Arc<dyn Lookup>,
}

impl std::fmt::Debug for ClusterAuthorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterAuthorizer").finish_non_exhaustive()
    }
}

impl ClusterAuthorizer {
    /// On these stored objects.
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        Self { lookup }
    }

    async fn decide(&self, asked: &Attributes) -> Result<Decision, LookupError> {
        if is_administrator(&asked.user) {
            return Ok(Decision::Allow(String::new()));
        }
        let mut refusal = String::new();
        if let Some(node) = node_name(&asked.user) {
            match node_rules::decide(node, asked, self.lookup.as_ref()).await? {
                Decision::NoOpinion(reason) => refusal = reason,
                decided => return Ok(decided),
            }
        }
        Ok(match rbac::decide(asked, self.lookup.as_ref()).await? {
            Decision::NoOpinion(_) => Decision::NoOpinion(refusal),
            decided => decided,
        })
    }
}

#[async_trait]
impl Authorizer for ClusterAuthorizer {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        self.decide(attributes).await.unwrap_or_else(|error| {
            tracing::error!(%error, user = attributes.user.name, "refused a request that could not be decided");
            Decision::NoOpinion(error.to_string())
        })
    }

    async fn rules(&self, user: &UserInfo, namespace: &str) -> Value {
        if is_administrator(user) {
            return json!({
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": false,
            });
        }
        let incomplete = |reason: &str| json!({"resourceRules": [], "nonResourceRules": [], "incomplete": true, "evaluationError": reason});
        let rules = rbac::rules_status(user, namespace, self.lookup.as_ref()).await;
        let mut rules = rules.unwrap_or_else(|error| incomplete(&error.to_string()));
        if node_name(user).is_some() {
            rules["incomplete"] = json!(true);
            rules["evaluationError"] = json!("node authorizer does not support user rule resolution");
        }
        rules
    }
}

fn is_administrator(user: &UserInfo) -> bool {
    user.groups.iter().any(|group| group == ADMINISTRATORS)
}

/// The node's name, if the user is a node's agent.
fn node_name(user: &UserInfo) -> Option<&str> {
    let in_group = user.groups.iter().any(|g| g == "system:nodes");
    user.name.strip_prefix("system:node:").filter(|_| in_group)
}

/// The message of a 403 (C3.20).
pub fn forbidden_message(asked: &Attributes, reason: &str) -> String {
    let (user, verb) = (&asked.user.name, &asked.verb);
    let mut message = if asked.is_resource() {
        let full_resource = if asked.subresource.is_empty() {
            asked.resource.clone()
        } else {
            format!("{}/{}", asked.resource, asked.subresource)
        };
        let group = if asked.group.is_empty() { String::new() } else { format!(".{}", asked.group) };
        let object = if asked.name.is_empty() { String::new() } else { format!(" \"{}\"", asked.name) };
        let scope = if asked.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", asked.namespace)
        };
        format!(
            "{}{group}{object} is forbidden: User \"{user}\" cannot {verb} resource \"{full_resource}\" in API group \"{}\" {scope}",
            asked.resource, asked.group
        )
    } else {
        format!("forbidden: User \"{user}\" cannot {verb} path \"{}\"", asked.path)
    };
    if !reason.is_empty() {
        message.push_str(": ");
        message.push_str(reason);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_upstream() {
        // C3.20
        let user = UserInfo { name: "x".into(), ..UserInfo::default() };
        let asked = Attributes {
            user,
            verb: "get".into(),
            resource: "pods".into(),
            namespace: "y".into(),
            name: "p".into(),
            ..Attributes::default()
        };
        assert_eq!(
            forbidden_message(&asked, ""),
            r#"pods "p" is forbidden: User "x" cannot get resource "pods" in API group "" in the namespace "y""#
        );
        let asked = Attributes {
            group: "apps".into(),
            resource: "deployments".into(),
            subresource: "scale".into(),
            namespace: String::new(),
            name: String::new(),
            ..asked
        };
        assert_eq!(
            forbidden_message(&asked, ""),
            r#"deployments.apps is forbidden: User "x" cannot get resource "deployments/scale" in API group "apps" at the cluster scope"#
        );
        let asked = Attributes { resource: String::new(), path: "/metrics".into(), ..asked };
        assert_eq!(forbidden_message(&asked, ""), r#"forbidden: User "x" cannot get path "/metrics""#);
    }
}
