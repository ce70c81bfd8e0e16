//! The drivers of dynamic resources: they register through `plugins_registry`, are called, and tell how their devices are. What a driver
//! has published that stays gone for half a minute is removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use stoker_model::handle::{ClaimApi, FoundPlugin, PluginKind};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::proto::health::dra_resource_health_client::DraResourceHealthClient;
use super::proto::health::{self as told, HealthStatus, NodeWatchResourcesRequest};
use super::proto::{v1, v1beta1};
use super::state::Device;
use crate::clock::Clock;

/// A driver may take so long.
const CALL_LIMIT: Duration = Duration::from_secs(45);
/// A driver that does not tell how its devices are is asked again after this.
const HEALTH_AGAIN: Duration = Duration::from_secs(5);
/// What was told of a device counts for so long, where the driver does not say.
const HEALTH_HOLDS: Duration = Duration::from_secs(30);
/// A driver that is gone may come back within this time.
const PATIENCE: Duration = Duration::from_secs(30);
/// First and longest delay between tries to remove what a driver has published.
const REMOVE_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// The longest message of a device that a status has.
const LONGEST_MESSAGE: usize = 1024;

/// What drivers may speak, the best first.
const SERVICES: [(&str, Service); 2] = [("v1.DRAPlugin", Service::V1), ("v1beta1.DRAPlugin", Service::V1Beta1)];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Service {
    V1,
    V1Beta1,
}

/// A claim as drivers are told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) name: String,
}

/// What a driver answers of one claim: its devices (none when they were given back), or why not.
pub(super) type Answers = BTreeMap<String, Result<Vec<Device>, String>>;

/// One instance of a driver: two of them may be there while it is replaced by a newer one.
#[derive(Clone)]
struct Instance {
    endpoint: PathBuf,
    channel: Channel,
    service: Service,
    /// It answers.
    connected: bool,
    stop: CancellationToken,
}

/// How a device is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Health {
    pub(super) status: &'static str,
    pub(super) message: String,
    holds: Duration,
    /// Monotonic.
    told_at: Duration,
}

#[derive(Default)]
struct State {
    drivers: BTreeMap<String, Vec<Instance>>,
    /// By driver, pool and device.
    health: BTreeMap<(String, String, String), Health>,
    /// What drivers that are gone have published is about to be removed.
    going: BTreeMap<String, CancellationToken>,
}

/// All drivers of this node. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Drivers(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    api: OnceLock<Arc<dyn ClaimApi>>,
    /// Counts changes of the health of devices.
    changes: watch::Sender<u64>,
    patience: Duration,
    stop: CancellationToken,
    clock: Clock,
}

impl Drivers {
    pub(super) fn new(changes: watch::Sender<u64>, stop: CancellationToken) -> Self {
        Self::with_patience(changes, stop, PATIENCE)
    }

