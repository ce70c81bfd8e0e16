//! What the runtime is told of who a container runs as, and what it may do.

use super::*;

fn nodes() -> cri::UserNamespace {
    cri::UserNamespace { mode: cri::NamespaceMode::Node.into(), ..Default::default() }
}

fn node() -> NodeSecurity<'static> {
    NodeSecurity { seccomp_default: false, seccomp_dir: Path::new("/s"), groups_of_volumes: &[], more_masked: &[] }
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
fn every_setting_of_the_container_is_stronger_than_that_of_the_pod() {
    // A10.1, A10.6, A10.7
    use k8s_openapi::api::core::v1::{AppArmorProfile, Capabilities, SELinuxOptions};
    let seccomp = |kind: &str| Some(SeccompProfile { type_: kind.into(), localhost_profile: None });
    let armor = |kind: &str| Some(AppArmorProfile { type_: kind.into(), localhost_profile: Some("p".into()) });
    let label = |level: &str| {
        Some(SELinuxOptions { level: Some(level.into()), type_: Some("t".into()), ..SELinuxOptions::default() })
    };
    let pod = pod(PodSecurityContext {
        run_as_user: Some(1),
        run_as_group: Some(2),
        run_as_non_root: Some(true),
        seccomp_profile: seccomp("RuntimeDefault"),
        app_armor_profile: armor("Localhost"),
        se_linux_options: label("s0:c1"),
        ..Default::default()
    });
    let of = |context| of_container(&pod, &container(context), &ImageUser::default(), node(), None, nodes()).unwrap();
    let plain = of(SecurityContext::default());
    assert_eq!((plain.run_as_user.unwrap().value, plain.run_as_group.unwrap().value), (1, 2));
    assert_eq!(plain.seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault);
    assert_eq!(plain.apparmor.unwrap().localhost_ref, "p");
    let of_pod = plain.selinux_options.unwrap();
    assert_eq!((of_pod.level.as_str(), of_pod.r#type.as_str(), of_pod.user.as_str()), ("s0:c1", "t", ""));
    assert!(!plain.privileged && plain.capabilities.is_none() && !plain.masked_paths.is_empty());
    let own = of(SecurityContext {
        run_as_user: Some(0),
        run_as_group: Some(4),
        run_as_non_root: Some(false),
        seccomp_profile: seccomp("Unconfined"),
        app_armor_profile: armor("Unconfined"),
        se_linux_options: label("s0:c9"),
        capabilities: Some(Capabilities {
            add: Some(vec!["NET_ADMIN".into(), "ALL".into()]),
            drop: Some(vec!["CHOWN".into()]),
        }),
        proc_mount: Some("Unmasked".into()),
        ..Default::default()
    });
    assert_eq!((own.run_as_user.unwrap().value, own.run_as_group.unwrap().value), (0, 4), "root is allowed here");
    assert_eq!(own.seccomp.unwrap().profile_type(), ProfileType::Unconfined);
    assert_eq!(own.apparmor.unwrap().profile_type(), ProfileType::Unconfined);
    assert_eq!(own.selinux_options.unwrap().level, "s0:c9");
    let capabilities = own.capabilities.unwrap();
    assert_eq!(capabilities.add_capabilities, ["NET_ADMIN", "ALL"]);
    assert_eq!(capabilities.drop_capabilities, ["CHOWN"]);
    assert!(own.masked_paths.is_empty() && own.readonly_paths.is_empty());
    assert!(of(SecurityContext { privileged: Some(true), ..Default::default() }).privileged);
}

#[test]
fn namespaces_are_those_of_node_pod_container_or_target() {
    // A10.12, A11.1, A11.2
    use cri::NamespaceMode::{Container, Node, Pod, Target};
    let modes = |spec: &PodSpec, target| {
        let found = namespaces(spec, target, nodes());
        assert_eq!(found.userns_options.as_ref().unwrap().mode(), Node);
        (found.network(), found.pid(), found.ipc(), found.target_id.clone())
    };
    let with = |change: fn(&mut PodSpec)| {
        let mut spec = PodSpec::default();
        change(&mut spec);
        spec
    };
    let none = String::new;
    assert_eq!(modes(&PodSpec::default(), None), (Pod, Container, Pod, none()));
    assert_eq!(modes(&with(|s| s.host_network = Some(true)), None), (Node, Container, Pod, none()));
    assert_eq!(modes(&with(|s| s.host_pid = Some(true)), None), (Pod, Node, Pod, none()));
    assert_eq!(modes(&with(|s| s.host_ipc = Some(true)), None), (Pod, Container, Node, none()));
    assert_eq!(modes(&with(|s| s.share_process_namespace = Some(true)), None), (Pod, Pod, Pod, none()));
    assert_eq!(modes(&PodSpec::default(), Some("abc")), (Pod, Target, Pod, "abc".to_owned()));
    // Users of its own go to the sandbox and to each container.
    let range = cri::IdMapping { host_id: 131_072, container_id: 0, length: 65536 };
    let users = cri::UserNamespace { mode: Pod.into(), uids: vec![range], gids: vec![range] };
    let told = |options: Option<cri::NamespaceOption>| options.unwrap().userns_options;
    assert_eq!(told(of_sandbox(&PodSpec::default(), users.clone(), &[]).namespace_options), Some(users.clone()));
    let (pod, image) = (pod(PodSecurityContext::default()), ImageUser::default());
    let made = of_container(&pod, &container(SecurityContext::default()), &image, node(), None, users.clone()).unwrap();
    assert_eq!(told(made.namespace_options), Some(users));
}

#[test]
fn the_sandbox_has_what_the_whole_pod_has() {
    // A10.2, A10.3, A10.5
    let context = |fs_group, groups: &[i64], policy: Option<&str>| PodSecurityContext {
        fs_group,
        supplemental_groups: Some(groups.to_vec()),
        supplemental_groups_policy: policy.map(str::to_owned),
        seccomp_profile: Some(SeccompProfile { type_: "Unconfined".into(), localhost_profile: None }),
        run_as_group: Some(9),
        ..Default::default()
    };
    let privileged = |yes| container(SecurityContext { privileged: Some(yes), ..Default::default() });
    let of = |context, containers: Vec<Container>, init: Vec<Container>| {
        let spec =
            PodSpec { security_context: Some(context), containers, init_containers: Some(init), ..Default::default() };
        of_sandbox(&spec, nodes(), &[6, 8])
    };
    let plain = of(context(Some(5), &[7, 6], None), vec![privileged(false)], vec![]);
    assert_eq!(plain.supplemental_groups, [5, 7, 6, 8], "fsGroup first, those of volumes last, and none twice");
    assert_eq!(plain.supplemental_groups_policy(), cri::SupplementalGroupsPolicy::Merge);
    assert_eq!(plain.seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault, "whatever the pod wants");
    assert!(!plain.privileged && plain.run_as_group.is_none(), "no group without a user");
    let strict = of(context(None, &[7], Some("Strict")), vec![], vec![privileged(true)]);
    assert_eq!(strict.supplemental_groups_policy(), cri::SupplementalGroupsPolicy::Strict);
    assert!(strict.privileged && strict.supplemental_groups == [7, 6, 8]);
}

#[test]
fn seccomp_profiles_are_of_the_runtime_of_the_node_or_none() {
    // A10.5
    let profile = |kind: &str, name: Option<&str>| {
        Some(SeccompProfile { type_: kind.into(), localhost_profile: name.map(str::to_owned) })
    };
    let by_default = NodeSecurity { seccomp_default: true, ..node() };
    let of = |own: Option<SeccompProfile>, privileged, node: NodeSecurity<'_>| {
        let context = SecurityContext { seccomp_profile: own, privileged: Some(privileged), ..Default::default() };
        let pod = pod(PodSecurityContext::default());
        let made = of_container(&pod, &container(context), &ImageUser::default(), node, None, nodes())?;
        let found = made.seccomp.unwrap();
        Ok((found.profile_type(), found.localhost_ref))
    };
    let plain = |kind| Ok((kind, String::new()));
    assert_eq!(of(None, false, node()), plain(ProfileType::Unconfined));
    assert_eq!(of(None, false, by_default), plain(ProfileType::RuntimeDefault));
    assert_eq!(of(None, true, by_default), plain(ProfileType::Unconfined), "privileged means everything");
    assert_eq!(of(profile("Unconfined", None), false, by_default), plain(ProfileType::Unconfined));
    assert_eq!(of(profile("RuntimeDefault", None), false, node()), plain(ProfileType::RuntimeDefault));
    assert_eq!(
        of(profile("Localhost", Some("deep/a.json")), false, node()),
        Ok((ProfileType::Localhost, "/s/deep/a.json".to_owned()))
    );
    let refused: String = "localhostProfile must be set if seccompProfile type is Localhost.".into();
    assert_eq!(of(profile("Localhost", Some("")), false, node()), Err(refused.clone()));
    assert_eq!(of(profile("Localhost", None), false, node()), Err(refused));
}

#[test]
fn the_container_overrides_the_pod() {
    // A10.1
    let pod = pod(PodSecurityContext { run_as_user: Some(1), run_as_group: Some(2), ..Default::default() });
    let container = container(SecurityContext { run_as_user: Some(3), ..Default::default() });
    let cri = of_container(&pod, &container, &ImageUser::default(), node(), None, nodes()).unwrap();
    assert_eq!(cri.run_as_user.unwrap().value, 3);
    assert_eq!(cri.run_as_group.unwrap().value, 2);
}

#[test]
fn without_a_user_it_is_the_image_s() {
    // A10.1
    let (pod, container) = (pod(PodSecurityContext::default()), container(SecurityContext::default()));
    let of = |user: ImageUser| of_container(&pod, &container, &user, node(), None, nodes()).unwrap();
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
        let result = of_container(&pod, &container(SecurityContext::default()), &image, node(), None, nodes());
        assert_eq!(result.err(), expected.map(|e| format!("{e}{tail}")), "{user:?} {image:?}");
    }
}

#[test]
fn privileges_are_passed_on() {
    // A10.4, A10.5, A10.8
    let pod = pod(PodSecurityContext::default());
    let of = |context| of_container(&pod, &container(context), &ImageUser::default(), node(), None, nodes()).unwrap();
    let plain = of(SecurityContext::default());
    assert!(!plain.no_new_privs && !plain.readonly_rootfs && plain.masked_paths.contains(&"/proc/kcore".to_owned()));
    assert_eq!(plain.seccomp.unwrap().profile_type, i32::from(ProfileType::Unconfined));
    let tight = of(SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        seccomp_profile: Some(SeccompProfile { type_: "Localhost".into(), localhost_profile: Some("a.json".into()) }),
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
    let of = |context| of_container(&pod, &container(context), &ImageUser::default(), node, None, nodes()).unwrap();
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
        #[expect(deprecated, reason = "the old form is looked at, too")]
        of_container(&pod, &container, &ImageUser::default(), node(), None, nodes()).map(|cri| {
            let new = cri.apparmor.as_ref().map(old_form).unwrap_or_default();
            assert_eq!(new, cri.apparmor_profile, "both say the same");
            cri.apparmor_profile
        })
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
