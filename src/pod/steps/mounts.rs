//! What a container sees of the pod's volumes, of `/etc/hosts`, and where it writes its last words.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, VolumeMount};

use super::Hand;
use crate::pod::container::termination_message_path;
use crate::pod::env::Environment;
use crate::pod::hosts;
use crate::runtime::cri;

/// The reason and the message of a container that cannot be made.
pub(super) type Refusal = (&'static str, String);

pub(super) fn config_error(message: impl ToString) -> Refusal {
    ("CreateContainerConfigError", message.to_string())
}

impl Hand {
    /// All mounts of a container.
    pub(super) fn mounts(
        &self,
        container: &Container,
        environment: &Environment,
        pod_ips: &[String],
    ) -> Result<Vec<cri::Mount>, Refusal> {
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            mounts.push(self.volume_mount(container, mount, index, environment)?);
        }
        let taken = |path: &str| container.volume_mounts.iter().flatten().any(|m| m.mount_path == path);
        if !taken("/etc/hosts") {
            let host_path = self.hosts_file(pod_ips).map_err(config_error)?;
            mounts.push(cri::Mount { container_path: "/etc/hosts".into(), host_path, ..Default::default() });
        }
        let last_words = termination_message_path(container);
        if !taken(last_words) {
            let host_path = self.termination_log(&container.name).map_err(config_error)?;
            mounts.push(cri::Mount { container_path: last_words.to_owned(), host_path, ..Default::default() });
        }
        Ok(mounts)
    }

    fn volume_mount(
        &self,
        container: &Container,
        mount: &VolumeMount,
        index: usize,
        environment: &Environment,
    ) -> Result<cri::Mount, Refusal> {
        let volumes = &self.shared.volumes;
        let spec = self.pod.spec.as_ref();
        let volume = spec.and_then(|s| s.volumes.iter().flatten().find(|v| v.name == mount.name));
        let missing = || {
            config_error(format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                mount.name, container.name
            ))
        };
        let volume = volume.ok_or_else(missing)?;
        let read_only = mount.read_only.unwrap_or_default();
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => path.clone(),
            (_, Some(expression)) if !expression.is_empty() => {
                let path = environment.expand(expression);
                let leaves = path.starts_with('/') || path.split('/').any(|part| part == "..");
                if leaves || path.contains('`') || path.contains("$(") {
                    return Err(config_error(format!(
                        "subPath \"{path}\" must be a relative path that stays in its volume"
                    )));
                }
                path
            }
            _ => String::new(),
        };
        let uid = &self.reference.uid;
        let host_path = if sub_path.is_empty() {
            volumes.place(uid, volume).ok_or_else(missing)?
        } else {
            let prepared = volumes.sub_path(uid, volume, &container.name, index, &sub_path, read_only);
            prepared.map_err(|error| {
                config_error(format!(
                    "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {error}",
                    mount.name, container.name
                ))
            })?
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
            _ => cri::MountPropagation::PropagationPrivate,
        };
        let container_path =
            if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
        Ok(cri::Mount {
            container_path,
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: read_only,
            propagation: propagation.into(),
            ..Default::default()
        })
    }

    /// Writes the pod's `/etc/hosts`, for each container anew (A11.4).
    fn hosts_file(&self, pod_ips: &[String]) -> std::io::Result<String> {
        let names = hosts::names(&self.pod, &self.shared.config.cluster_domain).map_err(std::io::Error::other)?;
        let spec = self.pod.spec.as_ref();
        let aliases = spec.and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
        let text = if spec.and_then(|s| s.host_network).unwrap_or_default() {
            hosts::node_file(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), aliases)
        } else {
            let short = names.hostname.split('.').next().unwrap_or_default();
            hosts::pod_file(pod_ips, &names, short, aliases)
        };
        let path = self.shared.volumes.dirs(&self.reference.uid).hosts_file();
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// An empty file that anybody may write (A4.7).
    fn termination_log(&self, container: &str) -> std::io::Result<String> {
        let dir = self.shared.volumes.dirs(&self.reference.uid).container(container);
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(&uuid::Uuid::new_v4().simple().to_string()[..8]);
        std::fs::File::create(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        Ok(path.to_string_lossy().into_owned())
    }
}

/// Points a link in `/var/log/containers` at an instance's log (A20.1).
pub(super) fn link_log(link_dir: &Path, name: &str, log: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(link_dir)?;
    match std::os::unix::fs::symlink(log, link_dir.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
