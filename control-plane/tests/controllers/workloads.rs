//! Jobs, DaemonSets and StatefulSets.

use serde_json::{Value, json};
use stoker_control_plane::api::{PatchType, Propagation};

use super::{Lab, jiff_now, text};

impl Lab {
    /// Ends the running pods of a job as the agent would, and takes deleted ones away.
    async fn end_pods(&self, phase: &str, most: usize) {
        let mut ended = 0;
        for pod in self.list("", "pods", "default").await {
            let name = text(&pod, "name");
            let is_over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            if is_over || pod["spec"]["nodeName"].is_null() || ended == most {
                continue;
            }
            ended += 1;
            let status = json!({"status": {"phase": phase, "containerStatuses": [{"name": "c", "image": "i", "imageID": "",
                "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "finishedAt": jiff_now()}}}]}});
            self.patch_as(PatchType::Strategic, "", "pods", "default", &name, "status", status).await;
        }
    }

    async fn names(&self) -> Vec<String> {
        let pods = self.list("", "pods", "default").await;
        let mut names: Vec<String> = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| text(pod, "name"))
            .collect();
        names.sort();
        names
    }

    async fn condition(&self, plural: &str, name: &str, kind: &str) -> Option<Value> {
        let object = self.get("batch", plural, "default", name).await?;
        object["status"]["conditions"]
            .as_array()?
            .iter()
            .find(|it| it["type"] == kind && it["status"] == "True")
            .cloned()
    }
}

fn template(labels: &Value, restart: &str) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "i:1"}]}})
}

