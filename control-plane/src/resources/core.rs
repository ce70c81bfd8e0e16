//! v1 (C1.1).

use k8s_openapi::api::core::v1 as api;
use serde_json::Value;

use super::tree::fill;
use super::{
    CRUD, NameRule, ResourceInfo, SCALE, STATUS, SelectableField, Subresource, limits, object, pod, pod_defaults,
    pod_rules, service, volume_rules, workload, workload_rules,
};

const fn field(name: &'static str) -> SelectableField {
    SelectableField { name, path: name, absent: "" }
}

const fn at(name: &'static str, path: &'static str) -> SelectableField {
    SelectableField { name, path, absent: "" }
}

const fn flag(name: &'static str) -> SelectableField {
    SelectableField { name, path: name, absent: "false" }
}

const fn sub(
    name: &'static str,
    kind: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, kind: Some(kind), verbs }
}

/// Selectable fields of events, shared with events.k8s.io.
pub(super) mod event_fields {
    use super::{SelectableField, at, field};

    pub(in crate::resources) const INVOLVED: &[SelectableField] = &[
        field("involvedObject.kind"),
        field("involvedObject.namespace"),
        field("involvedObject.name"),
        field("involvedObject.uid"),
        field("involvedObject.apiVersion"),
        field("involvedObject.resourceVersion"),
        field("involvedObject.fieldPath"),
        field("reason"),
        at("reportingComponent", "reportingComponent"),
        at("source", "source.component"),
        field("type"),
    ];
    pub(in crate::resources) const REGARDING: &[SelectableField] = &[
        at("regarding.kind", "involvedObject.kind"),
        at("regarding.namespace", "involvedObject.namespace"),
        at("regarding.name", "involvedObject.name"),
        at("regarding.uid", "involvedObject.uid"),
        at("regarding.apiVersion", "involvedObject.apiVersion"),
        at("regarding.resourceVersion", "involvedObject.resourceVersion"),
        at("regarding.fieldPath", "involvedObject.fieldPath"),
        field("reason"),
        at("reportingController", "reportingComponent"),
        field("type"),
    ];
}

const CREATE: &[&str] = &["create"];
const CONNECT: &[&str] = &["create", "get"];
const CHANGE: &[&str] = &["get", "patch", "update"];

