//! `stoker kube-proxy`: the service data path alone, called as kube-proxy is called (B2.7), for nodes that keep their kubelet.
//! A program of the name `kube-proxy` that is a link to ours is the same.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use stoker_model::handle::EventSink;
use stoker_model::service::{NodeFacts, NodeTopology};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::logging;
use super::preflight::kill_late;
use super::proxy::{self, Around, ProxyError, ProxyParts, ProxySettings};
use super::run::{SERVICE_QUEUE, Tasks, spawn};
use super::wiring::{Host, conntrack_settings};
use crate::clock::Clock;
use crate::config::{
    ConfigError, Credentials, KubeconfigError, LoadedProxy, StokerConfig, load_proxy_config, proxy_config_of,
    read_kubeconfig,
};
use crate::node::{AddressError, MachineError, choose_addresses, node_name};
use crate::service::leftovers::{self, LeftoverError};
use crate::service::{self, Mode, ServiceConfig, ServiceError};
use crate::upstream::{self, ApiServer, ConnectError, NodeApi, ServiceReaders, ServiceStore};

/// Events in a second, and at once: what kubelet allows itself by default.
const EVENT_PACE: (u32, u32) = (50, 100);

/// The Node may come later than the proxy; for so long its addresses are waited for.
const NODE_PATIENCE: u32 = 30;

/// Flags that stand for a field of the configuration, which `--config` takes the place of.
const FIELDS: &[(&str, &str, &str)] = &[
    (
        "proxy-mode",
        "/mode",
        "Which rules to write: nftables, ipvs, or iptables, in whose place nftables serves the same",
    ),
    ("cluster-cidr", "/clusterCIDR", "Ranges of pods; traffic from elsewhere to cluster IPs is masqueraded"),
    ("nodeport-addresses", "/nodePortAddresses", "Ranges of node addresses that accept NodePorts, or primary"),
    ("kubeconfig", "/clientConnection/kubeconfig", "File with the API server's address and credentials"),
    ("metrics-bind-address", "/metricsBindAddress", "Where metrics are served"),
    ("healthz-bind-address", "/healthzBindAddress", "Where health is served"),
];

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum KubeProxyError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("--v: {0:?} is no number")]
    Verbosity(String),
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error("nothing says where the API server is: give --kubeconfig, or clientConnection.kubeconfig in --config")]
    NoKubeconfig,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Name(#[from] MachineError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("service rules are left behind: {0}")]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Leftover(#[from] LeftoverError),
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    #[error("{0} ended, see above")]
    Ended(&'static str),
}

pub(super) fn command() -> Command {
    let text = |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("VALUE").help(help);
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    Command::new("kube-proxy")
        .display_name("Kubernetes")
        .version("v1.36.2")
        .about("Serve Services beside another kubelet, called as kube-proxy is called")
        .arg(text("config", "KubeProxyConfiguration v1alpha1 file; flags for its fields are ignored with it"))
        .arg(text("hostname-override", "Name of the Node, in place of the host's"))
        .arg(text("write-config-to", "Write the configuration that follows from the flags to a file, and end"))
        .arg(flag("init-only", "Set what only root may set, and end"))
        .arg(flag("cleanup", "Remove all rules, ours and kube-proxy's, and end"))
        .arg(Arg::new("v").short('v').long("v").value_name("LEVEL").help("How much to log, as klog counts"))
        .args(FIELDS.iter().map(|(name, _, help)| text(name, help)))
}

/// What the command line asks for.
#[derive(Debug)]
struct Asked {
    loaded: LoadedProxy,
    name: String,
    hostname: String,
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), KubeProxyError> {
    let verbosity = matches
        .get_one::<String>("v")
        .map_or(Ok(0), |level| level.parse().map_err(|_| KubeProxyError::Verbosity(level.clone())))?;
    logging::init(verbosity, false, None);
    if matches.get_flag("cleanup") {
        return cleanup();
    }
    let asked = asked(matches)?;
    for warning in &asked.loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(path) = matches.get_one::<String>("write-config-to") {
        return write_config(Path::new(path), &asked.loaded);
    }
    if matches.get_flag("init-only") {
        conntrack_settings(&asked.loaded.proxy).apply();
        return Ok(());
    }
    kill_late(asked.loaded.proxy.oom_score_adj);
    // The first provider wins; nobody else sets one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(asked))
}

fn asked(matches: &ArgMatches) -> Result<Asked, KubeProxyError> {
    let value = |name: &str| matches.get_one::<String>(name).filter(|value| !value.is_empty());
    let fields = fields(value);
    let mut loaded = match value("config") {
        Some(path) => {
            let mut loaded = load_proxy_config(Path::new(path))?;
            let ignored = FIELDS.iter().filter(|(name, ..)| value(name).is_some());
            loaded.warnings.extend(ignored.map(|(name, ..)| format!("--{name} has no effect: {path} decides it")));
            // Here the file's own connection is the one in use, and the process is the proxy's alone.
            let counts = ["clientConnection.kubeconfig has", "oomScoreAdj has"];
            loaded.warnings.retain(|warning| !counts.iter().any(|field| warning.contains(field)));
            loaded
        }
        None => proxy_config_of("flags".as_ref(), fields)?,
    };
    if let Some(name) = value("hostname-override") {
        loaded.proxy.hostname_override.clone_from(name);
    }
    let said = Some(loaded.proxy.hostname_override.as_str()).filter(|name| !name.is_empty());
    let (name, hostname) = node_name(said)?;
    Ok(Asked { loaded, name, hostname })
}

/// The configuration that follows from the flags alone.
fn fields<'a>(value: impl Fn(&str) -> Option<&'a String>) -> Value {
    let mut fields = json!({ "clientConnection": {} });
    for (name, pointer, _) in FIELDS {
        let Some(value) = value(name) else { continue };
        let value = match *name {
            "nodeport-addresses" => value.split(',').map(str::trim).collect(),
            _ => json!(value),
        };
        match pointer.strip_prefix("/clientConnection/") {
            Some(field) => fields["clientConnection"][field] = value,
            None => fields[pointer.trim_start_matches('/')] = value,
        }
    }
    fields
}

