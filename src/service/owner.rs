//! The one task that owns the kernel tables.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use stoker_model::service::{NodeFacts, ServiceChange};

use super::config::ServiceConfig;
use super::model::Model;
use crate::clock::{Clock, Now};

/// How the data path is doing, for the health port (B2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// The oldest change that is not in the kernel yet.
    pub queued_since: Option<Now>,
    /// When the kernel last held everything that was wanted.
    pub last_updated: Option<Now>,
}

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {}

/// The running data path.
#[derive(Debug)]
pub struct ServiceProxy {
    /// Newest wins.
    pub health: watch::Receiver<Health>,
    /// Ends when the sender of changes is dropped; the tables stay.
    pub task: tokio::task::JoinHandle<()>,
}

/// Starts the task that owns the kernel tables of the calling thread's network namespace. Needs a tokio runtime.
pub fn spawn(
    mut changes: mpsc::Receiver<ServiceChange>,
    node: NodeFacts,
    config: ServiceConfig,
    clock: Clock,
) -> Result<ServiceProxy, ServiceError> {
    let (sender, health) = watch::channel(Health::default());
    let task = tokio::spawn(async move {
        let _ = (clock, config, sender);
        let mut model = Model::new(Arc::clone(&node.borrow()));
        while let Some(change) = changes.recv().await {
            model.apply(change);
        }
    });
    Ok(ServiceProxy { health, task })
}

/// Removes our tables from the calling thread's network namespace; none there is success.
pub fn cleanup(config: &ServiceConfig) -> Result<(), ServiceError> {
    let _ = config;
    Ok(())
}
