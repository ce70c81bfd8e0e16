//! How a machine that knows nothing but an address and a token comes to trust a cluster: `kube-public/cluster-info`, signed with the
//! token and checked against pinned CA keys, as `kubeadm join` does it (C6.1, C6.4).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use ring::hmac;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use stoker_model::handle::ApiError;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::client::{ApiServer, ConnectError};

const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const KUBELET_CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/kubelet-config";

/// How often, and at which distance, a signature that is not there yet is looked for.
const SIGNING_TRIES: u32 = 10;
const SIGNING_PAUSE: Duration = Duration::from_millis(500);

/// Why a cluster is not trusted, or not found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The token is none.
    #[error(
        "the token must look like abcdef.0123456789abcdef: kubeadm token create, or stoker-control-plane token create, makes one"
    )]
    Token,
    /// The hash is none.
    #[error("--ca-hash {0:?} must be sha256: and 64 hexadecimal digits")]
    Hash(String),
    /// The address is none.
    #[error("{address:?} is no address of an API server: write https://HOST:6443")]
    Address {
        /// What was said.
        address: String,
    },
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The API server does not answer as it should.
    #[error("{what}: {source}")]
    Api {
        /// What was asked for.
        what: &'static str,
        /// The answer.
        source: ApiError,
    },
    /// Nobody vouches with this token.
    #[error("cluster-info is not signed with the token {id}: it has ended or was deleted, or its usages lack signing")]
    NotSigned {
        /// The public half of the token.
        id: String,
    },
    /// Somebody else answered.
    #[error("the signature of cluster-info is wrong: the token's secret is another one, or this is not the cluster")]
    WrongSignature,
    /// Somebody else's CA.
    #[error("no CA of cluster-info has a key with a hash that --ca-hash names: this is not the cluster; found {found}")]
    NotPinned {
        /// The hashes of what is there.
        found: String,
    },
    /// The document is broken.
    #[error("cluster-info cannot be used: {0}")]
    Broken(String),
    /// Between two requests it became another.
    #[error("cluster-info was another when it was read over a verified connection: try again")]
    Changed,
}

/// A bootstrap token: a public name and a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl std::str::FromStr for Token {
    type Err = DiscoveryError;

    fn from_str(text: &str) -> Result<Self, DiscoveryError> {
        let fits = |part: &str, length| {
            part.len() == length && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        match text.split_once('.') {
            Some((id, secret)) if fits(id, 6) && fits(secret, 16) => {
                Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
            }
            _ => Err(DiscoveryError::Token),
        }
    }
}

impl Token {
    /// As it is sent.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

/// The SHA-256 of a CA's public key, as `kubeadm` prints it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pin([u8; 32]);

impl std::str::FromStr for Pin {
    type Err = DiscoveryError;

    fn from_str(text: &str) -> Result<Self, DiscoveryError> {
        let digits = text.strip_prefix("sha256:").ok_or_else(|| DiscoveryError::Hash(text.to_owned()))?;
        let mut hash = [0; 32];
        hex::decode_to_slice(digits, &mut hash).map_err(|_| DiscoveryError::Hash(text.to_owned()))?;
        Ok(Self(hash))
    }
}

/// A cluster that is trusted from now on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundCluster {
    /// URL of the API server.
    pub server: String,
    /// Its CA, in PEM.
    pub ca: String,
}

/// Finds the cluster at `address`, and trusts it when the token has signed what it says of itself and, unless `pins` is empty, one of
/// its CAs has a pinned key.
///
/// # Errors
/// Says which check failed.
pub async fn discover(address: &str, token: &Token, pins: &[Pin]) -> Result<FoundCluster, DiscoveryError> {
    let url: http::Uri = address.parse().map_err(|_| DiscoveryError::Address { address: address.to_owned() })?;
    if url.scheme() != Some(&http::uri::Scheme::HTTPS) || url.host().is_none() {
        return Err(DiscoveryError::Address { address: address.to_owned() });
    }
    let mut blind = kube::Config::new(url);
    // The signature vouches for the answer; then it is asked for again with the CA that it brought.
    blind.accept_invalid_certs = true;
    let asked = |source| DiscoveryError::Api { what: "cluster-info cannot be read", source };
    let blind = ApiServer::new(&blind)?;
    let mut tries = 0;
    let (first, cluster) = loop {
        let first: ConfigMap = blind.get(CLUSTER_INFO).await.map_err(asked)?;
        match trusted(&first, token, pins) {
            // A controller signs for a new token, soon.
            Err(DiscoveryError::NotSigned { .. }) if tries < SIGNING_TRIES => {
                tries += 1;
                tokio::time::sleep(SIGNING_PAUSE).await;
            }
            other => break (first, other?),
        }
    };
    let again: ConfigMap = ApiServer::new(&config(&cluster, None)?)?.get(CLUSTER_INFO).await.map_err(asked)?;
    if again.data.as_ref().and_then(|data| data.get("kubeconfig"))
        != first.data.as_ref().and_then(|data| data.get("kubeconfig"))
    {
        return Err(DiscoveryError::Changed);
    }
    Ok(cluster)
}

