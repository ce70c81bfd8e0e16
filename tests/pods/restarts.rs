//! Containers that end, and agents that do.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMapEnvSource, EnvFromSource, Pod, Probe, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{from_value, json};
use stoker::runtime::{ImageSource, cri, import};
use stoker_model::pod::PodUid;

use crate::api::Api;
use crate::lab::{BUSYBOX, busybox_layer};
use crate::node::{Node, condition, phase, pod, state, status};

#[tokio::test]
async fn the_second_restart_waits() {
    // A3.8, A3.9
    let node = Node::start().await;
    let uid = node.api.create(pod("crash").container("main", "exit 7").0);
    let waiting = node
        .api
        .until(&uid, "back-off", |p| state(status(p, "main").state.as_ref()) == "waiting CrashLoopBackOff")
        .await;
    let main = status(&waiting, "main");
    assert_eq!((main.restart_count, phase(&waiting)), (1, "Running"));
    assert_eq!(state(main.last_state.as_ref()), "terminated 7 Error");
    let message = main.state.unwrap().waiting.unwrap().message.unwrap();
    assert_eq!(message, format!("back-off 10s restarting failed container=main pod=crash_default({uid})"));
    let event = format!(
        "crash spec.containers{{main}} BackOff: Back-off restarting failed container main in pod crash_default({uid})"
    );
    assert!(node.api.events().contains(&event), "{:#?}", node.api.events());
    let again = node.api.until(&uid, "restarted", |p| status(p, "main").restart_count == 2).await;
    assert_eq!(phase(&again), "Running");

    // The next wait is longer, unless there is another image: then it does not wait, and starts over.
    let waits = |delay: &'static str| {
        move |p: &Pod| {
            let waiting = status(p, "main").state.and_then(|state| state.waiting);
            let message = waiting.and_then(|waiting| waiting.message).unwrap_or_default();
            message.starts_with(&format!("back-off {delay} restarting failed container=main"))
        }
    };
    node.api.until(&uid, "a longer back-off", waits("20s")).await;
    let other = "127.0.0.1:1/stoker/busybox:2";
    let source = ImageSource {
        layer: busybox_layer().into(),
        entrypoint: vec!["/bin/busybox".into()],
        env: Vec::new(),
        user: String::new(),
    };
    import(&node.lab.runtime, other, &source, false).await.unwrap();
    node.api.change(&uid, |pod| pod.spec.as_mut().unwrap().containers[0].image = Some(other.into()));
    let anew = node.api.until(&uid, "the first back-off again", waits("10s")).await;
    assert_eq!(status(&anew, "main").restart_count, 3, "it was started at once");
    node.api.delete(&uid, 30);
    node.api.until_gone(&uid).await;
    node.until_nothing_is_left(&uid).await;
    node.stop().await;
}

