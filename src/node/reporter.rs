//! Registers the Node and keeps its status at the API server; the only writer of both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};
use stoker_model::handle::{ApiError, EventSink, EventSubject, EventType, RuntimeHandler};
use tokio::sync::watch;

use super::capacity::quantities;
use super::conditions::{Verdict, transition_event};
use super::observer::{Observation, own_labels};
use super::settings::NodeSettings;
use crate::clock::Clock;
use crate::upstream::{Backoff, NodeApi, spread};

const ATTACH_DETACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const PROVIDED_IP: &str = "alpha.kubernetes.io/provided-node-ip";
const CLOUD_TAINT: &str = "node.cloudprovider.kubernetes.io/uninitialized";

/// What the status of the node follows from.
#[derive(Debug)]
pub struct Seen {
    /// The machine.
    pub observations: watch::Receiver<Option<Arc<Observation>>>,
    /// Names of the attachable volumes in use: they must not be detached (A9.17).
    pub volumes_in_use: watch::Receiver<Vec<String>>,
}

/// Registers the node when the first observation is there, then reports each change at once and everything each
/// `report_every` (A16.8). `node` is watched for `unschedulable`, which makes an event. Runs for ever.
pub async fn report(
    settings: Arc<NodeSettings>,
    api: NodeApi,
    events: Arc<dyn EventSink>,
    mut seen: Seen,
    node: watch::Receiver<Option<Node>>,
    clock: Clock,
) {
    events.publish(EventSubject::Node, EventType::Normal, "Starting", "Starting kubelet.".to_owned());
    let Ok(first) = seen.observations.wait_for(Option::is_some).await.map(|seen| seen.clone()) else { return };
    let Some(first) = first else { return };
    let (name, told) = (settings.name.clone(), events.clone());
    let mut reporter =
        Reporter { settings, api, events, clock, conditions: BTreeMap::new(), sent: Map::new(), gives_addresses: true };
    reporter.register(&first).await;
    tokio::join!(reporter.keep(seen), tell_of_scheduling(&name, &told, node));
}

