//! An API server in memory: pods with their status, deletion with grace, ConfigMaps and Secrets, events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, PodStatus, Secret};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use stoker_model::handle::{
    ApiError, BoundToken, ClaimApi, CsiDriverInfo, DesiredPods, EventSink, EventSubject, EventType, MirrorApi,
    NodeVolumes, ObjectApi, ObjectName, PodApi, PodFeed, ServiceLinks, StorageApi, TrustBundles,
};
use stoker_model::pod::{PodRef, PodUid};
use tokio::sync::{Notify, watch};

/// Mirror pods made so far.
static MIRRORS: AtomicU32 = AtomicU32::new(1);

/// The objects that a pod uses, and what wakes it when one changes.
type Follower = (BTreeSet<ObjectName>, Arc<Notify>);

#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    pods: watch::Sender<Option<Arc<DesiredPods>>>,
    config_maps: Mutex<BTreeMap<String, Arc<ConfigMap>>>,
    secrets: Mutex<BTreeMap<String, Arc<Secret>>>,
    /// Handlers of RuntimeClasses.
    runtime_classes: Mutex<BTreeMap<String, String>>,
    /// The Node's labels, where they are newer than what its watch has told.
    node_labels: Mutex<Option<BTreeMap<String, String>>>,
    /// Who wants to know of which object.
    followers: Mutex<BTreeMap<PodUid, Follower>>,
    /// What persistent volumes are made of.
    storage: Mutex<Storage>,
    events: Mutex<Vec<String>>,
    /// The events among them that are warnings.
    warnings: Mutex<BTreeSet<String>>,
    /// Pods whose status was Failed at some time.
    failed: Mutex<BTreeSet<PodUid>>,
    /// Tokens asked for: pod, account, audiences, seconds.
    tokens: Mutex<Vec<String>>,
    /// ClusterTrustBundles.
    bundles: Mutex<BTreeMap<String, String>>,
}

