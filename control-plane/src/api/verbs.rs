//! Requests about resources: from route and method to an answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::Method;
use http::header::{CONTENT_TYPE, USER_AGENT};
use serde_json::{Value, json};

use super::cluster::{DeleteOptions, PatchType, patched};
use super::patch::apply::manager_of_agent;
use super::read::{self, ListRequest, Listed};
use super::respond::{self, Answer, Wanted};
use super::route::Route;
use super::serve::{Asked, Server};
use super::table::{self, Include, ListMeta, Shown, Table};
use super::validation::Mode;
use super::write::{Target, Writer};
use super::{actions, apply_patch, codec, subresource, watch_body, watching};
use crate::clock;
use crate::resources::field::FieldError;
use crate::resources::status::StatusError;
use crate::resources::tree::text;
use crate::resources::{self, ResourceInfo};

/// A watch that does not say how long lasts at least so long, and at most twice.
const WATCH_SECONDS: u64 = 1800;
/// A watch that says how long lasts at most a year: clocks have an end.
const LONGEST_WATCH_SECONDS: u64 = 365 * 24 * 3600;

pub(super) async fn dispatch(server: &Arc<Server>, route: Route, asked: Asked) -> Result<Answer, StatusError> {
    let info =
        resources::find_version(&route.group, &route.version, &route.resource).ok_or_else(StatusError::no_such_path)?;
    // Access was decided for the namespace in the path. What is in no namespace must not be reached by way of one.
    let is_namespace_itself = info.group.is_empty() && info.plural == "namespaces" && route.namespace == route.name;
    if !info.namespaced && !route.namespace.is_empty() && !is_namespace_itself {
        return Err(StatusError::no_such_path());
    }
    // The namespace in a namespace's own path is for authorization only.
    let namespace = if info.namespaced { route.namespace.clone() } else { String::new() };
    if !route.subresource.is_empty() && info.subresource(&route.subresource).is_none() {
        return Err(StatusError::no_such_path());
    }
    let place = Place { info, namespace, name: route.name, subresource: route.subresource };
    let method = asked.method.clone();
    match (method.as_str(), place.name.is_empty(), place.subresource.as_str()) {
        (_, false, "log" | "token" | "eviction" | "binding" | "exec" | "attach" | "portforward" | "proxy") => {
            actions::dispatch(server, &place, asked).await
        }
        _ if !info.is_stored() => actions::review(server, &place, asked).await,
        ("GET" | "HEAD", true, _) if asked.query.flag("watch") => watch(server, &place, &asked).await,
        ("GET" | "HEAD", true, _) => list(server, &place, &asked).await,
        ("GET" | "HEAD", false, _) => get(server, &place, &asked).await,
        ("POST", true, _) => create(server, &place, asked).await,
        ("PUT", false, _) => update(server, &place, asked).await,
        ("PATCH", false, _) => patch(server, &place, asked).await,
        ("DELETE", false, "") => delete(server, &place, asked).await,
        ("DELETE", true, _) if info.verbs.contains(&"deletecollection") => {
            delete_collection(server, &place, asked).await
        }
        _ => Err(StatusError::method_not_allowed()),
    }
}

/// What a request is about.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) info: &'static ResourceInfo,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) subresource: String,
}

impl Place {
    pub(super) fn target(&self) -> Target<'_> {
        Target { info: self.info, namespace: &self.namespace, name: &self.name, subresource: &self.subresource }
    }
}

pub(super) fn writer(asked: &Asked) -> Result<Writer, StatusError> {
    let agent = asked.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let manager = match asked.query.get("fieldManager") {
        "" => manager_of_agent(agent),
        name => name,
    };
    Ok(Writer {
        user: asked.user.clone(),
        dry_run: asked.query.dry_run()?,
        manager: manager.to_owned(),
        warnings: Arc::default(),
    })
}

