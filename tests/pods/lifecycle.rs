//! From desired to running to gone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, EmptyDirVolumeSource, ExecAction, Lifecycle, LifecycleHandler, SecretVolumeSource, Volume,
};

use crate::node::{Node, condition, phase, pod, state, status};

#[tokio::test]
async fn a_pod_runs_and_goes() {
    // A21.1, A1.9, A1.10, A1.11, A2.11, A4.9, A8.1, A20.1
    let node = Node::start().await;
    node.api.put_config_map("settings", &[("colour", "green")]);
    let config = ConfigMapVolumeSource { name: "settings".into(), ..Default::default() };
    let script = "echo $COLOUR $KUBERNETES_SERVICE_HOST; cat /settings/colour; echo; echo x > /scratch/f; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let web = pod("web")
        .container("main", script)
        .env("COLOUR", "blue")
        .volume(Volume { name: "settings".into(), config_map: Some(config), ..Default::default() }, "/settings")
        .volume(
            Volume {
                name: "scratch".into(),
                empty_dir: Some(EmptyDirVolumeSource { medium: Some("Memory".into()), ..Default::default() }),
                ..Default::default()
            },
            "/scratch",
        );
    let uid = node.api.create(web.0);
    let running = node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    let main = status(&running, "main");
    assert_eq!((phase(&running), main.restart_count, main.started), ("Running", 0, Some(true)));
    assert!(main.container_id.as_ref().unwrap().starts_with("containerd://"), "{main:?}");
    let of_pod = running.status.as_ref().unwrap();
    assert_eq!(of_pod.pod_ip.as_deref(), Some("192.0.2.7"));
    assert_eq!(of_pod.observed_generation, Some(1));

    let log = node.path(&format!("pod-logs/default_web_{uid}/main/0.log"));
    let mut lines = String::new();
    for _ in 0..50 {
        lines = fs::read_to_string(&log).unwrap_or_default();
        if lines.contains("green") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(lines.contains("stdout F blue 10.96.0.1\n") && lines.contains("stdout F green\n"), "{lines}");
    let link = format!("web_default_main-{}.log", &main.container_id.unwrap()["containerd://".len()..]);
    assert_eq!(fs::read_link(node.path("links").join(link)).unwrap(), log);
    let volumes = node.path(&format!("kubelet/pods/{uid}/volumes"));
    assert!(volumes.join("kubernetes.io~empty-dir/scratch/f").exists());
    let of_pod = node.path("kubelet/pods").join(uid.as_str());
    for name in ["", "volumes", "plugins", "containers"] {
        let mode = fs::metadata(of_pod.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o750, "{name}");
    }
    assert!(of_pod.join("etc-hosts").is_file());

    let asked = Instant::now_for_test();
    node.api.delete(&uid, 30);
    node.api.until_gone(&uid).await;
    assert!(asked.elapsed() < Duration::from_secs(5), "it ends at TERM");
    node.until_nothing_is_left(&uid).await;
    let events = node.api.events();
    for wanted in [
        "web spec.containers{main} Pulled: Container image",
        "web spec.containers{main} Created: Container created",
        "web spec.containers{main} Started: Container started",
        "web spec.containers{main} Killing: Stopping container main",
    ] {
        assert!(events.iter().any(|e| e.starts_with(wanted)), "{wanted}: {events:#?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn exit_codes_and_last_words_are_told() {
    // A2.1, A2.13, A3.8, A4.7, A4.8
    let node = Node::start().await;
    let good = pod("good").restart("Never").container("main", "echo -n done > /dev/termination-log");
    let bad = pod("bad").restart("Never").container("main", "echo oh no; exit 3").with(|c| {
        c.termination_message_policy = Some("FallbackToLogsOnError".into());
    });
    let (good, bad) = (node.api.create(good.0), node.api.create(bad.0));
    let done = node.api.until(&good, "succeeded", |p| phase(p) == "Succeeded").await;
    let main = status(&done, "main");
    assert_eq!(state(main.state.as_ref()), "terminated 0 Completed");
    assert_eq!(main.state.unwrap().terminated.unwrap().message.as_deref(), Some("done"));
    let failed = node.api.until(&bad, "failed", |p| phase(p) == "Failed").await;
    let main = status(&failed, "main");
    assert_eq!(state(main.state.as_ref()), "terminated 3 Error");
    assert_eq!(main.state.unwrap().terminated.unwrap().message.as_deref(), Some("oh no\n"));
    for uid in [good, bad] {
        node.api.delete(&uid, 30);
        node.api.until_gone(&uid).await;
        node.until_nothing_is_left(&uid).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn init_containers_run_in_order_and_sidecars_stay() {
    // A3.1, A3.3, A3.5
    let node = Node::start().await;
    let shared = Volume { name: "v".into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Default::default() };
    let mut built = pod("p")
        .restart("Never")
        .init("first", "echo first >> /v/log")
        .sidecar("side", "echo side >> /v/log; while :; do sleep 0.1; done")
        .init("last", "echo last >> /v/log")
        .container("main", "while [ $(wc -l < /v/log) -lt 3 ]; do sleep 0.1; done; cat /v/log")
        .volume(shared, "/v");
    let mount = built.0.spec.as_ref().unwrap().containers[0].volume_mounts.clone();
    for init in built.0.spec.as_mut().unwrap().init_containers.as_mut().unwrap() {
        init.volume_mounts = mount.clone();
    }
    let uid = node.api.create(built.0);
    let done = node.api.until(&uid, "succeeded", |p| phase(p) == "Succeeded").await;
    let log = fs::read_to_string(node.path(&format!("pod-logs/default_p_{uid}/main/0.log"))).unwrap();
    let said: Vec<&str> = log.lines().filter_map(|line| line.split(' ').nth(3)).collect();
    // The sidecar and the init container after it run side by side.
    assert_eq!(said[0], "first");
    assert!(said.contains(&"side") && said.contains(&"last"), "{said:?}");
    assert_eq!(status(&done, "side").restart_count, 0);
    node.api.delete(&uid, 30);
    node.api.until_gone(&uid).await;
    node.until_nothing_is_left(&uid).await;
    node.stop().await;
}

#[tokio::test]
async fn the_grace_only_shrinks_and_hooks_run_first() {
    // A1.13, A4.2
    let node = Node::start().await;
    let shared = Volume { name: "v".into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Default::default() };
    let stubborn = pod("stubborn")
        .container("main", "trap '' TERM; while :; do sleep 0.1; done")
        .with(|c| {
            let command = ["/bin/busybox", "touch", "/v/hook"].map(String::from).to_vec();
            let exec = Some(ExecAction { command: Some(command) });
            let pre_stop = Some(LifecycleHandler { exec, ..Default::default() });
            c.lifecycle = Some(Lifecycle { pre_stop, ..Default::default() });
        })
        .volume(shared, "/v");
    let uid = node.api.create(stubborn.0);
    node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    node.api.delete(&uid, 300);
    let hook = node.path(&format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/v/hook"));
    for _ in 0..100 {
        if hook.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(hook.exists(), "the preStop hook ran");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(node.api.pod(&uid).is_some(), "TERM is ignored, so it goes on");
    let asked = Instant::now_for_test();
    node.api.delete(&uid, 1);
    node.api.until_gone(&uid).await;
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    node.until_nothing_is_left(&uid).await;
    node.stop().await;
}

#[tokio::test]
async fn a_pod_that_cannot_start_says_why_and_goes() {
    // A1.20, A1.21, A2.14, A2.20, A14.1
    let node = Node::start().await;
    let missing = Volume {
        name: "s".into(),
        secret: Some(SecretVolumeSource { secret_name: Some("absent".into()), ..Default::default() }),
        ..Default::default()
    };
    let volume = node.api.create(pod("volume").container("main", "true").volume(missing, "/s").0);
    let image = pod("image").container("main", "true").with(|c| {
        c.image = Some("127.0.0.1:1/none:1".into());
        c.image_pull_policy = Some("Never".into());
    });
    let image = node.api.create(image.0);
    let waits = |reason: &'static str| {
        move |p: &k8s_openapi::api::core::v1::Pod| {
            state(status(p, "main").state.as_ref()) == format!("waiting {reason}")
        }
    };
    node.api.until(&image, "never pulled", waits("ErrImageNeverPull")).await;
    node.api.until(&volume, "creating", waits("ContainerCreating")).await;
    for _ in 0..100 {
        if node.api.events().iter().any(|e| e.contains("FailedMount")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let told = "volume  FailedMount: MountVolume.SetUp failed for volume \"s\" : secret \"absent\" not found";
    assert!(node.api.events().iter().any(|e| e == told), "{:#?}", node.api.events());
    for uid in [volume, image] {
        node.api.delete(&uid, 30);
        let last = node.api.until_failed_or_gone(&uid).await;
        assert!(last, "it was Failed before it went");
        node.until_nothing_is_left(&uid).await;
    }
    node.stop().await;
}

/// Tests may read the clock.
trait NowForTest {
    fn now_for_test() -> Instant;
}

impl NowForTest for Instant {
    #[expect(clippy::disallowed_methods, reason = "a test measures how long something took")]
    fn now_for_test() -> Instant {
        Instant::now()
    }
}

#[tokio::test]
async fn a_runtime_class_chooses_the_handler() {
    // A21.1, A15.11
    let node = Node::start().await;
    node.api.put_runtime_class("usual", "runc");
    node.api.put_runtime_class("strange", "nobody-has-it");
    let of_class = |name: &str| {
        let built = pod(name).container("main", "sleep 1000");
        built.spec(|spec| spec.runtime_class_name = Some(name.into())).0
    };
    let [usual, strange, gone] = ["usual", "strange", "gone"].map(|name| node.api.create(of_class(name)));
    node.api.until(&usual, "ready", |p| condition(p, "Ready")).await;
    let sandboxes = node.lab.runtime.list_pod_sandbox(None).await.unwrap();
    assert_eq!(sandboxes.iter().map(|s| s.runtime_handler.as_str()).collect::<Vec<_>>(), ["runc"]);
    let told = |event: &str| node.api.events().iter().any(|told| told.starts_with(event));
    let wanted = [
        "strange  FailedCreatePodSandBox: Failed to create pod sandbox: ",
        "gone  FailedCreatePodSandBox: Failed to create pod sandbox: failed to lookup RuntimeClass gone: \
         runtimeclass.node.k8s.io \"gone\" not found",
    ];
    for _ in 0..100 {
        if wanted.iter().all(|event| told(event)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(wanted.iter().all(|event| told(event)), "{:#?}", node.api.events());
    for uid in [usual, strange, gone] {
        node.api.delete(&uid, 1);
        node.api.until_gone(&uid).await;
    }
    node.stop().await;
}
