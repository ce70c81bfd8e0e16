//! A node: containerd, the API in memory, and an agent that can be killed and started again; and a builder for pods.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStatus, EnvVar, Pod, PodSpec, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use stoker::cgroup::{CgroupConfig, Cgroups};
use stoker::clock::Clock;
use stoker::node::eviction::{EvictionHandles, EvictionSettings, Pressures, ThresholdFields, evict};
use stoker::pod::{IdRange, PodHandles, Pods, PodsConfig, StaticSources, Users};
use stoker::resources::{Assignments, Machine, ResourcesConfig, serve_pod_resources};
use stoker::runtime::gc::{ImageCollector, ImagePolicy};
use stoker::runtime::{Images, NodeCredentials, PullRecords, VerificationPolicy, events};
use stoker::volume::Volumes;
use stoker::volume::csi::{Drivers, watch_plugins};
use stoker_model::handle::{DiskMeter as _, Eviction, NodeSnapshot, PodEvictor as _, ProbeMetrics as _, VolumeFill};
use stoker_model::pod::PodUid;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::lab::{BUSYBOX, Lab, PAUSE};

/// Those of pods with users of their own.
pub const IDS: IdRange = IdRange { first: 131_072, length: 3 * 65536 };

pub struct Node {
    pub lab: Lab,
    pub api: Api,
    agent: Option<Agent>,
    /// Of the agent that runs.
    pub assignments: Option<Assignments>,
    /// How the agents that are started from now on assign.
    pub resources: ResourcesConfig,
    node: watch::Sender<Arc<NodeSnapshot>>,
    /// The agents that are started from now on read static pods here.
    pub static_path: Option<PathBuf>,
    /// So often the agents that are started from now on look for what pods left behind.
    pub garbage_every: Duration,
    /// So often the agents that are started from now on look at a pod though nothing happened.
    pub sync_frequency: Duration,
    /// The agents that are started from now on hear nothing of the runtime.
    pub is_deaf: bool,
    /// Goes after the lab, also when a test fails.
    _groups: Groups,
}

/// What runs as long as one agent.
struct Agent {
    stop: CancellationToken,
    pods: Pods,
    cgroups: Cgroups,
    volumes: Volumes,
}

/// The control groups of a node, which go with it.
struct Groups(OsString);

impl Drop for Groups {
    fn drop(&mut self) {
        for tree in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            remove_below(&tree.path().join(&self.0));
        }
        remove_below(&Path::new("/sys/fs/cgroup").join(&self.0));
    }
}

fn remove_below(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        remove_below(&entry.path());
    }
    let _ = fs::remove_dir(group);
}

impl Node {
    pub async fn start() -> Self {
        let lab = Lab::with_busybox().await;
        let amounts: BTreeMap<String, Quantity> = [("cpu", "4"), ("memory", "4Gi"), ("pods", "110")]
            .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
            .into();
        let snapshot = NodeSnapshot {
            name: "node-1".into(),
            uid: Some("node-1-uid".into()),
            ips: vec!["192.0.2.7".parse().unwrap()],
            allocatable: amounts.clone(),
            capacity: amounts,
            network_ready: true,
            ..NodeSnapshot::default()
        };
        let groups = Groups(lab.path().file_name().unwrap().to_owned());
        let node = watch::Sender::new(Arc::new(snapshot));
        let resources = ResourcesConfig::new(lab.path().join("kubelet"));
        let mut node = Self {
            lab,
            api: Api::new(),
            agent: None,
            assignments: None,
            resources,
            node,
            static_path: None,
            garbage_every: PodsConfig::default().garbage_every,
            sync_frequency: PodsConfig::default().sync_frequency,
            is_deaf: false,
            _groups: groups,
        };
        node.start_agent();
        node
    }

