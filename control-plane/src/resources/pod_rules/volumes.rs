//! Volumes of a pod: one source each, and what is wrong with each kind of source.

use std::collections::HashSet;

use serde_json::Value;
use stoker_model::quantity::Milli;

use super::super::field::{Errors, FieldError, Path};
use super::super::format;
use super::super::quantities::{self, parse};
use super::super::selector_rules::{labels, selector};
use super::super::tree::{is_set, items, text};
use super::super::volume_sources;
use super::{descending, environment, if_set_one_of, no_backsteps, not_reserved, one_of, projected};

/// What downward volumes can hold of the pod.
pub(super) const FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const SECOND: &str = "may not specify more than 1 volume type";
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

const LONGEST_INITIATOR: usize = 64;

/// In the order in which upstream asks, which decides what a second source is called.
const SOURCES: [&str; 29] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
];

/// Answers with those that have nothing wrong.
pub(super) fn validate<'s>(
    spec: &'s Value,
    metadata: Option<&Value>,
    path: &Path,
    errors: &mut Errors,
) -> Vec<&'s Value> {
    let pod = metadata.map_or("", |metadata| text(metadata, "name"));
    let claim_of = |volume: &Value| format!("{pod}-{}", text(volume, "name"));
    let made: HashSet<String> =
        items(spec, "volumes").filter(|volume| !pod.is_empty() && is_set(volume, "ephemeral")).map(claim_of).collect();
    let (mut names, mut good) = (HashSet::new(), Vec::new());
    for (at, volume) in items(spec, "volumes").enumerate() {
        let path = path.index(at);
        let mut found = Errors::default();
        source(volume, pod, metadata.is_some(), &path, &mut found);
        let name = text(volume, "name");
        if name.is_empty() {
            found.required(path.field("name"), "");
        } else {
            found.faults(&path.field("name"), name, format::label(name));
        }
        if names.contains(name) {
            found.duplicate(path.field("name"), name);
        }
        if found.is_empty() {
            names.insert(name);
            good.push(volume);
        }
        errors.0.append(&mut found.0);
        let claim = text(&volume["persistentVolumeClaim"], "claimName");
        if made.contains(claim) {
            let detail = "must not reference a PVC that gets created for an ephemeral volume";
            errors.invalid(path.field("persistentVolumeClaim").field("claimName"), claim, detail);
        }
    }
    good
}

fn source(volume: &Value, pod: &str, is_pod: bool, path: &Path, errors: &mut Errors) {
    let mut any = false;
    for kind in SOURCES.into_iter().chain(["image"]).filter(|kind| is_set(volume, kind)) {
        if any {
            errors.forbidden(path.field(kind), SECOND);
            continue;
        }
        any = true;
        let (source, place) = (&volume[kind], path.field(kind));
        match kind {
            "emptyDir" => {
                if parse(&source["sizeLimit"]).is_some_and(|limit| limit < Milli::ZERO) {
                    let detail = "SizeLimit field must be a valid resource quantity";
                    errors.forbidden(place.field("sizeLimit"), detail);
                }
            }
            "hostPath" => host_path(source, &place, errors),
            "secret" | "configMap" => keys(source, kind, &place, errors),
            "downwardAPI" => {
                mode(source, "defaultMode", &place, errors);
                items(source, "items").for_each(|file| downward_file(file, &place, errors));
            }
            "projected" => {
                mode(source, "defaultMode", &place, errors);
                projected::validate(source, &place, errors);
            }
            "persistentVolumeClaim" => required(source, &["claimName"], &place, errors),
            "nfs" => {
                required(source, &["server", "path"], &place, errors);
                let directory = text(source, "path");
                if !directory.starts_with('/') {
                    errors.invalid(place.field("path"), directory, "must be an absolute path");
                }
            }
            "csi" => csi(source, &place, errors),
            "ephemeral" => {
                ephemeral(source, &place, errors);
                let name = text(volume, "name");
                if !pod.is_empty() && !name.is_empty() {
                    let claim = format!("{pod}-{name}");
                    for fault in format::subdomain(&claim) {
                        errors.invalid(path.field("name"), name, format!("PVC name {claim:?}: {fault}"));
                    }
                }
            }
            "image" => {
                if is_pod {
                    required(source, &["reference"], &place, errors);
                }
                one_of(source, "pullPolicy", &["Always", "IfNotPresent", "Never"], &place, errors);
            }
            "gcePersistentDisk" => {
                volume_sources::validate(kind, source, &path.field("persistentDisk"), errors);
            }
            _ => volume_sources::validate(kind, source, &place, errors),
        }
    }
    let (name, disk) = (text(volume, "name"), &volume["iscsi"]);
    if is_set(disk, "initiatorName") && name.len() + 1 + text(disk, "targetPortal").len() > LONGEST_INITIATOR {
        let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
        errors.invalid(path.field("name"), name, detail);
    }
    if !any {
        errors.required(path.clone(), "must specify a volume type");
    }
}

