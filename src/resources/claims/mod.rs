//! Claims of dynamic resources (A15.8): their drivers prepare them before a pod gets its sandbox, say under which names the runtime
//! finds the devices, and undo it when the last pod has ended.

mod drivers;
mod proto;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Container, Pod, PodResourceClaim, PodStatus, ResourceHealth, ResourceStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use stoker_model::handle::{ClaimApi, PluginKind};
use stoker_model::pod::{PodRef, PodUid};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::drivers::{Asked, Drivers};
use self::state::{Claim, Claims as Known, DriverState, Member};

/// kubelet's file below its root directory.
const FILE: &str = "dra_manager_state";

/// What one claim gives a container, for monitors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Given {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) devices: Vec<GivenDevice>,
}

/// A device of a claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct GivenDevice {
    pub(super) driver: String,
    pub(super) pool: String,
    pub(super) device: String,
    pub(super) share: Option<String>,
    pub(super) cdi: Vec<String>,
}

/// The claims that pods of this node use. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Claims(Arc<Inner>);

struct Inner {
    path: PathBuf,
    known: Mutex<Known>,
    drivers: Drivers,
}

/// A claim that a pod names: its name, and whether it was made for the pod.
type Named = (String, bool);

impl Claims {
    /// Takes over what a former agent wrote down.
    pub(super) fn open(root_dir: &Path, changes: watch::Sender<u64>, stop: CancellationToken) -> Self {
        let path = root_dir.join(FILE);
        // As with devices: what runs goes on, and drivers are asked again for whoever starts.
        let known = state::load(&path).unwrap_or_else(|error| {
            tracing::error!(%error, "which claims are prepared for which pods is not known any more");
            Known::new()
        });
        Self(Arc::new(Inner { path, known: Mutex::new(known), drivers: Drivers::new(changes, stop) }))
    }

    /// Takes drivers that put a socket into `plugins_registry`.
    pub(super) fn plugins(&self) -> Arc<dyn PluginKind> {
        Arc::new(self.0.drivers.clone())
    }

    pub(super) fn use_api(&self, api: Arc<dyn ClaimApi>) {
        self.0.drivers.use_api(api);
    }

    /// Changes what is known, and keeps it.
    fn change<R>(&self, act: impl FnOnce(&mut Known) -> Result<R, String>) -> Result<R, String> {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.clone();
        let result = act(&mut known)?;
        if *known != before
            && let Err(error) = state::save(&self.0.path, &known)
        {
            *known = before;
            return Err(format!("checkpoint ResourceClaim state: {error}"));
        }
        Ok(result)
    }

