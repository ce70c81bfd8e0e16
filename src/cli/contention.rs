//! Ends the agent when another one comes for its lock file, so that one that was only to start the machine makes room
//! (`--exit-on-lock-contention`, A22.2d).

use std::path::{Path, PathBuf};

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};

/// Returns when somebody opens the file, or takes it away; never, where that is not asked for or nobody can tell.
pub(super) async fn until_wanted(lock_file: Option<PathBuf>) {
    let Some(path) = lock_file else { return std::future::pending().await };
    match watch(&path) {
        Ok(mut events) => {
            if events.next().await.is_some() {
                return tracing::info!(path = %path.display(), "another agent wants the lock file; making room for it");
            }
        }
        Err(error) => tracing::warn!(%error, path = %path.display(), "nobody will notice who wants the lock file"),
    }
    std::future::pending().await
}

fn watch(path: &Path) -> std::io::Result<EventStream<[u8; 1024]>> {
    let inotify = Inotify::init()?;
    inotify.watches().add(path, WatchMask::OPEN | WatchMask::DELETE_SELF)?;
    inotify.into_event_stream([0; 1024])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn who_opens_the_lock_file_wants_it() {
        // A22.2d
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        std::fs::write(&path, "1\n").expect("written");
        let (short, long) = (Duration::from_millis(50), Duration::from_secs(10));
        timeout(short, until_wanted(None)).await.expect_err("it was not asked for");
        timeout(short, until_wanted(Some(dir.path().join("none")))).await.expect_err("there is nothing to open");
        let wanted = tokio::spawn(until_wanted(Some(path.clone())));
        tokio::time::sleep(short).await;
        assert!(!wanted.is_finished());
        std::fs::read(&path).expect("there");
        timeout(long, wanted).await.expect("it ends").expect("well");
    }
}
