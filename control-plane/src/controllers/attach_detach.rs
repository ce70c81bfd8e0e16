//! Volumes of drivers that attach them to nodes (A9.17): a VolumeAttachment for each that a pod on the node wants, its deletion when none
//! does and the node has let go of it, and `status.volumesAttached` of the Node, for which the node's agent waits.
//!
//! A key is a node's name. One worker: a volume cannot go to two nodes at once. The attaching itself is the business of the driver.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Context;
use super::deployment_status::condition;
use super::informer::Informer;
use super::owner::{is_being_deleted, is_controlled_by};
use super::queue::{Key, Queue};
use crate::api::{DeleteOptions, PatchType, WriteOptions};
use crate::clock;
use crate::recorder::Recorder;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};
use crate::resources::volume_match::claims_of;

/// A node that does not answer is waited for so long before its volumes are taken from it, as upstream.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(360);
/// A driver that does not attach within this time is told of.
const ATTACH_LIMIT: Duration = Duration::from_secs(120);
/// What waits for time to pass or for another node is looked at so often.
const AGAIN: Duration = Duration::from_secs(5);
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

#[derive(Clone)]
struct Attacher {
    pods: Arc<Informer>,
    nodes: Arc<Informer>,
    claims: Arc<Informer>,
    volumes: Arc<Informer>,
    drivers: Arc<Informer>,
    attachments: Arc<Informer>,
    recorder: Recorder,
    notes: Arc<Mutex<Notes>>,
}

/// What is remembered between two looks at a node; lost, it is found out anew.
#[derive(Default)]
struct Notes {
    /// Since when an attachment, of a node, is not wanted.
    unwanted: BTreeMap<(String, String), Instant>,
    /// What was last told of an attachment, to a node, that does not come about.
    told: BTreeMap<(String, String), String>,
}

/// A volume that pods on a node want attached.
struct Wanted {
    volume: Arc<Value>,
    pods: Vec<Arc<Value>>,
}

/// Registers callbacks and returns what starts the worker.
pub(super) fn register(context: &Context) -> Box<dyn FnOnce(&Context) + Send> {
    let attacher = Attacher {
        pods: context.informers.of("", "pods"),
        nodes: context.informers.of("", "nodes"),
        claims: context.informers.of("", "persistentvolumeclaims"),
        volumes: context.informers.of("", "persistentvolumes"),
        drivers: context.informers.of("storage.k8s.io", "csidrivers"),
        attachments: context.informers.of("storage.k8s.io", "volumeattachments"),
        recorder: context.recorder.of("attachdetach-controller"),
        notes: Arc::default(),
    };
    let queue = Queue::default();
    let of_pod = queue.clone();
    attacher.pods.on_change(move |old, new| {
        let Some(pod) = new.or(old) else { return };
        let node = text(&pod["spec"], "nodeName");
        if !node.is_empty() && !claims_of(pod).is_empty() {
            of_pod.add(Key::new("", node));
        }
    });
    let of_node = queue.clone();
    attacher.nodes.on_change(move |old, new| {
        let Some(node) = new.or(old) else { return };
        let seen = |node: &Value| {
            let ready = condition(&node["status"], "Ready").map(|ready| ready["status"].clone());
            (node["status"]["volumesInUse"].clone(), node["spec"]["taints"].clone(), ready)
        };
        if old.zip(new).is_none_or(|(old, new)| seen(old) != seen(new)) {
            of_node.add(Key::of(node));
        }
    });
    let (of_attachment, nodes) = (queue.clone(), Arc::clone(&attacher.nodes));
    attacher.attachments.on_change(move |old, new| {
        if new.is_none() {
            // Another node may have waited for it.
            nodes.list("").iter().for_each(|node| of_attachment.add(Key::of(node)));
        }
        if let Some(attachment) = new.or(old) {
            of_attachment.add(Key::new("", text(&attachment["spec"], "nodeName")));
        }
    });
    let (of_claim, pods) = (queue.clone(), Arc::clone(&attacher.pods));
    attacher.claims.on_change(move |old, new| {
        let phase = |claim: &Value| claim["status"]["phase"].clone();
        if old.zip(new).is_some_and(|(old, new)| phase(old) == phase(new)) {
            return;
        }
        let Some(claim) = new.or(old) else { return };
        let name = text(&claim["metadata"], "name");
        for pod in pods.list(text(&claim["metadata"], "namespace")) {
            let node = text(&pod["spec"], "nodeName");
            if !node.is_empty() && claims_of(&pod).iter().any(|wanted| wanted == name) {
                of_claim.add(Key::new("", node));
            }
        }
    });
    let (of_driver, nodes) = (queue.clone(), Arc::clone(&attacher.nodes));
    attacher.drivers.on_change(move |_, _| nodes.list("").iter().for_each(|node| of_driver.add(Key::of(node))));
    Box::new(move |context| {
        queue.work("attach-detach", 1, &context.stop, move |key| {
            let attacher = attacher.clone();
            async move { attacher.look_at(&key.name).await }
        });
    })
}

