//! Jobs: pods that run to their end, counted once each (C7.5). What the counts mean is in `job_status`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::job_policy;
use super::job_status::{self as status, Decision, FINALIZER, INDEX};
use super::owner::{is_being_deleted, selector_of};
use super::pod_control::{PodControl, pod_of};
use super::queue::{Key, Queue};
use crate::api::{DeleteOptions, Propagation, WriteOptions};
use crate::clock;
use crate::resources::status::StatusError;
use crate::resources::tree::{fill, items, items_mut, text};

const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// Made in one go at most.
const BURST: usize = 500;

#[derive(Clone)]
struct Jobs {
    jobs: Arc<Informer>,
    control: PodControl,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let control =
        PodControl { pods: context.informers.of("", "pods"), recorder: context.recorder.of("job-controller") };
    let controller = Jobs { jobs: context.informers.of("batch", "jobs"), control };
    let queue = Queue::default();
    let of_job = queue.clone();
    controller.jobs.on_change(move |old, new| {
        if let Some(job) = new.or(old) {
            of_job.add(Key::of(job));
        }
    });
    controller.control.follow("Job", &controller.jobs, &queue);
    Box::new(move |context| {
        queue.work("job", 4, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    })
}

impl Jobs {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let Some(job) = self.jobs.get(&key.namespace, &key.name) else {
            self.let_orphans_go(key).await?;
            return Ok(None);
        };
        // Another controller's, by the user's wish.
        let manager = text(&job["spec"], "managedBy");
        if !manager.is_empty() && manager != "kubernetes.io/job-controller" {
            return Ok(None);
        }
        let Some(selector) = selector_of(&job) else { return Ok(None) };
        let pods = self.control.claimed(&job, &selector).await?;
        if is_being_deleted(&job) {
            self.uncount(pods.iter()).await?;
            return Ok(None);
        }
        if let Some(finished) = status::finished_at(&job) {
            self.uncount(pods.iter()).await?;
            return self.expire(&job, finished).await;
        }
        let now = clock::now();
        let mut view = status::look(&job, &pods, now);
        let mut again = view.again;
        match view.decision {
            Decision::Run { missing, excess } => {
                for pod in status::first_to_go(&pods, excess) {
                    self.delete(&job, &pod).await?;
                }
                let made = self.create(&job, &pods, missing.min(BURST)).await;
                if made.is_ok() {
                    // As they are after our own writes.
                    view = status::look(&job, &self.control.of(&job), now);
                    again = view.again;
                }
                self.write_status(&job, &view.status).await?;
                made?;
            }
            Decision::Stop => {
                for pod in pods.iter().filter(|pod| status::is_active(pod)) {
                    self.delete(&job, pod).await?;
                }
                let view = status::look(&job, &self.control.of(&job), now);
                self.write_status(&job, &view.status).await?;
            }
        }
        for (reason, message) in view.events {
            self.control.recorder.normal(&job, reason, message.to_owned());
        }
        // Only what the stored status names is counted, so it may forget who it was.
        let counted: Vec<&str> = view.uncounted.iter().map(String::as_str).collect();
        let done = pods.iter().filter(|pod| counted.contains(&text(&pod["metadata"], "uid")));
        self.uncount(done).await?;
        Ok(again)
    }

