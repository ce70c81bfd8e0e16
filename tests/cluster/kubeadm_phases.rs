//! The objects that the phases of kubeadm init make, by its own requests; images are ours.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::lab::enclosure::NODE_IP;
use crate::lab::manifest::BUSYBOX;
use crate::lab::{Lab, NODE, text};

/// The token's, in kubeadm's defaults.
const TOKEN_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";
/// Label and taint of a control plane's node.
pub(crate) const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Whether all of the one is in the other.
fn holds(stored: &Value, sent: &Value) -> bool {
    match (stored, sent) {
        (Value::Object(stored), Value::Object(sent)) => {
            sent.iter().all(|(field, value)| stored.get(field).is_some_and(|stored| holds(stored, value)))
        }
        (Value::Array(stored), Value::Array(sent)) => {
            stored.len() == sent.len() && stored.iter().zip(sent).all(|(stored, sent)| holds(stored, sent))
        }
        _ => stored == sent,
    }
}

/// A request with this very body.
fn send(lab: &Lab, verb: &str, path: &str, object: &Value) -> Result<Value, String> {
    let file = lab.dir().join("request.json");
    fs::write(&file, object.to_string()).expect("the folder is ours");
    let outcome = lab.try_kubectl(&format!("{verb} --raw {path} -f {}", file.display()));
    if outcome.success {
        Ok(serde_json::from_str(&outcome.out).expect("JSON"))
    } else {
        Err(outcome.out + &outcome.err)
    }
}

/// kubeadm's way: makes it, or replaces what is there without asking for its version.
#[track_caller]
fn create_or_update(lab: &Lab, collection: &str, object: &Value) -> Value {
    let stored = send(lab, "create", collection, object).or_else(|error| {
        assert!(error.contains("AlreadyExists") || error.contains("already exists"), "{object}: {error}");
        send(lab, "replace", &format!("{collection}/{}", text(&object["metadata"]["name"])), object)
    });
    let stored = stored.unwrap_or_else(|error| panic!("{object}: {error}"));
    let mut sent = object.clone();
    // kube-dns says 0, any version.
    sent["metadata"].as_object_mut().expect("an object").remove("resourceVersion");
    assert!(holds(&stored, &sent), "sent {sent}\nstored {stored}");
    stored
}

fn core(namespace: &str, kind: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{kind}")
}

fn rbac(namespace: Option<&str>, kind: &str) -> String {
    let namespace = namespace.map(|name| format!("namespaces/{name}/")).unwrap_or_default();
    format!("/apis/rbac.authorization.k8s.io/v1/{namespace}{kind}")
}

fn config_map(namespace: &str, name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data})
}

const RBAC: &str = "rbac.authorization.k8s.io/v1";
const GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) fn group(name: &str) -> Value {
    json!({"kind": "Group", "name": name})
}

/// A Role to get one object, and its binding, as most of kubeadm's are.
fn readable(lab: &Lab, namespace: &str, name: &str, [kind, object]: [&str; 2], subjects: &[Value]) {
    let metadata = json!({"name": name, "namespace": namespace});
    let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": [kind], "resourceNames": [object]});
    let role = json!({"apiVersion": RBAC, "kind": "Role", "metadata": metadata, "rules": [rule]});
    create_or_update(lab, &rbac(Some(namespace), "roles"), &role);
    let reference = json!({"apiGroup": GROUP, "kind": "Role", "name": name});
    let binding = json!({"apiVersion": RBAC, "kind": "RoleBinding", "metadata": metadata, "roleRef": reference, "subjects": subjects});
    create_or_update(lab, &rbac(Some(namespace), "rolebindings"), &binding);
}

pub(crate) fn bind(lab: &Lab, name: &str, role: &str, subject: &Value) {
    let reference = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": role});
    let metadata = json!({"name": name});
    let binding = json!({"apiVersion": RBAC, "kind": "ClusterRoleBinding", "metadata": metadata, "roleRef": reference, "subjects": [subject]});
    create_or_update(lab, &rbac(None, "clusterrolebindings"), &binding);
}

