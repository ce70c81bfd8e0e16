//! The life of nodes (C7.10): heartbeats that stop make conditions Unknown, conditions make taints, NoExecute taints evict
//! pods; new nodes get a part of the pod network; pods of nodes that vanished are removed (C7.15).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};
use serde_json::{Value, json};

use super::Context;
use super::cidr::Cidr;
use super::deployment_status::condition;
use super::informer::Informer;
use super::owner::is_being_deleted;
use super::queue::{Key, Queue};
use crate::api::{DeleteOptions, PatchType, WriteOptions};
use crate::clock;
use crate::recorder::Recorder;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

/// Without a heartbeat for so long a node's state is unknown.
const GRACE: Duration = Duration::from_secs(50);
/// Pods of a node that vanished are left alone for so long: it may only be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);
/// What a node reports and nobody else can know.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

#[derive(Default)]
struct Known {
    /// When a heartbeat of a node was last seen, by our own clock.
    heartbeats: HashMap<String, Instant>,
    /// Since when pods name a node that does not exist.
    missing: HashMap<String, Instant>,
    /// Parts of the pod networks that nodes have.
    parts: BTreeSet<Cidr>,
}

#[derive(Clone)]
struct Nodes {
    nodes: Arc<Informer>,
    pods: Arc<Informer>,
    known: Arc<Mutex<Known>>,
    networks: Vec<Cidr>,
    recorder: Recorder,
    evictions: Recorder,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = Nodes {
        nodes: context.informers.of("", "nodes"),
        pods: context.informers.of("", "pods"),
        known: Arc::default(),
        networks: context.config.cluster_cidrs.clone(),
        recorder: context.recorder.of("node-controller"),
        evictions: context.recorder.of("taint-eviction-controller"),
    };
    let queue = Queue::default();
    let (of_node, on_node) = (queue.clone(), controller.clone());
    controller.nodes.on_change(move |old, new| {
        let Some(node) = new.or(old) else { return };
        let name = text(&node["metadata"], "name");
        on_node.note_node(name, old, new);
        of_node.add(Key::new("", name));
    });
    let (of_lease, on_lease) = (queue.clone(), controller.clone());
    context.informers.of("coordination.k8s.io", "leases").on_change(move |old, new| {
        let Some(lease) = new.filter(|lease| text(&lease["metadata"], "namespace") == "kube-node-lease") else {
            return;
        };
        if old.is_none_or(|old| old["spec"]["renewTime"] != lease["spec"]["renewTime"]) {
            let name = text(&lease["metadata"], "name");
            let was_silent = on_lease.note_heartbeat(name);
            if was_silent {
                of_lease.add(Key::new("", name));
            }
        }
    });
    let of_pod = queue.clone();
    controller.pods.on_change(move |old, new| {
        // Evictions and vanished nodes ask about pods that have a node; how they fare does not matter.
        let Some(pod) = new else { return };
        let node = text(&pod["spec"], "nodeName");
        if !node.is_empty() && old.is_none_or(|old| old["spec"] != pod["spec"]) {
            of_pod.add(Key::new("", node));
        }
    });
    Box::new(move |context| {
        queue.work("node", 2, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(&key.name).await }
        });
    })
}

