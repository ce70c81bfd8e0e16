//! Reads what the runtime has of one pod.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use stoker_model::pod::PodUid;
use stoker_model::{metrics, names};

use super::container::PRE_STOP_HANDLER;
use super::observed::{Instance, InstanceState, Sandbox};
use super::shared::Directory;
use crate::clock::Clock;
use crate::runtime::{Runtime, RuntimeError, cri, logs};

/// A termination message is cut here (A4.8).
const LONGEST_MESSAGE: usize = 4096;
/// What of a log may serve as a message (A4.8).
const LOG_MESSAGE_BYTES: usize = 2048;
const LOG_MESSAGE_LINES: u64 = 80;

/// Reads one pod's part of the runtime, and remembers what can no longer change.
#[derive(Debug, Default)]
pub(super) struct Observer {
    /// Containers that run or have ended, by ID: nothing else of them changes before their state does.
    known: HashMap<String, Instance>,
    /// Sandboxes with their addresses, by ID; used while they are ready.
    sandboxes: HashMap<String, Sandbox>,
}

impl Observer {
    /// Sandboxes and containers, each newest first. `known` is told their IDs before any of them is looked at closely: an event
    /// about one of them that comes later than that is passed on, and one that came earlier is seen.
    pub(super) async fn look(
        &mut self,
        runtime: &Runtime,
        uid: &PodUid,
        known: &Directory,
    ) -> Result<(Vec<Sandbox>, Vec<Instance>), RuntimeError> {
        let begun = Clock.now().monotonic;
        if let Some(interval) = known.looks(begun) {
            metrics::PLEG_RELIST_INTERVAL.observe(&[], interval);
        }
        let labels = [(names::POD_UID.to_owned(), uid.to_string())];
        let of_pod = cri::PodSandboxFilter { label_selector: labels.clone().into(), ..Default::default() };
        let containers_of_pod = cri::ContainerFilter { label_selector: labels.into(), ..Default::default() };
        let (sandboxes, containers) =
            tokio::try_join!(runtime.list_pod_sandbox(Some(of_pod)), runtime.list_containers(Some(containers_of_pod)))?;
        let ids = sandboxes.iter().map(|s| s.id.clone()).chain(containers.iter().map(|c| c.id.clone()));
        known.put_ids(uid, &ids.collect::<Vec<_>>());
        let mut seen_sandboxes = Vec::with_capacity(sandboxes.len());
        for listed in sandboxes {
            if let Some(sandbox) = self.sandbox(runtime, &listed).await? {
                seen_sandboxes.push(sandbox);
            }
        }
        let mut instances = Vec::with_capacity(containers.len());
        for listed in containers {
            if let Some(instance) = self.instance(runtime, &listed).await? {
                instances.push(instance);
            }
        }
        seen_sandboxes.sort_by_key(|s| std::cmp::Reverse((s.created_at, s.attempt)));
        instances.sort_by_key(|i| std::cmp::Reverse((i.created_at, i.restart_count)));
        self.known.retain(|id, _| instances.iter().any(|i| i.id == *id));
        self.sandboxes.retain(|id, _| seen_sandboxes.iter().any(|s| s.id == *id));
        metrics::PLEG_RELIST_DURATION.observe(&[], Clock.now().monotonic.saturating_sub(begun));
        Ok((seen_sandboxes, instances))
    }

    async fn sandbox(&mut self, runtime: &Runtime, listed: &cri::PodSandbox) -> Result<Option<Sandbox>, RuntimeError> {
        let ready = listed.state() == cri::PodSandboxState::SandboxReady;
        // Addresses may come after the sandbox itself.
        if let Some(known) = self.sandboxes.get_mut(&listed.id).filter(|s| s.host_network || !s.ips.is_empty()) {
            known.ready = ready;
            return Ok(Some(known.clone()));
        }
        let answer = match runtime.pod_sandbox_status(&listed.id, false).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        let Some(status) = answer.status else { return Ok(None) };
        // Younger than the list.
        let ready = status.state() == cri::PodSandboxState::SandboxReady;
        let network = status.network.clone().unwrap_or_default();
        let options = status.linux.as_ref().and_then(|l| l.namespaces.as_ref()).and_then(|n| n.options.as_ref());
        let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        let sandbox = Sandbox {
            id: listed.id.clone(),
            attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
            ready,
            host_network: options.is_some_and(|o| o.network() == cri::NamespaceMode::Node),
            handler: status.runtime_handler,
            ips: ips.filter(|ip| !ip.is_empty()).collect(),
            created_at: time(status.created_at).unwrap_or_default(),
        };
        self.sandboxes.insert(sandbox.id.clone(), sandbox.clone());
        Ok(Some(sandbox))
    }

