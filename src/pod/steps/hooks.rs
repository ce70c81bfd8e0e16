//! What a container has run right after its start and before its stop (A4.1 to A4.4).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use stoker_model::handle::EventType;
use stoker_model::pod::PodRef;
use tokio::sync::watch;

use super::Effect;
use crate::pod::observed::{DesiredPod, Kind};
use crate::pod::shared::Shared;
use crate::probe;

/// The user agent of hooks (A4.4).
const USER_AGENT: &str = "kube-lifecycle/1.36";

/// A lifecycle hook of a running container.
pub(super) struct Hook<'a> {
    pub(super) shared: &'a Shared,
    pub(super) pod: &'a PodRef,
    pub(super) id: &'a str,
    pub(super) container: &'a Container,
    /// The pod's primary address.
    pub(super) address: &'a str,
    pub(super) handler: &'a LifecycleHandler,
}

impl Hook<'_> {
    /// Runs it, as long as it takes. The error is for the log: it may hold what no event may show.
    pub(super) async fn run(&self) -> Result<(), String> {
        if let Some(exec) = &self.handler.exec {
            let command = exec.command.clone().unwrap_or_default();
            let ran = self.shared.runtime.exec_sync(self.id, command, Duration::ZERO).await;
            let answer = ran.map_err(|e| e.to_string())?;
            return if answer.exit_code == 0 {
                Ok(())
            } else {
                let output = [&answer.stdout[..], &answer.stderr[..]].concat();
                Err(format!("exit code {}: {}", answer.exit_code, String::from_utf8_lossy(&output)))
            };
        }
        if let Some(get) = &self.handler.http_get {
            let request = probe::Request::of(get, self.container, self.address, USER_AGENT)?;
            return Box::pin(self.get(request)).await;
        }
        if let Some(sleep) = &self.handler.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or_default())).await;
            return Ok(());
        }
        // The API takes tcpSocket here, and says that it fails when it runs.
        Err("invalid handler: a hook is exec, httpGet or sleep".to_owned())
    }

    async fn get(&self, request: probe::Request) -> Result<(), String> {
        match probe::get(&request).await {
            Err(failure) if request.is_tls() && failure.speaks_http() => {
                let authority = request.authority();
                probe::get(&request.without_tls()).await.map_err(|_| failure.to_string())?;
                let message =
                    format!("request to HTTPS lifecycle hook {authority} got HTTP response, retry with HTTP succeeded");
                self.shared.tell(self.pod, EventType::Warning, "LifecycleHTTPFallback", message);
                Ok(())
            }
            other => other.map_err(|failure| failure.to_string()),
        }
    }
}

/// Runs the postStart hook of a container that was just started, unless the pod is to end: then its preStop hook and its grace count,
/// not this.
pub(in crate::pod) async fn run_post_start(
    shared: Arc<Shared>,
    pod: PodRef,
    started: (Kind, Container, String),
    address: String,
    mut desired: watch::Receiver<DesiredPod>,
) -> Effect {
    let (kind, container, id) = started;
    let name = container.name.clone();
    let Some(handler) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
        return Effect::HookEnded { name, id, failed: None };
    };
    let hook = Hook { shared: &shared, pod: &pod, id: &id, container: &container, address: &address, handler };
    let ran = tokio::select! {
        ran = hook.run() => ran,
        _ = desired.wait_for(|d| d.gone || d.deleted()) => Ok(()),
    };
    let failed = ran.err();
    if let Some(message) = &failed {
        tracing::info!(%pod, container = %name, %message, "postStart hook failed");
        shared.tell_of(&pod, (kind, &name), EventType::Warning, "FailedPostStartHook", "PostStartHook failed");
    }
    Effect::HookEnded { name, id, failed }
}
