//! Removes images that nobody uses, when the disk fills or when they are old (A14.8).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stoker_model::handle::{EventSink, EventSubject, EventType};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::client::Runtime;
use super::cri;
use super::error::RuntimeError;
use super::pulled::PullRecords;
use crate::clock::Clock;

/// How often the disk is looked at.
const ROUND: Duration = Duration::from_secs(300);

/// What the operator decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImagePolicy {
    /// kubelet's `imageGCHighThresholdPercent`: from this use of the disk on, images go. 100: never.
    pub high_percent: u8,
    /// kubelet's `imageGCLowThresholdPercent`: until it is used no more than this.
    pub low_percent: u8,
    /// kubelet's `imageMinimumGCAge`: younger images stay.
    pub min_age: Duration,
    /// kubelet's `imageMaximumGCAge`: images that nobody used for longer go in any case; zero: off.
    pub max_age: Duration,
}

/// What went wrong in one round.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The runtime did not answer.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The agent stops.
    #[error("the image collector has ended")]
    Ended,
    /// The disk could not be measured.
    #[error("invalid capacity 0 on image filesystem")]
    NoCapacity,
    /// Some images could not be removed.
    #[error("wanted to free {wanted} bytes, but freed {freed} bytes space with errors in image deletion: {errors}")]
    Deletion {
        /// In bytes.
        wanted: u64,
        /// In bytes.
        freed: u64,
        /// One or several.
        errors: String,
    },
    /// Old images could not be removed.
    #[error("wanted to free images older than {age:?}, encountered errors in image deletion: {errors}")]
    Old {
        /// The limit.
        age: Duration,
        /// One or several.
        errors: String,
    },
    /// All unused images together are not enough.
    #[error(
        "Insufficient free disk space on the node's image filesystem ({percent}% of {capacity} used). Failed to free sufficient space by deleting unused images (freed {freed} bytes). Investigate disk usage, as it could be used by active images, logs, volumes, or other data."
    )]
    Insufficient {
        /// Of the disk in use.
        percent: u64,
        /// The size of the disk, for people.
        capacity: String,
        /// In bytes.
        freed: u64,
    },
}

/// What is remembered of an image. Times are monotonic.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Record {
    /// `None`: it was here before anybody looked, so it counts as old.
    detected: Option<Duration>,
    last_used: Option<Duration>,
    size: u64,
    pinned: bool,
}

/// The images of this node, since when they are here and when they were used last.
#[derive(Debug, Default)]
struct Records {
    images: BTreeMap<String, Record>,
    /// Somebody has looked before.
    looked: bool,
}

impl Records {
    /// Takes in what is there. `used` holds IDs and names.
    fn note(&mut self, images: &[cri::Image], used: &BTreeSet<String>, now: Duration) {
        let detected = self.looked.then_some(now);
        self.looked = true;
        let present: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.images.retain(|id, _| present.contains(id.as_str()));
        for image in images {
            let record = self.images.entry(image.id.clone()).or_insert(Record {
                detected,
                last_used: None,
                size: 0,
                pinned: false,
            });
            let mut names = image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]);
            if names.any(|name| used.contains(name)) {
                record.last_used = Some(now);
            }
            record.size = image.size;
            record.pinned = image.pinned;
        }
    }

    /// Images that nobody uses now, the longest unused first; never used ones before all others.
    fn unused(&self, now: Duration) -> Vec<(String, Record)> {
        let unused = self.images.iter().filter(|(_, record)| !record.pinned && record.last_used != Some(now));
        let mut list: Vec<_> = unused.map(|(id, record)| (id.clone(), record.clone())).collect();
        list.sort_by_key(|(_, record)| (record.last_used, record.detected));
        list
    }
}

/// Reasons of the events about a round that failed.
fn reasons(error: &CollectError, failed_before: bool) -> Vec<&'static str> {
    let of_disk = match error {
        CollectError::NoCapacity => Some("InvalidDiskCapacity"),
        CollectError::Insufficient { .. } => Some("FreeDiskSpaceFailed"),
        _ => None,
    };
    // Once may be a runtime that was just restarted.
    of_disk.into_iter().chain(failed_before.then_some("ImageGCFailed")).collect()
}