    /// Takes our finalizer from pods.
    async fn uncount(&self, pods: impl Iterator<Item = &Arc<Value>>) -> Result<(), StatusError> {
        for pod in pods.filter(|pod| status::is_tracked(pod)) {
            let patch = json!({"metadata": {"uid": pod["metadata"]["uid"], "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
            self.control.patch(pod, patch).await?;
        }
        Ok(())
    }

    /// A job is gone: nobody counts its pods any more.
    async fn let_orphans_go(&self, key: &Key) -> Result<(), StatusError> {
        let pods = self.control.pods.list(&key.namespace);
        let of_job = |pod: &&Arc<Value>| pod["metadata"]["labels"][JOB_NAME] == key.name;
        self.uncount(pods.iter().filter(of_job)).await
    }

    async fn create(&self, job: &Value, pods: &[Arc<Value>], count: usize) -> Result<(), StatusError> {
        let name = text(&job["metadata"], "name");
        let indexes = status::free_indexes(job, pods, count);
        for nth in 0..count {
            let mut template = job["spec"]["template"].clone();
            // A generated name is known only now.
            template["metadata"]["labels"][JOB_NAME] = json!(name);
            let finalizers = items(&template["metadata"], "finalizers").cloned().chain([json!(FINALIZER)]).collect();
            template["metadata"]["finalizers"] = Value::Array(finalizers);
            let pod = match &indexes {
                None => pod_of(job, &template, &format!("{name}-")),
                Some(indexes) => match indexes.get(nth) {
                    Some(index) => {
                        if !job["spec"]["backoffLimitPerIndex"].is_null() {
                            let failures = job_policy::failures_of(job, pods, *index);
                            fill(&mut template["metadata"], "annotations", json!({}));
                            template["metadata"]["annotations"][job_policy::FAILURES] = json!(failures.to_string());
                        }
                        indexed(job, &mut template, *index)
                    }
                    None => break,
                },
            };
            match self.control.create(job, pod).await {
                Ok(created) => {
                    let name = text(&created["metadata"], "name");
                    self.control.recorder.normal(job, "SuccessfulCreate", format!("Created pod: {name}"));
                }
                Err(error) => {
                    self.control.recorder.warning(job, "FailedCreate", format!("Error creating: {error}"));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, job: &Value, pod: &Arc<Value>) -> Result<(), StatusError> {
        // One that we delete ourselves is not counted as failed.
        self.uncount([pod].into_iter()).await?;
        self.control.delete(pod).await?;
        let name = text(&pod["metadata"], "name");
        self.control.recorder.normal(job, "SuccessfulDelete", format!("Deleted pod: {name}"));
        Ok(())
    }

    async fn write_status(&self, job: &Value, status: &Value) -> Result<(), StatusError> {
        if *status == job["status"] {
            return Ok(());
        }
        let Key { namespace, name } = Key::of(job);
        let object = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": job["metadata"],
            "spec": job["spec"], "status": status});
        let written = self.jobs.objects.update(&namespace, &name, "status", object, &WriteOptions::default()).await?;
        self.jobs.wait_for(&written).await;
        Ok(())
    }

    /// Deletes a job that is done for longer than it wants to be seen.
    async fn expire(&self, job: &Value, finished: jiff::Timestamp) -> Result<Option<Duration>, StatusError> {
        let Some(seconds) = job["spec"]["ttlSecondsAfterFinished"].as_i64() else { return Ok(None) };
        let left = finished.as_second().saturating_add(seconds) - clock::now().as_second();
        if left > 0 {
            return Ok(Some(Duration::from_secs(left.unsigned_abs())));
        }
        let Key { namespace, name } = Key::of(job);
        let uid = Some(text(&job["metadata"], "uid").to_owned());
        let propagation = Some(Propagation::Foreground);
        let options = DeleteOptions { uid, propagation, ..DeleteOptions::default() };
        match self.jobs.objects.delete(&namespace, &name, &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(None),
        }
    }
}

/// The pod of one index: it knows which it is by annotation, label, variable and host name.
fn indexed(job: &Value, template: &mut Value, index: usize) -> Value {
    let name = text(&job["metadata"], "name");
    let number = index.to_string();
    for kind in ["annotations", "labels"] {
        if !template["metadata"][kind].is_object() {
            template["metadata"][kind] = json!({});
        }
        template["metadata"][kind][INDEX] = json!(number);
    }
    template["spec"]["hostname"] = json!(format!("{name}-{index}"));
    let from = json!({"fieldRef": {"apiVersion": "v1", "fieldPath": format!("metadata.labels['{INDEX}']")}});
    for list in ["containers", "initContainers"] {
        for container in items_mut(&mut template["spec"], list) {
            let variable = json!({"name": "JOB_COMPLETION_INDEX", "valueFrom": from});
            match container["env"].as_array_mut() {
                Some(env) if env.iter().any(|one| one["name"] == "JOB_COMPLETION_INDEX") => {}
                Some(env) => env.push(variable),
                None => container["env"] = json!([variable]),
            }
        }
    }
    pod_of(job, template, &format!("{name}-{index}-"))
}
