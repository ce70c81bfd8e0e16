//! The HTTPS listener: connections, who asks, whether they may, and to whom it goes.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, Request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cluster::Cluster;
use super::nodes::NodeClient;
use super::options::Query;
use super::respond::{self, Answer};
use super::route::Route;
use super::{front_proxy, impersonate, paths, verbs};
use crate::auth::forbidden_message;
use crate::auth::identity::{Attributes, Authenticator, Authorizer, Credentials, Decision, TokenIssuer, UserInfo};
use crate::resources::status::StatusError;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 4096;
/// A handshake may take so long, so that silent clients do not pile up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// And as long to the first request, in whatever version of HTTP.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// After a stop, requests that run may take so long.
const DRAIN: Duration = Duration::from_secs(2);
/// So many bytes are read of a body that nobody wants, and for so long.
const UNWANTED: usize = 256 << 10;
const UNWANTED_TIME: Duration = Duration::from_secs(1);

/// What the server needs of others.
pub struct ServerConfig {
    /// Where it listens.
    pub listener: TcpListener,
    /// With ALPN `h2` and `http/1.1`, and client certificates asked for, not demanded.
    pub tls: Arc<rustls::ServerConfig>,
    /// The objects.
    pub cluster: Cluster,
    /// Who asks.
    pub authenticator: Arc<dyn Authenticator>,
    /// What they may.
    pub authorizer: Arc<dyn Authorizer>,
    /// Makes service-account tokens.
    pub tokens: Arc<dyn TokenIssuer>,
    /// Reaches nodes for logs.
    pub nodes: NodeClient,
    /// Ends it.
    pub stop: CancellationToken,
}

impl std::fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConfig").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// What every request may use.
pub(super) struct Server {
    pub(super) cluster: Cluster,
    pub(super) authenticator: Arc<dyn Authenticator>,
    pub(super) authorizer: Arc<dyn Authorizer>,
    pub(super) tokens: Arc<dyn TokenIssuer>,
    pub(super) nodes: NodeClient,
    pub(super) stop: CancellationToken,
}

/// A request whose sender is known and may do it.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Query,
    pub(super) raw_query: String,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Incoming,
    /// The connection after an answer that ends HTTP.
    pub(super) upgrade: OnUpgrade,
    pub(super) user: UserInfo,
}

