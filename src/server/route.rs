//! From a request to an answer: who may have it, and what there is.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use serde_json::{Value, json};
use stoker_model::handle::{AgentState, PodDirectory, ProbeMetrics, UserInfo};
use stoker_model::metrics;
use stoker_model::pod::LocalPod;
use tokio::time::timeout;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use super::access::{Access, Refusal};
use super::escape::unescape;
use super::files;
use super::health::{Check, Results};
use super::journal;
use super::logs::{LogRequest, choose_container};
use super::pages;
use super::query::Query;
use super::reply::{self, Reply};
use super::running;
use super::stats::{Places, Stats};
use super::stream::{Kind, Streaming, Target};
use super::tokens::Tokens;
use super::{Handles, ServerConfig};
use crate::clock::{Clock, Now};
use crate::runtime::{Runtime, logs};

/// A level of logging has fewer digits.
const LONGEST_NUMBER: usize = 16;

/// And comes sooner.
const BODY: Duration = Duration::from_secs(10);

/// So much is read of a body that nobody wants, and for so long.
const UNWANTED_BYTES: usize = 256 << 10;
const UNWANTED: Duration = Duration::from_secs(1);

/// What is served, and from what.
pub(super) struct Routes {
    pods: Arc<dyn PodDirectory>,
    agent: Arc<dyn AgentState>,
    probes: Arc<dyn ProbeMetrics>,
    runtime: Runtime,
    access: Access,
    tokens: Option<Tokens>,
    stats: Stats,
    streaming: Streaming,
    config: ServerConfig,
    started: Now,
    checks: Results,
}

/// What a path means.
#[derive(Debug, PartialEq, Eq)]
enum Page {
    Healthz(Check),
    /// PUT of klog's level.
    Verbosity,
    /// Profiles of Go's runtime.
    Profile,
    Pods,
    RunningPods,
    Metrics(Metrics),
    Summary,
    Configz,
    Flagz,
    Statusz,
    /// A path below the system's logs.
    Logs(String),
    ContainerLogs {
        namespace: String,
        pod: String,
        container: String,
    },
    Stream(Kind, Target),
    Unknown,
}

/// Pages for Prometheus.
#[derive(Debug, PartialEq, Eq)]
enum Metrics {
    Own,
    Resource,
    Cadvisor,
    Probes,
    Slis,
}

impl Page {
    /// Names are compared, never used as paths, so an odd one only is not found. Kubernetes' names need no escapes, but a client may use them.
    fn of(path: &str) -> Self {
        let Some(path) = unescape(path) else { return Self::Unknown };
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match parts[..] {
            ["healthz"] => Self::Healthz(Check::All),
            ["healthz", name] if Check::of(name).is_some() => Self::Healthz(Check::of(name).unwrap_or(Check::All)),
            ["debug", "flags", "v"] => Self::Verbosity,
            ["debug", "pprof", ..] => Self::Profile,
            ["pods"] => Self::Pods,
            ["runningpods"] | ["runningpods", ""] => Self::RunningPods,
            ["metrics"] => Self::Metrics(Metrics::Own),
            ["metrics", "resource"] => Self::Metrics(Metrics::Resource),
            ["metrics", "cadvisor"] => Self::Metrics(Metrics::Cadvisor),
            ["metrics", "probes"] => Self::Metrics(Metrics::Probes),
            ["metrics", "slis"] => Self::Metrics(Metrics::Slis),
            ["stats", "summary"] => Self::Summary,
            ["configz"] => Self::Configz,
            ["flagz"] => Self::Flagz,
            ["statusz"] => Self::Statusz,
            // A file's name may be anything; the kernel sees to it that it lies below.
            ["logs", ref below @ ..] => Self::Logs(below.join("/")),
            ["containerLogs", namespace, pod, container] if [namespace, pod, container].into_iter().all(is_name) => {
                Self::ContainerLogs { namespace: namespace.into(), pod: pod.into(), container: container.into() }
            }
            [kind, ref names @ ..] if names.iter().copied().all(is_name) => Self::stream(kind, names),
            _ => Self::Unknown,
        }
    }

