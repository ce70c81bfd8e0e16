//! Keeps the logs of running containers from growing without end (A20.5).
//!
//! What grew too large gets another name, and the runtime opens a new file. Older ones are compressed; the newest rotated one stays
//! plain, since somebody may still read it. Logs of containers that ended stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt as _;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use crate::clock::Clock;
use crate::runtime::client::Runtime;
use crate::runtime::cri;
use crate::runtime::error::RuntimeError;

const COMPRESSED: &str = ".gz";
const UNFINISHED: &str = ".tmp";

/// What the operator decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RotationConfig {
    /// kubelet's `containerLogMaxSize` in bytes; a log of this size is rotated.
    pub max_size: u64,
    /// kubelet's `containerLogMaxFiles`: files of one container, the current one too; at least 2.
    pub max_files: usize,
    /// kubelet's `containerLogMaxWorkers`.
    pub workers: usize,
    /// kubelet's `containerLogMonitorInterval`.
    pub interval: Duration,
}

/// Looks after all logs, for ever.
pub async fn rotate_logs(runtime: Runtime, config: RotationConfig, clock: Clock) {
    let mut logs = Logs::new();
    loop {
        tokio::time::sleep(config.interval).await;
        if let Err(error) = round(&runtime, &mut logs, config, clock).await {
            debug!(%error, "logs are looked after later");
        }
    }
}

/// The logs of running containers by their IDs: a container keeps its log's path.
type Logs = BTreeMap<String, PathBuf>;

async fn round(runtime: &Runtime, logs: &mut Logs, config: RotationConfig, clock: Clock) -> Result<(), RuntimeError> {
    let filter = cri::ContainerFilter {
        state: Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() }),
        ..Default::default()
    };
    let running: BTreeSet<String> = runtime.list_containers(Some(filter)).await?.into_iter().map(|c| c.id).collect();
    logs.retain(|id, _| running.contains(id));
    let workers = config.workers.max(1);
    let new: Vec<String> = running.into_iter().filter(|id| !logs.contains_key(id)).collect();
    let found = futures::stream::iter(new).map(|id| log_of(runtime, id)).buffer_unordered(workers);
    logs.extend(found.filter_map(std::future::ready).collect::<Vec<_>>().await);
    let all = logs.clone();
    let small = move |log: &Path| fs::metadata(log).is_ok_and(|found| found.len() < config.max_size);
    let due = spawn_blocking(move || all.into_iter().filter(|(_, log)| !small(log)).collect::<Vec<_>>()).await;
    futures::stream::iter(due.unwrap_or_default())
        .for_each_concurrent(workers, |(id, log)| async move {
            if let Err(error) = look_after(runtime, &id, log, config, clock).await {
                warn!(container = id, %error, "cannot rotate its log");
            }
        })
        .await;
    Ok(())
}

/// The log of a container, unless it has none or is gone.
async fn log_of(runtime: &Runtime, id: String) -> Option<(String, PathBuf)> {
    match runtime.container_status(&id, false).await {
        Ok(answer) => answer.status.map(|s| s.log_path).filter(|path| !path.is_empty()).map(|path| (id, path.into())),
        Err(RuntimeError::NotFound(_)) => None,
        Err(error) => {
            warn!(container = id, %error, "cannot rotate its log");
            None
        }
    }
}

/// Why one log was not rotated.
#[derive(Debug, thiserror::Error)]
enum RotateError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{path:?}: {source}")]
    File { path: PathBuf, source: io::Error },
}

async fn look_after(
    runtime: &Runtime,
    id: &str,
    log: PathBuf,
    config: RotationConfig,
    clock: Clock,
) -> Result<(), RotateError> {
    let log = Arc::new(log);
    let failed = |source| RotateError::File { path: log.to_path_buf(), source };
    match tokio::fs::metadata(&*log).await {
        Ok(found) if found.len() < config.max_size => return Ok(()),
        Ok(_) => {}
        // Somebody died between the two steps below.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match runtime.reopen_container_log(id).await {
                // It went meanwhile.
                Err(RuntimeError::NotFound(_)) => Ok(()),
                other => Ok(other?),
            };
        }
        Err(source) => return Err(failed(source)),
    }
    let path = log.clone();
    let tidied = spawn_blocking(move || tidy(&path, config.max_files)).await;
    tidied.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(failed)?;
    let rotated = rotated_name(&log, clock.now().wall);
    if rotated.exists() || with_suffix(&rotated, COMPRESSED).exists() {
        // A file of this second would be lost: the next look is in another one.
        return Ok(());
    }
    replace(&log, &rotated, runtime.reopen_container_log(id)).await
}

