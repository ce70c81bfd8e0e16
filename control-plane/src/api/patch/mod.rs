//! The four ways to patch an object, as pure functions on JSON: [`json`], [`merge`], [`strategic`] and server-side
//! [`apply`] (C3.10–C3.12). What a patch may change, admission and storage are not here.

pub mod apply;
mod fieldset;
mod strategic;

use json_patch::PatchOperation;
use serde_json::Value;

use super::openapi::types::{Type, Types};

/// The most operations that a JSON patch may have (C3.10).
const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;
/// The most values that the operations of one JSON patch may move and copy in all, and the most bytes of text in them.
/// Each copy of a copy is twice as large, so that a short patch could fill any memory.
const MAX_COPIED: usize = 3 << 20;
/// Nothing nests deeper; what does could not be read again, since a stack has an end.
const MAX_DEPTH: usize = 100;

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
    let mut patched = document.clone();
    let mut left = MAX_COPIED;
    for operation in patch.iter() {
        check_size(&patched, operation, &mut left)?;
        json_patch::patch_unsafe(&mut patched, std::slice::from_ref(operation))
            .map_err(|error| PatchError::Rejected(error.to_string()))?;
    }
    *document = patched;
    Ok(())
}

/// Whether an operation makes the document deeper than it may be, or has moved and copied too much.
fn check_size(document: &Value, operation: &PatchOperation, left: &mut usize) -> Result<(), PatchError> {
    let (value, path) = match operation {
        PatchOperation::Add(add) => (Some(&add.value), &add.path),
        PatchOperation::Replace(replace) => (Some(&replace.value), &replace.path),
        PatchOperation::Move(moved) => (document.pointer(moved.from.as_str()), &moved.path),
        PatchOperation::Copy(copied) => (document.pointer(copied.from.as_str()), &copied.path),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    // Without a value the operation fails by itself.
    let Some(value) = value else { return Ok(()) };
    let allowed = MAX_DEPTH.saturating_sub(path.count());
    fits(value, allowed, left)
        .then_some(())
        .ok_or_else(|| PatchError::Rejected(format!("{path}: the patch makes the object too large or too deep")))
}

/// Whether a value nests no deeper than `depth` and is no larger than what is left, which it takes.
fn fits(value: &Value, depth: usize, left: &mut usize) -> bool {
    let size = 1 + value.as_str().map_or(0, str::len);
    let Some(rest) = left.checked_sub(size) else { return false };
    *left = rest;
    let Some(depth) = depth.checked_sub(1) else { return false };
    match value {
        Value::Array(items) => items.iter().all(|item| fits(item, depth, left)),
        Value::Object(fields) => fields.iter().all(|(name, value)| {
            *left = left.saturating_sub(name.len());
            fits(value, depth, left)
        }),
        _ => true,
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_short_json_patch_cannot_fill_the_memory_or_the_stack() {
        // C3.10
        let before = json!({"data": {"a": "x".repeat(1000)}});
        let copy = |at: usize| json!({"op": "copy", "from": "/data", "path": format!("/data/b{at}")});
        let mut document = before.clone();
        let error = json(&mut document, (0..60).map(copy).collect()).unwrap_err();
        assert_eq!(error.code(), 422);
        assert_eq!(document, before);
        let down = [
            json!({"op": "add", "path": "/x", "value": {}}),
            json!({"op": "move", "from": "/a", "path": "/x/a"}),
            json!({"op": "move", "from": "/x", "path": "/a"}),
        ];
        let mut document = json!({"a": {}});
        let operations = down.iter().cycle().take(9999).cloned().collect();
        assert_eq!(json(&mut document, Value::Array(operations)).unwrap_err().code(), 422);
        let operations = down.iter().cycle().take(90).cloned().collect();
        json(&mut document, Value::Array(operations)).unwrap();
    }
}
