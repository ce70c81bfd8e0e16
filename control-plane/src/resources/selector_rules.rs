//! What is wrong with labels and label selectors (C3.24).

use serde_json::Value;

use super::field::{Errors, Path};
use super::format;
use super::tree::{items, text};

/// Labels, or a map of labels to match.
pub(super) fn labels(labels: &Value, path: &Path, errors: &mut Errors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        errors.faults(path, key, format::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.faults(path, value, format::label_value(value));
    }
}

/// A `LabelSelector`; nothing is wrong with one that is not there.
pub(super) fn selector(selector: &Value, path: &Path, errors: &mut Errors) {
    labels(&selector["matchLabels"], &path.field("matchLabels"), errors);
    for (at, requirement) in items(selector, "matchExpressions").enumerate() {
        let path = path.field("matchExpressions").index(at);
        let values = items(requirement, "values").count();
        let operator = text(requirement, "operator");
        match operator {
            "In" | "NotIn" if values == 0 => {
                errors.required(path.field("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(path.field("values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.invalid(path.field("operator"), operator, "not a valid selector operator"),
        }
        let key = text(requirement, "key");
        errors.faults(&path.field("key"), key, format::qualified_name(key));
        label_values(requirement, &path, errors);
    }
}

/// The values of a requirement on labels.
pub(super) fn label_values(requirement: &Value, path: &Path, errors: &mut Errors) {
    for (at, value) in items(requirement, "values").enumerate() {
        let value = value.as_str().unwrap_or_default();
        errors.faults(&path.field("values").index(at), value, format::label_value(value));
    }
}
