//! The small HTTP servers of the proxy: health (10256), metrics (10249), and one for each Service with a health-check port.
//!
//! They answer strangers without TLS, as kube-proxy's do: they read no body, wait for nobody, and serve few at a time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use stoker_model::service::NamespacedName;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::frontend::Family;
use super::health::{answer, check_answer, is_live};
use super::metrics::Metrics;
use super::owner::{Health, HealthChecks};
use crate::clock::{Clock, Now};

type Reply = Response<Full<Bytes>>;

/// Connections of one server at a time.
const CONNECTIONS: usize = 128;
/// What upstream writes first.
const NOT_FOR_MACHINES: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";
/// For the head of a request, and so also between two.
const IDLE: Duration = Duration::from_secs(30);
/// From one attempt to open a port to the next; upstream's value.
const RETRY: Duration = Duration::from_secs(5);

/// What the servers tell of.
#[derive(Clone, Debug)]
pub struct ProxyState {
    /// How the data path is doing.
    pub health: watch::Receiver<Health>,
    /// Whether this node should get traffic: it is known, not being deleted and not marked by the cluster autoscaler.
    pub eligible: watch::Receiver<bool>,
    /// Families that are served.
    pub families: Vec<Family>,
    /// Of this a queued change may be twice as old.
    pub sync_period: Duration,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// `nftables` or `ipvs`.
    pub mode: &'static str,
    /// The configuration as `/configz` shows it.
    pub configz: Arc<str>,
    /// When the proxy started.
    pub started: Now,
    /// Tells the time.
    pub clock: Clock,
}

impl ProxyState {
    fn is_live(&self) -> bool {
        is_live(&self.health.borrow(), self.sync_period, self.clock.now())
    }

    /// `/healthz` and `/livez` of port 10256.
    fn tell_health(&self, path: &str) -> Reply {
        let live = match path {
            "/healthz" => false,
            "/livez" => true,
            _ => return no_such_page(),
        };
        let eligible = (!live).then(|| *self.eligible.borrow());
        let health = *self.health.borrow();
        let (code, body) = answer(&health, &self.families, self.sync_period, eligible, self.clock.now());
        self.metrics.answered(live, code == 200);
        reply(code, "application/json", body.to_string())
    }

    /// Port 10249.
    fn tell_metrics(&self, path: &str) -> Reply {
        match path {
            "/metrics" => reply(200, "text/plain; version=0.0.4; charset=utf-8", self.metrics.text()),
            // Of health checks by name, of which there are none.
            "/metrics/slis" => reply(200, "text/plain; version=0.0.4; charset=utf-8", String::new()),
            "/healthz" => reply(200, "text/plain; charset=utf-8", "ok".to_owned()),
            "/proxyMode" => reply(200, "text/plain; charset=utf-8", self.mode.to_owned()),
            "/configz" => reply(200, "application/json", self.configz.to_string()),
            "/statusz" => reply(200, "text/plain; charset=utf-8", self.statusz()),
            "/flagz" => reply(200, "text/plain; charset=utf-8", self.flagz()),
            _ => no_such_page(),
        }
    }

    /// In upstream's words.
    fn statusz(&self) -> String {
        let now = self.clock.now();
        let up = now.monotonic.saturating_sub(self.started.monotonic).as_secs();
        let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
        format!(
            "kube-proxy statusz\n{NOT_FOR_MACHINES}\n\nStarted: {}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\n\
             Binary version: stoker {}\n\nPaths: /configz /healthz /livez /metrics /metrics/slis /proxyMode /flagz\n",
            self.started.wall,
            env!("CARGO_PKG_VERSION"),
        )
    }

    /// The configuration that follows from flags and file.
    fn flagz(&self) -> String {
        let mut text = format!("kube-proxy flagz\n{NOT_FOR_MACHINES}\n\n");
        let all: serde_json::Value = serde_json::from_str(&self.configz).unwrap_or_default();
        let kinds = all.as_object().into_iter().flat_map(|kinds| kinds.values());
        for (name, value) in kinds.filter_map(serde_json::Value::as_object).flatten() {
            text.push_str(&format!("{name}={value}\n"));
        }
        text
    }
}

fn reply(code: u16, kind: &'static str, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
    reply.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    reply
}

fn no_such_page() -> Reply {
    reply(404, "text/plain; charset=utf-8", "404 page not found\n".to_owned())
}

