//! The API as a client sees it: requests, and one watch of all pods that tells when something has come about.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use stoker::clock::Clock;

use super::{AT_ONCE, Failure, LONGEST};
use crate::lab::Lab;

/// Requests and a watch, which the API server ends after 290 seconds.
pub(crate) struct Cluster {
    pods: Api<Pod>,
    watch: Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<Pod>>>>>,
}

/// From the request to create a pod to what a watch shows.
pub(crate) struct Took {
    /// It has a node.
    pub(crate) bound: Duration,
    pub(crate) running: Duration,
}

/// What came about of many requests.
pub(crate) struct Many {
    /// From each one's request until the watch showed it.
    pub(crate) each: Vec<Duration>,
    /// From the first request until the watch showed the last.
    pub(crate) all: Duration,
}

impl Many {
    fn of(begun: &BTreeMap<String, Duration>, shown: &BTreeMap<String, Duration>) -> Self {
        let (first, last) = (begun.values().min(), shown.values().max());
        let all = first.zip(last).map_or(Duration::ZERO, |(first, last)| *last - *first);
        let each = begun.iter().filter_map(|(name, begun)| Some(*shown.get(name)? - *begun));
        Self { each: each.collect(), all }
    }
}

/// Whether a pod has a node.
pub(crate) fn is_bound(event: &WatchEvent<Pod>) -> bool {
    let WatchEvent::Modified(pod) = event else { return false };
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

/// Whether a pod's phase is Running.
pub(crate) fn is_running(event: &WatchEvent<Pod>) -> bool {
    let WatchEvent::Modified(pod) = event else { return false };
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// Whether a pod is gone.
pub(crate) fn is_gone(event: &WatchEvent<Pod>) -> bool {
    matches!(event, WatchEvent::Deleted(_))
}

impl Cluster {
    pub(crate) async fn connect(lab: &Lab) -> Result<Self, Failure> {
        let kubeconfig = Kubeconfig::read_from(lab.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let pods: Api<Pod> = Api::namespaced(kube::Client::try_from(config)?, "default");
        let version = pods.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
        let watch = Box::pin(pods.watch(&WatchParams::default(), &version).await?);
        Ok(Self { pods, watch })
    }

    /// Creates a pod that must have so many volumes then.
    pub(crate) async fn create(&self, manifest: &Value, volumes: usize) -> Result<(), Failure> {
        create(&self.pods, manifest.clone(), volumes).await.map(drop)
    }

    /// Creates a pod that must have so many volumes then: how long it took.
    pub(crate) async fn start(&mut self, manifest: &Value, volumes: usize) -> Result<Took, Failure> {
        let name = crate::lab::text(&manifest["metadata"]["name"]);
        let before = Clock.now().monotonic;
        self.create(manifest, volumes).await?;
        self.until(&name, is_bound).await?;
        let bound = Clock.now().monotonic - before;
        self.until(&name, is_running).await?;
        Ok(Took { bound, running: Clock.now().monotonic - before })
    }

    /// Deletes a pod with a grace of a second: how long it took to go.
    pub(crate) async fn delete(&mut self, name: &str) -> Result<Duration, Failure> {
        let before = Clock.now().monotonic;
        delete(&self.pods, name.to_owned()).await?;
        self.until(name, is_gone).await?;
        Ok(Clock.now().monotonic - before)
    }

    /// Creates pods with one volume each, [`AT_ONCE`], and waits until all are Running.
    pub(crate) async fn start_all(&mut self, manifests: Vec<Value>) -> Result<Many, Failure> {
        let names: Vec<String> =
            manifests.iter().map(|manifest| crate::lab::text(&manifest["metadata"]["name"])).collect();
        let pods = self.pods.clone();
        let requests = stream::iter(manifests).map(|manifest| create(&pods, manifest, 1)).buffer_unordered(AT_ONCE);
        let (begun, shown) = tokio::try_join!(requests.try_collect(), self.until_all(&names, is_running))?;
        Ok(Many::of(&begun, &shown))
    }

    /// Deletes pods with a grace of a second, [`AT_ONCE`], and waits until all are gone.
    pub(crate) async fn delete_all(&mut self, names: Vec<String>) -> Result<Many, Failure> {
        let pods = self.pods.clone();
        let requests = stream::iter(names.clone()).map(|name| delete(&pods, name)).buffer_unordered(AT_ONCE);
        let (begun, shown) = tokio::try_join!(requests.try_collect(), self.until_all(&names, is_gone))?;
        Ok(Many::of(&begun, &shown))
    }

    /// Waits until the watch shows it of this pod.
    pub(crate) async fn until(&mut self, name: &str, is_it: fn(&WatchEvent<Pod>) -> bool) -> Result<(), Failure> {
        self.until_all(&[name.to_owned()], is_it).await.map(drop)
    }

    /// Waits until the watch has shown it of all these pods: when, by name.
    async fn until_all(
        &mut self,
        names: &[String],
        is_it: fn(&WatchEvent<Pod>) -> bool,
    ) -> Result<BTreeMap<String, Duration>, Failure> {
        let mut shown = BTreeMap::new();
        let waiting = async {
            while shown.len() < names.len() {
                let event = self.watch.next().await.ok_or("the watch ended")??;
                let about = match &event {
                    WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) => {
                        pod.metadata.name.as_ref()
                    }
                    WatchEvent::Error(error) => return Err(format!("the watch says: {error:?}").into()),
                    WatchEvent::Bookmark(_) => None,
                };
                if let Some(name) = about.filter(|name| names.contains(name) && is_it(&event)) {
                    shown.entry(name.clone()).or_insert_with(|| Clock.now().monotonic);
                }
            }
            Ok::<(), Failure>(())
        };
        let waited = tokio::time::timeout(LONGEST, waiting).await;
        waited.map_err(|_| format!("within {LONGEST:?} the watch showed it of {} of {names:?}", shown.len()))??;
        Ok(shown)
    }
}

/// The pod's name, and when the request began.
async fn create(pods: &Api<Pod>, manifest: Value, volumes: usize) -> Result<(String, Duration), Failure> {
    let manifest: Pod = serde_json::from_value(manifest)?;
    let begun = Clock.now().monotonic;
    let created = pods.create(&PostParams::default(), &manifest).await?;
    let name = created.metadata.name.unwrap_or_default();
    let has = created.spec.and_then(|spec| spec.volumes).unwrap_or_default().len();
    if has == volumes { Ok((name, begun)) } else { Err(format!("the pod {name} has {has} volumes").into()) }
}

/// As [`create`].
async fn delete(pods: &Api<Pod>, name: String) -> Result<(String, Duration), Failure> {
    let begun = Clock.now().monotonic;
    pods.delete(&name, &DeleteParams::default().grace_period(1)).await?;
    Ok((name, begun))
}
