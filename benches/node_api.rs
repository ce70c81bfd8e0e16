//! What the node's API on 10250 costs, in a whole cluster of shipped binaries: `cargo bench --bench node_api`, as root.
//!
//! Commands and forwarded ports through the agent beside the same straight from containerd's streaming server; a log of 1 GiB by kubectl;
//! `/metrics/cadvisor` of a full node; a thousand followers. What is counted (processor time and memory of the agent) must hold, or the
//! bench fails; times on the wall are printed beside it, because other work on the machine makes them too.
//! `STOKER_BENCH_QUICK=1` makes all of it small; `STOKER_BINARIES` names the folder of the binaries. Words choose what is measured: `exec`,
//! `port-forward`, `logs`, `scrapes`, `followers` (after `scrapes`, which makes the pods).

#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "pods/mod.rs"]
mod pods;

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use lab::Lab;
use lab::manifest::pod;
use lab::node_api::{NodeApi, forwarded, outcome_of_exec, upgrade_at};
use lab::process::{memory_kib, processor_time};
use pods::Failure;
use pods::figures::{Spread, head, milliseconds, row};
use stoker::clock::Clock;
use stoker::runtime::{Runtime, cri};
use tokio::io::{AsyncBufReadExt, AsyncReadExt};

/// The Deployment whose pods are asked; its containers send zeros to whoever connects.
const NAME: &str = "many";
const SENDER_PORT: u16 = 9000;
const SCRIPT: &str = "nc -ll -p 9000 -e cat /dev/zero & trap 'exit 0' TERM; wait";
const LONGEST: Duration = Duration::from_secs(120);
/// Numbers of containers are kept for a second.
const SCRAPE_EVERY: Duration = Duration::from_millis(1100);
/// A line of the big log, as kubectl shows it.
const LINE_BYTES: usize = 100;
const MIB: f64 = 1024.0 * 1024.0;

/// How much is done.
struct Size {
    execs: u32,
    forwarded: usize,
    log_bytes: usize,
    pods: usize,
    scrapes: u32,
    followers: usize,
}

const FULL: Size = Size { execs: 100, forwarded: 1 << 30, log_bytes: 1 << 30, pods: 110, scrapes: 20, followers: 1000 };
const QUICK: Size = Size { execs: 20, forwarded: 64 << 20, log_bytes: 64 << 20, pods: 10, scrapes: 5, followers: 200 };

