//! Static pods: without an API server, with their mirrors, and what becomes of both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use stoker::runtime::{ImageSource, import};
use stoker_model::pod::PodUid;

use crate::api::Api;
use crate::lab::{BUSYBOX, busybox_layer};
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
async fn of_two_manifests_with_one_name_the_later_counts() {
    // A7.1, A21.1
    let mut node = Node::start().await;
    let manifests = node.path("manifests");
    fs::create_dir(&manifests).unwrap();
    for (file, answer) in [("a.yaml", "first"), ("b.yaml", "second")] {
        fs::write(manifests.join(file), manifest("twin", answer)).unwrap();
    }
    node.stop_agent().await;
    node.static_path = Some(manifests.clone());
    node.start_agent();
    until(&node.api, "twin-node-1", "ready", |pod| condition(pod, "Ready")).await;
    assert_eq!(until_running(&node, 1).await.len(), 1);
    let told = node.api.events().into_iter().filter(|event| event.contains(" FailedValidation: ")).collect::<Vec<_>>();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("twin-node-1  FailedValidation: Error validating pod twin-node-1_default("),
        "{told:?}"
    );
    assert!(told[0].ends_with(" from file due to duplicate pod name \"twin-node-1\", ignoring"), "{told:?}");
    fs::remove_file(manifests.join("a.yaml")).unwrap();
    fs::remove_file(manifests.join("b.yaml")).unwrap();
    until_running(&node, 0).await;
    node.stop().await;
}

#[tokio::test]
async fn a_static_pod_runs_without_an_api_server_and_then_gets_its_mirror() {
    // A1.2, A7.1, A7.3, A7.5, A7.7
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

/// A file that cannot be removed, until this is dropped.
struct Immutable(PathBuf);

impl Immutable {
    fn new(path: &Path) -> Self {
        let done = Command::new("chattr").arg("+i").arg(path).status().expect("e2fsprogs is installed");
        assert!(done.success(), "{}", path.display());
        Self(path.to_owned())
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(&self.0).status();
    }
}

#[tokio::test]
async fn static_pods_change_in_every_way_and_read_what_their_init_containers_wrote() {
    // A7.5, A7.7, A8.7
    let mut node = Node::start().await;
    let other_image = "127.0.0.1:1/stoker/busybox:2";
    let source = ImageSource {
        layer: busybox_layer().into(),
        entrypoint: vec!["/bin/busybox".into()],
        env: vec!["PATH=/bin".into(), "VERSION=2".into()],
        user: String::new(),
    };
    import(&node.lab.runtime, other_image, &source, false).await.unwrap();
    let manifests = node.path("manifests");
    fs::create_dir(&manifests).unwrap();
    node.stop_agent().await;
    node.static_path = Some(manifests.clone());
    node.start_agent();

    let container = |name: &str, script: &str, reads: bool| {
        let from = json!({ "fileKeyRef": { "volumeName": "v", "path": "env", "key": "WORD" } });
        let env = if reads { json!([{ "name": "WORD", "valueFrom": from }]) } else { json!([]) };
        json!({
            "name": name, "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "env": env,
            "command": ["/bin/busybox", "sh", "-c", script], "volumeMounts": [{ "name": "v", "mountPath": "/v" }],
        })
    };
    // It takes its time to end: longer than its file is away below.
    let long =
        "echo word=$WORD version=$VERSION; touch /v/keep; trap 'sleep 1; exit 0' TERM; while :; do sleep 0.1; done";
    let mut side = container("side", long, true);
    side["restartPolicy"] = json!("Always");
    let mut written = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "env" },
        "spec": {
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 2,
            "volumes": [{ "name": "v", "emptyDir": {} }],
            "initContainers": [
                container("writer", "echo version=$VERSION; printf \"WORD='deep blue'\\n\" > /v/env", false),
                container("reader", "echo word=$WORD", true),
                side,
            ],
            "containers": [container("main", long, true)],
        },
    });
    let file = manifests.join("env.json");
    let write = |pod: &Value| {
        fs::write(manifests.join(".new"), pod.to_string()).unwrap();
        fs::rename(manifests.join(".new"), &file).unwrap();
    };
    write(&written);
    let hash = |p: &Pod| annotation(p, "kubernetes.io/config.mirror").to_owned();
    let (_, shown) = until(&node.api, "env-node-1", "ready", |p| condition(p, "Ready")).await;
    let mut current = hash(&shown);
    for name in ["reader", "side", "main"] {
        let log = node.log_with(&PodUid::new(&current), "env-node-1", name, "word=").await;
        assert!(log.contains("word=deep blue"), "{name}: {log}");
    }

    // Each change makes another pod of it: one runs, and the mirror shows it.
    let changes: [(&str, Value); 3] = [
        ("/spec/containers/0/image", json!(other_image)),
        ("/spec/initContainers/0/image", json!(other_image)),
        ("/spec/activeDeadlineSeconds", json!(3600)),
    ];
    for (place, value) in changes {
        match written.pointer_mut(place) {
            Some(field) => *field = value,
            None => written["spec"]["activeDeadlineSeconds"] = value,
        }
        write(&written);
        let another = |p: &Pod| hash(p) != current && condition(p, "Ready");
        let (_, shown) = until(&node.api, "env-node-1", place, another).await;
        node.until_nothing_is_left(&PodUid::new(&current)).await;
        current = hash(&shown);
        let now = until_running(&node, 1).await;
        assert!(now.contains_key(&current) && status(&shown, "main").restart_count == 0, "{place}: {now:?}");
    }
    let said = async |name: &str| node.log_with(&PodUid::new(&current), "env-node-1", name, "version=").await;
    assert!(said("main").await.contains("version=2") && said("writer").await.contains("version=2"));
    assert!(said("side").await.contains("version=\n"), "it has the image of before");

    // What cannot be taken away for a while holds the next one up, and no longer.
    let kept = node.path(&format!("kubelet/pods/{current}/volumes/kubernetes.io~empty-dir/v/keep"));
    let immutable = Immutable::new(&kept);
    written["spec"]["activeDeadlineSeconds"] = json!(7200);
    write(&written);
    let told = "env-node-1  FailedKillPod: error cleaning up the pod: ";
    for _ in 0..400 {
        if node.api.events().iter().any(|event| event.starts_with(told)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(node.api.events().iter().any(|event| event.starts_with(told)), "{:#?}", node.api.events());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(running(&node).await, BTreeMap::new(), "the next one waits");
    drop(immutable);
    let another = |p: &Pod| hash(p) != current && condition(p, "Ready");
    let (_, shown) = until(&node.api, "env-node-1", "after the failure", another).await;
    assert!(until_running(&node, 1).await.contains_key(&hash(&shown)));
    node.until_nothing_is_left(&PodUid::new(&current)).await;

    // A23.3: a file that goes and comes back is the same pod once more, which begins when the first has ended.
    fs::rename(&file, manifests.join(".away")).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    fs::rename(manifests.join(".away"), &file).unwrap();
    let counted = || stoker_model::metrics::text(0).contains("kubelet_restarted_pods_total{static=\"true\"} 1\n");
    for _ in 0..400 {
        if counted() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(counted(), "{}", stoker_model::metrics::text(0));
    assert!(until_running(&node, 1).await.contains_key(&hash(&shown)));

    // Without an API server it ends with its file all the same.
    node.stop_agent().await;
    node.api.go_away();
    node.start_agent();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(running(&node).await.contains_key(&hash(&shown)));
    fs::remove_file(&file).unwrap();
    until_running(&node, 0).await;
    node.until_nothing_is_left(&PodUid::new(&hash(&shown))).await;
    node.stop().await;
}
