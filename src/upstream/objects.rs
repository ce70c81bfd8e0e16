//! ConfigMaps, Secrets and tokens for pods.
//!
//! What pods mount is watched (`followed`). Everything else, and what is not watched yet, is kept for a second, and one request
//! serves all who ask meanwhile: a burst of pods that mount the same ConfigMap asks once. Absence is not kept, since a pod that
//! waits for an object wants to know at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::json;
use stoker_model::handle::{ApiError, BoundToken, ObjectApi, ObjectName, TrustBundles};
use stoker_model::pod::{PodRef, PodUid};
use tokio::sync::{Notify, OnceCell};

use super::client::{ApiServer, query_value};
use super::followed::{Followable, Followed, watch};
use crate::clock::Clock;

/// How old an answer may be that a pod is given.
const FRESH: Duration = Duration::from_secs(1);
/// So long an object is watched after its last pod.
const LINGER: Duration = Duration::from_secs(60);

/// The API server's side of [`ObjectApi`].
#[derive(Debug)]
pub struct Objects {
    api: ApiServer,
    clock: Clock,
    config_maps: Cache<ConfigMap>,
    secrets: Cache<Secret>,
    followed: Followed,
}

impl Objects {
    /// Reads through this connection.
    pub fn new(api: ApiServer, clock: Clock) -> Self {
        let (config_maps, secrets) = (Cache::default(), Cache::default());
        Self { api, clock, config_maps, secrets, followed: Followed::default() }
    }

    async fn read<T: Followable>(
        &self,
        cache: &Cache<T>,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<T>>, ApiError> {
        if let Some(known) = self.followed.get::<T>(namespace, name) {
            return Ok(known);
        }
        let key = (namespace.to_owned(), name.to_owned());
        let cell = cache.cell(&key, self.clock.now().monotonic);
        let path = format!("/api/v1/namespaces/{namespace}/{}/{name}", T::PLURAL);
        let read = cell.get_or_try_init(|| async { self.api.get::<T>(&path).await.map(Arc::new) }).await;
        match read {
            Ok(object) => {
                self.followed.was_read(namespace, name, object);
                Ok(Some(object.clone()))
            }
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl ObjectApi for Objects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, ApiError> {
        self.read(&self.config_maps, namespace, name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, ApiError> {
        self.read(&self.secrets, namespace, name).await
    }

    async fn runtime_handler(&self, class: &str) -> Result<Option<String>, ApiError> {
        match self.api.get::<RuntimeClass>(&format!("/apis/node.k8s.io/v1/runtimeclasses/{class}")).await {
            Ok(class) => Ok(Some(class.handler)),
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn node_labels(&self, node: &str) -> Result<BTreeMap<String, String>, ApiError> {
        let node: Node = self.api.get(&format!("/api/v1/nodes/{node}")).await?;
        Ok(node.metadata.labels.unwrap_or_default())
    }

    async fn service_account_token(
        &self,
        pod: &PodRef,
        service_account: &str,
        audiences: &[String],
        expiration_seconds: i64,
    ) -> Result<BoundToken, ApiError> {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{service_account}/token", pod.namespace);
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": expiration_seconds,
                "boundObjectRef": {
                    "apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid.as_str(),
                },
            },
        });
        let answer: TokenRequest = self.api.create(&path, &request).await?;
        let status = answer.status.unwrap_or_default();
        match (status.token, status.expiration_timestamp) {
            (Some(token), Some(expires)) => Ok(BoundToken { token, expires: expires.0 }),
            _ => Err(ApiError::Rejected(format!("POST {path}: no token in the answer"))),
        }
    }

    fn follow(&self, pod: &PodUid, objects: BTreeSet<ObjectName>, changed: &Arc<Notify>) {
        if objects.is_empty() {
            if !self.followed.uses(pod) {
                return;
            }
            // The next pod of the namespace may come any moment, and uses at least one of them, the certificates of the API server.
            let (pod, changed, all) = (pod.clone(), changed.clone(), self.followed.clone());
            tokio::spawn(async move {
                tokio::time::sleep(LINGER).await;
                all.set(&pod, BTreeSet::new(), &changed);
            });
            return;
        }
        for (name, stop) in self.followed.set(pod, objects, changed) {
            let (api, all) = (self.api.clone(), self.followed.clone());
            match name {
                ObjectName::ConfigMap(namespace, name) => {
                    tokio::spawn(watch::<ConfigMap>(api, all, namespace, name, stop));
                }
                ObjectName::Secret(namespace, name) => {
                    tokio::spawn(watch::<Secret>(api, all, namespace, name, stop));
                }
            }
        }
    }

    async fn trust_bundles(&self, choice: &TrustBundles) -> Result<Vec<String>, ApiError> {
        let all = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
        match choice {
            TrustBundles::Named(name) => {
                let bundle: Bundle = self.api.get(&format!("{all}/{}", query_value(name))).await?;
                Ok(vec![bundle.spec.trust_bundle])
            }
            TrustBundles::Signer(signer, labels) => {
                let fields = query_value(&format!("spec.signerName={signer}"));
                let labels = query_value(&selector_text(labels));
                let list: Bundles =
                    self.api.get(&format!("{all}?fieldSelector={fields}&labelSelector={labels}")).await?;
                Ok(list.items.into_iter().map(|bundle| bundle.spec.trust_bundle).collect())
            }
        }
    }
}

/// Of a ClusterTrustBundle, what is projected.
#[derive(Deserialize)]
struct Bundle {
    spec: BundleSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BundleSpec {
    trust_bundle: String,
}

#[derive(Deserialize)]
struct Bundles {
    items: Vec<Bundle>,
}

/// A label selector as queries write it.
fn selector_text(selector: &LabelSelector) -> String {
    let equal = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let others = selector.match_expressions.iter().flatten().map(|r| {
        let values = r.values.as_deref().unwrap_or_default().join(",");
        match r.operator.as_str() {
            "In" => format!("{} in ({values})", r.key),
            "NotIn" => format!("{} notin ({values})", r.key),
            "Exists" => r.key.clone(),
            _ => format!("!{}", r.key),
        }
    });
    equal.chain(others).collect::<Vec<_>>().join(",")
}

type Key = (String, String);

#[derive(Debug)]
struct Cache<T>(Mutex<HashMap<Key, Slot<T>>>);

#[derive(Debug)]
struct Slot<T> {
    /// Monotonic time of the request.
    asked: Duration,
    cell: Arc<OnceCell<Arc<T>>>,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Cache<T> {
    /// The slot to read or fill. A slot that nobody could fill stays empty, so the next to ask tries again.
    fn cell(&self, key: &Key, now: Duration) -> Arc<OnceCell<Arc<T>>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| now.saturating_sub(slot.asked) < FRESH);
        slots.entry(key.clone()).or_insert_with(|| Slot { asked: now, cell: Arc::default() }).cell.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_shared_while_fresh_and_then_forgotten() {
        let cache = Cache::<u8>::default();
        let key = ("n".to_owned(), "x".to_owned());
        let start = Duration::from_secs(100);
        let first = cache.cell(&key, start);
        assert!(Arc::ptr_eq(&first, &cache.cell(&key, start + FRESH / 2)));
        assert!(!Arc::ptr_eq(&first, &cache.cell(&key, start + FRESH)));
        cache.cell(&("n".to_owned(), "y".to_owned()), start + FRESH * 9);
        assert_eq!(cache.0.lock().expect("not poisoned").len(), 1);
    }
}
