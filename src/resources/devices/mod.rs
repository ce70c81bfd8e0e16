//! Device plugins (A15.5): they register, tell of their devices, and say what a container that gets some needs.

mod checkpoint;
mod plugin;
pub(super) mod pool;
mod proto;
mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stoker_model::handle::{DeviceCounts, DeviceFeed};
use stoker_model::pod::PodUid;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::plugin::Plugin;
use self::pool::{Ask, Pool, Shares};
use super::numa::{Hints, NumaSet};
use crate::clock::Clock;

/// Device plugins and their devices. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Devices(Arc<Inner>);

struct Inner {
    /// Where the sockets and the checkpoint lie.
    dir: PathBuf,
    state: Mutex<State>,
    counts: watch::Sender<Arc<DeviceCounts>>,
    /// Counts changes of the health of devices that somebody has.
    health: watch::Sender<u64>,
    stop: CancellationToken,
    clock: Clock,
}

#[derive(Default)]
struct State {
    pool: Pool,
    plugins: BTreeMap<String, Plugin>,
    /// How many plugins have registered so far: tells a plugin from its successor.
    registrations: u64,
}

/// How many of which resource a container asks for.
pub(super) type Wanted = BTreeMap<String, usize>;
/// Devices of ended init containers, by resource.
pub(super) type Reusable = BTreeMap<String, BTreeSet<String>>;

impl Devices {
    /// Takes over what the checkpoint tells.
    pub(super) fn open(dir: &Path, stop: CancellationToken) -> Self {
        // Like kubelet: containers that run go on, and whoever starts anew gets other devices.
        let mut pool = checkpoint::load(&dir.join(checkpoint::FILE)).unwrap_or_else(|error| {
            tracing::error!(%error, "which containers have which devices is not known any more");
            Pool::default()
        });
        let clock = Clock;
        let now = clock.now().monotonic;
        pool.resources.values_mut().for_each(|resource| resource.stopped_at = Some(now));
        let counts = watch::Sender::new(Arc::new(pool.counts()));
        let state = Mutex::new(State { pool, ..State::default() });
        let inner = Inner { dir: dir.to_owned(), state, counts, health: watch::Sender::new(0), stop, clock };
        Self(Arc::new(inner))
    }

    /// Serves registrations, and forgets plugins that stay away, until the agent stops.
    pub(super) fn start(&self) -> std::io::Result<()> {
        registration::serve(self.clone())?;
        let this = self.clone();
        tokio::spawn(self.0.stop.clone().run_until_cancelled_owned(async move { this.expire().await }));
        Ok(())
    }

    async fn expire(&self) {
        let mut changes = self.0.counts.subscribe();
        loop {
            let now = self.0.clock.now().monotonic;
            let (next, gone) = self.with(|state| {
                let before = state.pool.resources.len();
                (state.pool.expire(now), state.pool.resources.len() < before)
            });
            if gone {
                self.changed();
            }
            changes.mark_unchanged();
            let wait = next.map_or(Duration::from_secs(3600), |at| at.saturating_sub(now));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changes.changed() => {}
            }
        }
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes and keeps what is now.
    fn changed(&self) {
        let (counts, saved) = self.with(|state| {
            let saved = checkpoint::save(&self.0.dir.join(checkpoint::FILE), &state.pool);
            (state.pool.counts(), saved)
        });
        if let Err(error) = saved {
            tracing::error!(%error, "who has which devices is lost when the agent ends now");
        }
        // Also where the numbers are the same: the time until a plugin counts as gone may be another.
        self.0.counts.send_replace(Arc::new(counts));
    }

    /// What the Node shows.
    pub(super) fn feed(&self) -> DeviceFeed {
        self.0.counts.subscribe()
    }

    /// Changes when a device of somebody is no longer healthy, or is again.
    pub(super) fn health(&self) -> watch::Receiver<u64> {
        self.0.health.subscribe()
    }

    /// For others that know how devices are.
    pub(super) fn health_changes(&self) -> watch::Sender<u64> {
        self.0.health.clone()
    }

