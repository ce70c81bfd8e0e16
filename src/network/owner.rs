//! The one task that owns the node's side of the pod network: conf list, table, routes and tunnels.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use stoker_model::network::{ClusterNode, Listed};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::files;
use super::kernel::{Kernel, TUNNEL};
use super::leases::Leases;
use super::monitor::{Heard, Monitor, SETTLE};
use super::plugin;
use super::rtnl::{mac_from, mac_text};
use super::table;
use super::ways::{Mode, Nodes, Tunnel, Ways, ways};

/// Why the kernel is compared with what is wanted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Look {
    /// Nobody asked for it: only what is wanted may have changed.
    No,
    /// Somebody changed routes or links.
    Routes,
    /// It is time to look at everything.
    Everything,
}

/// What VXLAN puts before a packet, over IPv4 and over IPv6.
const OVERHEAD: [u32; 2] = [50, 70];
/// IPv6 needs as much.
const LEAST_MTU: u32 = 1280;
/// Everything is compared with the kernel so often, whatever happens.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Changes taken in before the kernel is written.
const CHANGES_AT_ONCE: usize = 1000;
/// A younger lease may be of a sandbox that is being made, which the runtime does not list yet.
const YOUNG: Duration = Duration::from_secs(120);

/// Settings of the pod network.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// How other nodes are reached.
    pub mode: Mode,
    /// This node's name.
    pub node: String,
    /// Its addresses, primary first.
    pub addresses: Vec<IpAddr>,
    /// The runtime's folder of network configurations.
    pub conf_dir: PathBuf,
    /// The runtime's folder of plugins.
    pub bin_dir: PathBuf,
    /// Where leases are.
    pub state_dir: PathBuf,
    /// The agent's own binary.
    pub binary: PathBuf,
    /// Of pods' interfaces; 0: what the node's own interface lets through.
    pub mtu: u32,
}

/// Why there is no pod network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No socket.
    #[error("cannot talk to the kernel's network: the agent needs CAP_NET_ADMIN")]
    Open(#[source] io::Error),
    /// The node's address is on no interface.
    #[error(
        "podNetwork: no interface of this machine has the node's address {0}: correct --node-ip, or set cni.mtu and podNetwork: routed"
    )]
    NoInterface(IpAddr),
    /// An MTU that nothing fits.
    #[error(
        "podNetwork: an MTU of {0} for pods is too small: at least 1280 is needed; correct cni.mtu or the node's interface"
    )]
    Mtu(u32),
    /// No tunnel device.
    #[error(
        "podNetwork: vxlan needs a VXLAN device, which the kernel refuses: load the module vxlan, or use podNetwork: routed"
    )]
    NoVxlan(#[source] io::Error),
    /// The plugin cannot be linked.
    #[error("podNetwork: cannot put the CNI plugin where the runtime looks for it (cni.binDir)")]
    Install(#[source] io::Error),
    /// The node has no address.
    #[error("podNetwork: the node has no address: set --node-ip")]
    NoAddress,
}

/// The pod network of this node, set up as far as it does not depend on the cluster.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    kernel: Kernel,
    mtu: u32,
    tunnel: Option<Tunnel>,
    nodes: Nodes,
    complete: bool,
    written: Option<Ways>,
    problems: BTreeSet<String>,
}

/// Connects to the kernel, links the plugin, and makes the tunnel device. Needs a Tokio runtime.
///
/// # Errors
/// When the host lacks what the mode needs.
pub async fn prepare(config: NetworkConfig) -> Result<Network, NetworkError> {
    let kernel = Kernel::open().map_err(NetworkError::Open)?;
    let primary = *config.addresses.first().ok_or(NetworkError::NoAddress)?;
    let uplink = kernel.link_with(primary).await.map_err(NetworkError::Open)?;
    let overhead = match (config.mode, primary) {
        (Mode::Routed, _) => 0,
        (Mode::Vxlan, IpAddr::V4(_)) => OVERHEAD[0],
        (Mode::Vxlan, IpAddr::V6(_)) => OVERHEAD[1],
    };
    let mtu = match (config.mtu, uplink) {
        (0, Some((_, mtu))) => mtu.saturating_sub(overhead),
        (0, None) => return Err(NetworkError::NoInterface(primary)),
        (mtu, _) => mtu,
    };
    if mtu < LEAST_MTU {
        return Err(NetworkError::Mtu(mtu));
    }
    let tunnel = match config.mode {
        Mode::Routed => None,
        Mode::Vxlan => {
            let link = kernel.tunnel(primary, vtep(&config.node), mtu).await.map_err(NetworkError::NoVxlan)?;
            Some(Tunnel { link, underlay: primary })
        }
    };
    files::install_plugin(&config.bin_dir, &config.binary).map_err(NetworkError::Install)?;
    Ok(Network {
        config,
        kernel,
        mtu: mtu.min(65535),
        tunnel,
        nodes: Nodes::new(),
        complete: false,
        written: None,
        problems: BTreeSet::new(),
    })
}

fn vtep(node: &str) -> super::rtnl::Mac {
    mac_from(&Sha256::digest(format!("vtep of {node}")))
}

/// Removes what pods left that the runtime does not know any more: interfaces, leases, host ports. `living` are the IDs of
/// its sandboxes.
///
/// # Errors
/// When something could not be removed; the rest was.
pub fn collect_garbage(
    state: &std::path::Path,
    living: &BTreeSet<String>,
    now: jiff::Timestamp,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let old = Leases::open(state)?.owners_older_than(YOUNG, now)?;
    plugin::collect(state, |owner| living.contains(&owner.container) || !old.contains(owner))?;
    Ok(())
}

