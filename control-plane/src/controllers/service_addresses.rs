//! Cluster addresses and node ports of Services (C5.12): asked synchronously by the API, so that two creations at the
//! same time never get the same.
//!
//! Everything handed out stands in memory and is rebuilt from the stored Services at start, before the API serves.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::api::{Allocation, ServiceAllocator};
use crate::resources::field::FieldError;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, text};

/// Node ports that may be given to Services.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// Below this node ports are only given to who asks for one: upstream's static band, min(max(16, 2768/32), 128).
const FIRST_DYNAMIC_PORT: u16 = 30086;

/// A range of addresses such as `10.96.0.0/12`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr {
    base: u128,
    prefix: u32,
    is_v4: bool,
}

/// Why a text is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of addresses: write one like 10.96.0.0/12")]
pub struct CidrError(String);

impl std::str::FromStr for Cidr {
    type Err = CidrError;

    fn from_str(range: &str) -> Result<Self, CidrError> {
        let error = || CidrError(range.to_owned());
        let (address, prefix) = range.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix: u32 = prefix.parse().map_err(|_| error())?;
        let (number, bits) = number_of(address);
        if prefix > bits {
            return Err(error());
        }
        let host_bits = bits - prefix;
        let base = if host_bits == 128 { 0 } else { number >> host_bits << host_bits };
        Ok(Self { base, prefix, is_v4: bits == 32 })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address(0), self.prefix)
    }
}

fn number_of(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

impl Cidr {
    const fn host_bits(self) -> u32 {
        if self.is_v4 { 32 - self.prefix } else { 128 - self.prefix }
    }

    /// How many addresses it has, at most 2^64.
    pub fn size(self) -> u128 {
        1 << self.host_bits().min(64)
    }

    /// The address at a place; 1 is the first that can be used.
    pub fn address(self, offset: u128) -> IpAddr {
        let number = self.base + offset;
        if self.is_v4 {
            IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(number))
        }
    }

    /// The place of an address, unless it is the network's own or the broadcast address.
    pub(super) fn contains(self, address: IpAddr) -> bool {
        self.offset(address).is_some()
    }

    fn offset(self, address: IpAddr) -> Option<u128> {
        if address.is_ipv4() != self.is_v4 {
            return None;
        }
        let offset = number_of(address).0.checked_sub(self.base)?;
        (offset > 0 && offset < self.size() - u128::from(self.is_v4)).then_some(offset)
    }

    /// Where addresses for those who ask for none begin: above min(max(16, size/16), 256).
    fn first_dynamic(self) -> u128 {
        if self.size() <= 16 { 1 } else { (self.size() / 16).clamp(16, 256) }
    }

    /// The parts of that prefix length.
    pub(super) fn part(self, prefix: u32, index: u128) -> Option<Self> {
        let bits = if self.is_v4 { 32 } else { 128 };
        if prefix < self.prefix || prefix > bits || index >> (prefix - self.prefix).min(127) != 0 {
            return None;
        }
        Some(Self { base: self.base + (index << (bits - prefix)), prefix, is_v4: self.is_v4 })
    }

    /// Which of the parts of its length this one is.
    pub(super) fn index_of(self, part: Self) -> Option<u128> {
        let bits = if self.is_v4 { 32 } else { 128 };
        let inside = part.is_v4 == self.is_v4 && part.prefix >= self.prefix;
        let index = part.base.checked_sub(self.base)?.checked_shr(bits - part.prefix)?;
        (inside && self.part(part.prefix, index) == Some(part)).then_some(index)
    }

    pub(super) const fn is_v4(self) -> bool {
        self.is_v4
    }
}

#[derive(Debug, Default)]
struct Used {
    addresses: BTreeSet<u128>,
    ports: BTreeSet<u16>,
    /// Where the search goes on, so that what was freed is not given out again at once.
    next_address: u128,
    next_port: u16,
}

/// Gives Services their addresses and node ports.
#[derive(Debug)]
pub struct ServiceAddresses {
    range: Cidr,
    used: Mutex<Used>,
}

