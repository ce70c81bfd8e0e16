//! The small HTTP servers of the proxy: health (10256), metrics (10249), and one for each Service with a health-check port.
//!
//! They answer strangers without TLS, as kube-proxy's do: they read no body but a short number, wait for nobody, and serve few at a
//! time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use stoker_model::service::NamespacedName;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::config::Cidr;
use super::frontend::Family;
use super::health::{answer, check_answer, is_live};
use super::ipvs::own_addresses;
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
/// A level of logging is no longer, and comes at once.
const LONGEST_NUMBER: usize = 20;
const BODY: Duration = Duration::from_secs(5);
/// From one attempt to open a port to the next; upstream's value.
const RETRY: Duration = Duration::from_secs(5);

/// Sets klog's level of logging, or says why not.
pub type SetVerbosity = fn(i64) -> Result<(), String>;

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
    /// Where `enableProfiling` is set: changes how much is logged.
    pub debugging: Option<SetVerbosity>,
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
            "/metrics/slis" => reply(200, "text/plain; version=0.0.4; charset=utf-8", self.metrics.health_checks()),
            "/healthz" => {
                self.metrics.pinged();
                reply(200, "text/plain; charset=utf-8", "ok".to_owned())
            }
            "/proxyMode" => reply(200, "text/plain; charset=utf-8", self.mode.to_owned()),
            "/configz" => reply(200, "application/json", self.configz.to_string()),
            "/statusz" => reply(200, "text/plain; charset=utf-8", self.statusz()),
            "/flagz" => reply(200, "text/plain; charset=utf-8", self.flagz()),
            _ if self.debugging.is_some() && (path == "/debug/pprof" || path.starts_with("/debug/pprof/")) => {
                reply(501, "text/plain; charset=utf-8", stoker_model::NO_PROFILES.to_owned())
            }
            _ => no_such_page(),
        }
    }

    /// Port 10249, with the one page that takes something.
    async fn answer_metrics(&self, request: Request<Incoming>) -> Reply {
        match (request.uri().path(), self.debugging) {
            ("/debug/flags/v", Some(set)) => set_verbosity(request, set).await,
            (path, _) => self.tell_metrics(path),
        }
    }

    /// In upstream's words.
    fn statusz(&self) -> String {
        let now = self.clock.now();
        let up = now.monotonic.saturating_sub(self.started.monotonic).as_secs();
        let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
        format!(
            "kube-proxy statusz\n{NOT_FOR_MACHINES}\n\nStarted: {}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\n\
             Binary version: stoker {}\n\nPaths: /configz {}/flagz /healthz /metrics /metrics/slis /proxyMode /statusz\n",
            self.started.wall,
            env!("CARGO_PKG_VERSION"),
            if self.debugging.is_some() { "/debug/flags/v " } else { "" },
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

/// PUT `/debug/flags/v`, in upstream's words.
async fn set_verbosity(request: Request<Incoming>, set: SetVerbosity) -> Reply {
    let answer = |code, text: String| reply(code, "text/plain", format!("{text}\n"));
    if request.method() != Method::PUT {
        return answer(406, "unsupported http method".to_owned());
    }
    let body = Limited::new(request.into_body(), LONGEST_NUMBER).collect();
    let text = match tokio::time::timeout(BODY, body).await {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Ok(Err(error)) => return answer(400, format!("error reading request body: {error}")),
        Err(_) => return answer(408, "the level of logging did not come".to_owned()),
    };
    match text.parse().map_err(|_| "no number".to_owned()).and_then(set) {
        Ok(()) => answer(200, format!("successfully set klog.logging.verbosity to {text}")),
        Err(reason) => answer(400, format!("failed set klog.logging.verbosity {text}: {reason}")),
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
    let listener = bind_in_time("health", address, hard_fail, RETRY).await?;
    serve(listener, move |request| std::future::ready(state.tell_health(request.uri().path()))).await
}

/// Serves metrics, the mode and the configuration.
///
/// # Errors
/// Only with `hard_fail`.
pub async fn serve_metrics(address: SocketAddr, hard_fail: bool, state: ProxyState) -> Result<Infallible, BindError> {
    let listener = bind_in_time("metrics", address, hard_fail, RETRY).await?;
    let answer = move |request| {
        let state = state.clone();
        async move { state.answer_metrics(request).await }
    };
    serve(listener, answer).await
}

async fn bind_in_time(
    what: &'static str,
    address: SocketAddr,
    hard_fail: bool,
    again_after: Duration,
) -> Result<TcpListener, BindError> {
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
        tokio::time::sleep(again_after).await;
    }
}

/// Both families where there are two.
fn bind_all(port: u16) -> io::Result<TcpListener> {
    let v4 = SocketAddr::new([0, 0, 0, 0].into(), port);
    match listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), false) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => bind(v4),
        result => result,
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    listen(address, true)
}

