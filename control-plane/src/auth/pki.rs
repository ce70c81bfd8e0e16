//! The cluster's certificate authority and the credentials that it issues, kept under `<data-dir>/pki`.
//!
//! Every file is written atomically and checked at each start: what is missing, broken, about to expire or made for
//! other addresses is issued anew. The CA itself is made once: its key is written before its certificate, and a key
//! without a certificate gets a new one, so a crash between the two loses nothing.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{Span, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::certify::{self, CertifyError, Terms};
use super::files;
use super::kubeconfig::{embedded, kubeconfig};
use super::token::{TokenError, Tokens};

/// The name in the CA's certificate, as kubeadm writes it.
const CA_NAME: &str = "kubernetes";
/// And that of the CA of front proxies.
const FRONT_PROXY_CA_NAME: &str = "front-proxy-ca";
/// The front proxy that is believed who asks (C5.17).
pub(super) const FRONT_PROXY_CLIENT: &str = "front-proxy-client";
/// Ten years, as kubeadm gives a CA.
const CA_DAYS: i64 = 3650;
/// One year, as kubeadm gives leaf certificates.
const LEAF_DAYS: i64 = 365;
/// Leaves with less than this left are issued anew at a start.
const RENEW_WITHIN_DAYS: i64 = 90;
/// Cluster name in kubeconfigs.
const CLUSTER: &str = "stoker";

/// What went wrong with the cluster's credentials.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("cannot read or write {path}: make the data directory writable for this user ({source})", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The CA's certificate is there and its key is not.
    #[error(
        "{path} is missing though the CA's certificate exists: restore it, or remove the whole pki directory to start a new cluster identity",
        path = .0.display()
    )]
    CaKeyMissing(PathBuf),
    /// A PEM file that must not be replaced silently cannot be used.
    #[error("{path} cannot be used ({reason}): restore it, or remove the pki directory to start a new cluster identity", path = path.display())]
    Broken {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("cannot issue a certificate for {name}")]
    Issue {
        /// Its common name.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// The service-account key cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// A certificate and its private key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct CertifiedPem {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS #8.
    pub key: String,
}

impl std::fmt::Debug for CertifiedPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertifiedPem").field("certificate", &self.certificate).field("key", &"…").finish()
    }
}

/// Where credentials live and for which addresses they are made.
#[derive(Clone, Debug)]
pub struct PkiConfig {
    /// The control plane's directory; `pki/` and the kubeconfigs go below it.
    pub data_dir: PathBuf,
    /// The address that nodes and users reach the API server at.
    pub advertise_address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The first address of the service range: the `kubernetes` service.
    pub service_ip: IpAddr,
    /// More names or addresses for the serving certificate.
    pub extra_names: Vec<String>,
    /// The cluster's DNS domain, usually `cluster.local`.
    pub cluster_domain: String,
}

impl PkiConfig {
    /// The URL in kubeconfigs.
    pub fn server(&self) -> String {
        match self.advertise_address {
            IpAddr::V4(ip) => format!("https://{ip}:{}", self.port),
            IpAddr::V6(ip) => format!("https://[{ip}]:{}", self.port),
        }
    }

    /// `iss` of service-account tokens, also their default audience.
    pub fn token_issuer(&self) -> String {
        format!("https://kubernetes.default.svc.{}", self.cluster_domain)
    }

    fn serving_names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).to_vec();
        names.push(format!("kubernetes.default.svc.{}", self.cluster_domain));
        for ip in [self.advertise_address, IpAddr::from([127, 0, 0, 1]), self.service_ip] {
            names.push(ip.to_string());
        }
        names.extend(self.extra_names.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

/// The cluster's credentials, all present and valid.
#[derive(Debug)]
pub struct Pki {
    config: PkiConfig,
    ca_certificate: String,
    ca: Issuer<'static, KeyPair>,
    serving: CertifiedPem,
    kubelet_client: CertifiedPem,
    front_proxy_ca: String,
    front_proxy_client: CertifiedPem,
    tokens: Arc<Tokens>,
}

/// What a leaf certificate says.
struct Leaf<'a> {
    name: &'a str,
    organization: Option<&'a str>,
    alternatives: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
}

