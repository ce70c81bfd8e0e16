//! One watch: lists once, then follows, and after any interruption goes on where it was.
//!
//! Lists come as a stream of objects where the server can do that (A16.12), else in pages; in both cases one object
//! is decoded at a time or one page, never a whole list of full objects. Only an expired version (410) lists again.

use std::borrow::Cow;
use std::time::Duration;

use futures::StreamExt;
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use stoker_model::handle::ApiError;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use super::backoff::{Backoff, jittered};
use super::client::{ApiServer, query_value};

/// The server ends a watch after so long (and up to half more), which spreads the load of reconnecting.
const WATCH_LIFETIME: Duration = Duration::from_secs(300);
/// A streamed list that pauses for so long comes from a server that did not understand the question.
const LIST_PATIENCE: Duration = Duration::from_secs(20);
/// Objects in a page of a list, as client-go's pager.
const PAGE: usize = 500;
/// Longest event that is read: etcd's limit of 1.5 MiB, with room for escapes.
const LONGEST_LINE: usize = 16 << 20;
/// Marks the bookmark that ends a streamed list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What to watch.
#[derive(Clone, Debug)]
pub(super) struct Watched<P: AsRef<str> = &'static str> {
    /// Like `/api/v1/pods`.
    pub(super) path: P,
    /// `fieldSelector`, or empty.
    pub(super) fields: String,
    /// `labelSelector`, or empty.
    pub(super) labels: String,
}

/// An object that can be watched.
pub(super) trait Watchable: DeserializeOwned + Send {
    /// `metadata.resourceVersion`.
    fn resource_version(&self) -> &str;