/// Texts that must be there.
pub(in super::super) fn required(source: &Value, keys: &[&str], path: &Path, errors: &mut Errors) {
    for key in keys.iter().filter(|key| text(source, key).is_empty()) {
        errors.required(path.field(key), "");
    }
}

fn mode(source: &Value, key: &str, path: &Path, errors: &mut Errors) {
    if let Some(mode) = source[key].as_i64().filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(path.field(key), mode, MODE);
    }
}

fn host_path(source: &Value, path: &Path, errors: &mut Errors) {
    const KINDS: [&str; 8] =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    required(source, &["path"], path, errors);
    no_backsteps(text(source, "path"), &path.field("path"), errors);
    if_set_one_of(source, "type", &KINDS, path, errors);
}

fn keys(source: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    required(source, &[if kind == "secret" { "secretName" } else { "name" }], path, errors);
    mode(source, "defaultMode", path, errors);
    for (at, item) in items(source, "items").enumerate() {
        key_to_path(item, &path.field("items").index(at), errors);
    }
}

pub(super) fn key_to_path(item: &Value, path: &Path, errors: &mut Errors) {
    required(item, &["key", "path"], path, errors);
    not_reserved(text(item, "path"), &path.field("path"), errors);
    mode(item, "mode", path, errors);
}

pub(super) fn downward_file(file: &Value, path: &Path, errors: &mut Errors) {
    required(file, &["path"], path, errors);
    not_reserved(text(file, "path"), &path.field("path"), errors);
    match (is_set(file, "fieldRef"), is_set(file, "resourceFieldRef")) {
        (true, both) => {
            environment::field(&file["fieldRef"], &FIELDS, &path.field("fieldRef"), errors);
            if both {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.invalid(path.clone(), "resource", detail);
            }
        }
        (false, true) => {
            environment::resource(&file["resourceFieldRef"], true, &path.field("resourceFieldRef"), errors);
        }
        (false, false) => errors.required(path.clone(), "one of fieldRef and resourceFieldRef is required"),
    }
    mode(file, "mode", path, errors);
}

fn csi(source: &Value, path: &Path, errors: &mut Errors) {
    driver(text(source, "driver"), &path.field("driver"), errors);
    if is_set(source, "nodePublishSecretRef") {
        match text(&source["nodePublishSecretRef"], "name") {
            "" => errors.required(path.field("nodePublishSecretRef").field("name"), ""),
            name => errors.faults(&path.field("name"), name, format::subdomain(name)),
        }
    }
}

/// The name of a CSI driver.
pub(in super::super) fn driver(name: &str, path: &Path, errors: &mut Errors) {
    const LONGEST: usize = 63;
    if name.is_empty() {
        errors.required(path.clone(), "");
        return;
    }
    if name.len() > LONGEST {
        errors.0.push(FieldError::too_long(path.clone(), LONGEST));
    }
    errors.faults(path, name, format::driver_name(name));
}

