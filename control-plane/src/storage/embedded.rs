//! The store on one redb file.
//!
//! One thread owns all writing: it takes every transaction that waits, applies them in order in one redb transaction
//! and commits once, so that concurrent writers share one fsync. A transaction is answered, and its events are
//! published, only after that commit: what somebody saw survives a kill. Readers use redb's snapshots and wait for nobody.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use super::history::History;
use super::{Change, Entry, Event, EventKind, Guard, Page, Range, Revision, Store, StoreError, Watch, Write};

/// Key to revision (8 bytes, big-endian) and value.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
/// `revision`: the newest one.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
/// The page cache of the kernel holds the file anyway: a second copy in this process is wasted memory.
const CACHE_BYTES: usize = 4 << 20;
/// Transactions that may wait for the writer; more wait at their senders.
const QUEUE: usize = 256;
/// Transactions in one commit.
const GROUP: usize = 128;

/// The store on one redb file.
#[derive(Debug)]
pub struct Embedded {
    path: PathBuf,
    database: Arc<Database>,
    history: Arc<History>,
    writer: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Job {
    writes: Vec<Write>,
    answer: oneshot::Sender<Result<Revision, StoreError>>,
}

impl Embedded {
    /// Opens or creates the file and starts the writer's thread, which ends with the last handle.
    pub fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let failed = |error: &dyn std::fmt::Display| fail(path, error);
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|e| failed(&e))?;
        // The file's own name must survive a power cut, too.
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::File::open(directory).and_then(|opened| opened.sync_all()).map_err(|e| failed(&e))?;
        }
        let start = {
            let transaction = database.begin_write().map_err(|e| failed(&e))?;
            let start = {
                transaction.open_table(OBJECTS).map_err(|e| failed(&e))?;
                let mut meta = transaction.open_table(META).map_err(|e| failed(&e))?;
                let start = meta.get(REVISION).map_err(|e| failed(&e))?.map_or(1, |value| value.value());
                meta.insert(REVISION, start).map_err(|e| failed(&e))?;
                start
            };
            transaction.commit().map_err(|e| failed(&e))?;
            start
        };
        let database = Arc::new(database);
        let history = Arc::new(History::new(start));
        let (writer, jobs) = mpsc::channel(QUEUE);
        let owner =
            Writer { path: path.to_owned(), database: database.clone(), history: history.clone(), revision: start };
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || owner.run(jobs))
            .map_err(|e| failed(&e))?;
        Ok(Arc::new(Self { path: path.to_owned(), database, history, writer }))
    }

    fn read_list(path: &Path, database: &Database, history: &History, range: &Range) -> Result<Page, StoreError> {
        let failed = |error: &dyn std::fmt::Display| fail(path, error);
        let transaction = database.begin_read().map_err(|e| failed(&e))?;
        let revision = transaction
            .open_table(META)
            .map_err(|e| failed(&e))?
            .get(REVISION)
            .map_err(|e| failed(&e))?
            .map_or(1, |value| value.value());
        let objects = transaction.open_table(OBJECTS).map_err(|e| failed(&e))?;
        let at = range.at.unwrap_or(revision);
        if at > revision {
            return Err(StoreError::Future { wanted: at, current: revision });
        }
        let changed =
            if at < revision { history.changed_since(&range.prefix, at, revision)? } else { Default::default() };
        // Keys that exist no more but did then.
        let mut gone: Vec<_> = Vec::new();
        for (key, before) in &changed {
            if let Some((value, then)) = before
                && objects.get(&**key).map_err(|e| failed(&e))?.is_none()
            {
                gone.push(Entry { key: key.clone(), value: value.clone(), revision: *then });
            }
        }
        let start = match &range.after {
            Some(after) if after.as_str() >= range.prefix.as_str() => std::ops::Bound::Excluded(after.as_str()),
            _ => std::ops::Bound::Included(range.prefix.as_str()),
        };
        gone.retain(|entry| range.after.as_deref().is_none_or(|after| &*entry.key > after));
        gone.sort_by(|a, b| b.key.cmp(&a.key));
        let mut page = Page { entries: Vec::new(), revision: at, remaining: 0 };
        let full = |page: &Page| range.limit > 0 && page.entries.len() >= range.limit;
        for row in objects.range::<&str>((start, std::ops::Bound::Unbounded)).map_err(|e| failed(&e))? {
            let (key, stored) = row.map_err(|e| failed(&e))?;
            let key = key.value();
            if !key.starts_with(&range.prefix) {
                break;
            }
            while let Some(entry) = gone.pop_if(|entry| &*entry.key < key) {
                if full(&page) { page.remaining += 1 } else { page.entries.push(entry) }
            }
            let entry = match changed.get(key) {
                None if full(&page) => {
                    page.remaining += 1;
                    continue;
                }
                None => {
                    let (revision, value) = unpack(stored.value());
                    Entry { key: key.into(), value, revision }
                }
                Some(Some((value, revision))) => Entry { key: key.into(), value: value.clone(), revision: *revision },
                Some(None) => continue,
            };
            if full(&page) { page.remaining += 1 } else { page.entries.push(entry) }
        }
        while let Some(entry) = gone.pop() {
            if full(&page) { page.remaining += 1 } else { page.entries.push(entry) }
        }
        Ok(page)
    }
}

