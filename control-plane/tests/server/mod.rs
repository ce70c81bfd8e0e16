//! The real API server in this process, on a free loopback port with its own CA and store.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use async_trait::async_trait;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::Value;
use stoker_control_plane::api::{self, Cluster, NodeClient, ServerConfig};
use stoker_control_plane::auth::{
    CertifiedPem, ClusterAuthenticator, ClusterAuthorizer, Lookup, LookupError, Pki, PkiConfig,
};
use stoker_control_plane::clock;
use stoker_control_plane::storage::embedded::Embedded;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Stops when dropped.
pub(crate) struct Server {
    pub(crate) cluster: Cluster,
    pub(crate) kubeconfig: PathBuf,
    stop: CancellationToken,
    _runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The tests ask as a member of `system:masters`, about whom nothing is looked up.
struct Nothing;

#[async_trait]
impl Lookup for Nothing {
    async fn get(&self, _: &str, _: &str, _: Option<&str>, _: &str) -> Result<Option<Value>, LookupError> {
        Ok(None)
    }

    async fn list(&self, _: &str, _: &str, _: Option<&str>) -> Result<Vec<Value>, LookupError> {
        Ok(Vec::new())
    }
}

fn certificates(pem: &CertifiedPem) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(pem.certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
    (chain, PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap())
}

impl Server {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (cluster, kubeconfig, stop) = runtime.block_on(run(dir.path()));
        let server = Self { cluster, kubeconfig, stop, _runtime: runtime, dir };
        server.create("", "namespaces", "", serde_json::json!({"metadata": {"name": "default"}}));
        server
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self._runtime.block_on(future)
    }

    pub(crate) fn create(&self, group: &str, plural: &str, namespace: &str, object: Value) -> Value {
        let objects = self.cluster.objects(group, plural);
        self.block_on(objects.create(namespace, object, &api::WriteOptions::default())).unwrap()
    }

    /// A file for `-f`.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs kubectl; the last arguments are split at spaces, so none may hold one.
    pub(crate) fn try_kubectl(&self, arguments: &str) -> Output {
        self.kubectl_args(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    pub(crate) fn kubectl_args(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("kubectl");
        command
            .env("HOME", self.dir.path())
            .env_remove("KUBECTL_VERSION")
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments);
        command.output().expect("kubectl must be installed for these tests")
    }

    /// The standard output of a kubectl that must succeed.
    #[track_caller]
    pub(crate) fn kubectl(&self, arguments: &str) -> String {
        let output = self.try_kubectl(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "kubectl {arguments}:\n{}\n{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// The standard error of a kubectl that must fail.
    #[track_caller]
    pub(crate) fn kubectl_fails(&self, arguments: &str) -> String {
        let output = self.try_kubectl(arguments);
        assert!(!output.status.success(), "kubectl {arguments} should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

async fn run(dir: &Path) -> (Cluster, PathBuf, CancellationToken) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let config = PkiConfig {
        data_dir: dir.to_owned(),
        advertise_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: listener.local_addr().unwrap().port(),
        service_ip: IpAddr::from([10, 96, 0, 1]),
        extra_names: Vec::new(),
        cluster_domain: "cluster.local".to_owned(),
    };
    let pki = Pki::ensure(&config, clock::now()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca_certificate().as_bytes()).unwrap()).unwrap();
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let (chain, key) = certificates(pki.serving());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let nodes = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let cluster = Cluster::new(Embedded::open(&dir.join("store.redb")).unwrap());
    let lookup: Arc<dyn Lookup> = Arc::new(Nothing);
    let stop = CancellationToken::new();
    tokio::spawn(api::serve(ServerConfig {
        listener,
        tls: Arc::new(tls),
        cluster: cluster.clone(),
        authenticator: Arc::new(ClusterAuthenticator::new(&pki, lookup.clone())),
        authorizer: Arc::new(ClusterAuthorizer::new(lookup)),
        tokens: pki.tokens(),
        nodes: NodeClient::new(Arc::new(nodes.clone()), Arc::new(nodes)),
        stop: stop.clone(),
    }));
    (cluster, pki.admin_kubeconfig_path(), stop)
}
