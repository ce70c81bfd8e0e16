//! What kubeadm writes, asks for and starts on a machine that joins, and what it does when that machine leaves; without kubeadm itself,
//! whose real runs CONTRIBUTING.md describes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::lab::manifest::pod;
use crate::lab::{Lab, NODE};

/// `config.yaml` of kubeadm v1.36, as merged from the ConfigMap, its defaults and a patch for this host.
const CONFIG: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous:
    enabled: false
  webhook:
    cacheTTL: 0s
    enabled: true
  x509:
    clientCAFile: /etc/kubernetes/pki/ca.crt
authorization:
  mode: Webhook
  webhook:
    cacheAuthorizedTTL: 0s
    cacheUnauthorizedTTL: 0s
cgroupDriver: cgroupfs
clusterDNS:
- 10.96.0.10
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://@SOCKET@
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionHard:
  memory.available: 50Mi
evictionPressureTransitionPeriod: 0s
failCgroupV1: false
failSwapOn: false
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageGCHighThresholdPercent: 100
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
kind: KubeletConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: \"0\"
    text:
      infoBufferSize: \"0\"
  verbosity: 0
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
";

/// What the unit starts with this drop-in, once the environment files that it names are read: `file` gives their text.
fn command_of(drop_in: &str, file: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let unquoted = |text: &str| text.trim().trim_matches('"').to_owned();
    let mut variables = BTreeMap::new();
    let mut command = "";
    for line in drop_in.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let assignments = match key {
            "Environment" => unquoted(value),
            "EnvironmentFile" => file(value.trim_start_matches('-')).unwrap_or_default(),
            "ExecStart" => {
                command = value;
                continue;
            }
            _ => continue,
        };
        for assignment in assignments.lines() {
            let (name, value) = assignment.split_once('=').expect("an assignment");
            variables.insert(name.to_owned(), unquoted(value));
        }
    }
    let words = command.split_whitespace().flat_map(|word| match word.strip_prefix('$') {
        Some(name) => variables.get(name).map(String::as_str).unwrap_or_default().split_whitespace().collect(),
        None => vec![word],
    });
    words.map(str::to_owned).collect()
}

