//! KubeProxyConfiguration v1alpha1: every field of 1.36 with its default (B2.5), and which of them have no effect here.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde_json::Value;

use super::duration::GoDuration;
use super::kubelet::Logging;
use super::load::{ConfigError, read};
use super::settings::{Resolved, settings};
use super::validate::{Invalid, invalid};

pub(super) const KIND: &str = "kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration";

type Strings = Vec<String>;
type Switches = BTreeMap<String, bool>;

const fn seconds(seconds: u64) -> GoDuration {
    GoDuration::seconds(seconds)
}

settings! {
    /// `clientConnection`.
    ClientConnectionAsWritten => ClientConnection {
        "kubeconfig" kubeconfig: String = zero;
        "acceptContentTypes" accept_content_types: String = zero;
        "contentType" content_type: String = zero("application/vnd.kubernetes.protobuf");
        "qps" qps: f64 = zero(5.0);
        "burst" burst: i32 = zero(10);
    }
}
settings! {
    /// `iptables`.
    IptablesAsWritten => Iptables {
        "masqueradeBit" masquerade_bit: i32 = nil(14);
        "masqueradeAll" masquerade_all: bool = zero;
        "localhostNodePorts" localhost_node_ports: bool = nil(true);
        "syncPeriod" sync_period: GoDuration = zero(seconds(30));
        "minSyncPeriod" min_sync_period: GoDuration = zero(seconds(1));
    }
}
settings! {
    /// `ipvs`.
    IpvsAsWritten => Ipvs {
        "syncPeriod" sync_period: GoDuration = zero(seconds(30));
        "minSyncPeriod" min_sync_period: GoDuration = zero;
        "scheduler" scheduler: String = zero;
        "excludeCIDRs" exclude_cidrs: Strings = zero;
        "strictARP" strict_arp: bool = zero;
        "tcpTimeout" tcp_timeout: GoDuration = zero;
        "tcpFinTimeout" tcp_fin_timeout: GoDuration = zero;
        "udpTimeout" udp_timeout: GoDuration = zero;
    }
}
settings! {
    /// `nftables`.
    NftablesAsWritten => Nftables {
        "masqueradeBit" masquerade_bit: i32 = nil(14);
        "masqueradeAll" masquerade_all: bool = zero;
        "syncPeriod" sync_period: GoDuration = zero(seconds(30));
        "minSyncPeriod" min_sync_period: GoDuration = zero(seconds(1));
    }
}
settings! {
    /// `conntrack`; 0 leaves the kernel's value.
    ConntrackAsWritten => Conntrack {
        "maxPerCore" max_per_core: i32 = nil(32 * 1024);
        "min" min: i32 = nil(128 * 1024);
        "tcpEstablishedTimeout" tcp_established_timeout: GoDuration = nil(seconds(24 * 3600));
        "tcpCloseWaitTimeout" tcp_close_wait_timeout: GoDuration = nil(seconds(3600));
        "tcpBeLiberal" tcp_be_liberal: bool = zero;
        "udpTimeout" udp_timeout: GoDuration = zero;
        "udpStreamTimeout" udp_stream_timeout: GoDuration = zero;
    }
}
settings! {
    /// `winkernel`, which concerns Windows only.
    WinkernelAsWritten => Winkernel {
        "networkName" network_name: String = zero;
        "sourceVip" source_vip: String = zero;
        "enableDSR" enable_dsr: bool = zero;
        "rootHnsEndpointName" root_hns_endpoint_name: String = zero;
        "forwardHealthCheckVip" forward_health_check_vip: bool = zero;
    }
}
settings! {
    /// `detectLocal`.
    DetectLocalAsWritten => DetectLocal {
        "bridgeInterface" bridge_interface: String = zero;
        "interfaceNamePrefix" interface_name_prefix: String = zero;
    }
}
settings! {
    /// The resolved KubeProxyConfiguration, as `/configz` shows it.
    KubeProxyAsWritten => KubeProxyConfig {
        "kind" kind: String = zero("KubeProxyConfiguration");
        "apiVersion" api_version: String = zero("kubeproxy.config.k8s.io/v1alpha1");
        "featureGates" feature_gates: Switches = zero;
        "clientConnection" client_connection: ClientConnection = nested;
        "logging" logging: Logging = nested;
        "hostnameOverride" hostname_override: String = zero;
        "bindAddress" bind_address: String = zero("0.0.0.0");
        "healthzBindAddress" healthz_bind_address: String = zero;
        "metricsBindAddress" metrics_bind_address: String = zero;
        "bindAddressHardFail" bind_address_hard_fail: bool = zero;
        "enableProfiling" enable_profiling: bool = zero;
        "showHiddenMetricsForVersion" show_hidden_metrics_for_version: String = zero;
        "mode" mode: String = zero;
        "iptables" iptables: Iptables = nested;
        "ipvs" ipvs: Ipvs = nested;
        "nftables" nftables: Nftables = nested;
        "winkernel" winkernel: Winkernel = nested;
        "detectLocalMode" detect_local_mode: String = zero("ClusterCIDR");
        "detectLocal" detect_local: DetectLocal = nested;
        "clusterCIDR" cluster_cidr: String = zero;
        "nodePortAddresses" node_port_addresses: Strings = zero;
        "oomScoreAdj" oom_score_adj: i32 = nil(-999);
        "conntrack" conntrack: Conntrack = nested;
        "configSyncPeriod" config_sync_period: GoDuration = zero(seconds(15 * 60));
        "portRange" port_range: String = zero;
        "windowsRunAsService" windows_run_as_service: bool = zero;
    }
}

