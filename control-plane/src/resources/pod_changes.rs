//! What the sub-resources `ephemeralcontainers` and `resize` may change of a pod: that, and nothing else (C1.1).

use serde_json::Value;

use super::field::FieldError;
use super::pod_rules;
use super::tree::{items, items_mut};

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
    if let Some(resources) = new["spec"].get("resources").filter(|resources| !resources.is_null()) {
        pod["spec"]["resources"] = resources.clone();
    } else if let Some(spec) = pod["spec"].as_object_mut() {
        spec.remove("resources");
    }
    for list in ["containers", "initContainers"] {
        let named = |pod: &Value| -> Vec<Value> { items(&pod["spec"], list).map(|it| it["name"].clone()).collect() };
        if named(new) != named(old) {
            // Validation refuses it.
            pod["spec"][list] = new["spec"][list].clone();
            continue;
        }
        for (container, wanted) in items_mut(&mut pod["spec"], list).zip(items(&new["spec"], list)) {
            for key in ["resources", "resizePolicy"] {
                match wanted.get(key) {
                    Some(value) => container[key] = value.clone(),
                    None => {
                        if let Some(fields) = container.as_object_mut() {
                            fields.remove(key);
                        }
                    }
                }
            }
        }
    }
    pod
}

/// What is wrong with such a change.
pub(crate) fn validate(subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    match subresource {
        "ephemeralcontainers" => pod_rules::validate_ephemeral(new, old),
        "resize" => pod_rules::validate_resize(new, old),
        _ => Vec::new(),
    }
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
            (
                json!([]),
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"a\" may not be removed\n",
            ),
            (
                json!([{"name": "a", "image": "j"}]),
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"a\" may not be changed\n",
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
            ["spec: Forbidden: only cpu and memory resources are mutable"]
        );
        let none = validate("resize", &pod(json!({"requests": {"cpu": "1"}})), &pod(json!({})));
        assert_eq!(
            texts(&none),
            ["spec: Invalid value: \"BestEffort\": Pod QOS Class may not change as a result of resizing"]
        );
    }
}
