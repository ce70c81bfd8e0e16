//! The pod's names, its resolver, its hosts file, and ports of the host's network.

use serde_json::Value;

use super::super::field::{Errors, FieldError, Path};
use super::super::format;
use super::super::tree::{items, text};

const MOST_SERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;
const MOST_SEARCH_CHARS: usize = 2048;
const LONGEST_HOST_NAME: usize = 64;

/// In the host's network a port of the container is one of the host; only pods must say so.
pub(super) fn validate_host_ports(spec: &Value, is_pod: bool, path: &Path, errors: &mut Errors) {
    if spec["hostNetwork"] != true {
        return;
    }
    for (at, container) in items(spec, "containers").enumerate() {
        for (nth, port) in items(container, "ports").enumerate() {
            let number = |key: &str| port[key].as_i64().unwrap_or(0);
            let (host, own) = (number("hostPort"), number("containerPort"));
            if (is_pod || host != 0) && host != own {
                let path = path.field("containers").index(at).field("ports").index(nth).field("hostPort");
                errors.invalid(path, host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

pub(super) fn validate_dns(spec: &Value, path: &Path, errors: &mut Errors) {
    let config = &spec["dnsConfig"];
    if spec["dnsPolicy"] == "None" {
        if config.is_null() {
            errors.required(path.clone(), "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if items(config, "nameservers").next().is_none() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.required(path.field("nameservers"), detail);
            return;
        }
    }
    let place = path.field("nameservers");
    if items(config, "nameservers").count() > MOST_SERVERS {
        let detail = format!("must not have more than {MOST_SERVERS} nameservers");
        errors.invalid(place.clone(), config["nameservers"].clone(), detail);
    }
    for (at, server) in items(config, "nameservers").enumerate() {
        let server = server.as_str().unwrap_or_default();
        errors.faults(&place.index(at), server, format::address(server));
    }
    let place = path.field("searches");
    let searches: Vec<&str> = items(config, "searches").filter_map(Value::as_str).collect();
    if searches.len() > MOST_SEARCHES {
        let detail = format!("must not have more than {MOST_SEARCHES} search paths");
        errors.invalid(place.clone(), config["searches"].clone(), detail);
    }
    if searches.join(" ").len() > MOST_SEARCH_CHARS {
        let detail =
            format!("must not have more than {MOST_SEARCH_CHARS} characters (including spaces) in the search list");
        errors.invalid(place.clone(), config["searches"].clone(), detail);
    }
    for (at, search) in searches.into_iter().enumerate().filter(|(_, search)| *search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        errors.faults(&place.index(at), search, format::search_path(search));
    }
    for (at, option) in items(config, "options").enumerate() {
        if text(option, "name").is_empty() {
            errors.required(path.field("options").index(at), "must not be empty");
        }
    }
}

/// A host name of the pod's own goes with no other way to name it.
pub(super) fn validate_names(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(name) = spec["hostnameOverride"].as_str() else { return };
    let path = path.field("hostnameOverride");
    if spec["setHostnameAsFQDN"] == true {
        errors.forbidden(path.clone(), "may not be specified when setHostnameAsFQDN is true");
    }
    if spec["hostNetwork"] == true {
        errors.forbidden(path.clone(), "may not be specified when hostNetwork is true");
    }
    if name.len() > LONGEST_HOST_NAME {
        errors.0.push(FieldError::too_long(path.clone(), LONGEST_HOST_NAME));
    }
    errors.faults(&path, name, format::subdomain(name));
}

pub(super) fn validate_aliases(spec: &Value, path: &Path, errors: &mut Errors) {
    for (at, alias) in items(spec, "hostAliases").enumerate() {
        let (path, address) = (path.index(at), text(alias, "ip"));
        errors.faults(&path.field("ip"), address, format::address(address));
        for (nth, name) in items(alias, "hostnames").enumerate() {
            let name = name.as_str().unwrap_or_default();
            errors.faults(&path.field("hostnames").index(nth), name, format::subdomain(name));
        }
    }
}
