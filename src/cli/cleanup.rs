//! `stoker cleanup`.

use std::path::Path;

use super::wiring::{WiringError, service_config};
use crate::config::{ConfigError, load_stoker_config};
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
}

/// Removes our tables from the kernel.
pub(super) fn cleanup(stoker_config: Option<&Path>) -> Result<(), CleanupError> {
    let config = load_stoker_config(stoker_config)?;
    service::cleanup(&service_config(&config, &[])?)?;
    Ok(())
}
