//! The schemas of the built-in kinds, generated from the generated API types.
//!
//! A full set is several megabytes as JSON, so nothing here is kept: callers make what they need, reduce it (to a
//! compressed document, to the compact [`super::types::Types`]) and drop it.

use std::borrow::Cow;

use k8s_openapi::Resource;
use k8s_openapi::api;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

/// A kind with a schema.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version in the group.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    type_name: fn() -> Cow<'static, str>,
    generate: fn(&mut SchemaGenerator),
}

impl Kind {
    const fn of<T: Resource + JsonSchema>() -> Self {
        Self {
            group: T::GROUP,
            version: T::VERSION,
            kind: T::KIND,
            type_name: T::schema_name,
            generate: |generator| {
                generator.subschema_for::<T>();
            },
        }
    }

    /// The full name of the type, such as `io.k8s.api.core.v1.Pod`.
    pub fn type_name(&self) -> Cow<'static, str> {
        (self.type_name)()
    }
}

macro_rules! kinds {
    ($($path:path),* $(,)?) => { &[$(Kind::of::<$path>()),*] };
}

use api::{
    admissionregistration::v1 as admission, apps::v1 as apps, authentication::v1 as authentication,
    authorization::v1 as authorization, autoscaling, batch::v1 as batch, certificates::v1 as certificates,
    coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
    flowcontrol::v1 as flowcontrol, networking::v1 as networking, node::v1 as node, policy::v1 as policy,
    rbac::v1 as rbac, resource::v1 as resource, scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;

/// All kinds that have schemas (C1).
pub static KINDS: &[Kind] = kinds![
    core::Binding,
    core::ComponentStatus,
    core::ConfigMap,
    core::Endpoints,
    core::Event,
    core::LimitRange,
    core::Namespace,
    core::Node,
    core::PersistentVolume,
    core::PersistentVolumeClaim,
    core::Pod,
    core::PodTemplate,
    core::ReplicationController,
    core::ResourceQuota,
    core::Secret,
    core::Service,
    core::ServiceAccount,
    apps::ControllerRevision,
    apps::DaemonSet,
    apps::Deployment,
    apps::ReplicaSet,
    apps::StatefulSet,
    batch::CronJob,
    batch::Job,
    autoscaling::v1::HorizontalPodAutoscaler,
    autoscaling::v1::Scale,
    autoscaling::v2::HorizontalPodAutoscaler,
    policy::Eviction,
    policy::PodDisruptionBudget,
    networking::Ingress,
    networking::IngressClass,
    networking::IPAddress,
    networking::NetworkPolicy,
    networking::ServiceCIDR,
    discovery::EndpointSlice,
    coordination::Lease,
    events::Event,
    rbac::ClusterRole,
    rbac::ClusterRoleBinding,
    rbac::Role,
    rbac::RoleBinding,
    authentication::SelfSubjectReview,
    authentication::TokenRequest,
    authentication::TokenReview,
    authorization::LocalSubjectAccessReview,
    authorization::SelfSubjectAccessReview,
    authorization::SelfSubjectRulesReview,
    authorization::SubjectAccessReview,
    certificates::CertificateSigningRequest,
    storage::CSIDriver,
    storage::CSINode,
    storage::CSIStorageCapacity,
    storage::StorageClass,
    storage::VolumeAttachment,
    storage::VolumeAttributesClass,
    scheduling::PriorityClass,
    node::RuntimeClass,
    apiextensions::CustomResourceDefinition,
    apiregistration::APIService,
    admission::MutatingAdmissionPolicy,
    admission::MutatingAdmissionPolicyBinding,
    admission::MutatingWebhookConfiguration,
    admission::ValidatingAdmissionPolicy,
    admission::ValidatingAdmissionPolicyBinding,
    admission::ValidatingWebhookConfiguration,
    flowcontrol::FlowSchema,
    flowcontrol::PriorityLevelConfiguration,
    resource::DeviceClass,
    resource::ResourceClaim,
    resource::ResourceClaimTemplate,
    resource::ResourceSlice,
];

/// The kind, if it has a schema.
pub fn kind_of(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|entry| entry.kind == kind && entry.group == group && entry.version == version)
}

/// Generates the definitions that the given kinds reach, by type name, with references below `path`
/// (such as `/components/schemas`). They are as the generated types state them: without extensions.
pub fn generate<'a>(kinds: impl IntoIterator<Item = &'a Kind>, path: &'static str) -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = path.into());
    let mut generator = SchemaGenerator::new(settings);
    for kind in kinds {
        (kind.generate)(&mut generator);
    }
    // What every writing operation may carry or answer, whichever kinds a document is about.
    generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Status>();
    generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions>();
    generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta>();
    generator.take_definitions(false)
}

/// The type that a `$ref` names.
pub fn referred(reference: &str) -> &str {
    reference.rsplit('/').next().unwrap_or(reference)
}
