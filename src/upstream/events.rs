//! Publishes events: a bounded queue that never blocks, repetition counted instead of written again (A21.3).
//!
//! Three limits, as client-go's recorder has them: a source may say 25 things about one object and then one each five
//! minutes; what was said before is counted; ten things that differ in their message alone become one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use stoker_model::handle::{ApiError, EventSink, EventSubject, EventType};
use tokio::sync::{mpsc, watch};

use super::backoff::Backoff;
use super::client::ApiServer;
use super::pace::Pace;
use crate::clock::{Clock, Now};

/// Events that wait for the API server.
const QUEUE: usize = 1000;
/// Different events whose count is remembered.
const REMEMBERED: usize = 4096;
/// What one object may cause at once.
const BURST: f64 = 25.0;
/// And then one in so long.
const REFILL: Duration = Duration::from_secs(300);
/// So many messages for one reason within [`SIMILAR_FOR`] are put together.
const SIMILAR: u32 = 10;
/// See [`SIMILAR`].
const SIMILAR_FOR: Duration = Duration::from_secs(600);
/// An event is sent so much later: what it tells of is mostly under way and has the processors first, and what is said meanwhile goes with
/// it, as one packet for both sides.
const HOLD: Duration = Duration::from_millis(500);
/// So many go together.
const TOGETHER: usize = 64;
/// Tries per event before it is dropped.
const TRIES: u32 = 12;

/// The sending end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Said>,
    clock: Clock,
    unsent: watch::Sender<Unsent>,
}

/// What has been published and not been sent.
#[derive(Clone, Copy, Debug, Default)]
struct Unsent {
    events: usize,
    /// The agent ends: nothing waits for its time any more.
    in_haste: bool,
}

#[derive(Debug)]
struct Said {
    subject: EventSubject,
    kind: EventType,
    reason: String,
    message: String,
    annotations: BTreeMap<String, String>,
    now: Now,
}

impl EventSink for Events {
    fn publish(&self, subject: EventSubject, kind: EventType, reason: &str, message: String) {
        self.publish_annotated(subject, kind, reason, message, BTreeMap::new());
    }

    fn publish_annotated(
        &self,
        subject: EventSubject,
        kind: EventType,
        reason: &str,
        message: String,
        annotations: BTreeMap<String, String>,
    ) {
        let said = Said { subject, kind, reason: reason.to_owned(), message, annotations, now: self.clock.now() };
        self.unsent.send_modify(|unsent| unsent.events += 1);
        if let Err(error) = self.queue.try_send(said) {
            self.unsent.send_modify(|unsent| unsent.events -= 1);
            let (mpsc::error::TrySendError::Full(said) | mpsc::error::TrySendError::Closed(said)) = error;
            tracing::debug!(reason = said.reason, message = said.message, "event dropped: too many wait");
        }
    }
}

impl Events {
    /// Has everything sent that was published, without delay, and returns when that is done.
    pub async fn flush(&self) {
        self.unsent.send_modify(|unsent| unsent.in_haste = true);
        let mut unsent = self.unsent.subscribe();
        tokio::select! {
            // We hold a sender, so it cannot fail.
            _ = unsent.wait_for(|unsent| unsent.events == 0) => {}
            () = self.queue.closed() => {}
        }
    }
}

/// An event queue for the node of that name: where to publish, and the task that sends.
///
/// `pace`: so many are sent a second, and so many at once (kubelet's `eventRecordQPS`, `eventBurst`).
pub fn event_queue(clock: Clock, node: String, pace: (u32, u32)) -> (Events, impl FnOnce(ApiServer) -> EventTask) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let unsent = watch::Sender::default();
    (Events { queue: sender, clock, unsent: unsent.clone() }, move |api| EventTask {
        api,
        unsent,
        node,
        queue,
        book: Book::default(),
        pace: Pace::new(pace.0, pace.1),
    })
}

/// Sends events; see [`EventTask::run`].
#[derive(Debug)]
pub struct EventTask {
    api: ApiServer,
    node: String,
    queue: mpsc::Receiver<Said>,
    book: Book,
    pace: Pace,
    unsent: watch::Sender<Unsent>,
}