impl Api {
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            pods: watch::Sender::new(Some(Arc::default())),
            config_maps: Mutex::default(),
            secrets: Mutex::default(),
            runtime_classes: Mutex::default(),
            node_labels: Mutex::default(),
            followers: Mutex::default(),
            storage: Mutex::default(),
            events: Mutex::default(),
            warnings: Mutex::default(),
            failed: Mutex::default(),
            tokens: Mutex::default(),
            bundles: Mutex::default(),
        }))
    }

    pub fn feed(&self) -> PodFeed {
        self.0.pods.subscribe()
    }

    pub fn put_runtime_class(&self, name: &str, handler: &str) {
        self.0.runtime_classes.lock().unwrap().insert(name.into(), handler.into());
    }

    pub fn put_node_label(&self, key: &str, value: &str) {
        let mut labels = self.0.node_labels.lock().unwrap();
        labels.get_or_insert_default().insert(key.into(), value.into());
    }

    fn edit<T>(&self, change: impl FnOnce(&mut DesiredPods) -> T) -> T {
        let mut result = None;
        self.0.pods.send_modify(|pods| {
            let mut copy = pods.as_deref().cloned().unwrap_or_default();
            result = Some(change(&mut copy));
            *pods = Some(Arc::new(copy));
        });
        result.unwrap()
    }

    pub fn create(&self, pod: Pod) -> PodUid {
        let uid = PodRef::of(&pod).uid;
        self.edit(|pods| pods.insert(uid.clone(), Arc::new(pod)));
        uid
    }

    /// The pod of that name, with its UID.
    pub fn named(&self, name: &str) -> Option<(PodUid, Arc<Pod>)> {
        let pods = self.0.pods.borrow();
        let found = pods.as_ref()?.iter().find(|(_, pod)| pod.metadata.name.as_deref() == Some(name));
        found.map(|(uid, pod)| (uid.clone(), pod.clone()))
    }

    /// From now on the API server does not answer: pods that it has are not told of.
    pub fn go_away(&self) {
        self.0.pods.send_replace(None);
    }

    /// It answers, and has no pods.
    pub fn come_back(&self) {
        self.0.pods.send_replace(Some(Arc::default()));
    }

    pub fn pod(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.0.pods.borrow().as_ref()?.get(uid).cloned()
    }

    /// Changes the spec of a pod.
    pub fn change(&self, uid: &PodUid, change: impl FnOnce(&mut Pod)) {
        self.edit(|pods| {
            let pod = Arc::make_mut(pods.get_mut(uid).expect("the pod is there"));
            change(pod);
            pod.metadata.generation = pod.metadata.generation.map(|generation| generation + 1);
        });
    }

    /// Asks for a graceful deletion.
    pub fn delete(&self, uid: &PodUid, grace: i64) {
        #[expect(clippy::disallowed_methods, reason = "this plays the API server")]
        let now = Timestamp::now();
        self.edit(|pods| {
            let pod = Arc::make_mut(pods.get_mut(uid).expect("the pod is there"));
            pod.metadata.deletion_timestamp = Some(Time(now));
            pod.metadata.deletion_grace_period_seconds = Some(grace);
        });
    }

    /// Does what upstream's node lifecycle controller does to the pods of a node that was silent.
    pub fn mark_unready(&self, uid: &PodUid) {
        self.edit(|pods| {
            let pod = Arc::make_mut(pods.get_mut(uid).expect("the pod is there"));
            let conditions = pod.status.iter_mut().flat_map(|s| s.conditions.iter_mut().flatten());
            conditions.filter(|c| c.type_ == "Ready").for_each(|c| c.status = "False".into());
        });
    }

    /// Takes the object away, as a forced deletion does.
    pub fn remove(&self, uid: &PodUid) {
        self.edit(|pods| pods.remove(uid));
    }

    pub fn put_config_map(&self, name: &str, data: &[(&str, &str)]) {
        let data = data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let object = ConfigMap { data: Some(data), ..ConfigMap::default() };
        self.0.config_maps.lock().unwrap().insert(name.to_owned(), Arc::new(object));
        self.tell_followers(&ObjectName::ConfigMap("default".into(), name.into()));
    }

    /// A ConfigMap that is not of text alone.
    pub fn put_binary(&self, name: &str, text: &[(&str, &str)], binary: &[(&str, &[u8])]) {
        let data = text.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let binary_data = binary.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.to_vec()))).collect();
        let object = ConfigMap { data: Some(data), binary_data: Some(binary_data), ..ConfigMap::default() };
        self.0.config_maps.lock().unwrap().insert(name.to_owned(), Arc::new(object));
        self.tell_followers(&ObjectName::ConfigMap("default".into(), name.into()));
    }

    pub fn put_bundle(&self, name: &str, certificates: &str) {
        self.0.bundles.lock().unwrap().insert(name.to_owned(), certificates.to_owned());
    }

    /// `pod account [audiences] seconds` of each token that was asked for.
    pub fn tokens(&self) -> Vec<String> {
        self.0.tokens.lock().unwrap().clone()
    }

    pub fn put_secret(&self, name: &str, data: &[(&str, &str)]) {
        let data = data.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect();
        let object = Secret { data: Some(data), ..Secret::default() };
        self.0.secrets.lock().unwrap().insert(name.to_owned(), Arc::new(object));
        self.tell_followers(&ObjectName::Secret("default".into(), name.into()));
    }

    fn tell_followers(&self, object: &ObjectName) {
        for (objects, changed) in self.0.followers.lock().unwrap().values() {
            if objects.contains(object) {
                changed.notify_one();
            }
        }
    }

    /// The objects that a pod here uses.
    pub fn followed(&self) -> BTreeSet<ObjectName> {
        self.0.followers.lock().unwrap().values().flat_map(|(objects, _)| objects.clone()).collect()
    }

    /// Edits what persistent volumes are made of.
    pub fn storage<T>(&self, change: impl FnOnce(&mut Storage) -> T) -> T {
        change(&mut self.0.storage.lock().unwrap())
    }

    /// Changes the pod as a client does.
    pub fn change_pod(&self, uid: &PodUid, change: impl FnOnce(&mut Pod)) {
        self.edit(|pods| change(Arc::make_mut(pods.get_mut(uid).expect("the pod is there"))));
    }

    /// A Secret that opens a registry.
    pub fn put_pull_secret(&self, name: &str, kind: &str, key: &str, value: &str) {
        let data = [(key.to_owned(), ByteString(value.as_bytes().to_vec()))].into();
        let object = Secret { data: Some(data), type_: Some(kind.to_owned()), ..Secret::default() };
        self.0.secrets.lock().unwrap().insert(name.to_owned(), Arc::new(object));
    }

    /// `reason: message` of every event, oldest first.
    pub fn events(&self) -> Vec<String> {
        self.0.events.lock().unwrap().clone()
    }

    /// Whether this event was a warning.
    pub fn is_warning(&self, event: &str) -> bool {
        self.0.warnings.lock().unwrap().contains(event)
    }

    /// Waits until the pod looks as wanted.
    #[track_caller]
    pub fn until(
        &self,
        uid: &PodUid,
        what: &str,
        holds: impl Fn(&Pod) -> bool + Send,
    ) -> impl Future<Output = Arc<Pod>> {
        self.wait(uid, what, move |pod| pod.is_some_and(&holds)).then_pod()
    }

    /// Waits until the object is gone; whether it was seen Failed before.
    pub async fn until_failed_or_gone(&self, uid: &PodUid) -> bool {
        let failed = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed");
        self.wait(uid, "failed", move |pod| pod.is_none_or(failed)).run().await;
        let seen = self.0.failed.lock().unwrap().contains(uid);
        self.until_gone(uid).await;
        seen
    }

    /// Waits until the object is gone.
    pub async fn until_gone(&self, uid: &PodUid) {
        self.wait(uid, "gone", |pod| pod.is_none()).run().await;
    }

    fn wait<F: Fn(Option<&Pod>) -> bool>(&self, uid: &PodUid, what: &str, holds: F) -> Wait<F> {
        Wait { api: self.clone(), uid: uid.clone(), what: what.to_owned(), holds }
    }
}

