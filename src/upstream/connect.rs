//! The transport to the API server: TCP and TLS with HTTP/2, which one connection shares among all watches and requests. Those of
//! Services have a second one, which is read otherwise (`gather`).
//!
//! HTTP/2 pings find a peer that is gone without a word, also under a watch that is silent for minutes. A server that
//! does not speak HTTP/2 is served by a pool with HTTP/1.1.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::Body;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tower::{BoxError, Service};

use super::certificates::Identity;
use super::gather::Gathering;
use crate::http2::{self, Answer, Shared};

/// How long a TCP and TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A ping so often; the Go client's `http2.Transport` sends one when nothing came for so long (`ReadIdleTimeout`).
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// The connection is dead when the answer takes longer (`PingTimeout` of the Go client).
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// hyper's own for a client: a long list comes in one go.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 5 << 20;

/// How a connection is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    /// Whatever comes, at once.
    AtOnce,
    /// Small things that come soon after each other together.
    Together,
}

/// A way to a server. With an `identity` connections wait until there is one, and end when another takes its place.
pub(super) fn transport(
    config: &kube::Config,
    identity: Option<Identity>,
    reading: Reading,
) -> Result<Transport, kube::Error> {
    use kube::client::ConfigExt;
    let mut tls = config.rustls_client_config()?;
    if let Some(identity) = &identity {
        tls.client_auth_cert_resolver = Arc::new(identity.clone());
        // A session that is resumed is still that of the old certificate.
        tls.resumption = Resumption::disabled();
    }
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PING_INTERVAL));
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let tls = TlsConnector::from(Arc::new(tls));
    let connector = Connector { tcp, tls, server_name: config.tls_server_name.clone(), identity, reading };
    let pool = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(90))
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .build(connector.clone());
    // Without TLS nobody asks what the server speaks.
    let plain = config.cluster_url.scheme() == Some(&Scheme::HTTP);
    Ok(Transport { connector, shared: Shared::default(), speaks_http1: Arc::new(plain.into()), pool })
}

/// One HTTP/2 connection; for a server that does not speak it, a pool of others.
#[derive(Clone)]
pub(super) struct Transport {
    connector: Connector,
    shared: Shared,
    /// The server did not want HTTP/2 when it was asked.
    speaks_http1: Arc<AtomicBool>,
    pool: Client<Connector, Body>,
}

impl Transport {
    async fn send(self, request: Request<Body>) -> Result<Response<Either<Answer, Incoming>>, BoxError> {
        let sender = match self.speaks_http1.load(Ordering::Relaxed) {
            true => None,
            false => {
                let uri = request.uri().clone();
                self.shared.sender(async || self.connect(uri).await).await?
            }
        };
        match sender {
            Some(sender) => Ok(http2::send(sender, request).await?.map(Either::Left)),
            None => Ok(self.pool.request(request).await?.map(Either::Right)),
        }
    }

    async fn connect(&self, uri: Uri) -> Result<Option<SendRequest<Bytes>>, BoxError> {
        let stream = self.connector.clone().call(uri).await?.into_inner();
        if !stream.connected().is_negotiated_h2() {
            self.speaks_http1.store(true, Ordering::Relaxed);
            return Ok(None);
        }
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let (sender, mut connection) = builder.handshake(stream).await?;
        let silence = connection.ping_pong().map(|pings| silence(pings, PING_INTERVAL, PING_TIMEOUT));
        tokio::spawn(async move {
            tokio::select! {
                // Why it ended the requests on it learn.
                _ = connection => {}
                () = async { if let Some(silence) = silence { silence.await } } => {}
            }
        });
        Ok(Some(sender))
    }
}

/// Ends when the peer leaves a ping without an answer for so long; one is sent `every` so often.
async fn silence(mut pings: PingPong, every: Duration, patience: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let answered = tokio::time::timeout(patience, pings.ping(Ping::opaque())).await;
        if !matches!(answered, Ok(Ok(_))) {
            return;
        }
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Either<Answer, Incoming>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

/// Opens connections.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    tls: TlsConnector,
    server_name: Option<String>,
    identity: Option<Identity>,
    reading: Reading,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let secure = uri.scheme() != Some(&Scheme::HTTP);
        let host = self.server_name.clone().unwrap_or_else(|| uri.host().unwrap_or_default().to_owned());
        let tls = self.tls.clone();
        let tcp = self.tcp.call(uri);
        let identity = self.identity.clone().filter(|_| secure);
        let rests = self.reading == Reading::Together;
        Box::pin(async move {
            let replaced = match &identity {
                Some(identity) => identity.wait().await,
                None => None,
            };
            let stream = Gathering::new(tcp.await?.into_inner(), rests);
            if !secure {
                return Ok(TokioIo::new(Stream::Plain(stream)));
            }
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, tls.connect(name, stream)).await??;
            let replaced = replaced.map(|token| Box::pin(token.cancelled_owned()));
            Ok(TokioIo::new(Stream::Tls(Box::new(stream), replaced)))
        })
    }
}

/// What is read and written.
pub(super) enum Stream {
    Plain(Gathering),
    /// The second ends when the connection must.
    Tls(Box<TlsStream<Gathering>>, Option<Pin<Box<WaitForCancellationFutureOwned>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(stream, _) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            Self::Tls(..) | Self::Plain(_) => Connected::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), std::io::Error>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream, replaced) => {
                if let Some(replaced) = replaced
                    && replaced.as_mut().poll(cx).is_ready()
                {
                    let reason = "the node's certificate was replaced";
                    return Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, reason)));
                }
                Pin::new(stream).poll_read(cx, buffer)
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, std::io::Error>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, data),
            Self::Tls(stream, _) => Pin::new(stream).poll_write(cx, data),
        }
    }

    /// A head and a body go as one record.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize, std::io::Error>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tls(stream, _) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a connection is given up whose server answers pings, or nothing.
    async fn is_given_up(answers: bool) -> bool {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (_sender, mut connection) = h2::client::handshake(near).await.expect("it speaks HTTP/2");
        let pings = connection.ping_pong().expect("nobody else has it");
        let serve = async {
            let mut connection = h2::server::handshake(far).await.expect("it speaks HTTP/2");
            if answers {
                while connection.accept().await.is_some() {}
            }
            std::future::pending::<()>().await;
        };
        let work = async {
            tokio::select! {
                () = silence(pings, Duration::from_millis(20), Duration::from_millis(500)) => {}
                _ = connection => panic!("the server is there"),
                () = serve => {}
            }
        };
        tokio::time::timeout(Duration::from_secs(2), work).await.is_ok()
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_without_a_word_is_given_up() {
        assert!(is_given_up(false).await);
        assert!(!is_given_up(true).await, "a quiet one is not");
    }
}
