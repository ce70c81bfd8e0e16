//! This node's own objects: Node and Lease.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use serde_json::Value;
use stoker_model::handle::ApiError;
use tokio::sync::watch;

use super::client::ApiServer;
use super::watch::{Change, Sink, Watchable, Watched, run};

/// Reads and writes the Node and the Lease of one name.
#[derive(Clone, Debug)]
pub struct NodeApi {
    api: ApiServer,
    name: String,
}

impl NodeApi {
    /// For the node of that name.
    pub const fn new(api: ApiServer, name: String) -> Self {
        Self { api, name }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Creates the Node.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when it exists.
    pub async fn create(&self, node: &Node) -> Result<Node, ApiError> {
        self.api.create("/api/v1/nodes", node).await
    }

    /// Reads the Node.
    ///
    /// # Errors
    /// As the API server answers.
    pub async fn get(&self) -> Result<Node, ApiError> {
        self.api.get(&self.path()).await
    }

    /// Strategic-merge PATCH of the Node.
    ///
    /// # Errors
    /// As the API server answers.
    pub async fn patch(&self, patch: &Value) -> Result<Node, ApiError> {
        self.api.patch(&self.path(), patch).await
    }

    /// Strategic-merge PATCH of `nodes/status`.
    ///
    /// # Errors
    /// As the API server answers.
    pub async fn patch_status(&self, patch: &Value) -> Result<Node, ApiError> {
        self.api.patch(&format!("{}/status", self.path()), patch).await
    }

    /// Reads the Lease.
    ///
    /// # Errors
    /// As the API server answers.
    pub async fn lease(&self) -> Result<Lease, ApiError> {
        self.api.get(&format!("{}/{}", Self::LEASES, self.name)).await
    }

    /// Creates the Lease.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when it exists.
    pub async fn create_lease(&self, lease: &Lease) -> Result<Lease, ApiError> {
        self.api.create(Self::LEASES, lease).await
    }

    /// Writes the Lease back.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when somebody else wrote it since it was read.
    pub async fn update_lease(&self, lease: &Lease) -> Result<Lease, ApiError> {
        self.api.update(&format!("{}/{}", Self::LEASES, self.name), lease).await
    }

    /// Follows the Node as others change it (labels, taints, `unschedulable`). `None` while it is not known or does
    /// not exist. The second value is the task to spawn.
    pub fn watch(&self) -> (watch::Receiver<Option<Node>>, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = watch::channel(None);
        let (api, name) = (self.api.clone(), self.name.clone());
        let task = async move {
            let watched =
                Watched { path: "/api/v1/nodes", fields: format!("metadata.name={name}"), labels: String::new() };
            let mut sink = NodeSink { name, sender, seen: false };
            run(&api, &watched, &mut sink).await;
        };
        (receiver, task)
    }

    const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

    fn path(&self) -> String {
        format!("/api/v1/nodes/{}", self.name)
    }
}

impl Watchable for Node {
    fn resource_version(&self) -> &str {
        self.metadata.resource_version.as_deref().unwrap_or_default()
    }
}

struct NodeSink {
    name: String,
    sender: watch::Sender<Option<Node>>,
    /// The running list named it.
    seen: bool,
}

impl Sink<Node> for NodeSink {
    async fn take(&mut self, change: Change<Node>) -> bool {
        match change {
            Change::Listing => self.seen = false,
            Change::Present(mut node) if node.metadata.name.as_deref() == Some(&self.name) => {
                self.seen = true;
                node.metadata.managed_fields = None;
                self.sender.send_replace(Some(node));
            }
            Change::Gone(node) if node.metadata.name.as_deref() == Some(&self.name) => {
                self.sender.send_replace(None);
            }
            Change::Listed if !self.seen => {
                self.sender.send_replace(None);
            }
            // Not to be read is not to be gone.
            Change::Unreadable { meta, gone: false } if meta.name == self.name => self.seen = true,
            Change::Present(_) | Change::Gone(_) | Change::Unreadable { .. } | Change::Listed => {}
        }
        !self.sender.is_closed()
    }
}
