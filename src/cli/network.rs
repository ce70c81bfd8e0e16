//! Wires the pod network: settings, watches, the annotation of our Node, and the removal of what dead sandboxes left.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use stoker_model::network::VTEP_MAC;
use tokio::sync::{mpsc, watch};

use super::run::Tasks;
use crate::clock::Clock;
use crate::config::{PodNetwork, StokerConfig};
use crate::network::{self, Mode, NetworkConfig, NetworkError};
use crate::node::NodeSettings;
use crate::runtime::Runtime;
use crate::upstream::{self, ApiServer, Backoff, NodeApi};

/// Changes of nodes, or of pods and policies, that may wait.
const QUEUE: usize = 1024;
const GARBAGE_EVERY: Duration = Duration::from_secs(600);

fn config(stoker: &StokerConfig, node: &NodeSettings) -> std::io::Result<Option<NetworkConfig>> {
    let mode = match stoker.pod_network {
        PodNetwork::None => return Ok(None),
        PodNetwork::Routed => Mode::Routed,
        PodNetwork::Vxlan => Mode::Vxlan,
    };
    Ok(Some(NetworkConfig {
        mode,
        node: node.name.clone(),
        addresses: node.addresses.clone(),
        conf_dir: stoker.cni.conf_dir.clone(),
        bin_dir: stoker.cni.bin_dir.clone(),
        state_dir: stoker.cni.state_dir.clone(),
        binary: std::env::current_exe()?,
        mtu: stoker.cni.mtu,
    }))
}

/// Starts the pod network, if it is ours.
pub(super) async fn spawn(
    stoker: &StokerConfig,
    node: &NodeSettings,
    api: &ApiServer,
    (node_api, node_object): (NodeApi, watch::Receiver<Option<Node>>),
    tasks: &mut Tasks,
) -> Result<(), NetworkError> {
    let Some(config) = config(stoker, node).map_err(NetworkError::Install)? else { return Ok(()) };
    let network = network::prepare(config).await?;
    if let Some(mac) = network.vtep_mac() {
        super::run::spawn(tasks, "tunnel annotation", publish(node_api, node_object, mac));
    }
    let (changes, queue) = mpsc::channel(QUEUE);
    super::run::spawn(tasks, "pod network", network.run(queue));
    super::run::spawn(tasks, "nodes watch", upstream::watch_nodes(api.clone(), changes));
    let (changes, queue) = mpsc::channel(QUEUE);
    super::run::spawn(tasks, "network policies", network::policy::run(node.name.clone(), queue));
    super::run::spawn(tasks, "policy watch", upstream::watch_policies(api.clone(), changes));
    Ok(())
}

/// Keeps the annotation that other nodes need for their end of the tunnel.
async fn publish(api: NodeApi, mut node: watch::Receiver<Option<Node>>, mac: String) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        let told = node.borrow_and_update().as_ref().map(|node| {
            let annotations = node.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(VTEP_MAC)) == Some(&mac)
        });
        if told == Some(false) {
            match api.patch(&json!({"metadata": {"annotations": {VTEP_MAC: mac}}})).await {
                Ok(_) => backoff.reset(),
                Err(error) => {
                    tracing::warn!(%error, "cannot tell other nodes of our end of their tunnels; trying again");
                    tokio::time::sleep(backoff.wait()).await;
                    continue;
                }
            }
        }
        if node.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Removes what dead sandboxes left, now and then; the first time when the runtime answers.
pub(super) async fn collect_garbage(runtime: Runtime, state: PathBuf, clock: Clock) {
    loop {
        match runtime.list_pod_sandbox(None).await {
            Ok(sandboxes) => {
                let living: BTreeSet<String> = sandboxes.into_iter().map(|sandbox| sandbox.id).collect();
                let (state, now) = (state.clone(), clock.now().wall);
                let done = tokio::task::spawn_blocking(move || network::collect_garbage(&state, &living, now)).await;
                if let Ok(Err(error)) = done {
                    tracing::warn!(%error, "cannot remove everything that dead sandboxes left in the network");
                }
            }
            Err(error) => tracing::debug!(%error, "the runtime does not list its sandboxes"),
        }
        tokio::time::sleep(GARBAGE_EVERY).await;
    }
}