/// One object, as the client wants to see it.
pub(super) fn show(info: &ResourceInfo, code: u16, object: &Value, asked: &AskedShape) -> Answer {
    let wanted = asked.wanted;
    match wanted.shown {
        Shown::Whole => respond::object(code, object, wanted),
        Shown::Metadata => respond::json_bytes(code, table::metadata(object).into(), wanted),
        Shown::Table(version) => {
            let kind = (info.group, info.kind);
            let text = table::single(kind, version, object, asked.include, true, clock::now());
            respond::json_bytes(code, text.into(), wanted)
        }
    }
}

/// How the client wants to see objects.
#[derive(Debug, Clone, Copy)]
pub(super) struct AskedShape {
    pub(super) wanted: Wanted,
    pub(super) include: Include,
}

impl AskedShape {
    pub(super) fn of(asked: &Asked, tables: bool) -> Result<Self, StatusError> {
        let include = asked.query.get("includeObject");
        Ok(Self {
            wanted: Wanted::parse(&asked.headers, tables)?,
            include: Include::parse(Some(include))
                .ok_or_else(|| StatusError::bad_request(format!("unrecognized includeObject value: {include:?}")))?,
        })
    }
}

async fn get(server: &Server, place: &Place, asked: &Asked) -> Result<Answer, StatusError> {
    let shape = AskedShape::of(asked, true)?;
    let store = server.cluster.core.store.as_ref();
    let version = asked.query.get("resourceVersion");
    if !matches!(version, "" | "0") {
        let wanted = read::parse_version(version)?;
        let current = store.revision().await.map_err(read::store_error)?;
        if wanted > current {
            return Err(StatusError::future(wanted, current));
        }
    }
    let entry = read::get(store, place.info, &place.namespace, &place.name).await?;
    if place.subresource == "scale" {
        let scale = subresource::scale_of(&codec::decode_entry(&entry)?);
        let info = resources::find("autoscaling", "scales").unwrap_or(place.info);
        return Ok(show(
            info,
            200,
            &scale,
            &AskedShape { wanted: Wanted { shown: Shown::Whole, ..shape.wanted }, ..shape },
        ));
    }
    if shape.wanted.shown == Shown::Whole && place.info.view.is_none() {
        return Ok(respond::json_bytes(200, codec::render(&entry.value, entry.revision), shape.wanted));
    }
    Ok(show(place.info, 200, &viewed(place.info, codec::decode_entry(&entry)?), &shape))
}

/// As this kind shows what another kind stores.
pub(super) fn viewed(info: &ResourceInfo, object: Value) -> Value {
    match info.view {
        Some(view) => (view.show)(object),
        None => object,
    }
}

async fn list(server: &Server, place: &Place, asked: &Asked) -> Result<Answer, StatusError> {
    let shape = AskedShape::of(asked, true)?;
    if !asked.query.get("sendInitialEvents").is_empty() {
        let detail = "sendInitialEvents is forbidden for list";
        let error = resources::field::FieldError::forbidden("sendInitialEvents", detail);
        return Err(StatusError::invalid_kind("meta.k8s.io", "ListOptions", "", &[error]));
    }
    let request = asked.query.list(&place.namespace)?;
    let listed = read::list(server.cluster.core.store.as_ref(), place.info, &request).await?;
    let text = list_text(place.info, &listed, &shape)?;
    Ok(respond::json_bytes(200, text, shape.wanted))
}

fn list_text(info: &ResourceInfo, listed: &Listed, shape: &AskedShape) -> Result<Bytes, StatusError> {
    let resource_version = listed.revision.to_string();
    let meta = ListMeta {
        resource_version: &resource_version,
        continue_token: &listed.continue_token,
        remaining: listed.remaining,
    };
    match shape.wanted.shown {
        Shown::Whole => Ok(whole_list(info, listed, &meta)),
        Shown::Metadata => {
            let objects: Vec<Value> = listed.entries.iter().map(codec::decode_entry).collect::<Result<_, _>>()?;
            Ok(table::metadata_list(&objects, &meta).into())
        }
        Shown::Table(version) => {
            let kind = (info.group, info.kind);
            let mut table = Table::new(kind, version, &meta, shape.include, true, clock::now());
            for entry in &listed.entries {
                table.row(&codec::decode_entry(entry)?);
            }
            Ok(table.finish().into())
        }
    }
}

