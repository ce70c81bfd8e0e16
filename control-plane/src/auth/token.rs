//! Service-account tokens: JSON web tokens signed with ES256 (C3.19). Signing and checking only; whether the account
//! and the pod still live is asked by [`super::Authenticator`].

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::identity::{IssuedToken, TokenIssuer, TokenSpec, Unauthenticated};

/// A pod-bound token for exactly so long lives a year, since old clients never read it again (C3.19).
const EXTENDED_FOR_SECONDS: i64 = 3607;
/// That year.
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

/// Why a token cannot be made or is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The signing key is of no use.
    #[error("the service-account key (pki/sa.key) is no P-256 key: remove it to have a new one made")]
    Key,
    /// The random source failed.
    #[error("cannot sign a service-account token: the system has no randomness")]
    Sign,
    /// It is no token of this issuer.
    #[error("the token is malformed, or another issuer's")]
    Malformed,
    /// The signature does not fit.
    #[error("the token's signature is wrong")]
    Signature,
    /// Its time is over, or has not come.
    #[error("the token has expired or is not valid yet")]
    Time,
    /// It is meant for somebody else.
    #[error("the token's audiences {0:?} are none of this server's")]
    Audience(Vec<String>),
}

/// One object by name and UID.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BoundTo {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KubernetesClaims {
    /// Namespace of the account.
    pub namespace: String,
    /// The account.
    pub serviceaccount: BoundTo,
    /// The pod that the token dies with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<BoundTo>,
    /// The secret that the token dies with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<BoundTo>,
    /// The node of the pod, or the node that the token dies with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<BoundTo>,
    /// From when on its use deserves a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// What a token says (C3.19).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// For whom it is meant.
    pub aud: Vec<String>,
    /// End, in seconds since 1970.
    pub exp: i64,
    /// Issued at.
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Its own name.
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    /// Not before.
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
}

/// What a new token shall say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// Namespace of the account.
    pub namespace: String,
    /// The account.
    pub account: BoundTo,
    /// For whom; empty means the API server itself.
    pub audiences: Vec<String>,
    /// For how long, in seconds.
    pub expiration_seconds: i64,
    /// The pod that it dies with.
    pub pod: Option<BoundTo>,
    /// The secret that it dies with.
    pub secret: Option<BoundTo>,
    /// The pod's node, or the node that it dies with.
    pub node: Option<BoundTo>,
}

/// Signs and checks tokens.
pub struct Tokens {
    key: EcdsaKeyPair,
    public: Vec<u8>,
    key_id: String,
    issuer: String,
    jwks_uri: String,
    random: SystemRandom,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("issuer", &self.issuer).field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl Tokens {
    /// With this key, as this issuer, whose keys are published at the API server's URL `server`.
    pub(super) fn new(key: &KeyPair, issuer: String, server: &str) -> Result<Self, TokenError> {
        let random = SystemRandom::new();
        let signing = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der(), &random)
            .map_err(|_| TokenError::Key)?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info()));
        Ok(Self {
            key: signing,
            public: key.public_key_raw().to_vec(),
            key_id,
            issuer,
            jwks_uri: format!("{server}/openid/v1/jwks"),
            random,
        })
    }

    /// `iss`, and the audience of tokens that name none.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The document at `/.well-known/openid-configuration` (C3.19).
    pub fn openid_configuration(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": self.jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// The document at `/openid/v1/jwks` (C3.19).
    pub fn jwks(&self) -> Value {
        // An uncompressed point: 4, then x and y of 32 bytes each.
        let (x, y) = self.public.get(1..).unwrap_or_default().split_at(32);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }

    /// Makes a token.
    pub fn grant(&self, grant: Grant, now: Timestamp) -> Result<IssuedToken, TokenError> {
        let iat = now.as_second();
        let for_this_server = grant.audiences.is_empty() || grant.audiences.contains(&self.issuer);
        let extended = grant.pod.is_some() && grant.expiration_seconds == EXTENDED_FOR_SECONDS && for_this_server;
        let asked_end = iat + grant.expiration_seconds;
        let claims = Claims {
            aud: if grant.audiences.is_empty() { vec![self.issuer.clone()] } else { grant.audiences },
            exp: if extended { iat + EXTENDED_SECONDS } else { asked_end },
            iat,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            nbf: iat,
            sub: format!("system:serviceaccount:{}:{}", grant.namespace, grant.account.name),
            kubernetes: KubernetesClaims {
                namespace: grant.namespace,
                serviceaccount: grant.account,
                pod: grant.pod,
                secret: grant.secret,
                node: grant.node,
                warnafter: extended.then_some(asked_end),
            },
        };
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let body = serde_json::to_vec(&claims).map_err(|_| TokenError::Malformed)?;
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(body));
        let signature = self.key.sign(&self.random, signed.as_bytes()).map_err(|_| TokenError::Sign)?;
        let expires = Timestamp::from_second(asked_end).unwrap_or(Timestamp::MAX);
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
        Ok(IssuedToken { token, expires, audiences: claims.aud })
    }

    /// Reads a token that this issuer signed, whose time is now and whose audiences meet `audiences` (empty: this
    /// server's own). Does not ask whether what it is bound to still lives.
    pub fn verify(&self, token: &str, audiences: &[String], now: Timestamp) -> Result<Claims, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, body) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        if header["alg"] != "ES256" {
            return Err(TokenError::Malformed);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public)
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Signature)?;
        let claims: Claims = serde_json::from_slice(&decode(body)?).map_err(|_| TokenError::Malformed)?;
        if claims.iss != self.issuer {
            return Err(TokenError::Malformed);
        }
        let second = now.as_second();
        if second >= claims.exp || second < claims.nbf - 1 {
            return Err(TokenError::Time);
        }
        let own = std::slice::from_ref(&self.issuer);
        let wanted = if audiences.is_empty() { own } else { audiences };
        if !claims.aud.iter().any(|a| wanted.contains(a)) {
            return Err(TokenError::Audience(claims.aud));
        }
        Ok(claims)
    }
}

