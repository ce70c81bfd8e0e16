//! The configuration of a pod's sandbox.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use stoker_model::names;
use stoker_model::pod::PodRef;
use stoker_model::resources::is_sidecar;

use super::security;
use crate::runtime::cri;

/// What the sandbox takes from the node.
#[derive(Clone, Debug)]
pub(super) struct SandboxParts {
    pub(super) attempt: u32,
    pub(super) hostname: String,
    pub(super) dns: cri::DnsConfig,
    pub(super) cgroup_parent: String,
    /// `<logs>/<namespace>_<name>_<uid>` (A20.1).
    pub(super) log_directory: PathBuf,
    /// The node's users, or those of the pod alone.
    pub(super) users: cri::UserNamespace,
    /// Groups that its volumes call for.
    pub(super) groups: Vec<i64>,
}

/// The labels that identify a pod's sandboxes and containers (A1.15).
pub(super) fn identity(pod: &PodRef) -> BTreeMap<String, String> {
    let pairs = [
        (names::POD_NAME, pod.name.clone()),
        (names::POD_NAMESPACE, pod.namespace.clone()),
        (names::POD_UID, pod.uid.to_string()),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

/// The sandbox of a pod.
pub(super) fn config(pod: &Pod, parts: &SandboxParts) -> cri::PodSandboxConfig {
    let reference = PodRef::of(pod);
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let host_network = spec.host_network.unwrap_or_default();
    let mut labels: BTreeMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.extend(identity(&reference));
    let sysctls = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: reference.name.clone(),
            uid: reference.uid.to_string(),
            namespace: reference.namespace.clone(),
            attempt: parts.attempt,
        }),
        hostname: if host_network { String::new() } else { parts.hostname.clone() },
        log_directory: parts.log_directory.to_string_lossy().into_owned(),
        dns_config: Some(parts.dns.clone()),
        port_mappings: if host_network { Vec::new() } else { port_mappings(spec) },
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: parts.cgroup_parent.clone(),
            security_context: Some(security::of_sandbox(spec, parts.users.clone(), &parts.groups)),
            sysctls: sysctls.map(|s| (s.name.replace('/', "."), s.value.clone())).collect(),
            ..Default::default()
        }),
    }
}

/// Host ports of all containers that keep running (A11.9).
fn port_mappings(spec: &PodSpec) -> Vec<cri::PortMapping> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|c: &Container| c.ports.iter().flatten());
    ports
        .filter(|port| port.host_port.is_some_and(|host| host > 0))
        .map(|port| {
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            };
            cri::PortMapping {
                protocol: protocol.into(),
                container_port: port.container_port,
                host_port: port.host_port.unwrap_or_default(),
                host_ip: port.host_ip.clone().unwrap_or_default(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ContainerPort;

    use super::*;

    #[test]
    fn host_ports_are_mapped() {
        // A11.8, A11.9
        let port = |container: i32, host: Option<i32>, protocol: &str, ip: &str| ContainerPort {
            container_port: container,
            host_port: host,
            protocol: Some(protocol.to_owned()).filter(|text| !text.is_empty()),
            host_ip: Some(ip.to_owned()).filter(|text| !text.is_empty()),
            ..ContainerPort::default()
        };
        let container = |ports: Vec<ContainerPort>, policy: Option<&str>| Container {
            ports: Some(ports),
            restart_policy: policy.map(str::to_owned),
            ..Container::default()
        };
        let spec = PodSpec {
            containers: vec![
                container(
                    vec![port(80, Some(8080), "", ""), port(81, None, "TCP", ""), port(82, Some(0), "", "")],
                    None,
                ),
                container(vec![port(53, Some(53), "UDP", "192.0.2.1"), port(9, Some(9), "SCTP", "::1")], None),
            ],
            init_containers: Some(vec![
                container(vec![port(1, Some(1), "", "")], None),
                container(vec![port(2, Some(2), "TCP", "")], Some("Always")),
            ]),
            ..PodSpec::default()
        };
        let parts = SandboxParts {
            attempt: 0,
            hostname: "web".into(),
            dns: cri::DnsConfig::default(),
            cgroup_parent: String::new(),
            log_directory: PathBuf::new(),
            users: cri::UserNamespace::default(),
            groups: Vec::new(),
        };
        let of = |host_network| {
            let spec = Some(PodSpec { host_network, ..spec.clone() });
            let config = config(&Pod { spec, ..Pod::default() }, &parts);
            let mapped = |m: cri::PortMapping| (m.host_ip.clone(), m.host_port, m.container_port, m.protocol());
            (config.hostname, config.port_mappings.into_iter().map(mapped).collect::<Vec<_>>())
        };
        let mapped = [
            (String::new(), 8080, 80, cri::Protocol::Tcp),
            ("192.0.2.1".to_owned(), 53, 53, cri::Protocol::Udp),
            ("::1".to_owned(), 9, 9, cri::Protocol::Sctp),
            (String::new(), 2, 2, cri::Protocol::Tcp),
        ];
        assert_eq!(of(None), ("web".to_owned(), mapped.to_vec()));
        assert_eq!(of(Some(true)), (String::new(), Vec::new()), "the node's network has the node's name and ports");
    }
}