    /// `/exec/<namespace>/<pod>[/<uid>]/<container>` and the like; port-forward has no container.
    fn stream(kind: &str, names: &[&str]) -> Self {
        let kind = match kind {
            "exec" => Kind::Exec,
            "attach" => Kind::Attach,
            "portForward" => Kind::PortForward,
            "run" => Kind::Run,
            _ => return Self::Unknown,
        };
        let (place, container) = match (kind, names) {
            (Kind::PortForward, place) => (place, ""),
            (_, [place @ .., container]) => (place, *container),
            (_, []) => return Self::Unknown,
        };
        let (namespace, pod, uid) = match place {
            [namespace, pod] => (namespace, pod, None),
            [namespace, pod, uid] => (namespace, pod, Some((*uid).to_owned())),
            _ => return Self::Unknown,
        };
        let (namespace, pod, container) = ((*namespace).to_owned(), (*pod).to_owned(), container.to_owned());
        Self::Stream(kind, Target { namespace, pod, uid, container })
    }

    /// What is there with `enableDebuggingHandlers` only (A18.18).
    const fn is_for_debugging(&self) -> bool {
        match self {
            Self::Healthz(_) | Self::Pods | Self::Metrics(_) | Self::Summary | Self::Unknown => false,
            Self::Verbosity
            | Self::Profile
            | Self::RunningPods
            | Self::Configz
            | Self::Flagz
            | Self::Statusz
            | Self::Logs(_)
            | Self::ContainerLogs { .. }
            | Self::Stream(..) => true,
        }
    }

    /// Subresources of `nodes` that allow it, in the order of trying (A18).
    fn subresources(&self) -> &'static [&'static str] {
        match self {
            Self::Healthz(_) => &["healthz", "proxy"],
            Self::Pods | Self::RunningPods => &["pods", "proxy"],
            Self::Metrics(_) => &["metrics"],
            Self::Summary => &["stats"],
            Self::Configz => &["configz", "proxy"],
            Self::Flagz => &["configz"],
            Self::Statusz => &["statusz"],
            Self::Logs(_) => &["log"],
            Self::ContainerLogs { .. } | Self::Stream(..) | Self::Verbosity | Self::Profile | Self::Unknown => {
                &["proxy"]
            }
        }
    }
}

/// The part of a path that does not name anything of the node's: `/containerLogs/a/b/c` is `containerLogs`.
fn root_of(path: &str) -> &str {
    let path = path.trim_start_matches('/');
    let parts = if path.starts_with("metrics/") || path.starts_with("stats/") { 2 } else { 1 };
    let end = path.match_indices('/').nth(parts - 1).map_or(path.len(), |(at, _)| at);
    &path[..end]
}

impl Routes {
    pub(super) fn new(handles: Handles, access: Access, streaming: Streaming, config: ServerConfig) -> Self {
        let Handles { pods, runtime, usage, disks, tokens, agent, probes, .. } = handles;
        let places = Places { root: config.root_dir.clone(), logs: config.pod_logs_dir.clone() };
        let volumes = (places, disks, config.volume_stats_every);
        Self {
            stats: Stats::new(config.node.clone(), pods.clone(), usage, runtime.clone(), volumes),
            tokens: tokens.map(|reviewer| Tokens::new(reviewer, config.token_ttl)),
            pods,
            agent,
            probes,
            runtime,
            access,
            streaming,
            config,
            started: Clock.now(),
            checks: Results::default(),
        }
    }

