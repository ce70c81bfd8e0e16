//! Mount points.

use std::borrow::Cow;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};

/// Whether something is mounted at the path: it lies on another device than its parent, or is the root of a bind mount. Nobody on
/// another machine is asked.
pub(super) fn is_mount_point(path: &Path) -> io::Result<bool> {
    match is_mount_root(path, AtFlags::STATX_DONT_SYNC) {
        Err(Errno::NOENT) => return Ok(false),
        Ok(Some(known)) => return Ok(known),
        // The table of a full node is long.
        _ => {}
    }
    let Some(path) = without_links(path)? else { return Ok(false) };
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    let wanted = path.to_string_lossy();
    Ok(mount_points(&text).any(|place| place == wanted))
}

/// What is mounted on a directory itself, if it is a link not what that leads to; nobody on another machine is asked. `None`:
/// kernels before 5.8 do not tell.
pub(super) fn is_mounted_on(directory: &Path) -> io::Result<Option<bool>> {
    let quietly = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    is_mount_root(directory, quietly).map_err(io::Error::from)
}

/// Whether something is at the path, or where a link there leads to; nobody on another machine is asked, and what cannot be told is there.
pub(super) fn is_there(path: &Path) -> bool {
    !matches!(is_mount_root(path, AtFlags::STATX_DONT_SYNC), Err(Errno::NOENT | Errno::NOTDIR))
}

fn is_mount_root(path: &Path, flags: AtFlags) -> Result<Option<bool>, Errno> {
    let found = statx(CWD, path, flags, StatxFlags::empty())?;
    let told = found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    Ok(told.then(|| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)))
}

/// Whether files of the file system that is mounted at the path can have labels of SELinux. Not over the network: there they are
/// everybody's.
pub(super) fn has_labels(path: &Path) -> io::Result<bool> {
    let Some(path) = without_links(path)? else { return Ok(false) };
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(labels_at(&text, &path.to_string_lossy()))
}

fn labels_at(mountinfo: &str, path: &str) -> bool {
    mountinfo.lines().any(|line| {
        let Some((place, file_system)) = line.split_once(" - ") else { return false };
        let at = place.split(' ').nth(4).map(unescape);
        let mut words = file_system.split(' ');
        let is_local = words.next().is_some_and(|kind| !kind.starts_with("nfs"));
        let labels = words.nth(1).is_some_and(|options| options.split(',').any(|option| option == "seclabel"));
        at.as_deref() == Some(path) && is_local && labels
    })
}

/// The mount points at or below a path, deepest first.
pub(super) fn mount_points_below(path: &Path) -> io::Result<Vec<String>> {
    let Some(path) = without_links(path)? else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<String> =
        mount_points(&text).filter(|place| Path::new(&**place).starts_with(&path)).map(Cow::into_owned).collect();
    found.sort_by_key(|place| std::cmp::Reverse(place.len()));
    Ok(found)
}

/// Whether a mount point below a path shows the same directory.
pub(super) fn shows_below(path: &Path, directory: &Path) -> io::Result<bool> {
    let same = |found: &Path| std::fs::metadata(found).map(|found| (found.dev(), found.ino()));
    let wanted = match same(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    Ok(mount_points_below(path)?.iter().any(|place| same(Path::new(place)).is_ok_and(|found| found == wanted)))
}

/// The path as the kernel's table names it: a root directory that is a link must not hide what is mounted below it. `None`: it is
/// not there.
fn without_links(path: &Path) -> io::Result<Option<PathBuf>> {
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn mount_points(mountinfo: &str) -> impl Iterator<Item = Cow<'_, str>> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape)
}

/// The kernel writes blanks and backslashes in octal.
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return text.into();
    }
    [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")]
        .into_iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
        .into()
}

pub(super) fn mount_tmpfs(path: &Path, size_bytes: Option<i64>) -> io::Result<()> {
    let size = size_bytes.filter(|s| *s > 0).map(|s| format!("size={s}"));
    let with = |more: Option<&str>| {
        let options: Vec<&str> = size.as_deref().into_iter().chain(more).collect();
        let options = std::ffi::CString::new(options.join(",")).map_err(io::Error::other)?;
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), options.as_c_str()).map_err(io::Error::from)
    };
    // Secrets should not reach a disk; kernels before 6.4 do not know the word.
    with(Some("noswap")).or_else(|_| with(None))
}

/// `size_bytes` is the size of a page.
pub(super) fn mount_hugepages(path: &Path, size_bytes: i64) -> io::Result<()> {
    let options = std::ffi::CString::new(format!("pagesize={size_bytes}")).map_err(io::Error::other)?;
    mount("nodev", path, "hugetlbfs", MountFlags::empty(), options.as_c_str()).map_err(io::Error::from)
}

/// Makes a mount that is there read-only; what was bound from it stays as it is.
pub(super) fn make_read_only(path: &Path) -> io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY;
    rustix::mount::mount_remount(path, flags, c"").map_err(io::Error::from)
}

pub(super) fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount_bind(source, target).map_err(io::Error::from)
}

/// Makes mounts below the path visible in containers that asked for it (A9.15).
pub(super) fn make_shared(path: &Path) -> io::Result<()> {
    if !is_mount_point(path)? {
        bind(path, path)?;
    }
    mount_change(path, MountPropagationFlags::SHARED | MountPropagationFlags::REC).map_err(io::Error::from)
}

pub(super) fn unmount_now(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::NOFOLLOW) {
        // A process may still hold it for a moment; detached it vanishes with the last user.
        Err(Errno::BUSY) => unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).map_err(io::Error::from),
        Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        other => other.map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_file_systems_take_labels() {
        // A10.7
        let table = "1 0 8:1 / / rw - ext4 /dev/sda rw,seclabel\n\
            2 1 8:2 / /data rw,relatime shared:1 - xfs /dev/sdb rw,seclabel,attr2\n\
            3 1 8:3 / /plain rw - xfs /dev/sdc rw,attr2\n\
            4 1 0:50 / /far rw - nfs4 server:/x rw,seclabel\n";
        for (path, labels) in [("/data", true), ("/plain", false), ("/far", false), ("/data/deep", false)] {
            assert_eq!(labels_at(table, path), labels, "{path}");
        }
    }

    /// Needs root.
    #[test]
    fn a_root_that_is_a_link_hides_no_mount() {
        // A9.22
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("real/pods/u/volumes/v");
        std::fs::create_dir_all(&place).unwrap();
        std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
        let linked = dir.path().join("link/pods/u");
        assert_eq!(mount_points_below(&linked).unwrap(), Vec::<String>::new());
        mount_tmpfs(&place, None).unwrap();
        let found = mount_points_below(&linked);
        let at_place = is_mount_point(&linked.join("volumes/v"));
        unmount_now(&place).unwrap();
        assert_eq!(found.unwrap(), [place.to_str().unwrap()]);
        assert!(at_place.unwrap());
        assert!(mount_points_below(&dir.path().join("absent")).unwrap().is_empty());
    }
}
