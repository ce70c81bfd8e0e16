//! Reads an object without its `managedFields`: they are often half of it, and nobody on the node reads them.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// An object of the API from JSON. Its type may hold `managedFields`, which stay empty.
///
/// # Errors
/// As those of [`serde_json::from_str`].
pub(super) fn from_str<'a, T: Deserialize<'a>>(text: &'a str) -> serde_json::Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let object = T::deserialize(Without { from: &mut deserializer, depth: Depth::Object })?;
    deserializer.end()?;
    Ok(object)
}

/// Where in an object something is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Object,
    Metadata,
}

/// What somebody reads from a struct at this depth is passed through; in each other shape it has nothing to leave out.
struct Without<D> {
    from: D,
    depth: Depth,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Without<D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.from.deserialize_struct(name, fields, Without { from: visitor, depth: self.depth })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.from.deserialize_option(Without { from: visitor, depth: self.depth })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.from.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Without<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.from.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.from.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error> {
        self.from.visit_some(Without { from, depth: self.depth })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.from.visit_map(Fields { map, depth: self.depth, is_metadata: false })
    }
}

/// The fields of a struct at this depth.
struct Fields<A> {
    map: A,
    depth: Depth,
    /// Whether the field whose name came last is the object's metadata.
    is_metadata: bool,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(Name(name)) = self.map.next_key()? {
            if self.depth == Depth::Metadata && name == "managedFields" {
                self.map.next_value::<IgnoredAny>()?;
                continue;
            }
            self.is_metadata = self.depth == Depth::Object && name == "metadata";
            return seed.deserialize(serde::de::value::CowStrDeserializer::new(name)).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        if self.is_metadata { self.map.next_value_seed(InMetadata(seed)) } else { self.map.next_value_seed(seed) }
    }
}

struct InMetadata<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for InMetadata<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Without { from, depth: Depth::Metadata })
    }
}

/// The name of a field, as it stands in the text unless that is escaped.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Name<'de>, E> {
        Ok(Name(name.into()))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Name<'de>, E> {
        Ok(Name(name.to_owned().into()))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_but_who_owns_the_fields_is_read() {
        let owners = json!([{ "manager": "m", "operation": "Update", "fieldsV1": { "f:metadata": {} } }]);
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "a", "annotations": { "managedFields": "x" }, "labels": { "l": "\u{e4}\"" }, "managedFields": owners },
            "spec": { "nodeName": "n", "containers": [{ "name": "c", "env": [{ "name": "metadata", "value": "managedFields" }] }] },
            "status": { "phase": "Running", "conditions": [] },
            "later": { "metadata": { "managedFields": [1] } },
        });
        let pod: Pod = from_str(&object.to_string()).unwrap();
        assert_eq!(pod.metadata.managed_fields, None);
        object["metadata"]["managedFields"].take();
        assert_eq!(pod, serde_json::from_value(object).unwrap());
    }

    #[test]
    fn names_of_fields_may_be_escaped() {
        let pod: Pod = from_str(r#"{"metad\u0061ta": {"n\u0061me": "a", "managed\u0046ields": [{}]}}"#).unwrap();
        assert_eq!((pod.metadata.name.as_deref(), pod.metadata.managed_fields), (Some("a"), None));
    }

    #[test]
    fn what_is_no_such_object_is_refused() {
        for wrong in ["[1]", "{", "{} x", r#"{"metadata": []}"#, r#"{"kind": "Node"}"#, r#"{"metadata": {"name": 1}}"#]
        {
            assert!(from_str::<Pod>(wrong).is_err(), "{wrong}");
            assert!(serde_json::from_str::<Pod>(wrong).is_err(), "{wrong}");
        }
        assert_eq!(from_str::<Pod>(r#"{"metadata": {}}"#).unwrap(), Pod::default());
    }
}
