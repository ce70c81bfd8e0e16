//! TLS as the node serves it: 1.2 at least, a client that shows a certificate must show one of ours, and files that change on disk count from
//! the next connection on (A17.5).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{NamedGroup, RootCertStore, ServerConfig as RustlsConfig, SupportedProtocolVersion, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use stoker_model::handle::PemPair;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use super::certificate::{Pair, certificates, load, load_or_make, wrong};
use super::{ServerConfig, ServerError, ServingCertificate};
use crate::clock::Now;

/// How often files are looked at, at most; not at all while nobody connects.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the operator says of TLS, in kubelet's words; empty: the defaults.
#[derive(Clone, Debug, Default)]
pub struct TlsRules {
    /// `VersionTLS12` or `VersionTLS13`.
    pub min_version: String,
    /// Go's names of suites for TLS 1.2; those of 1.3 cannot be chosen.
    pub cipher_suites: Vec<String>,
    /// Numbers of key exchange groups.
    pub curves: Vec<i32>,
}

/// Makes the TLS of each connection.
pub(super) struct Tls {
    certificate: ServingCertificate,
    client_ca: Option<PathBuf>,
    provider: Arc<CryptoProvider>,
    versions: Vec<&'static SupportedProtocolVersion>,
    state: Mutex<State>,
}

struct State {
    looked: Duration,
    seen: Seen,
    config: Arc<RustlsConfig>,
}

/// What the present configuration was made from.
#[derive(Clone, PartialEq, Eq, Default)]
struct Seen {
    files: Vec<Option<Stamp>>,
    signed: Option<Arc<PemPair>>,
}

/// That a file is the same: device, number, size, time of change.
type Stamp = (u64, u64, u64, i64, i64);

impl Tls {
    pub(super) fn new(config: &ServerConfig, now: Now) -> Result<Self, ServerError> {
        let (provider, versions) = chosen(&config.tls)?;
        let empty = RustlsConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(NoCertificate));
        let state = State { looked: now.monotonic, seen: Seen::default(), config: Arc::new(empty) };
        let made = Self {
            certificate: config.certificate.clone(),
            client_ca: config.client_ca.clone(),
            provider,
            versions,
            state: Mutex::new(state),
        };
        let seen = made.look();
        let first = made.build(&seen, now)?;
        *made.state.lock().unwrap_or_else(PoisonError::into_inner) =
            State { looked: now.monotonic, seen, config: Arc::new(first) };
        Ok(made)
    }

    /// For one connection.
    pub(super) fn acceptor(&self, now: Now) -> TlsAcceptor {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = self.signed() != state.seen.signed;
        if is_new || now.monotonic.saturating_sub(state.looked) >= LOOK_AGAIN {
            state.looked = now.monotonic;
            let seen = self.look();
            if seen != state.seen {
                match self.build(&seen, now) {
                    Ok(config) => {
                        info!("certificate or client CA of the node's API have changed");
                        state.config = Arc::new(config);
                    }
                    Err(error) => warn!(%error, "serving with the certificate and client CA that were there before"),
                }
                state.seen = seen;
            }
        }
        TlsAcceptor::from(state.config.clone())
    }

    fn signed(&self) -> Option<Arc<PemPair>> {
        match &self.certificate {
            ServingCertificate::Signed(feed) => feed.borrow().clone(),
            _ => None,
        }
    }

    fn look(&self) -> Seen {
        let mut files: Vec<&Path> = self.client_ca.iter().map(PathBuf::as_path).collect();
        if let ServingCertificate::Files { certificate, key } = &self.certificate {
            files.extend([certificate.as_path(), key.as_path()]);
        }
        let stamp = |path: &&Path| -> Option<Stamp> {
            let found = fs::metadata(path).ok()?;
            Some((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
        };
        Seen { files: files.iter().map(stamp).collect(), signed: self.signed() }
    }

    fn build(&self, seen: &Seen, now: Now) -> Result<RustlsConfig, ServerError> {
        let builder = RustlsConfig::builder_with_provider(self.provider.clone());
        let builder = builder.with_protocol_versions(&self.versions).map_err(tls)?;
        let builder = match &self.client_ca {
            Some(path) => builder.with_client_cert_verifier(client_verifier(path, self.provider.clone())?),
            None => builder.with_no_client_auth(),
        };
        let pair = match &self.certificate {
            ServingCertificate::Files { certificate, key } => Some(load(certificate, key)?),
            ServingCertificate::SelfSigned { directory, node, names } => {
                Some(load_or_make(directory, node, names, now)?)
            }
            ServingCertificate::Signed(_) => seen.signed.as_deref().map(parsed).transpose()?,
        };
        let mut config = match pair {
            Some((chain, key)) => builder.with_single_cert(chain, key).map_err(tls)?,
            None => builder.with_cert_resolver(Arc::new(NoCertificate)),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Ends every handshake: the cluster has not signed a certificate yet, and another would teach clients to trust what they cannot verify.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

fn tls(error: rustls::Error) -> ServerError {
    ServerError::Tls(error.to_string())
}

fn parsed(pair: &PemPair) -> Result<Pair, ServerError> {
    let bad = |error: rustls_pki_types::pem::Error| ServerError::Tls(format!("the signed certificate: {error}"));
    let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    Ok((chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).map_err(bad)?))
}

fn client_verifier(path: &Path, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, ServerError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| wrong(path, error))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(path, error))
}

/// Suites that Go knows and that are no good: without forward secrecy or without authenticated encryption.
const WEAK: &[&str] = &[
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];
/// Groups that Go knows and our TLS does not: P-521 and the hybrid with ML-KEM.
const OTHER_GROUPS: &[i32] = &[25, 4588];

/// What the rules leave of ring's suites and groups, and of the versions (A17.5).
fn chosen(rules: &TlsRules) -> Result<(Arc<CryptoProvider>, Vec<&'static SupportedProtocolVersion>), ServerError> {
    let mut provider = ring::default_provider();
    let versions = match rules.min_version.as_str() {
        "" | "VersionTLS12" => vec![&version::TLS13, &version::TLS12],
        "VersionTLS13" => vec![&version::TLS13],
        "VersionTLS10" | "VersionTLS11" => {
            warn!("tlsMinVersion is {}; nothing below 1.2 is spoken here", rules.min_version);
            vec![&version::TLS13, &version::TLS12]
        }
        other => {
            return Err(ServerError::Tls(format!("tlsMinVersion is {other:?}, must be VersionTLS12 or VersionTLS13")));
        }
    };
    if !rules.cipher_suites.is_empty() {
        // Go's old names of two suites.
        let full = |name: &String| {
            name.strip_suffix("_CHACHA20_POLY1305").map_or_else(|| name.clone(), |_| format!("{name}_SHA256"))
        };
        let wanted: Vec<String> = rules.cipher_suites.iter().map(full).collect();
        let known: Vec<String> = provider.cipher_suites.iter().map(|suite| go_name(*suite)).collect();
        for name in &wanted {
            if WEAK.contains(&name.as_str()) {
                warn!("tlsCipherSuites: {name} is not spoken here, for it is weak; the others of the list are");
            } else if !known.contains(name) {
                return Err(ServerError::Tls(format!(
                    "tlsCipherSuites: {name} is no suite; known are {}",
                    known.join(", ")
                )));
            }
        }
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || wanted.contains(&go_name(*suite)));
        if versions.len() > 1 && provider.cipher_suites.iter().all(|suite| suite.tls13().is_some()) {
            return Err(ServerError::Tls("tlsCipherSuites leaves no suite for TLS 1.2".to_owned()));
        }
    }
    if !rules.curves.is_empty() {
        let mut groups = Vec::new();
        for number in &rules.curves {
            let wanted = u16::try_from(*number).map(NamedGroup::from).ok();
            match provider.kx_groups.iter().find(|group| Some(group.name()) == wanted) {
                Some(group) => groups.push(*group),
                None if OTHER_GROUPS.contains(number) => {
                    warn!("tlsCurvePreferences: group {number} is not spoken here; the others of the list are");
                }
                None => {
                    return Err(ServerError::Tls(format!(
                        "tlsCurvePreferences: {number} is no group; known are 23, 24, 29"
                    )));
                }
            }
        }
        if groups.is_empty() {
            return Err(ServerError::Tls("tlsCurvePreferences leaves no group; add 23, 24 or 29".to_owned()));
        }
        provider.kx_groups = groups;
    }
    Ok((Arc::new(provider), versions))
}

