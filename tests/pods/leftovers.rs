//! What pods that nobody wants any more left behind, on a real containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stoker::runtime::cri::NamespaceMode;
use stoker_model::names;
use stoker_model::pod::PodUid;

use crate::node::{Node, condition, pod};
use crate::volumes::{until, until_event};

#[tokio::test]
async fn whatever_belongs_to_no_pod_goes() {
    // A14.9, A1.6, A12.6, A21.2
    let mut node = Node::start().await;
    assert_eq!(node.garbage_every, Duration::from_secs(60));
    node.stop_agent().await;
    node.garbage_every = Duration::from_secs(1);
    node.start_agent();
    let requests = [("cpu".to_owned(), Quantity("1".to_owned()))].into();
    let resources = ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() };
    let live = pod("live").container("main", "echo said; sleep 1000").with(|c| c.resources = Some(resources));
    let live = node.api.create(live.0);
    node.api.until(&live, "ready", |p| condition(p, "Ready")).await;

    // A sandbox without containers, logs of a pod that is gone, and a link that leads nowhere.
    let mut config = node.lab.sandbox("empty", NamespaceMode::Pod);
    config.labels = [(names::POD_NAME, "empty"), (names::POD_NAMESPACE, "default"), (names::POD_UID, "empty-uid")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    fs::create_dir_all(&config.log_directory).unwrap();
    config.metadata.as_mut().unwrap().uid = "empty-uid".into();
    node.lab.runtime.run_pod_sandbox(config, "").await.unwrap();
    let logs = node.path("pod-logs/default_ghost_ghost-uid");
    fs::create_dir_all(logs.join("main")).unwrap();
    fs::write(logs.join("main/0.log"), "text").unwrap();
    let dead = node.path("links/gone_default_main-0123456789abcdef.log");
    std::os::unix::fs::symlink(node.path("pod-logs/nowhere/0.log"), &dead).unwrap();
    // The weight of the burstable pods together, changed by somebody else.
    let root = node.path("").file_name().map(PathBuf::from).unwrap();
    let trees = Path::new("/sys/fs/cgroup");
    let group = |tree: &str| trees.join(tree).join(&root).join("kubepods/burstable");
    let files = [(group("cpu").join("cpu.shares"), "1024"), (group("").join("cpu.weight"), "39")];
    let (weight, expected) = files.into_iter().find(|(file, _)| file.exists()).expect("one of both versions");
    fs::write(&weight, "77").unwrap();

    node.until_nothing_is_left(&PodUid::new("empty-uid")).await;
    node.until_nothing_is_left(&PodUid::new("ghost-uid")).await;
    until("the end of the link", || dead.symlink_metadata().is_err()).await;
    until("the right weight", || fs::read_to_string(&weight).unwrap().trim() == expected).await;
    assert!(condition(&node.api.pod(&live).unwrap(), "Ready"));
    assert_eq!(fs::read_dir(node.path("links")).unwrap().flatten().count(), 1, "what leads to a log stays");

    // A21.2: who cannot look says so.
    node.lab.kill_containerd();
    until_event(&node, "node ContainerGCFailed: ").await;
    node.lab.start_containerd().await;
    node.stop().await;
}
