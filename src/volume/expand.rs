//! Lets a volume grow on this node when the cluster has made it larger than its claim knows (A9.18, A9.23).

use std::collections::BTreeMap;
use std::sync::Arc;

use stoker_model::handle::{EventSubject, EventType};
use stoker_model::pod::PodRef;
use stoker_model::quantity::Milli;
use stoker_model::service::NamespacedName;

use super::claim::Bound;
use super::csi::{Csi, Publish};
use super::error::VolumeError;
use super::volumes::Volumes;

/// A volume that may have to grow.
pub(super) struct Growth<'a> {
    pub(super) bound: &'a Bound,
    pub(super) pod: &'a PodRef,
    pub(super) node: &'a str,
    /// The pod waits for it.
    pub(super) fresh: bool,
}

impl Volumes {
    /// Asks the driver, and writes the claim's new size. A pod that waits for the volume does not start before it has grown, unless the
    /// driver says that this volume cannot.
    pub(super) async fn expand(
        &self,
        csi: &mut Csi,
        growth: &Growth<'_>,
        publish: &Publish,
    ) -> Result<(), VolumeError> {
        let Growth { bound, pod, node, fresh } = growth;
        let storage =
            |list: Option<&BTreeMap<String, _>>| list.and_then(|l| l.get("storage")).map(|q| Milli::of(q).units());
        let wanted = storage(bound.spec().and_then(|s| s.capacity.as_ref())).unwrap_or_default();
        let known = storage(bound.claim.status.as_ref().and_then(|s| s.capacity.as_ref())).unwrap_or(wanted);
        if wanted <= known || !csi.expands() {
            return Ok(());
        }
        let name = bound.name();
        if publish.read_only {
            let text =
                format!("MountVolume.NodeExpandVolume failed for volume \"{name}\" requested read-only file system");
            self.tell_both(bound, pod, EventType::Warning, "FileSystemResizeFailed", &text);
            return Ok(());
        }
        let grown = async {
            csi.expand(publish, wanted).await?;
            let metadata = &bound.claim.metadata;
            let (namespace, claim) = (metadata.namespace.as_deref(), metadata.name.as_deref());
            let capacity = bound.spec().and_then(|s| s.capacity.clone()).unwrap_or_default();
            let (namespace, claim) = (namespace.unwrap_or_default(), claim.unwrap_or_default());
            Ok(self.storage()?.put_claim_capacity(namespace, claim, &capacity).await?)
        };
        match grown.await {
            Ok(()) => {
                let text = format!("MountVolume.NodeExpandVolume succeeded for volume \"{name}\" {node}");
                self.tell_both(bound, pod, EventType::Normal, "FileSystemResizeSuccessful", &text);
                Ok(())
            }
            Err(VolumeError::Driver { text, refused: true, .. }) => {
                tracing::warn!(volume = name, text, "the volume cannot grow on this node while it is used");
                Ok(())
            }
            Err(error) if *fresh => Err(VolumeError::step("MountVolume.Setup failed while expanding volume")(error)),
            Err(error) => {
                let text = format!("NodeExpandVolume.NodeExpandVolume failed for volume \"{name}\" : {error}");
                self.tell(pod, EventType::Warning, "VolumeResizeFailed", text);
                Ok(())
            }
        }
    }

    /// An event about the pod, and one about its claim.
    fn tell_both(&self, bound: &Bound, pod: &PodRef, kind: EventType, reason: &str, text: &str) {
        self.tell(pod, kind, reason, text.to_owned());
        let metadata = &bound.claim.metadata;
        let claim = NamespacedName {
            namespace: metadata.namespace.as_deref().unwrap_or_default().into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
        };
        let uid: Arc<str> = metadata.uid.as_deref().unwrap_or_default().into();
        if let Some(sink) = &self.sink {
            sink.publish(EventSubject::Claim { claim, uid }, kind, reason, text.to_owned());
        }
    }
}
