//! What a runtime is told: results in the shape of each version of the specification.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::request::VERSIONS;
use crate::network::cidr::Cidr;
use crate::network::rtnl::{Mac, mac_text};

/// The version that a configuration names, for answers to one that cannot be read any further.
pub(super) fn version_in(input: &[u8]) -> String {
    let config: Value = serde_json::from_slice(input).unwrap_or_default();
    let version = config["cniVersion"].as_str().filter(|version| VERSIONS.contains(version));
    version.unwrap_or("1.1.0").to_owned()
}

/// The answer to VERSION.
pub(super) fn versions(asked: &str) -> String {
    json!({"cniVersion": asked, "supportedVersions": VERSIONS}).to_string()
}

/// An interface in a result.
pub(super) struct Interface<'a> {
    pub(super) name: &'a str,
    pub(super) mac: Mac,
    /// `None` on the node.
    pub(super) sandbox: Option<&'a str>,
    pub(super) mtu: u32,
}

/// The answer to ADD: the interfaces, and the addresses of the last one with their gateways.
pub(super) fn result(version: &str, interfaces: &[Interface<'_>], addresses: &[(IpAddr, Option<IpAddr>)]) -> String {
    let interface = |of: &Interface<'_>| {
        let mut value = json!({"name": of.name, "mac": mac_text(of.mac)});
        if let Some(sandbox) = of.sandbox {
            value["sandbox"] = sandbox.into();
        }
        if version >= "1.1.0" {
            value["mtu"] = of.mtu.into();
        }
        value
    };
    let ip = |(address, gateway): &(IpAddr, Option<IpAddr>)| {
        let prefix = if address.is_loopback() && address.is_ipv4() { 8 } else { Cidr::single(*address).prefix() };
        let mut value =
            json!({"address": format!("{address}/{prefix}"), "interface": interfaces.len().saturating_sub(1)});
        if let Some(gateway) = gateway {
            value["gateway"] = gateway.to_string().into();
        }
        if version < "1.0.0" {
            value["version"] = if address.is_ipv4() { "4" } else { "6" }.into();
        }
        value
    };
    let routes: Vec<Value> = addresses
        .iter()
        .filter_map(|(address, gateway)| {
            let to = if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            gateway.map(|gateway| json!({"dst": to, "gw": gateway.to_string()}))
        })
        .collect();
    json!({
        "cniVersion": version,
        "interfaces": interfaces.iter().map(interface).collect::<Vec<_>>(),
        "ips": addresses.iter().map(ip).collect::<Vec<_>>(),
        "routes": routes,
        "dns": {},
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_own_shape() {
        let interfaces = [
            Interface { name: "stk1", mac: [2; 6], sandbox: None, mtu: 1400 },
            Interface { name: "eth0", mac: [2; 6], sandbox: Some("/n"), mtu: 1400 },
        ];
        let ips = [("10.0.0.2".parse().expect("an address"), Some("169.254.1.1".parse().expect("an address")))];
        let of = |version| serde_json::from_str::<Value>(&result(version, &interfaces, &ips)).expect("JSON");
        let (old, new, newest) = (of("0.4.0"), of("1.0.0"), of("1.1.0"));
        assert_eq!(old["ips"][0]["version"], "4");
        assert!(new["ips"][0]["version"].is_null() && new["interfaces"][1]["mtu"].is_null());
        assert_eq!(newest["interfaces"][1]["mtu"], 1400);
        assert_eq!(new["ips"][0]["address"], "10.0.0.2/32");
        assert_eq!((&new["ips"][0]["interface"], &new["interfaces"][1]["sandbox"]), (&1.into(), &"/n".into()));
        assert_eq!(new["routes"][0]["dst"], "0.0.0.0/0");
        assert_eq!(version_in(b"{"), "1.1.0");
        assert_eq!(version_in(br#"{"cniVersion":"0.4.0"}"#), "0.4.0");
    }
}
