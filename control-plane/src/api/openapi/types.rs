//! The shapes of all built-in types, small enough to stay in memory: what a field is called, what it holds, and how
//! it merges. Strategic merge, server-side apply and the check for unknown fields read it.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::definitions::{self, KINDS};
use super::extensions::{self, ListType, PatchStrategy, Rule};

/// What a value may be.
#[derive(Debug, Clone)]
pub enum Shape {
    /// A string, number, boolean, or a quantity.
    Scalar,
    /// Anything: raw JSON, embedded objects of unknown kinds.
    Any,
    /// An object with known fields.
    Object(TypeId),
    /// Items of one shape.
    List(Box<Shape>),
    /// Any keys, values of one shape.
    Map(Box<Shape>),
}

/// The place of a type in [`Types`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeId(u32);

/// One field of an object.
#[derive(Debug)]
pub struct Field {
    /// Its JSON name.
    pub name: Box<str>,
    /// What it holds.
    pub shape: Shape,
    /// How it merges, where that is not the default.
    pub rule: Option<&'static Rule>,
    /// Whether the object or map in it has one owner as a whole.
    pub atomic: bool,
}

impl Field {
    /// Ownership of the items, if this is a list.
    pub fn list_type(&self) -> ListType {
        self.rule.map_or(ListType::Atomic, |rule| rule.list)
    }

    /// What a strategic merge patch does here.
    pub fn patch_strategy(&self) -> PatchStrategy {
        self.rule.map_or(PatchStrategy::Default, |rule| rule.patch)
    }

    /// The field by which strategic merge tells the items apart; empty for lists of scalars.
    pub fn merge_key(&self) -> &'static str {
        self.rule.map_or("", |rule| rule.merge_key)
    }
}

/// An object type: its fields, sorted by name.
#[derive(Debug, Default)]
pub struct Type {
    fields: Box<[Field]>,
    atomic: bool,
}

impl Type {
    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|field| (*field.name).cmp(name)).ok().map(|at| &self.fields[at])
    }

    /// Whether objects of this type have one owner as a whole.
    pub fn is_atomic(&self) -> bool {
        self.atomic
    }
}

/// All types.
#[derive(Debug)]
pub struct Types {
    types: Vec<Type>,
    kinds: HashMap<(&'static str, &'static str, &'static str), TypeId>,
}

impl Types {
    /// The shapes of all built-in kinds; built on first use.
    pub fn built_in() -> &'static Self {
        static TYPES: OnceLock<Types> = OnceLock::new();
        TYPES.get_or_init(|| Self::from_definitions(&definitions::generate(KINDS, "/definitions")))
    }

    fn from_definitions(definitions: &Map<String, Value>) -> Self {
        let ids: HashMap<&str, TypeId> = definitions
            .iter()
            .enumerate()
            .map(|(at, (name, _))| (name.as_str(), TypeId(u32::try_from(at).unwrap_or(u32::MAX))))
            .collect();
        let types =
            definitions.iter().map(|(name, definition)| object_type(name, definition, definitions, &ids)).collect();
        let kinds = KINDS
            .iter()
            .filter_map(|kind| Some(((kind.group, kind.version, kind.kind), *ids.get(&*kind.type_name())?)))
            .collect();
        Self { types, kinds }
    }

    /// The type of a kind; `None` for custom resources and unknown kinds.
    pub fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Type> {
        let known = definitions::kind_of(group, version, kind)?;
        self.kinds.get(&(known.group, known.version, known.kind)).map(|id| self.get(*id))
    }

    /// The type of an object by its own `apiVersion` and `kind`.
    pub fn of_object(&self, object: &Value) -> Option<&Type> {
        let (group, version) = split_api_version(object.get("apiVersion")?.as_str()?);
        self.of_kind(group, version, object.get("kind")?.as_str()?)
    }

    /// The type at a place.
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// The object type that a shape is, if it is one.
    pub fn object(&self, shape: &Shape) -> Option<&Type> {
        match shape {
            Shape::Object(id) => Some(self.get(*id)),
            _ => None,
        }
    }
}

/// `apps/v1` is group `apps`, version `v1`; `v1` is the core group.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

fn object_type(name: &str, definition: &Value, all: &Map<String, Value>, ids: &HashMap<&str, TypeId>) -> Type {
    let mut fields: Vec<Field> = properties(definition)
        .map(|(field, schema)| {
            let shape = shape_of(schema, all, ids);
            let rule = extensions::rule_of(name, field);
            let atomic = extensions::is_atomic_map(name, field);
            Field { name: field.as_str().into(), shape, rule, atomic }
        })
        .collect();
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    Type { fields: fields.into(), atomic: extensions::is_atomic_type(name) }
}

fn properties(definition: &Value) -> impl Iterator<Item = (&String, &Value)> {
    definition.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn shape_of(schema: &Value, all: &Map<String, Value>, ids: &HashMap<&str, TypeId>) -> Shape {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let name = definitions::referred(reference);
        let Some(target) = all.get(name) else { return Shape::Any };
        return match ids.get(name) {
            Some(id) if properties(target).next().is_some() => Shape::Object(*id),
            // `FieldsV1`, `RawExtension` and the like: objects without stated fields.
            _ => shape_of(target, all, ids),
        };
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("array") => {
            Shape::List(Box::new(schema.get("items").map_or(Shape::Any, |items| shape_of(items, all, ids))))
        }
        Some("object") => match schema.get("additionalProperties") {
            Some(values) if values.is_object() => Shape::Map(Box::new(shape_of(values, all, ids))),
            _ => Shape::Any,
        },
        Some(_) => Shape::Scalar,
        None if schema.get("x-kubernetes-int-or-string").is_some() => Shape::Scalar,
        None => Shape::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_names_a_field_that_exists() {
        let definitions = definitions::generate(KINDS, "/definitions");
        for rule in extensions::rules() {
            let known = definitions.iter().any(|(name, definition)| {
                name.ends_with(&format!(".{}", rule.on)) && definition["properties"].get(rule.field).is_some()
            });
            assert!(known, "{} has no field {}", rule.on, rule.field);
        }
    }

    #[test]
    fn paths_lead_from_kinds_to_leaves() {
        let types = Types::built_in();
        let pod = types.of_kind("", "v1", "Pod").unwrap();
        let spec = types.object(&pod.field("spec").unwrap().shape).unwrap();
        let containers = spec.field("containers").unwrap();
        assert_eq!(containers.merge_key(), "name");
        let Shape::List(item) = &containers.shape else { panic!("{:?}", containers.shape) };
        let container = types.object(item).unwrap();
        let resources = types.object(&container.field("resources").unwrap().shape).unwrap();
        assert!(
            matches!(&resources.field("limits").unwrap().shape, Shape::Map(value) if matches!(**value, Shape::Scalar))
        );
    }
}
