//! Cluster addresses and node ports of Services (C5.12): asked synchronously by the API, so that two creations at the
//! same time never get the same.
//!
//! Everything handed out stands in memory and is rebuilt from the stored Services at start, before the API serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::cidr::Cidr;
use crate::api::{Allocation, ServiceAllocator};
use crate::resources::field::FieldError;
use crate::resources::ip_families;
use crate::resources::status::StatusError;
use crate::resources::tree::{items, items_mut, text};

/// Node ports that may be given to Services.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// Who made an IPAddress.
pub(super) const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// We, for a Service.
pub(super) const ALLOCATOR: &str = "ipallocator.k8s.io";
/// Below this node ports are only given to who asks for one: upstream's static band, min(max(16, 2768/32), 128).
const FIRST_DYNAMIC_PORT: u16 = 30086;

#[derive(Debug, Default)]
struct Used {
    /// Ranges of the cluster's own, one for each of its families; they stay.
    own: Vec<Cidr>,
    /// Ranges of ServiceCIDRs that are not on their way out.
    more: Vec<Cidr>,
    addresses: BTreeSet<IpAddr>,
    /// Addresses that IPAddresses of others hold.
    foreign: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
    /// Where the search in a range goes on, so that what was freed is not given out again at once.
    next_address: BTreeMap<Cidr, u128>,
    next_port: u16,
}

impl Used {
    fn ranges(&self) -> impl Iterator<Item = Cidr> {
        self.own.iter().chain(self.more.iter().filter(|range| !self.own.contains(range))).copied()
    }

    /// The cluster's families, its own first.
    fn families(&self) -> Vec<&'static str> {
        self.own.iter().map(|range| family(*range)).collect()
    }

    fn is_free(&self, address: IpAddr) -> bool {
        !self.addresses.contains(&address) && !self.foreign.contains(&address)
    }

    /// A free address of a family; `None`: all its ranges are full.
    fn take_address(&mut self, wanted: &str) -> Option<IpAddr> {
        let ranges: Vec<Cidr> = self.ranges().filter(|range| family(*range) == wanted).collect();
        let (range, offset) = ranges.into_iter().find_map(|range| Some((range, self.free_in(range)?)))?;
        let (first, last) = (range.first_dynamic(), range.last());
        self.next_address.insert(range, if offset < last { (offset + 1).max(first) } else { first });
        let address = range.address(offset);
        self.addresses.insert(address);
        Some(address)
    }

    fn free_in(&self, range: Cidr) -> Option<u128> {
        let (first, last) = (range.first_dynamic(), range.last());
        let next = self.next_address.get(&range).copied().unwrap_or(first);
        (next..=last).chain(first..next).chain(1..first).find(|offset| self.is_free(range.address(*offset)))
    }

    fn give_back(&mut self, addresses: &[String], ports: &[u16]) {
        for address in addresses.iter().filter_map(|address| address.parse().ok()) {
            self.addresses.remove(&address);
        }
        for port in ports {
            self.ports.remove(port);
        }
    }
}

fn family(range: Cidr) -> &'static str {
    if range.is_v4() { "IPv4" } else { "IPv6" }
}

/// The ranges of a ServiceCIDR.
pub(super) fn cidrs_of(range: &Value) -> Vec<Cidr> {
    items(&range["spec"], "cidrs").filter_map(|cidr| cidr.as_str()?.parse().ok()).collect()
}

/// Why something is not given.
enum Refusal {
    Asked(Vec<FieldError>),
    Full,
}

impl From<Vec<FieldError>> for Refusal {
    fn from(errors: Vec<FieldError>) -> Self {
        Self::Asked(errors)
    }
}

/// Gives Services their addresses and node ports.
#[derive(Debug)]
pub struct ServiceAddresses {
    used: Mutex<Used>,
}

impl ServiceAddresses {
    /// All of `ranges`, one for each family of the cluster, is free but what these stored Services hold.
    pub fn new(ranges: &[Cidr], stored: &[Value]) -> Self {
        let mut used = Used { own: ranges.to_vec(), next_port: FIRST_DYNAMIC_PORT, ..Used::default() };
        for service in stored {
            used.addresses.extend(addresses_of(service));
            used.ports.extend(ports_of(service));
        }
        Self { used: Mutex::new(used) }
    }