impl EventTask {
    /// Runs until nobody can publish any more.
    pub async fn run(mut self) {
        let mut said = Vec::new();
        while self.queue.recv_many(&mut said, TOGETHER).await > 0 {
            let age = said.first().map(|said| Clock.now().monotonic.saturating_sub(said.now.monotonic));
            self.wait(HOLD.saturating_sub(age.unwrap_or_default())).await;
            while said.len() < TOGETHER
                && let Ok(more) = self.queue.try_recv()
            {
                said.push(more);
            }
            let published = said.len();
            let entries = self.book.note_all(said.drain(..), &self.node);
            let turn = |entry| (self.pace.take(Clock.now().monotonic), entry);
            let entries: Vec<_> = entries.into_iter().map(turn).collect();
            join_all(entries.iter().map(|(turn, entry)| self.send(*turn, entry))).await;
            self.unsent.send_modify(|unsent| unsent.events -= published);
        }
    }

    /// Unless the agent ends.
    async fn wait(&self, time: Duration) {
        if time.is_zero() {
            return;
        }
        let mut unsent = self.unsent.subscribe();
        // Its time is over, or there is haste.
        let _ = tokio::time::timeout(time, unsent.wait_for(|unsent| unsent.in_haste)).await;
    }

    /// Sends it when its turn has come.
    async fn send(&self, turn: Duration, entry: &Entry) {
        self.wait(turn).await;
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        for _ in 0..TRIES {
            match self.try_send(entry).await {
                Ok(()) => return,
                Err(ApiError::Unavailable { message, .. }) => {
                    tracing::debug!(message, "event not delivered yet");
                    tokio::time::sleep(backoff.wait()).await;
                }
                Err(error) => {
                    tracing::debug!(%error, reason = entry.reason, "event refused");
                    return;
                }
            }
        }
    }

    async fn try_send(&self, entry: &Entry) -> Result<(), ApiError> {
        let (namespace, _) = place(&entry.subject);
        let events = format!("/api/v1/namespaces/{namespace}/events");
        if entry.count > 1 {
            let patch = json!({ "count": entry.count, "lastTimestamp": seconds(entry.last), "message": entry.message });
            let path = format!("{events}/{}", entry.name);
            match self.api.patch_unread(&path, &patch).await {
                // It has expired: it is written anew.
                Err(ApiError::NotFound(_)) => {}
                other => return other.map(|_| ()),
            }
        }
        match self.api.create_unread(&events, &entry.object(&self.node)).await {
            Err(ApiError::Conflict(_)) => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

/// One event to write.
#[derive(Debug)]
struct Entry {
    subject: EventSubject,
    warning: bool,
    reason: String,
    name: String,
    message: String,
    annotations: BTreeMap<String, String>,
    count: u32,
    first: Timestamp,
    last: Timestamp,
}

impl Entry {
    fn object<'a>(&'a self, node: &'a str) -> Object<'a> {
        let (namespace, name) = place(&self.subject);
        let name = name.unwrap_or(node);
        let involved = match &self.subject {
            EventSubject::Pod { pod, field_path } => {
                Involved { field_path: field_path.as_deref(), ..Involved::of("Pod", namespace, name, pod.uid.as_str()) }
            }
            // kubelet writes the name as UID, and `kubectl describe node` looks for it.
            EventSubject::Node => Involved { kind: "Node", name, uid: node, ..Involved::default() },
            EventSubject::Service { uid, .. } => Involved::of("Service", namespace, name, uid),
            EventSubject::Claim { uid, .. } => Involved::of("PersistentVolumeClaim", namespace, name, uid),
        };
        Object {
            api_version: "v1",
            kind: "Event",
            metadata: Metadata { name: &self.name, namespace, annotations: &self.annotations },
            involved_object: involved,
            reason: &self.reason,
            message: &self.message,
            type_: if self.warning { "Warning" } else { "Normal" },
            source: Source { component: COMPONENT, host: node },
            reporting_component: COMPONENT,
            reporting_instance: node,
            first_timestamp: seconds(self.first),
            last_timestamp: seconds(self.last),
            count: self.count,
        }
    }
}

/// What kubelet calls itself.
const COMPONENT: &str = "kubelet";

/// An `Event` of `v1`, written straight from what is known: there are four in a pod's life.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    involved_object: Involved<'a>,
    reason: &'a str,
    message: &'a str,
    #[serde(rename = "type")]
    type_: &'static str,
    source: Source<'a>,
    reporting_component: &'static str,
    reporting_instance: &'a str,
    first_timestamp: String,
    last_timestamp: String,
    count: u32,
}

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
    namespace: &'a str,
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Source<'a> {
    component: &'static str,
    host: &'a str,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Involved<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<&'static str>,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    name: &'a str,
    uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field_path: Option<&'a str>,
}

impl<'a> Involved<'a> {
    fn of(kind: &'static str, namespace: &'a str, name: &'a str, uid: &'a str) -> Self {
        Self { api_version: Some("v1"), kind, namespace: Some(namespace), name, uid, field_path: None }
    }
}

/// `metav1.Time` has no fractions.
fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// Namespace of the event and name of the object.
fn place(subject: &EventSubject) -> (&str, Option<&str>) {
    match subject {
        EventSubject::Pod { pod, .. } => (&pod.namespace, Some(&pod.name)),
        EventSubject::Node => ("default", None),
        EventSubject::Service { service: named, .. } | EventSubject::Claim { claim: named, .. } => {
            (&named.namespace, Some(&named.name))
        }
    }
}

/// What has been said; decides what is written. Of each thing a mark is kept and no text: of what thousands of pods said it would be
/// megabytes.
#[derive(Debug, Default)]
struct Book {
    marks: RandomState,
    written: Bounded<Written>,
    similar: Bounded<Similar>,
    budgets: Bounded<Budget>,
}

/// What makes two events the same, as one number: of a few thousand no two have the same by chance.
type Mark = u64;

#[derive(Debug)]
struct Written {
    count: u32,
    first: Timestamp,
}

#[derive(Debug)]
struct Similar {
    messages: u32,
    last: Duration,
}

#[derive(Debug)]
struct Budget {
    left: f64,
    at: Duration,
}

impl Book {
    /// The events to write: of what was said several times, the last state alone.
    fn note_all(&mut self, said: impl Iterator<Item = Said>, node: &str) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for entry in said.filter_map(|said| self.note(said, node)) {
            match entries.iter_mut().find(|earlier| earlier.name == entry.name) {
                Some(earlier) => *earlier = entry,
                None => entries.push(entry),
            }
        }
        entries
    }

