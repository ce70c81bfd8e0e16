//! Environment variables: their names and where their values come from.

use serde_json::Value;
use stoker_model::quantity::Milli;

use super::super::field::{Errors, Path};
use super::super::format;
use super::super::tree::{is_set, items, text};
use super::{containers, no_backsteps};

const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// What a pod's field may be called at all.
const KNOWN: [&str; 8] = [
    "metadata.annotations",
    "metadata.labels",
    "spec.restartPolicy",
    "spec.schedulerName",
    "status.phase",
    "spec.host",
    "metadata.name",
    "metadata.namespace",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];

pub(super) fn validate(container: &Value, path: &Path, errors: &mut Errors) {
    for (at, variable) in items(container, "env").enumerate() {
        let path = path.field("env").index(at);
        let name = text(variable, "name");
        if name.is_empty() {
            errors.required(path.field("name"), "");
        } else {
            errors.faults(&path.field("name"), name, format::variable(name));
        }
        if is_set(variable, "valueFrom") {
            value_from(variable, &path.field("valueFrom"), errors);
        }
    }
    let list = path.field("envFrom");
    for (at, source) in items(container, "envFrom").enumerate() {
        let path = list.index(at);
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            errors.faults(&path.field("prefix"), prefix, format::variable(prefix));
        }
        let mut sources = 0;
        for key in ["configMapRef", "secretRef"].into_iter().filter(|key| is_set(source, key)) {
            sources += 1;
            let (name, place) = (text(&source[key], "name"), path.field(key).field("name"));
            if name.is_empty() {
                errors.required(place, "");
            } else {
                errors.faults(&place, name, format::subdomain_prefix(name));
            }
        }
        match sources {
            0 => errors.invalid(list.clone(), "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(list.clone(), "", "may not have more than one field specified at a time"),
        }
    }
}

fn value_from(variable: &Value, path: &Path, errors: &mut Errors) {
    let source = &variable["valueFrom"];
    let given: Vec<&str> = SOURCES.into_iter().filter(|key| is_set(source, key)).collect();
    for key in &given {
        let (reference, path) = (&source[*key], path.field(key));
        match *key {
            "fieldRef" => field(reference, &FIELDS, &path, errors),
            "resourceFieldRef" => resource(reference, false, &path, errors),
            "fileKeyRef" => file(reference, &path, errors),
            _ => {
                let name = text(reference, "name");
                errors.faults(&path.field("name"), name, format::subdomain(name));
                let key = text(reference, "key");
                if key.is_empty() {
                    errors.required(path.field("key"), "");
                } else {
                    errors.faults(&path.field("key"), key, format::data_key(key));
                }
            }
        }
    }
    let fault = match given.len() {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if !text(variable, "value").is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.invalid(path.clone(), "", fault);
}

/// `metadata.labels['key']` is a path and a key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (path, rest) = path.strip_suffix("']")?.split_once("['")?;
    (!path.is_empty()).then_some((path, rest))
}

/// A field of the pod; `allowed` are those that the place knows.
pub(super) fn field(reference: &Value, allowed: &[&str], path: &Path, errors: &mut Errors) {
    let (version, wanted) = (text(reference, "apiVersion"), text(reference, "fieldPath"));
    let place = path.field("fieldPath");
    if version.is_empty() {
        errors.required(path.field("apiVersion"), "");
        return;
    }
    if wanted.is_empty() {
        errors.required(place, "");
        return;
    }
    if version != "v1" {
        errors.invalid(place, wanted, format!("error converting fieldPath: unsupported pod version: {version}"));
        return;
    }
    match subscript(wanted) {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            errors.faults(path, &key, format::qualified_name(&key));
        }
        Some(("metadata.labels", key)) => errors.faults(path, key, format::qualified_name(key)),
        Some(_) => {
            let detail = format!("error converting fieldPath: field label does not support subscript: {wanted}");
            errors.invalid(place, wanted, detail);
        }
        None => {
            let wanted = if wanted == "spec.host" { "spec.nodeName" } else { wanted };
            if allowed.contains(&wanted) {
                return;
            }
            if FIELDS.contains(&wanted) || KNOWN.contains(&wanted) {
                errors.not_supported(place, wanted, allowed);
            } else {
                let detail = format!("error converting fieldPath: field label not supported: {wanted}");
                errors.invalid(place, wanted, detail);
            }
        }
    }
}

/// A container's resource, in units of its divisor.
pub(super) fn resource(reference: &Value, in_volume: bool, path: &Path, errors: &mut Errors) {
    let wanted = text(reference, "resource");
    let hugepages = ["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| wanted.starts_with(prefix));
    if in_volume && text(reference, "containerName").is_empty() {
        errors.required(path.field("containerName"), "");
    } else if wanted.is_empty() {
        errors.required(path.field("resource"), "");
    } else if !RESOURCES.contains(&wanted) && !hugepages {
        errors.not_supported(path.field("resource"), wanted, &RESOURCES);
    }
    let Some(divisor) = reference["divisor"].as_str().filter(|text| Milli::parse(text) != Ok(Milli::ZERO)) else {
        return;
    };
    const BYTES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let (allowed, what): (&[&str], &str) = match wanted.split_once('.').map_or("", |(_, name)| name) {
        "cpu" => (&["1m", "1"], ""),
        "memory" => (&BYTES, "memory"),
        "ephemeral-storage" => (&BYTES, "local ephemeral storage"),
        _ if hugepages => (&BYTES, "hugepages"),
        _ => return,
    };
    if allowed.contains(&divisor) {
        return;
    }
    let detail = match what {
        "" => "only divisor's values 1m and 1 are supported with the cpu resource".to_owned(),
        what => format!("only divisor's values {} are supported with the {what} resource", BYTES.join(", ")),
    };
    errors.invalid(path.field("divisor"), wanted, detail);
}

fn file(reference: &Value, path: &Path, errors: &mut Errors) {
    match text(reference, "key") {
        "" => errors.required(path.field("key"), ""),
        key => errors.faults(&path.field("key"), key, format::variable(key)),
    }
    match text(reference, "volumeName") {
        "" => errors.required(path.field("volumeName"), ""),
        name => errors.faults(&path.field("volumeName"), name, format::label(name)),
    }
    match text(reference, "path") {
        "" => errors.required(path.field("path"), ""),
        file => no_backsteps(file, &path.field("path"), errors),
    }
}

/// Files with variables lie in volumes that a container of the pod can write.
pub(super) fn validate_file_volumes(spec: &Value, path: &Path, errors: &mut Errors) {
    for (path, container) in containers(spec, path) {
        for (at, variable) in items(container, "env").enumerate() {
            let reference = &variable["valueFrom"]["fileKeyRef"];
            if reference.is_null() {
                continue;
            }
            let path = path.field("env").index(at).field("valueFrom").field("fileKeyRef").field("volumeName");
            let name = text(reference, "volumeName");
            match items(spec, "volumes").find(|volume| text(volume, "name") == name) {
                None => errors.not_found(path, name),
                Some(volume) if is_set(volume, "emptyDir") => {}
                Some(_) => errors.invalid(path, name, "referenced volume must be of type emptyDir"),
            }
        }
    }
}
