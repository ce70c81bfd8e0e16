//! The whole of Stoker as its users meet it: stock kubectl against a cluster of one node.

#[path = "../lab/mod.rs"]
mod lab;

mod enclosure;
mod faults;
mod hello;
mod stats;
mod streams;
