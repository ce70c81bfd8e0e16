//! Makes room for a pod of higher priority (C8.4): asks `preempt` who goes, tells them so, and keeps their place for it.

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Value, json};
use stoker_model::selector::Selector;

use super::nodes::{Load, NodeState};
use super::preempt::{Budget, choose};
use super::topology::Surroundings;
use super::volumes::Wishes;
use super::{Scheduler, filters};
use crate::api::{DeleteOptions, ListOptions, PatchType, WriteOptions};
use crate::clock;
use crate::resources::status::StatusError;
use crate::resources::tree::text;

/// A pod for which others make room.
#[derive(Debug, Clone)]
pub(super) struct Nominated {
    pub(super) node: String,
    pub(super) load: Load,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nobody whose going would help.
    Nobody,
    /// The pod may not.
    Not(&'static str),
    /// Pods go.
    Done,
}

impl Scheduler {
    /// The node with the pods for which its place is kept, if that makes a difference to this one.
    pub(super) fn with_nominated(&self, uid: &str, load: &Load, node: &NodeState) -> Option<NodeState> {
        let mut reserved: Option<NodeState> = None;
        for (other, nominated) in &self.nominated {
            let counts = other != uid
                && nominated.node == node.name
                && nominated.load.about.priority >= load.about.priority
                && !node.pods.contains_key(other);
            if counts {
                reserved.get_or_insert_with(|| node.clone()).add(other, nominated.load.clone());
            }
        }
        reserved
    }

    /// Lets pods of lower priority go from one of these nodes, if that makes room.
    pub(super) async fn preempt(
        &mut self,
        uid: &str,
        spec: &PodSpec,
        wishes: Option<&Wishes>,
        resolvable: &[String],
    ) -> Outcome {
        let Some(pending) = self.pending.get(uid) else { return Outcome::Nobody };
        if spec.preemption_policy.as_deref() == Some("Never") {
            return Outcome::Not("preemptionPolicy=Never");
        }
        let about = pending.load.about.clone();
        let load = pending.load.clone();
        if let Some(nominated) = self.nominated.get(uid)
            && let Some(node) = self.nodes.get(&nominated.node)
            && node.pods.values().any(|pod| pod.about.is_ending && pod.about.priority < about.priority)
        {
            return Outcome::Not("a terminating pod on the nominated node");
        }
        let budgets = match self.read_budgets().await {
            Ok(budgets) => budgets,
            Err(error) => {
                tracing::debug!(%error, pod = uid, "disruption budgets cannot be read");
                return Outcome::Nobody;
            }
        };
        let victims = {
            let all: Vec<&NodeState> = self.nodes.values().filter(|node| node.exists).collect();
            let candidates: Vec<&NodeState> =
                all.iter().copied().filter(|node| resolvable.contains(&node.name)).collect();
            let fits = |changed: &NodeState| {
                let reserved = self.with_nominated(uid, &load, changed);
                let view = reserved.as_ref().unwrap_or(changed);
                if filters::refusal(spec, &load, view).is_some()
                    || wishes.is_some_and(|wishes| wishes.refusal(changed).is_some())
                {
                    return false;
                }
                let nodes: Vec<&NodeState> =
                    all.iter().map(|node| if node.name == changed.name { changed } else { *node }).collect();
                Surroundings::of(spec, &about, &nodes, &self.namespaces).refusal(changed).is_none()
            };
            choose(&about, &candidates, &budgets, fits)
        };
        let Some(victims) = victims else { return Outcome::Nobody };
        for victim in &victims.pods {
            let Some(load) = self.nodes.get(&victims.node).and_then(|node| node.pods.get(victim)) else { continue };
            let (namespace, name) = (load.about.namespace.clone(), load.about.name.clone());
            if let Err(error) = self.let_go(&namespace, &name, victim).await {
                tracing::debug!(%error, namespace, name, "a pod does not make room");
                return Outcome::Nobody;
            }
            let reference = json!({"kind": "Pod", "apiVersion": "v1",
                "metadata": {"name": name, "namespace": namespace, "uid": victim}});
            let told = format!("Preempted by pod {uid} on node {}", victims.node);
            self.recorder.normal(&reference, "Preempted", told);
        }
        // Those of lower priority that waited for this place look for another.
        let node = victims.node;
        let displaced: Vec<String> = self
            .nominated
            .iter()
            .filter(|(_, other)| other.node == node && other.load.about.priority < about.priority)
            .map(|(uid, _)| uid.clone())
            .collect();
        for other in displaced {
            if let Some(nominated) = self.nominated.remove(&other) {
                self.nominate(&nominated.load.about.namespace, &nominated.load.about.name, &other, "").await;
            }
        }
        self.nominate(&about.namespace, &about.name, uid, &node).await;
        self.nominated.insert(uid.to_owned(), Nominated { node, load });
        Outcome::Done
    }

    async fn nominate(&self, namespace: &str, name: &str, uid: &str, node: &str) {
        let node = if node.is_empty() { Value::Null } else { json!(node) };
        let patch = json!({"metadata": {"uid": uid}, "status": {"nominatedNodeName": node}});
        let options = WriteOptions::default();
        let written = self.pods.patch(namespace, name, "status", PatchType::Strategic, &patch, &options).await;
        if let Err(error) = written {
            tracing::debug!(%error, namespace, name, "the nominated node was not written");
        }
    }

    async fn let_go(&self, namespace: &str, name: &str, uid: &str) -> Result<(), StatusError> {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": "default-scheduler: preempting to accommodate a higher priority pod",
            "lastTransitionTime": clock::seconds_text(clock::now()),
        });
        let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
        let options = WriteOptions::default();
        let told = self.pods.patch(namespace, name, "status", PatchType::Strategic, &patch, &options).await;
        let gone = |error: &StatusError| error.is_not_found() || error.is_conflict();
        match told {
            Err(error) if gone(&error) => return Ok(()),
            result => result?,
        };
        let options = DeleteOptions { uid: Some(uid.to_owned()), ..DeleteOptions::default() };
        match self.pods.delete(namespace, name, &options).await {
            Err(error) if !gone(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn read_budgets(&self) -> Result<Vec<Budget>, StatusError> {
        let listed = self.budgets.list("", &ListOptions::default()).await?;
        let read = |budget: &Value| {
            let selector = serde_json::from_value(budget["spec"]["selector"].clone()).ok()?;
            Some(Budget {
                namespace: text(&budget["metadata"], "namespace").to_owned(),
                selector: Selector::of(&selector).ok()?,
                allowed: budget["status"]["disruptionsAllowed"].as_i64().unwrap_or_default(),
            })
        };
        Ok(listed.items.iter().filter_map(read).collect())
    }
}
