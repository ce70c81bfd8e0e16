//! `stoker cleanup`.

use std::path::Path;

use super::wiring::{WiringError, service_config};
use crate::config::{ConfigError, load_stoker_config};
use crate::dns::{self, AddressError};
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
    #[error("cluster DNS addresses are left behind: {0}")]
    Dns(#[from] AddressError),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// Removes our tables and routes from the kernel.
pub(super) fn cleanup(stoker_config: Option<&Path>) -> Result<(), CleanupError> {
    let config = load_stoker_config(stoker_config)?;
    let rules = service::cleanup(&service_config(&config)?);
    // Whatever became of the rules.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(dns::cleanup())?;
    Ok(rules?)
}
