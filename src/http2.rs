//! HTTP/2 for who makes many small requests over one connection, to the runtime and to the API server.
//!
//! The usual clients have two or three tasks between a request and the socket, and write its head, its body and its end one after another;
//! each waking and each packet costs more than the request itself, for both sides. Here a request gives HTTP/2 all it has at once, and the
//! one task that drives the socket writes it in one go.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::FutureExt;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;
use tower::BoxError;

/// The connection to a server: made when it is first needed, and again after it broke. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<Mutex<Option<SendRequest<Bytes>>>>);

impl Shared {
    /// What a request goes through; `connect` makes it where there is none, for all who wait for it. `None` is its own.
    ///
    /// # Errors
    ///
    /// Those of `connect`.
    pub(crate) async fn sender(
        &self,
        connect: impl AsyncFnOnce() -> Result<Option<SendRequest<Bytes>>, BoxError>,
    ) -> Result<Option<SendRequest<Bytes>>, BoxError> {
        let mut current = self.0.lock().await;
        if let Some(sender) = &*current
            && let Ok(sender) = sender.clone().ready().await
        {
            return Ok(Some(sender));
        }
        *current = None;
        let Some(sender) = connect().await? else { return Ok(None) };
        *current = Some(sender.clone());
        Ok(Some(sender.ready().await?))
    }
}

/// Sends a request through a connection that is ready, and waits for the head of the answer. Dropping the future, or the answer's body,
/// gives the request up. The rest of a long one is sent by a task of its own, since a server may answer before it has read it.
///
/// # Errors
///
/// The connection broke, or the request's body did.
pub(crate) async fn send<B>(mut sender: SendRequest<Bytes>, request: Request<B>) -> Result<Response<Answer>, BoxError>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (head, mut body) = request.into_parts();
    let head = Request::from_parts(head, ());
    let Some(first) = next(&mut body).await? else {
        return Ok(sender.send_request(head, true)?.0.await?.map(|stream| Answer { stream, _rest: None }));
    };
    // Most have no more to say than this.
    let second = next(&mut body).now_or_never().transpose()?;
    let (answer, mut stream) = sender.send_request(head, false)?;
    let rest = if second == Some(None) {
        // The answer tells of what went wrong.
        let _ = stream.send_data(first, true);
        None
    } else {
        let rest = give_all(stream, [Some(first), second.flatten()], body);
        Some(AbortOnDropHandle::new(tokio::spawn(rest)))
    };
    Ok(answer.await?.map(|stream| Answer { stream, _rest: rest }))
}

/// The next piece of a body; what is no data has no place in a request.
async fn next<B>(body: &mut B) -> Result<Option<Bytes>, BoxError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(Into::into)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Gives what was read of a body, and the rest of it, until it ends or the server has enough.
async fn give_all<B>(mut stream: SendStream<Bytes>, read: [Option<Bytes>; 2], mut body: B)
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    for piece in read.into_iter().flatten() {
        if !give(&mut stream, piece).await {
            return;
        }
    }
    loop {
        match next(&mut body).await {
            Ok(Some(piece)) => {
                if !give(&mut stream, piece).await {
                    return;
                }
            }
            // Whether it is heard the answer tells.
            Ok(None) => return drop(stream.send_data(Bytes::new(), true)),
            Err(_) => return stream.send_reset(Reason::CANCEL),
        }
    }
}

/// Gives a piece of a longer body as the server takes it; `false`: it takes no more, because it has answered, or the answer tells why.
async fn give(stream: &mut SendStream<Bytes>, mut piece: Bytes) -> bool {
    while !piece.is_empty() {
        stream.reserve_capacity(piece.len());
        let Some(Ok(room)) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return false };
        if stream.send_data(piece.split_to(room.min(piece.len())), false).is_err() {
            return false;
        }
    }
    true
}

