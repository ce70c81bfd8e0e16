//! Paths that are no resource: discovery, OpenAPI, health, version, metrics (C2).

use std::sync::Arc;

use http::header::{ACCEPT, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::json;

use super::discovery;
use super::openapi::{self, Compressed, gnostic};
use super::options::decode;
use super::respond::{self, Answer, Wanted};
use super::serve::{Asked, Server};
use crate::resources::status::StatusError;

/// The release of Kubernetes whose API this is.
const MINOR: &str = "36";
/// The release whose API this is.
pub const GIT_VERSION: &str = "v1.36.2";
const JSON: &str = "application/json";
/// What `/healthz`, `/livez` and `/readyz` look at.
const CHECKS: &[&str] = &["ping", "storage"];

pub(super) async fn dispatch(server: &Arc<Server>, asked: Asked) -> Result<Answer, StatusError> {
    if !matches!(asked.method, Method::GET | Method::HEAD) {
        return Err(StatusError::method_not_allowed());
    }
    let header = |name| asked.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let known = header(IF_NONE_MATCH);
    let accept = header(ACCEPT).unwrap_or_default();
    let path = asked.path.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        [] => Ok(respond::object(200, &json!({"paths": root_paths()}), Wanted::JSON)),
        ["version"] => Ok(respond::object(200, &version(), Wanted::JSON)),
        ["healthz" | "livez" | "readyz"] => health(server, parts[0], None, &asked).await,
        ["healthz" | "livez" | "readyz", check] => health(server, parts[0], Some(check), &asked).await,
        ["metrics"] => metrics(server).await,
        ["api"] | ["apis"] if discovery::wants_aggregated(accept) => {
            let document = discovery::aggregated(parts[0] == "api");
            if document.is_known(known) {
                return Ok(not_modified(&document.etag));
            }
            let kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
            let gzip = Wanted::parse(&asked.headers, true).is_ok_and(|wanted| wanted.gzip);
            Ok(cached(respond::bytes(200, kind, document.body.clone(), gzip), &document.etag))
        }
        ["api"] => {
            let address = header(http::header::HOST).unwrap_or("localhost:6443");
            Ok(respond::object(200, &discovery::core_versions(address), Wanted::JSON))
        }
        ["apis"] => Ok(respond::object(200, &discovery::groups(), Wanted::JSON)),
        ["apis", group] => found(discovery::group(group)),
        ["api", version] => found(discovery::version("", version)),
        ["apis", group, version] => found(discovery::version(group, version)),
        ["openapi", "v3"] => Ok(respond::object(200, &blocking(openapi::v3_index).await?, Wanted::JSON)),
        ["openapi", "v3", rest @ ..] => {
            let rest = rest.join("/");
            let document = blocking(move || openapi::v3(&rest)).await?.ok_or_else(StatusError::no_such_path)?;
            Ok(compressed(document, JSON, &asked, known))
        }
        ["openapi", "v2"] if gnostic::is_wanted(accept) => {
            Ok(compressed(blocking(openapi::v2_protobuf).await?, gnostic::MEDIA_TYPE, &asked, known))
        }
        ["openapi", "v2"] => Ok(compressed(blocking(openapi::v2).await?, JSON, &asked, known)),
        [".well-known", "openid-configuration"] => {
            Ok(respond::object(200, &server.tokens.discovery_documents().0, Wanted::JSON))
        }
        ["openid", "v1", "jwks"] => Ok(respond::object(200, &server.tokens.discovery_documents().1, Wanted::JSON)),
        _ => Err(StatusError::no_such_path()),
    }
}

/// Schemas take a moment to generate, once.
async fn blocking<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Result<T, StatusError> {
    tokio::task::spawn_blocking(make).await.map_err(StatusError::internal)
}

fn found(document: Option<serde_json::Value>) -> Result<Answer, StatusError> {
    document.map(|document| respond::object(200, &document, Wanted::JSON)).ok_or_else(StatusError::no_such_path)
}

