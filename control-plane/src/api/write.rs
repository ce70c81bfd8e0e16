//! Create and update: defaulting, admission, validation, one guarded write (C3.13 to C3.17).

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::cluster::Core;
use super::openapi::types::Types;
use super::patch::apply::{self, Manager};
use super::read::store_error;
use super::{admission, codec, meta, read};
use crate::auth::identity::UserInfo;
use crate::clock;
use crate::resources::field::FieldError;
use crate::resources::status::StatusError;
use crate::resources::tree::{drop_nulls, items, text};
use crate::resources::{self, ResourceInfo, certificates, pod_changes, service};
use crate::storage::{Change, Guard, Revision, StoreError, Write};

/// How often a generated name that is taken, or an unconditional update that lost a race, is tried again.
const TRIES: usize = 8;

/// Who writes, and how.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    pub(super) user: UserInfo,
    pub(super) dry_run: bool,
    /// Who is noted in `managedFields`; nothing is noted if it is empty (rooms of this process) or if the edit is an
    /// apply, which notes by itself.
    pub(super) manager: String,
    /// What the client is told besides the answer.
    pub(super) warnings: Arc<Mutex<Vec<String>>>,
}

impl Writer {
    /// Tells the client something.
    pub(super) fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// What the client is to be told.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One object by its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) info: &'static ResourceInfo,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// "" or `status`, ….
    pub(super) subresource: &'a str,
}

/// Whether a sub-resource changes part of a pod's spec.
fn is_pod_change(info: &ResourceInfo, subresource: &str) -> bool {
    info.group.is_empty() && info.plural == "pods" && matches!(subresource, "ephemeralcontainers" | "resize")
}

/// What an update does to the object as it is: the new object, or why not.
pub(super) type Edit<'a> = dyn Fn(&Value) -> Result<Value, StatusError> + Send + Sync + 'a;

impl Core {
    /// A new object.
    pub(super) async fn create(
        &self,
        info: &'static ResourceInfo,
        namespace: &str,
        object: Value,
        writer: &Writer,
    ) -> Result<Value, StatusError> {
        let mut object = normalise(info, object)?;
        meta::begin(info, namespace, &mut object)?;
        self.check_namespace_lives(info, namespace, &object).await?;
        if info.strategy.status
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
        (info.strategy.default)(&mut object);
        let generated = text(&object["metadata"], "name").is_empty();
        for _ in 0..TRIES {
            let mut candidate = object.clone();
            meta::generate_name(&mut candidate);
            match self.create_named(info, namespace, candidate, writer).await {
                Err(error) if generated && error.is_already_exists() => {}
                result => return result,
            }
        }
        Err(StatusError::already_exists(info, text(&object["metadata"], "generateName")))
    }

    async fn create_named(
        &self,
        info: &'static ResourceInfo,
        namespace: &str,
        mut object: Value,
        writer: &Writer,
    ) -> Result<Value, StatusError> {
        let name = text(&object["metadata"], "name").to_owned();
        admission::admit_create(self, info, &mut object, &writer.user).await?;
        (info.strategy.prepare_create)(&mut object);
        let errors = validate(info, &object);
        // Addresses are given only to what is otherwise right, since giving them leaves a trace.
        let allocation =
            if errors.is_empty() { self.allocate(info, &mut object, None, writer.dry_run).await? } else { None };
        let mut errors = errors;
        if errors.is_empty() {
            errors = (info.strategy.validate)(&object);
        }
        let result = if !errors.is_empty() {
            Err(StatusError::invalid(info, &name, &errors))
        } else {
            let key = codec::key(info, namespace, &name);
            note_owner(info, "", None, &mut object, writer);
            warn(info, "", &object, writer);
            match admission::validate(self, info, "", &object, None, writer).await {
                Ok(charge) => {
                    let put = self.put(info, key, &name, object, Guard::Absent, writer.dry_run).await;
                    self.keep_or_refund(charge, put).await
                }
                Err(error) => Err(error),
            }
        };
        self.settle(allocation, result.is_ok() && !writer.dry_run).await;
        result
    }

