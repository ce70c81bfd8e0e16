//! What grows without end is cut back: images that nobody uses, and logs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use stoker::clock::Clock;
use stoker::runtime::gc::{CollectError, ImageCollector, ImagePolicy};
use stoker::runtime::logs::{RotationConfig, rotate_logs};
use stoker::runtime::{ImageSource, import};

use crate::lab::{BUSYBOX, Lab, PAUSE};

async fn names(lab: &Lab) -> Vec<String> {
    let mut names: Vec<String> =
        lab.runtime.list_images().await.unwrap().into_iter().flat_map(|image| image.repo_tags).collect();
    names.sort();
    names
}

async fn add_image(lab: &Lab, name: &str) {
    let layer = tar::Builder::new(Vec::new()).into_inner().unwrap();
    let source =
        ImageSource { layer: layer.into(), entrypoint: vec![format!("/{name}")], env: Vec::new(), user: String::new() };
    import(&lab.runtime, name, &source, false).await.unwrap();
}

#[tokio::test]
async fn images_that_nobody_uses_go_when_the_disk_is_full() {
    // A14.8
    let lab = Lab::with_busybox().await;
    let (sandbox, container, _) = lab.run("user", "/bin/busybox sleep 1000").await;
    // Any use of the disk is too much.
    let policy =
        ImagePolicy { high_percent: 0, low_percent: 0, min_age: Duration::from_secs(3600), max_age: Duration::ZERO };
    let keep = || vec!["127.0.0.1:1/kept:1".to_owned(), PAUSE.to_owned()];
    let mut young = ImageCollector::new(lab.runtime.clone(), policy, keep(), Clock);
    young.collect().await.unwrap_err();
    for name in ["127.0.0.1:1/unused:1", "127.0.0.1:1/kept:1"] {
        add_image(&lab, name).await;
    }
    let before = names(&lab).await;
    let error = young.collect().await.unwrap_err();
    assert!(matches!(error, CollectError::Insufficient { freed: 0, .. }), "{error}");
    assert_eq!(names(&lab).await, before, "nothing is old enough");

    let policy = ImagePolicy { min_age: Duration::ZERO, ..policy };
    let mut collector = ImageCollector::new(lab.runtime.clone(), policy, keep(), Clock);
    let error = collector.collect().await.unwrap_err().to_string();
    assert!(error.starts_with("Insufficient free disk space on the node's image filesystem ("), "{error}");
    let after = names(&lab).await;
    let gone: Vec<&String> = before.iter().filter(|name| !after.contains(name)).collect();
    assert_eq!(gone, ["127.0.0.1:1/unused:1"]);
    assert!(after.contains(&BUSYBOX.to_owned()), "a container uses it");

    // Old ones go though there is room, once the collector itself is as old; those in use, the sandbox's and younger ones stay.
    let full = ImagePolicy { high_percent: 100, low_percent: 99, max_age: Duration::from_secs(1), ..policy };
    let mut collector = ImageCollector::new(lab.runtime.clone(), full, keep(), Clock);
    add_image(&lab, "127.0.0.1:1/old:1").await;
    collector.collect().await.unwrap();
    assert!(names(&lab).await.contains(&"127.0.0.1:1/old:1".to_owned()), "ages count from the start");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    collector.collect().await.unwrap();
    assert_eq!(names(&lab).await, after);
    let never = ImagePolicy { max_age: Duration::ZERO, ..full };
    let mut lazy = ImageCollector::new(lab.runtime.clone(), never, keep(), Clock);
    add_image(&lab, "127.0.0.1:1/old:1").await;
    lazy.collect().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    lazy.collect().await.unwrap();
    assert!(names(&lab).await.contains(&"127.0.0.1:1/old:1".to_owned()), "0 is off");
    let mut collector = ImageCollector::new(lab.runtime.clone(), policy, keep(), Clock);

    lab.runtime.stop_container(&container, Duration::ZERO).await.unwrap();
    lab.runtime.remove_container(&container).await.unwrap();
    lab.runtime.stop_pod_sandbox(&sandbox).await.unwrap();
    lab.runtime.remove_pod_sandbox(&sandbox).await.unwrap();
    assert!(collector.remove_unused().await.unwrap() > 0);
    assert_eq!(names(&lab).await, ["127.0.0.1:1/kept:1", PAUSE]);
    lab.stop().await;
}

fn logs(folder: &Path) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !name.ends_with(".tmp"))
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn logs_of_running_containers_are_rotated() {
    // A20.5
    let lab = Lab::with_busybox().await;
    let script = "i=0; while true; do i=$((i+1)); echo line $i of many; /bin/busybox usleep 2000; done";
    let (_, container, log) = lab.run("chatty", script).await;
    let folder = log.parent().unwrap().to_owned();
    let config = RotationConfig { max_size: 8 << 10, max_files: 3, workers: 1, interval: Duration::from_millis(300) };
    let (_, dead, dead_log) = lab.run("dead", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done").await;
    for _ in 0..200 {
        let status = lab.runtime.container_status(&dead, false).await.unwrap().status.unwrap();
        if status.finished_at > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let of_dead = fs::metadata(&dead_log).unwrap().len();
    assert!(of_dead > config.max_size, "{of_dead}");
    let task = tokio::spawn(rotate_logs(lab.runtime.clone(), config, Clock));
    let name = log.file_name().unwrap().to_string_lossy().into_owned();
    let looks_right = |found: &[String]| {
        let compressed = found.iter().filter(|file| file.ends_with(".gz")).count();
        found.contains(&name) && compressed == 1 && found.len() == 3
    };
    let mut found = Vec::new();
    for _ in 0..600 {
        found = logs(&folder);
        if looks_right(&found) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(looks_right(&found), "{found:?}");
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(logs(&folder).len() <= 4, "never more than the limit and the one being compressed");
    }
    assert_eq!(logs(dead_log.parent().unwrap()).len(), 1, "what has ended writes no more");
    task.abort();
    // It may have been in the middle of a rotation.
    lab.runtime.reopen_container_log(&container).await.unwrap();
    let first = fs::read_to_string(&log).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(fs::read_to_string(&log).unwrap().len() > first.len(), "the container goes on in the new file");
    lab.stop().await;
}
