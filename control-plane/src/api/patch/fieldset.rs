//! Sets of fields, as `managedFields` states them (FieldsV1): a tree whose edges are `f:name` (a field), `k:{…}` (the
//! item of a list with these keys) and `v:…` (this very item of a list).
//!
//! Also what follows from the types alone: the set of an object, and what differs between two objects.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::api::openapi::extensions::ListType;
use crate::api::openapi::types::{Field, Shape, Type, Types};

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    /// The path that leads here is a member itself.
    pub(super) own: bool,
    pub(super) below: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    pub(super) fn is_empty(&self) -> bool {
        !self.own && self.below.is_empty()
    }

    pub(super) fn from_json(value: &Value) -> Self {
        let mut set = Self::default();
        for (edge, inner) in value.as_object().into_iter().flatten() {
            if edge == "." {
                set.own = true;
                continue;
            }
            let mut child = Self::from_json(inner);
            child.own |= child.below.is_empty();
            set.below.insert(edge.clone(), child);
        }
        set
    }

    pub(super) fn to_json(&self) -> Value {
        let mut object = Map::new();
        if self.own && !self.below.is_empty() {
            object.insert(".".to_owned(), json!({}));
        }
        for (edge, child) in &self.below {
            object.insert(edge.clone(), child.to_json());
        }
        Value::Object(object)
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.own |= other.own;
        for (edge, child) in &other.below {
            self.below.entry(edge.clone()).or_default().add(child);
        }
    }

    /// Takes away the members of `other`.
    pub(super) fn subtract(&mut self, other: &Self) {
        self.own &= !other.own;
        self.below.retain(|edge, child| {
            if let Some(gone) = other.below.get(edge) {
                child.subtract(gone);
            }
            !child.is_empty()
        });
    }

    /// Takes away the members of `other` and all below them.
    pub(super) fn subtract_deep(&mut self, other: &Self) {
        if other.own {
            *self = Self::default();
            return;
        }
        self.below.retain(|edge, child| {
            if let Some(gone) = other.below.get(edge) {
                child.subtract_deep(gone);
            }
            !child.is_empty()
        });
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        let below = self.below.iter().filter_map(|(edge, child)| {
            let both = child.intersection(other.below.get(edge)?);
            (!both.is_empty()).then(|| (edge.clone(), both))
        });
        Self { own: self.own && other.own, below: below.collect() }
    }

    /// Takes away what the server decides and no one owns.
    pub(super) fn strip_server_fields(&mut self) {
        for edge in ["f:apiVersion", "f:kind"] {
            self.below.remove(edge);
        }
        if let Some(metadata) = self.below.get_mut("f:metadata") {
            metadata.own = false;
            for field in SERVER_FIELDS {
                metadata.below.remove(*field);
            }
            if metadata.is_empty() {
                self.below.remove("f:metadata");
            }
        }
    }

    /// All members as people write paths: `.spec.containers[name="a"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.collect_paths(&mut String::new(), &mut all);
        all
    }

    fn collect_paths(&self, path: &mut String, all: &mut Vec<String>) {
        if self.own {
            all.push(path.clone());
        }
        for (edge, child) in &self.below {
            let end = path.len();
            push_edge(path, edge);
            child.collect_paths(path, all);
            path.truncate(end);
        }
    }
}

const SERVER_FIELDS: &[&str] = &[
    "f:name",
    "f:namespace",
    "f:generateName",
    "f:creationTimestamp",
    "f:deletionTimestamp",
    "f:deletionGracePeriodSeconds",
    "f:selfLink",
    "f:uid",
    "f:generation",
    "f:managedFields",
    "f:resourceVersion",
];

fn push_edge(path: &mut String, edge: &str) {
    // Writing into a `String` cannot fail.
    let _ = match edge.split_once(':') {
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            write!(path, "[{}]", keys.join(","))
        }
        Some(("v", value)) => write!(path, "[={value}]"),
        Some((_, name)) => write!(path, ".{name}"),
        None => write!(path, ".{edge}"),
    };
}

/// How the parts of a value are owned.
pub(super) enum Parts<'t> {
    /// As one.
    One,
    /// Field by field.
    Fields(&'t Type),
    /// Entry by entry.
    Entries(&'t Shape),
    /// Value by value.
    Values,
    /// Item by item.
    Items(&'static [&'static str], &'t Shape),
}

/// How the parts of a field's value are owned.
pub(super) fn parts<'t>(types: &'t Types, shape: &'t Shape, field: Option<&Field>) -> Parts<'t> {
    if field.is_some_and(|field| field.atomic) {
        return Parts::One;
    }
    match shape {
        Shape::Object(id) if !types.get(*id).is_atomic() => Parts::Fields(types.get(*id)),
        Shape::Map(value) => Parts::Entries(value),
        Shape::List(item) => match field.map_or(ListType::Atomic, Field::list_type) {
            ListType::Atomic => Parts::One,
            ListType::Set => Parts::Values,
            ListType::Map(keys) => Parts::Items(keys, item),
        },
        _ => Parts::One,
    }
}

/// The edge to an item of a list.
pub(super) fn item_edge(keys: &[&str], item: &Value) -> String {
    let keys: Map<String, Value> = keys
        .iter()
        .map(|key| {
            let value = match item.get(*key) {
                Some(value) => value.clone(),
                // The one key that the API fills in by itself.
                None if *key == "protocol" => json!("TCP"),
                None => Value::Null,
            };
            ((*key).to_owned(), value)
        })
        .collect();
    format!("k:{}", Value::Object(keys))
}

pub(super) fn value_edge(item: &Value) -> String {
    format!("v:{item}")
}

pub(super) fn field_edge(name: &str) -> String {
    format!("f:{name}")
}

/// Walks objects along their types.
pub(super) struct Walker<'t> {
    pub(super) types: &'t Types,
}