fn go_name(suite: rustls::SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(min_version: &str, cipher_suites: &[&str], curves: &[i32]) -> TlsRules {
        TlsRules {
            min_version: min_version.into(),
            cipher_suites: cipher_suites.iter().map(|name| (*name).to_owned()).collect(),
            curves: curves.to_vec(),
        }
    }

    #[test]
    fn versions_suites_and_groups_are_as_said() {
        // A17.5
        let names = |rules: &TlsRules| -> (Vec<String>, Vec<NamedGroup>, usize) {
            let (provider, versions) = chosen(rules).expect("good rules");
            let suites = provider.cipher_suites.iter().filter(|suite| suite.tls13().is_none());
            let groups = provider.kx_groups.iter().map(|group| group.name()).collect();
            (suites.map(|suite| go_name(*suite)).collect(), groups, versions.len())
        };
        let (suites, groups, versions) = names(&TlsRules::default());
        assert_eq!((suites.len(), groups.len(), versions), (6, 3, 2));
        // What the CIS benchmark (4.2.12) calls strong: keys for one connection only, and authenticated encryption.
        let strong =
            |name: &String| name.starts_with("TLS_ECDHE_") && (name.contains("_GCM_") || name.contains("CHACHA20"));
        assert!(suites.iter().all(strong), "{suites:?}");
        assert_eq!(names(&rules("VersionTLS13", &[], &[])).2, 1);
        assert_eq!(names(&rules("VersionTLS10", &[], &[])).2, 2);
        let one = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
        assert_eq!(names(&rules("", &[one, "TLS_RSA_WITH_AES_128_CBC_SHA"], &[])).0, [one]);
        let chacha = names(&rules("", &["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"], &[])).0;
        assert_eq!(chacha, ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"]);
        assert_eq!(names(&rules("", &[], &[4588, 24, 23])).1, [NamedGroup::secp384r1, NamedGroup::secp256r1]);
        for (bad, named) in [
            (rules("TLS1.3", &[], &[]), "tlsMinVersion"),
            (rules("", &["TLS_GOOD"], &[]), "tlsCipherSuites: TLS_GOOD"),
            (rules("", &["TLS_RSA_WITH_AES_128_CBC_SHA"], &[]), "no suite for TLS 1.2"),
            (rules("", &[], &[7]), "tlsCurvePreferences: 7"),
            (rules("", &[], &[25]), "no group"),
        ] {
            let error = chosen(&bad).expect_err(named).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
