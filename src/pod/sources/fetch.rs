//! One GET over HTTP or HTTPS, trusting what the machine trusts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::manifest::LONGEST;

/// kubelet's limit of one question.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("staticPodURL {0:?} is no address: write http://host/path or https://host/path")]
    Address(String),
    #[error("staticPodURLHeader: {0:?} is no header")]
    Header(String),
    #[error("cannot connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error("the exchange broke off: {0}")]
    Exchange(#[from] hyper::Error),
    #[error("the answer cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the answer is {0}")]
    Status(http::StatusCode),
    #[error("no answer within {PATIENCE:?}")]
    TimedOut,
}

/// The body of a successful answer.
pub(super) async fn fetch(url: &str, headers: &BTreeMap<String, Vec<String>>) -> Result<Vec<u8>, FetchError> {
    let asked = tokio::time::timeout(PATIENCE, ask(url, headers));
    asked.await.unwrap_or(Err(FetchError::TimedOut))
}

async fn ask(url: &str, headers: &BTreeMap<String, Vec<String>>) -> Result<Vec<u8>, FetchError> {
    let no_address = || FetchError::Address(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| no_address())?;
    let host = uri.host().ok_or_else(no_address)?.trim_matches(['[', ']']).to_owned();
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(no_address()),
    };
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let mut request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str())).header(
        http::header::HOST,
        uri.authority().map(|a| a.as_str().rsplit('@').next().unwrap_or_default()).unwrap_or_default(),
    );
    for (name, values) in headers {
        for value in values {
            let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
                return Err(FetchError::Header(name.clone()));
            };
            request = request.header(name, value);
        }
    }
    let request = request.body(Empty::new()).map_err(|_| no_address())?;
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    if !secure {
        return exchange(stream, request).await;
    }
    let mut roots = rustls::RootCertStore::empty();
    // One that cannot be read is missing at most.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host).map_err(|_| no_address())?;
    exchange(TlsConnector::from(Arc::new(config)).connect(name, stream).await?, request).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<bytes::Bytes>>,
) -> Result<Vec<u8>, FetchError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    let answer = match answer {
        Ok(answer) if answer.status() == http::StatusCode::OK => answer,
        Ok(answer) => return Err(FetchError::Status(answer.status())),
        Err(error) => return Err(error.into()),
    };
    let limit = usize::try_from(LONGEST).unwrap_or(usize::MAX);
    let body = Limited::new(answer.into_body(), limit).collect().await.map_err(FetchError::Body)?;
    connection.abort();
    Ok(body.to_bytes().to_vec())
}