fn not_modified(etag: &str) -> Answer {
    let mut answer = Response::new(respond::full(""));
    *answer.status_mut() = StatusCode::NOT_MODIFIED;
    cached(answer, etag)
}

fn cached(mut answer: Answer, etag: &str) -> Answer {
    let headers = answer.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(ETAG, etag);
    }
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    headers.insert("cache-control", HeaderValue::from_static("public"));
    answer
}

fn compressed(document: &Compressed, kind: &str, asked: &Asked, known: Option<&str>) -> Answer {
    if known.is_some_and(|known| known.contains(&document.etag)) {
        return not_modified(&document.etag);
    }
    let gzip = asked.headers.get("accept-encoding").and_then(|value| value.to_str().ok());
    if gzip.is_some_and(|list| list.contains("gzip")) {
        let mut answer = respond::bytes(200, kind, document.gzip.clone(), false);
        answer.headers_mut().insert("content-encoding", HeaderValue::from_static("gzip"));
        return cached(answer, &document.etag);
    }
    cached(respond::bytes(200, kind, document.plain().into(), false), &document.etag)
}

fn root_paths() -> Vec<String> {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
    for info in crate::resources::all().filter(|info| !info.group.is_empty()) {
        paths.push(format!("/apis/{}", info.group));
        paths.push(format!("/apis/{}/{}", info.group, info.version));
    }
    paths.sort();
    paths.dedup();
    paths
}

fn version() -> serde_json::Value {
    json!({
        "major": "1",
        "minor": MINOR,
        "emulationMajor": "1",
        "emulationMinor": MINOR,
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `ok`, or with `?verbose` a line for each check (C2.4).
async fn health(server: &Server, endpoint: &str, one: Option<&str>, asked: &Asked) -> Result<Answer, StatusError> {
    if one.is_some_and(|one| !CHECKS.contains(&one)) {
        return Err(StatusError::no_such_path());
    }
    let pairs = asked.raw_query.split('&').filter_map(|pair| pair.split_once('='));
    let excluded: Vec<String> =
        pairs.filter(|(key, _)| *key == "exclude").map(|(_, name)| decode(name, true)).collect();
    let mut lines = String::new();
    let mut healthy = true;
    for check in CHECKS.iter().filter(|check| one.is_none_or(|one| one == **check)) {
        if excluded.iter().any(|name| name == check) {
            lines.push_str(&format!("[+]{check} excluded: ok\n"));
            continue;
        }
        let store = server.cluster.core.store.as_ref();
        let good = *check != "storage" || (store.is_writable() && store.revision().await.is_ok());
        healthy &= good;
        lines.push_str(&if good {
            format!("[+]{check} ok\n")
        } else {
            format!("[-]{check} failed: reason withheld\n")
        });
    }
    let unknown: Vec<&str> = excluded.iter().map(String::as_str).filter(|name| !CHECKS.contains(name)).collect();
    if !unknown.is_empty() {
        lines.push_str(&format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            unknown.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(",")
        ));
    }
    if !healthy {
        return Ok(respond::text(500, format!("{lines}{endpoint} check failed\n")));
    }
    if !asked.query.has("verbose") {
        return Ok(respond::text(200, "ok"));
    }
    Ok(respond::text(200, format!("{lines}{endpoint} check passed\n")))
}

async fn metrics(server: &Server) -> Result<Answer, StatusError> {
    let revision = server.cluster.core.store.revision().await.map_err(super::read::store_error)?;
    let published = server.cluster.core.store.published();
    let text = format!(
        "# HELP stoker_store_revision Newest revision of the store.\n# TYPE stoker_store_revision gauge\n\
         stoker_store_revision {revision}\n\
         # HELP stoker_store_published_revision Newest revision that watches have been told of.\n\
         # TYPE stoker_store_published_revision gauge\nstoker_store_published_revision {published}\n"
    );
    Ok(respond::bytes(200, "text/plain; version=0.0.4", text.into(), false))
}
