//! What happens in the directories of logs: one inotify instance for all who follow, since a user may have no more than 128 of them.
//!
//! One task owns the instance and wakes followers. It begins with the first of them, and ends when the last one has gone.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tracing::debug;

/// Lines come in bursts: who follows sees them this much later, and is woken once instead of for each.
const BURST: Duration = Duration::from_millis(10);

/// Events that are read in one go.
const BUFFER_BYTES: usize = 16 << 10;

/// What has happened in a directory so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Seen {
    changes: u64,
    /// Writers that have closed a file.
    closes: u64,
}

/// The watches of the one instance, and who waits for them.
struct Hub {
    watches: Mutex<Watches>,
    directories: Mutex<HashMap<WatchDescriptor, watch::Sender<Seen>>>,
    /// The task that wakes them.
    task: OnceLock<AbortHandle>,
}

/// The one instance, while somebody follows.
static HUB: Mutex<Weak<Hub>> = Mutex::new(Weak::new());

/// What happens in a log's directory, from now on. Dropping it ends the watch.
pub(super) struct Changes {
    hub: Arc<Hub>,
    descriptor: WatchDescriptor,
    /// `None` only while it is dropped.
    seen: Option<watch::Receiver<Seen>>,
    before: Seen,
}

impl Changes {
    /// `None`: the machine has no inotify instance or watch left; then only polls are.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let started = Self::start(path.parent().unwrap_or(path));
        started.map_err(|error| debug!(%error, ?path, "no inotify; following by polls")).ok()
    }

    fn start(directory: &Path) -> io::Result<Self> {
        let hub = Hub::get()?;
        // The directory, for a rotation puts a new file there. It has only one container's files.
        let mask = WatchMask::MODIFY | WatchMask::CLOSE_WRITE | WatchMask::CREATE | WatchMask::MOVED_TO;
        let mut directories = hub.directories.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = hub.watches.lock().unwrap_or_else(PoisonError::into_inner).add(directory, mask)?;
        let seen =
            directories.entry(descriptor.clone()).or_insert_with(|| watch::Sender::new(Seen::default())).subscribe();
        let before = *seen.borrow();
        drop(directories);
        Ok(Self { hub, descriptor, seen: Some(seen), before })
    }

    /// Waits for a change, and for those that come with it: whether a writer has closed a file. Dropping the future loses nothing but a
    /// change after which the file is looked at anyway. An error: nothing will be heard any more.
    pub(super) async fn next(&mut self) -> Result<bool, watch::error::RecvError> {
        let Some(seen) = &mut self.seen else { return std::future::pending().await };
        seen.wait_for(|seen| *seen != self.before).await?;
        sleep(BURST).await;
        let now = *seen.borrow_and_update();
        let closed = now.closes != self.before.closes;
        self.before = now;
        Ok(closed)
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let mut directories = self.hub.directories.lock().unwrap_or_else(PoisonError::into_inner);
        self.seen = None;
        if directories.get(&self.descriptor).is_some_and(|sender| sender.receiver_count() == 0) {
            directories.remove(&self.descriptor);
            // It fails where the directory has gone, and the watch with it.
            let _ = self.hub.watches.lock().unwrap_or_else(PoisonError::into_inner).remove(self.descriptor.clone());
        }
    }
}

impl Hub {
    fn get() -> io::Result<Arc<Self>> {
        let mut place = HUB.lock().unwrap_or_else(PoisonError::into_inner);
        let lives = |hub: &Arc<Self>| hub.task.get().is_some_and(|task| !task.is_finished());
        if let Some(hub) = place.upgrade().filter(lives) {
            return Ok(hub);
        }
        let inotify = Inotify::init()?;
        let watches = Mutex::new(inotify.watches());
        let events = inotify.into_event_stream(vec![0; BUFFER_BYTES])?;
        let hub = Arc::new(Self { watches, directories: Mutex::default(), task: OnceLock::new() });
        *place = Arc::downgrade(&hub);
        let task = tokio::spawn(tell(events, Arc::downgrade(&hub)));
        hub.task.set(task.abort_handle()).expect("nobody else has this hub yet");
        Ok(hub)
    }
}

/// Wakes who follows, until nobody does.
async fn tell(mut events: EventStream<Vec<u8>>, hub: Weak<Hub>) {
    /// Between looks whether anybody is left.
    const LOOK: Duration = Duration::from_secs(5);
    loop {
        let event = match timeout(LOOK, events.next()).await {
            Ok(Some(Ok(event))) => event,
            Ok(ended) => {
                // Who polls misses nothing.
                debug!(?ended, "inotify ended; following logs by polls");
                if let Some(hub) = hub.upgrade() {
                    hub.directories.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                return;
            }
            Err(_) if hub.strong_count() == 0 => return,
            Err(_) => continue,
        };
        let Some(hub) = hub.upgrade() else { return };
        let directories = hub.directories.lock().unwrap_or_else(PoisonError::into_inner);
        let step = |sender: &watch::Sender<Seen>| {
            sender.send_modify(|seen| {
                seen.changes = seen.changes.wrapping_add(1);
                seen.closes = seen.closes.wrapping_add(u64::from(event.mask.contains(EventMask::CLOSE_WRITE)));
            });
        };
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            directories.values().for_each(step);
        } else if let Some(sender) = directories.get(&event.wd) {
            step(sender);
        }
    }
}
