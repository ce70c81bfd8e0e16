//! The embedded store, on a real file: guards, snapshots, watches, and what a kill leaves.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stoker_control_plane::storage::embedded::Embedded;
use stoker_control_plane::storage::{Change, EventKind, Guard, Range, Store, StoreError, Write};

fn put(key: &str, guard: Guard, value: &str) -> Vec<Write> {
    vec![Write { key: key.to_owned(), guard, change: Change::Put(Bytes::copy_from_slice(value.as_bytes())) }]
}

fn delete(key: &str, guard: Guard) -> Vec<Write> {
    vec![Write { key: key.to_owned(), guard, change: Change::Delete(Bytes::new()) }]
}

fn range(prefix: &str) -> Range {
    Range { prefix: prefix.to_owned(), ..Range::default() }
}

async fn keys(store: &dyn Store, range: Range) -> Vec<String> {
    let page = store.list(range).await.unwrap();
    page.entries.iter().map(|entry| entry.key.to_string()).collect()
}

fn open(dir: &Path) -> Arc<Embedded> {
    Embedded::open(&dir.join("objects.redb")).unwrap()
}

#[tokio::test]
async fn guards_hold_and_revisions_grow() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let first = store.commit(put("core/pods/n/a", Guard::Absent, "1")).await.unwrap();
    let error = store.commit(put("core/pods/n/a", Guard::Absent, "2")).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { actual: Some(at), .. } if at == first));
    let second = store.commit(put("core/pods/n/a", Guard::Unchanged(first), "2")).await.unwrap();
    assert!(second > first);
    assert!(store.commit(put("core/pods/n/a", Guard::Unchanged(first), "3")).await.is_err());
    // All or nothing: the second write's guard fails, so the first one did not happen.
    let mut both = put("core/pods/n/b", Guard::Absent, "1");
    both.extend(put("core/pods/n/a", Guard::Absent, "1"));
    assert!(store.commit(both).await.is_err());
    assert_eq!(keys(store.as_ref(), range("core/pods/")).await, ["core/pods/n/a"]);
    let (entry, now) = store.get("core/pods/n/a").await.unwrap();
    let entry = entry.unwrap();
    assert_eq!((entry.value.as_ref(), entry.revision, now), (b"2".as_slice(), second, second));
}

#[tokio::test]
async fn a_list_can_go_on_where_it_was() {
    // C3.3
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut revision = 0;
    for name in ["a", "b", "c", "d"] {
        revision = store.commit(put(&format!("core/pods/n/{name}"), Guard::Absent, name)).await.unwrap();
    }
    let page = store.list(Range { limit: 2, ..range("core/pods/") }).await.unwrap();
    assert_eq!((page.entries.len(), page.remaining, page.revision), (2, 2, revision));
    let (c, _) = store.get("core/pods/n/c").await.unwrap();
    store.commit(delete("core/pods/n/c", Guard::Unchanged(c.unwrap().revision))).await.unwrap();
    store.commit(put("core/pods/n/e", Guard::Absent, "e")).await.unwrap();
    let rest = Range { after: Some("core/pods/n/b".to_owned()), at: Some(revision), ..range("core/pods/") };
    assert_eq!(keys(store.as_ref(), rest.clone()).await, ["core/pods/n/c", "core/pods/n/d"]);
    assert_eq!(keys(store.as_ref(), range("core/pods/")).await.len(), 4);
    store.compact(store.published());
    assert!(matches!(store.list(rest).await, Err(StoreError::TooOld { .. })));
}

#[tokio::test]
async fn a_watch_sees_everything_once_and_in_order() {
    // C3.4
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let start = store.commit(put("core/pods/n/a", Guard::Absent, "1")).await.unwrap();
    let mut watch = store.watch("core/pods/", start).unwrap();
    let second = store.commit(put("core/pods/n/a", Guard::Unchanged(start), "2")).await.unwrap();
    store.commit(put("core/services/n/s", Guard::Absent, "s")).await.unwrap();
    store.commit(delete("core/pods/n/a", Guard::Unchanged(second))).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(watch.next().await.unwrap().iter().map(|event| (event.kind, event.before.is_some())));
    }
    assert_eq!(seen, [(EventKind::Modified, true), (EventKind::Deleted, true)]);
    assert_eq!(watch.progress(), store.published());
    let nothing = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(nothing.is_err(), "another kind's change is not ours");
    store.compact(store.published());
    assert!(matches!(store.watch("core/pods/", start), Err(StoreError::TooOld { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let writers: Vec<_> = (0..200)
        .map(|at| {
            let store = store.clone();
            tokio::spawn(async move { store.commit(put(&format!("core/pods/n/{at:03}"), Guard::Absent, "x")).await })
        })
        .collect();
    let mut revisions = Vec::new();
    for writer in writers {
        revisions.push(writer.await.unwrap().unwrap());
    }
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 200, "every transaction has its own revision");
    assert_eq!(keys(store.as_ref(), range("core/pods/")).await.len(), 200);
}

/// Not a test: the process that the next one kills.
#[tokio::test]
#[ignore = "runs only as the victim of a_kill_loses_nothing_that_was_answered"]
async fn victim() {
    use std::io::Write as _;
    let store = open(Path::new(&std::env::var("STOKER_VICTIM_DIR").unwrap()));
    for at in 0.. {
        store.commit(put(&format!("core/pods/n/{at:06}"), Guard::Absent, "x")).await.unwrap();
        println!("done {at}");
        std::io::stdout().flush().unwrap();
    }
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_answered() {
    use std::io::{BufRead as _, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .env("STOKER_VICTIM_DIR", dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let started = stoker_control_plane::clock::instant();
    let mut answered = None;
    while started.elapsed() < Duration::from_millis(700) || answered.is_none() {
        let line = lines.next().unwrap().unwrap();
        answered = line.rsplit_once("done ").and_then(|(_, at)| at.parse::<usize>().ok()).or(answered);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for line in lines.map_while(Result::ok) {
        answered = line.rsplit_once("done ").and_then(|(_, at)| at.parse::<usize>().ok()).or(answered);
    }
    let store = open(dir.path());
    let found = keys(store.as_ref(), range("core/pods/")).await;
    assert!(found.len() > answered.unwrap(), "{} stored, {answered:?} answered last", found.len());
    // The first key has the smallest revision, the last the newest one.
    let revision = store.revision().await.unwrap();
    let (last, _) = store.get(found.last().unwrap()).await.unwrap();
    assert_eq!(last.unwrap().revision, revision);
    let next = store.commit(put("core/pods/n/next", Guard::Absent, "x")).await.unwrap();
    assert_eq!(next, revision + 1);
}
