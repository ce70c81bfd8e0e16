//! Workloads: what upstream fills in, and what is wrong with them (C3.23, C3.24).

use serde_json::{Value, json};
use stoker_model::selector::{Labels, Selector};

use super::field::FieldError;
use super::pod_defaults::default_spec;
use super::pod_validation::validate_spec;
use super::tree::{child, fill, fill_text, items_mut, text};

fn template(spec: &mut Value) {
    let template = child(spec, "template");
    default_spec(child(template, "spec"));
}

pub(super) fn default_deployment(object: &mut Value) {
    let spec = child(object, "spec");
    template(spec);
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
    let strategy = child(spec, "strategy");
    fill_text(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        fill(rolling, "maxUnavailable", "25%");
        fill(rolling, "maxSurge", "25%");
    }
}

pub(super) fn default_replica_set(object: &mut Value) {
    let spec = child(object, "spec");
    template(spec);
    fill(spec, "replicas", 1);
}

pub(super) fn default_daemon_set(object: &mut Value) {
    let spec = child(object, "spec");
    template(spec);
    fill(spec, "revisionHistoryLimit", 10);
    let strategy = child(spec, "updateStrategy");
    fill_text(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        fill(rolling, "maxUnavailable", 1);
        fill(rolling, "maxSurge", 0);
    }
}

pub(super) fn default_stateful_set(object: &mut Value) {
    let spec = child(object, "spec");
    template(spec);
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill_text(spec, "podManagementPolicy", "OrderedReady");
    let strategy = child(spec, "updateStrategy");
    fill_text(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        fill(child(strategy, "rollingUpdate"), "partition", 0);
    }
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    fill_text(retention, "whenDeleted", "Retain");
    fill_text(retention, "whenScaled", "Retain");
    for claim in items_mut(spec, "volumeClaimTemplates") {
        fill_text(child(claim, "spec"), "volumeMode", "Filesystem");
    }
}

pub(super) fn default_pod_template(object: &mut Value) {
    template_of(object);
}

fn template_of(object: &mut Value) {
    let template = child(object, "template");
    default_spec(child(template, "spec"));
}

pub(super) fn default_replication_controller(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    let spec = child(object, "spec");
    template(spec);
    fill(spec, "replicas", 1);
    if labels.is_object() {
        fill(spec, "selector", labels.clone());
        fill(child(object, "metadata"), "labels", labels);
    }
}

pub(super) fn default_job(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if labels.is_object() {
        fill(child(object, "metadata"), "labels", labels);
    }
    default_job_spec(child(object, "spec"));
}

/// The selector and the labels of a new Job's pods, which no other job has (C7.5).
pub(super) fn prepare_job(object: &mut Value) {
    let (uid, name) = (object["metadata"]["uid"].clone(), object["metadata"]["name"].clone());
    let spec = child(object, "spec");
    if spec["manualSelector"] == true {
        return;
    }
    let labels = child(child(child(spec, "template"), "metadata"), "labels");
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        if !value.is_null() {
            fill(labels, key, value.clone());
        }
    }
    fill(spec, "selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
}

/// What this version does not do is refused rather than ignored.
pub(super) fn validate_job(object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let mut errors = Vec::new();
    for key in ["backoffLimitPerIndex", "podFailurePolicy", "successPolicy"] {
        if !spec[key].is_null() {
            errors.push(FieldError::forbidden(
                format!("spec.{key}"),
                "not supported by this version of stoker-control-plane",
            ));
        }
    }
    for key in ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"] {
        if let Some(value) = spec[key].as_i64().filter(|value| *value < 0) {
            errors.push(FieldError::invalid(format!("spec.{key}"), value, "must be greater than or equal to 0"));
        }
    }
    let policy = text(&spec["template"]["spec"], "restartPolicy");
    if !matches!(policy, "OnFailure" | "Never") {
        let path = "spec.template.spec.restartPolicy";
        errors.push(match policy {
            "" | "Always" => FieldError::required(path, "valid values: \"OnFailure\", \"Never\""),
            other => FieldError::not_supported(path, other, &["OnFailure", "Never"]),
        });
    }
    if spec["completionMode"] == "Indexed" && spec["completions"].is_null() {
        errors.push(FieldError::required("spec.completions", "when completion mode is Indexed"));
    }
    errors
}