/// Events when somebody cordons the node (A16.10).
async fn tell_of_scheduling(name: &str, events: &Arc<dyn EventSink>, mut node: watch::Receiver<Option<Node>>) {
    let unschedulable = |node: &Option<Node>| Some(node.as_ref()?.spec.as_ref()?.unschedulable.unwrap_or(false));
    let mut last = None;
    loop {
        let now = unschedulable(&node.borrow_and_update());
        if let (Some(before), Some(now)) = (last, now)
            && before != now
        {
            let reason = if now { "NodeNotSchedulable" } else { "NodeSchedulable" };
            let message = format!("Node {name} status is now: {reason}");
            events.publish(EventSubject::Node, EventType::Normal, reason, message);
        }
        last = now.or(last);
        if node.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// What the API server has of one condition.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    status: String,
    since: String,
}

struct Reporter {
    settings: Arc<NodeSettings>,
    api: NodeApi,
    events: Arc<dyn EventSink>,
    clock: Clock,
    conditions: BTreeMap<&'static str, Known>,
    /// Fields of the status as last written, without the conditions' heartbeats.
    sent: Map<String, Value>,
    /// The node's addresses are ours to write.
    gives_addresses: bool,
}

impl Reporter {
    /// Tries until it is done: 100 ms to 7 s between the tries (A16.1).
    async fn register(&mut self, seen: &Observation) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(7));
        let mut told = false;
        loop {
            match self.try_register(seen).await {
                Ok(node) => {
                    self.adopt(&node, &seen.info.boot_id);
                    tracing::info!(node = self.settings.name, "node registered");
                    return;
                }
                Err(error) => {
                    if !told {
                        tracing::warn!(node = self.settings.name, %error, "node not registered yet: trying again until it is");
                        told = true;
                    }
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        }
    }

    async fn try_register(&self, seen: &Observation) -> Result<Node, ApiError> {
        let existing = match self.api.get().await {
            Ok(node) => node,
            Err(ApiError::NotFound(_)) if self.settings.register => {
                match self.api.create(&new_node(&self.settings, seen)).await {
                    // Somebody was faster: it is reconciled on the next try.
                    Err(ApiError::Conflict(message)) => {
                        return Err(ApiError::Unavailable { message, retry_after_seconds: None });
                    }
                    // What was created has no conditions yet, so their first report tells of all of them.
                    other => return other,
                }
            }
            Err(error) => return Err(error),
        };
        match reconcile_patch(&self.settings, &existing) {
            Some(patch) => self.api.patch(&patch).await,
            None => Ok(existing),
        }
    }

    /// Conditions keep their transition times over a restart of the agent.
    fn adopt(&mut self, node: &Node, boot_id: &str) {
        self.gives_addresses = gives_addresses(&self.settings, node);
        let Some(status) = &node.status else { return };
        for condition in status.conditions.iter().flatten() {
            let kinds = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
            let Some(kind) = kinds.into_iter().find(|kind| *kind == condition.type_) else { continue };
            let since = condition.last_transition_time.as_ref().map(|time| seconds(time.0));
            if let Some(since) = since {
                self.conditions.insert(kind, Known { status: condition.status.clone(), since });
            }
        }
        let before = status.node_info.as_ref().map(|info| info.boot_id.as_str()).unwrap_or_default();
        if !before.is_empty() && before != boot_id {
            let name = &self.settings.name;
            let message = format!("Node {name} has been rebooted, boot id: {boot_id}");
            self.events.publish(EventSubject::Node, EventType::Warning, "Rebooted", message);
        }
    }

    async fn keep(&mut self, seen: Seen) {
        let Seen { mut observations, mut volumes_in_use } = seen;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        loop {
            let seen = observations.borrow_and_update().clone();
            let Some(seen) = seen else { return };
            let in_use = volumes_in_use.borrow_and_update().clone();
            let wait = match self.report(&seen, &in_use).await {
                Ok(changed) => {
                    backoff.reset();
                    let every = self.settings.report_every;
                    if changed { spread(every) } else { every }
                }
                Err(error) => {
                    tracing::warn!(%error, "node status not written");
                    backoff.wait()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = observations.changed() => if changed.is_err() { return },
                Ok(()) = volumes_in_use.changed() => {}
            }
        }
    }

    /// Writes what changed; the conditions always, with new heartbeats. Whether anything but those is new.
    async fn report(&mut self, seen: &Observation, in_use: &[String]) -> Result<bool, ApiError> {
        let now = seconds(self.clock.now().wall);
        let conditions = conditions(&seen.verdicts, &self.conditions, &now);
        let mut status = Map::new();
        let mut all = status_fields(&self.settings, seen, in_use);
        if !self.gives_addresses {
            all.remove("addresses");
        }
        for (name, value) in &all {
            if self.sent.get(name) != Some(value) {
                status.insert(name.clone(), value.clone());
            }
        }
        let mut changed = !status.is_empty();
        status.insert("conditions".to_owned(), conditions);
        if let Some(Value::Array(addresses)) = status.get_mut("addresses") {
            // The list merges by type; this makes it exactly ours.
            addresses.push(json!({ "$patch": "replace" }));
        }
        self.api.patch_status(&json!({ "status": status })).await?;
        self.sent = all;
        for verdict in &seen.verdicts {
            let status = if verdict.holds { "True" } else { "False" };
            let known = self.conditions.get(verdict.kind);
            if known.is_some_and(|known| known.status == status) {
                continue;
            }
            changed = true;
            self.conditions.insert(verdict.kind, Known { status: status.to_owned(), since: now.clone() });
            let reason = transition_event(verdict);
            let message = format!("Node {} status is now: {reason}", self.settings.name);
            self.events.publish(EventSubject::Node, EventType::Normal, reason, message);
        }
        Ok(changed)
    }
}

/// `metav1.Time` has no fractions.
fn seconds(time: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// The conditions as they are written: a transition time changes only with the status.
fn conditions(verdicts: &[Verdict], known: &BTreeMap<&'static str, Known>, now: &str) -> Value {
    let condition = |verdict: &Verdict| {
        let status = if verdict.holds { "True" } else { "False" };
        let since = known.get(verdict.kind).filter(|known| known.status == status).map_or(now, |known| &known.since);
        json!({
            "type": verdict.kind,
            "status": status,
            "reason": verdict.reason,
            "message": verdict.message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": since,
        })
    };
    verdicts.iter().map(condition).collect()
}

/// The status without its conditions.
fn status_fields(settings: &NodeSettings, seen: &Observation, in_use: &[String]) -> Map<String, Value> {
    let fields = [
        ("capacity", json!(quantities(&seen.capacity))),
        ("allocatable", json!(quantities(&seen.allocatable))),
        ("addresses", json!(addresses(settings))),
        ("daemonEndpoints", json!({ "kubeletEndpoint": { "Port": settings.port } })),
        ("nodeInfo", json!(seen.info)),
        ("images", json!(seen.images)),
        ("declaredFeatures", json!(settings.declared_features)),
        ("volumesInUse", json!(in_use)),
        ("runtimeHandlers", handlers(seen)),
        ("features", json!(seen.supplemental_groups_policy.map(|yes| json!({ "supplementalGroupsPolicy": yes })))),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What the runtime's handlers can do; null where it does not say.
fn handlers(seen: &Observation) -> Value {
    let features = |can: &RuntimeHandler| json!({ "recursiveReadOnlyMounts": can.recursive_read_only, "userNamespaces": can.user_namespaces });
    let handler = |(name, can): (&String, &RuntimeHandler)| json!({ "name": name, "features": features(can) });
    let all: Vec<Value> = seen.handlers.iter().map(handler).collect();
    json!(Some(all).filter(|all| !all.is_empty()))
}

/// One internal address of each family, then the name (A16.5); the name alone where a cloud is to tell the others (A16.3).
fn addresses(settings: &NodeSettings) -> Vec<NodeAddress> {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let ours = settings.addresses_named || !settings.external_cloud;
    let internal = settings.addresses.iter().filter(|_| ours).map(|ip| address("InternalIP", ip.to_string()));
    internal.chain([address("Hostname", settings.hostname.clone())]).collect()
}

fn new_node(settings: &NodeSettings, seen: &Observation) -> Node {
    let mut taints = settings.taints.clone();
    if settings.external_cloud {
        taints.push(k8s_openapi::api::core::v1::Taint {
            key: CLOUD_TAINT.to_owned(),
            value: Some("true".to_owned()),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        });
    }
    let status = k8s_openapi::api::core::v1::NodeStatus {
        addresses: Some(addresses(settings)),
        capacity: Some(quantities(&seen.capacity)),
        allocatable: Some(quantities(&seen.allocatable)),
        node_info: Some(seen.info.clone()),
        ..Default::default()
    };
    Node {
        metadata: ObjectMeta {
            name: Some(settings.name.clone()),
            labels: Some(own_labels(settings)),
            annotations: Some(annotations(settings)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!taints.is_empty()).then_some(taints),
            provider_id: Some(settings.provider_id.clone()).filter(|id| !id.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

fn annotations(settings: &NodeSettings) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    if settings.controller_attach_detach {
        annotations.insert(ATTACH_DETACH.to_owned(), "true".to_owned());
    }
    if settings.external_cloud && settings.addresses_named {
        let ips: Vec<_> = settings.addresses.iter().map(ToString::to_string).collect();
        annotations.insert(PROVIDED_IP.to_owned(), ips.join(","));
    }
    annotations
}

/// What a cloud has written is left alone (A16.3).
fn gives_addresses(settings: &NodeSettings, node: &Node) -> bool {
    let written = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    !settings.external_cloud || written.is_none_or(Vec::is_empty)
}

/// What an existing Node lacks; `None` when nothing. Taints are only given at creation (A16.3).
fn reconcile_patch(settings: &NodeSettings, node: &Node) -> Option<Value> {
    let lacks = |wanted: BTreeMap<String, String>, has: Option<&BTreeMap<String, String>>| -> BTreeMap<_, _> {
        wanted.into_iter().filter(|(name, value)| has.and_then(|has| has.get(name)) != Some(value)).collect()
    };
    let labels = lacks(own_labels(settings), node.metadata.labels.as_ref());
    let annotations = lacks(annotations(settings), node.metadata.annotations.as_ref());
    let provider = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref()).unwrap_or_default();
    let gives_provider = provider.is_empty() && !settings.provider_id.is_empty();
    let has_stale = !self::annotations(settings).contains_key(PROVIDED_IP)
        && node.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(PROVIDED_IP));
    if labels.is_empty() && annotations.is_empty() && !gives_provider && !has_stale {
        return None;
    }
    let mut patch = json!({ "metadata": { "labels": labels, "annotations": annotations } });
    if has_stale {
        patch["metadata"]["annotations"][PROVIDED_IP] = Value::Null;
    }
    if gives_provider {
        patch["spec"] = json!({ "providerID": settings.provider_id });
    }
    Some(patch)
}

#[cfg(test)]
mod tests {
    use super::super::machine::system_info;

    use super::super::settings::tests_support;
    use super::*;

    fn observation() -> Observation {
        Observation {
            capacity: BTreeMap::new(),
            allocatable: BTreeMap::new(),
            verdicts: Vec::new(),
            info: system_info("containerd://1".into()),
            images: Vec::new(),
            handlers: BTreeMap::new(),
            supplemental_groups_policy: None,
        }
    }

    #[test]
    fn a_transition_time_changes_only_with_the_status() {
        // A13.11
        let verdict = |holds| Verdict { kind: "Ready", holds, reason: "r", message: "m".into() };
        let known = BTreeMap::from([("Ready", Known { status: "True".into(), since: "then".into() })]);
        let time = |holds| conditions(&[verdict(holds)], &known, "now")[0]["lastTransitionTime"].clone();
        assert_eq!(time(true), "then");
        assert_eq!(time(false), "now");
    }

    #[test]
    fn taints_are_given_at_creation_only() {
        // A16.3
        let mut settings = tests_support();
        settings.external_cloud = true;
        let node = new_node(&settings, &observation());
        let taints = node.spec.clone().and_then(|spec| spec.taints).expect("taints");
        assert_eq!((taints[0].key.as_str(), taints[0].effect.as_str()), (CLOUD_TAINT, "NoSchedule"));
        assert_eq!(taints[0].value.as_deref(), Some("true"));
        assert_eq!(node.metadata.annotations.as_ref().expect("annotations")[PROVIDED_IP], "10.0.0.1");
        let bare = Node { spec: None, ..node };
        assert_eq!(reconcile_patch(&settings, &bare), None);
        let mut dual = settings.clone();
        dual.addresses.push("2001:db8::1".parse().expect("an address"));
        assert_eq!(annotations(&dual)[PROVIDED_IP], "10.0.0.1,2001:db8::1");
        let kinds = |settings: &NodeSettings| {
            let status = new_node(settings, &observation()).status.unwrap_or_default();
            status.addresses.unwrap_or_default().into_iter().map(|address| address.type_).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&settings), ["InternalIP", "Hostname"]);
        // Nobody named an address: the cloud will.
        settings.addresses_named = false;
        assert_eq!(kinds(&settings), ["Hostname"]);
        let patch = reconcile_patch(&settings, &bare).expect("the annotation goes");
        assert_eq!(patch["metadata"]["annotations"], json!({ PROVIDED_IP: null }));
        assert!(!gives_addresses(&settings, &bare) && gives_addresses(&settings, &Node::default()));
        settings.external_cloud = false;
        assert!(gives_addresses(&settings, &bare));
        assert_eq!(kinds(&settings), ["InternalIP", "Hostname"]);
    }

    #[test]
    fn an_existing_node_gets_what_it_lacks() {
        // A16.1, A16.4
        let settings = tests_support();
        let mut node = new_node(&settings, &observation());
        assert_eq!(node.metadata.annotations.as_ref().expect("annotations")[ATTACH_DETACH], "true");
        node.metadata.labels.as_mut().expect("labels").insert("kubernetes.io/arch".into(), "z80".into());
        node.metadata.labels.as_mut().expect("labels").insert("mine".into(), "stays".into());
        let patch = reconcile_patch(&settings, &node).expect("a patch");
        let labels = patch["metadata"]["labels"].as_object().expect("labels");
        assert_eq!(labels.keys().collect::<Vec<_>>(), ["kubernetes.io/arch"]);
    }

    #[test]
    fn addresses_are_internal_ones_and_the_name() {
        // A16.5, A16.7, A9.17
        let fields = status_fields(&tests_support(), &observation(), &["kubernetes.io/csi/d^h".into()]);
        assert_eq!(fields["volumesInUse"], json!(["kubernetes.io/csi/d^h"]));
        assert_eq!(
            fields["addresses"],
            json!([{ "type": "InternalIP", "address": "10.0.0.1" }, { "type": "Hostname", "address": "n1" }])
        );
        assert_eq!(fields["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    }

    #[test]
    fn what_the_runtime_can_do_is_in_the_status() {
        // A10.2, A16.7
        let fields = status_fields(&tests_support(), &observation(), &[]);
        assert_eq!((&fields["features"], &fields["runtimeHandlers"]), (&Value::Null, &Value::Null));
        let can = RuntimeHandler { recursive_read_only: true, user_namespaces: false };
        let seen = Observation {
            handlers: [(String::new(), can)].into(),
            supplemental_groups_policy: Some(true),
            ..observation()
        };
        let fields = status_fields(&tests_support(), &seen, &[]);
        assert_eq!(fields["features"], json!({ "supplementalGroupsPolicy": true }));
        let features = json!({ "recursiveReadOnlyMounts": true, "userNamespaces": false });
        assert_eq!(fields["runtimeHandlers"], json!([{ "name": "", "features": features }]));
    }
}
