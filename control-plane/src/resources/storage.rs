//! storage.k8s.io/v1 (C1.14).

use k8s_openapi::api::storage::v1 as api;
use serde_json::Value;

use super::field::{Errors, FieldError, Path};
use super::limits::immutable;
use super::tree::{fill, text};
use super::{ResourceInfo, STATUS, format};

const GROUP: &str = "storage.k8s.io";

pub(super) const TABLE: &[ResourceInfo] = &[
    ResourceInfo::of::<api::CSIDriver>(GROUP, "v1", "CSIDriver", "csidrivers", "csidriver").delete_returns_object(),
    ResourceInfo::of::<api::CSINode>(GROUP, "v1", "CSINode", "csinodes", "csinode").delete_returns_object(),
    ResourceInfo::of::<api::CSIStorageCapacity>(
        GROUP,
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacities",
        "csistoragecapacity",
    )
    .namespaced(),
    ResourceInfo::of::<api::StorageClass>(GROUP, "v1", "StorageClass", "storageclasses", "storageclass")
        .short(&["sc"])
        .delete_returns_object()
        .defaults(default_class)
        .validated(validate_class)
        .validated_update(validate_class_update),
    ResourceInfo::of::<api::VolumeAttachment>(GROUP, "v1", "VolumeAttachment", "volumeattachments", "volumeattachment")
        .with_status_only()
        .subresources(&[STATUS])
        .delete_returns_object(),
];

fn default_class(class: &mut Value) {
    fill(class, "reclaimPolicy", "Delete");
    fill(class, "volumeBindingMode", "Immediate");
}

fn validate_class(class: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    match text(class, "provisioner") {
        "" => errors.required(Path::new("provisioner"), ""),
        name => errors.faults(&Path::new("provisioner"), name, format::qualified_name(&name.to_lowercase())),
    }
    for (key, supported) in
        [("reclaimPolicy", ["Delete", "Retain"]), ("volumeBindingMode", ["Immediate", "WaitForFirstConsumer"])]
    {
        let value = text(class, key);
        if !supported.contains(&value) {
            errors.not_supported(Path::new(key), value, &supported);
        }
    }
    for (key, _) in class["parameters"].as_object().into_iter().flatten().filter(|(key, _)| key.is_empty()) {
        errors.invalid(Path::new("parameters"), key.as_str(), "field can not be empty.");
    }
    errors.0
}

/// Claims that are there were made by what the class says.
fn validate_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if new["parameters"] != old["parameters"] {
        errors.forbidden(Path::new("parameters"), "updates to parameters are forbidden.");
    }
    if new["provisioner"] != old["provisioner"] {
        errors.forbidden(Path::new("provisioner"), "updates to provisioner are forbidden.");
    }
    immutable(new, old, &["reclaimPolicy", "volumeBindingMode"], &mut errors);
    errors.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes_stay_what_they_are() {
        // C3.24
        let mut class = json!({"provisioner": "example.com/disk"});
        default_class(&mut class);
        assert_eq!(validate_class(&class), []);
        let mut other = class.clone();
        other["provisioner"] = json!("");
        other["reclaimPolicy"] = json!("Keep");
        let texts = |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            texts(validate_class(&other)),
            [
                "provisioner: Required value",
                "reclaimPolicy: Unsupported value: \"Keep\": supported values: \"Delete\", \"Retain\""
            ]
        );
        assert_eq!(
            texts(validate_class_update(&other, &class)),
            [
                "provisioner: Forbidden: updates to provisioner are forbidden.",
                "reclaimPolicy: Invalid value: \"Keep\": field is immutable"
            ]
        );
    }
}
