//! Publishes events: never blocks, and the same event again raises a count instead of making a new object.
//!
//! In:  [`Recorder::publish`], over a bounded channel; when it is full, events are dropped.
//! Out: `v1` Events through the in-process client.

use std::collections::{HashMap, VecDeque};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::api::{Cluster, PatchType, WriteOptions};
use crate::clock;
use crate::resources::tree::text;

/// A burst that outruns the store by more than this loses events, which are a courtesy.
const QUEUE: usize = 1024;
/// So many distinct events are remembered for counting.
const REMEMBERED: usize = 512;

/// One event to publish.
#[derive(Debug)]
struct Event {
    source: &'static str,
    regarding: Value,
    kind: &'static str,
    reason: &'static str,
    message: String,
}

/// Publishes events of one component; cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    source: &'static str,
    queue: mpsc::Sender<Event>,
}

impl Recorder {
    /// Starts the one task that writes events. It ends when the last clone is dropped.
    pub fn spawn(cluster: Cluster, source: &'static str) -> Self {
        let (queue, events) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(cluster, events));
        Self { source, queue }
    }

    /// The same writer, in the name of another component.
    #[must_use]
    pub fn of(&self, source: &'static str) -> Self {
        Self { source, queue: self.queue.clone() }
    }

    /// A `Normal` event about `object` (a whole object with kind, apiVersion and metadata).
    pub fn normal(&self, object: &Value, reason: &'static str, message: String) {
        self.publish(object, "Normal", reason, message);
    }

    /// A `Warning`.
    pub fn warning(&self, object: &Value, reason: &'static str, message: String) {
        self.publish(object, "Warning", reason, message);
    }

    fn publish(&self, object: &Value, kind: &'static str, reason: &'static str, message: String) {
        let metadata = &object["metadata"];
        let regarding = json!({
            "kind": object["kind"], "apiVersion": object["apiVersion"], "namespace": text(metadata, "namespace"),
            "name": metadata["name"], "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
        });
        if self.queue.try_send(Event { source: self.source, regarding, kind, reason, message }).is_err() {
            tracing::debug!(reason, "dropped an event: the writer is behind or gone");
        }
    }
}

/// Namespace and name of a stored event, and how often it happened.
type Stored = (String, String, i64);

async fn write_all(cluster: Cluster, mut events: mpsc::Receiver<Event>) {
    let objects = cluster.objects("", "events");
    let mut known: HashMap<String, Stored> = HashMap::new();
    let mut order: VecDeque<String> = VecDeque::new();
    while let Some(event) = events.recv().await {
        let now = clock::seconds_text(clock::now());
        let identity = format!("{}/{}/{}/{}", event.source, event.regarding["uid"], event.reason, event.message);
        if let Some((namespace, name, count)) = known.get_mut(&identity) {
            *count += 1;
            let patch = json!({"count": *count, "lastTimestamp": now});
            let options = WriteOptions::default();
            if objects.patch(namespace, name, "", PatchType::Merge, &patch, &options).await.is_ok() {
                continue;
            }
            known.remove(&identity);
        }
        let (namespace, object) = new_event(&event, &now);
        let name = text(&object["metadata"], "name").to_owned();
        match objects.create(&namespace, object, &WriteOptions::default()).await {
            Ok(_) => {
                known.insert(identity.clone(), (namespace, name, 1));
                order.push_back(identity);
                if order.len() > REMEMBERED
                    && let Some(oldest) = order.pop_front()
                {
                    known.remove(&oldest);
                }
            }
            // Of an object in a namespace that is being removed, for one.
            Err(error) => tracing::debug!(%error, reason = event.reason, "an event was not stored"),
        }
    }
}

fn new_event(event: &Event, now: &str) -> (String, Value) {
    let namespace = match text(&event.regarding, "namespace") {
        "" => "default",
        namespace => namespace,
    };
    let suffix = uuid::Uuid::new_v4().simple().to_string();
    let name = format!("{}.{}", text(&event.regarding, "name"), &suffix[..16]);
    let object = json!({
        "kind": "Event", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": event.regarding, "type": event.kind, "reason": event.reason, "message": event.message,
        "source": {"component": event.source}, "reportingComponent": event.source, "reportingInstance": "",
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    });
    (namespace.to_owned(), object)
}
