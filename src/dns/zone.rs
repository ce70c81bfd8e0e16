//! The names of the cluster, as the Kubernetes DNS specification 1.1.0 has them. Pure.
//!
//! [`Zone`] is the catalogue of Services and EndpointSlices with an index of addresses; [`Authority::find`] says what a name
//! stands for. Nothing is said before both lists are complete.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use stoker_model::service::{
    EndpointState, KeptSlice, NamespacedName, Service, ServiceByName, ServiceChange, ServiceType, Slices,
};

/// The version of the specification, which `dns-version` tells.
const VERSION: &str = "1.1.0";
/// Of each SRV record, as others have it.
pub(super) const SRV_WEIGHT: u16 = 100;

/// What a name stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Not our name: ask others.
    Elsewhere,
    /// Our name, but we do not know yet.
    NotYet,
    /// There is no such name.
    Nothing,
    /// The name, with its records; those of a type that is not here do not exist.
    Name(Records),
    /// The Service is another name.
    Alias(String),
}

/// The records of a name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Records {
    /// A and AAAA.
    pub(super) addresses: Vec<IpAddr>,
    /// SRV: port, and the target's name below the domain with its addresses.
    pub(super) services: Vec<(u16, String, Vec<IpAddr>)>,
    /// TXT.
    pub(super) text: Option<&'static str>,
    /// PTR, below the domain.
    pub(super) pointers: Vec<String>,
    /// SOA and NS.
    pub(super) is_apex: bool,
}

impl Records {
    fn addresses(addresses: Vec<IpAddr>) -> Self {
        Self { addresses, ..Self::default() }
    }
}

/// Services and slices, and who has which address.
#[derive(Debug, Default)]
pub(super) struct Zone {
    services: BTreeSet<ServiceByName>,
    slices: Slices,
    owners: HashMap<IpAddr, Vec<NamespacedName>>,
}

/// The zone that is served, and the one that a running list gathers.
#[derive(Debug, Default)]
pub(super) struct Authority {
    /// The cluster's domain in labels, from the left.
    domain: Vec<String>,
    /// Our own addresses: what the domain's name server is called by.
    servers: Vec<IpAddr>,
    zone: Option<Zone>,
    gathered: Option<Zone>,
}

impl Authority {
    /// Nothing known yet. `domain` like `cluster.local`.
    pub(super) fn new(domain: &str, servers: Vec<IpAddr>) -> Self {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        let labels = domain.split('.').filter(|label| !label.is_empty()).map(str::to_owned);
        Self { domain: labels.collect(), servers, zone: None, gathered: Some(Zone::default()) }
    }

    /// Takes in one change. While a list starts over, what was known stays served.
    pub(super) fn apply(&mut self, change: ServiceChange) {
        match change {
            ServiceChange::Restarting => self.gathered = Some(Zone::default()),
            ServiceChange::Complete => {
                if let Some(zone) = self.gathered.take() {
                    self.zone = Some(zone);
                }
            }
            change => {
                if let Some(zone) = self.gathered.as_mut().or(self.zone.as_mut()) {
                    zone.apply(change);
                }
            }
        }
    }

    /// Whether the lists are complete.
    pub(super) fn is_complete(&self) -> bool {
        self.zone.is_some()
    }

    /// What a name stands for. Labels in lower case, from the left.
    pub(super) fn find(&self, labels: &[&str]) -> Found {
        if let Some(address) = reverse_address(labels) {
            let Some(zone) = &self.zone else { return Found::NotYet };
            let pointers = zone.pointers(address);
            // Addresses of others have their names elsewhere.
            return if pointers.is_empty() {
                Found::Elsewhere
            } else {
                Found::Name(Records { pointers, ..Records::default() })
            };
        }
        let Some(depth) = labels.len().checked_sub(self.domain.len()) else { return Found::Elsewhere };
        if self.domain.is_empty() || labels[depth..] != self.domain {
            return Found::Elsewhere;
        }
        match &labels[..depth] {
            [] => return Found::Name(Records { is_apex: true, ..Records::default() }),
            ["dns-version"] => return Found::Name(Records { text: Some(VERSION), ..Records::default() }),
            ["ns", "dns"] => return Found::Name(Records::addresses(self.servers.clone())),
            ["dns"] | ["svc"] | ["pod"] => return Found::Name(Records::default()),
            _ => {}
        }
        let Some(zone) = &self.zone else { return Found::NotYet };
        match &labels[..depth] {
            [namespace, "svc" | "pod"] if zone.has_namespace(namespace) => Found::Name(Records::default()),
            [address, _, "pod"] => {
                dashed_address(address).map_or(Found::Nothing, |address| Found::Name(Records::addresses(vec![address])))
            }
            [below @ .., service, namespace, "svc"] => zone.service(below, service, namespace),
            _ => Found::Nothing,
        }
    }
}

