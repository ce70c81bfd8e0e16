//! The node's HTTPS API over TLS, with pods that really run.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use stoker::cgroup::{CgroupConfig, Cgroups};
use stoker::runtime::cri;
use stoker::server::{Handles, Server, ServerConfig, ServingCertificate, TlsRules};
use stoker_model::handle::{
    AgentState, ApiError, Authorizer, DiskMeter, DiskUsage, PodDirectory, ProbeMetrics, TokenReviewer, UserInfo,
};
use stoker_model::pod::{LocalPod, PodUid};
use stoker_model::streams::spdy::{Event, Reader, Writer};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::lab::Lab;

/// A node whose API is served, for the pods that the test says it has.
struct Node {
    lab: Lab,
    pods: Arc<Pods>,
    address: std::net::SocketAddr,
    healthz: std::net::SocketAddr,
    read_only: std::net::SocketAddr,
    alive: Arc<AtomicBool>,
    ca: Issuer<'static, KeyPair>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Pods(Mutex<Vec<Arc<Pod>>>);

impl PodDirectory for Pods {
    fn pods(&self) -> Vec<LocalPod> {
        self.0.lock().unwrap().iter().cloned().map(LocalPod::from).collect()
    }

    fn pod(&self, namespace: &str, name: &str, _: Option<&PodUid>) -> Option<LocalPod> {
        let is = |pod: &&LocalPod| {
            let metadata = &pod.pod().metadata;
            metadata.name.as_deref() == Some(name) && metadata.namespace.as_deref() == Some(namespace)
        };
        self.pods().iter().find(is).cloned()
    }
}

/// Has one count.
struct Probes;

impl ProbeMetrics for Probes {
    fn probe_metrics(&self) -> String {
        "prober_probe_total 7\n".to_owned()
    }
}

/// Comes round, or does not; logs at level 4 at most.
struct Alive(Arc<AtomicBool>);

impl AgentState for Alive {
    fn is_alive(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set_verbosity(&self, level: i64) -> Result<(), String> {
        if level <= 4 { Ok(()) } else { Err("too much".into()) }
    }
}

/// Knows one token.
struct OneToken;

#[async_trait]
impl TokenReviewer for OneToken {
    async fn who(&self, token: &str) -> Result<Option<UserInfo>, ApiError> {
        let user = UserInfo { name: "prometheus".into(), groups: vec!["readers".into()] };
        Ok((token == "good").then_some(user))
    }
}

/// Lets the group `readers` get, and `admins` everything.
struct Readers;

#[async_trait]
impl Authorizer for Readers {
    async fn may(&self, user: &UserInfo, verb: &str, subresource: &str) -> Result<bool, ApiError> {
        let is_in = |wanted: &str| user.groups.iter().any(|group| group == wanted);
        Ok(is_in("admins") || is_in("readers") && verb == "get" && subresource == "proxy")
    }
}

/// Nothing is mounted.
struct NoDisks;

impl DiskMeter for NoDisks {
    fn volumes(&self, _pod: &Pod) -> BTreeMap<String, DiskUsage> {
        BTreeMap::new()
    }

    fn tree(&self, _path: &Path) -> DiskUsage {
        DiskUsage::default()
    }
}

impl Node {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let lab = Lab::with_busybox().await;
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(lab.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::create_dir_all(lab.path().join("pki")).unwrap();
        write_serving(lab.path());
        let pods = Arc::new(Pods::default());
        let alive = Arc::new(AtomicBool::new(true));
        let mut config = ServerConfig {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            healthz: Some((Ipv4Addr::LOCALHOST, 0).into()),
            certificate: ServingCertificate::Files {
                certificate: lab.path().join("pki/kubelet.crt"),
                key: lab.path().join("pki/kubelet.key"),
            },
            client_ca: Some(lab.path().join("ca.crt")),
            tls: TlsRules::default(),
            read_only: Some((Ipv4Addr::LOCALHOST, 0).into()),
            system_log_query: true,
            debug_flags: true,
            anonymous: false,
            decision_ttl: (Duration::from_secs(300), Duration::from_secs(30)),
            debugging_handlers: true,
            node: "node".into(),
            kubelet_configuration: json!({ "kind": "KubeletConfiguration" }),
            root_dir: lab.path().into(),
            pod_logs_dir: lab.path().join("logs"),
            volume_stats_every: Duration::from_secs(60),
            system_logs_dir: Some(lab.path().join("logs")),
            token_ttl: Duration::from_secs(120),
        };
        change(&mut config);
        let handles = Handles {
            pods: pods.clone(),
            authorizer: Arc::new(Readers),
            tokens: Some(Arc::new(OneToken)),
            usage: Arc::new(Cgroups::open(CgroupConfig::default()).unwrap()),
            disks: Arc::new(NoDisks),
            probes: Arc::new(Probes),
            agent: Arc::new(Alive(alive.clone())),
            runtime: lab.runtime.clone(),
        };
        let server = Server::bind(config, handles).await.unwrap();
        let (address, healthz) = (server.address().unwrap(), server.healthz_address().unwrap());
        let read_only = server.read_only_address().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(server.run(stop.clone()));
        Self { lab, pods, alive, address, healthz, read_only, ca: Issuer::new(params, key), stop, served }
    }

