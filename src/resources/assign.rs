//! [`Assignments`]: gives the containers of a pod what they have for themselves, one pod at a time, or says why not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, ResourceHealth, ResourceStatus};
use stoker_model::handle::{ClaimApi, DeviceFeed, PluginKind};
use stoker_model::pod::{PodRef, PodUid};
use stoker_model::resources::{Amounts, amounts, is_sidecar, pod_limits};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::checkpoint::CheckpointError;
use super::claims::{Claims, Given};
use super::cpu_set::CpuSet;
use super::cpus::{self, CpuRefusal, Cpus, StaticCpus};
use super::devices::{Devices, Reusable, Wanted, pool};
use super::machine::Machine;
use super::memory::{Block, Memory, StaticMemory};
use super::numa::{Chooser, Hint, Hints, TopologyPolicy};

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct ResourcesConfig {
    /// kubelet's `--root-dir`.
    pub root_dir: PathBuf,
    /// `topologyManagerPolicy`.
    pub topology: TopologyPolicy,
    /// `topologyManagerScope` is `pod`.
    pub pod_scope: bool,
    /// `prefer-closest-numa-nodes`.
    pub closest: bool,
    /// `max-allowable-numa-nodes`.
    pub most_nodes: usize,
    /// `cpuManagerPolicy` is `static`.
    pub cpus: Option<StaticCpus>,
    /// `memoryManagerPolicy` is `Static`.
    pub memory: Option<StaticMemory>,
    /// The runtime's containers by ID, with their pods and names, where [`ResourcesConfig::names_containers`].
    pub containers: BTreeMap<String, (PodUid, String)>,
}

impl ResourcesConfig {
    /// kubelet's defaults.
    pub fn new(root_dir: PathBuf) -> Self {
        Self {
            root_dir,
            topology: TopologyPolicy::None,
            pod_scope: false,
            closest: false,
            most_nodes: 8,
            cpus: None,
            memory: None,
            containers: BTreeMap::new(),
        }
    }

    /// Whether what a very old kubelet left names containers by the runtime's IDs, so that they have to be known.
    pub fn names_containers(&self) -> bool {
        cpus::names_containers(&self.root_dir.join(CPU_STATE))
    }
}

/// Who has which CPUs, below the root directory.
const CPU_STATE: &str = "cpu_manager_state";

/// Why nothing can be assigned on this node.
#[derive(Debug, thiserror::Error)]
pub enum ResourcesError {
    /// Aligning costs exponential time.
    #[error(
        "topologyManagerPolicy: unsupported on machines with more than {most} NUMA Nodes, and this one has {has}: set it to none, or \
         max-allowable-numa-nodes in topologyManagerPolicyOptions"
    )]
    TooManyNodes {
        /// The limit.
        most: usize,
        /// The machine's.
        has: usize,
    },
    /// What was assigned before is not known.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The sockets cannot be made.
    #[error("{path}: {source}; make the directory writable")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Why a pod cannot have what it asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// `status.reason`, and that of the event.
    pub reason: String,
    /// The event's text.
    pub text: String,
}

impl Refusal {
    fn unexpected(text: &str) -> Self {
        Self {
            reason: "UnexpectedAdmissionError".to_owned(),
            text: format!("Allocate failed due to {text}, which is unexpected"),
        }
    }

    fn of_cpus(refusal: CpuRefusal) -> Self {
        match refusal {
            CpuRefusal::Alignment(text) => Self { reason: "SMTAlignmentError".to_owned(), text },
            CpuRefusal::Other(text) => Self::unexpected(&text),
        }
    }

    fn topology() -> Self {
        Self {
            reason: "TopologyAffinityError".to_owned(),
            text: "Resources cannot be allocated with Topology locality".to_owned(),
        }
    }
}

/// A mount that a device needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// In the container.
    pub container_path: String,
    /// On the node.
    pub host_path: String,
    /// Whether nothing can be written there.
    pub read_only: bool,
}

/// A device node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpecialFile {
    /// In the container.
    pub container_path: String,
    /// On the node.
    pub host_path: String,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
}

