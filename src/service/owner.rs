//! The one task that owns the kernel tables: it gathers what changed, decides (`model`, `diff`) and writes.
//!
//! What is queued when it wakes becomes one transaction. After a failure, and when somebody else wrote to our tables, it
//! reads them and writes the difference.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tracing::{Instrument as _, debug, info, warn};

use stoker_model::service::{NamespacedName, NodeFacts, ServiceChange};

use super::config::ServiceConfig;
use super::diff::{Batch, Operations, Table};
use super::frontend::ServiceRoutes;
use super::model::Model;
use super::nftables::{Heard, Kernel, Listener, NftError};
use crate::clock::{Clock, Now};

/// The first wait after a failure; it doubles up to the sync period.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Changes taken into one transaction at most: a bound on its size, far above what a cold start brings between two wakes.
const CHANGES_AT_ONCE: usize = 100_000;

/// How the data path is doing, for the health port (B2.1) and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// The oldest change that is not in the kernel yet. Older than twice the sync period means unhealthy.
    pub queued_since: Option<Now>,
    /// When the kernel last held everything that was wanted.
    pub last_updated: Option<Now>,
    /// Transactions sent to the kernel since the start.
    pub transactions: u64,
}

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The tables.
    #[error(transparent)]
    Nftables(#[from] NftError),
    /// The event loop.
    #[error("cannot watch the nftables socket")]
    Watch(#[source] io::Error),
}

/// The running data path.
#[derive(Debug)]
pub struct ServiceProxy {
    /// Newest wins.
    pub health: watch::Receiver<Health>,
    /// Ends when the sender of changes is dropped; the tables stay.
    pub task: tokio::task::JoinHandle<()>,
}

/// Starts the task that owns the kernel tables of the calling thread's network namespace. Must be called within a tokio
/// runtime. Nothing is read or written before the first [`ServiceChange::Complete`] (B1.2).
pub fn spawn(
    changes: mpsc::Receiver<ServiceChange>,
    node: NodeFacts,
    config: ServiceConfig,
    clock: Clock,
) -> Result<ServiceProxy, ServiceError> {
    let kernel = Kernel::open(config.clone())?;
    let (sender, health) = watch::channel(Health::default());
    let model = Model::new(Arc::clone(&node.borrow()));
    let owner = Owner {
        changes,
        model,
        node,
        kernel: Some(Programmer { kernel, table: Table::default() }),
        listener: None,
        doubt: Doubt::Elements,
        loaders: Vec::new(),
        retry: None,
        sync_period: config.sync_period,
        clock,
        health: sender,
    };
    let task = tokio::spawn(owner.run().instrument(tracing::info_span!("service")));
    Ok(ServiceProxy { health, task })
}

/// Removes our tables from the calling thread's network namespace; none there is success.
pub fn cleanup(config: &ServiceConfig) -> Result<(), ServiceError> {
    Ok(Kernel::open(config.clone())?.remove()?)
}

/// What the blocking writes need; it travels to the thread that makes them and back.
#[derive(Debug)]
struct Programmer {
    kernel: Kernel,
    table: Table,
}

#[derive(Debug)]
struct Owner {
    changes: mpsc::Receiver<ServiceChange>,
    node: NodeFacts,
    model: Model,
    /// `None` only while a write is under way.
    kernel: Option<Programmer>,
    listener: Option<AsyncFd<Listener>>,
    /// Netlink ports of nft processes whose echo may still come.
    loaders: Vec<u32>,
    /// What we know to be wrong with the kernel's tables.
    doubt: Doubt,
    /// After a failure: how long to wait for the next attempt.
    retry: Option<Duration>,
    sync_period: Duration,
    clock: Clock,
    health: watch::Sender<Health>,
}

/// How much of the kernel's tables has to be looked at before the next write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Doubt {
    /// Our table is what the kernel holds.
    None,
    /// Elements have to be read.
    Elements,
    /// The rules have to be loaded anew as well.
    Rules,
}

enum Wake {
    Change(ServiceChange),
    Node,
    Kernel,
    Retry,
    Stop,
}

impl Owner {
    async fn run(mut self) {
        loop {
            match self.next_wake().await {
                Wake::Stop => return,
                Wake::Change(change) => self.take(change),
                Wake::Node => {
                    let node = Arc::clone(&self.node.borrow_and_update());
                    self.model.set_node(node);
                }
                Wake::Kernel => self.hear(),
                Wake::Retry => {}
            }
            if self.model.is_complete() {
                self.synchronise().await;
            }
        }
    }

