//! The atomic writer (A9.6): readers of a volume see all of the old content or all of the new.
//!
//! Content lies in a directory with a time in its name, `..data` is a symlink to it that is swapped by a rename, and what users see are symlinks
//! through `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::error::VolumeError;
use super::ownership::{self, Access};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// One file of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    /// Owner, where it is not root.
    pub(super) uid: Option<u32>,
}

/// Files by their path within the volume.
pub(super) type Payload = BTreeMap<String, File>;

/// Makes `dir` show exactly the payload; whether anything changed.
pub(super) fn write(dir: &Path, payload: &Payload, group: Option<u32>, now: Timestamp) -> Result<bool, VolumeError> {
    for path in payload.keys() {
        check(path)?;
    }
    let current = fs::read_link(dir.join(DATA)).ok().map(|name| dir.join(name));
    if current.as_ref().is_some_and(|current| shows(current, payload)) {
        link(dir, payload)?;
        return Ok(false);
    }
    let fresh = new_dir(dir, now)?;
    for (path, file) in payload {
        let target = fresh.join(path);
        make_parents(&fresh, path)?;
        write_private(&target, &file.content).map_err(VolumeError::file("write", &target))?;
        let (mut mode, owner) = (file.mode, file.uid.map(rustix::fs::Uid::from_raw));
        if group.is_some() {
            // Whoever is in the volume's group may read (A9.7).
            mode |= 0o440;
        }
        if owner.is_some() || group.is_some() {
            rustix::fs::chown(&target, owner, group.map(rustix::fs::Gid::from_raw))
                .map_err(|e| VolumeError::file("chown", &target)(e.into()))?;
        }
        fs::set_permissions(&target, fs::Permissions::from_mode(mode)).map_err(VolumeError::file("chmod", &target))?;
    }
    if let Some(group) = group {
        // What the files are given, they have; this is for the directories (A9.7).
        ownership::give(&fresh, group, Access::Read, &AtomicU64::new(0))
            .map_err(VolumeError::file("give to its group", &fresh))?;
        ownership::give_one(dir, group, Access::Read).map_err(VolumeError::file("give to its group", dir))?;
    }
    swap(dir, &fresh)?;
    link(dir, payload)?;
    if let Some(old) = current {
        fs::remove_dir_all(&old).map_err(VolumeError::file("remove", &old))?;
    }
    Ok(true)
}

/// Makes the directories above a file, with upstream's mode whatever the umask.
fn make_parents(root: &Path, path: &str) -> Result<(), VolumeError> {
    let mut dir = root.to_owned();
    let parents = Path::new(path).parent().into_iter().flat_map(Path::components);
    for part in parents {
        dir.push(part);
        if !dir.is_dir() {
            fs::create_dir(&dir).map_err(VolumeError::file("make", &dir))?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).map_err(VolumeError::file("chmod", &dir))?;
        }
    }
    Ok(())
}

fn check(path: &str) -> Result<(), VolumeError> {
    let normal = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    let hidden = path.split('/').next().is_none_or(|first| first.starts_with(".."));
    if path.is_empty() || !normal || hidden { Err(VolumeError::Path(path.to_owned())) } else { Ok(()) }
}

/// Whether a directory holds exactly the payload.
fn shows(dir: &Path, payload: &Payload) -> bool {
    let same = |(path, file): (&String, &File)| fs::read(dir.join(path)).is_ok_and(|content| content == file.content);
    files_below(dir).is_ok_and(|files| files.len() == payload.len()) && payload.iter().all(same)
}

fn files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn new_dir(dir: &Path, now: Timestamp) -> Result<PathBuf, VolumeError> {
    let time = now.to_zoned(TimeZone::UTC).strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    // Unique within a second: the nanoseconds, and as many tries as it takes.
    for extra in 0_u32.. {
        let path = dir.join(format!("{time}.{}", u64::from(now.subsec_nanosecond().unsigned_abs()) + u64::from(extra)));
        match fs::create_dir(&path) {
            Ok(()) => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                    .map_err(VolumeError::file("chmod", &path))?;
                return Ok(path);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(VolumeError::file("make", path)(error)),
        }
    }
    Err(VolumeError::file("make a new directory in", dir)(io::ErrorKind::AlreadyExists.into()))
}

fn swap(dir: &Path, fresh: &Path) -> Result<(), VolumeError> {
    let staged = dir.join(DATA_NEW);
    let name = fresh.file_name().unwrap_or_default();
    let removed = fs::remove_file(&staged);
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(VolumeError::file("remove", staged)(error));
    }
    symlink(name, &staged).map_err(VolumeError::file("link", &staged))?;
    fs::rename(&staged, dir.join(DATA)).map_err(VolumeError::file("rename", staged))
}

/// Makes the links that users see, and removes those of keys that are gone.
fn link(dir: &Path, payload: &Payload) -> Result<(), VolumeError> {
    let names: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for entry in fs::read_dir(dir).map_err(VolumeError::file("read", dir))? {
        let entry = entry.map_err(VolumeError::file("read", dir))?;
        let name = entry.file_name();
        let ours = name.to_string_lossy().starts_with("..");
        if !ours && !names.contains(&*name.to_string_lossy()) {
            fs::remove_file(entry.path()).map_err(VolumeError::file("remove", entry.path()))?;
        }
    }
    for name in names {
        let place = dir.join(name);
        if fs::symlink_metadata(&place).is_err() {
            symlink(Path::new(DATA).join(name), &place).map_err(VolumeError::file("link", place))?;
        }
    }
    Ok(())
}

/// Writes a file that nobody else can read before it has its owner and mode: running containers see the directory.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |content: &str| File { content: content.into(), mode: 0o640, uid: None };
        files.iter().map(|(path, content)| ((*path).to_owned(), file(content))).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn content_is_swapped_as_a_whole() {
        // A9.6, A9.7
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).ok();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("sub/b", "2")]), None, at(0)).unwrap());
        assert_eq!(fs::read_link(dir.path().join("a")).unwrap(), Path::new("..data/a"));
        let first = fs::read_link(dir.path().join(DATA)).unwrap();
        assert!(first.to_str().unwrap().starts_with("..2023_11_14_22_13_20."), "{first:?}");
        assert_eq!((read("a"), read("sub/b")), (Some("1".into()), Some("2".into())));
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o640);

        assert!(!write(dir.path(), &payload(&[("a", "1"), ("sub/b", "2")]), None, at(1)).unwrap());
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), first, "unchanged content makes no new directory");

        assert!(write(dir.path(), &payload(&[("a", "3")]), None, at(2)).unwrap());
        assert_eq!((read("a"), read("sub/b")), (Some("3".into()), None));
        assert!(!dir.path().join(&first).exists(), "the old content is gone");
        assert!(fs::symlink_metadata(dir.path().join("sub")).is_err(), "the link of a removed key vanishes");
    }

    #[test]
    fn a_file_is_nobody_elses_before_it_has_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        write_private(&dir.path().join("a"), b"secret").unwrap();
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn paths_stay_in_the_volume() {
        // A9.6
        let dir = tempfile::tempdir().unwrap();
        for path in ["/etc/passwd", "../x", "a/../../x", "..data", ""] {
            assert!(write(dir.path(), &payload(&[(path, "")]), None, at(0)).is_err(), "{path:?}");
        }
    }
}