#[tokio::test]
async fn a_new_agent_admits_anew_what_has_not_ended() {
    // A1.2, A1.18
    let mut node = Node::start().await;
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let asks = |cpu: &str| {
        let list = [("cpu".to_owned(), Quantity(cpu.to_owned()))];
        Some(ResourceRequirements { requests: Some(list.into()), ..Default::default() })
    };
    let old = node.api.create(pod("old").container("main", script).with(|c| c.resources = asks("500m")).0);
    let before = node.api.until(&old, "ready", |p| condition(p, "Ready")).await;
    let young = node.api.create(pod("young").container("main", script).with(|c| c.resources = asks("500m")).0);
    node.api.until(&young, "ready", |p| condition(p, "Ready")).await;
    let done = node.api.create(pod("done").restart("Never").container("main", "true").0);
    node.api.until(&done, "done", |p| phase(p) == "Succeeded").await;

    // What a pod was given counts, not what it asks for meanwhile.
    node.stop_agent().await;
    node.change_node(|node| drop(node.allocatable.insert("cpu".into(), Quantity("1".into()))));
    node.api.change_pod(&old, |pod| pod.spec.as_mut().unwrap().containers[0].resources = asks("900m"));
    node.start_agent();
    tokio::time::sleep(Duration::from_millis(700)).await;
    for uid in [&old, &young] {
        let pod = node.api.pod(uid).unwrap();
        assert!(condition(&pod, "Ready") && status(&pod, "main").restart_count == 0, "{pod:?}");
    }

    // The oldest keeps its place, and nothing is decided while nothing is known of the Node.
    node.stop_agent().await;
    node.change_node(|node| {
        node.allocatable.insert("cpu".into(), Quantity("600m".into()));
        node.uid = None;
    });
    node.start_agent();
    let fresh = node.api.create(pod("fresh").container("main", script).0);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(phase(&node.api.pod(&young).unwrap()), "Running");
    assert_eq!(node.api.pod(&fresh).unwrap().status, None, "what has never run waits for it");
    node.stop_agent().await;
    node.change_node(|node| node.uid = Some("node-1-uid".into()));
    node.start_agent();
    let failed = node.api.until(&young, "refused", |p| phase(p) == "Failed").await;
    let told = failed.status.clone().unwrap();
    assert_eq!(told.reason.as_deref(), Some("OutOfcpu"));
    assert_eq!(
        told.message.as_deref(),
        Some("Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: 500, capacity: 600")
    );
    let runs = async || {
        let filter = cri::ContainerFilter {
            label_selector: [("io.kubernetes.pod.uid".to_owned(), young.to_string())].into(),
            state: Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() }),
            ..Default::default()
        };
        node.lab.runtime.list_containers(Some(filter)).await.unwrap().len()
    };
    for _ in 0..100 {
        if runs().await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(runs().await, 0, "a refused pod does not go on");
    node.api.until(&fresh, "ready", |p| condition(p, "Ready")).await;
    let id = |pod: &k8s_openapi::api::core::v1::Pod| status(pod, "main").container_id;
    assert_eq!(id(&node.api.pod(&old).unwrap()), id(&before));
    assert_eq!(phase(&node.api.pod(&done).unwrap()), "Succeeded");
    for uid in [&old, &young, &done, &fresh] {
        node.api.delete(uid, 1);
        node.api.until_gone(uid).await;
        node.until_nothing_is_left(uid).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn a_new_agent_adopts_what_runs_and_ends_what_nobody_wants() {
    // A1.2, A1.14, A1.15, A2.23
    let mut node = Node::start().await;
    let script = "while :; do sleep 0.1; done";
    let stays = node.api.create(pod("stays").init("i", "true").container("main", script).0);
    let vanishes = node.api.create(pod("vanishes").container("main", script).0);
    let before = node.api.until(&stays, "ready", |p| condition(p, "Ready")).await;
    node.api.until(&vanishes, "ready", |p| condition(p, "Ready")).await;

    node.stop_agent().await;
    node.api.remove(&vanishes);
    node.start_agent();
    node.until_nothing_is_left(&vanishes).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = node.api.pod(&stays).unwrap();
    assert_eq!(before.status, after.status, "no container was touched, and nothing else is reported");

    node.api.delete(&stays, 1);
    node.api.until_gone(&stays).await;
    node.until_nothing_is_left(&stays).await;
    node.stop().await;
}

#[tokio::test]
async fn a_pod_that_initializes_keeps_its_place() {
    // A1.15
    let mut node = Node::start().await;
    let script = "while :; do sleep 0.1; done";
    let uid = node.api.create(pod("slow").init("first", script).container("main", script).0);
    let before = node.api.until(&uid, "initializing", |p| state(status(p, "first").state.as_ref()) == "running").await;
    assert_eq!(phase(&before), "Pending");
    node.stop_agent().await;
    node.change_node(|node| {
        node.allocatable.insert("pods".into(), Quantity("1".into()));
    });
    node.start_agent();
    let refused = node.api.create(pod("late").container("main", script).0);
    node.api.until(&refused, "refused", |p| phase(p) == "Failed").await;
    let after = node.api.pod(&uid).unwrap();
    assert_eq!(before.status, after.status);
    node.api.delete(&uid, 1);
    node.api.until_gone(&uid).await;
    node.until_nothing_is_left(&uid).await;
    node.stop().await;
}

#[tokio::test]
async fn an_end_that_was_interrupted_is_finished() {
    // A1.6, A1.14
    let mut node = Node::start().await;
    let uid = node.api.create(pod("half").container("main", "while :; do sleep 0.1; done").0);
    node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    node.stop_agent().await;
    node.api.remove(&uid);
    for sandbox in node.lab.runtime.list_pod_sandbox(None).await.unwrap() {
        node.lab.runtime.stop_pod_sandbox(&sandbox.id).await.unwrap();
        node.lab.runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
    }
    node.start_agent();
    node.until_nothing_is_left(&uid).await;
    node.stop().await;
}

#[tokio::test]
async fn a_sandbox_that_died_is_replaced_with_everything_in_it() {
    // A21.1, A1.17, A3.2
    let node = Node::start().await;
    let long = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let uid = node.api.create(pod("lost").init("first", "true").container("main", long).0);
    node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    let sandboxes = node.lab.runtime.list_pod_sandbox(None).await.unwrap();
    assert_eq!(sandboxes.len(), 1);
    let info = node.lab.runtime.pod_sandbox_status(&sandboxes[0].id, true).await.unwrap().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let killed = std::process::Command::new("kill").args(["-KILL", &info["pid"].to_string()]).status();
    assert!(killed.unwrap().success());
    let again = |p: &k8s_openapi::api::core::v1::Pod| condition(p, "Ready") && status(p, "main").restart_count == 1;
    let after = node.api.until(&uid, "ready in another sandbox", again).await;
    assert_eq!(status(&after, "first").restart_count, 1, "it begins as the first one did");
    let sandboxes = node.lab.runtime.list_pod_sandbox(None).await.unwrap();
    let ready = sandboxes.iter().filter(|s| s.state() == cri::PodSandboxState::SandboxReady);
    let attempts: Vec<u32> = ready.map(|s| s.metadata.as_ref().unwrap().attempt).collect();
    assert_eq!(attempts, [1]);
    let told = "lost  SandboxChanged: Pod sandbox changed, it will be killed and re-created.".to_owned();
    assert!(node.api.events().contains(&told), "{:#?}", node.api.events());
    node.api.delete(&uid, 2);
    node.api.until_gone(&uid).await;
    node.until_nothing_is_left(&uid).await;
    node.stop().await;
}

#[tokio::test]
async fn what_others_wrote_over_the_status_is_put_right() {
    // A2.10
    let node = Node::start().await;
    let uid = node.api.create(pod("marked").container("main", "while :; do sleep 0.1; done").0);
    node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    node.api.mark_unready(&uid);
    assert!(!condition(&node.api.pod(&uid).unwrap(), "Ready"));
    node.api.until(&uid, "ready again", |p| condition(p, "Ready")).await;
    node.stop().await;
}

#[tokio::test]
async fn an_image_that_vanished_is_looked_for_again() {
    // A2.14, A2.16, A14.1
    let node = Node::start().await;
    let source = ConfigMapEnvSource { name: "late".into(), ..Default::default() };
    let from = EnvFromSource { config_map_ref: Some(source), ..Default::default() };
    let waits = pod("waits").container("main", "true").with(|c| {
        c.env_from = Some(vec![from]);
        c.image_pull_policy = Some("Never".into());
    });
    let uid = node.api.create(waits.0);
    let shows = |reason: &'static str| {
        move |p: &k8s_openapi::api::core::v1::Pod| {
            state(status(p, "main").state.as_ref()) == format!("waiting {reason}")
        }
    };
    node.api.until(&uid, "no config map", shows("CreateContainerConfigError")).await;
    let image = cri::ImageSpec { image: BUSYBOX.into(), ..Default::default() };
    node.lab.runtime.remove_image(image).await.unwrap();
    node.api.put_config_map("late", &[("a", "b")]);
    node.api.until(&uid, "no image", shows("ErrImageNeverPull")).await;
    node.stop().await;
}

#[tokio::test]
async fn burstable_pods_together_weigh_what_they_asked_for() {
    // A12.6
    let node = Node::start().await;
    let root = node.lab.path().file_name().unwrap().to_str().unwrap().to_owned();
    let group = |tree: &str| format!("/sys/fs/cgroup/{tree}{root}/kubepods/burstable");
    let weight = || {
        let v2 = fs::read_to_string(format!("{}/cpu.weight", group(""))).ok();
        v2.or_else(|| fs::read_to_string(format!("{}/cpu.shares", group("cpu/"))).ok()).unwrap_or_default()
    };
    let requests = ResourceRequirements {
        requests: Some([("cpu".to_owned(), Quantity("500m".into()))].into()),
        ..ResourceRequirements::default()
    };
    for name in ["one", "two"] {
        let asks = |c: &mut k8s_openapi::api::core::v1::Container| c.resources = Some(requests.clone());
        let uid = node.api.create(pod(name).container("main", "while :; do sleep 0.1; done").with(asks).0);
        node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    }
    assert!(["1024", "39"].contains(&weight().trim()), "{}", weight());
    node.stop().await;
}

/// What others act on: conditions, readiness, restarts, and which containers they are.
fn gist(pod: &Pod) -> Vec<String> {
    let of_pod = pod.status.clone().unwrap_or_default();
    let conditions = of_pod.conditions.into_iter().flatten();
    let conditions = conditions.map(|c| format!("{} {} {:?}", c.type_, c.status, c.last_transition_time));
    let lists = [of_pod.container_statuses, of_pod.init_container_statuses];
    let containers = lists.into_iter().flatten().flatten().map(|c| {
        let (now, last) = (state(c.state.as_ref()), state(c.last_state.as_ref()));
        format!("{} {} {:?} {} {:?} {now} {last}", c.name, c.ready, c.started, c.restart_count, c.container_id)
    });
    conditions.chain(containers).collect()
}

#[tokio::test]
async fn a_new_agent_changes_nothing_that_is_told() {
    // A1.15, A2.23
    let mut node = Node::start().await;
    let manifests = node.path("manifests");
    fs::create_dir(&manifests).unwrap();
    node.stop_agent().await;
    node.static_path = Some(manifests.clone());
    node.start_agent();
    let long = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let probe = |script: &str| {
        let command = ["/bin/busybox", "sh", "-c", script];
        let probe =
            json!({ "exec": { "command": command }, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 3 });
        Some(from_value::<Probe>(probe).unwrap())
    };
    // The sidecar ends once, and comes back.
    let once = "if test ! -e /v/once; then touch /v/once; sleep 1; exit 0; fi; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let with_company = |name: &str| {
        let scratch = from_value(json!({ "name": "v", "emptyDir": {} })).unwrap();
        let built = pod(name).init("init", "true").sidecar("side", once).container("main", long).volume(scratch, "/v");
        built.spec(|spec| {
            let mounts = spec.containers[0].volume_mounts.clone();
            let side = &mut spec.init_containers.as_mut().unwrap()[1];
            (side.volume_mounts, side.readiness_probe) = (mounts, probe("true"));
        })
    };
    let probed = pod("probed").container("main", long).with(|c| {
        (c.startup_probe, c.readiness_probe, c.liveness_probe) = (probe("true"), probe("true"), probe("true"));
    });
    let unready = pod("unready").container("main", long).with(|c| c.readiness_probe = probe("false"));
    let unstarted = pod("unstarted").container("main", long).with(|c| {
        c.startup_probe = Some(Probe { failure_threshold: Some(1000), ..probe("false").unwrap() });
    });
    let built = [pod("plain").container("main", long), probed, unready, unstarted, with_company("company")];
    let uids = built.map(|built| node.api.create(built.0));
    let mut manifest = with_company("static").0;
    (manifest.metadata.uid, manifest.metadata.creation_timestamp) = (None, None);
    let mut manifest = serde_json::to_value(manifest).unwrap();
    (manifest["apiVersion"], manifest["kind"]) = (json!("v1"), json!("Pod"));
    fs::write(manifests.join("static.json"), manifest.to_string()).unwrap();

    let mirror = || node_pod(&node.api, "static-node-1");
    let settled = |pod: &Pod| condition(pod, "Ready") && status(pod, "side").restart_count == 1;
    for _ in 0..400 {
        if mirror().is_some_and(|pod| settled(&pod)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(mirror().is_some_and(|pod| settled(&pod)), "{:#?}", node.api.events());
    for uid in [&uids[0], &uids[1]] {
        node.api.until(uid, "ready", |pod| condition(pod, "Ready")).await;
    }
    node.api.until(&uids[4], "ready", settled).await;
    for uid in [&uids[2], &uids[3]] {
        let runs = |pod: &Pod| state(status(pod, "main").state.as_ref()) == "running";
        node.api.until(uid, "running", runs).await;
    }
    // What is still on its way arrives.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let all = |node: &Node| {
        let of_api = uids.iter().map(|uid| node.api.pod(uid).unwrap());
        of_api.chain(node_pod(&node.api, "static-node-1")).map(|pod| gist(&pod)).collect::<Vec<_>>()
    };
    let before = all(&node);
    assert_eq!(before.len(), 6);
    for removes in [false, true] {
        node.stop_agent().await;
        if removes {
            // What has ended is collected meanwhile.
            for container in node.lab.runtime.list_containers(None).await.unwrap() {
                if container.state() == cri::ContainerState::ContainerExited {
                    node.lab.runtime.remove_container(&container.id).await.unwrap();
                }
            }
        }
        node.start_agent();
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(all(&node), before, "removed: {removes}");
        }
    }
    let running = node.lab.runtime.list_containers(None).await.unwrap();
    let exited = running.iter().filter(|c| c.state() != cri::ContainerState::ContainerRunning).count();
    assert_eq!((running.len(), exited), (8, 0), "nothing was made anew");
    node.stop().await;
}

