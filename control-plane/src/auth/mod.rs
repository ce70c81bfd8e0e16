//! Who asks, and what they may do: the cluster's CA and credentials, service-account tokens, authentication by client
//! certificate, bearer or bootstrap token, and authorization by the Node rules and RBAC.
//!
//! In:  files under the data directory ([`Pki::ensure`]), stored objects through [`Lookup`].
//! Out: what [`identity`] names; the `api` room turns them into HTTP.
//! Not here: HTTP, the store, admission.

mod authenticate;
mod authorize;
pub mod bootstrap_token;
mod certify;
mod files;
pub mod identity;
mod kubeconfig;
mod node_rules;
mod pki;
mod rbac;
pub mod rule;
mod token;

pub use authenticate::ClusterAuthenticator;
pub use authorize::{ClusterAuthorizer, forbidden_message};
pub use certify::{CertifyError, Terms};
pub use node_rules::references;
pub use pki::{CertifiedPem, Pki, PkiConfig, PkiError, ca_hash};
pub use token::{BoundTo, Claims, Grant, KubernetesClaims, TokenError, Tokens};

use async_trait::async_trait;
use serde_json::Value;

/// Why stored objects could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot read {resource} to decide about a request: {message}")]
pub struct LookupError {
    /// The plural name of the kind.
    pub resource: String,
    /// What the store said.
    pub message: String,
}

/// Reads stored objects. The `api` room implements it on its store.
#[async_trait]
pub trait Lookup: Send + Sync + 'static {
    /// One object by API group (`""` is core), plural name, namespace (`None` when cluster-scoped) and name.
    async fn get(
        &self,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Value>, LookupError>;

    /// As [`Self::get`], where only what lies on these paths (`spec.nodeName`) is needed.
    async fn part(
        &self,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
        paths: &[&str],
    ) -> Result<Option<Value>, LookupError> {
        // The paths only spare a store to read the rest.
        let _ = paths;
        self.get(group, resource, namespace, name).await
    }

    /// All objects of a kind, of one namespace if given.
    async fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Result<Vec<Value>, LookupError>;

    /// Whether one of the objects of a kind in a namespace that mention all of these names anywhere is such. Looks no further than the
    /// first.
    async fn any(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        names: &[&str],
        is_such: &(dyn for<'a> Fn(&'a Value) -> bool + Sync),
    ) -> Result<bool, LookupError> {
        // The names only spare a store to read what cannot be such.
        let _ = names;
        Ok(self.list(group, resource, Some(namespace)).await?.iter().any(is_such))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Objects by plural name, as a store would hold them.
    pub(super) struct Stored(pub(super) Vec<(&'static str, Value)>);

    #[async_trait]
    impl Lookup for Stored {
        async fn get(
            &self,
            _: &str,
            resource: &str,
            namespace: Option<&str>,
            name: &str,
        ) -> Result<Option<Value>, LookupError> {
            let all = self.list("", resource, namespace).await?;
            Ok(all.into_iter().find(|object| object["metadata"]["name"] == name))
        }

        async fn list(&self, _: &str, resource: &str, namespace: Option<&str>) -> Result<Vec<Value>, LookupError> {
            let of_namespace = |object: &&(&str, Value)| {
                object.0 == resource && namespace.is_none_or(|n| object.1["metadata"]["namespace"] == n)
            };
            Ok(self.0.iter().filter(of_namespace).map(|(_, object)| object.clone()).collect())
        }
    }
}
