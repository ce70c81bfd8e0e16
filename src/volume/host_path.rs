//! `hostPath`: what is on the node (A9.5).

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::aside::aside;
use super::error::VolumeError;

/// Checks, and where the type says so makes, what is at the path.
pub(super) async fn set_up(path: String, kind: String) -> Result<(), VolumeError> {
    aside(move || check(&path, &kind)).await
}

fn check(path: &str, kind: &str) -> Result<(), VolumeError> {
    let place = Path::new(path);
    match kind {
        "DirectoryOrCreate" if !place.exists() => {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(place);
            made.map_err(VolumeError::file("make", place))?;
        }
        "FileOrCreate" if !place.exists() => {
            let made = fs::OpenOptions::new().create_new(true).write(true).mode(0o644).open(place);
            made.map_err(VolumeError::file("make", place))?;
        }
        _ => {}
    }
    let found = fs::metadata(place).map(|m| m.file_type());
    let is = |expected: &'static str, holds: fn(&fs::FileType) -> bool| {
        if found.as_ref().is_ok_and(holds) {
            Ok(())
        } else {
            Err(VolumeError::HostPathType { path: path.to_owned(), expected })
        }
    };
    match kind {
        "" => Ok(()),
        "Directory" | "DirectoryOrCreate" => is("a directory", fs::FileType::is_dir),
        "File" | "FileOrCreate" => is("a file", fs::FileType::is_file),
        "Socket" => is("a socket file", FileTypeExt::is_socket),
        "CharDevice" => is("a character device", FileTypeExt::is_char_device),
        "BlockDevice" => is("a block device", FileTypeExt::is_block_device),
        _ => Err(VolumeError::Unsupported),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_is_checked_or_made() {
        // A9.5
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        check(&path("missing"), "").unwrap();
        for kind in ["Directory", "File", "Socket", "CharDevice", "BlockDevice"] {
            assert!(check(&path("missing"), kind).is_err(), "{kind}");
        }
        check(&path("d/e"), "DirectoryOrCreate").unwrap();
        check(&path("f"), "FileOrCreate").unwrap();
        check(&path("d/e"), "Directory").unwrap();
        check(&path("f"), "File").unwrap();
        assert!(check(&path("f"), "DirectoryOrCreate").is_err());
        check("/dev/null", "CharDevice").unwrap();
        assert!(check("/dev/null", "BlockDevice").is_err());
        let _listener = std::os::unix::net::UnixListener::bind(path("s")).unwrap();
        check(&path("s"), "Socket").unwrap();
        // 7 is the number of loop devices; it needs root to make a file of one.
        let made = std::process::Command::new("mknod").args([&path("b"), "b", "7", "250"]).status().unwrap();
        assert!(made.success());
        check(&path("b"), "BlockDevice").unwrap();
        assert!(check(&path("b"), "File").is_err() && check(&path("b"), "Tape").is_err());
        let mode =
            |name: &str| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path(name)).unwrap().permissions());
        assert_eq!((mode("d/e") & 0o7777, mode("f") & 0o7777), (0o755, 0o644));
    }
}
