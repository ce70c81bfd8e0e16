//! storage.k8s.io/v1 (C1.14).

use k8s_openapi::api::storage::v1 as api;
use serde_json::Value;

use super::tree::fill;
use super::{ResourceInfo, STATUS};

const GROUP: &str = "storage.k8s.io";

pub(super) const TABLE: &[ResourceInfo] = &[
    ResourceInfo::of::<api::CSIDriver>(GROUP, "v1", "CSIDriver", "csidrivers", "csidriver").delete_returns_object(),
    ResourceInfo::of::<api::CSINode>(GROUP, "v1", "CSINode", "csinodes", "csinode").delete_returns_object(),
    ResourceInfo::of::<api::CSIStorageCapacity>(
        GROUP,
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacities",
        "csistoragecapacity",
    )
    .namespaced(),
    ResourceInfo::of::<api::StorageClass>(GROUP, "v1", "StorageClass", "storageclasses", "storageclass")
        .short(&["sc"])
        .delete_returns_object()
        .defaults(default_class),
    ResourceInfo::of::<api::VolumeAttachment>(GROUP, "v1", "VolumeAttachment", "volumeattachments", "volumeattachment")
        .with_status_only()
        .subresources(&[STATUS])
        .delete_returns_object(),
];

fn default_class(class: &mut Value) {
    fill(class, "reclaimPolicy", "Delete");
    fill(class, "volumeBindingMode", "Immediate");
}
