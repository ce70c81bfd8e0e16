//! Workloads: what upstream fills in, and what is wrong with them (C3.23, C3.24).

use serde_json::{Value, json};

use super::field::{FieldError, Path};
use super::pod_defaults::default_spec;
use super::pod_rules;
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
    errors.extend(pod_rules::validate_template(&spec["template"], &Path::new("spec.template")));
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
    use super::super::workload_rules;
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
        assert_eq!(workload_rules::validate(&object), []);
    }

    #[test]
    fn a_selector_stays() {
        // C3.24
        let mut changed = deployment();
        changed["spec"]["selector"] = json!({"matchLabels": {"app": "e"}});
        let errors = workload_rules::validate_update(&changed, &deployment());
        assert_eq!(
            errors[0].to_string(),
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"e\"}}: field is immutable"
        );
    }
}
