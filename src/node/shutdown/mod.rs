//! Ends the pods before the machine goes down: holds logind's lock, hears of a shutdown, and lets go of the lock when all
//! groups of pods have ended or had their time (A15.10).

mod groups;
mod logind;
mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use stoker_model::handle::{
    EventSink, EventSubject, EventType, Eviction, NodeFeed, PodDirectory, PodEvictor, PodFeed, UsageReader,
};
use stoker_model::pod::{LocalPod, PodRef, PodUid};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use self::logind::{Lock, Logind, LogindError};
use crate::clock::Clock;

pub use self::groups::{Period, periods};

/// `status.reason` of the pods.
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// Before logind is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at what has ended.
const POLL: Duration = Duration::from_millis(100);
/// Until admission knows of the shutdown, and at the end until the API server knows how the pods ended.
const SETTLES: Duration = Duration::from_secs(2);

/// What the operator decided.
#[derive(Clone, Debug)]
pub struct ShutdownSettings {
    /// Who has how long; empty: nobody.
    pub periods: Vec<Period>,
    /// kubelet's `graceful_node_shutdown_state`.
    pub state_file: PathBuf,
}

/// What a shutdown needs of other rooms.
pub struct ShutdownHandles {
    /// Pods of this node.
    pub pods: Arc<dyn PodDirectory>,
    /// Ends them.
    pub evictor: Arc<dyn PodEvictor>,
    /// What is left of them.
    pub usage: Arc<dyn UsageReader>,
    /// What admission knows of the node.
    pub node: NodeFeed,
    /// What the API server knows of the pods.
    pub told: PodFeed,
    /// Publishes events.
    pub events: Arc<dyn EventSink>,
    /// Whether the machine goes down; the observer reads it.
    pub going_down: watch::Sender<bool>,
}

impl std::fmt::Debug for ShutdownHandles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShutdownHandles").finish_non_exhaustive()
    }
}

/// Waits for shutdowns for ever, also where the bus or logind come late or go.
pub async fn end_pods_at_shutdown(settings: ShutdownSettings, handles: ShutdownHandles, clock: Clock) {
    if settings.periods.is_empty() {
        return std::future::pending().await;
    }
    let keeper = Keeper { settings, handles, clock };
    let mut lock = None;
    let mut told = false;
    loop {
        match keeper.listen(&mut lock, &mut told).await {
            Ok(()) => warn!("the connection to logind ended; it is made again"),
            Err(error) if told => tracing::debug!(%error, "shutdowns still cannot be waited for"),
            Err(error) => {
                warn!(%error, "pods would not be ended before the machine: it is tried again until they would");
                told = true;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

struct Keeper {
    settings: ShutdownSettings,
    handles: ShutdownHandles,
    clock: Clock,
}

impl Keeper {
    /// Until the connection ends.
    async fn listen(&self, lock: &mut Option<Lock>, told: &mut bool) -> Result<(), LogindError> {
        let logind = Logind::connect().await?;
        let wanted = self.settings.periods.iter().map(|period| period.grace).sum();
        logind.allow(wanted).await?;
        let mut shutdowns = logind.shutdowns().await?;
        *lock = Some(logind.lock().await?);
        info!(?wanted, "a shutdown of the machine waits for its pods");
        *told = false;
        while let Some(begins) = shutdowns.next().await {
            let begins = begins?;
            let what = if begins { "shutdown event" } else { "shutdown cancellation" };
            let message = format!("Shutdown manager detected {what}");
            info!("{message}");
            self.handles.events.publish(EventSubject::Node, EventType::Normal, "Shutdown", message);
            self.handles.going_down.send_replace(begins);
            if begins {
                self.end_pods().await;
                // Now the machine may go.
                *lock = None;
            } else {
                *lock = Some(logind.lock().await?);
            }
        }
        Ok(())
    }

    async fn end_pods(&self) {
        let began = self.clock.now().wall;
        self.note(began, None);
        let mut node = self.handles.node.clone();
        // What is admitted after this look would go on.
        let _ = timeout(SETTLES, node.wait_for(|node| node.shutting_down)).await;
        let active = self.handles.pods.pods().into_iter().filter(|pod| !pod.has_ended());
        let pods: Vec<_> = active.map(|pod| pod.pod().clone()).collect();
        for (period, group) in groups::grouped(&self.settings.periods, &pods) {
            if group.is_empty() {
                continue;
            }
            info!(priority = period.priority, grace = ?period.grace, pods = group.len(), "these pods end now");
            for pod in &group {
                let grace = groups::grace(period, pod);
                let order = Eviction { reason: REASON, message: MESSAGE.to_owned(), grace, disrupts: true };
                // The queue is short, and read at once.
                while !self.handles.evictor.evict(&PodRef::of(pod).uid, order.clone()) {
                    tokio::time::sleep(POLL).await;
                }
            }
            let uids: Vec<PodUid> = group.iter().map(|pod| PodRef::of(pod).uid).collect();
            if timeout(period.grace, self.until_gone(&uids)).await.is_err() {
                warn!(priority = period.priority, "not all of these pods ended in time");
            }
        }
        let _ = timeout(SETTLES, self.until_told(&pods)).await;
        self.note(began, Some(self.clock.now().wall));
    }

    /// Until nothing of these pods is left: the group goes after the volumes.
    async fn until_gone(&self, uids: &[PodUid]) {
        loop {
            let known = self.handles.pods.pods();
            let goes_on = |uid: &PodUid| known.iter().any(|pod| PodRef::of(pod.pod()).uid == *uid && !pod.has_ended());
            if !uids.iter().any(goes_on) {
                let usage = self.handles.usage.clone();
                let groups = tokio::task::spawn_blocking(move || usage.pods()).await.unwrap_or_default();
                if !uids.iter().any(|uid| groups.iter().any(|group| group.uid == uid.as_str())) {
                    return;
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Until the API server shows how they ended.
    async fn until_told(&self, pods: &[Arc<Pod>]) {
        let mut told = self.handles.told.clone();
        let all_ended = |desired: &Option<Arc<stoker_model::handle::DesiredPods>>| {
            let goes_on = |pod: &Arc<Pod>| {
                let shown = desired.as_ref().and_then(|all| all.get(&PodRef::of(pod).uid));
                shown.is_some_and(|pod| !LocalPod::from(pod.clone()).has_ended())
            };
            !pods.iter().any(goes_on)
        };
        if told.wait_for(all_ended).await.is_err() {
            // Nobody can be told.
        }
    }

    fn note(&self, began: jiff::Timestamp, ended: Option<jiff::Timestamp>) {
        if let Err(error) = state::store(&self.settings.state_file, began, ended) {
            warn!(%error, path = ?self.settings.state_file, "the time of the shutdown is not kept");
        }
    }
}
