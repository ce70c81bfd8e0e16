//! What many pods cost, in a whole cluster of shipped binaries: `cargo bench --bench many_pods`, as root.
//!
//! A burst of 30 and of 100 beside the same raw calls, ten at a time; delete to gone beside the raw calls that stop a pod; processor time
//! and memory of an agent whose pods do nothing; an agent that is killed and comes back. What is counted (processor time and memory) must
//! hold, or the bench fails; missed bars of times on the wall are only printed, because other work on the machine makes them too. The clock
//! of a burst's start stands still for what the host of a virtual machine gives to others.
//! `STOKER_BENCH_QUICK=1` makes all of it small, with the same bars; `STOKER_BINARIES` names the folder of the binaries. Words choose what
//! is measured: `burst`, `delete`, `idle`, `restart`. Each begins with a new agent. Of the agent nothing is used but its process and the
//! API, so another one can stand in its place. While raw calls are made the agent is paused: it may end sandboxes that no pod has.

#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "pods/mod.rs"]
mod pods;

use std::process::ExitCode;
use std::time::Duration;

use lab::manifest::pod;
use lab::process::{Machine, Paused, memory_kib, processor_time, proportional_kib};
use lab::{Lab, NODE};
use pods::cluster::{Cluster, is_running};
use pods::figures::{Spread, head, milliseconds, row, timed};
use pods::raw::Raw;
use pods::{Failure, SCRIPT};
use serde_json::Value;
use stoker::clock::Clock;

/// A pod that the agent makes, for the raw calls to be like.
const MODEL: &str = "model";
/// A tenth of what kubelet takes for a pod from create to gone: 63 ms.
const POD_MS: f64 = 6.3;
/// What a burst may take of the raw calls' time.
const BURST: f64 = 1.05;
/// What a pod may take to go beyond the raw calls' time.
const DELETE_MS: f64 = 15.0;
/// A tenth of what kubelet takes with 30 and with 100 pods that do nothing, in % of a core.
const IDLE_PERCENT: [f64; 2] = [0.24, 0.35];
/// An eighth of its memory with so many, in MB of 10^6 bytes.
const IDLE_MB: [f64; 2] = [103.0 / 8.0, 128.0 / 8.0];
/// From the start of an agent to a waiting pod that runs, on the wall; and its processor time until [`AFTER`] that.
const RESTART_MS: [f64; 2] = [500.0, 150.0];
/// What is done late still counts.
const AFTER: Duration = Duration::from_secs(2);
/// A round of bursts counts if the host of a virtual machine gave no larger share of it to others: caches are cold after that too.
const MOST_STOLEN: f64 = 0.15;
/// Memory is read so often while pods do nothing: what of the program is mapped depends on what the agent has just done.
const MOMENTS: u32 = 12;
/// After a start: until the shell listens to signals, and what came with the start is done.
const REST: Duration = Duration::from_secs(1);

/// How much is done.
struct Size {
    /// Pods in two sizes.
    pods: [usize; 2],
    /// Bursts of each size.
    bursts: [usize; 2],
    deletes: usize,
    restarts: usize,
    /// After the last pod runs.
    settles: Duration,
    idle: Duration,
}

const FULL: Size = Size {
    pods: [30, 100],
    bursts: [7, 3],
    deletes: 15,
    restarts: 5,
    settles: Duration::from_secs(20),
    idle: Duration::from_secs(60),
};
const QUICK: Size = Size {
    pods: [4, 12],
    bursts: [2, 1],
    deletes: 3,
    restarts: 2,
    settles: Duration::from_secs(3),
    idle: Duration::from_secs(6),
};

fn main() -> ExitCode {
    let size = if std::env::var_os("STOKER_BENCH_QUICK").is_some() { QUICK } else { FULL };
    let lab = Lab::start();
    lab.enter_network();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime of one thread");
    let mut bench = Bench { lab, size };
    match tokio.block_on(bench.measure()) {
        Ok(missed) => {
            drop(tokio);
            bench.lab.finish();
            if missed.is_empty() {
                return ExitCode::SUCCESS;
            }
            eprintln!("missed: {}", missed.join(", "));
        }
        Err(error) => eprintln!("the bench is broken: {error}"),
    }
    ExitCode::FAILURE
}

/// A burst by raw calls and one through the API. That all run is timed by a clock that stands still for what the host gives to others.
struct Round {
    raw_started: Duration,
    raw_ended: Duration,
    started: Duration,
    /// From create to Running.
    each: Vec<Duration>,
    ended: Duration,
    /// Processor time of the agent and of the control plane, create to gone.
    used: [Duration; 2],
    /// The larger of both starts' shares that the host gave to others.
    stolen: f64,
}

struct Bench {
    lab: Lab,
    size: Size,
}

/// So many pods with a token, of which nobody asks anything.
fn manifests(prefix: &str, pods: usize) -> Vec<Value> {
    (0..pods).map(|number| pod(&format!("{prefix}-{number}")).command(&SCRIPT).build()).collect()
}

