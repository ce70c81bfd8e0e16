//! From what the operator wrote to what each room wants to know.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stoker_model::handle::ServingCertificates;
use stoker_model::quantity::{Milli, QuantityError};

use super::proxy::ProxySettings;
use super::reservations::reserved;
use crate::cgroup::{CgroupConfig, CgroupDriver};
use crate::config::{
    Flags, GoDuration, KubeProxyConfig, KubeletConfig, LabelError, ProxyMode, StokerConfig, parse_bool,
    parse_node_labels,
};
use crate::node::eviction::{EvictionSettings, ThresholdError, ThresholdFields};
use crate::node::{
    AddressError, MachineError, NodeSettings, Period, ShutdownSettings, choose_addresses, memory_threshold, node_name,
    periods,
};
use crate::pod::{Features, PodsConfig, ResizeRules, StaticSources, SysctlError, SysctlRules, Users, UsersError};
use crate::resources::{CpuOptions, NotCpus, ReservedCpus, ResourcesConfig, StaticCpus, StaticMemory, TopologyPolicy};
use crate::server::{ServerConfig, ServingCertificate, TlsRules};
use crate::service::sysctls::ConntrackSettings;
use crate::service::{Cidr, IpvsConfig, LocalTraffic, Mode, ServiceConfig};

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
    #[error("reservedSystemCPUs: {0}")]
    NotCpus(#[from] NotCpus),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error("{field}: {value:?} is not an IP address")]
    NotAnAddress { field: &'static str, value: String },
    #[error(
        "KubeProxyConfiguration: hostnameOverride is {said:?}, but this node is {name:?}: leave it empty, or set the node's name \
         with --hostname-override"
    )]
    OtherNode { said: String, name: String },
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
    #[error("evictionSoftGracePeriod: {signal}: {value:?} is no duration: write 90s or 1m30s")]
    SoftGrace { signal: String, value: String },
    #[error(transparent)]
    Users(#[from] UsersError),
    #[error(transparent)]
    Ids(#[from] super::users::IdsError),
    #[error("{field}: {source}")]
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
        local_storage: config.local_storage_capacity_isolation,
        observe_every: config.node_status_update_frequency.0,
        report_every: config.node_status_report_frequency.0,
        lease_seconds: config.node_lease_duration_seconds,
        max_images: config.node_status_max_images,
        root_dir: flags.root_dir.clone(),
        controller_attach_detach: config.enable_controller_attach_detach,
        declared_features: Features::of(&config.feature_gates).declared(),
        reserved,
        name,
        hostname,
        addresses,
        addresses_named: flags.node_ip.as_deref().is_some_and(|ip| !matches!(ip, "" | "0.0.0.0" | "::")),
    }))
}

/// Events that are sent a second, and at once.
pub(super) fn event_pace(config: &KubeletConfig) -> (u32, u32) {
    let number = |value: i32| u32::try_from(value).unwrap_or_default();
    (number(config.event_record_qps), number(config.event_burst))
}

/// How many requests may be sent a second, and at once; the node's status, its lease and events are not among them.
pub(super) fn request_pace(config: &KubeletConfig) -> (u32, u32) {
    let number = |value: i32| u32::try_from(value).unwrap_or_default();
    (number(config.kube_api_qps), number(config.kube_api_burst))
}

/// How pods end before the machine goes down.
pub(super) fn shutdown_settings(config: &KubeletConfig, root_dir: &Path) -> ShutdownSettings {
    let listed: Vec<Period> = config
        .shutdown_grace_period_by_pod_priority
        .iter()
        .map(|period| Period {
            priority: period.priority,
            grace: Duration::from_secs(u64::try_from(period.shutdown_grace_period_seconds).unwrap_or_default()),
        })
        .collect();
    let (total, critical) = (config.shutdown_grace_period.0, config.shutdown_grace_period_critical_pods.0);
    ShutdownSettings {
        periods: periods(total, critical, &listed),
        state_file: root_dir.join("graceful_node_shutdown_state"),
    }
}

