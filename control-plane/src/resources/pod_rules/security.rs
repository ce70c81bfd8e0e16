//! Security contexts of pods and containers, sysctls, user namespaces, the operating system.

use std::collections::HashSet;

use serde_json::Value;

use super::super::field::{Errors, FieldError, Path};
use super::super::format;
use super::super::tree::{is_set, items, text};
use super::{Whole, containers, descending, if_set_one_of};

const LONGEST_SYSCTL: usize = 253;
const SYSCTL: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
const LONGEST_PROFILE: usize = 4095;

fn ids(context: &Value, keys: &[&str], path: &Path, errors: &mut Errors) {
    for key in keys {
        if let Some(id) = context[*key].as_i64() {
            for fault in format::id(id) {
                errors.invalid(path.field(key), id, fault);
            }
        }
    }
}

pub(super) fn validate_pod(spec: &Value, path: &Path, errors: &mut Errors) {
    let context = &spec["securityContext"];
    ids(context, &["fsGroup", "runAsUser", "runAsGroup"], path, errors);
    for (at, group) in items(context, "supplementalGroups").enumerate() {
        let group = group.as_i64().unwrap_or(0);
        for fault in format::id(group) {
            errors.invalid(path.field("supplementalGroups").index(at), group, fault);
        }
    }
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(path.field("shareProcessNamespace"), true, detail);
    }
    sysctls(spec, &path.field("sysctls"), errors);
    if_set_one_of(context, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], path, errors);
    seccomp(&context["seccompProfile"], &path.field("seccompProfile"), errors);
    app_armor(&context["appArmorProfile"], &path.field("appArmorProfile"), errors);
    if_set_one_of(context, "supplementalGroupsPolicy", &["Merge", "Strict"], path, errors);
    if_set_one_of(context, "seLinuxChangePolicy", &["MountOption", "Recursive"], path, errors);
}

pub(super) fn validate_container(container: &Value, host_users: bool, path: &Path, errors: &mut Errors) {
    let context = &container["securityContext"];
    ids(context, &["runAsUser", "runAsGroup"], path, errors);
    if let Some(mount) = context["procMount"].as_str() {
        match mount {
            "Default" => {}
            "Unmasked" if host_users => {
                errors.invalid(path.field("procMount"), mount, "`hostUsers` must be false to use `Unmasked`");
            }
            "Unmasked" => {}
            other => errors.not_supported(path.field("procMount"), other, &["Default", "Unmasked"]),
        }
    }
    seccomp(&context["seccompProfile"], &path.field("seccompProfile"), errors);
    if context["allowPrivilegeEscalation"] == false {
        if context["privileged"] == true {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(path.clone(), context.clone(), detail);
        }
        if items(&context["capabilities"], "add").any(|capability| capability == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(path.clone(), context.clone(), detail);
        }
    }
    app_armor(&context["appArmorProfile"], &path.field("appArmorProfile"), errors);
}

