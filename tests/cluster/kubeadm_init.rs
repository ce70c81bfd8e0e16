//! The phases of kubeadm init: static pods before any API server, the waits for them, and the objects that it makes then, by its own
//! requests. Images are ours and stand in for upstream's; CONTRIBUTING.md describes runs of kubeadm itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::kubeadm_phases::{
    CONTROL_PLANE, bind, bootstrap_token, coredns_addon, group, kube_proxy_addon, mark_control_plane, upload_certs,
    upload_config,
};
use crate::lab::enclosure::NODE_IP;
use crate::lab::manifest::{BUSYBOX, pod};
use crate::lab::{Lab, NODE, text};

/// A static pod as kubeadm writes it.
fn component(name: &str, container: &Value, volumes: &Value, annotations: &Value) -> Value {
    let mut container = container.clone();
    container["name"] = json!(name);
    container["image"] = json!(BUSYBOX);
    container["imagePullPolicy"] = json!("IfNotPresent");
    let mut metadata = json!({
        "creationTimestamp": null, "labels": {"component": name, "tier": "control-plane"}, "name": name,
        "namespace": "kube-system",
    });
    if annotations.is_object() {
        metadata["annotations"] = annotations.clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "containers": [container], "hostNetwork": true, "priority": 2_000_001_000,
            "priorityClassName": "system-node-critical",
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}, "volumes": volumes,
        },
        "status": {},
    })
}

/// The three probes of a component; kubeadm leaves the controller manager without the second.
fn probes(container: &mut Value, host: &str, scheme: &str, [live, ready, started]: [&str; 3]) {
    let probe = |path: &str, [delay, period, failures]: [u32; 3]| {
        json!({
            "failureThreshold": failures, "initialDelaySeconds": delay, "periodSeconds": period, "timeoutSeconds": 15,
            "httpGet": {"host": host, "path": path, "port": "probe-port", "scheme": scheme},
        })
    };
    container["livenessProbe"] = probe(live, [10, 10, 8]);
    if !ready.is_empty() {
        container["readinessProbe"] = probe(ready, [0, 1, 3]);
    }
    container["startupProbe"] = probe(started, [10, 10, 24]);
}

fn host_path(name: &str, path: &str, kind: &str) -> (Value, Value) {
    (
        json!({"name": name, "hostPath": {"path": path, "type": kind}}),
        json!({"name": name, "mountPath": path, "readOnly": true}),
    )
}