pub(super) const TABLE: &[ResourceInfo] = &[
    ResourceInfo::of::<api::Binding>("", "v1", "Binding", "bindings", "binding").namespaced().verbs(CREATE),
    ResourceInfo::of::<api::ConfigMap>("", "v1", "ConfigMap", "configmaps", "configmap")
        .namespaced()
        .short(&["cm"])
        .validated(object::validate_config_map)
        .validated_update(object::validate_immutable_data),
    ResourceInfo::of::<api::Endpoints>("", "v1", "Endpoints", "endpoints", "endpoints")
        .namespaced()
        .short(&["ep"])
        .defaults(service::default_endpoints),
    ResourceInfo::of::<api::Event>("", "v1", "Event", "events", "event")
        .namespaced()
        .short(&["ev"])
        .fields(event_fields::INVOLVED)
        .validated(object::validate_event),
    ResourceInfo::of::<api::LimitRange>("", "v1", "LimitRange", "limitranges", "limitrange")
        .namespaced()
        .short(&["limits"])
        .defaults(limits::default_range)
        .validated(limits::validate_range),
    ResourceInfo::of::<api::Namespace>("", "v1", "Namespace", "namespaces", "namespace")
        .short(&["ns"])
        .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
        .with_status_only()
        .subresources(&[Subresource { name: "finalize", kind: None, verbs: &["update"] }, STATUS])
        .fields(&[field("status.phase")])
        .named(NameRule::Label)
        .delete_returns_object()
        .defaults(object::default_namespace)
        .prepared(object::prepare_namespace, object::keep_namespace_finalizers),
    ResourceInfo::of::<api::Node>("", "v1", "Node", "nodes", "node")
        .short(&["no"])
        .with_status_only()
        .subresources(&[sub("proxy", ("", "v1", "NodeProxyOptions"), CONNECT), STATUS])
        .fields(&[flag("spec.unschedulable")])
        .defaults(object::default_node)
        .validated(object::validate_node)
        .validated_update(object::validate_node_update),
    ResourceInfo::of::<api::PersistentVolumeClaim>(
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        "persistentvolumeclaim",
    )
    .namespaced()
    .short(&["pvc"])
    .with_status_only()
    .subresources(&[STATUS])
    .delete_returns_object()
    .defaults(volume_rules::default_claim)
    .prepared(object::prepare_claim, |_, _| {})
    .validated(volume_rules::validate_claim)
    .validated_update(volume_rules::validate_claim_update),
    ResourceInfo::of::<api::PersistentVolume>("", "v1", "PersistentVolume", "persistentvolumes", "persistentvolume")
        .short(&["pv"])
        .with_status_only()
        .subresources(&[STATUS])
        .delete_returns_object()
        .defaults(volume_rules::default_volume)
        .prepared(object::prepare_volume, |_, _| {})
        .validated(volume_rules::validate_volume)
        .validated_update(volume_rules::validate_volume_update),
    ResourceInfo::of::<api::Pod>("", "v1", "Pod", "pods", "pod")
        .namespaced()
        .short(&["po"])
        .in_all()
        .with_status()
        .subresources(&[
            sub("attach", ("", "v1", "PodAttachOptions"), CONNECT),
            sub("binding", ("", "v1", "Binding"), CREATE),
            Subresource { name: "ephemeralcontainers", kind: None, verbs: CHANGE },
            sub("eviction", ("policy", "v1", "Eviction"), CREATE),
            sub("exec", ("", "v1", "PodExecOptions"), CONNECT),
            Subresource { name: "log", kind: None, verbs: &["get"] },
            sub("portforward", ("", "v1", "PodPortForwardOptions"), CONNECT),
            sub("proxy", ("", "v1", "PodProxyOptions"), CONNECT),
            Subresource { name: "resize", kind: None, verbs: CHANGE },
            STATUS,
        ])
        .fields(&[
            field("spec.nodeName"),
            at("spec.host", "spec.nodeName"),
            field("spec.restartPolicy"),
            field("spec.schedulerName"),
            field("spec.serviceAccountName"),
            flag("spec.hostNetwork"),
            field("status.phase"),
            field("status.podIP"),
            at("status.podIPs", "status.podIPs"),
            field("status.nominatedNodeName"),
        ])
        .delete_returns_object()
        .defaults(pod_defaults::default_pod)
        .prepared(pod::prepare_create, pod::prepare_update)
        .status_rules(pod::prepare_status, pod_rules::validate_status)
        .validated(pod_rules::validate)
        .validated_update(pod_rules::validate_update),
    ResourceInfo::of::<api::PodTemplate>("", "v1", "PodTemplate", "podtemplates", "podtemplate")
        .namespaced()
        .with_generation()
        .delete_returns_object()
        .defaults(workload::default_pod_template)
        .validated(workload_rules::validate_pod_template),
    ResourceInfo::of::<api::ReplicationController>(
        "",
        "v1",
        "ReplicationController",
        "replicationcontrollers",
        "replicationcontroller",
    )
    .namespaced()
    .short(&["rc"])
    .in_all()
    .with_status()
    .subresources(&[SCALE, STATUS])
    .fields(&[SelectableField { name: "status.replicas", path: "status.replicas", absent: "0" }])
    .defaults(workload::default_replication_controller)
    .validated(workload_rules::validate_controller),
    ResourceInfo::of::<api::ResourceQuota>("", "v1", "ResourceQuota", "resourcequotas", "resourcequota")
        .namespaced()
        .short(&["quota"])
        .with_status_only()
        .subresources(&[STATUS])
        .delete_returns_object()
        .defaults(limits::default_quota)
        .validated(limits::validate_quota)
        .validated_update(limits::validate_quota_update),
    ResourceInfo::of::<api::Secret>("", "v1", "Secret", "secrets", "secret")
        .namespaced()
        .fields(&[field("type")])
        .defaults(object::default_secret)
        .validated(object::validate_secret)
        .validated_update(object::validate_secret_update),
    ResourceInfo::of::<api::ServiceAccount>("", "v1", "ServiceAccount", "serviceaccounts", "serviceaccount")
        .namespaced()
        .short(&["sa"])
        .subresources(&[sub("token", ("authentication.k8s.io", "v1", "TokenRequest"), CREATE)])
        .delete_returns_object(),
    ResourceInfo::of::<api::Service>("", "v1", "Service", "services", "service")
        .namespaced()
        .short(&["svc"])
        .in_all()
        .with_status_only()
        .verbs(CRUD)
        .subresources(&[sub("proxy", ("", "v1", "ServiceProxyOptions"), CONNECT), STATUS])
        .fields(&[field("spec.clusterIP"), field("spec.type")])
        .named(NameRule::Label1035)
        .delete_returns_object()
        .defaults(service::default_service)
        .prepared(
            |service: &mut Value| fill(service, "status", serde_json::json!({"loadBalancer": {}})),
            service::keep_allocations,
        )
        .validated(service::validate)
        .validated_update(service::validate_update),
];
