//! Rules of this kind.

use super::field::FieldError;
use serde_json::Value;
pub(super) fn default_daemon_set(_object: &mut Value) {}
pub(super) fn default_deployment(_object: &mut Value) {}
pub(super) fn default_replica_set(_object: &mut Value) {}
pub(super) fn default_stateful_set(_object: &mut Value) {}
pub(super) fn default_cron_job(_object: &mut Value) {}
pub(super) fn default_job(_object: &mut Value) {}
pub(super) fn default_pod_template(_object: &mut Value) {}
pub(super) fn default_replication_controller(_object: &mut Value) {}
pub(super) fn validate(_object: &Value) -> Vec<FieldError> {
    Vec::new()
}
pub(super) fn validate_update(_new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}
pub(super) fn validate_stateful_set_update(_new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}
