//! What upstream fills into pods and pod templates (C3.23).

use serde_json::{Value, json};

use super::pod_rules::aggregate;
use super::quantities;
use super::tree::{child, fill, fill_text, items, items_mut, text};

pub(super) fn default_pod(pod: &mut Value) {
    let spec = child(pod, "spec");
    write_quantities(spec);
    copy_limits(spec);
    default_pod_level(spec);
    default_spec(spec);
    // Upstream writes these for pods, not for templates.
    fill(spec, "enableServiceLinks", true);
    if spec["hostNetwork"] == true {
        host_ports(spec);
    }
}

/// Requests that are not given are the limits, for pods only, not for templates.
fn copy_limits(spec: &mut Value) {
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            let Some(limits) = container["resources"]["limits"].as_object().cloned() else { continue };
            let requests = child(&mut container["resources"], "requests");
            for (resource, amount) in limits {
                fill(requests, &resource, amount);
            }
        }
    }
}

/// What the pod as a whole does not say follows from its containers, and then from its own limits.
fn default_pod_level(spec: &mut Value) {
    let own = spec["resources"].clone();
    let some = |list: &str| own[list].as_object().is_some_and(|amounts| !amounts.is_empty());
    let huge = |name: &str| name.starts_with("hugepages-");
    if some("limits") || some("requests") {
        let mut sums = aggregate(spec, "limits");
        sums.retain(|name, _| huge(name) && own["requests"][name].is_null());
        let sums = quantities::to_list(&sums, &[]);
        for (name, amount) in sums.as_object().into_iter().flatten() {
            fill(child(&mut spec["resources"], "limits"), name, amount.clone());
        }
    }
    if !some("limits") {
        return;
    }
    let given: Vec<Value> =
        items(spec, "containers").map(|container| container["resources"]["requests"].clone()).collect();
    let mut sums = aggregate(spec, "requests");
    sums.retain(|name, _| matches!(name.as_str(), "cpu" | "memory"));
    let sums = quantities::to_list(&sums, &given.iter().collect::<Vec<_>>());
    let limits = spec["resources"]["limits"].clone();
    let requests = child(&mut spec["resources"], "requests");
    for (name, amount) in [&sums, &limits].into_iter().flat_map(|list| list.as_object().into_iter().flatten()) {
        if matches!(name.as_str(), "cpu" | "memory") || huge(name) {
            fill(requests, name, amount.clone());
        }
    }
}

/// Quantities as upstream writes them.
fn write_quantities(spec: &mut Value) {
    for list in ["containers", "initContainers"] {
        items_mut(spec, list).filter_map(|container| container.get_mut("resources")).for_each(quantities::canonicalise);
    }
    if let Some(resources) = spec.get_mut("resources") {
        quantities::canonicalise(resources);
    }
    if let Some(overhead) = spec.get_mut("overhead") {
        quantities::canonicalise_list(overhead);
    }
}

/// A template's or a pod's spec.
pub(super) fn default_spec(spec: &mut Value) {
    fill_text(spec, "restartPolicy", "Always");
    fill_text(spec, "dnsPolicy", "ClusterFirst");
    fill_text(spec, "schedulerName", "default-scheduler");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "securityContext", json!({}));
    account(spec);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            default_container(container);
        }
    }
    for volume in items_mut(spec, "volumes") {
        default_volume(volume);
    }
}

/// The account's old name is kept the same as its new one.
fn account(spec: &mut Value) {
    let (new, old) = (text(spec, "serviceAccountName").to_owned(), text(spec, "serviceAccount").to_owned());
    if !new.is_empty() {
        spec["serviceAccount"] = json!(new);
    } else if !old.is_empty() {
        spec["serviceAccountName"] = json!(old);
    }
}

fn host_ports(spec: &mut Value) {
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            for port in items_mut(container, "ports") {
                let own = port["containerPort"].clone();
                if port["hostPort"].as_i64().unwrap_or(0) == 0 && !own.is_null() {
                    port["hostPort"] = own;
                }
            }
        }
    }
}

fn default_container(container: &mut Value) {
    fill_text(container, "terminationMessagePath", "/dev/termination-log");
    fill_text(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    let policy = pull_policy(text(container, "image"));
    fill_text(container, "imagePullPolicy", policy);
    for port in items_mut(container, "ports") {
        fill_text(port, "protocol", "TCP");
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe].is_object() {
            default_probe(&mut container[probe]);
        }
    }
    for hook in ["postStart", "preStop"] {
        let request = container.pointer_mut(&format!("/lifecycle/{hook}/httpGet"));
        if let Some(request) = request.filter(|request| request.is_object()) {
            default_request(request);
        }
    }
    for variable in items_mut(container, "env") {
        let reference = variable.pointer_mut("/valueFrom/fieldRef");
        if let Some(reference) = reference.filter(|reference| reference.is_object()) {
            fill_text(reference, "apiVersion", "v1");
        }
    }
}

fn default_probe(probe: &mut Value) {
    for (key, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe[key].as_i64().unwrap_or(0) == 0 {
            probe[key] = json!(value);
        }
    }
    if probe.get("httpGet").is_some_and(Value::is_object) {
        default_request(&mut probe["httpGet"]);
    }
    if probe.get("grpc").is_some_and(Value::is_object) {
        fill(&mut probe["grpc"], "service", "");
    }
}