impl Pki {
    /// Makes whatever is missing and reads the rest; a second call with the same configuration changes no file.
    pub fn ensure(config: &PkiConfig, now: Timestamp) -> Result<Self, PkiError> {
        let dir = config.data_dir.join("pki");
        for private in [&config.data_dir, &dir] {
            files::private_dir(private).map_err(|source| PkiError::File { path: private.clone(), source })?;
        }
        let (ca_certificate, ca) = ensure_ca(&dir, "ca", CA_NAME, now)?;
        let (front_proxy_ca, proxy_ca) = ensure_ca(&dir, "front-proxy-ca", FRONT_PROXY_CA_NAME, now)?;
        let leaf = client_leaf(FRONT_PROXY_CLIENT, None);
        let front_proxy_client = ensure_leaf(&dir, FRONT_PROXY_CLIENT, (&front_proxy_ca, &proxy_ca), now, &leaf)?;
        let tokens = Arc::new(ensure_tokens(&dir, config)?);
        let serving = ensure_leaf(
            &dir,
            "apiserver",
            (&ca_certificate, &ca),
            now,
            &Leaf {
                name: "kube-apiserver",
                organization: None,
                alternatives: config.serving_names(),
                usage: ExtendedKeyUsagePurpose::ServerAuth,
            },
        )?;
        let kubelet_client = ensure_leaf(
            &dir,
            "apiserver-kubelet-client",
            (&ca_certificate, &ca),
            now,
            &Leaf {
                name: "kube-apiserver-kubelet-client",
                organization: Some("kubeadm:cluster-admins"),
                alternatives: Vec::new(),
                usage: ExtendedKeyUsagePurpose::ClientAuth,
            },
        )?;
        let config = config.clone();
        let pki =
            Self { config, ca_certificate, ca, serving, kubelet_client, front_proxy_ca, front_proxy_client, tokens };
        pki.ensure_kubeconfig(&pki.admin_kubeconfig_path(), "kubernetes-admin", "system:masters", now)?;
        Ok(pki)
    }

    /// The CA's certificate, PEM: what clients trust and what client certificates are checked against.
    pub fn ca_certificate(&self) -> &str {
        &self.ca_certificate
    }

    /// The certificate, PEM, of those who may say in whose name they ask (C5.17).
    pub fn front_proxy_ca(&self) -> &str {
        &self.front_proxy_ca
    }

    /// What a front proxy shows.
    pub const fn front_proxy_client(&self) -> &CertifiedPem {
        &self.front_proxy_client
    }

    /// What the API server shows its clients.
    pub const fn serving(&self) -> &CertifiedPem {
        &self.serving
    }

    /// What the API server shows to nodes (`kube-apiserver-kubelet-client`).
    pub const fn kubelet_client(&self) -> &CertifiedPem {
        &self.kubelet_client
    }

    /// Signs and verifies service-account tokens.
    pub fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens)
    }

    /// The file of the administrator's kubeconfig.
    pub fn admin_kubeconfig_path(&self) -> PathBuf {
        self.config.data_dir.join("admin.kubeconfig")
    }

    /// The file of a node's kubeconfig.
    pub fn node_kubeconfig_path(&self, node: &str) -> PathBuf {
        self.config.data_dir.join(format!("node-{node}.kubeconfig"))
    }

    /// Makes sure that a node's kubeconfig (`system:node:<name>` in `system:nodes`) is there and valid; returns its path.
    pub fn ensure_node_kubeconfig(&self, node: &str, now: Timestamp) -> Result<PathBuf, PkiError> {
        let path = self.node_kubeconfig_path(node);
        self.ensure_kubeconfig(&path, &format!("system:node:{node}"), "system:nodes", now)?;
        Ok(path)
    }

    /// A serving certificate for a node's HTTPS port, signed by the CA; not written anywhere.
    pub fn node_serving(&self, node: &str, names: &[String], now: Timestamp) -> Result<CertifiedPem, PkiError> {
        let mut alternatives = vec![node.to_owned()];
        alternatives.extend(names.iter().cloned());
        issue(
            &self.ca,
            now,
            &Leaf {
                name: &format!("system:node:{node}"),
                organization: Some("system:nodes"),
                alternatives,
                usage: ExtendedKeyUsagePurpose::ServerAuth,
            },
        )
    }

    /// A client certificate for any user, signed by the CA; not written anywhere.
    pub fn client(&self, name: &str, group: Option<&str>, now: Timestamp) -> Result<CertifiedPem, PkiError> {
        issue(&self.ca, now, &client_leaf(name, group))
    }

    /// Signs a certificate request (DER) whose signature was checked; answers with PEM.
    pub fn sign_request(&self, request: &[u8], terms: Terms<'_>) -> Result<String, CertifyError> {
        certify::sign(&self.ca_certificate, &self.ca, request, terms)
    }

    /// The URL at which nodes and users reach the API server.
    pub fn server(&self) -> String {
        self.config.server()
    }

    fn ensure_kubeconfig(&self, path: &Path, user: &str, group: &str, now: Timestamp) -> Result<(), PkiError> {
        let file = |source| PkiError::File { path: path.to_owned(), source };
        let server = self.config.server();
        let leaf = client_leaf(user, Some(group));
        if let Some(text) = files::read(path).map_err(file)?
            && let Some((certificate, at)) = embedded(&text)
            && at == server
            && is_usable(&certificate, &leaf, self.ca_certificate(), now)
        {
            return Ok(());
        }
        let credential = issue(&self.ca, now, &leaf)?;
        let text = kubeconfig(CLUSTER, &server, &self.ca_certificate, user, &credential);
        files::write(path, &text, 0o600).map_err(file)
    }
}

