//! The four ways to patch an object, as pure functions on JSON: [`json`], [`merge`], [`strategic`] and server-side
//! [`apply`] (C3.10–C3.12). What a patch may change, admission and storage are not here.

pub mod apply;
mod fieldset;
mod strategic;

use serde_json::Value;

use super::openapi::types::{Type, Types};

/// The most operations that a JSON patch may have (C3.10).
const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// Why a patch cannot be applied. The texts are those of the upstream API server, since clients print them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed: 400 BadRequest.
    #[error("{0}")]
    Malformed(String),
    /// More operations than the server takes: 413 RequestEntityTooLarge.
    #[error("The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
    /// The patch does not fit the object: 422 Invalid. Upstream hides the reason; we tell it.
    #[error("the server rejected our request due to an error in our request: {0}")]
    Rejected(String),
}

impl PatchError {
    /// The HTTP status code of the answer.
    pub fn code(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::TooManyOperations(_) => 413,
            Self::Rejected(_) => 422,
        }
    }
}

/// Applies a JSON patch (RFC 6902). The document is unchanged if an operation fails.
pub fn json(document: &mut Value, operations: Value) -> Result<(), PatchError> {
    if let Some(count) = operations.as_array().map(Vec::len)
        && count > MAX_JSON_PATCH_OPERATIONS
    {
        return Err(PatchError::TooManyOperations(count));
    }
    let patch: json_patch::Patch = serde_json::from_value(operations)
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    json_patch::patch(document, &patch).map_err(|error| PatchError::Rejected(error.to_string()))
}

/// Applies a JSON merge patch (RFC 7386).
pub fn merge(document: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("error decoding patch: a merge patch must be a JSON object".to_owned()));
    }
    json_patch::merge(document, patch);
    Ok(())
}

/// Applies a strategic merge patch with all its directives (C3.11). `root` is the type of the document.
///
/// What the type does not know is merged as JSON: whether unknown fields are an error is decided by the field check.
pub fn strategic(document: &mut Value, patch: Value, types: &Types, root: &Type) -> Result<(), PatchError> {
    strategic::merge(document, patch, types, root)
}