    /// From JSON.
    fn read(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Change<T> {
    /// A list begins: what does not come before [`Change::Listed`] does not exist.
    Listing,
    /// The object exists like this.
    Present(T),
    /// The object is gone; its last state.
    Gone(T),
    /// The object exists, or is gone, and no more can be read of it.
    Unreadable {
        /// What could be read.
        meta: Box<Metadata>,
        /// It is gone.
        gone: bool,
    },
    /// The list is complete.
    Listed,
}

/// What every object has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
}

/// Takes changes in order.
pub(super) trait Sink<T>: Send {
    /// Takes one change; `false` when nobody is interested any more.
    fn take(&mut self, change: Change<T>) -> impl Future<Output = bool> + Send;
}

/// Why a round ended.
#[derive(Debug)]
enum End {
    /// Nobody listens any more.
    Unwanted,
    /// The server closed the watch in good order.
    Closed,
    /// The version that we know is too old: list again.
    Expired,
    /// The server cannot stream a list.
    NoStreamedList(String),
    /// Everything else: the same again after a while.
    Lost(String),
}

/// Watches until the sink has enough.
pub(super) async fn run<T: Watchable, P: AsRef<str>>(api: &ApiServer, watched: &Watched<P>, sink: &mut impl Sink<T>) {
    let path = watched.path.as_ref();
    let mut backoff = Backoff::new(Duration::from_millis(800), Duration::from_secs(30));
    let mut watcher = Watcher { api, watched, version: None, streamed_lists: true, progress: false };
    let mut trouble = Trouble::default();
    loop {
        watcher.progress = false;
        let end = watcher.round(sink).await;
        if watcher.progress {
            backoff.reset();
            trouble = Trouble::default();
        }
        match end {
            End::Unwanted => return,
            End::Closed if watcher.progress => continue,
            End::Closed => {}
            End::Expired => {
                tracing::info!(path, "watch fell too far behind: listing again");
                watcher.version = None;
                // The tries before met a server that was away; this one answers.
                backoff.reset();
            }
            End::NoStreamedList(reason) => {
                tracing::debug!(path, reason, "server does not stream lists: using pages");
                watcher.streamed_lists = false;
                continue;
            }
            End::Lost(reason) if trouble.is_news(&reason) => {
                tracing::warn!(path, reason, "watch interrupted: trying again until it works");
            }
            End::Lost(reason) => tracing::debug!(path, reason, "watch still interrupted"),
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

/// What was told last about a watch that does not work.
#[derive(Default)]
struct Trouble(Option<String>);

impl Trouble {
    /// Whoever was not reached may refuse later, and only somebody who reads that can help.
    fn is_news(&mut self, reason: &str) -> bool {
        let news = self.0.as_deref() != Some(reason);
        self.0 = Some(reason.to_owned());
        news
    }
}

struct Watcher<'a, P: AsRef<str>> {
    api: &'a ApiServer,
    watched: &'a Watched<P>,
    /// Where we are; `None` until a list was complete.
    version: Option<String>,
    streamed_lists: bool,
    /// Something came in this round.
    progress: bool,
}

impl<P: AsRef<str>> Watcher<'_, P> {
    async fn round<T: Watchable>(&mut self, sink: &mut impl Sink<T>) -> End {
        if self.version.is_none()
            && !self.streamed_lists
            && let Err(end) = self.list(sink).await
        {
            return end;
        }
        self.follow(sink).await
    }

    fn query(&self) -> String {
        let mut query = String::new();
        for (name, value) in [("fieldSelector", &self.watched.fields), ("labelSelector", &self.watched.labels)] {
            if !value.is_empty() {
                query.push_str(&format!("&{name}={}", query_value(value)));
            }
        }
        query
    }

    async fn list<T: Watchable>(&mut self, sink: &mut impl Sink<T>) -> Result<(), End> {
        if !sink.take(Change::Listing).await {
            return Err(End::Unwanted);
        }
        let mut next = String::new();
        loop {
            let path = format!("{}?limit={PAGE}{}{next}", self.watched.path.as_ref(), self.query());
            let page: Page = self.api.get(&path).await.map_err(|e| End::Lost(e.to_string()))?;
            self.progress = true;
            for object in page.items {
                let change = match T::read(object.get()) {
                    Ok(object) => Change::Present(object),
                    Err(error) => self.unreadable(object.get(), false, &error)?.1,
                };
                if !sink.take(change).await {
                    return Err(End::Unwanted);
                }
            }
            if page.metadata.next.is_empty() {
                self.version = Some(page.metadata.resource_version);
                break;
            }
            next = format!("&continue={}", query_value(&page.metadata.next));
        }
        if sink.take(Change::Listed).await { Ok(()) } else { Err(End::Unwanted) }
    }

    async fn follow<T: Watchable>(&mut self, sink: &mut impl Sink<T>) -> End {
        let mut listing = self.version.is_none();
        let lifetime = jittered(WATCH_LIFETIME);
        let start = match &self.version {
            Some(version) => format!("resourceVersion={version}"),
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=".to_owned(),
        };
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={}&{start}{}",
            self.watched.path.as_ref(),
            lifetime.as_secs(),
            self.query()
        );
        let body = match self.api.stream(&path).await {
            Ok(answer) => answer.into_body(),
            Err(ApiError::Rejected(reason)) if listing => return End::NoStreamedList(reason),
            Err(ApiError::Rejected(_)) => return End::Expired,
            Err(error) => return End::Lost(error.to_string()),
        };
        if listing && !sink.take(Change::Listing).await {
            return End::Unwanted;
        }
        let bytes = body.into_data_stream().map(|part| part.map_err(std::io::Error::other));
        let mut lines = FramedRead::new(StreamReader::new(bytes), LinesCodec::new_with_max_length(LONGEST_LINE));
        loop {
            let patience = if listing { LIST_PATIENCE } else { lifetime + LIST_PATIENCE };
            let line = match tokio::time::timeout(patience, lines.next()).await {
                Err(_) if listing => return End::NoStreamedList("no end of the list came".to_owned()),
                Err(_) => return End::Lost("the server did not end the watch in time".to_owned()),
                Ok(None) if listing => return End::Lost("the list broke off".to_owned()),
                Ok(None) => return End::Closed,
                Ok(Some(Err(error))) => return End::Lost(error.to_string()),
                Ok(Some(Ok(line))) => line,
            };
            match self.event(&line, &mut listing, sink).await {
                Ok(()) => self.progress = true,
                Err(end) => return end,
            }
        }
    }

    async fn event<T: Watchable>(
        &mut self,
        line: &str,
        listing: &mut bool,
        sink: &mut impl Sink<T>,
    ) -> Result<(), End> {
        let event = serde_json::from_str::<RawEvent<'_>>(line)
            .map_err(|error| End::Lost(format!("what came is no event: {error}")))?;
        let object = event.object.get();
        let (version, change) = match event.kind.as_ref() {
            kind @ ("ADDED" | "MODIFIED" | "DELETED") => match (T::read(object), kind == "DELETED") {
                (Ok(object), false) => (object.resource_version().to_owned(), Some(Change::Present(object))),
                (Ok(object), true) => (object.resource_version().to_owned(), Some(Change::Gone(object))),
                // What cannot be read must never look as if it were gone. Ending the watch would meet the same object again.
                (Err(error), gone) => {
                    let (version, change) = self.unreadable(object, gone, &error)?;
                    (version, Some(change))
                }
            },
            "BOOKMARK" => match serde_json::from_str::<Bookmark>(object) {
                Ok(Bookmark { metadata }) => {
                    let ends_list = metadata.annotations.contains_key(INITIAL_EVENTS_END);
                    let listed = *listing && ends_list;
                    *listing &= !ends_list;
                    (metadata.resource_version, listed.then_some(Change::Listed))
                }
                Err(error) => return self.means_nothing(&event, &error),
            },
            "ERROR" => match serde_json::from_str::<Status>(object) {
                Ok(Status { code, message, .. }) => {
                    let reason = message.unwrap_or_default();
                    return Err(match code {
                        Some(410) => End::Expired,
                        _ if *listing => End::NoStreamedList(reason),
                        _ => End::Lost(reason),
                    });
                }
                Err(error) => return self.means_nothing(&event, &error),
            },
            _ => return self.means_nothing(&event, &"it is not known"),
        };
        if !*listing {
            self.version = Some(version);
        }
        let Some(change) = change else { return Ok(()) };
        if sink.take(change).await { Ok(()) } else { Err(End::Unwanted) }
    }

    fn means_nothing(&self, event: &RawEvent<'_>, error: &dyn std::fmt::Display) -> Result<(), End> {
        let (path, kind) = (self.watched.path.as_ref(), event.kind.as_ref());
        tracing::warn!(path, kind, %error, "an event of this kind means nothing here");
        Ok(())
    }

    /// An object of which only the metadata can be read; without a name nothing can be said of it, and the list counts for nothing.
    /// The answer: its version, and what is known.
    fn unreadable<T>(&self, object: &str, gone: bool, error: &serde_json::Error) -> Result<(String, Change<T>), End> {
        let path = self.watched.path.as_ref();
        match serde_json::from_str::<OnlyMetadata>(object) {
            Ok(OnlyMetadata { metadata: meta }) if !meta.name.is_empty() => {
                let (namespace, name) = (&meta.namespace, &meta.name);
                tracing::error!(
                    path, namespace, name, %error,
                    "an object of the API server cannot be read: what is known of it stays as it was; a newer agent may be needed"
                );
                Ok((meta.resource_version.clone(), Change::Unreadable { meta: Box::new(meta), gone }))
            }
            _ => Err(End::Lost(format!("an object without a name cannot be read: {error}"))),
        }
    }
}

/// An event whose object is read once its kind is known: each way of reading an object of the API is a hundred kilobytes of program.
#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a serde_json::value::RawValue,
}

#[derive(Deserialize)]
struct OnlyMetadata {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta {
    resource_version: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

/// Objects stay text until their turn: one that cannot be read is no matter of the others.
#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    #[serde(default, deserialize_with = "null_is_empty")]
    items: Vec<Box<serde_json::value::RawValue>>,
}

fn null_is_empty<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<Vec<T>>::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct PageMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

#[cfg(test)]
mod tests;
