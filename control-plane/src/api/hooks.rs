//! What the API asks of rooms that it does not know.

use async_trait::async_trait;
use serde_json::Value;

use crate::resources::status::StatusError;

/// Gives Services their addresses and node ports (C5.12), before validation. `controllers` implements it; objects are
/// Service objects after defaulting.
#[async_trait]
pub trait ServiceAllocator: Send + Sync + 'static {
    /// Fills `spec.clusterIP`, `clusterIPs`, `ipFamilies`, `ports[].nodePort`, `healthCheckNodePort` of a new Service
    /// (`old` is `None`) or of a changed one; checks what the client asked for (422 as `StatusError::invalid`). With
    /// `dry_run` nothing stays reserved. On success the caller answers with `settle` after the write.
    async fn allocate(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Allocation, StatusError>;

    /// The write of an allocation succeeded (true) or failed: keep or give back.
    async fn settle(&self, allocation: Allocation, written: bool);

    /// A Service is gone.
    async fn release(&self, service: &Value);
}

/// What was newly reserved for one write; only its maker looks inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Addresses, and what the old object had and the new one has not.
    pub addresses: Vec<String>,
    /// Node ports.
    pub ports: Vec<u16>,
    /// Addresses to give back when the write succeeded.
    pub freed_addresses: Vec<String>,
    /// Node ports to give back when the write succeeded.
    pub freed_ports: Vec<u16>,
}
