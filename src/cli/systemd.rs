//! What systemd is told: that we are ready, how we are, that we live (A15.14).

use std::time::Duration;

use sd_notify::NotifyState;

/// Tells the service manager, if there is one.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "service manager not told");
    }
}

/// Pings the watchdog at a quarter of its time, if it watches us and as long as `alive` says so. That no task runs any more stops the
/// pings, too.
pub(super) async fn watchdog(alive: impl Fn() -> bool) {
    let mut microseconds = 0;
    if !sd_notify::watchdog_enabled(false, &mut microseconds) {
        return std::future::pending().await;
    }
    let every = Duration::from_micros(microseconds / 4);
    loop {
        if alive() {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("the pods' supervisor hangs; if it stays so, the service manager starts the agent anew");
        }
        tokio::time::sleep(every).await;
    }
}
