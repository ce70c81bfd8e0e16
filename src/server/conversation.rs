//! One connection of a client, HTTP/1.1 or 2: how long it may be silent, how much it may say (A18.20).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::reply::{Body, Reply};
use crate::clock::Clock;

/// How long a client may be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// In the head of a request, and between two requests (A18.20).
    idle: Duration,
    /// From the handshake to the end of the first request's head: a client that has not said which HTTP it speaks is under no other
    /// limit.
    first_request: Duration,
}

pub(super) const LIMITS: Limits = Limits { idle: Duration::from_secs(90), first_request: Duration::from_secs(30) };

/// Of a request's head; nothing that is served here takes a body.
const HEAD_LIMIT_BYTES: usize = 64 << 10;
const HEADER_LIMIT: usize = 100;

/// A client that was told to go has so long.
const FAREWELL: Duration = Duration::from_secs(10);

/// Requests of one client that are being answered, and when (monotonic) the last answer was over; `None`: nothing was asked yet.
#[derive(Debug, Default)]
struct Activity(Mutex<(usize, Option<Duration>)>);

impl Activity {
    fn state(&self) -> (usize, Option<Duration>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, until its answer is sent or given up.
#[derive(Debug)]
struct Answering(Arc<Activity>);

impl Answering {
    fn new(activity: &Arc<Activity>) -> Self {
        let mut state = activity.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (state.0 + 1, Some(Clock.now().monotonic));
        Self(activity.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (state.0.saturating_sub(1), Some(Clock.now().monotonic));
    }
}

/// The body of an answer, that is under way as long as it lives.
struct Watched {
    body: Body,
    _answering: Answering,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// HTTP/1.1 or 2 with one client, until it goes, is silent for too long, or `going` tells that the agent ends.
pub(super) async fn converse<S, H>(stream: S, service: H, going: CancellationToken, limits: Limits)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Service<Request<Incoming>, Response = Reply, Error = Infallible>,
    H::Future: Send + 'static,
{
    let activity = Arc::new(Activity::default());
    let answers = activity.clone();
    let service = service_fn(move |request| {
        // In a box of its own: hyper keeps room for an answer's future as long as the connection lives, and a follower's lives long.
        let (answering, answer) = (Answering::new(&answers), Box::pin(service.call(request)));
        async move {
            let watched = |body| Watched { body, _answering: answering }.boxed_unsync();
            answer.await.map(|reply| reply.map(watched))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(HEAD_LIMIT_BYTES)
        .max_headers(HEADER_LIMIT)
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(HEAD_LIMIT_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(limits.idle / 3);
    // On the heap once, and not moved from one future into the next, each of which would have room for it.
    let mut connection = Box::pin(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = connection.as_mut() => Some(result),
        () = going.cancelled() => None,
        () = silence(&activity, limits) => {
            debug!("a client of the node's API was silent for too long");
            connection.as_mut().graceful_shutdown();
            timeout(FAREWELL, connection.as_mut()).await.unwrap_or(Ok(())).ok();
            return;
        }
    };
    let result = match result {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(error, "connection to the node's API ended");
    }
}

/// Ends when nothing is asked for too long; never while something is answered.
async fn silence(activity: &Activity, limits: Limits) {
    let begun = Clock.now().monotonic;
    loop {
        let now = Clock.now().monotonic;
        let end = match activity.state() {
            (0, None) => begun + limits.first_request,
            (0, Some(since)) => since + limits.idle,
            _ => now + limits.idle,
        };
        if end <= now {
            return;
        }
        sleep((end - now).min(limits.idle)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::reply;

    #[tokio::test]
    async fn only_a_client_that_asks_nothing_is_left() {
        // A18.20
        assert_eq!(LIMITS.idle, Duration::from_secs(90));
        let limits = Limits { idle: Duration::from_millis(20), first_request: Duration::from_millis(20) };
        let activity = Arc::default();
        silence(&activity, limits).await;
        let answering = Answering::new(&activity);
        timeout(limits.idle * 5, silence(&activity, limits)).await.expect_err("it is answered");
        drop(answering);
        silence(&activity, limits).await;
    }

    #[tokio::test]
    async fn a_silent_client_of_http_2_is_told_to_go() {
        // A18.20
        let limits = Limits { idle: Duration::from_millis(300), first_request: Duration::from_secs(60) };
        let (here, there) = tokio::io::duplex(1 << 20);
        let service = service_fn(|_: Request<Incoming>| async {
            // An answer may take longer than a client may be silent.
            let late = futures::stream::once(async {
                sleep(Duration::from_millis(700)).await;
                Ok(Bytes::from_static(b"here you are"))
            });
            Ok::<_, Infallible>(reply::file(late))
        });
        let served = tokio::spawn(converse(here, service, CancellationToken::new(), limits));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(there)).await.expect("HTTP/2");
        let client = tokio::spawn(connection);
        let request = Request::get("http://n/").body(http_body_util::Empty::<Bytes>::new()).expect("a request");
        let answer = sender.send_request(request).await.expect("an answer").into_body().collect().await;
        assert_eq!(answer.expect("all of it").to_bytes(), "here you are");
        timeout(Duration::from_secs(20), served).await.expect("it ends").expect("well");
        timeout(Duration::from_secs(20), client).await.expect("it has noticed").expect("well").expect("in peace");
    }

    /// What a client gets who sends this, piece by piece with pauses, and how long it is listened to.
    async fn told(pieces: &[&[u8]], pause: Duration, limits: Limits) -> (String, Duration) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (here, mut there) = tokio::io::duplex(1 << 20);
        let service = service_fn(|_: Request<Incoming>| async {
            Ok::<_, Infallible>(reply::text(http::StatusCode::OK, "here you are"))
        });
        let served = tokio::spawn(converse(here, service, CancellationToken::new(), limits));
        let began = Clock.now().monotonic;
        for piece in pieces {
            if there.write_all(piece).await.is_err() {
                break;
            }
            sleep(pause).await;
        }
        let mut answer = Vec::new();
        timeout(Duration::from_secs(20), there.read_to_end(&mut answer)).await.expect("it is left alone").unwrap();
        served.await.unwrap();
        (String::from_utf8_lossy(&answer).into_owned(), Clock.now().monotonic - began)
    }

    #[tokio::test]
    async fn slow_and_talkative_clients_are_left() {
        // A18.20
        let limits = Limits { idle: Duration::from_millis(400), first_request: Duration::from_millis(400) };
        let short = Duration::from_millis(5);
        let long = Duration::from_secs(10);
        let request: &[u8] = b"GET / HTTP/1.1\r\nhost: n\r\n\r\n";
        // Silence before a request, within its head, and after one.
        let (answer, took) = told(&[], short, limits).await;
        assert!(answer.is_empty() && took < long, "{answer} {took:?}");
        let drops: Vec<&[u8]> = request[..request.len() - 2].chunks(1).collect();
        let (answer, took) = told(&drops, Duration::from_millis(100), limits).await;
        assert!(!answer.contains("here you are") && took < long, "{answer} {took:?}");
        let (answer, took) = told(&[request], short, limits).await;
        assert!(answer.ends_with("here you are") && took < long && took >= limits.idle, "{answer} {took:?}");
        // The head of a request is read to a limit, whether it is its path, one header, or many of them.
        let path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * HEAD_LIMIT_BYTES));
        let query = format!("GET /pods?{} HTTP/1.1\r\n\r\n", "a=b&".repeat(HEAD_LIMIT_BYTES));
        let header = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(2 * HEAD_LIMIT_BYTES));
        let headers = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(2 * HEADER_LIMIT));
        for head in [path, query, header, headers] {
            let (answer, _) = told(&[head.as_bytes()], short, limits).await;
            let refused = ["HTTP/1.1 431", "HTTP/1.1 414", "HTTP/1.1 400"].iter().any(|code| answer.starts_with(code));
            assert!(refused || answer.is_empty(), "{answer}");
        }
        // A body that nobody asked for is not read to its end.
        let body = b"GET / HTTP/1.1\r\nhost: n\r\ncontent-length: 1000000000000\r\n\r\n";
        let (answer, took) = told(&[body, &[b'x'; 1 << 16]], short, limits).await;
        assert!(answer.ends_with("here you are") && took < long, "{answer} {took:?}");
    }
}
