//! The machine goes down: a logind of the test's own, on a real bus, is what the agent hears it from.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use zbus::object_server::SignalEmitter;

use crate::lab::manifest::pod;
use crate::lab::{Lab, text};

const PATH: &str = "/org/freedesktop/login1";

/// The daemon's configuration: all may talk to all.
const BUS: &str = r#"<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <listen>unix:path=@DIR@/bus</listen>
  <auth>EXTERNAL</auth>
  <pidfile>@DIR@/bus.pid</pidfile>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>"#;

#[derive(Debug, Default)]
struct State {
    delay_microseconds: u64,
    calls: Vec<String>,
    /// It ends when whoever has the lock lets go of it.
    lock: Option<UnixStream>,
}

#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<State>>);

struct Login(Shared);
struct Systemd(Shared);

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Login {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::zvariant::OwnedFd {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut state = self.0.0.lock().unwrap();
        state.calls.push(format!("inhibit {what} {mode} for {who}: {why}"));
        state.lock = Some(ours);
        OwnedFd::from(theirs).into()
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max(&self) -> u64 {
        self.0.0.lock().unwrap().delay_microseconds
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn kill_unit(&self, name: &str, who: &str, signal: i32) {
        let mut state = self.0.0.lock().unwrap();
        state.calls.push(format!("kill {name} {who} {signal}"));
        state.delay_microseconds = 7_000_000;
    }
}

impl Shared {
    fn locked(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        let Some(lock) = &mut state.lock else { return false };
        // Nobody writes: it blocks, or it is at its end.
        lock.read(&mut [0]).is_err()
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }
}

async fn serve(dir: &Path, shared: &Shared) -> zbus::Connection {
    let address = format!("unix:path={}", dir.join("bus").display());
    let builder = zbus::connection::Builder::address(address.as_str()).unwrap();
    let builder = builder.serve_at(PATH, Login(shared.clone())).unwrap();
    let builder = builder.serve_at("/org/freedesktop/systemd1", Systemd(shared.clone())).unwrap();
    let builder = builder.name("org.freedesktop.login1").unwrap().name("org.freedesktop.systemd1").unwrap();
    builder.build().await.unwrap()
}

fn start_bus(lab: &Lab) {
    lab.run("dbus-daemon", &["--fork", &format!("--config-file={}/bus.conf", lab.dir().display())])
        .expect_success("dbus-daemon, of the package dbus-daemon");
}

#[test]
fn pods_end_before_the_machine_does() {
    // A15.10, A6.4, A22.1m, A21.2
    let threads = tokio::runtime::Runtime::new().unwrap();
    let mut lab = Lab::new();
    let dir = lab.dir().to_owned();
    std::fs::write(dir.join("bus.conf"), BUS.replace("@DIR@", dir.to_str().unwrap())).unwrap();
    // What is written there is written for this lab alone.
    for (program, arguments) in [("mount", "-t tmpfs tmpfs /etc/systemd"), ("mkdir", "-p /run/dbus")] {
        lab.run(program, &arguments.split(' ').collect::<Vec<_>>()).expect_success(program);
    }
    start_bus(&lab);
    let logind = Shared::default();
    logind.0.lock().unwrap().delay_microseconds = 5_000_000;
    let connection = threads.block_on(serve(&dir, &logind));
    let config = dir.join("kubelet.yaml");
    let fields = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{fields}\nshutdownGracePeriod: 7s\nshutdownGracePeriodCriticalPods: 3s\n"))
        .unwrap();
    lab.start_containerd();
    lab.start_control_plane();
    lab.start_agent();
    lab.eventually("the node is ready", Lab::node_is_ready);
    lab.eventually("it has logind wait", |_| logind.locked());
    assert_eq!(
        logind.calls(),
        [
            "kill systemd-logind.service all 1",
            "inhibit shutdown delay for kubelet: Kubelet needs time to handle node shutdown"
        ]
    );
    let written = lab.run("cat", &["/etc/systemd/logind.conf.d/99-kubelet.conf"]).expect_success("cat");
    assert!(written.ends_with("[Login]\nInhibitDelayMaxSec=7\n"), "{written}");

    // One that does not hear the signal, and one that others need until their end.
    let mut deaf = pod("deaf").script("trap '' TERM; while true; do sleep 0.1; done").build();
    deaf["spec"]["terminationGracePeriodSeconds"] = json!(2);
    lab.apply(&deaf);
    let mut critical = pod("needed").script("trap 'exit 0' TERM; while true; do sleep 0.1; done").build();
    critical["metadata"]["namespace"] = json!("kube-system");
    critical["spec"]["priorityClassName"] = json!("system-node-critical");
    lab.apply(&critical);
    lab.eventually("both are ready", |lab| lab.ready_pods("deaf") == 1);
    let of = |lab: &Lab, name: &str| -> Value {
        serde_json::from_str(&lab.try_kubectl(&format!("get {name} -o json")).out).unwrap_or_default()
    };
    lab.eventually("both run", |lab| of(lab, "pod -n kube-system needed")["status"]["phase"] == "Running");
    let signal = |begins: bool| {
        threads.block_on(async {
            let emitter = SignalEmitter::new(&connection, PATH).unwrap();
            Login::prepare_for_shutdown(&emitter, begins).await.unwrap();
        });
    };
    signal(true);
    let ready = |lab: &Lab| {
        let node = of(lab, "node lab");
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == "Ready").unwrap_or_default()
    };
    lab.eventually("the node says what happens", |lab| {
        let ready = ready(lab);
        (text(&ready["status"]), text(&ready["reason"]), text(&ready["message"]))
            == ("False".into(), "KubeletNotReady".into(), "node is shutting down".into())
    });
    assert!(logind.locked(), "the pods are not through yet");
    assert_eq!(of(&lab, "pod -n kube-system needed")["status"]["phase"], "Running", "it is not its turn");
    // Past the scheduler, which knows better by now.
    let mut late = pod("late").script("sleep 1000").build();
    late["spec"]["nodeName"] = json!("lab");
    lab.apply(&late);
    let ended = |lab: &Lab, name: &str| {
        let status = &of(lab, name)["status"];
        (text(&status["phase"]), text(&status["reason"]), text(&status["message"]))
    };
    lab.eventually("nothing new is admitted", |lab| {
        ended(lab, "pod late")
            == (
                "Failed".into(),
                "NodeShutdown".into(),
                "Pod was rejected: Pod was rejected as the node is shutting down.".into(),
            )
    });
    lab.eventually("the machine may go", |_| !logind.locked());
    for name in ["pod deaf", "pod -n kube-system needed"] {
        let status = &of(&lab, name)["status"];
        assert_eq!(text(&status["phase"]), "Failed", "{name} {status}");
        assert_eq!(text(&status["reason"]), "Terminated");
        assert_eq!(text(&status["message"]), "Pod was terminated in response to imminent node shutdown.");
        let conditions = status["conditions"].as_array().unwrap();
        let disrupted = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget").unwrap();
        assert_eq!(text(&disrupted["reason"]), "TerminationByKubelet");
        assert_eq!(disrupted["message"], status["message"]);
    }
    let state = |name: &str| of(&lab, name)["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    let (deaf, needed) = (state("pod deaf"), state("pod -n kube-system needed"));
    assert_eq!((&deaf["exitCode"], &needed["exitCode"]), (&json!(137), &json!(0)));
    assert!(text(&deaf["finishedAt"]) <= text(&needed["finishedAt"]), "{deaf} {needed}");
    let kept = std::fs::read_to_string(dir.join("kubelet/graceful_node_shutdown_state")).unwrap();
    assert!(kept.starts_with("{\"endTime\":\"2"), "{kept}");
    let metrics = lab.kubectl("get --raw /api/v1/nodes/lab/proxy/metrics");
    for name in ["kubelet_graceful_shutdown_start_time_seconds", "kubelet_graceful_shutdown_end_time_seconds"] {
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        assert!(value.is_some_and(|seconds| seconds > 1e9), "{name} {value:?}");
    }

    // It is called off.
    signal(false);
    lab.eventually("the node is ready again", Lab::node_is_ready);
    lab.eventually("the next shutdown waits, too", |_| logind.locked());
    for what in ["Shutdown manager detected shutdown event", "Shutdown manager detected shutdown cancellation"] {
        lab.eventually(what, |lab| {
            lab.get("events --field-selector reason=Shutdown")["items"].to_string().contains(what)
        });
    }
    lab.kubectl("delete pod late deaf --wait=false");
    lab.apply(&pod("after").script("sleep 1000").build());
    lab.eventually("pods are admitted", |lab| lab.ready_pods("after") == 1);

    // The bus goes, and comes back with another logind.
    let pid = std::fs::read_to_string(dir.join("bus.pid")).unwrap();
    lab.run("kill", &[pid.trim()]).expect_success("kill");
    lab.eventually("the bus is gone", |lab| !lab.run("kill", &["-0", pid.trim()]).success);
    drop(connection);
    let _ = std::fs::remove_file(dir.join("bus.pid"));
    start_bus(&lab);
    let another = Shared::default();
    another.0.lock().unwrap().delay_microseconds = 60_000_000;
    let _connection = threads.block_on(serve(&dir, &another));
    lab.eventually("that one waits, too", |_| another.locked());
    lab.finish();
}