/// A connection to the found cluster, with the token's rights.
///
/// # Errors
/// When the address or the CA cannot be used.
pub fn connect_with_token(cluster: &FoundCluster, token: &Token) -> Result<ApiServer, DiscoveryError> {
    Ok(ApiServer::new(&config(cluster, Some(token))?)?)
}

/// The KubeletConfiguration that the cluster has for its nodes; `None` where it has none, as `kubeadm` alone makes it.
///
/// # Errors
/// As the API server answers.
pub async fn kubelet_configuration(api: &ApiServer) -> Result<Option<String>, DiscoveryError> {
    match api.get::<ConfigMap>(KUBELET_CONFIG).await {
        Ok(map) => Ok(map.data.and_then(|mut data| data.remove("kubelet"))),
        Err(ApiError::NotFound(_)) => Ok(None),
        Err(source) => Err(DiscoveryError::Api { what: "kubelet-config cannot be read", source }),
    }
}

/// Whether there is a node of that name that is alive, so that another must not take its place (C6.4).
///
/// # Errors
/// As the API server answers.
pub async fn is_taken(api: &ApiServer, name: &str) -> Result<bool, DiscoveryError> {
    match api.get::<Node>(&format!("/api/v1/nodes/{name}")).await {
        Ok(node) => {
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            Ok(conditions.iter().any(|is| is.type_ == "Ready" && is.status == "True"))
        }
        Err(ApiError::NotFound(_)) => Ok(false),
        Err(source) => Err(DiscoveryError::Api { what: "the Node of this machine cannot be looked up", source }),
    }
}

fn config(cluster: &FoundCluster, token: Option<&Token>) -> Result<kube::Config, DiscoveryError> {
    let url = cluster.server.parse().map_err(|_| DiscoveryError::Address { address: cluster.server.clone() })?;
    let mut config = kube::Config::new(url);
    config.root_cert = Some(certificates(&cluster.ca)?.into_iter().map(|der| der.to_vec()).collect());
    config.auth_info.token = token.map(|token| token.bearer().into());
    Ok(config)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, DiscoveryError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read = read.map_err(|error| DiscoveryError::Broken(format!("its CA: {error}")))?;
    if read.is_empty() { Err(DiscoveryError::Broken("it has no CA".to_owned())) } else { Ok(read) }
}

/// Checks signature and pins, and reads the kubeconfig in it.
fn trusted(map: &ConfigMap, token: &Token, pins: &[Pin]) -> Result<FoundCluster, DiscoveryError> {
    let data = map.data.clone().unwrap_or_default();
    let document = data.get("kubeconfig").ok_or_else(|| DiscoveryError::Broken("it has no kubeconfig".to_owned()))?;
    let signature = data.get(&format!("jws-kubeconfig-{}", token.id));
    let signature = signature.ok_or_else(|| DiscoveryError::NotSigned { id: token.id.clone() })?;
    if !is_signed(document, signature, token) {
        return Err(DiscoveryError::WrongSignature);
    }
    #[derive(Deserialize)]
    struct Document {
        clusters: Vec<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        cluster: Cluster,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Cluster {
        server: String,
        certificate_authority_data: String,
    }
    let document: Document =
        serde_yaml_ng::from_str(document).map_err(|error| DiscoveryError::Broken(error.to_string()))?;
    let Some(Named { cluster }) = document.clusters.into_iter().next() else {
        return Err(DiscoveryError::Broken("it names no cluster".to_owned()));
    };
    let ca = STANDARD.decode(cluster.certificate_authority_data.trim());
    let ca = ca.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let ca = ca.ok_or_else(|| DiscoveryError::Broken("its CA is not base64 of PEM".to_owned()))?;
    let keys: Vec<[u8; 32]> = certificates(&ca)?.iter().filter_map(|der| key_hash(der)).collect();
    if !pins.is_empty() && !keys.iter().any(|key| pins.iter().any(|pin| pin.0 == *key)) {
        let found: Vec<_> = keys.iter().map(|key| format!("sha256:{}", hex::encode(key))).collect();
        return Err(DiscoveryError::NotPinned { found: found.join(", ") });
    }
    Ok(FoundCluster { server: cluster.server, ca })
}

fn key_hash(certificate: &[u8]) -> Option<[u8; 32]> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(Sha256::digest(certificate.public_key().raw).into())
}

