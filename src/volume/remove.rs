//! Removes a directory that a pod has filled: nothing that is mounted in it, no matter how deep it is.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags, openat, renameat, statx, unlinkat,
};
use rustix::io::Errno;

/// So many directories are open at once. What lies deeper, where no path would reach it, is brought up first.
const OPEN: usize = 64;

/// A directory that is being emptied.
struct Level {
    dir: Dir,
    /// In the one above.
    name: CString,
}

impl Level {
    fn open(above: BorrowedFd<'_>, name: CString) -> io::Result<Self> {
        // A link in its place leads nowhere.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { dir: Dir::new(openat(above, &name, flags, Mode::empty())?)?, name })
    }
}

/// Removes a directory and what lies in it, but nothing that is mounted there.
///
/// # Errors
///
/// `ResourceBusy` where something is mounted; all before it is gone. `NotFound`: there is no such directory.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    let device = device_of(&look(CWD, path)?);
    let mut brought_up = 0;
    loop {
        let before = brought_up;
        let removed = empty(path, device, &mut brought_up).and_then(|()| Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?));
        match removed {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && brought_up > before => {}
            removed => return removed,
        }
    }
}

/// Removes what lies in a directory, but for what was brought up to it.
fn empty(path: &Path, device: (u32, u32), brought_up: &mut u64) -> io::Result<()> {
    let top = Level::open(CWD, CString::new(path.as_os_str().as_bytes())?)?;
    let mut levels = vec![top];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.dir.read() else {
            let level = levels.pop();
            if let (Some(level), Some(above)) = (level, levels.last()) {
                unlinkat(above.dir.fd()?, &level.name, AtFlags::REMOVEDIR)?;
            }
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let (Some(top), Some(level)) = (levels.first(), levels.last()) else { break };
        let fd = level.dir.fd()?;
        if !is_directory(fd, &entry)? {
            unlinkat(fd, name, AtFlags::empty())?;
            continue;
        }
        let found = look(fd, name)?;
        let is_mounted = match found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
            true => found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
            false => device_of(&found) != device,
        };
        if is_mounted {
            let inside = levels.iter().skip(1).map(|level| level.name.as_c_str()).chain([name]);
            let inside: PathBuf = inside.map(|name| OsStr::from_bytes(name.to_bytes())).collect();
            let text = format!("something is mounted at {}", path.join(inside).display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        if levels.len() < OPEN {
            let below = Level::open(fd, name.to_owned())?;
            levels.push(below);
        } else {
            bring_up(top.dir.fd()?, fd, name, brought_up)?;
        }
    }
    Ok(())
}

/// Moves a directory to the top, under a name that nothing there has.
fn bring_up(top: BorrowedFd<'_>, from: BorrowedFd<'_>, name: &std::ffi::CStr, count: &mut u64) -> io::Result<()> {
    loop {
        *count += 1;
        let to = format!(".removed-{count}");
        match renameat(from, name, top, &to) {
            // An empty directory would be replaced, which is as well; another thing is a file of the pod's.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            moved => return Ok(moved?),
        }
    }
}

fn is_directory(above: BorrowedFd<'_>, entry: &rustix::fs::DirEntry) -> io::Result<bool> {
    Ok(match entry.file_type() {
        // Some file systems do not tell.
        FileType::Unknown => {
            let found = rustix::fs::statat(above, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
            FileType::from_raw_mode(found.st_mode).is_dir()
        }
        known => known.is_dir(),
    })
}

/// What is there, without asking another machine.
fn look<P: rustix::path::Arg>(above: impl AsFd, name: P) -> io::Result<Statx> {
    let quietly = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    Ok(statx(above, name, quietly, StatxFlags::empty())?)
}

fn device_of(found: &Statx) -> (u32, u32) {
    (found.stx_dev_major, found.stx_dev_minor)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_tree_is_removed_however_deep_and_wide_it_is() {
        // A9.4, A9.21
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "").unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        symlink("nowhere", tree.join("a/b/broken")).unwrap();
        for i in 0..2000 {
            fs::write(tree.join(format!("a/b/{i}")), "").unwrap();
        }
        // Deeper than a path can be long, as a pod may make it; what it calls its own directories is its matter.
        fs::write(tree.join(".removed-1"), "").unwrap();
        fs::create_dir_all(tree.join(".removed-2/x")).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = openat(CWD, &tree, flags, Mode::empty()).unwrap();
        for _ in 0..3000 {
            mkdirat(&at, "deep", Mode::from(0o755)).unwrap();
            at = openat(&at, "deep", flags, Mode::empty()).unwrap();
        }
        mkdirat(&at, "last", Mode::from(0o000)).unwrap();
        remove_all(&tree).unwrap();
        assert!(!tree.exists() && outside.join("precious").exists());
        assert_eq!(remove_all(&tree).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