/// The list with its objects' bytes as stored: nothing is parsed.
fn whole_list(info: &ResourceInfo, listed: &Listed, meta: &ListMeta<'_>) -> Bytes {
    let mut metadata = json!({"resourceVersion": meta.resource_version});
    if !meta.continue_token.is_empty() {
        metadata["continue"] = json!(meta.continue_token);
    }
    if let Some(remaining) = meta.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    let size: usize = listed.entries.iter().map(|entry| entry.value.len() + 32).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        info.list_kind(),
        info.api_version()
    );
    out.put_slice(head.as_bytes());
    for (at, entry) in listed.entries.iter().enumerate() {
        if at > 0 {
            out.put_u8(b',');
        }
        match (info.view, codec::decode_entry(entry)) {
            (Some(view), Ok(object)) => out.put_slice((view.show)(object).to_string().as_bytes()),
            _ => out.put_slice(&codec::render(&entry.value, entry.revision)),
        }
    }
    out.put_slice(b"]}");
    out.freeze()
}

async fn watch(server: &Server, place: &Place, asked: &Asked) -> Result<Answer, StatusError> {
    let shape = AskedShape::of(asked, true)?;
    let info = place.info;
    let request = asked.query.watch(&place.namespace)?;
    let spread = u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * WATCH_SECONDS / 256;
    let seconds = asked.query.timeout()?.filter(|seconds| *seconds > 0).unwrap_or(WATCH_SECONDS + spread);
    let seconds = seconds.min(LONGEST_WATCH_SECONDS);
    let bookmarks = request.bookmarks;
    let running = watching::start(&server.cluster.core.store, info, &request).await?;
    let include = shape.include;
    let transform: Option<watch_body::Transform> = match shape.wanted.shown {
        Shown::Whole => info.view.map(|view| -> watch_body::Transform {
            Box::new(move |object: &Value| {
                let is_bookmark = object["metadata"]["name"].is_null();
                let shown = if is_bookmark { object.clone() } else { (view.show)(object.clone()) };
                shown.to_string().into_bytes()
            })
        }),
        Shown::Metadata => Some(Box::new(table::metadata)),
        Shown::Table(version) => {
            let mut first = true;
            Some(Box::new(move |object: &Value| {
                let kind = (info.group, info.kind);
                let text = if object["metadata"]["name"].is_null() {
                    let resource_version = text(&object["metadata"], "resourceVersion");
                    let meta = ListMeta { resource_version, ..ListMeta::default() };
                    Table::new(kind, version, &meta, include, first, clock::now()).finish()
                } else {
                    table::single(kind, version, object, include, first, clock::now())
                };
                first = false;
                text
            }))
        }
    };
    let options = watch_body::WatchOptions {
        transform,
        bookmarks,
        timeout: Duration::from_secs(seconds),
        stop: server.stop.clone(),
    };
    Ok(watch_body::answer(info, running, options))
}

/// Reads a body as an object of the place's kind; answers with it and with warnings about its fields.
pub(super) async fn read_object(info: &ResourceInfo, asked: Asked) -> Result<(Value, Vec<String>), StatusError> {
    let bytes = respond::read_body(asked.body).await?;
    let mut decoded = respond::decode_body(&asked.headers, &bytes)?;
    // The path says which kind it is.
    if let Some(object) = decoded.value.as_object_mut() {
        for (key, value) in [("apiVersion", info.api_version()), ("kind", info.kind.to_owned())] {
            let told = object.entry(key).or_insert(Value::Null);
            if told.is_null() || told == "" {
                *told = value.into();
            }
        }
    }
    check_kind(info, &decoded.value, &bytes)?;
    let mode = Mode::parse(asked.query.get("fieldValidation"))?;
    let warnings = mode.check(info, &decoded.value, decoded.duplicates)?;
    Ok((decoded.value, warnings))
}

