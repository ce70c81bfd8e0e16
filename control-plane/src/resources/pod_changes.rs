//! What the sub-resources `ephemeralcontainers` and `resize` may change of a pod: that, and nothing else (C1.1).

use serde_json::Value;

use super::field::FieldError;
use super::pod::qos;
use super::tree::{items, items_mut, text};

/// Takes what the sub-resource is for from `new`, and all else from the pod as it is.
pub(crate) fn only(subresource: &str, new: &Value, old: &Value) -> Value {
    let mut pod = old.clone();
    // Who set what was noted by whoever applied it.
    if let Some(fields) = new["metadata"].get("managedFields").filter(|fields| fields.is_array()) {
        pod["metadata"]["managedFields"] = fields.clone();
    }
    if subresource == "ephemeralcontainers" {
        match new["spec"].get("ephemeralContainers").filter(|list| !list.is_null()) {
            Some(list) => pod["spec"]["ephemeralContainers"] = list.clone(),
            None => {
                if let Some(spec) = pod["spec"].as_object_mut() {
                    spec.remove("ephemeralContainers");
                }
            }
        }
        return pod;
    }
    for list in ["containers", "initContainers"] {
        for container in items_mut(&mut pod["spec"], list) {
            let Some(wanted) = items(&new["spec"], list).find(|it| it["name"] == container["name"]) else { continue };
            for key in ["resources", "resizePolicy"] {
                if let Some(value) = wanted.get(key) {
                    container[key] = value.clone();
                }
            }
        }
    }
    pod
}

/// What is wrong with such a change.
pub(crate) fn validate(subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    match subresource {
        "ephemeralcontainers" => validate_ephemeral(new, old),
        "resize" => validate_resize(new, old),
        _ => Vec::new(),
    }
}

/// They can be added; those that are there stay as they are.
fn validate_ephemeral(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for before in items(&old["spec"], "ephemeralContainers") {
        let name = text(before, "name");
        let why = match items(&new["spec"], "ephemeralContainers").find(|it| it["name"] == name) {
            Some(now) if now == before => continue,
            Some(_) => "changed",
            None => "removed",
        };
        let message = format!("existing ephemeral containers {name:?} may not be {why}");
        errors.push(FieldError::forbidden("spec.ephemeralContainers", message));
    }
    let others = ["containers", "initContainers"].into_iter().flat_map(|list| items(&new["spec"], list));
    let taken: Vec<&str> = others.map(|container| text(container, "name")).collect();
    for (nth, container) in items(&new["spec"], "ephemeralContainers").enumerate() {
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !taken.contains(&target) {
            let path = format!("spec.ephemeralContainers[{nth}].targetContainerName");
            errors.push(FieldError::not_found(path, target));
        }
    }
    errors
}

/// Processor and memory of containers that can go on; the class of the pod stays.
fn validate_resize(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for list in ["containers", "initContainers"] {
        for (nth, (now, before)) in items(&new["spec"], list).zip(items(&old["spec"], list)).enumerate() {
            if now["resources"] == before["resources"] {
                continue;
            }
            let path = format!("spec.{list}[{nth}].resources");
            if list == "initContainers" && before["restartPolicy"] != "Always" {
                errors.push(FieldError::forbidden(path, "resources for non-sidecar init containers are immutable"));
                continue;
            }
            for part in ["requests", "limits"] {
                let others = |container: &Value| -> Vec<(String, Value)> {
                    let resources = container["resources"][part].as_object().cloned().unwrap_or_default();
                    resources.into_iter().filter(|(name, _)| name != "cpu" && name != "memory").collect()
                };
                if others(now) != others(before) {
                    errors.push(FieldError::forbidden(path.clone(), "only cpu and memory resources are mutable"));
                }
                for name in ["cpu", "memory"] {
                    let has = |container: &Value| !container["resources"][part][name].is_null();
                    if has(before) && !has(now) {
                        let path = format!("{path}.{part}");
                        errors.push(FieldError::forbidden(path, format!("resource {part} cannot be removed")));
                    }
                }
            }
        }
    }
    if qos(new) != qos(old) {
        let message = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("metadata", qos(new), message));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_else_comes_along() {
        let old = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "good", "resources": {}}]}});
        let new = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"hostNetwork": true,
            "containers": [{"name": "c", "image": "evil", "resources": {"requests": {"cpu": "1"}}}],
            "ephemeralContainers": [{"name": "debug"}]}});
        let debug = only("ephemeralcontainers", &new, &old);
        assert_eq!(
            debug["spec"],
            json!({"containers": [{"name": "c", "image": "good", "resources": {}}], "ephemeralContainers": [{"name": "debug"}]})
        );
        assert!(debug["metadata"]["labels"].is_null());
        let resized = only("resize", &new, &old);
        assert_eq!(
            resized["spec"],
            json!({"containers": [{"name": "c", "image": "good", "resources": {"requests": {"cpu": "1"}}}]})
        );
    }

    #[test]
    fn ephemeral_containers_are_only_added() {
        let pod = |list: Value| json!({"spec": {"containers": [{"name": "c"}], "ephemeralContainers": list}});
        let old = pod(json!([{"name": "a", "image": "i"}]));
        assert!(
            validate(
                "ephemeralcontainers",
                &pod(json!([{"name": "a", "image": "i"}, {"name": "b", "targetContainerName": "c"}])),
                &old
            )
            .is_empty()
        );
        for (list, expected) in [
            (json!([]), "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"a\" may not be removed"),
            (
                json!([{"name": "a", "image": "j"}]),
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"a\" may not be changed",
            ),
        ] {
            assert_eq!(texts(&validate("ephemeralcontainers", &pod(list), &old)), [expected]);
        }
    }

    #[test]
    fn a_resize_keeps_the_class_and_other_resources() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        let old = pod(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "example.com/gpu": "1"}}));
        let good = pod(json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "example.com/gpu": "1"}}));
        assert!(validate("resize", &good, &old).is_empty());
        let other = pod(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "example.com/gpu": "2"}}));
        assert_eq!(
            texts(&validate("resize", &other, &old)),
            ["spec.containers[0].resources: Forbidden: only cpu and memory resources are mutable"]
        );
        let none = validate("resize", &pod(json!({"requests": {"cpu": "1"}})), &pod(json!({})));
        assert_eq!(
            texts(&none),
            ["metadata: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing"]
        );
    }
}
