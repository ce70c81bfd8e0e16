//! What is wrong with PersistentVolumes and their claims, and what of them may change (C3.24).

use serde_json::Value;
use stoker_model::quantity::Milli;

use super::field::{Errors, FieldError, Path};
use super::pod_rules::{driver, node_selector, quantity, required, validate_claim_spec};
use super::quantities::{canonicalise, canonicalise_list, parse};
use super::tree::{child, fill_text, is_set, items, text};
use super::{format, volume_sources};

const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// What of a volume's spec is not its source.
const NO_SOURCE: [&str; 10] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
    "sourceNodeAffinity",
];

pub(super) fn default_claim(claim: &mut Value) {
    let spec = child(claim, "spec");
    fill_text(spec, "volumeMode", "Filesystem");
    if let Some(resources) = spec.get_mut("resources") {
        canonicalise(resources);
    }
}

pub(super) fn default_volume(volume: &mut Value) {
    let spec = child(volume, "spec");
    fill_text(spec, "persistentVolumeReclaimPolicy", "Retain");
    fill_text(spec, "volumeMode", "Filesystem");
    if let Some(capacity) = spec.get_mut("capacity") {
        canonicalise_list(capacity);
    }
    if let Some(path) = spec.get_mut("hostPath").filter(|path| path.is_object()) {
        super::tree::fill(path, "type", "");
    }
}

pub(super) fn validate_claim(claim: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    validate_claim_spec(&claim["spec"], &Path::new("spec"), &mut errors);
    errors.0
}

/// A claim's spec stays, but for the volume that it gets, and for its size and attributes once it is bound.
pub(super) fn validate_claim_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let class = |claim: &Value| claim["metadata"]["annotations"][OLD_CLASS].clone();
    if class(new) != class(old) {
        let path = Path::new("metadata.annotations").field(OLD_CLASS);
        errors.invalid(path, class(new), "field is immutable");
    }
    let bound = new["status"]["phase"] == "Bound";
    let (mut spec, was) = (new["spec"].clone(), &old["spec"]);
    let mut keep = |pointer: &[&str]| {
        let kept = pointer.iter().fold(was, |value, key| &value[*key]).clone();
        let Some((last, place)) = pointer.split_last() else { return };
        let holder = place.iter().try_fold(&mut spec, |value, key| value.get_mut(*key));
        let Some(holder) = holder.and_then(Value::as_object_mut) else { return };
        if kept.is_null() {
            holder.remove(*last);
        } else {
            holder.insert((*last).to_owned(), kept);
        }
    };
    if text(was, "volumeName").is_empty() {
        keep(&["volumeName"]);
    }
    // One that was made before there was a default class may be given one.
    if !is_set(was, "storageClassName") && class(old).is_null() {
        keep(&["storageClassName"]);
    }
    if bound {
        keep(&["resources", "requests", "storage"]);
        keep(&["volumeAttributesClassName"]);
    }
    if spec != *was {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n";
        errors.forbidden(Path::new("spec"), detail);
    }
    let size = |spec: &Value| parse(&spec["resources"]["requests"]["storage"]).unwrap_or_default();
    let has = parse(&old["status"]["capacity"]["storage"]).unwrap_or_default();
    if size(&new["spec"]) < size(was) && size(&new["spec"]) <= has {
        let path = Path::new("spec.resources.requests.storage");
        errors.forbidden(path, "field can not be less than status.capacity");
    }
    if new["spec"]["volumeMode"] != was["volumeMode"] {
        errors.invalid(Path::new("volumeMode"), new["spec"]["volumeMode"].clone(), "field is immutable");
    }
    errors.0
}

fn sources(spec: &Value) -> impl Iterator<Item = &str> {
    let keys = spec.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    keys.map(|(key, _)| key.as_str()).filter(|key| !NO_SOURCE.contains(key))
}

