//! Static pods of files: a directory of manifests, or one file (A7.1).

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use k8s_openapi::api::core::v1::Pod;
use stoker_model::handle::{DesiredPods, EventSink, EventSubject, EventType};
use stoker_model::names;
use stoker_model::pod::PodRef;
use tokio::sync::watch;

use super::manifest::{LONGEST, ManifestError, Origin, pods};
use super::{Statics, full_name, seen_now};
use crate::clock::Clock;
use crate::pod::plan::pod_text_of;

/// An editor's burst of changes is one.
const SETTLE: Duration = Duration::from_millis(50);
/// Room for the events that one read brings.
const EVENT_BUFFER: usize = 4096;

/// Reads the path when something in it changes, and each `every` in any case.
pub(super) async fn run(
    path: PathBuf,
    node: String,
    every: Duration,
    out: watch::Sender<Statics>,
    sink: Option<Arc<dyn EventSink>>,
) {
    let (known, told) = (BTreeMap::new(), BTreeMap::new());
    let mut reader = Reader { path, node, clock: Clock, known, told, sink };
    let mut period = tokio::time::interval(every.max(Duration::from_millis(100)));
    let mut events: Option<EventStream<Vec<u8>>> = None;
    loop {
        // A period ends the patience with a manifest that became unreadable (as with kubelet).
        let patient = tokio::select! {
            biased;
            Some(_) = next(&mut events) => {
                tokio::time::sleep(SETTLE).await;
                true
            }
            _ = period.tick() => {
                // The path may have come, or may be another directory than it was.
                events = watch_path(&reader.path);
                false
            }
        };
        if let Some(read) = reader.read(patient) {
            out.send_if_modified(|last| {
                let changed = !last.as_ref().is_some_and(|last| same(last, &read));
                if changed {
                    *last = Some(Arc::new(read));
                }
                changed
            });
        }
    }
}

async fn next(events: &mut Option<EventStream<Vec<u8>>>) -> Option<()> {
    match events {
        Some(stream) => match stream.next().await {
            Some(Ok(_)) => Some(()),
            // Overrun or gone: the period looks again.
            Some(Err(_)) | None => {
                *events = None;
                None
            }
        },
        None => std::future::pending().await,
    }
}

fn watch_path(path: &Path) -> Option<EventStream<Vec<u8>>> {
    let directory = if path.is_dir() { path } else { path.parent()? };
    let mask = WatchMask::CREATE
        | WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::ATTRIB;
    let watching = || -> io::Result<EventStream<Vec<u8>>> {
        let inotify = Inotify::init()?;
        inotify.watches().add(directory, mask)?;
        inotify.into_event_stream(vec![0; EVENT_BUFFER])
    };
    watching().inspect_err(|error| tracing::debug!(%error, path = %path.display(), "static pods are only polled")).ok()
}

fn same(a: &DesiredPods, b: &DesiredPods) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((x, p), (y, q))| x == y && Arc::ptr_eq(p, q))
}

/// What a file held when it was last read.
struct Known {
    content: Vec<u8>,
    pod: Arc<Pod>,
}

struct Reader {
    path: PathBuf,
    node: String,
    clock: Clock,
    known: BTreeMap<PathBuf, Known>,
    /// Problems that were told, so that each is told once.
    told: BTreeMap<PathBuf, String>,
    /// Publishes events about pods that are not used.
    sink: Option<Arc<dyn EventSink>>,
}

