//! Get and list: snapshots, pages, continue tokens (C3.2, C3.3).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::codec;
use super::select::Filter;
use crate::resources::ResourceInfo;
use crate::resources::status::StatusError;
use crate::storage::{Entry, Range, Revision, Store, StoreError};

/// Entries read at once while a selector is looking for its matches.
const CHUNK: usize = 500;

/// A list as asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct ListRequest {
    pub(super) namespace: String,
    pub(super) label_selector: String,
    pub(super) field_selector: String,
    pub(super) limit: usize,
    pub(super) continue_token: String,
    pub(super) resource_version: String,
    pub(super) version_match: String,
}

/// Its answer, still as stored.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) entries: Vec<Entry>,
    pub(super) revision: Revision,
    pub(super) continue_token: String,
    pub(super) remaining: Option<usize>,
}

pub(super) fn store_error(error: StoreError) -> StatusError {
    match error {
        StoreError::TooOld { wanted, oldest } => {
            StatusError::expired(format!("too old resource version: {wanted} ({oldest})"))
        }
        StoreError::Future { wanted, current } => StatusError::future(wanted, current),
        StoreError::Closed => StatusError::unavailable("the server is shutting down"),
        other => StatusError::internal(other),
    }
}

/// A resourceVersion as clients write it.
pub(super) fn parse_version(text: &str) -> Result<Revision, StatusError> {
    text.parse::<Revision>().map_err(|_| {
        StatusError::bad_request(format!(
            "Invalid value: {text:?}: resourceVersion must be a number that a list or object showed"
        ))
    })
}

pub(super) async fn get(
    store: &dyn Store,
    info: &ResourceInfo,
    namespace: &str,
    name: &str,
) -> Result<Entry, StatusError> {
    let (entry, _) = store.get(&codec::key(info, namespace, name)).await.map_err(store_error)?;
    entry.ok_or_else(|| StatusError::not_found(info, name))
}

pub(super) async fn list(store: &dyn Store, info: &ResourceInfo, request: &ListRequest) -> Result<Listed, StatusError> {
    let filter = Filter::parse(info, &request.label_selector, &request.field_selector)?;
    let prefix = codec::prefix(info, &request.namespace);
    let mut range = Range { prefix: prefix.clone(), limit: request.limit, ..Range::default() };
    check_versions(request)?;
    if let Some(token) = Continue::parse(&request.continue_token)? {
        if !token.after.starts_with(&prefix) {
            return Err(StatusError::bad_request("continue key is not valid: it belongs to another list"));
        }
        range.at = token.revision;
        range.after = Some(token.after);
    } else if !request.resource_version.is_empty() && request.resource_version != "0" {
        let wanted = parse_version(&request.resource_version)?;
        let current = store.revision().await.map_err(store_error)?;
        if wanted > current {
            return Err(StatusError::future(wanted, current));
        }
        // A limit with a version and no match is, by tradition, exact.
        if request.version_match == "Exact" || (request.version_match.is_empty() && request.limit > 0) {
            range.at = Some(wanted);
        }
    }
    if let (Some(name), true) = (&filter.name, !info.namespaced || !request.namespace.is_empty()) {
        range.prefix = codec::key(info, &request.namespace, name);
    }
    collect(store, range, &filter, request.limit).await
}

fn check_versions(request: &ListRequest) -> Result<(), StatusError> {
    let wrong = |detail: &str| {
        let error = crate::resources::field::FieldError::forbidden("resourceVersionMatch", detail);
        Err(StatusError::invalid_kind("meta.k8s.io", "ListOptions", "", &[error]))
    };
    match request.version_match.as_str() {
        "" => return Ok(()),
        "Exact" | "NotOlderThan" => {}
        other => {
            let error = crate::resources::field::FieldError::not_supported(
                "resourceVersionMatch",
                other,
                &["Exact", "NotOlderThan"],
            );
            return Err(StatusError::invalid_kind("meta.k8s.io", "ListOptions", "", &[error]));
        }
    }
    if !request.continue_token.is_empty() {
        return wrong("resourceVersionMatch is forbidden when continue is provided");
    }
    if request.resource_version.is_empty() {
        return wrong("resourceVersionMatch is forbidden unless resourceVersion is provided");
    }
    if request.version_match == "Exact" && request.resource_version == "0" {
        return wrong("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
    }
    Ok(())
}

async fn collect(store: &dyn Store, mut range: Range, filter: &Filter, limit: usize) -> Result<Listed, StatusError> {
    let mut listed = Listed::default();
    if filter.is_everything() {
        let after = range.after.clone();
        let page = store.list(range).await.map_err(|error| expired_page(error, after))?;
        listed.revision = page.revision;
        if page.remaining > 0 {
            listed.continue_token = Continue::after(&page.entries, page.revision);
            listed.remaining = Some(page.remaining);
        }
        listed.entries = page.entries;
        return Ok(listed);
    }
    range.limit = CHUNK;
    loop {
        let after = range.after.clone();
        let page = store.list(range.clone()).await.map_err(|error| expired_page(error, after))?;
        listed.revision = page.revision;
        range.at = Some(page.revision);
        let more = page.remaining > 0;
        range.after = page.entries.last().map(|entry| entry.key.to_string());
        let mut entries = page.entries.into_iter();
        while let Some(entry) = entries.next() {
            if !filter.matches_bytes(&entry.value) {
                continue;
            }
            listed.entries.push(entry);
            if limit > 0 && listed.entries.len() == limit && (more || entries.len() > 0) {
                listed.continue_token = Continue::after(&listed.entries, page.revision);
                return Ok(listed);
            }
        }
        if !more {
            return Ok(listed);
        }
    }
}

/// An expired continue token gets a new one that goes on with the newest state (C3.3).
fn expired_page(error: StoreError, after: Option<String>) -> StatusError {
    match (error, after) {
        (StoreError::TooOld { .. }, Some(after)) => {
            let mut status = StatusError::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new \
                 list without the continue parameter, or use the continue token in this response to retrieve the \
                 remainder of the results. Continuing with the provided token results in an inconsistent list - \
                 objects that were created, modified, or deleted between the time the first chunk was returned and now \
                 may show up in the list.",
            );
            status.continue_token = Some(Continue { after, revision: None }.text());
            status
        }
        (error, _) => store_error(error),
    }
}

/// Where a list goes on.
struct Continue {
    after: String,
    /// `None`: at the newest state.
    revision: Option<Revision>,
}

impl Continue {
    fn after(entries: &[Entry], revision: Revision) -> String {
        let after = entries.last().map(|entry| entry.key.to_string()).unwrap_or_default();
        Self { after, revision: Some(revision) }.text()
    }

    fn text(&self) -> String {
        let token = json!({"v": "meta.k8s.io/v1", "rv": self.revision.unwrap_or(0), "start": self.after});
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn parse(token: &str) -> Result<Option<Self>, StatusError> {
        if token.is_empty() {
            return Ok(None);
        }
        let wrong = || StatusError::bad_request("continue key is not valid: it is no token of this server");
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| wrong())?;
        let token: Value = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
        let after = token["start"].as_str().ok_or_else(wrong)?.to_owned();
        let revision = token["rv"].as_u64().ok_or_else(wrong)?;
        Ok(Some(Self { after, revision: (revision > 0).then_some(revision) }))
    }
}
