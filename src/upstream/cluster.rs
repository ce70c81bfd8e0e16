//! What the pod network reads of the whole cluster, as slim objects: nodes; and network policies, with pods and namespaces
//! from the first policy on.

use std::collections::BTreeSet;

use stoker_model::network::{ClusterNode, Listed, PeerNamespace, PeerPod, Policy, PolicyChange};
use stoker_model::service::NamespacedName;
use tokio::sync::{mpsc, watch};

use super::client::ApiServer;
use super::watch::{Change, Sink, Watchable, Watched, run};

/// Watches all nodes; ends when the receiver is gone. Needs the right to list and watch nodes.
pub async fn watch_nodes(api: ApiServer, changes: mpsc::Sender<Listed<ClusterNode>>) {
    run(&api, &all("/api/v1/nodes"), &mut Forward::new(changes, |change| change)).await;
}

/// Watches network policies, and from the first one on pods and namespaces; ends when the receiver is gone. A cluster without
/// policies costs one idle watch.
pub async fn watch_policies(api: ApiServer, changes: mpsc::Sender<PolicyChange>) {
    let (first, mut seen) = watch::channel(false);
    let policies = all("/apis/networking.k8s.io/v1/networkpolicies");
    let mut policy_sink = Forward::new(changes.clone(), PolicyChange::Policy);
    policy_sink.first = Some(first);
    let peers = async {
        if seen.wait_for(|seen| *seen).await.is_err() {
            return;
        }
        let (pods, namespaces) = (all("/api/v1/pods"), all("/api/v1/namespaces"));
        let mut pod_sink = Forward::new(changes.clone(), PolicyChange::Pod);
        let mut namespace_sink = Forward::new(changes, PolicyChange::Namespace);
        tokio::join!(run(&api, &pods, &mut pod_sink), run(&api, &namespaces, &mut namespace_sink));
    };
    tokio::join!(run(&api, &policies, &mut policy_sink), peers);
}

const fn all(path: &'static str) -> Watched {
    Watched { path, fields: String::new(), labels: String::new() }
}

/// An object with a name.
trait Keyed: Watchable {
    fn key(&self) -> NamespacedName;
}

macro_rules! keyed {
    ($($kind:ty),*) => {$(
        impl Watchable for $kind {
            fn resource_version(&self) -> &str {
                &self.metadata.resource_version
            }
        }
    )*};
}
keyed!(ClusterNode, PeerPod, PeerNamespace, Policy);

impl Keyed for ClusterNode {
    fn key(&self) -> NamespacedName {
        NamespacedName { namespace: "".into(), name: self.metadata.name.clone() }
    }
}

impl Keyed for PeerPod {
    fn key(&self) -> NamespacedName {
        NamespacedName { namespace: self.metadata.namespace.clone(), name: self.metadata.name.clone() }
    }
}

impl Keyed for PeerNamespace {
    fn key(&self) -> NamespacedName {
        NamespacedName { namespace: "".into(), name: self.metadata.name.clone() }
    }
}

impl Keyed for Policy {
    fn key(&self) -> NamespacedName {
        self.metadata.key()
    }
}

/// Sends on what comes, and after a list what is gone by it.
struct Forward<T, M> {
    changes: mpsc::Sender<M>,
    wrap: fn(Listed<T>) -> M,
    known: BTreeSet<NamespacedName>,
    listing: Option<BTreeSet<NamespacedName>>,
    complete: bool,
    /// Told when the first object came.
    first: Option<watch::Sender<bool>>,
}

impl<T: Keyed, M> Forward<T, M> {
    fn new(changes: mpsc::Sender<M>, wrap: fn(Listed<T>) -> M) -> Self {
        Self { changes, wrap, known: BTreeSet::new(), listing: None, complete: false, first: None }
    }

    fn apply(&mut self, change: Change<T>) -> Vec<Listed<T>> {
        match change {
            Change::Listing => {
                self.listing = Some(BTreeSet::new());
                Vec::new()
            }
            Change::Present(object) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(object.key());
                }
                self.known.insert(object.key());
                if let Some(first) = self.first.take() {
                    first.send_replace(true);
                }
                vec![Listed::Present(object)]
            }
            Change::Gone(object) => {
                self.known.remove(&object.key());
                vec![Listed::Gone(object.key())]
            }
            Change::Unreadable { meta, gone } => {
                let key = NamespacedName { namespace: meta.namespace.as_str().into(), name: meta.name.as_str().into() };
                if gone {
                    self.known.remove(&key);
                    return vec![Listed::Gone(key)];
                }
                // What was read of it last stays.
                if let Some(listing) = self.listing.as_mut().filter(|_| self.known.contains(&key)) {
                    listing.insert(key);
                }
                Vec::new()
            }
            Change::Listed => {
                let listed = self.listing.take().unwrap_or_default();
                let gone = self.known.difference(&listed).cloned().map(Listed::Gone);
                let mut changes: Vec<_> = gone.collect();
                self.known = listed;
                if !std::mem::replace(&mut self.complete, true) {
                    changes.push(Listed::Complete);
                }
                changes
            }
        }
    }
}

impl<T: Keyed, M: Send> Sink<T> for Forward<T, M> {
    async fn take(&mut self, change: Change<T>) -> bool {
        for change in self.apply(change) {
            if self.changes.send((self.wrap)(change)).await.is_err() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> ClusterNode {
        let text = format!(
            r#"{{"metadata":{{"name":"{name}","annotations":{{"stoker.dev/vtep-mac":"m","other":"x"}}}},
                "spec":{{"podCIDRs":["10.0.0.0/24"]}},"status":{{"addresses":[{{"type":"InternalIP","address":"a"}}]}}}}"#
        );
        serde_json::from_str(&text).expect("a node")
    }

    #[test]
    fn slim_objects_keep_what_is_read() {
        let node = node("n");
        assert_eq!((node.metadata.annotations.vtep_mac.as_str(), node.spec.pod_cidrs.len()), ("m", 1));
        let pod: PeerPod = serde_json::from_str(
            r#"{"metadata":{"name":"p","namespace":"d","labels":{"a":"b"}},"spec":{"nodeName":"n","volumes":[],
                "containers":[{"name":"c","image":"x","ports":[{"name":"web","containerPort":80}]}]},
                "status":{"phase":"Running","podIPs":[{"ip":"10.0.0.2"}]}}"#,
        )
        .expect("a pod");
        assert_eq!(
            (pod.spec.containers[0].ports[0].container_port, pod.status.pod_ips[0].ip.as_str()),
            (80, "10.0.0.2")
        );
    }

    #[test]
    fn a_list_that_starts_over_tells_what_is_gone_and_is_complete_once() {
        let mut sink = Forward::new(mpsc::channel(1).0, |change: Listed<ClusterNode>| change);
        let mut all = Vec::new();
        for change in [
            Change::Listing,
            Change::Present(node("a")),
            Change::Present(node("b")),
            Change::Listed,
            Change::Listing,
            Change::Present(node("b")),
            Change::Listed,
        ] {
            all.extend(sink.apply(change).into_iter().filter(|change| !matches!(change, Listed::Present(_))));
        }
        assert_eq!(all, [Listed::Complete, Listed::Gone(node("a").key())]);
    }
}
