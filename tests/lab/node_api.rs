//! The node's HTTPS API as an API server asks it: TLS with a client certificate, HTTP/1.1 by hand, upgrades to SPDY. The same SPDY also
//! straight against a runtime's streaming server, to compare.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use stoker_model::streams::spdy::{Event, Reader, Writer, finish, send};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::enclosure::NODE_IP;
use super::{Lab, NODE, text};

/// Where the node serves.
const PORT: u16 = 10250;
/// Data of a stream that is read in one go.
const PIECE_BYTES: usize = 64 << 10;

/// The node's API, asked by the administrator. The calling thread must be in the node's network ([`Lab::enter_network`]).
pub(crate) struct NodeApi {
    tls: TlsConnector,
    address: SocketAddr,
}

/// A connection to the node, after the head of its answer.
pub(crate) type Answer = BufStream<TlsStream<TcpStream>>;

impl NodeApi {
    /// Trusts the certificate that the node has made for itself.
    pub(crate) fn new(lab: &Lab) -> Self {
        let config: Value = serde_json::from_str(&lab.kubectl("config view --raw -o json")).expect("JSON");
        let user = &config["users"][0]["user"];
        let decoded = |field: &str| STANDARD.decode(text(&user[field])).expect("kubectl encodes it");
        let chain = vec![CertificateDer::from_pem_slice(&decoded("client-certificate-data")).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(&decoded("client-key-data")).expect("PEM");
        let mut roots = RootCertStore::empty();
        let serving = lab.dir().join("kubelet/pki/kubelet.crt");
        roots.add(CertificateDer::from_pem_file(serving).expect("it serves")).expect("a certificate");
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let tls = tls.with_safe_default_protocol_versions().expect("TLS").with_root_certificates(roots);
        let tls = tls.with_client_auth_cert(chain, key).expect("they fit");
        let address: IpAddr = NODE_IP.parse().expect("an address");
        Self { tls: TlsConnector::from(Arc::new(tls)), address: SocketAddr::new(address, PORT) }
    }

    /// Sends a request over a connection of its own: the code of the answer, and the connection.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &str) -> io::Result<(u16, Answer)> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(NODE).expect("a name");
        let mut stream = BufStream::new(self.tls.connect(name, stream).await?);
        let code = ask(&mut stream, method, path, headers).await?;
        Ok((code, stream))
    }

    /// The whole body of an answer that must be a good one.
    pub(crate) async fn page(&self, path: &str) -> io::Result<Vec<u8>> {
        let (code, mut answer) = self.ask("GET", path, "Connection: close\r\n").await?;
        let mut body = Vec::new();
        answer.read_to_end(&mut body).await?;
        if code == 200 { Ok(body) } else { Err(io::Error::other(format!("{path} answers {code}"))) }
    }

    /// A stream by an upgrade to SPDY.
    pub(crate) async fn upgrade(&self, path: &str, protocol: &str) -> io::Result<Answer> {
        let (code, stream) = self.ask("POST", path, &upgrade_headers(protocol)).await?;
        if code == 101 { Ok(stream) } else { Err(io::Error::other(format!("{path} answers {code}"))) }
    }
}

/// The same against the URL that a runtime gave.
pub(crate) async fn upgrade_at(url: &str, protocol: &str) -> io::Result<BufStream<TcpStream>> {
    let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL of a runtime");
    let stream = TcpStream::connect(host).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufStream::new(stream);
    let code = ask(&mut stream, "POST", &format!("/{path}"), &upgrade_headers(protocol)).await?;
    if code == 101 { Ok(stream) } else { Err(io::Error::other(format!("{url} answers {code}"))) }
}

fn upgrade_headers(protocol: &str) -> String {
    format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n")
}

/// Writes a request and reads the head of its answer, whose code this is.
async fn ask<S>(stream: &mut BufStream<S>, method: &str, path: &str, headers: &str) -> io::Result<u16>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!("{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut code = None;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        code = code.or_else(|| line.split(' ').nth(1)?.parse().ok());
        if line == "\r\n" {
            return code.ok_or_else(|| io::ErrorKind::InvalidData.into());
        }
    }
}

/// Reads until a command's stream of errors has told how it ended: what it told.
pub(crate) async fn outcome_of_exec<S>(stream: BufStream<S>) -> io::Result<String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (from, mut to) = tokio::io::split(stream);
    let mut writer = Writer::default();
    for (stream, kind) in [(1, "error"), (3, "stdout")] {
        to.write_all(&writer.open(stream, &[("streamtype", kind)])).await?;
    }
    to.flush().await?;
    let (mut reader, mut told) = (Reader::new(from), Vec::new());
    loop {
        let before = told.len();
        match reader.next(&mut told, PIECE_BYTES).await? {
            Event::Data { stream: 1 } => {}
            Event::Data { .. } => told.truncate(before),
            Event::End { stream: 1 } | Event::Closed => return Ok(String::from_utf8_lossy(&told).into_owned()),
            Event::End { .. } => {}
            Event::Ping { id } => to.write_all(&Writer::pong(id)).await?,
        }
    }
}

/// Connects with a port, says something, and reads so many bytes.
pub(crate) async fn forwarded<S>(stream: BufStream<S>, port: u16, said: &[u8], bytes: usize) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (from, mut to) = tokio::io::split(stream);
    let (mut writer, port) = (Writer::default(), port.to_string());
    for (stream, kind) in [(1, "error"), (3, "data")] {
        let headers = [("streamtype", kind), ("port", &port), ("requestid", "0")];
        to.write_all(&writer.open(stream, &headers)).await?;
    }
    finish(&mut to, 1).await?;
    send(&mut to, 3, said).await?;
    let (mut reader, mut piece, mut came) = (Reader::new(from), Vec::with_capacity(PIECE_BYTES), 0);
    while came < bytes {
        piece.clear();
        match reader.next(&mut piece, PIECE_BYTES).await? {
            Event::Data { stream: 3 } => came += piece.len(),
            Event::Ping { id } => to.write_all(&Writer::pong(id)).await?,
            Event::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
            Event::Data { .. } => return Err(io::Error::other(String::from_utf8_lossy(&piece).into_owned())),
            Event::End { .. } => {}
        }
    }
    Ok(())
}
