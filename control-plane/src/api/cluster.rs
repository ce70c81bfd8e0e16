//! The in-process client: what scheduler and controllers use, and what HTTP ends in.

use std::fmt;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use super::hooks::ServiceAllocator;
use super::openapi::types::Types;
use super::read::{self, ListRequest};
use super::watching::{self, Message, Running, Seen, WatchRequest};
use super::write::{Target, Writer};
use super::{codec, patch, sparse};
use crate::auth::identity::{Attributes, Authorizer, Decision, UserInfo};
use crate::resources::ResourceInfo;
use crate::resources::status::StatusError;
use crate::storage::Store;

/// As whom the rooms of this process write.
const ROOMS: &str = "system:stoker-control-plane";

/// The cluster's objects; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(super) core: Arc<Core>,
}

/// What all requests share.
pub(super) struct Core {
    pub(super) store: Arc<dyn Store>,
    pub(super) allocator: OnceLock<Arc<dyn ServiceAllocator>>,
    pub(super) authorizer: OnceLock<Arc<dyn Authorizer>>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}

/// The objects of one kind; cheap to clone. `namespace` is "" for cluster-scoped kinds and, where a list or watch is
/// meant, for all namespaces. Objects are whole JSON objects as a client of HTTP would see them.
#[derive(Clone, Debug)]
pub struct Objects {
    /// The kind.
    pub info: &'static ResourceInfo,
    core: Arc<Core>,
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
pub struct Watch(Running);

impl Watch {
    /// The next change, without `managedFields`; waits for it. After an error (410: list again) the watch is over. Safe to drop.
    pub async fn next(&mut self) -> Result<Change, StatusError> {
        match self.0.next().await? {
            Message::Object(seen, text) => {
                let object = sparse::read_unowned(&text).map_err(StatusError::internal)?;
                Ok(match seen {
                    Seen::Added => Change::Added(object),
                    Seen::Modified => Change::Modified(object),
                    Seen::Deleted => Change::Deleted(object),
                })
            }
            Message::InitialEnd(revision) => Ok(Change::Bookmark(revision)),
        }
    }
}

impl Cluster {
    /// The objects in a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { core: Arc::new(Core { store, allocator: OnceLock::new(), authorizer: OnceLock::new() }) }
    }

    /// From now on Services get their addresses from it; the first one stays.
    pub fn set_service_allocator(&self, allocator: Arc<dyn ServiceAllocator>) {
        if self.core.allocator.set(allocator).is_err() {
            tracing::warn!("the service allocator was set twice; the first one stays");
        }
    }

    /// From now on what somebody may do besides the request itself is asked of it; the first one stays.
    pub fn set_authorizer(&self, authorizer: Arc<dyn Authorizer>) {
        // `serve` sets the one that it decides requests with, which is the same.
        let _ = self.core.authorizer.set(authorizer);
    }

    /// Whether somebody may do something, as a SubjectAccessReview would tell.
    pub async fn allows(&self, asked: &Attributes) -> bool {
        self.core.allows(asked).await
    }

    /// The objects of a kind that this server knows, by group and plural. Panics for one it does not know: the callers
    /// are rooms of this process, and a test of each would fail.
    pub fn objects(&self, group: &str, plural: &str) -> Objects {
        let info = crate::resources::find(group, plural).expect("the kind is in the table of `resources`");
        self.of(info)
    }

    /// The objects of a kind.
    pub fn of(&self, info: &'static ResourceInfo) -> Objects {
        Objects { info, core: self.core.clone() }
    }
}

impl Core {
    /// Whether somebody may do something. Rooms of this process may do everything.
    pub(super) async fn allows(&self, asked: &Attributes) -> bool {
        match self.authorizer.get() {
            Some(authorizer) => matches!(authorizer.authorize(asked).await, Decision::Allow(_)),
            None => asked.user == UserInfo::system(ROOMS),
        }
    }
}

impl Objects {
    fn writer(options: &WriteOptions) -> Writer {
        Writer {
            user: UserInfo::system(ROOMS),
            dry_run: options.dry_run,
            manager: options.field_manager.clone(),
            warnings: Arc::default(),
        }
    }

