//! Finds a node for each pod that has none: one task that watches pods and nodes, keeps what nodes have left, and binds.
//!
//! In:  watches of pods and nodes; they wake, and each change updates only what it is about.
//! Out: `pods/binding`, the condition PodScheduled, events.
//! A pod counts on its node from the decision on, before the binding is seen, so a burst cannot over-commit a node.
//! Not here: which nodes are possible (`filters`, `topology`) and best (`scores`), who makes room (`preempt`), how long to
//! wait (`queue`); all of these are pure.

mod filters;
mod nodes;
mod preempt;
mod preemption;
mod queue;
mod scores;
mod topology;
mod volumes;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use self::nodes::{Load, NodeState};
use self::preemption::{Nominated, Outcome};
use self::queue::Queue;
use self::topology::{Namespaces, Surroundings};
use self::volumes::{VolumeObjects, Wishes};
use crate::api::{Change, Cluster, ListOptions, Objects, PatchType, WriteOptions};
use crate::clock;
use crate::recorder::Recorder;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};
use crate::resources::volume_match::claims_of;

/// The name that pods ask for.
const NAME: &str = "default-scheduler";
/// So many bindings are on their way at once.
const BINDINGS: usize = 16;
/// After a failed list or watch.
const RETRY: Duration = Duration::from_millis(500);

