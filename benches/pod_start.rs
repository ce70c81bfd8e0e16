//! How long a pod takes from its creation in the API to Running, and what of that is the runtime's: `make bench`, as root.
//!
//! A whole cluster of shipped binaries runs in namespaces of its own. In turns, on the same containerd: the three CRI calls that
//! any node agent needs (RunPodSandbox with the pod network, CreateContainer, StartContainer) with what they ask for when the agent
//! makes them, a pod without a service-account token, and one with it; then RunPodSandbox once more with the network plugins that
//! clusters usually have.
//! The clock stops when a watch shows Running. A missed bar is printed and is no
//! error, because other work on the machine makes it too.

#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "pods/mod.rs"]
mod pods;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use lab::Lab;
use lab::manifest::pod;
use lab::process::processor_time;
use pods::cluster::{Cluster, Took};
use pods::figures::{Spread, milliseconds};
use pods::raw::Raw;
use pods::{Failure, SCRIPT};

/// How often each of the three is done; the first of each is not counted.
const ROUNDS: usize = 16;
/// What we may add to the runtime's own time.
const BAR: Duration = Duration::from_millis(15);
/// Between two measurements, so that what the one leaves to be cleaned up does not slow the other.
const REST: Duration = Duration::from_millis(300);
/// A pod that the agent makes, for the raw calls to be like.
const MODEL: &str = "model";

fn main() -> ExitCode {
    let mut lab = Lab::start();
    lab.enter_network();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime of one thread");
    let measured: Result<(), Failure> = tokio.block_on(async {
        lab.apply(&pod(MODEL).command(&SCRIPT).spec("automountServiceAccountToken", false.into()).build());
        lab.eventually("the model runs", |lab| lab.get(&format!("pod {MODEL}"))["status"]["phase"] == "Running");
        let raw = Raw::like(&lab, MODEL).await?;
        let own = Spread::of(measure(&lab, &raw).await?);
        let usual = Spread::of(usual_network(&mut lab, &raw).await?);
        println!("raw RunPodSandbox with loopback, bridge, host-local and portmap: {usual}");
        let less = milliseconds(usual.median) - milliseconds(own.median);
        println!("medians: ours takes {less:.1} ms less (bar: 40 ms)");
        Ok(())
    });
    if measured.is_ok() {
        lab.start_agent();
        lab.finish();
    }
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the bench is broken: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The same call with the plugins of containerd's own example in place of ours. The agent, which would put ours back, ends.
async fn usual_network(lab: &mut Lab, raw: &Raw) -> Result<Vec<Duration>, Failure> {
    lab.kill_agent();
    for plugin in ["loopback", "bridge", "host-local", "portmap"] {
        let own = lab.dir().join("cni-bin").join(plugin);
        let _ = fs::remove_file(&own);
        fs::copy(Path::new("/usr/lib/cni").join(plugin), own)?;
    }
    let list = serde_json::json!({
        "cniVersion": "0.4.0", "name": "usual", "plugins": [
            {"type": "bridge", "bridge": "usual0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": {
                "type": "host-local", "dataDir": lab.dir().join("host-local"), "ranges": [[{"subnet": "10.99.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let folder = lab.dir().join("cni");
    for entry in fs::read_dir(&folder)? {
        fs::remove_file(entry?.path())?;
    }
    fs::write(folder.join("10-usual.conflist"), list.to_string())?;
    // containerd watches the folder.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let [sandbox, ..] = raw_calls(raw, &format!("usual-{round}")).await?;
        times.extend((round > 0).then_some(sandbox));
    }
    let bridge = lab.run("ip", &["-o", "link", "show", "usual0"]);
    if !bridge.success {
        return Err("the usual plugins were not called".into());
    }
    Ok(times)
}

/// How long RunPodSandbox took each time.
async fn measure(lab: &Lab, raw: &Raw) -> Result<Vec<Duration>, Failure> {
    let mut cluster = Cluster::connect(lab).await?;
    let (mut calls, mut bare, mut with_token, mut bound) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut used = [Duration::ZERO; 2];
    for round in 0..ROUNDS {
        let times = raw_calls(raw, &format!("raw-{round}")).await?;
        let before = [lab.agent_pid(), lab.control_plane_pid()].map(processor_time);
        let without = pod_from_create_to_gone(&mut cluster, &format!("bare-{round}"), false).await?;
        let with = pod_from_create_to_gone(&mut cluster, &format!("token-{round}"), true).await?;
        let after = [lab.agent_pid(), lab.control_plane_pid()].map(processor_time);
        if round == 0 {
            continue;
        }
        calls.push(times);
        bare.push(without.running);
        with_token.push(with.running);
        bound.extend([without.bound, with.bound]);
        used.iter_mut().zip(before).zip(after).for_each(|((used, before), after)| *used += after - before);
    }
    for (place, call) in ["RunPodSandbox", "CreateContainer", "StartContainer"].into_iter().enumerate() {
        println!("raw {call}: {}", Spread::of(calls.iter().map(|times| times[place])));
    }
    let sandboxes = calls.iter().map(|times| times[0]).collect();
    let raw = Spread::of(calls.iter().map(|times| times.iter().sum()));
    println!("raw, all three: {raw}");
    println!("create to bound, the control plane's part of what follows: {}", Spread::of(bound));
    for (what, times) in [("without a token", bare), ("with a token", with_token)] {
        let ours = Spread::of(times);
        let added = ours.median.saturating_sub(raw.median);
        let verdict = if added <= BAR { "met" } else { "missed" };
        let added_at_least = milliseconds(ours.least.saturating_sub(raw.least));
        println!("create to Running, {what}: {ours}");
        println!("medians: raw + {:.1} ms; least: raw + {added_at_least:.1} ms", milliseconds(added));
        println!("bar: raw + {} ms: {verdict}", BAR.as_millis());
    }
    let pods = u32::try_from((ROUNDS - 1) * 2)?;
    let [agent, control_plane] = used.map(|used| milliseconds(used / pods));
    println!("processor time from create to gone, a pod: agent {agent:.1} ms, control plane {control_plane:.1} ms");
    Ok(sandboxes)
}

/// A sandbox and a container without us: how long each of the calls took.
async fn raw_calls(raw: &Raw, name: &str) -> Result<[Duration; 3], Failure> {
    let started = raw.start(name).await?;
    raw.stop(&started).await?;
    raw.remove(&started).await?;
    tokio::time::sleep(REST).await;
    Ok(started.took)
}

/// How long a pod took to run. When this returns the pod is gone.
async fn pod_from_create_to_gone(cluster: &mut Cluster, name: &str, token: bool) -> Result<Took, Failure> {
    let manifest = pod(name).command(&SCRIPT).spec("automountServiceAccountToken", token.into()).build();
    let took = cluster.start(&manifest, usize::from(token)).await?;
    cluster.delete(name).await?;
    tokio::time::sleep(REST).await;
    Ok(took)
}
