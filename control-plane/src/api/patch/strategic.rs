//! Strategic merge patch: merge by the keys that the types declare, and the directives `$patch`,
//! `$deleteFromPrimitiveList`, `$setElementOrder` and `$retainKeys` (C3.11).

use serde_json::{Map, Value};

use super::PatchError;
use crate::api::openapi::extensions::PatchStrategy;
use crate::api::openapi::types::{Shape, Type, Types};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

pub(super) fn merge(document: &mut Value, patch: Value, types: &Types, root: &Type) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(malformed("invalid JSON document"));
    };
    let Value::Object(object) = document else {
        return Err(malformed("invalid JSON document"));
    };
    let merged = Merger { types }.object(object.clone(), patch, Place::Known(root))?;
    *object = merged;
    Ok(())
}

fn malformed(text: impl Into<String>) -> PatchError {
    PatchError::Malformed(text.into())
}

/// Where in the types a value stands.
#[derive(Clone, Copy)]
enum Place<'t> {
    Known(&'t Type),
    Shape(&'t Shape),
    Unknown,
}

/// How the value of a field merges.
struct How<'t> {
    place: Place<'t>,
    strategy: PatchStrategy,
    key: &'static str,
}

struct Merger<'t> {
    types: &'t Types,
}

impl<'t> Merger<'t> {
    fn how(&self, place: Place<'t>, name: &str) -> How<'t> {
        let unknown = How { place: Place::Unknown, strategy: PatchStrategy::Default, key: "" };
        let object = match place {
            Place::Known(object) => Some(object),
            Place::Shape(Shape::Object(id)) => Some(self.types.get(*id)),
            Place::Shape(Shape::Map(value)) => return How { place: Place::Shape(value), ..unknown },
            Place::Shape(_) | Place::Unknown => None,
        };
        object.and_then(|object| object.field(name)).map_or(unknown, |field| How {
            place: Place::Shape(&field.shape),
            strategy: field.patch_strategy(),
            key: field.merge_key(),
        })
    }

    fn object(&self, mut original: Object, mut patch: Object, place: Place<'t>) -> Result<Object, PatchError> {
        match patch.remove(DIRECTIVE) {
            None => {}
            Some(Value::String(text)) if text == "merge" => {}
            Some(Value::String(text)) if text == "replace" => return Ok(cleaned_object(patch)),
            Some(Value::String(text)) if text == "delete" => return Ok(Object::new()),
            Some(other) => {
                return Err(malformed(format!(
                    "unknown patch type: {} in map: {}",
                    plain(&other),
                    Value::Object(patch)
                )));
            }
        }
        retain_keys(&mut original, &mut patch)?;
        self.ordered_lists(&mut original, &mut patch, place)?;
        for (name, value) in patch {
            if let Some(list) = name.strip_prefix(DELETE_FROM_LIST) {
                delete_from_list(&mut original, list, &value)?;
            } else {
                self.member(&mut original, name, value, place)?;
            }
        }
        Ok(original)
    }

    fn member(&self, original: &mut Object, name: String, patch: Value, place: Place<'t>) -> Result<(), PatchError> {
        if patch.is_null() {
            original.remove(&name);
            return Ok(());
        }
        let how = self.how(place, &name);
        let merged = match (original.remove(&name), patch) {
            (Some(Value::Object(old)), Value::Object(new)) if how.strategy != PatchStrategy::Replace => {
                Value::Object(self.object(old, new, how.place)?)
            }
            (Some(Value::Array(old)), Value::Array(new)) if how.strategy.merges_lists() => {
                Value::Array(self.list(old, new, &how)?)
            }
            // A `$patch: delete` of what is not there leaves nothing behind.
            (None, Value::Object(new)) if new.get(DIRECTIVE).is_some_and(|directive| directive == "delete") => {
                return Ok(());
            }
            (_, new) => cleaned(new),
        };
        original.insert(name, merged);
        Ok(())
    }

    /// Lists whose order the patch states with `$setElementOrder/x`.
    fn ordered_lists(&self, original: &mut Object, patch: &mut Object, place: Place<'t>) -> Result<(), PatchError> {
        let names: Vec<String> =
            patch.keys().filter_map(|key| key.strip_prefix(SET_ORDER)).map(str::to_owned).collect();
        for name in names {
            let order = match patch.remove(&format!("{SET_ORDER}{name}")) {
                Some(Value::Array(order)) => order,
                _ => return Err(malformed("invalid patch format of setElementOrder list")),
            };
            let how = self.how(place, &name);
            let removals = patch.remove(&format!("{DELETE_FROM_LIST}{name}"));
            let changes = match patch.remove(&name) {
                None => Vec::new(),
                Some(Value::Array(changes)) => changes,
                Some(Value::Null) => {
                    original.remove(&name);
                    continue;
                }
                Some(_) => return Err(malformed("invalid patch format of setElementOrder list")),
            };
            check_order(&changes, &order, how.key)?;
            if let Some(removals) = removals {
                delete_from_list(original, &name, &removals)?;
            }
            let server = match original.remove(&name) {
                Some(Value::Array(items)) => items,
                _ if changes.is_empty() => continue,
                _ => Vec::new(),
            };
            let merged = self.merged_items(server.clone(), changes, &how)?.0;
            original.insert(name, Value::Array(in_order(merged, &order, &server, how.key)));
        }
        Ok(())
    }

    fn list(&self, old: Vec<Value>, new: Vec<Value>, how: &How<'t>) -> Result<Vec<Value>, PatchError> {
        let server = old.clone();
        let (merged, order) = self.merged_items(old, new, how)?;
        Ok(match order {
            Some(order) => in_order(merged, &order, &server, how.key),
            None => merged,
        })
    }

    /// The merged items, and the patch's own items, which give the order; no order if the list was replaced.
    fn merged_items(
        &self,
        mut items: Vec<Value>,
        new: Vec<Value>,
        how: &How<'t>,
    ) -> Result<(Vec<Value>, Option<Vec<Value>>), PatchError> {
        if !new.iter().chain(&items).any(Value::is_object) {
            let order = new.clone();
            items.extend(new);
            let mut unique: Vec<Value> = Vec::with_capacity(items.len());
            for item in items {
                if !unique.contains(&item) {
                    unique.push(item);
                }
            }
            return Ok((unique, Some(order)));
        }
        let item_place = match how.place {
            Place::Shape(Shape::List(item)) => Place::Shape(item),
            _ => Place::Unknown,
        };
        let mut replace = false;
        let mut changes = Vec::with_capacity(new.len());
        for item in new {
            let Value::Object(mut item) = item else {
                return Err(malformed("invalid patch format: a list of objects is patched with objects"));
            };
            match item.get(DIRECTIVE).and_then(Value::as_str) {
                Some("replace") => {
                    replace = true;
                    item.remove(DIRECTIVE);
                    if !item.is_empty() {
                        changes.push(item);
                    }
                }
                Some("delete") => {
                    let key = key_value(&item, how.key)?.clone();
                    items.retain(|old| old.get(how.key) != Some(&key));
                }
                Some("merge") | None => {
                    item.remove(DIRECTIVE);
                    changes.push(item);
                }
                Some(other) => {
                    return Err(malformed(format!(
                        "unknown patch type: {other} in map: {}",
                        Value::Object(item.clone())
                    )));
                }
            }
        }
        if replace {
            return Ok((changes.into_iter().map(|item| Value::Object(cleaned_object(item))).collect(), None));
        }
        let order = changes.iter().map(|item| Value::Object(item.clone())).collect();
        for change in changes {
            let key = key_value(&change, how.key)?;
            match items.iter().position(|old| old.get(how.key) == Some(key)) {
                Some(at) => {
                    let old = match items[at].take() {
                        Value::Object(old) => old,
                        _ => Object::new(),
                    };
                    items[at] = Value::Object(self.object(old, change, item_place)?);
                }
                None => items.push(Value::Object(cleaned_object(change))),
            }
        }
        Ok((items, Some(order)))
    }
}

fn key_value<'v>(item: &'v Object, key: &str) -> Result<&'v Value, PatchError> {
    item.get(key).ok_or_else(|| {
        malformed(format!("map: {} does not contain declared merge key: {key}", Value::Object(item.clone())))
    })
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `$retainKeys` names all fields that may stay; the patch may set no others.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(retained) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(retained) = retained else {
        return Err(malformed("invalid patch format of retainKeys"));
    };
    let stays = |name: &str| retained.iter().any(|key| key == name);
    if patch.iter().any(|(name, value)| !name.starts_with('$') && !value.is_null() && !stays(name)) {
        return Err(PatchError::Rejected("patch content doesn't match retainKeys list".to_owned()));
    }
    original.retain(|name, _| stays(name));
    Ok(())
}

