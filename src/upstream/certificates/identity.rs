//! What the node shows of itself to the API server: a certificate that can be replaced under a running connection.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use stoker_model::metrics;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::rules::Life;

/// A certificate with its key, ready for handshakes.
pub struct Shown {
    key: Arc<CertifiedKey>,
    pub(super) life: Life,
    /// Cancelled when another takes its place: connections that were opened with it end.
    replaced: CancellationToken,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("life", &self.life).finish_non_exhaustive()
    }
}

impl Shown {
    /// Reads certificates and a key from PEM. `Err` says what is wrong.
    pub fn from_pem(certificates: &str, key: &str) -> Result<Self, String> {
        let chain = CertificateDer::pem_slice_iter(certificates.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| error.to_string())?;
        let first = chain.first().ok_or("it has no certificate")?;
        let life = Life::of(first).ok_or("its certificate cannot be read")?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| format!("its key: {error}"))?;
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| error.to_string())?;
        Ok(Self { key: Arc::new(key), life, replaced: CancellationToken::new() })
    }

    /// Whether it is good at that time.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.life.holds(now)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }
}

/// The present certificate, for connections.
#[derive(Clone, Debug)]
pub struct Identity(watch::Receiver<Option<Arc<Shown>>>);

/// Where the present certificate is set.
#[derive(Debug)]
pub struct IdentitySource(watch::Sender<Option<Arc<Shown>>>);

impl Identity {
    /// One that begins with this certificate, or without.
    pub fn new(shown: Option<Shown>) -> (IdentitySource, Self) {
        if let Some(shown) = &shown {
            metrics::CLIENT_CERTIFICATE_TTL.set(shown.life.to.as_second());
        }
        let (sender, receiver) = watch::channel(shown.map(Arc::new));
        (IdentitySource(sender), Self(receiver))
    }

    /// Waits until there is one, and returns what tells of its end.
    pub(in crate::upstream) async fn wait(&self) -> Option<CancellationToken> {
        let mut receiver = self.0.clone();
        let shown = receiver.wait_for(Option::is_some).await.ok()?;
        shown.as_ref().map(|shown| shown.replaced.clone())
    }

    /// Waits until there is one.
    pub async fn is_there(&self) {
        if self.wait().await.is_none() {
            // Nobody will set one any more: the agent ends.
            std::future::pending::<()>().await;
        }
    }

    pub(super) fn present(&self) -> Option<Arc<Shown>> {
        self.0.borrow().clone()
    }

    /// Waits for another than the present one.
    pub(super) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl IdentitySource {
    /// From now on this one is shown, and connections that showed another end (A17.2).
    pub fn set(&self, shown: Shown) {
        let before = self.present();
        if before.as_ref().is_some_and(|before| before.is_same(&shown)) {
            return;
        }
        metrics::CLIENT_CERTIFICATE_TTL.set(shown.life.to.as_second());
        self.0.send_replace(Some(Arc::new(shown)));
        if let Some(before) = before {
            before.replaced.cancel();
        }
    }

    pub(super) fn present(&self) -> Option<Arc<Shown>> {
        self.0.borrow().clone()
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let key = self.present()?.key.clone();
        key.key.choose_scheme(schemes).is_some().then_some(key)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["a".into()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[tokio::test]
    async fn a_replaced_certificate_ends_its_connections() {
        // A17.2
        let (source, identity) = Identity::new(None);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), identity.wait()).await.is_err());
        let (certificate, key) = made();
        source.set(Shown::from_pem(&certificate, &key).expect("a pair"));
        let first = identity.wait().await.expect("there");
        source.set(Shown::from_pem(&certificate, &key).expect("a pair"));
        assert!(!first.is_cancelled(), "the same again is no change");
        let (certificate, other) = made();
        assert!(Shown::from_pem(&certificate, &key).is_err(), "a key of another certificate");
        source.set(Shown::from_pem(&certificate, &other).expect("a pair"));
        assert!(first.is_cancelled());
        assert!(!identity.wait().await.expect("there").is_cancelled());
        assert!(Shown::from_pem("", &key).is_err());
    }
}
