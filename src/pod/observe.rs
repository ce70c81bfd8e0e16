//! Reads what the runtime has of one pod.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use stoker_model::pod::PodUid;
use stoker_model::{metrics, names};

use super::container::PRE_STOP_HANDLER;
use super::observed::{Instance, InstanceState, Sandbox};
use super::relist::Lister;
use super::shared::Directory;
use crate::clock::Clock;
use crate::runtime::{Runtime, RuntimeError, cri, logs};

/// A termination message is cut here (A4.8).
const LONGEST_MESSAGE: usize = 4096;
/// What of a log may serve as a message (A4.8).
const LOG_MESSAGE_BYTES: usize = 2048;
const LOG_MESSAGE_LINES: u64 = 80;

/// What ends by SIGKILL ends with this exit code.
const KILLED: i32 = 137;
/// containerd hears of a kill for want of memory by an event of its own, mostly before that of the end, and else some milliseconds after
/// it. CRI's own event stream has none for it. kubelet looks each second; this is twice that.
pub(super) const EXPLAINED_AFTER: Duration = Duration::from_secs(2);

/// Sandboxes and containers of one pod, each newest first.
pub(super) type View = (Vec<Sandbox>, Vec<Instance>);

/// What a call of the worker's own has changed in the runtime; the runtime has said that it is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Touched {
    /// A sandbox was made.
    Sandbox(String),
    /// A sandbox was stopped, and everything in it.
    SandboxStopped(String),
    /// A sandbox was removed, and everything in it.
    SandboxGone(String),
    /// A container was made in this sandbox, and perhaps started.
    Made { id: String, sandbox: String },
    /// A container was started, or has ended.
    Container(String),
    /// A container was removed.
    Gone(String),
}

/// Notes that a look begins, and returns when.
fn begin(known: &Directory) -> Duration {
    let begun = Clock.now().monotonic;
    if let Some(interval) = known.looks(begun) {
        metrics::PLEG_RELIST_INTERVAL.observe(&[], interval);
    }
    begun
}

/// Notes how long a look took (A23.3): of everything, or of what was touched.
fn end(begun: Duration) {
    metrics::PLEG_RELIST_DURATION.observe(&[], Clock.now().monotonic.saturating_sub(begun));
}

/// Reads one pod's part of the runtime, and remembers what can no longer change.
#[derive(Debug, Default)]
pub(super) struct Observer {
    /// Containers that run or have ended, by ID: nothing else of them changes before their state does, but for a reason that comes late.
    /// Boxed, as the least table has four places.
    known: HashMap<String, Box<Instance>>,
    /// Sandboxes with their addresses, by ID; used while they are ready.
    sandboxes: HashMap<String, Box<Sandbox>>,
}

impl Observer {
    /// Everything that the runtime has of the pod. `known` is told their IDs before any of them is looked at closely: an event
    /// about one of them that comes later than that is passed on, and one that came earlier is seen.
    pub(super) async fn look(
        &mut self,
        runtime: &Runtime,
        lister: &Lister,
        uid: &PodUid,
        known: &Directory,
    ) -> Result<View, RuntimeError> {
        let begun = begin(known);
        let (sandboxes, containers) = lister.list(uid).await?;
        known.put_ids(uid, sandboxes.iter().map(|s| s.id.as_str()).chain(containers.iter().map(|c| c.id.as_str())));
        let mut seen_sandboxes = Vec::with_capacity(sandboxes.len());
        for listed in sandboxes {
            let ready = listed.state() == cri::PodSandboxState::SandboxReady;
            if let Some(sandbox) = self.sandbox(runtime, &listed.id, ready).await? {
                seen_sandboxes.push(sandbox);
            }
        }
        let mut instances = Vec::with_capacity(containers.len());
        for listed in containers {
            let runs = listed.state() == cri::ContainerState::ContainerRunning;
            if let Some(instance) = self.instance(runtime, (&listed.id, &listed.pod_sandbox_id), runs).await? {
                instances.push(instance);
            }
        }
        let view = self.in_order(seen_sandboxes, instances);
        end(begun);
        Ok(view)
    }

    /// The same where nothing has happened since a look but what the worker did itself: only that is looked at. What a call has made
    /// or ended is asked for after the call, so the view is no older than the worker's own steps.
    pub(super) async fn look_at(
        &mut self,
        runtime: &Runtime,
        uid: &PodUid,
        known: &Directory,
        (mut sandboxes, mut containers): View,
        touched: &[Touched],
    ) -> Result<View, RuntimeError> {
        let begun = begin(known);
        let mut look_at: Vec<(String, String)> = Vec::new();
        for touched in touched {
            match touched {
                Touched::Sandbox(id) => {
                    known.put_ids(uid, [id.as_str()]);
                    sandboxes.retain(|s| s.id != *id);
                    sandboxes.extend(self.sandbox(runtime, id, true).await?);
                }
                Touched::SandboxStopped(id) => {
                    for sandbox in
                        sandboxes.iter_mut().chain(self.sandboxes.get_mut(id).map(Box::as_mut)).filter(|s| s.id == *id)
                    {
                        sandbox.ready = false;
                    }
                    let alive = containers.iter().filter(|c| c.sandbox_id == *id && c.state != InstanceState::Exited);
                    look_at.extend(alive.map(|c| (c.id.clone(), id.clone())));
                }
                Touched::SandboxGone(id) => {
                    let within = containers.iter().filter(|c| c.sandbox_id == *id).map(|c| c.id.as_str());
                    known.drop_ids(within.chain([id.as_str()]));
                    sandboxes.retain(|s| s.id != *id);
                    containers.retain(|c| c.sandbox_id != *id);
                }
                Touched::Made { id, sandbox } => look_at.push((id.clone(), sandbox.clone())),
                Touched::Container(id) => {
                    let found = containers.iter().find(|c| c.id == *id);
                    look_at.extend(found.map(|c| (id.clone(), c.sandbox_id.clone())));
                }
                Touched::Gone(id) => {
                    known.drop_ids([id.as_str()]);
                    containers.retain(|c| c.id != *id);
                    look_at.retain(|(of, _)| of != id);
                }
            }
        }
        look_at.sort();
        look_at.dedup();
        known.put_ids(uid, look_at.iter().map(|(id, _)| id.as_str()));
        for (id, sandbox) in look_at {
            containers.retain(|c| c.id != id);
            containers.extend(self.instance(runtime, (&id, &sandbox), false).await?);
        }
        end(begun);
        Ok(self.in_order(sandboxes, containers))
    }

