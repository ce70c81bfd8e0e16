//! networking.k8s.io/v1 (C1.6).

use k8s_openapi::api::networking::v1 as api;

use super::{NameRule, ResourceInfo, STATUS, network_policy, service_cidr};

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
    ResourceInfo::of::<api::IPAddress>(GROUP, "v1", "IPAddress", "ipaddresses", "ipaddress")
        .short(&["ip"])
        .named(NameRule::PathSegment)
        .validated(service_cidr::validate_address)
        .validated_update(service_cidr::validate_address_update),
    ResourceInfo::of::<api::ServiceCIDR>(GROUP, "v1", "ServiceCIDR", "servicecidrs", "servicecidr")
        .with_status()
        .subresources(&[STATUS])
        .validated(service_cidr::validate_range)
        .validated_update(service_cidr::validate_range_update),
];
