//! What the agent keeps of Services, counted byte by byte: the watches of an API server, the store for environment variables, the data
//! path with the real kernel, and cluster DNS. All that the process allocates is counted, so that each test needs a process of its own,
//! as nextest gives it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead as _, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use stoker::clock::Clock;
use stoker::dns::{DnsConfig, DnsServer, Upstream};
use stoker::service::ServiceConfig;
use stoker::upstream::{ApiServer, ServiceReaders, ServiceStore, watch_services};
use stoker_model::service::{NodeTopology, ServiceChange};
use tokio::sync::{mpsc, watch};

use crate::lab::Lab;

/// Services, of [`ENDPOINTS`] each.
const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;
/// A tenth above what they take, 175 of them for the buffers of this server's connections. For the whole agent 25 MB are promised, of
/// which what the allocator keeps beside needs its part.
const BYTES_PER_SERVICE: usize = 2_200;

/// Bytes that are in use, each block as large as glibc makes it.
static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn block(size: usize) -> usize {
    // Its header, and addresses that are multiples of 16.
    (size + 8).next_multiple_of(16).max(32)
}

#[expect(unsafe_code, reason = "an allocator cannot be written otherwise; the system's does all the work")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(block(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's condition.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(block(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's condition.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// S18
#[test]
fn ten_endpoints_take_little_memory() {
    let all = kept();
    println!("{all} bytes for a Service of {ENDPOINTS} endpoints");
    assert!(all <= BYTES_PER_SERVICE, "{all} bytes for a Service of {ENDPOINTS} endpoints, of {BYTES_PER_SERVICE}");
}

/// Bytes for one Service.
fn kept() -> usize {
    let lab = Lab::with_pods(0);
    let measured = lab.within("node", || {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Other threads would be in the namespace of whoever started them.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(measure())
    });
    measured.join().unwrap() / SERVICES
}

async fn measure() -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let api = ApiServer::new(&kube::Config::new(url)).unwrap();
    let node = Arc::new(NodeTopology { name: "node-1".into(), zone: None, ips: Vec::new() });
    let (_node, facts) = watch::channel(node);
    let (to_rules, rules) = mpsc::channel(100);
    let (to_names, names) = mpsc::channel(100);
    let (changes, mut changed) = mpsc::channel::<ServiceChange>(100);
    let config = DnsConfig {
        addresses: vec!["10.96.0.10".parse().unwrap()],
        domain: "cluster.local".into(),
        ttl: 5,
        upstream: Upstream::None,
        cache_entries: 1000,
        metrics_port: None,
    };
    let server = DnsServer::start(config, Clock).await.unwrap();
    tokio::spawn(server.run(names));
    let mut proxy = stoker::service::spawn(rules, facts, ServiceConfig::default(), Clock).unwrap();
    tokio::spawn(async move {
        while let Some(change) = changed.recv().await {
            to_names.send(change.clone()).await.unwrap();
            to_rules.send(change).await.unwrap();
        }
    });
    let store = ServiceStore::default();

    let before = LIVE.load(Ordering::Relaxed);
    tokio::spawn(watch_services(&api, store.clone(), changes, ServiceReaders::Dns).unwrap());
    let serving = tokio::task::spawn_blocking(move || {
        let both: Vec<_> =
            (0..2).map(|_| listener.accept().unwrap().0).map(|stream| std::thread::spawn(|| serve(stream))).collect();
        both.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let _open = serving.await.unwrap();
    proxy.health.wait_for(|health| health.last_updated.is_some()).await.unwrap();
    assert_eq!(store.count(), (SERVICES, true));
    // What only passes by goes.
    tokio::time::sleep(Duration::from_millis(500)).await;
    LIVE.load(Ordering::Relaxed) - before
}

/// Answers one watch with all there is, as an API server does; the connection stays open with its owner.
fn serve(mut stream: TcpStream) -> TcpStream {
    let mut request = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while !request.ends_with("\r\n\r\n") {
        reader.read_line(&mut request).unwrap();
    }
    let mut answer = std::io::BufWriter::new(&mut stream);
    write!(answer, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    for number in 0..SERVICES {
        let object = if request.starts_with("GET /api/v1/services?") { service(number) } else { slice(number) };
        event(&mut answer, &format!(r#"{{"type":"ADDED","object":{object}}}"#));
    }
    let end = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
    event(&mut answer, end);
    answer.flush().unwrap();
    drop(answer);
    stream
}

fn event(to: &mut impl Write, text: &str) {
    write!(to, "{:x}\r\n{text}\n\r\n", text.len() + 1).unwrap();
}

fn service(number: usize) -> String {
    let ip = Ipv4Addr::from(0x0a60_1000 + u32::try_from(number).unwrap());
    format!(
        r#"{{"kind":"Service","apiVersion":"v1","metadata":{{"name":"service-{number}","namespace":"default","resourceVersion":"{number}",
        "uid":"6b2c0f5e-9a55-4c1c-8f7a-{number:012}","labels":{{"app":"web"}}}},
        "spec":{{"ports":[{{"protocol":"TCP","port":80,"targetPort":8080}}],"clusterIP":"{ip}","clusterIPs":["{ip}"],"type":"ClusterIP",
        "sessionAffinity":"None","ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","internalTrafficPolicy":"Cluster"}},
        "status":{{"loadBalancer":{{}}}}}}"#
    )
    .replace('\n', " ")
}

fn slice(number: usize) -> String {
    let endpoint = |n: usize| {
        let ip = Ipv4Addr::from(0x0af4_0000 + u32::try_from(number * ENDPOINTS + n).unwrap());
        format!(
            r#"{{"addresses":["{ip}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},
            "nodeName":"node-{}","zone":"zone-a","targetRef":{{"kind":"Pod","namespace":"default","name":"web-{number}-{n}"}}}}"#,
            (number + n) % 100
        )
    };
    let endpoints: Vec<String> = (0..ENDPOINTS).map(endpoint).collect();
    format!(
        r#"{{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{{"name":"service-{number}-x7k2p","namespace":"default",
        "resourceVersion":"{number}","uid":"6b2c0f5e-9a55-4c1c-8f7b-{number:012}",
        "labels":{{"app":"web","kubernetes.io/service-name":"service-{number}"}},
        "annotations":{{"endpoints.kubernetes.io/last-change-trigger-time":"2026-01-01T00:00:00Z"}}}},
        "addressType":"IPv4","endpoints":[{}],"ports":[{{"name":"","protocol":"TCP","port":8080}}]}}"#,
        endpoints.join(",")
    )
    .replace('\n', " ")
}
