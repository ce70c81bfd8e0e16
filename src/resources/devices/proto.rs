//! The generated types, client and server of `proto/deviceplugin.proto`.

#![expect(clippy::allow_attributes_without_reason, reason = "generated code")]
#![allow(unreachable_pub, dead_code, reason = "generated code; the tests use the other sides")]

tonic::include_proto!("v1beta1");
