//! Where pods come from: the API server, a directory of manifests, an address. One feed of all of them (A1.1).
//!
//! In: the API server's [`PodFeed`]; files and an address are read by tasks of this room.
//! Out: [`Wanted`], newest wins. Nothing may be cleaned up before it is complete (A1.2); what static pods need runs at once (A7.5).
//! Static pods have a mirror at the API server: `mirror` keeps it, and sends it the status of the pod.

mod check;
mod defaults;
mod fetch;
mod file;
mod manifest;
mod mirror;
mod url;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use stoker_model::handle::{DesiredPods, EventSink, NodeFeed, PodFeed};
use stoker_model::names;
use stoker_model::pod::{PodRef, PodUid};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(super) use mirror::{Mirrors, Reported, keep_mirrors};

use crate::clock::Clock;

/// What a file and an address would make of these bytes.
#[cfg(feature = "fuzzing")]
pub(super) fn manifest_of(bytes: &[u8]) {
    for origin in [manifest::Origin::File("/manifests/pod.yaml"), manifest::Origin::Url("http://localhost/pods")] {
        // What is wrong with it does not matter here, only that it can be said.
        let _ = manifest::pods(bytes, origin, "node");
    }
}

/// Where static pods come from.
#[derive(Clone, Debug)]
pub struct StaticSources {
    /// kubelet's `staticPodPath`: a file, or a directory of files.
    pub path: Option<PathBuf>,
    /// kubelet's `fileCheckFrequency`: the path is read so often though nothing was heard of it.
    pub path_every: Duration,
    /// kubelet's `staticPodURL`.
    pub url: Option<String>,
    /// kubelet's `staticPodURLHeader`.
    pub url_headers: BTreeMap<String, Vec<String>>,
    /// kubelet's `httpCheckFrequency`.
    pub url_every: Duration,
}

impl Default for StaticSources {
    fn default() -> Self {
        let every = Duration::from_secs(20);
        Self { path: None, path_every: every, url: None, url_headers: BTreeMap::new(), url_every: every }
    }
}

/// Namespace and name: two pods of different UIDs may have them one after the other.
pub(super) type FullName = (String, String);

pub(super) fn full_name(pod: &Pod) -> FullName {
    let reference = PodRef::of(pod);
    (reference.namespace, reference.name)
}

/// What one source of static pods wants; `None` until it was read.
type Statics = Option<Arc<DesiredPods>>;

/// What all sources want.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// Every pod to run, with the annotations that tell its source; who reads that writes them (A1.1). One without a spec could not be
    /// read: what is there of it stays as it is.
    pub(super) pods: DesiredPods,
    /// Those of them that are static.
    pub(super) statics: DesiredPods,
    /// Pods of the API server that only show static pods.
    pub(super) mirrors: BTreeMap<FullName, Arc<Pod>>,
    /// The API server's list was complete.
    pub(super) listed: bool,
    /// Every source has told of its pods: what is in none of them is not wanted.
    pub(super) complete: bool,
}

/// The newest [`Wanted`].
pub(super) type WantedFeed = watch::Receiver<Arc<Wanted>>;

pub(super) use stoker_model::pod::is_static;

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Starts to read all sources. Ends with the token.
pub(super) fn gather(
    sources: &StaticSources,
    api: PodFeed,
    node: &NodeFeed,
    reported: Reported,
    sink: &Arc<dyn EventSink>,
    stop: &CancellationToken,
) -> WantedFeed {
    let name = node.borrow().name.clone();
    let mut statics = Vec::new();
    if let Some(path) = &sources.path {
        let (sender, receiver) = watch::channel(None);
        let task = file::run(path.clone(), name.clone(), sources.path_every, sender, Some(sink.clone()));
        tokio::spawn(stop.clone().run_until_cancelled_owned(task));
        statics.push(receiver);
    }
    if let Some(url) = &sources.url {
        let (sender, receiver) = watch::channel(None);
        let task = url::run(url.clone(), sources.url_headers.clone(), name, sources.url_every, sender);
        tokio::spawn(stop.clone().run_until_cancelled_owned(task));
        statics.push(receiver);
    }
    let mut gathering = Gathering { api, statics, reported, cache: BTreeMap::new(), round: 0 };
    let (sender, receiver) = watch::channel(Arc::new(gathering.wanted()));
    let task = async move {
        loop {
            gathering.changed().await;
            sender.send_replace(Arc::new(gathering.wanted()));
        }
    };
    tokio::spawn(stop.clone().run_until_cancelled_owned(task));
    receiver
}