/// What programs the kernel, and the rules that go with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyMode {
    /// `nftables`.
    Nftables,
    /// `iptables`, which is also what an empty `mode` asks of kube-proxy: the same services by our nftables rules.
    InsteadOfIptables,
    /// `ipvs`.
    Ipvs,
}

/// What came of the file.
#[derive(Clone, Debug)]
pub struct LoadedProxy {
    /// The resolved configuration.
    pub proxy: KubeProxyConfig,
    /// What was written and does not count; to be logged.
    pub warnings: Vec<String>,
}

/// Fields that are accepted and change nothing here, with the reason.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("featureGates", "no feature gate changes anything here"),
    ("clientConnection/kubeconfig", "the agent reads services with its own --kubeconfig"),
    ("clientConnection/acceptContentTypes", "the agent has its own connection to the API server"),
    ("clientConnection/contentType", "the agent has its own connection to the API server"),
    ("clientConnection/qps", "the agent has its own connection to the API server"),
    ("clientConnection/burst", "the agent has its own connection to the API server"),
    ("logging/format", "set it in KubeletConfiguration or StokerConfiguration"),
    ("logging/verbosity", "set it with --v"),
    ("logging/vmodule", "set --v"),
    ("showHiddenMetricsForVersion", "no metric is hidden"),
    ("iptables/minSyncPeriod", "a change waits 10 ms for others, and no longer"),
    ("ipvs/minSyncPeriod", "a change waits 10 ms for others, and no longer"),
    ("nftables/minSyncPeriod", "a change waits 10 ms for others, and no longer"),
    ("oomScoreAdj", "set it in KubeletConfiguration: there is one process"),
    ("configSyncPeriod", "watches need no repeated lists"),
    ("portRange", "it has been without effect since Kubernetes 1.9"),
    ("winkernel", "this is no Windows node"),
    ("windowsRunAsService", "this is no Windows node"),
];

/// Reads `--proxy-config`.
///
/// # Errors
/// Names the file, and the field and line where possible.
pub fn load_proxy_config(path: &Path) -> Result<LoadedProxy, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    let mut warnings = Vec::new();
    let fields = read::<KubeProxyConfig>(path, &text, KIND, &mut warnings)?;
    for (field, reason) in WITHOUT_EFFECT {
        if fields.pointer(&format!("/{field}")).is_some_and(says_something) {
            warnings.push(format!("{}: {} has no effect: {reason}", path.display(), field.replace('/', ".")));
        }
    }
    let loaded = proxy_config_of(path, fields)?;
    Ok(LoadedProxy { warnings, ..loaded })
}

/// The configuration of some fields, which `origin` wrote.
///
/// # Errors
/// Names the origin and the field.
pub fn proxy_config_of(origin: &Path, fields: Value) -> Result<LoadedProxy, ConfigError> {
    let written = serde_json::from_value(fields).map_err(ConfigError::Flag)?;
    let mut proxy = KubeProxyConfig::resolve(written);
    proxy.fill_addresses();
    proxy.validate().map_err(|invalid| ConfigError::Invalid { origin: origin.display().to_string(), invalid })?;
    Ok(LoadedProxy { proxy, warnings: Vec::new() })
}

/// kubeadm writes every field, most of them with the value that means the default.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => {
            !text.is_empty() && !text.parse::<GoDuration>().is_ok_and(|duration| duration.0.is_zero())
        }
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => fields.values().any(says_something),
    }
}

impl KubeProxyConfig {
    /// What is used where no file is named: kube-proxy's defaults, but for the mode.
    pub fn without_file() -> Self {
        let mut config = Self { mode: "nftables".to_owned(), ..Self::default() };
        config.fill_addresses();
        config
    }

    /// Which rules to write.
    pub fn proxy_mode(&self) -> ProxyMode {
        match self.mode.as_str() {
            "nftables" => ProxyMode::Nftables,
            "ipvs" => ProxyMode::Ipvs,
            _ => ProxyMode::InsteadOfIptables,
        }
    }

    /// The packet-mark bit, whether all traffic to cluster IPs is masqueraded, and the sync period, of the mode in use.
    pub fn of_mode(&self) -> (i32, bool, GoDuration) {
        match self.proxy_mode() {
            ProxyMode::Nftables => {
                (self.nftables.masquerade_bit, self.nftables.masquerade_all, self.nftables.sync_period)
            }
            // Upstream too takes the bit of iptables for ipvs.
            ProxyMode::Ipvs => (self.iptables.masquerade_bit, self.iptables.masquerade_all, self.ipvs.sync_period),
            ProxyMode::InsteadOfIptables => {
                (self.iptables.masquerade_bit, self.iptables.masquerade_all, self.iptables.sync_period)
            }
        }
    }

