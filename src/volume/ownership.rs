//! `fsGroup`: who may use a volume beside root (A9.16).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::error::VolumeError;

/// Gives the volume to a group: read and write for it, and what is made in its directories belongs to it.
pub(super) fn give_to_group(path: &Path, group: u32, only_on_mismatch: bool) -> Result<(), VolumeError> {
    let root = fs::metadata(path).map_err(VolumeError::file("look at", path))?;
    if only_on_mismatch && root.gid() == group && root.mode() & 0o2060 == 0o2060 {
        return Ok(());
    }
    walk(path, group).map_err(VolumeError::file("give to its group", path))
}

fn walk(path: &Path, group: u32) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    rustix::fs::chownat(
        rustix::fs::CWD,
        path,
        None,
        Some(rustix::fs::Gid::from_raw(group)),
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let added = if metadata.is_dir() { 0o2070 } else { 0o060 };
    fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o7777 | added))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            walk(&entry?.path(), group)?;
        }
    }
    Ok(())
}