impl Nodes {
    fn with<R>(&self, act: impl FnOnce(&mut Known) -> R) -> R {
        // Nothing under this lock panics half way through a change.
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// True: it had been silent for the whole grace, or was not known.
    fn note_heartbeat(&self, name: &str) -> bool {
        let now = clock::instant();
        self.with(|known| known.heartbeats.insert(name.to_owned(), now)).is_none_or(|before| now - before >= GRACE)
    }

    fn note_node(&self, name: &str, old: Option<&Arc<Value>>, new: Option<&Arc<Value>>) {
        let beat = |node: &Arc<Value>| condition(&node["status"], "Ready").map(|c| c["lastHeartbeatTime"].clone());
        match new {
            // Our own writes leave the heartbeat as it was.
            Some(new) if old.is_none_or(|old| beat(old) != beat(new)) => {
                self.note_heartbeat(name);
            }
            Some(_) => {}
            None => self.with(|known| {
                known.heartbeats.remove(name);
                for part in old.into_iter().flat_map(|old| parts_of(old)) {
                    known.parts.remove(&part);
                }
            }),
        }
        self.with(|known| known.parts.extend(new.into_iter().flat_map(|new| parts_of(new))));
        if new.is_some() {
            self.with(|known| known.missing.remove(name));
        }
    }

    async fn reconcile(&self, name: &str) -> Result<Option<Duration>, StatusError> {
        let Some(node) = self.nodes.get("", name) else { return self.collect_pods(name).await };
        self.assign_networks(&node).await?;
        let silent_for = self.with(|known| known.heartbeats.get(name).map(|at| clock::instant() - *at));
        let left = GRACE.checked_sub(silent_for.unwrap_or_default()).filter(|left| !left.is_zero());
        let node = match left {
            None => self.mark_unknown(&node).await?,
            Some(_) => node,
        };
        let node = self.write_taints(&node).await?;
        let eviction = self.evict(&node).await?;
        Ok([left, eviction].into_iter().flatten().min())
    }

    /// Conditions that the node has not renewed become Unknown, and its pods are not ready any more.
    async fn mark_unknown(&self, node: &Arc<Value>) -> Result<Arc<Value>, StatusError> {
        let name = text(&node["metadata"], "name");
        let now = clock::seconds_text(clock::now());
        let mut changes = Vec::new();
        for kind in CONDITIONS {
            let before = condition(&node["status"], kind);
            if before.is_some_and(|before| before["status"] == "Unknown") {
                continue;
            }
            let (reason, message) = match before {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
            };
            let heartbeat = before
                .map_or_else(|| node["metadata"]["creationTimestamp"].clone(), |b| b["lastHeartbeatTime"].clone());
            changes.push(json!({"type": kind, "status": "Unknown", "reason": reason, "message": message,
                "lastHeartbeatTime": heartbeat, "lastTransitionTime": now}));
        }
        if changes.is_empty() {
            return Ok(Arc::clone(node));
        }
        let was_ready = condition(&node["status"], "Ready").is_some_and(|ready| ready["status"] == "True");
        let patch = json!({"status": {"conditions": changes}});
        let written = self.patch_node(name, "status", PatchType::Strategic, &patch).await?;
        if was_ready {
            self.recorder.normal(node, "NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
            self.mark_pods_not_ready(name, &now).await?;
        }
        Ok(written)
    }

    async fn mark_pods_not_ready(&self, node: &str, now: &str) -> Result<(), StatusError> {
        for pod in self.pods.list("").iter().filter(|pod| pod["spec"]["nodeName"] == node) {
            if condition(&pod["status"], "Ready").is_none_or(|ready| ready["status"] != "True") {
                continue;
            }
            let Key { namespace, name } = Key::of(pod);
            let ready = json!({"type": "Ready", "status": "False", "lastTransitionTime": now});
            let patch = json!({"metadata": {"uid": pod["metadata"]["uid"]}, "status": {"conditions": [ready]}});
            let (kind, options) = (PatchType::Strategic, WriteOptions::default());
            match self.pods.objects.patch(&namespace, &name, "status", kind, &patch, &options).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn patch_node(
        &self,
        name: &str,
        subresource: &str,
        kind: PatchType,
        patch: &Value,
    ) -> Result<Arc<Value>, StatusError> {
        let options = WriteOptions::default();
        let written = self.nodes.objects.patch("", name, subresource, kind, patch, &options).await?;
        self.nodes.wait_for(&written).await;
        Ok(Arc::new(written))
    }

    async fn write_taints(&self, node: &Arc<Value>) -> Result<Arc<Value>, StatusError> {
        let now = clock::seconds_text(clock::now());
        match taints_for(node, &now) {
            None => Ok(Arc::clone(node)),
            Some(taints) => {
                let patch = json!({"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
                    "spec": {"taints": taints}});
                self.patch_node(text(&node["metadata"], "name"), "", PatchType::Merge, &patch).await
            }
        }
    }

    /// Deletes pods that do not tolerate the node's NoExecute taints (any more); when the next one is due.
    async fn evict(&self, node: &Value) -> Result<Option<Duration>, StatusError> {
        let taints: Vec<Taint> = serde_json::from_value(node["spec"]["taints"].clone()).unwrap_or_default();
        let taints: Vec<Taint> = taints.into_iter().filter(|taint| taint.effect == "NoExecute").collect();
        if taints.is_empty() {
            return Ok(None);
        }
        let name = text(&node["metadata"], "name");
        let now = clock::now();
        let mut next: Option<Duration> = None;
        for pod in self.pods.list("").iter().filter(|pod| pod["spec"]["nodeName"] == name && !is_being_deleted(pod)) {
            let tolerations: Vec<Toleration> =
                serde_json::from_value(pod["spec"]["tolerations"].clone()).unwrap_or_default();
            match stays_for(&taints, &tolerations, now) {
                None => {}
                Some(left) if left.is_zero() => self.delete_pod(pod).await?,
                Some(left) => next = Some(next.map_or(left, |next| next.min(left))),
            }
        }
        Ok(next)
    }

    async fn delete_pod(&self, pod: &Arc<Value>) -> Result<(), StatusError> {
        let Key { namespace, name } = Key::of(pod);
        self.evictions.normal(pod, "TaintManagerEviction", format!("Marking for deletion Pod {namespace}/{name}"));
        let message = "Taint manager: deleting due to NoExecute taint";
        self.disrupt(pod, "DeletionByTaintManager", message, None).await?;
        self.delete(pod, None).await
    }

    async fn disrupt(&self, pod: &Value, reason: &str, message: &str, phase: Option<&str>) -> Result<(), StatusError> {
        let Key { namespace, name } = Key::of(pod);
        let target = json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": clock::seconds_text(clock::now())});
        let mut patch = json!({"metadata": {"uid": pod["metadata"]["uid"]}, "status": {"conditions": [target]}});
        if let Some(phase) = phase {
            patch["status"]["phase"] = json!(phase);
        }
        let (kind, options) = (PatchType::Strategic, WriteOptions::default());
        match self.pods.objects.patch(&namespace, &name, "status", kind, &patch, &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    async fn delete(&self, pod: &Value, grace_period_seconds: Option<i64>) -> Result<(), StatusError> {
        let Key { namespace, name } = Key::of(pod);
        let uid = Some(text(&pod["metadata"], "uid").to_owned());
        let options = DeleteOptions { uid, grace_period_seconds, ..DeleteOptions::default() };
        match self.pods.objects.delete(&namespace, &name, &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the pods of a node that does not exist, once that has lasted.
    async fn collect_pods(&self, node: &str) -> Result<Option<Duration>, StatusError> {
        let pods: Vec<Arc<Value>> =
            self.pods.list("").into_iter().filter(|pod| pod["spec"]["nodeName"] == node).collect();
        if pods.is_empty() {
            self.with(|known| known.missing.remove(node));
            return Ok(None);
        }
        let now = clock::instant();
        let since = self.with(|known| *known.missing.entry(node.to_owned()).or_insert(now));
        if let Some(left) = QUARANTINE.checked_sub(now - since).filter(|left| !left.is_zero()) {
            return Ok(Some(left));
        }
        for pod in pods {
            let finished = matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed");
            if !finished {
                let phase = Some("Failed");
                self.disrupt(&pod, "DeletionByPodGC", "PodGC: node no longer exists", phase).await?;
            }
            self.delete(&pod, Some(0)).await?;
        }
        Ok(None)
    }

    /// Gives a node its part of each pod network. The choice is remembered before it is written, so two nodes never
    /// get the same.
    async fn assign_networks(&self, node: &Value) -> Result<(), StatusError> {
        if self.networks.is_empty() || !text(&node["spec"], "podCIDR").is_empty() {
            return Ok(());
        }
        let chosen: Result<Vec<Cidr>, Cidr> = self.with(|known| {
            let free = |network: &Cidr| {
                let prefix = if network.is_v4() { 24 } else { 64 };
                let mut parts = (0..).map_while(|index| network.part(prefix, index));
                parts.find(|part| !known.parts.contains(part)).ok_or(*network)
            };
            let parts: Vec<Cidr> = self.networks.iter().map(free).collect::<Result<_, _>>()?;
            known.parts.extend(&parts);
            Ok(parts)
        });
        let parts = match chosen {
            Ok(parts) => parts,
            Err(network) => {
                let message = format!("the pod network {network} has no part left for this node");
                self.recorder.warning(node, "CIDRNotAvailable", message);
                return Ok(());
            }
        };
        let texts: Vec<String> = parts.iter().map(ToString::to_string).collect();
        let patch = json!({"spec": {"podCIDR": texts[0], "podCIDRs": texts}});
        let written = self.patch_node(text(&node["metadata"], "name"), "", PatchType::Merge, &patch).await;
        if written.is_err() {
            self.with(|known| known.parts.retain(|part| !parts.contains(part)));
        }
        written.map(drop)
    }
}

/// The parts of the pod networks that a node has.
fn parts_of(node: &Value) -> Vec<Cidr> {
    let all = items(&node["spec"], "podCIDRs").filter_map(Value::as_str).chain([text(&node["spec"], "podCIDR")]);
    all.filter_map(|part| part.parse().ok()).collect()
}

/// The taints that a node's conditions ask for, beside those of others; `None`: it has them already.
fn taints_for(node: &Value, now: &str) -> Option<Vec<Value>> {
    let status_of = |kind: &str| condition(&node["status"], kind).map(|c| text(c, "status"));
    let is_true = |kind: &str| status_of(kind) == Some("True");
    let (not_ready, unreachable) = match status_of("Ready") {
        Some("True") => (false, false),
        Some("Unknown") => (false, true),
        // Without a report a node is as it was created: not ready by admission.
        None => return None,
        Some(_) => (true, false),
    };
    let wanted = [
        (NOT_READY, "NoSchedule", not_ready),
        (NOT_READY, "NoExecute", not_ready),
        (UNREACHABLE, "NoSchedule", unreachable),
        (UNREACHABLE, "NoExecute", unreachable),
        ("node.kubernetes.io/memory-pressure", "NoSchedule", is_true("MemoryPressure")),
        ("node.kubernetes.io/disk-pressure", "NoSchedule", is_true("DiskPressure")),
        ("node.kubernetes.io/pid-pressure", "NoSchedule", is_true("PIDPressure")),
        ("node.kubernetes.io/network-unavailable", "NoSchedule", is_true("NetworkUnavailable")),
        ("node.kubernetes.io/unschedulable", "NoSchedule", node["spec"]["unschedulable"] == true),
    ];
    let before: Vec<Value> = items(&node["spec"], "taints").cloned().collect();
    let is = |taint: &Value, key: &str, effect: &str| taint["key"] == key && taint["effect"] == effect;
    let unwanted = |taint: &Value| wanted.iter().any(|(key, effect, on)| is(taint, key, effect) && !on);
    let mut after: Vec<Value> = before.iter().filter(|taint| !unwanted(taint)).cloned().collect();
    for (key, effect, on) in wanted {
        if on && !after.iter().any(|taint| is(taint, key, effect)) {
            after.push(json!({"key": key, "effect": effect, "timeAdded": now}));
        }
    }
    (after != before).then_some(after)
}

/// How long a pod may stay under these NoExecute taints; `None`: for ever.
fn stays_for(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Option<Duration> {
    let mut shortest: Option<i64> = None;
    for taint in taints {
        let mut covering = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if covering.peek().is_none() {
            return Some(Duration::ZERO);
        }
        let added = taint.time_added.as_ref().map_or(now.as_second(), |time| time.0.as_second());
        // Of several that cover the taint the shortest counts; one without a time alone means for ever.
        if let Some(seconds) = covering.filter_map(|toleration| toleration.toleration_seconds).min() {
            let ends = added + seconds.max(0);
            shortest = Some(shortest.map_or(ends, |other| other.min(ends)));
        }
    }
    shortest.map(|ends| Duration::from_secs(u64::try_from(ends - now.as_second()).unwrap_or_default()))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (of(&toleration.effect), of(&toleration.key));
    let exists = toleration.operator.as_deref() == Some("Exists");
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && exists))
        && (exists || of(&toleration.value) == of(&taint.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, extra: Value) -> Value {
        let mut node = json!({"spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        json_patch::merge(&mut node, &extra);
        node
    }

    fn keys(taints: Option<Vec<Value>>) -> Option<Vec<String>> {
        let show = |taint: &Value| format!("{}:{}", text(taint, "key"), text(taint, "effect"));
        taints.map(|taints| taints.iter().map(show).collect())
    }

    #[test]
    fn each_condition_has_its_taint() {
        // A13.12, C7.10
        let taints = |ready: &str, kind: &str| {
            let conditions = json!([{"type": "Ready", "status": ready}, {"type": kind, "status": "True"}]);
            let node = json!({"spec": {}, "status": {"conditions": conditions}});
            keys(taints_for(&node, "now")).unwrap_or_default()
        };
        for (ready, kind, expected) in [
            ("True", "Other", vec![]),
            ("False", "Other", vec!["not-ready:NoSchedule", "not-ready:NoExecute"]),
            ("Unknown", "Other", vec!["unreachable:NoSchedule", "unreachable:NoExecute"]),
            ("True", "MemoryPressure", vec!["memory-pressure:NoSchedule"]),
            ("True", "DiskPressure", vec!["disk-pressure:NoSchedule"]),
            ("True", "PIDPressure", vec!["pid-pressure:NoSchedule"]),
            ("True", "NetworkUnavailable", vec!["network-unavailable:NoSchedule"]),
            ("False", "DiskPressure", vec!["not-ready:NoSchedule", "not-ready:NoExecute", "disk-pressure:NoSchedule"]),
        ] {
            let expected: Vec<String> = expected.iter().map(|taint| format!("node.kubernetes.io/{taint}")).collect();
            assert_eq!(taints(ready, kind), expected, "{ready} {kind}");
        }
        // What has passed takes its taint along, and leaves what an operator has set.
        let set = |key: &str| json!({"key": format!("node.kubernetes.io/{key}"), "effect": "NoSchedule"});
        let conditions = json!([{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"}]);
        let taints = json!([set("disk-pressure"), {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]);
        let node = json!({"spec": {"taints": taints}, "status": {"conditions": conditions}});
        assert_eq!(keys(taints_for(&node, "now")).unwrap(), ["node.kubernetes.io/out-of-service:NoExecute"]);
    }

    #[test]
    fn conditions_become_taints_and_others_stay() {
        assert_eq!(taints_for(&node("True", json!({})), "now"), None);
        let unreachable = [
            "mine:NoSchedule",
            "node.kubernetes.io/unreachable:NoSchedule",
            "node.kubernetes.io/unreachable:NoExecute",
        ];
        assert_eq!(keys(taints_for(&node("Unknown", json!({})), "now")).unwrap(), unreachable);
        let cordoned = node("True", json!({"spec": {"unschedulable": true}}));
        let expected = ["mine:NoSchedule", "node.kubernetes.io/unschedulable:NoSchedule"];
        assert_eq!(keys(taints_for(&cordoned, "now")).unwrap(), expected);
        let recovered = node("True", json!({"spec": {"taints": [{"key": NOT_READY, "effect": "NoSchedule"}]}}));
        assert_eq!(keys(taints_for(&recovered, "now")).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn pods_leave_when_their_tolerations_end() {
        let taints: Vec<Taint> = serde_json::from_value(
            json!([{"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]),
        )
        .unwrap();
        let check = |tolerations: Value, expected: Option<u64>| {
            let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).unwrap();
            let now = "2026-01-01T00:01:40Z".parse().unwrap();
            assert_eq!(stays_for(&taints, &tolerations, now), expected.map(Duration::from_secs), "{tolerations:?}");
        };
        let tolerate = |seconds: Option<i64>| json!({"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        check(json!([]), Some(0));
        check(json!([tolerate(None)]), None);
        check(json!([tolerate(Some(300))]), Some(200));
        check(json!([tolerate(Some(300)), tolerate(Some(30))]), Some(0));
        check(json!([{"operator": "Exists"}]), None);
    }
}
