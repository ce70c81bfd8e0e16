//! Roles and bindings that every cluster has (C5.5, C5.14, C6.2, C6.3): stored at start, and put right where something
//! is missing from them. [`aggregation`] keeps the roles that are made of others.
//!
//! `policy.txt` has upstream's defaults, `kubeadm.txt` what kubeadm adds. A line is a role, a rule of the role above it
//! (verbs, groups, resources, names; `url` as the group: paths) or a binding; `read` and `write` stand for verbs.

pub(super) mod aggregation;

use serde_json::{Value, json};

use crate::api::{Cluster, DeleteOptions, Objects, WriteOptions};
use crate::auth::rule::{Rule, uncovered};
use crate::resources::status::StatusError;
use crate::resources::tree::{fill, items};

const GROUP: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const LABEL: &str = "rbac.authorization.k8s.io/";

/// A role or binding as it should be.
#[derive(Debug, Clone, PartialEq)]
struct Wanted {
    plural: &'static str,
    namespace: String,
    name: String,
    object: Value,
}

/// Makes roles and bindings that are missing, and adds what is missing from them. What was added to them stays.
pub async fn ensure_roles(cluster: &Cluster) -> Result<(), StatusError> {
    let defaults = parse(include_str!("policy.txt"), true);
    let all = defaults.into_iter().chain(parse(include_str!("kubeadm.txt"), false));
    // Together, since the store writes what comes at once in one transaction.
    let writes = all.map(|wanted| async move { ensure(&cluster.objects(GROUP, wanted.plural), &wanted).await });
    futures::future::try_join_all(writes).await.map(drop)
}

async fn ensure(objects: &Objects, wanted: &Wanted) -> Result<(), StatusError> {
    let (namespace, name) = (wanted.namespace.as_str(), wanted.name.as_str());
    let options = WriteOptions::default();
    let stored = match objects.get(namespace, name).await {
        Err(error) if error.is_not_found() => {
            return objects.create(namespace, wanted.object.clone(), &options).await.map(drop);
        }
        result => result?,
    };
    if stored["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return Ok(());
    }
    // The role of a binding cannot change, so another binding takes its place.
    if stored["roleRef"] != wanted.object["roleRef"] {
        tracing::warn!(name, "a default role binding pointed to another role; it is made anew");
        objects.delete(namespace, name, &DeleteOptions::default()).await?;
        return objects.create(namespace, wanted.object.clone(), &options).await.map(drop);
    }
    objects.modify(namespace, name, "", |object| complete(object, &wanted.object)).await.map(drop)
}

/// Adds to an object what it lacks; whether there was something.
fn complete(object: &mut Value, wanted: &Value) -> bool {
    let before = object.clone();
    for key in ["labels", "annotations"] {
        for (name, value) in wanted["metadata"][key].as_object().into_iter().flatten() {
            fill(&mut object["metadata"], key, json!({}));
            object["metadata"][key][name] = value.clone();
        }
    }
    if !wanted["aggregationRule"].is_null() {
        // The rules are its parts'.
        fill(object, "aggregationRule", wanted["aggregationRule"].clone());
    } else if !wanted["rules"].is_null() {
        let missing = uncovered(&Rule::list(&object["rules"]), &Rule::list(&wanted["rules"]));
        append(object, "rules", missing.iter().filter_map(|rule| serde_json::to_value(rule).ok()).collect());
    }
    let known: Vec<Value> = items(object, "subjects").cloned().collect();
    let missing = items(wanted, "subjects").filter(|subject| !known.contains(subject)).cloned().collect();
    append(object, "subjects", missing);
    *object != before
}

fn append(object: &mut Value, key: &str, more: Vec<Value>) {
    if more.is_empty() {
        return;
    }
    fill(object, key, json!([]));
    if let Some(list) = object[key].as_array_mut() {
        list.extend(more);
    }
}

/// Reads a policy; `default`: with the label and annotation of upstream's defaults.
fn parse(policy: &'static str, default: bool) -> Vec<Wanted> {
    let mut all: Vec<Wanted> = Vec::new();
    for line in policy.lines() {
        if let Some(rule) = line.strip_prefix("  ") {
            if let Some(role) = all.last_mut() {
                append(&mut role.object, "rules", vec![parse_rule(rule)]);
            }
            continue;
        }
        let mut words = line.split_whitespace();
        let (kind, place) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (namespace, name) = match kind {
            "role" | "binding" => place.split_once('/').unwrap_or(("", place)),
            _ => ("", place),
        };
        let mut metadata = json!({"name": name});
        if !namespace.is_empty() {
            metadata["namespace"] = json!(namespace);
        }
        if default {
            metadata["labels"] = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
            metadata["annotations"] = json!({AUTOUPDATE: "true"});
        }
        let (plural, kind, role_kind) = match kind {
            "clusterrole" => ("clusterroles", "ClusterRole", ""),
            "role" => ("roles", "Role", ""),
            "clusterbinding" => ("clusterrolebindings", "ClusterRoleBinding", "ClusterRole"),
            _ => ("rolebindings", "RoleBinding", "Role"),
        };
        let mut object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind});
        let mut role = name;
        let mut subjects = Vec::new();
        for word in words {
            match word.split_once('=') {
                Some(("label", label)) => metadata["labels"][format!("{LABEL}{label}")] = json!("true"),
                Some(("from", label)) => {
                    let selector = json!({"matchLabels": {format!("{LABEL}{label}"): "true"}});
                    object["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
                }
                Some((kind, name)) => subjects.push(subject(kind, name)),
                None => role = word,
            }
        }
        if !role_kind.is_empty() {
            object["roleRef"] = json!({"apiGroup": GROUP, "kind": role_kind, "name": role});
            append(&mut object, "subjects", subjects);
        }
        object["metadata"] = metadata;
        all.push(Wanted { plural, namespace: namespace.to_owned(), name: name.to_owned(), object });
    }
    all
}

