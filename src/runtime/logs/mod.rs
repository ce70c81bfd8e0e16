//! What a container has written, as a stream of bytes of bounded memory.
//!
//! The file is read where it is wanted to begin, in large pieces, by the blocking threads; a follower holds no thread while it waits.
//! It waits for inotify, and looks once a second all the same: files on some file systems tell nothing. While nothing is written such a
//! look is three system calls.

mod changes;
mod line;
mod reader;
mod rotate;

use std::future::{Future, ready};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use self::changes::Changes;
use self::reader::{Progress, Reader};
pub use self::rotate::{RotationConfig, rotate_logs};
use super::client::Runtime;
use super::cri::ContainerState;
use super::error::RuntimeError;

/// Pieces on their way to a slow client; with the one being read, all the memory that a stream takes.
const QUEUE: usize = 2;

/// The safety poll (A20.4).
const POLL: Duration = Duration::from_secs(1);

/// Polls between questions whether the container still runs, where nothing else tells.
const POLLS_PER_QUESTION: u32 = 5;

/// And where the closing of the file tells, unless a process that outlives its container holds it open.
const POLLS_PER_QUESTION_TOLD: u32 = 20;

/// When the runtime has closed the file, its status may show the end a little later: questions are asked after this time, and after
/// twice as much each time, 2.5 s in all. Or it was closed because of a rotation, and nothing has ended.
const CLOSED_STEP: Duration = Duration::from_millis(10);
const CLOSED_QUESTIONS: u32 = 8;

/// What is wanted of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogOptions {
    /// Go on until the container has stopped.
    pub follow: bool,
    /// Begin this many lines before the end of the file.
    pub tail_lines: Option<u64>,
    /// Only what was written then or later.
    pub since: Option<Timestamp>,
    /// Put the time before each line.
    pub timestamps: bool,
    /// End after exactly this many bytes.
    pub limit_bytes: Option<u64>,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The runtime does not know the container, or is away.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The file cannot be opened: it went with its pod, or was not made yet.
    #[error("failed to open log file {path:?}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The bytes of a log. Dropping it ends the reading.
#[derive(Debug)]
pub struct LogStream(mpsc::Receiver<io::Result<Bytes>>);

impl Stream for LogStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// Opens the log of one container: of that very instance, whatever its successor writes (A20.4).
pub async fn open(runtime: &Runtime, container_id: &str, options: LogOptions) -> Result<LogStream, LogError> {
    let status = runtime.container_status(container_id, false).await?.status.unwrap_or_default();
    let (runtime, id) = (runtime.clone(), container_id.to_owned());
    let has_ended = move || {
        let (runtime, id) = (runtime.clone(), id.clone());
        async move {
            match runtime.container_status(&id, false).await {
                Ok(answer) => answer.status.is_none_or(|status| status.state() != ContainerState::ContainerRunning),
                // Nothing is known while the runtime is away, and the container goes on without it.
                Err(error) => error.is_not_found(),
            }
        }
    };
    open_file(status.log_path.into(), options, has_ended).await
}

/// The last lines of a file that nobody writes any more, cut at the front to `bytes`. For termination messages (A4.8).
pub async fn tail(path: PathBuf, lines: u64, bytes: usize) -> Result<Vec<u8>, LogError> {
    let options = LogOptions { tail_lines: Some(lines), ..Default::default() };
    let mut stream = open_file(path, options, || ready(true)).await?;
    let mut end = Vec::new();
    while let Some(Ok(piece)) = stream.next().await {
        end.extend_from_slice(&piece);
        end.drain(..end.len().saturating_sub(bytes));
    }
    Ok(end)
}

/// Reads a log file; `has_ended` tells whether its container has stopped.
async fn open_file<A>(
    path: PathBuf,
    options: LogOptions,
    has_ended: impl Fn() -> A + Send + Sync + 'static,
) -> Result<LogStream, LogError>
where
    A: Future<Output = bool> + Send + 'static,
{
    // Before the first look at the file, so that nothing is written unnoticed in between.
    let changes = options.follow.then(|| Changes::of(&path)).flatten();
    let at = path.clone();
    let opened = spawn_blocking(move || Reader::open(&at, options)).await;
    let reader = opened.unwrap_or_else(|error| Err(io::Error::other(error)));
    let reader = reader.map_err(|source| LogError::Open { path: path.clone(), source })?;
    let (out, stream) = mpsc::channel(QUEUE);
    let follower = Follower { path, follow: options.follow, out };
    tokio::spawn(async move {
        if let Err(Stop::Failed(error)) = follower.run(reader, changes, has_ended).await {
            // Nobody listens where this fails.
            let _ = follower.out.send(Err(error)).await;
        }
    });
    Ok(LogStream(stream))
}

