//! How lists, maps and objects of the API merge: the facts that the API documentation states as `patchStrategy`,
//! `patchMergeKey`, `listType`, `listMapKey`, `mapType` and `structType`.
//!
//! One table serves three readers: strategic merge patch (C3.11), server-side apply (C3.12), and the
//! `x-kubernetes-…` extensions of the OpenAPI documents (C2.3). Lists that stand in no row are atomic.

/// How the items of a list belong together (`x-kubernetes-list-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    /// Owned and replaced as a whole.
    Atomic,
    /// Scalars without duplicates.
    Set,
    /// Objects told apart by these fields.
    Map(&'static [&'static str]),
}

/// What a strategic merge patch does to the field (`x-kubernetes-patch-strategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchStrategy {
    /// Objects merge, lists are replaced.
    Default,
    /// Replaced, even if it is an object.
    Replace,
    /// Lists merge.
    Merge,
    /// Merges, and the patch may say with `$retainKeys` what stays.
    RetainKeys,
    /// A list that merges, of objects with `$retainKeys`.
    MergeRetainKeys,
}

impl PatchStrategy {
    /// The text of the OpenAPI extension, if there is one.
    pub const fn text(self) -> Option<&'static str> {
        match self {
            Self::Default => None,
            Self::Replace => Some("replace"),
            Self::Merge => Some("merge"),
            Self::RetainKeys => Some("retainKeys"),
            Self::MergeRetainKeys => Some("merge,retainKeys"),
        }
    }

    /// Whether lists merge.
    pub const fn merges_lists(self) -> bool {
        matches!(self, Self::Merge | Self::MergeRetainKeys)
    }
}

/// How one field of one type merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The type without its well-known prefix, such as `core.v1.PodSpec`.
    pub on: &'static str,
    /// The JSON name of the field.
    pub field: &'static str,
    /// Ownership of items.
    pub list: ListType,
    /// Strategic merge.
    pub patch: PatchStrategy,
    /// The one field that strategic merge tells items by; empty for lists of scalars.
    pub merge_key: &'static str,
}

use ListType::{Atomic, Map, Set};
use PatchStrategy::{Default, Merge, MergeRetainKeys, Replace, RetainKeys};

const fn rule(
    on: &'static str,
    field: &'static str,
    list: ListType,
    patch: PatchStrategy,
    merge_key: &'static str,
) -> Rule {
    Rule { on, field, list, patch, merge_key }
}

