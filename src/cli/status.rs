//! `stoker status`: what the running agent says of its node, over a socket that only root may use.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerStatus;
use serde::{Deserialize, Serialize};
use stoker_model::handle::PodDirectory;
use stoker_model::pod::LocalPod;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::node::Observation;
use crate::pod::Pods;
use crate::upstream::ServiceStore;

/// Beside the pods' directories.
const SOCKET: &str = "stoker.sock";
const PATIENCE: Duration = Duration::from_secs(5);
/// Of the slow steps, the newest.
const STEPS_SHOWN: usize = 10;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum StatusError {
    #[error("no agent answers at {path}: {source}; is stoker running, and are you root?")]
    Away { path: PathBuf, source: io::Error },
    #[error("the agent's answer cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
}

/// Everything that is shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    node: String,
    version: String,
    up_seconds: u64,
    runtime: String,
    conditions: Vec<Condition>,
    /// `None`: not listed yet, or no API server.
    services: Option<usize>,
    pods: Vec<PodLine>,
    slow_steps: Vec<Step>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Condition {
    r#type: String,
    status: bool,
    reason: String,
    message: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct PodLine {
    namespace: String,
    name: String,
    phase: String,
    ready: usize,
    containers: usize,
    restarts: i32,
    /// Why it does not run as it should.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    why: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Step {
    pod: String,
    step: String,
    milliseconds: u64,
}

/// What the running agent knows.
pub(super) struct Teller {
    pub(super) node: String,
    pub(super) observations: watch::Receiver<Option<Arc<Observation>>>,
    pub(super) services: Option<ServiceStore>,
    pub(super) pods: Arc<OnceLock<Pods>>,
}

impl Teller {
    fn tell(&self, up: Duration) -> Status {
        let seen = self.observations.borrow().clone();
        let condition = |(kind, holds, reason, message): (&str, bool, &str, &str)| Condition {
            r#type: kind.to_owned(),
            status: holds,
            reason: reason.to_owned(),
            message: message.to_owned(),
        };
        let pods = self.pods.get();
        let mut lines: Vec<PodLine> = pods.map(|pods| pods.pods().iter().map(line).collect()).unwrap_or_default();
        lines.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        let steps = pods.map(Pods::slow_steps).unwrap_or_default();
        let milliseconds = |took: Duration| u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Status {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            up_seconds: up.as_secs(),
            runtime: seen.as_ref().map(|seen| seen.runtime().to_owned()).unwrap_or_default(),
            conditions: seen.iter().flat_map(|seen| seen.conditions()).map(condition).collect(),
            services: self
                .services
                .as_ref()
                .map(ServiceStore::count)
                .filter(|(_, listed)| *listed)
                .map(|(count, _)| count),
            pods: lines,
            slow_steps: steps
                .into_iter()
                .map(|slow| Step { pod: slow.pod, step: slow.step, milliseconds: milliseconds(slow.took) })
                .collect(),
        }
    }
}

/// Opens the socket anew; whatever lies in its place is what an agent has left that does not run any more.
pub(super) fn listen(root: &Path) -> io::Result<UnixListener> {
    let path = root.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Tells each that connects, and hangs up; ends never.
pub(super) async fn serve(listener: UnixListener, teller: Teller) {
    let started = Clock.now().monotonic;
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // The socket's mode says so already, but not on every system from the first moment on.
        if !client.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
            continue;
        }
        let status = teller.tell(Clock.now().monotonic.saturating_sub(started));
        let text = serde_json::to_vec(&status).unwrap_or_default();
        let told = tokio::time::timeout(PATIENCE, async {
            client.write_all(&text).await?;
            client.shutdown().await
        });
        if !matches!(told.await, Ok(Ok(()))) {
            tracing::debug!("somebody asked for the status and did not listen");
        }
    }
}

/// The command.
pub(super) fn command() -> Command {
    Command::new("status")
        .about("Show the node, its pods and why they do not run, as the running agent knows them")
        .arg(Arg::new("root-dir").long("root-dir").value_name("DIR").default_value("/var/lib/kubelet"))
        .arg(Arg::new("output").short('o').long("output").value_parser(["text", "json"]).default_value("text"))
}

