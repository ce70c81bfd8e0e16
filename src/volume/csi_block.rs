//! CSI volumes that a pod uses as devices, without a file system (A9.17, A9.18). They lie where upstream has them, below
//! `plugins/kubernetes.io/csi/volumeDevices`: `staging/<volume>`, `publish/<volume>/<pod>` which the driver makes, and in `<volume>` what
//! is remembered and, in `dev`, the device once more for each pod that has it. In the pod's directory a link leads to it.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, Pod};
use stoker_model::handle::{EventType, NodeSnapshot};
use stoker_model::pod::{PodRef, PodUid};

use super::attach::unique_name;
use super::claim::Bound;
use super::csi::{Csi, MountDevice, PodData, Publish};
use super::csi_volume::{FOR_ONE_POD, Job, Policy, remove_empty};
use super::error::VolumeError;
use super::expand::Growth;
use super::kernel;
use super::persistent::make_dir;
use super::places::Place;
use super::volumes::{SET_UP_DEVICE, Volumes};
use crate::clock::Now;

const MAP_POD_DEVICE: &str = "MapVolume.MapPodDevice failed";
const MAP_BLOCK: &str = "MapVolume.MapBlockVolume failed";

/// The places of one volume, and of one pod that uses it.
struct Places {
    volume: PathBuf,
    staging: PathBuf,
    published: PathBuf,
    device: PathBuf,
    link: PathBuf,
}

impl Places {
    fn data(&self) -> PathBuf {
        self.volume.join("data")
    }

    /// The pods that the link of this one stands among have it.
    fn is_mapped(&self) -> Result<bool, VolumeError> {
        let there = kernel::is_mount_point(&self.device).map_err(VolumeError::file("look at", &self.device))?;
        Ok(there && fs::symlink_metadata(&self.link).is_ok() && self.published.exists())
    }
}

impl Volumes {
    fn block_places(&self, uid: &PodUid, volume: &str) -> Places {
        let all = self.pods_dir.with_file_name("plugins").join("kubernetes.io/csi/volumeDevices");
        Places {
            staging: all.join("staging").join(volume),
            published: all.join("publish").join(volume).join(uid.as_str()),
            device: all.join(volume).join("dev").join(uid.as_str()),
            volume: all.join(volume),
            link: self.block_links(uid).join(volume),
        }
    }

    fn block_links(&self, uid: &PodUid) -> PathBuf {
        self.dirs(uid).root().join("volumeDevices/kubernetes.io~csi")
    }

    /// Maps the volume of a claim into the pod's directory.
    pub(super) async fn map_csi(
        &self,
        pod: &Pod,
        bound: &Bound,
        source: &CSIPersistentVolumeSource,
        volume_name: &str,
        node: &NodeSnapshot,
        now: Now,
    ) -> Result<(), VolumeError> {
        let api = self.storage()?;
        let policy = Policy::of(api.csi_driver(&source.driver).await?);
        let reference = PodRef::of(pod);
        let (driver, spec_name) = (source.driver.as_str(), bound.name());
        let job = Job { pod, reference, node, now, driver, mode: "Persistent", spec_name, label: None };
        job.check_mode(&policy)?;
        let (uid, handle) = (&job.reference.uid, source.volume_handle.as_str());
        let places = self.block_places(uid, spec_name);
        let read_only = bound.read_only || source.read_only.unwrap_or_default();
        let attachable = policy.attach.then(|| unique_name(driver, handle));
        let root = self.dirs(uid).root().to_owned();
        let fresh = !places.is_mapped()?;
        // Before it is used, and until it is gone for sure, the cluster must not detach it.
        self.places.put(
            uid,
            &root,
            volume_name,
            Place { path: places.link.clone(), read_only, attachable, group: bound.group() },
        )?;
        if fresh && bound.is_for_one_pod() && self.is_mapped_elsewhere(&places, spec_name) {
            return Err(VolumeError::Step { step: SET_UP_DEVICE, text: FOR_ONE_POD.to_owned() });
        }
        let mut device = MountDevice {
            handle: handle.to_owned(),
            staging: places.staging.clone(),
            context: source.volume_attributes.clone().unwrap_or_default(),
            access_mode: bound
                .spec()
                .and_then(|s| s.access_modes.clone())
                .into_iter()
                .flatten()
                .next()
                .unwrap_or_default(),
            block: true,
            ..MountDevice::default()
        };
        if fresh && policy.attach {
            let attached = self.until_attached(source, &policy, node).await;
            device.publish_context = attached.map_err(VolumeError::step("MapVolume.WaitForAttach failed"))?;
        }
        let gate = self.gate(driver, handle);
        let Ok(_permit) = gate.acquire().await else { return Err(VolumeError::Unsupported) };
        let mut csi = Csi::connect(&self.drivers, driver).await.map_err(|error| VolumeError::Step {
            step: SET_UP_DEVICE,
            text: format!("kubernetes.io/csi: blockMapper.SetUpDevice failed to get CSI client: {error}"),
        })?;
        if fresh {
            // Whoever takes the pod away must know of it, though it is only staged, or half so.
            let data = places.data();
            make_dir(&data)?;
            PodData::of(spec_name, driver, handle, &node.name).save(&data)?;
            link(&places)?;
        }
        if csi.stages() && !places.volume.join("data/staged").exists() {
            self.set_up_device(&mut csi, &places, &device, source).await.map_err(VolumeError::step(SET_UP_DEVICE))?;
        }
        let mut publish = Publish { device, staged: true, target: places.published.clone(), read_only };
        if fresh {
            publish.device.secrets = self.publish_secrets(source).await?;
            if policy.pod_info {
                publish.device.context.extend(job.pod_info());
            }
            make_dir(places.published.parent().unwrap_or(&places.published))?;
            csi.publish(&publish).await.map_err(VolumeError::step(MAP_POD_DEVICE))?;
            show(&places).map_err(VolumeError::step(MAP_BLOCK))?;
            let links = self.block_links(uid);
            for (what, path) in [("globalMapPath", places.volume.join("dev")), ("volumeMapPath", links)] {
                let path = path.display();
                let text = format!("MapVolume.MapPodDevice succeeded for volume \"{spec_name}\" {what} \"{path}\"");
                self.tell(&job.reference, EventType::Normal, "SuccessfulMountVolume", text);
            }
        }
        let growth = Growth { bound, pod: &job.reference, node: &node.name, fresh };
        let grown = self.expand(&mut csi, &growth, &publish).await;
        grown.map_err(|error| VolumeError::Step {
            step: "MapVolume.MarkVolumeAsMounted failed while expanding volume",
            text: error.to_string(),
        })
    }