/// Starts the scheduler.
pub fn spawn(cluster: &Cluster, stop: CancellationToken) -> JoinHandle<()> {
    let recorder = Recorder::spawn(cluster.clone(), NAME);
    let (pods, nodes) = (cluster.objects("", "pods"), cluster.objects("", "nodes"));
    let cluster = cluster.clone();
    tokio::spawn(async move {
        loop {
            let volumes = VolumeObjects::new(&cluster);
            let scheduler = Scheduler::new(&cluster, pods.clone(), nodes.clone(), volumes, recorder.clone());
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = scheduler.run() => result,
            };
            if let Err(error) = result {
                tracing::debug!(%error, "the scheduler lists pods and nodes again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    })
}

/// A pod without a node, as much of it as deciding takes.
struct Pending {
    pod: Pod,
    load: Load,
    /// The claims that its volumes name.
    claims: Vec<String>,
    /// For events.
    reference: Value,
    /// The message of PodScheduled, as stored.
    told: String,
    /// Other pods matter to it, not only what they take.
    looks_around: bool,
}

/// What became of a binding.
struct Bound {
    uid: String,
    node: String,
    result: Result<(), StatusError>,
}

struct Scheduler {
    pods: Objects,
    node_objects: Objects,
    namespace_objects: Objects,
    budgets: Objects,
    volumes: VolumeObjects,
    recorder: Recorder,
    namespaces: Namespaces,
    /// Pods for which others made room.
    nominated: HashMap<String, Nominated>,
    nodes: HashMap<String, NodeState>,
    /// Node of each pod that has one, or is about to.
    places: HashMap<String, String>,
    pending: HashMap<String, Pending>,
    queue: Queue,
    bindings: JoinSet<Bound>,
}

impl Scheduler {
    fn new(
        cluster: &Cluster,
        pods: Objects,
        node_objects: Objects,
        volumes: VolumeObjects,
        recorder: Recorder,
    ) -> Self {
        Self {
            pods,
            node_objects,
            namespace_objects: cluster.objects("", "namespaces"),
            budgets: cluster.objects("policy", "poddisruptionbudgets"),
            volumes,
            recorder,
            namespaces: Namespaces::new(),
            nominated: HashMap::new(),
            nodes: HashMap::new(),
            places: HashMap::new(),
            pending: HashMap::new(),
            queue: Queue::default(),
            bindings: JoinSet::new(),
        }
    }

    async fn run(mut self) -> Result<(), StatusError> {
        let options = ListOptions::default();
        let namespaces = self.namespace_objects.list("", &options).await?;
        for namespace in &namespaces.items {
            self.namespace_changed(namespace);
        }
        let nodes = self.node_objects.list("", &options).await?;
        for node in &nodes.items {
            self.node_changed(node);
        }
        let pods = self.pods.list("", &options).await?;
        for pod in &pods.items {
            self.pod_changed(pod);
        }
        let mut node_watch = self.node_objects.watch("", &options, nodes.resource_version).await?;
        let mut namespace_watch = self.namespace_objects.watch("", &options, namespaces.resource_version).await?;
        let mut pod_watch = self.pods.watch("", &options, pods.resource_version).await?;
        loop {
            while self.bindings.len() < BINDINGS {
                let Some(uid) = self.queue.pop(clock::instant()) else { break };
                self.schedule(&uid).await;
            }
            let wake_at = self.queue.wake_at().filter(|_| self.bindings.len() < BINDINGS);
            tokio::select! {
                change = pod_watch.next() => match change? {
                    Change::Added(pod) | Change::Modified(pod) => self.pod_changed(&pod),
                    Change::Deleted(pod) => self.pod_gone(&pod),
                    Change::Bookmark(_) => {}
                },
                change = node_watch.next() => match change? {
                    Change::Added(node) | Change::Modified(node) => self.node_changed(&node),
                    Change::Deleted(node) => self.node_gone(&node),
                    Change::Bookmark(_) => {}
                },
                change = namespace_watch.next() => match change? {
                    Change::Added(namespace) | Change::Modified(namespace) => self.namespace_changed(&namespace),
                    Change::Deleted(namespace) => {
                        self.namespaces.remove(text(&namespace["metadata"], "name"));
                    }
                    Change::Bookmark(_) => {}
                },
                Some(bound) = self.bindings.join_next() => {
                    if let Ok(bound) = bound {
                        self.bound(bound);
                    }
                }
                () = until(wake_at) => {}
            }
        }
    }

    fn namespace_changed(&mut self, object: &Value) {
        let labels = serde_json::from_value(object["metadata"]["labels"].clone()).unwrap_or_default();
        self.namespaces.insert(text(&object["metadata"], "name").to_owned(), labels);
    }

    fn node_changed(&mut self, object: &Value) {
        let Ok(node) = Node::deserialize(object) else { return };
        let name = text(&object["metadata"], "name").to_owned();
        if self.nodes.entry(name).or_default().update(&node) {
            self.queue.retry_all(clock::instant());
        }
    }

    fn node_gone(&mut self, object: &Value) {
        if let Some(node) = self.nodes.get_mut(text(&object["metadata"], "name")) {
            node.exists = false;
        }
        self.forget_empty();
    }

    /// Nodes that are gone are kept as long as pods are bound to them, should they come back.
    fn forget_empty(&mut self) {
        self.nodes.retain(|_, node| node.exists || !node.pods.is_empty());
    }

    fn pod_changed(&mut self, object: &Value) {
        let uid = text(&object["metadata"], "uid");
        let finished = matches!(text(&object["status"], "phase"), "Succeeded" | "Failed");
        if finished {
            self.leave(uid);
            return;
        }
        let node = text(&object["spec"], "nodeName");
        if !node.is_empty() {
            self.queue.remove(uid);
            self.pending.remove(uid);
            self.nominated.remove(uid);
            let Ok(pod) = Pod::deserialize(object) else { return };
            if self.places.get(uid).is_some_and(|place| place != node) {
                self.leave(uid);
            }
            self.places.insert(uid.to_owned(), node.to_owned());
            let load = Load::of(&pod);
            let state = self.nodes.entry(node.to_owned()).or_default();
            let is_news = state.pods.get(uid).is_none_or(|known| known.about.labels != load.about.labels);
            state.add(uid, load);
            if is_news {
                self.tell_those_who_look_around();
            }
            return;
        }
        let gated = items(&object["spec"], "schedulingGates").next().is_some();
        let deleted = !text(&object["metadata"], "deletionTimestamp").is_empty();
        let ours = matches!(text(&object["spec"], "schedulerName"), NAME | "");
        if gated || deleted || !ours {
            self.queue.remove(uid);
            self.pending.remove(uid);
            self.nominated.remove(uid);
            return;
        }
        // Its binding is on its way.
        if self.places.contains_key(uid) {
            return;
        }
        let Ok(pod) = Pod::deserialize(object) else { return };
        let changed = self
            .pending
            .get(uid)
            .is_none_or(|known| known.pod.spec != pod.spec || known.pod.metadata.labels != pod.metadata.labels);
        let told = items(&object["status"], "conditions").find(|condition| condition["type"] == "PodScheduled");
        let told = told.map(|condition| text(condition, "message").to_owned()).unwrap_or_default();
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default();
        let metadata = &object["metadata"];
        let order = (
            Reverse(priority),
            text(metadata, "creationTimestamp").to_owned(),
            format!("{}/{}", text(metadata, "namespace"), text(metadata, "name")),
        );
        let reference = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": uid,
            "resourceVersion": metadata["resourceVersion"]}});
        let load = Load::of(&pod);
        let claims = claims_of(object);
        let nominee = text(&object["status"], "nominatedNodeName");
        if !nominee.is_empty() {
            self.nominated.entry(uid.to_owned()).or_insert(Nominated { node: nominee.to_owned(), load: load.clone() });
        }
        let looks_around = pod.spec.as_ref().is_some_and(|spec| {
            let company = spec
                .affinity
                .as_ref()
                .is_some_and(|affinity| affinity.pod_affinity.is_some() || affinity.pod_anti_affinity.is_some());
            company || spec.topology_spread_constraints.as_ref().is_some_and(|list| !list.is_empty())
        });
        self.pending.insert(uid.to_owned(), Pending { pod, load, claims, reference, told, looks_around });
        if changed || !self.queue.contains(uid) {
            self.queue.add(uid, order);
        }
    }

    /// Company may have come that somebody waits for.
    fn tell_those_who_look_around(&mut self) {
        if self.pending.values().any(|pending| pending.looks_around) {
            self.queue.retry_all(clock::instant());
        }
    }

    fn pod_gone(&mut self, object: &Value) {
        self.leave(text(&object["metadata"], "uid"));
    }

    /// The pod takes nothing any more.
    fn leave(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.pending.remove(uid);
        self.nominated.remove(uid);
        let Some(place) = self.places.remove(uid) else { return };
        if self.nodes.get_mut(&place).is_some_and(|node| node.remove(uid)) {
            self.queue.retry_all(clock::instant());
        }
        self.forget_empty();
    }

    /// Decides for one pod and starts its binding, or says why not.
    async fn schedule(&mut self, uid: &str) {
        let Some(pending) = self.pending.get(uid) else {
            self.queue.remove(uid);
            return;
        };
        let spec = pending.pod.spec.clone().unwrap_or_default();
        let wishes = match self.wishes(pending).await {
            Ok(Ok(wishes)) => wishes,
            Ok(Err(why)) => {
                let nodes = self.nodes.values().filter(|node| node.exists).count();
                let message = filters::message_for_all(&why, nodes);
                self.queue.retry(uid, clock::instant());
                self.tell(uid, message).await;
                return;
            }
            Err(error) => {
                tracing::debug!(%error, pod = uid, "the pod's claims cannot be read");
                self.queue.retry(uid, clock::instant());
                return;
            }
        };
        let mut refusals = Vec::new();
        let (mut possible, mut resolvable) = (Vec::new(), Vec::new());
        let nodes: Vec<&NodeState> = self.nodes.values().filter(|node| node.exists).collect();
        let around = Surroundings::of(&spec, &pending.load.about, &nodes, &self.namespaces);
        for node in nodes {
            let of_volumes = || wishes.as_ref().and_then(|wishes| wishes.refusal(node)).map(filters::refuse);
            let reserved = self.with_nominated(uid, &pending.load, node);
            let refusal = filters::refusal(&spec, &pending.load, reserved.as_ref().unwrap_or(node));
            match refusal.or_else(of_volumes).or_else(|| around.refusal(node)) {
                None => possible.push(node),
                Some(refusal) => {
                    if refusal.resolvable {
                        resolvable.push(node.name.clone());
                    }
                    refusals.push(refusal);
                }
            }
        }
        let scores = around.scores(&possible);
        let Some(node) = scores::best(&spec, &pending.load, &possible, &scores).map(|node| node.name.clone()) else {
            let message = match self.preempt(uid, &spec, wishes.as_ref(), &resolvable).await {
                Outcome::Nobody => filters::message(&refusals),
                Outcome::Not(why) => format!("{} preemption: not eligible due to {why}.", filters::why_not(&refusals)),
                Outcome::Done => filters::why_not(&refusals),
            };
            if wishes.is_some() {
                // Claims and volumes are not watched: the pod is looked at again soon.
                self.queue.retry(uid, clock::instant());
            } else {
                self.queue.failed(uid, clock::instant());
            }
            self.tell(uid, message).await;
            return;
        };
        if let Some(wishes) = &wishes {
            match self.volumes.select(wishes, &node).await {
                Ok(false) => {}
                // The pod is bound when its volumes are; that takes a moment.
                Ok(true) => return self.queue.retry(uid, clock::instant()),
                Err(error) => {
                    tracing::debug!(%error, pod = uid, "the node of the pod's claims was not written");
                    return self.queue.retry(uid, clock::instant());
                }
            }
        }
        let load = pending.load.clone();
        let metadata = pending.pod.metadata.clone();
        self.nodes.entry(node.clone()).or_default().add(uid, load);
        self.places.insert(uid.to_owned(), node.clone());
        let (objects, uid) = (self.pods.clone(), uid.to_owned());
        self.bindings.spawn(async move {
            let (namespace, name) = (metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
            let result = objects.bind(&namespace, &name, &uid, &node).await;
            Bound { uid, node, result }
        });
    }

    /// What the pod's claims ask of its node; `None`: it has none.
    async fn wishes(&self, pending: &Pending) -> Result<Result<Option<Wishes>, String>, StatusError> {
        if pending.claims.is_empty() {
            return Ok(Ok(None));
        }
        let namespace = pending.pod.metadata.namespace.as_deref().unwrap_or_default();
        Ok(self.volumes.wishes(namespace, &pending.claims).await?.map(Some))
    }

    fn bound(&mut self, bound: Bound) {
        let Bound { uid, node, result } = bound;
        match result {
            Ok(()) => {
                self.queue.remove(&uid);
                if let Some(pending) = self.pending.remove(&uid) {
                    self.announce(&pending.reference, &node);
                }
                self.tell_those_who_look_around();
            }
            Err(error) => {
                tracing::debug!(%error, pod = uid, node, "a binding failed");
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.remove(&uid);
                }
                self.places.remove(&uid);
                if error.is_not_found() || error.is_conflict() {
                    // Gone, replaced or bound by somebody else: the watch says which.
                    self.queue.remove(&uid);
                    self.pending.remove(&uid);
                } else {
                    self.queue.retry(&uid, clock::instant());
                }
            }
        }
    }

    fn announce(&self, reference: &Value, node: &str) {
        let (namespace, name) = (text(&reference["metadata"], "namespace"), text(&reference["metadata"], "name"));
        let message = format!("Successfully assigned {namespace}/{name} to {node}");
        self.recorder.normal(reference, "Scheduled", message);
    }

    /// Writes why a pod fits nowhere, once for each reason.
    async fn tell(&mut self, uid: &str, message: String) {
        let Some(pending) = self.pending.get_mut(uid) else { return };
        self.recorder.warning(&pending.reference, "FailedScheduling", message.clone());
        if pending.told == message {
            return;
        }
        let metadata = &pending.reference["metadata"];
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastProbeTime": null, "lastTransitionTime": clock::seconds_text(clock::now()),
        });
        let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
        let (namespace, name) = (text(metadata, "namespace"), text(metadata, "name"));
        let options = WriteOptions::default();
        let kind = PatchType::Strategic;
        match self.pods.patch(namespace, name, "status", kind, &patch, &options).await {
            Ok(_) => pending.told = message,
            Err(error) => tracing::debug!(%error, pod = uid, "the condition PodScheduled was not written"),
        }
    }
}

async fn until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
