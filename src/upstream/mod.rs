//! The API server: one connection and another for Services, watches with slim types, status patches, events, leases.
//!
//! [`ApiServer`] is the connection that everything else borrows. Tasks: [`pods::watch_pods`] feeds the pods of this
//! node, [`services::watch_services`] feeds Services and EndpointSlices, [`events::Events`] publishes events.
//! Not here: what follows from an object; each room decides for itself.

mod authorize;
mod backoff;
mod certificates;
mod claims;
mod client;
mod cluster;
mod connect;
mod discovery;
mod events;
mod followed;
mod gather;
mod node_api;
mod objects;
mod pace;
mod pod_api;
mod pods;
#[cfg(test)]
mod selectors;
mod service_ranges;
mod services;
mod storage;
mod unowned;
mod watch;

pub use authorize::AccessReviews;
pub use backoff::Backoff;
pub(crate) use backoff::spread;
pub use certificates::{
    CertificateStore, ClientKeeper, Identity, IdentitySource, ServingKeeper, Shown, follow_files, until_hopeless,
};
pub use claims::ClaimReader;
pub use client::{ApiServer, ConnectError, DEFAULT_TIMEOUT};
pub use cluster::{watch_nodes, watch_policies};
pub use discovery::{
    DiscoveryError, FoundCluster, Pin, Token, connect_with_token, discover, is_taken, kubelet_configuration,
};
pub use events::{EventTask, Events, event_queue};
pub use node_api::NodeApi;
pub use objects::{ChangeDetection, Objects};
pub use pod_api::PodWriter;
pub use pods::watch_pods;
pub use service_ranges::watch_service_ranges;
pub use services::{ServiceReaders, ServiceStore, fetch_service, fetch_topology, watch_services};
pub use storage::Storage;