    fn has(&self, pod: serde_json::Value) {
        self.pods.0.lock().unwrap().push(Arc::new(serde_json::from_value(pod).unwrap()));
    }

    /// Runs a pod of one container, `main`.
    async fn runs(&self, name: &str, script: &str) -> String {
        let (_, container, _) = self.lab.run(name, script).await;
        self.has(json!({
            "metadata": { "name": name, "namespace": "default", "uid": name },
            "spec": { "containers": [{ "name": "main" }] },
            "status": { "containerStatuses": [{
                "name": "main", "containerID": format!("containerd://{container}"), "state": { "running": {} },
                "image": "", "imageID": "", "ready": true, "restartCount": 0,
            }] },
        }));
        container
    }

    /// A client with a certificate of `ca` that says so.
    fn certificate(ca: &Issuer<'_, KeyPair>, name: &str, group: &str) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
    }

    async fn request(
        &self,
        method: &str,
        path: &str,
        certificate: Option<(String, String)>,
    ) -> Result<http::Response<Incoming>, String> {
        exchange(self.connect(certificate).await?, method, path).await
    }

    /// A TLS connection to the certificate that is in the files now.
    async fn connect(&self, certificate: Option<(String, String)>) -> Result<TlsStream<TcpStream>, String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.lab.path().join("pki/kubelet.crt")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let tls = match certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(|error| error.to_string())
    }

    /// The CAs of clients that a handshake names, as they are encoded.
    async fn advertised(&self) -> Vec<Vec<u8>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.lab.path().join("pki/kubelet.crt")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let listener = Arc::new(Listener::default());
        let tls = builder.with_root_certificates(roots).with_client_cert_resolver(listener.clone());
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap();
        listener.0.lock().unwrap().clone()
    }

    /// Status and body of a GET by a reader.
    async fn get(&self, path: &str) -> (StatusCode, String) {
        let reader = Self::certificate(&self.ca, "apiserver", "readers");
        read(self.request("GET", path, Some(reader)).await.unwrap()).await
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.served).await.expect("it stops").unwrap();
        self.lab.stop().await;
    }
}

/// Hears which CAs a server names, and has no certificate.
#[derive(Debug, Default)]
struct Listener(Mutex<Vec<Vec<u8>>>);

