//! Who asks: a client certificate that the CA signed, a service-account token whose account and pod still live, a
//! bootstrap token, or nobody in particular (C5.1). Bad credentials are refused, never treated as anonymous.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::bootstrap_token::{self, BootstrapTokenError, TOKEN_NAMESPACE, TOKEN_PREFIX};
use super::identity::{Authenticator, Credentials, Unauthenticated, UserInfo};
use super::pki::{FRONT_PROXY_CLIENT, Pki, certificate_der, signed_by};
use super::token::{BoundTo, Claims, TokenError, Tokens};
use super::{Lookup, LookupError};
use crate::clock;

/// A token outlives the deletion of what it is bound to by so much, for the last words of a pod (C3.19).
const LEEWAY_SECONDS: i64 = 60;

/// The group of everybody who showed good credentials.
const AUTHENTICATED: &str = "system:authenticated";

/// Why credentials are refused. The client hears `Unauthorized` and nothing more.
#[derive(Debug, Clone, thiserror::Error)]
enum AuthenticationError {
    /// The certificate names nobody.
    #[error("the client certificate has no common name")]
    NoCommonName,
    /// The certificate cannot be read.
    #[error("the client certificate cannot be read")]
    Certificate,
    /// It is another CA's, or its time is over.
    #[error("the client certificate is not this cluster's, or has expired")]
    Untrusted,
    /// The token is refused.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The bootstrap token is refused.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapTokenError),
    /// What the token is bound to is gone.
    #[error("the token's {kind} {name} is gone or was replaced")]
    Gone {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The store could not be asked.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

/// Tells who asks.
#[derive(Clone)]
pub struct ClusterAuthenticator {
    ca: Arc<[u8]>,
    front_proxy_ca: Arc<[u8]>,
    tokens: Arc<Tokens>,
    lookup: Arc<dyn Lookup>,
    verified: Arc<Verified>,
}

/// Client certificates, as DER, whose signature was found to be the CA's. A connection shows its own with each request, and verifying
/// takes longer than most requests.
type Verified = Mutex<HashMap<Box<[u8]>, Holder>>;

/// How many certificates are remembered before all are forgotten.
const REMEMBERED: usize = 1024;

/// Whom a certificate names, and from when to when (seconds since 1970).
#[derive(Clone)]
struct Holder {
    user: UserInfo,
    validity: RangeInclusive<i64>,
}

impl std::fmt::Debug for ClusterAuthenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterAuthenticator").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl ClusterAuthenticator {
    /// With the cluster's credentials, and stored objects to see whether a token's account still lives.
    pub fn new(pki: &Pki, lookup: Arc<dyn Lookup>) -> Self {
        let ca = certificate_der(pki.ca_certificate()).expect("the PKI parsed this certificate when it was made");
        let proxy = certificate_der(pki.front_proxy_ca()).expect("the PKI parsed this certificate, too");
        Self { ca: ca.into(), front_proxy_ca: proxy.into(), tokens: pki.tokens(), lookup, verified: Arc::default() }
    }

    /// Who a client certificate of the cluster's stands for.
    fn of_client(&self, der: &[u8], now: Timestamp) -> Result<UserInfo, AuthenticationError> {
        let verified = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = verified().get(der) {
            return holder.at(now);
        }
        // Not under the lock: who comes with a new certificate holds nobody up.
        let holder = holder_of(der, &self.ca)?;
        let mut verified = verified();
        if verified.len() >= REMEMBERED {
            verified.clear();
        }
        verified.insert(der.into(), holder.clone());
        holder.at(now)
    }

    /// Who a token stands for, and which of its audiences were asked for (empty: this server's own).
    async fn of_token(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<(UserInfo, Vec<String>), AuthenticationError> {
        if let Some((id, secret)) = bootstrap_token::split_token(token) {
            let name = format!("{TOKEN_PREFIX}{id}");
            let stored = self.lookup.get("", "secrets", Some(TOKEN_NAMESPACE), &name).await?;
            let user = bootstrap_token::user_of(stored.as_ref(), id, secret, now)?;
            // Such a token names no audience: it is for this server.
            let own = self.tokens.issuer().to_owned();
            if !audiences.is_empty() && !audiences.contains(&own) {
                return Err(TokenError::Audience(vec![own]).into());
            }
            return Ok((user, vec![own]));
        }
        let claims = self.tokens.verify(token, audiences, now)?;
        let bound = &claims.kubernetes;
        let namespace = Some(bound.namespace.as_str());
        self.lives("ServiceAccount", "serviceaccounts", namespace, &bound.serviceaccount, now).await?;
        if let Some(pod) = &bound.pod {
            self.lives("Pod", "pods", namespace, pod, now).await?;
        }
        if let Some(secret) = &bound.secret {
            self.lives("Secret", "secrets", namespace, secret, now).await?;
        }
        // A pod's node is information; only a token bound to the node itself dies with it.
        if let (Some(node), None) = (&bound.node, &bound.pod) {
            self.lives("Node", "nodes", None, node, now).await?;
        }
        let wanted = if audiences.is_empty() { vec![self.tokens.issuer().to_owned()] } else { audiences.to_vec() };
        let met = claims.aud.iter().filter(|a| wanted.contains(a)).cloned().collect();
        Ok((of_claims(&claims), met))
    }

    async fn lives(
        &self,
        kind: &'static str,
        resource: &str,
        namespace: Option<&str>,
        bound: &BoundTo,
        now: Timestamp,
    ) -> Result<(), AuthenticationError> {
        let stored = self.lookup.get("", resource, namespace, &bound.name).await?;
        let lives = stored.is_some_and(|object| {
            let metadata = &object["metadata"];
            let deleted = metadata["deletionTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
            metadata["uid"].as_str() == Some(&bound.uid)
                && deleted.is_none_or(|at| now.as_second() < at.as_second() + LEEWAY_SECONDS)
        });
        if lives { Ok(()) } else { Err(AuthenticationError::Gone { kind, name: bound.name.clone() }) }
    }
}

#[async_trait]
impl Authenticator for ClusterAuthenticator {
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Option<UserInfo>, Unauthenticated> {
        let now = clock::now();
        if let (Some(der), Some(claimed)) = (credentials.client_certificate, credentials.claimed)
            && holder_of(der, &self.front_proxy_ca)
                .and_then(|proxy| proxy.at(now))
                .is_ok_and(|proxy| proxy.name == FRONT_PROXY_CLIENT)
        {
            let mut user = claimed.clone();
            if !user.groups.iter().any(|group| group == AUTHENTICATED) {
                user.groups.push(AUTHENTICATED.to_owned());
            }
            return Ok(Some(user));
        }
        let user = match (credentials.client_certificate, credentials.bearer_token) {
            (Some(der), _) => self.of_client(der, now),
            (None, Some(token)) => self.of_token(token, &[], now).await.map(|(user, _)| user),
            (None, None) => return Ok(None),
        };
        user.map(Some).map_err(|error| Unauthenticated(error.to_string()))
    }

    async fn review_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), Unauthenticated> {
        let reviewed = self.of_token(token, audiences, clock::now()).await;
        reviewed.map_err(|error| Unauthenticated(error.to_string()))
    }
}

impl Holder {
    fn at(&self, now: Timestamp) -> Result<UserInfo, AuthenticationError> {
        if self.validity.contains(&now.as_second()) {
            Ok(self.user.clone())
        } else {
            Err(AuthenticationError::Untrusted)
        }
    }
}

/// Whom a client certificate names that this CA has signed.
fn holder_of(der: &[u8], ca: &[u8]) -> Result<Holder, AuthenticationError> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|_| AuthenticationError::Certificate)?;
    let (_, ca) = X509Certificate::from_der(ca).map_err(|_| AuthenticationError::Certificate)?;
    // A serving certificate identifies a server, not a user.
    let for_clients =
        parsed.extended_key_usage().ok().flatten().is_some_and(|usage| usage.value.client_auth || usage.value.any);
    if !for_clients || parsed.issuer() != ca.subject() || !signed_by(&parsed, &ca) {
        return Err(AuthenticationError::Untrusted);
    }
    let name = parsed.subject().iter_common_name().next().and_then(|n| n.as_str().ok());
    let name = name.filter(|n| !n.is_empty()).ok_or(AuthenticationError::NoCommonName)?;
    let mut groups: Vec<String> =
        parsed.subject().iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push(AUTHENTICATED.to_owned());
    let validity = parsed.validity();
    Ok(Holder {
        user: UserInfo { name: name.to_owned(), groups, ..UserInfo::default() },
        validity: validity.not_before.timestamp()..=validity.not_after.timestamp(),
    })
}

