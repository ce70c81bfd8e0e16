//! From what the operator wrote to what each room wants to know.

use std::net::IpAddr;
use std::sync::Arc;

use stoker_model::quantity::{Milli, QuantityError};

use crate::config::{Flags, KubeletConfig, LabelError, StokerConfig, parse_node_labels};
use crate::node::{AddressError, MachineError, NodeSettings, choose_addresses, node_name};
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
    #[error("StokerConfiguration: serviceProxy.{field}: {source}")]
    Range { field: &'static str, source: crate::service::config::NotACidr },
}

/// Settings of the room `node`.
pub(super) fn node_settings(config: &KubeletConfig, flags: &Flags) -> Result<Arc<NodeSettings>, WiringError> {
    let (name, hostname) = node_name(flags.hostname_override.as_deref())?;
    let addresses = choose_addresses(flags.node_ip.as_deref(), &hostname)?;
    let mut reserved = std::collections::BTreeMap::new();
    for (resource, amount) in config.kube_reserved.iter().chain(&config.system_reserved) {
        *reserved.entry(resource.clone()).or_insert(Milli::ZERO) += Milli::parse(amount)?;
    }
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
        reserved,
        name,
        hostname,
        addresses,
    }))
}

/// Settings of the room `service`.
pub(super) fn service_config(config: &StokerConfig, _addresses: &[IpAddr]) -> Result<ServiceConfig, WiringError> {
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
