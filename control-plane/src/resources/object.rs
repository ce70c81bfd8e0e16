//! Rules of the plain kinds of the core group: namespaces, nodes, ConfigMaps, Secrets, events, volumes.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::field::{Errors, FieldError, Path};
use super::format;
use super::tree::{child, fill, fill_text, is_set, items, text};

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
    const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let mut errors = Errors::default();
    let mut seen = HashSet::new();
    for (at, taint) in items(&node["spec"], "taints").enumerate() {
        let path = Path::new("spec.taints").index(at);
        let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        errors.faults(&path.field("key"), key, format::qualified_name(key));
        let faults = format::label_value(value);
        if !faults.is_empty() {
            errors.invalid(path.field("value"), value, faults.join(";"));
        }
        match effect {
            "" => errors.required(path.field("effect"), ""),
            effect if !EFFECTS.contains(&effect) => errors.not_supported(path.field("effect"), effect, &EFFECTS),
            _ => {}
        }
        if !seen.insert((key, effect)) {
            let mut error = FieldError::duplicate(path, taint.clone());
            "taints must be unique by key and effect pair".clone_into(&mut error.detail);
            errors.0.push(error);
        }
    }
    errors.0
}

/// What was assigned to a node stays.
pub(super) fn validate_node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (new, old) = (&new["spec"], &old["spec"]);
    if items(old, "podCIDRs").next().is_some() && new["podCIDRs"] != old["podCIDRs"] {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.forbidden(Path::new("spec.podCIDRs"), detail);
    }
    if !text(old, "providerID").is_empty() && new["providerID"] != old["providerID"] {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.forbidden(Path::new("spec.providerID"), detail);
    }
    errors.0
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
    let mut errors = Errors::default();
    let size = validate_keys(&map["data"], "data", false, &mut errors)
        + validate_keys(&map["binaryData"], "binaryData", true, &mut errors);
    for (key, _) in map["binaryData"].as_object().into_iter().flatten().filter(|(key, _)| is_set(&map["data"], key)) {
        errors.invalid(Path::new("data").entry(key), key.as_str(), "duplicate of key present in binaryData");
    }
    if size > DATA_BYTES {
        errors.0.push(FieldError::too_long("[]", DATA_BYTES));
    }
    errors.0
}

/// Keys, and how much they hold: bytes where the values are Base64.
fn validate_keys(data: &Value, path: &str, is_base64: bool, errors: &mut Errors) -> usize {
    let mut size = 0;
    for (key, value) in data.as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        size += if is_base64 { text.trim_end_matches('=').len() * 3 / 4 } else { text.len() };
        errors.faults(&Path::new(path).entry(key), key, format::data_key(key));
    }
    size
}

pub(super) fn validate_secret(secret: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (data, path) = (&secret["data"], Path::new("data"));
    if validate_keys(data, "data", true, &mut errors) > DATA_BYTES {
        errors.0.push(FieldError::too_long(path.clone(), DATA_BYTES));
    }
    let has = |key: &str| is_set(data, key);
    let mut need = |key: &str| {
        if !has(key) {
            errors.required(path.entry(key), "");
        }
    };
    match text(secret, "type") {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if text(&secret["metadata"]["annotations"], key).is_empty() {
                errors.required(Path::new("metadata.annotations").entry(key), "");
            }
        }
        "kubernetes.io/dockercfg" => {
            need(".dockercfg");
            json_object(data, ".dockercfg", &mut errors);
        }
        "kubernetes.io/dockerconfigjson" => {
            need(".dockerconfigjson");
            json_object(data, ".dockerconfigjson", &mut errors);
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            need("username");
            need("password");
        }
        "kubernetes.io/ssh-auth" if text(data, "ssh-privatekey").is_empty() => {
            errors.required(path.entry("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        _ => {}
    }
    errors.0
}

fn json_object(data: &Value, key: &str, errors: &mut Errors) {
    use base64::Engine;
    let Some(text) = data[key].as_str() else { return };
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        let path = Path::new("data").entry(key);
        errors.invalid(path, "<secret contents redacted>", error.to_string());
    }
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
