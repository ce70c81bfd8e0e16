//! exec, attach and port-forward: finds the container, asks the runtime for a streaming URL, and connects the client with it (A18.8 to A18.11).

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod upgrade;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::{Container, Pod};
use stoker_model::handle::PodDirectory;
use stoker_model::names;
use stoker_model::pod::{PodRef, PodUid};
use stoker_model::streams::websocket::{Bridge, Streams, TUNNEL, V5, offers};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::upgrade::UpgradeError;
use super::query::Query;
use super::reply::{self, Reply};
use crate::runtime::{Runtime, RuntimeError, cri};

/// Streams at a time.
const STREAMS: usize = 1024;

/// What a client is told to wait when the runtime has too many streams that nobody came for.
const RETRY_SECONDS: u16 = 60;

/// A container as a path names it.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) struct Target {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: Option<String>,
    /// Empty for port-forward.
    pub(super) container: String,
}

/// What a stream is for.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Kind {
    Exec,
    Attach,
    PortForward,
    Run,
}

impl Kind {
    pub(super) const fn methods(self) -> &'static [Method] {
        match self {
            Self::Exec | Self::Attach | Self::PortForward => &[Method::GET, Method::POST],
            Self::Run => &[Method::POST],
        }
    }
}

/// Connects clients with the runtime's streaming server.
pub(super) struct Streaming {
    pods: Arc<dyn PodDirectory>,
    runtime: Runtime,
    room: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Why there is no stream, in kubelet's words.
#[derive(Debug, thiserror::Error)]
enum NoStream {
    #[error("Unable to decode query.")]
    Query,
    #[error("you must specify at least 1 of stdin, stdout, stderr")]
    NoStreams,
    #[error("pod does not exist")]
    NoPod,
    #[error("pod not found")]
    OtherPod,
    #[error("container not found ({0:?})")]
    NoContainer(String),
    #[error("container {container} not found in pod {pod}")]
    NotAttachable { container: String, pod: String },
    #[error("sandbox of pod {0:?} not found")]
    NoSandbox(String),
    #[error("Upgrade request required")]
    NoUpgrade,
    #[error("query parameter \"port\" is required")]
    NoPort,
    #[error("port {0:?} must be an integer from 1 to 65535")]
    Port(String),
    #[error("the websocket request has no key")]
    NoKey,
    #[error("{STREAMS} streams are open on this node: close some, or try again later")]
    TooMany,
    #[error("command {command:?} exited with {code}: {output}")]
    Failed { command: String, code: i32, output: String },
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
}

impl NoStream {
    fn reply(&self) -> Reply {
        let status = match self {
            Self::Query | Self::NoStreams | Self::NoUpgrade | Self::NoPort | Self::Port(_) | Self::NoKey => {
                StatusCode::BAD_REQUEST
            }
            Self::NoPod | Self::OtherPod | Self::Runtime(RuntimeError::NotFound(_)) => StatusCode::NOT_FOUND,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut answer = reply::text(status, self.to_string());
        if status == StatusCode::TOO_MANY_REQUESTS {
            answer.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
        }
        answer
    }
}

impl Streaming {
    pub(super) fn new(pods: Arc<dyn PodDirectory>, runtime: Runtime, stop: CancellationToken) -> Self {
        Self { pods, runtime, room: Arc::new(Semaphore::new(STREAMS)), stop }
    }

    /// Answers a request whose user may make it.
    pub(super) async fn answer(&self, kind: Kind, target: &Target, request: Request<Incoming>) -> Reply {
        let result = match kind {
            Kind::Exec => self.exec(target, request).await,
            Kind::Attach => self.attach(target, request).await,
            Kind::PortForward => self.port_forward(target, request).await,
            Kind::Run => self.run(target, &request).await,
        };
        result.unwrap_or_else(|refusal| refusal.reply())
    }

    async fn exec(&self, target: &Target, request: Request<Incoming>) -> Result<Reply, NoStream> {
        let query = query(&request)?;
        let streams = streams(&query)?;
        let pod = self.pod(target)?;
        upgradable(&request)?;
        let id = self.container(&pod, target).await?;
        let command = query.values("command").map(str::to_owned).collect();
        let Streams { stdin, stdout, stderr, tty } = streams;
        let audit_request_id = String::new();
        let exec = cri::ExecRequest { container_id: id, cmd: command, tty, stdin, stdout, stderr, audit_request_id };
        let url = self.runtime.exec(exec).await?;
        self.connect(request, &url, streams).await
    }

