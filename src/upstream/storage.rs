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
use super::client::{ApiServer, query_value};

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
        self.api.patch_unread(&path, &patch).await.map(drop)
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
        self.api.patch_unread(&path, &patch).await.map(drop)
    }

    async fn remove_driver(&self, name: &str) -> Result<(), ApiError> {
        self.change_node(|drivers| drivers.retain(|known| known.name != name)).await?;
        self.change_ids(&BTreeMap::new(), |ids| drop(ids.remove(name))).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

    /// What a patch of nested maps does.
    fn merge(object: &mut Value, patch: &Value) {
        let (Some(fields), Some(changes)) = (object.as_object_mut(), patch.as_object()) else {
            *object = patch.clone();
            return;
        };
        for (key, value) in changes {
            match value {
                Value::Null => drop(fields.remove(key)),
                value => merge(fields.entry(key.clone()).or_insert(Value::Null), value),
            }
        }
    }

    /// One request to an API server that holds a few objects.
    async fn answer(stream: TcpStream, objects: Objects) {
        let mut stream = BufReader::new(stream);
        let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
        while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
            if first.is_empty() {
                first.clone_from(&line);
            }
            if let Some(said) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = said.trim().parse().expect("a number");
            }
            line.clear();
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.expect("a body");
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let mut words = first.split(' ');
        let (verb, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
        let result = {
            let mut objects = objects.lock().expect("not poisoned");
            match verb {
                "POST" => {
                    let name = body["metadata"]["name"].as_str().unwrap_or_default();
                    objects.insert(format!("{path}/{name}"), body.clone());
                }
                "PUT" => drop(objects.insert(path.clone(), body.clone())),
                "PATCH" => merge(objects.entry(path.clone()).or_default(), &body),
                _ => {}
            }
            if verb == "POST" { Some(body) } else { objects.get(&path).cloned() }
        };
        let (code, text) = match result {
            Some(object) => ("200 OK", object.to_string()),
            None => {
                let status = json!({"kind": "Status", "apiVersion": "v1", "code": 404, "reason": "NotFound"});
                ("404 Not Found", status.to_string())
            }
        };
        let head = format!("HTTP/1.1 {code}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", text.len());
        let _ = stream.get_mut().write_all(format!("{head}{text}").as_bytes()).await;
    }

    #[tokio::test]
    async fn the_cluster_learns_of_drivers() {
        // A9.18
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("a URL");
        let api = ApiServer::new(&kube::Config::new(url)).expect("a connection");
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {
            "name": "n1", "uid": "n1-uid", "labels": {"mine": "stays"}, "annotations": {"mine": "stays"},
        }});
        let objects: Objects = Arc::new(Mutex::new([("/api/v1/nodes/n1".to_owned(), node)].into()));
        let held = objects.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, held.clone()));
            }
        });
        let storage = Storage::new(api, "n1".into());
        let rack = || -> BTreeMap<String, String> { [("example.com/rack".to_owned(), "r1".to_owned())].into() };
        let driver = |name: &str, attach_limit, topology| CsiDriverInfo {
            name: name.into(),
            node_id: format!("{name}-on-n1"),
            attach_limit,
            topology,
        };
        storage.put_driver(&driver("disk.example.com", 8, rack())).await.expect("written");
        storage.put_driver(&driver("nfs.example.com", 0, BTreeMap::new())).await.expect("written");
        let at = |path: &str| objects.lock().expect("not poisoned")[path].clone();
        let csi_node = || at("/apis/storage.k8s.io/v1/csinodes/n1");
        let owner = &csi_node()["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Node"), &json!("n1-uid")));
        let drivers = json!([
            {"name": "disk.example.com", "nodeID": "disk.example.com-on-n1", "topologyKeys": ["example.com/rack"], "allocatable": {"count": 8}},
            {"name": "nfs.example.com", "nodeID": "nfs.example.com-on-n1"},
        ]);
        assert_eq!(csi_node()["spec"]["drivers"], drivers);
        let metadata = || at("/api/v1/nodes/n1")["metadata"].clone();
        let ids = r#"{"disk.example.com":"disk.example.com-on-n1","nfs.example.com":"nfs.example.com-on-n1"}"#;
        assert_eq!(metadata()["annotations"], json!({"mine": "stays", NODE_IDS: ids}));
        assert_eq!(metadata()["labels"], json!({"mine": "stays", "example.com/rack": "r1"}));
        // Two places for one machine cannot be.
        let elsewhere = [("example.com/rack".to_owned(), "r2".to_owned())].into();
        let error = storage.put_driver(&driver("late.example.com", 0, elsewhere)).await.expect_err("a collision");
        assert!(error.to_string().contains("detected topology value collision"), "{error}");
        // What goes takes its entries with it, and the last one the annotation.
        storage.remove_driver("disk.example.com").await.expect("written");
        storage.remove_driver("nfs.example.com").await.expect("written");
        assert_eq!(
            (csi_node()["spec"]["drivers"].clone(), metadata()["annotations"].clone()),
            (json!([]), json!({"mine": "stays"}))
        );
        server.abort();
    }
}
