//! Pods without an agent: the calls to the runtime that any agent must make, with what ours asks for.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use stoker::clock::Clock;
use stoker::runtime::Runtime;

use super::figures::timed;
use super::requests::Requests;
use super::{AT_ONCE, Failure, LONGEST};
use crate::lab::Lab;

/// What containers get after TERM.
const GRACE: Duration = Duration::from_secs(1);

/// A connection to the runtime, and what is asked for over it.
pub(crate) struct Raw {
    runtime: Runtime,
    requests: Requests,
    logs: PathBuf,
}

/// A sandbox with a running container.
pub(crate) struct Started {
    sandbox: String,
    container: String,
    /// By RunPodSandbox, CreateContainer and StartContainer.
    pub(crate) took: [Duration; 3],
}

impl Raw {
    /// Asks for what a running pod has that the agent made.
    pub(crate) async fn like(lab: &Lab, pod: &str) -> Result<Self, Failure> {
        let runtime = Runtime::connect(&lab.dir().join("containerd/containerd.sock").to_string_lossy(), LONGEST)?;
        let requests = Requests::of(&runtime, pod).await?;
        Ok(Self { runtime, requests, logs: lab.dir().join("raw-logs") })
    }

    pub(crate) async fn start(&self, name: &str) -> Result<Started, Failure> {
        let logs = self.logs.join(name);
        fs::create_dir_all(&logs)?;
        let (sandbox, container) = self.requests.named(name, &logs.to_string_lossy());
        let (id, running) = timed(self.runtime.run_pod_sandbox(sandbox.clone(), "")).await;
        let sandbox_id = id?;
        let (id, creating) = timed(self.runtime.create_container(&sandbox_id, container, sandbox)).await;
        let container = id?;
        let (started, starting) = timed(self.runtime.start_container(&container)).await;
        started?;
        Ok(Started { sandbox: sandbox_id, container, took: [running, creating, starting] })
    }

    /// How long StopContainer and StopPodSandbox took together.
    pub(crate) async fn stop(&self, pod: &Started) -> Result<Duration, Failure> {
        let begun = Clock.now().monotonic;
        self.runtime.stop_container(&pod.container, GRACE).await?;
        self.runtime.stop_pod_sandbox(&pod.sandbox).await?;
        Ok(Clock.now().monotonic - begun)
    }

    /// How long RemoveContainer and RemovePodSandbox took together.
    pub(crate) async fn remove(&self, pod: &Started) -> Result<Duration, Failure> {
        let begun = Clock.now().monotonic;
        self.runtime.remove_container(&pod.container).await?;
        self.runtime.remove_pod_sandbox(&pod.sandbox).await?;
        Ok(Clock.now().monotonic - begun)
    }

    /// So many, [`AT_ONCE`]: these, and how long all took.
    pub(crate) async fn start_all(&self, prefix: &str, pods: usize) -> Result<(Vec<Started>, Duration), Failure> {
        let names: Vec<String> = (0..pods).map(|number| format!("{prefix}-{number}")).collect();
        let starts = stream::iter(&names).map(|name| self.start(name)).buffer_unordered(AT_ONCE);
        let (started, took) = timed(starts.try_collect()).await;
        Ok((started?, took))
    }

    /// Stops and removes them, [`AT_ONCE`]: how long that took.
    pub(crate) async fn end_all(&self, pods: &[Started]) -> Result<Duration, Failure> {
        let ends = stream::iter(pods).map(async |pod| {
            self.stop(pod).await?;
            self.remove(pod).await.map(drop)
        });
        let (ended, took) = timed(ends.buffer_unordered(AT_ONCE).try_collect::<()>()).await;
        ended.map(|()| took)
    }
}
