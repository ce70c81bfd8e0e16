//! The API server: watches with slim types, status patches, events, leases.
