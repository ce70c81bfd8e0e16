//! From the bytes of a manifest to static pods: decoding, what upstream fills in, what static pods may not have (A7.1, A7.2, A7.4).

use std::fmt::Write;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus, Toleration};
use serde::Deserialize;
use serde_json::Value;
use stoker_model::names;

use super::check::{check, reference};
use super::defaults::fill_in;

/// Larger manifests are not read.
pub(super) const LONGEST: u64 = 10 << 20;

/// Why a manifest cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum ManifestError {
    #[error("it is neither YAML nor JSON: {0}")]
    Unreadable(String),
    #[error("it is a {0}; write one object with apiVersion: v1 and kind: Pod")]
    NotAPod(String),
    #[error("invalid pod: {0}")]
    Invalid(String),
    #[error("static pods may not reference {0}")]
    References(&'static str),
}

/// Where a manifest comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'a> {
    /// A file of this path.
    File(&'a str),
    /// This address.
    Url(&'a str),
}

impl Origin<'_> {
    /// The value of the annotation `kubernetes.io/config.source` (A1.1).
    const fn source(self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Url(_) => "http",
        }
    }
}

/// The pods of a manifest, and whether it holds more documents than the first, which alone counts. Only an address may give a list.
pub(super) fn pods(bytes: &[u8], origin: Origin<'_>, node: &str) -> Result<(Vec<Pod>, bool), ManifestError> {
    let (value, more) = first_document(bytes)?;
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let pods = match (origin, text("apiVersion").as_str(), text("kind").as_str()) {
        (_, "v1", "Pod") => vec![pod(value, origin, node)?],
        (Origin::Url(_), "v1", "PodList" | "List") => {
            let items = value.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
            items.into_iter().map(|item| pod(item, origin, node)).collect::<Result<_, _>>()?
        }
        (_, version, kind) => return Err(ManifestError::NotAPod(format!("{version:?} {kind:?}"))),
    };
    Ok((pods, more))
}

fn first_document(bytes: &[u8]) -> Result<(Value, bool), ManifestError> {
    let unreadable = |error: String| ManifestError::Unreadable(error);
    let text = std::str::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
    let mut documents = serde_yaml_ng::Deserializer::from_str(text);
    let first = documents.next().ok_or_else(|| unreadable("it is empty".into()))?;
    let mut value = Value::deserialize(first).map_err(|error| unreadable(error.to_string()))?;
    amounts_as_text(&mut value);
    let more = documents.next().is_some_and(|next| Value::deserialize(next).is_ok_and(|value| !value.is_null()));
    Ok((value, more))
}

/// `cpu: 1` is a number in YAML, and an amount to everybody else.
fn amounts_as_text(value: &mut Value) {
    let as_text = |value: &mut Value| {
        if value.is_number() {
            *value = Value::String(value.to_string());
        }
    };
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match (name.as_str(), &mut *field) {
                    ("limits" | "requests" | "overhead", Value::Object(amounts)) => {
                        amounts.values_mut().for_each(as_text)
                    }
                    ("sizeLimit" | "divisor", amount) => as_text(amount),
                    (_, field) => amounts_as_text(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(amounts_as_text),
        _ => {}
    }
}

fn pod(value: Value, origin: Origin<'_>, node: &str) -> Result<Pod, ManifestError> {
    let invalid = |what: String| ManifestError::Invalid(what);
    let written = value.to_string();
    // As the API server's pods are read: another way to read a pod is a hundred kilobytes of program.
    let mut pod: Pod = serde_json::from_str(&written).map_err(|error| {
        let told = error.to_string();
        // Not a place that the author knows.
        invalid(told.split(" at line ").next().unwrap_or_default().to_owned())
    })?;
    let name = pod.metadata.name.clone().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| invalid("name is needed for the pod".into()))?;
    let uid = pod.metadata.uid.clone().filter(|uid| !uid.is_empty()).unwrap_or_else(|| hash(&written, origin, node));
    pod.metadata.name = Some(format!("{name}-{}", node.to_lowercase()));
    if pod.metadata.namespace.as_deref().unwrap_or_default().is_empty() {
        pod.metadata.namespace = Some("default".into());
    }
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(names::CONFIG_HASH.into(), uid.clone());
    annotations.insert(names::CONFIG_SOURCE.into(), origin.source().into());
    pod.metadata.uid = Some(uid);
    let spec = pod.spec.get_or_insert_with(PodSpec::default);
    spec.node_name = Some(node.to_owned());
    if matches!(origin, Origin::File(_)) {
        tolerate_all(spec);
    }
    fill_in(spec);
    pod.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
    check(&pod).map_err(invalid)?;
    match pod.spec.as_ref().and_then(reference) {
        Some(resource) => Err(ManifestError::References(resource)),
        None => Ok(pod),
    }
}

/// No taint drives a pod of a file away.
fn tolerate_all(spec: &mut PodSpec) {
    let all = Toleration { operator: Some("Exists".into()), effect: Some("NoExecute".into()), ..Toleration::default() };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&all) {
        tolerations.push(all);
    }
}

/// FNV-1a of 128 bits: the same manifest at the same place of the same node is the same pod.
fn hash(written: &str, origin: Origin<'_>, node: &str) -> String {
    let mut place = String::new();
    let _ = match origin {
        Origin::File(path) => write!(place, "host:{node}file:{path}"),
        Origin::Url(url) => write!(place, "url:{url}"),
    };
    let bytes = written.bytes().chain(place.bytes());
    let hash = bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    format!("{hash:032x}")
}

#[cfg(test)]
#[path = "manifest/tests.rs"]
mod tests;