struct Wait<F> {
    api: Api,
    uid: PodUid,
    what: String,
    holds: F,
}

impl<F: Fn(Option<&Pod>) -> bool> Wait<F> {
    async fn run(self) -> Option<Arc<Pod>> {
        let mut feed = self.api.feed();
        let (uid, holds) = (&self.uid, &self.holds);
        let wanted = feed.wait_for(|pods| holds(pods.as_ref().and_then(|p| p.get(uid)).map(|p| &**p)));
        let limit = std::time::Duration::from_secs(40);
        match tokio::time::timeout(limit, wanted).await {
            Ok(pods) => pods.unwrap().as_ref().and_then(|p| p.get(uid)).cloned(),
            Err(_) => panic!(
                "{} was not reached: {:#?}\n{:#?}",
                self.what,
                self.api.pod(uid).and_then(|p| p.status.clone()),
                self.api.events()
            ),
        }
    }

    async fn then_pod(self) -> Arc<Pod> {
        self.run().await.expect("the condition needs a pod")
    }
}

#[async_trait]
impl PodApi for Api {
    async fn patch_status(&self, pod: &PodRef, status: &PodStatus) -> Result<(), ApiError> {
        if status.phase.as_deref() == Some("Failed") {
            self.0.failed.lock().unwrap().insert(pod.uid.clone());
        }
        self.edit(|pods| match pods.get_mut(&pod.uid) {
            None => Err(ApiError::NotFound(format!("pods {:?} not found", pod.name))),
            Some(stored) => {
                Arc::make_mut(stored).status = Some(status.clone());
                Ok(())
            }
        })
    }

    async fn delete_finished(&self, pod: &PodRef) -> Result<(), ApiError> {
        self.edit(|pods| pods.remove(&pod.uid));
        Ok(())
    }
}

#[async_trait]
impl MirrorApi for Api {
    async fn create_mirror(&self, pod: &Pod) -> Result<(), ApiError> {
        let named = |other: &Pod| {
            other.metadata.name == pod.metadata.name && other.metadata.namespace == pod.metadata.namespace
        };
        self.edit(|pods| {
            if pods.values().any(|other| named(other)) {
                return Err(ApiError::Conflict("pods already exists".into()));
            }
            let uid = PodUid::new(&format!("mirror-{}", MIRRORS.fetch_add(1, Ordering::Relaxed)));
            let mut pod = pod.clone();
            pod.metadata.uid = Some(uid.to_string());
            pods.insert(uid, Arc::new(pod));
            Ok(())
        })
    }
}

#[async_trait]
impl ObjectApi for Api {
    async fn runtime_handler(&self, class: &str) -> Result<Option<String>, ApiError> {
        Ok(self.0.runtime_classes.lock().unwrap().get(class).cloned())
    }

    async fn node_labels(&self, _: &str) -> Result<BTreeMap<String, String>, ApiError> {
        let labels = self.0.node_labels.lock().unwrap().clone();
        labels.ok_or_else(|| ApiError::NotFound("nobody answers".into()))
    }

