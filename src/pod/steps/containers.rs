//! Makes, starts and removes containers.

use std::path::Path;
use std::sync::OnceLock;

use k8s_openapi::api::core::v1::Container;
use stoker_model::handle::EventType;
use stoker_model::metrics;
use stoker_model::pod::spec_of;

use super::mounts::{Refusal, config_error, link_log};
use super::{Effect, Hand, Outcome};
use crate::pod::container::{self, ContainerParts, log_path};
use crate::pod::env::EnvSources;
use crate::pod::observed::{DesiredPod, ImageKey, Kind};
use crate::pod::resources;
use crate::pod::security::{self, NodeSecurity};
use crate::pod::turns::Launch;
use crate::runtime::cri;

/// Where a pod's emptyDir volumes lie in its directory.
const EMPTY_DIRS: &str = "volumes/kubernetes.io~empty-dir";

/// They come and go with no processor.
static THROTTLES: OnceLock<Vec<String>> = OnceLock::new();

/// What the volumes hold belongs to the same users inside and outside (A11.2).
fn map_users(mounts: &mut [cri::Mount], linux: &cri::LinuxContainerConfig) {
    let options = linux.security_context.as_ref().and_then(|context| context.namespace_options.as_ref());
    let Some(users) = options.and_then(|options| options.userns_options.as_ref()) else { return };
    for mount in mounts {
        mount.uid_mappings.clone_from(&users.uids);
        mount.gid_mappings.clone_from(&users.gids);
    }
}

impl Hand {
    /// Makes a container; its ID.
    pub(super) async fn create_container(
        &mut self,
        name: &str,
        image: &ImageKey,
        restart_count: u32,
        target: Option<&str>,
    ) -> Result<String, Refusal> {
        // With the resources that it was given, which may not be those that the newest spec asks for.
        let given = DesiredPod { pod: self.pod.clone(), gone: false, ended: None, released: false };
        let (_, spec) =
            given.container(name).ok_or_else(|| config_error("the container is no longer in the pod's spec"))?;
        let sandbox = self.sandbox.clone().ok_or_else(|| config_error("the pod has no sandbox"))?;
        let found = self.images.iter().find(|(key, ..)| key == image).cloned();
        let (_, image_id, user) = found.ok_or_else(|| config_error("the image was not found"))?;
        let node = self.shared.node();
        let pod_ips =
            if sandbox.host_network { node.ips.iter().map(ToString::to_string).collect() } else { sandbox.ips.clone() };
        let volumes = self.shared.volumes.dirs(&self.reference.uid).root().join(EMPTY_DIRS);
        let sources = EnvSources {
            pod: &self.pod,
            node: &node,
            pod_ips: &pod_ips,
            objects: &*self.shared.objects,
            services: &*self.shared.services,
            volumes: &volumes,
        };
        let environment = sources.environment(&spec).await.map_err(config_error)?;
        let mut mounts = Box::pin(self.mounts(&spec, &environment, &pod_ips)).await?;
        let extras = self.shared.assignments.for_container(&self.pod, &spec).await.map_err(config_error)?;
        let mut linux = self.linux(&spec, &user, target)?;
        if let Some(resources) = &mut linux.resources {
            resources.cpuset_cpus.clone_from(&extras.cpus);
            resources.cpuset_mems.clone_from(&extras.memory_nodes);
            if extras.own_cpus && resources.cpu_quota > 0 {
                // Nobody else uses them, so nothing has to be kept from this one (A15.2).
                resources.cpu_quota = -1;
            }
        }
        map_users(&mut mounts, &linux);
        let parts = ContainerParts { restart_count, image: image_id, environment, mounts, linux, extras };
        let mut config = container::config(&self.pod, &spec, parts);
        config.devices.extend(self.block_devices(&spec)?);
        let sandbox_config = self.sandbox_config(sandbox.attempt, false).map_err(config_error)?;
        let log_dir = self.shared.log_dir(&self.reference).join(name);
        std::fs::create_dir_all(&log_dir)
            .map_err(|error| config_error(format!("cannot make the log directory {}: {error}", log_dir.display())))?;
        let creating = || self.shared.runtime.create_container(&sandbox.id, config, sandbox_config);
        let created = self.shared.turns.take(Launch::Container, creating).await;
        let id = created.map_err(|error| ("CreateContainerError", error.to_string()))?;
        let kind = self.kind(name);
        self.shared.tell_of(&self.reference, (kind, name), EventType::Normal, "Created", "Container created");
        let link = format!("{}_{}_{name}-{id}.log", self.reference.name, self.reference.namespace);
        let log = self.shared.log_dir(&self.reference).join(log_path(name, restart_count));
        if let Err(error) = link_log(&self.shared.config.link_dir, &link, &log) {
            tracing::warn!(pod = %self.reference, %error, "cannot link the log of a container");
        }
        Ok(id)
    }

