//! What of a pod may change: by an ordinary update, by `ephemeralcontainers`, by `resize` (C3.24).

use serde_json::Value;

use super::super::field::{Errors, FieldError, Path};
use super::super::format;
use super::super::pod::qos;
use super::super::tree::{is_set, items, text};
use super::annotations::{self, MIRROR};

pub(super) const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Only images, deadlines, added tolerations, gates and a negative grace; of a gated pod also where it may go.
pub(in super::super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let path = Path::new("spec");
    annotations::validate_update(&new["metadata"], &old["metadata"], &Path::new("metadata.annotations"), &mut errors);
    let (new, old) = (&new["spec"], &old["spec"]);
    for list in ["containers", "initContainers"] {
        if items(new, list).count() != items(old, list).count() {
            errors.forbidden(path.field(list), "pod updates may not add or remove containers");
            return errors.0;
        }
        for (at, container) in items(new, list).enumerate() {
            if text(container, "image").is_empty() {
                errors.required(path.field(list).index(at).field("image"), "");
            }
        }
    }
    deadline(new, old, path.field("activeDeadlineSeconds"), &mut errors);
    tolerations(new, old, path.field("tolerations"), &mut errors);
    let gates: Vec<&Value> = items(old, "schedulingGates").collect();
    for (at, gate) in items(new, "schedulingGates").enumerate().filter(|(_, gate)| !gates.contains(gate)) {
        let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", text(gate, "name"));
        errors.forbidden(path.field("schedulingGates").index(at).field("name"), detail);
    }
    let mut rest = new.clone();
    for list in ["containers", "initContainers"] {
        for (at, was) in items(old, list).enumerate() {
            keep(&mut rest[list][at], was, "image");
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        keep(&mut rest, old, key);
    }
    if old["terminationGracePeriodSeconds"].as_i64().is_some_and(|grace| grace < 0)
        && new["terminationGracePeriodSeconds"] == 1
    {
        keep(&mut rest, old, "terminationGracePeriodSeconds");
    }
    if !gates.is_empty() {
        placement(new, old, &path, &mut errors);
        keep(&mut rest, old, "nodeSelector");
        keep_node_affinity(&mut rest, old);
    }
    if rest != *old {
        errors.forbidden(path, MUTABLE);
    }
    errors.0
}

fn keep(to: &mut Value, from: &Value, key: &str) {
    let Some(fields) = to.as_object_mut() else { return };
    match from.get(key) {
        Some(value) => fields.insert(key.to_owned(), value.clone()),
        None => fields.remove(key),
    };
}

/// The node affinity as it was, and no empty affinity around it where there was none.
fn keep_node_affinity(rest: &mut Value, old: &Value) {
    if !is_set(rest, "affinity") && !is_set(&old["affinity"], "nodeAffinity") {
        return;
    }
    if !is_set(rest, "affinity") {
        rest["affinity"] = serde_json::json!({});
    }
    keep(&mut rest["affinity"], &old["affinity"], "nodeAffinity");
    let empty = rest["affinity"].as_object().is_some_and(|fields| fields.is_empty());
    if empty && !is_set(old, "affinity") {
        keep(rest, old, "affinity");
    }
}

fn deadline(new: &Value, old: &Value, path: Path, errors: &mut Errors) {
    match (new["activeDeadlineSeconds"].as_i64(), old["activeDeadlineSeconds"].as_i64()) {
        (Some(new), was) => {
            let most = i64::from(i32::MAX);
            if !(0..=most).contains(&new) {
                errors.invalid(path.clone(), new, format::range(0, most));
            }
            if was.is_some_and(|was| new > was) {
                errors.invalid(path, new, "must be less than or equal to previous value");
            }
        }
        (None, Some(_)) => {
            errors.invalid(path, Value::Null, "must not update from a positive integer to nil value");
        }
        (None, None) => {}
    }
}

fn tolerations(new: &Value, old: &Value, path: Path, errors: &mut Errors) {
    let same = |a: &Value, b: &Value| ["key", "operator", "value", "effect"].iter().all(|key| a.get(key) == b.get(key));
    let lost = items(old, "tolerations").filter(|was| !items(new, "tolerations").any(|is| same(is, was))).count();
    for _ in 0..lost {
        errors.forbidden(path.clone(), "existing toleration can not be modified except its tolerationSeconds");
    }
}

/// While gates keep it, a pod's choice of nodes may become narrower.
fn placement(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let selector = &new["nodeSelector"];
    for (key, value) in old["nodeSelector"].as_object().into_iter().flatten() {
        if selector.get(key) != Some(value) {
            let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errors.invalid(path.field("nodeSelector"), selector.clone(), detail);
        }
    }
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let list = |spec: &Value| -> Vec<Value> {
        items(&spec["affinity"]["nodeAffinity"][REQUIRED], "nodeSelectorTerms").cloned().collect()
    };
    let (now, before) = (list(new), list(old));
    let path = path.field("affinity").field("nodeAffinity").field(REQUIRED).field("nodeSelectorTerms");
    if before.is_empty() {
        return;
    }
    if now.len() != before.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.invalid(path, Value::Array(now), detail);
        return;
    }
    for (at, (now, was)) in now.iter().zip(&before).enumerate() {
        let count = |term: &Value, key: &str| items(term, key).count();
        let keys = ["matchExpressions", "matchFields"];
        let was_empty = keys.iter().all(|key| count(was, key) == 0);
        let begins =
            |key: &&str| items(was, key).zip(items(now, key)).filter(|(a, b)| a == b).count() == count(was, key);
        let is_empty = keys.iter().all(|key| count(now, key) == 0);
        if (was_empty && !is_empty) || !keys.iter().all(begins) {
            let detail = "only additions are allowed (no mutations or deletions)";
            errors.invalid(path.index(at), now.clone(), detail);
        }
    }
}

