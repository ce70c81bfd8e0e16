//! CSI volumes of pods: attach, stage, publish, and the way back (A9.18).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, CSIVolumeSource, Pod};
use k8s_openapi::api::storage::v1::CSIDriver;
use sha2::{Digest, Sha256};
use stoker_model::handle::NodeSnapshot;
use stoker_model::pod::{PodRef, PodUid};

use super::attach::{self, Patience};
use super::claim::Bound;
use super::csi::{Attributes, Csi, MountDevice, PodData, Publish, ephemeral_handle, published};
use super::error::VolumeError;
use super::expand::Growth;
use super::persistent::make_dir;
use super::places::Place;
use super::selinux;
use super::volumes::{Volumes, fs_group};
use super::{kernel, plugin};
use crate::clock::Now;

/// Why a second pod does not get a volume.
pub(super) const FOR_ONE_POD: &str =
    "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
const MOUNT_DEVICE: &str = "MountVolume.MountDevice failed";

/// What a driver's object says, with upstream's defaults where there is none.
pub(super) struct Policy {
    pub(super) attach: bool,
    pub(super) pod_info: bool,
    group: String,
    modes: Vec<String>,
    audiences: Vec<(String, Option<i64>)>,
    tokens_in_secrets: bool,
    republish: bool,
    /// It can mount with the label of the pod that uses the volume.
    labels: bool,
    /// How many volumes it can attach may change.
    pub(super) counts: bool,
}

impl Policy {
    pub(super) fn of(driver: Option<CSIDriver>) -> Self {
        let spec = driver.map(|driver| driver.spec).unwrap_or_default();
        let requests = spec.token_requests.into_iter().flatten();
        Self {
            attach: spec.attach_required.unwrap_or(true),
            pod_info: spec.pod_info_on_mount.unwrap_or_default(),
            group: spec.fs_group_policy.unwrap_or_else(|| "ReadWriteOnceWithFSType".to_owned()),
            modes: spec.volume_lifecycle_modes.unwrap_or_else(|| vec!["Persistent".to_owned()]),
            audiences: requests.map(|r| (r.audience, r.expiration_seconds)).collect(),
            tokens_in_secrets: spec.service_account_token_in_secrets.unwrap_or_default(),
            republish: spec.requires_republish.unwrap_or_default(),
            labels: spec.se_linux_mount.unwrap_or_default(),
            counts: spec.node_allocatable_update_period_seconds.is_some_and(|seconds| seconds > 0),
        }
    }
}

/// One volume of one pod on its way.
pub(super) struct Job<'a> {
    pub(super) pod: &'a Pod,
    pub(super) reference: PodRef,
    pub(super) node: &'a NodeSnapshot,
    pub(super) now: Now,
    pub(super) driver: &'a str,
    /// `Persistent` or `Ephemeral`.
    pub(super) mode: &'static str,
    pub(super) spec_name: &'a str,
    /// What SELinux knows the volume by.
    pub(super) label: Option<String>,
}

