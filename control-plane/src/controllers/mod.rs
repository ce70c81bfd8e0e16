//! What follows from stored objects: one file per controller, each level-triggered with a queue of keys.
//!
//! In:  one watch per kind for all of them (`informer`).
//! Out: writes through the in-process client, events.
//! Not here: finding nodes for pods (`scheduler`), anything about one object alone (`resources`).

mod attach_detach;
mod bootstrap;
mod bootstrap_tokens;
mod certificates;
mod cidr;
mod cron;
mod cronjob;
mod daemon_nodes;
mod daemonset;
mod deployment;
mod deployment_status;
mod disruption;
mod endpoints;
mod endpoints_mirror;
mod endpointslice;
mod garbage;
mod informer;
mod job;
mod job_policy;
mod job_status;
mod joining;
mod namespace;
mod node_lifecycle;
mod owner;
mod pod_control;
mod pod_garbage;
mod queue;
mod quota;
mod ranking;
mod rbac;
mod replicaset;
mod revisions;
mod rollout;
mod service_addresses;
mod service_cidrs;
mod serviceaccount;
mod statefulset;
mod volume_binder;
mod volume_claims;

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use bootstrap::ensure_defaults;
pub use cidr::{Cidr, CidrError};
pub use joining::{Joining, ensure_joining};
pub use rbac::ensure_roles;
pub use service_addresses::ServiceAddresses;

use self::informer::Informers;
use crate::api::Cluster;
use crate::auth::Pki;
use crate::recorder::Recorder;

/// What controllers must be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The CA, whose certificate goes to every namespace and which signs what nodes ask for.
    pub pki: Arc<Pki>,
    /// Pod addresses, one range of each family; each node gets a part of each (/24, or /64 of IPv6). Empty: nodes get none.
    pub cluster_cidrs: Vec<Cidr>,
    /// Who gives Services their addresses: told of the ranges that there are.
    pub addresses: Arc<ServiceAddresses>,
}

/// What every controller is made of.
pub(crate) struct Context {
    informers: Informers,
    recorder: Recorder,
    config: Config,
    stop: CancellationToken,
    cluster: Cluster,
}

/// Registers a controller's callbacks; what it returns starts the workers once the caches are filled.
type Register = fn(&Context) -> Box<dyn FnOnce(&Context) + Send>;

const CONTROLLERS: &[Register] = &[
    deployment::register,
    replicaset::register,
    daemonset::register,
    statefulset::register,
    job::register,
    disruption::register,
    quota::register,
    cronjob::register,
    endpointslice::register,
    endpoints::register,
    endpoints_mirror::register,
    service_cidrs::register,
    pod_garbage::register,
    serviceaccount::register,
    garbage::register,
    namespace::register,
    node_lifecycle::register,
    volume_binder::register,
    volume_claims::register,
    attach_detach::register,
    certificates::register,
    bootstrap_tokens::register,
    rbac::aggregation::register,
];

/// Starts all controllers; the handle ends when they have started or `stop` is cancelled.
pub fn spawn(cluster: &Cluster, config: Config, stop: CancellationToken) -> JoinHandle<()> {
    let context = Context {
        informers: Informers::new(cluster),
        recorder: Recorder::spawn(cluster.clone(), "controller-manager"),
        config,
        stop,
        cluster: cluster.clone(),
    };
    tokio::spawn(async move {
        let starts: Vec<_> = CONTROLLERS.iter().map(|register| register(&context)).collect();
        let stop = context.stop.clone();
        tokio::select! {
            () = stop.cancelled() => return,
            () = context.informers.start(&stop) => {}
        }
        for start in starts {
            start(&context);
        }
    })
}
