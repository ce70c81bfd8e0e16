//! Starts the rooms that work on stored objects: what every cluster has, the scheduler, the controllers.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::run::{RunError, RunOptions};
use crate::api::{Cluster, GIT_VERSION, ListOptions};
use crate::auth::Pki;
use crate::controllers::{
    self, Cidr, Config, Joining, ServiceAddresses, ensure_defaults, ensure_joining, ensure_roles,
};
use crate::scheduler;

/// Starts them, before the API serves: addresses that stored Services hold must be known by then.
pub(super) async fn start(
    cluster: &Cluster,
    options: &RunOptions,
    advertise: IpAddr,
    pki: &Arc<Pki>,
    stop: &CancellationToken,
) -> Result<Vec<JoinHandle<()>>, RunError> {
    let wrong = || RunError::ServiceCidr(options.service_cidr.clone());
    let services = Cidr::list(&options.service_cidr).map_err(|_| wrong())?;
    let pods = Cidr::list(&options.cluster_cidr).map_err(|_| RunError::ClusterCidr(options.cluster_cidr.clone()))?;
    let first = services.first().copied().ok_or_else(wrong)?;
    if services.iter().any(|range| range.size() < 4) {
        return Err(wrong());
    }
    let stored = async |group: &str, kind: &str| cluster.objects(group, kind).list("", &ListOptions::default()).await;
    let addresses = Arc::new(ServiceAddresses::new(&services, &stored("", "services").await?.items));
    addresses.set_ranges(&stored("networking.k8s.io", "servicecidrs").await?.items);
    for address in &stored("networking.k8s.io", "ipaddresses").await?.items {
        addresses.note_address(address, true);
    }
    cluster.set_service_allocator(Arc::<ServiceAddresses>::clone(&addresses));
    ensure_defaults(cluster, advertise, options.port, &services).await?;
    ensure_roles(cluster).await?;
    let joining = Joining {
        pki,
        version: GIT_VERSION,
        service_cidr: &options.service_cidr,
        pod_cidr: &options.cluster_cidr,
        domain: &options.cluster_domain,
        // Where kubeadm puts it, and `make up`.
        dns: first.address(10.min(first.size() - 2)).to_string(),
    };
    ensure_joining(cluster, &joining).await?;
    let config = Config { pki: Arc::clone(pki), cluster_cidrs: pods, addresses };
    Ok(vec![controllers::spawn(cluster, config, stop.clone()), scheduler::spawn(cluster, stop.clone())])
}