fn delete_from_list(original: &mut Object, list: &str, removals: &Value) -> Result<(), PatchError> {
    let Some(removals) = removals.as_array() else {
        return Err(malformed("invalid patch format of primitive list"));
    };
    if let Some(Value::Array(items)) = original.get_mut(list) {
        items.retain(|item| !removals.contains(item));
    }
    Ok(())
}

/// The items of the patch must come in the order that the patch states.
fn check_order(changes: &[Value], order: &[Value], key: &str) -> Result<(), PatchError> {
    let mut from = 0;
    for change in changes.iter().filter(|change| change.get(DIRECTIVE).is_none()) {
        match order[from..].iter().position(|item| same(item, change, key)) {
            Some(at) => from += at + 1,
            None => {
                return Err(malformed(format!(
                    "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                    Value::Array(changes.to_vec()),
                    Value::Array(order.to_vec())
                )));
            }
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, key: &str) -> bool {
    match (a.get(key), b.get(key)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// Sorts the items that `order` names as it does, and weaves the others in where the server had them.
fn in_order(merged: Vec<Value>, order: &[Value], server: &[Value], key: &str) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item, key));
    let (mut stated, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(order, item).is_some());
    stated.sort_by_key(|item| place(order, item));
    others.sort_by_key(|item| place(server, item));
    let mut woven = Vec::with_capacity(stated.len() + others.len());
    let mut stated = stated.into_iter().peekable();
    for other in others {
        while let Some(next) = stated.peek() {
            let other_first = match (place(server, &other), place(server, next)) {
                (Some(other), Some(next)) => other < next,
                _ => false,
            };
            if other_first {
                break;
            }
            woven.extend(stated.next());
        }
        woven.push(other);
    }
    woven.extend(stated);
    woven
}

/// A new value as the patch writes it, without nulls and directives.
fn cleaned(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(cleaned_object(object)),
        Value::Array(items) => Value::Array(
            items
                .into_iter()
                .filter(|item| {
                    !matches!(item.get(DIRECTIVE).and_then(Value::as_str), Some("delete" | "replace"))
                        || has_content(item)
                })
                .map(cleaned)
                .collect(),
        ),
        other => other,
    }
}

