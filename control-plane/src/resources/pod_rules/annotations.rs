//! Annotations of pods that mean something, and their agreement with the fields that came after them.

use serde_json::Value;

use super::super::field::{Errors, Path};
use super::super::tree::{is_set, text};
use super::{containers, descending};

/// The mark of a pod that stands for a static one.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";

fn pairs(metadata: &Value) -> impl Iterator<Item = (&str, &str)> {
    let annotations = metadata["annotations"].as_object().into_iter().flatten();
    annotations.map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
}

pub(super) fn validate(metadata: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    for (key, value) in pairs(metadata) {
        if key == MIRROR && text(spec, "nodeName").is_empty() {
            errors.invalid(path.entry(key), value, "must set spec.nodeName if mirror pod annotation is set");
        }
        if key == DELETION_COST && (value.parse::<i32>().is_err() || value.starts_with('+') || has_leading_zero(value))
        {
            errors.invalid(path.entry(key), value, "must be a 32bit integer");
        }
        if key == SECCOMP_POD || key.starts_with(SECCOMP) {
            let path = path.field(key);
            match value.strip_prefix("localhost/") {
                Some(file) => descending(file, &path, errors),
                None if matches!(value, "runtime/default" | "docker/default" | "unconfined") => {}
                None => errors.invalid(path, value, "must be a valid seccomp profile"),
            }
        }
        if let Some(name) = key.strip_prefix(APP_ARMOR) {
            if !containers(spec, path).any(|(_, container)| text(container, "name") == name) {
                errors.invalid(path.entry(key), name, "container not found");
            }
            if !matches!(value, "" | "runtime/default" | "unconfined") && !value.starts_with("localhost/") {
                errors.invalid(path.entry(key), value, format!("invalid AppArmor profile name: {value:?}"));
            }
        }
    }
}

fn has_leading_zero(value: &str) -> bool {
    let digits = value.trim_start_matches('-');
    (digits.len() > 1 && digits.starts_with('0')) || value == "-0"
}

/// Of a new pod the annotation and the field must say the same.
pub(super) fn validate_profiles(metadata: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let annotations = &metadata["annotations"];
    let pod_seccomp = &spec["securityContext"]["seccompProfile"];
    if let Some(given) = annotations[SECCOMP_POD].as_str() {
        agree(given, pod_seccomp, "seccomp", &path.field("securityContext").field("seccompProfile"), errors);
    }
    for (path, container) in containers(spec, path) {
        let (name, context) = (text(container, "name"), &container["securityContext"]);
        let path = path.field("securityContext");
        if let Some(given) = annotations[format!("{SECCOMP}{name}")].as_str() {
            agree(given, &context["seccompProfile"], "seccomp", &path.field("seccompProfile"), errors);
        }
        if let Some(given) =
            annotations[format!("{APP_ARMOR}{name}")].as_str().filter(|_| spec["os"]["name"] != "windows")
        {
            let own = is_set(context, "appArmorProfile");
            let holder = if own { context } else { &spec["securityContext"] };
            agree(given, &holder["appArmorProfile"], "apparmor", &path.field("appArmorProfile"), errors);
        }
    }
}

fn agree(annotation: &str, profile: &Value, what: &str, path: &Path, errors: &mut Errors) {
    let same = match text(profile, "type") {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => annotation == "runtime/default" || (what == "seccomp" && annotation == "docker/default"),
        "Localhost" => match annotation.strip_prefix("localhost/") {
            Some(file) if profile["localhostProfile"].as_str() != Some(file) => {
                let detail = format!("{what} profile in annotation and field must match");
                errors.forbidden(path.field("localhostProfile"), detail);
                return;
            }
            given => given.is_some(),
        },
        _ => true,
    };
    if !same {
        errors.forbidden(path.field("type"), format!("{what} type in annotation and field must match"));
    }
}

/// What an update may not do to them.
pub(super) fn validate_update(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let (annotations, before) = (&new["annotations"], &old["annotations"]);
    for (key, _) in pairs(old).filter(|(key, value)| annotations[*key].as_str() != Some(value)) {
        if key.starts_with(APP_ARMOR) {
            errors.forbidden(path.entry(key), "may not remove or update AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(path.entry(key), "may not remove or update mirror pod annotation");
        }
    }
    for (key, _) in pairs(new).filter(|(key, _)| !is_set(before, key)) {
        if key.starts_with(APP_ARMOR) {
            errors.forbidden(path.entry(key), "may not add AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(path.entry(key), "may not add mirror pod annotation");
        }
    }
}
