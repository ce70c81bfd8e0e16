//! From a request to an answer: who may have it, and what there is.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use serde_json::{Value, json};
use stoker_model::handle::{PodDirectory, UserInfo};

use super::access::{Access, Refusal};
use super::escape::unescape;
use super::files;
use super::logs::{LogRequest, choose_container};
use super::query::Query;
use super::reply::{self, Reply};
use super::running;
use super::stats::{Places, Stats};
use super::stream::{Kind, Streaming, Target};
use super::tokens::Tokens;
use super::{Handles, ServerConfig};
use crate::clock::{Clock, Now};
use crate::runtime::{Runtime, logs};

/// What is served, and from what.
pub(super) struct Routes {
    pods: Arc<dyn PodDirectory>,
    runtime: Runtime,
    access: Access,
    tokens: Option<Tokens>,
    stats: Stats,
    streaming: Streaming,
    config: ServerConfig,
    started: Now,
}

/// What a path means.
#[derive(Debug, PartialEq, Eq)]
enum Page {
    Healthz,
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
}

impl Page {
    /// Names are compared, never used as paths, so an odd one only is not found. Kubernetes' names need no escapes, but a client may use them.
    fn of(path: &str) -> Self {
        let Some(path) = unescape(path) else { return Self::Unknown };
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match parts[..] {
            ["healthz"] | ["healthz", "ping" | "log"] => Self::Healthz,
            ["pods"] => Self::Pods,
            ["runningpods"] | ["runningpods", ""] => Self::RunningPods,
            ["metrics"] => Self::Metrics(Metrics::Own),
            ["metrics", "resource"] => Self::Metrics(Metrics::Resource),
            ["metrics", "cadvisor"] => Self::Metrics(Metrics::Cadvisor),
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

    /// Subresources of `nodes` that allow it, in the order of trying (A18).
    fn subresources(&self) -> &'static [&'static str] {
        match self {
            Self::Healthz => &["healthz", "proxy"],
            Self::Pods | Self::RunningPods => &["pods", "proxy"],
            Self::Metrics(_) => &["metrics"],
            Self::Summary => &["stats"],
            Self::Configz => &["configz", "proxy"],
            Self::Flagz => &["configz"],
            Self::Statusz => &["statusz"],
            Self::Logs(_) => &["log"],
            Self::ContainerLogs { .. } | Self::Stream(..) | Self::Unknown => &["proxy"],
        }
    }
}

impl Routes {
    pub(super) fn new(handles: Handles, access: Access, streaming: Streaming, config: ServerConfig) -> Self {
        let Handles { pods, runtime, usage, tokens, .. } = handles;
        let places = Places { root: config.root_dir.clone(), logs: config.pod_logs_dir.clone() };
        Self {
            stats: Stats::new(config.node.clone(), pods.clone(), usage, runtime.clone(), places),
            tokens: tokens.map(|reviewer| Tokens::new(reviewer, config.token_ttl)),
            pods,
            runtime,
            access,
            streaming,
            config,
            started: Clock.now(),
        }
    }

