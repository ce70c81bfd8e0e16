//! What the node tells about itself and its pods, through the API server's proxy and with a pod's token.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::enclosure::NODE_IP;
use crate::lab::manifest::pod;
use crate::lab::{Lab, text};

/// What [NodeConformance] asks of every container, and more; block devices are looked at apart.
const OF_CONTAINERS: [&str; 31] = [
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_file_descriptors",
    "container_fs_usage_bytes",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_oom_events_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_quota",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_reservation_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
    "container_ulimits_soft",
];

/// A volume of this node, bound to a claim.
fn claim(lab: &Lab, disk: &Path) {
    let node = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["lab"]}
    ]}]}});
    let capacity = json!({"storage": "8Mi"});
    lab.apply(&json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"}, "spec": {
        "capacity": capacity, "accessModes": ["ReadWriteOnce"], "storageClassName": "none",
        "local": {"path": disk}, "nodeAffinity": node
    }}));
    lab.apply(&json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "disk"}, "spec": {
        "resources": {"requests": capacity}, "accessModes": ["ReadWriteOnce"], "storageClassName": "none",
        "volumeName": "disk"
    }}));
}

/// The value of a label.
fn labelled(labels: &str, name: &str) -> String {
    let rest = labels.split(&format!("{name}=\"")).nth(1).unwrap_or_default();
    rest.split('"').next().unwrap_or_default().to_owned()
}

/// Seconds since the epoch.
fn seconds_now(lab: &Lab) -> i64 {
    lab.run("date", &["+%s"]).expect_success("date").trim().parse().unwrap()
}

