//! From what the operator wrote to what each room wants to know.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stoker_model::quantity::QuantityError;

use super::reservations::reserved;
use crate::cgroup::{CgroupConfig, CgroupDriver};
use crate::config::{Flags, KubeletConfig, LabelError, StokerConfig, parse_node_labels};
use crate::node::{AddressError, MachineError, NodeSettings, choose_addresses, node_name};
use crate::pod::{PodsConfig, StaticSources, SysctlError, SysctlRules};
use crate::server::{ServerConfig, ServingCertificate};
use crate::service::{Cidr, LocalTraffic, ServiceConfig};

/// Which setting does not fit a room.
#[derive(Debug, thiserror::Error)]
pub(super) enum WiringError {
    #[error(transparent)]
    Name(#[from] MachineError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Label(#[from] LabelError),
    #[error(transparent)]
    Quantity(#[from] QuantityError),
    #[error("reservedSystemCPUs: {value:?} is no list of CPUs: write numbers and ranges, such as 0-1,4")]
    NotCpus { value: String },
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error("{field}: {value:?} is not an IP address")]
    NotAnAddress { field: &'static str, value: String },
    #[error("StokerConfiguration: serviceProxy.{field}: {source}")]
    Range { field: &'static str, source: crate::service::config::NotACidr },
}

/// Settings of the room `node`.
pub(super) fn node_settings(config: &KubeletConfig, flags: &Flags) -> Result<Arc<NodeSettings>, WiringError> {
    let (name, hostname) = node_name(flags.hostname_override.as_deref())?;
    let addresses = choose_addresses(flags.node_ip.as_deref(), &hostname)?;
    let reserved = reserved(config)?;
    Ok(Arc::new(NodeSettings {
        labels: parse_node_labels(&flags.node_labels)?,
        taints: config.register_with_taints.clone(),
        register: config.register_node,
        provider_id: config.provider_id.clone(),
        external_cloud: flags.external_cloud,
        port: u16::try_from(config.port).unwrap_or_default(),
        max_pods: config.max_pods.into(),
        pods_per_core: config.pods_per_core.into(),
        eviction_hard: config.eviction_hard.clone(),
        eviction_soft: config.eviction_soft.clone(),
        pressure_transition: config.eviction_pressure_transition_period.0,
        observe_every: config.node_status_update_frequency.0,
        report_every: config.node_status_report_frequency.0,
        lease_seconds: config.node_lease_duration_seconds,
        max_images: config.node_status_max_images,
        root_dir: flags.root_dir.clone(),
        controller_attach_detach: config.enable_controller_attach_detach,
        declared_features: declared_features(config),
        reserved,
        name,
        hostname,
        addresses,
    }))
}

/// Upstream's features that this node has and an API server wants to know of; a feature gate takes one out.
fn declared_features(config: &KubeletConfig) -> Vec<String> {
    let wanted = |feature: &&str| config.feature_gates.get(*feature).copied().unwrap_or(true);
    ["ExtendWebSocketsToKubelet"].into_iter().filter(wanted).map(str::to_owned).collect()
}

/// Settings of the room `pod`.
pub(super) fn pods_config(config: &KubeletConfig, root_dir: &Path) -> Result<PodsConfig, WiringError> {
    let log_dir = PathBuf::from(&config.pod_logs_dir);
    let address = |text: &String| {
        text.parse().map_err(|_| WiringError::NotAnAddress { field: "clusterDNS", value: text.clone() })
    };
    Ok(PodsConfig {
        root_dir: root_dir.to_path_buf(),
        // Beside the logs, which is upstream's place where the logs are in theirs.
        link_dir: log_dir.parent().unwrap_or(Path::new("/")).join("containers"),
        log_dir,
        sync_frequency: config.sync_frequency.0,
        longest_backoff: config.crash_loop_back_off.max_container_restart_period.0,
        cluster_dns: config.cluster_dns.iter().map(address).collect::<Result<_, _>>()?,
        cluster_domain: config.cluster_domain.clone(),
        resolv_conf: Some(PathBuf::from(&config.resolv_conf)).filter(|path| !path.as_os_str().is_empty()),
        sysctls: SysctlRules::new(&config.allowed_unsafe_sysctls)?,
        seccomp_default: config.seccomp_default,
        static_sources: StaticSources {
            path: Some(PathBuf::from(&config.static_pod_path)).filter(|path| !path.as_os_str().is_empty()),
            path_every: config.file_check_frequency.0,
            url: Some(config.static_pod_url.clone()).filter(|url| !url.is_empty()),
            url_headers: config.static_pod_url_header.clone(),
            url_every: config.http_check_frequency.0,
        },
        single_process_oom_kill: config.single_process_oom_kill,
        ..PodsConfig::default()
    })
}

/// Settings of the room `cgroup`.
pub(super) fn cgroup_config(config: &KubeletConfig) -> CgroupConfig {
    CgroupConfig {
        root: if config.cgroup_root.is_empty() { "/".to_owned() } else { config.cgroup_root.clone() },
        driver: if config.cgroup_driver == "systemd" { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs },
        cpu_cfs_quota: config.cpu_cfs_quota,
        cpu_cfs_period: config.cpu_cfs_quota_period.0,
        pod_pids_limit: u64::try_from(config.pod_pids_limit).ok().filter(|limit| *limit > 0),
        ..CgroupConfig::default()
    }
}

/// Settings of the room `server`.
pub(super) fn server_config(
    config: &KubeletConfig,
    flags: &Flags,
    node: &NodeSettings,
) -> Result<ServerConfig, WiringError> {
    let address = |field, text: &String| -> Result<IpAddr, WiringError> {
        text.parse().map_err(|_| WiringError::NotAnAddress { field, value: text.clone() })
    };
    let port = |number: i32| u16::try_from(number).unwrap_or_default();
    let file = |path: &String| Some(PathBuf::from(path)).filter(|path| !path.as_os_str().is_empty());
    let healthz = match port(config.healthz_port) {
        0 => None,
        number => Some(SocketAddr::new(address("healthzBindAddress", &config.healthz_bind_address)?, number)),
    };
    let certificate = match (file(&config.tls_cert_file), file(&config.tls_private_key_file)) {
        (Some(certificate), Some(key)) => ServingCertificate::Files { certificate, key },
        _ => ServingCertificate::SelfSigned {
            directory: flags.cert_dir.clone(),
            node: node.name.clone(),
            names: node.addresses.iter().map(ToString::to_string).collect(),
        },
    };
    Ok(ServerConfig {
        address: address("address", &config.address)?,
        port: port(config.port),
        healthz,
        certificate,
        client_ca: file(&config.authentication.x509.client_ca_file),
        debugging_handlers: config.enable_debugging_handlers,
        node: node.name.clone(),
        kubelet_configuration: shown(config),
        root_dir: flags.root_dir.clone(),
        pod_logs_dir: PathBuf::from(&config.pod_logs_dir),
        system_logs_dir: config.enable_system_log_handler.then(|| PathBuf::from("/var/log")),
        token_ttl: config.authentication.webhook.cache_ttl.0,
    })
}

/// The effective configuration as `/configz` shows it (A18.13).
fn shown(config: &KubeletConfig) -> serde_json::Value {
    let mut shown = serde_json::to_value(config).unwrap_or_default();
    shown["kind"] = "KubeletConfiguration".into();
    shown["apiVersion"] = "kubelet.config.k8s.io/v1beta1".into();
    shown
}

/// Settings of the room `service`.
pub(super) fn service_config(config: &StokerConfig) -> Result<ServiceConfig, WiringError> {
    let ranges = |field, texts: &[String]| -> Result<Vec<Cidr>, WiringError> {
        texts.iter().map(|text| text.parse().map_err(|source| WiringError::Range { field, source })).collect()
    };
    let cluster = ranges("clusterCIDR", &config.service_proxy.cluster_cidr)?;
    Ok(ServiceConfig {
        local_traffic: if cluster.is_empty() { LocalTraffic::Unknown } else { LocalTraffic::Sources(cluster) },
        masquerade_all: config.service_proxy.masquerade_all,
        node_port_addresses: ranges("nodePortAddresses", &config.service_proxy.node_port_addresses)?,
        ..ServiceConfig::default()
    })
}
