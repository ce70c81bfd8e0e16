//! How long the kernel and we take for many Services: `cargo bench --bench services`, as root.
//!
//! Measured in a fresh network namespace, from decoded objects on: compiling, the difference, and the transaction. Ends
//! with an error where a promise of SPECIFICATION.md is broken.

use std::os::fd::AsFd as _;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use stoker::clock::Clock;
use stoker::service::ServiceConfig;
use stoker::service::diff::{Batch, Table};
use stoker::service::frontend::Family;
use stoker::service::model::Model;
use stoker::service::nftables::Kernel;
use stoker_model::service::{EndpointSlice, NodeTopology, Service, ServiceChange};

/// 10 000 Services of two endpoints each have to be in the kernel this fast. Judged by the processor time of this thread, in
/// which the kernel works too, because other processes do not make that longer.
const COLD_START_LIMIT: Duration = Duration::from_millis(150);

fn main() -> ExitCode {
    let name = format!("stoker-bench-service-{}", std::process::id());
    assert!(Command::new("ip").args(["netns", "add", &name]).status().is_ok_and(|status| status.success()));
    let namespace = std::fs::File::open(format!("/var/run/netns/{name}")).expect("it was made above");
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
        .expect("a bench of kernel rules runs as root");
    let cold = [1000, 10_000].map(cold_start);
    let _ = Command::new("ip").args(["netns", "delete", &name]).status();
    if cold[1] > COLD_START_LIMIT {
        eprintln!("10 000 services took the kernel {:?}, promised are {COLD_START_LIMIT:?}", cold[1]);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Returns the time for the kernel's part of a cold start: preparing, reading, and the transaction.
fn cold_start(count: u32) -> Duration {
    let config = ServiceConfig { families: vec![Family::Ipv4], ..ServiceConfig::default() };
    let mut kernel = Kernel::open(config).expect("nf_tables is there");
    let node = NodeTopology { name: "node".into(), zone: None, ips: Vec::new() };
    let mut model = Model::new(Arc::new(node));
    (0..count).for_each(|n| changes(n, 2).into_iter().for_each(|change| model.apply(change)));
    model.apply(ServiceChange::Complete);

    let mut table = Table::default();
    let mut batch = Batch::before_reconciling();
    let (_, deciding) = timed(|| {
        for name in model.take_dirty() {
            let routes = model.routes(&name);
            table.set(&name, routes, &mut batch);
        }
    });
    // Another process does this, so only the wall clock sees it.
    let before = Clock.now().monotonic;
    kernel.prepare(false).expect("nft takes our text");
    let preparing = Clock.now().monotonic - before;
    let (there, reading) = timed(|| kernel.read().expect("an empty table is read"));
    let (operations, comparing) = timed(|| table.reconcile(there));
    let (_, writing) = timed(|| kernel.apply(&operations).expect("the kernel takes all elements"));
    println!(
        "{count} services x 2: deciding {:?}, fixed part {preparing:?}, reading {reading:?}, writing {} elements {writing:?}",
        deciding + comparing,
        operations.add.len(),
    );
    let in_kernel = preparing + reading + writing;
    println!("{count} services x 2: from decoded objects to the kernel {:?}", deciding + comparing + in_kernel);

    let (there, reading) = timed(|| kernel.read().expect("our table is read"));
    let (operations, comparing) = timed(|| table.reconcile(there));
    assert!(operations.is_empty(), "nothing has changed: {operations:?}");
    println!("{count} services x 2: restart reads {reading:?} and compares {comparing:?}");

    let mut singles: Vec<(Duration, Duration)> = (count..count + 200)
        .map(|n| {
            let changes = changes(n, 2);
            let (operations, deciding) = timed(|| {
                changes.into_iter().for_each(|change| model.apply(change));
                let mut batch = Batch::default();
                for name in model.take_dirty() {
                    table.set(&name, model.routes(&name), &mut batch);
                }
                batch.into_operations()
            });
            let (_, writing) = timed(|| kernel.apply(&operations).expect("the kernel takes a service"));
            (writing, deciding)
        })
        .collect();
    singles.sort_unstable();
    println!(
        "{count} services x 2: one more: writing p50 {:?}, p99 {:?}, deciding {:?}",
        singles[100].0, singles[198].0, singles[100].1
    );
    kernel.remove().expect("our tables can be removed");
    in_kernel
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = processor_time();
    let result = work();
    (result, processor_time() - before)
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("processor time is not negative")
}

fn changes(number: u32, endpoints: u32) -> [ServiceChange; 2] {
    let name = format!("service-{number}");
    let ip = std::net::Ipv4Addr::from(0x0a60_0000 + number);
    let service: Service = serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "namespace": "bench"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP"}]},
    }))
    .expect("it is a Service");
    let addresses = (0..endpoints).map(|n| std::net::Ipv4Addr::from(0x0af4_0000 + number * endpoints + n));
    let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "namespace": "bench", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": addresses.map(|ip| serde_json::json!({"addresses": [ip], "nodeName": "other"})).collect::<Vec<_>>(),
        "ports": [{"port": 8080, "protocol": "TCP"}],
    }))
    .expect("it is an EndpointSlice");
    [ServiceChange::Service(Arc::new(service)), ServiceChange::Slice(Arc::new(slice))]
}
