//! Following a file that is written, rotated and closed under the reader.

use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::timeout;

use super::*;

struct Container {
    dir: tempfile::TempDir,
    file: File,
    ended: Arc<AtomicBool>,
}

impl Container {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("0.log")).unwrap();
        Self { dir, file, ended: Arc::default() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("0.log")
    }

    fn writes(&mut self, text: &str) {
        writeln!(self.file, "2026-01-02T03:04:05.5Z stdout F {text}").unwrap();
    }

    async fn log(&self, options: LogOptions) -> LogStream {
        let ended = self.ended.clone();
        open_file(self.path(), options, move || ready(ended.load(Ordering::SeqCst))).await.unwrap()
    }

    async fn follow(&self) -> LogStream {
        self.log(LogOptions { follow: true, ..Default::default() }).await
    }

    fn ends(self) -> tempfile::TempDir {
        self.ended.store(true, Ordering::SeqCst);
        self.dir
    }
}

async fn expect(stream: &mut LogStream, expected: &str) {
    let mut given = String::new();
    while given.len() < expected.len() {
        // Shorter than the safety poll, so that inotify must work.
        let piece = timeout(Duration::from_millis(900), stream.next()).await.expect("in time");
        given.push_str(std::str::from_utf8(&piece.expect("not ended").unwrap()).unwrap());
    }
    assert_eq!(given, expected);
}

#[tokio::test]
async fn a_follower_survives_rotations_and_ends_with_the_container() {
    // A20.4
    let mut container = Container::start();
    container.writes("before");
    let mut log = container.follow().await;
    expect(&mut log, "before\n").await;
    container.writes("now");
    expect(&mut log, "now\n").await;
    for round in 0..3 {
        // As kubelet does: rename, the runtime still writes to the old file, then reopens.
        fs::rename(container.path(), container.dir.path().join(format!("0.log.{round}"))).unwrap();
        container.writes("late");
        tokio::time::sleep(Duration::from_millis(30)).await;
        container.writes("last of the old");
        container.file = File::create(container.path()).unwrap();
        container.writes("first of the new");
        expect(&mut log, "late\nlast of the old\nfirst of the new\n").await;
    }
    container.writes("end");
    let _dir = container.ends();
    expect(&mut log, "end\n").await;
    let end = timeout(Duration::from_millis(900), log.next()).await.expect("the closed file tells of the end");
    assert!(end.is_none());
}

#[tokio::test]
async fn a_closed_file_alone_is_no_end() {
    // A20.4
    let mut container = Container::start();
    let mut log = container.follow().await;
    container.writes("one");
    expect(&mut log, "one\n").await;
    container.file = File::options().append(true).open(container.path()).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    container.writes("two");
    let piece = timeout(Duration::from_secs(4), log.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(&piece[..], b"two\n");
}

#[tokio::test]
async fn a_slow_client_bounds_what_is_read() {
    let mut container = Container::start();
    for line in 0..100_000 {
        container.writes(&format!("{line:0100}"));
    }
    let mut log = container.log(LogOptions::default()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(log.0.len() <= QUEUE);
    let mut total = 0;
    while let Some(piece) = log.next().await {
        let piece = piece.unwrap();
        assert!(piece.len() < 1 << 20);
        total += piece.len();
    }
    assert_eq!(total, 101 * 100_000);
}

#[tokio::test]
async fn the_end_of_a_log_as_a_termination_message() {
    let mut container = Container::start();
    for line in 0..100 {
        container.writes(&format!("line {line}"));
    }
    assert_eq!(tail(container.path(), 2, 2048).await.unwrap(), b"line 98\nline 99\n");
    assert_eq!(tail(container.path(), 80, 10).await.unwrap(), b"8\nline 99\n");
    let missing = tail(container.dir.path().join("1.log"), 80, 2048).await.unwrap_err();
    assert!(missing.to_string().contains("1.log"), "{missing}");
}

#[tokio::test]
async fn followers_share_one_inotify_instance() {
    let instances = || {
        let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
        files.filter(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:inotify")).count()
    };
    let mut containers: Vec<Container> = (0..8).map(|_| Container::start()).collect();
    let mut logs = Vec::new();
    for container in containers.iter().cycle().take(200) {
        logs.push(container.follow().await);
    }
    // Other tests may run in the same process.
    assert!(instances() < 10, "{} instances", instances());
    for container in &mut containers {
        container.writes("to all");
    }
    for log in &mut logs {
        expect(log, "to all\n").await;
    }
    // One who goes takes nothing from the others.
    logs.truncate(100);
    for container in &mut containers {
        container.writes("to the rest");
    }
    for log in &mut logs {
        expect(log, "to the rest\n").await;
    }
}
