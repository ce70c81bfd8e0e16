//! Passes a request on and its answer back, plain or upgraded.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use stoker_model::streams::websocket::{Bridge, accepted};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::super::respond::{self, Answer};
use super::super::serve::{Asked, Server};
use super::location::{Backend, Scheme};
use super::rewrite;
use crate::resources::status::StatusError;

/// When one side has ended, the other has so long to say its last words.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Taken in one go from either side.
const COPY_BYTES: usize = 32 << 10;
/// Of a refusal's text.
const REFUSAL_BYTES: usize = 64 << 10;
/// Of a page whose links are written anew; larger ones stay as they are.
const PAGE_BYTES: usize = 8 << 20;

/// Headers between two neighbours, which go no further; and the client's credentials, which are for us alone.
const NEIGHBOURS: [HeaderName; 6] = [CONNECTION, UPGRADE, TE, TRAILER, TRANSFER_ENCODING, AUTHORIZATION];

pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    headers.contains_key(UPGRADE)
        && lists.flat_map(|list| list.split(',')).any(|one| one.trim().eq_ignore_ascii_case("upgrade"))
}

/// Answers with an upgrade as the backend does, and copies bytes from then on.
pub(super) async fn upgrade(
    server: &Server,
    backend: &Backend,
    path: &str,
    asked: Asked,
) -> Result<Answer, StatusError> {
    let mut headers = asked.headers;
    headers.remove(AUTHORIZATION);
    let request = request(asked.method, backend, path, headers, Empty::<Bytes>::new())?;
    let mut answer = send(server, backend, request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(answer).await);
    }
    let there = hyper::upgrade::on(&mut answer);
    let (here, stop) = (asked.upgrade, server.stop.clone());
    tokio::spawn(async move {
        match tokio::try_join!(here, there) {
            Ok((here, there)) => join(TokioIo::new(here), TokioIo::new(there), stop).await,
            Err(error) => tracing::debug!(%error, "an upgrade was not finished"),
        }
    });
    Ok(answer.map(|_| respond::full(Bytes::new())))
}

/// Answers with a websocket, whose messages become streams of SPDY there.
pub(super) async fn translate(
    server: &Server,
    backend: &Backend,
    path: &str,
    asked: Asked,
    bridge: Bridge,
) -> Result<Answer, StatusError> {
    let switched = accepted(&asked.headers, bridge.websocket_protocol());
    let switched = switched.ok_or_else(|| StatusError::bad_request("Sec-WebSocket-Key is missing"))?;
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert("x-stream-protocol-version", HeaderValue::from_static(bridge.stream_protocol()));
    let request = request(Method::POST, backend, path, headers, Empty::<Bytes>::new())?;
    let mut answer = send(server, backend, request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(answer).await);
    }
    let there = hyper::upgrade::on(&mut answer);
    let (here, stop) = (asked.upgrade, server.stop.clone());
    tokio::spawn(async move {
        let work = async {
            match tokio::try_join!(here, there) {
                Ok((here, there)) => {
                    if let Err(error) = bridge.run(TokioIo::new(here), TokioIo::new(there)).await {
                        tracing::debug!(%error, "a websocket ended early");
                    }
                }
                Err(error) => tracing::debug!(%error, "an upgrade was not finished"),
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    });
    let mut answer = Response::new(respond::full(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = switched;
    Ok(answer)
}

async fn join<A, B>(here: A, there: B, stop: CancellationToken)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_here, mut to_here) = tokio::io::split(here);
    let (mut from_there, mut to_there) = tokio::io::split(there);
    let up = copy(&mut from_here, &mut to_there, true);
    let down = copy(&mut from_there, &mut to_here, false);
    let both = async {
        tokio::pin!(up, down);
        let first = tokio::select! {
            result = up.as_mut() => result.map(|()| true),
            result = down.as_mut() => result.map(|()| false),
        }?;
        let rest = async { if first { down.await } else { up.await } };
        tokio::time::timeout(LAST_WORDS, rest).await.unwrap_or(Ok(()))
    };
    tokio::select! {
        () = stop.cancelled() => {}
        result = both => if let Err(error) = result {
            tracing::debug!(%error, "a stream ended early");
        },
    }
}

/// Copies to the end, and passes the end on. With `drain` what cannot be written is taken all the same: a connection that is closed
/// with bytes unread is reset, and then the one who sent them may lose what he had not read yet.
async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), drain: bool) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut is_open = true;
    loop {
        // Who closes with bytes unread resets his connection: that is an end like another, and what came before it gets to its reader.
        // Streams within the connection tell by themselves whether they were whole.
        let came = from.read(&mut buffer).await.unwrap_or(0);
        if came == 0 {
            return if is_open { to.shutdown().await } else { Ok(()) };
        }
        if is_open {
            let written = async {
                to.write_all(&buffer[..came]).await?;
                to.flush().await
            };
            match written.await {
                Err(_) if drain => is_open = false,
                result => result?,
            }
        }
    }
}

