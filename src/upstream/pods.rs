//! The pods that the API server wants on this node.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use stoker_model::handle::{DesiredPods, PodFeed};
use stoker_model::names;
use stoker_model::pod::PodUid;
use tokio::sync::watch;

use super::client::ApiServer;
use super::unowned;
use super::watch::{Change, Metadata, Sink, Watchable, Watched, run};
use crate::clock::Clock;

/// Watches the pods with `spec.nodeName` equal to `node` (A1.1); no other pod is kept.
///
/// The feed holds `None` until the first list was complete (A1.2). The second value is the task to spawn; it ends when
/// every receiver is gone.
pub fn watch_pods(api: ApiServer, node: String) -> (PodFeed, impl Future<Output = ()> + Send) {
    let (feed, receiver) = watch::channel(None);
    let task = async move {
        let watched = of_node(&node);
        let mut sink = PodSink { node, feed, current: DesiredPods::new(), listing: None, clock: Clock };
        run(&api, &watched, &mut sink).await;
    };
    (receiver, task)
}

fn of_node(node: &str) -> Watched {
    Watched { path: "/api/v1/pods", fields: format!("spec.nodeName={node}"), labels: String::new() }
}

impl Watchable for Pod {
    fn resource_version(&self) -> &str {
        self.metadata.resource_version.as_deref().unwrap_or_default()
    }

    fn read(text: &str) -> serde_json::Result<Self> {
        unowned::from_str(text)
    }
}

struct PodSink {
    node: String,
    feed: watch::Sender<Option<Arc<DesiredPods>>>,
    current: DesiredPods,
    /// What the running list brought; replaces `current` as a whole.
    listing: Option<DesiredPods>,
    clock: Clock,
}

impl Sink<Pod> for PodSink {
    async fn take(&mut self, change: Change<Pod>) -> bool {
        self.apply(change);
        !self.feed.is_closed()
    }
}

impl PodSink {
    fn apply(&mut self, change: Change<Pod>) {
        match change {
            Change::Listing => {
                self.listing = Some(DesiredPods::new());
                return;
            }
            Change::Listed => self.current = self.listing.take().unwrap_or_default(),
            Change::Present(mut pod) => {
                let ours = pod.spec.as_ref().and_then(|s| s.node_name.as_ref()).is_some_and(|n| *n == self.node);
                let Some(uid) = pod.metadata.uid.as_deref().map(PodUid::new).filter(|_| ours) else { return };
                slim(&mut pod);
                self.mark(&uid, &mut pod);
                self.listing.as_mut().unwrap_or(&mut self.current).insert(uid, Arc::new(pod));
            }
            Change::Unreadable { meta, gone } => {
                let uid = PodUid::new(&meta.uid);
                let before = self.current.get(&uid).cloned();
                let to = self.listing.as_mut().unwrap_or(&mut self.current);
                if gone {
                    to.remove(&uid);
                } else {
                    // What is known of it stays; of one never seen only that it exists.
                    to.insert(uid, before.unwrap_or_else(|| Arc::new(only_named(*meta))));
                }
            }
            Change::Gone(pod) => {
                let uid = PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
                self.listing.as_mut().unwrap_or(&mut self.current).remove(&uid);
            }
        }
        if self.listing.is_none() {
            self.feed.send_replace(Some(Arc::new(self.current.clone())));
        }
    }

    /// Writes into a pod where it comes from and when it was seen first, whatever it says itself (A1.1). A mirror says it of the pod that
    /// it shows. Here, where nobody else has it yet: each pod of a node would be kept twice otherwise.
    fn mark(&self, uid: &PodUid, pod: &mut Pod) {
        let annotations = pod.metadata.annotations.get_or_insert_default();
        if annotations.contains_key(names::CONFIG_MIRROR) {
            return;
        }
        let before =
            self.current.get(uid).and_then(|before| before.metadata.annotations.as_ref()?.get(names::CONFIG_SEEN));
        let seen = before.cloned().unwrap_or_else(|| format!("{:.9}", self.clock.now().wall));
        annotations.insert(names::CONFIG_SOURCE.into(), "api".into());
        annotations.insert(names::CONFIG_SEEN.into(), seen);
    }
}

/// Leaves out the room that lists got while they were read: an element takes up to three kilobytes.
fn slim(pod: &mut Pod) {
    fn fit<T>(list: &mut Option<Vec<T>>) {
        if let Some(list) = list {
            list.shrink_to_fit();
        }
    }
    if let Some(spec) = &mut pod.spec {
        spec.containers.shrink_to_fit();
        fit(&mut spec.init_containers);
        fit(&mut spec.volumes);
        fit(&mut spec.tolerations);
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            fit(&mut container.env);
            fit(&mut container.volume_mounts);
        }
        for projected in spec.volumes.iter_mut().flatten().filter_map(|volume| volume.projected.as_mut()) {
            fit(&mut projected.sources);
        }
    }
    if let Some(status) = &mut pod.status {
        fit(&mut status.conditions);
        fit(&mut status.container_statuses);
        fit(&mut status.init_container_statuses);
    }
}

