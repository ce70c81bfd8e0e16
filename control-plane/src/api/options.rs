//! What a request's query and body say about how to do it.

use std::collections::HashMap;

use serde_json::Value;

use super::cluster::{DeleteOptions, Propagation};
use super::read::ListRequest;
use super::watching::WatchRequest;
use crate::resources::field::FieldError;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// The decoded query.
#[derive(Debug, Default, Clone)]
pub(super) struct Query(HashMap<String, String>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key, true), decode(value, true))
                })
                .collect(),
        )
    }

    pub(super) fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), "true" | "1" | "True")
    }

    fn optional_flag(&self, key: &str) -> Option<bool> {
        self.0.contains_key(key).then(|| self.flag(key))
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, StatusError> {
        match self.get(key) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                StatusError::bad_request(format!("unable to parse query parameter {key:?}: {text:?} is not a number"))
            }),
        }
    }

    pub(super) fn list(&self, namespace: &str) -> Result<ListRequest, StatusError> {
        Ok(ListRequest {
            namespace: namespace.to_owned(),
            label_selector: self.get("labelSelector").to_owned(),
            field_selector: self.get("fieldSelector").to_owned(),
            limit: self.number("limit")?.unwrap_or(0),
            continue_token: self.get("continue").to_owned(),
            resource_version: self.get("resourceVersion").to_owned(),
            version_match: self.get("resourceVersionMatch").to_owned(),
        })
    }

    pub(super) fn watch(&self, namespace: &str) -> Result<WatchRequest, StatusError> {
        Ok(WatchRequest {
            list: ListRequest { limit: 0, continue_token: String::new(), ..self.list(namespace)? },
            send_initial_events: self.optional_flag("sendInitialEvents"),
            bookmarks: self.flag("allowWatchBookmarks"),
        })
    }

    /// Seconds.
    pub(super) fn timeout(&self) -> Result<Option<u64>, StatusError> {
        self.number("timeoutSeconds")
    }

    /// `dryRun` of a write; anything but `All` is 422 (C3.13).
    pub(super) fn dry_run(&self) -> Result<bool, StatusError> {
        match self.get("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(wrong_dry_run(other)),
        }
    }

    /// Options of a delete: the query, and what the body says on top.
    pub(super) fn delete(&self, body: &Value) -> Result<DeleteOptions, StatusError> {
        let mut options = delete_options(body)?;
        options.grace_period_seconds = options.grace_period_seconds.or(self.number("gracePeriodSeconds")?);
        if options.propagation.is_none() {
            options.propagation = propagation(self.get("propagationPolicy"), self.optional_flag("orphanDependents"))?;
        }
        options.dry_run = options.dry_run || self.dry_run()?;
        Ok(options)
    }
}

fn wrong_dry_run(value: &str) -> StatusError {
    let error = FieldError::not_supported("dryRun", value, &["All"]);
    StatusError::invalid_kind("meta.k8s.io", "CreateOptions", "", &[error])
}

/// Percent-decoding; `plus` where a plus is a space.
pub(super) fn decode(text: &str, plus: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits: Vec<u8> = rest.clone().take(2).collect();
                let value = std::str::from_utf8(&digits).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                match value {
                    Some(value) if digits.len() == 2 => {
                        bytes.push(value);
                        rest.next();
                        rest.next();
                    }
                    _ => bytes.push(b'%'),
                }
            }
            b'+' if plus => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a DeleteOptions object asks for a dry run.
pub(super) fn is_dry_run(options: &Value) -> bool {
    options["dryRun"].as_array().is_some_and(|list| list.iter().any(|value| value == "All"))
}

/// Reads a DeleteOptions object (C3.16).
pub(super) fn delete_options(options: &Value) -> Result<DeleteOptions, StatusError> {
    if let Some(other) =
        options["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str).find(|value| *value != "All")
    {
        return Err(wrong_dry_run(other));
    }
    let preconditions = &options["preconditions"];
    let precondition = |key| Some(text(preconditions, key).to_owned()).filter(|text| !text.is_empty());
    Ok(DeleteOptions {
        grace_period_seconds: options["gracePeriodSeconds"].as_i64(),
        uid: precondition("uid"),
        resource_version: precondition("resourceVersion"),
        propagation: propagation(text(options, "propagationPolicy"), options["orphanDependents"].as_bool())?,
        dry_run: is_dry_run(options),
    })
}

fn propagation(policy: &str, orphan: Option<bool>) -> Result<Option<Propagation>, StatusError> {
    Ok(match (policy, orphan) {
        ("", None) => None,
        ("", Some(true)) | ("Orphan", _) => Some(Propagation::Orphan),
        ("", Some(false)) | ("Background", _) => Some(Propagation::Background),
        ("Foreground", _) => Some(Propagation::Foreground),
        (other, _) => {
            let supported = ["Background", "Foreground", "Orphan"];
            let error = FieldError::not_supported("propagationPolicy", other, &supported);
            return Err(StatusError::invalid_kind("meta.k8s.io", "DeleteOptions", "", &[error]));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded() {
        let query = Query::parse(Some("labelSelector=app%3Dweb%2Ctier+in+%28a%29&watch=true&limit=5&x=%zz"));
        assert_eq!(query.get("labelSelector"), "app=web,tier in (a)");
        assert!(query.flag("watch"));
        assert_eq!(query.list("").expect("a list").limit, 5);
        assert_eq!(query.get("x"), "%zz");
        assert!(Query::parse(Some("limit=x")).list("").is_err());
        assert!(Query::parse(Some("dryRun=Some")).dry_run().is_err());
    }
}