    async fn attach(&self, target: &Target, request: Request<Incoming>) -> Result<Reply, NoStream> {
        let mut streams = streams(&query(&request)?)?;
        let pod = self.pod(target)?;
        upgradable(&request)?;
        let id = self.container(&pod, target).await.map_err(|error| match error {
            NoStream::NoContainer(container) => {
                NoStream::NotAttachable { container, pod: format!("{}_{}", target.pod, target.namespace) }
            }
            other => other,
        })?;
        // A process has a terminal from its start or never.
        streams.tty = has_terminal(&pod, &target.container);
        streams.stderr = streams.stderr && !streams.tty;
        let Streams { stdin, stdout, stderr, tty } = streams;
        let audit_request_id = String::new();
        let attach = cri::AttachRequest { container_id: id, stdin, tty, stdout, stderr, audit_request_id };
        let url = self.runtime.attach(attach).await?;
        self.connect(request, &url, streams).await
    }

    /// Gives the client his stream: older protocols as they are, the newest translated.
    async fn connect(&self, request: Request<Incoming>, url: &str, streams: Streams) -> Result<Reply, NoStream> {
        let bridge = offers(request.headers(), V5).then_some(Bridge::Streams(streams));
        self.pass_on(request, url, bridge).await
    }

    async fn pass_on(
        &self,
        mut request: Request<Incoming>,
        url: &str,
        bridge: Option<Bridge>,
    ) -> Result<Reply, NoStream> {
        let permit = self.room.clone().try_acquire_owned().map_err(|_| NoStream::TooMany)?;
        let Some(bridge) = bridge else {
            return Ok(upgrade::relay(request, url, permit, self.stop.clone()).await?);
        };
        let (answer, client) = websocket::accept(&mut request, bridge).ok_or(NoStream::NoKey)?;
        match upgrade::open(url, "SPDY/3.1", bridge.stream_protocol()).await? {
            Ok(runtime) => websocket::serve(bridge, client, runtime, permit, self.stop.clone()),
            Err(refusal) => return Ok(refusal),
        }
        Ok(answer)
    }

    async fn port_forward(&self, target: &Target, request: Request<Incoming>) -> Result<Reply, NoStream> {
        let query = query(&request)?;
        let tunnelled = offers(request.headers(), TUNNEL);
        let is_websocket =
            request.headers().get("upgrade").is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"websocket"));
        // SPDY names the port of each connection in its own stream.
        let ports = if is_websocket && !tunnelled { ports(&query)? } else { Vec::new() };
        let pod = self.pods.pod(&target.namespace, &target.pod, None).ok_or(NoStream::NoPod)?;
        if target.uid.as_deref().is_some_and(|uid| pod.pod().metadata.uid.as_deref() != Some(uid)) {
            return Err(NoStream::OtherPod);
        }
        upgradable(&request)?;
        let sandbox = self.sandbox(pod.pod()).await?;
        let url = self.runtime.port_forward(cri::PortForwardRequest { pod_sandbox_id: sandbox, port: ports }).await?;
        self.pass_on(request, &url, tunnelled.then_some(Bridge::Tunnel)).await
    }

    async fn run(&self, target: &Target, request: &Request<Incoming>) -> Result<Reply, NoStream> {
        let query = query(request)?;
        let command: Vec<String> = query.first("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
        let pod = self.pod(target)?;
        let id = self.container(&pod, target).await?;
        let _permit = self.room.clone().try_acquire_owned().map_err(|_| NoStream::TooMany)?;
        let answer = self.runtime.exec_sync(&id, command.clone(), Duration::ZERO).await?;
        let output = [answer.stdout, answer.stderr].concat();
        if answer.exit_code != 0 {
            let output = String::from_utf8_lossy(&output).into_owned();
            return Err(NoStream::Failed { command: command.join(" "), code: answer.exit_code, output });
        }
        Ok(reply::json(output))
    }

    fn pod(&self, target: &Target) -> Result<Arc<Pod>, NoStream> {
        let uid = target.uid.as_deref().map(PodUid::new);
        let found = self.pods.pod(&target.namespace, &target.pod, uid.as_ref());
        found.map(|found| found.pod().clone()).ok_or(NoStream::NoPod)
    }

    /// The ID of the running container of that name, asked from the runtime: a status may be a moment old.
    async fn container(&self, pod: &Pod, target: &Target) -> Result<String, NoStream> {
        let labels = [
            (names::POD_UID.to_owned(), PodRef::of(pod).uid.to_string()),
            (names::CONTAINER_NAME.to_owned(), target.container.clone()),
        ];
        let running = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() };
        let filter = cri::ContainerFilter { state: Some(running), label_selector: labels.into(), ..Default::default() };
        let found = self.runtime.list_containers(Some(filter)).await?;
        let newest = found.into_iter().max_by_key(|container| container.created_at);
        newest.map(|container| container.id).ok_or_else(|| NoStream::NoContainer(target.container.clone()))
    }

