//! Startup, liveness and readiness probes: exec, HTTP, TCP and gRPC, on one timer wheel; exec comes through a handle.