/// The four manifests. Our control plane stands in for kube-apiserver, and twice more for what answers on 10257 and 10259.
fn manifests(lab: &Lab, program: &str) -> Vec<(&'static str, Value)> {
    let dir = lab.dir().display().to_string();
    let data = format!("{dir}/etcd");
    let serve = format!("cd {data} && echo ok > livez && echo ok > readyz && exec httpd -f -p 127.0.0.1:2381");
    let mut etcd = json!({
        "command": ["sh", "-c", serve],
        "ports": [{"containerPort": 2381, "name": "probe-port", "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}},
        "volumeMounts": [{"name": "etcd-data", "mountPath": data}, {"name": "etcd-certs", "mountPath": format!("{dir}/pki/etcd")}],
    });
    probes(&mut etcd, "127.0.0.1", "HTTP", ["/livez", "/readyz", "/readyz"]);
    let kind = "DirectoryOrCreate";
    let volumes = json!([
        {"name": "etcd-certs", "hostPath": {"path": format!("{dir}/pki/etcd"), "type": kind}},
        {"name": "etcd-data", "hostPath": {"path": data, "type": kind}},
    ]);
    let advertised = json!({"kubeadm.kubernetes.io/etcd.advertise-client-urls": format!("https://{NODE_IP}:2379")});
    let mut all = vec![("etcd", component("etcd", &etcd, &volumes, &advertised))];

    let address = format!("{NODE_IP}:6443");
    let advertised = json!({"kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint": address});
    for (name, host, port, folder, cpu, paths, annotations) in [
        ("kube-apiserver", NODE_IP, 6443, "control-plane", "250m", ["/livez", "/readyz", "/livez"], &advertised),
        ("kube-controller-manager", "127.0.0.1", 10257, "kcm", "200m", ["/healthz", "", "/healthz"], &Value::Null),
        ("kube-scheduler", "127.0.0.1", 10259, "scheduler", "100m", ["/livez", "/readyz", "/livez"], &Value::Null),
    ] {
        let data = format!("{dir}/{folder}");
        let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
        // The program is no static one.
        for (name, path, kind) in [
            ("ca-certs", "/etc/ssl/certs", "DirectoryOrCreate"),
            ("lib", "/lib", "Directory"),
            ("lib64", "/lib64", ""),
            ("program", program, "File"),
            ("usr-lib", "/usr/lib", "Directory"),
        ] {
            let (volume, mount) = host_path(name, path, kind);
            volumes.push(volume);
            mounts.push(mount);
        }
        volumes.push(json!({"name": "k8s-certs", "hostPath": {"path": data, "type": "DirectoryOrCreate"}}));
        mounts.push(json!({"name": "k8s-certs", "mountPath": data}));
        if name != "kube-apiserver" {
            let file = format!("{dir}/{name}.conf");
            let (volume, mount) = host_path("kubeconfig", &file, "FileOrCreate");
            volumes.push(volume);
            mounts.push(mount);
        }
        let mut container = json!({
            "command": [program, "run", "--data-dir", data, "--advertise-address", NODE_IP, "--bind-address",
                if name == "kube-apiserver" { "0.0.0.0" } else { "127.0.0.1" }, "--port", port.to_string()],
            "ports": [{"containerPort": port, "name": "probe-port", "protocol": "TCP"}],
            "resources": {"requests": {"cpu": cpu}}, "volumeMounts": mounts,
        });
        probes(&mut container, host, "HTTPS", paths);
        all.push((name, component(name, &container, &json!(volumes), annotations)));
    }
    all
}

#[test]
fn the_phases_of_kubeadm_init_succeed() {
    // C6.5, D1.39
    let mut lab = Lab::new();
    lab.start_containerd();
    // Phases certs and kubeconfig: files alone are left of this start.
    lab.start_control_plane();
    lab.kill_control_plane();
    let dir = lab.dir().to_owned();
    fs::remove_file(dir.join("control-plane/objects.redb")).expect("that is where objects are");

    // Phases etcd and control-plane: files with the rights that kubeadm gives them.
    let folder = dir.join("manifests");
    fs::create_dir(&folder).expect("the folder is ours");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("it is ours");
    let program = Path::new(&lab.stoker()).with_file_name("stoker-control-plane");
    for (name, pod) in manifests(&lab, program.to_str().expect("UTF-8")) {
        let file = folder.join(format!("{name}.yaml"));
        fs::write(&file, serde_yaml_ng::to_string(&pod).expect("YAML")).expect("the folder is ours");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }

    // Phase kubelet-start, then the waits: for the agent, which has no API server yet, and for the three components.
    lab.kubectl_is_refused();
    lab.configure(&format!("staticPodPath: {}\n", folder.display()));
    lab.agent_flag("--rotate-certificates", "");
    lab.start_agent();
    lab.eventually("the agent is healthy", |lab| lab.curl("http://127.0.0.1:10248/healthz").out == "ok");
    lab.eventually("the API server lives", |lab| lab.try_kubectl("get --raw /livez").out == "ok");
    for address in ["10257/healthz", "10259/livez"] {
        let url = format!("https://127.0.0.1:{address}");
        lab.eventually(address, |lab| lab.run("curl", &["-sSk", "--max-time", "3", &url]).out == "ok");
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pod-network.yaml");
    lab.kubectl(&format!("apply -f {}", examples.display()));
    lab.eventually("the node is ready", Lab::node_is_ready);
    lab.eventually("all components are Running and ready", |lab| {
        let pods = lab.get("pods -n kube-system -l tier=control-plane");
        let ready = |pod: &&Value| {
            pod["status"]["phase"] == "Running" && pod["status"]["containerStatuses"][0]["ready"] == true
        };
        pods["items"].as_array().is_some_and(|pods| pods.iter().filter(ready).count() == 4)
    });
    let mirror = lab.get(&format!("pod kube-apiserver-{NODE} -n kube-system"));
    let key = "kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint";
    assert_eq!(mirror["metadata"]["annotations"][key], format!("{NODE_IP}:6443"));
    assert_eq!(mirror["spec"]["priority"], 2_000_001_000);
    let running = lab.running_containers();

    // What an administrator of kubeadm may, and then every phase, and all of it again: kubeadm may be told to.
    for id in ["111111", "222222"] {
        bind(&lab, "kubeadm:cluster-admins", "cluster-admin", &group("kubeadm:cluster-admins"));
        upload_config(&lab);
        upload_certs(&lab, id);
        mark_control_plane(&lab);
        bootstrap_token(&lab);
        coredns_addon(&lab);
        kube_proxy_addon(&lab);
    }

    // The certificates go with the token that stands for their time.
    lab.kubectl("delete secret bootstrap-token-222222 -n kube-system");
    lab.eventually("the certificates are gone", |lab| {
        !lab.try_kubectl("get secret kubeadm-certs -n kube-system").success
    });
    // The token is good, and signs what everybody may read.
    let info = format!("https://{NODE_IP}:6443/api/v1/namespaces/kube-public/configmaps/cluster-info");
    lab.eventually("the cluster's information is signed", |lab| {
        lab.run("curl", &["-sSk", "--fail", "--max-time", "3", &info]).out.contains("jws-kubeconfig-abcdef")
    });
    let by_token = |path: &str| {
        let url = format!("https://{NODE_IP}:6443/{path}");
        let header = "Authorization: Bearer abcdef.0123456789abcdef";
        lab.run("curl", &["-sSk", "--fail", "--max-time", "3", "-H", header, &url]).success
    };
    assert!(by_token(&format!("api/v1/nodes/{NODE}")) && !by_token("api/v1/nodes"));
    for map in ["kubeadm-config", "kubelet-config", "kube-proxy"] {
        assert!(by_token(&format!("api/v1/namespaces/kube-system/configmaps/{map}")), "{map}");
    }
    // What kubeadm wrote is not written over.
    let map = lab.get("configmap kubeadm-config -n kube-system");
    assert!(text(&map["data"]["ClusterConfiguration"]).contains("v1.36.2"), "{map}");

    // The addons run on the marked node, and nothing else does.
    lab.kubectl("rollout status daemonset/kube-proxy -n kube-system --timeout=80s");
    lab.kubectl("rollout status deployment/coredns -n kube-system --timeout=80s");
    let shown = lab.kubectl("logs daemonset/kube-proxy -n kube-system");
    let given = format!("{NODE} --config=/var/lib/kube-proxy/config.conf --hostname-override={NODE}\n");
    assert!(shown.ends_with(&given) && shown.starts_with("config.conf\nkubeconfig.conf\n"), "{shown}");
    lab.eventually("the Service has both", |lab| {
        let slices = lab.get("endpointslices -n kube-system -l kubernetes.io/service-name=kube-dns");
        let of = |slice: &Value| slice["endpoints"].as_array().map_or(0, Vec::len);
        slices["items"].as_array().into_iter().flatten().map(of).sum::<usize>() == 2
    });
    lab.apply(&pod("other").build());
    lab.eventually("others must wait", |lab| {
        let pod = lab.get("pod other");
        text(&pod["status"]["conditions"][0]["message"]).contains("untolerated taint")
    });

    // Phase kubelet-finalize: the kubeconfig names the agent's own certificate from now on, and the unit is restarted.
    let pem = dir.join("kubelet/pki/kubelet-client-current.pem");
    assert!(pem.exists(), "kubeadm looks for it");
    let conf = dir.join(format!("control-plane/node-{NODE}.kubeconfig"));
    let words = ["config", "view", "--raw", "-o", "json", "--kubeconfig", conf.to_str().expect("UTF-8")];
    let mut config: Value =
        serde_json::from_str(&lab.run("kubectl", &words).expect_success("kubectl config")).expect("JSON");
    config["users"][0]["user"] = json!({"client-certificate": pem, "client-key": pem});
    fs::write(&conf, config.to_string()).expect("the folder is ours");
    lab.kill_agent();
    lab.start_agent();
    lab.eventually("the agent is healthy again", |lab| lab.curl("http://127.0.0.1:10248/healthz").out == "ok");
    lab.kubectl("delete pod other");
    lab.kubectl(&format!("annotate node {NODE} seen=yes"));
    lab.eventually("the node is still ready", Lab::node_is_ready);
    let node = lab.get(&format!("node {NODE}"));
    assert!(node["metadata"]["labels"][CONTROL_PLANE] == "", "{node}");
    assert_eq!(node["spec"]["taints"], json!([{"effect": "NoSchedule", "key": CONTROL_PLANE}]));
    let now = lab.running_containers();
    assert!(running.iter().all(|container| now.contains(container)), "{running:?}\n{now:?}");
}
