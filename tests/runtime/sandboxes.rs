//! The client and the event stream: what a caller learns of containers that start, end and vanish.

use std::time::Duration;

use futures::StreamExt;
use stoker::runtime::cri::{self, ContainerState, NamespaceMode};
use stoker::runtime::events::{self, EventKind, RuntimeEvent};
use stoker::runtime::logs::{self, LogOptions};
use stoker::runtime::{Runtime, RuntimeError};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use crate::lab::Lab;

#[tokio::test]
async fn an_end_is_told_when_cri_shows_it() {
    let lab = Lab::with_busybox().await;
    let mut events = events::spawn(lab.runtime.clone(), CancellationToken::new());
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync, "the first one says to look at everything");

    for round in 0..5 {
        let (sandbox, container, _) = lab.run(&format!("p{round}"), "sleep 0.1; exit 3").await;
        wait_for(&mut events, &container, EventKind::Stopped).await;
        let status = lab.runtime.container_status(&container, false).await.unwrap().status.unwrap();
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 3));
        lab.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
        wait_for(&mut events, &sandbox, EventKind::Stopped).await;
        lab.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
        wait_for(&mut events, &sandbox, EventKind::Deleted).await;
    }
    lab.stop().await;
}

#[tokio::test]
async fn a_command_in_a_container_is_no_event() {
    let lab = Lab::with_busybox().await;
    let (_, container, _) = lab.run("p", "sleep 60").await;
    let mut events = events::spawn(lab.runtime.clone(), CancellationToken::new());
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    let command = ["/bin/busybox", "sh", "-c", "echo out; echo err >&2; exit 4"].map(String::from).to_vec();
    let answer = lab.runtime.exec_sync(&container, command, Duration::from_secs(5)).await.unwrap();
    assert_eq!((&answer.stdout[..], &answer.stderr[..], answer.exit_code), (&b"out\n"[..], &b"err\n"[..], 4));
    let limit = Duration::from_secs(1);
    let command = ["/bin/busybox", "sleep", "20"].map(String::from).to_vec();
    let late = lab.runtime.exec_sync(&container, command, limit).await.unwrap_err();
    assert_eq!(late, RuntimeError::TimedOut { call: "ExecSync", after: limit });
    lab.runtime.stop_container(&container, Duration::ZERO).await.unwrap();
    let stopped = RuntimeEvent::Changed { id: container, kind: EventKind::Stopped };
    assert_eq!(next(&mut events).await, stopped, "the first event is the container's own end");
    lab.stop().await;
}

#[tokio::test]
async fn a_runtime_that_comes_back_is_listened_to_again() {
    let mut lab = Lab::with_busybox().await;
    let (_, container, _) = lab.run("p", "sleep 60").await;
    let mut events = events::spawn(lab.runtime.clone(), CancellationToken::new());
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    lab.kill_containerd();
    let error = lab.runtime.list_containers(None).await.unwrap_err();
    assert!(error.is_unavailable(), "{error:?}");
    lab.start_containerd().await;
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync, "something may have been missed");
    let status = lab.runtime.container_status(&container, false).await.unwrap().status.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    lab.runtime.stop_container(&container, Duration::ZERO).await.unwrap();
    wait_for(&mut events, &container, EventKind::Stopped).await;
    lab.stop().await;
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let lab = Lab::with_busybox().await;
    let gone = "0".repeat(64);
    assert!(lab.runtime.container_status(&gone, false).await.unwrap_err().is_not_found());
    assert!(lab.runtime.pod_sandbox_status(&gone, false).await.unwrap_err().is_not_found());
    lab.runtime.remove_container(&gone).await.unwrap_or_else(|error| assert!(error.is_not_found(), "{error}"));
    let unsupported = lab.runtime.runtime_config().await;
    assert!(matches!(unsupported, Ok(_) | Err(RuntimeError::Unsupported { .. })), "{unsupported:?}");
    let config = lab.sandbox("a", NamespaceMode::Container);
    let failed = lab.runtime.run_pod_sandbox(config, "no-such-handler").await.unwrap_err();
    assert!(
        matches!(&failed, RuntimeError::Failed { message, .. } if message.contains("no-such-handler")),
        "{failed:?}"
    );

    let nobody = Runtime::connect("unix:///nonexistent/runtime.sock", Duration::from_secs(5)).unwrap();
    assert!(nobody.version().await.unwrap_err().is_unavailable());
    let error = Runtime::connect("http://127.0.0.1:1", Duration::from_secs(5)).unwrap_err();
    assert!(error.to_string().contains("unix:///run/containerd"), "{error}");
    lab.stop().await;
}

async fn next(events: &mut Receiver<RuntimeEvent>) -> RuntimeEvent {
    tokio::time::timeout(Duration::from_secs(15), events.recv()).await.expect("an event in time").expect("it listens")
}