/// A pod of which no more than its name could be read.
fn only_named(meta: Metadata) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.uid = Some(meta.uid);
    pod.metadata.name = Some(meta.name);
    pod.metadata.namespace = Some(meta.namespace);
    pod
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn pod(uid: &str, node: &str) -> Pod {
        Pod {
            metadata: ObjectMeta { uid: Some(uid.into()), name: Some(uid.into()), ..ObjectMeta::default() },
            spec: Some(PodSpec { node_name: Some(node.into()), ..PodSpec::default() }),
            status: None,
        }
    }

    fn sink() -> (PodSink, PodFeed) {
        let (feed, receiver) = watch::channel(None);
        (PodSink { node: "n".into(), feed, current: DesiredPods::new(), listing: None, clock: Clock }, receiver)
    }

    fn uids(feed: &PodFeed) -> Option<Vec<String>> {
        feed.borrow().as_ref().map(|pods| pods.keys().map(ToString::to_string).collect())
    }

    #[test]
    fn nothing_is_published_before_the_list_is_complete() {
        // A1.2
        let (mut sink, feed) = sink();
        sink.apply(Change::Listing);
        sink.apply(Change::Present(pod("a", "n")));
        assert_eq!(uids(&feed), None);
        sink.apply(Change::Listed);
        assert_eq!(uids(&feed), Some(vec!["a".into()]));
    }

    #[test]
    fn a_new_list_replaces_the_old_one_at_its_end() {
        let (mut sink, feed) = sink();
        for change in [Change::Listing, Change::Present(pod("a", "n")), Change::Listed, Change::Listing] {
            sink.apply(change);
        }
        sink.apply(Change::Present(pod("b", "n")));
        assert_eq!(uids(&feed), Some(vec!["a".into()]));
        sink.apply(Change::Listed);
        assert_eq!(uids(&feed), Some(vec!["b".into()]));
        sink.apply(Change::Gone(pod("b", "n")));
        assert_eq!(uids(&feed), Some(vec![]));
    }

    #[test]
    fn a_pod_that_cannot_be_read_is_not_gone() {
        let (mut sink, feed) = sink();
        let unreadable = |uid: &str, gone| {
            let meta = Box::new(Metadata { uid: uid.into(), name: uid.into(), ..Metadata::default() });
            Change::Unreadable { meta, gone }
        };
        for change in [Change::Listing, Change::Present(pod("a", "n")), Change::Listed] {
            sink.apply(change);
        }
        for change in [Change::Listing, unreadable("a", false), unreadable("b", false), Change::Listed] {
            sink.apply(change);
        }
        assert_eq!(uids(&feed), Some(vec!["a".into(), "b".into()]));
        let specs: Vec<bool> = feed.borrow().as_ref().unwrap().values().map(|p| p.spec.is_some()).collect();
        assert_eq!(specs, [true, false], "what was known of it stays; of one never seen only that it exists");
        sink.apply(unreadable("a", false));
        assert!(feed.borrow().as_ref().unwrap()[&PodUid::new("a")].spec.is_some());
        sink.apply(unreadable("a", true));
        assert_eq!(uids(&feed), Some(vec!["b".into()]));
    }

    #[test]
    fn each_pod_tells_its_source_and_when_it_was_seen_first() {
        // A1.1
        let (mut sink, feed) = sink();
        let with = |annotations: &[(&str, &str)]| {
            let mut pod = pod("a", "n");
            let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            pod.metadata.annotations = Some(annotations.collect());
            pod
        };
        let told = |name: &str| {
            let pod = feed.borrow().as_ref().unwrap()[&PodUid::new("a")].clone();
            pod.metadata.annotations.as_ref().and_then(|all| all.get(name).cloned())
        };
        for change in [Change::Listing, Change::Present(pod("a", "n")), Change::Listed] {
            sink.apply(change);
        }
        assert_eq!(told(names::CONFIG_SOURCE).as_deref(), Some("api"));
        let seen = told(names::CONFIG_SEEN).unwrap();
        assert!(seen.parse::<jiff::Timestamp>().is_ok() && seen.contains('.'), "{seen}");
        let lies = with(&[("x", "y"), (names::CONFIG_SOURCE, "file"), (names::CONFIG_SEEN, "never")]);
        sink.apply(Change::Present(lies.clone()));
        let now = [names::CONFIG_SEEN, names::CONFIG_SOURCE, "x"].map(told);
        assert_eq!(now, [Some(seen.clone()), Some("api".into()), Some("y".into())], "the pod cannot choose");
        for change in [Change::Listing, Change::Present(lies), Change::Listed] {
            sink.apply(change);
        }
        assert_eq!(told(names::CONFIG_SEEN), Some(seen), "nor does a new list forget it");
        sink.apply(Change::Present(with(&[(names::CONFIG_MIRROR, "h"), (names::CONFIG_SOURCE, "file")])));
        assert_eq!(told(names::CONFIG_SOURCE).as_deref(), Some("file"), "a mirror shows another pod's");
    }

    #[test]
    fn a_pod_of_another_node_is_not_kept() {
        // A1.1
        let Watched { path, fields, labels } = of_node("n");
        assert_eq!((path, fields.as_str(), labels.as_str()), ("/api/v1/pods", "spec.nodeName=n", ""));
        let (mut sink, feed) = sink();
        for change in [Change::Listing, Change::Present(pod("a", "other")), Change::Listed] {
            sink.apply(change);
        }
        assert_eq!(uids(&feed), Some(vec![]));
    }
}