impl Volumes {
    /// Mounts the volume of a claim.
    pub(super) async fn mount_csi(
        &self,
        pod: &Pod,
        bound: &Bound,
        source: &CSIPersistentVolumeSource,
        volume_name: &str,
        node: &NodeSnapshot,
        now: Now,
    ) -> Result<Place, VolumeError> {
        let api = self.storage()?;
        let policy = Policy::of(api.csi_driver(&source.driver).await?);
        let reference = PodRef::of(pod);
        let label = match policy.labels && bound.is_for_one_pod() {
            true => selinux::label_of_mount(pod, volume_name).map_err(VolumeError::Other)?,
            false => None,
        };
        let (driver, spec_name) = (source.driver.as_str(), bound.name());
        let job = Job { pod, reference, node, now, driver, mode: "Persistent", spec_name, label };
        job.check_mode(&policy)?;
        let spec = bound.spec().cloned().unwrap_or_default();
        let target = self.csi_target(&job);
        let read_only = bound.read_only || source.read_only.unwrap_or_default();
        let unique = attach::unique_name(&source.driver, &source.volume_handle);
        let place = Place {
            path: target.clone(),
            read_only,
            attachable: policy.attach.then_some(unique),
            group: bound.group(),
        };
        // Before it is used, and until it is gone for sure, the cluster must not detach it.
        let root = self.dirs(&job.reference.uid).root().to_owned();
        self.places.put(&job.reference.uid, &root, volume_name, place.clone())?;

        let mut device = MountDevice {
            handle: source.volume_handle.clone(),
            staging: self.staging(&source.driver, &source.volume_handle),
            context: source.volume_attributes.clone().unwrap_or_default(),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            options: spec.mount_options.clone().unwrap_or_default(),
            access_mode: spec.access_modes.iter().flatten().next().cloned().unwrap_or_default(),
            group: fs_group(pod),
            ..MountDevice::default()
        };
        device.options.extend(job.label.as_deref().map(selinux::option));
        let fresh = !kernel::is_mount_point(&target).map_err(VolumeError::file("look at", &target))?;
        if fresh && bound.is_for_one_pod() && self.is_used_by_other(&job.reference.uid, &source.driver, &device.handle)
        {
            return Err(VolumeError::Other(FOR_ONE_POD.to_owned()));
        }
        if policy.attach && (fresh || policy.republish) {
            let attached = self.until_attached(source, &policy, node).await;
            device.publish_context = attached.map_err(VolumeError::step("MountVolume.WaitForAttach failed"))?;
        }
        let gate = self.gate(&source.driver, &source.volume_handle);
        let Ok(_permit) = gate.acquire().await else { return Err(VolumeError::Unsupported) };
        let mut csi = Csi::connect(&self.drivers, &source.driver).await.map_err(|error| match error {
            VolumeError::Other(text) => VolumeError::Step {
                step: MOUNT_DEVICE,
                text: format!("kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: {text}"),
            },
            other => other,
        })?;
        if fresh {
            // Whoever takes the pod away must know of it, though it is only staged, or half so.
            job.remember(&target, &device.handle)?;
        }
        let staged = csi.stages();
        if staged && !self.is_staged(&device.staging) {
            self.stage(&mut csi, &job, &device, source).await?;
        }
        device.secrets = self.publish_secrets(source).await?;
        let publish = Publish { device, staged, target, read_only };
        let fresh = self.publish(&mut csi, &job, &policy, publish.clone()).await?;
        let once = spec.access_modes.iter().flatten().any(|m| m == "ReadWriteOnce" || m == "ReadWriteOncePod");
        let by_default = !publish.device.fs_type.is_empty() && once;
        self.own(&job, &csi, &policy, &publish, by_default, fresh).await?;
        self.expand(&mut csi, &job.growth(bound, fresh), &publish).await?;
        Ok(place)
    }

    /// Waits until the cluster has attached the volume. Where the driver can attach no more, the cluster is told how many those are.
    pub(super) async fn until_attached(
        &self,
        source: &CSIPersistentVolumeSource,
        policy: &Policy,
        node: &NodeSnapshot,
    ) -> Result<Attributes, VolumeError> {
        let api = self.storage()?;
        let patience = Patience { limit: self.patience, counts: policy.counts };
        let attached = attach::until_attached(api, source, &node.name, patience).await;
        if matches!(attached, Err(VolumeError::AttachLimit))
            && let Err(error) = self.drivers.tell_again(&source.driver, api).await
        {
            tracing::warn!(driver = source.driver, %error, "CSINode still tells how many volumes could be attached before");
        }
        attached
    }

