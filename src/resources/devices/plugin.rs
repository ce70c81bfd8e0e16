//! The calls to one device plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::Devices;
use super::pool::{Choice, Device};
use super::proto::device_plugin_client::DevicePluginClient;
use super::proto::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, ContainerPreferredAllocationRequest,
    DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest, PreferredAllocationRequest,
};

/// How long a plugin may take to answer at all.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Between tries to reach a plugin that has registered and does not serve yet.
const CONNECT_AGAIN: Duration = Duration::from_millis(100);
/// kubelet's limit for preparing a device (A15.5).
const PRE_START_LIMIT: Duration = Duration::from_secs(30);
/// kubelet waits for ever; so long, other pods that want devices wait here.
const ALLOCATE_LIMIT: Duration = Duration::from_secs(60);

/// A plugin that has registered. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Plugin {
    client: DevicePluginClient<Channel>,
    options: DevicePluginOptions,
    /// Which registration it is.
    number: u64,
}

/// Go's way of writing a failed call.
fn text(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

async fn call<T>(limit: Duration, asked: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("context deadline exceeded");
    tokio::time::timeout(limit, asked).await.map_err(late)?.map(Response::into_inner)
}

impl Plugin {
    async fn connect(socket: &Path) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))
            .map_err(|error| format!("failed to dial device plugin: {error}"))?;
        let connected = async {
            loop {
                match endpoint.connect().await {
                    Ok(channel) => return channel,
                    Err(error) => tracing::debug!(socket = %socket.display(), %error, "device plugin not reached yet"),
                }
                tokio::time::sleep(CONNECT_AGAIN).await;
            }
        };
        let channel = tokio::time::timeout(CONNECT_LIMIT, connected)
            .await
            .map_err(|_| "failed to dial device plugin: context deadline exceeded".to_owned())?;
        let mut client = DevicePluginClient::new(channel);
        let options = call(CONNECT_LIMIT, client.get_device_plugin_options(Empty {}))
            .await
            .map_err(|status| format!("failed to get device plugin options: {}", text(&status)))?;
        Ok(Self { client, options, number: 0 })
    }

    /// What the plugin would choose; nothing where it has no opinion.
    pub(super) async fn preferred(&self, choice: &Choice, count: usize) -> Result<BTreeSet<String>, String> {
        if !self.options.get_preferred_allocation_available {
            return Ok(BTreeSet::new());
        }
        let request = ContainerPreferredAllocationRequest {
            available_device_i_ds: choice.offered.union(&choice.taken).cloned().collect(),
            must_include_device_i_ds: choice.taken.iter().cloned().collect(),
            allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest { container_requests: vec![request] };
        let answer = call(ALLOCATE_LIMIT, self.client.clone().get_preferred_allocation(request))
            .await
            .map_err(|s| format!("device plugin GetPreferredAllocation rpc failed with err: {}", text(&s)))?;
        Ok(answer
            .container_responses
            .into_iter()
            .next()
            .map(|r| r.device_i_ds)
            .unwrap_or_default()
            .into_iter()
            .collect())
    }

    pub(super) async fn allocate(&self, ids: &BTreeSet<String>) -> Result<ContainerAllocateResponse, String> {
        let request = ContainerAllocateRequest { devices_ids: ids.iter().cloned().collect() };
        let request = AllocateRequest { container_requests: vec![request] };
        let answer = call(ALLOCATE_LIMIT, self.client.clone().allocate(request)).await.map_err(|s| text(&s))?;
        let first = answer.container_responses.into_iter().next();
        first.ok_or_else(|| "no containers return in allocation response &AllocateResponse{}".to_owned())
    }

    pub(super) async fn before_start(&self, ids: &BTreeSet<String>) -> Result<(), String> {
        if !self.options.pre_start_required {
            return Ok(());
        }
        let request = PreStartContainerRequest { devices_ids: ids.iter().cloned().collect() };
        let answer = call(PRE_START_LIMIT, self.client.clone().pre_start_container(request)).await;
        answer.map(drop).map_err(|s| format!("device plugin PreStartContainer rpc failed with err: {}", text(&s)))
    }
}

impl Devices {
    /// Takes a plugin, and listens to what it tells of its devices until it ends. Then it has to register again.
    pub(super) async fn register(&self, resource: &str, socket: &Path) -> Result<(), String> {
        let mut plugin = Plugin::connect(socket).await?;
        let number = self.with(|state| {
            state.registrations += 1;
            plugin.number = state.registrations;
            state.plugins.insert(resource.to_owned(), plugin.clone());
            state.pool.registered(resource);
            plugin.number
        });
        tracing::info!(resource, "device plugin registered");
        let (this, resource) = (self.clone(), resource.to_owned());
        tokio::spawn(self.0.stop.clone().run_until_cancelled_owned(async move {
            let ended = this.listen(&resource, plugin.client, number).await;
            tracing::warn!(resource, why = ended, "device plugin gone; its devices are back when it registers again");
            this.gone(&resource, Some(number));
        }));
        Ok(())
    }

    /// Why it ended.
    async fn listen(&self, resource: &str, mut client: DevicePluginClient<Channel>, number: u64) -> String {
        let mut lists = match client.list_and_watch(Empty {}).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return text(&status),
        };
        loop {
            match lists.message().await {
                Ok(Some(list)) => self.told(resource, number, list),
                Ok(None) => return "EOF".to_owned(),
                Err(status) => return text(&status),
            }
        }
    }

    fn told(&self, resource: &str, number: u64, list: ListAndWatchResponse) {
        let device = |device: super::proto::Device| {
            let nodes = device.topology.map(|t| t.nodes.into_iter().map(|node| node.id).collect()).unwrap_or_default();
            (device.id, Device { healthy: device.health == "Healthy", nodes })
        };
        let devices: BTreeMap<String, Device> = list.devices.into_iter().map(device).collect();
        let touched = self.with(|state| {
            let current = state.plugins.get(resource).is_some_and(|plugin| plugin.number == number);
            if current { state.pool.update(resource, devices) } else { BTreeSet::new() }
        });
        self.changed();
        if !touched.is_empty() {
            self.0.health.send_modify(|count| *count += 1);
        }
    }

    /// A plugin is gone: that of a registration, or whichever there is.
    pub(super) fn gone(&self, resource: &str, number: Option<u64>) {
        let now = self.0.clock.now().monotonic;
        let went = self.with(|state| {
            let current = state.plugins.get(resource).is_some_and(|p| number.is_none_or(|n| p.number == n));
            if current {
                state.plugins.remove(resource);
                state.pool.stopped(resource, now);
            }
            current
        });
        if went {
            self.changed();
            self.0.health.send_modify(|count| *count += 1);
        }
    }
}
