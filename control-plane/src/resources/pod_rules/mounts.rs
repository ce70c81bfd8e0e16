//! Mounts and block devices of a container.

use std::collections::HashSet;

use serde_json::Value;

use super::super::field::{Errors, Path};
use super::super::tree::{is_set, items, text};
use super::{Whole, descending};

pub(super) fn validate(container: &Value, whole: &Whole<'_>, path: &Path, errors: &mut Errors) {
    mounts(container, whole, &path.field("volumeMounts"), errors);
    devices(container, whole, &path.field("volumeDevices"), errors);
}

fn mounts(container: &Value, whole: &Whole<'_>, list: &Path, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for (at, mount) in items(container, "volumeMounts").enumerate() {
        let path = list.index(at);
        let (name, place) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            errors.required(path.field("name"), "");
        }
        if whole.volume(name).is_none() {
            errors.not_found(path.field("name"), name);
        }
        if place.is_empty() {
            errors.required(path.field("mountPath"), "");
        }
        if !taken.insert(place) {
            errors.invalid(path.field("mountPath"), place, "must be unique");
        }
        if items(container, "volumeDevices").any(|device| text(device, "name") == name) {
            errors.invalid(path.field("name"), name, "must not already exist in volumeDevices");
        }
        if items(container, "volumeDevices").any(|device| text(device, "devicePath") == place) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.invalid(path.field("mountPath"), place, detail);
        }
        let (part, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        if !part.is_empty() {
            descending(part, &list.field("subPath"), errors);
        }
        if !expression.is_empty() {
            if !part.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(path.field("subPathExpr"), expression, detail);
            }
            descending(expression, &list.field("subPathExpr"), errors);
        }
        propagation(mount, container, list, errors);
    }
}

fn propagation(mount: &Value, container: &Value, list: &Path, errors: &mut Errors) {
    let kinds = ["Bidirectional", "HostToContainer", "None"];
    let path = list.field("mountPropagation");
    let kind = mount["mountPropagation"].as_str();
    match kind {
        Some("Bidirectional") if container["securityContext"]["privileged"] != true => {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.forbidden(path, detail);
        }
        Some(kind) if !kinds.contains(&kind) => {
            errors.not_supported(path.clone(), kind, &kinds);
            if kind.is_empty() {
                return;
            }
        }
        _ => {}
    }
    let path = list.field("recursiveReadOnly");
    match mount["recursiveReadOnly"].as_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if mount["readOnly"] != true {
                errors.forbidden(path.clone(), "may only be specified when readOnly is true");
            }
            if kind.is_some_and(|kind| kind != "None") {
                errors.forbidden(path, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(other) => errors.not_supported(path, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(container: &Value, whole: &Whole<'_>, list: &Path, errors: &mut Errors) {
    let (mut names, mut places) = (HashSet::new(), HashSet::new());
    for (at, device) in items(container, "volumeDevices").enumerate() {
        let path = list.index(at);
        let (name, place) = (text(device, "name"), text(device, "devicePath"));
        if name.is_empty() {
            errors.required(path.field("name"), "");
        }
        if names.contains(name) {
            errors.invalid(path.field("name"), name, "must be unique");
        }
        match whole.volume(name) {
            None => errors.not_found(path.field("name"), name),
            Some(volume) if is_set(volume, "persistentVolumeClaim") || is_set(volume, "ephemeral") => {}
            Some(_) => {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(path.field("name"), name, detail);
            }
        }
        if place.is_empty() {
            errors.required(path.field("devicePath"), "");
        }
        if places.contains(place) {
            errors.invalid(path.field("devicePath"), place, "must be unique");
        }
        if place.split('/').any(|step| step == "..") {
            errors.invalid(path.field("devicePath"), place, "can not contain backsteps ('..')");
        } else {
            places.insert(place);
        }
        if items(container, "volumeMounts").any(|mount| text(mount, "name") == name) {
            errors.invalid(path.field("name"), name, "must not already exist in volumeMounts");
        }
        if items(container, "volumeMounts").any(|mount| text(mount, "mountPath") == place) {
            let detail = "must not already exist as a path in volumeMounts";
            errors.invalid(path.field("devicePath"), place, detail);
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}
