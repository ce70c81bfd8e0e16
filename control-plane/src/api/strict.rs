//! Fields that no type knows, and fields that are there twice (C3.13).

use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::write::normalise;
use crate::resources::ResourceInfo;
use crate::resources::status::StatusError;

/// `fieldValidation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Ignore,
    Warn,
    Strict,
}

impl Mode {
    pub(super) fn parse(text: &str) -> Result<Self, StatusError> {
        match text {
            "Ignore" => Ok(Self::Ignore),
            "" | "Warn" => Ok(Self::Warn),
            "Strict" => Ok(Self::Strict),
            other => {
                let supported = ["Ignore", "Strict", "Warn"];
                let error = crate::resources::field::FieldError::not_supported("fieldValidation", other, &supported);
                Err(StatusError::invalid_kind("meta.k8s.io", "CreateOptions", "", &[error]))
            }
        }
    }
}

/// Looks for unknown and duplicate fields: an error if strict, else the warnings to send. `raw` is the JSON text, if
/// there is one; only a text can have duplicates.
pub(super) fn check(
    info: &ResourceInfo,
    object: &Value,
    raw: Option<&Bytes>,
    mode: Mode,
) -> Result<Vec<String>, StatusError> {
    if mode == Mode::Ignore {
        return Ok(Vec::new());
    }
    let known = normalise(info, object.clone())?;
    let mut found = Vec::new();
    unknown(object, &known, &mut String::new(), &mut found);
    if let Some(raw) = raw {
        duplicates(raw, &mut found);
    }
    if mode == Mode::Strict && !found.is_empty() {
        return Err(StatusError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
            info.kind,
            info.version,
            info.kind,
            found.join(", ")
        )));
    }
    Ok(found)
}

/// What the type dropped is unknown; empty values it may have dropped for being empty.
fn unknown(given: &Value, known: &Value, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
                match known.get(key) {
                    Some(known) => unknown(value, known, path, found),
                    None if is_empty(value) => {}
                    None => found.push(format!("unknown field {path:?}")),
                }
                path.truncate(length);
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (at, (value, known)) in given.iter().zip(known).enumerate() {
                path.push_str(&format!("[{at}]"));
                unknown(value, known, path, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn duplicates(raw: &Bytes, found: &mut Vec<String>) {
    let mut path = String::new();
    let mut reader = serde_json::Deserializer::from_slice(raw);
    // A text that is no JSON (YAML) is not looked at; one that is has been read before.
    let _ = Duplicates { path: &mut path, found }.deserialize(&mut reader);
}

/// Walks a JSON text and notes keys that come twice in one object.
struct Duplicates<'a> {
    path: &'a mut String,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Duplicates<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Duplicates<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let length = self.path.len();
        let mut at = 0;
        loop {
            self.path.push_str(&format!("[{at}]"));
            let next = seq.next_element_seed(Duplicates { path: &mut *self.path, found: &mut *self.found })?;
            self.path.truncate(length);
            if next.is_none() {
                return Ok(());
            }
            at += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let length = self.path.len();
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(&key);
            let text = format!("duplicate field {:?}", self.path);
            if !seen.insert(key) && !self.found.contains(&text) {
                self.found.push(text);
            }
            map.next_value_seed(Duplicates { path: &mut *self.path, found: &mut *self.found })?;
            self.path.truncate(length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources;

    #[test]
    fn unknown_and_duplicate_fields_are_named() {
        // C3.13
        let info = resources::find("apps", "deployments").expect("served");
        let raw = Bytes::from_static(
            br#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"x","creationTimestamp":null,"odd":1},
                "spec":{"replicas":1,"replicas":2,"unknownField":1,"selector":{},"strategy":{},
                "template":{"spec":{"containers":[{"name":"a","imag":"b","resources":{}}]}}},"status":{}}"#,
        );
        let object: Value = serde_json::from_slice(&raw).expect("JSON");
        let error = check(info, &object, Some(&raw), Mode::Strict).expect_err("refused");
        assert_eq!(
            error.message,
            "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: \
             unknown field \"metadata.odd\", unknown field \"spec.template.spec.containers[0].imag\", \
             unknown field \"spec.unknownField\", duplicate field \"spec.replicas\""
        );
        assert_eq!(check(info, &object, Some(&raw), Mode::Warn).expect("taken").len(), 4);
        assert_eq!(check(info, &object, Some(&raw), Mode::Ignore).expect("taken").len(), 0);
    }
}