    /// Answers one request of `user`.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        user: Option<&UserInfo>,
    ) -> Result<Reply, Infallible> {
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
        let Some(user) = user.or(by_token.as_ref()) else {
            return Ok(reply::text(StatusCode::UNAUTHORIZED, "Unauthorized"));
        };
        let page = Page::of(request.uri().path());
        match self.access.check(user, request.method(), page.subresources()).await {
            Ok(()) => {}
            Err(Refusal::Forbidden(text)) => return Ok(reply::text(StatusCode::FORBIDDEN, text)),
            Err(Refusal::Unknown(text)) => return Ok(reply::text(StatusCode::INTERNAL_SERVER_ERROR, text)),
        }
        Ok(match page {
            Page::Unknown => reply::no_such_page(),
            Page::ContainerLogs { .. } | Page::Stream(..) | Page::Logs(_) if !self.config.debugging_handlers => {
                reply::text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.")
            }
            Page::Stream(kind, _) if !kind.methods().contains(request.method()) => {
                reply::method_not_allowed(kind.methods())
            }
            Page::Stream(kind, target) => self.streaming.answer(kind, &target, request).await,
            // Old clients ask with a body, which says nothing that counts.
            Page::Summary if matches!(*request.method(), Method::GET | Method::POST) => {
                let query = Query::parse(request.uri().query().unwrap_or_default()).unwrap_or_default();
                let is_true = |value: &str| matches!(value, "true" | "1");
                self.document(&self.stats.summary(query.first("only_cpu_and_memory").is_some_and(is_true)).await)
            }
            _ if request.method() != Method::GET => reply::method_not_allowed(&[Method::GET]),
            Page::Healthz => reply::text(StatusCode::OK, "ok"),
            Page::Pods => self.pods(),
            Page::RunningPods => match running::pods(&self.runtime).await {
                Ok(pods) => self.document(&pods),
                Err(error) => reply::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            Page::Metrics(Metrics::Own) => reply::metrics(self.stats.own_metrics()),
            Page::Metrics(Metrics::Resource) => reply::metrics(self.stats.resource_metrics().await),
            Page::Metrics(Metrics::Cadvisor) => reply::metrics(self.stats.cadvisor_metrics().await),
            Page::Configz => self.document(&json!({ "kubeletconfig": self.config.kubelet_configuration })),
            Page::Flagz => reply::text(StatusCode::OK, self.flagz()),
            Page::Statusz => reply::text(StatusCode::OK, self.statusz()),
            Page::Logs(path) => match &self.config.system_logs_dir {
                Some(directory) => files::answer(directory, &path).await,
                None => reply::text(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled."),
            },
            Page::Summary => reply::method_not_allowed(&[Method::GET, Method::POST]),
            Page::ContainerLogs { namespace, pod, container } => {
                self.container_logs(&namespace, &pod, &container, request.uri().query().unwrap_or_default()).await
            }
        })
    }

    fn document(&self, value: &Value) -> Reply {
        reply::json(value.to_string().into_bytes())
    }

    /// What the agent is, for people (A18.15).
    fn statusz(&self) -> String {
        let up = Clock.now().monotonic.saturating_sub(self.started.monotonic).as_secs();
        let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
        let (version, started) = (env!("CARGO_PKG_VERSION"), self.started.wall);
        format!(
            "kubelet statusz\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
             compatibility guarantees and is for debugging purposes only.\n\nStarted: {started}\nUp: \
             {hours} hr {minutes:02} min {seconds:02} sec\nBinary version: stoker {version}\n\nPaths: /configz /flagz \
             /healthz /metrics /pods /stats/summary\n"
        )
    }

    /// What was set on the command line or in the file: the configuration that follows from both (A18.15).
    fn flagz(&self) -> String {
        let mut text = "kubelet flagz\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
                        compatibility guarantees and is for debugging purposes only.\n\n"
            .to_owned();
        for (name, value) in self.config.kubelet_configuration.as_object().into_iter().flatten() {
            text.push_str(&format!("{name}={value}\n"));
        }
        text
    }

    /// Desired pods as a PodList (A18.2).
    fn pods(&self) -> Reply {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct PodList<'a> {
            kind: &'static str,
            api_version: &'static str,
            metadata: Metadata,
            items: &'a [Arc<Pod>],
        }
        #[derive(Serialize)]
        struct Metadata {}
        let pods = self.pods.pods();
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
            Ok(log) => reply::stream(log),
            Err(error) => reply::text(StatusCode::BAD_REQUEST, error.to_string()),
        }
    }
}

/// `/healthz` for whoever is on this machine (A18.19).
pub(super) async fn healthz_only(request: Request<Incoming>) -> Result<Reply, Infallible> {
    Ok(match Page::of(request.uri().path()) {
        Page::Healthz => reply::text(StatusCode::OK, "ok"),
        _ => reply::no_such_page(),
    })
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
}
