//! Groups that are read again and again: their files stay open, and what was read of them is known until something runs in them (A23.2).
//!
//! Opening a file costs the kernel ten times what reading it does, and a full node has thousands of them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use stoker_model::handle::{GroupDetails, Usage};

use super::hierarchy::Hierarchy;
use crate::clock::Clock;

/// Who asks for numbers does so at least so often; what was not asked for in this time is closed.
const KEPT_FOR: Duration = Duration::from_secs(120);
/// So many files of a full node with several containers in each pod. The kernel keeps a page for each.
const MOST: usize = 4096;
/// What the kernel writes such a file into at first.
const PAGE: usize = 4096;

/// The files of a group.
pub(super) trait Files {
    /// The text of one; empty where there is none. The controller that it belongs to is asked about by v1 only.
    fn text(&mut self, controller: &str, name: &'static str) -> &str;
}

/// The groups, by their names. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptGroups(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    groups: HashMap<String, Group>,
    /// Files that are open.
    open: usize,
    /// When those that nobody asks for were looked for.
    swept: Duration,
    /// What a file is read into.
    buffer: Vec<u8>,
}

#[derive(Debug, Default)]
struct Group {
    files: Vec<(&'static str, File)>,
    /// When it was asked for last.
    last: Duration,
    seen: Seen,
}

/// What was read of a group the last time. While its processor time stays the same nothing has run in it, and only what others do to it
/// can be another: its memory is taken back, its pages are written, packets come.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) usage: Option<Usage>,
    /// With the processor time that had been used before they were read.
    pub(super) details: Option<(u64, GroupDetails)>,
    /// The same.
    pub(super) inside: Option<(u64, Arc<Inside>)>,
}

/// What is in a pod's group.
#[derive(Debug)]
pub(super) struct Inside {
    /// The names of the groups in it.
    pub(super) groups: Vec<String>,
    /// A process: all of the pod are in the same network.
    pub(super) process: Option<String>,
}

/// A group while it is read.
pub(super) struct OpenGroup<'a> {
    hierarchy: &'a Hierarchy,
    name: &'a str,
    group: &'a mut Group,
    buffer: &'a mut Vec<u8>,
    /// How many more files may stay open.
    room: usize,
}

impl KeptGroups {
    /// Reads files of a group, which has its name below the mount.
    pub(super) fn read<T>(&self, hierarchy: &Hierarchy, name: &str, read: impl FnOnce(&mut OpenGroup<'_>) -> T) -> T {
        self.read_at(hierarchy, name, Clock.now().monotonic, read)
    }

    fn read_at<T>(
        &self,
        hierarchy: &Hierarchy,
        name: &str,
        now: Duration,
        read: impl FnOnce(&mut OpenGroup<'_>) -> T,
    ) -> T {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { groups, open, swept, buffer } = &mut *kept;
        if now.saturating_sub(*swept) > KEPT_FOR {
            groups.retain(|_, group| now.saturating_sub(group.last) <= KEPT_FOR);
            *open = groups.values().map(|group| group.files.len()).sum();
            *swept = now;
        }
        if !groups.contains_key(name) {
            groups.insert(name.to_owned(), Group::default());
        }
        let Some(group) = groups.get_mut(name) else { unreachable!("it is there now") };
        group.last = now;
        let before = group.files.len();
        let mut opened = OpenGroup { hierarchy, name, group, buffer, room: most().saturating_sub(*open) };
        let told = read(&mut opened);
        *open = (*open + opened.group.files.len()).saturating_sub(before);
        told
    }
}

impl OpenGroup<'_> {
    pub(super) fn seen(&mut self) -> &mut Seen {
        &mut self.group.seen
    }
}

impl Files for OpenGroup<'_> {
    fn text(&mut self, controller: &str, name: &'static str) -> &str {
        let kept = self.group.files.iter().find(|(of, _)| *of == name);
        let mut length = kept.and_then(|(_, file)| fill(self.buffer, file).ok());
        if kept.is_some() && length.is_none() {
            // The group has gone; there may be another of its name.
            (self.group.files, self.group.seen) = Default::default();
        }
        if length.is_none()
            && let Some(path) = self.hierarchy.file(controller, self.name, name)
            && let Ok(file) = File::open(path)
        {
            length = fill(self.buffer, &file).ok();
            if self.room > 0 {
                self.group.files.push((name, file));
                self.room -= 1;
            }
        }
        std::str::from_utf8(&self.buffer[..length.unwrap_or_default()]).unwrap_or_default()
    }
}

