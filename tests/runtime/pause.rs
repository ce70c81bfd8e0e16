//! The pause image: a node without a registry runs sandboxes, zombies are reaped, TERM ends it.

use std::process::Command;
use std::time::Duration;

use stoker::runtime::cri::{ImageSpec, NamespaceMode, PodSandboxState};
use stoker::runtime::pause;

use crate::lab::{Lab, PAUSE, arguments, children_of, stat};

#[tokio::test]
async fn a_node_without_a_registry_has_its_sandbox_image() {
    let lab = Lab::start().await;
    let config = lab.sandbox("a", NamespaceMode::Container);
    lab.runtime.run_pod_sandbox(config.clone(), "").await.expect_err("nobody has the image yet");

    let image = pause::ensure(&lab.runtime).await.unwrap();
    assert!(image.imported());
    assert_eq!(image.pinned().collect::<Vec<_>>(), [PAUSE]);
    assert!(!pause::ensure(&lab.runtime).await.unwrap().imported(), "the second time it is there");

    let id = lab.runtime.run_pod_sandbox(config, "").await.unwrap();
    let status = lab.runtime.pod_sandbox_status(&id, false).await.unwrap().status.unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxReady);

    // What nothing refers to would be gone after this.
    let collected = Command::new("ctr")
        .arg("--address")
        .arg(lab.path().join("c.sock"))
        .args(["--namespace", "k8s.io", "content", "ls", "-q"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(collected.stdout).unwrap().lines().count(), 3, "layer, config and manifest");
    let spec = ImageSpec { image: PAUSE.into(), ..Default::default() };
    assert!(lab.runtime.image_status(spec).await.unwrap().unwrap().size > 0);
    lab.stop().await;
}

#[tokio::test]
async fn pause_reaps_what_is_left_to_it_and_ends_on_term() {
    // A11.1
    let lab = Lab::with_busybox().await;
    let config = lab.sandbox("shared", NamespaceMode::Pod);
    let sandbox = lab.runtime.run_pod_sandbox(config.clone(), "").await.unwrap();
    let info = lab.runtime.pod_sandbox_status(&sandbox, true).await.unwrap().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let pid = i32::try_from(info["pid"].as_i64().unwrap()).unwrap();
    // The start is told before the process has become the program.
    assert!(within_5_s(|| arguments(pid).trim() == "/pause").await, "{}", arguments(pid));

    // Its grandchildren lose their parent while they live, and are PID 1's from then on.
    let script = "i=0; while [ $i -lt 20 ]; do (sleep 1000 &) ; i=$((i+1)); done; sleep 1000";
    let container = lab.container("orphans", NamespaceMode::Pod, script);
    let container = lab.runtime.create_container(&sandbox, container, config).await.unwrap();
    lab.runtime.start_container(&container).await.unwrap();
    let adopted = within_5_s(|| children_of(pid).len() >= 20).await;
    assert!(adopted, "pause adopts {:?}", children_of(pid));
    let orphans = children_of(pid).into_iter().map(|orphan| orphan.to_string());
    assert!(Command::new("kill").arg("-KILL").args(orphans).status().unwrap().success());
    let reaped = within_5_s(|| children_of(pid).is_empty()).await;
    assert!(reaped, "zombies are left: {:?}", children_of(pid).into_iter().map(stat).collect::<Vec<_>>());

    lab.runtime.stop_container(&container, Duration::ZERO).await.unwrap();
    assert!(Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap().success());
    assert!(within_5_s(|| stat(pid).is_none()).await, "TERM does not end pause");
    // containerd cannot stop what has ended before it has taken note of that.
    for _ in 0..500 {
        let status = lab.runtime.pod_sandbox_status(&sandbox, false).await.unwrap().status.unwrap();
        if status.state() == PodSandboxState::SandboxNotready {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    lab.stop().await;
}

async fn within_5_s(condition: impl Fn() -> bool) -> bool {
    for _ in 0..500 {
        if condition() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}
