//! GET requests of probes and hooks: no proxy, no check of certificates, redirects to the same host only (A5.8, A4.4).

use std::borrow::Cow;
use std::net;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::action::resolve_port;
use super::reply::Reply;
use super::{dial, http1};

/// So many requests one probe may cost, as with Go's client (A5.8).
const MOST_REQUESTS: usize = 10;

/// What to ask for, and of whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    tls: bool,
    host: String,
    port: u16,
    /// Path and query.
    target: String,
    headers: HeaderMap,
}

/// Why no answer came, in words that an event can show.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct HttpFailure(pub String);

impl HttpFailure {
    /// The server was asked for HTTPS and speaks HTTP (A4.4).
    pub fn speaks_http(&self) -> bool {
        self.0.ends_with(SPEAKS_HTTP)
    }
}

/// Go's words, which users search for.
const SPEAKS_HTTP: &str = "http: server gave HTTP response to HTTPS client";

impl Request {
    /// The request that an action describes. `address`: the pod's, for actions without a host.
    ///
    /// # Errors
    ///
    /// A port that is not there, or a header that cannot be one; the text is for an event.
    pub fn of(get: &HTTPGetAction, container: &Container, address: &str, user_agent: &str) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        for given in get.http_headers.iter().flatten() {
            let name = HeaderName::try_from(given.name.as_str())
                .map_err(|_| format!("net/http: invalid header field name {:?}", given.name))?;
            let value = HeaderValue::try_from(given.value.as_str())
                .map_err(|_| format!("net/http: invalid header field value for {:?}", given.name))?;
            // These say how the body is sent, and there is none.
            if name != header::CONTENT_LENGTH && name != header::TRANSFER_ENCODING {
                headers.append(name, value);
            }
        }
        for (name, usual) in [(header::USER_AGENT, user_agent), (header::ACCEPT, "*/*")] {
            match headers.get(&name) {
                Some(value) if value.is_empty() => drop(headers.remove(&name)),
                Some(_) => {}
                None => {
                    let usual = HeaderValue::try_from(usual).map_err(|error| error.to_string())?;
                    headers.insert(name, usual);
                }
            }
        }
        let host = get.host.clone().filter(|host| !host.is_empty()).unwrap_or(address.to_owned());
        Ok(Self {
            tls: get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
            port: resolve_port(&get.port, container)?,
            target: target_of(get.path.as_deref().unwrap_or_default()),
            host,
            headers,
        })
    }

    /// The same in plain text, without what nobody else may read (A4.4).
    #[must_use]
    pub fn without_tls(mut self) -> Self {
        self.tls = false;
        self.headers.remove(header::AUTHORIZATION);
        self
    }

    /// Whether it goes over TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Host and port.
    pub fn authority(&self) -> String {
        dial::join(&self.host, self.port)
    }

    fn url(&self) -> String {
        format!("{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.target)
    }

    fn failed(&self, why: impl std::fmt::Display) -> HttpFailure {
        HttpFailure(format!("Get \"{}\": {why}", self.url()))
    }

    /// Where a redirect leads, and whether to the same host.
    fn redirected(&self, location: &str) -> Result<(Self, bool), HttpFailure> {
        let invalid = |error| self.failed(format!("failed to parse Location header {location:?}: {error}"));
        let url = Url::parse(&self.url()).and_then(|base| base.join(location)).map_err(invalid)?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let port = url.port_or_known_default().unwrap_or(self.port);
        let mut next = Self { tls: url.scheme() == "https", port, target, ..self.clone() };
        let same = host.eq_ignore_ascii_case(&self.host);
        // Another authority than the one that the Host header was given for.
        if location.contains("://") {
            next.headers.remove(header::HOST);
        }
        Ok((next, same))
    }
}

/// Path and query as they go into the request line.
fn target_of(path: &str) -> String {
    let base = Url::parse("http://h/");
    let joined = base.and_then(|base| base.join(path).or_else(|_| base.join("/")));
    match joined {
        Ok(url) => match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        },
        Err(_) => "/".to_owned(),
    }
}

/// Asks, for at most so long.
pub(super) async fn probe(request: &Request, limit: Duration) -> Result<Reply, HttpFailure> {
    match tokio::time::timeout(limit, follow(request)).await {
        Ok(result) => result,
        Err(_) => Err(request.failed("context deadline exceeded (Client.Timeout exceeded while awaiting headers)")),
    }
}

