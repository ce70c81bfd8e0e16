//! A CSI driver that speaks the real gRPC on its sockets: staging is a tmpfs, publishing a bind mount. It remembers what it was asked.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use self::proto::node_server::{Node, NodeServer};
use self::proto::node_service_capability::{Rpc, Type, rpc};
use self::proto::*;
use self::registration::registration_server::{Registration, RegistrationServer};
use self::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
#[allow(clippy::pedantic, missing_docs, dead_code, reason = "generated code")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/server/csi.v1.rs"));
}

#[expect(clippy::allow_attributes_without_reason, reason = "generated code")]
#[allow(clippy::pedantic, missing_docs, dead_code, reason = "generated code")]
pub mod registration {
    include!(concat!(env!("OUT_DIR"), "/server/pluginregistration.rs"));
}

pub const NAME: &str = "disk.example.com";

/// What a driver was asked, oldest first; the next failure that it shall have.
#[derive(Clone, Default)]
pub struct Driver {
    calls: Arc<Mutex<Vec<String>>>,
    contexts: Arc<Mutex<Vec<BTreeMap<String, String>>>>,
    secrets: Arc<Mutex<Vec<BTreeMap<String, String>>>>,
    failure: Arc<Mutex<Option<&'static str>>>,
    socket: PathBuf,
}

/// Its servers; they end with this.
pub struct Serving(Vec<JoinHandle<()>>, PathBuf);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
        let _ = fs::remove_file(&self.1);
    }
}

impl Driver {
    pub fn new(root: &Path) -> Self {
        Self { socket: root.join("plugins").join(NAME).join("csi.sock"), ..Self::default() }
    }

    /// Serves, and asks to be registered.
    pub fn serve(&self, root: &Path) -> Serving {
        let register = root.join("plugins_registry").join(format!("{NAME}-reg.sock"));
        for socket in [&self.socket, &register] {
            fs::create_dir_all(socket.parent().unwrap()).unwrap();
            let _ = fs::remove_file(socket);
        }
        let listen = |socket: &Path| UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let node =
            Server::builder().add_service(NodeServer::new(self.clone())).serve_with_incoming(listen(&self.socket));
        let plugin = Server::builder().add_service(RegistrationServer::new(self.clone()));
        let plugin = plugin.serve_with_incoming(listen(&register));
        let tasks =
            vec![tokio::spawn(async move { node.await.unwrap() }), tokio::spawn(async move { plugin.await.unwrap() })];
        Serving(tasks, register)
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// The volume contexts of what was published.
    pub fn contexts(&self) -> Vec<BTreeMap<String, String>> {
        self.contexts.lock().unwrap().clone()
    }

    /// The secrets of what was published.
    pub fn secrets(&self) -> Vec<BTreeMap<String, String>> {
        self.secrets.lock().unwrap().clone()
    }

    /// The next call of that name is refused.
    pub fn fail_next(&self, call: &'static str) {
        *self.failure.lock().unwrap() = Some(call);
    }

    fn note(&self, call: &'static str, volume: &str) -> Result<(), Status> {
        self.calls.lock().unwrap().push(format!("{call} {volume}").trim().to_owned());
        let mut failure = self.failure.lock().unwrap();
        if *failure == Some(call) {
            *failure = None;
            return Err(Status::internal("the disk is on fire"));
        }
        Ok(())
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Status> {
    let done = Command::new(program).args(arguments).output().map_err(|e| Status::internal(e.to_string()))?;
    if done.status.success() { Ok(()) } else { Err(Status::internal(String::from_utf8_lossy(&done.stderr))) }
}

fn is_block(capability: Option<&VolumeCapability>) -> bool {
    let access = capability.and_then(|capability| capability.access_type.as_ref());
    matches!(access, Some(volume_capability::AccessType::Block(_)))
}

fn is_mounted(path: &str) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().any(|line| line.split(' ').nth(4) == Some(path))
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let asked = request.into_inner();
        self.note("stage", &asked.volume_id)?;
        if asked.publish_context.get("device").is_none_or(|device| device != "/dev/vdx") {
            return Err(Status::invalid_argument("the volume is not attached"));
        }
        if is_block(asked.volume_capability.as_ref()) {
            fs::write(Path::new(&asked.staging_target_path).join("device"), "").unwrap();
        } else if !is_mounted(&asked.staging_target_path) {
            run("mount", &["-t", "tmpfs", "tmpfs", &asked.staging_target_path])?;
            fs::write(Path::new(&asked.staging_target_path).join("data"), "on disk").unwrap();
        }
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let asked = request.into_inner();
        self.note("unstage", &asked.volume_id)?;
        if is_mounted(&asked.staging_target_path) {
            run("umount", &[&asked.staging_target_path])?;
        }
        let _ = fs::remove_file(Path::new(&asked.staging_target_path).join("device"));
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let asked = request.into_inner();
        self.note("publish", &asked.volume_id)?;
        if is_block(asked.volume_capability.as_ref()) {
            let staged = Path::new(&asked.staging_target_path).join("device").exists();
            return match staged && !Path::new(&asked.target_path).exists() {
                // The file that names the device is the driver's to make. Nothing is behind the number here.
                true => {
                    run("mknod", &[&asked.target_path, "b", "7", "250"]).map(|()| Response::new(Default::default()))
                }
                false => Err(Status::failed_precondition("not staged, or published already")),
            };
        }
        self.contexts.lock().unwrap().push(asked.volume_context);
        self.secrets.lock().unwrap().push(asked.secrets);
        fs::create_dir_all(&asked.target_path).unwrap();
        if !is_mounted(&asked.target_path) {
            if asked.staging_target_path.is_empty() {
                run("mount", &["-t", "tmpfs", "tmpfs", &asked.target_path])?;
            } else {
                run("mount", &["--bind", &asked.staging_target_path, &asked.target_path])?;
            }
        }
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let asked = request.into_inner();
        self.note("unpublish", &asked.volume_id)?;
        if is_mounted(&asked.target_path) {
            run("umount", &[&asked.target_path])?;
        }
        let _ = fs::remove_dir(&asked.target_path);
        let _ = fs::remove_file(&asked.target_path);
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let asked = request.into_inner();
        if !is_mounted(&asked.volume_path) {
            return Err(Status::not_found(asked.volume_path));
        }
        let of = |unit: volume_usage::Unit, [available, total, used]: [i64; 3]| VolumeUsage {
            available,
            total,
            used,
            unit: unit.into(),
        };
        let usage = vec![of(volume_usage::Unit::Bytes, [600, 1000, 400]), of(volume_usage::Unit::Inodes, [6, 10, 4])];
        Ok(Response::new(NodeGetVolumeStatsResponse { usage }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let asked = request.into_inner();
        self.note("expand", &asked.volume_id)?;
        let capacity_bytes = asked.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let can = |what: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: what.into() })) };
        let all = [rpc::Type::StageUnstageVolume, rpc::Type::ExpandVolume, rpc::Type::GetVolumeStats];
        let capabilities = all.map(can).to_vec();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        let segments = [("topology.example.com/rack".to_owned(), "r1".to_owned())].into();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "disk-node-1".into(),
            max_volumes_per_node: 8,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: NAME.into(),
            endpoint: self.socket.display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let told = request.into_inner();
        let call = if told.plugin_registered { "registered" } else { "refused" };
        self.note(call, &told.error)?;
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