fn of_claims(claims: &Claims) -> UserInfo {
    let bound = &claims.kubernetes;
    let mut user = UserInfo {
        name: claims.sub.clone(),
        uid: bound.serviceaccount.uid.clone(),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{}", bound.namespace),
            AUTHENTICATED.to_owned(),
        ],
        ..UserInfo::default()
    };
    let mut extra = |key: &str, value: &str| {
        user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    extra("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &bound.pod {
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        extra("node-name", &node.name);
        extra("node-uid", &node.uid);
    }
    user
}

#[cfg(test)]
mod tests {
    use super::super::pki::tests::{at, config};
    use super::super::tests::Stored;
    use super::*;

    #[test]
    fn a_certificate_that_is_known_still_runs_out() {
        // C5.1
        let now = at("2026-01-01T10:00:00Z");
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [own, foreign] = dirs.each_ref().map(|dir| Pki::ensure(&config(dir.path()), now).unwrap());
        let asks = ClusterAuthenticator::new(&own, Arc::new(Stored(Vec::new())));
        let client = |pki: &Pki| certificate_der(&pki.client("jo", Some("crew"), now).unwrap().certificate).unwrap();
        let der = client(&own);
        for _ in 0..2 {
            let user = asks.of_client(&der, now).unwrap();
            assert_eq!(
                (user.name.as_str(), user.groups.as_slice()),
                ("jo", &["crew".to_owned(), AUTHENTICATED.to_owned()][..])
            );
        }
        for when in ["2025-01-01T10:00:00Z", "2036-01-01T10:00:00Z"] {
            assert!(matches!(asks.of_client(&der, at(when)), Err(AuthenticationError::Untrusted)), "{when}");
        }
        let der = client(&foreign);
        for _ in 0..2 {
            assert!(matches!(asks.of_client(&der, now), Err(AuthenticationError::Untrusted)));
        }
    }
}
