//! Claims of dynamic resources, with a driver that speaks the real gRPC.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{from_value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use self::health::dra_resource_health_server::{DraResourceHealth, DraResourceHealthServer};
use crate::csi::registration::registration_server::{Registration, RegistrationServer};
use crate::csi::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use crate::devices::{client, proto::ListPodResourcesRequest};
use crate::node::{Builder, Node, condition, pod, status};
use crate::volumes::{end, until, until_event};

#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
#[allow(clippy::pedantic, missing_docs, dead_code, reason = "generated code")]
mod v1 {
    include!(concat!(env!("OUT_DIR"), "/k8s.io.kubelet.pkg.apis.dra.v1.rs"));
}

#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
#[allow(clippy::pedantic, missing_docs, dead_code, reason = "generated code")]
mod v1beta1 {
    include!(concat!(env!("OUT_DIR"), "/k8s.io.kubelet.pkg.apis.dra.v1beta1.rs"));
}

#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
#[allow(clippy::pedantic, missing_docs, dead_code, reason = "generated code")]
mod health {
    include!(concat!(env!("OUT_DIR"), "/dra_health/v1alpha1.rs"));
}

const NAME: &str = "gpu.example.com";

/// What a driver was asked, oldest first; what it tells of its devices; the next failure that it shall have.
#[derive(Clone)]
struct Driver {
    dir: PathBuf,
    /// The services that it says it has.
    versions: Vec<String>,
    calls: Arc<Mutex<Vec<String>>>,
    failure: Arc<Mutex<Option<&'static str>>>,
    told: watch::Sender<Vec<health::DeviceHealth>>,
}

/// Its servers; they end with this, and its socket in the registry goes.
struct Serving(Vec<JoinHandle<()>>, PathBuf);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
        let _ = fs::remove_file(&self.1);
    }
}

