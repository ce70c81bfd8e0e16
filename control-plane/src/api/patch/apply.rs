//! Server-side apply and the record of who owns which field (C3.12).
//!
//! In:  the object as it is, and what a manager states of it.
//! Out: the merged object with its new `managedFields`, or the conflicts.
//! Not here: defaulting, admission, storage. What they change afterwards is owned by no one.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::PatchError;
use super::fieldset::{FieldSet, Parts, Walker, field_edge, item_edge, parts_of_item, value_edge};
use crate::api::openapi::types::{Type, Types};

/// Who writes.
#[derive(Debug, Clone, Copy)]
pub struct Manager<'a> {
    /// `fieldManager`, or [`manager_of_agent`].
    pub name: &'a str,
    /// `apps/v1`: the version in which the fields are stated.
    pub api_version: &'a str,
    /// "" or `status`, `scale`, ….
    pub subresource: &'a str,
    /// For the entry's time.
    pub now: Timestamp,
}

/// Another manager owns what would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// `conflict with "m" using apps/v1 at …`, the message of the cause.
    pub message: String,
    /// `.spec.replicas`
    pub field: String,
}

/// Why an apply cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 409 reason Conflict, with a cause FieldManagerConflict for each.
    #[error("{}", conflict_text(.0))]
    Conflicts(Vec<Conflict>),
    /// The patch is no object, or states what it may not.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