    fn in_order(&mut self, mut sandboxes: Vec<Sandbox>, mut instances: Vec<Instance>) -> View {
        sandboxes.sort_by_key(|s| std::cmp::Reverse((s.created_at, s.attempt)));
        instances.sort_by_key(|i| std::cmp::Reverse((i.created_at, i.restart_count)));
        self.known.retain(|id, _| instances.iter().any(|i| i.id == *id));
        self.sandboxes.retain(|id, _| sandboxes.iter().any(|s| s.id == *id));
        (sandboxes, instances)
    }

    /// `ready`: what the list says.
    async fn sandbox(&mut self, runtime: &Runtime, id: &str, ready: bool) -> Result<Option<Sandbox>, RuntimeError> {
        // Addresses may come after the sandbox itself.
        if let Some(known) = self.sandboxes.get_mut(id).filter(|s| s.host_network || !s.ips.is_empty()) {
            known.ready = ready;
            return Ok(Some((**known).clone()));
        }
        let answer = match runtime.pod_sandbox_status(id, false).await {
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
            id: id.to_owned(),
            attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
            ready,
            host_network: options.is_some_and(|o| o.network() == cri::NamespaceMode::Node),
            handler: status.runtime_handler,
            ips: ips.filter(|ip| !ip.is_empty()).collect(),
            created_at: time(status.created_at).unwrap_or_default(),
        };
        self.sandboxes.insert(sandbox.id.clone(), Box::new(sandbox.clone()));
        Ok(Some(sandbox))
    }

    /// A container and its sandbox; `runs`: what the list says.
    async fn instance(
        &mut self,
        runtime: &Runtime,
        (id, sandbox): (&str, &str),
        runs: bool,
    ) -> Result<Option<Instance>, RuntimeError> {
        let as_before = |known: &Instance| known.state == InstanceState::Exited || runs;
        if let Some(known) = self.known.get(id).filter(|known| as_before(known)) {
            return Ok(Some((**known).clone()));
        }
        let now = Clock.now().wall;
        let answer = match runtime.container_status(id, false).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        let Some(status) = answer.status else { return Ok(None) };
        let mut instance = of_status(&status, sandbox);
        instance.is_unexplained = may_be_explained(&instance, now) && !runtime.is_ending(id);
        if instance.state == InstanceState::Exited {
            let last_words = last_words(&status).await;
            if !last_words.is_empty() {
                let separator = if instance.message.is_empty() { "" } else { ": " };
                instance.message = format!("{}{separator}{last_words}", instance.message);
            }
        }
        if instance.is_settled() {
            self.known.insert(instance.id.clone(), Box::new(instance.clone()));
        }
        Ok(Some(instance))
    }
}

/// Whether it was killed, and so short a while before `now` that the reason may still come.
fn may_be_explained(instance: &Instance, now: Timestamp) -> bool {
    let killed = instance.state == InstanceState::Exited && instance.exit_code == KILLED && instance.reason == "Error";
    let since = instance.finished_at.and_then(|end| Duration::try_from(now.duration_since(end)).ok());
    killed && since.is_some_and(|since| since < EXPLAINED_AFTER)
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
        is_unexplained: false,
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
        Some(mount) => read_head(PathBuf::from(&mount.host_path)).await,
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

/// In one go aside: each step of an asynchronous file would wait for a thread of its own.
async fn read_head(path: PathBuf) -> String {
    let read = tokio::task::spawn_blocking(move || {
        let limit = u64::try_from(LONGEST_MESSAGE).unwrap_or(u64::MAX);
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    });
    match read.await {
        Ok(Ok(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(Err(_)) | Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_killed_just_now_may_yet_be_explained() {
        // A2.22
        let end = Timestamp::from_second(1000).unwrap();
        let killed = Instance {
            state: InstanceState::Exited,
            exit_code: 137,
            reason: "Error".into(),
            finished_at: Some(end),
            ..Instance::default()
        };
        let after = |instance: &Instance, passed: Duration| may_be_explained(instance, end + passed);
        assert!(after(&killed, Duration::ZERO) && after(&killed, EXPLAINED_AFTER - Duration::from_millis(1)));
        assert!(!after(&killed, EXPLAINED_AFTER));
        assert!(!may_be_explained(&killed, end - Duration::from_secs(1)), "the clock was set: it is not waited for");
        let others = [
            Instance { exit_code: 1, ..killed.clone() },
            Instance { exit_code: 0, reason: "Completed".into(), ..killed.clone() },
            Instance { reason: "OOMKilled".into(), ..killed.clone() },
            Instance { state: InstanceState::Running, ..killed.clone() },
            Instance { finished_at: None, ..killed },
        ];
        assert!(others.iter().all(|other| !after(other, Duration::ZERO)));
    }
}
