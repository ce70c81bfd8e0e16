//! From a pod's claim to the persistent volume behind it, with upstream's words for what is not as it must be (A9.17, A9.19).

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod, Volume};
use stoker_model::handle::{ApiError, StorageApi};
use stoker_model::pod::PodRef;

use super::error::VolumeError;

const PROTECTED: &str = "kubernetes.io/pvc-protection";

/// A claim that is bound, and its volume.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub(super) claim: PersistentVolumeClaim,
    pub(super) volume: PersistentVolume,
    /// The pod wants only to read.
    pub(super) read_only: bool,
}

impl Bound {
    pub(super) fn name(&self) -> &str {
        self.volume.metadata.name.as_deref().unwrap_or_default()
    }

    /// No two pods may have it at once.
    pub(super) fn is_for_one_pod(&self) -> bool {
        let modes = self.spec().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
        matches!(modes, [mode] if mode == "ReadWriteOncePod")
    }

    /// The group that may use the volume (A10.2).
    pub(super) fn group(&self) -> Option<i64> {
        let annotations = self.volume.metadata.annotations.as_ref()?;
        annotations.get("pv.beta.kubernetes.io/gid")?.parse().ok()
    }

    pub(super) fn spec(&self) -> Option<&PersistentVolumeSpec> {
        self.volume.spec.as_ref()
    }

    /// It is a device, and not a file system.
    pub(super) fn is_block(&self) -> bool {
        self.spec().and_then(|s| s.volume_mode.as_deref()) == Some("Block")
    }
}

/// The claim that a volume of a pod names; `None`: it is of another kind.
pub(super) fn claim_name(pod: &PodRef, volume: &Volume) -> Option<(String, bool)> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some((source.claim_name.clone(), source.read_only.unwrap_or_default())),
        (None, Some(_)) => Some((format!("{}-{}", pod.name, volume.name), false)),
        (None, None) => None,
    }
}

/// Finds what is behind the claim.
pub(super) async fn resolve(
    api: &dyn StorageApi,
    pod: &Pod,
    volume: &Volume,
    name: &str,
    read_only: bool,
) -> Result<Bound, VolumeError> {
    let reference = PodRef::of(pod);
    let wrong =
        |text: String| VolumeError::Claim(format!("error processing PVC {}/{name}: {text}", reference.namespace));
    let unread =
        |what: String| move |error: ApiError| wrong(format!("failed to fetch {what} from API server: {error}"));
    let missing = |text: String| ApiError::NotFound(text);
    let claim = api
        .claim(&reference.namespace, name)
        .await
        .and_then(|claim| claim.ok_or_else(|| missing(format!("persistentvolumeclaims \"{name}\" not found"))));
    let claim = claim.map_err(unread("PVC".to_owned()))?;
    if let Some(text) = unusable(&claim) {
        return Err(wrong(text.to_owned()));
    }
    if volume.ephemeral.is_some() && !is_for(&claim, &reference) {
        return Err(VolumeError::Claim(format!(
            "PVC {}/{name} was not created for pod {}/{} (pod is not owner)",
            reference.namespace, reference.namespace, reference.name
        )));
    }
    let bound_to = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
    let found = api
        .persistent_volume(&bound_to)
        .await
        .and_then(|found| found.ok_or_else(|| missing(format!("persistentvolumes \"{bound_to}\" not found"))));
    let found = found.map_err(unread(format!("PV {bound_to}")))?;
    let claim_ref = found.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let Some(claim_ref) = claim_ref else {
        return Err(wrong(format!(
            "found PV object {bound_to} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        )));
    };
    if claim_ref.uid != claim.metadata.uid {
        return Err(wrong(format!(
            "found PV object {bound_to} but its pv.Spec.ClaimRef.UID {} does not point to claim.UID {}",
            claim_ref.uid.as_deref().unwrap_or_default(),
            claim.metadata.uid.as_deref().unwrap_or_default()
        )));
    }
    let block = found.spec.as_ref().and_then(|s| s.volume_mode.as_deref()) == Some("Block");
    let mounts = |volume_name: &str| {
        let containers = pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        containers.flat_map(|c| c.volume_mounts.iter().flatten()).any(|m| m.name == volume_name)
    };
    if block && mounts(&volume.name) {
        return Err(VolumeError::Claim(format!(
            "volume {} has volumeMode Block, but is specified in volumeMounts",
            volume.name
        )));
    }
    let maps = |volume_name: &str| {
        let containers = pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        containers.flat_map(|c| c.volume_devices.iter().flatten()).any(|d| d.name == volume_name)
    };
    if !block && maps(&volume.name) {
        return Err(VolumeError::Claim(format!(
            "volume {} has volumeMode Filesystem, but is specified in volumeDevices",
            volume.name
        )));
    }
    Ok(Bound { claim, volume: found, read_only })
}

/// Why a claim cannot be used, if it cannot.
fn unusable(claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let finalizers = claim.metadata.finalizers.as_deref().unwrap_or_default();
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    if claim.metadata.deletion_timestamp.is_some() && !finalizers.iter().any(|f| f == PROTECTED) {
        Some("PVC is being deleted")
    } else if phase != Some("Bound") {
        Some("PVC is not bound")
    } else if volume.is_empty() {
        Some("PVC has empty pvc.Spec.VolumeName")
    } else {
        None
    }
}

/// Whether a claim was made for the pod.
fn is_for(claim: &PersistentVolumeClaim, pod: &PodRef) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.controller == Some(true) && owner.uid == pod.uid.as_str())
}
