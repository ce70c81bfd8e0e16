//! The API server: one connection, watches with slim types, status patches, events, leases.
//!
//! [`ApiServer`] is the connection that everything else borrows. Tasks: [`pods::watch_pods`] feeds the pods of this
//! node, [`services::watch_services`] feeds Services and EndpointSlices, [`events::Events`] publishes events.
//! Not here: what follows from an object; each room decides for itself.

mod authorize;
mod backoff;
mod client;
mod connect;
mod events;
mod followed;
mod node_api;
mod objects;
mod pod_api;
mod pods;
mod service_ranges;
mod services;
mod storage;
mod watch;

pub use authorize::AccessReviews;
pub use backoff::Backoff;
pub use client::{ApiServer, ConnectError, DEFAULT_TIMEOUT};
pub use events::{EventTask, Events, event_queue};
pub use node_api::NodeApi;
pub use objects::Objects;
pub use pod_api::PodWriter;
pub use pods::watch_pods;
pub use service_ranges::watch_service_ranges;
pub use services::{ServiceStore, fetch_service, fetch_topology, watch_services};
pub use storage::Storage;
