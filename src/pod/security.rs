//! Security contexts of pods and containers, as the runtime wants them (A10).

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext};

use stoker_model::pod::spec_of;

use super::plan::pod_text_of;
use crate::runtime::cri;
use cri::security_profile::ProfileType;

/// Paths that a container does not see unless `procMount` is `Unmasked` (A10.8).
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Paths that it cannot write.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The user that an image names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct ImageUser {
    pub(super) uid: Option<i64>,
    pub(super) name: String,
}

/// What the node decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeSecurity<'a> {
    /// kubelet's `seccompDefault`.
    pub(super) seccomp_default: bool,
    /// Where profiles of type Localhost lie: `<root>/seccomp`.
    pub(super) seccomp_dir: &'a Path,
    /// Groups that the pod's volumes call for.
    pub(super) groups_of_volumes: &'a [i64],
    /// Paths that a container does not see on this machine besides the usual ones.
    pub(super) more_masked: &'a [String],
}

/// What tells the heat of each CPU, and with it what others compute (A10.8).
pub(super) fn thermal_throttles(cpus: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(cpus).into_iter().flatten().flatten();
    let of_cpu =
        |name: &str| name.strip_prefix("cpu").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(of_cpu));
    let paths = named.map(|entry| entry.path().join("thermal_throttle")).filter(|path| path.exists());
    let mut all: Vec<String> = paths.map(|path| path.to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

/// Whether the kernel knows labels of SELinux (A10.7).
pub(super) fn labels_files() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// The namespaces that a pod, or an ephemeral container with its target, lives in (A11.1).
pub(super) fn namespaces(spec: &PodSpec, target: Option<&str>, users: cri::UserNamespace) -> cri::NamespaceOption {
    let node_if = |on: Option<bool>, other: cri::NamespaceMode| {
        i32::from(if on.unwrap_or_default() { cri::NamespaceMode::Node } else { other })
    };
    let own = if spec.share_process_namespace.unwrap_or_default() {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    let mut option = cri::NamespaceOption {
        network: node_if(spec.host_network, cri::NamespaceMode::Pod),
        pid: node_if(spec.host_pid, own),
        ipc: node_if(spec.host_ipc, cri::NamespaceMode::Pod),
        userns_options: Some(users),
        ..Default::default()
    };
    if let Some(target) = target {
        option.pid = cri::NamespaceMode::Target.into();
        option.target_id = target.to_owned();
    }
    option
}

/// Whether any container of the pod is privileged: then its sandbox is, too (A10.3).
pub(super) fn any_privileged(spec: &PodSpec) -> bool {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.filter_map(|c| c.security_context.as_ref()).any(|s| s.privileged.unwrap_or_default())
}

/// The security context of a pod's sandbox.
pub(super) fn of_sandbox(
    spec: &PodSpec,
    users: cri::UserNamespace,
    of_volumes: &[i64],
) -> cri::LinuxSandboxSecurityContext {
    let pod = spec.security_context.clone().unwrap_or_default();
    let value = |value: Option<i64>| value.map(|value| cri::Int64Value { value });
    let run_as_user = value(pod.run_as_user);
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec, None, users)),
        // The runtime takes a group only together with a user.
        run_as_group: run_as_user.and_then(|_| value(pod.run_as_group)),
        run_as_user,
        supplemental_groups: groups(&pod, of_volumes),
        privileged: any_privileged(spec),
        seccomp: Some(profile(ProfileType::RuntimeDefault, "")),
        selinux_options: pod.se_linux_options.as_ref().map(selinux),
        supplemental_groups_policy: groups_policy(&pod),
        ..Default::default()
    }
}

/// The security context of a container; the text of `CreateContainerConfigError` where it cannot have it (A2.16).
pub(super) fn of_container(
    pod: &Pod,
    container: &Container,
    user: &ImageUser,
    node: NodeSecurity<'_>,
    target: Option<&str>,
    users: cri::UserNamespace,
) -> Result<cri::LinuxContainerSecurityContext, String> {
    let spec = spec_of(pod);
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let run_as_user = own.run_as_user.or(of_pod.run_as_user);
    let run_as_group = own.run_as_group.or(of_pod.run_as_group);
    let non_root = own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or_default();
    if non_root {
        verify_non_root(run_as_user, user)
            .map_err(|problem| format!("{problem} (pod: \"{}\", container: {})", pod_text_of(pod), container.name))?;
    }
    let value = |value: i64| cri::Int64Value { value };
    let uid = run_as_user.or(user.uid);
    let app_armor = apparmor(pod, &container.name, &own, &of_pod)?;
    let privileged = own.privileged.unwrap_or_default();
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() };
    #[expect(deprecated, reason = "runtimes before containerd 1.6 and CRI-O 1.23 know only the old form")]
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(|c| cri::Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces(spec, target, users)),
        selinux_options: own.se_linux_options.as_ref().or(of_pod.se_linux_options.as_ref()).map(selinux),
        run_as_user: uid.map(value),
        run_as_username: if uid.is_none() { user.name.clone() } else { String::new() },
        run_as_group: run_as_group.map(value),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or_default(),
        supplemental_groups: groups(&of_pod, node.groups_of_volumes),
        supplemental_groups_policy: groups_policy(&of_pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: {
            let mut masked = paths(&MASKED_PATHS);
            masked.extend(node.more_masked.iter().filter(|_| !unmasked).cloned());
            masked
        },
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp(&own, &of_pod, privileged, node)?),
        apparmor_profile: app_armor.as_ref().map_or_else(String::new, old_form),
        apparmor: app_armor,
        ..Default::default()
    })
}

