//! What pods' volumes take and have left: in the summary, and as `kubelet_volume_stats_*` (A18.5, A23.3).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use stoker_model::handle::{DiskMeter, MountedVolume, VolumeFill};
use stoker_model::pod::LocalPod;
use tokio::task::JoinHandle;

use super::text::{Page, value};
use super::{Filesystem, Stats, namespace};
use crate::clock::{Clock, Now};

/// Who asks for volumes waits so long for those that are to be measured.
const PATIENCE: Duration = Duration::from_secs(2);

/// One volume, as it was measured.
#[derive(Clone, Debug)]
pub(super) struct VolumeStats {
    time: jiff::Timestamp,
    volume: MountedVolume,
    fs: Filesystem,
    used: u64,
    inodes_used: u64,
}

/// By the pod's UID.
pub(super) type Volumes = BTreeMap<String, Vec<VolumeStats>>;

/// What is told of one volume.
type ReadVolume = fn(&VolumeStats) -> u64;

/// Metrics of claims: end of the name, help, value.
const OF_CLAIMS: [(&str, &str, ReadVolume); 6] = [
    ("capacity_bytes", "Capacity in bytes of the volume", |it| it.fs.capacity),
    ("available_bytes", "Number of available bytes in the volume", |it| it.fs.available),
    ("used_bytes", "Number of used bytes in the volume", |it| it.used),
    ("inodes", "Maximum number of inodes in the volume", |it| it.fs.inodes),
    ("inodes_free", "Number of free inodes in the volume", |it| it.fs.inodes_free),
    ("inodes_used", "Number of used inodes in the volume", |it| it.inodes_used),
];

/// What is known of one pod's volumes.
#[derive(Default)]
struct Known {
    /// When they were measured.
    at: Option<Now>,
    /// They are just now: a file system that does not answer is asked by one thread and no more.
    is_measured: bool,
    volumes: Vec<VolumeStats>,
}

/// Measures pods' volumes, at most each `volumeStatsAggPeriod`. A pod that is new is measured at once.
pub(super) struct VolumeMeter {
    disks: Arc<dyn DiskMeter>,
    every: Duration,
    known: Arc<Mutex<BTreeMap<String, Known>>>,
}

impl VolumeMeter {
    pub(super) fn new(disks: Arc<dyn DiskMeter>, every: Duration) -> Self {
        Self { disks, every, known: Arc::default() }
    }

    pub(super) fn disks(&self) -> &dyn DiskMeter {
        self.disks.as_ref()
    }

    /// The volumes of these pods. Those that take longer to measure than one waits for an answer are told of as they were last.
    pub(super) async fn volumes(&self, pods: &[LocalPod]) -> Volumes {
        let (alone, together): (Vec<LocalPod>, Vec<LocalPod>) =
            self.due(pods, Clock.now()).into_iter().partition(asks_others);
        let mut measuring: Vec<_> = alone.into_iter().map(|pod| self.measure(vec![pod])).collect();
        if !together.is_empty() {
            measuring.push(self.measure(together));
        }
        let _ = tokio::time::timeout(PATIENCE, futures::future::join_all(measuring)).await;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(pod, known)| (pod.clone(), known.volumes.clone())).collect()
    }

    /// Those to be measured now, which are noted down as being so. Pods that are gone are forgotten.
    fn due(&self, pods: &[LocalPod], now: Now) -> Vec<LocalPod> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *known);
        let mut due = Vec::new();
        for pod in pods {
            let mut pod_known = before.remove(uid(pod)).unwrap_or_default();
            let is_fresh = pod_known.at.is_some_and(|at| now.monotonic.saturating_sub(at.monotonic) < self.every);
            if !is_fresh && !pod_known.is_measured {
                pod_known.is_measured = true;
                due.push(pod.clone());
            }
            known.insert(uid(pod).to_owned(), pod_known);
        }
        due
    }

    /// Goes on also when nobody waits for it any more.
    fn measure(&self, pods: Vec<LocalPod>) -> JoinHandle<()> {
        let (disks, known) = (self.disks.clone(), self.known.clone());
        tokio::spawn(async move {
            let now = Clock.now();
            let told = futures::future::join_all(pods.iter().map(|pod| disks.told_by_drivers(pod.pod()))).await;
            let work = move || {
                for (pod, told) in pods.iter().zip(&told) {
                    let volumes = measure(pod.pod(), told, disks.as_ref(), now.wall);
                    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(known) = known.get_mut(uid(pod)) {
                        // A pod whose volumes are not there yet is asked for again.
                        let at = (!volumes.is_empty()).then_some(now);
                        *known = Known { at, is_measured: false, volumes };
                    }
                }
            };
            let _ = tokio::task::spawn_blocking(work).await;
        })
    }
}

