//! The kernel's word that memory is short, so that nobody has to wait for the next look: a trigger on pressure stall information.

use std::fs::File;
use std::io::{self, Write};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What the whole machine waits for memory.
const PRESSURE: &str = "/proc/pressure/memory";
/// Some process stood still for 10 % of 2 s, which is the shortest window that needs no capability (microseconds).
const TRIGGER: &[u8] = b"some 200000 2000000\0";

/// Waits for the kernel.
#[derive(Debug)]
pub(super) struct Trigger(AsyncFd<File>);

impl Trigger {
    /// Sets the trigger.
    ///
    /// # Errors
    /// Where the kernel has no pressure stall information, or is not to be asked from here.
    pub(super) fn new() -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).open(PRESSURE)?;
        file.write_all(TRIGGER)?;
        #[expect(deprecated, reason = "its successor is unsafe, and a file keeps the one descriptor that it has")]
        let watched = AsyncFd::with_interest(file, Interest::PRIORITY)?;
        Ok(Self(watched))
    }

    /// Returns when memory was short; at most once in the trigger's window.
    pub(super) async fn wait(&self) {
        match self.0.ready(Interest::PRIORITY).await {
            Ok(mut guard) => guard.clear_ready(),
            Err(error) => {
                tracing::warn!(%error, "no early word of short memory any more");
                std::future::pending().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_takes_the_trigger_and_stays_quiet_at_first() {
        // A13.5
        if !std::path::Path::new(PRESSURE).exists() {
            return;
        }
        let trigger = Trigger::new().unwrap();
        let quiet = tokio::time::timeout(std::time::Duration::from_millis(20), trigger.wait());
        // Other programs may press: what counts is that the file can be waited for.
        let _ = quiet.await;
    }
}
