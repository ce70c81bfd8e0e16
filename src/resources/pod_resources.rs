//! The pod-resources API: tells monitors on this node which container has what for itself (A15.7).

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use stoker_model::handle::PodDirectory;
use stoker_model::metrics;
use stoker_model::pod::PodRef;
use stoker_model::resources::is_sidecar;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use self::v1::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use self::v1::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, CdiDevice, ClaimResource, ContainerDevices,
    ContainerMemory, ContainerResources, DynamicResource, GetPodResourcesRequest, GetPodResourcesResponse,
    ListPodResourcesRequest, ListPodResourcesResponse, NumaNode, PodResources, TopologyInfo,
};
use super::assign::Assignments;
use super::claims::{Given, GivenDevice};
use super::cpu_set::CpuSet;
use super::memory::Block;
use crate::clock::Clock;

/// The generated types of `proto/podresources.proto`.
mod v1 {
    #![expect(clippy::allow_attributes_without_reason, reason = "generated code")]
    #![allow(unreachable_pub, dead_code, reason = "generated code; the tests use the other side")]
    tonic::include_proto!("v1");
}

/// The generated types of `proto/podresources_v1alpha1.proto`.
mod v1alpha1 {
    #![expect(clippy::allow_attributes_without_reason, reason = "generated code")]
    #![allow(unreachable_pub, dead_code, reason = "generated code; the tests use the other side")]
    tonic::include_proto!("v1alpha1");
}

/// So many questions a second are answered, on average (A15.7).
const PER_SECOND: f64 = 100.0;
/// So many at once.
const BURST: f64 = 10.0;

/// Devices by resource, with their memory nodes.
type Devices = std::collections::BTreeMap<String, Vec<(String, Vec<i64>)>>;

#[derive(Clone)]
struct Lister {
    pods: Arc<dyn PodDirectory>,
    assignments: Assignments,
    limit: Arc<Mutex<Bucket>>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    filled_at: Duration,
}

impl Bucket {
    fn take(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + passed * PER_SECOND).min(BURST);
        self.filled_at = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

/// Serves both versions on `pod-resources/kubelet.sock` below the root directory, until `stop` is cancelled.
///
/// # Errors
/// The socket cannot be made.
pub fn serve_pod_resources(
    root_dir: &Path,
    pods: Arc<dyn PodDirectory>,
    assignments: Assignments,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let dir = root_dir.join("pod-resources");
    std::fs::create_dir_all(&dir)?;
    let socket = dir.join("kubelet.sock");
    if let Err(error) = std::fs::remove_file(&socket)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListenerStream::new(UnixListener::bind(&socket)?);
    let bucket = Bucket { tokens: BURST, filled_at: Clock.now().monotonic };
    let lister = Lister { pods, assignments, limit: Arc::new(Mutex::new(bucket)) };
    let server = Server::builder()
        .add_service(PodResourcesListerServer::new(lister.clone()))
        .add_service(v1alpha1::pod_resources_lister_server::PodResourcesListerServer::new(lister));
    tokio::spawn(async move {
        if let Err(error) = server.serve_with_incoming_shutdown(listener, stop.cancelled_owned()).await {
            tracing::error!(%error, "monitors cannot ask who has which devices any more: start the agent again");
        }
    });
    Ok(())
}

impl Lister {
    fn admit(&self) -> Result<(), Status> {
        let now = Clock.now().monotonic;
        let admitted = self.limit.lock().unwrap_or_else(PoisonError::into_inner).take(now);
        if admitted { Ok(()) } else { Err(Status::resource_exhausted("rejected by rate limit")) }
    }

    fn active(&self) -> Vec<Arc<Pod>> {
        self.pods.pods().iter().filter(|pod| !pod.has_ended()).map(|pod| pod.pod().clone()).collect()
    }