    /// All ServiceCIDRs: addresses come from the ranges of those that stay, too.
    pub fn set_ranges<'a>(&self, all: impl IntoIterator<Item = &'a Value>) {
        let staying = all.into_iter().filter(|range| range["metadata"]["deletionTimestamp"].is_null());
        let ranges = staying.flat_map(cidrs_of).collect();
        self.with(|used| used.more = ranges);
    }

    /// An IPAddress as it is, or, where it is gone, as it was: one that somebody else than a Service made is not given away.
    pub fn note_address(&self, object: &Value, is_there: bool) {
        let Ok(address) = text(&object["metadata"], "name").parse() else { return };
        let ours = object["metadata"]["labels"][MANAGED_BY] == ALLOCATOR;
        self.with(|used| if is_there && !ours { used.foreign.insert(address) } else { used.foreign.remove(&address) });
    }

    /// Whether a Service holds an address in one range and in none of the others.
    pub(super) fn is_held_only_in(&self, range: &[Cidr], others: &[Cidr]) -> bool {
        let inside = |ranges: &[Cidr], address: IpAddr| ranges.iter().any(|range| range.contains(address));
        self.with(|used| used.addresses.iter().any(|held| inside(range, *held) && !inside(others, *held)))
    }

    fn with<R>(&self, act: impl FnOnce(&mut Used) -> R) -> R {
        // Nothing under this lock panics half way through a change.
        act(&mut self.used.lock().unwrap_or_else(PoisonError::into_inner))
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
        used: &mut Used,
        service: &mut Value,
        old: Option<&Value>,
        taken: &mut Allocation,
    ) -> Result<(), Refusal> {
        let held: Vec<IpAddr> = old.into_iter().flat_map(addresses_of).collect();
        let spec = &mut service["spec"];
        if text(spec, "type") != "ExternalName" {
            // One that was an ExternalName begins anew.
            let old = old.map(|old| &old["spec"]).filter(|old| text(old, "type") != "ExternalName");
            ip_families::settle(spec, old, &used.families())?;
            reserve_addresses(used, spec, &held, taken)?;
        }
        let held: BTreeSet<u16> = old.into_iter().flat_map(ports_of).collect();
        reserve_ports(used, service, old, &held, taken).map_err(Refusal::from)
    }
}