/// What a container is made with besides what its spec says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Extras {
    /// Environment variables.
    pub envs: BTreeMap<String, String>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Device nodes.
    pub devices: Vec<SpecialFile>,
    /// Annotations of the container.
    pub annotations: BTreeMap<String, String>,
    /// Names of devices that the runtime looks up itself.
    pub cdi_devices: Vec<String>,
    /// The CPUs to run on; empty: all.
    pub cpus: String,
    /// They are the container's own, so nothing limits how much of them it uses.
    pub own_cpus: bool,
    /// The memory nodes to use; empty: all.
    pub memory_nodes: String,
}

/// Who has what. Cloning is cheap.
#[derive(Clone)]
pub struct Assignments(Arc<Inner>);

struct Inner {
    config: ResourcesConfig,
    machine: Machine,
    chooser: Chooser,
    /// One pod at a time is given something: what is free for one is not for the next.
    turn: Semaphore,
    devices: Devices,
    claims: Claims,
    cpus: Cpus,
    memory: Memory,
}

impl std::fmt::Debug for Assignments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assignments").finish_non_exhaustive()
    }
}

/// A container of a pod, and what has become free of those before it.
struct Place<'a> {
    uid: &'a PodUid,
    container: &'a Container,
    wanted: Wanted,
}

impl Assignments {
    /// Takes over what former agents assigned, and serves device plugins until `stop` is cancelled.
    ///
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// A machine that the policies do not fit, and files that cannot be used.
    pub fn start(config: ResourcesConfig, machine: Machine, stop: CancellationToken) -> Result<Self, ResourcesError> {
        let nodes = machine.nodes.len();
        if config.topology != TopologyPolicy::None && nodes > config.most_nodes {
            return Err(ResourcesError::TooManyNodes { most: config.most_nodes, has: nodes });
        }
        let distances = machine.nodes.iter().map(|(number, node)| (*number, node.distances.clone())).collect();
        let chooser = Chooser { policy: config.topology, closest: config.closest, distances };
        let state = config.root_dir.join(CPU_STATE);
        let cpus = Cpus::open(config.cpus.as_ref(), &machine, &state, &config.containers)?;
        let memory = Memory::open(config.memory.as_ref(), &machine, &config.root_dir.join("memory_manager_state"))?;
        let dir = config.root_dir.join("device-plugins");
        let devices = Devices::open(&dir, stop.clone());
        let claims = Claims::open(&config.root_dir, devices.health_changes(), stop);
        devices.start().map_err(|source| ResourcesError::Socket { path: dir, source })?;
        Ok(Self(Arc::new(Inner { config, machine, chooser, turn: Semaphore::new(1), devices, claims, cpus, memory })))
    }

    /// Devices for the Node.
    pub fn device_feed(&self) -> DeviceFeed {
        self.0.devices.feed()
    }

    /// Takes device plugins, and drivers of dynamic resources, that put a socket into `plugins_registry`.
    pub fn plugins(&self) -> Vec<Arc<dyn PluginKind>> {
        vec![Arc::new(self.0.devices.clone()), self.0.claims.plugins()]
    }

    /// From now on claims of dynamic resources can be read.
    ///
    /// Must be called in a tokio runtime.
    pub fn use_claims_of(&self, api: Arc<dyn ClaimApi>) {
        self.0.claims.use_api(api);
    }

    /// Has the drivers of dynamic resources prepare what the pod claims (A15.8).
    ///
    /// # Errors
    /// Upstream's text.
    pub async fn prepare_claims(&self, pod: &Pod) -> Result<(), String> {
        self.0.claims.prepare(pod).await
    }

    /// Has them undo it: the pod's containers have ended.
    ///
    /// # Errors
    /// Upstream's text; then it is to be tried again.
    pub async fn unprepare_claims(&self, pod: &PodUid) -> Result<(), String> {
        self.0.claims.unprepare(pod).await
    }

    /// Pods whose claims are prepared.
    pub fn pods_with_claims(&self) -> BTreeSet<PodUid> {
        self.0.claims.pods()
    }

    /// What a container has of its pod's claims.
    pub(super) fn claims_of(&self, pod: &Pod, container: &Container) -> Vec<Given> {
        self.0.claims.given(pod, container)
    }

    /// Changes when the health of somebody's device does.
    pub fn health(&self) -> watch::Receiver<u64> {
        self.0.devices.health()
    }

    /// Pods that have something.
    pub fn pods(&self) -> BTreeSet<PodUid> {
        let mut pods = self.0.devices.pods();
        pods.extend(self.0.cpus.pods());
        pods.extend(self.0.memory.pods());
        pods.extend(self.0.claims.pods());
        pods
    }

