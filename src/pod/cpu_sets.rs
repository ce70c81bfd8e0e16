//! Keeps containers without CPUs of their own on those that are shared, as some are given away and come back (A15.2).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stoker_model::pod::{LocalPod, PodRef};

use super::shared::Shared;
use crate::runtime::cri;

/// After a change, until `stop`; and each `every`, for containers that somebody else has changed or that failed.
pub(super) async fn keep_cpu_sets(shared: Arc<Shared>, every: Duration) {
    let mut changes = shared.assignments.cpu_changes();
    let mut written = BTreeMap::new();
    loop {
        let mut running = BTreeMap::new();
        for pod in shared.directory.all() {
            for (id, name) in running_containers(&pod) {
                let Some(cpus) = shared.assignments.cpus_of(&PodRef::of(pod.pod()).uid, &name) else { continue };
                running.insert(id, (cpus.to_string(), format!("{}/{name}", PodRef::of(pod.pod()))));
            }
        }
        for (id, (cpus, whose)) in &running {
            if written.get(id) != Some(cpus) {
                let resources = cri::LinuxContainerResources { cpuset_cpus: cpus.clone(), ..Default::default() };
                let request = cri::UpdateContainerResourcesRequest {
                    container_id: id.clone(),
                    linux: Some(resources),
                    ..Default::default()
                };
                match shared.runtime.update_container_resources(request).await {
                    Ok(()) => drop(written.insert(id.clone(), cpus.clone())),
                    Err(error) => {
                        tracing::warn!(container = whose, %error, cpus, "a container runs on other CPUs than it should")
                    }
                }
            }
        }
        written.retain(|id, _| running.contains_key(id));
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// IDs and names.
fn running_containers(pod: &LocalPod) -> Vec<(String, String)> {
    let all = pod.status().into_iter().flat_map(|s| {
        let lists = [&s.container_statuses, &s.init_container_statuses, &s.ephemeral_container_statuses];
        lists.into_iter().flatten().flatten()
    });
    let running = all.filter(|c| c.state.as_ref().is_some_and(|state| state.running.is_some()));
    running.filter_map(|c| Some((c.container_id.as_ref()?.split_once("://")?.1.to_owned(), c.name.clone()))).collect()
}
