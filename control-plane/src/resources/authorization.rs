//! authorization.k8s.io/v1: create only, answered from the authorizer (C1.12).

use k8s_openapi::api::authorization::v1 as api;

use super::ResourceInfo;

const GROUP: &str = "authorization.k8s.io";
const CREATE: &[&str] = &["create"];

pub(super) const TABLE: &[ResourceInfo] = &[
    ResourceInfo::of::<api::LocalSubjectAccessReview>(
        GROUP,
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
    )
    .namespaced()
    .verbs(CREATE),
    ResourceInfo::of::<api::SelfSubjectAccessReview>(
        GROUP,
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
    )
    .verbs(CREATE),
    ResourceInfo::of::<api::SelfSubjectRulesReview>(
        GROUP,
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
    )
    .verbs(CREATE),
    ResourceInfo::of::<api::SubjectAccessReview>(
        GROUP,
        "v1",
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
    )
    .verbs(CREATE),
];
