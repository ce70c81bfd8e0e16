//! `emptyDir`: a directory, memory, or huge pages (A9.4).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use stoker_model::handle::NodeSnapshot;
use stoker_model::quantity::Milli;
use stoker_model::resources::pod_limits;

use super::error::VolumeError;
use super::kernel;

const HUGE: &str = "HugePages";
const HUGE_RESOURCE: &str = "hugepages-";

/// Makes the volume with its mode, whatever the umask; again is harmless. Whether it was made just now.
pub(super) fn set_up(
    dir: &Path,
    source: &EmptyDirVolumeSource,
    pod: &Pod,
    node: &NodeSnapshot,
) -> Result<bool, VolumeError> {
    let medium = source.medium.as_deref().unwrap_or_default();
    let fresh = !dir.exists();
    if fresh {
        fs::create_dir_all(dir).map_err(VolumeError::file("make", dir))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).map_err(VolumeError::file("chmod", dir))?;
    }
    if medium.is_empty() {
        return Ok(fresh);
    }
    if kernel::is_mount_point(dir).map_err(VolumeError::file("look at", dir))? {
        return Ok(false);
    }
    if medium == "Memory" {
        let wish = source.size_limit.as_ref().map(|q| Milli::of(q).units());
        kernel::mount_tmpfs(dir, memory_size(wish, pod, node)).map_err(VolumeError::file("mount a tmpfs at", dir))?;
    } else if medium == HUGE || medium.starts_with("HugePages-") {
        let size = page_size(medium, pod)?;
        kernel::mount_hugepages(dir, size).map_err(VolumeError::file("mount a hugetlbfs at", dir))?;
    } else {
        return Err(VolumeError::Other(format!("unknown storage medium \"{medium}\"")));
    }
    Ok(true)
}

/// How large a volume in memory may grow: the least of what the node has for pods, the pod's limit and the volume's.
pub(super) fn memory_size(size_limit: Option<i64>, pod: &Pod, node: &NodeSnapshot) -> Option<i64> {
    let of_node = node.allocatable.get("memory").map(|q| Milli::of(q).units());
    let of_pod = pod.spec.as_ref().and_then(|spec| {
        // A container without a limit may take what the node has; so may the pod then.
        let has_limit = |c: &k8s_openapi::api::core::v1::Container| {
            c.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| l.contains_key("memory"))
        };
        let own = spec.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| l.contains_key("memory"));
        let limited = own || spec.containers.iter().chain(spec.init_containers.iter().flatten()).all(has_limit);
        pod_limits(spec).get("memory").map(|m| m.units()).filter(|_| limited)
    });
    [of_node, of_pod, size_limit].into_iter().flatten().filter(|size| *size > 0).min()
}

/// The size of the pages in bytes: what the medium says, and the pod's containers ask for.
fn page_size(medium: &str, pod: &Pod) -> Result<i64, VolumeError> {
    let bytes = |text: &str| {
        let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
        let size = Milli::of(&quantity).units();
        if size > 0 { Ok(size) } else { Err(VolumeError::Other(format!("invalid huge page size \"{text}\""))) }
    };
    let wanted = medium.strip_prefix("HugePages-").map(bytes).transpose()?;
    let spec = pod.spec.as_ref();
    let containers = spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let resources = containers.filter_map(|c| c.resources.as_ref()).chain(spec.and_then(|s| s.resources.as_ref()));
    let mut asked = BTreeSet::new();
    // What has only a limit asks for as much.
    for list in resources.flat_map(|r| [r.requests.as_ref(), r.limits.as_ref()]).flatten() {
        for size in list.keys().filter_map(|name| name.strip_prefix(HUGE_RESOURCE)) {
            asked.insert(bytes(size)?);
        }
    }
    let none =
        || format!("medium {medium}: hugePages storage requested, but there is no resource request for huge pages");
    match (wanted, asked.len()) {
        (Some(size), _) if asked.contains(&size) => Ok(size),
        (None, 1) => asked.first().copied().ok_or_else(|| VolumeError::Other(none())),
        (None, 2..) => {
            let text = format!("medium: {medium} can't be used if container requests multiple huge page sizes");
            Err(VolumeError::Other(text))
        }
        _ => Err(VolumeError::Other(none())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(containers: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn memory_is_bounded_by_node_pod_and_volume() {
        // A9.4
        let mut node = NodeSnapshot::default();
        node.allocatable.insert("memory".into(), serde_json::from_value(json!("1000")).unwrap());
        let limited = pod(json!([{"name": "a", "resources": {"limits": {"memory": "500"}}}]));
        let half = pod(json!([{"name": "a", "resources": {"limits": {"memory": "500"}}}, {"name": "b"}]));
        assert_eq!(memory_size(None, &pod(json!([])), &node), Some(1000));
        assert_eq!(memory_size(Some(0), &half, &node), Some(1000));
        assert_eq!(memory_size(None, &limited, &node), Some(500));
        assert_eq!(memory_size(Some(300), &limited, &node), Some(300));
        assert_eq!(memory_size(Some(2000), &limited, &node), Some(500));
    }

    #[test]
    fn huge_pages_are_those_that_the_containers_ask_for() {
        // A9.4
        let asks = |sizes: &[&str]| {
            let requests: serde_json::Map<String, Value> =
                sizes.iter().map(|s| (format!("hugepages-{s}"), json!("4Mi"))).collect();
            pod(json!([{"name": "a", "resources": {"requests": requests}}]))
        };
        let told = |medium: &str, sizes: &[&str]| page_size(medium, &asks(sizes)).map_err(|e| e.to_string());
        assert_eq!(told("HugePages", &["2Mi"]), Ok(2 << 20));
        assert_eq!(told("HugePages-1Gi", &["2Mi", "1Gi"]), Ok(1 << 30));
        let many = "medium: HugePages can't be used if container requests multiple huge page sizes";
        assert_eq!(told("HugePages", &["2Mi", "1Gi"]), Err(many.into()));
        let none = "medium HugePages-2Mi: hugePages storage requested, but there is no resource request for huge pages";
        assert_eq!(told("HugePages-2Mi", &[]), Err(none.into()));
    }
}