/// Renames the log, and has the runtime open it anew.
async fn replace(
    log: &Path,
    rotated: &Path,
    reopened: impl Future<Output = Result<(), RuntimeError>>,
) -> Result<(), RotateError> {
    let failed = |source| RotateError::File { path: log.to_owned(), source };
    tokio::fs::rename(log, rotated).await.map_err(failed)?;
    if let Err(error) = reopened.await {
        // The runtime goes on to write to the renamed file, so that has to be the log again.
        tokio::fs::rename(rotated, log).await.map_err(failed)?;
        return Err(error.into());
    }
    Ok(())
}

fn rotated_name(log: &Path, now: Timestamp) -> PathBuf {
    with_suffix(log, &format!(".{}", now.to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%S")))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Prepares a rotation: removes what was left unfinished and what is too much, and compresses the rest.
fn tidy(log: &Path, max_files: usize) -> io::Result<()> {
    let mut rotated = rotated_files(log)?;
    let is = |path: &Path, suffix: &str| path.to_string_lossy().ends_with(suffix);
    let mut failed = Ok(());
    let mut remove = |path: &Path| {
        let removed =
            fs::remove_file(path).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) });
        failed = std::mem::replace(&mut failed, Ok(())).and(removed);
    };
    let complete: Vec<PathBuf> = rotated.iter().filter(|path| is(path, COMPRESSED)).cloned().collect();
    rotated.retain(|path| {
        // Unfinished, or compressed already and not removed any more.
        let goes = is(path, UNFINISHED) || complete.contains(&with_suffix(path, COMPRESSED));
        if goes {
            remove(path);
        }
        !goes
    });
    // The current log, and the one that it is about to become.
    let surplus = rotated.len().saturating_sub(max_files.saturating_sub(2));
    for path in rotated.drain(..surplus) {
        remove(&path);
    }
    failed?;
    rotated.iter().filter(|path| !is(path, COMPRESSED)).try_for_each(|path| compress(path))
}

/// The oldest first.
fn rotated_files(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) && entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn compress(path: &Path) -> io::Result<()> {
    let unfinished = with_suffix(path, UNFINISHED);
    let mut from = File::open(path)?;
    let to = File::create(&unfinished)?;
    to.set_permissions(from.metadata()?.permissions())?;
    let mut encoder = GzEncoder::new(to, Compression::default());
    io::copy(&mut from, &mut encoder)?;
    encoder.finish()?;
    fs::rename(&unfinished, with_suffix(path, COMPRESSED))?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn rotated_files_are_compressed_and_bounded() {
        // A20.5
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        for (name, text) in [
            ("0.log", "now"),
            ("0.log.20260101-000001", "one"),
            ("0.log.20260101-000002.gz", "two"),
            ("0.log.20260101-000003", "three"),
            ("0.log.20260101-000004", "four"),
            ("0.log.20260101-000004.gz", "four, complete"),
            ("0.log.20260101-000005", "five"),
            ("0.log.20260101-000005.tmp", "begun"),
            ("1.log.20260101-000001", "another's"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        tidy(&log, 5).unwrap();
        assert_eq!(
            names(folder.path()),
            [
                "0.log",
                "0.log.20260101-000003.gz",
                "0.log.20260101-000004.gz",
                "0.log.20260101-000005.gz",
                "1.log.20260101-000001"
            ]
        );
        let mut text = String::new();
        let compressed = File::open(folder.path().join("0.log.20260101-000005.gz")).unwrap();
        GzDecoder::new(compressed).read_to_string(&mut text).unwrap();
        assert_eq!(text, "five");
        tidy(&log, 2).unwrap();
        assert_eq!(names(folder.path()), ["0.log", "1.log.20260101-000001"]);
    }

    #[tokio::test]
    async fn a_log_that_the_runtime_does_not_reopen_stays_the_log() {
        // A20.5
        let folder = tempfile::tempdir().unwrap();
        let (log, rotated) = (folder.path().join("0.log"), folder.path().join("0.log.20260101-000001"));
        fs::write(&log, "text").unwrap();
        let refuses = async {
            assert_eq!(names(folder.path()), ["0.log.20260101-000001"]);
            Err(RuntimeError::NotFound("no such container".to_owned()))
        };
        assert!(replace(&log, &rotated, refuses).await.is_err());
        assert_eq!(names(folder.path()), ["0.log"]);
        replace(&log, &rotated, async { Ok(()) }).await.unwrap();
        assert_eq!(names(folder.path()), ["0.log.20260101-000001"]);
    }

    #[test]
    fn names_tell_when() {
        // A20.5
        let now: Timestamp = "2026-11-21T13:14:15.9Z".parse().unwrap();
        assert_eq!(rotated_name(Path::new("/a/0.log"), now), Path::new("/a/0.log.20261121-131415"));
    }
}
