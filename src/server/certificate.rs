//! The certificate that the node serves with: given in files, signed by the cluster, or made here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use stoker_model::handle::ServingCertificates;
use tracing::info;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ServerError;
use crate::clock::Now;

/// What a self-made certificate is good for: kubelet's also has a year.
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);

/// A self-made one that ends sooner than this is made anew.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where the serving certificate comes from.
#[derive(Debug, Clone)]
pub enum ServingCertificate {
    /// tlsCertFile and tlsPrivateKeyFile.
    Files {
        /// PEM, the server's own certificate first.
        certificate: PathBuf,
        /// PEM.
        key: PathBuf,
    },
    /// As the cluster signs it; without one nobody is served (A17.3).
    Signed(ServingCertificates),
    /// Made on first use: `kubelet.crt` and `kubelet.key` in this directory.
    SelfSigned {
        /// kubelet's `--cert-dir`.
        directory: PathBuf,
        /// The node's name.
        node: String,
        /// Its other names and addresses.
        names: Vec<String>,
    },
}

pub(super) type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads a pair of files.
pub(super) fn load(certificate: &Path, key: &Path) -> Result<Pair, ServerError> {
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error))?;
    Ok((certificates(certificate)?, key))
}

/// Reads the certificates of a file.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| wrong(path, error))?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|error| wrong(path, error))?;
    if certificates.is_empty() {
        return Err(wrong(path, "it has no certificate"));
    }
    Ok(certificates)
}

pub(super) fn wrong(path: &Path, reason: impl ToString) -> ServerError {
    ServerError::File { path: path.to_owned(), reason: reason.to_string() }
}

/// What is in the directory, or a new pair in its place.
pub(super) fn load_or_make(directory: &Path, node: &str, names: &[String], now: Now) -> Result<Pair, ServerError> {
    let (certificate, key) = (directory.join("kubelet.crt"), directory.join("kubelet.key"));
    if let Ok((chain, key)) = load(&certificate, &key)
        && is_good_for_longer(&chain, now)
        && CertifiedKey::from_der(chain.clone(), key.clone_key(), &ring::default_provider()).is_ok()
    {
        return Ok((chain, key));
    }
    let made = make(node, names, now).map_err(|error| ServerError::Tls(error.to_string()))?;
    fs::create_dir_all(directory).map_err(|error| wrong(directory, error))?;
    // The key first: a crash in between leaves a pair that does not fit, which is then made anew.
    replace(&key, &made.1, 0o600).map_err(|error| wrong(&key, error))?;
    replace(&certificate, &made.0, 0o644).map_err(|error| wrong(&certificate, error))?;
    info!(path = %certificate.display(), "made a self-signed serving certificate");
    load(&certificate, &key)
}

fn is_good_for_longer(chain: &[CertificateDer<'_>], now: Now) -> bool {
    let Some(Ok((_, certificate))) = chain.first().map(|first| X509Certificate::from_der(first)) else { return false };
    let needed = now.plus(RENEW_BEFORE).wall.as_second();
    let validity = certificate.validity();
    validity.not_before.timestamp() <= now.wall.as_second() && validity.not_after.timestamp() >= needed
}

/// Certificate and key in PEM.
fn make(node: &str, names: &[String], now: Now) -> Result<(String, String), rcgen::Error> {
    let mut all: Vec<String> = std::iter::once(node.to_owned()).chain(names.iter().cloned()).collect();
    all.sort_unstable();
    all.dedup();
    let mut params = CertificateParams::new(all)?;
    params.distinguished_name.push(DnType::CommonName, format!("{node}@{}", now.wall.as_second()));
    // An hour back, for clocks that differ.
    let hour = Duration::from_secs(3600);
    params.not_before = std::time::SystemTime::UNIX_EPOCH.into();
    params.not_before += seconds(now).saturating_sub(hour);
    params.not_after = params.not_before + hour + VALID;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Time since 1970.
fn seconds(now: Now) -> Duration {
    Duration::from_secs(u64::try_from(now.wall.as_second()).unwrap_or_default())
}

/// Writes a file so that nobody ever sees half of it, nor a key that others can read.
fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    // What a crash has left may have another mode.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_self_made_certificate_is_kept_until_it_nears_its_end() {
        // A17.3
        let directory = tempfile::tempdir().unwrap();
        let pki = directory.path().join("pki");
        let names = ["127.0.0.1".to_owned(), "node.example".to_owned()];
        let now = Clock.now();
        let first = load_or_make(&pki, "node", &names, now).unwrap().0;
        let mode = fs::metadata(pki.join("kubelet.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(load_or_make(&pki, "node", &names, now).unwrap().0, first);
        let later = now.plus(VALID - RENEW_BEFORE + Duration::from_secs(1));
        assert_ne!(load_or_make(&pki, "node", &names, later).unwrap().0, first);
        for key in ["rubbish".to_owned(), KeyPair::generate().unwrap().serialize_pem()] {
            fs::write(pki.join("kubelet.key"), key).unwrap();
            let (chain, key) = load_or_make(&pki, "node", &names, later).unwrap();
            CertifiedKey::from_der(chain, key, &ring::default_provider()).expect("a pair");
        }
    }
}