    /// Changes when containers without CPUs of their own have to move.
    pub fn cpu_changes(&self) -> watch::Receiver<u64> {
        self.0.cpus.changes()
    }

    /// The CPUs that a container has to run on. `None`: all.
    pub fn cpus_of(&self, pod: &PodUid, container: &str) -> Option<CpuSet> {
        self.0.cpus.of(pod, container)
    }

    /// Whether CPUs are given to containers at all.
    pub fn gives_cpus(&self) -> bool {
        self.0.cpus.is_static()
    }

    /// Whether a container of the pod has CPUs of its own.
    pub fn has_own_cpus(&self, pod: &PodUid) -> bool {
        self.0.cpus.pods().contains(pod)
    }

    /// Whether the container has CPUs of its own.
    pub fn owns_cpus(&self, pod: &PodUid, container: &str) -> bool {
        self.0.cpus.own(pod, container).is_some()
    }

    /// Whether it is decided here who gets a resource.
    pub fn decides(&self, resource: &str) -> bool {
        self.0.devices.knows(resource)
    }

    /// Frees what a pod has: it has ended.
    pub fn release(&self, pod: &PodUid) {
        self.0.devices.release(pod);
        self.0.cpus.release(pod);
        self.0.memory.release(pod);
    }

    /// Gives a pod what it asks for; nothing changes for what it has already.
    ///
    /// # Errors
    /// Upstream's reason and text.
    pub async fn admit(&self, pod: &Pod) -> Result<(), Refusal> {
        let Some(spec) = &pod.spec else { return Ok(()) };
        if !self.concerns(spec) {
            return Ok(());
        }
        // It is never closed.
        let _turn = self.0.turn.acquire().await.ok();
        let uid = PodRef::of(pod).uid;
        let given = self.0.give(&uid, spec).await;
        if given.is_err() {
            self.release(&uid);
        }
        given
    }

    fn concerns(&self, spec: &PodSpec) -> bool {
        let aligns = self.0.config.topology != TopologyPolicy::None || self.0.memory.is_static();
        let own_cpus = |container| self.0.cpus.is_static() && cpus::count(spec, container) > 0;
        aligns || all(spec).any(|container| own_cpus(container) || !self.0.wanted(&limits(container)).is_empty())
    }

    /// What a container is to be made with. Devices that it should have and has not, which happens when a former agent's files
    /// were lost, are assigned now.
    ///
    /// # Errors
    /// The text of `CreateContainerConfigError`.
    pub async fn for_container(&self, pod: &Pod, container: &Container) -> Result<Extras, String> {
        let uid = PodRef::of(pod).uid;
        let place = (&uid, container.name.as_str());
        let wanted = self.0.wanted(&limits(container));
        if !wanted.is_empty() {
            self.0.devices.before_start(place, &wanted).await?;
            if self.0.devices.shares(&uid, &container.name).len() < wanted.len() {
                let _turn = self.0.turn.acquire().await.ok();
                self.0.devices.allocate(place, &wanted, &Reusable::new(), None).await?;
            }
        }
        let mut extras = extras(&self.0.devices.shares(&uid, &container.name));
        let claimed = self.0.claims.cdi_devices(pod, container)?;
        for name in claimed {
            if !extras.cdi_devices.contains(&name) {
                extras.cdi_devices.push(name);
            }
        }
        Ok(Extras {
            cpus: self.cpus_of(&uid, &container.name).unwrap_or_default().to_string(),
            memory_nodes: self.memory_nodes_of(&uid, &container.name),
            own_cpus: self.0.cpus.own(&uid, &container.name).is_some(),
            ..extras
        })
    }

    /// Writes into a status which devices the containers have, and how they are (A15.15).
    pub fn tell_health(&self, pod: &Pod, status: &mut PodStatus) {
        let uid = &PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
        for container in status.container_statuses.iter_mut().flatten() {
            let shares = self.0.devices.shares(uid, &container.name);
            let health = |resource: &str, id: String| {
                let healthy = self.0.devices.is_healthy(resource, &id);
                let health = if healthy { "Healthy" } else { "Unhealthy" };
                ResourceHealth { resource_id: id, health: Some(health.to_owned()), ..ResourceHealth::default() }
            };
            let of_resource = |(resource, share): (&String, &pool::Share)| ResourceStatus {
                name: resource.clone(),
                resources: Some(share.ids().into_iter().map(|id| health(resource, id)).collect()),
            };
            let all: Vec<ResourceStatus> = shares.iter().map(of_resource).collect();
            container.allocated_resources_status = Some(all).filter(|all| !all.is_empty());
        }
        self.0.claims.tell_health(pod, status);
    }