impl Attacher {
    async fn look_at(&self, name: &str) -> Result<Option<Duration>, StatusError> {
        let node = match self.nodes.objects.get("", name).await {
            Ok(node) => Some(node),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        if node.as_ref().is_some_and(|node| node["metadata"]["annotations"][MANAGED] != "true") {
            return Ok(None);
        }
        let wanted = self.wanted(name);
        let all = self.attachments.list("");
        let here: Vec<&Arc<Value>> = all.iter().filter(|it| text(&it["spec"], "nodeName") == name).collect();
        let (mut again, now) = (false, clock::instant());

        let (mut leaving, mut attached) = (Vec::new(), BTreeMap::new());
        for attachment in here.iter().filter(|it| !is_being_deleted(it)) {
            let own = text(&attachment["metadata"], "name");
            // What others have made for purposes of their own has another name, or another volume.
            let Some(volume) = self.volume_of(attachment).filter(|v| attachment_name(v, name) == own) else { continue };
            let in_use = unique_name(&volume);
            if !wanted.contains_key(own) {
                let key = (name.to_owned(), own.to_owned());
                let since = self.note(|notes| *notes.unwanted.entry(key).or_insert(now));
                if may_detach(node.as_ref(), &in_use, now.saturating_duration_since(since)) {
                    leaving.push(own.to_owned());
                    continue;
                }
                again = true;
            }
            if attachment["status"]["attached"] == true {
                attached.insert(in_use, own.to_owned());
            }
        }
        self.note(|notes| {
            let is_here = |own: &str| here.iter().any(|it| text(&it["metadata"], "name") == own);
            notes.unwanted.retain(|(node, own), _| node != name || is_here(own) && !wanted.contains_key(own));
            notes.told.retain(|(node, own), _| node != name || wanted.contains_key(own));
        });

        // The node must not begin to use what is about to be detached.
        if let Some(node) = &node {
            self.tell_node(node, &attached, &wanted).await?;
        }
        for own in leaving {
            match self.attachments.objects.delete("", &own, &DeleteOptions::default()).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        for (own, wanted) in &wanted {
            let found = here.iter().find(|it| text(&it["metadata"], "name") == own);
            again |= match found {
                Some(attachment) => self.watch_over(attachment, name, wanted),
                None => self.attach(own, name, wanted, &all, node.is_some()).await?,
            };
        }
        Ok(again.then_some(AGAIN))
    }

    fn note<R>(&self, act: impl FnOnce(&mut Notes) -> R) -> R {
        // No code that can panic runs under this lock, so a poisoned one is whole.
        act(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The volumes that the node's pods want attached, by the names of their attachments.
    fn wanted(&self, node: &str) -> BTreeMap<String, Wanted> {
        let mut all = BTreeMap::<String, Wanted>::new();
        for pod in self.pods.list("").into_iter().filter(|pod| text(&pod["spec"], "nodeName") == node && !is_over(pod))
        {
            for claim in claims_of(&pod) {
                let Some(volume) = self.behind(&pod, &claim) else { continue };
                let entry = all.entry(attachment_name(&volume, node));
                entry.or_insert_with(|| Wanted { volume, pods: Vec::new() }).pods.push(Arc::clone(&pod));
            }
        }
        all
    }

    /// The volume behind a pod's claim, if it is to be attached.
    fn behind(&self, pod: &Value, name: &str) -> Option<Arc<Value>> {
        let claim = self.claims.get(text(&pod["metadata"], "namespace"), name)?;
        let of_pod = items(&pod["spec"], "volumes").any(|volume| {
            volume["ephemeral"].is_object()
                && format!("{}-{}", text(&pod["metadata"], "name"), text(volume, "name")) == name
        });
        if text(&claim["status"], "phase") != "Bound" || of_pod && !is_controlled_by(&claim, pod) {
            return None;
        }
        let volume = self.volumes.get("", text(&claim["spec"], "volumeName"))?;
        let is_its = volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"];
        let driver = volume["spec"]["csi"]["driver"].as_str()?;
        let attaches = self.drivers.get("", driver).is_none_or(|driver| driver["spec"]["attachRequired"] != false);
        (is_its && attaches).then_some(volume)
    }

    fn volume_of(&self, attachment: &Value) -> Option<Arc<Value>> {
        let volume = self.volumes.get("", text(&attachment["spec"]["source"], "persistentVolumeName"))?;
        volume["spec"]["csi"].is_object().then_some(volume)
    }

    /// Writes what is attached, by name, and tells the pods that waited for it.
    async fn tell_node(
        &self,
        node: &Value,
        attached: &BTreeMap<String, String>,
        wanted: &BTreeMap<String, Wanted>,
    ) -> Result<(), StatusError> {
        let known: BTreeSet<&str> = items(&node["status"], "volumesAttached").map(|it| text(it, "name")).collect();
        if attached.keys().map(String::as_str).eq(known.iter().copied()) {
            return Ok(());
        }
        let list: Vec<Value> = attached.keys().map(|name| json!({"name": name, "devicePath": ""})).collect();
        let metadata = json!({"uid": node["metadata"]["uid"]});
        let patch = json!({"metadata": metadata, "status": {"volumesAttached": list}});
        let (name, options) = (text(&node["metadata"], "name"), WriteOptions::default());
        match self.nodes.objects.patch("", name, "status", PatchType::Merge, &patch, &options).await {
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        for (_, own) in attached.iter().filter(|(unique, _)| !known.contains(unique.as_str())) {
            let Some(wanted) = wanted.get(own) else { continue };
            let message = format!("AttachVolume.Attach succeeded for volume \"{}\" ", wanted.name());
            for pod in &wanted.pods {
                self.recorder.normal(pod, "SuccessfulAttachVolume", message.clone());
            }
        }
        Ok(())
    }

    /// An attachment that is wanted; whether to look again.
    fn watch_over(&self, attachment: &Value, node: &str, wanted: &Wanted) -> bool {
        let own = text(&attachment["metadata"], "name");
        let status = &attachment["status"];
        if status["attached"] == true && !is_being_deleted(attachment) {
            self.note(|notes| notes.told.remove(&(node.to_owned(), own.to_owned())));
            return false;
        }
        let made = text(&attachment["metadata"], "creationTimestamp").parse::<jiff::Timestamp>();
        let late = made.is_ok_and(|made| clock::now().duration_since(made).unsigned_abs() >= ATTACH_LIMIT);
        let error = &status["attachError"];
        let (what, why) = if is_being_deleted(attachment) {
            (String::new(), "volume attachment is being deleted".to_owned())
        } else if error.is_object() {
            (text(error, "time").to_owned(), text(error, "message").to_owned())
        } else if late {
            let (driver, handle) = (wanted.driver(), wanted.handle());
            let why =
                format!("timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}");
            (String::new(), why)
        } else {
            return true;
        };
        let message = format!("AttachVolume.Attach failed for volume \"{}\" : {why}", wanted.name());
        self.tell((own, node), &what, wanted, |_| message.clone());
        true
    }

    /// Tells the pods once why a volume is not attached; `what` tells two failures of the same text apart.
    fn tell(&self, (own, node): (&str, &str), what: &str, wanted: &Wanted, message: impl Fn(&Value) -> String) {
        let text = wanted.pods.first().map(|pod| format!("{what} {}", message(pod))).unwrap_or_default();
        let key = (node.to_owned(), own.to_owned());
        if self.note(|notes| notes.told.insert(key, text.clone())).as_ref() == Some(&text) {
            return;
        }
        for pod in &wanted.pods {
            self.recorder.warning(pod, "FailedAttachVolume", message(pod));
        }
    }

    /// Makes an attachment, unless the volume is somewhere else and may be in one place only; whether to look again.
    async fn attach(
        &self,
        own: &str,
        node: &str,
        wanted: &Wanted,
        all: &[Arc<Value>],
        there: bool,
    ) -> Result<bool, StatusError> {
        if !there {
            return Ok(false);
        }
        let elsewhere: BTreeSet<&str> = all
            .iter()
            .map(|it| (text(&it["metadata"], "name"), text(&it["spec"], "nodeName")))
            .filter(|(name, other)| *other != node && *name == attachment_name(&wanted.volume, other))
            .map(|(_, other)| other)
            .collect();
        if !elsewhere.is_empty() && is_exclusive(&wanted.volume) {
            let users: Vec<Arc<Value>> = elsewhere
                .iter()
                .flat_map(|other| self.wanted(other))
                .filter(|(_, it)| it.name() == wanted.name())
                .flat_map(|(_, it)| it.pods)
                .collect();
            self.tell((own, node), "", wanted, |pod| multi_attach(wanted.name(), pod, &users));
            return Ok(true);
        }
        let attachment = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": own},
            "spec": {"attacher": wanted.driver(), "nodeName": node, "source": {"persistentVolumeName": wanted.name()}},
        });
        match self.attachments.objects.create("", attachment, &WriteOptions::default()).await {
            Ok(made) => self.attachments.wait_for(&made).await,
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

impl Wanted {
    fn name(&self) -> &str {
        text(&self.volume["metadata"], "name")
    }

    fn driver(&self) -> &str {
        text(&self.volume["spec"]["csi"], "driver")
    }

    fn handle(&self) -> &str {
        text(&self.volume["spec"]["csi"], "volumeHandle")
    }
}

/// As agents look for it.
fn attachment_name(volume: &Value, node: &str) -> String {
    let source = &volume["spec"]["csi"];
    let whole = format!("{}{}{node}", text(source, "volumeHandle"), text(source, "driver"));
    format!("csi-{}", hex::encode(Sha256::digest(whole)))
}

/// The volume in lists of a Node's status.
fn unique_name(volume: &Value) -> String {
    let source = &volume["spec"]["csi"];
    format!("kubernetes.io/csi/{}^{}", text(source, "driver"), text(source, "volumeHandle"))
}

/// The pod needs its volumes no longer.
fn is_over(pod: &Value) -> bool {
    let runs = || {
        let all = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
        all.iter().any(|list| items(&pod["status"], list).any(|it| it["state"]["terminated"].is_null()))
    };
    matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed")
        || is_being_deleted(pod) && {
            let told = pod["status"]["containerStatuses"].as_array().is_some_and(|all| !all.is_empty());
            told && !runs()
        }
}

/// Whether a volume that nobody wants may be taken from a node.
fn may_detach(node: Option<&Value>, unique: &str, unwanted_for: Duration) -> bool {
    let Some(node) = node else { return unwanted_for >= UNMOUNT_LIMIT };
    let mounted = items(&node["status"], "volumesInUse").any(|name| name == unique);
    let out = items(&node["spec"], "taints").any(|taint| taint["key"] == OUT_OF_SERVICE);
    let ready = condition(&node["status"], "Ready").is_some_and(|ready| ready["status"] == "True");
    !mounted || out || !ready && unwanted_for >= UNMOUNT_LIMIT
}

/// Whether it may be attached to one node only. Where it does not say, the driver knows.
fn is_exclusive(volume: &Value) -> bool {
    let mut modes = items(&volume["spec"], "accessModes").peekable();
    modes.peek().is_some() && modes.all(|mode| mode != "ReadWriteMany" && mode != "ReadOnlyMany")
}

/// Why a volume does not come; names of pods are for those of the same namespace.
fn multi_attach(volume: &str, pod: &Value, users: &[Arc<Value>]) -> String {
    let namespace = &pod["metadata"]["namespace"];
    let (ours, others): (Vec<_>, Vec<_>) = users.iter().partition(|user| user["metadata"]["namespace"] == *namespace);
    let names: Vec<&str> = ours.iter().map(|user| text(&user["metadata"], "name")).collect();
    let why = match (names.as_slice(), others.len()) {
        ([], 0) => "Volume is already exclusively attached to one node and can't be attached to another".to_owned(),
        ([], n) => format!("Volume is already used by {n} pod(s) in different namespaces"),
        (names, 0) => format!("Volume is already used by pod(s) {}", names.join(", ")),
        (names, n) => {
            format!("Volume is already used by pod(s) {} and {n} pod(s) in different namespaces", names.join(", "))
        }
    };
    format!("Multi-Attach error for volume \"{volume}\" {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_stays_while_its_node_uses_it() {
        // A9.17
        let node = |in_use: &str, ready: &str, taint: &str| {
            json!({"spec": {"taints": [{"key": taint}]},
                "status": {"volumesInUse": [in_use], "conditions": [{"type": "Ready", "status": ready}]}})
        };
        let (now, late) = (Duration::ZERO, UNMOUNT_LIMIT);
        for (node, waited, may) in [
            (Some(node("v", "True", "x")), late, false),
            (Some(node("w", "True", "x")), now, true),
            (Some(node("w", "Unknown", "x")), now, true),
            (Some(node("v", "Unknown", "x")), now, false),
            (Some(node("v", "Unknown", "x")), late, true),
            (Some(node("v", "Unknown", OUT_OF_SERVICE)), now, true),
            (None, now, false),
            (None, late, true),
        ] {
            assert_eq!(may_detach(node.as_ref(), "v", waited), may, "{node:?} {waited:?}");
        }
    }

    #[test]
    fn what_may_be_in_one_place_only_says_so() {
        // A9.23
        for (modes, exclusive) in [
            (json!(["ReadWriteOnce"]), true),
            (json!(["ReadWriteOncePod"]), true),
            (json!(["ReadWriteOnce", "ReadOnlyMany"]), false),
            (json!(["ReadWriteMany"]), false),
            (json!([]), false),
        ] {
            assert_eq!(is_exclusive(&json!({"spec": {"accessModes": modes}})), exclusive, "{modes}");
        }
        let pod = |name: &str, namespace: &str| Arc::new(json!({"metadata": {"name": name, "namespace": namespace}}));
        let of = |users: &[Arc<Value>]| multi_attach("pv", &pod("mine", "a"), users);
        let head = "Multi-Attach error for volume \"pv\" Volume is already ";
        let tail = |text: &str| format!("{head}{text}");
        assert_eq!(of(&[]), tail("exclusively attached to one node and can't be attached to another"));
        assert_eq!(of(&[pod("x", "a"), pod("y", "a")]), tail("used by pod(s) x, y"));
        assert_eq!(of(&[pod("x", "b")]), tail("used by 1 pod(s) in different namespaces"));
        assert_eq!(of(&[pod("x", "b"), pod("y", "a")]), tail("used by pod(s) y and 1 pod(s) in different namespaces"));
    }

    #[test]
    fn pods_need_volumes_until_their_containers_have_ended() {
        // A9.17
        let pod = |phase: &str, deleted: bool, statuses: Value| {
            let deleted = if deleted { json!("2026-01-01T00:00:00Z") } else { json!(null) };
            json!({"metadata": {"deletionTimestamp": deleted}, "status": {"phase": phase, "containerStatuses": statuses}})
        };
        let (ended, runs) = (json!([{"state": {"terminated": {}}}]), json!([{"state": {"running": {}}}]));
        for (pod, over) in [
            (pod("Running", false, runs.clone()), false),
            (pod("Running", true, runs), false),
            (pod("Running", true, ended.clone()), true),
            (pod("Running", false, ended), false),
            (pod("Pending", true, json!([])), false),
            (pod("Failed", false, json!([])), true),
        ] {
            assert_eq!(is_over(&pod), over, "{pod}");
        }
    }
}
