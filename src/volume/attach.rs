//! Waits for volumes that the cluster attaches to this node: what it says in the Node's status, and what the driver has to tell of it
//! (A9.17).

use std::time::Duration;

use k8s_openapi::api::core::v1::CSIPersistentVolumeSource;
use stoker_model::handle::StorageApi;

use super::csi::{Attributes, attachment_name};
use super::error::VolumeError;

/// The Node's status is waited for so long before the pod is looked at again, as upstream.
pub(super) const LIMIT: Duration = Duration::from_secs(123);
/// First and longest time between two looks.
const LOOK: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// A volume in lists of a Node's status.
pub(super) fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// How long a volume is waited for, and what then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) limit: Duration,
    /// The driver tells how many volumes it can attach whenever that changes, so that it counts when it says that these are too many.
    pub(super) counts: bool,
}

/// Code of gRPC: there is no more of it.
const RESOURCE_EXHAUSTED: i32 = 8;

/// Waits until the volume is attached; what the driver tells the node of it. Only what the Node says that it uses is safe from being
/// detached, so that has to be written first.
pub(super) async fn until_attached(
    api: &dyn StorageApi,
    source: &CSIPersistentVolumeSource,
    node: &str,
    patience: Patience,
) -> Result<Attributes, VolumeError> {
    let (driver, handle) = (&source.driver, &source.volume_handle);
    let unique = unique_name(driver, handle);
    let (mut waited, mut delay) = (Duration::ZERO, LOOK.0);
    loop {
        let volumes = api.volumes_of_node().await?;
        if volumes.in_use.contains(&unique) && volumes.attached.contains(&unique) {
            break;
        }
        if waited >= patience.limit {
            let exhausted = patience.counts && is_exhausted(api, &attachment_name(handle, driver, node)).await?;
            return Err(if exhausted { VolumeError::AttachLimit } else { VolumeError::NotAttached(unique) });
        }
        tokio::time::sleep(delay).await;
        waited += delay;
        delay = (delay * 2).min(LOOK.1);
    }
    let name = attachment_name(handle, driver, node);
    let failed = |text: String| Err(VolumeError::Other(text));
    let Some(attachment) = api.attachment(&name).await? else {
        let missing = format!("volumeattachments.storage.k8s.io \"{name}\" not found");
        return failed(format!("volume {handle} has GET error for volume attachment {name}: {missing}"));
    };
    if attachment.metadata.deletion_timestamp.is_some() {
        return failed("volume attachment is being deleted".to_owned());
    }
    let status = attachment.status.unwrap_or_default();
    match status.attach_error {
        _ if status.attached => Ok(status.attachment_metadata.unwrap_or_default()),
        Some(error) => failed(error.message.unwrap_or_default()),
        None => failed(format!("volume {handle} is not attached for volume attachment {name}")),
    }
}

/// Whether the driver can attach no more volumes to this node (A6.3).
async fn is_exhausted(api: &dyn StorageApi, attachment: &str) -> Result<bool, VolumeError> {
    let error = api.attachment(attachment).await?.and_then(|attachment| attachment.status?.attach_error);
    Ok(error.and_then(|error| error.error_code) == Some(RESOURCE_EXHAUSTED))
}