fn ephemeral(source: &Value, path: &Path, errors: &mut Errors) {
    let (template, path) = (&source["volumeClaimTemplate"], path.field("volumeClaimTemplate"));
    if template.is_null() {
        errors.required(path, "");
        return;
    }
    let (metadata, place) = (&template["metadata"], path.field("metadata"));
    for (key, _) in metadata["annotations"].as_object().into_iter().flatten() {
        errors.faults(&place.field("annotations"), key, format::qualified_name(&key.to_lowercase()));
    }
    labels(&metadata["labels"], &place.field("labels"), errors);
    for (key, _) in metadata.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "annotations" | "labels") {
            errors.forbidden(place.field(key), "cannot be set for an Ephemeral volume");
        }
    }
    validate_claim_spec(&template["spec"], &path.field("spec"), errors);
}

/// A claim's spec.
pub(in super::super) fn validate_claim_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let place = path.field("accessModes");
    let modes: Vec<&str> = items(spec, "accessModes").filter_map(Value::as_str).collect();
    if modes.is_empty() {
        errors.required(place.clone(), "at least 1 access mode is required");
    }
    selector(&spec["selector"], &path.field("selector"), errors);
    for mode in modes.iter().filter(|mode| !MODES.contains(mode)) {
        errors.not_supported(place.clone(), *mode, &MODES);
    }
    let other = |mode: &&str| *mode != "ReadWriteOncePod" && MODES.contains(mode);
    if modes.contains(&"ReadWriteOncePod") && modes.iter().any(other) {
        errors.forbidden(place, "may not use ReadWriteOncePod with other access modes");
    }
    let place = path.field("resources").entry("storage");
    let storage = &spec["resources"]["requests"]["storage"];
    match (storage.as_str(), parse(storage)) {
        (None, _) => errors.required(place, ""),
        (Some(given), None) => errors.invalid(place, given, quantities::FORMAT),
        (Some(given), Some(amount)) if amount <= Milli::ZERO => {
            errors.invalid(place, given, "must be greater than zero");
        }
        _ => {}
    }
    for key in ["storageClassName", "volumeAttributesClassName"] {
        let class = text(spec, key);
        if !class.is_empty() {
            errors.faults(&path.field(key), class, format::subdomain(class));
        }
    }
    if_set_one_of(spec, "volumeMode", &["Block", "Filesystem"], path, errors);
    data_source(spec, path, errors);
}

fn data_source(spec: &Value, path: &Path, errors: &mut Errors) {
    for key in ["dataSource", "dataSourceRef"].into_iter().filter(|key| is_set(spec, key)) {
        let (source, place) = (&spec[key], path.field(key));
        required(source, &["name", "kind"], &place, errors);
        let (group, kind) = (text(source, "apiGroup"), text(source, "kind"));
        if group.is_empty() && kind != "PersistentVolumeClaim" {
            let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.invalid(place.clone(), kind, detail);
        }
        if !group.is_empty() {
            errors.faults(&place.field("apiGroup"), group, format::subdomain(group));
        }
        let namespace = text(source, "namespace");
        if !namespace.is_empty() {
            errors.faults(&place.field("namespace"), namespace, format::label(namespace));
        }
    }
    let (source, reference) = (&spec["dataSource"], &spec["dataSourceRef"]);
    if source.is_null() || reference.is_null() {
        return;
    }
    let shown = path.field("dataSource").to_string();
    if !text(reference, "namespace").is_empty() {
        errors.invalid(path.clone(), shown, "may not be specified when dataSourceRef.namespace is specified");
    } else if ["apiGroup", "kind", "name"].iter().any(|key| source[*key] != reference[*key]) {
        errors.invalid(path.clone(), shown, "must match dataSourceRef");
    }
}

/// A path below the repository of a `gitRepo`.
pub(in super::super) fn below(value: &str, path: &Path, errors: &mut Errors) {
    descending(value, path, errors);
}