    /// Answers one request of `user`, and counts it (A23.3).
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        user: Option<&UserInfo>,
    ) -> Result<Reply, Infallible> {
        let page = Page::of(request.uri().path());
        let long = if matches!(page, Page::Stream(..)) { "true" } else { "false" };
        // Whoever may ask anything must not make anything grow.
        let path = if matches!(page, Page::Unknown) { "other" } else { root_of(request.uri().path()) }.to_owned();
        let method = match *request.method() {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            _ => "other",
        };
        let labels = [long, method, path.as_str(), "readwrite"];
        metrics::HTTP_REQUESTS.inc(&labels);
        let begun = Clock.now().monotonic;
        let reply = self.answer_user(request, user).await;
        metrics::HTTP_REQUESTS_DURATION.observe(&labels, Clock.now().monotonic.saturating_sub(begun));
        reply
    }

    async fn answer_user(&self, request: Request<Incoming>, user: Option<&UserInfo>) -> Result<Reply, Infallible> {
        let by_token = match (user, &self.tokens) {
            (None, Some(tokens)) => match tokens.user(request.headers()).await {
                Ok(user) => user,
                Err(error) => {
                    tracing::warn!(%error, "cannot review a token");
                    None
                }
            },
            _ => None,
        };
        let anonymous = self.config.anonymous && user.is_none() && !request.headers().contains_key(AUTHORIZATION);
        let anonymous = anonymous.then(anonymous_user);
        let Some(user) = user.or(by_token.as_ref()).or(anonymous.as_ref()) else {
            return Ok(heard_out(reply::text(StatusCode::UNAUTHORIZED, "Unauthorized"), request).await);
        };
        let page = Page::of(request.uri().path());
        match self.access.check(user, request.method(), page.subresources()).await {
            Ok(()) => {}
            Err(refusal) => {
                let (status, text) = match refusal {
                    Refusal::Forbidden(text) => (StatusCode::FORBIDDEN, text),
                    Refusal::Unknown(text) => (StatusCode::INTERNAL_SERVER_ERROR, text),
                };
                return Ok(heard_out(reply::text(status, text), request).await);
            }
        }
        let span = request_span(&request);
        let answer = self.serve(page, request).instrument(span.clone()).await;
        span.record("http.status_code", answer.status().as_u16());
        Ok(answer)
    }

    /// Answers a request that may be made.
    async fn serve(&self, page: Page, request: Request<Incoming>) -> Reply {
        if !self.config.debugging_handlers {
            if is_disabled(request.uri().path()) {
                let reply = reply::text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n");
                return heard_out(reply, request).await;
            }
            if page.is_for_debugging() {
                return heard_out(reply::no_such_page(), request).await;
            }
        }
        match page {
            Page::Unknown => heard_out(reply::no_such_page(), request).await,
            Page::Stream(kind, _) if !kind.methods().contains(request.method()) => {
                heard_out(reply::method_not_allowed(kind.methods()), request).await
            }
            Page::Stream(kind, target) => self.streaming.answer(kind, &target, request).await,
            Page::Verbosity => self.set_verbosity(request).await,
            page => {
                let reply = self.read(page, &request).await;
                heard_out(reply, request).await
            }
        }
    }

    /// Answers on the read-only port: only what tells nothing that must be kept, and everybody (A18.19).
    pub(super) async fn answer_anybody(&self, request: Request<Incoming>) -> Result<Reply, Infallible> {
        Ok(match Page::of(request.uri().path()) {
            page @ (Page::Healthz(_) | Page::Pods | Page::Metrics(_) | Page::Summary) => {
                let reply = self.read(page, &request).await;
                heard_out(reply, request).await
            }
            _ => heard_out(reply::no_such_page(), request).await,
        })
    }

    /// What is only read.
    async fn read(&self, page: Page, request: &Request<Incoming>) -> Reply {
        let query = Query::parse(request.uri().query().unwrap_or_default()).unwrap_or_default();
        match page {
            // Old clients ask with a body, which says nothing that counts.
            Page::Summary if matches!(*request.method(), Method::GET | Method::POST) => {
                let is_true = |value: &str| matches!(value, "true" | "1");
                self.document(&self.stats.summary(query.first("only_cpu_and_memory").is_some_and(is_true)).await)
            }
            Page::Summary => reply::method_not_allowed(&[Method::GET, Method::POST]),
            _ if request.method() != Method::GET => reply::method_not_allowed(&[Method::GET]),
            Page::Healthz(check) => {
                let excluded: Vec<&str> = query.values("exclude").collect();
                check.answer(self.agent.is_alive(), query.first("verbose").is_some(), &excluded, &self.checks)
            }
            Page::Pods => self.pods(),
            Page::RunningPods => match running::pods(&self.runtime).await {
                Ok(pods) => self.document(&pods),
                Err(error) => reply::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            Page::Metrics(Metrics::Own) => reply::metrics(self.stats.own_metrics().await),
            Page::Metrics(Metrics::Resource) => reply::metrics(self.stats.resource_metrics().await),
            Page::Metrics(Metrics::Cadvisor) => reply::metrics(self.stats.cadvisor_metrics().await),
            Page::Metrics(Metrics::Probes) => reply::metrics(self.probes.probe_metrics()),
            Page::Metrics(Metrics::Slis) => reply::metrics(self.checks.metrics()),
            Page::Configz => self.document(&json!({ "kubeletconfig": self.config.kubelet_configuration })),
            Page::Flagz => pages::flagz(&self.config.kubelet_configuration, request.headers()),
            Page::Statusz => pages::statusz(self.started, Clock.now(), request.headers()),
            Page::Logs(path) => match &self.config.system_logs_dir {
                Some(directory) if query.first("query").is_some() || query.first("unit").is_some() => {
                    if !path.is_empty() {
                        reply::text(StatusCode::NOT_ACCEPTABLE, "path not allowed in query mode")
                    } else if self.config.system_log_query {
                        journal::answer(directory, &query).await
                    } else {
                        let text = "NodeLogQuery feature is not enabled: set enableSystemLogQuery";
                        reply::text(StatusCode::METHOD_NOT_ALLOWED, text)
                    }
                }
                Some(directory) => files::answer(directory, &path).await,
                None => reply::text(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled."),
            },
            Page::ContainerLogs { namespace, pod, container } => {
                self.container_logs(&namespace, &pod, &container, request.uri().query().unwrap_or_default()).await
            }
            Page::Profile => reply::text(StatusCode::NOT_IMPLEMENTED, stoker_model::NO_PROFILES),
            Page::Stream(..) | Page::Verbosity | Page::Unknown => reply::no_such_page(),
        }
    }

    /// PUT `/debug/flags/v` (A18.14).
    async fn set_verbosity(&self, request: Request<Incoming>) -> Reply {
        if !self.config.debug_flags {
            return heard_out(reply::text(StatusCode::METHOD_NOT_ALLOWED, "flags endpoint is disabled."), request)
                .await;
        }
        if request.method() != Method::PUT {
            return heard_out(reply::method_not_allowed(&[Method::PUT]), request).await;
        }
        let body = Limited::new(request.into_body(), LONGEST_NUMBER).collect();
        let Ok(body) = timeout(BODY, body).await else {
            return reply::text(StatusCode::REQUEST_TIMEOUT, "the level of logging did not come");
        };
        let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
        let Ok(level) = text.parse::<i64>() else {
            return reply::text(
                StatusCode::BAD_REQUEST,
                format!("failed set klog.logging.verbosity {text}: no number"),
            );
        };
        match self.agent.set_verbosity(level) {
            Ok(()) => reply::text(StatusCode::OK, format!("successfully set klog.logging.verbosity to {level}")),
            Err(reason) => reply::text(StatusCode::INTERNAL_SERVER_ERROR, reason),
        }
    }

    fn document(&self, value: &Value) -> Reply {
        reply::json(value.to_string().into_bytes())
    }

    /// Desired pods as a PodList (A18.2).
    fn pods(&self) -> Reply {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct PodList<'a> {
            kind: &'static str,
            api_version: &'static str,
            metadata: Metadata,
            items: &'a [Pod],
        }
        #[derive(Serialize)]
        struct Metadata {}
        let pods: Vec<Pod> = self.pods.pods().iter().map(LocalPod::whole).collect();
        let list = PodList { kind: "PodList", api_version: "v1", metadata: Metadata {}, items: &pods };
        match serde_json::to_vec(&list) {
            Ok(document) => reply::json(document),
            Err(error) => reply::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    /// The log of a container (A18.7), in kubelet's order of checks.
    async fn container_logs(&self, namespace: &str, pod: &str, container: &str, query: &str) -> Reply {
        let request = match LogRequest::parse(query, Clock.now().wall) {
            Ok(request) => request,
            Err(refusal) => return reply::text(refusal.status(), refusal.to_string()),
        };
        let Some(found) = self.pods.pod(namespace, pod, None) else {
            return reply::text(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist"));
        };
        let id = match choose_container(&found, container, request.previous) {
            Ok(id) => id,
            Err(refusal) => return reply::text(refusal.status(), refusal.to_string()),
        };
        match logs::open(&self.runtime, &id, request.options).await {
            Ok(log) => reply::log(log),
            Err(error) => reply::text(StatusCode::BAD_REQUEST, error.to_string()),
        }
    }
}

/// An answer to a request whose body nobody wants. One that overtakes the body makes some clients of HTTP/2 tell of a broken stream and not of
/// what was answered. Who sends more than a little, or takes his time, is broken off all the same.
async fn heard_out(reply: Reply, request: Request<Incoming>) -> Reply {
    let mut body = request.into_body();
    if hyper::body::Body::is_end_stream(&body) {
        return reply;
    }
    let mut left = UNWANTED_BYTES;
    let rest = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    let _ = timeout(UNWANTED, rest).await;
    reply
}

/// What a collector of spans is told of a request, by its caller's span if there is one.
fn request_span(request: &Request<Incoming>) -> Span {
    let caller = request.headers().get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let path = request.uri().path();
    info_span!(
        target: "otel", "request", otel.name = path.split('/').nth(1), otel.kind = "server", otel.caller = caller,
        http.method = request.method().as_str(), http.target = path, http.status_code = Empty,
    )
}

/// Paths of which is said that they are switched off; the others are as if they had never been (A18.18).
fn is_disabled(path: &str) -> bool {
    const DISABLED: [&str; 8] =
        ["/run/", "/exec/", "/attach/", "/portForward/", "/containerLogs/", "/runningpods/", "/debug/pprof/", "/logs/"];
    DISABLED.iter().any(|prefix| path.starts_with(prefix))
}

/// `/healthz` for whoever is on this machine (A18.19).
pub(super) async fn healthz_only(request: Request<Incoming>) -> Result<Reply, Infallible> {
    Ok(match Page::of(request.uri().path()) {
        Page::Healthz(_) => reply::text(StatusCode::OK, "ok"),
        _ => reply::no_such_page(),
    })
}

/// Who says nothing of himself, where that is allowed.
fn anonymous_user() -> UserInfo {
    UserInfo { name: "system:anonymous".to_owned(), groups: vec!["system:unauthenticated".to_owned()] }
}

/// Whatever a path means, the names in it are such as Kubernetes has.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(path: &str) {
    let names = match Page::of(path) {
        Page::ContainerLogs { namespace, pod, container } => vec![namespace, pod, container],
        Page::Stream(Kind::PortForward, target) => {
            [vec![target.namespace, target.pod], target.uid.into_iter().collect()].concat()
        }
        Page::Stream(_, target) => {
            [vec![target.namespace, target.pod, target.container], target.uid.into_iter().collect()].concat()
        }
        _ => Vec::new(),
    };
    for name in names {
        assert!(!name.is_empty() && name != ".." && !name.contains(['/', '\0', '%', '\\']), "{name:?}");
    }
}

/// Whether it could name a namespace, pod or container: no empty one, no `..`, nothing that a file system or a terminal takes for more.
fn is_name(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    part.len() <= 253 && part.bytes().all(allowed) && part.bytes().any(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_lead_nowhere() {
        for path in [
            "/containerLogs/ns/../c",
            "/containerLogs/ns/pod/..",
            "/containerLogs/ns/pod/%2e%2e",
            "/containerLogs/ns/pod/a%2Fb",
            "/containerLogs/ns/pod/a%00",
            "/containerLogs/ns/pod/",
            "/containerLogs/ns/pod",
            "/containerLogs/ns//c",
            "/containerLogs/ns/pod/c/d",
            "/containerLogs/ns/pod/%zz",
            "/containerLogs/ns/pod/%ff",
            "/containerLogs/ns/Pod/c",
            "/exec/ns/pod",
            "/exec/ns/pod/uid/c/d",
            "/exec/ns/../c",
            "/attach/ns/pod/..",
            "/run/ns/pod/",
            "/portForward/ns",
            "/portForward/ns/pod/uid/c",
            "/portForward",
            "//pods",
            "/pods/",
            "/",
            "",
            "/etc/passwd",
        ] {
            assert_eq!(Page::of(path), Page::Unknown, "{path}");
        }
        let page = Page::ContainerLogs { namespace: "ns".into(), pod: "a.b".into(), container: "c-1".into() };
        assert_eq!(Page::of("/containerLogs/ns/a%2eb/c-1"), page);
        let target = |uid: Option<&str>, container: &str| Target {
            namespace: "ns".into(),
            pod: "p".into(),
            uid: uid.map(str::to_owned),
            container: container.into(),
        };
        // A18.8, A18.9, A18.10, A18.11
        assert_eq!(Page::of("/exec/ns/p/c"), Page::Stream(Kind::Exec, target(None, "c")));
        assert_eq!(Page::of("/attach/ns/p/u-1/c"), Page::Stream(Kind::Attach, target(Some("u-1"), "c")));
        assert_eq!(Page::of("/run/ns/p/c"), Page::Stream(Kind::Run, target(None, "c")));
        assert_eq!(Page::of("/portForward/ns/p"), Page::Stream(Kind::PortForward, target(None, "")));
        assert_eq!(Page::of("/portForward/ns/p/u-1"), Page::Stream(Kind::PortForward, target(Some("u-1"), "")));
    }

    #[test]
    fn each_page_takes_its_own_permission() {
        // A18.1, A18.2, A18.3, A18.4, A18.5, A18.6, A18.7, A18.8, A18.9, A18.10, A18.11, A18.13, A18.14, A18.15, A18.17
        for (path, subresources) in [
            ("/healthz", &["healthz", "proxy"][..]),
            ("/healthz/syncloop", &["healthz", "proxy"]),
            ("/pods", &["pods", "proxy"]),
            ("/runningpods/", &["pods", "proxy"]),
            ("/metrics", &["metrics"]),
            ("/metrics/cadvisor", &["metrics"]),
            ("/metrics/resource", &["metrics"]),
            ("/metrics/probes", &["metrics"]),
            ("/metrics/slis", &["metrics"]),
            ("/stats/summary", &["stats"]),
            ("/logs/", &["log"]),
            ("/logs/syslog", &["log"]),
            ("/containerLogs/ns/p/c", &["proxy"]),
            ("/exec/ns/p/c", &["proxy"]),
            ("/attach/ns/p/c", &["proxy"]),
            ("/portForward/ns/p", &["proxy"]),
            ("/run/ns/p/c", &["proxy"]),
            ("/configz", &["configz", "proxy"]),
            ("/debug/pprof/heap", &["proxy"]),
            ("/debug/flags/v", &["proxy"]),
            ("/statusz", &["statusz"]),
            ("/flagz", &["configz"]),
            ("/anything", &["proxy"]),
        ] {
            assert_eq!(Page::of(path).subresources(), subresources, "{path}");
        }
    }
}