impl<'t> Walker<'t> {
    /// The set of all that an applied object states.
    pub(super) fn stated(&self, value: &Value, parts: Parts<'t>) -> FieldSet {
        let mut set = FieldSet::default();
        match (parts, value) {
            (Parts::Fields(object), Value::Object(fields)) if !fields.is_empty() => {
                for (name, value) in fields {
                    let child = match object.field(name) {
                        Some(field) => self.stated(value, self.parts(field)),
                        None => FieldSet { own: true, ..FieldSet::default() },
                    };
                    set.below.insert(field_edge(name), child);
                }
            }
            (Parts::Entries(shape), Value::Object(entries)) if !entries.is_empty() => {
                for (name, value) in entries {
                    let mut child = self.stated(value, parts_of_item(self.types, shape));
                    child.own = true;
                    set.below.insert(field_edge(name), child);
                }
            }
            (Parts::Values, Value::Array(items)) if !items.is_empty() => {
                for item in items {
                    set.below.insert(value_edge(item), FieldSet { own: true, ..FieldSet::default() });
                }
            }
            (Parts::Items(keys, shape), Value::Array(items)) if !items.is_empty() => {
                for item in items {
                    let mut child = self.stated(item, parts_of_item(self.types, shape));
                    child.own = true;
                    set.below.insert(item_edge(keys, item), child);
                }
            }
            _ => set.own = true,
        }
        set
    }

    /// What differs: what was added or changed, and what was removed.
    pub(super) fn difference(&self, old: &Value, new: &Value, parts: Parts<'t>) -> (FieldSet, FieldSet) {
        let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
        self.differ(old, new, parts, &mut changed, &mut removed);
        (changed, removed)
    }

    fn differ(&self, old: &Value, new: &Value, parts: Parts<'t>, changed: &mut FieldSet, removed: &mut FieldSet) {
        if old == new {
            return;
        }
        match (old.is_null(), new.is_null()) {
            (true, _) => {
                let group = matches!(parts, Parts::Entries(_) | Parts::Values | Parts::Items(..));
                let mut added = self.stated(new, parts);
                added.own |= group;
                return changed.add(&added);
            }
            (_, true) => {
                let mut gone = self.stated(old, parts);
                gone.own = true;
                return removed.add(&gone);
            }
            (false, false) => {}
        }
        let mut child = |edge: String, old: &Value, new: &Value, parts: Parts<'t>, member: bool| {
            let (mut child_changed, mut child_removed) = self.difference(old, new, parts);
            if member && old.is_null() {
                child_changed.own = true;
            }
            if member && new.is_null() {
                child_removed.own = true;
            }
            for (set, child) in [(&mut *changed, child_changed), (&mut *removed, child_removed)] {
                if !child.is_empty() {
                    set.below.insert(edge.clone(), child);
                }
            }
        };
        match (parts, old, new) {
            (Parts::Fields(object), Value::Object(old), Value::Object(new)) => {
                for name in names(old, new) {
                    let parts = object.field(name).map_or(Parts::One, |field| self.parts(field));
                    child(field_edge(name), at(old, name), at(new, name), parts, false);
                }
            }
            (Parts::Entries(shape), Value::Object(old), Value::Object(new)) => {
                for name in names(old, new) {
                    child(field_edge(name), at(old, name), at(new, name), parts_of_item(self.types, shape), true);
                }
            }
            (Parts::Values, Value::Array(old), Value::Array(new)) => {
                for item in new.iter().filter(|item| !old.contains(item)) {
                    child(value_edge(item), &Value::Null, item, Parts::One, true);
                }
                for item in old.iter().filter(|item| !new.contains(item)) {
                    child(value_edge(item), item, &Value::Null, Parts::One, true);
                }
            }
            (Parts::Items(keys, shape), Value::Array(old), Value::Array(new)) => {
                let edges = |list: &[Value]| -> Vec<String> { list.iter().map(|item| item_edge(keys, item)).collect() };
                let (old_edges, new_edges) = (edges(old), edges(new));
                for (edge, item) in new_edges.iter().zip(new) {
                    let before = old_edges.iter().position(|other| other == edge).map_or(&Value::Null, |at| &old[at]);
                    child(edge.clone(), before, item, parts_of_item(self.types, shape), true);
                }
                for (edge, item) in old_edges.iter().zip(old).filter(|(edge, _)| !new_edges.contains(edge)) {
                    child(edge.clone(), item, &Value::Null, parts_of_item(self.types, shape), true);
                }
            }
            _ => changed.own = true,
        }
    }

    pub(super) fn parts(&self, field: &'t Field) -> Parts<'t> {
        parts(self.types, &field.shape, Some(field))
    }
}

/// How the parts of a list's item or of a map's value are owned.
pub(super) fn parts_of_item<'t>(types: &'t Types, shape: &'t Shape) -> Parts<'t> {
    parts(types, shape, None)
}

fn at<'v>(object: &'v Map<String, Value>, name: &str) -> &'v Value {
    object.get(name).unwrap_or(&Value::Null)
}

fn names<'v>(old: &'v Map<String, Value>, new: &'v Map<String, Value>) -> impl Iterator<Item = &'v String> {
    old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)))
}
