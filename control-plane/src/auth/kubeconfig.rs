//! Kubeconfig text with everything embedded, so that one atomic write hands out a whole credential.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::pki::CertifiedPem;

/// A kubeconfig for `user` at `server` (a URL), trusting `ca_pem`.
pub(super) fn kubeconfig(cluster: &str, server: &str, ca_pem: &str, user: &str, credential: &CertifiedPem) -> String {
    let ca = STANDARD.encode(ca_pem);
    let certificate = STANDARD.encode(&credential.certificate);
    let key = STANDARD.encode(&credential.key);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: {cluster}
  cluster:
    certificate-authority-data: {ca}
    server: {server}
contexts:
- name: {user}@{cluster}
  context:
    cluster: {cluster}
    user: {user}
current-context: {user}@{cluster}
preferences: {{}}
users:
- name: {user}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
"
    )
}

/// The client certificate inside a kubeconfig that [`kubeconfig`] wrote, as PEM, and the server it points to.
pub(super) fn embedded(text: &str) -> Option<(String, String)> {
    let value = |key: &str| text.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim);
    let certificate = STANDARD.decode(value("client-certificate-data:")?).ok()?;
    Some((String::from_utf8(certificate).ok()?, value("server:")?.to_owned()))
}
