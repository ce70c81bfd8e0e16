//! `stoker run`: starts every room, gives it the handles it asks for, and stops when told.
//!
//! Order: what needs neither the runtime nor the API server, then the runtime, then the rest; nothing waits for the
//! API server, so static pods and rules in the kernel do not depend on it.

use std::sync::Arc;
use std::time::Duration;

use stoker_model::handle::EventSink;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::preflight::{PreflightError, check_host, lock, prepare_root};
use super::wiring::{WiringError, node_settings, service_config};
use super::{logging, systemd};
use crate::clock::Clock;
use crate::config::{
    ConfigError, Credentials, Flags, KubeconfigError, KubeletConfig, ServiceMode, StokerConfig, load,
    load_stoker_config, read_kubeconfig,
};
use crate::node::{self, NodeSettings};
use crate::runtime::{Runtime, RuntimeError, pause};
use crate::service::{self, ServiceError};
use crate::upstream::{self, ApiServer, Backoff, ConnectError, NodeApi, ServiceStore};

/// Changes of services that may wait for the data path.
const SERVICE_QUEUE: usize = 1024;
/// What may still be written after SIGTERM.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why the agent ended, or did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Wiring(#[from] WiringError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("the service data path: {0}")]
    Service(#[from] ServiceError),
    #[error("cannot start threads or take signals: {0}")]
    Start(#[from] std::io::Error),
    #[error("the task {0} ended although it must not: this is a bug, its log lines above tell more")]
    TaskEnded(&'static str),
}

/// Everything that was decided before anything started.
struct Decided {
    flags: Flags,
    kubelet: KubeletConfig,
    stoker: StokerConfig,
    node: Arc<NodeSettings>,
    clock: Clock,
}

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(flags: Flags, as_kubelet: bool) -> Result<(), RunError> {
    let loaded = load(flags.config.as_deref(), flags.config_dir.as_deref(), &flags.overrides, as_kubelet)?;
    let stoker = load_stoker_config(flags.stoker_config.as_deref())?;
    let verbosity = flags.verbosity.max(loaded.kubelet.logging.verbosity.into());
    logging::init(verbosity, stoker.log_format == "json" || loaded.kubelet.logging.format == "json");
    for warning in flags.warnings.iter().chain(&loaded.warnings) {
        tracing::warn!("{warning}");
    }
    check_host(&loaded.kubelet)?;
    let _lock = lock(&flags.lock_file)?;
    prepare_root(&flags.root_dir)?;
    let node = node_settings(&loaded.kubelet, &flags)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = node.name, addresses = ?node.addresses, "starting");
    // The first provider wins; nobody else sets one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let decided = Decided { flags, kubelet: loaded.kubelet, stoker, node, clock: Clock };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(start(decided));
    runtime.shutdown_timeout(LAST_WORDS);
    result
}

async fn start(decided: Decided) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut tasks = JoinSet::new();
    tokio::select! {
        result = wire(decided, &mut tasks) => result?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    systemd::tell(&[sd_notify::NotifyState::Ready]);
    let ended = tokio::select! {
        Some(ended) = tasks.join_next() => Some(ended),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    systemd::tell(&[sd_notify::NotifyState::Stopping]);
    match ended {
        Some(Ok(name)) => Err(RunError::TaskEnded(name)),
        Some(Err(panic)) => {
            tracing::error!(%panic, "a task died");
            Err(RunError::TaskEnded("that died"))
        }
        None => {
            tracing::info!("stopping; containers and rules stay");
            Ok(())
        }
    }
}

type Tasks = JoinSet<&'static str>;

fn spawn(tasks: &mut Tasks, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        task.await;
        name
    });
}