    async fn next_wake(&mut self) -> Wake {
        let heard = async {
            match &self.listener {
                // The guard is dropped at once: `hear` clears the readiness.
                Some(listener) => drop(listener.readable().await),
                None => std::future::pending().await,
            }
        };
        let retry = async {
            match self.retry {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            change = self.changes.recv() => change.map_or(Wake::Stop, Wake::Change),
            Ok(()) = self.node.changed() => Wake::Node,
            () = heard => Wake::Kernel,
            () = retry => Wake::Retry,
        }
    }

    /// Takes in a change and whatever else is queued behind it.
    fn take(&mut self, change: ServiceChange) {
        let now = self.clock.now();
        self.health.send_if_modified(|health| {
            health.queued_since.get_or_insert(now);
            false
        });
        self.model.apply(change);
        for _ in 0..CHANGES_AT_ONCE {
            let Ok(change) = self.changes.try_recv() else { break };
            self.model.apply(change);
        }
    }

    /// Looks at what happened in the kernel.
    fn hear(&mut self) {
        let Some(listener) = &self.listener else { return };
        // The guard first: what comes while we read makes the socket ready anew.
        let guard = listener.readable().now_or_never();
        let heard = listener.get_ref().foreign_changes(&self.loaders);
        if let Some(Ok(mut guard)) = guard {
            guard.clear_ready();
        }
        match heard {
            Ok(Heard::Nothing) => {}
            Ok(heard) => {
                info!(?heard, "somebody else changed our nftables tables: repairing them");
                self.doubt = self.doubt.max(if heard == Heard::Rules { Doubt::Rules } else { Doubt::Elements });
            }
            Err(error) => {
                warn!(%error, "cannot hear of changes to nftables tables");
                self.listener = None;
                self.doubt = self.doubt.max(Doubt::Elements);
            }
        }
    }

    /// Brings the kernel to what the model says.
    async fn synchronise(&mut self) {
        let dirty = self.model.take_dirty();
        if dirty.is_empty() && self.doubt == Doubt::None {
            self.report(None);
            return;
        }
        let Some(mut programmer) = self.kernel.take() else { return };
        let compiled: Vec<(NamespacedName, ServiceRoutes)> =
            dirty.iter().map(|name| (name.clone(), self.model.routes(name))).collect();
        let doubt = self.doubt;
        let written = tokio::task::spawn_blocking(move || {
            let result = programmer.write(compiled, doubt);
            (programmer, result)
        })
        .await;
        let (programmer, result) = match written {
            Ok(written) => written,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let loaders = self.kernel.insert(programmer).kernel.take_loaders();
        if !loaders.is_empty() {
            self.loaders = loaders;
        }
        self.finish(result, &dirty);
    }

    fn finish(&mut self, result: Result<Operations, NftError>, dirty: &BTreeSet<NamespacedName>) {
        let transactions = self.kernel.as_ref().map(|programmer| programmer.kernel.batches_sent());
        match result {
            Ok(operations) => {
                debug!(
                    services = dirty.len(),
                    deleted = operations.delete.len(),
                    added = operations.add.len(),
                    "written"
                );
                self.doubt = Doubt::None;
                self.retry = None;
                self.listen();
                self.report(transactions);
            }
            Err(error) => {
                let wait = self.retry.map_or(FIRST_RETRY, |wait| (wait * 2).min(self.sync_period));
                warn!(error = &error as &dyn std::error::Error, ?wait, "cannot write service rules; trying again");
                self.doubt = self.doubt.max(Doubt::Elements);
                self.retry = Some(wait);
            }
        }
    }

    /// Starts to hear of foreign changes. Only after the first write, whose echo would be large.
    fn listen(&mut self) {
        if self.listener.is_some() {
            return;
        }
        let Some(programmer) = &self.kernel else { return };
        let listener = programmer.kernel.listen().map_err(ServiceError::from);
        #[expect(
            deprecated,
            reason = "its successor is unsafe, and a listener owns the one descriptor that it ever returns"
        )]
        let watch = |listener| AsyncFd::with_interest(listener, Interest::READABLE).map_err(ServiceError::Watch);
        match listener.and_then(watch) {
            Ok(listener) => self.listener = Some(listener),
            Err(error) => warn!(error = &error as &dyn std::error::Error, "foreign changes will go unnoticed"),
        }
    }

    fn report(&self, transactions: Option<u64>) {
        let now = self.clock.now();
        self.health.send_modify(|health| {
            health.queued_since = None;
            health.last_updated = Some(now);
            health.transactions = transactions.unwrap_or(health.transactions);
        });
    }
}

impl Programmer {
    /// Exchanges the routes of some Services. Blocks for as long as the kernel takes.
    fn write(&mut self, compiled: Vec<(NamespacedName, ServiceRoutes)>, doubt: Doubt) -> Result<Operations, NftError> {
        let mut batch = Batch::default();
        for (name, routes) in compiled {
            self.table.set(&name, routes, &mut batch);
        }
        let operations = if doubt == Doubt::None {
            batch.into_operations()
        } else {
            self.kernel.prepare(doubt == Doubt::Rules)?;
            self.table.reconcile(self.kernel.read()?)
        };
        self.kernel.apply(&operations)?;
        Ok(operations)
    }
}
