//! Looks at the machine and the runtime, and publishes what it sees. Works without an API server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stoker_model::handle::{DeviceCount, DeviceFeed, NodeFeed, NodeSnapshot, RuntimeHandler};
use stoker_model::quantity::Milli;
use stoker_model::service::{NodeFacts, NodeTopology};
use tokio::sync::watch;

use super::capacity::{Resources, allocatable, capacity, quantities};
use super::conditions::{RuntimeHealth, Verdict, pressures, ready};
use super::eviction::Pressures;
use super::images;
use super::machine::{Machine, architecture, system_info};
use super::settings::NodeSettings;
use crate::clock::{Clock, Now};
use crate::runtime::{Runtime, cri};

/// How soon to look again while the node is not ready (A16.8).
const FAST: Duration = Duration::from_millis(100);
/// For so long after the start; then each second, until it is ready.
const FAST_FOR: Duration = Duration::from_secs(120);
/// How soon to look again when the fast path is over.
const NOT_READY: Duration = Duration::from_secs(1);
/// Listing images costs the runtime more than the rest; their use is a hint to the scheduler.
const IMAGES_EVERY: Duration = Duration::from_secs(60);
/// So often the runtime has to show that it can list.
const LIST_EVERY: Duration = Duration::from_secs(60);
/// A runtime that does not answer within this time is down.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(10);

/// Label that tells the zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What was seen, for the Node's status. Equal observations need no report.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    pub(super) capacity: Resources,
    pub(super) allocatable: Resources,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) info: NodeSystemInfo,
    pub(super) images: Vec<ContainerImage>,
    /// What the runtime's handlers can do.
    pub(super) handlers: BTreeMap<String, RuntimeHandler>,
    /// Whether the runtime honours `supplementalGroupsPolicy`, where it says so (A10.2).
    pub(super) supplemental_groups_policy: Option<bool>,
}

impl Observation {
    /// The conditions: type, whether it holds, reason, message.
    pub fn conditions(&self) -> impl Iterator<Item = (&'static str, bool, &'static str, &str)> {
        self.verdicts.iter().map(|is| (is.kind, is.holds, is.reason, is.message.as_str()))
    }

    /// The container runtime, with its version.
    pub fn runtime(&self) -> &str {
        &self.info.container_runtime_version
    }

    /// Whether the node can run pods.
    pub fn is_ready(&self) -> bool {
        self.verdicts.iter().any(|verdict| verdict.kind == "Ready" && verdict.holds)
    }
}

/// Where the observer publishes.
#[derive(Debug)]
pub struct Observer {
    /// For admission and pod environments.
    pub snapshots: NodeFeed,
    /// For service routing.
    pub facts: NodeFacts,
    /// For [`super::report`].
    pub observations: watch::Receiver<Option<Arc<Observation>>>,
}

/// What others know of the node.
#[derive(Debug)]
pub struct Signs {
    /// From [`super::eviction`].
    pub pressures: watch::Receiver<Pressures>,
    /// From [`super::end_pods_at_shutdown`].
    pub going_down: watch::Receiver<bool>,
    /// The node has a CSINode, or no API server that could have one.
    pub storage_ready: watch::Receiver<bool>,
}

/// Starts observing: what to read, and the task to spawn. `node` is the Node as the API server has it, `None` while
/// it is not known; labels and taints come from it then, before that from the settings.
pub fn observe(
    settings: Arc<NodeSettings>,
    runtime: Runtime,
    node: watch::Receiver<Option<Node>>,
    devices: DeviceFeed,
    signs: Signs,
    clock: Clock,
) -> (Observer, impl Future<Output = ()> + Send) {
    let mut changed_devices = devices.clone();
    let mut eye = Eye {
        clock,
        devices,
        runtime,
        signs,
        info: None,
        images: Vec::new(),
        images_read: None,
        handlers: BTreeMap::new(),
        listed: clock.now(),
        supplemental_groups_policy: None,
        settings,
    };
    let first = eye.look(RuntimeHealth::Unknown, clock.now());
    let (snapshots, snapshot_feed) = watch::channel(Arc::new(eye.snapshot(&first, false, None)));
    let (facts, facts_feed) = watch::channel(Arc::new(topology(&snapshot_feed.borrow())));
    let (observations, observation_feed) = watch::channel(None);
    let observer = Observer { snapshots: snapshot_feed, facts: facts_feed, observations: observation_feed };
    let task = async move {
        let mut node = node;
        let started = clock.now().monotonic;
        loop {
            let health = eye.runtime_health().await;
            let network_ready = health.network_ready();
            eye.list().await;
            if network_ready {
                eye.read_images().await;
            }
            let seen = eye.look(health, clock.now());
            let is_ready = seen.is_ready();
            let snapshot = eye.snapshot(&seen, network_ready, node.borrow_and_update().as_ref());
            publish(&facts, topology(&snapshot));
            publish(&snapshots, snapshot);
            observations.send_if_modified(|last| {
                let changed = last.as_deref() != Some(&seen);
                if changed {
                    *last = Some(Arc::new(seen));
                }
                changed
            });
            let wait = pause(is_ready, clock.now().monotonic.saturating_sub(started), eye.settings.observe_every);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Ok(()) = node.changed() => {}
                Ok(()) = changed_devices.changed() => {}
                Ok(()) = eye.signs.pressures.changed() => {}
                Ok(()) = eye.signs.going_down.changed() => {}
                Ok(()) = eye.signs.storage_ready.changed() => {}
            }
        }
    };
    (observer, task)
}

