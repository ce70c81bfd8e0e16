//! The node service of a driver: stage, publish, expand, and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use stoker_model::handle::VolumeFill;

use super::proto::node_client::NodeClient;
use super::proto::node_service_capability::{Type as CapabilityType, rpc::Type as Capability};
use super::proto::volume_capability::access_mode::Mode;
use super::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use super::proto::volume_usage::Unit;
use super::proto::{
    CapacityRange, NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetVolumeStatsRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
    VolumeCapability,
};
use super::{CALL_LIMIT, Drivers, STATS_LIMIT, call};
use crate::volume::error::VolumeError;

/// Names and values.
pub(in crate::volume) type Attributes = BTreeMap<String, String>;

/// How a volume is to be mounted on the node.
#[derive(Clone, Debug, Default)]
pub(in crate::volume) struct MountDevice {
    pub(in crate::volume) handle: String,
    pub(in crate::volume) staging: PathBuf,
    pub(in crate::volume) context: Attributes,
    pub(in crate::volume) publish_context: Attributes,
    pub(in crate::volume) secrets: Attributes,
    pub(in crate::volume) fs_type: String,
    pub(in crate::volume) options: Vec<String>,
    /// As in the API, like `ReadWriteOnce`.
    pub(in crate::volume) access_mode: String,
    /// The pod's group, for drivers that set it themselves.
    pub(in crate::volume) group: Option<u32>,
    /// It is used as a device, without a file system.
    pub(in crate::volume) block: bool,
}

/// How a volume is to be shown to a pod.
#[derive(Clone, Debug, Default)]
pub(in crate::volume) struct Publish {
    pub(in crate::volume) device: MountDevice,
    /// The volume is staged first.
    pub(in crate::volume) staged: bool,
    pub(in crate::volume) target: PathBuf,
    pub(in crate::volume) read_only: bool,
}

/// A driver's node service, and what it can do.
#[derive(Clone, Debug)]
pub(in crate::volume) struct Csi {
    client: NodeClient<tonic::transport::Channel>,
    can: Vec<i32>,
}

impl Csi {
    /// Asks a registered driver what it can do.
    pub(in crate::volume) async fn connect(drivers: &Drivers, name: &str) -> Result<Self, VolumeError> {
        let mut client = NodeClient::new(drivers.channel(name)?);
        let answer = call(CALL_LIMIT, client.node_get_capabilities(NodeGetCapabilitiesRequest {})).await?;
        let rpc = |c: super::proto::NodeServiceCapability| c.r#type.map(|CapabilityType::Rpc(rpc)| rpc.r#type);
        Ok(Self { client, can: answer.capabilities.into_iter().filter_map(rpc).collect() })
    }

    fn can(&self, what: Capability) -> bool {
        self.can.contains(&what.into())
    }

    pub(in crate::volume) fn stages(&self) -> bool {
        self.can(Capability::StageUnstageVolume)
    }

    pub(in crate::volume) fn sets_group(&self) -> bool {
        self.can(Capability::VolumeMountGroup)
    }

    pub(in crate::volume) fn expands(&self) -> bool {
        self.can(Capability::ExpandVolume)
    }

    fn capability(&self, device: &MountDevice) -> VolumeCapability {
        let group = device.group.filter(|_| self.sets_group()).map(|group| group.to_string()).unwrap_or_default();
        let mount = MountVolume {
            fs_type: device.fs_type.clone(),
            mount_flags: device.options.clone(),
            volume_mount_group: group,
        };
        let fine = self.can(Capability::SingleNodeMultiWriter);
        let mode = match device.access_mode.as_str() {
            "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
            "ReadWriteMany" => Mode::MultiNodeMultiWriter,
            "ReadWriteOncePod" if fine => Mode::SingleNodeSingleWriter,
            "ReadWriteOnce" | "" if fine => Mode::SingleNodeMultiWriter,
            _ => Mode::SingleNodeWriter,
        };
        let access = if device.block { AccessType::Block(BlockVolume {}) } else { AccessType::Mount(mount) };
        VolumeCapability { access_type: Some(access), access_mode: Some(AccessMode { mode: mode.into() }) }
    }

