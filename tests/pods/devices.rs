//! Devices of a plugin in real containers, and who may know of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{HostPathVolumeSource, Pod, ResourceRequirements, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use stoker::resources::{Assignments, CpuOptions, CpuSet, Machine, ReservedCpus, ResourcesConfig, StaticCpus};
use stoker_model::handle::DeviceCount;
use stoker_model::pod::PodUid;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use self::proto::pod_resources_lister_client::PodResourcesListerClient;
use self::proto::{AllocatableResourcesRequest, GetPodResourcesRequest, ListPodResourcesRequest, PodResources};
use crate::gadgets::{self, Gadgets, connect};
use crate::node::{Builder, Node, condition, phase, pod, state, status};

#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
#[allow(clippy::pedantic, missing_docs, dead_code, reason = "generated code")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/v1.rs"));
}

#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
#[allow(clippy::pedantic, missing_docs, dead_code, reason = "generated code")]
mod alpha {
    include!(concat!(env!("OUT_DIR"), "/v1alpha1.rs"));
}

/// Tells what it sees each time it starts.
const SCRIPT: &str = "echo \"$GADGETS $(cat /gadget/info) $(test -c /dev/gadget && echo node)\" >> /out/$HOSTNAME; \
                      trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn asks(count: &str) -> ResourceRequirements {
    let limits: BTreeMap<_, _> = [(gadgets::NAME.to_owned(), Quantity(count.to_owned()))].into();
    ResourceRequirements { limits: Some(limits.clone()), requests: Some(limits), ..ResourceRequirements::default() }
}

fn with_gadgets(node: &Node, name: &str, count: &str) -> Builder {
    let out = node.path("out");
    fs::create_dir_all(&out).unwrap();
    let host_path = HostPathVolumeSource { path: out.to_str().unwrap().to_owned(), type_: None };
    let volume = Volume { name: "out".into(), host_path: Some(host_path), ..Volume::default() };
    let script = SCRIPT.replace("$HOSTNAME", name);
    pod(name).container("main", &script).volume(volume, "/out").with(|c| c.resources = Some(asks(count)))
}

