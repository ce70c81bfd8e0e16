//! Tells when the machine as a whole ran out of memory: the kernel's log says so (A12.11).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use stoker_model::handle::{EventSink, EventSubject, EventType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const LOG: &str = "/dev/kmsg";
/// The kernel's longest record.
const LONGEST: usize = 8192;

/// Who was killed.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Victim {
    process: String,
    pid: u32,
}

/// Reads one record: `6,1234,5678,-;text`. Only the kernel's own count, and only those of the machine's memory: a container that
/// reaches its limit is told of by its status.
fn victim(record: &str) -> Option<Victim> {
    let (head, text) = record.split_once(';')?;
    let level: u32 = head.split(',').next()?.parse().ok()?;
    let text = text.lines().next()?.strip_prefix("oom-kill:constraint=")?;
    // What programs write has another facility.
    if level > 7 || !text.split(',').any(|field| field == "global_oom") {
        return None;
    }
    let (_, rest) = text.split_once(",task=")?;
    // The name may hold a comma, the numbers after it do not.
    let (process, rest) = rest.rsplit_once(",pid=")?;
    let pid = rest.split(',').next()?.parse().ok()?;
    Some(Victim { process: process.to_owned(), pid })
}

/// Publishes events for ever.
pub async fn watch_oom(events: Arc<dyn EventSink>) {
    match follow(&*events).await {
        Ok(never) => match never {},
        Err(error) => {
            tracing::warn!(%error, log = LOG, "cannot read the kernel's log: no events when the machine runs out of memory");
            std::future::pending().await
        }
    }
}

async fn follow(events: &dyn EventSink) -> io::Result<std::convert::Infallible> {
    let mut log = open(LOG)?;
    // What happened before is not news.
    log.seek(SeekFrom::End(0))?;
    tell_of(log, events).await
}

fn open(path: &str) -> io::Result<File> {
    File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// The log gives one record at a time.
async fn tell_of(log: File, events: &dyn EventSink) -> io::Result<std::convert::Infallible> {
    #[expect(deprecated, reason = "its successor is unsafe, and a file keeps the one descriptor that it has")]
    let log = AsyncFd::with_interest(log, Interest::READABLE)?;
    let mut buffer = vec![0; LONGEST];
    loop {
        let mut ready = log.readable().await?;
        let read = match ready.try_io(|log| log.get_ref().read(&mut buffer)) {
            Err(_would_block) => continue,
            // Records were overwritten before they were read: the next one is there.
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => continue,
            Ok(read) => read?,
        };
        if let Some(Victim { process, pid }) = victim(&String::from_utf8_lossy(&buffer[..read])) {
            let text = format!("System OOM encountered, victim process: {process}, pid: {pid}");
            events.publish(EventSubject::Node, EventType::Warning, "SystemOOM", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<String>>);

    impl EventSink for Told {
        fn publish(&self, subject: EventSubject, kind: EventType, reason: &str, message: String) {
            self.0.lock().unwrap().push(format!("{subject:?} {kind:?} {reason}: {message}"));
        }
    }

    #[tokio::test]
    async fn whoever_is_killed_is_told_of_as_an_event_of_the_node() {
        // A12.11, A16.10, A21.2
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsg");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let log = open(path.to_str().unwrap()).unwrap();
        let mut kernel = File::options().write(true).open(&path).unwrap();
        let told = Arc::new(Told::default());
        let follows = tokio::spawn({
            let told = told.clone();
            async move { tell_of(log, &*told).await.map(drop) }
        });
        for record in [
            "6,1,2,-;something else\n".to_owned(),
            "6,1,2,-;oom-kill:constraint=CONSTRAINT_NONE,cpuset=/,mems_allowed=0,global_oom,task_memcg=/a,task=web,pid=42,uid=0\n"
                .to_owned(),
        ] {
            kernel.write_all(record.as_bytes()).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        for _ in 0..100 {
            if !told.0.lock().unwrap().is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let expected = "Node Warning SystemOOM: System OOM encountered, victim process: web, pid: 42";
        assert_eq!(*told.0.lock().unwrap(), [expected]);
        follows.abort();
    }

    #[test]
    fn only_the_machines_own_memory_counts() {
        // A12.11
        let global = "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/a,task=web,pid=42,uid=0";
        let limit = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=web,pid=42,uid=0";
        let found = Some(Victim { process: "web".into(), pid: 42 });
        for (record, expected) in [
            (format!("6,1,2,-;{global}\n SUBSYSTEM=x"), found.clone()),
            (format!("4,1,2,-,caller=T1;{global}\n"), found),
            (format!("6,1,2,-;{limit}\n"), None),
            (format!("12,1,2,-;{global}\n"), None),
            ("6,1,2,-;Out of memory: Killed process 42 (web)".to_owned(), None),
            (global.to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(victim(&record), expected, "{record}");
        }
        let odd = global.replace("task=web", "task=a,pid=1,b");
        assert_eq!(victim(&format!("6,1,2,-;{odd}")), Some(Victim { process: "a,pid=1,b".into(), pid: 42 }));
    }
}
