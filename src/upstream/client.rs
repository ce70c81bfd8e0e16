//! Requests to the API server, and what their answers mean to the caller.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either};
use hyper::body::Incoming;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::client::{Body, ConfigExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stoker_model::handle::ApiError;
use stoker_model::metrics;

use tower::util::BoxCloneSyncService;
use tower::{BoxError, Layer, ServiceExt};

use super::certificates::Identity;
use super::connect::{self, Reading};
use super::pace::Pace;
use crate::clock::Clock;
use crate::http2;

/// How long a request other than a watch may take; longer than any webhook may delay it.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// An answer that is larger is refused: no object is, since etcd takes 1.5 MiB, and a page of a list holds 500.
const LARGEST_ERROR: usize = 4096;
/// By this audit logs and `managedFields` tell who asked; kubelet's name, as for everything that looks for a node agent.
const USER_AGENT: &str = concat!("kubelet/v1.36.2 (linux) stoker/", env!("CARGO_PKG_VERSION"));

const JSON: &str = "application/json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
/// Answers with no more than an object's metadata; from servers that do not know this, the whole object.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// The body of an answer.
pub(super) type Answer = Either<http2::Answer, Incoming>;

/// Why no connection can even be tried.
#[derive(Debug, thiserror::Error)]
#[error("the kubeconfig's certificates, key or token cannot be used: {0}")]
pub struct ConnectError(#[from] kube::Error);

/// A connection to the API server. Cheap to clone; all clones share one HTTP/2 connection ([`Self::gathering`] makes another).
#[derive(Clone)]
pub struct ApiServer {
    service: BoxCloneSyncService<Request<Body>, Response<Answer>, BoxError>,
    /// For metrics.
    host: Arc<str>,
    /// Whoever asks waits its turn; `None`: never.
    pace: Option<Arc<Mutex<Pace>>>,
    /// What another connection to the same server needs.
    origin: Arc<(kube::Config, Option<Identity>)>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiServer")
    }
}

impl ApiServer {
    /// Prepares the connection; it is opened by the first request, and again by the first after it broke.
    ///
    /// # Errors
    /// When credentials cannot be read.
    pub fn new(config: &kube::Config) -> Result<Self, ConnectError> {
        Self::build(config, None)
    }

    /// The same, showing the certificate that `identity` has at the moment of each connection, in place of the configuration's own.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_identity(config: &kube::Config, identity: Identity) -> Result<Self, ConnectError> {
        let mut config = config.clone();
        forget_certificate(&mut config);
        Self::build(&config, Some(identity))
    }

    /// The same server, asked without saying who asks.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn anonymous(config: &kube::Config) -> Result<Self, ConnectError> {
        let mut config = config.clone();
        config.auth_info = kube::config::AuthInfo::default();
        Self::build(&config, None)
    }

    fn build(config: &kube::Config, identity: Option<Identity>) -> Result<Self, ConnectError> {
        Self::connect(Arc::new((config.clone(), identity)), Reading::AtOnce)
    }

    /// The same server by a connection of its own, for watches with many events: those that come soon after each other are read
    /// together, and a long list holds up no other request.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn gathering(&self) -> Result<Self, ConnectError> {
        Self::connect(Arc::clone(&self.origin), Reading::Together)
    }

    fn connect(origin: Arc<(kube::Config, Option<Identity>)>, reading: Reading) -> Result<Self, ConnectError> {
        let (config, identity) = &*origin;
        let transport = connect::transport(config, identity.clone(), reading)?;
        let service = config.extra_headers_layer()?.layer(transport);
        let base = config.base_uri_layer();
        let service = match config.auth_layer()? {
            Some(auth) => BoxCloneSyncService::new(base.layer(auth.layer(service))),
            None => BoxCloneSyncService::new(base.layer(service)),
        };
        let host = config.cluster_url.authority().map(http::uri::Authority::as_str).unwrap_or_default().into();
        Ok(Self { service, host, pace: None, origin })
    }

    /// The same connection for requests that wait their turn: so many a second, and so many at once (kubelet's `kubeAPIQPS` and
    /// `kubeAPIBurst`, A16.11); 0 a second: no limit. All clones of the result share the turns. Watches wait for none.
    #[must_use]
    pub fn paced(mut self, (per_second, burst): (u32, u32)) -> Self {
        self.pace = Some(Arc::new(Mutex::new(Pace::new(per_second, burst))));
        self
    }

    /// Waits for the turn of one request.
    async fn turn(&self) {
        let Some(pace) = &self.pace else { return };
        let wait = pace.lock().unwrap_or_else(PoisonError::into_inner).take(Clock.now().monotonic);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether `/healthz` says so.
    pub async fn is_healthy(&self) -> bool {
        let Ok(request) = request(Method::GET, "/healthz", None::<&()>, "", JSON) else { return false };
        let answer = tokio::time::timeout(DEFAULT_TIMEOUT, self.send(request)).await;
        matches!(answer, Ok(Ok(answer)) if answer.status().is_success())
    }

    /// What time it is there, whoever asks.
    pub async fn clock(&self) -> Option<Timestamp> {
        let request = request(Method::GET, "/healthz", None::<&()>, "", JSON).ok()?;
        let answer = tokio::time::timeout(DEFAULT_TIMEOUT, self.send(request)).await.ok()?.ok()?;
        let date = answer.headers().get(http::header::DATE)?.to_str().ok()?;
        Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp())
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.exchange(Method::GET, path, None::<&()>, "").await
    }

    pub(super) async fn create<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.exchange(Method::POST, path, Some(body), JSON).await
    }

    pub(super) async fn update<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.exchange(Method::PUT, path, Some(body), JSON).await
    }

    /// A strategic merge patch.
    pub(super) async fn patch<T: DeserializeOwned>(&self, path: &str, body: impl Serialize) -> Result<T, ApiError> {
        self.exchange(Method::PATCH, path, Some(body), STRATEGIC_PATCH).await
    }

    /// As [`Self::create`], where nobody reads what was made.
    pub(super) async fn create_unread(&self, path: &str, body: &impl Serialize) -> Result<(), ApiError> {
        self.answer(Method::POST, path, Some(body), JSON, METADATA).await.map(drop)
    }

    /// As [`Self::patch`], where nobody reads what became of it.
    pub(super) async fn patch_unread(&self, path: &str, body: impl Serialize) -> Result<(), ApiError> {
        self.answer(Method::PATCH, path, Some(body), STRATEGIC_PATCH, METADATA).await.map(drop)
    }

    pub(super) async fn delete(&self, path: &str, options: &impl Serialize) -> Result<(), ApiError> {
        self.answer(Method::DELETE, path, Some(options), JSON, JSON).await.map(drop)
    }

    /// Opens a watch or anything else that is read piece by piece; only the answer's head has a time limit.
    pub(super) async fn stream(&self, path: &str) -> Result<Response<Answer>, ApiError> {
        let request = request(Method::GET, path, None::<&()>, "", JSON)?;
        let answer = tokio::time::timeout(DEFAULT_TIMEOUT, self.send(request))
            .await
            .map_err(|_| unavailable(format!("GET {path}: no answer within {DEFAULT_TIMEOUT:?}")))??;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let retry_after = retry_after(&answer);
        let body = answer.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        Err(failure("GET", path, status, retry_after, &body))
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<impl Serialize>,
        content_type: &str,
    ) -> Result<T, ApiError> {
        let name = method.clone();
        let answer = self.answer(method, path, body, content_type, JSON).await?;
        serde_json::from_slice(&answer)
            .map_err(|e| ApiError::Rejected(format!("{name} {path}: the answer cannot be read: {e}")))
    }

    /// What a request that succeeds is answered.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Option<impl Serialize>,
        content_type: &str,
        accept: &'static str,
    ) -> Result<Bytes, ApiError> {
        let name = method.clone();
        let request = request(method, path, body.as_ref(), content_type, accept)?;
        // A tree of JSON takes ten times as much as its text, and the answer may take its time.
        drop(body);
        self.turn().await;
        let whole = async {
            let answer = self.send(request).await?;
            let status = answer.status();
            let retry_after = retry_after(&answer);
            let body = answer
                .into_body()
                .collect()
                .await
                .map_err(|e| unavailable(format!("{name} {path}: the answer broke off: {e}")))?
                .to_bytes();
            if !status.is_success() {
                return Err(failure(name.as_str(), path, status, retry_after, &body));
            }
            Ok(body)
        };
        tokio::time::timeout(DEFAULT_TIMEOUT, whole)
            .await
            .map_err(|_| unavailable(format!("{name} {path}: no answer within {DEFAULT_TIMEOUT:?}")))?
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Answer>, ApiError> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answer = self.service.clone().oneshot(request).await;
        let code = answer.as_ref().map_or_else(|_| "<error>".to_owned(), |answer| answer.status().as_str().to_owned());
        metrics::REST_CLIENT_REQUESTS.inc(&[&code, &self.host, method.as_str()]);
        answer.map_err(|e| unavailable(format!("{method} {path}: {}", chain(e.as_ref()))))
    }
}

