//! A client of the API for commands that are not the server itself: one request at a time, with a kubeconfig.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls::{self, TlsError};
use crate::auth::{CertifiedPem, ca_hash};

/// Why the API server did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The file.
    #[error("cannot read {path}: give the --data-dir of a control plane that has run, or a --kubeconfig", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in it.
    #[error("{path} is no kubeconfig with an embedded CA, client certificate and key", path = .0.display())]
    Kubeconfig(PathBuf),
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection.
    #[error("cannot ask {server}: is the control plane running? ({message})")]
    Connect {
        /// Where.
        server: String,
        /// Why.
        message: String,
    },
    /// The API server says no.
    #[error("{0}")]
    Refused(String),
}

/// Asks one API server.
pub(super) struct Client {
    server: String,
    ca: String,
    tls: Arc<rustls::ClientConfig>,
    path: PathBuf,
}

impl Client {
    /// With the first cluster and user of a kubeconfig.
    pub(super) fn read(path: &Path) -> Result<Self, ClientError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ClientError::File { path: path.to_owned(), source })?;
        let wrong = || ClientError::Kubeconfig(path.to_owned());
        let config: Value = serde_yaml_ng::from_str(&text).map_err(|_| wrong())?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let pem = |value: &Value| -> Result<String, ClientError> {
            let bytes = value.as_str().and_then(|text| STANDARD.decode(text).ok()).ok_or_else(wrong)?;
            String::from_utf8(bytes).map_err(|_| wrong())
        };
        let ca = pem(&cluster["certificate-authority-data"])?;
        let credential =
            CertifiedPem { certificate: pem(&user["client-certificate-data"])?, key: pem(&user["client-key-data"])? };
        let tls = tls::client(&ca, &credential)?;
        let server = cluster["server"].as_str().ok_or_else(wrong)?.trim_end_matches('/').to_owned();
        Ok(Self { server, ca, tls, path: path.to_owned() })
    }

    /// The API server's URL.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// `sha256:…` of the CA's public key.
    pub(super) fn ca_hash(&self) -> Result<String, ClientError> {
        ca_hash(&self.ca).ok_or_else(|| ClientError::Kubeconfig(self.path.clone()))
    }

    /// Sends one request; answers with the object in the answer.
    pub(super) async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let failed = |message: String| ClientError::Connect { server: self.server.clone(), message };
        let authority = self.server.trim_start_matches("https://");
        let uri: http::Uri = self.server.parse().map_err(|_| ClientError::Kubeconfig(self.path.clone()))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443)))
            .await
            .map_err(|error| failed(error.to_string()))?;
        let name = ServerName::try_from(host).map_err(|error| failed(error.to_string()))?;
        let stream = TlsConnector::from(self.tls.clone())
            .connect(name, stream)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(error.to_string()))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", authority)
            .header("content-type", "application/json")
            .header("user-agent", "stoker-control-plane")
            .body(Full::new(body.map_or_else(Bytes::new, |body| body.to_string().into())))
            .map_err(|error| failed(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
        let is_success = answer.status().is_success();
        let bytes = answer.into_body().collect().await.map_err(|error| failed(error.to_string()))?.to_bytes();
        let object: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if is_success {
            return Ok(object);
        }
        let message =
            object["message"].as_str().map_or_else(|| String::from_utf8_lossy(&bytes).into_owned(), str::to_owned);
        Err(ClientError::Refused(message))
    }
}
