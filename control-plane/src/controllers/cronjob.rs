//! CronJobs: a Job at each time of the schedule (C7.6). When that is, is in `cron`.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Context;
use super::cron::Schedule;
use super::deployment_status::condition;
use super::informer::Informer;
use super::owner::{controller_of, controller_reference, is_being_deleted, is_controlled_by};
use super::queue::{Key, Queue};
use crate::api::{DeleteOptions, Propagation, WriteOptions};
use crate::clock;
use crate::recorder::Recorder;
use crate::resources::status::StatusError;
use crate::resources::tree::{fill, items, text};

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are worth a warning.
const MANY: usize = 100;

#[derive(Clone)]
struct CronJobs {
    crons: Arc<Informer>,
    jobs: Arc<Informer>,
    recorder: Recorder,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = CronJobs {
        crons: context.informers.of("batch", "cronjobs"),
        jobs: context.informers.of("batch", "jobs"),
        recorder: context.recorder.of("cronjob-controller"),
    };
    let queue = Queue::default();
    let of_cron = queue.clone();
    controller.crons.on_change(move |_, new| {
        if let Some(cron) = new {
            of_cron.add(Key::of(cron));
        }
    });
    let of_job = queue.clone();
    controller.jobs.on_change(move |old, new| {
        if let Some(job) = new.or(old)
            && let Some(owner) = controller_of(job).filter(|owner| owner["kind"] == "CronJob")
        {
            of_job.add(Key::new(text(&job["metadata"], "namespace"), text(owner, "name")));
        }
    });
    Box::new(move |context| {
        queue.work("cronjob", 2, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    })
}

/// How a Job ended.
fn ended(job: &Value) -> Option<&'static str> {
    let has = |kind| condition(&job["status"], kind).is_some_and(|it| it["status"] == "True");
    ["Complete", "Failed"].into_iter().find(|kind| has(kind))
}

fn time(object: &Value, key: &str) -> Option<Timestamp> {
    text(object, key).parse().ok()
}

