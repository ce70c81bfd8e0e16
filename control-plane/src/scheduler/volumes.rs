//! Where a pod can have its volumes (C8.2, VolumeBinding). Read only for pods that have claims, when they are decided on.

use serde_json::{Value, json};

use super::nodes::NodeState;
use crate::api::{Cluster, ListOptions, Objects};
use crate::resources::status::StatusError;
use crate::resources::tree::text;
use crate::resources::volume_match::{best, class_of, usable_on};

/// The controller binds a claim that waits for its first consumer to what can be used there.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// The objects that decide.
pub(super) struct VolumeObjects {
    claims: Objects,
    volumes: Objects,
    classes: Objects,
}

/// What a pod's claims ask of a node.
pub(super) struct Wishes {
    /// The volumes that it has.
    bound: Vec<Value>,
    /// Claims that wait for a node, and whether somebody makes volumes for them.
    waiting: Vec<(Value, bool)>,
    volumes: Vec<Value>,
}

/// Why the pod cannot be placed at all, or what is asked of its node.
pub(super) type Answer = Result<Wishes, String>;

impl VolumeObjects {
    pub(super) fn new(cluster: &Cluster) -> Self {
        Self {
            claims: cluster.objects("", "persistentvolumeclaims"),
            volumes: cluster.objects("", "persistentvolumes"),
            classes: cluster.objects("storage.k8s.io", "storageclasses"),
        }
    }

    /// Looks at the claims of a pod.
    pub(super) async fn wishes(&self, namespace: &str, claims: &[String]) -> Result<Answer, StatusError> {
        let mut wishes = Wishes { bound: Vec::new(), waiting: Vec::new(), volumes: Vec::new() };
        for name in claims {
            let claim = match self.claims.get(namespace, name).await {
                Ok(claim) => claim,
                Err(error) if error.is_not_found() => {
                    return Ok(Err(format!("persistentvolumeclaim \"{name}\" not found")));
                }
                Err(error) => return Err(error),
            };
            if !text(&claim["metadata"], "deletionTimestamp").is_empty() {
                return Ok(Err(format!("persistentvolumeclaim \"{name}\" is being deleted")));
            }
            if text(&claim["status"], "phase") == "Lost" {
                let volume = text(&claim["spec"], "volumeName");
                let why =
                    format!("persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\"");
                return Ok(Err(why));
            }
            if text(&claim["status"], "phase") == "Bound" {
                match self.volumes.get("", text(&claim["spec"], "volumeName")).await {
                    Ok(volume) => wishes.bound.push(volume),
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            let class = match self.classes.get("", class_of(&claim).unwrap_or_default()).await {
                Ok(class) => class,
                Err(error) if error.is_not_found() => Value::Null,
                Err(error) => return Err(error),
            };
            if text(&class, "volumeBindingMode") != "WaitForFirstConsumer" {
                return Ok(Err("pod has unbound immediate PersistentVolumeClaims".to_owned()));
            }
            let made = text(&class, "provisioner") != "kubernetes.io/no-provisioner";
            wishes.waiting.push((claim, made));
        }
        if !wishes.waiting.is_empty() {
            wishes.volumes = self.volumes.list("", &ListOptions::default()).await?.items;
        }
        Ok(Ok(wishes))
    }

    /// Tells the controller where the claims are to be bound; whether there was anything to tell.
    pub(super) async fn select(&self, wishes: &Wishes, node: &str) -> Result<bool, StatusError> {
        for (claim, _) in &wishes.waiting {
            let metadata = &claim["metadata"];
            let change = |claim: &mut Value| {
                let changed = claim["metadata"]["annotations"][SELECTED_NODE] != json!(node);
                claim["metadata"]["annotations"][SELECTED_NODE] = json!(node);
                changed
            };
            self.claims.modify(text(metadata, "namespace"), text(metadata, "name"), "", change).await?;
        }
        Ok(!wishes.waiting.is_empty())
    }
}

impl Wishes {
    /// Why the node cannot be; upstream's words.
    pub(super) fn refusal(&self, node: &NodeState) -> Option<&'static str> {
        let usable = |volume: &Value| usable_on(volume, &node.name, &node.labels);
        if !self.bound.iter().all(usable) {
            return Some("node(s) didn't match PersistentVolume's node affinity");
        }
        let can_have = |(claim, made): &(Value, bool)| {
            let selected = claim["metadata"]["annotations"][SELECTED_NODE].as_str();
            // The choice was made before; the volume for it may be on its way.
            selected.is_none_or(|name| name == node.name)
                && (*made || best(claim, self.volumes.iter(), usable).is_some())
        };
        if self.waiting.iter().all(can_have) {
            None
        } else {
            Some("node(s) didn't find available persistent volumes to bind")
        }
    }
}