    pub(super) fn knows(&self, resource: &str) -> bool {
        self.with(|state| state.pool.knows(resource))
    }

    pub(super) fn pods(&self) -> BTreeSet<PodUid> {
        self.with(|state| state.pool.given.keys().cloned().collect())
    }

    /// What a container has.
    pub(super) fn shares(&self, pod: &PodUid, container: &str) -> Shares {
        self.with(|state| state.pool.given.get(pod).and_then(|c| c.get(container)).cloned().unwrap_or_default())
    }

    /// Whether a device is healthy; one that nobody tells of counts as healthy.
    pub(super) fn is_healthy(&self, resource: &str, id: &str) -> bool {
        self.with(|state| state.pool.resources.get(resource).and_then(|r| r.devices.get(id)).is_none_or(|d| d.healthy))
    }

    /// Every healthy device with the memory nodes that it is near.
    pub(super) fn healthy(&self) -> BTreeMap<String, Vec<(String, Vec<i64>)>> {
        self.with(|state| {
            let of = |r: &pool::Resource| {
                let healthy = r.devices.iter().filter(|(_, device)| device.healthy);
                healthy.map(|(id, device)| (id.clone(), device.nodes.clone())).collect()
            };
            state.pool.resources.iter().map(|(name, resource)| (name.clone(), of(resource))).collect()
        })
    }

    /// Frees what a pod has.
    pub(super) fn release(&self, pod: &PodUid) {
        if self.with(|state| state.pool.given.remove(pod).is_some()) {
            self.changed();
        }
    }

    pub(super) fn hints(
        &self,
        (pod, container): (&PodUid, &str),
        wanted: &Wanted,
        reusable: &Reusable,
        machine: &[usize],
    ) -> Hints {
        let nothing = BTreeSet::new();
        self.with(|state| {
            let hints = wanted.iter().map(|(resource, count)| {
                let reusable = reusable.get(resource).unwrap_or(&nothing);
                let ask = Ask { pod, container, resource, count: *count, reusable, affinity: None };
                (resource.clone(), state.pool.hints(&ask, machine))
            });
            hints.collect()
        })
    }

    /// Gives a container its devices, unless it has them. The texts of errors are upstream's.
    pub(super) async fn allocate(
        &self,
        (pod, container): (&PodUid, &str),
        wanted: &Wanted,
        reusable: &Reusable,
        affinity: Option<NumaSet>,
    ) -> Result<(), String> {
        let nothing = BTreeSet::new();
        let mut given = false;
        for (resource, count) in wanted {
            let reusable = reusable.get(resource).unwrap_or(&nothing);
            let ask = Ask { pod, container, resource, count: *count, reusable, affinity };
            let Some(choice) = self.with(|state| state.pool.choose(&ask))? else { continue };
            let plugin = self.with(|state| state.plugins.get(resource).cloned());
            let plugin = plugin.ok_or_else(|| format!("unknown Device Plugin {resource}"))?;
            let preferred = match choice.is_open() {
                true => plugin.preferred(&choice, *count).await?,
                false => BTreeSet::new(),
            };
            let ids = choice.finish(&preferred);
            let answer = plugin.allocate(&ids).await?;
            self.with(|state| state.pool.give(&ask, &ids, answer));
            given = true;
        }
        if given {
            self.changed();
        }
        Ok(())
    }

    /// Tells plugins that want to know it that a container is about to start.
    pub(super) async fn before_start(&self, (pod, container): (&PodUid, &str), wanted: &Wanted) -> Result<(), String> {
        for resource in wanted.keys() {
            let (plugin, known) =
                self.with(|state| (state.plugins.get(resource).cloned(), state.pool.resources.contains_key(resource)));
            let ids = self.with(|state| state.pool.share(pod, container, resource).map(pool::Share::ids));
            match (plugin, ids) {
                (None, _) if !known => {
                    return Err(format!("endpoint not found in cache for a registered resource: {resource}"));
                }
                (Some(plugin), Some(ids)) => plugin.before_start(&ids).await?,
                // Not given yet, or by a plugin that is still to come back.
                _ => {}
            }
        }
        Ok(())
    }
}
