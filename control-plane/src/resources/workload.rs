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

pub(super) fn validate_job(object: &Value) -> Vec<FieldError> {
    validate_job_spec(&object["spec"], "spec")
}

/// What this version does not do is refused rather than ignored.
fn validate_job_spec(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for key in ["backoffLimitPerIndex", "podFailurePolicy", "successPolicy"] {
        if !spec[key].is_null() {
            let detail = "not supported by this version of stoker-control-plane";
            errors.push(FieldError::forbidden(format!("{path}.{key}"), detail));
        }
    }
    for key in ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"] {
        errors.extend(negative(spec, key, path));
    }
    errors.extend(pod_rules::validate_template(&spec["template"], &Path::new(path).field("template")));
    let policy = text(&spec["template"]["spec"], "restartPolicy");
    if !matches!(policy, "OnFailure" | "Never") {
        let path = format!("{path}.template.spec.restartPolicy");
        errors.push(match policy {
            "" | "Always" => FieldError::required(path, "valid values: \"OnFailure\", \"Never\""),
            other => FieldError::not_supported(path, other, &["OnFailure", "Never"]),
        });
    }
    if spec["completionMode"] == "Indexed" && spec["completions"].is_null() {
        errors.push(FieldError::required(format!("{path}.completions"), "when completion mode is Indexed"));
    }
    errors
}

fn negative(spec: &Value, key: &str, path: &str) -> Option<FieldError> {
    let value = spec[key].as_i64().filter(|value| *value < 0)?;
    Some(FieldError::invalid(format!("{path}.{key}"), value, "must be greater than or equal to 0"))
}

/// A Job's pods stay as they are; while it is suspended and was never started, where they may go can change.
pub(super) fn validate_job_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (spec, was) = (&new["spec"], &old["spec"]);
    let mut fixed =
        vec!["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"];
    // An indexed Job may grow and shrink as a whole.
    if was["completionMode"] != "Indexed" || spec["completions"] != spec["parallelism"] {
        fixed.insert(0, "completions");
    }
    let mut errors: Vec<FieldError> = fixed
        .into_iter()
        .filter(|key| spec[*key] != was[*key])
        .map(|key| FieldError::invalid(format!("spec.{key}"), spec[key].clone(), "field is immutable"))
        .collect();
    let mut template = spec["template"].clone();
    if was["suspend"] == true && old["status"]["startTime"].is_null() {
        for key in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
            keep(&mut template["spec"], &was["template"]["spec"], key);
        }
        if let Some(metadata) = template.get_mut("metadata") {
            for key in ["annotations", "labels"] {
                keep(metadata, &was["template"]["metadata"], key);
            }
        }
    }
    if template != was["template"] {
        errors.push(FieldError::invalid("spec.template", spec["template"].clone(), "field is immutable"));
    }
    errors
}

fn keep(to: &mut Value, from: &Value, key: &str) {
    let Some(fields) = to.as_object_mut() else { return };
    match from.get(key) {
        Some(value) => fields.insert(key.to_owned(), value.clone()),
        None => fields.remove(key),
    };
}

pub(super) fn validate_cron_job(object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let mut errors = Vec::new();
    let schedule = text(spec, "schedule");
    if schedule.is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    } else if schedule.contains("TZ") {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(FieldError::invalid("spec.schedule", schedule, detail));
    }
    for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        errors.extend(negative(spec, key, "spec"));
    }
    if spec["timeZone"] == "" {
        errors.push(FieldError::invalid("spec.timeZone", "", "timeZone must be nil or non-empty string"));
    }
    let policy = text(spec, "concurrencyPolicy");
    let policies = ["Allow", "Forbid", "Replace"];
    if !policies.contains(&policy) {
        errors.push(FieldError::not_supported("spec.concurrencyPolicy", policy, &policies));
    }
    let job = &spec["jobTemplate"]["spec"];
    errors.extend(validate_job_spec(job, "spec.jobTemplate.spec"));
    if !job["selector"].is_null() {
        let detail = "`selector` will be auto-generated";
        errors.push(FieldError::invalid("spec.jobTemplate.spec.selector", job["selector"].clone(), detail));
    }
    if job["manualSelector"] == true {
        let path = "spec.jobTemplate.spec.manualSelector";
        errors.push(FieldError::not_supported(path, true, &["nil", "false"]));
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
    fn jobs_are_refused_with_the_field() {
        // C3.24
        let job = |change: Value| {
            let mut job = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}}});
            json_patch::merge(&mut job["spec"], &change);
            default_job(&mut job);
            job
        };
        let texts = |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(validate_job(&job(json!({})))), [""; 0]);
        assert_eq!(
            texts(validate_job(&job(
                json!({"parallelism": -1, "template": {"spec": {"restartPolicy": "Always", "containers": [{"name": "c"}]}}})
            ))),
            [
                "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
                "spec.template.spec.containers[0].image: Required value",
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ]
        );
        let paths = |new: Value, old: Value| {
            validate_job_update(&job(new), &job(old)).into_iter().map(|error| error.path).collect::<Vec<_>>()
        };
        assert_eq!(paths(json!({"parallelism": 3}), json!({"parallelism": 1})), [""; 0]);
        assert_eq!(paths(json!({"completions": 3}), json!({})), ["spec.completions"]);
        let moved = json!({"suspend": true, "template": {"spec": {"nodeSelector": {"a": "b"}}}});
        assert_eq!(paths(moved.clone(), json!({"suspend": true})), [""; 0]);
        assert_eq!(paths(moved, json!({})), ["spec.template"]);
        let mut cron = json!({"spec": {"schedule": "TZ=UTC * * * * *", "concurrencyPolicy": "Some", "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never"}}}}}});
        default_cron_job(&mut cron);
        assert_eq!(
            texts(validate_cron_job(&cron)),
            [
                "spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
                "spec.concurrencyPolicy: Unsupported value: \"Some\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
                "spec.jobTemplate.spec.template.spec.containers: Required value",
            ]
        );
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
