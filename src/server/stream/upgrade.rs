//! Byte-level proxy of an upgrade: the client's request goes to the runtime's streaming server as it came, then bytes go both ways.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::server::reply::{self, Reply};

/// To reach the streaming server, and for its answer. It is on this machine.
const ANSWER: Duration = Duration::from_secs(30);

/// When one side has ended, the other has so long to say its last words: streams within the connection have ends of their own, so
/// nobody closes half of it while he wants more.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Taken in one go from either side.
const COPY_BYTES: usize = 32 << 10;

/// Why the runtime's streaming server cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    #[error("the runtime's streaming server has the odd address {0:?}")]
    Address(String),
    #[error("error dialing backend: {0}")]
    Dial(io::Error),
    #[error("error dialing backend: no answer within {} s", ANSWER.as_secs())]
    Late,
    #[error("the runtime's streaming server ended the connection: {0}")]
    Http(#[from] hyper::Error),
    #[error("the request cannot be passed on: {0}")]
    Request(#[from] http::Error),
}

/// Whether a client wants to leave HTTP.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let texts = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    headers.contains_key(UPGRADE)
        && texts.flat_map(|text| text.split(',')).any(|part| part.trim().eq_ignore_ascii_case("upgrade"))
}

/// Passes an upgrade on, and the answer back. After a 101 the bytes are copied by a task of their own until both sides ended.
pub(super) async fn relay(
    mut request: Request<Incoming>,
    url: &str,
    permit: OwnedSemaphorePermit,
    stop: CancellationToken,
) -> Result<Reply, UpgradeError> {
    let client = hyper::upgrade::on(&mut request);
    let mut answer = ask(request.method().clone(), url, request.headers().clone()).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync()));
    }
    let runtime = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let _permit = permit;
        tokio::select! {
            () = stop.cancelled() => {}
            result = join(client, runtime) => if let Err(error) = result {
                debug!(%error, "a stream ended early");
            },
        }
    });
    Ok(answer.map(|_| reply::empty()))
}

/// Asks the streaming server for an upgrade of our own; the connection after it.
pub(super) async fn open(
    url: &str,
    protocol: &str,
    stream_protocol: &'static str,
) -> Result<Result<Upgraded, Reply>, UpgradeError> {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_str(protocol).map_err(http::Error::from)?);
    headers.insert("x-stream-protocol-version", HeaderValue::from_static(stream_protocol));
    let answer = ask(Method::POST, url, headers).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Err(answer.map(|body| body.map_err(io::Error::other).boxed_unsync())));
    }
    Ok(Ok(hyper::upgrade::on(answer).await?))
}

async fn ask(method: Method, url: &str, mut headers: HeaderMap) -> Result<Response<Incoming>, UpgradeError> {
    let odd = || UpgradeError::Address(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| odd())?;
    let (Some("http"), Some(authority), Some(path)) = (uri.scheme_str(), uri.authority(), uri.path_and_query()) else {
        return Err(odd());
    };
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let work = async {
        let stream = TcpStream::connect(address).await.map_err(UpgradeError::Dial)?;
        // A key that is pressed shall not wait for the next one. Where it cannot be set, it does.
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        headers.insert(HOST, HeaderValue::from_str(authority.as_str()).map_err(http::Error::from)?);
        // Who asks is decided here; the runtime needs no credentials of his.
        headers.remove(http::header::AUTHORIZATION);
        let mut request = Request::builder().method(method).uri(path.as_str()).body(Empty::<Bytes>::new())?;
        *request.headers_mut() = headers;
        Ok(sender.send_request(request).await?)
    };
    timeout(ANSWER, work).await.unwrap_or(Err(UpgradeError::Late))
}

async fn join(client: OnUpgrade, runtime: OnUpgrade) -> io::Result<()> {
    let (client, runtime) = tokio::try_join!(client, runtime).map_err(io::Error::other)?;
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
    let (mut from_runtime, mut to_runtime) = tokio::io::split(TokioIo::new(runtime));
    let up = copy(&mut from_client, &mut to_runtime, true);
    let down = copy(&mut from_runtime, &mut to_client, false);
    tokio::pin!(up, down);
    let first = tokio::select! {
        result = up.as_mut() => result.map(|()| true),
        result = down.as_mut() => result.map(|()| false),
    }?;
    let rest = async { if first { down.await } else { up.await } };
    timeout(LAST_WORDS, rest).await.unwrap_or(Ok(()))
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_came_before_a_reset_gets_through() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut here = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut there, _) = listener.accept().await.unwrap();
        // Input that nobody reads: the kernel answers the close with a reset.
        here.write_all(b"unread").await.unwrap();
        there.readable().await.unwrap();
        there.write_all(b"bye").await.unwrap();
        drop(there);
        let (mut client, mut shown) = tokio::io::duplex(64);
        copy(&mut here, &mut client, false).await.unwrap();
        let mut text = String::new();
        shown.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "bye");
    }
}