/// Serves until stopped.
pub async fn serve(config: ServerConfig) {
    let acceptor = TlsAcceptor::from(config.tls);
    config.cluster.set_authorizer(config.authorizer.clone());
    let server = Arc::new(Server {
        cluster: config.cluster,
        authenticator: config.authenticator,
        authorizer: config.authorizer,
        tokens: config.tokens,
        nodes: config.nodes,
        stop: config.stop.clone(),
    });
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = config.stop.cancelled() => break,
            accepted = config.listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: the next accept would fail at once, too.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let (acceptor, server) = (acceptor.clone(), server.clone());
        tasks.spawn(async move {
            connection(stream, acceptor, server).await;
            drop(slot);
        });
    }
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::info!("some requests were still running; they end with the process");
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, server: Arc<Server>) {
    // Watches write small messages that must not wait for more.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let certificate: Option<Arc<[u8]>> =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|first| first.as_ref().into());
    let stop = server.stop.clone();
    let asked = Arc::new(AtomicBool::new(false));
    let has_asked = asked.clone();
    let service = service_fn(move |request| {
        has_asked.store(true, Ordering::Relaxed);
        let (server, certificate) = (server.clone(), certificate.clone());
        async move { Ok::<_, Infallible>(answer(server, certificate, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30)).max_concurrent_streams(250);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = silence(&asked, FIRST_REQUEST) => return tracing::debug!("a client said nothing"),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Ends when nothing was asked in time; never once something was.
async fn silence(asked: &AtomicBool, limit: Duration) {
    tokio::time::sleep(limit).await;
    if asked.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

async fn answer(server: Arc<Server>, certificate: Option<Arc<[u8]>>, request: Request<Incoming>) -> Answer {
    let audit = request.headers().get("audit-id").cloned();
    let mut answer = match handle(&server, certificate.as_deref(), request).await {
        Ok(answer) => answer,
        Err(error) => respond::failure(&error),
    };
    let fresh = || HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok();
    if let Some(id) = audit.or_else(fresh) {
        answer.headers_mut().insert("audit-id", id);
    }
    answer
}

async fn handle(
    server: &Arc<Server>,
    certificate: Option<&[u8]>,
    mut request: Request<Incoming>,
) -> Result<Answer, StatusError> {
    let upgrade = hyper::upgrade::on(&mut request);
    let user = user_of(server, certificate, request.headers()).await;
    let (mut parts, body) = request.into_parts();
    let user = match user {
        Ok(user) => user,
        Err(error) => {
            read_off(body).await;
            return Err(error);
        }
    };
    front_proxy::forget(&mut parts.headers);
    let raw_query = parts.uri.query().unwrap_or_default().to_owned();
    let asked = Asked {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: Query::parse(parts.uri.query()),
        raw_query,
        headers: parts.headers,
        body,
        upgrade,
        user,
    };
    let route = Route::parse(&asked.path);
    let attributes = attributes(&asked, route.as_ref());
    match server.authorizer.authorize(&attributes).await {
        Decision::Allow(_) => {}
        Decision::Deny(reason) | Decision::NoOpinion(reason) => {
            let error = refused(&attributes, &reason);
            read_off(asked.body).await;
            return Err(error);
        }
    }
    match route {
        Some(route) => verbs::dispatch(server, route, asked).await,
        None => paths::dispatch(server, asked).await,
    }
}

async fn user_of(
    server: &Server,
    certificate: Option<&[u8]>,
    headers: &http::HeaderMap,
) -> Result<UserInfo, StatusError> {
    let user = authenticate(server, certificate, headers).await?;
    impersonate::acting(server.authorizer.as_ref(), user, headers).await
}

/// Reads a body that nobody wants. A refusal that overtakes it makes some clients of HTTP/2 tell of a broken stream and not of the refusal.
/// Who sends more than a few objects, or takes his time, is broken off all the same.
async fn read_off(mut body: Incoming) {
    let mut left = UNWANTED;
    let rest = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len()));
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(UNWANTED_TIME, rest).await;
}

/// The 403 of a request that nothing allows.
pub(super) fn refused(asked: &Attributes, reason: &str) -> StatusError {
    let mut error = StatusError::forbidden_named(&asked.group, &asked.resource, &asked.name, "");
    error.message = forbidden_message(asked, reason);
    error
}

async fn authenticate(
    server: &Server,
    certificate: Option<&[u8]>,
    headers: &http::HeaderMap,
) -> Result<UserInfo, StatusError> {
    let bearer = match headers.get(AUTHORIZATION) {
        None => None,
        Some(value) => {
            let value = value.to_str().map_err(|_| StatusError::unauthorized())?;
            let (scheme, token) = value.trim().split_once(' ').ok_or_else(StatusError::unauthorized)?;
            if !scheme.eq_ignore_ascii_case("bearer") {
                return Err(StatusError::unauthorized());
            }
            Some(token.trim())
        }
    };
    let claimed = front_proxy::claimed(headers);
    let credentials = Credentials { client_certificate: certificate, bearer_token: bearer, claimed: claimed.as_ref() };
    match server.authenticator.authenticate(credentials).await {
        Ok(user) => Ok(user.unwrap_or_else(UserInfo::anonymous)),
        Err(error) => {
            tracing::info!(%error, "credentials refused");
            Err(StatusError::unauthorized())
        }
    }
}

fn attributes(asked: &Asked, route: Option<&Route>) -> Attributes {
    let Some(route) = route else {
        return Attributes {
            user: asked.user.clone(),
            verb: asked.method.as_str().to_lowercase(),
            path: asked.path.clone(),
            ..Attributes::default()
        };
    };
    let named = !route.name.is_empty();
    let field_selector = asked.query.get("fieldSelector").to_owned();
    let verb = match asked.method.as_str() {
        "GET" | "HEAD" if named => "get",
        "GET" | "HEAD" if asked.query.flag("watch") => "watch",
        "GET" | "HEAD" => "list",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if named => "delete",
        "DELETE" => "deletecollection",
        _ => "",
    };
    // A list or watch of one name is authorized as that name (C5.3).
    let selected = || {
        let terms = field_selector.split(',').map(str::trim);
        terms.filter_map(|term| term.strip_prefix("metadata.name=")).next().map(|name| name.trim_start_matches('='))
    };
    let name = match selected() {
        Some(name) if !named && matches!(verb, "list" | "watch") => name.to_owned(),
        _ => route.name.clone(),
    };
    Attributes {
        user: asked.user.clone(),
        verb: verb.to_owned(),
        group: route.group.clone(),
        version: route.version.clone(),
        resource: route.resource.clone(),
        subresource: route.subresource.clone(),
        namespace: route.namespace.clone(),
        name,
        path: asked.path.clone(),
        label_selector: asked.query.get("labelSelector").to_owned(),
        field_selector,
    }
}
