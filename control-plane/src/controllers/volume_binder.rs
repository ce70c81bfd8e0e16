//! Binds claims to persistent volumes, and tells what becomes of both (C7.11).
//!
//! A claim's key has its namespace, a volume's has none. One worker: two claims cannot get the same volume.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::owner::{is_being_deleted, labels_of};
use super::queue::{Key, Queue};
use crate::recorder::Recorder;
use crate::resources::status::StatusError;
use crate::resources::tree::text;
use crate::resources::volume_match::{best, class_of, is_for, mismatch, usable_on};

const COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const BETA_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

#[derive(Clone)]
struct Binder {
    claims: Arc<Informer>,
    volumes: Arc<Informer>,
    classes: Arc<Informer>,
    nodes: Arc<Informer>,
    recorder: Recorder,
}

type Outcome = Result<Option<Duration>, StatusError>;

/// Registers callbacks and returns what starts the worker.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let binder = Binder {
        claims: context.informers.of("", "persistentvolumeclaims"),
        volumes: context.informers.of("", "persistentvolumes"),
        classes: context.informers.of("storage.k8s.io", "storageclasses"),
        nodes: context.informers.of("", "nodes"),
        recorder: context.recorder.of("persistentvolume-controller"),
    };
    let queue = Queue::default();
    let of_claim = queue.clone();
    binder.claims.on_change(move |old, new| {
        let Some(claim) = new.or(old) else { return };
        of_claim.add(Key::of(claim));
        let volume = text(&claim["spec"], "volumeName");
        if !volume.is_empty() {
            of_claim.add(Key::new("", volume));
        }
    });
    let (of_volume, claims) = (queue.clone(), Arc::clone(&binder.claims));
    binder.volumes.on_change(move |old, new| {
        let Some(volume) = new.or(old) else { return };
        of_volume.add(Key::of(volume));
        let reference = &volume["spec"]["claimRef"];
        if reference.is_object() {
            of_volume.add(Key::new(text(reference, "namespace"), text(reference, "name")));
            return;
        }
        // It may be what a claim waits for.
        for claim in claims.list("") {
            if text(&claim["status"], "phase") != "Bound" {
                of_volume.add(Key::of(&claim));
            }
        }
    });
    let (of_class, claims) = (queue.clone(), Arc::clone(&binder.claims));
    binder.classes.on_change(move |_, _| {
        for claim in claims.list("").iter().filter(|claim| text(&claim["status"], "phase") != "Bound") {
            of_class.add(Key::of(claim));
        }
    });
    Box::new(move |context| {
        queue.work("persistentvolume", 1, &context.stop, move |key| {
            let binder = binder.clone();
            async move {
                if key.namespace.is_empty() {
                    binder.look_at_volume(&key).await
                } else {
                    binder.look_at_claim(&key).await
                }
            }
        });
    })
}

impl Binder {
    async fn look_at_claim(&self, key: &Key) -> Outcome {
        let Some(claim) = self.claims.get(&key.namespace, &key.name) else { return Ok(None) };
        let name = text(&claim["spec"], "volumeName");
        if claim["metadata"]["annotations"][COMPLETED].is_string() {
            return self.keep(&claim, name).await;
        }
        if is_being_deleted(&claim) {
            return Ok(None);
        }
        if name.is_empty() { self.find(&claim).await } else { self.take_named(&claim, name).await }
    }

