//! kubelet's `kernelMemcgNotification`: on cgroup v1 the kernel says when a group's memory crosses a mark.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::event::{EventfdFlags, eventfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One mark. The kernel forgets it when this is dropped.
#[derive(Debug)]
pub(super) struct Mark(AsyncFd<OwnedFd>);

impl Mark {
    /// Marks so many bytes in the group whose directory this is.
    ///
    /// # Errors
    /// Where there is no such group, or it is not one of cgroup v1.
    pub(super) fn set(group: &Path, bytes: u64) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let usage = File::open(group.join("memory.usage_in_bytes"))?;
        let mut control = File::options().write(true).open(group.join("cgroup.event_control"))?;
        control.write_all(format!("{} {} {bytes}", event.as_raw_fd(), usage.as_raw_fd()).as_bytes())?;
        #[expect(deprecated, reason = "its successor is unsafe, and a file keeps the one descriptor that it has")]
        let watched = AsyncFd::with_interest(event, Interest::READABLE)?;
        Ok(Self(watched))
    }

    /// Returns when the mark was crossed since it was set, in whichever direction.
    pub(super) async fn crossed(&self) {
        if let Err(error) = self.0.readable().await {
            tracing::warn!(%error, "no early word of short memory any more");
            std::future::pending().await
        }
    }
}

/// Where the mark of a threshold lies: what counts as used there, and what of it could be dropped at once, since a group's usage holds
/// both and the threshold only the first.
pub(super) fn mark_of(capacity: u64, threshold: i64, usage: u64, working_set: u64) -> u64 {
    let threshold = u64::try_from(threshold).unwrap_or_default();
    capacity.saturating_sub(threshold).saturating_add(usage.saturating_sub(working_set))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_mark_lies_where_the_threshold_is_met() {
        // A13.5: 100 of 1000 free, while 50 of what is used are files that nobody used lately.
        assert_eq!(mark_of(1000, 100, 450, 400), 950);
        assert_eq!(mark_of(1000, 100, 400, 450), 900);
        assert_eq!(mark_of(1000, 5000, 0, 0), 0);
    }

    /// A group of this test, where the host has cgroup v1.
    struct Group(PathBuf);

    impl Group {
        fn new() -> Option<Self> {
            let tree = Path::new("/sys/fs/cgroup/memory");
            let group = tree.join(format!("stoker-mark-{}", std::process::id()));
            tree.join("cgroup.event_control")
                .exists()
                .then(|| std::fs::create_dir(&group).map(|()| Self(group)).ok())?
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            for _ in 0..50 {
                if std::fs::remove_dir(&self.0).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    #[tokio::test]
    async fn the_kernel_tells_of_a_mark_that_is_crossed() {
        // A13.5
        assert!(Mark::set(Path::new("/proc/self"), 1).is_err(), "that is no group");
        let Some(group) = Group::new() else { return };
        let mark = Mark::set(&group.0, 8 << 20).unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(100), mark.crossed()).await;
        assert!(quiet.is_err(), "nothing was used yet");
        let script = format!(
            "echo $$ > {}/cgroup.procs; head -c 20000000 /dev/zero | tail -c 20000000 > /dev/null",
            group.0.display()
        );
        let status = Command::new("sh").arg("-c").arg(script).status().unwrap();
        assert!(status.success());
        tokio::time::timeout(Duration::from_secs(5), mark.crossed()).await.expect("it was crossed");
    }
}