    fn with_patience(changes: watch::Sender<u64>, stop: CancellationToken, patience: Duration) -> Self {
        let (state, api) = (Mutex::default(), OnceLock::new());
        Self(Arc::new(Inner { state, api, changes, patience, stop, clock: Clock }))
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on there is an API server. None of the drivers has registered yet, and they may not come back: nothing of theirs is
    /// offered to the scheduler until they publish it anew.
    pub(super) fn use_api(&self, api: Arc<dyn ClaimApi>) {
        if self.0.api.set(api.clone()).is_ok() {
            tokio::spawn(self.0.stop.clone().run_until_cancelled_owned(remove_slices(api, None)));
        }
    }

    pub(super) fn api(&self) -> Option<Arc<dyn ClaimApi>> {
        self.0.api.get().cloned()
    }

    /// The instance to call: the newest that answers.
    fn instance(&self, driver: &str) -> Result<Instance, String> {
        let found = self.with(|state| {
            let all = state.drivers.get(driver)?;
            all.iter().rev().find(|instance| instance.connected).or(all.last()).cloned()
        });
        found.ok_or_else(|| format!("DRA driver {driver} is not registered"))
    }

    /// Whether anybody can be called for this driver.
    pub(super) fn check(&self, driver: &str) -> Result<(), String> {
        self.instance(driver).map(drop)
    }

    pub(super) async fn prepare(&self, driver: &str, claims: &[Asked]) -> Result<Answers, String> {
        let Instance { channel, service, .. } = self.instance(driver)?;
        let failed = |text: String| format!("NodePrepareResources: {text}");
        match service {
            Service::V1 => {
                let claims = claims.iter().map(|c| v1::Claim {
                    namespace: c.namespace.clone(),
                    uid: c.uid.clone(),
                    name: c.name.clone(),
                });
                let request = v1::NodePrepareResourcesRequest { claims: claims.collect() };
                let mut client = v1::dra_plugin_client::DraPluginClient::new(channel);
                let answer = limited(client.node_prepare_resources(request)).await.map_err(failed)?;
                let device = |d: v1::Device| Device {
                    pool_name: d.pool_name,
                    device_name: d.device_name,
                    share_id: d.share_id,
                    request_names: listed(d.request_names),
                    cdi_device_ids: listed(d.cdi_device_ids),
                };
                let of =
                    |a: v1::NodePrepareResourceResponse| outcome(a.error, a.devices.into_iter().map(device).collect());
                Ok(answer.claims.into_iter().map(|(uid, answer)| (uid, of(answer))).collect())
            }
            Service::V1Beta1 => {
                let claims = claims.iter().map(|c| v1beta1::Claim {
                    namespace: c.namespace.clone(),
                    uid: c.uid.clone(),
                    name: c.name.clone(),
                });
                let request = v1beta1::NodePrepareResourcesRequest { claims: claims.collect() };
                let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(channel);
                let answer = limited(client.node_prepare_resources(request)).await.map_err(failed)?;
                let device = |d: v1beta1::Device| Device {
                    pool_name: d.pool_name,
                    device_name: d.device_name,
                    share_id: None,
                    request_names: listed(d.request_names),
                    cdi_device_ids: listed(d.cdi_device_ids),
                };
                let of = |a: v1beta1::NodePrepareResourceResponse| {
                    outcome(a.error, a.devices.into_iter().map(device).collect())
                };
                Ok(answer.claims.into_iter().map(|(uid, answer)| (uid, of(answer))).collect())
            }
        }
    }

    pub(super) async fn unprepare(&self, driver: &str, claims: &[Asked]) -> Result<Answers, String> {
        let Instance { channel, service, .. } = self.instance(driver)?;
        let failed = |text: String| format!("NodeUnprepareResources: {text}");
        match service {
            Service::V1 => {
                let claims = claims.iter().map(|c| v1::Claim {
                    namespace: c.namespace.clone(),
                    uid: c.uid.clone(),
                    name: c.name.clone(),
                });
                let request = v1::NodeUnprepareResourcesRequest { claims: claims.collect() };
                let mut client = v1::dra_plugin_client::DraPluginClient::new(channel);
                let answer = limited(client.node_unprepare_resources(request)).await.map_err(failed)?;
                Ok(answer.claims.into_iter().map(|(uid, answer)| (uid, outcome(answer.error, Vec::new()))).collect())
            }
            Service::V1Beta1 => {
                let claims = claims.iter().map(|c| v1beta1::Claim {
                    namespace: c.namespace.clone(),
                    uid: c.uid.clone(),
                    name: c.name.clone(),
                });
                let request = v1beta1::NodeUnprepareResourcesRequest { claims: claims.collect() };
                let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(channel);
                let answer = limited(client.node_unprepare_resources(request)).await.map_err(failed)?;
                Ok(answer.claims.into_iter().map(|(uid, answer)| (uid, outcome(answer.error, Vec::new()))).collect())
            }
        }
    }

    /// How a device is: what was told lately, or `Unknown`.
    pub(super) fn health(&self, driver: &str, pool: &str, device: &str) -> (&'static str, String) {
        let now = self.0.clock.now().monotonic;
        let key = (driver.to_owned(), pool.to_owned(), device.to_owned());
        let found = self.with(|state| state.health.get(&key).cloned());
        let fresh = found.filter(|health| now.saturating_sub(health.told_at) <= health.holds);
        fresh.map_or(("Unknown", String::new()), |health| (health.status, health.message))
    }

    /// Takes over what a driver tells of its devices.
    fn note(&self, driver: &str, devices: Vec<told::DeviceHealth>) {
        let now = self.0.clock.now().monotonic;
        let changed = self.with(|state| {
            let mut changed = false;
            for device in devices {
                let id = device.device.clone().unwrap_or_default();
                let holds = u64::try_from(device.health_check_timeout_seconds).ok().filter(|seconds| *seconds > 0);
                let health = Health {
                    status: match device.health() {
                        HealthStatus::Healthy => "Healthy",
                        HealthStatus::Unhealthy => "Unhealthy",
                        HealthStatus::Unknown => "Unknown",
                    },
                    message: shortened(device.message),
                    holds: holds.map_or(HEALTH_HOLDS, Duration::from_secs),
                    told_at: now,
                };
                let before = state.health.insert((driver.to_owned(), id.pool_name, id.device_name), health.clone());
                let is_news = |before: &Health| {
                    (before.status, &before.message) != (health.status, &health.message)
                        || now.saturating_sub(before.told_at) > before.holds
                };
                changed |= before.as_ref().is_none_or(is_news);
            }
            changed
        });
        if changed {
            self.0.changes.send_modify(|count| *count += 1);
        }
    }

    fn forget_health(&self, driver: &str) {
        let had = self.with(|state| {
            let before = state.health.len();
            state.health.retain(|(of, ..), _| of != driver);
            state.health.len() < before
        });
        if had {
            self.0.changes.send_modify(|count| *count += 1);
        }
    }

    /// Listens to what an instance tells of its devices, and so knows whether it answers at all.
    async fn listen(self, driver: String, endpoint: PathBuf, channel: Channel) {
        loop {
            let asked =
                DraResourceHealthClient::new(channel.clone()).node_watch_resources(NodeWatchResourcesRequest {}).await;
            match asked {
                Ok(answer) => {
                    self.set_connected(&driver, &endpoint, true);
                    let mut stream = answer.into_inner();
                    while let Some(Ok(told)) = stream.next().await {
                        self.note(&driver, told.devices);
                    }
                    self.forget_health(&driver);
                }
                Err(status) => self.set_connected(&driver, &endpoint, status.code() != Code::Unavailable),
            }
            tokio::time::sleep(HEALTH_AGAIN).await;
        }
    }

    fn set_connected(&self, driver: &str, endpoint: &Path, connected: bool) {
        self.with(|state| {
            let all = state.drivers.get_mut(driver).into_iter().flatten();
            all.filter(|instance| instance.endpoint == endpoint).for_each(|instance| instance.connected = connected);
        });
        self.watch_over(driver);
    }

    /// What a driver has published goes when nobody of it has answered for a while.
    fn watch_over(&self, driver: &str) {
        let Some(api) = self.api() else { return };
        let fresh = self.with(|state| {
            let usable = state.drivers.get(driver).is_some_and(|all| all.iter().any(|instance| instance.connected));
            if usable {
                if let Some(token) = state.going.remove(driver) {
                    token.cancel();
                }
                return None;
            }
            if state.going.contains_key(driver) {
                return None;
            }
            let token = self.0.stop.child_token();
            state.going.insert(driver.to_owned(), token.clone());
            Some(token)
        });
        let Some(token) = fresh else { return };
        let (driver, patience) = (driver.to_owned(), self.0.patience);
        tokio::spawn(token.run_until_cancelled_owned(async move {
            tokio::time::sleep(patience).await;
            remove_slices(api, Some(driver)).await;
        }));
    }
}

/// Go writes an empty list that was never filled as `null`.
fn listed(names: Vec<String>) -> Option<Vec<String>> {
    Some(names).filter(|names| !names.is_empty())
}

fn outcome(error: String, devices: Vec<Device>) -> Result<Vec<Device>, String> {
    if error.is_empty() { Ok(devices) } else { Err(error) }
}

async fn limited<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, String> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(format!("rpc error: code = {:?} desc = {}", status.code(), status.message())),
        Err(_) => Err("rpc error: code = DeadlineExceeded desc = context deadline exceeded".to_owned()),
    }
}