fn seen(node: &Node, name: &str) -> Vec<String> {
    let text = fs::read_to_string(node.path("out").join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Who runs may not have written its line yet.
async fn until_seen(node: &Node, name: &str, lines: &[&str]) {
    for _ in 0..200 {
        if seen(node, name) == lines {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} is to say {lines:?}, and says {:?}", seen(node, name));
}

async fn until_count(node: &Node, capacity: i64, allocatable: i64) {
    let mut feed = node.assignments.as_ref().unwrap().device_feed();
    let wanted = DeviceCount { capacity, allocatable };
    let found = feed.wait_for(|all| all.get(gadgets::NAME).copied().unwrap_or_default() == wanted);
    let found = tokio::time::timeout(Duration::from_secs(10), found).await;
    assert!(found.is_ok(), "{wanted:?}: {:?}", node.assignments.as_ref().unwrap().device_feed().borrow());
}

async fn until_failed(node: &Node, uid: &PodUid, reason: &str, message: &str) {
    let failed = node.api.until(uid, "rejected", |p| phase(p) == "Failed").await;
    let status = failed.status.clone().unwrap();
    assert_eq!(status.reason.as_deref(), Some(reason));
    assert_eq!(status.message.as_deref(), Some(format!("Pod was rejected: {message}").as_str()));
    let name = failed.metadata.name.clone().unwrap();
    assert!(node.api.events().contains(&format!("{name}  {reason}: {message}")), "{:#?}", node.api.events());
}

pub async fn client(node: &Node) -> PodResourcesListerClient<tonic::transport::Channel> {
    PodResourcesListerClient::new(connect(&node.path("kubelet/pod-resources/kubelet.sock")).await)
}

fn shown(pods: &[PodResources]) -> Vec<String> {
    let mut lines: Vec<String> = pods
        .iter()
        .flat_map(|pod| {
            pod.containers.iter().map(move |container| {
                let devices = container.devices.iter().map(|d| {
                    let nodes = d.topology.iter().flat_map(|t| t.nodes.iter().map(|n| n.id.to_string()));
                    format!(" {}={}@{}", d.resource_name, d.device_ids.join(","), nodes.collect::<Vec<_>>().join(","))
                });
                format!("{}/{}/{}{}", pod.namespace, pod.name, container.name, devices.collect::<String>())
            })
        })
        .collect();
    lines.sort();
    lines
}

/// Health of the devices of `main`.
fn health(pod: &Pod) -> Vec<String> {
    let all = status(pod, "main").allocated_resources_status.unwrap_or_default();
    let of = |r: k8s_openapi::api::core::v1::ResourceStatus| {
        let devices = r.resources.unwrap_or_default().into_iter();
        devices.map(move |d| format!("{} {} {}", r.name, d.resource_id, d.health.unwrap_or_default()))
    };
    all.into_iter().flat_map(of).collect()
}

#[tokio::test]
async fn containers_get_devices_and_keep_them() {
    // A2.18, A10.11, A15.5, A15.7, A15.15, A6.3, A6.4
    let mut node = Node::start().await;
    let plugin = Gadgets::new(&node.path(""), &[("g0", "Healthy"), ("g1", "Healthy")]);
    let serving = plugin.serve();
    for (version, name, text) in [
        (
            "v1",
            gadgets::NAME,
            "requested API version \"v1\" is not supported by kubelet. Supported version is [\"v1beta1\"]",
        ),
        ("v1beta1", "gadget", "the ResourceName \"gadget\" is invalid"),
    ] {
        let refused = plugin.register_as(version, name).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Unknown, text));
    }
    plugin.register().await.unwrap();
    until_count(&node, 2, 2).await;

    let first = node.api.create(with_gadgets(&node, "first", "1").0);
    let running = node.api.until(&first, "ready", |p| condition(p, "Ready")).await;
    // The plugin preferred the last one.
    until_seen(&node, "first", &["g1 gadgets inside node"]).await;
    assert_eq!(plugin.calls(), ["prefer g0,g1", "allocate g1", "prepare g1"]);
    assert_eq!(health(&running), ["example.com/gadget g1 Healthy"]);
    let many = node.api.create(with_gadgets(&node, "many", "2").0);
    let text = "Allocate failed due to requested number of devices unavailable for example.com/gadget. Requested: 2, Available: 1, \
                which is unexpected";
    until_failed(&node, &many, "UnexpectedAdmissionError", text).await;

    // Who asks is told, of pods that have not ended.
    let listed = client(&node).await.list(ListPodResourcesRequest {}).await.unwrap().into_inner();
    assert_eq!(shown(&listed.pod_resources), ["default/first/main example.com/gadget=g1@0"]);
    let ask = |name: &str| GetPodResourcesRequest { pod_name: name.into(), pod_namespace: "default".into() };
    let got = client(&node).await.get(ask("first")).await.unwrap().into_inner();
    assert_eq!(shown(&[got.pod_resources.unwrap()]), ["default/first/main example.com/gadget=g1@0"]);
    let unknown = client(&node).await.get(ask("nobody")).await.unwrap_err();
    assert_eq!(unknown.message(), "pod nobody in namespace default not found");
    let all = client(&node).await.get_allocatable_resources(AllocatableResourcesRequest {}).await.unwrap().into_inner();
    assert_eq!(all.devices.iter().flat_map(|d| d.device_ids.clone()).collect::<Vec<_>>(), ["g0", "g1"]);
    let old = connect(&node.path("kubelet/pod-resources/kubelet.sock")).await;
    let mut old = alpha::pod_resources_lister_client::PodResourcesListerClient::new(old);
    let listed = old.list(alpha::ListPodResourcesRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.pod_resources[0].containers[0].devices[0].device_ids, ["g1"]);
    let busy = client(&node).await;
    let ask = |_| {
        let mut busy = busy.clone();
        async move { busy.list(ListPodResourcesRequest {}).await.err() }
    };
    let answers = futures::future::join_all((0..300).map(ask)).await;
    let refused = answers.into_iter().flatten().next().expect("too many questions");
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "rejected by rate limit"));

    // Who asked is counted; refusals are not.
    let counted = stoker_model::metrics::text(0);
    for line in [
        "kubelet_pod_resources_endpoint_requests_list{server_api_version=\"v1alpha1\"} 1",
        "kubelet_pod_resources_endpoint_requests_get{server_api_version=\"v1\"} 2",
        "kubelet_pod_resources_endpoint_requests_get_allocatable{server_api_version=\"v1\"} 1",
        "kubelet_pod_resources_endpoint_errors_get{server_api_version=\"v1\"} 1",
    ] {
        assert!(counted.lines().any(|counted| counted == line), "{line}\n{counted}");
    }
    for name in ["requests_total", "requests_list", "errors_list", "errors_get_allocatable"] {
        assert!(counted.contains(&format!("# TYPE kubelet_pod_resources_endpoint_{name} counter")), "{name}");
    }

    // A device falls ill.
    plugin.tell(&[("g0", "Healthy"), ("g1", "Unhealthy")]);
    until_count(&node, 2, 1).await;
    node.api.until(&first, "ill", |p| health(p) == ["example.com/gadget g1 Unhealthy"]).await;
    plugin.tell(&[("g0", "Healthy"), ("g1", "Healthy")]);
    node.api.until(&first, "well", |p| health(p) == ["example.com/gadget g1 Healthy"]).await;

    // Another agent: the container stays, the plugin finds its socket gone, and the device stays with its pod.
    node.stop_agent().await;
    node.start_agent();
    until_count(&node, 0, 0).await;
    assert!(!node.path("kubelet/device-plugins/gadgets.sock").exists(), "sockets are wiped");
    let early = node.api.create(with_gadgets(&node, "early", "1").0);
    let text = "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices example.com/gadget, which is \
                unexpected";
    until_failed(&node, &early, "UnexpectedAdmissionError", text).await;
    serving.stop().await;
    let serving = plugin.serve();
    plugin.register().await.unwrap();
    until_count(&node, 2, 2).await;
    let second = node.api.create(with_gadgets(&node, "second", "1").0);
    node.api.until(&second, "ready", |p| condition(p, "Ready")).await;
    until_seen(&node, "second", &["g0 gadgets inside node"]).await;
    let id = status(&node.api.pod(&first).unwrap(), "main").container_id;
    assert_eq!(id, status(&running, "main").container_id, "nobody touched it");
    let id = id.unwrap().trim_start_matches("containerd://").to_owned();
    node.lab.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    node.api.until(&first, "restarted", |p| status(p, "main").restart_count == 1 && condition(p, "Ready")).await;
    // The same device again.
    until_seen(&node, "first", &["g1 gadgets inside node"; 2]).await;

    // What a pod had is the next one's.
    node.api.delete(&first, 1);
    node.api.until_gone(&first).await;
    let third = node.api.create(with_gadgets(&node, "third", "1").0);
    node.api.until(&third, "ready", |p| condition(p, "Ready")).await;
    until_seen(&node, "third", &["g1 gadgets inside node"]).await;

    // Without its plugin a resource has nothing to give, until it registers again.
    serving.stop().await;
    until_count(&node, 2, 0).await;
    let serving = plugin.serve();
    tokio::time::sleep(Duration::from_millis(500)).await;
    until_count(&node, 2, 0).await;
    plugin.break_options();
    let refused = plugin.register().await.unwrap_err();
    assert!(refused.message().starts_with("failed to get device plugin options: "), "{refused:?}");
    until_count(&node, 2, 0).await;
    let running = node.api.pod(&third).unwrap();
    assert_eq!(state(status(&running, "main").state.as_ref()), "running", "what runs goes on");
    serving.stop().await;
    for uid in [second, third] {
        node.api.delete(&uid, 1);
        node.api.until_gone(&uid).await;
    }
    node.stop().await;
}

