//! The configuration of one instance of a container.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use stoker_model::names;
use stoker_model::pod::PodRef;

use super::env::Environment;
use super::plan::container_hash;
use super::sandbox::identity;
use crate::resources::Extras;
use crate::runtime::cri;

/// CRI annotation: the preStop hook, for an agent that has lost the pod's spec (A1.15).
pub(super) const PRE_STOP_HANDLER: &str = "io.kubernetes.container.preStopHandler";
/// Where a container writes its last words unless it says otherwise (A4.7).
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Everything that is not in the container's spec.
#[derive(Debug)]
pub(super) struct ContainerParts {
    pub(super) restart_count: u32,
    /// The image's ID.
    pub(super) image: String,
    pub(super) environment: Environment,
    pub(super) mounts: Vec<cri::Mount>,
    pub(super) linux: cri::LinuxContainerConfig,
    /// What its devices need.
    pub(super) extras: Extras,
}

/// Where the container writes its last words.
pub(super) fn termination_message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or(TERMINATION_LOG)
}

/// The log of an instance, relative to the sandbox's log directory (A20.1).
pub(super) fn log_path(container: &str, restart_count: u32) -> String {
    format!("{container}/{restart_count}.log")
}

/// The container's configuration.
pub(super) fn config(pod: &Pod, container: &Container, parts: ContainerParts) -> cri::ContainerConfig {
    let reference = PodRef::of(pod);
    let mut labels = identity(&reference);
    labels.insert(names::CONTAINER_NAME.into(), container.name.clone());
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| parts.environment.expand(text)).collect()
    };
    let (command, args) = (expand(&container.command), expand(&container.args));
    let extras = parts.extras;
    // What the spec says comes later, and so wins.
    let envs = extras.envs.into_iter().chain(parts.environment.into_vec());
    let device_mounts = extras.mounts.into_iter().map(|mount| cri::Mount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.read_only,
        ..Default::default()
    });
    let devices = extras.devices.into_iter().map(|device| cri::Device {
        container_path: device.container_path,
        host_path: device.host_path,
        permissions: device.permissions,
    });
    let mut all_annotations = extras.annotations;
    all_annotations.extend(annotations(pod, container, parts.restart_count));
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: parts.restart_count }),
        image: Some(cri::ImageSpec {
            image: parts.image,
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: envs.map(|(key, value)| cri::KeyValue { key, value }).collect(),
        mounts: device_mounts.chain(parts.mounts).collect(),
        devices: devices.collect(),
        cdi_devices: extras.cdi_devices.into_iter().map(|name| cri::CdiDevice { name }).collect(),
        labels,
        annotations: all_annotations,
        log_path: log_path(&container.name, parts.restart_count),
        stdin: container.stdin.unwrap_or_default(),
        stdin_once: container.stdin_once.unwrap_or_default(),
        tty: container.tty.unwrap_or_default(),
        linux: Some(parts.linux),
        ..Default::default()
    }
}

