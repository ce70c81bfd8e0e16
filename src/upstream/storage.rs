//! Claims, persistent volumes and CSI drivers: what volumes of this node are made of.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSINodeDriver, CSINodeSpec, VolumeAttachment, VolumeNodeResources,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::de::DeserializeOwned;
use serde_json::json;
use stoker_model::handle::{ApiError, CsiDriverInfo, NodeVolumes, StorageApi};

use super::backoff::Backoff;
use super::client::{ApiServer, PatchKind, query_value};

/// The node's IDs as its drivers know it, as JSON (A9.18).
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// So often a write is tried that others interfere with.
const TRIES: usize = 5;

/// The API server's side of [`StorageApi`].
#[derive(Clone, Debug)]
pub struct Storage {
    api: ApiServer,
    node: String,
}

impl Storage {
    /// For the node of that name.
    pub const fn new(api: ApiServer, node: String) -> Self {
        Self { api, node }
    }

    /// Makes the node's CSINode, where there is none: however long it takes (A13.11).
    pub async fn ensure_csi_node(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        let mut told = String::new();
        while let Err(error) = self.change_node(|_| ()).await {
            let reason = error.to_string();
            if reason == told {
                tracing::debug!(error = reason, "the node still has no CSINode");
            } else {
                tracing::warn!(
                    error = reason,
                    "CSINode cannot be made, and the node is not Ready before: nodes need the right to create csinodes (ClusterRole system:node)"
                );
                told = reason;
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ApiError> {
        match self.api.get(path).await {
            Ok(object) => Ok(Some(object)),
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Changes CSINode until nobody interferes.
    async fn change_node(&self, change: impl Fn(&mut Vec<CSINodeDriver>)) -> Result<(), ApiError> {
        let all = "/apis/storage.k8s.io/v1/csinodes";
        let path = format!("{all}/{}", query_value(&self.node));
        let mut last = ApiError::Conflict("CSINode changes all the time".to_owned());
        for _ in 0..TRIES {
            let found: Option<CSINode> = self.read(&path).await?;
            let exists = found.is_some();
            let mut node = match found {
                Some(node) => node,
                None => self.new_csi_node().await?,
            };
            let before = node.spec.drivers.clone();
            change(&mut node.spec.drivers);
            if exists && node.spec.drivers == before {
                return Ok(());
            }
            let written: Result<CSINode, ApiError> =
                if exists { self.api.update(&path, &node).await } else { self.api.create(all, &node).await };
            match written {
                Ok(_) => return Ok(()),
                Err(error @ ApiError::Conflict(_)) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn new_csi_node(&self) -> Result<CSINode, ApiError> {
        let node: Node = self.api.get(&format!("/api/v1/nodes/{}", query_value(&self.node))).await?;
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node.clone(),
            uid: node.metadata.uid.unwrap_or_default(),
            ..OwnerReference::default()
        };
        let metadata =
            ObjectMeta { name: Some(self.node.clone()), owner_references: Some(vec![owner]), ..ObjectMeta::default() };
        Ok(CSINode { metadata, spec: CSINodeSpec { drivers: Vec::new() } })
    }

    /// Changes the IDs in the Node's annotation, and its topology labels.
    async fn change_ids(
        &self,
        topology: &BTreeMap<String, String>,
        change: impl Fn(&mut BTreeMap<String, String>),
    ) -> Result<(), ApiError> {
        let path = format!("/api/v1/nodes/{}", query_value(&self.node));
        let node: Node = self.api.get(&path).await?;
        let text = node.metadata.annotations.as_ref().and_then(|all| all.get(NODE_IDS));
        let before: BTreeMap<String, String> =
            text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let mut ids = before.clone();
        change(&mut ids);
        let labels = node.metadata.labels.unwrap_or_default();
        for (key, value) in topology {
            if let Some(other) = labels.get(key).filter(|other| *other != value) {
                let text = format!(
                    "detected topology value collision: driver reported \"{key}\":\"{value}\" but existing label is \"{key}\":\"{other}\""
                );
                return Err(ApiError::Rejected(text));
            }
        }
        if ids == before && topology.keys().all(|key| labels.contains_key(key)) {
            return Ok(());
        }
        let value = if ids.is_empty() { json!(null) } else { json!(json!(ids).to_string()) };
        let patch = json!({"metadata": {"annotations": {NODE_IDS: value}, "labels": topology}});
        self.api.patch::<serde::de::IgnoredAny>(&path, PatchKind::Strategic, &patch).await.map(drop)
    }
}

#[async_trait]
impl StorageApi for Storage {
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, ApiError> {
        self.read(&format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")).await
    }

    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, ApiError> {
        self.read(&format!("/api/v1/persistentvolumes/{name}")).await
    }

    async fn csi_driver(&self, name: &str) -> Result<Option<CSIDriver>, ApiError> {
        self.read(&format!("/apis/storage.k8s.io/v1/csidrivers/{name}")).await
    }

    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, ApiError> {
        self.read(&format!("/apis/storage.k8s.io/v1/volumeattachments/{name}")).await
    }

    async fn volumes_of_node(&self) -> Result<NodeVolumes, ApiError> {
        let node: Node = self.api.get(&format!("/api/v1/nodes/{}", query_value(&self.node))).await?;
        let status = node.status.unwrap_or_default();
        Ok(NodeVolumes {
            in_use: status.volumes_in_use.into_iter().flatten().collect(),
            attached: status.volumes_attached.into_iter().flatten().map(|volume| volume.name).collect(),
        })
    }

    async fn put_driver(&self, driver: &CsiDriverInfo) -> Result<(), ApiError> {
        self.change_ids(&driver.topology, |ids| drop(ids.insert(driver.name.clone(), driver.node_id.clone()))).await?;
        let limit = i32::try_from(driver.attach_limit).ok().filter(|limit| *limit > 0);
        let entry = CSINodeDriver {
            name: driver.name.clone(),
            node_id: driver.node_id.clone(),
            topology_keys: Some(driver.topology.keys().cloned().collect::<Vec<_>>()).filter(|keys| !keys.is_empty()),
            allocatable: limit.map(|count| VolumeNodeResources { count: Some(count) }),
        };
        self.change_node(|drivers| {
            // What is as it should be is not written, whatever its order.
            if !drivers.contains(&entry) {
                drivers.retain(|known| known.name != entry.name);
                drivers.push(entry.clone());
            }
        })
        .await
    }

    async fn put_claim_capacity(
        &self,
        namespace: &str,
        name: &str,
        capacity: &BTreeMap<String, Quantity>,
    ) -> Result<(), ApiError> {
        let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}/status");
        // Nothing is left to be done for its size.
        let patch = json!({"status": {"capacity": capacity, "conditions": [
            {"type": "FileSystemResizePending", "$patch": "delete"}, {"type": "Resizing", "$patch": "delete"},
        ]}});
        self.api.patch::<serde::de::IgnoredAny>(&path, PatchKind::Strategic, &patch).await.map(drop)
    }

    async fn remove_driver(&self, name: &str) -> Result<(), ApiError> {
        self.change_node(|drivers| drivers.retain(|known| known.name != name)).await?;
        self.change_ids(&BTreeMap::new(), |ids| drop(ids.remove(name))).await
    }
}
