//! What a container finds around itself, and how it may end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, from_value, json};
use stoker_model::pod::PodUid;

use crate::endings::HUNGRY;
use crate::node::{Node, condition, phase, pod, state, status};

const LONG: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
const DEAF: &str = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn volume(name: &str, source: Value) -> Volume {
    let mut all = json!({ "name": name });
    all.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    from_value(all).unwrap()
}

impl Node {
    /// What a container has written, once it contains a text.
    pub async fn log_with(&self, uid: &PodUid, pod: &str, container: &str, text: &str) -> String {
        let path = self.path(&format!("pod-logs/default_{pod}_{uid}/{container}/0.log"));
        let mut log = String::new();
        for _ in 0..200 {
            log = fs::read_to_string(&path).unwrap_or_default();
            if log.contains(text) {
                return log;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{text} is not in {}: {log}\n{:#?}", path.display(), self.events());
    }

    fn events(&self) -> Vec<String> {
        self.api.events()
    }
}

#[tokio::test]
async fn a_container_finds_what_it_was_promised() {
    // A4.7, A8.3, A8.8, A9.12, A10.2, A10.12, A11.1, A11.3, A11.4, A11.7, A21.2
    let node = Node::start().await;
    node.api.put_config_map("kube-root-ca.crt", &[("ca.crt", "certificate")]);
    let fields = [
        ("NAME", "metadata.name"),
        ("NAMESPACE", "metadata.namespace"),
        ("UID_", "metadata.uid"),
        ("LABEL", "metadata.labels['k']"),
        ("ANNOTATION", "metadata.annotations['a']"),
        ("NODE", "spec.nodeName"),
        ("ACCOUNT", "spec.serviceAccountName"),
        ("HOST_IP", "status.hostIP"),
        ("HOST_IPS", "status.hostIPs"),
        ("POD_IP", "status.podIP"),
        ("POD_IPS", "status.podIPs"),
    ];
    let variables: Vec<EnvVar> = fields
        .iter()
        .map(|(name, path)| {
            from_value(json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } })).unwrap()
        })
        .collect();
    let echo: String = fields.iter().map(|(name, _)| format!("echo {name}=${name}; ")).collect();
    let script = format!(
        "{echo} echo HOSTNAME=$HOSTNAME of $(hostname); echo SERVICE=$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT; id -G; \
         for f in token ca.crt namespace; do echo $f=$(cat {ACCOUNT}/$f); done; head -n1 /etc/hosts; ls -l /etc/hosts; \
         cat /proc/self/oom_score_adj; \
         echo -n bye > /words/last; echo the end; sleep 1000"
    );
    let api_access = json!({ "projected": { "defaultMode": 420, "sources": [
        { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "fieldPath": "metadata.namespace" } }] } },
    ] } });
    let mut inside = pod("inside")
        .container("main", &script)
        .volume(volume("kube-api-access-12345", api_access), ACCOUNT)
        .with(|c| {
            c.env = Some(variables);
            c.termination_message_path = Some("/words/last".into());
        })
        .spec(|s| {
            s.service_account_name = Some("default".into());
            s.dns_policy = Some("ClusterFirstWithHostNet".into());
            s.host_aliases = from_value(json!([{"ip": "192.0.2.9", "hostnames": ["one", "two"]}])).unwrap();
            s.security_context = from_value(json!({ "runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000,
                "supplementalGroups": [4000, 3500] }))
            .unwrap();
        });
    inside.0.metadata.labels = Some([("k".to_owned(), "v".to_owned())].into());
    inside.0.metadata.annotations = Some([("a".to_owned(), "b c".to_owned())].into());
    let shares = |change: fn(&mut PodSpec)| {
        pod("p")
            .container("main", "echo 1=$(cat /proc/1/comm); readlink /proc/self/ns/ipc; echo the end; sleep 1000")
            .spec(change)
    };
    let mut others = Vec::new();
    for (name, change) in [
        ("own", (|_| ()) as fn(&mut PodSpec)),
        ("shared", |s| s.share_process_namespace = Some(true)),
        ("host", |s| (s.host_pid, s.host_ipc) = (Some(true), Some(true))),
    ] {
        let mut other = shares(change).0;
        (other.metadata.name, other.metadata.uid) = (Some(name.into()), Some(format!("{name}-uid")));
        others.push((name, node.api.create(other)));
    }
    let uid = node.api.create(inside.0);
    let log = node.log_with(&uid, "inside", "main", "the end").await;
    let says = |text: &str| assert!(log.contains(&format!("F {text}\n")), "{text}\n{log}");
    for line in [
        "NAME=inside",
        "NAMESPACE=default",
        "UID_=inside-uid",
        "LABEL=v",
        "ANNOTATION=b c",
        "NODE=node-1",
        "ACCOUNT=default",
        "HOST_IP=192.0.2.7",
        "HOST_IPS=192.0.2.7",
        "POD_IP=192.0.2.7",
        "POD_IPS=192.0.2.7",
        "SERVICE=10.96.0.1:443",
        "token=a.b.c",
        "ca.crt=certificate",
        "namespace=default",
        "# Kubernetes-managed hosts file (host network).",
        "1000",
    ] {
        says(line);
    }
    let (_, names) = log.split_once("HOSTNAME=").unwrap();
    let (given, real) = names.lines().next().unwrap().split_once(" of ").unwrap();
    assert!(!given.is_empty() && given == real, "the runtime gives it: {log}");
    // The kernel sorts them.
    says("2000 3000 3500 4000");
    // It may have written all that before the API server hears of it.
    let running = node.api.until(&uid, "running", |p| status(p, "main").container_id.is_some()).await;
    let id = status(&running, "main").container_id.unwrap();
    let group = node.path("").file_name().map(Path::new).unwrap().join(format!("kubepods/besteffort/pod{uid}"));
    let group = group.join(id.trim_start_matches("containerd://"));
    let trees = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|tree| tree.path());
    let mut trees = trees.chain([Path::new("/sys/fs/cgroup").to_path_buf()]);
    assert!(trees.any(|tree| tree.join(&group).exists()), "{}", group.display());
    assert!(log.contains("-rw-r--r--"), "{log}");
    // A11.3: the node's own file, and what was added; and who brings a file has that.
    let of_node = fs::read_to_string("/etc/hosts").unwrap();
    let file = fs::read_to_string(node.path("kubelet/pods").join(uid.as_str()).join("etc-hosts")).unwrap();
    let added = "\n# Entries added by HostAliases.\n192.0.2.9\tone\ttwo\n";
    assert_eq!(file, format!("# Kubernetes-managed hosts file (host network).\n{of_node}{added}"));
    fs::write(node.path("hosts"), "192.0.2.10 mine\n").unwrap();
    let mine = volume("hosts", json!({"hostPath": {"path": node.path("hosts"), "type": "File"}}));
    let own_file =
        pod("own-file").container("main", "cat /etc/hosts; echo the end; sleep 1000").volume(mine, "/etc/hosts");
    let own_file = node.api.create(own_file.0);
    let found = node.log_with(&own_file, "own-file", "main", "the end").await;
    assert!(found.contains("F 192.0.2.10 mine\n") && !found.contains("Kubernetes-managed"), "{found}");
    node.api.delete(&own_file, 1);
    node.api.until_gone(&own_file).await;
    // A11.7: a cluster without DNS, of which node and pod are told.
    let text = "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. \
                Falling back to \"Default\" policy.";
    let of_pod = format!("inside  MissingClusterDNS: pod: \"inside_default({uid})\". {text}");
    for told in [format!("node MissingClusterDNS: {text}"), of_pod] {
        assert!(node.api.is_warning(&told), "{told}: {:#?}", node.events());
    }
    let of_pod = node.path("kubelet/pods").join(uid.as_str());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&of_pod.join("etc-hosts")), 0o644);
    let words: Vec<_> = fs::read_dir(of_pod.join("containers/main")).unwrap().flatten().collect();
    assert_eq!((words.len(), mode(&words[0].path())), (1, 0o666));
    assert_eq!(fs::read_to_string(words[0].path()).unwrap(), "bye", "not root, and at a path of its own");

    let ipc = |link: &Path| fs::read_link(link).unwrap().to_string_lossy().into_owned();
    let of_host = ipc(Path::new("/proc/self/ns/ipc"));
    for (name, uid) in &others {
        let log = node.log_with(uid, name, "main", "the end").await;
        let first = fs::read_to_string("/proc/1/comm").unwrap();
        let own = log.contains("F 1=busybox\n");
        let of_node = log.contains(&format!("F 1={first}"));
        // Of a shared namespace the first process is that of the sandbox.
        let expected = match *name {
            "own" => (true, false, false),
            "shared" => (false, false, false),
            _ => (false, true, true),
        };
        assert_eq!((own, of_node, log.contains(&of_host)), expected, "{name}: {log}");
    }
    for uid in others.iter().map(|(_, uid)| uid).chain([&uid]) {
        node.api.delete(uid, 1);
    }
    for uid in others.iter().map(|(_, uid)| uid).chain([&uid]) {
        node.api.until_gone(uid).await;
        node.until_nothing_is_left(uid).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn containers_end_by_their_signal_or_are_killed() {
    // A1.20, A2.22, A3.14, A4.5
    let node = Node::start().await;
    let limited = |c: &mut Container| {
        let limits = Some([("memory".to_owned(), Quantity("16Mi".to_owned()))].into());
        c.resources.get_or_insert_default().limits = limits;
    };
    let hungry = node.api.create(pod("hungry").restart("Never").container("main", HUNGRY).with(limited).0);
    // The sidecars end badly, each in its own way, and that does not count.
    let finished = pod("finished")
        .restart("Never")
        .sidecar("angry", "trap 'exit 5' TERM; while :; do sleep 0.1; done")
        .sidecar("deaf", DEAF)
        .container("main", "sleep 1");
    let finished = node.api.create(finished.0);
    let late = node.api.create(pod("late").restart("Never").container("main", DEAF).0);
    let deaf = node.api.create(pod("deaf").container("main", DEAF).0);
    let hears = node.api.create(pod("hears").container("main", LONG).0);

    let ended = |name: &'static str, container: &'static str, uid: PodUid, wanted: &'static str, node: &Node| {
        let api = node.api.clone();
        async move {
            let end = |p: &Pod| format!("{} {}", phase(p), state(status(p, container).state.as_ref()));
            api.until(&uid, &format!("{name}/{container}: {wanted}"), |p| end(p) == wanted).await;
        }
    };
    // Its time counts from before its containers begin: that it was too short for them is another story.
    node.api.until(&late, "ready", |p| condition(p, "Ready")).await;
    node.api.change(&late, |pod| pod.spec.as_mut().unwrap().active_deadline_seconds = Some(1));
    ended("hungry", "main", hungry.clone(), "Failed terminated 137 OOMKilled", &node).await;
    ended("late", "main", late.clone(), "Failed terminated 137 Error", &node).await;
    ended("finished", "angry", finished.clone(), "Succeeded terminated 5 Error", &node).await;
    ended("finished", "deaf", finished.clone(), "Succeeded terminated 137 Error", &node).await;

    // TERM always has two seconds, however short the grace is; who ends at it has succeeded, and who does not has failed.
    for uid in [&deaf, &hears] {
        node.api.until(uid, "ready", |p| condition(p, "Ready")).await;
    }
    node.log_with(&deaf, "deaf", "main", "ready").await;
    let asked = now();
    node.api.delete(&hears, 1);
    node.api.until_gone(&hears).await;
    node.api.delete(&deaf, 1);
    let since = now();
    assert!(node.api.until_failed_or_gone(&deaf).await, "it was killed, so it failed");
    assert!(since.elapsed() >= Duration::from_secs(2), "{:?}", since.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    for uid in [&hungry, &finished, &late] {
        node.api.delete(uid, 1);
        node.api.until_gone(uid).await;
        node.until_nothing_is_left(uid).await;
    }
    node.stop().await;
}

#[expect(clippy::disallowed_methods, reason = "a test measures how long something took")]
fn now() -> Instant {
    Instant::now()
}
