//! What pods' volumes take and have left: in the summary, and as `kubelet_volume_stats_*` (A18.5, A23.3).

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use stoker_model::handle::{DiskMeter, MountedVolume, VolumeFill};
use stoker_model::pod::LocalPod;

use super::text::{Page, value};
use super::{Filesystem, Stats, namespace};
use crate::clock::{Clock, Now};

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

impl Stats {
    /// The volumes of these pods, measured at most each `volumeStatsAggPeriod`; a pod that is new is measured at once.
    pub(super) async fn volumes(&self, pods: &[LocalPod]) -> Arc<Volumes> {
        let now = Clock.now();
        let last = self.volumes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_fresh =
            |(then, _): &(Now, Arc<Volumes>)| now.monotonic.saturating_sub(then.monotonic) < self.volumes_every;
        let known = last.filter(is_fresh);
        let missing: Vec<LocalPod> = match &known {
            Some((_, all)) => pods.iter().filter(|pod| !all.contains_key(uid(pod))).cloned().collect(),
            None => pods.to_vec(),
        };
        if let Some((_, all)) = known.as_ref().filter(|_| missing.is_empty()) {
            return all.clone();
        }
        let disks = self.disks.clone();
        let asked = missing.iter().map(|pod| async { (uid(pod).to_owned(), disks.told_by_drivers(pod.pod()).await) });
        let told: BTreeMap<String, BTreeMap<String, VolumeFill>> =
            futures::future::join_all(asked).await.into_iter().filter(|(_, told)| !told.is_empty()).collect();
        let disks = self.disks.clone();
        let measured = tokio::task::spawn_blocking(move || -> Volumes {
            missing.iter().map(|pod| (uid(pod).to_owned(), measure(pod.pod(), disks.as_ref(), now.wall))).collect()
        });
        let mut all = known.as_ref().map(|(_, all)| all.as_ref().clone()).unwrap_or_default();
        // A pod whose volumes are not there yet is asked for again.
        let mut measured = measured.await.unwrap_or_default();
        for (pod, volumes) in &mut measured {
            let told = told.get(pod);
            for volume in volumes {
                if let Some(fill) = told.and_then(|told| told.get(&volume.volume.name)) {
                    volume.take_over(fill);
                }
            }
        }
        all.extend(measured.into_iter().filter(|(_, volumes)| !volumes.is_empty()));
        all.retain(|known, _| pods.iter().any(|pod| uid(pod) == known));
        let all = Arc::new(all);
        let then = known.map_or(now, |(then, _)| then);
        *self.volumes.lock().unwrap_or_else(PoisonError::into_inner) = Some((then, all.clone()));
        all
    }

    /// Of every claim that a pod here uses, each once.
    pub(super) async fn claim_metrics(&self, page: &mut Page) {
        let pods = self.pods.pods();
        let all = self.volumes(&pods).await;
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

fn measure(pod: &Pod, disks: &dyn DiskMeter, time: jiff::Timestamp) -> Vec<VolumeStats> {
    let stats = |volume: MountedVolume| {
        let fs = Filesystem::read(&volume.path)?;
        let (used, inodes_used) = if volume.claim.is_some() {
            (fs.used, fs.inodes.saturating_sub(fs.inodes_free))
        } else {
            let found = disks.tree(&volume.path);
            (found.bytes, found.inodes)
        };
        Some(VolumeStats { time, volume, fs, used, inodes_used })
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
    use super::*;

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
