//! `metadata` of every kind: what a client may write, names, ownership of fields by the server (C3.14, C3.15).

use serde_json::{Value, json};

use crate::clock;
use crate::resources::field::FieldError;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};
use crate::resources::{NameRule, ResourceInfo, format};

/// What generated names end in: no vowels, no look-alikes.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Names have 63 characters where a pod's host name comes from them; 5 are the suffix.
const GENERATED_BASE: usize = 58;

/// Five random characters.
pub(super) fn random_suffix() -> String {
    let random = uuid::Uuid::new_v4();
    random.as_bytes()[..5].iter().map(|byte| char::from(SUFFIX[usize::from(*byte) % SUFFIX.len()])).collect()
}

/// Fills in what the server decides of a new object.
pub(super) fn begin(info: &ResourceInfo, namespace: &str, object: &mut Value) -> Result<(), StatusError> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["apiVersion"] = json!(info.api_version());
    object["kind"] = json!(info.kind);
    check_namespace(info, namespace, object)?;
    let metadata = &mut object["metadata"];
    if !matches!(text(metadata, "resourceVersion"), "" | "0") {
        return Err(StatusError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let fields = metadata.as_object_mut().expect("it was made an object above");
    for key in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        fields.remove(key);
    }
    fields.insert("uid".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    fields.insert("creationTimestamp".to_owned(), json!(clock::seconds_text(clock::now())));
    if info.strategy.generation {
        fields.insert("generation".to_owned(), json!(1));
    }
    Ok(())
}

/// The object's namespace is the URL's; fills it in.
pub(super) fn check_namespace(info: &ResourceInfo, namespace: &str, object: &mut Value) -> Result<(), StatusError> {
    let metadata = &mut object["metadata"];
    if !info.namespaced {
        if !text(metadata, "namespace").is_empty() {
            let error = FieldError::forbidden("metadata.namespace", "not allowed on this type");
            return Err(StatusError::invalid(info, text(metadata, "name"), &[error]));
        }
        if let Some(fields) = metadata.as_object_mut() {
            fields.remove("namespace");
        }
        return Ok(());
    }
    if namespace.is_empty() {
        return Err(StatusError::bad_request("an empty namespace may not be set during creation"));
    }
    match text(metadata, "namespace") {
        "" => metadata["namespace"] = json!(namespace),
        same if same == namespace => {}
        _ => {
            return Err(StatusError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    Ok(())
}

/// Makes a name from `generateName`, if there is no name. Answers whether it did.
pub(super) fn generate_name(object: &mut Value) -> bool {
    let metadata = &mut object["metadata"];
    let base = text(metadata, "generateName");
    if !text(metadata, "name").is_empty() || base.is_empty() {
        return false;
    }
    let end = base.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= GENERATED_BASE).last();
    let name = format!("{}{}", &base[..end.unwrap_or(0)], random_suffix());
    metadata["name"] = json!(name);
    true
}

/// What is wrong with the metadata of any object.
pub(super) fn validate(info: &ResourceInfo, object: &Value) -> Vec<FieldError> {
    let metadata = &object["metadata"];
    let mut errors = Vec::new();
    let name = text(metadata, "name");
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    }
    let mut add = |path: &str, value: &str, faults: Vec<String>| {
        errors.extend(faults.into_iter().map(|fault| FieldError::invalid(path, value, fault)));
    };
    if !name.is_empty() {
        add("metadata.name", name, wrong_name(info.strategy.name, name));
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        add("metadata.labels", key, format::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        add("metadata.labels", value, format::label_value(value));
    }
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        size += key.len() + value.as_str().unwrap_or_default().len();
        add("metadata.annotations", key, format::qualified_name(&key.to_lowercase()));
    }
    if size > 256 * 1024 {
        errors.push(FieldError::too_long("metadata.annotations", 256 * 1024));
    }
    let mut controllers = 0;
    for (at, owner) in items(metadata, "ownerReferences").enumerate() {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, key).is_empty() {
                let path = format!("metadata.ownerReferences[{at}].{key}");
                errors.push(FieldError::invalid(path, "", "must not be empty"));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            metadata["ownerReferences"].clone(),
            "Only one reference can have Controller set to true",
        ));
    }
    errors
}

/// What is wrong with a name.
fn wrong_name(rule: NameRule, name: &str) -> Vec<String> {
    match rule {
        NameRule::Subdomain => format::subdomain(name),
        NameRule::Label => format::label(name),
        NameRule::Label1035 => format::label_1035(name),
        NameRule::PathSegment if name == "." || name == ".." => vec![format!("may not be '{name}'")],
        NameRule::PathSegment => ["/", "%"]
            .into_iter()
            .filter(|part| name.contains(part))
            .map(|part| format!("may not contain '{part}'"))
            .collect(),
    }
}

/// What an update may not change of the metadata; carries over what only the server writes.
pub(super) fn carry_over(info: &ResourceInfo, new: &mut Value, old: &Value) {
    new["apiVersion"] = json!(info.api_version());
    new["kind"] = json!(info.kind);
    if !new["metadata"].is_object() {
        new["metadata"] = json!({});
    }
    let metadata = new["metadata"].as_object_mut().expect("it was made an object above");
    metadata.remove("selfLink");
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "generation",
        "generateName",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
    ] {
        match &old["metadata"][key] {
            Value::Null => metadata.remove(key),
            kept => metadata.insert(key.to_owned(), kept.clone()),
        };
    }
    // Empty collections are not written, so that they do not make a difference.
    metadata.retain(|_, value| !matches!(value, Value::Null) && value != &json!({}) && value != &json!([]));
}

/// New finalizers on an object that is being deleted are refused.
pub(super) fn check_finalizers(new: &Value, old: &Value) -> Vec<FieldError> {
    if old["metadata"]["deletionTimestamp"].is_null() {
        return Vec::new();
    }
    let known: Vec<&Value> = items(&old["metadata"], "finalizers").collect();
    let added: Vec<String> = items(&new["metadata"], "finalizers")
        .filter(|finalizer| !known.contains(finalizer))
        .map(Value::to_string)
        .collect();
    if added.is_empty() {
        return Vec::new();
    }
    let detail = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        added.join(", ")
    );
    vec![FieldError::forbidden("metadata.finalizers", detail)]
}

/// Whether anything but metadata and status differs.
pub(super) fn spec_changed(new: &Value, old: &Value) -> bool {
    let keys = |object: &Value| -> Vec<String> {
        object.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
    };
    keys(new)
        .into_iter()
        .chain(keys(old))
        .any(|key| !matches!(key.as_str(), "metadata" | "status") && new.get(&key) != old.get(&key))
}
