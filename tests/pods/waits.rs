//! Who waits is looked at again, whether or not somebody tells that there is something to see.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMapEnvSource, EnvFromSource};

use crate::node::{Node, condition, pod, state, status};
use crate::volumes::{until, until_event};

#[expect(clippy::disallowed_methods, reason = "a test measures how long something took")]
fn now() -> Instant {
    Instant::now()
}

/// How long it takes from the first event of this kind to that with this number.
async fn between(node: &Node, begin: &str, number: usize) -> Duration {
    let count = || node.api.events().iter().filter(|event| event.starts_with(begin)).count();
    let wait = async |wanted: usize| {
        for _ in 0..1000 {
            if count() >= wanted {
                return now();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{wanted} times {begin:?}: {:#?}", node.api.events());
    };
    let first = wait(1).await;
    wait(number).await - first
}

#[tokio::test]
async fn whoever_waits_is_looked_at_again() {
    // A1.5, A1.8, A21.1
    let node = Node::start().await;
    let seconds = Duration::from_secs_f64;
    node.change_node(|node| node.network_ready = false);
    let isolated = pod("isolated").container("main", "sleep 1000").spec(|spec| spec.host_network = None);
    let isolated = node.api.create(isolated.0);
    // Pods in the node's network need no other: this one lacks something else.
    let from = EnvFromSource {
        config_map_ref: Some(ConfigMapEnvSource { name: "absent".into(), optional: None }),
        ..EnvFromSource::default()
    };
    let lacking = pod("lacking").container("main", "sleep 1000").with(|c| c.env_from = Some(vec![from]));
    let lacking = node.api.create(lacking.0);

    // No path can be as long as that of its control group.
    let mut nameless = pod("nameless").container("main", "sleep 1000").0;
    nameless.metadata.uid = Some("u".repeat(4200));
    node.api.create(nameless);
    until_event(&node, "nameless  FailedCreatePodContainer: unable to ensure pod container exists: ").await;

    // Where the network is not ready a second, and up to half of it more.
    let text = "isolated  NetworkNotReady: network is not ready: container runtime network not ready";
    let took = between(&node, text, 4).await;
    assert!((seconds(3.0)..seconds(5.5)).contains(&took), "{took:?}");
    let waiting = node.api.pod(&isolated).unwrap();
    assert_eq!(state(status(&waiting, "main").state.as_ref()), "waiting ContainerCreating");
    assert!(!node.path(&format!("kubelet/pods/{isolated}/volumes")).exists(), "nothing is made for it");
    // After any other failure ten seconds, and up to half of it more.
    let refused = |p: &k8s_openapi::api::core::v1::Pod| {
        state(status(p, "main").state.as_ref()) == "waiting CreateContainerConfigError"
    };
    node.api.until(&lacking, "refused", refused).await;
    let took = between(&node, "lacking spec.containers{main} Failed: Error: configmap \"absent\" not found", 2).await;
    assert!((seconds(9.5)..seconds(16.5)).contains(&took), "{took:?}");
    node.api.put_config_map("absent", &[("A", "b")]);
    node.api.until(&lacking, "ready", |p| condition(p, "Ready")).await;
    for uid in [isolated, lacking] {
        node.api.delete(&uid, 1);
        node.api.until_gone(&uid).await;
        node.until_nothing_is_left(&uid).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn what_no_event_tells_is_seen_all_the_same() {
    // A1.5, A1.7
    let mut node = Node::start().await;
    assert_eq!(node.sync_frequency, Duration::from_secs(60));
    node.stop_agent().await;
    (node.sync_frequency, node.is_deaf) = (Duration::from_secs(4), true);
    node.start_agent();
    // What its own steps changed a worker looks at at once.
    let began = now();
    let uid = node.api.create(pod("p").init("first", "true").container("main", "exec sleep 1000").0);
    let runs = |p: &k8s_openapi::api::core::v1::Pod| status(p, "first").state.is_some_and(|s| s.running.is_some());
    node.api.until(&uid, "its first step is seen", |p| runs(p) || condition(p, "Initialized")).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    // Everything else when it is looked at again.
    let running = node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    let id = status(&running, "main").container_id.unwrap().trim_start_matches("containerd://").to_owned();
    node.lab.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    let ended = now();
    node.api.until(&uid, "restarted", |p| status(p, "main").restart_count == 1 && condition(p, "Ready")).await;
    assert!(ended.elapsed() < Duration::from_secs(8), "{:?}", ended.elapsed());
    node.api.delete(&uid, 1);
    node.api.until_gone(&uid).await;
    until("the end of its directory", || !node.path("kubelet/pods").join(uid.as_str()).exists()).await;
    node.stop().await;
}
