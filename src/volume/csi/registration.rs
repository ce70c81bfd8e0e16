//! Plugins that put a socket into `plugins_registry` (A15.6): asked what they are, registered when somebody takes plugins of that
//! type, told what became of it, and forgotten when the socket goes.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use stoker_model::handle::{CsiDriverInfo, FoundPlugin, PluginKind, StorageApi};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::proto::NodeGetInfoRequest;
use super::proto::node_client::NodeClient;
use super::proto::registration::registration_client::RegistrationClient;
use super::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use super::{CALL_LIMIT, Driver, Drivers, call, connect};
use crate::volume::error::VolumeError;

const INFO_LIMIT: Duration = Duration::from_secs(1);
const NOTIFY_LIMIT: Duration = Duration::from_secs(5);
/// First and longest delay between tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(120));
/// The directory is looked at so often though no change was told of.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A socket is another one when it was made anew.
type Identity = (u64, i64, i64);

/// Who takes plugins: CSI drivers here, the others elsewhere.
#[derive(Clone)]
struct Takers {
    drivers: Drivers,
    /// Without an API server nobody takes CSI drivers.
    api: Option<Arc<dyn StorageApi>>,
    others: Vec<Arc<dyn PluginKind>>,
    /// Plugins of others by socket, with their type.
    taken: Arc<Mutex<BTreeMap<PathBuf, (usize, FoundPlugin)>>>,
}

/// Registers the plugins whose sockets lie in `dir`, until `stop` is cancelled: CSI drivers if there is an `api`, and those of `others`.
pub async fn watch_plugins(
    dir: PathBuf,
    drivers: Drivers,
    api: Option<Arc<dyn StorageApi>>,
    others: Vec<Arc<dyn PluginKind>>,
    stop: CancellationToken,
) {
    let takers = Takers { drivers, api, others, taken: Arc::default() };
    if let Err(error) = std::fs::create_dir_all(&dir) {
        tracing::error!(dir = %dir.display(), %error, "volume plugins cannot register: make the directory writable");
        return;
    }
    let mut changes = match listen(&dir) {
        Ok(changes) => Some(changes),
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "no inotify: new volume plugins are noticed late");
            None
        }
    };
    let mut known: BTreeMap<PathBuf, (Identity, CancellationToken)> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let found = sockets(&dir);
        let gone: Vec<PathBuf> = known
            .iter()
            .filter(|(path, (identity, _))| found.get(*path) != Some(identity))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            if let Some((_, token)) = known.remove(&path) {
                token.cancel();
            }
            let again = found.contains_key(&path);
            if let Some((kind, plugin)) = takers.with(|taken| taken.remove(&path)) {
                takers.others[kind].lost(&plugin.name, &plugin.endpoint).await;
            }
            for name in takers.drivers.remove(&path) {
                tracing::info!(driver = name, "CSI driver gone");
                let Some(api) = takers.api.clone() else { continue };
                // A driver that comes back at once keeps its place in CSINode.
                tasks.spawn(async move {
                    if !again && let Err(error) = api.remove_driver(&name).await {
                        tracing::warn!(driver = name, %error, "the CSI driver is still in CSINode");
                    }
                });
            }
        }
        for (path, identity) in found {
            if known.contains_key(&path) {
                continue;
            }
            let token = stop.child_token();
            known.insert(path.clone(), (identity, token.clone()));
            let takers = takers.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = token.cancelled() => {}
                    () = register(&path, &takers) => {}
                }
            });
        }
        let changed = async {
            match &mut changes {
                Some(changes) => drop(changes.next().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            Some(_) = tasks.join_next() => {}
        }
    }
}

fn listen(dir: &Path) -> std::io::Result<inotify::EventStream<Vec<u8>>> {
    let inotify = Inotify::init()?;
    inotify.watches().add(dir, WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE)?;
    inotify.into_event_stream(vec![0; 4096])
}

/// The sockets in the directory and one level below; what begins with a dot is not meant.
fn sockets(dir: &Path) -> BTreeMap<PathBuf, Identity> {
    let mut found = BTreeMap::new();
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let below = entries(dir).filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).flat_map(|e| entries(&e.path()));
    for entry in entries(dir).chain(below) {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.file_type().is_socket() && !entry.file_name().to_string_lossy().starts_with('.') {
            found.insert(entry.path(), (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()));
        }
    }
    found
}

