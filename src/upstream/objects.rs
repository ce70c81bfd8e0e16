//! ConfigMaps, Secrets and tokens for pods.
//!
//! What pods mount is watched (`followed`), unless the operator wants it asked for ([`ChangeDetection`]). Everything else, and what is not watched yet, is kept for a second, and one request
//! serves all who ask meanwhile: a burst of pods that mount the same ConfigMap asks once. Absence is not kept, since a pod that
//! waits for an object wants to know at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::json;
use stoker_model::handle::{ApiError, BoundToken, ObjectApi, ObjectName, ServiceAccountInfo, TrustBundles};
use stoker_model::pod::{PodRef, PodUid};
use tokio::sync::{Notify, OnceCell, watch};

use super::client::{ApiServer, query_value};
use super::followed::{self, Followable, Followed};
use crate::clock::Clock;

/// How old an answer may be that a pod is given.
const FRESH: Duration = Duration::from_secs(1);
/// So long an object is watched after its last pod.
const LINGER: Duration = Duration::from_secs(60);

/// How old an answer may be that is asked for again and again, where the Node does not say.
const CACHED: Duration = Duration::from_secs(60);
/// Where the Node says it, in seconds.
const TTL: &str = "node.alpha.kubernetes.io/ttl";

/// How changes of what pods mount are noticed: kubelet's `configMapAndSecretChangeDetectionStrategy` (A9.8).
#[derive(Clone, Debug, Default)]
pub enum ChangeDetection {
    /// `Watch`: each object is watched as long as a pod uses it.
    #[default]
    Watch,
    /// `Cache`: a pod that is looked at asks again, when what is known is older than the Node's annotation allows.
    Cache(watch::Receiver<Option<Node>>),
    /// `Get`: a pod that is looked at asks again.
    Get,
}

/// The API server's side of [`ObjectApi`].
#[derive(Debug)]
pub struct Objects {
    api: ApiServer,
    clock: Clock,
    config_maps: Cache<ConfigMap>,
    secrets: Cache<Secret>,
    followed: Followed,
    detection: ChangeDetection,
    /// Without watches: what each pod uses.
    used: Mutex<HashMap<PodUid, BTreeSet<ObjectName>>>,
}

impl Objects {
    /// Reads through this connection.
    pub fn new(api: ApiServer, clock: Clock) -> Self {
        let (config_maps, secrets) = (Cache::default(), Cache::default());
        let (followed, detection, used) = (Followed::default(), ChangeDetection::default(), Mutex::default());
        Self { api, clock, config_maps, secrets, followed, detection, used }
    }

    /// Notices changes in this way.
    #[must_use]
    pub fn with_detection(self, detection: ChangeDetection) -> Self {
        Self { detection, ..self }
    }

    /// How old an answer may be; `None`: it must be asked for.
    fn fresh(&self) -> Option<Duration> {
        match &self.detection {
            ChangeDetection::Watch => Some(FRESH),
            ChangeDetection::Get => None,
            ChangeDetection::Cache(node) => {
                let node = node.borrow();
                let said = node.as_ref().and_then(|node| node.metadata.annotations.as_ref()?.get(TTL)?.parse().ok());
                Some(said.map_or(CACHED, Duration::from_secs))
            }
        }
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
        let cell = match self.fresh() {
            Some(fresh) => cache.cell(&key, self.clock.now().monotonic, fresh),
            None => Arc::default(),
        };
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

    async fn service_account(&self, namespace: &str, name: &str) -> Result<Option<ServiceAccountInfo>, ApiError> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{}", query_value(name));
        match self.api.get::<ServiceAccount>(&path).await {
            Ok(account) => Ok(Some(ServiceAccountInfo {
                uid: account.metadata.uid.unwrap_or_default(),
                annotations: account.metadata.annotations.unwrap_or_default(),
            })),
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
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
        if !matches!(self.detection, ChangeDetection::Watch) {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let before = if objects.is_empty() { used.remove(pod) } else { used.insert(pod.clone(), objects.clone()) };
            // A pod that is new to an object does not get what another one was given a while ago.
            for name in objects.difference(&before.unwrap_or_default()) {
                match name {
                    ObjectName::ConfigMap(namespace, name) => self.config_maps.forget(namespace, name),
                    ObjectName::Secret(namespace, name) => self.secrets.forget(namespace, name),
                }
            }
            return;
        }
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
                    tokio::spawn(followed::watch::<ConfigMap>(api, all, namespace, name, stop));
                }
                ObjectName::Secret(namespace, name) => {
                    tokio::spawn(followed::watch::<Secret>(api, all, namespace, name, stop));
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
    fn cell(&self, key: &Key, now: Duration, fresh: Duration) -> Arc<OnceCell<Arc<T>>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| now.saturating_sub(slot.asked) < fresh);
        slots.entry(key.clone()).or_insert_with(|| Slot { asked: now, cell: Arc::default() }).cell.clone()
    }

