//! PATCH with `application/apply-patch+yaml`: server-side apply over HTTP (C3.12). What it means is in
//! [`super::patch::apply`].

use serde_json::{Value, json};

use super::openapi::fields;
use super::openapi::types::Types;
use super::options::Query;
use super::patch::apply::{self, ApplyError, Manager};
use super::respond::Answer;
use super::serve::Server;
use super::validation::Mode;
use super::verbs::{AskedShape, Place, show, stored_info, viewed, warn};
use super::write::{Target, Writer};
use crate::clock;
use crate::resources::field::FieldError;
use crate::resources::status::StatusError;

/// Server-side apply; makes the object if there is none (C3.12).
pub(super) async fn answer(
    server: &Server,
    place: &Place,
    query: &Query,
    body: &[u8],
    writer: Writer,
    shape: &AskedShape,
) -> Result<Answer, StatusError> {
    let applied = fields::decode_yaml(body).map_err(|error| StatusError::bad_request(error.to_string()))?;
    let invalid = |error| StatusError::invalid_kind("meta.k8s.io", "PatchOptions", "", &[error]);
    let name = query.get("fieldManager");
    if name.is_empty() {
        return Err(invalid(FieldError::required("fieldManager", "is required for apply patch")));
    }
    let types = Types::built_in();
    let info = place.info;
    let Some(root) = types.of_kind(info.group, info.version, info.kind).filter(|_| place.subresource != "scale") else {
        return Err(StatusError::new(415, "UnsupportedMediaType", "server-side apply is not supported here"));
    };
    let mut warnings = Mode::parse(query.get("fieldValidation"))?.check(info, &applied.value, applied.duplicates)?;
    // The apply notes its owner by itself.
    let writer = Writer { manager: String::new(), ..writer };
    let api_version = info.api_version();
    let manager = Manager { name, api_version: &api_version, subresource: &place.subresource, now: clock::now() };
    let force = query.flag("force");
    let merged = |live: Option<&Value>| -> Result<Value, StatusError> {
        let new = apply::apply(live, applied.value.clone(), types, root, &manager, force).map_err(apply_failure)?;
        Ok(info.view.map_or_else(|| new.clone(), |view| (view.store)(new.clone())))
    };
    let target = Target { info: stored_info(info), ..place.target() };
    let core = &server.cluster.core;
    let edit = |old: &Value| merged(Some(&viewed(info, old.clone())));
    let (code, object) = match core.update(target, &edit, &writer).await {
        Err(error) if error.is_not_found() && place.subresource.is_empty() => {
            let mut new = merged(None)?;
            new["metadata"]["name"] = json!(place.name);
            (201, core.create(target.info, &place.namespace, new, &writer).await?)
        }
        updated => (200, updated?),
    };
    warnings.extend(writer.warnings());
    Ok(warn(show(info, code, &viewed(info, object), shape), &warnings))
}

fn apply_failure(error: ApplyError) -> StatusError {
    match &error {
        ApplyError::Patch(_) => StatusError::bad_request(error.to_string()),
        ApplyError::Conflicts(conflicts) => {
            let status = StatusError::new(409, "Conflict", error.to_string());
            conflicts.iter().fold(status, |status, one| status.cause("FieldManagerConflict", &one.message, &one.field))
        }
    }
}