impl Zone {
    fn apply(&mut self, change: ServiceChange) {
        let key = match &change {
            ServiceChange::Service(service) => service.metadata.key.clone(),
            ServiceChange::Slice(slice, _) if slice.service.name.is_empty() => return,
            ServiceChange::Slice(slice, _) => slice.service.clone(),
            ServiceChange::ServiceGone(key) | ServiceChange::SliceGone(key, _) => key.clone(),
            ServiceChange::Restarting | ServiceChange::Complete => return,
        };
        let before = self.owned_addresses(&key);
        match change {
            ServiceChange::Service(service) => _ = self.services.replace(ServiceByName(service)),
            ServiceChange::ServiceGone(_) => _ = self.services.remove(&key),
            ServiceChange::Slice(slice, _) => _ = self.slices.put(slice),
            ServiceChange::SliceGone(_, name) => _ = self.slices.remove(&key, &name),
            ServiceChange::Restarting | ServiceChange::Complete => {}
        }
        let after = self.owned_addresses(&key);
        for gone in before.difference(&after) {
            if let Some(owners) = self.owners.get_mut(gone) {
                owners.retain(|owner| *owner != key);
                if owners.is_empty() {
                    self.owners.remove(gone);
                }
            }
        }
        for new in after.difference(&before) {
            self.owners.entry(*new).or_insert_with(|| Vec::with_capacity(1)).push(key.clone());
        }
    }

    /// Addresses that lead back to a Service: its own, or of a headless one those of its endpoints.
    fn owned_addresses(&self, key: &NamespacedName) -> BTreeSet<IpAddr> {
        let Some(ServiceByName(service)) = self.services.get(key) else { return BTreeSet::new() };
        if is_headless(service) {
            self.endpoints(key, service).map(|(_, ip, _)| ip).collect()
        } else {
            cluster_ips(service).collect()
        }
    }

