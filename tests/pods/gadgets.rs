//! A device plugin that speaks the real gRPC: its devices are `/dev/null` under another name, with a file and a variable that tell
//! which ones a container got. It remembers what it was asked.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use self::proto::device_plugin_server::{DevicePlugin, DevicePluginServer};
use self::proto::registration_client::RegistrationClient;
use self::proto::*;
use crate::csi::registration::registration_server::{Registration, RegistrationServer};
use crate::csi::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
#[allow(clippy::pedantic, missing_docs, dead_code, reason = "generated code")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/v1beta1.rs"));
}

pub const NAME: &str = "example.com/gadget";
const SOCKET: &str = "gadgets.sock";

#[derive(Clone)]
pub struct Gadgets {
    dir: PathBuf,
    info: PathBuf,
    devices: watch::Sender<Vec<Device>>,
    calls: Arc<Mutex<Vec<String>>>,
    options: Arc<Mutex<Option<DevicePluginOptions>>>,
    /// The server that serves it is to end.
    stopped: watch::Receiver<bool>,
}

/// Its server; it ends with this.
pub struct Serving(JoinHandle<()>, watch::Sender<bool>);

impl Serving {
    pub async fn stop(self) {
        self.1.send_replace(true);
        self.0.abort();
        let _ = self.0.await;
    }
}

impl Gadgets {
    /// Devices by name and health, all of them near memory node 0.
    pub fn new(root: &Path, devices: &[(&str, &str)]) -> Self {
        let info = root.join("gadget-info");
        fs::write(&info, "gadgets inside").unwrap();
        let options = DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true };
        Self {
            dir: root.join("kubelet/device-plugins"),
            info,
            devices: watch::Sender::new(listed(devices)),
            calls: Arc::default(),
            options: Arc::new(Mutex::new(Some(options))),
            stopped: watch::channel(false).1,
        }
    }

    /// From now on it has these.
    pub fn tell(&self, devices: &[(&str, &str)]) {
        self.devices.send_replace(listed(devices));
    }

    /// From now on it does not tell of its options.
    pub fn break_options(&self) {
        *self.options.lock().unwrap() = None;
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub fn serve(&self) -> Serving {
        let socket = self.dir.join(SOCKET);
        let _ = fs::remove_file(&socket);
        let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let (stop, mut stopped) = watch::channel(false);
        let served = Self { stopped: stopped.clone(), ..self.clone() };
        let server = Server::builder().add_service(DevicePluginServer::new(served));
        let task = tokio::spawn(async move {
            let ended = async move { drop(stopped.wait_for(|stop| *stop).await) };
            tokio::select! {
                result = server.serve_with_incoming(listener) => result.unwrap(),
                () = ended => {}
            }
        });
        Serving(task, stop)
    }

    /// As a plugin that is found in the registry of plugins.
    pub fn serve_in_registry(&self) -> (Serving, PathBuf) {
        let dir = self.dir.with_file_name("plugins_registry");
        fs::create_dir_all(&dir).unwrap();
        let socket = dir.join(SOCKET);
        let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let (stop, mut stopped) = watch::channel(false);
        let served = Self { stopped: stopped.clone(), ..self.clone() };
        let registration = RegistrationServer::new(served.clone());
        let server = Server::builder().add_service(DevicePluginServer::new(served)).add_service(registration);
        let task = tokio::spawn(async move {
            let ended = async move { drop(stopped.wait_for(|stop| *stop).await) };
            tokio::select! {
                result = server.serve_with_incoming(listener) => result.unwrap(),
                () = ended => {}
            }
        });
        (Serving(task, stop), socket)
    }

    pub async fn register(&self) -> Result<(), Status> {
        self.register_as("v1beta1", NAME).await
    }

    pub async fn register_as(&self, version: &str, resource: &str) -> Result<(), Status> {
        let mut client = RegistrationClient::new(connect(&self.dir.join("kubelet.sock")).await);
        let request = RegisterRequest {
            version: version.into(),
            endpoint: SOCKET.into(),
            resource_name: resource.into(),
            options: *self.options.lock().unwrap(),
        };
        client.register(request).await.map(drop)
    }

    fn note(&self, call: &str, ids: &[String]) {
        let mut ids = ids.to_vec();
        ids.sort();
        self.calls.lock().unwrap().push(format!("{call} {}", ids.join(",")).trim().to_owned());
    }
}

fn listed(devices: &[(&str, &str)]) -> Vec<Device> {
    let near = || Some(TopologyInfo { nodes: vec![NumaNode { id: 0 }] });
    devices.iter().map(|(id, health)| Device { id: (*id).into(), health: (*health).into(), topology: near() }).collect()
}

pub async fn connect(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap().connect().await.unwrap()
}

#[tonic::async_trait]
impl Registration for Gadgets {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DevicePlugin".into(),
            name: NAME.into(),
            endpoint: self.dir.with_file_name("plugins_registry").join(SOCKET).display().to_string(),
            supported_versions: vec!["v1beta1".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let told = request.into_inner();
        self.calls.lock().unwrap().push(format!("registered {} {}", told.plugin_registered, told.error));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl DevicePlugin for Gadgets {
    type ListAndWatchStream = std::pin::Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        let options = *self.options.lock().unwrap();
        options.map(Response::new).ok_or_else(|| Status::internal("no options today"))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        // Connections outlive the server that took them.
        let mut stopped = self.stopped.clone();
        let ended = async move { drop(stopped.wait_for(|stop| *stop).await) };
        let lists = WatchStream::new(self.devices.subscribe()).take_until(Box::pin(ended));
        Ok(Response::new(Box::pin(lists.map(|devices| Ok(ListAndWatchResponse { devices })))))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let asked = request.into_inner().container_requests.remove(0);
        self.note("prefer", &asked.available_device_i_ds);
        // The last ones.
        let mut ids = asked.available_device_i_ds;
        ids.sort_by(|a, b| b.cmp(a));
        ids.truncate(usize::try_from(asked.allocation_size).unwrap());
        let response = ContainerPreferredAllocationResponse { device_i_ds: ids };
        Ok(Response::new(PreferredAllocationResponse { container_responses: vec![response] }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let asked = request.into_inner().container_requests.remove(0);
        self.note("allocate", &asked.devices_ids);
        let host_path = self.info.to_str().unwrap().to_owned();
        let response = ContainerAllocateResponse {
            envs: BTreeMap::from([("GADGETS".into(), asked.devices_ids.join(","))]),
            mounts: vec![Mount { container_path: "/gadget/info".into(), host_path, read_only: true }],
            devices: vec![DeviceSpec {
                container_path: "/dev/gadget".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }],
            annotations: BTreeMap::from([("example.com/gadgets".into(), asked.devices_ids.join(","))]),
            ..ContainerAllocateResponse::default()
        };
        Ok(Response::new(AllocateResponse { container_responses: vec![response] }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        self.note("prepare", &request.into_inner().devices_ids);
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
