//! How rooms name a pod.

use std::fmt;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};

use crate::names;

/// From this priority on the node keeps a pod whatever happens to others.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Whether the pod comes from a file or an address, and not from the API server.
pub fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(names::CONFIG_SOURCE)).is_some_and(|source| source != "api")
}

/// Whether a pod is critical for its node: static, the mirror of such a one, or of that priority (A6.5, A13.8).
pub fn is_critical(pod: &Pod) -> bool {
    let is_mirror = pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(names::CONFIG_MIRROR));
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority);
    is_static(pod) || is_mirror || priority.is_some_and(|priority| priority >= CRITICAL_PRIORITY)
}

/// A pod's spec. The API gives each pod one, and one without is like one with nothing in it.
pub fn spec_of(pod: &Pod) -> &PodSpec {
    static NONE: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&NONE)
}

/// A pod's UID. Two pods of the same name are told apart by it alone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// Wraps the text of a UID.
    pub fn new(uid: &str) -> Self {
        Self(uid.into())
    }

    /// The UID as the API writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one pod for good: namespace, name and UID.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PodRef {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: PodUid,
}

impl PodRef {
    /// The reference of an API object; fields that a stored object always has read as empty when absent.
    pub fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default()),
        }
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}({})", self.namespace, self.name, self.uid)
    }
}

/// A pod of this node as its worker showed it last. What its source gave is shared with the worker, since it takes many kilobytes, and so
/// is the status.
#[derive(Clone, Debug)]
pub struct LocalPod {
    pod: Arc<Pod>,
    /// `None`: nothing was computed yet.
    status: Option<Arc<PodStatus>>,
}

impl LocalPod {
    /// A pod, and the status that was computed for it.
    pub const fn new(pod: Arc<Pod>, status: Arc<PodStatus>) -> Self {
        Self { pod, status: Some(status) }
    }

    /// Metadata and spec, with the resources that the pod was given. The status in it is what the API server had at that time: see
    /// [`LocalPod::status`].
    pub const fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Another version of the pod, for which the status holds, too.
    pub fn renew(&mut self, pod: Arc<Pod>) {
        self.pod = pod;
    }

    /// The status last computed; before that, what the pod came with.
    pub fn status(&self) -> Option<&PodStatus> {
        self.status.as_deref().or(self.pod.status.as_ref())
    }

    /// Its phase; empty where it has none.
    pub fn phase(&self) -> &str {
        self.status().and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }

    /// Whether the phase is a terminal one.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    /// The API object.
    pub fn whole(&self) -> Pod {
        Pod { metadata: self.pod.metadata.clone(), spec: self.pod.spec.clone(), status: self.status().cloned() }
    }
}

/// A pod with the status that it came with.
impl From<Arc<Pod>> for LocalPod {
    fn from(pod: Arc<Pod>) -> Self {
        Self { pod, status: None }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;

    #[test]
    fn critical_pods_are_static_ones_their_mirrors_and_those_of_high_priority() {
        // A7.6, A13.8
        let pod = |annotation: Option<(&str, &str)>, priority| {
            let mut pod = Pod { spec: Some(PodSpec { priority, ..PodSpec::default() }), ..Pod::default() };
            pod.metadata.annotations = annotation.map(|(key, value)| [(key.to_owned(), value.to_owned())].into());
            pod
        };
        for (annotation, priority, critical) in [
            (None, None, false),
            (None, Some(1_999_999_999), false),
            (None, Some(2_000_000_000), true),
            (Some((names::CONFIG_SOURCE, "api")), None, false),
            (Some((names::CONFIG_SOURCE, "file")), None, true),
            (Some((names::CONFIG_SOURCE, "http")), None, true),
            (Some((names::CONFIG_MIRROR, "hash")), Some(0), true),
        ] {
            assert_eq!(is_critical(&pod(annotation, priority)), critical, "{annotation:?} {priority:?}");
        }
    }

    #[test]
    fn the_status_of_a_local_pod_is_the_one_last_computed() {
        let status = |phase: &str| PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() };
        let pod = Arc::new(Pod { status: Some(status("Running")), ..Pod::default() });
        let came = LocalPod::from(pod.clone());
        assert_eq!((came.phase(), came.has_ended(), came.whole()), ("Running", false, (*pod).clone()));
        let ended = LocalPod::new(pod, Arc::new(status("Failed")));
        assert_eq!((ended.phase(), ended.has_ended()), ("Failed", true));
        assert_eq!(ended.whole().status, Some(status("Failed")));
        let mut renewed = ended;
        let mut newer = Pod { status: Some(status("Pending")), ..Pod::default() };
        newer.metadata.resource_version = Some("2".to_owned());
        renewed.renew(Arc::new(newer));
        let whole = renewed.whole();
        assert_eq!((whole.metadata.resource_version.as_deref(), whole.status), (Some("2"), Some(status("Failed"))));
    }
}
