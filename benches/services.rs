//! How long the kernel and we take for many Services, beside `nft -f` of kube-proxy's layout at the same size:
//! `cargo bench --bench services`, as root.
//!
//! Measured in a fresh network namespace, from decoded objects on: compiling, the difference, and the transaction. Ends with an
//! error where a promise of SPECIFICATION.md is broken. `STOKER_BENCH_SERVICES=1000` and `STOKER_BENCH_SECONDS=5` make it
//! small; promises are judged at their own sizes only.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use stoker::clock::Clock;
use stoker::service::ServiceConfig;
use stoker::service::diff::{Batch, Elements, Operations, Table};
use stoker::service::frontend::Family;
use stoker::service::model::Model;
use stoker::service::nftables::Kernel;
use stoker_model::service::{NodeTopology, ServiceChange};

#[path = "services/kube_proxy.rs"]
mod kube_proxy;

/// The size that most promises are about.
const PROMISED_AT: u32 = 10_000;
/// Where the endpoint that answers listens.
const SERVER: &str = "10.255.255.1";

fn main() -> ExitCode {
    let number = |name: &str, default: u32| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (services, seconds) = (number("STOKER_BENCH_SERVICES", PROMISED_AT), number("STOKER_BENCH_SECONDS", 60));
    let name = format!("stoker-bench-service-{}", std::process::id());
    run(&format!("ip netns add {name}"));
    let namespace = std::fs::File::open(format!("/var/run/netns/{name}")).expect("it was made above");
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
        .expect("a bench of kernel rules runs as root");
    run("ip link set lo up");
    run(&format!("ip addr add {SERVER}/32 dev lo"));
    run("ip route add 10.96.0.0/12 dev lo");
    let mut report = Report::default();
    bench(&mut report, services, seconds);
    if services == PROMISED_AT {
        bench_large(&mut report);
    }
    let _ = Command::new("ip").args(["netns", "delete", &name]).status();
    report.print()
}

/// One line of the table: what was promised and what came out.
struct Line {
    what: String,
    ours: String,
    theirs: String,
    promise: String,
    kept: bool,
}

#[derive(Default)]
struct Report(Vec<Line>);

impl Report {
    fn add(&mut self, what: String, ours: impl std::fmt::Debug, theirs: impl Into<String>) {
        let ours = format!("{ours:.3?}");
        self.0.push(Line { what, ours, theirs: theirs.into(), promise: String::new(), kept: true });
    }

    /// A promise about the line that was added last.
    fn promise(&mut self, text: &str, kept: bool) {
        if let Some(line) = self.0.last_mut() {
            (line.promise, line.kept) = (text.to_owned(), kept);
        }
    }