fn subject(kind: &str, name: &str) -> Value {
    match kind {
        "account" => {
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
        }
        "user" => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
        _ => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
    }
}

fn parse_rule(line: &str) -> Value {
    let mut fields = line.split(' ');
    let mut list = || -> Vec<&str> { fields.next().map(|field| field.split(',').collect()).unwrap_or_default() };
    let mut verbs = Vec::new();
    for verb in list() {
        match verb {
            "read" => verbs.extend(["get", "list", "watch"]),
            "write" => verbs.extend(["create", "delete", "deletecollection", "patch", "update"]),
            one => verbs.push(one),
        }
    }
    let groups: Vec<&str> = list().into_iter().map(|group| if group == "core" { "" } else { group }).collect();
    let (what, names) = (list(), list());
    if groups == ["url"] {
        return json!({"verbs": verbs, "nonResourceURLs": what});
    }
    let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": what});
    if !names.is_empty() {
        rule["resourceNames"] = json!(names);
    }
    rule
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn of(plural: &str) -> Vec<Wanted> {
        let all = parse(include_str!("policy.txt"), true).into_iter().chain(parse(include_str!("kubeadm.txt"), false));
        all.filter(|wanted| wanted.plural == plural).collect()
    }

    #[test]
    fn every_line_of_the_policies_is_understood() {
        const VERBS: &str = "get list watch create update patch delete deletecollection proxy approve sign attest bind \
                             escalate impersonate use *";
        let roles: BTreeSet<(String, String)> =
            of("clusterroles").into_iter().chain(of("roles")).map(|w| (w.namespace, w.name)).collect();
        for role in of("clusterroles").into_iter().chain(of("roles")) {
            let rules = Rule::list(&role.object["rules"]);
            assert!(!rules.is_empty() || role.object["aggregationRule"].is_object() || role.name == "view", "{role:?}");
            assert_eq!(rules.len(), items(&role.object, "rules").count(), "{role:?}");
            for rule in rules {
                assert!(rule.verbs.iter().all(|verb| VERBS.split(' ').any(|v| v == verb)), "{role:?}");
                let is_path = !rule.non_resource_urls.is_empty();
                assert!(is_path != (!rule.api_groups.is_empty() && !rule.resources.is_empty()), "{role:?}");
                assert!(rule.non_resource_urls.iter().all(|url| url.starts_with('/') || url == "*"), "{role:?}");
            }
        }
        for binding in of("clusterrolebindings").into_iter().chain(of("rolebindings")) {
            let role = binding.object["roleRef"]["name"].as_str().unwrap().to_owned();
            assert!(roles.contains(&(binding.namespace.clone(), role)), "{binding:?}");
            assert!(
                items(&binding.object, "subjects").next().is_some() || binding.name == "system:node",
                "{binding:?}"
            );
        }
    }

    #[test]
    fn what_is_missing_is_added_and_what_was_added_stays() {
        // C5.14
        let wanted = of("clusterroles").into_iter().find(|w| w.name == "system:basic-user").unwrap().object;
        let mut stored = wanted.clone();
        assert!(!complete(&mut stored, &wanted));
        stored["rules"] = json!([wanted["rules"][1], {"verbs": ["get"], "nonResourceURLs": ["/mine"]}]);
        assert!(complete(&mut stored, &wanted));
        let rules = Rule::list(&stored["rules"]);
        assert_eq!(uncovered(&rules, &Rule::list(&wanted["rules"])), []);
        assert!(rules.iter().any(|rule| rule.non_resource_urls == ["/mine"]));
        let wanted = of("clusterrolebindings").into_iter().find(|w| w.name == "cluster-admin").unwrap().object;
        let mut stored = wanted.clone();
        stored["subjects"] = json!([subject("user", "eve")]);
        stored["metadata"]["labels"] = json!(null);
        assert!(complete(&mut stored, &wanted));
        assert_eq!(stored["subjects"], json!([subject("user", "eve"), subject("group", "system:masters")]));
        assert_eq!(stored["metadata"]["labels"], wanted["metadata"]["labels"]);
    }
}
