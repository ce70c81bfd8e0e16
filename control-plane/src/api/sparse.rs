//! Reads of a JSON object only what lies on some paths; the rest is passed over without being kept.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The object with nothing but what the paths (`spec.nodeName`) lead to. What a path meets that is no object is `null`.
pub(super) fn read(text: &[u8], paths: &[&str]) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Below(paths.to_vec()).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// The object without `managedFields`, which are half of it and of no use to whoever applies nothing.
pub(super) fn read_unowned(text: &[u8]) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Unowned { metadata: false }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// A whole object, or its `metadata`, but for `managedFields`.
struct Unowned {
    metadata: bool,
}

impl<'de> DeserializeSeed<'de> for Unowned {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Unowned {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if self.metadata && name == "managedFields" {
                map.next_value::<IgnoredAny>()?;
            } else if !self.metadata && name == "metadata" {
                fields.insert(name, map.next_value_seed(Self { metadata: true })?);
            } else {
                fields.insert(name, map.next_value()?);
            }
        }
        Ok(fields.into())
    }
}

/// What is wanted of a value: what these paths lead to from there. An empty path is the value itself.
struct Below<'p>(Vec<&'p str>);

impl<'p> Below<'p> {
    /// What is wanted of a field; `None`: nothing.
    fn field(&self, name: &str) -> Option<Self> {
        let rest = |path: &'p str| match path.split_once('.') {
            Some((first, rest)) => (first == name).then_some(rest),
            None => (path == name).then_some(""),
        };
        let paths: Vec<&str> = self.0.iter().copied().filter_map(rest).collect();
        (!paths.is_empty()).then_some(Self(paths))
    }
}

impl<'de> DeserializeSeed<'de> for Below<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.0.contains(&"") { Value::deserialize(deserializer) } else { deserializer.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Below<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut found = Map::new();
        while let Some(field) = map.next_key_seed(Field(&self))? {
            match field {
                Some((name, below)) => {
                    found.insert(name, map.next_value_seed(below)?);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// The name of a field, if anything is wanted of it.
struct Field<'a, 'p>(&'a Below<'p>);

impl<'de, 'p> DeserializeSeed<'de> for Field<'_, 'p> {
    type Value = Option<(String, Below<'p>)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Field<'_, 'p> {
    type Value = Option<(String, Below<'p>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.field(name).map(|below| (name.to_owned(), below)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_lies_on_the_paths_is_kept() {
        // C3.8
        let object = json!({
            "metadata": {"name": "a", "labels": {"app": "web", "a.b/c": "d"}, "ownerReferences": [{"name": "x"}]},
            "spec": {"nodeName": "n1", "containers": [{"name": "nodeName"}], "hostNetwork": true},
            "status": null, "count": 3, "kind": "Pod",
        });
        let text = serde_json::to_vec(&object).unwrap();
        let read = |paths: &[&str]| read(&text, paths).unwrap();
        assert_eq!(read(&[]), json!({}));
        assert_eq!(
            read(&["metadata.labels", "spec.nodeName", "status.phase", "kind.deep", "spec.containers.name", "count.x"]),
            json!({
                "metadata": {"labels": {"app": "web", "a.b/c": "d"}},
                "spec": {"nodeName": "n1", "containers": null}, "status": null, "kind": null, "count": null,
            })
        );
        assert_eq!(read(&["spec", "spec.nodeName"])["spec"], object["spec"]);
        assert!(super::read(b"{\"a\": 1", &["a"]).is_err());
        assert!(super::read(b"{\"a\": 1} x", &["a"]).is_err());
    }

    #[test]
    fn who_owns_fields_is_left_out() {
        let text =
            br#"{"metadata": {"name": "a", "managedFields": [{"manager": "m"}], "labels": {"managedFields": "x"}},
            "spec": {"metadata": {"managedFields": [1]}}, "managedFields": 2}"#;
        let expected = json!({
            "metadata": {"name": "a", "labels": {"managedFields": "x"}}, "spec": {"metadata": {"managedFields": [1]}},
            "managedFields": 2,
        });
        assert_eq!(read_unowned(text).unwrap(), expected);
        assert!(read_unowned(b"[1]").is_err() && read_unowned(b"{} x").is_err());
    }
}
