//! What a runtime asks: the environment and the network configuration of one call, and what is wrong with them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;

use crate::network::cidr::Cidr;
use crate::network::leases::Owner;
use crate::network::table::PortMapping;

/// Versions of the CNI specification that we speak.
pub(super) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The specification's error codes.
const INCOMPATIBLE_VERSION: u32 = 1;
const UNSUPPORTED_FIELD: u32 = 2;
pub(super) const UNKNOWN_CONTAINER: u32 = 3;
pub(super) const INVALID_ENVIRONMENT: u32 = 4;
pub(super) const IO_FAILURE: u32 = 5;
const DECODE_FAILURE: u32 = 6;
const INVALID_CONFIG: u32 = 7;
/// For STATUS.
pub(super) const NOT_AVAILABLE: u32 = 50;
/// Ours: what is in the kernel is not what it should be.
pub(super) const DIFFERENT: u32 = 100;

const LONGEST_INTERFACE: usize = 15;

/// An error as the runtime reads it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    code: u32,
    message: String,
}

impl Failure {
    pub(super) fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As JSON of that version.
    pub(super) fn text(&self, version: &str) -> String {
        json!({"cniVersion": version, "code": self.code, "msg": self.message}).to_string()
    }
}

/// One call.
#[derive(Debug)]
pub(super) enum Call {
    Version { asked: String },
    Loopback(PodCall),
    Pod(PodCall),
    Node(NodeCall),
}

/// What is to be done for one sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PodCommand {
    Add,
    Del,
    Check,
}

/// A call for one sandbox.
#[derive(Debug)]
pub(super) struct PodCall {
    pub(super) command: PodCommand,
    pub(super) owner: Owner,
    /// `None` only for DEL.
    pub(super) namespace: Option<PathBuf>,
    pub(super) config: Config,
}

/// What is to be done for the whole node.
#[derive(Debug)]
pub(super) enum NodeCommand {
    Status,
    /// Whose leases stay.
    Gc(BTreeSet<Owner>),
}

/// A call for the whole node.
#[derive(Debug)]
pub(super) struct NodeCall {
    pub(super) command: NodeCommand,
    pub(super) config: Config,
}

/// The network configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Config {
    pub(super) cni_version: String,
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Ranges of the node's pods, from `spec.podCIDRs`; an address of each goes to a pod.
    pub(super) ranges: Vec<Cidr>,
    /// Where leases are.
    pub(super) state_dir: PathBuf,
    /// Of the pod's interface.
    pub(super) mtu: u32,
    pub(super) runtime_config: RuntimeConfig,
    /// The result of the plugin before, or for CHECK and DEL our own.
    pub(super) prev_result: Option<serde_json::Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<Attachment>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RuntimeConfig {
    pub(super) port_mappings: Vec<PortMapping>,
    bandwidth: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container: String,
    #[serde(rename = "ifname")]
    interface: String,
}

