//! Starts what kube-proxy would be: the service data path, its health and metrics, and the clean-up after other modes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod};
use stoker_model::handle::{EventSink, EventSubject, EventType, PodFeed};
use stoker_model::service::{NodeFacts, ServiceChange};
use tokio::sync::{mpsc, watch};

use super::memory;
use super::wiring::{Host, WiringError, conntrack_settings, service_config};
use crate::clock::Clock;
use crate::config::{ConfigError, KubeProxyConfig, ProxyMode, StokerConfig, load_proxy_config};
use crate::service::http::{BindError, ProxyState, serve_health, serve_health_checks, serve_metrics};
use crate::service::metrics::Metrics;
use crate::service::{self, Health, Mode, ServiceConfig, ServiceError, ServiceProxy, Turn, leftovers};
use crate::upstream::{self, ApiServer};

/// By this the cluster autoscaler takes a node out of load balancers before it deletes it.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

const KUBE_PROXY_RUNS: &str = "kube-proxy runs on this node, so the agent leaves Services to it and has removed its own rules: to have \
    the agent serve them, keep the DaemonSet kube-system/kube-proxy off this node (kubeadm: --skip-phases=addon/kube-proxy); to keep \
    kube-proxy, set serviceProxy.mode: none";

/// A kube-proxy that has just started needs so long to write its rules; connections need some rules of address translation in the kernel
/// at every moment.
const SETTLED: Duration = Duration::from_secs(10);

/// How services are served, as decided by files.
#[derive(Clone, Debug)]
pub(super) struct ProxySettings {
    /// The resolved KubeProxyConfiguration.
    pub(super) proxy: KubeProxyConfig,
    /// Whether a file said so; otherwise our own configuration adds to the defaults.
    pub(super) from_file: bool,
}

/// Why there is no proxy.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error(transparent)]
    Wiring(#[from] WiringError),
    #[error("the service data path: {0}")]
    Service(#[from] ServiceError),
}

impl ProxySettings {
    /// Reads `--proxy-config`; without one, kube-proxy's defaults in mode nftables. Also returns what is to be logged.
    pub(super) fn load(
        file: Option<&std::path::Path>,
        stoker: &StokerConfig,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let Some(path) = file else {
            return Ok((Self { proxy: KubeProxyConfig::without_file(), from_file: false }, Vec::new()));
        };
        let loaded = load_proxy_config(path)?;
        let mut warnings = loaded.warnings;
        let ours = &stoker.service_proxy;
        for (field, written) in [
            ("clusterCIDR", !ours.cluster_cidr.is_empty()),
            ("nodePortAddresses", !ours.node_port_addresses.is_empty()),
            ("masqueradeAll", ours.masquerade_all),
        ] {
            if written {
                warnings.push(format!(
                    "StokerConfiguration: serviceProxy.{field} has no effect: {} decides it",
                    path.display()
                ));
            }
        }
        match loaded.proxy.proxy_mode() {
            ProxyMode::InsteadOfIptables => warnings.push(format!(
                "{}: mode {:?} asks for iptables; services are served by nftables rules instead, on the same addresses",
                path.display(),
                loaded.proxy.mode
            )),
            ProxyMode::Ipvs => warnings.push(format!(
                "{}: mode ipvs is deprecated since Kubernetes 1.35; nftables serves the same services",
                path.display()
            )),
            ProxyMode::Nftables => {}
        }
        Ok((Self { proxy: loaded.proxy, from_file: true }, warnings))
    }
}

/// What the proxy is made of.
pub(super) struct ProxyParts {
    pub(super) settings: ProxySettings,
    pub(super) stoker: StokerConfig,
    pub(super) host: Host,
    pub(super) changes: mpsc::Receiver<ServiceChange>,
    pub(super) facts: NodeFacts,
    pub(super) object: watch::Receiver<Option<Node>>,
    pub(super) around: Around,
    pub(super) clock: Clock,
}

/// What the proxy has to do with beside the kernel.
#[derive(Clone)]
pub(super) struct Around {
    pub(super) api: ApiServer,
    pub(super) events: Arc<dyn EventSink>,
    /// The pods of this node, among which kube-proxy may be.
    pub(super) pods: PodFeed,
}

/// Starts it. The future that comes back runs as long as it does.
pub(super) fn start(parts: ProxyParts) -> Result<BoxFuture<'static, ()>, ProxyError> {
    conntrack_settings(&parts.settings.proxy).apply();
    let config = service_config(&parts.stoker, &parts.settings, &parts.host, &[])?;
    if parts.settings.proxy.detect_local_mode != "NodeCIDR" {
        let ProxyParts { changes, facts, .. } = parts;
        let proxy = service::spawn(changes, facts, config.clone(), parts.clock)?;
        return Ok(serve(proxy, config, parts.settings.proxy, parts.object, parts.around, parts.clock).boxed());
    }
    if config.mode == Mode::Ipvs && !service::ipvs::is_supported() {
        return Err(ServiceError::from(service::ipvs::IpvsError::NoKernelSupport).into());
    }
    Ok(start_with_ranges(parts).boxed())
}

