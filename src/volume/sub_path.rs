//! `subPath`: a part of a volume, bound to a place of its own so that nobody can swap it for a link out of the volume (A9.13).

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::aside::aside;
use super::error::VolumeError;
use super::kernel;

/// Binds `sub_path` of the volume at `root` to `target`. A missing one is made as a directory, with the mode of the root.
pub(super) async fn bind(root: PathBuf, sub_path: String, target: PathBuf) -> Result<(), VolumeError> {
    aside(move || bind_now(&root, &sub_path, &target)).await
}

fn bind_now(root: &Path, sub_path: &str, target: &Path) -> Result<(), VolumeError> {
    let normal = Path::new(sub_path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !normal {
        return Err(VolumeError::Path(sub_path.to_owned()));
    }
    let opened = open(root, sub_path).map_err(VolumeError::file("open subPath in", root.join(sub_path)))?;
    let is_dir = rustix::fs::fstat(&opened)
        .map(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_dir())
        .map_err(|e| VolumeError::file("look at", root.join(sub_path))(e.into()))?;
    if kernel::is_mount_point(target).map_err(VolumeError::file("look at", target))? {
        kernel::unmount_now(target).map_err(VolumeError::file("unmount", target))?;
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(VolumeError::file("make", parent))?;
    }
    if is_dir {
        fs::create_dir_all(target).map_err(VolumeError::file("make", target))?;
    } else {
        fs::File::create(target).map_err(VolumeError::file("make", target))?;
    }
    let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
    kernel::bind(Path::new(&source), target).map_err(VolumeError::file("bind", target))
}

/// Opens a path that cannot leave `root`, making what is missing.
fn open(root: &Path, sub_path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root_fd = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
    let mode = Mode::from_raw_mode(fs::metadata(root)?.mode() & 0o7777);
    let mut reached = root_fd;
    for part in Path::new(sub_path).components().filter(|c| matches!(c, Component::Normal(_))) {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let next = match rustix::fs::openat2(reached.as_fd(), part.as_os_str(), flags, Mode::empty(), resolve) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(reached.as_fd(), part.as_os_str(), mode)?;
                let made = rustix::fs::openat2(reached.as_fd(), part.as_os_str(), flags, Mode::empty(), resolve)?;
                // The umask took something off.
                fs::set_permissions(
                    format!("/proc/self/fd/{}", made.as_raw_fd()),
                    std::os::unix::fs::PermissionsExt::from_mode(mode.as_raw_mode()),
                )?;
                made
            }
            other => other?,
        };
        reached = next;
    }
    Ok(reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_out_of_the_volume_are_refused() {
        // A9.13
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../..", dir.path().join("up")).unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        std::os::unix::fs::symlink("in", dir.path().join("ok")).unwrap();
        assert!(open(dir.path(), "out/passwd").is_err());
        assert!(open(dir.path(), "up").is_err());
        open(dir.path(), "ok").unwrap();
        open(dir.path(), "new/deep").unwrap();
        assert!(dir.path().join("new/deep").is_dir());
        // What is made has the mode of the volume, and files are as good as directories.
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o2775)).unwrap();
        open(dir.path(), "made/below").unwrap();
        assert_eq!((mode(&dir.path().join("made")), mode(&dir.path().join("made/below"))), (0o2775, 0o2775));
        fs::write(dir.path().join("file"), "").unwrap();
        open(dir.path(), "file").unwrap();
        assert!(open(dir.path(), "file/below").is_err() && dir.path().join("file").is_file());
        let target = dir.path().join("t");
        assert!(matches!(bind_now(dir.path(), "../x", &target), Err(VolumeError::Path(_))));
    }
}