    async fn set_up_device(
        &self,
        csi: &mut Csi,
        places: &Places,
        device: &MountDevice,
        source: &CSIPersistentVolumeSource,
    ) -> Result<(), VolumeError> {
        let mut device = device.clone();
        if let Some(secret) = &source.node_stage_secret_ref {
            let namespace = secret.namespace.as_deref().unwrap_or_default();
            device.secrets = self.secret_of_driver("NodeStageSecretRef", namespace, secret.name.as_deref()).await?;
        }
        make_dir(&places.staging)?;
        csi.stage(&device).await?;
        let done = places.data().join("staged");
        fs::write(&done, "").map_err(VolumeError::file("write", done))
    }

    /// Takes away the devices of a pod. What fails is told, and the others go all the same.
    pub(super) async fn unmap_csi(&self, uid: &PodUid) -> Vec<VolumeError> {
        let mut errors = Vec::new();
        for link in fs::read_dir(self.block_links(uid)).into_iter().flatten().flatten() {
            let name = link.file_name().to_string_lossy().into_owned();
            if let Err(error) = self.unmap_one(&self.block_places(uid, &name), &name).await {
                errors.push(error);
            }
        }
        errors
    }

    async fn unmap_one(&self, places: &Places, name: &str) -> Result<(), VolumeError> {
        if let Some(data) = PodData::load(&places.data())? {
            let gate = self.gate(&data.driver_name, &data.volume_handle);
            let Ok(_permit) = gate.acquire().await else { return Err(VolumeError::Unsupported) };
            hide(places)?;
            let mut csi = Csi::connect(&self.drivers, &data.driver_name).await?;
            csi.unpublish(&data.volume_handle, &places.published).await?;
            if !self.is_mapped_elsewhere(places, name) {
                if csi.stages() && places.staging.exists() {
                    csi.unstage(&data.volume_handle, &places.staging).await?;
                }
                remove_volume(places)?;
            }
        }
        fs::remove_file(&places.link).map_err(VolumeError::file("remove", &places.link))
    }

    fn is_mapped_elsewhere(&self, places: &Places, name: &str) -> bool {
        let pods = fs::read_dir(&self.pods_dir).into_iter().flatten().flatten();
        let mut links = pods.map(|pod| pod.path().join("volumeDevices/kubernetes.io~csi").join(name));
        links.any(|link| link != places.link && fs::symlink_metadata(link).is_ok())
    }
}

fn link(places: &Places) -> Result<(), VolumeError> {
    make_dir(places.link.parent().unwrap_or(&places.link))?;
    match std::os::unix::fs::symlink(&places.published, &places.link) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(VolumeError::file("make", &places.link)(error))
        }
        _ => Ok(()),
    }
}

/// Binds what the driver published beside what is remembered of the volume: as long as that is there, a pod has it.
fn show(places: &Places) -> Result<(), VolumeError> {
    let device = fs::canonicalize(&places.published).map_err(VolumeError::file("find", &places.published))?;
    make_dir(places.device.parent().unwrap_or(&places.device))?;
    fs::File::create(&places.device).map_err(VolumeError::file("make", &places.device))?;
    kernel::bind(&device, &places.device).map_err(VolumeError::file("bind", &places.device))
}

fn hide(places: &Places) -> Result<(), VolumeError> {
    kernel::unmount_now(&places.device).map_err(VolumeError::file("unmount", &places.device))?;
    remove_file(&places.device)
}

/// What is left of a volume that no pod here has: directories of ours that are empty, and what was remembered.
fn remove_volume(places: &Places) -> Result<(), VolumeError> {
    remove_empty(&places.staging)?;
    remove_empty(places.published.parent().unwrap_or(&places.published))?;
    remove_empty(&places.volume.join("dev"))?;
    let data = places.data();
    remove_file(&data.join("staged"))?;
    PodData::remove(&data)?;
    remove_empty(&data)?;
    remove_empty(&places.volume)
}

fn remove_file(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(VolumeError::file("remove", path)(error)),
        _ => Ok(()),
    }
}