fn client_leaf<'a>(name: &'a str, organization: Option<&'a str>) -> Leaf<'a> {
    Leaf { name, organization, alternatives: Vec::new(), usage: ExtendedKeyUsagePurpose::ClientAuth }
}

fn ensure_ca(
    dir: &Path,
    stem: &str,
    name: &str,
    now: Timestamp,
) -> Result<(String, Issuer<'static, KeyPair>), PkiError> {
    let (key_path, certificate_path) = (dir.join(format!("{stem}.key")), dir.join(format!("{stem}.crt")));
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| PkiError::File { path, source }
    };
    let stored = files::read(&certificate_path).map_err(file(&certificate_path))?;
    let key = match files::read(&key_path).map_err(file(&key_path))? {
        Some(pem) => KeyPair::from_pem(&pem)
            .map_err(|error| PkiError::Broken { path: key_path.clone(), reason: error.to_string() })?,
        None if stored.is_some() => return Err(PkiError::CaKeyMissing(key_path)),
        None => {
            let key = new_key(name)?;
            files::write(&key_path, &key.serialize_pem(), 0o600).map_err(file(&key_path))?;
            key
        }
    };
    let certificate = match stored {
        Some(pem) => {
            let broken = |reason: &str| PkiError::Broken { path: certificate_path.clone(), reason: reason.to_owned() };
            let der = certificate_der(&pem).ok_or_else(|| broken("it is no PEM certificate"))?;
            let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| broken("it is no X.509 certificate"))?;
            if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
                return Err(broken("it does not belong to the key beside it"));
            }
            pem
        }
        None => {
            let pem = self_signed_ca(&key, name, now)?;
            files::write(&certificate_path, &pem, 0o644).map_err(file(&certificate_path))?;
            pem
        }
    };
    let issuer = Issuer::from_ca_cert_pem(&certificate, key)
        .map_err(|error| PkiError::Broken { path: certificate_path, reason: error.to_string() })?;
    Ok((certificate, issuer))
}

fn self_signed_ca(key: &KeyPair, name: &str, now: Timestamp) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
    set_validity(&mut params, now, CA_DAYS);
    let certificate = params.self_signed(key).map_err(|source| PkiError::Issue { name: name.into(), source })?;
    Ok(certificate.pem())
}

fn ensure_tokens(dir: &Path, config: &PkiConfig) -> Result<Tokens, PkiError> {
    let path = dir.join("sa.key");
    let file = |source| PkiError::File { path: path.clone(), source };
    let key = match files::read(&path).map_err(file)? {
        Some(pem) => KeyPair::from_pem(&pem)
            .map_err(|error| PkiError::Broken { path: path.clone(), reason: error.to_string() })?,
        None => {
            let key = new_key("service accounts")?;
            files::write(&path, &key.serialize_pem(), 0o600).map_err(file)?;
            key
        }
    };
    Ok(Tokens::new(&key, config.token_issuer(), &config.server())?)
}

