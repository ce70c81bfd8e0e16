//! What the API says about itself: types and their merge rules, field checks, and the OpenAPI documents (C2.3).
//!
//! Documents are made when a client first asks for them and kept compressed: all of them together are a few hundred
//! kilobytes, and a server that nobody asks has none.

pub mod definitions;
pub mod extensions;
pub mod fields;
pub mod gnostic;
mod paths;
mod schemas;
pub mod types;

use std::io::{Read as _, Write as _};
use std::sync::OnceLock;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

use self::definitions::Kind;
use self::schemas::Dialect;
use super::discovery::quoted_hash;
use crate::resources::{self, ResourceInfo};

/// A document as it is kept.
#[derive(Debug, Clone)]
pub struct Compressed {
    /// gzip.
    pub gzip: Bytes,
    /// Of the text, with its quotes.
    pub etag: String,
}

impl Compressed {
    fn new(text: &[u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        // Writing into a `Vec` cannot fail.
        let _ = encoder.write_all(text);
        Self { gzip: encoder.finish().unwrap_or_default().into(), etag: quoted_hash(text) }
    }

    /// The text, for the rare client that takes no gzip.
    pub fn plain(&self) -> Vec<u8> {
        let mut text = Vec::new();
        // We compressed it ourselves.
        let _ = GzDecoder::new(&*self.gzip).read_to_end(&mut text);
        text
    }
}

struct Version {
    /// `api/v1` or `apis/apps/v1`.
    path: String,
    infos: Vec<&'static ResourceInfo>,
    document: OnceLock<Compressed>,
}

fn versions() -> &'static [Version] {
    static VERSIONS: OnceLock<Vec<Version>> = OnceLock::new();
    VERSIONS.get_or_init(|| {
        let mut versions: Vec<Version> = Vec::new();
        for info in resources::all() {
            let api_version = info.api_version();
            let path = if info.group.is_empty() { format!("api/{api_version}") } else { format!("apis/{api_version}") };
            match versions.iter_mut().find(|version| version.path == path) {
                Some(version) => version.infos.push(info),
                None => versions.push(Version { path, infos: vec![info], document: OnceLock::new() }),
            }
        }
        versions
    })
}

impl Version {
    fn document(&self) -> &Compressed {
        self.document.get_or_init(|| Compressed::new(document(Dialect::V3, &self.infos).to_string().as_bytes()))
    }

    /// Of the document itself: kubectl keeps documents by it, and a hash of anything less has to foresee all that may
    /// change them. It costs a client's first question, once, the making of all documents.
    fn hash(&self) -> &str {
        self.document().etag.trim_matches('"')
    }
}

/// `/openapi/v3`: where the documents are.
pub fn v3_index() -> Value {
    let paths: Map<String, Value> = versions()
        .iter()
        .map(|version| {
            let url = format!("/openapi/v3/{}?hash={}", version.path, version.hash());
            (version.path.clone(), json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `/openapi/v3/{path}`, where `path` is `api/v1` or `apis/apps/v1`; `None` if there is no such version.
pub fn v3(path: &str) -> Option<&'static Compressed> {
    let version = versions().iter().find(|version| version.path == path)?;
    Some(version.document())
}

/// `/openapi/v2`: everything in one document, as JSON.
pub fn v2() -> &'static Compressed {
    static DOCUMENT: OnceLock<Compressed> = OnceLock::new();
    DOCUMENT.get_or_init(|| Compressed::new(swagger().to_string().as_bytes()))
}

/// `/openapi/v2` as [`gnostic::MEDIA_TYPE`].
pub fn v2_protobuf() -> &'static Compressed {
    static DOCUMENT: OnceLock<Compressed> = OnceLock::new();
    DOCUMENT.get_or_init(|| Compressed::new(&gnostic::encode(&swagger())))
}

fn swagger() -> Value {
    let infos: Vec<&'static ResourceInfo> = resources::all().collect();
    document(Dialect::V2, &infos)
}

fn document(dialect: Dialect, infos: &[&'static ResourceInfo]) -> Value {
    let mut kinds: Vec<&'static Kind> = Vec::new();
    let mut lists = Vec::new();
    let mut paths = Map::new();
    for info in infos {
        let own = (info.group, info.version, info.kind);
        for (group, version, kind) in
            std::iter::once(own).chain(info.subresources.iter().filter_map(|subresource| subresource.kind))
        {
            if let Some(kind) = definitions::kind_of(group, version, kind)
                && !kinds.iter().any(|known| std::ptr::eq(*known, kind))
            {
                kinds.push(kind);
            }
        }
        if info.verbs.contains(&"list") {
            lists.push(*info);
        }
        paths::of_kind(dialect, info, &mut paths);
    }
    let schemas = schemas::schemas(dialect, &kinds, &lists);
    let info = json!({"title": "Kubernetes", "version": "v1.36.0"});
    match dialect {
        Dialect::V2 => json!({"swagger": "2.0", "info": info, "paths": paths, "definitions": schemas}),
        Dialect::V3 => json!({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(document: &Compressed) -> Value {
        serde_json::from_slice(&document.plain()).unwrap()
    }

    #[test]
    fn the_index_leads_to_documents() {
        // C2.3
        let index = v3_index();
        let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap();
        assert!(url.starts_with("/openapi/v3/api/v1?hash="), "{url}");
        for (path, place) in index["paths"].as_object().unwrap() {
            let document = v3(path).expect(path);
            let hash = place["serverRelativeURL"].as_str().unwrap().rsplit('=').next().unwrap();
            assert_eq!(format!("\"{hash}\""), quoted_hash(&document.plain()), "{path}: a hash tells the content");
        }
        assert!(v3("apis/nothing/v1").is_none());
    }

    #[test]
    fn patches_state_what_kubectl_looks_for() {
        // C2.3
        let core = parsed(v3("api/v1").unwrap());
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-action"], "patch");
        assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group": "", "kind": "Pod", "version": "v1"}));
        for name in ["dryRun", "fieldValidation"] {
            assert!(patch["parameters"].as_array().unwrap().iter().any(|parameter| parameter["name"] == name));
        }
    }

    #[test]
    fn schemas_carry_rules_and_resolve() {
        // C2.3
        let core = parsed(v3("api/v1").unwrap());
        let schemas = &core["components"]["schemas"];
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert!(containers["description"].as_str().unwrap().starts_with("List of containers"));
        let pod = &schemas["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{"group": "", "kind": "Pod", "version": "v1"}]));
        assert_eq!(
            pod["properties"]["spec"]["allOf"],
            json!([{"$ref": "#/components/schemas/io.k8s.api.core.v1.PodSpec"}])
        );
        let text = core.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.get(name).is_some(), "{name} is referred to and missing");
        }
    }

    #[test]
    fn swagger_has_everything_in_one() {
        // C2.3
        let all = parsed(v2());
        assert_eq!(all["swagger"], "2.0");
        assert!(all["definitions"]["io.k8s.api.apps.v1.Deployment"].is_object());
        assert!(all["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["patch"].is_object());
        let port = &all["definitions"]["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!((&port["type"], &port["format"]), (&json!("string"), &json!("int-or-string")));
    }
}