/// A message that fits into a status.
fn shortened(message: String) -> String {
    if message.len() <= LONGEST_MESSAGE {
        return message;
    }
    let end = (0..=LONGEST_MESSAGE - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or_default();
    format!("{}...", &message[..end])
}

/// Removes what a driver of this node has published, or all of them.
async fn remove_slices(api: Arc<dyn ClaimApi>, driver: Option<String>) {
    let mut delay = REMOVE_AGAIN.0;
    while let Err(error) = api.remove_slices(driver.as_deref()).await {
        tracing::debug!(?driver, %error, "ResourceSlices are still there; it is tried again");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(REMOVE_AGAIN.1);
    }
}

#[async_trait::async_trait]
impl PluginKind for Drivers {
    fn kind(&self) -> &'static str {
        "DRAPlugin"
    }

    async fn found(&self, plugin: &FoundPlugin) -> Result<(), String> {
        if plugin.versions.is_empty() {
            return Err("empty list for supported gRPC services (aka supported versions)".to_owned());
        }
        let spoken = SERVICES.iter().find(|(name, _)| plugin.versions.iter().any(|version| version == name));
        let Some((_, service)) = spoken else {
            let ours: Vec<&str> = SERVICES.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "none of services supported by the plugin ({:?}) are supported by the kubelet ({ours:?})",
                plugin.versions
            ));
        };
        let uri = format!("unix:{}", plugin.endpoint.display());
        let endpoint = Endpoint::from_shared(uri).map_err(|error| error.to_string())?;
        let (channel, stop) = (endpoint.connect_lazy(), self.0.stop.child_token());
        let instance = Instance {
            endpoint: plugin.endpoint.clone(),
            channel: channel.clone(),
            service: *service,
            connected: true,
            stop: stop.clone(),
        };
        self.with(|state| {
            let all = state.drivers.entry(plugin.name.clone()).or_default();
            for old in all.extract_if(.., |known| known.endpoint == plugin.endpoint) {
                old.stop.cancel();
            }
            all.push(instance);
        });
        self.watch_over(&plugin.name);
        let listening = self.clone().listen(plugin.name.clone(), plugin.endpoint.clone(), channel);
        tokio::spawn(stop.run_until_cancelled_owned(listening));
        Ok(())
    }

    async fn lost(&self, name: &str, endpoint: &Path) {
        let last = self.with(|state| {
            let Some(all) = state.drivers.get_mut(name) else { return false };
            for gone in all.extract_if(.., |known| known.endpoint == endpoint) {
                gone.stop.cancel();
            }
            let last = all.is_empty();
            if last {
                state.drivers.remove(name);
            }
            last
        });
        if last {
            self.forget_health(name);
        }
        self.watch_over(name);
    }
}

