//! From a request to an answer: who may have it, and what there is.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use stoker_model::handle::{PodDirectory, UserInfo};

use super::Handles;
use super::access::{Access, Refusal};
use super::escape::unescape;
use super::logs::{LogRequest, choose_container};
use super::reply::{self, Reply};
use super::stream::{Kind, Streaming, Target};
use crate::clock::Clock;
use crate::runtime::{Runtime, logs};

/// What is served, and from what.
pub(super) struct Routes {
    pods: Arc<dyn PodDirectory>,
    runtime: Runtime,
    access: Access,
    streaming: Streaming,
    debugging_handlers: bool,
}

/// What a path means.
#[derive(Debug, PartialEq, Eq)]
enum Page {
    Healthz,
    Pods,
    ContainerLogs { namespace: String, pod: String, container: String },
    Stream(Kind, Target),
    Unknown,
}

impl Page {
    /// Names are compared, never used as paths, so an odd one only is not found. Kubernetes' names need no escapes, but a client may use them.
    fn of(path: &str) -> Self {
        let Some(path) = unescape(path) else { return Self::Unknown };
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match parts[..] {
            ["healthz"] | ["healthz", "ping" | "log"] => Self::Healthz,
            ["pods"] => Self::Pods,
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
            Self::Pods => &["pods", "proxy"],
            Self::ContainerLogs { .. } | Self::Stream(..) | Self::Unknown => &["proxy"],
        }
    }
}

impl Routes {
    pub(super) fn new(handles: Handles, access: Access, streaming: Streaming, debugging_handlers: bool) -> Self {
        let Handles { pods, runtime, .. } = handles;
        Self { pods, runtime, access, streaming, debugging_handlers }
    }

    /// Answers one request of `user`.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        user: Option<&UserInfo>,
    ) -> Result<Reply, Infallible> {
        let Some(user) = user else {
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
            Page::ContainerLogs { .. } | Page::Stream(..) if !self.debugging_handlers => {
                reply::text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.")
            }
            Page::Stream(kind, _) if !kind.methods().contains(request.method()) => {
                reply::method_not_allowed(kind.methods())
            }
            Page::Stream(kind, target) => self.streaming.answer(kind, &target, request).await,
            _ if request.method() != Method::GET => reply::method_not_allowed(&[Method::GET]),
            Page::Healthz => reply::text(StatusCode::OK, "ok"),
            Page::Pods => self.pods(),
            Page::ContainerLogs { namespace, pod, container } => {
                self.container_logs(&namespace, &pod, &container, request.uri().query().unwrap_or_default()).await
            }
        })
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