/// Reads `<stem>.crt` and `<stem>.key`, and issues both anew unless they are what `leaf` asks for.
fn ensure_leaf(
    dir: &Path,
    stem: &str,
    (ca_pem, ca): (&str, &Issuer<'static, KeyPair>),
    now: Timestamp,
    leaf: &Leaf<'_>,
) -> Result<CertifiedPem, PkiError> {
    let (key_path, certificate_path) = (dir.join(format!("{stem}.key")), dir.join(format!("{stem}.crt")));
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| PkiError::File { path, source }
    };
    let key = files::read(&key_path).map_err(file(&key_path))?;
    let certificate = files::read(&certificate_path).map_err(file(&certificate_path))?;
    if let (Some(key), Some(certificate)) = (key, certificate)
        && belong_together(&certificate, &key)
        && is_usable(&certificate, leaf, ca_pem, now)
    {
        return Ok(CertifiedPem { certificate, key });
    }
    let issued = issue(ca, now, leaf)?;
    files::write(&key_path, &issued.key, 0o600).map_err(file(&key_path))?;
    files::write(&certificate_path, &issued.certificate, 0o644).map_err(file(&certificate_path))?;
    Ok(issued)
}

fn new_key(name: &str) -> Result<KeyPair, PkiError> {
    KeyPair::generate().map_err(|source| PkiError::Issue { name: name.to_owned(), source })
}