    fn linux(
        &self,
        spec: &Container,
        user: &security::ImageUser,
        target: Option<&str>,
    ) -> Result<cri::LinuxContainerConfig, Refusal> {
        let shared = &self.shared;
        let seccomp_dir = shared.config.root_dir.join("seccomp");
        let throttles = THROTTLES.get_or_init(|| security::thermal_throttles(Path::new("/sys/devices/system/cpu")));
        let groups = shared.volumes.groups(&self.reference.uid);
        let of_node = NodeSecurity {
            groups_of_volumes: &groups,
            seccomp_default: shared.config.seccomp_default,
            seccomp_dir: &seccomp_dir,
            more_masked: throttles,
        };
        let users = self.users().map_err(config_error)?;
        let context = security::of_container(&self.pod, spec, user, of_node, target, users).map_err(config_error)?;
        let of_pod = spec_of(&self.pod);
        Ok(cri::LinuxContainerConfig {
            resources: Some(resources::of_container(of_pod, spec, self.node_resources())),
            security_context: Some(context),
        })
    }

    /// Starts a container. Its postStart hook runs beside everything else.
    pub(super) async fn start_container(&mut self, name: String, id: &str) -> Outcome {
        metrics::STARTED_CONTAINERS.inc(&[self.container_type(&name)]);
        let starting = || self.shared.runtime.start_container(id);
        if let Err(error) = self.shared.turns.take(Launch::Container, starting).await {
            metrics::STARTED_CONTAINERS_ERRORS.inc(&[self.container_type(&name), "RunContainerError"]);
            return self.container_failed(name, "RunContainerError", error.to_string());
        }
        let kind = self.kind(&name);
        self.shared.tell_of(&self.reference, (kind, &name), EventType::Normal, "Started", "Container started");
        self.effects.push(Effect::Started { name, id: id.to_owned() });
        Outcome::Done
    }

    /// As kubelet's metrics name it.
    fn container_type(&self, name: &str) -> &'static str {
        match self.kind(name) {
            Kind::Init => "init_container",
            Kind::Ephemeral => "ephemeral_container",
            Kind::Regular => "container",
        }
    }

    /// Removes a dead container, and its log unless it is kept.
    pub(super) async fn remove_container(&mut self, id: &str, keep_log: bool) -> Outcome {
        let status = self.shared.runtime.container_status(id, false).await.ok().and_then(|answer| answer.status);
        if let Err(error) = self.shared.runtime.remove_container(id).await
            && !error.is_not_found()
        {
            tracing::warn!(pod = %self.reference, %error, "cannot remove a dead container; it is tried again");
            self.effects.push(Effect::Stuck);
            return Outcome::Stop;
        }
        if let Some(status) = status.filter(|_| !keep_log) {
            let name = status.metadata.map(|m| m.name).unwrap_or_default();
            let link = format!("{}_{}_{name}-{id}.log", self.reference.name, self.reference.namespace);
            for path in [status.log_path.into(), self.shared.config.link_dir.join(link)] {
                // What is not there need not go.
                let _ = std::fs::remove_file(path);
            }
        }
        self.effects.push(Effect::ContainerRemoved { id: id.to_owned() });
        Outcome::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_belong_to_the_same_users_inside_and_outside() {
        // A11.2
        let ids = |host_id| cri::IdMapping { host_id, container_id: 0, length: 65536 };
        let with = |users: Option<cri::UserNamespace>| {
            let options = cri::NamespaceOption { userns_options: users, ..Default::default() };
            let context = cri::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
            cri::LinuxContainerConfig { security_context: Some(context), ..Default::default() }
        };
        let users = cri::UserNamespace { mode: 0, uids: vec![ids(131_072)], gids: vec![ids(196_608)] };
        let mut mounts = vec![cri::Mount::default(); 2];
        map_users(&mut mounts, &with(None));
        assert_eq!(mounts, [cri::Mount::default(), cri::Mount::default()]);
        map_users(&mut mounts, &with(Some(users)));
        for mount in &mounts {
            assert_eq!((mount.uid_mappings[0].host_id, mount.gid_mappings[0].host_id), (131_072, 196_608));
        }
    }
}
