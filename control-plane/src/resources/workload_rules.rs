//! What is wrong with ReplicationControllers, ReplicaSets, Deployments, DaemonSets, StatefulSets and pod templates
//! (C3.24), in upstream's words.

use serde_json::{Value, json};
use stoker_model::selector::{Labels, Selector};

use super::field::{Errors, FieldError, Path};
use super::selector_rules::{labels, selector};
use super::tree::{is_set, items, text};
use super::{format, pod_rules};

/// Of apps/v1.
pub(super) fn validate(object: &Value) -> Vec<FieldError> {
    let (kind, spec, path) = (text(object, "kind"), &object["spec"], Path::new("spec"));
    let mut errors = Errors::default();
    match kind {
        "StatefulSet" => stateful(spec, &path, &mut errors),
        "DaemonSet" => daemon_strategy(spec, &path.field("updateStrategy"), &mut errors),
        "Deployment" => strategy(spec, &path.field("strategy"), &mut errors),
        _ => {}
    }
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        not_negative(spec, key, &path, &mut errors);
    }
    let ready = spec["minReadySeconds"].as_i64().unwrap_or(0);
    if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64().filter(|deadline| *deadline <= ready) {
        errors.invalid(path.field("progressDeadlineSeconds"), deadline, "must be greater than minReadySeconds");
    }
    validate_selector(kind, spec, &path, &mut errors);
    let template = if kind == "StatefulSet" { with_claims(spec) } else { spec["template"].clone() };
    errors.0.extend(pod_rules::validate_template(&template, &path.field("template")));
    runs_on(kind, &spec["template"]["spec"], &path, &mut errors);
    errors.0
}

/// What runs on has pods that restart for ever.
fn runs_on(kind: &str, pod: &Value, path: &Path, errors: &mut Errors) {
    let path = path.field("template").field("spec");
    let policy = text(pod, "restartPolicy");
    if policy != "Always" {
        errors.not_supported(path.field("restartPolicy"), policy, &["Always"]);
    }
    if is_set(pod, "activeDeadlineSeconds") {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(path.field("activeDeadlineSeconds"), detail);
    }
}

fn not_negative(spec: &Value, key: &str, path: &Path, errors: &mut Errors) {
    if let Some(value) = spec[key].as_i64().filter(|value| *value < 0) {
        errors.invalid(path.field(key), value, "must be greater than or equal to 0");
    }
}

fn validate_selector(kind: &str, spec: &Value, path: &Path, errors: &mut Errors) {
    let given = &spec["selector"];
    let place = path.field("selector");
    if given.is_null() {
        errors.required(place, "");
        return;
    }
    let before = errors.0.len();
    selector(given, &place, errors);
    let is_empty = given["matchLabels"].as_object().is_none_or(|labels| labels.is_empty())
        && items(given, "matchExpressions").next().is_none();
    if is_empty {
        let detail = format!("empty selector is invalid for {}", kind.to_lowercase());
        errors.invalid(place, given.clone(), detail);
    }
    if errors.0.len() == before && !matches(given, spec) {
        let path = path.field("template").field("metadata").field("labels");
        let value = spec["template"]["metadata"]["labels"].clone();
        errors.invalid(path, value, "`selector` does not match template `labels`");
    }
}

fn matches(given: &Value, spec: &Value) -> bool {
    let labels: Labels = serde_json::from_value(spec["template"]["metadata"]["labels"].clone()).unwrap_or_default();
    let selector = serde_json::from_value(given.clone()).ok();
    selector.and_then(|selector| Selector::of(&selector).ok()).is_some_and(|selector| selector.matches(&labels))
}

/// A count or a share, and the number in it.
fn share(value: &Value, path: &Path, errors: &mut Errors) -> i64 {
    let Some(text) = value.as_str() else {
        let number = value.as_i64().unwrap_or(0);
        if number < 0 {
            errors.invalid(path.clone(), number, "must be greater than or equal to 0");
        }
        return number;
    };
    let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse::<i64>().ok()) {
        Some(number) => {
            if number > 100 && !path.to_string().ends_with("maxSurge") {
                errors.invalid(path.clone(), text, "must not be greater than 100%");
            }
            number
        }
        None => {
            let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.invalid(path.clone(), text, detail);
            0
        }
    }
}

