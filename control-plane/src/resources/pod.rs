//! Rules of this kind.

use super::field::FieldError;
use serde_json::Value;
pub(super) fn prepare_create(_object: &mut Value) {}
pub(super) fn validate_update(_new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}
pub(super) fn prepare_update(_new: &mut Value, _old: &Value) {}