fn issue(ca: &Issuer<'static, KeyPair>, now: Timestamp, leaf: &Leaf<'_>) -> Result<CertifiedPem, PkiError> {
    let failed = |source| PkiError::Issue { name: leaf.name.to_owned(), source };
    let key = new_key(leaf.name)?;
    // `new` reads text that is an address as an address.
    let mut params = CertificateParams::new(leaf.alternatives.clone()).map_err(failed)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(organization) = leaf.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, leaf.name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![leaf.usage.clone()];
    params.use_authority_key_identifier_extension = true;
    debug_assert!(params.subject_alt_names.iter().all(|n| matches!(n, SanType::DnsName(_) | SanType::IpAddress(_))));
    set_validity(&mut params, now, LEAF_DAYS);
    let certificate = params.signed_by(&key, ca).map_err(failed)?;
    Ok(CertifiedPem { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// From the day before (clocks differ) until so many days from now.
fn set_validity(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let today = now.to_zoned(TimeZone::UTC).date();
    let day = |offset: i64| {
        let date = today.saturating_add(Span::new().days(offset));
        let part = |n: i8| u8::try_from(n).unwrap_or(1);
        date_time_ymd(i32::from(date.year()), part(date.month()), part(date.day()))
    };
    params.not_before = day(-1);
    params.not_after = day(days);
}

/// `sha256:…` of a CA's public key, by which a node that joins knows its cluster (C6.4).
pub fn ca_hash(pem: &str) -> Option<String> {
    let der = certificate_der(pem)?;
    let (_, ca) = X509Certificate::from_der(&der).ok()?;
    Some(format!("sha256:{}", hex::encode(Sha256::digest(ca.public_key().raw))))
}

pub(super) fn certificate_der(pem: &str) -> Option<Vec<u8>> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    Some(pem.contents)
}

fn belong_together(certificate: &str, key: &str) -> bool {
    let Ok(key) = KeyPair::from_pem(key) else { return false };
    let Some(der) = certificate_der(certificate) else { return false };
    X509Certificate::from_der(&der)
        .is_ok_and(|(_, parsed)| parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

/// Whether a certificate says what `leaf` asks for, comes from this CA and has enough time left.
fn is_usable(certificate: &str, leaf: &Leaf<'_>, ca: &str, now: Timestamp) -> bool {
    let (Some(der), Some(ca_der)) = (certificate_der(certificate), certificate_der(ca)) else { return false };
    let (Ok((_, parsed)), Ok((_, ca))) = (X509Certificate::from_der(&der), X509Certificate::from_der(&ca_der)) else {
        return false;
    };
    let renew_at = now.as_second() + RENEW_WITHIN_DAYS * 86_400;
    let name = parsed.subject().iter_common_name().next().and_then(|n| n.as_str().ok());
    let organization = parsed.subject().iter_organization().next().and_then(|n| n.as_str().ok());
    name == Some(leaf.name)
        && organization == leaf.organization
        && parsed.validity().not_after.timestamp() > renew_at
        && parsed.issuer() == ca.subject()
        && signed_by(&parsed, &ca)
        && alternatives_of(&parsed) == leaf.alternatives
}

pub(super) fn signed_by(certificate: &X509Certificate<'_>, ca: &X509Certificate<'_>) -> bool {
    let key = ring::signature::UnparsedPublicKey::new(
        &ring::signature::ECDSA_P256_SHA256_ASN1,
        ca.public_key().subject_public_key.data.as_ref(),
    );
    key.verify(certificate.tbs_certificate.as_ref(), certificate.signature_value.data.as_ref()).is_ok()
}

fn alternatives_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut names: Vec<String> = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .into_iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(dns) => Some((*dns).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            },
            _ => None,
        })
        .collect();
    names.sort();
    names
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    pub(in crate::auth) fn config(dir: &Path) -> PkiConfig {
        PkiConfig {
            data_dir: dir.join("data"),
            advertise_address: IpAddr::from([192, 0, 2, 7]),
            port: 6443,
            service_ip: IpAddr::from([10, 96, 0, 1]),
            extra_names: vec!["api.example.org".into()],
            cluster_domain: "cluster.local".into(),
        }
    }

    pub(in crate::auth) fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// Every file below `dir` with its content.
    fn snapshot(dir: &Path) -> Vec<(PathBuf, String)> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                all.extend(snapshot(&path));
            } else {
                let content = std::fs::read_to_string(&path).unwrap();
                all.push((path, content));
            }
        }
        all.sort();
        all
    }

    #[test]
    fn a_second_start_changes_nothing_and_files_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let now = at("2026-01-01T10:00:00Z");
        Pki::ensure(&config, now).unwrap().ensure_node_kubeconfig("n1", now).unwrap();
        let first = snapshot(&config.data_dir);
        Pki::ensure(&config, now).unwrap().ensure_node_kubeconfig("n1", now).unwrap();
        assert_eq!(first, snapshot(&config.data_dir));
        for (path, _) in first {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            let expected = if path.extension().is_some_and(|e| e == "crt") { 0o644 } else { 0o600 };
            assert_eq!(mode, expected, "{path:?}");
        }
        let mode = std::fs::metadata(config.data_dir.join("pki")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700);
    }

    /// Whatever file a crash kept from being written, the next start brings it back without a new CA.
    #[test]
    fn every_missing_file_but_the_cas_key_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let now = at("2026-01-01T10:00:00Z");
        Pki::ensure(&config, now).unwrap();
        for (path, _) in snapshot(&config.data_dir) {
            if path.to_string_lossy().ends_with("ca.key") {
                continue;
            }
            std::fs::remove_file(&path).unwrap();
            Pki::ensure(&config, now).unwrap();
            assert!(path.exists(), "{path:?}");
        }
        let ca_key = config.data_dir.join("pki/ca.key");
        std::fs::remove_file(&ca_key).unwrap();
        assert!(matches!(Pki::ensure(&config, now), Err(PkiError::CaKeyMissing(path)) if path == ca_key));
    }

    #[test]
    fn the_serving_certificate_follows_the_addresses_and_the_calendar() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        let now = at("2026-01-01T10:00:00Z");
        let first = Pki::ensure(&config, now).unwrap();
        let der = certificate_der(&first.serving().certificate).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let names = alternatives_of(&parsed);
        for name in ["192.0.2.7", "127.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc", "api.example.org"] {
            assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
        }
        config.advertise_address = IpAddr::from([192, 0, 2, 8]);
        let moved = Pki::ensure(&config, now).unwrap();
        assert_ne!(first.serving(), moved.serving());
        assert_eq!(first.ca_certificate(), moved.ca_certificate());
        assert_eq!(first.kubelet_client(), moved.kubelet_client());
        let admin = std::fs::read_to_string(moved.admin_kubeconfig_path()).unwrap();
        assert!(admin.contains("server: https://192.0.2.8:6443"));
        let late = Pki::ensure(&config, at("2026-11-01T10:00:00Z")).unwrap();
        assert_ne!(late.serving(), moved.serving());
        assert_ne!(late.kubelet_client(), moved.kubelet_client());
    }

    #[test]
    fn a_foreign_certificate_authority_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let now = at("2026-01-01T10:00:00Z");
        Pki::ensure(&config, now).unwrap();
        let other = KeyPair::generate().unwrap();
        std::fs::write(config.data_dir.join("pki/ca.key"), other.serialize_pem()).unwrap();
        assert!(matches!(Pki::ensure(&config, now), Err(PkiError::Broken { .. })));
    }
}