#[async_trait]
impl Store for Embedded {
    async fn revision(&self) -> Result<Revision, StoreError> {
        let failed = |error: &dyn std::fmt::Display| fail(&self.path, error);
        let transaction = self.database.begin_read().map_err(|e| failed(&e))?;
        let meta = transaction.open_table(META).map_err(|e| failed(&e))?;
        Ok(meta.get(REVISION).map_err(|e| failed(&e))?.map_or(1, |value| value.value()))
    }

    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), StoreError> {
        let failed = |error: &dyn std::fmt::Display| fail(&self.path, error);
        let transaction = self.database.begin_read().map_err(|e| failed(&e))?;
        let meta = transaction.open_table(META).map_err(|e| failed(&e))?;
        let now = meta.get(REVISION).map_err(|e| failed(&e))?.map_or(1, |value| value.value());
        let objects = transaction.open_table(OBJECTS).map_err(|e| failed(&e))?;
        let entry = objects.get(key).map_err(|e| failed(&e))?.map(|stored| {
            let (revision, value) = unpack(stored.value());
            Entry { key: key.into(), value, revision }
        });
        Ok((entry, now))
    }

    async fn list(&self, range: Range) -> Result<Page, StoreError> {
        let (path, database, history) = (self.path.clone(), self.database.clone(), self.history.clone());
        tokio::task::spawn_blocking(move || Self::read_list(&path, &database, &history, &range))
            .await
            .map_err(|_| StoreError::Closed)?
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Revision, StoreError> {
        let (answer, result) = oneshot::channel();
        self.writer.send(Job { writes, answer }).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    fn is_writable(&self) -> bool {
        // The thread holds the other end, and drops it however it ends.
        !self.writer.is_closed()
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(self.history.watch(prefix, from)?))
    }

    fn compact(&self, upto: Revision) {
        self.history.compact(upto);
    }

    fn published(&self) -> Revision {
        self.history.published()
    }
}

fn fail(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Failed { path: path.display().to_string(), message: error.to_string() }
}

fn pack(revision: Revision, value: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(8 + value.len());
    packed.extend_from_slice(&revision.to_be_bytes());
    packed.extend_from_slice(value);
    packed
}

fn unpack(stored: &[u8]) -> (Revision, Bytes) {
    match stored.split_first_chunk::<8>() {
        Some((revision, value)) => (Revision::from_be_bytes(*revision), Bytes::copy_from_slice(value)),
        // No row is ever written without its revision; a torn one cannot be, redb checks its pages.
        None => (0, Bytes::new()),
    }
}

/// The thread that writes.
struct Writer {
    path: PathBuf,
    database: Arc<Database>,
    history: Arc<History>,
    revision: Revision,
}

