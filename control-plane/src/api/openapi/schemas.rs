//! Schemas in the form of the two OpenAPI versions: with group, version and kind, merge rules, and references where
//! each version wants them (C2.3).

use serde_json::{Map, Value, json};

use super::definitions::{self, Kind};
use super::extensions::{self, ListType};
use crate::resources::ResourceInfo;

/// The two versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Swagger 2.0: a reference may stand beside a description.
    V2,
    /// OpenAPI 3.0: a reference beside anything else is wrapped in `allOf`.
    V3,
}

impl Dialect {
    /// Where references point to.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::V2 => "/definitions",
            Self::V3 => "/components/schemas",
        }
    }

    pub(super) fn reference(self, type_name: &str) -> Value {
        json!({"$ref": format!("#{}/{type_name}", self.path())})
    }
}

/// The schemas of the kinds and of all that they refer to, by type name.
pub(super) fn schemas(
    dialect: Dialect,
    kinds: &[&'static Kind],
    lists: &[&'static ResourceInfo],
) -> Map<String, Value> {
    let mut all: Map<String, Value> = definitions::generate(kinds.iter().copied(), dialect.path())
        .into_iter()
        .map(|(name, definition)| {
            let finished = definition_of(dialect, &name, definition);
            (name, finished)
        })
        .collect();
    for kind in kinds {
        if let Some(schema) = all.get_mut(&*kind.type_name()) {
            schema["x-kubernetes-group-version-kind"] = gvk(kind.group, kind.version, kind.kind);
        }
    }
    for info in lists {
        if let Some(kind) = definitions::kind_of(info.group, info.version, info.kind) {
            let name = format!("{}List", kind.type_name());
            all.insert(name, list_of(dialect, info, &kind.type_name()));
        }
    }
    all
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!([{"group": group, "kind": kind, "version": version}])
}

fn list_of(dialect: Dialect, info: &ResourceInfo, item: &str) -> Value {
    json!({
        "description": format!("{} is a list of {} objects.", info.list_kind(), info.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": "The versioned schema of this representation of an object."},
            "kind": {"type": "string", "description": "The REST resource that this object represents."},
            "metadata": member(dialect, dialect.reference("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta")),
            "items": {"type": "array", "items": member(dialect, dialect.reference(item))},
        },
        "x-kubernetes-group-version-kind": gvk(info.group, info.version, &info.list_kind()),
    })
}

fn definition_of(dialect: Dialect, name: &str, mut definition: Value) -> Value {
    if let Some(Value::Object(properties)) = definition.get_mut("properties") {
        for (field, schema) in properties {
            *schema = member(dialect, schema.take());
            annotate(name, field, schema);
        }
    } else {
        definition = member(dialect, definition);
    }
    if extensions::is_atomic_type(name) {
        definition["x-kubernetes-map-type"] = json!("atomic");
    }
    definition
}

/// A schema below a definition.
fn member(dialect: Dialect, mut schema: Value) -> Value {
    let Some(object) = schema.as_object_mut() else { return schema };
    for inner in ["items", "additionalProperties"] {
        if let Some(value) = object.get_mut(inner).filter(|value| value.is_object()) {
            *value = member(dialect, value.take());
        }
    }
    if object.remove("x-kubernetes-int-or-string").is_some() {
        match dialect {
            Dialect::V2 => {
                object.insert("type".to_owned(), json!("string"));
                object.insert("format".to_owned(), json!("int-or-string"));
            }
            Dialect::V3 => {
                object.insert("format".to_owned(), json!("int-or-string"));
                object.insert("oneOf".to_owned(), json!([{"type": "integer"}, {"type": "string"}]));
            }
        }
    }
    if dialect == Dialect::V2 {
        // Swagger knows no alternatives.
        for inner in ["oneOf", "anyOf"] {
            object.remove(inner);
        }
    }
    if dialect == Dialect::V3
        && object.len() > 1
        && let Some(reference) = object.remove("$ref")
    {
        object.insert("allOf".to_owned(), json!([{"$ref": reference}]));
    }
    schema
}

fn annotate(type_name: &str, field: &str, schema: &mut Value) {
    let rule = extensions::rule_of(type_name, field);
    if schema["type"] == "array" {
        let list = rule.map_or(ListType::Atomic, |rule| rule.list);
        schema["x-kubernetes-list-type"] = match list {
            ListType::Atomic => json!("atomic"),
            ListType::Set => json!("set"),
            ListType::Map(keys) => {
                schema["x-kubernetes-list-map-keys"] = json!(keys);
                json!("map")
            }
        };
    }
    if extensions::is_atomic_map(type_name, field) {
        schema["x-kubernetes-map-type"] = json!("atomic");
    }
    if let Some(rule) = rule {
        if let Some(strategy) = rule.patch.text() {
            schema["x-kubernetes-patch-strategy"] = json!(strategy);
        }
        if !rule.merge_key.is_empty() {
            schema["x-kubernetes-patch-merge-key"] = json!(rule.merge_key);
        }
    }
}
