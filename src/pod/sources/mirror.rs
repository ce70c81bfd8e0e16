//! Mirror pods: what the API server shows of static pods, and how their status gets there (A7.3).
//!
//! The mirror is made when there is none, made anew when it shows another version or somebody deletes it, and deleted when the static
//! pod is wanted no more and has ended. The static pod itself never notices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use stoker_model::handle::{ApiError, MirrorApi, NodeFeed, PodApi};
use stoker_model::names;
use stoker_model::pod::{LocalPod, PodRef, PodUid};
use tokio::sync::Notify;

use super::{FullName, Wanted, WantedFeed, annotation, full_name, is_static};
use crate::pod::shared::Directory;

/// First and longest delay after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// So often it is looked whether a static pod that ends has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What was last reported of each static pod. Cloning is cheap.
#[derive(Clone, Default)]
pub(in crate::pod) struct Reported(Arc<Inner>);

#[derive(Default)]
struct Inner {
    last: Mutex<BTreeMap<PodUid, PodStatus>>,
    ended: Notify,
}

impl Reported {
    fn put(&self, uid: &PodUid, status: &PodStatus) {
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone(), status.clone());
        if ended {
            self.0.ended.notify_one();
        }
    }

    fn get(&self, uid: &PodUid) -> Option<PodStatus> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// The phase last reported.
    pub(super) fn phase(&self, uid: &PodUid) -> Option<String> {
        self.get(uid)?.phase
    }

    /// Waits until a static pod was reported to have ended.
    pub(super) async fn ended(&self) {
        self.0.ended.notified().await;
    }

    fn retain(&self, keep: impl Fn(&PodUid) -> bool) {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| keep(uid));
    }
}

/// [`PodApi`] for all pods: what is said of a static pod goes to its mirror.
pub(in crate::pod) struct Mirrors {
    /// For pods that the API server knows.
    pub(in crate::pod) api: Arc<dyn PodApi>,
    /// What the sources want.
    pub(in crate::pod) wanted: WantedFeed,
    /// What was said.
    pub(in crate::pod) reported: Reported,
    /// Every pod that has a worker.
    pub(in crate::pod) directory: Directory,
}

impl Mirrors {
    /// Whether the pod is static, also when it is wanted no more and ends.
    fn is_static(&self, uid: &PodUid) -> bool {
        let of_source = {
            let wanted = self.wanted.borrow();
            wanted.pods.contains_key(uid).then(|| wanted.statics.contains_key(uid))
        };
        of_source.unwrap_or_else(|| self.directory.get(uid).is_some_and(|pod| is_static(pod.pod())))
    }
}

/// The mirror of a pod, where there is one that shows this version.
fn mirror_of(wanted: &Wanted, pod: &PodRef) -> Option<PodRef> {
    let mirror = wanted.mirrors.get(&(pod.namespace.clone(), pod.name.clone()))?;
    (annotation(mirror, names::CONFIG_MIRROR) == Some(pod.uid.as_str())).then(|| PodRef::of(mirror))
}

#[async_trait]
impl PodApi for Mirrors {
    async fn patch_status(&self, pod: &PodRef, status: &PodStatus) -> Result<(), ApiError> {
        if !self.is_static(&pod.uid) {
            return self.api.patch_status(pod, status).await;
        }
        self.reported.put(&pod.uid, status);
        let mirror = mirror_of(&self.wanted.borrow(), pod);
        match mirror {
            // The mirror that is made next gets it.
            None => Ok(()),
            Some(mirror) => match self.api.patch_status(&mirror, status).await {
                Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => Ok(()),
                other => other,
            },
        }
    }

    async fn delete_finished(&self, pod: &PodRef) -> Result<(), ApiError> {
        if self.is_static(&pod.uid) { Ok(()) } else { self.api.delete_finished(pod).await }
    }
}

/// What to do about one mirror.
#[derive(Clone, PartialEq, Debug)]
enum Action {
    Create(Box<Pod>),
    Delete(PodRef),
}

/// What is to be done now, and whether something waits for a pod's end. `ours`: mirrors that we have deleted already.
fn decide(
    wanted: &Wanted,
    alive: &BTreeSet<FullName>,
    node: (&str, Option<&str>),
    ours: &BTreeSet<PodUid>,
) -> (Vec<Action>, bool) {
    let mut actions = Vec::new();
    let mut waits = false;
    if !wanted.listed {
        return (actions, waits);
    }
    let mut shown = BTreeSet::new();
    for (uid, pod) in &wanted.statics {
        let name = full_name(pod);
        let mirror = wanted.mirrors.get(&name).filter(|mirror| !ours.contains(&PodRef::of(mirror).uid));
        shown.insert(name);
        if let Some(mirror) = mirror {
            let current = annotation(mirror, names::CONFIG_MIRROR) == Some(uid.as_str());
            if current && mirror.metadata.deletion_timestamp.is_none() {
                continue;
            }
            actions.push(Action::Delete(PodRef::of(mirror)));
        }
        // Nobody may own it before the node is known.
        if let (name, Some(node_uid)) = node {
            actions.push(Action::Create(Box::new(mirror_pod(pod, name, node_uid))));
        }
    }
    for (name, mirror) in wanted.mirrors.iter().filter(|(name, _)| !shown.contains(*name)) {
        let reference = PodRef::of(mirror);
        if !wanted.complete || ours.contains(&reference.uid) {
            continue;
        }
        // As long as the static pod ends, one can look on.
        if alive.contains(name) {
            waits = true;
        } else {
            actions.push(Action::Delete(reference));
        }
    }
    (actions, waits)
}

