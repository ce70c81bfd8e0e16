//! Starts the rooms that work on stored objects: what every cluster has, the scheduler, the controllers.

use std::net::IpAddr;

use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::run::{RunError, RunOptions};
use crate::api::{Cluster, WriteOptions};

/// Starts them.
pub(super) async fn start(
    cluster: &Cluster,
    _options: &RunOptions,
    _advertise: IpAddr,
    _stop: &CancellationToken,
) -> Result<Vec<JoinHandle<()>>, RunError> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let namespace = json!({"metadata": {"name": name}});
        match cluster.objects("", "namespaces").create("", namespace, &WriteOptions::default()).await {
            Err(error) if !error.is_already_exists() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(Vec::new())
}