/// The bytes to free so that no more than `low` percent is used; `None` below the high threshold.
fn to_free(policy: ImagePolicy, capacity: u64, available: u64) -> Option<u64> {
    let available = available.min(capacity);
    let percent = used_percent(capacity, available);
    let wanted = u128::from(capacity) * u128::from(100 - policy.low_percent.min(100)) / 100;
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX).saturating_sub(available);
    (percent >= u64::from(policy.high_percent)).then_some(wanted)
}

fn used_percent(capacity: u64, available: u64) -> u64 {
    let free = u128::from(available) * 100 / u128::from(capacity.max(1));
    100 - u64::try_from(free).unwrap_or(100).min(100)
}

/// What a round has freed so far.
struct Freed {
    wanted: u64,
    bytes: u64,
    errors: Vec<String>,
}

impl Freed {
    const fn new(wanted: u64) -> Self {
        Self { wanted, bytes: 0, errors: Vec::new() }
    }

    /// Takes in that an image of this size was removed, or why not; whether that is enough.
    fn note(&mut self, size: u64, removed: Result<(), RuntimeError>) -> bool {
        match removed {
            Ok(()) => self.bytes = self.bytes.saturating_add(size),
            Err(error) => self.errors.push(error.to_string()),
        }
        self.bytes >= self.wanted
    }

    fn result(self) -> Result<u64, CollectError> {
        let Self { wanted, bytes: freed, errors } = self;
        if errors.is_empty() {
            Ok(freed)
        } else {
            Err(CollectError::Deletion { wanted, freed, errors: joined(errors) })
        }
    }
}

/// Collects images of one runtime.
#[derive(Debug)]
pub struct ImageCollector {
    runtime: Runtime,
    policy: ImagePolicy,
    /// References that are used though no container shows it: the sandbox image.
    keep: Vec<String>,
    clock: Clock,
    records: Records,
    begun: Duration,
    pulls: Option<Arc<PullRecords>>,
    requests: mpsc::Receiver<Request>,
    sender: mpsc::Sender<Request>,
}

/// Who waits for the answer to [`ImageReclaimer::remove_unused`].
type Request = oneshot::Sender<Result<u64, CollectError>>;

/// Asks the task of an [`ImageCollector`] for disk space.
#[derive(Clone, Debug)]
pub struct ImageReclaimer(mpsc::Sender<Request>);

impl ImageReclaimer {
    /// See [`ImageCollector::remove_unused`].
    ///
    /// # Errors
    /// When the runtime fails, or the collector has ended.
    pub async fn remove_unused(&self) -> Result<u64, CollectError> {
        let (answer, answered) = oneshot::channel();
        if self.0.send(answer).await.is_err() {
            return Err(CollectError::Ended);
        }
        answered.await.unwrap_or(Err(CollectError::Ended))
    }
}

impl ImageCollector {
    /// Knows nothing yet: ages count from now on.
    pub fn new(runtime: Runtime, policy: ImagePolicy, keep: Vec<String>, clock: Clock) -> Self {
        let begun = clock.now().monotonic;
        let (sender, requests) = mpsc::channel(1);
        Self { runtime, policy, keep, clock, records: Records::default(), begun, pulls: None, requests, sender }
    }

    /// Forgets who pulled an image when it is gone (A14.6).
    #[must_use]
    pub fn with_pulls(mut self, pulls: Arc<PullRecords>) -> Self {
        self.pulls = Some(pulls);
        self
    }

    /// For those who need disk space while [`Self::run`] runs.
    pub fn reclaimer(&self) -> ImageReclaimer {
        ImageReclaimer(self.sender.clone())
    }

