//! Rules of this kind.

use serde_json::Value;
pub(super) fn default_pod(_object: &mut Value) {}
