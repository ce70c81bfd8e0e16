//! Containers beside others: sidecars, ephemeral ones, and those whose end makes the whole pod start over.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerState, ExecAction, Lifecycle, LifecycleHandler, Pod, Volume, VolumeMount};
use serde_json::{from_value, json};
use stoker_model::pod::PodUid;

use crate::node::{Builder, Node, condition, phase, pod, state, status};

const LONG: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// A folder of the node that every container of the pod sees at `/notes`, and which stays when the pod goes.
struct Notes(PathBuf);

impl Notes {
    fn new(node: &Node) -> Self {
        let path = node.path("notes");
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn seen_by(&self, builder: Builder) -> Builder {
        let volume: Volume = from_value(json!({ "name": "notes", "hostPath": { "path": self.0 } })).unwrap();
        let mount = VolumeMount { name: "notes".into(), mount_path: "/notes".into(), ..VolumeMount::default() };
        builder.spec(|spec| {
            spec.volumes.get_or_insert_default().push(volume);
            for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                container.volume_mounts.get_or_insert_default().push(mount.clone());
            }
        })
    }

    fn put(&self, name: &str) {
        fs::write(self.0.join(name), "").unwrap();
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.0.join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn until(&self, line: &str) {
        for _ in 0..400 {
            if self.lines("log").iter().any(|written| written == line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{line} was not written: {:?}", self.lines("log"));
    }
}

fn exec(script: &str) -> ExecAction {
    ExecAction { command: Some(["/bin/busybox", "sh", "-c", script].map(String::from).to_vec()) }
}

async fn run_in(node: &Node, uid: &PodUid, container: &str, script: &str) {
    let id = status(&node.api.pod(uid).unwrap(), container).container_id.unwrap();
    let id = id.trim_start_matches("containerd://");
    let command = exec(script).command.unwrap();
    let answer = node.lab.runtime.exec_sync(id, command, Duration::from_secs(10)).await.unwrap();
    assert_eq!(answer.exit_code, 0, "{answer:?}");
}

fn runs(state: Option<&ContainerState>) -> bool {
    state.is_some_and(|state| state.running.is_some())
}

#[tokio::test]
async fn sidecars_have_probes_and_hooks_and_come_back() {
    // A3.3, A3.14
    let node = Node::start().await;
    let notes = Notes::new(&node);
    let side = "echo side-start >> /notes/log; trap 'echo side-term >> /notes/log; exit 0' TERM; \
                while ! test -e /notes/die; do sleep 0.1; done; exit 3";
    let main = "echo main-start >> /notes/log; \
                down() { echo main-term >> /notes/log; until test -e /notes/go; do sleep 0.1; done; exit 0; }; \
                trap down TERM; while :; do sleep 0.1; done";
    let built = pod("p").restart("Never").sidecar("side", side).container("main", main).spec(|spec| {
        let side = &mut spec.init_containers.as_mut().unwrap()[0];
        let probe = |script: &str, failures: u32| {
            let exec = exec(script);
            Some(from_value(json!({ "exec": exec, "periodSeconds": 1, "failureThreshold": failures })).unwrap())
        };
        side.startup_probe = probe("test -e /notes/up", 100);
        side.readiness_probe = probe("test -e /notes/ready", 1);
        side.liveness_probe = probe("test ! -e /tmp/dead", 1);
        let pre_stop = LifecycleHandler { exec: Some(exec("echo side-hook >> /notes/log")), ..Default::default() };
        side.lifecycle = Some(Lifecycle { pre_stop: Some(pre_stop), ..Lifecycle::default() });
        spec.termination_grace_period_seconds = Some(60);
    });
    let uid = node.api.create(notes.seen_by(built).0);
    // Its hook takes longer than the grace; so it is cut off, and the pod has still done what it had to.
    let overruns = pod("overruns").restart("Never").sidecar("side", LONG).container("main", "sleep 1").spec(|spec| {
        let hook = from_value(json!({ "preStop": { "sleep": { "seconds": 90 } } })).unwrap();
        spec.init_containers.as_mut().unwrap()[0].lifecycle = Some(hook);
    });
    let overruns = node.api.create(overruns.0);

    let begun = node.api.until(&uid, "begun", |pod| runs(status(pod, "side").state.as_ref())).await;
    assert_eq!((status(&begun, "side").started, phase(&begun)), (Some(false), "Pending"));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let waits = node.api.pod(&uid).unwrap();
    assert_eq!(state(status(&waits, "main").state.as_ref()), "waiting PodInitializing", "the sidecar has not started");
    notes.put("up");
    let unready = node.api.until(&uid, "running", |pod| status(pod, "main").ready).await;
    let of_ready = |pod: &Pod| {
        let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.find(|c| c.type_ == "Ready").and_then(|c| c.message.clone()).unwrap_or_default()
    };
    assert_eq!(of_ready(&unready), "containers with unready status: [side]");
    notes.put("ready");
    node.api.until(&uid, "ready", |pod| condition(pod, "Ready")).await;

    run_in(&node, &uid, "side", "touch /tmp/dead").await;
    let again = |pod: &Pod| status(pod, "side").restart_count == 1 && condition(pod, "Ready");
    let after = node.api.until(&uid, "back", again).await;
    assert_eq!(status(&after, "main").restart_count, 0, "the policy of the pod is not the sidecar's");
    assert_eq!(state(status(&after, "side").last_state.as_ref()), "terminated 0 Completed");
    let told = "p spec.initContainers{side} Killing: Init container side failed liveness probe";
    assert!(node.api.events().iter().any(|event| event == told), "{:#?}", node.api.events());
    assert_eq!(notes.lines("log"), ["side-start", "main-start", "side-hook", "side-term", "side-start"]);

    // While the pod ends it is asked whether it is ready, and does not come back.
    node.api.delete(&uid, 60);
    notes.until("main-term").await;
    fs::remove_file(notes.0.join("ready")).unwrap();
    node.api.until(&uid, "unready", |pod| !status(pod, "side").ready && runs(status(pod, "side").state.as_ref())).await;
    run_in(&node, &uid, "side", "touch /tmp/dead").await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let alive = node.api.pod(&uid).unwrap();
    assert!(runs(status(&alive, "side").state.as_ref()), "nobody asks any more whether it lives");
    notes.put("die");
    let died = |pod: &Pod| state(status(pod, "side").state.as_ref()) == "terminated 3 Error";
    node.api.until(&uid, "dead", died).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let waits = node.api.pod(&uid).unwrap();
    assert!(died(&waits) && runs(status(&waits, "main").state.as_ref()), "{:#?}", waits.status);
    notes.put("go");
    assert!(!node.api.until_failed_or_gone(&uid).await, "what a sidecar ends with does not count");
    assert_eq!(notes.lines("log").iter().filter(|line| *line == "side-start").count(), 2);

    node.api.until(&overruns, "succeeded", |pod| phase(pod) == "Succeeded").await;
    node.api.delete(&overruns, 1);
    for uid in [&uid, &overruns] {
        node.api.until_gone(uid).await;
        node.until_nothing_is_left(uid).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn an_ephemeral_container_joins_and_never_comes_back() {
    // A1.19, A3.7, A8.7
    let node = Node::start().await;
    let scratch: Volume = from_value(json!({ "name": "v", "emptyDir": {} })).unwrap();
    let write = format!("printf \"WORD='deep blue'\\n\" > /v/env; {LONG}");
    let uid = node.api.create(pod("p").container("main", &write).volume(scratch, "/v").0);
    let stuck = node.api.create(pod("stuck").init("init", LONG).container("main", LONG).0);
    let before = node.api.until(&uid, "ready", |pod| condition(pod, "Ready")).await;
    node.api.until(&stuck, "initializing", |pod| runs(status(pod, "init").state.as_ref())).await;

    let container = |name: &str, target: Option<&str>, script: &str| {
        let command = exec(script).command;
        let word = json!({ "fileKeyRef": { "volumeName": "v", "path": "env", "key": "WORD" } });
        let env = if target.is_some() { json!([{ "name": "WORD", "valueFrom": word }]) } else { json!([]) };
        from_value(json!({
            "name": name, "image": crate::lab::BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": command,
            "targetContainerName": target, "env": env,
        }))
        .unwrap()
    };
    let look = "echo word=$WORD self=$$$$ sees=$(grep -c '[d]eep' /proc/1/cmdline)";
    let inside = container("inside", Some("main"), &format!("{look}; exit 3"));
    let beside = container("beside", None, &format!("{look}; {LONG}"));
    node.api.change(&uid, |pod| pod.spec.as_mut().unwrap().ephemeral_containers = Some(vec![inside, beside]));
    let early = container("early", None, "exit 0");
    node.api.change(&stuck, |pod| pod.spec.as_mut().unwrap().ephemeral_containers = Some(vec![early]));

    let ended = |pod: &Pod| state(status(pod, "inside").state.as_ref()) == "terminated 3 Error";
    let both = |pod: &Pod| ended(pod) && runs(status(pod, "beside").state.as_ref());
    node.api.until(&uid, "joined", both).await;
    let early = |pod: &Pod| state(status(pod, "early").state.as_ref()) == "terminated 0 Completed";
    let looked = node.api.until(&stuck, "looked at", early).await;
    assert_eq!(phase(&looked), "Pending", "it still initializes");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let after = node.api.pod(&uid).unwrap();
    assert!(both(&after) && condition(&after, "Ready") && phase(&after) == "Running", "{:#?}", after.status);
    let of_status = after.status.as_ref().unwrap();
    let told = of_status.conditions.iter().flatten().map(|c| c.observed_generation);
    assert!(told.chain([of_status.observed_generation]).all(|of| of == Some(2)), "it has seen the change");
    let ephemeral = of_status.ephemeral_container_statuses.as_ref().unwrap();
    assert!(ephemeral.iter().all(|status| status.restart_count == 0 && !status.ready), "{ephemeral:#?}");
    assert_eq!(of_status.container_statuses, before.status.as_ref().unwrap().container_statuses, "the others stay");
    let log = node.log_with(&uid, "p", "inside", "self=").await;
    assert!(log.contains("word=deep blue ") && log.contains("sees=1") && !log.contains("self=1 "), "{log}");
    let log = node.log_with(&uid, "p", "beside", "self=").await;
    assert!(log.contains("word= self=1 ") && log.contains("sees=0"), "{log}");
    for uid in [&uid, &stuck] {
        node.api.delete(uid, 2);
        node.api.until_gone(uid).await;
        node.until_nothing_is_left(uid).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn one_exit_makes_all_start_over_in_the_same_place() {
    // A2.15, A3.10, A3.12
    let node = Node::start().await;
    let notes = Notes::new(&node);
    let scratch: Volume = from_value(json!({ "name": "v", "emptyDir": {} })).unwrap();
    let note = |name: &str| format!("echo {name} >> /notes/log");
    let first = format!("{}; if test -e /v/again; then {LONG}; fi; touch /v/again; sleep 1; exit 42", note("a"));
    let rules = |action: &str, code: i32| {
        from_value(json!([{ "action": action, "exitCodes": { "operator": "In", "values": [code] } }])).unwrap()
    };
    let built = pod("p")
        .restart("Never")
        .init("init", &note("init"))
        .sidecar("side", &format!("{}; trap '' TERM; while :; do sleep 0.1; done", note("side")))
        .container("b", &format!("{}; trap '' TERM; while :; do sleep 0.1; done", note("b")))
        .container("a", &first)
        .volume(scratch, "/v")
        .with(|c| {
            c.restart_policy = Some("Never".into());
            c.restart_policy_rules = Some(rules("RestartAllContainers", 42));
        })
        .spec(|spec| spec.termination_grace_period_seconds = Some(300));
    let uid = node.api.create(notes.seen_by(built).0);
    // One container alone comes back by its rule, though its pod would not have it.
    let alone = "n=$(cat /notes/n 2>/dev/null || echo 0); echo $((n+1)) > /notes/n; test $n = 1 && exit 0; exit 7";
    let single = pod("single").restart("Never").container("main", alone).with(|c| {
        c.restart_policy = Some("Never".into());
        c.restart_policy_rules = Some(rules("Restart", 7));
    });
    let single = node.api.create(notes.seen_by(single).0);

    let names = ["init", "side", "a", "b"];
    let again = |pod: &Pod| condition(pod, "Ready") && names.iter().all(|name| status(pod, name).restart_count == 1);
    let after = node.api.until(&uid, "started over", again).await;
    for name in names {
        let end = status(&after, name).last_state.unwrap().terminated.unwrap();
        let told = "The container is removed because RestartAllContainers in place";
        assert_eq!((end.exit_code, end.reason.as_deref()), (137, Some("RestartingAllContainers")), "{name}");
        assert_eq!(end.message.as_deref(), Some(told), "{name}");
        let logs = node.path(&format!("pod-logs/default_p_{uid}/{name}"));
        assert!(logs.join("0.log").exists() && logs.join("1.log").exists(), "the log of the first one is kept");
    }
    assert!(!condition(&after, "AllContainersRestarting") && condition(&after, "Initialized"));
    let sandboxes = node.lab.runtime.list_pod_sandbox(None).await.unwrap();
    let attempts = sandboxes.iter().filter(|s| s.metadata.as_ref().unwrap().uid == uid.as_str());
    assert_eq!(attempts.map(|s| s.metadata.as_ref().unwrap().attempt).collect::<Vec<_>>(), [0], "the sandbox stays");
    // Who runs may not have written its line yet.
    crate::volumes::until("everybody's second line", || notes.lines("log").len() >= 8).await;
    let log = notes.lines("log");
    assert_eq!(log.len(), 8, "{log:?}");
    for half in log.chunks(4) {
        assert_eq!(half[0], "init", "in their order, both times: {log:?}");
        assert!(names.iter().all(|name| half.iter().any(|line| line == name)), "each once: {log:?}");
    }

    let done = node.api.until(&single, "succeeded", |pod| phase(pod) == "Succeeded").await;
    assert_eq!(status(&done, "main").restart_count, 1);
    for uid in [&uid, &single] {
        node.api.delete(uid, 1);
        node.api.until_gone(uid).await;
        node.until_nothing_is_left(uid).await;
    }
    node.stop().await;
}
