//! The generated types of `proto/dra*.proto`.

/// What drivers are asked.
pub(super) mod v1 {
    #![expect(clippy::allow_attributes_without_reason, reason = "generated code")]
    #![allow(unreachable_pub, dead_code, clippy::pedantic, reason = "generated code; the tests use the other side")]
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
}

/// The same as it was before.
pub(super) mod v1beta1 {
    #![expect(clippy::allow_attributes_without_reason, reason = "generated code")]
    #![allow(unreachable_pub, dead_code, clippy::pedantic, reason = "generated code; the tests use the other side")]
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1beta1");
}

/// How devices are.
pub(super) mod health {
    #![expect(clippy::allow_attributes_without_reason, reason = "generated code")]
    #![allow(unreachable_pub, dead_code, clippy::pedantic, reason = "generated code; the tests use the other side")]
    include!(concat!(env!("OUT_DIR"), "/dra_health/v1alpha1.rs"));
}
