//! Static pods: without an API server, with their mirrors, and what becomes of both.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use stoker_model::pod::PodUid;

use crate::api::Api;
use crate::lab::BUSYBOX;
use crate::node::{Node, condition, phase, pod, status};

fn manifest(name: &str, answer: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: {BUSYBOX}
    imagePullPolicy: IfNotPresent
    command: [/bin/busybox, sh, -c, \"echo {answer}; trap 'exit 0' TERM; while :; do sleep 0.1; done\"]
"
    )
}

/// The IDs of running containers, by the UID of their pod.
async fn running(node: &Node) -> BTreeMap<String, String> {
    let all = node.lab.runtime.list_containers(None).await.unwrap();
    let running = all.into_iter().filter(|c| c.state == 1);
    running.map(|c| (c.labels["io.kubernetes.pod.uid"].clone(), c.id)).collect()
}

/// Waits until exactly so many containers run.
async fn until_running(node: &Node, count: usize) -> BTreeMap<String, String> {
    for _ in 0..300 {
        let now = running(node).await;
        if now.len() == count {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not {count}: {:?}\n{:#?}", running(node).await, node.api.events());
}

/// Waits until a pod of that name looks as wanted.
async fn until(api: &Api, name: &str, what: &str, holds: impl Fn(&Pod) -> bool) -> (PodUid, std::sync::Arc<Pod>) {
    for _ in 0..400 {
        if let Some(found) = api.named(name).filter(|(_, pod)| holds(pod)) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: {:#?}\n{:#?}", api.named(name), api.events());
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> &'a str {
    pod.metadata.annotations.as_ref().and_then(|a| a.get(name)).map_or("", String::as_str)
}

#[tokio::test]
async fn a_static_pod_runs_without_an_api_server_and_then_gets_its_mirror() {
    // A1.2, A7.1, A7.3, A7.5
    let mut node = Node::start().await;
    let manifests = node.path("manifests");
    fs::create_dir(&manifests).unwrap();
    node.static_path = Some(manifests.clone());
    let other = node.api.create(pod("other").container("main", "sleep 1000").0);
    node.api.until(&other, "ready", |p| condition(p, "Ready")).await;
    node.stop_agent().await;
    node.api.go_away();
    node.start_agent();

    fs::write(manifests.join("bad.yaml"), "kind: {{{").unwrap();
    fs::write(manifests.join("web.yaml"), manifest("web", "one")).unwrap();
    let before = until_running(&node, 2).await;
    assert!(before.contains_key(other.as_str()), "nobody has said yet that it is not wanted");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(running(&node).await, before);

    node.api.come_back();
    let (mirror, shown) = until(&node.api, "web-node-1", "ready", |p| condition(p, "Ready")).await;
    let uid = annotation(&shown, "kubernetes.io/config.mirror").to_owned();
    assert_eq!(uid, annotation(&shown, "kubernetes.io/config.hash"));
    assert_eq!(annotation(&shown, "kubernetes.io/config.source"), "file");
    assert_eq!(shown.metadata.owner_references.as_ref().unwrap()[0].uid, "node-1-uid");
    assert_eq!((phase(&shown), status(&shown, "main").restart_count), ("Running", 0));
    assert_ne!(mirror.as_str(), uid);
    let now = until_running(&node, 1).await;
    assert_eq!(now[&uid], before[&uid], "the static pod went on; the pod that nobody wants was cleaned up");
    node.until_nothing_is_left(&other).await;

    // Deleting the mirror, by force or with grace, brings it back and does not touch the containers.
    node.api.remove(&mirror);
    let (second, _) = until(&node.api, "web-node-1", "back", |p| condition(p, "Ready")).await;
    assert_ne!(second, mirror);
    node.api.delete(&second, 30);
    let fresh = |p: &Pod| p.metadata.deletion_timestamp.is_none() && condition(p, "Ready");
    let (third, _) = until(&node.api, "web-node-1", "back again", fresh).await;
    assert_ne!(third, second);
    assert_eq!(running(&node).await, now);

    // Nor does a new agent.
    node.stop_agent().await;
    node.start_agent();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(running(&node).await, now);
    assert_eq!(node.api.named("web-node-1").unwrap().0, third);
    node.stop().await;
}

#[tokio::test]
async fn a_changed_manifest_is_another_pod_that_waits_for_the_first() {
    // A1.4, A7.5, A7.7
    let mut node = Node::start().await;
    let manifests = node.path("manifests");
    fs::create_dir(&manifests).unwrap();
    node.stop_agent().await;
    node.static_path = Some(manifests.clone());
    node.start_agent();
    let file = manifests.join("web.yaml");
    let write = |answer: &str| {
        fs::write(manifests.join(".new"), manifest("web", answer)).unwrap();
        fs::rename(manifests.join(".new"), &file).unwrap();
    };
    write("one");
    let (_, first) = until(&node.api, "web-node-1", "ready", |p| condition(p, "Ready")).await;
    let hash = |p: &Pod| annotation(p, "kubernetes.io/config.mirror").to_owned();
    let first = hash(&first);

    // Several changes within one grace period: the last one wins, and never do two run.
    let mut most = 0;
    for answer in ["two", "three", "four"] {
        write(answer);
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            most = most.max(running(&node).await.len());
        }
    }
    let (_, last) = until(&node.api, "web-node-1", "the last", |p| hash(p) != first && condition(p, "Ready")).await;
    assert_eq!(most, 1);
    let now = until_running(&node, 1).await;
    assert!(now.contains_key(&hash(&last)), "{now:?}");
    let log = node.path(&format!("pod-logs/default_web-node-1_{}/main/0.log", hash(&last)));
    assert!(fs::read_to_string(log).unwrap().contains("four"));
    node.until_nothing_is_left(&PodUid::new(&first)).await;

    // Taken away and put back within the grace: it ends, and begins anew.
    let aside = manifests.join(".aside");
    fs::rename(&file, &aside).unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    fs::rename(&aside, &file).unwrap();
    let old = now[&hash(&last)].clone();
    let mut again = BTreeMap::new();
    for _ in 0..200 {
        again = running(&node).await;
        if again.values().any(|id| *id != old) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(again.keys().collect::<Vec<_>>(), [&hash(&last)]);
    assert_ne!(again.values().next(), Some(&old));

    fs::remove_file(&file).unwrap();
    until_running(&node, 0).await;
    for _ in 0..100 {
        if node.api.named("web-node-1").is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(node.api.named("web-node-1").is_none(), "the mirror goes with its pod");
    node.until_nothing_is_left(&PodUid::new(&hash(&last))).await;
    node.stop().await;
}
