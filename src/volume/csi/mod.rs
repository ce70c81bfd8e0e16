//! CSI drivers on this node (A9.18): who is registered ([`Drivers`], [`registration`]), and the calls to their node service.
//!
//! Not here: which volume needs which call (`volumes`).

mod data;
mod node;
mod proto;
mod registration;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stoker_model::handle::StorageApi;
use tonic::transport::{Channel, Endpoint};

pub(super) use data::{PodData, published};
pub(super) use node::{Attributes, Csi, MountDevice, Publish, attachment_name, ephemeral_handle};
pub use registration::watch_plugins;

use super::error::VolumeError;

/// What a call to a driver may take.
const CALL_LIMIT: Duration = Duration::from_secs(120);
/// Whoever asks for statistics does not wait that long.
const STATS_LIMIT: Duration = Duration::from_secs(5);

/// The drivers that are registered, and where they serve. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Drivers(Arc<Mutex<BTreeMap<String, Driver>>>);

#[derive(Clone, Debug)]
struct Driver {
    /// Where it serves.
    endpoint: PathBuf,
    /// The socket in plugins_registry that brought it.
    socket: PathBuf,
}

impl Drivers {
    fn with<R>(&self, act: impl FnOnce(&mut BTreeMap<String, Driver>) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, name: &str, driver: Driver) {
        self.with(|all| all.insert(name.to_owned(), driver));
    }

    /// Forgets the drivers that came with a socket; their names.
    fn remove(&self, socket: &std::path::Path) -> Vec<String> {
        self.with(|all| {
            let gone: Vec<String> =
                all.iter().filter(|(_, d)| d.socket == socket).map(|(name, _)| name.clone()).collect();
            all.retain(|_, driver| driver.socket != socket);
            gone
        })
    }

    /// Asks a driver again what it can do, and tells the cluster.
    pub(super) async fn tell_again(&self, name: &str, api: &dyn StorageApi) -> Result<(), VolumeError> {
        let told = registration::described(name, self.channel(name)?).await?;
        Ok(api.put_driver(&told).await?)
    }

    /// A connection to a driver.
    fn channel(&self, name: &str) -> Result<Channel, VolumeError> {
        let driver = self.with(|all| all.get(name).cloned());
        let driver = driver.ok_or_else(|| {
            VolumeError::Other(format!("driver name {name} not found in the list of registered CSI drivers"))
        })?;
        connect(&driver.endpoint)
    }
}

/// A connection that is made when it is first used.
fn connect(socket: &std::path::Path) -> Result<Channel, VolumeError> {
    let uri = format!("unix:{}", socket.display());
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|error| VolumeError::Other(format!("{} cannot be connected to: {error}", socket.display())))?;
    Ok(endpoint.connect_lazy())
}

/// Runs a call with the time that it may take.
async fn call<T>(
    limit: Duration,
    asked: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, VolumeError> {
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => {
            let text = format!("rpc error: code = {:?} desc = {}", status.code(), status.message());
            let finished = !matches!(
                status.code(),
                tonic::Code::Cancelled
                    | tonic::Code::DeadlineExceeded
                    | tonic::Code::Unavailable
                    | tonic::Code::ResourceExhausted
                    | tonic::Code::Aborted
            );
            let refused = status.code() == tonic::Code::FailedPrecondition;
            Err(VolumeError::Driver { text, finished, refused })
        }
        Err(_) => {
            let text = "rpc error: code = DeadlineExceeded desc = context deadline exceeded".to_owned();
            Err(VolumeError::Driver { text, finished: false, refused: false })
        }
    }
}
