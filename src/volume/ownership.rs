//! `fsGroup`: who may use a volume beside root (A9.16).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stoker_model::handle::EventType;
use stoker_model::pod::PodRef;
use tokio::task::JoinHandle;

use super::error::VolumeError;
use super::volumes::Volumes;

/// What the group may do with the files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Read,
    ReadWrite,
}

impl Access {
    const fn of_file(self) -> u32 {
        match self {
            Self::Read => 0o440,
            Self::ReadWrite => 0o660,
        }
    }

    /// Whoever reads a directory enters it, and what is made there belongs to its group.
    const fn of_dir(self) -> u32 {
        self.of_file() | 0o2110
    }
}

/// After so long it is told that a volume with many files is being given to its group, and then so often.
const TOLD: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(60));
/// What an operator may do about it.
const ADVICE: &str = "consider using OnRootMismatch - https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods";

impl Volumes {
    /// Gives a volume to the pod's group, in a thread of its own, since it may hold many files.
    pub(super) async fn give(
        &self,
        pod: &PodRef,
        path: &Path,
        group: u32,
        only_on_mismatch: bool,
    ) -> Result<(), VolumeError> {
        let (of, files) = (path.to_owned(), Arc::new(AtomicU64::new(0)));
        let counted = files.clone();
        let work = move || give_to_group(&of, group, Access::ReadWrite, only_on_mismatch, &counted);
        let tell = |text| self.tell(pod, EventType::Warning, "VolumePermissionChangeInProgress", text);
        told_of(tokio::task::spawn_blocking(work), shown(path, pod), &files, TOLD, tell).await
    }
}

/// The path from the pod's directory on.
fn shown<'a>(path: &'a Path, pod: &PodRef) -> &'a str {
    let path = path.to_str().unwrap_or_default();
    path.find(pod.uid.as_str()).map_or(path, |at| &path[at..])
}

/// Waits for it, and tells how far it is when it takes long (A21.2).
async fn told_of(
    mut work: JoinHandle<Result<(), VolumeError>>,
    path: &str,
    files: &AtomicU64,
    (first, each): (Duration, Duration),
    tell: impl Fn(String),
) -> Result<(), VolumeError> {
    let begun = format!("Setting volume ownership for {path}");
    let mut wait = first;
    loop {
        tokio::select! {
            done = &mut work => return done.unwrap_or_else(|panic| Err(VolumeError::Other(panic.to_string()))),
            () = tokio::time::sleep(wait) => {}
        }
        tell(match wait == first {
            true => format!("{begun} is taking longer than expected, {ADVICE}"),
            false => format!("{begun}, processed {} files.", files.load(Ordering::Relaxed)),
        });
        wait = each;
    }
}

/// Gives the volume to a group. With `only_on_mismatch` its root tells whether that was done before. `files` counts them.
pub(super) fn give_to_group(
    path: &Path,
    group: u32,
    access: Access,
    only_on_mismatch: bool,
    files: &AtomicU64,
) -> Result<(), VolumeError> {
    let root = fs::metadata(path).map_err(VolumeError::file("look at", path))?;
    let done = root.is_dir() && root.gid() == group && root.mode() & access.of_dir() == access.of_dir();
    if only_on_mismatch && done {
        return Ok(());
    }
    give(path, group, access, files).map_err(VolumeError::file("give to its group", path))
}

/// The root comes last: it shows that the rest is done.
pub(super) fn give(path: &Path, group: u32, access: Access, files: &AtomicU64) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            match give(&entry?.path(), group, access, files) {
                // A container that uses the volume may remove what was there a moment ago.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    files.fetch_add(1, Ordering::Relaxed);
    give_one(path, group, access)
}

/// Gives one file or directory to the group.
pub(super) fn give_one(path: &Path, group: u32, access: Access) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let (of_group, links) = (rustix::fs::Gid::from_raw(group), rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    rustix::fs::chownat(rustix::fs::CWD, path, None, Some(of_group), links)?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let added = if metadata.is_dir() { access.of_dir() } else { access.of_file() };
    fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o7777 | added))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root.
    #[test]
    fn the_group_may_use_everything_and_the_root_tells_that_it_was_done() {
        // A9.16
        let dir = tempfile::tempdir().unwrap();
        let (root, file) = (dir.path().join("v"), dir.path().join("v/sub/f"));
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        let look = |path: &Path| {
            let found = fs::symlink_metadata(path).unwrap();
            (found.gid(), found.mode() & 0o7777)
        };
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(&root, 0o755);
        set(&root.join("sub"), 0o700);
        set(&file, 0o600);
        let (before, files) = (look(Path::new("/etc/passwd")), AtomicU64::new(0));
        give_to_group(&root, 4242, Access::ReadWrite, true, &files).unwrap();
        assert_eq!((look(&root), files.load(Ordering::Relaxed)), ((4242, 0o2775), 4));
        assert_eq!(look(&root.join("sub")), (4242, 0o2770));
        assert_eq!(look(&file), (4242, 0o660));
        assert_eq!(look(&root.join("link")).0, 4242);
        assert_eq!(look(Path::new("/etc/passwd")), before, "links are not followed");

        set(&file, 0o600);
        give_to_group(&root, 4242, Access::ReadWrite, true, &files).unwrap();
        assert_eq!(look(&file), (4242, 0o600), "the root matches");
        give_to_group(&root, 4242, Access::Read, false, &files).unwrap();
        assert_eq!(look(&file), (4242, 0o640));
        set(&root, 0o755);
        give_to_group(&root, 4242, Access::ReadWrite, true, &files).unwrap();
        assert_eq!(look(&file), (4242, 0o660), "the root did not match");
    }

    #[tokio::test]
    async fn a_volume_that_takes_long_is_told_of() {
        // A21.2: VolumePermissionChangeInProgress
        use stoker_model::pod::PodUid;
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: PodUid::new("u-1") };
        let path = shown(Path::new("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/v/mount"), &pod);
        let (tell, mut told) = tokio::sync::mpsc::channel(8);
        let work = tokio::spawn(async move {
            let of = "Setting volume ownership for u-1/volumes/kubernetes.io~csi/v/mount";
            let (long, counted) =
                (format!("{of} is taking longer than expected, {ADVICE}"), format!("{of}, processed 7 files."));
            for expected in [&long, &counted, &counted] {
                assert_eq!(told.recv().await.as_ref(), Some(expected));
            }
            Ok(())
        });
        let (soon, files) = (Duration::from_millis(10), AtomicU64::new(7));
        told_of(work, path, &files, (soon, soon * 2), |text| drop(tell.try_send(text))).await.unwrap();
        assert_eq!(TOLD, (Duration::from_secs(30), Duration::from_secs(60)));
    }
}
