//! What makes a manifest useless: names and references that nobody could follow, and objects that only an API server has (A7.4).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

/// Fields of a volume's source that need nothing of an API server.
const LOCAL_SOURCES: [&str; 6] = ["downwardAPI", "emptyDir", "hostPath", "image", "nfs", "projected"];

/// The first thing that is wrong with a pod.
pub(super) fn check(pod: &Pod) -> Result<(), String> {
    let meta = &pod.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    if !is_subdomain(name) {
        return Err(format!("metadata.name: {name:?} is not a lower-case DNS name of at most 253 characters"));
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    if !is_label(namespace) {
        return Err(format!(
            "metadata.namespace: {namespace:?} is not a lower-case DNS label of at most 63 characters"
        ));
    }
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    one_of("spec.restartPolicy", spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"])?;
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of("spec.dnsPolicy", spec.dns_policy.as_deref(), &policies)?;
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        return Err("spec.terminationGracePeriodSeconds: must be at least 0".into());
    }
    if spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err("spec.ephemeralContainers: cannot be set on create".into());
    }
    let volumes = volumes(spec)?;
    containers(spec, &volumes)
}

fn one_of(field: &str, value: Option<&str>, allowed: &[&str]) -> Result<(), String> {
    match value {
        Some(value) if !allowed.contains(&value) => {
            Err(format!("{field}: {value:?} must be one of {}", allowed.join(", ")))
        }
        _ => Ok(()),
    }
}

fn volumes(spec: &PodSpec) -> Result<BTreeSet<&str>, String> {
    let mut names = BTreeSet::new();
    for volume in spec.volumes.iter().flatten() {
        if !is_label(&volume.name) {
            return Err(format!("spec.volumes: the name {:?} is not a lower-case DNS label", volume.name));
        }
        if !names.insert(volume.name.as_str()) {
            return Err(format!("spec.volumes: two volumes have the name {:?}", volume.name));
        }
        if sources(volume).len() != 1 {
            return Err(format!("spec.volumes: {:?} must have exactly one source", volume.name));
        }
    }
    Ok(names)
}

fn containers(spec: &PodSpec, volumes: &BTreeSet<&str>) -> Result<(), String> {
    if spec.containers.is_empty() {
        return Err("spec.containers: at least one is needed".into());
    }
    let mut names = BTreeSet::new();
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let name = container.name.as_str();
        if !is_label(name) {
            return Err(format!("spec.containers: the name {name:?} is not a lower-case DNS label"));
        }
        if !names.insert(name) {
            return Err(format!("spec.containers: two containers have the name {name:?}"));
        }
        if container.image.as_deref().unwrap_or_default().trim().is_empty() {
            return Err(format!("spec.containers: {name:?} has no image"));
        }
        one_of("imagePullPolicy", container.image_pull_policy.as_deref(), &["Always", "IfNotPresent", "Never"])?;
        for mount in container.volume_mounts.iter().flatten() {
            if !volumes.contains(mount.name.as_str()) {
                return Err(format!(
                    "spec.containers: {name:?} mounts {:?}, which is no volume of the pod",
                    mount.name
                ));
            }
            if mount.mount_path.is_empty() {
                return Err(format!("spec.containers: {name:?} mounts {:?} at no path", mount.name));
            }
        }
        // Once is enough to run, or to have begun (A5.2).
        let probes = [("livenessProbe", &container.liveness_probe), ("startupProbe", &container.startup_probe)];
        for (field, probe) in probes {
            let asked = probe.as_ref().and_then(|probe| probe.success_threshold).unwrap_or(1);
            // None is the default, as nothing is.
            if !matches!(asked, 0 | 1) {
                return Err(format!(
                    "spec.containers: {name:?}: {field}.successThreshold: Invalid value: {asked}: must be 1"
                ));
            }
        }
        for port in container.ports.iter().flatten() {
            let valid = |port: i32| (1..=65535).contains(&port);
            if !valid(port.container_port) || port.host_port.is_some_and(|host| host != 0 && !valid(host)) {
                return Err(format!("spec.containers: a port of {name:?} is not between 1 and 65535"));
            }
        }
    }
    Ok(())
}

/// The fields of a volume that say what it is.
fn sources(volume: &Volume) -> Vec<String> {
    let fields = serde_json::to_value(volume).ok().and_then(|value| value.as_object().cloned()).unwrap_or_default();
    fields.into_iter().map(|(name, _)| name).filter(|name| name != "name").collect()
}