    pub fn start_agent(&mut self) {
        let stop = CancellationToken::new();
        let runtime = self.lab.runtime.clone();
        let cgroup_root = format!("/{}", self.lab.path().file_name().unwrap().to_str().unwrap());
        let cgroups = Cgroups::open(CgroupConfig { root: cgroup_root, ..CgroupConfig::default() }).unwrap();
        let api = Arc::new(self.api.clone());
        let config = PodsConfig {
            root_dir: self.path("kubelet"),
            log_dir: self.path("pod-logs"),
            link_dir: self.path("links"),
            resolv_conf: None,
            static_sources: StaticSources { path: self.static_path.clone(), ..StaticSources::default() },
            garbage_every: self.garbage_every,
            sync_frequency: self.sync_frequency,
            users: Some(Users::open(&self.path("kubelet/pods"), IDS, 65536, 3).unwrap()),
            ..PodsConfig::default()
        };
        let records = PullRecords::new(&self.path("kubelet"), VerificationPolicy::default(), Clock);
        let machine = Machine::read(Path::new("/sys"));
        let assignments = Assignments::start(self.resources.clone(), machine, stop.clone()).unwrap();
        self.assignments = Some(assignments.clone());
        let drivers = Drivers::default();
        let plugins = self.path("kubelet/plugins_registry");
        let others = assignments.plugins();
        assignments.use_claims_of(api.clone());
        tokio::spawn(watch_plugins(plugins, drivers.clone(), Some(api.clone()), others, stop.clone()));
        let volumes = Volumes::new(&self.path("kubelet"), api.clone())
            .with_storage(api.clone(), drivers)
            .with_events(api.clone())
            .with_patience(Duration::from_secs(3));
        let handles = PodHandles {
            images: Images::new(runtime.clone(), NonZeroUsize::MIN)
                .with_records(Arc::new(records))
                .with_node_credentials(NodeCredentials {
                    root_dir: Some(self.path("kubelet")),
                    ..NodeCredentials::default()
                }),
            events: match self.is_deaf {
                false => events::spawn(runtime.clone(), stop.clone()),
                true => tokio::sync::mpsc::channel(1).1,
            },
            runtime,
            pods: self.api.feed(),
            node: self.node.subscribe(),
            api: api.clone(),
            mirrors: api.clone(),
            objects: api.clone(),
            services: api.clone(),
            sink: api.clone(),
            cgroups: cgroups.clone(),
            volumes: volumes.clone(),
            assignments: assignments.clone(),
        };
        let pods = Pods::spawn(config, handles, stop.clone());
        serve_pod_resources(&self.path("kubelet"), Arc::new(pods.clone()), assignments, stop.clone()).unwrap();
        self.agent = Some(Agent { stop, pods, cgroups, volumes });
    }

    /// What drivers tell of a pod's volumes.
    pub async fn told_by_drivers(&self, pod: &Pod) -> BTreeMap<String, VolumeFill> {
        let volumes = self.agent.as_ref().expect("an agent runs").volumes.clone();
        volumes.told_by_drivers(pod).await
    }

    /// Bounds the memory of all pods together.
    pub fn limit_pods(&self, memory_bytes: i64) {
        self.agent.as_ref().expect("an agent runs").cgroups.limit_pods(1024, Some(memory_bytes), None).unwrap();
    }

    /// Watches over what the node has left, with these thresholds.
    pub fn start_eviction(&self, fields: &ThresholdFields) -> watch::Receiver<Pressures> {
        let agent = self.agent.as_ref().expect("an agent runs");
        let api = Arc::new(self.api.clone());
        let policy =
            ImagePolicy { high_percent: 100, low_percent: 99, min_age: Duration::ZERO, max_age: Duration::ZERO };
        let collector = ImageCollector::new(self.lab.runtime.clone(), policy, vec![PAUSE.to_owned()], Clock);
        let handles = EvictionHandles {
            runtime: self.lab.runtime.clone(),
            usage: Arc::new(agent.cgroups.clone()),
            disks: Arc::new(agent.volumes.clone()),
            pods: Arc::new(agent.pods.clone()),
            evictor: Arc::new(agent.pods.clone()),
            images: collector.reclaimer(),
            events: api.clone(),
        };
        let mut settings = EvictionSettings::new(fields, self.path("kubelet"), self.path("pod-logs")).unwrap();
        settings.memcg_notification = true;
        let (pressures, held) = watch::channel(Pressures::new());
        tokio::spawn(agent.stop.clone().run_until_cancelled_owned(collector.run(api)));
        tokio::spawn(agent.stop.clone().run_until_cancelled_owned(evict(settings, handles, pressures, Clock)));
        held
    }

    /// What `/metrics/probes` shows.
    pub fn probe_metrics(&self) -> String {
        self.agent.as_ref().expect("an agent runs").pods.probe_metrics()
    }

    /// Orders a pod's end, as the node does.
    pub fn evict(&self, uid: &PodUid, eviction: Eviction) {
        assert!(self.agent.as_ref().expect("an agent runs").pods.evict(uid, eviction), "the order was not taken");
    }

    /// Changes how pods see the node.
    pub fn change_node(&self, change: impl FnOnce(&mut NodeSnapshot)) {
        self.node.send_modify(|node| change(Arc::make_mut(node)));
    }

    /// Nothing in memory survives.
    pub async fn stop_agent(&mut self) {
        self.agent.take().unwrap().stop.cancel();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.lab.path().join(name)
    }

