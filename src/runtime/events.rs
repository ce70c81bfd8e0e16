//! Tells that something happened to a container or a sandbox: CRI's event stream where the runtime has one, else containerd's.
//!
//! Events wake, they carry no truth: who gets one looks at the runtime. For that to help, an end is told only when CRI itself
//! shows it (see [`Listener::settle`]). When events may have been missed, [`RuntimeEvent::Resync`] says so.

use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::time::Duration;

use containerd_client::events as containerd;
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::types::Envelope;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{StreamExt, TryFutureExt};
use prost::Message;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Sender};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status};
use tracing::{debug, info, warn};

use super::client::{Runtime, in_namespace};
use super::cri::{ContainerEventResponse, ContainerEventType, ContainerState, PodSandboxState};

/// A burst of 100 pods that end is 400 events; a reader that is further behind looks at everything anyway.
const QUEUE: usize = 1024;

/// The safety net: look at everything this often, give or take a tenth.
const RESYNC_SECONDS: u64 = 60;

/// A server of gRPC answers a subscription with its first event only. After this time it stands, unless it failed.
const STANDS_AFTER: Duration = Duration::from_millis(250);

/// First and longest waiting time between attempts to subscribe.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long to wait between looks whether CRI shows what containerd told, at first; it doubles.
const SETTLE_STEP: Duration = Duration::from_millis(2);

/// CRI shows an end within milliseconds. Where it has not after this many looks (8 s in all), the reader shall look for himself.
const SETTLE_LOOKS: u32 = 12;

/// The topics that change what CRI tells, in containerd's filter language.
///
/// A task is deleted by the CRI plugin when it has taken note of its end, a moment before it shows it: the exit itself comes tens of
/// milliseconds earlier, and whoever looked then would look in vain. A start is told to the one who asked for it by the call's return.
const TOPICS: [&str; 3] = ["/tasks/delete", "/tasks/oom", "/containers/delete"];

/// Something happened in the runtime.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RuntimeEvent {
    /// Look at the container or sandbox `id`.
    Changed {
        /// Of a container or of a sandbox.
        id: String,
        /// What happened.
        kind: EventKind,
    },
    /// Events may have been missed, or it is time for the slow round: look at everything.
    Resync,
}

/// What happened to a container or sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// It was made. Told by CRI's own stream only.
    Created,
    /// Its process runs. Told by CRI's own stream only.
    Started,
    /// The kernel killed a process in it for memory.
    OutOfMemory,
    /// Its process has ended.
    Stopped,
    /// It was removed.
    Deleted,
}

/// Starts the task that listens until `stop` is cancelled or the receiver is dropped. The first event is a `Resync`, as soon as the
/// subscription stands.
pub fn spawn(runtime: Runtime, stop: CancellationToken) -> mpsc::Receiver<RuntimeEvent> {
    let (out, events) = mpsc::channel(QUEUE);
    let listener = Listener { runtime, out };
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = listener.out.closed() => {}
            () = listener.run() => {}
        }
    });
    events
}

/// One event as the runtime told it; `None` where it means nothing to CRI.
type Told = Result<Option<(String, EventKind)>, Status>;

/// Where events come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// `GetContainerEvents`.
    Cri,
    /// containerd's events service.
    Containerd,
}

struct Listener {
    runtime: Runtime,
    out: Sender<RuntimeEvent>,
}

impl Listener {
    async fn run(&self) {
        let mut source = Source::Cri;
        let mut backoff = BACKOFF.0;
        loop {
            let (stood, why) = self.listen(source).await;
            if source == Source::Cri && lacks_events(&why) {
                debug!("the runtime has no event stream of CRI; using that of containerd");
                source = Source::Containerd;
                continue;
            }
            if stood {
                backoff = BACKOFF.0;
            }
            warn!(
                error = why.message(),
                "no events from the container runtime; asking again in {} ms",
                backoff.as_millis()
            );
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
            // It may be a newer runtime now.
            source = Source::Cri;
        }
    }