    async fn sandbox(&self, pod: &Pod) -> Result<String, NoStream> {
        let reference = PodRef::of(pod);
        let ready = cri::PodSandboxStateValue { state: cri::PodSandboxState::SandboxReady.into() };
        let labels = [(names::POD_UID.to_owned(), reference.uid.to_string())];
        let filter = cri::PodSandboxFilter { state: Some(ready), label_selector: labels.into(), ..Default::default() };
        let found = self.runtime.list_pod_sandbox(Some(filter)).await?;
        let newest = found.into_iter().max_by_key(|sandbox| sandbox.created_at);
        newest.map(|sandbox| sandbox.id).ok_or(NoStream::NoSandbox(reference.name))
    }
}

fn query(request: &Request<Incoming>) -> Result<Query, NoStream> {
    Query::parse(request.uri().query().unwrap_or_default()).ok_or(NoStream::Query)
}

fn upgradable(request: &Request<Incoming>) -> Result<(), NoStream> {
    if upgrade::is_wanted(request.headers()) { Ok(()) } else { Err(NoStream::NoUpgrade) }
}

/// The streams that a query asks for. A terminal has no stderr of its own.
fn streams(query: &Query) -> Result<Streams, NoStream> {
    let flag = |name: &str| query.first(name) == Some("1");
    let tty = flag("tty");
    let streams = Streams { stdin: flag("input"), stdout: flag("output"), stderr: flag("error") && !tty, tty };
    if !streams.stdin && !streams.stdout && !streams.stderr {
        return Err(NoStream::NoStreams);
    }
    Ok(streams)
}

fn ports(query: &Query) -> Result<Vec<i32>, NoStream> {
    let read = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(i32::from(port)),
        _ => Err(NoStream::Port(text.to_owned())),
    };
    let ports = query.values("port").flat_map(|list| list.split(',')).map(read).collect::<Result<Vec<_>, _>>()?;
    if ports.is_empty() { Err(NoStream::NoPort) } else { Ok(ports) }
}

fn has_terminal(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let is = |container: &&Container| container.name == name;
    let plain = spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(is);
    let ephemeral = spec.ephemeral_containers.iter().flatten().find(|container| container.name == name);
    plain.map(|container| container.tty).or(ephemeral.map(|container| container.tty)).flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str) -> Result<Streams, String> {
        streams(&Query::parse(query).unwrap()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn streams_are_asked_for_with_kubelets_names() {
        // A18.8
        let none = Streams { stdin: false, stdout: false, stderr: false, tty: false };
        assert_eq!(asked("input=1&output=1&error=1"), Ok(Streams { stdin: true, stdout: true, stderr: true, ..none }));
        assert_eq!(asked("output=1&error=1&tty=1"), Ok(Streams { stdout: true, tty: true, ..none }));
        for query in ["", "tty=1", "output=true", "error=1&tty=1"] {
            assert_eq!(asked(query), Err("you must specify at least 1 of stdin, stdout, stderr".into()), "{query}");
        }
    }

    #[test]
    fn ports_of_websockets_are_checked() {
        // A18.10
        let read = |query: &str| ports(&Query::parse(query).unwrap()).map_err(|refusal| refusal.to_string());
        assert_eq!(read("port=80&port=81,82"), Ok(vec![80, 81, 82]));
        assert_eq!(read(""), Err("query parameter \"port\" is required".into()));
        for wrong in ["0", "65536", "-1", "x", ""] {
            assert!(read(&format!("port={wrong}")).is_err(), "{wrong}");
        }
    }
}