    /// Nothing of the pod is left: no sandbox, directory, control group, log.
    pub async fn until_nothing_is_left(&self, uid: &PodUid) {
        for _ in 0..200 {
            if self.leftovers(uid).await.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("left: {:?}", self.leftovers(uid).await);
    }

    async fn leftovers(&self, uid: &PodUid) -> Vec<String> {
        let sandboxes = self.lab.runtime.list_pod_sandbox(None).await.unwrap();
        let mut left: Vec<String> = sandboxes
            .into_iter()
            .filter(|s| s.metadata.as_ref().is_some_and(|m| m.uid == uid.as_str()))
            .map(|s| format!("sandbox {}", s.id))
            .collect();
        let root = self.lab.path().file_name().unwrap();
        let group = format!("pod{uid}");
        for tree in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            for class in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
                let path = tree.path().join(root).join(class).join(&group);
                left.extend(path.exists().then(|| path.display().to_string()));
            }
        }
        let dir = self.path("kubelet/pods").join(uid.as_str());
        left.extend(dir.exists().then(|| dir.display().to_string()));
        for logs in ["pod-logs", "links"] {
            let entries = fs::read_dir(self.path(logs)).into_iter().flatten().flatten();
            let link_prefix = format!("{}_default_", uid.as_str().trim_end_matches("-uid"));
            let of_pod = |name: &str| name.starts_with(&link_prefix) || name.ends_with(uid.as_str());
            left.extend(entries.filter_map(|e| e.file_name().into_string().ok()).filter(|name| of_pod(name)));
        }
        left
    }

    /// Ends everything, and finds what the agent left behind.
    pub async fn stop(mut self) {
        if self.agent.is_some() {
            self.stop_agent().await;
        }
        let kubelet = self.path("kubelet");
        for line in fs::read_to_string("/proc/self/mounts").unwrap().lines().rev() {
            let place = line.split(' ').nth(1).unwrap_or_default();
            if Path::new(place).starts_with(&kubelet) {
                let _ = std::process::Command::new("umount").args(["-l", place]).status();
            }
        }
        self.lab.stop().await;
    }
}

/// A pod in the node's network, with restart policy Always and a grace of 2 s.
pub fn pod(name: &str) -> Builder {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.into());
    pod.metadata.namespace = Some("default".into());
    pod.metadata.uid = Some(format!("{name}-uid"));
    pod.metadata.generation = Some(1);
    #[expect(clippy::disallowed_methods, reason = "this plays the API server")]
    let now = Timestamp::now();
    pod.metadata.creation_timestamp = Some(Time(now));
    pod.spec = Some(PodSpec {
        host_network: Some(true),
        restart_policy: Some("Always".into()),
        termination_grace_period_seconds: Some(2),
        node_name: Some("node-1".into()),
        ..PodSpec::default()
    });
    Builder(pod)
}

pub struct Builder(pub Pod);

impl Builder {
    pub fn spec(mut self, change: impl FnOnce(&mut PodSpec)) -> Self {
        change(self.0.spec.as_mut().unwrap());
        self
    }

    pub fn restart(self, policy: &str) -> Self {
        self.spec(|spec| spec.restart_policy = Some(policy.into()))
    }

    pub fn container(self, name: &str, script: &str) -> Self {
        self.spec(|spec| spec.containers.push(container(name, script)))
    }

    pub fn init(self, name: &str, script: &str) -> Self {
        self.spec(|spec| spec.init_containers.get_or_insert_default().push(container(name, script)))
    }

    pub fn sidecar(self, name: &str, script: &str) -> Self {
        let sidecar = Container { restart_policy: Some("Always".into()), ..container(name, script) };
        self.spec(|spec| spec.init_containers.get_or_insert_default().push(sidecar))
    }

    /// Changes the container added last.
    pub fn with(self, change: impl FnOnce(&mut Container)) -> Self {
        self.spec(|spec| change(spec.containers.last_mut().unwrap()))
    }

    pub fn env(self, name: &str, value: &str) -> Self {
        let variable = EnvVar { name: name.into(), value: Some(value.into()), ..EnvVar::default() };
        self.with(|c| c.env.get_or_insert_default().push(variable))
    }

    pub fn volume(self, volume: Volume, path: &str) -> Self {
        let mount = VolumeMount { name: volume.name.clone(), mount_path: path.into(), ..VolumeMount::default() };
        self.spec(|spec| spec.volumes.get_or_insert_default().push(volume))
            .with(|c| c.volume_mounts.get_or_insert_default().push(mount))
    }
}

fn container(name: &str, script: &str) -> Container {
    Container {
        name: name.into(),
        image: Some(BUSYBOX.into()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(["/bin/busybox", "sh", "-c", script].map(String::from).to_vec()),
        ..Container::default()
    }
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

pub fn condition(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind && c.status == "True")
}

/// The status of a container, of whatever kind.
pub fn status(pod: &Pod, name: &str) -> ContainerStatus {
    let status = pod.status.clone().unwrap_or_default();
    let all = [status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses];
    all.into_iter().flatten().flatten().find(|c| c.name == name).unwrap_or_default()
}

/// `waiting Reason`, `running`, `terminated 3 Error`.
pub fn state(state: Option<&ContainerState>) -> String {
    match state {
        Some(ContainerState { waiting: Some(w), .. }) => format!("waiting {}", w.reason.as_deref().unwrap_or_default()),
        Some(ContainerState { running: Some(_), .. }) => "running".into(),
        Some(ContainerState { terminated: Some(t), .. }) => {
            format!("terminated {} {}", t.exit_code, t.reason.as_deref().unwrap_or_default())
        }
        _ => String::new(),
    }
}
