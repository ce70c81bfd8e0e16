//! A watch as a response body: one line per event, bookmarks, the end (C3.4, C3.5).

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::{HeaderValue, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::respond::Answer;
use super::watching::{Message, Running};
use crate::resources::ResourceInfo;
use crate::resources::status::StatusError;

/// Between bookmarks.
const BOOKMARK: Duration = Duration::from_secs(60);
/// The last bookmark comes so long before the end.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// Events that are there at once go out in one write, up to this size.
const WRITE_BYTES: usize = 64 << 10;

/// Changes the object of an event for this watcher: a Table, only metadata.
pub(super) type Transform = Box<dyn FnMut(&Value) -> Vec<u8> + Send>;

struct State {
    running: Running,
    info: &'static ResourceInfo,
    transform: Option<Transform>,
    bookmarks: bool,
    next_bookmark: Instant,
    last_bookmark_sent: bool,
    end: Instant,
    stop: CancellationToken,
    over: bool,
}

pub(super) struct WatchOptions {
    pub(super) transform: Option<Transform>,
    pub(super) bookmarks: bool,
    pub(super) timeout: Duration,
    pub(super) stop: CancellationToken,
}

pub(super) fn answer(info: &'static ResourceInfo, running: Running, options: WatchOptions) -> Answer {
    let now = Instant::now();
    let state = State {
        running,
        info,
        transform: options.transform,
        bookmarks: options.bookmarks,
        next_bookmark: now + BOOKMARK,
        last_bookmark_sent: false,
        end: now + options.timeout,
        stop: options.stop,
        over: false,
    };
    let frames = stream::unfold(state, |mut state| async move {
        let bytes = state.next_frame().await?;
        Some((Ok::<_, std::io::Error>(Frame::data(bytes)), state))
    });
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = answer.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers.insert("cache-control", HeaderValue::from_static("no-cache, private"));
    answer
}

impl State {
    async fn next_frame(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        loop {
            let last_bookmark = self.end.checked_sub(LAST_BOOKMARK).unwrap_or(self.end);
            let bookmark_at = match (self.bookmarks, self.last_bookmark_sent) {
                (false, _) | (true, true) => self.end,
                (true, false) => self.next_bookmark.min(last_bookmark),
            };
            let stop = self.stop.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                message = self.running.next() => return Some(self.collect(message)),
                () = tokio::time::sleep_until(bookmark_at) => {
                    let now = Instant::now();
                    if now >= self.end {
                        return None;
                    }
                    self.next_bookmark = now + BOOKMARK;
                    self.last_bookmark_sent = now >= last_bookmark;
                    if let Some(revision) = self.running.progress() {
                        return Some(self.bookmark(revision, false));
                    }
                }
            }
        }
    }

    /// This message and all that are there already.
    fn collect(&mut self, first: Result<Message, StatusError>) -> Bytes {
        let mut out = BytesMut::new();
        match first {
            Ok(message) => self.write(&mut out, &message),
            Err(error) => {
                self.over = true;
                line(&mut out, "ERROR", error.to_value().to_string().as_bytes());
            }
        }
        while out.len() < WRITE_BYTES
            && !self.over
            && let Some(message) = self.running.ready()
        {
            self.write(&mut out, &message);
        }
        out.freeze()
    }

    fn write(&mut self, out: &mut BytesMut, message: &Message) {
        match message {
            Message::Object(seen, text) => match &mut self.transform {
                None => line(out, seen.name(), text),
                Some(transform) => {
                    let object: Value = serde_json::from_slice(text).unwrap_or_default();
                    line(out, seen.name(), &transform(&object));
                }
            },
            Message::InitialEnd(revision) => {
                let text = self.bookmark(*revision, true);
                out.put_slice(&text);
            }
        }
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool) -> Bytes {
        let mut object = json!({
            "kind": self.info.kind, "apiVersion": self.info.api_version(),
            "metadata": {"resourceVersion": revision.to_string()},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let mut out = BytesMut::new();
        let text = match &mut self.transform {
            Some(transform) => transform(&object),
            None => object.to_string().into_bytes(),
        };
        line(&mut out, "BOOKMARK", &text);
        out.freeze()
    }
}

fn line(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.reserve(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}