    /// Devices of a container with their memory nodes, by resource.
    pub(super) fn devices_of(&self, pod: &PodUid, container: &str) -> BTreeMap<String, Vec<(String, Vec<i64>)>> {
        let shares = self.0.devices.shares(pod, container);
        let nodes = |share: &pool::Share| {
            let mut ids: BTreeMap<String, Vec<i64>> = BTreeMap::new();
            for (node, of_node) in &share.by_node {
                for id in of_node {
                    ids.entry(id.clone()).or_default().extend((*node >= 0).then_some(*node));
                }
            }
            ids.into_iter().collect()
        };
        shares.iter().map(|(resource, share)| (resource.clone(), nodes(share))).collect()
    }

    /// The memory nodes that a container has to use; empty: all.
    fn memory_nodes_of(&self, pod: &PodUid, container: &str) -> String {
        let blocks = self.0.memory.of(pod, container);
        blocks.iter().flat_map(|block| block.nodes.iter().copied()).collect::<CpuSet>().to_string()
    }

    /// Memory that a container was promised.
    pub(super) fn memory_of(&self, pod: &PodUid, container: &str) -> Vec<Block> {
        self.0.memory.of(pod, container)
    }

    /// Memory that containers may be promised.
    pub(super) fn allocatable_memory(&self) -> Vec<Block> {
        self.0.memory.allocatable()
    }

    /// CPUs that a container has for itself.
    pub(super) fn own_cpus(&self, pod: &PodUid, container: &str) -> CpuSet {
        self.0.cpus.own(pod, container).unwrap_or_default()
    }

    /// CPUs that containers may have for themselves.
    pub(super) fn allocatable_cpus(&self) -> CpuSet {
        self.0.cpus.allocatable()
    }

    /// Healthy devices with their memory nodes, by resource.
    pub(super) fn devices(&self) -> BTreeMap<String, Vec<(String, Vec<i64>)>> {
        self.0.devices.healthy()
    }
}

impl Inner {
    /// Devices among limits.
    fn wanted(&self, limits: &Amounts) -> Wanted {
        let count = |amount: i64| usize::try_from(amount).unwrap_or_default();
        let all = limits.iter().map(|(name, amount)| (name.clone(), count(amount.units())));
        all.filter(|(name, count)| *count > 0 && self.devices.knows(name)).collect()
    }

    async fn give(&self, uid: &PodUid, spec: &PodSpec) -> Result<(), Refusal> {
        let (mut reusable, mut reusable_cpus) = (Reusable::new(), CpuSet::default());
        let whole = match self.config.pod_scope && self.config.topology != TopologyPolicy::None {
            true => Some(self.place_of_pod(uid, spec)?),
            false => None,
        };
        for container in all(spec) {
            let place = Place { uid, container, wanted: self.wanted(&limits(container)) };
            let hint = match whole {
                Some(hint) => hint,
                None => self.place_of(spec, &place, &reusable, &reusable_cpus)?,
            };
            let named = (uid, container.name.as_str());
            let given = self.devices.allocate(named, &place.wanted, &reusable, hint.affinity).await;
            given.map_err(|text| Refusal::unexpected(&text))?;
            let own =
                self.cpus.give((uid, spec, container), hint.affinity, &reusable_cpus).map_err(Refusal::of_cpus)?;
            let promised = self.memory.give((uid, spec, container), Some(hint));
            promised.map_err(|text| Refusal::unexpected(&text))?;
            self.note_reusable(spec, &place, &mut reusable);
            if let Some(own) = own {
                let ends = is_init(spec, container) && !is_sidecar(container);
                reusable_cpus = if ends { reusable_cpus.union(&own) } else { reusable_cpus.minus(&own) };
            }
        }
        Ok(())
    }

