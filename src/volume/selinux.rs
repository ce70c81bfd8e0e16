//! Volumes that are mounted with the label of the one pod that uses them, where the node has SELinux, so that nobody has to change the label
//! of each file (A9.18, A10.7).

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, SELinuxOptions};

/// Is there while the kernel enforces or logs.
const ENFORCE: &str = "/sys/fs/selinux/enforce";
/// The policies of the machine.
const POLICIES: &str = "/etc/selinux";

/// The label that a volume is to be mounted with for a pod; `None`: its files are labelled one by one, or not at all.
///
/// # Errors
/// Containers that want different labels for one volume.
pub(super) fn label_of_mount(pod: &Pod, volume: &str) -> Result<Option<String>, String> {
    if !Path::new(ENFORCE).exists() {
        return Ok(None);
    }
    let Some(contexts) = contexts(Path::new(POLICIES)) else { return Ok(None) };
    wanted(pod, volume, &contexts)
}

/// What the machine's policy says of containers.
fn contexts(policies: &Path) -> Option<String> {
    let config = std::fs::read_to_string(policies.join("config")).ok()?;
    let kind = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE="))?.trim().to_owned();
    std::fs::read_to_string(policies.join(kind).join("contexts/lxc_contexts")).ok()
}

fn wanted(pod: &Pod, volume: &str, contexts: &str) -> Result<Option<String>, String> {
    let Some(spec) = &pod.spec else { return Ok(None) };
    let of_pod = spec.security_context.as_ref();
    if of_pod.and_then(|context| context.se_linux_change_policy.as_deref()) == Some("Recursive") {
        return Ok(None);
    }
    let uses = |container: &&Container| container.volume_mounts.iter().flatten().any(|mount| mount.name == volume);
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten()).filter(uses);
    let mut label: Option<String> = None;
    for container in all {
        let own = container.security_context.as_ref();
        if own.and_then(|context| context.privileged) == Some(true) {
            // It may read whatever there is.
            continue;
        }
        let options =
            own.and_then(|c| c.se_linux_options.as_ref()).or(of_pod.and_then(|c| c.se_linux_options.as_ref()));
        // Without a level of its own the runtime chooses one, which nobody knows before.
        let Some(found) = options.and_then(|options| of_options(options, contexts)) else { return Ok(None) };
        match &label {
            Some(other) if *other != found => {
                return Err(format!("conflicting SELinux labels of volume {volume}: {other:?} and {found:?}"));
            }
            _ => label = Some(found),
        }
    }
    Ok(label)
}

/// The label of files: that of containers' files, with user and level of the options.
fn of_options(options: &SELinuxOptions, contexts: &str) -> Option<String> {
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let level = given(&options.level)?;
    let line = contexts.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "file").then(|| value.trim().trim_matches('"').to_owned())
    })?;
    let mut parts = line.splitn(4, ':');
    let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
    Some(format!("{}:{role}:{kind}:{level}", given(&options.user).unwrap_or_else(|| user.to_owned())))
}

/// The mount option for a label, as Go quotes it.
pub(super) fn option(label: &str) -> String {
    format!("context=\"{label}\"")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    const CONTEXTS: &str = "process = \"system_u:system_r:container_t:s0\"\ncontent = \"system_u:object_r:virt_var_lib_t:s0\"\n\
                            file = \"system_u:object_r:container_file_t:s0\"\nro_file=\"system_u:object_r:container_ro_file_t:s0\"\n";

    fn pod(of_pod: Value, of_containers: &[Value]) -> Pod {
        let container = |(index, context): (usize, &Value)| json!({"name": format!("c{index}"), "securityContext": context, "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        let containers: Vec<Value> = of_containers.iter().enumerate().map(container).collect();
        from_value(json!({"spec": {"securityContext": of_pod, "containers": containers}})).unwrap()
    }

    #[test]
    fn a_volume_has_the_label_of_its_pod() {
        // A9.18, A10.7: seLinuxChangePolicy
        let level = |level: &str| json!({"seLinuxOptions": {"level": level}});
        let label = |level: &str| Ok(Some(format!("system_u:object_r:container_file_t:{level}")));
        let none = json!({});
        for (of_pod, of_containers, expected) in [
            (level("s0:c1,c2"), vec![none.clone()], label("s0:c1,c2")),
            (none.clone(), vec![none.clone()], Ok(None)),
            (json!({"seLinuxOptions": {"type": "t"}}), vec![none.clone()], Ok(None)),
            (level("s0:c1"), vec![level("s0:c9")], label("s0:c9")),
            (level("s0:c1"), vec![none.clone(), level("s0:c1")], label("s0:c1")),
            (level("s0:c1"), vec![none.clone(), json!({"privileged": true})], label("s0:c1")),
            (
                json!({"seLinuxOptions": {"level": "s0:c1"}, "seLinuxChangePolicy": "Recursive"}),
                vec![none.clone()],
                Ok(None),
            ),
            (
                json!({"seLinuxOptions": {"level": "s0:c1"}, "seLinuxChangePolicy": "MountOption"}),
                vec![none.clone()],
                label("s0:c1"),
            ),
            (
                json!({"seLinuxOptions": {"level": "s0", "user": "u", "type": "process_t"}}),
                vec![none.clone()],
                Ok(Some("u:object_r:container_file_t:s0".to_owned())),
            ),
        ] {
            assert_eq!(
                wanted(&pod(of_pod.clone(), &of_containers), "v", CONTEXTS),
                expected,
                "{of_pod} {of_containers:?}"
            );
        }
        let torn = pod(level("s0:c1"), &[none.clone(), level("s0:c2")]);
        assert!(wanted(&torn, "v", CONTEXTS).unwrap_err().starts_with("conflicting SELinux labels of volume v"));
        assert_eq!(wanted(&torn, "other", CONTEXTS), Ok(None), "nobody uses it");
        assert_eq!(option("u:r:t:s0:c1,c2"), r#"context="u:r:t:s0:c1,c2""#);
    }

    #[test]
    fn the_machines_policy_is_found() {
        // A10.7
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(contexts(dir.path()), None);
        std::fs::write(dir.path().join("config"), "# c\nSELINUX=enforcing\nSELINUXTYPE=targeted\n").unwrap();
        assert_eq!(contexts(dir.path()), None);
        std::fs::create_dir_all(dir.path().join("targeted/contexts")).unwrap();
        std::fs::write(dir.path().join("targeted/contexts/lxc_contexts"), CONTEXTS).unwrap();
        assert_eq!(contexts(dir.path()).as_deref(), Some(CONTEXTS));
    }
}