    fn of_pod(&self, pod: &Pod) -> PodResources {
        let reference = PodRef::of(pod);
        let resources = |container: &Container| ContainerResources {
            name: container.name.clone(),
            devices: devices(self.assignments.devices_of(&reference.uid, &container.name)),
            cpu_ids: numbers(&self.assignments.own_cpus(&reference.uid, &container.name)),
            memory: memory(self.assignments.memory_of(&reference.uid, &container.name)),
            dynamic_resources: self.assignments.claims_of(pod, container).into_iter().map(of_claim).collect(),
        };
        let containers = pod.spec.iter().flat_map(|spec| {
            let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
            sidecars.chain(&spec.containers)
        });
        let containers = containers.map(resources).collect();
        PodResources { containers, name: reference.name, namespace: reference.namespace }
    }
}

fn of_claim(given: Given) -> DynamicResource {
    let device = |device: GivenDevice| ClaimResource {
        cdi_devices: device.cdi.into_iter().map(|name| CdiDevice { name }).collect(),
        driver_name: device.driver,
        pool_name: device.pool,
        device_name: device.device,
        share_id: device.share,
    };
    DynamicResource {
        claim_name: given.name,
        claim_namespace: given.namespace,
        claim_resources: given.devices.into_iter().map(device).collect(),
    }
}

fn memory(blocks: Vec<Block>) -> Vec<ContainerMemory> {
    let node = |number: usize| NumaNode { id: i64::try_from(number).unwrap_or(-1) };
    let of = |block: Block| ContainerMemory {
        memory_type: block.resource,
        size: block.size,
        topology: Some(TopologyInfo { nodes: block.nodes.into_iter().map(node).collect() }),
    };
    blocks.into_iter().map(of).collect()
}

fn numbers(cpus: &CpuSet) -> Vec<i64> {
    cpus.iter().filter_map(|cpu| i64::try_from(cpu).ok()).collect()
}

/// One entry for each device and memory node.
fn devices(all: Devices) -> Vec<ContainerDevices> {
    let mut listed = Vec::new();
    for (resource_name, devices) in all {
        for (id, nodes) in devices {
            let entry = |topology| ContainerDevices {
                resource_name: resource_name.clone(),
                device_ids: vec![id.clone()],
                topology,
            };
            if nodes.is_empty() {
                listed.push(entry(None));
            }
            listed.extend(nodes.iter().map(|node| entry(Some(TopologyInfo { nodes: vec![NumaNode { id: *node }] }))));
        }
    }
    listed
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(&self, _: Request<ListPodResourcesRequest>) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.admit()?;
        metrics::POD_RESOURCES_REQUESTS.inc(&["v1"]);
        metrics::POD_RESOURCES_REQUESTS_LIST.inc(&["v1"]);
        let pod_resources = self.active().iter().map(|pod| self.of_pod(pod)).collect();
        Ok(Response::new(ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        self.admit()?;
        metrics::POD_RESOURCES_REQUESTS.inc(&["v1"]);
        metrics::POD_RESOURCES_REQUESTS_ALLOCATABLE.inc(&["v1"]);
        let devices = devices(self.assignments.devices());
        let cpu_ids = numbers(&self.assignments.allocatable_cpus());
        let memory = memory(self.assignments.allocatable_memory());
        Ok(Response::new(AllocatableResourcesResponse { devices, cpu_ids, memory }))
    }

    async fn get(&self, request: Request<GetPodResourcesRequest>) -> Result<Response<GetPodResourcesResponse>, Status> {
        self.admit()?;
        metrics::POD_RESOURCES_REQUESTS.inc(&["v1"]);
        metrics::POD_RESOURCES_REQUESTS_GET.inc(&["v1"]);
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let missing = || {
            metrics::POD_RESOURCES_ERRORS_GET.inc(&["v1"]);
            Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found"))
        };
        let pod = self.pods.pod(&pod_namespace, &pod_name, None).ok_or_else(missing)?;
        Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(self.of_pod(pod.pod())) }))
    }
}

#[tonic::async_trait]
impl v1alpha1::pod_resources_lister_server::PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<v1alpha1::ListPodResourcesRequest>,
    ) -> Result<Response<v1alpha1::ListPodResourcesResponse>, Status> {
        self.admit()?;
        metrics::POD_RESOURCES_REQUESTS.inc(&["v1alpha1"]);
        metrics::POD_RESOURCES_REQUESTS_LIST.inc(&["v1alpha1"]);
        let of_resource = |(resource_name, devices): (String, Vec<(String, Vec<i64>)>)| v1alpha1::ContainerDevices {
            resource_name,
            device_ids: devices.into_iter().map(|(id, _)| id).collect(),
        };
        let of_pod = |pod: &Arc<Pod>| {
            let reference = PodRef::of(pod);
            let of_container = |container: &Container| v1alpha1::ContainerResources {
                name: container.name.clone(),
                devices: self
                    .assignments
                    .devices_of(&reference.uid, &container.name)
                    .into_iter()
                    .map(of_resource)
                    .collect(),
            };
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers).map(of_container).collect();
            v1alpha1::PodResources { containers, name: reference.name.clone(), namespace: reference.namespace.clone() }
        };
        let pod_resources = self.active().iter().map(of_pod).collect();
        Ok(Response::new(v1alpha1::ListPodResourcesResponse { pod_resources }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_limited() {
        // A15.7
        let mut bucket = Bucket { tokens: BURST, filled_at: Duration::ZERO };
        let answered = |bucket: &mut Bucket, now| (0..50).filter(|_| bucket.take(now)).count();
        assert_eq!(answered(&mut bucket, Duration::ZERO), 10);
        assert_eq!(answered(&mut bucket, Duration::from_millis(31)), 3);
        assert_eq!(answered(&mut bucket, Duration::from_secs(60)), 10);
    }
}
