//! The generated types and clients of `proto/csi.proto` and `proto/pluginregistration.proto`.

#![expect(clippy::allow_attributes_without_reason, reason = "generated code")]
#![allow(unreachable_pub, reason = "generated code")]

tonic::include_proto!("csi.v1");

/// How plugins register.
pub(super) mod registration {
    tonic::include_proto!("pluginregistration");
}
