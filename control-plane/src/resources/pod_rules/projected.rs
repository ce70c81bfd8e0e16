//! Projected volumes: several sources in one directory, none of which may write another's file.

use std::collections::HashSet;

use serde_json::Value;

use super::super::field::{Errors, FieldError, Path};
use super::super::format;
use super::super::selector_rules::selector;
use super::super::tree::{is_set, items, text};
use super::not_reserved;
use super::volumes::{downward_file, key_to_path};

const SHORTEST_TOKEN: i64 = 600;
const LONGEST_TOKEN: i64 = 1 << 32;
const SHORTEST_CERTIFICATE: i64 = 3600;
const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];

/// The files so far.
struct Files<'p> {
    volume: &'p Path,
    taken: HashSet<String>,
}

impl Files<'_> {
    fn add(&mut self, file: &str, shown: &str, errors: &mut Errors) {
        if !file.is_empty() && !self.taken.insert(file.to_owned()) {
            errors.invalid(self.volume.clone(), shown, "conflicting duplicate paths");
        }
    }
}

pub(super) fn validate(volume: &Value, path: &Path, errors: &mut Errors) {
    let mut files = Files { volume: path, taken: HashSet::new() };
    for (at, source) in items(volume, "sources").enumerate() {
        let place = path.field("sources").index(at);
        let mut count = 0;
        for kind in
            ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"]
        {
            if !is_set(source, kind) {
                continue;
            }
            count += 1;
            let (source, place) = (&source[kind], place.field(kind));
            match kind {
                "secret" | "configMap" => keys(source, &place, &mut files, errors),
                "downwardAPI" => {
                    for file in items(source, "items") {
                        downward_file(file, &place, errors);
                        files.add(text(file, "path"), text(file, "path"), errors);
                    }
                }
                "serviceAccountToken" => token(source, &place, path, errors),
                "clusterTrustBundle" => bundle(source, &place, &mut files, errors),
                _ => certificate(source, &place, &mut files, errors),
            }
        }
        if count > 1 {
            errors.forbidden(place, "may not specify more than 1 volume type per source");
        }
    }
}

fn keys(source: &Value, path: &Path, files: &mut Files<'_>, errors: &mut Errors) {
    let name = text(source, "name");
    if name.is_empty() {
        errors.required(path.field("name"), "");
    }
    for (at, item) in items(source, "items").enumerate() {
        key_to_path(item, &path.field("items").index(at), errors);
        files.add(text(item, "path"), name, errors);
    }
}

fn token(source: &Value, path: &Path, volume: &Path, errors: &mut Errors) {
    let seconds = source["expirationSeconds"].as_i64().unwrap_or(0);
    let place = path.field("expirationSeconds");
    if seconds < SHORTEST_TOKEN {
        errors.invalid(place, seconds, "may not specify a duration less than 10 minutes");
    } else if seconds > LONGEST_TOKEN {
        errors.invalid(place, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    match text(source, "path") {
        "" => errors.required(volume.field("path"), ""),
        file => not_reserved(file, &volume.field("path"), errors),
    }
}

fn bundle(source: &Value, path: &Path, files: &mut Files<'_>, errors: &mut Errors) {
    match (source["name"].as_str(), source["signerName"].as_str()) {
        (Some(_), Some(_)) => {
            errors.invalid(path.clone(), source.clone(), "only one of name and signerName may be used");
        }
        (Some(name), None) => {
            if name.is_empty() {
                errors.required(path.field("name"), "must be a valid object name");
            }
            let own = name.rsplit_once(':').map_or(name, |(_, own)| own);
            for fault in format::subdomain(own) {
                let detail = format!("not a valid clustertrustbundlename: {fault}");
                errors.invalid(path.field("name"), name, detail);
            }
            if is_set(source, "labelSelector") {
                let detail = "labelSelector must be unset if name is specified";
                errors.invalid(path.field("labelSelector"), source["labelSelector"].clone(), detail);
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                errors.required(path.field("signerName"), "must be a valid signer name");
            }
            signer_name(signer, &path.field("signerName"), errors);
            selector(&source["labelSelector"], &path.field("labelSelector"), errors);
        }
        (None, None) => errors.required(path.clone(), "either name or signerName must be specified"),
    }
    let file = text(source, "path");
    if file.is_empty() {
        errors.required(path.field("path"), "");
    }
    not_reserved(file, &path.field("path"), errors);
    files.add(file, file, errors);
}

fn certificate(source: &Value, path: &Path, files: &mut Files<'_>, errors: &mut Errors) {
    let signer = text(source, "signerName");
    signer_name(signer, &path.field("signerName"), errors);
    let kind = text(source, "keyType");
    if !KEY_TYPES.contains(&kind) {
        errors.not_supported(path.field("keyType"), kind, &KEY_TYPES);
    }
    if let Some(seconds) = source["maxExpirationSeconds"].as_i64() {
        let place = path.field("maxExpirationSeconds");
        let domain = signer.split('/').next().unwrap_or_default();
        let ours = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
        let most = if ours { 24 * 3600 } else { 91 * 24 * 3600 };
        if seconds < SHORTEST_CERTIFICATE {
            errors.invalid(place.clone(), seconds, "if provided, maxExpirationSeconds must be >= 3600");
        }
        if seconds > most {
            errors.invalid(place, seconds, format!("if provided, maxExpirationSeconds must be <= {most}"));
        }
    }
    let mut any = false;
    for key in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let file = text(source, key);
        if !file.is_empty() {
            any = true;
            not_reserved(file, &path.field(key), errors);
            files.add(file, file, errors);
        }
    }
    if !any {
        let detail = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.required(path.clone(), detail);
    }
}

/// `example.com/signer`
fn signer_name(name: &str, path: &Path, errors: &mut Errors) {
    const LONGEST_DOMAIN: usize = 253;
    const LONGEST: usize = 571;
    if name.is_empty() {
        errors.required(path.clone(), "");
        return;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, own] = parts.as_slice() else {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.invalid(path.clone(), name, detail);
        return;
    };
    if domain.len() > LONGEST_DOMAIN {
        errors.0.push(FieldError::too_long(path.clone(), LONGEST_DOMAIN));
    }
    for (whole, faults) in [(domain, format::label as fn(&str) -> Vec<String>), (own, format::subdomain)] {
        let wrong = whole.split('.').map(|label| (label, faults(label))).find(|(_, faults)| !faults.is_empty());
        for (label, fault) in wrong.into_iter().flat_map(|(label, faults)| faults.into_iter().map(move |f| (label, f)))
        {
            errors.invalid(path.clone(), *whole, format!("validating label {label:?}: {fault}"));
        }
    }
    if !domain.contains('.') {
        errors.invalid(path.clone(), *domain, "should be a domain with at least two segments separated by dots");
    }
    if name.len() > LONGEST {
        errors.0.push(FieldError::too_long(path.clone(), LONGEST));
    }
}
