//! Sends ended spans to a collector: OTLP over gRPC without TLS, in batches, and never so that anything waits for it.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tracing::{debug, warn};

use self::otlp::trace_service_client::TraceServiceClient;

/// The messages, and a client of collectors.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    missing_debug_implementations,
    reason = "written by tonic's compiler"
)]
pub(in crate::cli) mod otlp {
    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
}

/// Where a collector listens unless the configuration says otherwise.
const DEFAULT: &str = "localhost:4317";
/// The largest batch, and how long a span waits for others.
const BATCH: (usize, Duration) = (512, Duration::from_secs(5));
/// For one batch.
const ANSWER: Duration = Duration::from_secs(10);
/// For what is left at the end.
const LAST: Duration = Duration::from_secs(1);

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Destination {
    /// `host:port`.
    Network(String),
    /// A socket in the file system.
    Path(String),
    /// One that has only a name.
    Name(String),
}

/// The operator named no place that spans could go to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("tracing.endpoint: {0:?} is no place of a collector; say host:port, unix:///path or unix-abstract:name")]
pub(in crate::cli) struct DestinationError(String);

impl Destination {
    /// Reads `tracing.endpoint`, a target in gRPC's words.
    pub(in crate::cli) fn parse(endpoint: &str) -> Result<Self, DestinationError> {
        let endpoint = if endpoint.is_empty() { DEFAULT } else { endpoint };
        let odd = || DestinationError(endpoint.to_owned());
        if let Some(name) = endpoint.strip_prefix("unix-abstract:") {
            let name = name.trim_start_matches("//");
            return if name.is_empty() { Err(odd()) } else { Ok(Self::Name(name.to_owned())) };
        }
        if let Some(path) = endpoint.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(odd()) } else { Ok(Self::Path(path.to_owned())) };
        }
        let host = endpoint.strip_prefix("dns:").unwrap_or(endpoint).trim_start_matches('/');
        let uri: Uri = format!("http://{host}").parse().map_err(|_| odd())?;
        let is_plain = uri.path() == "/" && uri.query().is_none() && !host.contains('@');
        match uri.authority().filter(|authority| is_plain && authority.port_u16().is_some()) {
            Some(authority) => Ok(Self::Network(authority.to_string())),
            None => Err(odd()),
        }
    }

    /// A connection that is made when it is first needed, and again when it breaks.
    fn channel(self) -> Channel {
        let endpoint = |authority: String| {
            let uri = Uri::builder().scheme("http").authority(authority).path_and_query("/").build();
            Endpoint::from(uri.expect("the authority was parsed before")).timeout(ANSWER)
        };
        let to_unix = |connect: fn(&str) -> io::Result<std::os::unix::net::UnixStream>, place: String| {
            endpoint("localhost".to_owned()).connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let place = place.clone();
                async move {
                    let stream = connect(&place)?;
                    stream.set_nonblocking(true)?;
                    UnixStream::from_std(stream).map(TokioIo::new)
                }
            }))
        };
        match self {
            Self::Network(authority) => endpoint(authority).connect_lazy(),
            Self::Path(path) => to_unix(|path| std::os::unix::net::UnixStream::connect(path), path),
            Self::Name(name) => to_unix(by_name, name),
        }
    }
}

fn by_name(name: &str) -> io::Result<std::os::unix::net::UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    std::os::unix::net::UnixStream::connect_addr(&address)
}

/// Takes what ended and sends it.
pub(in crate::cli) struct Exporter {
    pub(in crate::cli) spans: mpsc::Receiver<otlp::Span>,
    pub(in crate::cli) destination: Destination,
    /// The node's name.
    pub(in crate::cli) node: String,
}

impl Exporter {
    /// Runs until it is told to stop; then sends what is left.
    pub(in crate::cli) async fn run(mut self, stop: CancellationToken) {
        let mut client = TraceServiceClient::new(self.destination.clone().channel());
        let mut is_heard = true;
        loop {
            let batch = tokio::select! {
                batch = collect(&mut self.spans) => batch,
                () = stop.cancelled() => break,
            };
            let sent = client.export(self.request(batch)).await;
            match sent {
                Ok(answer) => {
                    is_heard = true;
                    let refused = answer.into_inner().partial_success.filter(|partial| partial.rejected_spans > 0);
                    if let Some(refused) = refused {
                        debug!(
                            spans = refused.rejected_spans,
                            why = refused.error_message,
                            "the collector took not all spans"
                        );
                    }
                }
                // Once, and again after it had been there.
                Err(error) if is_heard => {
                    is_heard = false;
                    warn!(destination = ?self.destination, error = error.message(), "spans are lost: the collector does not take them");
                }
                Err(_) => {}
            }
        }
        let mut rest = Vec::new();
        while let Ok(span) = self.spans.try_recv() {
            rest.push(span);
        }
        if !rest.is_empty() && timeout(LAST, client.export(self.request(rest))).await.is_err() {
            debug!("the last spans are lost");
        }
    }

    fn request(&self, spans: Vec<otlp::Span>) -> otlp::ExportTraceServiceRequest {
        let attribute = |key: &str, value: &str| {
            let value = otlp::any_value::Value::StringValue(value.to_owned());
            otlp::KeyValue { key: key.to_owned(), value: Some(otlp::AnyValue { value: Some(value) }) }
        };
        // Dashboards look for kubelet.
        let attributes = vec![
            attribute("service.name", "kubelet"),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
            attribute("host.name", &self.node),
        ];
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let scope = Some(otlp::InstrumentationScope { name: "stoker".to_owned(), version });
        let resource = Some(otlp::Resource { attributes });
        let scope_spans = vec![otlp::ScopeSpans { scope, spans }];
        otlp::ExportTraceServiceRequest { resource_spans: vec![otlp::ResourceSpans { resource, scope_spans }] }
    }
}

/// The next batch: it begins with a span, and ends when it is full or its first one has waited long enough.
async fn collect(spans: &mut mpsc::Receiver<otlp::Span>) -> Vec<otlp::Span> {
    let mut batch = Vec::new();
    if spans.recv_many(&mut batch, BATCH.0).await == 0 {
        // Nobody makes spans any more.
        return std::future::pending().await;
    }
    let late = sleep(BATCH.1);
    tokio::pin!(late);
    while batch.len() < BATCH.0 {
        let room = BATCH.0 - batch.len();
        tokio::select! {
            more = spans.recv_many(&mut batch, room) => if more == 0 { break },
            () = &mut late => break,
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_said_in_grpcs_words() {
        let network = |text: &str| Ok(Destination::Network(text.to_owned()));
        for (text, expected) in [
            ("", network("localhost:4317")),
            ("10.0.0.1:4317", network("10.0.0.1:4317")),
            ("[::1]:4317", network("[::1]:4317")),
            ("dns:///collector.obs:4317", network("collector.obs:4317")),
            ("unix:///run/otel.sock", Ok(Destination::Path("/run/otel.sock".into()))),
            ("unix-abstract:otel", Ok(Destination::Name("otel".into()))),
        ] {
            assert_eq!(Destination::parse(text), expected, "{text:?}");
        }
        for odd in ["collector", "http://collector:4317", "a:b:c", "unix:", "user@host:1", "host:1/path"] {
            assert_eq!(Destination::parse(odd), Err(DestinationError(odd.to_owned())), "{odd}");
        }
    }
}