#[cfg(test)]
mod tests {
    use stoker_model::handle::ApiError;

    use super::*;

    #[derive(Default)]
    struct Cluster(Mutex<Vec<String>>);

    #[async_trait::async_trait]
    impl ClaimApi for Cluster {
        async fn resource_claim(
            &self,
            _: &str,
            _: &str,
        ) -> Result<Option<k8s_openapi::api::resource::v1::ResourceClaim>, ApiError> {
            Ok(None)
        }

        async fn remove_slices(&self, driver: Option<&str>) -> Result<(), ApiError> {
            self.0.lock().unwrap().push(driver.unwrap_or("all").to_owned());
            Ok(())
        }
    }

    fn found(endpoint: &str, versions: &[&str]) -> FoundPlugin {
        let versions = versions.iter().map(|version| (*version).to_owned()).collect();
        FoundPlugin { name: "gpu.example.com".into(), endpoint: endpoint.into(), versions }
    }

    #[tokio::test]
    async fn the_best_version_that_both_speak_counts() {
        // A15.6, A15.8
        let drivers = Drivers::new(watch::Sender::new(0), CancellationToken::new());
        assert_eq!(drivers.kind(), "DRAPlugin");
        let text = "empty list for supported gRPC services (aka supported versions)";
        assert_eq!(drivers.found(&found("/a", &[])).await.unwrap_err(), text);
        let error = drivers.found(&found("/a", &["v1alpha4.Node"])).await.unwrap_err();
        assert!(error.starts_with("none of services supported by the plugin"), "{error}");
        assert_eq!(drivers.check("gpu.example.com").unwrap_err(), "DRA driver gpu.example.com is not registered");
        drivers.found(&found("/a", &["v1beta1.DRAPlugin"])).await.unwrap();
        assert_eq!(drivers.instance("gpu.example.com").unwrap().service, Service::V1Beta1);
        // A newer instance beside the old one: the newest that answers is called.
        drivers.found(&found("/b", &["v1beta1.DRAPlugin", "v1.DRAPlugin"])).await.unwrap();
        assert_eq!(drivers.instance("gpu.example.com").unwrap().service, Service::V1);
        drivers.set_connected("gpu.example.com", Path::new("/b"), false);
        assert_eq!(drivers.instance("gpu.example.com").unwrap().endpoint, Path::new("/a"));
        drivers.lost("gpu.example.com", Path::new("/a")).await;
        assert_eq!(drivers.instance("gpu.example.com").unwrap().endpoint, Path::new("/b"));
        drivers.lost("gpu.example.com", Path::new("/b")).await;
        assert!(drivers.check("gpu.example.com").is_err());
    }

