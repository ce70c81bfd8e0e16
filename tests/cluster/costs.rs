//! What a pod costs in calls to the runtime and to the API server, and a reader of logs in memory of the agent: they are counted, since
//! times say little on a busy machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt};

use crate::lab::manifest::pod;
use crate::lab::node_api::NodeApi;
use crate::lab::process::memory_kib;
use crate::lab::{Lab, NODE};

/// What one page of metrics counts.
struct Counts {
    /// Calls to the runtime, by kubelet's name for them.
    runtime: BTreeMap<String, u32>,
    /// Requests to the API server, by method.
    api: BTreeMap<String, u32>,
}

impl Counts {
    fn of(lab: &Lab) -> Self {
        let metrics = lab.kubectl(&format!("get --raw /api/v1/nodes/{NODE}/proxy/metrics"));
        let all = |metric: &str, label: &str| {
            let mut counts = BTreeMap::new();
            for line in metrics.lines() {
                let Some((labels, value)) = line.strip_prefix(metric).and_then(|line| line.split_once("} ")) else {
                    continue;
                };
                let name = labels.split_once(&format!("{label}=\"")).and_then(|(_, rest)| rest.split_once('"'));
                if let (Some((name, _)), Ok(value)) = (name, value.parse::<u32>()) {
                    *counts.entry(name.to_owned()).or_default() += value;
                }
            }
            counts
        };
        Self {
            runtime: all("kubelet_runtime_operations_total{", "operation_type"),
            api: all("rest_client_requests_total{", "method"),
        }
    }
}

/// How much more.
fn since(before: &BTreeMap<String, u32>, after: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let more = after.iter().map(|(name, count)| (name.clone(), count - before.get(name).copied().unwrap_or_default()));
    more.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn a_pod_is_looked_at_only_when_something_may_have_changed() {
    const PODS: u32 = 4;
    // A1.7, A2.10, A23.3
    let lab = Lab::start();
    let one = |name: &str| {
        lab.apply(&pod(name).script("trap 'exit 0' TERM; sleep 1000 & wait").build());
        lab.kubectl(&format!("wait --for=condition=Ready pod/{name} --timeout=90s"));
        lab.kubectl(&format!("delete pod {name} --timeout=90s"));
    };
    one("first");
    let before = Counts::of(&lab);
    (0..PODS).for_each(|number| one(&format!("p{number}")));
    let after = Counts::of(&lab);
    let (runtime, api) = (since(&before.runtime, &after.runtime), since(&before.api, &after.api));
    println!("{PODS} pods: {runtime:?} {api:?}");
    let made = |name: &str| runtime.get(name).copied().unwrap_or_default();
    let once = ["run_podsandbox", "create_container", "start_container", "stop_container"];
    for name in once.into_iter().chain(["stop_podsandbox", "remove_podsandbox"]) {
        assert_eq!(made(name), PODS, "{name}: {runtime:?}");
    }
    // A container is asked for when it was started and when it has ended, a sandbox when it was made. An event that comes late asks once
    // more; and the slow round, which comes once a minute, may fall into the test.
    let looks = [("container_status", PODS * 2 + 4), ("podsandbox_status", PODS + 4), ("image_status", PODS + 2)];
    for (name, rest) in looks.into_iter().chain([("list_podsandbox", 3), ("list_containers", 3)]) {
        assert!(made(name) <= rest, "{name}: {runtime:?}");
    }
    // A token and four events; what it shows when it starts, when it runs, when it is deleted, and at last.
    let asked = |method: &str| api.get(method).copied().unwrap_or_default();
    assert_eq!(asked("DELETE"), PODS, "{api:?}");
    for (method, rest) in [("POST", PODS * 5 + 2), ("PATCH", PODS * 4 + 4), ("GET", 4)] {
        assert!(asked(method) <= rest, "{method}: {api:?}");
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