fn write_config(path: &Path, loaded: &LoadedProxy) -> Result<(), KubeProxyError> {
    let failed = |source| KubeProxyError::Write { path: path.to_owned(), source };
    let text = serde_yaml_ng::to_string(&loaded.proxy).map_err(|error| failed(io::Error::other(error)))?;
    std::fs::write(path, text).map_err(failed)
}

/// What a kubelet keeps in iptables stays: it is another program's.
fn cleanup() -> Result<(), KubeProxyError> {
    service::cleanup(&ServiceConfig::default())?;
    let found = leftovers::remove(Some(Mode::Nftables));
    for removed in found.removed {
        println!("removed {removed}");
    }
    found.errors.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}

async fn serve(Asked { loaded, name, hostname }: Asked) -> Result<(), KubeProxyError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let path = PathBuf::from(&loaded.proxy.client_connection.kubeconfig);
    let Credentials::Cluster(config) = read_kubeconfig(Some(&path), None, |_| true).await? else {
        return Err(KubeProxyError::NoKubeconfig);
    };
    let api = ApiServer::new(&config)?;
    let mut tasks = Tasks::new();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = name, "serving Services in kube-proxy's place");
    let work = async {
        let addresses = match addresses_of(&api, &name).await {
            Some(addresses) => addresses,
            None => choose_addresses(None, &hostname)?,
        };
        let host = Host { name: name.clone(), addresses };
        start(loaded, host, api, &mut tasks)?;
        match tasks.join_next().await {
            Some(Ok(ended)) => Err(KubeProxyError::Ended(ended)),
            _ => Err(KubeProxyError::Ended("a task that died")),
        }
    };
    let result = tokio::select! {
        result = work => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    tracing::info!("stopping; rules stay");
    result
}

fn start(loaded: LoadedProxy, host: Host, api: ApiServer, tasks: &mut Tasks) -> Result<(), KubeProxyError> {
    let (events, event_task) = upstream::event_queue(Clock, host.name.clone(), EVENT_PACE);
    let events: Arc<dyn EventSink> = Arc::new(events);
    spawn(tasks, "events", event_task(api.clone()).run());
    let (object, task) = NodeApi::new(api.clone(), host.name.clone()).watch();
    spawn(tasks, "node watch", task);
    let (facts, task) = facts(host.clone(), object.clone());
    spawn(tasks, "node facts", task);
    let (changes, queue) = mpsc::channel(SERVICE_QUEUE);
    // We are what would be looked for among the pods, and kube-proxy's identity may not list them.
    let pods = watch::channel(Some(Arc::default())).1;
    let parts = ProxyParts {
        settings: ProxySettings { proxy: loaded.proxy, from_file: true },
        stoker: StokerConfig::default(),
        host,
        changes: queue,
        facts,
        object,
        around: Around { api: api.clone(), events, pods },
        clock: Clock,
    };
    spawn(tasks, "service data path", proxy::start(parts)?);
    let watch = upstream::watch_services(&api, ServiceStore::default(), changes, ServiceReaders::DataPath)?;
    spawn(tasks, "service watch", watch);
    Ok(())
}

