//! One watch of Services and EndpointSlices for two rooms: the data path and DNS.

use std::net::IpAddr;

use stoker_model::names::SERVICE_HEADLESS;
use stoker_model::service::{NamespacedName, Service, ServiceChange};
use tokio::sync::mpsc;

/// Gives every change to both, until one of them is gone.
///
/// The data path gets neither headless Services, which have no rules (B1.6), nor the Service whose cluster IP is the DNS
/// address: this node answers there itself, and a rule would send or refuse the packets before they arrive.
pub(super) async fn share(
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
            let meta = &service.metadata;
            let name = NamespacedName { namespace: meta.namespace.clone(), name: meta.name.clone() };
            Some(ServiceChange::ServiceGone(name))
        }
        ServiceChange::Slice(slice) if slice.metadata.labels.contains_key(SERVICE_HEADLESS) => None,
        change => Some(change.clone()),
    }
}

fn has_rules(service: &Service, dns_addresses: &[IpAddr]) -> bool {
    let spec = &service.spec;
    let mut ips = spec.cluster_ips.iter().chain([&spec.cluster_ip]).filter_map(|ip| ip.parse().ok());
    spec.cluster_ip != "None" && !ips.any(|ip: IpAddr| dns_addresses.contains(&ip))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
            for_rules(&ServiceChange::Slice(Arc::new(serde_json::from_str(&text).expect("a slice"))), &dns)
        };
        assert!(slice("{}").is_some());
        assert!(slice(r#"{"service.kubernetes.io/headless":""}"#).is_none());
    }
}