#[tokio::test]
async fn init_containers_hand_their_devices_on() {
    // A15.5, A15.6
    let node = Node::start().await;
    let plugin = Gadgets::new(&node.path(""), &[("g0", "Healthy"), ("g1", "Healthy")]);
    // This one is found in the registry of plugins.
    let (serving, socket) = plugin.serve_in_registry();
    until_count(&node, 2, 2).await;
    crate::volumes::until("it is told", || plugin.calls().contains(&"registered true ".to_owned())).await;
    let mut built = with_gadgets(&node, "p", "1").init("init", "true").sidecar("side", "sleep 1000");
    let spec = built.0.spec.as_mut().unwrap();
    for init in spec.init_containers.iter_mut().flatten() {
        init.resources = Some(asks("1"));
    }
    let uid = node.api.create(built.0);
    node.api.until(&uid, "ready", |p| condition(p, "Ready")).await;
    let listed = client(&node).await.list(ListPodResourcesRequest {}).await.unwrap().into_inner();
    // The sidecar took over what the init container had, and keeps it.
    let lines = shown(&listed.pod_resources);
    let id = status(&node.api.pod(&uid).unwrap(), "main").container_id.unwrap();
    let main = node.lab.runtime.container_status(id.trim_start_matches("containerd://"), false).await.unwrap();
    assert_eq!(main.status.unwrap().annotations["example.com/gadgets"], "g0");
    assert_eq!(lines, ["default/p/main example.com/gadget=g0@0", "default/p/side example.com/gadget=g1@0"]);
    node.api.delete(&uid, 1);
    node.api.until_gone(&uid).await;
    serving.stop().await;
    fs::remove_file(socket).unwrap();
    until_count(&node, 2, 0).await;
    node.stop().await;
}

