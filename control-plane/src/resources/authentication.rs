//! authentication.k8s.io/v1: create only, answered from the authenticator (C1.11).

use k8s_openapi::api::authentication::v1 as api;

use super::ResourceInfo;

const GROUP: &str = "authentication.k8s.io";

pub(super) const TABLE: &[ResourceInfo] = &[
    ResourceInfo::of::<api::SelfSubjectReview>(
        GROUP,
        "v1",
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
    )
    .verbs(&["create"]),
    ResourceInfo::of::<api::TokenReview>(GROUP, "v1", "TokenReview", "tokenreviews", "tokenreview").verbs(&["create"]),
];
