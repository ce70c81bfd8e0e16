//! Pods over their life: what creation sets, what an update may change (C3.24).

use serde_json::{Value, json};

use super::field::FieldError;
use super::tree::{items, text};

/// What is computed of the resources of a pod's containers.
pub(super) fn prepare_create(pod: &mut Value) {
    let mut status = json!({"phase": "Pending", "qosClass": qos(pod)});
    if items(&pod["spec"], "schedulingGates").next().is_some() {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastTransitionTime": pod["metadata"]["creationTimestamp"],
        }]);
    }
    pod["status"] = status;
}

/// An update keeps what the server decided, also where the client left it out.
pub(super) fn prepare_update(new: &mut Value, old: &Value) {
    new["status"] = old["status"].clone();
    if new["status"].is_null()
        && let Some(fields) = new.as_object_mut()
    {
        fields.remove("status");
    }
}

/// Guaranteed, Burstable or BestEffort.
pub(super) fn qos(pod: &Value) -> &'static str {
    use stoker_model::quantity::Milli;
    let spec = &pod["spec"];
    let positive = |resources: &Value, list: &str, name: &str| -> Option<Milli> {
        let amount = resources.get(list)?.get(name)?;
        let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
        Milli::parse(&text).ok().filter(|quantity| !quantity.is_zero())
    };
    let (mut any, mut guaranteed) = (false, true);
    for container in items(spec, "containers").chain(items(spec, "initContainers")) {
        let resources = &container["resources"];
        for name in ["cpu", "memory"] {
            let (limit, request) = (positive(resources, "limits", name), positive(resources, "requests", name));
            any |= limit.is_some() || request.is_some();
            guaranteed &= match (limit, request) {
                (Some(limit), Some(request)) => limit == request,
                (Some(_), None) => true,
                _ => false,
            };
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Only images, deadlines, added tolerations, gates and a negative grace may change.
pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (new_spec, old_spec) = (&new["spec"], &old["spec"]);
    let mut errors = Vec::new();
    for (list, was) in [("containers", old_spec), ("initContainers", old_spec)] {
        if items(new_spec, list).count() != items(was, list).count() {
            errors.push(FieldError::forbidden(format!("spec.{list}"), "pod updates may not add or remove containers"));
            return errors;
        }
    }
    let mut allowed = new_spec.clone();
    for list in ["containers", "initContainers"] {
        for (at, was) in items(old_spec, list).enumerate() {
            if text(&allowed[list][at], "image").is_empty() {
                errors.push(FieldError::required(format!("spec.{list}[{at}].image"), ""));
            }
            allowed[list][at]["image"] = was["image"].clone();
        }
    }
    errors.extend(deadline(new_spec, old_spec));
    copy(&mut allowed, old_spec, "activeDeadlineSeconds");
    errors.extend(tolerations(new_spec, old_spec));
    copy(&mut allowed, old_spec, "tolerations");
    if items(old_spec, "schedulingGates").next().is_some() {
        let kept: Vec<&Value> = items(old_spec, "schedulingGates").collect();
        if items(new_spec, "schedulingGates").all(|gate| kept.contains(&gate)) {
            copy(&mut allowed, old_spec, "schedulingGates");
        }
    }
    if old_spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|grace| grace < 0)
        && new_spec["terminationGracePeriodSeconds"] == 1
    {
        copy(&mut allowed, old_spec, "terminationGracePeriodSeconds");
    }
    if allowed != *old_spec {
        errors.push(FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
    errors
}

fn copy(to: &mut Value, from: &Value, key: &str) {
    let Some(fields) = to.as_object_mut() else { return };
    match from.get(key) {
        Some(value) => fields.insert(key.to_owned(), value.clone()),
        None => fields.remove(key),
    };
}

fn deadline(new: &Value, old: &Value) -> Option<FieldError> {
    let path = "spec.activeDeadlineSeconds";
    match (new["activeDeadlineSeconds"].as_i64(), old["activeDeadlineSeconds"].as_i64()) {
        (Some(new), Some(old)) if new > old => {
            Some(FieldError::invalid(path, new, "must be less than or equal to previous value"))
        }
        (None, Some(_)) => {
            Some(FieldError::invalid(path, Value::Null, "must not update from a positive integer to nil value"))
        }
        _ => None,
    }
}

fn tolerations(new: &Value, old: &Value) -> Option<FieldError> {
    let new_list: Vec<&Value> = items(new, "tolerations").collect();
    let kept = items(old, "tolerations").all(|toleration| {
        new_list.iter().any(|new| {
            let same = |key| new.get(key) == toleration.get(key);
            same("key") && same("operator") && same("value") && same("effect")
        })
    });
    (!kept).then(|| {
        FieldError::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec})
    }

    #[test]
    fn only_a_few_fields_change() {
        // C3.24
        let old = pod(json!({"nodeName": "n", "containers": [{"name": "a", "image": "x:1"}]}));
        let image = pod(json!({"nodeName": "n", "containers": [{"name": "a", "image": "x:2"}]}));
        assert_eq!(validate_update(&image, &old), []);
        let moved = pod(json!({"nodeName": "m", "containers": [{"name": "a", "image": "x:1"}]}));
        let errors = validate_update(&moved, &old);
        assert!(
            errors[0].to_string().starts_with("spec: Forbidden: pod updates may not change fields other than "),
            "{errors:?}"
        );
        let more = pod(json!({"nodeName": "n", "containers": [{"name": "a", "image": "x:1"}, {"name": "b"}]}));
        assert_eq!(validate_update(&more, &old)[0].path, "spec.containers");
    }

    #[test]
    fn quality_of_service_follows_the_resources() {
        let of = |resources: Value| qos(&pod(json!({"containers": [{"resources": resources}]})));
        assert_eq!(of(json!({})), "BestEffort");
        assert_eq!(of(json!({"requests": {"cpu": "1"}})), "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(of(json!({"limits": both, "requests": both})), "Guaranteed");
        assert_eq!(of(json!({"limits": both, "requests": {"cpu": "1000m", "memory": "1024Mi"}})), "Guaranteed");
    }
}
