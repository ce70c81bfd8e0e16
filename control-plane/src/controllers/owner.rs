//! Who owns an object: controller references, adoption and release.

use serde_json::{Value, json};

use crate::resources::tree::{items, text};

/// The one owner with `controller: true`.
pub(super) fn controller_of(object: &Value) -> Option<&Value> {
    items(&object["metadata"], "ownerReferences").find(|owner| owner["controller"] == true)
}

/// Whether `owner` is the controller of `object`.
pub(super) fn is_controlled_by(object: &Value, owner: &Value) -> bool {
    controller_of(object).is_some_and(|reference| reference["uid"] == owner["metadata"]["uid"])
}

/// The reference that makes `owner` the controller.
pub(super) fn controller_reference(owner: &Value) -> Value {
    json!({
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    })
}

/// Whether a graceful or finalized deletion is under way.
pub(super) fn is_being_deleted(object: &Value) -> bool {
    !text(&object["metadata"], "deletionTimestamp").is_empty()
}

/// Labels of an object.
pub(super) fn labels_of(object: &Value) -> stoker_model::selector::Labels {
    let labels = object["metadata"]["labels"].as_object();
    labels.into_iter().flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// The selector at `spec.selector` as an API object; `None` if it cannot be read.
pub(super) fn selector_of(object: &Value) -> Option<stoker_model::selector::Selector> {
    let selector = serde_json::from_value(object["spec"]["selector"].clone()).ok()?;
    stoker_model::selector::Selector::of(&selector).ok()
}