    /// The event to write, or `None` when the object has used up what it may say.
    fn note(&mut self, said: Said, node: &str) -> Option<Entry> {
        let Said { subject, kind, reason, mut message, annotations, now } = said;
        let object = self.marks.hash_one(without_field(&subject));
        let budget = self.budgets.entry(object, || Budget { left: BURST, at: now.monotonic });
        let passed = now.monotonic.saturating_sub(budget.at).as_secs_f64();
        budget.left = (budget.left + passed / REFILL.as_secs_f64()).min(BURST);
        budget.at = now.monotonic;
        if budget.left < 1.0 {
            return None;
        }
        budget.left -= 1.0;

        let warning = kind == EventType::Warning;
        let mark = |message: &str| self.marks.hash_one((&subject, warning, &reason, message));
        let (alike, exact) = (mark(""), mark(&message));
        let repeated = self.written.entries.contains_key(&exact);
        let similar = self.similar.entry(alike, || Similar { messages: 0, last: now.monotonic });
        if now.monotonic.saturating_sub(similar.last) > SIMILAR_FOR {
            similar.messages = 0;
        }
        similar.last = now.monotonic;
        if !repeated {
            similar.messages = similar.messages.saturating_add(1);
        }
        let combined = similar.messages >= SIMILAR;
        if combined {
            message = format!("(combined from similar events): {message}");
        }

        let written =
            self.written.entry(if combined { alike } else { exact }, || Written { count: 0, first: now.wall });
        written.count = written.count.saturating_add(1);
        let Written { count, first } = *written;
        // Unique as client-go's names are: the object's name and the time in nanoseconds.
        let name = format!("{}.{:x}", place(&subject).1.unwrap_or(node), first.as_nanosecond());
        Some(Entry { subject, warning, reason, name, message, annotations, count, first, last: now.wall })
    }
}

fn without_field(subject: &EventSubject) -> EventSubject {
    match subject {
        EventSubject::Pod { pod, .. } => EventSubject::Pod { pod: pod.clone(), field_path: None },
        other => other.clone(),
    }
}