    /// Where health is served.
    pub fn healthz_address(&self) -> Option<SocketAddr> {
        self.healthz_bind_address.parse().ok()
    }

    /// Where metrics are served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_bind_address.parse().ok()
    }

    /// The addresses' defaults depend on the family of `bindAddress`; a port that is missing is added.
    fn fill_addresses(&mut self) {
        let v6 = self.bind_address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6());
        for (field, default, port) in [
            (&mut self.healthz_bind_address, if v6 { "::" } else { "0.0.0.0" }, 10256),
            (&mut self.metrics_bind_address, if v6 { "::1" } else { "127.0.0.1" }, 10249),
        ] {
            let text = if field.is_empty() { default } else { field.as_str() };
            let bare = text.trim_start_matches('[').trim_end_matches(']');
            if let Ok(address) = bare.parse::<IpAddr>() {
                *field = SocketAddr::new(address, port).to_string();
            }
        }
    }

    /// The first field that makes no sense.
    fn validate(&self) -> Result<(), Invalid> {
        let one_of = |field, value: &String, allowed: &[&str]| {
            let list = || allowed.iter().filter(|choice| !choice.is_empty()).copied().collect::<Vec<_>>().join(", ");
            if allowed.contains(&value.as_str()) {
                return Ok(());
            }
            Err(invalid(field, value, format!("must be one of {}, or empty", list())))
        };
        one_of("mode", &self.mode, &["", "iptables", "ipvs", "nftables"])?;
        let modes = ["", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];
        one_of("detectLocalMode", &self.detect_local_mode, &modes)?;
        let schedulers = ["", "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "mh", "dh", "sed", "nq"];
        one_of("ipvs.scheduler", &self.ipvs.scheduler, &schedulers)?;
        for (mode, field, name) in [
            ("BridgeInterface", "detectLocal.bridgeInterface", &self.detect_local.bridge_interface),
            ("InterfaceNamePrefix", "detectLocal.interfaceNamePrefix", &self.detect_local.interface_name_prefix),
        ] {
            // The kernel's names have at most 15 bytes, and these are put between quotes in a rule.
            let fits = name.len() <= 15 && !name.contains(['"', '/', '*', '\\']) && !name.contains(char::is_whitespace);
            if (self.detect_local_mode == mode && name.is_empty()) || !fits {
                return Err(invalid(field, name, "must be the name of an interface, or its beginning"));
            }
        }
        for (field, bit) in [
            ("iptables.masqueradeBit", self.iptables.masquerade_bit),
            ("nftables.masqueradeBit", self.nftables.masquerade_bit),
        ] {
            if !(0..=31).contains(&bit) {
                return Err(invalid(field, bit, "must be between 0 and 31"));
            }
        }
        for (field, number) in
            [("conntrack.maxPerCore", self.conntrack.max_per_core), ("conntrack.min", self.conntrack.min)]
        {
            if number < 0 {
                return Err(invalid(field, number, "must not be negative"));
            }
        }
        if !(-1000..=1000).contains(&self.oom_score_adj) {
            return Err(invalid("oomScoreAdj", self.oom_score_adj, "must be between -1000 and 1000"));
        }
        self.bind_address
            .parse::<IpAddr>()
            .map_err(|_| invalid("bindAddress", &self.bind_address, "is not an IP address"))?;
        for (field, address) in
            [("healthzBindAddress", &self.healthz_bind_address), ("metricsBindAddress", &self.metrics_bind_address)]
        {
            let usable = address.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0);
            if !usable {
                return Err(invalid(field, address, "must be IP:port"));
            }
        }
        cidrs("ipvs.excludeCIDRs", self.ipvs.exclude_cidrs.iter().map(String::as_str))?;
        if self.detect_local_mode == "ClusterCIDR" {
            cidrs("clusterCIDR", self.cluster_cidr.split(',').filter(|text| !text.is_empty()))?;
        }
        if self.node_port_addresses.iter().any(|text| text == "primary") {
            if self.node_port_addresses.len() > 1 {
                let all = self.node_port_addresses.join(",");
                return Err(invalid("nodePortAddresses", all, "must be either primary alone or address ranges"));
            }
            return Ok(());
        }
        cidrs("nodePortAddresses", self.node_port_addresses.iter().map(String::as_str))
    }
}

fn cidrs<'a>(field: &'static str, mut texts: impl Iterator<Item = &'a str>) -> Result<(), Invalid> {
    match texts.find(|text| !is_cidr(text)) {
        Some(text) => Err(invalid(field, text, "is not an address range")),
        None => Ok(()),
    }
}

fn is_cidr(text: &str) -> bool {
    let parse = || {
        let (address, bits) = text.trim().split_once('/')?;
        let width = if address.parse::<IpAddr>().ok()?.is_ipv4() { 32 } else { 128 };
        Some(bits.parse::<u8>().ok()? <= width)
    };
    parse() == Some(true)
}

#[cfg(test)]
mod tests;