fn conflict_text(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", one.message, one.field);
    }
    let mut lines = Vec::new();
    let mut last = "";
    for conflict in conflicts {
        if conflict.message != last {
            last = &conflict.message;
            lines.push(format!("{}:", conflict.message.replacen("conflict", "conflicts", 1)));
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// The manager of a write that names none: the user agent up to its version.
pub fn manager_of_agent(user_agent: &str) -> &str {
    let name = user_agent.split('/').next().unwrap_or("").trim();
    let name = if name.is_empty() { "unknown" } else { name };
    name.char_indices().nth(128).map_or(name, |(end, _)| &name[..end])
}

/// Applies what `manager` states. `live` is `None` where the object does not exist yet: then the answer is what to
/// create. With `force`, conflicting fields change their owner.
pub fn apply(
    live: Option<&Value>,
    mut applied: Value,
    types: &Types,
    root: &Type,
    manager: &Manager<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    if !applied.is_object() {
        return Err(
            PatchError::Malformed("error decoding patch: an applied object must be an object".to_owned()).into()
        );
    }
    if applied["metadata"].get("managedFields").is_some_and(|fields| !is_empty(fields)) {
        return Err(PatchError::Malformed("metadata.managedFields must be nil".to_owned()).into());
    }
    drop_nulls(&mut applied);
    restrict(&mut applied, manager.subresource);
    let walker = Walker { types };
    let empty = json!({});
    let live = live.unwrap_or(&empty);
    let mut owners = Owners::read(live);
    let mut stated = walker.stated(&applied, Parts::Fields(root));
    stated.strip_server_fields();

    let mut merged = merge(&walker, live, &applied, Parts::Fields(root));
    let (changed, _) = walker.difference(live, &merged, Parts::Fields(root));
    let contested = changed.intersection(&stated);
    let mut conflicts = Vec::new();
    for owner in owners.0.iter_mut().filter(|owner| !owner.is(manager, "Apply")) {
        let theirs = owner.fields.intersection(&contested);
        if theirs.is_empty() {
            continue;
        }
        if force {
            owner.fields.subtract(&theirs);
            continue;
        }
        let message = format!("conflict with {}", owner.described());
        conflicts.extend(theirs.paths().into_iter().map(|field| Conflict { message: message.clone(), field }));
    }
    if !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }

    let before = owners.of(manager, "Apply").map(|owner| owner.fields.clone()).unwrap_or_default();
    let mut kept = stated.clone();
    for owner in owners.0.iter().filter(|owner| !owner.is(manager, "Apply")) {
        kept.add(&owner.fields);
    }
    prune(&walker, &mut merged, Parts::Fields(root), &before, &kept);
    owners.set(manager, "Apply", stated);
    owners.write(&mut merged);
    Ok(merged)
}

/// Records who wrote what in `new`, for every write that is not an apply. `old` is `None` for a new object.
pub fn track_update(old: Option<&Value>, new: &mut Value, types: &Types, root: &Type, manager: &Manager<'_>) {
    let empty = json!({});
    let old = old.unwrap_or(&empty);
    // A client may clear the record, by one empty entry, but not write it; what it sends back is what it was given. Who knows
    // nothing of the record, and sends none, does not lose it.
    let cleared =
        matches!(new["metadata"]["managedFields"].as_array().map(Vec::as_slice), Some([entry]) if is_empty(entry));
    let mut owners = if cleared { Owners(Vec::new()) } else { Owners::read(new) };
    if owners.0.is_empty() && !cleared {
        owners = Owners::read(old);
    }
    let walker = Walker { types };
    let (mut changed, mut removed) = walker.difference(old, new, Parts::Fields(root));
    changed.strip_server_fields();
    removed.strip_server_fields();
    let touched = !changed.is_empty() || !removed.is_empty();
    if touched && !cleared {
        for owner in owners.0.iter_mut().filter(|owner| !owner.is(manager, "Update")) {
            owner.fields.subtract(&changed);
            owner.fields.subtract_deep(&removed);
        }
        let mut own = owners.of(manager, "Update").map(|owner| owner.fields.clone()).unwrap_or_default();
        own.subtract_deep(&removed);
        own.add(&changed);
        owners.set(manager, "Update", own);
    }
    owners.write(new);
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// The main resource does not own status, `status` owns nothing else.
fn restrict(applied: &mut Value, subresource: &str) {
    let Some(object) = applied.as_object_mut() else { return };
    if subresource == "status" {
        object.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
    } else {
        object.remove("status");
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The live value with what is stated on top.
fn merge<'t>(walker: &Walker<'t>, live: &Value, stated: &Value, parts: Parts<'t>) -> Value {
    match (parts, live, stated) {
        (Parts::Fields(object), Value::Object(old), Value::Object(new)) => {
            merge_objects(old, new, |name, old, value| {
                merge(walker, old, value, object.field(name).map_or(Parts::One, |field| walker.parts(field)))
            })
        }
        (Parts::Entries(shape), Value::Object(old), Value::Object(new)) => {
            merge_objects(old, new, |_, old, value| merge(walker, old, value, parts_of_item(walker.types, shape)))
        }
        (Parts::Values, Value::Array(old), Value::Array(new)) => {
            let mut all = old.clone();
            all.extend(new.iter().filter(|item| !old.contains(item)).cloned());
            Value::Array(all)
        }
        (Parts::Items(keys, shape), Value::Array(old), Value::Array(new)) => {
            let edges: Vec<String> = new.iter().map(|item| item_edge(keys, item)).collect();
            let mut waiting = new.iter().zip(&edges).peekable();
            let find = |edge: &str| old.iter().find(|item| item_edge(keys, item) == edge);
            let one = |item: &Value, edge: &str| match find(edge) {
                Some(old) => merge(walker, old, item, parts_of_item(walker.types, shape)),
                None => item.clone(),
            };
            let mut all = Vec::with_capacity(old.len() + new.len());
            for item in old {
                if !edges.contains(&item_edge(keys, item)) {
                    all.push(item.clone());
                    continue;
                }
                // Stated items come in the stated order, in the places where the live list has stated items.
                for (item, edge) in waiting.by_ref() {
                    all.push(one(item, edge));
                    if find(edge).is_some() {
                        break;
                    }
                }
            }
            all.extend(waiting.map(|(item, edge)| one(item, edge)));
            Value::Array(all)
        }
        _ => stated.clone(),
    }
}

fn merge_objects(
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    merged: impl Fn(&str, &Value, &Value) -> Value,
) -> Value {
    let mut all = old.clone();
    for (name, value) in new {
        let value = match old.get(name) {
            Some(old) => merged(name, old, value),
            None => value.clone(),
        };
        all.insert(name.clone(), value);
    }
    Value::Object(all)
}

/// Removes what the manager stated before and no one states now. What is left empty by that goes, too.
fn prune<'t>(walker: &Walker<'t>, value: &mut Value, parts: Parts<'t>, before: &FieldSet, kept: &FieldSet) {
    let nothing = FieldSet::default();
    let below = |set: &'_ FieldSet, edge: &str| set.below.get(edge).cloned();
    // Whether the part behind an edge goes as a whole.
    let goes = |edge: &str| below(before, edge).is_some_and(|set| set.own) && !kept.below.contains_key(edge);
    match (parts, value) {
        (Parts::Fields(object), Value::Object(fields)) => fields.retain(|name, value| {
            let edge = field_edge(name);
            let Some(before) = below(before, &edge) else { return true };
            if goes(&edge) {
                return false;
            }
            let parts = object.field(name).map_or(Parts::One, |field| walker.parts(field));
            let was_empty = is_empty(value);
            prune(walker, value, parts, &before, kept.below.get(&edge).unwrap_or(&nothing));
            was_empty || !is_empty(value)
        }),
        (Parts::Entries(shape), Value::Object(entries)) => entries.retain(|name, value| {
            let edge = field_edge(name);
            let Some(before) = below(before, &edge) else { return true };
            if goes(&edge) {
                return false;
            }
            prune(
                walker,
                value,
                parts_of_item(walker.types, shape),
                &before,
                kept.below.get(&edge).unwrap_or(&nothing),
            );
            true
        }),
        (Parts::Values, Value::Array(items)) => items.retain(|item| !goes(&value_edge(item))),
        (Parts::Items(keys, shape), Value::Array(items)) => items.retain_mut(|item| {
            let edge = item_edge(keys, item);
            let Some(before) = below(before, &edge) else { return true };
            if goes(&edge) {
                return false;
            }
            prune(walker, item, parts_of_item(walker.types, shape), &before, kept.below.get(&edge).unwrap_or(&nothing));
            true
        }),
        _ => {}
    }
}

/// One entry of `managedFields`.
struct Owner {
    name: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: FieldSet,
}

impl Owner {
    fn is(&self, manager: &Manager<'_>, operation: &str) -> bool {
        self.name == manager.name
            && self.operation == operation
            && self.subresource == manager.subresource
            && self.api_version == manager.api_version
    }

    fn described(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == "Update" {
            text.push_str(&format!(" using {}", self.api_version));
            if !self.time.is_empty() {
                text.push_str(&format!(" at {}", self.time));
            }
        }
        text
    }
}

struct Owners(Vec<Owner>);

impl Owners {
    fn read(object: &Value) -> Self {
        let entries = object["metadata"]["managedFields"].as_array().map_or(&[] as &[Value], Vec::as_slice);
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or("").to_owned();
        Self(
            entries
                .iter()
                .filter(|entry| entry["fieldsV1"].is_object())
                .map(|entry| Owner {
                    name: text(entry, "manager"),
                    operation: text(entry, "operation"),
                    api_version: text(entry, "apiVersion"),
                    subresource: text(entry, "subresource"),
                    time: text(entry, "time"),
                    fields: FieldSet::from_json(&entry["fieldsV1"]),
                })
                .collect(),
        )
    }

    fn of(&self, manager: &Manager<'_>, operation: &str) -> Option<&Owner> {
        self.0.iter().find(|owner| owner.is(manager, operation))
    }

    /// The time changes only with the fields, so that an apply that changes nothing writes nothing.
    fn set(&mut self, manager: &Manager<'_>, operation: &str, fields: FieldSet) {
        let time = crate::clock::seconds_text(manager.now);
        match self.0.iter_mut().find(|owner| owner.is(manager, operation)) {
            Some(owner) if owner.fields == fields => {}
            Some(owner) => (owner.fields, owner.time) = (fields, time),
            None => self.0.push(Owner {
                name: manager.name.to_owned(),
                operation: operation.to_owned(),
                api_version: manager.api_version.to_owned(),
                subresource: manager.subresource.to_owned(),
                time,
                fields,
            }),
        }
    }

    fn write(mut self, object: &mut Value) {
        self.0.retain(|owner| !owner.fields.is_empty());
        // Applies first, then by time, as upstream sorts them.
        self.0.sort_by(|a, b| {
            (a.operation != "Apply", &a.time, &a.name).cmp(&(b.operation != "Apply", &b.time, &b.name))
        });
        let entries: Vec<Value> = self
            .0
            .iter()
            .map(|owner| {
                let mut entry = json!({
                    "manager": owner.name,
                    "operation": owner.operation,
                    "apiVersion": owner.api_version,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": owner.fields.to_json(),
                });
                for (name, value) in [("time", &owner.time), ("subresource", &owner.subresource)] {
                    if !value.is_empty() {
                        entry[name] = json!(value);
                    }
                }
                entry
            })
            .collect();
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            if entries.is_empty() {
                metadata.remove("managedFields");
            } else {
                metadata.insert("managedFields".to_owned(), entries.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(name: &str) -> Manager<'_> {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        Manager { name, api_version: "apps/v1", subresource: "", now }
    }

    fn root() -> (&'static Types, &'static Type) {
        let types = Types::built_in();
        (types, types.of_kind("apps", "v1", "Deployment").unwrap())
    }

    #[track_caller]
    fn applied(live: Option<&Value>, stated: Value, by: &str, force: bool) -> Value {
        let (types, root) = root();
        apply(live, stated, types, root, &manager(by), force).unwrap()
    }

    fn deployment(replicas: Option<i64>, containers: &[(&str, &str)]) -> Value {
        let containers: Vec<Value> =
            containers.iter().map(|(name, image)| json!({"name": name, "image": image})).collect();
        let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"app": "d"}},
            "spec": {"template": {"spec": {"containers": containers}}}});
        if let Some(replicas) = replicas {
            object["spec"]["replicas"] = json!(replicas);
        }
        object
    }

    #[test]
    fn the_first_apply_creates_and_owns_what_it_states() {
        // C3.12
        let made = applied(None, deployment(Some(2), &[("a", "x")]), "kubectl", false);
        assert_eq!(made["spec"]["replicas"], 2);
        let entry = &made["metadata"]["managedFields"][0];
        assert_eq!(
            entry,
            &json!({"manager": "kubectl", "operation": "Apply", "apiVersion": "apps/v1", "time": "2026-01-01T00:00:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": {
                    "f:metadata": {"f:labels": {"f:app": {}}},
                    "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
                        "k:{\"name\":\"a\"}": {".": {}, "f:image": {}, "f:name": {}}}}}}}})
        );
    }

    #[test]
    fn an_apply_without_a_change_changes_nothing() {
        // C3.12
        let made = applied(None, deployment(Some(2), &[("a", "x")]), "kubectl", false);
        let (types, root) = root();
        let later = Manager { now: "2026-02-01T00:00:00Z".parse().unwrap(), ..manager("kubectl") };
        let again = apply(Some(&made), deployment(Some(2), &[("a", "x")]), types, root, &later, false).unwrap();
        assert_eq!(again, made);
    }

    #[test]
    fn what_is_no_longer_stated_goes() {
        // C3.12
        let mut live = applied(None, deployment(Some(2), &[("a", "x"), ("b", "y")]), "kubectl", false);
        live["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = json!("Always");
        live["spec"]["paused"] = json!(false);
        let now = applied(Some(&live), deployment(None, &[("a", "z")]), "kubectl", false);
        assert_eq!(now["spec"].get("replicas"), None);
        assert_eq!(now["spec"]["paused"], false, "a default that no one stated stays");
        assert_eq!(now["spec"]["template"]["spec"]["containers"], json!([{"name": "a", "image": "z"}]));
    }

    #[test]
    fn fields_of_others_stay_and_shared_fields_are_no_conflict() {
        // C3.12
        let live = applied(None, deployment(Some(2), &[("a", "x")]), "one", false);
        let both = applied(Some(&live), deployment(Some(2), &[("b", "y")]), "two", false);
        let names = |object: &Value| -> Vec<Value> {
            object["spec"]["template"]["spec"]["containers"]
                .as_array()
                .unwrap()
                .iter()
                .map(|c| c["name"].clone())
                .collect()
        };
        assert_eq!(names(&both), ["a", "b"]);
        let without = applied(Some(&both), json!({"metadata": {"name": "d"}}), "one", false);
        assert_eq!(without["spec"]["replicas"], 2, "two still states it");
        assert_eq!(names(&without), ["b"]);
        assert_eq!(without["metadata"]["managedFields"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn conflicts_name_managers_and_fields() {
        // C3.12
        let (types, root) = root();
        let mut live = deployment(Some(2), &[("a", "x")]);
        track_update(None, &mut live, types, root, &manager("kubectl-create"));
        let error =
            apply(Some(&live), deployment(Some(3), &[("a", "x")]), types, root, &manager("m"), false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Apply failed with 1 conflict: conflict with \"kubectl-create\" using apps/v1 at 2026-01-01T00:00:00Z: .spec.replicas"
        );
        let error =
            apply(Some(&live), deployment(Some(3), &[("a", "z")]), types, root, &manager("m"), false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Apply failed with 2 conflicts: conflicts with \"kubectl-create\" using apps/v1 at 2026-01-01T00:00:00Z:\n- .spec.replicas\n- .spec.template.spec.containers[name=\"a\"].image"
        );
        let forced = applied(Some(&live), deployment(Some(3), &[("a", "x")]), "m", true);
        assert_eq!(forced["spec"]["replicas"], 3);
        let update = &forced["metadata"]["managedFields"][1];
        assert_eq!(update["manager"], "kubectl-create");
        assert_eq!(update["fieldsV1"]["f:spec"].get("f:replicas"), None, "the field changed its owner");
    }

    #[test]
    fn updates_take_over_what_they_change() {
        // C3.12
        let (types, root) = root();
        let live = applied(None, deployment(Some(2), &[("a", "x")]), "kubectl", false);
        let mut scaled = live.clone();
        scaled["spec"]["replicas"] = json!(5);
        scaled["metadata"]["resourceVersion"] = json!("9");
        track_update(Some(&live), &mut scaled, types, root, &manager("scaler"));
        let entries = scaled["metadata"]["managedFields"].as_array().unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0]["fieldsV1"]["f:spec"].get("f:replicas"), None);
        assert_eq!(entries[1]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
        let mut same = scaled.clone();
        track_update(Some(&scaled), &mut same, types, root, &manager("other"));
        assert_eq!(same, scaled, "who changes nothing owns nothing");
    }

    #[test]
    fn clearing_the_record_is_allowed() {
        // C3.12
        let (types, root) = root();
        let live = applied(None, deployment(Some(2), &[]), "kubectl", false);
        let mut cleared = live.clone();
        cleared["metadata"]["managedFields"] = json!([{}]);
        track_update(Some(&live), &mut cleared, types, root, &manager("x"));
        assert_eq!(cleared["metadata"].get("managedFields"), None);
    }

    #[test]
    fn managers_come_from_user_agents() {
        // C3.12
        assert_eq!(manager_of_agent("kubectl/v1.32.0 (linux/amd64)"), "kubectl");
        assert_eq!(manager_of_agent(""), "unknown");
    }
}
