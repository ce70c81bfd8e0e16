//! Scheduler and controllers on the real in-process API and the embedded store. Nodes are objects without an agent: the
//! test plays the agent by writing statuses.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stoker_control_plane::api::{Cluster, DeleteOptions, ListOptions, PatchType, Propagation, WriteOptions};
use stoker_control_plane::auth::{Pki, PkiConfig};
use stoker_control_plane::controllers::{self, Cidr, Config, ServiceAddresses};
use stoker_control_plane::scheduler;
use stoker_control_plane::storage::embedded::Embedded;
use tokio_util::sync::CancellationToken;

#[path = "controllers/attachments.rs"]
mod attachments;
#[path = "controllers/places.rs"]
mod places;
#[path = "controllers/ranges.rs"]
mod ranges;
#[path = "controllers/schedules.rs"]
mod schedules;
#[path = "controllers/workloads.rs"]
mod workloads;

/// A control plane in a directory of its own; it ends with the test.
struct Lab {
    cluster: Cluster,
    stop: CancellationToken,
    ca: String,
    _dir: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn pki_config(dir: &Path) -> PkiConfig {
    PkiConfig {
        data_dir: dir.to_owned(),
        advertise_address: [192, 0, 2, 7].into(),
        port: 6443,
        service_ip: [10, 96, 0, 1].into(),
        extra_names: Vec::new(),
        cluster_domain: "cluster.local".to_owned(),
    }
}

impl Lab {
    async fn start() -> Self {
        Self::with_ranges("10.96.0.0/12", "10.244.0.0/16").await
    }

    /// With these ranges of Services and pods.
    async fn with_ranges(services: &str, pods: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::new(Embedded::open(&dir.path().join("store.redb")).unwrap());
        let ranges = Cidr::list(services).unwrap();
        let addresses = Arc::new(ServiceAddresses::new(&ranges, &[]));
        cluster.set_service_allocator(Arc::<ServiceAddresses>::clone(&addresses));
        controllers::ensure_defaults(&cluster, [192, 0, 2, 7].into(), 6443, &ranges).await.unwrap();
        let stop = CancellationToken::new();
        let pki = Arc::new(Pki::ensure(&pki_config(dir.path()), stoker_control_plane::clock::now()).unwrap());
        let ca = pki.ca_certificate().to_owned();
        let config = Config { pki, cluster_cidrs: Cidr::list(pods).unwrap(), addresses };
        drop(controllers::spawn(&cluster, config, stop.clone()));
        drop(scheduler::spawn(&cluster, stop.clone()));
        let lab = Self { cluster, stop, ca, _dir: dir };
        lab.until("the default service account", async || {
            lab.get("", "serviceaccounts", "default", "default").await.is_some()
        })
        .await;
        lab
    }

