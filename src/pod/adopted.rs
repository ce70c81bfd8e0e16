//! What an agent takes over from the one before it.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Lifecycle};

use super::observed::{DesiredPod, Instance, InstanceState, ProbeVerdict};

/// What of a pod's running containers only the former agent knew, by container ID.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    /// Whether they were started and ready when it reported last (A5.3).
    pub(super) reported: HashMap<String, ProbeVerdict>,
    /// Containers that are no longer in the pod's spec, with the hook and the ports that they were made with (A1.15).
    pub(super) hooked: HashMap<String, Container>,
}

impl Adopted {
    /// Of the containers that run.
    pub(super) fn of(desired: &DesiredPod, containers: &[Instance]) -> Self {
        let status = desired.pod.status.as_ref();
        let statuses = status.into_iter().flat_map(|s| {
            let lists = [&s.container_statuses, &s.init_container_statuses];
            lists.into_iter().flatten().flatten()
        });
        let statuses: Vec<_> = statuses.collect();
        let mut adopted = Self::default();
        for instance in containers.iter().filter(|i| i.state == InstanceState::Running) {
            let id = format!("containerd://{}", instance.id);
            if let Some(status) = statuses.iter().find(|s| s.container_id.as_ref() == Some(&id)) {
                let verdict = ProbeVerdict { started: status.started == Some(true), ready: status.ready, dead: false };
                adopted.reported.insert(instance.id.clone(), verdict);
            }
            if desired.container(&instance.name).is_none()
                && let Some(container) = container_of(instance)
            {
                adopted.hooked.insert(instance.id.clone(), container);
            }
        }
        adopted
    }
}

/// What is left of the spec of a container that has a preStop hook.
fn container_of(instance: &Instance) -> Option<Container> {
    let pre_stop = serde_json::from_str(instance.pre_stop.as_ref()?).ok()?;
    Some(Container {
        name: instance.name.clone(),
        lifecycle: Some(Lifecycle { pre_stop: Some(pre_stop), ..Lifecycle::default() }),
        ports: instance.ports.as_ref().and_then(|ports| serde_json::from_str(ports).ok()),
        ..Container::default()
    })
}