    fn target<'a>(&self, namespace: &'a str, name: &'a str, subresource: &'a str) -> Target<'a> {
        Target { info: self.info, namespace, name, subresource }
    }

    fn request(namespace: &str, options: &ListOptions) -> ListRequest {
        ListRequest {
            namespace: namespace.to_owned(),
            label_selector: options.label_selector.clone(),
            field_selector: options.field_selector.clone(),
            limit: options.limit,
            continue_token: options.continue_token.clone(),
            ..ListRequest::default()
        }
    }

    /// One object.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Value, StatusError> {
        codec::decode_entry(&read::get(self.core.store.as_ref(), self.info, namespace, name).await?)
    }

    /// Some or all.
    pub async fn list(&self, namespace: &str, options: &ListOptions) -> Result<List, StatusError> {
        let listed = read::list(self.core.store.as_ref(), self.info, &Self::request(namespace, options)).await?;
        Ok(List {
            items: listed.entries.iter().map(codec::decode_entry).collect::<Result<_, _>>()?,
            resource_version: listed.revision,
            continue_token: listed.continue_token,
            remaining: listed.remaining,
        })
    }

    /// What happens after `resource_version` (of a list).
    pub async fn watch(
        &self,
        namespace: &str,
        options: &ListOptions,
        resource_version: u64,
    ) -> Result<Watch, StatusError> {
        let mut list = Self::request(namespace, options);
        list.resource_version = resource_version.to_string();
        let request = WatchRequest { list, ..WatchRequest::default() };
        watching::start(&self.core.store, self.info, &request).await.map(Watch)
    }

    /// A new object; answers with it as stored.
    pub async fn create(&self, namespace: &str, object: Value, options: &WriteOptions) -> Result<Value, StatusError> {
        self.core.create(self.info, namespace, object, &Self::writer(options)).await
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
        let edit = move |_: &Value| Ok(object.clone());
        self.core.update(self.target(namespace, name, subresource), &edit, &Self::writer(options)).await
    }

    /// A patch; where it names no resourceVersion, it is tried again on a conflict.
    pub async fn patch(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        kind: PatchType,
        patch: &Value,
        options: &WriteOptions,
    ) -> Result<Value, StatusError> {
        let info = self.info;
        let edit = move |old: &Value| patched(info, old, kind, patch);
        self.core.update(self.target(namespace, name, subresource), &edit, &Self::writer(options)).await
    }

    /// Reads, lets `change` edit, writes; again on a conflict. `change` says whether there is anything to write.
    pub async fn modify(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        change: impl Fn(&mut Value) -> bool + Send + Sync,
    ) -> Result<Value, StatusError> {
        let edit = move |old: &Value| {
            let mut new = old.clone();
            Ok(if change(&mut new) { new } else { old.clone() })
        };
        let writer = Self::writer(&WriteOptions::default());
        self.core.update(self.target(namespace, name, subresource), &edit, &writer).await
    }

    /// Deletes, as far as grace and finalizers let it; answers with the object's last state.
    pub async fn delete(&self, namespace: &str, name: &str, options: &DeleteOptions) -> Result<Value, StatusError> {
        let writer = Self::writer(&WriteOptions { dry_run: options.dry_run, ..WriteOptions::default() });
        self.core.delete(self.target(namespace, name, ""), options, &writer).await.map(|deleted| deleted.object)
    }

    /// `pods/binding`: sets the node of a pod, once (C3.18).
    pub async fn bind(&self, namespace: &str, name: &str, uid: &str, node: &str) -> Result<(), StatusError> {
        let binding = json!({"metadata": {"name": name, "uid": uid}, "target": {"kind": "Node", "name": node}});
        self.core.bind(namespace, name, &binding, &Self::writer(&WriteOptions::default())).await
    }
}

/// The object that a patch makes of the stored one.
pub(super) fn patched(info: &ResourceInfo, old: &Value, kind: PatchType, patch: &Value) -> Result<Value, StatusError> {
    let mut new = old.clone();
    let result = match kind {
        PatchType::Json => patch::json(&mut new, patch.clone()),
        PatchType::Merge => patch::merge(&mut new, patch),
        PatchType::Strategic => {
            let types = Types::built_in();
            match types.of_kind(info.group, info.version, info.kind) {
                Some(root) => patch::strategic(&mut new, patch.clone(), types, root),
                None => patch::merge(&mut new, patch),
            }
        }
        PatchType::Apply => {
            return Err(StatusError::new(415, "UnsupportedMediaType", "server-side apply needs a field manager"));
        }
    };
    result.map_err(|error| {
        let reason = match error.code() {
            413 => "RequestEntityTooLarge",
            422 => "Invalid",
            _ => "BadRequest",
        };
        StatusError::new(error.code(), reason, error.to_string())
    })?;
    if !new.is_object() || !(new["metadata"].is_object() || new["metadata"].is_null()) {
        return Err(StatusError::bad_request("the patch leaves no object with metadata"));
    }
    Ok(new)
}
