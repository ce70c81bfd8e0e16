//! Spans of pods and of the node's API come to an OpenTelemetry collector, by OTLP over gRPC.

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use crate::lab::manifest::pod;
use crate::lab::{Lab, NODE};

/// The collector's side of the protocol.
#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
#[allow(clippy::all, missing_docs, dead_code, unreachable_pub, reason = "generated code")]
mod otlp {
    include!(concat!(env!("OUT_DIR"), "/server/opentelemetry.proto.collector.trace.v1.rs"));
}

use otlp::any_value::Value;
use otlp::trace_service_server::{TraceService, TraceServiceServer};

struct Collector(mpsc::SyncSender<otlp::ResourceSpans>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<otlp::ExportTraceServiceRequest>,
    ) -> Result<Response<otlp::ExportTraceServiceResponse>, Status> {
        for spans in request.into_inner().resource_spans {
            // The test has seen enough where nobody listens.
            let _ = self.0.send(spans);
        }
        Ok(Response::new(otlp::ExportTraceServiceResponse::default()))
    }
}

/// The text that stands for a key.
fn text(attributes: &[otlp::KeyValue], key: &str) -> String {
    match attributes.iter().find(|it| it.key == key).and_then(|it| it.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

#[test]
fn a_collector_gets_the_spans_of_pods_and_of_the_nodes_api() {
    let mut lab = Lab::new();
    let path = lab.dir().join("kubelet.yaml");
    let config = fs::read_to_string(&path).expect("the lab wrote it");
    let tracing = "tracing:\n  endpoint: 127.0.0.1:4317\n  samplingRatePerMillion: 1000000\n";
    fs::write(&path, format!("{config}{tracing}")).expect("the folder is ours");
    let (sender, spans) = mpsc::sync_channel(1024);
    let bind = || {
        lab.enter_network();
        std::net::TcpListener::bind("127.0.0.1:4317").expect("the port is free")
    };
    let listener = std::thread::scope(|all| all.spawn(bind).join().expect("it listens"));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let collector = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            listener.set_nonblocking(true).expect("it is a socket");
            let listener = tokio::net::TcpListener::from_std(listener).expect("it is a socket");
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
            server.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }).await.expect("it serves");
        });
    });
    lab.start_containerd();
    lab.start_control_plane();
    lab.start_agent();
    lab.eventually("the node is ready", Lab::node_is_ready);
    lab.apply(&pod("box").build());
    lab.eventually("it is ready", |lab| lab.ready_pods("box") == 1);
    lab.kubectl(&format!("get --raw /api/v1/nodes/{NODE}/proxy/healthz"));

    let mut seen = Vec::new();
    let of_pod = |seen: &[otlp::Span], name: &str| {
        let is = |span: &&otlp::Span| span.name == name && text(&span.attributes, "k8s.pod.name") == "box";
        seen.iter().find(is).cloned()
    };
    let mut found = None;
    while found.is_none() {
        let Ok(batch) = spans.recv_timeout(Duration::from_secs(20)) else { break };
        let resource = batch.resource.expect("it says who it is").attributes;
        assert_eq!((text(&resource, "service.name"), text(&resource, "host.name")), ("kubelet".into(), NODE.into()));
        seen.extend(batch.scope_spans.into_iter().flat_map(|scope| scope.spans));
        let request = seen.iter().find(|span| span.name == "healthz").cloned();
        found = of_pod(&seen, "start container box").zip(request);
    }
    let (start, request) = found.unwrap_or_else(|| {
        let names: Vec<&str> = seen.iter().map(|span| span.name.as_str()).collect();
        panic!("not all came: {names:?}")
    });
    // What the node did for the pod is one tree: the round, its steps, and what the runtime was asked.
    let same = |span: &&otlp::Span| span.trace_id == start.trace_id;
    let round = seen.iter().filter(same).find(|span| span.span_id == start.parent_span_id).expect("its round");
    assert_eq!((round.name.as_str(), round.parent_span_id.len()), ("syncPod", 0));
    let asked = seen.iter().filter(same).find(|span| span.parent_span_id == start.span_id).expect("the runtime");
    assert_eq!((asked.name.as_str(), asked.kind), ("StartContainer", otlp::span::SpanKind::Client.into()));
    assert!(start.end_time_unix_nano >= asked.end_time_unix_nano && asked.start_time_unix_nano > 0);
    for step in ["run sandbox", "create container box"] {
        assert!(seen.iter().any(|span| span.name.contains(step)), "{step}");
    }
    assert_eq!(
        (text(&request.attributes, "http.method"), request.kind),
        ("GET".into(), otlp::span::SpanKind::Server.into())
    );
    lab.finish();
    drop(stop);
    // The agent's connection ends with the lab.
    drop(collector);
}