/// Why a stream ends before its file does.
enum Stop {
    ClientGone,
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

struct Follower {
    path: PathBuf,
    follow: bool,
    out: mpsc::Sender<io::Result<Bytes>>,
}

impl Follower {
    async fn run<A>(
        &self,
        mut reader: Reader,
        mut changes: Option<Changes>,
        has_ended: impl Fn() -> A,
    ) -> Result<(), Stop>
    where
        A: Future<Output = bool>,
    {
        let mut ended = !self.follow;
        let mut pace = Pace::Polls(0);
        loop {
            if ended || !reader.is_at_end()? {
                let finished;
                (reader, finished) = Box::pin(self.read_all(reader, ended)).await?;
                if finished {
                    return Ok(());
                }
            }
            if reader.is_replaced(&self.path)? {
                // The runtime writes to the new file only, from now on: take the last lines of the old one.
                (reader, _) = self.read_all(reader, false).await?;
                reader.reopen(&self.path)?;
                continue;
            }
            if ended {
                return Ok(());
            }
            tokio::select! {
                () = self.out.closed() => return Err(Stop::ClientGone),
                closed = next_change(&mut changes) => pace = if closed { Pace::Closed(0) } else { pace },
                () = sleep(pace.interval()) => {
                    let asks;
                    (pace, asks) = pace.next(changes.is_some());
                    // A question to the runtime takes more memory than all the rest, and is rare.
                    ended = asks && Box::pin(has_ended()).await;
                }
            }
        }
    }

    /// Gives all that the file has now, and at its very end also a line that has no newline. Whether a limit is reached.
    async fn read_all(&self, mut reader: Reader, very_end: bool) -> Result<(Reader, bool), Stop> {
        loop {
            let read = spawn_blocking(move || {
                let mut out = Vec::new();
                let progress = reader.step(&mut out)?;
                if very_end && progress == Progress::AtEnd {
                    reader.finish(&mut out);
                }
                io::Result::Ok((reader, out, progress))
            });
            let (back, out, progress) = read.await.map_err(io::Error::other)??;
            reader = back;
            if !out.is_empty() {
                self.out.send(Ok(out.into())).await.map_err(|_| Stop::ClientGone)?;
            }
            if progress != Progress::More {
                return Ok((reader, progress == Progress::Finished));
            }
        }
    }
}

/// How often a follower looks by itself, and how often it asks whether the container has ended.
#[derive(Clone, Copy)]
enum Pace {
    /// So many safety polls since the last question.
    Polls(u32),
    /// So many questions since a writer closed the file.
    Closed(u32),
}

impl Pace {
    fn interval(self) -> Duration {
        match self {
            Self::Polls(_) => POLL,
            Self::Closed(questions) => CLOSED_STEP * 2_u32.pow(questions),
        }
    }

    /// The pace after the interval, and whether to ask now; `told`: a writer's closing of the file would be heard.
    fn next(self, told: bool) -> (Self, bool) {
        let polls_per_question = if told { POLLS_PER_QUESTION_TOLD } else { POLLS_PER_QUESTION };
        match self {
            Self::Polls(polls) if polls + 1 < polls_per_question => (Self::Polls(polls + 1), false),
            Self::Closed(questions) if questions + 1 < CLOSED_QUESTIONS => (Self::Closed(questions + 1), true),
            Self::Polls(_) | Self::Closed(_) => (Self::Polls(0), true),
        }
    }
}

/// Waits for a change: whether a writer has closed a file. Never ends where nothing tells of changes.
async fn next_change(changes: &mut Option<Changes>) -> bool {
    let Some(heard) = changes else { return std::future::pending().await };
    match heard.next().await {
        Ok(closed) => closed,
        Err(_) => {
            *changes = None;
            false
        }
    }
}

#[cfg(test)]
mod tests;
