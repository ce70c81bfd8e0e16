//! [`Runtime`]: one async method for each CRI call, each with a deadline.

use std::future::Future;
use std::time::Duration;

use stoker_model::metrics;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use super::connection::Connection;
use super::cri;
use super::cri::image_service_client::ImageServiceClient;
use super::cri::runtime_service_client::RuntimeServiceClient;
use super::ending::{Awaited, Ending};
use super::error::RuntimeError;
use crate::clock::Clock;

/// What the runtime may send in one message: a list of all containers of a full node stays below it.
const MESSAGE_LIMIT_BYTES: usize = 16 << 20;

/// A pull takes as long as it takes, unless it hangs: upstream has no limit, a day is one that no honest pull reaches.
const PULL_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// A client of the runtime. Cloning is cheap, and all clones share one connection, which is made when it is first needed and
/// again after it broke.
///
/// Dropping the future of a call gives the call up, and the runtime may have done it or not: who must know lets it end in a task
/// of its own.
#[derive(Clone, Debug)]
pub struct Runtime {
    connection: Connection,
    runtime: RuntimeServiceClient<Connection>,
    images: ImageServiceClient<Connection>,
    ending: Ending,
    timeout: Duration,
}

/// A connection to the socket that an endpoint names.
fn connection_to(endpoint: &str) -> Result<Connection, RuntimeError> {
    let path = endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    match path.starts_with('/') {
        true => Ok(Connection::to(path.into())),
        false => Err(RuntimeError::Endpoint { endpoint: endpoint.to_owned() }),
    }
}

/// What images are asked for through.
fn images_at(connection: Connection) -> ImageServiceClient<Connection> {
    ImageServiceClient::new(connection).max_decoding_message_size(MESSAGE_LIMIT_BYTES)
}

impl Runtime {
    /// A client for `endpoint` (`unix:///run/containerd/containerd.sock`, or the path alone). Nothing is sent yet. `timeout` is
    /// kubelet's runtimeRequestTimeout, for each call that has no longer one of its own.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Endpoint`] only.
    pub fn connect(endpoint: &str, timeout: Duration) -> Result<Self, RuntimeError> {
        let connection = connection_to(endpoint)?;
        let runtime = RuntimeServiceClient::new(connection.clone());
        Ok(Self {
            runtime: runtime.max_decoding_message_size(MESSAGE_LIMIT_BYTES),
            images: images_at(connection.clone()),
            connection,
            ending: Ending::default(),
            timeout,
        })
    }

