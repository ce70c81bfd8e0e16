//! One rule of a role, and what follows from rules alone: what they allow, and what one set has that another has not.

use serde::{Deserialize, Serialize};

use super::identity::Attributes;

/// One rule of a role.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// `get`, `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    /// "" is core.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// `pods`, `pods/log`, `*/scale`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// `/metrics`, `/debug/*`.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

fn any(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

impl Rule {
    /// Everything that is a resource.
    pub fn everything() -> Self {
        let star = || vec!["*".to_owned()];
        Self { verbs: star(), api_groups: star(), resources: star(), ..Self::default() }
    }

    /// Every path that is none.
    pub fn every_path() -> Self {
        Self { verbs: vec!["*".to_owned()], non_resource_urls: vec!["*".to_owned()], ..Self::default() }
    }

    /// The rules in an API object's list.
    pub fn list(rules: &serde_json::Value) -> Vec<Self> {
        let rules = rules.as_array().into_iter().flatten();
        rules.filter_map(|rule| serde_json::from_value(rule.clone()).ok()).collect()
    }

    /// Whether it allows what was asked.
    pub fn grants(&self, asked: &Attributes) -> bool {
        if !any(&self.verbs, &asked.verb) {
            return false;
        }
        if !asked.is_resource() {
            return self.non_resource_urls.iter().any(|pattern| path_matches(pattern, &asked.path));
        }
        let full = if asked.subresource.is_empty() {
            asked.resource.clone()
        } else {
            format!("{}/{}", asked.resource, asked.subresource)
        };
        self.has_resource(&full)
            && any(&self.api_groups, &asked.group)
            && (self.resource_names.is_empty() || self.resource_names.contains(&asked.name))
    }

    fn has_resource(&self, resource: &str) -> bool {
        self.resources.iter().any(|pattern| {
            pattern == "*" || pattern == resource || {
                let sub = |text: &str| text.split_once('/').map(|(head, sub)| (head.to_owned(), sub.to_owned()));
                matches!((sub(pattern), sub(resource)), (Some((head, a)), Some((_, b))) if head == "*" && a == b)
            }
        })
    }

    /// Whether it allows all that a rule of one verb, group, resource and name, or one verb and path, allows.
    fn covers(&self, one: &Self) -> bool {
        let all = |mine: &[String], its: &[String]| its.iter().all(|item| any(mine, item));
        if !all(&self.verbs, &one.verbs) {
            return false;
        }
        if !one.non_resource_urls.is_empty() {
            let has = |path: &String| self.non_resource_urls.iter().any(|pattern| path_matches(pattern, path));
            return one.non_resource_urls.iter().all(has);
        }
        let names_fit = self.resource_names.is_empty()
            || (!one.resource_names.is_empty() && one.resource_names.iter().all(|n| self.resource_names.contains(n)));
        all(&self.api_groups, &one.api_groups)
            && one.resources.iter().all(|resource| self.has_resource(resource))
            && names_fit
    }

    /// The rule as rules of one verb, group, resource and name each, or of one verb and path.
    fn parts(&self) -> Vec<Self> {
        let one = |text: &String| vec![text.clone()];
        let mut parts = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                parts.push(Self { verbs: one(verb), non_resource_urls: one(url), ..Self::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let part =
                        Self { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Self::default() };
                    if self.resource_names.is_empty() {
                        parts.push(part.clone());
                    }
                    for name in &self.resource_names {
                        parts.push(Self { resource_names: one(name), ..part.clone() });
                    }
                }
            }
        }
        parts
    }

    /// As refusals show it (C5.2).
    pub fn text(&self) -> String {
        let list = |items: &[String]| {
            let quoted: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
            format!("[{}]", quoted.join(" "))
        };
        let mut parts = Vec::new();
        for (name, items) in [
            ("APIGroups", &self.api_groups),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ] {
            if !items.is_empty() {
                parts.push(format!("{name}:{}", list(items)));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }
}

/// What `wanted` allows and `held` does not, with the verbs of one resource together.
pub fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing: Vec<Rule> = Vec::new();
    for part in wanted.iter().flat_map(Rule::parts) {
        if held.iter().any(|rule| rule.covers(&part)) {
            continue;
        }
        let same = |rule: &&mut Rule| {
            rule.api_groups == part.api_groups
                && rule.resources == part.resources
                && rule.resource_names == part.resource_names
                && rule.non_resource_urls == part.non_resource_urls
        };
        match missing.iter_mut().find(same) {
            Some(rule) if !rule.verbs.contains(&part.verbs[0]) => rule.verbs.extend(part.verbs),
            Some(_) => {}
            None => missing.push(part),
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(value: serde_json::Value) -> Vec<Rule> {
        Rule::list(&value)
    }

    #[test]
    fn what_is_not_held_is_named() {
        // C5.2
        let held = rules(json!([
            {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/scale"]},
            {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["web"]},
            {"verbs": ["get"], "nonResourceURLs": ["/metrics", "/debug/*"]},
        ]));
        for (wanted, expected) in [
            (json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]), vec![]),
            (json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["things/scale"]}]), vec![]),
            (json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}]), vec![]),
            (json!([{"verbs": ["get"], "nonResourceURLs": ["/debug/pprof"]}]), vec![]),
            (
                json!([{"verbs": ["get", "delete", "create"], "apiGroups": ["", "apps"], "resources": ["pods"]}]),
                vec![
                    r#"{APIGroups:["apps"], Resources:["pods"], Verbs:["get" "delete" "create"]}"#,
                    r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "create"]}"#,
                ],
            ),
            (
                json!([{"verbs": ["get"], "apiGroups": ["apps"], "resources": ["deployments"]}]),
                vec![r#"{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}"#],
            ),
            (
                json!([{"verbs": ["get"], "nonResourceURLs": ["/*"]}]),
                vec![r#"{NonResourceURLs:["/*"], Verbs:["get"]}"#],
            ),
            (
                json!([{"verbs": ["*"], "apiGroups": [""], "resources": ["pods/log"]}]),
                vec![r#"{APIGroups:[""], Resources:["pods/log"], Verbs:["*"]}"#],
            ),
        ] {
            let missing: Vec<String> = uncovered(&held, &rules(wanted.clone())).iter().map(Rule::text).collect();
            assert_eq!(missing, expected, "{wanted}");
        }
    }
}
