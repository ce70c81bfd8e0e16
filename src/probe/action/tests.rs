//! Every kind of probe against a real server on loopback.

use std::sync::Arc;

use ::http::{HeaderMap, Response};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{
    ContainerPort, EnvVar, ExecAction, GRPCAction, HTTPGetAction, HTTPHeader, TCPSocketAction,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::probe::Ended;

struct Runner(Result<Ended, ExecError>);

#[async_trait]
impl Exec for Runner {
    async fn exec(&self, id: &str, command: Vec<String>, _: Duration) -> Result<Ended, ExecError> {
        assert_eq!((id, command.join(" ").as_str()), ("id", "sh 1 $(B)"));
        self.0.clone()
    }
}

async fn attempt(probe: &Probe, container: &Container, ms: u64) -> Outcome {
    let runner = Runner(Err(ExecError::TimedOut));
    Action::of(probe, container, "id", "127.0.0.1").attempt(Duration::from_millis(ms), &runner).await
}

fn http(port: u16, path: &str) -> HTTPGetAction {
    HTTPGetAction { port: IntOrString::Int(port.into()), path: Some(path.into()), ..HTTPGetAction::default() }
}

async fn get(action: HTTPGetAction) -> Outcome {
    attempt(&Probe { http_get: Some(action), ..Probe::default() }, &Container::default(), 2000).await
}

/// Answers each path with a text, and tells what it was asked.
async fn server(answer: impl Fn(&str) -> String + Send + 'static) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, questions) = mpsc::channel(100);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).await.unwrap_or(0) > 0 {}
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let _ = stream.write_all(answer(&path).as_bytes()).await;
            let _ = asked.send(head).await;
        }
    });
    (port, questions)
}

fn status(code: u16, more: &str) -> String {
    format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\n{more}\r\n")
}

#[tokio::test]
async fn http_status_decides() {
    // A5.8, A5.9
    let (port, _asked) = server(|path| status(path[1..].parse().unwrap(), "")).await;
    for code in [200, 204, 299] {
        assert_eq!(get(http(port, &format!("/{code}"))).await, Outcome::Success);
    }
    assert_eq!(get(http(port, "304")).await, Outcome::Warning("Probe terminated redirects, Response body: ".into()));
    for code in [400, 404, 500, 503] {
        let failed = Outcome::Failure(format!("HTTP probe failed with statuscode: {code}"));
        assert_eq!(get(http(port, &format!("/{code}"))).await, failed);
    }
}

#[tokio::test]
async fn redirects_stay_on_their_host() {
    // A5.8
    let (port, mut asked) = server(|path| match path {
        "/local" => status(302, "Location: /ok?a=b\r\n"),
        "/away" => "HTTP/1.1 301 X\r\nLocation: http://example.com/\r\nContent-Length: 4\r\n\r\ngone".into(),
        "/loop" => status(307, "Location: /loop\r\n"),
        "/ok?a=b" => status(200, ""),
        _ => status(500, ""),
    })
    .await;
    assert_eq!(get(http(port, "/local")).await, Outcome::Success);
    assert_eq!(
        get(http(port, "/away")).await,
        Outcome::Warning("Probe terminated redirects, Response body: gone".into())
    );
    while asked.try_recv().is_ok() {}
    let Outcome::Failure(text) = get(http(port, "/loop")).await else { panic!() };
    assert!(text.ends_with("stopped after 10 redirects"), "{text}");
    let mut requests = 0;
    while asked.try_recv().is_ok() {
        requests += 1;
    }
    assert_eq!(requests, 10);
}