/// With `detectLocalMode: NodeCIDR` nothing can be served before this node has its pod ranges.
async fn start_with_ranges(parts: ProxyParts) {
    let ProxyParts { settings, stoker, host, changes, facts, mut object, around, clock } = parts;
    let ranges = pod_ranges(&mut object).await;
    tracing::info!(?ranges, "traffic of these sources is local");
    let started = service_config(&stoker, &settings, &host, &ranges).map_err(ProxyError::from).and_then(|config| {
        let proxy = service::spawn(changes, facts, config.clone(), clock)?;
        Ok((proxy, config))
    });
    match started {
        Ok((proxy, config)) => serve(proxy, config, settings.proxy, object, around, clock).await,
        Err(error) => tracing::error!(%error, "services cannot be served"),
    }
}

/// The pod ranges of this node, as soon as it has some.
async fn pod_ranges(object: &mut watch::Receiver<Option<Node>>) -> Vec<String> {
    let mut told = false;
    loop {
        let ranges = object.borrow_and_update().as_ref().and_then(|node| node.spec.as_ref()?.pod_cidrs.clone());
        match ranges {
            Some(ranges) if !ranges.is_empty() => return ranges,
            _ if !told => tracing::warn!("detectLocalMode is NodeCIDR: waiting for podCIDRs of this node"),
            _ => {}
        }
        told = true;
        if object.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Runs as long as the data path does.
async fn serve(
    proxy: ServiceProxy,
    config: ServiceConfig,
    settings: KubeProxyConfig,
    object: watch::Receiver<Option<Node>>,
    Around { api, events, pods }: Around,
    clock: Clock,
) {
    let (publish, eligible) = watch::channel(false);
    let (mode, kept) = match config.mode {
        Mode::Nftables => ("nftables", Mode::Nftables),
        Mode::Ipvs => ("ipvs", Mode::Ipvs),
    };
    let state = ProxyState {
        health: proxy.health.clone(),
        eligible,
        families: config.families.clone(),
        sync_period: config.sync_period,
        metrics: Arc::clone(&proxy.metrics),
        mode,
        debugging: settings.enable_profiling.then_some(super::logging::set_verbosity as _),
        configz: serde_json::json!({ "kubeproxy.config.k8s.io": settings }).to_string().into(),
        started: clock.now(),
        clock,
    };
    let hard = settings.bind_address_hard_fail;
    // Before the lists are complete nothing is written, so that this comes in time.
    proxy.turn.send_replace(Turn::Unknown);
    let mut turn = proxy.turn.subscribe();
    let serving = async {
        while turn.wait_for(|turn| *turn == Turn::Ours).await.is_ok() {
            let checks =
                serve_health_checks(proxy.health_checks.clone(), config.node_port_addresses.clone(), state.clone());
            let leftovers = remove_leftovers(proxy.health.clone(), kept, pods.clone(), &state.metrics);
            tokio::select! {
                error = serve_health_in_time(settings.healthz_address(), hard, &state) => return Some(error),
                error = serve_metrics_in_time(settings.metrics_address(), hard, &state) => return Some(error),
                () = checks => {}
                () = leftovers => {}
                // The ports are another's then, too.
                _ = turn.wait_for(|turn| *turn != Turn::Ours) => {}
            }
        }
        None
    };
    tokio::select! {
        ended = proxy.task => if let Err(error) = ended {
            tracing::error!(%error, "the service data path died");
        },
        ended = serving => if let Some(error) = ended {
            tracing::error!(%error, "ending");
        },
        () = give_back(proxy.health.clone(), pods.clone()) => {}
        () = take_turns(pods.clone(), &proxy.turn, &events, SETTLED) => {}
        () = watch_ranges(api, proxy.service_ranges) => {}
        () = super::service::tell_problems(proxy.problems, events.clone()) => {}
        () = watch_eligibility(object, publish) => {}
    }
}

/// What changes of Services and pods needed meanwhile goes back to the kernel, from when the lists are taken in.
async fn give_back(mut health: watch::Receiver<Health>, mut pods: PodFeed) {
    if health.wait_for(|health| health.last_updated.is_some()).await.is_err() {
        return std::future::pending().await;
    }
    let mut done = None;
    memory::tend(|| {
        let written = Some(health.borrow().transactions);
        memory::has_news(&mut pods) | (done.replace(written) != Some(written))
    })
    .await;
}

async fn serve_health_in_time(address: Option<SocketAddr>, hard: bool, state: &ProxyState) -> BindError {
    let Some(address) = address else { return std::future::pending().await };
    let Err(error) = serve_health(address, hard, state.clone()).await;
    error
}

async fn serve_metrics_in_time(address: Option<SocketAddr>, hard: bool, state: &ProxyState) -> BindError {
    let Some(address) = address else { return std::future::pending().await };
    let Err(error) = serve_metrics(address, hard, state.clone()).await;
    error
}

/// Publishes whether load balancers should send traffic to this node (B2.1).
async fn watch_eligibility(mut object: watch::Receiver<Option<Node>>, publish: watch::Sender<bool>) {
    loop {
        let eligible = object.borrow_and_update().as_ref().is_some_and(is_eligible);
        publish.send_if_modified(|before| std::mem::replace(before, eligible) != eligible);
        if object.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn is_eligible(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_none() && !taints.any(|taint| taint.key == TO_BE_DELETED)
}

/// Ends only with the agent, as every task does.
async fn watch_ranges(api: ApiServer, ranges: watch::Sender<Arc<BTreeSet<String>>>) {
    upstream::watch_service_ranges(api, ranges).await;
    std::future::pending().await
}

/// Whether a pod is kubeadm's kube-proxy, and has not ended (B2.6).
fn is_kube_proxy(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.namespace.as_deref() == Some("kube-system")
        && labels.and_then(|labels| labels.get("k8s-app")).is_some_and(|app| app == "kube-proxy")
        && !matches!(ended, Some("Succeeded" | "Failed"))
}

/// Whether it is at work.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Two proxies are never at work here: while kubeadm's kube-proxy is ready on this node, the services are left to it, and the operator
/// is told (B2.6).
async fn take_turns(mut pods: PodFeed, turn: &watch::Sender<Turn>, events: &Arc<dyn EventSink>, settled: Duration) {
    let mut waited = false;
    loop {
        let serves = |pods: &Arc<_>| {
            let pods: &BTreeMap<_, Arc<Pod>> = pods;
            pods.values().any(|pod| is_kube_proxy(pod) && is_ready(pod))
        };
        let theirs = pods.borrow_and_update().as_ref().map(serves);
        let now = match theirs {
            None => Turn::Unknown,
            Some(false) => Turn::Ours,
            Some(true) => Turn::Theirs,
        };
        if now == Turn::Theirs && *turn.borrow() == Turn::Ours && !waited && !settled.is_zero() {
            tokio::time::sleep(settled).await;
            waited = true;
            continue;
        }
        waited = false;
        let changed = turn.send_if_modified(|before| std::mem::replace(before, now) != now);
        if changed && now == Turn::Theirs {
            tracing::warn!("{KUBE_PROXY_RUNS}");
            events.publish(EventSubject::Node, EventType::Warning, "TwoServiceProxies", KUBE_PROXY_RUNS.to_owned());
        }
        if pods.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Waits until no pod of kube-proxy is here, be it ready or not: it would write its rules again and again (B2.6).
async fn without_kube_proxy(mut pods: PodFeed) {
    let gone = |pods: &Option<Arc<BTreeMap<_, Arc<Pod>>>>| {
        pods.as_ref().is_some_and(|pods| !pods.values().any(|pod| is_kube_proxy(pod)))
    };
    if pods.wait_for(gone).await.is_err() {
        std::future::pending().await
    }
}

/// Once our rules are there, those of other modes go: connections find their way at every moment.
async fn remove_leftovers(mut health: watch::Receiver<Health>, kept: Mode, pods: PodFeed, metrics: &Metrics) {
    if health.wait_for(|health| health.last_updated.is_some()).await.is_err() {
        return std::future::pending().await;
    }
    without_kube_proxy(pods).await;
    match tokio::task::spawn_blocking(move || leftovers::remove(Some(kept))).await {
        Ok(found) => {
            if !found.removed.is_empty() {
                tracing::info!(removed = ?found.removed, "rules of another proxy are gone");
            }
            for error in found.errors {
                metrics.cleanup_failed();
                tracing::warn!(%error, "rules of another proxy may be in the way");
            }
        }
        Err(error) => tracing::warn!(%error, "rules of another proxy may be in the way"),
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use stoker_model::pod::PodUid;

    use super::*;

    fn node(fields: serde_json::Value) -> Node {
        serde_json::from_value(fields).expect("a node")
    }

    /// Remembers what was published.
    #[derive(Debug, Default)]
    struct Heard(std::sync::Mutex<Vec<String>>);

    impl EventSink for Heard {
        fn publish(&self, _: EventSubject, _: EventType, reason: &str, _: String) {
            self.0.lock().unwrap().push(reason.to_owned());
        }
    }

    #[tokio::test]
    async fn a_kube_proxy_that_is_ready_here_has_its_turn() {
        // B2.6
        let pod = |namespace: &str, app: &str, phase: &str, ready: &str| -> Arc<Pod> {
            let pod = json!({
                "metadata": {"namespace": namespace, "labels": {"k8s-app": app}},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
            });
            Arc::new(serde_json::from_value(pod).expect("a pod"))
        };
        let heard = Arc::new(Heard::default());
        let events: Arc<dyn EventSink> = heard.clone();
        let (publish, pods) = watch::channel(None);
        let (turn, turns) = watch::channel(Turn::Unknown);
        let mut leftovers = std::pin::pin!(without_kube_proxy(pods.clone()));
        let mut taking = std::pin::pin!(take_turns(pods, &turn, &events, Duration::ZERO));
        let mut now = |pods: Option<Arc<Pod>>| {
            let one = pods.map(|pod| (PodUid::new("uid"), pod)).into_iter().collect::<BTreeMap<_, _>>();
            publish.send_replace(Some(Arc::new(one)));
            assert!(taking.as_mut().now_or_never().is_none());
            *turns.borrow()
        };
        assert_eq!(*turns.borrow(), Turn::Unknown, "nobody knows the pods yet");
        let proxy = |phase, ready| Some(pod("kube-system", "kube-proxy", phase, ready));
        assert_eq!(now(Some(pod("default", "kube-proxy", "Running", "True"))), Turn::Ours);
        assert_eq!(now(Some(pod("kube-system", "kube-dns", "Running", "True"))), Turn::Ours);
        assert_eq!(now(proxy("Pending", "False")), Turn::Ours, "it serves nothing yet");
        assert!(leftovers.as_mut().now_or_never().is_none(), "but its rules are left alone");
        assert_eq!(now(proxy("Running", "True")), Turn::Theirs);
        assert_eq!(now(proxy("Running", "True")), Turn::Theirs);
        assert_eq!(*heard.0.lock().unwrap(), ["TwoServiceProxies"], "told once");
        assert_eq!(now(proxy("Running", "False")), Turn::Ours, "somebody has to");
        assert_eq!(now(proxy("Running", "True")), Turn::Theirs);
        assert_eq!(now(proxy("Failed", "False")), Turn::Ours);
        assert!(leftovers.as_mut().now_or_never().is_some());
        assert_eq!(now(None), Turn::Ours);
    }

    #[test]
    fn a_node_that_goes_gets_no_traffic() {
        // B2.1
        let taint = |key: &str| json!({ "spec": { "taints": [{ "key": key, "effect": "NoSchedule" }] } });
        assert!(is_eligible(&node(json!({}))));
        assert!(is_eligible(&node(taint("node.kubernetes.io/unschedulable"))));
        assert!(!is_eligible(&node(taint(TO_BE_DELETED))));
        assert!(!is_eligible(&node(json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }))));

        // What the health port is told, as the Node comes, is marked and goes.
        let (object, watched) = watch::channel(None);
        let (publish, eligible) = watch::channel(true);
        let mut watching = std::pin::pin!(watch_eligibility(watched, publish));
        for (now, expected) in [
            (None, false),
            (Some(node(json!({}))), true),
            (Some(node(taint(TO_BE_DELETED))), false),
            (Some(node(json!({}))), true),
            (None, false),
        ] {
            object.send_replace(now);
            assert!(watching.as_mut().now_or_never().is_none());
            assert_eq!(*eligible.borrow(), expected, "{:?}", object.borrow());
        }
    }

    #[tokio::test]
    async fn local_sources_wait_for_the_nodes_ranges() {
        // B1.16: detectLocalMode NodeCIDR; the other ways are tried with traffic.
        let (sender, mut object) = watch::channel(None);
        let waiting = tokio::spawn(async move { pod_ranges(&mut object).await });
        sender.send_replace(Some(node(json!({ "spec": {} }))));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        sender.send_replace(Some(node(json!({ "spec": { "podCIDRs": ["10.244.3.0/24"] } }))));
        assert_eq!(waiting.await.expect("ranges"), ["10.244.3.0/24"]);
    }
}