/// Settings of the room `pod`.
pub(super) fn pods_config(config: &KubeletConfig, root_dir: &Path) -> Result<PodsConfig, WiringError> {
    let log_dir = PathBuf::from(&config.pod_logs_dir);
    let address = |text: &String| {
        text.parse().map_err(|_| WiringError::NotAnAddress { field: "clusterDNS", value: text.clone() })
    };
    // Nothing is the default, too.
    let per_pod = Some(config.user_namespaces.ids_per_pod).filter(|ids| *ids != 0).unwrap_or(65536);
    let per_pod = u32::try_from(per_pod).unwrap_or(u32::MAX);
    let max_pods = u32::try_from(config.max_pods).unwrap_or_default();
    let users = Users::open(&root_dir.join("pods"), super::users::ids_of_pods(per_pod)?, per_pod, max_pods)?;
    Ok(PodsConfig {
        users: Some(users),
        root_dir: root_dir.to_path_buf(),
        // Beside the logs, which is upstream's place where the logs are in theirs.
        link_dir: log_dir.parent().unwrap_or(Path::new("/")).join("containers"),
        log_dir,
        sync_frequency: config.sync_frequency.0,
        longest_backoff: config.crash_loop_back_off.max_container_restart_period.0,
        cluster_dns: config.cluster_dns.iter().map(address).collect::<Result<_, _>>()?,
        cluster_domain: config.cluster_domain.clone(),
        resolv_conf: Some(PathBuf::from(&config.resolv_conf)).filter(|path| !path.as_os_str().is_empty()),
        sysctls: SysctlRules::new(&config.allowed_unsafe_sysctls)?
            .on_kernel(&rustix::system::uname().release().to_string_lossy()),
        features: Features::of(&config.feature_gates),
        seccomp_default: config.seccomp_default,
        static_sources: StaticSources {
            path: Some(PathBuf::from(&config.static_pod_path)).filter(|path| !path.as_os_str().is_empty()),
            path_every: config.file_check_frequency.0,
            url: Some(config.static_pod_url.clone()).filter(|url| !url.is_empty()),
            url_headers: config.static_pod_url_header.clone(),
            url_every: config.http_check_frequency.0,
        },
        single_process_oom_kill: config.single_process_oom_kill,
        cpu_sets_every: config.cpu_manager_reconcile_period.0,
        limited_swap: config.memory_swap.swap_behavior == "LimitedSwap",
        resizes: ResizeRules {
            static_cpus: config.cpu_manager_policy == "static",
            static_memory: config.memory_manager_policy == "Static",
        },
        ..PodsConfig::default()
    })
}

/// Settings of the room `resources`.
pub(super) fn resources_config(config: &KubeletConfig, root_dir: &Path) -> Result<ResourcesConfig, WiringError> {
    let option = |name: &str| config.topology_manager_policy_options.get(name);
    let cpu_option =
        |name: &str| config.cpu_manager_policy_options.get(name).and_then(|value| parse_bool(value)) == Some(true);
    let fixed_cpus = || -> Result<StaticCpus, WiringError> {
        let reserved = match config.reserved_system_cpus.as_str() {
            "" => {
                let cpu = reserved(config)?.get("cpu").copied().unwrap_or(Milli::ZERO).milli();
                ReservedCpus::Count(usize::try_from(cpu.max(0)).unwrap_or_default().div_ceil(1000))
            }
            list => ReservedCpus::Cpus(list.parse()?),
        };
        let options = CpuOptions {
            whole_cores: cpu_option("full-pcpus-only"),
            across_nodes: cpu_option("distribute-cpus-across-numa"),
            strict_reservation: cpu_option("strict-cpu-reservation"),
            by_cache: cpu_option("prefer-align-cpus-by-uncorecache"),
        };
        Ok(StaticCpus { reserved, options })
    };
    Ok(ResourcesConfig {
        cpus: (config.cpu_manager_policy == "static").then(fixed_cpus).transpose()?,
        memory: (config.memory_manager_policy == "Static").then(|| fixed_memory(config)).transpose()?,
        topology: match config.topology_manager_policy.as_str() {
            "best-effort" => TopologyPolicy::BestEffort,
            "restricted" => TopologyPolicy::Restricted,
            "single-numa-node" => TopologyPolicy::SingleNumaNode,
            _ => TopologyPolicy::None,
        },
        pod_scope: config.topology_manager_scope == "pod",
        // What cannot be read was refused when the configuration was loaded.
        closest: option("prefer-closest-numa-nodes").is_some_and(|value| parse_bool(value) == Some(true)),
        most_nodes: option("max-allowable-numa-nodes").and_then(|value| value.parse().ok()).unwrap_or(8),
        ..ResourcesConfig::new(root_dir.to_path_buf())
    })
}