/// Reads a call.
pub(super) fn read(environment: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<Call, Failure> {
    let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
    let required = |name: &str| {
        variable(name).ok_or_else(|| Failure::new(INVALID_ENVIRONMENT, format!("the variable {name} is missing")))
    };
    let command = required("CNI_COMMAND")?;
    let decoded = serde_json::from_slice::<Config>(input);
    if command == "VERSION" {
        // Whatever else stands in the configuration is not our matter here.
        let asked = super::answer::version_in(input);
        return Ok(Call::Version { asked });
    }
    let mut config = decoded
        .map_err(|error| Failure::new(DECODE_FAILURE, format!("the network configuration cannot be read: {error}")))?;
    if config.cni_version.is_empty() {
        config.cni_version = "0.3.1".to_owned();
    }
    if !VERSIONS.contains(&config.cni_version.as_str()) {
        let message = format!("cniVersion {} is not supported: use one of {}", config.cni_version, VERSIONS.join(", "));
        return Err(Failure::new(INCOMPATIBLE_VERSION, message));
    }
    let newer = |than: &str| config.cni_version.as_str() >= than;
    match command.as_str() {
        "STATUS" if newer("1.1.0") => {
            check_config(&config, true)?;
            Ok(Call::Node(NodeCall { command: NodeCommand::Status, config }))
        }
        "GC" if newer("1.1.0") => {
            check_config(&config, true)?;
            let Some(valid) = &config.valid_attachments else {
                return Err(Failure::new(INVALID_CONFIG, "GC needs the key cni.dev/valid-attachments"));
            };
            let owner = |of: &Attachment| Owner { container: of.container.clone(), interface: of.interface.clone() };
            let valid = valid.iter().map(owner).collect();
            Ok(Call::Node(NodeCall { command: NodeCommand::Gc(valid), config }))
        }
        "CHECK" if !newer("0.4.0") => {
            Err(Failure::new(INCOMPATIBLE_VERSION, format!("CHECK does not exist in CNI {}", config.cni_version)))
        }
        "ADD" | "DEL" | "CHECK" => {
            let container = required("CNI_CONTAINERID")?;
            let interface = required("CNI_IFNAME")?;
            check_names(&container, &interface)?;
            let command = match command.as_str() {
                "ADD" => PodCommand::Add,
                "DEL" => PodCommand::Del,
                _ => PodCommand::Check,
            };
            let namespace =
                if command == PodCommand::Del { variable("CNI_NETNS") } else { Some(required("CNI_NETNS")?) };
            let call = PodCall {
                command,
                owner: Owner { container, interface },
                namespace: namespace.map(PathBuf::from),
                config,
            };
            if call.config.kind == "loopback" {
                return Ok(Call::Loopback(call));
            }
            // What was made is taken away whatever became of the ranges.
            check_config(&call.config, command == PodCommand::Del)?;
            check_sandbox(&call)?;
            Ok(Call::Pod(call))
        }
        _ => {
            let message = format!("CNI_COMMAND {command:?} does not exist in CNI {}", config.cni_version);
            Err(Failure::new(INVALID_ENVIRONMENT, message))
        }
    }
}

fn check_names(container: &str, interface: &str) -> Result<(), Failure> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !container.chars().all(legal) || !container.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(Failure::new(INVALID_ENVIRONMENT, format!("CNI_CONTAINERID {container:?} has illegal characters")));
    }
    let illegal = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if interface.len() > LONGEST_INTERFACE || [".", ".."].contains(&interface) || interface.chars().any(illegal) {
        let message = format!("CNI_IFNAME {interface:?} cannot be the name of an interface");
        return Err(Failure::new(INVALID_ENVIRONMENT, message));
    }
    Ok(())
}

fn check_config(config: &Config, may_lack_ranges: bool) -> Result<(), Failure> {
    let wrong = |message: &str| Err(Failure::new(INVALID_CONFIG, message));
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if config.name.is_empty() || !config.name.chars().all(legal) {
        return wrong("name: a network needs a name of letters, digits, '.', '_' and '-'");
    }
    if !config.state_dir.is_absolute() {
        return wrong("stateDir: the absolute path of the folder for leases is missing");
    }
    let of_family = |ipv4: bool| config.ranges.iter().filter(|range| range.is_ipv4() == ipv4).count();
    if of_family(true) > 1 || of_family(false) > 1 {
        return wrong("ranges: at most one range of each family");
    }
    if config.ranges.is_empty() && !may_lack_ranges {
        return wrong("ranges: there is none, so the node has no spec.podCIDRs yet");
    }
    Ok(())
}

