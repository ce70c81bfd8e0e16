//! Rules of this kind.

use super::field::FieldError;
use serde_json::Value;
pub(super) fn default_namespace(_object: &mut Value) {}
pub(super) fn default_node(_object: &mut Value) {}
pub(super) fn default_claim(_object: &mut Value) {}
pub(super) fn default_volume(_object: &mut Value) {}
pub(super) fn default_secret(_object: &mut Value) {}
pub(super) fn prepare_namespace(_object: &mut Value) {}
pub(super) fn pending(_object: &mut Value) {}
pub(super) fn validate_config_map(_object: &Value) -> Vec<FieldError> {
    Vec::new()
}
pub(super) fn validate_event(_object: &Value) -> Vec<FieldError> {
    Vec::new()
}
pub(super) fn validate_node(_object: &Value) -> Vec<FieldError> {
    Vec::new()
}
pub(super) fn validate_secret(_object: &Value) -> Vec<FieldError> {
    Vec::new()
}
pub(super) fn validate_immutable_data(_new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}
pub(super) fn validate_secret_update(_new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}
pub(super) fn keep_namespace_finalizers(_new: &mut Value, _old: &Value) {}
