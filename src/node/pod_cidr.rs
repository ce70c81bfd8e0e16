//! Tells the runtime the node's range of pod addresses, for those that write a network configuration from it (A11.11).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeSpec};
use tokio::sync::watch;

use crate::runtime::{Runtime, cri};

/// A runtime that does not take it is asked again after so long.
const RETRY: Duration = Duration::from_secs(10);

/// Passes each new range on, for as long as the Node is watched.
pub async fn pass_pod_cidr(runtime: Runtime, mut node: watch::Receiver<Option<Node>>) {
    let mut told = String::new();
    loop {
        let range = node.borrow_and_update().as_ref().map(pod_cidr).unwrap_or_default();
        let mut failed = false;
        if !range.is_empty() && range != told {
            let network = cri::NetworkConfig { pod_cidr: range.clone() };
            match runtime.update_runtime_config(cri::RuntimeConfig { network_config: Some(network) }).await {
                Ok(()) => {
                    tracing::info!(range, "the runtime knows the range of pod addresses");
                    told = range;
                }
                Err(error) => {
                    tracing::warn!(range, %error, "the runtime does not take the range of pod addresses; it is tried again");
                    failed = true;
                }
            }
        }
        tokio::select! {
            changed = node.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

/// Passes on the range that was configured, for a node without an API server (`podCIDR`, A22.1d).
pub async fn pass_configured_cidr(runtime: Runtime, range: String) {
    let spec = NodeSpec { pod_cidr: Some(range), ..NodeSpec::default() };
    let (_keep, node) = watch::channel(Some(Node { spec: Some(spec), ..Node::default() }));
    pass_pod_cidr(runtime, node).await;
}

/// All ranges of the node, the primary first.
fn pod_cidr(node: &Node) -> String {
    let Some(spec) = &node.spec else { return String::new() };
    match &spec.pod_cidrs {
        Some(all) if !all.is_empty() => all.join(","),
        _ => spec.pod_cidr.clone().unwrap_or_default(),
    }
}