fn main() -> ExitCode {
    let size = if std::env::var_os("STOKER_BENCH_QUICK").is_some() { QUICK } else { FULL };
    let mut lab = Lab::new();
    // The big log is one file.
    lab.configure("containerLogMaxSize: 16Gi\n");
    lab.start_containerd();
    lab.start_control_plane();
    lab.start_agent();
    lab.eventually("the node is ready", |lab| lab.node_is_ready());
    lab.enter_network();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime of one thread");
    let bench = match tokio.block_on(Bench::new(lab, size)) {
        Ok(bench) => bench,
        Err(error) => {
            eprintln!("the bench is broken: {error}");
            return ExitCode::FAILURE;
        }
    };
    let measured = tokio.block_on(bench.measure());
    drop(tokio);
    bench.lab.finish();
    match measured {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            eprintln!("missed: {}", missed.join(", "));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("the bench is broken: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Bench {
    lab: Lab,
    size: Size,
    api: NodeApi,
    runtime: Runtime,
    /// Of the first pod.
    pod: String,
    container: String,
    sandbox: String,
}

impl Bench {
    async fn new(lab: Lab, size: Size) -> Result<Self, Failure> {
        lab.apply(&pod(NAME).script(SCRIPT).deployment(1));
        lab.eventually("the first pod is ready", |lab| lab.ready_pods(NAME) == 1);
        let pod = lab.kubectl(&format!("get pods -l app={NAME} -o jsonpath={{.items[0].metadata.name}}"));
        let socket = lab.dir().join("containerd/containerd.sock");
        let runtime = Runtime::connect(&socket.to_string_lossy(), LONGEST)?;
        let containers = runtime.list_containers(None).await?;
        let container = containers.first().ok_or("no container")?;
        let (container, sandbox) = (container.id.clone(), container.pod_sandbox_id.clone());
        let api = NodeApi::new(&lab);
        Ok(Self { lab, size, api, runtime, pod, container, sandbox })
    }

    /// All rows: the names of those whose bar is missed.
    async fn measure(&self) -> Result<Vec<String>, Failure> {
        head();
        let asked: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
        let wants = |step: &str| asked.is_empty() || asked.iter().any(|word| word == step);
        let mut rows = Vec::new();
        if wants("exec") {
            rows.push(self.exec().await?);
        }
        if wants("port-forward") {
            rows.push(self.port_forward().await?);
        }
        if wants("logs") {
            rows.extend([self.big_log().await?, self.flat_memory().await?]);
        }
        if wants("scrapes") {
            rows.push(self.scrapes().await?);
        }
        if wants("followers") {
            rows.push(self.followers().await?);
        }
        Ok(rows.into_iter().flatten().collect())
    }

    /// `true` in a container: straight from the runtime, through the agent, and by kubectl.
    async fn exec(&self) -> Result<Option<String>, Failure> {
        let (mut direct, mut ours) = (Vec::new(), Vec::new());
        let path = format!("/exec/default/{}/{NAME}?command=true&output=1", self.pod);
        let mut used = Duration::ZERO;
        // The first of each is not counted: decisions about who may what are kept from then on.
        for round in 0..=self.size.execs {
            let request = cri::ExecRequest {
                container_id: self.container.clone(),
                cmd: vec!["true".to_owned()],
                stdout: true,
                ..cri::ExecRequest::default()
            };
            let begun = Clock.now().monotonic;
            let url = self.runtime.exec(request).await?;
            succeeded(&outcome_of_exec(upgrade_at(&url, "v4.channel.k8s.io").await?).await?)?;
            let between = Clock.now().monotonic;
            let before = processor_time(self.lab.agent_pid());
            succeeded(&outcome_of_exec(self.api.upgrade(&path, "v4.channel.k8s.io").await?).await?)?;
            if round > 0 {
                direct.push(between - begun);
                ours.push(Clock.now().monotonic - between);
                used += processor_time(self.lab.agent_pid()) - before;
            }
        }
        let kubectl = (0..10).map(|_| {
            let begun = Clock.now().monotonic;
            self.lab.kubectl(&format!("exec {} -- true", self.pod));
            Clock.now().monotonic - begun
        });
        let [kubectl, direct, ours] = [kubectl.collect(), direct, ours].map(|times| Spread::of(times).median);
        let beside = format!(
            "p50: runtime {direct:.1?}, through the agent + {:.1?} (bar: 5 ms), kubectl {kubectl:.1?} in all",
            ours.saturating_sub(direct)
        );
        let each = milliseconds(used) / f64::from(self.size.execs);
        Ok(row("exec true", each, 5.0, "ms of the agent's processor time", &beside))
    }

    /// Bytes from a port of a pod. Who is to let 80 % of the speed through may take 1/0.8 of the processor time that containerd takes.
    async fn port_forward(&self) -> Result<Option<String>, Failure> {
        let path = format!("/portForward/default/{}", self.pod);
        let (protocol, bytes) = ("portforward.k8s.io", self.size.forwarded);
        let (agent, containerd) = (self.lab.agent_pid(), self.lab.containerd_pid());
        let request = cri::PortForwardRequest { pod_sandbox_id: self.sandbox.clone(), port: Vec::new() };
        let url = self.runtime.port_forward(request).await?;
        let (begun, before) = (Clock.now().monotonic, processor_time(containerd));
        forwarded(upgrade_at(&url, protocol).await?, SENDER_PORT, b"", bytes).await?;
        let (direct, theirs) = (Clock.now().monotonic - begun, processor_time(containerd) - before);
        let (begun, before) = (Clock.now().monotonic, processor_time(agent));
        forwarded(self.api.upgrade(&path, protocol).await?, SENDER_PORT, b"", bytes).await?;
        let (through, ours) = (Clock.now().monotonic - begun, processor_time(agent) - before);
        let speed = |took: Duration| bytes as f64 / MIB / took.as_secs_f64();
        let beside = format!(
            "containerd's server gives {:.0} MiB/s, through the agent with TLS {:.0} MiB/s: {:.0} % (bar: 80 %)",
            speed(direct),
            speed(through),
            100.0 * speed(through) / speed(direct)
        );
        let each = |time: Duration| milliseconds(time) / (bytes as f64 / MIB);
        Ok(row("port-forward", each(ours), each(theirs) / 0.8, "ms/MiB; bar: containerd's own / 0.8", &beside))
    }

    /// Writes the log that is read: lines as containerd writes them.
    async fn write_log(&self) -> Result<usize, Failure> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(self.log_of(&self.container).await?)?);
        let line = format!("2026-01-02T03:04:05.123456789Z stdout F {:x<1$}\n", "", LINE_BYTES - 1);
        let lines = self.size.log_bytes / LINE_BYTES;
        for _ in 0..lines {
            file.write_all(line.as_bytes())?;
        }
        file.flush()?;
        Ok(lines * LINE_BYTES)
    }

    async fn log_of(&self, container: &str) -> Result<PathBuf, Failure> {
        let status = self.runtime.container_status(container, false).await?.status.ok_or("no status")?;
        Ok(status.log_path.into())
    }

    /// A log read by kubectl, through the API server.
    async fn big_log(&self) -> Result<Option<String>, Failure> {
        let wanted = self.write_log().await?;
        let (begun, before) = (Clock.now().monotonic, processor_time(self.lab.agent_pid()));
        let mut kubectl = self.lab.kubectl_command(&format!("logs {}", self.pod)).stdout(Stdio::piped()).spawn()?;
        let mut out = kubectl.stdout.take().ok_or("no output")?;
        let (mut came, mut piece) = (0, vec![0; 1 << 16]);
        loop {
            match out.read(&mut piece)? {
                0 => break,
                bytes => came += bytes,
            }
        }
        kubectl.wait()?;
        if came != wanted {
            return Err(format!("{came} bytes of the log came, and {wanted} were written").into());
        }
        let (took, used) = (Clock.now().monotonic - begun, processor_time(self.lab.agent_pid()) - before);
        let size = came as f64 / 1e6;
        let beside = format!("{:.0} MB by kubectl in {took:.1?}", size);
        Ok(row("logs", milliseconds(used) / size, 4.0, "ms of the agent's time per MB", &beside))
    }

    /// What the agent's memory grows by while it sends the same log to a client that reads as fast as it can.
    async fn flat_memory(&self) -> Result<Option<String>, Failure> {
        let (agent, done) = (self.lab.agent_pid(), Arc::new(AtomicBool::new(false)));
        let before = memory_kib(agent);
        let ends = done.clone();
        let watching = std::thread::spawn(move || {
            let mut most = 0;
            while !ends.load(Ordering::Relaxed) {
                most = most.max(memory_kib(agent));
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        });
        let path = format!("/containerLogs/default/{}/{NAME}", self.pod);
        let (_, mut answer) = self.api.ask("GET", &path, "Connection: close\r\n").await?;
        let (begun, mut came, mut piece) = (Clock.now().monotonic, 0, vec![0; 1 << 16]);
        loop {
            match answer.read(&mut piece).await? {
                0 => break,
                bytes => came += bytes,
            }
        }
        let took = Clock.now().monotonic - begun;
        done.store(true, Ordering::Relaxed);
        let most = watching.join().map_err(|_| "the memory cannot be read")?;
        let grown = most.saturating_sub(before) as f64 / 1024.0;
        let beside = format!("{:.0} MB straight from the agent in {took:.1?}", came as f64 / 1e6);
        File::create(self.log_of(&self.container).await?)?;
        Ok(row("logs, memory", grown, 8.0, "MiB more than before, at the most", &beside))
    }

    /// Numbers of a full node.
    async fn scrapes(&self) -> Result<Option<String>, Failure> {
        self.lab.kubectl(&format!("scale deployment {NAME} --replicas={}", self.size.pods));
        self.lab.eventually("some pods are ready", |lab| lab.ready_pods(NAME) * 2 > self.size.pods);
        self.lab.eventually("all pods are ready", |lab| lab.ready_pods(NAME) == self.size.pods);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let agent = self.lab.agent_pid();
        let before = processor_time(agent);
        tokio::time::sleep(SCRAPE_EVERY * self.size.scrapes).await;
        let idle = processor_time(agent) - before;
        let before = processor_time(agent);
        let (mut times, mut bytes) = (Vec::new(), 0);
        for _ in 0..self.size.scrapes {
            tokio::time::sleep(SCRAPE_EVERY).await;
            let begun = Clock.now().monotonic;
            bytes = self.api.page("/metrics/cadvisor").await?.len();
            times.push(Clock.now().monotonic - begun);
        }
        let used = (processor_time(agent) - before).saturating_sub(idle);
        let beside = format!("{} pods, {bytes} bytes, p50 {:.1?}", self.size.pods, Spread::of(times).median);
        let each = milliseconds(used) / f64::from(self.size.scrapes);
        Ok(row("/metrics/cadvisor", each, 20.0, "ms of the agent's processor time", &beside))
    }

    /// Many who follow logs; each gets the one line that is written in the end.
    async fn followers(&self) -> Result<Option<String>, Failure> {
        let list = self.lab.get(&format!("pods -l app={NAME}"));
        let names = list["items"].as_array().into_iter().flatten().filter_map(|pod| pod["metadata"]["name"].as_str());
        let names: Vec<&str> = names.collect();
        let agent = self.lab.agent_pid();
        let before = memory_kib(agent);
        let mut following = Vec::new();
        for number in 0..self.size.followers {
            let path = format!("/containerLogs/default/{}/{NAME}?follow=true", names[number % names.len()]);
            let (code, answer) = self.api.ask("GET", &path, "").await?;
            if code != 200 {
                return Err(format!("follower {number} is answered {code}").into());
            }
            following.push(answer);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let started = processor_time(agent);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let idle = processor_time(agent) - started;
        let grown = memory_kib(agent).saturating_sub(before) as f64 / 1024.0;
        for container in self.runtime.list_containers(None).await? {
            let mut log = File::options().append(true).open(self.log_of(&container.id).await?)?;
            writeln!(log, "2026-01-02T03:04:05.123456789Z stdout F hello")?;
        }
        let begun = Clock.now().monotonic;
        // The size of a chunk, then what is in it.
        let heard = following.iter_mut().map(async |follower| {
            let mut line = String::new();
            while !line.ends_with("hello\n") {
                line.clear();
                if follower.read_line(&mut line).await? == 0 {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
                }
            }
            Ok(())
        });
        let heard = tokio::time::timeout(LONGEST, join_all(heard)).await?;
        heard.into_iter().collect::<Result<Vec<()>, _>>()?;
        let took = Clock.now().monotonic - begun;
        let beside = format!("all hear the same line within {took:.1?}; idle, they take {:.1} % of a core", {
            idle.as_secs_f64() * 10.0
        });
        let bar = 64.0 * self.size.followers as f64 / 1000.0;
        Ok(row("logs -f, followers", grown, bar, "MiB of the agent's memory", &beside))
    }
}

fn succeeded(outcome: &str) -> Result<(), Failure> {
    if outcome.contains("\"Success\"") { Ok(()) } else { Err(format!("the command ended with {outcome:?}").into()) }
}