/// Memory that is kept back by node, and in all: reservations and the hard threshold of eviction.
fn fixed_memory(config: &KubeletConfig) -> Result<StaticMemory, WiringError> {
    let bytes = |amount: Milli| u64::try_from(amount.units()).unwrap_or_default();
    let mut by_node: BTreeMap<usize, BTreeMap<String, u64>> = BTreeMap::new();
    for reservation in &config.reserved_memory {
        let node = by_node.entry(usize::try_from(reservation.numa_node).unwrap_or(usize::MAX)).or_default();
        for (resource, amount) in &reservation.limits {
            node.insert(resource.clone(), bytes(Milli::parse(amount)?));
        }
    }
    let mut total: BTreeMap<String, u64> = reserved(config)?
        .into_iter()
        .filter(|(resource, _)| resource == "memory" || resource.starts_with("hugepages-"))
        .map(|(resource, amount)| (resource, bytes(amount)))
        .collect();
    if let Some(threshold) = config.eviction_hard.get("memory.available") {
        *total.entry("memory".to_owned()).or_default() += bytes(memory_threshold(threshold));
    }
    Ok(StaticMemory { reserved: by_node, total })
}

/// When pods have to go because the node is short of something (A13.3 to A13.5).
pub(super) fn eviction_settings(config: &KubeletConfig, flags: &Flags) -> Result<EvictionSettings, WiringError> {
    let period = |(signal, text): (&String, &String)| {
        let wrong = || WiringError::SoftGrace { signal: signal.clone(), value: text.clone() };
        let period: GoDuration = serde_json::from_value(text.clone().into()).map_err(|_| wrong())?;
        Ok((signal.clone(), period.0))
    };
    let fields = ThresholdFields {
        hard: config.eviction_hard.clone(),
        soft: config.eviction_soft.clone(),
        soft_grace: config.eviction_soft_grace_period.iter().map(period).collect::<Result<_, WiringError>>()?,
        min_reclaim: config.eviction_minimum_reclaim.clone(),
        enforces_pods: config.enforce_node_allocatable.iter().any(|what| what == "pods"),
    };
    let mut settings = EvictionSettings::new(&fields, flags.root_dir.clone(), PathBuf::from(&config.pod_logs_dir))?;
    settings.memcg_notification = config.kernel_memcg_notification;
    settings.pressure_transition = config.eviction_pressure_transition_period.0;
    settings.max_pod_grace =
        Duration::from_secs(u64::try_from(config.eviction_max_pod_grace_period).unwrap_or_default());
    settings.local_storage = config.local_storage_capacity_isolation;
    Ok(settings)
}