#[test]
fn use_is_told_in_the_words_of_kubelet_and_cadvisor() {
    let lab = Lab::start();
    let disk = lab.dir().join("disk");
    std::fs::create_dir(&disk).unwrap();
    lab.run("mount", &["-t", "tmpfs", "-o", "size=8m", "tmpfs", disk.to_str().unwrap()]).expect_success("mount");
    claim(&lab, &disk);
    // A fifth of a core, a hundred lines, and a file in its own layer and in each of its volumes.
    let script = "for to in /written /data/a /scratch/a; do head -c 3000000 /dev/zero > $to; done
        dd if=/dev/zero of=/direct bs=4096 count=16 oflag=direct; seq 100; while true; do :; done";
    let mut busy = pod("busy")
        .script(script)
        .container("resources", json!({"limits": {"cpu": "200m", "memory": "64Mi"}}))
        .container(
            "volumeMounts",
            json!([{"name": "data", "mountPath": "/data"}, {"name": "scratch", "mountPath": "/scratch"}]),
        )
        .build();
    busy["spec"]["volumes"] =
        json!([{"name": "data", "persistentVolumeClaim": {"claimName": "disk"}}, {"name": "scratch", "emptyDir": {}}]);
    lab.apply(&busy);
    lab.apply(&pod("idle").build());
    lab.apply(&pod("stuck").image("localhost/none:1").build());
    // Volumes are measured at the first question, and then not for a minute.
    // What dd says comes in another stream, before or after it.
    lab.eventually("it has written", |lab| lab.try_kubectl("logs busy").out.lines().any(|line| line == "100"));
    lab.eventually("the idle one runs", |lab| lab.ready_pods("idle") == 1);
    lab.eventually("a pull has failed", |lab| lab.try_kubectl("get pod stuck").out.contains("Image"));
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
    // The runtime measures layers every ten seconds, and is asked as often.
    let of_busy = |now: &Value| now["pods"].as_array()?.iter().find(|pod| pod["podRef"]["name"] == "busy").cloned();
    lab.eventually("what it wrote into its own layer is told", |lab| {
        let busy = of_busy(&summary(lab)).unwrap_or_default();
        busy["containers"][0]["rootfs"]["usedBytes"].as_u64().is_some_and(|bytes| bytes >= 3_000_000)
    });
    let now = summary(&lab);
    let node = &now["node"];
    assert_eq!(text(&node["nodeName"]), "lab");
    let is_there = |part: &Value, path: &str| {
        let found = part.pointer(path).unwrap_or_else(|| panic!("{path} is missing in {part}"));
        assert!(found.is_string() || found.is_u64(), "{path} is {found}");
    };
    for path in [
        "/startTime",
        "/cpu/time",
        "/cpu/usageNanoCores",
        "/cpu/usageCoreNanoSeconds",
        "/memory/time",
        "/memory/availableBytes",
        "/memory/usageBytes",
        "/memory/workingSetBytes",
        "/memory/rssBytes",
        "/memory/pageFaults",
        "/memory/majorPageFaults",
        "/network/name",
        "/network/rxBytes",
        "/network/interfaces/0/txBytes",
        "/fs/availableBytes",
        "/fs/capacityBytes",
        "/fs/usedBytes",
        "/fs/inodes",
        "/fs/inodesFree",
        "/fs/inodesUsed",
        "/runtime/imageFs/capacityBytes",
        "/runtime/imageFs/usedBytes",
        "/runtime/containerFs/capacityBytes",
        "/runtime/containerFs/usedBytes",
        "/rlimit/maxpid",
        "/rlimit/curproc",
        "/swap/time",
    ] {
        is_there(node, path);
    }
    let short: Value = serde_json::from_str(&raw("stats/summary?only_cpu_and_memory=true")).unwrap();
    assert!(short["node"]["cpu"].is_object() && short["node"]["fs"].is_null());

    let busy = now["pods"].as_array().unwrap().iter().find(|pod| pod["podRef"]["name"] == "busy").unwrap();
    for path in [
        "/podRef/uid",
        "/startTime",
        "/containers/0/startTime",
        "/containers/0/cpu/usageNanoCores",
        "/containers/0/cpu/usageCoreNanoSeconds",
        "/containers/0/memory/availableBytes",
        "/containers/0/memory/usageBytes",
        "/containers/0/memory/workingSetBytes",
        "/containers/0/memory/rssBytes",
        "/containers/0/memory/pageFaults",
        "/containers/0/memory/majorPageFaults",
        "/containers/0/rootfs/usedBytes",
        "/containers/0/rootfs/inodesUsed",
        "/containers/0/logs/usedBytes",
        "/containers/0/swap/time",
        "/cpu/usageNanoCores",
        "/cpu/usageCoreNanoSeconds",
        "/memory/usageBytes",
        "/memory/workingSetBytes",
        "/memory/rssBytes",
        "/memory/pageFaults",
        "/memory/majorPageFaults",
        "/network/name",
        "/network/txBytes",
        "/volume/0/name",
        "/ephemeral-storage/usedBytes",
        "/process_stats/process_count",
        "/swap/time",
    ] {
        is_there(busy, path);
    }
    let posted = lab.kubectl("create --raw /api/v1/nodes/lab/proxy/stats/summary -f /dev/null");
    assert!(posted.contains("\"nodeName\":\"lab\""), "{posted}");
    assert!(!lab.try_kubectl("get --raw /api/v1/nodes/lab/proxy/stats/").success);
    let volume = |name: &str| busy["volume"].as_array().unwrap().iter().find(|it| it["name"] == name).unwrap().clone();
    assert_eq!(volume("data")["pvcRef"], json!({"name": "disk", "namespace": "default"}));
    assert_eq!(volume("data")["capacityBytes"], 8 << 20);
    assert!(volume("scratch")["usedBytes"].as_u64().is_some_and(|bytes| (3_000_000..4_000_000).contains(&bytes)));
    assert!(busy["ephemeral-storage"]["usedBytes"].as_u64().is_some_and(|bytes| bytes > 6_000_000), "{busy}");
    let system: Vec<String> = node["systemContainers"].as_array().unwrap().iter().map(|it| text(&it["name"])).collect();
    assert!(system.contains(&"pods".to_owned()), "{system:?}");
    // A23.4: the kernel tells it of groups of cgroup v2, and where it does not, nothing is told.
    let has_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists() && Path::new("/proc/pressure/cpu").exists();
    let pods_together = node["systemContainers"].as_array().unwrap().iter().find(|it| it["name"] == "pods").unwrap();
    for part in [node, pods_together, busy, &busy["containers"][0]] {
        for resource in ["cpu", "memory", "io"] {
            let psi = &part[resource]["psi"];
            for side in ["some", "full"] {
                let is_told = |figure: &str| psi[side][figure].is_number();
                let told = ["total", "avg10", "avg60", "avg300"].map(is_told);
                assert_eq!(told, [has_v2; 4], "{resource} {side} {part}");
            }
        }
    }
    // A container that wants more of the CPU than it may have waits for it.
    let waited = |now: &Value| {
        let busy = now["pods"].as_array().unwrap().iter().find(|pod| pod["podRef"]["name"] == "busy").unwrap().clone();
        [&busy, &busy["containers"][0]].map(|part| part["cpu"]["psi"]["some"]["total"].as_u64())
    };
    let before = waited(&now);
    if has_v2 {
        lab.eventually("pressure rises under load", |lab| {
            let later = waited(&summary(lab));
            later.iter().zip(&before).all(|(later, before)| later > before)
        });
    } else {
        assert_eq!(before, [None, None]);
    }

    // A18.4, A23.1
    let resource = raw("metrics/resource");
    let lines = |page: &str, name: &str| -> Vec<(String, f64, Option<i64>)> {
        let of = |line: &str| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
            let (labels, values) = rest.rsplit_once('}').map_or(("", rest), |(labels, values)| (labels, values));
            let mut values = values.split_whitespace();
            let number = values.next()?.parse().ok()?;
            Some((labels.trim_start_matches('{').to_owned(), number, values.next().and_then(|at| at.parse().ok())))
        };
        page.lines().filter_map(of).collect()
    };
    for name in ["resource_scrape_error", "scrape_error"] {
        assert_eq!(lines(&resource, name)[0].1, 0.0, "{name}");
    }
    let node_now = seconds_now(&lab);
    for (name, labels) in [
        ("node_cpu_usage_seconds_total", ""),
        ("node_memory_working_set_bytes", ""),
        ("node_swap_usage_bytes", ""),
        ("container_cpu_usage_seconds_total", "container=\"busy\",namespace=\"default\",pod=\"busy\""),
        ("container_memory_working_set_bytes", "container=\"busy\",namespace=\"default\",pod=\"busy\""),
        ("container_swap_usage_bytes", "container=\"busy\",namespace=\"default\",pod=\"busy\""),
        ("container_swap_limit_bytes", "container=\"busy\",namespace=\"default\",pod=\"busy\""),
        ("container_start_time_seconds", "container=\"busy\",namespace=\"default\",pod=\"busy\""),
        ("pod_cpu_usage_seconds_total", "namespace=\"default\",pod=\"busy\""),
        ("pod_memory_working_set_bytes", "namespace=\"default\",pod=\"busy\""),
        ("pod_swap_usage_bytes", "namespace=\"default\",pod=\"busy\""),
        ("resource_scrape_error", ""),
        ("scrape_error", ""),
    ] {
        let found = lines(&resource, name);
        let (_, number, at) =
            found.iter().find(|(has, ..)| has == labels).unwrap_or_else(|| panic!("{name} {resource}"));
        let may_be_zero = name.contains("swap") || name.contains("error");
        assert!(*number > 0.0 || may_be_zero, "{name} is {number}");
        let is_timed = !name.contains("error") && name != "container_start_time_seconds";
        assert_eq!(at.is_some(), is_timed, "{name}");
        assert!(at.is_none_or(|at| (node_now - at / 1000).abs() < 60), "{name} was taken at {at:?}");
    }

    // To ask for layers wakes every container's shim: a scrape does so only when there can be news.
    let asked = || {
        let all = lines(&raw("metrics"), "kubelet_runtime_operations_total");
        all.iter()
            .find(|(labels, ..)| labels.contains("\"list_container_stats\""))
            .map_or(0.0, |(_, number, _)| *number)
    };
    let before = asked();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(1100));
        raw("metrics/cadvisor");
    }
    let more = asked() - before;
    assert!(before >= 1.0 && more <= 2.0, "{more} more than {before} for four scrapes in five seconds");

    // A23.2: of each running container.
    let cadvisor = raw("metrics/cadvisor");
    let of_busy = |name: &str| {
        let all = lines(&cadvisor, name);
        all.into_iter().filter(|(labels, ..)| labels.contains("container=\"busy\"")).collect::<Vec<_>>()
    };
    for name in OF_CONTAINERS {
        let found = of_busy(name);
        let (labels, ..) = found.first().unwrap_or_else(|| panic!("{name} is missing in\n{cadvisor}"));
        for part in ["id=\"/", "image=\"localhost/busybox:1\"", "name=\"", "namespace=\"default\"", "pod=\"busy\""] {
            assert!(labels.contains(part), "{name}: {part} is missing in {labels}");
        }
    }
    let one = |name: &str| of_busy(name)[0].1;
    let close = |number: f64, to: f64| (number - to).abs() < 0.5;
    assert!(close(one("container_spec_memory_limit_bytes"), f64::from(64 << 20)));
    // v2 has weights, which are not as fine.
    assert!((one("container_spec_cpu_shares") - 204.0).abs() <= 27.0, "{}", one("container_spec_cpu_shares"));
    assert!(close(one("container_spec_cpu_quota") / one("container_spec_cpu_period"), 0.2));
    assert!(close(one("container_processes"), 1.0) && close(one("container_threads"), 1.0));
    assert!(one("container_cpu_usage_seconds_total") > 0.0 && one("container_file_descriptors") >= 3.0);
    assert!(one("container_cpu_cfs_throttled_periods_total") > 0.0 && one("container_fs_usage_bytes") >= 3_000_000.0);
    assert!(one("container_memory_max_usage_bytes") >= 3_000_000.0 && one("container_ulimits_soft") >= 1024.0);
    for (name, label) in [
        ("container_cpu_usage_seconds_total", "cpu=\"total\""),
        ("container_memory_failures_total", "failure_type=\"pgfault\""),
        ("container_memory_failures_total", "scope=\"container\""),
        ("container_ulimits_soft", "ulimit=\"max_open_files\""),
        ("container_fs_usage_bytes", "device=\""),
    ] {
        assert!(of_busy(name).iter().any(|(labels, ..)| labels.contains(label)), "{name} has no {label}");
    }
    // Who asks for no CPU has two shares of it.
    let of_idle = lines(&cadvisor, "container_spec_cpu_shares");
    let shares = of_idle.iter().find(|(labels, ..)| labels.contains("container=\"idle\"")).expect("it runs").1;
    assert!(close(shares, 2.0), "{shares}");
    // Devices show where something was read or written past the cache, and where the kernel tells it of groups.
    let group = labelled(&of_busy("container_processes")[0].0, "id");
    let told = ["blkio/", ""].map(|tree| {
        let files = ["blkio.throttle.io_service_bytes_recursive", "io.stat"];
        files.map(|file| lab.run("cat", &[&format!("/sys/fs/cgroup/{tree}{group}/{file}")]).out).concat()
    });
    let wrote = told.concat().lines().any(|line| {
        let bytes = line.split_once("Write ").map(|(_, bytes)| bytes);
        let bytes = bytes.or_else(|| line.split_once("wbytes=").and_then(|(_, rest)| rest.split(' ').next()));
        bytes.and_then(|bytes| bytes.trim().parse::<u64>().ok()).is_some_and(|bytes| bytes >= 16 * 4096)
    });
    for (name, parts, least) in [
        (
            "container_blkio_device_usage_total",
            &["device=\"", "major=\"", "minor=\"", "operation=\"Write\""][..],
            65536.0,
        ),
        ("container_fs_writes_bytes_total", &["device=\""], 65536.0),
        ("container_fs_writes_total", &["device=\""], 1.0),
        ("container_fs_reads_bytes_total", &["device=\""], 0.0),
        ("container_fs_reads_total", &["device=\""], 0.0),
    ] {
        let found = of_busy(name);
        let fits = |(labels, number, _): &(String, f64, Option<i64>)| {
            parts.iter().all(|part| labels.contains(part)) && *number >= least
        };
        assert!(found.iter().any(fits) || !wrote, "{name}: {found:?} {told:?}");
    }
    for direction in ["receive", "transmit"] {
        for what in ["bytes", "packets", "errors", "packets_dropped"] {
            let name = format!("container_network_{direction}_{what}_total");
            let of_pod = |(labels, ..): &(String, f64, Option<i64>)| {
                labels.contains("interface=\"eth0\"") && labels.contains("namespace=\"default\",pod=\"busy\"")
            };
            assert!(lines(&cadvisor, &name).iter().any(of_pod), "{name}");
        }
    }
    for name in ["container_fs_limit_bytes", "container_fs_inodes_total", "container_fs_inodes_free"] {
        assert!(lines(&cadvisor, name).iter().any(|(labels, number, _)| labels.contains("device=\"") && *number > 0.0));
    }
    assert!(
        lines(&cadvisor, "container_cpu_usage_seconds_total").iter().any(|(labels, ..)| labels.contains("id=\"/\""))
    );
    for name in ["machine_cpu_cores", "machine_memory_bytes"] {
        assert!(lines(&cadvisor, name)[0].0.starts_with("boot_id=\""), "{name}");
    }
    for gone in ["container_cpu_load_average_10s", "container_cpu_load_d_average_10s"] {
        assert!(!cadvisor.contains(gone), "{gone}");
    }
    // A23.4
    for resource in ["cpu", "memory", "io"] {
        for kind in ["waiting", "stalled"] {
            let found = of_busy(&format!("container_pressure_{resource}_{kind}_seconds_total"));
            assert_eq!(!found.is_empty(), has_v2, "{resource} {kind}");
        }
    }
    // What was asked of the runtime, the API server and this API is counted.
    let own = raw("metrics");
    for name in ["capacity_bytes", "available_bytes", "used_bytes", "inodes", "inodes_free", "inodes_used"] {
        let name = format!("kubelet_volume_stats_{name}");
        let labels = "namespace=\"default\",persistentvolumeclaim=\"disk\"";
        assert!(lines(&own, &name).iter().any(|(has, number, _)| has == labels && *number > 0.0), "{name} {own}");
    }
    for (name, labels) in [
        ("kubelet_runtime_operations_total", "operation_type=\"run_podsandbox\""),
        ("kubelet_runtime_operations_duration_seconds_count", "operation_type=\"create_container\""),
        ("kubelet_started_pods_total", ""),
        // A23.3
        ("kubelet_node_name", "node=\"lab\""),
        ("kubelet_running_containers", "container_state=\"running\""),
        ("kubelet_runtime_operations_errors_total", "operation_type=\"pull_image\""),
        ("kubelet_pod_worker_duration_seconds_count", "operation_type=\"create\""),
        ("kubelet_pod_worker_duration_seconds_count", "operation_type=\"sync\""),
        ("kubelet_pod_start_duration_seconds_count", ""),
        ("kubelet_pod_start_sli_duration_seconds_count", ""),
        ("kubelet_pod_start_total_duration_seconds_count", ""),
        ("kubelet_pleg_relist_duration_seconds_count", ""),
        ("kubelet_pleg_relist_interval_seconds_count", ""),
        ("kubelet_cgroup_manager_duration_seconds_count", "operation_type=\"create\""),
        ("kubelet_cgroup_manager_duration_seconds_count", "operation_type=\"update\""),
        ("kubelet_certificate_manager_client_ttl_seconds", ""),
        (
            "storage_operation_duration_seconds_count",
            "operation_name=\"volume_mount\",status=\"success\",volume_plugin=\"kubernetes.io/empty-dir\"",
        ),
        ("storage_operation_duration_seconds_count", "volume_plugin=\"kubernetes.io/local-volume\""),
        ("volume_manager_total_volumes", "plugin_name=\"kubernetes.io/empty-dir\",state=\"actual_state_of_world\""),
        ("volume_manager_total_volumes", "plugin_name=\"kubernetes.io/local-volume\",state=\"desired_state_of_world\""),
        ("kubelet_http_requests_duration_seconds_count", "path=\"metrics/cadvisor\""),
        ("kubernetes_build_info", "git_version=\""),
        ("process_cpu_seconds_total", ""),
        ("process_resident_memory_bytes", ""),
        ("process_virtual_memory_bytes", ""),
        ("process_open_fds", ""),
        ("process_max_fds", ""),
        ("process_start_time_seconds", ""),
        ("kubelet_started_containers_total", "container_type=\"container\""),
        ("rest_client_requests_total", "code=\"200\""),
        ("kubelet_http_requests_total", "path=\"metrics/resource\""),
    ] {
        let found = lines(&own, name);
        assert!(found.iter().any(|(has, number, _)| has.contains(labels) && *number > 0.0), "{name} {own}");
    }
    for part in [
        "container_cpu_usage_seconds_total{container=\"busy\",cpu=\"total\",id=\"/kubepods/",
        "container_cpu_cfs_throttled_periods_total{container=\"busy\"",
        "container_network_receive_bytes_total{container=\"\",id=\"/kubepods/",
        "interface=\"eth0\"",
        "machine_memory_bytes{",
    ] {
        assert!(cadvisor.contains(part), "{part} is missing in\n{cadvisor}");
    }
    assert!(raw("metrics").contains("kubelet_running_pods 2"));

    // What did not happen here has its place all the same.
    for name in [
        "kubelet_started_pods_errors_total",
        "kubelet_started_containers_errors_total",
        "kubelet_preemptions",
        "kubelet_evictions",
        "kubelet_restarted_pods_total",
        "kubelet_certificate_manager_client_expiration_renew_errors",
        "kubelet_certificate_manager_server_ttl_seconds",
    ] {
        assert!(own.contains(&format!("# TYPE {name} ")), "{name}");
    }

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
    assert!(raw("flagz").contains("kubelet flagz"));

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

