//! Objects as clients want to see them: whole, only their metadata, or as rows of a table (C3.9).
//!
//! Everything is written as JSON text, one object after the other, so that a list of any length needs the memory of
//! its answer and of one object.

use std::io::Write as _;

use jiff::Timestamp;
use serde_json::Value;

use crate::resources::columns::{Cells, Printer, printer};

/// What the client asked for with `as=` in its `Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// The objects themselves.
    Whole,
    /// A Table, in this version of meta.k8s.io.
    Table(&'static str),
    /// PartialObjectMetadata, or a PartialObjectMetadataList where it is a list.
    Metadata,
}

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
}

/// The text of a 406.
pub const NOT_ACCEPTABLE: &str = "only the following media types are accepted: application/json, application/yaml";

/// Picks the first acceptable range of an `Accept` header; `None` is a 406 with [`NOT_ACCEPTABLE`]. `tables` says
/// whether the request is about objects that have a table (reads of stored kinds).
pub fn negotiate(accept: Option<&str>, tables: bool) -> Option<(Encoding, Shown)> {
    let accept = accept.map(str::trim).filter(|accept| !accept.is_empty()).unwrap_or("application/json");
    accept.split(',').find_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let encoding = match parts.next().unwrap_or("").to_ascii_lowercase().as_str() {
            "application/json" | "application/*" | "*/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            _ => return None,
        };
        let (mut shape, mut group, mut version) = ("", "", "");
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => shape = value,
                Some(("g", value)) => group = value,
                Some(("v", value)) => version = value,
                _ => {}
            }
        }
        let shown = match (shape, group, version) {
            ("", ..) => Shown::Whole,
            ("Table", "meta.k8s.io", "v1") if tables => Shown::Table("v1"),
            ("Table", "meta.k8s.io", "v1beta1") if tables => Shown::Table("v1beta1"),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") if tables => Shown::Metadata,
            _ => return None,
        };
        Some((encoding, shown))
    })
}

/// What a row carries of its object (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata; the default.
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// From the query parameter; `None` if it is unknown (400).
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "Metadata") => Some(Self::Metadata),
            Some("None") => Some(Self::None),
            Some("Object") => Some(Self::Object),
            Some(_) => None,
        }
    }
}

/// `metadata` of a list.
#[derive(Debug, Clone, Default)]
pub struct ListMeta<'a> {
    /// The list's resourceVersion.
    pub resource_version: &'a str,
    /// Where the next page begins; empty on the last.
    pub continue_token: &'a str,
    /// How many objects follow, where that is known.
    pub remaining: Option<usize>,
}

/// Writes one Table.
#[derive(Debug)]
pub struct Table {
    out: Vec<u8>,
    printer: &'static Printer,
    include: Include,
    now: Timestamp,
    rows: usize,
}