impl TokenIssuer for Tokens {
    fn issue(&self, spec: &TokenSpec) -> Result<IssuedToken, Unauthenticated> {
        let bound_as = |kind: &str| {
            let bound = spec.bound.as_ref().filter(|b| b.kind == kind)?;
            Some(BoundTo { name: bound.name.clone(), uid: bound.uid.clone() })
        };
        let node_of_pod = spec.node.as_ref().map(|(name, uid)| BoundTo { name: name.clone(), uid: uid.clone() });
        let grant = Grant {
            namespace: spec.namespace.clone(),
            account: BoundTo { name: spec.service_account.clone(), uid: spec.service_account_uid.clone() },
            audiences: spec.audiences.clone(),
            expiration_seconds: spec.expiration_seconds,
            pod: bound_as("Pod"),
            secret: bound_as("Secret"),
            node: bound_as("Node").or(node_of_pod),
        };
        self.grant(grant, crate::clock::now()).map_err(|error| Unauthenticated(error.to_string()))
    }

    fn discovery_documents(&self) -> (Value, Value) {
        (self.openid_configuration(), self.jwks())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::auth) fn tokens() -> Tokens {
        Tokens::new(
            &KeyPair::generate().unwrap(),
            "https://kubernetes.default.svc.cluster.local".into(),
            "https://192.0.2.7:6443",
        )
        .unwrap()
    }

    pub(in crate::auth) fn bound(name: &str) -> BoundTo {
        BoundTo { name: name.into(), uid: format!("uid-{name}") }
    }

    pub(in crate::auth) fn grant() -> Grant {
        Grant {
            namespace: "shop".into(),
            account: bound("web"),
            audiences: vec![],
            expiration_seconds: 600,
            pod: None,
            secret: None,
            node: None,
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_signed_is_read_again_until_it_expires() {
        let tokens = tokens();
        let now = at("2026-01-01T10:00:00Z");
        let issued = tokens.grant(grant(), now).unwrap();
        let claims = tokens.verify(&issued.token, &[], now).unwrap();
        assert_eq!(claims.sub, "system:serviceaccount:shop:web");
        assert_eq!(claims.aud, [tokens.issuer()]);
        assert_eq!((claims.exp - claims.iat, claims.nbf), (600, claims.iat));
        assert_eq!(issued.expires, at("2026-01-01T10:10:00Z"));
        assert_eq!(tokens.verify(&issued.token, &[], at("2026-01-01T10:10:00Z")), Err(TokenError::Time));
        let other = ["vault".to_owned()];
        assert!(matches!(tokens.verify(&issued.token, &other, now), Err(TokenError::Audience(_))));
    }

    #[test]
    fn a_changed_token_and_a_foreign_key_are_refused() {
        let ours = tokens();
        let now = at("2026-01-01T10:00:00Z");
        let token = ours.grant(grant(), now).unwrap().token;
        assert_eq!(tokens().verify(&token, &[], now), Err(TokenError::Signature));
        let (head, rest) = token.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        let claims = URL_SAFE_NO_PAD.encode(r#"{"sub":"system:serviceaccount:kube-system:admin"}"#);
        assert_eq!(ours.verify(&format!("{head}.{claims}.{signature}"), &[], now), Err(TokenError::Signature));
        let unsigned = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert_eq!(ours.verify(&format!("{unsigned}.{claims}."), &[], now), Err(TokenError::Malformed));
        assert_eq!(ours.verify("nonsense", &[], now), Err(TokenError::Malformed));
    }

    #[test]
    fn the_projected_default_lives_a_year_and_warns_after_an_hour() {
        let tokens = tokens();
        let now = at("2026-01-01T10:00:00Z");
        let grant = Grant { pod: Some(bound("web-1")), expiration_seconds: 3607, ..grant() };
        let issued = tokens.grant(grant.clone(), now).unwrap();
        let claims = tokens.verify(&issued.token, &[], now).unwrap();
        assert_eq!(claims.exp - claims.iat, 365 * 24 * 3600);
        assert_eq!(claims.kubernetes.warnafter, Some(claims.iat + 3607));
        assert_eq!(issued.expires.as_second(), claims.iat + 3607);
        let elsewhere = Grant { audiences: vec!["vault".into()], ..grant };
        let issued = tokens.grant(elsewhere, now).unwrap();
        let claims = tokens.verify(&issued.token, &["vault".into()], now).unwrap();
        assert_eq!((claims.exp - claims.iat, claims.kubernetes.warnafter), (3607, None));
    }

    #[test]
    fn the_published_key_is_the_signing_key() {
        let tokens = tokens();
        let jwks = tokens.jwks();
        let part = |name: &str| URL_SAFE_NO_PAD.decode(jwks["keys"][0][name].as_str().unwrap()).unwrap();
        assert_eq!([vec![4], part("x"), part("y")].concat(), tokens.public);
    }
}
