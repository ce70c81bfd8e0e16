//! DaemonSets: one pod on each node that wants it (C7.4). Which nodes those are is in `daemon_nodes`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::daemon_nodes::{bound_to, node_of, wants};
use super::informer::Informer;
use super::owner::{is_being_deleted, selector_of};
use super::pod_control::{PodControl, pod_of};
use super::queue::{Key, Queue};
use super::replicaset::ready_since;
use super::revisions::{HASH, Revisions, hash_label};
use super::rollout::resolve;
use crate::api::WriteOptions;
use crate::clock;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// Made or deleted in one go at most.
const BURST: usize = 250;

#[derive(Clone)]
struct DaemonSets {
    sets: Arc<Informer>,
    nodes: Arc<Informer>,
    control: PodControl,
    revisions: Revisions,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let control =
        PodControl { pods: context.informers.of("", "pods"), recorder: context.recorder.of("daemonset-controller") };
    let controller = DaemonSets {
        sets: context.informers.of("apps", "daemonsets"),
        nodes: context.informers.of("", "nodes"),
        revisions: Revisions(context.informers.of("apps", "controllerrevisions")),
        control,
    };
    let queue = Queue::default();
    let of_set = queue.clone();
    controller.sets.on_change(move |old, new| {
        if let Some(set) = new.or(old) {
            of_set.add(Key::of(set));
        }
    });
    let (of_node, sets) = (queue.clone(), Arc::clone(&controller.sets));
    controller.nodes.on_change(move |old, new| {
        let says = |node: Option<&Arc<Value>>| node.map(|it| (it["metadata"]["labels"].clone(), it["spec"].clone()));
        // Heartbeats change nothing here.
        if says(old) != says(new) {
            sets.list("").iter().for_each(|set| of_node.add(Key::of(set)));
        }
    });
    controller.control.follow("DaemonSet", &controller.sets, &queue);
    Box::new(move |context| {
        queue.work("daemonset", 2, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key).await }
        });
    })
}