fn sysctls(spec: &Value, list: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (at, sysctl) in items(&spec["securityContext"], "sysctls").enumerate() {
        let (name, path) = (text(sysctl, "name"), list.index(at).field("name"));
        if name.is_empty() {
            errors.required(path.clone(), "");
        } else if name.len() > LONGEST_SYSCTL || !name.split(['.', '/']).all(is_sysctl_part) {
            let detail = format!("must have at most {LONGEST_SYSCTL} characters and match regex {SYSCTL}");
            errors.invalid(path.clone(), name, detail);
        } else if !seen.insert(name) {
            errors.duplicate(path.clone(), name);
        }
        let name_dotted = name.replace('/', ".");
        if spec["hostNetwork"] == true && name_dotted.starts_with("net.") {
            errors.invalid(path, name, "may not be specified when 'hostNetwork' is true");
        } else if spec["hostIPC"] == true && is_of_ipc(&name_dotted) {
            errors.invalid(path, name, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn is_sysctl_part(part: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(edge) && part.ends_with(edge) && part.chars().all(|c| edge(c) || matches!(c, '-' | '_'))
}

fn is_of_ipc(name: &str) -> bool {
    name == "kernel.sem" || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix))
}

fn seccomp(profile: &Value, path: &Path, errors: &mut Errors) {
    if profile.is_null() {
        return;
    }
    let kinds = ["Localhost", "RuntimeDefault", "Unconfined"];
    let (kind, place) = (text(profile, "type"), path.field("localhostProfile"));
    match kind {
        "" => errors.required(path.field("type"), "type is required when seccompProfile is set"),
        kind if !kinds.contains(&kind) => errors.not_supported(path.field("type"), kind, &kinds),
        _ => {}
    }
    match (kind, profile["localhostProfile"].as_str()) {
        ("Localhost", None) => errors.required(place, "must be set when seccomp type is Localhost"),
        ("Localhost", Some(file)) => descending(file, &place, errors),
        (_, Some(_)) => errors.invalid(place, profile.clone(), "can only be set when seccomp type is Localhost"),
        (_, None) => {}
    }
}

fn app_armor(profile: &Value, path: &Path, errors: &mut Errors) {
    if profile.is_null() {
        return;
    }
    let place = path.field("localhostProfile");
    let name = profile["localhostProfile"].as_str();
    match (text(profile, "type"), name) {
        ("Localhost", None) => errors.required(place, "must be set when AppArmor type is Localhost"),
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                errors.invalid(place.clone(), name, "must not be padded with whitespace");
            } else if name.is_empty() {
                errors.required(place.clone(), "must be set when AppArmor type is Localhost");
            }
            if name.len() > LONGEST_PROFILE {
                errors.0.push(FieldError::too_long(place, LONGEST_PROFILE));
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            errors.invalid(place, name, "can only be set when AppArmor type is Localhost");
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => errors.required(path.field("type"), "type is required when appArmorProfile is set"),
        (kind, _) => {
            errors.not_supported(path.field("type"), kind, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
    }
}

/// A user namespace of the pod's own goes with no namespace of the host.
pub(super) fn validate_host_users(whole: &Whole<'_>, path: &Path, errors: &mut Errors) {
    if whole.host_users {
        return;
    }
    // Upstream writes two of these places with the names of its own structure.
    for (key, place) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if whole.spec[key] == true {
            errors.forbidden(path.field(place), "when `hostUsers` is false");
        }
    }
    for (path, container) in containers(whole.spec, path) {
        if items(container, "volumeDevices").next().is_some() {
            errors.forbidden(path.field("volumeDevices"), "when `hostUsers` is false");
        }
    }
}

/// A system's pod has no settings of the other system.
pub(super) fn validate_system(spec: &Value, path: &Path, errors: &mut Errors) {
    if spec["os"].is_null() {
        return;
    }
    let place = path.field("os");
    match text(&spec["os"], "name") {
        "" => errors.required(place.field("name"), ""),
        "linux" => {
            let detail = "windows options cannot be set for a linux pod";
            if is_set(&spec["securityContext"], "windowsOptions") {
                errors.forbidden(path.field("securityContext").field("windowsOptions"), detail);
            }
            for (path, container) in containers(spec, path) {
                if is_set(&container["securityContext"], "windowsOptions") {
                    errors.forbidden(path.field("securityContext").field("windowsOptions"), detail);
                }
            }
        }
        "windows" => windows(spec, path, errors),
        other => errors.not_supported(place, other, &["linux", "windows"]),
    }
}

fn windows(spec: &Value, path: &Path, errors: &mut Errors) {
    const POD: [&str; 11] = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "seLinuxChangePolicy",
    ];
    const CONTAINER: [&str; 10] = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    let detail = "cannot be set for a windows pod";
    for key in ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"] {
        let is_unset = !is_set(spec, key) || (key.starts_with("hostP") || key == "hostIPC") && spec[key] == false;
        if !is_unset {
            errors.forbidden(path.field(key), detail);
        }
    }
    for key in POD.into_iter().filter(|key| is_set(&spec["securityContext"], key)) {
        errors.forbidden(path.field("securityContext").field(key), detail);
    }
    for (path, container) in containers(spec, path) {
        for key in CONTAINER.into_iter().filter(|key| is_set(&container["securityContext"], key)) {
            errors.forbidden(path.field("securityContext").field(key), detail);
        }
    }
}