    /// Looks every five minutes, and when somebody asks, for ever.
    pub async fn run(mut self, events: Arc<dyn EventSink>) {
        let is_off = self.policy.high_percent >= 100 && self.policy.max_age.is_zero();
        let mut failed_before = false;
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = rounds.tick() => {}
                Some(request) = self.requests.recv() => {
                    // Who asked may have gone.
                    let _ = request.send(self.remove_unused().await);
                    continue;
                }
            }
            if is_off {
                // Ages are known all the same, for those who ask.
                if let Err(error) = self.look(self.clock.now().monotonic).await {
                    warn!(%error, "images not listed");
                }
                continue;
            }
            let tell = |reason: &str, message| events.publish(EventSubject::Node, EventType::Warning, reason, message);
            match self.collect().await {
                Ok(()) => failed_before = false,
                Err(error) => {
                    warn!(%error, "image garbage collection failed");
                    for reason in reasons(&error, failed_before) {
                        tell(reason, error.to_string());
                    }
                    failed_before = true;
                }
            }
        }
    }

    /// One round: old images, then enough of the others where the disk is full.
    ///
    /// # Errors
    /// When the runtime fails, and when not enough could be freed.
    pub async fn collect(&mut self) -> Result<(), CollectError> {
        let now = self.clock.now().monotonic;
        let mut unused = self.look(now).await?;
        if !self.policy.max_age.is_zero() && now.saturating_sub(self.begun) > self.policy.max_age {
            let is_old =
                |record: &Record| now.saturating_sub(record.last_used.unwrap_or_default()) > self.policy.max_age;
            let (old, rest): (Vec<_>, Vec<_>) = unused.into_iter().partition(|(_, record)| is_old(record));
            unused = rest;
            let mut errors = Vec::new();
            for (id, record) in old {
                if let Err(error) = self.remove(&id, &record).await {
                    errors.push(error.to_string());
                }
            }
            if !errors.is_empty() {
                return Err(CollectError::Old { age: self.policy.max_age, errors: joined(errors) });
            }
        }
        let (capacity, available) = self.disk().await?;
        let Some(wanted) = to_free(self.policy, capacity, available) else { return Ok(()) };
        let freed = self.free(wanted, unused, now).await?;
        if freed < wanted {
            let percent = used_percent(capacity, available);
            return Err(CollectError::Insufficient { percent, capacity: readable(capacity), freed });
        }
        Ok(())
    }

    /// Removes every image that nobody uses; the bytes that this freed. For a node that is out of disk space.
    ///
    /// # Errors
    /// When the runtime fails.
    pub async fn remove_unused(&mut self) -> Result<u64, CollectError> {
        let now = self.clock.now().monotonic;
        let unused = self.look(now).await?;
        self.free(u64::MAX, unused, now).await
    }

    async fn look(&mut self, now: Duration) -> Result<Vec<(String, Record)>, CollectError> {
        let began = self.clock.now().wall;
        let images = self.runtime.list_images().await?;
        if let Some(pulls) = &self.pulls {
            if !self.records.looked {
                pulls.adopt(&images);
            }
            pulls.retain(&images, began);
        }
        let mut used: BTreeSet<String> = self.keep.iter().cloned().collect();
        for container in self.runtime.list_containers(None).await? {
            used.extend([container.image_id, container.image_ref]);
            used.extend(container.image.map(|image| image.image));
        }
        used.remove("");
        self.records.note(&images, &used, now);
        Ok(self.records.unused(now))
    }

    async fn free(&mut self, wanted: u64, unused: Vec<(String, Record)>, now: Duration) -> Result<u64, CollectError> {
        let mut freed = Freed::new(wanted);
        for (id, record) in unused {
            if record.detected.is_some_and(|detected| now.saturating_sub(detected) < self.policy.min_age) {
                continue;
            }
            let removed = self.remove(&id, &record).await;
            if freed.note(record.size, removed) {
                break;
            }
        }
        freed.result()
    }

    async fn remove(&mut self, id: &str, record: &Record) -> Result<(), RuntimeError> {
        info!(image = id, bytes = record.size, "removing an image that nobody uses");
        self.runtime.remove_image(cri::ImageSpec { image: id.to_owned(), ..Default::default() }).await?;
        self.records.images.remove(id);
        Ok(())
    }

    /// Size and free bytes of the disk that images are on.
    async fn disk(&self) -> Result<(u64, u64), CollectError> {
        let answer = self.runtime.image_fs_info().await?;
        let place = answer.image_filesystems.into_iter().find_map(|fs| fs.fs_id).map(|id| id.mountpoint);
        let found = place.and_then(|place| rustix::fs::statvfs(Path::new(&place)).ok());
        let found = found.filter(|found| found.f_blocks > 0).ok_or(CollectError::NoCapacity)?;
        Ok((found.f_blocks.saturating_mul(found.f_frsize), found.f_bavail.saturating_mul(found.f_frsize)))
    }
}

