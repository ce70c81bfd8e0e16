//! Services in a whole cluster of shipped binaries, with our own API server: `cargo bench --bench service_cluster`, as root.
//!
//! What it takes to create 10 000 Services of two endpoints one after another (processor time of the agent), how soon one more
//! answers, what they add to the agent's memory when each has grown to ten endpoints, and how long an agent needs from its start
//! until the last of them answers, with empty tables and with those of the agent before, and what memory it has then. A missed bar
//! is printed and is no error, because other work on the machine makes it too. `STOKER_BENCH_SERVICES=500` and
//! `STOKER_BENCH_ENDPOINTS=2` make it small; `STOKER_BINARIES` names the folder of the binaries.

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use lab::Lab;
use lab::enclosure::NODE_IP;
use serde_json::json;
use stoker::clock::Clock;

/// Where the endpoint of the Services that are asked listens.
const PORT: u16 = 7080;
/// More addresses of the machine have this in front.
const OTHERS: &str = "198.51.100";
/// The number in its last byte of the first of them.
const FIRST_OTHER: usize = 77;
/// An agent that used less than this of a second has taken in what there was.
const IDLE: Duration = Duration::from_millis(30);
/// How many of the last Services are timed singly.
const SINGLES: usize = 50;
/// Something is broken when a Service takes longer.
const LONGEST: Duration = Duration::from_secs(120);
/// The kernel's unit of processor time in `/proc`.
const TICK_MS: u64 = 10;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (count, endpoints) = (number("STOKER_BENCH_SERVICES", 10_000), number("STOKER_BENCH_ENDPOINTS", 10));
    let mut lab = Lab::new();
    lab.start_containerd();
    lab.start_control_plane();
    lab.start_agent();
    lab.eventually("the node is ready", |lab| lab.node_is_ready());
    lab.enter_network();
    let measured = measure(&mut lab, count, endpoints);
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the bench is broken: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(lab: &mut Lab, count: usize, endpoints: usize) -> Result<(), Failure> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cluster = tokio.block_on(Cluster::connect(lab))?;
    for address in &addresses(endpoints.max(2))[1..] {
        lab.run("ip", &["address", "add", &format!("{address}/32"), "dev", "lo"]).expect_success("ip address add");
    }
    let server = TcpListener::bind(("0.0.0.0", PORT))?;
    std::thread::spawn(move || server.incoming().for_each(drop));

    let (empty, before) = (memory(lab.agent_pid())?, processor_time(lab.agent_pid())?);
    let mut last = None;
    for number in 0..count {
        last = Some(tokio.block_on(cluster.create(number))?);
    }
    let last = last.ok_or("no Service was asked for")?;
    answers(last)?;
    std::thread::sleep(Duration::from_secs(1));
    let used = processor_time(lab.agent_pid())? - before;
    println!(
        "{count} Services created one after another: {used:.2?} of the agent's processor time (bar: 2 s for 10 000)"
    );

    let mut singles = Vec::new();
    for number in count..count + SINGLES {
        let address = tokio.block_on(cluster.create(number))?;
        singles.push(answers(address)?);
        std::thread::sleep(Duration::from_millis(20));
    }
    singles.sort_unstable();
    let (p50, p90) = (singles[SINGLES / 2], singles[SINGLES * 9 / 10]);
    println!(
        "one more at {count}, from the API server's answer to a connection: p50 {p50:.1?}, p90 {p90:.1?} (bar: 20 ms)"
    );
    for number in 0..count {
        tokio.block_on(cluster.grow(number, endpoints))?;
    }
    let added = |lab: &Lab| -> Result<f64, Failure> {
        come_to_rest(lab.agent_pid())?;
        Ok(memory(lab.agent_pid())?.saturating_sub(empty) as f64 / 1000.0)
    };
    println!(
        "memory added by {count} Services of {endpoints} endpoints, with what the allocator keeps: {:.1} MB (bar: 25 MB for 10 000 of 10)",
        added(lab)?
    );

    for (what, flush) in [("empty tables", true), ("the tables of the agent before", false)] {
        lab.kill_agent();
        if flush {
            lab.run("nft", &["delete", "table", "ip", "stoker"]).expect_success("nft delete table");
        }
        let begun = Clock.now().monotonic;
        lab.start_agent();
        if !flush {
            // The rules never went away: that they answer says little, and that the health port does, a little more.
            until(|| lab.curl("http://127.0.0.1:10256/healthz").success)?;
        }
        answers(last)?;
        let took = Clock.now().monotonic - begun;
        let used = processor_time(lab.agent_pid())?;
        println!(
            "start of the agent to the last of {count} answering, {what}: {took:.2?} on the wall, {used:.2?} of its processor time (bar: 1 s)"
        );
        println!("memory of this agent above that of the first without Services: {:.1} MB", added(lab)?);
    }
    Ok(())
}