    /// Mounts a volume that lives and dies with the pod.
    pub(super) async fn mount_csi_inline(
        &self,
        pod: &Pod,
        source: &CSIVolumeSource,
        volume_name: &str,
        node: &NodeSnapshot,
        now: Now,
    ) -> Result<Place, VolumeError> {
        let policy = Policy::of(self.storage()?.csi_driver(&source.driver).await?);
        let reference = PodRef::of(pod);
        let (driver, spec_name, label) = (source.driver.as_str(), volume_name, None);
        let job = Job { pod, reference, node, now, driver, mode: "Ephemeral", spec_name, label };
        job.check_mode(&policy)?;
        let mut csi = Csi::connect(&self.drivers, &source.driver).await.map_err(|error| match error {
            VolumeError::Other(text) => {
                VolumeError::Other(format!("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: {text}"))
            }
            other => other,
        })?;
        let secrets = match &source.node_publish_secret_ref {
            Some(secret) => {
                let name = Some(secret.name.as_str());
                self.secret_of_driver("NodePublishSecretRef", &job.reference.namespace, name).await?
            }
            None => Attributes::new(),
        };
        let device = MountDevice {
            handle: ephemeral_handle(job.reference.uid.as_str(), volume_name),
            context: source.volume_attributes.clone().unwrap_or_default(),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            access_mode: "ReadWriteOnce".to_owned(),
            group: fs_group(pod),
            secrets,
            ..MountDevice::default()
        };
        let read_only = source.read_only.unwrap_or_default();
        let publish = Publish { device, staged: false, target: self.csi_target(&job), read_only };
        let place = Place { path: publish.target.clone(), read_only, attachable: None, group: None };
        let fresh = self.publish(&mut csi, &job, &policy, publish.clone()).await?;
        self.own(&job, &csi, &policy, &publish, !publish.device.fs_type.is_empty(), fresh).await?;
        let root = self.dirs(&job.reference.uid).root().to_owned();
        self.places.put(&job.reference.uid, &root, volume_name, place.clone())?;
        Ok(place)
    }

    /// `…/volumes/kubernetes.io~csi/<name>/mount` (A9.1).
    fn csi_target(&self, job: &Job<'_>) -> PathBuf {
        self.dirs(&job.reference.uid).volume("csi", &job.spec_name.replace('/', "~")).join("mount")
    }

    /// `plugins/kubernetes.io/csi/<driver>/<sha256>/globalmount` (A9.1).
    fn staging(&self, driver: &str, handle: &str) -> PathBuf {
        let plugins = self.pods_dir.with_file_name("plugins");
        plugins.join("kubernetes.io/csi").join(driver).join(hex::encode(Sha256::digest(handle))).join("globalmount")
    }

    /// A volume that was staged to its end leaves its data beside the directory.
    fn is_staged(&self, staging: &Path) -> bool {
        kernel::is_there(staging) && staging.parent().is_some_and(|dir| dir.join("staged").exists())
    }

    async fn stage(
        &self,
        csi: &mut Csi,
        job: &Job<'_>,
        device: &MountDevice,
        source: &CSIPersistentVolumeSource,
    ) -> Result<(), VolumeError> {
        let mut device = device.clone();
        if let Some(secret) = &source.node_stage_secret_ref {
            let namespace = secret.namespace.as_deref().unwrap_or_default();
            device.secrets = self.secret_of_driver("NodeStageSecretRef", namespace, secret.name.as_deref()).await?;
        }
        make_dir(&device.staging)?;
        let dir = device.staging.parent().unwrap_or(&device.staging).to_owned();
        let data =
            PodData { volume_handle: device.handle.clone(), driver_name: job.driver.to_owned(), ..PodData::default() };
        data.save(&dir)?;
        match csi.stage(&device).await {
            Ok(()) => fs::write(dir.join("staged"), "").map_err(VolumeError::file("write", dir.join("staged"))),
            Err(error) => {
                if error.is_finished() {
                    remove_staging(&device.staging)?;
                }
                Err(VolumeError::step(MOUNT_DEVICE)(error))
            }
        }
    }