fn joined(mut errors: Vec<String>) -> String {
    if errors.len() == 1 { errors.swap_remove(0) } else { format!("[{}]", errors.join(", ")) }
}

/// Bytes for people.
fn readable(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let power = (1..=units.len()).rev().find(|power| bytes >= 1 << (10 * power));
    match power {
        None => format!("{bytes} B"),
        Some(power) => format!("{:.1} {}", bytes as f64 / (1_u64 << (10 * power)) as f64, units[power - 1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, size: u64, pinned: bool) -> cri::Image {
        cri::Image { id: id.into(), repo_tags: vec![format!("{id}:1")], size, pinned, ..Default::default() }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_longest_unused_go_first_and_pinned_ones_never() {
        // A14.8
        let images = ["a", "b", "c", "d"].map(|id| image(id, 1, id == "d"));
        let mut records = Records::default();
        let used = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        records.note(&images, &used(&["a:1", "b"]), at(10));
        records.note(&images, &used(&["a:1"]), at(20));
        records.note(&images, &used(&[]), at(30));
        let ids = |records: &Records, now| records.unused(at(now)).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(ids(&records, 30), ["c", "b", "a"]);
        records.note(&images, &used(&["c:1"]), at(40));
        assert_eq!(ids(&records, 40), ["b", "a"]);
        records.note(&images[1..2], &used(&[]), at(50));
        assert_eq!(ids(&records, 50), ["b"]);
        assert_eq!(records.images["b"].detected, None, "what was here at first stays old");
        records.note(&images, &used(&[]), at(60));
        records.note(&images, &used(&[]), at(70));
        assert_eq!(records.images["a"].detected, Some(at(60)), "since when it is here does not change");
    }

    #[test]
    fn no_more_images_go_than_it_takes() {
        // A14.8
        for (wanted, enough) in [(1, 1), (50, 1), (51, 2), (100, 2), (999, 3)] {
            let mut freed = Freed::new(wanted);
            let removed = (0..3).take_while(|_| !freed.note(50, Ok(()))).count();
            assert_eq!((removed + 1).min(3), enough, "{wanted}");
            assert_eq!(freed.result().unwrap(), 50 * enough as u64);
        }
        let mut freed = Freed::new(80);
        assert!(!freed.note(50, Err(RuntimeError::NotFound("busy".to_owned()))), "nothing was freed");
        assert!(!freed.note(50, Ok(())) && freed.note(50, Ok(())));
        let error = freed.result().unwrap_err().to_string();
        assert!(error.starts_with("wanted to free 80 bytes, but freed 100 bytes space with errors"), "{error}");
    }

    #[test]
    fn rounds_that_fail_are_told_of() {
        // A14.8, A16.10, A21.2
        let insufficient = CollectError::Insufficient { percent: 90, capacity: "1 GiB".into(), freed: 7 };
        assert!(insufficient.to_string().contains("90% of 1 GiB used") && insufficient.to_string().contains("freed 7"));
        let old = CollectError::Old { age: at(60), errors: "no".into() };
        for (error, expected) in [
            (CollectError::NoCapacity, &["InvalidDiskCapacity", "ImageGCFailed"][..]),
            (insufficient, &["FreeDiskSpaceFailed", "ImageGCFailed"]),
            (old, &["ImageGCFailed"]),
        ] {
            assert_eq!(reasons(&error, true), expected);
            assert_eq!(reasons(&error, false), expected[..expected.len() - 1], "once is no reason yet");
        }
        assert_eq!(ROUND, at(300));
    }

    #[test]
    fn thresholds_say_how_much() {
        // A14.8
        let policy = ImagePolicy { high_percent: 85, low_percent: 80, min_age: at(120), max_age: at(0) };
        for (available, wanted) in [(160, None), (159, Some(41)), (150, Some(50)), (0, Some(200)), (2000, None)] {
            assert_eq!(to_free(policy, 1000, available), wanted, "{available}");
        }
        assert_eq!(to_free(policy, u64::MAX, 0), Some(u64::MAX / 5));
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(readable(1000), "1000 B");
        assert_eq!(readable(1536), "1.5 KiB");
        assert_eq!(readable(80 << 30), "80.0 GiB");
    }
}
