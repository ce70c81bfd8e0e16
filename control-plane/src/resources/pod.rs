//! Pods over their life: what creation and updates fill in beside what the client wrote.

use serde_json::{Value, json};
use stoker_model::quantity::Milli;

use super::quantities::parse;
use super::tree::{fill, is_set, items, items_mut, text};

/// What is computed of a new pod: phase and class, and what its annotations and labels say of its spec.
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
    let metadata = pod["metadata"].clone();
    let spec = &mut pod["spec"];
    select_own_labels(spec, &metadata["labels"]);
    read_app_armor(spec, &metadata["annotations"]);
}

/// The values of `matchLabelKeys` are the pod's own.
fn select_own_labels(spec: &mut Value, labels: &Value) {
    if let Some(affinity) = spec.get_mut("affinity") {
        for kind in ["podAffinity", "podAntiAffinity"] {
            let Some(kind) = affinity.get_mut(kind) else { continue };
            for term in items_mut(kind, "requiredDuringSchedulingIgnoredDuringExecution") {
                add_expressions(term, labels);
            }
            for term in items_mut(kind, "preferredDuringSchedulingIgnoredDuringExecution") {
                if let Some(term) = term.get_mut("podAffinityTerm") {
                    add_expressions(term, labels);
                }
            }
        }
    }
    for constraint in items_mut(spec, "topologySpreadConstraints") {
        add_expressions(constraint, labels);
    }
}

fn add_expressions(term: &mut Value, labels: &Value) {
    if !is_set(term, "labelSelector") {
        return;
    }
    let own: Vec<Value> = [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")]
        .into_iter()
        .flat_map(|(list, operator)| items(term, list).map(move |key| (key, operator)))
        .filter_map(|(key, operator)| {
            let value = labels.get(key.as_str()?)?;
            Some(json!({"key": key, "operator": operator, "values": [value]}))
        })
        .collect();
    if own.is_empty() {
        return;
    }
    let selector = &mut term["labelSelector"];
    fill(selector, "matchExpressions", json!([]));
    if let Some(expressions) = selector["matchExpressions"].as_array_mut() {
        expressions.extend(own);
    }
}

/// The annotations that came before the field still set it.
fn read_app_armor(spec: &mut Value, annotations: &Value) {
    if spec["os"]["name"] == "windows" {
        return;
    }
    let of_pod = spec["securityContext"]["appArmorProfile"].clone();
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            let key = format!("container.apparmor.security.beta.kubernetes.io/{}", text(container, "name"));
            let Some(given) = annotations[key].as_str() else { continue };
            let profile = match (given, given.strip_prefix("localhost/")) {
                ("unconfined", _) => json!({"type": "Unconfined"}),
                ("runtime/default", _) => json!({"type": "RuntimeDefault"}),
                (_, Some(name)) if !name.is_empty() && name.trim() == name => {
                    json!({"type": "Localhost", "localhostProfile": name})
                }
                _ => continue,
            };
            let own = container.get("securityContext").and_then(|context| context.get("appArmorProfile"));
            if own.is_none() && profile != of_pod {
                fill(container, "securityContext", json!({}));
                container["securityContext"]["appArmorProfile"] = profile;
            }
        }
    }
}

/// An update keeps what the server decided, also where the client left it out.
pub(super) fn prepare_update(new: &mut Value, old: &Value) {
    new["status"] = old["status"].clone();
    if new["status"].is_null()
        && let Some(fields) = new.as_object_mut()
    {
        fields.remove("status");
    }
    for key in ["priority", "preemptionPolicy"] {
        if is_set(&old["spec"], key) {
            fill(&mut new["spec"], key, old["spec"][key].clone());
        }
    }
}

/// The class was decided when the pod was made, and the owners are not the node's to change.
pub(super) fn prepare_status(new: &mut Value, old: &Value) {
    let class = text(&old["status"], "qosClass");
    if !class.is_empty() && text(&new["status"], "qosClass").is_empty() {
        fill(new, "status", json!({}));
        new["status"]["qosClass"] = json!(class);
    }
}

/// Guaranteed, Burstable or BestEffort; what is given for the whole pod decides alone.
pub(super) fn qos(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let positive = |resources: &Value, list: &str, name: &str| -> Option<Milli> {
        parse(resources.get(list)?.get(name)?).filter(|quantity| !quantity.is_zero())
    };
    let own = &spec["resources"];
    let has = |list: &str| own[list].as_object().is_some_and(|amounts| !amounts.is_empty());
    let all: Vec<&Value> = if has("requests") || has("limits") {
        vec![own]
    } else {
        items(spec, "containers")
            .chain(items(spec, "initContainers"))
            .map(|container| &container["resources"])
            .collect()
    };
    let (mut any, mut guaranteed) = (false, true);
    for resources in all {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec})
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

    #[test]
    fn the_pod_as_a_whole_decides_alone() {
        // A12.1
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let spec = json!({"resources": {"limits": both, "requests": both},
            "containers": [{"resources": {"requests": {"cpu": "1"}}}]});
        assert_eq!(qos(&pod(spec)), "Guaranteed");
    }

    #[test]
    fn keys_of_labels_become_expressions() {
        let term = json!({"labelSelector": {}, "matchLabelKeys": ["a", "none"], "mismatchLabelKeys": ["b"], "topologyKey": "t"});
        let mut made = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {
            "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}},
            "topologySpreadConstraints": [{"labelSelector": {"matchLabels": {"x": "y"}}, "matchLabelKeys": ["a"]}]}});
        prepare_create(&mut made);
        let in_a = json!({"key": "a", "operator": "In", "values": ["1"]});
        let spec = &made["spec"];
        assert_eq!(
            spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"]["matchExpressions"],
            json!([in_a, {"key": "b", "operator": "NotIn", "values": ["2"]}])
        );
        assert_eq!(spec["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"], json!([in_a]));
    }

    #[test]
    fn old_annotations_set_the_profile() {
        let key = "container.apparmor.security.beta.kubernetes.io/a";
        let mut made =
            json!({"metadata": {"annotations": {key: "localhost/mine"}}, "spec": {"containers": [{"name": "a"}]}});
        prepare_create(&mut made);
        assert_eq!(
            made["spec"]["containers"][0]["securityContext"]["appArmorProfile"],
            json!({"type": "Localhost", "localhostProfile": "mine"})
        );
    }
}