#[test]
fn a_machine_joins_and_leaves_as_kubeadm_does_it() {
    let mut lab = Lab::new();
    lab.start_containerd();
    lab.start_control_plane();
    let dir = lab.dir().display().to_string();
    let (etc, var, socket) =
        (format!("{dir}/kubernetes"), format!("{dir}/kubelet"), format!("{dir}/containerd/containerd.sock"));
    let stoker = lab.stoker();
    let here = |text: &str| {
        let text = text.replace("/etc/kubernetes", &etc).replace("/var/lib/kubelet", &var);
        text.replace("@SOCKET@", &socket).replace("/usr/bin/stoker", &stoker)
    };

    // D1.39, D1.40, C6.5: preflight. The command of the package says who it is.
    let kubelet = format!("{dir}/bin-kubelet");
    fs::write(&kubelet, here(include_str!("../../packaging/kubelet/kubelet"))).expect("the folder is ours");
    fs::set_permissions(&kubelet, fs::Permissions::from_mode(0o755)).expect("it is ours");
    assert_eq!(lab.run(&kubelet, &["--version"]).expect_success("kubelet --version"), "Kubernetes v1.36.2\n");

    // C6.2, C6.4: by the token it reads three ConfigMaps, and whether the name is free.
    let program = Path::new(&stoker).with_file_name("stoker-control-plane");
    let data = format!("{dir}/control-plane");
    let arguments = ["token", "create", "--data-dir", &data, "--print-join-command"];
    let line = lab.run(program.to_str().expect("UTF-8"), &arguments).expect_success("token create");
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["kubeadm", "join", server, "--token", token, "--discovery-token-ca-cert-hash", hash] = words[..] else {
        panic!("{line}")
    };
    assert!(hash.starts_with("sha256:"), "{line}");
    let authority = fs::read(format!("{data}/pki/ca.crt")).expect("a CA");
    let bootstrap = format!("{etc}/bootstrap-kubelet.conf");
    fs::create_dir_all(format!("{etc}/pki")).expect("the folder is ours");
    fs::create_dir_all(&var).expect("the folder is ours");
    fs::write(
        &bootstrap,
        format!(
            "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: https://{server}\n  \
             name: kubernetes\ncontexts:\n- context:\n    cluster: kubernetes\n    user: tls-bootstrap-token-user\n  \
             name: tls-bootstrap-token-user@kubernetes\ncurrent-context: tls-bootstrap-token-user@kubernetes\n\
             kind: Config\nusers:\n- name: tls-bootstrap-token-user\n  user:\n    token: {token}\n",
            STANDARD.encode(&authority)
        ),
    )
    .expect("the folder is ours");
    let token_conf = format!("{dir}/token.conf");
    fs::copy(&bootstrap, &token_conf).expect("the folder is ours");
    let by_token = |lab: &Lab, arguments: &str| {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        lab.run("kubectl", &[&["--kubeconfig", token_conf.as_str()], &words[..]].concat())
    };
    let version = by_token(&lab, "get --raw /version").expect_success("get /version");
    assert!(version.contains("\"v1.36."), "{version}");
    for map in ["kubeadm-config", "kubelet-config", "kube-proxy"] {
        by_token(&lab, &format!("get configmap {map} -n kube-system")).expect_success(map);
    }
    let free = by_token(&lab, &format!("get node {NODE}"));
    assert!(!free.success && free.err.contains("NotFound"), "{}{}", free.out, free.err);
    assert!(!by_token(&lab, "get nodes").success && !by_token(&lab, "get secrets -n kube-system").success);

    // A22.2a, A22.2b: its files.
    fs::write(format!("{etc}/pki/ca.crt"), &authority).expect("the folder is ours");
    fs::write(format!("{var}/instance-config.yaml"), "containerRuntimeEndpoint: \"unix:///of/kubeadm/alone\"\n")
        .expect("the folder is ours");
    fs::write(format!("{var}/config.yaml"), here(CONFIG)).expect("the folder is ours");
    let flags = format!("KUBELET_KUBEADM_ARGS=\"--hostname-override={NODE}\"\n");

    // A22.2c: the unit of the package starts what kubeadm's own does.
    let drop_in = include_str!("../../packaging/kubelet/05-stoker-kubeadm.conf");
    let command = command_of(drop_in, |path| match path {
        "/var/lib/kubelet/kubeadm-flags.env" => Some(flags.clone()),
        "/etc/default/kubelet" => {
            Some(format!("KUBELET_EXTRA_ARGS=--stoker-config={dir}/stoker.yaml --root-dir={var} --cert-dir={var}/pki"))
        }
        _ => None,
    });
    assert_eq!(
        command[..5],
        [
            "/usr/bin/kubelet",
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--config=/var/lib/kubelet/config.yaml",
            &format!("--hostname-override={NODE}"),
        ]
    );
    let mut command: Vec<String> = command.iter().map(|word| here(word)).collect();
    command[0].clone_from(&kubelet);
    lab.agent_is(command);
    lab.start_agent();
    lab.eventually("it is healthy", |lab| lab.curl("http://127.0.0.1:10248/healthz").out == "ok");
    let conf = format!("{etc}/kubelet.conf");
    lab.eventually("it has credentials", |_| Path::new(&conf).exists());
    fs::remove_file(&bootstrap).expect("it is there until kubeadm removes it");
    let by_node = |lab: &Lab, arguments: &str| {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        lab.run("kubectl", &[&["--kubeconfig", conf.as_str()], &words[..]].concat())
    };
    lab.eventually("the node is ready", Lab::node_is_ready);
    by_node(&lab, &format!("get node {NODE}")).expect_success("get node");
    // By this a second machine of the name sees that it is taken.
    let ready = format!("get node {NODE} -o jsonpath={{.status.conditions[?(@.type==\"Ready\")].status}}");
    assert_eq!(by_token(&lab, &ready).expect_success("get node"), "True");
    lab.apply(&pod("web").script("echo hello; sleep 10000").build());
    lab.eventually("a pod runs", |lab| lab.ready_pods("web") == 1);
    lab.eventually("its log is read", |lab| lab.try_kubectl("logs web").out == "hello\n");
    assert_eq!(lab.kubectl("exec web -- echo there"), "there\n");

    // It starts again without the token, and asks for nothing.
    lab.kill_agent();
    lab.start_agent();
    lab.eventually("its log is read again", |lab| lab.try_kubectl("logs web").out == "hello\n");
    assert_eq!(lab.get("csr")["items"].as_array().map(Vec::len), Some(1));

    // D1.41: the unit is stopped, what is mounted below its folder is unmounted, and the folder goes.
    lab.kubectl("delete pod web --wait=false");
    lab.eventually("it is gone", |lab| lab.ready_pods("web") == 0 && lab.ctr("tasks ls -q").out.is_empty());
    let agent = lab.agent_pid().to_string();
    lab.apply(&pod("left").script("sleep 10000").build());
    lab.eventually("a pod runs", |lab| lab.ready_pods("left") == 1);
    assert!(std::process::Command::new("kill").arg(&agent).status().is_ok_and(|status| status.success()));
    lab.eventually_ends();
    let mounts = lab.run("cat", &["/proc/mounts"]).out;
    let below =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|path| path.starts_with(&format!("{var}/")));
    let below: Vec<&str> = below.collect();
    assert!(below.iter().any(|path| path.contains("kube-api-access")), "{below:?}");
    for path in below {
        lab.run("umount", &[path]).expect_success(path);
    }
    fs::remove_dir_all(&var).expect("nothing holds it");
}