impl CronJobs {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let Some(cron) = self.crons.get(&key.namespace, &key.name).filter(|cron| !is_being_deleted(cron)) else {
            return Ok(None);
        };
        let mut jobs = self.jobs.list(&key.namespace);
        jobs.retain(|job| is_controlled_by(job, &cron));
        let mut status = if cron["status"].is_object() { cron["status"].clone() } else { json!({}) };
        self.settle(&cron, &jobs, &mut status);
        self.forget_old(&cron, &jobs).await?;
        let again = self.start(&cron, &jobs, &mut status).await;
        self.write_status(&cron, status).await?;
        again
    }

    /// What became of the Jobs that the status names.
    fn settle(&self, cron: &Value, jobs: &[Arc<Value>], status: &mut Value) {
        let active: Vec<Value> = items(status, "active").cloned().collect();
        let mut kept = Vec::new();
        for reference in active {
            let name = text(&reference, "name");
            match jobs.iter().find(|job| job["metadata"]["uid"] == reference["uid"]) {
                None => self.recorder.normal(cron, "MissingJob", format!("Active job went missing: {name}")),
                Some(job) => match ended(job) {
                    None => kept.push(reference),
                    Some(how) => {
                        let told = format!("Saw completed job: {name}, condition: {how}");
                        self.recorder.normal(cron, "SawCompletedJob", told);
                    }
                },
            }
        }
        for job in jobs.iter().filter(|job| ended(job).is_none() && !is_being_deleted(job)) {
            if !kept.iter().any(|reference| reference["uid"] == job["metadata"]["uid"]) {
                // Ours, written before the status was: the name tells.
                kept.push(reference_to(job));
            }
        }
        let done = jobs.iter().filter(|job| ended(job) == Some("Complete"));
        let last = done.filter_map(|job| time(&job["status"], "completionTime")).max();
        if let Some(last) = last.filter(|last| time(status, "lastSuccessfulTime").is_none_or(|known| known < *last)) {
            status["lastSuccessfulTime"] = json!(clock::seconds_text(last));
        }
        set_active(status, kept);
    }

    /// Deletes the oldest of those that ended, as far as the limits say.
    async fn forget_old(&self, cron: &Value, jobs: &[Arc<Value>]) -> Result<(), StatusError> {
        for (how, limit) in [("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")] {
            let Some(limit) = cron["spec"][limit].as_u64() else { continue };
            let mut done: Vec<&Arc<Value>> =
                jobs.iter().filter(|job| ended(job) == Some(how) && !is_being_deleted(job)).collect();
            done.sort_by_key(|job| {
                Reverse((text(&job["status"], "startTime").to_owned(), text(&job["metadata"], "name").to_owned()))
            });
            for job in done.iter().skip(usize::try_from(limit).unwrap_or(usize::MAX)) {
                self.delete(cron, job).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, cron: &Value, job: &Value) -> Result<(), StatusError> {
        let Key { namespace, name } = Key::of(job);
        let uid = Some(text(&job["metadata"], "uid").to_owned());
        let options = DeleteOptions { uid, propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        match self.jobs.objects.delete(&namespace, &name, &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => {
                self.recorder.warning(cron, "FailedDelete", format!("Deleted job: {error}"));
                Err(error)
            }
            _ => {
                self.recorder.normal(cron, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
        }
    }

    /// Makes the Job whose time has come; says when to look again.
    async fn start(
        &self,
        cron: &Value,
        jobs: &[Arc<Value>],
        status: &mut Value,
    ) -> Result<Option<Duration>, StatusError> {
        let spec = &cron["spec"];
        if spec["suspend"] == true {
            return Ok(None);
        }
        let schedule = match Schedule::parse(text(spec, "schedule"), spec["timeZone"].as_str()) {
            Ok(schedule) => schedule,
            Err(error) => {
                let told = format!("unparseable schedule: {} : {error}", text(spec, "schedule"));
                self.recorder.warning(cron, "UnparseableSchedule", told);
                return Ok(None);
            }
        };
        let now = clock::now();
        let again = schedule.next(now).map(|next| Duration::try_from(next.duration_since(now)).unwrap_or_default());
        let known = time(status, "lastScheduleTime");
        let Some(mut from) = known.or_else(|| time(&cron["metadata"], "creationTimestamp")) else { return Ok(again) };
        let deadline = spec["startingDeadlineSeconds"].as_i64().map(SignedDuration::from_secs);
        if let Some(oldest) = deadline.and_then(|deadline| now.checked_sub(deadline).ok()) {
            from = from.max(oldest);
        }
        let Some((due, missed)) = schedule.last(from, now) else { return Ok(again) };
        if missed > MANY {
            let told = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.recorder.warning(cron, "TooManyMissedTimes", told.to_owned());
        }
        if deadline.is_some_and(|deadline| due.checked_add(deadline).is_ok_and(|end| end < now)) {
            let told = format!("Missed scheduled time to start a job: {}", due.strftime("%a, %d %b %Y %H:%M:%S +0000"));
            self.recorder.warning(cron, "MissSchedule", told);
            return Ok(again);
        }
        let name = format!("{}-{}", text(&cron["metadata"], "name"), due.as_second() / 60);
        let is_done = known == Some(due) || jobs.iter().any(|job| text(&job["metadata"], "name") == name);
        if is_done {
            status["lastScheduleTime"] = json!(clock::seconds_text(due.max(known.unwrap_or(due))));
            return Ok(again);
        }
        let running: Vec<&Arc<Value>> = jobs.iter().filter(|job| ended(job).is_none()).collect();
        match text(spec, "concurrencyPolicy") {
            "Forbid" if !running.is_empty() => {
                let told = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.recorder.normal(cron, "JobAlreadyActive", told.to_owned());
                return Ok(again);
            }
            "Replace" => {
                for job in running {
                    self.delete(cron, job).await?;
                }
                set_active(status, Vec::new());
            }
            _ => {}
        }
        let job = job_of(cron, &name, &schedule.show(due));
        let namespace = text(&cron["metadata"], "namespace");
        match self.jobs.objects.create(namespace, job, &WriteOptions::default()).await {
            Ok(created) => {
                self.jobs.wait_for(&created).await;
                self.recorder.normal(cron, "SuccessfulCreate", format!("Created job {name}"));
                let mut active: Vec<Value> = items(status, "active").cloned().collect();
                active.push(reference_to(&created));
                set_active(status, active);
            }
            Err(error) if error.is_already_exists() => {
                let told = format!("Error creating job: {error}");
                self.recorder.warning(cron, "FailedCreate", told);
            }
            Err(error) => {
                self.recorder.warning(cron, "FailedCreate", format!("Error creating job: {error}"));
                return Err(error);
            }
        }
        status["lastScheduleTime"] = json!(clock::seconds_text(due));
        Ok(again)
    }

    async fn write_status(&self, cron: &Value, status: Value) -> Result<(), StatusError> {
        if status == cron["status"] || (status == json!({}) && cron["status"].is_null()) {
            return Ok(());
        }
        let Key { namespace, name } = Key::of(cron);
        let change = |stored: &mut Value| {
            let differs = stored["status"] != status;
            stored["status"] = status.clone();
            differs
        };
        match self.crons.objects.modify(&namespace, &name, "status", change).await {
            Ok(written) => self.crons.wait_for(&written).await,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn set_active(status: &mut Value, active: Vec<Value>) {
    if !active.is_empty() {
        status["active"] = Value::Array(active);
    } else if let Some(fields) = status.as_object_mut() {
        fields.remove("active");
    }
}

fn reference_to(job: &Value) -> Value {
    let metadata = &job["metadata"];
    json!({"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "namespace": metadata["namespace"],
        "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]})
}

fn job_of(cron: &Value, name: &str, scheduled: &str) -> Value {
    let template = &cron["spec"]["jobTemplate"];
    let mut metadata = json!({"name": name, "namespace": cron["metadata"]["namespace"],
        "ownerReferences": [controller_reference(cron)]});
    for key in ["labels", "annotations"] {
        if template["metadata"][key].is_object() {
            metadata[key] = template["metadata"][key].clone();
        }
    }
    fill(&mut metadata, "annotations", json!({}));
    metadata["annotations"][SCHEDULED] = json!(scheduled);
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]})
}