/// A detached JWS (RFC 7515, appendix F): header, nothing, and the HMAC of header and document.
fn is_signed(document: &str, signature: &str, token: &Token) -> bool {
    let Some((header, mac)) = signature.split_once("..") else { return false };
    let Ok(said) = URL_SAFE_NO_PAD.decode(header) else { return false };
    let Ok(said) = serde_json::from_slice::<Value>(&said) else { return false };
    let Ok(mac) = URL_SAFE_NO_PAD.decode(mac) else { return false };
    if said["alg"] != "HS256" || said["kid"] != token.id.as_str() {
        return false;
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.secret.as_bytes());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(document));
    hmac::verify(&key, signed.as_bytes(), &mac).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        "abcdef.0123456789abcdef".parse().expect("a token")
    }

    fn sign(document: &str, header: &str, secret: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode(header);
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let mac = hmac::sign(&key, format!("{header}.{}", URL_SAFE_NO_PAD.encode(document)).as_bytes());
        format!("{header}..{}", URL_SAFE_NO_PAD.encode(mac))
    }

    const HEADER: &str = r#"{"alg":"HS256","kid":"abcdef"}"#;

    #[test]
    fn tokens_and_hashes_are_read_strictly() {
        assert_eq!(token().bearer(), "abcdef.0123456789abcdef");
        for bad in [
            "",
            "abcdef",
            "abcdef.0123",
            "ABCDEF.0123456789abcdef",
            "abcde.00123456789abcdef",
            "abcdef.0123456789abcdef.x",
        ] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
        assert!(format!("sha256:{}", "ab".repeat(32)).parse::<Pin>().is_ok());
        for bad in ["", "ab", "sha256:ab", "md5:0", &format!("sha256:{}", "zz".repeat(32))] {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
        assert!(!format!("{:?}", token()).contains("0123"), "logs never show a secret");
    }

    #[test]
    fn the_signature_of_another_implementation_is_known() {
        // Made with `openssl dgst -sha256 -mac HMAC -macopt key:0123456789abcdef` over `header.payload`, both base64url.
        let signature = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..vH3bufRAP-To0s7kNhS95dt_qXBuMhZwu3mDFgIyDXs";
        assert!(is_signed("kubeconfig\n", signature, &token()));
    }

    #[test]
    fn only_the_tokens_own_signature_over_a_pinned_ca_is_trusted() {
        // C6.4
        let made = rcgen::generate_simple_self_signed(vec!["ca".into()]).expect("a certificate");
        let hash: [u8; 32] = key_hash(made.cert.der()).expect("a key");
        let (right, wrong) = (Pin(hash), Pin([7; 32]));
        let document = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: ''\n  cluster: {{ server: 'https://10.0.0.1:6443', \
             certificate-authority-data: {} }}\n",
            STANDARD.encode(made.cert.pem())
        );
        let check = |signature: Option<String>, pins: &[Pin]| {
            let mut data = std::collections::BTreeMap::from([("kubeconfig".to_owned(), document.clone())]);
            data.extend(signature.map(|text| ("jws-kubeconfig-abcdef".to_owned(), text)));
            trusted(&ConfigMap { data: Some(data), ..ConfigMap::default() }, &token(), pins)
        };
        let good = || Some(sign(&document, HEADER, "0123456789abcdef"));
        let found = check(good(), &[wrong.clone(), right]).expect("trusted");
        assert_eq!(found, FoundCluster { server: "https://10.0.0.1:6443".into(), ca: made.cert.pem() });
        assert!(check(good(), &[]).is_ok());
        assert!(matches!(check(good(), &[wrong]), Err(DiscoveryError::NotPinned { .. })));
        assert!(matches!(check(None, &[]), Err(DiscoveryError::NotSigned { .. })));
        for bad in [
            sign(&document, HEADER, "0123456789abcdee"),
            sign(&format!("{document} "), HEADER, "0123456789abcdef"),
            sign(&document, r#"{"alg":"none","kid":"abcdef"}"#, "0123456789abcdef"),
            sign(&document, r#"{"alg":"HS256","kid":"abcdeg"}"#, "0123456789abcdef"),
            "a.b.c".to_owned(),
            String::new(),
        ] {
            assert!(matches!(check(Some(bad.clone()), &[]), Err(DiscoveryError::WrongSignature)), "{bad}");
        }
    }
}
