//! What the agent asked the runtime for when it made a pod, so that the same can be asked for without the agent.

use serde_json::Value;
use stoker::runtime::{Runtime, cri};

use super::Failure;

/// A sandbox and a container.
pub(crate) struct Requests {
    sandbox: cri::PodSandboxConfig,
    container: cri::ContainerConfig,
}

impl Requests {
    /// Those of a running pod with one container, as the runtime tells them.
    pub(crate) async fn of(runtime: &Runtime, pod: &str) -> Result<Self, Failure> {
        let labels = [("io.kubernetes.pod.name".to_owned(), pod.to_owned())];
        let filter = cri::PodSandboxFilter { label_selector: labels.into(), ..cri::PodSandboxFilter::default() };
        let sandboxes = runtime.list_pod_sandbox(Some(filter)).await?;
        let sandbox = sandboxes.first().ok_or("the pod has no sandbox")?.id.clone();
        let containers = runtime.list_containers(None).await?;
        let container = containers.iter().find(|c| c.pod_sandbox_id == sandbox).ok_or("the pod has no container")?;
        let of_sandbox = config(&runtime.pod_sandbox_status(&sandbox, true).await?.info)?;
        let of_container = config(&runtime.container_status(&container.id, true).await?.info)?;
        let found = Self { sandbox: sandbox_config(&of_sandbox), container: container_config(&of_container) };
        let security = found.container.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let masked = security.map_or(0, |security| security.masked_paths.len());
        if found.container.mounts.is_empty() || masked == 0 {
            return Err("the runtime does not tell what it was asked for: the raw calls would ask for less".into());
        }
        Ok(found)
    }

    /// The same for a pod of another name. They have no labels, so that the agent takes them for nobody's.
    pub(crate) fn named(&self, name: &str, logs: &str) -> (cri::PodSandboxConfig, cri::ContainerConfig) {
        let (mut sandbox, mut container) = (self.sandbox.clone(), self.container.clone());
        let (namespace, uid) = ("default".to_owned(), name.to_owned());
        sandbox.metadata = Some(cri::PodSandboxMetadata { name: name.to_owned(), uid, namespace, attempt: 0 });
        (sandbox.hostname, sandbox.log_directory) = (name.to_owned(), logs.to_owned());
        container.metadata = Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 });
        container.log_path = "0.log".to_owned();
        (sandbox, container)
    }
}

/// The part of what a runtime tells at length that it was asked with.
fn config(info: &std::collections::BTreeMap<String, String>) -> Result<Value, Failure> {
    let text = info.get("info").ok_or("the runtime tells nothing at length")?;
    let mut told: Value = serde_json::from_str(text)?;
    Ok(told["config"].take())
}

fn sandbox_config(from: &Value) -> cri::PodSandboxConfig {
    let (linux, dns) = (&from["linux"], &from["dns_config"]);
    let security = &linux["security_context"];
    cri::PodSandboxConfig {
        dns_config: dns.is_object().then(|| cri::DnsConfig {
            servers: texts(&dns["servers"]),
            searches: texts(&dns["searches"]),
            options: texts(&dns["options"]),
        }),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: text(&linux["cgroup_parent"]),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(&security["namespace_options"])),
                seccomp: profile(&security["seccomp"]),
                ..cri::LinuxSandboxSecurityContext::default()
            }),
            ..cri::LinuxPodSandboxConfig::default()
        }),
        ..cri::PodSandboxConfig::default()
    }
}

fn container_config(from: &Value) -> cri::ContainerConfig {
    let linux = &from["linux"];
    let (resources, security) = (&linux["resources"], &linux["security_context"]);
    let pairs = from["envs"].as_array().into_iter().flatten();
    let mounts = from["mounts"].as_array().into_iter().flatten();
    cri::ContainerConfig {
        image: Some(cri::ImageSpec { image: text(&from["image"]["image"]), ..cri::ImageSpec::default() }),
        command: texts(&from["command"]),
        args: texts(&from["args"]),
        envs: pairs.map(|pair| cri::KeyValue { key: text(&pair["key"]), value: text(&pair["value"]) }).collect(),
        mounts: mounts
            .map(|mount| cri::Mount {
                container_path: text(&mount["container_path"]),
                host_path: text(&mount["host_path"]),
                readonly: mount["readonly"].as_bool().unwrap_or_default(),
                ..cri::Mount::default()
            })
            .collect(),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources {
                cpu_period: number(&resources["cpu_period"]),
                cpu_quota: number(&resources["cpu_quota"]),
                cpu_shares: number(&resources["cpu_shares"]),
                memory_limit_in_bytes: number(&resources["memory_limit_in_bytes"]),
                oom_score_adj: number(&resources["oom_score_adj"]),
                ..cri::LinuxContainerResources::default()
            }),
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces(&security["namespace_options"])),
                seccomp: profile(&security["seccomp"]),
                masked_paths: texts(&security["masked_paths"]),
                readonly_paths: texts(&security["readonly_paths"]),
                ..cri::LinuxContainerSecurityContext::default()
            }),
        }),
        ..cri::ContainerConfig::default()
    }
}

fn namespaces(from: &Value) -> cri::NamespaceOption {
    let mode = |name: &str| i32::try_from(number(&from[name])).unwrap_or_default();
    cri::NamespaceOption {
        network: mode("network"),
        pid: mode("pid"),
        ipc: mode("ipc"),
        ..cri::NamespaceOption::default()
    }
}

fn profile(from: &Value) -> Option<cri::SecurityProfile> {
    let profile_type = i32::try_from(number(&from["profile_type"])).unwrap_or_default();
    from.is_object().then(|| cri::SecurityProfile { profile_type, localhost_ref: text(&from["localhost_ref"]) })
}

fn text(from: &Value) -> String {
    from.as_str().unwrap_or_default().to_owned()
}

fn texts(from: &Value) -> Vec<String> {
    from.as_array().into_iter().flatten().map(text).collect()
}

fn number(from: &Value) -> i64 {
    from.as_i64().unwrap_or_default()
}