    async fn node(&self, name: &str, cpu: &str) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {}});
        self.create("", "nodes", "", node).await;
        self.set_ready(name, cpu).await;
    }

    async fn set_ready(&self, name: &str, cpu: &str) {
        let now = jiff_now();
        let status = json!({"status": {
            "allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}, "capacity": {"cpu": cpu, "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now}],
        }});
        self.patch_as(PatchType::Strategic, "", "nodes", "", name, "status", status).await;
    }

    async fn create(&self, group: &str, plural: &str, namespace: &str, object: Value) -> Value {
        let objects = self.cluster.objects(group, plural);
        objects.create(namespace, object, &WriteOptions::default()).await.unwrap_or_else(|e| panic!("{plural}: {e}"))
    }

    async fn patch(&self, group: &str, plural: &str, namespace: &str, name: &str, subresource: &str, patch: Value) {
        self.patch_as(PatchType::Merge, group, plural, namespace, name, subresource, patch).await;
    }

    #[expect(clippy::too_many_arguments, reason = "one line for each call in the tests")]
    async fn patch_as(
        &self,
        kind: PatchType,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: Value,
    ) {
        let objects = self.cluster.objects(group, plural);
        let written = objects.patch(namespace, name, subresource, kind, &patch, &WriteOptions::default()).await;
        written.unwrap_or_else(|error| panic!("{plural}/{name}: {error}"));
    }

    async fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.cluster.objects(group, plural).get(namespace, name).await.ok()
    }

    async fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        let options = ListOptions::default();
        self.cluster.objects(group, plural).list(namespace, &options).await.unwrap().items
    }

    async fn delete(&self, group: &str, plural: &str, namespace: &str, name: &str, propagation: Option<Propagation>) {
        let options = DeleteOptions { propagation, ..DeleteOptions::default() };
        self.cluster.objects(group, plural).delete(namespace, name, &options).await.unwrap();
    }

    /// Waits until `condition` holds, for at most 10 s.
    #[track_caller]
    fn until<'a>(&'a self, what: &'a str, condition: impl AsyncFn() -> bool + 'a) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            for _ in 0..500 {
                if condition().await {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            panic!("{caller}: waited in vain for {what}; pods: {:#?}", self.list("", "pods", "").await);
        }
    }

    /// Plays the agents: every bound pod runs and is ready, every deleted one ends.
    async fn play_agents(&self) {
        for pod in self.list("", "pods", "").await {
            let (namespace, name) = (text(&pod, "namespace"), text(&pod, "name"));
            if pod["metadata"]["deletionTimestamp"].is_string() {
                let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
                let _ = self.cluster.objects("", "pods").delete(&namespace, &name, &options).await;
            } else if pod["spec"]["nodeName"].is_string() && pod["status"]["phase"] != "Running" {
                let now = jiff_now();
                let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
                // Any address that differs from pod to pod.
                let octet = uid.bytes().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
                let ip = format!("10.244.0.{octet}");
                let patch = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}]}});
                let (kind, options) = (PatchType::Strategic, WriteOptions::default());
                let _ =
                    self.cluster.objects("", "pods").patch(&namespace, &name, "status", kind, &patch, &options).await;
            }
        }
    }

    async fn until_available(&self, name: &str, replicas: i64) -> Value {
        self.until("the deployment to be available", async || {
            self.play_agents().await;
            let Some(deployment) = self.get("apps", "deployments", "default", name).await else { return false };
            let status = &deployment["status"];
            status["observedGeneration"] == deployment["metadata"]["generation"]
                && ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"]
                    .iter()
                    .all(|key| status[*key].as_i64().unwrap_or(0) == replicas)
        })
        .await;
        self.get("apps", "deployments", "default", name).await.unwrap()
    }

    async fn events(&self, reason: &str) -> Vec<String> {
        let events = self.list("", "events", "").await;
        let of_reason = events.iter().filter(|event| event["reason"] == reason);
        of_reason.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

fn jiff_now() -> String {
    stoker_control_plane::clock::seconds_text(stoker_control_plane::clock::now())
}

fn text(object: &Value, key: &str) -> String {
    object["metadata"][key].as_str().unwrap_or_default().to_owned()
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}})
}

