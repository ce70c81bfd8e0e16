//! A machine becomes a node with nothing but an address, a token and a hash, and stops being one.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::lab::enclosure::NODE_IP;
use crate::lab::manifest::pod;
use crate::lab::{Lab, NODE, Outcome};

/// The agent's own program, as a person runs it.
fn stoker(lab: &Lab, arguments: &[&str]) -> Outcome {
    lab.run(env!("CARGO_BIN_EXE_stoker"), arguments)
}

/// What `stoker-control-plane token create` says to type on the new machine.
fn join_words(lab: &Lab) -> Vec<String> {
    let program = Path::new(env!("CARGO_BIN_EXE_stoker")).with_file_name("stoker-control-plane");
    let data = format!("{}/control-plane", lab.dir().display());
    let arguments = ["token", "create", "--data-dir", &data, "--print-join-command=stoker"];
    let line = lab.run(program.to_str().expect("UTF-8"), &arguments).expect_success("token create");
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

#[test]
fn a_machine_joins_with_a_token_and_leaves_without_a_trace() {
    let mut lab = Lab::new();
    lab.start_containerd();
    lab.start_control_plane();
    let dir = lab.dir().display().to_string();
    let etc = format!("{dir}/etc");
    // What the cluster says to all of its nodes, and what this host needs.
    let map = lab.get("configmap kubelet-config -n kube-system");
    let theirs = map["data"]["kubelet"].as_str().expect("a configuration");
    assert!(theirs.contains("rotateCertificates: true"), "{theirs}");
    let own = format!(
        "{}failCgroupV1: false\nfailSwapOn: false\nserverTLSBootstrap: true\npodLogsDir: {dir}/pod-logs\n\
         imageGCHighThresholdPercent: 100\nevictionHard: {{ memory.available: 50Mi }}\n",
        theirs
            .replace("cgroupDriver: systemd", "cgroupDriver: cgroupfs")
            .replace("/etc/kubernetes/manifests", &format!("{dir}/manifests"))
    );
    let patched = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "kubelet-config", "namespace": "kube-system" },
        "data": { "kubelet": own },
    });
    lab.apply(&patched);

    // C6.4: nothing is written before the cluster is who it must be.
    let words = join_words(&lab);
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    words.extend(["--directory", &etc, "--node-name", NODE]);
    let place = |flag: &str| words.iter().position(|word| *word == flag).expect("a flag") + 1;
    let wrong_hash = format!("sha256:{}", "00".repeat(32));
    let known_id = format!("{}.{}", &words[place("--token")][..6], "0".repeat(16));
    for (flag, value, complaint) in [
        ("--ca-hash", wrong_hash.as_str(), "not the cluster"),
        ("--token", "zzzzzz.0123456789abcdef", "not signed with the token zzzzzz"),
        ("--token", known_id.as_str(), "signature of cluster-info is wrong"),
        ("--token", "nonsense", "must look like"),
    ] {
        let mut bad = words.clone();
        bad[place(flag)] = value;
        let refused = stoker(&lab, &bad);
        assert!(!refused.success && refused.err.contains(complaint), "{value}: {}", refused.err);
        assert!(!Path::new(&etc).exists(), "{value}");
    }
    let joined = stoker(&lab, &words).expect_success("stoker join");
    assert!(joined.contains("start the agent: stoker run"), "{joined}");
    for file in ["ca.crt", "bootstrap.kubeconfig", "kubelet.yaml"] {
        assert!(Path::new(&etc).join(file).is_file(), "{file}");
    }

    // C6.4: before there is an API server, static pods run and the health check answers.
    fs::create_dir(format!("{dir}/manifests")).expect("the folder is ours");
    let mut still = pod("still").script("sleep 10000").build();
    // The network of pods begins with what the Node object says.
    still["spec"]["hostNetwork"] = json!(true);
    fs::write(format!("{dir}/manifests/still.yaml"), still.to_string()).expect("the folder is ours");
    lab.kill_control_plane();
    lab.agent_flag("--config", &format!("{etc}/kubelet.yaml"));
    lab.agent_flag("--kubeconfig", &format!("{etc}/node.kubeconfig"));
    lab.agent_flag("--bootstrap-kubeconfig", &format!("{etc}/bootstrap.kubeconfig"));
    lab.start_agent();
    lab.eventually("it is healthy", |lab| lab.curl("http://127.0.0.1:10248/healthz").out == "ok");
    lab.eventually("the static pod runs", |lab| lab.ctr("tasks ls").out.matches("RUNNING").count() >= 2);
    assert!(!Path::new(&etc).join("node.kubeconfig").exists());

    // A16.1, A17.1: it registers as soon as there is somebody to register with.
    lab.start_control_plane();
    lab.eventually("the node is ready", Lab::node_is_ready);
    let written = fs::read_to_string(format!("{etc}/node.kubeconfig")).expect("written");
    let current = format!("{dir}/kubelet/pki/kubelet-client-current.pem");
    assert!(written.contains(&current), "{written}");
    let target = fs::read_link(&current).expect("a link");
    assert!(target.to_string_lossy().contains("/pki/kubelet-client-2"), "{}", target.display());
    let requests = lab.get("csr");
    let of = |signer: &str| -> Vec<Value> {
        let all = requests["items"].as_array().expect("a list");
        all.iter().filter(|csr| csr["spec"]["signerName"] == format!("kubernetes.io/{signer}")).cloned().collect()
    };
    let client = of("kube-apiserver-client-kubelet");
    assert_eq!(client.len(), 1, "{requests}");
    assert!(client[0]["spec"]["username"].as_str().is_some_and(|name| name.starts_with("system:bootstrap:")));
    assert!(client[0]["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("csr-")));

    // A17.3: nobody is served before the certificate is signed, which a person must approve.
    lab.eventually("it asks for a serving certificate", |lab| {
        lab.try_kubectl("get csr").out.contains("kubelet-serving")
    });
    let health = format!("https://{NODE_IP}:10250/healthz");
    let ask = ["-sS", "--max-time", "5", "--cacert", &format!("{etc}/ca.crt"), &health];
    assert!(!lab.run("curl", &ask).success);
    let requests = lab.get("csr");
    let serving = requests["items"].as_array().expect("a list").iter();
    let serving = serving.filter(|csr| csr["spec"]["signerName"] == "kubernetes.io/kubelet-serving");
    for csr in serving {
        lab.kubectl(&format!("certificate approve {}", csr["metadata"]["name"].as_str().expect("a name")));
    }
    lab.eventually("it serves with it", |lab| lab.run("curl", &ask).out == "Unauthorized");
    assert!(Path::new(&format!("{dir}/kubelet/pki/kubelet-server-current.pem")).exists());
    // A18.2: with the pods that no API server has made.
    lab.eventually("its pods are listed", |lab| {
        let list = lab.try_kubectl(&format!("get --raw /api/v1/nodes/{NODE}/proxy/pods")).out;
        list.contains("PodList") && list.contains("still")
    });
    lab.apply(&pod("web").script("echo hello; sleep 10000").build());
    lab.eventually("a pod runs", |lab| lab.ready_pods("web") == 1);
    lab.eventually("its log is read", |lab| lab.try_kubectl("logs web").out == "hello\n");

    let managed = lab.kubectl(&format!("get --raw /api/v1/nodes/{NODE}"));
    let managed: Value = serde_json::from_str(&managed).expect("JSON");
    let managers = managed["metadata"]["managedFields"].as_array().expect("a list");
    assert!(managers.iter().any(|entry| entry["manager"] == "kubelet"), "{managers:?}");

    // A16.9: the Node is known by the second renewal.
    let lease = || lab.get(&format!("lease {NODE} -n kube-node-lease"));
    lab.eventually("the lease has an owner", |_| !lease()["metadata"]["ownerReferences"].is_null());
    let lease = lease();
    assert_eq!(lease["spec"]["holderIdentity"], NODE, "{lease}");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40, "{lease}");
    let owner = &lease["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["name"]), (&json!("Node"), &json!(NODE)), "{lease}");
    let renewed = |lab: &Lab| lab.get(&format!("lease {NODE} -n kube-node-lease"))["spec"]["renewTime"].clone();
    let first = renewed(&lab);
    lab.eventually("the lease is renewed", |lab| renewed(lab) != first);
    // A23.3: how long both certificates last.
    let metrics = lab.kubectl(&format!("get --raw /api/v1/nodes/{NODE}/proxy/metrics"));
    for name in ["client", "server"] {
        let name = format!("kubelet_certificate_manager_{name}_ttl_seconds ");
        let left = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok());
        assert!(left.is_some_and(|left| left.is_finite() && left > 3600.0), "{name} {left:?}");
    }
    // A16.10
    lab.eventually("the node's events are there", |lab| {
        let events = lab.get("events -A");
        let of_node = |reason: &str| {
            let mut all = events["items"].as_array().into_iter().flatten();
            all.any(|event| event["involvedObject"]["kind"] == "Node" && event["reason"] == reason)
        };
        of_node("Starting") && of_node("NodeReady")
    });

    // A second machine must not take a name that lives.
    let other = format!("{dir}/other");
    let mut elsewhere = words.clone();
    elsewhere[place("--directory")] = &other;
    let again = stoker(&lab, &elsewhere);
    assert!(!again.success && again.err.contains("is Ready in this cluster"), "{}{}", again.out, again.err);
    let twice = stoker(&lab, &words);
    assert!(!twice.success && twice.err.contains("joined already"), "{}", twice.err);

    // What the agent knows, for people and for programs.
    let root_dir = format!("{dir}/kubelet");
    let status: Value =
        serde_json::from_str(&stoker(&lab, &["status", "-o", "json", "--root-dir", &root_dir]).out).expect("JSON");
    assert_eq!((status["node"].as_str(), status["services"].as_u64().is_some()), (Some(NODE), true), "{status}");
    let pods = status["pods"].as_array().expect("pods");
    let web =
        pods.iter().find(|pod| pod["name"].as_str().is_some_and(|name| name.starts_with("web"))).expect("the pod");
    assert_eq!((&web["phase"], &web["ready"], &web["why"]), (&json!("Running"), &json!(1), &Value::Null), "{web}");
    assert!(
        status["slowSteps"].as_array().is_some_and(|steps| steps
            .iter()
            .any(|step| step["step"].as_str().is_some_and(|step| step.contains("run sandbox")))),
        "{status}"
    );
    lab.apply(&pod("none").image("localhost/none:1").build());
    lab.eventually("it says why a pod does not run", |lab| {
        stoker(lab, &["status", "--root-dir", &root_dir])
            .out
            .lines()
            .any(|line| line.contains("default/none") && line.contains("Image"))
    });
    lab.kubectl("delete pod none --force --grace-period=0");

    // It starts again with what it has, and asks for nothing.
    lab.kill_agent();
    lab.start_agent();
    lab.eventually("its log is read again", |lab| lab.try_kubectl("logs web").out == "hello\n");
    assert_eq!(lab.get("csr")["items"].as_array().map(Vec::len), Some(2));

    // What the machine lacks is told, with the way to it.
    let socket = format!("unix://{dir}/containerd/containerd.sock");
    let root = format!("{dir}/kubelet");
    let (config, kubeconfig) = (format!("{etc}/kubelet.yaml"), format!("{etc}/node.kubeconfig"));
    let check = ["check", "-o", "json", "--config", &config, "--root-dir", &root];
    let check = [&check[..], &["--container-runtime-endpoint", &socket, "--kubeconfig", &kubeconfig]].concat();
    let found: Value = serde_json::from_str(&stoker(&lab, &check).out).expect("JSON");
    let found = found["findings"].as_array().expect("findings");
    let of = |subject: &str| found.iter().filter(|finding| finding["subject"] == subject).collect::<Vec<_>>();
    assert!(of("runtime")[0]["message"].as_str().is_some_and(|text| text.starts_with("containerd")), "{found:?}");
    assert_eq!((&of("ports")[0]["grade"], &of("clock")[0]["grade"]), (&json!("ok"), &json!("ok")), "{found:?}");
    assert!(found.iter().all(|finding| finding["grade"] == "ok" || finding["fix"].is_string()), "{found:?}");

    // All that is said goes, and nothing else.
    let reset = ["reset", "--directory", &etc, "--root-dir", &root, "--container-runtime-endpoint", &socket];
    let unasked = stoker(&lab, &reset);
    assert!(!unasked.success && unasked.out.contains("node.kubeconfig"), "{}{}", unasked.out, unasked.err);
    let running = stoker(&lab, &[&reset[..], &["--yes"]].concat());
    assert!(!running.success && running.err.contains("still runs"), "{}", running.err);
    lab.kill_agent();
    stoker(&lab, &[&reset[..], &["--yes"]].concat()).expect_success("stoker reset");
    assert_eq!(lab.leftovers(), [""; 0]);
    assert!(!Path::new(&root).exists());
    assert!(!lab.run("nft", &["list", "tables"]).out.contains("stoker"));
    stoker(&lab, &["cleanup"]).expect_success("stoker cleanup where nothing is left");
    for file in ["node.kubeconfig", "bootstrap.kubeconfig", "ca.crt", "kubelet.yaml"] {
        assert!(!Path::new(&etc).join(file).exists(), "{file}");
    }
}

