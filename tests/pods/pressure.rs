//! A node that is short of something, and pods that take more of its disk than they may, on real containers.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Volume};
use serde_json::json;
use stoker::node::eviction::{Pressure, ThresholdFields};
use stoker::runtime::{ImageSource, import};
use stoker_model::handle::Eviction;
use stoker_model::pod::PodUid;

use crate::node::{Builder, Node, condition, phase, pod};

const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn hard(pairs: &[(&str, &str)]) -> ThresholdFields {
    let hard = pairs.iter().map(|(signal, value)| ((*signal).to_owned(), (*value).to_owned())).collect();
    ThresholdFields { hard, ..ThresholdFields::default() }
}

/// A pod that sleeps, after a script.
fn sleeper(name: &str, script: &str) -> Builder {
    pod(name).container("main", &format!("{script}; {SLEEP}"))
}

fn limits(amount: &str) -> BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity> {
    serde_json::from_value(json!({ "ephemeral-storage": amount })).unwrap()
}

fn message(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    format!("{}: {}", status.reason.unwrap_or_default(), status.message.unwrap_or_default())
}

fn disruption(pod: &Pod) -> Option<String> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let found = conditions.into_iter().find(|condition| condition.type_ == "DisruptionTarget")?;
    Some(format!("{} {}", found.reason.as_deref().unwrap_or_default(), found.message.as_deref().unwrap_or_default()))
}

async fn all_ready(node: &Node, pods: Vec<Builder>) -> Vec<PodUid> {
    let uids: Vec<PodUid> = pods.into_iter().map(|pod| node.api.create(pod.0)).collect();
    for uid in &uids {
        node.api.until(uid, "ready", |pod| condition(pod, "Ready")).await;
    }
    uids
}

async fn add_image(node: &Node, name: &str) {
    let layer = tar::Builder::new(Vec::new()).into_inner().unwrap();
    let source =
        ImageSource { layer: layer.into(), entrypoint: vec!["/x".into()], env: Vec::new(), user: String::new() };
    import(&node.lab.runtime, name, &source, false).await.unwrap();
}

async fn images(node: &Node) -> Vec<String> {
    node.lab.runtime.list_images().await.unwrap().into_iter().flat_map(|image| image.repo_tags).collect()
}

#[tokio::test]
async fn pods_that_take_more_disk_than_they_may_are_evicted() {
    // A13.10, A9.4
    let node = Node::start().await;
    let volume = |limit: &str| -> Volume {
        serde_json::from_value(json!({ "name": "scratch", "emptyDir": { "sizeLimit": limit } })).unwrap()
    };
    let fill = |place: &str, kilobytes: u32| format!("dd if=/dev/zero of={place}/fill bs=1k count={kilobytes}");
    let limited = |name: &str, script: &str, limit: &str| {
        let limit = limit.to_owned();
        sleeper(name, script)
            .with(move |c| c.resources.get_or_insert_default().limits = Some(limits(&limit)))
            .volume(volume("1Gi"), "/scratch")
    };
    let uids = all_ready(
        &node,
        vec![
            sleeper("volume", &fill("/scratch", 3000)).volume(volume("2Mi"), "/scratch"),
            sleeper("modest", &fill("/scratch", 1000)).volume(volume("2Mi"), "/scratch"),
            limited("layer", &fill("/tmp", 3000), "2Mi"),
            limited("logs", "yes 0123456789012345678901234567890123456789 | head -n 80000", "2Mi"),
            limited("pod", &fill("/scratch", 3000), "2Mi"),
        ],
    )
    .await;
    let held = node.start_eviction(&hard(&[]));
    let of_pod = "Evicted: Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ";
    for (uid, expected) in [
        (&uids[0], "Evicted: Usage of EmptyDir volume \"scratch\" exceeds the limit \"2Mi\". "),
        (&uids[2], of_pod),
        (&uids[3], of_pod),
        (&uids[4], of_pod),
    ] {
        let evicted = node.api.until(uid, "evicted", |pod| phase(pod) == "Failed").await;
        assert_eq!((message(&evicted).as_str(), disruption(&evicted)), (expected, None), "{uid}");
    }
    assert_eq!(phase(&node.api.pod(&uids[1]).unwrap()), "Running", "it keeps to its limit");
    let told = "volume  Evicted: Usage of EmptyDir volume \"scratch\" exceeds the limit \"2Mi\". ";
    assert_eq!(node.api.events().iter().filter(|event| *event == told).count(), 1, "{:#?}", node.api.events());
    assert!(held.borrow().is_empty(), "the node itself has enough");
    // A23.3
    let counted = stoker_model::metrics::text(0);
    for (signal, count) in [("emptydirfs.limit", 1), ("ephemeralpodfs.limit", 3)] {
        let line = format!("kubelet_evictions{{eviction_signal=\"{signal}\"}} {count}");
        assert!(counted.lines().any(|counted| counted == line), "{line}\n{counted}");
    }
    let scratch = node.path("kubelet/pods").join(uids[0].as_str()).join("volumes/kubernetes.io~empty-dir/scratch");
    for _ in 0..100 {
        if !scratch.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!scratch.exists(), "what it wrote goes with it, though its object stays");
    node.stop().await;
}