    fn read<R>(&self, act: impl FnOnce(&Known) -> R) -> R {
        act(&self.0.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Pods that have a claim.
    pub(super) fn pods(&self) -> BTreeSet<PodUid> {
        self.read(|known| known.values().flat_map(|claim| claim.pods.keys()).map(|uid| PodUid::new(uid)).collect())
    }

    /// Has the drivers prepare what the pod claims. Nothing happens for what is prepared already.
    ///
    /// # Errors
    /// Upstream's text.
    pub(super) async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        let reference = PodRef::of(pod);
        let mut fetched = Vec::new();
        for named in named_by(pod) {
            let Some((name, made_for_pod)) = named? else { continue };
            fetched.push(self.fetch(&reference, &name, made_for_pod).await?);
        }
        if fetched.is_empty() {
            return Ok(());
        }
        let mut batches: BTreeMap<String, Vec<Asked>> = BTreeMap::new();
        self.change(|known| {
            for fresh in fetched {
                let claim = known.entry((fresh.namespace.clone(), fresh.name.clone())).or_insert_with(|| fresh.clone());
                if claim.uid != fresh.uid {
                    return Err(format!(
                        "old ResourceClaim with same name {} and different UID {} still exists (previous pod force-deleted?!)",
                        fresh.name, claim.uid
                    ));
                }
                if claim.leaving {
                    return Err(format!("ResourceClaim {} is being unprepared", fresh.name));
                }
                claim.pods.insert(reference.uid.to_string(), Member {});
                if !claim.prepared {
                    for driver in claim.drivers.keys() {
                        batches.entry(driver.clone()).or_default().push(asked(claim));
                    }
                }
            }
            Ok(())
        })?;
        for (driver, claims) in &batches {
            let answers = self.0.drivers.prepare(driver, claims).await?;
            let skipped = claims.len().saturating_sub(answers.len());
            for (uid, answer) in answers {
                let claim = claims.iter().find(|claim| claim.uid == uid);
                let claim =
                    claim.ok_or_else(|| format!("NodePrepareResources returned result for unknown claim UID {uid}"))?;
                let devices = answer
                    .map_err(|text| format!("NodePrepareResources failed for ResourceClaim {}: {text}", claim.name))?;
                self.change(|known| {
                    if let Some(state) = known.get_mut(&key(claim)) {
                        state.drivers.insert(driver.clone(), DriverState::of(devices));
                    }
                    Ok(())
                })?;
            }
            if skipped > 0 {
                return Err(format!("NodePrepareResources skipped {skipped} ResourceClaims"));
            }
        }
        self.change(|known| {
            for claim in batches.values().flatten() {
                if let Some(state) = known.get_mut(&key(claim)) {
                    state.prepared = true;
                }
            }
            Ok(())
        })
    }

    /// A claim as the cluster has it now, if the pod may use it.
    async fn fetch(&self, pod: &PodRef, name: &str, made_for_pod: bool) -> Result<Claim, String> {
        let failed = |text: String| format!("fetch ResourceClaim {name}: {text}");
        let api = self.0.drivers.api().ok_or_else(|| failed("this node has no API server".to_owned()))?;
        let found = api.resource_claim(&pod.namespace, name).await.map_err(|error| failed(error.to_string()))?;
        let missing = || failed(format!("resourceclaims.resource.k8s.io \"{name}\" not found"));
        let claim = usable(found.ok_or_else(missing)?, pod, made_for_pod)?;
        for driver in claim.drivers.keys() {
            self.0.drivers.check(driver)?;
        }
        Ok(claim)
    }

    /// Has the drivers undo what no other pod uses.
    ///
    /// # Errors
    /// Upstream's text; then it is to be tried again.
    pub(super) async fn unprepare(&self, pod: &PodUid) -> Result<(), String> {
        if !self.read(|known| known.values().any(|claim| claim.pods.contains_key(pod.as_str()))) {
            return Ok(());
        }
        let mut batches: BTreeMap<String, Vec<Asked>> = BTreeMap::new();
        let leaving = self.change(|known| {
            let mut leaving = Vec::new();
            for claim in known.values_mut().filter(|claim| claim.pods.contains_key(pod.as_str())) {
                if claim.pods.len() > 1 {
                    claim.pods.remove(pod.as_str());
                    continue;
                }
                claim.leaving = true;
                leaving.push(asked(claim));
                for driver in claim.drivers.keys() {
                    batches.entry(driver.clone()).or_default().push(asked(claim));
                }
            }
            Ok(leaving)
        })?;
        let undone = self.undo(&batches).await;
        self.change(|known| {
            for claim in &leaving {
                if undone.is_ok() {
                    known.remove(&key(claim));
                } else if let Some(state) = known.get_mut(&key(claim)) {
                    // Nobody knows how much of it was undone.
                    (state.leaving, state.prepared) = (false, false);
                }
            }
            Ok(())
        })?;
        undone
    }

    async fn undo(&self, batches: &BTreeMap<String, Vec<Asked>>) -> Result<(), String> {
        for (driver, claims) in batches {
            let answers = self.0.drivers.unprepare(driver, claims).await?;
            for (uid, answer) in &answers {
                let claim = claims.iter().find(|claim| claim.uid == *uid);
                let claim = claim
                    .ok_or_else(|| format!("NodeUnprepareResources returned result for unknown claim UID {uid}"))?;
                if let Err(text) = answer {
                    return Err(format!("NodeUnprepareResources failed for ResourceClaim {}: {text}", claim.name));
                }
            }
            if answers.len() < claims.len() {
                let skipped = claims.len() - answers.len();
                return Err(format!("NodeUnprepareResources skipped {skipped} ResourceClaims"));
            }
        }
        Ok(())
    }

    /// The names under which the runtime finds what a container claims.
    ///
    /// # Errors
    /// A claim that is not prepared.
    pub(super) fn cdi_devices(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let namespace = PodRef::of(pod).namespace;
        let mut all = Vec::new();
        for (name, request) in requests(pod, container)? {
            let devices = self.read(|known| {
                let claim = known.get(&(namespace.clone(), name.clone()))?;
                let devices = claim.drivers.values().flat_map(DriverState::devices);
                Some(devices.filter(|d| d.is_of(&request)).flat_map(|d| d.cdi().to_vec()).collect::<Vec<_>>())
            });
            let missing = || {
                format!("internal error: unable to get claim info for ResourceClaim {name} in namespace {namespace}")
            };
            all.extend(devices.ok_or_else(missing)?);
        }
        let mut seen = BTreeSet::new();
        all.retain(|name| seen.insert(name.clone()));
        Ok(all)
    }

    /// What a container has, for monitors.
    pub(super) fn given(&self, pod: &Pod, container: &Container) -> Vec<Given> {
        let namespace = PodRef::of(pod).namespace;
        let names: BTreeSet<String> =
            requests(pod, container).unwrap_or_default().into_iter().map(|(name, _)| name).collect();
        self.read(|known| {
            let found = names.into_iter().filter_map(|name| known.get(&(namespace.clone(), name)));
            let of = |claim: &Claim| {
                let devices = claim.drivers.iter().flat_map(|(driver, state)| {
                    state.devices().iter().map(|d| GivenDevice {
                        driver: driver.clone(),
                        pool: d.pool_name.clone(),
                        device: d.device_name.clone(),
                        share: d.share_id.clone(),
                        cdi: d.cdi().to_vec(),
                    })
                });
                Given { namespace: claim.namespace.clone(), name: claim.name.clone(), devices: devices.collect() }
            };
            found.map(of).collect()
        })
    }

    /// Writes into a status which devices of claims the containers have, and how they are (A15.15).
    pub(super) fn tell_health(&self, pod: &Pod, status: &mut PodStatus) {
        for told in status.container_statuses.iter_mut().flatten() {
            let spec = pod.spec.iter().flat_map(|spec| &spec.containers).find(|c| c.name == told.name);
            let claims = spec.and_then(|c| c.resources.as_ref()).and_then(|r| r.claims.as_ref());
            let mut all = Vec::new();
            for wanted in claims.into_iter().flatten() {
                let of_pod =
                    pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten()).find(|c| c.name == wanted.name);
                let Some(Ok(Some((name, _)))) = of_pod.map(|claim| named(pod, claim)) else { continue };
                let request = wanted.request.as_deref().unwrap_or_default();
                // The request of an alternative is told as `request/alternative`.
                let base = request.split('/').next().unwrap_or_default();
                let namespace = pod.metadata.namespace.clone().unwrap_or_default();
                let resources = self.health_of(&(namespace, name), base);
                if resources.is_empty() {
                    continue;
                }
                let called = match request {
                    "" => format!("claim:{}", wanted.name),
                    request => format!("claim:{}/{request}", wanted.name),
                };
                all.push(ResourceStatus { name: called, resources: Some(resources) });
            }
            if !all.is_empty() {
                told.allocated_resources_status.get_or_insert_default().extend(all);
            }
        }
    }

