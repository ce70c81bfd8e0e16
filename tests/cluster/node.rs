//! The Node as its agent registers it and keeps it: what it says of itself, when, and what it makes events of.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::manifest::pod;
use crate::lab::{Lab, NODE, text};

fn node(lab: &Lab) -> Value {
    serde_json::from_str(&lab.try_kubectl(&format!("get node {NODE} -o json")).out).unwrap_or_default()
}

fn ready(node: &Value) -> Value {
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == "Ready").unwrap_or_default()
}

/// Reasons of the events about the node, with their messages.
fn events(lab: &Lab) -> BTreeSet<(String, String)> {
    let all = lab.get("events --field-selector involvedObject.kind=Node");
    let of = |event: &Value| (text(&event["reason"]), text(&event["message"]));
    all["items"].as_array().into_iter().flatten().map(of).collect()
}

#[test]
fn an_agent_that_cannot_start_tells_so_before_it_ends() {
    // A21.2: KubeletSetupFailed
    let mut lab = Lab::new();
    lab.start_control_plane();
    lab.start_containerd();
    // A file where a directory must be.
    fs::create_dir_all(lab.dir().join("kubelet")).unwrap();
    fs::write(lab.dir().join("kubelet/pod-resources"), "").unwrap();
    lab.start_agent();
    lab.eventually_ends();
    let told = events(&lab);
    let is_it = |(reason, text): &(String, String)| reason == "KubeletSetupFailed" && text.contains("pod-resources");
    assert!(told.iter().any(is_it), "{told:?}");
}

