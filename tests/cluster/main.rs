//! The whole of Stoker as its users meet it: stock kubectl against a cluster of one node.

#[path = "../lab/mod.rs"]
mod lab;

mod costs;
mod dns;
mod enclosure;
mod faults;
mod hello;
mod join;
mod kubeadm;
mod kubeadm_init;
mod kubeadm_phases;
mod network;
mod node;
mod shutdown;
mod spans;
mod stats;
mod streams;
mod verbs;
mod websockets;