fn default_job_spec(spec: &mut Value) {
    template(spec);
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        spec["completions"] = json!(1);
    }
    fill(spec, "parallelism", 1);
    let per_index = !spec["backoffLimitPerIndex"].is_null();
    fill(spec, "backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
    fill_text(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    fill(spec, "manualSelector", false);
    let policy = if spec["podFailurePolicy"].is_object() { "Failed" } else { "TerminatingOrFailed" };
    fill_text(spec, "podReplacementPolicy", policy);
    for key in ["backoffLimitPerIndex", "podFailurePolicy"] {
        if spec[key].is_null()
            && let Some(fields) = spec.as_object_mut()
        {
            fields.remove(key);
        }
    }
}

pub(super) fn default_cron_job(object: &mut Value) {
    let spec = child(object, "spec");
    fill_text(spec, "concurrencyPolicy", "Allow");
    fill(spec, "suspend", false);
    fill(spec, "successfulJobsHistoryLimit", 3);
    fill(spec, "failedJobsHistoryLimit", 1);
    let job = child(spec, "jobTemplate");
    default_job_spec(child(job, "spec"));
}

/// Deployments, ReplicaSets, DaemonSets, StatefulSets.
pub(super) fn validate(object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let mut errors = Vec::new();
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        if let Some(value) = spec[key].as_i64().filter(|value| *value < 0) {
            errors.push(FieldError::invalid(format!("spec.{key}"), value, "must be greater than or equal to 0"));
        }
    }
    validate_selector(spec, &mut errors);
    if let (Some(ready), Some(deadline)) = (
        spec["minReadySeconds"].as_i64().or(Some(0)),
        spec["progressDeadlineSeconds"].as_i64().filter(|_| object["kind"] == "Deployment"),
    ) && deadline <= ready
    {
        let detail = "must be greater than minReadySeconds";
        errors.push(FieldError::invalid("spec.progressDeadlineSeconds", deadline, detail));
    }
    errors.extend(validate_strategy(object));
    errors.extend(validate_spec(&spec["template"]["spec"], "spec.template.spec"));
    let policy = text(&spec["template"]["spec"], "restartPolicy");
    if matches!(policy, "Never" | "OnFailure") {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if !spec["template"]["spec"]["activeDeadlineSeconds"].is_null() {
        let kind = text(object, "kind");
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", detail));
    }
    errors
}

fn validate_selector(spec: &Value, errors: &mut Vec<FieldError>) {
    let given = &spec["selector"];
    let is_empty = given["matchLabels"].as_object().is_none_or(|labels| labels.is_empty())
        && given["matchExpressions"].as_array().is_none_or(Vec::is_empty);
    if given.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
        return;
    }
    if is_empty {
        errors.push(FieldError::invalid("spec.selector", given.clone(), "empty selector is invalid for deployment"));
        return;
    }
    let labels: Labels = serde_json::from_value(spec["template"]["metadata"]["labels"].clone()).unwrap_or_default();
    match serde_json::from_value(given.clone()).ok().map(|selector| Selector::of(&selector)) {
        Some(Ok(selector)) if !selector.matches(&labels) => {
            let detail = "`selector` does not match template `labels`";
            let value = spec["template"]["metadata"]["labels"].clone();
            errors.push(FieldError::invalid("spec.template.metadata.labels", value, detail));
        }
        Some(Err(error)) => {
            errors.push(FieldError::invalid("spec.selector", given.clone(), error.to_string()));
        }
        _ => {}
    }
}

fn validate_strategy(object: &Value) -> Vec<FieldError> {
    if object["kind"] != "Deployment" {
        return Vec::new();
    }
    let strategy = &object["spec"]["strategy"];
    match text(strategy, "type") {
        "RollingUpdate" => {
            let rolling = &strategy["rollingUpdate"];
            let is_zero = |key: &str| rolling[key] == 0 || rolling[key] == "0%";
            if is_zero("maxUnavailable") && is_zero("maxSurge") {
                let path = "spec.strategy.rollingUpdate.maxUnavailable";
                let detail = "may not be 0 when `maxSurge` is 0";
                return vec![FieldError::invalid(path, rolling["maxUnavailable"].clone(), detail)];
            }
            Vec::new()
        }
        "Recreate" if !strategy["rollingUpdate"].is_null() => vec![FieldError::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        )],
        "Recreate" => Vec::new(),
        other => vec![FieldError::not_supported("spec.strategy.type", other, &["Recreate", "RollingUpdate"])],
    }
}

pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if new["spec"]["selector"] == old["spec"]["selector"] {
        return Vec::new();
    }
    vec![FieldError::invalid("spec.selector", new["spec"]["selector"].clone(), "field is immutable")]
}

pub(super) fn validate_stateful_set_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut allowed = new["spec"].clone();
    for key in [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ] {
        let Some(fields) = allowed.as_object_mut() else { break };
        match old["spec"].get(key) {
            Some(value) => fields.insert(key.to_owned(), value.clone()),
            None => fields.remove(key),
        };
    }
    if allowed == old["spec"] {
        return Vec::new();
    }
    vec![FieldError::forbidden(
        "spec",
        "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Value {
        let mut object = json!({
            "kind": "Deployment", "metadata": {"name": "d"},
            "spec": {
                "selector": {"matchLabels": {"app": "d"}},
                "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}},
            },
        });
        default_deployment(&mut object);
        object
    }

    #[test]
    fn a_deployment_gets_what_upstream_writes() {
        // C3.23
        let object = deployment();
        let spec = &object["spec"];
        assert_eq!(spec["replicas"], 1);
        assert_eq!(spec["revisionHistoryLimit"], 10);
        assert_eq!(spec["progressDeadlineSeconds"], 600);
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
        assert_eq!(spec["template"]["spec"].get("enableServiceLinks"), None);
        assert_eq!(validate(&object), []);
    }

    #[test]
    fn a_selector_must_fit_and_stay() {
        // C3.24
        let mut other = deployment();
        other["spec"]["template"]["metadata"]["labels"] = json!({"app": "x"});
        assert_eq!(
            validate(&other)[0].to_string(),
            "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template `labels`"
        );
        let mut changed = deployment();
        changed["spec"]["selector"] = json!({"matchLabels": {"app": "e"}});
        assert!(validate_update(&changed, &deployment())[0].to_string().ends_with(": field is immutable"));
    }
}