/// What the API server is given of a static pod.
fn mirror_pod(pod: &Pod, node: &str, node_uid: &str) -> Pod {
    let mut mirror = Pod { status: None, ..pod.clone() };
    let hash = mirror.metadata.uid.take().unwrap_or_default();
    mirror.metadata.annotations.get_or_insert_default().insert(names::CONFIG_MIRROR.into(), hash);
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.into(),
        uid: node_uid.into(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    mirror
}

/// Keeps the mirrors for as long as there are sources.
pub(in crate::pod) async fn keep_mirrors(
    api: Arc<dyn MirrorApi>,
    pods: Arc<dyn PodApi>,
    mut wanted: WantedFeed,
    mut node: NodeFeed,
    reported: Reported,
    directory: Directory,
) {
    let mut keeper =
        Keeper { api, pods, reported, deleted: BTreeSet::new(), made: BTreeMap::new(), told: BTreeMap::new() };
    let mut delay = RETRY.0;
    loop {
        let now = wanted.borrow_and_update().clone();
        let seen = node.borrow_and_update().clone();
        // Of a node without mirrors no pod is looked at.
        let alive: BTreeSet<FullName> = match now.mirrors.is_empty() {
            true => BTreeSet::new(),
            false => directory.all().iter().map(LocalPod::pod).filter(|p| is_static(p)).map(|p| full_name(p)).collect(),
        };
        let (failed, waits) = keeper.round(&now, &alive, (&seen.name, seen.uid.as_deref())).await;
        let wait = match (failed, waits) {
            (true, _) => {
                delay = (delay * 2).min(RETRY.1);
                delay
            }
            (false, true) => LOOK_AGAIN,
            (false, false) => Duration::MAX,
        };
        if !failed {
            delay = RETRY.0;
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Ok(()) = node.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

struct Keeper {
    api: Arc<dyn MirrorApi>,
    pods: Arc<dyn PodApi>,
    reported: Reported,
    /// Mirrors that we have deleted and that still show.
    deleted: BTreeSet<PodUid>,
    /// Mirrors that we have made and that do not show yet, with their version.
    made: BTreeMap<FullName, PodUid>,
    /// Which mirror has been given the last status, by name.
    told: BTreeMap<FullName, PodUid>,
}

impl Keeper {
    /// Whether something failed, and whether something waits.
    async fn round(&mut self, wanted: &Wanted, alive: &BTreeSet<FullName>, node: (&str, Option<&str>)) -> (bool, bool) {
        let shown: BTreeSet<PodUid> = wanted.mirrors.values().map(|mirror| PodRef::of(mirror).uid).collect();
        self.deleted.retain(|uid| shown.contains(uid));
        self.made.retain(|name, hash| {
            let shows = wanted.mirrors.get(name).filter(|mirror| !self.deleted.contains(&PodRef::of(mirror).uid));
            shows.is_none() && wanted.pods.contains_key(hash)
        });
        self.told.retain(|name, uid| wanted.mirrors.get(name).is_some_and(|mirror| PodRef::of(mirror).uid == *uid));
        self.reported.retain(|uid| wanted.pods.contains_key(uid));
        let mut failed = self.pass_on_statuses(wanted).await;
        let (actions, waits) = decide(wanted, alive, node, &self.deleted);
        for action in actions {
            let done = match &action {
                Action::Delete(mirror) => self.delete(mirror).await,
                Action::Create(pod) => self.create(pod).await,
            };
            if let Err(error) = done {
                tracing::warn!(%error, "a mirror of a static pod is not as it should be; it is tried again");
                failed = true;
            }
        }
        (failed, waits)
    }

    /// A mirror that has just appeared has no status yet.
    async fn pass_on_statuses(&mut self, wanted: &Wanted) -> bool {
        let mut failed = false;
        for pod in wanted.statics.values() {
            let (name, reference) = (full_name(pod), PodRef::of(pod));
            let Some(mirror) = mirror_of(wanted, &reference) else { continue };
            if self.told.get(&name) == Some(&mirror.uid) {
                continue;
            }
            let Some(status) = self.reported.get(&reference.uid) else { continue };
            match self.pods.patch_status(&mirror, &status).await {
                Ok(()) | Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => {
                    self.told.insert(name, mirror.uid);
                }
                Err(_) => failed = true,
            }
        }
        failed
    }

    async fn delete(&mut self, mirror: &PodRef) -> Result<(), ApiError> {
        self.pods.delete_finished(mirror).await?;
        tracing::info!(pod = %mirror, "deleted the mirror of a static pod");
        self.deleted.insert(mirror.uid.clone());
        Ok(())
    }

    async fn create(&mut self, pod: &Pod) -> Result<(), ApiError> {
        let name = full_name(pod);
        let hash = PodUid::new(annotation(pod, names::CONFIG_MIRROR).unwrap_or_default());
        if self.made.get(&name) == Some(&hash) {
            return Ok(());
        }
        match self.api.create_mirror(pod).await {
            Ok(()) => {
                tracing::info!(namespace = name.0, pod = name.1, "made the mirror of a static pod");
                self.made.insert(name, hash);
                Ok(())
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, annotations: &[(&str, &str)]) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        pod.metadata.name = Some("s".into());
        pod.metadata.namespace = Some("n".into());
        pod.metadata.annotations = Some(annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
        Arc::new(pod)
    }

    fn wanted(statics: &[&str], mirror: Option<Arc<Pod>>) -> Wanted {
        let pods = statics.iter().map(|uid| (PodUid::new(uid), pod(uid, &[(names::CONFIG_SOURCE, "file")])));
        let pods: BTreeMap<_, _> = pods.collect();
        let mirrors = mirror.into_iter().map(|mirror| (full_name(&mirror), mirror)).collect();
        Wanted { statics: pods.clone(), pods, mirrors, listed: true, complete: true }
    }

    fn mirror(uid: &str, hash: &str) -> Arc<Pod> {
        pod(uid, &[(names::CONFIG_MIRROR, hash)])
    }

    fn told(wanted: &Wanted, alive: bool, node: Option<&str>, ours: &[&str]) -> Vec<String> {
        let alive = if alive { BTreeSet::from([("n".to_owned(), "s".to_owned())]) } else { BTreeSet::new() };
        let ours = ours.iter().map(|uid| PodUid::new(uid)).collect();
        let (actions, waits) = decide(wanted, &alive, ("node", node), &ours);
        let actions = actions.into_iter().map(|action| match action {
            Action::Create(pod) => format!("create {}", annotation(&pod, names::CONFIG_MIRROR).unwrap()),
            Action::Delete(pod) => format!("delete {}", pod.uid),
        });
        actions.chain(waits.then(|| "wait".to_owned())).collect()
    }

    #[test]
    fn the_mirror_follows_the_static_pod() {
        // A7.3
        let node = Some("node-uid");
        assert_eq!(told(&wanted(&["h1"], None), true, node, &[]), ["create h1"]);
        assert_eq!(told(&wanted(&["h1"], None), true, None, &[]), [""; 0], "there is no node that could own it");
        assert_eq!(told(&wanted(&["h1"], Some(mirror("m", "h1"))), true, node, &[]), [""; 0]);
        assert_eq!(told(&wanted(&["h2"], Some(mirror("m", "h1"))), true, node, &[]), ["delete m", "create h2"]);
        assert_eq!(told(&wanted(&["h2"], Some(mirror("m", "h1"))), true, node, &["m"]), ["create h2"]);
        let mut leaving = (*mirror("m", "h1")).clone();
        leaving.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(told(&wanted(&["h1"], Some(Arc::new(leaving))), true, node, &[]), ["delete m", "create h1"]);
    }

    #[test]
    fn a_mirror_goes_when_its_pod_has_ended() {
        // A7.3, A1.6
        let orphan = || Some(mirror("m", "h1"));
        assert_eq!(told(&wanted(&[], orphan()), true, None, &[]), ["wait"]);
        assert_eq!(told(&wanted(&[], orphan()), false, None, &[]), ["delete m"]);
        let early = Wanted { complete: false, ..wanted(&[], orphan()) };
        assert_eq!(told(&early, false, None, &[]), [""; 0], "the files have not been read yet");
    }

    #[test]
    fn the_mirror_is_owned_by_the_node() {
        // A7.3
        let made = mirror_pod(&pod("h1", &[(names::CONFIG_SOURCE, "file")]), "node", "node-uid");
        let owner = &made.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.uid.as_str()), ("Node", "node", "node-uid"));
        assert_eq!(owner.controller, Some(true));
        assert_eq!(made.metadata.uid, None);
        assert_eq!(annotation(&made, names::CONFIG_MIRROR), Some("h1"));
    }
}