/// Sorted by type and field.
#[rustfmt::skip]
static RULES: &[Rule] = &[
    rule("admissionregistration.v1.MutatingAdmissionPolicySpec", "matchConditions", Map(&["name"]), Merge, "name"),
    rule("admissionregistration.v1.MutatingWebhook", "matchConditions", Map(&["name"]), Merge, "name"),
    rule("admissionregistration.v1.MutatingWebhookConfiguration", "webhooks", Map(&["name"]), Merge, "name"),
    rule("admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec", "validationActions", Set, Default, ""),
    rule("admissionregistration.v1.ValidatingAdmissionPolicySpec", "matchConditions", Map(&["name"]), Merge, "name"),
    rule("admissionregistration.v1.ValidatingAdmissionPolicySpec", "variables", Map(&["name"]), Merge, "name"),
    rule("admissionregistration.v1.ValidatingAdmissionPolicyStatus", "conditions", Map(&["type"]), Default, ""),
    rule("admissionregistration.v1.ValidatingWebhook", "matchConditions", Map(&["name"]), Merge, "name"),
    rule("admissionregistration.v1.ValidatingWebhookConfiguration", "webhooks", Map(&["name"]), Merge, "name"),
    rule("apiextensions.v1.CustomResourceDefinitionStatus", "conditions", Map(&["type"]), Default, ""),
    rule("apiextensions.v1.JSONSchemaProps", "x-kubernetes-validations", Map(&["rule"]), Merge, "rule"),
    rule("apiregistration.v1.APIServiceStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("apps.v1.DaemonSetStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("apps.v1.DeploymentSpec", "strategy", Atomic, RetainKeys, ""),
    rule("apps.v1.DeploymentStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("apps.v1.ReplicaSetStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("apps.v1.StatefulSetStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("autoscaling.v2.HorizontalPodAutoscalerStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("batch.v1.JobStatus", "conditions", Atomic, Merge, "type"),
    rule("batch.v1.PodFailurePolicyOnExitCodesRequirement", "values", Set, Default, ""),
    rule("batch.v1.UncountedTerminatedPods", "failed", Set, Default, ""),
    rule("batch.v1.UncountedTerminatedPods", "succeeded", Set, Default, ""),
    rule("certificates.v1.CertificateSigningRequestStatus", "conditions", Map(&["type"]), Default, ""),
    rule("core.v1.ComponentStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("core.v1.Container", "env", Map(&["name"]), Merge, "name"),
    rule("core.v1.Container", "ports", Map(&["containerPort", "protocol"]), Merge, "containerPort"),
    rule("core.v1.Container", "volumeDevices", Map(&["devicePath"]), Merge, "devicePath"),
    rule("core.v1.Container", "volumeMounts", Map(&["mountPath"]), Merge, "mountPath"),
    rule("core.v1.ContainerRestartRuleOnExitCodes", "values", Set, Default, ""),
    rule("core.v1.ContainerStatus", "allocatedResourcesStatus", Map(&["name"]), Merge, "name"),
    rule("core.v1.ContainerStatus", "volumeMounts", Map(&["mountPath"]), Merge, "mountPath"),
    rule("core.v1.EphemeralContainer", "env", Map(&["name"]), Merge, "name"),
    rule("core.v1.EphemeralContainer", "ports", Map(&["containerPort", "protocol"]), Merge, "containerPort"),
    rule("core.v1.EphemeralContainer", "volumeDevices", Map(&["devicePath"]), Merge, "devicePath"),
    rule("core.v1.EphemeralContainer", "volumeMounts", Map(&["mountPath"]), Merge, "mountPath"),
    rule("core.v1.NamespaceStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("core.v1.NodeAllocatableResourceClaimStatus", "containers", Set, Default, ""),
    rule("core.v1.NodeSpec", "podCIDRs", Set, Merge, ""),
    rule("core.v1.NodeStatus", "addresses", Map(&["type"]), Merge, "type"),
    rule("core.v1.NodeStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("core.v1.PersistentVolumeClaimStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("core.v1.PodSpec", "containers", Map(&["name"]), Merge, "name"),
    rule("core.v1.PodSpec", "ephemeralContainers", Map(&["name"]), Merge, "name"),
    rule("core.v1.PodSpec", "hostAliases", Map(&["ip"]), Merge, "ip"),
    rule("core.v1.PodSpec", "imagePullSecrets", Map(&["name"]), Merge, "name"),
    rule("core.v1.PodSpec", "initContainers", Map(&["name"]), Merge, "name"),
    rule("core.v1.PodSpec", "resourceClaims", Map(&["name"]), MergeRetainKeys, "name"),
    rule("core.v1.PodSpec", "schedulingGates", Map(&["name"]), Merge, "name"),
    rule("core.v1.PodSpec", "topologySpreadConstraints", Map(&["topologyKey", "whenUnsatisfiable"]), Merge, "topologyKey"),
    rule("core.v1.PodSpec", "volumes", Map(&["name"]), MergeRetainKeys, "name"),
    rule("core.v1.PodStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("core.v1.PodStatus", "hostIPs", Atomic, Merge, "ip"),
    rule("core.v1.PodStatus", "nodeAllocatableResourceClaimStatuses", Map(&["resourceClaimName"]), Merge, "resourceClaimName"),
    rule("core.v1.PodStatus", "podIPs", Map(&["ip"]), Merge, "ip"),
    rule("core.v1.PodStatus", "resourceClaimStatuses", Map(&["name"]), MergeRetainKeys, "name"),
    rule("core.v1.ReplicationControllerStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("core.v1.ResourceRequirements", "claims", Map(&["name"]), Default, ""),
    rule("core.v1.ResourceStatus", "resources", Map(&["resourceID"]), Default, ""),
    rule("core.v1.ServiceAccount", "secrets", Map(&["name"]), Merge, "name"),
    rule("core.v1.ServiceSpec", "ports", Map(&["port", "protocol"]), Merge, "port"),
    rule("core.v1.ServiceStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("discovery.v1.Endpoint", "addresses", Set, Default, ""),
    rule("flowcontrol.v1.FlowSchemaStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("flowcontrol.v1.NonResourcePolicyRule", "nonResourceURLs", Set, Default, ""),
    rule("flowcontrol.v1.NonResourcePolicyRule", "verbs", Set, Default, ""),
    rule("flowcontrol.v1.PriorityLevelConfigurationStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("flowcontrol.v1.ResourcePolicyRule", "apiGroups", Set, Default, ""),
    rule("flowcontrol.v1.ResourcePolicyRule", "namespaces", Set, Default, ""),
    rule("flowcontrol.v1.ResourcePolicyRule", "resources", Set, Default, ""),
    rule("flowcontrol.v1.ResourcePolicyRule", "verbs", Set, Default, ""),
    rule("meta.v1.ObjectMeta", "finalizers", Set, Merge, ""),
    rule("meta.v1.ObjectMeta", "ownerReferences", Map(&["uid"]), Merge, "uid"),
    rule("networking.v1.ServiceCIDRStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("policy.v1.PodDisruptionBudgetSpec", "selector", Atomic, Replace, ""),
    rule("policy.v1.PodDisruptionBudgetStatus", "conditions", Map(&["type"]), Merge, "type"),
    rule("resource.v1.AllocatedDeviceStatus", "conditions", Map(&["type"]), Default, ""),
    rule("resource.v1.ResourceClaimStatus", "devices", Map(&["driver", "device", "pool", "shareID"]), Default, ""),
    rule("resource.v1.ResourceClaimStatus", "reservedFor", Map(&["uid"]), Merge, "uid"),
    rule("storage.v1.CSIDriverSpec", "volumeLifecycleModes", Set, Default, ""),
    rule("storage.v1.CSINodeSpec", "drivers", Map(&["name"]), Merge, "name"),
];

/// Maps that have one owner as a whole (`mapType=atomic`).
static ATOMIC_MAPS: &[(&str, &str)] = &[
    ("core.v1.PodSpec", "nodeSelector"),
    ("core.v1.ReplicationControllerSpec", "selector"),
    ("core.v1.ServiceSpec", "selector"),
    ("node.v1.Scheduling", "nodeSelector"),
];

/// Objects that have one owner as a whole (`structType=atomic`). Sorted.
static ATOMIC_TYPES: &[&str] = &[
    "admissionregistration.v1.MatchResources",
    "admissionregistration.v1.NamedRuleWithOperations",
    "admissionregistration.v1.ParamKind",
    "admissionregistration.v1.ParamRef",
    "admissionregistration.v1.Variable",
    "autoscaling.v1.CrossVersionObjectReference",
    "core.v1.ConfigMapKeySelector",
    "core.v1.EndpointAddress",
    "core.v1.EndpointPort",
    "core.v1.FileKeySelector",
    "core.v1.LocalObjectReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.ObjectFieldSelector",
    "core.v1.ObjectReference",
    "core.v1.ResourceFieldSelector",
    "core.v1.ScopeSelector",
    "core.v1.SecretKeySelector",
    "core.v1.SecretReference",
    "core.v1.TopologySelectorTerm",
    "core.v1.TypedLocalObjectReference",
    "discovery.v1.EndpointPort",
    "meta.v1.LabelSelector",
    "meta.v1.OwnerReference",
    "networking.v1.ServiceBackendPort",
    "rbac.v1.RoleRef",
    "rbac.v1.Subject",
];

const PREFIXES: [&str; 4] = [
    "io.k8s.api.",
    "io.k8s.apimachinery.pkg.apis.",
    "io.k8s.apiextensions-apiserver.pkg.apis.",
    "io.k8s.kube-aggregator.pkg.apis.",
];

fn short(type_name: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| type_name.strip_prefix(prefix)).unwrap_or(type_name)
}

/// The rule of a field; `type_name` is the full name, such as `io.k8s.api.core.v1.PodSpec`.
pub fn rule_of(type_name: &str, field: &str) -> Option<&'static Rule> {
    let on = short(type_name);
    RULES.binary_search_by(|rule| (rule.on, rule.field).cmp(&(on, field))).ok().map(|at| &RULES[at])
}

/// All rules.
#[cfg(test)]
pub(super) fn rules() -> &'static [Rule] {
    RULES
}

/// Whether the map in this field has one owner as a whole.
pub fn is_atomic_map(type_name: &str, field: &str) -> bool {
    ATOMIC_MAPS.contains(&(short(type_name), field))
}

/// Whether objects of this type have one owner as a whole.
pub fn is_atomic_type(type_name: &str) -> bool {
    ATOMIC_TYPES.binary_search(&short(type_name)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_for_the_binary_search() {
        assert!(RULES.is_sorted_by_key(|rule| (rule.on, rule.field)));
        assert!(ATOMIC_TYPES.is_sorted());
    }

    #[test]
    fn containers_merge_by_name_and_selectors_are_atomic() {
        let containers = rule_of("io.k8s.api.core.v1.PodSpec", "containers").unwrap();
        assert_eq!((containers.list, containers.merge_key), (Map(&["name"]), "name"));
        assert!(is_atomic_type("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"));
        assert!(is_atomic_map("io.k8s.api.core.v1.ServiceSpec", "selector"));
    }
}
