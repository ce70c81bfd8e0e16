//! `stoker run`: starts every room, gives it the handles it asks for, and stops when told.
//!
//! Order: what needs neither the runtime nor the API server, then the runtime, then the rest; nothing waits for the
//! API server, so static pods and rules in the kernel do not depend on it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use stoker_model::handle::{
    AgentState, Authorizer, EventSink, EventSubject, EventType, MirrorApi, NodeFeed, ObjectApi, PodApi, PodFeed,
    ServiceLinks, ServingCertificates, StorageApi, TokenReviewer,
};
use stoker_model::names;
use stoker_model::pod::PodUid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::preflight::{PreflightError, check_host, limit_process, lock, prepare_root};
use super::proxy::{self, Around, ProxyError, ProxyParts, ProxySettings};
use super::reservations::enforcement;
use super::spans::{self, Destination, Exporter};
use super::standalone::{AlwaysAllow, Standalone};
use super::wiring::{
    Host, WiringError, cgroup_config, event_pace, eviction_settings, node_settings, pods_config, request_pace,
    resources_config, server_config, shutdown_settings,
};
use super::{cluster_dns, contention, credentials, images, reload, status};
use super::{logging, systemd};
use crate::cgroup::{CgroupDriver, CgroupError, Cgroups};
use crate::clock::Clock;
use crate::config::{
    ConfigError, Flags, KubeconfigError, KubeletConfig, PodNetwork, ServiceMode, StokerConfig, load, load_stoker_config,
};
use crate::node::eviction::{EvictionHandles, Pressures, evict};
use crate::node::{self, NodeSettings};
use crate::pod::{PodHandles, Pods};
use crate::resources::{Assignments, Machine, ResourcesError, serve_pod_resources};
use crate::runtime::gc::ImageCollector;
use crate::runtime::logs::rotate_logs;
use crate::runtime::{Runtime, RuntimeError, events as runtime_events, pause};
use crate::server;
use crate::upstream::{
    self, AccessReviews, Backoff, CertificateStore, ChangeDetection, ClaimReader, ConnectError, NodeApi, Objects,
    PodWriter, ServiceReaders, ServiceStore, ServingKeeper, Storage,
};
use crate::volume::Volumes;
use crate::volume::csi::{Drivers, watch_plugins};

/// Changes of services that may wait for the data path.
pub(super) const SERVICE_QUEUE: usize = 1024;
/// What may still be written after SIGTERM.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// And so long events that wait may take.
const LAST_EVENTS: Duration = Duration::from_secs(1);

