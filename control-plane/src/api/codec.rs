//! Objects in the store: their keys, and their bytes.
//!
//! An object is stored as JSON whose first field is an empty resourceVersion, because the revision of a write is not
//! known before the write. Since it stands at a fixed place, showing an object to a client is copying its bytes around
//! the revision: no list and no watch has to parse what it only passes on.

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;

use crate::resources::ResourceInfo;
use crate::resources::status::StatusError;
use crate::storage::{Entry, Event, Revision};

/// What stands before the revision…
const HEAD: &[u8] = b"{\"metadata\":{\"resourceVersion\":\"";

/// The key prefix of a kind's objects, in one namespace if it is not empty.
pub(super) fn prefix(info: &ResourceInfo, namespace: &str) -> String {
    let (group, plural) = info.stored_as;
    let group = if group.is_empty() { "core" } else { group };
    if info.namespaced && !namespace.is_empty() {
        format!("{group}/{plural}/{namespace}/")
    } else {
        format!("{group}/{plural}/")
    }
}

/// The key of an object.
pub(super) fn key(info: &ResourceInfo, namespace: &str, name: &str) -> String {
    let mut key = prefix(info, namespace);
    key.push_str(name);
    key
}

/// The bytes to store. The object has a metadata object.
pub(super) fn encode(object: &Value) -> Result<Bytes, StatusError> {
    let mut bytes = Vec::with_capacity(1024);
    bytes.extend_from_slice(HEAD);
    bytes.push(b'"');
    let write = |bytes: &mut Vec<u8>, key: &str, value: &Value| -> Result<(), serde_json::Error> {
        bytes.push(b',');
        serde_json::to_writer(&mut *bytes, key)?;
        bytes.push(b':');
        serde_json::to_writer(&mut *bytes, value)
    };
    for (key, value) in
        object["metadata"].as_object().into_iter().flatten().filter(|(key, _)| *key != "resourceVersion")
    {
        write(&mut bytes, key, value).map_err(StatusError::internal)?;
    }
    bytes.push(b'}');
    for (key, value) in object.as_object().into_iter().flatten().filter(|(key, _)| *key != "metadata") {
        write(&mut bytes, key, value).map_err(StatusError::internal)?;
    }
    bytes.push(b'}');
    Ok(bytes.into())
}

/// The JSON that clients see.
pub(super) fn render(stored: &Bytes, revision: Revision) -> Bytes {
    let rest = stored.get(HEAD.len()..).unwrap_or_default();
    let mut text = BytesMut::with_capacity(stored.len() + 20);
    text.put_slice(HEAD);
    text.put_slice(revision.to_string().as_bytes());
    text.put_slice(rest);
    text.freeze()
}

/// The JSON of a change's object, made once for all watchers.
pub(super) fn render_event(event: &Event) -> Bytes {
    event.rendered.get_or_init(|| render(&event.value, event.revision)).clone()
}

/// The object with its resourceVersion.
pub(super) fn decode(stored: &Bytes, revision: Revision) -> Result<Value, StatusError> {
    let mut object: Value = serde_json::from_slice(stored).map_err(StatusError::internal)?;
    object["metadata"]["resourceVersion"] = Value::String(revision.to_string());
    Ok(object)
}

/// The object of an entry.
pub(super) fn decode_entry(entry: &Entry) -> Result<Value, StatusError> {
    decode(&entry.value, entry.revision)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_rendered_reads_back_with_its_revision() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"metadata": "{\"resourceVersion\":\"9\"}"},
            "metadata": {"name": "x", "resourceVersion": "3"},
        });
        let stored = encode(&object).expect("encodes");
        assert!(serde_json::from_slice::<Value>(&stored).is_ok(), "what is stored is JSON");
        let shown: Value = serde_json::from_slice(&render(&stored, 41)).expect("JSON");
        let mut expected = object;
        expected["metadata"]["resourceVersion"] = json!("41");
        assert_eq!(shown, expected);
        assert_eq!(decode(&stored, 41).expect("decodes"), expected);
    }
}
