//! Writes one pod's status: the newest wins, and what cannot be written now is written later (A2.10).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use stoker_model::handle::{ApiError, PodApi};
use stoker_model::pod::PodRef;
use tokio::sync::watch;
use tracing::{debug, warn};

/// First and longest delay between tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A pod that starts has soon more to tell: what it shows on the way is written only if the way is long.
const HOLD: Duration = Duration::from_millis(250);

/// The writing task of one pod ends with this.
#[derive(Debug)]
pub(super) struct StatusWriter {
    /// Number and content of the newest status.
    wanted: watch::Sender<(u64, Option<Arc<PodStatus>>)>,
    /// Number of the status written last.
    written: watch::Receiver<u64>,
}

impl StatusWriter {
    pub(super) fn spawn(api: Arc<dyn PodApi>, pod: PodRef) -> Self {
        let (wanted, inbox) = watch::channel((0, None));
        let (done, written) = watch::channel(0);
        tokio::spawn(write(api, pod, inbox, done));
        Self { wanted, written }
    }

    /// Has a status written, in place of an earlier one that waits.
    pub(super) fn put(&self, status: Arc<PodStatus>) {
        self.wanted.send_modify(|wanted| *wanted = (wanted.0 + 1, Some(status)));
    }

    /// Resolves when everything put so far has reached the API server, or the pod is no longer there.
    pub(super) fn flushed(&self) -> impl Future<Output = ()> + Send + 'static {
        let newest = self.wanted.borrow().0;
        let mut written = self.written.clone();
        async move {
            // An error means that the writer ended: then nothing more can be written.
            let _ = written.wait_for(|number| *number >= newest).await;
        }
    }
}

async fn write(
    api: Arc<dyn PodApi>,
    pod: PodRef,
    mut inbox: watch::Receiver<(u64, Option<Arc<PodStatus>>)>,
    done: watch::Sender<u64>,
) {
    let mut delay = RETRY.0;
    while inbox.changed().await.is_ok() {
        let mut hold = std::pin::pin!(tokio::time::sleep(HOLD));
        loop {
            let (number, status) = inbox.borrow_and_update().clone();
            let Some(status) = status else { break };
            if status.phase.as_deref() == Some("Pending") {
                tokio::select! {
                    biased;
                    () = &mut hold => {}
                    Ok(()) = inbox.changed() => continue,
                }
            }
            let wait = match api.patch_status(&pod, &status).await {
                Ok(()) => None,
                Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => {
                    debug!(%pod, "the pod is no longer in the API");
                    None
                }
                // Nothing waits for it any longer. The worker sees that it did not arrive, and puts it again.
                Err(ApiError::Rejected(message)) => {
                    warn!(%pod, %message, "the API server refuses the status of the pod");
                    None
                }
                Err(ApiError::Unavailable { message, retry_after_seconds }) => {
                    debug!(%pod, %message, "the status is written later");
                    let asked = retry_after_seconds.map(|s| Duration::from_secs(s.into()));
                    Some(asked.unwrap_or(delay).max(delay))
                }
            };
            let Some(wait) = wait else {
                delay = RETRY.0;
                done.send_replace(number);
                break;
            };
            delay = (delay * 2).min(RETRY.1);
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use stoker_model::pod::PodUid;

    use super::*;

    /// Takes no status at first.
    #[derive(Default)]
    struct Busy {
        tries: Mutex<Vec<String>>,
    }

    #[async_trait::async_trait]
    impl PodApi for Busy {
        async fn patch_status(&self, _: &PodRef, status: &PodStatus) -> Result<(), ApiError> {
            let mut tries = self.tries.lock().unwrap();
            tries.push(status.reason.clone().unwrap_or_default());
            match tries.len() {
                1 => Err(ApiError::Unavailable { message: "busy".into(), retry_after_seconds: None }),
                _ => Ok(()),
            }
        }

        async fn delete_finished(&self, _: &PodRef) -> Result<(), ApiError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_older_status_is_never_written_after_a_newer_one() {
        // A2.10
        let busy = Arc::new(Busy::default());
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("u") };
        let writer = StatusWriter::spawn(busy.clone(), pod);
        let put = |reason: &str| {
            let (phase, reason) = (Some("Running".to_owned()), Some(reason.to_owned()));
            writer.put(Arc::new(PodStatus { phase, reason, ..PodStatus::default() }));
        };
        put("1");
        while busy.tries.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        put("2");
        put("3");
        writer.flushed().await;
        assert_eq!(
            *busy.tries.lock().unwrap(),
            ["1", "3"],
            "what failed is not tried again once there is something newer"
        );
    }

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);

    #[async_trait::async_trait]
    impl PodApi for Seen {
        async fn patch_status(&self, _: &PodRef, status: &PodStatus) -> Result<(), ApiError> {
            let reason = status.reason.clone().unwrap_or_default();
            self.0.lock().unwrap().push(format!("{}{reason}", status.phase.as_deref().unwrap_or_default()));
            Ok(())
        }

        async fn delete_finished(&self, _: &PodRef) -> Result<(), ApiError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_is_soon_outdated_is_not_written() {
        // A2.10
        let seen = Arc::new(Seen::default());
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("u") };
        let writer = StatusWriter::spawn(seen.clone(), pod);
        let put = |phase: &str, reason: &str| {
            let (phase, reason) = (Some(phase.to_owned()), Some(reason.to_owned()));
            writer.put(Arc::new(PodStatus { phase, reason, ..PodStatus::default() }));
        };
        for reason in ["1", "2"] {
            put("Pending", reason);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        put("Running", "");
        writer.flushed().await;
        put("Running", "x");
        writer.flushed().await;
        assert_eq!(*seen.0.lock().unwrap(), ["Running", "Runningx"], "what starts quickly is told once");
        put("Pending", "3");
        writer.flushed().await;
        assert_eq!(seen.0.lock().unwrap().last().unwrap(), "Pending3", "and what does not, all the same");
    }
}