/// Removes what the pod network left in the kernel, but for the pods' own interfaces, which go with the pods.
///
/// # Errors
/// When something could not be removed.
pub fn cleanup() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    for table in [table::TABLE, super::policy::TABLE] {
        table::run_nft(&format!("table {table} {{}}\ndelete table {table}\n"))?;
    }
    super::kernel::remove_all()?;
    Ok(())
}

impl Network {
    /// The hardware address that other nodes have to know, for the annotation of our Node; only with tunnels.
    pub fn vtep_mac(&self) -> Option<String> {
        self.tunnel.map(|_| mac_text(vtep(&self.config.node)))
    }

    /// Follows the nodes until nobody sends any more. What is in the kernel stays.
    pub async fn run(mut self, mut changes: mpsc::Receiver<Listed<ClusterNode>>) {
        let mut wait = LOOK_AGAIN;
        // Changes do not put it off: a cluster of many nodes always changes.
        let mut timer = std::pin::pin!(tokio::time::sleep(wait));
        let monitor = Monitor::open(table::TABLE);
        if let Err(error) = &monitor {
            warn!(%error, "what others change in the pod network will be noticed late");
        }
        loop {
            let mut look = Look::No;
            let heard = async {
                match &monitor {
                    Ok(monitor) => monitor.heard().await,
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                change = changes.recv() => match change {
                    None => return,
                    Some(change) => {
                        self.take(change);
                        for _ in 0..CHANGES_AT_ONCE {
                            let Ok(change) = changes.try_recv() else { break };
                            self.take(change);
                        }
                    }
                },
                heard = heard => {
                    debug!(?heard, "somebody changed the pod network");
                    tokio::time::sleep(SETTLE).await;
                    look = if heard == Heard::Tables { Look::Everything } else { Look::Routes };
                }
                () = &mut timer => look = Look::Everything,
            }
            if !self.complete {
                if look == Look::Everything {
                    timer.set(tokio::time::sleep(wait));
                }
                continue;
            }
            let before = wait;
            wait = match self.synchronise(look).await {
                Ok(()) => LOOK_AGAIN,
                Err(error) => {
                    let next = if wait == LOOK_AGAIN { FIRST_RETRY } else { (wait * 2).min(LOOK_AGAIN / 2) };
                    warn!(error, ?next, "the pod network is not as it should be; trying again");
                    next
                }
            };
            if look == Look::Everything || wait != before {
                timer.set(tokio::time::sleep(wait));
            }
        }
    }

    fn take(&mut self, change: Listed<ClusterNode>) {
        match change {
            Listed::Present(mut node) => {
                node.metadata.resource_version.clear();
                self.nodes.insert(node.metadata.name.clone(), node);
            }
            Listed::Gone(key) => {
                self.nodes.remove(&key.name);
            }
            Listed::Complete => self.complete = true,
        }
    }

    async fn synchronise(&mut self, look: Look) -> Result<(), String> {
        if let Some(tunnel) = &mut self.tunnel
            && look != Look::No
        {
            // Finds the device, or makes it anew where somebody deleted it.
            let made = self.kernel.tunnel(tunnel.underlay, vtep(&self.config.node), self.mtu).await;
            tunnel.link = made.map_err(|error| format!("the tunnel device: {error}"))?;
        }
        let ways = ways(&self.config.node, &self.nodes, self.tunnel);
        for problem in ways.problems.difference(&self.problems) {
            warn!(problem, "some pods cannot be reached");
        }
        self.problems.clone_from(&ways.problems);
        let changed = self.written.as_ref() != Some(&ways);
        if !changed && look == Look::No {
            return Ok(());
        }
        self.written = None;
        if changed || look == Look::Everything {
            let (own, cluster) = (ways.own.clone(), ways.cluster.clone());
            let config = (self.config.conf_dir.clone(), self.config.state_dir.clone(), self.mtu);
            let written = tokio::task::spawn_blocking(move || write_files(&own, &cluster, config)).await;
            written.map_err(|error| error.to_string())??;
        }
        let link = self.tunnel.map(|tunnel| tunnel.link);
        let (written, refusals) =
            self.kernel.write(&ways, link).await.map_err(|error| format!("reading the kernel's routes: {error}"))?;
        if written > 0 {
            debug!(written, nodes = self.nodes.len(), device = TUNNEL, "routes to other nodes' pods written");
        }
        if !refusals.is_empty() {
            let hint =
                if self.tunnel.is_none() { "; nodes that are not on one link need podNetwork: vxlan" } else { "" };
            return Err(format!("the kernel refused {}{hint}", refusals.join(", ")));
        }
        self.written = Some(ways);
        Ok(())
    }
}

fn write_files(
    own: &[super::cidr::Cidr],
    cluster: &[super::cidr::Cidr],
    (conf, state, mtu): (PathBuf, PathBuf, u32),
) -> Result<(), String> {
    if own.is_empty() {
        debug!("this node has no podCIDRs yet");
        return Ok(());
    }
    files::allow_forwarding(own).map_err(|error| format!("cannot switch forwarding on: {error}"))?;
    table::run_nft(&table::with_ranges(own, cluster)).map_err(|error| error.to_string())?;
    // Last: from here on the runtime may make pods.
    let new = files::write_conf_list(&conf, &state, own, mtu).map_err(|error| format!("the conf list: {error}"))?;
    if new {
        info!(ranges = ?own, mtu, folder = %conf.display(), "pod network ready");
        for other in files::shadowing(&conf) {
            warn!(file = %other.display(), "the runtime takes this configuration instead of ours: remove it");
        }
    }
    Ok(())
}
