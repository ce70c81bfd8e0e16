//! A pod's `resolv.conf` (A11.5, A11.6).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::PodSpec;

use crate::runtime::cri;

/// Limits of the resolver that pods are held to.
const MOST_NAMESERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;
const MOST_SEARCH_CHARACTERS: usize = 2048;
const LONGEST_SEARCH: usize = 253;

/// What the cluster offers.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClusterDns<'a> {
    pub(super) servers: &'a [IpAddr],
    pub(super) domain: &'a str,
    /// The node's own `resolv.conf`, as text; `None`: pods get nothing of the node's.
    pub(super) of_node: Option<&'a str>,
    /// The node's addresses.
    pub(super) node_ips: &'a [IpAddr],
}

/// Something about a pod's resolver that somebody should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Problem {
    /// Not all of what was asked for has room.
    Limits(String),
    /// The cluster has no DNS: the node's counts instead (A11.7).
    NoClusterDns,
}

impl Problem {
    /// What the node and the pod are told of a cluster without DNS.
    pub(super) const NO_CLUSTER_DNS: &'static str = "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.";
}

/// The configuration, and what is wrong with it.
pub(super) fn config(spec: &PodSpec, namespace: &str, cluster: ClusterDns<'_>) -> (cri::DnsConfig, Vec<Problem>) {
    let host = match cluster.of_node {
        Some(text) => parse(text),
        None => nothing(cluster.node_ips),
    };
    let host_network = spec.host_network.unwrap_or_default();
    let policy = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirst" if host_network => "Default",
        "ClusterFirstWithHostNet" => "ClusterFirst",
        other => other,
    };
    let mut problems = Vec::new();
    let mut dns = match policy {
        "None" => cri::DnsConfig::default(),
        "ClusterFirst" if !cluster.servers.is_empty() => {
            let domain = cluster.domain;
            let mut searches = Vec::new();
            if !domain.is_empty() {
                searches.extend([format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()]);
            }
            // Where pods get nothing of the node's, that nothing is no domain.
            searches.extend(host.searches.into_iter().filter(|search| search != "."));
            let servers = cluster.servers.iter().map(ToString::to_string).collect();
            cri::DnsConfig { servers, searches: unique(searches), options: vec!["ndots:5".into()] }
        }
        "ClusterFirst" => {
            problems.push(Problem::NoClusterDns);
            host
        }
        _ => host,
    };
    if let Some(custom) = &spec.dns_config {
        dns.servers.extend(custom.nameservers.clone().unwrap_or_default());
        dns.servers = unique(dns.servers);
        dns.searches.extend(custom.searches.clone().unwrap_or_default());
        dns.searches = unique(dns.searches);
        for option in custom.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            dns.options.retain(|o| o.split(':').next() != Some(&name));
            dns.options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    limit(&mut dns, &mut problems);
    (dns, problems)
}

/// Nobody is asked, and nothing is found.
fn nothing(node_ips: &[IpAddr]) -> cri::DnsConfig {
    let loopback = |ip: &IpAddr| if ip.is_ipv6() { "::1" } else { "127.0.0.1" }.to_owned();
    let mut servers: Vec<String> = node_ips.iter().map(loopback).collect();
    if servers.is_empty() {
        servers.push("127.0.0.1".to_owned());
    }
    cri::DnsConfig { servers, searches: vec![".".to_owned()], options: Vec::new() }
}

fn limit(dns: &mut cri::DnsConfig, problems: &mut Vec<Problem>) {
    if dns.servers.len() > MOST_NAMESERVERS {
        dns.servers.truncate(MOST_NAMESERVERS);
        problems.push(Problem::Limits(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            dns.servers.join(" ")
        )));
    }
    let asked = dns.searches.len();
    dns.searches.retain(|search| search.len() <= LONGEST_SEARCH);
    dns.searches.truncate(MOST_SEARCHES);
    while dns.searches.join(" ").len() > MOST_SEARCH_CHARACTERS {
        dns.searches.pop();
    }
    if dns.searches.len() < asked {
        problems.push(Problem::Limits(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            dns.searches.join(" ")
        )));
    }
}

/// Reads a `resolv.conf`: the last `search` line counts.
fn parse(text: &str) -> cri::DnsConfig {
    let mut dns = cri::DnsConfig::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                let names = words.map(|name| name.trim_end_matches('.')).filter(|name| !name.is_empty());
                dns.searches = names.map(str::to_owned).collect();
            }
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