/// Settings of the room `cgroup`.
/// What the runtime says of its driver counts more than the configuration (A12.9).
pub(super) fn cgroup_config(config: &KubeletConfig, of_runtime: Option<CgroupDriver>) -> CgroupConfig {
    let configured = if config.cgroup_driver == "systemd" { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
    if of_runtime.is_some_and(|driver| driver != configured) {
        tracing::warn!(
            ?of_runtime,
            ?configured,
            "the runtime uses another cgroup driver than configured: its own counts"
        );
    }
    CgroupConfig {
        root: if config.cgroup_root.is_empty() { "/".to_owned() } else { config.cgroup_root.clone() },
        driver: of_runtime.unwrap_or(configured),
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
    signed: Option<ServingCertificates>,
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
    let certificate = match (file(&config.tls_cert_file), file(&config.tls_private_key_file), signed) {
        (Some(certificate), Some(key), _) => ServingCertificate::Files { certificate, key },
        (_, _, Some(signed)) => ServingCertificate::Signed(signed),
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
        tls: TlsRules {
            min_version: config.tls_min_version.clone(),
            cipher_suites: config.tls_cipher_suites.clone(),
            curves: config.tls_curve_preferences.clone(),
        },
        debugging_handlers: config.enable_debugging_handlers,
        read_only: match port(config.read_only_port) {
            0 => None,
            number => Some(SocketAddr::new(address("address", &config.address)?, number)),
        },
        volume_stats_every: config.volume_stats_agg_period.0,
        system_log_query: config.enable_system_log_query,
        debug_flags: config.enable_debug_flags_handler,
        anonymous: config.authentication.anonymous.enabled,
        decision_ttl: (
            config.authorization.webhook.cache_authorized_ttl.0,
            config.authorization.webhook.cache_unauthorized_ttl.0,
        ),
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

/// The node, as far as Services ask.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) name: String,
    /// One of each family, primary first.
    pub(super) addresses: Vec<IpAddr>,
}

/// Settings of the room `service`. `pod_ranges` are those of this node, for `detectLocalMode: NodeCIDR`.
pub(super) fn service_config(
    stoker: &StokerConfig,
    settings: &ProxySettings,
    node: &Host,
    pod_ranges: &[String],
) -> Result<ServiceConfig, WiringError> {
    let ProxySettings { proxy, from_file } = settings;
    if !proxy.hostname_override.is_empty() && proxy.hostname_override != node.name {
        return Err(WiringError::OtherNode { said: proxy.hostname_override.clone(), name: node.name.clone() });
    }
    let ours = &stoker.service_proxy;
    let cidrs = |field, texts: &mut dyn Iterator<Item = &str>| -> Result<Vec<Cidr>, WiringError> {
        texts.map(|text| text.parse().map_err(|source| WiringError::Range { field, source })).collect()
    };
    let of = |field, texts: &[String]| cidrs(field, &mut texts.iter().map(String::as_str));
    let sources = |ranges: Vec<Cidr>| match ranges.is_empty() {
        true => LocalTraffic::Unknown,
        false => LocalTraffic::Sources(ranges),
    };
    let local_traffic = match proxy.detect_local_mode.as_str() {
        "BridgeInterface" => LocalTraffic::Bridge(proxy.detect_local.bridge_interface.clone()),
        "InterfaceNamePrefix" => LocalTraffic::InterfacePrefix(proxy.detect_local.interface_name_prefix.clone()),
        "NodeCIDR" => sources(of("podCIDRs", pod_ranges)?),
        _ if *from_file => {
            let mut ranges = proxy.cluster_cidr.split(',').filter(|text| !text.is_empty());
            sources(cidrs("clusterCIDR", &mut ranges)?)
        }
        _ => sources(of("serviceProxy.clusterCIDR", &ours.cluster_cidr)?),
    };
    let written = if *from_file { &proxy.node_port_addresses } else { &ours.node_port_addresses };
    let primary = written.iter().any(|text| text == "primary")
        || (written.is_empty() && proxy.proxy_mode() == ProxyMode::Nftables);
    let node_port_addresses = match primary {
        true => node.addresses.iter().map(|address| Cidr::from(*address)).collect(),
        false => of("nodePortAddresses", written)?,
    };
    // As upstream's iptables mode decides it.
    let loopback = IpAddr::from([127, 0, 0, 0]);
    let mut v4 = node_port_addresses.iter().filter(|range: &&Cidr| range.first().is_ipv4()).peekable();
    let names_loopback = v4.peek().is_none() || v4.any(|range| range.contains(loopback) || range.first().is_loopback());
    let localhost_node_ports =
        proxy.proxy_mode() == ProxyMode::InsteadOfIptables && proxy.iptables.localhost_node_ports && names_loopback;
    let (bit, masquerade_all, sync_period) = proxy.of_mode();
    let scheduler = if proxy.ipvs.scheduler.is_empty() { "rr" } else { &proxy.ipvs.scheduler };
    Ok(ServiceConfig {
        mode: if proxy.proxy_mode() == ProxyMode::Ipvs { Mode::Ipvs } else { Mode::Nftables },
        ipvs: IpvsConfig {
            scheduler: scheduler.to_owned(),
            exclude_cidrs: of("ipvs.excludeCIDRs", &proxy.ipvs.exclude_cidrs)?,
            strict_arp: proxy.ipvs.strict_arp,
            tcp_timeout: proxy.ipvs.tcp_timeout.0,
            tcp_fin_timeout: proxy.ipvs.tcp_fin_timeout.0,
            udp_timeout: proxy.ipvs.udp_timeout.0,
        },
        local_traffic,
        masquerade_all: masquerade_all || (!from_file && ours.masquerade_all),
        masquerade_bit: u8::try_from(bit).unwrap_or_default(),
        node_port_addresses,
        localhost_node_ports,
        sync_period: sync_period.0,
        ..ServiceConfig::default()
    })
}

/// Settings of connection tracking.
pub(super) fn conntrack_settings(proxy: &KubeProxyConfig) -> ConntrackSettings {
    let conntrack = &proxy.conntrack;
    ConntrackSettings {
        max_per_core: u32::try_from(conntrack.max_per_core).unwrap_or_default(),
        min: u32::try_from(conntrack.min).unwrap_or_default(),
        tcp_established: conntrack.tcp_established_timeout.0,
        tcp_close_wait: conntrack.tcp_close_wait_timeout.0,
        tcp_be_liberal: conntrack.tcp_be_liberal,
        udp: conntrack.udp_timeout.0,
        udp_stream: conntrack.udp_stream_timeout.0,
    }
}

#[cfg(test)]
mod tests;
