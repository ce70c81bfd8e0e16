//! Unknown and duplicate fields of what clients send, for `fieldValidation` (C3.13).

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::types::{Shape, Type, Types};

/// Upstream reports no more than so many.
const MOST: usize = 100;

/// The unknown fields of an object, each as `unknown field "spec.foo"`, in the order of their paths.
pub fn unknown(object: &Value, types: &Types, root: &Type) -> Vec<String> {
    let mut search = Search { types, found: Vec::new() };
    if let Some(fields) = object.as_object() {
        search.object(fields, root, &mut String::new());
    }
    search.found
}

/// As [`unknown`], by the object's own `apiVersion` and `kind`; nothing is unknown in a kind without a schema.
pub fn unknown_in(object: &Value) -> Vec<String> {
    let types = Types::built_in();
    types.of_object(object).map_or_else(Vec::new, |root| unknown(object, types, root))
}

struct Search<'t> {
    types: &'t Types,
    found: Vec<String>,
}

impl Search<'_> {
    fn object(&mut self, object: &Map<String, Value>, shape: &Type, path: &mut String) {
        for (name, value) in object {
            let end = path.len();
            push_field(path, name);
            match shape.field(name) {
                Some(field) => self.value(value, &field.shape, path),
                None if self.found.len() < MOST => self.found.push(format!("unknown field \"{path}\"")),
                None => {}
            }
            path.truncate(end);
        }
    }

    fn value(&mut self, value: &Value, shape: &Shape, path: &mut String) {
        match (shape, value) {
            (Shape::Object(id), Value::Object(object)) => self.object(object, self.types.get(*id), path),
            (Shape::List(item), Value::Array(items)) => {
                for (at, value) in items.iter().enumerate() {
                    let end = path.len();
                    push_index(path, at);
                    self.value(value, item, path);
                    path.truncate(end);
                }
            }
            (Shape::Map(item), Value::Object(object)) => {
                for (name, value) in object {
                    let end = path.len();
                    push_field(path, name);
                    self.value(value, item, path);
                    path.truncate(end);
                }
            }
            _ => {}
        }
    }
}

fn push_field(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

fn push_index(path: &mut String, at: usize) {
    use fmt::Write as _;
    // Writing into a `String` cannot fail.
    let _ = write!(path, "[{at}]");
}

/// The most that a body may say: one for each value, and each byte of text. JSON of the largest size that is taken
/// stays far below, and so does YAML that does not repeat itself; an alias of an alias multiplies.
const LARGEST: usize = 8 << 20;

/// An object as it was sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object; of duplicate fields the last one counts.
    pub value: Value,
    /// Each as `duplicate field "spec.replicas"`.
    pub duplicates: Vec<String>,
}

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is not JSON.
    #[error("couldn't get version/kind; json parse error: {0}")]
    Json(#[from] serde_json::Error),
    /// It is not YAML.
    #[error("error converting YAML to JSON: yaml: {0}")]
    Yaml(#[from] serde_yaml_ng::Error),
}

/// Reads JSON.
pub fn decode_json(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut reader = Reader::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = reader.seed().deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(reader.finish(value))
}

/// Reads YAML, which JSON is a part of.
pub fn decode_yaml(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut reader = Reader::default();
    let value = reader.seed().deserialize(serde_yaml_ng::Deserializer::from_slice(bytes))?;
    Ok(reader.finish(value))
}

#[derive(Default)]
struct Reader {
    path: String,
    duplicates: Vec<String>,
    size: usize,
}

impl Reader {
    fn seed(&mut self) -> Seed<'_> {
        Seed(self)
    }

    /// Counts a value.
    fn count<E: serde::de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        self.size += 1 + bytes;
        if self.size > LARGEST { Err(E::custom("document contains excessive aliasing")) } else { Ok(()) }
    }

    fn finish(self, value: Value) -> Decoded {
        Decoded { value, duplicates: self.duplicates }
    }
}

struct Seed<'r>(&'r mut Reader);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.0.count(0)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.0.count(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.0.count(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.0.count(0)?;
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("numbers must be finite"))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.0.count(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        self.0.count(value.len())?;
        Ok(Value::String(value))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.0.count(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.0.count(0)?;
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let reader = self.0;
        reader.count(0)?;
        let mut list = Vec::new();
        let end = reader.path.len();
        loop {
            push_index(&mut reader.path, list.len());
            let item = items.next_element_seed(reader.seed())?;
            reader.path.truncate(end);
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let reader = self.0;
        reader.count(0)?;
        let mut object = Map::new();
        let end = reader.path.len();
        while let Some(name) = entries.next_key_seed(Seed(&mut Reader::default()))? {
            let name = match name {
                Value::String(name) => name,
                Value::Number(_) | Value::Bool(_) => name.to_string(),
                _ => return Err(A::Error::custom("keys must be strings")),
            };
            reader.count(name.len())?;
            push_field(&mut reader.path, &name);
            let value = entries.next_value_seed(reader.seed())?;
            if object.contains_key(&name) && reader.duplicates.len() < MOST {
                reader.duplicates.push(format!("duplicate field \"{}\"", reader.path));
            }
            reader.path.truncate(end);
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_are_named_with_their_paths() {
        // C3.13
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"nam": "x", "labels": {"any": "thing"}},
            "spec": {"unknownField": 1, "template": {"spec": {"containers": [{"name": "a"}, {"imag": "b", "resources": {"limits": {"x/y": 1}}}]}}}});
        assert_eq!(
            unknown_in(&deployment),
            [
                "unknown field \"metadata.nam\"",
                "unknown field \"spec.template.spec.containers[1].imag\"",
                "unknown field \"spec.unknownField\"",
            ]
        );
        assert!(unknown_in(&json!({"apiVersion": "example.org/v1", "kind": "Thing", "x": 1})).is_empty());
    }

    #[test]
    fn managed_fields_and_raw_objects_are_free_form() {
        let revision = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "data": {"x": {"y": 1}},
            "metadata": {"managedFields": [{"manager": "m", "fieldsV1": {"f:a": {"f:b": {}}}}]}});
        assert_eq!(unknown_in(&revision), Vec::<String>::new());
    }

    #[test]
    fn duplicates_are_found_in_json_and_yaml() {
        // C3.13
        let json = br#"{"spec": {"replicas": 1, "replicas": 2, "list": [{"a": 1, "a": 2}]}}"#;
        let decoded = decode_json(json).unwrap();
        assert_eq!(decoded.value["spec"]["replicas"], 2);
        assert_eq!(decoded.duplicates, ["duplicate field \"spec.replicas\"", "duplicate field \"spec.list[0].a\""]);
        let decoded = decode_yaml(b"spec:\n  replicas: 1\n  replicas: 2\n  5: x\n").unwrap();
        assert_eq!(decoded.value, json!({"spec": {"replicas": 2, "5": "x"}}));
        assert_eq!(decoded.duplicates, ["duplicate field \"spec.replicas\""]);
        assert!(decode_json(b"{\"a\":1} x").is_err());
    }

    #[test]
    fn a_short_document_cannot_fill_the_memory() {
        let long = "x".repeat(1 << 20);
        let aliases = "*a,".repeat(100);
        assert!(decode_yaml(format!("[&a {long},{aliases}]").as_bytes()).is_err());
        assert!(decode_yaml(b"[&a x, *a, *a]").is_ok());
        let large = format!("[{}0]", "0,".repeat((3 << 20) / 2 - 2));
        assert!(decode_json(large.as_bytes()).is_ok());
    }
}