fn strategy(spec: &Value, path: &Path, errors: &mut Errors) {
    let (strategy, place) = (&spec["strategy"], path.field("rollingUpdate"));
    match text(strategy, "type") {
        "RollingUpdate" => {
            let rolling = &strategy["rollingUpdate"];
            let down = share(&rolling["maxUnavailable"], &place.field("maxUnavailable"), errors);
            let up = share(&rolling["maxSurge"], &place.field("maxSurge"), errors);
            if down == 0 && up == 0 {
                let detail = "may not be 0 when `maxSurge` is 0";
                errors.invalid(place.field("maxUnavailable"), rolling["maxUnavailable"].clone(), detail);
            }
        }
        "Recreate" if is_set(strategy, "rollingUpdate") => {
            errors.forbidden(place, "may not be specified when strategy `type` is 'Recreate'");
        }
        "Recreate" => {}
        _ => errors.not_supported(path.clone(), strategy.clone(), &["Recreate", "RollingUpdate"]),
    }
}

fn daemon_strategy(spec: &Value, path: &Path, errors: &mut Errors) {
    let (strategy, place) = (&spec["updateStrategy"], path.field("rollingUpdate"));
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = &strategy["rollingUpdate"];
            let down = share(&rolling["maxUnavailable"], &place.field("maxUnavailable"), errors);
            let up = share(&rolling["maxSurge"], &place.field("maxSurge"), errors);
            if down != 0 && up != 0 {
                let detail = "may not be set when maxUnavailable is non-zero";
                errors.invalid(place.field("maxSurge"), rolling["maxSurge"].clone(), detail);
            } else if down == 0 && up == 0 {
                errors.required(place.field("maxUnavailable"), "cannot be 0 when maxSurge is 0");
            }
        }
        _ => errors.not_supported(path.clone(), strategy.clone(), &["RollingUpdate", "OnDelete"]),
    }
}

fn stateful(spec: &Value, path: &Path, errors: &mut Errors) {
    let policy = text(spec, "podManagementPolicy");
    if !matches!(policy, "OrderedReady" | "Parallel") {
        errors.invalid(path.field("podManagementPolicy"), policy, "must be 'OrderedReady' or 'Parallel'");
    }
    let (strategy, place) = (&spec["updateStrategy"], path.field("updateStrategy"));
    let rolling = &strategy["rollingUpdate"];
    match text(strategy, "type") {
        "OnDelete" if !rolling.is_null() => {
            let detail = "only allowed for updateStrategy 'RollingUpdate'";
            errors.invalid(place.field("rollingUpdate"), rolling.clone(), detail);
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            let place = place.field("rollingUpdate");
            not_negative(rolling, "partition", &place, errors);
            let most = &rolling["maxUnavailable"];
            if !most.is_null() && share(most, &place.field("maxUnavailable"), errors) == 0 {
                errors.invalid(place.field("maxUnavailable"), most.clone(), "cannot be 0");
            }
        }
        _ => errors.invalid(place, strategy.clone(), "must be 'RollingUpdate' or 'OnDelete'"),
    }
    let retention = &spec["persistentVolumeClaimRetentionPolicy"];
    for key in ["whenDeleted", "whenScaled"].into_iter().filter(|_| !retention.is_null()) {
        let value = text(retention, key);
        if !matches!(value, "Retain" | "Delete") {
            let place = path.field("persistentVolumeClaimRetentionPolicy").field(key);
            errors.not_supported(place, value, &["Retain", "Delete"]);
        }
    }
    for (at, claim) in items(spec, "volumeClaimTemplates").enumerate() {
        let place = path.field("volumeClaimTemplates").index(at).field("spec");
        pod_rules::validate_claim_spec(&claim["spec"], &place, errors);
    }
    not_negative(&spec["ordinals"], "start", &path.field("ordinals"), errors);
    let service = text(spec, "serviceName");
    if !service.is_empty() {
        errors.faults(&path.field("serviceName"), service, format::label(service));
    }
}

/// A StatefulSet's pods have its claims as volumes, and names that it gives.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) else { return template };
    pod.remove("hostname");
    pod.remove("subdomain");
    let names: Vec<&str> = items(spec, "volumeClaimTemplates").map(|claim| text(&claim["metadata"], "name")).collect();
    let mut volumes: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})).collect();
    volumes.extend(
        items(&spec["template"]["spec"], "volumes").filter(|volume| !names.contains(&text(volume, "name"))).cloned(),
    );
    pod.insert("volumes".to_owned(), Value::Array(volumes));
    template
}