fn check_kind(info: &ResourceInfo, object: &Value, bytes: &Bytes) -> Result<(), StatusError> {
    let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    if !object.is_object() || kind.is_empty() || version.is_empty() {
        let missing = if kind.is_empty() { "Kind" } else { "apiVersion" };
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        return Err(StatusError::bad_request(format!("Object '{missing}' is missing in '{start}'")));
    }
    let expected = info.api_version();
    if version != expected {
        return Err(StatusError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({expected})"
        )));
    }
    if kind != info.kind {
        return Err(StatusError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {}: no kind {kind:?} is registered for this path",
            info.kind
        )));
    }
    Ok(())
}

async fn create(server: &Server, place: &Place, asked: Asked) -> Result<Answer, StatusError> {
    let shape = AskedShape::of(&asked, true)?;
    let writer = writer(&asked)?;
    let (mut object, mut warnings) = read_object(place.info, asked).await?;
    if let Some(view) = place.info.view {
        object = (view.store)(object);
    }
    let created = server.cluster.core.create(stored_info(place.info), &place.namespace, object, &writer).await?;
    warnings.extend(writer.warnings());
    Ok(warn(show(place.info, 201, &viewed(place.info, created), &shape), &warnings))
}

/// The kind whose rules hold for what is stored.
pub(super) fn stored_info(info: &'static ResourceInfo) -> &'static ResourceInfo {
    if info.view.is_none() {
        return info;
    }
    resources::find(info.stored_as.0, info.stored_as.1).unwrap_or(info)
}

async fn update(server: &Server, place: &Place, asked: Asked) -> Result<Answer, StatusError> {
    let shape = AskedShape::of(&asked, true)?;
    let writer = writer(&asked)?;
    let core = &server.cluster.core;
    if place.subresource == "scale" {
        let bytes = respond::read_body(asked.body).await?;
        let scale = respond::parse_body(&asked.headers, &bytes)?;
        let edit = |old: &Value| subresource::scaled(old, &scale);
        let updated = core.update(place.target(), &edit, &writer).await?;
        return Ok(respond::object(200, &subresource::scale_of(&updated), shape.wanted));
    }
    let (mut object, mut warnings) = read_object(place.info, asked).await?;
    if let Some(view) = place.info.view {
        object = (view.store)(object);
    }
    let target = Target { info: stored_info(place.info), ..place.target() };
    let edit = |_: &Value| Ok(object.clone());
    let updated = core.update(target, &edit, &writer).await?;
    warnings.extend(writer.warnings());
    Ok(warn(show(place.info, 200, &viewed(place.info, updated), &shape), &warnings))
}

async fn patch(server: &Server, place: &Place, asked: Asked) -> Result<Answer, StatusError> {
    let shape = AskedShape::of(&asked, true)?;
    let writer = writer(&asked)?;
    let mode = Mode::parse(asked.query.get("fieldValidation"))?;
    let kind = asked.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = match kind.split(';').next().unwrap_or_default().trim() {
        "application/json-patch+json" => PatchType::Json,
        "application/merge-patch+json" => PatchType::Merge,
        "application/strategic-merge-patch+json" => PatchType::Strategic,
        "application/apply-patch+yaml" => PatchType::Apply,
        _ => {
            return Err(StatusError::new(
                415,
                "UnsupportedMediaType",
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml, \
                 application/strategic-merge-patch+json",
            ));
        }
    };
    let bytes = respond::read_body(asked.body).await?;
    let patch = match kind {
        PatchType::Apply => return apply_patch::answer(server, place, &asked.query, &bytes, writer, &shape).await,
        _ => serde_json::from_slice(&bytes)
            .map_err(|error| StatusError::bad_request(format!("error decoding patch: {error}")))?,
    };
    let core = &server.cluster.core;
    let info = stored_info(place.info);
    if place.subresource == "scale" {
        let edit = |old: &Value| {
            let mut scale = patched(info, &subresource::scale_of(old), scale_patch(kind), &patch)?;
            // The version that was read is no condition; one in the patch is.
            if scale["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"] {
                scale["metadata"]["resourceVersion"] = Value::Null;
            }
            subresource::scaled(old, &scale)
        };
        let updated = core.update(place.target(), &edit, &writer).await?;
        return Ok(respond::object(200, &subresource::scale_of(&updated), shape.wanted));
    }
    let warnings = std::sync::Mutex::new(Vec::new());
    let edit = |old: &Value| {
        let shown = viewed(place.info, old.clone());
        let mut new = patched(place.info, &shown, kind, &patch)?;
        check_same(place, old, &new)?;
        let found = mode.check(place.info, &new, Vec::new())?;
        *warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = found;
        if let Some(view) = place.info.view {
            new = (view.store)(new);
        }
        Ok(new)
    };
    let target = Target { info, ..place.target() };
    let updated = core.update(target, &edit, &writer).await?;
    let mut warnings = warnings.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    warnings.extend(writer.warnings());
    Ok(warn(show(place.info, 200, &viewed(place.info, updated), &shape), &warnings))
}

/// Which object it is cannot be patched. An update that names another one is refused as a condition that does not hold (409), a patch as a
/// change of the field (422), which is how a node learns that its pod was replaced (A2.10).
fn check_same(place: &Place, old: &Value, new: &Value) -> Result<(), StatusError> {
    let (uid, stored) = (text(&new["metadata"], "uid"), text(&old["metadata"], "uid"));
    if uid.is_empty() || uid == stored {
        return Ok(());
    }
    let error = FieldError::invalid("metadata.uid", uid, "field is immutable");
    Err(StatusError::invalid(stored_info(place.info), text(&old["metadata"], "name"), &[error]))
}

/// A Scale has no lists: strategic is merge.
fn scale_patch(kind: PatchType) -> PatchType {
    if kind == PatchType::Strategic { PatchType::Merge } else { kind }
}

async fn delete_body(asked: Asked) -> Result<DeleteOptions, StatusError> {
    let bytes = respond::read_body(asked.body).await?;
    let body = if bytes.is_empty() { Value::Null } else { respond::parse_body(&asked.headers, &bytes)? };
    asked.query.delete(&body)
}

async fn delete(server: &Server, place: &Place, asked: Asked) -> Result<Answer, StatusError> {
    let shape = AskedShape::of(&asked, true)?;
    let mut writer = writer(&asked)?;
    let options = delete_body(asked).await?;
    writer.dry_run |= options.dry_run;
    let info = stored_info(place.info);
    let target = Target { info, ..place.target() };
    let deleted = server.cluster.core.delete(target, &options, &writer).await?;
    if deleted.stays || info.strategy.delete_returns_object {
        return Ok(show(place.info, 200, &viewed(place.info, deleted.object), &shape));
    }
    let mut details = json!({"name": place.name, "kind": place.info.plural});
    if !place.info.group.is_empty() {
        details["group"] = json!(place.info.group);
    }
    details["uid"] = deleted.object["metadata"]["uid"].clone();
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    });
    Ok(respond::object(200, &status, shape.wanted))
}