    async fn instance(&mut self, runtime: &Runtime, listed: &cri::Container) -> Result<Option<Instance>, RuntimeError> {
        let runs = listed.state() == cri::ContainerState::ContainerRunning;
        let as_before = |known: &&Instance| known.state == InstanceState::Exited || runs;
        if let Some(known) = self.known.get(&listed.id).filter(as_before) {
            return Ok(Some(known.clone()));
        }
        let answer = match runtime.container_status(&listed.id, false).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        let Some(status) = answer.status else { return Ok(None) };
        let mut instance = of_status(&status, &listed.pod_sandbox_id);
        if instance.state == InstanceState::Exited {
            let last_words = last_words(&status).await;
            if !last_words.is_empty() {
                let separator = if instance.message.is_empty() { "" } else { ": " };
                instance.message = format!("{}{separator}{last_words}", instance.message);
            }
        }
        if matches!(instance.state, InstanceState::Running | InstanceState::Exited) {
            self.known.insert(instance.id.clone(), instance.clone());
        }
        Ok(Some(instance))
    }
}

fn of_status(status: &cri::ContainerStatus, sandbox_id: &str) -> Instance {
    let attempt = status.metadata.as_ref().map_or(0, |m| m.attempt);
    let count = status.annotations.get(names::CONTAINER_RESTART_COUNT).and_then(|text| text.parse().ok());
    let spec = status.image.clone().unwrap_or_default();
    let name = status.labels.get(names::CONTAINER_NAME).cloned();
    Instance {
        id: status.id.clone(),
        name: name.or_else(|| status.metadata.as_ref().map(|m| m.name.clone())).unwrap_or_default(),
        sandbox_id: sandbox_id.to_owned(),
        state: match status.state() {
            cri::ContainerState::ContainerCreated => InstanceState::Created,
            cri::ContainerState::ContainerRunning => InstanceState::Running,
            cri::ContainerState::ContainerExited => InstanceState::Exited,
            cri::ContainerState::ContainerUnknown => InstanceState::Unknown,
        },
        restart_count: count.unwrap_or(attempt),
        hash: status.annotations.get(names::CONTAINER_HASH).cloned(),
        created_at: time(status.created_at).unwrap_or_default(),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        image: if spec.user_specified_image.is_empty() { spec.image } else { spec.user_specified_image },
        image_ref: status.image_ref.clone(),
        user: status
            .user
            .as_ref()
            .and_then(|user| user.linux.as_ref())
            .map(|l| (l.uid, l.gid, l.supplemental_groups.clone())),
        pre_stop: status.annotations.get(PRE_STOP_HANDLER).cloned(),
        ports: status.annotations.get(names::CONTAINER_PORTS).cloned(),
    }
}

fn time(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(i128::from(nanoseconds)).ok())?
}

/// The container's termination message, or the end of its log where it asked for that (A4.8).
async fn last_words(status: &cri::ContainerStatus) -> String {
    let path = status.annotations.get(names::TERMINATION_MESSAGE_PATH);
    let mount = path.and_then(|path| status.mounts.iter().find(|m| m.container_path == *path));
    let message = match mount {
        Some(mount) => read_head(Path::new(&mount.host_path)).await,
        None => String::new(),
    };
    let policy = status.annotations.get(names::TERMINATION_MESSAGE_POLICY).map(String::as_str);
    let falls_back = policy == Some("FallbackToLogsOnError") && status.exit_code != 0;
    if !message.is_empty() || !falls_back || status.log_path.is_empty() {
        return message;
    }
    let tail = logs::tail(PathBuf::from(&status.log_path), LOG_MESSAGE_LINES, LOG_MESSAGE_BYTES).await;
    tail.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

async fn read_head(path: &Path) -> String {
    use tokio::io::AsyncReadExt;
    let Ok(file) = tokio::fs::File::open(path).await else { return String::new() };
    let mut bytes = Vec::new();
    let limit = u64::try_from(LONGEST_MESSAGE).unwrap_or(u64::MAX);
    match file.take(limit).read_to_end(&mut bytes).await {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}