/// Tells again and again on which CPUs it may run.
fn with_cpus(node: &Node, name: &str, cpu: Option<&str>) -> Builder {
    let out = node.path("out");
    fs::create_dir_all(&out).unwrap();
    let host_path = HostPathVolumeSource { path: out.to_str().unwrap().to_owned(), type_: None };
    let volume = Volume { name: "out".into(), host_path: Some(host_path), ..Volume::default() };
    let script = format!(
        "trap 'exit 0' TERM; while :; do grep Cpus_allowed_list /proc/self/status > /out/{name}.new; \
         mv /out/{name}.new /out/{name}; sleep 0.2; done"
    );
    let limits = |cpu: &str| -> BTreeMap<_, _> {
        [("cpu", cpu), ("memory", "64Mi")].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into()
    };
    let resources =
        cpu.map(|cpu| ResourceRequirements { limits: Some(limits(cpu)), ..ResourceRequirements::default() });
    pod(name).container("main", &script).volume(volume, "/out").with(|c| c.resources = resources)
}

async fn until_on(node: &Node, name: &str, cpus: &str) {
    let now = || seen(node, name).first().and_then(|line| line.split_whitespace().nth(1).map(str::to_owned));
    for _ in 0..200 {
        if now().as_deref() == Some(cpus) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} is to run on {cpus}, and runs on {:?}", now());
}