fn names(manifests: &[Value]) -> Vec<String> {
    manifests.iter().map(|manifest| lab::text(&manifest["metadata"]["name"])).collect()
}

impl Bench {
    /// All rows: the names of those that count and whose bar is missed.
    async fn measure(&mut self) -> Result<Vec<String>, Failure> {
        head();
        let asked: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
        let wants = |step: &str| asked.is_empty() || asked.iter().any(|word| word == step);
        let mut rows = Vec::new();
        for place in 0..self.size.pods.len() {
            if wants("burst") {
                rows.push(self.burst(self.size.pods[place], self.size.bursts[place]).await?);
            }
        }
        if wants("delete") {
            self.delete().await?;
        }
        for place in 0..self.size.pods.len() {
            if wants("idle") {
                rows.extend(self.idle(self.size.pods[place], IDLE_PERCENT[place], IDLE_MB[place]).await?);
            }
        }
        if wants("restart") {
            rows.push(self.restart().await?);
        }
        Ok(rows.into_iter().flatten().collect())
    }

    /// A new agent, which has made the model pod; and the raw calls that are like it.
    async fn new_agent(&mut self) -> Result<(Cluster, Raw), Failure> {
        self.lab.kill_agent();
        self.lab.start_agent();
        let mut cluster = Cluster::connect(&self.lab).await?;
        cluster.start(&pod(MODEL).command(&SCRIPT).build(), 1).await?;
        let raw = Raw::like(&self.lab, MODEL).await?;
        tokio::time::sleep(AFTER).await;
        Ok((cluster, raw))
    }

    /// The same pods by raw calls and through the API, in turns.
    async fn burst(&mut self, pods: usize, rounds: usize) -> Result<Option<String>, Failure> {
        let (_, raw) = self.new_agent().await?;
        let (mut counted, mut left_out) = (Vec::new(), 0);
        while counted.len() < rounds {
            let round = self.round(&raw, &format!("{pods}-{}", counted.len() + left_out), pods).await?;
            if round.stolen <= MOST_STOLEN {
                counted.push(round);
            } else if left_out < 2 * rounds {
                left_out += 1;
            } else {
                return Err(format!(
                    "the host gave {:.0} % of this machine to others in too many rounds: try again when it gives less (steal in vmstat)",
                    round.stolen * 100.0
                )
                .into());
            }
        }
        Cluster::connect(&self.lab).await?.delete(MODEL).await?;
        let median = |time: fn(&Round) -> Duration| Spread::of(counted.iter().map(time)).median;
        let [raw_started, raw_ended, started, ended] = [
            median(|round| round.raw_started),
            median(|round| round.raw_ended),
            median(|round| round.started),
            median(|round| round.ended),
        ]
        .map(milliseconds);
        let each = Spread::of(counted.iter().flat_map(|round| round.each.iter().copied()));
        let beside = format!(
            "raw {raw_started:.0} ms: {:+.1} %; a pod from create to Running p50 {:.0} ms, p90 {:.0} ms; all gone in {ended:.0} ms, raw \
             {raw_ended:.0} ms",
            (started / raw_started - 1.0) * 100.0,
            milliseconds(each.median),
            milliseconds(each.p90),
        );
        // Printed, and no more.
        let _ = row(
            &format!("burst of {pods}, all Running"),
            started,
            raw_started * BURST,
            "ms that were ours; bar: raw + 5 %",
            &beside,
        );
        let count = u32::try_from(pods)?;
        let [agent, control_plane] =
            [median(|round| round.used[0]), median(|round| round.used[1])].map(|used| milliseconds(used / count));
        let beside = format!("control plane {control_plane:.1} ms; {rounds} rounds, {left_out} more were left out");
        let unit = "ms of the agent's, a pod, create to gone";
        Ok(row(&format!("burst of {pods}, processor time"), agent, POD_MS, unit, &beside))
    }

    /// One burst by raw calls, and one through the API.
    async fn round(&self, raw: &Raw, name: &str, pods: usize) -> Result<Round, Failure> {
        let processes = [self.lab.agent_pid(), self.lab.control_plane_pid()];
        let paused = Paused::new(processes[0]);
        let machine = Machine::now();
        let (sandboxes, raw_started) = raw.start_all(&format!("raw-{name}"), pods).await?;
        let raw_stolen = machine.stolen_since();
        tokio::time::sleep(REST).await;
        let raw_ended = raw.end_all(&sandboxes).await?;
        drop(paused);
        tokio::time::sleep(AFTER).await;
        let mut cluster = Cluster::connect(&self.lab).await?;
        let manifests = manifests(&format!("burst-{name}"), pods);
        let names = names(&manifests);
        let before = processes.map(processor_time);
        let machine = Machine::now();
        let starts = cluster.start_all(manifests).await?;
        let stolen = machine.stolen_since();
        tokio::time::sleep(REST).await;
        let ends = cluster.delete_all(names).await?;
        tokio::time::sleep(AFTER).await;
        let after = processes.map(processor_time);
        Ok(Round {
            raw_started: raw_started.mul_f64(1.0 - raw_stolen),
            raw_ended,
            started: starts.all.mul_f64(1.0 - stolen),
            each: starts.each,
            ended: ends.all,
            used: [after[0] - before[0], after[1] - before[1]],
            stolen: stolen.max(raw_stolen),
        })
    }

