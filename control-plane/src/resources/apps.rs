//! apps/v1 (C1.2).

use k8s_openapi::api::apps::v1 as api;

use super::{CRUD, ResourceInfo, SCALE, STATUS, workload, workload_rules};

pub(super) const TABLE: &[ResourceInfo] = &[
    ResourceInfo::of::<api::ControllerRevision>(
        "apps",
        "v1",
        "ControllerRevision",
        "controllerrevisions",
        "controllerrevision",
    )
    .namespaced()
    .validated(workload_rules::validate_revision)
    .validated_update(workload_rules::validate_revision_update),
    ResourceInfo::of::<api::DaemonSet>("apps", "v1", "DaemonSet", "daemonsets", "daemonset")
        .namespaced()
        .short(&["ds"])
        .in_all()
        .with_status()
        .subresources(&[STATUS])
        .defaults(workload::default_daemon_set)
        .validated(workload_rules::validate)
        .validated_update(workload_rules::validate_update),
    ResourceInfo::of::<api::Deployment>("apps", "v1", "Deployment", "deployments", "deployment")
        .namespaced()
        .short(&["deploy"])
        .in_all()
        .with_status()
        .subresources(&[SCALE, STATUS])
        .defaults(workload::default_deployment)
        .validated(workload_rules::validate)
        .validated_update(workload_rules::validate_update),
    ResourceInfo::of::<api::ReplicaSet>("apps", "v1", "ReplicaSet", "replicasets", "replicaset")
        .namespaced()
        .short(&["rs"])
        .in_all()
        .with_status()
        .subresources(&[SCALE, STATUS])
        .defaults(workload::default_replica_set)
        .validated(workload_rules::validate)
        .validated_update(workload_rules::validate_update),
    ResourceInfo::of::<api::StatefulSet>("apps", "v1", "StatefulSet", "statefulsets", "statefulset")
        .namespaced()
        .short(&["sts"])
        .in_all()
        .with_status()
        .subresources(&[SCALE, STATUS])
        .defaults(workload::default_stateful_set)
        .validated(workload_rules::validate)
        .validated_update(workload::validate_stateful_set_update)
        .verbs(CRUD),
];