impl Reader {
    /// The pods that are there; `None`: nobody can tell. `patient`: a file that cannot be read any more keeps its pod.
    fn read(&mut self, patient: bool) -> Option<DesiredPods> {
        let root = self.path.clone();
        let (files, patient) = match fs::metadata(&root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.tell(&root, "staticPodPath does not exist: there are no static pods until it does".to_owned());
                (Vec::new(), patient)
            }
            Err(error) => {
                self.tell(&root, format!("staticPodPath cannot be read: {error}"));
                return None;
            }
            Ok(meta) if meta.is_dir() => match self.files_of(&root) {
                Ok(files) => {
                    self.told.remove(&root);
                    (files, patient)
                }
                Err(error) => {
                    self.tell(&root, format!("staticPodPath cannot be listed: {error}"));
                    return None;
                }
            },
            // A single file that became unreadable keeps its pod for good: there is nothing else to go by.
            Ok(_) => (vec![root.clone()], true),
        };
        let mut known = BTreeMap::new();
        for file in files {
            let before = self.known.remove(&file);
            match self.read_file(&file, before.as_ref()) {
                Ok(now) => {
                    if self.told.remove(&file).is_some() {
                        tracing::info!(file = %file.display(), "the manifest can be used again");
                    }
                    known.insert(file, now);
                }
                Err(problem) => {
                    self.tell(&file, problem);
                    // A link whose file has gone is gone as well.
                    if let Some(before) = before.filter(|_| patient && file.exists()) {
                        known.insert(file, before);
                    }
                }
            }
        }
        self.told.retain(|file, _| *file == root || file.exists());
        self.known = known;
        Some(self.by_uid())
    }

    /// Of two files with the same pod the later one counts.
    fn by_uid(&mut self) -> DesiredPods {
        let mut by_name: BTreeMap<_, (PathBuf, Arc<Pod>)> = BTreeMap::new();
        let mut doubles = Vec::new();
        for (file, known) in &self.known {
            if let Some((other, pod)) = by_name.insert(full_name(&known.pod), (file.clone(), known.pod.clone())) {
                doubles.push((other, pod, format!("{} has a pod of the same name, which is used", file.display())));
            }
        }
        for (file, pod, problem) in doubles {
            if self.tell(&file, problem)
                && let Some(sink) = &self.sink
            {
                let (text, pod) = (pod_text_of(&pod), PodRef::of(&pod));
                let message = format!(
                    "Error validating pod {text} from file due to duplicate pod name \"{}\", ignoring",
                    pod.name
                );
                let subject = EventSubject::Pod { pod, field_path: None };
                sink.publish(subject, EventType::Warning, "FailedValidation", message);
            }
        }
        by_name.into_values().map(|(_, pod)| (PodRef::of(&pod).uid, pod)).collect()
    }

    fn files_of(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    }

    fn read_file(&mut self, file: &Path, before: Option<&Known>) -> Result<Known, String> {
        // Through links, as `kubeadm` and GitOps tools make them.
        let meta = fs::metadata(file).map_err(|error| error.to_string())?;
        if !meta.is_file() {
            return Err("it is no regular file; directories below staticPodPath are not read".to_owned());
        }
        if meta.len() > LONGEST {
            return Err(format!("it is longer than {LONGEST} bytes"));
        }
        let mut content = Vec::new();
        let opened = fs::File::open(file).map_err(|error| error.to_string())?;
        opened.take(LONGEST).read_to_end(&mut content).map_err(|error| error.to_string())?;
        if let Some(before) = before.filter(|before| before.content == content) {
            return Ok(Known { content, pod: before.pod.clone() });
        }
        let path = file.to_string_lossy();
        let (found, more) =
            pods(&content, Origin::File(&path), &self.node).map_err(|e: ManifestError| e.to_string())?;
        if more {
            tracing::warn!(file = %path, "only the first document of the manifest counts: put each pod into a file of its own");
        }
        let mut pod = found.into_iter().next().ok_or_else(|| "it holds no pod".to_owned())?;
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(names::CONFIG_SEEN.into(), seen_now(self.clock));
        Ok(Known { content, pod: Arc::new(pod) })
    }

    /// Whether it is news.
    fn tell(&mut self, file: &Path, problem: String) -> bool {
        let news = self.told.get(file) != Some(&problem);
        if news {
            tracing::warn!(file = %file.display(), problem, "static pods: this is skipped, the others are not touched");
            self.told.insert(file.to_owned(), problem);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: {image}}}]}}\n"
        )
    }

    fn reader(path: &Path) -> Reader {
        let (known, told) = (BTreeMap::new(), BTreeMap::new());
        Reader { path: path.into(), node: "n".into(), clock: Clock, known, told, sink: None }
    }

    fn names(pods: Option<DesiredPods>) -> Vec<String> {
        let mut names: Vec<_> = pods.unwrap().values().filter_map(|p| p.metadata.name.clone()).collect();
        names.sort();
        names
    }

    #[test]
    fn one_bad_file_does_not_disturb_the_others() {
        // A1.1, A7.1, A7.4
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("a.yaml", &manifest("a", "i"));
        write("bad.yaml", "{{{");
        write("needs-a-secret.yaml", &manifest("s", "i, envFrom: [{secretRef: {name: x}}]"));
        write(".hidden.yaml", &manifest("hidden", "i"));
        fs::create_dir(dir.path().join("below")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("a.yaml"), dir.path().join("c.yaml")).unwrap();
        write("b", &manifest("b", "i"));
        let mut reader = reader(dir.path());
        assert_eq!(names(reader.read(false)), ["a-n", "b-n"], "the link names the same pod as a.yaml");
        let first = reader.read(false).unwrap();
        for pod in first.values() {
            assert_eq!(super::super::annotation(pod, names::CONFIG_SOURCE), Some("file"));
            let seen = super::super::annotation(pod, names::CONFIG_SEEN).unwrap();
            assert!(seen.parse::<jiff::Timestamp>().is_ok() && seen.contains('.') && seen.ends_with('Z'), "{seen}");
        }
        assert!(same(&first, &reader.read(false).unwrap()), "what did not change is the same object");

        write("b", "kind: Broken");
        assert_eq!(names(reader.read(true)), ["a-n", "b-n"], "half-written, perhaps");
        assert_eq!(names(reader.read(false)), ["a-n"]);
        fs::remove_file(dir.path().join("a.yaml")).unwrap();
        assert!(names(reader.read(true)).is_empty());
    }

    #[test]
    fn a_path_that_is_not_there_has_no_pods() {
        // A1.2, A7.1
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("later");
        assert!(names(reader(&path).read(false)).is_empty());
        fs::write(&path, manifest("a", "i")).unwrap();
        let mut single = reader(&path);
        assert_eq!(names(single.read(false)), ["a-n"]);
        fs::write(&path, "{{{").unwrap();
        assert_eq!(names(single.read(false)), ["a-n"]);
    }

    #[tokio::test]
    async fn what_nobody_tells_of_is_found_by_looking() {
        // A7.1
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not/there/yet");
        let (out, mut seen) = watch::channel(None);
        let task = tokio::spawn(run(path.clone(), "n".into(), Duration::from_millis(50), out, None));
        let mut until = async |wanted: &[&str]| {
            let wait = seen.wait_for(|s: &Statics| s.as_deref().is_some_and(|s| names(Some(s.clone())) == wanted));
            tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it is seen").unwrap();
        };
        until(&[]).await;
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("a"), manifest("a", "i")).unwrap();
        until(&["a-n"]).await;
        // Another directory in the place of the first.
        fs::rename(dir.path().join("not"), dir.path().join("aside")).unwrap();
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("b"), manifest("b", "i")).unwrap();
        until(&["b-n"]).await;
        task.abort();
    }

    #[tokio::test]
    async fn a_change_is_seen_at_once() {
        // A7.1
        let dir = tempfile::tempdir().unwrap();
        let (out, mut seen) = watch::channel(None);
        let task = tokio::spawn(run(dir.path().into(), "n".into(), Duration::from_secs(3600), out, None));
        let mut until = async |wanted: &[&str]| {
            let wait = seen.wait_for(|s: &Statics| s.as_deref().is_some_and(|s| names(Some(s.clone())) == wanted));
            tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it is seen").unwrap();
        };
        until(&[]).await;
        fs::write(dir.path().join("a"), manifest("a", "i")).unwrap();
        until(&["a-n"]).await;
        fs::rename(dir.path().join("a"), dir.path().join(".a")).unwrap();
        until(&[]).await;
        task.abort();
    }
}