/// A map that forgets its oldest entry rather than grow beyond [`REMEMBERED`].
#[derive(Debug)]
struct Bounded<V> {
    entries: HashMap<Mark, V>,
    order: VecDeque<Mark>,
}

impl<V> Default for Bounded<V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new() }
    }
}

impl<V> Bounded<V> {
    fn entry(&mut self, mark: Mark, first: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&mark) {
            self.order.push_back(mark);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
        }
        self.entries.entry(mark).or_insert_with(first)
    }
}

#[cfg(test)]
mod tests {
    use stoker_model::pod::{PodRef, PodUid};

    use super::*;

    fn at(seconds: u64) -> Now {
        let start = Now { wall: Timestamp::UNIX_EPOCH, monotonic: Duration::ZERO };
        start.plus(Duration::from_secs(seconds))
    }

    fn said(message: &str, seconds: u64) -> Said {
        let pod = PodRef { namespace: "ns".into(), name: "web".into(), uid: PodUid::new("u") };
        let subject = EventSubject::Pod { pod, field_path: Some("spec.containers{c}".into()) };
        Said {
            subject,
            kind: EventType::Warning,
            reason: "BackOff".into(),
            message: message.into(),
            annotations: BTreeMap::new(),
            now: at(seconds),
        }
    }

    #[test]
    fn repetition_is_counted() {
        // A21.3, A5.12
        let mut book = Book::default();
        let unhealthy = |second| Said { reason: "Unhealthy".into(), ..said("Readiness probe failed: no", second) };
        let counts = (0..5).map(|n| book.note(unhealthy(10 * n), "n").expect("written").count).collect::<Vec<_>>();
        assert_eq!(counts, [1, 2, 3, 4, 5]);
        let together = Book::default().note_all([said("a", 0), said("b", 1), said("a", 2)].into_iter(), "n");
        let written = together.iter().map(|entry| (entry.message.as_str(), entry.count));
        assert_eq!(written.collect::<Vec<_>>(), [("a", 2), ("b", 1)]);
        let mut book = Book::default();
        let first = book.note(said("same", 0), "n").expect("written");
        let second = book.note(said("same", 9), "n").expect("written");
        assert_eq!((first.count, second.count), (1, 2));
        assert_eq!(first.name, second.name);
        let object = serde_json::to_value(second.object("n")).unwrap();
        assert_eq!(object["involvedObject"]["fieldPath"], "spec.containers{c}");
        assert_eq!(object["lastTimestamp"], "1970-01-01T00:00:09Z");
    }

    #[test]
    fn an_object_may_say_25_things_and_then_one_each_five_minutes() {
        // A21.3
        let mut book = Book::default();
        let written = (0..40).filter(|_| book.note(said("same", 0), "n").is_some()).count();
        assert_eq!(written, 25);
        assert!(book.note(said("same", 299), "n").is_none());
        assert!(book.note(said("same", 301), "n").is_some());
    }

    #[test]
    fn ten_similar_messages_become_one_event() {
        // A21.3
        let mut book = Book::default();
        let names: Vec<_> =
            (0..12).filter_map(|n| book.note(said(&format!("no {n}"), n), "n")).map(|e| (e.name, e.message)).collect();
        assert_eq!(names[8].1, "no 8");
        assert_eq!(names[9].1, "(combined from similar events): no 9");
        assert_eq!(names[9].0, names[11].0);
    }

    #[test]
    fn memory_is_bounded() {
        let mut map = Bounded::default();
        for mark in 0..REMEMBERED as Mark + 10 {
            map.entry(mark, || ());
        }
        assert_eq!((map.entries.len(), map.order.len()), (REMEMBERED, REMEMBERED));
        assert!(!map.entries.contains_key(&9) && map.entries.contains_key(&10));
    }

    #[test]
    fn node_events_are_found_by_describe() {
        let mut book = Book::default();
        let said = Said { subject: EventSubject::Node, ..said("Starting kubelet.", 0) };
        let entry = book.note(said, "n1").expect("written");
        let object = serde_json::to_value(entry.object("n1")).unwrap();
        assert_eq!(object["metadata"]["namespace"], "default");
        assert_eq!(object["involvedObject"], json!({ "kind": "Node", "name": "n1", "uid": "n1" }));
    }
}
