//! certificates.k8s.io/v1 (C1.13).

use k8s_openapi::api::certificates::v1 as api;

use super::{ResourceInfo, STATUS, SelectableField, Subresource};

pub(super) const TABLE: &[ResourceInfo] = &[ResourceInfo::of::<api::CertificateSigningRequest>(
    "certificates.k8s.io",
    "v1",
    "CertificateSigningRequest",
    "certificatesigningrequests",
    "certificatesigningrequest",
)
.short(&["csr"])
.with_status_only()
.subresources(&[Subresource { name: "approval", kind: None, verbs: &["get", "patch", "update"] }, STATUS])
.fields(&[SelectableField { name: "spec.signerName", path: "spec.signerName", absent: "" }])];
