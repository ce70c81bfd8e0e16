//! certificates.k8s.io/v1 (C1.13): what a request may hold, and which part of it each of its paths may change.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::certificates::v1 as api;
use serde_json::{Value, json};

use super::field::FieldError;
use super::signing_request::SigningRequest;
use super::tree::{fill, items, items_mut, text};
use super::{NameRule, ResourceInfo, STATUS, SelectableField, Subresource};

pub(super) const TABLE: &[ResourceInfo] = &[ResourceInfo::of::<api::CertificateSigningRequest>(
    "certificates.k8s.io",
    "v1",
    "CertificateSigningRequest",
    "certificatesigningrequests",
    "certificatesigningrequest",
)
.short(&["csr"])
.named(NameRule::PathSegment)
.with_status_only()
.subresources(&[Subresource { name: "approval", kind: None, verbs: &["get", "patch", "update"] }, STATUS])
.fields(&[SelectableField { name: "spec.signerName", path: "spec.signerName", absent: "" }])
.validated(validate)];

/// No signer of today takes requests for it.
const LEGACY: &str = "kubernetes.io/legacy-unknown";
/// Shorter lives are no use: clocks differ.
const SHORTEST_SECONDS: i64 = 600;

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// Conditions that are true or not there.
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];

/// Whether a kind is this one.
pub fn is_signing_request(info: &ResourceInfo) -> bool {
    info.group == "certificates.k8s.io" && info.plural == "certificatesigningrequests"
}

/// What a change through a path may touch: nothing of the spec ever; of the status the conditions through `approval`,
/// everything through `status`. New conditions get their times.
pub fn only(subresource: &str, new: &Value, old: &Value, now: &str) -> Value {
    let mut object = new.clone();
    object["spec"] = old["spec"].clone();
    match subresource {
        "status" => {}
        "approval" => {
            let conditions = new["status"]["conditions"].clone();
            object["status"] = if old["status"].is_object() { old["status"].clone() } else { json!({}) };
            object["status"]["conditions"] = conditions;
        }
        _ => object["status"] = old["status"].clone(),
    }
    if !subresource.is_empty() {
        // As for every status: labels, annotations and finalizers come along, owners do not.
        object["metadata"]["ownerReferences"] = old["metadata"]["ownerReferences"].clone();
    }
    for condition in items_mut(&mut object["status"], "conditions") {
        fill(condition, "lastUpdateTime", now);
        let same = items(&old["status"], "conditions")
            .find(|before| before["type"] == condition["type"] && before["status"] == condition["status"]);
        let since = same.map_or(Value::Null, |before| before["lastTransitionTime"].clone());
        fill(condition, "lastTransitionTime", if since.is_null() { json!(now) } else { since });
    }
    for (key, parent) in [("ownerReferences", "metadata"), ("conditions", "status")] {
        if let Some(fields) = object[parent].as_object_mut()
            && fields.get(key).is_some_and(Value::is_null)
        {
            fields.remove(key);
        }
    }
    if object["status"].is_null()
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("status");
    }
    object
}

/// What is wrong with a change through a path.
pub fn validate_change(subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate(new);
    let of = |object: &'_ Value, kind: &str| -> Vec<Value> {
        items(&object["status"], "conditions").filter(|condition| condition["type"] == kind).cloned().collect()
    };
    let mut forbid = |what: String| errors.push(FieldError::forbidden("status.conditions", what));
    for kind in FINAL {
        let (before, after) = (of(old, kind), of(new, kind));
        if after.len() < before.len() {
            forbid(format!("updates may not remove a condition of type {kind:?}"));
        } else if kind == "Failed" || subresource == "approval" {
        } else if after.len() > before.len() {
            forbid(format!("updates may not add a condition of type {kind:?}"));
        } else if after != before {
            forbid(format!("updates may not modify a condition of type {kind:?}"));
        }
    }
    let (before, after) = (text(&old["status"], "certificate"), text(&new["status"], "certificate"));
    if before != after {
        if subresource != "status" {
            errors.push(FieldError::forbidden("status.certificate", "updates may not set certificate content"));
        } else if !before.is_empty() {
            let why = "updates may not modify existing certificate content";
            errors.push(FieldError::forbidden("status.certificate", why));
        }
    }
    errors
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &object["spec"];
    if let Err(why) = SigningRequest::read(text(spec, "request")) {
        errors.push(FieldError::invalid("spec.request", spec["request"].clone(), why));
    }
    usages(spec, &mut errors);
    signer_name(text(spec, "signerName"), &mut errors);
    if let Some(seconds) = spec["expirationSeconds"].as_i64().filter(|seconds| *seconds < SHORTEST_SECONDS) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid("spec.expirationSeconds", seconds, why));
    }
    conditions(object, &mut errors);
    if let Err(why) = certificates(text(&object["status"], "certificate")) {
        errors.push(FieldError::invalid("status.certificate", "<certificate data>", why));
    }
    errors
}