fn job(name: &str, changes: Value) -> Value {
    let mut spec = json!({"template": template(&json!({"of": name}), "Never")});
    for (key, value) in changes.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_counts_its_pods_and_ends() {
    // C7.5
    let lab = Lab::start().await;
    lab.node("n1", "4").await;
    let made = lab.create("batch", "jobs", "default", job("count", json!({"completions": 3, "parallelism": 2}))).await;
    let uid = &made["metadata"]["uid"];
    assert_eq!(made["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], *uid);
    lab.until("two pods", async || lab.names().await.len() == 2).await;
    let pods = lab.list("", "pods", "default").await;
    assert_eq!(pods[0]["metadata"]["finalizers"], json!(["batch.kubernetes.io/job-tracking"]));
    assert_eq!(pods[0]["metadata"]["labels"]["batch.kubernetes.io/job-name"], "count");
    lab.until("the job to be complete", async || {
        lab.end_pods("Succeeded", 2).await;
        lab.condition("jobs", "count", "Complete").await.is_some()
    })
    .await;
    let done = lab.get("batch", "jobs", "default", "count").await.unwrap();
    assert_eq!(done["status"]["succeeded"], 3, "{done:#}");
    assert!(
        done["status"]["completionTime"].is_string()
            && lab.condition("jobs", "count", "SuccessCriteriaMet").await.is_some()
    );
    lab.until("the finalizers to be gone", async || {
        lab.list("", "pods", "default").await.iter().all(|pod| pod["metadata"]["finalizers"].is_null())
    })
    .await;
    assert_eq!(lab.names().await.len(), 3, "pods of a finished job stay");
    lab.until("the event", async || lab.events("Completed").await == ["Job completed"]).await;
    lab.delete("batch", "jobs", "default", "count", Some(Propagation::Background)).await;
    lab.until("its pods to be gone", async || lab.names().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gives_up_and_goes_by_index_and_waits_when_suspended() {
    let lab = Lab::start().await;
    lab.node("n1", "4").await;
    // C7.5
    lab.create("batch", "jobs", "default", job("never", json!({"backoffLimit": 0}))).await;
    lab.until("the job to fail", async || {
        lab.end_pods("Failed", 1).await;
        lab.condition("jobs", "never", "Failed").await.is_some()
    })
    .await;
    let failed = lab.condition("jobs", "never", "Failed").await.unwrap();
    assert_eq!(
        (&failed["reason"], &failed["message"]),
        (&json!("BackoffLimitExceeded"), &json!("Job has reached the specified backoff limit"))
    );
    lab.delete("batch", "jobs", "default", "never", Some(Propagation::Background)).await;
    lab.until("its pods to be gone", async || lab.names().await.is_empty()).await;

    let indexed =
        job("parts", json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "suspend": true}));
    lab.create("batch", "jobs", "default", indexed).await;
    lab.until("it says that it waits", async || lab.condition("jobs", "parts", "Suspended").await.is_some()).await;
    assert!(lab.names().await.is_empty());
    lab.patch("batch", "jobs", "default", "parts", "", json!({"spec": {"suspend": false}})).await;
    lab.until("three pods", async || lab.names().await.len() == 3).await;
    let pods = lab.list("", "pods", "default").await;
    let mut hosts: Vec<&str> = pods.iter().filter_map(|pod| pod["spec"]["hostname"].as_str()).collect();
    hosts.sort_unstable();
    assert_eq!(hosts, ["parts-0", "parts-1", "parts-2"]);
    let index = &pods[0]["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"];
    assert_eq!(pods[0]["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"], *index);
    assert_eq!(pods[0]["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
    lab.until("all parts to be done", async || {
        lab.end_pods("Succeeded", 3).await;
        lab.condition("jobs", "parts", "Complete").await.is_some()
    })
    .await;
    let done = lab.get("batch", "jobs", "default", "parts").await.unwrap();
    assert_eq!(
        (&done["status"]["completedIndexes"], &done["status"]["succeeded"]),
        (&json!("0-2"), &json!(3)),
        "{done:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_has_a_pod_on_each_node_that_fits() {
    let lab = Lab::start().await;
    for node in ["n1", "n2", "n3"] {
        lab.node(node, "4").await;
    }
    lab.patch("", "nodes", "", "n3", "", json!({"spec": {"taints": [{"key": "mine", "effect": "NoExecute"}]}})).await;
    let labels = json!({"app": "d"});
    lab.create(
        "apps",
        "daemonsets",
        "default",
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": labels}, "template": template(&labels, "Always")}}),
    )
    .await;
    let status_is = async |key: &str, count: i64| {
        lab.play_agents().await;
        let set = lab.get("apps", "daemonsets", "default", "d").await.unwrap();
        set["status"]["observedGeneration"] == set["metadata"]["generation"]
            && set["status"][key].as_i64().unwrap_or(0) == count
    };
    let nodes = async || {
        let pods = lab.list("", "pods", "default").await;
        let mut nodes: Vec<String> =
            pods.iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()).collect();
        nodes.sort();
        nodes
    };
    lab.until("two are available", async || status_is("numberAvailable", 2).await).await;
    assert_eq!(nodes().await, ["n1", "n2"]);
    // C7.4: a node that is cordoned keeps its daemons, one that fits now gets one.
    lab.patch("", "nodes", "", "n1", "", json!({"spec": {"unschedulable": true}})).await;
    lab.patch("", "nodes", "", "n3", "", json!({"spec": {"taints": null}})).await;
    lab.until("three are available", async || status_is("numberAvailable", 3).await).await;

    let before = lab.names().await;
    let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i:2"}]}}}});
    lab.patch("apps", "daemonsets", "default", "d", "", change).await;
    lab.until("all are new", async || {
        status_is("updatedNumberScheduled", 3).await && status_is("numberAvailable", 3).await
    })
    .await;
    assert!(lab.names().await.iter().all(|name| !before.contains(name)));
    let revisions = lab.list("apps", "controllerrevisions", "default").await;
    let mut numbers: Vec<i64> = revisions.iter().filter_map(|revision| revision["revision"].as_i64()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2]);
    lab.delete("", "nodes", "", "n2", None).await;
    lab.until("its pod is gone", async || {
        lab.play_agents().await;
        nodes().await == ["n1", "n3"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_goes_in_order_and_keeps_names_and_claims() {
    let lab = Lab::start().await;
    lab.node("n1", "8").await;
    let labels = json!({"app": "s"});
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    lab.create("apps", "statefulsets", "default", json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"},
        "spec": {"replicas": 3, "serviceName": "s", "selector": {"matchLabels": labels}, "template": template(&labels, "Always"),
            "volumeClaimTemplates": [claim]}})).await;
    // C7.3: the second waits for the first.
    lab.until("the first", async || lab.names().await == ["s-0"]).await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(lab.names().await, ["s-0"]);
    // A claim that nobody fills keeps its pod from any node: the test fills them.
    let status_is = async |key: &str, count: i64| {
        for pod in lab.list("", "pods", "default").await {
            if pod["spec"]["nodeName"].is_null() {
                let _ = lab.cluster.objects("", "pods").bind("default", &text(&pod, "name"), "", "n1").await;
            }
        }
        lab.play_agents().await;
        let set = lab.get("apps", "statefulsets", "default", "s").await.unwrap();
        set["status"]["observedGeneration"] == set["metadata"]["generation"]
            && set["status"][key].as_i64().unwrap_or(0) == count
    };
    lab.until("all three", async || status_is("availableReplicas", 3).await).await;
    assert_eq!(lab.names().await, ["s-0", "s-1", "s-2"]);
    let pods = lab.list("", "pods", "default").await;
    assert_eq!((&pods[1]["spec"]["hostname"], &pods[1]["spec"]["subdomain"]), (&json!("s-1"), &json!("s")));
    assert_eq!(pods[1]["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "1");
    let volume = pods[1]["spec"]["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "data").unwrap();
    assert_eq!(volume["persistentVolumeClaim"]["claimName"], "data-s-1");

    // A canary: only those from the partition on.
    let image = |image: &str, partition: i64| {
        json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": partition}},
        "template": {"spec": {"containers": [{"name": "c", "image": image}]}}}})
    };
    lab.patch("apps", "statefulsets", "default", "s", "", image("i:2", 2)).await;
    lab.until("one is new", async || status_is("updatedReplicas", 1).await && status_is("availableReplicas", 3).await)
        .await;
    let images = async || {
        let pods = lab.list("", "pods", "default").await;
        pods.iter()
            .map(|pod| pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(images().await, ["i:1", "i:1", "i:2"]);
    lab.patch("apps", "statefulsets", "default", "s", "", image("i:2", 0)).await;
    lab.until("all are new", async || status_is("updatedReplicas", 3).await && status_is("availableReplicas", 3).await)
        .await;
    let set = lab.get("apps", "statefulsets", "default", "s").await.unwrap();
    assert_eq!(set["status"]["currentRevision"], set["status"]["updateRevision"]);

    lab.patch("apps", "statefulsets", "default", "s", "", json!({"spec": {"replicas": 1}})).await;
    lab.until("one is left", async || status_is("replicas", 1).await).await;
    assert_eq!(lab.names().await, ["s-0"]);
    assert_eq!(lab.list("", "persistentvolumeclaims", "default").await.len(), 3, "claims stay");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_says_how_many_pods_may_go() {
    // C7.14
    let lab = Lab::start().await;
    lab.node("n1", "8").await;
    lab.create("apps", "deployments", "default", super::deployment("web", 3)).await;
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    lab.create("policy", "poddisruptionbudgets", "default", budget).await;
    let status = async || lab.get("policy", "poddisruptionbudgets", "default", "b").await.unwrap()["status"].clone();
    lab.until("one may go", async || {
        lab.play_agents().await;
        status().await["disruptionsAllowed"] == 1
    })
    .await;
    let now = status().await;
    assert_eq!(
        (&now["expectedPods"], &now["desiredHealthy"], &now["currentHealthy"]),
        (&json!(3), &json!(2), &json!(3))
    );
    let names = lab.names().await;
    lab.patch_as(
        PatchType::Strategic,
        "",
        "pods",
        "default",
        &names[0],
        "status",
        json!({"status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": jiff_now()}]}}),
    )
    .await;
    lab.until("none may go", async || status().await["disruptionsAllowed"] == 0).await;
    assert_eq!(status().await["conditions"][0]["reason"], "InsufficientPods");
}
