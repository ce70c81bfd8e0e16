//! PodDisruptionBudgets: how many of their pods may be evicted just now (C7.14).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Context;
use super::deployment_status::condition;
use super::informer::Informer;
use super::owner::{controller_of, is_being_deleted, labels_of, selector_of};
use super::queue::{Key, Queue};
use super::rollout::resolve;
use crate::api::WriteOptions;
use crate::clock;
use crate::recorder::Recorder;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// An eviction that nobody has seen the effect of is forgotten after so long.
const FORGOTTEN_SECONDS: i64 = 120;

#[derive(Clone)]
struct Budgets {
    budgets: Arc<Informer>,
    pods: Arc<Informer>,
    /// Those that say how many pods there should be, by kind.
    owners: BTreeMap<&'static str, Arc<Informer>>,
    recorder: Recorder,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let owners = [
        ("Deployment", "apps", "deployments"),
        ("ReplicaSet", "apps", "replicasets"),
        ("StatefulSet", "apps", "statefulsets"),
    ];
    let controller = Budgets {
        budgets: context.informers.of("policy", "poddisruptionbudgets"),
        pods: context.informers.of("", "pods"),
        owners: owners.map(|(kind, group, plural)| (kind, context.informers.of(group, plural))).into(),
        recorder: context.recorder.of("controllermanager"),
    };
    let queue = Queue::default();
    let of_budget = queue.clone();
    controller.budgets.on_change(move |old, new| {
        if let Some(budget) = new.or(old) {
            of_budget.add(Key::of(budget));
        }
    });
    let (of_pod, budgets) = (queue.clone(), Arc::clone(&controller.budgets));
    controller.pods.on_change(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            let labels = labels_of(pod);
            for budget in budgets.list(text(&pod["metadata"], "namespace")) {
                if selector_of(&budget).is_some_and(|selector| selector.matches(&labels)) {
                    of_pod.add(Key::of(&budget));
                }
            }
        }
    });
    Box::new(move |context| {
        queue.work("disruption", 1, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    })
}

impl Budgets {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let Some(budget) = self.budgets.get(&key.namespace, &key.name) else { return Ok(None) };
        let Some(selector) = selector_of(&budget) else { return Ok(None) };
        let mut pods = self.pods.list(&key.namespace);
        pods.retain(|pod| selector.matches(&labels_of(pod)) && !is_finished(pod));
        let expected = self.expected(&budget, &pods);
        if pods.is_empty() && condition(&budget["status"], "DisruptionAllowed").is_none() {
            self.recorder.normal(&budget, "NoPods", "No matching pods found".to_owned());
        }
        if let Err(why) = &expected {
            self.recorder.warning(
                &budget,
                "CalculateExpectedPodCountFailed",
                format!("Failed to calculate the number of expected pods: {why}"),
            );
        }
        let status = status_of(&budget, &pods, expected, clock::now());
        if status != budget["status"] {
            let object = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
                "metadata": budget["metadata"], "spec": budget["spec"], "status": status});
            let options = WriteOptions::default();
            // An eviction that was counted in the meantime makes this a conflict: then it is looked at again.
            let written = self.budgets.objects.update(&key.namespace, &key.name, "status", object, &options).await?;
            self.budgets.wait_for(&written).await;
        }
        let waits = status["disruptedPods"].as_object().is_some_and(|pods| !pods.is_empty());
        Ok(waits.then_some(Duration::from_secs(FORGOTTEN_SECONDS.unsigned_abs())))
    }

    /// How many pods there should be, and how many of them must stay healthy; or why nobody can tell.
    fn expected(&self, budget: &Value, pods: &[Arc<Value>]) -> Result<(i64, i64), String> {
        let spec = &budget["spec"];
        if let Some(most) = spec.get("maxUnavailable").filter(|value| !value.is_null()) {
            let total = self.scale(pods)?;
            return Ok((total, (total - resolve(Some(most), total, true)).max(0)));
        }
        let least = spec.get("minAvailable").filter(|value| !value.is_null());
        if least.is_some_and(Value::is_string) {
            let total = self.scale(pods)?;
            return Ok((total, resolve(least, total, true)));
        }
        let total = i64::try_from(pods.len()).unwrap_or(i64::MAX);
        Ok((total, least.and_then(Value::as_i64).unwrap_or(1)))
    }

    /// The sum of what the pods' owners want.
    fn scale(&self, pods: &[Arc<Value>]) -> Result<i64, String> {
        let mut wanted: BTreeMap<String, i64> = BTreeMap::new();
        for pod in pods {
            let (namespace, name) = (text(&pod["metadata"], "namespace"), text(&pod["metadata"], "name"));
            let none = || format!("found no controller ref for pod {name:?}");
            let mut owner = controller_of(pod).cloned().ok_or_else(none)?;
            loop {
                let kind = text(&owner, "kind");
                let unknown =
                    || format!("{kind}s.{} does not implement the scale subresource", text(&owner, "apiVersion"));
                let found = self.owners.get(kind).ok_or_else(unknown)?.get(namespace, text(&owner, "name"));
                let Some(found) = found.filter(|found| found["metadata"]["uid"] == owner["uid"]) else { break };
                match controller_of(&found) {
                    // A ReplicaSet's size is its Deployment's affair.
                    Some(above) if self.owners.contains_key(text(above, "kind")) => owner = above.clone(),
                    _ => {
                        let uid = text(&found["metadata"], "uid").to_owned();
                        wanted.insert(uid, found["spec"]["replicas"].as_i64().unwrap_or(1));
                        break;
                    }
                }
            }
        }
        Ok(wanted.values().sum())
    }
}