    async fn config_map(&self, _: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, ApiError> {
        Ok(self.0.config_maps.lock().unwrap().get(name).cloned())
    }

    async fn secret(&self, _: &str, name: &str) -> Result<Option<Arc<Secret>>, ApiError> {
        Ok(self.0.secrets.lock().unwrap().get(name).cloned())
    }

    async fn trust_bundles(&self, choice: &TrustBundles) -> Result<Vec<String>, ApiError> {
        let TrustBundles::Named(name) = choice else { return Ok(Vec::new()) };
        let found = self.0.bundles.lock().unwrap().get(name).cloned();
        found.map(|text| vec![text]).ok_or_else(|| ApiError::NotFound(format!("clustertrustbundle {name:?} not found")))
    }

    async fn service_account_token(
        &self,
        pod: &PodRef,
        account: &str,
        audiences: &[String],
        seconds: i64,
    ) -> Result<BoundToken, ApiError> {
        let asked = format!("{}/{} {account} {audiences:?} {seconds}", pod.name, pod.uid);
        self.0.tokens.lock().unwrap().push(asked);
        Ok(BoundToken { token: "a.b.c".into(), expires: "2099-01-01T00:00:00Z".parse().expect("a time") })
    }

    fn follow(&self, pod: &PodUid, objects: BTreeSet<ObjectName>, changed: &Arc<Notify>) {
        let mut followers = self.0.followers.lock().unwrap();
        if objects.is_empty() {
            followers.remove(pod);
        } else {
            followers.insert(pod.clone(), (objects, changed.clone()));
        }
    }
}

/// Objects of storage, by name.
#[derive(Default)]
pub struct Storage {
    pub claims: BTreeMap<String, PersistentVolumeClaim>,
    pub volumes: BTreeMap<String, PersistentVolume>,
    pub drivers: BTreeMap<String, CSIDriver>,
    pub attachments: BTreeMap<String, VolumeAttachment>,
    /// What the Node's status lists, as used and as attached.
    pub attached: BTreeSet<String>,
    /// What CSINode holds.
    pub registered: BTreeMap<String, CsiDriverInfo>,
    /// Claims of dynamic resources.
    pub resource_claims: BTreeMap<String, ResourceClaim>,
    /// Drivers whose slices were removed; `all` for all of them.
    pub removed_slices: Vec<String>,
}

#[async_trait]
impl ClaimApi for Api {
    async fn resource_claim(&self, _: &str, name: &str) -> Result<Option<ResourceClaim>, ApiError> {
        Ok(self.storage(|all| all.resource_claims.get(name).cloned()))
    }

    async fn remove_slices(&self, driver: Option<&str>) -> Result<(), ApiError> {
        self.storage(|all| all.removed_slices.push(driver.unwrap_or("all").to_owned()));
        Ok(())
    }
}

#[async_trait]
impl StorageApi for Api {
    async fn claim(&self, _: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, ApiError> {
        Ok(self.storage(|all| all.claims.get(name).cloned()))
    }

    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, ApiError> {
        Ok(self.storage(|all| all.volumes.get(name).cloned()))
    }

    async fn csi_driver(&self, name: &str) -> Result<Option<CSIDriver>, ApiError> {
        Ok(self.storage(|all| all.drivers.get(name).cloned()))
    }

    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, ApiError> {
        Ok(self.storage(|all| all.attachments.get(name).cloned()))
    }

    async fn volumes_of_node(&self) -> Result<NodeVolumes, ApiError> {
        Ok(self.storage(|all| NodeVolumes { in_use: all.attached.clone(), attached: all.attached.clone() }))
    }

    async fn put_driver(&self, driver: &CsiDriverInfo) -> Result<(), ApiError> {
        self.storage(|all| all.registered.insert(driver.name.clone(), driver.clone()));
        Ok(())
    }

    async fn put_claim_capacity(
        &self,
        _: &str,
        name: &str,
        capacity: &BTreeMap<String, Quantity>,
    ) -> Result<(), ApiError> {
        self.storage(|all| {
            let status = all.claims.get_mut(name).and_then(|claim| claim.status.as_mut()).expect("the claim is there");
            status.capacity = Some(capacity.clone());
        });
        Ok(())
    }

    async fn remove_driver(&self, name: &str) -> Result<(), ApiError> {
        self.storage(|all| all.registered.remove(name));
        Ok(())
    }
}

impl ServiceLinks for Api {
    fn environment(&self, _: &str, _: bool) -> Option<BTreeMap<String, String>> {
        let all = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")];
        Some(all.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    }
}

impl EventSink for Api {
    fn publish(&self, subject: EventSubject, kind: EventType, reason: &str, message: String) {
        self.publish_annotated(subject, kind, reason, message, BTreeMap::new());
    }

    fn publish_annotated(
        &self,
        subject: EventSubject,
        kind: EventType,
        reason: &str,
        message: String,
        annotations: BTreeMap<String, String>,
    ) {
        let place = match subject {
            EventSubject::Pod { pod, field_path } => format!("{} {}", pod.name, field_path.unwrap_or_default()),
            EventSubject::Node => "node".to_owned(),
            EventSubject::Claim { claim, .. } => format!("claim {} ", claim.name),
            other => format!("{other:?}"),
        };
        let annotations: String = annotations.iter().map(|(name, value)| format!("[{name}={value}]")).collect();
        let event = format!("{place} {reason}: {message}{annotations}");
        if kind == EventType::Warning {
            self.0.warnings.lock().unwrap().insert(event.clone());
        }
        self.0.events.lock().unwrap().push(event);
    }
}