fn usages(spec: &Value, errors: &mut Vec<FieldError>) {
    if items(spec, "usages").next().is_none() {
        errors.push(FieldError::required("spec.usages", ""));
    }
    let mut seen = BTreeSet::new();
    for (at, usage) in items(spec, "usages").enumerate() {
        let (path, name) = (format!("spec.usages[{at}]"), usage.as_str().unwrap_or_default());
        if !USAGES.contains(&name) {
            errors.push(FieldError::not_supported(path.as_str(), name, USAGES));
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(path, name));
        }
    }
}

/// `domain/path`: a qualified name of at most 571 characters.
fn signer_name(name: &str, errors: &mut Vec<FieldError>) {
    const PATH: &str = "spec.signerName";
    if name.is_empty() {
        return errors.push(FieldError::required(PATH, ""));
    }
    if name == LEGACY {
        let why = "the legacy signerName is not allowed via this API version";
        return errors.push(FieldError::invalid(PATH, name, why));
    }
    let Some((domain, path)) = name.split_once('/').filter(|(domain, path)| !domain.is_empty() && !path.is_empty())
    else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return errors.push(FieldError::invalid(PATH, name, why));
    };
    let labels: Vec<&str> = domain.split('.').collect();
    let is_label = |label: &&str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if labels.len() < 2 || domain.len() > 253 || !labels.iter().all(is_label) {
        let why = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(PATH, name, why));
    }
    let is_part = |part: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        !part.is_empty() && part.chars().all(inner) && !part.starts_with(['-', '_']) && !part.ends_with(['-', '_'])
    };
    if !path.split('.').all(is_part) {
        let why = "the path may hold letters, digits, '-', '_' and '.', and begins and ends with a letter or digit";
        errors.push(FieldError::invalid(PATH, name, why));
    }
    // 253 of the domain, a slash, and what a ClusterRole's resourceNames can hold of namespace and name.
    if name.len() > 571 {
        errors.push(FieldError::too_long(PATH, 571));
    }
}

fn conditions(object: &Value, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (at, condition) in items(&object["status"], "conditions").enumerate() {
        let path = |field: &str| format!("status.conditions[{at}].{field}");
        let (kind, status) = (text(condition, "type"), text(condition, "status"));
        if kind.is_empty() {
            errors.push(FieldError::required(path("type"), ""));
        }
        let allowed: &[&str] = if FINAL.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            errors.push(FieldError::required(path("status"), ""));
        } else if !allowed.contains(&status) {
            errors.push(FieldError::not_supported(path("status"), status, allowed));
        }
        let other = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if seen.contains(other) {
            let why = "Approved and Denied conditions are mutually exclusive";
            errors.push(FieldError::invalid("status.conditions", kind, why));
        }
        if !seen.insert(kind) {
            errors.push(FieldError::duplicate(path("type"), kind));
        }
    }
}

/// One or more PEM certificates and nothing else.
fn certificates(encoded: &str) -> Result<(), String> {
    if encoded.is_empty() {
        return Ok(());
    }
    let bytes = STANDARD.decode(encoded).map_err(|error| error.to_string())?;
    let mut blocks = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(&bytes) {
        let Ok(block) = block else { break };
        if block.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        block.parse_x509().map_err(|error| format!("a PEM block holds no certificate: {error}"))?;
        blocks += 1;
    }
    if blocks == 0 { Err("must contain at least one CERTIFICATE PEM block".to_owned()) } else { Ok(()) }
}
