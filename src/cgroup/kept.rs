//! Files of groups that are read again and again, kept open: opening one costs the kernel ten times what reading it does (A23.2).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::clock::Clock;

/// Who asks for numbers does so at least so often; what was not asked for in this time is closed.
const KEPT_FOR: Duration = Duration::from_secs(120);
/// So many files of a full node with several containers in each pod. The kernel keeps a page for each.
const MOST: usize = 4096;
/// What the kernel writes such a file into at first.
const PAGE: usize = 4096;

/// The files, by their paths. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptFiles(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// Each with the time at which it was read last.
    files: HashMap<PathBuf, (File, Duration)>,
    /// When those that nobody asks for were looked for.
    swept: Duration,
}

impl KeptFiles {
    /// The text of a file, as [`read`] has it.
    pub(super) fn read(&self, path: PathBuf) -> String {
        self.read_at(path, Clock.now().monotonic)
    }

    fn read_at(&self, path: PathBuf, now: Duration) -> String {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(kept.swept) > KEPT_FOR {
            kept.files.retain(|_, (_, last)| now.saturating_sub(*last) <= KEPT_FOR);
            kept.swept = now;
        }
        if let Some((file, last)) = kept.files.get_mut(&path) {
            *last = now;
            if let Ok(text) = text_of(file) {
                return text;
            }
            // The group has gone; there may be another of its name.
            kept.files.remove(&path);
        }
        let Ok(file) = File::open(&path) else { return String::new() };
        let text = text_of(&file).unwrap_or_default();
        if kept.files.len() < most() {
            kept.files.insert(path, (file, now));
        }
        text
    }
}

/// The rest of what may be open is for connections and followers.
fn most() -> usize {
    let open_files = getrlimit(Resource::Nofile).current.map_or(MOST, |most| usize::try_from(most).unwrap_or(MOST));
    MOST.min(open_files / 4)
}

/// The text of a file of the kernel. A group may go while it is read; then it has used nothing.
pub(super) fn read(path: impl AsRef<Path>) -> String {
    File::open(path).and_then(|file| text_of(&file)).unwrap_or_default()
}

/// Not the standard library's way, which asks for the size first: these files have none, and a full node has thousands of them.
fn text_of(file: &File) -> io::Result<String> {
    let (mut text, mut piece) = (Vec::new(), [0; PAGE]);
    loop {
        let length = file.read_at(&mut piece, text.len() as u64)?;
        text.extend_from_slice(&piece[..length]);
        // The kernel fills a page with whole lines: where half of it is empty there is no other line.
        if length < PAGE / 2 {
            break;
        }
    }
    Ok(String::from_utf8(text).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    impl KeptFiles {
        fn open(&self) -> usize {
            self.0.lock().unwrap().files.len()
        }
    }

    #[test]
    fn a_kept_file_is_read_anew() {
        // A23.2
        let folder = tempfile::tempdir().unwrap();
        let (path, kept) = (folder.path().join("memory.stat"), KeptFiles::default());
        assert_eq!(kept.read(path.clone()), "", "what is not there is empty");
        fs::write(&path, "1\n").unwrap();
        assert_eq!(kept.read(path.clone()), "1\n");
        fs::write(&path, "22\n").unwrap();
        assert_eq!((kept.read(path.clone()).as_str(), kept.open()), ("22\n", 1));
        let long = "a line\n".repeat(2000);
        fs::write(&path, &long).unwrap();
        assert_eq!((kept.read(path.clone()), read(&path)), (long.clone(), long));
    }

    #[test]
    fn a_file_nobody_reads_is_closed() {
        // A23.2
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        fs::write(&one, "1").unwrap();
        fs::write(&other, "2").unwrap();
        let (kept, begun) = (KeptFiles::default(), Duration::from_secs(1000));
        kept.read_at(one.clone(), begun);
        kept.read_at(other, begun);
        assert_eq!(kept.open(), 2);
        kept.read_at(one.clone(), begun + Duration::from_secs(60));
        kept.read_at(one, begun + KEPT_FOR + Duration::from_secs(1));
        assert_eq!(kept.open(), 1);
    }

    #[test]
    fn a_group_of_the_same_name_is_another() {
        // A23.2: the kernel's own, of v1 and of v2.
        let files = [("/sys/fs/cgroup/memory", "notify_on_release"), ("/sys/fs/cgroup", "cgroup.max.depth")];
        let made = files.iter().find_map(|(tree, file)| {
            let group = Path::new(tree).join(format!("stoker-kept-{}", std::process::id()));
            fs::create_dir(&group).ok().map(|()| (group.join(file), group))
        });
        let (path, group) = made.expect("a group can be made: the tests run as root");
        let kept = KeptFiles::default();
        let first = kept.read(path.clone());
        let second = fs::write(&path, "1").map(|()| kept.read(path.clone()));
        fs::remove_dir(&group).unwrap();
        assert_ne!(first, "1\n");
        assert_eq!(second.unwrap(), "1\n");
        fs::create_dir(&group).unwrap();
        let another = kept.read(path.clone());
        fs::remove_dir(&group).unwrap();
        assert_eq!(another, first, "the new one is read");
        assert_eq!((kept.read(path).as_str(), kept.open()), ("", 0), "the group has gone");
    }
}