fn token(id: &str, more: &Value) -> Value {
    let mut data = json!({"token-id": id, "token-secret": "0123456789abcdef", "expiration": "2099-01-01T00:00:00Z"});
    data.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    let encoded =
        data.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), json!(STANDARD.encode(text(value)))));
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "data": Value::Object(encoded.collect()),
    })
}

pub(crate) fn upload_config(lab: &Lab) {
    let data = json!({"ClusterConfiguration": "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.36.2\n"});
    let map = config_map("kube-system", "kubeadm-config", &data);
    let path = core("kube-system", "configmaps");
    // This one is read, changed and written with its version.
    if send(lab, "create", &path, &map).is_err() {
        let mut stored = lab.get("configmap kubeadm-config -n kube-system");
        stored["data"]["ClusterConfiguration"] = data["ClusterConfiguration"].clone();
        let stored = send(lab, "replace", &format!("{path}/kubeadm-config"), &stored).expect("nobody else writes it");
        assert!(holds(&stored, &map), "{stored}");
    }
    let (tokens, nodes) = (group(TOKEN_GROUP), group("system:nodes"));
    let both = [tokens, nodes];
    readable(lab, "kube-system", "kubeadm:nodes-kubeadm-config", ["configmaps", "kubeadm-config"], &both);
    let kubelet = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nstaticPodPath: /etc/kubernetes/manifests\n";
    let mut map = config_map("kube-system", "kubelet-config", &json!({"kubelet": kubelet}));
    map["metadata"]["annotations"] = json!({"kubeadm.kubernetes.io/component-config.hash": "sha256:0123456789abcdef"});
    create_or_update(lab, &path, &map);
    let [tokens, nodes] = both;
    readable(lab, "kube-system", "kubeadm:kubelet-config", ["configmaps", "kubelet-config"], &[nodes, tokens]);
}

pub(crate) fn upload_certs(lab: &Lab, id: &str) {
    let secrets = core("kube-system", "secrets");
    let made = create_or_update(
        lab,
        &secrets,
        &token(id, &json!({"description": "Proxy for managing TTL for the kubeadm-certs secret"})),
    );
    let owner = json!({
        "apiVersion": "v1", "kind": "Secret", "name": made["metadata"]["name"], "uid": made["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true,
    });
    let names = [
        "ca.crt",
        "ca.key",
        "front-proxy-ca.crt",
        "front-proxy-ca.key",
        "sa.pub",
        "sa.key",
        "etcd-ca.crt",
        "etcd-ca.key",
    ];
    let data: serde_json::Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), json!(STANDARD.encode(name)))).collect();
    let metadata = json!({"name": "kubeadm-certs", "namespace": "kube-system", "ownerReferences": [owner]});
    create_or_update(lab, &secrets, &json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}));
    readable(lab, "kube-system", "kubeadm:kubeadm-certs", ["secrets", "kubeadm-certs"], &[group(TOKEN_GROUP)]);
}

pub(crate) fn mark_control_plane(lab: &Lab) {
    let labels = json!({CONTROL_PLANE: "", "node.kubernetes.io/exclude-from-external-load-balancers": ""});
    let patch =
        json!({"metadata": {"labels": labels}, "spec": {"taints": [{"effect": "NoSchedule", "key": CONTROL_PLANE}]}});
    let file = lab.dir().join("patch.json");
    fs::write(&file, patch.to_string()).expect("the folder is ours");
    lab.kubectl(&format!("patch node {NODE} --type=strategic --patch-file {}", file.display()));
}

