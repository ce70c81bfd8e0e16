//! Which plugin a volume is of, as upstream names plugins, and how long what is done with volumes takes (A23.3).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeSpec, Pod, Volume};
use stoker_model::metrics;
use stoker_model::pod::PodRef;

use super::csi::PodData;
use super::kernel;
use super::volumes::Volumes;
use crate::clock::Clock;

/// Of a volume of which nobody knows yet what is behind it.
const UNKNOWN: &str = "N/A";

/// The plugin of a volume that a pod's spec describes; `None`: a claim is behind it.
pub(super) fn of_volume(volume: &Volume) -> Option<String> {
    if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() {
        return None;
    }
    if let Some(csi) = &volume.csi {
        return Some(of_driver(&csi.driver));
    }
    let kinds = [
        ("empty-dir", volume.empty_dir.is_some()),
        ("configmap", volume.config_map.is_some()),
        ("secret", volume.secret.is_some()),
        ("downward-api", volume.downward_api.is_some()),
        ("projected", volume.projected.is_some()),
        ("host-path", volume.host_path.is_some()),
        ("nfs", volume.nfs.is_some()),
        ("image", volume.image.is_some()),
        ("git-repo", volume.git_repo.is_some()),
    ];
    let known = kinds.into_iter().find(|(_, is)| *is);
    Some(known.map_or_else(|| UNKNOWN.to_owned(), |(kind, _)| format!("kubernetes.io/{kind}")))
}

/// The plugin of a persistent volume.
pub(super) fn of_persistent(spec: &PersistentVolumeSpec) -> String {
    if let Some(csi) = &spec.csi {
        return of_driver(&csi.driver);
    }
    let kinds =
        [("local-volume", spec.local.is_some()), ("host-path", spec.host_path.is_some()), ("nfs", spec.nfs.is_some())];
    let known = kinds.into_iter().find(|(_, is)| *is);
    known.map_or_else(|| UNKNOWN.to_owned(), |(kind, _)| format!("kubernetes.io/{kind}"))
}

pub(super) fn of_driver(driver: &str) -> String {
    format!("kubernetes.io/csi:{driver}")
}

/// The plugin of what lies at a place of a pod, or is mounted there.
pub(super) fn of_place(place: &Path) -> String {
    let above = |name: &str| place.ancestors().find(|part| part.file_name().is_some_and(|is| is == name));
    if above("kubernetes.io~csi").is_some() {
        let data = place.ancestors().take(2).find_map(|dir| PodData::load(dir).ok().flatten());
        return data.map_or_else(|| "kubernetes.io/csi".to_owned(), |data| of_driver(&data.driver_name));
    }
    let part = place.iter().filter_map(|part| part.to_str()?.strip_prefix("kubernetes.io~")).next_back();
    format!("kubernetes.io/{}", part.unwrap_or("host-path"))
}

impl Volumes {
    /// The plugin of each volume that a pod wants, and whether it is there.
    pub(super) fn plugins_of(&self, pod: &Pod) -> Vec<(String, bool)> {
        let uid = PodRef::of(pod).uid;
        let is_set_up = self.dirs(&uid).root().is_dir();
        let of = |volume: &Volume| {
            let place = self.place(&uid, volume);
            // What lies outside the pod's directory, or only in the runtime, is there with the pod.
            let own = place.as_ref().filter(|place| place.starts_with(self.dirs(&uid).root()));
            let is_there = own.map_or(is_set_up && (place.is_some() || volume.image.is_some()), |place| {
                // Its server may be gone.
                kernel::is_mounted_on(place).is_ok()
            });
            let of_claim = || place.as_deref().map_or_else(|| UNKNOWN.to_owned(), of_place);
            (of_volume(volume).unwrap_or_else(of_claim), is_there)
        };
        pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).map(of).collect()
    }
}

/// The plugins of the volumes of a pod that lie below its directory; drivers' own are left out.
pub(super) fn in_directory(pod_root: &Path) -> BTreeSet<(String, String)> {
    let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().collect::<Vec<_>>();
    let mut found = BTreeSet::new();
    for kind in below(&pod_root.join("volumes")).into_iter().filter(|kind| kind.file_name() != "kubernetes.io~csi") {
        for volume in below(&kind.path()) {
            found.insert((of_place(&volume.path()), volume.file_name().to_string_lossy().into_owned()));
        }
    }
    found
}

/// What is done with a volume: from when on (monotonic).
pub(super) fn begun() -> Duration {
    Clock.now().monotonic
}

/// It is done, well or not.
pub(super) fn ended(plugin: &str, operation: &str, well: bool, begun: Duration) {
    let status = if well { "success" } else { "fail-unknown" };
    let took = Clock.now().monotonic.saturating_sub(begun);
    metrics::STORAGE_OPERATION_DURATION.observe(&["false", operation, status, plugin], took);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn plugins_have_upstreams_names() {
        // A23.3
        let of = |source: Value| {
            let mut volume = json!({ "name": "v" });
            volume.as_object_mut().expect("an object").extend(source.as_object().expect("an object").clone());
            of_volume(&serde_json::from_value(volume).expect("a volume"))
        };
        for (source, plugin) in [
            (json!({ "emptyDir": {} }), Some("kubernetes.io/empty-dir")),
            (json!({ "configMap": { "name": "a" } }), Some("kubernetes.io/configmap")),
            (json!({ "secret": {} }), Some("kubernetes.io/secret")),
            (json!({ "downwardAPI": {} }), Some("kubernetes.io/downward-api")),
            (json!({ "projected": {} }), Some("kubernetes.io/projected")),
            (json!({ "hostPath": { "path": "/" } }), Some("kubernetes.io/host-path")),
            (json!({ "csi": { "driver": "d" } }), Some("kubernetes.io/csi:d")),
            (json!({ "persistentVolumeClaim": { "claimName": "c" } }), None),
        ] {
            assert_eq!(of(source.clone()).as_deref(), plugin, "{source}");
        }
        let persistent = |spec: Value| of_persistent(&serde_json::from_value(spec).expect("a volume"));
        assert_eq!(persistent(json!({ "local": { "path": "/" } })), "kubernetes.io/local-volume");
        assert_eq!(persistent(json!({ "csi": { "driver": "d", "volumeHandle": "h" } })), "kubernetes.io/csi:d");
        let dir = tempfile::tempdir().expect("a directory");
        let pod = dir.path().join("pods/u");
        for name in ["kubernetes.io~csi/pv/mount", "kubernetes.io~local-volume/pv", "kubernetes.io~configmap/a"] {
            fs::create_dir_all(pod.join("volumes").join(name)).expect("a directory");
        }
        let csi = pod.join("volumes/kubernetes.io~csi/pv");
        assert_eq!(of_place(&csi.join("mount")), "kubernetes.io/csi");
        PodData::of("pv", "d", "h", "n").save(&csi).expect("written");
        assert_eq!(of_place(&csi.join("mount")), "kubernetes.io/csi:d");
        assert_eq!(of_place(Path::new("/srv/data")), "kubernetes.io/host-path");
        let found = in_directory(&pod);
        let expected = [("kubernetes.io/configmap", "a"), ("kubernetes.io/local-volume", "pv")];
        assert_eq!(found, expected.map(|(plugin, name)| (plugin.to_owned(), name.to_owned())).into());
    }
}