pub(super) fn validate_volume(volume: &Value) -> Vec<FieldError> {
    const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let (spec, path) = (&volume["spec"], Path::new("spec"));
    let mut errors = Errors::default();
    let modes: Vec<&str> = items(spec, "accessModes").filter_map(Value::as_str).collect();
    let place = path.field("accessModes");
    if modes.is_empty() {
        errors.required(place.clone(), "");
    }
    for mode in modes.iter().filter(|mode| !MODES.contains(mode)) {
        errors.not_supported(place.clone(), *mode, &MODES);
    }
    if modes.contains(&"ReadWriteOncePod") && modes.iter().any(|m| *m != "ReadWriteOncePod" && MODES.contains(m)) {
        errors.forbidden(place, "may not use ReadWriteOncePod with other access modes");
    }
    let capacity = spec["capacity"].as_object();
    let place = path.field("capacity");
    if capacity.is_none_or(|amounts| amounts.is_empty()) {
        errors.required(place.clone(), "");
    }
    if capacity.is_none_or(|amounts| amounts.len() != 1 || !amounts.contains_key("storage")) {
        errors.not_supported(place.clone(), spec["capacity"].clone(), &["storage"]);
    }
    for (name, amount) in capacity.into_iter().flatten() {
        let place = place.entry(name);
        if quantity(name, amount, &place, &mut errors).is_some_and(|amount| amount <= Milli::ZERO) {
            errors.invalid(place, amount.clone(), "must be greater than zero");
        }
    }
    let policy = text(spec, "persistentVolumeReclaimPolicy");
    if !matches!(policy, "Delete" | "Recycle" | "Retain") {
        let supported = ["Delete", "Recycle", "Retain"];
        errors.not_supported(path.field("persistentVolumeReclaimPolicy"), policy, &supported);
    }
    let affinity = &spec["nodeAffinity"];
    if !affinity.is_null() {
        let place = path.field("nodeAffinity").field("required");
        if affinity["required"].is_null() {
            errors.required(place, "must specify required node constraints");
        } else {
            node_selector(&affinity["required"], &place, &mut errors);
        }
    }
    source(spec, &path, &mut errors);
    if spec["hostPath"]["path"] == "/" && policy == "Recycle" {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errors.forbidden(path.field("persistentVolumeReclaimPolicy"), detail);
    }
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        errors.faults(&path.field("storageClassName"), class, format::subdomain(class));
    }
    if let Some(mode) = spec["volumeMode"].as_str().filter(|mode| !matches!(*mode, "Block" | "Filesystem")) {
        errors.not_supported(path.field("volumeMode"), mode, &["Block", "Filesystem"]);
    }
    errors.0
}

fn source(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut any = false;
    for kind in sources(spec) {
        if any {
            errors.forbidden(path.field(kind), "may not specify more than 1 volume type");
            continue;
        }
        any = true;
        let (source, place) = (&spec[kind], path.field(kind));
        match kind {
            "hostPath" => {
                required(source, &["path"], &place, errors);
                if text(source, "path").split('/').any(|step| step == "..") {
                    errors.invalid(place.field("path"), text(source, "path"), "must not contain '..'");
                }
            }
            "local" => {
                required(source, &["path"], &place, errors);
                if text(source, "path").split('/').any(|step| step == "..") {
                    errors.invalid(place.field("path"), text(source, "path"), "must not contain '..'");
                }
                if !is_set(spec, "nodeAffinity") {
                    errors.required(path.field("nodeAffinity"), "Local volume requires node affinity");
                }
            }
            "nfs" => {
                required(source, &["server", "path"], &place, errors);
                if !text(source, "path").starts_with('/') {
                    errors.invalid(place.field("path"), text(source, "path"), "must be an absolute path");
                }
            }
            "csi" => {
                driver(text(source, "driver"), &place.field("driver"), errors);
                required(source, &["volumeHandle"], &place, errors);
                for secret in [
                    "controllerPublishSecretRef",
                    "controllerExpandSecretRef",
                    "nodePublishSecretRef",
                    "nodeExpandSecretRef",
                ] {
                    if is_set(source, secret) {
                        required(&source[secret], &["name", "namespace"], &place.field(secret), errors);
                    }
                }
            }
            _ => volume_sources::validate(kind, source, &place, errors),
        }
    }
    if !any {
        errors.required(path.clone(), "must specify a volume type");
    }
}

