//! Security contexts of pods and containers, as the runtime wants them (A10).

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext};

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

/// The namespaces that a pod, or an ephemeral container with its target, lives in (A11.1).
pub(super) fn namespaces(spec: &PodSpec, target: Option<&str>) -> cri::NamespaceOption {
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
pub(super) fn of_sandbox(spec: &PodSpec) -> cri::LinuxSandboxSecurityContext {
    let pod = spec.security_context.clone().unwrap_or_default();
    let value = |value: Option<i64>| value.map(|value| cri::Int64Value { value });
    let run_as_user = value(pod.run_as_user);
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec, None)),
        // The runtime takes a group only together with a user.
        run_as_group: run_as_user.and_then(|_| value(pod.run_as_group)),
        run_as_user,
        supplemental_groups: groups(&pod),
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
) -> Result<cri::LinuxContainerSecurityContext, String> {
    let spec = pod.spec.clone().unwrap_or_default();
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
        namespace_options: Some(namespaces(&spec, target)),
        selinux_options: own.se_linux_options.as_ref().or(of_pod.se_linux_options.as_ref()).map(selinux),
        run_as_user: uid.map(value),
        run_as_username: if uid.is_none() { user.name.clone() } else { String::new() },
        run_as_group: run_as_group.map(value),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or_default(),
        supplemental_groups: groups(&of_pod),
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

/// fsGroup, then supplementalGroups (A10.2).
fn groups(pod: &PodSecurityContext) -> Vec<i64> {
    pod.fs_group.into_iter().chain(pod.supplemental_groups.iter().flatten().copied()).collect()
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
mod tests {
    use super::*;

    fn node() -> NodeSecurity<'static> {
        NodeSecurity { seccomp_default: false, seccomp_dir: Path::new("/s"), more_masked: &[] }
    }

    fn pod(context: PodSecurityContext) -> Pod {
        let spec = PodSpec { security_context: Some(context), ..PodSpec::default() };
        let mut pod = Pod { spec: Some(spec), ..Pod::default() };
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("n".into());
        pod.metadata.uid = Some("u".into());
        pod
    }

    fn container(context: SecurityContext) -> Container {
        Container { name: "c".into(), security_context: Some(context), ..Container::default() }
    }

    #[test]
    fn the_container_overrides_the_pod() {
        // A10.1
        let pod = pod(PodSecurityContext { run_as_user: Some(1), run_as_group: Some(2), ..Default::default() });
        let container = container(SecurityContext { run_as_user: Some(3), ..Default::default() });
        let cri = of_container(&pod, &container, &ImageUser::default(), node(), None).unwrap();
        assert_eq!(cri.run_as_user.unwrap().value, 3);
        assert_eq!(cri.run_as_group.unwrap().value, 2);
    }

    #[test]
    fn without_a_user_it_is_the_image_s() {
        // A10.1
        let (pod, container) = (pod(PodSecurityContext::default()), container(SecurityContext::default()));
        let of = |user: ImageUser| of_container(&pod, &container, &user, node(), None).unwrap();
        assert_eq!(of(ImageUser { uid: Some(7), name: String::new() }).run_as_user.unwrap().value, 7);
        let named = of(ImageUser { uid: None, name: "www".into() });
        assert_eq!((named.run_as_user, named.run_as_username.as_str()), (None, "www"));
    }

    #[test]
    fn root_is_refused_where_it_may_not_be() {
        // A2.16
        let tail = " (pod: \"p_n(u)\", container: c)";
        for (user, image, expected) in [
            (Some(0), ImageUser::default(), Some("container's runAsUser breaks non-root policy")),
            (Some(5), ImageUser::default(), None),
            (None, ImageUser::default(), Some("container has runAsNonRoot and image will run as root")),
            (
                None,
                ImageUser { uid: Some(0), ..Default::default() },
                Some("container has runAsNonRoot and image will run as root"),
            ),
            (None, ImageUser { uid: Some(9), ..Default::default() }, None),
            (
                None,
                ImageUser { uid: None, name: "x".into() },
                Some("container has runAsNonRoot and image has non-numeric user (x), cannot verify user is non-root"),
            ),
        ] {
            let pod = pod(PodSecurityContext { run_as_non_root: Some(true), run_as_user: user, ..Default::default() });
            let result = of_container(&pod, &container(SecurityContext::default()), &image, node(), None);
            assert_eq!(result.err(), expected.map(|e| format!("{e}{tail}")), "{user:?} {image:?}");
        }
    }

    #[test]
    fn privileges_are_passed_on() {
        // A10.4, A10.5, A10.8
        let pod = pod(PodSecurityContext::default());
        let of = |context| of_container(&pod, &container(context), &ImageUser::default(), node(), None).unwrap();
        let plain = of(SecurityContext::default());
        assert!(
            !plain.no_new_privs && !plain.readonly_rootfs && plain.masked_paths.contains(&"/proc/kcore".to_owned())
        );
        assert_eq!(plain.seccomp.unwrap().profile_type, i32::from(ProfileType::Unconfined));
        let tight = of(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            seccomp_profile: Some(SeccompProfile {
                type_: "Localhost".into(),
                localhost_profile: Some("a.json".into()),
            }),
            proc_mount: Some("Unmasked".into()),
            ..Default::default()
        });
        assert!(tight.no_new_privs && tight.readonly_rootfs && tight.masked_paths.is_empty());
        assert_eq!(tight.seccomp.unwrap().localhost_ref, "/s/a.json");
    }

    #[test]
    fn what_tells_the_heat_is_masked() {
        // A10.8
        let dir = tempfile::tempdir().unwrap();
        for name in ["cpu0/thermal_throttle", "cpu1", "cpu12/thermal_throttle", "cpufreq/thermal_throttle"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let found = thermal_throttles(dir.path());
        let at = |cpu: &str| dir.path().join(cpu).join("thermal_throttle").to_string_lossy().into_owned();
        assert_eq!(found, [at("cpu0"), at("cpu12")]);
        let pod = pod(PodSecurityContext::default());
        let node = NodeSecurity { more_masked: &found, ..node() };
        let of = |context| of_container(&pod, &container(context), &ImageUser::default(), node, None).unwrap();
        assert!(of(SecurityContext::default()).masked_paths.contains(&found[0]));
        let open = of(SecurityContext { proc_mount: Some("Unmasked".into()), ..Default::default() });
        assert!(open.masked_paths.is_empty() && open.readonly_paths.is_empty());
    }

    #[test]
    fn app_armor_comes_from_the_container_the_annotation_or_the_pod() {
        // A10.6
        use k8s_openapi::api::core::v1::AppArmorProfile;
        let profile = |kind: &str, name: Option<&str>| {
            Some(AppArmorProfile { type_: kind.into(), localhost_profile: name.map(str::to_owned) })
        };
        let told = |own: Option<AppArmorProfile>, annotation: Option<&str>, of_pod: Option<AppArmorProfile>| {
            let mut pod = pod(PodSecurityContext { app_armor_profile: of_pod, ..Default::default() });
            let key = "container.apparmor.security.beta.kubernetes.io/c".to_owned();
            pod.metadata.annotations = annotation.map(|text| [(key, text.to_owned())].into());
            let container = container(SecurityContext { app_armor_profile: own, ..Default::default() });
            #[expect(deprecated, reason = "the old form is what is looked at")]
            of_container(&pod, &container, &ImageUser::default(), node(), None).map(|cri| cri.apparmor_profile)
        };
        let local = || profile("Localhost", Some("mine"));
        for (own, annotation, of_pod, expected) in [
            (None, None, None, ""),
            (None, None, local(), "localhost/mine"),
            (None, Some("unconfined"), local(), "unconfined"),
            (None, Some("localhost/old"), None, "localhost/old"),
            (profile("RuntimeDefault", None), Some("unconfined"), local(), "runtime/default"),
        ] {
            assert_eq!(told(own, annotation, of_pod), Ok(expected.to_owned()));
        }
        assert_eq!(told(profile("Localhost", None), None, None), Err("missing localhost apparmor profile name".into()));
    }
}
