//! Probes and hooks of real containers.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ContainerPort, ExecAction, HTTPGetAction, HTTPHeader, Lifecycle, LifecycleHandler, Probe, SleepAction,
    TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::node::{Node, condition, pod, state, status};

const LONG: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn exec(script: &str) -> ExecAction {
    ExecAction { command: Some(["/bin/busybox", "sh", "-c", script].map(String::from).to_vec()) }
}

fn probe(script: &str) -> Probe {
    Probe { exec: Some(exec(script)), period_seconds: Some(1), failure_threshold: Some(1), ..Probe::default() }
}

impl Node {
    /// Runs a command in a container of a pod.
    async fn exec(&self, uid: &stoker_model::pod::PodUid, container: &str, script: &str) {
        let id = status(&self.api.pod(uid).unwrap(), container).container_id.unwrap();
        let command = exec(script).command.unwrap();
        let id = id.trim_start_matches("containerd://");
        let answer = self.lab.runtime.exec_sync(id, command, Duration::from_secs(10)).await.unwrap();
        assert_eq!(answer.exit_code, 0, "{answer:?}");
    }

    async fn until_told(&self, wanted: &str) {
        for _ in 0..200 {
            if self.told(wanted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{wanted} was not told: {:#?}", self.api.events());
    }

    fn told(&self, wanted: &str) -> bool {
        self.api.events().iter().any(|e| e.starts_with(wanted))
    }
}

#[tokio::test]
async fn probes_start_ready_and_kill_a_container() {
    // A5.3, A5.4, A5.5, A5.6, A5.11, A5.12, A5.13, A21.1
    let mut node = Node::start().await;
    let mut grace = probe("test ! -e /tmp/dead");
    grace.termination_grace_period_seconds = Some(1);
    let built = pod("p").container("main", LONG).with(|c| {
        c.startup_probe = Some(Probe { failure_threshold: Some(60), ..probe("test -e /tmp/up") });
        c.readiness_probe = Some(probe("test -e /tmp/ready || { echo not yet; exit 1; }"));
        c.liveness_probe = Some(grace);
    });
    let uid = node.api.create(built.0);
    let runs = node.api.until(&uid, "running", |p| status(p, "main").state.is_some_and(|s| s.running.is_some())).await;
    assert_eq!((status(&runs, "main").started, status(&runs, "main").ready), (Some(false), false));
    node.until_told("p spec.containers{main} Unhealthy: Startup probe failed: ").await;
    node.exec(&uid, "main", "touch /tmp/up").await;
    let started = node.api.until(&uid, "started", |p| status(p, "main").started == Some(true)).await;
    assert!(!status(&started, "main").ready && !condition(&started, "Ready"));
    let not_yet = "p spec.containers{main} Unhealthy: Readiness probe failed: not yet";
    node.until_told(not_yet).await;
    let told = || node.api.events().iter().filter(|event| event.starts_with(not_yet)).count();
    for _ in 0..100 {
        if told() > 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(told() > 1, "each time it fails: {:#?}", node.api.events());
    node.exec(&uid, "main", "touch /tmp/ready").await;
    node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    node.stop_agent().await;
    node.start_agent();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let main = status(&node.api.pod(&uid).unwrap(), "main");
        assert_eq!((main.started, main.ready, main.restart_count), (Some(true), true, 0), "{main:?}");
    }

    node.exec(&uid, "main", "rm /tmp/ready").await;
    let unready = node.api.until(&uid, "unready", |p| !condition(p, "Ready"));
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, unready).await.expect("nobody waits for the next round, which is a minute away");
    node.exec(&uid, "main", "touch /tmp/dead").await;
    let again = node.api.until(&uid, "restarted", |p| status(p, "main").restart_count == 1).await;
    assert_eq!(state(status(&again, "main").last_state.as_ref()), "terminated 0 Completed");
    assert!(node.told("p spec.containers{main} Unhealthy: Liveness probe failed: "), "{:#?}", node.api.events());
    assert!(node.told("p spec.containers{main} Killing: Container main failed liveness probe, will be restarted"));
    assert!(!condition(&again, "Ready"));
    let counted = node.probe_metrics();
    let place = "{container=\"main\",namespace=\"default\",pod=\"p\"";
    for line in [
        format!("prober_probe_total{place},pod_uid=\"p-uid\",probe_type=\"Readiness\",result=\"failed\"}} "),
        format!("prober_probe_total{place},pod_uid=\"p-uid\",probe_type=\"Readiness\",result=\"successful\"}} "),
        format!("prober_probe_total{place},pod_uid=\"p-uid\",probe_type=\"Liveness\",result=\"failed\"}} 1"),
        format!("prober_probe_duration_seconds_count{place},probe_type=\"Readiness\"}} "),
    ] {
        assert!(counted.lines().any(|counted| counted.starts_with(&line)), "{line}\n{counted}");
    }
    node.api.delete(&uid, 2);
    node.api.until_gone(&uid).await;
    node.until_nothing_is_left(&uid).await;
    // A1.6: nobody probes it any more, and nothing is told of that.
    crate::volumes::until("its probes are forgotten", || !node.probe_metrics().contains("pod=\"p\"")).await;
    node.stop().await;
}

#[tokio::test]
async fn probes_over_the_network_and_slow_commands() {
    // A5.6, A5.8, A5.10, A5.11
    let node = Node::start().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let serve = format!("mkdir /www; echo hi > /www/a; exec busybox httpd -f -p 127.0.0.1:{free} -h /www");
    let host = Some("127.0.0.1".to_owned());
    let named = IntOrString::String("web".into());
    let built = pod("web").container("main", &serve).with(|c| {
        let port = ContainerPort { name: Some("web".into()), container_port: free.into(), ..ContainerPort::default() };
        c.ports = Some(vec![port]);
        let get =
            HTTPGetAction { host: host.clone(), path: Some("/a".into()), port: named.clone(), ..Default::default() };
        c.readiness_probe = Some(Probe { http_get: Some(get), period_seconds: Some(1), ..Probe::default() });
        let tcp = TCPSocketAction { host: host.clone(), port: named.clone() };
        c.liveness_probe = Some(Probe { tcp_socket: Some(tcp), period_seconds: Some(1), ..Probe::default() });
    });
    let slow = pod("slow").container("main", LONG).with(|c| c.readiness_probe = Some(probe("sleep 20")));
    let (web, slow) = (node.api.create(built.0), node.api.create(slow.0));
    node.api.until(&web, "ready", |p| condition(p, "Ready")).await;
    node.exec(&web, "main", "rm /www/a").await;
    let unready = node.api.until(&web, "unready", |p| !condition(p, "Ready")).await;
    assert_eq!(status(&unready, "main").restart_count, 0, "its port still answers");
    assert!(
        node.told(
            "web spec.containers{main} Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 404"
        )
    );
    node.until_told("slow spec.containers{main} Unhealthy: Readiness probe failed: command timed out").await;
    for uid in [web, slow] {
        node.api.delete(&uid, 2);
        node.api.until_gone(&uid).await;
    }

    // A5.6: what ends is asked whether it is ready, and nothing else.
    let script = "touch /tmp/well; trap 'rm /tmp/well' TERM; until test -e /tmp/go; do sleep 0.1; done";
    let ends = pod("ends").spec(|spec| spec.termination_grace_period_seconds = Some(60)).container("main", script);
    let ends = ends.with(|c| {
        c.readiness_probe = Some(probe("test -e /tmp/well"));
        c.liveness_probe = Some(Probe { failure_threshold: Some(2), ..probe("test -e /tmp/well") });
        c.startup_probe = Some(Probe { failure_threshold: Some(60), ..probe("test -e /tmp/well") });
    });
    let ends = node.api.create(ends.0);
    node.api.until(&ends, "ready", |p| condition(p, "Ready")).await;
    node.api.delete(&ends, 60);
    let unready = node.api.until(&ends, "unready", |p| !condition(p, "Ready")).await;
    assert_eq!(state(status(&unready, "main").state.as_ref()), "running");
    assert!(!status(&unready, "main").ready && unready.metadata.deletion_timestamp.is_some());
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(state(status(&node.api.pod(&ends).unwrap(), "main").state.as_ref()), "running");
    for kind in ["Unhealthy: Liveness", "Unhealthy: Startup", "Killing: Container main failed"] {
        assert!(!node.told(&format!("ends spec.containers{{main}} {kind}")), "{:#?}", node.api.events());
    }
    node.exec(&ends, "main", "touch /tmp/go").await;
    node.api.until_gone(&ends).await;
    node.stop().await;
}

/// Takes one request, answers `500`, and tells its head.
async fn one_request(listener: &TcpListener) -> String {
    let (stream, _) = tokio::time::timeout(Duration::from_secs(20), listener.accept()).await.unwrap().unwrap();
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).await.unwrap() > 0 {}
    stream.write_all(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    head.to_lowercase()
}

#[tokio::test]
async fn hooks_run_after_the_start_and_before_the_stop() {
    // A4.1, A4.2, A4.3, A4.4, A1.15, A21.1, A21.2
    let mut node = Node::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = IntOrString::Int(listener.local_addr().unwrap().port().into());
    let header = HTTPHeader { name: "Authorization".into(), value: "secret".into() };
    let get = |path: &str| HTTPGetAction {
        host: Some("127.0.0.1".into()),
        path: Some(path.into()),
        port: port.clone(),
        http_headers: Some(vec![header.clone()]),
        ..HTTPGetAction::default()
    };
    let hook = |get| LifecycleHandler { http_get: Some(get), ..LifecycleHandler::default() };
    let sleeps = |seconds| LifecycleHandler { sleep: Some(SleepAction { seconds }), ..LifecycleHandler::default() };
    let waits =
        LifecycleHandler { exec: Some(exec("until test -e /tmp/go; do sleep 0.1; done")), ..Default::default() };
    let fails = LifecycleHandler { exec: Some(exec("exit 1")), ..LifecycleHandler::default() };
    let built = pod("p")
        .container("first", LONG)
        .with(|c| {
            let pre_stop = Some(hook(get("/stop")));
            c.lifecycle = Some(Lifecycle { post_start: Some(waits), pre_stop, ..Lifecycle::default() });
        })
        .container("second", LONG)
        .with(|c| {
            let pre_stop = Some(fails.clone());
            c.lifecycle = Some(Lifecycle { post_start: Some(hook(get("/start"))), pre_stop, ..Lifecycle::default() });
        });
    let uid = node.api.create(built.0);
    let hooked =
        node.api.until(&uid, "hooked", |p| status(p, "first").state.is_some_and(|s| s.running.is_some())).await;
    assert_eq!((status(&hooked, "first").started, status(&hooked, "first").ready), (Some(false), false));
    assert_eq!(state(status(&hooked, "second").state.as_ref()), "waiting ContainerCreating", "it waits for the hook");
    node.exec(&uid, "first", "touch /tmp/go").await;
    let head = one_request(&listener).await;
    assert!(head.starts_with("get /start http/1.1") && head.contains("user-agent: kube-lifecycle/1.36"), "{head}");
    node.api.until(&uid, "ready: any answer is good", |p| condition(p, "Ready")).await;
    node.api.delete(&uid, 5);
    assert!(one_request(&listener).await.starts_with("get /stop"));
    node.api.until_gone(&uid).await;
    assert!(node.told("p spec.containers{second} FailedPreStopHook: PreStopHook failed"), "{:#?}", node.api.events());

    // HTTPS where there is only HTTP; a hook that outlasts the grace; a start that fails.
    let https = HTTPGetAction { scheme: Some("HTTPS".into()), ..get("/tls") };
    let tls = pod("tls").container("main", LONG).with(|c| {
        c.lifecycle = Some(Lifecycle { pre_stop: Some(hook(https)), ..Lifecycle::default() });
    });
    let sleeper = pod("sleeper").container("main", LONG).with(|c| {
        c.lifecycle = Some(Lifecycle { post_start: Some(sleeps(0)), pre_stop: Some(sleeps(60)), ..Default::default() });
    });
    let broken = pod("broken").container("main", LONG).with(|c| {
        c.lifecycle = Some(Lifecycle { post_start: Some(fails), ..Lifecycle::default() });
    });
    let [tls, sleeper, broken] = [tls, sleeper, broken].map(|built| node.api.create(built.0));
    for uid in [&tls, &sleeper] {
        node.api.until(uid, "ready", |p| condition(p, "Ready")).await;
    }
    let waits = |p: &_| state(status(p, "main").state.as_ref()) == "waiting PostStartHookError";
    node.api.until(&broken, "told of its hook", waits).await;
    assert!(node.told("broken spec.containers{main} FailedPostStartHook: PostStartHook failed"));
    node.api.delete(&sleeper, 2);
    node.api.delete(&broken, 1);
    node.api.delete(&tls, 10);
    let (hello, _) = listener.accept().await.unwrap();
    let mut hello = hello;
    hello.write_all(b"HTTP/1.1 400 X\r\n\r\n").await.unwrap();
    drop(hello);
    let head = one_request(&listener).await;
    assert!(head.starts_with("get /tls") && !head.contains("authorization"), "{head}");
    for uid in [&tls, &sleeper, &broken] {
        node.api.until_gone(uid).await;
    }
    assert!(
        node.told("tls  LifecycleHTTPFallback: ") || node.told("tls LifecycleHTTPFallback"),
        "{:#?}",
        node.api.events()
    );
    assert!(!node.told("sleeper spec.containers{main} FailedPreStopHook"), "it was cut off, it did not fail");

    // The hook of a container whose pod went while no agent ran.
    let left = pod("left").container("main", LONG).with(|c| {
        c.lifecycle = Some(Lifecycle { pre_stop: Some(hook(get("/left"))), ..Lifecycle::default() });
    });
    let left = node.api.create(left.0);
    node.api.until(&left, "ready", |p| condition(p, "Ready")).await;
    node.stop_agent().await;
    node.api.remove(&left);
    node.start_agent();
    assert!(one_request(&listener).await.starts_with("get /left"));
    node.until_nothing_is_left(&left).await;
    node.stop().await;
}