fn unique(list: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    list.into_iter().filter(|item| seen.insert(item.clone())).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodDNSConfig, PodDNSConfigOption};

    use super::*;

    const NODE: &str = "# c\nnameserver 9.9.9.9\nsearch old\nsearch corp.example. .\noptions rotate\n";

    fn of(spec: &PodSpec) -> cri::DnsConfig {
        let servers = ["10.96.0.10".parse().unwrap()];
        config(
            spec,
            "ns",
            ClusterDns { servers: &servers, domain: "cluster.local", of_node: Some(NODE), node_ips: &[] },
        )
        .0
    }

    fn line(dns: &cri::DnsConfig) -> String {
        format!("{}|{}|{}", dns.servers.join(" "), dns.searches.join(" "), dns.options.join(" "))
    }

    #[test]
    fn the_policy_decides() {
        // A11.5, A11.6
        let cluster = "10.96.0.10|ns.svc.cluster.local svc.cluster.local cluster.local corp.example|ndots:5";
        let node = "9.9.9.9|corp.example|rotate";
        for (policy, host_network, expected) in [
            ("ClusterFirst", false, cluster),
            ("ClusterFirst", true, node),
            ("ClusterFirstWithHostNet", true, cluster),
            ("Default", false, node),
            ("None", false, "||"),
        ] {
            let spec =
                PodSpec { dns_policy: Some(policy.into()), host_network: Some(host_network), ..PodSpec::default() };
            assert_eq!(line(&of(&spec)), expected, "{policy} {host_network}");
        }
    }

    #[test]
    fn the_pod_adds_its_own() {
        // A11.5
        let option = PodDNSConfigOption { name: Some("ndots".into()), value: Some("2".into()) };
        let custom = PodDNSConfig {
            nameservers: Some(vec!["1.1.1.1".into(), "10.96.0.10".into()]),
            searches: Some(vec!["corp.example".into(), "my".into()]),
            options: Some(vec![option]),
        };
        let spec = PodSpec { dns_config: Some(custom), ..PodSpec::default() };
        let expected =
            "10.96.0.10 1.1.1.1|ns.svc.cluster.local svc.cluster.local cluster.local corp.example my|ndots:2";
        assert_eq!(line(&of(&spec)), expected);
    }

    #[test]
    fn limits_are_told() {
        // A11.5, A11.6
        let custom = PodDNSConfig {
            nameservers: Some((1..=4).map(|n| format!("1.1.1.{n}")).collect()),
            searches: Some((1..=40).map(|n| format!("s{n}")).collect()),
            options: None,
        };
        let spec = PodSpec { dns_policy: Some("None".into()), dns_config: Some(custom), ..PodSpec::default() };
        let (dns, problems) =
            config(&spec, "ns", ClusterDns { servers: &[], domain: "", of_node: Some(""), node_ips: &[] });
        assert_eq!((dns.servers.len(), dns.searches.len(), problems.len()), (3, 32, 2));
        let Problem::Limits(servers) = &problems[0] else { panic!("{problems:?}") };
        assert_eq!(
            servers,
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 1.1.1.1 1.1.1.2 1.1.1.3"
        );
        let Problem::Limits(searches) = &problems[1] else { panic!("{problems:?}") };
        let begin =
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: s1 s2 ";
        assert!(searches.starts_with(begin) && searches.ends_with(" s32"), "{searches}");

        // What is too long for itself, and what is too long together, the cluster's own names included.
        let long = |n: usize, length: usize| format!("{}{n:02}", "x".repeat(length - 2));
        let asks = |searches: Vec<String>| {
            let custom = PodDNSConfig { searches: Some(searches), ..PodDNSConfig::default() };
            of(&PodSpec { dns_config: Some(custom), ..PodSpec::default() }).searches
        };
        let own = ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"].map(String::from);
        assert_eq!(asks(vec![long(1, 254), long(2, 253)]), [&own[..], &[long(2, 253)]].concat());
        let many = asks((0..20).map(|n| long(n, 200)).collect());
        assert_eq!((many.len(), many.join(" ").len()), (own.len() + 9, 65 + 9 * 201));
    }

    #[test]
    fn without_a_cluster_s_dns_it_is_the_node_s_or_nobody_s() {
        // A11.5, A11.7
        let of = |of_node, ips: &[&str]| {
            let node_ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            let cluster = ClusterDns { servers: &[], domain: "cluster.local", of_node, node_ips: &node_ips };
            let (dns, problems) = config(&PodSpec::default(), "ns", cluster);
            assert_eq!(problems, [Problem::NoClusterDns]);
            line(&dns)
        };
        assert_eq!(of(Some(NODE), &[]), "9.9.9.9|corp.example|rotate");
        assert_eq!(of(None, &[]), "127.0.0.1|.|");
        assert_eq!(of(None, &["192.0.2.1", "2001:db8::1"]), "127.0.0.1 ::1|.|");
    }
}