fn is_finished(pod: &Value) -> bool {
    matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed")
}

fn status_of(budget: &Value, pods: &[Arc<Value>], expected: Result<(i64, i64), String>, now: Timestamp) -> Value {
    let before = &budget["status"];
    let mut disrupted = Map::new();
    for (name, at) in before["disruptedPods"].as_object().into_iter().flatten() {
        let is_there = pods.iter().any(|pod| text(&pod["metadata"], "name") == name && !is_being_deleted(pod));
        let since = at.as_str().and_then(|at| at.parse::<Timestamp>().ok()).map_or(0, Timestamp::as_second);
        if is_there && now.as_second() - since < FORGOTTEN_SECONDS {
            disrupted.insert(name.clone(), at.clone());
        }
    }
    let is_healthy = |pod: &&Arc<Value>| {
        let ready = condition(&pod["status"], "Ready").is_some_and(|ready| ready["status"] == "True");
        ready && !is_being_deleted(pod) && !disrupted.contains_key(text(&pod["metadata"], "name"))
    };
    let healthy = i64::try_from(pods.iter().filter(is_healthy).count()).unwrap_or(i64::MAX);
    let (allowed, total, desired, reason, message) = match expected {
        Ok((total, desired)) => {
            let allowed = if total > 0 { (healthy - desired).max(0) } else { 0 };
            let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
            (allowed, total, desired, reason, String::new())
        }
        Err(why) => (0, 0, 0, "SyncFailed", why),
    };
    let value = if allowed > 0 { "True" } else { "False" };
    let generation = &budget["metadata"]["generation"];
    let known = condition(before, "DisruptionAllowed").filter(|it| it["status"] == value);
    let since = known.map_or_else(|| json!(clock::seconds_text(now)), |it| it["lastTransitionTime"].clone());
    let mut status = json!({
        "currentHealthy": healthy, "desiredHealthy": desired, "disruptionsAllowed": allowed, "expectedPods": total,
        "observedGeneration": generation,
        "conditions": [{"type": "DisruptionAllowed", "status": value, "reason": reason, "message": message,
            "lastTransitionTime": since, "observedGeneration": generation}],
    });
    if !disrupted.is_empty() {
        status["disruptedPods"] = Value::Object(disrupted);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ready: bool) -> Arc<Value> {
        let status = if ready { "True" } else { "False" };
        Arc::new(json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": status}]}}))
    }

    #[test]
    fn what_may_go_is_what_is_healthy_beyond_the_need() {
        // C7.14
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let pods = [pod("a", true), pod("b", true), pod("c", false)];
        let look = |status: Value, expected| {
            status_of(&json!({"metadata": {"generation": 2}, "status": status}), &pods, expected, now)
        };
        let free = look(json!({}), Ok((3, 1)));
        assert_eq!(
            (&free["disruptionsAllowed"], &free["conditions"][0]["reason"]),
            (&json!(1), &json!("SufficientPods"))
        );
        // One that is about to go is not healthy any more, until that is forgotten.
        let going =
            look(json!({"disruptedPods": {"a": "2026-01-01T00:00:30Z", "x": "2026-01-01T00:00:30Z"}}), Ok((3, 1)));
        assert_eq!(
            (&going["disruptionsAllowed"], &going["disruptedPods"]),
            (&json!(0), &json!({"a": "2026-01-01T00:00:30Z"}))
        );
        let forgotten = look(json!({"disruptedPods": {"a": "2025-12-31T23:58:00Z"}}), Ok((3, 1)));
        assert_eq!(forgotten["disruptionsAllowed"], 1);
        let unknown = look(json!({}), Err("why".into()));
        assert_eq!(
            (&unknown["conditions"][0]["reason"], &unknown["disruptionsAllowed"]),
            (&json!("SyncFailed"), &json!(0))
        );
    }
}
