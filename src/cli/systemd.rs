//! What systemd is told: that we are ready, how we are, that we live (A15.14).

use std::time::Duration;

use sd_notify::NotifyState;

/// Tells the service manager, if there is one.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "service manager not told");
    }
}

/// Pings the watchdog at half its time, if it watches us. A runtime that no longer runs tasks stops the pings.
pub(super) async fn watchdog() {
    let mut microseconds = 0;
    if !sd_notify::watchdog_enabled(false, &mut microseconds) {
        return std::future::pending().await;
    }
    let every = Duration::from_micros(microseconds / 2);
    loop {
        tell(&[NotifyState::Watchdog]);
        tokio::time::sleep(every).await;
    }
}
