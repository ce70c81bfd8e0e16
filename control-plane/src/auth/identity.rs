//! What `api` asks of authentication and authorization; the rest of this room implements it.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;

/// Who asks.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct UserInfo {
    /// User name, from a client certificate's CN or a token.
    pub name: String,
    /// Unique over time, where the authenticator knows it.
    pub uid: String,
    /// Groups, from a client certificate's O or a token.
    pub groups: Vec<String>,
    /// What else the authenticator knows, like `authentication.kubernetes.io/pod-name`.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// The control plane itself: scheduler, controllers, the API server's own steps.
    pub fn system(name: &str) -> Self {
        Self { name: name.to_owned(), groups: vec!["system:masters".to_owned()], ..Self::default() }
    }

    /// Somebody who showed no credentials (C5.1).
    pub fn anonymous() -> Self {
        let groups = vec!["system:unauthenticated".to_owned()];
        Self { name: "system:anonymous".to_owned(), groups, ..Self::default() }
    }
}

/// What a request brings to show who asks.
#[derive(Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The client certificate of the TLS session, DER. TLS has checked that the client has its key; whether it is this
    /// cluster's and in time is checked here.
    pub client_certificate: Option<&'a [u8]>,
    /// `Authorization: Bearer`.
    pub bearer_token: Option<&'a str>,
    /// In whose name a front proxy says that it asks (C5.17); believed of nobody else.
    pub claimed: Option<&'a UserInfo>,
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("client_certificate", &self.client_certificate.is_some())
            .field("bearer_token", &self.bearer_token.is_some())
            .finish()
    }
}

/// There were credentials, and they are no good: 401, never anonymous (C5.1).
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unauthenticated(pub String);

/// Finds out who asks.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// `Ok(None)`: there were no credentials at all; the caller makes that [`UserInfo::anonymous`] (C5.1).
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Option<UserInfo>, Unauthenticated>;

    /// Checks a token for `tokenreviews` (C1.11); `audiences` empty: the API server's own. Returns the audiences that
    /// fit, too.
    async fn review_token(&self, token: &str, audiences: &[String])
    -> Result<(UserInfo, Vec<String>), Unauthenticated>;
}

/// What somebody wants to do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attributes {
    /// Who.
    pub user: UserInfo,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, … or an HTTP method in lower
    /// case.
    pub verb: String,
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural; empty for a path that is no resource.
    pub resource: String,
    /// `status`, `log`, …; empty for the resource itself.
    pub subresource: String,
    /// Empty for cluster scope and for all namespaces.
    pub namespace: String,
    /// Empty for a collection.
    pub name: String,
    /// The path, for what is no resource.
    pub path: String,
    /// `fieldSelector` of a list, watch or deletecollection, as text.
    pub field_selector: String,
    /// `labelSelector` likewise.
    pub label_selector: String,
}

impl Attributes {
    /// Whether this is about a resource, not a bare path.
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }
}

/// The answer, with the reason that access reviews show (C5.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Yes.
    Allow(String),
    /// No, whatever other authorizers say.
    Deny(String),
    /// Nothing allows it.
    NoOpinion(String),
}

/// Decides what a user may do.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// Decides.
    async fn authorize(&self, attributes: &Attributes) -> Decision;

    /// The rules of a user in a namespace as the `status` of a SelfSubjectRulesReview, without `incomplete: true` only
    /// where they are all (C5.2).
    async fn rules(&self, user: &UserInfo, namespace: &str) -> serde_json::Value;
}

/// What a service-account token is bound to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BoundObject {
    /// `Pod`, `Secret` or `Node`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// A service-account token to make (C3.19); everything has been checked against the stored objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenSpec {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// UID of the service account.
    pub service_account_uid: String,
    /// As asked; empty means the API server's own.
    pub audiences: Vec<String>,
    /// At least 600.
    pub expiration_seconds: i64,
    /// What it dies with.
    pub bound: Option<BoundObject>,
    /// The pod's node, name and UID, if it is bound to a pod that has one.
    pub node: Option<(String, String)>,
}

/// A token that was made.
#[derive(Clone)]
pub struct IssuedToken {
    /// The JWT.
    pub token: String,
    /// What the client is told; the token itself may live longer.
    pub expires: jiff::Timestamp,
    /// The audiences that it is for.
    pub audiences: Vec<String>,
}

impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedToken").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Makes service-account tokens.
pub trait TokenIssuer: Send + Sync + 'static {
    /// Signs one.
    fn issue(&self, spec: &TokenSpec) -> Result<IssuedToken, Unauthenticated>;

    /// `/.well-known/openid-configuration` and `/openid/v1/jwks` as JSON.
    fn discovery_documents(&self) -> (serde_json::Value, serde_json::Value);
}