/// How long until the next look, so long after the start.
fn pause(is_ready: bool, running: Duration, every: Duration) -> Duration {
    match running {
        _ if is_ready => every,
        running if running < FAST_FOR => FAST.min(every),
        _ => NOT_READY.min(every),
    }
}

fn publish<T: PartialEq>(to: &watch::Sender<Arc<T>>, value: T) {
    to.send_if_modified(|last| {
        let changed = **last != value;
        if changed {
            *last = Arc::new(value);
        }
        changed
    });
}

fn topology(snapshot: &NodeSnapshot) -> NodeTopology {
    NodeTopology {
        name: snapshot.name.as_str().into(),
        zone: snapshot.labels.get(ZONE).filter(|zone| !zone.is_empty()).map(|zone| zone.as_str().into()),
        ips: snapshot.ips.clone(),
    }
}

/// The labels that the node gives itself (A16.2).
pub(super) fn own_labels(settings: &NodeSettings) -> BTreeMap<String, String> {
    let mut labels = settings.labels.clone();
    for (name, value) in [
        ("kubernetes.io/hostname", settings.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ] {
        labels.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    labels
}

struct Eye {
    settings: Arc<NodeSettings>,
    devices: DeviceFeed,
    runtime: Runtime,
    clock: Clock,
    signs: Signs,
    info: Option<NodeSystemInfo>,
    images: Vec<ContainerImage>,
    images_read: Option<Now>,
    /// When the runtime listed sandboxes last.
    listed: Now,
    /// The runtime's handler can do it.
    handlers: BTreeMap<String, RuntimeHandler>,
    /// What the runtime's status says of it.
    supplemental_groups_policy: Option<bool>,
}

impl Eye {
    fn look(&mut self, health: RuntimeHealth, now: Now) -> Observation {
        let machine = Machine::read(&self.settings.root_dir);
        let capacity = capacity(&machine, &self.settings);
        let missing: Vec<_> = ["cpu", "memory", "pods"]
            .into_iter()
            .filter(|name| capacity.get(*name).is_none_or(|a| *a <= Milli::ZERO))
            .collect();
        let mut verdicts = pressures(&self.signs.pressures.borrow_and_update()).to_vec();
        let silent = now.monotonic.saturating_sub(self.listed.monotonic);
        let signs = &mut self.signs;
        let (storage, going_down) = (*signs.storage_ready.borrow_and_update(), *signs.going_down.borrow_and_update());
        verdicts.push(ready(&health, silent, storage, going_down, &missing));
        let (mut capacity, mut allocatable) = (capacity.clone(), allocatable(&capacity, &self.settings));
        for (name, count) in self.devices.borrow().iter() {
            add_devices(&mut capacity, &mut allocatable, name, *count);
        }
        Observation {
            allocatable,
            capacity,
            verdicts,
            info: self.info.clone().unwrap_or_else(|| system_info(String::new())),
            images: self.images.clone(),
            handlers: self.handlers.clone(),
            supplemental_groups_policy: self.supplemental_groups_policy,
        }
    }

    fn snapshot(&self, seen: &Observation, network_ready: bool, node: Option<&Node>) -> NodeSnapshot {
        let (labels, taints) = match node {
            Some(node) => (
                node.metadata.labels.clone().unwrap_or_default(),
                node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            ),
            None => (own_labels(&self.settings), self.settings.taints.clone()),
        };
        let status = node.and_then(|node| node.status.as_ref());
        let pressures = seen.verdicts.iter().filter(|verdict| verdict.kind != "Ready" && verdict.holds);
        NodeSnapshot {
            name: self.settings.name.clone(),
            uid: node.filter(|n| n.metadata.deletion_timestamp.is_none()).and_then(|n| n.metadata.uid.clone()),
            ips: self.settings.addresses.clone(),
            labels,
            taints,
            allocatable: with_extended(quantities(&seen.allocatable), status.and_then(|s| s.allocatable.as_ref())),
            capacity: with_extended(quantities(&seen.capacity), status.and_then(|s| s.capacity.as_ref())),
            network_ready,
            supplemental_groups_policy: self.supplemental_groups_policy == Some(true),
            pressures: pressures.map(|verdict| verdict.kind.to_owned()).collect(),
            handlers: self.handlers.clone(),
            shutting_down: *self.signs.going_down.borrow(),
            runtime_version: self.info.as_ref().map(|i| i.container_runtime_version.clone()).unwrap_or_default(),
        }
    }

    async fn runtime_health(&mut self) -> RuntimeHealth {
        let Ok(Ok(answer)) = tokio::time::timeout(RUNTIME_PATIENCE, self.runtime.status(false)).await else {
            // Another runtime may come back in its place.
            self.info = None;
            return RuntimeHealth::Down;
        };
        if self.info.is_none()
            && let Ok(version) = self.runtime.version().await
        {
            let text = format!("{}://{}", version.runtime_name, version.runtime_version);
            self.info = Some(system_info(text));
        }
        let all = answer.runtime_handlers.into_iter().map(|handler| {
            let features = handler.features.unwrap_or_default();
            let can = RuntimeHandler {
                recursive_read_only: features.recursive_read_only_mounts,
                user_namespaces: features.user_namespaces,
            };
            (handler.name, can)
        });
        self.handlers = all.collect();
        self.supplemental_groups_policy = answer.features.map(|features| features.supplemental_groups_policy);
        runtime_health(answer.status.as_ref())
    }

    /// A runtime may say that it is well, and list nothing (A1.7).
    async fn list(&mut self) {
        let now = self.clock.now();
        if now.monotonic.saturating_sub(self.listed.monotonic) < LIST_EVERY {
            return;
        }
        let listed = tokio::time::timeout(RUNTIME_PATIENCE, self.runtime.list_pod_sandbox(None)).await;
        if matches!(listed, Ok(Ok(_))) {
            self.listed = now;
        }
    }

    async fn read_images(&mut self) {
        let now = self.clock.now();
        if self.images_read.is_some_and(|read| now.monotonic.saturating_sub(read.monotonic) < IMAGES_EVERY) {
            return;
        }
        match self.runtime.list_images().await {
            Ok(images) => {
                self.images = images::listed(images, self.settings.max_images);
                self.images_read = Some(now);
            }
            Err(error) => tracing::debug!(%error, "images not listed"),
        }
    }
}

/// What device plugins have (A13.1).
fn add_devices(capacity: &mut Resources, allocatable: &mut Resources, name: &str, count: DeviceCount) {
    capacity.insert(name.to_owned(), Milli::from_units(count.capacity));
    allocatable.insert(name.to_owned(), Milli::from_units(count.allocatable));
}

/// What somebody else gave the Node, such as an operator who patched its status, besides what is ours (A6.7).
fn with_extended(
    mut ours: BTreeMap<String, Quantity>,
    of_node: Option<&BTreeMap<String, Quantity>>,
) -> BTreeMap<String, Quantity> {
    let extended = of_node.into_iter().flatten().filter(|(name, _)| name.contains('/'));
    for (name, amount) in extended {
        ours.entry(name.clone()).or_insert_with(|| amount.clone());
    }
    ours
}

/// Reads the runtime's conditions in upstream's words.
fn runtime_health(status: Option<&cri::RuntimeStatus>) -> RuntimeHealth {
    let condition = |kind: &str| status.and_then(|status| status.conditions.iter().find(|c| c.r#type == kind));
    let mut problems = Vec::new();
    let mut network_ready = false;
    for (kind, what) in
        [("RuntimeReady", "container runtime not ready"), ("NetworkReady", "container runtime network not ready")]
    {
        match condition(kind) {
            Some(condition) if condition.status => network_ready |= kind == "NetworkReady",
            Some(condition) => {
                problems.push(format!("{what}: {kind}=false reason:{} message:{}", condition.reason, condition.message))
            }
            None => problems.push(format!("{what}: the runtime does not report {kind}")),
        }
    }
    RuntimeHealth::Up { problems, network_ready }
}

#[cfg(test)]
mod tests {
    use super::super::settings::tests_support;
    use super::*;

    fn condition(kind: &str, status: bool) -> cri::RuntimeCondition {
        cri::RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: "NetworkPluginNotReady".into(),
            message: "cni plugin not initialized".into(),
        }
    }

    #[test]
    fn devices_are_resources_like_others() {
        // A13.1
        let (mut capacity, mut allocatable) = (Resources::new(), Resources::new());
        add_devices(&mut capacity, &mut allocatable, "example.com/gadget", DeviceCount { capacity: 3, allocatable: 2 });
        assert_eq!(quantities(&capacity)["example.com/gadget"].0, "3");
        assert_eq!(quantities(&allocatable)["example.com/gadget"].0, "2");
    }

    #[test]
    fn the_runtimes_conditions_are_told_in_upstreams_words() {
        // A13.11
        let status = |network| cri::RuntimeStatus {
            conditions: vec![condition("RuntimeReady", true), condition("NetworkReady", network)],
        };
        assert_eq!(runtime_health(Some(&status(true))), RuntimeHealth::Up { problems: vec![], network_ready: true });
        let RuntimeHealth::Up { problems, network_ready } = runtime_health(Some(&status(false))) else { panic!("up") };
        assert!(!network_ready);
        assert_eq!(
            problems,
            ["container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
              message:cni plugin not initialized"]
        );
    }

    #[tokio::test]
    async fn a_runtime_that_lists_nothing_is_no_good() {
        // A1.7
        let (_, pressures) = watch::channel(Pressures::new());
        let (_, going_down) = watch::channel(false);
        let (_, storage_ready) = watch::channel(true);
        let (_, devices) = watch::channel(Arc::default());
        let clock = Clock;
        let now = clock.now();
        let mut eye = Eye {
            settings: Arc::new(tests_support()),
            devices,
            runtime: Runtime::connect("unix:///nowhere/c.sock", Duration::from_secs(1)).unwrap(),
            clock,
            signs: Signs { pressures, going_down, storage_ready },
            info: None,
            images: Vec::new(),
            images_read: None,
            listed: now,
            handlers: BTreeMap::new(),
            supplemental_groups_policy: None,
        };
        let up = || RuntimeHealth::Up { problems: Vec::new(), network_ready: true };
        let ready = |seen: &Observation| {
            let found = seen.verdicts.iter().find(|verdict| verdict.kind == "Ready").expect("a verdict");
            (found.holds, found.message.clone())
        };
        assert_eq!(
            ready(&eye.look(up(), now.plus(Duration::from_secs(179)))),
            (true, "kubelet is posting ready status".into())
        );
        let text = "PLEG is not healthy: pleg was last seen active 3m1s ago; threshold is 3m0s";
        assert_eq!(ready(&eye.look(up(), now.plus(Duration::from_secs(181)))), (false, text.into()));
        // It is asked again each minute, and what fails does not count.
        eye.listed = Now { monotonic: Duration::ZERO, ..now };
        eye.list().await;
        assert_eq!(eye.listed.monotonic, Duration::ZERO);
    }

    #[test]
    fn what_others_gave_the_node_counts() {
        // A6.7
        let list = |pairs: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
            pairs.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
        };
        let ours = list(&[("cpu", "2"), ("example.com/gpu", "1")]);
        let node =
            list(&[("cpu", "64"), ("hugepages-2Mi", "4Mi"), ("example.com/gpu", "8"), ("example.com/token", "5")]);
        let all = with_extended(ours.clone(), Some(&node));
        assert_eq!(all, list(&[("cpu", "2"), ("example.com/gpu", "1"), ("example.com/token", "5")]));
        assert_eq!(with_extended(ours.clone(), None), ours);
    }

    #[test]
    fn who_is_not_ready_is_looked_at_sooner() {
        // A16.8
        let (seconds, ms) = (Duration::from_secs, Duration::from_millis);
        for (is_ready, running, expected) in [
            (true, seconds(0), seconds(10)),
            (false, seconds(0), ms(100)),
            (false, seconds(119), ms(100)),
            (false, seconds(120), seconds(1)),
            (true, seconds(1000), seconds(10)),
        ] {
            assert_eq!(pause(is_ready, running, seconds(10)), expected, "{is_ready} {running:?}");
        }
    }

    #[test]
    fn a_node_labels_itself() {
        // A16.2
        let mut settings = tests_support();
        settings.labels.insert("disk".into(), "ssd".into());
        settings.labels.insert("kubernetes.io/hostname".into(), "other".into());
        let labels = own_labels(&settings);
        assert_eq!(labels["kubernetes.io/hostname"], "other");
        assert_eq!((labels["kubernetes.io/os"].as_str(), labels["beta.kubernetes.io/os"].as_str()), ("linux", "linux"));
        assert_eq!(
            (labels["kubernetes.io/arch"].clone(), labels["disk"].as_str()),
            (labels["beta.kubernetes.io/arch"].clone(), "ssd")
        );
    }
}