#[tokio::test]
async fn headers_are_those_of_kubernetes_unless_given() {
    // A5.1, A5.8
    let (port, mut asked) = server(|_| status(200, "")).await;
    get(http(port, "")).await;
    let head = asked.recv().await.unwrap().to_lowercase();
    assert!(head.starts_with("get / http/1.1"), "{head}");
    for line in ["user-agent: kube-probe/1.36", "accept: */*", "connection: close", &format!("host: 127.0.0.1:{port}")]
    {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    let headers = [("Host", "web.example"), ("User-Agent", ""), ("Accept", ""), ("X-A", "1"), ("X-A", "2")];
    let headers = headers.map(|(name, value)| HTTPHeader { name: name.into(), value: value.into() });
    get(HTTPGetAction { http_headers: Some(headers.into()), ..http(port, "/") }).await;
    let head = asked.recv().await.unwrap().to_lowercase();
    for line in ["host: web.example", "x-a: 1", "x-a: 2"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    assert!(!head.contains("user-agent") && !head.contains("accept"), "{head}");
}

#[tokio::test]
async fn a_body_may_be_longer_than_what_is_read() {
    // A5.8
    let (port, _asked) = server(|_| {
        let body = "x".repeat(1 << 20);
        format!("HTTP/1.1 300 X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    })
    .await;
    let Outcome::Warning(text) = get(http(port, "/")).await else { panic!() };
    assert_eq!(text.len(), "Probe terminated redirects, Response body: ".len() + (10 << 10));
}

#[tokio::test]
async fn who_does_not_answer_fails() {
    // A5.9, A5.10
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let refused = format!("dial tcp 127.0.0.1:{free}: connect: connection refused");
    assert_eq!(get(http(free, "/x")).await, Outcome::Failure(format!("Get \"http://127.0.0.1:{free}/x\": {refused}")));
    let tcp = |port: u16| TCPSocketAction { port: IntOrString::Int(port.into()), ..TCPSocketAction::default() };
    let probe = |port| Probe { tcp_socket: Some(tcp(port)), ..Probe::default() };
    assert_eq!(attempt(&probe(free), &Container::default(), 2000).await, Outcome::Failure(refused));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    assert_eq!(attempt(&probe(port), &Container::default(), 2000).await, Outcome::Success);
    let hangs = Probe { http_get: Some(http(port, "/")), ..Probe::default() };
    let Outcome::Failure(text) = attempt(&hangs, &Container::default(), 50).await else { panic!() };
    assert!(text.contains("context deadline exceeded"), "{text}");
}

#[tokio::test]
async fn any_certificate_is_good() {
    // A5.8
    let key = rcgen::generate_simple_self_signed(vec!["nobody.example".into()]).unwrap();
    for protocols in [vec![], vec![b"h2".to_vec()]] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], key.signing_key.serialize_der().try_into().unwrap())
            .unwrap();
        config.alpn_protocols = protocols;
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            let serve = service_fn(|_| async { Ok::<_, hyper::Error>(Response::new(String::from("well"))) });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), serve).await;
        });
        let action = HTTPGetAction { scheme: Some("HTTPS".into()), ..http(port, "/") };
        assert_eq!(get(action).await, Outcome::Success);
    }
    let (port, _asked) = server(|_| status(400, "")).await;
    let Outcome::Failure(text) = get(HTTPGetAction { scheme: Some("HTTPS".into()), ..http(port, "/") }).await else {
        panic!()
    };
    assert!(text.ends_with("http: server gave HTTP response to HTTPS client"), "{text}");
}

/// A health server that knows two services.
async fn health() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = service_fn(|request: ::http::Request<hyper::body::Incoming>| async move {
                use http_body_util::BodyExt;
                let agent = request.headers()["user-agent"].to_str().unwrap().to_owned();
                assert!(agent.starts_with("kube-probe/1.36"), "{agent}");
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let asked = request.into_body().collect().await?.to_bytes();
                let (code, state) = match &asked[5..] {
                    b"" => ("0", Some(1)),
                    b"\x0a\x03bad" => ("0", Some(2)),
                    b"\x0a\x04none" => ("12", None),
                    _ => ("5", None),
                };
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", code.parse().unwrap());
                let data = state.map(|s| Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, s])));
                let frames = data.into_iter().chain([Frame::trailers(trailers)]).map(Ok::<_, hyper::Error>);
                Ok::<_, hyper::Error>(Response::new(StreamBody::new(futures::stream::iter(frames))))
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { builder.serve_connection(TokioIo::new(stream), serve).await.map_err(drop) });
        }
    });
    port
}

