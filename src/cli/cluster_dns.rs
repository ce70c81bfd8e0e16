//! Cluster DNS: its settings, and its part of the one watch of Services and EndpointSlices.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use stoker_model::service::{Service, ServiceChange};
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::config::{KubeletConfig, StokerConfig};
use crate::dns::{self, AddressError, DnsConfig, DnsError, DnsServer, Upstream};

/// Changes that may wait for one of the two rooms.
const QUEUE: usize = 1024;

/// Why names of the cluster cannot be answered here.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClusterDnsError {
    #[error(
        "StokerConfiguration: dns.enabled needs an address: set dns.addresses, or clusterDNS in KubeletConfiguration"
    )]
    NoAddress,
    #[error("KubeletConfiguration: clusterDNS: {0:?} is not an IP address")]
    NotAnAddress(String),
    #[error(
        "StokerConfiguration: dns.upstream: {0:?} is not the address of a name server, like 192.0.2.53 or 192.0.2.53:53"
    )]
    NotANameServer(String),
    #[error("cluster DNS: {0}")]
    Server(#[from] DnsError),
    #[error("cluster DNS addresses of an earlier run: {0}")]
    Address(#[from] AddressError),
}

/// Starts to answer where the configuration says so; otherwise gives up what an earlier run claimed, which would swallow what pods
/// ask of another server. Returns the changes that are for the data path, and what is to be spawned.
pub(super) async fn start(
    kubelet: &KubeletConfig,
    stoker: &StokerConfig,
    changes: mpsc::Receiver<ServiceChange>,
    clock: Clock,
) -> Result<(mpsc::Receiver<ServiceChange>, Option<BoxFuture<'static, ()>>), ClusterDnsError> {
    let Some(config) = settings(kubelet, stoker)? else {
        dns::cleanup().await?;
        return Ok((changes, None));
    };
    let (to_dns, dns_queue) = mpsc::channel(QUEUE);
    let (to_rules, for_rules) = mpsc::channel(QUEUE);
    let addresses = config.addresses.clone();
    let server = DnsServer::start(config, clock).await?;
    let tasks = async move {
        tokio::join!(server.run(dns_queue), share(changes, to_rules, to_dns, addresses));
    };
    Ok((for_rules, Some(tasks.boxed())))
}

/// Settings of the room `dns`; `None` when it is off.
fn settings(kubelet: &KubeletConfig, config: &StokerConfig) -> Result<Option<DnsConfig>, ClusterDnsError> {
    let dns = &config.dns;
    if !dns.enabled {
        return Ok(None);
    }
    let mut addresses = dns.addresses.clone();
    if addresses.is_empty() {
        let address = |text: &String| text.parse().map_err(|_| ClusterDnsError::NotAnAddress(text.clone()));
        addresses = kubelet.cluster_dns.iter().map(address).collect::<Result<_, _>>()?;
    }
    addresses.dedup();
    if addresses.is_empty() {
        return Err(ClusterDnsError::NoAddress);
    }
    let server = |text: &String| {
        let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
        address.or_else(|_| text.parse()).map_err(|_| ClusterDnsError::NotANameServer(text.clone()))
    };
    let upstream = if !dns.upstream.is_empty() {
        Upstream::Servers(dns.upstream.iter().map(server).collect::<Result<_, _>>()?)
    } else if kubelet.resolv_conf.is_empty() {
        Upstream::None
    } else {
        Upstream::ResolvConf(PathBuf::from(&kubelet.resolv_conf))
    };
    let domain = if kubelet.cluster_domain.is_empty() { "cluster.local" } else { &kubelet.cluster_domain };
    Ok(Some(DnsConfig {
        addresses,
        domain: domain.to_owned(),
        ttl: dns.ttl,
        upstream,
        cache_entries: dns.cache_entries,
        metrics_port: Some(dns.metrics_port).filter(|port| *port != 0),
    }))
}

/// Gives every change to both, until one of them is gone.
///
/// The data path gets neither headless Services, which have no rules (B1.6), nor the Service whose cluster IP is the DNS
/// address: this node answers there itself, and a rule would send or refuse the packets before they arrive.
async fn share(
    mut changes: mpsc::Receiver<ServiceChange>,
    rules: mpsc::Sender<ServiceChange>,
    dns: mpsc::Sender<ServiceChange>,
    dns_addresses: Vec<IpAddr>,
) {
    while let Some(change) = changes.recv().await {
        let for_rules = for_rules(&change, &dns_addresses);
        if dns.send(change).await.is_err() {
            return;
        }
        if let Some(change) = for_rules
            && rules.send(change).await.is_err()
        {
            return;
        }
    }
}

fn for_rules(change: &ServiceChange, dns_addresses: &[IpAddr]) -> Option<ServiceChange> {
    match change {
        // It may have been another kind of Service before.
        ServiceChange::Service(service) if !has_rules(service, dns_addresses) => {
            Some(ServiceChange::ServiceGone(service.metadata.key.clone()))
        }
        ServiceChange::Slice(slice, _) if slice.is_headless => None,
        change => Some(change.clone()),
    }
}

fn has_rules(service: &Service, dns_addresses: &[IpAddr]) -> bool {
    let spec = &service.spec;
    let mut ips = spec.cluster_ips().iter().filter_map(|ip| ip.parse().ok());
    spec.cluster_ip() != "None" && !ips.any(|ip: IpAddr| dns_addresses.contains(&ip))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stoker_model::service::EndpointSlice;

    use super::*;

    #[test]
    fn the_data_path_gets_what_has_rules() {
        // B1.6
        let dns = ["10.96.0.10".parse().expect("an address")];
        let change = |ip: &str| {
            let text = format!(r#"{{"metadata":{{"namespace":"a","name":"b"}},"spec":{{"clusterIP":"{ip}"}}}}"#);
            for_rules(&ServiceChange::Service(Arc::new(serde_json::from_str(&text).expect("a service"))), &dns)
        };
        assert!(matches!(change("10.96.0.11"), Some(ServiceChange::Service(_))));
        assert!(matches!(change("10.96.0.10"), Some(ServiceChange::ServiceGone(_))));
        assert!(matches!(change("None"), Some(ServiceChange::ServiceGone(_))));
        let slice = |labels: &str| {
            let text = format!(r#"{{"metadata":{{"labels":{labels}}}}}"#);
            for_rules(&serde_json::from_str::<EndpointSlice>(&text).expect("a slice").into(), &dns)
        };
        assert!(slice("{}").is_some());
        assert!(slice(r#"{"service.kubernetes.io/headless":""}"#).is_none());
    }
}
