//! Watches: from a list's revision, with what enters and leaves a selector (C3.4 to C3.6).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::codec;
use super::read::{self, ListRequest, store_error};
use super::select::Filter;
use crate::resources::ResourceInfo;
use crate::resources::status::StatusError;
use crate::storage::{Event, EventKind, Revision, Store};

/// A watch as asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct WatchRequest {
    pub(super) list: ListRequest,
    /// `None` where the client did not say.
    pub(super) send_initial_events: Option<bool>,
    pub(super) bookmarks: bool,
}

/// What happened to an object, as this watcher sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Added,
    Modified,
    Deleted,
}

impl Seen {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One message to the watcher.
#[derive(Debug)]
pub(super) enum Message {
    /// An object, as JSON.
    Object(Seen, Bytes),
    /// The initial events are over (C3.6).
    InitialEnd(Revision),
}

/// A running watch.
#[derive(Debug)]
pub(super) struct Running {
    filter: Filter,
    initial: VecDeque<Message>,
    events: Box<dyn crate::storage::Watch>,
    pending: VecDeque<Arc<Event>>,
}

/// Starts a watch.
pub(super) async fn start(
    store: &Arc<dyn Store>,
    info: &ResourceInfo,
    request: &WatchRequest,
) -> Result<Running, StatusError> {
    let filter = Filter::parse(info, &request.list.label_selector, &request.list.field_selector)?;
    check(request)?;
    let mut initial = VecDeque::new();
    let version = request.list.resource_version.as_str();
    let synthetic = request.send_initial_events == Some(true)
        || (request.send_initial_events.is_none() && (version.is_empty() || version == "0"));
    let from = if synthetic {
        if !version.is_empty() && version != "0" {
            let wanted = read::parse_version(version)?;
            let current = store.revision().await.map_err(store_error)?;
            if wanted > current {
                return Err(StatusError::future(wanted, current));
            }
        }
        let whole = ListRequest {
            namespace: request.list.namespace.clone(),
            label_selector: request.list.label_selector.clone(),
            field_selector: request.list.field_selector.clone(),
            ..ListRequest::default()
        };
        let listed = read::list(store.as_ref(), info, &whole).await?;
        initial.extend(
            listed
                .entries
                .iter()
                .map(|entry| Message::Object(Seen::Added, codec::render(&entry.value, entry.revision))),
        );
        if request.send_initial_events == Some(true) && request.bookmarks {
            initial.push_back(Message::InitialEnd(listed.revision));
        }
        listed.revision
    } else if version.is_empty() || version == "0" {
        store.revision().await.map_err(store_error)?
    } else {
        let wanted = read::parse_version(version)?;
        let current = store.revision().await.map_err(store_error)?;
        if wanted > current {
            return Err(StatusError::future(wanted, current));
        }
        wanted
    };
    let mut prefix = codec::prefix(info, &request.list.namespace);
    if let (Some(name), true) = (&filter.name, !info.namespaced || !request.list.namespace.is_empty()) {
        prefix.push_str(name);
    }
    let events = store.watch(&prefix, from).map_err(store_error)?;
    Ok(Running { filter, initial, events, pending: VecDeque::new() })
}

fn check(request: &WatchRequest) -> Result<(), StatusError> {
    use crate::resources::field::FieldError;
    let list = &request.list;
    let wrong = |error: FieldError| Err(StatusError::invalid_kind("meta.k8s.io", "ListOptions", "", &[error]));
    if request.send_initial_events.is_some() && list.version_match != "NotOlderThan" {
        return wrong(FieldError::forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if request.send_initial_events.is_none() && !list.version_match.is_empty() {
        return wrong(FieldError::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ));
    }
    Ok(())
}

impl Running {
    /// The next message; waits for it. Safe to drop.
    pub(super) async fn next(&mut self) -> Result<Message, StatusError> {
        loop {
            if let Some(message) = self.ready() {
                return Ok(message);
            }
            self.pending = self.events.next().await.map_err(store_error)?.into();
        }
    }

    /// The next message if it is there already.
    pub(super) fn ready(&mut self) -> Option<Message> {
        if let Some(message) = self.initial.pop_front() {
            return Some(message);
        }
        while let Some(event) = self.pending.pop_front() {
            if let Some(seen) = self.see(&event) {
                return Some(Message::Object(seen, codec::render_event(&event)));
            }
        }
        None
    }

    /// The revision up to which this watcher has seen everything, if nothing waits.
    pub(super) fn progress(&mut self) -> Option<Revision> {
        (self.initial.is_empty() && self.pending.is_empty()).then(|| self.events.progress())
    }

    fn see(&self, event: &Event) -> Option<Seen> {
        if self.filter.is_everything() {
            return Some(match event.kind {
                EventKind::Created => Seen::Added,
                EventKind::Modified => Seen::Modified,
                EventKind::Deleted => Seen::Deleted,
            });
        }
        let before = event.before.as_ref().is_some_and(|(value, _)| self.filter.matches_bytes(value));
        let now = event.kind != EventKind::Deleted && self.filter.matches_bytes(&event.value);
        match (before, now) {
            (false, false) => None,
            (false, true) => Some(Seen::Added),
            (true, true) => Some(Seen::Modified),
            (true, false) => Some(Seen::Deleted),
        }
    }
}