    fn forget(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_slot_is_shared_while_fresh_and_then_forgotten() {
        let cache = Cache::<u8>::default();
        let key = ("n".to_owned(), "x".to_owned());
        let start = Duration::from_secs(100);
        let first = cache.cell(&key, start, FRESH);
        assert!(Arc::ptr_eq(&first, &cache.cell(&key, start + FRESH / 2, FRESH)));
        assert!(!Arc::ptr_eq(&first, &cache.cell(&key, start + FRESH, FRESH)));
        cache.cell(&("n".to_owned(), "y".to_owned()), start + FRESH * 9, FRESH);
        assert_eq!(cache.0.lock().expect("not poisoned").len(), 1);
    }

    /// Answers every request with a ConfigMap whose version is the number of the request.
    async fn serve(listener: TcpListener, asked: Arc<AtomicUsize>) {
        use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|length| length > 2) {
                line.clear();
            }
            let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
            let body = format!(
                r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"m","resourceVersion":"{number}"}}}}"#
            );
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.get_mut().write_all(format!("{head}{body}").as_bytes()).await;
        }
    }

    #[tokio::test]
    async fn whoever_does_not_want_watches_asks_again() {
        // A9.8: the strategies Get and Cache, with the time that the Node's annotation says.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("a URL");
        let api = ApiServer::new(&kube::Config::new(url)).expect("a connection");
        let asked = Arc::new(AtomicUsize::new(0));
        let server = tokio::spawn(serve(listener, asked.clone()));
        let (node, of_node) = watch::channel(None);
        let annotated = |seconds: &str| {
            let mut node = Node::default();
            node.metadata.annotations = Some([(TTL.to_owned(), seconds.to_owned())].into());
            Some(node)
        };
        let read = async |objects: &Objects| {
            let found = objects.config_map("n", "m").await.expect("an answer").expect("an object");
            found.metadata.resource_version.clone().expect("a version")
        };
        let (changed, name) = (Arc::new(Notify::new()), ObjectName::ConfigMap("n".into(), "m".into()));
        let follow = |objects: &Objects, pod: &str| objects.follow(&PodUid::new(pod), [name.clone()].into(), &changed);

        let get = Objects::new(api.clone(), Clock).with_detection(ChangeDetection::Get);
        follow(&get, "a");
        assert_eq!([read(&get).await, read(&get).await], ["1", "2"]);
        let cached = Objects::new(api, Clock).with_detection(ChangeDetection::Cache(of_node));
        follow(&cached, "a");
        assert_eq!([read(&cached).await, read(&cached).await], ["3", "3"]);
        assert_eq!(cached.fresh(), Some(Duration::from_secs(60)));
        follow(&cached, "a");
        assert_eq!(read(&cached).await, "3", "the pod knows it");
        follow(&cached, "b");
        assert_eq!(read(&cached).await, "4", "another pod wants to know what it is now");
        node.send_replace(annotated("300"));
        assert_eq!((cached.fresh(), read(&cached).await), (Some(Duration::from_secs(300)), "4".to_owned()));
        node.send_replace(annotated("0"));
        assert_eq!([read(&cached).await, read(&cached).await], ["5", "6"]);
        node.send_replace(annotated("soon"));
        assert_eq!(cached.fresh(), Some(Duration::from_secs(60)));
        assert_eq!(asked.load(Ordering::SeqCst), 6, "and nobody watches");
        server.abort();
    }
}
