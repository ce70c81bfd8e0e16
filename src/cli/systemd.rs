//! What systemd is told: that we are ready, how we are, that we live (A15.14).

use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

/// What waits to be told. A service manager that is further behind misses some of it.
const QUEUE: usize = 16;

/// Tells the service manager, if there is one. It never waits: one that does not read just now holds up its own thread only.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    static TELLER: OnceLock<Option<SyncSender<Vec<String>>>> = OnceLock::new();
    if let Some(teller) = TELLER.get_or_init(teller) {
        let states = states.iter().map(ToString::to_string).collect();
        if teller.try_send(states).is_err() {
            tracing::debug!("service manager not told: it does not read");
        }
    }
}

/// The thread that tells, if there is somebody to tell.
fn teller() -> Option<SyncSender<Vec<String>>> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let (sender, states) = sync_channel::<Vec<String>>(QUEUE);
    let tells = move || {
        for states in states {
            let states: Vec<_> = states.iter().map(|state| NotifyState::Custom(state)).collect();
            if let Err(error) = sd_notify::notify(false, &states) {
                tracing::debug!(%error, "service manager not told");
            }
        }
    };
    std::thread::Builder::new().name("notify".to_owned()).spawn(tells).ok()?;
    Some(sender)
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