/// Asks, and prints.
pub(super) fn run(matches: &ArgMatches) -> Result<(), StatusError> {
    let path = PathBuf::from(matches.get_one::<String>("root-dir").cloned().unwrap_or_default()).join(SOCKET);
    let ask = || -> io::Result<String> {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = ask().map_err(|source| StatusError::Away { path: path.clone(), source })?;
    let status: Status = serde_json::from_str(&text)?;
    if matches.get_one::<String>("output").is_some_and(|output| output == "json") {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", screen(&status));
    }
    Ok(())
}

/// For people.
fn screen(status: &Status) -> String {
    let Status { node, version, up_seconds, runtime, .. } = status;
    let (hours, minutes) = (up_seconds / 3600, up_seconds / 60 % 60);
    let mut text = format!("node {node}, stoker {version}, up {hours} h {minutes} min, {runtime}\n");
    for condition in &status.conditions {
        // Ready is good when it holds, the others when they do not.
        let mark = if condition.status == (condition.r#type == "Ready") { ' ' } else { '!' };
        text += &format!("{mark} {:<18} {:<5} {}\n", condition.r#type, condition.status, condition.message);
    }
    match status.services {
        Some(count) => text += &format!("  {count} services\n"),
        None => text += "  no services are known yet\n",
    }
    text += &format!("\n{} pods\n", status.pods.len());
    let width = status.pods.iter().map(|pod| pod.namespace.len() + pod.name.len() + 1).max().unwrap_or_default();
    for pod in &status.pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let mark = if pod.why.is_some() { '!' } else { ' ' };
        text += &format!("{mark} {name:<width$}  {:<9} {}/{} ready", pod.phase, pod.ready, pod.containers);
        if pod.restarts > 0 {
            text += &format!(", {} restarts", pod.restarts);
        }
        if let Some(why) = &pod.why {
            text += &format!(": {why}");
        }
        text.push('\n');
    }
    if !status.slow_steps.is_empty() {
        text += "\nslow steps of the last pod starts\n";
        for step in status.slow_steps.iter().rev().take(STEPS_SHOWN) {
            text += &format!("  {:>6} ms  {}: {}\n", step.milliseconds, step.pod, step.step);
        }
    }
    text
}

fn line(local: &LocalPod) -> PodLine {
    let (pod, status) = (local.pod(), local.status());
    let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    PodLine {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        ready: containers.iter().filter(|container| container.ready).count(),
        containers: pod.spec.as_ref().map(|spec| spec.containers.len()).unwrap_or_default(),
        restarts: containers.iter().map(|container| container.restart_count).sum(),
        why: why(local, Clock.now().wall),
        phase: status.and_then(|status| status.phase.clone()).unwrap_or_else(|| "Pending".to_owned()),
    }
}

/// Why the pod does not run as it should; `None` where it does, or has done.
fn why(local: &LocalPod, now: Timestamp) -> Option<String> {
    let told = |reason: Option<&String>, message: Option<&String>| -> Option<String> {
        let parts: Vec<&str> =
            [reason, message].into_iter().flatten().map(String::as_str).filter(|text| !text.is_empty()).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    };
    if let Some(deleted) = &local.pod().metadata.deletion_timestamp {
        let left = deleted.0.as_second() - now.as_second();
        return Some(if left > 0 { format!("ends, at most {left} s from now") } else { "ends".to_owned() });
    }
    let status = local.status()?;
    let phase = status.phase.as_deref().unwrap_or_default();
    if phase == "Succeeded" {
        return None;
    }
    if let Some(reason) = told(status.reason.as_ref(), status.message.as_ref()) {
        return Some(reason);
    }
    let all = [&status.init_container_statuses, &status.container_statuses].into_iter().flatten().flatten();
    let trouble = |container: &ContainerStatus| {
        let state = container.state.as_ref()?;
        if let Some(waiting) = &state.waiting {
            return told(waiting.reason.as_ref(), waiting.message.as_ref())
                .filter(|_| waiting.reason.as_deref() != Some("PodInitializing"));
        }
        let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
        let reason = ended.reason.clone().unwrap_or_else(|| "Error".to_owned());
        Some(format!("{reason}, exit code {}", ended.exit_code))
    };
    let mut troubles = all.filter_map(|container| Some(format!("{}: {}", container.name, trouble(container)?)));
    if let Some(trouble) = troubles.next() {
        return Some(trouble);
    }
    let conditions = status.conditions.iter().flatten();
    let mut conditions =
        conditions.filter(|condition| condition.status == "False" && condition.type_ != "PodReadyToStartContainers");
    conditions.find_map(|condition| told(condition.reason.as_ref(), condition.message.as_ref()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn made(status: Value) -> Arc<Pod> {
        let pod = json!({
            "metadata": { "name": "a", "namespace": "b" },
            "spec": { "containers": [{ "name": "c" }, { "name": "d" }] },
            "status": status,
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn container(name: &str, state: Value) -> Value {
        json!({ "name": name, "state": state, "ready": state["running"].is_object(), "restartCount": 2, "image": "", "imageID": "" })
    }

    #[test]
    fn a_pod_that_does_not_run_says_why() {
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason, "message": "m" } });
        let running = json!({ "running": {} });
        for (status, expected) in [
            (json!({ "phase": "Running", "containerStatuses": [container("c", running.clone())] }), None),
            (json!({ "phase": "Succeeded", "reason": "x" }), None),
            (json!({ "phase": "Failed", "reason": "Evicted", "message": "no memory" }), Some("Evicted, no memory")),
            (
                json!({ "phase": "Pending", "containerStatuses": [container("c", waiting("ImagePullBackOff"))] }),
                Some("c: ImagePullBackOff, m"),
            ),
            (
                json!({
                    "phase": "Pending",
                    "initContainerStatuses": [container("i", json!({ "terminated": { "exitCode": 3, "reason": "Error" } }))],
                    "containerStatuses": [container("c", waiting("PodInitializing"))],
                }),
                Some("i: Error, exit code 3"),
            ),
            (
                json!({ "phase": "Running", "conditions": [
                    { "type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "c is not ready" },
                ] }),
                Some("ContainersNotReady, c is not ready"),
            ),
        ] {
            assert_eq!(why(&made(status.clone()).into(), Timestamp::UNIX_EPOCH).as_deref(), expected, "{status}");
        }
        let mut ending = made(json!({ "phase": "Running" }));
        let at = Timestamp::from_second(30).expect("a moment");
        Arc::make_mut(&mut ending).metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
        assert_eq!(why(&ending.into(), Timestamp::UNIX_EPOCH).as_deref(), Some("ends, at most 30 s from now"));
    }

    #[test]
    fn the_screen_marks_what_is_amiss() {
        let condition =
            |kind: &str, status| Condition { r#type: kind.into(), status, message: "m".into(), ..Condition::default() };
        let status = Status {
            node: "n".into(),
            conditions: vec![
                condition("MemoryPressure", true),
                condition("DiskPressure", false),
                condition("Ready", true),
            ],
            services: Some(3),
            pods: vec![line(&made(
                json!({ "phase": "Pending", "containerStatuses": [container("c", json!({ "waiting": { "reason": "CrashLoopBackOff" } }))] }),
            ).into())],
            slow_steps: vec![Step { pod: "b/a".into(), step: "run sandbox".into(), milliseconds: 250 }],
            ..Status::default()
        };
        let text = screen(&status);
        for part in [
            "! MemoryPressure",
            "  DiskPressure",
            "  Ready",
            "3 services",
            "! b/a  Pending   0/2 ready, 2 restarts: c: CrashLoopBackOff",
            "250 ms  b/a: run sandbox",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let text = serde_json::to_string(&status).expect("JSON");
        assert_eq!(serde_json::from_str::<Status>(&text).expect("the same"), status);
    }
}