fn forget_certificate(config: &mut kube::Config) {
    let auth = &mut config.auth_info;
    (auth.client_certificate, auth.client_certificate_data) = (None, None);
    (auth.client_key, auth.client_key_data) = (None, None);
}

fn request(
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
    content_type: &str,
    accept: &'static str,
) -> Result<Request<Body>, ApiError> {
    let body = match body {
        Some(body) => serde_json::to_vec(body).map_err(|e| ApiError::Rejected(format!("{method} {path}: {e}")))?,
        None => Vec::new(),
    };
    let mut request = Request::builder().method(method.clone()).uri(path).header("accept", accept);
    request = request.header("user-agent", USER_AGENT);
    if !body.is_empty() {
        request = request.header("content-type", content_type);
    }
    request.body(Body::from(body)).map_err(|e| ApiError::Rejected(format!("{method} {path}: {e}")))
}

fn retry_after<B>(answer: &Response<B>) -> Option<u32> {
    answer.headers().get("retry-after")?.to_str().ok()?.parse().ok()
}

fn unavailable(message: String) -> ApiError {
    ApiError::Unavailable { message, retry_after_seconds: None }
}

/// An error with its causes, since hyper's own text ends before it becomes interesting.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// Sorts an answer that is no success by what the caller may do about it.
fn failure(method: &str, path: &str, status: StatusCode, retry_after_seconds: Option<u32>, body: &[u8]) -> ApiError {
    let told = serde_json::from_slice::<Status>(body).ok();
    let message = match told.as_ref().and_then(|s| s.message.clone()) {
        Some(message) => message,
        None => {
            let text = String::from_utf8_lossy(&body[..body.len().min(LARGEST_ERROR)]);
            format!("{method} {path}: {status} {}", text.trim())
        }
    };
    match status {
        StatusCode::NOT_FOUND => ApiError::NotFound(message),
        StatusCode::CONFLICT => ApiError::Conflict(message),
        StatusCode::UNPROCESSABLE_ENTITY if told.is_some_and(|status| is_another(&status)) => {
            ApiError::Conflict(message)
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            ApiError::Unavailable { message, retry_after_seconds }
        }
        // Credentials and rules may be put right while we run, so these are worth another try, later.
        StatusCode::UNAUTHORIZED => ApiError::Unavailable { message, retry_after_seconds },
        _ if status.is_server_error() => ApiError::Unavailable { message, retry_after_seconds },
        _ => ApiError::Rejected(message),
    }
}

