//! Our own settings, which upstream's files have no place for.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::load::ConfigError;

/// Read when it exists and `--stoker-config` names no other.
pub const DEFAULT_STOKER_CONFIG: &str = "/etc/stoker/stoker.yaml";

const KIND: &str = "stoker.dev/v1alpha1 StokerConfiguration";

/// How Services reach their endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceMode {
    /// Our nftables tables.
    #[default]
    Nftables,
    /// Not at all: kube-proxy or another program does it.
    None,
}

/// StokerConfiguration v1alpha1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct StokerConfig {
    /// `stoker.dev/v1alpha1`
    pub api_version: String,
    /// `StokerConfiguration`
    pub kind: String,
    /// How Services reach their endpoints.
    pub service_proxy: ServiceProxy,
    /// Cluster DNS, answered on the node.
    pub dns: Dns,
    /// `text`, or `json` for logs in JSON.
    pub log_format: String,
}

/// `dns`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Dns {
    /// Whether this node answers at the cluster DNS addresses. Off where CoreDNS does.
    pub enabled: bool,
    /// Where to answer; empty: at KubeletConfiguration's `clusterDNS`.
    pub addresses: Vec<IpAddr>,
    /// Name servers for names outside of the cluster, with or without a port; empty: those of KubeletConfiguration's
    /// `resolvConf`.
    pub upstream: Vec<String>,
    /// Seconds that clients may keep answers about the cluster.
    pub ttl: u32,
    /// Answers kept in memory at most.
    pub cache_entries: usize,
    /// Port of `/metrics` and `/ready` at the same addresses; 0: none.
    pub metrics_port: u16,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            enabled: false,
            addresses: Vec::new(),
            upstream: Vec::new(),
            ttl: 5,
            cache_entries: 10_000,
            metrics_port: 9153,
        }
    }
}

/// `serviceProxy`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ServiceProxy {
    /// `nftables` or `none`.
    pub mode: ServiceMode,
    /// Ranges whose node addresses answer on NodePorts; empty: the primary addresses.
    pub node_port_addresses: Vec<String>,
    /// Range of the pods' addresses: what comes from elsewhere is masqueraded (B1.16).
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: Vec<String>,
    /// Masquerade everything that goes to a cluster IP (B1.16).
    pub masquerade_all: bool,
}

/// Reads the file; without one, the defaults.
///
/// # Errors
/// When a named file is not there, and when a file has unknown fields: names file, field and line.
pub fn load_stoker_config(named: Option<&Path>) -> Result<StokerConfig, ConfigError> {
    let path = match named {
        Some(path) => path,
        None if Path::new(DEFAULT_STOKER_CONFIG).exists() => Path::new(DEFAULT_STOKER_CONFIG),
        None => return Ok(StokerConfig::default()),
    };
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    read(path, &text)
}

fn read(path: &Path, text: &str) -> Result<StokerConfig, ConfigError> {
    let path = PathBuf::from(path);
    let config: StokerConfig = match serde_yaml_ng::from_str::<Option<StokerConfig>>(text) {
        Ok(config) => config.unwrap_or_default(),
        Err(source) => return Err(ConfigError::Decode { path, source, place: String::new() }),
    };
    let found = format!("{} {}", config.api_version, config.kind);
    if found != KIND && found != " " {
        return Err(ConfigError::WrongKind { path, found, expected: KIND });
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_mistakes_are_located() {
        let path = Path::new("/etc/stoker/stoker.yaml");
        let text = "apiVersion: stoker.dev/v1alpha1\nkind: StokerConfiguration\nserviceProxy:\n  mode: none\n";
        assert_eq!(read(path, text).expect("a configuration").service_proxy.mode, ServiceMode::None);
        assert_eq!(read(path, "").expect("empty"), StokerConfig::default());
        let dns = read(path, "dns: {enabled: true, addresses: [10.96.0.10]}").expect("a configuration").dns;
        assert_eq!(
            dns,
            Dns { enabled: true, addresses: vec!["10.96.0.10".parse().expect("an address")], ..Dns::default() }
        );
        assert!(read(path, "dns: {addresses: [here]}").expect_err("no address").to_string().contains("addresses"));
        let error = read(path, "serviceProxy:\n  mod: none\n").expect_err("unknown field").to_string();
        assert!(error.contains("stoker.yaml") && error.contains("mod") && error.contains("line 2"), "{error}");
    }
}