type Applied = (oneshot::Sender<Result<Revision, StoreError>>, Result<Revision, StoreError>);

impl Writer {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(job) = jobs.try_recv()
            {
                group.push(job);
            }
            self.write(group);
        }
    }

    fn write(&mut self, group: Vec<Job>) {
        let mut answers: Vec<Applied> = Vec::with_capacity(group.len());
        let mut events = Vec::new();
        match self.apply(group, &mut answers, &mut events) {
            Ok(revision) => {
                if revision != self.revision {
                    self.revision = revision;
                    self.history.publish(events, revision);
                }
                for (answer, result) in answers {
                    // A receiver that is gone has been cancelled; the write stands.
                    let _ = answer.send(result);
                }
            }
            Err(error) => {
                tracing::error!(%error, "could not commit");
                for (answer, _) in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    fn apply(
        &self,
        group: Vec<Job>,
        answers: &mut Vec<Applied>,
        events: &mut Vec<Arc<Event>>,
    ) -> Result<Revision, StoreError> {
        let failed = |error: &dyn std::fmt::Display| fail(&self.path, error);
        let mut jobs = group.into_iter();
        let mut revision = self.revision;
        let result = (|| {
            let transaction = self.database.begin_write().map_err(|e| failed(&e))?;
            {
                let mut objects = transaction.open_table(OBJECTS).map_err(|e| failed(&e))?;
                for job in jobs.by_ref() {
                    let outcome = apply_one(&mut objects, &job.writes, revision + 1);
                    let outcome = match outcome {
                        Ok(Ok(new)) => {
                            if !new.is_empty() {
                                revision += 1;
                            }
                            events.extend(new);
                            Ok(revision)
                        }
                        Ok(Err(conflict)) => Err(conflict),
                        Err(error) => {
                            answers.push((job.answer, Ok(0)));
                            return Err(failed(&error));
                        }
                    };
                    answers.push((job.answer, outcome));
                }
                if revision == self.revision {
                    return Ok(revision);
                }
                let mut meta = transaction.open_table(META).map_err(|e| failed(&e))?;
                meta.insert(REVISION, revision).map_err(|e| failed(&e))?;
            }
            transaction.commit().map_err(|e| failed(&e))?;
            Ok(revision)
        })();
        // Those that a failure left unread are told of it, too.
        answers.extend(jobs.map(|job| (job.answer, Ok(0))));
        result
    }
}

/// The outer error is the database's, the inner one a guard's.
fn apply_one(
    objects: &mut redb::Table<'_, &'static str, &'static [u8]>,
    writes: &[Write],
    revision: Revision,
) -> Result<Result<Vec<Arc<Event>>, StoreError>, redb::StorageError> {
    let mut found = Vec::with_capacity(writes.len());
    for write in writes {
        let before = objects.get(write.key.as_str())?.map(|stored| unpack(stored.value()));
        let holds = match (write.guard, &before) {
            (Guard::Absent, None) => true,
            (Guard::Unchanged(expected), Some((actual, _))) => expected == *actual,
            _ => false,
        };
        if !holds {
            let actual = before.map(|(revision, _)| revision);
            return Ok(Err(StoreError::Conflict { key: write.key.clone(), expected: write.guard, actual }));
        }
        found.push(before);
    }
    let mut events = Vec::with_capacity(writes.len());
    for (write, before) in writes.iter().zip(found) {
        let (kind, value) = match &write.change {
            Change::Put(value) => {
                objects.insert(write.key.as_str(), pack(revision, value).as_slice())?;
                (if before.is_some() { EventKind::Modified } else { EventKind::Created }, value.clone())
            }
            Change::Delete(last) => {
                objects.remove(write.key.as_str())?;
                (EventKind::Deleted, last.clone())
            }
        };
        events.push(Arc::new(Event {
            key: write.key.as_str().into(),
            revision,
            kind,
            value,
            before: before.map(|(revision, value)| (value, revision)),
            rendered: OnceLock::new(),
        }));
    }
    Ok(Ok(events))
}