/// A `$patch: replace` item may carry content; a `$patch: delete` item only names what goes.
fn has_content(item: &Value) -> bool {
    item.get(DIRECTIVE).is_some_and(|directive| directive == "replace")
        && item.as_object().is_some_and(|object| object.len() > 1)
}

fn cleaned_object(object: Object) -> Object {
    object
        .into_iter()
        .filter(|(name, value)| {
            !value.is_null()
                && name != DIRECTIVE
                && name != RETAIN_KEYS
                && !name.starts_with(DELETE_FROM_LIST)
                && !name.starts_with(SET_ORDER)
        })
        .map(|(name, value)| (name, cleaned(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(kind: &str, document: Value, patch: Value, expected: Value) {
        let types = Types::built_in();
        let (group, version, kind) = match kind {
            "Deployment" => ("apps", "v1", kind),
            _ => ("", "v1", kind),
        };
        let mut patched = document;
        merge(&mut patched, patch, types, types.of_kind(group, version, kind).unwrap()).unwrap();
        assert_eq!(patched, expected);
    }

    fn containers(names: &[&str]) -> Value {
        json!({"spec": {"containers": names.iter().map(|name| json!({"name": name, "image": "a"})).collect::<Vec<_>>()}})
    }

    #[test]
    fn containers_merge_by_name_and_null_deletes() {
        // C3.11
        check(
            "Pod",
            containers(&["a", "b"]),
            json!({"spec": {"containers": [{"name": "b", "image": "new", "tty": null}, {"name": "c", "image": "c"}], "nodeName": null}}),
            json!({"spec": {"containers": [{"name": "a", "image": "a"}, {"name": "b", "image": "new"}, {"name": "c", "image": "c"}]}}),
        );
    }

    #[test]
    fn list_directives_delete_and_replace() {
        // C3.11
        check(
            "Pod",
            containers(&["a", "b"]),
            json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
            containers(&["b"]),
        );
        check(
            "Pod",
            containers(&["a", "b"]),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z", "image": "a"}]}}),
            containers(&["z"]),
        );
    }

    #[test]
    fn map_directives_replace_and_delete() {
        // C3.11
        let labels = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
        check(
            "Pod",
            labels.clone(),
            json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}}),
            json!({"metadata": {"labels": {"c": "3"}}}),
        );
        check(
            "Pod",
            labels,
            json!({"metadata": {"labels": {"$patch": "delete"}}}),
            json!({"metadata": {"labels": {}}}),
        );
    }

    #[test]
    fn primitive_lists_merge_and_delete() {
        // C3.11
        let finalizers = |list: &[&str]| json!({"metadata": {"finalizers": list}});
        check("Pod", finalizers(&["a"]), json!({"metadata": {"finalizers": ["b", "a"]}}), finalizers(&["b", "a"]));
        check(
            "Pod",
            finalizers(&["a", "b"]),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
            finalizers(&["b"]),
        );
    }

    #[test]
    fn atomic_lists_are_replaced() {
        // C3.11
        check(
            "Pod",
            json!({"spec": {"tolerations": [{"key": "a"}, {"key": "b"}]}}),
            json!({"spec": {"tolerations": [{"key": "c"}]}}),
            json!({"spec": {"tolerations": [{"key": "c"}]}}),
        );
    }

    #[test]
    fn set_element_order_sorts_what_it_names() {
        // C3.11
        check(
            "Pod",
            containers(&["server", "a", "b"]),
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "a"}]}}),
            containers(&["server", "b", "a"]),
        );
        let types = Types::built_in();
        let error = merge(
            &mut containers(&["a"]),
            json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "x"}]}}),
            types,
            types.of_kind("", "v1", "Pod").unwrap(),
        );
        assert!(error.unwrap_err().to_string().contains("doesn't match $setElementOrder list"));
    }

    #[test]
    fn retain_keys_clears_the_rest() {
        // C3.11
        check(
            "Deployment",
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
        );
        check(
            "Pod",
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}}),
        );
    }

    #[test]
    fn a_missing_merge_key_is_told() {
        let types = Types::built_in();
        let pod = types.of_kind("", "v1", "Pod").unwrap();
        let error =
            merge(&mut containers(&["a"]), json!({"spec": {"containers": [{"image": "x"}]}}), types, pod).unwrap_err();
        assert_eq!(error.to_string(), r#"map: {"image":"x"} does not contain declared merge key: name"#);
        assert_eq!(error.code(), 400);
    }

    #[test]
    fn directives_never_reach_the_object() {
        check(
            "Pod",
            json!({"spec": {}}),
            json!({"spec": {"$setElementOrder/volumes": [{"name": "v"}], "volumes": [{"name": "v", "$retainKeys": ["name"]}], "securityContext": {"$patch": "replace", "runAsUser": 1}}}),
            json!({"spec": {"volumes": [{"name": "v"}], "securityContext": {"runAsUser": 1}}}),
        );
    }
}