/// Passes an ordinary request on. `before` is what of the path stands before the backend's own: links get it.
pub(super) async fn plain(
    server: &Server,
    backend: &Backend,
    path: &str,
    before: &str,
    asked: Asked,
) -> Result<Answer, StatusError> {
    let mut headers = asked.headers;
    for name in NEIGHBOURS {
        headers.remove(name);
    }
    let rewrites = backend.scheme != Scheme::Node;
    if rewrites {
        // Links can be written anew in plain pages only.
        headers.remove(ACCEPT_ENCODING);
        if let Some(host) = headers.get(HOST).cloned() {
            headers.insert("x-forwarded-host", host);
        }
        headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        if let Ok(uri) = HeaderValue::from_str(&asked.path) {
            headers.insert("x-forwarded-uri", uri);
        }
    }
    let request = request(asked.method, backend, path, headers, asked.body)?;
    let (mut parts, body) = send(server, backend, request).await?.into_parts();
    for name in NEIGHBOURS {
        parts.headers.remove(name);
    }
    if !rewrites {
        return Ok(Response::from_parts(parts, body.map_err(io::Error::other).boxed_unsync()));
    }
    if let Some(to) = parts.headers.get(LOCATION).and_then(|value| value.to_str().ok()) {
        let host = authority(backend);
        if let Some(value) = rewrite::link(to, before, &host).and_then(|link| HeaderValue::from_str(&link).ok()) {
            parts.headers.insert(LOCATION, value);
        }
    }
    let is_page = parts.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    let is_short = hyper::body::Body::size_hint(&body).upper().is_some_and(|size| size <= PAGE_BYTES as u64);
    if !is_page || !is_short {
        return Ok(Response::from_parts(parts, body.map_err(io::Error::other).boxed_unsync()));
    }
    let page = body.collect().await.map_err(|error| StatusError::unavailable(error.to_string()))?.to_bytes();
    let page = match std::str::from_utf8(&page) {
        Ok(text) => rewrite::page(text, before, &authority(backend)).into(),
        Err(_) => page,
    };
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(page.len()));
    Ok(Response::from_parts(parts, respond::full(page)))
}

/// 301 to the same path with a slash at its end.
pub(super) fn redirect(to: &str) -> Answer {
    let mut answer = respond::bytes(301, "text/plain; charset=utf-8", Bytes::new(), false);
    if let Ok(to) = HeaderValue::from_str(to) {
        answer.headers_mut().insert(LOCATION, to);
    }
    answer
}

fn authority(backend: &Backend) -> String {
    std::net::SocketAddr::new(backend.address, backend.port).to_string()
}

fn request<B>(
    method: Method,
    backend: &Backend,
    path: &str,
    mut headers: HeaderMap,
    body: B,
) -> Result<Request<B>, StatusError> {
    if let Ok(host) = HeaderValue::from_str(&authority(backend)) {
        headers.insert(HOST, host);
    }
    let request = Request::builder().method(method).uri(path).body(body);
    let mut request = request.map_err(|error| StatusError::bad_request(error.to_string()))?;
    *request.headers_mut() = headers;
    Ok(request)
}

async fn send<B>(server: &Server, backend: &Backend, request: Request<B>) -> Result<Response<Incoming>, StatusError>
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (nodes, address, port) = (&server.nodes, backend.address, backend.port);
    let answer = match backend.scheme {
        Scheme::Http => nodes.send_plain(address, port, request).await,
        Scheme::Https | Scheme::Node => nodes.send(address, port, request, backend.scheme == Scheme::Node).await,
    };
    answer.map_err(|error| match backend.scheme {
        Scheme::Node => StatusError::internal(format!("error dialing backend: {error}")),
        _ => StatusError::unavailable(format!("error trying to reach service: {error}")),
    })
}

/// A backend's refusal as a Status with its words (A19.9).
async fn refusal(answer: Response<Incoming>) -> StatusError {
    let code = answer.status().as_u16();
    let retry = answer.headers().get("retry-after").cloned();
    let body = Limited::new(answer.into_body(), REFUSAL_BYTES).collect().await;
    let bytes = body.map(|collected| collected.to_bytes()).unwrap_or_default();
    let error = as_status(code, String::from_utf8_lossy(&bytes).trim().to_owned());
    let seconds = retry.and_then(|value| value.to_str().ok()?.parse().ok());
    match seconds {
        Some(seconds) => error.retry_after(seconds),
        None => error,
    }
}

fn as_status(code: u16, message: String) -> StatusError {
    let reason = match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    let code = if code < 400 { 500 } else { code };
    let message = if message.is_empty() { format!("unable to upgrade: the backend answered {code}") } else { message };
    StatusError::new(code, reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_words() {
        // A19.9
        for (code, told, reason) in [(400, 400, "BadRequest"), (404, 404, "NotFound"), (500, 500, "InternalError")] {
            let error = as_status(code, "pod does not exist".to_owned());
            assert_eq!((error.code, error.reason), (told, reason));
            assert_eq!(error.message, "pod does not exist");
        }
        // No node answers so, and a client must not take it for a yes.
        let odd = as_status(200, String::new());
        assert_eq!((odd.code, odd.reason), (500, "InternalError"));
        assert!(odd.message.contains("unable to upgrade"), "{}", odd.message);
    }
}
