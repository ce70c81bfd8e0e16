//! What a probe costs the agent, at 500 a second: `make bench`.
//!
//! A child of this program answers, over HTTP and with bare connections, so that its work does not count. A missed bar is printed and
//! is no error, because other work on the machine makes it too.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};
use stoker::clock::Clock;
use stoker::probe::{Ended, Exec, ExecError, Prober, Target, View};
use stoker_model::handle::{EventSink, EventSubject, EventType};
use stoker_model::pod::{PodRef, PodUid};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Containers, each with one readiness probe a second.
const CONTAINERS: usize = 500;
/// What one probe may cost.
const BAR_MS: f64 = 0.1;
const MEASURED: Duration = Duration::from_secs(10);
/// Until all of them have begun.
const SETTLES: Duration = Duration::from_secs(3);
/// The kernel's unit of processor time in `/proc`.
const TICK_MS: f64 = 10.0;
/// Makes this program the one that answers.
const SERVE: &str = "serve";

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == SERVE) {
        serve();
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the bench is broken: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers for ever: a request with 200, a bare connection with nothing.
fn serve() -> ! {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has ports");
    println!("{}", listener.local_addr().expect("it is bound").port());
    loop {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        let mut request = [0; 1024];
        if stream.read(&mut request).is_ok_and(|read| read > 0) {
            // Who hangs up is no concern of ours.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        }
    }
}

fn measure() -> Result<(), Failure> {
    let mut server = Command::new(std::env::current_exe()?).arg(SERVE).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let port: u16 = line.trim().parse()?;
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = tokio.block_on(async {
        for (kind, action) in
            [("tcp", json!({ "tcpSocket": { "port": port } })), ("http", json!({ "httpGet": { "port": port } }))]
        {
            of_kind(kind, &action).await?;
        }
        Ok::<(), Failure>(())
    });
    server.kill()?;
    server.wait()?;
    measured
}

async fn of_kind(kind: &str, action: &Value) -> Result<(), Failure> {
    let mut probe = json!({ "periodSeconds": 1, "timeoutSeconds": 5 });
    if let (Some(probe), Some(action)) = (probe.as_object_mut(), action.as_object()) {
        probe.extend(action.clone());
    }
    let container: Container = serde_json::from_value(json!({ "name": "c", "readinessProbe": probe }))?;
    let stop = CancellationToken::new();
    let prober = Prober::spawn(Arc::new(Nobody), Arc::new(Nobody), stop.clone());
    let wake = Arc::new(Notify::new());
    for number in 0..CONTAINERS {
        let name = format!("p{number}");
        let pod = PodRef { namespace: "default".into(), name: name.clone(), uid: PodUid::new(&name) };
        let target = Target {
            id: &name,
            spec: &container,
            field_path: "spec.containers{c}",
            running_since: Clock.now().wall,
            reported: None,
        };
        prober.keep(View { pod: &pod, address: "127.0.0.1", ending: false, containers: &[target] }, &wake);
        // As pods start: not all in the same moment.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(SETTLES).await;
    let (before, used) = (done(&prober), ticks()?);
    tokio::time::sleep(MEASURED).await;
    let (probes, used) = (done(&prober) - before, ticks()? - used);
    stop.cancel();
    let each = f64::from(used) * TICK_MS / probes as f64;
    let verdict = if each <= BAR_MS { "met" } else { "missed" };
    println!("{kind}: {} probes a second, {each:.3} ms of processor time each", probes / MEASURED.as_secs());
    println!("bar: {BAR_MS} ms: {verdict}");
    Ok(())
}

/// Probes that have succeeded so far.
fn done(prober: &Prober) -> u64 {
    let text = prober.metrics();
    let totals = text.lines().filter(|line| line.starts_with("prober_probe_total") && line.contains("successful"));
    totals.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Processor time of this process so far.
fn ticks() -> Result<u32, Failure> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name may hold blanks; utime and stime are the 12th and 13th field after it.
    let fields = stat.rsplit_once(") ").ok_or("no name in the process's stat")?.1;
    fields.split(' ').skip(11).take(2).map(|field| Ok(field.parse::<u32>()?)).sum()
}

/// Runs nothing, and hears nothing.
struct Nobody;

#[async_trait::async_trait]
impl Exec for Nobody {
    async fn exec(&self, _: &str, _: Vec<String>, _: Duration) -> Result<Ended, ExecError> {
        Ok(Ended::default())
    }
}

impl EventSink for Nobody {
    fn publish(&self, _: EventSubject, _: EventType, _: &str, _: String) {}

    fn publish_annotated(
        &self,
        _: EventSubject,
        _: EventType,
        _: &str,
        _: String,
        _: std::collections::BTreeMap<String, String>,
    ) {
    }
}
