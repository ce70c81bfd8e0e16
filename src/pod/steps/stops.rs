//! Hooks, and the stop of a container: hook, stop signal, KILL, all within one deadline that may come nearer (A4.5, A1.13).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use stoker_model::handle::EventType;
use stoker_model::pod::PodRef;
use tokio::sync::watch;

use super::Effect;
use super::hooks::Hook;
use crate::pod::observed::Kind;
use crate::pod::plan::MINIMUM_GRACE;
use crate::pod::shared::Shared;

/// One container to stop.
pub(in crate::pod) struct StopRequest {
    pub(in crate::pod) shared: Arc<Shared>,
    pub(in crate::pod) pod: PodRef,
    pub(in crate::pod) container: (Kind, String),
    pub(in crate::pod) id: String,
    /// Monotonic; its sender brings it nearer.
    pub(in crate::pod) deadline: watch::Receiver<Duration>,
    /// The container whose preStop hook is to run, if it has one.
    pub(in crate::pod) hooked: Option<Container>,
    /// The pod's address, for hooks that call it.
    pub(in crate::pod) address: String,
    /// Text of the event `Killing`.
    pub(in crate::pod) message: String,
    /// A hook of the same container that runs already: it is waited for.
    pub(in crate::pod) hook_under_way: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl StopRequest {
    fn remaining(&self) -> Duration {
        let deadline = *self.deadline.borrow();
        deadline.saturating_sub(self.shared.clock.now().monotonic)
    }

    /// Resolves at the deadline, wherever it is moved to.
    async fn deadline_passed(&self) {
        let mut deadline = self.deadline.clone();
        loop {
            let left = deadline.borrow_and_update().saturating_sub(self.shared.clock.now().monotonic);
            tokio::select! {
                () = tokio::time::sleep(left) => return,
                moved = deadline.changed() => {
                    if moved.is_err() {
                        tokio::time::sleep(left).await;
                        return;
                    }
                }
            }
        }
    }

    async fn run_hook(&self) {
        let Some(container) = &self.hooked else { return };
        let Some(handler) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) else { return };
        let hook =
            Hook { shared: &self.shared, pod: &self.pod, id: &self.id, container, address: &self.address, handler };
        let result = tokio::select! {
            result = hook.run() => result,
            // It did not fail: there is no more time for it (A4.2).
            () = self.deadline_passed() => Ok(()),
        };
        if let Err(message) = result {
            tracing::info!(pod = %self.pod, container = %self.container.1, %message, "preStop hook failed");
            let container = (self.container.0, self.container.1.as_str());
            self.shared.tell_of(&self.pod, container, EventType::Warning, "FailedPreStopHook", "PreStopHook failed");
        }
    }
}

/// Runs only the preStop hook.
pub(in crate::pod) async fn run_pre_stop(request: StopRequest, done: tokio::sync::oneshot::Sender<()>) {
    request.run_hook().await;
    // Nobody may wait for it.
    let _ = done.send(());
}

/// Runs a stop to its end.
pub(in crate::pod) async fn stop_container(mut request: StopRequest) -> Effect {
    let container = (request.container.0, request.container.1.as_str());
    request.shared.tell_of(&request.pod, container, EventType::Normal, "Killing", request.message.clone());
    request.run_hook().await;
    if let Some(hook) = request.hook_under_way.take() {
        tokio::select! {
            _ = hook => {}
            () = request.deadline_passed() => {}
        }
    }
    // The worker looks when this has returned.
    let awaited = request.shared.runtime.without_events_of(&request.id);
    let grace = request.remaining().max(MINIMUM_GRACE);
    let first = tokio::spawn({
        let (runtime, id) = (request.shared.runtime.clone(), request.id.clone());
        async move { runtime.stop_container(&id, grace).await }
    });
    tokio::pin!(first);
    let stopped = loop {
        tokio::select! {
            stopped = &mut first => break stopped.unwrap_or(Ok(())),
            moved = request.deadline.changed() => {
                if moved.is_err() {
                    break (&mut first).await.unwrap_or(Ok(()));
                }
                // The runtime takes a second stop with less time; the first returns when the container has ended.
                let grace = request.remaining().max(MINIMUM_GRACE);
                let (runtime, id) = (request.shared.runtime.clone(), request.id.clone());
                tokio::spawn(async move { runtime.stop_container(&id, grace).await });
            }
        }
    };
    if let Err(error) = stopped
        && !error.is_not_found()
    {
        let message =
            format!("error killing pod: failed to \"KillContainer\" for \"{}\": {error}", request.container.1);
        request.shared.tell(&request.pod, EventType::Warning, "FailedKillPod", message);
        // Not at once again, whatever is the matter with it.
        tokio::time::sleep(Duration::from_secs(2)).await;
        return Effect::StopEnded { id: request.id, awaited: None };
    }
    Effect::StopEnded { id: request.id, awaited: Some(awaited) }
}