pub(crate) fn bootstrap_token(lab: &Lab) {
    let usages = json!({
        "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true", "auth-extra-groups": TOKEN_GROUP,
        "description": "The default bootstrap token generated by 'kubeadm init'.",
    });
    create_or_update(lab, &core("kube-system", "secrets"), &token("abcdef", &usages));
    let name = "kubeadm:get-nodes";
    let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"]});
    let role = json!({"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]});
    create_or_update(lab, &rbac(None, "clusterroles"), &role);
    let tokens = group(TOKEN_GROUP);
    bind(lab, name, name, &tokens);
    bind(lab, "kubeadm:kubelet-bootstrap", "system:node-bootstrapper", &tokens);
    let of = |kind: &str| format!("system:certificates.k8s.io:certificatesigningrequests:{kind}");
    bind(lab, "kubeadm:node-autoapprove-bootstrap", &of("nodeclient"), &tokens);
    bind(lab, "kubeadm:node-autoapprove-certificate-rotation", &of("selfnodeclient"), &group("system:nodes"));
    let user = json!({"kind": "User", "name": "kube-apiserver-kubelet-client"});
    bind(lab, "kubeadm:apiserver-kubelet-client", "system:kubelet-api-admin", &user);
    let admin: Value = serde_json::from_str(&lab.kubectl("config view --raw -o json")).expect("JSON");
    let cluster = &admin["clusters"][0]["cluster"];
    let info = json!({
        "apiVersion": "v1", "kind": "Config", "clusters": [{"name": "", "cluster": cluster}], "contexts": null,
        "current-context": "", "preferences": {}, "users": null,
    });
    let map = config_map("kube-public", "cluster-info", &json!({"kubeconfig": info.to_string()}));
    create_or_update(lab, &core("kube-public", "configmaps"), &map);
    let name = "kubeadm:bootstrap-signer-clusterinfo";
    let anybody = json!({"kind": "User", "name": "system:anonymous"});
    readable(lab, "kube-public", name, ["configmaps", "cluster-info"], &[anybody]);
}

pub(crate) fn kube_proxy_addon(lab: &Lab) {
    let data = json!({
        "config.conf": "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n",
        "kubeconfig.conf": format!("apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    server: https://{NODE_IP}:6443\n  name: default\n"),
    });
    let mut map = config_map("kube-system", "kube-proxy", &data);
    map["metadata"]["labels"] = json!({"app": "kube-proxy"});
    map["metadata"]["annotations"] = json!({"kubeadm.kubernetes.io/component-config.hash": "sha256:0123456789abcdef"});
    create_or_update(lab, &core("kube-system", "configmaps"), &map);
    let dir = lab.dir().display();
    let labels = json!({"k8s-app": "kube-proxy"});
    // It only shows what it was given: the agent routes Services.
    let script = "ls /var/lib/kube-proxy; echo $NODE_NAME $@; sleep 100000";
    let container = json!({
        "name": "kube-proxy", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script, "kube-proxy", "--config=/var/lib/kube-proxy/config.conf", "--hostname-override=$(NODE_NAME)"],
        "securityContext": {"privileged": true},
        "volumeMounts": [
            {"mountPath": "/var/lib/kube-proxy", "name": "kube-proxy"},
            {"mountPath": "/run/xtables.lock", "name": "xtables-lock", "readOnly": false},
            {"mountPath": "/lib/modules", "name": "lib-modules", "readOnly": true},
        ],
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
    });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"labels": labels, "name": "kube-proxy", "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": labels}, "updateStrategy": {"type": "RollingUpdate"},
            "template": {"metadata": {"labels": labels}, "spec": {
                "priorityClassName": "system-node-critical", "containers": [container], "hostNetwork": true,
                "serviceAccountName": "kube-proxy",
                "volumes": [
                    {"name": "kube-proxy", "configMap": {"name": "kube-proxy"}},
                    {"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
                    // Machines without modules have no such folder, and none shall be made on them.
                    {"name": "lib-modules", "hostPath": {"path": format!("{dir}/modules")}},
                ],
                "tolerations": [{"operator": "Exists"}], "nodeSelector": {"kubernetes.io/os": "linux"},
            }},
        },
    });
    create_or_update(lab, "/apis/apps/v1/namespaces/kube-system/daemonsets", &set);
    account(lab, "kube-proxy");
    bind(lab, "kubeadm:node-proxier", "system:node-proxier", &account_of("kube-proxy"));
    readable(lab, "kube-system", "kube-proxy", ["configmaps", "kube-proxy"], &[group(TOKEN_GROUP)]);
}

fn account(lab: &Lab, name: &str) {
    let metadata = json!({"name": name, "namespace": "kube-system"});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata});
    create_or_update(lab, &core("kube-system", "serviceaccounts"), &account);
}