#[tokio::test]
async fn grpc_servers_are_asked_for_their_health() {
    // A5.1, A5.10
    let port = health().await;
    let ask = |service: Option<&str>, port: u16| {
        let grpc = GRPCAction { port: port.into(), service: service.map(str::to_owned) };
        let probe = Probe { grpc: Some(grpc), ..Probe::default() };
        async move { attempt(&probe, &Container::default(), 2000).await }
    };
    assert_eq!(ask(None, port).await, Outcome::Success);
    assert_eq!(
        ask(Some("bad"), port).await,
        Outcome::Failure("service unhealthy (responded with \"NOT_SERVING\")".into())
    );
    let Outcome::Failure(text) = ask(Some("none"), port).await else { panic!() };
    assert!(text.contains("does not implement the grpc health protocol"), "{text}");
    let Outcome::Failure(text) = ask(Some("other"), port).await else { panic!() };
    assert!(text.contains("code = 5"), "{text}");
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let grpc = GRPCAction { port: silent.local_addr().unwrap().port().into(), service: None };
    let probe = Probe { grpc: Some(grpc), ..Probe::default() };
    let Outcome::Failure(text) = attempt(&probe, &Container::default(), 100).await else { panic!() };
    assert!(text.starts_with("timeout: "), "{text}");
}

#[tokio::test]
async fn commands_end_well_or_not() {
    // A5.11
    let exec = ExecAction { command: Some(vec!["sh".into(), "$(A)".into(), "$(B)".into()]) };
    let probe = Probe { exec: Some(exec), ..Probe::default() };
    let env = vec![
        EnvVar { name: "A".into(), value: Some("1".into()), value_from: None },
        EnvVar { name: "B".into(), value: None, value_from: Some(Default::default()) },
    ];
    let container = Container { env: Some(env), ..Container::default() };
    let action = Action::of(&probe, &container, "id", "");
    let ended = |exit_code, output: &str| Ok(Ended { exit_code, output: output.into() });
    let long = "x".repeat(20 << 10);
    for (result, expected) in [
        (ended(0, "fine"), Outcome::Success),
        (ended(3, "why"), Outcome::Failure("why".into())),
        (ended(1, &long), Outcome::Failure(long[..10 << 10].into())),
        (Err(ExecError::TimedOut), Outcome::Failure("command timed out: \"sh 1 $(B)\" timed out after 1s".into())),
        (Err(ExecError::Failed("gone".into())), Outcome::Unknown("gone".into())),
    ] {
        assert_eq!(action.attempt(Duration::from_secs(1), &Runner(result)).await, expected);
    }
}

#[test]
fn ports_have_names_or_numbers() {
    // A5.8
    let ports = vec![ContainerPort { name: Some("web".into()), container_port: 8080, ..ContainerPort::default() }];
    let container = Container { ports: Some(ports), ..Container::default() };
    let named = |name: &str| resolve_port(&IntOrString::String(name.into()), &container);
    assert_eq!((named("web"), named("81")), (Ok(8080), Ok(81)));
    assert_eq!(named("x"), Err("port x not found".into()));
    assert_eq!(resolve_port(&IntOrString::Int(0), &container), Err("invalid port number: 0".into()));
}

#[tokio::test]
async fn a_name_may_stand_for_this_machine() {
    // A5.8
    let (port, mut asked) = server(|_| status(200, "")).await;
    assert_eq!(get(HTTPGetAction { host: Some("localhost".into()), ..http(port, "/") }).await, Outcome::Success);
    assert!(asked.recv().await.unwrap().to_lowercase().contains(&format!("host: localhost:{port}")));
}