fn node_pod(api: &Api, name: &str) -> Option<Arc<Pod>> {
    api.named(name).map(|(_, pod)| pod)
}

#[tokio::test]
async fn what_pods_left_behind_is_taken_away() {
    // A1.6
    let mut node = Node::start().await;
    let lives = node.api.create(pod("lives").container("main", "while :; do sleep 0.1; done").0);
    node.api.until(&lives, "ready", |p| condition(p, "Ready")).await;
    node.stop_agent().await;
    // Of one pod a directory with a mount, a control group and a log; of a static one its mirror.
    let ghost = PodUid::new("ghost-uid");
    let volume = node.path("kubelet/pods/ghost-uid/volumes/kubernetes.io~empty-dir/v");
    fs::create_dir_all(&volume).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&volume).status().unwrap();
    assert!(mounted.success());
    fs::write(volume.join("f"), "left").unwrap();
    let root = node.lab.path().file_name().unwrap();
    let mut groups = 0;
    for tree in fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|tree| tree.path()) {
        let class = tree.join(root).join("kubepods/besteffort");
        groups += u32::from(class.is_dir() && fs::create_dir(class.join("podghost-uid")).is_ok());
    }
    let class = Path::new("/sys/fs/cgroup").join(root).join("kubepods/besteffort");
    groups += u32::from(class.is_dir() && fs::create_dir(class.join("podghost-uid")).is_ok());
    assert!(groups > 0, "there is a tree of groups");
    fs::create_dir_all(node.path("pod-logs/default_ghost_ghost-uid/main")).unwrap();
    let mut mirror = pod("lost-node-1").container("main", "true").0;
    let marks = [("kubernetes.io/config.mirror", "hash"), ("kubernetes.io/config.source", "file")];
    mirror.metadata.annotations = Some(marks.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    let mirror = node.api.create(mirror);

    node.start_agent();
    node.until_nothing_is_left(&ghost).await;
    node.api.until_gone(&mirror).await;
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains("/pods/ghost-uid/"));
    let after = node.api.pod(&lives).unwrap();
    assert!(condition(&after, "Ready") && status(&after, "main").restart_count == 0, "what is wanted stays");
    node.stop().await;
}