fn deployment(name: &str, replicas: i64) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cluster_has_its_namespaces_service_account_and_service() {
    // C5.13, C7.12
    let lab = Lab::start().await;
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        lab.until("the service account and the CA", async || {
            let account = lab.get("", "serviceaccounts", namespace, "default").await;
            let ca = lab.get("", "configmaps", namespace, "kube-root-ca.crt").await;
            account.is_some() && ca.is_some_and(|ca| ca["data"]["ca.crt"] == lab.ca)
        })
        .await;
    }
    lab.delete("", "configmaps", "default", "kube-root-ca.crt", None).await;
    lab.until("the CA to come back", async || lab.get("", "configmaps", "default", "kube-root-ca.crt").await.is_some())
        .await;
    let service = lab.get("", "services", "default", "kubernetes").await.unwrap();
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let slice = lab.get("discovery.k8s.io", "endpointslices", "default", "kubernetes").await.unwrap();
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.7"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_pods_never_fills_a_node_beyond_what_it_has() {
    let lab = Lab::start().await;
    lab.node("n1", "1").await;
    lab.node("n2", "1").await;
    futures::future::join_all((0..12).map(|n| lab.create("", "pods", "default", pod(&format!("p{n}"), "250m")))).await;
    let bound = async |node: &str| {
        lab.list("", "pods", "default").await.iter().filter(|pod| pod["spec"]["nodeName"] == node).count()
    };
    lab.until("eight pods to have a node", async || bound("n1").await + bound("n2").await == 8).await;
    lab.until("the others to be told why not", async || {
        let pods = lab.list("", "pods", "default").await;
        let told = pods.iter().filter(|pod| {
            let condition = &pod["status"]["conditions"][0];
            condition["type"] == "PodScheduled"
                && condition["status"] == "False"
                && condition["reason"] == "Unschedulable"
                && condition["message"]
                    == "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 No preemption \
                        victims found for incoming pod."
        });
        told.count() == 4
    })
    .await;
    assert_eq!((bound("n1").await, bound("n2").await), (4, 4));
    let scheduled = lab.events("Scheduled").await;
    assert!(scheduled.iter().any(|message| message.starts_with("Successfully assigned default/p")), "{scheduled:?}");
    // A node that comes makes room.
    lab.node("n3", "1").await;
    lab.until("the rest to have a node", async || bound("n3").await == 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_rolls_out_scales_and_rolls_back() {
    let lab = Lab::start().await;
    lab.node("n1", "8").await;
    lab.create("apps", "deployments", "default", deployment("web", 3)).await;
    let first = lab.until_available("web", 3).await;
    assert_eq!(first["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    let progressing =
        first["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Progressing").unwrap();
    assert_eq!(progressing["reason"], "NewReplicaSetAvailable");
    let sets = lab.list("apps", "replicasets", "default").await;
    let set = text(&sets[0], "name");
    assert!(set.starts_with("web-") && sets[0]["metadata"]["labels"]["pod-template-hash"].is_string(), "{sets:?}");
    lab.until("the event", async || {
        lab.events("ScalingReplicaSet").await.contains(&format!("Scaled up replica set {set} from 0 to 3"))
    })
    .await;

    lab.patch("apps", "deployments", "default", "web", "", json!({"spec": {"replicas": 5}})).await;
    lab.until_available("web", 5).await;

    let container = json!([{"name": "c", "image": "i:2"}]);
    let image = json!({"spec": {"template": {"spec": {"containers": container}}}});
    lab.patch("apps", "deployments", "default", "web", "", image).await;
    let second = lab.until_available("web", 5).await;
    assert_eq!(second["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
    let sets = lab.list("apps", "replicasets", "default").await;
    assert_eq!(sets.len(), 2, "the old set is kept for rolling back");

    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    lab.patch("apps", "deployments", "default", "web", "", image).await;
    let third = lab.until_available("web", 5).await;
    assert_eq!(third["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    let sets = lab.list("apps", "replicasets", "default").await;
    assert_eq!(sets.len(), 2, "a rollback uses the old set again");
    let again = sets.iter().find(|s| text(s, "name") == set).unwrap();
    assert_eq!(again["spec"]["replicas"], 5);
    assert_eq!(again["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"], "1");

    // A deleted pod is replaced.
    let pods = lab.list("", "pods", "default").await;
    lab.delete("", "pods", "default", &text(&pods[0], "name"), None).await;
    lab.until_available("web", 5).await;

    // The whole family goes with its head.
    lab.delete("apps", "deployments", "default", "web", Some(Propagation::Background)).await;
    lab.until("everything to be gone", async || {
        lab.play_agents().await;
        lab.list("apps", "replicasets", "default").await.is_empty() && lab.list("", "pods", "default").await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dependents_go_first_or_are_set_free() {
    let lab = Lab::start().await;
    lab.node("n1", "8").await;
    for (name, propagation) in [("kept", Propagation::Orphan), ("gone", Propagation::Foreground)] {
        lab.create("apps", "deployments", "default", deployment(name, 1)).await;
        lab.until_available(name, 1).await;
        lab.delete("apps", "deployments", "default", name, Some(propagation)).await;
        lab.until("the deployment to be gone", async || {
            lab.play_agents().await;
            lab.get("apps", "deployments", "default", name).await.is_none()
        })
        .await;
        let sets = lab.list("apps", "replicasets", "default").await;
        let left: Vec<&Value> = sets.iter().filter(|set| text(set, "name").starts_with(name)).collect();
        if propagation == Propagation::Foreground {
            assert_eq!(left.len(), 0, "the set went before its owner");
            continue;
        }
        assert_eq!(left.len(), 1);
        assert!(left[0]["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_slice_follows_its_pods() {
    let lab = Lab::start().await;
    lab.node("n1", "8").await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    let service = lab.create("", "services", "default", service).await;
    assert!(service["spec"]["clusterIP"].as_str().unwrap().starts_with("10.96."));
    assert!(service["spec"]["ports"][0]["nodePort"].as_u64().unwrap() >= 30086);
    let endpoints = async || -> Vec<Value> {
        let slices = lab.list("discovery.k8s.io", "endpointslices", "default").await;
        let mine = slices.iter().filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == "web");
        mine.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default()).collect()
    };
    lab.create("apps", "deployments", "default", deployment("web", 2)).await;
    lab.until_available("web", 2).await;
    lab.until("two ready endpoints", async || {
        let all = endpoints().await;
        all.len() == 2 && all.iter().all(|e| e["conditions"]["ready"] == true && e["nodeName"] == "n1")
    })
    .await;
    lab.patch("apps", "deployments", "default", "web", "", json!({"spec": {"replicas": 1}})).await;
    lab.until("an endpoint that is leaving", async || {
        endpoints().await.iter().any(|e| e["conditions"]["terminating"] == true && e["conditions"]["ready"] == false)
    })
    .await;
    lab.until_available("web", 1).await;
    lab.until("one endpoint", async || endpoints().await.len() == 1).await;
    lab.delete("", "services", "default", "web", None).await;
    lab.until("no slice", async || {
        let slices = lab.list("discovery.k8s.io", "endpointslices", "default").await;
        slices.iter().all(|s| text(s, "name") == "kubernetes")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_takes_everything_with_it() {
    let lab = Lab::start().await;
    lab.node("n1", "8").await;
    lab.create("", "namespaces", "", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))
        .await;
    lab.until("the service account", async || lab.get("", "serviceaccounts", "shop", "default").await.is_some()).await;
    lab.create("", "pods", "shop", pod("p", "1m")).await;
    lab.create("", "configmaps", "shop", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}}))
        .await;
    lab.until("the pod to have a node", async || {
        lab.get("", "pods", "shop", "p").await.is_some_and(|pod| pod["spec"]["nodeName"] == "n1")
    })
    .await;
    lab.delete("", "namespaces", "", "shop", None).await;
    lab.until("the pod to keep the namespace", async || {
        let Some(namespace) = lab.get("", "namespaces", "", "shop").await else { return false };
        let conditions = namespace["status"]["conditions"].as_array().cloned().unwrap_or_default();
        namespace["status"]["phase"] == "Terminating"
            && conditions.len() == 5
            && conditions.iter().any(|c| {
                c["type"] == "NamespaceContentRemaining"
                    && c["message"] == "Some resources are remaining: pods. has 1 resource instances"
            })
    })
    .await;
    assert!(lab.get("", "configmaps", "shop", "m").await.is_some(), "pods go first");
    lab.until("the namespace to be gone", async || {
        lab.play_agents().await;
        lab.get("", "namespaces", "", "shop").await.is_none()
    })
    .await;
    assert!(lab.list("", "configmaps", "shop").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_its_network_and_taints_and_loses_what_does_not_tolerate_them() {
    let lab = Lab::start().await;
    lab.node("n1", "8").await;
    lab.node("n2", "8").await;
    let network = async |name: &str| lab.get("", "nodes", "", name).await.unwrap()["spec"]["podCIDR"].clone();
    lab.until("both networks", async || network("n1").await.is_string() && network("n2").await.is_string()).await;
    assert_ne!(network("n1").await, network("n2").await);
    assert!(network("n1").await.as_str().unwrap().ends_with(".0/24"));

    let mut on_n1 = pod("p", "1m");
    on_n1["spec"]["nodeName"] = json!("n1");
    lab.create("", "pods", "default", on_n1).await;
    lab.play_agents().await;
    let taints = json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}});
    lab.patch("", "nodes", "", "n1", "", taints).await;
    lab.until("the pod to be evicted", async || {
        let Some(pod) = lab.get("", "pods", "default", "p").await else { return false };
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget");
        pod["metadata"]["deletionTimestamp"].is_string()
            && target.is_some_and(|t| {
                t["reason"] == "DeletionByTaintManager"
                    && t["message"] == "Taint manager: deleting due to NoExecute taint"
            })
    })
    .await;
    assert!(lab.events("TaintManagerEviction").await.contains(&"Marking for deletion Pod default/p".to_owned()));

    let now = jiff_now();
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "lastHeartbeatTime": now}]}});
    lab.patch_as(PatchType::Strategic, "", "nodes", "", "n2", "status", not_ready).await;
    lab.until("the taints", async || {
        let node = lab.get("", "nodes", "", "n2").await.unwrap();
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        ["NoSchedule", "NoExecute"]
            .iter()
            .all(|e| taints.iter().any(|t| t["key"] == "node.kubernetes.io/not-ready" && t["effect"] == *e))
    })
    .await;
    lab.set_ready("n2", "8").await;
    lab.until("no taints", async || {
        let node = lab.get("", "nodes", "", "n2").await.unwrap();
        node["spec"]["taints"].as_array().is_none_or(Vec::is_empty)
    })
    .await;
}

fn disk(name: &str, size: &str, spec: Value) -> Value {
    let mut volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"},
    }});
    volume["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    volume
}

fn claim(name: &str, spec: Value) -> Value {
    let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    }});
    claim["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    claim
}

