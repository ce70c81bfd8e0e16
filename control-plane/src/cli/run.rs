//! `stoker-control-plane run`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::tls::{self, TlsError};
use crate::api::{self, Cluster, NodeClient, ServerConfig};
use crate::auth::{ClusterAuthenticator, ClusterAuthorizer, Lookup, Pki, PkiConfig, PkiError};
use crate::clock;
use crate::controllers::Cidr;
use crate::storage::embedded::Embedded;
use crate::storage::{Store, StoreError};

/// Upstream forgets history after so long; clients that come back later list again (C3.3).
const COMPACT: Duration = Duration::from_secs(300);
/// After a stop, rooms may take so long.
const DRAIN: Duration = Duration::from_secs(5);

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// Where objects, keys and kubeconfigs are kept; made if it is not there.
    #[arg(long, default_value = "/var/lib/stoker-control-plane")]
    pub data_dir: PathBuf,
    /// The address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// The port to listen on.
    #[arg(long, default_value_t = 6443)]
    pub port: u16,
    /// The address at which nodes and users reach the API; by default the address of the default route.
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// The range of service addresses; for dual stack two, with a comma between them, the cluster's main family first.
    #[arg(long, default_value = "10.96.0.0/16")]
    pub service_cidr: String,
    /// The range of pod addresses, of which every node gets a part (/24, or /64 of IPv6); for dual stack two, with a comma
    /// between them; empty: nodes get none.
    #[arg(long, default_value = "10.244.0.0/16")]
    pub cluster_cidr: String,
    /// The cluster's DNS domain.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// A node to write a kubeconfig for, as node-NAME.kubeconfig in the data directory; may be given more than once.
    #[arg(long = "node-name")]
    pub node_names: Vec<String>,
    /// More names or addresses for the serving certificate; may be given more than once.
    #[arg(long = "tls-san")]
    pub tls_names: Vec<String>,
}

/// Why the control plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No threads.
    #[error("cannot start the runtime")]
    Runtime {
        /// Why.
        source: std::io::Error,
    },
    /// The data directory.
    #[error("cannot make {path}: check the rights of its parent, or give another --data-dir")]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The service range.
    #[error(
        "--service-cidr {0:?} is no range of addresses such as 10.96.0.0/16, nor one of each family with a comma between them"
    )]
    ServiceCidr(String),
    /// The pod range.
    #[error(
        "--cluster-cidr {0:?} is no range of addresses such as 10.244.0.0/16, nor one of each family with a comma between them"
    )]
    ClusterCidr(String),
    /// The address.
    #[error("cannot listen on {address}: is another API server running there?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Credentials.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What must always be there could not be made.
    #[error("cannot make what every cluster has: {0}")]
    Bootstrap(#[from] crate::resources::status::StatusError),
    /// Signals.
    #[error("cannot listen for signals")]
    Signals {
        /// Why.
        source: std::io::Error,
    },
}

/// Runs until SIGTERM or SIGINT.
pub(super) async fn run(options: RunOptions) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|source| RunError::Signals { source })?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|source| RunError::Signals { source })?;
    std::fs::create_dir_all(&options.data_dir)
        .map_err(|source| RunError::DataDir { path: options.data_dir.clone(), source })?;
    let address = SocketAddr::new(options.bind_address, options.port);
    let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
    let advertise = options.advertise_address.unwrap_or_else(|| default_address(options.bind_address));
    let wrong = || RunError::ServiceCidr(options.service_cidr.clone());
    let services = Cidr::list(&options.service_cidr).map_err(|_| wrong())?.first().copied().ok_or_else(wrong)?;
    let pki = Arc::new(Pki::ensure(
        &PkiConfig {
            data_dir: options.data_dir.clone(),
            advertise_address: advertise,
            port: options.port,
            service_ip: services.address(1),
            extra_names: options.tls_names.clone(),
            cluster_domain: options.cluster_domain.clone(),
        },
        clock::now(),
    )?);
    for node in &options.node_names {
        let path = pki.ensure_node_kubeconfig(node, clock::now())?;
        tracing::info!(node, path = %path.display(), "kubeconfig of a node");
    }
    let store: Arc<dyn Store> = Embedded::open(&options.data_dir.join("objects.redb"))?;
    let cluster = Cluster::new(store.clone());
    let stop = CancellationToken::new();
    let lookup: Arc<dyn Lookup> = Arc::new(cluster.clone());
    let authorizer = Arc::new(ClusterAuthorizer::new(lookup.clone()));
    cluster.set_authorizer(authorizer.clone());
    let rooms = super::rooms::start(&cluster, &options, advertise, &pki, &stop).await?;
    let server = tokio::spawn(api::serve(ServerConfig {
        listener,
        tls: tls::server(&pki)?,
        cluster: cluster.clone(),
        authenticator: Arc::new(ClusterAuthenticator::new(&pki, lookup)),
        authorizer,
        tokens: pki.tokens(),
        nodes: NodeClient::new(tls::to_nodes(&pki)?, tls::to_anybody()?),
        stop: stop.clone(),
    }));
    tokio::spawn(compact(store, stop.clone()));
    tracing::info!(%address, kubeconfig = %pki.admin_kubeconfig_path().display(), "serving");
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    let all = async {
        let _ = server.await;
        for room in rooms {
            let _ = room.await;
        }
    };
    if tokio::time::timeout(DRAIN, all).await.is_err() {
        tracing::info!("something still ran; what is stored is whole");
    }
    Ok(())
}

/// Forgets what happened before the last but one tick, so that history covers between one and two of them.
async fn compact(store: Arc<dyn Store>, stop: CancellationToken) {
    let mut before = store.published();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(COMPACT) => {}
        }
        let now = store.published();
        store.compact(before);
        before = now;
    }
}

/// The address that packets to elsewhere leave from; nothing is sent.
fn default_address(bound: IpAddr) -> IpAddr {
    if !bound.is_unspecified() {
        return bound;
    }
    let route = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    match route() {
        Ok(address) if !address.is_unspecified() => address,
        // No default route: a machine of its own.
        _ => Ipv4Addr::LOCALHOST.into(),
    }
}