/// What the next agent must know of a container (A1.15).
fn annotations(pod: &Pod, container: &Container, restart_count: u32) -> BTreeMap<String, String> {
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    let mut all: BTreeMap<String, String> = [
        (names::CONTAINER_HASH, container_hash(container)),
        (names::CONTAINER_RESTART_COUNT, restart_count.to_string()),
        (names::TERMINATION_MESSAGE_PATH, termination_message_path(container).to_owned()),
        (names::TERMINATION_MESSAGE_POLICY, policy.to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
        all.insert(PRE_STOP_HANDLER.into(), serde_json::to_string(hook).unwrap_or_default());
    }
    if let Some(ports) = container.ports.as_ref().filter(|ports| !ports.is_empty()) {
        all.insert(names::CONTAINER_PORTS.into(), serde_json::to_string(ports).unwrap_or_default());
    }
    let grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    if let Some(grace) = grace {
        all.insert(names::TERMINATION_GRACE_PERIOD.into(), grace.to_string());
    }
    if let Some(grace) = pod.metadata.deletion_grace_period_seconds {
        all.insert(names::DELETION_GRACE_PERIOD.into(), grace.to_string());
    }
    all
}

/// Whether what is mounted below a read-only mount becomes read-only, too (A9.24).
pub(super) fn recursive_read_only(mount: &VolumeMount, supported: bool) -> Result<bool, String> {
    let mode = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    let asked = format!("volume \"{}\" requested recursive read-only mode, but it is", mount.name);
    let propagation = mount.mount_propagation.as_deref().unwrap_or("None");
    match mode {
        "Disabled" => Ok(false),
        _ if !mount.read_only.unwrap_or_default() => Err(format!("{asked} not read-only")),
        _ if propagation != "None" => Err(format!("{asked} not compatible with propagation \"{propagation}\"")),
        "IfPossible" => Ok(supported),
        "Enabled" if supported => Ok(true),
        "Enabled" => Err(format!("{asked} not supported by the runtime")),
        other => Err(format!("unknown recursive read-only mode \"{other}\"")),
    }
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
    fn the_next_agent_finds_what_it_has_to_know() {
        // A1.15
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c",
            "image": "i",
            "terminationMessagePath": "/words",
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "ports": [{ "containerPort": 80 }],
            "lifecycle": { "preStop": { "sleep": { "seconds": 3 } } },
        }))
        .unwrap();
        let mut pod = Pod { spec: Some(Default::default()), ..Pod::default() };
        let meta = &mut pod.metadata;
        (meta.name, meta.namespace, meta.uid) = (Some("p".into()), Some("n".into()), Some("u".into()));
        meta.deletion_grace_period_seconds = Some(7);
        pod.spec.as_mut().unwrap().termination_grace_period_seconds = Some(40);
        let made = config(&pod, &container, parts(3));
        let labels = ["pod.name", "pod.namespace", "pod.uid", "container.name"]
            .map(|name| made.labels.get(&format!("io.kubernetes.{name}")).map(String::as_str));
        assert_eq!(labels, [Some("p"), Some("n"), Some("u"), Some("c")]);
        for (name, value) in [
            ("container.hash", container_hash(&container).as_str()),
            ("container.restartCount", "3"),
            ("container.terminationMessagePath", "/words"),
            ("container.terminationMessagePolicy", "FallbackToLogsOnError"),
            ("container.preStopHandler", r#"{"sleep":{"seconds":3}}"#),
            ("container.ports", r#"[{"containerPort":80}]"#),
            ("pod.terminationGracePeriod", "40"),
            ("pod.deletionGracePeriod", "7"),
        ] {
            let found = made.annotations.get(&format!("io.kubernetes.{name}")).map(String::as_str);
            assert_eq!(found, Some(value), "{name}");
        }
        assert_eq!(made.metadata.unwrap().attempt, 3);
    }

    fn parts(restart_count: u32) -> ContainerParts {
        ContainerParts {
            restart_count,
            image: "sha256:1".into(),
            environment: Environment::of(&[("A", "one"), ("B", "$(A)")]),
            mounts: Vec::new(),
            linux: cri::LinuxContainerConfig::default(),
            extras: Extras::default(),
        }
    }

    #[test]
    fn commands_and_arguments_are_expanded_by_nobody_but_us() {
        // A8.2
        let texts = |list: &[&str]| Some(list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        let container = Container {
            name: "c".into(),
            command: texts(&["/bin/$(A)", "$$(A)", "$(NONE)"]),
            args: texts(&["$(A)$(B)", "$A", "`id`", "*", "a b"]),
            ..Container::default()
        };
        let made = config(&Pod::default(), &container, parts(0));
        assert_eq!(made.command, ["/bin/one", "$(A)", "$(NONE)"]);
        assert_eq!(made.args, ["one$(A)", "$A", "`id`", "*", "a b"], "no shell sees them");
    }

    #[test]
    fn what_devices_need_reaches_the_runtime() {
        // A15.5
        use crate::resources::{Mount, SpecialFile};
        let extras = Extras {
            envs: [("A", "device's"), ("B", "device's")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            mounts: vec![Mount { container_path: "/in".into(), host_path: "/out".into(), read_only: true }],
            devices: vec![SpecialFile {
                container_path: "/dev/in".into(),
                host_path: "/dev/out".into(),
                permissions: "rw".into(),
            }],
            annotations: [("example.com/a".to_owned(), "b".to_owned())].into(),
            cdi_devices: vec!["example.com/gadget=g0".into()],
            ..Extras::default()
        };
        let parts = ContainerParts {
            restart_count: 0,
            image: "i".into(),
            environment: Environment::of(&[("A", "spec's")]),
            mounts: Vec::new(),
            linux: cri::LinuxContainerConfig::default(),
            extras,
        };
        let made = config(&Pod::default(), &Container::default(), parts);
        // Of two with the same name the last counts.
        let envs: Vec<_> = made.envs.iter().map(|env| format!("{}={}", env.key, env.value)).collect();
        assert_eq!(envs, ["A=device's", "B=device's", "A=spec's"]);
        let mount = &made.mounts[0];
        assert_eq!((mount.container_path.as_str(), mount.host_path.as_str(), mount.readonly), ("/in", "/out", true));
        let device = &made.devices[0];
        assert_eq!((device.host_path.as_str(), device.permissions.as_str()), ("/dev/out", "rw"));
        assert_eq!(made.cdi_devices[0].name, "example.com/gadget=g0");
        assert_eq!(made.annotations["example.com/a"], "b");
    }

    #[test]
    fn recursive_read_only_follows_upstreams_rules() {
        // A9.15, A9.24
        let ask = |mode: &str, propagation: Option<&str>, read_only: bool| {
            mount(|m| {
                m.recursive_read_only = Some(mode.into());
                m.mount_propagation = propagation.map(str::to_owned);
                m.read_only = Some(read_only);
            })
        };
        assert_eq!(recursive_read_only(&mount(|_| {}), true), Ok(false));
        assert_eq!(recursive_read_only(&ask("Enabled", None, true), true), Ok(true));
        assert_eq!(recursive_read_only(&ask("IfPossible", Some("None"), true), false), Ok(false));
        let refused = |mode, propagation, read_only, why: &str| {
            let text = recursive_read_only(&ask(mode, propagation, read_only), false).unwrap_err();
            assert_eq!(text, format!("volume \"v\" requested recursive read-only mode, but it is {why}"));
        };
        refused("Enabled", None, true, "not supported by the runtime");
        refused("IfPossible", None, false, "not read-only");
        refused("Enabled", Some("HostToContainer"), true, "not compatible with propagation \"HostToContainer\"");
    }
}