impl rustls::client::ResolvesClientCert for Listener {
    fn resolve(&self, cas: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        *self.0.lock().unwrap() = cas.iter().map(|ca| ca.to_vec()).collect();
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Another serving certificate in the files.
fn write_serving(directory: &std::path::Path) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(directory.join("pki/kubelet.key"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(directory.join("pki/kubelet.crt"), made.cert.pem()).unwrap();
}

/// Puts a text; who asks is an admin.
async fn put(node: &Node, path: &str, text: &'static str) -> (StatusCode, String) {
    let admin = Node::certificate(&node.ca, "admin", "admins");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(node.connect(Some(admin)).await.unwrap())).await.unwrap();
    tokio::spawn(connection);
    let body = http_body_util::Full::new(Bytes::from_static(text.as_bytes()));
    let request = Request::builder().method("PUT").uri(path).header("host", "node").body(body).unwrap();
    read(sender.send_request(request).await.unwrap()).await
}

async fn exchange<S>(stream: S, method: &str, path: &str) -> Result<http::Response<Incoming>, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request =
        Request::builder().method(method).uri(path).header("host", "node").body(Empty::<Bytes>::new()).unwrap();
    sender.send_request(request).await.map_err(|error| error.to_string())
}

async fn read(response: http::Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn only_who_has_a_certificate_and_a_permission_gets_an_answer() {
    let node = Node::start().await;
    let status = |response: Result<http::Response<Incoming>, String>| async { read(response.unwrap()).await };

    // A18.16, the part about certificates.
    for path in ["/pods", "/healthz", "/nothing"] {
        let answer = status(node.request("GET", path, None).await).await;
        assert_eq!(answer, (StatusCode::UNAUTHORIZED, "Unauthorized".into()), "{path}");
    }
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let stranger = Issuer::new(params, KeyPair::generate().unwrap());
    let forged = Node::certificate(&stranger, "apiserver", "readers");
    node.request("GET", "/pods", Some(forged)).await.expect_err("of another CA");

    // A18.17
    let outsider = Node::certificate(&node.ca, "eve", "others");
    let (code, text) = status(node.request("GET", "/pods", Some(outsider)).await).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(text, "Forbidden (user=eve, verb=get, resource=nodes, subresource(s)=[pods proxy])");

    assert_eq!(node.get("/healthz").await, (StatusCode::OK, "ok".into()));
    // A18.19
    let open = exchange(TcpStream::connect(node.healthz).await.unwrap(), "GET", "/healthz").await;
    assert_eq!(status(open).await, (StatusCode::OK, "ok".into()));
    let open = exchange(TcpStream::connect(node.healthz).await.unwrap(), "GET", "/pods").await;
    assert_eq!(status(open).await.0, StatusCode::NOT_FOUND);

    for path in ["/", "/metrics-of-yesterday", "/containerLogs/default/../main", "/containerLogs/default/%2e%2e/main"] {
        assert_eq!(node.get(path).await, (StatusCode::NOT_FOUND, "404: Page Not Found".into()), "{path}");
    }
    node.stop().await;
}

#[tokio::test]
async fn pods_are_listed() {
    // A18.2
    let node = Node::start().await;
    node.has(json!({ "metadata": { "name": "a", "namespace": "default" }, "spec": { "containers": [] } }));
    let (code, text) = node.get("/pods").await;
    assert_eq!(code, StatusCode::OK);
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("PodList"), &json!("v1")));
    assert_eq!(list["items"][0]["metadata"]["name"], json!("a"));
    for path in ["/pods", "/containerLogs/default/a/c"] {
        let admin = Node::certificate(&node.ca, "admin", "admins");
        let posted = node.request("POST", path, Some(admin)).await.unwrap();
        assert_eq!(
            (posted.status(), &posted.headers()["allow"]),
            (StatusCode::METHOD_NOT_ALLOWED, &"GET".parse().unwrap())
        );
    }
    node.stop().await;
}

#[tokio::test]
async fn logs_of_a_real_container() {
    let node = Node::start().await;
    let long = "x".repeat(40_000);
    let id = node
        .runs("p", &format!("echo one; sleep 0.2; echo two >&2; sleep 1.5; echo three; printf {long}; echo; sleep 60"))
        .await;
    let path = "/containerLogs/default/p/main";

    // A18.7: what a follower gets, he gets when it is written.
    let reader = Node::certificate(&node.ca, "apiserver", "readers");
    let mut followed = node.request("GET", &format!("{path}?follow=true"), Some(reader)).await.unwrap();
    assert_eq!(followed.headers()["content-type"], "text/plain");
    let mut seen = Vec::new();
    while seen.len() < "one\ntwo\n".len() {
        let frame = tokio::time::timeout(Duration::from_secs(1), followed.body_mut().frame()).await;
        seen.extend(frame.expect("before the pause ends").unwrap().unwrap().into_data().unwrap());
    }
    while seen.len() < 40_000 {
        seen.extend(followed.body_mut().frame().await.unwrap().unwrap().into_data().unwrap());
    }
    // A20.2: containerd has split the long line.
    assert_eq!(String::from_utf8(seen).unwrap(), format!("one\ntwo\nthree\n{long}\n"));
    node.lab.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    // A20.4
    let end = tokio::time::timeout(Duration::from_secs(1), followed.body_mut().frame()).await;
    assert!(end.expect("it ends with the container").is_none());

    let get = async |query: &str| node.get(&format!("{path}?{query}")).await;
    assert_eq!(get("limitBytes=6").await, (StatusCode::OK, "one\ntw".into()));
    assert_eq!(get("tailLines=0").await, (StatusCode::OK, String::new()));
    assert_eq!(get("tailLines=1&limitBytes=3").await.1, "xxx");
    let (_, stamped) = get("timestamps=true&limitBytes=35").await;
    let (time, rest) = stamped.split_once(' ').unwrap();
    assert_eq!((time.parse::<jiff::Timestamp>().is_ok(), rest), (true, "one\n"), "{stamped}");
    assert_eq!(get("sinceTime=2100-01-01T00%3A00%3A00Z").await.1, "");

    // A20.6, A20.7, A20.8; upstream's `cannot be found` is of a pod that goes between its two looks, and here there is one.
    assert_eq!(get("tailLines=-1").await.0, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(get("sinceTime=never").await.0, StatusCode::BAD_REQUEST);
    let previous = "previous terminated container \"main\" in pod \"p\" not found";
    assert_eq!(get("previous=true").await, (StatusCode::BAD_REQUEST, previous.into()));
    assert_eq!(
        node.get("/containerLogs/default/q/main").await,
        (StatusCode::NOT_FOUND, "pod \"q\" does not exist".into())
    );
    let unknown = "container \"other\" not found in pod \"p\"";
    assert_eq!(node.get("/containerLogs/default/p/other").await, (StatusCode::NOT_FOUND, unknown.into()));
    let reader = Node::certificate(&node.ca, "apiserver", "readers");
    let posted = node.request("POST", path, Some(reader)).await.unwrap();
    assert_eq!(posted.status(), StatusCode::FORBIDDEN, "readers may only get");
    node.stop().await;
}

#[tokio::test]
async fn who_never_finishes_a_request_is_no_trouble_to_others() {
    let node = Node::start().await;
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(TcpStream::connect(node.address).await.unwrap());
    }
    // Without a certificate there is room for 256, and the others are sent away; who has one always gets in.
    let mut strangers = Vec::new();
    for _ in 0..300 {
        strangers.push(node.connect(None).await.unwrap());
    }
    assert_eq!(node.get("/healthz").await.0, StatusCode::OK);
    let mut kept = 0;
    for stranger in strangers {
        let answer = exchange(stranger, "GET", "/pods").await;
        kept += usize::from(answer.is_ok_and(|answer| answer.status() == StatusCode::UNAUTHORIZED));
    }
    assert_eq!(kept, 256);
    node.stop().await;
    drop(held);
}