fn check_sandbox(call: &PodCall) -> Result<(), Failure> {
    if call.config.runtime_config.bandwidth.is_some() {
        return Err(Failure::new(UNSUPPORTED_FIELD, "runtimeConfig.bandwidth is not supported: do not claim it"));
    }
    if call.command == PodCommand::Add && call.config.prev_result.is_some() {
        return Err(Failure::new(INVALID_CONFIG, "prevResult: this plugin must be the first of its list"));
    }
    if call.command == PodCommand::Check && call.config.prev_result.is_none() {
        return Err(Failure::new(INVALID_CONFIG, "prevResult: CHECK needs the result of ADD"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"pods","type":"stoker-cni","stateDir":"/run/x","mtu":1500,
        "ranges":["10.244.0.0/24"],"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}]}}"#;

    fn call(command: &str, config: &str, without: &str) -> Result<Call, Failure> {
        let environment = |name: &str| {
            let value = match name {
                _ if name == without => return None,
                "CNI_COMMAND" => command,
                "CNI_CONTAINERID" => "c1",
                "CNI_IFNAME" => "eth0",
                "CNI_NETNS" => "/run/netns/x",
                _ => return None,
            };
            Some(value.to_owned())
        };
        read(environment, config.as_bytes())
    }

    #[test]
    fn calls_are_read() {
        let Call::Pod(add) = call("ADD", CONFIG, "").expect("valid") else { panic!("not for a pod") };
        assert_eq!((add.command, add.owner.interface.as_str(), add.config.mtu), (PodCommand::Add, "eth0", 1500));
        assert_eq!(add.config.runtime_config.port_mappings[0].container_port, 8080);
        let Call::Pod(del) = call("DEL", CONFIG, "CNI_NETNS").expect("valid") else { panic!("not for a pod") };
        assert_eq!(del.namespace, None);
        assert!(matches!(call("STATUS", CONFIG, ""), Ok(Call::Node(NodeCall { command: NodeCommand::Status, .. }))));
        let gc = CONFIG.replacen('{', r#"{"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}],"#, 1);
        let Ok(Call::Node(NodeCall { command: NodeCommand::Gc(valid), .. })) = call("GC", &gc, "") else {
            panic!("not GC")
        };
        assert_eq!(valid.len(), 1);
        let loopback = r#"{"cniVersion":"0.3.1","name":"cni-loopback","type":"loopback"}"#;
        assert!(matches!(call("ADD", loopback, ""), Ok(Call::Loopback(_))));
        assert!(matches!(call("VERSION", "nonsense", ""), Ok(Call::Version { .. })));
    }

    #[test]
    fn wrong_calls_get_the_specifications_code() {
        let changed = |from: &str, to: &str| CONFIG.replace(from, to);
        for (command, config, without, code, names) in [
            ("ADD", "{".to_owned(), "", 6, "cannot be read"),
            ("ADD", changed("10.244.0.0/24", "10.244.0.0/99"), "", 6, "10.244.0.0/99"),
            ("ADD", changed("1.1.0", "2.0.0"), "", 1, "2.0.0"),
            ("ADD", changed("1.1.0", "0.2.0"), "", 1, "0.2.0"),
            ("CHECK", changed("1.1.0", "0.3.1"), "", 1, "CHECK"),
            ("GC", changed("1.1.0", "1.0.0"), "", 4, "GC"),
            ("STATUS", changed("1.1.0", "1.0.0"), "", 4, "STATUS"),
            ("PLUG", CONFIG.to_owned(), "", 4, "PLUG"),
            ("ADD", CONFIG.to_owned(), "CNI_CONTAINERID", 4, "CNI_CONTAINERID"),
            ("ADD", CONFIG.to_owned(), "CNI_IFNAME", 4, "CNI_IFNAME"),
            ("ADD", CONFIG.to_owned(), "CNI_NETNS", 4, "CNI_NETNS"),
            ("ADD", CONFIG.to_owned(), "CNI_COMMAND", 4, "CNI_COMMAND"),
            ("ADD", changed(r#""pods""#, r#""../pods""#), "", 7, "name"),
            ("ADD", changed("/run/x", "run/x"), "", 7, "stateDir"),
            ("ADD", changed(r#"["10.244.0.0/24"]"#, "[]"), "", 7, "podCIDRs"),
            ("ADD", changed(r#"["10.244.0.0/24"]"#, r#"["10.0.0.0/24","10.1.0.0/24"]"#), "", 7, "one range"),
            ("ADD", changed("\"mtu\"", "\"prevResult\":{},\"mtu\""), "", 7, "first"),
            ("CHECK", CONFIG.to_owned(), "", 7, "prevResult"),
            ("GC", CONFIG.to_owned(), "", 7, "valid-attachments"),
            ("ADD", changed("\"portMappings\"", "\"bandwidth\":{},\"portMappings\""), "", 2, "bandwidth"),
        ] {
            let failure = call(command, &config, without).expect_err(names);
            assert_eq!(failure.code, code, "{failure}");
            assert!(failure.message.contains(names), "{failure}");
        }
        assert!(check_names("-a", "eth0").is_err() && check_names("a b", "eth0").is_err());
        for interface in ["a/b", "..", "sixteenletters16", "a b", "a:b"] {
            assert!(check_names("a", interface).is_err(), "{interface}");
        }
    }
}
