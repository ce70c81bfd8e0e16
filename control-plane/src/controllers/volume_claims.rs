//! Claims of generic ephemeral volumes, and the finalizers that keep claims and volumes while they are used (C7.11).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::owner::{controller_reference, is_being_deleted, is_controlled_by};
use super::queue::{Key, Queue};
use crate::api::WriteOptions;
use crate::recorder::Recorder;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};
use crate::resources::volume_match::claims_of;

const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

#[derive(Clone)]
struct Claims {
    claims: Arc<Informer>,
    volumes: Arc<Informer>,
    pods: Arc<Informer>,
    recorder: Recorder,
}

/// Registers callbacks and returns what starts the workers.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let controller = Claims {
        claims: context.informers.of("", "persistentvolumeclaims"),
        volumes: context.informers.of("", "persistentvolumes"),
        pods: context.informers.of("", "pods"),
        recorder: context.recorder.of("ephemeral_volume"),
    };
    let (protection, ephemeral) = (Queue::default(), Queue::default());
    for informer in [&controller.claims, &controller.volumes] {
        let queue = protection.clone();
        informer.on_change(move |_, new| {
            if let Some(object) = new.filter(|object| is_being_deleted(object)) {
                queue.add(Key::of(object));
            }
        });
    }
    let (of_pod, of_ephemeral) = (protection.clone(), ephemeral.clone());
    controller.pods.on_change(move |old, new| {
        let Some(pod) = new.or(old) else { return };
        if new.is_none() || is_over(pod) {
            for claim in claims_of(pod) {
                of_pod.add(Key::new(text(&pod["metadata"], "namespace"), &claim));
            }
        } else if items(&pod["spec"], "volumes").any(|volume| volume["ephemeral"].is_object()) {
            of_ephemeral.add(Key::of(pod));
        }
    });
    Box::new(move |context| {
        let of_objects = controller.clone();
        protection.work("volume-protection", 1, &context.stop, move |key| {
            let controller = of_objects.clone();
            async move { controller.unprotect(&key).await }
        });
        ephemeral.work("ephemeral-volume", 1, &context.stop, move |key| {
            let controller = controller.clone();
            async move { controller.make_claims(&key).await }
        });
    })
}

fn is_over(pod: &Value) -> bool {
    matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed")
}

impl Claims {
    /// Lets go of what nobody uses any more.
    async fn unprotect(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let (informer, finalizer) = match key.namespace.as_str() {
            "" => (&self.volumes, VOLUME_PROTECTION),
            _ => (&self.claims, CLAIM_PROTECTION),
        };
        let Some(object) = informer.get(&key.namespace, &key.name) else { return Ok(None) };
        if !is_being_deleted(&object) || !items(&object["metadata"], "finalizers").any(|name| name == finalizer) {
            return Ok(None);
        }
        let used = if key.namespace.is_empty() {
            text(&object["status"], "phase") == "Bound"
        } else {
            self.is_used(key).await?
        };
        if used {
            return Ok(None);
        }
        let change = |object: &mut Value| {
            let finalizers = object["metadata"]["finalizers"].as_array_mut();
            finalizers.is_some_and(|all| {
                let before = all.len();
                all.retain(|name| name != finalizer);
                all.len() < before
            })
        };
        match informer.objects.modify(&key.namespace, &key.name, "", change).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(None),
        }
    }

    /// Whether a pod on a node uses the claim. Asked of the store, for a pod may just have come.
    async fn is_used(&self, key: &Key) -> Result<bool, StatusError> {
        let pods = self.pods.objects.list(&key.namespace, &crate::api::ListOptions::default()).await?.items;
        Ok(pods.iter().any(|pod| {
            !is_over(pod) && !text(&pod["spec"], "nodeName").is_empty() && claims_of(pod).contains(&key.name)
        }))
    }

    async fn make_claims(&self, key: &Key) -> Result<Option<Duration>, StatusError> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(None) };
        if is_being_deleted(&pod) || is_over(&pod) {
            return Ok(None);
        }
        for volume in items(&pod["spec"], "volumes").filter(|volume| volume["ephemeral"].is_object()) {
            let name = format!("{}-{}", key.name, text(volume, "name"));
            if let Some(existing) = self.claims.get(&key.namespace, &name) {
                if !is_controlled_by(&existing, &pod) {
                    let message = format!(
                        "PVC {0}/{name} was not created for pod {0}/{1} (pod is not owner)",
                        key.namespace, key.name
                    );
                    self.recorder.warning(&pod, "FailedBinding", message);
                }
                continue;
            }
            let template = &volume["ephemeral"]["volumeClaimTemplate"];
            let mut claim = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {
                    "name": name, "namespace": key.namespace, "ownerReferences": [controller_reference(&pod)],
                },
                "spec": template["spec"],
            });
            for part in ["labels", "annotations"] {
                if template["metadata"][part].is_object() {
                    claim["metadata"][part] = template["metadata"][part].clone();
                }
            }
            match self.claims.objects.create(&key.namespace, claim, &WriteOptions::default()).await {
                Ok(written) => self.claims.wait_for(&written).await,
                Err(error) if error.is_already_exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