/// Whether the object of that name is another one than a patch is for (A2.10): its UID cannot be changed.
fn is_another(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    causes.into_iter().any(|cause| cause.field.as_deref() == Some("metadata.uid"))
}

/// Escapes a query value.
pub(super) fn query_value(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_sorted_by_what_to_do() {
        let sort = |code: u16| failure("GET", "/x", StatusCode::from_u16(code).expect("a code"), Some(3), b"no");
        assert!(matches!(sort(404), ApiError::NotFound(_)));
        assert!(matches!(sort(409), ApiError::Conflict(_)));
        assert!(matches!(sort(422), ApiError::Rejected(_)));
        // A2.10
        let about = |field: &str| serde_json::json!({"details": {"causes": [{"field": field}]}}).to_string();
        let sort_422 = |field| failure("PATCH", "/x", StatusCode::UNPROCESSABLE_ENTITY, None, about(field).as_bytes());
        assert!(matches!(sort_422("metadata.uid"), ApiError::Conflict(_)));
        assert!(matches!(sort_422("status.qosClass"), ApiError::Rejected(_)));
        assert!(matches!(sort(403), ApiError::Rejected(_)));
        for code in [429, 500, 503, 504, 401] {
            assert!(matches!(sort(code), ApiError::Unavailable { retry_after_seconds: Some(3), .. }), "{code}");
        }
    }

    #[test]
    fn the_servers_own_words_are_kept() {
        let body = br#"{"kind":"Status","message":"pods \"a\" not found","code":404}"#;
        let error = failure("GET", "/x", StatusCode::NOT_FOUND, None, body);
        assert_eq!(error.to_string(), "pods \"a\" not found");
    }

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(query_value("spec.nodeName=a b"), "spec.nodeName%3Da%20b");
        assert_eq!(query_value("!x/y"), "%21x%2Fy");
    }

    /// Answers each request with that text; the heads that came.
    async fn heads(text: &'static str, count: usize, ask: impl AsyncFnOnce(ApiServer)) -> Vec<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("a URL");
        let api = ApiServer::new(&kube::Config::new(url)).expect("a connection");
        let serve = async {
            let mut heads = Vec::new();
            while heads.len() < count {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut came = Vec::new();
                // The bodies of these requests end with their first brace.
                while !came.ends_with(b"}") {
                    assert_ne!(stream.read_buf(&mut came).await.expect("a request"), 0);
                }
                let answer =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                stream.write_all(answer.as_bytes()).await.expect("they listen");
                heads.push(String::from_utf8(came).expect("text").to_ascii_lowercase());
            }
            heads
        };
        tokio::join!(serve, ask(api)).0
    }

    #[tokio::test]
    async fn no_more_than_metadata_is_asked_for_where_nobody_reads_the_answer() {
        let body = serde_json::json!({"a": 1});
        let asked = heads("no JSON at all", 2, async |api| {
            api.create_unread("/made", &body).await.expect("made");
            api.patch_unread("/patched", &body).await.expect("patched");
        });
        let unread = asked.await;
        let accept = format!("accept: {}\r\n", METADATA.to_ascii_lowercase());
        assert!(unread.iter().all(|head| head.contains(&accept)), "{unread:?}");
        assert!(
            unread[1].starts_with("patch /patched ")
                && unread[1].contains("content-type: application/strategic-merge-patch+json")
        );
        let asked = heads("{}", 1, async |api| {
            api.patch::<serde_json::Value>("/x", &body).await.expect("an answer that is read");
        });
        assert!(asked.await[0].contains("accept: application/json\r\n"));
    }
}