#[tokio::test]
async fn what_is_for_debugging_can_be_switched_off() {
    // A18.18
    let node = Node::start_with(|config| config.debugging_handlers = false).await;
    let admin = || Some(Node::certificate(&node.ca, "admin", "admins"));
    for path in [
        "/run/ns/p/c?cmd=id",
        "/exec/ns/p/c?command=id&output=1",
        "/attach/ns/p/c?output=1",
        "/portForward/ns/p",
        "/containerLogs/ns/p/c",
        "/logs/",
        "/logs/messages",
        "/runningpods/",
        "/debug/pprof/",
        "/debug/pprof/heap",
    ] {
        for method in ["GET", "POST"] {
            let answer = read(node.request(method, path, admin()).await.unwrap()).await;
            let expected = (StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n".to_owned());
            assert_eq!(answer, expected, "{method} {path}");
        }
        // And it tells nothing to whom it would tell nothing otherwise.
        let nobody = node.request("GET", path, None).await.unwrap();
        assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    for path in ["/configz", "/flagz", "/statusz", "/debug/flags/v"] {
        let answer = node.request("GET", path, admin()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
    }
    for path in ["/pods", "/healthz", "/metrics", "/metrics/resource", "/stats/summary"] {
        let answer = node.request("GET", path, admin()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }
    node.stop().await;
}

#[tokio::test]
async fn what_needs_no_credentials_is_on_the_read_only_port_alone() {
    // A18.4, A18.19, A5.13
    let node = Node::start().await;
    let open = async |path: &str| {
        read(exchange(TcpStream::connect(node.read_only).await.unwrap(), "GET", path).await.unwrap()).await
    };
    for path in [
        "/healthz",
        "/pods",
        "/metrics",
        "/metrics/resource",
        "/metrics/cadvisor",
        "/metrics/probes",
        "/metrics/slis",
        "/stats/summary",
    ] {
        assert_eq!(open(path).await.0, StatusCode::OK, "{path}");
    }
    assert_eq!(open("/metrics/probes").await.1, "prober_probe_total 7\n");
    for path in [
        "/containerLogs/default/p/main",
        "/exec/default/p/main?command=id",
        "/logs/",
        "/configz",
        "/runningpods/",
        "/flagz",
    ] {
        assert_eq!(open(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    let posted = exchange(TcpStream::connect(node.read_only).await.unwrap(), "POST", "/pods").await.unwrap();
    assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);

    // A18.1
    node.alive.store(false, Ordering::Relaxed);
    assert_eq!(node.get("/healthz").await.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(node.get("/healthz/syncloop").await.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(node.get("/healthz/ping").await, (StatusCode::OK, "ok".into()));
    node.alive.store(true, Ordering::Relaxed);
    let verbose = "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n";
    assert_eq!(node.get("/healthz?verbose").await, (StatusCode::OK, verbose.into()));
    assert_eq!(node.get("/healthz/other").await.0, StatusCode::NOT_FOUND);

    // A18.14: a program that is not Go's has no profiles of its runtime, and says what to use.
    let (status, text) = node.get("/debug/pprof/profile?seconds=1").await;
    assert_eq!((status, text.contains("perf record")), (StatusCode::NOT_IMPLEMENTED, true), "{text}");
    let level = put(&node, "/debug/flags/v", "4").await;
    assert_eq!(level, (StatusCode::OK, "successfully set klog.logging.verbosity to 4".into()));
    assert_eq!(put(&node, "/debug/flags/v", "much").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(put(&node, "/debug/flags/v", "12345678901234567890").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(put(&node, "/debug/flags/v", "5").await.0, StatusCode::INTERNAL_SERVER_ERROR);

    let get = async |path: &str| {
        read(node.request("GET", path, Some(Node::certificate(&node.ca, "admin", "admins"))).await.unwrap()).await
    };
    // A18.6: a log file of the service's name, where the journal does not know it; and never what lies elsewhere.
    std::fs::create_dir_all(node.lab.path().join("logs/other")).unwrap();
    std::fs::write(node.lab.path().join("logs/other/other.log"), "from a file\n").unwrap();
    std::fs::write(node.lab.path().join("secret"), "secret").unwrap();
    assert_eq!(get("/logs/?query=other").await, (StatusCode::OK, "from a file\n".into()));
    assert_eq!(get("/logs/?query=/other/other.log").await, (StatusCode::OK, "from a file\n".into()));
    assert_eq!(get("/logs/?query=other&tailLines=x").await.0, StatusCode::BAD_REQUEST);
    for path in [
        "/logs/?query=../secret",
        "/logs/?query=/../secret",
        "/logs/../secret",
        "/logs/%2e%2e/secret",
        "/logs/other/../../secret",
    ] {
        let (status, text) = get(path).await;
        assert!(status == StatusCode::NOT_FOUND && !text.contains("secret"), "{path}: {status} {text}");
    }
    assert_eq!(get("/logs/other?query=other").await.0, StatusCode::NOT_ACCEPTABLE);
    node.stop().await;
}

#[tokio::test]
async fn files_that_change_on_disk_are_served_without_a_restart() {
    // A17.3, A17.5
    let node = Node::start().await;
    assert_eq!(node.get("/healthz").await.0, StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    write_serving(node.lab.path());
    // The client trusts only what is in the file now, and dials by address.
    assert_eq!(node.get("/healthz").await.0, StatusCode::OK);

    // Another CA of clients: its clients come in, those of the former do not.
    let old = Node::certificate(&node.ca, "apiserver", "readers");
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "another");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    std::fs::write(node.lab.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    let other = Issuer::new(params, key);
    let new = Node::certificate(&other, "apiserver", "readers");
    assert_eq!(node.request("GET", "/healthz", Some(new.clone())).await.unwrap().status(), StatusCode::OK);
    assert!(node.request("GET", "/healthz", Some(old)).await.is_err());
    let cas = node.advertised().await;
    let names = |ca: &Vec<u8>| ca.windows(7).any(|part| part == b"another");
    assert!(cas.len() == 1 && cas.iter().all(names), "{cas:?}");

    // Half a file changes nothing.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    std::fs::write(node.lab.path().join("ca.crt"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    assert_eq!(node.request("GET", "/healthz", Some(new)).await.unwrap().status(), StatusCode::OK);
    node.stop().await;
}

#[expect(clippy::disallowed_methods, reason = "a test measures")]
#[tokio::test]
async fn the_address_of_a_stream_holds_once() {
    // A19.8
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let lab = Lab::with_busybox().await;
    let (_, container, _) = lab.run("p", "sleep 100").await;
    let ask = async || {
        let exec = cri::ExecRequest {
            container_id: container.clone(),
            cmd: vec!["true".into()],
            stdout: true,
            ..Default::default()
        };
        lab.runtime.exec(exec).await.unwrap()
    };
    let first_line = async |url: &str| {
        let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let mut stream = TcpStream::connect(host).await.unwrap();
        let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
        let request = format!("POST /{path} HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let (late, asked) = (ask().await, std::time::Instant::now());
    let url = ask().await;
    // It is reached from this host.
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    assert_eq!(url.rsplit('/').next().unwrap().len(), 8, "{url}");
    assert_eq!(first_line(&url).await, "HTTP/1.1 101");
    assert_eq!(first_line(&url).await, "HTTP/1.1 404");
    let other = ask().await;
    assert_ne!(other, url);
    assert_eq!(first_line(&other).await, "HTTP/1.1 101");
    // And for a minute.
    tokio::time::sleep(Duration::from_secs(62).saturating_sub(asked.elapsed())).await;
    assert_eq!(first_line(&late).await, "HTTP/1.1 404");
    lab.stop().await;
}

#[expect(clippy::disallowed_methods, reason = "a test measures")]
#[tokio::test]
async fn the_protocol_of_a_stream_is_negotiated() {
    // A19.1
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let node = Node::start().await;
    node.runs("p", "sleep 100").await;
    let ask = async |offers: &[&str]| {
        let admin = Node::certificate(&node.ca, "admin", "admins");
        let mut stream = node.connect(Some(admin)).await.unwrap();
        let offers: String = offers.iter().map(|offer| format!("X-Stream-Protocol-Version: {offer}\r\n")).collect();
        let head = format!(
            "POST /exec/default/p/main?output=1&command=true HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\n\
             Upgrade: SPDY/3.1\r\n{offers}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        (stream, String::from_utf8(answer).unwrap().to_lowercase())
    };
    let began = std::time::Instant::now();
    let (mut silent, answer) = ask(&["v4.channel.k8s.io"]).await;
    assert!(answer.starts_with("http/1.1 101") && answer.contains("upgrade: spdy/3.1\r\n"), "{answer}");
    // The client's first that the runtime knows; it does not know the newest.
    for (offers, chosen) in [
        (&["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"][..], "v4.channel.k8s.io"),
        (&["v5.channel.k8s.io, v3.channel.k8s.io"], "v3.channel.k8s.io"),
        (&["v2.channel.k8s.io"], "v2.channel.k8s.io"),
        (&["channel.k8s.io"], "channel.k8s.io"),
    ] {
        let (_, answer) = ask(offers).await;
        assert!(answer.starts_with("http/1.1 101"), "{offers:?}: {answer}");
        assert!(answer.contains(&format!("x-stream-protocol-version: {chosen}\r\n")), "{offers:?}: {answer}");
    }
    // Who offers none is told so, as upstream does since its clients all offer some.
    let (_, answer) = ask(&[]).await;
    assert!(answer.starts_with("http/1.1 400"), "{answer}");
    for offers in [&["v5.channel.k8s.io"][..], &["v9.channel.k8s.io", "nonsense"]] {
        let (_, answer) = ask(offers).await;
        assert!(answer.starts_with("http/1.1 403"), "{offers:?}: {answer}");
    }
    // Streams are named by their header, and waited for half a minute: then the command is not run any more.
    let open = async |stream: &mut TlsStream<TcpStream>, patience: u64| {
        let mut writer = Writer::default();
        for (number, kind) in [(1, "error"), (3, "stdout")] {
            stream.write_all(&writer.open(number, &[("streamtype", kind)])).await.unwrap();
        }
        stream.flush().await.unwrap();
        let (mut reader, mut data) = (Reader::new(stream), Vec::new());
        let first = tokio::time::timeout(Duration::from_secs(patience), reader.next(&mut data, 1024)).await;
        first.ok().map(|event| (event.unwrap(), String::from_utf8_lossy(&data).into_owned()))
    };
    let (mut prompt, _) = ask(&["v4.channel.k8s.io"]).await;
    let first = open(&mut prompt, 20).await;
    assert!(matches!(&first, Some((Event::Data { stream: 1 } | Event::End { stream: 3 }, _))), "{first:?}");
    tokio::time::sleep(Duration::from_secs(33).saturating_sub(began.elapsed())).await;
    assert_eq!(open(&mut silent, 3).await, None);
    // A18.20: a stream that is silent is the runtime's to end, after four hours, since only bytes pass here.
    let config = node.lab.path().join("config.toml");
    let dump = std::process::Command::new("containerd").arg("--config").arg(config).args(["config", "dump"]).output();
    let dump = String::from_utf8(dump.unwrap().stdout).unwrap();
    assert!(dump.contains("stream_idle_timeout = \"4h0m0s\""), "{dump}");
    node.stop().await;
}