    /// Passes events on until the stream breaks: whether it ever stood, and why it broke.
    async fn listen(&self, source: Source) -> (bool, Status) {
        let mut told = match source {
            Source::Cri => self.cri_events(),
            Source::Containerd => self.containerd_events(),
        };
        let mut standing = pin!(sleep(STANDS_AFTER));
        let mut stood = false;
        let mut resync = pin!(sleep(resync_interval()));
        let mut settling = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = &mut standing, if !stood => {
                    info!(?source, "listening to the container runtime's events");
                    stood = true;
                    self.send(RuntimeEvent::Resync).await;
                }
                () = &mut resync => {
                    self.send(RuntimeEvent::Resync).await;
                    resync.set(sleep(resync_interval()));
                }
                Some((id, kind)) = settling.next(), if !settling.is_empty() => {
                    self.send(RuntimeEvent::Changed { id, kind }).await;
                }
                event = told.next() => match event {
                    Some(Ok(Some((id, EventKind::Stopped)))) if self.runtime.is_ending(&id) => {}
                    Some(Ok(Some((id, kind)))) if source == Source::Containerd && must_settle(kind) => {
                        settling.push(self.settle(id, kind));
                    }
                    Some(Ok(Some((id, kind)))) => self.send(RuntimeEvent::Changed { id, kind }).await,
                    Some(Ok(None)) => {}
                    Some(Err(status)) => return (stood, status),
                    None => return (stood, Status::unavailable("the runtime ended the stream")),
                },
            }
        }
    }

    fn cri_events(&self) -> BoxStream<'static, Told> {
        let runtime = self.runtime.clone();
        async move { runtime.container_events().await }
            .try_flatten_stream()
            .map(|event| event.map(|event| Some(of_cri(event))))
            .boxed()
    }

    fn containerd_events(&self) -> BoxStream<'static, Told> {
        let mut client = EventsClient::new(self.runtime.connection());
        let filters = TOPICS.iter().map(|topic| format!("namespace==k8s.io,topic==\"{topic}\"")).collect();
        let request = in_namespace(SubscribeRequest { filters });
        async move { client.subscribe(request).await.map(Response::into_inner) }
            .try_flatten_stream()
            .map(|envelope| envelope.map(|envelope| of_containerd(&envelope)))
            .boxed()
    }

    /// Waits until CRI shows what containerd told. The CRI plugin listens to the same events as we do, so a look at it right after one may
    /// still show a running container, and whoever looked would sleep on.
    async fn settle(&self, id: String, kind: EventKind) -> (String, EventKind) {
        let mut step = SETTLE_STEP;
        for _ in 0..SETTLE_LOOKS {
            if self.is_shown(&id, kind).await {
                break;
            }
            sleep(step).await;
            step *= 2;
        }
        (id, kind)
    }

    /// Whether CRI shows the event's effect. What is gone, or cannot be asked for, needs no waiting.
    async fn is_shown(&self, id: &str, kind: EventKind) -> bool {
        match self.runtime.container_status(id, false).await {
            Ok(answer) => {
                let status = answer.status.unwrap_or_default();
                match kind {
                    EventKind::OutOfMemory => status.reason == "OOMKilled",
                    // "Created" is no end: a process can be gone before CRI has even noted that it was started.
                    _ => matches!(status.state(), ContainerState::ContainerExited | ContainerState::ContainerUnknown),
                }
            }
            Err(error) if error.is_not_found() && kind == EventKind::Stopped => {
                match self.runtime.pod_sandbox_status(id, false).await {
                    Ok(answer) => answer.status.is_none_or(|status| status.state() != PodSandboxState::SandboxReady),
                    Err(_) => true,
                }
            }
            Err(_) => true,
        }
    }

    /// Never loses more than it says: where the reader is behind, it shall look at everything.
    async fn send(&self, event: RuntimeEvent) {
        if let Err(TrySendError::Full(_)) = self.out.try_send(event) {
            warn!("the reader of runtime events is {QUEUE} events behind; it will look at everything");
            // An error means that nobody listens any more, and then this task is about to be dropped.
            let _ = self.out.send(RuntimeEvent::Resync).await;
        }
    }
}

/// Ends are worth waiting for.
fn must_settle(kind: EventKind) -> bool {
    matches!(kind, EventKind::Stopped | EventKind::OutOfMemory)
}

/// Whether the runtime has CRI but not its event stream.
fn lacks_events(status: &Status) -> bool {
    status.code() == Code::Unimplemented && !status.message().contains("unknown service")
}

fn of_cri(event: ContainerEventResponse) -> (String, EventKind) {
    let kind = match event.container_event_type() {
        ContainerEventType::ContainerCreatedEvent => EventKind::Created,
        ContainerEventType::ContainerStartedEvent => EventKind::Started,
        ContainerEventType::ContainerStoppedEvent => EventKind::Stopped,
        ContainerEventType::ContainerDeletedEvent => EventKind::Deleted,
    };
    (event.container_id, kind)
}

/// `None`: an exec started or ended, or the event is of a kind that nobody asked for.
fn of_containerd(envelope: &Envelope) -> Option<(String, EventKind)> {
    let event = envelope.event.as_ref()?;
    let bytes = event.value.as_slice();
    let told = match event.type_url.rsplit('/').next()? {
        "containerd.events.TaskOOM" => (containerd::TaskOom::decode(bytes).ok()?.container_id, EventKind::OutOfMemory),
        "containerd.events.ContainerDelete" => {
            (containerd::ContainerDelete::decode(bytes).ok()?.id, EventKind::Deleted)
        }
        "containerd.events.TaskDelete" => {
            let end = containerd::TaskDelete::decode(bytes).ok()?;
            // An exec has an ID of its own; a container's first process has that of the container, or none.
            if !end.id.is_empty() && end.id != end.container_id {
                return None;
            }
            (end.container_id, EventKind::Stopped)
        }
        _ => return None,
    };
    Some(told)
}

/// Jittered, so that the agents of many nodes, started together, do not stay together.
fn resync_interval() -> Duration {
    // Its keys are random; that is all the randomness that is needed here.
    let spread = RandomState::new().hash_one(0) % (RESYNC_SECONDS * 200);
    Duration::from_millis(RESYNC_SECONDS * 900 + spread)
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;

    fn envelope(kind: &str, event: &impl Message) -> Envelope {
        let event = Any { type_url: format!("containerd.events.{kind}"), value: event.encode_to_vec() };
        Envelope { event: Some(event), ..Default::default() }
    }

    #[test]
    fn an_exec_that_ends_is_no_end_of_its_container() {
        let end = |id: &str| containerd::TaskDelete { container_id: "c".into(), id: id.into(), ..Default::default() };
        assert_eq!(of_containerd(&envelope("TaskDelete", &end("probe"))), None);
        for id in ["", "c"] {
            assert_eq!(of_containerd(&envelope("TaskDelete", &end(id))), Some(("c".into(), EventKind::Stopped)));
        }
    }

    #[test]
    fn resyncs_are_spread_by_a_tenth() {
        for _ in 0..100 {
            let interval = resync_interval();
            assert!((Duration::from_secs(54)..=Duration::from_secs(66)).contains(&interval), "{interval:?}");
        }
    }
}
