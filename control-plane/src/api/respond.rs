//! Bodies in and out: formats, sizes, compression (C3.1).

use std::io::Write;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;

use super::openapi::fields::{self, Decoded};
use super::table::{self, Encoding, Shown};
use crate::resources::status::StatusError;

/// Any response's body.
pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
/// Any response.
pub(super) type Answer = Response<Body>;

/// The largest body that is read.
const BODY_BYTES: usize = 3 << 20;
/// Bodies from this size on are worth compressing.
const GZIP_BYTES: usize = 128 << 10;

/// What the client takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) shown: Shown,
    pub(super) yaml: bool,
    pub(super) gzip: bool,
}

impl Wanted {
    /// Whole JSON, as failures are sent.
    pub(super) const JSON: Self = Self { shown: Shown::Whole, yaml: false, gzip: false };

    /// `tables`: the answer can be shown as a Table or as metadata only.
    pub(super) fn parse(headers: &HeaderMap, tables: bool) -> Result<Self, StatusError> {
        let header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let gzip =
            header(ACCEPT_ENCODING).is_some_and(|list| list.split(',').any(|one| one.trim().starts_with("gzip")));
        let (encoding, shown) = table::negotiate(header(ACCEPT), tables)
            .ok_or_else(|| StatusError::new(406, "NotAcceptable", table::NOT_ACCEPTABLE))?;
        Ok(Self { shown, yaml: encoding == Encoding::Yaml, gzip })
    }
}

/// Reads a whole body.
pub(super) async fn read_body(body: hyper::body::Incoming) -> Result<Bytes, StatusError> {
    match Limited::new(body, BODY_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(StatusError::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {BODY_BYTES}"),
        )),
        Err(error) => Err(StatusError::bad_request(format!("the body could not be read: {error}"))),
    }
}

/// Reads a body as an object: JSON or YAML.
pub(super) fn parse_body(headers: &HeaderMap, body: &Bytes) -> Result<Value, StatusError> {
    decode_body(headers, body).map(|decoded| decoded.value)
}

/// Reads a body as an object, and what is in it twice.
pub(super) fn decode_body(headers: &HeaderMap, body: &Bytes) -> Result<Decoded, StatusError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    let decoded = match kind.split(';').next().unwrap_or_default().trim() {
        "application/json" | "" => fields::decode_json(body),
        "application/yaml" => fields::decode_yaml(body),
        _ => {
            return Err(StatusError::new(
                415,
                "UnsupportedMediaType",
                "the body of the request was in an unknown format - accepted media types include: application/json, \
                 application/yaml",
            ));
        }
    };
    decoded.map_err(|error| StatusError::bad_request(error.to_string()))
}

/// Reads YAML as the JSON that it stands for.
pub(super) fn parse_yaml(body: &Bytes) -> Result<Value, StatusError> {
    serde_yaml_ng::from_slice(body)
        .map_err(|error| StatusError::bad_request(format!("error converting YAML to JSON: {error}")))
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A JSON object, or the same as YAML.
pub(super) fn object(code: u16, value: &Value, wanted: Wanted) -> Answer {
    if wanted.yaml {
        let text = serde_yaml_ng::to_string(value).unwrap_or_default();
        return bytes(code, "application/yaml", text.into(), wanted.gzip);
    }
    bytes(code, "application/json", value.to_string().into(), wanted.gzip)
}

/// Text that is JSON already.
pub(super) fn json_bytes(code: u16, text: Bytes, wanted: Wanted) -> Answer {
    if wanted.yaml
        && let Ok(value) = serde_json::from_slice::<Value>(&text)
    {
        return object(code, &value, wanted);
    }
    bytes(code, "application/json", text, wanted.gzip)
}

/// A body of any type, compressed where that pays.
pub(super) fn bytes(code: u16, kind: &str, mut text: Bytes, gzip: bool) -> Answer {
    let mut compressed = false;
    if gzip && text.len() >= GZIP_BYTES {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        if encoder.write_all(&text).is_ok()
            && let Ok(packed) = encoder.finish()
        {
            text = packed.into();
            compressed = true;
        }
    }
    let mut answer = Response::new(full(text));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    if let Ok(kind) = HeaderValue::from_str(kind) {
        headers.insert(CONTENT_TYPE, kind);
    }
    headers.insert("cache-control", HeaderValue::from_static("no-cache, private"));
    if compressed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    answer
}

/// Plain text.
pub(super) fn text(code: u16, text: impl Into<Bytes>) -> Answer {
    bytes(code, "text/plain; charset=utf-8", text.into(), false)
}

/// A failure as a Status.
pub(super) fn failure(error: &StatusError) -> Answer {
    let mut answer = object(error.code, &error.to_value(), Wanted::JSON);
    let retry = error.details.as_ref().map_or(0, |details| details.retry_after);
    if retry > 0 {
        answer.headers_mut().insert("retry-after", HeaderValue::from(retry));
    }
    answer
}