/// The agent gives memory back every ten seconds.
fn come_to_rest(pid: u32) -> Result<(), Failure> {
    let mut before = processor_time(pid)?;
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let used = processor_time(pid)?;
        if used.saturating_sub(before) < IDLE {
            std::thread::sleep(Duration::from_secs(11));
            return Ok(());
        }
        before = used;
    }
}

/// How long it takes until a connection to the address is made.
fn answers(address: SocketAddr) -> Result<Duration, Failure> {
    let begun = Clock.now().monotonic;
    until(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok())?;
    Ok(Clock.now().monotonic - begun)
}

fn until(mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
    let begun = Clock.now().monotonic;
    while !holds() {
        if Clock.now().monotonic - begun > LONGEST {
            return Err("a Service never answers".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The node's own address, and more.
fn addresses(count: usize) -> Vec<String> {
    let others = (FIRST_OTHER..).map(|last| format!("{OTHERS}.{last}"));
    std::iter::once(NODE_IP.to_owned()).chain(others).take(count).collect()
}

fn endpoints(count: usize) -> serde_json::Value {
    let endpoint = |address: &String| {
        json!({
            "addresses": [address], "nodeName": lab::NODE,
            "conditions": {"ready": true, "serving": true, "terminating": false},
        })
    };
    addresses(count).iter().map(endpoint).collect()
}

/// Memory of a process that nobody shares, in thousands of bytes.
fn memory(pid: u32) -> Result<u64, Failure> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).ok_or("no such line")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kibibytes * 1024 / 1000)
}

fn processor_time(pid: u32) -> Result<Duration, Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold blanks; utime and stime are the 12th and 13th field after it.
    let fields = stat.rsplit_once(") ").ok_or("no name in the process's stat")?.1;
    let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    Ok(Duration::from_millis(ticks * TICK_MS))
}

/// The API as a client sees it.
struct Cluster {
    services: Api<Service>,
    slices: Api<EndpointSlice>,
}

impl Cluster {
    async fn connect(lab: &Lab) -> Result<Self, Failure> {
        let kubeconfig = Kubeconfig::read_from(lab.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = kube::Client::try_from(config)?;
        Ok(Self { services: Api::namespaced(client.clone(), "default"), slices: Api::namespaced(client, "default") })
    }

    /// A Service with its endpoints: two addresses of the machine.
    async fn create(&self, number: usize) -> Result<SocketAddr, Failure> {
        let name = format!("service-{number}");
        let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        let service = self.services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
        let slice = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
            "ports": [{"name": "", "port": PORT, "protocol": "TCP"}], "endpoints": endpoints(2),
        });
        self.slices.create(&PostParams::default(), &serde_json::from_value(slice)?).await?;
        let address = service.spec.and_then(|spec| spec.cluster_ip).ok_or("a Service without address")?;
        Ok(SocketAddr::new(address.parse()?, 80))
    }

    /// Gives a Service other endpoints.
    async fn grow(&self, number: usize, to: usize) -> Result<(), Failure> {
        let patch = Patch::Merge(json!({"endpoints": endpoints(to)}));
        self.slices.patch(&format!("service-{number}"), &PatchParams::default(), &patch).await?;
        Ok(())
    }
}
