//! Delete: preconditions, grace of pods, finalizers, what becomes of dependents (C3.16).

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::cluster::{Core, DeleteOptions, Propagation};
use super::write::{Target, Writer, is_finished, is_service};
use super::{codec, read};
use crate::clock;
use crate::resources::ResourceInfo;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};
use crate::storage::{Change, Guard, Revision, Write};

/// No grace is longer than 68 years: what a client writes must not lead beyond the end of the calendar.
const LONGEST_GRACE_SECONDS: i64 = i32::MAX as i64;

/// What a delete did.
#[derive(Debug)]
pub(super) struct Deleted {
    /// The last state.
    pub(super) object: Value,
    /// Whether it is still there, waiting for its grace or finalizers.
    pub(super) stays: bool,
}

impl Core {
    pub(super) async fn delete(
        &self,
        target: Target<'_>,
        options: &DeleteOptions,
        writer: &Writer,
    ) -> Result<Deleted, StatusError> {
        let Target { info, namespace, name, .. } = target;
        loop {
            let entry = read::get(self.store.as_ref(), info, namespace, name).await?;
            let old = codec::decode_entry(&entry)?;
            check_preconditions(info, name, &old, options)?;
            let new = mark(info, &old, options, clock::now());
            let result = if new.as_ref().is_none_or(|new| is_finished(info, new)) && may_go(info, &old, new.as_ref()) {
                let object = new.unwrap_or_else(|| old.clone());
                let removed = self.remove(info, namespace, name, object, entry.revision, writer.dry_run).await;
                removed.map(|object| Deleted { object, stays: false })
            } else {
                match new {
                    Some(new) if new != old => {
                        let key = codec::key(info, namespace, name);
                        let guard = Guard::Unchanged(entry.revision);
                        let put = self.put(info, key, name, new, guard, writer.dry_run).await;
                        put.map(|object| Deleted { object, stays: true })
                    }
                    _ => Ok(Deleted { object: old, stays: true }),
                }
            };
            match result {
                // Somebody was faster: look again, the delete itself has no expectation.
                Err(error) if error.is_conflict() && error.details.is_none() => {}
                result => return result,
            }
        }
    }

    /// Removes an object for good; `object` is what watchers see as its last state.
    pub(super) async fn remove(
        &self,
        info: &'static ResourceInfo,
        namespace: &str,
        name: &str,
        mut object: Value,
        revision: Revision,
        dry_run: bool,
    ) -> Result<Value, StatusError> {
        if dry_run {
            return Ok(object);
        }
        let write = Write {
            key: codec::key(info, namespace, name),
            guard: Guard::Unchanged(revision),
            change: Change::Delete(codec::encode(&object)?),
        };
        let revision = self.commit(info, name, write).await?;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        if let (true, Some(allocator)) = (is_service(info), self.allocator.get()) {
            allocator.release(&object).await;
        }
        Ok(object)
    }
}

fn check_preconditions(
    info: &ResourceInfo,
    name: &str,
    old: &Value,
    options: &DeleteOptions,
) -> Result<(), StatusError> {
    let metadata = &old["metadata"];
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != text(metadata, "uid")) {
        let stored = text(metadata, "uid");
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {stored}");
        return Err(StatusError::conflict(info, name, &why));
    }
    let version = text(metadata, "resourceVersion");
    if let Some(wanted) = options.resource_version.as_deref().filter(|wanted| *wanted != version) {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {version}"
        );
        return Err(StatusError::conflict(info, name, &why));
    }
    Ok(())
}

/// The object with its deletion written into it; `None` where there is nothing to write before it goes.
fn mark(info: &ResourceInfo, old: &Value, options: &DeleteOptions, now: Timestamp) -> Option<Value> {
    let is_pod = info.group.is_empty() && info.plural == "pods";
    let grace = if is_pod { pod_grace(old, options) } else { 0 };
    let mut new = old.clone();
    set_finalizers(info, &mut new, options.propagation);
    let metadata = &mut new["metadata"];
    let asked_before = metadata["deletionTimestamp"].as_str().map(str::to_owned);
    let keeps = grace > 0
        || items(metadata, "finalizers").next().is_some()
        || (info.group.is_empty() && info.plural == "namespaces" && items(&old["spec"], "finalizers").next().is_some());
    match asked_before {
        None if !keeps && !is_pod => return None,
        None => {
            let at = now + SignedDuration::from_secs(grace);
            metadata["deletionTimestamp"] = json!(clock::seconds_text(at));
            metadata["deletionGracePeriodSeconds"] = json!(grace);
            if let Some(generation) = metadata["generation"].as_i64() {
                metadata["generation"] = json!(generation + 1);
            }
        }
        // A second delete may only shorten the grace.
        Some(text) if is_pod => {
            let before = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0).min(LONGEST_GRACE_SECONDS);
            if grace < before {
                let begun = text.parse::<Timestamp>().unwrap_or(now) - SignedDuration::from_secs(before);
                let at = (begun + SignedDuration::from_secs(grace)).max(now.min(begun));
                metadata["deletionTimestamp"] = json!(clock::seconds_text(at));
                metadata["deletionGracePeriodSeconds"] = json!(grace);
            }
        }
        Some(_) => {}
    }
    if info.group.is_empty() && info.plural == "namespaces" {
        new["status"]["phase"] = json!("Terminating");
    }
    Some(new)
}

/// Seconds that a pod has: none if it never had a node, or has ended.
fn pod_grace(pod: &Value, options: &DeleteOptions) -> i64 {
    let asked = options.grace_period_seconds;
    let phase = text(&pod["status"], "phase");
    if text(&pod["spec"], "nodeName").is_empty() || matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    let grace = asked.or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
    if grace < 0 { 1 } else { grace.min(LONGEST_GRACE_SECONDS) }
}

fn set_finalizers(info: &ResourceInfo, object: &mut Value, propagation: Option<Propagation>) {
    let by_default = match (info.group, info.plural) {
        ("batch", "jobs") | ("", "replicationcontrollers") => Some(Propagation::Orphan),
        _ => None,
    };
    let metadata = &mut object["metadata"];
    let mut finalizers: Vec<Value> = items(metadata, "finalizers").cloned().collect();
    let (wanted, unwanted): (&[&str], &[&str]) = match propagation.or(by_default) {
        None => return,
        Some(Propagation::Orphan) => (&["orphan"], &["foregroundDeletion"]),
        Some(Propagation::Foreground) => (&["foregroundDeletion"], &["orphan"]),
        Some(Propagation::Background) => (&[], &["orphan", "foregroundDeletion"]),
    };
    finalizers.retain(|finalizer| !unwanted.iter().any(|name| finalizer == name));
    for name in wanted {
        if !finalizers.iter().any(|finalizer| finalizer == name) {
            finalizers.push(json!(name));
        }
    }
    let list = if finalizers.is_empty() { Value::Null } else { Value::Array(finalizers) };
    super::write::set_or_remove(metadata, "finalizers", &list);
}

/// A namespace goes only through its finalizers; everything else when nothing keeps it.
fn may_go(info: &ResourceInfo, old: &Value, new: Option<&Value>) -> bool {
    let finalizers = |object: &Value| items(&object["metadata"], "finalizers").next().is_some();
    let kept = new.map_or_else(|| finalizers(old), finalizers);
    let is_namespace = info.group.is_empty() && info.plural == "namespaces";
    let has_content = is_namespace && items(&old["spec"], "finalizers").next().is_some();
    !kept && !has_content
}