impl Lab {
    async fn until_phase(&self, plural: &'static str, name: &'static str, phase: &'static str) {
        let namespace = if plural == "persistentvolumes" { "" } else { "default" };
        let has = async || self.get("", plural, namespace, name).await.is_some_and(|o| o["status"]["phase"] == phase);
        self.until(&format!("{plural} {name} {phase}"), has).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_get_volumes_and_give_them_back() {
    // C7.11
    let lab = Lab::start().await;
    for volume in [disk("large", "9Gi", json!({})), disk("small", "2Gi", json!({}))] {
        lab.create("", "persistentvolumes", "", volume).await;
    }
    lab.until_phase("persistentvolumes", "small", "Available").await;
    lab.until_phase("persistentvolumes", "large", "Available").await;
    lab.create("", "persistentvolumeclaims", "default", claim("c", json!({"storageClassName": ""}))).await;
    lab.until_phase("persistentvolumeclaims", "c", "Bound").await;
    lab.until_phase("persistentvolumes", "small", "Bound").await;
    let bound = lab.get("", "persistentvolumeclaims", "default", "c").await.unwrap();
    assert_eq!(
        (&bound["spec"]["volumeName"], &bound["status"]["capacity"]["storage"]),
        (&json!("small"), &json!("2Gi"))
    );
    assert_eq!(bound["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"], "yes");
    assert_eq!(bound["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));

    // A pod that is on a node keeps its claim; without it the claim goes, and the volume keeps its data for its owner.
    lab.node("n1", "4").await;
    let volumes = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]);
    let user = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "user"},
        "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": volumes}});
    lab.create("", "pods", "default", user).await;
    lab.until("the pod has a node", async || {
        lab.get("", "pods", "default", "user").await.is_some_and(|p| p["spec"]["nodeName"] == "n1")
    })
    .await;
    lab.delete("", "persistentvolumeclaims", "default", "c", None).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(lab.get("", "persistentvolumeclaims", "default", "c").await.is_some());
    lab.patch("", "pods", "default", "user", "status", json!({"status": {"phase": "Succeeded"}})).await;
    lab.until("the claim goes", async || lab.get("", "persistentvolumeclaims", "default", "c").await.is_none()).await;
    lab.until_phase("persistentvolumes", "small", "Released").await;

    // Nobody here can delete what was made by hand.
    let gone = disk("gone", "1Gi", json!({"persistentVolumeReclaimPolicy": "Delete", "storageClassName": "by-hand"}));
    lab.create("", "persistentvolumes", "", gone).await;
    let named = claim("named", json!({"storageClassName": "by-hand", "volumeName": "gone"}));
    lab.create("", "persistentvolumeclaims", "default", named).await;
    lab.until_phase("persistentvolumeclaims", "named", "Bound").await;
    lab.delete("", "persistentvolumeclaims", "default", "named", None).await;
    lab.until_phase("persistentvolumes", "gone", "Failed").await;
    lab.delete("", "persistentvolumes", "", "gone", None).await;
    lab.until("the volume goes", async || lab.get("", "persistentvolumes", "", "gone").await.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_waits_for_its_first_consumer() {
    // C7.11
    let lab = Lab::start().await;
    for name in ["n1", "n2"] {
        lab.node(name, "4").await;
        lab.patch("", "nodes", "", name, "", json!({"metadata": {"labels": {"disk": name}}})).await;
    }
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local"},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"});
    lab.create("storage.k8s.io", "storageclasses", "", class).await;
    let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["n2"]}]}]}});
    let volume = disk("on-n2", "2Gi", json!({"storageClassName": "local", "nodeAffinity": affinity}));
    lab.create("", "persistentvolumes", "", volume).await;
    lab.until_phase("persistentvolumes", "on-n2", "Available").await;
    let template = json!({"spec": claim("", json!({"storageClassName": "local"}))["spec"]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "data", "ephemeral": {"volumeClaimTemplate": template}}],
    }});
    let made = lab.create("", "pods", "default", pod).await;
    lab.until_phase("persistentvolumeclaims", "p-data", "Bound").await;
    let claim = lab.get("", "persistentvolumeclaims", "default", "p-data").await.unwrap();
    // A9.19
    let owner = &claim["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["uid"], &owner["controller"]), (&made["metadata"]["uid"], &json!(true)));
    assert_eq!(claim["spec"]["volumeName"], "on-n2");
    lab.until("the pod is where its volume is", async || {
        lab.get("", "pods", "default", "p").await.is_some_and(|p| p["spec"]["nodeName"] == "n2")
    })
    .await;
}
