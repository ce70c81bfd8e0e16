//! Cluster DNS, answered on the node.
//!
//! In:  [`ServiceChange`]s (bounded `mpsc`), the same that the data path gets.
//! Out: answers at the cluster DNS addresses, which local routes make addresses of this node (`address`), and metrics there.
//! `wire` reads and fits packets, `zone` knows the cluster's names (both pure), `cache` keeps encoded answers, `answer` joins them,
//! `forward` asks the node's name servers for all other names, `server` has the sockets.
//! Not here: what stands in a pod's resolv.conf (`pod`), the watch (`upstream`).

mod address;
mod answer;
mod cache;
mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod metrics;
mod server;
mod wire;
mod zone;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::rr::Name;
use stoker_model::service::ServiceChange;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use address::AddressError;
pub use forward::Upstream;

use crate::clock::Clock;
use answer::{Answerer, Parts};
use forward::Forwarder;
use metrics::Metrics;

/// Where DNS is spoken.
const PORT: u16 = 53;
/// More sockets than this for one address bring nothing.
const MOST_WORKERS: usize = 4;
/// Changes taken in at a time.
const CHANGES_AT_ONCE: usize = 10_000;

/// Settings of the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsConfig {
    /// Where to answer: the cluster DNS addresses.
    pub addresses: Vec<IpAddr>,
    /// The cluster's domain, like `cluster.local`.
    pub domain: String,
    /// Seconds that clients may keep answers about the cluster.
    pub ttl: u32,
    /// Where other names are asked for.
    pub upstream: Upstream,
    /// Answers kept at most.
    pub cache_entries: usize,
    /// Port of the metrics page at the same addresses; `None`: no page.
    pub metrics_port: Option<u16>,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The domain is no name.
    #[error("clusterDomain {0:?} is not a domain name such as cluster.local")]
    Domain(String),
    /// The addresses could not be made ours.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A port is taken.
    #[error(
        "cannot listen on {address}: {source}; another name server may listen on all addresses: make it listen on its own only"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// The bound sockets, and the tasks behind them once they run.
#[derive(Debug)]
pub struct DnsServer {
    answerer: Arc<Answerer>,
    forwarder: Arc<Forwarder>,
    tasks: JoinSet<()>,
}

impl DnsServer {
    /// Claims the addresses and starts to answer; names of the cluster with "cannot tell yet" until [`DnsServer::run`] has got
    /// both lists.
    ///
    /// # Errors
    /// When the addresses cannot be claimed or the ports are taken.
    pub async fn start(config: DnsConfig, clock: Clock) -> Result<Self, DnsError> {
        let domain = Name::from_ascii(format!("{}.", config.domain.trim_matches('.').to_ascii_lowercase()))
            .ok()
            .filter(|name| !name.is_root())
            .ok_or_else(|| DnsError::Domain(config.domain.clone()))?;
        address::claim(&config.addresses).await?;
        let metrics = Arc::new(Metrics::new());
        let own = config.addresses.clone();
        let forwarder = Arc::new(Forwarder::new(config.upstream, own, clock, metrics.clone()));
        let answerer = Arc::new(Answerer::new(Parts {
            domain,
            addresses: config.addresses.clone(),
            ttl: config.ttl,
            cache_entries: config.cache_entries,
            forwarder: forwarder.clone(),
            metrics,
            clock,
        }));
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS);
        let mut tasks = JoinSet::new();
        let pending = server::pending();
        for address in config.addresses {
            let at = SocketAddr::new(address, PORT);
            let listen = |at| move |source| DnsError::Listen { address: at, source };
            for _ in 0..workers {
                let socket = server::datagrams(at).map_err(listen(at))?;
                tasks.spawn(server::serve_datagrams(socket, answerer.clone(), pending.clone()));
            }
            tasks.spawn(server::serve_streams(server::streams(at).map_err(listen(at))?, answerer.clone()));
            if let Some(port) = config.metrics_port {
                let at = SocketAddr::new(address, port);
                tasks.spawn(server::serve_metrics(server::streams(at).map_err(listen(at))?, answerer.clone()));
            }
        }
        Ok(Self { answerer, forwarder, tasks })
    }

    /// Takes in changes until the sender is gone, and answers.
    pub async fn run(mut self, mut changes: mpsc::Receiver<ServiceChange>) {
        self.tasks.spawn(self.forwarder.run());
        let mut batch = Vec::new();
        while changes.recv_many(&mut batch, CHANGES_AT_ONCE).await > 0 {
            self.answerer.apply(batch.drain(..));
        }
    }
}

/// Gives up the addresses that a server of ours claimed in the calling thread's network namespace; none is success.
///
/// # Errors
/// When the kernel refuses.
pub async fn cleanup() -> Result<(), AddressError> {
    address::claim(&[]).await
}
