//! Spans of pods, of questions to the runtime and of requests to the node's API, sent to an OpenTelemetry collector where
//! KubeletConfiguration's `tracing` asks for it.
//!
//! Whatever wants to be seen there opens a span of the target `otel`; logs know nothing of those. As in kubelet, a span whose caller is
//! recorded is recorded too, and of the others as many per million as the operator says.

mod export;
mod identity;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::Context;
use tracing_subscriber::{Layer, Registry};

use self::export::otlp::{self, any_value::Value};
use self::identity::{Identity, Sampler};
use crate::clock::Clock;

pub(super) use self::export::{Destination, DestinationError, Exporter};

/// The target of spans that are exported.
pub(super) const TARGET: &str = "otel";

/// Ended spans that may wait for the exporter; more are lost.
const WAITING: usize = 2048;

/// Turns spans of [`TARGET`] into what a collector takes.
pub(super) struct SpanLayer {
    sampler: Sampler,
    ended: mpsc::Sender<otlp::Span>,
    lost: AtomicU64,
}

/// A layer that records so many spans per million that nobody asked for, and what it hands over.
pub(super) fn layer(per_million: u32) -> (SpanLayer, mpsc::Receiver<otlp::Span>) {
    let (ended, spans) = mpsc::channel(WAITING);
    (SpanLayer { sampler: Sampler { per_million }, ended, lost: AtomicU64::new(0) }, spans)
}

/// An open span: who it is, and what is known of it so far. `None`: nobody wants it.
struct Open {
    identity: Identity,
    span: Option<Box<otlp::Span>>,
}

impl Layer<Registry> for SpanLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, Registry>) {
        let Some(new) = context.span(id) else { return };
        let mut fields = Fields { name: attributes.metadata().name().to_owned(), ..Fields::default() };
        attributes.record(&mut fields);
        let parent =
            new.parent().and_then(|parent| parent.extensions().get::<Open>().map(|open| open.identity.clone()));
        let parent = parent.or_else(|| Identity::of_caller(fields.caller.as_deref()?));
        let identity = self.sampler.identify(parent.as_ref());
        let span = identity.is_recorded.then(|| {
            let mut span = otlp::Span {
                trace_id: identity.trace.to_vec(),
                span_id: identity.span.to_vec(),
                parent_span_id: parent.map(|parent| parent.span.to_vec()).unwrap_or_default(),
                start_time_unix_nano: now(),
                ..otlp::Span::default()
            };
            fields.into_span(&mut span);
            Box::new(span)
        });
        new.extensions_mut().insert(Open { identity, span });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, Registry>) {
        let Some(found) = context.span(id) else { return };
        let mut extensions = found.extensions_mut();
        if let Some(span) = extensions.get_mut::<Open>().and_then(|open| open.span.as_mut()) {
            let mut fields = Fields { name: std::mem::take(&mut span.name), kind: span.kind, ..Fields::default() };
            values.record(&mut fields);
            fields.into_span(span);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, Registry>) {
        let Some(found) = context.span(&id) else { return };
        let Some(mut span) = found.extensions_mut().remove::<Open>().and_then(|open| open.span) else { return };
        span.end_time_unix_nano = now();
        // Nothing is logged here: that would come back to this layer.
        if self.ended.try_send(*span).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn now() -> u64 {
    u64::try_from(Clock.now().wall.as_nanosecond()).unwrap_or_default()
}

/// The fields of a span, in OpenTelemetry's words. Those of the names `otel.…` say something of the span itself.
#[derive(Default)]
struct Fields {
    name: String,
    kind: i32,
    error: Option<String>,
    caller: Option<String>,
    attributes: Vec<otlp::KeyValue>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("otel.name", Value::StringValue(name)) => self.name = name,
            ("otel.kind", Value::StringValue(kind)) => {
                self.kind = match kind.as_str() {
                    "server" => otlp::span::SpanKind::Server.into(),
                    "client" => otlp::span::SpanKind::Client.into(),
                    _ => otlp::span::SpanKind::Internal.into(),
                }
            }
            ("otel.caller", Value::StringValue(caller)) => self.caller = Some(caller),
            ("error", Value::StringValue(error)) => self.error = Some(error),
            (name, value) => {
                let value = Some(otlp::AnyValue { value: Some(value) });
                self.attributes.push(otlp::KeyValue { key: name.to_owned(), value });
            }
        }
    }

    fn into_span(self, span: &mut otlp::Span) {
        span.name = self.name;
        span.kind = if self.kind == 0 { otlp::span::SpanKind::Internal.into() } else { self.kind };
        span.attributes.extend(self.attributes);
        if let Some(message) = self.error {
            span.status = Some(otlp::Status { message, code: otlp::status::StatusCode::Error.into() });
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::StringValue(value.to_owned()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::IntValue(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::BoolValue(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Value::StringValue(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use tracing::{Span, info_span};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn seen(per_million: u32, work: impl FnOnce()) -> Vec<otlp::Span> {
        let (layer, mut spans) = layer(per_million);
        tracing::subscriber::with_default(Registry::default().with(layer), work);
        std::iter::from_fn(|| spans.try_recv().ok()).collect()
    }

    #[test]
    fn a_span_knows_its_parent_and_what_was_said_of_it() {
        let spans = seen(1_000_000, || {
            let outer = info_span!(target: TARGET, "syncPod", k8s.pod.name = "p", k8s.pod.attempt = 3, error = tracing::field::Empty);
            outer.in_scope(|| {
                let inner = info_span!(target: TARGET, "call", otel.name = "Service/Call", otel.kind = "client");
                drop(inner);
            });
            outer.record("error", "no image");
        });
        let [inner, outer] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((inner.name.as_str(), inner.kind), ("Service/Call", otlp::span::SpanKind::Client.into()));
        assert_eq!((&inner.trace_id, &inner.parent_span_id), (&outer.trace_id, &outer.span_id));
        assert_eq!((outer.name.as_str(), outer.parent_span_id.len(), outer.span_id.len()), ("syncPod", 0, 8));
        let named = |key: &str| outer.attributes.iter().find(|it| it.key == key).and_then(|it| it.value.clone()?.value);
        assert_eq!(named("k8s.pod.name"), Some(Value::StringValue("p".into())));
        assert_eq!(named("k8s.pod.attempt"), Some(Value::IntValue(3)));
        assert_eq!(outer.status.as_ref().map(|status| status.message.as_str()), Some("no image"));
        assert!(outer.start_time_unix_nano > 0 && outer.end_time_unix_nano >= inner.end_time_unix_nano);
    }

    #[test]
    fn a_caller_who_is_recorded_is_followed() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let caller = |flags: &str| format!("00-{trace}-b7ad6b7169203331-{flags}");
        let serve = |caller: String| move || drop(info_span!(target: TARGET, "GET", otel.caller = caller));
        let recorded = seen(0, serve(caller("01")));
        assert_eq!(hex::encode(&recorded[0].trace_id), trace);
        assert_eq!(hex::encode(&recorded[0].parent_span_id), "b7ad6b7169203331");
        assert_eq!(recorded[0].attributes, [], "the header is no attribute");
        // Who is not recorded is not followed either, whatever the rate.
        assert_eq!(seen(1_000_000, serve(caller("00"))), []);
        assert_eq!(seen(0, serve(String::new())), []);
        let none: Vec<otlp::Span> = seen(0, || drop(Span::none()));
        assert_eq!(none, []);
    }
}
