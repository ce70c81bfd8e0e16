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
        .filter(|(side, _)| matches!(*side, "limits" | "requests"))
        .ok_or_else(|| VolumeError::Field(format!("unsupported container resource : {}", reference.resource)))?;
    let list = |resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>, side: &str| {
        let list = resources.and_then(|r| if side == "limits" { r.limits.as_ref() } else { r.requests.as_ref() });
        amounts(list).get(name).copied().filter(|amount| !amount.is_zero())
    };
    let own = container.resources.as_ref();
    let of_pod = spec.and_then(|s| s.resources.as_ref());
    let amount = if side == "limits" {
        list(own, "limits").or_else(|| list(of_pod, "limits")).or_else(|| allocatable.get(name).map(Milli::of))
    } else {
        list(own, "requests").or_else(|| list(own, "limits"))
    };
    let amount = amount.unwrap_or_default().milli();
    let divisor = reference.divisor.as_ref().map_or(0, |d| Milli::of(d).milli());
    let divisor = if divisor <= 0 { 1000 } else { divisor };
    Ok((amount / divisor + i128::from(amount % divisor > 0)).to_string())
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
            limits: list(&[("cpu", "1250m")]),
            requests: list(&[("memory", "32Mi")]),
            ..ResourceRequirements::default()
        };
        let container = Container { resources: Some(resources), ..Container::default() };
        let pod = Pod { spec: Some(PodSpec::default()), ..Pod::default() };
        let allocatable = list(&[("memory", "1Gi")]).unwrap();
        for (name, divisor, expected) in [
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("1m"), "1250"),
            ("requests.cpu", None, "2"),
            ("requests.memory", Some("1Mi"), "32"),
            ("limits.memory", None, "1073741824"),
        ] {
            let reference = ResourceFieldSelector {
                resource: name.into(),
                divisor: divisor.map(|d| Quantity(d.into())),
                container_name: None,
            };
            assert_eq!(resource(&pod, Some(&container), &reference, &allocatable).unwrap(), expected, "{name}");
        }
    }
}
