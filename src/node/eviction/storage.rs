//! Which pod took more of the node's disk than it may (A13.10). Pure.

use k8s_openapi::api::core::v1::{Container, Pod};
use stoker_model::handle::DiskUsage;
use stoker_model::quantity::Milli;
use stoker_model::resources::pod_limits;

use super::rank::Share;
use super::threshold::{Layout, canonical, quantity};

const RESOURCE: &str = "ephemeral-storage";

/// A limit that was exceeded, as metrics name it, and in words.
type Reason = (&'static str, String);

/// Whether anything of the pod has a limit, so that it is worth measuring.
pub(super) fn is_limited(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut volumes = spec.volumes.iter().flatten().filter_map(|v| v.empty_dir.as_ref()?.size_limit.as_ref());
    volumes.any(|limit| Milli::of(limit) > Milli::ZERO) || pod_limits(spec).contains_key(RESOURCE)
}

/// Why the pod has to go, if it has, after the name that metrics have for it. `beside`: its own files that belong to no container and no volume.
pub(super) fn exceeded(pod: &Pod, share: &Share, beside: DiskUsage, layout: Layout) -> Option<Reason> {
    let spec = pod.spec.as_ref()?;
    for volume in spec.volumes.iter().flatten() {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref()) else { continue };
        let most = Milli::of(limit);
        let used = share.volumes.get(&volume.name).copied().unwrap_or_default();
        if most > Milli::ZERO && bytes(used) > most {
            let limit = canonical(&limit.0);
            let text = format!("Usage of EmptyDir volume \"{}\" exceeds the limit \"{limit}\". ", volume.name);
            return Some(("emptydirfs.limit", text));
        }
    }
    if let Some(most) = pod_limits(spec).get(RESOURCE) {
        let containers = share.containers.values().map(|c| c.layer + c.logs);
        // What lies in memory is no disk.
        let on_disk = |name: &str| {
            let volume = spec.volumes.iter().flatten().find(|v| v.name == name);
            let medium = volume.and_then(|v| v.empty_dir.as_ref()?.medium.as_deref()).unwrap_or_default();
            volume.is_some_and(|v| v.config_map.is_some() || (v.empty_dir.is_some() && medium.is_empty()))
        };
        let volumes = share.volumes.iter().filter(|(name, _)| on_disk(name)).map(|(_, used)| *used);
        if bytes(containers.chain(volumes).chain([beside]).sum()) > *most {
            let limits = spec.containers.iter().chain(spec.init_containers.iter().flatten()).filter_map(limit_of);
            let is_binary = limits.into_iter().next().is_none_or(|text| text.ends_with('i'));
            let most = quantity(most.units(), is_binary);
            let text = format!("Pod ephemeral local storage usage exceeds the total limit of containers {most}. ");
            return Some(("ephemeralpodfs.limit", text));
        }
    }
    for container in &spec.containers {
        let (Some(limit), Some(share)) = (limit_of(container), share.containers.get(&container.name)) else { continue };
        let most = Milli::parse(limit).unwrap_or_default();
        // Layers on the images' own file system do not fill the pods'.
        let layer = if layout == Layout::ImagesApart { DiskUsage::default() } else { share.layer };
        if !most.is_zero() && bytes(layer + share.logs) > most {
            let (name, limit) = (&container.name, canonical(limit));
            let text = format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". ");
            return Some(("ephemeralcontainerfs.limit", text));
        }
    }
    None
}

fn bytes(used: DiskUsage) -> Milli {
    Milli::from_units(i64::try_from(used.bytes).unwrap_or(i64::MAX))
}

fn limit_of(container: &Container) -> Option<&str> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    limits.get(RESOURCE).map(|limit| limit.0.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::rank::ContainerShare;
    use super::*;

    fn pod(limits: &[Value], volumes: Value) -> Pod {
        let containers: Vec<Value> = limits
            .iter()
            .enumerate()
            .map(|(n, limits)| json!({ "name": format!("c{n}"), "resources": { "limits": limits } }))
            .collect();
        serde_json::from_value(json!({ "spec": { "containers": containers, "volumes": volumes } })).unwrap()
    }

    fn share(containers: &[(u64, u64)], volumes: &[(&str, u64)]) -> Share {
        let disk = |bytes| DiskUsage { bytes, inodes: 1 };
        let container = |(n, (layer, logs)): (usize, &(u64, u64))| {
            (format!("c{n}"), ContainerShare { memory: 0, layer: disk(*layer), logs: disk(*logs) })
        };
        Share {
            containers: containers.iter().enumerate().map(container).collect(),
            volumes: volumes.iter().map(|(name, bytes)| ((*name).to_owned(), disk(*bytes))).collect(),
            ..Share::default()
        }
    }

    #[test]
    fn each_limit_of_local_storage_has_its_message() {
        // A13.10
        let none = DiskUsage::default();
        let volume =
            |limit: &str, medium: &str| json!([{ "name": "v", "emptyDir": { "sizeLimit": limit, "medium": medium } }]);
        let told = |pod: &Pod, share: &Share, layout| exceeded(pod, share, none, layout).map(|(_, text)| text);

        let of_volume = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\". ";
        for (limit, medium, used, message) in [
            ("1Ki", "", 1024, None),
            ("1024", "", 1025, Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1024\". ")),
            ("1Ki", "", 1025, Some(of_volume)),
            ("1Ki", "Memory", 1025, Some(of_volume)),
            ("0", "", 1025, None),
        ] {
            let pod = pod(&[json!({})], volume(limit, medium));
            assert_eq!(is_limited(&pod), limit != "0");
            let found = told(&pod, &share(&[(0, 0)], &[("v", used)]), Layout::One);
            assert_eq!(found.as_deref(), message, "{limit} {medium} {used}");
        }

        let storage = |limit: &str| json!({ "ephemeral-storage": limit });
        let two = pod(&[storage("1Mi"), storage("1024Ki")], volume("0", ""));
        let of_pod = "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ";
        let of_container = "Container c1 exceeded its local ephemeral storage limit \"1Mi\". ";
        for (containers, volume, layout, message) in [
            ([(1 << 20, 0), (0, 1 << 20)], 0, Layout::One, None),
            ([(1 << 20, 0), (0, 1 << 20)], 1, Layout::One, Some(of_pod)),
            ([(0, 0), (1 << 20, 1)], 0, Layout::One, Some(of_container)),
            ([(0, 0), (1 << 20, 1)], 0, Layout::Split, Some(of_container)),
            ([(0, 0), (1 << 20, 1)], 0, Layout::ImagesApart, None),
        ] {
            let found = told(&two, &share(&containers, &[("v", volume)]), layout);
            assert_eq!(found.as_deref(), message, "{containers:?} {volume}");
        }
        let full = share(&[(1 << 20, 0), (1 << 20, 0)], &[]);
        let hosts = DiskUsage { bytes: 4096, inodes: 1 };
        let (limit, text) = exceeded(&two, &full, hosts, Layout::One).expect("what is beside counts");
        assert_eq!((limit, text.as_str()), ("ephemeralpodfs.limit", of_pod));
        let in_memory = pod(&[storage("1Mi")], json!([{ "name": "v", "emptyDir": { "medium": "Memory" } }]));
        assert_eq!(told(&in_memory, &share(&[(0, 0)], &[("v", 2 << 20)]), Layout::One), None);
        assert!(!is_limited(&pod(&[json!({})], json!([]))));
    }
}
