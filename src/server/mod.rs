//! The HTTPS API of the node, as kubelet serves it on 10250: what runs, logs, streams into containers; `/healthz` alone on 10248.
//!
//! Every request on the HTTPS port has a user, from a client certificate, and is authorized (A18.16, A18.17). What there is to tell comes
//! through [`Handles`]; nothing here owns any state but the cache of decisions.

mod access;
mod certificate;
mod conversation;
mod escape;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod health;
mod identity;
mod journal;
mod logs;
mod pages;
mod query;
mod reply;
mod route;
mod running;
mod stats;
mod stream;
mod tls;
mod tokens;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use rustix::net::sockopt;
use stoker_model::handle::{AgentState, Authorizer, DiskMeter, PodDirectory, ProbeMetrics, TokenReviewer, UsageReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use self::access::Access;
use self::conversation::{LIMITS, converse};
use self::route::Routes;
use self::stream::Streaming;
use self::tls::Tls;
use crate::clock::Clock;
use crate::runtime::Runtime;

pub use self::certificate::ServingCertificate;
pub use self::tls::TlsRules;

/// Connections at a time. The API server needs one or two and one for each stream.
const CONNECTIONS: usize = 1024;

/// For a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// And of these, so many of clients without a certificate: who has a token or nothing does not keep the API server out.
const STRANGERS: usize = CONNECTIONS / 4;

/// A client that is silent for so long is asked whether it lives, so often.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_PROBES: u32 = 9;

/// After a failed accept: the usual cause is that no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For open requests when the agent stops. Followed logs would go on for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// Where and how to serve.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address of the HTTPS API.
    pub address: IpAddr,
    /// Its port; 0 takes any.
    pub port: u16,
    /// Where `/healthz` is served without TLS; usually 127.0.0.1:10248.
    pub healthz: Option<SocketAddr>,
    /// The certificate to serve with.
    pub certificate: ServingCertificate,
    /// PEM file with the CAs of clients. Without it nobody can say who he is, so that everybody is refused.
    pub client_ca: Option<PathBuf>,
    /// Versions, suites and groups.
    pub tls: TlsRules,
    /// The node's name.
    pub node: String,
    /// What `/configz` shows: KubeletConfiguration with all defaults.
    pub kubelet_configuration: serde_json::Value,
    /// Pods' directories: the node's file system.
    pub root_dir: PathBuf,
    /// Pods' logs.
    pub pod_logs_dir: PathBuf,
    /// Volumes are measured no more often (`volumeStatsAggPeriod`).
    pub volume_stats_every: Duration,
    /// Where what needs no credentials is served without TLS (`readOnlyPort`); `None`: nowhere.
    pub read_only: Option<SocketAddr>,
    /// Whether `/logs?query=` asks the journal (`enableSystemLogQuery`).
    pub system_log_query: bool,
    /// Whether PUT `/debug/flags/v` changes what is logged (`enableDebugFlagsHandler`).
    pub debug_flags: bool,
    /// Whether who shows no credentials may ask, as `system:anonymous`.
    pub anonymous: bool,
    /// How long decisions are believed: permissions and refusals.
    pub decision_ttl: (Duration, Duration),
    /// What `/logs` shows; `None` where it is switched off.
    pub system_logs_dir: Option<PathBuf>,
    /// How long the answer about a token is believed.
    pub token_ttl: Duration,
    /// Whether logs may be read at all: kubelet's enableDebuggingHandlers (A18.18).
    pub debugging_handlers: bool,
}

/// What the API tells of.
#[derive(Clone)]
pub struct Handles {
    /// The pods of this node.
    pub pods: Arc<dyn PodDirectory>,
    /// Who may what.
    pub authorizer: Arc<dyn Authorizer>,
    /// Whose a token is; `None` where tokens are not taken.
    pub tokens: Option<Arc<dyn TokenReviewer>>,
    /// What is used.
    pub usage: Arc<dyn UsageReader>,
    /// Where volumes are, and what they take.
    pub disks: Arc<dyn DiskMeter>,
    /// What probes have done.
    pub probes: Arc<dyn ProbeMetrics>,
    /// The agent itself.
    pub agent: Arc<dyn AgentState>,
    /// Containers and their logs.
    pub runtime: Runtime,
}

impl fmt::Debug for Handles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handles").finish_non_exhaustive()
    }
}

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Something else listens there, or the address is not one of this machine.
    #[error("cannot listen on {address}: {source}; stop what listens there, or choose another address or port")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A certificate, key or CA file is missing or wrong.
    #[error("cannot use {path:?}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The parts do not fit together.
    #[error("cannot serve TLS: {0}")]
    Tls(String),
}

/// A server whose ports are open.
pub struct Server {
    api: TcpListener,
    healthz: Option<TcpListener>,
    read_only: Option<TcpListener>,
    tls: Tls,
    routes: Arc<Routes>,
    /// Ends what left HTTP.
    streams: CancellationToken,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("api", &self.api).field("healthz", &self.healthz).finish_non_exhaustive()
    }
}

