//! Where pods go because of other pods, and who makes room for whom.

use super::*;

async fn wait_for_node(lab: &Lab, pod: &str) -> String {
    lab.until("the pod to have a node", async || {
        lab.get("", "pods", "default", pod).await.is_some_and(|pod| pod["spec"]["nodeName"].is_string())
    })
    .await;
    lab.get("", "pods", "default", pod).await.unwrap()["spec"]["nodeName"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_higher_priority_takes_the_place_of_another() {
    // C8.4
    let lab = Lab::start().await;
    lab.node("n1", "1").await;
    for (name, value, policy) in
        [("low", 10, "PreemptLowerPriority"), ("high", 1000, "PreemptLowerPriority"), ("patient", 1000, "Never")]
    {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "preemptionPolicy": policy});
        lab.create("scheduling.k8s.io", "priorityclasses", "", class).await;
    }
    let with = |name: &str, class: &str, cpu: &str| {
        let mut pod = pod(name, cpu);
        pod["spec"]["priorityClassName"] = json!(class);
        pod
    };
    lab.create("", "pods", "default", with("small", "low", "300m")).await;
    lab.create("", "pods", "default", with("large", "low", "700m")).await;
    for name in ["small", "large"] {
        wait_for_node(&lab, name).await;
    }
    lab.play_agents().await;
    lab.create("", "pods", "default", with("patient", "patient", "500m")).await;
    let message = async |name: &str| {
        let pod = lab.get("", "pods", "default", name).await.unwrap_or_default();
        pod["status"]["conditions"][0]["message"].as_str().unwrap_or_default().to_owned()
    };
    lab.until("the patient one to be told", async || {
        message("patient").await
            == "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
    })
    .await;
    lab.delete("", "pods", "default", "patient", None).await;
    let made = lab.create("", "pods", "default", with("urgent", "high", "500m")).await;
    lab.until("the victim to be told", async || {
        let Some(victim) = lab.get("", "pods", "default", "large").await else { return false };
        let told = victim["status"]["conditions"].as_array().cloned().unwrap_or_default();
        victim["metadata"]["deletionTimestamp"].is_string()
            && told.iter().any(|c| {
                c["type"] == "DisruptionTarget"
                    && c["reason"] == "PreemptionByScheduler"
                    && c["message"] == "default-scheduler: preempting to accommodate a higher priority pod"
            })
    })
    .await;
    lab.until("the place to be kept", async || {
        let urgent = lab.get("", "pods", "default", "urgent").await.unwrap();
        urgent["status"]["nominatedNodeName"] == "n1" && urgent["spec"]["nodeName"].is_null()
    })
    .await;
    assert!(lab.get("", "pods", "default", "small").await.unwrap()["metadata"]["deletionTimestamp"].is_null());
    let told = format!("Preempted by pod {} on node n1", made["metadata"]["uid"].as_str().unwrap());
    lab.until("the event", async || lab.events("Preempted").await.contains(&told)).await;
    lab.until("the pod to have the place", async || {
        lab.play_agents().await;
        lab.get("", "pods", "default", "urgent").await.unwrap()["spec"]["nodeName"] == "n1"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_spread_and_keep_their_distance() {
    // C8.2
    let lab = Lab::start().await;
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        lab.node(name, "8").await;
        let labels = json!({"metadata": {"labels": {"zone": zone, "kubernetes.io/hostname": name}}});
        lab.patch("", "nodes", "", name, "", labels).await;
    }
    let web = |name: &str| {
        let mut pod = pod(name, "100m");
        pod["metadata"]["labels"] = json!({"app": "web"});
        pod["spec"]["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]);
        pod
    };
    let mut zones = std::collections::BTreeMap::new();
    for name in ["w1", "w2", "w3", "w4"] {
        lab.create("", "pods", "default", web(name)).await;
        let node = wait_for_node(&lab, name).await;
        *zones.entry(node.chars().next().unwrap()).or_insert(0) += 1;
    }
    assert_eq!(zones, [('a', 2), ('b', 2)].into());
    let alone = |name: &str| {
        let mut pod = pod(name, "100m");
        pod["metadata"]["labels"] = json!({"app": "alone"});
        pod["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "alone"}}}]}});
        pod
    };
    let mut nodes = std::collections::BTreeSet::new();
    for name in ["x1", "x2", "x3"] {
        lab.create("", "pods", "default", alone(name)).await;
        nodes.insert(wait_for_node(&lab, name).await);
    }
    assert_eq!(nodes.len(), 3, "each has a node of its own");
    lab.create("", "pods", "default", alone("x4")).await;
    lab.until("the fourth to be told", async || {
        let pod = lab.get("", "pods", "default", "x4").await.unwrap();
        pod["status"]["conditions"][0]["message"]
            .as_str()
            .is_some_and(|told| told.contains("3 node(s) didn't match pod anti-affinity rules"))
    })
    .await;
    // Where one goes, another finds a place.
    lab.delete("", "pods", "default", "x1", None).await;
    lab.until("the fourth to have a node", async || {
        lab.play_agents().await;
        lab.get("", "pods", "default", "x4").await.unwrap()["spec"]["nodeName"].is_string()
    })
    .await;
    let mut near = pod("near", "100m");
    near["spec"]["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "late"}}}]}});
    lab.create("", "pods", "default", near).await;
    lab.until("it to be told", async || {
        let pod = lab.get("", "pods", "default", "near").await.unwrap();
        pod["status"]["conditions"][0]["message"].as_str().is_some_and(|told| told.contains("pod affinity rules"))
    })
    .await;
    let mut late = pod("late", "100m");
    late["spec"]["nodeSelector"] = json!({"zone": "b"});
    lab.create("", "pods", "default", late).await;
    assert_eq!(wait_for_node(&lab, "near").await, "b1", "company came");
}
