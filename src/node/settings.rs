//! What the operator decided about this node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use stoker_model::quantity::Milli;

/// Settings of the node; `cli` fills them from KubeletConfiguration and flags.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The node's name.
    pub name: String,
    /// The host's own name, for the label and the address.
    pub hostname: String,
    /// From `--node-labels`.
    pub labels: BTreeMap<String, String>,
    /// Only at creation (A16.3).
    pub taints: Vec<Taint>,
    /// Whether to create the Node.
    pub register: bool,
    /// One of each family, primary first.
    pub addresses: Vec<IpAddr>,
    /// They were named with `--node-ip`.
    pub addresses_named: bool,
    /// `spec.providerID`, or empty.
    pub provider_id: String,
    /// A cloud controller initialises the node and sets the addresses (A16.3).
    pub external_cloud: bool,
    /// The port of the node's HTTPS API.
    pub port: u16,
    /// Upper limits of pods.
    pub max_pods: i64,
    /// Pods per core, 0 for no such limit.
    pub pods_per_core: i64,
    /// Reserved for Kubernetes' own daemons and for the system, together.
    pub reserved: BTreeMap<String, Milli>,
    /// `evictionHard`: signal to threshold (A13.4).
    pub eviction_hard: BTreeMap<String, String>,
    /// kubelet's `localStorageCapacityIsolation`: the disk is something that pods ask for.
    pub local_storage: bool,
    /// How often the machine is looked at.
    pub observe_every: Duration,
    /// How often status is written though nothing changed.
    pub report_every: Duration,
    /// `leaseDurationSeconds`.
    pub lease_seconds: i32,
    /// Images listed in the status, -1 for all.
    pub max_images: i32,
    /// Pods' directories: the `nodefs`.
    pub root_dir: PathBuf,
    /// Volumes are attached by the controller (A16.4).
    pub controller_attach_detach: bool,
    /// What this node can do that an API server may rely on (A19.4).
    pub declared_features: Vec<String>,
}

/// Why nothing can be known of the machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The host has no usable name.
    #[error("the host's name {0:?} cannot be a node's name: set --hostname-override")]
    Name(String),
}

/// The node's name: `--hostname-override`, else the host's name, in lower case (A16.1). The second value is the host's
/// name for the label `kubernetes.io/hostname`.
///
/// # Errors
/// When it is no DNS subdomain.
pub fn node_name(hostname_override: Option<&str>) -> Result<(String, String), MachineError> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = hostname_override.unwrap_or(&host).trim().to_ascii_lowercase();
    let part_fits = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(part_fits) {
        return Err(MachineError::Name(name));
    }
    Ok((name.clone(), name))
}

/// Settings for tests: nothing reserved, nothing set.
#[cfg(test)]
pub(super) fn tests_support() -> NodeSettings {
    NodeSettings {
        name: "n1".into(),
        hostname: "n1".into(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        register: true,
        addresses: vec![IpAddr::from([10, 0, 0, 1])],
        addresses_named: true,
        provider_id: String::new(),
        external_cloud: false,
        port: 10250,
        max_pods: 110,
        pods_per_core: 0,
        reserved: BTreeMap::new(),
        eviction_hard: BTreeMap::new(),
        local_storage: true,
        observe_every: Duration::from_secs(10),
        report_every: Duration::from_secs(300),
        lease_seconds: 40,
        max_images: 50,
        root_dir: PathBuf::from("/"),
        controller_attach_detach: true,
        declared_features: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_subdomains() {
        // A16.1
        assert_eq!(node_name(Some("Node-1.Example")).expect("a name").0, "node-1.example");
        for bad in ["a_b", "-a", "a..b", ""] {
            assert!(node_name(Some(bad)).is_err(), "{bad:?}");
        }
        let own = node_name(None).expect("the host's name").0;
        assert_eq!(own, own.to_ascii_lowercase());
    }
}