    /// The endpoints that count, with their slice (the specification's "ready").
    fn endpoints<'a>(
        &'a self,
        key: &NamespacedName,
        service: &'a Service,
    ) -> impl Iterator<Item = (&'a KeptSlice, IpAddr, &'a EndpointState)> {
        let all = service.spec.publish_not_ready_addresses;
        self.slices.of(key).iter().flat_map(move |slice| {
            let endpoints = slice.endpoints.iter().filter(move |(_, state)| all || state.ready);
            endpoints.map(move |(ip, state)| (&**slice, ip, state))
        })
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        let from = NamespacedName { namespace: namespace.into(), name: "".into() };
        self.services.range(from..).next().is_some_and(|service| &*service.0.metadata.key.namespace == namespace)
    }

    fn service(&self, below: &[&str], name: &str, namespace: &str) -> Found {
        let key = NamespacedName { namespace: namespace.into(), name: name.into() };
        let Some(ServiceByName(service)) = self.services.get(&key) else { return Found::Nothing };
        if service.spec.kind == ServiceType::ExternalName {
            return match below {
                [] if !service.spec.external_name.is_empty() => Found::Alias(service.spec.external_name.to_string()),
                _ => Found::Nothing,
            };
        }
        let own = format!("{name}.{namespace}.svc");
        match below {
            [] if is_headless(service) => {
                let addresses: BTreeSet<IpAddr> = self.endpoints(&key, service).map(|(_, ip, _)| ip).collect();
                if addresses.is_empty() {
                    return Found::Nothing;
                }
                Found::Name(Records::addresses(addresses.into_iter().collect()))
            }
            [] => Found::Name(Records::addresses(cluster_ips(service).collect())),
            [port, protocol] if port.starts_with('_') && protocol.starts_with('_') => {
                let services = self.ports(&key, service, &own, &port[1..], &protocol[1..]);
                if services.is_empty() {
                    return Found::Nothing;
                }
                Found::Name(Records { services, ..Records::default() })
            }
            // A name without records above those of its ports.
            [protocol] if protocol.starts_with('_') => {
                let has = service.spec.ports.iter().any(|port| {
                    !port.name.is_empty() && protocol_name(&port.protocol).eq_ignore_ascii_case(&protocol[1..])
                });
                if has { Found::Name(Records::default()) } else { Found::Nothing }
            }
            [host] => {
                let found = self.endpoints(&key, service).filter(|(_, ip, state)| {
                    let named = state.hostname.as_deref();
                    named.map_or_else(|| dashed(*ip) == *host, |name| name.eq_ignore_ascii_case(host))
                });
                let addresses: BTreeSet<IpAddr> = found.map(|(_, ip, _)| ip).collect();
                if addresses.is_empty() {
                    return Found::Nothing;
                }
                Found::Name(Records::addresses(addresses.into_iter().collect()))
            }
            _ => Found::Nothing,
        }
    }

    /// The SRV records of a named port.
    fn ports(
        &self,
        key: &NamespacedName,
        service: &Service,
        own: &str,
        name: &str,
        protocol: &str,
    ) -> Vec<(u16, String, Vec<IpAddr>)> {
        let fits = |n: &str, p: &str| {
            !n.is_empty() && n.eq_ignore_ascii_case(name) && protocol_name(p).eq_ignore_ascii_case(protocol)
        };
        if !is_headless(service) {
            let ports = service.spec.ports.iter().filter(|port| fits(&port.name, &port.protocol));
            return ports.map(|port| (port.port, own.to_owned(), cluster_ips(service).collect())).collect();
        }
        let mut targets: BTreeMap<(u16, String), Vec<IpAddr>> = BTreeMap::new();
        for (slice, ip, state) in self.endpoints(key, service) {
            for port in slice.ports.iter().filter(|port| fits(&port.name, &port.protocol)) {
                let Some(number) = port.port else { continue };
                let target = format!("{}.{own}", host_of(ip, state));
                let addresses = targets.entry((number, target)).or_default();
                if !addresses.contains(&ip) {
                    addresses.push(ip);
                }
            }
        }
        targets.into_iter().map(|((port, target), addresses)| (port, target, addresses)).collect()
    }

    /// Names of an address, below the domain.
    fn pointers(&self, address: IpAddr) -> Vec<String> {
        let mut names = BTreeSet::new();
        for key in self.owners.get(&address).into_iter().flatten() {
            let Some(ServiceByName(service)) = self.services.get(key) else { continue };
            let own = format!("{}.{}.svc", key.name, key.namespace);
            if !is_headless(service) {
                names.insert(own);
                continue;
            }
            let endpoints = self.endpoints(key, service).filter(|(_, ip, _)| *ip == address);
            names.extend(endpoints.map(|(_, ip, state)| format!("{}.{own}", host_of(ip, state))));
        }
        names.into_iter().collect()
    }
}

fn is_headless(service: &Service) -> bool {
    service.spec.cluster_ip() == "None" && service.spec.kind != ServiceType::ExternalName
}

fn cluster_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let texts = service.spec.cluster_ips().iter();
    texts.filter(|_| service.spec.kind != ServiceType::ExternalName).filter_map(|ip| ip.parse().ok())
}

fn protocol_name(protocol: &str) -> &str {
    if protocol.is_empty() { "TCP" } else { protocol }
}

/// The name of an endpoint in its Service: its own, or one made of its address.
fn host_of(ip: IpAddr, state: &EndpointState) -> String {
    state.hostname.as_deref().map_or_else(|| dashed(ip), str::to_ascii_lowercase)
}

fn dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string().replace('.', "-"),
        // All groups, so that no label starts or ends with a dash.
        IpAddr::V6(v6) => v6.segments().map(|group| format!("{group:x}")).join("-"),
    }
}

