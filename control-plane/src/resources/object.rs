//! Rules of the plain kinds of the core group: namespaces, nodes, ConfigMaps, Secrets, events, volumes.

use serde_json::{Value, json};

use super::field::FieldError;
use super::tree::{child, fill, fill_text, text};

/// ConfigMaps and Secrets hold at most so much.
const DATA_BYTES: usize = 1 << 20;

pub(super) fn default_namespace(namespace: &mut Value) {
    let name = text(&namespace["metadata"], "name").to_owned();
    if !name.is_empty() {
        let labels = child(&mut namespace["metadata"], "labels");
        labels["kubernetes.io/metadata.name"] = json!(name);
    }
}

pub(super) fn prepare_namespace(namespace: &mut Value) {
    namespace["spec"] = json!({"finalizers": ["kubernetes"]});
    namespace["status"] = json!({"phase": "Active"});
}

/// Only `namespaces/finalize` takes finalizers away.
pub(super) fn keep_namespace_finalizers(new: &mut Value, old: &Value) {
    new["spec"] = old["spec"].clone();
}

pub(super) fn default_node(node: &mut Value) {
    fill(node, "spec", json!({}));
}

pub(super) fn validate_node(node: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (at, taint) in super::tree::items(&node["spec"], "taints").enumerate() {
        if text(taint, "key").is_empty() {
            errors.push(FieldError::required(format!("spec.taints[{at}].key"), ""));
        }
        let effect = text(taint, "effect");
        if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            let supported = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
            errors.push(FieldError::not_supported(format!("spec.taints[{at}].effect"), effect, &supported));
        }
    }
    errors
}

pub(super) fn default_claim(claim: &mut Value) {
    fill_text(child(claim, "spec"), "volumeMode", "Filesystem");
}

pub(super) fn default_volume(volume: &mut Value) {
    let spec = child(volume, "spec");
    fill_text(spec, "persistentVolumeReclaimPolicy", "Retain");
    fill_text(spec, "volumeMode", "Filesystem");
}

pub(super) fn pending(object: &mut Value) {
    object["status"] = json!({"phase": "Pending"});
}

/// Nobody takes a claim away while a pod uses it (StorageObjectInUseProtection).
pub(super) fn prepare_claim(claim: &mut Value) {
    pending(claim);
    protect(claim, "kubernetes.io/pvc-protection");
}

/// Nobody takes a volume away while a claim has it (StorageObjectInUseProtection).
pub(super) fn prepare_volume(volume: &mut Value) {
    pending(volume);
    protect(volume, "kubernetes.io/pv-protection");
}

fn protect(object: &mut Value, finalizer: &str) {
    let finalizers = &mut object["metadata"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(all) if all.iter().any(|name| name == finalizer) => {}
        Some(all) => all.push(json!(finalizer)),
        None => *finalizers = json!([finalizer]),
    }
}

pub(super) fn default_secret(secret: &mut Value) {
    fill_text(secret, "type", "Opaque");
    // What was given as text is stored as bytes.
    let Some(texts) = secret.as_object_mut().and_then(|fields| fields.remove("stringData")) else { return };
    for (key, value) in texts.as_object().into_iter().flatten() {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
        child(secret, "data")[key] = json!(bytes);
    }
}

pub(super) fn validate_config_map(map: &Value) -> Vec<FieldError> {
    let mut errors = validate_keys(&map["data"], "data");
    errors.extend(validate_keys(&map["binaryData"], "binaryData"));
    for key in map["binaryData"].as_object().into_iter().flatten().map(|(key, _)| key) {
        if map["data"].get(key).is_some() {
            errors.push(FieldError::invalid(
                format!("data[{key}]"),
                key.as_str(),
                "duplicate of key present in binaryData",
            ));
        }
    }
    errors
}

fn validate_keys(data: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in data.as_object().into_iter().flatten() {
        size += value.as_str().unwrap_or_default().len();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if key.is_empty() || !key.chars().all(legal) || key == "." || key == ".." {
            let detail = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
            errors.push(FieldError::invalid(format!("{path}[{key}]"), key.as_str(), detail));
        }
    }
    if size > DATA_BYTES {
        errors.push(FieldError::too_long("", DATA_BYTES));
    }
    errors
}

pub(super) fn validate_secret(secret: &Value) -> Vec<FieldError> {
    let mut errors = validate_keys(&secret["data"], "data");
    let required: &[&str] = match text(secret, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        _ => &[],
    };
    for key in required {
        if secret["data"].get(*key).is_none() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
    errors
}

/// Data of what is immutable does not change, nor does it become mutable again (C3.24).
pub(super) fn validate_immutable_data(new: &Value, old: &Value) -> Vec<FieldError> {
    if old["immutable"] != true {
        return Vec::new();
    }
    let detail = "field is immutable when `immutable` is set";
    ["data", "binaryData", "immutable"]
        .into_iter()
        .filter(|key| new.get(*key) != old.get(*key))
        .map(|key| FieldError::forbidden(key, detail))
        .collect()
}

pub(super) fn validate_secret_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate_immutable_data(new, old);
    if new["type"] != old["type"] {
        errors.push(FieldError::invalid("type", new["type"].clone(), "field is immutable"));
    }
    errors
}

pub(super) fn validate_event(event: &Value) -> Vec<FieldError> {
    let (own, involved) = (text(&event["metadata"], "namespace"), text(&event["involvedObject"], "namespace"));
    let fits = if involved.is_empty() { matches!(own, "default" | "kube-system") } else { own == involved };
    if fits {
        return Vec::new();
    }
    vec![FieldError::invalid("involvedObject.namespace", involved, "does not match event.namespace")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immutable_data_stays() {
        // C3.24
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let new = json!({"immutable": true, "data": {"a": "2"}});
        assert_eq!(
            validate_immutable_data(&new, &old)[0].to_string(),
            "data: Forbidden: field is immutable when `immutable` is set"
        );
        assert_eq!(validate_immutable_data(&new, &json!({"data": {}})), []);
    }

    #[test]
    fn text_of_a_secret_becomes_bytes() {
        let mut secret = json!({"stringData": {"a": "b"}});
        default_secret(&mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "Yg=="}}));
    }
}