/// The first kind of API object that a pod refers to, in upstream's words (A7.4).
pub(super) fn reference(spec: &PodSpec) -> Option<&'static str> {
    let given = |name: &Option<String>| name.as_deref().is_some_and(|name| !name.is_empty());
    if given(&spec.service_account_name) || given(&spec.service_account) {
        return Some("serviceaccounts");
    }
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let volumes = || spec.volumes.iter().flatten();
    let pull_secrets = spec.image_pull_secrets.iter().flatten().any(|secret| !secret.name.is_empty());
    if pull_secrets || containers().any(uses_secret) || volumes().any(names_secret) {
        return Some("secrets");
    }
    if containers().any(uses_config_map) || volumes().any(names_config_map) {
        return Some("configmaps");
    }
    if spec.resource_claims.as_ref().is_some_and(|list| !list.is_empty()) {
        return Some("resourceclaims");
    }
    volumes().find_map(of_volume)
}

/// Whatever kind of volume it is, and whatever it needs the Secret for.
fn names_secret(volume: &Volume) -> bool {
    let of_projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let mut projected = of_projected.filter_map(|source| source.secret.as_ref());
    let given = |name: Option<&String>| name.is_some_and(|name| !name.is_empty());
    projected.any(|secret| !secret.name.is_empty())
        || given(volume.secret.as_ref().and_then(|secret| secret.secret_name.as_ref()))
        || given(volume.azure_file.as_ref().map(|file| &file.secret_name))
        || secrets_of_drivers(volume).iter().any(|name| !name.is_empty())
}

/// The names of the Secrets with which drivers open what they mount.
fn secrets_of_drivers(volume: &Volume) -> Vec<String> {
    let whole = serde_json::to_value(volume).unwrap_or_default();
    let sources = whole.as_object().into_iter().flat_map(|fields| fields.values());
    let names = sources.flat_map(|source| ["secretRef", "nodePublishSecretRef"].map(|field| &source[field]["name"]));
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn names_config_map(volume: &Volume) -> bool {
    let of_projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let mut projected = of_projected.filter_map(|source| source.config_map.as_ref());
    projected.any(|map| !map.name.is_empty()) || volume.config_map.as_ref().is_some_and(|map| !map.name.is_empty())
}

fn uses_secret(container: &Container) -> bool {
    container.env_from.iter().flatten().any(|from| from.secret_ref.is_some())
        || container.env.iter().flatten().any(|v| v.value_from.as_ref().is_some_and(|f| f.secret_key_ref.is_some()))
}

fn uses_config_map(container: &Container) -> bool {
    container.env_from.iter().flatten().any(|from| from.config_map_ref.is_some())
        || container.env.iter().flatten().any(|v| v.value_from.as_ref().is_some_and(|f| f.config_map_key_ref.is_some()))
}

fn of_volume(volume: &Volume) -> Option<&'static str> {
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        let found = [
            (source.config_map.is_some(), "configmaps (via projected volumes)"),
            (source.secret.is_some(), "secrets (via projected volumes)"),
            (source.service_account_token.is_some(), "serviceaccounts (via projected volumes)"),
            (source.cluster_trust_bundle.is_some(), "clustertrustbundles"),
            (source.pod_certificate.is_some(), "podcertificates"),
        ];
        if let Some((_, resource)) = found.into_iter().find(|(used, _)| *used) {
            return Some(resource);
        }
    }
    sources(volume).into_iter().find_map(|source| match source.as_str() {
        "configMap" => Some("configmaps (via configmap volumes)"),
        "secret" => Some("secrets (via secret volumes)"),
        "csi" => Some("csidrivers (via CSI volumes)"),
        "glusterfs" => Some("endpoints (via glusterFS volumes)"),
        "persistentVolumeClaim" => Some("persistentvolumeclaims"),
        "ephemeral" => Some("persistentvolumeclaims (via ephemeral volumes)"),
        "azureFile" => Some("secrets (via azureFile volumes)"),
        local if LOCAL_SOURCES.contains(&local) => None,
        // Volumes of clouds and old storage: none of them works without its driver's objects.
        _ => Some("volumes that need a driver of the cluster"),
    })
}

fn is_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= 63 && name.chars().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

fn is_subdomain(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let part =
        |part: &str| !part.is_empty() && part.chars().all(inner) && !part.starts_with('-') && !part.ends_with('-');
    name.len() <= 253 && name.split('.').all(part)
}
