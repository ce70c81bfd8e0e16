//! What a container sees of the pod's volumes, of `/etc/hosts`, and where it writes its last words.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, VolumeMount};

use super::Hand;
use crate::pod::container::{recursive_read_only, termination_message_path};
use crate::pod::env::Environment;
use crate::pod::hosts;
use crate::pod::observed::ImageKey;
use crate::pod::security;
use crate::runtime::cri;

/// The reason and the message of a container that cannot be made.
pub(super) type Refusal = (&'static str, String);

pub(super) fn config_error(message: impl ToString) -> Refusal {
    ("CreateContainerConfigError", message.to_string())
}

impl Hand {
    /// All mounts of a container.
    pub(super) async fn mounts(
        &mut self,
        container: &Container,
        environment: &Environment,
        pod_ips: &[String],
    ) -> Result<Vec<cri::Mount>, Refusal> {
        let labels = security::labels_files();
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let mut made = self.volume_mount(container, mount, index, environment).await?;
            // Once for each volume is enough.
            let first = container.volume_mounts.iter().flatten().position(|m| m.name == mount.name) == Some(index);
            made.selinux_relabel = labels && first && self.relabels(&mount.name);
            mounts.push(made);
        }
        let taken = |path: &str| container.volume_mounts.iter().flatten().any(|m| m.mount_path == path);
        if !taken("/etc/hosts") {
            let host_path = self.hosts_file(pod_ips).map_err(config_error)?;
            mounts.push(cri::Mount {
                container_path: "/etc/hosts".into(),
                host_path,
                selinux_relabel: labels,
                ..Default::default()
            });
        }
        let last_words = termination_message_path(container);
        if !taken(last_words) {
            let host_path = self.termination_log(&container.name).map_err(config_error)?;
            mounts.push(cri::Mount {
                container_path: last_words.to_owned(),
                host_path,
                selinux_relabel: labels,
                ..Default::default()
            });
        }
        Ok(mounts)
    }

    /// Whether the files of a volume are to have the pod's label (A10.7).
    fn relabels(&self, name: &str) -> bool {
        let volume = self.pod.spec.as_ref().and_then(|s| s.volumes.iter().flatten().find(|v| v.name == name));
        volume.is_some_and(|volume| self.shared.volumes.relabels(&self.reference.uid, volume))
    }

    /// The volumes that a container uses as devices (A9.17).
    pub(super) fn block_devices(&self, container: &Container) -> Result<Vec<cri::Device>, Refusal> {
        let volumes = self.pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        let uid = &self.reference.uid;
        let devices = container.volume_devices.iter().flatten().map(|wanted| {
            let volume = volumes.iter().find(|v| v.name == wanted.name);
            let place = volume.and_then(|v| Some((self.shared.volumes.place(uid, v)?, v)));
            let (path, volume) = place.ok_or_else(|| {
                config_error(format!(
                    "cannot find volume \"{}\" to pass into container \"{}\"",
                    wanted.name, container.name
                ))
            })?;
            let permissions = if self.shared.volumes.is_read_only(uid, volume) { "r" } else { "mrw" };
            Ok(cri::Device {
                container_path: wanted.device_path.clone(),
                host_path: path.to_string_lossy().into_owned(),
                permissions: permissions.to_owned(),
            })
        });
        devices.collect()
    }

    async fn volume_mount(
        &mut self,
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
        let uid = &self.reference.uid;
        let read_only = mount.read_only.unwrap_or_default() || volumes.is_read_only(uid, volume);
        let sub_path = sub_path(mount, environment)?;
        let node = self.shared.node();
        let handler = self.sandbox.as_ref().and_then(|sandbox| node.handlers.get(&sandbox.handler));
        let supported = handler.is_some_and(|handler| handler.recursive_read_only);
        let recursive_read_only = recursive_read_only(mount, supported)
            .map_err(|text| config_error(format!("failed to resolve recursive read-only mode: {text}")))?;
        if let Some(image) = &volume.image {
            return self.image_mount(mount, image, sub_path);
        }
        let host_path = if sub_path.is_empty() {
            volumes.place(uid, volume).ok_or_else(missing)?
        } else {
            volumes.sub_path(uid, volume, &container.name, index, &sub_path).await.map_err(|error| {
                // What is wrong in detail may tell of the node's files.
                tracing::warn!(pod = %self.reference, %error, "subPath not prepared");
                config_error(format!(
                    "failed to prepare subPath for volumeMount \"{}\" of container \"{}\"",
                    mount.name, container.name
                ))
            })?
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
            _ => cri::MountPropagation::PropagationPrivate,
        };
        Ok(cri::Mount {
            container_path: container_path(mount),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: read_only,
            recursive_read_only,
            propagation: propagation.into(),
            ..Default::default()
        })
    }

    /// The runtime itself mounts an image (A9.20).
    fn image_mount(
        &self,
        mount: &VolumeMount,
        image: &ImageVolumeSource,
        image_sub_path: String,
    ) -> Result<cri::Mount, Refusal> {
        let reference = image.reference.clone().unwrap_or_default();
        let key = ImageKey::of_volume(image);
        let found = self.images.iter().find(|(known, ..)| *known == key);
        let (_, id, _) = found.ok_or_else(|| config_error(format!("the image \"{reference}\" was not found")))?;
        mount_of_image(mount, (reference, id.clone()), image_sub_path, &self.shared.node().runtime_version)
    }

    /// Writes the pod's `/etc/hosts`, for each container anew (A11.4).
    fn hosts_file(&self, pod_ips: &[String]) -> std::io::Result<String> {
        let names = hosts::names(&self.pod, &self.shared.config.cluster_domain).map_err(std::io::Error::other)?;
        let spec = self.pod.spec.as_ref();
        let aliases = spec.and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
        let text = if spec.and_then(|s| s.host_network).unwrap_or_default() {
            hosts::node_file(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), aliases)
        } else {
            hosts::pod_file(pod_ips, &names, aliases)
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

/// The mount of an image, by the name in the pod and by its ID.
fn mount_of_image(
    mount: &VolumeMount,
    (reference, id): (String, String),
    image_sub_path: String,
    runtime: &str,
) -> Result<cri::Mount, Refusal> {
    if !mounts_images(runtime) {
        let text = format!(
            "failed to mount image \"{reference}\" for volume \"{}\": {runtime} cannot mount images: it takes containerd 2.1 or CRI-O 1.31",
            mount.name
        );
        return Err(("CreateContainerError", text));
    }
    Ok(cri::Mount {
        container_path: container_path(mount),
        readonly: true,
        image: Some(cri::ImageSpec { image: id, user_specified_image: reference, ..Default::default() }),
        image_sub_path,
        ..Default::default()
    })
}

fn container_path(mount: &VolumeMount) -> String {
    if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) }
}

