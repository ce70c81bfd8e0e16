//! The in-process client: what scheduler and controllers use, and what HTTP ends in.

use serde_json::Value;

use crate::resources::ResourceInfo;
use crate::resources::status::StatusError;

/// The cluster's objects; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster {}

/// The objects of one kind; cheap to clone. `namespace` is "" for cluster-scoped kinds and, where a list or watch is
/// meant, for all namespaces. Objects are whole JSON objects as a client of HTTP would see them.
#[derive(Clone, Debug)]
pub struct Objects {
    /// The kind.
    pub info: &'static ResourceInfo,
}

/// What a list shows.
#[derive(Clone, Debug, Default)]
pub struct List {
    /// The objects.
    pub items: Vec<Value>,
    /// The revision that it shows; where a watch goes on.
    pub resource_version: u64,
    /// Where the next page begins; empty on the last.
    pub continue_token: String,
    /// How many follow; `None` where that is not known.
    pub remaining: Option<usize>,
}

/// What to list or watch.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// `app=web`.
    pub label_selector: String,
    /// `spec.nodeName=n1`.
    pub field_selector: String,
    /// At most so many; 0 is all.
    pub limit: usize,
    /// From the page before.
    pub continue_token: String,
}

/// How to write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Nothing is stored.
    pub dry_run: bool,
    /// For managedFields.
    pub field_manager: String,
    /// Of an apply patch: conflicts are overruled.
    pub force: bool,
}

/// Kinds of patch (C3.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own (C3.11).
    Strategic,
    /// Server-side apply (C3.12).
    Apply,
}

/// What becomes of dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They stay.
    Orphan,
    /// They go after their owner.
    Background,
    /// They go before their owner.
    Foreground,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds; `None`: the object's own.
    pub grace_period_seconds: Option<i64>,
    /// Only this very object.
    pub uid: Option<String>,
    /// Only this very state of it.
    pub resource_version: Option<String>,
    /// What becomes of dependents; `None`: the kind's default.
    pub propagation: Option<Propagation>,
    /// Nothing is stored.
    pub dry_run: bool,
}

/// A change seen by a watch.
#[derive(Clone, Debug)]
pub enum Change {
    /// There is a new object, or one that is new to the selector.
    Added(Value),
    /// It changed.
    Modified(Value),
    /// It is gone, or left the selector; its last state.
    Deleted(Value),
    /// Everything up to this resourceVersion was seen.
    Bookmark(u64),
}

/// A running watch.
#[derive(Debug)]
pub struct Watch {}

impl Watch {
    /// The next change; waits for it. After an error (410: list again) the watch is over. Safe to drop.
    pub async fn next(&mut self) -> Result<Change, StatusError> {
        Err(StatusError::unavailable("not served yet"))
    }
}

impl Cluster {
    /// The objects of a kind that this server knows, by group and plural. Panics for one it does not know: the callers
    /// are rooms of this process, and a test of each would fail.
    pub fn objects(&self, group: &str, plural: &str) -> Objects {
        let info = crate::resources::find(group, plural).expect("the kind is in the table of `resources`");
        Objects { info }
    }
}

impl Objects {
    /// One object.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Value, StatusError> {
        let _ = (namespace, name);
        Err(StatusError::unavailable("not served yet"))
    }

    /// Some or all.
    pub async fn list(&self, namespace: &str, options: &ListOptions) -> Result<List, StatusError> {
        let _ = (namespace, options);
        Err(StatusError::unavailable("not served yet"))
    }

    /// What happens after `resource_version` (of a list).
    pub async fn watch(
        &self,
        namespace: &str,
        options: &ListOptions,
        resource_version: u64,
    ) -> Result<Watch, StatusError> {
        let _ = (namespace, options, resource_version);
        Err(StatusError::unavailable("not served yet"))
    }

    /// A new object; answers with it as stored.
    pub async fn create(&self, namespace: &str, object: Value, options: &WriteOptions) -> Result<Value, StatusError> {
        let _ = (namespace, object, options);
        Err(StatusError::unavailable("not served yet"))
    }

    /// A changed object; with a resourceVersion only if that is still the newest. `subresource` is "" or `status`, ….
    pub async fn update(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Value, StatusError> {
        let _ = (namespace, name, subresource, object, options);
        Err(StatusError::unavailable("not served yet"))
    }

    /// A patch; merge and strategic ones are tried again on a conflict.
    pub async fn patch(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        kind: PatchType,
        patch: &Value,
        options: &WriteOptions,
    ) -> Result<Value, StatusError> {
        let _ = (namespace, name, subresource, kind, patch, options);
        Err(StatusError::unavailable("not served yet"))
    }

    /// Reads, lets `change` edit, writes; again on a conflict. `change` says whether there is anything to write.
    pub async fn modify(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        change: impl Fn(&mut Value) -> bool + Send + Sync,
    ) -> Result<Value, StatusError> {
        let _ = (namespace, name, subresource, change(&mut Value::Null));
        Err(StatusError::unavailable("not served yet"))
    }

    /// Deletes, as far as grace and finalizers let it; answers with the object's last state.
    pub async fn delete(&self, namespace: &str, name: &str, options: &DeleteOptions) -> Result<Value, StatusError> {
        let _ = (namespace, name, options);
        Err(StatusError::unavailable("not served yet"))
    }

    /// `pods/binding`: sets the node of a pod, once (C3.18).
    pub async fn bind(&self, namespace: &str, name: &str, uid: &str, node: &str) -> Result<(), StatusError> {
        let _ = (namespace, name, uid, node);
        Err(StatusError::unavailable("not served yet"))
    }
}
