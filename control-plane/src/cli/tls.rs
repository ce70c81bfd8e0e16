//! TLS configurations from PEM texts.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::auth::{CertifiedPem, Pki};

/// Why credentials cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text is broken.
    #[error("a certificate or key below the data directory's pki/ cannot be read: remove it to have it made again")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// A certificate and a key do not fit each other.
    #[error("a certificate and a key below the data directory's pki/ do not fit: remove both to have them made again")]
    Tls(#[from] rustls::Error),
    /// The CA cannot check clients.
    #[error("the CA certificate cannot be used to check clients")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn pair(pem: &CertifiedPem) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = CertificateDer::pem_slice_iter(pem.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_slice(pem.key.as_bytes())?))
}

fn roots(ca: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

/// For the API's listener: HTTP/2 and 1.1, client certificates of our CA if the client has one.
pub(super) fn server(pki: &Pki) -> Result<Arc<ServerConfig>, TlsError> {
    // Who a certificate stands for is looked at with each request.
    let both = format!("{}\n{}", pki.ca_certificate(), pki.front_proxy_ca());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&both)?), provider())
        .allow_unauthenticated()
        .build()?;
    let (chain, key) = pair(pki.serving())?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// For commands: the API server must be this CA's.
pub(super) fn client(ca: &str, credential: &CertifiedPem) -> Result<Arc<ClientConfig>, TlsError> {
    let (chain, key) = pair(credential)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// For asking nodes. A node's serving certificate is its own by default (upstream's API server does not check it either
/// unless told to), so that only its key is checked; but one that our CA signed must be good for that address and time.
pub(super) fn to_nodes(pki: &Pki) -> Result<Arc<ClientConfig>, TlsError> {
    let (chain, key) = pair(pki.kubelet_client())?;
    let ours =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots(pki.ca_certificate())?), provider()).build()?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OursOrTheirOwn { ours: Some(ours), provider: provider() }))
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// For `proxy` requests to pods and services: nobody knows who signs their certificates.
pub(super) fn to_anybody() -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OursOrTheirOwn { ours: None, provider: provider() }))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Takes any certificate whose key the other side has, unless our CA signed it and it is not good.
#[derive(Debug)]
struct OursOrTheirOwn {
    ours: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OursOrTheirOwn {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(ours) = &self.ours else { return Ok(ServerCertVerified::assertion()) };
        match ours.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // Its own, not ours.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => Ok(ServerCertVerified::assertion()),
            // A self-signed one of kubelet's says that it is a CA.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
