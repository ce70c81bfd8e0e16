//! Rules of this kind.

use super::field::FieldError;
use serde_json::Value;
pub(super) fn validate(_object: &Value) -> Vec<FieldError> {
    Vec::new()
}