/// Why the agent ended, or did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error(transparent)]
    Spans(#[from] spans::DestinationError),
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Wiring(#[from] WiringError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(transparent)]
    ClusterDns(#[from] cluster_dns::ClusterDnsError),
    #[error(transparent)]
    Images(#[from] images::ImagesError),
    #[error("the node's API: {0}")]
    Server(#[from] server::ServerError),
    #[error(transparent)]
    Network(#[from] crate::network::NetworkError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Resources(#[from] ResourcesError),
    #[error("the socket pod-resources/kubelet.sock: {0}; make its directory writable")]
    PodResources(std::io::Error),
    #[error("cannot start threads or take signals: {0}")]
    Start(#[from] std::io::Error),
    #[error(
        "there is no valid client certificate; kubectl get csr shows what was asked for, and the log above why not"
    )]
    NoCertificate,
    #[error("the task {0} ended although it must not: this is a bug, its log lines above tell more")]
    TaskEnded(&'static str),
}

/// Everything that was decided before anything started.
struct Decided {
    flags: Flags,
    kubelet: KubeletConfig,
    stoker: StokerConfig,
    proxy: ProxySettings,
    node: Arc<NodeSettings>,
    clock: Clock,
    as_kubelet: bool,
    /// The pods' supervisor, once it runs.
    supervised: Arc<OnceLock<Pods>>,
    /// What tells of events, once it is there.
    events: Arc<OnceLock<upstream::Events>>,
}

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(flags: Flags, as_kubelet: bool) -> Result<(), RunError> {
    let loaded = load(flags.config.as_deref(), flags.config_dir.as_deref(), &flags.overrides, as_kubelet)?;
    let stoker = load_stoker_config(flags.stoker_config.as_deref())?;
    let verbosity = flags.verbosity.max(loaded.kubelet.logging.verbosity.into());
    let tracing = &loaded.kubelet.tracing;
    let is_asked = !tracing.endpoint.is_empty() || tracing.sampling_rate_per_million > 0;
    let destination = is_asked.then(|| Destination::parse(&tracing.endpoint)).transpose()?;
    // Validation has seen that it is no negative number.
    let per_million = tracing.sampling_rate_per_million.try_into().unwrap_or_default();
    let (layer, ended) = destination.is_some().then(|| spans::layer(per_million)).unzip();
    logging::init(verbosity, stoker.log_format == "json" || loaded.kubelet.logging.format == "json", layer);
    let (proxy, proxy_warnings) = ProxySettings::load(flags.proxy_config.as_deref(), &stoker)?;
    for warning in flags.warnings.iter().chain(&loaded.warnings).chain(&proxy_warnings) {
        tracing::warn!("{warning}");
    }
    check_host(&loaded.kubelet)?;
    let _lock = lock(&flags.lock_file, flags.waits_for_lock)?;
    limit_process(&loaded.kubelet);
    prepare_root(&flags.root_dir)?;
    let node = node_settings(&loaded.kubelet, &flags)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = node.name, addresses = ?node.addresses, "starting");
    // The first provider wins; nobody else sets one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let exporter =
        destination.zip(ended).map(|(destination, spans)| Exporter { spans, destination, node: node.name.clone() });
    let decided = Decided {
        flags,
        kubelet: loaded.kubelet,
        stoker,
        proxy,
        node,
        clock: Clock,
        as_kubelet,
        supervised: Arc::default(),
        events: Arc::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(start(decided, exporter));
    runtime.shutdown_timeout(LAST_WORDS);
    result
}

async fn start(decided: Decided, exporter: Option<Exporter>) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let lock_file = decided.flags.exit_on_contention.then(|| decided.flags.lock_file.clone());
    let mut tasks = Tasks::new();
    // There are no pods before the runtime answers.
    let supervised = decided.supervised.clone();
    let watched = supervised.clone();
    let told = decided.events.clone();
    spawn(&mut tasks, "watchdog", systemd::watchdog(move || watched.get().is_none_or(Pods::is_alive)));
    let exporting = exporter.map(|exporter| tokio::spawn(exporter.run(stop.clone())));
    let reloading = reload::on_hangup(decided.flags.clone(), decided.kubelet.clone(), decided.as_kubelet);
    spawn(&mut tasks, "reload", reloading);
    let work = async {
        let mut config = resources_config(&decided.kubelet, &decided.flags.root_dir)?;
        if config.names_containers() {
            config.containers = containers_by_id(&decided.kubelet).await?;
        }
        let assignments = Assignments::start(config, Machine::read(Path::new("/sys")), stop.clone())?;
        let (decided, handles) = wire_node(decided, assignments, &mut tasks).await?;
        // Not later: a service manager that waits for us would give up on a machine whose runtime comes late.
        systemd::tell(&[sd_notify::NotifyState::Ready]);
        if let Err(error) = wire_pods(&decided, handles, &mut tasks, &stop).await {
            if let Some(events) = decided.events.get() {
                let text = error.to_string();
                events.publish(EventSubject::Node, EventType::Warning, "KubeletSetupFailed", text);
            }
            return Err(error);
        }
        match tasks.join_next().await {
            Some(Ok(credentials::HOPELESS)) => Err(RunError::NoCertificate),
            Some(Ok(name)) => Err(RunError::TaskEnded(name)),
            Some(Err(panic)) => {
                tracing::error!(%panic, "a task died");
                Err(RunError::TaskEnded("that died"))
            }
            None => Ok(()),
        }
    };
    let result = tokio::select! {
        result = work => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = contention::until_wanted(lock_file) => Ok(()),
    };
    tracing::info!("stopping; containers and rules stay");
    systemd::tell(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    if let Some(events) = told.get() {
        // The API server may be away.
        let _ = tokio::time::timeout(LAST_EVENTS, events.flush()).await;
    }
    if let Some(exporting) = exporting {
        // It limits itself.
        let _ = exporting.await;
    }
    result
}

pub(super) type Tasks = JoinSet<&'static str>;

pub(super) fn spawn(tasks: &mut Tasks, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        task.await;
        name
    });
}

/// What the pods and the node's API need of what was started before them.
struct NodeHandles {
    runtime: Runtime,
    pressures: watch::Sender<Pressures>,
    /// Whether the machine goes down.
    going_down: watch::Sender<bool>,
    node: NodeFeed,
    pods: PodFeed,
    api: Arc<dyn PodApi>,
    mirrors: Arc<dyn MirrorApi>,
    objects: Arc<dyn ObjectApi>,
    /// `None`: without an API server there are no claims.
    storage: Option<Arc<dyn StorageApi>>,
    services: Arc<dyn ServiceLinks>,
    assignments: Assignments,
    events: Arc<dyn EventSink>,
    authorizer: Arc<dyn Authorizer>,
    tokens: Option<Arc<dyn TokenReviewer>>,
    /// With `serverTLSBootstrap`.
    certificate: Option<ServingCertificates>,
    /// The attachable volumes in use, for the Node's status.
    volumes_in_use: watch::Sender<Vec<String>>,
}

/// Starts what waits for nothing: the node's own tasks, the watches, the service rules.
async fn wire_node(
    decided: Decided,
    assignments: Assignments,
    tasks: &mut Tasks,
) -> Result<(Decided, NodeHandles), RunError> {
    let Decided { flags, kubelet, stoker, proxy, node, clock, .. } = &decided;
    let api = credentials::connect(flags, kubelet, &node.name, tasks).await?;
    let (events, event_task) = upstream::event_queue(*clock, node.name.clone(), event_pace(kubelet));
    let events: Arc<dyn EventSink> = Arc::new(decided.events.get_or_init(|| events).clone());
    let resolv_conf = Some(Path::new(&kubelet.resolv_conf)).filter(|path| !path.as_os_str().is_empty());
    let is_v1 = !Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    node::warn_of_machine(events.as_ref(), is_v1, resolv_conf, &kubelet.cluster_domain);
    let mut runtime = Runtime::connect(&kubelet.container_runtime_endpoint, kubelet.runtime_request_timeout.0)?;
    if !kubelet.image_service_endpoint.is_empty() {
        runtime = runtime.with_images_at(&kubelet.image_service_endpoint)?;
    }

    let node_api = api.clone().map(|api| NodeApi::new(api, node.name.clone()));
    let node_object = match &node_api {
        Some(node_api) => {
            let (object, task) = node_api.watch();
            spawn(tasks, "node watch", task);
            object
        }
        None => watch::channel(None).1,
    };
    let (pressures, held) = watch::channel(Pressures::new());
    let devices = assignments.device_feed();
    let going_down = watch::Sender::new(false);
    let storage_ready = match &api {
        Some(api) => {
            let (sender, storage_ready) = watch::channel(false);
            let (storage, mut registered) = (Storage::new(api.clone(), node.name.clone()), node_object.clone());
            spawn(tasks, "CSINode", async move {
                if registered.wait_for(Option::is_some).await.is_ok() {
                    storage.ensure_csi_node().await;
                    sender.send_replace(true);
                }
                std::future::pending().await
            });
            storage_ready
        }
        None => watch::channel(true).1,
    };
    let signs = node::Signs { pressures: held, going_down: going_down.subscribe(), storage_ready };
    let (observer, task) = node::observe(node.clone(), runtime.clone(), node_object.clone(), devices, signs, *clock);
    spawn(tasks, "node observer", task);
    spawn(tasks, "status line", status_line(node.name.clone(), observer.observations.clone()));

    let store = api.as_ref().map(|_| ServiceStore::default());
    match status::listen(&flags.root_dir) {
        Ok(listener) => {
            let (observations, pods) = (observer.observations.clone(), decided.supervised.clone());
            let teller = status::Teller { node: node.name.clone(), observations, services: store.clone(), pods };
            spawn(tasks, "status socket", status::serve(listener, teller));
        }
        Err(error) => tracing::warn!(%error, "stoker status will find nobody"),
    }

    if kubelet.make_iptables_util_chains {
        spawn(tasks, "chains of iptables", crate::service::kubelet_chains::keep());
    }
    let (Some(api), Some(node_api)) = (api, node_api) else {
        tracing::warn!("no --kubeconfig: nothing but static pods can run");
        if stoker.pod_network != PodNetwork::None {
            tracing::warn!(
                "podNetwork has no effect without --kubeconfig: only the Node object has this node's podCIDRs"
            );
        }
        if !kubelet.pod_cidr.is_empty() {
            spawn(tasks, "pod range", node::pass_configured_cidr(runtime.clone(), kubelet.pod_cidr.clone()));
        }
        let offline = Arc::new(Standalone);
        let handles = NodeHandles {
            runtime,
            pressures,
            going_down,
            node: observer.snapshots,
            pods: watch::channel(Some(Arc::default())).1,
            api: offline.clone(),
            mirrors: offline.clone(),
            objects: offline.clone(),
            storage: None,
            services: offline.clone(),
            assignments,
            events,
            authorizer: offline,
            tokens: None,
            certificate: None,
            volumes_in_use: watch::Sender::default(),
        };
        return Ok((decided, handles));
    };

    if !kubelet.pod_cidr.is_empty() {
        tracing::warn!("podCIDR has no effect with --kubeconfig: the podCIDRs of the Node count");
    }
    spawn(tasks, "events", event_task(api.clone()).run());
    spawn(tasks, "kernel log", node::watch_oom(events.clone()));
    spawn(tasks, "pod range", node::pass_pod_cidr(runtime.clone(), node_object.clone()));
    spawn(tasks, "lease", node::renew_lease(node_api.clone(), node.lease_seconds, *clock));
    super::network::spawn(stoker, node, &api, (node_api.clone(), node_object.clone()), tasks).await?;
    let certificate = kubelet.server_tls_bootstrap.then(|| {
        let (publish, certificate) = watch::channel(None);
        let store = CertificateStore::serving(&flags.cert_dir);
        let (node, api, object) = (node.name.clone(), api.clone(), node_object.clone());
        spawn(tasks, "serving certificate", ServingKeeper { node, store, api, object, publish }.run());
        certificate
    });
    let object = node_object.clone();
    let detection = match kubelet.change_detection_strategy.as_str() {
        "Get" => ChangeDetection::Get,
        "Cache" => ChangeDetection::Cache(node_object.clone()),
        _ => ChangeDetection::Watch,
    };
    let volumes_in_use = watch::Sender::default();
    let seen = node::Seen { observations: observer.observations, volumes_in_use: volumes_in_use.subscribe() };
    let report = node::report(node.clone(), node_api, events.clone(), seen, node_object, *clock);
    spawn(tasks, "node reporter", report);
    // A heartbeat waits for nobody's turn, and events have their own.
    let api = api.paced(request_pace(kubelet));
    let (pods, task) = upstream::watch_pods(api.clone(), node.name.clone());
    spawn(tasks, "pod watch", task);

    let store = store.unwrap_or_default();
    let (changes, queue) = mpsc::channel(SERVICE_QUEUE);
    let (queue, dns) = cluster_dns::start(kubelet, stoker, queue, *clock).await?;
    let answers_dns = dns.is_some();
    if let Some(task) = dns {
        spawn(tasks, "cluster DNS", task);
    }
    match stoker.service_proxy.mode {
        ServiceMode::Nftables => {
            let parts = ProxyParts {
                settings: proxy.clone(),
                stoker: stoker.clone(),
                host: Host { name: node.name.clone(), addresses: node.addresses.clone() },
                changes: queue,
                facts: observer.facts,
                object,
                around: Around { api: api.clone(), events: events.clone(), pods: pods.clone() },
                clock: *clock,
            };
            spawn(tasks, "service data path", proxy::start(parts)?);
        }
        ServiceMode::None => {
            spawn(tasks, "service drain", drain(queue));
            let mut pods = pods.clone();
            spawn(tasks, "memory", super::memory::tend(move || super::memory::has_news(&mut pods)));
        }
    }
    let readers = if answers_dns { ServiceReaders::Dns } else { ServiceReaders::Pods };
    spawn(tasks, "service watch", upstream::watch_services(&api, store.clone(), changes, readers)?);

    let authorizer: Arc<dyn Authorizer> = if kubelet.authorization.mode == "AlwaysAllow" {
        Arc::new(AlwaysAllow)
    } else {
        Arc::new(AccessReviews::new(api.clone(), node.name.clone()))
    };
    let reviews = || -> Arc<dyn TokenReviewer> { Arc::new(AccessReviews::new(api.clone(), node.name.clone())) };
    assignments.use_claims_of(Arc::new(ClaimReader::new(api.clone(), node.name.clone())));
    let handles = NodeHandles {
        runtime,
        pressures,
        going_down,
        tokens: kubelet.authentication.webhook.enabled.then(reviews),
        node: observer.snapshots,
        pods,
        api: Arc::new(PodWriter::new(api.clone())),
        mirrors: Arc::new(PodWriter::new(api.clone())),
        objects: Arc::new(Objects::new(api.clone(), *clock).with_detection(detection)),
        storage: Some(Arc::new(Storage::new(api, node.name.clone()))),
        services: Arc::new(store),
        assignments,
        events,
        authorizer,
        certificate,
        volumes_in_use,
    };
    Ok((decided, handles))
}

/// Starts the pods and the node's API, when the runtime answers and has its sandbox image.
async fn wire_pods(
    decided: &Decided,
    handles: NodeHandles,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let Decided { flags, kubelet, stoker, node, clock, .. } = decided;
    let runtime = handles.runtime;
    wait_for_runtime(&runtime, &kubelet.container_runtime_endpoint).await;
    let cgroups = Cgroups::open(cgroup_config(kubelet, runtime_driver(&runtime).await))?;
    cgroups.make_tree()?;
    let enforce = node::enforce_allocatable(
        enforcement(kubelet)?,
        Arc::new(cgroups.clone()),
        handles.node.clone(),
        handles.events.clone(),
    );
    spawn(tasks, "node allocatable", enforce);
    if stoker.pod_network != PodNetwork::None {
        let garbage = super::network::collect_garbage(runtime.clone(), stoker.cni.state_dir.clone(), *clock);
        spawn(tasks, "network garbage", garbage);
    }
    let mut keep = Vec::new();
    match pause::ensure(&runtime).await {
        Ok(image) => {
            tracing::debug!(?image, "sandbox image present");
            keep.extend(image.pinned().map(str::to_owned));
        }
        // The runtime pulls it, or pods say what is missing.
        Err(error) => tracing::warn!(%error, "sandbox image not ensured"),
    }
    let mut volumes = Volumes::new(&flags.root_dir, handles.objects.clone()).with_events(handles.events.clone());
    let drivers = Drivers::default();
    if let Some(storage) = handles.storage.clone() {
        volumes = volumes.with_storage(storage, drivers.clone());
    }
    let registry = flags.root_dir.join("plugins_registry");
    let others = handles.assignments.plugins();
    // It ends with the agent.
    tokio::spawn(watch_plugins(registry, drivers, handles.storage, others, stop.clone()));
    spawn(tasks, "volumes in use", pass_on(volumes.in_use(), handles.volumes_in_use));
    let records = images::pull_records(kubelet, flags, *clock)?;
    let images = images::images(&runtime, kubelet, flags, records.clone())?;
    let collector =
        ImageCollector::new(runtime.clone(), images::image_policy(kubelet), keep, *clock).with_pulls(records);
    let reclaimer = collector.reclaimer();
    spawn(tasks, "image collector", collector.run(handles.events.clone()));
    spawn(tasks, "log rotation", rotate_logs(runtime.clone(), images::rotation_config(kubelet)?, *clock));
    let (eviction, events) = (eviction_settings(kubelet, flags)?, handles.events.clone());
    let disks = Arc::new(volumes.clone());
    let measured = disks.clone();
    let (told, node_feed) = (handles.pods.clone(), handles.node.clone());
    let pods = Pods::spawn(
        pods_config(kubelet, &flags.root_dir)?,
        PodHandles {
            images,
            events: runtime_events::spawn(runtime.clone(), stop.clone()),
            runtime: runtime.clone(),
            pods: handles.pods,
            node: handles.node,
            api: handles.api,
            mirrors: handles.mirrors,
            volumes,
            objects: handles.objects,
            services: handles.services,
            sink: handles.events,
            cgroups: cgroups.clone(),
            assignments: handles.assignments.clone(),
        },
        stop.clone(),
    );
    let pods = decided.supervised.get_or_init(|| pods).clone();
    serve_pod_resources(&flags.root_dir, Arc::new(pods.clone()), handles.assignments, stop.clone())
        .map_err(RunError::PodResources)?;
    let eviction_handles = EvictionHandles {
        runtime: runtime.clone(),
        usage: Arc::new(cgroups.clone()),
        disks,
        pods: Arc::new(pods.clone()),
        evictor: Arc::new(pods.clone()),
        images: reclaimer,
        events,
    };
    let shutdown = node::ShutdownHandles {
        pods: Arc::new(pods.clone()),
        evictor: Arc::new(pods.clone()),
        usage: Arc::new(cgroups.clone()),
        node: node_feed,
        told,
        events: eviction_handles.events.clone(),
        going_down: handles.going_down,
    };
    let shutdown = node::end_pods_at_shutdown(shutdown_settings(kubelet, &flags.root_dir), shutdown, *clock);
    spawn(tasks, "shutdown", shutdown);
    spawn(tasks, "eviction", evict(eviction, eviction_handles, handles.pressures, *clock));
    if kubelet.enable_server {
        let config = server_config(kubelet, flags, node, handles.certificate)?;
        let handles = server::Handles {
            pods: Arc::new(pods.clone()),
            authorizer: handles.authorizer,
            tokens: handles.tokens,
            usage: Arc::new(cgroups),
            disks: measured,
            probes: Arc::new(pods.clone()),
            agent: Arc::new(Agent(pods)),
            runtime,
        };
        // Without it there would be no logs and no exec: like kubelet, better no agent than half of one.
        let bound = server::Server::bind(config, handles).await?;
        spawn(tasks, "server", bound.run(stop.clone()));
    }
    Ok(())
}

/// What the node's API asks of the agent itself.
struct Agent(Pods);

impl AgentState for Agent {
    fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    fn set_verbosity(&self, level: i64) -> Result<(), String> {
        logging::set_verbosity(level)
    }
}

/// Environment variables need the services even where another program routes them.
async fn drain(mut queue: mpsc::Receiver<stoker_model::service::ServiceChange>) {
    while queue.recv().await.is_some() {}
}

/// The cgroup driver that the runtime uses; `None` where it does not tell (A12.9).
async fn runtime_driver(runtime: &Runtime) -> Option<CgroupDriver> {
    use crate::runtime::cri::CgroupDriver as Told;
    let answer = runtime.runtime_config().await.inspect_err(|error| {
        tracing::debug!(%error, "the runtime does not tell its cgroup driver: cgroupDriver counts");
    });
    match Told::try_from(answer.ok()?.linux?.cgroup_driver).ok()? {
        Told::Systemd => Some(CgroupDriver::Systemd),
        Told::Cgroupfs => Some(CgroupDriver::Cgroupfs),
    }
}

/// The runtime's containers by ID: the UID of their pod, and their name in it.
async fn containers_by_id(kubelet: &KubeletConfig) -> Result<BTreeMap<String, (PodUid, String)>, RunError> {
    let endpoint = &kubelet.container_runtime_endpoint;
    let runtime = Runtime::connect(endpoint, kubelet.runtime_request_timeout.0)?;
    wait_for_runtime(&runtime, endpoint).await;
    let all = runtime.list_containers(None).await?.into_iter();
    let named = all.filter_map(|container| {
        let label = |key: &str| container.labels.get(key).cloned();
        Some((container.id.clone(), (PodUid::new(&label(names::POD_UID)?), label(names::CONTAINER_NAME)?)))
    });
    Ok(named.collect())
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
/// The reporter of the node is there before the volumes are.
async fn pass_on(mut from: watch::Receiver<Vec<String>>, to: watch::Sender<Vec<String>>) {
    loop {
        to.send_replace(from.borrow_and_update().clone());
        if from.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

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
