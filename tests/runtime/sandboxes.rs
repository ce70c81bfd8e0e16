//! The client and the event stream: what a caller learns of containers that start, end and vanish.

use std::time::Duration;

use stoker::runtime::cri::{ContainerState, NamespaceMode};
use stoker::runtime::events::{self, EventKind, RuntimeEvent};
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