/// Why a server ended.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for the proxy's {what}: {source}; stop what listens there, or choose another address"
)]
pub struct BindError {
    what: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// Serves health. A port that is taken is tried again, unless that is to be fatal.
///
/// # Errors
/// Only with `hard_fail`.
pub async fn serve_health(address: SocketAddr, hard_fail: bool, state: ProxyState) -> Result<Infallible, BindError> {
    let listener = bind_in_time("health", address, hard_fail).await?;
    serve(listener, move |path| state.tell_health(path)).await
}

/// Serves metrics, the mode and the configuration.
///
/// # Errors
/// Only with `hard_fail`.
pub async fn serve_metrics(address: SocketAddr, hard_fail: bool, state: ProxyState) -> Result<Infallible, BindError> {
    let listener = bind_in_time("metrics", address, hard_fail).await?;
    serve(listener, move |path| state.tell_metrics(path)).await
}

async fn bind_in_time(what: &'static str, address: SocketAddr, hard_fail: bool) -> Result<TcpListener, BindError> {
    let mut told = false;
    loop {
        // Upstream's 0.0.0.0 is every address of both families.
        let all = address.ip().is_unspecified().then(|| bind_all(address.port()));
        match all.unwrap_or_else(|| bind(address)) {
            Ok(listener) => {
                info!(%address, "serving the proxy's {what}");
                return Ok(listener);
            }
            Err(source) if hard_fail => return Err(BindError { what, address, source }),
            Err(error) => {
                if !told {
                    warn!(%error, %address, "cannot serve the proxy's {what}, trying again each 5 s: does kube-proxy run here?");
                }
                told = true;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Both families where there are two.
fn bind_all(port: u16) -> io::Result<TcpListener> {
    let v4 = SocketAddr::new([0, 0, 0, 0].into(), port);
    match bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => bind(v4),
        result => result,
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

/// Answers every request by its path, for ever.
async fn serve(
    listener: TcpListener,
    tell: impl Fn(&str) -> Reply + Send + Sync + 'static,
) -> Result<Infallible, BindError> {
    let tell = Arc::new(tell);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let (client, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let tell = tell.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request: Request<Incoming>| {
                let told = tell(request.uri().path());
                async move { Ok::<_, Infallible>(told) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(16 << 10);
            if let Err(error) = builder.serve_connection(TokioIo::new(client), service).await {
                debug!(%error, "a connection to the proxy ended");
            }
        });
    }
}

/// Keeps a server at each health-check port (B1.14): on these addresses, or on all where there are none.
pub async fn serve_health_checks(mut checks: watch::Receiver<HealthChecks>, addresses: Vec<IpAddr>, state: ProxyState) {
    let mut open: HashMap<NamespacedName, (u16, DropGuard)> = HashMap::new();
    loop {
        let wanted = Arc::clone(&checks.borrow_and_update());
        open.retain(|name, (port, _)| wanted.get(name).is_some_and(|check| check.port == *port));
        let mut failed = false;
        for (name, check) in wanted.iter() {
            if open.contains_key(name) {
                continue;
            }
            match open_check(name, check.port, &addresses, &checks, &state) {
                Ok(guard) => _ = open.insert(name.clone(), (check.port, guard)),
                Err(error) => {
                    failed = true;
                    let (namespace, name) = (&name.namespace, &name.name);
                    warn!(%error, %namespace, service = %name, port = check.port, "cannot serve a health-check port");
                }
            }
        }
        let again = async {
            match failed {
                true => tokio::time::sleep(state.sync_period).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = checks.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            () = again => {}
        }
    }
}

fn open_check(
    name: &NamespacedName,
    port: u16,
    addresses: &[IpAddr],
    checks: &watch::Receiver<HealthChecks>,
    state: &ProxyState,
) -> io::Result<DropGuard> {
    let listeners = match addresses {
        [] => vec![bind_all(port)?],
        some => some.iter().map(|ip| bind(SocketAddr::new(*ip, port))).collect::<io::Result<_>>()?,
    };
    let stop = CancellationToken::new();
    for listener in listeners {
        let (name, checks, state, stop) = (name.clone(), checks.clone(), state.clone(), stop.clone());
        tokio::spawn(async move {
            let tell = move |_: &str| {
                let check = checks.borrow().get(&name).copied();
                let (code, count, body) = check_answer(&name, check.as_ref(), state.is_live());
                let mut told = reply(code, "application/json", body);
                told.headers_mut().insert("x-load-balancing-endpoint-weight", HeaderValue::from(count));
                told
            };
            tokio::select! {
                () = stop.cancelled() => {}
                _ = serve(listener, tell) => {}
            }
        });
    }
    Ok(stop.drop_guard())
}
