//! Well-known names of Kubernetes that several rooms write or read: labels, annotations, taints.

/// CRI label: the pod's name (A1.15).
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// CRI label: the pod's namespace (A1.15).
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// CRI label: the pod's UID (A1.15).
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// CRI label: the container's name within its pod (A1.15).
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// CRI annotation: hash of the container's spec; a changed hash makes a new container (A1.16).
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// CRI annotation: how often the container was started before (A1.15).
pub const CONTAINER_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// CRI annotation: where the container writes its last words (A1.15).
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// CRI annotation: `File` or `FallbackToLogsOnError` (A1.15).
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// CRI annotation: the container's ports as JSON (A1.15).
pub const CONTAINER_PORTS: &str = "io.kubernetes.container.ports";
/// CRI annotation: `terminationGracePeriodSeconds` of the pod's spec (A1.15).
pub const TERMINATION_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// CRI annotation: the grace period of the pod's deletion (A1.15).
pub const DELETION_GRACE_PERIOD: &str = "io.kubernetes.pod.deletionGracePeriod";

/// Pod annotation: where the pod came from: `api`, `file` or `http` (A1.1).
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Pod annotation: when the pod was first seen, RFC 3339 with nanoseconds (A1.1).
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
/// Pod annotation: hash of a static pod, equal to its UID (A7.2).
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Pod annotation of a mirror pod: the hash of the static pod that it mirrors (A7.3).
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// Label of an EndpointSlice: the Service it belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of a Service that another proxy serves: it is left alone.
pub const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label of headless Services and their slices.
pub const SERVICE_HEADLESS: &str = "service.kubernetes.io/headless";
/// Annotation of a slice: when what it was last changed for happened.
pub const LAST_CHANGE_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