/// Tries until the plugin is registered, ever more slowly.
async fn register(socket: &Path, takers: &Takers) {
    let mut delay = RETRY.0;
    loop {
        match try_register(socket, takers).await {
            Ok(name) => {
                tracing::info!(plugin = name, "plugin registered");
                return;
            }
            Err(error) => {
                tracing::warn!(socket = %socket.display(), %error, "a plugin is not registered; it is tried again");
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY.1);
    }
}

impl Takers {
    fn with<R>(&self, act: impl FnOnce(&mut BTreeMap<PathBuf, (usize, FoundPlugin)>) -> R) -> R {
        act(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn take(&self, socket: &Path, info: &PluginInfo) -> Result<(), VolumeError> {
        if let (Some(api), "CSIPlugin") = (&self.api, info.r#type.as_str()) {
            return accept(socket, info, &self.drivers, &**api).await;
        }
        let Some(kind) = self.others.iter().position(|other| other.kind() == info.r#type) else {
            return Err(VolumeError::Other(format!(
                "RegisterPlugin error -- no handler registered for plugin type: {} at socket {}",
                info.r#type,
                socket.display()
            )));
        };
        let found = FoundPlugin {
            name: info.name.clone(),
            endpoint: endpoint(socket, info),
            versions: info.supported_versions.clone(),
        };
        let failed = |text: String| {
            VolumeError::Other(format!("RegisterPlugin error -- plugin validation failed with err: {text}"))
        };
        self.others[kind].found(&found).await.map_err(failed)?;
        self.with(|taken| taken.insert(socket.to_owned(), (kind, found)));
        Ok(())
    }
}

/// Where a plugin serves: at the socket that was asked unless it says otherwise.
fn endpoint(socket: &Path, info: &PluginInfo) -> PathBuf {
    if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(&info.endpoint) }
}

async fn try_register(socket: &Path, takers: &Takers) -> Result<String, VolumeError> {
    let mut client = RegistrationClient::new(connect(socket)?);
    let info = call(INFO_LIMIT, client.get_info(InfoRequest {})).await?;
    let result = takers.take(socket, &info).await;
    let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let status = RegistrationStatus { plugin_registered: result.is_ok(), error };
    let told = call(NOTIFY_LIMIT, client.notify_registration_status(status)).await;
    result?;
    told.map(|_| info.name)
}

async fn accept(socket: &Path, info: &PluginInfo, drivers: &Drivers, api: &dyn StorageApi) -> Result<(), VolumeError> {
    let other = |text: String| Err(VolumeError::Other(text));
    let is_one = |version: &String| version.trim_start_matches('v').starts_with("1.");
    if !info.supported_versions.iter().any(is_one) {
        return other(format!(
            "RegisterPlugin error -- plugin validation failed with err: none of the versions {:?} is supported: this node speaks CSI 1.x",
            info.supported_versions
        ));
    }
    let endpoint = endpoint(socket, info);
    let told = described(&info.name, connect(&endpoint)?).await?;
    // Volumes can be mounted while the API server is away; only CSINode waits for it.
    drivers.put(&info.name, Driver { endpoint, socket: socket.to_owned() });
    Ok(api.put_driver(&told).await?)
}

/// What a driver says of itself and of this node.
pub(super) async fn described(name: &str, channel: Channel) -> Result<CsiDriverInfo, VolumeError> {
    let node = call(CALL_LIMIT, NodeClient::new(channel).node_get_info(NodeGetInfoRequest {})).await?;
    if node.node_id.is_empty() {
        let text = "error adding CSI driver node info: driverNodeID must not be empty";
        return Err(VolumeError::Other(text.to_owned()));
    }
    Ok(CsiDriverInfo {
        name: name.to_owned(),
        node_id: node.node_id,
        attach_limit: node.max_volumes_per_node,
        topology: node.accessible_topology.map(|topology| topology.segments).unwrap_or_default(),
    })
}