/// Debugging containers can be added; those that are there stay as they are.
pub(in super::super) fn validate_ephemeral(new: &Value, old: &Value) -> Vec<FieldError> {
    if is_set(&old["metadata"]["annotations"], MIRROR) {
        return vec![FieldError::forbidden("[]", "static pods do not support ephemeral containers")];
    }
    let mut errors = Errors::default();
    for before in items(&old["spec"], "ephemeralContainers") {
        let name = text(before, "name");
        let why = match items(&new["spec"], "ephemeralContainers").find(|it| it["name"] == name) {
            Some(now) if now == before => continue,
            Some(_) => "changed",
            None => "removed",
        };
        let path = Path::new("spec.ephemeralContainers");
        errors.forbidden(path, format!("existing ephemeral containers {name:?} may not be {why}\n"));
    }
    errors.0
}

/// Processor and memory of containers that can go on, and of the pod; its class stays.
pub(in super::super) fn validate_resize(new: &Value, old: &Value) -> Vec<FieldError> {
    if is_set(&old["metadata"]["annotations"], MIRROR) {
        return vec![FieldError::forbidden("[]", "static pods cannot be resized")];
    }
    if old["spec"]["os"]["name"] == "windows" {
        return vec![FieldError::forbidden("[]", "windows pods cannot be resized")];
    }
    let mut errors = Errors::default();
    let path = Path::new("spec");
    let class = if text(&old["status"], "qosClass").is_empty() { qos(old) } else { text(&old["status"], "qosClass") };
    if class != qos(new) {
        errors.invalid(path.clone(), class, "Pod QOS Class may not change as a result of resizing");
    }
    let running = items(&old["status"], "containerStatuses").find(|status| is_set(&status["state"], "running"));
    if running.is_some_and(|status| status["resources"].is_null()) {
        errors.forbidden(path.clone(), "Pod running on node without support for resize");
    }
    let (new, old) = (&new["spec"], &old["spec"]);
    pod_level(new, old, &path, &mut errors);
    for list in ["containers", "initContainers"] {
        let path = path.field(list);
        if items(new, list).count() != items(old, list).count() {
            errors.forbidden(path, format!("{list} may not be added or removed on resize"));
            return errors.0;
        }
        for (at, (now, was)) in items(new, list).zip(items(old, list)).enumerate() {
            let path = path.index(at);
            if now["name"] != was["name"] {
                errors.forbidden(path.field("name"), format!("{list} may not be renamed or reordered on resize"));
                return errors.0;
            }
            container(now, was, list == "initContainers", &path, &mut errors);
        }
    }
    errors.0
}

fn pod_level(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let (now, was, place) = (&new["resources"], &old["resources"], path.field("resources"));
    if was.is_object() && now.is_null() {
        errors.forbidden(place, "pod-level resources cannot be removed");
        return;
    }
    for list in ["requests", "limits"] {
        if was.is_object() && removed(now, was, list) {
            errors.forbidden(place.field(list), format!("pod-level resource {list} cannot be removed"));
        }
    }
    if others(now) != others(was) {
        errors.forbidden(path.clone(), "only cpu and memory resources are mutable at pod-level");
    }
}

fn container(now: &Value, was: &Value, is_init: bool, path: &Path, errors: &mut Errors) {
    let place = path.field("resources");
    for list in ["requests", "limits"] {
        if removed(&now["resources"], &was["resources"], list) {
            errors.forbidden(place.field(list), format!("resource {list} cannot be removed"));
        }
    }
    let mut rest = now.clone();
    keep(&mut rest, was, "resources");
    let fixed = rest != *was || others(&now["resources"]) != others(&was["resources"]);
    if !is_init {
        if fixed {
            errors.forbidden(Path::new("spec"), "only cpu and memory resources are mutable");
        }
        return;
    }
    if fixed {
        let detail = "only cpu and memory resources for init or sidecar containers are mutable";
        errors.forbidden(path.clone(), detail);
    }
    let restarts = items(now, "resizePolicy").any(|policy| policy["restartPolicy"] == "RestartContainer");
    if now != was && was["restartPolicy"] != "Always" && restarts {
        let detail = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
        errors.forbidden(path.clone(), detail);
    }
}

fn removed(now: &Value, was: &Value, list: &str) -> bool {
    was[list].as_object().into_iter().flatten().any(|(name, _)| !is_set(&now[list], name))
}

/// What of resources a resize does not touch.
fn others(resources: &Value) -> Vec<(&str, &str, &Value)> {
    let mut others: Vec<_> = ["limits", "requests"]
        .into_iter()
        .flat_map(|list| {
            let amounts = resources[list].as_object().into_iter().flatten();
            amounts.map(move |(name, amount)| (list, name.as_str(), amount))
        })
        .filter(|(_, name, _)| !matches!(*name, "cpu" | "memory"))
        .collect();
    if is_set(resources, "claims") {
        others.push(("claims", "", &resources["claims"]));
    }
    others
}