#[expect(clippy::disallowed_methods, reason = "a test measures")]
#[test]
fn a_node_is_kept_and_tells_what_happens_to_it() {
    let mut lab = Lab::new();
    let config = lab.dir().join("kubelet.yaml");
    let fields = fs::read_to_string(&config).unwrap();
    let ours = "nodeStatusUpdateFrequency: 1s\nnodeStatusReportFrequency: 4s\nnodeLeaseDurationSeconds: 4\nkubeReserved: {cpu: 100m, memory: 100Mi}\n\
                registerWithTaints: [{key: example.com/new, value: a, effect: PreferNoSchedule}]\n";
    fs::write(&config, format!("{fields}\n{ours}")).unwrap();
    let resolver = lab.dir().join("resolv.conf");
    fs::write(
        &resolver,
        format!("search {}\n", (0..40).map(|n| format!("d{n}.example")).collect::<Vec<_>>().join(" ")),
    )
    .unwrap();
    fs::write(&config, format!("{}\nresolvConf: {}\n", fs::read_to_string(&config).unwrap(), resolver.display()))
        .unwrap();
    let service_manager = UnixDatagram::bind(lab.dir().join("notify")).unwrap();
    service_manager.set_nonblocking(true).unwrap();
    lab.agent_is_watched(&lab.dir().join("notify"), 2_000_000);
    lab.start_control_plane();
    // A15.13: an agent that starts before its runtime waits for it.
    lab.start_agent();
    sleep(Duration::from_secs(2));
    assert!(!lab.node_is_ready());
    lab.start_containerd();
    lab.eventually("the node is ready", Lab::node_is_ready);
    // A12.8, where the host lets it.
    if lab.run("sh", &["-c", "echo -999 > /proc/self/oom_score_adj"]).success {
        let pid = lab.run("pgrep", &["-o", "-x", "stoker"]).out;
        let score = lab.run("cat", &[&format!("/proc/{}/oom_score_adj", pid.trim())]).out;
        assert_eq!(score.trim(), "-999");
    }
    // A15.14
    let mut heard = String::new();
    let mut hear = || {
        let mut buffer = [0; 512];
        while let Ok(length) = service_manager.recv(&mut buffer) {
            heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
            heard.push('\n');
        }
        heard.clone()
    };
    lab.eventually("the service manager knows that it is ready", |_| {
        let heard = hear();
        ["READY=1", "STATUS=node lab is ready", "WATCHDOG=1"].iter().all(|word| heard.lines().any(|line| line == *word))
    });
    let pings = hear().matches("WATCHDOG=1").count();
    lab.eventually("it is told again and again", |_| hear().matches("WATCHDOG=1").count() >= pings + 3);

    // A16.2, A16.4, A16.5, A16.6, A16.7
    let now = node(&lab);
    let labels = &now["metadata"]["labels"];
    assert_eq!((&labels["kubernetes.io/hostname"], &labels["kubernetes.io/os"]), (&json!(NODE), &json!("linux")));
    let annotations = &now["metadata"]["annotations"];
    assert_eq!(annotations["volumes.kubernetes.io/controller-managed-attach-detach"], "true");
    let addresses = now["status"]["addresses"].as_array().unwrap();
    let of = |kind: &str| {
        addresses.iter().filter(|it| it["type"] == kind).map(|it| text(&it["address"])).collect::<Vec<_>>()
    };
    assert_eq!((of("InternalIP"), of("Hostname")), (vec!["198.51.100.2".to_owned()], vec![NODE.to_owned()]));
    let info = &now["status"]["nodeInfo"];
    assert!(text(&info["containerRuntimeVersion"]).starts_with("containerd://"), "{info}");
    assert!(text(&info["kubeletVersion"]).starts_with("v1.36."), "{info}");
    let file = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let machine_id = [file("/etc/machine-id"), file("/var/lib/dbus/machine-id")].into_iter().find(|id| !id.is_empty());
    let machine_id = machine_id.unwrap_or_default();
    let uuid = Some(file("/sys/class/dmi/id/product_uuid")).filter(|id| !id.is_empty()).unwrap_or(machine_id.clone());
    let os = file("/etc/os-release").lines().find_map(|line| Some(line.strip_prefix("PRETTY_NAME=")?.to_owned()));
    let swap = file("/proc/swaps").lines().nth(1).is_some();
    for (field, expected) in [
        ("machineID", machine_id),
        ("systemUUID", uuid),
        ("bootID", file("/proc/sys/kernel/random/boot_id")),
        ("kernelVersion", file("/proc/sys/kernel/osrelease")),
        ("osImage", os.unwrap_or_default().trim_matches('"').to_owned()),
        ("kubeProxyVersion", String::new()),
        ("operatingSystem", "linux".to_owned()),
        ("architecture", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }.to_owned()),
    ] {
        assert_eq!(text(&info[field]), expected, "{field} of {info}");
    }
    assert_eq!(info["swap"]["capacity"].is_number(), swap, "{info}");
    assert_eq!(now["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    // A16.3: once.
    let taints = |lab: &Lab| node(lab)["spec"]["taints"].to_string();
    assert!(taints(&lab).contains("example.com/new"), "{now}");
    lab.kubectl(&format!("taint node {NODE} example.com/new-"));

    // A13.1, A13.2: pods together have what is not reserved, and the eviction threshold is only kept from being given away.
    let bytes = |of: &str| {
        let amount = text(&now["status"][of]["memory"]);
        let (number, shift) = amount.strip_suffix("Mi").map_or((amount.trim_end_matches("Ki"), 10), |mib| (mib, 20));
        number.parse::<u64>().expect("an amount in KiB or MiB") << shift
    };
    let (capacity, reserved, threshold) = (bytes("capacity"), 100 << 20, 100 << 20);
    let hugepages: u64 = now["status"]["capacity"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| name.starts_with("hugepages-"))
        .map(|(_, amount)| text(amount).parse::<u64>().unwrap_or(0))
        .sum();
    if hugepages == 0 {
        assert_eq!(bytes("allocatable"), capacity - reserved - threshold);
    }
    let limit = |lab: &Lab| {
        let files = ["/sys/fs/cgroup/memory/kubepods/memory.limit_in_bytes", "/sys/fs/cgroup/kubepods/memory.max"];
        files.iter().find_map(|file| lab.run("cat", &[file]).out.trim().parse::<u64>().ok()).unwrap_or_default()
    };
    lab.eventually("all pods are limited", |lab| {
        (capacity - reserved - 4096..=capacity - reserved).contains(&limit(lab))
    });
    let cores = text(&now["status"]["capacity"]["cpu"]).parse::<u64>().expect("whole cores");
    assert_eq!(text(&now["status"]["allocatable"]["cpu"]), format!("{}m", cores * 1000 - 100));

    // From here on nobody reads what the service manager is told, and that holds up nothing.
    // A16.8: what does not change is written each four seconds, though it is looked at each second.
    let mut beats = Vec::new();
    for _ in 0..52 {
        let beat = text(&ready(&node(&lab))["lastHeartbeatTime"]);
        if beats.last() != Some(&beat) {
            beats.push(beat);
        }
        sleep(Duration::from_millis(250));
    }
    // After a change the first wait is two to six seconds. However long each look took, they tell when they were written.
    let seconds: Vec<i64> = beats.iter().map(|at| at.parse::<jiff::Timestamp>().expect("a time").as_second()).collect();
    let waits: Vec<i64> = seconds.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(waits.len() >= 2 && waits.iter().all(|wait| (2..=7).contains(wait)), "{beats:?}");
    // A16.9: the lease is renewed four times in its duration, and by somebody who reads it again when others wrote to it.
    let lease = |lab: &Lab| lab.get(&format!("lease {NODE} -n kube-node-lease"));
    let mut renewals = BTreeSet::new();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        renewals.insert(text(&lease(&lab)["spec"]["renewTime"]));
        sleep(Duration::from_millis(100));
    }
    assert!((4..=7).contains(&renewals.len()), "{renewals:?}");
    lab.kubectl(&format!("annotate lease {NODE} -n kube-node-lease mine=stays"));
    let before = text(&lease(&lab)["spec"]["renewTime"]);
    lab.eventually("it is renewed after a conflict", |lab| text(&lease(lab)["spec"]["renewTime"]) > before);
    let now = lease(&lab);
    assert_eq!(now["metadata"]["annotations"]["mine"], "stays");
    assert_eq!(now["spec"]["holderIdentity"], NODE);
    assert_eq!(now["spec"]["leaseDurationSeconds"], 4);
    let owner = &now["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Node"), &node(&lab)["metadata"]["uid"]));
    // A1.7: what happens in the runtime is noticed, when it happens and when nobody could tell of it.
    lab.apply(&pod("victim").script("echo ran; exec sleep 987654").build());
    lab.eventually("it runs", |lab| lab.ready_pods("victim") == 1);
    let kill = |lab: &Lab| {
        lab.run("sh", &["-c", "kill -9 $(pgrep -xf 'sleep 987654')"]).expect_success("kill");
    };
    let restarts = |lab: &Lab| {
        let path = "jsonpath={.status.containerStatuses[0].restartCount}";
        lab.try_kubectl(&format!("get pod victim -o {path}")).out
    };
    kill(&lab);
    let killed = Instant::now();
    lab.eventually("it is noticed", |lab| restarts(lab) == "1");
    assert!(killed.elapsed() < Duration::from_secs(20), "no slow round was waited for: {:?}", killed.elapsed());
    lab.eventually("it runs again", |lab| lab.ready_pods("victim") == 1);
    // A20.6
    assert_eq!(lab.kubectl("logs victim --previous"), "ran\n");
    // And what changes at once, in both directions (A13.11).
    lab.kill_containerd();
    kill(&lab);
    lab.eventually("the node is not ready", |lab| {
        let ready = ready(&node(lab));
        (text(&ready["status"]), text(&ready["message"])) == ("False".into(), "container runtime is down".into())
    });
    // A13.12: what nodes tell of themselves becomes taints, and goes as it came.
    let has = |lab: &Lab, key: &str| taints(lab).contains(&format!("node.kubernetes.io/{key}"));
    lab.eventually("it is tainted", |lab| has(lab, "not-ready"));
    lab.restart_containerd();
    lab.eventually("it is ready again", Lab::node_is_ready);
    lab.eventually("it is not tainted any more", |lab| !has(lab, "not-ready"));
    assert_eq!(text(&ready(&node(&lab))["message"]), "kubelet is posting ready status");
    lab.eventually("that is noticed, too", |lab| restarts(lab) == "2");

    for (verb, reason) in [("cordon", "NodeNotSchedulable"), ("uncordon", "NodeSchedulable")] {
        lab.kubectl(&format!("{verb} {NODE}"));
        lab.eventually("that is told", |lab| events(lab).iter().any(|(told, _)| told == reason));
        lab.eventually("that is a taint", |lab| has(lab, "unschedulable") == (verb == "cordon"));
    }
    // The machine was started anew.
    lab.kill_agent();
    let patch = r#"{"status":{"nodeInfo":{"bootID":"another"}}}"#;
    lab.kubectl(&format!("patch node {NODE} --subresource=status --type=merge -p {patch}"));
    // A16.1: so did somebody change what is the agent's to say.
    lab.kubectl(&format!("label node {NODE} --overwrite kubernetes.io/arch=z80 mine=stays"));
    let patch = r#"{"status":{"capacity":{"pods":"7"},"allocatable":{"pods":"7","hugepages-2Mi":"2Mi"}}}"#;
    lab.kubectl(&format!("patch node {NODE} --subresource=status --type=merge -p {patch}"));
    let fields = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{fields}\nnodeStatusMaxImages: 7\n")).unwrap();
    lab.start_agent();
    lab.eventually("the agent has seen it", |lab| text(&node(lab)["status"]["nodeInfo"]["bootID"]) != "another");
    lab.eventually("what is the agent's is as it was", |lab| {
        let now = node(lab);
        let (labels, status) = (&now["metadata"]["labels"], &now["status"]);
        labels["kubernetes.io/arch"] != "z80"
            && labels["mine"] == "stays"
            && (&status["capacity"]["pods"], &status["allocatable"]["pods"]) == (&json!("110"), &json!("110"))
            && status["allocatable"]["hugepages-2Mi"] != "2Mi"
    });
    // A18.13
    let shown = lab.kubectl(&format!("get --raw /api/v1/nodes/{NODE}/proxy/configz"));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["kubeletconfig"]["nodeStatusMaxImages"], 7);
    assert!(!taints(&lab).contains("example.com/new"), "taints are given at the registration only");

    // A11.7, A16.10, A21.1, A21.2
    let is_v1 = !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let told = |reason: &str, message: &str| (reason.to_owned(), message.to_owned());
    let status = |reason: &str| told(reason, &format!("Node {NODE} status is now: {reason}"));
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let mut expected = vec![
        told("Starting", "Starting kubelet."),
        status("NodeHasSufficientMemory"),
        status("NodeHasNoDiskPressure"),
        status("NodeHasSufficientPID"),
        status("NodeReady"),
        status("NodeNotReady"),
        status("NodeNotSchedulable"),
        status("NodeSchedulable"),
        told("Rebooted", &format!("Node {NODE} has been rebooted, boot id: {}", boot.trim())),
        told(
            "CheckLimitsForResolvConf",
            &format!(
                "Resolv.conf file '{}' contains search line consisting of more than 29 domains!",
                resolver.display()
            ),
        ),
    ];
    if is_v1 {
        let text = "cgroup v1 detected. cgroup v1 support is deprecated and will be removed in a future release. Please migrate to \
                    cgroup v2. More information at https://git.k8s.io/enhancements/keps/sig-node/5573-remove-cgroup-v1";
        expected.push(told("CgroupV1", text));
    }
    lab.eventually("all is told", |lab| {
        let all = events(lab);
        expected.iter().all(|event| all.contains(event))
            && all.iter().any(|(reason, _)| reason == "NodeAllocatableEnforced")
    });
    // A13.11
    for reason in ["NodeReady", "NodeNotReady"] {
        let told = lab.get(&format!("events --field-selector involvedObject.kind=Node,reason={reason}"));
        assert_eq!(told["items"][0]["type"], "Normal", "{reason}");
    }
    let of_drivers = lab.get(&format!("csinode {NODE}"));
    assert_eq!(of_drivers["metadata"]["ownerReferences"][0]["uid"], node(&lab)["metadata"]["uid"]);
    // A21.3
    let all = lab.get("events --field-selector involvedObject.kind=Node,reason=Starting");
    let event = &all["items"][0];
    assert_eq!(event["source"], json!({"component": "kubelet", "host": NODE}));
    assert_eq!((&event["involvedObject"]["name"], &event["involvedObject"]["uid"]), (&json!(NODE), &json!(NODE)));
    lab.finish();
}