impl Driver {
    fn new(root: &Path) -> Self {
        let versions = vec!["v1.DRAPlugin".to_owned()];
        let (calls, failure) = (Arc::default(), Arc::default());
        Self { dir: root.to_owned(), versions, calls, failure, told: watch::Sender::new(Vec::new()) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("plugins").join(NAME).join("dra.sock")
    }

    fn serve(&self) -> Serving {
        let register = self.dir.join("plugins_registry").join(format!("{NAME}-reg.sock"));
        for socket in [&self.socket(), &register] {
            fs::create_dir_all(socket.parent().unwrap()).unwrap();
            let _ = fs::remove_file(socket);
        }
        let listen = |socket: &Path| UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let node = Server::builder()
            .add_service(v1::dra_plugin_server::DraPluginServer::new(self.clone()))
            .add_service(v1beta1::dra_plugin_server::DraPluginServer::new(self.clone()))
            .add_service(DraResourceHealthServer::new(self.clone()))
            .serve_with_incoming(listen(&self.socket()));
        let plugin = Server::builder().add_service(RegistrationServer::new(self.clone()));
        let plugin = plugin.serve_with_incoming(listen(&register));
        let tasks =
            vec![tokio::spawn(async move { node.await.unwrap() }), tokio::spawn(async move { plugin.await.unwrap() })];
        Serving(tasks, register)
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn tell(&self, health: health::HealthStatus, message: &str) {
        let device = health::DeviceIdentifier { pool_name: "node-1".into(), device_name: "gpu-0".into() };
        let message = message.to_owned();
        let all = health::DeviceHealth { device: Some(device), health: health.into(), message, ..Default::default() };
        self.told.send_replace(vec![all]);
    }

    /// Notes a call; the text of its failure, if it shall have one.
    fn note(&self, call: &'static str, uid: &str) -> String {
        self.calls.lock().unwrap().push(format!("{call} {uid}"));
        let mut failure = self.failure.lock().unwrap();
        let fails = *failure == Some(call);
        if fails {
            *failure = None;
        }
        if fails { "the card is on fire".to_owned() } else { String::new() }
    }
}

#[tonic::async_trait]
impl v1::dra_plugin_server::DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<v1::NodePrepareResourcesRequest>,
    ) -> Result<Response<v1::NodePrepareResourcesResponse>, Status> {
        let answer = |claim: v1::Claim| {
            let device = v1::Device {
                request_names: vec!["gpu".into()],
                pool_name: "node-1".into(),
                device_name: "gpu-0".into(),
                cdi_device_ids: vec!["example.com/gpu=gpu-0".into()],
                share_id: None,
            };
            let error = self.note("prepare", &claim.uid);
            let devices = if error.is_empty() { vec![device] } else { Vec::new() };
            (claim.uid, v1::NodePrepareResourceResponse { devices, error })
        };
        let claims: BTreeMap<_, _> = request.into_inner().claims.into_iter().map(answer).collect();
        Ok(Response::new(v1::NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<v1::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<v1::NodeUnprepareResourcesResponse>, Status> {
        let answer = |claim: v1::Claim| {
            let error = self.note("unprepare", &claim.uid);
            (claim.uid, v1::NodeUnprepareResourceResponse { error })
        };
        let claims: BTreeMap<_, _> = request.into_inner().claims.into_iter().map(answer).collect();
        Ok(Response::new(v1::NodeUnprepareResourcesResponse { claims }))
    }
}

#[tonic::async_trait]
impl v1beta1::dra_plugin_server::DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<v1beta1::NodePrepareResourcesRequest>,
    ) -> Result<Response<v1beta1::NodePrepareResourcesResponse>, Status> {
        let answer = |claim: v1beta1::Claim| {
            let device = v1beta1::Device {
                request_names: vec!["gpu".into()],
                pool_name: "node-1".into(),
                device_name: "gpu-1".into(),
                cdi_device_ids: vec!["example.com/gpu=gpu-1".into()],
            };
            let error = self.note("prepare-beta", &claim.uid);
            (claim.uid, v1beta1::NodePrepareResourceResponse { devices: vec![device], error })
        };
        let claims: BTreeMap<_, _> = request.into_inner().claims.into_iter().map(answer).collect();
        Ok(Response::new(v1beta1::NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<v1beta1::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<v1beta1::NodeUnprepareResourcesResponse>, Status> {
        let answer = |claim: v1beta1::Claim| {
            let error = self.note("unprepare-beta", &claim.uid);
            (claim.uid, v1beta1::NodeUnprepareResourceResponse { error })
        };
        let claims: BTreeMap<_, _> = request.into_inner().claims.into_iter().map(answer).collect();
        Ok(Response::new(v1beta1::NodeUnprepareResourcesResponse { claims }))
    }
}

#[tonic::async_trait]
impl DraResourceHealth for Driver {
    type NodeWatchResourcesStream =
        std::pin::Pin<Box<dyn futures::Stream<Item = Result<health::NodeWatchResourcesResponse, Status>> + Send>>;

    async fn node_watch_resources(
        &self,
        _: Request<health::NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        let all = WatchStream::new(self.told.subscribe());
        Ok(Response::new(Box::pin(all.map(|devices| Ok(health::NodeWatchResourcesResponse { devices })))))
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".into(),
            name: NAME.into(),
            endpoint: self.socket().display().to_string(),
            supported_versions: self.versions.clone(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let told = request.into_inner();
        self.calls
            .lock()
            .unwrap()
            .push(format!("registered {} {}", told.plugin_registered, told.error).trim().to_owned());
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// A pod whose container has the claim.
fn claims(name: &str, claim: &str) -> Builder {
    let wanted = from_value(json!([{"name": "accelerator", "resourceClaimName": claim}])).unwrap();
    pod(name)
        .container("main", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
        .with(|c| {
            c.resources = Some(from_value(json!({"claims": [{"name": "accelerator", "request": "gpu"}]})).unwrap())
        })
        .spec(|spec| spec.resource_claims = Some(wanted))
}

/// A claim that is allocated, and reserved for these pods.
fn allocate(node: &Node, name: &str, pods: &[&str]) {
    let users: Vec<_> =
        pods.iter().map(|pod| json!({"resource": "pods", "name": pod, "uid": format!("{pod}-uid")})).collect();
    let results = json!([{"driver": NAME, "pool": "node-1", "device": "gpu-0", "request": "gpu"}]);
    let claim = from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("{name}-uid")}, "spec": {},
        "status": {"reservedFor": users, "allocation": {"devices": {"results": results}}},
    }));
    node.api.storage(|all| all.resource_claims.insert(name.to_owned(), claim.unwrap()));
}

/// Health of the devices of `main`, with the message.
fn told(pod: &Pod) -> Vec<String> {
    let all = status(pod, "main").allocated_resources_status.unwrap_or_default();
    let of = |r: k8s_openapi::api::core::v1::ResourceStatus| {
        let devices = r.resources.unwrap_or_default().into_iter();
        let text = |message: Option<String>| message.map(|text| format!(" ({text})")).unwrap_or_default();
        devices
            .map(move |d| format!("{} {} {}{}", r.name, d.resource_id, d.health.unwrap_or_default(), text(d.message)))
    };
    all.into_iter().flat_map(of).collect()
}

async fn given(node: &Node, name: &str) -> Vec<String> {
    let listed = client(node).await.list(ListPodResourcesRequest {}).await.unwrap().into_inner();
    let found = listed.pod_resources.into_iter().filter(|pod| pod.name == name);
    let resources = found.flat_map(|pod| pod.containers).flat_map(|container| container.dynamic_resources);
    let lines = resources.map(|r| {
        let devices = r.claim_resources.iter().map(|d| {
            let cdi: Vec<_> = d.cdi_devices.iter().map(|cdi| cdi.name.clone()).collect();
            format!("{}/{}/{} {}", d.driver_name, d.pool_name, d.device_name, cdi.join(","))
        });
        format!("{}/{}: {}", r.claim_namespace, r.claim_name, devices.collect::<Vec<_>>().join("; "))
    });
    lines.collect()
}

#[tokio::test]
async fn drivers_prepare_what_pods_claim_and_undo_it_after_the_last() {
    // A21.1, A15.6, A15.7, A15.8, A15.15, A21.2
    let mut node = Node::start().await;
    let root = node.path("kubelet");
    until("nothing of absent drivers is offered", || node.api.storage(|all| all.removed_slices.clone()) == ["all"])
        .await;
    allocate(&node, "card", &["early", "first", "second"]);
    let early = node.api.create(claims("early", "card").0);
    let failed = "FailedPrepareDynamicResources: Failed to prepare dynamic resources: prepare dynamic resources: ";
    until_event(&node, &format!("early  {failed}DRA driver {NAME} is not registered")).await;
    let stranger = node.api.create(claims("stranger", "absent").0);
    let text = "fetch ResourceClaim absent: resourceclaims.resource.k8s.io \"absent\" not found";
    until_event(&node, &format!("stranger  {failed}{text}")).await;
    assert!(node.lab.runtime.list_pod_sandbox(None).await.unwrap().is_empty(), "nobody gets a sandbox");
    for uid in [early, stranger] {
        end(&node, &uid).await;
    }

    let mut driver = Driver::new(&root);
    let serving = driver.serve();
    until("the registration", || driver.calls() == ["registered true"]).await;
    driver.tell(health::HealthStatus::Healthy, "");
    let first = node.api.create(claims("first", "card").0);
    node.api.until(&first, "ready", |p| condition(p, "Ready")).await;
    assert_eq!(driver.calls()[1..], ["prepare card-uid"]);
    assert_eq!(given(&node, "first").await, ["default/card: gpu.example.com/node-1/gpu-0 example.com/gpu=gpu-0"]);
    let device = "claim:accelerator/gpu example.com/gpu=gpu-0";
    node.api.until(&first, "well", |p| told(p) == [format!("{device} Healthy")]).await;
    driver.tell(health::HealthStatus::Unhealthy, "too hot");
    node.api.until(&first, "ill", |p| told(p) == [format!("{device} Unhealthy (too hot)")]).await;

    // A second pod shares what is prepared, also after another agent has come; the last one out has it undone.
    let second = node.api.create(claims("second", "card").0);
    node.api.until(&second, "ready", |p| condition(p, "Ready")).await;
    assert_eq!(driver.calls()[1..], ["prepare card-uid"], "it was prepared already");
    node.stop_agent().await;
    node.start_agent();
    until("the second registration", || driver.calls().iter().filter(|call| *call == "registered true").count() == 2)
        .await;
    end(&node, &first).await;
    assert!(!driver.calls().iter().any(|call| call.starts_with("unprepare")), "another pod uses it");
    let id = status(&node.api.pod(&second).unwrap(), "main").container_id.unwrap();
    node.lab.runtime.stop_container(id.trim_start_matches("containerd://"), Duration::ZERO).await.unwrap();
    node.api.until(&second, "restarted", |p| status(p, "main").restart_count == 1 && condition(p, "Ready")).await;
    *driver.failure.lock().unwrap() = Some("unprepare");
    end(&node, &second).await;
    let text = "unprepare dynamic resources: NodeUnprepareResources failed for ResourceClaim card: the card is on fire";
    until_event(&node, &format!("second  FailedKillPod: error cleaning up the pod: {text}")).await;
    let undone = driver.calls().into_iter().filter(|call| call.starts_with("unprepare")).collect::<Vec<_>>();
    assert_eq!(undone, ["unprepare card-uid"; 2], "the first failed");
    let state = fs::read_to_string(root.join("dra_manager_state")).unwrap();
    assert!(state.contains(r#"\"ClaimInfoStateList\":[]"#), "{state}");

    // The former version of the protocol; what nobody wants any more when an agent comes is undone by that one.
    drop(serving);
    driver.versions = vec!["v1beta1.DRAPlugin".into()];
    let serving = driver.serve();
    until("the third registration", || driver.calls().iter().filter(|call| *call == "registered true").count() == 3)
        .await;
    allocate(&node, "old", &["third"]);
    let third = node.api.create(claims("third", "old").0);
    node.api.until(&third, "ready", |p| condition(p, "Ready")).await;
    assert_eq!(given(&node, "third").await, ["default/old: gpu.example.com/node-1/gpu-1 example.com/gpu=gpu-1"]);
    node.api
        .until(&third, "nobody tells", |p| told(p) == ["claim:accelerator/gpu example.com/gpu=gpu-1 Unknown"])
        .await;
    node.stop_agent().await;
    node.api.remove(&third);
    node.start_agent();
    node.until_nothing_is_left(&third).await;
    let beta: Vec<_> = driver.calls().into_iter().filter(|call| call.contains("beta")).collect();
    assert_eq!(beta, ["prepare-beta old-uid", "unprepare-beta old-uid"]);

    // What a driver refuses is told.
    drop(serving);
    driver.versions = vec!["v9.DRAPlugin".into()];
    let _serving = driver.serve();
    until("the refusal", || {
        driver.calls().last().is_some_and(|call| call.contains("none of services supported by the plugin"))
    })
    .await;
    node.stop().await;
}
