//! ClusterRoles that are made of others: their rules are those of the roles that their selectors find (C5.5).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stoker_model::selector::Selector;

use super::super::Context;
use super::super::informer::Informer;
use super::super::owner::labels_of;
use super::super::queue::{Key, Queue};
use super::GROUP;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

/// Registers callbacks and returns what starts the workers.
pub(in crate::controllers) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let roles = context.informers.of(GROUP, "clusterroles");
    let queue = Queue::default();
    let (of_role, all) = (queue.clone(), Arc::clone(&roles));
    // Which roles a change concerns depends on labels before and after; there are few that are made of others.
    roles.on_change(move |old, new| {
        if let Some(role) = new {
            of_role.add(Key::of(role));
        }
        let is_part = [old, new].into_iter().flatten().any(|role| !labels_of(role).is_empty());
        if is_part {
            let whole = all.list("").into_iter().filter(|role| !role["aggregationRule"].is_null());
            whole.for_each(|role| of_role.add(Key::of(&role)));
        }
    });
    Box::new(move |context| {
        queue.work("aggregation", 1, &context.stop, move |key| {
            let roles = Arc::clone(&roles);
            async move { reconcile(&roles, &key.name).await }
        });
    })
}

async fn reconcile(roles: &Informer, name: &str) -> Result<Option<Duration>, StatusError> {
    let Some(role) = roles.get("", name).filter(|role| !role["aggregationRule"].is_null()) else { return Ok(None) };
    let rules = aggregated(&role, &roles.list(""));
    let differs = |role: &Value| items(role, "rules").ne(rules.iter());
    if !differs(&role) {
        return Ok(None);
    }
    let change = |role: &mut Value| {
        let change = differs(role);
        if change {
            role["rules"] = json!(rules);
        }
        change
    };
    let written = match roles.objects.modify("", name, "", change).await {
        Err(error) if error.is_not_found() => return Ok(None),
        result => result?,
    };
    roles.wait_for(&written).await;
    Ok(None)
}

/// The rules of all roles that the selectors find, each once, in the order of the roles' names.
fn aggregated(whole: &Value, roles: &[Arc<Value>]) -> Vec<Value> {
    let selectors: Vec<Selector> = items(&whole["aggregationRule"], "clusterRoleSelectors")
        .filter_map(|selector| serde_json::from_value(selector.clone()).ok())
        .filter_map(|selector| Selector::of(&selector).ok())
        .collect();
    let mut rules: Vec<Value> = Vec::new();
    for selector in &selectors {
        for role in roles {
            let is_itself = text(&role["metadata"], "name") == text(&whole["metadata"], "name");
            if is_itself || !selector.matches(&labels_of(role)) {
                continue;
            }
            for rule in items(role, "rules") {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_has_each_rule_of_its_parts_once() {
        // C5.5
        let part = |name: &str, label: &str, verbs: &[&str]| {
            Arc::new(json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": verbs.iter()
                .map(|verb| json!({"verbs": [verb]})).collect::<Vec<_>>()}))
        };
        let whole = json!({"metadata": {"name": "whole", "labels": {"a": "true"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "true"}}, {"matchLabels": {"b": "true"}}]}});
        let roles =
            [part("one", "a", &["get", "list"]), part("other", "c", &["delete"]), part("two", "b", &["list", "watch"])];
        let verbs: Vec<Value> = aggregated(&whole, &roles).into_iter().map(|rule| rule["verbs"][0].clone()).collect();
        assert_eq!(verbs, ["get", "list", "watch"]);
    }
}
