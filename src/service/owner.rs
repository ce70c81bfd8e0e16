//! The one task that owns the kernel tables: it gathers what changed, decides (`model`, `diff`) and writes.
//!
//! What is queued when it wakes becomes one transaction. After a failure, and when somebody else wrote to our tables, it
//! reads them and writes the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tracing::{Instrument as _, debug, info, warn};

use stoker_model::service::{NamespacedName, NodeFacts, ServiceChange};

use super::config::{Cidr, Mode, ServiceConfig};
use super::conntrack::Conntrack;
use super::data_path::{DataPath, Doubt, Listener, Listening};
use super::diff::{Batch, Operations, Table};
use super::frontend::{Family, Problem, ServiceRoutes};
use super::ipvs::{IpvsError, IpvsPath};
use super::metrics::{Extent, Metrics};
use super::model::Model;
use super::nftables::{Kernel, NftError};
use crate::clock::{Clock, Now};

/// The first wait after a failure; it doubles up to the sync period.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Changes taken into one transaction at most: a bound on its size, far above what a cold start brings between two wakes.
const CHANGES_AT_ONCE: usize = 100_000;

/// From one transaction to the next at least: what changes meanwhile goes into one. The first change after a quiet time waits for nothing,
/// and no connection notices so short a wait (a new Service has 20 ms to answer).
const GATHER: Duration = Duration::from_millis(10);
/// So many elements are written in some ten microseconds, by the task itself.
const BRIEF: usize = 100;

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

/// The health-check ports of Services with `externalTrafficPolicy: Local` (B1.14).
pub type HealthChecks = Arc<BTreeMap<NamespacedName, HealthCheck>>;

/// What of which Service could not be done; the rest of it was.
pub type Problems = Arc<BTreeMap<NamespacedName, Troubled>>;

/// A Service of which not all could be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Troubled {
    /// Its UID, for events.
    pub uid: Arc<str>,
    /// What could not be done.
    pub problems: Vec<Problem>,
}

/// What the health-check port of one Service has to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