/// Whether a volume lies elsewhere, at a server that may not answer.
fn asks_others(pod: &LocalPod) -> bool {
    let mut volumes = pod.pod().spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| {
        volume.persistent_volume_claim.is_some()
            || volume.ephemeral.is_some()
            || volume.csi.is_some()
            || volume.nfs.is_some()
    })
}

impl Stats {
    /// Of every claim that a pod here uses, each once.
    pub(super) async fn claim_metrics(&self, page: &mut Page) {
        let pods = self.pods.pods();
        let all = self.volumes.volumes(&pods).await;
        let mut claims: BTreeMap<(&str, &str), &VolumeStats> = BTreeMap::new();
        for pod in &pods {
            for volume in all.get(uid(pod)).into_iter().flatten() {
                if let Some(claim) = &volume.volume.claim {
                    claims.entry((namespace(pod.pod()), claim)).or_insert(volume);
                }
            }
        }
        for (suffix, help, read) in OF_CLAIMS.iter().filter(|_| !claims.is_empty()) {
            let metric = format!("kubelet_volume_stats_{suffix}");
            page.metric(&metric, "gauge", &format!("[ALPHA] {help}"));
            for ((namespace, claim), volume) in &claims {
                let labels = [("namespace", *namespace), ("persistentvolumeclaim", *claim)];
                page.sample(&metric, &labels, value(read(volume)), None);
            }
        }
    }
}

/// How many volumes of each plugin pods want, and how many are there.
pub(super) fn count_metrics(page: &mut Page, pods: &[LocalPod], disks: &dyn DiskMeter) {
    let mut counts: BTreeMap<(String, &str), u64> = BTreeMap::new();
    for (plugin, is_there) in pods.iter().flat_map(|pod| disks.plugins(pod.pod())) {
        if is_there {
            *counts.entry((plugin.clone(), "actual_state_of_world")).or_default() += 1;
        }
        *counts.entry((plugin, "desired_state_of_world")).or_default() += 1;
    }
    let metric = "volume_manager_total_volumes";
    page.metric(metric, "gauge", "[ALPHA] Number of volumes in Volume Manager");
    for ((plugin, state), count) in &counts {
        page.sample(metric, &[("plugin_name", plugin), ("state", state)], value(*count), None);
    }
}

fn uid(pod: &LocalPod) -> &str {
    pod.pod().metadata.uid.as_deref().unwrap_or_default()
}

fn measure(
    pod: &Pod,
    told: &BTreeMap<String, VolumeFill>,
    disks: &dyn DiskMeter,
    time: jiff::Timestamp,
) -> Vec<VolumeStats> {
    let stats = |volume: MountedVolume| {
        let fs = Filesystem::read(&volume.path)?;
        let (used, inodes_used) = if volume.claim.is_some() {
            (fs.used, fs.inodes.saturating_sub(fs.inodes_free))
        } else {
            let found = disks.tree(&volume.path);
            (found.bytes, found.inodes)
        };
        let mut stats = VolumeStats { time, volume, fs, used, inodes_used };
        if let Some(fill) = told.get(&stats.volume.name) {
            stats.take_over(fill);
        }
        Some(stats)
    };
    disks.mounted(pod).into_iter().filter_map(stats).collect()
}

impl VolumeStats {
    /// What a driver tells counts more than what can be seen from here.
    fn take_over(&mut self, fill: &VolumeFill) {
        (self.fs.capacity, self.fs.available, self.used) = (fill.capacity_bytes, fill.available_bytes, fill.used_bytes);
        (self.fs.inodes, self.fs.inodes_free, self.inodes_used) = (fill.inodes, fill.inodes_free, fill.inodes_used);
    }

