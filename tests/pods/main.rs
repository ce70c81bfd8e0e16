//! The `pod` room against a real containerd, with an API server in memory.

#![expect(unreachable_pub, reason = "a test has no public face")]

mod api;
mod claims;
mod companions;
mod contents;
mod csi;
mod devices;
mod drivers;
mod endings;
mod faults;
mod gadgets;
mod inside;
#[expect(dead_code, reason = "the lab serves another test, too, which needs more of it")]
#[path = "../runtime/lab.rs"]
mod lab;
mod leftovers;
mod lifecycle;
mod node;
mod pressure;
mod probes;
mod pulls;
mod resize;
mod restarts;
mod security;
mod sources;
mod volumes;
mod waits;