impl DaemonSets {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else { return Ok(None) };
        let Some(selector) = selector_of(&set).filter(|_| !is_being_deleted(&set)) else { return Ok(None) };
        let pods = self.control.claimed(&set, &selector).await?;
        let revision = self.revisions.current(&set).await?;
        let hash = hash_label(&revision).to_owned();
        let result = self.place(&set, &pods, &hash).await;
        let result = match result {
            Ok(()) => self.roll(&set, &hash).await,
            failed => failed,
        };
        let again = self.write_status(&set, &hash).await?;
        result?;
        let pods = self.control.of(&set);
        let used: Vec<&str> = pods.iter().map(|pod| hash_label(pod)).chain([hash.as_str()]).collect();
        self.revisions.clean_up(&set, &used).await?;
        Ok(again)
    }

    /// A pod where one is wanted and none is; none where none is wanted; those that failed are made anew.
    async fn place(&self, set: &Value, pods: &[Arc<Value>], hash: &str) -> Result<(), StatusError> {
        let by_node = by_node(pods);
        let mut budget = BURST;
        for node in self.nodes.list("") {
            let name = text(&node["metadata"], "name");
            let wanted = wants(set, &node);
            let mut alive = 0;
            for pod in by_node.get(name).into_iter().flatten() {
                let failed = text(&pod["status"], "phase") == "Failed";
                if is_being_deleted(pod) {
                    alive += 1;
                } else if failed && budget > 0 {
                    let of = format!("{}/{}", text(&pod["metadata"], "namespace"), text(&pod["metadata"], "name"));
                    let message = format!("Found failed daemon pod {of} on node {name}, will try to kill it");
                    self.control.recorder.warning(set, "FailedDaemonPod", message);
                    self.delete(set, pod).await?;
                    budget -= 1;
                    // Made anew when it is gone.
                    alive += 1;
                } else if !wanted.keep && budget > 0 {
                    self.delete(set, pod).await?;
                    budget -= 1;
                } else {
                    alive += 1;
                }
            }
            if wanted.start && alive == 0 && budget > 0 {
                self.create(set, name, hash).await?;
                budget -= 1;
            }
        }
        // Of nodes that are no more.
        let nodes = self.nodes.list("");
        for pod in pods.iter().filter(|pod| !is_being_deleted(pod)) {
            let name = node_of(pod);
            if !nodes.iter().any(|node| text(&node["metadata"], "name") == name) {
                self.delete(set, pod).await?;
            }
        }
        Ok(())
    }

    /// Deletes pods of older templates, as many at a time as may be missing; their places are filled by [`Self::place`].
    async fn roll(&self, set: &Value, hash: &str) -> Result<(), StatusError> {
        if set["spec"]["updateStrategy"]["type"] != "RollingUpdate" {
            return Ok(());
        }
        let pods = self.control.of(set);
        let by_node = by_node(&pods);
        let wanted: Vec<String> = self
            .nodes
            .list("")
            .iter()
            .filter(|node| wants(set, node).start)
            .map(|node| text(&node["metadata"], "name").to_owned())
            .collect();
        let total = i64::try_from(wanted.len()).unwrap_or(i64::MAX);
        let rolling = &set["spec"]["updateStrategy"]["rollingUpdate"];
        let most = resolve(rolling.get("maxUnavailable"), total, true).max(1);
        let (mut missing, mut old_broken, mut old_good) = (0, Vec::new(), Vec::new());
        for node in &wanted {
            let live: Vec<&Arc<Value>> = by_node
                .get(node.as_str())
                .into_iter()
                .flatten()
                .copied()
                .filter(|pod| !is_being_deleted(pod))
                .collect();
            let Some(pod) = live.first() else {
                missing += 1;
                continue;
            };
            let available = is_available(set, pod);
            if !available {
                missing += 1;
            }
            if hash_label(pod) != hash {
                if available { old_good.push(*pod) } else { old_broken.push(*pod) }
            }
        }
        // Those that do not work anyway cost nothing.
        let room = usize::try_from(most - missing).unwrap_or_default();
        for pod in old_broken.into_iter().chain(old_good.into_iter().take(room)) {
            self.delete(set, pod).await?;
        }
        Ok(())
    }

    async fn create(&self, set: &Value, node: &str, hash: &str) -> Result<(), StatusError> {
        let name = text(&set["metadata"], "name");
        let mut pod = pod_of(set, &set["spec"]["template"], &format!("{name}-"));
        pod["metadata"]["labels"][HASH] = json!(hash);
        pod["metadata"]["labels"]["pod-template-generation"] = json!(set["metadata"]["generation"].to_string());
        bound_to(&mut pod, node);
        match self.control.create(set, pod).await {
            Ok(created) => {
                let name = text(&created["metadata"], "name");
                self.control.recorder.normal(set, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            Err(error) => {
                self.control.recorder.warning(set, "FailedCreate", format!("Error creating: {error}"));
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &Value, pod: &Value) -> Result<(), StatusError> {
        self.control.delete(pod).await?;
        let name = text(&pod["metadata"], "name");
        self.control.recorder.normal(set, "SuccessfulDelete", format!("Deleted pod: {name}"));
        Ok(())
    }

    async fn write_status(&self, set: &Value, hash: &str) -> Result<Option<Duration>, StatusError> {
        let pods = self.control.of(set);
        let by_node = by_node(&pods);
        let (mut desired, mut current, mut misplaced, mut ready, mut updated, mut available) = (0, 0, 0, 0, 0, 0);
        for node in self.nodes.list("") {
            let here = by_node.get(text(&node["metadata"], "name"));
            let mut live = here.into_iter().flatten().copied().filter(|pod| !is_being_deleted(pod));
            let pod = live.next();
            if !wants(set, &node).start {
                misplaced += i64::from(pod.is_some());
                continue;
            }
            desired += 1;
            let Some(pod) = pod else { continue };
            current += 1;
            ready += i64::from(ready_since(pod).is_some());
            available += i64::from(is_available(set, pod));
            updated += i64::from(hash_label(pod) == hash);
        }
        let mut status = json!({
            "desiredNumberScheduled": desired, "currentNumberScheduled": current, "numberMisscheduled": misplaced,
            "numberReady": ready, "observedGeneration": set["metadata"]["generation"],
        });
        let rest = [
            ("updatedNumberScheduled", updated),
            ("numberAvailable", available),
            ("numberUnavailable", desired - available),
        ];
        for (key, count) in rest.into_iter().filter(|(_, count)| *count > 0) {
            status[key] = json!(count);
        }
        if status != set["status"] {
            let Key { namespace, name } = Key::of(set);
            let object = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": set["metadata"],
                "spec": set["spec"], "status": status});
            let options = WriteOptions::default();
            let written = self.sets.objects.update(&namespace, &name, "status", object, &options).await?;
            self.sets.wait_for(&written).await;
        }
        Ok((ready > available).then_some(Duration::from_secs(1)))
    }
}

fn by_node(pods: &[Arc<Value>]) -> BTreeMap<&str, Vec<&Arc<Value>>> {
    let mut map: BTreeMap<&str, Vec<&Arc<Value>>> = BTreeMap::new();
    for pod in pods {
        map.entry(node_of(pod)).or_default().push(pod);
    }
    map
}

/// Ready for as long as the set asks for.
fn is_available(set: &Value, pod: &Value) -> bool {
    let least = set["spec"]["minReadySeconds"].as_i64().unwrap_or_default();
    ready_since(pod).is_some_and(|since| clock::now().as_second() - since.as_second() >= least)
}
