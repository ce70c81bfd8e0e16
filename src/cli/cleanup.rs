//! `stoker cleanup`.

use crate::dns::{self, AddressError};
use crate::network;
use crate::service::leftovers::{self, LeftoverError};
use crate::service::{self, ServiceConfig, ServiceError};

/// Why not everything could be removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CleanupError {
    #[error("service rules are left behind: {0}")]
    Service(#[from] ServiceError),
    #[error("rules or routes of the pod network are left behind: {0}")]
    Network(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0}")]
    Leftover(#[from] LeftoverError),
    #[error("cluster DNS addresses are left behind: {0}")]
    Dns(#[from] AddressError),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    #[error("{0} things are left behind, see above")]
    Several(usize),
}

/// Removes our tables, routes, tunnels and virtual servers from the kernel, and what kube-proxy has left in any of its modes. One failure keeps
/// nothing else from being removed.
pub(super) fn cleanup() -> Result<(), CleanupError> {
    let mut errors: Vec<CleanupError> = Vec::new();
    errors.extend(service::cleanup(&ServiceConfig::default()).err().map(CleanupError::from));
    errors.extend(network::cleanup().err().map(CleanupError::Network));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    errors.extend(runtime.block_on(dns::cleanup()).err().map(CleanupError::from));
    let found = leftovers::remove(None);
    for removed in found.removed {
        println!("removed {removed}");
    }
    errors.extend(found.errors.into_iter().map(CleanupError::from));
    match errors.len() {
        0 | 1 => errors.pop().map_or(Ok(()), Err),
        several => {
            errors.iter().for_each(|error| eprintln!("stoker: {error}"));
            Err(CleanupError::Several(several))
        }
    }
}
