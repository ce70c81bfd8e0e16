//! [`Connection`]: gRPC over a Unix socket, for a client that makes many small calls.

use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use h2::client::SendRequest;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use tonic::Status;
use tower::{BoxError, Service};

use super::socket::Socket;
use crate::http2::{self, Answer, Shared};

/// A list of 100 pods comes in one go. All streams together may have more than one of them, so that events nobody reads just now hold up
/// nothing else.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// A connection that is made when it is first needed, and again after it broke. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    socket: Arc<PathBuf>,
    shared: Shared,
}

impl Connection {
    /// To the server at this path. Calls must be made in a tokio runtime.
    pub(super) fn to(socket: PathBuf) -> Self {
        Self { socket: Arc::new(socket), shared: Shared::default() }
    }

    async fn send(self, request: Request<tonic::body::Body>) -> Result<Response<Answer>, BoxError> {
        let (mut head, body) = request.into_parts();
        // HTTP/2 wants a host; a socket has none.
        let mut uri = head.uri.into_parts();
        (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(Authority::from_static("localhost")));
        head.uri = Uri::from_parts(uri)?;
        let sender = self.shared.sender(async || self.connect().await.map(Some)).await?;
        let sender = sender.ok_or("no connection was made")?;
        http2::send(sender, Request::from_parts(head, body)).await
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>, BoxError> {
        let socket = Socket::connect(&self.socket).await.map_err(|error| {
            Status::unavailable(format!("cannot connect to {}: {error}; does the runtime run?", self.socket.display()))
        })?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let (sender, connection) = builder.handshake(socket).await?;
        // Why it ended the calls on it learn.
        tokio::spawn(connection.map(drop));
        Ok(sender)
    }
}

impl Service<Request<tonic::body::Body>> for Connection {
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use h2::RecvStream;
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
    async fn serve(listener: &UnixListener, read: &mpsc::Sender<Read>) {
        let (socket, _) = listener.accept().await.expect("a client");
        let mut connection = h2::server::handshake(socket).await.expect("it speaks HTTP/2");
        let (request, answer) = connection.accept().await.expect("a call").expect("a whole one");
        tokio::spawn(answer_one(request.into_body(), answer, read.clone()));
        connection.graceful_shutdown();
        // This moves the rest, until all is said.
        while connection.accept().await.is_some() {}
    }

    async fn answer_one(mut body: RecvStream, mut answer: h2::server::SendResponse<Bytes>, read: mpsc::Sender<Read>) {
        let (mut pieces, mut bytes) = (0, 0);
        while let Some(Ok(data)) = body.data().await {
            (pieces, bytes) = (pieces + 1, bytes + data.len());
        }
        read.send((pieces, bytes)).await.expect("the test waits");
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
        let (read, mut reads) = mpsc::channel(2);
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