/// With `one_family` an IPv6 socket leaves IPv4 to others.
fn listen(address: SocketAddr, one_family: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, one_family)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

/// Answers every request, for ever.
async fn serve<F: Future<Output = Reply> + Send + 'static>(
    listener: TcpListener,
    tell: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
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
                let told = tell(request);
                async move { Ok::<_, Infallible>(told.await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(16 << 10);
            if let Err(error) = builder.serve_connection(TokioIo::new(client), service).await {
                debug!(%error, "a connection to the proxy ended");
            }
        });
    }
}

/// Keeps a server at each health-check port (B1.14): on this machine's addresses in these ranges, which are those that accept
/// NodePorts; on all addresses of a family that has none.
pub async fn serve_health_checks(mut checks: watch::Receiver<HealthChecks>, ranges: Vec<Cidr>, state: ProxyState) {
    let mut open: HashMap<NamespacedName, (u16, DropGuard)> = HashMap::new();
    loop {
        let wanted = Arc::clone(&checks.borrow_and_update());
        open.retain(|name, (port, _)| wanted.get(name).is_some_and(|check| check.port == *port));
        let new: Vec<_> = wanted.iter().filter(|(name, _)| !open.contains_key(name)).collect();
        let addresses = match new.is_empty() {
            true => Ok(Vec::new()),
            false => listening_addresses(&ranges, &state.families).await,
        };
        let mut failed = false;
        for (name, check) in new {
            let addresses = addresses.as_deref().map_err(|error| io::Error::new(error.kind(), error.to_string()));
            match addresses.and_then(|addresses| open_check(name, check.port, addresses, &checks, &state)) {
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

/// Where health-check ports listen: for each family on this machine's addresses in its ranges, or on all where it has no range.
async fn listening_addresses(ranges: &[Cidr], families: &[Family]) -> io::Result<Vec<IpAddr>> {
    let everywhere = |family: Family| {
        let mut of = ranges.iter().filter(|range| range.family() == family).peekable();
        of.peek().is_none() || of.any(|range| range.is_everything())
    };
    let wildcards = families.iter().filter(|family| everywhere(**family)).map(|family| match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    });
    let mut chosen: Vec<IpAddr> = wildcards.collect();
    if chosen.len() < families.len() {
        let own = tokio::task::spawn_blocking(own_addresses).await.map_err(io::Error::other)??;
        let named = |ip: &IpAddr| ranges.iter().any(|range| range.contains(*ip));
        let of = |ip: &IpAddr| families.contains(&Family::of(*ip)) && !everywhere(Family::of(*ip));
        chosen.extend(own.into_iter().filter(|ip| of(ip) && named(ip)));
    }
    Ok(chosen)
}

fn open_check(
    name: &NamespacedName,
    port: u16,
    addresses: &[IpAddr],
    checks: &watch::Receiver<HealthChecks>,
    state: &ProxyState,
) -> io::Result<DropGuard> {
    let both = addresses.len() == 2 && addresses.iter().all(IpAddr::is_unspecified);
    let listeners = match both {
        true => vec![bind_all(port)?],
        false => addresses.iter().map(|ip| bind(SocketAddr::new(*ip, port))).collect::<io::Result<_>>()?,
    };
    let stop = CancellationToken::new();
    for listener in listeners {
        let (name, checks, state, stop) = (name.clone(), checks.clone(), state.clone(), stop.clone());
        tokio::spawn(async move {
            let tell = move |_| {
                let check = checks.borrow().get(&name).copied();
                let (code, count, body) = check_answer(&name, check.as_ref(), state.is_live());
                let mut told = reply(code, "application/json", body);
                told.headers_mut().insert("x-load-balancing-endpoint-weight", HeaderValue::from(count));
                std::future::ready(told)
            };
            tokio::select! {
                () = stop.cancelled() => {}
                _ = serve(listener, tell) => {}
            }
        });
    }
    Ok(stop.drop_guard())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_tried_again() {
        // B2.2
        assert_eq!(RETRY, Duration::from_secs(5));
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("bound");
        let error = bind_in_time("metrics", address, true, RETRY).await.expect_err("hard").to_string();
        assert!(error.contains(&address.to_string()) && error.contains("metrics"), "{error}");
        let again_after = Duration::from_millis(20);
        let waiting = tokio::spawn(bind_in_time("metrics", address, false, again_after));
        tokio::time::sleep(5 * again_after).await;
        assert!(!waiting.is_finished(), "somebody else has the port");
        drop(taken);
        let listener = waiting.await.expect("no panic").expect("it is free");
        assert_eq!(listener.local_addr().expect("bound"), address);
    }
}