fn default_request(request: &mut Value) {
    fill_text(request, "path", "/");
    fill_text(request, "scheme", "HTTP");
}

fn pull_policy(image: &str) -> &'static str {
    if is_latest(image) { "Always" } else { "IfNotPresent" }
}

/// Whether an image has the tag `latest`, or neither tag nor digest.
fn is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or_default();
    last.split_once(':').map_or(digest.is_none(), |(_, tag)| tag == "latest")
}

const MODE: i64 = 0o644;

fn default_volume(volume: &mut Value) {
    let Some(fields) = volume.as_object_mut() else { return };
    if fields.keys().all(|key| key == "name") {
        fields.insert("emptyDir".to_owned(), json!({}));
        return;
    }
    for key in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = fields.get_mut(key).filter(|source| source.is_object()) {
            fill(source, "defaultMode", MODE);
            field_references(source);
        }
    }
    if let Some(path) = fields.get_mut("hostPath").filter(|path| path.is_object()) {
        fill(path, "type", "");
    }
    if let Some(image) = fields.get_mut("image").filter(|image| image.is_object()) {
        let policy = pull_policy(text(image, "reference"));
        fill_text(image, "pullPolicy", policy);
    }
    for (kind, key, value) in [
        ("iscsi", "iscsiInterface", "default"),
        ("rbd", "pool", "rbd"),
        ("rbd", "user", "admin"),
        ("rbd", "keyring", "/etc/ceph/keyring"),
        ("azureDisk", "cachingMode", "ReadWrite"),
        ("azureDisk", "kind", "Shared"),
        ("azureDisk", "fsType", "ext4"),
        ("scaleIO", "storageMode", "ThinProvisioned"),
        ("scaleIO", "fsType", "xfs"),
    ] {
        if let Some(source) = fields.get_mut(kind).filter(|source| source.is_object()) {
            fill_text(source, key, value);
        }
    }
    if let Some(disk) = fields.get_mut("azureDisk").filter(|disk| disk.is_object()) {
        fill(disk, "readOnly", false);
    }
    let claim = fields.get_mut("ephemeral").and_then(|ephemeral| ephemeral.get_mut("volumeClaimTemplate"));
    if let Some(claim) = claim.filter(|claim| claim.is_object()) {
        fill_text(child(claim, "spec"), "volumeMode", "Filesystem");
    }
}

fn field_references(source: &mut Value) {
    for projection in items_mut(source, "sources") {
        if let Some(token) = projection.get_mut("serviceAccountToken").filter(|token| token.is_object()) {
            fill(token, "expirationSeconds", 3600);
        }
        if let Some(downward) = projection.get_mut("downwardAPI") {
            field_references(downward);
        }
    }
    for item in items_mut(source, "items") {
        if let Some(reference) = item.get_mut("fieldRef").filter(|reference| reference.is_object()) {
            fill_text(reference, "apiVersion", "v1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_with_a_version_are_kept() {
        // A14.1
        let digest = format!("a@sha256:{}", "0".repeat(64));
        let both = format!("a:latest@sha256:{}", "0".repeat(64));
        for (image, own, expected) in [
            ("busybox", None, "Always"),
            ("busybox:latest", None, "Always"),
            ("localhost:5000/a", None, "Always"),
            ("busybox:1.36", None, "IfNotPresent"),
            ("localhost:5000/a:1", None, "IfNotPresent"),
            (&digest, None, "IfNotPresent"),
            ("busybox", Some("Never"), "Never"),
            ("busybox:1", Some("Always"), "Always"),
        ] {
            let mut container = json!({"name": "c", "image": image, "imagePullPolicy": own.unwrap_or_default()});
            default_container(&mut container);
            assert_eq!(container["imagePullPolicy"], expected, "{image}");
        }
        let mut container = json!({"image": both});
        default_container(&mut container);
        assert_eq!(container["imagePullPolicy"], "Always", "the tag counts");
    }

    #[test]
    fn a_bare_pod_gets_what_upstream_writes() {
        // C3.23
        let mut pod = json!({"spec": {
            "containers": [{
                "name": "a", "image": "busybox",
                "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}},
                "env": [{"name": "X", "value": "1"}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
            }],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}],
        }});
        default_pod(&mut pod);
        assert_eq!(
            pod,
            json!({"spec": {
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                "terminationGracePeriodSeconds": 30, "securityContext": {}, "enableServiceLinks": true,
                "containers": [{
                    "name": "a", "image": "busybox", "imagePullPolicy": "Always",
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                        "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                    "env": [{"name": "X", "value": "1"},
                        {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}},
                }],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
            }})
        );
        let once = pod.clone();
        default_pod(&mut pod);
        assert_eq!(pod, once, "defaulting comes to rest");
    }

    #[test]
    fn tags_decide_about_pulling() {
        for (image, latest) in [
            ("a", true),
            ("a:latest", true),
            ("host:5000/a", true),
            ("host:5000/a:1", false),
            ("a@sha256:00", false),
            ("a:1", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