async fn wait_for(events: &mut Receiver<RuntimeEvent>, id: &str, kind: EventKind) {
    let wanted = RuntimeEvent::Changed { id: id.to_owned(), kind };
    while next(events).await != wanted {}
}

#[tokio::test]
async fn a_real_rotation_loses_no_line() {
    // A20.4
    let lab = Lab::with_busybox().await;
    let script = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; sleep 0.3; echo end";
    let (_, container, log) = lab.run("p", script).await;
    let options = LogOptions { follow: true, ..Default::default() };
    let mut followed = logs::open(&lab.runtime, &container, options).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    std::fs::rename(&log, log.with_extension("log.rotated")).unwrap();
    lab.runtime.reopen_container_log(&container).await.unwrap();
    let mut text = Vec::new();
    let reading = async {
        while let Some(piece) = followed.next().await {
            text.extend_from_slice(&piece.unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("it ends with the container");
    let text = String::from_utf8(text).unwrap();
    let lines = || (0..2000).map(|line| line.to_string()).chain(["end".to_owned()]);
    let first_wrong = text.lines().zip(lines()).find(|(given, expected)| given != expected);
    assert_eq!((first_wrong, text.lines().count()), (None, 2001));
    lab.stop().await;
}

#[tokio::test]
async fn the_nodes_range_of_addresses_reaches_the_runtime() {
    // A11.11
    let mut lab = Lab::start().await;
    let (tell, node) = tokio::sync::watch::channel(None);
    let task = tokio::spawn(stoker::node::pass_pod_cidr(lab.runtime.clone(), node));
    let of_node = |ranges: &[&str]| k8s_openapi::api::core::v1::Node {
        spec: Some(k8s_openapi::api::core::v1::NodeSpec {
            pod_cidr: ranges.first().map(|range| (*range).to_owned()),
            pod_cidrs: Some(ranges.iter().map(|range| (*range).to_owned()).collect()),
            ..Default::default()
        }),
        ..Default::default()
    };
    tell.send_replace(Some(of_node(&[])));
    lab.kill_containerd();
    // It is told when it is there again, and both families are.
    tell.send_replace(Some(of_node(&["10.9.0.0/24", "fd00:9::/64"])));
    tokio::time::sleep(Duration::from_millis(300)).await;
    lab.start_containerd().await;
    let written = || {
        let files = std::fs::read_dir(lab.path().join("cni")).unwrap().flatten();
        files.map(|file| std::fs::read_to_string(file.path()).unwrap()).collect::<String>()
    };
    for _ in 0..400 {
        if written().contains("fd00:9::/64") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(written().contains("10.9.0.0/24") && written().contains("fd00:9::/64"), "{}", written());
    drop(tell);
    task.await.unwrap();
    lab.stop().await;
    // A22.1d: without an API server it is the configured one.
    let lab = Lab::start().await;
    let written = || {
        let files = std::fs::read_dir(lab.path().join("cni")).unwrap().flatten();
        files.map(|file| std::fs::read_to_string(file.path()).unwrap()).collect::<String>()
    };
    let task = tokio::spawn(stoker::node::pass_configured_cidr(lab.runtime.clone(), "10.7.0.0/24".to_owned()));
    for _ in 0..400 {
        if written().contains("10.7.0.0/24") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(written().contains("10.7.0.0/24") && !task.is_finished(), "{}", written());
    task.abort();
    lab.stop().await;
}

#[tokio::test]
async fn images_may_be_asked_for_elsewhere() {
    // A22.1j, the part about imageServiceEndpoint.
    let lab = Lab::with_busybox().await;
    let nowhere = format!("unix://{}/nobody.sock", lab.path().display());
    let here = format!("unix://{}/c.sock", lab.path().display());
    let elsewhere = Runtime::connect(&nowhere, Duration::from_secs(5)).unwrap().with_images_at(&here).unwrap();
    assert!(elsewhere.version().await.is_err() && !elsewhere.list_images().await.unwrap().is_empty());
    let elsewhere = Runtime::connect(&here, Duration::from_secs(5)).unwrap().with_images_at(&nowhere).unwrap();
    assert!(elsewhere.version().await.is_ok() && elsewhere.list_images().await.is_err());
    assert!(Runtime::connect(&here, Duration::from_secs(5)).unwrap().with_images_at("tcp://1").is_err());
    lab.stop().await;
}

#[tokio::test]
async fn every_call_reaches_a_real_runtime() {
    // A15.12, A15.13
    let lab = Lab::with_busybox().await;
    let runtime = &lab.runtime;
    assert_eq!(runtime.version().await.unwrap().runtime_name, "containerd");
    assert_eq!(runtime.status(true).await.unwrap().status.unwrap().conditions.len(), 2);
    let network = cri::NetworkConfig { pod_cidr: "10.9.0.0/24".into() };
    runtime.update_runtime_config(cri::RuntimeConfig { network_config: Some(network) }).await.unwrap();
    let (sandbox, container, log) = lab.run("p", "echo said; sleep 60").await;
    assert_eq!(runtime.list_pod_sandbox(None).await.unwrap().len(), 1);
    let status = runtime.pod_sandbox_status(&sandbox, false).await.unwrap();
    assert_eq!(status.status.unwrap().metadata.unwrap().uid, "uid-p");
    // Older runtimes do not know these, and say so.
    let config = runtime.runtime_config().await;
    assert!(matches!(config, Ok(_) | Err(RuntimeError::Unsupported { .. })), "{config:?}");
    let request = cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id: sandbox.clone(), ..Default::default() };
    let updated = runtime.update_pod_sandbox_resources(request).await;
    assert!(matches!(updated, Ok(()) | Err(RuntimeError::Unsupported { .. })), "{updated:?}");
    assert_eq!(runtime.list_containers(None).await.unwrap()[0].id, container);
    assert_eq!(runtime.container_status(&container, true).await.unwrap().status.unwrap().id, container);
    let stats = runtime.list_container_stats().await.unwrap();
    assert_eq!(stats[0].attributes.as_ref().unwrap().id, container);
    let linux = cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    runtime.update_container_resources(request).await.unwrap();
    let resources = runtime.container_status(&container, false).await.unwrap().status.unwrap().resources;
    // containerd before 1.7 does not show them.
    assert!(resources.is_none_or(|r| r.linux.is_none_or(|linux| linux.cpu_shares == 512)));
    runtime.reopen_container_log(&container).await.unwrap();
    assert!(std::fs::read_to_string(&log).unwrap().contains("said"));
    let command = ["/bin/busybox", "true"].map(String::from).to_vec();
    assert_eq!(runtime.exec_sync(&container, command.clone(), Duration::from_secs(5)).await.unwrap().exit_code, 0);
    let exec = cri::ExecRequest { container_id: container.clone(), cmd: command, stdout: true, ..Default::default() };
    let attach = cri::AttachRequest { container_id: container.clone(), stdout: true, ..Default::default() };
    let forward = cri::PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![80] };
    for url in [runtime.exec(exec).await, runtime.attach(attach).await, runtime.port_forward(forward).await] {
        assert!(url.unwrap().starts_with("http://127.0.0.1:"));
    }
    let image = runtime.list_images().await.unwrap().remove(0);
    let spec = cri::ImageSpec { image: image.id.clone(), ..Default::default() };
    assert_eq!(runtime.image_status(spec.clone()).await.unwrap().unwrap().id, image.id);
    assert!(!runtime.image_fs_info().await.unwrap().image_filesystems.is_empty());
    // A15.13: an answer may be large.
    let much = ["/bin/busybox", "head", "-c", "12000000", "/dev/zero"].map(String::from).to_vec();
    let answer = runtime.exec_sync(&container, much, Duration::from_secs(20)).await.unwrap();
    assert_eq!((answer.stdout.len(), answer.exit_code), (12_000_000, 0));
    let mut told = events::spawn(runtime.clone(), CancellationToken::new());
    assert_eq!(next(&mut told).await, RuntimeEvent::Resync);
    runtime.stop_container(&container, Duration::ZERO).await.unwrap();
    wait_for(&mut told, &container, EventKind::Stopped).await;
    runtime.remove_container(&container).await.unwrap();
    runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    assert_eq!(runtime.list_pod_sandbox(None).await.unwrap(), []);
    runtime.remove_image(spec.clone()).await.unwrap();
    assert_eq!(runtime.image_status(spec).await.unwrap(), None);
    lab.stop().await;
}

#[tokio::test]
async fn calls_to_a_runtime_that_hangs_end_in_time() {
    // A4.1, A15.13
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("silent.sock");
    // It takes connections and never says a word.
    let _silent = tokio::net::UnixListener::bind(&socket).unwrap();
    let limit = Duration::from_millis(300);
    let runtime = Runtime::connect(socket.to_str().unwrap(), limit).unwrap();
    let id = "0".repeat(64);
    let late = runtime.version().await.unwrap_err();
    assert_eq!(late, RuntimeError::TimedOut { call: "Version", after: limit });
    let late = runtime.stop_container(&id, Duration::from_secs(1)).await.unwrap_err();
    let both = limit + Duration::from_secs(1);
    assert_eq!(late, RuntimeError::TimedOut { call: "StopContainer", after: both }, "the grace comes on top");
    let config = cri::PodSandboxConfig::default();
    let late = runtime.run_pod_sandbox(config, "").await.unwrap_err();
    assert_eq!(late, RuntimeError::TimedOut { call: "RunPodSandbox", after: limit * 2 });
    let command = vec!["true".to_owned()];
    let endless = tokio::time::timeout(limit * 3, runtime.exec_sync(&id, command, Duration::ZERO)).await;
    assert!(endless.is_err(), "a command without a limit has none");
}