async fn wire(decided: Decided, tasks: &mut Tasks) -> Result<(), RunError> {
    let Decided { flags, kubelet, stoker, node, clock } = decided;
    spawn(tasks, "watchdog", systemd::watchdog());

    let credentials = read_kubeconfig(flags.kubeconfig.as_deref(), flags.bootstrap_kubeconfig.as_deref()).await?;
    let api = match credentials {
        Credentials::Standalone => {
            tracing::warn!("no --kubeconfig: only static pods run");
            None
        }
        Credentials::Cluster(config) => Some(ApiServer::new(&config)?),
    };

    let (events, event_task) = upstream::event_queue(clock, node.name.clone());
    let events: Arc<dyn EventSink> = Arc::new(events);
    let node_api = api.clone().map(|api| NodeApi::new(api, node.name.clone()));
    let node_object = match &node_api {
        Some(node_api) => {
            let (object, task) = node_api.watch();
            spawn(tasks, "node watch", task);
            object
        }
        None => standing_still(None),
    };

    let runtime = Runtime::connect(&kubelet.container_runtime_endpoint, kubelet.runtime_request_timeout.0)?;
    let (observer, task) = node::observe(node.clone(), runtime.clone(), node_object.clone(), clock);
    spawn(tasks, "node observer", task);
    spawn(tasks, "status line", status_line(node.name.clone(), observer.observations.clone()));

    if let (Some(api), Some(node_api)) = (&api, node_api) {
        spawn(tasks, "events", event_task(api.clone()).run());
        let lease = node::renew_lease(node_api.clone(), node.lease_seconds, clock);
        spawn(tasks, "lease", lease);
        let report =
            node::report(node.clone(), node_api, events.clone(), observer.observations.clone(), node_object, clock);
        spawn(tasks, "node reporter", report);
        let store = ServiceStore::default();
        let (changes, queue) = mpsc::channel(SERVICE_QUEUE);
        match stoker.service_proxy.mode {
            ServiceMode::Nftables => {
                let proxy =
                    service::spawn(queue, observer.facts.clone(), service_config(&stoker, &node.addresses)?, clock)?;
                spawn(tasks, "service data path", async move {
                    if let Err(error) = proxy.task.await {
                        tracing::error!(%error, "the service data path died");
                    }
                });
            }
            ServiceMode::None => spawn(tasks, "service drain", drain(queue)),
        }
        spawn(tasks, "service watch", upstream::watch_services(api.clone(), store, changes));
    }

    wait_for_runtime(&runtime, &kubelet.container_runtime_endpoint).await;
    match pause::ensure(&runtime).await {
        Ok(image) => tracing::debug!(?image, "sandbox image present"),
        // The runtime pulls it, or pods say what is missing.
        Err(error) => tracing::warn!(%error, "sandbox image not ensured"),
    }
    Ok(())
}

/// A `watch` whose value never changes.
fn standing_still<T>(value: T) -> watch::Receiver<T> {
    watch::channel(value).1
}

/// Environment variables need the services even where another program routes them.
async fn drain(mut queue: mpsc::Receiver<stoker_model::service::ServiceChange>) {
    while queue.recv().await.is_some() {}
}

/// Waits until the runtime answers, and says so while it does not.
async fn wait_for_runtime(runtime: &Runtime, endpoint: &str) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut told = false;
    loop {
        match runtime.version().await {
            Ok(version) => {
                tracing::info!(runtime = version.runtime_name, version = version.runtime_version, "runtime answers");
                return;
            }
            Err(error) if told => tracing::debug!(%error, endpoint, "the container runtime still does not answer"),
            Err(error) => {
                tracing::warn!(%error, endpoint, "waiting for the container runtime: is containerd running?");
                told = true;
            }
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

/// Keeps the line that `systemctl status` shows.
async fn status_line(name: String, mut seen: watch::Receiver<Option<Arc<node::Observation>>>) {
    loop {
        let ready = seen.borrow_and_update().as_ref().is_some_and(|seen| seen.is_ready());
        let line = format!("node {name} is {}", if ready { "ready" } else { "not ready" });
        systemd::tell(&[sd_notify::NotifyState::Status(&line)]);
        if seen.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
