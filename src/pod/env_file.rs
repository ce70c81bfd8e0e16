//! Variables that a container of the pod wrote into a file (A8.7).

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Nobody's environment is larger.
const LONGEST: u64 = 1 << 20;

/// Reads a variable of the file `path` below `volume`; empty: the file has none of that name. Links out of the volume are not followed.
pub(super) fn read(volume: &Path, path: &str, key: &str) -> Result<String, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let problem = |error: rustix::io::Errno| format!("cannot open {path} in the volume: {error}");
    let root = open(volume, flags | OFlags::DIRECTORY, Mode::empty()).map_err(problem)?;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // A pipe in its place must not stop the agent.
    let file: OwnedFd = openat2(&root, path, flags | OFlags::NONBLOCK, Mode::empty(), inside).map_err(problem)?;
    let file = std::fs::File::from(file);
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(format!("{path} is no regular file"));
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).map_err(|error| format!("cannot read {path}: {error}"))?;
    value(&text, key)
}

/// The value of a variable in lines like `NAME='value'`; empty where there is none.
fn value(text: &str, key: &str) -> Result<String, String> {
    let blank = [' ', '\t'];
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let line = line.trim_start_matches(blank);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| format!("line {number}: {what}");
        let (name, rest) = line.split_once('=').ok_or_else(|| wrong("there is no ="))?;
        if name.is_empty() || name.ends_with(blank) {
            return Err(wrong("= must follow a name at once"));
        }
        if rest.starts_with(blank) {
            // As for a shell, nothing is assigned.
            if name == key {
                return Ok(String::new());
            }
            continue;
        }
        let mut rest = rest.strip_prefix('\'').ok_or_else(|| wrong("the value must be in single quotes"))?;
        let mut value = String::new();
        let after = loop {
            if let Some((last, after)) = rest.split_once('\'') {
                value.push_str(last);
                break after.trim_start_matches(blank);
            }
            value.push_str(rest);
            value.push('\n');
            rest = lines.next().ok_or_else(|| wrong("the quote is not closed"))?.0;
        };
        if !after.is_empty() && !after.starts_with('#') {
            return Err(wrong("only a comment may follow the closing quote"));
        }
        if name == key {
            return Ok(value);
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_single_quotes() {
        // A8.7
        let text = "# a comment\n\n  A='one' # another\nB='two\nlines'\nC= 'x'\nD='$(A) \\n'\n";
        for (key, expected) in [("A", "one"), ("B", "two\nlines"), ("C", ""), ("D", "$(A) \\n"), ("E", "")] {
            assert_eq!(value(text, key).as_deref(), Ok(expected), "{key}");
        }
        for bad in ["A", "A =’x’", "A ='x'", "A=x", "A=\"x\"", "A='x", "A='x' y", "='x'", "A="] {
            assert!(value(bad, "A").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_outside_the_volume_is_not_read() {
        // A8.7
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(dir.path().join("secret"), "A='stolen'").unwrap();
        std::fs::write(volume.join("env"), "A='mine'").unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("link")).unwrap();
        std::os::unix::fs::symlink("env", volume.join("inner")).unwrap();
        assert_eq!(read(&volume, "env", "A").as_deref(), Ok("mine"));
        assert_eq!(read(&volume, "inner", "A").as_deref(), Ok("mine"));
        for path in ["link", "../secret", "/etc/hostname", "absent", "."] {
            assert!(read(&volume, path, "A").is_err(), "{path}");
        }
    }
}