/// A ReplicationController, whose selector is a map.
pub(super) fn validate_controller(object: &Value) -> Vec<FieldError> {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let mut errors = Errors::default();
    for key in ["minReadySeconds", "replicas"] {
        not_negative(spec, key, &path, &mut errors);
    }
    let selected = spec["selector"].as_object();
    if selected.is_none_or(|labels| labels.is_empty()) {
        errors.required(path.field("selector"), "");
    }
    labels(&spec["selector"], &path.field("selector"), &mut errors);
    if spec["template"].is_null() {
        errors.required(path.field("template"), "");
        return errors.0;
    }
    let given = &spec["template"]["metadata"]["labels"];
    if selected.into_iter().flatten().any(|(key, value)| given.get(key) != Some(value)) {
        let path = path.field("template").field("metadata").field("labels");
        errors.invalid(path, given.clone(), "`selector` does not match template `labels`");
    }
    errors.0.extend(pod_rules::validate_template(&spec["template"], &path.field("template")));
    runs_on("ReplicationController", &spec["template"]["spec"], &path, &mut errors);
    errors.0
}

/// A PodTemplate.
pub(super) fn validate_pod_template(object: &Value) -> Vec<FieldError> {
    pod_rules::validate_template(&object["template"], &Path::new("template"))
}

/// The selector of what has one stays.
pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if new["spec"]["selector"] == old["spec"]["selector"] {
        return Vec::new();
    }
    vec![FieldError::invalid("spec.selector", new["spec"]["selector"].clone(), "field is immutable")]
}

/// The data of a revision stays.
pub(super) fn validate_revision_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if new["data"] == old["data"] {
        return Vec::new();
    }
    vec![FieldError::invalid("data", new["data"].clone(), "field is immutable")]
}

/// A revision holds an object.
pub(super) fn validate_revision(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    not_negative(object, "revision", &Path::new(""), &mut errors);
    match &object["data"] {
        Value::Object(_) => {}
        Value::Null => errors.required(Path::new("data"), "data is mandatory"),
        _ => errors.required(Path::new("data"), "data must be a valid JSON object"),
    }
    errors.0
}

#[cfg(test)]
mod tests {
    use super::super::workload::{default_daemon_set, default_deployment, default_stateful_set};
    use super::*;

    #[track_caller]
    fn check(kind: &str, change: Value, expected: &[&str]) {
        let mut object = json!({"kind": kind, "metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}},
        }});
        json_patch::merge(&mut object, &json!({"spec": change}));
        match kind {
            "DaemonSet" => default_daemon_set(&mut object),
            "StatefulSet" => default_stateful_set(&mut object),
            _ => default_deployment(&mut object),
        }
        let found: Vec<String> = validate(&object).iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{kind} {change}");
    }

    #[test]
    fn workloads_are_refused_with_the_field() {
        // C3.24
        for kind in ["Deployment", "DaemonSet", "StatefulSet"] {
            check(kind, json!({}), &[]);
            check(
                kind,
                json!({"template": {"metadata": {"labels": {"app": "x"}}}}),
                &[
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template `labels`",
                ],
            );
            check(
                kind,
                json!({"template": {"spec": {"restartPolicy": "Never", "activeDeadlineSeconds": 5}}}),
                &[
                    "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                    &format!(
                        "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in {kind} is not Supported"
                    ),
                ],
            );
            check(
                kind,
                json!({"selector": {"matchLabels": null}}),
                &[&format!(
                    "spec.selector: Invalid value: {{}}: empty selector is invalid for {}",
                    kind.to_lowercase()
                )],
            );
            check(
                kind,
                json!({"template": {"spec": {"containers": [{"name": "c"}]}}}),
                &["spec.template.spec.containers[0].image: Required value"],
            );
        }
    }

    #[test]
    fn strategies_are_refused_with_the_field() {
        check(
            "Deployment",
            json!({"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}}}),
            &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"],
        );
        check(
            "Deployment",
            json!({"strategy": {"rollingUpdate": {"maxUnavailable": "120%"}}}),
            &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"120%\": must not be greater than 100%"],
        );
        check(
            "Deployment",
            json!({"progressDeadlineSeconds": 10, "minReadySeconds": 10}),
            &["spec.progressDeadlineSeconds: Invalid value: 10: must be greater than minReadySeconds"],
        );
        check(
            "DaemonSet",
            json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 1}}}),
            &[
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
            ],
        );
        check(
            "StatefulSet",
            json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": {"partition": 1}}}),
            &[
                "spec.updateStrategy.rollingUpdate: Invalid value: {\"partition\":1}: only allowed for updateStrategy 'RollingUpdate'",
            ],
        );
        check(
            "StatefulSet",
            json!({"volumeClaimTemplates": [{"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]}),
            &["spec.volumeClaimTemplates[0].spec.resources[storage]: Required value"],
        );
        check(
            "StatefulSet",
            json!({
                "volumeClaimTemplates": [{"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}}}}],
                "template": {"spec": {"containers": [{"name": "c", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}}
            }),
            &[],
        );
    }
}