/// A pod as it is handed on, and what it was made from.
struct Made {
    from: Arc<Pod>,
    /// The mirror whose status it carries.
    mirror: Option<Arc<Pod>>,
    pod: Arc<Pod>,
    /// The last round in which a source wanted it.
    round: u64,
}

struct Gathering {
    api: PodFeed,
    statics: Vec<watch::Receiver<Statics>>,
    reported: Reported,
    /// What did not change is handed on as the same object, which workers take for no change.
    cache: BTreeMap<PodUid, Made>,
    round: u64,
}

impl Gathering {
    async fn changed(&mut self) {
        let mut statics = self.statics.iter_mut();
        let (first, second) = (statics.next(), statics.next());
        tokio::select! {
            Ok(()) = self.api.changed() => {}
            () = change_of(first) => {}
            () = change_of(second) => {}
            () = self.reported.ended() => {}
        }
    }

    fn wanted(&mut self) -> Wanted {
        let api = self.api.borrow_and_update().clone();
        let statics: Vec<Statics> = self.statics.iter_mut().map(|source| source.borrow_and_update().clone()).collect();
        let listed = api.is_some();
        let mut wanted =
            Wanted { listed, complete: listed && statics.iter().all(Option::is_some), ..Wanted::default() };
        self.round += 1;
        let round = self.round;
        for (uid, pod) in api.iter().flat_map(|pods| pods.iter()) {
            let before = match self.cache.get_mut(uid) {
                // Most pods are as they were. Nothing of them is touched, for it has gone cold.
                Some(made) if Arc::ptr_eq(&made.from, pod) => {
                    made.round = round;
                    continue;
                }
                before => before,
            };
            if annotation(pod, names::CONFIG_MIRROR).is_some() {
                wanted.mirrors.insert(full_name(pod), pod.clone());
                continue;
            }
            match before {
                // What was last read of it still holds.
                Some(made) if pod.spec.is_none() => made.round = round,
                _ => {
                    let made = Made { from: pod.clone(), mirror: None, pod: pod.clone(), round };
                    self.cache.insert(uid.clone(), made);
                }
            }
        }
        for (uid, pod) in statics.iter().flatten().flat_map(|pods| pods.iter()) {
            let mirror = wanted.mirrors.get(&full_name(pod)).filter(|m| self.mirrors(m, uid)).cloned();
            let same = |made: &Made| {
                let same_mirror = match (&made.mirror, &mirror) {
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    (a, b) => a.is_none() && b.is_none(),
                };
                Arc::ptr_eq(&made.from, pod) && same_mirror
            };
            match self.cache.get_mut(uid) {
                Some(made) if same(made) => made.round = round,
                _ => {
                    let made = with_status(pod, mirror.as_deref());
                    self.cache.insert(uid.clone(), Made { from: pod.clone(), pod: made, mirror, round });
                }
            }
        }
        self.cache.retain(|_, made| made.round == round);
        wanted.pods = self.cache.iter().map(|(uid, made)| (uid.clone(), made.pod.clone())).collect();
        let uids = statics.iter().flatten().flat_map(|pods| pods.keys());
        wanted.statics = uids.filter_map(|uid| Some((uid.clone(), wanted.pods.get(uid)?.clone()))).collect();
        wanted
    }

    /// Whether the mirror's status is that of the pod of this UID. An end that another agent reported is not: static pods begin anew.
    fn mirrors(&self, mirror: &Pod, uid: &PodUid) -> bool {
        let phase = mirror.status.as_ref().and_then(|status| status.phase.as_deref());
        annotation(mirror, names::CONFIG_MIRROR) == Some(uid.as_str())
            && (!matches!(phase, Some("Succeeded" | "Failed")) || self.reported.phase(uid).as_deref() == phase)
    }
}

/// Waits for a change of a source that may not be there.
async fn change_of(source: Option<&mut watch::Receiver<Statics>>) {
    let changed = match source {
        Some(source) => source.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending().await
    }
}

/// A static pod with the status that its mirror shows.
fn with_status(pod: &Arc<Pod>, mirror: Option<&Pod>) -> Arc<Pod> {
    match mirror {
        Some(mirror) => Arc::new(Pod { status: mirror.status.clone(), ..(**pod).clone() }),
        None => pod.clone(),
    }
}