/// The address that a label like `10-0-0-1` or `fd00--1` names.
fn dashed_address(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse_address(labels: &[&str]) -> Option<IpAddr> {
    match labels {
        [d, c, b, a, "in-addr", "arpa"] => {
            let octet = |label: &str| label.parse::<u8>().ok().filter(|_| label.len() == 1 || !label.starts_with('0'));
            Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?).into())
        }
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let mut number = 0_u128;
            for nibble in nibbles.iter().rev() {
                let digit = u8::from_str_radix(nibble, 16).ok().filter(|_| nibble.len() == 1)?;
                number = number << 4 | u128::from(digit);
            }
            Some(Ipv6Addr::from(number).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stoker_model::service::EndpointSlice;

    use super::*;

    fn service(json: &str) -> ServiceChange {
        ServiceChange::Service(Arc::new(serde_json::from_str(json).unwrap()))
    }

    fn slice(json: &str) -> ServiceChange {
        serde_json::from_str::<EndpointSlice>(json).unwrap().into()
    }

    fn authority() -> Authority {
        let mut authority = Authority::new("cluster.local", vec!["10.96.0.10".parse().unwrap()]);
        for change in [
            ServiceChange::Restarting,
            service(
                r#"{"metadata":{"name":"web","namespace":"shop"},"spec":{"type":"ClusterIP","clusterIP":"10.96.1.1",
                "clusterIPs":["10.96.1.1","fd00::1:1"],"ports":[{"name":"http","port":80},{"name":"dns","protocol":"UDP","port":53},
                {"name":"sig","protocol":"SCTP","port":9}]}}"#,
            ),
            service(
                r#"{"metadata":{"name":"db","namespace":"shop"},"spec":{"type":"ClusterIP","clusterIP":"None",
                "clusterIPs":["None"],"ports":[{"name":"sql","port":5432}]}}"#,
            ),
            slice(
                r#"{"metadata":{"name":"db-1","namespace":"shop","labels":{"kubernetes.io/service-name":"db"}},
                "addressType":"IPv4","ports":[{"name":"sql","port":5432,"protocol":"TCP"}],"endpoints":[
                {"addresses":["10.244.0.1"],"hostname":"db-0","conditions":{"ready":true}},
                {"addresses":["10.244.0.2"],"conditions":{}},
                {"addresses":["10.244.0.3"],"hostname":"db-2","conditions":{"ready":false,"serving":true}}]}"#,
            ),
            service(
                r#"{"metadata":{"name":"empty","namespace":"shop"},"spec":{"clusterIP":"None","ports":[{"name":"a","port":1}]}}"#,
            ),
            service(
                r#"{"metadata":{"name":"out","namespace":"shop"},"spec":{"type":"ExternalName","externalName":"example.org"}}"#,
            ),
            ServiceChange::Complete,
        ] {
            authority.apply(change);
        }
        authority
    }

    fn find(authority: &Authority, name: &str) -> Found {
        authority.find(&name.split('.').collect::<Vec<_>>())
    }

    fn addresses(list: &[&str]) -> Found {
        Found::Name(Records::addresses(list.iter().map(|ip| ip.parse().unwrap()).collect()))
    }

    #[test]
    fn names_of_the_specification_are_there() {
        let authority = authority();
        let nothing_of_that_type = Found::Name(Records::default());
        for (name, expected) in [
            ("dns-version", Found::Name(Records { text: Some("1.1.0"), ..Records::default() })),
            ("web.shop.svc", addresses(&["10.96.1.1", "fd00::1:1"])),
            ("db.shop.svc", addresses(&["10.244.0.1", "10.244.0.2"])),
            ("db-0.db.shop.svc", addresses(&["10.244.0.1"])),
            ("10-244-0-2.db.shop.svc", addresses(&["10.244.0.2"])),
            ("db-2.db.shop.svc", Found::Nothing),
            ("10-244-0-1.db.shop.svc", Found::Nothing),
            ("empty.shop.svc", Found::Nothing),
            ("out.shop.svc", Found::Alias("example.org".into())),
            ("10-0-0-7.shop.pod", addresses(&["10.0.0.7"])),
            ("fd00--7.shop.pod", addresses(&["fd00::7"])),
            ("nonsense.shop.pod", Found::Nothing),
            ("ns.dns", addresses(&["10.96.0.10"])),
            ("svc", nothing_of_that_type.clone()),
            ("shop.svc", nothing_of_that_type.clone()),
            ("_tcp.web.shop.svc", nothing_of_that_type),
            ("_icmp.web.shop.svc", Found::Nothing),
            ("nobody.svc", Found::Nothing),
            ("web.nobody.svc", Found::Nothing),
            ("deep.down.web.shop.svc", Found::Nothing),
            ("other", Found::Nothing),
            // What a search list makes of names that are complete already.
            ("web.shop.svc.cluster.local.shop.svc", Found::Nothing),
            ("example.org.shop.svc", Found::Nothing),
        ] {
            assert_eq!(find(&authority, &format!("{name}.cluster.local")), expected, "{name}");
        }
        assert_eq!(find(&authority, "example.org"), Found::Elsewhere);
        assert_eq!(find(&authority, "web.shop.svc.other.local"), Found::Elsewhere);
        assert_eq!(find(&authority, "cluster.local"), Found::Name(Records { is_apex: true, ..Records::default() }));
    }

    #[test]
    fn named_ports_have_srv_records() {
        let authority = authority();
        let srv = |name: &str| match find(&authority, &format!("{name}.shop.svc.cluster.local")) {
            Found::Name(records) => {
                records.services.into_iter().map(|(port, target, _)| format!("{port} {target}")).collect()
            }
            other => vec![format!("{other:?}")],
        };
        assert_eq!(srv("_http._tcp.web"), ["80 web.shop.svc"]);
        assert_eq!(srv("_dns._udp.web"), ["53 web.shop.svc"]);
        assert_eq!(srv("_sig._sctp.web"), ["9 web.shop.svc"]);
        assert_eq!(srv("_dns._tcp.web"), ["Nothing"]);
        assert_eq!(srv("_sql._tcp.db"), ["5432 10-244-0-2.db.shop.svc", "5432 db-0.db.shop.svc"]);
        assert_eq!(srv("_a._tcp.empty"), ["Nothing"]);
    }

    #[test]
    fn addresses_lead_back_to_names() {
        let mut authority = authority();
        let names = |authority: &Authority, name: &str| match find(authority, name) {
            Found::Name(records) => records.pointers,
            _ => vec![],
        };
        assert_eq!(names(&authority, "1.1.96.10.in-addr.arpa"), ["web.shop.svc"]);
        assert_eq!(names(&authority, "1.0.244.10.in-addr.arpa"), ["db-0.db.shop.svc"]);
        assert_eq!(names(&authority, "2.0.244.10.in-addr.arpa"), ["10-244-0-2.db.shop.svc"]);
        let v6 = "1.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(names(&authority, v6), ["web.shop.svc"]);
        for elsewhere in ["3.0.244.10.in-addr.arpa", "1.1.1.1.in-addr.arpa", "96.10.in-addr.arpa"] {
            assert_eq!(find(&authority, elsewhere), Found::Elsewhere, "{elsewhere}");
        }
        let web = NamespacedName { namespace: "shop".into(), name: "web".into() };
        let db = NamespacedName { namespace: "shop".into(), name: "db".into() };
        authority.apply(ServiceChange::ServiceGone(web));
        authority.apply(ServiceChange::SliceGone(db, "db-1".into()));
        assert!(authority.zone.as_ref().unwrap().owners.is_empty());
        assert_eq!(find(&authority, "db.shop.svc.cluster.local"), Found::Nothing);
    }

    #[test]
    fn nothing_is_said_before_the_lists_are_complete_and_a_new_list_replaces_the_old() {
        let mut fresh = Authority::new("cluster.local.", Vec::new());
        assert_eq!(find(&fresh, "web.shop.svc.cluster.local"), Found::NotYet);
        assert_eq!(find(&fresh, "example.org"), Found::Elsewhere);
        fresh.apply(ServiceChange::Complete);
        assert_eq!(find(&fresh, "web.shop.svc.cluster.local"), Found::Nothing);
        let mut authority = authority();
        authority.apply(ServiceChange::Restarting);
        authority.apply(service(r#"{"metadata":{"name":"new","namespace":"shop"},"spec":{"clusterIP":"10.96.2.2"}}"#));
        assert_eq!(find(&authority, "new.shop.svc.cluster.local"), Found::Nothing);
        assert!(matches!(find(&authority, "web.shop.svc.cluster.local"), Found::Name(_)));
        authority.apply(ServiceChange::Complete);
        assert_eq!(find(&authority, "web.shop.svc.cluster.local"), Found::Nothing);
        assert_eq!(find(&authority, "new.shop.svc.cluster.local"), addresses(&["10.96.2.2"]));
    }

    #[test]
    fn endpoints_that_are_not_ready_count_where_the_service_says_so() {
        let mut authority = authority();
        authority.apply(service(
            r#"{"metadata":{"name":"db","namespace":"shop"},"spec":{"clusterIP":"None","publishNotReadyAddresses":true,
            "ports":[{"name":"sql","port":5432}]}}"#,
        ));
        assert_eq!(
            find(&authority, "db.shop.svc.cluster.local"),
            addresses(&["10.244.0.1", "10.244.0.2", "10.244.0.3"])
        );
        assert_eq!(find(&authority, "db-2.db.shop.svc.cluster.local"), addresses(&["10.244.0.3"]));
    }
}
