//! Work on a file system that may not answer, such as that of a server that is gone: a thread waits for it and no task does, so that no
//! other pod notices.

use std::pin::pin;
use std::time::Duration;

use super::error::VolumeError;

/// Does it in a thread of its own, which whoever gives up waiting leaves to it.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(VolumeError::Other("the agent is ending".to_owned())),
    }
}

/// Waits for it, and calls `tell` each time that so long has passed.
pub(super) async fn told<T>(work: impl Future<Output = T>, each: Duration, tell: impl Fn()) -> T {
    let mut work = pin!(work);
    loop {
        match tokio::time::timeout(each, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) => tell(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{host_path, kernel, persistent, sub_path};
    use super::*;

    /// A file system that answers nothing until this is dropped.
    struct Dead {
        server: Option<File>,
        at: tempfile::TempDir,
    }

    impl Dead {
        fn mount() -> Self {
            let at = tempfile::tempdir().unwrap();
            let server = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("FUSE");
            let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
            let options = CString::new(options).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("dead", at.path(), "fuse", flags, options.as_c_str()).expect("root may mount");
            Self { server: Some(server), at }
        }

        fn path(&self) -> &Path {
            self.at.path()
        }
    }

    impl Drop for Dead {
        fn drop(&mut self) {
            // Whoever waits is told that nobody is there.
            self.server = None;
            let _ = kernel::unmount_now(self.at.path());
        }
    }

    #[test]
    fn a_file_system_that_does_not_answer_holds_up_no_other_work() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        // After the runtime: where this fails it goes before, so that nobody waits for it.
        let (well, dead) = (tempfile::tempdir().unwrap(), Dead::mount());
        let at = dead.path().to_owned();
        let path = at.to_str().unwrap().to_owned();
        let stuck = [
            runtime.spawn(host_path::set_up(path.clone(), "Directory".to_owned())),
            runtime.spawn(sub_path::bind(at.clone(), "a".to_owned(), well.path().join("target"))),
            runtime.spawn(persistent::check_device(path.clone())),
        ];
        let local = runtime.spawn(persistent::mount_local(path, well.path().join("local"), false));
        let (done, other) = std::sync::mpsc::sync_channel(1);
        let path = well.path().to_str().unwrap().to_owned();
        runtime.spawn(async move {
            let made = host_path::set_up(path, "Directory".to_owned()).await;
            // Whether something is there, and mounted, can be told without an answer.
            let is_mounted = [kernel::is_mount_point(&at).ok(), kernel::is_mounted_on(&at).unwrap()];
            let is_there = kernel::is_there(&at) && persistent::make_dir(&at).is_ok();
            done.send((made, is_mounted, is_there)).unwrap();
        });
        let (made, is_mounted, is_there) = other.recv_timeout(Duration::from_secs(20)).expect("other work goes on");
        made.expect("it is a directory");
        assert_eq!((is_mounted, is_there), ([Some(true); 2], true));
        assert!(!local.is_finished() && stuck.iter().all(|work| !work.is_finished()));
        drop(dead);
        runtime.block_on(async {
            for work in stuck {
                work.await.unwrap().unwrap_err();
            }
            local.await.unwrap().unwrap_err();
        });
    }

    #[tokio::test]
    async fn what_takes_long_is_told_each_time() {
        let count = AtomicUsize::new(0);
        let each = Duration::from_millis(20);
        let work = async {
            while count.load(Ordering::Relaxed) < 2 {
                tokio::time::sleep(each / 4).await;
            }
        };
        told(work, each, || _ = count.fetch_add(1, Ordering::Relaxed)).await;
        told(async {}, each, || panic!("it is done")).await;
    }
}