/// Who serves the Services of this node (B2.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Turn {
    /// We do.
    #[default]
    Ours,
    /// Nobody knows yet: nothing is written, and what is there stays.
    Unknown,
    /// Another proxy does: our rules go.
    Theirs,
}

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The tables.
    #[error(transparent)]
    Nftables(#[from] NftError),
    /// The virtual servers.
    #[error(transparent)]
    Ipvs(#[from] IpvsError),
}

/// The running data path.
#[derive(Debug)]
pub struct ServiceProxy {
    /// Newest wins.
    pub health: watch::Receiver<Health>,
    /// Newest wins: what the load balancers' health checks are to be told.
    pub health_checks: watch::Receiver<HealthChecks>,
    /// Newest wins: `spec.cidrs` of all ServiceCIDRs, to be told by who watches them (B1.1, B1.13).
    pub service_ranges: watch::Sender<Arc<BTreeSet<String>>>,
    /// Newest wins: whether the data path may work, to be told by who knows of other proxies.
    pub turn: watch::Sender<Turn>,
    /// Newest wins: what of which Service could not be done.
    pub problems: watch::Receiver<Problems>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
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
    let path = open(&config, clock)?;
    let conntrack = Conntrack::open().map_err(NftError::Open)?;
    let (sender, health) = watch::channel(Health::default());
    let (checks, health_checks) = watch::channel(HealthChecks::default());
    let (service_ranges, ranges) = watch::channel(Arc::default());
    let (turn, turns) = watch::channel(Turn::default());
    let (trouble, problems) = watch::channel(Problems::default());
    let metrics = Arc::new(Metrics::new(config.families.clone(), clock.now()));
    let model = Model::new(Arc::clone(&node.borrow()));
    let owner = Owner {
        changes,
        model,
        node,
        programmer: Some(Programmer {
            path,
            conntrack,
            table: Table::default(),
            local: Vec::new(),
            problems: Vec::new(),
            families: config.families.clone(),
            metrics: Arc::clone(&metrics),
            clock,
        }),
        listener: None,
        doubt: Doubt::Elements,
        retry: None,
        tend: None,
        new_ranges: Some(config.service_cidrs.iter().copied().collect()),
        configured_ranges: config.service_cidrs,
        service_ranges: ranges,
        turn: turns,
        away: false,
        written: None,
        sync_period: config.sync_period,
        clock,
        health: sender,
        checks,
        problems: trouble,
        metrics: Arc::clone(&metrics),
    };
    let task = tokio::spawn(owner.run().instrument(tracing::info_span!("service")));
    Ok(ServiceProxy { health, health_checks, service_ranges, turn, problems, metrics, task })
}

/// The data path that the operator chose.
fn open(config: &ServiceConfig, clock: Clock) -> Result<Box<dyn DataPath>, ServiceError> {
    Ok(match config.mode {
        Mode::Nftables => Box::new(Kernel::open(config.clone())?),
        Mode::Ipvs => Box::new(IpvsPath::open(config.clone(), clock)?),
    })
}

/// Removes our tables from the calling thread's network namespace; none there is success.
pub fn cleanup(config: &ServiceConfig) -> Result<(), ServiceError> {
    Ok(Kernel::open(config.clone())?.remove()?)
}

/// What a write brought.
#[derive(Debug)]
struct Written {
    operations: Operations,
    tend: Option<Duration>,
    listener: Option<Listening>,
    missed: Doubt,
}

/// A listener that tokio can watch.
#[derive(Debug)]
struct Ears(Box<dyn Listener>);

impl std::os::fd::AsRawFd for Ears {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// What the blocking writes need; it travels to the thread that makes them and back.
#[derive(Debug)]
struct Programmer {
    path: Box<dyn DataPath>,
    conntrack: Conntrack,
    table: Table,
    /// The node's own addresses.
    local: Vec<IpAddr>,
    /// Of the Services that the last write concerned.
    problems: Vec<(NamespacedName, Vec<Problem>)>,
    families: Vec<Family>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

#[derive(Debug)]
struct Owner {
    changes: mpsc::Receiver<ServiceChange>,
    node: NodeFacts,
    model: Model,
    /// `None` only while a write is under way.
    programmer: Option<Programmer>,
    listener: Option<AsyncFd<Ears>>,
    /// What we know to be wrong with the kernel's tables.
    doubt: Doubt,
    /// After a failure: how long to wait for the next attempt.
    retry: Option<Duration>,
    /// When the data path wants to be called again.
    tend: Option<Duration>,
    /// Ranges of cluster IPs that the operator named.
    configured_ranges: Vec<Cidr>,
    /// Ranges of cluster IPs that are to be written.
    new_ranges: Option<BTreeSet<Cidr>>,
    turn: watch::Receiver<Turn>,
    /// Our rules are gone, since another proxy serves.
    away: bool,
    /// When the last transaction was through.
    written: Option<Now>,
    sync_period: Duration,
    clock: Clock,
    health: watch::Sender<Health>,
    service_ranges: watch::Receiver<Arc<BTreeSet<String>>>,
    checks: watch::Sender<HealthChecks>,
    problems: watch::Sender<Problems>,
    metrics: Arc<Metrics>,
}

enum Wake {
    Change(ServiceChange),
    Node,
    Ranges,
    Kernel,
    Turn,
    Time,
    Stop,
}

impl Owner {
    async fn run(mut self) {
        loop {
            match self.next_wake().await {
                Wake::Stop => return,
                Wake::Change(change) => {
                    if let Some(wait) = self.gathering() {
                        // They wait in the queue, and wake nobody.
                        tokio::time::sleep(wait).await;
                    }
                    self.take(change);
                }
                Wake::Node => {
                    let node = Arc::clone(&self.node.borrow_and_update());
                    self.model.set_node(node);
                }
                Wake::Ranges => self.take_ranges(),
                Wake::Kernel => self.hear(),
                Wake::Turn | Wake::Time => {}
            }
            let turn = *self.turn.borrow_and_update();
            match turn {
                _ if !self.model.is_complete() => {}
                Turn::Ours => {
                    self.away = false;
                    self.synchronise().await;
                }
                Turn::Theirs if !self.away => self.stand_down().await,
                Turn::Theirs | Turn::Unknown => {}
            }
        }
    }

    /// Removes our rules: another proxy has its own. What is wanted is kept up to date, and written when it is our turn again.
    async fn stand_down(&mut self) {
        let Some(mut programmer) = self.programmer.take() else { return };
        self.listener = None;
        let removed = tokio::task::spawn_blocking(move || {
            let result = programmer.path.remove();
            (programmer, result)
        })
        .await;
        let (programmer, result) = match removed {
            Ok(removed) => removed,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.programmer = Some(programmer);
        self.doubt = Doubt::Rules;
        self.tend = None;
        self.health.send_modify(|health| *health = Health { transactions: health.transactions, ..Health::default() });
        self.checks.send_replace(HealthChecks::default());
        match result {
            Ok(()) => {
                info!("another proxy serves this node: our rules are gone");
                self.away = true;
                self.retry = None;
            }
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "our rules stay beside those of another proxy; trying again"
                );
                self.retry = Some(self.sync_period.max(FIRST_RETRY));
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
        // Sooner than it has to be is harmless: both are looked at again then.
        let time = async {
            match self.retry.into_iter().chain(self.tend).min() {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            change = self.changes.recv() => change.map_or(Wake::Stop, Wake::Change),
            Ok(()) = self.node.changed() => Wake::Node,
            Ok(()) = self.service_ranges.changed() => Wake::Ranges,
            Ok(()) = self.turn.changed() => Wake::Turn,
            () = heard => Wake::Kernel,
            () = time => Wake::Time,
        }
    }

    /// How long to wait for more changes, where a transaction was only just written.
    fn gathering(&self) -> Option<Duration> {
        let written = self.written.filter(|_| self.model.is_complete())?;
        let passed = self.clock.now().monotonic.saturating_sub(written.monotonic);
        GATHER.checked_sub(passed).filter(|left| !left.is_zero())
    }

    /// Takes in a change and whatever else is queued behind it.
    fn take(&mut self, change: ServiceChange) {
        let now = self.clock.now();
        self.metrics.changed(&change, now);
        self.model.apply(change);
        for _ in 0..CHANGES_AT_ONCE {
            let Ok(change) = self.changes.try_recv() else { break };
            self.metrics.changed(&change, now);
            self.model.apply(change);
        }
    }

    /// Takes in the ranges of cluster IPs, beside those that are configured.
    fn take_ranges(&mut self) {
        let texts = Arc::clone(&self.service_ranges.borrow_and_update());
        let mut ranges: BTreeSet<Cidr> = self.configured_ranges.iter().copied().collect();
        for text in texts.iter() {
            match text.parse() {
                Ok(range) => _ = ranges.insert(range),
                Err(error) => warn!(%error, "a ServiceCIDR is left out"),
            }
        }
        self.new_ranges = Some(ranges);
    }

    /// Looks at what happened in the kernel.
    fn hear(&mut self) {
        let Some(listener) = &self.listener else { return };
        // The guard first: what comes while we read makes the socket ready anew.
        let guard = listener.readable().now_or_never();
        let heard = listener.get_ref().0.foreign_changes();
        if let Some(Ok(mut guard)) = guard {
            guard.clear_ready();
        }
        match heard {
            Ok(Doubt::None) => {}
            Ok(heard) => {
                info!(?heard, "somebody else changed our rules: repairing them");
                self.doubt = self.doubt.max(heard);
            }
            Err(error) => {
                warn!(%error, "cannot hear of changes to our rules");
                self.listener = None;
                self.doubt = self.doubt.max(Doubt::Elements);
            }
        }
    }

    /// Brings the kernel to what the model says.
    async fn synchronise(&mut self) {
        let dirty = self.model.take_dirty();
        let ranges = self.new_ranges.take();
        if dirty.is_empty() && ranges.is_none() && self.doubt == Doubt::None && self.tend.is_none() {
            self.report(None);
            return;
        }
        let now = self.clock.now();
        self.health.send_if_modified(|health| {
            health.queued_since.get_or_insert(now);
            false
        });
        let Some(mut programmer) = self.programmer.take() else { return };
        programmer.local.clone_from(&self.model.node().ips);
        let compiled: Vec<(NamespacedName, ServiceRoutes)> =
            dirty.iter().map(|name| (name.clone(), self.model.routes(name))).collect();
        self.note_checks(&compiled);
        compiled.iter().for_each(|(name, routes)| self.metrics.compiled(name, routes));
        let doubt = self.doubt;
        let listens = self.listener.is_some();
        let brief = listens && doubt == Doubt::None && ranges.is_none() && programmer.is_brief(&compiled);
        let write = move || {
            let result = programmer.write(compiled, ranges, doubt).and_then(|operations| {
                let tend = programmer.path.tend()?;
                let listener = if listens { None } else { programmer.listen() };
                let missed = programmer.path.missed();
                Ok(Written { operations, tend, listener, missed })
            });
            (programmer, result)
        };
        let (programmer, result) = if brief {
            write()
        } else {
            match tokio::task::spawn_blocking(write).await {
                Ok(written) => written,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        };
        let programmer = self.programmer.insert(programmer);
        self.written = Some(self.clock.now());
        let transactions = programmer.path.transactions();
        let problems = std::mem::take(&mut programmer.problems);
        self.note_problems(problems);
        // Where nothing was to be written, it was only time to tend what waits.
        if !dirty.is_empty() || doubt != Doubt::None {
            self.count(&result, doubt, now);
        }
        self.finish(result, dirty.len(), transactions);
    }

    fn count(&self, result: &Result<Written, ServiceError>, doubt: Doubt, begun: Now) {
        let now = self.clock.now();
        let extent = if doubt == Doubt::None { Extent::Partial } else { Extent::Full };
        match result {
            Ok(_) => self.metrics.written(extent, now.monotonic.saturating_sub(begun.monotonic), now),
            Err(_) => self.metrics.failed(),
        }
    }

    fn finish(&mut self, result: Result<Written, ServiceError>, services: usize, transactions: u64) {
        match result {
            Ok(Written { operations, tend, listener, missed }) => {
                debug!(services, deleted = operations.delete.len(), added = operations.add.len(), "written");
                self.doubt = Doubt::None;
                self.retry = None;
                self.tend = tend;
                self.look_again(missed);
                if let Some(listener) = listener {
                    self.listen(listener);
                }
                self.report(Some(transactions));
            }
            Err(error) => {
                let wait = self
                    .retry
                    .map_or(FIRST_RETRY, |wait| (wait * 2).clamp(FIRST_RETRY, self.sync_period.max(FIRST_RETRY)));
                warn!(error = &error as &dyn std::error::Error, ?wait, "cannot write service rules; trying again");
                self.doubt = self.doubt.max(Doubt::Elements);
                self.retry = Some(wait);
            }
        }
    }

    /// Starts to hear of foreign changes.
    fn listen(&mut self, (listener, missed): Listening) {
        #[expect(
            deprecated,
            reason = "its successor is unsafe, and a listener owns the one descriptor that it ever returns"
        )]
        let watched = AsyncFd::with_interest(Ears(listener), Interest::READABLE);
        match watched {
            Ok(listener) => self.listener = Some(listener),
            Err(error) => warn!(%error, "foreign changes will go unnoticed"),
        }
        self.look_again(missed);
    }

    fn look_again(&mut self, missed: Doubt) {
        if missed != Doubt::None {
            info!(?missed, "somebody else changed rules while ours were written: looking at them again");
            self.doubt = self.doubt.max(missed);
            self.retry = Some(Duration::ZERO);
        }
    }

    /// Publishes what could not be done, and logs what is new of it.
    fn note_problems(&self, reported: Vec<(NamespacedName, Vec<Problem>)>) {
        self.problems.send_if_modified(|all| {
            let mut modified = false;
            for (name, problems) in reported {
                let before = all.get(&name).map_or(&[][..], |troubled| troubled.problems.as_slice());
                if before == problems {
                    continue;
                }
                for problem in problems.iter().filter(|problem| !before.contains(problem)) {
                    warn!(service = %format_args!("{}/{}", name.namespace, name.name), %problem, "not all of it is done");
                }
                let all = Arc::make_mut(all);
                let uid = self.model.service(&name).map(|service| Arc::from(&*service.metadata.uid));
                match uid {
                    Some(uid) if !problems.is_empty() => all.insert(name, Troubled { uid, problems }),
                    _ => all.remove(&name),
                };
                modified = true;
            }
            modified
        });
    }

    /// Publishes the health-check ports, if any of them changed (B1.14).
    fn note_checks(&self, compiled: &[(NamespacedName, ServiceRoutes)]) {
        self.checks.send_if_modified(|checks| {
            let mut modified = false;
            for (name, routes) in compiled {
                let before = checks.get(name).copied();
                let after = routes.health_check.map(|(port, local_endpoints)| HealthCheck { port, local_endpoints });
                if before != after {
                    let checks = Arc::make_mut(checks);
                    match after {
                        Some(check) => _ = checks.insert(name.clone(), check),
                        None => _ = checks.remove(name),
                    }
                    modified = true;
                }
            }
            modified
        });
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
    /// Whether a write takes less time than to hand it to another thread and back: few elements, and no flows to search for.
    fn is_brief(&self, compiled: &[(NamespacedName, ServiceRoutes)]) -> bool {
        let elements = |routes: &ServiceRoutes| -> usize {
            routes.paths.iter().map(|path| path.route.backends().0.len() + path.allowed_sources.len() + 1).sum()
        };
        let mut all = 0;
        compiled.iter().all(|(name, routes)| {
            let before = self.table.service(name);
            all += elements(routes) + before.map_or(0, elements);
            all <= BRIEF && routes.serving.is_empty() && before.is_none_or(|before| before.serving.is_empty())
        })
    }

    /// Exchanges the routes of some Services. Blocks for as long as the kernel takes.
    fn write(
        &mut self,
        compiled: Vec<(NamespacedName, ServiceRoutes)>,
        ranges: Option<BTreeSet<Cidr>>,
        doubt: Doubt,
    ) -> Result<Operations, ServiceError> {
        let mut batch = if doubt == Doubt::None { Batch::default() } else { Batch::before_reconciling() };
        if let Some(ranges) = ranges {
            self.table.set_service_ranges(ranges, &mut batch);
        }
        self.table.reserve(compiled.len());
        for (name, routes) in compiled {
            self.table.set(&name, routes, &mut batch);
        }
        let problems = batch.take_reported().into_iter().map(|name| (self.table.problems(&name), name));
        self.problems = problems.map(|(problems, name)| (name, problems)).collect();
        let operations = if doubt == Doubt::None {
            let operations = batch.into_operations();
            self.path.apply(&self.table, &operations)?;
            operations
        } else {
            self.path.reconcile(&mut self.table, doubt)?
        };
        // After a restart nobody knows what went while we were away.
        if operations.stale_flows || doubt != Doubt::None {
            self.forget_stale_flows();
        }
        Ok(operations)
    }

    fn listen(&mut self) -> Option<Listening> {
        match self.path.listen() {
            Ok(listener) => listener,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "foreign changes will go unnoticed");
                None
            }
        }
    }

    /// Failing here costs some clients a wait for the kernel's own time-out, no more, so the next change tries again.
    fn forget_stale_flows(&mut self) {
        let serving = self.table.flow_frontends();
        for family in &self.families {
            let begun = self.clock.now();
            let forgotten = self.conntrack.forget_stale(*family, &serving, &self.local);
            let took = self.clock.now().monotonic.saturating_sub(begun.monotonic);
            self.metrics.searched(*family, *forgotten.as_ref().unwrap_or(&0), took);
            match forgotten {
                Ok(0) => {}
                Ok(flows) => debug!(flows, "stale flows deleted"),
                Err(error) => warn!(error = &error as &dyn std::error::Error, "stale flows may remain"),
            }
        }
    }
}