/// Asks, and waits as long as it takes; any answer is good.
///
/// # Errors
///
/// No answer came.
pub async fn get(request: &Request) -> Result<(), HttpFailure> {
    follow(request).await.map(drop)
}

async fn follow(request: &Request) -> Result<Reply, HttpFailure> {
    let mut current = Cow::Borrowed(request);
    for done in 1.. {
        let reply = once(&current).await?;
        let Some(location) = reply.location.as_deref().filter(|_| matches!(reply.status, 301..=303 | 307 | 308)) else {
            return Ok(reply);
        };
        let (next, same_host) = current.redirected(location)?;
        if !same_host {
            return Ok(reply);
        }
        if done >= MOST_REQUESTS {
            return Err(next.failed("stopped after 10 redirects"));
        }
        current = Cow::Owned(next);
    }
    unreachable!("the loop has no end of its own")
}

async fn once(request: &Request) -> Result<Reply, HttpFailure> {
    let stream = dial::connect(&request.host, request.port).await.map_err(|error| request.failed(error))?;
    if request.tls {
        // It takes much room, and most probes do without.
        return Box::pin(over_tls(request, stream)).await;
    }
    let message = message(request)?;
    http1::ask_plain(&message, stream).await.map_err(|error| request.failed(error))
}

async fn over_tls(request: &Request, stream: net::TcpStream) -> Result<Reply, HttpFailure> {
    let name = ServerName::try_from(request.host.clone()).map_err(|error| request.failed(error))?;
    let stream = TcpStream::from_std(stream).map_err(|error| request.failed(error))?;
    let connector = TlsConnector::from(trusting());
    let mut stream = connector.connect(name, stream).await.map_err(|error| {
        let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match refused {
            Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
                request.failed(SPEAKS_HTTP)
            }
            _ => request.failed(error),
        }
    })?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        return over_http2(request, stream).await;
    }
    let message = message(request)?;
    http1::ask(&message, &mut stream).await.map_err(|error| request.failed(error))
}

/// As HTTP/1.1 sends it.
fn message(request: &Request) -> Result<Vec<u8>, HttpFailure> {
    let authority;
    let host = match request.headers.get(header::HOST) {
        Some(given) => given,
        None => {
            authority = HeaderValue::try_from(request.authority()).map_err(|error| request.failed(error))?;
            &authority
        }
    };
    Ok(http1::message(&request.target, host, &request.headers))
}

async fn over_http2<S>(request: &Request, stream: S) -> Result<Reply, HttpFailure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|error| request.failed(error))?;
    let mut message = http::Request::new(Empty::<Bytes>::new());
    *message.uri_mut() = request.url().parse::<Uri>().map_err(|error| request.failed(error))?;
    message.headers_mut().clone_from(&request.headers);
    let answer = async { read(sender.send_request(message).await?).await };
    beside(connection, answer).await.map_err(|error| request.failed(error))
}

/// Waits for an answer, and drives the connection that it comes over meanwhile.
async fn beside<T>(connection: impl Future<Output = hyper::Result<()>>, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        // Why it ended the answer tells, too.
        _ = connection => {}
    }
    answer.await
}

/// Status, redirect and the beginning of the body.
async fn read(response: http::Response<Incoming>) -> Result<Reply, hyper::Error> {
    let location = response.headers().get(header::LOCATION).map(HeaderValue::as_bytes);
    let mut reply = Reply::new(response.status().as_u16(), location);
    let mut incoming = response.into_body();
    while !reply.is_full()
        && let Some(frame) = incoming.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            reply.keep(&data);
        }
    }
    Ok(reply)
}

/// TLS that believes every certificate: a probe asks whether a server answers, not who it is.
fn trusting() -> Arc<rustls::ClientConfig> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    CONFIG.get_or_init(|| Arc::new(trust::config())).clone()
}

mod trust {
    use std::sync::Arc;

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::ring::default_provider;
    use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

    pub(super) fn config() -> ClientConfig {
        let provider = Arc::new(default_provider());
        let verifier = Trusting(provider.signature_verification_algorithms.supported_schemes());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows the default versions of TLS")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }

    #[derive(Debug)]
    struct Trusting(Vec<SignatureScheme>);

    impl ServerCertVerifier for Trusting {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.clone()
        }
    }
}
