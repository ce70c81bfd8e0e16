//! Volume sources of storage systems that the API has had from before CSI: still accepted, and checked as upstream does.

use serde_json::Value;

use super::field::{Errors, Path};
use super::format;
use super::pod_rules::{below, required};
use super::tree::{is_set, items, text};

/// One of a pod's volumes of the old kinds.
pub(super) fn validate(kind: &str, source: &Value, path: &Path, errors: &mut Errors) {
    match kind {
        "gitRepo" => {
            required(source, &["repository"], path, errors);
            below(text(source, "directory"), &path.field("directory"), errors);
        }
        "gcePersistentDisk" => {
            required(source, &["pdName"], path, errors);
            partition(source, path, errors);
        }
        "awsElasticBlockStore" => {
            required(source, &["volumeID"], path, errors);
            partition(source, path, errors);
        }
        "iscsi" => iscsi(source, path, errors),
        "glusterfs" => required(source, &["endpoints", "path"], path, errors),
        "flocker" => flocker(source, path, errors),
        "rbd" | "cephfs" => {
            if items(source, "monitors").next().is_none() {
                errors.required(path.field("monitors"), "");
            }
            if kind == "rbd" {
                required(source, &["image"], path, errors);
            }
        }
        "cinder" => {
            required(source, &["volumeID"], path, errors);
            secret(source, path, errors);
        }
        "quobyte" => quobyte(source, path, errors),
        "fc" => fibre_channel(source, path, errors),
        "flexVolume" => flex(source, path, errors),
        "azureFile" => required(source, &["secretName", "shareName"], path, errors),
        "azureDisk" => azure_disk(source, path, errors),
        "vsphereVolume" => required(source, &["volumePath"], path, errors),
        "photonPersistentDisk" => required(source, &["pdID"], path, errors),
        "portworxVolume" => required(source, &["volumeID"], path, errors),
        "scaleIO" => required(source, &["gateway", "system", "volumeName"], path, errors),
        "storageos" => {
            let volume = text(source, "volumeName");
            if volume.is_empty() {
                errors.required(path.field("volumeName"), "");
            } else {
                errors.faults(&path.field("volumeName"), volume, format::label(volume));
            }
            let namespace = text(source, "volumeNamespace");
            if !namespace.is_empty() {
                errors.faults(&path.field("volumeNamespace"), namespace, format::label(namespace));
            }
            secret(source, path, errors);
        }
        _ => {}
    }
}

fn partition(source: &Value, path: &Path, errors: &mut Errors) {
    if let Some(number) = source["partition"].as_i64().filter(|number| !(0..=255).contains(number)) {
        errors.invalid(path.field("partition"), number, format::range(1, 255));
    }
}

fn secret(source: &Value, path: &Path, errors: &mut Errors) {
    if is_set(source, "secretRef") && text(&source["secretRef"], "name").is_empty() {
        errors.required(path.field("secretRef").field("name"), "");
    }
}

fn unit(source: &Value, path: &Path, errors: &mut Errors) {
    if let Some(number) = source["lun"].as_i64().filter(|number| !(0..=255).contains(number)) {
        errors.invalid(path.field("lun"), number, format::range(0, 255));
    }
}

fn iscsi(source: &Value, path: &Path, errors: &mut Errors) {
    required(source, &["targetPortal", "iqn"], path, errors);
    let target = text(source, "iqn");
    if !target.is_empty() {
        initiator(target, path.field("iqn"), errors);
    }
    unit(source, path, errors);
    if (source["chapAuthDiscovery"] == true || source["chapAuthSession"] == true) && !is_set(source, "secretRef") {
        errors.required(path.field("secretRef"), "");
    }
    if let Some(own) = source["initiatorName"].as_str() {
        initiator(own, path.field("initiatorname"), errors);
    }
}