    /// A changed object. `edit` gets the stored one with its resourceVersion and makes the new one; where it leaves the
    /// resourceVersion empty or as it was read, a lost race is run again.
    pub(super) async fn update(
        &self,
        target: Target<'_>,
        edit: &Edit<'_>,
        writer: &Writer,
    ) -> Result<Value, StatusError> {
        let Target { info, namespace, name, .. } = target;
        let mut tries = 0;
        loop {
            let entry = read::get(self.store.as_ref(), info, namespace, name).await?;
            let old = codec::decode_entry(&entry)?;
            let new = edit(&old)?;
            let asked = text(&new["metadata"], "resourceVersion").to_owned();
            if !matches!(asked.as_str(), "" | "0") && asked != text(&old["metadata"], "resourceVersion") {
                return Err(StatusError::stale(info, name));
            }
            match self.update_once(target, &old, new, entry.revision, writer).await {
                Err(error) if error.is_conflict() && error.details.is_none() => {
                    tries += 1;
                    if tries >= TRIES {
                        return Err(StatusError::stale(info, name));
                    }
                }
                result => return result,
            }
        }
    }

    async fn update_once(
        &self,
        target: Target<'_>,
        old: &Value,
        new: Value,
        revision: Revision,
        writer: &Writer,
    ) -> Result<Value, StatusError> {
        let Target { info, namespace, name, subresource } = target;
        check_identity(info, name, namespace, &new, old)?;
        let mut new = normalise_change(info, subresource, new, old)?;
        meta::carry_over(info, &mut new, old);
        let is_request = certificates::is_signing_request(info);
        if is_request {
            new = certificates::only(subresource, &new, old, &clock::seconds_text(clock::now()));
        } else if subresource == "status" {
            new = status_only(info, &new, old);
            (info.strategy.prepare_status)(&mut new, old);
        } else if is_pod_change(info, subresource) {
            new = pod_changes::only(subresource, &new, old);
        } else if subresource.is_empty() && info.strategy.status {
            set_or_remove(&mut new, "status", &old["status"]);
        }
        (info.strategy.default)(&mut new);
        if subresource.is_empty() {
            (info.strategy.prepare_update)(&mut new, old);
        }
        if info.strategy.generation && !matches!(subresource, "status" | "binding") && meta::spec_changed(&new, old) {
            new["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        note_owner(info, subresource, Some(old), &mut new, writer);
        if new == *old {
            return Ok(new);
        }
        let mut errors = Vec::new();
        let mut allocation = None;
        admission::admit_update(self, info, subresource, &new, old, &writer.user).await?;
        errors.extend(meta::validate(info, &new));
        errors.extend(meta::check_finalizers(&new, old));
        if is_request {
            errors.extend(certificates::validate_change(subresource, &new, old));
        } else if subresource == "status" {
            errors.extend((info.strategy.validate_status)(&new, old));
        } else {
            if subresource.is_empty() {
                errors.extend((info.strategy.validate_update)(&new, old));
            } else if is_pod_change(info, subresource) {
                errors.extend(pod_changes::validate(subresource, &new, old));
            }
            if errors.is_empty() {
                allocation = self.allocate(info, &mut new, Some(old), writer.dry_run).await?;
                errors.extend((info.strategy.validate)(&new));
            }
        }
        let result = if !errors.is_empty() {
            Err(StatusError::invalid(info, name, &errors))
        } else if is_finished(info, &new) {
            self.remove(info, namespace, name, new, revision, writer.dry_run).await
        } else {
            let key = codec::key(info, namespace, name);
            warn(info, subresource, &new, writer);
            match admission::validate(self, info, subresource, &new, Some(old), writer).await {
                Ok(charge) => {
                    let put = self.put(info, key, name, new, Guard::Unchanged(revision), writer.dry_run).await;
                    self.keep_or_refund(charge, put).await
                }
                Err(error) => Err(error),
            }
        };
        self.settle(allocation, result.is_ok() && !writer.dry_run).await;
        result
    }

    /// What was counted for a write that failed is given back.
    async fn keep_or_refund(
        &self,
        charge: admission::Charge,
        written: Result<Value, StatusError>,
    ) -> Result<Value, StatusError> {
        if written.is_err() {
            admission::refund(self, charge).await;
        }
        written
    }

    /// Writes, and answers with the object and its new resourceVersion. A lost race is a conflict without details.
    pub(super) async fn put(
        &self,
        info: &ResourceInfo,
        key: String,
        name: &str,
        mut object: Value,
        guard: Guard,
        dry_run: bool,
    ) -> Result<Value, StatusError> {
        // The data of a revision is whatever its controller wants to find again.
        if info.plural != "controllerrevisions" {
            drop_nulls(&mut object);
        }
        if dry_run {
            if guard == Guard::Absent && self.store.get(&key).await.map_err(store_error)?.0.is_some() {
                return Err(StatusError::already_exists(info, name));
            }
            return Ok(object);
        }
        let change = Change::Put(codec::encode(&object)?);
        let revision = self.commit(info, name, Write { key, guard, change }).await?;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        Ok(object)
    }

    pub(super) async fn commit(&self, info: &ResourceInfo, name: &str, write: Write) -> Result<Revision, StatusError> {
        match self.store.commit(vec![write]).await {
            Ok(revision) => Ok(revision),
            Err(StoreError::Conflict { expected: Guard::Absent, .. }) => Err(StatusError::already_exists(info, name)),
            Err(StoreError::Conflict { actual: None, .. }) => Err(StatusError::not_found(info, name)),
            Err(StoreError::Conflict { .. }) => {
                Err(StatusError::new(409, "Conflict", "the object was changed meanwhile"))
            }
            Err(error) => Err(store_error(error)),
        }
    }

    /// Nothing can be made in a namespace that does not exist or ends (C5.6).
    async fn check_namespace_lives(
        &self,
        info: &'static ResourceInfo,
        namespace: &str,
        object: &Value,
    ) -> Result<(), StatusError> {
        if !info.namespaced {
            return Ok(());
        }
        let namespaces = resources::find("", "namespaces").expect("`resources::core` has namespaces");
        let found = read::get(self.store.as_ref(), namespaces, "", namespace).await?;
        let found = codec::decode_entry(&found)?;
        if found["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let about = format!("namespace {namespace} is being terminated");
        Err(StatusError::forbidden(info, text(&object["metadata"], "name"), &why).cause(
            "NamespaceTerminating",
            &about,
            "metadata.namespace",
        ))
    }

    async fn allocate(
        &self,
        info: &ResourceInfo,
        object: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Option<super::Allocation>, StatusError> {
        match self.allocator.get() {
            Some(allocator) if is_service(info) => allocator.allocate(object, old, dry_run).await.map(Some),
            _ => Ok(None),
        }
    }

    async fn settle(&self, allocation: Option<super::Allocation>, written: bool) {
        if let (Some(allocation), Some(allocator)) = (allocation, self.allocator.get()) {
            allocator.settle(allocation, written).await;
        }
    }
}

/// Keeps `managedFields` (C3.12).
fn note_owner(info: &ResourceInfo, subresource: &str, old: Option<&Value>, new: &mut Value, writer: &Writer) {
    if writer.manager.is_empty() {
        // An idle control plane, whose own rooms write without a name, never builds the types. Their caches have no record: what is
        // stored stays.
        let record = old.map_or(&Value::Null, |old| &old["metadata"]["managedFields"]);
        if new["metadata"]["managedFields"].is_null() && !record.is_null() {
            new["metadata"]["managedFields"] = record.clone();
        }
        return;
    }
    let types = Types::built_in();
    if let Some(root) = types.of_kind(info.group, info.version, info.kind) {
        let (name, api_version) = (writer.manager.as_str(), info.api_version());
        let manager = Manager { name, api_version: &api_version, subresource, now: clock::now() };
        apply::track_update(old, new, types, root, &manager);
    }
}

/// Tells of what is right and may yet not be meant.
fn warn(info: &ResourceInfo, subresource: &str, object: &Value, writer: &Writer) {
    if is_service(info) && subresource.is_empty() {
        service::warnings(object).into_iter().for_each(|warning| writer.warn(warning));
    }
}

pub(super) fn is_service(info: &ResourceInfo) -> bool {
    info.group.is_empty() && info.plural == "services"
}

fn validate(info: &ResourceInfo, object: &Value) -> Vec<FieldError> {
    meta::validate(info, object)
}

/// Through the kind's type: unknown fields go, wrong types are 400.
pub(super) fn normalise(info: &ResourceInfo, object: Value) -> Result<Value, StatusError> {
    (info.strategy.normalise)(object).map_err(|error| {
        StatusError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {error}",
            info.kind, info.version, info.kind
        ))
    })
}

/// As [`normalise`]. The spec that comes with a status is the stored one as a rule, which went through its type before.
fn normalise_change(info: &ResourceInfo, subresource: &str, mut new: Value, old: &Value) -> Result<Value, StatusError> {
    if subresource != "status" || new["spec"] != old["spec"] {
        return normalise(info, new);
    }
    let spec = new.as_object_mut().and_then(|fields| fields.remove("spec"));
    let mut new = normalise(info, new)?;
    if let Some(spec) = spec {
        new["spec"] = spec;
    }
    Ok(new)
}

fn check_identity(
    info: &ResourceInfo,
    name: &str,
    namespace: &str,
    new: &Value,
    old: &Value,
) -> Result<(), StatusError> {
    let metadata = &new["metadata"];
    let named = text(metadata, "name");
    if !named.is_empty() && named != name {
        return Err(StatusError::bad_request(format!(
            "the name of the object ({named}) does not match the name on the URL ({name})"
        )));
    }
    let space = text(metadata, "namespace");
    if !space.is_empty() && space != namespace {
        return Err(StatusError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let (uid, stored) = (text(metadata, "uid"), text(&old["metadata"], "uid"));
    if !uid.is_empty() && uid != stored {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {stored}");
        return Err(StatusError::conflict(info, name, &why));
    }
    Ok(())
}

/// The old object with the new status, and of the metadata what a status update may change (C3.17).
fn status_only(info: &ResourceInfo, new: &Value, old: &Value) -> Value {
    let mut object = old.clone();
    set_or_remove(&mut object, "status", &new["status"]);
    set_or_remove(&mut object["metadata"], "annotations", &new["metadata"]["annotations"]);
    if info.group != "apps" {
        set_or_remove(&mut object["metadata"], "labels", &new["metadata"]["labels"]);
    }
    for key in ["finalizers", "managedFields"] {
        set_or_remove(&mut object["metadata"], key, &new["metadata"][key]);
    }
    object
}

pub(super) fn set_or_remove(object: &mut Value, key: &str, value: &Value) {
    let Some(fields) = object.as_object_mut() else { return };
    if value.is_null() {
        fields.remove(key);
    } else {
        fields.insert(key.to_owned(), value.clone());
    }
}

/// Whether nothing keeps an object that is being deleted: no finalizer, no grace (C3.16).
pub(super) fn is_finished(info: &ResourceInfo, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let is_namespace = info.group.is_empty() && info.plural == "namespaces";
    !metadata["deletionTimestamp"].is_null()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && items(metadata, "finalizers").next().is_none()
        && !(is_namespace && items(&object["spec"], "finalizers").next().is_some())
}