impl Table {
    /// Begins a table for objects of a kind. `columns` is false for all but the first event of a watch.
    pub fn new(
        (group, kind): (&str, &str),
        version: &str,
        meta: &ListMeta<'_>,
        include: Include,
        columns: bool,
        now: Timestamp,
    ) -> Self {
        let printer = printer(group, kind);
        let mut out = Vec::with_capacity(1024);
        // Writing into a `Vec` cannot fail.
        let _ = write!(out, r#"{{"kind":"Table","apiVersion":"meta.k8s.io/{version}","metadata":"#);
        write_list_meta(&mut out, meta);
        out.extend_from_slice(br#","columnDefinitions":["#);
        for (at, column) in printer.columns.iter().enumerate().filter(|_| columns) {
            let comma = if at > 0 { "," } else { "" };
            // No name or type needs escaping.
            let _ = write!(
                out,
                r#"{comma}{{"name":"{}","type":"{}","format":"{}","description":"{}","priority":{}}}"#,
                column.name, column.kind, column.format, column.name, column.priority
            );
        }
        out.extend_from_slice(br#"],"rows":["#);
        Self { out, printer, include, now, rows: 0 }
    }

    /// Adds an object.
    pub fn row(&mut self, object: &Value) {
        if self.rows > 0 {
            self.out.push(b',');
        }
        self.rows += 1;
        self.out.extend_from_slice(br#"{"cells":"#);
        let mut cells = Cells::open(&mut self.out);
        (self.printer.row)(object, self.now, &mut cells);
        cells.close();
        if let Some((reason, message)) = (self.printer.completed)(object) {
            let _ = write!(
                self.out,
                r#","conditions":[{{"type":"Completed","status":"True","reason":"{reason}","message":"{message}"}}]"#
            );
        }
        match self.include {
            Include::None => {}
            Include::Metadata => {
                self.out.extend_from_slice(br#","object":"#);
                write_metadata(&mut self.out, object);
            }
            Include::Object => {
                self.out.extend_from_slice(br#","object":"#);
                write_value(&mut self.out, object);
            }
        }
        self.out.push(b'}');
    }

    /// The table.
    pub fn finish(mut self) -> Vec<u8> {
        self.out.extend_from_slice(b"]}");
        self.out
    }
}

/// One object as a table of one row: the answer to a GET, or the object of a watch event.
pub fn single(
    kind: (&str, &str),
    version: &str,
    object: &Value,
    include: Include,
    columns: bool,
    now: Timestamp,
) -> Vec<u8> {
    let resource_version = object["metadata"]["resourceVersion"].as_str().unwrap_or("");
    let meta = ListMeta { resource_version, ..ListMeta::default() };
    let mut table = Table::new(kind, version, &meta, include, columns, now);
    table.row(object);
    table.finish()
}

/// One object's metadata, as PartialObjectMetadata.
pub fn metadata(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    write_metadata(&mut out, object);
    out
}

/// The metadata of objects, as PartialObjectMetadataList.
pub fn metadata_list<'o>(objects: impl IntoIterator<Item = &'o Value>, meta: &ListMeta<'_>) -> Vec<u8> {
    let mut out = br#"{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":"#.to_vec();
    write_list_meta(&mut out, meta);
    out.extend_from_slice(br#","items":["#);
    for (at, object) in objects.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_metadata(&mut out, object);
    }
    out.extend_from_slice(b"]}");
    out
}

fn write_metadata(out: &mut Vec<u8>, object: &Value) {
    out.extend_from_slice(br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#);
    write_value(out, &object["metadata"]);
    out.push(b'}');
}

fn write_list_meta(out: &mut Vec<u8>, meta: &ListMeta<'_>) {
    // Versions are numbers and tokens are base64: nothing needs escaping.
    let _ = write!(out, r#"{{"resourceVersion":"{}""#, meta.resource_version);
    if !meta.continue_token.is_empty() {
        let _ = write!(out, r#","continue":"{}""#, meta.continue_token);
    }
    if let Some(remaining) = meta.remaining {
        let _ = write!(out, r#","remainingItemCount":{remaining}"#);
    }
    out.push(b'}');
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    // A `Value` has only string keys, and writing into a `Vec` cannot fail.
    let _ = serde_json::to_writer(out, value);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    fn pod() -> Value {
        json!({"kind": "Pod", "metadata": {"name": "p \"q\"", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{}]}, "status": {"phase": "Succeeded"}})
    }

    #[test]
    fn rows_have_cells_conditions_and_metadata() {
        // C3.9
        let bytes = single(("", "Pod"), "v1", &pod(), Include::Metadata, true, now());
        let table: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
        assert_eq!(table["metadata"]["resourceVersion"], "7");
        assert_eq!(
            table["columnDefinitions"][0],
            json!({"name": "Name", "type": "string", "format": "name", "description": "Name", "priority": 0})
        );
        let row = &table["rows"][0];
        assert_eq!(row["cells"][0], "p \"q\"");
        assert_eq!(row["cells"][4], "10m");
        assert_eq!(row["conditions"][0]["type"], "Completed");
        assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(row["object"]["metadata"]["name"], "p \"q\"");
        assert!(row["object"].get("spec").is_none());
    }

    #[test]
    fn include_object_decides_what_a_row_carries() {
        // C3.9
        let with = |include| -> Value {
            serde_json::from_slice(&single(("", "Pod"), "v1beta1", &pod(), include, false, now())).unwrap()
        };
        assert!(with(Include::None)["rows"][0].get("object").is_none());
        assert_eq!(with(Include::Object)["rows"][0]["object"], pod());
        assert_eq!(with(Include::None)["columnDefinitions"], json!([]));
        assert_eq!(Include::parse(Some("x")), None);
    }

    #[test]
    fn accept_decides_the_form() {
        // C3.9
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(negotiate(Some(kubectl), true), Some((Encoding::Json, Shown::Table("v1"))));
        assert_eq!(negotiate(Some(kubectl), false), Some((Encoding::Json, Shown::Whole)));
        let only = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(negotiate(Some(only), false), None, "a 406");
        let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(negotiate(Some(partial), true), Some((Encoding::Json, Shown::Metadata)));
        assert_eq!(
            negotiate(Some("application/vnd.kubernetes.protobuf,*/*"), true),
            Some((Encoding::Json, Shown::Whole))
        );
        assert_eq!(negotiate(Some("text/html"), true), None);
        assert_eq!(negotiate(None, true), Some((Encoding::Json, Shown::Whole)));
    }

    #[test]
    fn metadata_lists() {
        // C3.9
        let meta = ListMeta { resource_version: "9", continue_token: "abc", remaining: Some(4) };
        let list: Value = serde_json::from_slice(&metadata_list([&pod()], &meta)).unwrap();
        assert_eq!(list["metadata"], json!({"resourceVersion": "9", "continue": "abc", "remainingItemCount": 4}));
        assert_eq!(list["items"][0]["metadata"]["resourceVersion"], "7");
    }
}