    pub(in crate::volume) async fn stage(&mut self, device: &MountDevice) -> Result<(), VolumeError> {
        let request = NodeStageVolumeRequest {
            volume_id: device.handle.clone(),
            publish_context: device.publish_context.clone(),
            staging_target_path: text(&device.staging),
            volume_capability: Some(self.capability(device)),
            secrets: device.secrets.clone(),
            volume_context: device.context.clone(),
        };
        call(CALL_LIMIT, self.client.node_stage_volume(request)).await.map(drop)
    }

    pub(in crate::volume) async fn publish(&mut self, publish: &Publish) -> Result<(), VolumeError> {
        let device = &publish.device;
        let request = NodePublishVolumeRequest {
            volume_id: device.handle.clone(),
            publish_context: device.publish_context.clone(),
            staging_target_path: if publish.staged { text(&device.staging) } else { String::new() },
            target_path: text(&publish.target),
            volume_capability: Some(self.capability(device)),
            readonly: publish.read_only,
            secrets: device.secrets.clone(),
            volume_context: device.context.clone(),
        };
        call(CALL_LIMIT, self.client.node_publish_volume(request)).await.map(drop)
    }

    /// Lets the volume grow; how large it is now.
    pub(in crate::volume) async fn expand(&mut self, publish: &Publish, bytes: i64) -> Result<i64, VolumeError> {
        let request = NodeExpandVolumeRequest {
            volume_id: publish.device.handle.clone(),
            volume_path: text(&publish.target),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            staging_target_path: if publish.staged { text(&publish.device.staging) } else { String::new() },
            volume_capability: Some(self.capability(&publish.device)),
            secrets: Attributes::new(),
        };
        call(CALL_LIMIT, self.client.node_expand_volume(request)).await.map(|answer| answer.capacity_bytes)
    }

    /// What a volume takes and has left, where the driver tells it.
    pub(in crate::volume) async fn fill(&mut self, handle: &str, target: &Path) -> Option<VolumeFill> {
        if !self.can(Capability::GetVolumeStats) {
            return None;
        }
        let request = NodeGetVolumeStatsRequest {
            volume_id: handle.to_owned(),
            volume_path: text(target),
            staging_target_path: String::new(),
        };
        let answer = match call(STATS_LIMIT, self.client.node_get_volume_stats(request)).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(handle, %error, "the driver does not tell what the volume takes");
                return None;
            }
        };
        let number = |number: i64| u64::try_from(number).unwrap_or_default();
        let mut fill = VolumeFill::default();
        for usage in &answer.usage {
            let [available, total, used] = [usage.available, usage.total, usage.used].map(number);
            match usage.unit() {
                Unit::Bytes => (fill.available_bytes, fill.capacity_bytes, fill.used_bytes) = (available, total, used),
                Unit::Inodes => (fill.inodes_free, fill.inodes, fill.inodes_used) = (available, total, used),
                Unit::Unknown => {}
            }
        }
        (!answer.usage.is_empty()).then_some(fill)
    }

    pub(in crate::volume) async fn unpublish(&mut self, handle: &str, target: &Path) -> Result<(), VolumeError> {
        let request = NodeUnpublishVolumeRequest { volume_id: handle.to_owned(), target_path: text(target) };
        call(CALL_LIMIT, self.client.node_unpublish_volume(request)).await.map(drop)
    }

    pub(in crate::volume) async fn unstage(&mut self, handle: &str, staging: &Path) -> Result<(), VolumeError> {
        let request = NodeUnstageVolumeRequest { volume_id: handle.to_owned(), staging_target_path: text(staging) };
        call(CALL_LIMIT, self.client.node_unstage_volume(request)).await.map(drop)
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The name of a VolumeAttachment, as the attach-detach controller gives it.
pub(in crate::volume) fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hex::encode(Sha256::digest(format!("{handle}{driver}{node}"))))
}

/// The handle of a volume that exists only for one pod.
pub(in crate::volume) fn ephemeral_handle(pod_uid: &str, volume: &str) -> String {
    format!("csi-{}", hex::encode(Sha256::digest(format!("{pod_uid}{volume}"))))
}
