//! The pod network with real traffic: nodes, pods and somebody outside are network namespaces; pods get theirs from our own
//! CNI plugin.

mod compare;
mod lab;
mod nodes;
mod plugin;
mod policies;
