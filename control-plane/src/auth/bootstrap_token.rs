//! Bootstrap tokens `id.secret`: who shows one that a Secret of `kube-system` holds may ask for a node's certificate (C5.1).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::hmac;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::identity::UserInfo;

/// Where the Secrets are.
pub const TOKEN_NAMESPACE: &str = "kube-system";
/// Their type.
pub const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Their names are this and the token's id.
pub const TOKEN_PREFIX: &str = "bootstrap-token-";
/// The group of all who show one.
const GROUP: &str = "system:bootstrappers";

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapTokenError {
    /// There is no such token, or its secret is another.
    #[error("there is no bootstrap token {0} with this secret")]
    Unknown(String),
    /// Its time is over.
    #[error("the bootstrap token {0} has expired: make another with `stoker-control-plane token create`")]
    Expired(String),
    /// It is for something else.
    #[error("the bootstrap token {0} is not for authentication")]
    Usage(String),
    /// It names groups that it must not.
    #[error("the bootstrap token {0} names a group that does not begin with system:bootstrappers:")]
    Group(String),
}

/// Id and secret of a text that has the form of a token.
pub fn split_token(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let fits = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    (fits(id, 6) && fits(secret, 16)).then_some((id, secret))
}

/// Who shows the token `id.secret`, which `stored` is the Secret of.
pub(super) fn user_of(
    stored: Option<&Value>,
    id: &str,
    secret: &str,
    now: Timestamp,
) -> Result<UserInfo, BootstrapTokenError> {
    let unknown = || BootstrapTokenError::Unknown(id.to_owned());
    let stored = stored.ok_or_else(unknown)?;
    let is_token = stored["type"] == TOKEN_TYPE && stored["metadata"]["deletionTimestamp"].is_null();
    // Digests of equal length: how long comparing takes tells nothing.
    let same = Sha256::digest(data(stored, "token-secret")) == Sha256::digest(secret);
    if !is_token || data(stored, "token-id") != id || !same {
        return Err(unknown());
    }
    if expires(stored).is_some_and(|at| at <= now) {
        return Err(BootstrapTokenError::Expired(id.to_owned()));
    }
    if data(stored, "usage-bootstrap-authentication") != "true" {
        return Err(BootstrapTokenError::Usage(id.to_owned()));
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in data(stored, "auth-extra-groups").split(',').filter(|group| !group.is_empty()) {
        if !is_group(group) {
            return Err(BootstrapTokenError::Group(id.to_owned()));
        }
        if !groups.iter().any(|known| known == group) {
            groups.push(group.to_owned());
        }
    }
    groups.push("system:authenticated".to_owned());
    Ok(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() })
}

/// Whether a token may put its users into that group.
pub fn is_group(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b':' | b'-');
    name.strip_prefix("system:bootstrappers:")
        .is_some_and(|rest| (1..=256).contains(&rest.len()) && rest.bytes().all(inner) && !rest.ends_with([':', '-']))
}

/// When a token's Secret says that it ends; an end that cannot be read has come.
pub fn expires(stored: &Value) -> Option<Timestamp> {
    let at = data(stored, "expiration");
    (!at.is_empty()).then(|| at.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// A text of a Secret.
pub fn data(stored: &Value, key: &str) -> String {
    let bytes = stored["data"][key].as_str().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

/// A signature of `content` by which holders of the token know that it comes from somebody else who has it: a JSON web
/// signature without its middle part (C6.1).
pub fn detached_signature(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(more: &[(&str, &str)]) -> Value {
        let mut secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": TOKEN_TYPE, "data": {}});
        let usual = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("auth-extra-groups", "system:bootstrappers:kubeadm:default-node-token"),
        ];
        for (key, value) in usual.iter().chain(more) {
            secret["data"][*key] = json!(STANDARD.encode(value));
        }
        secret
    }

    #[test]
    fn only_a_whole_token_in_its_time_and_for_its_use_is_taken() {
        // C5.1
        let now: Timestamp = "2026-01-01T10:00:00Z".parse().unwrap();
        let ask = |secret: &Value| user_of(Some(secret), "abcdef", "0123456789abcdef", now);
        let user = ask(&stored(&[("expiration", "2026-01-01T12:00:00+01:00")])).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        let groups =
            ["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"];
        assert_eq!(user.groups, groups);
        let id = || "abcdef".to_owned();
        for (field, value, error) in [
            ("token-secret", "0123456789abcdee", BootstrapTokenError::Unknown(id())),
            ("token-id", "abcdee", BootstrapTokenError::Unknown(id())),
            ("expiration", "2026-01-01T10:00:00Z", BootstrapTokenError::Expired(id())),
            ("expiration", "tomorrow", BootstrapTokenError::Expired(id())),
            ("usage-bootstrap-authentication", "yes", BootstrapTokenError::Usage(id())),
            ("auth-extra-groups", "system:masters", BootstrapTokenError::Group(id())),
        ] {
            assert_eq!(ask(&stored(&[(field, value)])), Err(error), "{field}={value}");
        }
        let mut other = stored(&[]);
        other["type"] = json!("Opaque");
        assert_eq!(ask(&other), Err(BootstrapTokenError::Unknown(id())));
        let mut going = stored(&[]);
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T09:00:00Z");
        assert_eq!(ask(&going), Err(BootstrapTokenError::Unknown(id())));
        assert_eq!(user_of(None, "abcdef", "0123456789abcdef", now), Err(BootstrapTokenError::Unknown(id())));
        assert_eq!(split_token("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for wrong in ["abcdef.0123456789abcde", "abcdeF.0123456789abcdef", "abcdef", "eyJh.abc.def"] {
            assert_eq!(split_token(wrong), None);
        }
    }

    #[test]
    fn the_signature_is_that_of_any_other_library() {
        // C6.1; the expected text was made with Python's hmac and base64.
        assert_eq!(
            detached_signature("content\n", "abcdef", "0123456789abcdef"),
            "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..xkPhz9qtNRQXCP_XEz8Is8VscWZrJTQNmIw5ldJ_3kk"
        );
    }
}