    #[tokio::test]
    async fn what_a_driver_published_goes_when_it_stays_away() {
        // A15.8
        assert_eq!(PATIENCE, Duration::from_secs(30));
        let patience = Duration::from_millis(150);
        let drivers = Drivers::with_patience(watch::Sender::new(0), CancellationToken::new(), patience);
        let cluster = Arc::new(Cluster::default());
        drivers.use_api(cluster.clone());
        let removed = || cluster.0.lock().unwrap().clone();
        tokio::time::sleep(patience / 3).await;
        assert_eq!(removed(), ["all"], "nobody has come yet");
        let plugin = found("/nowhere/a", &["v1.DRAPlugin"]);
        drivers.found(&plugin).await.unwrap();
        drivers.lost(&plugin.name, &plugin.endpoint).await;
        drivers.found(&plugin).await.unwrap();
        drivers.set_connected(&plugin.name, &plugin.endpoint, true);
        drivers.with(|state| state.drivers.values().flatten().for_each(|instance| instance.stop.cancel()));
        drivers.set_connected(&plugin.name, &plugin.endpoint, true);
        tokio::time::sleep(patience * 2).await;
        assert_eq!(removed(), ["all"], "it came back in time");
        drivers.lost(&plugin.name, &plugin.endpoint).await;
        tokio::time::sleep(patience * 2).await;
        assert_eq!(removed(), ["all", "gpu.example.com"]);
    }

    #[test]
    fn what_was_told_of_a_device_holds_for_a_while() {
        // A15.8, A15.15
        let changes = watch::Sender::new(0);
        let drivers = Drivers::new(changes.clone(), CancellationToken::new());
        let tell = |health: HealthStatus, message: &str| {
            let device = told::DeviceIdentifier { pool_name: "p".into(), device_name: "d".into() };
            let message = message.to_owned();
            let all = told::DeviceHealth { device: Some(device), health: health.into(), message, ..Default::default() };
            drivers.note("gpu.example.com", vec![all]);
        };
        let now = || drivers.health("gpu.example.com", "p", "d");
        assert_eq!(now(), ("Unknown", String::new()));
        tell(HealthStatus::Unhealthy, "too hot");
        assert_eq!((now(), *changes.borrow()), (("Unhealthy", "too hot".to_owned()), 1));
        tell(HealthStatus::Unhealthy, "too hot");
        assert_eq!(*changes.borrow(), 1, "that is no news");
        tell(HealthStatus::Healthy, &"x".repeat(2000));
        let (status, message) = now();
        assert_eq!((status, message.len(), message.ends_with("x...")), ("Healthy", 1024, true));
        drivers.with(|state| state.health.values_mut().for_each(|health| health.told_at = Duration::ZERO));
        assert_eq!(now(), ("Unknown", String::new()), "it was told long ago");
        drivers.forget_health("gpu.example.com");
        assert_eq!(*changes.borrow(), 3);
    }
}
