//! Pulling from a registry on loopback: once for many, with every credential, with errors by kind.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stoker::runtime::{Credential, Images, Pull, PullFailure, RuntimeError};
use tokio::net::TcpListener;

use crate::lab::Lab;

/// Serves one image of one empty layer, to `robot` only where it is told so.
struct Registry {
    address: SocketAddr,
    manifests: Arc<AtomicUsize>,
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl Registry {
    async fn start(private: bool) -> Self {
        let layer = tar::Builder::new(Vec::new()).into_inner().unwrap();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let describe = |kind: &str, bytes: &[u8]| -> Value {
            json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": [describe("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let blobs = Arc::new([manifest.to_string().into_bytes(), config, layer]);
        let manifests = Arc::new(AtomicUsize::new(0));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let counter = manifests.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (blobs, counter) = (blobs.clone(), counter.clone());
                let service = service_fn(move |request| {
                    let answer = answer(&request, &blobs[..], private, &counter);
                    async { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service),
                );
            }
        });
        Self { address, manifests }
    }

    fn image(&self) -> String {
        format!("{}/test/image:1", self.address)
    }
}

fn answer(
    request: &Request<Incoming>,
    blobs: &[Vec<u8>],
    private: bool,
    manifests: &AtomicUsize,
) -> Response<Full<Bytes>> {
    let robot = format!("Basic {}", STANDARD.encode("robot:secret"));
    if private && request.headers().get("authorization").is_none_or(|given| given.as_bytes() != robot.as_bytes()) {
        let answer =
            Response::builder().status(StatusCode::UNAUTHORIZED).header("www-authenticate", "Basic realm=\"r\"");
        return answer.body(Full::default()).unwrap();
    }
    let wanted = request.uri().path().rsplit('/').next().unwrap_or_default();
    let blob = match wanted {
        "1" => {
            manifests.fetch_add(1, Ordering::SeqCst);
            Some(&blobs[0])
        }
        wanted => blobs.iter().find(|blob| digest(blob) == wanted),
    };
    let Some(blob) = blob else {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Full::default()).unwrap();
    };
    let kind = if digest(blob) == digest(&blobs[0]) {
        "application/vnd.oci.image.manifest.v1+json"
    } else {
        "application/octet-stream"
    };
    Response::builder()
        .header("content-type", kind)
        .header("content-length", blob.len())
        .header("docker-content-digest", digest(blob))
        .body(if request.method() == http::Method::HEAD { Full::default() } else { Full::from(blob.clone()) })
        .unwrap()
}

fn parallel(pulls: usize) -> NonZeroUsize {
    NonZeroUsize::new(pulls).unwrap()
}

#[tokio::test]
async fn many_who_want_the_same_image_pull_it_once() {
    let lab = Lab::start().await;
    let registry = Registry::start(false).await;
    let images = Images::new(lab.runtime.clone(), parallel(2));
    let pull = Pull { image: registry.image(), ..Default::default() };
    assert_eq!(images.status(&pull.image).await.unwrap(), None);
    let outcomes = futures::future::join_all((0..20).map(|_| images.pull(pull.clone(), 0))).await;
    let first = outcomes[0].as_ref().unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().unwrap() == first));
    let once = registry.manifests.load(Ordering::SeqCst);
    let looks = futures::future::join_all((0..20).map(|_| images.status(&pull.image))).await;
    let found: Vec<_> = looks.into_iter().map(|found| found.unwrap().unwrap()).collect();
    assert!(found.iter().all(|image| Arc::ptr_eq(image, &found[0])), "who asks meanwhile gets the same answer");
    assert_eq!(found[0].id, first.id);
    let later = images.status(&pull.image).await.unwrap().unwrap();
    assert!(!Arc::ptr_eq(&later, &found[0]) && later == found[0], "an answer serves nobody who comes after it");

    images.pull(pull, 0).await.expect("a second time it is asked for anew");
    let twice = registry.manifests.load(Ordering::SeqCst);
    assert!(once >= 1 && twice <= 2 * once, "{once} requests for the first, {twice} for both");
    lab.stop().await;
}

#[tokio::test]
async fn a_pull_goes_on_when_nobody_waits() {
    let lab = Lab::start().await;
    let registry = Registry::start(false).await;
    let images = Images::new(lab.runtime.clone(), parallel(1));
    let pull = Pull { image: registry.image(), ..Default::default() };
    drop(tokio::time::timeout(Duration::from_millis(1), images.pull(pull.clone(), 0)).await);
    for _ in 0..200 {
        if images.status(&pull.image).await.unwrap().is_some() {
            return lab.stop().await;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the pull was given up");
}

#[tokio::test]
async fn every_credential_is_tried() {
    let lab = Lab::start().await;
    let registry = Registry::start(true).await;
    let images = Images::new(lab.runtime.clone(), parallel(1));
    let credential =
        |password: &str| Credential { username: "robot".into(), password: password.into(), ..Default::default() };
    let pull = |credentials: &[&str]| Pull {
        image: registry.image(),
        credentials: credentials.iter().map(|password| credential(password)).collect(),
        ..Default::default()
    };
    let refused = images.pull(pull(&[]), 0).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::ImagePull { failure: PullFailure::Other, .. }), "{refused:?}");
    let refused = images.pull(pull(&["wrong", "false"]), 0).await.unwrap_err();
    assert!(!refused.to_string().contains("wrong"), "{refused}");
    let pulled = images.pull(pull(&["wrong", "secret"]), 0).await.unwrap();
    assert_eq!(pulled.credential, Some(credential("secret")));
    lab.stop().await;
}

#[tokio::test]
async fn failures_are_told_apart() {
    let lab = Lab::start().await;
    let registry = Registry::start(false).await;
    let images = Images::new(lab.runtime.clone(), parallel(1));
    let failure = async |image: String| match images.pull(Pull { image, ..Default::default() }, 0).await {
        Err(RuntimeError::ImagePull { failure, message }) => (failure, message),
        other => panic!("{other:?}"),
    };
    let (kind, message) = failure(format!("{}/test/image:no-such-tag", registry.address)).await;
    assert_eq!(kind, PullFailure::Other);
    assert!(message.contains("not found"), "{message}");
    assert_eq!(failure("Upper:Case:Name".into()).await.0, PullFailure::InvalidName);
    lab.stop().await;
}