    /// Publishes where that is due; whether nothing was mounted before.
    async fn publish(
        &self,
        csi: &mut Csi,
        job: &Job<'_>,
        policy: &Policy,
        mut publish: Publish,
    ) -> Result<bool, VolumeError> {
        let target = publish.target.clone();
        let mounted = kernel::is_mount_point(&target).map_err(VolumeError::file("look at", &target))?;
        if mounted && !policy.republish {
            return Ok(false);
        }
        if policy.pod_info {
            publish.device.context.extend(job.pod_info());
        }
        if !policy.audiences.is_empty() {
            let tokens = self.tokens_for_driver(job, policy).await?;
            let place =
                if policy.tokens_in_secrets { &mut publish.device.secrets } else { &mut publish.device.context };
            place.insert("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), tokens);
        }
        let dir = target.parent().unwrap_or(&target).to_owned();
        job.remember(&target, &publish.device.handle)?;
        if let Err(error) = csi.publish(&publish).await {
            if error.is_finished() && !mounted {
                remove_published(&dir)?;
            }
            return Err(error);
        }
        Ok(!mounted)
    }

    /// `fsGroup`, where the driver leaves it to the node (A9.16).
    async fn own(
        &self,
        job: &Job<'_>,
        csi: &Csi,
        policy: &Policy,
        publish: &Publish,
        by_default: bool,
        fresh: bool,
    ) -> Result<(), VolumeError> {
        let applies = node_sets_group(&policy.group, by_default, csi.sets_group());
        let Some(group) = publish.device.group.filter(|_| applies && fresh) else { return Ok(()) };
        if publish.read_only {
            // Nothing can be changed there.
            return Ok(());
        }
        let context = job.pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        let on_mismatch = context.and_then(|s| s.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
        self.give(&PodRef::of(job.pod), &publish.target, group, on_mismatch).await
    }

    pub(super) async fn publish_secrets(&self, source: &CSIPersistentVolumeSource) -> Result<Attributes, VolumeError> {
        let Some(secret) = &source.node_publish_secret_ref else { return Ok(Attributes::new()) };
        let namespace = secret.namespace.as_deref().unwrap_or_default();
        self.secret_of_driver("NodePublishSecretRef", namespace, secret.name.as_deref()).await
    }

    pub(super) async fn secret_of_driver(
        &self,
        what: &str,
        namespace: &str,
        name: Option<&str>,
    ) -> Result<Attributes, VolumeError> {
        let name = name.unwrap_or_default();
        let failed = |error: String| VolumeError::Other(format!("fetching {what} {namespace}/{name} failed: {error}"));
        let secret = self.objects.secret(namespace, name).await.map_err(|error| failed(error.to_string()))?;
        let secret = secret.ok_or_else(|| failed(format!("secrets \"{name}\" not found")))?;
        let text = |(key, value): (&String, &k8s_openapi::ByteString)| {
            (key.clone(), String::from_utf8_lossy(&value.0).into_owned())
        };
        Ok(secret.data.iter().flatten().map(text).collect())
    }

    async fn tokens_for_driver(&self, job: &Job<'_>, policy: &Policy) -> Result<String, VolumeError> {
        let spec = job.pod.spec.as_ref();
        let account = spec.and_then(|s| s.service_account_name.as_deref()).filter(|n| !n.is_empty());
        let mut all = BTreeMap::new();
        for (audience, seconds) in &policy.audiences {
            let audiences: Vec<String> = Some(audience.clone()).filter(|a| !a.is_empty()).into_iter().collect();
            let (account, seconds) = (account.unwrap_or("default"), seconds.unwrap_or(3600));
            let token = self.tokens.get(&*self.objects, &job.reference, account, &audiences, seconds, job.now.wall);
            let token = token.await?;
            let told = serde_json::json!({
                "token": token.token, "expirationTimestamp": token.expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            });
            all.insert(audience.clone(), told);
        }
        serde_json::to_string(&all).map_err(|e| VolumeError::Other(e.to_string()))
    }

    /// Takes away the CSI volumes of a pod. What fails is told, and the others go all the same.
    pub(super) async fn unmount_csi(&self, pod_root: &Path) -> Vec<VolumeError> {
        let mut errors = Vec::new();
        for (dir, data) in published(pod_root) {
            let begun = plugin::begun();
            let unmounted = self.unmount_one(&dir, &data).await;
            plugin::ended(&plugin::of_driver(&data.driver_name), "volume_unmount", unmounted.is_ok(), begun);
            errors.extend(unmounted.err());
        }
        errors
    }

    async fn unmount_one(&self, dir: &Path, data: &PodData) -> Result<(), VolumeError> {
        let gate = self.gate(&data.driver_name, &data.volume_handle);
        let Ok(_permit) = gate.acquire().await else { return Err(VolumeError::Unsupported) };
        let mut csi = Csi::connect(&self.drivers, &data.driver_name).await?;
        csi.unpublish(&data.volume_handle, &dir.join("mount")).await?;
        remove_published(dir)?;
        let staging = self.staging(&data.driver_name, &data.volume_handle);
        if data.volume_lifecycle_mode == "Ephemeral" || !kernel::is_there(&staging) || self.is_used(data) {
            return Ok(());
        }
        if csi.stages() {
            csi.unstage(&data.volume_handle, &staging).await?;
        }
        remove_staging(&staging)
    }

    /// Whether another pod on this node has the same volume; that of the pod itself is gone already.
    fn is_used(&self, data: &PodData) -> bool {
        self.is_used_by_other(&PodUid::new(""), &data.driver_name, &data.volume_handle)
    }

    fn is_used_by_other(&self, uid: &PodUid, driver: &str, handle: &str) -> bool {
        let pods = fs::read_dir(&self.pods_dir).into_iter().flatten().flatten();
        let others = pods.filter(|pod| pod.file_name() != uid.as_str());
        let mut all = others.flat_map(|pod| published(&pod.path()));
        all.any(|(_, other)| other.driver_name == driver && other.volume_handle == handle)
    }
}

impl Job<'_> {
    pub(super) fn check_mode(&self, policy: &Policy) -> Result<(), VolumeError> {
        if policy.modes.iter().any(|mode| mode == self.mode) {
            return Ok(());
        }
        Err(VolumeError::Other(format!(
            "kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: volume mode \"{}\" not supported by driver {} (only supports {:?})",
            self.mode, self.driver, policy.modes
        )))
    }

    /// Leaves what is needed to take the volume away, beside where it is published.
    fn remember(&self, target: &Path, handle: &str) -> Result<(), VolumeError> {
        let dir = target.parent().unwrap_or(target);
        make_dir(dir)?;
        let mut data = PodData {
            volume_lifecycle_mode: self.mode.to_owned(),
            ..PodData::of(self.spec_name, self.driver, handle, &self.node.name)
        };
        if let Some(label) = &self.label {
            data.others.insert("seLinuxMountContext".to_owned(), label.as_str().into());
        }
        data.save(dir)
    }

    fn growth<'a>(&'a self, bound: &'a Bound, fresh: bool) -> Growth<'a> {
        Growth { bound, pod: &self.reference, node: &self.node.name, fresh }
    }

    pub(super) fn pod_info(&self) -> Attributes {
        let spec = self.pod.spec.as_ref();
        let account = spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default();
        let ephemeral = (self.mode == "Ephemeral").to_string();
        [
            ("pod.name", self.reference.name.clone()),
            ("pod.namespace", self.reference.namespace.clone()),
            ("pod.uid", self.reference.uid.to_string()),
            ("serviceAccount.name", account),
            ("ephemeral", ephemeral),
        ]
        .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value))
        .into()
    }
}