/// One address of each family; those that were asked for, if they are free.
fn reserve_addresses(
    used: &mut Used,
    spec: &mut Value,
    held: &[IpAddr],
    taken: &mut Allocation,
) -> Result<(), Refusal> {
    if text(spec, "clusterIP") == "None" {
        return Ok(());
    }
    let asked = ip_families::texts(spec, "clusterIPs");
    let mut given = Vec::new();
    for (at, family) in ip_families::texts(spec, "ipFamilies").iter().enumerate() {
        let Some(text) = asked.get(at) else {
            let address = used.take_address(family).ok_or(Refusal::Full)?;
            taken.addresses.push(address.to_string());
            given.push(address.to_string());
            continue;
        };
        let address: Option<IpAddr> = text.parse().ok();
        if let Some(address) = address.filter(|address| !held.contains(address)) {
            let failed = |why: String| {
                let detail = format!("failed to allocate IP {text}: {why}");
                vec![FieldError::invalid("spec.clusterIPs", json!(asked), detail)]
            };
            let range = used.ranges().find(|range| range.covers(address));
            let range = range.ok_or_else(|| failed("the provided network does not match the current range".into()))?;
            if !range.contains(address) {
                let why =
                    format!("the provided IP ({text}) is not in the valid range. The range of valid IPs is {range}");
                return Err(failed(why).into());
            }
            if !used.is_free(address) {
                return Err(failed("provided IP is already allocated".into()).into());
            }
            used.addresses.insert(address);
            taken.addresses.push(address.to_string());
        }
        given.push(text.clone());
    }
    spec["clusterIP"] = json!(given.first());
    spec["clusterIPs"] = json!(given);
    Ok(())
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
    for (index, port) in items_mut(spec, "ports").enumerate() {
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
        if old.is_some_and(|old| text(&service["spec"], "clusterIP") == text(&old["spec"], "clusterIP")) {
            give_up_address(service);
        }
        let mut taken = Allocation::default();
        let result = self.with(|used| {
            let result = Self::reserve(used, service, old, &mut taken);
            if result.is_err() || dry_run {
                used.give_back(&taken.addresses, &taken.ports);
                taken.addresses.clear();
                taken.ports.clear();
            }
            result
        });
        let name = text(&service["metadata"], "name");
        match result {
            Ok(()) => {}
            Err(Refusal::Asked(errors)) => return Err(StatusError::invalid_kind("", "Service", name, &errors)),
            Err(Refusal::Full) => {
                let why = format!("failed to allocate a serviceIP for Service {name:?}: range is full");
                return Err(StatusError::internal(why));
            }
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
        self.with(|used| used.give_back(addresses, ports));
    }

    async fn release(&self, service: &Value) {
        let addresses: Vec<String> = addresses_of(service).map(|address| address.to_string()).collect();
        let ports: Vec<u16> = ports_of(service).collect();
        self.with(|used| used.give_back(&addresses, &ports));
    }
}

/// What becomes an ExternalName has no address any more.
fn give_up_address(service: &mut Value) {
    if service["spec"]["type"] == "ExternalName"
        && let Some(spec) = service["spec"].as_object_mut()
    {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(key);
        }
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
        ServiceAddresses::new(&["10.96.0.0/12".parse().unwrap()], &[])
    }

    /// C5.12
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
            r#"Service "web" is invalid: spec.clusterIPs: Invalid value: ["10.1.0.1"]: failed to allocate IP 10.1.0.1: the provided network does not match the current range"#
        );
        let headless = create(&all, service(json!({"type": "ClusterIP", "clusterIP": "None"}))).await.unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    }

    #[tokio::test]
    async fn a_small_range_is_used_up_and_refilled() {
        let all = ServiceAddresses::new(&["10.0.0.0/29".parse().unwrap()], &[]);
        let mut made = Vec::new();
        for _ in 0..6 {
            made.push(create(&all, service(json!({"type": "ClusterIP"}))).await.unwrap());
        }
        assert!(create(&all, service(json!({"type": "ClusterIP"}))).await.is_err());
        all.release(&made[2]).await;
        let again = create(&all, service(json!({"type": "ClusterIP"}))).await.unwrap();
        assert_eq!(again["spec"]["clusterIP"], made[2]["spec"]["clusterIP"]);
    }

    /// C5.12
    #[tokio::test]
    async fn a_service_of_both_families_has_an_address_of_each() {
        let ranges = ["10.96.0.0/12".parse().unwrap(), "fd00:96::/112".parse().unwrap()];
        let all = ServiceAddresses::new(&ranges, &[]);
        let ips = |service: &Value| ip_families::texts(&service["spec"], "clusterIPs");
        let both = service(json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack"}));
        let first = create(&all, both.clone()).await.unwrap();
        assert_eq!(ips(&first), ["10.96.1.0", "fd00:96::100"]);
        assert_eq!(ips(&create(&all, both).await.unwrap()), ["10.96.1.1", "fd00:96::101"]);
        let six = service(json!({"type": "ClusterIP", "ipFamilies": ["IPv6"]}));
        assert_eq!(ips(&create(&all, six).await.unwrap()), ["fd00:96::102"]);
        let asked = json!({"type": "ClusterIP", "clusterIP": "fd00:96::9", "clusterIPs": ["fd00:96::9"], "ipFamilyPolicy": "PreferDualStack"});
        assert_eq!(ips(&create(&all, service(asked.clone())).await.unwrap()), ["fd00:96::9", "10.96.1.2"]);
        let error = create(&all, service(asked)).await.unwrap_err().message;
        assert!(error.ends_with("failed to allocate IP fd00:96::9: provided IP is already allocated"), "{error}");
        let edge = json!({"type": "ClusterIP", "clusterIP": "10.96.0.0"});
        let error = create(&all, service(edge)).await.unwrap_err().message;
        assert!(
            error.ends_with(
                "the provided IP (10.96.0.0) is not in the valid range. The range of valid IPs is 10.96.0.0/12"
            ),
            "{error}"
        );

        // Down and up again: the second address is given back, and another one is given.
        let mut single = first.clone();
        single["spec"]["ipFamilyPolicy"] = json!("SingleStack");
        let allocation = all.allocate(&mut single, Some(&first), false).await.unwrap();
        assert_eq!(
            (ips(&single), &allocation.freed_addresses),
            (vec!["10.96.1.0".into()], &vec!["fd00:96::100".into()])
        );
        all.settle(allocation, true).await;
        let mut wider = single.clone();
        wider["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
        let allocation = all.allocate(&mut wider, Some(&single), false).await.unwrap();
        assert_eq!(allocation.addresses, ["fd00:96::103"]);
        assert_eq!(ips(&wider), ["10.96.1.0", "fd00:96::103"]);
    }

    /// C5.12
    #[tokio::test]
    async fn ranges_of_service_cidrs_are_used_until_they_go() {
        let all = ServiceAddresses::new(&["10.0.0.0/30".parse().unwrap()], &[]);
        let plain = || service(json!({"type": "ClusterIP"}));
        for _ in 0..2 {
            create(&all, plain()).await.unwrap();
        }
        let full = create(&all, plain()).await.unwrap_err();
        assert_eq!(full.code, 500);
        assert!(full.message.contains("failed to allocate a serviceIP for Service \"web\": range is full"), "{full:?}");
        let mut more = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.7.0.0/29"]}});
        all.set_ranges([&more]);
        let theirs =
            json!({"metadata": {"name": "10.7.0.1"}, "spec": {"parentRef": {"resource": "gateways", "name": "a"}}});
        all.note_address(&theirs, true);
        let made = create(&all, plain()).await.unwrap();
        assert_eq!(made["spec"]["clusterIP"], "10.7.0.2", "the first is somebody's");
        assert!(all.is_held_only_in(&cidrs_of(&more), &[]));
        all.note_address(&theirs, false);
        let asked = service(json!({"type": "ClusterIP", "clusterIP": "10.7.0.1"}));
        create(&all, asked).await.unwrap();
        more["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        all.set_ranges([&more]);
        assert!(create(&all, plain()).await.is_err(), "no more from a range that goes");
    }

    /// C5.12
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

    /// B1.1: readers of lists need not know `null`.
    #[tokio::test]
    async fn a_name_of_somewhere_else_gets_no_field_that_it_had_not() {
        let bare = json!({"type": "ExternalName", "externalName": "example.com"});
        let stored = create(&addresses(), service(bare.clone())).await.unwrap();
        assert_eq!(stored["spec"], bare);
    }

    /// C5.12
    #[tokio::test]
    async fn failed_and_dry_runs_leave_nothing_reserved_and_a_restart_remembers() {
        let all = addresses();
        let mut tried = node_port(Some(30100));
        let allocation = all.allocate(&mut tried, None, false).await.unwrap();
        all.settle(allocation, false).await;
        let dry = all.allocate(&mut node_port(Some(30100)), None, true).await.unwrap();
        all.settle(dry, false).await;
        let stored = create(&all, node_port(Some(30100))).await.unwrap();
        let again = ServiceAddresses::new(&["10.96.0.0/12".parse().unwrap()], std::slice::from_ref(&stored));
        assert!(create(&again, node_port(Some(30100))).await.is_err());
        let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        let balanced = create(&again, service(local)).await.unwrap();
        assert_ne!(balanced["spec"]["healthCheckNodePort"], balanced["spec"]["ports"][0]["nodePort"]);
        assert_ne!(balanced["spec"]["clusterIP"], stored["spec"]["clusterIP"]);
    }
}
