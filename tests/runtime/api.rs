//! The node's HTTPS API over TLS, with pods that really run.

use std::net::Ipv4Addr;
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
use stoker::server::{Handles, Server, ServerConfig, ServingCertificate};
use stoker_model::handle::{ApiError, Authorizer, PodDirectory, TokenReviewer, UserInfo};
use stoker_model::pod::PodUid;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::lab::Lab;

/// A node whose API is served, for the pods that the test says it has.
struct Node {
    lab: Lab,
    pods: Arc<Pods>,
    address: std::net::SocketAddr,
    healthz: std::net::SocketAddr,
    ca: Issuer<'static, KeyPair>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Pods(Mutex<Vec<Arc<Pod>>>);

impl PodDirectory for Pods {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.0.lock().unwrap().clone()
    }

    fn pod(&self, namespace: &str, name: &str, _: Option<&PodUid>) -> Option<Arc<Pod>> {
        let is = |pod: &&Arc<Pod>| {
            pod.metadata.name.as_deref() == Some(name) && pod.metadata.namespace.as_deref() == Some(namespace)
        };
        self.pods().iter().find(is).cloned()
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

impl Node {
    async fn start() -> Self {
        let lab = Lab::with_busybox().await;
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(lab.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        let pods = Arc::new(Pods::default());
        let config = ServerConfig {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            healthz: Some((Ipv4Addr::LOCALHOST, 0).into()),
            certificate: ServingCertificate::SelfSigned {
                directory: lab.path().join("pki"),
                node: "node".into(),
                names: vec!["127.0.0.1".into()],
            },
            client_ca: Some(lab.path().join("ca.crt")),
            debugging_handlers: true,
            node: "node".into(),
            kubelet_configuration: json!({ "kind": "KubeletConfiguration" }),
            root_dir: lab.path().into(),
            pod_logs_dir: lab.path().join("logs"),
            system_logs_dir: Some(lab.path().join("logs")),
            token_ttl: Duration::from_secs(120),
        };
        let handles = Handles {
            pods: pods.clone(),
            authorizer: Arc::new(Readers),
            tokens: Some(Arc::new(OneToken)),
            usage: Arc::new(Cgroups::open(CgroupConfig::default()).unwrap()),
            runtime: lab.runtime.clone(),
        };
        let server = Server::bind(config, handles).await.unwrap();
        let (address, healthz) = (server.address().unwrap(), server.healthz_address().unwrap());
        let stop = CancellationToken::new();
        let served = tokio::spawn(server.run(stop.clone()));
        Self { lab, pods, address, healthz, ca: Issuer::new(params, key), stop, served }
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
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(|error| error.to_string())?;
        exchange(stream, method, path).await
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

    // A20.8
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
    assert_eq!(node.get("/healthz").await.0, StatusCode::OK);
    node.stop().await;
    drop(held);
}