/// The addresses of the Node, as soon as it has some; `None` where it has none after a while.
async fn addresses_of(api: &ApiServer, name: &str) -> Option<Vec<IpAddr>> {
    for _ in 0..NODE_PATIENCE {
        match upstream::fetch_topology(api, name).await {
            Ok(topology) if !topology.ips.is_empty() => return Some(topology.ips),
            Ok(_) => tracing::info!("the Node has no addresses yet"),
            Err(error) => tracing::warn!(%error, "the Node cannot be read"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tracing::warn!("the Node has no addresses: taking those of this machine");
    None
}

/// What the data path has to know of the node, and the task that keeps it up to date.
fn facts(host: Host, mut object: watch::Receiver<Option<Node>>) -> (NodeFacts, impl Future<Output = ()> + Send) {
    let of = move |node: Option<&Node>| {
        let labels = node.and_then(|node| node.metadata.labels.as_ref());
        let zone = labels.and_then(|labels| labels.get("topology.kubernetes.io/zone")).filter(|zone| !zone.is_empty());
        NodeTopology {
            name: host.name.as_str().into(),
            zone: zone.map(|zone| zone.as_str().into()),
            ips: host.addresses.clone(),
        }
    };
    let (publish, facts) = watch::channel(Arc::new(of(None)));
    let task = async move {
        while object.changed().await.is_ok() {
            let now = of(object.borrow_and_update().as_ref());
            publish.send_if_modified(|before| {
                let changed = **before != now;
                *before = Arc::new(now);
                changed
            });
        }
        std::future::pending().await
    };
    (facts, task)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_by(line: &str) -> Result<Asked, KubeProxyError> {
        asked(&command().try_get_matches_from(line.split(' ')).expect("accepted"))
    }

    #[test]
    fn flags_stand_for_fields_unless_there_is_a_file() {
        // B2.7
        let line = "kube-proxy --hostname-override=n1 --proxy-mode nftables --cluster-cidr=10.244.0.0/16,fd00::/56 \
            --nodeport-addresses=192.0.2.0/24,10.0.0.0/8 --kubeconfig=/k --metrics-bind-address=0.0.0.0 \
            --healthz-bind-address=127.0.0.1:10300 --v=3";
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let Asked { loaded, name, .. } = asked_by(&line).expect("all of it makes sense");
        let proxy = &loaded.proxy;
        assert_eq!((name.as_str(), proxy.mode.as_str()), ("n1", "nftables"));
        assert_eq!(proxy.cluster_cidr, "10.244.0.0/16,fd00::/56");
        assert_eq!(proxy.node_port_addresses, ["192.0.2.0/24", "10.0.0.0/8"]);
        assert_eq!(proxy.client_connection.kubeconfig, "/k");
        assert_eq!(proxy.metrics_bind_address, "0.0.0.0:10249", "the port is filled in");
        assert_eq!(proxy.healthz_bind_address, "127.0.0.1:10300");

        let file = tempfile::NamedTempFile::new().expect("a file");
        write_config(file.path(), &loaded).expect("it is written");
        let line =
            format!("kube-proxy --config={} --cluster-cidr=10.9.0.0/16 --hostname-override=n2", file.path().display());
        let Asked { loaded: again, name, .. } = asked_by(&line).expect("what was written is taken");
        assert_eq!((again.proxy.cluster_cidr.as_str(), name.as_str()), ("10.244.0.0/16,fd00::/56", "n2"));
        let told: Vec<&String> =
            again.warnings.iter().filter(|warning| warning.starts_with("--cluster-cidr")).collect();
        assert_eq!(told.len(), 1, "{:?}", again.warnings);
        assert!(!again.warnings.iter().any(|warning| warning.contains("kubeconfig")), "{:?}", again.warnings);
    }

    /// B1.25: the zone that hints name is that of the Node's label, also when it comes later.
    #[tokio::test]
    async fn the_zone_is_that_of_the_nodes_label() {
        let host = Host { name: "n".into(), addresses: vec!["192.0.2.1".parse().expect("an address")] };
        let (publish, object) = watch::channel(None);
        let (mut facts, task) = facts(host, object);
        let task = tokio::spawn(task);
        assert_eq!((facts.borrow().zone.clone(), facts.borrow().ips.len()), (None, 1));
        for (zone, expected) in [("zone-a", Some("zone-a")), ("", None), ("zone-b", Some("zone-b"))] {
            let node = json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": zone}}});
            publish.send_replace(Some(serde_json::from_value(node).expect("a Node")));
            facts.changed().await.expect("it is told");
            assert_eq!(facts.borrow_and_update().zone.as_deref(), expected);
        }
        task.abort();
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (line, part) in [
            ("kube-proxy --cluster-cidr=10.0.0.0", "clusterCIDR"),
            ("kube-proxy --proxy-mode=userspace", "mode"),
            ("kube-proxy --nodeport-addresses=primary,10.0.0.0/8", "nodePortAddresses"),
            ("kube-proxy --healthz-bind-address=here", "healthzBindAddress"),
        ] {
            let error = asked_by(line).expect_err(line).to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
