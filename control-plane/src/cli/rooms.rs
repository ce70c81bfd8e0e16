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
    let services: Cidr =
        options.service_cidr.parse().map_err(|_| RunError::ServiceCidr(options.service_cidr.clone()))?;
    let pods: Option<Cidr> = match options.cluster_cidr.as_str() {
        "" => None,
        range => Some(range.parse().map_err(|_| RunError::ClusterCidr(range.to_owned()))?),
    };
    if services.size() < 4 {
        return Err(RunError::ServiceCidr(options.service_cidr.clone()));
    }
    let stored = cluster.objects("", "services").list("", &ListOptions::default()).await?.items;
    cluster.set_service_allocator(Arc::new(ServiceAddresses::new(services, &stored)));
    ensure_defaults(cluster, advertise, options.port, services).await?;
    ensure_roles(cluster).await?;
    let joining = Joining {
        pki,
        version: GIT_VERSION,
        service_cidr: &options.service_cidr,
        pod_cidr: &options.cluster_cidr,
        domain: &options.cluster_domain,
        // Where kubeadm puts it, and `make up`.
        dns: services.address(10.min(services.size() - 2)).to_string(),
    };
    ensure_joining(cluster, &joining).await?;
    let config = Config { pki: Arc::clone(pki), cluster_cidr: pods };
    Ok(vec![controllers::spawn(cluster, config, stop.clone()), scheduler::spawn(cluster, stop.clone())])
}