impl ServiceAddresses {
    /// All of `range` is free but what these stored Services hold.
    pub fn new(range: Cidr, stored: &[Value]) -> Self {
        let mut used = Used { next_address: range.first_dynamic(), next_port: FIRST_DYNAMIC_PORT, ..Used::default() };
        for service in stored {
            used.addresses.extend(addresses_of(service).filter_map(|address| range.offset(address)));
            used.ports.extend(ports_of(service));
        }
        Self { range, used: Mutex::new(used) }
    }

    fn with<R>(&self, act: impl FnOnce(&mut Used) -> R) -> R {
        // Nothing under this lock panics half way through a change.
        act(&mut self.used.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take_address(&self, used: &mut Used) -> Option<u128> {
        let last = self.range.size() - u128::from(self.range.is_v4);
        let first = self.range.first_dynamic();
        let found = (used.next_address..last)
            .chain(first..used.next_address)
            .chain(1..first)
            .find(|offset| !used.addresses.contains(offset))?;
        used.addresses.insert(found);
        used.next_address = if found + 1 < last { (found + 1).max(first) } else { first };
        Some(found)
    }

    fn take_port(used: &mut Used) -> Option<u16> {
        let (first, last) = (FIRST_DYNAMIC_PORT, *NODE_PORTS.end());
        let found = (used.next_port..=last)
            .chain(first..used.next_port)
            .chain(*NODE_PORTS.start()..first)
            .find(|port| !used.ports.contains(port))?;
        used.ports.insert(found);
        used.next_port = if found < last { (found + 1).max(first) } else { first };
        Some(found)
    }

    /// Reserves what the new object needs beyond what the old one holds; on an error the caller gives it all back.
    fn reserve(
        &self,
        used: &mut Used,
        service: &mut Value,
        old: Option<&Value>,
        taken: &mut Allocation,
    ) -> Result<(), Vec<FieldError>> {
        let held: Vec<IpAddr> = old.into_iter().flat_map(addresses_of).collect();
        self.reserve_address(used, service, &held, taken)?;
        let held: BTreeSet<u16> = old.into_iter().flat_map(ports_of).collect();
        reserve_ports(used, service, old, &held, taken)
    }

    fn reserve_address(
        &self,
        used: &mut Used,
        service: &mut Value,
        held: &[IpAddr],
        taken: &mut Allocation,
    ) -> Result<(), Vec<FieldError>> {
        let spec = &mut service["spec"];
        if text(spec, "type") == "ExternalName" {
            return Ok(());
        }
        if text(spec, "clusterIP").is_empty()
            && let Some(first) = spec["clusterIPs"].get(0).and_then(Value::as_str)
        {
            spec["clusterIP"] = json!(first);
        }
        let family = if self.range.is_v4 { "IPv4" } else { "IPv6" };
        if text(spec, "ipFamilyPolicy").is_empty() {
            spec["ipFamilyPolicy"] = json!("SingleStack");
        }
        if spec["ipFamilies"].as_array().is_none_or(Vec::is_empty) {
            spec["ipFamilies"] = json!([family]);
        }
        let asked = text(spec, "clusterIP").to_owned();
        if asked == "None" {
            spec["clusterIPs"] = json!(["None"]);
            return Ok(());
        }
        let failed = |value: &Value, why: String| vec![FieldError::invalid("spec.clusterIPs", value.clone(), why)];
        let address = if asked.is_empty() {
            let offset = self.take_address(used);
            let full = || failed(&json!([]), format!("failed to allocate a serviceIP: range {} is full", self.range));
            let address = self.range.address(offset.ok_or_else(full)?);
            taken.addresses.push(address.to_string());
            address
        } else {
            let value = json!([asked]);
            let not_here = || {
                let range = self.range;
                failed(
                    &value,
                    format!(
                        "failed to allocate IP {asked}: the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}"
                    ),
                )
            };
            let address: IpAddr = asked.parse().map_err(|_| not_here())?;
            if !held.contains(&address) {
                let offset = self.range.offset(address).ok_or_else(not_here)?;
                if !used.addresses.insert(offset) {
                    return Err(failed(
                        &value,
                        format!("failed to allocate IP {asked}: provided IP is already allocated"),
                    ));
                }
                taken.addresses.push(address.to_string());
            }
            address
        };
        spec["clusterIP"] = json!(address.to_string());
        spec["clusterIPs"] = json!([address.to_string()]);
        Ok(())
    }
}

fn wants_node_ports(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn wants_health_port(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn reserve_ports(
    used: &mut Used,
    service: &mut Value,
    old: Option<&Value>,
    held: &BTreeSet<u16>,
    taken: &mut Allocation,
) -> Result<(), Vec<FieldError>> {
    let spec = &mut service["spec"];
    let automatic = wants_node_ports(spec);
    let has_ports = matches!(text(spec, "type"), "NodePort" | "LoadBalancer");
    let wants_health = wants_health_port(spec);
    let mut own = BTreeSet::new();
    let old_ports: Vec<&Value> = old.into_iter().flat_map(|old| items(&old["spec"], "ports")).collect();
    for (index, port) in spec["ports"].as_array_mut().into_iter().flatten().enumerate() {
        let asked = port["nodePort"].as_u64().filter(|asked| *asked != 0);
        if !has_ports {
            // A Service that stopped being a NodePort sends its old ports along; who asks for others is refused by
            // validation.
            if let (Some(asked), Some(object)) = (asked, port.as_object_mut())
                && u16::try_from(asked).is_ok_and(|asked| held.contains(&asked))
            {
                object.remove("nodePort");
            }
            continue;
        }
        let same = |other: &&&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        let before = old_ports.iter().find(same).and_then(|p| p["nodePort"].as_u64()).filter(|p| *p != 0);
        let path = format!("spec.ports[{index}].nodePort");
        match asked.or(before.filter(|_| automatic)) {
            Some(number) => {
                let number = in_range(&path, number)?;
                if !own.contains(&number) && !held.contains(&number) {
                    if !used.ports.insert(number) {
                        return Err(vec![FieldError::invalid(path, number, "provided port is already allocated")]);
                    }
                    taken.ports.push(number);
                }
                own.insert(number);
                port["nodePort"] = json!(number);
            }
            None if automatic => {
                let number = ServiceAddresses::take_port(used).ok_or_else(|| {
                    vec![FieldError::invalid(path, 0, "failed to allocate a nodePort: range is full")]
                })?;
                taken.ports.push(number);
                own.insert(number);
                port["nodePort"] = json!(number);
            }
            None => {}
        }
    }
    if !wants_health {
        return Ok(());
    }
    let path = "spec.healthCheckNodePort";
    let before = old.and_then(|old| old["spec"]["healthCheckNodePort"].as_u64()).filter(|port| *port != 0);
    let number = match spec["healthCheckNodePort"].as_u64().filter(|port| *port != 0).or(before) {
        Some(number) => {
            let number = in_range(path, number)?;
            if !held.contains(&number) {
                if !used.ports.insert(number) {
                    return Err(vec![FieldError::invalid(path, number, "provided port is already allocated")]);
                }
                taken.ports.push(number);
            }
            number
        }
        None => {
            let number = ServiceAddresses::take_port(used)
                .ok_or_else(|| vec![FieldError::invalid(path, 0, "failed to allocate a nodePort: range is full")])?;
            taken.ports.push(number);
            number
        }
    };
    spec["healthCheckNodePort"] = json!(number);
    Ok(())
}

fn in_range(path: &str, number: u64) -> Result<u16, Vec<FieldError>> {
    u16::try_from(number).ok().filter(|number| NODE_PORTS.contains(number)).ok_or_else(|| {
        let range = format!("{}-{}", NODE_PORTS.start(), NODE_PORTS.end());
        let detail = format!("provided port is not in the valid range. The range of valid ports is {range}");
        vec![FieldError::invalid(path, number, detail)]
    })
}

pub(super) fn addresses_of(service: &Value) -> impl Iterator<Item = IpAddr> {
    let spec = &service["spec"];
    let mut all: Vec<IpAddr> = items(spec, "clusterIPs").filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    if all.is_empty() {
        all.extend(text(spec, "clusterIP").parse::<IpAddr>().ok());
    }
    all.into_iter()
}

fn ports_of(service: &Value) -> impl Iterator<Item = u16> {
    let spec = &service["spec"];
    let ports = items(spec, "ports").map(|port| &port["nodePort"]).chain([&spec["healthCheckNodePort"]]);
    let all: Vec<u16> = ports.filter_map(|p| u16::try_from(p.as_u64()?).ok()).filter(|port| *port != 0).collect();
    all.into_iter()
}

#[async_trait]
impl ServiceAllocator for ServiceAddresses {
    async fn allocate(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Allocation, StatusError> {
        if let Some(old) = old {
            keep_address(service, old);
        }
        let mut taken = Allocation::default();
        let result = self.with(|used| {
            let result = self.reserve(used, service, old, &mut taken);
            if result.is_err() || dry_run {
                give_back(self.range, used, &taken.addresses, &taken.ports);
                taken.addresses.clear();
                taken.ports.clear();
            }
            result
        });
        if let Err(errors) = result {
            let name = text(&service["metadata"], "name").to_owned();
            return Err(StatusError::invalid_kind("", "Service", &name, &errors));
        }
        if let (Some(old), false) = (old, dry_run) {
            let (kept, kept_ports): (Vec<_>, Vec<_>) = (addresses_of(service).collect(), ports_of(service).collect());
            let gone = addresses_of(old).filter(|address| !kept.contains(address));
            taken.freed_addresses = gone.map(|address| address.to_string()).collect();
            taken.freed_ports = ports_of(old).filter(|port| !kept_ports.contains(port)).collect();
        }
        Ok(taken)
    }

    async fn settle(&self, allocation: Allocation, written: bool) {
        let (addresses, ports) = if written {
            (&allocation.freed_addresses, &allocation.freed_ports)
        } else {
            (&allocation.addresses, &allocation.ports)
        };
        self.with(|used| give_back(self.range, used, addresses, ports));
    }

    async fn release(&self, service: &Value) {
        let addresses: Vec<String> = addresses_of(service).map(|address| address.to_string()).collect();
        let ports: Vec<u16> = ports_of(service).collect();
        self.with(|used| give_back(self.range, used, &addresses, &ports));
    }
}

/// An update that leaves the address out keeps the old one; one that makes it an ExternalName gives it up.
fn keep_address(service: &mut Value, old: &Value) {
    let spec = &mut service["spec"];
    let old = &old["spec"];
    if text(spec, "type") == "ExternalName" {
        if text(spec, "clusterIP") == text(old, "clusterIP")
            && let Some(spec) = spec.as_object_mut()
        {
            for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.remove(key);
            }
        }
        return;
    }
    if text(spec, "clusterIP").is_empty() && text(old, "type") != "ExternalName" {
        for key in ["clusterIP", "clusterIPs"] {
            spec[key] = old[key].clone();
        }
    }
}

fn give_back(range: Cidr, used: &mut Used, addresses: &[String], ports: &[u16]) {
    for offset in addresses.iter().filter_map(|address| range.offset(address.parse().ok()?)) {
        used.addresses.remove(&offset);
    }
    for port in ports {
        used.ports.remove(port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "web"}, "spec": spec})
    }

    fn node_port(port: Option<u64>) -> Value {
        service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": port}]}))
    }

    async fn create(all: &ServiceAddresses, mut service: Value) -> Result<Value, StatusError> {
        let allocation = all.allocate(&mut service, None, false).await?;
        all.settle(allocation, true).await;
        Ok(service)
    }

    fn addresses() -> ServiceAddresses {
        ServiceAddresses::new("10.96.0.0/12".parse().unwrap(), &[])
    }

    #[tokio::test]
    async fn addresses_come_from_the_upper_band_and_explicit_ones_are_checked() {
        let all = addresses();
        let first = create(&all, service(json!({"type": "ClusterIP"}))).await.unwrap();
        assert_eq!(first["spec"]["clusterIPs"], json!(["10.96.1.0"]));
        assert_eq!(first["spec"]["ipFamilies"], json!(["IPv4"]));
        let explicit = service(json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"}));
        assert_eq!(create(&all, explicit.clone()).await.unwrap()["spec"]["clusterIP"], "10.96.0.10");
        assert_eq!(
            create(&all, explicit).await.unwrap_err().message,
            r#"Service "web" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.10"]: failed to allocate IP 10.96.0.10: provided IP is already allocated"#
        );
        let outside = create(&all, service(json!({"type": "ClusterIP", "clusterIP": "10.1.0.1"}))).await.unwrap_err();
        assert_eq!(
            outside.message,
            r#"Service "web" is invalid: spec.clusterIPs: Invalid value: ["10.1.0.1"]: failed to allocate IP 10.1.0.1: the provided IP (10.1.0.1) is not in the valid range. The range of valid IPs is 10.96.0.0/12"#
        );
        let headless = create(&all, service(json!({"type": "ClusterIP", "clusterIP": "None"}))).await.unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    }

    #[tokio::test]
    async fn a_small_range_is_used_up_and_refilled() {
        let all = ServiceAddresses::new("10.0.0.0/29".parse().unwrap(), &[]);
        let mut made = Vec::new();
        for _ in 0..6 {
            made.push(create(&all, service(json!({"type": "ClusterIP"}))).await.unwrap());
        }
        assert!(create(&all, service(json!({"type": "ClusterIP"}))).await.is_err());
        all.release(&made[2]).await;
        let again = create(&all, service(json!({"type": "ClusterIP"}))).await.unwrap();
        assert_eq!(again["spec"]["clusterIP"], made[2]["spec"]["clusterIP"]);
    }

    #[tokio::test]
    async fn node_ports_are_unique_and_in_range() {
        let all = addresses();
        let given = create(&all, node_port(None)).await.unwrap();
        assert_eq!(given["spec"]["ports"][0]["nodePort"], 30086);
        create(&all, node_port(Some(30080))).await.unwrap();
        assert!(
            create(&all, node_port(Some(30080)))
                .await
                .unwrap_err()
                .message
                .ends_with("spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated")
        );
        assert!(
            create(&all, node_port(Some(80)))
                .await
                .unwrap_err()
                .message
                .ends_with("provided port is not in the valid range. The range of valid ports is 30000-32767")
        );
        let both = json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "TCP", "nodePort": 30053},
                                                         {"port": 53, "protocol": "UDP", "nodePort": 30053}]});
        create(&all, service(both)).await.unwrap();
    }

    #[tokio::test]
    async fn updates_keep_what_they_leave_out_and_free_what_they_give_up() {
        let all = addresses();
        let old = create(&all, node_port(None)).await.unwrap();
        let mut same = node_port(None);
        let allocation = all.allocate(&mut same, Some(&old), false).await.unwrap();
        assert_eq!(allocation, Allocation::default());
        assert_eq!(same["spec"]["ports"], old["spec"]["ports"]);
        assert_eq!(same["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        let mut plain = old.clone();
        plain["spec"]["type"] = json!("ClusterIP");
        let allocation = all.allocate(&mut plain, Some(&old), false).await.unwrap();
        assert_eq!(allocation.freed_ports, [30086]);
        assert_eq!(plain["spec"]["ports"][0].get("nodePort"), None);
        all.settle(allocation, true).await;
        create(&all, node_port(Some(30086))).await.unwrap();
        let mut external = plain.clone();
        external["spec"]["type"] = json!("ExternalName");
        let allocation = all.allocate(&mut external, Some(&plain), false).await.unwrap();
        assert_eq!(allocation.freed_addresses, [text(&plain["spec"], "clusterIP")]);
        assert_eq!(external["spec"].get("clusterIP"), None);
    }

    #[tokio::test]
    async fn failed_and_dry_runs_leave_nothing_reserved_and_a_restart_remembers() {
        let all = addresses();
        let mut tried = node_port(Some(30100));
        let allocation = all.allocate(&mut tried, None, false).await.unwrap();
        all.settle(allocation, false).await;
        let dry = all.allocate(&mut node_port(Some(30100)), None, true).await.unwrap();
        all.settle(dry, false).await;
        let stored = create(&all, node_port(Some(30100))).await.unwrap();
        let again = ServiceAddresses::new("10.96.0.0/12".parse().unwrap(), std::slice::from_ref(&stored));
        assert!(create(&again, node_port(Some(30100))).await.is_err());
        let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        let balanced = create(&again, service(local)).await.unwrap();
        assert_ne!(balanced["spec"]["healthCheckNodePort"], balanced["spec"]["ports"][0]["nodePort"]);
        assert_ne!(balanced["spec"]["clusterIP"], stored["spec"]["clusterIP"]);
    }
}