    /// A claim that was bound stays so, or has lost its volume.
    async fn keep(&self, claim: &Arc<Value>, name: &str) -> Outcome {
        let volume = self.volumes.get("", name);
        let (reason, message) = match &volume {
            None if name.is_empty() => {
                ("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
            }
            None => ("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!"),
            Some(volume) if volume["spec"]["claimRef"].is_null() || is_for(volume, claim) => {
                self.bind(claim, volume).await?;
                return Ok(None);
            }
            Some(_) => ("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly"),
        };
        if text(&claim["status"], "phase") != "Lost" {
            self.recorder.warning(claim, reason, message.to_owned());
            self.set_claim_status(claim, json!({"phase": "Lost"})).await?;
        }
        Ok(None)
    }

    /// The claim asks for one volume.
    async fn take_named(&self, claim: &Arc<Value>, name: &str) -> Outcome {
        let Some(volume) = self.volumes.get("", name) else {
            self.pend(claim).await?;
            return Ok(None);
        };
        if !volume["spec"]["claimRef"].is_null() && !is_for(&volume, claim) {
            self.recorder.warning(
                claim,
                "FailedBinding",
                format!("volume \"{name}\" already bound to a different claim."),
            );
            self.pend(claim).await?;
            return Ok(None);
        }
        if let Some(why) = mismatch(&volume, claim) {
            let message = format!("Cannot bind to requested volume \"{name}\": {why}");
            self.recorder.warning(claim, "VolumeMismatch", message);
            self.pend(claim).await?;
            return Ok(None);
        }
        self.bind(claim, &volume).await?;
        Ok(None)
    }

    /// The claim asks for any volume.
    async fn find(&self, claim: &Arc<Value>) -> Outcome {
        if class_of(claim).is_none()
            && let Some(class) = self.default_class()
        {
            let metadata = &claim["metadata"];
            let written =
                self.claims.objects.modify(text(metadata, "namespace"), text(metadata, "name"), "", |claim| {
                    claim["spec"]["storageClassName"] = json!(class);
                    true
                });
            self.claims.wait_for(&written.await?).await;
            return Ok(None);
        }
        let class_name = class_of(claim).unwrap_or_default().to_owned();
        let class = self.classes.get("", &class_name);
        let waits = class.as_ref().is_some_and(|class| text(class, "volumeBindingMode") == "WaitForFirstConsumer");
        let selected = claim["metadata"]["annotations"][SELECTED_NODE].as_str();
        let node = selected.and_then(|name| self.nodes.get("", name));
        let volumes = self.volumes.list("");
        if waits && selected.is_none() {
            // A volume that was reserved for it may be taken at once.
            let reserved = volumes.iter().find(|volume| is_for(volume, claim) && mismatch(volume, claim).is_none());
            if let Some(volume) = reserved {
                self.bind(claim, volume).await?;
                return Ok(None);
            }
            let message = "waiting for first consumer to be created before binding";
            self.recorder.normal(claim, "WaitForFirstConsumer", message.to_owned());
            self.pend(claim).await?;
            return Ok(None);
        }
        let usable = |volume: &Value| {
            node.as_ref().is_none_or(|n| usable_on(volume, text(&n["metadata"], "name"), &labels_of(n)))
        };
        if let Some(volume) = best(claim, volumes.iter().map(|volume| &**volume), usable) {
            let volume = Arc::new(volume.clone());
            self.bind(claim, &volume).await?;
            return Ok(None);
        }
        self.pend(claim).await?;
        self.ask_for_volume(claim, &class_name, class.as_deref()).await?;
        Ok(None)
    }

    /// Says who could make a volume.
    async fn ask_for_volume(&self, claim: &Arc<Value>, name: &str, class: Option<&Value>) -> Result<(), StatusError> {
        if name.is_empty() {
            let message = "no persistent volumes available for this claim and no storage class is set";
            self.recorder.normal(claim, "FailedBinding", message.to_owned());
            return Ok(());
        }
        let Some(class) = class else {
            let message = format!("storageclass.storage.k8s.io \"{name}\" not found");
            self.recorder.warning(claim, "ProvisioningFailed", message);
            return Ok(());
        };
        let provisioner = text(class, "provisioner").to_owned();
        if provisioner == "kubernetes.io/no-provisioner" {
            // Somebody makes volumes of this class by hand.
            return Ok(());
        }
        if provisioner.starts_with("kubernetes.io/") {
            self.recorder.warning(claim, "ProvisioningFailed", "no volume plugin matched".to_owned());
            return Ok(());
        }
        let metadata = &claim["metadata"];
        if metadata["annotations"][PROVISIONER] != json!(provisioner) {
            let told = self.claims.objects.modify(text(metadata, "namespace"), text(metadata, "name"), "", |claim| {
                claim["metadata"]["annotations"][PROVISIONER] = json!(provisioner);
                claim["metadata"]["annotations"][BETA_PROVISIONER] = json!(provisioner);
                true
            });
            self.claims.wait_for(&told.await?).await;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        self.recorder.normal(claim, "ExternalProvisioning", message);
        Ok(())
    }

    fn default_class(&self) -> Option<String> {
        let is_default = |class: &Arc<Value>| class["metadata"]["annotations"][DEFAULT_CLASS] == "true";
        let classes = self.classes.list("").into_iter().filter(is_default);
        // The youngest, as upstream chooses.
        let newest = classes.max_by_key(|class| text(&class["metadata"], "creationTimestamp").to_owned())?;
        Some(text(&newest["metadata"], "name").to_owned())
    }

    /// Writes what is missing of the bond, on the volume first: a volume is never had by two.
    async fn bind(&self, claim: &Arc<Value>, volume: &Arc<Value>) -> Result<(), StatusError> {
        let (claim_meta, volume_name) = (claim["metadata"].clone(), text(&volume["metadata"], "name"));
        let reserved = volume["spec"]["claimRef"].is_object();
        let had_uid = volume["spec"]["claimRef"]["uid"] == claim_meta["uid"];
        if !had_uid {
            let written = self.volumes.objects.modify("", volume_name, "", |volume| {
                if !volume["spec"]["claimRef"].is_null() && !is_for(volume, claim) {
                    return false;
                }
                volume["spec"]["claimRef"] = json!({
                    "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": claim_meta["namespace"],
                    "name": claim_meta["name"], "uid": claim_meta["uid"], "resourceVersion": claim_meta["resourceVersion"],
                });
                if !reserved {
                    volume["metadata"]["annotations"][BY_CONTROLLER] = json!("yes");
                }
                true
            });
            let written = written.await?;
            self.volumes.wait_for(&written).await;
            if !is_for(&written, claim) {
                return Err(StatusError::conflict(
                    self.volumes.info(),
                    volume_name,
                    "somebody else has taken the volume",
                ));
            }
        }
        self.set_volume_phase(volume, "Bound", "").await?;
        let (namespace, name) = (text(&claim_meta, "namespace"), text(&claim_meta, "name"));
        let chosen = text(&claim["spec"], "volumeName").is_empty();
        if chosen || claim_meta["annotations"][COMPLETED].is_null() {
            let written = self.claims.objects.modify(namespace, name, "", |claim| {
                claim["spec"]["volumeName"] = json!(volume_name);
                claim["metadata"]["annotations"][COMPLETED] = json!("yes");
                if chosen {
                    claim["metadata"]["annotations"][BY_CONTROLLER] = json!("yes");
                }
                true
            });
            self.claims.wait_for(&written.await?).await;
        }
        if text(&claim["status"], "phase") != "Bound" {
            let status = json!({
                "phase": "Bound", "accessModes": volume["spec"]["accessModes"], "capacity": volume["spec"]["capacity"],
            });
            self.set_claim_status(claim, status).await?;
        }
        Ok(())
    }

    async fn pend(&self, claim: &Arc<Value>) -> Result<(), StatusError> {
        if text(&claim["status"], "phase") == "Pending" {
            return Ok(());
        }
        self.set_claim_status(claim, json!({"phase": "Pending"})).await
    }

    async fn set_claim_status(&self, claim: &Value, fields: Value) -> Result<(), StatusError> {
        let metadata = &claim["metadata"];
        let written =
            self.claims.objects.modify(text(metadata, "namespace"), text(metadata, "name"), "status", |claim| {
                json_patch::merge(&mut claim["status"], &fields);
                true
            });
        self.claims.wait_for(&written.await?).await;
        Ok(())
    }

    async fn look_at_volume(&self, key: &Key) -> Outcome {
        let Some(volume) = self.volumes.get("", &key.name) else { return Ok(None) };
        let reference = &volume["spec"]["claimRef"];
        if !reference.is_object() || text(reference, "uid").is_empty() {
            self.set_volume_phase(&volume, "Available", "").await?;
            return Ok(None);
        }
        let (namespace, name) = (text(reference, "namespace"), text(reference, "name"));
        let mut claim = self.claims.get(namespace, name).filter(|claim| is_for(&volume, claim));
        if claim.is_none() {
            // The cache of claims may be behind that of volumes; nothing is given up for that.
            claim = match self.claims.objects.get(namespace, name).await {
                Ok(claim) if is_for(&volume, &claim) => Some(Arc::new(claim)),
                Ok(_) => None,
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
        }
        match claim {
            None => self.release(&volume).await?,
            Some(claim) if claim["spec"]["volumeName"] == volume["metadata"]["name"] => {
                self.set_volume_phase(&volume, "Bound", "").await?;
            }
            // The claim's own key binds it.
            Some(claim) if text(&claim["spec"], "volumeName").is_empty() => {}
            Some(_) => self.give_back(&volume).await?,
        }
        Ok(None)
    }

    /// The claim was bound to another volume.
    async fn give_back(&self, volume: &Value) -> Result<(), StatusError> {
        let by_controller = volume["metadata"]["annotations"][BY_CONTROLLER].is_string();
        let written = self.volumes.objects.modify("", text(&volume["metadata"], "name"), "", |volume| {
            if by_controller {
                remove(&mut volume["spec"], "claimRef");
                remove(&mut volume["metadata"]["annotations"], BY_CONTROLLER);
            } else {
                remove(&mut volume["spec"]["claimRef"], "uid");
            }
            true
        });
        self.volumes.wait_for(&written.await?).await;
        Ok(())
    }

    /// The claim is gone.
    async fn release(&self, volume: &Arc<Value>) -> Result<(), StatusError> {
        let phase = text(&volume["status"], "phase");
        if phase != "Failed" {
            self.set_volume_phase(volume, "Released", "").await?;
        }
        let policy = text(&volume["spec"], "persistentVolumeReclaimPolicy");
        // Who has made it takes it away.
        let outside =
            volume["metadata"]["annotations"][PROVISIONED_BY].is_string() || volume["spec"]["csi"].is_object();
        if policy == "Retain" || phase == "Failed" || outside && policy == "Delete" {
            return Ok(());
        }
        let name = text(&volume["metadata"], "name");
        let (what, reason) = match policy {
            "Recycle" => ("recycler", "VolumeFailedRecycle"),
            _ => ("deleter", "VolumeFailedDelete"),
        };
        let message = format!("error getting {what} volume plugin for volume \"{name}\": no volume plugin matched");
        self.recorder.warning(volume, reason, message.clone());
        self.set_volume_phase(volume, "Failed", &message).await
    }

    async fn set_volume_phase(&self, volume: &Value, phase: &str, message: &str) -> Result<(), StatusError> {
        if text(&volume["status"], "phase") == phase {
            return Ok(());
        }
        let now = crate::clock::seconds_text(crate::clock::now());
        let written = self.volumes.objects.modify("", text(&volume["metadata"], "name"), "status", |volume| {
            if text(&volume["status"], "phase") == phase {
                return false;
            }
            volume["status"] = json!({"phase": phase, "lastPhaseTransitionTime": now});
            if !message.is_empty() {
                volume["status"]["message"] = json!(message);
            }
            true
        });
        self.volumes.wait_for(&written.await?).await;
        Ok(())
    }
}

fn remove(object: &mut Value, key: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(key);
    }
}