    /// Asks another server for images: kubelet's imageServiceEndpoint (A22.1j).
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Endpoint`] only.
    pub fn with_images_at(self, endpoint: &str) -> Result<Self, RuntimeError> {
        Ok(Self { images: images_at(connection_to(endpoint)?), ..self })
    }

    /// The connection, for containerd's own services beside CRI.
    pub(super) fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// For who stops a container or sandbox and looks when the call has returned: while the answer lives, no event tells of its end.
    pub(crate) fn without_events_of(&self, id: &str) -> Awaited {
        self.ending.begin(id)
    }

    /// Whether somebody waits for the end of this container or sandbox, and looks then, or has ended it and still shows it.
    pub(crate) fn is_ending(&self, id: &str) -> bool {
        self.ending.contains(id)
    }

    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<cri::VersionResponse, RuntimeError> {
        let request = cri::VersionRequest { version: "v1".to_owned() };
        self.call("Version", self.runtime.clone().version(request)).await
    }

    /// The runtime's conditions and handlers; with `verbose` also its `info`.
    pub async fn status(&self, verbose: bool) -> Result<cri::StatusResponse, RuntimeError> {
        self.call("Status", self.runtime.clone().status(cri::StatusRequest { verbose })).await
    }

    /// The cgroup driver that the runtime wants. [`RuntimeError::Unsupported`] by containerd before 2.0.
    pub async fn runtime_config(&self) -> Result<cri::RuntimeConfigResponse, RuntimeError> {
        self.call("RuntimeConfig", self.runtime.clone().runtime_config(cri::RuntimeConfigRequest {})).await
    }

    /// Tells the runtime the node's pod CIDR.
    pub async fn update_runtime_config(&self, config: cri::RuntimeConfig) -> Result<(), RuntimeError> {
        let request = cri::UpdateRuntimeConfigRequest { runtime_config: Some(config) };
        self.call("UpdateRuntimeConfig", self.runtime.clone().update_runtime_config(request)).await.map(drop)
    }

    /// Makes and starts a sandbox; its ID. An empty `handler` is the default one.
    pub fn run_pod_sandbox(
        &self,
        config: cri::PodSandboxConfig,
        handler: &str,
    ) -> impl Future<Output = Result<String, RuntimeError>> + Send {
        let config = Some(Box::new(config));
        let request = cri::RunPodSandboxRequest { config, runtime_handler: handler.to_owned() };
        async move {
            let mut client = self.runtime.clone();
            // Upstream gives it twice the time: it starts a chain of CNI plugins.
            let answer = self.call_within("RunPodSandbox", self.timeout * 2, client.run_pod_sandbox(request)).await?;
            Ok(answer.pod_sandbox_id)
        }
    }

    /// Kills what runs in the sandbox and gives its network back. Again is harmless.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("StopPodSandbox", self.runtime.clone().stop_pod_sandbox(request)).await.map(drop)
    }

    /// Removes the sandbox and all that is in it. Again is harmless.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("RemovePodSandbox", self.runtime.clone().remove_pod_sandbox(request)).await.map(drop)
    }

    /// One sandbox with its addresses.
    pub async fn pod_sandbox_status(
        &self,
        id: &str,
        verbose: bool,
    ) -> Result<cri::PodSandboxStatusResponse, RuntimeError> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose };
        self.call("PodSandboxStatus", self.runtime.clone().pod_sandbox_status(request)).await
    }

    /// Sandboxes that match every part of the filter; all without one.
    pub async fn list_pod_sandbox(
        &self,
        filter: Option<cri::PodSandboxFilter>,
    ) -> Result<Vec<cri::PodSandbox>, RuntimeError> {
        let request = cri::ListPodSandboxRequest { filter };
        Ok(self.call("ListPodSandbox", self.runtime.clone().list_pod_sandbox(request)).await?.items)
    }

    /// Tells the runtime of changed resources of the whole pod.
    pub async fn update_pod_sandbox_resources(
        &self,
        request: cri::UpdatePodSandboxResourcesRequest,
    ) -> Result<(), RuntimeError> {
        let mut client = self.runtime.clone();
        self.call("UpdatePodSandboxResources", client.update_pod_sandbox_resources(request)).await.map(drop)
    }

    /// Makes a container, without starting it; its ID. `sandbox_config` is that of [`Self::run_pod_sandbox`].
    pub fn create_container(
        &self,
        sandbox_id: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> impl Future<Output = Result<String, RuntimeError>> + Send {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(Box::new(config)),
            sandbox_config: Some(Box::new(sandbox_config)),
        };
        async move { Ok(self.call("CreateContainer", self.runtime.clone().create_container(request)).await?.container_id) }
    }

    /// Starts a container that was made.
    pub async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        self.call("StartContainer", self.runtime.clone().start_container(request)).await.map(drop)
    }

    /// Sends the stop signal, and KILL after `grace` (whole seconds, rounded up). Returns when it has stopped; again is harmless.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let request = cri::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        let deadline = self.timeout.saturating_add(Duration::from_secs(seconds));
        self.call_within("StopContainer", deadline, self.runtime.clone().stop_container(request)).await.map(drop)
    }

    /// Removes a container, killing it if it runs. Again is harmless.
    pub async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        self.call("RemoveContainer", self.runtime.clone().remove_container(request)).await.map(drop)
    }

    /// Containers that match every part of the filter; all without one.
    pub async fn list_containers(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, RuntimeError> {
        let request = cri::ListContainersRequest { filter };
        Ok(self.call("ListContainers", self.runtime.clone().list_containers(request)).await?.containers)
    }

    /// One container. The answer's `status` is always there.
    pub async fn container_status(
        &self,
        id: &str,
        verbose: bool,
    ) -> Result<cri::ContainerStatusResponse, RuntimeError> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose };
        let answer = self.call("ContainerStatus", self.runtime.clone().container_status(request)).await?;
        if answer.status.is_none() {
            return Err(RuntimeError::NotFound(format!("container {id} has no status")));
        }
        Ok(answer)
    }

    /// How much each running container has written into its own layer.
    pub async fn list_container_stats(&self) -> Result<Vec<cri::ContainerStats>, RuntimeError> {
        let request = cri::ListContainerStatsRequest::default();
        Ok(self.call("ListContainerStats", self.runtime.clone().list_container_stats(request)).await?.stats)
    }

    /// Changes the limits of a running container.
    pub async fn update_container_resources(
        &self,
        request: cri::UpdateContainerResourcesRequest,
    ) -> Result<(), RuntimeError> {
        let mut client = self.runtime.clone();
        self.call("UpdateContainerResources", client.update_container_resources(request)).await.map(drop)
    }

    /// Makes the runtime open the log file of a running container anew, after a rotation.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), RuntimeError> {
        let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.call("ReopenContainerLog", self.runtime.clone().reopen_container_log(request)).await.map(drop)
    }

    /// The runtime's own event stream, without a deadline: the answer may begin with the first event only.
    pub(super) async fn container_events(&self) -> Result<Streaming<cri::ContainerEventResponse>, Status> {
        Ok(self.runtime.clone().get_container_events(cri::GetEventsRequest {}).await?.into_inner())
    }

    /// Runs a command and waits for it. `limit` zero: as long as it takes (then there is no deadline either).
    ///
    /// # Errors
    ///
    /// [`RuntimeError::TimedOut`] where the command took longer than `limit`.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        limit: Duration,
    ) -> Result<cri::ExecSyncResponse, RuntimeError> {
        let seconds = limit.as_secs() + u64::from(limit.subsec_nanos() > 0);
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command,
            timeout: i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        let deadline = if limit.is_zero() { Duration::MAX } else { self.timeout.saturating_add(limit) };
        match self.call_within("ExecSync", deadline, self.runtime.clone().exec_sync(request)).await {
            Err(RuntimeError::TimedOut { call, .. }) if !limit.is_zero() => {
                Err(RuntimeError::TimedOut { call, after: limit })
            }
            outcome => outcome,
        }
    }

    /// Prepares a command whose streams are served under the returned URL.
    pub async fn exec(&self, request: cri::ExecRequest) -> Result<String, RuntimeError> {
        Ok(self.call("Exec", self.runtime.clone().exec(request)).await?.url)
    }

    /// Prepares the streams of a container's first process, served under the returned URL.
    pub async fn attach(&self, request: cri::AttachRequest) -> Result<String, RuntimeError> {
        Ok(self.call("Attach", self.runtime.clone().attach(request)).await?.url)
    }

    /// Prepares connections to ports of a sandbox, served under the returned URL.
    pub async fn port_forward(&self, request: cri::PortForwardRequest) -> Result<String, RuntimeError> {
        Ok(self.call("PortForward", self.runtime.clone().port_forward(request)).await?.url)
    }

    /// All images.
    pub async fn list_images(&self) -> Result<Vec<cri::Image>, RuntimeError> {
        let request = cri::ListImagesRequest::default();
        Ok(self.call("ListImages", self.images.clone().list_images(request)).await?.images)
    }

    /// One image by reference or ID; `None` where it is not present.
    pub async fn image_status(&self, image: cri::ImageSpec) -> Result<Option<cri::Image>, RuntimeError> {
        let request = cri::ImageStatusRequest { image: Some(image), verbose: false };
        Ok(self.call("ImageStatus", self.images.clone().image_status(request)).await?.image)
    }

    /// Pulls an image; its ID. Others want [`super::Images::pull`], which does not pull the same thing twice at a time.
    pub(super) async fn pull_image(&self, request: cri::PullImageRequest) -> Result<String, RuntimeError> {
        let mut client = self.images.clone();
        let answer = self.call_within("PullImage", PULL_LIMIT, client.pull_image(request)).await;
        Ok(answer.map_err(RuntimeError::into_pull_failure)?.image_ref)
    }

    /// Removes an image with all its names. Again is harmless.
    pub async fn remove_image(&self, image: cri::ImageSpec) -> Result<(), RuntimeError> {
        let request = cri::RemoveImageRequest { image: Some(image) };
        self.call("RemoveImage", self.images.clone().remove_image(request)).await.map(drop)
    }

    /// Where images and containers lie, and how much they take.
    pub async fn image_fs_info(&self) -> Result<cri::ImageFsInfoResponse, RuntimeError> {
        self.call("ImageFsInfo", self.images.clone().image_fs_info(cri::ImageFsInfoRequest {})).await
    }

    pub(super) fn call<T>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> impl Future<Output = Result<T, RuntimeError>> {
        self.call_within(name, self.timeout, call)
    }

    fn call_within<T>(
        &self,
        name: &'static str,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> impl Future<Output = Result<T, RuntimeError>> {
        // What it needs is large, and each future that waits for it would keep it once or twice.
        let call = Box::pin(call);
        async move {
            let (kind, begun) = (operation_type(name), Clock.now().monotonic);
            metrics::RUNTIME_OPERATIONS.inc(&[&kind]);
            let span = info_span!(target: "otel", "runtime", otel.name = name, otel.kind = "client", rpc.system = "grpc", error = Empty);
            let result = match tokio::time::timeout(deadline, call).instrument(span.clone()).await {
                Ok(Ok(response)) => Ok(response.into_inner()),
                Ok(Err(status)) => Err(RuntimeError::from_status(name, deadline, status)),
                Err(_) => Err(RuntimeError::TimedOut { call: name, after: deadline }),
            };
            metrics::RUNTIME_OPERATIONS_DURATION.observe(&[&kind], Clock.now().monotonic.saturating_sub(begun));
            if let Err(error) = &result {
                metrics::RUNTIME_OPERATIONS_ERRORS.inc(&[&kind]);
                span.record("error", error.to_string());
            }
            result
        }
    }
}

/// A call as kubelet's metrics name it: `RunPodSandbox` is `run_podsandbox` (A23.3).
fn operation_type(call: &str) -> String {
    let call = call.replace("PodSandbox", "Podsandbox").replace("UpdateContainerResources", "UpdateContainer");
    let mut name = String::with_capacity(call.len() + 4);
    for sign in call.chars() {
        if sign.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(sign.to_ascii_lowercase());
    }
    name
}

/// A request to one of containerd's own services: they want to know whose containers are meant.
pub(super) fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static("k8s.io"));
    request
}

#[cfg(test)]
mod tests {
    use super::operation_type;

    #[test]
    fn calls_have_kubelets_names_in_metrics() {
        // A23.3
        for (call, name) in [
            ("RunPodSandbox", "run_podsandbox"),
            ("ListPodSandbox", "list_podsandbox"),
            ("UpdateContainerResources", "update_container"),
            ("CreateContainer", "create_container"),
            ("ExecSync", "exec_sync"),
            ("Version", "version"),
        ] {
            assert_eq!(operation_type(call), name);
        }
    }
}
