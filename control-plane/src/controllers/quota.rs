//! ResourceQuotas: `status.hard` follows the spec, `status.used` what there is in the namespace (C5.18, C7.12). Admission
//! counts what is made at once; here is found what goes, and what admission counted for nothing.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use stoker_model::quantity::Milli;

use super::Context;
use super::informer::Informer;
use super::queue::{Key, Queue};
use crate::clock;
use crate::resources::quantities::{self, Amounts};
use crate::resources::quota;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// A quota that admission has just written is not looked at before the write that it counted is seen.
const SETTLE: Duration = Duration::from_secs(3);
/// While pods are being deleted: their grace may end without a change.
const GRACE: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Quotas {
    quotas: Arc<Informer>,
    counted: Vec<Arc<Informer>>,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let quotas = context.informers.of("", "resourcequotas");
    let counted: Vec<Arc<Informer>> =
        context.informers.all().filter(|informer| quota::counts(informer.info())).cloned().collect();
    let queue = Queue::default();
    let of_quota = queue.clone();
    quotas.on_change(move |old, new| {
        let Some(new) = new else { return };
        let same = old.is_some_and(|old| old["spec"] == new["spec"]) && new["status"]["hard"] == new["spec"]["hard"];
        if same {
            of_quota.add_after(Key::of(new), SETTLE);
        } else {
            of_quota.add(Key::of(new));
        }
    });
    for informer in &counted {
        let (queue, quotas, info) = (queue.clone(), Arc::clone(&quotas), informer.info());
        informer.on_change(move |old, new| {
            let Some(object) = new.or(old) else { return };
            // What is there uses the same until it changes in one of these kinds.
            let may_differ = match (info.group, info.plural) {
                ("", "pods") => new.is_none_or(|new| old.is_none_or(|old| weight(old) != weight(new))),
                ("", "services" | "persistentvolumeclaims") => true,
                _ => old.is_none() || new.is_none(),
            };
            if may_differ {
                for found in quotas.list(text(&object["metadata"], "namespace")) {
                    queue.add(Key::of(&found));
                }
            }
        });
    }
    let controller = Quotas { quotas, counted };
    Box::new(move |context| {
        queue.work("resourcequota", 1, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    })
}

/// What of a pod a quota looks at.
fn weight(pod: &Value) -> (&Value, bool, bool) {
    let ended = matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed");
    (&pod["spec"], ended, pod["metadata"]["deletionTimestamp"].is_null())
}

impl Quotas {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let Some(found) = self.quotas.get(&key.namespace, &key.name) else { return Ok(None) };
        let hard = &found["spec"]["hard"];
        let (used, wait) = self.used(&found, hard, &key.namespace);
        let status = json!({"hard": if hard.is_null() { json!({}) } else { hard.clone() }, "used": used});
        if found["status"] != status {
            let version = found["metadata"]["resourceVersion"].clone();
            let mut new = (*found).clone();
            new["status"] = status;
            new["metadata"]["resourceVersion"] = version;
            let options = crate::api::WriteOptions::default();
            // Whoever wrote it meanwhile makes it come back here.
            match self.quotas.objects.update(&key.namespace, &key.name, "status", new, &options).await {
                Err(error) if !error.is_conflict() && !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(wait)
    }

    fn used(&self, found: &Value, hard: &Value, namespace: &str) -> (Value, Option<Duration>) {
        let now = clock::now();
        let mut sum = Amounts::new();
        let mut wait = None;
        for informer in &self.counted {
            for object in informer.list(namespace) {
                let limited = quota::limited(found, hard, informer.info(), &object);
                if limited.is_empty() {
                    continue;
                }
                if informer.info().plural == "pods" && !object["metadata"]["deletionTimestamp"].is_null() {
                    wait = Some(GRACE);
                }
                for (resource, amount) in quota::usage(informer.info(), &object, now) {
                    if limited.contains(&resource.as_str()) {
                        *sum.entry(resource).or_default() += amount;
                    }
                }
            }
        }
        let mut used = Map::new();
        for (resource, _) in hard.as_object().into_iter().flatten() {
            let amount = sum.get(resource).copied().unwrap_or(Milli::ZERO);
            let one = quantities::to_list(&Amounts::from([(resource.clone(), amount)]), &[hard]);
            used.insert(resource.clone(), one[resource.as_str()].clone());
        }
        (Value::Object(used), wait)
    }
}