    fn health_of(&self, claim: &(String, String), request: &str) -> Vec<ResourceHealth> {
        let drivers = self.read(|known| known.get(claim).map(|claim| claim.drivers.clone())).unwrap_or_default();
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        for (driver, state) in &drivers {
            for device in state.devices().iter().filter(|device| device.is_of(request)) {
                let plain = || format!("{driver}/{}/{}", device.pool_name, device.device_name);
                let id = device.cdi().first().cloned().unwrap_or_else(plain);
                if !seen.insert(id.clone()) {
                    continue;
                }
                let (health, message) = self.0.drivers.health(driver, &device.pool_name, &device.device_name);
                let message = Some(message).filter(|message| !message.is_empty());
                all.push(ResourceHealth { resource_id: id, health: Some(health.to_owned()), message });
            }
        }
        all
    }
}

fn asked(claim: &Claim) -> Asked {
    Asked { namespace: claim.namespace.clone(), uid: claim.uid.clone(), name: claim.name.clone() }
}

fn key(claim: &Asked) -> (String, String) {
    (claim.namespace.clone(), claim.name.clone())
}

/// The claims that a pod names, besides the one that was made for its extended resources.
fn named_by(pod: &Pod) -> impl Iterator<Item = Result<Option<Named>, String>> {
    let own = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()).map(|claim| named(pod, claim));
    let extended = pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.as_ref());
    own.chain(extended.map(|status| Ok(Some((status.resource_claim_name.clone(), false)))))
}

