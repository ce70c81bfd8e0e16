//! `stoker cleanup`.

use std::path::Path;

use super::wiring::{WiringError, service_config};
use crate::config::{ConfigError, load_stoker_config};
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
}

/// Removes our tables, routes and tunnels from the kernel.
pub(super) fn cleanup(stoker_config: Option<&Path>) -> Result<(), CleanupError> {
    let config = load_stoker_config(stoker_config)?;
    // What fails first must not keep the rest from going.
    let services = service::cleanup(&service_config(&config)?);
    network::cleanup().map_err(CleanupError::Network)?;
    Ok(services?)
}
