//! Label and field selectors of a request (C3.8).

use serde_json::Value;
use stoker_model::selector::{Labels, Selector};

use super::sparse;
use crate::resources::status::StatusError;
use crate::resources::{ResourceInfo, tree};

/// What a list, watch or deletecollection is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    labels: Selector,
    fields: Vec<FieldTerm>,
    /// `metadata.name=x` was among the terms.
    pub(super) name: Option<String>,
    /// `metadata.namespace=x` was among the terms.
    pub(super) namespace: Option<String>,
}

#[derive(Clone, Debug)]
struct FieldTerm {
    path: &'static str,
    absent: &'static str,
    wanted: String,
    equal: bool,
}

impl Filter {
    pub(super) fn parse(info: &ResourceInfo, labels: &str, fields: &str) -> Result<Self, StatusError> {
        let labels = Selector::parse(labels)
            .map_err(|error| StatusError::bad_request(format!("unable to parse requirement: {error}")))?;
        let mut filter = Self { labels, ..Self::default() };
        for term in fields.split(',').map(str::trim).filter(|term| !term.is_empty()) {
            let (name, wanted, equal) = split(term).ok_or_else(|| {
                StatusError::bad_request(format!("invalid selector: '{fields}'; can't understand '{term}'"))
            })?;
            let (path, absent) = match name {
                "metadata.name" => ("metadata.name", ""),
                "metadata.namespace" => ("metadata.namespace", ""),
                _ => match info.fields.iter().find(|field| field.name == name) {
                    Some(field) => (field.path, field.absent),
                    None => return Err(unknown(info, name)),
                },
            };
            if equal && path == "metadata.name" {
                filter.name = Some(wanted.to_owned());
            }
            if equal && path == "metadata.namespace" {
                filter.namespace = Some(wanted.to_owned());
            }
            filter.fields.push(FieldTerm { path, absent, wanted: wanted.to_owned(), equal });
        }
        Ok(filter)
    }

    /// Whether everything matches, so that nothing has to be parsed.
    pub(super) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.fields.iter().all(|term| term.matches(object)) && self.matches_labels(object)
    }

    fn matches_labels(&self, object: &Value) -> bool {
        if self.labels.is_everything() {
            return true;
        }
        let labels: Labels = object["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect();
        self.labels.matches(&labels)
    }

    /// Whether stored bytes match.
    pub(super) fn matches_bytes(&self, stored: &[u8]) -> bool {
        if self.is_everything() {
            return true;
        }
        let labels = (!self.labels.is_everything()).then_some("metadata.labels");
        let paths: Vec<&str> = self.fields.iter().map(|term| term.path).chain(labels).collect();
        sparse::read(stored, &paths).is_ok_and(|object| self.matches(&object))
    }
}

impl FieldTerm {
    fn matches(&self, object: &Value) -> bool {
        let found = match tree::at(object, self.path) {
            None => self.absent == self.wanted,
            Some(Value::String(text)) => *text == self.wanted,
            Some(Value::Array(list)) => list.iter().any(|item| tree::text(item, "ip") == self.wanted),
            Some(other) => {
                let shown = other.to_string();
                shown == self.wanted
            }
        };
        found == self.equal
    }
}

fn split(term: &str) -> Option<(&str, &str, bool)> {
    if let Some((name, value)) = term.split_once("!=") {
        return Some((name, value, false));
    }
    term.split_once("==").or_else(|| term.split_once('=')).map(|(name, value)| (name, value, true))
}

fn unknown(info: &ResourceInfo, name: &str) -> StatusError {
    if info.fields.is_empty() {
        StatusError::bad_request(format!(
            "{name:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        ))
    } else {
        StatusError::bad_request(format!("field label not supported: {name}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources;

    #[test]
    fn fields_of_pods_select() {
        // C3.8
        let pods = resources::find("", "pods").expect("served");
        let pod = json!({
            "metadata": {"name": "a", "namespace": "n", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "hostNetwork": true},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        });
        for (labels, fields, expected) in [
            ("", "spec.nodeName=n1", true),
            ("", "spec.host==n1", true),
            ("", "spec.nodeName=n1,status.phase!=Running", false),
            ("", "spec.nodeName=n1,status.phase!=Failed", true),
            ("", "spec.hostNetwork=true", true),
            ("", "status.nominatedNodeName=", true),
            ("", "status.podIPs=10.0.0.1", true),
            ("", "metadata.name=a,metadata.namespace=n", true),
            ("app=web", "spec.nodeName=n1", true),
            ("app=db", "spec.nodeName=n1", false),
        ] {
            let filter = Filter::parse(pods, labels, fields).expect("a selector");
            assert_eq!(filter.matches(&pod), expected, "{labels} {fields}");
            let stored = serde_json::to_vec(&pod).expect("JSON");
            assert_eq!(filter.matches_bytes(&stored), expected, "{labels} {fields}");
        }
        let error = Filter::parse(pods, "", "spec.containers=x").expect_err("no such field");
        assert_eq!(error.message, "field label not supported: spec.containers");
        let maps = resources::find("", "configmaps").expect("served");
        let error = Filter::parse(maps, "", "data=x").expect_err("no such field");
        assert_eq!(
            error.message,
            "\"data\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
    }
}
