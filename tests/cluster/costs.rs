//! What a pod costs the runtime, and a reader of logs the agent: calls and memory are counted, since times say little on a busy machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt};

use crate::lab::manifest::pod;
use crate::lab::node_api::NodeApi;
use crate::lab::process::memory_kib;
use crate::lab::{Lab, NODE};

/// Calls to the runtime so far, by kubelet's name for them.
fn calls(lab: &Lab) -> BTreeMap<String, u32> {
    let metrics = lab.kubectl(&format!("get --raw /api/v1/nodes/{NODE}/proxy/metrics"));
    let of_line = |line: &str| {
        let (name, value) =
            line.strip_prefix("kubelet_runtime_operations_total{operation_type=\"")?.split_once("\"} ")?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    metrics.lines().filter_map(of_line).collect()
}

#[test]
fn a_pod_is_looked_at_only_when_something_may_have_changed() {
    const PODS: u32 = 4;
    // A1.7, A23.3
    let lab = Lab::start();
    let one = |name: &str| {
        lab.apply(&pod(name).script("trap 'exit 0' TERM; sleep 1000 & wait").build());
        lab.kubectl(&format!("wait --for=condition=Ready pod/{name} --timeout=90s"));
        lab.kubectl(&format!("delete pod {name} --timeout=90s"));
    };
    one("first");
    let before = calls(&lab);
    (0..PODS).for_each(|number| one(&format!("p{number}")));
    let after = calls(&lab);
    let made =
        |name: &str| after.get(name).copied().unwrap_or_default() - before.get(name).copied().unwrap_or_default();
    for once in ["run_podsandbox", "create_container", "start_container", "stop_container", "remove_podsandbox"] {
        assert_eq!(made(once), PODS, "{once}: {before:?} {after:?}");
    }
    // Of a new pod, of its sandbox, of its container, of that one's end, of the sandbox's end, and what is removed at last; the
    // slow round, which comes once a minute, may fall into the test.
    for (often, times) in
        [("list_podsandbox", 6), ("list_containers", 5), ("container_status", 2), ("podsandbox_status", 1)]
    {
        let made = made(often);
        assert!((PODS..=PODS * times + 4).contains(&made), "{often}: {made} times, {before:?} {after:?}");
    }
    lab.finish();
}

/// Followers at a time, and what each may take of the agent's memory: with TLS, and without optimization.
const FOLLOWERS: u64 = 200;
const FOLLOWER_KIB: u64 = 56;
/// Of the log that is read, how often, and what the agent's memory may grow by meanwhile.
const LOG_BYTES: usize = 64 << 20;
const READINGS: u32 = 5;
const READING_KIB: u64 = 8 << 10;

#[test]
fn logs_are_read_and_followed_in_little_memory() {
    // A20.4
    let mut lab = Lab::new();
    lab.configure("containerLogMaxSize: 1Gi\n");
    lab.start_containerd();
    lab.start_control_plane();
    lab.start_agent();
    lab.eventually("the node is ready", Lab::node_is_ready);
    lab.apply(&pod("big").build());
    lab.eventually("the pod is ready", |lab| lab.ready_pods("big") == 1);
    let log = lab.run("sh", &["-c", &format!("ls {}/pod-logs/default_big_*/big/0.log", lab.dir().display())]);
    let log = log.expect_success("ls").trim().to_owned();
    let line = format!("2026-01-02T03:04:05.123456789Z stdout F {:x<99}\n", "");
    fs::write(&log, line.repeat(LOG_BYTES / 100)).expect("the folder is ours");
    lab.enter_network();
    let api = NodeApi::new(&lab);
    let agent = lab.agent_pid();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio.block_on(async {
        // The first client pays for what all need.
        api.page("/containerLogs/default/big/big?tailLines=1").await.expect("a log");
        let before = memory_kib(agent);
        let mut most = before;
        for _ in 0..READINGS {
            let (code, mut answer) = api.ask("GET", "/containerLogs/default/big/big", "").await.expect("a log");
            assert_eq!(code, 200);
            let (mut came, mut piece) = (0, vec![0; 1 << 20]);
            while came < LOG_BYTES / 100 * 100 {
                came += answer.read(&mut piece).await.expect("the log goes on");
                most = most.max(memory_kib(agent));
            }
        }
        assert!(most - before <= READING_KIB, "{} KiB more while a log is read", most - before);

        let before = memory_kib(agent);
        let mut all = Vec::new();
        for _ in 0..FOLLOWERS {
            let path = "/containerLogs/default/big/big?follow=true&tailLines=0";
            let (code, follower) = api.ask("GET", path, "").await.expect("a log");
            assert_eq!(code, 200);
            all.push(follower);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let each = memory_kib(agent).saturating_sub(before) / FOLLOWERS;
        assert!(each <= FOLLOWER_KIB, "{each} KiB for each follower");
        let files = fs::read_dir(format!("/proc/{agent}/fd")).expect("the agent lives").flatten();
        let inotify =
            files.filter(|file| fs::read_link(file.path()).is_ok_and(|to| to.to_string_lossy().contains("inotify")));
        // Of the agent's own files, and one for all logs: a user may have 128.
        assert!(inotify.count() < 10);
        let mut log = fs::File::options().append(true).open(&log).expect("it is there");
        log.write_all(b"2026-01-02T03:04:06Z stdout F to all\n").expect("there is room");
        for follower in &mut all {
            let mut heard = String::new();
            while !heard.ends_with("to all\n") {
                heard.clear();
                follower.read_line(&mut heard).await.expect("it goes on");
            }
        }
    });
    lab.finish();
}