/// The rest of what may be open is for connections and followers.
fn most() -> usize {
    let open_files = getrlimit(Resource::Nofile).current.map_or(MOST, |most| usize::try_from(most).unwrap_or(MOST));
    MOST.min(open_files / 4)
}

/// The text of a file of the kernel. A group may go while it is read; then it has used nothing.
pub(super) fn read(path: impl AsRef<Path>) -> String {
    let mut text = Vec::new();
    let length = File::open(path).and_then(|file| fill(&mut text, &file)).unwrap_or_default();
    text.truncate(length);
    String::from_utf8(text).unwrap_or_default()
}

/// Reads a file from its beginning: how long it is. Not the standard library's way, which asks for the size first: these files have none.
fn fill(buffer: &mut Vec<u8>, file: &File) -> io::Result<usize> {
    let mut filled = 0;
    loop {
        if buffer.len() < filled + PAGE {
            buffer.resize(filled + PAGE, 0);
        }
        let length = file.read_at(&mut buffer[filled..filled + PAGE], filled as u64)?;
        filled += length;
        // The kernel fills a page with whole lines: where half of it is empty there is no other line.
        if length < PAGE / 2 {
            return Ok(filled);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(kept: &KeptGroups) -> usize {
        let kept = kept.0.lock().unwrap();
        assert_eq!(kept.open, kept.groups.values().map(|group| group.files.len()).sum::<usize>());
        kept.open
    }

    fn text(kept: &KeptGroups, tree: &Path, group: &str, file: &'static str) -> String {
        kept.read(&Hierarchy::V2(tree.to_owned()), group, |it| it.text("", file).to_owned())
    }

    #[test]
    fn a_kept_file_is_read_anew() {
        // A23.2
        let folder = tempfile::tempdir().unwrap();
        let (path, kept) = (folder.path().join("a/memory.stat"), KeptGroups::default());
        let told = || text(&kept, folder.path(), "a", "memory.stat");
        assert_eq!(told(), "", "what is not there is empty");
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(&path, "1\n").unwrap();
        assert_eq!(told(), "1\n");
        fs::write(&path, "22\n").unwrap();
        assert_eq!((told().as_str(), open(&kept)), ("22\n", 1));
        let long = "a line\n".repeat(2000);
        fs::write(&path, &long).unwrap();
        assert_eq!((told(), read(&path)), (long.clone(), long));
    }

    #[test]
    fn a_group_nobody_asks_for_is_closed() {
        // A23.2
        let folder = tempfile::tempdir().unwrap();
        for group in ["a", "b"] {
            fs::create_dir(folder.path().join(group)).unwrap();
            fs::write(folder.path().join(group).join("one"), "1").unwrap();
        }
        let (kept, begun) = (KeptGroups::default(), Duration::from_secs(1000));
        let (hierarchy, late) = (Hierarchy::V2(folder.path().to_owned()), begun + KEPT_FOR + Duration::from_secs(1));
        let read_at = |group, at| kept.read_at(&hierarchy, group, at, |it| assert_eq!(it.text("", "one"), "1"));
        read_at("a", begun);
        read_at("b", begun);
        assert_eq!(open(&kept), 2);
        read_at("a", begun + Duration::from_secs(60));
        read_at("a", late);
        assert_eq!(open(&kept), 1);
    }

    #[test]
    fn a_group_of_the_same_name_is_another() {
        // A23.2: the kernel's own, of v1 and of v2.
        let name = format!("stoker-kept-{}", std::process::id());
        let files = [("/sys/fs/cgroup/memory", "notify_on_release"), ("/sys/fs/cgroup", "cgroup.max.depth")];
        let made = files.iter().find_map(|(tree, file)| {
            let group = Path::new(tree).join(&name);
            fs::create_dir(&group).ok().map(|()| (Path::new(tree), *file, group))
        });
        let (tree, file, group) = made.expect("a group can be made: the tests run as root");
        let kept = KeptGroups::default();
        let first = text(&kept, tree, &name, file);
        let second = fs::write(group.join(file), "1").map(|()| text(&kept, tree, &name, file));
        fs::remove_dir(&group).unwrap();
        assert_ne!(first, "1\n");
        assert_eq!(second.unwrap(), "1\n");
        fs::create_dir(&group).unwrap();
        let another = text(&kept, tree, &name, file);
        fs::remove_dir(&group).unwrap();
        assert_eq!(another, first, "the new one is read");
        assert_eq!((text(&kept, tree, &name, file).as_str(), open(&kept)), ("", 0), "the group has gone");
    }
}
