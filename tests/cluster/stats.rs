//! What the node tells about itself and its pods, through the API server's proxy and with a pod's token.

use serde_json::Value;

use crate::lab::enclosure::NODE_IP;
use crate::lab::manifest::pod;
use crate::lab::{Lab, text};

#[test]
fn use_is_told_in_the_words_of_kubelet_and_cadvisor() {
    let lab = Lab::start();
    // Half a core, a hundred lines, and a file in its own layer.
    let script = "head -c 3000000 /dev/zero > /written; seq 100; while true; do :; done";
    lab.apply(
        &pod("busy")
            .script(script)
            .container("resources", serde_json::json!({"limits": {"cpu": "200m", "memory": "64Mi"}}))
            .build(),
    );
    lab.eventually("it is ready", |lab| lab.ready_pods("busy") == 1);
    let raw = |path: &str| lab.kubectl(&format!("get --raw /api/v1/nodes/lab/proxy/{path}"));
    let summary = |lab: &Lab| -> Value {
        serde_json::from_str(&lab.kubectl("get --raw /api/v1/nodes/lab/proxy/stats/summary")).unwrap()
    };
    lab.eventually("the pod's use is told", |lab| {
        let now = summary(lab);
        let busy = now["pods"].as_array().unwrap().iter().find(|pod| pod["podRef"]["name"] == "busy").cloned();
        let Some(busy) = busy else { return false };
        let container = &busy["containers"][0];
        container["cpu"]["usageNanoCores"].as_u64().is_some_and(|use_| (100_000_000..300_000_000).contains(&use_))
            && container["memory"]["workingSetBytes"].as_u64().is_some_and(|bytes| bytes > 0)
            && container["memory"]["availableBytes"].as_u64().is_some_and(|bytes| bytes < 64 << 20)
            && container["logs"]["usedBytes"].as_u64().is_some_and(|bytes| bytes > 292)
            && busy["network"]["interfaces"][0]["name"] == "eth0"
    });
    // A18.5. containerd measures its images ten seconds after its start.
    lab.eventually("the images are measured", |lab| {
        summary(lab)["node"]["runtime"]["imageFs"]["usedBytes"].as_u64().is_some_and(|bytes| bytes > 0)
    });
    let now = summary(&lab);
    let node = &now["node"];
    assert_eq!(text(&node["nodeName"]), "lab");
    for path in [
        "/cpu/usageCoreNanoSeconds",
        "/memory/workingSetBytes",
        "/memory/availableBytes",
        "/fs/capacityBytes",
        "/runtime/imageFs/usedBytes",
        "/rlimit/maxpid",
    ] {
        assert!(
            node.pointer(path).is_some_and(|number| number.as_u64().is_some_and(|number| number > 0)),
            "{path}: {node}"
        );
    }
    let short: Value = serde_json::from_str(&raw("stats/summary?only_cpu_and_memory=true")).unwrap();
    assert!(short["node"]["cpu"].is_object() && short["node"]["fs"].is_null());

    // A18.4
    let resource = raw("metrics/resource");
    for part in [
        "container_cpu_usage_seconds_total{container=\"busy\",namespace=\"default\",pod=\"busy\"} ",
        "pod_memory_working_set_bytes{namespace=\"default\",pod=\"busy\"} ",
        "node_cpu_usage_seconds_total ",
        "container_start_time_seconds{container=\"busy\"",
        "resource_scrape_error 0",
    ] {
        assert!(resource.contains(part), "{part} is missing in\n{resource}");
    }
    let cadvisor = raw("metrics/cadvisor");
    for part in [
        "container_cpu_usage_seconds_total{container=\"busy\",cpu=\"total\",id=\"/kubepods/",
        "container_cpu_cfs_throttled_periods_total{container=\"busy\"",
        "container_network_receive_bytes_total{id=\"/kubepods/",
        "interface=\"eth0\"",
        "machine_memory_bytes ",
    ] {
        assert!(cadvisor.contains(part), "{part} is missing in\n{cadvisor}");
    }
    assert!(raw("metrics").contains("kubelet_running_pods 1"));

    // A18.13
    let config: Value = serde_json::from_str(&raw("configz")).unwrap();
    let config = &config["kubeletconfig"];
    assert_eq!(
        (text(&config["kind"]), text(&config["apiVersion"])),
        ("KubeletConfiguration".into(), "kubelet.config.k8s.io/v1beta1".into())
    );
    assert_eq!(config["failCgroupV1"], false);
    // A18.3
    assert!(raw("runningpods/").contains("\"name\":\"busy\""));
    // A18.15
    assert!(raw("statusz").contains("Binary version"));

    // A18.6
    assert!(raw("logs/").contains("<a href=\"pods/\">"));
    let outside = lab.try_kubectl("get --raw /api/v1/nodes/lab/proxy/logs/%2e%2e/%2e%2e/etc/passwd");
    assert!(!outside.success && !outside.out.contains("root:"), "{outside:?}");

    // A18.16, A18.17: a pod's token, first without a permission, then with one.
    lab.kubectl("create serviceaccount prometheus");
    let token = lab.kubectl("create token prometheus");
    let ask = |token: &str| {
        let header = format!("Authorization: Bearer {token}");
        let url = format!("https://{NODE_IP}:10250/metrics/resource");
        lab.run("curl", &["-ksS", "-w", "\n%{http_code}", "-H", &header, &url]).out
    };
    assert!(ask("nobody").ends_with("Unauthorized\n401"), "{}", ask("nobody"));
    let refused = ask(token.trim());
    assert!(refused.starts_with("Forbidden (user=system:serviceaccount:default:prometheus, verb=get, resource=nodes, subresource(s)=[metrics])"), "{refused}");
    lab.kubectl("create serviceaccount grafana");
    lab.kubectl("create clusterrole metrics --verb=get --resource=nodes/metrics");
    lab.kubectl("create clusterrolebinding metrics --clusterrole=metrics --serviceaccount=default:grafana");
    let token = lab.kubectl("create token grafana");
    lab.eventually("it may read", |_| ask(token.trim()).ends_with("\n200"));
    lab.finish();
}
