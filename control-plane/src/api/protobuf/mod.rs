//! Reads the protobuf form of objects (C3.1): kubectl from 1.32 on and client-go send it for the built-in kinds.
//!
//! `fields.txt` states the numbers of the fields as the published API does: one type a line, each field as
//! `name=number` and what it holds: `s` string, `y` bytes, `b` bool, `i` integer, `d` double, `Q` quantity, `P`
//! int-or-string, `T` time, `M` time with microseconds, `R` raw JSON, else a type; `[` repeats, `{` is a map by
//! string. `?` marks what may be set to its zero; without a name, the fields of the type belong to the outer one.
//! Answers are never written in it: every such client takes JSON as well.

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

const MAGIC: &[u8] = b"k8s\0";
/// Schemas of custom resources nest; nothing else comes near.
const DEEPEST: usize = 64;

/// Why bytes are no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The prefix is missing.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// It ends too early, or a length is wrong.
    #[error("the protobuf message is cut off or malformed")]
    Malformed,
    /// There is no such kind here.
    #[error("no kind {0:?} is known in its protobuf form: send application/json")]
    UnknownKind(String),
}

struct Field {
    number: u64,
    name: &'static str,
    keeps_zero: bool,
    holds: &'static str,
}

type Message = Vec<Field>;

fn messages() -> &'static HashMap<&'static str, Message> {
    static MESSAGES: OnceLock<HashMap<&'static str, Message>> = OnceLock::new();
    MESSAGES.get_or_init(|| {
        include_str!("fields.txt")
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                Some((words.next()?, words.filter_map(field).collect()))
            })
            .collect()
    })
}

fn field(text: &'static str) -> Option<Field> {
    let (name, rest) = text.split_once('=')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let keeps_zero = name.ends_with('?');
    Some(Field {
        number: rest[..digits].parse().ok()?,
        name: name.trim_end_matches('?'),
        keeps_zero,
        holds: &rest[digits..],
    })
}

