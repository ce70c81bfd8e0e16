//! What the downward API offers of a pod: for volumes and for environments (A8.3, A8.4, A9.9).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stoker_model::quantity::Milli;
use stoker_model::resources::amounts;

use super::error::VolumeError;

/// The value of a `fieldRef` that the pod object itself answers; `status.*` is for the caller.
pub fn field(pod: &Pod, path: &str) -> Result<String, VolumeError> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref());
    let text = |value: Option<&String>| Ok(value.cloned().unwrap_or_default());
    match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => Ok(lines(meta.labels.as_ref())),
        "metadata.annotations" => Ok(lines(meta.annotations.as_ref())),
        "spec.nodeName" => text(spec.and_then(|s| s.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|s| s.service_account_name.as_ref())),
        _ => {
            let one = |prefix: &str| path.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("']"));
            let of = |map: Option<&BTreeMap<String, String>>, key: &str| {
                map.and_then(|map| map.get(key)).cloned().unwrap_or_default()
            };
            if let Some(key) = one("metadata.labels['") {
                Ok(of(meta.labels.as_ref(), key))
            } else if let Some(key) = one("metadata.annotations['") {
                Ok(of(meta.annotations.as_ref(), key))
            } else {
                Err(VolumeError::Field(format!("unsupported fieldPath: {path}")))
            }
        }
    }
}

/// `key="value"` lines, sorted, with no newline after the last (A9.9).
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let line = |(key, value): (&String, &String)| format!("{key}={}", quoted(value));
    map.into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