fn account_of(name: &str) -> Value {
    json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"})
}

pub(crate) fn coredns_addon(lab: &Lab) {
    lab.kubectl("get deployments -n kube-system -l k8s-app=kube-dns");
    let corefile = ".:53 {\n    errors\n    health {\n       lameduck 5s\n    }\n    ready\n    loop\n    reload\n    loadbalance\n}\n";
    create_or_update(
        lab,
        &core("kube-system", "configmaps"),
        &config_map("kube-system", "coredns", &json!({"Corefile": corefile})),
    );
    let name = "system:coredns";
    let rules = json!([
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]);
    let role = json!({"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules});
    create_or_update(lab, &rbac(None, "clusterroles"), &role);
    bind(lab, name, name, &account_of("coredns"));
    account(lab, "coredns");
    let labels = json!({"k8s-app": "kube-dns"});
    let port =
        |number: u16, name: &str, protocol: &str| json!({"containerPort": number, "name": name, "protocol": protocol});
    let term = json!({
        "labelSelector": {"matchExpressions": [{"key": "k8s-app", "operator": "In", "values": ["kube-dns"]}]},
        "topologyKey": "kubernetes.io/hostname",
    });
    // It stands in for CoreDNS: it is healthy and ready. Nothing but this folder can be written to.
    let script = "cd /dev/shm && echo ok > health && echo ok > ready && httpd -p 8080 && exec httpd -f -p 8181";
    let container = json!({
        "name": "coredns", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script, "coredns"], "args": ["-conf", "/etc/coredns/Corefile"],
        "resources": {"limits": {"memory": "170Mi"}, "requests": {"cpu": "100m", "memory": "70Mi"}},
        "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": true}],
        "ports": [
            port(53, "dns", "UDP"), port(53, "dns-tcp", "TCP"), port(9153, "metrics", "TCP"),
            port(8080, "liveness-probe", "TCP"), port(8181, "readiness-probe", "TCP"),
        ],
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": "liveness-probe", "scheme": "HTTP"}, "initialDelaySeconds": 60,
            "timeoutSeconds": 5, "successThreshold": 1, "failureThreshold": 5,
        },
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "readiness-probe", "scheme": "HTTP"}},
        "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": true,
        },
    });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "coredns", "namespace": "kube-system", "labels": labels},
        "spec": {
            "replicas": 2, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "priorityClassName": "system-cluster-critical", "serviceAccountName": "coredns",
                "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}},
                "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists"}, {"key": CONTROL_PLANE, "effect": "NoSchedule"}],
                "nodeSelector": {"kubernetes.io/os": "linux"}, "containers": [container], "dnsPolicy": "Default",
                "volumes": [{"name": "config-volume", "configMap": {"name": "coredns", "items": [{"key": "Corefile", "path": "Corefile"}]}}],
            }},
        },
    });
    create_or_update(lab, "/apis/apps/v1/namespaces/kube-system/deployments", &deployment);
    let port = |name: &str, port: u16, protocol: &str| json!({"name": name, "port": port, "protocol": protocol, "targetPort": port});
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
            "name": "kube-dns", "namespace": "kube-system", "resourceVersion": "0",
            "annotations": {"prometheus.io/port": "9153", "prometheus.io/scrape": "true"},
        },
        "spec": {
            "clusterIP": "10.96.0.10", "selector": labels,
            "ports": [port("dns", 53, "UDP"), port("dns-tcp", 53, "TCP"), port("metrics", 9153, "TCP")],
        },
    });
    // A second time the address is taken, which kubeadm ignores as well, and updates.
    let path = core("kube-system", "services");
    let stored = send(lab, "create", &path, &service).or_else(|error| {
        assert!(
            ["AlreadyExists", "already exists", "Invalid", "invalid"].iter().any(|word| error.contains(word)),
            "{error}"
        );
        send(lab, "replace", &format!("{path}/kube-dns"), &service)
    });
    assert_eq!(stored.expect("it is taken")["spec"]["clusterIP"], "10.96.0.10");
}