/// The removal of the package does this: the runtime tells the plugins, whose they may be, that the pods have gone.
#[test]
fn pods_go_with_their_addresses_in_a_network_of_others() {
    let mut lab = Lab::new();
    let dir = lab.dir().display().to_string();
    let config = lab.dir().join("stoker.yaml");
    let text = fs::read_to_string(&config).expect("it was written");
    fs::write(&config, text.replace("podNetwork: routed", "podNetwork: none")).expect("the folder is ours");
    let plugins = lab.dir().join("cni-bin");
    fs::create_dir_all(&plugins).expect("the folder is ours");
    for plugin in ["loopback", "bridge", "host-local"] {
        fs::copy(Path::new("/usr/lib/cni").join(plugin), plugins.join(plugin)).expect("a plugin");
    }
    let addresses = lab.dir().join("host-local");
    let list = json!({"cniVersion": "0.4.0", "name": "theirs", "plugins": [
        {"type": "bridge", "bridge": "theirs0", "isGateway": true, "ipMasq": true, "ipam": {
            "type": "host-local", "dataDir": addresses, "ranges": [[{"subnet": "10.98.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
    ]});
    fs::write(lab.dir().join("cni/10-theirs.conflist"), list.to_string()).expect("the folder is ours");
    lab.start_containerd();
    lab.start_control_plane();
    lab.start_agent();
    lab.apply(&pod("one").build());
    // What is just being started the runtime does not remove.
    lab.eventually("the pod runs with an address of theirs", |lab| {
        let status = &lab.get("pod one")["status"];
        status["phase"] == "Running" && status["podIP"].as_str().is_some_and(|address| address.starts_with("10.98.0."))
    });
    let taken = || {
        let names = fs::read_dir(addresses.join("theirs")).into_iter().flatten().flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).count()
    };
    assert_eq!(taken(), 1);
    let (root, socket) = (format!("{dir}/kubelet"), format!("unix://{dir}/containerd/containerd.sock"));
    let reset = ["reset", "--only-pods", "--yes", "--root-dir", &root, "--container-runtime-endpoint", &socket];
    let running = stoker(&lab, &reset);
    assert!(!running.success && running.err.contains("still runs"), "{}", running.err);
    assert_eq!(taken(), 1, "a running agent's pods stay");
    lab.kill_agent();
    stoker(&lab, &reset).expect_success("stoker reset --only-pods");
    assert_eq!(taken(), 0, "the address is given back");
    assert_eq!(lab.ctr("containers ls -q").out, "");
    assert!(Path::new(&root).exists(), "the rest stays");
    lab.run("ip", &["link", "delete", "theirs0"]).expect_success("ip link delete");
}

#[test]
fn a_certificate_is_replaced_under_a_running_node() {
    let mut lab = Lab::new();
    lab.start_containerd();
    lab.start_control_plane();
    lab.kill_control_plane();
    lab.agent_flag("--rotate-certificates", "");
    lab.start_agent();
    // C6.5, D1.39: kubeadm init lets the kubeconfig name the agent's file, which must be there before anybody can sign another.
    let current = lab.dir().join("kubelet/pki/kubelet-client-current.pem");
    lab.eventually("the certificate of the kubeconfig is kept", |_| current.exists());
    let config = lab.dir().join(format!("control-plane/node-{NODE}.kubeconfig"));
    let config = config.to_str().expect("UTF-8");
    let words = ["config", "view", "--raw", "-o", "jsonpath={.users[0].user.client-certificate-data}"];
    let brought =
        lab.run("kubectl", &[&["--kubeconfig", config], &words[..]].concat()).expect_success("kubectl config");
    let brought = STANDARD.decode(brought).expect("base64");
    let first = fs::read_to_string(&current).expect("it exists");
    assert!(first.starts_with(str::from_utf8(&brought).expect("PEM").trim_end()) && first.contains("PRIVATE KEY"));
    // A17.2: it is not the agent's own, so it is replaced at once.
    lab.start_control_plane();
    lab.eventually("the node is ready", Lab::node_is_ready);
    lab.eventually("there is a new certificate", |_| fs::read_to_string(&current).is_ok_and(|text| text != first));
    let requests = lab.get("csr");
    assert_eq!(requests["items"][0]["spec"]["username"], format!("system:node:{NODE}"));
    let log = fs::read_to_string(lab.dir().join("log/agent.log")).expect("a log");
    assert!(log.contains("a new client certificate"), "{log}");
    // By the new connections the node goes on.
    lab.apply(&pod("after").script("sleep 10000").build());
    lab.eventually("a pod runs", |lab| lab.ready_pods("after") == 1);
    lab.finish();
}

#[test]
fn a_request_for_a_certificate_is_taken_up_again() {
    let mut lab = Lab::new();
    lab.start_containerd();
    lab.start_control_plane();
    // Nobody approves by himself what a token asks for.
    lab.kubectl("delete clusterrolebinding kubeadm:node-autoapprove-bootstrap");
    let words = join_words(&lab);
    let token = &words[words.iter().position(|word| word == "--token").expect("a flag") + 1];
    let admin = fs::read_to_string(lab.kubeconfig()).expect("it is there");
    let cluster: Vec<&str> =
        admin.lines().filter(|line| line.contains("server:") || line.contains("authority-data:")).collect();
    let bootstrap = lab.dir().join("bootstrap.kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: it\nclusters:\n- name: it\n  cluster:\n    {}\n    {}\n\
         contexts:\n- name: it\n  context: {{ cluster: it, user: it }}\nusers:\n- name: it\n  user: {{ token: {token} }}\n",
        cluster[0].trim().trim_start_matches("- "),
        cluster[1].trim().trim_start_matches("- "),
    );
    fs::write(&bootstrap, text).expect("the folder is ours");
    let kubeconfig = lab.dir().join("node.kubeconfig");
    lab.agent_flag("--kubeconfig", kubeconfig.to_str().expect("UTF-8"));
    lab.agent_flag("--bootstrap-kubeconfig", bootstrap.to_str().expect("UTF-8"));
    lab.start_agent();
    let requests = |lab: &Lab| lab.get("csr")["items"].as_array().cloned().unwrap_or_default();
    lab.eventually("it asks for a certificate", |lab| !requests(lab).is_empty());
    // A17.1: without rotateCertificates the request has a name that follows from the key, which is kept.
    let name = requests(&lab)[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    assert!(name.starts_with("node-csr-"), "{name}");
    let spec = requests(&lab)[0]["spec"].clone();
    assert_eq!(spec["signerName"], "kubernetes.io/kube-apiserver-client-kubelet");
    assert_eq!(spec["usages"], json!(["digital signature", "client auth"]), "its key cannot encipher");
    let log = |lab: &Lab| fs::read_to_string(lab.dir().join("log/agent.log")).unwrap_or_default();
    let taken_up = "going on with the request of an earlier start";
    assert!(!log(&lab).contains(taken_up));
    lab.kill_agent();
    lab.start_agent();
    lab.eventually("the next agent goes on with it", |lab| log(lab).contains(taken_up));
    assert_eq!(requests(&lab).len(), 1, "{:?}", requests(&lab));
    assert!(!kubeconfig.exists());
    lab.kubectl(&format!("certificate approve {name}"));
    lab.eventually("the node is ready", Lab::node_is_ready);
    let written = fs::read_to_string(&kubeconfig).expect("written");
    assert!(written.contains("pki/kubelet-client-current.pem"), "{written}");
    // What was to be kept until then is not needed any more.
    assert!(!lab.dir().join("kubelet/pki/kubelet-client.key.tmp").exists());
    // A third one has what it needs.
    lab.kill_agent();
    fs::remove_file(&bootstrap).expect("it is there");
    lab.start_agent();
    lab.apply(&pod("web").script("sleep 10000").build());
    lab.eventually("a pod runs", |lab| lab.ready_pods("web") == 1);
    assert_eq!(requests(&lab).len(), 1);
    lab.finish();
}

#[test]
fn a_node_without_an_api_server_runs_static_pods() {
    // A22.2d: no kubeconfig.
    let mut lab = Lab::new();
    lab.start_containerd();
    let dir = lab.dir().display().to_string();
    let manifests = lab.dir().join("manifests");
    fs::create_dir(&manifests).expect("the folder is ours");
    let mut still = pod("still").script("sleep 10000").build();
    still["spec"]["hostNetwork"] = json!(true);
    fs::write(manifests.join("still.yaml"), still.to_string()).expect("the folder is ours");
    let words = [
        lab.stoker(),
        "run".to_owned(),
        format!("--config={dir}/kubelet.yaml"),
        format!("--stoker-config={dir}/stoker.yaml"),
        format!("--root-dir={dir}/kubelet"),
        format!("--container-runtime-endpoint=unix://{dir}/containerd/containerd.sock"),
        format!("--pod-manifest-path={}", manifests.display()),
        // Nobody is to be asked who may ask.
        "--authorization-mode=AlwaysAllow".to_owned(),
        "--authentication-token-webhook=false".to_owned(),
        "--client-ca-file=".to_owned(),
        format!("--lock-file={dir}/lock"),
        "--exit-on-lock-contention".to_owned(),
    ];
    lab.agent_is(words.to_vec());
    lab.start_agent();
    let runs = |lab: &Lab| lab.ctr("tasks ls").out.matches("RUNNING").count();
    lab.eventually("the static pod runs", |lab| runs(lab) == 2);
    lab.eventually("it is healthy", |lab| lab.curl("http://127.0.0.1:10248/healthz").out == "ok");
    fs::remove_file(manifests.join("still.yaml")).expect("it is there");
    lab.eventually("it goes with its file", |lab| runs(lab) == 0 && lab.leftovers().is_empty());
    // Whoever opens the lock file wants this agent's place.
    lab.run("cat", &[&format!("{dir}/lock")]).expect_success("the lock file");
    lab.eventually_ends();
}
