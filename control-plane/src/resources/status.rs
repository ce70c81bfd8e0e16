//! How a request fails: what becomes a `metav1.Status` (C3.20), with upstream's texts.

use serde_json::{Value, json};

use super::ResourceInfo;
use super::field::FieldError;

/// A failed request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct StatusError {
    /// HTTP status.
    pub code: u16,
    /// `NotFound`, `Conflict`, ….
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// What it is about; boxed, because failures are rare and results are everywhere.
    pub details: Option<Box<Details>>,
    /// For 410 on a list: how to go on (C3.3).
    pub continue_token: Option<String>,
}

/// What a failure is about.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// Group.
    pub group: String,
    /// Kind, or the plural where upstream writes that.
    pub kind: String,
    /// UID.
    pub uid: String,
    /// Reason, message and field.
    pub causes: Vec<(String, String, String)>,
    /// Seconds.
    pub retry_after: u32,
}

impl StatusError {
    /// A failure with no details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, continue_token: None }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            ..Details::default()
        }));
        self
    }

    /// Adds a cause.
    pub fn cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        let details = self.details.get_or_insert_default();
        details.causes.push((reason.to_owned(), message.to_owned(), field.to_owned()));
        self
    }

    /// Adds when to try again.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after = seconds;
        self
    }

    /// 404 `pods "x" not found`.
    pub fn not_found(info: &ResourceInfo, name: &str) -> Self {
        Self::not_found_named(info.group, info.plural, name)
    }

    /// 404 for a resource by its names.
    pub fn not_found_named(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(plural, group));
        Self::new(404, "NotFound", message).about(group, plural, name)
    }

    /// 404 for a path that does not exist.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 409 `pods "x" already exists`.
    pub fn already_exists(info: &ResourceInfo, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(info.plural, info.group));
        Self::new(409, "AlreadyExists", message).about(info.group, info.plural, name)
    }

    /// 409 `Operation cannot be fulfilled on pods "x": …`.
    pub fn conflict(info: &ResourceInfo, name: &str, why: &str) -> Self {
        let resource = qualified(info.plural, info.group);
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {resource} {name:?}: {why}")).about(
            info.group,
            info.plural,
            name,
        )
    }

    /// 409 with the text for a stale resourceVersion (C3.15).
    pub fn stale(info: &ResourceInfo, name: &str) -> Self {
        Self::conflict(
            info,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 `Pod "x" is invalid: spec.…: Required value`.
    pub fn invalid(info: &ResourceInfo, name: &str, errors: &[FieldError]) -> Self {
        Self::invalid_kind(info.group, info.kind, name, errors)
    }

    /// 422 for a kind by its names.
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut status = Self::new(422, "Invalid", format!("{} {name:?} is invalid: {list}", qualified(kind, group)))
            .about(group, kind, name);
        for error in errors {
            status = status.cause(error.reason(), &error.body(), &error.path);
        }
        status
    }

    /// 403 `pods "x" is forbidden: …`.
    pub fn forbidden(info: &ResourceInfo, name: &str, why: &str) -> Self {
        Self::forbidden_named(info.group, info.plural, name, why)
    }

    /// 403 by names; an empty name is left out, an empty resource, too.
    pub fn forbidden_named(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let resource = qualified(plural, group);
        let message = match (plural, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{resource} is forbidden: {why}"),
            _ => format!("{resource} {name:?} is forbidden: {why}"),
        };
        Self::new(403, "Forbidden", message).about(group, plural, name)
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// 410.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 500 `Internal error occurred: …`.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {why}")).cause("", &why.to_string(), "")
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504 of a resourceVersion that is not there yet (C3.2).
    pub fn future(wanted: u64, current: u64) -> Self {
        Self::new(504, "Timeout", format!("Timeout: Too large resource version: {wanted}, current: {current}"))
            .cause("ResourceVersionTooLarge", "Too large resource version", "")
            .retry_after(1)
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.reason == "NotFound"
    }

    /// Whether somebody else changed the object first.
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    /// Whether the object is there already.
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    /// As `metav1.Status`.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(token) = &self.continue_token {
            status["metadata"]["continue"] = json!(token);
        }
        if let Some(details) = &self.details {
            status["details"] = details.to_value();
        }
        status
    }
}

impl Details {
    /// As `metav1.StatusDetails`.
    pub fn to_value(&self) -> Value {
        let mut value = json!({});
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !text.is_empty() {
                value[key] = json!(text);
            }
        }
        if !self.causes.is_empty() {
            value["causes"] = self
                .causes
                .iter()
                .map(|(reason, message, field)| {
                    let mut cause = json!({});
                    for (key, text) in [("reason", reason), ("message", message), ("field", field)] {
                        if !text.is_empty() {
                            cause[key] = json!(text);
                        }
                    }
                    cause
                })
                .collect();
        }
        if self.retry_after > 0 {
            value["retryAfterSeconds"] = json!(self.retry_after);
        }
        value
    }
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}
