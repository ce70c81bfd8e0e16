//! What the watches of the service data path ask an API server for (B1.1), as the server sees it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::services::ServiceReaders;
use super::{ApiServer, NodeApi, ServiceStore, watch_service_ranges, watch_services};

/// Tells the target of each request of a connection, and answers that there is no such stream of a list, so that a list and then
/// a watch follow, which stays silent.
async fn answer(stream: TcpStream, asked: mpsc::Sender<String>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            head.push(line);
        }
        let target = head[0].split(' ').nth(1).expect("a target").to_owned();
        let (watches, streams) = (target.contains("watch="), target.contains("sendInitialEvents=true"));
        asked.send(target).await.expect("the test listens");
        let (code, body) = match (watches, streams) {
            (true, true) => ("422 Unprocessable Entity", r#"{"kind":"Status","code":422,"message":"no such list"}"#),
            (true, false) => return std::future::pending().await,
            (false, _) => ("200 OK", r#"{"metadata":{"resourceVersion":"7"},"items":[]}"#),
        };
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {code}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.get_mut().write_all(answer.as_bytes()).await.expect("it is read");
    }
}

/// Path and selectors of a request.
fn selectors(target: &str) -> (String, Vec<(String, String)>) {
    let url = format!("http://x{target}").parse::<http::Uri>().expect("a target");
    let pairs = url.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let decoded = |text: &str| text.replace("%21", "!").replace("%2F", "/").replace("%3D", "=");
    let mut pairs: Vec<_> = pairs
        .filter(|(name, _)| name.ends_with("Selector"))
        .map(|(name, value)| (name.to_owned(), decoded(value)))
        .collect();
    pairs.sort();
    (url.path().to_owned(), pairs)
}

/// The requests of the data path's watches, each list and watch once.
async fn requests(readers: ServiceReaders) -> BTreeSet<(String, Vec<(String, String)>)> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("a URL");
    let api = ApiServer::new(&kube::Config::new(url)).expect("a connection");
    let (asked, mut targets) = mpsc::channel(64);
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, asked.clone()));
        }
    });
    let (changes, _queue) = mpsc::channel(64);
    let (ranges, _ranges) = watch::channel(Arc::default());
    let (_node, node) = NodeApi::new(api.clone(), "n1".to_owned()).watch();
    let watches = tokio::spawn(async move {
        tokio::join!(
            watch_services(&api, ServiceStore::default(), changes, readers).expect("a connection"),
            watch_service_ranges(api.clone(), ranges),
            node
        )
    });
    let (mut lists, mut watched) = (BTreeSet::new(), BTreeSet::new());
    let all = async {
        while watched.len() < 4 {
            let target = targets.recv().await.expect("they ask");
            let of = selectors(&target);
            match target.contains("watch=") {
                false => _ = lists.insert(of),
                true if target.contains("resourceVersion=7") => _ = watched.insert(of),
                // A list as a stream, which this server does not know.
                true => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("four lists and four watches");
    watches.abort();
    server.abort();
    assert_eq!(lists, watched, "a watch goes on where its list ended");
    watched
}

/// B1.1
#[tokio::test]
async fn no_more_is_asked_for_than_is_read() {
    const SERVICES: &str = "/api/v1/services";
    const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
    let one = |path: &str, selectors: &[(&str, &str)]| {
        (path.to_owned(), selectors.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
    };
    let with_address = ("fieldSelector", "spec.clusterIP!=None");
    let with_slices = one(SLICES, &[("labelSelector", "!service.kubernetes.io/headless")]);
    for (readers, services, slices) in [
        (
            ServiceReaders::DataPath,
            one(SERVICES, &[with_address, ("labelSelector", "!service.kubernetes.io/service-proxy-name")]),
            with_slices.clone(),
        ),
        (ServiceReaders::Pods, one(SERVICES, &[with_address]), with_slices),
        (ServiceReaders::Dns, one(SERVICES, &[]), one(SLICES, &[])),
    ] {
        let expected = BTreeSet::from([
            services,
            slices,
            one("/api/v1/nodes", &[("fieldSelector", "metadata.name=n1")]),
            one("/apis/networking.k8s.io/v1/servicecidrs", &[]),
        ]);
        assert_eq!(requests(readers).await, expected, "{readers:?}");
    }
}
