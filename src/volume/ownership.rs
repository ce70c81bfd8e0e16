//! `fsGroup`: who may use a volume beside root (A9.16).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::error::VolumeError;

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

/// Gives the volume to a group. With `only_on_mismatch` its root tells whether that was done before.
pub(super) fn give_to_group(
    path: &Path,
    group: u32,
    access: Access,
    only_on_mismatch: bool,
) -> Result<(), VolumeError> {
    let root = fs::metadata(path).map_err(VolumeError::file("look at", path))?;
    let done = root.is_dir() && root.gid() == group && root.mode() & access.of_dir() == access.of_dir();
    if only_on_mismatch && done {
        return Ok(());
    }
    give(path, group, access).map_err(VolumeError::file("give to its group", path))
}

/// The root comes last: it shows that the rest is done.
pub(super) fn give(path: &Path, group: u32, access: Access) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            match give(&entry?.path(), group, access) {
                // A container that uses the volume may remove what was there a moment ago.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
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
        let before = look(Path::new("/etc/passwd"));
        give_to_group(&root, 4242, Access::ReadWrite, true).unwrap();
        assert_eq!(look(&root), (4242, 0o2775));
        assert_eq!(look(&root.join("sub")), (4242, 0o2770));
        assert_eq!(look(&file), (4242, 0o660));
        assert_eq!(look(&root.join("link")).0, 4242);
        assert_eq!(look(Path::new("/etc/passwd")), before, "links are not followed");

        set(&file, 0o600);
        give_to_group(&root, 4242, Access::ReadWrite, true).unwrap();
        assert_eq!(look(&file), (4242, 0o600), "the root matches");
        give_to_group(&root, 4242, Access::Read, false).unwrap();
        assert_eq!(look(&file), (4242, 0o640));
        set(&root, 0o755);
        give_to_group(&root, 4242, Access::ReadWrite, true).unwrap();
        assert_eq!(look(&file), (4242, 0o660), "the root did not match");
    }
}
