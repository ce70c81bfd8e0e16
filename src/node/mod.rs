//! This node as an object of the API: registration, status, lease.