#[test]
fn the_journal_is_asked_about_units() {
    // A18.6: systemd's own journal, in the lab's namespaces, of a unit that is no more than its control group.
    let mut lab = Lab::new();
    let config = lab.dir().join("kubelet.yaml");
    let fields = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{fields}\nenableSystemLogQuery: true\n")).unwrap();
    let script = "set -e
        mkdir -p /run/systemd/journal /run/log/journal
        setsid /lib/systemd/systemd-journald </dev/null >/run/journald.log 2>&1 &
        for _ in $(seq 100); do [ -S /run/systemd/journal/stdout ] && break; sleep 0.1; done
        tree=/sys/fs/cgroup/unified; [ -d $tree ] || tree=/sys/fs/cgroup
        mkdir -p $tree/system.slice/hello.service
        echo $$ > $tree/system.slice/hello.service/cgroup.procs
        exec systemd-cat -t hello sh -c 'echo first word; sleep 2.2; echo second word; sleep 0.5'";
    lab.run("sh", &["-c", script]).expect_success("a journal");
    lab.run("sh", &["-c", "echo by itself > /var/log/itself.log; echo plain > /var/log/plain.txt"])
        .expect_success("logs");
    lab.start_containerd();
    lab.start_control_plane();
    lab.start_agent();
    lab.eventually("the node is ready", Lab::node_is_ready);
    let ask = |query: &str| lab.try_kubectl(&format!("get --raw /api/v1/nodes/lab/proxy/logs/?{query}"));
    let words = |query: &str| {
        let told = ask(query).out;
        (told.contains("first word"), told.contains("second word"))
    };
    let all = ask("query=hello");
    assert_eq!(words("query=hello"), (true, true), "{all:?}");
    // Its lines begin with their times: `Nov 22 08:00:01.123456 host hello[1]: first word`.
    let second = all.out.lines().find(|line| line.contains("second word")).expect("it was said");
    let clock = second.split_whitespace().nth(2).and_then(|time| time.split('.').next()).expect("a time");
    let today = lab.run("date", &["-u", "+%Y-%m-%d"]).out;
    let time = format!("{}T{clock}Z", today.trim());
    for (query, expected) in [
        ("query=hello.service".to_owned(), (true, true)),
        ("query=hello&tailLines=1".to_owned(), (false, true)),
        ("query=hello&pattern=fir.t".to_owned(), (true, false)),
        (format!("query=hello&sinceTime={time}"), (false, true)),
        (format!("query=hello&untilTime={time}"), (true, false)),
        ("query=hello&boot=0".to_owned(), (true, true)),
        ("query=nobody".to_owned(), (false, false)),
    ] {
        assert_eq!(words(&query), expected, "{query}: {:?}", ask(&query));
    }
    // Who does not log there may have a file of his name, and any file below may be named.
    assert_eq!(ask("query=itself").out, "by itself\n");
    assert_eq!(ask("query=/plain.txt").out, "plain\n");
    // Nothing outside, no commands, and files have no options.
    for query in ["query=/../../etc/passwd", "query=a%3Bb", "query=/plain.txt&tailLines=1"] {
        let refused = ask(query);
        assert!(!refused.success && !refused.out.contains("root:"), "{query}: {refused:?}");
    }
    lab.finish();
}