#[tokio::test]
async fn guaranteed_containers_get_cpus_of_their_own() {
    // A12.3, A12.7, A15.2
    let mut node = Node::start().await;
    node.stop_agent().await;
    let state = node.path("kubelet/cpu_manager_state");
    assert_eq!(
        fs::read_to_string(&state).unwrap(),
        r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#,
        "as kubelet writes it"
    );
    fs::remove_file(&state).unwrap();
    // All but one CPU are kept back.
    let all: CpuSet = fs::read_to_string("/sys/devices/system/cpu/online").unwrap().parse().unwrap();
    let own = all.iter().last().unwrap();
    let rest: CpuSet = all.iter().filter(|cpu| *cpu != own).collect();
    let (all, rest, own) = (all.to_string(), rest.to_string(), own.to_string());
    let reserved = ReservedCpus::Cpus(rest.parse().unwrap());
    node.resources.cpus = Some(StaticCpus { reserved, options: CpuOptions::default() });
    node.start_agent();

    let shared = node.api.create(with_cpus(&node, "shared", None).0);
    until_on(&node, "shared", &all).await;
    let first = node.api.create(with_cpus(&node, "first", Some("1")).0);
    until_on(&node, "first", &own).await;
    until_on(&node, "shared", &rest).await;
    let second = node.api.create(with_cpus(&node, "second", Some("1")).0);
    let text = "Allocate failed due to not enough cpus available to satisfy request: requested=1, available=0, which is unexpected";
    until_failed(&node, &second, "UnexpectedAdmissionError", text).await;
    node.api.create(with_cpus(&node, "fraction", Some("100m")).0);
    until_on(&node, "fraction", &rest).await;
    let listed = client(&node).await.list(ListPodResourcesRequest {}).await.unwrap().into_inner();
    let cpus = |name: &str| {
        let pod = listed.pod_resources.iter().find(|pod| pod.name == name).unwrap();
        pod.containers[0].cpu_ids.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!((cpus("first"), cpus("shared")), (vec![own.clone()], vec![]));
    let allocatable = client(&node).await.get_allocatable_resources(AllocatableResourcesRequest {}).await.unwrap();
    assert_eq!(allocatable.into_inner().cpu_ids.len(), 1);
    assert!(quotas(&node, &first).iter().all(|quota| quota == "-1"), "what is the container's own is not limited");
    node.api.change(&first, |p| {
        let resources = p.spec.as_mut().unwrap().containers[0].resources.as_mut().unwrap();
        resources.limits.as_mut().unwrap().insert("memory".to_owned(), Quantity("96Mi".to_owned()));
    });
    let larger = |p: &Pod| {
        let limits = status(p, "main").resources.and_then(|resources| resources.limits).unwrap_or_default();
        limits.get("memory").is_some_and(|memory| memory.0 == "96Mi") && !condition(p, "PodResizeInProgress")
    };
    node.api.until(&first, "resized", larger).await;
    assert!(quotas(&node, &first).iter().all(|quota| quota == "-1"), "nor after a resize: {:?}", quotas(&node, &first));

    // Another agent goes on with it.
    let before = fs::read_to_string(&state).unwrap();
    node.stop_agent().await;
    node.start_agent();
    let id = status(&node.api.pod(&first).unwrap(), "main").container_id.unwrap();
    let id = id.trim_start_matches("containerd://").to_owned();
    node.lab.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    node.api.until(&first, "restarted", |p| status(p, "main").restart_count == 1 && condition(p, "Ready")).await;
    until_on(&node, "first", &own).await;
    assert_eq!(fs::read_to_string(&state).unwrap(), before);
    node.api.delete(&first, 1);
    node.api.until_gone(&first).await;
    until_on(&node, "shared", &all).await;
    node.api.delete(&shared, 1);
    node.api.until_gone(&shared).await;
    node.stop_agent().await;
    let other = ResourcesConfig::new(node.path("kubelet"));
    let refused = Assignments::start(other, Machine::read(Path::new("/sys")), CancellationToken::new()).unwrap_err();
    let text = "configured policy \"none\" differs from state checkpoint policy \"static\"";
    assert!(refused.to_string().contains(text), "{refused}");
    node.stop().await;
}

/// CFS quotas of a pod and of its container, where the host has cgroup v1; what they are where it has not is the runtime's business.
fn quotas(node: &Node, uid: &PodUid) -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup/cpu").join(node.lab.path().file_name().unwrap());
    if !root.exists() {
        return vec!["-1".to_owned()];
    }
    let pod = root.join("kubepods").join(format!("pod{uid}"));
    let id = status(&node.api.pod(uid).unwrap(), "main").container_id.unwrap();
    let group = pod.join(id.trim_start_matches("containerd://"));
    let read = |group: &Path| fs::read_to_string(group.join("cpu.cfs_quota_us")).unwrap().trim().to_owned();
    vec![read(&pod), read(&group)]
}