    /// What an init container has is free for those after it, except where it goes on beside them.
    fn note_reusable(&self, spec: &PodSpec, place: &Place<'_>, reusable: &mut Reusable) {
        for (resource, share) in self.devices.shares(place.uid, &place.container.name) {
            let ids = reusable.entry(resource).or_default();
            if is_init(spec, place.container) && !is_sidecar(place.container) {
                ids.extend(share.ids());
            } else {
                ids.retain(|id| !share.ids().contains(id));
            }
        }
    }

    /// Where a container shall be.
    fn place_of(
        &self,
        spec: &PodSpec,
        place: &Place<'_>,
        reusable: &Reusable,
        reusable_cpus: &CpuSet,
    ) -> Result<Hint, Refusal> {
        if self.config.topology == TopologyPolicy::None {
            return Ok(ANYWHERE);
        }
        let nodes = self.machine.node_numbers();
        let named = (place.uid, place.container.name.as_str());
        let memory = self.memory.hints(place.uid, spec, Some(place.container));
        let cpus = self.cpus.hints((place.uid, spec, place.container), reusable_cpus);
        let hints = [self.devices.hints(named, &place.wanted, reusable, &nodes), of_one("cpu", cpus), memory];
        self.choose(&hints)
    }

    /// Where all of a pod shall be.
    fn place_of_pod(&self, uid: &PodUid, spec: &PodSpec) -> Result<Hint, Refusal> {
        let without_overhead = PodSpec { overhead: None, ..spec.clone() };
        let wanted = self.wanted(&pod_limits(&without_overhead));
        if wanted.keys().any(|resource| all(spec).any(|c| self.has(uid, c, resource))) {
            // It was placed before.
            return Ok(ANYWHERE);
        }
        let nodes = self.machine.node_numbers();
        let memory = self.memory.hints(uid, spec, None);
        let cpus = self.cpus.hints_for_pod(uid, spec);
        let hints = [self.devices.hints((uid, ""), &wanted, &Reusable::new(), &nodes), of_one("cpu", cpus), memory];
        self.choose(&hints)
    }

    fn has(&self, uid: &PodUid, container: &Container, resource: &str) -> bool {
        self.devices.shares(uid, &container.name).contains_key(resource)
    }

    fn choose(&self, hints: &[Hints]) -> Result<Hint, Refusal> {
        let (best, good) = self.chooser.choose(hints);
        if good { Ok(best) } else { Err(Refusal::topology()) }
    }
}

/// Where nothing is aligned.
const ANYWHERE: Hint = Hint { affinity: None, preferred: false };

/// Hints of a provider that has one resource, if it is asked for.
fn of_one(resource: &str, hints: Option<Vec<Hint>>) -> Hints {
    hints.into_iter().map(|hints| (resource.to_owned(), Some(hints))).collect()
}

fn is_init(spec: &PodSpec, container: &Container) -> bool {
    spec.init_containers.iter().flatten().any(|c| c.name == container.name)
}

/// Init containers, then the others: the order in which they are given something.
fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

fn limits(container: &Container) -> Amounts {
    amounts(container.resources.as_ref().and_then(|r| r.limits.as_ref()))
}

/// What the plugins want done, the first of those that want the same thing.
fn extras(shares: &pool::Shares) -> Extras {
    let mut extras = Extras::default();
    for share in shares.values() {
        let answer = share.answer.clone();
        for (name, value) in answer.envs {
            extras.envs.entry(name).or_insert(value);
        }
        for (name, value) in answer.annotations {
            extras.annotations.entry(name).or_insert(value);
        }
        for mount in answer.mounts {
            if extras.mounts.iter().all(|other| other.container_path != mount.container_path) {
                let (container_path, host_path) = (mount.container_path, mount.host_path);
                extras.mounts.push(Mount { container_path, host_path, read_only: mount.read_only });
            }
        }
        for device in answer.devices {
            if extras.devices.iter().all(|other| other.container_path != device.container_path) {
                let (container_path, host_path) = (device.container_path, device.host_path);
                extras.devices.push(SpecialFile { container_path, host_path, permissions: device.permissions });
            }
        }
        for device in answer.cdi_devices {
            if !extras.cdi_devices.contains(&device.name) {
                extras.cdi_devices.push(device.name);
            }
        }
    }
    extras
}

#[cfg(test)]
#[path = "assign/tests.rs"]
mod tests;