    /// One pod at a time, raw and through the API in turns.
    async fn delete(&mut self) -> Result<(), Failure> {
        let (mut cluster, raw) = self.new_agent().await?;
        let (mut stopped, mut removed, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        // The first of each is not counted.
        for round in 0..=self.size.deletes {
            let paused = Paused::new(self.lab.agent_pid());
            let sandbox = raw.start(&format!("raw-end-{round}")).await?;
            tokio::time::sleep(REST).await;
            let (stopping, removing) = (raw.stop(&sandbox).await?, raw.remove(&sandbox).await?);
            drop(paused);
            tokio::time::sleep(REST).await;
            let name = format!("end-{round}");
            cluster.start(&pod(&name).command(&SCRIPT).build(), 1).await?;
            tokio::time::sleep(REST).await;
            let going = cluster.delete(&name).await?;
            tokio::time::sleep(REST).await;
            if round > 0 {
                stopped.push(stopping);
                removed.push(removing);
                gone.push(going);
            }
        }
        cluster.delete(MODEL).await?;
        let [stopped, removed, gone] = [stopped, removed, gone].map(Spread::of);
        let beside = format!("gone: {gone}; raw stop: {stopped}; raw removal: {removed}");
        let bar = milliseconds(stopped.median) + DELETE_MS;
        // Printed, and no more.
        let _ =
            row("delete to gone", milliseconds(gone.median), bar, "ms on the wall, p50; bar: raw stop + 15", &beside);
        Ok(())
    }

    /// Pods that do nothing.
    async fn idle(&mut self, pods: usize, percent: f64, megabytes: f64) -> Result<[Option<String>; 2], Failure> {
        let (mut cluster, _) = self.new_agent().await?;
        cluster.delete(MODEL).await?;
        let manifests = manifests(&format!("idle-{pods}"), pods);
        let names = names(&manifests);
        cluster.start_all(manifests).await?;
        tokio::time::sleep(self.size.settles).await;
        let agent = self.lab.agent_pid();
        let (before, mut memory) = (processor_time(agent), Vec::new());
        let ((), took) = timed(async {
            for _ in 0..MOMENTS {
                tokio::time::sleep(self.size.idle / MOMENTS).await;
                memory.push(proportional_kib(agent));
            }
        })
        .await;
        let used = processor_time(agent) - before;
        let [mean, most, own] = [
            memory.iter().sum::<u64>() / u64::from(MOMENTS),
            memory.into_iter().max().unwrap_or_default(),
            memory_kib(agent),
        ]
        .map(|kib| kib as f64 * 1024.0 / 1e6);
        Cluster::connect(&self.lab).await?.delete_all(names).await?;
        let share = used.as_secs_f64() / took.as_secs_f64() * 100.0;
        let beside = format!("{} ms within {:.0} s", used.as_millis(), took.as_secs_f64());
        Ok([
            row(&format!("idle with {pods}, processor time"), share, percent, "% of a core", &beside),
            row(
                &format!("idle with {pods}, memory"),
                mean,
                megabytes,
                "MB (PSS), mean",
                &format!("{most:.1} MB at most, {own:.1} MB without the program"),
            ),
        ])
    }

    /// An agent that is killed, and finds its pods and one that waits.
    async fn restart(&mut self) -> Result<Option<String>, Failure> {
        const NAME: &str = "waiting";
        let (mut cluster, _) = self.new_agent().await?;
        cluster.delete(MODEL).await?;
        let manifests = manifests("restart", self.size.pods[0]);
        let names = names(&manifests);
        cluster.start_all(manifests).await?;
        tokio::time::sleep(self.size.settles).await;
        let (mut waited, mut used) = (Vec::new(), Vec::new());
        for _ in 0..self.size.restarts {
            self.lab.kill_agent();
            cluster.create(&pod(NAME).command(&SCRIPT).spec("nodeName", NODE.into()).build(), 1).await?;
            tokio::time::sleep(REST).await;
            let begun = Clock.now().monotonic;
            self.lab.start_agent();
            cluster.until(NAME, is_running).await?;
            waited.push(Clock.now().monotonic - begun);
            tokio::time::sleep(AFTER).await;
            used.push(processor_time(self.lab.agent_pid()));
            cluster.delete(NAME).await?;
            tokio::time::sleep(AFTER).await;
        }
        cluster.delete_all(names).await?;
        let [waited, used] = [waited, used].map(Spread::of);
        let [wall, counted] = RESTART_MS;
        let (beside, p50) = (waited.to_string(), milliseconds(waited.median));
        // Printed, and no more.
        let _ = row("restart to a waiting pod Running", p50, wall, "ms on the wall, p50", &beside);
        let unit = "ms of the agent's until 2 s after, p50";
        Ok(row("restart, processor time", milliseconds(used.median), counted, unit, &used.to_string()))
    }
}