    /// As the summary has it.
    pub(super) fn report(&self, pod: &Pod) -> Value {
        let mut all = json!({
            "time": self.time.to_string(), "name": self.volume.name,
            "availableBytes": self.fs.available, "capacityBytes": self.fs.capacity, "usedBytes": self.used,
            "inodesFree": self.fs.inodes_free, "inodes": self.fs.inodes, "inodesUsed": self.inodes_used,
        });
        if let Some(claim) = &self.volume.claim {
            all["pvcRef"] = json!({ "name": claim, "namespace": namespace(pod) });
        }
        all
    }

    /// Bytes and inodes that count as the pod's own storage on this node.
    pub(super) fn local(&self) -> (u64, u64) {
        let counts = self.volume.claim.is_none() && !self.volume.in_memory;
        if counts { (self.used, self.inodes_used) } else { (0, 0) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use stoker_model::handle::DiskUsage;

    use super::*;

    /// Measures `/tmp` for each volume; those of claims only when the lock is let go, as those of a server that is gone.
    #[derive(Default)]
    struct Disks {
        server: Mutex<()>,
        asked: AtomicUsize,
    }

    #[async_trait::async_trait]
    impl DiskMeter for Disks {
        fn volumes(&self, _pod: &Pod) -> BTreeMap<String, DiskUsage> {
            BTreeMap::new()
        }

        fn tree(&self, _path: &Path) -> DiskUsage {
            DiskUsage { bytes: 1, inodes: 1 }
        }

        fn mounted(&self, pod: &Pod) -> Vec<MountedVolume> {
            let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
            let mounted = volumes.map(|volume| {
                let claim = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
                if claim.is_some() {
                    self.asked.fetch_add(1, Ordering::Relaxed);
                    drop(self.server.lock());
                }
                MountedVolume { name: volume.name.clone(), claim, in_memory: false, path: "/tmp".into() }
            });
            mounted.collect()
        }
    }

    fn pod(uid: &str, volume: Value) -> LocalPod {
        let pod = json!({
            "metadata": {"name": uid, "namespace": "n", "uid": uid}, "spec": {"containers": [], "volumes": [volume]},
        });
        LocalPod::from(Arc::new(serde_json::from_value::<Pod>(pod).unwrap()))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_volume_that_does_not_answer_is_asked_once_and_hides_no_other() {
        // A18.5, A23.3
        let disks = Arc::new(Disks::default());
        let pods = [
            pod("dead", json!({"name": "data", "persistentVolumeClaim": {"claimName": "data"}})),
            pod("well", json!({"name": "scratch", "emptyDir": {}})),
        ];
        let meter = VolumeMeter::new(disks.clone(), Duration::ZERO);
        let names = |all: &Volumes| all.values().map(Vec::len).collect::<Vec<_>>();
        {
            let _gone = disks.server.lock();
            for _ in 0..3 {
                assert_eq!(names(&meter.volumes(&pods).await), [0, 1], "the other is told of");
            }
            assert_eq!(disks.asked.load(Ordering::Relaxed), 1, "one thread waits for it");
        }
        while names(&meter.volumes(&pods).await) != [1, 1] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        {
            let _gone = disks.server.lock();
            let all = meter.volumes(&pods).await;
            assert_eq!(names(&all), [1, 1], "what was measured last is told");
            assert_eq!(all["dead"][0].volume.claim.as_deref(), Some("data"));
        }
        assert_eq!(names(&meter.volumes(&pods[1..]).await), [1], "a pod that is gone is forgotten");
    }

    #[test]
    fn a_driver_knows_better_what_its_volume_takes() {
        // A9.18, A18.5
        let volume = MountedVolume { name: "v".into(), claim: Some("data".into()), in_memory: false, path: "/".into() };
        let fs = Filesystem::read(std::path::Path::new("/")).expect("there is a root");
        let mut stats = VolumeStats { time: jiff::Timestamp::UNIX_EPOCH, volume, fs, used: 1, inodes_used: 1 };
        let fill = VolumeFill {
            capacity_bytes: 1000,
            available_bytes: 600,
            used_bytes: 400,
            inodes: 10,
            inodes_free: 6,
            inodes_used: 4,
        };
        stats.take_over(&fill);
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("n".into());
        assert_eq!(
            stats.report(&pod),
            json!({
                "time": "1970-01-01T00:00:00Z", "name": "v", "availableBytes": 600, "capacityBytes": 1000, "usedBytes": 400,
                "inodesFree": 6, "inodes": 10, "inodesUsed": 4, "pvcRef": {"name": "data", "namespace": "n"},
            })
        );
    }
}
