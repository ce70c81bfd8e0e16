//! Answers, in kubelet's own words: plain text where it refuses, for the API server passes them on as the message of a Status.

use std::io;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use tokio::time::sleep;

use crate::runtime::logs::LogStream;

/// An answer may take so long (A18.20).
const LONGEST: Duration = Duration::from_secs(4 * 3600);

/// The body of every answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// An answer.
pub(super) type Reply = Response<Body>;

/// Plain text.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    with_type(
        status,
        "text/plain; charset=utf-8",
        Full::new(text.into()).map_err(|never| match never {}).boxed_unsync(),
    )
}

/// A JSON document.
pub(super) fn json(document: Vec<u8>) -> Reply {
    let body = Full::new(Bytes::from(document)).map_err(|never| match never {}).boxed_unsync();
    with_type(StatusCode::OK, "application/json", body)
}

/// A YAML document.
pub(super) fn yaml(document: String) -> Reply {
    let body = Full::new(Bytes::from(document)).map_err(|never| match never {}).boxed_unsync();
    with_type(StatusCode::OK, "application/yaml", body)
}

/// A page for people.
pub(super) fn html(page: String) -> Reply {
    let body = Full::new(Bytes::from(page)).map_err(|never| match never {}).boxed_unsync();
    with_type(StatusCode::OK, "text/html; charset=utf-8", body)
}

/// A file, whatever is in it.
pub(super) fn file(content: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Reply {
    let body = StreamBody::new(limited(content, LONGEST).map_ok(Frame::data)).boxed_unsync();
    with_type(StatusCode::OK, "text/plain; charset=utf-8", body)
}

/// Content that breaks off after a while, so that the client sees that it is not all.
fn limited(
    content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    limit: Duration,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (mut content, mut end) = (content.boxed(), Box::pin(sleep(limit)));
    stream::poll_fn(move |context| match end.as_mut().poll(context) {
        Poll::Ready(()) => Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into()))),
        Poll::Pending => content.poll_next_unpin(context),
    })
}

/// Metrics in the text format of Prometheus.
pub(super) fn metrics(page: String) -> Reply {
    let body = Full::new(Bytes::from(page)).map_err(|never| match never {}).boxed_unsync();
    with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
}

/// A log, as it comes.
pub(super) fn log(log: LogStream) -> Reply {
    let body = StreamBody::new(limited(log, LONGEST).map_ok(Frame::data)).boxed_unsync();
    with_type(StatusCode::OK, "text/plain", body)
}

/// 404 for what is not served at all.
pub(super) fn no_such_page() -> Reply {
    text(StatusCode::NOT_FOUND, "404: Page Not Found")
}

/// 405 for everything but these.
pub(super) fn method_not_allowed(allowed: &[Method]) -> Reply {
    let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    let names: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
        reply.headers_mut().insert(ALLOW, names);
    }
    reply
}

/// The body of an answer after which HTTP ends.
pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn with_type(status: StatusCode, content_type: &'static str, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // A browser that got here with a certificate shall not guess what a container's output is.
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_without_end_breaks_off() {
        // A18.20: four hours.
        assert_eq!(LONGEST, Duration::from_secs(14_400));
        let endless = stream::iter([Ok(Bytes::from_static(b"a"))]).chain(stream::pending());
        let seen: Vec<_> = limited(endless, Duration::from_millis(50)).take(2).collect().await;
        assert_eq!(seen[0].as_ref().unwrap(), "a");
        assert_eq!(seen[1].as_ref().unwrap_err().kind(), io::ErrorKind::TimedOut);
        let whole: Vec<_> = limited(stream::iter([Ok(Bytes::new())]), LONGEST).collect().await;
        assert_eq!(whole.len(), 1);
    }
}