async fn delete_collection(server: &Server, place: &Place, asked: Asked) -> Result<Answer, StatusError> {
    let shape = AskedShape::of(&asked, true)?;
    let mut writer = writer(&asked)?;
    let request = ListRequest { limit: 0, ..asked.query.list(&place.namespace)? };
    let options = delete_body(asked).await?;
    writer.dry_run |= options.dry_run;
    let core = &server.cluster.core;
    let info = stored_info(place.info);
    let mut listed = read::list(core.store.as_ref(), place.info, &request).await?;
    for entry in &listed.entries {
        let object = codec::decode_entry(entry)?;
        let (namespace, name) = (text(&object["metadata"], "namespace"), text(&object["metadata"], "name"));
        let target = Target { info, namespace, name, subresource: "" };
        match core.delete(target, &options, &writer).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    listed.continue_token.clear();
    Ok(respond::json_bytes(200, list_text(place.info, &listed, &shape)?, shape.wanted))
}

/// Adds `Warning` headers.
pub(super) fn warn(mut answer: Answer, warnings: &[String]) -> Answer {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = http::HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            answer.headers_mut().append("warning", value);
        }
    }
    answer
}

/// For [`actions`]: only these methods.
pub(super) fn only(method: &Method, allowed: &[Method]) -> Result<(), StatusError> {
    if allowed.contains(method) { Ok(()) } else { Err(StatusError::method_not_allowed()) }
}
