//! networking.k8s.io/v1 (C1.6).

use k8s_openapi::api::networking::v1 as api;

use super::{ResourceInfo, STATUS, network_policy};

const GROUP: &str = "networking.k8s.io";

pub(super) const TABLE: &[ResourceInfo] = &[
    ResourceInfo::of::<api::IngressClass>(GROUP, "v1", "IngressClass", "ingressclasses", "ingressclass")
        .with_generation(),
    ResourceInfo::of::<api::Ingress>(GROUP, "v1", "Ingress", "ingresses", "ingress")
        .namespaced()
        .short(&["ing"])
        .with_status()
        .subresources(&[STATUS]),
    ResourceInfo::of::<api::NetworkPolicy>(GROUP, "v1", "NetworkPolicy", "networkpolicies", "networkpolicy")
        .namespaced()
        .short(&["netpol"])
        .with_generation()
        .defaults(network_policy::default_policy)
        .validated(network_policy::validate),
];