    fn print(&self) -> ExitCode {
        println!("| what | stoker | kube-proxy's layout by nft -f | promised | |\n|---|---|---|---|---|");
        for Line { what, ours, theirs, promise, kept } in &self.0 {
            let mark = if *kept { "" } else { "BROKEN" };
            println!("| {what} | {ours} | {theirs} | {promise} | {mark} |");
        }
        if self.0.iter().all(|line| line.kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// A data path without its task: model, table and kernel.
struct Path {
    model: Model,
    table: Table,
    kernel: Kernel,
}

impl Path {
    fn new() -> Self {
        let config = ServiceConfig { families: vec![Family::Ipv4], ..ServiceConfig::default() };
        let node = NodeTopology { name: "node".into(), zone: None, ips: Vec::new() };
        let kernel = Kernel::open(config).expect("nf_tables is there");
        Self { model: Model::new(Arc::new(node)), table: Table::default(), kernel }
    }

    fn tell(&mut self, changes: impl IntoIterator<Item = ServiceChange>) {
        changes.into_iter().for_each(|change| self.model.apply(change));
    }

    fn decide(&mut self) -> Operations {
        let mut batch = Batch::default();
        for name in self.model.take_dirty() {
            self.table.set(&name, self.model.routes(&name), &mut batch);
        }
        batch.into_operations()
    }

    /// As at the start of the daemon, where the kernel is compared with afterwards.
    fn decide_all(&mut self) {
        let mut batch = Batch::before_reconciling();
        let dirty = self.model.take_dirty();
        self.table.reserve(dirty.len());
        for name in dirty {
            self.table.set(&name, self.model.routes(&name), &mut batch);
        }
    }

    /// As at the start of the daemon: returns the times of deciding, of preparing and reading, and of writing.
    fn start(&mut self) -> [Duration; 3] {
        let (_, deciding) = timed(|| self.decide_all());
        // Another process does part of this.
        let before = time_of_children();
        let (there, ours) = timed(|| {
            self.kernel.prepare(false).expect("nft takes our text");
            self.kernel.read().expect("an empty table is read")
        });
        let preparing = ours + (time_of_children() - before);
        let (operations, comparing) = timed(|| self.table.reconcile(there));
        let (_, writing) = timed(|| self.kernel.apply(&operations).expect("the kernel takes all elements"));
        [deciding + comparing, preparing, writing]
    }

    fn change(&mut self, changes: impl IntoIterator<Item = ServiceChange>) -> (Duration, Duration) {
        let (operations, deciding) = timed(|| {
            self.tell(changes);
            self.decide()
        });
        let (_, writing) = timed(|| self.kernel.apply(&operations).expect("the kernel takes a change"));
        (deciding, writing)
    }

    fn nothing_to_do(&mut self) -> bool {
        let there = self.kernel.read().expect("our table is read");
        self.table.reconcile(there).is_empty()
    }
}

/// Everything wanted at once, as after a start of the daemon; then once more, as after a restart.
fn cold_start(report: &mut Report, count: u32) -> Path {
    let at_promise = count == PROMISED_AT;
    let mut path = Path::new();
    path.tell((0..count).flat_map(|n| kube_proxy::changes(n, &addresses(n, 2))));
    path.tell([ServiceChange::Complete]);
    let [deciding, preparing, writing] = path.start();
    let cold = deciding + preparing + writing;
    let (theirs, _) = kube_proxy::loaded(count, 2);
    report.add(format!("{count} x 2: from decoded objects to the kernel"), cold, format!("{theirs:.3?}"));
    report.promise("150 ms", !at_promise || cold <= Duration::from_millis(150));
    report.add(format!("{count} x 2: of that, deciding and comparing"), deciding, "");
    report.add(format!("{count} x 2: of that, nft and the fixed part"), preparing, "");
    report.add(format!("{count} x 2: of that, the transaction"), writing, "");

    let (same, reading) = timed(|| path.nothing_to_do());
    report.add(format!("{count} x 2: restart reads and compares"), reading, "");
    report.promise("nothing to write", same);
    path
}

fn bench(report: &mut Report, count: u32, seconds: u32) {
    let at_promise = count == PROMISED_AT;
    // First of all: what others gave back would be used again.
    let before = memory();
    let mut full = Path::new();
    full.tell((0..count).flat_map(|n| kube_proxy::changes(n, &addresses(n, 10))));
    full.tell([ServiceChange::Complete]);
    full.decide_all();
    drop(full.table.reconcile(Elements::default()));
    let megabytes = (memory().saturating_sub(before)) as f64 / 1e6;
    report.add(format!("memory added by {count} x 10"), format!("{megabytes:.1} MB"), "");
    report.promise("25 MB", !at_promise || megabytes <= 25.0);
    drop(full);

    let mut path = cold_start(report, count);
    let mut singles: Vec<_> =
        (count..count + 200).map(|n| path.change(kube_proxy::changes(n, &addresses(n, 2)))).collect();
    singles.sort_unstable_by_key(|(_, writing)| *writing);
    let theirs = kube_proxy::one_more(count, 2);
    report.add(format!("one more at {count}: netlink commit p50"), singles[100].1, format!("{theirs:.3?}"));
    report.promise("50 µs", !at_promise || singles[100].1 <= Duration::from_micros(50));
    report.add(format!("one more at {count}: netlink commit p99"), singles[198].1, "");
    report.add(format!("one more at {count}: deciding, beside it"), singles[100].0, "");

    let (cpu, lost) = churn(&mut path, count, seconds);
    report.add(
        format!("1 000 endpoint changes a second for {seconds} s: of a core"),
        format!("{:.1} %", cpu * 100.0),
        "",
    );
    report.promise("10 %, none lost", cpu <= 0.1 && !lost);

    let many = connect_time(&mut path, count + 1000);
    path.kernel.remove().expect("our tables can be removed");
    let mut few = Path::new();
    few.tell((0..10).flat_map(|n| kube_proxy::changes(n, &addresses(n, 2))));
    few.tell([ServiceChange::Complete]);
    few.start();
    let few_time = connect_time(&mut few, 1000);
    report.add(format!("connect p50 at {count}, and at 10"), (many, few_time), "");
    // What 2 000 connections on loopback tell apart on a busy machine is no finer than this.
    let slack = Duration::from_micros(2);
    report.promise("within 3 %", many <= few_time.mul_f64(1.03) + slack);
    few.kernel.remove().expect("our tables can be removed");
    drop((path, few));

    let (_, creating) = timed(|| {
        let mut path = Path::new();
        path.tell([ServiceChange::Complete]);
        path.start();
        (0..count).for_each(|n| _ = path.change(kube_proxy::changes(n, &addresses(n, 2))));
        path.kernel.remove().expect("our tables can be removed");
    });
    report.add(format!("creating {count} one by one: CPU"), creating, "");
    report.promise("2 s", !at_promise || creating <= Duration::from_secs(2));
}

/// 50 000, at which kube-proxy's layout takes the better part of an hour.
fn bench_large(report: &mut Report) {
    let mut path = Path::new();
    path.tell((0..50_000).flat_map(|n| kube_proxy::changes(n, &addresses(n, 2))));
    path.tell([ServiceChange::Complete]);
    let cold: Duration = path.start().into_iter().sum();
    report.add("50000 x 2: from decoded objects to the kernel".to_owned(), cold, "");
    report.promise("600 ms", cold <= Duration::from_millis(600));
    path.kernel.remove().expect("our tables can be removed");
}

/// Changes an endpoint of 1 000 Services a second, in batches as a watch brings them; the share of a core, and whether the
/// kernel holds anything else than wanted in the end.
fn churn(path: &mut Path, count: u32, seconds: u32) -> (f64, bool) {
    const BATCH: u32 = 20;
    let begun = Clock.now().monotonic;
    let mut used = Duration::ZERO;
    for step in 0..seconds * 1000 / BATCH {
        let changes = (0..BATCH).flat_map(|i| {
            let n = (step * BATCH + i) % count;
            kube_proxy::changes(n, &[addresses(n, 1)[0], Ipv4Addr::from(0x0b00_0000 + step * BATCH + i)])
        });
        // Making the objects is the API server's work.
        let changes: Vec<_> = changes.collect();
        let (deciding, writing) = path.change(changes);
        used += deciding + writing;
        let next = Duration::from_millis(u64::from((step + 1) * BATCH));
        std::thread::sleep((begun + next).saturating_sub(Clock.now().monotonic));
    }
    (used.as_secs_f64() / f64::from(seconds.max(1)), !path.nothing_to_do())
}

/// The median of 2 000 connections through a cluster IP to a server on this machine.
fn connect_time(path: &mut Path, number: u32) -> Duration {
    let server = TcpListener::bind((SERVER, 8080)).expect("the address was added above");
    path.change(kube_proxy::changes(number, &[SERVER.parse().expect("an address")]));
    let accepting = std::thread::spawn(move || server.incoming().take(2000).for_each(drop));
    let to = SocketAddr::from((kube_proxy::cluster_ip(number), 80));
    let mut times: Vec<Duration> = (0..2000)
        .map(|_| {
            let begun = Clock.now().monotonic;
            let connection = TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("the Service answers");
            let took = Clock.now().monotonic - begun;
            drop(connection);
            took
        })
        .collect();
    accepting.join().expect("the server takes all of them");
    times.sort_unstable();
    times[1000]
}

fn addresses(service: u32, endpoints: u32) -> Vec<Ipv4Addr> {
    (0..endpoints).map(|n| Ipv4Addr::from(0x0a80_0000 + service * 10 + n)).collect()
}

/// Memory of this process that nobody shares, in bytes.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("/proc is there");
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("every process has some");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = processor_time();
    let result = work();
    (result, processor_time() - before)
}

/// Processor time of the processes that ended, in user and kernel.
fn time_of_children() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").expect("/proc is there");
    // Behind the name, which may hold anything, in the kernel's ticks of 10 ms.
    let fields: Vec<&str> = text.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    Duration::from_millis((ticks(13) + ticks(14)) * 10)
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("processor time is not negative")
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().expect("a program")).args(words).status();
    assert!(status.is_ok_and(|status| status.success()), "{command}");
}
