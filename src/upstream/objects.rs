//! ConfigMaps, Secrets and tokens for pods.
//!
//! An object is kept for a second, and one request serves all who ask meanwhile: a burst of pods that mount the same
//! ConfigMap asks once. Absence is not kept, since a pod that waits for an object wants to know at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde::de::DeserializeOwned;
use serde_json::json;
use stoker_model::handle::{ApiError, BoundToken, ObjectApi};
use stoker_model::pod::PodRef;
use tokio::sync::OnceCell;

use super::client::ApiServer;
use crate::clock::Clock;

/// How old an answer may be that a pod is given.
const FRESH: Duration = Duration::from_secs(1);

/// The API server's side of [`ObjectApi`].
#[derive(Debug)]
pub struct Objects {
    api: ApiServer,
    clock: Clock,
    config_maps: Cache<ConfigMap>,
    secrets: Cache<Secret>,
}

impl Objects {
    /// Reads through this connection.
    pub fn new(api: ApiServer, clock: Clock) -> Self {
        Self { api, clock, config_maps: Cache::default(), secrets: Cache::default() }
    }

    async fn read<T: DeserializeOwned>(
        &self,
        cache: &Cache<T>,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<T>>, ApiError> {
        let key = (namespace.to_owned(), name.to_owned());
        let cell = cache.cell(&key, self.clock.now().monotonic);
        let path = format!("/api/v1/namespaces/{namespace}/{kind}/{name}");
        let read = cell.get_or_try_init(|| async { self.api.get::<T>(&path).await.map(Arc::new) }).await;
        match read {
            Ok(object) => Ok(Some(object.clone())),
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl ObjectApi for Objects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, ApiError> {
        self.read(&self.config_maps, "configmaps", namespace, name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, ApiError> {
        self.read(&self.secrets, "secrets", namespace, name).await
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
