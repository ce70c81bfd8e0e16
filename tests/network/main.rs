//! The pod network with real traffic: nodes, pods and somebody outside are network namespaces; pods get theirs from our own
//! CNI plugin.

mod lab;
mod plugin;
