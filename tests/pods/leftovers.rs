//! What pods that nobody wants any more left behind, on a real containerd.

use std::fs;

use stoker::runtime::cri::NamespaceMode;
use stoker_model::names;
use stoker_model::pod::PodUid;

use crate::node::{Node, condition, pod};
use crate::volumes::until;

#[tokio::test]
async fn whatever_belongs_to_no_pod_goes() {
    // A14.9, A1.6
    let mut node = Node::start().await;
    let live = node.api.create(pod("live").container("main", "echo said; sleep 1000").0);
    node.api.until(&live, "ready", |p| condition(p, "Ready")).await;
    node.stop_agent().await;

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
    let links = || fs::read_dir(node.path("links")).unwrap().flatten().count();
    assert_eq!(links(), 2);

    node.start_agent();
    node.until_nothing_is_left(&PodUid::new("empty-uid")).await;
    node.until_nothing_is_left(&PodUid::new("ghost-uid")).await;
    until("the end of the link", || dead.symlink_metadata().is_err()).await;
    assert!(condition(&node.api.pod(&live).unwrap(), "Ready"));
    assert_eq!(fs::read_dir(node.path("links")).unwrap().flatten().count(), 1, "what leads to a log stays");
    node.stop().await;
}
