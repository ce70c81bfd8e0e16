//! [`Connection`]: gRPC over a Unix socket, for a client that makes many small calls.
//!
//! tonic's own channel has three tasks between a call and the socket, and writes the head, the message and the end of a request one
//! after another; each waking and each packet costs more than the call itself. Here a call gives HTTP/2 all it has at once, and the one
//! task that drives the socket writes it in one go.

use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::net::UnixStream;
use tonic::Status;
use tower::Service;

/// A list of 100 pods comes in one go. All streams together may have more than one of them, so that events nobody reads just now hold up
/// nothing else.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// A connection that is made when it is first needed, and again after it broke. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    socket: Arc<PathBuf>,
    current: Arc<Mutex<Option<SendRequest<Bytes>>>>,
}

impl Connection {
    /// To the server at this path. Calls must be made in a tokio runtime.
    pub(super) fn to(socket: PathBuf) -> Self {
        Self { socket: Arc::new(socket), current: Arc::default() }
    }

    async fn send(self, request: Request<tonic::body::Body>) -> Result<Response<Answer>, tonic::codegen::StdError> {
        let mut sender = self.sender().await?;
        let (mut head, body) = request.into_parts();
        // HTTP/2 wants a host; a socket has none.
        let mut uri = head.uri.into_parts();
        (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(Authority::from_static("localhost")));
        head.uri = Uri::from_parts(uri)?;
        let mut body = pin!(body);
        let first = match body.frame().await {
            Some(frame) => frame?.into_data().unwrap_or_default(),
            None => Bytes::new(),
        };
        // All that most calls have to say is one message.
        let second = body.frame().now_or_never();
        let (answer, mut stream) = sender.send_request(Request::from_parts(head, ()), false)?;
        match second {
            Some(None) => stream.send_data(first, true)?,
            Some(Some(second)) => {
                give(&mut stream, first).await?;
                give(&mut stream, second?.into_data().unwrap_or_default()).await?;
                give_all(&mut stream, body).await?;
            }
            None => {
                give(&mut stream, first).await?;
                give_all(&mut stream, body).await?;
            }
        }
        Ok(answer.await?.map(Answer))
    }

    /// What requests go through, once it takes another one.
    async fn sender(&self) -> Result<SendRequest<Bytes>, tonic::codegen::StdError> {
        let current = self.current().clone();
        if let Some(current) = current
            && let Ok(sender) = current.ready().await
        {
            return Ok(sender);
        }
        let connected = self.connect().await.map_err(|error| {
            Status::unavailable(format!("cannot connect to {}: {error}; does the runtime run?", self.socket.display()))
        })?;
        // Whoever did the same meanwhile has a connection of its own, which ends with its last call.
        *self.current() = Some(connected.clone());
        Ok(connected.ready().await?)
    }

    async fn connect(&self) -> io::Result<SendRequest<Bytes>> {
        let socket = UnixStream::connect(&*self.socket).await?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let (sender, connection) = builder.handshake(socket).await.map_err(io::Error::other)?;
        // Why it ended the calls on it learn.
        tokio::spawn(connection.map(drop));
        Ok(sender)
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<SendRequest<Bytes>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a piece of a longer request as the server takes it.
async fn give(stream: &mut SendStream<Bytes>, mut piece: Bytes) -> Result<(), h2::Error> {
    while !piece.is_empty() {
        stream.reserve_capacity(piece.len());
        let Some(room) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return Ok(()) };
        stream.send_data(piece.split_to(room?.min(piece.len())), false)?;
    }
    Ok(())
}

async fn give_all(
    stream: &mut SendStream<Bytes>,
    mut body: Pin<&mut tonic::body::Body>,
) -> Result<(), tonic::codegen::StdError> {
    while let Some(frame) = body.frame().await {
        give(stream, frame?.into_data().unwrap_or_default()).await?;
    }
    Ok(stream.send_data(Bytes::new(), true)?)
}

impl Service<Request<tonic::body::Body>> for Connection {
    type Response = Response<Answer>;
    type Error = tonic::codegen::StdError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

/// The body of an answer. Dropping it gives the call up.
#[derive(Debug)]
pub(super) struct Answer(RecvStream);

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderName, HeaderValue};
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;
    use tonic::Code;

    use super::super::cri::VersionRequest;
    use super::super::cri::runtime_service_client::RuntimeServiceClient;
    use super::*;

    /// A request as a server read it: how many pieces its body had, and how many bytes.
    type Read = (usize, usize);

    /// Answers one call with OK and nothing, and hangs up.
    async fn serve(listener: &UnixListener, read: &mpsc::UnboundedSender<Read>) {
        let (socket, _) = listener.accept().await.expect("a client");
        let mut connection = h2::server::handshake(socket).await.expect("it speaks HTTP/2");
        let (request, answer) = connection.accept().await.expect("a call").expect("a whole one");
        tokio::spawn(answer_one(request.into_body(), answer, read.clone()));
        connection.graceful_shutdown();
        // This moves the rest, until all is said.
        while connection.accept().await.is_some() {}
    }

    async fn answer_one(
        mut body: RecvStream,
        mut answer: h2::server::SendResponse<Bytes>,
        read: mpsc::UnboundedSender<Read>,
    ) {
        let (mut pieces, mut bytes) = (0, 0);
        while let Some(Ok(data)) = body.data().await {
            (pieces, bytes) = (pieces + 1, bytes + data.len());
        }
        read.send((pieces, bytes)).expect("the test waits");
        let head = Response::builder().header("content-type", "application/grpc");
        let mut stream = answer.send_response(head.body(()).expect("a head"), false).expect("they listen");
        stream.send_data(Bytes::from_static(&[0; 5]), false).expect("they listen");
        let trailers = [(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))];
        stream.send_trailers(trailers.into_iter().collect()).expect("they listen");
    }

    #[tokio::test]
    async fn a_call_is_one_piece_and_a_broken_connection_is_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("socket")).expect("it listens");
        let (read, mut reads) = mpsc::unbounded_channel();
        let server = async {
            for _ in 0..2 {
                serve(&listener, &read).await;
            }
        };
        let calls = async {
            let mut client = RuntimeServiceClient::new(Connection::to(folder.path().join("socket")));
            for _ in 0..2 {
                let answer = client.version(VersionRequest { version: "v1".into() }).await;
                answer.expect("answered");
            }
        };
        tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(server, calls) }).await.expect("soon");
        // Five bytes of gRPC's own, and a field of a byte and a length.
        assert_eq!([reads.recv().await, reads.recv().await], [Some((1, 9)), Some((1, 9))]);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named() {
        let mut client = RuntimeServiceClient::new(Connection::to("/nowhere/at.sock".into()));
        let refused = client.version(VersionRequest::default()).await.expect_err("nobody listens");
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.message().starts_with("cannot connect to /nowhere/at.sock: No such file"), "{refused}");
    }
}
