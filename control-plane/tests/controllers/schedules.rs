//! CronJobs, and Endpoints with what follows from them.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_makes_its_jobs_and_forgets_old_ones() {
    // C7.6
    let lab = Lab::start().await;
    let template = json!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let cron = |policy: &str| {
        json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"}, "spec": {
            "schedule": "*/5 * * * *", "timeZone": "Europe/Berlin", "suspend": true, "concurrencyPolicy": policy,
            "successfulJobsHistoryLimit": 0, "jobTemplate": template}})
    };
    lab.create("batch", "cronjobs", "default", cron("Forbid")).await;
    let start = async |minutes_ago: i64| {
        let then = stoker_control_plane::clock::now().as_second() - minutes_ago * 60;
        let then = stoker_control_plane::clock::seconds_text(jiff::Timestamp::from_second(then).unwrap());
        lab.patch("batch", "cronjobs", "default", "tick", "status", json!({"status": {"lastScheduleTime": then}}))
            .await;
        lab.patch("batch", "cronjobs", "default", "tick", "", json!({"spec": {"suspend": false}})).await;
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(lab.list("batch", "jobs", "default").await.len(), 0, "suspended");
    start(11).await;
    lab.until("the job", async || lab.list("batch", "jobs", "default").await.len() == 1).await;
    let job = lab.list("batch", "jobs", "default").await.remove(0);
    let name = text(&job, "name");
    let cron_now = lab.get("batch", "cronjobs", "default", "tick").await.unwrap();
    let due: jiff::Timestamp = job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(name, format!("tick-{}", due.as_second() / 60));
    assert_eq!(due.as_second() % 300, 0);
    assert_eq!(job["metadata"]["ownerReferences"][0]["uid"], cron_now["metadata"]["uid"]);
    lab.until("the status", async || {
        let status = lab.get("batch", "cronjobs", "default", "tick").await.unwrap()["status"].clone();
        status["active"][0]["name"] == name
            && status["lastScheduleTime"]
                .as_str()
                .is_some_and(|at| at.parse::<jiff::Timestamp>().is_ok_and(|at| at == due))
    })
    .await;
    // Another is due, but this one still runs.
    start(11).await;
    lab.until("the refusal", async || {
        let told = "Not starting job because prior execution is running and concurrency policy is Forbid";
        lab.list("batch", "jobs", "default").await.len() == 1
            && (lab.events("JobAlreadyActive").await.contains(&told.to_owned())
                || lab.get("batch", "cronjobs", "default", "tick").await.unwrap()["status"]["lastScheduleTime"]
                    .as_str()
                    .is_some_and(|at| at.parse::<jiff::Timestamp>().is_ok_and(|at| at == due)))
    })
    .await;
    let now = jiff_now();
    let ended = json!({"status": {"completionTime": now, "startTime": now, "succeeded": 1, "conditions": [
        {"type": "SuccessCriteriaMet", "status": "True", "lastTransitionTime": now},
        {"type": "Complete", "status": "True", "lastTransitionTime": now}]}});
    lab.patch("batch", "jobs", "default", &name, "status", ended).await;
    lab.until("the end to be seen, and the job to be forgotten", async || {
        let status = lab.get("batch", "cronjobs", "default", "tick").await.unwrap()["status"].clone();
        let saw = format!("Saw completed job: {name}, condition: Complete");
        status["active"].is_null()
            && status["lastSuccessfulTime"].is_string()
            && lab.events("SawCompletedJob").await.contains(&saw)
            && lab
                .get("batch", "jobs", "default", &name)
                .await
                .is_none_or(|job| !job["metadata"]["deletionTimestamp"].is_null())
    })
    .await;
    assert!(lab.events("SuccessfulDelete").await.contains(&format!("Deleted job {name}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_follow_pods_and_slices_follow_endpoints() {
    // C7.7
    let lab = Lab::start().await;
    lab.node("n1", "8").await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "labels": {"tier": "front"}},
        "spec": {"selector": {"app": "a"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    lab.create("", "services", "default", service).await;
    lab.create("", "pods", "default", pod("a", "100m")).await;
    let get = async |name: &str| lab.get("", "endpoints", "default", name).await.unwrap_or_default();
    lab.until("the address", async || {
        lab.play_agents().await;
        get("web").await["subsets"][0]["addresses"][0]["targetRef"]["name"] == "a"
    })
    .await;
    let web = get("web").await;
    assert_eq!(web["subsets"][0]["ports"], json!([{"port": 8080, "protocol": "TCP"}]));
    let labels = json!({"tier": "front", "endpoints.kubernetes.io/managed-by": "endpoint-controller"});
    assert_eq!(web["metadata"]["labels"], labels);
    let slices = lab.list("discovery.k8s.io", "endpointslices", "default").await;
    let of_web = slices.iter().filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web");
    assert_eq!(of_web.count(), 1, "what the controller wrote itself is not mirrored");
    lab.delete("", "services", "default", "web", None).await;
    lab.until("the Endpoints to go", async || lab.get("", "endpoints", "default", "web").await.is_none()).await;

    // Endpoints of one's own are mirrored.
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}});
    lab.create("", "services", "default", service).await;
    let own = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}]});
    lab.create("", "endpoints", "default", own).await;
    let mirrored = async || {
        let slices = lab.list("discovery.k8s.io", "endpointslices", "default").await;
        slices.into_iter().find(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "db")
    };
    lab.until("the slice", async || {
        mirrored().await.is_some_and(|slice| {
            slice["endpoints"][0]["addresses"] == json!(["192.0.2.1"])
                && slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"]
                    == "endpointslicemirroring-controller.k8s.io"
        })
    })
    .await;
    let two =
        json!({"subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}], "ports": [{"port": 5432}]}]});
    lab.patch("", "endpoints", "default", "db", "", two).await;
    lab.until("the second address", async || {
        mirrored().await.is_some_and(|slice| slice["endpoints"].as_array().is_some_and(|all| all.len() == 2))
    })
    .await;
    let label = json!({"metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}});
    lab.patch("", "endpoints", "default", "db", "", label).await;
    lab.until("the slice to go", async || mirrored().await.is_none()).await;
}
