//! The `runtime` room against a real containerd.

#![expect(unreachable_pub, reason = "a test has no public face")]

mod api;
mod garbage;
mod images;
mod lab;
mod pause;
mod sandboxes;