/// A string as Go's `%q` prints it.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a `resourceFieldRef`: of `container`, unless the reference names another (A8.4).
pub fn resource(
    pod: &Pod,
    container: Option<&Container>,
    reference: &ResourceFieldSelector,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, VolumeError> {
    let spec = pod.spec.as_ref();
    let named = reference.container_name.as_deref().filter(|n| !n.is_empty());
    let container = match named {
        None => container,
        Some(name) => {
            let mut all = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
            all.find(|c| c.name == name)
        }
    };
    let container =
        container.ok_or_else(|| VolumeError::Field(format!("container {} not found", named.unwrap_or_default())))?;
    let (side, name) = reference
        .resource
        .split_once('.')
        .filter(|(side, name)| matches!(*side, "limits" | "requests") && (overcommits(name) || is_huge_pages(name)))
        .ok_or_else(|| VolumeError::Field(format!("unsupported container resource : {}", reference.resource)))?;
    let list = |resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>, side: &str| {
        let list = resources.and_then(|r| if side == "limits" { r.limits.as_ref() } else { r.requests.as_ref() });
        amounts(list).get(name).copied().filter(|amount| !amount.is_zero())
    };
    let own = container.resources.as_ref();
    let of_pod = spec.and_then(|s| s.resources.as_ref());
    let amount = if side == "limits" && overcommits(name) {
        list(own, "limits").or_else(|| list(of_pod, "limits")).or_else(|| allocatable.get(name).map(Milli::of))
    } else if side == "limits" {
        list(own, "limits")
    } else {
        list(own, "requests").or_else(|| list(own, "limits"))
    };
    let amount = amount.unwrap_or_default().milli();
    let divisor = reference.divisor.as_ref().map_or(0, |d| Milli::of(d).milli());
    let divisor = if divisor <= 0 { 1000 } else { divisor };
    Ok((amount / divisor + i128::from(amount % divisor > 0)).to_string())
}

/// Whether more of it may be promised than there is: then who has no limit may take all that the node has.
fn overcommits(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory" | "ephemeral-storage")
}

fn is_huge_pages(resource: &str) -> bool {
    resource.starts_with("hugepages-")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn metadata_is_read() {
        // A9.9
        let mut pod = Pod::default();
        pod.metadata.labels = Some(map(&[("b", "2"), ("a", "say \"hi\"\n")]));
        assert_eq!(field(&pod, "metadata.labels").unwrap(), "a=\"say \\\"hi\\\"\\n\"\nb=\"2\"");
        assert_eq!(field(&pod, "metadata.labels['b']").unwrap(), "2");
        assert!(field(&pod, "spec.hostname").is_err());
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        // A8.4
        let list = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect::<BTreeMap<_, _>>())
        };
        let resources = ResourceRequirements {
            limits: list(&[("cpu", "1250m"), ("ephemeral-storage", "1500M"), ("hugepages-2Mi", "4Mi")]),
            requests: list(&[("memory", "32Mi"), ("ephemeral-storage", "1Gi"), ("hugepages-2Mi", "4Mi")]),
            ..ResourceRequirements::default()
        };
        let container = Container { name: "c".into(), resources: Some(resources), ..Container::default() };
        let bare = Container { name: "bare".into(), ..Container::default() };
        let mut pod = Pod::default();
        let spec = PodSpec { containers: vec![container, bare], ..PodSpec::default() };
        let allocatable =
            list(&[("cpu", "3800m"), ("memory", "1Gi"), ("ephemeral-storage", "9G"), ("hugepages-1Gi", "2Gi")])
                .unwrap();
        let read = |pod: &Pod, container: &str, resource: &str, divisor: Option<&str>| {
            let reference = ResourceFieldSelector {
                resource: resource.into(),
                divisor: divisor.map(|d| Quantity(d.into())),
                container_name: None,
            };
            let found = pod.spec.as_ref().unwrap().containers.iter().find(|c| c.name == container);
            let direct = super::resource(pod, found, &reference, &allocatable).map_err(|error| error.to_string());
            // By its name from elsewhere, as volumes do.
            let named = ResourceFieldSelector { container_name: Some(container.into()), ..reference };
            let named = super::resource(pod, None, &named, &allocatable).map_err(|error| error.to_string());
            assert_eq!(direct, named);
            direct
        };
        pod.spec = Some(spec.clone());
        for (container, name, divisor, expected) in [
            ("c", "limits.cpu", None, "2"),
            ("c", "limits.cpu", Some("0"), "2"),
            ("c", "limits.cpu", Some("1"), "2"),
            ("c", "limits.cpu", Some("1m"), "1250"),
            ("c", "requests.cpu", None, "2"),
            ("c", "requests.memory", None, "33554432"),
            ("c", "requests.memory", Some("1Mi"), "32"),
            ("c", "requests.memory", Some("1Gi"), "1"),
            ("c", "limits.ephemeral-storage", None, "1500000000"),
            ("c", "limits.ephemeral-storage", Some("1Gi"), "2"),
            ("c", "requests.ephemeral-storage", Some("1Mi"), "1024"),
            ("c", "limits.hugepages-2Mi", None, "4194304"),
            ("c", "requests.hugepages-2Mi", Some("2Mi"), "2"),
            // What has no limit may have all that the node has to give; huge pages are nobody's who did not ask.
            ("c", "limits.memory", None, "1073741824"),
            ("bare", "limits.cpu", None, "4"),
            ("bare", "limits.cpu", Some("1m"), "3800"),
            ("bare", "limits.ephemeral-storage", Some("1G"), "9"),
            ("bare", "limits.hugepages-1Gi", None, "0"),
            ("bare", "requests.cpu", None, "0"),
            ("bare", "requests.memory", None, "0"),
        ] {
            assert_eq!(read(&pod, container, name, divisor).as_deref(), Ok(expected), "{container} {name} {divisor:?}");
        }

        // The pod as a whole has a limit: that goes before the node's, and after the container's own.
        let of_pod = ResourceRequirements { limits: list(&[("cpu", "2"), ("memory", "64Mi")]), ..Default::default() };
        pod.spec = Some(PodSpec { resources: Some(of_pod), ..spec });
        for (container, name, divisor, expected) in [
            ("c", "limits.cpu", Some("1m"), "1250"),
            ("c", "limits.memory", Some("1Mi"), "64"),
            ("bare", "limits.cpu", None, "2"),
            ("bare", "limits.ephemeral-storage", Some("1G"), "9"),
        ] {
            assert_eq!(read(&pod, container, name, divisor).as_deref(), Ok(expected), "{container} {name} {divisor:?}");
        }
        for unknown in ["cpu", "usage.cpu", "limits.pods", "requests.example.com/gpu"] {
            let error = read(&pod, "c", unknown, None).unwrap_err();
            assert!(error.ends_with(&format!("unsupported container resource : {unknown}")), "{error}");
        }
    }
}