impl Server {
    /// Loads or makes the certificate and opens the ports. From then on connections are kept waiting, not refused.
    pub async fn bind(config: ServerConfig, handles: Handles) -> Result<Self, ServerError> {
        let tls = Tls::new(&config, Clock.now())?;
        let api = listen(SocketAddr::new(config.address, config.port)).await?;
        let healthz = match config.healthz {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let read_only = match config.read_only {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let access = Access::new(handles.authorizer.clone(), config.decision_ttl);
        let streams = CancellationToken::new();
        let streaming = Streaming::new(handles.pods.clone(), handles.runtime.clone(), streams.clone());
        let routes = Routes::new(handles, access, streaming, config);
        Ok(Self { api, healthz, read_only, tls, routes: Arc::new(routes), streams })
    }

    /// Where the HTTPS API listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.api.local_addr()
    }

    /// Where `/healthz` listens.
    pub fn healthz_address(&self) -> Option<SocketAddr> {
        self.healthz.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Where the read-only port listens.
    pub fn read_only_address(&self) -> Option<SocketAddr> {
        self.read_only.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let (tasks, going) = (TaskTracker::new(), CancellationToken::new());
        let (room, strangers) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(STRANGERS)));
        let refusals = Arc::new(Refusals::default());
        if let Ok(address) = self.address() {
            info!(%address, "serving the node's API");
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                client = accept(Some(&self.api)) => {
                    let (tls, routes, going) = (self.tls.acceptor(Clock.now()), self.routes.clone(), going.clone());
                    let Ok(permit) = room.clone().try_acquire_owned() else {
                        refusals.tell(format_args!("{CONNECTIONS} connections to the node's API are open"));
                        continue;
                    };
                    let (strangers, refusals) = (strangers.clone(), refusals.clone());
                    tasks.spawn(async move {
                        let _permit = permit;
                        let stream = match timeout(HANDSHAKE, tls.accept(client)).await {
                            Ok(Ok(stream)) => stream,
                            Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
                            Err(_) => return debug!("TLS handshake took too long"),
                        };
                        let user = Arc::new(identity::of(stream.get_ref().1));
                        let is_stranger = user.is_none();
                        let Ok(_permit) = is_stranger.then(|| strangers.try_acquire_owned()).transpose() else {
                            let why = format_args!("{STRANGERS} clients without a certificate are connected");
                            return refusals.tell(why);
                        };
                        let service = service_fn(move |request| {
                            let (routes, user) = (routes.clone(), user.clone());
                            async move { routes.answer(request, user.as_ref().as_ref()).await }
                        });
                        // The handshake's part of the task goes with it.
                        Box::pin(converse(stream, service, going, LIMITS)).await;
                    });
                }
                client = accept(self.healthz.as_ref()) => {
                    let going = going.clone();
                    let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                    tasks.spawn(async move {
                        let _permit = permit;
                        converse(client, service_fn(route::healthz_only), going, LIMITS).await;
                    });
                }
                client = accept(self.read_only.as_ref()) => {
                    let (routes, going) = (self.routes.clone(), going.clone());
                    let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                    tasks.spawn(async move {
                        let _permit = permit;
                        let service = service_fn(move |request| {
                            let routes = routes.clone();
                            async move { routes.answer_anybody(request).await }
                        });
                        converse(client, service, going, LIMITS).await;
                    });
                }
            }
        }
        self.streams.cancel();
        going.cancel();
        tasks.close();
        if timeout(DRAIN, tasks.wait()).await.is_err() {
            debug!("connections to the node's API are still open; leaving them");
        }
    }
}

/// The minute of the last warning: whoever floods the listener must not flood the log.
#[derive(Default)]
struct Refusals(AtomicU64);

impl Refusals {
    fn tell(&self, why: fmt::Arguments<'_>) {
        let minute = Clock.now().monotonic.as_secs() / 60 + 1;
        if self.0.swap(minute, Ordering::Relaxed) == minute {
            debug!("{why}; refusing one");
        } else {
            warn!("{why}; refusing one, and more in this minute without a word");
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
}

/// The next client; never, where there is no listener.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                // Logs are followed line by line. Where it cannot be set they come a little later.
                let _ = client.set_nodelay(true);
                if let Err(error) = keep_alive(&client) {
                    debug!(%error, "a client that vanishes will be noticed late");
                }
                return client;
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Lets the kernel ask a silent client whether it is still there: a stream may be silent for hours, and must not outlive its client.
fn keep_alive(client: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(client, true)?;
    sockopt::set_tcp_keepidle(client, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(client, KEEP_ALIVE)?;
    sockopt::set_tcp_keepcnt(client, KEEP_ALIVE_PROBES)
}