/// The value of `kubernetes.io/config.seen` (A1.1).
fn seen_now(clock: Clock) -> String {
    format!("{:.9}", clock.now().wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, name: &str, annotations: &[(&str, &str)]) -> Arc<Pod> {
        let mut pod = Pod { spec: Some(k8s_openapi::api::core::v1::PodSpec::default()), ..Pod::default() };
        pod.metadata.uid = Some(uid.into());
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("n".into());
        pod.metadata.annotations = Some(annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
        Arc::new(pod)
    }

    fn of(pods: &[Arc<Pod>]) -> Arc<DesiredPods> {
        Arc::new(pods.iter().map(|p| (PodRef::of(p).uid, p.clone())).collect())
    }

    struct Setup {
        api: watch::Sender<Option<Arc<DesiredPods>>>,
        files: watch::Sender<Statics>,
        gathering: Gathering,
    }

    fn setup() -> Setup {
        let (api, api_feed) = watch::channel(None);
        let (files, file_feed) = watch::channel(None);
        let gathering = Gathering {
            api: api_feed,
            statics: vec![file_feed],
            reported: Reported::default(),
            cache: BTreeMap::new(),
            round: 0,
        };
        Setup { api, files, gathering }
    }

    const FILE: (&str, &str) = (names::CONFIG_SOURCE, "file");

    #[test]
    fn static_pods_run_before_the_api_server_answers_and_nothing_is_complete_before_all_have_told() {
        // A1.2, A7.5
        let mut s = setup();
        assert!(!s.gathering.wanted().complete);
        s.files.send_replace(Some(of(&[pod("s", "s", &[FILE])])));
        let wanted = s.gathering.wanted();
        assert!(wanted.pods.contains_key(&PodUid::new("s")) && !wanted.complete);
        s.api.send_replace(Some(of(&[])));
        assert!(s.gathering.wanted().complete);
    }

    #[test]
    fn what_does_not_change_is_handed_on_as_the_same() {
        // A1.1
        let mut s = setup();
        let of_a = |s: &mut Setup| s.gathering.wanted().pods[&PodUid::new("a")].clone();
        s.api.send_replace(Some(of(&[pod("a", "a", &[])])));
        let first = of_a(&mut s);
        assert!(Arc::ptr_eq(&first, &of_a(&mut s)));
        s.api.send_replace(Some(of(&[pod("a", "a", &[("x", "y")])])));
        assert_eq!(annotation(&of_a(&mut s), "x"), Some("y"));
    }

    #[test]
    fn a_mirror_is_not_run_and_lends_its_status() {
        let mut s = setup();
        let with_phase = |pod: &Arc<Pod>, phase: &str| {
            let status = k8s_openapi::api::core::v1::PodStatus { phase: Some(phase.into()), ..Default::default() };
            Arc::new(Pod { status: Some(status), ..(**pod).clone() })
        };
        let mirror = pod("m", "s", &[(names::CONFIG_MIRROR, "s"), FILE]);
        s.files.send_replace(Some(of(&[pod("s", "s", &[FILE])])));
        s.api.send_replace(Some(of(&[with_phase(&mirror, "Running")])));
        let wanted = s.gathering.wanted();
        assert_eq!(wanted.pods.keys().map(PodUid::as_str).collect::<Vec<_>>(), ["s"]);
        assert_eq!(wanted.mirrors.len(), 1);
        let phase = |w: &Wanted| w.pods[&PodUid::new("s")].status.as_ref().and_then(|s| s.phase.clone());
        assert_eq!(phase(&wanted).as_deref(), Some("Running"));
        s.api.send_replace(Some(of(&[with_phase(&mirror, "Failed")])));
        assert_eq!(phase(&s.gathering.wanted()), None, "the end that a former agent reported is not this pod's");
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_was() {
        let mut s = setup();
        let unreadable = |uid: &str| Arc::new(Pod { spec: None, ..(*pod(uid, uid, &[])).clone() });
        s.api.send_replace(Some(of(&[pod("a", "a", &[])])));
        let before = s.gathering.wanted().pods[&PodUid::new("a")].clone();
        s.api.send_replace(Some(of(&[unreadable("a"), unreadable("b")])));
        let wanted = s.gathering.wanted();
        assert!(Arc::ptr_eq(&before, &wanted.pods[&PodUid::new("a")]));
        assert!(wanted.pods[&PodUid::new("b")].spec.is_none());
    }
}
