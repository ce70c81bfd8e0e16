//! What `kubeadm join` and `stoker join` read of a cluster before they have a node's certificate (C6.1, C6.2), and what
//! aggregated servers read to know whom to trust (C5.17). Made where it is missing; what operators change stays, but for
//! the address and CA of the cluster, which follow the configuration.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::bootstrap::ensure;
use crate::api::Cluster;
use crate::auth::Pki;
use crate::resources::status::StatusError;

/// What a node that joins must know.
#[derive(Debug, Clone)]
pub struct Joining<'a> {
    /// The CA and the server's address.
    pub pki: &'a Pki,
    /// The release that the API server tells.
    pub version: &'a str,
    /// Addresses of Services.
    pub service_cidr: &'a str,
    /// Addresses of pods; empty: none are given.
    pub pod_cidr: &'a str,
    /// `cluster.local`.
    pub domain: &'a str,
    /// Where cluster DNS answers.
    pub dns: String,
}

/// Makes what is missing.
pub async fn ensure_joining(cluster: &Cluster, facts: &Joining<'_>) -> Result<(), StatusError> {
    let info = ("kube-public", "cluster-info", json!({"kubeconfig": discovery(facts)}));
    let trust = ("kube-system", "extension-apiserver-authentication", extension_trust(facts.pki));
    for (namespace, name, data) in [info, trust] {
        let map = config_map(namespace, name, data);
        ensure(cluster, ("", "configmaps"), namespace, name, map, Some("data")).await?;
    }
    for (name, data) in [
        ("kubeadm-config", json!({"ClusterConfiguration": yaml(&cluster_configuration(facts))})),
        ("kubelet-config", json!({"kubelet": yaml(&kubelet_configuration(facts))})),
        (
            "kube-proxy",
            json!({"config.conf": yaml(&proxy_configuration(facts)), "kubeconfig.conf": yaml(&proxy_kubeconfig(facts))}),
        ),
    ] {
        let mut map = config_map("kube-system", name, data);
        if name == "kube-proxy" {
            map["metadata"]["labels"] = json!({"app": "kube-proxy"});
        }
        ensure(cluster, ("", "configmaps"), "kube-system", name, map, None).await?;
    }
    Ok(())
}

/// How extension servers know who asks: by which CA clients are signed, and which front proxy is believed (C5.17). Lists are JSON.
fn extension_trust(pki: &Pki) -> Value {
    json!({
        "client-ca-file": pki.ca_certificate(),
        "requestheader-client-ca-file": pki.front_proxy_ca(),
        "requestheader-allowed-names": r#"["front-proxy-client"]"#,
        "requestheader-username-headers": r#"["X-Remote-User"]"#,
        "requestheader-uid-headers": r#"["X-Remote-Uid"]"#,
        "requestheader-group-headers": r#"["X-Remote-Group"]"#,
        "requestheader-extra-headers-prefix": r#"["X-Remote-Extra-"]"#,
    })
}

fn config_map(namespace: &str, name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data})
}

/// Values of the trees below are texts, numbers and flags, which YAML can always write.
fn yaml(value: &Value) -> String {
    serde_yaml_ng::to_string(value).unwrap_or_default()
}

/// A kubeconfig with a cluster and no user.
fn discovery(facts: &Joining<'_>) -> String {
    yaml(&json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "", "contexts": null, "users": null,
        "clusters": [{"name": "", "cluster": {
            "certificate-authority-data": STANDARD.encode(facts.pki.ca_certificate()), "server": facts.pki.server(),
        }}],
    }))
}

fn cluster_configuration(facts: &Joining<'_>) -> Value {
    let mut networking = json!({"dnsDomain": facts.domain, "serviceSubnet": facts.service_cidr});
    if !facts.pod_cidr.is_empty() {
        networking["podSubnet"] = json!(facts.pod_cidr);
    }
    json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration",
        "certificatesDir": "/etc/kubernetes/pki", "clusterName": "kubernetes",
        "controlPlaneEndpoint": facts.pki.server().trim_start_matches("https://"),
        "kubernetesVersion": facts.version, "imageRepository": "registry.k8s.io",
        "networking": networking, "apiServer": {}, "controllerManager": {}, "scheduler": {}, "dns": {},
        "etcd": {"local": {"dataDir": "/var/lib/etcd"}}, "proxy": {},
    })
}

fn kubelet_configuration(facts: &Joining<'_>) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true, "cacheTTL": "0s"},
            "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"},
        },
        "authorization": {"mode": "Webhook", "webhook": {"cacheAuthorizedTTL": "0s", "cacheUnauthorizedTTL": "0s"}},
        "cgroupDriver": "systemd", "clusterDNS": [facts.dns], "clusterDomain": facts.domain,
        "healthzBindAddress": "127.0.0.1", "healthzPort": 10248, "rotateCertificates": true,
        "staticPodPath": "/etc/kubernetes/manifests",
    })
}

fn proxy_configuration(facts: &Joining<'_>) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "bindAddress": "0.0.0.0", "clusterCIDR": facts.pod_cidr, "mode": "",
        "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf"},
    })
}

fn proxy_kubeconfig(facts: &Joining<'_>) -> Value {
    const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "default",
        "clusters": [{"name": "default",
            "cluster": {"certificate-authority": format!("{ACCOUNT}/ca.crt"), "server": facts.pki.server()}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "namespace": "default", "user": "default"}}],
        "users": [{"name": "default", "user": {"tokenFile": format!("{ACCOUNT}/token")}}],
    })
}
