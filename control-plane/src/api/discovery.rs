//! What the server can do, told to clients: `/api`, `/apis`, their groups and versions, and aggregated discovery (C2.1,
//! C2.2). Everything comes from the table of `resources`.

use std::fmt::Write as _;
use std::sync::OnceLock;

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::verbs::stored_info;
use crate::resources::{self, ResourceInfo};

/// The media type of aggregated discovery.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Groups in the order of their first kind, each with its versions, newest first.
fn group_versions() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for info in resources::all() {
        match groups.iter_mut().find(|(group, _)| *group == info.group) {
            Some((_, versions)) if versions.contains(&info.version) => {}
            Some((_, versions)) => versions.push(info.version),
            None => groups.push((info.group, vec![info.version])),
        }
    }
    for (_, versions) in &mut groups {
        // All versions are stable ones, so `v2` comes before `v1`.
        versions.sort_unstable_by(|a, b| b.cmp(a));
    }
    groups
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// `/api`; `address` is where this client reaches the server (`host:port`).
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

fn group_of(group: &str, versions: &[&str]) -> Value {
    let listed: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": api_version(group, version), "version": version}))
        .collect();
    json!({"name": group, "preferredVersion": listed.first(), "versions": listed})
}

/// `/apis`.
pub fn groups() -> Value {
    let groups: Vec<Value> = group_versions()
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_of(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/{group}`; `None` if there is no such group.
pub fn group(name: &str) -> Option<Value> {
    let (group, versions) = group_versions().into_iter().find(|(group, _)| !group.is_empty() && *group == name)?;
    let mut answer = group_of(group, &versions);
    answer["kind"] = json!("APIGroup");
    answer["apiVersion"] = json!("v1");
    Some(answer)
}

fn in_version<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static ResourceInfo> + 'a {
    resources::all().filter(move |info| info.group == group && info.version == version)
}

/// `/api/v1` and `/apis/{group}/{version}`; `None` if there is no such version.
pub fn version(group: &str, version: &str) -> Option<Value> {
    let mut listed = Vec::new();
    for info in in_version(group, version) {
        listed.push(api_resource(info));
        for subresource in info.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", info.plural, subresource.name),
                "singularName": "",
                "namespaced": info.namespaced,
                "kind": subresource.kind.map_or(info.kind, |(_, _, kind)| kind),
                "verbs": subresource.verbs,
            });
            if let Some((group, version, _)) = subresource.kind
                && (group, version) != (info.group, info.version)
            {
                entry["group"] = json!(group);
                entry["version"] = json!(version);
            }
            listed.push(entry);
        }
    }
    if listed.is_empty() {
        return None;
    }
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version(group, version),
        "resources": listed,
    }))
}

fn api_resource(info: &'static ResourceInfo) -> Value {
    let mut entry = json!({
        "name": info.plural,
        "singularName": info.singular,
        "namespaced": info.namespaced,
        "kind": info.kind,
        "verbs": info.verbs,
    });
    if !info.short_names.is_empty() {
        entry["shortNames"] = json!(info.short_names);
    }
    if !info.categories.is_empty() {
        entry["categories"] = json!(info.categories);
    }
    if info.is_stored() {
        let stored = stored_info(info);
        let digest = Sha256::digest(format!("{}/{}/{}", stored.group, stored.version, stored.kind));
        entry["storageVersionHash"] = json!(base64::engine::general_purpose::STANDARD.encode(&digest[..8]));
    }
    entry
}

/// A document that never changes while the server runs.
#[derive(Debug, Clone)]
pub struct Document {
    /// JSON.
    pub body: Bytes,
    /// With its quotes.
    pub etag: String,
}

impl Document {
    pub(super) fn new(body: Vec<u8>) -> Self {
        let etag = quoted_hash(&body);
        Self { body: body.into(), etag }
    }

    /// Whether the client has it already (its `If-None-Match`): then the answer is 304.
    pub fn is_known(&self, if_none_match: Option<&str>) -> bool {
        if_none_match.is_some_and(|known| known.split(',').any(|tag| tag.trim().trim_start_matches("W/") == self.etag))
    }
}

/// The upper-case hexadecimal SHA-256 in quotes, as upstream writes ETags.
pub(super) fn quoted_hash(body: &[u8]) -> String {
    let mut etag = String::with_capacity(66);
    etag.push('"');
    for byte in Sha256::digest(body) {
        // Writing into a `String` cannot fail.
        let _ = write!(etag, "{byte:02X}");
    }
    etag.push('"');
    etag
}

/// Whether the client asks for aggregated discovery in the version that is served.
pub fn wants_aggregated(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let has = |parameter: &str| range.split(';').any(|part| part.trim().eq_ignore_ascii_case(parameter));
        let json = range.trim_start().starts_with("application/json");
        json && has("as=APIGroupDiscoveryList") && has("v=v2") && has("g=apidiscovery.k8s.io")
    })
}

/// Aggregated discovery: of the core group (`/api`), or of all others (`/apis`).
pub fn aggregated(core: bool) -> &'static Document {
    static DOCUMENTS: [OnceLock<Document>; 2] = [OnceLock::new(), OnceLock::new()];
    DOCUMENTS[usize::from(core)].get_or_init(|| {
        let items: Vec<Value> = group_versions()
            .iter()
            .filter(|(group, _)| group.is_empty() == core)
            .map(|(group, versions)| {
                let versions: Vec<Value> = versions.iter().map(|version| discovered_version(group, version)).collect();
                let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
                json!({"metadata": metadata, "versions": versions})
            })
            .collect();
        let list = json!({
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": items,
        });
        Document::new(list.to_string().into_bytes())
    })
}

fn discovered_version(group: &str, version: &str) -> Value {
    let resources: Vec<Value> = in_version(group, version)
        .map(|info| {
            let mut entry = json!({
                "resource": info.plural,
                "responseKind": {"group": info.group, "version": info.version, "kind": info.kind},
                "scope": if info.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": info.singular,
                "verbs": info.verbs,
            });
            if !info.short_names.is_empty() {
                entry["shortNames"] = json!(info.short_names);
            }
            if !info.categories.is_empty() {
                entry["categories"] = json!(info.categories);
            }
            if !info.subresources.is_empty() {
                entry["subresources"] = info
                    .subresources
                    .iter()
                    .map(|subresource| {
                        let (group, version, kind) = subresource.kind.unwrap_or((info.group, info.version, info.kind));
                        json!({
                            "subresource": subresource.name,
                            "responseKind": {"group": group, "version": version, "kind": kind},
                            "verbs": subresource.verbs,
                        })
                    })
                    .collect();
            }
            entry
        })
        .collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_list_kinds_and_their_sub_resources() {
        // C2.1
        let core = version("", "v1").unwrap();
        let resources = core["resources"].as_array().unwrap();
        let find = |name: &str| resources.iter().find(|entry| entry["name"] == name).unwrap();
        let pods = find("pods");
        assert_eq!(pods["kind"], "Pod");
        assert_eq!(pods["namespaced"], true);
        assert_eq!(pods["shortNames"], json!(["po"]));
        assert_eq!(pods["categories"], json!(["all"]));
        let eviction = find("pods/eviction");
        assert_eq!(
            (&eviction["kind"], &eviction["group"], &eviction["version"]),
            (&json!("Eviction"), &json!("policy"), &json!("v1"))
        );
        assert!(version("apps", "v7").is_none());
    }

    #[test]
    fn preferred_versions_are_listed_versions() {
        // C2.1
        for group in groups()["groups"].as_array().unwrap() {
            assert!(group["versions"].as_array().unwrap().contains(&group["preferredVersion"]), "{group}");
        }
        assert_eq!(group("apps").unwrap()["preferredVersion"]["groupVersion"], "apps/v1");
        assert!(group("").is_none());
    }

    #[test]
    fn aggregated_discovery_has_an_etag() {
        // C2.2
        assert!(wants_aggregated(
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        ));
        assert!(!wants_aggregated(
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        ));
        let apis = aggregated(false);
        let list: Value = serde_json::from_slice(&apis.body).unwrap();
        let apps = list["items"].as_array().unwrap().iter().find(|group| group["metadata"]["name"] == "apps").unwrap();
        let deployments = &apps["versions"][0]["resources"]
            .as_array()
            .unwrap()
            .iter()
            .find(|r| r["resource"] == "deployments")
            .unwrap();
        assert_eq!(deployments["responseKind"], json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
        assert!(deployments["subresources"].as_array().unwrap().iter().any(|s| s["subresource"] == "scale"));
        assert!(apis.is_known(Some(&apis.etag.clone())));
        assert!(!apis.is_known(None));
        assert_ne!(apis.etag, aggregated(true).etag);
    }
}