fn verify_non_root(run_as_user: Option<i64>, image: &ImageUser) -> Result<(), String> {
    match (run_as_user, image.uid) {
        (Some(0), _) => Err("container's runAsUser breaks non-root policy".into()),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err("container has runAsNonRoot and image will run as root".into()),
        (None, Some(_)) => Ok(()),
        (None, None) if image.name.is_empty() => Err("container has runAsNonRoot and image will run as root".into()),
        (None, None) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root",
            image.name
        )),
    }
}

/// fsGroup, then supplementalGroups, then those of its volumes (A10.2).
fn groups(pod: &PodSecurityContext, of_volumes: &[i64]) -> Vec<i64> {
    let own = || pod.supplemental_groups.iter().flatten().copied();
    let more = of_volumes.iter().copied().filter(|group| own().all(|asked| asked != *group));
    pod.fs_group.into_iter().chain(own()).chain(more).collect()
}

fn groups_policy(pod: &PodSecurityContext) -> i32 {
    let strict = pod.supplemental_groups_policy.as_deref() == Some("Strict");
    let policy = if strict { cri::SupplementalGroupsPolicy::Strict } else { cri::SupplementalGroupsPolicy::Merge };
    policy.into()
}

/// The profile of a container (A10.5).
fn seccomp(
    own: &SecurityContext,
    of_pod: &PodSecurityContext,
    privileged: bool,
    node: NodeSecurity<'_>,
) -> Result<cri::SecurityProfile, String> {
    if privileged {
        return Ok(profile(ProfileType::Unconfined, ""));
    }
    let asked: Option<&SeccompProfile> = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    Ok(match asked.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref().unwrap_or_default())) {
        Some(("RuntimeDefault", _)) => profile(ProfileType::RuntimeDefault, ""),
        Some(("Localhost", "")) => {
            return Err("localhostProfile must be set if seccompProfile type is Localhost.".into());
        }
        Some(("Localhost", name)) => profile(ProfileType::Localhost, &node.seccomp_dir.join(name).to_string_lossy()),
        None if node.seccomp_default => profile(ProfileType::RuntimeDefault, ""),
        _ => profile(ProfileType::Unconfined, ""),
    })
}

/// The container's own profile, else that of the annotation, else the pod's (A10.6).
fn apparmor(
    pod: &Pod,
    container: &str,
    own: &SecurityContext,
    of_pod: &PodSecurityContext,
) -> Result<Option<cri::SecurityProfile>, String> {
    let key = format!("container.apparmor.security.beta.kubernetes.io/{container}");
    let annotation = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(&key));
    if let (None, Some(text)) = (&own.app_armor_profile, annotation) {
        let by_name = match text.as_str() {
            "runtime/default" => Some(profile(ProfileType::RuntimeDefault, "")),
            "unconfined" => Some(profile(ProfileType::Unconfined, "")),
            other => other.strip_prefix("localhost/").map(|name| profile(ProfileType::Localhost, name)),
        };
        if by_name.is_some() {
            return Ok(by_name);
        }
    }
    let Some(asked) = own.app_armor_profile.as_ref().or(of_pod.app_armor_profile.as_ref()) else { return Ok(None) };
    Ok(Some(match (asked.type_.as_str(), &asked.localhost_profile) {
        ("RuntimeDefault", _) => profile(ProfileType::RuntimeDefault, ""),
        ("Unconfined", _) => profile(ProfileType::Unconfined, ""),
        ("Localhost", Some(name)) => profile(ProfileType::Localhost, name),
        ("Localhost", None) => return Err("missing localhost apparmor profile name".into()),
        (other, _) => return Err(format!("unknown apparmor profile type: \"{other}\"")),
    }))
}

/// A profile of AppArmor in the form of the annotation.
fn old_form(profile: &cri::SecurityProfile) -> String {
    match profile.profile_type() {
        ProfileType::RuntimeDefault => "runtime/default".to_owned(),
        ProfileType::Unconfined => "unconfined".to_owned(),
        ProfileType::Localhost => format!("localhost/{}", profile.localhost_ref),
    }
}

fn profile(kind: ProfileType, reference: &str) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: reference.to_owned() }
}

fn selinux(options: &k8s_openapi::api::core::v1::SELinuxOptions) -> cri::SeLinuxOption {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    cri::SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

#[cfg(test)]
#[path = "security/tests.rs"]
mod tests;