/// The claim behind one that a pod names; `None`: none was needed.
fn named(pod: &Pod, claim: &PodResourceClaim) -> Result<Option<Named>, String> {
    let PodRef { namespace, name, .. } = PodRef::of(pod);
    if let Some(direct) = &claim.resource_claim_name {
        return Ok(Some((direct.clone(), false)));
    }
    if claim.resource_claim_template_name.is_none() {
        return Err(format!(
            "pod \"{namespace}/{name}\", spec.resourceClaim \"{}\": none of the supported fields are set",
            claim.name
        ));
    }
    let statuses = pod.status.iter().flat_map(|status| status.resource_claim_statuses.iter().flatten());
    let made = statuses.into_iter().find(|status| status.name == claim.name);
    let made = made.ok_or_else(|| format!("pod \"{namespace}/{name}\": ResourceClaim not created yet"))?;
    Ok(made.resource_claim_name.clone().map(|name| (name, true)))
}

/// What a container claims: names of claims, and requests of them; an empty one is all of the claim.
fn requests(pod: &Pod, container: &Container) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    let resources = container.resources.as_ref();
    for wanted in resources.and_then(|r| r.claims.as_ref()).into_iter().flatten() {
        let of_pod = pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten()).find(|c| c.name == wanted.name);
        let Some(claim) = of_pod else { continue };
        if let Some((name, _)) = named(pod, claim)? {
            all.push((name, wanted.request.clone().unwrap_or_default()));
        }
    }
    let extended = pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.as_ref());
    for mapping in extended.iter().flat_map(|status| &status.request_mappings) {
        let asked = resources.and_then(|r| r.requests.as_ref()?.get(&mapping.resource_name));
        let asks = asked.is_some_and(|amount| amount.0 != "0");
        if let Some(status) = extended
            && mapping.container_name == container.name
            && asks
        {
            all.push((status.resource_claim_name.clone(), mapping.request_name.clone()));
        }
    }
    Ok(all)
}

/// A claim that a pod may use, as it is kept before anybody has prepared it.
fn usable(claim: ResourceClaim, pod: &PodRef, made_for_pod: bool) -> Result<Claim, String> {
    let metadata = claim.metadata;
    let (name, uid) = (metadata.name.unwrap_or_default(), metadata.uid.unwrap_or_default());
    let owners = metadata.owner_references.unwrap_or_default();
    if made_for_pod && !owners.iter().any(|owner| owner.controller == Some(true) && owner.uid == pod.uid.as_str()) {
        return Err(format!(
            "ResourceClaim {0}/{name} was not created for pod {0}/{1} (pod is not owner)",
            pod.namespace, pod.name
        ));
    }
    let status = claim.status.unwrap_or_default();
    let reserved = status.reserved_for.iter().flatten().any(|user| user.uid == pod.uid.as_str());
    if !reserved {
        return Err(format!("pod {} ({}) is not allowed to use ResourceClaim {name} ({uid})", pod.name, pod.uid));
    }
    let allocation = status.allocation.ok_or_else(|| format!("ResourceClaim {name}: not allocated"))?;
    let results = allocation.devices.and_then(|devices| devices.results).unwrap_or_default();
    let drivers = results.into_iter().map(|result| (result.driver, DriverState::default())).collect();
    Ok(Claim { uid, name, namespace: pod.namespace.clone(), drivers, ..Claim::default() })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