/// The body of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    stream: RecvStream,
    /// Sends what the request has left.
    _rest: Option<AbortOnDropHandle<()>>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                // An error means that the stream is over, as the next look shows.
                let _ = self.stream.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            // Whoever answers before the request is whole says so with these.
            Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => self.stream.poll_trailers(cx).map(|trailers| trailers.transpose().map(|t| t.map(Frame::trailers))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use futures::{StreamExt, stream};
    use http_body_util::StreamBody;
    use tokio::io::duplex;

    use super::*;

    /// Three times what a window holds, in pieces that come one after another.
    const PIECES: usize = 12;
    const PIECE: usize = 16 << 10;

    fn long_body() -> impl Body<Data = Bytes, Error = Infallible> + Unpin + Send + 'static {
        Box::pin(StreamBody::new(stream::iter(0..PIECES).then(async |_| {
            tokio::task::yield_now().await;
            Ok(Frame::data(Bytes::from_static(&[7; PIECE])))
        })))
    }

    /// Sends it to a server that reads all of it, or answers without a look. The answer's body.
    async fn sent(reads: bool) -> Bytes {
        let (near, far) = duplex(64 << 10);
        let (sender, connection) = h2::client::handshake(near).await.expect("it speaks HTTP/2");
        let serve = async move {
            let mut connection = h2::server::handshake(far).await.expect("it speaks HTTP/2");
            let (request, mut answer) = connection.accept().await.expect("a request").expect("a whole one");
            let work = async move {
                let (mut body, mut bytes) = (request.into_body(), 0);
                while reads && let Some(Ok(data)) = body.data().await {
                    bytes += data.len();
                    body.flow_control().release_capacity(data.len()).expect("it was taken");
                }
                let mut stream = answer.send_response(Response::new(()), false).expect("they listen");
                stream.send_data(bytes.to_string().into(), true).expect("they listen");
                // What it did not read it refuses now (RFC 9113, 8.1).
            };
            tokio::join!(work, async { while connection.accept().await.is_some() {} });
        };
        let ask = async {
            let request = Request::post("http://h/x").body(long_body()).expect("a request");
            let answer = send(sender, request).await.expect("an answer");
            answer.into_body().collect().await.expect("a body").to_bytes()
        };
        let both = async {
            tokio::select! {
                answer = ask => answer,
                () = serve => panic!("the server goes first"),
                _ = connection => panic!("the connection ends first"),
            }
        };
        tokio::time::timeout(Duration::from_secs(10), both).await.expect("soon")
    }

    #[tokio::test]
    async fn a_long_body_is_sent_as_the_server_takes_it() {
        assert_eq!(sent(true).await, (PIECES * PIECE).to_string());
    }

    #[tokio::test]
    async fn a_server_that_answers_before_it_has_read_everything_is_heard() {
        assert_eq!(sent(false).await, "0");
    }

    #[tokio::test]
    async fn a_long_request_that_is_given_up_is_taken_back() {
        let (near, far) = duplex(64 << 10);
        let (sender, connection) = h2::client::handshake(near).await.expect("it speaks HTTP/2");
        tokio::spawn(connection.map(drop));
        let taken_back = tokio::spawn(async move {
            let mut connection = h2::server::handshake(far).await.expect("it speaks HTTP/2");
            let (request, mut answer) = connection.accept().await.expect("a request").expect("a whole one");
            tokio::select! {
                reason = poll_fn(|cx| answer.poll_reset(cx)) => drop((reason.expect("a reason"), request)),
                _ = connection.accept() => panic!("there is one request"),
            }
        });
        let request = Request::post("http://h/x").body(long_body()).expect("a request");
        // `sender` lives on, or the connection could be seen to end before the request is.
        let unanswered = tokio::time::timeout(Duration::from_millis(50), send(sender.clone(), request)).await;
        assert!(unanswered.is_err(), "the server says nothing");
        tokio::time::timeout(Duration::from_secs(10), taken_back).await.expect("soon").expect("it was told");
        drop(sender);
    }
}
