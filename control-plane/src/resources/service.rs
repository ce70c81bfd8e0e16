//! Rules of this kind.

use super::field::FieldError;
use serde_json::Value;
pub(super) fn default_endpoint_slice(_object: &mut Value) {}
pub(super) fn default_endpoints(_object: &mut Value) {}
pub(super) fn default_service(_object: &mut Value) {}
pub(super) fn validate(_object: &Value) -> Vec<FieldError> {
    Vec::new()
}
pub(super) fn validate_update(_new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}
pub(super) fn keep_allocations(_new: &mut Value, _old: &Value) {}