/// The part of the volume that is mounted, with variables replaced (A9.14).
fn sub_path(mount: &VolumeMount, environment: &Environment) -> Result<String, Refusal> {
    let path = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => path.clone(),
        (_, Some(expression)) if !expression.is_empty() => {
            let missing = environment.missing(expression);
            if !missing.is_empty() {
                return Err(config_error(format!("missing value for {}", missing.join(", "))));
            }
            environment.expand(expression)
        }
        _ => return Ok(String::new()),
    };
    if path.starts_with('/') {
        return Err(config_error(format!("error SubPath `{path}` must not be an absolute path")));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(config_error(format!("unable to provision SubPath `{path}`: must not contain '..'")));
    }
    Ok(path)
}

/// Whether a runtime, as in `containerd://1.6.20`, can mount images. Of one that is not known it is tried.
fn mounts_images(runtime: &str) -> bool {
    let Some((name, version)) = runtime.split_once("://") else { return true };
    let mut numbers =
        version.trim_start_matches('v').split(['.', '-', '+', '~']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match name {
        "containerd" => version >= (2, 1),
        "cri-o" => version >= (1, 31),
        _ => true,
    }
}

/// Points a link in `/var/log/containers` at an instance's log (A20.1).
pub(super) fn link_log(link_dir: &Path, name: &str, log: &Path) -> std::io::Result<()> {
    use std::io::ErrorKind;
    let link = || std::os::unix::fs::symlink(log, link_dir.join(name));
    let linked = match link() {
        Err(error) if error.kind() == ErrorKind::NotFound => std::fs::create_dir_all(link_dir).and_then(|()| link()),
        linked => linked,
    };
    linked.or_else(|error| if error.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(change: impl FnOnce(&mut VolumeMount)) -> VolumeMount {
        let mut mount = VolumeMount { name: "v".into(), mount_path: "/v".into(), ..VolumeMount::default() };
        change(&mut mount);
        mount
    }

    #[test]
    fn runtimes_that_mount_images_are_known() {
        // A9.20
        for (runtime, can) in [
            ("containerd://1.6.20~ds1", false),
            ("containerd://v2.0.5", false),
            ("containerd://2.1.0", true),
            ("cri-o://1.30.1", false),
            ("cri-o://1.33.0", true),
            ("", true),
        ] {
            assert_eq!(mounts_images(runtime), can, "{runtime}");
        }
    }

    #[test]
    fn the_runtime_is_asked_to_mount_the_image() {
        // A9.20
        let names = || ("r.example/data:1".to_owned(), "sha256:1".to_owned());
        let writable = mount(|m| m.read_only = Some(false));
        let made = mount_of_image(&writable, names(), "part/of/it".into(), "containerd://2.1.0").unwrap();
        let image = made.image.unwrap();
        assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:1", "r.example/data:1"));
        assert_eq!((made.container_path.as_str(), made.host_path.as_str()), ("/v", ""));
        assert!(made.readonly, "an image is never written to");
        assert_eq!(made.image_sub_path, "part/of/it");
        let (reason, text) = mount_of_image(&writable, names(), String::new(), "containerd://1.7.0").unwrap_err();
        assert_eq!(reason, "CreateContainerError");
        assert!(text.starts_with("failed to mount image \"r.example/data:1\" for volume \"v\": containerd://1.7.0"));
    }

    #[test]
    fn sub_paths_stay_in_their_volume() {
        // A9.14
        let environment = Environment::of(&[("POD", "web"), ("UP", ".."), ("ROOT", "/tmp"), ("EMPTY", "")]);
        let ask = |expression: &str| {
            sub_path(&mount(|m| m.sub_path_expr = Some(expression.into())), &environment).map_err(|(_, text)| text)
        };
        assert_eq!(ask("a/$(POD)/b").unwrap(), "a/web/b");
        assert_eq!(ask("$$(POD)").unwrap(), "$(POD)");
        assert_eq!(ask("$(ROOT)").unwrap_err(), "error SubPath `/tmp` must not be an absolute path");
        assert_eq!(ask("$(UP)/x").unwrap_err(), "unable to provision SubPath `../x`: must not contain '..'");
        assert_eq!(ask("$(EMPTY)$(NONE)").unwrap_err(), "missing value for EMPTY, NONE");
    }
}
