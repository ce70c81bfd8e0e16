//! An agent that ends, and a runtime that is killed, at moments that nobody chose.

use std::fs;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ExecAction, HostPathVolumeSource, Probe, Volume};
use stoker::runtime::cri;
use stoker_model::pod::PodUid;

use crate::node::{Node, condition, pod, status};

const FAULTS: u32 = 4;

/// Another moment in each run.
async fn a_while() {
    let random = uuid::Uuid::new_v4().as_u128() % 1200;
    tokio::time::sleep(Duration::from_millis(u64::try_from(random).unwrap())).await;
}

/// A killed process takes the calls with it that it had under way; those of an agent in this process go on, and have to end first.
async fn another_agent(node: &mut Node) {
    node.stop_agent().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.start_agent();
}

fn probe() -> Option<Probe> {
    let command = ["/bin/busybox", "true"].map(String::from).to_vec();
    let exec = ExecAction { command: Some(command) };
    Some(Probe { exec: Some(exec), period_seconds: Some(1), timeout_seconds: Some(5), ..Probe::default() })
}

/// A start that ends with the agent that asked for it is the runtime's failure to start; nothing else may cost a restart.
fn only_broken_starts_count(node: &Node, uids: &[PodUid]) {
    for (uid, name) in uids.iter().flat_map(|uid| ["init", "side", "main"].map(|name| (uid, name))) {
        let status = status(&node.api.pod(uid).unwrap(), name);
        let last = status.last_state.clone().and_then(|last| last.terminated).unwrap_or_default();
        let is_broken_start = last.reason.as_deref() == Some("StartError");
        assert!(status.restart_count == 0 || is_broken_start, "{status:#?}\n{:#?}", node.api.events());
    }
}

#[tokio::test]
async fn faults_at_random_moments_start_everything_once() {
    // A1.3, A1.15, A2.23, A5.3
    let mut node = Node::start().await;
    let starts = node.path("starts");
    fs::create_dir_all(&starts).unwrap();
    let names = ["p0", "p1", "p2"];
    let pods = names.map(|name| {
        let note = |who: &str| format!("echo {name}-{who} >> /starts/{name}; ");
        let long = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
        let path = starts.to_str().unwrap().to_owned();
        let host_path = HostPathVolumeSource { path, type_: None };
        let volume = Volume { name: "starts".into(), host_path: Some(host_path), ..Volume::default() };
        let mut built = pod(name)
            .init("init", &note("init"))
            .sidecar("side", &(note("side") + long))
            .container("main", &(note("main") + long))
            .volume(volume, "/starts")
            .with(|c| (c.readiness_probe, c.liveness_probe) = (probe(), probe()));
        let spec = built.0.spec.as_mut().unwrap();
        for init in spec.init_containers.iter_mut().flatten() {
            init.volume_mounts = spec.containers[0].volume_mounts.clone();
        }
        built.0
    });
    let uids = pods.map(|pod| node.api.create(pod));
    for _ in 0..FAULTS {
        a_while().await;
        another_agent(&mut node).await;
    }
    for uid in &uids {
        node.api.until(uid, "ready", |p| condition(p, "Ready")).await;
    }
    only_broken_starts_count(&node, &uids);
    for fault in 0..FAULTS {
        a_while().await;
        if fault % 2 == 0 {
            node.lab.kill_containerd();
            node.lab.start_containerd().await;
        } else {
            another_agent(&mut node).await;
        }
    }
    // By then whatever somebody got wrong has happened.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for uid in &uids {
        node.api.until(uid, "ready again", |p| condition(p, "Ready")).await;
    }
    only_broken_starts_count(&node, &uids);
    for (name, uid) in names.iter().zip(&uids) {
        let told = fs::read_to_string(starts.join(name)).unwrap();
        // The runtime may find out that nobody waits for its answer any more when the process has begun: it ends it, and says that it
        // failed to start.
        let starts = |who: &str| 1 + usize::try_from(status(&node.api.pod(uid).unwrap(), who).restart_count).unwrap();
        let mut lines: Vec<_> = told.lines().collect();
        for who in ["init", "side", "main"] {
            let written = lines.iter().filter(|line| **line == format!("{name}-{who}")).count();
            assert!((1..=starts(who)).contains(&written), "{who} was started {written} times: {told}");
        }
        lines.dedup();
        let expected = ["init", "side", "main"].map(|who| format!("{name}-{who}"));
        assert_eq!(lines, expected, "each was started in its order");
    }
    let running = node.lab.runtime.list_containers(None).await.unwrap();
    let running = running.iter().filter(|c| c.state() == cri::ContainerState::ContainerRunning).count();
    assert_eq!(running, 6);
    for uid in &uids {
        node.api.delete(uid, 2);
        node.api.until_gone(uid).await;
        node.until_nothing_is_left(uid).await;
    }
    node.stop().await;
}