/// Reads an object with its `apiVersion` and `kind`.
pub fn decode(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let envelope = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut api_version, mut kind, mut raw): (String, String, &[u8]) = Default::default();
    for part in Parts(envelope) {
        match part? {
            (1, Wire::Bytes(meta)) => {
                for part in Parts(meta) {
                    match part? {
                        (1, Wire::Bytes(text)) => api_version = string(text),
                        (2, Wire::Bytes(text)) => kind = string(text),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (group, version) = super::openapi::types::split_api_version(&api_version);
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    let own = format!("{package}.{version}.{kind}");
    let shared = format!("meta.v1.{kind}");
    let message = messages().get(own.as_str()).or_else(|| messages().get(shared.as_str()));
    let message = message.ok_or_else(|| ProtobufError::UnknownKind(format!("{api_version} {kind}")))?;
    let mut object = Map::new();
    read(message, raw, &mut object, 0)?;
    object.insert("apiVersion".to_owned(), json!(api_version));
    object.insert("kind".to_owned(), json!(kind));
    Ok(Value::Object(object))
}

fn read(message: &Message, bytes: &[u8], object: &mut Map<String, Value>, depth: usize) -> Result<(), ProtobufError> {
    if depth > DEEPEST {
        return Err(ProtobufError::Malformed);
    }
    for part in Parts(bytes) {
        let (number, wire) = part?;
        let Some(field) = message.iter().find(|field| field.number == number) else { continue };
        if field.name.is_empty() {
            if let (Some(inner), Wire::Bytes(bytes)) = (messages().get(field.holds), wire) {
                read(inner, bytes, object, depth + 1)?;
            }
            continue;
        }
        if let Some(item) = field.holds.strip_prefix('[') {
            let value = value(item, wire, depth)?;
            if let Value::Array(list) = object.entry(field.name).or_insert_with(|| json!([])) {
                list.push(value);
            }
        } else if let Some(item) = field.holds.strip_prefix('{') {
            let (name, value) = entry(item, wire, depth)?;
            if let Value::Object(map) = object.entry(field.name).or_insert_with(|| json!({})) {
                map.insert(name, value);
            }
        } else {
            let value = value(field.holds, wire, depth)?;
            if field.keeps_zero || !is_zero(&value) {
                object.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// Go writes fields that are no pointers even if no one set them.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn entry(item: &'static str, wire: Wire<'_>, depth: usize) -> Result<(String, Value), ProtobufError> {
    let Wire::Bytes(bytes) = wire else { return Err(ProtobufError::Malformed) };
    let (mut name, mut found) = (String::new(), None);
    for part in Parts(bytes) {
        match part? {
            (1, Wire::Bytes(text)) => name = string(text),
            (2, wire) => {
                found = Some(match (item.strip_prefix('['), wire) {
                    // A map of lists wraps each list in a message of its own.
                    (Some(item), Wire::Bytes(list)) => {
                        let items = Parts(list).map(|part| value(item, part?.1, depth));
                        Value::Array(items.collect::<Result<_, _>>()?)
                    }
                    (_, wire) => value(item, wire, depth)?,
                });
            }
            _ => {}
        }
    }
    Ok((name, found.unwrap_or_else(|| json!(""))))
}

fn value(holds: &'static str, wire: Wire<'_>, depth: usize) -> Result<Value, ProtobufError> {
    Ok(match (holds, wire) {
        ("i", Wire::Number(number)) => json!(number.cast_signed()),
        ("b", Wire::Number(number)) => json!(number != 0),
        ("d", Wire::Fixed(bits)) => json!(f64::from_bits(bits)),
        ("s", Wire::Bytes(bytes)) => json!(string(bytes)),
        ("y", Wire::Bytes(bytes)) => json!(base64::engine::general_purpose::STANDARD.encode(bytes)),
        ("R", Wire::Bytes(bytes)) => match bytes_at(bytes, 1)? {
            Some(raw) => serde_json::from_slice(raw).map_err(|_| ProtobufError::Malformed)?,
            None => Value::Null,
        },
        ("Q", Wire::Bytes(bytes)) => bytes_at(bytes, 1)?.map_or(Value::Null, |text| json!(string(text))),
        ("P", Wire::Bytes(bytes)) => match (number_at(bytes, 1)?, bytes_at(bytes, 3)?) {
            (1, Some(text)) => json!(string(text)),
            _ => json!(number_at(bytes, 2)?),
        },
        ("T" | "M", Wire::Bytes(bytes)) if !bytes.is_empty() => time(bytes, holds == "M")?,
        ("T" | "M", Wire::Bytes(_)) => Value::Null,
        (name, Wire::Bytes(bytes)) => {
            let message = messages().get(name).ok_or(ProtobufError::Malformed)?;
            let mut object = Map::new();
            read(message, bytes, &mut object, depth + 1)?;
            Value::Object(object)
        }
        _ => return Err(ProtobufError::Malformed),
    })
}

fn time(bytes: &[u8], micros: bool) -> Result<Value, ProtobufError> {
    let (seconds, nanos) = (number_at(bytes, 1)?, number_at(bytes, 2)?);
    let nanos = i32::try_from(nanos).map_err(|_| ProtobufError::Malformed)?;
    let at = Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Malformed)?;
    Ok(json!(if micros { crate::clock::micros_text(at) } else { crate::clock::seconds_text(at) }))
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bytes_at(message: &[u8], number: u64) -> Result<Option<&[u8]>, ProtobufError> {
    for part in Parts(message) {
        if let (found, Wire::Bytes(bytes)) = part?
            && found == number
        {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

fn number_at(message: &[u8], number: u64) -> Result<i64, ProtobufError> {
    for part in Parts(message) {
        if let (found, Wire::Number(value)) = part?
            && found == number
        {
            return Ok(value.cast_signed());
        }
    }
    Ok(0)
}

/// A value as it stands on the wire.
enum Wire<'b> {
    Number(u64),
    Fixed(u64),
    Bytes(&'b [u8]),
}

/// The fields of a message, one after the other.
struct Parts<'b>(&'b [u8]);

impl<'b> Parts<'b> {
    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn part(&mut self) -> Option<(u64, Wire<'b>)> {
        let key = self.number()?;
        let wire = match key & 7 {
            0 => Wire::Number(self.number()?),
            1 => Wire::Fixed(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed(u64::from(u32::from_le_bytes(self.take(4)?.try_into().ok()?))),
            _ => return None,
        };
        Some((key >> 3, wire))
    }
}

impl<'b> Iterator for Parts<'b> {
    type Item = Result<(u64, Wire<'b>), ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part().ok_or(ProtobufError::Malformed);
        if part.is_err() {
            self.0 = &[];
        }
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::openapi::definitions::{self, KINDS};

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &meta), bytes(2, raw)].concat()
    }

    #[test]
    fn a_secret_comes_out_as_json() {
        // C3.1
        let meta = [bytes(1, b"s"), bytes(3, b""), bytes(8, b"")].concat();
        let entry = [bytes(1, b"key"), bytes(2, b"value")].concat();
        let secret = [bytes(1, &meta), bytes(2, &entry), bytes(3, b"Opaque"), vec![5 << 3, 0]].concat();
        assert_eq!(
            decode(&envelope("v1", "Secret", &secret)).unwrap(),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"key": "dmFsdWU="},
                "type": "Opaque", "immutable": false})
        );
    }

    #[test]
    fn broken_messages_are_refused() {
        // C3.1
        assert_eq!(decode(b"{}"), Err(ProtobufError::Magic));
        assert_eq!(decode(b"k8s\0\x0a\xff"), Err(ProtobufError::Malformed));
        assert!(matches!(decode(&envelope("v1", "Nothing", b"")), Err(ProtobufError::UnknownKind(_))));
    }

    #[test]
    fn every_kind_and_every_type_in_the_table_is_there() {
        for kind in KINDS {
            let package = kind.group.split('.').next().filter(|group| !group.is_empty()).unwrap_or("core");
            let name = format!("{package}.{}.{}", kind.version, kind.kind);
            assert!(messages().contains_key(name.as_str()), "{name}");
        }
        for (name, message) in messages() {
            for field in message {
                let holds = field.holds.trim_start_matches(['[', '{']);
                assert!(holds.len() == 1 || messages().contains_key(holds), "{name}.{}: {holds}", field.name);
            }
        }
    }

    fn names(message: &Message, all: &mut Vec<&str>) {
        for field in message {
            match field.name {
                "" => names(&messages()[field.holds], all),
                name => all.push(name),
            }
        }
    }

    /// Whatever the API states has a number.
    #[test]
    fn every_field_of_the_schemas_has_a_number() {
        let all = definitions::generate(KINDS, "/definitions");
        for (type_name, definition) in &all {
            let short = type_name.rsplit('.').take(3).collect::<Vec<_>>();
            let short = format!("{}.{}.{}", short[2], short[1], short[0]);
            let Some(message) = messages().get(short.as_str()) else { continue };
            let mut known = vec!["apiVersion", "kind"];
            names(message, &mut known);
            // Alpha, off by default, and of another form in later releases.
            known.extend(match short.as_str() {
                "core.v1.NodeAllocatableResourceClaimStatus" => Some("resources"),
                "resource.v1.Device" => Some("nodeAllocatableResourceMappings"),
                _ => None,
            });
            for field in definition["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()) {
                assert!(known.contains(&field), "{short}.{field}");
            }
        }
    }
}
