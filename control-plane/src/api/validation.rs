//! `fieldValidation`: what becomes of fields that no type knows, and of those that are there twice (C3.13).

use serde_json::Value;

use super::openapi::fields;
use crate::resources::ResourceInfo;
use crate::resources::field::FieldError;
use crate::resources::status::StatusError;

/// `fieldValidation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Ignore,
    Warn,
    Strict,
}

impl Mode {
    pub(super) fn parse(text: &str) -> Result<Self, StatusError> {
        match text {
            "Ignore" => Ok(Self::Ignore),
            "" | "Warn" => Ok(Self::Warn),
            "Strict" => Ok(Self::Strict),
            other => {
                let error = FieldError::not_supported("fieldValidation", other, &["Ignore", "Strict", "Warn"]);
                Err(StatusError::invalid_kind("meta.k8s.io", "CreateOptions", "", &[error]))
            }
        }
    }

    /// An error if strict, else the warnings to send.
    pub(super) fn check(
        self,
        info: &ResourceInfo,
        object: &Value,
        duplicates: Vec<String>,
    ) -> Result<Vec<String>, StatusError> {
        if self == Self::Ignore {
            return Ok(Vec::new());
        }
        let mut found = fields::unknown_in(object);
        found.extend(duplicates);
        if self == Self::Strict && !found.is_empty() {
            return Err(StatusError::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
                info.kind,
                info.version,
                info.kind,
                found.join(", ")
            )));
        }
        Ok(found)
    }
}
