//! `stoker cleanup`.

use std::path::Path;

use super::wiring::{WiringError, service_config};
use crate::config::{ConfigError, load_stoker_config};
use crate::dns::{self, AddressError};
use crate::network;
use crate::service::{self, ServiceError};

/// Why not everything could be removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CleanupError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Wiring(#[from] WiringError),
    #[error("service rules are left behind: {0}")]
    Service(#[from] ServiceError),
    #[error("rules or routes of the pod network are left behind: {0}")]
    Network(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cluster DNS addresses are left behind: {0}")]
    Dns(#[from] AddressError),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// Removes our tables, routes and tunnels from the kernel.
pub(super) fn cleanup(stoker_config: Option<&Path>) -> Result<(), CleanupError> {
    let config = load_stoker_config(stoker_config)?;
    // Whatever becomes of one, the others go.
    let rules = service::cleanup(&service_config(&config)?);
    let pods = network::cleanup();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(dns::cleanup())?;
    pods.map_err(CleanupError::Network)?;
    Ok(rules?)
}
