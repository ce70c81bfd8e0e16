//! What every cluster has from the first moment: its namespaces, the `kubernetes` Service with its endpoint, and the
//! system priority classes (C5.11, C5.12, C5.13).

use std::net::IpAddr;

use serde_json::{Value, json};

use super::cidr::Cidr;
use crate::api::{Cluster, PatchType, WriteOptions};
use crate::resources::status::StatusError;

/// Makes what is missing and puts right what points elsewhere. The Service `kubernetes` has the first address of the first service range.
pub async fn ensure_defaults(
    cluster: &Cluster,
    advertise_address: IpAddr,
    port: u16,
    services: &[Cidr],
) -> Result<(), StatusError> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(cluster, ("", "namespaces"), "", name, namespace, None).await?;
    }
    for (name, value, description) in [
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority"});
        ensure(cluster, ("scheduling.k8s.io", "priorityclasses"), "", name, class, None).await?;
    }
    ensure_range(cluster, services).await?;
    let Some(service_ip) = services.first().map(|range| range.address(1)) else { return Ok(()) };
    let family = if service_ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": service_ip.to_string(), "clusterIPs": [service_ip.to_string()],
            "ipFamilies": [family], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    });
    ensure(cluster, ("", "services"), "default", "kubernetes", service, Some("spec")).await?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if advertise_address.is_ipv4() { "IPv4" } else { "IPv6" },
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [advertise_address.to_string()], "conditions": {"ready": true}}],
    });
    ensure(cluster, ("discovery.k8s.io", "endpointslices"), "default", "kubernetes", slice, Some("endpoints")).await?;
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": advertise_address.to_string()}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    ensure(cluster, ("", "endpoints"), "default", "kubernetes", endpoints, Some("subsets")).await
}

/// The cluster's own ranges as an object. A second family may have come since; another change is not possible.
async fn ensure_range(cluster: &Cluster, services: &[Cidr]) -> Result<(), StatusError> {
    let kind = ("networking.k8s.io", "servicecidrs");
    let cidrs: Vec<String> = services.iter().map(ToString::to_string).collect();
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": cidrs}});
    ensure(cluster, kind, "", "kubernetes", range, None).await?;
    let objects = cluster.objects(kind.0, kind.1);
    let stored = objects.get("", "kubernetes").await?["spec"]["cidrs"].clone();
    if stored == json!(cidrs) {
        return Ok(());
    }
    if stored != json!(cidrs[..1]) {
        tracing::warn!(%stored, ?cidrs, "the ServiceCIDR kubernetes has other ranges: delete it and start again to change them");
        return Ok(());
    }
    let patch = json!({"spec": {"cidrs": cidrs}});
    objects.patch("", "kubernetes", "", PatchType::Merge, &patch, &WriteOptions::default()).await.map(drop)
}

/// Creates an object, or, where `follows` names a part of it that depends on the configuration, writes that part.
pub(super) async fn ensure(
    cluster: &Cluster,
    kind: (&str, &str),
    namespace: &str,
    name: &str,
    object: Value,
    follows: Option<&str>,
) -> Result<(), StatusError> {
    let objects = cluster.objects(kind.0, kind.1);
    let options = WriteOptions::default();
    let part = follows.map(|part| {
        let mut patch = json!({part: object[part]});
        if part == "endpoints" {
            patch["ports"] = object["ports"].clone();
        }
        patch
    });
    // A Service that is there already would first be refused for its address.
    match objects.get(namespace, name).await {
        Err(error) if error.is_not_found() => return objects.create(namespace, object, &options).await.map(drop),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    match part {
        Some(patch) => objects.patch(namespace, name, "", PatchType::Merge, &patch, &options).await.map(drop),
        None => Ok(()),
    }
}