/// Whether the node gives the files to the pod's group. `by_default`: it is a file system of one node's.
fn node_sets_group(policy: &str, by_default: bool, driver_does: bool) -> bool {
    !driver_does
        && match policy {
            "None" => false,
            "File" => true,
            _ => by_default,
        }
}

/// Removes what is left of a published volume, never what is mounted there.
fn remove_published(dir: &Path) -> Result<(), VolumeError> {
    remove_empty(&dir.join("mount"))?;
    PodData::remove(dir)?;
    remove_empty(dir)
}

fn remove_staging(staging: &Path) -> Result<(), VolumeError> {
    remove_empty(staging)?;
    let Some(dir) = staging.parent() else { return Ok(()) };
    // It may never have been staged.
    let _ = fs::remove_file(dir.join("staged"));
    PodData::remove(dir)?;
    remove_empty(dir)
}

/// rmdir: what holds data stays.
pub(super) fn remove_empty(dir: &Path) -> Result<(), VolumeError> {
    if kernel::is_mount_point(dir).map_err(VolumeError::file("look at", dir))? {
        kernel::unmount_now(dir).map_err(VolumeError::file("unmount", dir))?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(VolumeError::file("remove", dir)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_say_who_sets_the_group() {
        // A9.16
        for (policy, by_default, driver_does, node) in [
            ("ReadWriteOnceWithFSType", true, false, true),
            ("ReadWriteOnceWithFSType", false, false, false),
            ("File", false, false, true),
            ("File", true, true, false),
            ("None", true, false, false),
        ] {
            assert_eq!(node_sets_group(policy, by_default, driver_does), node, "{policy} {by_default} {driver_does}");
        }
        let default = Policy::of(None);
        assert_eq!(
            (default.attach, default.pod_info, default.group.as_str()),
            (true, false, "ReadWriteOnceWithFSType")
        );
        assert_eq!(default.modes, ["Persistent"]);
    }
}
