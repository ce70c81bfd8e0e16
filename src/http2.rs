//! HTTP/2 for who makes many small requests over one connection, to the runtime and to the API server.
//!
//! The usual clients have two or three tasks between a request and the socket, and write its head, its body and its end one after another;
//! each waking and each packet costs more than the request itself, for both sides. Here a request gives HTTP/2 all it has at once, and the
//! one task that drives the socket writes it in one go.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::FutureExt;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::sync::Mutex;
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
/// gives the request up.
///
/// # Errors
///
/// The connection broke, or the request's body did.
pub(crate) async fn send<B>(mut sender: SendRequest<Bytes>, request: Request<B>) -> Result<Response<Answer>, BoxError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (head, body) = request.into_parts();
    let (head, mut body) = (Request::from_parts(head, ()), pin!(body));
    let Some(first) = next(body.as_mut()).await? else {
        return Ok(sender.send_request(head, true)?.0.await?.map(Answer));
    };
    // Most have no more to say than this.
    let second = next(body.as_mut()).now_or_never().transpose()?;
    let (answer, mut stream) = sender.send_request(head, false)?;
    if second == Some(None) {
        stream.send_data(first, true)?;
        return Ok(answer.await?.map(Answer));
    }
    give(&mut stream, first).await?;
    give(&mut stream, second.flatten().unwrap_or_default()).await?;
    while let Some(piece) = next(body.as_mut()).await? {
        give(&mut stream, piece).await?;
    }
    stream.send_data(Bytes::new(), true)?;
    Ok(answer.await?.map(Answer))
}

/// The next piece of a body; what is no data has no place in a request.
async fn next<B>(body: Pin<&mut B>) -> Result<Option<Bytes>, BoxError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = body;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(Into::into)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Gives a piece of a longer body as the server takes it. One that takes no more has answered.
async fn give(stream: &mut SendStream<Bytes>, mut piece: Bytes) -> Result<(), h2::Error> {
    while !piece.is_empty() {
        stream.reserve_capacity(piece.len());
        let Some(room) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return Ok(()) };
        stream.send_data(piece.split_to(room?.min(piece.len())), false)?;
    }
    Ok(())
}

/// The body of an answer.
#[derive(Debug)]
pub(crate) struct Answer(RecvStream);

impl Body for Answer {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.0.poll_data(cx)) {
            Some(Ok(data)) => {
                // An error means that the stream is over, as the next look shows.
                let _ = self.0.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => self.0.poll_trailers(cx).map(|trailers| trailers.transpose().map(|t| t.map(Frame::trailers))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