/// A volume's source stays.
pub(super) fn validate_volume_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (new, old) = (&new["spec"], &old["spec"]);
    let all = |spec: &Value| -> Vec<(String, Value)> {
        sources(spec)
            .map(|kind| {
                let mut source = spec[kind].clone();
                // A secret for growing may come later.
                if is_set(new, "csi")
                    && !is_set(&old["csi"], "controllerExpandSecretRef")
                    && let Some(fields) = source.as_object_mut()
                {
                    fields.remove("controllerExpandSecretRef");
                }
                (kind.to_owned(), source)
            })
            .collect()
    };
    if all(new) != all(old) {
        let detail = "spec.persistentvolumesource is immutable after creation\n";
        errors.forbidden(Path::new("spec.persistentvolumesource"), detail);
    }
    if new["volumeMode"] != old["volumeMode"] {
        errors.invalid(Path::new("volumeMode"), new["volumeMode"].clone(), "field is immutable");
    }
    if is_set(old, "nodeAffinity") && new["nodeAffinity"] != old["nodeAffinity"] {
        let detail = "field is immutable, except for updating from beta label to GA";
        errors.invalid(Path::new("nodeAffinity"), new["nodeAffinity"].clone(), detail);
    }
    errors.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn claim(change: &Value) -> Value {
        let mut claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "a",
            "resources": {"requests": {"storage": "2Gi"}}}, "status": {"phase": "Bound", "capacity": {"storage": "2Gi"}}});
        json_patch::merge(&mut claim, change);
        default_claim(&mut claim);
        claim
    }

    #[test]
    fn claims_say_how_much_and_how() {
        // C3.24
        assert_eq!(texts(validate_claim(&claim(&json!({})))), [""; 0]);
        assert_eq!(
            texts(validate_claim(&claim(
                &json!({"spec": {"accessModes": ["Often"], "resources": null, "volumeMode": "Tape"}})
            ))),
            [
                "spec.accessModes: Unsupported value: \"Often\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.resources[storage]: Required value",
                "spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\"",
            ]
        );
    }

    #[test]
    fn bound_claims_grow_and_change_nothing_else() {
        // C3.24
        let sized = |size: &str| claim(&json!({"spec": {"resources": {"requests": {"storage": size}}}}));
        let immutable = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n";
        assert_eq!(texts(validate_claim_update(&sized("3Gi"), &claim(&json!({})))), [""; 0]);
        assert_eq!(
            texts(validate_claim_update(&sized("1Gi"), &claim(&json!({})))),
            ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
        );
        let other = claim(&json!({"spec": {"storageClassName": "b"}}));
        assert_eq!(texts(validate_claim_update(&other, &claim(&json!({})))), [immutable]);
        let pending = json!({"status": {"phase": "Pending", "capacity": null}});
        let mut grown = pending.clone();
        grown["spec"] = json!({"resources": {"requests": {"storage": "3Gi"}}});
        assert_eq!(texts(validate_claim_update(&claim(&grown), &claim(&pending))), [immutable]);
        let mut given = pending.clone();
        given["spec"] = json!({"volumeName": "v"});
        assert_eq!(texts(validate_claim_update(&claim(&given), &claim(&pending))), [""; 0]);
    }

    #[test]
    fn volumes_have_one_source_that_stays() {
        // C3.24
        let volume = |change: &Value| {
            let mut volume = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}});
            json_patch::merge(&mut volume["spec"], change);
            default_volume(&mut volume);
            volume
        };
        let good = volume(&json!({"hostPath": {"path": "/a"}}));
        assert_eq!(texts(validate_volume(&good)), [""; 0]);
        assert_eq!(
            texts(validate_volume(&volume(
                &json!({"accessModes": null, "capacity": {"storage": "0"}, "local": {"path": "/a"}})
            ))),
            [
                "spec.accessModes: Required value",
                "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ]
        );
        assert_eq!(
            texts(validate_volume(&volume(&json!({"hostPath": {"path": "/a"}, "nfs": {"server": "s", "path": "/"}})))),
            ["spec.nfs: Forbidden: may not specify more than 1 volume type"]
        );
        assert_eq!(texts(validate_volume(&volume(&json!({})))), ["spec: Required value: must specify a volume type"]);
        assert_eq!(
            texts(validate_volume_update(&volume(&json!({"hostPath": {"path": "/b"}})), &good)),
            ["spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation\n"]
        );
    }
}