/// A name of iSCSI: `iqn.`, `eui.` or `naa.` and what belongs behind it.
fn initiator(name: &str, path: Path, errors: &mut Errors) {
    let hex = |rest: &str, length: usize| rest.len() == length + 1 && rest[1..].chars().all(|c| c.is_alphanumeric());
    let good = if let Some(rest) = name.strip_prefix("iqn") {
        qualified_target(rest)
    } else if let Some(rest) = name.strip_prefix("eui") {
        hex(rest, 16)
    } else if let Some(rest) = name.strip_prefix("naa") {
        hex(rest, 32)
    } else {
        errors.invalid(path, name, "must be valid format starting with iqn, eui, or naa");
        return;
    };
    if !good {
        errors.invalid(path, name, "must be valid format");
    }
}

/// `.2001-04.com.example:storage`
fn qualified_target(rest: &str) -> bool {
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    let Some((date, named)) = rest.strip_prefix('.').and_then(|rest| rest.split_once('.')) else { return false };
    let Some((year, month)) = date.split_once('-') else { return false };
    let Some((domain, own)) = named.split_once(':') else { return false };
    let in_domain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let in_name = |c: char| !matches!(c, ',' | ';' | '*' | '&' | '$' | '|') && !c.is_whitespace();
    digits(year, 4)
        && digits(month, 2)
        && !domain.is_empty()
        && domain.chars().all(in_domain)
        && !own.is_empty()
        && own.chars().all(in_name)
}

fn flocker(source: &Value, path: &Path, errors: &mut Errors) {
    let (name, id) = (text(source, "datasetName"), text(source, "datasetUUID"));
    match (name.is_empty(), id.is_empty()) {
        (true, true) => errors.required(path.clone(), "one of datasetName and datasetUUID is required"),
        (false, false) => {
            let detail = "datasetName and datasetUUID can not be specified simultaneously";
            errors.invalid(path.clone(), "resource", detail);
        }
        _ => {}
    }
    if name.contains('/') {
        errors.invalid(path.field("datasetName"), name, "must not contain '/'");
    }
}

fn quobyte(source: &Value, path: &Path, errors: &mut Errors) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = text(source, "registry");
    if registry.is_empty() {
        errors.required(path.field("registry"), PAIRS);
    } else if text(source, "tenant").len() >= 65 {
        errors.required(path.field("tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else {
        for _ in registry.split(',').filter(|pair| !pair.contains(':')) {
            errors.invalid(path.field("registry"), registry, PAIRS);
        }
    }
    required(source, &["volume"], path, errors);
}

fn fibre_channel(source: &Value, path: &Path, errors: &mut Errors) {
    let some = |key: &str| items(source, key).next().is_some();
    let place = path.field("targetWWNs");
    match (some("targetWWNs"), some("wwids")) {
        (false, false) => errors.required(place, "must specify either targetWWNs or wwids, but not both"),
        (true, true) => {
            let detail = "targetWWNs and wwids can not be specified simultaneously";
            errors.invalid(place, source["targetWWNs"].clone(), detail);
        }
        _ => {}
    }
    if some("targetWWNs") {
        if source["lun"].is_null() {
            errors.required(path.field("lun"), "lun is required if targetWWNs is specified");
        }
        unit(source, path, errors);
    }
}

fn flex(source: &Value, path: &Path, errors: &mut Errors) {
    required(source, &["driver"], path, errors);
    for (key, _) in source["options"].as_object().into_iter().flatten() {
        let domain = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
        if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
            let detail = "kubernetes.io and k8s.io namespaces are reserved";
            errors.invalid(path.field("options").entry(key), key.as_str(), detail);
        }
    }
}

fn azure_disk(source: &Value, path: &Path, errors: &mut Errors) {
    required(source, &["diskName", "diskURI"], path, errors);
    for (key, supported) in
        [("cachingMode", ["None", "ReadOnly", "ReadWrite"]), ("kind", ["Dedicated", "Managed", "Shared"])]
    {
        if let Some(value) = source[key].as_str().filter(|value| !supported.contains(value)) {
            errors.not_supported(path.field(key), value, &supported);
        }
    }
    let (kind, uri) = (source["kind"].as_str(), text(source, "diskURI"));
    let (begin, supported) = match kind {
        None => return,
        Some("Managed") => (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        ),
        Some(_) => ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"),
    };
    if !uri.starts_with(begin) {
        errors.not_supported(path.field("diskURI"), uri, &[supported]);
    }
}