#[tokio::test]
async fn a_node_short_of_memory_ends_one_pod_after_the_other() {
    // A2.19, A7.6, A13.6, A13.8, A13.9, A13.11, A21.1, A21.2
    let node = Node::start().await;
    let memory = |builder: Builder, amount: &str| {
        let amount = amount.to_owned();
        builder.with(move |c| {
            let asked = serde_json::from_value(json!({ "memory": amount })).unwrap();
            c.resources.get_or_insert_default().requests = Some(asked);
        })
    };
    let uids = all_ready(
        &node,
        vec![
            memory(sleeper("modest", "true"), "200Mi"),
            // A file in memory is the pod's.
            sleeper("greedy", "dd if=/dev/zero of=/dev/shm/fill bs=1M count=20"),
            sleeper("important", "true").spec(|spec| spec.priority = Some(1000)),
            sleeper("critical", "true").spec(|spec| spec.priority = Some(2_000_001_000)),
        ],
    )
    .await;
    // More than the machine has: it is met whatever goes.
    let held = node.start_eviction(&hard(&[("memory.available", "100Ti")]));
    let mut times = Vec::new();
    for (uid, name) in [(&uids[1], "greedy"), (&uids[2], "important"), (&uids[0], "modest")] {
        let evicted = node.api.until(uid, name, |pod| phase(pod) == "Failed").await;
        let text = message(&evicted);
        let begin = "Evicted: The node was low on resource: memory. Threshold quantity: 100Ti, available: ";
        assert!(text.starts_with(begin), "{text}");
        let exceeds = "request is 0, has larger consumption of memory. ";
        assert_eq!(text.ends_with(exceeds), name != "modest", "{text}");
        assert_eq!(disruption(&evicted), Some(format!("TerminationByKubelet {}", &text["Evicted: ".len()..])));
        times.push(evicted.metadata.name.clone().unwrap());
        let alive = uids.iter().filter(|uid| phase(&node.api.pod(uid).unwrap()) == "Running").count();
        assert!(alive >= 4 - times.len(), "one at a time");
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(phase(&node.api.pod(&uids[3]).unwrap()), "Running", "a critical pod stays");
    assert!(held.borrow().contains(&Pressure::Memory));
    let events = node.api.events();
    assert!(events.contains(&"node EvictionThresholdMet: Attempting to reclaim memory".to_owned()), "{events:#?}");
    let annotated = events.iter().find(|event| event.starts_with("greedy  Evicted: ")).expect("an event");
    assert!(annotated.contains("[offending_containers=main][offending_containers_usage="), "{annotated}");
    assert!(annotated.ends_with("[starved_resource=memory]"), "{annotated}");
    for name in ["greedy", "important", "modest"] {
        let told = events.iter().filter(|event| event.starts_with(&format!("{name}  Evicted"))).count();
        assert_eq!(told, 1, "nobody is evicted twice");
    }
    node.stop().await;
}

#[tokio::test]
async fn what_nobody_uses_goes_before_pods_do() {
    // A13.3, A13.7, A13.11
    let node = Node::start().await;
    let finished = node.api.create(pod("finished").restart("Never").container("main", "echo done").0);
    node.api.until(&finished, "finished", |pod| phase(pod) == "Succeeded").await;
    let running = all_ready(&node, vec![sleeper("running", "true")]).await.remove(0);
    add_image(&node, "127.0.0.1:1/unused:1").await;

    // Every signal is measured: more than there can be is never free. A period of an hour keeps everything where it is.
    node.limit_pods(8 << 30);
    for (signal, pressure) in [
        ("memory.available", Pressure::Memory),
        ("allocatableMemory.available", Pressure::Memory),
        ("nodefs.available", Pressure::Disk),
        ("nodefs.inodesFree", Pressure::Disk),
        ("imagefs.available", Pressure::Disk),
        ("imagefs.inodesFree", Pressure::Disk),
        ("pid.available", Pressure::Pids),
    ] {
        let soft = ThresholdFields {
            soft: [(signal.to_owned(), "1E".to_owned())].into(),
            soft_grace: [(signal.to_owned(), Duration::from_secs(3600))].into(),
            ..ThresholdFields::default()
        };
        let mut held = node.start_eviction(&soft);
        let found = tokio::time::timeout(Duration::from_secs(10), held.wait_for(|held| !held.is_empty())).await;
        assert_eq!(*found.expect(signal).expect("it runs"), [pressure].into(), "{signal}");
    }
    assert_eq!(phase(&node.api.pod(&running).unwrap()), "Running");

    // More than any disk has, so a pod has to go after all.
    let held = node.start_eviction(&hard(&[("imagefs.available", "100Pi")]));
    let evicted = node.api.until(&running, "evicted", |pod| phase(pod) == "Failed").await;
    let text = message(&evicted);
    let begin = "Evicted: The node was low on resource: ephemeral-storage. Threshold quantity: 100Pi, available: ";
    assert!(text.starts_with(begin), "{text}");
    assert!(!images(&node).await.contains(&"127.0.0.1:1/unused:1".to_owned()), "the unused image went first");
    let of_finished = |c: &&stoker::runtime::cri::Container| {
        c.labels.get(stoker_model::names::POD_UID).map(String::as_str) == Some(finished.as_str())
    };
    let mut left = usize::MAX;
    for _ in 0..100 {
        left = node.lab.runtime.list_containers(None).await.unwrap().iter().filter(of_finished).count();
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(left, 0, "so does the dead container");
    assert_eq!(phase(&node.api.pod(&finished).unwrap()), "Succeeded", "its status stays");
    assert_eq!(*held.borrow(), [Pressure::Disk].into());
    node.stop().await;
}

#[tokio::test]
async fn a_runtime_that_does_not_kill_in_time_is_told_of() {
    // A2.19, A4.10, A15.10, A21.1
    let node = Node::start().await;
    let uid = all_ready(&node, vec![sleeper("stuck", "echo 654321 > /dev/null")]).await.remove(0);
    let quick = all_ready(&node, vec![sleeper("quick", "true")]).await.remove(0);
    // What holds the container stands still, so nobody can end it.
    let status = node.lab.runtime.list_containers(None).await.unwrap();
    let id = status.into_iter().find(|c| c.labels["io.kubernetes.pod.uid"] == uid.as_str()).unwrap().id;
    let info = node.lab.runtime.container_status(&id, true).await.unwrap().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let container = i32::try_from(info["pid"].as_i64().unwrap()).unwrap();
    let (_, shim) = crate::lab::stat(container).unwrap();
    let signal = |signal| {
        let shim = rustix::process::Pid::from_raw(shim).unwrap();
        rustix::process::kill_process(shim, signal).unwrap();
    };
    signal(rustix::process::Signal::STOP);
    let message = "Pod was terminated in response to imminent node shutdown.";
    let order =
        Eviction { reason: "Terminated", message: message.into(), grace: Duration::from_secs(1), disrupts: true };
    // Nothing is told of one that ends in its time.
    node.evict(&quick, order.clone());
    node.api.until(&quick, "ended", |pod| phase(pod) == "Failed").await;
    node.evict(&uid, order);
    let told = "ExceededGracePeriod: Container runtime did not kill the pod within specified grace period.";
    let mut is_told = false;
    for _ in 0..300 {
        is_told = node.api.events().iter().any(|event| event.contains(told));
        if is_told {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    signal(rustix::process::Signal::CONT);
    assert!(is_told, "{:#?}", node.api.events());
    let told = node.api.events().into_iter().filter(|event| event.contains("ExceededGracePeriod"));
    assert!(told.clone().all(|event| event.starts_with("stuck  ")), "{:#?}", told.collect::<Vec<_>>());
    node.api.until(&uid, "ended", |pod| phase(pod) == "Failed").await;
    assert_eq!(self::message(&node.api.pod(&uid).unwrap()), format!("Terminated: {message}"));
    assert_eq!(
        disruption(&node.api.pod(&uid).unwrap()).as_deref(),
        Some(format!("TerminationByKubelet {message}").as_str())
    );
    node.stop().await;
}

#[tokio::test]
async fn the_kernel_tells_of_memory_before_the_next_look() {
    // A13.5: kernelMemcgNotification, which is of cgroup v1.
    if !std::path::Path::new("/sys/fs/cgroup/memory/cgroup.event_control").exists() {
        return;
    }
    let node = Node::start().await;
    let fill = "while ! test -e /v/go; do sleep 0.1; done; dd if=/dev/zero of=/dev/shm/fill bs=1M count=40";
    let dir: Volume = serde_json::from_value(json!({ "name": "v", "emptyDir": {} })).unwrap();
    let uid = all_ready(&node, vec![sleeper("greedy", fill).volume(dir, "/v")]).await.remove(0);
    node.limit_pods(96 << 20);
    let held = node.start_eviction(&hard(&[("allocatableMemory.available", "64Mi")]));
    // The first look finds nothing, and the next one would come ten seconds later.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(held.borrow().is_empty());
    let volume = node.path(&format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/v"));
    std::fs::write(volume.join("go"), "").unwrap();
    let evicted = node.api.until(&uid, "evicted", |pod| phase(pod) == "Failed");
    let evicted = tokio::time::timeout(Duration::from_secs(5), evicted).await.expect("the kernel told of it");
    assert!(message(&evicted).starts_with("Evicted: The node was low on resource: memory."), "{}", message(&evicted));
    node.stop().await;
}
